"""Compiled kernels: made, tried in a process of their own, kept, and loaded again only if they are what was kept.

A library in the cache folder is called ``KEY-SHA256.so``. KEY stands for the source, the command and the processor,
SHA256 is of the library itself: one that was cut off or changed since does not fit its name and is made anew. It is a
plain file of ours in a folder of ours, and no folder above lets others put another in its place. Where the cache
folder is no such place (its group may write above it, say), a folder of ours in the one for temporary files serves.

A command that is a C compiler by name only (it writes nothing, garbage, a library of something else or for another
processor) is found out by running what it made, before this process loads it.
"""

import ctypes
import hashlib
import os
import platform
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rlif.errors import RlifError
from rlif.utils.atomic_io import flush_folder, make_folder, one_line
from rlif.utils.paths import cache_dir

COMPILE_SECONDS, TRIAL_SECONDS = 120.0, 30.0
"""How long a compiler, and the trial of what it made, may take: they take half a second."""
_LEFTOVER_SECONDS = 3600.0

# Runs without torch in an empty Python: a library that stops its process is not loaded by ours.
_TRIAL = """
import ctypes, math, struct, sys
path, key, kind, *names = sys.argv[1:]
library = ctypes.CDLL(path)
for name in names:
    getattr(library, name)
library.built_as.restype = ctypes.c_uint64
assert library.built_as() == int(key, 16), "made of another source"
size, half = 64, kind == "bf16"
pointer, long, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
def array(values):
    if half:
        return (ctypes.c_uint16 * len(values))(*(struct.unpack("<I", struct.pack("<f", x))[0] >> 16 for x in values))
    return (real * len(values))(*values)
def number(x):
    return struct.unpack("<f", struct.pack("<I", x << 16))[0] if half else x
def near(got, expected):
    return all(abs(number(x) - y) <= 2.0**-7 * max(1.0, abs(y)) for x, y in zip(got, expected))
line = [(i % 7) - 3.0 for i in range(size)]
x, ones, out = array(line), array([1.0] * size), array([0.0] * size)
rms = math.sqrt(sum(v * v for v in line) / size)
library.rms_norm(1, x, ones, real(0), real(0), out, long(1), long(size))
assert near(out, [v / rms for v in line]), "a norm is wrong"
library.gated(1, x, long(size), ones, long(size), 0, out, long(1), long(size))
assert near(out, [v / (1 + math.exp(-v)) for v in line]), "a gate is wrong"
token, told = (ctypes.c_int64 * 1)(-1), [(real * 1)() for _ in range(4)]
library.draw(1, array([0.0, 2.0, 1.0]), long(3), (ctypes.c_double * 1)(0.5), real(0), token, *told, long(1), long(3))
assert token[0] == 1, "a draw is wrong"
"""


class BuildError(Exception):
    """No library can be had from this command; the text says why, in one line."""


def library(command: Sequence[str], source: bytes, kind: str, names: Sequence[str]) -> ctypes.CDLL:
    """What ``command`` makes of a C source on this processor, from the cache folder if it lies there unchanged.

    Args:
        kind: of its numbers, bf16 or fp32.
        names: the functions it must have, ``built_as`` besides.

    Raises `BuildError`. Nothing is kept where there is no room, or others may write in either folder.
    """
    made_of = "\n".join([*command, *platform.libc_ver(), _processor()]).encode() + source
    key = hashlib.sha256(made_of).hexdigest()[:16]
    folder = _cache_folder()
    if folder is not None and (kept := _kept(folder, key)) is not None:
        with suppress(OSError, AttributeError, BuildError):  # made anew
            return _opened(kept, key, names)
    data = _compiled([*command, f"-DBUILD=0x{key}ULL"], source)
    trial = [key, kind, *names]
    if folder is not None:
        with suppress(OSError, BuildError):  # no room, or nothing may be run from there
            return _opened(_keep(folder, key, data, trial), key, names)
    try:
        with tempfile.TemporaryDirectory() as new:  # loaded, it needs no name any more
            return _opened(_keep(Path(new), key, data, trial), key, names)
    except (OSError, AttributeError) as error:
        raise BuildError(one_line(error)) from error


def _cache_folder() -> Path | None:
    """Where libraries are kept; None if there is no such place that is ours alone."""
    for place in (cache_dir, _second_place):
        with suppress(OSError, RlifError):
            folder = place() / "kernels"
            make_folder(folder, mode=0o700)
            if _private(folder):
                return folder
    return None


