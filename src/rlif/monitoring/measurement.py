"""What one look at a policy says, without a label: its fresh samples beside the frozen answers and the frozen start.

`measure` is a function of completions, so any sampler will do. The task's judge compares each completion with the
frozen answer in the label's place (`judge`): that is agreement in whatever form. The criterion counts only what also
stands in the asked form, for under token entropy agreement alone peaks while the form still comes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.analysis import estimators
from rlif.analysis.text import compression_ratio, count_transitional, loops, repeated_ngrams
from rlif.model.policy import Policy
from rlif.monitoring.record import ProbeRecord
from rlif.monitoring.reference import FrozenAnswer
from rlif.monitoring.sameness import BY_READING, Sameness
from rlif.tasks.base import Task
from rlif.types import Problem, Rollouts, Verdict
from rlif.utils.splitting import Split, unsplit

ByPrompt = Float[np.ndarray, "prompt sample"]


@dataclass(frozen=True)
class Look:
    """What a record is made of.

    Attributes:
        verdicts: of each completion against the frozen answer (`judge`).
        frozen: the frozen answer of each prompt of ``rollouts``, in that order.
        start_logprobs: ln π_start of the completion tokens at temperature 1, nats, 0 where masked; None without one.
        answer_starts: the completion token at which each answer begins (`answer_starts`), -1 where it was not found;
            None if nobody asks.
        same: which answers are the same; that of the verdicts and of the frozen answers.
    """

    rollouts: Rollouts
    verdicts: Sequence[Verdict]
    frozen: Sequence[FrozenAnswer]
    start_logprobs: Float[Tensor, "row tok"] | None = None
    answer_starts: Int[Tensor, " row"] | None = None
    same: Sameness = BY_READING

    def by_prompt(self, values: Any) -> ByPrompt:
        """One value per row as (prompt, sample), float64."""
        return np.asarray(values, dtype=np.float64).reshape(-1, self.rollouts.group_size)


def judge(
    task: Task, rollouts: Rollouts, answers: Sequence[str | None], same: Sameness = BY_READING
) -> tuple[Verdict, ...]:
    """The task's verdict on every completion with ``answers``, one a prompt, in the label's place: no label enters.

    Whether it is that answer says ``same``: unless given, the task.
    """
    problems = [
        Problem(prompt.problem.id, prompt.problem.question, answer)
        for prompt, answer in zip(rollouts.prompts, answers, strict=True)
    ]
    size = rollouts.group_size
    return tuple(same.judge(task, text, problems[row // size]) for row, text in enumerate(rollouts.texts))


def measure(look: Look, step: int) -> ProbeRecord:
    """The record of a look; ``probe/tokens`` counts the tokens drawn, and those the frozen start was shown."""
    verdicts, rollouts = look.verdicts, look.rollouts
    agrees = look.by_prompt([verdict.right is True for verdict in verdicts])
    in_form = look.by_prompt([verdict.right is True and verdict.formatted for verdict in verdicts])
    rows = {
        "answered": look.by_prompt([verdict.extracted is not None for verdict in verdicts]),
        "ended": look.by_prompt([reason != "length" for reason in rollouts.stop_reasons]),
        "not_looping": look.by_prompt([not loops(text) for text in rollouts.texts]),
    }
    given = np.array([one.answer is not None for one in look.frozen], dtype=bool)
    nats = {"entropy": _per_token(look, rollouts.signals.entropy)}
    if look.start_logprobs is not None:
        nats["cross_entropy"] = _per_token(look, -look.start_logprobs)
    shares = {name: float(values.mean()) for name, values in rows.items()}
    metrics = {
        **_agreement(look, in_form, given),
        "agreement/any_form": _mean_where(
            agrees, np.array([one.answer is not None for one in look.frozen], dtype=bool)
        ),
        **_answers(look),
        "answered": shares["answered"],
        "formatted": float(np.mean([verdict.formatted for verdict in verdicts])),
        "truncated": 1.0 - shares["ended"],
        "looping": 1.0 - shares["not_looping"],
        **_texts(look),
        **_nats(look),
        "tokens": float(rollouts.mask.sum()) * (1 if look.start_logprobs is None else 2),
    }
    counts = {"agreement": in_form[given], "content": agrees[given], **rows}
    return ProbeRecord(
        step,
        rollouts.group_size,
        {f"probe/{name}": value for name, value in metrics.items() if math.isfinite(value)},
        {name: tuple(int(n) for n in values.sum(axis=1)) for name, values in counts.items()},
        {name: tuple(map(float, values)) for name, values in nats.items()},
    )


def _agreement(look: Look, in_form: ByPrompt, given: Bool[np.ndarray, " prompt"]) -> dict[str, float]:
    """Agreement in the asked form: of prompts that have a frozen answer, weighted, trusted, and what rivals do."""
    trusted = np.array([one.trusted for one in look.frozen], dtype=bool)
    disputed = np.array([one.disputed for one in look.frozen], dtype=bool)
    weights = np.array([max(one.margin, 0.0) for one in look.frozen])
    share, total = in_form.mean(axis=1), float(weights.sum())
    found = {
        "agreement": _mean_where(in_form, given),
        "agreement/weighted": float(share @ weights) / total if total else math.nan,
        "agreement/trusted": _mean_where(in_form, trusted),
        "trusted": float(trusted.mean()),
        "agreement/disputed": _mean_where(in_form, disputed),
    }
    if given.any():
        found["agreement/stderr"] = estimators.over_problems(share[given]).stderr
    said: list[bool] = []
    for one, read in zip(look.frozen, _read(look), strict=True):
        _, rival, *keys = look.same.keys([one.answer, one.rival, *read])  # who says the frozen answer, not its rival
        said += [rival is not None and key == rival for key in keys]
    return found | {"rival/disputed": _mean_where(look.by_prompt(said), disputed)}


def _answers(look: Look) -> dict[str, float]:
    """The answers beside each other: within a prompt, and across prompts, where one answer to all is a collapse."""
    read, k, n = _read(look), look.rollouts.group_size, len(look.frozen)
    keys = look.same.keys([*(one.answer for one in look.frozen), *(answer for row in read for answer in row)])
    frozen, groups = keys[:n], [tuple(keys[i : i + k]) for i in range(n, len(keys), k)]
    leaders = [Counter(key for key in group if key is not None).most_common(1) for group in groups]
    leading = [found[0][0] for found in leaders if found]
    texts = look.rollouts.texts
    return {
        "self_agreement": estimators.self_agreement(read, look.same.keys).value,
        "distinct": len(set(leading)) / len(leading) if leading else math.nan,
        "constant": constant_share(groups, frozen),
        "identical": sum(len(set(texts[i : i + k])) == 1 for i in range(0, len(texts), k)) / n,
    }


def constant_share(groups: Sequence[Sequence[str | None]], frozen: Sequence[str | None]) -> float:
    """How far one answer is given everywhere: the largest share that an answer has where it is not the frozen one.

    1 for a policy that always says one thing, also where that is right on half of the prompts; near 0 for one that
    answers each prompt. Both are keys of one grouping (`rlif.grading.voting.Keys`). Counts at least half of the
    prompts, so that an answer which is frozen nearly everywhere is not judged by the few that are left.
    """
    samples = sum(map(len, groups))
    answers = Counter(
        key for group, own in zip(groups, frozen, strict=True) for key in group if key is not None and key != own
    )
    if not answers:
        return 0.0
    elsewhere = {
        key: sum(len(group) for group, own in zip(groups, frozen, strict=True) if own != key) for key in answers
    }
    return max(count / max(elsewhere[key], samples / 2) for key, count in answers.items())


def _texts(look: Look) -> dict[str, float]:
    rollouts = look.rollouts
    lengths, words = rollouts.lengths.double(), [count_transitional(text) for text in rollouts.texts]
    return {
        "length": float(lengths.mean()),
        "repeated_ngrams": float(np.mean([repeated_ngrams(text) for text in rollouts.texts])),
        "compression_ratio": float(np.mean([compression_ratio(text) for text in rollouts.texts])),
        "transitional_rate": sum(words) / float(lengths.sum()),
        "transitional_share": float(np.mean([count > 0 for count in words])),
    }


def _nats(look: Look) -> dict[str, float]:
    """Entropy; under the frozen start the cross-entropy and the k3 estimate of KL(policy, start), where that is one."""
    rollouts, mask = look.rollouts, look.rollouts.mask
    found = {"entropy": _over(rollouts.signals.entropy, mask)}
    if look.start_logprobs is None:
        return found
    lengths = look.by_prompt(rollouts.lengths)
    found["cross_entropy"], found["cross_entropy_stderr"] = estimators.ratio(
        -look.by_prompt(look.start_logprobs.double().sum(dim=1)), lengths
    )
    sampling = rollouts.sampling
    if sampling.temperature != 1.0 or sampling.top_p != 1.0 or sampling.top_k:
        return found  # drawn from another distribution than the one that the divergence is of
    gap = (look.start_logprobs - rollouts.signals.logprob).double()
    k3 = torch.expm1(gap) - gap
    found["kl"] = _over(k3, mask)
    if look.answer_starts is not None:
        place, start = torch.arange(mask.shape[1]), look.answer_starts[:, None]
        found["kl/reasoning"] = _over(k3, mask & (start >= 0) & (place < start))
        found["kl/answer"] = _over(k3, mask & (start >= 0) & (place >= start))
    return found


def answer_starts(
    policy: Policy, rollouts: Rollouts, verdicts: Sequence[Verdict], split: Split = unsplit
) -> Int[Tensor, " row"]:
    """The completion token in which the answer begins, at its last mention; -1 where its spelling is not in the text.

    What was read is cleaned, so an answer that was written otherwise is not found, and its tokens count as neither.
    """

    def start(row: int) -> int:
        answer = verdicts[row].extracted
        at = rollouts.texts[row].rfind(answer) if answer else -1
        return _token_of(policy, rollouts.tokens[row][rollouts.mask[row]].tolist(), at) if at >= 0 else -1

    parts = split(range(rollouts.n_rows), lambda rows: [start(row) for row in rows], rollouts.lengths.tolist())
    return torch.tensor(list(chain.from_iterable(parts)), dtype=torch.long)


def _token_of(policy: Policy, ids: list[int], at: int) -> int:
    """The token that writes the character ``at``: the first after which the text is longer than that."""
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(policy.decode(ids[: middle + 1])) > at else (middle + 1, high)
    return low


def _read(look: Look) -> list[tuple[str | None, ...]]:
    """The answers as they were read, by prompt."""
    read, k = [one.extracted for one in look.verdicts], look.rollouts.group_size
    return [tuple(read[i : i + k]) for i in range(0, len(read), k)]


def _per_token(look: Look, values: Float[Tensor, "row tok"]) -> Float[np.ndarray, " prompt"]:
    """The mean over the tokens of each prompt's completions."""
    return look.by_prompt(values.double().sum(dim=1)).sum(axis=1) / look.by_prompt(look.rollouts.lengths).sum(axis=1)


def _over(values: Float[Tensor, "row tok"], mask: Bool[Tensor, "row tok"]) -> float:
    return float(values.double()[mask].mean())  # nan of no token


def _mean_where(values: ByPrompt, prompts: Bool[np.ndarray, " prompt"]) -> float:
    return float(values[prompts].mean()) if prompts.any() else math.nan
