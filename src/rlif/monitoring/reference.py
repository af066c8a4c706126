"""Frozen answers of the untrained policy, and how far to trust them: what later answers are held against.

No label enters. The untrained policy answers every prompt greedily, at a low temperature and as it is sampled in
training; `choose_reference` takes one answer to each prompt from the three. The rule, prompt by prompt:

1. the winner of the training samples, if their vote is significant and the model passes the *gate*: at least half of
   these samples vote, and on at least half of the prompts their winner is the low temperature's;
2. else the winner at the low temperature, if that vote is significant;
3. else, untrusted, the winner at the low temperature, behind the gate that of the training samples, the greedy answer.

Why: where a model answers at all when sampled, its sampled majority is the best of the three (tiny corpora: right on
.93 to .95 of the prompts, the low temperature on .83 to .91, greedy on .75 to .77). Where it rambles, that majority is
right on one prompt in ten and *rises* into the collapse, while the low temperature's, right on .35 to .48, follows the
truth (SmolLM2-135M-Instruct, which cut off .61 of its samples). The gate tells the two apart: of the tiny models .98 of
the samples vote and agree with the low temperature on .91 of the prompts, of SmolLM2 .39 and .47. Its two halves are
meant, not fitted: below them other voices than the counted one have the majority. To be calibrated on more models.

*Votes*: an answer that could be read, of a completion that ended. Cut off, its last number may be any: under a lenient
form even that is "in the asked form". A base model that never ends gives no reference: stop strings, or a longer limit.
*Margin*: (first − second) / samples, so that who does not vote lowers it. *Significant*: the 95 % interval of the
margin lies above 0; with 16 samples 13 to 3 does, 12 to 4 does not.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlif.errors import RlifError
from rlif.grading.grader import GRADER_VERSION
from rlif.grading.voting import Keys, ballots, by_reading, tally
from rlif.model.fingerprint import weights_digest
from rlif.model.policy import Policy
from rlif.monitoring.sameness import BY_READING, Sameness
from rlif.rollout.prompts import prompts_digest
from rlif.tasks.base import GradedTask, Task
from rlif.types import Prompt, Sampling
from rlif.utils.atomic_io import make_folder, write_whole, writing

Source = Literal["sampled", "low", "greedy"]
SOURCES: tuple[Source, ...] = ("sampled", "low", "greedy")

LEAST_VOTING = 0.5
"""Share of the training samples that must vote; below it the majority is that of a minority."""
LEAST_AGREEING = 0.5
"""Share of prompts on which the training samples' winner must be the low temperature's; below it the two are different
opinions, and training on confidence moves towards the low one."""
_TAIL = 0.025  # on either side of the interval of a margin


class Answer(NamedTuple):
    """One completion as the choice sees it: the answer as it was read, and whether the completion ended."""

    extracted: str | None
    ended: bool

    @property
    def vote(self) -> str | None:
        """What it votes for, None if it does not."""
        return self.extracted if self.ended else None


class Winner(NamedTuple):
    """Of one vote: the answer, (first − second) / samples, and the 95 % interval of that."""

    answer: str
    margin: float
    low: float
    high: float


@dataclass(frozen=True)
class FrozenAnswer:
    """The reference of one prompt. ``answer`` is None if no source gave one.

    ``disputed``: the sources that count do not give one answer: sharpening and truth may part here. ``rival``: what the
    sharper of them says instead, None if there is nothing.
    """

    prompt_id: str
    answer: str | None
    source: Source | None
    margin: float
    low: float
    high: float
    disputed: bool
    rival: str | None

    @property
    def trusted(self) -> bool:
        """Whether it has a significant majority."""
        return self.answer is not None and self.low > 0.0

    @property
    def in_doubt(self) -> bool:
        """Whether the greedy answer may well be wrong: it is disputed, or no answer has a significant majority."""
        return self.disputed or not self.trusted


@dataclass(frozen=True)
class Reference:
    """The frozen answers of one model to some prompts, kept under a digest of what they depend on.

    ``trust`` says how far they go, as shares of the prompts (`trust_numbers`); ``length`` is the mean length in tokens
    of the low-temperature completions; ``tokens`` what it all cost to draw.
    """

    digest: str
    answers: tuple[FrozenAnswer, ...]
    trust: Mapping[str, float]
    length: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Reference":
        """What `as_json` wrote. Raises TypeError or KeyError for anything else."""
        return cls(**{**data, "answers": tuple(FrozenAnswer(**answer) for answer in data["answers"])})

    @property
    def checksum(self) -> str:
        """sha256 of its contents, however a file of them is laid out: who keeps it knows whether they have changed."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Keep it in a folder, under its digest. Raises `RlifError` if that cannot be written."""
        path = reference_path(folder, self.digest)
        with writing(path, "free some space, or choose another folder"):
            make_folder(folder)
            write_whole(path, json.dumps(self.as_json(), allow_nan=False).encode())
        return path

    @classmethod
    def read(cls, path: Path, remedy: str = "delete it to make it anew") -> "Reference":
        """What `write` kept. Raises `RlifError`, which ends with the remedy, if the file is damaged or missing."""
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RlifError(f"{path}: no reference of a probe ({type(error).__name__}); {remedy}") from error


