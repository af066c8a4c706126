"""The one exception a user is meant to see.

The command line prints its message on one line and exits with code 2; everything else that escapes is a bug and
keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class RlifError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where (file, line, key), what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a misspelt one, however little; "" if none is known."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)), "")
