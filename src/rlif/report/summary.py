"""Several runs in one table and two sentences, made from their evaluations."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def summarise(label: str, lines: Sequence[Mapping[str, float | int]]) -> dict[str, Any]:
    """Start, best and last of one run's evaluations; ``score`` is the share right and formatted."""
    best = max(lines, key=lambda line: line["eval/right_and_formatted"])
    keys = {
        "score": "right_and_formatted",
        "stderr": "right_and_formatted_stderr",
        "right": "right",
        "formatted": "formatted",
        "entropy": "entropy",
        "transitional": "transitional_share",
        "length": "length",
    }
    points = {"start": lines[0], "best": best, "last": lines[-1]}
    return {
        "label": label,
        "n": int(lines[0]["eval/n"]),
        **{
            name: {"step": int(line["step"]), **{key: line[f"eval/{metric}"] for key, metric in keys.items()}}
            for name, line in points.items()
        },
    }


def explain(results: Sequence[Mapping[str, Any]]) -> str:
    """Two sentences made from the numbers: what became of each model, and what the first run's gain consisted of."""
    models: dict[str, dict[str, list[str]]] = {}
    for result in results:
        model, _, reward = result["label"].partition(", ")
        reward = reward.replace("verifiable (labels)", "labels")
        models.setdefault(model, {}).setdefault(_fate(result), []).append(f"{reward} ({_course(result)})")
    fates = "; ".join(
        f"the {model} model " + ", ".join(f"{fate} with {_listed(runs)}" for fate, runs in by_fate.items())
        for model, by_fate in models.items()
    )
    errors = [result[point]["stderr"] for result in results for point in ("start", "best", "last")]
    known = [error for error in errors if math.isfinite(error)]  # one problem has no standard error
    largest = f"up to {max(known):.2f}" if known else "unknown"
    what = f"share right and formatted, {results[0]['n']} problems, standard errors {largest}, one run each"
    return f"{fates[0].upper()}{fates[1:]} ({what}). {_gain(results[0])}; {_confidence(results)}."


def _fate(result: Mapping[str, Any]) -> str:
    start, best, last = result["start"], result["best"], result["last"]
    rose = _differs(best, start) and best["score"] > start["score"]
    fell = _differs(best, last) and last["score"] < best["score"]
    return {
        (True, True): "rises, then falls",
        (True, False): "rises and stays up",
        (False, True): "only loses",
        (False, False): "stays where it was",
    }[rose, fell]


def _course(result: Mapping[str, Any]) -> str:
    """The scores at the start, at the best step where that is neither end, and at the last."""
    start, best, last = result["start"], result["best"], result["last"]
    peak = [] if best["step"] in (start["step"], last["step"]) else [f"{best['score']:.2f} at step {best['step']}"]
    return " → ".join([f"{start['score']:.2f}", *peak, f"{last['score']:.2f}"])


def _gain(result: Mapping[str, Any]) -> str:
    """What the best score gained, in two parts that add up: more right answers, and right ones put into the form."""
    start, best = result["start"], result["best"]
    gain = round(best["score"], 2) - round(start["score"], 2)
    right = round(best["right"], 2) - round(start["right"], 2)
    if not (_differs(best, start) and gain > 0):
        return f"With {result['label']} nothing was gained that stands out of the noise"
    return (
        f"Of the {gain:.2f} that {result['label']}, gains at its best, {right:.2f} are answers newly right in any form "
        f"and {gain - right:.2f} are a matter of form"
    )


def _confidence(results: Sequence[Mapping[str, Any]]) -> str:
    """Whether entropy told the runs that ended well from those that ended badly."""
    surer = [result for result in results if result["last"]["entropy"] < result["start"]["entropy"]]
    fell = any(_fate(result) in ("rises, then falls", "only loses") for result in surer)
    held = any(_fate(result) == "rises and stays up" for result in surer)
    count = f"entropy fell in {len(surer)} of {len(results)} runs"
    if fell and held:
        return f"{count}, those that end well and those that do not: a model that grows surer need not grow better"
    return count


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _differs(a: Mapping[str, float | int], b: Mapping[str, float | int]) -> bool:
    """More than two standard errors of the difference apart.

    Two biases oppose each other: both points share their problems, and the best one was chosen among several.
    """
    return abs(a["score"] - b["score"]) > 2.0 * math.hypot(a["stderr"], b["stderr"])


_COLUMNS = ("run", "start", "best @ step", "last", "right, any form", "formatted", "entropy", "transitional", "length")


def _cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    start, best, last = result["start"], result["best"], result["last"]

    def change(key: str, form: str) -> str:
        return f"{start[key]:{form}} → {last[key]:{form}}"

    return (
        result["label"],
        f"{start['score']:.3f}",
        f"{best['score']:.3f} @ {best['step']}",
        f"{last['score']:.3f}",
        change("right", ".2f"),
        change("formatted", ".2f"),
        change("entropy", ".3f"),
        change("transitional", ".2f"),
        change("length", ".0f"),
    )


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table as markdown."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(result) for result in results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def terminal_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The same for a terminal of 80 columns: no leading zeros, two decimals (the error is .02), short headers.

    Where that is too wide, the names of the runs take two lines: no number is ever cut.
    """
    title = f"right and formatted answers, {results[0]['n']} problems, T = 1"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    headers = ("run", "start", "best@", "last", "right", "format", "entropy", "trans-\nitional", "len.")
    for header in headers:
        table.add_column(header, justify="left" if header == "run" else "right", no_wrap=header != "run")
    for result in results:
        start, best, last = ({**result[name]} for name in ("start", "best", "last"))

        def change(key: str, form: str, start: Any = start, last: Any = last) -> str:
            return f"{start[key]:{form}}→{last[key]:{form}}"

        row = (
            result["label"].replace(",", "").replace(" (labels)", ""),
            f"{start['score']:.2f}",
            f"{best['score']:.2f}@{best['step']}",
            f"{last['score']:.2f}",
            *(change(key, ".2f") for key in ("right", "formatted", "entropy", "transitional")),
            change("length", ".0f"),
        )
        table.add_row(row[0], *(re.sub(r"\b0\.", ".", cell) for cell in row[1:]))
    return table
