"""A calibration from finished studies: `python -m rlif.experiments.calibrate STUDY… --out FILE`, or `--check FILE`.

Each finished run gives a `rlif.experiments.calibration.Case` for each way in which it was evaluated. What it gained is
read from its log, with labels: the checkpoint of highest agreement (``probe/agreement``) at a step that was evaluated,
less the best of the untrained answers: sampled, greedy and voted ones from the log, those at a low temperature drawn
anew for the same problems. What its untrained model looked like is measured anew, too, without labels and by the very
function that `rlif diagnose` calls, once for each model and task.

Left out: rewards that read labels and controls; runs that never looked, sampled or were evaluated at another
temperature than 1; and runs of other settings than most have, for a calibration speaks of one recipe.

``--add FILE`` keeps the runs of another calibration beside these, of the same settings.

``--check`` leaves every model out in turn and compares the verdict of `rlif diagnose` with what its runs brought.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rlif import __version__
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.evals.during_training import evaluate_policy
from rlif.experiments.calibration import (
    DECODINGS,
    Calibration,
    Case,
    Line,
    Prediction,
    Start,
    features_of,
    label_of,
    predict,
    read_calibration,
    together,
)
from rlif.experiments.courses import SCORE
from rlif.experiments.effects import GREEDY as GREEDY_SCORE
from rlif.experiments.effects import TRAINING_FREE
from rlif.experiments.study import RUNS, collect
from rlif.experiments.subject import DiagnoseSettings, asking_of, subject_in
from rlif.experiments.untrained import Untrained, look_at
from rlif.experiments.verdict import MARGIN, Evidence, VerdictName, verdict_on
from rlif.experiments.ways import GREEDY, TRAINING
from rlif.model.loading import load_policy
from rlif.recipes import load_recipe
from rlif.rewards.registry import needs_labels
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import render
from rlif.runs.layout import RECIPE
from rlif.signals import SIGNALS
from rlif.training.resolve import eval_sampling
from rlif.utils.atomic_io import write_whole, writing
from rlif.utils.terminal import say

CONTROLS = frozenset({"format_only", "random", "length", "negated", "right_any_format"})
"""Rewards that nobody trains on to gain."""
SCORES = {"sampled": SCORE, "greedy": GREEDY_SCORE}
WAYS = {"sampled": TRAINING, "greedy": GREEDY}
LOW_SAMPLES = 8
"""Answers to each evaluation problem at the low temperature."""
_OWN = ("policy", "task", "seed", "reward", "eval", "log", "checkpoint", "probe", "guards")
"""Sections in which runs of one recipe may differ."""


class Run(NamedTuple):
    """A finished run: its recipe, and its evaluations in order of steps, the first of step 0."""

    recipe: Recipe
    lines: Sequence[Mapping[str, Any]]

    @property
    def model(self) -> str:
        return str(self.recipe.policy.model)

    @property
    def task(self) -> str:
        """The task, its template and format, as text: what the model is asked."""
        task = self.recipe.task.model_dump(mode="json", exclude_defaults=True)
        kept = {key: value for key, value in task.items() if key not in ("path", "eval_path", "limit")}
        return ", ".join(str(value) for value in kept.values())

    @property
    def start(self) -> Start:
        return self.model, self.task

    @property
    def settings(self) -> str:
        """What runs of one recipe share, as text."""
        return json.dumps(self.shared, sort_keys=True)

    @property
    def shared(self) -> dict[str, Any]:
        data = self.recipe.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in data.items() if key not in _OWN}


def measure_untrained(recipe: Recipe) -> Untrained:
    """What `rlif diagnose` sees of the model that a recipe starts from, on the prompts that it trains on."""
    engine = Engine(load_policy(recipe.policy))
    settings = DiagnoseSettings(max_new_tokens=recipe.rollout.max_new_tokens)
    subject = subject_in(recipe.policy, recipe.task)
    prompts = subject.prompts(engine.policy, settings)
    return look_at(engine, subject.task, prompts, asking_of(engine.policy, subject, prompts, settings))


def measure_low(recipe: Recipe) -> float:
    """What one answer at the low temperature of `rlif diagnose` is worth before training: the share right and formatted
    of the recipe's own evaluation problems, by their labels."""
    engine, task = Engine(load_policy(recipe.policy)), subject_in(recipe.policy, recipe.task).task
    prompts = render(engine.policy, recipe.task.template, task.eval_problems(recipe.eval.problems))
    sampling = replace(eval_sampling(recipe), temperature=DiagnoseSettings().low_temperature)
    found = evaluate_policy(engine, task, prompts, samples=LOW_SAMPLES, sampling=sampling, key=Key(0, "low"))
    return found.metrics["right_and_formatted"]


