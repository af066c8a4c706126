"""Group relative policy optimisation: the update step, around the loss of `rlif.training.loss`.

Differences from the paper that introduced it (arXiv 2402.03300):

1. How tokens are weighted (over the batch, per sequence, by a fixed length) is a choice made before the loss: it
   arrives as one weight per token that sums over the whole update, so micro-batches cannot change it;
2. the KL to the reference is the k3 estimate inside the loss;
3. with one optimizer step per rollout batch the old policy is the current one: no second forward, ratio 1, no clipping;
4. completions whose advantage is 0 have no gradient and are not run, unless another term of the loss needs them.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlif.config import GrpoConfig
from rlif.model.logprobs import micro_batches, policy_logprobs, policy_logprobs_and_entropy
from rlif.model.policy import Policy
from rlif.training.loss import AGGREGATIONS, LossInputs, grpo_loss
from rlif.training.optim import MasterOptimizer, NonFiniteError
from rlif.training.parallel import Ranks
from rlif.types import Rollouts, Scored, Update
from rlif.utils.memory import release_free_memory


def grpo_step(
    policy: Policy,
    optimizer: MasterOptimizer,
    scored: Scored,
    config: GrpoConfig,
    *,
    lr: float,
    reference: Policy | None = None,
    progress: Callable[[int], None] | None = None,
) -> Update:
    """Update the policy on one batch of scored rollouts: ``epochs`` passes of ``minibatches`` optimizer steps.

    Log-probabilities are of the distribution sampled from, without top-p and top-k. Of several ranks (those of the
    optimizer) each runs its share of the rows.

    Args:
        lr: learning rate of these steps.
        reference: the frozen policy of the KL terms, needed if ``config.needs_reference``.
        progress: told the number of completion tokens after each backward pass, and of those that need none.

    Raises `NonFiniteError` if the loss or the gradient of an optimizer step is not finite, before that step changes any
    weight; ValueError if a KL term has no reference to measure from.
    """
    if config.needs_reference and reference is None:
        raise ValueError("kl_coef > 0 and kl_cov from the start need a reference policy; pass one, or switch them off")
    ranks, rollouts = optimizer.ranks, scored.rollouts
    scored = _decided(scored, ranks)
    advance = progress or (lambda tokens: None)
    beside = reference is not None or config.entropy_coef > 0.0 or scored.penalised is not None
    wanted = set(_rows_with_gradient(scored, every=beside))
    minibatches = _minibatches(rollouts, wanted, config.minibatches, ranks)
    on_policy = config.epochs * config.minibatches == 1
    own = sorted(row for _, _, share in minibatches for row in share)
    old = None if on_policy else _all_logprobs(policy, rollouts, own, config.micro_batch_tokens)
    tally, norms = _Tally(rollouts, config.epochs), []
    with _checkpointing(policy.model, config.gradient_checkpointing):
        for rows, run, share in minibatches * config.epochs:
            weights = _weights(rollouts, rows, config)
            if skipped := int(rollouts.mask[rows].sum() - rollouts.mask[run].sum()):
                advance(skipped)
            for part in micro_batches(policy.model, rollouts, share, config.micro_batch_tokens):
                inputs = _loss_inputs(policy, scored, part, weights, old, reference, config)
                loss, sums = _loss(inputs, config)
                if not bool(loss.isfinite()):
                    optimizer.discard()
                    raise NonFiniteError(f"the loss is {loss.item()}")
                optimizer.backward(loss)
                tally.add(loss, sums, inputs)
                advance(int(sums["tokens"]) * ranks.size)
            norms.append(optimizer.step(lr, config.max_grad_norm))
    release_free_memory(policy.device)
    tally.add_all(ranks)
    return tally.update(norms)


def _decided(scored: Scored, ranks: Ranks) -> Scored:
    """The batch with what the first rank made of it: somebody's own reward may be no function of what it is given."""
    advantages, shares, penalised = ranks.agreed((scored.advantages, scored.shares, scored.penalised))
    return replace(scored, advantages=advantages, shares=shares, penalised=penalised)


