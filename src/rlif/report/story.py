"""What happened in some runs, in words with numbers, and as one table: what a page says first."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rlif.errors import with_error
from rlif.report.charts import curve
from rlif.report.run_record import Group, Line, RunRecord
from rlif.report.summary import decoded, explain, summarise

_NEEDED = ("eval/right_and_formatted", "eval/right_and_formatted_stderr", "eval/right", "eval/entropy")
MOST_IN_WORDS = 8
"""Groups that a paragraph can tell of; more are in the table alone."""
_LEVELS = {1: "warned", 2: "said stop"}

_TRENDS = (
    ("entropy", ("eval/entropy", "signal/entropy"), ".3f", "nats a token"),
    ("self-certainty", ("eval/self_certainty", "signal/self_certainty"), ".2f", "nats a token"),
    ("length", ("eval/length", "length/mean"), ".0f", "tokens"),
    ("answers with a transitional word", ("eval/transitional_share", "transitional/share"), ".2f", ""),
    ("answers cut off at the limit", ("eval/truncated", "stop/length"), ".2f", ""),
    ("agreement with the untrained policy's answers", ("probe/agreement",), ".2f", ""),
    ("KL to the untrained policy", ("probe/kl", "kl"), ".3f", "nats a token"),
)
"""What is told, the metrics it is read from (the first that there is), how it is written, and its unit."""
_IN_PLACE_OF_SCORES = (
    ("agreement of a prompt's answers", ("eval/self_agreement", "verdict/self_agreement"), ".2f", ""),
    ("answers in the asked form", ("eval/formatted", "verdict/formatted"), ".2f", ""),
)
"""The same, told of runs of which nobody knows what is right."""


class Trend(NamedTuple):
    """What a metric was at first and is at last, both of a group of runs; of a single run that ends with another step
    than its last one also ``chosen``: that step, and the value there."""

    name: str
    first: float
    last: float
    form: str
    unit: str
    chosen: tuple[int, float] | None = None

    def __str__(self) -> str:
        chosen = [] if self.chosen is None else [f"{self.chosen[1]:{self.form}} at step {self.chosen[0]}, chosen"]
        return " → ".join([f"{self.first:{self.form}}", *chosen, f"{self.last:{self.form}}"])

    @property
    def is_zero(self) -> bool:
        """Whether 0 is all that it says."""
        values = (self.first, self.last, *([] if self.chosen is None else [self.chosen[1]]))
        return {f"{value:{self.form}}" for value in values} == {f"{0:{self.form}}"}


def story(groups: Sequence[Group]) -> list[str]:
    """Paragraphs: how far the runs came, what became of right answers, what of confidence and length, what guards said.

    Where no answer has a label, or nothing was evaluated, that is said in place of scores.
    """
    runs = [run for group in groups for run in group.runs]
    found = [_states(runs)]
    scored = [group for group in groups if is_scored(group)]
    if scored and len(groups) <= MOST_IN_WORDS:
        found += explain([summarise(group.label, group.evaluated) for group in scored], _how_many(scored)).split("\n\n")
    found += _without_scores(groups)
    if familiar := [group.label for group in groups if group.evaluated and group.runs[0].judged_on_training]:
        found.append(f"Judged on problems that it was trained on (task.eval_path names others): {'; '.join(familiar)}.")
    if len(groups) <= MOST_IN_WORDS:
        found += [f"{group.label}: {told}." for group in groups if (told := _told_trends(group))]
    found += [told for run in runs[:MOST_IN_WORDS] if (told := _chosen(run))]
    said = [f"{run.name}: {', '.join(spoke)}" for run in runs if (spoke := list(_guards(run)))]
    if said:
        more = f"; and in {len(said) - MOST_IN_WORDS} more runs" if len(said) > MOST_IN_WORDS else ""
        found.append(f"Guards spoke in {len(said)} of {len(runs)} runs. {'; '.join(said[:MOST_IN_WORDS])}{more}.")
    return found


def _chosen(run: RunRecord) -> str:
    """Which step the final model is of, where its looks chose it (run.json, ``selected``)."""
    found = chosen_step(run.info.get("selected"))
    return f"{run.name}: the final model is that of {found}." if found else ""


def chosen_step(selected: Any) -> str:
    """The step that looks chose, and what distinguished it, by ``selected`` of a run.json (`rlif.training.looks`); ""
    where none did: nobody looked, was to choose, or could tell."""
    if not isinstance(selected, dict):
        return ""
    step, last = selected["step"], selected["last"]
    if not selected.get("chosen", step != last):  # an older rlif did not note it
        return ""
    named = "step 0, the untrained model" if step == 0 else f"step {step}, the last" if step == last else ""
    return f"{named or f'step {step} of {last}'}, which of {selected['looks']} {_merit(selected)}"


def _merit(selected: Mapping[str, Any]) -> str:
    if selected.get("criterion") == "probe/labelled_right_and_formatted":
        return "looks had most right and formatted answers to a few labelled problems"
    own = "its own renewed answers" if selected.get("renewed") else "the untrained model's own answers"
    return f"looks without labels agreed most with {own}"


def is_scored(group: Group) -> bool:
    """Whether its evaluations say how many answers are right."""
    lines = group.evaluated
    return bool(lines) and all(key in lines[0] for key in _NEEDED) and has_labels(lines)


def has_labels(lines: Sequence[Line]) -> bool:
    return any(line.get("eval/undecided", 0.0) < 1.0 for line in lines)


def table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """One row a group and way to decode: scores at the start, at their best and at the end, with standard errors."""
    rows = []
    for group in groups:
        if not is_scored(group):
            continue
        result = summarise(group.label, group.evaluated)
        for decoding in ("sampled", "greedy", "majority"):
            if points := decoded(result, decoding):
                rows.append({"run": group.label, "runs": str(len(group.runs)), "decoding": decoding, **_cells(points)})
    return rows


def _cells(points: Mapping[str, Any]) -> dict[str, str]:
    start, best, last = points["start"], points["best"], points["last"]
    found = {
        name: with_error(one["score"], one.get("stderr"), ".3f")
        for name, one in (("start", start), ("best", best), ("last", last))
    }
    found["best"] += f" @ {best['step']}"
    found["last"] += f" @ {last['step']}"
    for key, form in (("right", ".2f"), ("formatted", ".2f"), ("entropy", ".3f"), ("length", ".0f")):
        found[key] = f"{start[key]:{form}} → {last[key]:{form}}" if key in start and key in last else ""
    return found


def _states(runs: Sequence[RunRecord]) -> str:
    if not runs:
        return "There is no run."
    if len(runs) == 1:
        return f"One run, {runs[0].state}."
    states = [run.state for run in runs]
    finished = sum(state.startswith("finished") for state in states)
    others = [f"{run.folder.name} {run.state}" for run in runs if not run.state.startswith("finished")]
    more = f"; {'; '.join(others[:5])}" + (f"; and {len(others) - 5} more" if len(others) > 5 else "") if others else ""
    return f"{len(runs)} runs, {finished} of them finished{more}."


def _how_many(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.runs) for group in groups})
    if counts == [1]:
        return "one run each"
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"means of {seeds} runs each, errors over these"


def _without_scores(groups: Sequence[Group]) -> Iterator[str]:
    unlabelled = [group.label for group in groups if group.evaluated and not has_labels(group.evaluated)]
    silent = [group.label for group in groups if not group.evaluated]
    if unlabelled:
        yield f"No answer has a label, so nothing is said of right and wrong: {'; '.join(unlabelled)}."
    if silent:
        yield (f"Nothing was evaluated (eval.every), so what is told is of training answers: {'; '.join(silent)}.")


def trends(group: Group) -> Iterator[Trend]:
    """From the first evaluation to the last; of a metric of each step, from its first tenth of steps to its last.

    None needs a label. Nothing of a metric that was seen once. In between stands the step that the final model is of,
    where the metric was measured there and is no mean over steps.
    """
    for name, keys, form, unit in (*(() if is_scored(group) else _IN_PLACE_OF_SCORES), *_TRENDS):
        points = next((found for key in keys if tells(group, key) and (found := curve(group, key))), [])
        if len(points) >= 2:
            values = [value for _, value, _ in points]
            part = 1 if len(values) < 40 else len(values) // 10
            chosen = _chosen_step(group)
            there = next(((step, value) for step, value, _ in points if step == chosen and part == 1), None)
            yield Trend(name, fmean(values[:part]), fmean(values[-part:]), form, unit, there)


def _chosen_step(group: Group) -> int | None:
    """The step, neither first nor last, that the final model of a single run is of."""
    selected = group.runs[0].info.get("selected") if len(group.runs) == 1 else None
    if not isinstance(selected, dict) or selected["step"] in (0, selected["last"]):
        return None
    return int(selected["step"])


def tells(group: Group, key: str) -> bool:
    """One answer a problem agrees with itself, which tells nothing."""
    return key != "eval/self_agreement" or any(line["eval/n"] > line["eval/problems"] for line in group.evaluated)


def _told_trends(group: Group) -> str:
    """Nothing of what is 0 at both ends."""
    return "; ".join(f"{one.name} {one} {one.unit}".rstrip() for one in trends(group) if not one.is_zero)


def _guards(run: RunRecord) -> Iterator[str]:
    """The first step at which each guard reached each of its levels."""
    seen: set[tuple[str, int]] = set()
    for line in run.lines:
        for key, value in line.items():
            level = int(value) if key.startswith("guard/") and math.isfinite(value) else 0
            if level in _LEVELS and (key, level) not in seen:
                seen.add((key, level))
                yield f"{key.removeprefix('guard/')} {_LEVELS[level]} at step {line['step']}"
