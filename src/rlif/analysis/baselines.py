"""Training-free baselines: what a model's samples are worth without training, beside which a gain is claimed.

A baseline says, of each problem's k answers, with what chance each of them is the one handed in (`Choice`): ties are
expectations, no coins. So right, and right and formatted, mean the same for all of them: a vote hands in one of the
answers that gave the winning answer, and is formatted if that one is. An answer that could not be read is never chosen
(but for `sampled`, which chooses nothing); where none could be read the problem is lost.

*Greedy*, *low temperature* and *power sampling* (`rlif.rollout.power_sampling`) are other samples, scored by `sampled`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rlif.analysis.estimators import Estimate, over_problems
from rlif.grading.voting import NO_VOTE, Keys, ballots, by_reading, winner_shares
from rlif.signals import SIGNALS, masked_mean
from rlif.types import Rollouts, Verdict

BORDA_SIGNAL = "self_certainty"
"""What arXiv 2502.18581 ranks by."""
BORDA_POWER = 0.5
"""The default of that paper's program (`voting_from_list.py`). 0 is the majority vote; a great one is best of k."""


@dataclass(frozen=True)
class GradedSamples:
    """The graded answers to each problem, as many to one as to the other.

    Attributes:
        right: undecided answers are not.
        votes: which answers say the same (`rlif.grading.voting.ballots`).
        confidences: by a name of `rlif.signals.SIGNALS`, each answer's mean over its tokens, higher = surer; NaN where
            it is not known, which ranks below all others. A signal that is known of none may be missing.
        tokens: what each answer cost.
    """

    right: Bool[np.ndarray, "problem sample"]
    formatted: Bool[np.ndarray, "problem sample"]
    votes: Int[np.ndarray, "problem sample"]
    confidences: Mapping[str, Float[np.ndarray, "problem sample"]]
    tokens: Float[np.ndarray, "problem sample"]

    @classmethod
    def from_rollouts(
        cls,
        rollouts: Rollouts,
        verdicts: Sequence[Verdict],
        tokens: Int[np.ndarray, " row"] | None = None,
        keys: Keys = by_reading,
    ) -> "GradedSamples":
        """``tokens``: what each row cost, if that is more than its length (power sampling, say). ``keys`` say which
        answers are one vote, problem by problem."""

        def table(values: Any) -> np.ndarray:
            return np.asarray(values).reshape(-1, rollouts.group_size)

        read = [verdict.extracted for verdict in verdicts]
        scores = {name: signal.score(rollouts.signals).double() for name, signal in SIGNALS.items()}
        return cls(
            right=table([verdict.right is True for verdict in verdicts]),
            formatted=table([verdict.formatted for verdict in verdicts]),
            votes=ballots([read[i : i + rollouts.group_size] for i in range(0, len(read), rollouts.group_size)], keys),
            confidences={name: table(masked_mean(values, rollouts.mask)) for name, values in scores.items()},
            tokens=table(rollouts.lengths if tokens is None else tokens).astype(np.float64),
        )


@dataclass(frozen=True)
class Score:
    """What a baseline reaches. Errors are clustered by problem; ``tokens`` is the mean cost of a problem."""

    right: Estimate
    right_and_formatted: Estimate
    tokens: float

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        estimates = {"right": self.right._asdict(), "right_and_formatted": self.right_and_formatted._asdict()}
        return {**estimates, "tokens": self.tokens}


Choice = Callable[[GradedSamples], Float[np.ndarray, "problem sample"]]
"""The chance of each answer to be the one handed in; a problem's sum to 1, or are all 0: it is lost."""


def uniform(samples: GradedSamples) -> Float[np.ndarray, "problem sample"]:
    """Any of the answers."""
    return np.full(samples.right.shape, 1.0 / samples.right.shape[1])


def commonest(samples: GradedSamples) -> Float[np.ndarray, "problem sample"]:
    """The commonest answer (self-consistency, arXiv 2203.11171)."""
    return winner_shares(samples.votes)


