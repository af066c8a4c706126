"""Sampling by all ranks of a run: each draws a block of the prompts, and has the completions of all."""

from collections.abc import Callable, Sequence
from typing import Any

from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.parallel import Ranks
from rlif.types import Prompt, Rollouts, Sampling


class SplitEngine(Engine):
    """An `Engine` whose `sample` all ``ranks`` call alike, for policies that are the same on each; ``options`` are
    those of `Engine`. The completions are those of one process: what is drawn depends on names alone."""

    def __init__(self, policy: Policy, ranks: Ranks, **options: Any) -> None:
        super().__init__(policy, **options)
        self._ranks = ranks

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """See `Engine.sample`. ``progress`` is told of this rank's tokens as if all went at its pace."""
        own = self._ranks.block(prompts)
        if not own and prompts:  # fewer prompts than ranks
            return self._ranks.together(None, prompts)

        def advance(tokens: int) -> None:
            if progress is not None:
                progress(tokens * self._ranks.size)

        drawn = super().sample(own, group_size=group_size, sampling=sampling, key=key, progress=advance)
        return self._ranks.together(drawn, prompts)
