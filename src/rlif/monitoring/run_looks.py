"""A run looked at from outside, through what it has written: records for the guards, without a probe or a label.

A look takes the newest logged steps that hold 32 prompts together, as often as these last, but no more than 20 times in
a run; the first takes the first such steps. When the looks come is a function of the recipe, so that a run which is
followed and one which is read afterwards are looked at alike.

Looks hold different prompts, in an order that was drawn at random. If nothing has changed, the prompt at one place of a
look and that at the same place of another are as likely the other way round: the signs of their differences are fair
coins, and the test of `rlif.monitoring.sequential` is exact, as it is between two looks of a probe.

Without rollouts the log alone is read. A step counts as a prompt then, and 20 of them make a look; what was answered,
and whether it repeats itself, is not known. Free of torch.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rlif.analysis.text import loops
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.grading.equivalence import canonical
from rlif.monitoring.record import ProbeRecord
from rlif.recipes import load_recipe
from rlif.runs.history import read_metrics
from rlif.runs.layout import FINAL, METRICS_FILE, ROLLOUTS, recipe_path, step_name
from rlif.utils.atomic_io import in_use, one_line
from rlif.utils.parquet_files import read_parquet

PROMPTS, LOG_STEPS = 32, 20
"""What a look is made of: prompts, or steps of the log. At the twentieth look 18 of either can alarm if all fall."""
LOOKS = 20
"""Most looks in a run, the first left out."""

State = Literal["running", "stopped", "finished"]
"""``stopped``: no process is at work, and the run has not come to its end."""
Source = Literal["rollouts", "log"]
Line = Mapping[str, float | int]


class Unit(NamedTuple):
    """A prompt with its completions, or where there are no rollouts a step with all of them; numbers are sums.

    ``nats`` is entropy, ``ended`` counts completions that were not cut off. ``answers``, one a completion (a key of
    `canonical`, None if there was none to read), and ``not_looping`` are None where they are not known.
    """

    samples: int
    tokens: float
    nats: float
    ended: int
    answers: tuple[str | None, ...] | None = None
    not_looping: int | None = None


class RunLook(NamedTuple):
    """One look: its record, the answers by prompt (none where they are not known), and the log of its steps."""

    record: ProbeRecord
    answers: tuple[tuple[str | None, ...], ...]
    lines: tuple[Line, ...]


class Seen(NamedTuple):
    """What a run shows: ``source`` says what its looks are made of, ``due`` is the first step that has a look."""

    state: State
    lines: tuple[Line, ...]
    looks: tuple[RunLook, ...]
    source: Source
    due: int


class RunReader:
    """Reads a run's folder again and again, its rollouts once. Raises `RlifError` if the folder holds no run."""

    def __init__(self, run: Path) -> None:
        self.run, self.recipe = run, load_recipe(recipe_path(run))
        self._units: dict[Path, tuple[tuple[int, int], tuple[Unit, ...]]] = {}

    def read(self) -> Seen:
        """The run as it stands. A step that is being written is not there yet.

        Raises `RlifError` with the file for a log or rollouts that are damaged.
        """
        state = self._state()  # before the log: of a run that has ended all of it is read
        lines = read_metrics(self.run / METRICS_FILE)
        trained = {int(line["step"]): line for line in lines if line["step"] >= 1}
        steps, every, source = self._logged(trained)
        units = self.recipe.rollout.prompts if source == "rollouts" else 1
        width = math.ceil((PROMPTS if source == "rollouts" else LOG_STEPS) / units)
        ends = looks_due(len(steps), self.recipe.steps // every, width, over=state == "finished")
        looks = [self._look(steps[end - width : end], trained, source) for end in ends]
        return Seen(state, tuple(lines), tuple(looks), source, width * every)

    def _logged(self, trained: Collection[int]) -> tuple[list[int], int, Source]:
        """The steps that looks are made of, every how many there is one, and what is read of them: rollouts, unless
        none are written or all were taken away."""
        every = self.recipe.log.rollouts_every
        due = [step for step in trained if every and step % every == 0]
        there = [step for step in due if self._path(step).is_file()]
        return (there, every, "rollouts") if every and len(there) >= min(len(due), 1) else (list(trained), 1, "log")

    def _state(self) -> State:
        if (self.run / FINAL).is_dir():
            return "finished"
        return "running" if in_use(self.run) else "stopped"

    def _path(self, step: int) -> Path:
        return self.run / ROLLOUTS / f"{step_name(step)}.parquet"

    def _look(self, steps: Sequence[int], trained: Mapping[int, Line], source: Source) -> RunLook:
        if source == "log":
            rows = self.recipe.rollout.prompts * self.recipe.rollout.group_size
            units = [_unit_of_line(trained[step], rows, self.run / METRICS_FILE) for step in steps]
        else:
            units = [unit for step in steps for unit in self._units_of(self._path(step))][:PROMPTS]
        lines = tuple(line for step, line in trained.items() if steps[0] <= step <= steps[-1])
        answers = tuple(unit.answers for unit in units if unit.answers is not None)
        return RunLook(record_of(steps[-1], units), answers, lines)

    def _units_of(self, path: Path) -> tuple[Unit, ...]:
        from pyarrow import ArrowException

        try:
            found = path.stat()
            mark, (known, units) = (found.st_mtime_ns, found.st_size), self._units.get(path, ((0, 0), ()))
            if mark != known:
                units = read_units(path, self.recipe)
                self._units[path] = mark, units
            return units
        except (ArrowException, OSError, ValueError, KeyError) as error:
            raise RlifError(f"{path}: cannot be read ({one_line(error)}); restore it, or take it away") from error


def looks_due(done: int, all_of_them: int, width: int, *, over: bool) -> list[int]:
    """After how many logged steps there are looks, of those that are ``done``; each takes the last ``width`` of them.

    ``all_of_them``: as many as the whole run logs. None shares a step with another one. If the run is ``over`` its last
    steps have a look, too, if they are enough.
    """
    every = max(width, math.ceil(all_of_them / LOOKS))
    ends = [width, *(end for end in range(every, done + 1, every) if end >= 2 * width)]
    if over and done - ends[-1] >= width:
        ends.append(done)
    return [end for end in ends if end <= done]


def read_units(path: Path, recipe: Recipe) -> tuple[Unit, ...]:
    """The first `PROMPTS` prompts of a table of rollouts (`rlif.runs.run_log`), in its order.

    Raises ValueError for a table that is not of this recipe, else as `read_parquet`.
    """
    table = read_parquet(path, ("completion", "stop_reason", "extracted", "entropy"))
    size, prompts = recipe.rollout.group_size, recipe.rollout.prompts
    if table.num_rows != prompts * size:
        raise ValueError(f"{table.num_rows} rows, where the recipe has {prompts} prompts of {size}")
    table = table.slice(0, min(PROMPTS, prompts) * size)
    tokens, nats = _sums(table["entropy"])
    texts, reasons, extracted = (table[name].to_pylist() for name in ("completion", "stop_reason", "extracted"))
    groups = [slice(first, first + size) for first in range(0, table.num_rows, size)]
    return tuple(
        Unit(
            size,
            float(tokens[group].sum()),
            float(nats[group].sum()),
            sum(reason != "length" for reason in reasons[group]),
            tuple(canonical(answer) if answer else None for answer in extracted[group]),
            sum(not loops(text) for text in texts[group]),
        )
        for group in groups
    )


def _sums(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of a column of lists: how many numbers it has, and their sum."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return lengths, np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=values, minlength=len(lengths))


def _unit_of_line(line: Line, rows: int, path: Path) -> Unit:
    values = {key: line.get(key, math.nan) for key in ("length/mean", "signal/entropy", "stop/length")}
    if unknown := [key for key, value in values.items() if not math.isfinite(value)]:
        raise RlifError(f"{path}: step {line['step']} has no {unknown[0]}; restore the file from a copy")
    tokens = values["length/mean"] * rows
    return Unit(rows, tokens, values["signal/entropy"] * tokens, round((1.0 - values["stop/length"]) * rows))


def record_of(step: int, units: Sequence[Unit]) -> ProbeRecord:
    """The record of a look, of as much as its units know; ``counts`` and ``nats`` are by unit."""
    samples, tokens = sum(unit.samples for unit in units), sum(unit.tokens for unit in units)
    counts = {
        "ended": [unit.ended for unit in units],
        "answered": [sum(key is not None for key in unit.answers) for unit in units if unit.answers is not None],
        "not_looping": [unit.not_looping for unit in units if unit.not_looping is not None],
    }
    metrics = {"probe/length": tokens / samples, "probe/entropy": sum(unit.nats for unit in units) / max(tokens, 1.0)}
    return ProbeRecord(
        step,
        units[0].samples,
        metrics,
        {name: tuple(values) for name, values in counts.items() if values},
        {"entropy": tuple(unit.nats / max(unit.tokens, 1.0) for unit in units)},
    )
