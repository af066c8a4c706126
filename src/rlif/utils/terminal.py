"""All that is printed goes through here: one filter for foreign text, one line where nothing can be written.

`print` and rich's own console are used nowhere else (`tests/test_architecture.py`). Nothing printed is ever read as
rich markup, and what text holds besides text becomes visible (`rlif.errors.printable`).
"""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.progress import TextColumn
from rich.segment import Segment
from rich.text import Text

from rlif.errors import RlifError, printable, printable_lines, shortened

_LONGEST = 2000  # characters of a message: a name or a library's word may have millions
_NARROWEST = 20  # columns; what claims to be narrower has no screen at all


class OutputError(RlifError):
    """What was to be printed could not be written."""


class Console(rich.console.Console):
    """rich's console without markup, emoji codes and guessed highlighting; whatever it shows is printable."""

    def __init__(self, **options: Any) -> None:
        """``options`` as of rich's console."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def write_line(self, text: str = "") -> None:
        """One line, as long as it is: what a pipe or a log is given must not be wrapped."""
        self.print(Text(printable(text)), soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Strings in tables, too; before they are measured, so that a cell is as wide as what it shows."""
        return super().render_str(printable_lines(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The last net: no control code but rich's own leaves here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar that shows names and numbers as they are."""
    return TextColumn(template, markup=False)


def say(text: str = "") -> None:
    """One printable line on stdout. Raises `OutputError` if it cannot be written, BrokenPipeError if nobody reads."""
    print(printable(text))


def note(text: str) -> None:
    """One printable line on stderr; lost where stderr is closed or full, for there is no place left to tell it."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError, OutputError):
            print(shortened(printable(text), _LONGEST), file=sys.stderr, flush=True)


def hush() -> None:
    """From here on nothing is printed or warned of: of several processes that do the same, one speaks for all."""
    global _spoken
    if _spoken is None:
        _spoken = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (closed by `speak`)


def speak() -> None:
    """Take `hush` back: this process has something to say after all."""
    global _spoken
    if _spoken is not None:
        nowhere, (sys.stdout, sys.stderr), _spoken = sys.stdout, _spoken, None
        if nowhere is not None:
            nowhere.close()


_spoken: tuple[Any, Any] | None = None
"""stdout and stderr of a process that is hushed."""


def note_bug(error: BaseException) -> None:
    """The traceback of what is a mistake of ours, printable, on stderr."""
    speak()
    for line in "".join(traceback.format_exception(error)).splitlines():
        note(line)


def prepare() -> None:
    """Before anything is printed or opened: streams take any character, warnings and what is logged are a line each.

    A closed stdin, stdout or stderr is pointed at nothing: else the next file opened would get its number, and what
    another program prints would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # ± on an ASCII terminal
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "")
        if value and not (value.isdecimal() and value.isascii() and _NARROWEST <= int(value[:9]) < 10_000):
            del os.environ[name]
    warnings.formatwarning = lambda message, *_, **__: f"rlif: warning: {_brief(str(message))}\n"
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())


class _OneLine(logging.Formatter):
    """What a library logs and nobody asked for, as a line like our own."""

    def format(self, record: logging.LogRecord) -> str:
        return f"rlif: {record.levelname.lower()}: {_brief(record.getMessage())}"


def _brief(text: str) -> str:
    return shortened(printable(" ".join(text.split())), _LONGEST)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """While it lasts, stdout that cannot be written raises `OutputError`, and stderr takes nothing unprintable."""
    before = sys.stdout, sys.stderr
    sys.stdout = before[0] and _Guarded(before[0])
    sys.stderr = before[1] and _Filtered(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def give_up(stream: Any) -> None:
    """What a stream still holds goes nowhere: it cannot be written, and Python would try again at its end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Guarded:
    """A stream whose failure to write is the user's to mend."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            return int(self._stream.write(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            remedy = "what was written to files is whole: make room, or send the output elsewhere"
            raise OutputError(f"stdout: cannot write ({error.strerror or error}); {remedy}") from error


_COLOUR = re.compile(r"(\x1b\[[0-9;:]{0,40}m)")


class _Filtered:
    """A stream that lets text through and nothing that only pretends to be; on a terminal, colours of libraries too."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._colours = bool(getattr(stream, "isatty", lambda: False)())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        parts = _COLOUR.split(text) if self._colours else [text]  # every second one is a colour
        self._stream.write("".join(part if i % 2 else _without_codes(part) for i, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def _without_codes(text: str) -> str:
    return "\r".join(printable_lines(part) for part in text.split("\r"))  # \r: bars of libraries
