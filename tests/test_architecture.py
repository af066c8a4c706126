"""The house plan, kept: a module imports only from rooms above its own, and the command line starts light."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import rlif

SOURCE = Path(rlif.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"

ORDER = (
    *("errors", "utils", "config", "types", "rng", "signals", "recipe_hints", "recipes", "recipe_keys"),
    *("tiny", "grading", "model", "tasks", "analysis", "rollout", "rewards", "runs", "monitoring", "evals", "training"),
    *("report", "integrations", "theory", "experiments", "api", "cli", "__main__"),
)
"""Rooms from the ground up: folders, and the few modules beside them. docs/architecture.md says what is where."""


def room(module: str) -> str:
    """The folder or top-level module that ``module`` (dotted, without the leading ``rlif.``) is in."""
    name = module.partition(".")[0]
    assert name in ORDER, f"rlif.{module} has no place in ORDER: give it one"
    return name


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
    known = {"errors", "signals", "training.loop", "cli", "cli.main", "tasks", "tasks.base"}
    forbidden = (
        "import rlif.cli.main",
        "from rlif.cli.main import main",
        "from rlif import cli",
        "def f():\n from rlif import cli",
    )
    for source in forbidden:
        assert len(violations("training.loop", source, known)) == 1, source
    allowed = ("import torch", "from rlif import __version__", "from rlif.signals import entropy", "import rlif.errors")
    for source in (*allowed, "import rlif.tasks.base"):
        assert violations("training.loop", source, known) == [], source
    assert violations("signals", "from rlif.tasks.base import Task", known) != []
    assert violations("tasks.base", "from rlif import tasks", known) == []  # one room


def imported(source: str, known: set[str]) -> set[str]:
    """Modules that a module needs while it is imported: what stands in functions or under TYPE_CHECKING is not."""
    body = list(ast.parse(source).body)
    names: set[str] = set()
    while body:
        node = body.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            whole = str(node.module)
            names |= {
                f"{whole}.{alias.name}" if f"{whole}.{alias.name}"[5:] in known else whole for alias in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return {name[5:] for name in names if name.startswith("rlif.") and name[5:] in known}


def test_no_module_needs_itself_to_be_imported() -> None:
    known = modules()
    graph = {module: imported(path.read_text("utf-8"), set(known)) for module, path in known.items()}
    assert len(graph["training.loop"]) > 5  # it sees imports at all
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert imported("from rlif import a\nif TYPE_CHECKING:\n import rlif.b\ndef f():\n import rlif.b", {"a", "b"}) == {
        "a"
    }


MOST_LINES, MOST_PARAMETERS = 60, 7
LARGER = {
    "cli.commands.diagnose.diagnose": "every option of the command is a parameter",
    "cli.commands.evaluate.evaluate": "every option of the command is a parameter",
    "cli.commands.study.study": "every option of the command is a parameter",
    "cli.commands.train.train": "every option of the command is a parameter",
    "cli.commands.sample.sample": "every option of the command is a parameter",
    "cli.commands.sft.sft": "every option of the command is a parameter",
    "cli.sample.print_samples": "every option of the command is a parameter",
    "training.loop.train": "each is asked for by one of its callers: the command line, Python, a study, tests",
    "training.loop.resume": "as train",
    "integrations.trl_callbacks.AgreementProbe.__init__": "what a recipe's section probe holds, as keywords",
    "monitoring.probe.Probe.__init__": "what a look draws, from whom, and what it is held against",
    "model.kernels.cpu.Kernels.attend": "what one call of C is given",
    "model.kernels.lm_head_triton._fold": "what one launch on a GPU is given",
    "model.kernels.lm_head_triton._merge": "what one launch on a GPU is given",
    "model.kernels.lm_head_triton._differentiate": "what one launch on a GPU is given",
}
"""Functions of more lines or parameters than a reader holds at once, and why they are."""


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Dotted name, lines and parameters (without self, cls and ctx) of each function, methods too."""
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(source))]
    while waiting:
        name, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}" if isinstance(child, ast.FunctionDef | ast.ClassDef) else name
            waiting.append((inner, child))
            if isinstance(child, ast.FunctionDef):
                arguments = (*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs)
                given = [argument.arg for argument in arguments if argument.arg not in ("self", "cls", "ctx")]
                yield inner, (child.end_lineno or 0) - child.lineno + 1, len(given)


