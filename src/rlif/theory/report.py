"""`rlif theory`: the statements tried, as a table, with the counter-examples and what did not come out as stated."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rlif.theory import STATEMENTS
from rlif.theory.statements import Result, check_all


def print_theory(*, seed: int, trials: int, plot: Path | None) -> bool:
    """Try every statement, print the table, draw the pictures if asked; returns whether all came out as stated."""
    started = time.monotonic()
    console = Console()
    results = check_all(STATEMENTS, trials=trials, seed=seed)
    console.print(_table(results))
    for line in counter_examples(results):
        console.print(line, highlight=False, soft_wrap=True)
    for result in results:
        if result.note:
            console.print(f"{result.statement.name}: {result.note}", highlight=False, soft_wrap=True)
    if plot is not None:
        from rlif.theory.plots import draw_all  # matplotlib takes a moment

        for path in draw_all(plot, seed=seed):
            console.print(f"figure: {path}", highlight=False, soft_wrap=True)
    wrong = [result for result in results if not result.as_stated]
    for result in wrong:
        low, high = result.statement.share
        stated = "every trial" if result.statement.theorem else f"{low:.0%} to {high:.0%} of the trials"
        console.print(
            f"NOT AS STATED: {result.statement.name} ({result.statement.formula}) should hold in {stated}, "
            f"held in {result.held:.1%} of {result.trials}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{len(results)} statements, {len(results) - len(wrong)} as stated; seed {seed}; "
        f"{time.monotonic() - started:.0f} s; docs/theory.md explains them",
        highlight=False,
    )
    return not wrong


def counter_examples(results: Sequence[Result]) -> list[str]:
    """One line for each statement that a trial broke."""
    return [
        f"counter-example to “{result.statement.name}”: {result.counter_example}"
        for result in results
        if result.counter_example is not None
    ]


def _table(results: Sequence[Result]) -> Table:
    title = "Theorems (≡) must hold in every trial; the others (≢) sound true and have a counter-example"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("", width=1)
    table.add_column("statement", no_wrap=True)
    table.add_column("trials", justify="right")
    table.add_column("holds, %", justify="right")
    table.add_column("deviation", justify="right")
    table.add_column("counter-example")
    table.add_column("as stated")
    for result in results:
        table.add_row(
            "≡" if result.statement.theorem else "≢",
            result.statement.name,
            f"{result.trials}",
            f"{100 * result.held:.1f}",
            f"{result.deviation:.1e}",
            "" if result.counter_example is None else "found",
            "yes" if result.as_stated else "NO",
        )
    return table
