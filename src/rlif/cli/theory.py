"""`rlif theory`: the statements tried, as a table, with the counter-examples and what did not come out as stated.

`rlif theory --run DIR`: the entropy lemma held against a training run.
"""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rlif.analysis.correlation import correlation
from rlif.errors import RlifError
from rlif.runs.history import read_metrics
from rlif.runs.layout import METRICS_FILE
from rlif.theory import STATEMENTS
from rlif.theory.similarity import Kinship, kinships
from rlif.theory.statements import Result, check_all
from rlif.utils.terminal import Console

_COMPARED = 500  # policies whose gradients and flows are compared


def print_theory(*, seed: int, trials: int, plot: Path | None) -> bool:
    """Try every statement, print the table, draw the pictures if asked; returns whether all came out as stated."""
    started = time.monotonic()
    console = Console()
    results = check_all(STATEMENTS, trials=trials, seed=seed)
    console.print(_table(results))
    for line in counter_examples(results):
        console.write_line(line)
    for result in results:
        if result.note:
            console.write_line(f"{result.statement.name}: {result.note}")
    console.print(_kinship_table(kinships(policies=_COMPARED, seed=seed)))
    if plot is not None:
        from rlif.theory.figures import draw_all  # matplotlib takes a moment

        for path in draw_all(plot, seed=seed):
            console.write_line(f"figure: {path}")
    wrong = [result for result in results if not result.as_stated]
    for result in wrong:
        low, high = result.statement.share
        stated = "every trial" if result.statement.theorem else f"{low:.0%} to {high:.0%} of the trials"
        console.write_line(
            f"NOT AS STATED: {result.statement.name} ({result.statement.formula}) should hold in {stated}, "
            f"held in {result.held:.1%} of {result.trials}"
        )
    console.write_line(
        f"{len(results)} statements, {len(results) - len(wrong)} as stated; seed {seed}; "
        f"{time.monotonic() - started:.0f} s; docs/theory.md explains them"
    )
    return not wrong


def print_run(run: Path) -> None:
    """How well the entropy lemma foretold a training run, step by step. Raises `RlifError` without such metrics."""
    path = run / METRICS_FILE
    lines = read_metrics(path)
    found = correlation(lines)
    if found is None:
        raise RlifError(
            f"{path}: fewer than 4 steps with entropy/predicted; train with log.entropy_share and rollout.temperature "
            "above 0, rollout.top_p 1 and rollout.top_k 0"
        )
    keys = ("entropy/predicted", "entropy/measured")
    kept = [line for line in lines if all(math.isfinite(line.get(key, math.nan)) for key in keys)]
    predicted, measured = ([line[f"entropy/{key}"] for line in kept] for key in ("predicted", "measured"))
    spread = statistics.stdev(measured)
    errors = [line["entropy/predicted_stderr"] for line in kept if "entropy/predicted_stderr" in line]
    known = [error for error in errors if math.isfinite(error)]
    error = f"{statistics.fmean(known):.4f}" if known else "unknown (one row)"
    agree = sum((line["entropy/predicted"] < 0) == (line["entropy/measured"] < 0) for line in kept)
    falling = sum(line.get("entropy/advantage_covariance", math.nan) > 0 for line in kept)
    console = Console()
    for text in (
        f"{run}: change of entropy by each update, predicted −Cov(ln π, Δ ln π) against measured on the same states",
        f"correlation r = {found.r:.2f} (95 % interval {found.low:.2f} to {found.high:.2f} if steps were independent, "
        f"n = {found.n} steps)",
        f"from step to step (first differences, free of a shared trend) r = {found.of_differences:.2f}",
        f"a prediction's standard error {error}, spread of the measured changes {spread:.4f} nats",
        f"summed over the run: predicted {sum(predicted):+.4f}, measured {sum(measured):+.4f} nats a token",
        f"same sign in {agree} of {len(kept)} steps; Cov(ln π, A) above 0 in {falling} of {len(kept)}",
    ):
        console.write_line(text)


def counter_examples(results: Sequence[Result]) -> list[str]:
    """One line for each statement that a trial broke."""
    return [
        f"counter-example to “{result.statement.name}”: {result.counter_example}"
        for result in results
        if result.counter_example is not None
    ]


def _kinship_table(found: Sequence[Kinship]) -> Table:
    table = Table(
        title=f"How equivalent? Gradients of {_COMPARED} random policies, two choices among four", box=SIMPLE_HEAD
    )
    table.add_column("rewards", no_wrap=True)
    for column in ("cosine", "opposed, %", "same end, %"):
        table.add_column(column, justify="right")
    for each in found:
        names = " and ".join(name.replace("_", " ") for name in each.pair)
        numbers = f"{each.cosine:.2f}", f"{100 * each.opposed:.0f}", f"{100 * each.ends:.0f}"
        table.add_row(names, *numbers)
    return table


def _table(results: Sequence[Result]) -> Table:
    title = "Theorems (≡) must hold in every trial; the others (≢) sound true and have a counter-example"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("", width=1)
    table.add_column("statement", no_wrap=True)
    table.add_column("trials", justify="right")
    table.add_column("holds, %", justify="right")
    table.add_column("deviation", justify="right")
    table.add_column("broken")
    table.add_column("as stated")
    for result in results:
        table.add_row(
            "≡" if result.statement.theorem else "≢",
            result.statement.name,
            f"{result.trials}",
            f"{100 * result.held:.1f}",
            f"{result.deviation:.1e}",
            "" if result.counter_example is None else "by a trial",
            "yes" if result.as_stated else "NO",
        )
    return table
