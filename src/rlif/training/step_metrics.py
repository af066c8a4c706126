"""The metrics of a training step."""

from rlif.analysis.text import transitional
from rlif.types import Scored, Update


def describe(scored: Scored, update: Update) -> dict[str, float]:
    """The step's metrics, keys as in docs/metrics.md."""
    rollouts, verdicts = scored.rollouts, scored.verdicts
    n, tokens = rollouts.n_rows, int(rollouts.mask.sum())
    words = transitional(rollouts.texts, tokens)
    groups = scored.advantages.view(-1, rollouts.group_size)
    metrics = {
        "advantage/std": scored.advantages.std().item(),
        "advantage/zero_groups": (groups == 0).all(dim=1).float().mean().item(),
        "signal/self_certainty": rollouts.signals.self_certainty.sum().item() / tokens,
        "signal/entropy": rollouts.signals.entropy.sum().item() / tokens,
        "signal/logprob": rollouts.signals.logprob.sum().item() / tokens,
        "length/mean": tokens / n,
        "length/max": float(rollouts.lengths.max()),
        "verdict/right": sum(verdict.right is True for verdict in verdicts) / n,
        "verdict/formatted": sum(verdict.formatted for verdict in verdicts) / n,
        "verdict/right_and_formatted": sum(v.right is True and v.formatted for v in verdicts) / n,
        "verdict/undecided": sum(verdict.right is None for verdict in verdicts) / n,
        "transitional/rate": words.rate,
        "transitional/share": words.share,
        "tokens/prompt": float(sum(len(prompt.token_ids) for prompt in rollouts.prompts)),
        "tokens/completion": float(tokens),
        "loss": update.loss,
        "grad_norm": update.grad_norm,
        **update.metrics,
    }
    if scored.shares is not None:
        metrics["advantage/token_share"] = scored.shares.sum().item() / tokens
    for reason in ("eos", "stop_string", "length"):
        metrics[f"stop/{reason}"] = rollouts.stop_reasons.count(reason) / n
    for name, values in scored.rewards.items():
        metrics |= {f"reward/{name}/mean": values.mean().item(), f"reward/{name}/std": values.std().item()}
    return metrics
