"""Sampling by all ranks of a run: each draws a block of the prompts, and has the completions of all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.recorder import Recorder
from rlif.training.parallel import Ranks
from rlif.types import Prompt, Rollouts, Sampling


class SplitEngine(Engine):
    """An engine whose `sample` all ``ranks`` call alike, for policies that are the same on each; ``engine`` is what
    samples on this one. The completions are those of one process: what is drawn depends on names alone."""

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        self.policy = engine.policy
        self._engine, self._ranks = engine, ranks

    @property
    def facts(self) -> Mapping[str, str]:
        return self._engine.facts

    def close(self) -> None:
        self._engine.close()

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
        first_sample: Sequence[int] | None = None,
    ) -> Rollouts:
        """See `Engine.sample`. ``progress`` is told of this rank's tokens as if all went at its pace."""
        own = self._ranks.block(prompts)
        first = None if first_sample is None else self._ranks.block(first_sample)
        if not own and prompts:  # fewer prompts than ranks
            return self._ranks.together(None, prompts)

        def advance(tokens: int) -> None:
            if progress is not None:
                progress(tokens * self._ranks.size)

        options: dict[str, Any] = {"sampling": sampling, "key": key, "first_sample": first}
        drawn = self._engine.sample(own, group_size=group_size, progress=advance, **options)
        return self._ranks.together(drawn, prompts)

    def groups(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Rollouts]:
        """See `Engine.groups`; all in one piece, once each rank has drawn its own."""
        yield self.sample(prompts, group_size=group_size, sampling=sampling, key=key, progress=progress)

    def steps(self, recorder: Recorder) -> Iterator[int]:
        """See `Engine.steps`; each rank draws all that its recorder is to hold."""
        return self._engine.steps(recorder)