def runs_of(study: Path) -> Iterator[Run]:
    """The finished runs of a study that a calibration can use. Raises `RlifError` if the folder holds none at all."""
    by_cell: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in collect(study).to_pylist():
        if row["status"] == "finished" and row.get(SCORE) is not None:
            by_cell.setdefault(row["cell"], {})[int(row["step"])] = row
    for cell, lines in by_cell.items():
        recipe = load_recipe(study / RUNS / cell / RECIPE)
        if _usable(recipe) and lines.get(0, {}).get("probe/agreement") is not None:
            yield Run(recipe, [lines[step] for step in sorted(lines)])


def _usable(recipe: Recipe) -> bool:
    names = {reward.name for reward in recipe.reward}
    at_1 = recipe.rollout.temperature == 1.0 and recipe.eval.temperature == 1.0
    return at_1 and not names & CONTROLS and not needs_labels(recipe.reward)


def usable_runs(studies: Iterable[Path]) -> list[Run]:
    """The runs of these studies that a calibration can stand on. Raises `RlifError` if there are none."""
    runs = [run for study in studies for run in runs_of(study)]
    if not runs:
        raise RlifError("no finished run was looked at by a probe and evaluated; train with probe.every and eval.every")
    usual = Counter(run.settings for run in runs).most_common(1)[0][0]
    return [run for run in runs if run.settings == usual]


def calibrate(runs: Sequence[Run], untrained: Mapping[Start, Untrained], low: Mapping[Start, float]) -> Calibration:
    """A calibration from these runs. ``untrained`` and ``low``: what `measure_untrained` and `measure_low` find of each
    model and task."""
    cases = tuple(case for run in runs for case in cases_of(run, untrained[run.start], low[run.start]))
    recipes = {label_of(run.recipe.reward): _recipe(run) for run in runs}
    return Calibration(cases, recipes, date.today().isoformat(), __version__)


def _recipe(run: Run) -> dict[str, Any]:
    return {"reward": [reward.model_dump(mode="json") for reward in run.recipe.reward], **run.shared}


def cases_of(run: Run, untrained: Untrained, low: float) -> Iterator[Case]:
    """What a run says: one case for each way in which it was evaluated. ``low``: as `measure_low`."""
    first, chosen = run.lines[0], chosen_line(run.lines)
    start = {"low": low, **{name: _value(first, key) for name, key in TRAINING_FREE.items()}}
    for decoding, key in SCORES.items():
        selected = _value(chosen, key)
        if not all(map(math.isfinite, (selected, *start.values()))):
            continue
        yield Case(
            model=run.model,
            task=run.task,
            reward=label_of(run.recipe.reward),
            seed=run.recipe.seed,
            decoding=decoding,
            prompts=untrained.prompts,
            features=features_of(untrained, WAYS[decoding]),
            step=int(chosen["step"]),
            gain=selected - max(start.values()),
            change=selected - start[decoding],
            lower=max(0.0, max(start["greedy"], low) - start[decoding]) if DECODINGS[decoding] else 0.0,
        )


