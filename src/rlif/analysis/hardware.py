"""Shapes of decoders and data sheets of devices: what `rlif.analysis.cost` reckons with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlif.errors import RlifError, shown

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of a config.json that say how many MLPs a layer chooses among."""


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward layers and grouped-query attention: Llama, Qwen2, Qwen3, Mistral, Gemma."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feature: int
    """Size of a head."""
    intermediate: int
    """Size of the feed-forward layer."""
    vocabulary: int
    tied: bool
    """Whether the head is the embedding."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, where: str = "config.json") -> "Shape":
        """From the keys of transformers' config.json. Raises `RlifError` for one that is missing or no whole number."""
        text = config.get("text_config") or config
        if experts := [key for key in _EXPERTS if (text.get(key) or 1) != 1]:
            raise RlifError(f"{where}: {experts[0]}: a mixture of experts, whose costs are not known here")

        def number(key: str, default: int | None = None) -> int:
            value = text.get(key)
            value = default if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RlifError(f"{where}: {key}: expected a whole number above 0 (found {shown(text.get(key))})")
            return value

        hidden, heads = number("hidden_size"), number("num_attention_heads")
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        return cls(
            hidden=hidden,
            layers=number("num_hidden_layers"),
            heads=heads,
            kv_heads=number("num_key_value_heads", heads),
            feature=number("head_dim", hidden // heads),
            intermediate=number("intermediate_size"),
            vocabulary=number("vocab_size"),
            tied=text.get("model_type", "").startswith("gemma") if tied is None else bool(tied),
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices: query, key, value, output, gate, up, down."""
        wide, narrow = self.heads * self.feature, self.kv_heads * self.feature
        attention = [(self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow), (wide, self.hidden)]
        return [*attention, *2 * [(self.hidden, self.intermediate)], (self.intermediate, self.hidden)]

    @property
    def in_layers(self) -> int:
        """Parameters of all layers' matrices; norms and biases, less than a thousandth, are left out."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    def copied(self, on_gpu: bool) -> int:
        """Parameters that the decoder holds twice in a rollout (`rlif.model.decoder.JoinedLinearGroup`): matrices that
        it joins; on a CPU all of the layers, which it lays out."""
        joined = [pair for at, pair in enumerate(self.linears) if at not in (3, 6)]  # but output and down
        return self.layers * sum(inputs * outputs for inputs, outputs in joined) if on_gpu else self.in_layers

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.vocabulary * self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: the layers and the head."""
        return self.in_layers + self.head

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.multiplied + (0 if self.tied else self.head)

    def adapter(self, r: int) -> int:
        """Parameters of an adapter of rank r in every matrix of the layers."""
        return self.layers * r * sum(inputs + outputs for inputs, outputs in self.linears)

    def cache(self, width: int) -> int:
        """Bytes of keys and values a token, of numbers of so many bytes."""
        return 2 * self.layers * self.kv_heads * self.feature * width

    def attention(self, tokens: float, seen: float) -> float:
        """Operations of a forward pass in which so many tokens see so many before them, on average."""
        return float(4 * self.layers * self.heads * self.feature * tokens * seen)

    def activations(self, width: int, *, checkpointing: bool) -> int:
        """Bytes a token that the forward pass of an update leaves behind. The decoder makes norms, gates and the
        probabilities of attention anew on the way back; with checkpointing all of a layer but its input."""
        layer = 2 * self.hidden + 2 * (self.heads + self.kv_heads) * self.feature + 2 * self.intermediate
        return width * (self.layers * self.hidden + layer if checkpointing else self.layers * layer)


class Device(NamedTuple):
    """A GPU or processor. Rates are the data sheet's, a second; of a CPU they were measured, and the shares are 1."""

    name: str
    bf16: float
    """Operations in dense matrix products."""
    fp32: float
    bandwidth: float
    """Bytes from its memory."""
    memory: float
    """Bytes."""
    link: float = 0.0
    """Bytes to another device of the machine, one way."""
    network: float = 0.0
    """Bytes to another machine, of each device."""
    matrix_share: float = 0.4
    """Assumed: the part of the matrix rate that is reached."""
    bandwidth_share: float = 0.7
    """Assumed: that of the bandwidth."""
    a_machine: int = 8
    """Devices in a machine."""

    @property
    def is_gpu(self) -> bool:
        return self.link > 0


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("h200", 989e12, 67e12, 4.8e12, 141e9, link=450e9, network=50e9),
        Device("h100", 989e12, 67e12, 3.35e12, 80e9, link=450e9, network=50e9),
        Device("a100", 312e12, 19.5e12, 2.04e12, 80e9, link=300e9, network=25e9),
        Device("l40s", 362e12, 91e12, 0.864e12, 48e9, link=32e9, network=3e9),
        Device("rtx4090", 165e12, 82e12, 1.008e12, 24e9, link=32e9, network=1e9),
        Device("cpu-amx", 2.3e12, 0.2e12, 28e9, 24e9, matrix_share=1.0, bandwidth_share=1.0, a_machine=1),
        Device("cpu-avx2", 0.1e12, 0.1e12, 16e9, 24e9, matrix_share=1.0, bandwidth_share=1.0, a_machine=1),
    )
}
"""SXM cards where there are two kinds; links and networks as such machines usually have. The CPUs are two cores of
docs/performance.md."""

SHAPES: Mapping[str, Shape] = {
    "smollm2-135m-instruct": Shape(576, 30, 9, 3, 64, 1536, 49152, tied=True),
    "Qwen/Qwen2.5-3B": Shape(2048, 36, 16, 2, 128, 11008, 151936, tied=True),
    "Qwen/Qwen3-1.7B-Base": Shape(2048, 28, 16, 8, 128, 6144, 151936, tied=True),
    "Qwen/Qwen3-4B-Base": Shape(2560, 36, 32, 8, 128, 9728, 151936, tied=True),
    "Qwen/Qwen3-8B-Base": Shape(4096, 36, 32, 8, 128, 12288, 151936, tied=False),
    "Qwen/Qwen3-32B": Shape(5120, 64, 64, 8, 128, 25600, 151936, tied=False),
}
"""Models whose config.json need not be there. Source: their config.json on the hub."""
