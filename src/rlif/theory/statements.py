"""A statement, its claim in numbers, and whether the numbers bear it out.

A statement names what it assumes, its formula, where it comes from, and the share of trials in which it should hold:
all of them for a theorem; for a statement that sounds true and is not, a band below 1, and the trial that breaks it is
its counter-example, found by a seeded search.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlif.errors import RlifError


@dataclass(frozen=True)
class Claim:
    """What a statement says of each trial (``left``) and what is true of it (``right``).

    Trailing axes (states, steps, actions) must hold all of them. ``tolerance`` is what rounding, or the stated order of
    a remainder, allows. ``example`` describes a trial in words, ``note`` all of them.
    """

    left: Float[Tensor, "trial ..."]
    right: Float[Tensor, "trial ..."]
    tolerance: Float[Tensor, "trial ..."] | float
    example: Callable[[int], str] | None = None
    note: str = ""

    def deviation(self, relation: Literal["=", "≤"]) -> Float[Tensor, "trial ..."]:
        """How far left is from right; for ≤ how far above it. What is not a number deviates without end."""
        difference = self.left - self.right
        return (difference.abs() if relation == "=" else difference.clamp_min(0.0)).nan_to_num(nan=torch.inf)

    def holds(self, relation: Literal["=", "≤"]) -> Bool[Tensor, " trial"]:
        """Which trials bear the statement out."""
        return (self.deviation(relation) <= self.tolerance).view(len(self.left), -1).all(dim=1)


Trial = Callable[[int, torch.Generator], Claim]
"""Draws about so many random cases and says what holds of each: ``(trials, generator) -> Claim``."""


@dataclass(frozen=True)
class Statement:
    """One line of `rlif theory`.

    Attributes:
        relation: between the claim's left and right side.
        share: lowest and highest share of trials in which it holds; (1, 1) is a theorem.
    """

    name: str
    says: str
    assumes: str
    formula: str
    source: str
    trial: Trial
    relation: Literal["=", "≤"] = "="
    share: tuple[float, float] = (1.0, 1.0)

    @property
    def theorem(self) -> bool:
        """Whether it must hold in every trial."""
        return self.share == (1.0, 1.0)

    def negated(self) -> "Statement":
        """The statement with a wrong sign: what a check that can fail must reject."""

        def trial(trials: int, generator: torch.Generator) -> Claim:
            claim = self.trial(trials, generator)
            return replace(claim, left=-claim.left)

        return replace(self, trial=trial)


@dataclass(frozen=True)
class Result:
    """What the trials of a statement came to. ``counter_example`` describes the trial that breaks it worst."""

    statement: Statement
    trials: int
    held: float
    deviation: float
    counter_example: str | None
    note: str

    @property
    def as_stated(self) -> bool:
        """A theorem held in every trial; another statement in a share inside its band (four sigmas of sampling)."""
        if self.statement.theorem or not self.trials:
            return self.held == 1.0
        low, high = self.statement.share
        slack = 4.0 * (0.25 / self.trials) ** 0.5
        return low - slack <= self.held <= high + slack


def check(statement: Statement, *, trials: int, seed: int) -> Result:
    """Try a statement on about ``trials`` random cases; each statement draws from a stream of its own."""
    generator = torch.Generator().manual_seed(seed * 2_147_483_659 + zlib.crc32(statement.name.encode()))
    claim = statement.trial(trials, generator)
    if not len(claim.left):
        return Result(statement, 0, 0.0, 0.0, None, "no case met the assumptions: give more --trials")
    held = claim.holds(statement.relation)
    deviation = claim.deviation(statement.relation).view(len(held), -1).amax(dim=1)
    example = None
    if not bool(held.all()):
        worst = int(torch.where(held, -torch.inf, deviation).argmax())
        example = claim.example(worst) if claim.example else f"trial {worst}: off by {float(deviation[worst]):.3g}"
    return Result(statement, len(held), float(held.double().mean()), float(deviation.max()), example, claim.note)


def check_all(statements: Mapping[str, Statement], *, trials: int, seed: int) -> Sequence[Result]:
    """Try all of them, in order. Raises `RlifError` if there is nothing to try."""
    if trials < 1:
        raise RlifError(f"theory: {trials} trials; give --trials at least 1")
    return [check(statement, trials=trials, seed=seed) for statement in statements.values()]
