"""Languages so small that every text in them can be enumerated, and softmax policies over them by the thousand.

All is exact and float64: a probability is a sum over every trajectory, never a sample. A language is a table of how
often each trajectory makes each choice, so that sums along trajectories and sums over trajectories are one matrix
product each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Language:
    """Every trajectory of a small language.

    Attributes:
        name: how it is called in tables.
        sequences: the actions of each trajectory, in order.
        counts: how often a trajectory takes an action in a state; float64, because it is multiplied with.
        answers: the answer each trajectory gives: its last action, or the last but the end token.
    """

    name: str
    sequences: tuple[tuple[int, ...], ...]
    counts: Float[Tensor, "trajectory state action"]
    answers: Int[Tensor, " trajectory"]

    @property
    def states(self) -> int:
        return self.counts.shape[1]

    @property
    def actions(self) -> int:
        return self.counts.shape[2]

    @property
    def lengths(self) -> Float[Tensor, " trajectory"]:
        """Choices in each trajectory."""
        return self.counts.sum(dim=(1, 2))


def bandit(actions: int) -> Language:
    """One choice."""
    return _enumerated(f"bandit {actions}", actions, 1, ends=False, memory=None)


def tree(actions: int, depth: int) -> Language:
    """``depth`` choices, each in a state of its own: what was chosen so far."""
    return _enumerated(f"tree {actions}^{depth}", actions, depth, ends=False, memory=None)


def language(vocabulary: int, horizon: int, *, memory: int | None = None) -> Language:
    """Texts of at most ``horizon`` tokens; token 0 ends a text. The state is the last ``memory`` tokens (None: all).

    With a short memory one state is met in many places, as the weights of a network are.
    """
    suffix = "" if memory is None else f" memory {memory}"
    return _enumerated(f"language {vocabulary}^{horizon}{suffix}", vocabulary, horizon, ends=True, memory=memory)


def _enumerated(name: str, actions: int, horizon: int, *, ends: bool, memory: int | None) -> Language:
    def grown(prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(prefix) == horizon or (ends and prefix[-1:] == (0,)):
            yield prefix
            return
        for action in range(actions):
            yield from grown((*prefix, action))

    def context(prefix: tuple[int, ...]) -> tuple[int, ...]:
        return prefix if memory is None else prefix[max(0, len(prefix) - memory) :]

    sequences = tuple(grown(()))
    places: dict[tuple[int, ...], int] = {}
    visited = [[places.setdefault(context(s[:step]), len(places)) for step in range(len(s))] for s in sequences]
    counts = torch.zeros(len(sequences), len(places), actions, dtype=torch.float64)
    for number, (sequence, states) in enumerate(zip(sequences, visited, strict=True)):
        for state, action in zip(states, sequence, strict=True):
            counts[number, state, action] += 1.0
    spoken = [s[:-1] if ends and s[-1] == 0 and len(s) > 1 else s for s in sequences]
    return Language(name, sequences, counts, torch.tensor([s[-1] for s in spoken]))


@dataclass(frozen=True)
class Policies:
    """Many softmax policies over one language, each with an answer that would be right (`verifiable` alone looks)."""

    language: Language
    logits: Float[Tensor, "policy state action"]
    right: Int[Tensor, " policy"]

    @cached_property
    def log_policy(self) -> Float[Tensor, "policy state action"]:
        """ln π(a|s)."""
        return self.logits.log_softmax(dim=-1)

    @cached_property
    def policy(self) -> Float[Tensor, "policy state action"]:
        """π(a|s)."""
        return self.log_policy.exp()

    @cached_property
    def entropy(self) -> Float[Tensor, "policy state"]:
        """H(s) = −Σ_a π ln π, nats."""
        return -(self.policy * self.log_policy).sum(dim=-1)

    @cached_property
    def self_certainty(self) -> Float[Tensor, "policy state"]:
        """KL(U‖π(·|s)), nats."""
        return -self.log_policy.mean(dim=-1) - log(self.language.actions)

    @cached_property
    def logprob(self) -> Float[Tensor, "policy trajectory"]:
        """ln p(τ) = Σ_t ln π(a_t|s_t)."""
        return self.along(self.log_policy)

    @cached_property
    def probability(self) -> Float[Tensor, "policy trajectory"]:
        """p(τ)."""
        return self.logprob.exp()

    @cached_property
    def visits(self) -> Float[Tensor, "policy state action"]:
        """Expected number of times a trajectory takes an action in a state."""
        return self.spread(self.probability)

    @cached_property
    def occupancy(self) -> Float[Tensor, "policy state"]:
        """d(s): expected number of visits of a state."""
        return self.visits.sum(dim=-1)

    @cached_property
    def trajectory_entropy(self) -> Float[Tensor, " policy"]:
        """−Σ_τ p ln p, nats."""
        return -self.expected(self.logprob)

    def along(self, values: Float[Tensor, "policy state action"]) -> Float[Tensor, "policy trajectory"]:
        """The sum of a value over each trajectory's choices."""
        return values.flatten(1) @ self.language.counts.flatten(1).T

    def along_states(self, values: Float[Tensor, "policy state"]) -> Float[Tensor, "policy trajectory"]:
        """The sum of a value over the states each trajectory visits."""
        return values @ self.language.counts.sum(dim=2).T

    def spread(self, weights: Float[Tensor, "policy trajectory"]) -> Float[Tensor, "policy state action"]:
        """Each choice's sum of the weights of the trajectories that make it."""
        return (weights @ self.language.counts.flatten(1)).unflatten(1, self.logits.shape[1:])

    def expected(self, values: Float[Tensor, "policy trajectory"]) -> Float[Tensor, " policy"]:
        """Σ_τ p(τ) value(τ)."""
        return (self.probability * values).sum(dim=1)

    def covariance(
        self, x: Float[Tensor, "policy state action"], y: Float[Tensor, "policy state action"]
    ) -> Float[Tensor, "policy state"]:
        """Cov_{a∼π(·|s)}(x, y)."""
        centred = x - (self.policy * x).sum(dim=-1, keepdim=True)
        return (self.policy * centred * y).sum(dim=-1)

    def answer_shares(self) -> Float[Tensor, "policy answer"]:
        """The probability of each answer."""
        shares = self.logits.new_zeros(len(self.logits), self.language.actions)
        return shares.index_add(1, self.language.answers, self.probability)

    def moved(self, step: Float[Tensor, "policy state action"]) -> "Policies":
        """The policies after a step of the logits."""
        return Policies(self.language, self.logits + step, self.right)

    def chosen(self, keep: Tensor) -> "Policies":
        """Some of the policies, by index or by mask."""
        return Policies(self.language, self.logits[keep], self.right[keep])


def random_spread(n: int, generator: torch.Generator) -> Float[Tensor, " policy"]:
    """How far the logits of random policies lie apart: between 0.3 and 3, evenly on a logarithmic scale."""
    return 0.3 * 10.0 ** torch.rand(n, generator=generator, dtype=torch.float64)


def random_policies(
    language: Language, n: int, generator: torch.Generator, *, spread: Float[Tensor, " policy"] | None = None
) -> Policies:
    """Normal logits times a spread, by default `random_spread`, and a right answer at random."""
    spread = random_spread(n, generator) if spread is None else spread
    shape = (n, language.states, language.actions)
    logits = spread[:, None, None] * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Policies(language, logits, torch.randint(language.actions, (n,), generator=generator))
