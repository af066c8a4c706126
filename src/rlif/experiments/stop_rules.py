"""Rules that choose a checkpoint, tried on runs that went past their fall: `python -m rlif.experiments.stop_rules DIR`.

``DIR`` is a study whose runs were looked at (``probe.every``) and not stopped. Each rule reads the looks of a run, no
label, and names a step; the evaluations of the run, which have labels, then say what that step was worth. So all rules
are judged on the same runs, beside an oracle that chooses by the labels themselves.

Printed are, for each reward and setting, every rule; then, run by run of the guards' choice: what was to be had (best −
start), what is left in the end (last − start), what was kept, beside the best answers without training too, and which
stops were false alarms. Sampled, greedy, right in any form, and pass@k.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from jaxtyping import Float

from rlif.errors import RlifError
from rlif.experiments.courses import SCORE, Course, courses_of
from rlif.experiments.effects import GREEDY, GREEDY_RIGHT, RIGHT, TRAINING_FREE
from rlif.monitoring.guards import best_look, examine, since_renewal, worst
from rlif.monitoring.record import ProbeRecord
from rlif.runs.layout import LOOKS, PROBE
from rlif.utils.terminal import say

Records = Sequence[ProbeRecord]
PASS = "eval/pass_at_k"
_IN_FORM, _IN_ANY = tuple(TRAINING_FREE.values()), (RIGHT, GREEDY_RIGHT, "eval/majority_right")

SCORES: Mapping[str, tuple[str, Sequence[str]]] = {
    "right and formatted, sampled": (SCORE, _IN_FORM),
    "right and formatted, greedy": (GREEDY, _IN_FORM),
    "right in any form, sampled": (RIGHT, _IN_ANY),
    "right in any form, greedy": (GREEDY_RIGHT, _IN_ANY),
    "right in any form, one of k samples (pass@k)": (PASS, (PASS,)),
}
"""What a run is scored by → its metric, and those of the answers without training that a gain has to exceed."""
NOISE = 2.0
"""Standard errors of a difference, within which two evaluations are taken for the same."""


def until_stopped(records: Records) -> Records:
    """The looks up to the first after which a guard says stop; all of them if none does."""
    for n in range(1, len(records) + 1):
        if worst(examine(records[:n])) == "stop":
            return records[:n]
    return records


def _agreeing_alike(records: Records) -> Records:
    """The looks that agree as much as the best: not less by more than a standard error, paired over prompts; of those
    since the frozen answers were last renewed."""
    records = since_renewal(records)
    agreed = [np.array(record.counts["agreement"], dtype=np.float64) / record.samples for record in records]
    best = max(agreed, key=lambda shares: float(shares.sum()))
    return [record for record, shares in zip(records, agreed, strict=True) if not _less(shares, best)]


def _less(shares: Float[np.ndarray, " prompt"], best: Float[np.ndarray, " prompt"]) -> bool:
    lost = best - shares
    return len(lost) > 0 and float(lost.sum()) > float(lost.std()) * math.sqrt(len(lost))


def _highest(key: str, sign: float = 1.0) -> Callable[[Records], int]:
    return lambda records: max(records, key=lambda one: sign * one.metrics.get(key, -math.inf * sign)).step


RULES: Mapping[str, Callable[[Records], int]] = {
    "guards": lambda records: best_look(until_stopped(records)).step,
    "agreement, never stopped": lambda records: best_look(records).step,
    "latest that agrees alike": lambda records: _agreeing_alike(until_stopped(records))[-1].step,
    "likeliest that agrees alike": lambda records: _highest("probe/cross_entropy", -1.0)(
        _agreeing_alike(until_stopped(records))
    ),
    "agreement in any form": _highest("probe/agreement/any_form"),
    "cross-entropy under the start": _highest("probe/cross_entropy", -1.0),
    "self-agreement": _highest("probe/self_agreement"),
    "entropy, lowest": _highest("probe/entropy", -1.0),
    "the last step": lambda records: records[-1].step,
    "no training": lambda records: records[0].step,
}
"""Rule → the step it chooses. Self-agreement and entropy are what a trainer would watch by itself; the two that agree
alike were tried in place of the highest agreement (docs/LOG.md)."""


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


def choice(course: Course, step: int, score: str, baselines: Sequence[str] = _IN_FORM) -> Choice:
    """What the step is worth by ``score``; NaN where that was not measured.

    Raises `RlifError` if the run was not evaluated there.
    """
    line = next((line for line in course.lines if line["step"] == step), None)
    if line is None:
        raise RlifError(
            f"{course.model}, {course.reward}, seed {course.seed}: looked at after step {step}, but not evaluated; "
            "give probe.every a multiple of eval.every"
        )
    value = course.value(line, score)
    free = max((course.start(key) for key in baselines if math.isfinite(course.start(key))), default=math.nan)
    best = max(course.value(one, score) for one in course.lines)
    return Choice(step, best - value, value - course.start(score), value - free)


def false_alarm(course: Course, records: Records, score: str = SCORE) -> bool:
    """Whether the guards stop a run in which going on to its end costs nothing, as far as its evaluations tell.

    That is where its last score is not below that of the step the guards chose by more than `NOISE` standard errors (by
    anything, where these are not known).
    """
    kept = until_stopped(records)
    if len(kept) == len(records):
        return False
    chosen = next(line for line in course.lines if line["step"] == best_look(kept).step)
    lines = (chosen, course.lines[-1])
    errors = (course.value(line, f"{score}_stderr") for line in lines)
    error = math.hypot(*(one for one in errors if math.isfinite(one)))
    fall = course.value(lines[0], score) - course.value(lines[1], score)
    return not fall > NOISE * error


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

    by_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in collect(study).to_pylist():
        by_cell.setdefault(row["cell"], []).append(row)
    found = []
    for cell, rows in by_cell.items():  # a cell of two grids is one run, as the first of them names it
        courses = courses_of(row for row in rows if row["grid"] == rows[0]["grid"])
        if courses and (records := read_looks(study / RUNS / cell)):
            found.append(Watched(courses[0], records))
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
    """A row a model, reward and setting, means over seeds: the guards' choice beside start, best and last step."""
    heading = ("model", "reward", "stopped after", "chosen", "start", "chosen", "best", "last")
    rows: list[tuple[str, ...]] = [(*heading, "greedy: start", "chosen", "best", "last")]
    for (model, reward, setting), group in groups(runs).items():
        kept = [until_stopped(run.records) for run in group]
        ends = [str(k[-1].step) if len(k) < len(run.records) else "–" for k, run in zip(kept, group, strict=True)]
        steps = [best_look(k).step for k in kept]
        cells = [cell for score in (SCORE, GREEDY) for cell in _four(group, steps, score)]
        named = f"{reward}, {setting}" if setting else reward
        rows.append((model, named, " ".join(ends), " ".join(map(str, steps)), *cells))
    return rows