def _second_place() -> Path:
    """``/tmp/rlif-UID``. Others may have made it before us: `_private` finds that out."""
    return Path(tempfile.gettempdir()) / f"rlif-{os.geteuid()}"


def _private(folder: Path) -> bool:
    """Whether nobody but this user and root can have put anything there. Raises OSError."""
    if not _ours(folder, stat.S_ISDIR):
        return False
    for above in {*folder.absolute().parents, *folder.resolve().parents}:
        status = above.lstat()
        if status.st_uid not in (0, os.geteuid()) and not _of_the_system(above, status):
            return False
        # A link's own mode says nothing; in a folder such as /tmp only its owner renames a file.
        if not stat.S_ISLNK(status.st_mode) and _others_write(status) and not status.st_mode & stat.S_ISVTX:
            return False
    return True


def _of_the_system(path: Path, status: os.stat_result) -> bool:
    """Whether it is the root folder or lies in it, and belongs to whom the root folder belongs to.

    In a container of an ordinary user that is root outside, shown as a number such as 65534. Whoever it is could put
    another Python in place of this one.
    """
    return path.parent == path.parent.parent and status.st_uid == Path(path.anchor).lstat().st_uid


def _ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is of that kind (itself, not where a link leads), ours, and written by nobody else."""
    status = path.lstat()
    return is_kind(status.st_mode) and status.st_uid == os.geteuid() and not _others_write(status)


def _others_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _kept(folder: Path, key: str) -> Path | None:
    """The library of that key whose bytes are those that its name tells. One that is not goes."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with suppress(OSError):
            if _ours(path, stat.S_ISREG) and path.name == _name(key, path.read_bytes()):
                return path
            path.unlink()
    return None


def _name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()}.so"


def _keep(folder: Path, key: str, data: bytes, trial: Sequence[str]) -> Path:
    """Put a library there under its name, once it has passed its trial; several processes may do so at once.

    Raises OSError or `BuildError`.
    """
    now = time.time()
    for leftover in folder.glob(".*.tmp"):
        with suppress(OSError):
            if now - leftover.lstat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
    descriptor, name = tempfile.mkstemp(prefix=f".{key}-", suffix=".tmp", dir=folder)
    temp, final = Path(name), folder / _name(key, data)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask or the folder's own rules say
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        _try(temp, trial)
        temp.replace(final)
        flush_folder(folder)
    finally:
        temp.unlink(missing_ok=True)
    return final


def _try(path: Path, trial: Sequence[str]) -> None:
    """Let an empty Python load and run it. Raises `BuildError` if that does not end well, OSError without a Python."""
    code, said = _run([sys.executable, "-I", "-S", "-c", _TRIAL, str(path), *trial], b"", TRIAL_SECONDS)
    if code:
        last = (said.splitlines() or [f"it ended with code {code}"])[-1].replace(str(path), "it")
        raise BuildError(f"what it made does not work ({last})")


def _opened(path: Path, key: str, names: Sequence[str]) -> ctypes.CDLL:
    """Raises OSError, AttributeError for a function that is missing, `BuildError` for one made of something else."""
    found = ctypes.CDLL(str(path))
    found.built_as.restype = ctypes.c_uint64
    if found.built_as() != int(key, 16):
        raise BuildError("what it made is of another source")
    for name in names:
        getattr(found, name)
    return found


def _compiled(command: Sequence[str], source: bytes) -> bytes:
    """The library as bytes. Raises `BuildError` with what the compiler said."""
    try:
        with tempfile.TemporaryDirectory() as new:
            target = Path(new) / "kernels.so"
            code, said = _run([*command, "-x", "c", "-", "-o", str(target), "-lm"], source, COMPILE_SECONDS)
            said = " ".join(said.replace(new, "").split())[:300]
            if code:
                raise BuildError(said or f"it ended with code {code}")
            data = target.read_bytes() if target.is_file() else b""
    except OSError as error:
        raise BuildError(one_line(error)) from error
    if not data:
        raise BuildError(f"it wrote nothing{said and f' ({said})'}")
    return data


def _run(command: Sequence[str], given: bytes, seconds: float) -> tuple[int, str]:
    """Exit code and what stands on stderr. All its processes end with it, in ``seconds`` at most.

    Raises OSError if it cannot be started, `BuildError` if it takes longer.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:  # a pipe could be held open for ever
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BuildError(f"it took longer than {seconds:.0f} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        stderr.seek(0)
        return code, stderr.read(1 << 16).decode(errors="replace")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
