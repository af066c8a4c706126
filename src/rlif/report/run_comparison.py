"""Two runs side by side: in what their recipes differ, how each went, and their last evaluations paired by problem.

Free of torch. A run keeps the verdicts of all problems at every evaluation (``eval_verdicts``); of one that an earlier
rlif made, only the answers to the first few problems are there, and so many are paired.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlif.analysis.paired import Paired, paired
from rlif.errors import RlifError
from rlif.report.run_record import Group, RunRecord, flat, read_run
from rlif.report.story import Trend, has_labels, is_scored, table, trends
from rlif.runs.layout import EVAL_ANSWERS, EVAL_VERDICTS, step_of
from rlif.utils.atomic_io import one_line
from rlif.utils.parquet_files import read_parquet


@dataclass(frozen=True)
class Evaluated:
    """One run's last evaluation: its step, and one number a problem by way to decode and metric.

    ``whole``: whether it has every problem, not only those whose answers were kept.
    """

    step: int
    problems: Mapping[str, Mapping[str, Mapping[tuple[str, str], float]]]
    whole: bool


@dataclass(frozen=True)
class RunComparison:
    """What `compare_runs` finds.

    Attributes:
        recipe: key to the values of A and B, where they differ.
        courses: rows of `rlif.report.story.table`, A's and B's.
        trends: what needs no label, by its name: A's and B's, None where a run has it not;
            nothing of what is 0 in both.
        last: the steps of the last evaluations.
        pairs: decoding to metric to the difference, paired by problem.
        notes: what is missing, in words.
    """

    names: tuple[str, str]
    recipe: Mapping[str, tuple[Any, Any]]
    courses: tuple[Mapping[str, str], ...]
    trends: Mapping[str, tuple[Trend | None, Trend | None]]
    last: tuple[int | None, int | None]
    pairs: Mapping[str, Mapping[str, Paired]]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        pairs = {how: {name: pair._asdict() for name, pair in found.items()} for how, found in self.pairs.items()}
        recipe = {key: list(values) for key, values in self.recipe.items()}
        courses, notes = [dict(row) for row in self.courses], list(self.notes)
        said = {"a": self.names[0], "b": self.names[1], "recipe": recipe, "courses": courses}
        said["trends"] = {name: [one and one._asdict() for one in pair] for name, pair in self.trends.items()}
        return {**said, "last": list(self.last), "pairs": pairs, "notes": notes}


def compare_runs(a: Path, b: Path) -> RunComparison:
    """Compare two runs by their folders. Raises `RlifError` for damaged metrics or answers."""
    runs = [read_run(folder) for folder in (a, b)]
    notes = [note for run in runs for note in run.notes]
    groups = [Group(letter, (run,)) for letter, run in zip("AB", runs, strict=True)]
    for group in groups:
        notes += _unscored(group)
    evaluated = [_last(run) for run in runs]
    notes += [f"{run.folder}: keeps no evaluation" for run, one in zip(runs, evaluated, strict=True) if one is None]
    pairs, more = _pairs(*evaluated) if all(evaluated) else ({}, [])  # type: ignore[arg-type]
    return RunComparison(
        names=(str(a), str(b)),
        recipe=_difference(*runs),
        courses=tuple(table(groups)),
        trends=_trends(*groups),
        last=tuple(one.step if one else None for one in evaluated),  # type: ignore[arg-type]
        pairs=pairs,
        notes=(*notes, *more),
    )


def _unscored(group: Group) -> list[str]:
    if is_scored(group):
        return []
    if group.evaluated and not has_labels(group.evaluated):
        return [f"{group.label}: no problem has a label, so nothing is said of right and wrong"]
    return [f"{group.label}: nothing was evaluated (eval.every)"]


def _trends(a: Group, b: Group) -> dict[str, tuple[Trend | None, Trend | None]]:
    one, other = ({trend.name: trend for trend in trends(group)} for group in (a, b))
    pairs = {name: (one.get(name), other.get(name)) for name in dict.fromkeys((*one, *other))}
    return {name: pair for name, pair in pairs.items() if not all(trend is None or trend.is_zero for trend in pair)}


def _difference(a: RunRecord, b: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Keys of the recipes with other values; none if one of them cannot be read, which its notes say."""
    if a.recipe is None or b.recipe is None:
        return {}
    one, other = (dict(flat(run.recipe.model_dump(mode="json"))) for run in (a, b))  # type: ignore[union-attr]
    return {
        key: (one.get(key), other.get(key)) for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)
    }


