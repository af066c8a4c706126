"""Writing to a disk that may be full, into folders that another process may be writing: what was there stays whole.

What went wrong is said in the user's words.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from rlif.errors import Advice, Argument, RlifError

try:
    fcntl: Any = import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""The file in a run folder that the process at work in it holds. It stays there, and means nothing, when none does."""


_PATIENCE = 0.5
"""Seconds to wait for a lock."""


@contextmanager
def writing(path: Path, *advice: str | Argument | Advice) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into an `RlifError` that says why and gives ``advice``."""
    try:
        yield
    except OSError as error:
        raise RlifError(f"{path}: {disk_reason(error)}; ", *advice) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is missing; a killed process lets go of it, too.

    Raises `RlifError` if another one is at work in it.
    """
    from filelock import FileLock, Timeout

    with writing(folder, "put that right, or choose another folder"):
        make_folder(folder)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.02)  # who asks `in_use` holds it for an instant
        except Timeout:
            raise RlifError(f"{folder}: another process is at work in it; wait for its end, or stop it first") from None
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process is at work in a folder (`locked`); nothing is written. Where that cannot be told: no."""
    if fcntl is None:
        return False
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of when the file is closed
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def unfinished(folder: Path, doing: str) -> Iterator[Path]:
    """A new folder beside ``folder``, to be filled and renamed to it; what is left of it at the end goes. Raises
    OSError.

    It is held (flock) as long as its process lives, so that what killed ones left of the same ``doing`` is known and
    goes first, on whatever machine or in whatever container they ran.
    """
    start = f".{folder.name}.{doing}-"
    if folder.parent.is_dir():
        for left in folder.parent.iterdir():
            if left.name.startswith(start) and left.name.removeprefix(start).isdigit() and not _held(left):
                shutil.rmtree(left, ignore_errors=True)
    path = folder.with_name(f"{start}{os.getpid()}")
    try:
        make_folder(path)
        with _holding(path):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """Hold an `unfinished` folder. On a system or disk without locks it stays, should this process be killed."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _held(folder: Path) -> bool:
    """Whether a process holds an `unfinished` folder. Where that cannot be told: yes."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def emptied_on_failure(
    folder: Path, *, last: Sequence[str] = (), error: type[BaseException] = BaseException
) -> Iterator[None]:
    """For what begins in an empty folder that is `locked`: if it cannot begin, for an ``error``, nothing of it stays.

    The files called in ``last`` go last, the last of them first: as long as one is there it says what the folder is.
    """
    try:
        yield
    except error:
        for path in sorted(folder.iterdir(), key=lambda path: last[::-1].index(path.name) if path.name in last else -1):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with suppress(OSError):
            folder.rmdir()
        raise


def disk_reason(error: OSError) -> str:
    """Why a write failed, in the user's words."""
    full = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota used up"}
    return full.get(error.errno or 0, f"cannot write ({error.strerror or one_line(error)})")


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind ``error``, None if there is none.

    Libraries written in Rust (safetensors, tokenizers) report it as text of an exception of their own.
    """
    if isinstance(error, OSError):
        return error
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is, at every moment, the old one or the new one. Raises OSError, leaving the old one."""
    temp = path.with_name(f".{path.name}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        flush_folder(path.parent)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path) -> None:
    """Make the names in a folder (new, renamed, removed files) outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and what is missing above it; all their names outlast a power cut. Raises OSError.

    ``mode`` is that of each new folder, less what the umask takes away.

    What lies in a folder can be on the disk while the folder's own name is not: it is lost then, however often its
    files were flushed.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode, exist_ok=True)
        flush_folder(path.parent)
    folder.mkdir(exist_ok=True)  # raises FileExistsError for a file of that name


def settle(folder: Path) -> None:
    """Put what libraries wrote into a folder on the disk, with the access that the umask gives. Raises OSError.

    safetensors leaves its files readable by their owner alone, whatever the umask; none of them flushes.
    """
    mode = _plain_mode(folder)
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            flush_folder(path)
        elif not path.is_symlink():
            with path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())


def _plain_mode(folder: Path) -> int:
    """The access that a new file gets here. The umask alone does not tell: a folder may have rules of its own."""
    probe = folder / f".mode-{os.getpid()}"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


def one_line(error: BaseException) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split())


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal, read piece by piece. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
