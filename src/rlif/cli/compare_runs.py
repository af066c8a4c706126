"""`rlif compare A B` of two runs: recipes, courses, and their last evaluations paired by problem."""

import json
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlif.errors import RlifError, printable
from rlif.evals.tables import add_pair, comparison_table
from rlif.report.run_comparison import RunComparison, compare_runs, differing
from rlif.report.story import Trend
from rlif.utils.atomic_io import write_whole, writing
from rlif.utils.terminal import Console

_NAMES = {"right_and_formatted": "right and formatted, %", "right": "right, %", "formatted": "formatted, %"}


def run_compare_runs(folders: list[Path], out: Path | None) -> None:
    """Compare two runs, print the tables, and write them to ``out`` if given.

    Raises `RlifError` unless they are two.
    """
    if len(folders) != 2:
        raise RlifError(f"two runs can be compared, not {len(folders)}; rlif report shows more of them on one page")
    comparison = compare_runs(*folders)
    print_comparison(Console(), comparison)
    if out is not None:
        with writing(out, "choose another --out"):
            write_whole(out, json.dumps(comparison.as_json(), indent=1).encode())


def print_comparison(console: Console, comparison: RunComparison) -> None:
    """The tables, for a terminal of 80 columns."""
    for letter, name in zip("AB", comparison.names, strict=True):
        console.write_line(f"{letter}: {name}")
    for note in comparison.notes:
        console.write_line(f"note: {note}")
    console.write_line()
    if rows := differing(comparison):
        console.print(_table(("recipe", "A", "B"), rows))
    else:
        console.write_line(
            "their recipes do not differ" if not comparison.notes else "no difference of recipes is known"
        )
    if comparison.courses:
        console.write_line()
        cells = [tuple(row[key] for key in ("run", "decoding", "start", "best", "last")) for row in comparison.courses]
        console.print(_table(("run", "decoding", "start", "best @ step", "last @ step"), cells))
        console.print(Text("share right and formatted ± standard error; the best is of noisy evaluations", style="dim"))
    if comparison.trends:
        console.write_line()
        console.print(_table(("what needs no label", "A", "B"), [_trend(*one) for one in comparison.trends.items()]))
        console.print(Text("first → last: of evaluations and looks at the probe, else of training steps", style="dim"))
    for how, pairs in comparison.pairs.items():
        problems = max(pair.n for pair in pairs.values())
        a, b = comparison.last
        console.write_line()
        console.write_line(f"last evaluations, {how}, {problems} problems (A: step {a}, B: step {b})")
        table = comparison_table("")
        for name, pair in pairs.items():
            add_pair(table, _NAMES[name], pair, problems, "{:.1f}", scale=100.0)
        console.print(table)
    if comparison.pairs:
        console.print(Text("p decides; the interval shows how large, and is too narrow for few problems", style="dim"))


def _trend(name: str, pair: tuple[Trend | None, Trend | None]) -> tuple[str, str, str]:
    """A row: what it is, in which unit, and from where to where it went in each run."""
    unit = next((one.unit for one in pair if one), "")
    a, b = ("–" if one is None else str(one) for one in pair)
    return f"{name}, {unit}" if unit else name, a, b


def _table(heads: tuple[str, ...], rows: object) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=place == 0)
    for row in rows:  # type: ignore[attr-defined]
        table.add_row(*(printable(cell) for cell in row))
    return table
