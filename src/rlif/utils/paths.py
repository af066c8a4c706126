"""The home folder, which not everybody has: a container may know neither HOME nor the user's number."""

import os
from pathlib import Path

from rlif.errors import RlifError


class NoHomeError(RlifError, RuntimeError):
    """There is no home folder, or none of that user. A RuntimeError too, as Python's own."""


def expanded(path: str | Path) -> Path:
    """The path with ``~`` or ``~user`` at its beginning put in full.

    Raises `NoHomeError` where that is not known, `RlifError` for a NUL, which no file's name can hold.
    """
    if "\0" in str(path):
        raise RlifError(f"{path}: no file can have this name")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise NoHomeError(f"{path}: no home folder is known for it; write the path in full, or set HOME") from error


def shortened_home(path: Path) -> str:
    """A path for people: ``~`` for their home folder, if they have one."""
    try:
        home = Path.home()
    except RuntimeError:
        return str(path)
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def cache_dir() -> Path:
    """Where fetched files are kept: ``$RLIF_CACHE``, or ``~/.cache/rlif``. Raises `NoHomeError` without a home."""
    try:
        return expanded(os.environ.get("RLIF_CACHE") or "~/.cache/rlif")
    except NoHomeError as error:
        raise NoHomeError("no home folder is known to keep models in; set RLIF_CACHE to a folder, or HOME") from error
