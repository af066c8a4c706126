"""Rules that choose a checkpoint, tried on runs that went past their fall: `python -m rlif.experiments.stop_rules DIR`.

``DIR`` is a study whose runs were looked at (``probe.every``) and not stopped. Each rule reads the looks of a run, no
label, and names a step; the evaluations of the run, which have labels, then say what that step was worth. So all rules
are judged on the same runs, beside an oracle that chooses by the labels themselves.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rlif.errors import RlifError
from rlif.experiments.courses import SCORE, Course, courses_of
from rlif.experiments.effects import GREEDY, TRAINING_FREE
from rlif.monitoring.guards import best_look, examine, worst
from rlif.monitoring.record import ProbeRecord
from rlif.runs.layout import LOOKS, PROBE
from rlif.utils.terminal import say

Records = Sequence[ProbeRecord]


def until_stopped(records: Records) -> Records:
    """The looks up to the first after which a guard says stop; all of them if none does."""
    for n in range(1, len(records) + 1):
        if worst(examine(records[:n])) == "stop":
            return records[:n]
    return records


def _highest(key: str, sign: float = 1.0) -> Callable[[Records], int]:
    return lambda records: max(records, key=lambda one: sign * one.metrics.get(key, -math.inf * sign)).step


RULES: Mapping[str, Callable[[Records], int]] = {
    "guards": lambda records: best_look(until_stopped(records)).step,
    "agreement, never stopped": lambda records: best_look(records).step,
    "agreement in any form": _highest("probe/agreement/any_form"),
    "cross-entropy under the start": _highest("probe/cross_entropy", -1.0),
    "self-agreement": _highest("probe/self_agreement"),
    "entropy, lowest": _highest("probe/entropy", -1.0),
    "the last step": lambda records: records[-1].step,
    "no training": lambda records: records[0].step,
}
"""Rule → the step it chooses. Self-agreement and entropy are what a trainer would watch by itself."""


@dataclass(frozen=True)
class Choice:
    """What a rule made of a run. Shares right and formatted, sampled or greedy.

    ``regret`` is beside the best evaluated step (which is chosen from noise, so that even a perfect rule has some),
    ``over_start`` beside the untrained model decoded alike, ``over_baselines`` beside the best of its sampled, greedy
    and voted answers.
    """

    step: int
    regret: float
    over_start: float
    over_baselines: float


def choice(course: Course, step: int, score: str) -> Choice:
    """What the step is worth by ``score``. Raises `RlifError` if the run was not evaluated there."""
    line = next((line for line in course.lines if line["step"] == step), None)
    if line is None:
        raise RlifError(
            f"{course.model}, {course.reward}, seed {course.seed}: looked at after step {step}, but not evaluated; "
            "give probe.every a multiple of eval.every"
        )
    value = course.value(line, score)
    free = max(course.start(key) for key in TRAINING_FREE.values() if math.isfinite(course.start(key)))
    best = max(course.value(one, score) for one in course.lines)
    return Choice(step, best - value, value - course.start(score), value - free)


def read_looks(run: Path) -> list[ProbeRecord]:
    """The looks of a finished run; none if it had none. Raises `RlifError` for a damaged file."""
    path = run / PROBE / LOOKS
    if not path.is_file():
        return []
    try:
        return [ProbeRecord.from_json(record) for record in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RlifError(f"{path}: not the looks of a run ({type(error).__name__}); run that cell again") from error


@dataclass(frozen=True)
class Watched:
    """A finished run of a study beside its looks."""

    course: Course
    records: Records


def watched_runs(study: Path) -> list[Watched]:
    """The finished and evaluated runs of a study that were looked at. Raises `RlifError` if there are none."""
    from rlif.experiments.study import RUNS, collect

    rows = collect(study).to_pylist()
    folders = {(row["model"], row["reward"], row["seed"]): study / RUNS / row["cell"] for row in rows}
    found = []
    for course in courses_of(rows):
        if records := read_looks(folders[course.model, course.reward, course.seed]):
            found.append(Watched(course, records))
    if not found:
        raise RlifError(
            f"{study}: no finished run was looked at; set probe.every in its grid, and keep guards.stop off"
        )
    return found


def rules_table(runs: Sequence[Watched], score: str) -> list[tuple[str, ...]]:
    """A row a rule: mean over models ± standard error over them, and the worst run. The first row is the heading.

    Runs of one model are averaged first: their seeds share its weights and all runs their problems.
    """
    rows: list[tuple[str, ...]] = [("rule", "regret", "worst", "over the start", "worst", "over the baselines")]
    for name, rule in RULES.items():
        made = [choice(run.course, rule(run.records), score) for run in runs]
        regret, start = [one.regret for one in made], [one.over_start for one in made]
        free = [one.over_baselines for one in made]
        means = [_mean(by_model(runs, one), sign) for one, sign in ((regret, ""), (start, "+"), (free, "+"))]
        rows.append((name, means[0], f"{max(regret):.3f}", means[1], f"{min(start):+.3f}", means[2]))
    return rows


def by_model(runs: Sequence[Watched], values: Sequence[float]) -> list[float]:
    """A value of each run as one of each model: their mean."""
    found: dict[str, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        found.setdefault(run.course.model, []).append(value)
    return [fmean(of_model) for of_model in found.values()]


def runs_table(runs: Sequence[Watched]) -> list[tuple[str, ...]]:
    """A row a model and reward, means over seeds: the guards' choice beside the start, the best and the last step."""
    heading = ("model", "reward", "stopped after", "chosen", "start", "chosen", "best", "last")
    rows: list[tuple[str, ...]] = [(*heading, "greedy: start", "chosen", "best", "last")]
    groups: dict[tuple[str, str], list[Watched]] = {}
    for run in runs:
        groups.setdefault((run.course.model, run.course.reward), []).append(run)
    for (model, reward), group in groups.items():
        kept = [until_stopped(run.records) for run in group]
        ends = [str(k[-1].step) if len(k) < len(run.records) else "–" for k, run in zip(kept, group, strict=True)]
        steps = [best_look(k).step for k in kept]
        cells = [cell for score in (SCORE, GREEDY) for cell in _four(group, steps, score)]
        rows.append((model, reward, " ".join(ends), " ".join(map(str, steps)), *cells))
    return rows


def _four(group: Sequence[Watched], steps: Sequence[int], score: str) -> list[str]:
    courses = [run.course for run in group]
    chosen = [
        next(c.value(line, score) for line in c.lines if line["step"] == step)
        for c, step in zip(courses, steps, strict=True)
    ]
    best = [max(c.value(line, score) for line in c.lines) for c in courses]
    last = [c.value(c.lines[-1], score) for c in courses]
    return [f"{fmean(values):.3f}" for values in ([c.start(score) for c in courses], chosen, best, last)]


def _mean(values: Sequence[float], sign: str) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{fmean(values):{sign}.3f} ± " + (f"{error:.3f}" if math.isfinite(error) else "–")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table; the first is the heading."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(study: Path) -> None:
    """Print a study's tables: the rules for each reward, sampled and greedy; then every model and reward."""
    runs = watched_runs(study)
    for reward in dict.fromkeys(run.course.reward for run in runs):
        those = [run for run in runs if run.course.reward == reward]
        for name, score in (("sampled", SCORE), ("greedy", GREEDY)):
            heading = f"{reward}, {len(those)} runs, right and formatted, {name}:"
            for line in ("", heading, "", *markdown(rules_table(those, score)).splitlines()):
                say(line)
    for line in ("", *markdown(runs_table(runs)).splitlines()):
        say(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
