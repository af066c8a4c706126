"""A batch that is being decoded: what a model must remember of its rows, and one more token for each.

Two ways to the same logits. `PackedBatch` runs models that `rlif.model.decoder` can read: rows enter while others are
under way. `TransformersBatch` runs any other model through its own forward pass: its rows enter together, and leave
when done.
"""

import inspect
import math
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.errors import Argument, RlifError
from rlif.model.decoder import Decoder, Heads, joined
from rlif.model.layers import Identity, Rotation
from rlif.model.lm_head import head_of
from rlif.model.packing import Packed
from rlif.model.policy import Policy
from rlif.rollout.kv_cache import KeyValueCache
from rlif.rollout.transformers_cache import append_cache
from rlif.types import Problem, Prompt

_PREFILL_TOKENS = 4096
_MOST_ROWS = 1024
_CHUNK = 8


@runtime_checkable
class DecodeBatch(Protocol):
    """Rows that are being decoded, in an order that the caller keeps track of."""

    joins: bool
    """Whether rows can enter while others are under way."""

    @property
    def chunk(self) -> int:
        """Tokens of a decode chunk: how many to draw before looking which rows are finished."""

    def prefill(self, prompts: Sequence[Prompt]) -> Float[Tensor, "entered vocab"]:
        """Add a row for each prompt behind the others; fp32 logits of its first token. Neighbours that are the same
        prompt are run once."""

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Append one token to every row; fp32 logits of the next, over the true vocabulary."""

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Let all other rows leave; row i is then the former ``rows[i]``."""


