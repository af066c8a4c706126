"""The paper's experiment in miniature: five runs on the tiny models, one table, three figures.

The base model is trained on each internal reward and on the verifiable one, the instruct model on self-certainty; the
prompts, seeds and settings are the same. Runs go side by side, one CPU thread each, so that the numbers do not depend
on how many cores there are.
"""

import json
import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rlif.config import Recipe, load_recipe, parse_recipe
from rlif.errors import RlifError
from rlif.recipes import find_recipe


@dataclass(frozen=True)
class Arm:
    """One of the runs: its folder, how it is called in table and figures, and what differs from recipes/tiny.yaml."""

    name: str
    label: str
    overrides: tuple[str, ...]


_STRETCH = 10  # steps

ARMS = (
    Arm("base-self-certainty", "base, self-certainty", ()),
    Arm("base-token-entropy", "base, token entropy", ("reward=token_entropy",)),
    Arm(
        "base-trajectory-entropy",
        "base, trajectory entropy",
        ("reward={name: trajectory_entropy, reduce: sum}",),
    ),
    Arm("base-verifiable", "base, verifiable (labels)", ("reward=verifiable",)),
    Arm("instruct-self-certainty", "instruct, self-certainty", ("policy.model=tiny-instruct",)),
)


def quickstart(out: Path, *, steps: int = 60, processes: int = 2) -> None:
    """Run all arms into ``out/<arm>``, then print the table and write table.md, results.json and the figures there.

    Raises `RlifError` if ``out`` is not new or empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RlifError(f"{out}: not an empty folder; choose a new one for --out")
    console = Console()
    started = time.monotonic()
    recipes = {arm.name: _recipe(arm, steps) for arm in ARMS}
    _run_all(recipes, out, processes, console)

    from rlif.report.figures import Curve, draw_all
    from rlif.runlog import read_metrics

    curves = [
        Curve(arm.label, [line for line in read_metrics(out / arm.name / "metrics.jsonl") if "eval/right" in line])
        for arm in ARMS
    ]
    results = [summarise(curve.label, curve.lines) for curve in curves]
    console.print(_table(results))
    meaning = explain(results)
    console.print(meaning + "\n", highlight=False)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(results) + "\n" + meaning + "\n", encoding="utf-8")
    for path in draw_all(curves, out / "figures"):
        console.print(f"figure: {path}", highlight=False, soft_wrap=True)
    console.print(f"table:  {out / 'table.md'}", highlight=False, soft_wrap=True)
    console.print(f"done in {time.monotonic() - started:.0f} s", highlight=False)


def summarise(label: str, lines: Sequence[Mapping[str, float | int]]) -> dict[str, Any]:
    """Start, best and last of one run's evaluations; ``score`` is the share right and formatted."""
    best = max(lines, key=lambda line: line["eval/right_and_formatted"])
    keys = {
        "score": "right_and_formatted",
        "stderr": "right_and_formatted_stderr",
        "right": "right",
        "formatted": "formatted",
        "entropy": "entropy",
        "transitional": "transitional_share",
        "length": "length",
    }
    points = {"start": lines[0], "best": best, "last": lines[-1]}
    return {
        "label": label,
        "n": int(lines[0]["eval/n"]),
        **{
            name: {"step": int(line["step"]), **{key: line[f"eval/{metric}"] for key, metric in keys.items()}}
            for name, line in points.items()
        },
    }


def explain(results: Sequence[Mapping[str, Any]]) -> str:
    """Two sentences made from the numbers: what became of each run, and what it was that changed."""
    fates = "; ".join(f"{result['label']}: {_fate(result)}" for result in results)
    first = results[0]
    start, best, last = first["start"], first["best"], first["last"]
    return (
        f"Right and formatted at T = 1 ({first['n']} problems, one run each, ± one standard error): {fates}. "
        f"With self-certainty on the base model the share of formatted answers went {start['formatted']:.2f} → "
        f"{best['formatted']:.2f} (best) → {last['formatted']:.2f} (last) and of answers right in any form "
        f"{start['right']:.2f} → {best['right']:.2f} → {last['right']:.2f}, while its entropy went "
        f"{start['entropy']:.3f} → {best['entropy']:.3f} → {last['entropy']:.3f}{_blindness(first)}."
    )


def _blindness(result: Mapping[str, Any]) -> str:
    """What a confidence that rose while the answers got worse tells, if that is what happened."""
    start, best, last = result["start"], result["best"], result["last"]
    surer = last["entropy"] < best["entropy"] < start["entropy"]
    if surer and _differs(best, last) and last["score"] < best["score"]:
        return ": the model grew ever surer, and its confidence does not tell the rise from the fall"
    return ""


