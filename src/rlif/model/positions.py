"""How long a text may be: the model's context, and where its rotary embedding begins to change with the batch.

Some rotary embeddings (longrope, dynamic NTK) choose their frequencies by the longest text of a batch. Beyond the
length they were trained with, the same prompt then answers differently beside a longer one; keys in a cache were turned
by other frequencies than those by which the trainer turns the whole text. No choice by row helps: a text that
crosses the line would have to be run anew. So texts end there, and up to there all of them are turned alike.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlif.errors import RlifError
from rlif.model.policy import Policy


@dataclass(frozen=True)
class Limit:
    """Most tokens that a text may have, prompt and completion, and the words for what says so."""

    tokens: int
    words: str


def limit_passed(policy: Policy, tokens: int) -> Limit | None:
    """What a text of so many tokens is too long for; None if it is not."""
    known = tokens if policy.context is None else min(tokens, policy.context)
    alike = alike_up_to(policy.model, known)
    if alike < known:
        return Limit(
            alike,
            f"the original context of {policy.source} ({alike}; beyond it a text depends on the longest beside it)",
        )
    return None if known == tokens else Limit(known, f"the context of {policy.source} ({known})")


def check_alike(model: nn.Module, tokens: int) -> None:
    """Raise `RlifError` if rows in a batch of this width, in tokens, depend on the width."""
    alike = alike_up_to(model, tokens)
    if alike < tokens:
        raise RlifError(
            f"a row of {tokens} tokens exceeds the original context of the model ({alike}; beyond it a text depends on "
            "the longest beside it); shorten the prompts or lower the limit"
        )


_LEAST_ASKED = 1 << 12
_FOUND: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()
"""Of each model that was asked: up to how many tokens, and the answer."""


def alike_up_to(model: nn.Module, tokens: int) -> int:
    """The longest text of at most ``tokens`` tokens beside which others are turned as they are alone.

    Asks the model's rotary embeddings themselves, copies of them, so it goes by no list of their types. The answer is
    remembered for as long as the model lives: every micro-batch asks.
    """
    asked, alike = _FOUND.get(model, (0, 0))
    if alike == asked < tokens:  # more than was asked before, and no limit is known: ask for twice as many or so
        asked = max(_LEAST_ASKED, 1 << (tokens - 1).bit_length())
        alike = _ask(model, asked)
        _FOUND[model] = asked, alike
    return min(tokens, alike)


@torch.no_grad()
def _ask(model: nn.Module, tokens: int) -> int:
    for turn in _turns(model):
        tokens = _alike(turn, tokens)
    return tokens


def _alike(turn: Callable[[int], Tensor], tokens: int) -> int:
    alone = turn(2)
    if tokens <= 2 or torch.equal(turn(tokens), alone):
        return tokens
    same, other = 2, tokens  # bisection: what begins to change with the length goes on to
    while other - same > 1:
        middle = (same + other) // 2
        same, other = (middle, other) if torch.equal(turn(middle), alone) else (same, middle)
    return same


def _turns(model: nn.Module) -> Iterator[Callable[[int], Tensor]]:
    """For each rotary embedding, and each kind of layer it knows: how it turns token 1 beside a text of a length."""
    for module in model.modules():
        parameters = list(inspect.signature(module.forward).parameters) if "Rotary" in type(module).__name__ else []
        if parameters[:2] != ["x", "position_ids"]:
            continue
        own: Any = copy.deepcopy(module)  # some remember the longest text that they have seen
        kinds = own.rope_type if "layer_type" in parameters and isinstance(own.rope_type, dict) else ()
        for options in [{"layer_type": kind} for kind in kinds] or [{}]:
            yield partial(_turn, own, options)


def _turn(rotary: Any, options: dict[str, str], length: int) -> Tensor:
    device = next(rotary.buffers(), torch.zeros(())).device
    positions = torch.tensor([[1, length - 1]], device=device)
    return torch.cat([part[..., 0, :] for part in rotary(torch.zeros(1, 2, 1, device=device), positions, **options)])
