"""Two evaluations side by side: paired differences, problem by problem, and the problems that flipped.

Both models answered the same problems, so what is compared is each problem's mean, not two averages. The interval is a
bootstrap over problems; the p-value comes from a sign-flip permutation test, exact if the two models are alike.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rlif.analysis.estimators import share_of_commonest
from rlif.analysis.paired import Differences, Paired, paired
from rlif.errors import RlifError
from rlif.evals.baselines import PerProblem, of_each_problem, read_passes
from rlif.evals.grader_mark import with_known_grader
from rlif.evals.metrics import AnswerTable
from rlif.evals.store import ASKED, BASELINES, MODEL, Answers, read_answers, read_json, slug


@dataclass(frozen=True)
class Comparison:
    """One task, two models. A problem is solved if more than half of its answers are right."""

    task: str
    problems: int
    left_out: int
    """Problems that only one of the two was asked, or that are another question under the same id."""
    metrics: Mapping[str, Paired]
    baselines: Mapping[str, Mapping[str, Paired]]
    """Of those that both have: right, and right_and_formatted. None without ground truths."""
    gained: tuple[str, ...]
    """Problems that only B solves."""
    lost: tuple[str, ...]
    """Problems that only A solves."""
    different: tuple[str, ...]
    """In what the two protocols differ, if in anything."""


def compare(a: Path, b: Path) -> list[Comparison]:
    """Compare two models by the folders of their answers (see `model_folders`), task by task.

    Raises `RlifError` if they have no task, or in a task no problem, in common, or if one of them is not finished.
    """
    tasks = sorted(_tasks(a) & _tasks(b))
    if not tasks:
        raise RlifError(f"{a} and {b}: no task in common")
    return [_compare(task, a, b) for task in tasks]


def model_folders(paths: Sequence[Path]) -> list[Path]:
    """The models' folders that ``paths`` name: such folders themselves, or folders of an evaluation.

    Raises `RlifError` unless they are two in all.
    """
    found: list[Path] = []
    for path in paths:
        if (path / MODEL).is_file():
            found.append(path)
        elif (path / ASKED).is_file():
            models = [path / slug(name) for name in read_json(path / ASKED)["models"]]
            if absent := [model for model in models if not (model / MODEL).is_file()]:
                raise RlifError(f"{absent[0]}: not asked yet; run the same rlif eval again to finish it first")
            found += models
        else:
            raise RlifError(f"{path}: holds no evaluation; give the --out folder of an rlif eval, or a model's in it")
    if len(found) != 2:
        names = ", ".join(map(str, found))
        raise RlifError(f"two models can be compared, not {len(found)} ({names}); name a model's folder, OUT/MODEL")
    return found


def _compare(task: str, a: Path, b: Path) -> Comparison:
    first, second = _finished(a, task), _finished(b, task)
    rows = _matched(first, second, f"{a / task} and {b / task}")
    if not rows:
        raise RlifError(f"{a / task} and {b / task}: not a single problem in common; evaluate both on the same data")
    mine, theirs = [i for i, _ in rows], [j for _, j in rows]
    of_a, of_b = _per_problem(first.table), _per_problem(second.table)
    baselines_a, baselines_b = _baselines(a, task, first), _baselines(b, task, second)
    solved_a, solved_b = of_a["right"][mine] > 0.5, of_b["right"][theirs] > 0.5
    names = np.array([first.ids[i] for i in mine], dtype=object)
    return Comparison(
        task=task,
        problems=len(rows),
        left_out=len(first.ids) + len(second.ids) - 2 * len(rows),
        metrics=_paired(of_a, mine, of_b, theirs),
        baselines={
            name: found
            for name, values in baselines_a.items()
            if name in baselines_b and (found := _paired(values, mine, baselines_b[name], theirs))
        },
        gained=tuple(names[~solved_a & solved_b]),
        lost=tuple(names[solved_a & ~solved_b]),
        different=(*_differences(_protocol(a, task), _protocol(b, task)), *_different_passes(_passes(a), _passes(b))),
    )


def _paired(
    a: Mapping[str, Float[np.ndarray, " of_a"]],
    mine: Sequence[int],
    b: Mapping[str, Float[np.ndarray, " of_b"]],
    theirs: Sequence[int],
) -> dict[str, Paired]:
    """What both have, problem ``mine[i]`` of A beside ``theirs[i]`` of B, where it is known of both."""
    found = {}
    for name in (name for name in a if name in b):
        values = np.stack([a[name][mine], b[name][theirs]])
        known = values[:, np.isfinite(values).all(axis=0)]
        if known.size:
            found[name] = paired(*known)
    return found


def _baselines(folder: Path, task: str, main: Answers) -> dict[str, PerProblem]:
    passes = read_passes(folder, task, main, _protocol(folder, task), _passes(folder))
    return of_each_problem(main.table, passes)


def _passes(folder: Path) -> dict[str, Any]:
    """The further passes that a model's evaluation was asked for."""
    asked = folder.parent / ASKED
    return read_json(asked).get(BASELINES, {}) if asked.is_file() else {}


