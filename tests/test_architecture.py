"""The house plan, kept: a module imports only from rooms above its own, and the command line starts light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import rlif

SOURCE = Path(rlif.__file__).parent

ORDER = (
    "errors",
    "explain",
    "yaml_text",
    "paths",
    "terminal",
    "memory",
    "disk",
    "parquet_files",
    "interrupts",
    "types",
    "drawing",
    "config",
    "recipes",
    "signals",
    "tiny",
    "models",
    "model_files",
    "model_checks",
    "_template_worker",
    "chat_templates",
    "cpu",
    "layers",
    "head_triton",
    "head",
    "decoder",
    "packing",
    "cache",
    "template_clock",
    "policy",
    "positions",
    "logprobs",
    "draw",
    "masking",
    "exchange",
    "wire",
    "endpoint",
    "inflight",
    "graphs",
    "rollout",
    "numerals",
    "units",
    "quantities",
    "normalize",
    "rationals",
    "mismatch",
    "_math_worker",
    "readings",
    "equivalence",
    "prose",
    "extraction",
    "grading",
    "tasks",
    "prompts",
    "rewards",
    "optim",
    "grpo",
    "entropy_watch",
    "history",
    "runlog",
    "sinks",
    "checkpoint",
    "resumption",
    "analysis",
    "evals",
    "evaluate",
    "provenance",
    "run",
    "train",
    "progress",
    "shading",
    "report",
    "theory",
    "quickstart",
    "cli",
    "__main__",
)
"""Rooms from the ground up. A package is one room; a module of it with a place of its own is named in full."""


def room(module: str) -> str:
    """The most specific entry of ORDER that holds ``module`` (dotted, without the leading ``rlif.``)."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    found = next((name for name in names if name in ORDER), None)
    assert found is not None, f"rlif.{module} has no place in ORDER: give it one"
    return found


def modules() -> dict[str, Path]:
    """Every module below rlif, dotted and without the leading ``rlif.``; packages by their own name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each rlif import, those inside functions too: a late import is still a dependency."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full, not relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("rlif."):
                yield node.lineno, name.removeprefix("rlif.")


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """One line for each import by ``module`` of a room that stands above its own."""
    own = room(module)
    wrong = []
    for line, name in imports(source):
        target = name if name in known else name.rpartition(".")[0]  # the last part may be a name inside a module
        if target not in known:
            continue  # a name of rlif itself, such as __version__
        if ORDER.index(room(target)) > ORDER.index(own):
            wrong.append(f"rlif.{module}, line {line}: imports rlif.{target}, which stands above it")
    return wrong


def test_modules_import_only_from_below() -> None:
    known = modules()
    wrong = [line for module, path in known.items() for line in violations(module, path.read_text("utf-8"), set(known))]
    assert not wrong, "\n".join(wrong)


def test_a_violation_is_seen_however_it_is_written() -> None:
    known = {"errors", "signals", "train", "cli", "tasks", "tasks.base"}
    forbidden = (
        "import rlif.cli",
        "from rlif.cli import main",
        "from rlif import cli",
        "def f():\n from rlif import cli",
    )
    for source in forbidden:
        assert len(violations("train", source, known)) == 1, source
    allowed = ("import torch", "from rlif import __version__", "from rlif.signals import entropy", "import rlif.errors")
    for source in (*allowed, "import rlif.tasks.base"):
        assert violations("train", source, known) == [], source
    assert violations("signals", "from rlif.tasks.base import Task", known) != []
    assert violations("tasks.base", "from rlif import tasks", known) == []  # one room


def test_all_that_is_printed_goes_through_one_room() -> None:
    """`rlif.terminal` filters what comes from outside; a `print` or a console of rich's own would go round it."""
    forbidden = {"print", "echo", "secho", "TextColumn", "from_markup"}
    found = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if module != "terminal" and isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                bare = isinstance(node.func, ast.Name) or name != "print"  # console.print is a method of ours
                found += [f"rlif.{module}, line {node.lineno}: {name}"] if name in forbidden and bare else []
            if module != "terminal" and isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                names = [alias.name for alias in node.names if alias.name == "Console"]
                found += [f"rlif.{module}, line {node.lineno}: {name} of rich" for name in names]
    assert not found, "\n".join(found)


def test_the_command_line_starts_light() -> None:
    heavy = ("torch", "transformers", "tokenizers", "matplotlib", "pyarrow", "numpy", "math_verify", "sympy")
    code = f"import sys, rlif.cli; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import rlif.cli loads {done.stdout.strip()}"
