"""The answers in a run's folder, a `Candidate` each: read from its tables file by file. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.runs.layout import step_of
from rlif.utils.atomic_io import one_line
from rlif.utils.parquet_files import read_parquet

_PER_ANSWER, PER_TOKEN = 160, 17
"""Bytes that an answer takes beside its text, and each of its tokens (text, three signals), estimated."""


@dataclass(frozen=True)
class Candidate:
    """An answer that can be shown: a row of a table, at a place (a step, or a model), drawn in some way.

    ``kind``: greedy, sampled, sampled 2, …, training 1, training 2, …; ``length``: tokens.
    """

    table: Any
    row: int
    place: str
    kind: str
    prompt_id: str
    length: int

    @property
    def size(self) -> int:
        """Bytes on the page, estimated."""
        return _PER_ANSWER + PER_TOKEN * self.length

    def value(self, name: str) -> Any:
        """Of a column; None where there is no such column."""
        return self.table[name][self.row].as_py() if name in self.table.column_names else None


def step_files(folder: Path) -> dict[int, Path]:
    """The tables of a folder by step, in order; none where there is no such folder."""
    found = {step: path for path in folder.glob("step-*.parquet") if (step := step_of(path.stem)) is not None}
    return dict(sorted(found.items()))


def of_evaluation(path: Path, notes: list[str]) -> list[Candidate]:
    """The answers to the problems of one evaluation; none, and a line in ``notes``, if they cannot be read."""
    table = read_table(path, notes, ("prompt_id", "decoding", "sample", "tokens"))
    if table is None:
        return []
    place, lengths = str(step_of(path.stem)), _lengths(table)
    columns = (table[name].to_pylist() for name in ("prompt_id", "decoding", "sample"))
    return [
        Candidate(table, row, place, decoding if not sample else f"{decoding} {sample + 1}", prompt_id, lengths[row])
        for row, (prompt_id, decoding, sample) in enumerate(zip(*columns, strict=True))
    ]


def training(path: Path, notes: list[str]) -> list[Candidate]:
    """The completions that one step was trained on; none, and a line in ``notes``, if they cannot be read."""
    table = read_table(path, notes, ("prompt_id", "tokens", "advantage"))
    if table is None:
        return []
    place, lengths = str(step_of(path.stem)), _lengths(table)
    found: list[Candidate] = []
    counts: dict[str, int] = {}
    for row, prompt_id in enumerate(table["prompt_id"].to_pylist()):
        counts[prompt_id] = counts.get(prompt_id, 0) + 1
        found.append(Candidate(table, row, place, f"training {counts[prompt_id]}", prompt_id, lengths[row]))
    return found


def by_advantage(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The highest, the lowest, the second highest, and so on."""
    ranked = ranked_by_advantage(candidates)
    half = (len(ranked) + 1) // 2
    pairs = zip(ranked[:half], [*ranked[half:][::-1], None], strict=False)
    return [one for pair in pairs for one in pair if one is not None]


def ranked_by_advantage(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Completions of one step, from the highest advantage to the lowest."""
    if not candidates:
        return []
    advantages = candidates[0].table["advantage"].to_pylist()
    return sorted(candidates, key=lambda one: -(advantages[one.row] or 0.0))


def read_table(path: Path, notes: list[str], needed: Sequence[str] = (), *, alone: bool = False) -> Any:
    """A Parquet file; None, and a line in ``notes``, if it cannot be read or lacks a column that is needed.

    ``alone``: no other columns are read.
    """
    import pyarrow

    try:
        table = read_parquet(path, needed if alone else None)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        notes.append(f"{path} cannot be read and is left out ({one_line(error)})")
        return None
    if missing := [name for name in needed if name not in table.column_names]:
        notes.append(f"{path} has no column {missing[0]} and is left out")
        return None
    return table


def _lengths(table: Any) -> list[int]:
    import pyarrow.compute as pc

    return [int(n) for n in pc.list_value_length(table["tokens"]).to_pylist()]
