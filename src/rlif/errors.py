"""The one exception a user is meant to see, and the one filter for text that comes from outside.

The command line prints the exception's message on one line and exits with code 2; everything else that escapes is a
bug and keeps its traceback. Names, prompts, completions, a server's words and the messages of libraries may hold
anything, such as the codes that move a terminal's cursor: `printable` makes them visible, wherever they are shown.
"""

import difflib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple


class Argument(NamedTuple):
    """An argument of a library function, as part of a message. Recipe and command line call it by another name."""

    name: str


class RlifError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where (file, line, key), what to do.

    It is made of texts and of arguments: ``RlifError(Argument("model"), f": no such file: {path}")``. Who calls the
    library reads ``model: no such file``; who wrote a recipe reads ``policy.model: …``, through `named`.

    >>> import rlif
    >>> try:
    ...     rlif.load_recipe("tini")
    ... except rlif.RlifError as error:
    ...     message = str(error)
    >>> message.startswith("tini: no such recipe; give a YAML file, or the name of a shipped one")
    True
    """

    def __init__(self, *parts: str | Argument) -> None:
        super().__init__(*parts)
        self.names: dict[str, str] = {}

    def __str__(self) -> str:
        return printable("".join(p if isinstance(p, str) else self.names.get(p.name, p.name) for p in self.args))


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Let an `RlifError` that passes call arguments by these names; a name that was given further inside stays."""
    try:
        yield
    except RlifError as error:
        error.names = {**names, **error.names}
        raise


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
    """``value ± standard error``, in one format; an error that cannot be known, as of one problem, is ``–``."""
    known = error is not None and math.isfinite(error)
    return f"{value:{form}} ± {error:{form}}" if known else f"{value:{form}} ± –"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a misspelt one, however little; "" if none is known."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)), "")


_JOINERS = "\u200c\u200d"  # words of Persian and of India's languages, and families of emoji, need them


def _belongs_in_text(character: str) -> bool:
    return character in "\n\t" or character in _JOINERS or unicodedata.category(character) in ("Zs", "Cn", "Co")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
