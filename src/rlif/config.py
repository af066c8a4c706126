"""What a recipe may say: sections of typed, bounded keys, each with its meaning.

An unknown key is an error that names its nearest known neighbour; bounds live in the types; the string under a field is
its documentation; the defaults are the setting of the public Intuitor recipe (arXiv 2505.19590), which agrees with
what was reported of the No Free Lunch runs (arXiv 2506.17219).
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from rlif.errors import RlifError
from rlif.utils.validation import of_arguments

Positive = Annotated[int, Strict(), Field(ge=1)]  # strict: `true` is no 1
Natural = Annotated[int, Strict(), Field(ge=0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
AboveZero = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Made in Python. Raises `RlifError` for what is wrong, where `model_validate` raises pydantic's own error."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RlifError(of_arguments(error.errors(), values, type(self).model_fields)) from None

    # pydantic asks this mark whether it may go on making the sections inside of another one itself.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class Merge(Section):
    """(1 − ratio) · base + ratio · instruct, weight by weight (arXiv 2506.17219, section 5)."""

    base: str
    """A named model, hub id or folder."""
    instruct: str
    """Another of the same architecture, tuned from the same ancestor."""
    ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    """0: the base model; 1: the instruct model."""
    tokenizer_from: Literal["base", "instruct"] = "base"
    """Whose tokenizer, chat template and special tokens the merged model takes."""


class MergedModel(Section):
    """A model between two others, made in the cache folder when it is first needed (`rlif.model.merge`)."""

    merge: Merge

    def __str__(self) -> str:
        return f"merge of {self.merge.base} and {self.merge.instruct} at {self.merge.ratio:g}"


ModelSource = Annotated[
    Annotated[str, Tag("name")] | Annotated[MergedModel, Tag("merged")],
    Discriminator(lambda value: "merged" if isinstance(value, dict | MergedModel) else "name"),
]


class LoraConfig(Section):
    """A low-rank adapter, W + (alpha / r) · B A: only A and B are trained (LoRA, arXiv 2106.09685; docs/lora.md)."""

    r: Positive = 16
    """Rank of the adapter in each layer."""
    alpha: Positive = 32
    """Scale: alpha / r stands before B A."""
    targets: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = ("all-linear",)
    """The linear layers that are adapted, by the ends of their names: [q_proj, v_proj]. all-linear: all but a head."""

    @field_validator("targets", mode="before")
    @classmethod
    def _target_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class PolicyConfig(Section):
    model: ModelSource
    """Name of a shipped or fetched model (`rlif models`), a hub id, a folder (also of an adapter), or a .gguf file. A
    name comes before a folder called the same: that one is ./NAME. Or {merge: {base: …, instruct: …, ratio: …}}."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; master weights are always fp32. auto: bfloat16 where the hardware multiplies it, else float32."""
    device: str = "auto"
    """A torch device; auto takes CUDA when there is one."""
    chat_template: Literal["auto", "on", "off"] = "auto"
    """auto: on if the tokenizer has one (base models have none, or should not use it: set off)."""
    remote_code: bool = False
    """Run Python code that comes with the model. Only for models you trust by name."""
    lora: LoraConfig | None = None
    """Train an adapter instead of the weights (docs/lora.md); {} takes the defaults. It wants a higher learning rate,
    three to ten times that of all weights. null: all weights are trained."""

    @field_validator("chat_template", mode="before")
    @classmethod
    def _yaml_boolean(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # what YAML makes of on and off


class ArithmeticTask(Section):
    """Additions, generated from the seed; nothing to download."""

    name: Literal["arithmetic"]
    low: Natural = 10
    """Smallest summand."""
    high: Positive = 99
    """Largest summand."""
    question: str = "{a}+{b}=?"
    """How the question is put; {a} and {b} are the summands."""
    template: str = "plain"
    """Name of a prompt template (see rlif.tasks.templates)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Train on only so many sums, drawn from the seed, each once an epoch; null: fresh ones in every step."""

    @model_validator(mode="after")
    def _range(self) -> "ArithmeticTask":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self


class FileTask(Section):
    """Problems from a file: JSONL or Parquet, columns by your names."""

    name: Literal["file", "gsm8k", "math"]
    """file: any columns. gsm8k, math: the same with the schemas of those data sets as defaults."""
    path: str
    """Training problems: .jsonl or .parquet."""
    eval_path: str | None = None
    """Held-out problems for evaluation; without it, evaluation uses `path` and says so."""
    question_column: str | None = None
    """Column of the question; null: the task's usual one (problem or question)."""
    answer_column: str | None = None
    """Column of the answer; null: `answer`, or none if the first row has none. A row without a ground truth holds null
    there; no reward that needs labels can be used then."""
    id_column: str | None = None
    """Column of the row's id; null: `id` if there is one, else file name and line number."""
    template: str = "boxed"
    """Name of a prompt template (see rlif.tasks.templates)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Use only the first so many rows."""


TaskConfig = Annotated[ArithmeticTask | FileTask, Field(discriminator="name")]


MISMATCH_LIMITS = {"float32": 0.01, "bfloat16": 0.1}
"""`rollout.max_mismatch` where a recipe leaves it open, by the policy's type: nats, mean over tokens."""


class RolloutConfig(Section):
    prompts: Positive = 128
    """Distinct prompts per step."""
    group_size: Positive = 8
    """Completions per prompt (G)."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """More than 0: greedy completions of a group are all the same. Signals are recorded at temperature 1 whatever this
    is."""
    top_p: Fraction = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Natural = 0
    """Sample among the k likeliest tokens; 0 is off, 1 would be greedy."""
    max_new_tokens: Positive = 3072
    """Length limit of a completion, in tokens."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion, besides those of the template, which a run's recipe.yaml holds as well; they are
    cut from the text, not from the tokens that are trained on."""
    max_rows: Positive | None = None
    """Completions decoded side by side; the others wait. null: as many as a share of the machine's memory holds.
    Changes speed and memory, never the result (beyond rounding)."""
    max_mismatch: Annotated[float, Field(ge=0.0)] | None = None
    """How far the sampler's log-probabilities may be from those of a plain forward pass over some of the same rows, in
    nats, mean over tokens. Beyond it the first step of a run, and of a resumed one, ends the run; later a warning tells
    when `mismatch/mean` leaves it. null: .01 in float32, .1 in bfloat16; 0: no check. A model that answers differently
    beside another prompt is refused before the first step, unless its logits do so by no more than this, or it is 0."""
    cuda_graphs: bool = False
    """On a GPU, record the decode step and replay it: less waiting for Python. Tested on a CPU only so far."""


class RewardConfig(Section):
    name: str
    """A key of rlif.rewards.registry.REWARDS."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of its advantages in the mix; 0 logs it without training on it; for the opposite see `negated`."""
    reduce: Literal["mean", "sum"] = "mean"
    """How a per-token signal becomes one number per completion."""

    @model_validator(mode="before")
    @classmethod
    def _without_of(cls, data: Any) -> Any:
        """Recipes that older runs wrote down say `of` of every reward; only one that wraps another reads it."""
        if isinstance(data, dict) and "of" not in cls.model_fields:
            return {key: value for key, value in data.items() if key != "of"}
        return data


class WrapperConfig(RewardConfig):
    of: str
    """The reward that is wrapped."""


class NegatedConfig(WrapperConfig):
    name: Literal["negated"] = "negated"
    of: str = "self_certainty"
    """The reward that is turned round."""


WRAPPER_CONFIGS: dict[str, type[WrapperConfig]] = {"negated": NegatedConfig}
"""Rewards made of another one, by name: what a recipe may say of them."""


def _reward_kind(data: Any) -> str:
    name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
    return name if isinstance(name, str) and name in WRAPPER_CONFIGS else "plain"


AnyRewardConfig = Annotated[
    Annotated[RewardConfig, Tag("plain")] | Annotated[NegatedConfig, Tag("negated")], Discriminator(_reward_kind)
]


MIXES: dict[str, tuple[RewardConfig, ...]] = {
    "multi": (RewardConfig(name="soft_consensus", weight=0.5), RewardConfig(name="self_certainty", weight=0.5)),
}
"""Mixes that a recipe may name like a reward (multi: arXiv 2605.22620): the recipe then holds their parts."""


def _parts(entry: RewardConfig) -> tuple[RewardConfig, ...]:
    """What an entry of a recipe's mix stands for: itself, or the parts of a named mix, by the entry's weight."""
    return tuple(
        part.model_copy(update={"weight": part.weight * entry.weight, "reduce": entry.reduce})
        for part in MIXES.get(entry.name, ())
    ) or (entry,)


class AdvantageConfig(Section):
    std: bool = True
    """Divide by the group's standard deviation (GRPO); false: centre only (Dr. GRPO, arXiv 2503.20783)."""
    std_floor: Annotated[float, Field(ge=0.0)] = 1e-4
    """Smallest divisor: without it a group whose rewards differ by 1e-6 gets full-size advantages from noise."""
    cap_incomplete: bool = False
    """Truncated and empty completions never top their group. Off in recipes that follow the paper."""
    semantic_entropy: tuple[NotNegative, NotNegative] | None = None
    """[least, most]: a prompt teaches only if the entropy of its answers, in nats, is within. It is 0 where all that
    can be read agree, ln G where all G differ; a prompt without a readable answer is outside. null: all teach. Source:
    EMPO, arXiv 2504.05812."""

    @field_validator("semantic_entropy")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and bounds[0] > bounds[1]:
            raise ValueError(f"the least ({bounds[0]:g}) is above the most ({bounds[1]:g})")
        return bounds


class ConsensusConfig(Section):
    samples: Positive = 8
    """Answers of the teacher to each problem: of the initial policy to all of the run's before the first step
    (`frozen_consensus`), or of the moving average to those of each step (`ema_vote`)."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """At which they are drawn, else as rollouts are. 1, for there the vote is right more often than that of a sharpened
    policy, whose answers agree on their mistakes too (docs/rewards.md)."""
    decay: tuple[Decay, Decay] = (0.99, 0.99999)
    """[first, last]: the share of its weights that the teacher of `ema_vote` keeps after each step, along half a cosine
    from the first step to the last (arXiv 2508.00410)."""


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


class EvalConfig(Section):
    every: Natural = 0
    """Evaluate before the first step and after every so many; 0 is never."""
    problems: Positive = 512
    """Distinct problems, the same ones every time, apart from the training prompts where the task allows it."""
    samples: Positive = 1
    """Completions per problem; from 4 on the majority vote is logged too."""
    greedy: bool = True
    """Each problem once more at temperature 0 (eval/greedy_*): beside it one sees what training gave that a lower
    temperature does not."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Sampling temperature of the evaluation. Stop strings, length limit and prompts are those of training."""
    top_p: Fraction | None = None
    """Nucleus sampling in the evaluation; null: as rollout.top_p."""
    top_k: Natural | None = None
    """Among the k likeliest tokens in the evaluation; null: as rollout.top_k."""


class ProbeConfig(Section):
    every: Natural | None = None
    """Look before the first step, after every so many, and at the end; 0: never. null: as often as a tenth of the
    training's time allows if the run has at least 20 steps and is trained on internal feedback alone (a signal, or
    agreement of answers); else never."""
    prompts: Positive = 64
    """Distinct prompts, the same ones at every look; no label of theirs is read. Fewer where the task has fewer."""
    path: str | None = None
    """Prompts of your own, a file as `task.path`; null: held-out problems of the task, apart from those of the
    evaluation as far as there are enough."""
    samples: Positive = 4
    """Completions a prompt at each look, drawn as rollouts are, with the same random numbers every time."""
    reference_samples: Positive = 16
    """Answers of the untrained policy to each prompt at the temperature of rollouts, and as many at the low one."""
    low_temperature: Annotated[float, Field(gt=0.0)] | None = None
    """A low temperature for half of these answers; null: 0.4, or half of rollout.temperature if that is less."""
    start: bool = True
    """Keep a frozen copy of the untrained policy, to say how likely new answers are under it: one more copy of the
    weights, which a KL term shares."""


class GuardsConfig(Section):
    stop: bool = True
    """End the run when a guard says stop. false: guards speak (guard/*), and the run goes on."""
    merge_back: Fraction | None = None
    """ρ: where a guard says stop, go on from (1 − ρ) θ + ρ θ₀ instead, θ₀ the untrained weights; needs probe.start.
    null: nothing is merged."""
    restore: bool = True
    """final/ is the checkpoint of the look of highest agreement, last/ the last step's. false: final/ is the last."""


class CheckpointConfig(Section):
    every: Natural = 10
    """Write a checkpoint every so many steps (and at the end, and when stopped); 0: only then."""
    keep_last: Positive = 2
    """How many of the newest to keep, besides the best."""
    best: str | None = None
    """A metrics.jsonl key; a checkpoint is written whenever it reaches a new high, and kept. eval/* keys use labels."""


class LogConfig(Section):
    rollouts_every: Natural = 1
    """Write every so many steps' rollouts, with per-token signals, to rollouts/*.parquet; 0 is never."""
    eval_answers: Natural = 8
    """Write the answers to the first so many problems at every evaluation, with per-token signals, to
    eval_answers/*.parquet: the same problems each time, so that one sees what training makes of an answer. 0: none."""
    entropy_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0625
    """Share of rows, at least 8 of them, looked at again after each update (in bf16 also before it): the predicted
    and measured change of entropy, see docs/theory.md, which has what it costs. 0 is never."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Mirrors of metrics.jsonl; each needs its package."""


class Recipe(Section):
    """Everything that decides a run.

    >>> import rlif
    >>> recipe = rlif.Recipe(steps=1, policy={"model": "tiny-base"}, task={"name": "arithmetic"}, reward="length")
    >>> recipe.grpo.clip_low, recipe.rollout.group_size
    (0.2, 8)
    """

    steps: Positive
    """Rollout-and-update steps."""
    seed: Natural = 0
    """Seeds prompts, sampling and controls."""
    policy: PolicyConfig
    task: TaskConfig
    rollout: RolloutConfig = RolloutConfig()
    reward: tuple[AnyRewardConfig, ...]
    """One name, one mapping, or a list of them: a mix whose parts are each normalised on their own."""
    advantage: AdvantageConfig = AdvantageConfig()
    consensus: ConsensusConfig = ConsensusConfig()
    """For `frozen_consensus` and `ema_vote`; no other reward reads it."""
    grpo: GrpoConfig = GrpoConfig()
    eval: EvalConfig = EvalConfig()
    probe: ProbeConfig = ProbeConfig()
    guards: GuardsConfig = GuardsConfig()
    """They read the looks of the probe; without these there are none."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @field_validator("reward", mode="before")
    @classmethod
    def _reward_list(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple({"name": item} if isinstance(item, str) else item for item in items)

    @field_validator("reward")
    @classmethod
    def _without_mixes(cls, reward: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        return tuple(part for entry in reward for part in _parts(entry))

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if not self.reward:
            raise ValueError("reward: name at least one")
        if not any(reward.weight for reward in self.reward):
            raise ValueError("reward: every weight is 0, so nothing would be learnt; give one a weight above 0")
        bounds = self.advantage.semantic_entropy
        if bounds is not None and bounds[0] > math.log(self.rollout.group_size):
            raise ValueError(
                f"advantage.semantic_entropy: no prompt reaches {bounds[0]:g} nats with {self.rollout.group_size} "
                f"answers; the most is ln G = {math.log(self.rollout.group_size):.3g}"
            )
        if self.rollout.group_size == 1:
            raise ValueError(
                "rollout.group_size: 1 makes every advantage 0, for it is relative to the group; use 2 or more"
            )
        if self.rollout.temperature == 0.0 or self.rollout.top_k == 1:
            key, other = ("top_k: 1", "2 or more, or 0 (off)") if self.rollout.temperature else ("temperature: 0", "1")
            raise ValueError(
                f"rollout.{key} draws the same completion for a whole group, so that nothing is learnt; use {other}"
            )
        if self.rollout.prompts % self.grpo.minibatches:
            raise ValueError(
                f"grpo.minibatches: {self.grpo.minibatches} does not divide rollout.prompts ({self.rollout.prompts})"
            )
        return self

    @model_validator(mode="after")
    def _effective(self) -> "Recipe":
        """What is switched on can do something."""
        grpo = self.grpo
        if self.guards.merge_back is not None and not self.probe.start:
            raise ValueError("guards.merge_back: the untrained weights are not kept; set probe.start")
        if grpo.kl_target is not None and grpo.kl_coef == 0.0:
            raise ValueError("grpo.kl_target: kl_coef is multiplied, and 0 stays 0; give it a start, such as 0.005")
        if grpo.entropy_floor is not None and grpo.entropy_coef > grpo.entropy_most:
            raise ValueError("grpo.entropy_coef: it starts above entropy_most; lower it, or raise entropy_most")
        if grpo.kl_cov is not None and grpo.kl_cov_from == "old" and grpo.epochs * grpo.minibatches == 1:
            raise ValueError(
                "grpo.kl_cov_from: with one optimizer step a rollout the policy is still the old one, and a KL to it "
                "has no gradient; measure from the start, or raise epochs or minibatches"
            )
        return self
