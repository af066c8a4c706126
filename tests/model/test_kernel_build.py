"""Compiled kernels from damaged files, from the wrong hands, and from commands that are no compilers."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from rlif.model.kernels import build, cpu
from rlif.model.kernels.build import BuildError
from rlif.model.kernels.cpu import kernels
from rlif.utils.paths import NoHomeError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="kernels are compiled on Linux, where there is a cc"
)
SOURCE = files("rlif.model.kernels").joinpath("cpu.c").read_bytes()
NAMES = list(cpu._SIGNATURES)
SECOND_PLACE = build._second_place
# Quick to compile; what it makes is as right as what -O3 makes.
COMMAND = ["cc", "-O0", "-march=native", "-shared", "-fPIC", "-fopenmp", "-DCHUNKS=2", "-DWIDE=8"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; its libraries lie in ``kernels``."""
    monkeypatch.setenv("RLIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is kept where the cache folder is not ours alone; not that of the machine."""
    monkeypatch.setattr(build, "_second_place", lambda: tmp_path / "second")
    return tmp_path / "second"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds a library already: most tests need no other."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLIF_CACHE", str(folder))
        build.library(COMMAND, SOURCE, "fp32", NAMES)
    return folder


@pytest.fixture
def filled(cache: Path, made: Path) -> Path:
    """`cache` with the library in it; returns the library's path."""
    shutil.copytree(made, cache)
    (library,) = (cache / "kernels").iterdir()
    return library


class RecompiledError(Exception):
    """The cache was not used."""


def refuse(*arguments: object) -> bytes:
    raise RecompiledError


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_compiled", refuse)


def use() -> object:
    return build.library(COMMAND, SOURCE, "fp32", NAMES)


@pytest.mark.usefixtures("no_compiler")
def test_what_is_whole_is_loaded_again(filled: Path) -> None:
    use()
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    assert stat.S_IMODE(filled.parent.stat().st_mode) == 0o700


def test_another_command_is_another_library(filled: Path) -> None:
    kept = filled.stat().st_mtime_ns
    build.library([*COMMAND, "-DELSE"], SOURCE, "fp32", NAMES)
    assert len(list(filled.parent.iterdir())) == 2
    assert filled.stat().st_mtime_ns == kept


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.usefixtures("no_compiler")
def test_a_changed_byte_a_cut_and_an_empty_file_are_never_loaded(filled: Path) -> None:
    whole = filled.read_bytes()
    places = [int(len(whole) * i / 200) for i in range(200)]
    for damaged in [flipped(whole, place) for place in places] + [whole[:place] for place in places] + [whole + b"\0"]:
        filled.write_bytes(damaged)
        with pytest.raises(RecompiledError):
            use()
        assert not filled.exists(), "what is damaged goes"


