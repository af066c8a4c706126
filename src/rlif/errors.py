"""The one exception a user is meant to see.

The command line prints its message on one line and exits with code 2; everything else that escapes is a bug and
keeps its traceback.
"""


class RlifError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where (file, line, key), what to do."""
