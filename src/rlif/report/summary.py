"""Several runs in one table and a few sentences, made from their evaluations.

A run's score is the share of answers that are right and formatted. It has one for each way to decode that was evaluated
(`DECODINGS`), and what each of them gives at step 0 is a baseline: training is credited with what goes beyond the best
baseline that costs as much, one answer a problem or a vote.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

DECODINGS: Mapping[str, str] = {"sampled": "", "greedy": "greedy_", "majority": "majority_"}
"""Ways to get an answer from a policy, each with what its metrics begin with after ``eval/``."""
_ONE_ANSWER, _VOTE = ("sampled", "greedy"), ("majority",)
_KEYS = {
    "score": "right_and_formatted",
    "stderr": "right_and_formatted_stderr",
    "right": "right",
    "formatted": "formatted",
    "entropy": "entropy",
    "transitional": "transitional_share",
    "length": "length",
}


def summarise(label: str, lines: Sequence[Mapping[str, float | int]]) -> dict[str, Any]:
    """Start, best and last of one run's evaluations; ``score`` is the share right and formatted.

    Those of sampled answers are keys of the result, others (the same three) stand under ``greedy`` and ``majority``
    where every evaluation has them. ``n`` completions to ``problems`` problems: those with an answer, for the score is
    of these.
    """
    first = lines[0]
    n, asked = int(first.get("eval/labelled", first["eval/n"])), int(first["eval/n"])
    problems = int(first.get("eval/problems", asked)) * n // asked
    found = {name: _points(lines, prefix) for name, prefix in DECODINGS.items()}
    others = {name: found[name] for name in ("greedy", "majority") if found[name]}
    return {"label": label, "n": n, "problems": problems, **found["sampled"], **others}


def _points(lines: Sequence[Mapping[str, float | int]], prefix: str) -> dict[str, dict[str, Any]]:
    """Start, best and last of one way to decode; empty if an evaluation lacks it."""
    score = f"eval/{prefix}right_and_formatted"
    if not all(score in line for line in lines):
        return {}
    points = {"start": lines[0], "best": max(lines, key=lambda line: line[score]), "last": lines[-1]}
    keys = {key: name for key, metric in _KEYS.items() if (name := f"eval/{prefix}{metric}") in lines[0]}
    return {
        name: {"step": int(line["step"]), **{key: line[metric] for key, metric in keys.items()}}
        for name, line in points.items()
    }


def decoded(result: Mapping[str, Any], decoding: str) -> Mapping[str, Any] | None:
    """Start, best and last of a result of `summarise` for one way to decode; None if it was not evaluated."""
    return result if decoding == "sampled" else result.get(decoding)


def baselines(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Model → way to decode → what it gives at step 0. The runs of a model share it; the first one's is taken."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        starts = {name: points["start"] for name in DECODINGS if (points := decoded(result, name))}
        found.setdefault(_model_and_reward(result)[0], starts)
    return found


def baseline_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The baselines of each model, one line of at most 80 columns each, the best one first."""
    lines = []
    for model, starts in baselines(results).items():
        ranked = sorted(starts.items(), key=lambda item: -item[1]["score"])
        shown = (f"{_named(name, results[0])} {start['score']:.2f}" for name, start in ranked)
        lines.append(f"before training, {model}: {', '.join(shown)}")
    return lines


def explain(results: Sequence[Mapping[str, Any]], runs: str = "one run each") -> str:
    """Three paragraphs made from the numbers: what became of each model; what that is beyond the baselines; what the
    first run's gain consisted of, and whether entropy told. ``runs``: how many runs a result is made of."""
    fates: dict[str, dict[str, list[str]]] = {}
    for result in results:
        model, reward = _model_and_reward(result)
        fates.setdefault(model, {}).setdefault(_fate(result), []).append(f"{reward} ({_course(result)})")
    said = "; ".join(
        f"the {model} model " + ", ".join(f"{fate} with {_listed(runs)}" for fate, runs in by_fate.items())
        for model, by_fate in fates.items()
    )
    each = [points for result in results for name in DECODINGS if (points := decoded(result, name))]
    errors = [points[point]["stderr"] for points in each for point in ("start", "best", "last")]
    known = [error for error in errors if math.isfinite(error)]  # one problem has no standard error
    largest = f"up to {max(known):.2f}" if known else "unknown"
    what = f"share right and formatted of sampled answers, {_amounts(results)}"
    what += f", standard errors {largest}, {runs}"
    beyond = " ".join(_beyond(results, kind) for kind in (_ONE_ANSWER, _VOTE) if _known(results, kind))
    return f"{_capital(said)} ({what}).\n\n{beyond}\n\n{_gain(results[0])}; {_confidence(results)}."


