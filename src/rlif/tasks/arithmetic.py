"""Additions, generated from the seed: nothing to download, as many as wanted, and every answer known.

An eighth of the pairs of summands is kept from training for evaluation. Which eighth is decided by a fixed hash of
the pair, whatever the seed and the range; 27+58 and 58+27 fall on the same side.
"""

from collections.abc import Iterator
from random import Random

from rlif.config import ArithmeticTask
from rlif.errors import Argument, RlifError
from rlif.rng import is_held_out, keyed_random
from rlif.tasks.base import EVAL_SEED, GradedTask, too_few
from rlif.tasks.templates import find_template
from rlif.types import Problem

_SHUFFLED = 1 << 16
"""Up to so many pairs a draw shuffles them all, and knows when they run out; beyond, it draws until it has enough."""


class Arithmetic(GradedTask):
    """Sums of two whole numbers between ``config.low`` and ``config.high``."""

    name = "arithmetic"

    def __init__(self, config: ArithmeticTask, *, widen: bool = True) -> None:
        """``widen``: whether errors may advise another range; a benchmark's is what it is.

        Raises `RlifError` if the question lacks a summand, or for an unknown format.
        """
        super().__init__(config.format or find_template(config.template).format)
        for summand in ("{a}", "{b}"):
            if summand not in config.question:
                raise RlifError(Argument("question"), f": {config.question!r} does not contain {summand}")
        self._config, self._widen = config, widen
        self._width = config.high - config.low + 1

    def train_problems(self, step: int, count: int, seed: int) -> tuple[Problem, ...]:
        """See `Task.train_problems`. Fresh draws for each (seed, step), from the training share of the pairs."""
        return self._draw(keyed_random("arithmetic", seed, step), count, held_out=False)

    def eval_problems(self, count: int, seed: int = EVAL_SEED) -> tuple[Problem, ...]:
        """See `Task.eval_problems`. From the evaluation share, which training never sees."""
        return self._draw(keyed_random("arithmetic", "eval", seed), count, held_out=True)

    def problems_to_fit(self) -> tuple[Problem, ...]:
        """See `Task.problems_to_fit`."""
        return (self._problem(self._config.high, self._config.high),)

    def _draw(self, random: Random, count: int, *, held_out: bool) -> tuple[Problem, ...]:
        drawn: dict[tuple[int, int], Problem] = {}
        pairs = self._pairs(random, count)
        while len(drawn) < count:
            pair = next(pairs, None)
            if pair is None:
                share, asked = ("evaluation", "eval_problems") if held_out else ("training", "prompts")
                where = f"the {share} share of sums from {self._config.low} to {self._config.high}"
                wider = (", or widen the range (", Argument("low"), ", ", Argument("high"), ")") if self._widen else ()
                raise too_few(where, len(drawn), count, "lower ", Argument(asked), f" to {len(drawn)}", *wider)
            if is_held_out(*pair) == held_out:
                drawn[pair] = self._problem(*pair)
        return tuple(drawn.values())

    def _pairs(self, random: Random, count: int) -> Iterator[tuple[int, int]]:
        """Pairs in random order: each once if there are few, for ever and with repetitions if there are many."""
        size = self._width**2
        if size <= max(_SHUFFLED, 64 * count):
            indices = list(range(size))
            random.shuffle(indices)
            yield from map(self._pair, indices)
        else:
            while True:
                yield self._pair(random.randrange(size))

    def _pair(self, index: int) -> tuple[int, int]:
        a, b = divmod(index, self._width)
        return self._config.low + a, self._config.low + b

    def _problem(self, a: int, b: int) -> Problem:
        question = self._config.question.replace("{a}", str(a)).replace("{b}", str(b))
        return Problem(f"arithmetic/{a}+{b}", question, str(a + b))
