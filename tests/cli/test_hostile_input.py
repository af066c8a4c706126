"""Whatever name or file a command is given: it ends, in one printable line, and leaves nothing half-made behind."""

import json
import os
import random
import subprocess
import sys
import warnings
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file, save_file

from hostile import COMMANDS, FILES, NAMES, damaged, fault, options, run, tried, with_option, write
from rlif.cli import main
from rlif.cli.train_progress import eval_parts, show_progress
from rlif.errors import RlifError, printable, printable_lines, shown, with_error
from rlif.evals.tables import task_view
from rlif.recipes import load_recipe, shipped_recipes
from rlif.utils.terminal import Console, OutputError, give_up, guarded_streams, text_column
from rlif.utils.yaml_text import YamlError, read_yaml
from toys import toy_policy

ANY_TEXT = st.text(st.characters(), max_size=60) | st.sampled_from(NAMES).map(lambda name: name[:300])
BOMB = "[&a [1, 2]" + "".join(f", &{b} [{f'*{a},' * 9}]" for a, b in zip("abcdef", "bcdefg", strict=True)) + "]"
"""Seven short lists, of which the last holds a million values."""

WILD = "\x1b[31m\x9b\x7f\u202e\u2028\u2066\ud800\r[/b][link=x]"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write({"file": b""})


# The filter.


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [StringIO, Screen])
@pytest.mark.parametrize("how", ["write", "writelines"])
def test_colours_of_libraries_are_shown_on_a_terminal_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, stream: type[StringIO], how: str
) -> None:
    errors = stream()
    monkeypatch.setattr(sys, "stderr", errors)
    text = "\r\x1b[1;34mwandb\x1b[0m: \x1b[38;2;1;2;3mx\x1b[m\x1b[2J\x1b]0;t\x07\x1b[31\x1b[3\u202em\n"
    with guarded_streams():
        getattr(sys.stderr, how)(text if how == "write" else [text])
    rest = r"\x1b[2J\x1b]0;t\x07\x1b[31\x1b[3\u202em"
    colours = ["\x1b[1;34m", "\x1b[0m", "\x1b[38;2;1;2;3m", "\x1b[m"]
    shown = colours if stream is Screen else [colour.replace("\x1b", r"\x1b") for colour in colours]
    assert errors.getvalue() == "\r{}wandb{}: {}x{}".format(*shown) + rest + "\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_lines_that_cannot_be_written_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with guarded_streams(), pytest.raises(OutputError, match="cannot write"):
            sys.stdout.writelines(["a\n"])
        give_up(full)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_the_filter_lets_nothing_through_that_is_no_text(text: str) -> None:
    line, lines = printable(text), printable_lines(text)
    assert line.isprintable()
    assert (line == text) is text.isprintable()
    assert printable(line) == line
    assert printable_lines(lines) == lines
    lines.encode()  # no half of a character
    assert not set(lines) & set("\x1b\x07\x08\r\x7f\x85\x9b\u200e\u2028\u2029\u202a\u202e\u2066\ufeff")
    assert str(RlifError(text)).isprintable()
    assert len(shown(text)) <= 60


def test_the_filter_shows_what_it_stopped() -> None:
    assert printable("a\x1b[2Jb\u202e\nc\ud800") == r"a\x1b[2Jb\u202e\nc\ud800"
    persian = "می\u200cخواهم\tnaïve\u202f½\n👩\u200d🚀"
    assert printable_lines(persian) == persian
    assert shown(10**5000) == "a int too long to show"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=ANY_TEXT, terminal=st.booleans(), width=st.integers(1, 100))
def test_a_console_shows_no_foreign_code_and_reads_no_markup(text: str, terminal: bool, width: int) -> None:
    out = StringIO()
    color = "truecolor" if terminal else None
    console = Console(file=out, force_terminal=terminal, color_system=color, width=width, legacy_windows=False)
    table = Table(text, title=text)
    table.add_row(text)
    for each in (text, Text(text), table):
        console.print(each)
    console.write_line(text)
    seen = out.getvalue()
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[3m"):  # rich's own: a header is bold, a title is in italics
        seen = seen.replace(code, "")
    assert not set(seen) & set("\x1b\x07\x08\r\x7f\x9b\u202e\u2066\ud800")


@pytest.mark.parametrize("name", [name for name in NAMES if len(name) < 400])
def test_bars_and_tables_show_names_as_they_are(name: str) -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=200, legacy_windows=False, color_system=None)
    task: Any = type("Task", (), {"description": name, "fields": {}})()
    assert text_column("{task.description}").render(task).plain.count("[") == name.count("[")
    with show_progress(console, load_recipe(shipped_recipes()["tiny"], ["steps=1"])) as callback:
        callback.begin(name, 1, 10)
        callback.logged(1, {f"reward/{name}/mean": 1.0})
    assert "\x1b[2J" not in out.getvalue().replace("\x1b[2K", "")
    assert "\x1b]0" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


