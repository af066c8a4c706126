"""The evaluation of a run: the same problems and random numbers every time, sampled and greedy."""

from collections.abc import Callable
from dataclasses import replace

from rlif.evals.during_training import Evaluation, evaluate_policy, greedy_metrics
from rlif.rng import Key
from rlif.training.resolve import eval_sampling
from rlif.training.setup import Setup
from rlif.types import Rollouts, Verdict

Answers = dict[str, tuple[Rollouts, tuple[Verdict, ...]]]
"""By the decoding that gave them: ``sampled`` and ``greedy``."""


class Evaluator:
    """Evaluates the policy of a run as it stands, as the recipe's section eval says."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._config = setup, setup.recipe.eval
        self._sampling = eval_sampling(setup.recipe)
        self._greedy = replace(self._sampling, temperature=0.0)

    def due(self, step: int, *, ended: bool) -> bool:
        """After every so many steps, and at the end; before the first step, too, if at all."""
        every = self._config.every
        return every > 0 and (step % every == 0 or ended)

    @property
    def tokens(self) -> int:
        """How many an evaluation has at most."""
        answers = self._config.samples + self._greedy_apart
        return len(self._setup.eval_prompts) * answers * self._sampling.max_new_tokens

    @property
    def _greedy_apart(self) -> bool:
        """Whether greedy answers are asked for, and are not the sampled ones."""
        return self._config.greedy and self._sampling != self._greedy

    def evaluate(self, progress: Callable[[int], None]) -> tuple[dict[str, float], Answers]:
        """Metrics (``eval/...``), and the answers that they are of. ``progress`` is told of tokens as they come."""
        sampled = self._ask(self._config.samples, greedy=False, progress=progress)
        metrics, found = dict(sampled.metrics), {"greedy" if self._sampling == self._greedy else "sampled": sampled}
        if self._config.greedy:
            found["greedy"] = self._ask(1, greedy=True, progress=progress) if self._greedy_apart else sampled
            metrics |= greedy_metrics(found["greedy"])
        answers = {decoding: (one.rollouts, one.verdicts) for decoding, one in found.items()}
        return {f"eval/{name}": value for name, value in metrics.items()}, answers

    def _ask(self, samples: int, *, greedy: bool, progress: Callable[[int], None]) -> Evaluation:
        """The same random numbers at every evaluation: what differs between two of them is the policy."""
        setup = self._setup
        return evaluate_policy(
            setup.engine,
            setup.prompts.task,
            setup.eval_prompts,
            samples=samples,
            sampling=self._greedy if greedy else self._sampling,
            key=Key(setup.recipe.seed, "eval"),
            progress=progress,
        )
