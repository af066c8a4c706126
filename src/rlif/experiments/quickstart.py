"""The paper's experiment in miniature: five runs on the tiny models, one table, four figures, a page.

The base model is trained on each internal reward and on the verifiable one, the instruct model on self-certainty; the
prompts, seeds and settings are the same. Runs go side by side, one CPU thread each, so that the numbers do not depend
on how many cores there are. A quickstart that was broken off goes on when it is started again in its folder.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.errors import Argument, RlifError
from rlif.experiments.grid import combinations, find_grid, load_grid, slug
from rlif.experiments.pool import check_recipes, run_all
from rlif.runs.layout import METRICS_FILE
from rlif.utils.atomic_io import LOCK, locked
from rlif.utils.terminal import Console

PAGE = "report.html"
"""The page of all runs, in the quickstart's folder."""


@dataclass(frozen=True)
class Variant:
    """One of the runs: its folder, how it is called in table and figures, and its recipe."""

    name: str
    label: str
    recipe: Recipe


def variants(steps: int = 60, seed: int = 0) -> tuple[Variant, ...]:
    """The cells of grids/quickstart.yaml, each of so many steps, with this seed."""
    grid = load_grid(find_grid(Path("quickstart")))
    found = []
    changed = {"set": {**grid.set, "steps": steps}, "seeds": (seed,)}
    for labels, recipe in combinations(grid.model_copy(update=changed)):
        model, reward = labels["model"], labels["reward"]
        found.append(Variant(slug(f"{model}-{reward}"), f"{model}, {reward}", recipe))
    return tuple(found)


def quickstart(out: Path, *, steps: int = 60, seed: int = 0, processes: int = 2, quiet: bool = False) -> None:
    """Run all variants into ``out/<name>``, then print the table and write table.md, results.json, figures and the page
    (report.html) there; ``quiet``: without showing how far they are.

    Raises `RlifError` if ``out`` holds anything but a quickstart of the same settings, which is gone on with;
    `Interrupted` after SIGINT or SIGTERM, each run's checkpoint written.
    """
    runs = variants(steps, seed)
    recipes = {variant.name: variant.recipe for variant in runs}
    _check_ours(out, recipes)
    console = Console()
    started = time.monotonic()
    with locked(out):
        labels = {variant.name: variant.label for variant in runs}
        again = f"rlif quickstart --out {out} --steps {steps}" + (f" --seed {seed}" if seed else "")
        shown = Console(quiet=True) if quiet else console
        run_all(recipes, out, processes=processes, console=shown, go_on_with=again, labels=labels)
        _report(runs, out, console)
        size = _write_page(runs, out / PAGE)
    console.write_line(f"done in {time.monotonic() - started:.0f} s")
    console.write_line(f"all of it as one page ({size / 1e6:.1f} MB, opens in any browser): {out / PAGE}")


def _check_ours(out: Path, recipes: Mapping[str, Recipe]) -> None:
    if out.exists() and not out.is_dir():
        raise RlifError(f"{out}: a file, not a folder; choose another ", Argument("out"))
    ours = {LOCK, "figures", "results.json", "table.md", PAGE, *recipes}
    if out.is_dir() and (strangers := sorted(path.name for path in out.iterdir() if path.name not in ours)):
        raise RlifError(f"{out}: not an empty folder, it holds {strangers[0]}; choose a new one for ", Argument("out"))
    check_recipes(recipes, out)


def _report(runs: Sequence[Variant], out: Path, console: Console) -> None:
    from rlif.report.figures import Curve, write_figures
    from rlif.report.summary import baseline_lines, explain, markdown, summarise, terminal_table
    from rlif.runs.history import read_metrics

    logs = {variant.label: read_metrics(out / variant.name / METRICS_FILE) for variant in runs}
    curves = [Curve(label, [line for line in log if "eval/right" in line]) for label, log in logs.items()]
    results = [summarise(curve.label, curve.lines) for curve in curves]
    console.print(terminal_table(results))
    console.print("\n".join(baseline_lines(results)) + "\n")
    meaning = explain(results)
    console.print(meaning + "\n")
    (out / "results.json").write_text(json.dumps(_finite(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(results) + "\n" + meaning + "\n", encoding="utf-8")
    for path in write_figures(curves, out / "figures"):
        console.write_line(f"figure: {path}")
    console.write_line(f"table:  {out / 'table.md'}")


def _write_page(runs: Sequence[Variant], page: Path) -> int:
    """The page of all runs, called as in the table; returns its size in bytes."""
    from rlif.report.page import Subjects, write_page
    from rlif.report.run_record import read_run

    return write_page(Subjects(tuple(read_run(page.parent / variant.name, variant.label) for variant in runs)), page)


def _finite(value: Any) -> Any:
    """Numbers that are not finite as null, such as the standard error of one problem: JSON knows no others."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
