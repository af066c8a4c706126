"""Code of the user's own by its name, ``package.module:function``: found, told of, and only then imported.

Importing a module runs it, with all rights of who runs rlif. So the file is named on the screen before. The current
folder is searched first, then the folders that a resumed run was told of (`also_search`), then what is installed, but
for Python's own modules: a recipe that others wrote shall not call ``os:system``.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.errors import RlifError, brief, nearest
from rlif.utils import terminal
from rlif.utils.atomic_io import sha256

_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_folders: list[Path] = []
_told: set[str] = set()


@dataclass(frozen=True)
class Source:
    """Where a reference leads: the module's file (None: it has none), and the folder its import starts from (None: it
    is installed)."""

    file: Path | None
    folder: Path | None


def is_reference(name: str) -> bool:
    """Whether a name is of the form ``package.module:function``."""
    return _REFERENCE.fullmatch(name) is not None


def also_search(folder: Path) -> None:
    """Search a further folder, behind the current one."""
    if folder not in _folders:
        _folders.append(folder)


def find(reference: str, what: str) -> Source:
    """Where the module of a reference lies; nothing of it is run. ``what`` asks for it, for messages: ``reward``.

    Raises `RlifError` if it lies nowhere.
    """
    module = reference.partition(":")[0]
    relative = Path(*module.split("."))
    for folder in (Path.cwd(), *_folders):
        for path in (folder / relative.with_suffix(".py"), folder / relative / "__init__.py"):
            if path.is_file():
                return Source(path, folder)
    searched = ", ".join(str(folder) for folder in (Path.cwd(), *_folders))
    nowhere = RlifError(f"{what} {reference}: no module {module} in {searched}, and none of this name is installed")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise RlifError(f"{what} {reference}: {module} is a module of Python itself; name one of yours")
    # Of a package's module only the package is looked for: to find the module would run the package.
    try:
        top = importlib.util.find_spec(module.partition(".")[0])
    except ValueError:  # of __main__, say
        top = None
    if top is None:
        raise nowhere
    if not top.has_location or top.origin is None:
        return Source(None, None)  # built into Python, or a package without a file of its own
    if not Path(top.origin).is_file():
        raise nowhere  # imported once, and gone
    root = Path(top.origin).parents[1 if top.submodule_search_locations else 0]
    paths = (root / relative.with_suffix(".py"), root / relative / "__init__.py")
    return Source(next((path for path in paths if path.is_file()), Path(top.origin)), None)


def load(reference: str, what: str) -> Any:
    """What a reference names, its module imported after a line on stderr has named it.

    Raises `RlifError`, naming module and line, if the module cannot be imported or has no such name.
    """
    module, _, name = reference.partition(":")
    source = find(reference, what)
    if module not in _told:
        terminal.note(f"rlif: {what} {reference}: importing {source.file or module}, which runs its code")
    _told.add(module)
    with _searched_first(source.folder):
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise RlifError(f"{what} {reference}: importing {module} failed ({said(error, source.file)})") from error
    _check_place(found, source, reference, what)
    if not hasattr(found, name):
        there = [known for known, value in vars(found).items() if callable(value) and not known.startswith("_")]
        meant = f"; did you mean {nearest(name, there)}?" if there else ""
        raise RlifError(f"{what} {reference}: {source.file or module} has no {name}{meant}")
    return getattr(found, name)


def record(reference: str, what: str) -> dict[str, str]:
    """What a run writes down of code that is not rlif's: ``file``, ``folder`` and the file's ``sha256``, as known."""
    source = find(reference, what)
    known = {"file": source.file, "folder": source.folder}
    mark = {"sha256": sha256(source.file)} if source.file else {}
    return {name: str(path.resolve()) for name, path in known.items() if path} | mark


def said(error: BaseException, file: Path | None) -> str:
    """An exception in a few words, with the last line of ``file`` that it came through, else the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and _same(Path(frame.filename), file)]
    last = next(iter((own or frames)[-1:]), None)
    line = error.lineno if isinstance(error, SyntaxError) else last.lineno if last else None
    name = error.filename if isinstance(error, SyntaxError) else last.filename if last else None
    where = f", {Path(name).name}:{line}" if name and line else ""
    return f"{type(error).__name__}: {brief(str(error))}{where}"


def _same(one: Path, other: Path) -> bool:
    return one.name == other.name and one.resolve() == other.resolve()


@contextmanager
def _searched_first(folder: Path | None) -> Iterator[None]:
    """While it lasts Python looks into a folder first; afterwards last, for what its code imports later."""
    if folder is None:
        yield
        return
    before = sys.path
    sys.path = [str(folder), *before]
    importlib.invalidate_caches()  # a file may be newer than what Python knows of the folder
    try:
        yield
    finally:
        sys.path = before if str(folder) in before else [*before, str(folder)]


def _check_place(module: Any, source: Source, reference: str, what: str) -> None:
    """Raise `RlifError` if a file of the user's own is called like a module that was imported before it."""
    file = getattr(module, "__file__", None)
    if source.folder is not None and source.file is not None and not (file and _same(Path(file), source.file)):
        raise RlifError(
            f"{what} {reference}: {module.__name__} is already {file or 'a module of Python'}; give "
            f"{source.file} another name"
        )
