"""The metrics of a training step."""

import math
from collections.abc import Iterable

from rlif.analysis.text import transitional
from rlif.evals.metrics import self_agreement
from rlif.types import Scored, Update, labelled


def describe(scored: Scored, update: Update) -> dict[str, float]:
    """The step's metrics, keys as in docs/metrics.md. What needs a ground truth is of the problems that have one, NaN
    where none has."""
    rollouts, verdicts = scored.rollouts, scored.verdicts
    n, tokens = rollouts.n_rows, int(rollouts.mask.sum())
    words = transitional(rollouts.texts, tokens)
    known = labelled([prompt.problem.answer for prompt in rollouts.prompts], verdicts)
    judged = [verdict for i, verdict in enumerate(verdicts) if known[i // rollouts.group_size]]
    groups = scored.advantages.view(-1, rollouts.group_size)
    metrics = {
        "advantage/std": scored.advantages.std().item(),
        "advantage/zero_groups": (groups == 0).all(dim=1).float().mean().item(),
        "signal/self_certainty": rollouts.signals.self_certainty.sum().item() / tokens,
        "signal/entropy": rollouts.signals.entropy.sum().item() / tokens,
        "signal/logprob": rollouts.signals.logprob.sum().item() / tokens,
        "length/mean": tokens / n,
        "length/max": float(rollouts.lengths.max()),
        "verdict/right": _share(verdict.right is True for verdict in judged),
        "verdict/formatted": sum(verdict.formatted for verdict in verdicts) / n,
        "verdict/right_and_formatted": _share(v.right is True and v.formatted for v in judged),
        "verdict/undecided": _share(verdict.right is None for verdict in judged),
        "transitional/rate": words.rate,
        "transitional/share": words.share,
        "tokens/prompt": float(sum(len(prompt.token_ids) for prompt in rollouts.prompts)),
        "tokens/completion": float(tokens),
        "loss": update.loss,
        "grad_norm": update.grad_norm,
        **update.metrics,
    }
    if not judged:
        metrics["verdict/self_agreement"] = self_agreement([v.extracted for v in verdicts], rollouts.group_size).value
    if scored.shares is not None:
        metrics["advantage/token_share"] = scored.shares.sum().item() / tokens
    for reason in ("eos", "stop_string", "length"):
        metrics[f"stop/{reason}"] = rollouts.stop_reasons.count(reason) / n
    for name, values in scored.rewards.items():
        metrics |= {f"reward/{name}/mean": values.mean().item(), f"reward/{name}/std": values.std().item()}
    return metrics


def _share(found: Iterable[bool]) -> float:
    """How many of them are true; NaN of none."""
    each = list(found)
    return sum(each) / len(each) if each else math.nan
