"""An evaluation's folder (`rlif.evals.store`) as a page shows it: tables, curves, and where its answers lie.

Read from files alone: `rlif.evals` loads torch, and a reader of results need not have it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.errors import RlifError, printable, with_error
from rlif.report.charts import brief_number
from rlif.utils.atomic_io import one_line

ASKED, RESULTS, MODEL = "eval.json", "results.json", "model.json"

_METRICS = {
    "right": ("right, %", 100.0, ".1f"),
    "right_and_formatted": ("right and formatted, %", 100.0, ".1f"),
    "formatted": ("formatted, %", 100.0, ".1f"),
    "truncated": ("cut off, %", 100.0, ".1f"),
    "length": ("tokens", 1.0, ".0f"),
    "entropy": ("entropy, nats", 1.0, ".3f"),
    "self_certainty": ("self-certainty, nats", 1.0, ".2f"),
    "self_agreement": ("self-agreement, %", 100.0, ".1f"),
}
"""Columns of a task's table: a metric of results.json, its heading, what it is multiplied with, how it is written."""

_COURSES = {
    "entropy": ("Entropy along the answer", "nats"),
    "self_certainty": ("Self-certainty along the answer", "nats"),
    "logprob": ("Log-probability along the answer", "nats"),
    "transitional": ("Transitional words along the answer", "words"),
}
_GROUPS = {"right": "right answers", "wrong": "wrong answers"}
_ALL = {"all": "all answers"}


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation: what was asked, and one result a model and task (none where it is not finished)."""

    folder: Path
    asked: Mapping[str, Any]
    results: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(str(one["task"]) for one in self.results))

    def of(self, task: str) -> list[Mapping[str, Any]]:
        return [one for one in self.results if one["task"] == task]


def is_evaluation(folder: Path) -> bool:
    return (folder / ASKED).is_file()


def read_evaluation(folder: Path) -> EvalRecord:
    """Raises `RlifError` for files that are damaged; an evaluation that is not finished is noted."""
    asked = _json(folder / ASKED)
    if not (folder / RESULTS).is_file():
        return EvalRecord(folder, asked, (), (f"{folder / RESULTS} is missing: finish it with the same rlif eval",))
    results = _json(folder / RESULTS).get("results")
    if not isinstance(results, list) or not all(isinstance(one, dict) and set(one) >= _KEYS for one in results):
        raise RlifError(f"{folder / RESULTS}: not the results of an evaluation; run the same rlif eval again")
    return EvalRecord(folder, asked, tuple(results), ())


_KEYS = {"model", "task", "metrics"}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RlifError(f"{path}: cannot be read ({one_line(error)}); run the same rlif eval again") from error
    if not isinstance(data, dict):
        raise RlifError(f"{path}: holds no JSON object; run the same rlif eval again")
    return data


def sentences(record: EvalRecord) -> list[str]:
    """The best model of each task, by right answers, with its error; and whether its confidence knows."""
    found = []
    for task in record.tasks:
        known = any(one["metrics"].get("right") is not None for one in record.of(task))
        key, what = ("right", "of answers are right") if known else ("self_agreement", "of a problem's answers agree")
        ranked = sorted(record.of(task), key=lambda one: -_number(one["metrics"].get(key)))
        told = [f"{_model(one)} {_percent(one['metrics'], key)}" for one in ranked]
        n = ranked[0]["metrics"]
        problems = f"{int(_number(n.get('problems')))} problems, {int(_number(n.get('n')))} answers each model"
        problems += "" if known else "; no answer is known, so nothing is said of right and wrong"
        found.append(f"{printable(task)}: {', '.join(told[:6])} {what} ({problems}).")
    return found


def tables(record: EvalRecord) -> list[dict[str, Any]]:
    """For each task the numbers of its models, and their training-free baselines: heading and rows of cells."""
    found = []
    for task in record.tasks:
        results = record.of(task)
        shown = {
            key: form for key, form in _METRICS.items() if any(one["metrics"].get(key) is not None for one in results)
        }
        rows = [_row(one, shown) for one in results]
        head = ["model", *(heading for heading, _, _ in shown.values())]
        found.append({"title": printable(task), "head": head, "rows": rows})
        if rows := [row for one in results for row in _baselines(one)]:
            head = ["model", "baseline", "right, %", "right and formatted, %", "tokens a problem"]
            found.append({"title": f"{printable(task)}, without training", "head": head, "rows": rows})
    return found


def _row(result: Mapping[str, Any], shown: Mapping[str, tuple[str, float, str]]) -> list[str]:
    cells = (_cell(result["metrics"], key, scale, form) for key, (_, scale, form) in shown.items())
    return [_model(result), *cells]


def courses(record: EvalRecord, task: str) -> list[dict[str, Any]]:
    """The paper's figure 1 of each model as charts: signals in the tenths of the answer; right and wrong answers
    apart, where that is known."""
    found = []
    known = any(one["metrics"].get("right") is not None for one in record.of(task))
    for name, (title, unit) in _COURSES.items():
        lines = [
            {
                "group": i,
                "key": f"course/{name}/{kind}",
                "name": words,
                "style": style,
                "x": list(range(1, len(along["value"]) + 1)),
                "y": [_brief(value) for value in along["value"]],
                "e": [_brief(value) for value in along["stderr"]],
            }
            for i, one in enumerate(record.of(task))
            for style, (kind, words) in enumerate((_GROUPS if known else _ALL).items())
            if (along := one.get("course", {}).get(name, {}).get(kind)) and any(v is not None for v in along["value"])
        ]
        if lines:
            head = {"title": title, "unit": unit, "machinery": False, "thinned": 0, "axis": "tenth"}
            found.append({**head, "zero": name != "self_certainty", "lines": lines})
    return found


def files(record: EvalRecord, task: str) -> dict[str, dict[str, list[Path]]]:
    """The files of a task's answers by model and way to decode (sampled, or the name of a pass)."""
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(record.folder.glob(f"*/{MODEL}")):
        folder = path.parent / task
        passes = {"sampled": folder} | {one.name[1:]: one for one in sorted(folder.glob("_*")) if one.is_dir()}
        by_kind = {kind: sorted(where.glob("part-*.parquet")) for kind, where in passes.items()}
        if any(by_kind.values()):
            found[printable(str(_json(path).get("name", path.parent.name)))] = by_kind
    return found


