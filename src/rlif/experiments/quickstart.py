"""The paper's experiment in miniature: five runs on the tiny models, one table, three figures.

The base model is trained on each internal reward and on the verifiable one, the instruct model on self-certainty; the
prompts, seeds and settings are the same. Runs go side by side, one CPU thread each, so that the numbers do not depend
on how many cores there are. A quickstart that was broken off goes on when it is started again in its folder.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.errors import Argument, RlifError
from rlif.experiments.pool import check_recipes, run_all
from rlif.recipes import find_recipe, load_recipe, parse_recipe
from rlif.runs.layout import METRICS_FILE
from rlif.utils.atomic_io import LOCK, locked
from rlif.utils.terminal import Console


@dataclass(frozen=True)
class Variant:
    """One of the runs: its folder, how it is called in table and figures, and what differs from recipes/tiny.yaml."""

    name: str
    label: str
    overrides: tuple[str, ...]


VARIANTS = (
    Variant("base-self-certainty", "base, self-certainty", ()),
    Variant("base-token-entropy", "base, token entropy", ("reward=token_entropy",)),
    Variant(
        "base-trajectory-entropy",
        "base, trajectory entropy",
        ("reward={name: trajectory_entropy, reduce: sum}",),
    ),
    Variant("base-verifiable", "base, verifiable (labels)", ("reward=verifiable",)),
    Variant("instruct-self-certainty", "instruct, self-certainty", ("policy.model=tiny-instruct",)),
)


def quickstart(out: Path, *, steps: int = 60, seed: int = 0, processes: int = 2) -> None:
    """Run all variants into ``out/<name>``, then print the table and write table.md, results.json and figures there.

    Raises `RlifError` if ``out`` holds anything but a quickstart of the same settings, which is gone on with;
    `Interrupted` after SIGINT or SIGTERM, each run's checkpoint written.
    """
    recipes = {variant.name: _recipe(variant, steps, seed) for variant in VARIANTS}
    _check_ours(out, recipes)
    console = Console()
    started = time.monotonic()
    with locked(out):
        labels = {variant.name: variant.label for variant in VARIANTS}
        again = f"rlif quickstart --out {out} --steps {steps}" + (f" --seed {seed}" if seed else "")
        run_all(recipes, out, processes=processes, console=console, go_on_with=again, labels=labels)
        _report(out, console)
    console.write_line(f"done in {time.monotonic() - started:.0f} s")


def _check_ours(out: Path, recipes: Mapping[str, Recipe]) -> None:
    if out.exists() and not out.is_dir():
        raise RlifError(f"{out}: a file, not a folder; choose another ", Argument("out"))
    ours = {LOCK, "figures", "results.json", "table.md", *recipes}
    if out.is_dir() and (strangers := sorted(path.name for path in out.iterdir() if path.name not in ours)):
        raise RlifError(f"{out}: not an empty folder, it holds {strangers[0]}; choose a new one for ", Argument("out"))
    check_recipes(recipes, out)


def _report(out: Path, console: Console) -> None:
    from rlif.report.figures import Curve, write_figures
    from rlif.report.summary import baseline_lines, explain, markdown, summarise, terminal_table
    from rlif.runs.history import read_metrics

    logs = {variant.label: read_metrics(out / variant.name / METRICS_FILE) for variant in VARIANTS}
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


def _finite(value: Any) -> Any:
    """Numbers that are not finite as null, such as the standard error of one problem: JSON knows no others."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _recipe(variant: Variant, steps: int, seed: int) -> Recipe:
    recipe = load_recipe(find_recipe(Path("tiny")), [*variant.overrides, f"steps={steps}", f"seed={seed}"])
    # The figures need only the evaluations; a demonstration need not leave a hundred megabytes behind.
    lean = {"checkpoint": {"every": 0, "keep_last": 1}, "log": {"rollouts_every": 10}}
    return parse_recipe(recipe.model_dump(mode="json") | lean)