class PackedBatch:
    """Rows run by a `Decoder`, whose keys and values lie in a cache of ours."""

    joins = True

    @property
    def chunk(self) -> int:
        """Several on a GPU, where to look is to wait; a row then draws half as many needless tokens at its end."""
        return 1 if self._device.type == "cpu" else _CHUNK

    def __init__(self, policy: Policy, decoder: Decoder, cache: KeyValueCache) -> None:
        self._decoder, self._device = decoder, policy.device
        self._head = head_of(policy.model, policy.vocab_size)
        self._project = joined([policy.model.get_output_embeddings()])  # type: ignore[operator]
        self._cache = cache

    def prefill(self, prompts: Sequence[Prompt]) -> Float[Tensor, "entered vocab"]:
        groups = [(prompt, sum(1 for _ in copies)) for prompt, copies in groupby(prompts)]
        return torch.cat([self._prefill_part(part) for part in _within(groups, _PREFILL_TOKENS)])

    def _prefill_part(self, groups: Sequence[tuple[Prompt, int]]) -> Float[Tensor, "entered vocab"]:
        """Run some prompts in one line, and add their rows to the cache."""
        line = Packed([prompt.token_ids for prompt, _ in groups], device=self._device)
        layers: list[tuple[Tensor, Tensor]] = []

        def attend(heads: Heads, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
            q, k = heads.apply_norm_and_rope(q, k, rotation)
            layers.append((k, v))
            return line.attend_after_norm_and_rope(heads, q, k, v)

        hidden = self._decoder(line.tokens, line.positions, attend)
        lengths = torch.tensor([len(prompt.token_ids) for prompt, _ in groups], device=self._device)
        counts = torch.tensor([count for _, count in groups], device=self._device)
        copies = torch.arange(len(groups), device=self._device).repeat_interleave(counts)
        self._cache.prefill(layers, line.prompt_places, lengths, copies)
        return self._logits(hidden[line.lasts])[copies]

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        positions = self._cache.lengths
        with self._cache.step() as attend:
            hidden = self._decoder(tokens, positions, attend)
        return self._logits(hidden)

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        self._cache.select(rows)

    def _logits(self, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocab"]:
        (products,) = self._project(Identity(), hidden)
        return self._head.shaped(products[:, : self._head.vocab_size].float())


def _within(groups: Sequence[tuple[Prompt, int]], budget: int) -> list[list[tuple[Prompt, int]]]:
    """Consecutive prompts of at most ``budget`` tokens together (or a single one)."""
    parts: list[list[tuple[Prompt, int]]] = []
    size = 0
    for prompt, count in groups:
        size += len(prompt.token_ids)
        if parts and size <= budget:
            parts[-1].append((prompt, count))
        else:
            parts.append([(prompt, count)])
            size = len(prompt.token_ids)
    return parts


class TransformersBatch:
    """Rows of one batch, left-padded, in transformers' own cache class. Any causal LM that takes a cache."""

    joins = False
    chunk = 1

    def __init__(self, policy: Policy, *, room: int) -> None:
        parameters = inspect.signature(policy.model.forward).parameters
        if "past_key_values" not in parameters:  # it would vanish among other keywords, and the text so far with it
            raise RlifError(
                Argument("model"), f": {policy.source} has no key-value cache to sample with; use another model"
            )
        takes_usual = getattr(policy.model, "_supports_default_dynamic_cache", lambda: True)  # what generate() goes by
        if not takes_usual():
            raise RlifError(
                Argument("model"),
                f": {policy.source} takes no key-value cache but a class of its own, which rows cannot "
                "enter or leave; use another model",
            )
        self._policy, self._room = policy, room
        self._model: Callable[..., Any] = policy.model
        self._takes_positions = "position_ids" in parameters
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._cache: Any = None
        self._mask: Bool[Tensor, "row position"]
        self._lengths: Int[Tensor, " row"]

    def prefill(self, prompts: Sequence[Prompt]) -> Float[Tensor, "entered vocab"]:
        distinct = list(dict.fromkeys(prompts))
        device = self._policy.device
        tokens, mask = left_pad([prompt.token_ids for prompt in distinct], self._policy.pad_id, device)
        self._cache = append_cache(self._policy.model.config, room=self._room)
        logits = self._run(tokens, mask, (mask.long().cumsum(dim=1) - 1).clamp_min(0), **self._keep_last)
        order = {prompt: i for i, prompt in enumerate(distinct)}
        rows = torch.tensor([order[prompt] for prompt in prompts], device=device)
        self._cache.reorder_cache(rows)
        self._mask, self._lengths = mask[rows], mask.sum(dim=1)[rows]
        return logits.index_select(0, rows)

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        logits = self._run(tokens[:, None], self._mask, self._lengths[:, None])
        self._lengths = self._lengths + 1
        return logits

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        self._cache.reorder_cache(rows)
        self._mask, self._lengths = self._mask[rows], self._lengths[rows]

    def _run(self, tokens: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Float[Tensor, "row vocab"]:
        output = self._model(
            input_ids=tokens,
            attention_mask=None if bool(mask.all()) else mask.long(),
            past_key_values=self._cache,
            use_cache=True,
            **({"position_ids": positions} if self._takes_positions else {}),
            **options,
        )
        logits: Tensor = output.logits[:, -1, : self._policy.vocab_size].float()
        return logits


_TRIAL = ((2, 7), 3)  # prompts of so many tokens, and so many more: fewer and more than a convolution is wide
_ROUNDING = {torch.float32: 0.002}  # in standard deviations of the logits, where healthy models differ by 1e-6; ...
_COARSE_ROUNDING = 0.03  # ... in bf16 by 1e-3 and less on a CPU


@torch.no_grad()
def check_rows(policy: Policy, max_mismatch: float | None = None) -> None:
    """Raise `RlifError` unless `TransformersBatch` gives each row what the model says of that row alone.

    Args:
        max_mismatch: a mean gap of the logits, in nats, that is accepted whatever the rounding explains; 0: any is.

    Two short rows beside each other, one of which leaves, against a forward pass of each without cache and padding.
    Found so: models that keep a state outside the cache (RecurrentGemma), that count padding as text (BART, RoBERTa),
    or that need a cache of their own. A mean gap above `_ROUNDING`, in standard deviations of the logits, is no
    rounding. The limit for types other than fp32 was measured on a CPU only: on another device it is a warning, and
    `rlif.monitoring.mismatch.Guard` has the last word.
    """
    trial = _TrialBatch(policy, room=_TRIAL[1])
    odd = {*policy.eos_ids, policy.pad_id}
    known = [token for token in range(policy.vocab_size) if token not in odd] or [policy.pad_id]
    lengths, more = _TRIAL
    texts = [[known[(7 * i + 3 * row) % len(known)] for i in range(n + more)] for row, n in enumerate(lengths)]
    prompts = [Prompt(f"trial/{n}", "", tuple(ids[:n]), Problem("", "")) for n, ids in zip(lengths, texts, strict=True)]
    found = {(row, n - 1): logits for row, (n, logits) in enumerate(zip(lengths, trial.prefill(prompts), strict=True))}
    alive = [0, 1]
    for step in range(more):
        at = [(row, lengths[row] + step) for row in alive]
        logits = trial.step(torch.tensor([texts[row][place] for row, place in at], device=policy.device))
        found |= dict(zip(at, logits, strict=True))
        if step == 1:
            alive = [1]
            trial.select(torch.tensor(alive, device=policy.device))
    if max_mismatch == 0:
        return
    alone = [trial.alone(ids) for ids in texts]
    expected = torch.stack([alone[row][place] for row, place in found])
    nats = float((torch.stack(list(found.values())) - expected).abs().mean())
    gap, dtype = nats / float(expected.std()), next(policy.model.parameters()).dtype
    # nan: logits that are no numbers are told where they are sampled from
    if math.isnan(gap) or gap <= _ROUNDING.get(dtype, _COARSE_ROUNDING) or nats <= (max_mismatch or 0.0):
        return
    said = (
        f"{policy.source} answers differently beside another prompt, or with a key-value cache (by "
        f"{gap:.2g} standard deviations of its logits, {nats:.2g} nats)"
    )
    if not _limit_known(dtype, policy.device):
        warnings.warn(f"{said}; float32 tells whether it is rounding", RuntimeWarning, stacklevel=3)
        return
    raise RlifError(
        *(Argument("model"), f": {said}: it cannot be sampled from in batches; a higher "),
        *(Argument("max_mismatch"), " accepts it (0: no check), or use another model"),
    )


def _limit_known(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it is known how far rounding goes in this type on this device."""
    return dtype in _ROUNDING or device.type == "cpu"


class _TrialBatch(TransformersBatch):
    """Rows of a model that may not be able to: what it raises becomes one line. Hooks on the model hear nothing."""

    def __init__(self, policy: Policy, *, room: int) -> None:
        super().__init__(policy, room=room)
        self._model = self._checked_forward

    def alone(self, ids: Sequence[int]) -> Float[Tensor, "position vocab"]:
        """What the model says at each position of one text, without cache and padding."""
        tokens = torch.tensor([ids], device=self._policy.device)
        logits: Tensor = self._checked_forward(input_ids=tokens, use_cache=False).logits
        return logits[0, :, : self._policy.vocab_size].float()

    def _checked_forward(self, **inputs: Any) -> Any:
        try:
            return self._policy.model.forward(**inputs)
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RlifError(
                Argument("model"), f": {self._policy.source} cannot be sampled from ({reason}); use another model"
            ) from error


def rows_that_fit(policy: Policy, columns: int) -> int:
    """How many rows of so many tokens the key-value cache may hold: a share of the machine's memory, 1,024 at most.

    It goes by the memory that is built in, not by what happens to be free: two runs on one machine decode in the same
    batches. Source: project.
    """
    config = policy.model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    feature = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = next(policy.model.parameters()).element_size()
    row = 2 * config.num_hidden_layers * heads * feature * width * columns
    return max(1, min(_MOST_ROWS, int(_cache_share(policy.device) // row)))


def _cache_share(device: torch.device) -> float:
    """Bytes that the cache may take: the weights, and the update's activations, need the rest."""
    if device.type == "cuda":
        return 0.4 * torch.cuda.get_device_properties(device).total_memory
    return 0.1 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def left_pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
    """Token ids aligned at their right end, and the mask of the real ones."""
    width = max(len(ids) for ids in sequences)
    tokens = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = True
    return tokens.to(device), mask.to(device)