@contextmanager
def _checkpointing(model: nn.Module, on: bool) -> Iterator[None]:
    """Let the layers that recompute their activations do so; afterwards the model samples as before.

    transformers checkpoints in train mode only, and keeps no cache there. Dropout inside the layers stays off.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = on
    try:
        yield
    finally:
        model.eval()


class _Tally:
    """Sums over the micro-batches of an update, turned into its metrics."""

    def __init__(self, rollouts: Rollouts, epochs: int) -> None:
        self._tokens = epochs * int(rollouts.mask.sum())
        self._sums = dict.fromkeys(("loss", "gap", "tokens", "kl", "clipped_low", "clipped_high"), 0.0)
        self._largest_gap = math.nan  # until something has been compared

    def add(self, loss: Tensor, sums: Mapping[str, float], inputs: LossInputs) -> None:
        # Of the policy that sampled, not of one that has moved on since: two numbers for the same thing.
        assert inputs.sampler_logprobs is not None
        gap = (inputs.old_logprobs - inputs.sampler_logprobs).abs() * inputs.mask
        self._largest_gap = max(gap.max().item(), self._largest_gap)  # in this order: nan gives way
        for name, value in {**sums, "loss": loss.item(), "gap": gap.sum().item()}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def add_all(self, ranks: Ranks) -> None:
        """The sums of all ranks, in their order."""
        sums, gaps = zip(*ranks.gather((self._sums, self._largest_gap)), strict=True)
        self._sums = {name: sum(one.get(name, 0.0) for one in sums) for name in dict.fromkeys(chain(*sums))}
        self._largest_gap = max((gap for gap in gaps if not math.isnan(gap)), default=math.nan)

    def update(self, norms: Sequence[float]) -> Update:
        compared = self._sums["tokens"] or math.nan
        return Update(
            loss=self._sums["loss"] / len(norms),
            grad_norm=sum(norms) / len(norms),
            metrics={
                "kl": self._sums["kl"] / self._tokens,
                "clip/fraction_low": self._sums["clipped_low"] / self._tokens,
                "clip/fraction_high": self._sums["clipped_high"] / self._tokens,
                "mismatch/mean": self._sums["gap"] / compared,
                "mismatch/max": self._largest_gap,
                **({"kl_cov": self._sums["kl_cov"] / self._sums["penalised"]} if "kl_cov" in self._sums else {}),
                **({"importance/mean": self._sums["importance"] / compared} if "importance" in self._sums else {}),
                **({"importance/capped": self._sums["capped"] / compared} if "capped" in self._sums else {}),
            },
        )


def _loss(inputs: LossInputs, config: GrpoConfig) -> tuple[Tensor, dict[str, float]]:
    return grpo_loss(
        inputs,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_coef=config.kl_coef,
        entropy_coef=config.entropy_coef,
        kl_cov_coef=config.kl_cov_coef,
        importance_cap=config.importance_cap,
    )


def _loss_inputs(
    policy: Policy,
    scored: Scored,
    part: list[int],
    weights: Float[Tensor, "all_rows tok"],
    old: Float[Tensor, "all_rows tok"] | None,
    reference: Policy | None,
    config: GrpoConfig,
) -> LossInputs:
    rollouts, device = scored.rollouts, policy.device
    logprobs, entropy = _read(policy, rollouts, part, config)
    reference_logprobs = None
    if reference is not None:
        with torch.no_grad():
            reference_logprobs = policy_logprobs(reference, rollouts, part)
    return LossInputs(
        policy_logprobs=logprobs,
        old_logprobs=logprobs.detach() if old is None else old[part].to(device),
        reference_logprobs=reference_logprobs,
        advantages=scored.advantages[part].to(device),
        mask=rollouts.mask[part].to(device),
        weights=weights[part].to(device),
        entropy=entropy,
        shares=None if scored.shares is None else scored.shares[part].to(device),
        penalised=None if scored.penalised is None else scored.penalised[part].to(device),
        anchor=config.kl_cov_from,
        sampler_logprobs=rollouts.old_logprobs[part].to(device),
    )


def _read(policy: Policy, rollouts: Rollouts, part: list[int], config: GrpoConfig) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies if a bonus is paid for them."""
    recompute = config.gradient_checkpointing
    if config.entropy_coef > 0.0:
        return policy_logprobs_and_entropy(policy, rollouts, part, recompute=recompute)
    return policy_logprobs(policy, rollouts, part, recompute=recompute), None


def _weights(rollouts: Rollouts, rows: list[int], config: GrpoConfig) -> Float[Tensor, "all_rows tok"]:
    """Token weights of one optimizer step: they are decided over all its rows, before any micro-batch is cut."""
    weights = torch.zeros(rollouts.mask.shape)
    weights[rows] = AGGREGATIONS[config.aggregation](rollouts.mask[rows], rollouts.sampling.max_new_tokens)
    return weights


def _rows_with_gradient(scored: Scored, *, every: bool) -> list[int]:
    """The rows to run: those whose advantage is not 0 (nan is not, and is told), or all for another term."""
    return [row for row, advantage in enumerate(scored.advantages.tolist()) if every or advantage != 0.0]


@torch.no_grad()
def _all_logprobs(
    policy: Policy, rollouts: Rollouts, rows: Sequence[int], budget: int | None
) -> Float[Tensor, "row tok"]:
    """The policy as it stands before the first of several optimizer steps, on these rows; 0 for others."""
    result = torch.zeros(rollouts.mask.shape)
    for part in micro_batches(policy.model, rollouts, rows, budget):
        result[part] = policy_logprobs(policy, rollouts, part).cpu()
    return result


def _minibatches(
    rollouts: Rollouts, wanted: Collection[int], parts: int, ranks: Ranks
) -> list[tuple[list[int], list[int], list[int]]]:
    """The rows of each optimizer step of an epoch: all of them, those that are run, and those that this rank runs."""
    lengths, found = rollouts.lengths.tolist(), []
    for rows in _split_by_prompt(rollouts, parts):
        run = [row for row in rows if row in wanted]
        found.append((rows, run, ranks.balanced(run, [lengths[row] for row in run])))
    return found


def _split_by_prompt(rollouts: Rollouts, parts: int) -> list[list[int]]:
    """Rows in equal parts that keep groups whole."""
    return torch.arange(rollouts.n_rows).view(parts, -1).tolist()