# Numbers without an error.


def test_an_error_that_cannot_be_known_is_no_number() -> None:
    assert with_error(0.5, 0.125, ".2f") == "0.50 ± 0.12"
    assert with_error(0.5, float("nan"), ".2f") == with_error(0.5, None, ".2f") == "0.50 ± –"
    assert with_error(1.0, 0.0, ".2f") == "1.00 ± –"  # eight of eight are no proof that all are
    metrics = {"eval/right": 1.0, "eval/right_stderr": float("nan"), "eval/right_and_formatted": 1.0}
    assert eval_parts({**metrics, "eval/entropy": 0.1, "eval/n": 1.0})[0] == "eval: right 1.000 ± –"


# Recipes.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2001-13-45", "2001-13-45"),
        ("2001-01-01", "2001-01-01"),
        ("a: =", {"a": "="}),
        ("{a: &x {p: 1, q: 2}, b: {<<: *x, q: 3}}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        (
            "{d: {a: &x {p: 1}, b: &y {<<: *x, p: 2}}, c: {<<: *y}}",
            {"d": {"a": {"p": 1}, "b": {"p": 2}}, "c": {"p": 2}},
        ),
        ("{<<: [{a: 1}, {b: 2}], c: 3}", {"a": 1, "b": 2, "c": 3}),
        ("[1, 0x1F, 1.5, .5, true, null, ~, 'x', off]", [1, 31, 1.5, 0.5, True, None, None, "x", False]),
    ],
)
def test_yaml_that_a_recipe_may_hold(text: str, value: object) -> None:
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!int a", "'a' is no int"),
        ("!!float a", "'a' is no float"),
        ("!!bool a", "'a' is no bool"),
        ("!!timestamp a", "'a' is no timestamp"),
        ("9" * 5000, "too long for a number"),
        ("0b" + "1" * 20_000, "too long for a number"),
        ("1:" * 3000 + "1", "too long for a number"),
        ("[" * 900, "levels deep"),
        ("[" * 20_000, "levels deep"),
        ("{a: " * 900, "levels deep"),
        ("- " * 900, "levels deep"),
        ("&a [*a]", "an alias inside of what it stands for"),
        ("&a {b: {c: *a}}", "an alias inside of what it stands for"),
        (BOMB, "more than 20,000 values"),
        ("[" + "1," * 30_000 + "]", "more than 20,000 values"),
        ("a: " + "x" * 300_000, "characters"),
        ("{a: 1, a: 2}", "'a' stands twice"),
        ("{1: 1, 1: 2}", "'1' stands twice"),
        ("{[a]: 1}", "a key that is no plain value"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("*a", "undefined alias"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("a:\t- 1\n\t- 2", ""),
        ("a: \0", ""),
        ("a: \x1b", ""),
    ],
)  # fmt: skip
def test_yaml_that_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(YamlError) as raised:
        read_yaml(text)
    assert said in str(raised.value)
    assert len(printable(str(raised.value))) < 1000


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(key=ANY_TEXT, value=ANY_TEXT)
def test_any_override_is_read_or_refused_in_one_line(key: str, value: str) -> None:
    Path("recipe.yaml").write_text(FILES["a recipe"][0]["recipe.yaml"])
    for override in (f"{key}={value}", f"task.question={value}", f"grpo.{key}={value}", f"steps={value}", key):
        with suppress(RlifError):
            load_recipe(Path("recipe.yaml"), [override])
            continue
        with pytest.raises(RlifError) as raised:
            load_recipe(Path("recipe.yaml"), [override])
        assert str(raised.value).isprintable()
        assert "Input should" not in str(raised.value), "pydantic's own words"


# Commands.


def test_a_file_of_problems_that_is_no_file() -> None:
    """A pipe would be waited for, and a name with a NUL is none."""
    os.mkfifo("pipe.jsonl")
    data = ["--tasks", "own", "--data", "own=pipe.jsonl", "--out", "file/judged"]
    assert "no regular file" in run(["eval", "tiny-base", *data]).err
    recipe = FILES["a recipe"][0]["recipe.yaml"].replace("name: arithmetic", 'name: file\n  path: "a\\0b.jsonl"')
    write({"recipe.yaml": recipe.replace('  question: "{a}+{b}=?"\n', "").encode()})
    wrong, outcome = tried(["train", "recipe.yaml", "--out", "run"])
    assert not wrong, outcome.err
    assert r"a\x00b.jsonl: no file can have this name" in outcome.err