def reference_path(folder: Path, digest: str) -> Path:
    """Where the reference of that digest is kept."""
    return folder / f"reference-{digest}.json"


@dataclass(frozen=True)
class ReferenceSettings:
    """How the untrained policy is asked: the sampling of training, a low temperature, samples at each, and the seed.

    ``same`` says which of its answers are the same, and which later ones agree with them.
    """

    sampling: Sampling
    low_temperature: float = 0.4
    samples: int = 16
    seed: int = 0
    same: Sameness = BY_READING


def reference_digest(policy: Policy, task: Task, prompts: Sequence[Prompt], settings: ReferenceSettings) -> str:
    """16 hexadecimal digits that differ if the reference might: of weights, prompts, grader and settings, and of the
    task its name, what it read (`Task.digests`) and, if it is a `GradedTask`, the format of its answers; and of what
    says which answers are the same, unless that is reading alone."""
    asked = dataclasses.asdict(dataclasses.replace(settings, same=BY_READING))
    del asked["same"]  # by its digest, if it has one: those of before there was another keep theirs
    content: tuple[Any, ...] = (
        weights_digest(policy.model),
        prompts_digest(prompts),
        (task.name, sorted(task.digests().items()), task.format if isinstance(task, GradedTask) else None),
        GRADER_VERSION,
        asked,
        *(() if settings.same.digest is None else (settings.same.digest,)),
    )
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def choose_reference(
    prompt_ids: Sequence[str], draws: Mapping[Source, Sequence[Sequence[Answer]]], keys: Keys = by_reading
) -> tuple[FrozenAnswer, ...]:
    """One frozen answer to each prompt, by the rule at the top of this module.

    ``draws``: each source's answers, by prompt and sample, the same number of samples for all prompts. ``keys`` say
    which answers are the same; they are asked prompt by prompt.
    """
    winners = {source: [winner(row, keys) for row in draws[source]] for source in SOURCES}
    admitted = passes_gate(draws["sampled"], winners["sampled"], winners["low"], keys)
    return tuple(
        _choose(prompt_id, {source: winners[source][i] for source in SOURCES if admitted or source != "sampled"}, keys)
        for i, prompt_id in enumerate(prompt_ids)
    )


def _choose(prompt_id: str, winners: Mapping[Source, Winner | None], keys: Keys) -> FrozenAnswer:
    said = {source: found for source, found in winners.items() if found is not None}
    significant: list[Source] = [source for source in said if said[source].low > 0.0]
    source: Source | None = next(iter([*significant, *(s for s in ("low", "sampled", "greedy") if s in said)]), None)
    if source is None:
        return FrozenAnswer(prompt_id, None, None, 0.0, 0.0, 0.0, disputed=False, rival=None)
    rest = [said[s].answer for s in ("low", "greedy", "sampled") if s in said]
    chosen, *given = keys([said[source].answer, *rest])
    others = [answer for answer, key in zip(rest, given, strict=True) if key != chosen]
    rival = others[0] if others else None
    return FrozenAnswer(prompt_id, *_named(source, said[source]), disputed=bool(others), rival=rival)


