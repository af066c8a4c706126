"""Results on a terminal of 80 columns: how good, what the answers are made of, whether confidence knows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlif.analysis.baselines import BASELINES
from rlif.analysis.paired import Paired
from rlif.errors import printable, printable_lines, shortened, with_error
from rlif.evals.compare import Comparison
from rlif.evals.passes import LOW_TEMPERATURE
from rlif.utils.durations import duration
from rlif.utils.terminal import Console

_NAME = 22  # characters of a model's name


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """All tasks of results.json, each with its protocol."""
    tasks = results["asked"]["tasks"]
    for task, protocol in tasks.items():
        rows = [result for result in results["results"] if result["task"] == task]
        console.print(task_view(task, protocol, rows))


def task_view(task: str, protocol: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One task, every model."""
    views: list[RenderableType] = [
        Text(""),
        Text(printable_lines(heading(task, protocol))),
        scores(protocol["samples"], results),
    ]
    views += [kinds(results)] if _labelled(results) else []
    views += [makings(results)]
    views += [one for one in (baselines(protocol["samples"], results),) if one]
    if knows := confidences(protocol["samples"], results):
        views.append(knows)
    views += [Text(speed(result)) for result in results]
    return Group(*views)


def heading(task: str, protocol: Mapping[str, Any]) -> str:
    """What was asked and how, in words."""
    of = f" of {protocol['of']:,}" if (protocol["of"] or 0) > protocol["problems"] else ""
    drawn = "greedy" if protocol["temperature"] == 0 else f"T = {protocol['temperature']:g}"
    drawn += f", top-p {protocol['top_p']:g}" if protocol["top_p"] < 1 else ""
    drawn += f", top-k {protocol['top_k']}" if protocol["top_k"] else ""
    count = f"{protocol['samples']} answers each" if protocol["samples"] > 1 else "one answer each"
    shots = f", {protocol['shots']} shots" if protocol["shots"] else ""
    return (
        f"{task}: {protocol['problems']:,}{of} problems, {count}, {drawn}, at most {protocol['max_new_tokens']:,} "
        f"tokens,\n  template {protocol['template']}{shots}; ± is one standard error, clustered by problem"
    )


