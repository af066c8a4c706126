"""Drawing inside vLLM: which row of ours stands where in its batch, and the draw that leaves it no choice.

vLLM runs the model; the token is drawn here, from its raw logits, as `rlif.rollout.engine` draws it: by the row's own
random numbers (`rlif.rollout.sampling`), signals in the same pass. Then every other logit is −∞, so that vLLM's greedy
sampler can only take that token. It imports nothing of vLLM: `rlif.rollout.vllm_processors` calls it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.rollout.recorder import Recorder

ROW = "rlif_row"
"""The key of a request's ``extra_args`` that holds the number of its row, and the length of its prompt in tokens."""


class Drawing:
    """What is being drawn, as vLLM's logits processors find it; they live in the same process.

    ``recorder`` takes what is drawn; None: nothing is. ``vocab``: the true vocabulary, padding is never drawn.
    """

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self.recorder: Recorder | None = None

    @torch.no_grad()
    def draw(
        self,
        logits: Float[Tensor, "place width"],
        places: Int[Tensor, " row"] | None,
        rows: Int[Tensor, " row"],
        lengths: Int[Tensor, " row"],
    ) -> None:
        """Draw the next token of each row, and change its logits so that they allow no other.

        Args:
            logits: raw, of vLLM's whole batch; changed in place.
            places: where in that batch the rows are; None: they are all of it, in this order.
            rows: their numbers in the recorder.
            lengths: how many tokens each already has, below 0 within its prompt. A row that is shorter than what was
                drawn of it goes back: of a prompt that vLLM reads in parts it asks after each, and means the last.
        """
        if self.recorder is None:
            return
        self.recorder.rewind(rows, lengths.clamp_min(0))
        own = logits if places is None else logits[places]
        tokens = self.recorder.sample(rows, own[:, : self.vocab].float())
        own.fill_(-torch.inf).scatter_(1, tokens[:, None], 0.0)
        if places is not None:
            logits[places] = own


class BatchRows:
    """Which of our rows stands at which place of vLLM's batch, kept by what V1 tells of each change of it.

    Source: ``BatchUpdate`` of vllm/v1/sample/logits_processor/interface.py: first removed, then added, then moved.
    """

    def __init__(self) -> None:
        self._at: dict[int, tuple[int, Sequence[int]]] = {}

    def update(
        self,
        removed: Iterable[int],
        added: Iterable[tuple[int, Any, Any, Sequence[int]]],
        moved: Iterable[tuple[int, int, Any]],
    ) -> None:
        """Follow a change of the batch.

        Args:
            removed: places that are free now.
            added: (place, sampling parameters, prompt, the live list of its tokens) of new requests, which may take
                the place of others.
            moved: (from, to, direction) in this order; a direction called SWAP exchanges both places.
        """
        for place in removed:
            self._at.pop(place, None)
        for place, params, _, tokens in added:
            self._at.pop(place, None)
            if ROW in (params.extra_args or {}):
                row, _ = params.extra_args[ROW]
                self._at[place] = row, tokens
        for start, end, direction in moved:
            first, second = self._at.pop(start, None), self._at.pop(end, None)
            if first is not None:
                self._at[end] = first
            if second is not None and direction.name == "SWAP":
                self._at[start] = second

    def table(self) -> list[tuple[int, int, int]]:
        """(place, row, how many tokens it has so far) of each of our rows, by place."""
        return [(place, row, len(tokens)) for place, (row, tokens) in sorted(self._at.items())]