def borda(
    samples: GradedSamples, signal: str = BORDA_SIGNAL, power: float = BORDA_POWER
) -> Float[np.ndarray, "problem sample"]:
    """The answer whose members have the most points: (N − r + 1)^power for the r-th surest of all N answers.

    Equally sure answers share the points of their places. One that could not be read keeps its place and gives its
    points to nobody, as in the paper's program. Source: arXiv 2502.18581.
    """
    return winner_shares(samples.votes, borda_points(samples.confidences[signal], power))


def borda_points(confidence: Float[np.ndarray, "problem sample"], power: float) -> Float[np.ndarray, "problem sample"]:
    """((N − r + 1) / N)^power of each answer of rank r = 1 … N by falling confidence; equals share."""
    sureness = np.where(np.isnan(confidence), -np.inf, confidence)
    n = sureness.shape[1]
    order = np.argsort(sureness, axis=1, kind="stable")  # the place of the least sure is worth (1/N)^power
    ordered = np.take_along_axis(sureness, order, axis=1)
    # Runs of equal confidences, numbered through all problems; each run's mean goes back to its members.
    starts = np.concatenate([np.ones((len(ordered), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    run = np.cumsum(starts).reshape(ordered.shape) - 1
    places = np.broadcast_to((np.arange(1, n + 1) / n) ** power, ordered.shape)
    means = np.bincount(run.ravel(), weights=places.ravel()) / np.bincount(run.ravel())
    points = np.empty(ordered.shape)
    np.put_along_axis(points, order, means[run], axis=1)
    return points


def best_of_k(samples: GradedSamples, signal: str) -> Float[np.ndarray, "problem sample"]:
    """The surest answer of those that could be read (the same in the program of arXiv 2502.18581)."""
    confidence = samples.confidences[signal]
    sureness = np.where(np.isnan(confidence), -np.inf, confidence)
    readable = samples.votes != NO_VOTE
    highest = np.where(readable, sureness, -np.inf).max(axis=1, keepdims=True)
    best = readable & (sureness == highest)
    return best / np.maximum(best.sum(axis=1, keepdims=True), 1)


@dataclass(frozen=True)
class Baseline:
    """One way to hand in an answer.

    Attributes:
        signals: the confidences it needs.
        one: an answer costs what one sample costs; otherwise what all of them do.
    """

    name: str
    description: str
    citation: str
    choose: Choice
    signals: tuple[str, ...] = ()
    one: bool = False


def _best_of_k(signal: str) -> Baseline:
    description = f"the surest of k answers by {signal}"
    name, citation = f"best_of_k/{signal}", SIGNALS[signal].citation
    return Baseline(name, description, citation, lambda samples: best_of_k(samples, signal), (signal,))


BASELINES: Mapping[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("sampled", "one answer, drawn", "", uniform, one=True),
        Baseline("majority", "the commonest of k answers", "arXiv 2203.11171", commonest),
        Baseline("borda", "the commonest, weighted by rank", "arXiv 2502.18581", borda, (BORDA_SIGNAL,)),
        *map(_best_of_k, SIGNALS),
    )
}


def evaluate_baseline(baseline: Baseline, samples: GradedSamples) -> Score:
    """What a baseline makes of these samples. Raises KeyError without a signal that it needs."""
    chances = baseline.choose(samples)
    tokens = samples.tokens.mean(axis=1) if baseline.one else samples.tokens.sum(axis=1)
    return Score(
        right=over_problems((chances * samples.right).sum(axis=1)),
        right_and_formatted=over_problems((chances * (samples.right & samples.formatted)).sum(axis=1)),
        tokens=float(tokens.mean()),
    )


def baselines(samples: GradedSamples, **others: GradedSamples) -> dict[str, Any]:
    """``results[].baselines`` of results.json: all that the samples give for free, and ``sampled`` of other samples.

    ``others`` are greedy answers, those at a low temperature, and so on, under their names. A baseline whose signal is
    not there is left out. Best of k has one entry a signal: ``best_of_k.self_certainty``.
    """
    found: dict[str, Any] = {}
    for name, baseline in BASELINES.items():
        if set(baseline.signals) <= set(samples.confidences):
            group, _, signal = name.partition("/")
            score = evaluate_baseline(baseline, samples).as_json()
            if signal:
                found.setdefault(group, {})[signal] = score
            else:
                found[group] = score
    return found | {name: evaluate_baseline(BASELINES["sampled"], other).as_json() for name, other in others.items()}
