"""The command line's entry: what its commands are, how they end, and what is said of that.

Each command is a module of `rlif.cli.commands`. Heavy imports stand inside them, so that ``rlif --help`` answers at
once. A mistake of the user, or of the system (a full disk, no permission), is one line on stderr and exit code 2; a run
stopped by Ctrl-C exits with 130, by SIGTERM with 143, its checkpoint written. Any other exception is a bug: it keeps
its traceback, and exits with 1.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import rlif
from rlif.cli.commands.compare import compare
from rlif.cli.commands.diagnose import diagnose
from rlif.cli.commands.estimate import estimate
from rlif.cli.commands.evaluate import evaluate
from rlif.cli.commands.lists import recipe, recipes, rewards, signals, tasks, templates
from rlif.cli.commands.merge import merge
from rlif.cli.commands.models import models
from rlif.cli.commands.push import push
from rlif.cli.commands.quickstart import quickstart
from rlif.cli.commands.report import report
from rlif.cli.commands.sample import sample
from rlif.cli.commands.sft import sft
from rlif.cli.commands.show import show
from rlif.cli.commands.study import study
from rlif.cli.commands.theory import theory
from rlif.cli.commands.tiny import make
from rlif.cli.commands.train import TrainCommand, train
from rlif.cli.commands.watch import watch
from rlif.errors import RlifError, ToldElsewhereError
from rlif.utils import terminal
from rlif.utils.interrupts import STOP_SIGNALS, AtOnce, Interrupted, end_at_once
from rlif.utils.torchrun import launched

COMPLETION = "_RLIF_COMPLETE"
"""Set by a shell that completes a command line; ``rlif --install-completion`` tells the shell to."""

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or that of the copy inside newer typers

app = typer.Typer(
    name="rlif",
    help="Reinforcement learning from internal feedback: train a language model on its own confidence.",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``rlif`` command."""
    for number in STOP_SIGNALS:
        signal.signal(number, end_at_once)
    prepare()
    with terminal.guarded_streams():
        if sys.platform == "win32":
            terminal.note("rlif: warning: rlif is made for Linux and macOS and not tested on Windows; use WSL there")
        code, message = _outcome(sys.argv[1:])
        if message:
            terminal.note(f"rlif: {message}")
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # one more Ctrl-C while Python cleans up has nothing left to tell
    sys.exit(code)


def prepare() -> None:
    """Before PyTorch is there: its threads wait less busily for each other, and what is printed is printable.

    OpenMP's threads spin some milliseconds before they sleep. Where another process has one of the cores that is for
    nothing: two threads of a tiny model beside one busy process made 50 tokens/s, and make 750 (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if launched() is not None:  # else gloo warns in ten lines of a rank that has ended before another
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    terminal.prepare()


def _outcome(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command: its exit code, and what is to be said of its end, and the type of an exception decides."""
    try:
        return _run(arguments), ""
    except BrokenPipeError:  # the reader of our output has read enough, as in rlif models | head -1
        terminal.give_up(sys.stdout)
        return 1, ""
    except ToldElsewhereError as error:
        return error.code, ""
    except RlifError as error:
        if isinstance(error, terminal.OutputError):
            terminal.give_up(sys.stdout)
        error.command_line = True
        return 2, str(error)
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else _command_path(arguments)
        return 2, f"{' '.join(error.format_message().split()).rstrip('.')}; see {path} --help"
    except Interrupted as stop:
        stop.command_line = True
        return 128 + stop.signum, str(stop)
    except KeyboardInterrupt as stop:
        return 128 + (stop.args[0] if isinstance(stop, AtOnce) else signal.SIGINT), "interrupted"
    except OSError as error:  # the disk, a permission, the network: not of our making
        return 2, _refusal(error)
    except Exception as error:
        if _is_out_of_memory(error):
            return 2, f"out of memory ({str(error) or type(error).__name__}); ask for less at a time"
        terminal.note_bug(error)
        return 1, ""


def _run(arguments: Sequence[str]) -> int:
    """A command from its words to the last of its output. typer's own way of running one would turn what is raised
    into boxes of five lines, or nothing."""
    if (place := launched()) and place.rank:
        terminal.hush()  # what all ranks have to say, the first one says
    for argument in arguments:
        if "\0" in argument or not _is_unicode(argument):
            raise RlifError(f"{argument!r}: a file name or text that is not UTF-8 (or holds a NUL); rename it")
    try:
        os.getcwd()
    except OSError as error:  # found now: without a folder PyTorch's libraries end the whole process
        raise RlifError("the current folder is gone; change to another one and try again") from error
    if arguments[:1] != ["train"] and (place := launched()) is not None:
        raise RlifError(
            f"rlif {' '.join(arguments[:1])}: torchrun has started this {place.size} times over; only train shares its "
            "work among processes, so start this without torchrun"
        )
    command, code = typer.main.get_command(app), 0
    if COMPLETION in os.environ:  # a shell asks, and wants nothing else on its screen
        from typer.completion import shell_complete

        return shell_complete(command, {}, "rlif", COMPLETION, os.environ[COMPLETION])
    try:
        with command.make_context("rlif", [*arguments] or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        code = done.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _command_path(arguments: Sequence[str]) -> str:
    """The command that a line asks for: typer does not tell whose option lacks a value."""
    command: Any = typer.main.get_command(app)
    path = ["rlif"]
    for argument in arguments:
        known = getattr(command, "commands", {})
        if argument not in known:
            break
        command = known[argument]
        path.append(argument)
    return " ".join(path)


def _is_unicode(text: str) -> bool:
    """Not so for bytes of the command line that are not UTF-8: Python hands them over as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(error: OSError) -> str:
    """What the operating system would not do, with the name of the file where it is known."""
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return (
        f"{where}{error.strerror or error or type(error).__name__}; check names, permissions and the room on the disk"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, PyTorch's on a GPU, or PyTorch's on a CPU, which has no type of its own."""
    torch = sys.modules.get("torch")
    of_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return of_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _print_version(asked: bool) -> bool:
    if asked:
        terminal.say(f"rlif {rlif.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("diagnose")(diagnose)
app.command("train", cls=TrainCommand)(train)
app.command("eval")(evaluate)
app.command("estimate")(estimate)
app.command("compare")(compare)
app.command("quickstart")(quickstart)
app.command("study")(study)
app.command("watch")(watch)
app.command("report")(report)
app.command("show")(show)
app.command("sample")(sample)
app.command("theory")(theory)
app.command("sft")(sft)
app.command("merge")(merge)
app.command("push")(push)
app.command("models")(models)
app.command("rewards")(rewards)
app.command("signals")(signals)
app.command("templates")(templates)
app.command("tasks")(tasks)
app.command("recipes")(recipes)
app.command("recipe")(recipe)
tiny_app = typer.Typer(help="The two tiny models that ship with rlif.")
tiny_app.command("make")(make)
app.add_typer(tiny_app, name="tiny")
