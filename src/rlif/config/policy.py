"""The section policy: which model, in which type, on which device."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from rlif.config.section import Positive, Section


class Merge(Section):
    """(1 − ratio) · base + ratio · instruct, weight by weight (arXiv 2506.17219, section 5)."""

    base: str
    """A named model, hub id or folder."""
    instruct: str
    """Another of the same architecture, tuned from the same ancestor."""
    ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    """0: the base model; 1: the instruct model."""
    tokenizer_from: Literal["base", "instruct"] = "base"
    """Whose tokenizer, chat template and special tokens the merged model takes."""


class MergedModel(Section):
    """A model between two others, made in the cache folder when it is first needed (`rlif.model.merge`)."""

    merge: Merge

    def __str__(self) -> str:
        return f"merge of {self.merge.base} and {self.merge.instruct} at {self.merge.ratio:g}"


ModelSource = Annotated[
    Annotated[str, Tag("name")] | Annotated[MergedModel, Tag("merged")],
    Discriminator(lambda value: "merged" if isinstance(value, dict | MergedModel) else "name"),
]


class LoraConfig(Section):
    """A low-rank adapter, W + (alpha / r) · B A: only A and B are trained (LoRA, arXiv 2106.09685; docs/lora.md)."""

    r: Positive = 16
    """Rank of the adapter in each layer."""
    alpha: Positive = 32
    """Scale: alpha / r stands before B A."""
    targets: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = ("all-linear",)
    """The linear layers that are adapted, by the ends of their names: [q_proj, v_proj]. all-linear: all but a head."""

    @field_validator("targets", mode="before")
    @classmethod
    def _target_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class PolicyConfig(Section):
    model: ModelSource
    """Name of a shipped or fetched model (`rlif models`), a hub id, a folder (also of an adapter), or a .gguf file. A
    name comes before a folder called the same: that one is ./NAME. Or {merge: {base: …, instruct: …, ratio: …}}."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; master weights are always fp32. auto: bfloat16 where the hardware multiplies it, else float32."""
    device: str = "auto"
    """A torch device; auto takes CUDA when there is one."""
    chat_template: Literal["auto", "on", "off"] = "auto"
    """auto: on if the tokenizer has one (base models have none, or should not use it: set off)."""
    remote_code: bool = False
    """Run Python code that comes with the model. Only for models you trust by name."""
    lora: LoraConfig | None = None
    """Train an adapter instead of the weights (docs/lora.md); {} takes the defaults. It wants a higher learning rate,
    three to ten times that of all weights. null: all weights are trained."""

    @field_validator("chat_template", mode="before")
    @classmethod
    def _yaml_boolean(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # what YAML makes of on and off
