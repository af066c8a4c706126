"""Studies: the cells of a grid become runs, side by side, and all their evaluations one table.

A study's folder holds any number of grids:

    grids/NAME.json     each grid that was run here, and its cells
    runs/CELL/          an ordinary run folder each; cells of equal settings share one
    failed/CELL.json    why a cell could not be done
    results.parquet     one row a grid, cell and evaluated step (`collect`)

Whatever was done is not done again, so a study that was stopped or killed is started again by the same command; cells
that failed are tried again. The table is made from files alone, and holds no time, speed
or memory. (Other hardware or other versions round otherwise, so that their numbers may differ.)
"""

import json
import shutil
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlif.config import MergedModel, PolicyConfig, Recipe
from rlif.errors import Argument, RlifError, named
from rlif.experiments.budget import side_by_side
from rlif.experiments.grid import Cell, Grid, cells, choose, find_grid, load_grid
from rlif.experiments.pool import check_recipes, run_all
from rlif.runs.history import read_metrics
from rlif.runs.layout import FINAL, METRICS_FILE, RECIPE, ROLLOUTS, step_name
from rlif.utils.atomic_io import LOCK, locked, make_folder, one_line, write_whole
from rlif.utils.terminal import Console
from rlif.utils.validation import explained

GRIDS, RUNS, FAILED, RESULTS = "grids", "runs", "failed", "results.parquet"
_OURS = {LOCK, GRIDS, RUNS, FAILED, RESULTS, "findings.md", "findings.json"}
_TEXTS = ("grid", "cell", "model", "reward", "model_kind", "reward_kind", "status", "error")
_OF_THE_MACHINE = ("time", "time/", "tokens_per_second/", "memory/")
"""Metrics that differ between two runs of the same cell, or begin so."""


@dataclass(frozen=True)
class Plan:
    """What is to be done: the grid's name, its cells, and those of them that were chosen."""

    name: str
    grid: Grid
    cells: tuple[Cell, ...]
    chosen: tuple[Cell, ...]


def plan_study(grid: Path, *, only: Sequence[str] = (), where: Mapping[str, Sequence[str]] | None = None) -> Plan:
    """Read a grid (a file, or the name of a shipped one) and choose cells of it.

    Raises `RlifError` for a mistake in the grid, and if ``only`` (patterns of cell names) and ``where`` (axis → labels)
    leave no cell.
    """
    path = find_grid(grid)
    loaded = load_grid(path)
    all_cells = cells(loaded)
    return Plan(path.stem, loaded, all_cells, tuple(choose(all_cells, only=only, where=where or {})))


