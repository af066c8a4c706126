"""Rows of a data set, wherever it lies: a JSONL, JSON, CSV or Parquet file, or the hub.

A reader yields the rows one by one, each with where it stands (FILE:LINE). Numbers stay as they are written: an answer
of 0.10 is not the float nearest to it.
"""

import csv
import json
import math
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlif.errors import Argument, RlifError, brief, shown
from rlif.utils.paths import expanded

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]


def is_on_hub(source: str, base_dir: Path | None = None) -> bool:
    """Whether a data set's name is that of one on the hub: OWNER/NAME, where there is no such file or folder, no folder
    OWNER, and NAME does not end as our files do. A relative path starts from ``base_dir`` (None: the current folder).
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or Path(source).suffix in READERS:
        return False
    path = (base_dir or Path()) / source
    return not path.exists() and not path.parent.is_dir()


def rows_in(
    source: str, base_dir: Path | None = None, *, config: str | None = None, split: str = "train", argument: str
) -> Iterator[tuple[str, Row]]:
    """The rows of a file, or of a data set on the hub (`is_on_hub`) with its ``config`` and ``split``.

    ``argument`` is what an error tells to check. Raises `RlifError` for what cannot be had or read.
    """
    if is_on_hub(source, base_dir):
        return hub_rows(source, config, split, give=(Argument(argument), f" FILE ({_endings()})"))
    return rows_of((base_dir or Path()) / expanded(source), argument)


def rows_of(path: Path, argument: str = "path") -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with FILE:LINE; ``argument`` is what an error tells to check.

    Raises `RlifError` for a file it cannot read.
    """
    if path.suffix not in READERS:
        raise RlifError(f"{path}: expected a file ending in {_endings()}, or a data set of the hub, OWNER/NAME")
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe would be waited for, and can be read only once
            raise RlifError(f"{path}: no regular file; write the problems to one first")
        path.open("rb").close()
    except OSError as error:
        raise RlifError(f"{path}: {error.strerror}; check ", Argument(argument)) from error
    return READERS[path.suffix](path)


def hub_rows(
    name: str, config: str | None, split: str, *, give: tuple[str | Argument, ...]
) -> Iterator[tuple[str, Row]]:
    """The rows of a split of a data set on the hub, through the optional package datasets. ``give``: how else it may
    be had, for messages. Raises `RlifError` if it cannot be had, or has no such config or split."""
    remedy = ("download it elsewhere and give ", *give)
    try:
        import datasets
    except ImportError as error:
        raise RlifError(f"{name}: needs the package datasets: pip install datasets; or ", *remedy) from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network and the cache fail in many ways; most have the same remedy
        text = str(error) or type(error).__name__
        if isinstance(error, ValueError) and re.search(r"(?i)config|split", text):
            said = f"{name}: {brief(text)}; name another "
            raise RlifError(said, Argument("config"), " or ", Argument("split")) from error
        raise RlifError(f"{name}: cannot be loaded from the hub ({text.splitlines()[0]}); ", *remedy) from error
    return ((f"{name}:{number}", dict(row)) for number, row in enumerate(rows, start=1))


def _endings() -> str:
    *most, last = READERS
    return f"{', '.join(most)} or {last}"


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:  # bytes end a line at \n alone; text would also break at U+2028 inside a problem
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = _parsed(line)
            except UnicodeDecodeError as error:
                raise RlifError(f"{where}: not UTF-8; save the file in that encoding") from error
            except (ValueError, RecursionError) as error:
                raise RlifError(f"{where}: not JSON ({error}); each line holds one JSON object") from error
            if not isinstance(row, dict):
                raise RlifError(f"{where}: a {type(row).__name__}, not a JSON object")
            yield where, row


def _parsed(data: bytes) -> Any:
    return json.loads(data.decode("utf-8-sig"), parse_float=str, parse_int=str, parse_constant=_no_number)


def _no_number(_name: str) -> None:
    """``NaN``, ``Infinity`` and ``-Infinity``, which Python's JSON knows beside the standard's, are missing values."""


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    """A list of objects; or an object that holds one such list and nothing else that is a list."""
    try:
        data = _parsed(path.read_bytes())
    except UnicodeDecodeError as error:
        raise RlifError(f"{path}: not UTF-8; save the file in that encoding") from error
    except (ValueError, RecursionError) as error:
        lines = "; if each line is an object of its own, call it .jsonl" if "Extra data" in str(error) else ""
        raise RlifError(f"{path}: not JSON ({error}){lines}") from error
    except OSError as error:
        raise RlifError(f"{path}: {error.strerror}") from error
    lists = [value for value in data.values() if isinstance(value, list)] if isinstance(data, dict) else [data]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise RlifError(f"{path}: no list of JSON objects, one a problem (pandas: to_json(orient='records'))")
    for number, row in enumerate(lists[0], start=1):
        if not isinstance(row, dict):
            raise RlifError(f"{path}:{number}: a {type(row).__name__}, not a JSON object")
        yield f"{path}:{number}", row


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    """The first line names the columns; an empty cell is a missing value."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            head = next(reader, [])
            if twice := [name for name in head if head.count(name) > 1]:
                raise RlifError(f"{path}:1: two columns are called {shown(twice[0])}; rename one")
            end = reader.line_num
            for cells in reader:
                where, end = f"{path}:{end + 1}", reader.line_num
                if not cells:
                    continue
                if len(cells) != len(head):
                    raise RlifError(
                        f"{where}: {len(cells)} cells for {len(head)} columns; text with commas stands in quotes"
                    )
                yield where, {name: cell if cell.strip() else None for name, cell in zip(head, cells, strict=True)}
    except UnicodeDecodeError as error:
        raise RlifError(f"{path}: not UTF-8; save the file in that encoding") from error
    except csv.Error as error:
        raise RlifError(f"{path}:{reader.line_num}: not CSV ({error})") from error
    except OSError as error:
        raise RlifError(f"{path}: {error.strerror}") from error


def _read_tsv(path: Path) -> Iterator[tuple[str, Row]]:
    return _read_csv(path, delimiter="\t")


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in _rows(batch))
            for number, row in enumerate(rows, start=1):
                yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise RlifError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


def _rows(batch: "pyarrow.RecordBatch") -> list[Row]:
    """The rows of a batch; a float as the shortest decimal that its own width tells from its neighbours."""
    import pyarrow

    columns = []
    for column in batch.columns:
        narrow = pyarrow.types.is_float32(column.type) or pyarrow.types.is_float16(column.type)
        # As a Python float, 0.1 of 32 bits would be 0.10000000149011612; NumPy's scalars know their width.
        columns.append(
            [_shortest(one) for one in column.to_numpy(zero_copy_only=False)] if narrow else column.to_pylist()
        )
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _shortest(number: Any) -> Decimal | None:
    """A NumPy float as a decimal; None for what is no number. A null of Arrow comes as NaN, too."""
    return Decimal(str(number)) if math.isfinite(number) else None


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""File name endings to readers; each yields FILE:LINE and the row."""
