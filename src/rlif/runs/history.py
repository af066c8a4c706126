"""What a run has written so far, read back: metrics.jsonl line by line, and what a resumed run keeps of it.

The history of a resumed run is whole: every step up to the checkpoint stands in it once and in order. What does
not belong to it any more, because the run resumes from an older checkpoint, is set aside, never thrown away.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlif.errors import RlifError
from rlif.runs.layout import BY_STEP, METRICS_FILE, step_name, step_of
from rlif.utils.atomic_io import write_whole


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """The lines of a metrics.jsonl in order, null as NaN; a half-written last line is left out.

    Raises `RlifError` naming the line if one before the last is damaged, or if the file cannot be read.
    """
    records = (record for _, record, _ in _lines(path))
    return [{key: math.nan if value is None else value for key, value in record.items()} for record in records]


def last_step(path: Path) -> int:
    """The highest step in a metrics.jsonl; -1 if it has none. Raises as `read_metrics`."""
    return max((record["step"] for _, record, _ in _lines(path)), default=-1)


def lines_up_to(path: Path, step: int) -> bytes:
    """The lines of a metrics.jsonl up to a step that a checkpoint is of (-1: none), byte for byte.

    Raises `RlifError` with file and line for a step that is missing before another one, stands there twice, or out of
    order. Step 0 may be missing: only a run that evaluates has it.
    """
    kept, expected = [], 0
    for number, record, line in _lines(path):
        found = record["step"]
        if expected > step and found > step:
            continue  # of steps that come again
        if found != expected and not (found == 1 and expected == 0):
            raise RlifError(
                f"{path}, line {number}: step {found} where step {expected or 1} belongs, so the history up to the "
                f"checkpoint of step {step} is not whole; restore the file from a copy"
            )
        kept.append(line + b"\n")
        expected = found + 1
    return b"".join(kept)


def set_aside(out: Path, step: int) -> Path:
    """Keep a copy of metrics.jsonl, and the completions of later steps than ``step``, under names of their own.

    For a run that resumes from an earlier step than it could. Returns the copy of metrics.jsonl; the files of
    completions are moved into folders called in the same way.
    """
    mark = next(mark for n in range(1, 1 << 20) if not (out / f"{METRICS_FILE}.{(mark := _mark(step, n))}").exists())
    copy = out / f"{METRICS_FILE}.{mark}"
    write_whole(copy, (out / METRICS_FILE).read_bytes())
    for name in BY_STEP:
        for path in _files_after(out / name, step):
            folder = out / f"{name}.{mark}"
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
    return copy


def _mark(step: int, n: int) -> str:
    return f"before-{step_name(step + 1)}" + (f".{n}" if n > 1 else "")


def remove_completions_after(out: Path, step: int) -> None:
    """Remove the completions of later steps than ``step``, and half-written files of them."""
    for folder in (out / name for name in BY_STEP):
        for path in [*_files_after(folder, step), *folder.glob(".*.parquet.tmp")]:
            path.unlink()


def _files_after(folder: Path, step: int) -> list[Path]:
    return [path for path in sorted(folder.glob("*.parquet")) if (step_of(path.stem) or 0) > step]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Each whole line as (its number from 1, record, its bytes without the newline)."""
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise RlifError(f"{path}: cannot read the metrics ({error.strerror}); give a run's {METRICS_FILE}") from error
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            yield number, record, line
        elif number < len(lines):
            raise RlifError(f"{path}, line {number}: not a metrics line; restore the file or delete this line")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int
    return record if whole and all(_is_text(key) and _is_number(value) for key, value in record.items()) else None


def _is_text(key: str) -> bool:
    """Not so for halves of characters, which JSON can hold and no table can."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
