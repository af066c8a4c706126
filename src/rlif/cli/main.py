"""The command line: parse, call one function, print.

Heavy imports stand inside the commands, so that ``rlif --help`` answers at once. A mistake of the user, or of the
system (a full disk, no permission), is one line on stderr and exit code 2; a run stopped by Ctrl-C exits with 130, by
SIGTERM with 143, its checkpoint written. Any other exception is a bug: it keeps its traceback, and exits with 1.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import rlif
from rlif.errors import RlifError, named
from rlif.utils import terminal
from rlif.utils.interrupts import SIGNALS, AtOnce, Interrupted, end_at_once

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or that of the copy inside newer typers

app = typer.Typer(
    name="rlif",
    help="Reinforcement learning from internal feedback: train a language model on its own confidence.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
tiny_app = typer.Typer(help="The two tiny models that ship with rlif.")
app.add_typer(tiny_app, name="tiny")


def main() -> None:
    """Entry point of the ``rlif`` command."""
    for number in SIGNALS:
        signal.signal(number, end_at_once)
    prepare()
    with terminal.guarded_streams():
        code, message = _outcome(sys.argv[1:])
        if message:
            terminal.note(f"rlif: {message}")
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # one more Ctrl-C while Python cleans up has nothing left to tell
    sys.exit(code)


def prepare() -> None:
    """Before PyTorch is there: its threads wait less busily for each other, and what is printed is printable.

    OpenMP's threads spin some milliseconds before they sleep. Where another process has one of the cores that is for
    nothing: two threads of a tiny model beside one busy process made 50 tokens/s, and make 750 (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    terminal.prepare()


def _outcome(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command: its exit code, and what is to be said of its end, and the type of an exception decides."""
    try:
        return _run(arguments), ""
    except BrokenPipeError:  # the reader of our output has read enough, as in rlif models | head -1
        terminal.give_up(sys.stdout)
        return 1, ""
    except RlifError as error:
        if isinstance(error, terminal.OutputError):
            terminal.give_up(sys.stdout)
        return 2, str(error)
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "rlif"
        return 2, f"{' '.join(error.format_message().split()).rstrip('.')}; see {path} --help"
    except Interrupted as stop:
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
    for argument in arguments:
        if "\0" in argument or not _is_unicode(argument):
            raise RlifError(f"{argument!r}: a file name or text that is not UTF-8 (or holds a NUL); rename it")
    try:
        os.getcwd()
    except OSError as error:  # found now: without a folder PyTorch's libraries end the whole process
        raise RlifError("the current folder is gone; change to another one and try again") from error
    command, code = typer.main.get_command(app), 0
    try:
        with command.make_context("rlif", [*arguments] or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        code = done.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


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


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file, or the name of a shipped one.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must be new or empty.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder instead.")] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="With --resume: also if recipe, data or model have changed.")
    ] = False,
) -> None:
    """Train a model with GRPO, as a recipe says."""
    if resume is not None:
        if recipe is not None or out is not None:
            raise RlifError("--resume DIR stands alone: the folder holds the recipe of its run")
        _train(resume, recipe=None, allow_changed=allow_changed)
        return
    if allow_changed:
        raise RlifError("--allow-changed belongs to --resume DIR: a new run has nothing that could have changed")
    if recipe is None or out is None:
        raise RlifError("give a recipe and --out DIR (or --resume DIR): rlif train recipes/tiny.yaml --out runs/first")
    from rlif.recipes import find_recipe, load_recipe

    _train(out, recipe=load_recipe(find_recipe(recipe), overrides))


def _train(out: Path, recipe: "Recipe | None", *, allow_changed: bool = False) -> None:  # type: ignore[name-defined]  # noqa: F821
    from rlif.cli.train_progress import watch_run
    from rlif.recipes import load_recipe
    from rlif.runs.checkpoint import resumes_at
    from rlif.runs.layout import recipe_path
    from rlif.training import loop as trainer

    console = terminal.Console()
    known = recipe or load_recipe(recipe_path(out))
    done = 0 if recipe else resumes_at(out)
    with watch_run(console, known.steps, done) as watcher:
        if recipe:
            final = trainer.train(recipe, out, watcher=watcher)
        else:
            final = trainer.resume(out, watcher=watcher, allow_changed=allow_changed)
    console.write_line(f"final model: {final}")


@app.command("eval")
def evaluate(
    tasks: Annotated[
        str, typer.Option(help="Comma-separated: gsm8k, math500, aime2025, arithmetic, additions, yours.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the evaluation; one of the same settings is gone on with.")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Named models, hub ids, folders, .gguf.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="TASK=PATH", help="A .jsonl or .parquet file.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems of each task.")] = None,
    samples: Annotated[int | None, typer.Option(help="Answers to each problem; 8, or 1 if greedy.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1 is off.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Among the k likeliest tokens; 0 is off.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length limit; unless given, the task's.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template; unless given, the task's.")] = None,
    format: Annotated[str | None, typer.Option(help="Extractor for `formatted`; unless given, the template's.")] = None,
    shots: Annotated[int, typer.Option(help="Worked examples before each question.")] = 0,
    shots_from: Annotated[str | None, typer.Option(help="Training file to take them from, not our fixed set.")] = None,
    chat_template: Annotated[str, typer.Option(help="auto, on or off.")] = "auto",
    stop: Annotated[list[str] | None, typer.Option(help="A further string that ends an answer.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="A torch device; auto takes CUDA when there is one.")] = "auto",
    max_mismatch: Annotated[
        float | None,
        typer.Option(min=0.0, help="Most nats a token from a plain forward pass; 0: any."),
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask an OpenAI-compatible server (vLLM, llama.cpp ...).")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="What the server calls the model.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests on their way to the server at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that the server has for an answer.")] = 600.0,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Holds the server's key; RLIF_API_KEY, if that is set.")
    ] = None,
) -> None:
    """Judge models: avg@k, pass@k, maj@k, format, signals, every answer kept, error bars on everything."""
    from rlif.cli.evaluate import run_eval, run_served
    from rlif.evals.settings import settings_of

    settings = settings_of(
        tasks=tuple(task.strip() for task in tasks.split(",") if task.strip()),
        data=dict(_assignment(pair) for pair in data or []),
        limit=limit,
        samples=samples if samples is not None else (1 if temperature == 0.0 else 8),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        template=template,
        format=format,
        shots=shots,
        shots_from=shots_from,
        chat_template=chat_template,
        stop=tuple(stop or ()),
        seed=seed,
    )
    if endpoint is None:
        if model or not models:
            raise RlifError("name the models to evaluate (rlif eval MODEL ...); --model NAME belongs to --endpoint URL")
        run_eval(models, settings, out, dtype=dtype, device=device, max_mismatch=max_mismatch)
        return
    if models or not model:
        raise RlifError(f"--endpoint {endpoint}: say with --model NAME, and only so, what the server calls the model")
    if (dtype, device) != ("auto", "auto"):
        raise RlifError(f"--endpoint {endpoint}: --dtype and --device are the server's to choose")
    if max_mismatch is not None:
        raise RlifError(f"--endpoint {endpoint}: --max-mismatch is for models in this process; leave it out")
    from rlif.evals.backends.openai_client import Server

    servers = [Server(endpoint, name, api_key_env, concurrency, timeout) for name in model]
    run_served(servers, settings, out)


def _assignment(pair: str) -> tuple[str, str]:
    task, separator, path = pair.partition("=")
    if not (separator and task and path):
        raise RlifError(f"--data {pair!r}: write TASK=PATH, for example gsm8k=data/gsm8k_test.jsonl")
    return task, path


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="A [B]", help="Folders of rlif eval, or OUT/MODEL in one; two models.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write everything, all flipped problems too, to this JSON file.")
    ] = None,
) -> None:
    """Compare two evaluated models problem by problem: paired differences, intervals, and what flipped."""
    from rlif.cli.evaluate import run_compare

    run_compare(folders, out)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the five runs, the table and the figures.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 60,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side, one CPU thread each.")] = 2,
) -> None:
    """The paper in miniature: three internal rewards and the verifiable one, a few minutes on two cores."""
    from rlif.experiments.quickstart import quickstart as run

    with named({"out": "--out", "processes": "--processes"}):
        run(out, steps=steps, processes=processes)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A named model, hub id, folder or .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="What to say to it.")],
    n: Annotated[int, typer.Option("--samples", "-n", min=1, help="Completions.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0)] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    chat_template: Annotated[str, typer.Option(help="auto, on or off.")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print completions, each token shaded by the entropy of the distribution it was drawn from."""
    from rlif.cli.sample import print_samples

    print_samples(
        model,
        prompt,
        n=n,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template,
        seed=seed,
    )


@app.command()
def theory(
    seed: Annotated[int, typer.Option(min=0, help="Seeds every random policy.")] = 0,
    trials: Annotated[int, typer.Option(min=1, help="Random cases for each statement.")] = 4000,
    plot: Annotated[Path | None, typer.Option(help="Also draw entropy flows and the simplex into this folder.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Only hold the entropy lemma against the run in this folder.")
    ] = None,
) -> None:
    """Check what is claimed of internal rewards and entropy: theorems on random policies, counter-examples to the rest.

    Exits with 1 if a statement does not come out as stated.
    """
    from rlif.cli.theory import print_run, print_theory

    if run is not None:
        print_run(run)
        return
    if not print_theory(seed=seed, trials=trials, plot=plot):
        raise typer.Exit(1)


@app.command()
def models(
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the pretrained ones into the cache folder.")] = False,
) -> None:
    """List the models known by name; fetch the pretrained ones."""
    from rlif.model.registry import MODELS, ModelRow, describe, fetch_all

    if fetch:
        fetch_all(say=terminal.say)
        from rlif.model.loading import unpack

        for name in (name for name, model in MODELS.items() if not model.shipped):
            terminal.say(f"{name}: unpacked, {unpack(name)}")
    rows = [ModelRow(*ModelRow._fields), *describe()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        terminal.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@tiny_app.command("make")
def tiny_make(
    out: Annotated[Path, typer.Option(help="Folder to write tiny-base and tiny-instruct into.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the tiny models again from their corpus: minutes on a CPU."""
    from rlif.tiny.pretrain import make

    def say(model: str, step: int, steps: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            terminal.say(f"{model}: step {step} of {steps}, loss {loss:.3f} nats a token")

    make(out, seed=seed, progress=say)