def _tasks(folder: Path) -> set[str]:
    """The tasks of a model, those that it has not come to yet included."""
    asked = folder.parent / ASKED
    begun = {path.name for path in folder.iterdir() if path.is_dir()}
    return begun | set(read_json(asked)["tasks"] if asked.is_file() else ())


def _finished(folder: Path, task: str) -> Answers:
    """A task's answers. Raises `RlifError` if there are fewer of them than were to be."""
    answers, protocol = read_answers(folder / task), _protocol(folder, task)
    have = len(answers.ids), answers.table.samples
    due = protocol.get("problems", have[0]), protocol.get("samples", have[1])
    if have != due:
        raise RlifError(
            f"{folder / task}: {have[0]} of {due[0]} problems, {have[1]} of {due[1]} answers each; run the same rlif "
            "eval again to finish it first"
        )
    return answers


def _matched(a: Answers, b: Answers, where: str) -> list[tuple[int, int]]:
    """Which problem of A is which of B: by id and question; if no id is shared (other sources have other ids), by the
    question alone, the first of several equal ones with the first."""
    shared = len(set(a.ids) & set(b.ids))
    mine, theirs = (_named(one.ids, one.questions) if shared else _named(one.questions) for one in (a, b))
    places = {name: j for j, name in enumerate(theirs)}
    rows = [(i, places[name]) for i, name in enumerate(mine) if name in places]
    if 2 * len(rows) < shared:
        raise RlifError(
            f"{where}: {shared - len(rows)} of {shared} problems of the same id ask something else; evaluate both on "
            "the same data"
        )
    return rows


def _named(*columns: Sequence[str]) -> list[tuple[Any, int]]:
    """A name for every row: what it holds, and how often the same has stood there before."""
    seen: Counter[tuple[str, ...]] = Counter()
    names = []
    for row in zip(*columns, strict=True):
        names.append((row, seen[row]))
        seen[row] += 1
    return names


def _per_problem(table: AnswerTable) -> dict[str, Differences]:
    """Numbers of an answer, averaged over those of a problem's answers that have them; NaN if none has."""
    right, formatted = table.right, table.formatted
    cut = np.array([float(stop == "length") for stop in table.stops])
    rows = {
        "right": right.reshape(-1),
        "formatted": formatted.reshape(-1),
        "right_and_formatted": (right & formatted).reshape(-1),
        "undecided": np.array([verdict.right is None for verdict in table.verdicts]),
        "truncated": cut,
        "length": table.lengths,
        **table.means,
    }
    found = {
        name: _mean_of_known(values.astype(np.float64).reshape(-1, table.samples)) for name, values in rows.items()
    }
    judged = {name: table.where_labelled(found[name]) for name in ("right", "right_and_formatted", "undecided")}
    k, read = table.samples, [verdict.extracted for verdict in table.verdicts]
    agreeing = {"self_agreement": share_of_commonest([read[i : i + k] for i in range(0, len(read), k)])}
    return found | judged | (agreeing if k > 1 else {})


def _mean_of_known(values: Float[np.ndarray, "problem sample"]) -> Differences:
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _protocol(folder: Path, task: str) -> dict[str, Any]:
    asked = folder.parent / ASKED
    return with_known_grader(read_json(asked)["tasks"].get(task, {})) if asked.is_file() else {}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    ignored = {"source", "of"}
    keys = [key for key in dict.fromkeys((*a, *b)) if key not in ignored and a.get(key) != b.get(key)]
    return tuple(f"{key}: {a.get(key)} and {b.get(key)}" for key in keys)


def _different_passes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}: {a[name]} and {b[name]}" for name in a if name in b and a[name] != b[name])


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Everything, for a file."""
    found = []
    for one in comparisons:
        baselines = {name: _as_json(values) for name, values in one.baselines.items()}
        found.append(asdict(one) | {"metrics": _as_json(one.metrics), BASELINES: baselines})
    return found


def _as_json(metrics: Mapping[str, Paired]) -> dict[str, Any]:
    return {name: value._asdict() for name, value in metrics.items()}