def chosen_line(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The evaluated step of highest agreement; of equals that of the lowest cross-entropy, then the first."""

    def merit(line: Mapping[str, Any]) -> tuple[float, float]:
        agreement, nats = _value(line, "probe/agreement"), _value(line, "probe/cross_entropy")
        return (-math.inf if math.isnan(agreement) else agreement), (-math.inf if math.isnan(nats) else -nats)

    return max(lines, key=merit)


def _value(line: Mapping[str, Any], key: str) -> float:
    value = line.get(key)
    return math.nan if value is None else float(value)


class Checked(NamedTuple):
    """A verdict on a model that the calibration did not know, beside what its runs brought.

    ``chosen``: nobody named the reward; it is the one that the calibration finds best.
    """

    start: Start
    reward: str
    chosen: bool
    decoding: str
    verdict: VerdictName
    brought: VerdictName
    predicted: float
    gain: float


def check(calibration: Calibration, untrained: Mapping[Start, Untrained]) -> Iterator[Checked]:
    """Leave each model out of the calibration and diagnose it with the rest, at least two: for each reward that it was
    trained on, and for the one that the rest finds best."""
    for start, found in untrained.items():
        known, own = (
            tuple(case for case in calibration.cases if (case.start == start) is itself) for itself in (False, True)
        )
        rest = replace(calibration, cases=known, least_models=2)
        named = dict.fromkeys((case.decoding, case.reward) for case in own)
        free = dict.fromkeys((case.decoding, None) for case in own)
        for decoding, wanted in (*named, *free):
            seen = replace(found, own=WAYS[decoding])
            prediction = predict(rest, seen, DECODINGS[decoding], wanted)
            reward = wanted or (prediction.reward if isinstance(prediction, Prediction) else "")
            cases = [case for case in own if (case.decoding, case.reward) == (decoding, reward)]
            if not cases:  # nobody named a reward, and none is found best, or this model was not trained on it
                continue
            evidence = Evidence(seen, DECODINGS[decoding], prediction, any(name in reward for name in SIGNALS))
            predicted = math.nan if isinstance(prediction, str) else prediction.gain
            gain, verdict = fmean(case.gain for case in cases), verdict_on(evidence).verdict
            yield Checked(start, reward, wanted is None, decoding, verdict, brought(cases), predicted, gain)


def brought(cases: Sequence[Case]) -> VerdictName:
    """The verdict that these runs of one model, reward and decoding turned out to deserve, by the mean of their seeds:
    in the order and with the margin of `rlif.experiments.verdict`."""
    if fmean(case.change for case in cases) <= -MARGIN:
        return "will do harm"
    if fmean(case.gain for case in cases) >= MARGIN:
        return "worth training"
    return "just lower the temperature" if fmean(case.lower for case in cases) >= MARGIN else "little to win"


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlif.experiments.calibrate", description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    parser.add_argument("--out", type=Path, required=True, help="the calibration, a JSON file")
    parser.add_argument("--add", type=Path, help="a calibration, whose runs are kept beside those of the studies")
    parser.add_argument("--check", action="store_true", help="leave each model out and compare verdicts")
    given = parser.parse_args()
    runs = usable_runs(given.studies)
    untrained, low = dict[Start, Untrained](), dict[Start, float]()
    for run in runs:
        if run.start not in untrained:
            say(f"diagnosing {', '.join(run.start)}")
            untrained[run.start], low[run.start] = measure_untrained(run.recipe), measure_low(run.recipe)
    calibration = calibrate(runs, untrained, low)
    if given.add is not None:
        calibration = together(read_calibration(given.add), calibration)
    with writing(given.out, "choose another --out"):
        write_whole(given.out, (json.dumps(calibration.as_json(), indent=1, allow_nan=False) + "\n").encode())
    for decoding, rewards in calibration.as_json()["fits"].items():
        for reward, fit in rewards.items():
            line = Line(**fit["gain"])
            said = f"{line.intercept:+.2f} {line.slope:+.2f} × sampled agreement, off by {fit['error']:.3f} at most"
            say(f"{decoding}, {reward}: gain {said}")
    if given.check:
        _print_check(list(check(calibration, untrained)))


def _print_check(checked: Sequence[Checked]) -> None:
    for one in checked:
        reward = f"the best by calibration, {one.reward}" if one.chosen else one.reward
        say(
            f"{', '.join(one.start)}, {reward}, {one.decoding}: {one.verdict} ({one.predicted:+.2f}); "
            f"brought {one.gain:+.2f}: {one.brought}"
        )
    for chosen, which in ((False, "on a reward that was named"), (True, "on the best by calibration")):
        own = [one for one in checked if one.chosen is chosen]
        same = sum(one.verdict == one.brought for one in own)
        say(f"{same} of {len(own)} verdicts {which} are what the runs brought")


if __name__ == "__main__":
    _main()