def _baselines(result: Mapping[str, Any]) -> list[list[str]]:
    scores = dict(result.get("baselines", {}))
    best = scores.pop("best_of_k", {})
    scores |= {f"best of k by {signal}": score for signal, score in best.items()}
    return [
        [
            _model(result),
            name.replace("_", " "),
            _estimate(score["right"]),
            _estimate(score["right_and_formatted"]),
            f"{score['tokens']:,.0f}",
        ]
        for name, score in scores.items()
    ]


def _model(result: Mapping[str, Any]) -> str:
    return printable(str(result["model"]))


def _cell(metrics: Mapping[str, Any], key: str, scale: float, form: str) -> str:
    value, error = metrics.get(key), metrics.get(f"{key}_stderr")
    if value is None:
        return ""
    return with_error(scale * value, None if error is None else scale * error, form)


def _percent(metrics: Mapping[str, Any], key: str) -> str:
    return f"{_cell(metrics, key, 100.0, '.1f') or '–'} %"


def _estimate(estimate: Mapping[str, Any]) -> str:
    error = estimate["stderr"]
    return with_error(100.0 * estimate["value"], None if error is None else 100.0 * error, ".1f")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _brief(value: float | None) -> float | None:
    return None if value is None else brief_number(value)


def models(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their names, as groups of a panel of curves."""
    return [_model(one) for one in results]