def _amounts(results: Sequence[Mapping[str, Any]]) -> str:
    """How many problems and samples the results are made of; those of the first and of others, if they differ."""
    found: dict[str, None] = {}
    for result in results:
        n, problems = result["n"], result["problems"]
        found[f"{problems} problems" + (f" × {n // problems} samples" if n > problems else "")] = None
    return " or ".join(found)


_FATES = {
    "rises, then falls": "rise, then fall",
    "rises and stays up": "rise and stay up",
    "only loses": "only lose",
    "stays where it was": "stay where they were",
}
"""What becomes of a run, and of several."""


def headline(results: Sequence[Mapping[str, Any]]) -> str:
    """What became of the sampled answers of the runs, in a line: how many rose, fell, or stayed."""
    fates = [_fate(result) for result in results]
    counts = ((fates.count(one), one, several) for one, several in _FATES.items())
    return "; ".join(f"{n} {one if n == 1 else several}" for n, one, several in counts if n)


def is_surer_and_wrong(result: Mapping[str, Any]) -> bool:
    """Whether a run ends with less entropy than it began, its answers fallen from their best."""
    start, last = result["start"], result["last"]
    return _fate(result) in ("rises, then falls", "only loses") and last["entropy"] < start["entropy"]


def gain(result: Mapping[str, Any]) -> str:
    """What a run's best score consists of, as a sentence."""
    return f"{_gain(result)}."


def _known(results: Sequence[Mapping[str, Any]], kind: Sequence[str]) -> bool:
    return any(decoded(result, name) for result in results for name in kind)


def _beyond(results: Sequence[Mapping[str, Any]], kind: Sequence[str]) -> str:
    """What the best step of each run gives more than the best baseline of its model, both among these decodings."""
    names = [_named(name, results[0]) for name in kind if any(decoded(result, name) for result in results)]
    parts = []
    for model, starts in baselines(results).items():
        base = max((starts[name] for name in kind if name in starts), key=lambda start: start["score"])
        gained: list[str] = []
        not_gained: list[str] = []
        for result in (result for result in results if _model_and_reward(result)[0] == model):
            each = (points["best"] for name in kind if (points := decoded(result, name)))
            best, reward = max(each, key=lambda point: point["score"]), _model_and_reward(result)[1]
            if _differs(best, base) and best["score"] > base["score"]:
                gain = round(best["score"], 2) - round(base["score"], 2)
                gained.append(f"{gain:.2f} {'' if gained else 'more '}with {reward}")
            else:
                not_gained.append(reward)
        more = [*gained, *([f"nothing that stands out of the noise with {_listed(not_gained)}"] if not_gained else [])]
        parts.append(f"the {model} model gives {base['score']:.2f} before training and at its best {_listed(more)}")
    how = f"with one answer a problem ({' or '.join(names)})" if kind == _ONE_ANSWER else f"by {names[0]}"
    return f"{_capital(how)} {'; '.join(parts)}."


def _model_and_reward(result: Mapping[str, Any]) -> tuple[str, str]:
    model, _, reward = result["label"].partition(", ")
    return model, reward.replace("verifiable (labels)", "labels")


