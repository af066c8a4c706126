"""A whole recipe: rollouts, evaluation, probe and log, and what of all sections must fit together."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlif.config.grpo import GrpoConfig
from rlif.config.policy import PolicyConfig
from rlif.config.reward import AdvantageConfig, AnyRewardConfig, ConsensusConfig, RewardConfig, parts
from rlif.config.section import Fraction, Natural, Positive, Section
from rlif.config.task import TaskConfig

MISMATCH_LIMITS = {"float32": 0.01, "bfloat16": 0.1}
"""`rollout.max_mismatch` where a recipe leaves it open, by the policy's type: nats, mean over tokens."""


class VllmConfig(Section):
    """How vLLM is started where it samples (docs/vllm.md)."""

    memory: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """The share of the GPU's memory, of a CPU's machine of main memory, for vLLM's weights and key-value cache."""
    eager: bool = False
    """Neither compile the model nor record CUDA graphs: starts sooner, samples more slowly."""
    sleep: bool = False
    """On a GPU, give vLLM's memory back while nothing is sampled. Not yet run."""


class RolloutConfig(Section):
    engine: Literal["native", "vllm"] = "native"
    """What samples: our engine, or vLLM (`pip install 'rlif[vllm]'`; docs/vllm.md), which draws by the same random
    numbers and gives the same signals, to rounding."""
    vllm: VllmConfig = VllmConfig()
    """For `engine: vllm`."""
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
    fit: bool = False
    """Lower `prompts` and `eval.problems` to what the task has, and `max_new_tokens` to what the model's context leaves
    beside the longest prompt, instead of refusing them. A run's recipe.yaml holds what came of it."""
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


NATIVE = RolloutConfig()
"""The defaults: our own engine."""


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


class SimilarityConfig(Section):
    """When two answers in sentences are one: by their embeddings (`rlif.monitoring.sameness`)."""

    model: Annotated[str, Field(min_length=1)]
    """An encoder of texts that is made for mean pooling: a hub id or a folder."""
    least: Fraction = 0.85
    """The least cosine of two embeddings at which their texts are the same answer."""


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
    """A low temperature for half of these answers, below rollout.temperature; null: 0.4, or half of rollout.temperature
    if that is less."""
    start: bool = True
    """Keep a frozen copy of the untrained policy, to say how likely new answers are under it: one more copy of the
    weights, which a KL term shares."""
    refresh: Natural = 0
    """At most so many times the frozen answers are renewed where the policy has outgrown them
    (`rlif.monitoring.guards.outgrown`); needs probe.start. Each time the guards begin anew, with all of their rate of
    false alarms. 0: the answers of the untrained policy stay."""
    labels: str | None = None
    """A few problems with answers, a file as `task.path` (its first 64): their share of right answers is told at each
    look (probe/labelled_right). No gradient and no guard reads it; `guards.choose_by` may. null: none."""
    similarity: SimilarityConfig | None = None
    """For answers in sentences: two are the same if the cosine of their embeddings is at least `least` (0.85), by a
    frozen encoder of texts, `model`: a hub id or a folder (docs/keep-the-gain.md). null: if they read alike."""


class GuardsConfig(Section):
    stop: bool = True
    """End the run when a guard says stop. false: guards speak (guard/*), and the run goes on."""
    merge_back: Fraction | None = None
    """ρ: where a guard says stop, go on from (1 − ρ) θ + ρ θ₀ instead, θ₀ the untrained weights; needs probe.start.
    null: nothing is merged."""
    restore: bool = True
    """final/ is the checkpoint of the look of highest agreement, last/ the last step's. false: final/ is the last."""
    choose_by: Literal["agreement", "labels"] = "agreement"
    """labels: of the look with most right and formatted answers to `probe.labels` instead; labels then have a part in
    what comes out, which is told."""


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
    project: str | None = None
    """What W&B and trackio file the run under; null: what WANDB_PROJECT or TRACKIO_PROJECT says, else rlif."""
    name: str | None = None
    """What they call the run; null: what WANDB_NAME or TRACKIO_NAME says, else the name of its folder."""


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
        return tuple(part for entry in reward for part in parts(entry))

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
        grpo, rollout = self.grpo, self.rollout
        if grpo.importance_cap and rollout.temperature != 1.0 and (rollout.top_p < 1.0 or rollout.top_k):
            raise ValueError(
                "grpo.importance_cap: at a temperature other than 1 the sampler's log-probabilities are known with "
                "rollout.top_p and top_k only, the trainer's without; set it to 0, or temperature or these filters to 1"
            )
        if self.guards.merge_back is not None and not self.probe.start:
            raise ValueError("guards.merge_back: the untrained weights are not kept; set probe.start")
        if self.probe.refresh and not self.probe.start:
            raise ValueError("probe.refresh: only the frozen start can tell that a policy outgrew it; set probe.start")
        low, high = self.probe.low_temperature, rollout.temperature
        if self.probe.every and low is not None and low >= high:
            raise ValueError(
                f"probe.low_temperature: {low:g} is not below rollout.temperature ({high:g}); lower it, or leave it out"
            )
        if self.guards.choose_by == "labels" and self.probe.labels is None:
            raise ValueError("guards.choose_by: there are no labels to choose by; name a file in probe.labels")
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
