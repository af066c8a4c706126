"""The grader's version is decided anew whenever its code changes."""

import ast
import hashlib
import io
import tokenize
from pathlib import Path

from rlif.grading import grader

DECIDED = ("3", "4ede6b6ef0079d40")
"""A version of the grader, and the digest of the code that it stands for."""

NO_GRADING = {"voting.py"}  # it counts verdicts


def code_of(source: str) -> str:
    """Source code without comments, docstrings, indentation and empty lines, which decide no verdict."""
    lines = io.StringIO(source).readlines()
    dropped = [
        (one.start, one.end)
        for one in tokenize.generate_tokens(io.StringIO(source).readline)
        if one.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            last = node.end_lineno or 0
            end = len(lines[last - 1].encode()[: node.end_col_offset].decode())  # ast counts bytes, tokenize characters
            dropped.append(((node.lineno, node.col_offset), (last, end)))
    for (first, start), (last, end) in sorted(dropped, reverse=True):
        rest = lines[last - 1][end:]
        lines[first - 1 : last] = [lines[first - 1][:start] + rest]
        lines[first:first] = [""] * (last - first)
    return "\n".join(filter(None, map(str.strip, "".join(lines).split("\n"))))


def digest() -> str:
    """Of all modules that grade, whatever they are called."""
    folder = Path(grader.__file__).parent
    sources = [path.read_text("utf-8") for path in folder.glob("*.py") if path.name not in NO_GRADING]
    parts = sorted(hashlib.sha256(code_of(source).encode()).hexdigest() for source in sources)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def test_a_change_of_the_grading_code_decides_on_its_version() -> None:
    assert (grader.GRADER_VERSION, digest()) == DECIDED, (
        "the code in rlif/grading has changed. If a verdict can change, raise GRADER_VERSION in grading/grader.py and "
        "say so in CHANGELOG.md ([numerics]); if none can, leave it. Then write version and digest into DECIDED in "
        f'this file: ("{grader.GRADER_VERSION}", "{digest()}")'
    )


def test_comments_docstrings_and_empty_lines_do_not_count_and_code_does() -> None:
    source = 'def f(x):\n    """Doc\n    string."""\n    return x + " "  # a sum\n'
    assert code_of(source) == 'def f(x):\nreturn x + " "'
    assert code_of('def f(x):\n\n    "Other words, é."  # é\n\n    # why\n    return x + " "') == code_of(source)
    assert code_of(source.replace('" "', '""')) != code_of(source)
    assert code_of('PATTERN = "#a"\n"""What it is."""\n') == 'PATTERN = "#a"'