def _labelled(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any answer could be judged."""
    return any(not _none(result["metrics"]["right"]) for result in results)


def agreement(samples: int, results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What can be said of answers without a ground truth: in per cent."""
    several = samples > 1
    table = _table(*(["agree"] if several else []), "formatted")
    for result in results:
        names = ["self_agreement"] * several + ["formatted"]
        table.add_row(_name(result), *(_metric(result["metrics"], name) for name in names))
    meaning = "; agree: of a problem's answers, those that say the commonest" if several else ""
    return _captioned(table, f"in %{meaning}", "no answer is known here: nothing is said of right and wrong")


def scores(samples: int, results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """How good: in per cent."""
    if not _labelled(results):
        return agreement(samples, results)
    several = samples > 1
    columns = [f"avg@{samples}", f"pass@{samples}", f"maj@{samples}"] if several else ["right"]
    table = _table(*columns, "formatted", "both")
    alike: set[int] = set()
    for result in results:
        metrics = result["metrics"]
        cells = [_metric(metrics, "right")]
        if several:
            cells += [_percent(result["pass_at"][str(samples)]), _percent(result["maj_at"][str(samples)])]
        cells += [_metric(metrics, "formatted"), _metric(metrics, "right_and_formatted")]
        judged = sum(count for key, count in result["counts"].items() if key != "unlabelled")
        alike |= {round(judged / samples) for cell in cells if cell in ("0.0 ± –", "100.0 ± –")}
        table.add_row(_name(result), *cells)
    meaning = "avg: right in whatever form; both: right and formatted" if several else "both: right and formatted"
    bare = sum(result["counts"].get("unlabelled", 0) for result in results[:1])
    bare_line = [f"of the problems whose answer is known; {bare // samples:,} have none"] if bare else []
    return _captioned(table, f"in %; {meaning}", *bare_line, *(_without_error(problems) for problems in alike - {1}))


def _without_error(problems: int) -> str:
    """What is known where all problems are right, or all wrong: a share p of them is found so with chance pⁿ."""
    bound = 100 * (1 - 0.05 ** (1 / problems))
    return f"–: all {problems:,} problems alike; the true value may be {bound:.1f} points off (95 %)"


def kinds(results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The paper's table 2: how many answers are right, formatted, both, neither."""
    table = _table("both", "right only", "formatted only", "neither", "undecided")
    names = ("right_formatted", "right_unformatted", "wrong_formatted", "wrong_unformatted", "undecided")
    for result in results:
        table.add_row(_name(result), *(f"{result['counts'][name]:,}" for name in names))
    return _captioned(table, "answers")


def makings(results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What the answers are made of: means."""
    table = _table("cut", "tokens", "repeats", "but/wait", "entropy")
    for result in results:
        metrics = result["metrics"]
        table.add_row(
            _name(result),
            f"{100 * metrics['truncated']:.1f}",
            with_error(metrics["length"], metrics["length_stderr"], ".0f"),
            f"{100 * metrics['repeated_ngrams']:.1f}",
            f"{metrics['transitional_per_answer']:.2f}",
            f"{metrics['entropy']:.3f}" if metrics.get("entropy") is not None else "",
        )
    return _captioned(
        table,
        "cut: off, in %; repeats: 4-grams seen before in the answer, in %;",
        "but/wait: transitional words per answer; entropy: nats per token at T = 1",
    )


_BASELINES = {
    "sampled": "sampled",
    "temperature_1": "temperature 1",
    "greedy": "greedy",
    "low_temperature": f"temperature {LOW_TEMPERATURE:g}",
    "majority": "majority",
    "borda": "majority by confidence",
    "best_of_k/self_certainty": "surest by self-certainty",
    "best_of_k/token_entropy": "surest by −entropy",
    "best_of_k/trajectory_entropy": "surest by logprob",
    "power": "power sampling",
}
"""What a baseline is called on a screen, in the order in which they stand there."""


def baselines(samples: int, results: Sequence[Mapping[str, Any]]) -> RenderableType | None:
    """What the models' answers are worth without training, with the cost; None if nothing but the sampling is known."""
    table = _table("right", "right and formatted", "tokens a problem", first="baseline")
    signals: dict[str, list[str]] = {}
    for result in results:
        scores = _flat(result.get("baselines", {}))
        if set(scores) <= {"sampled"}:
            continue
        table.add_row(_name(result))
        for name in (name for name in _BASELINES if name in scores):
            score = scores[name]
            cells = _percent(score["right"]), _percent(score["right_and_formatted"]), f"{score['tokens']:,.0f}"
            table.add_row(f"  {_BASELINES[name]}", *cells)
        missing = [name for name in _BASELINES if name in BASELINES and name not in scores]
        if samples > 1 and missing:
            signals.setdefault(", ".join(_BASELINES[name] for name in missing), []).append(_name(result))
    if not table.row_count:
        return None
    notes = [f"no {which}: {', '.join(who)} does not tell these signals" for which, who in signals.items()]
    votes = f"majority and surest: of {samples} answers, all of which they cost" if samples > 1 else ""
    return _captioned(table, "in %, of this model's answers as they are", *([votes] if votes else []), *notes)


def _flat(baselines: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of results[].baselines by their names in `rlif.analysis.baselines.BASELINES`, or of passes."""
    best = {f"best_of_k/{signal}": score for signal, score in baselines.get("best_of_k", {}).items()}
    return {name: score for name, score in baselines.items() if name != "best_of_k"} | best


def confidences(samples: int, results: Sequence[Mapping[str, Any]]) -> RenderableType | None:
    """Does confidence know? AUROC of each signal; None where no signal is known or no answer is right (or wrong)."""
    labels = {"logprob": "logprob", "entropy": "−entropy", "self_certainty": "self-certainty"}
    table = _table(*labels.values(), *(["problems"] if samples > 1 else []))
    for result in results:
        known = result["confidence"]
        if not known or all(_missing(signal["auroc"]) for signal in known.values()):
            continue
        table.add_row(_name(result), *(_area(known.get(name, {}).get("auroc")) for name in labels))
        if samples > 1:
            mixed = str(next(iter(known.values()))["mixed"])
            cells = (_area(known.get(name, {}).get("auroc_within")) for name in labels)
            table.add_row("  within a problem", *cells, mixed)
    if not table.row_count:
        return None
    return _captioned(
        table,
        "AUROC: chance that of a right and a wrong answer the right one",
        "is the more confident; 0.50 is blind",
    )


def speed(result: Mapping[str, Any]) -> str:
    """How fast, in one line."""
    spent = result["speed"]
    return (
        f"{_name(result)}: {spent['tokens']:,.0f} tokens in {duration(spent['seconds'])}, "
        f"{spent['tokens_per_second']:,.0f}/s, {100 * spent['outside_share']:.1f} % outside the model"
    )


def _table(*columns: str, first: str = "model") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="ellipsis")  # the only one that may be cut: rich narrows what may wrap first
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _captioned(table: Table, *lines: str) -> RenderableType:
    return Group(table, *(Text(line, style="dim") for line in lines))


def _name(result: Mapping[str, Any]) -> str:
    name = printable(result["model"])
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    return _percent({"value": metrics[name], "stderr": metrics[f"{name}_stderr"]})


def _percent(estimate: Mapping[str, Any]) -> str:
    if _missing(estimate):
        return "–"
    error = estimate["stderr"]
    return with_error(100 * estimate["value"], None if error is None else 100 * error, ".1f")


def _area(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or _missing(estimate):
        return ""
    return with_error(estimate["value"], estimate["stderr"], ".2f")


def _missing(estimate: Mapping[str, Any]) -> bool:
    return _none(estimate["value"])


def _none(value: float | None) -> bool:
    return value is None or math.isnan(value)


_SHOWN = 8  # flipped problems on the screen


def print_comparisons(console: Console, names: Sequence[str], comparisons: Sequence[Comparison]) -> None:
    """The tables, for a terminal of 80 columns."""
    for letter, name in zip("AB", names, strict=True):
        console.write_line(f"{letter}: {name}")
    for comparison in comparisons:
        console.print(_view(comparison))


_PERCENT = ("right", "formatted", "right_and_formatted", "undecided", "truncated", "self_agreement")


_LABELS = {
    "right_and_formatted": "right and formatted",
    "truncated": "cut off",
    "self_agreement": "self-agreement",
    "length": "tokens",
    "logprob": "log-probability",
    "self_certainty": "self-certainty",
}


def _view(comparison: Comparison) -> RenderableType:
    left_out = f" ({comparison.left_out} that only one was asked are left out)" if comparison.left_out else ""
    views: list[RenderableType] = [Text(f"\n{printable(comparison.task)}: {comparison.problems:,} problems{left_out}")]
    views += [Text(printable(f"beware, the protocols differ in {difference}")) for difference in comparison.different]
    table = comparison_table("")
    for name, row in comparison.metrics.items():
        percent, label = name in _PERCENT, _LABELS.get(name, name)
        form = "{:.1f}" if percent or name == "length" else "{:.3f}"
        add_pair(table, label + ", %" * percent, row, comparison.problems, form, scale=100.0 if percent else 1.0)
    views.append(table)
    if set(comparison.baselines) - {"sampled"}:
        views.append(_baseline_table(comparison))
    views.append(Text("p decides; the interval shows how large, and is too narrow for few problems", style="dim"))
    judged = "right" in comparison.metrics  # without ground truths nothing is gained or lost
    for word, problems in (
        () if not judged else (("gained (only B solves)", comparison.gained), ("lost (only A solves)", comparison.lost))
    ):
        first = ", ".join(shortened(printable(problem), 80) for problem in problems[:_SHOWN])
        shown = first + (", …" if len(problems) > _SHOWN else "")
        views.append(Text(f"{word}: {len(problems)}" + (f": {shown}" if problems else "")))
    return Group(*views)


def _baseline_table(comparison: Comparison) -> Table:
    """What both models' answers are worth without training: right, and right and formatted."""
    table = comparison_table("by baseline")
    for metric in ("right", "right_and_formatted"):
        table.add_row(f"{_LABELS.get(metric, metric)}, %")
        for name in (name for name in _BASELINES if name in comparison.baselines):
            row = comparison.baselines[name][metric]
            add_pair(table, f"  {_BASELINES[name]}", row, comparison.problems, "{:.1f}", scale=100.0)
    return table


def comparison_table(first: str) -> Table:
    """An empty table of differences; ``first`` heads the column that says of what."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in ("A", "B", "B − A", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def add_pair(table: Table, label: str, row: Paired, problems: int, form: str, *, scale: float = 1.0) -> None:
    """A row of numbers in one format, times ``scale``."""
    numbers, signed = [scale * value for value in row[:5]], form.replace(":", ":+")
    table.add_row(
        label + (f", n = {row.n}" if row.n < problems else ""),
        *(form.format(value) for value in numbers[:2]),
        signed.format(numbers[2]),
        f"{signed.format(numbers[3])} to {signed.format(numbers[4])}",
        f"{row.p:.4f}",
    )
