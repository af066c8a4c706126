"""Parquet files of ours: any changed byte is found, and any reader reads them."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rlif.utils.parquet_files import SEAL, intact, parquet_bytes, read_parquet

COLUMNS = {
    "number": pa.array([1.5, None, float("inf")], pa.float64()),
    "text": pa.array(["", "ä\n", None], pa.string()),
    "list": pa.array([[1.0], [], [2.0, 3.0]], pa.list_(pa.float32())),
    "right": pa.array([True, None, False], pa.bool_()),
}
METADATA = {b"rlif": b'{"seconds": 1.0}'}


def test_what_was_written_is_read_by_us_and_by_others(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(parquet_bytes(COLUMNS, METADATA))
    for table in (read_parquet(path), parquet.read_table(path)):
        assert table.to_pydict() == pa.table(COLUMNS).to_pydict()
        assert table.schema.metadata[b"rlif"] == METADATA[b"rlif"]
    assert read_parquet(path, ["text"]).column_names == ["text"]
    assert intact(path.read_bytes()) is True


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_changed_byte_is_found_or_harmless(tmp_path: Path, mask: int) -> None:
    """Harmless: one in the name of the key, which makes it a file without a digest, its columns and pages untouched."""
    whole, path = parquet_bytes(COLUMNS, METADATA), tmp_path / "part.parquet"
    key = whole.rfind(SEAL)
    missed = []
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= mask
        if intact(bytes(damaged)) is not False:
            missed.append(position)
            path.write_bytes(damaged)
            try:
                assert read_parquet(path).to_pydict() == pa.table(COLUMNS).to_pydict(), position
            except (pa.ArrowException, OSError, ValueError):
                continue  # found after all
    assert set(missed) <= set(range(key, key + len(SEAL) + 2))


@given(st.data())
def test_cut_zeroed_and_doubled_stretches_are_found(data: st.DataObject) -> None:
    whole = parquet_bytes(COLUMNS, METADATA)
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start + 1, len(whole)))
    for put in (b"", bytes(end - start), 2 * whole[start:end]):
        damaged = whole[:start] + put + whole[end:]
        if damaged == whole:
            continue
        if intact(damaged) is None:  # without its key it must not open, or hold the same
            try:
                with parquet.ParquetFile(pa.BufferReader(damaged), page_checksum_verification=True) as file:
                    assert file.read().to_pydict() == pa.table(COLUMNS).to_pydict()
            except (pa.ArrowException, OSError, ValueError):
                continue
        else:
            assert intact(damaged) is False


def test_a_file_of_an_earlier_version_is_read_and_its_pages_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    parquet.write_table(pa.table(COLUMNS), path, compression="zstd")
    assert intact(path.read_bytes()) is None
    assert read_parquet(path).to_pydict() == pa.table(COLUMNS).to_pydict()
    parquet.write_table(pa.table({"n": pa.array(range(1000))}), path, compression="none", write_page_checksum=True)
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    with pytest.raises((OSError, pa.ArrowException)):
        read_parquet(path)


def test_an_answer_that_looks_like_a_digest_changes_nothing(tmp_path: Path) -> None:
    said = (SEAL + b"\x18\x40" + b"0" * 64).decode()
    whole = parquet_bytes({"completion": pa.array([said, said])}, {b"rlif": said.encode()})
    assert intact(whole) is True
    assert intact(whole.replace(b"PAR1", b"PAR2", 1)) is False
