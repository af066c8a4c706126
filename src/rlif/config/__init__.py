"""What a recipe may say: sections of typed, bounded keys, each with its meaning.

An unknown key is an error that names its nearest known neighbour; bounds live in the types; the string under a field is
its documentation; the defaults are the setting of the public Intuitor recipe (arXiv 2505.19590), which agrees with
what was reported of the No Free Lunch runs (arXiv 2506.17219).
"""

from rlif.config.grpo import GrpoConfig as GrpoConfig
from rlif.config.own import GymTask as GymTask
from rlif.config.own import OwnTask as OwnTask
from rlif.config.own import TemplateSource as TemplateSource
from rlif.config.own import TemplateText as TemplateText
from rlif.config.policy import LoraConfig as LoraConfig
from rlif.config.policy import Merge as Merge
from rlif.config.policy import MergedModel as MergedModel
from rlif.config.policy import ModelSource as ModelSource
from rlif.config.policy import PolicyConfig as PolicyConfig
from rlif.config.recipe import MISMATCH_LIMITS as MISMATCH_LIMITS
from rlif.config.recipe import NATIVE as NATIVE
from rlif.config.recipe import CheckpointConfig as CheckpointConfig
from rlif.config.recipe import EvalConfig as EvalConfig
from rlif.config.recipe import GuardsConfig as GuardsConfig
from rlif.config.recipe import LogConfig as LogConfig
from rlif.config.recipe import ProbeConfig as ProbeConfig
from rlif.config.recipe import Recipe as Recipe
from rlif.config.recipe import RolloutConfig as RolloutConfig
from rlif.config.recipe import SimilarityConfig as SimilarityConfig
from rlif.config.recipe import VllmConfig as VllmConfig
from rlif.config.reward import MIXES as MIXES
from rlif.config.reward import WRAPPER_CONFIGS as WRAPPER_CONFIGS
from rlif.config.reward import AdvantageConfig as AdvantageConfig
from rlif.config.reward import AnyRewardConfig as AnyRewardConfig
from rlif.config.reward import ConsensusConfig as ConsensusConfig
from rlif.config.reward import FormattedConfig as FormattedConfig
from rlif.config.reward import NegatedConfig as NegatedConfig
from rlif.config.reward import RewardConfig as RewardConfig
from rlif.config.reward import WrapperConfig as WrapperConfig
from rlif.config.section import AboveZero as AboveZero
from rlif.config.section import Decay as Decay
from rlif.config.section import Fraction as Fraction
from rlif.config.section import Natural as Natural
from rlif.config.section import NotNegative as NotNegative
from rlif.config.section import Positive as Positive
from rlif.config.section import Section as Section
from rlif.config.task import TASK_CONFIGS as TASK_CONFIGS
from rlif.config.task import ArithmeticTask as ArithmeticTask
from rlif.config.task import FileTask as FileTask
from rlif.config.task import OwnData as OwnData
from rlif.config.task import TaskConfig as TaskConfig