def test_what_is_damaged_is_made_anew(filled: Path) -> None:
    whole = filled.read_bytes()
    filled.write_bytes(whole[: len(whole) // 2])
    use()
    assert filled.read_bytes() == whole


WRONG_HANDS: dict[str, Callable[[Path], object]] = {
    "the file may be written by others": lambda file: file.chmod(0o602),
    "the file may be written by the group": lambda file: file.chmod(0o620),
    "the folder may be written by others": lambda file: file.parent.chmod(0o707),
    "the folder above may be written by others": lambda file: file.parents[1].chmod(0o777),
    "the folder above may be written by the group": lambda file: file.parents[1].chmod(0o775),
    "the file is a link": lambda file: file.rename(file.with_name("x")) and file.symlink_to("x"),
    "the folder is a link": lambda file: file.parent.rename(file.parents[1] / "x") and file.parent.symlink_to("x"),
    "the file is a folder": lambda file: file.unlink() or file.mkdir(),
}


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("how", WRONG_HANDS)
def test_nothing_is_loaded_from_where_others_may_write(filled: Path, how: str) -> None:
    WRONG_HANDS[how](filled)
    with pytest.raises(RecompiledError):
        use()


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")
@pytest.mark.parametrize("what", ["file", "folder", "folder above"])
def test_nothing_is_loaded_that_belongs_to_another(filled: Path, what: str) -> None:
    owned = {"file": filled, "folder": filled.parent, "folder above": filled.parents[1]}[what]
    os.chown(owned, 12345, 12345)
    with pytest.raises(RecompiledError):
        use()


ABOVE: dict[str, Callable[[Path], object]] = {
    "may be written by the group": lambda folder: folder.mkdir() or folder.chmod(0o775),
    "is a file": lambda folder: folder.write_text(""),
}


@pytest.mark.parametrize("how", ABOVE)
def test_where_the_cache_folder_is_not_ours_alone_another_keeps_them(
    cache: Path, second: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ABOVE[how](cache)
    use()
    assert list(cache.glob("kernels/*")) == []
    (library,) = (second / "kernels").iterdir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (second, second / "kernels")} == {0o700}
    with monkeypatch.context() as patch:
        patch.setattr(build, "_compiled", None)  # not called
        use()
    second.chmod(0o770)  # neither is ours alone: made for this process only
    kept = library.stat().st_mtime_ns
    use()
    assert library.stat().st_mtime_ns == kept
    monkeypatch.setattr(build, "_compiled", refuse)
    with pytest.raises(RecompiledError):
        use()


def test_without_a_home_they_are_kept_too(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise NoHomeError("no home")

    monkeypatch.setattr(build, "cache_dir", homeless)
    assert build._cache_folder() == second / "kernels"


def test_the_second_place_is_named_by_the_user() -> None:
    assert SECOND_PLACE() == Path(tempfile.gettempdir()) / f"rlif-{os.geteuid()}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_second_place_that_somebody_else_made_is_not_used(cache: Path, second: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    second.mkdir()
    os.chown(second, 12345, 12345)
    assert build._cache_folder() is None
    shutil.rmtree(second)
    second.symlink_to(cache)
    assert build._cache_folder() is None


@pytest.mark.parametrize(
    ("foreign", "private"),
    [(("/",), True), (("/", "/tmp"), True), (("/tmp",), False), (("/", "/tmp", "/tmp/x"), False)],
)
def test_a_root_folder_of_a_user_outside_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: tuple[str, ...], private: bool
) -> None:
    """Seen as 65534, the number for all who have none inside."""
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    top = tmp_path.parts[1]
    named = {"/": Path("/"), "/tmp": Path("/", top), "/tmp/x": tmp_path.parent}
    others, plain = {named[name] for name in foreign}, Path.lstat

    def lstat(path: Path) -> os.stat_result:
        status = plain(path)
        return os.stat_result((*status[:4], 65534, *status[5:])) if path in others else status

    monkeypatch.setattr(Path, "lstat", lstat)
    assert build._private(folder) is private


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_they_are_compiled_once_whatever_the_umask(cache: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(umask)
    try:
        use()
        (library,) = (cache / "kernels").iterdir()
        assert stat.S_IMODE(library.stat().st_mode) == 0o600
        assert {stat.S_IMODE(path.stat().st_mode) for path in (cache, cache / "kernels")} == {0o700}
        with monkeypatch.context() as patch:
            patch.setattr(build, "_compiled", None)  # not called
            use()
    finally:
        os.umask(before)


def script(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


TARGET = 'while [ "$1" != -o ]; do shift; done; '
ALL_OF_IT = "cat > /dev/null"
NO_COMPILERS = {
    "fails": ("echo no room >&2; exit 3", "no room"),
    "fails without a word": ("exit 3", "ended with code 3"),
    "does nothing": ("exit 0", "wrote nothing"),
    "writes nothing": (TARGET + ': > "$2"', "wrote nothing"),
    "writes garbage": (TARGET + 'echo garbage > "$2"', "does not work"),
    "writes a program": (TARGET + 'cp /bin/sh "$2"', "does not work"),
    "writes half": ('cc "$@"; ' + TARGET + 'head -c 9000 "$2" > "$2.x"; mv "$2.x" "$2"', "does not work"),
    "is killed": ("kill -SEGV $$", "ended with code -11"),
    "makes a folder": (TARGET + 'mkdir "$2"', "wrote nothing"),
    "prints, and makes another source's": (
        TARGET
        + f'{ALL_OF_IT}; echo "int built_as(void) {{ return 1; }}" | cc -shared -x c - -o "$2"; yes | head -c 99999',
        "does not work",
    ),
    "makes a library that ends its process": (
        TARGET
        + f'{ALL_OF_IT}; echo "__attribute__((constructor)) void f(void) {{ __builtin_trap(); }}" | '
        + 'cc -shared -x c - -o "$2"',
        "ended with code -4",
    ),
    "makes a library of another abi": ('cc "$@" -DBUILD_=1 -Dbuilt_as=other_name', "built_as"),
    "makes wrong numbers": ('cc "$@" -Dsqrtf=cosf', "is wrong"),
}


@pytest.mark.parametrize("how", NO_COMPILERS)
def test_what_is_no_compiler_is_found_out(cache: Path, tmp_path: Path, how: str) -> None:
    text, said = NO_COMPILERS[how]
    with pytest.raises(BuildError, match=said) as caught:
        build.library([script(tmp_path / "bin", text), *COMMAND[1:]], SOURCE, "fp32", NAMES)
    assert "\n" not in str(caught.value)
    assert list(cache.glob("kernels/*")) == [], "nothing of it is kept"


@pytest.mark.parametrize("text", ["sleep 1000", "sleep 1000 & exec sleep 1000", "trap '' TERM; sleep 1000"])
def test_a_compiler_that_hangs_is_stopped_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.2)
    with pytest.raises(BuildError, match="took longer"):
        build._compiled([script(tmp_path, f"echo $$ > {tmp_path}/pid; {text}")], b"")


def test_a_library_that_hangs_is_stopped(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TRIAL_SECONDS", 0.5)
    source = b"__attribute__((constructor)) void f(void) { for (;;); }"
    with pytest.raises(BuildError, match="took longer"):
        build.library(["cc", "-shared", "-fPIC"], source, "fp32", NAMES)


@pytest.mark.parametrize("cc", ["cc \0", "/", "/nonexistent/cc", "''", 'cc "'])
def test_what_cannot_be_started_is_one_warning(cache: Path, monkeypatch: pytest.MonkeyPatch, cc: str) -> None:
    if "\0" in cc:  # no environment holds it, a caller may
        with pytest.raises((BuildError, ValueError)):
            build.library([cc], SOURCE, "fp32", NAMES)
        return
    monkeypatch.setenv("CC", cc)
    with pytest.warns(RuntimeWarning, match="PyTorch's slower operations serve instead") as warned:
        assert kernels.__wrapped__(torch.float32) is None
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)


def test_a_place_where_nothing_may_be_written_or_run_costs_only_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> Path:
        raise OSError(28, "No space left on device")

    keep = build._keep
    monkeypatch.setattr(build, "_keep", lambda folder, *rest: (full if folder.parent == cache else keep)(folder, *rest))
    use()
    assert list(cache.glob("kernels/*")) == []


def test_several_compile_at_once(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(use) for _ in range(4)]
    assert all(one.result() for one in made)
    assert len(list((cache / "kernels").iterdir())) == 1


def test_leftovers_of_a_killed_process_go_after_an_hour(cache: Path) -> None:
    folder = cache / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    for name, age in (("old", 7200), ("new", 60)):
        path = folder / f".{name}.tmp"
        path.write_bytes(b"")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    use()
    assert [path.name for path in folder.glob(".*")] == [".new.tmp"]
