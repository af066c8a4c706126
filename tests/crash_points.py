"""The states that a folder goes through while a program writes to it, and what a power cut would leave of each.

`Recorder` looks at the folder before every operation that Python makes on files (audit events, `os.write`, `os.fsync`),
so what libraries write in between without a word shows at the next one. For power cuts it keeps a model of a disk that
remembers only what was flushed: the contents of a file since its last fsync, the names in a folder since the folder's.
"""

import hashlib
import itertools
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

Tree = dict[str, bytes | None]
"""Contents by path relative to the recorded folder; None for a folder."""

_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
_active: "Recorder | None" = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active is None:
        return
    if event == "open":
        flags = arguments[2]
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _active.look(f"open {arguments[0]}")
    elif event in _CHANGES:
        _active.look(f"{event} {arguments[0]}")


_hooked: list[bool] = []  # an audit hook cannot be taken back: one serves all recorders


@dataclass(frozen=True)
class Moment:
    """The folder at one moment, as (inode's own number, contents or names)."""

    label: str
    files: dict[int, bytes]
    folders: dict[int, dict[str, int]]
    flushed_files: dict[int, bytes]
    flushed_folders: dict[int, dict[str, int]]


@dataclass
class Recorder:
    """Records what happens below ``root``, which is there and flushed when it starts."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    operations: int = 0

    def __enter__(self) -> "Recorder":
        global _active
        if not _hooked:
            sys.addaudithook(_hook)
            _hooked.append(True)
        self._numbers: dict[tuple[int, int], int] = {}
        self._next, self._busy = 1, False
        self._flushed_files: dict[int, bytes] = {}
        self._flushed_folders: dict[int, dict[str, int]] = {}
        files, folders = self._scan()
        self._flushed_files, self._flushed_folders = dict(files), dict(folders)
        self._fsync, self._write = os.fsync, os.write
        os.fsync, os.write = self._on_fsync, self._on_write
        _active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _active
        self.look("end")
        _active = None
        os.fsync, os.write = self._fsync, self._write

    def look(self, label: str) -> None:
        """Keep the folder as it stands."""
        if self._busy:
            return
        self._busy = True
        try:
            self.operations += 1
            files, folders = self._scan()
            moment = Moment(label, files, folders, dict(self._flushed_files), dict(self._flushed_folders))
            self.moments.append(moment)
        finally:
            self._busy = False

    def _on_write(self, descriptor: int, data: bytes) -> int:
        self.look("write")
        return self._write(descriptor, data)

    def _on_fsync(self, descriptor: int) -> None:
        self.look("fsync")
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        number = self._numbers.get((status.st_dev, status.st_ino))
        if number is None:
            return
        files, folders = self.moments[-1].files, self.moments[-1].folders
        if number in files:
            self._flushed_files[number] = files[number]
        elif number in folders:
            self._flushed_folders[number] = folders[number]

    def _scan(self) -> tuple[dict[int, bytes], dict[int, dict[str, int]]]:
        files: dict[int, bytes] = {}
        folders: dict[int, dict[str, int]] = {}
        seen: dict[tuple[int, int], int] = {}

        def number(path: Path) -> int:
            status = path.stat()
            inode = (status.st_dev, status.st_ino)
            if inode not in seen:
                if inode not in self._numbers:  # new, or one that was removed and whose number is used again
                    self._numbers[inode], self._next = self._next, self._next + 1
                seen[inode] = self._numbers[inode]
            return seen[inode]

        def walk(folder: Path) -> int:
            own = number(folder)
            folders[own] = {}
            for path in sorted(folder.iterdir()):
                if path.is_dir():
                    folders[own][path.name] = walk(path)
                else:
                    folders[own][path.name] = number(path)
                    files[number(path)] = path.read_bytes()
            return own

        walk(self.root)
        self._numbers = seen  # those that are gone are forgotten
        return files, folders


def crashed(moment: Moment) -> Tree:
    """What a kill at this moment leaves: everything the program has handed over."""
    return _tree(moment.folders, moment.files)


def torn(moment: Moment, before: Moment) -> Tree:
    """What a kill in the middle of the last writes leaves: files that have grown since ``before`` are half there."""
    files = dict(moment.files)
    for number, data in files.items():
        had = before.files.get(number, b"")
        if len(data) > len(had):
            files[number] = data[: (len(had) + len(data)) // 2]
    return _tree(moment.folders, files)


def power_cut(moment: Moment, kind: str, seed: int = 0) -> Tree:
    """What a disk that loses what was not flushed holds afterwards.

    ``strict``: names and contents as last flushed. ``names first``: all names are there, contents as last flushed,
    which is nothing for most. ``any``: each folder's names old or new, each unflushed file's contents empty, half or
    whole.
    """
    if kind == "strict":
        contents = {number: moment.flushed_files.get(number, b"") for number in moment.files} | moment.flushed_files
        return _tree(moment.flushed_folders, contents)
    if kind == "names first":
        return _tree(moment.folders, {number: moment.flushed_files.get(number, b"") for number in moment.files})
    draw = random.Random(seed)
    folders = {
        number: draw.choice([names, moment.flushed_folders.get(number, {})])
        for number, names in {**moment.flushed_folders, **moment.folders}.items()
    }
    files = dict(moment.flushed_files)
    for number, data in moment.files.items():
        had = moment.flushed_files.get(number, b"")
        files[number] = draw.choice([had, data, data[: max(len(had), len(data) // 2)]])
    return _tree(folders, files)


def _tree(folders: dict[int, dict[str, int]], files: dict[int, bytes]) -> Tree:
    """Paths from the first folder on, which is the recorded one."""
    known = set(files) | {number for names in folders.values() for number in names.values()}

    def walk(number: int, prefix: str) -> Iterator[tuple[str, bytes | None]]:
        for name, child in folders.get(number, {}).items():
            path = f"{prefix}{name}"
            if child in files:
                yield path, files[child]
            elif child in known:
                yield path, None
                yield from walk(child, path + "/")

    return dict(walk(min(folders), ""))


def digest(tree: Tree) -> str:
    """Equal for equal trees."""
    whole = hashlib.sha256()
    for path, data in sorted(tree.items()):
        whole.update(f"{path}\0{data is None}\0{hashlib.sha256(data or b'').hexdigest()}\n".encode())
    return whole.hexdigest()


def put(tree: Tree, folder: Path) -> None:
    """Make a new folder that holds a tree."""
    folder.mkdir(parents=True)
    for path, data in sorted(tree.items()):
        if data is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
    for path, data in tree.items():
        if data is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def states(moments: list[Moment], *, cuts: int = 1) -> dict[str, dict[str, Tree]]:
    """Every different state after a kill, a torn write, and a power cut of each kind; by kind, then by a label."""
    found: dict[str, dict[str, Tree]] = {}
    seen: set[str] = set()

    def add(kind: str, label: str, tree: Tree) -> None:
        mark = digest(tree)
        if mark not in seen:
            seen.add(mark)
            found.setdefault(kind, {})[f"{len(seen):04d} {label}"] = tree

    for moment in moments:
        add("killed", moment.label, crashed(moment))
    for before, moment in itertools.pairwise(moments):
        add("torn", moment.label, torn(moment, before))
    for i, moment in enumerate(moments):
        add("power cut, strict", moment.label, power_cut(moment, "strict"))
        add("power cut, names first", moment.label, power_cut(moment, "names first"))
        for n in range(cuts):
            add("power cut, any", moment.label, power_cut(moment, "any", seed=1000 * i + n))
    return found