def test_functions_fit_on_a_screen_and_take_few_parameters() -> None:
    found = {
        f"{module}{name}": (lines, given)
        for module, path in modules().items()
        for name, lines, given in functions(path.read_text("utf-8"))
    }
    large = {name for name, (lines, given) in found.items() if lines > MOST_LINES or given > MOST_PARAMETERS}
    assert large == set(LARGER), f"split it, or say why in LARGER: {sorted(large ^ set(LARGER))}"


def test_the_training_loop_fits_on_a_screen() -> None:
    lines = {name: lines for name, lines, _ in functions((SOURCE / "training" / "loop.py").read_text("utf-8"))}
    assert lines["._loop"] <= 50


def test_all_that_is_printed_goes_through_one_room() -> None:
    """`rlif.utils.terminal` filters what comes from outside; a `print` or a console of rich's own would go round it."""
    forbidden = {"print", "echo", "secho", "TextColumn", "from_markup"}
    found = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if module != "utils.terminal" and isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                bare = isinstance(node.func, ast.Name) or name != "print"  # console.print is a method of ours
                found += [f"rlif.{module}, line {node.lineno}: {name}"] if name in forbidden and bare else []
            if module != "utils.terminal" and isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                names = [alias.name for alias in node.names if alias.name == "Console"]
                found += [f"rlif.{module}, line {node.lineno}: {name} of rich" for name in names]
    assert not found, "\n".join(found)


RANDOM = ("Random", "Generator", "default_rng", "RandomState", "Philox", "PCG64", "manual_seed", "seed", "SystemRandom")
HASHES = ("blake2b", "blake2s", "crc32", "adler32")
SEEDED_EXPERIMENTS = {
    *("analysis.paired", "tiny.measure", "tiny.pretrain"),
    *("theory.figures", "theory.similarity", "theory.statements"),
}
"""Modules beside `rlif.rng` that make a generator from a number they are given, or hash what is no file."""


def makes_randomness(source: str) -> list[str]:
    """Calls that make a generator, seed one, or hash a name into a number (fingerprints of files take SHA-256)."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
    return sorted({name for name in names if name in (*RANDOM, *HASHES)})


def test_randomness_comes_from_one_room() -> None:
    """`rlif.rng` says which rule holds; a generator made elsewhere would depend on the order of the work."""
    found = {module: makes_randomness(path.read_text("utf-8")) for module, path in modules().items()}
    wrong = {module: names for module, names in found.items() if names and module not in {"rng", *SEEDED_EXPERIMENTS}}
    assert all(found[module] for module in SEEDED_EXPERIMENTS), "a module listed here makes no generator any more"
    assert not wrong, f"draw from rlif.rng, or add the module to SEEDED_EXPERIMENTS and say why: {wrong}"


def test_randomness_is_seen_however_it_is_written() -> None:
    for source in ("random.Random(1)", "torch.Generator().manual_seed(3)", "np.random.default_rng()", "blake2b(b'')"):
        assert makes_randomness(source), source
    for source in ("def f(random: Random): random.shuffle(x)", "sha256(path)", "keyed_random('eval', seed)"):
        assert not makes_randomness(source), source


def test_the_command_line_starts_light() -> None:
    heavy = ("torch", "transformers", "tokenizers", "matplotlib", "pyarrow", "numpy", "math_verify", "sympy")
    code = f"import sys, rlif.cli.main, rlif.training.own_data; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import rlif.cli.main loads {done.stdout.strip()}"


def file_list() -> str:
    """Every module below src/rlif with the first sentence of its docstring, room by room."""
    lines = []
    for name in ORDER:
        inside = sorted(SOURCE.glob(f"{name}.py")) or sorted(SOURCE.glob(f"{name}/**/*.py"))
        if len(inside) > 1:
            lines += ["", f"**{name}/** {first_sentence(SOURCE / name / '__init__.py')}".rstrip(), ""]
        modules = [path for path in inside if path.name != "__init__.py"]
        lines += [f"- `{path.relative_to(SOURCE)}`: {first_sentence(path)}" for path in modules]
    return "\n".join(lines).strip() + "\n"


def first_sentence(path: Path) -> str:
    """Of a module's docstring, on one line; empty without one."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0]
    return re.split(r"(?<=[.?])\s+(?=[A-Z`])", " ".join(paragraph.split()))[0]


def test_the_page_lists_every_module() -> None:
    _, _, listed = PAGE.read_text("utf-8").partition("## File by file")
    assert listed.partition("\n- ")[2], "docs/architecture.md has no list"
    assert listed.partition("anew.\n\n")[2] == file_list(), "run: python tests/test_architecture.py"


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text[: text.index("anew.\n\n") + len("anew.\n\n")] + file_list(), "utf-8")