@pytest.mark.parametrize("place", COMMANDS)
def test_a_hostile_name_is_refused_in_one_line(place: str) -> None:
    for name in NAMES:
        wrong, outcome = tried(COMMANDS[place](name))
        assert not wrong, f"{name[:80]!r}: {wrong}\n{outcome.err}"
        assert outcome.code == 2, f"{name[:80]!r} was taken"


@pytest.mark.parametrize(("command", "option"), options())
def test_a_hostile_value_of_any_option_is_refused_in_one_line(command: str, option: str) -> None:
    """Of the names a fifth, each option another."""
    for name in NAMES[len(command + option) % 5 :: 5]:
        wrong, outcome = tried(with_option(command, option, name))
        assert not wrong, f"{name[:80]!r}: {wrong}\n{outcome.err}"
        assert outcome.code == 2, f"{name[:80]!r} was taken"


def numbers() -> list[tuple[str, str]]:
    """The options that are numbers with decimals, of every command."""
    hints = {command.name or "": get_type_hints(command.callback) for command in main.app.registered_commands}
    return [
        (command, f"--{name.replace('_', '-')}")
        for command, kinds in hints.items()
        for name, kind in kinds.items()
        if float in (kind, *get_args(kind))
    ]


@pytest.mark.parametrize(("command", "option"), numbers())
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_option(command: str, option: str) -> None:
    for name in ("nan", "inf"):
        wrong, outcome = tried(with_option(command, option, name))
        assert not wrong, f"{name}: {wrong}\n{outcome.err}"
        assert option in outcome.err, f"{name} was taken: {outcome.err}"


def test_there_are_options_that_are_numbers() -> None:
    assert {("eval", "--max-mismatch"), ("eval", "--timeout"), ("sample", "--top-p")} <= set(numbers())


@pytest.mark.parametrize("place", FILES)
def test_a_damaged_file_is_refused_in_one_line(place: str) -> None:
    files, arguments = FILES[place]
    chance = random.Random(place)
    for _ in range(25):
        hostile = {name: damaged(content.encode(), chance) for name, content in files.items()}
        write(hostile)
        wrong, outcome = tried(arguments)
        assert not wrong, f"{hostile}: {wrong}\n{outcome.err}"


