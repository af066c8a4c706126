"""Before training: is it worth it? Minutes, no labels.

`diagnose` has an untrained model answer some prompts (`rlif.experiments.untrained`), asks the calibration what guarded
training would bring (`rlif.experiments.calibration`), and gives a verdict with reasons (`rlif.experiments.verdict`) and
the recipe it would use. docs/diagnose.md says what each number is.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlif import __version__
from rlif.analysis.estimators import Estimate, over_problems
from rlif.config import Recipe, RewardConfig, WrapperConfig
from rlif.errors import Argument, RlifError
from rlif.experiments.calibration import Calibration, Prediction, label_of, predict, read_calibration
from rlif.experiments.subject import DiagnoseSettings, Subject, asking_of, available, check_labels
from rlif.experiments.untrained import Asking, OnPass, Untrained, look_at
from rlif.experiments.verdict import Evidence, VerdictName, verdict_on
from rlif.experiments.ways import MAIN, TRAINING, PerPrompt, Way, same_answer
from rlif.recipes import overridden, parse_recipe
from rlif.rewards.registry import WRAPPERS, check_rewards, needs_labels
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import tell_unknown
from rlif.signals import SIGNALS
from rlif.tasks.base import GradedTask

DEFAULT_REWARD = "frozen_consensus"
"""What the recipe rewards where nothing is known: its answers are settled before training, so they cannot drift."""
STEPS = 60
"""Of the recipe where no runs say otherwise; its guards end it earlier."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` finds. ``recipe`` is None for problems that no recipe can name.

    >>> import rlif
    >>> few = rlif.DiagnoseSettings(limit=4, samples=4, max_new_tokens=48)
    >>> found = rlif.diagnose("tiny-base", "arithmetic", few)
    >>> sorted(found.as_json()["numbers"]["ways"])[-3:]
    ['low_temperature', 'majority', 'temperature_1']
    """

    verdict: VerdictName
    reasons: tuple[str, ...]
    model: str
    dtype: str
    task: str
    settings: DiagnoseSettings
    untrained: Untrained
    prediction: Prediction | str
    recipe: Recipe | None

    def as_json(self) -> dict[str, Any]:
        """Verdict, reasons, numbers, prediction, recipe and, with labels, the truth; the same for the same seed."""
        found = self.untrained
        prediction = self.prediction._asdict() if isinstance(self.prediction, Prediction) else None
        return {
            "rlif_diagnose": 1,
            "rlif": __version__,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "model": self.model,
            "task": self.task,
            "prompts": found.prompts,
            "decoding": found.own,
            "settings": self.settings.model_dump(mode="json"),
            "numbers": _numbers(found, self.dtype),
            "prediction": prediction,
            "no_prediction": None if prediction else self.prediction,
            "recipe": None if self.recipe is None else self.recipe.model_dump(mode="json", exclude_defaults=True),
            "labels": _truth(found) if self.settings.labels else None,
        }


def diagnose(
    engine: Engine,
    subject: Subject,
    settings: DiagnoseSettings,
    *,
    calibration: Calibration | None = None,
    on_pass: OnPass = lambda name, completions: None,
    progress: Callable[[int], None] | None = None,
) -> Diagnosis:
    """Diagnose the policy of an engine.

    Args:
        calibration: None: the one that ships with the package.
        on_pass, progress: see `rlif.experiments.untrained.look_at`.

    Raises `RlifError` for what the user can fix.
    """
    known = read_calibration() if calibration is None else calibration
    wanted = None if settings.reward is None else rewards_named(settings.reward)
    prompts = subject.prompts(engine.policy, settings)
    check_labels(prompts, settings)
    tell_unknown(engine.policy, prompts)
    asking = asking_of(engine.policy, subject, prompts, settings)
    untrained = look_at(engine, subject.task, prompts, asking, on_pass=on_pass, progress=progress)
    prediction = _predicted(known, untrained, settings, wanted)
    training = _training(known, prediction, wanted or rewards_named(_default_reward(settings)))
    if settings.similarity is not None:
        training["probe"] = {**training.get("probe", {}), "similarity": settings.similarity.model_dump(mode="json")}
    chosen = wanted is not None or isinstance(prediction, Prediction)
    confident = not chosen or any(reward.get("of", reward["name"]) in SIGNALS for reward in training["reward"])
    sentences = isinstance(subject.task, GradedTask) and subject.task.format == "text"
    evidence = Evidence(untrained, settings.temperature, prediction, confident, sentences)
    verdict, reasons = verdict_on(evidence)
    return Diagnosis(
        verdict=verdict,
        reasons=reasons,
        model=_model(engine, subject),
        dtype=str(next(engine.policy.model.parameters()).dtype).removeprefix("torch."),
        task=subject.task.name,
        settings=settings,
        untrained=untrained,
        prediction=prediction,
        recipe=_recipe(training, subject, asking),
    )


def _model(engine: Engine, subject: Subject) -> str:
    """As the user named it."""
    named = subject.sections["policy"]["model"] if subject.sections else engine.policy.source
    return named if isinstance(named, str) else engine.policy.source


def rewards_named(name: str) -> tuple[RewardConfig, ...]:
    """What a recipe makes of ``reward: NAME``, a name or any other value of that key as YAML.

    Raises `RlifError` for an unknown one, for one that needs labels, and for `negated`, which nobody trains on to gain.
    """
    any_task = {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}}
    rewards = overridden(any_task, [f"reward={name}"], source="reward").reward
    check_rewards(rewards)
    if turned := [one.name for one in rewards if isinstance(one, WrapperConfig) and not WRAPPERS[one.name].internal]:
        raise RlifError(Argument("reward"), f": {turned[0]} turns another reward round; name one that stands alone")
    if needs_labels(rewards):
        raise RlifError(Argument("reward"), f": {name} is trained on labels; name one that is not")
    return rewards


def _predicted(
    calibration: Calibration, untrained: Untrained, settings: DiagnoseSettings, wanted: Sequence[RewardConfig] | None
) -> Prediction | str:
    if settings.similarity is not None:
        return "the calibration knows answers that are read, and these are compared by their embeddings"
    return predict(calibration, untrained, settings.temperature, None if wanted is None else label_of(wanted))


def _default_reward(settings: DiagnoseSettings) -> str:
    """Rewards of agreement read answers: of sentences no two would ever agree."""
    return DEFAULT_REWARD if settings.similarity is None else "self_certainty"


def _training(
    calibration: Calibration, prediction: Prediction | str, rewards: Sequence[RewardConfig]
) -> dict[str, Any]:
    """The recipe but for model and task: that of the runs the prediction stands on, else the usual one."""
    if isinstance(prediction, Prediction):
        return dict(calibration.recipes[prediction.reward])
    return {"steps": STEPS, "reward": [reward.model_dump(mode="json") for reward in rewards]}


def _recipe(training: Mapping[str, Any], subject: Subject, asking: Asking) -> Recipe | None:
    if subject.sections is None:
        return None
    rollout = {"prompts": 128, **training.get("rollout", {}), "max_new_tokens": asking.training.max_new_tokens}
    rollout["prompts"] = available(subject.task, rollout["prompts"], asking.seed)
    return parse_recipe({**training, **subject.sections, "rollout": rollout})


def _numbers(found: Untrained, dtype: str) -> dict[str, Any]:
    """What was measured; a share is one of agreement with the frozen answers."""
    main = [name for name in MAIN if name in found.ways]
    look = found.look
    best = found.best()
    return {
        "ways": {name: _way(way) for name, way in found.ways.items()},
        "same_answer": {
            f"{a}~{b}": same_answer(found.ways[a], found.ways[b]) for a, b in itertools.combinations(main, 2)
        },
        "headroom": {
            "sharpening": _estimate(1.0 - found.ways[TRAINING].agrees),
            "form": {name: 1.0 - value for name, value in found.formatted.items()},
            "over_best": {"best": best, **_estimate(1.0 - found.ways[best].in_form)},
        },
        "formatted": dict(found.formatted),
        "entropy": {
            "temperature": 1.0,
            "dtype": dtype,
            "states": {
                name: {"value": _known(one.value), "stderr": _known(one.stderr)} for name, one in found.entropy.items()
            },
        },
        "repetition": {name: look[name] for name in _REPETITION},
        "diversity": {name: look[name] for name in _DIVERSITY if name in look},
        "trust": {**found.trust, "in_doubt": _doubt(found)},
        "tokens": found.tokens,
    }


def _doubt(found: Untrained) -> float:
    return sum(one.in_doubt for one in found.reference.answers) / max(found.prompts, 1)


_REPETITION = ("repeated_ngrams", "compression_ratio", "looping", "truncated", "length")
_DIVERSITY = ("self_agreement", "distinct", "identical", "constant")


def _way(way: Way) -> dict[str, Any]:
    return {
        "temperature": way.temperature,
        "agrees": _estimate(way.agrees),
        "agrees_in_form": _estimate(way.in_form),
        "tokens": way.tokens,
    }


def _truth(found: Untrained) -> dict[str, Any]:
    """The same ways by the labels."""
    assert found.greedy_mistakes is not None
    return {
        "prompts": found.labelled,
        "ways": {
            name: {"right": _estimate(way.truth.right), "right_and_formatted": _estimate(way.truth.right_and_formatted)}
            for name, way in found.ways.items()
            if way.truth is not None
        },
        "reference_right": found.reference_right,
        "greedy_mistakes": {
            name: {**asdict(one), "precision": _known(one.precision), "recall": _known(one.recall)}
            for name, one in found.greedy_mistakes.items()
        },
    }


def _estimate(values: PerPrompt) -> dict[str, float | None]:
    found = over_problems(values) if len(values) else Estimate(math.nan, math.nan)
    return {"value": _known(found.value), "stderr": _known(found.stderr)}


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