def _fate(result: Mapping[str, Any]) -> str:
    start, best, last = result["start"], result["best"], result["last"]
    rose = _differs(best, start) and best["score"] > start["score"]
    fell = _differs(best, last) and last["score"] < best["score"]
    below = _differs(last, start) and last["score"] < start["score"]
    words = {
        (True, True): f"rose from {_pm(start)} to {_pm(best)} at step {best['step']}, then fell to {_pm(last)}",
        (True, False): f"rose from {_pm(start)} to {_pm(last)} and held",
        (False, True): f"did not rise above {_pm(start)} and fell to {_pm(last)}",
        (False, False): f"stayed near {_pm(start)} (last {_pm(last)})",
    }[rose, fell]
    return words + (", below its start" if rose and below else "")


def _differs(a: Mapping[str, float | int], b: Mapping[str, float | int]) -> bool:
    """More than two standard errors of the difference apart.

    Two biases oppose each other: both points share their problems, and the best one was chosen among several.
    """
    return abs(a["score"] - b["score"]) > 2.0 * math.hypot(a["stderr"], b["stderr"])


def _pm(point: Mapping[str, float | int]) -> str:
    return f"{point['score']:.2f} ± {point['stderr']:.2f}"


_COLUMNS = ("run", "start", "best @ step", "last", "right, any form", "formatted", "entropy", "transitional", "length")


def _cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    start, best, last = result["start"], result["best"], result["last"]

    def change(key: str, form: str) -> str:
        return f"{start[key]:{form}} → {last[key]:{form}}"

    return (
        result["label"],
        f"{start['score']:.3f}",
        f"{best['score']:.3f} @ {best['step']}",
        f"{last['score']:.3f}",
        change("right", ".2f"),
        change("formatted", ".2f"),
        change("entropy", ".3f"),
        change("transitional", ".2f"),
        change("length", ".0f"),
    )


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table as markdown."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(result) for result in results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The same for a terminal of 80 columns: no leading zeros, two decimals (the error is .02), short headers."""
    title = f"right and formatted answers, {results[0]['n']} problems, T = 1"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    headers = ("run", "start", "best@", "last", "right", "format", "entropy", "trans-\nitional", "len.")
    for header in headers:
        table.add_column(header, justify="left" if header == "run" else "right", no_wrap=True)
    for result in results:
        start, best, last = ({**result[name]} for name in ("start", "best", "last"))

        def change(key: str, form: str, start: Any = start, last: Any = last) -> str:
            return f"{start[key]:{form}}→{last[key]:{form}}"

        row = (
            result["label"].replace(",", "").replace(" (labels)", ""),
            f"{start['score']:.2f}",
            f"{best['score']:.2f}@{best['step']}",
            f"{last['score']:.2f}",
            *(change(key, ".2f") for key in ("right", "formatted", "entropy", "transitional")),
            change("length", ".0f"),
        )
        table.add_row(row[0], *(cell.replace("0.", ".") for cell in row[1:]))
    return table


def _recipe(arm: Arm, steps: int) -> Recipe:
    recipe = load_recipe(find_recipe(Path("tiny")), [*arm.overrides, f"steps={steps}"])
    # The figures need only the evaluations; a demonstration need not leave a hundred megabytes behind.
    lean = {"checkpoint": {"every": 0, "keep_last": 1}, "log": {"rollouts_every": 10}}
    return parse_recipe(recipe.model_dump(mode="json") | lean)


def _run_all(recipes: Mapping[str, Recipe], out: Path, processes: int, console: Console) -> None:
    """Run every arm, a stretch of each in turn.

    Five whole runs on two cores would leave one core idle during the fifth. A paused and resumed run equals one that
    was never paused, so the cut changes nothing.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(processes, mp_context=_workers(), initializer=_one_thread) as pool,
    ):

        def submit(name: str, until: int) -> Future[int]:
            return pool.submit(_stretch, recipes[name], out / name, until)

        bars = {arm.name: progress.add_task(arm.label, total=recipes[arm.name].steps) for arm in ARMS}
        running = {submit(name, _STRETCH): name for name in recipes}
        try:
            while running:
                for stretch in wait(running, return_when=FIRST_COMPLETED).done:
                    name, step = running.pop(stretch), stretch.result()
                    progress.update(bars[name], completed=step)
                    if step < recipes[name].steps:
                        running[submit(name, step + _STRETCH)] = name
        except BrokenProcessPool as error:
            raise RlifError(f"{out}: a run was killed, for lack of memory perhaps; try --processes 1") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _stretch(recipe: Recipe, out: Path, until: int) -> int:
    """Start a run or go on with it; returns the step it is at."""
    from rlif import train

    if out.exists():
        train.resume(out, until=until)
    else:
        train.train(recipe, out, until=until)
    return min(until, recipe.steps)


def _workers() -> multiprocessing.context.BaseContext:
    """Processes that share one import of torch and transformers, where the system can fork; it is seconds each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlif.train", "transformers.models.llama.modeling_llama"])
    return context


def _one_thread() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # the tiny models are in the package
    import torch

    torch.set_num_threads(1)