def gains_table(runs: Sequence[Watched], score: str, baselines: Sequence[str] = _IN_FORM) -> list[tuple[str, ...]]:
    """A row a model, reward and setting, means over seeds: what was to be had, what is left, what the guards kept.

    *False*: of the runs that the guards stop those that had nothing to lose (`false_alarm`).
    """
    rows: list[tuple[str, ...]] = [GAINS]
    for group in groups(runs).values():
        kept = [until_stopped(run.records) for run in group]
        chosen = [choice(run.course, best_look(k).step, score, baselines) for run, k in zip(group, kept, strict=True)]
        last = [choice(run.course, run.course.lines[-1]["step"], score, baselines) for run in group]
        numbers = (
            fmean(run.course.start(score) for run in group),
            fmean(one.over_start + one.regret for one in chosen),
            fmean(one.over_start for one in last),
            fmean(one.over_start for one in chosen),
            fmean(one.over_baselines for one in chosen),
        )
        stops = sum(len(k) < len(run.records) for k, run in zip(kept, group, strict=True))
        false = sum(false_alarm(run.course, run.records) for run in group)
        told = [f"{numbers[0]:.3f}", *(f"{value:+.3f}" for value in numbers[1:])]
        regret = f"{fmean(one.regret for one in chosen):.3f}"
        first = group[0].course
        names = (first.model, first.reward, first.setting or "none")
        rows.append((*names, str(len(group)), *told, regret, str(stops), str(false)))
    return rows


GAINS = (
    *("model", "reward", "setting", "runs", "start", "best − start", "last − start", "selected − start"),
    *("selected − best baseline", "regret", "stopped", "false"),
)


def groups(runs: Sequence[Watched]) -> dict[tuple[str, str, str], list[Watched]]:
    """The runs of each model, reward and setting."""
    found: dict[tuple[str, str, str], list[Watched]] = {}
    for run in runs:
        found.setdefault((run.course.model, run.course.reward, run.course.setting), []).append(run)
    return found


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
    """Print a study's tables: the rules for each reward and setting; what was kept; then every model and reward."""
    runs = watched_runs(study)
    for reward, setting in dict.fromkeys((run.course.reward, run.course.setting) for run in runs):
        those = [run for run in runs if (run.course.reward, run.course.setting) == (reward, setting)]
        for name in tuple(SCORES)[:2]:
            heading = f"{reward}{f', {setting}' if setting else ''}, {len(those)} runs, {name}:"
            _print(heading, rules_table(those, SCORES[name][0]))
    for name, (score, baselines) in SCORES.items():
        if measured := [run for run in runs if math.isfinite(run.course.start(score))]:
            _print(f"The guards' choice, {name}:", gains_table(measured, score, baselines))
    _print("Every model and reward, right and formatted:", runs_table(runs))


def _print(heading: str, rows: Sequence[Sequence[str]]) -> None:
    for line in ("", heading, "", *markdown(rows).splitlines()):
        say(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