def missing_models(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Models that cannot be had, as far as that shows without loading them, each with the reason."""
    from rlif.model.loading import check_source

    models = [recipe.policy.model for recipe in recipes]
    merges = [(model.merge.base, model.merge.instruct) for model in models if isinstance(model, MergedModel)]
    names = [model for model in models if isinstance(model, str)] + [side for sides in merges for side in sides]
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            with named({"model": "policy.model"}):
                check_source(PolicyConfig(model=name))
        except RlifError as error:
            found[name] = str(error)
    return found


def run_study(plan: Plan, out: Path, *, processes: int | None, console: Console, go_on_with: str) -> None:
    """Run the chosen cells of a plan into ``out``, those side by side that cores and memory allow, and collect.

    Args:
        processes: cells side by side; None: as `rlif.experiments.budget` finds.
        go_on_with: the command that goes on, told to who interrupts it.

    A cell that fails is told of in one line and recorded in ``failed/``. Raises `RlifError` if ``out`` is no folder of
    studies, `Interrupted` after SIGINT or SIGTERM, each run's checkpoint written.
    """
    _check_ours(out)
    with locked(out):
        folders = _record(plan, out)
        recipes = {folders[cell.digest]: cell.recipe for cell in plan.chosen}
        check_recipes(recipes, out / RUNS)
        if before := [name for name in recipes if _failure(out, name)]:
            console.write_line(f"tried again, having failed before: {', '.join(before)}")

        def on_error(name: str, error: Exception) -> None:
            message = _note_failure(out, name, error)
            console.write_line(f"{name}: failed: {message}")

        side = processes or side_by_side(recipes.values(), out / RUNS)
        try:
            run_all(recipes, out / RUNS, processes=side, console=console, go_on_with=go_on_with, on_error=on_error)
        finally:
            for name in recipes:
                if (out / RUNS / name / FINAL).is_dir():
                    (out / FAILED / f"{name}.json").unlink(missing_ok=True)
                    if not plan.grid.keep_checkpoints:
                        shutil.rmtree(out / RUNS / name / "checkpoints", ignore_errors=True)
            write_results(out)


def _check_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RlifError(f"{out}: a file, not a folder; choose another ", Argument("out"))
    if not out.is_dir():
        return
    names = (path.name for path in out.iterdir())  # a dot: what a killed write has left, or a desktop's own files
    if strangers := sorted(name for name in names if name not in _OURS and not name.startswith(".")):
        raise RlifError(f"{out}: not a folder of studies, it holds {strangers[0]}; choose a new ", Argument("out"))


def _record(plan: Plan, out: Path) -> dict[str, str]:
    """Write down what the grid means here; returns the run's folder for each digest, an older one if there is one."""
    for name in (GRIDS, RUNS, FAILED):
        make_folder(out / name)
    known = {path.name[-8:]: path.name for path in sorted((out / RUNS).iterdir()) if path.is_dir()}
    for path in sorted((out / GRIDS).glob("*.json")):  # also of cells that another grid has named and not begun
        known = {entry["cell"][-8:]: entry["cell"] for entry in _read_grid(path)} | known
    folders: dict[str, str] = {}
    for cell in plan.cells:
        folders.setdefault(cell.digest, known.get(cell.digest[:8], cell.name))
    record = {
        "grid": plan.grid.model_dump(mode="json"),
        "cells": [{"cell": folders[cell.digest], **_facts(cell)} for cell in plan.cells],
    }
    write_whole(out / GRIDS / f"{plan.name}.json", (json.dumps(record, indent=1) + "\n").encode())
    return folders


def _facts(cell: Cell) -> dict[str, Any]:
    facts = {"model_kind": cell.model_kind, "merge_ratio": cell.merge_ratio, "reward_kind": cell.reward_kind}
    return {"axes": {**cell.axes, "seed": cell.recipe.seed}, **facts}


class _Axes(BaseModel):
    """Labels by axis; of the seed the number."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str]
    model: str
    reward: str
    seed: int


class _Cell(BaseModel):
    """What the record of a grid says of a cell."""

    model_config = ConfigDict(strict=True)
    cell: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
    axes: _Axes
    model_kind: str
    merge_ratio: float | None
    reward_kind: str


class _Record(BaseModel):
    cells: list[_Cell]


def _read_grid(path: Path) -> list[dict[str, Any]]:
    try:
        return [cell.model_dump() for cell in _Record.model_validate_json(path.read_bytes()).cells]
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, first['loc']))}: {explained(first)}" if first else one_line(error)
        raise RlifError(f"{path}: not the record of a grid ({said}); run the study again to write it anew") from error


def _failure(out: Path, name: str) -> str | None:
    """Why a cell failed, None if it has not."""
    path = out / FAILED / f"{name}.json"
    try:
        return str(json.loads(path.read_text("utf-8"))["error"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "unknown: its record is damaged"


def _note_failure(out: Path, name: str, error: Exception) -> str:
    expected = isinstance(error, RlifError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    record = {"error": message, **({} if expected else {"traceback": "".join(traceback.format_exception(error))})}
    write_whole(out / FAILED / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    return message


def status(out: Path, name: str) -> str:
    """finished, failed, begun or waiting."""
    if (out / RUNS / name / FINAL).is_dir():
        return "finished"
    if _failure(out, name) is not None:
        return "failed"
    return "begun" if (out / RUNS / name / RECIPE).is_file() else "waiting"


def collect(out: Path) -> Any:
    """All grids of a folder as one pyarrow table: a row for each cell's evaluated steps, in order.

    Columns: grid, cell (its run's folder), the grid's axes (of which seed is a number), model_kind (base, merged,
    instruct), merge_ratio, reward_kind (internal, verifiable, control), status, error, step, every metric of
    metrics.jsonl that does not measure the machine, and the correlations of the signals where rollouts were written
    (`rlif.experiments.signal_correlations`). A cell without an evaluation has one row, its metrics null.

    Raises `RlifError` if ``out`` holds no study or a run's metrics are damaged.
    """
    import pyarrow as pa

    records = {path.stem: _read_grid(path) for path in sorted((out / GRIDS).glob("*.json"))}
    if not records:
        raise RlifError(f"{out}: holds no study; start one with rlif study GRID --out {out}")
    rows: list[dict[str, Any]] = []
    for grid, entries in records.items():
        for entry in sorted(entries, key=lambda entry: (entry["cell"], json.dumps(entry["axes"]))):
            rows += _rows(out, grid, entry)
    axes = {axis for entries in records.values() for entry in entries for axis in entry["axes"]}
    texts = [*_TEXTS, *sorted(axes - {*_TEXTS, "seed"})]
    numbers = sorted({key for row in rows for key in row if key not in (*texts, "seed", "step")})
    types = {**dict.fromkeys(texts, pa.string()), "seed": pa.int64(), "step": pa.int64()}
    types |= dict.fromkeys(numbers, pa.float64())
    return pa.table({name: pa.array([row.get(name) for row in rows], type_) for name, type_ in types.items()})


def _rows(out: Path, grid: str, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    name = entry["cell"]
    kinds = {key: entry[key] for key in ("model_kind", "merge_ratio", "reward_kind")}
    cell = {"grid": grid, "cell": name, **entry["axes"], **kinds}
    cell |= {"status": status(out, name), "error": _failure(out, name)}
    lines = _evaluations(out / RUNS / name)
    yield from ({**line, **cell, "error": cell["error"] or line.get("error")} for line in lines)
    if not lines:
        yield {**cell, "step": None}


def _evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluated steps of a run, and its last."""
    if not (run / METRICS_FILE).is_file():
        return []
    lines = read_metrics(run / METRICS_FILE)
    found = []
    for line in lines:
        if line is not lines[-1] and not any(key.startswith("eval/") for key in line):
            continue
        kept = {key: value for key, value in line.items() if not _is_of_the_machine(key)}
        found.append({**kept, "error": None, **_correlations(run, int(line["step"]))})
    return found


def _is_of_the_machine(key: str) -> bool:
    return any(key == part or (part.endswith("/") and key.startswith(part)) for part in _OF_THE_MACHINE)


def _correlations(run: Path, step: int) -> dict[str, Any]:
    """None if the step's rollouts were not written; an ``error`` in their place if the table is damaged."""
    from pyarrow import ArrowException

    from rlif.experiments.signal_correlations import signal_correlations

    path = run / ROLLOUTS / f"{step_name(step)}.parquet"
    try:
        return signal_correlations(path) if path.is_file() else {}
    except (ArrowException, OSError, ValueError, KeyError) as error:
        return {"error": f"{path.name} of its rollouts cannot be read: {error}"}


def write_results(out: Path) -> Path:
    """Write results.parquet anew from the files of the study; returns its path."""
    from rlif.utils.parquet_files import parquet_bytes

    table = collect(out)
    write_whole(out / RESULTS, parquet_bytes({name: table[name] for name in table.column_names}, {}))
    return out / RESULTS
