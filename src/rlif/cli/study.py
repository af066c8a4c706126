"""`rlif study`: what a grid will do, what became of its cells, and what that says of the paper's claims."""

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rlif.config import Recipe
from rlif.errors import RlifError, named
from rlif.experiments.budget import seconds, side_by_side, tokens_at_most
from rlif.experiments.courses import SCORE, scored
from rlif.experiments.grid import shipped_grids
from rlif.experiments.study import GRIDS, RESULTS, RUNS, Plan, collect, missing_models, plan_study, run_study, status
from rlif.utils.durations import duration
from rlif.utils.terminal import Console

_OPTIONS = {"out": "--out", "processes": "--processes"}
_EVERY_KIND = ("finished", "failed", "begun", "waiting")


def print_plan(grid: Path, out: Path | None, only: Sequence[str], where: Sequence[str]) -> None:
    """The cells of a grid that were chosen, their tokens and the time they will take. Nothing is written.

    Raises `RlifError` in the end if models are not there.
    """
    console, plan = Console(), plan_study(grid, only=only, where=_labels(where))
    done = {cell.digest: _state(out, cell.digest) for cell in plan.chosen}
    table = _table("cell", "tokens", "state", texts=("cell",))
    for cell in plan.chosen:
        table.add_row(cell.name, f"{tokens_at_most(cell.recipe):,}", done[cell.digest])
    console.print(table)
    for axis in plan.chosen[0].axes:
        labels = dict.fromkeys(cell.axes[axis] for cell in plan.chosen)
        console.write_line(f"{axis}: {', '.join(labels)}")
    ahead = [
        cell.recipe for cell in {cell.digest: cell for cell in plan.chosen}.values() if done[cell.digest] != "finished"
    ]
    shared = len(plan.chosen) - len(done)
    console.write_line(
        f"{len(plan.chosen)} of {len(plan.cells)} cells of {plan.name}"
        + (f", {shared} of settings that another one has" if shared else "")
        + f"; {len(ahead)} runs to do, {sum(map(tokens_at_most, ahead)):,} completion tokens at most"
    )
    console.write_line(_time_of(ahead, out / RUNS if out is not None else Path("no folder yet")))
    if lacking := missing_models(ahead):
        for why in lacking.values():
            console.write_line(why)
        raise RlifError(f"{', '.join(lacking)}: not to be had, so that every cell of it would fail; see above")


def _time_of(ahead: Sequence[Recipe], runs: Path) -> str:
    if not ahead:
        return "time: none, all of them are finished"
    estimate, side = seconds(ahead, runs), side_by_side(ahead, runs)
    if estimate is None:
        return "time: not known before a first cell is finished; run one with --only"
    left = estimate[0] / side
    shown = "less than a minute" if left < 60 else f"about {duration(left)}"
    return f"time: {shown} with {side} side by side ({estimate[1]})"


def _table(*columns: str, texts: Sequence[str]) -> Table:
    """For 80 columns: what is too wide for them is a text that takes two lines; no number is cut."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        text = column in texts
        table.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def _state(out: Path | None, digest: str) -> str:
    found = sorted((out / RUNS).glob(f"*-{digest[:8]}")) if out is not None else []
    return status(out, found[0].name) if out is not None and found else "waiting"


def print_study(
    grid: Path, out: Path, only: Sequence[str], where: Sequence[str], *, processes: int | None, quiet: bool = False
) -> None:
    """Run a study and print what became of its cells; ``quiet``: that alone. Raises `RlifError` in the end if a cell
    failed."""
    console, started = Console(), time.monotonic()
    plan = plan_study(grid, only=only, where=_labels(where))
    words = [*(f"--only {shlex.quote(each)}" for each in only), *(f"--where {shlex.quote(each)}" for each in where)]
    again = " ".join([f"rlif study {shlex.quote(str(grid))} --out {shlex.quote(str(out))}", *words])
    with named(_OPTIONS):
        shown = Console(quiet=True) if quiet else console
        run_study(plan, out, processes=processes, console=shown, go_on_with=again)
    rows = [row for row in collect(out).to_pylist() if row["grid"] == plan.name]
    console.print(_summary(plan, rows))
    for name, error in {row["cell"]: row["error"] for row in rows if row["status"] == "failed"}.items():
        console.write_line(f"{name}: failed: {error}")
    states = {row["cell"]: row["status"] for row in rows}
    counts = {state: list(states.values()).count(state) for state in _EVERY_KIND}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    console.write_line(f"{told}, {duration(time.monotonic() - started)}; table: {out / RESULTS}")
    console.write_line(f"what they say of the paper's claims: rlif study {shlex.quote(str(out))} --findings")
    if counts["failed"]:
        failed = f"{counts['failed']} of {len(states)} cells failed, see {out / 'failed'}"
        raise RlifError(f"{failed}; the same command tries again")


def _summary(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a cell that has begun: right and formatted at the start, at its best and in the end."""
    axes = list(plan.cells[0].axes)
    table = _table(*axes, "start", "best@", "last", "entropy", "state", texts=axes)
    by_cell: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault(tuple(str(row[axis]) for axis in axes), []).append(row)
    for labels, lines in by_cell.items():
        evaluated = [line for line in lines if scored(line)]
        state = lines[0]["status"]
        if not evaluated:
            if state != "waiting":
                table.add_row(*labels, "", "", "", "", state)
            continue
        best = max(evaluated, key=lambda line: float(line[SCORE]))
        first, last = evaluated[0], evaluated[-1]
        entropy = f"{first['eval/entropy']:.3f}→{last['eval/entropy']:.3f}"
        numbers = (f"{first[SCORE]:.3f}", f"{best[SCORE]:.3f}@{best['step']}", f"{last[SCORE]:.3f}", entropy)
        table.add_row(*labels, *(re.sub(r"\b0\.", ".", number) for number in numbers), state)
    return table


def print_findings(out: Path) -> None:
    """Each claim with its test and verdict, for every grid of a folder; writes findings.md and findings.json there."""
    from rlif.experiments.findings import basis, findings, write_findings

    if not (out / GRIDS).is_dir() and (out.is_file() or str(out) in shipped_grids()):
        raise RlifError(
            f"{out}: a grid, not the folder that its study was written into; give that one: rlif study DIR --findings"
        )
    console, rows = Console(), collect(out).to_pylist()
    grids = {grid: [row for row in rows if row["grid"] == grid] for grid in sorted({row["grid"] for row in rows})}
    found = {grid: findings(own) for grid, own in grids.items()}
    bases = {grid: basis(own) for grid, own in grids.items()}
    for grid, claims in found.items():
        shown = _table("claim", "effect", "95 % interval", "n", "verdict", texts=("claim",))
        for claim in claims:
            shown.add_row(claim.claim, claim.effect_text, claim.interval_text, str(claim.n), claim.verdict)
        console.write_line(f"{grid}: {bases[grid]}")
        console.print(shown)
        undecided = [f"- {claim.claim}: {claim.why}" for claim in claims if claim.why]
        for line in ["why undecided:", *undecided] if undecided else []:
            console.write_line(line)
    for path in write_findings(found, out, bases):
        console.write_line(f"written: {path}")


def _labels(where: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in where:
        axis, separator, labels = text.partition("=")
        if not separator or not axis or not labels:
            raise RlifError(f"--where {text!r}: write axis=label, for example reward=verifiable")
        found.setdefault(axis, []).extend(labels.split(","))
    return found
