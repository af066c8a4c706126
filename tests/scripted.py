"""An engine that says what it is told to, and rollouts written by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Prompt, Rollouts, Sampling, StopReason, TokenSignals
from toys import toy_policy

Says = Callable[[int, int, Sampling, Key], str]
"""What is said to prompt i as sample j."""


def written(prompts: Sequence[Prompt], texts: Sequence[str], *, entropy: float = 0.5, **fields: Any) -> Rollouts:
    """Rollouts of these texts, a token a character; a text with a trailing ~ was cut off."""
    lengths = torch.tensor([max(1, len(text)) for text in texts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    flat = torch.where(mask, entropy, 0.0)
    stops: list[StopReason] = ["length" if text.endswith("~") else "eos" for text in texts]
    given: dict[str, Any] = {
        "prompts": tuple(prompts),
        "group_size": len(texts) // len(prompts),
        "tokens": torch.zeros_like(mask, dtype=torch.long),
        "mask": mask,
        "sampler_logprobs": -flat,
        "signals": TokenSignals(-flat, flat, flat),
        "texts": tuple(text.rstrip("~") for text in texts),
        "stop_reasons": tuple(stops),
        "sampling": Sampling(),
    }
    return Rollouts(**given | fields)


class Scripted(Engine):
    """An engine that says what it is told to."""

    def __init__(self, says: Says, policy: Policy | None = None) -> None:
        self.policy, self.says, self.keys = policy or toy_policy(), says, list[Key]()

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        self.keys.append(key)
        texts = [self.says(i, j, sampling, key) for i in range(len(prompts)) for j in range(group_size)]
        return written(prompts, texts, sampling=sampling)