def _named(decoding: str, result: Mapping[str, Any]) -> str:
    return f"majority of {result['n'] // result['problems']}" if decoding == "majority" else decoding


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _fate(points: Mapping[str, Any]) -> str:
    start, best, last = points["start"], points["best"], points["last"]
    rose = _differs(best, start) and best["score"] > start["score"]
    fell = _differs(best, last) and last["score"] < best["score"]
    return {
        (True, True): "rises, then falls",
        (True, False): "rises and stays up",
        (False, True): "only loses",
        (False, False): "stays where it was",
    }[rose, fell]


def _course(points: Mapping[str, Any]) -> str:
    """The scores at the start, at the best step where that is neither end, and at the last."""
    start, best, last = points["start"], points["best"], points["last"]
    peak = [] if best["step"] in (start["step"], last["step"]) else [f"{best['score']:.2f} at step {best['step']}"]
    return " → ".join([f"{start['score']:.2f}", *peak, f"{last['score']:.2f}"])


def _gain(result: Mapping[str, Any]) -> str:
    """What the best sampled score gained, in two parts that add up: more right answers, and right ones in the form."""
    start, best = result["start"], result["best"]
    gain = round(best["score"], 2) - round(start["score"], 2)
    right = round(best["right"], 2) - round(start["right"], 2)
    if not (_differs(best, start) and gain > 0):
        return f"With {result['label']} nothing was gained that stands out of the noise"
    return (
        f"Of the {gain:.2f} that {result['label']}, gains at its best, sampled, {right:.2f} are answers newly right in "
        f"any form and {gain - right:.2f} are a matter of form"
    )


def _confidence(results: Sequence[Mapping[str, Any]]) -> str:
    """Whether entropy told the runs that ended well from those that ended badly."""
    surer = [result for result in results if result["last"]["entropy"] < result["start"]["entropy"]]
    fell = any(map(is_surer_and_wrong, results))
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


_COLUMNS = (
    *("run", "decoding", "start", "best @ step", "last"),
    *("right, any form", "formatted", "entropy", "transitional", "length"),
)


def _change(points: Mapping[str, Any], key: str, form: str, arrow: str = " → ") -> str:
    """From the start to the end of training; nothing where this way to decode has no such number."""
    start, last = points["start"], points["last"]
    return f"{start[key]:{form}}{arrow}{last[key]:{form}}" if key in start else ""


def _rows(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, points) for name in _ONE_ANSWER if (points := decoded(result, name))]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table as markdown, a row for sampled answers and one for greedy ones; the baselines below it."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for result in results:
        for name, points in _rows(result):
            forms = {"right": ".2f", "formatted": ".2f", "entropy": ".3f", "transitional": ".2f", "length": ".0f"}
            start, best, last = points["start"], points["best"], points["last"]
            scores = (f"{start['score']:.3f}", f"{best['score']:.3f} @ {best['step']}", f"{last['score']:.3f}")
            changes = (_change(points, key, form) for key, form in forms.items())
            rows.append((result["label"], name, *scores, *changes))
    below = _capital("; ".join(baseline_lines(results)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{below}.\n"


def terminal_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The same for a terminal of 80 columns: no leading zeros, two decimals, short headers, no lengths.

    Where that is too wide, the names of the runs take two lines: no number is ever cut.
    """
    title = f"right and formatted answers, {results[0]['problems']} problems: sampled at T = 1, below it greedy"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in ("run", "start", "best@", "last", "right", "format", "entropy", "trans-\nitional"):
        table.add_column(header, justify="left" if header == "run" else "right", no_wrap=header != "run")
    forms = {"right": ".2f", "formatted": ".2f", "entropy": ".3f", "transitional": ".2f"}
    for result in results:
        for name, points in _rows(result):
            start, best, last = points["start"], points["best"], points["last"]
            run = result["label"].replace(",", "").replace(" (labels)", "") if name == "sampled" else f"  {name}"
            scores = (f"{start['score']:.2f}", f"{best['score']:.2f}@{best['step']}", f"{last['score']:.2f}")
            changes = (_change(points, key, form, "→") for key, form in forms.items())
            table.add_row(run, *(re.sub(r"\b0\.", ".", cell) for cell in (*scores, *changes)))
    return table
