"""Parquet files that know when a byte of theirs has changed.

Parquet's own checksums cover the pages of data and neither their headers nor the footer, and readers do not look at
them unless told to. So a file of ours holds its sha256 as well: under the key ``rlif_sha256`` of the footer's metadata,
taken over the whole file with 64 zeros in the digest's place. Any Parquet reader reads it as before.

A file without that key is one from before there were checksums, or from elsewhere: it is read, its pages are checked
where they have checksums.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SEAL = b"rlif_sha256"
_BLANK = b"0" * 64
_BEFORE = SEAL + b"\x18\x40"  # Thrift's compact protocol: the next field is a string, of 64 bytes


def parquet_bytes(columns: Mapping[str, Any], metadata: Mapping[bytes, bytes]) -> bytes:
    """A Parquet file of ``columns`` (arrays of pyarrow) and ``metadata``, checksummed as a whole and by pages; zstd."""
    import pyarrow as pa  # takes a noticeable moment; only those who write pay
    from pyarrow import parquet

    table = pa.table(dict(columns)).replace_schema_metadata({**metadata, SEAL: _BLANK})
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue()
    start = _digest_at(data)
    if start is None:
        raise RuntimeError("the footer of a Parquet file does not hold its metadata where the format says")
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + len(_BLANK) :]


def read_parquet(path: Path, names: Sequence[str] | None = None) -> Any:
    """The columns ``names`` (None: all) of a file as a pyarrow table, after its checksums were found right.

    Raises ValueError for a changed byte, OSError or pyarrow's ArrowException for what is no Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    data = path.read_bytes()
    if intact(data) is False:
        raise ValueError("its sha256 differs from the one it holds")
    with parquet.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        return file.read(columns=None if names is None else list(names))


def intact(data: bytes) -> bool | None:
    """Whether a file's bytes are those that were written; None if it holds no digest."""
    start = _digest_at(data)
    if start is None:
        return None
    end = start + len(_BLANK)
    return hashlib.sha256(data[:start] + _BLANK + data[end:]).hexdigest().encode() == data[start:end]


def _digest_at(data: bytes) -> int | None:
    """Where the digest starts. The last such key is the footer's own, whatever the answers hold."""
    found = data.rfind(_BEFORE)
    return None if found < 0 else found + len(_BEFORE)
