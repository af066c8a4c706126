"""What is rewarded, and how rewards become advantages: the sections reward, advantage and consensus."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rlif.config.section import Decay, NotNegative, Positive, Section


class RewardConfig(Section):
    name: str
    """A key of rlif.rewards.registry.REWARDS."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of its advantages in the mix; 0 logs it without training on it; for the opposite see `negated`."""
    reduce: Literal["mean", "sum"] = "mean"
    """How a per-token signal becomes one number per completion."""

    @property
    def label(self) -> str:
        """What a reader is told: its name, and of which reward it is made."""
        return self.name

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

    @property
    def label(self) -> str:
        """See `RewardConfig.label`."""
        return f"{self.name} {self.of}"


class NegatedConfig(WrapperConfig):
    name: Literal["negated"] = "negated"
    of: str = "self_certainty"
    """The reward that is turned round."""


class FormattedConfig(WrapperConfig):
    name: Literal["formatted"] = "formatted"
    of: str = "majority_vote"
    """The reward that only an answer in the asked form gets."""


WRAPPER_CONFIGS: dict[str, type[WrapperConfig]] = {"negated": NegatedConfig, "formatted": FormattedConfig}
"""Rewards made of another one, by name: what a recipe may say of them."""


def _reward_kind(data: Any) -> str:
    name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
    return name if isinstance(name, str) and name in WRAPPER_CONFIGS else "plain"


AnyRewardConfig = Annotated[
    Annotated[RewardConfig, Tag("plain")]
    | Annotated[NegatedConfig, Tag("negated")]
    | Annotated[FormattedConfig, Tag("formatted")],
    Discriminator(_reward_kind),
]


MIXES: dict[str, tuple[RewardConfig, ...]] = {
    "multi": (RewardConfig(name="soft_consensus", weight=0.5), RewardConfig(name="self_certainty", weight=0.5)),
}
"""Mixes that a recipe may name like a reward (multi: arXiv 2605.22620): the recipe then holds their parts."""


def parts(entry: RewardConfig) -> tuple[RewardConfig, ...]:
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
