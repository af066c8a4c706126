"""The section grpo: optimizer, loss, and the terms that may stand beside it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlif.config.section import AboveZero, Decay, Fraction, NotNegative, Positive, Section


class GrpoConfig(Section):
    lr: Fraction = 3e-6
    """Peak learning rate. AdamW moves a weight by about so much a step: 1 is beyond all use."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up; linear and cosine approach 0 at the end."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the steps spent raising the learning rate from 0."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this norm."""
    epochs: Positive = 1
    """Passes over each rollout batch."""
    minibatches: Positive = 1
    """Optimizer steps per pass; prompts are split evenly. epochs * minibatches = 1 is on-policy: clipping is inert."""
    clip_low: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0.0)] = 0.2
    """The ratio counts up to 1 + clip_high."""
    kl_coef: Annotated[float, Field(ge=0.0)] = 0.005
    """Weight of the k3 KL to the frozen initial policy; 0 keeps no reference in memory."""
    kl_target: AboveZero | None = None
    """The KL to the initial policy, in nats a token, that `kl_coef` is steered towards from where it starts: up while
    `kl` is above, down while it is below (arXiv 1909.08593). null: `kl_coef` stays as it is."""
    kl_horizon: Annotated[float, Field(ge=1.0)] = 10.0
    """In about how many steps `kl_coef` changes by a fifth at most. 10 is the paper's; a run that falls within 20 steps
    wants 1 or 2."""
    entropy_coef: NotNegative = 0.0
    """Weight of a bonus for entropy, over the whole vocabulary and with its exact gradient; 0: none."""
    entropy_floor: AboveZero | None = None
    """The entropy, in nats a token at temperature 1, below which a bonus is paid: its weight rises by `entropy_step`
    after each step below, from `entropy_coef` on, and falls by as much after each step above, in which none is paid
    (Skywork-OR1, arXiv 2505.22312). null: `entropy_coef` stays as it is."""
    entropy_step: AboveZero = 1e-4
    """By how much the bonus's weight moves in a step. The default, as that of the bound, is of the public Skywork-OR1
    recipe, which takes thousands of steps: a run of 60 that is to feel it wants a hundred times as much."""
    entropy_most: AboveZero = 0.005
    """The weight beyond which the bonus does not rise."""
    kl_cov: Fraction | None = None
    """KL-Cov (arXiv 2505.22617): the share of the batch's tokens under a KL term of their own, those whose likelihood
    and advantage are highest together, which lower entropy most. .002 there for 7B; .02 reported for internal rewards
    (arXiv 2605.22620). null: none."""
    kl_cov_coef: NotNegative = 0.05
    """Weight of that KL term. .05 is reported with a share of .02 (arXiv 2605.22620); 1 in arXiv 2505.22617."""
    kl_cov_from: Literal["start", "old"] = "start"
    """From where it is measured. start: the frozen initial policy. old: the one that sampled, as in arXiv 2505.22617,
    which has several optimizer steps a rollout: in the first of them this KL has no gradient."""
    clip_cov: Fraction | None = None
    """Clip-Cov (arXiv 2505.22617, which has .0002): the share of the batch's tokens that give no gradient but to KL and
    entropy, drawn among those whose covariance of likelihood and advantage is within `clip_cov_range`. null: none."""
    clip_cov_range: tuple[float, float] = (1.0, 5.0)
    """[least, most] covariance of tokens that `clip_cov` may choose, in nats; both bounds are outside."""
    answer_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """The share of its gradient that a completion's answer keeps, so that votes teach how to get there and not what to
    say: 0 masks the whole answer, 0.25 leaves a quarter; with half and more votes are reported to collapse (arXiv
    2608.03119). KL and entropy act on all tokens. null: all of it."""
    importance_cap: NotNegative | None = None
    """Each token's part of the policy gradient is multiplied by min(π_trainer / π_sampler, this), which makes up for a
    sampler that is not quite the policy that is trained (docs/vllm.md). null: 2 with `rollout.engine:
    vllm`, else none; 0: none."""
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    """How tokens are weighted (see rlif.training.loss.AGGREGATIONS)."""
    micro_batch_tokens: Positive | None = None
    """Most tokens in one forward pass, a prompt that is shared counted once. Changes memory and, if
    few, time; never the result (but its rounding). null: 16,384 on a GPU; on a CPU, where more took memory and saved
    no time, 1,024 or, if that is more, four times the longest prompt."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @property
    def needs_reference(self) -> bool:
        """Whether a term of the loss is measured from the frozen initial policy."""
        return self.kl_coef > 0.0 or (self.kl_cov is not None and self.kl_cov_from == "start")

    @field_validator("clip_cov_range")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] >= bounds[1]:
            raise ValueError(f"the least ({bounds[0]:g}) is not below the most ({bounds[1]:g})")
        return bounds
