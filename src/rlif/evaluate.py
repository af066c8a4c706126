"""Evaluation: the same problems every time, every number with its n and its standard error."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.analysis import transitional
from rlif.rollout import Engine, Key, Sampling
from rlif.tasks.base import Task
from rlif.types import Prompt, Rollouts, Verdict


@dataclass(frozen=True)
class Evaluation:
    """Completions, verdicts, and the numbers made of them (keys as in docs/metrics.md, without ``eval/``)."""

    rollouts: Rollouts
    verdicts: tuple[Verdict, ...]
    metrics: dict[str, float]


def evaluate(
    engine: Engine,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    sampling: Sampling,
    key: Key,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Sample ``samples`` completions for each prompt, grade them, and summarise."""
    rollouts = engine.sample(prompts, group_size=samples, sampling=sampling, key=key, progress=progress)
    verdicts = grade(task, rollouts)
    return Evaluation(rollouts, verdicts, summarise(rollouts, verdicts))


def grade(task: Task, rollouts: Rollouts) -> tuple[Verdict, ...]:
    """The task's verdict on every completion."""
    pairs = zip(rollouts.texts, rollouts.row_prompts, strict=True)
    return tuple(task.grade(text, prompt.problem) for text, prompt in pairs)


def summarise(rollouts: Rollouts, verdicts: tuple[Verdict, ...]) -> dict[str, float]:
    """The numbers of an evaluation. Standard errors are clustered by problem."""
    right = torch.tensor([float(verdict.right is True) for verdict in verdicts])
    formatted = torch.tensor([float(verdict.formatted) for verdict in verdicts])
    tokens = rollouts.mask.sum().item()
    words = transitional(rollouts.texts, int(tokens))
    return {
        "right": right.mean().item(),
        "right_stderr": clustered_stderr(right, rollouts.group_size),
        "formatted": formatted.mean().item(),
        "right_and_formatted": (right * formatted).mean().item(),
        "right_and_formatted_stderr": clustered_stderr(right * formatted, rollouts.group_size),
        "undecided": sum(verdict.right is None for verdict in verdicts) / len(verdicts),
        "entropy": rollouts.signals.entropy.sum().item() / tokens,
        "self_certainty": rollouts.signals.self_certainty.sum().item() / tokens,
        "logprob": rollouts.signals.logprob.sum().item() / tokens,
        "length": tokens / rollouts.n_rows,
        "truncated": rollouts.stop_reasons.count("length") / rollouts.n_rows,
        "self_agreement": self_agreement(verdicts, rollouts.group_size),
        "transitional_rate": words.rate,
        "transitional_share": words.share,
        "n": float(rollouts.n_rows),
        "problems": float(len(rollouts.prompts)),
    }


def clustered_stderr(values: Float[Tensor, " row"], group_size: int) -> float:
    """Standard error of the mean when rows of a problem are not independent: from the spread of problem means.

    NaN for a single problem.
    """
    means = values.double().view(-1, group_size).mean(dim=1)
    return (means.std(unbiased=True) / math.sqrt(len(means))).item() if len(means) > 1 else math.nan


def self_agreement(verdicts: Sequence[Verdict], group_size: int) -> float:
    """Mean over problems of the share of samples that give the problem's commonest answer.

    A completion without an answer never votes and agrees with nobody. 1 by definition for one sample with an answer.
    """
    shares = []
    for start in range(0, len(verdicts), group_size):
        answers = [verdict.extracted for verdict in verdicts[start : start + group_size] if verdict.extracted]
        shares.append(Counter(answers).most_common(1)[0][1] / group_size if answers else 0.0)
    return sum(shares) / len(shares)