def _last(run: RunRecord) -> Evaluated | None:
    """The last evaluation that is kept of a run, by problem; None if none is."""
    for folder, whole in ((EVAL_VERDICTS, True), (EVAL_ANSWERS, False)):
        files = {
            step: path for path in (run.folder / folder).glob("*.parquet") if (step := step_of(path.stem)) is not None
        }
        if files:
            step = max(files)
            return Evaluated(step, _by_problem(files[step], "question" if whole else "prompt"), whole)
    return None


def _by_problem(path: Path, asked: str) -> dict[str, dict[str, dict[tuple[str, str], float]]]:
    """A number a problem, the mean over its answers. A problem is its id and what is ``asked``, a column's name."""
    try:
        rows = read_parquet(path).to_pylist()
        sums: dict[str, dict[str, dict[tuple[str, str], list[float]]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            labelled, right = row["right"] is not None, row["right"] is True
            numbers = {"formatted": row["formatted"]}
            numbers |= {"right_and_formatted": right and row["formatted"], "right": right} if labelled else {}
            for name, value in numbers.items():
                sums[row["decoding"]][name].setdefault((row["prompt_id"], row[asked]), []).append(float(value))
    except (OSError, ValueError, KeyError, TypeError) as error:  # ArrowInvalid is a ValueError
        raise RlifError(
            f"{path}: damaged ({one_line(error)}); delete it, and an earlier evaluation is compared"
        ) from error
    return {
        how: {name: {key: float(np.mean(values)) for key, values in found.items()} for name, found in by_name.items()}
        for how, by_name in sums.items()
    }


def _pairs(a: Evaluated, b: Evaluated) -> tuple[dict[str, dict[str, Paired]], list[str]]:
    found: dict[str, dict[str, Paired]] = {}
    notes: list[str] = []
    if a.whole != b.whole:
        return {}, ["one of the runs is of an rlif that kept no verdicts: the two are not paired by problem"]
    if not a.whole:
        notes.append("these runs kept the answers to their first evaluation problems alone: only these are paired")
    for how in (how for how in a.problems if how in b.problems):
        for name in ("right_and_formatted", "right", "formatted"):
            mine, theirs = a.problems[how].get(name, {}), b.problems[how].get(name, {})
            if not set(mine) & set(theirs):
                mine, theirs = _by_question(mine), _by_question(theirs)
            common = [key for key in mine if key in theirs]
            if 2 * len(common) >= min(len(mine), len(theirs)) > 0:
                values = np.array([[mine[key], theirs[key]] for key in common])
                found.setdefault(how, {})[name] = paired(values[:, 0], values[:, 1])
    if not found:
        notes.append("the evaluations have no problems in common, or fewer than half: nothing is paired")
    return found, notes


def _by_question(numbers: Mapping[Any, float]) -> dict[Any, float]:
    """Of each question that was asked once: of files by two names the ids, which are names and lines, differ."""
    often = Counter(question for _, question in numbers)
    return {question: value for (_, question), value in numbers.items() if often[question] == 1}


def brief(value: Any) -> str:
    """A value of a recipe in a table."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differing(comparison: RunComparison) -> Sequence[tuple[str, str, str]]:
    """The differences of the recipes as cells."""
    return [(key, brief(a), brief(b)) for key, (a, b) in comparison.recipe.items()]
