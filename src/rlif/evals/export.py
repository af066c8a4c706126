"""Results of an evaluation for a document or a spreadsheet: a Markdown table a task, and one CSV of all numbers."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlif.errors import printable, with_error
from rlif.evals.tables import heading

RESULTS_MD, RESULTS_CSV = "results.md", "results.csv"

_PERCENT = ("right", "right_and_formatted", "formatted", "truncated")
_WITHOUT_LABELS = ("formatted", "truncated")
_NAMES = {"right_and_formatted": "right and formatted", "truncated": "cut off", "self_agreement": "self-agreement"}


def as_markdown(results: Mapping[str, Any]) -> str:
    """``results``, what results.json holds, as a table a task: scores in per cent ± one standard error."""
    parts = []
    for task, protocol in results["asked"]["tasks"].items():
        rows = [one for one in results["results"] if one["task"] == task]
        k = str(protocol["samples"])
        several = protocol["samples"] > 1
        judged = any(not _unknown(one["metrics"]["right"]) for one in rows)
        shares = _PERCENT if judged else (*(["self_agreement"] if several else []), *_WITHOUT_LABELS)
        several &= judged
        columns = ["model", *([f"pass@{k}", f"maj@{k}"] if several else []), *(_NAMES.get(n, n) for n in shares)]
        lines = [_row([*columns, "tokens"]), _row(["---", *["---:"] * len(columns)])]
        for one in rows:
            several_ks = [_percent(one[name][k]) for name in ("pass_at", "maj_at")] if several else []
            scores = [_percent(_estimate(one["metrics"], name)) for name in shares]
            length = _estimate(one["metrics"], "length")
            cells = [_cell(one["model"]), *several_ks, *scores, with_error(length["value"], length["stderr"], ".0f")]
            lines.append(_row(cells))
        said = printable(" ".join(heading(task, protocol).split()))
        parts.append(f"**{_cell(said)}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts) + "\nShares in %.\n"


def as_csv(results: Mapping[str, Any]) -> str:
    """``results`` as one line a model, task and number: model, task, number, value, stderr. Shares in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "task", "number", "value", "stderr"))
    for one in results["results"]:
        metrics = one["metrics"]
        named = {name: _estimate(metrics, name) for name in metrics if not name.endswith("_stderr")}
        named |= {f"pass@{k}": estimate for k, estimate in one["pass_at"].items()}
        named |= {f"maj@{k}": estimate for k, estimate in one["maj_at"].items()}
        for name, estimate in named.items():
            numbers = (estimate["value"], estimate["stderr"])
            writer.writerow((one["model"], one["task"], name, *("" if _unknown(n) else repr(n) for n in numbers)))
    return out.getvalue()


def _estimate(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"value": metrics[name], "stderr": metrics.get(f"{name}_stderr")}


def _unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def _percent(estimate: Mapping[str, Any]) -> str:
    if _unknown(estimate["value"]):
        return "–"
    error = estimate["stderr"]
    return with_error(100 * estimate["value"], None if error is None else 100 * error, ".1f")


def _cell(text: str) -> str:
    """Text that ends no cell, and is no markup."""
    return "".join(f"\\{c}" if c in "|*_`<[\\" else c for c in printable(text))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
