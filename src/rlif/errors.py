"""The one exception a user is meant to see, and the one filter for text that comes from outside.

The command line prints the exception's message on one line and exits with code 2; everything else that escapes is a
bug and keeps its traceback. Names, prompts, completions, a server's words and the messages of libraries may hold
anything, such as the codes that move a terminal's cursor: `printable` makes them visible, wherever they are shown.
"""

import difflib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Argument(NamedTuple):
    """An argument of a library function, as part of a message. Recipe and command line call it by another name."""

    name: str


class Advice(NamedTuple):
    """What to do next, as part of a message: in Python, and on the command line."""

    python: str
    command: str


Names = Mapping[str, str | Argument]
"""Argument → what the caller calls it: a word, or an argument of its own, which its callers may call otherwise."""


def spelled(parts: Iterable[object], names: Names, *, command_line: bool) -> str:
    """The parts of a message as one printable line: arguments by their names, advice for who reads it."""
    said = []
    for part in parts:
        if isinstance(part, Argument):
            called = names.get(part.name, part.name)
            said.append(str(names.get(called.name, called.name) if isinstance(called, Argument) else called))
        elif isinstance(part, Advice):
            said.append(part.command if command_line else part.python)
        else:
            said.append(str(part))
    return printable("".join(said))


class RlifError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where (file, line, key), what to do.

    It is made of texts, arguments and advice: ``RlifError(Argument("model"), f": no such file: {path}")``. Who calls
    the library reads ``model: no such file``; who wrote a recipe reads ``policy.model: …``, through `named`. Who calls
    it reads `Advice` for Python, who types a command that for commands: rlif.cli.main sets ``command_line``.

    >>> import rlif
    >>> try:
    ...     rlif.load_recipe("tini")
    ... except rlif.RlifError as error:
    ...     message = str(error)
    >>> message.startswith("tini: no such recipe; give a YAML file, or the name of a shipped one")
    True
    """

    def __init__(self, *parts: str | Argument | Advice) -> None:
        super().__init__(*parts)
        self.names: dict[str, str | Argument] = {}
        self.command_line = False

    def __str__(self) -> str:
        return spelled(self.args, self.names, command_line=self.command_line)


class ToldElsewhereError(RlifError):
    """Another process of the same run has failed, and has said so. ``code`` is the exit code it ends with."""

    def __init__(self, rank: int, code: int, said: str) -> None:
        super().__init__(f"rank {rank}: {said}")
        self.code = code


@contextmanager
def named(names: Names) -> Iterator[None]:
    """Let an `RlifError` that passes call arguments by these names; a name that was given further inside stays."""
    try:
        yield
    except RlifError as error:
        error.names = {**names, **error.names}
        raise


def expect(value: object, kinds: type | tuple[type, ...], argument: str, wanted: str) -> None:
    """Raise `RlifError` for an argument that is of none of these types; ``wanted`` says what it should be."""
    if not isinstance(value, kinds):
        raise RlifError(Argument(argument), f": expected {wanted} (given {shown(value)})")


def expect_each(values: object, kind: type, argument: str, wanted: str) -> None:
    """Raise `RlifError` unless an argument is a list of values of a type; ``wanted`` says what the list should be."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RlifError(Argument(argument), f": expected {wanted} (given {shown(values)})")
    for place, value in enumerate(values):
        if not isinstance(value, kind):
            raise RlifError(Argument(argument), f": expected {wanted} (given {shown(value)} at place {place})")


def printable(text: str) -> str:
    r"""One line that a terminal shows as it is written: every other character becomes its escape, such as ``\x1b``.

    Escaped are control characters, line ends, what turns the direction of writing, lone surrogates, and spaces that
    cannot be told from a space: all that `str.isprintable` refuses. To apply it twice changes nothing.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def printable_lines(text: str) -> str:
    r"""As `printable` for running text, which keeps its line ends, tabs, joiners and spaces of any width."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or _belongs_in_text(c) else _escape(c) for c in text)


def shown(value: object, most: int = 60) -> str:
    """A value as Python writes it, printable, at most that many characters; whatever its ``repr`` does."""
    if isinstance(value, str):
        value = value[: 2 * most]  # a text of a gigabyte need not be written out first
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes; what contains itself
        text = f"a {type(value).__name__} too long to show"
    return shortened(printable(text), most)


def shortened(text: str, most: int) -> str:
    """The text, or as much of it as leaves room for an ellipsis in that many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def brief(text: str, most: int = 300) -> str:
    """What somebody else wrote, on one line, printable, at most that many characters."""
    return shortened(printable(" ".join(text[: 8 * most].split())), most)


def with_error(value: float, error: float | None, form: str) -> str:
    """``value ± standard error``, in one format; an error that cannot be known is ``–``: of one problem, or of problems
    that are all alike, whose spread of 0 is no sign that the mean is exact."""
    known = error is not None and math.isfinite(error) and error > 0.0
    return f"{value:{form}} ± {error:{form}}" if known else f"{value:{form}} ± –"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a misspelt one, however little; "" if none is known."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)), "")


def near(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant: of which this is a beginning or an end, or a misspelling; "" if none is
    near enough to be guessed."""
    names = list(known)
    if misspelt := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
        return misspelt[0]
    parts = [one for one in names if len(name) > 2 and (one.startswith(name) or one.endswith(f"_{name}"))]
    return parts[0] if len(parts) == 1 else next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for a name that is near a known one, else nothing."""
    meant = near(name, known)
    return f"; did you mean {meant}?" if meant else ""


_JOINERS = "\u200c\u200d"  # words of Persian and of India's languages, and families of emoji, need them


def _belongs_in_text(character: str) -> bool:
    return character in "\n\t" or character in _JOINERS or unicodedata.category(character) in ("Zs", "Cn", "Co")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