def _named(source: Source, found: Winner) -> tuple[str, Source, float, float, float]:
    return found.answer, source, found.margin, found.low, found.high


def passes_gate(
    sampled: Sequence[Sequence[Answer]],
    winners: Sequence[Winner | None],
    low: Sequence[Winner | None],
    keys: Keys = by_reading,
) -> bool:
    """Whether the training samples are a voice of their own to be listened to; see the rule."""
    if voting_rate(sampled) < LEAST_VOTING:
        return False
    agreeing = agreement_of(winners, low, keys)
    return math.isnan(agreeing) or agreeing >= LEAST_AGREEING


def voting_rate(draws: Sequence[Sequence[Answer]]) -> float:
    """Share of the answers that vote; 0 of none."""
    votes = [answer.vote is not None for row in draws for answer in row]
    return sum(votes) / max(len(votes), 1)


def agreement_of(one: Sequence[Winner | None], other: Sequence[Winner | None], keys: Keys = by_reading) -> float:
    """Share of the prompts with a winner in both on which it is the same; NaN if there are none."""
    both = [keys([a.answer, b.answer]) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return sum(a == b for a, b in both) / len(both) if both else math.nan


def trust_numbers(
    answers: Sequence[FrozenAnswer], draws: Mapping[Source, Sequence[Sequence[Answer]]], keys: Keys = by_reading
) -> dict[str, float]:
    """How far to trust a reference: shares of prompts, and of each source's answers; what cannot be known is left out.

    ``answered``, ``trusted``, ``disputed``; ``distinct``: different answers among those given; ``from/<source>``;
    ``voting/<source>`` and ``ended/<source>`` of its answers; ``agree/<source>_<source>``: the same winner in both.
    """
    n = max(len(answers), 1)
    given = keys([one.answer for one in answers if one.answer is not None])
    found = {
        "answered": len(given) / n,
        "trusted": sum(one.trusted for one in answers) / n,
        "disputed": sum(one.disputed for one in answers) / n,
        "distinct": len(set(given)) / len(given) if given else math.nan,
    }
    winners = {source: [winner(row, keys) for row in draws[source]] for source in SOURCES}
    for source in SOURCES:
        ended = [answer.ended for row in draws[source] for answer in row]
        found[f"from/{source}"] = sum(one.source == source for one in answers) / n
        found[f"voting/{source}"] = voting_rate(draws[source])
        found[f"ended/{source}"] = sum(ended) / max(len(ended), 1)
    for a, b in itertools.combinations(SOURCES, 2):
        found[f"agree/{a}_{b}"] = agreement_of(winners[a], winners[b], keys)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def winner(row: Sequence[Answer], keys: Keys = by_reading) -> Winner | None:
    """The commonest vote of one prompt's answers (of equally common ones the first); None without a vote."""
    votes = ballots([[answer.vote for answer in row]], keys)
    counts = tally(votes)[0]
    if not len(counts) or not counts.max():
        return None
    first = int(counts.argmax())
    second = sorted(counts)[-2] if len(counts) > 1 else 0.0
    answer = row[votes[0].tolist().index(first)].extracted
    assert answer is not None
    a, b = int(counts[first]), int(second)
    low, high = (between * (a + b) / len(row) for between in share_interval(a, a + b))
    return Winner(answer, (a - b) / len(row), low, high)


def share_interval(first: int, both: int) -> tuple[float, float]:
    """95 % interval of 2θ − 1, θ the chance that a vote for one of the two leaders is for the first: exact.

    Source: Clopper and Pearson (Biometrika, 1934). Its lower end is above 0 exactly if a two-sided sign test says so.
    """
    low = _root(lambda theta: _at_least(first, both, theta) - _TAIL) if first else 0.0
    high = _root(lambda theta: _TAIL - (1.0 - _at_least(first + 1, both, theta))) if first < both else 1.0
    return 2.0 * low - 1.0, 2.0 * high - 1.0


def _at_least(k: int, n: int, theta: float) -> float:
    return sum(math.comb(n, i) * theta**i * (1.0 - theta) ** (n - i) for i in range(k, n + 1))


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rising(middle) < 0.0 else (low, middle)
    return (low + high) / 2.0