def test_a_command_may_end_well_in_the_midst_of_it() -> None:
    """What is shown then is printable, and read as no markup."""
    out = "o[/b]\x1b[2J\u202e$\\frac{"
    small = ["steps=1", "rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "eval.every=0"]
    outcome = run(["train", "tiny", *small, "--out", out])
    assert outcome.code == 0, outcome.err
    assert f"final model: {printable(out)}/final" in outcome.out
    assert not fault(outcome, [], [])
    assert (Path(out) / "final" / "model.safetensors").is_file()


def test_a_hostile_tokenizer_and_a_hostile_model_name(tmp_path: Path) -> None:
    folder = tmp_path / f"m{WILD.replace(chr(0xD800), '').replace('/', '')}$x$"
    toy_policy("llama").save(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    needed = {*"1+=?", *(token["content"] for token in tokenizer["added_tokens"]), tokenizer["model"].get("unk_token")}
    hostile = {(word if word in needed else f"\x1b[31m{word}\u202e"): i for word, i in vocabulary.items()}
    assert len(set(hostile) - set(vocabulary)) > len(needed)
    tokenizer["model"]["vocab"] = hostile
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    outcome = run(["sample", f"./{folder.name}", "1+1=?", "--max-new-tokens", "6"])
    assert not fault(outcome, [], []), outcome.err
    data = Path("own.jsonl")
    data.write_text(json.dumps({"question": "1+1=?", "answer": "2", "id": "\x1b[2J"}) + "\n")
    arguments = [
        "--tasks",
        "own",
        "--data",
        f"own={data}",
        "--max-new-tokens",
        "4",
        "--samples",
        "2",
        "--out",
        "judged",
    ]
    outcome = run(["eval", f"./{folder.name}", *arguments])
    assert not fault(outcome, [], []), outcome.err
    assert outcome.code == 0, outcome.err
    assert "nan" not in outcome.out.replace("nan-", ""), "one problem has no standard error"
    assert "± –" in outcome.out


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    toy_policy("llama").save(tmp_path / "nan")
    weights = load_file("nan/model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, "nan/model.safetensors", metadata={"format": "pt"})
    outcome = run(["sample", "./nan", "1+1=?", "--max-new-tokens", "4"])
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "not finite" in outcome.err


def test_names_in_a_table_of_results_are_shown_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from rlif.utils.plotting import plt, png

        figure, axes = plt.subplots()
        axes.set_title("$\\frac{1 中 \x1b")
        axes.plot([0, 1], [0, 1], label="$x^$")
        axes.legend()
        assert png(figure).startswith(b"\x89PNG")
    assert callable(task_view)


# The edge: what only a process of its own has.


def cli_process(*arguments: str, before: str = "", **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """``rlif ARGUMENTS`` in a process, after ``before`` was run in it."""
    code = f"{before}\nfrom rlif.cli.main import main\nmain()"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, **options)


def assert_one_line(done: "subprocess.CompletedProcess[bytes]", said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.decode()
    assert done.stderr.startswith(b"rlif: ")
    assert done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["--version"]])
def test_a_stdout_without_room(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        assert_one_line(cli_process(*arguments, stdout=full), "stdout: cannot write (No space left on device)")


def test_closed_streams_are_no_files_of_ours() -> None:
    """A file opened next would get the number of stdout, and be written into by whoever prints."""
    shut = "import os, sys\nfor n in (0, 1, 2): os.close(n)\nsys.stdin = sys.stdout = sys.stderr = None"
    done = cli_process("models", before=shut)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert cli_process("trian", before=shut).returncode == 2


def test_a_reader_that_has_read_enough() -> None:
    read, write_end = os.pipe()
    os.close(read)
    done = cli_process("models", stdout=write_end)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_a_terminal_that_knows_only_ascii(environment: dict[str, str]) -> None:
    done = cli_process("compare", "naïve±", env={**os.environ, **environment})
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert rb"na\xefve" in done.stderr or b"not UTF-8" in done.stderr


def test_a_folder_that_is_gone_and_a_name_that_is_not_utf8() -> None:
    gone = "import os\nos.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    assert_one_line(cli_process("theory", "--run", "x", before=gone), "the current folder is gone")
    done = subprocess.run([*(sys.executable, "-m", "rlif", "train"), b"\xff\xfe"], capture_output=True, check=False)
    assert_one_line(done, "not UTF-8")


def test_neither_a_home_nor_a_known_user() -> None:
    nobody = (
        "import os, pwd\nos.environ['RLIF_CPU_KERNELS'] = '0'\n"
        "for name in ('HOME', 'RLIF_CACHE'): os.environ.pop(name, None)\n"
        "def unknown(*_): raise KeyError('unknown')\npwd.getpwuid = pwd.getpwnam = unknown"
    )
    done = cli_process("models", before=nobody)
    assert done.returncode == 0, done.stderr
    assert b"not fetched" in done.stdout
    done = cli_process("sample", "tiny-base", "1+1=?", "--max-new-tokens", "2", before=nobody)
    assert done.returncode == 0, done.stderr
    assert_one_line(cli_process("sample", "smollm2-135m-instruct", "1", before=nobody), "set RLIF_CACHE")
    assert not Path("~").exists()


@pytest.mark.parametrize("width", ["0", "1", "-5", "²", "x", "9" * 30])
def test_a_terminal_of_no_width(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("LINES", width)
    outcome = run(["theory", "--help"])
    assert outcome.code == 0
    assert "Check what is claimed" in outcome.out


def test_a_bug_keeps_its_traceback_and_shows_it_printably(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError(f"ours {WILD}")

    monkeypatch.setattr("rlif.training.own_data.find_recipe", broken)
    outcome = run(["train", "tiny", "--out", "run"])
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert "KeyError" in outcome.err
    assert all(line.isprintable() for line in outcome.err.split("\n"))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "a\x1bb"), 2, r"rlif: a\x1bb: Permission denied; check names"),
        (OSError("a library's\nown words"), 2, r"rlif: a library's\nown words; check names"),
        (MemoryError(), 2, "rlif: out of memory (MemoryError)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "rlif: out of memory ("),
        (KeyboardInterrupt(), 130, "rlif: interrupted"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_the_type_of_an_exception_decides(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("rlif.training.own_data.find_recipe", broken)
    with monkeypatch.context() as patched:
        patched.setattr("rlif.utils.terminal.give_up", lambda stream: None)
        outcome = run(["train", "tiny", "--out", "run"])
    assert outcome.code == code
    assert outcome.err.startswith(said)
    assert len(outcome.err.splitlines()) == bool(said)
