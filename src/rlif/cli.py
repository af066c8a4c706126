"""The command line: parse, call one function, print.

Heavy imports stand inside the commands, so that ``rlif --help`` answers at once. A mistake of the user is one line on
stderr and exit code 2; a run stopped by Ctrl-C exits with 130, by SIGTERM with 143, its checkpoint written.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import rlif
from rlif.errors import RlifError
from rlif.interrupts import SIGNALS, AtOnce, Interrupted, end_at_once

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
    command = typer.main.get_command(app)
    try:  # typer's own way of running a command would turn what is caught below into boxes of five lines, or nothing
        with command.make_context("rlif", sys.argv[1:] or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except BrokenPipeError:  # the reader of our output has read enough, as in rlif models | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RlifError as error:
        _end(2, str(error))
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "rlif"
        _end(2, f"{' '.join(error.format_message().split()).rstrip('.')}; see {path} --help")
    except Interrupted as stop:
        _end(128 + stop.signum, str(stop))
    except AtOnce as signum:
        _end(128 + signum.args[0], "interrupted")


def prepare() -> None:
    """Before PyTorch is there: its threads wait less busily for each other, and warnings are one line each.

    OpenMP's threads spin some milliseconds before they sleep. Where another process has one of the cores that is for
    nothing: two threads of a tiny model beside one busy process made 50 tokens/s, and make 750 (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.formatwarning = lambda message, *_, **__: f"rlif: warning: {message}\n"


def _end(code: int, message: str) -> NoReturn:
    print(f"rlif: {message}", file=sys.stderr)
    sys.exit(code)


def _print_version(asked: bool) -> bool:
    if asked:
        print(f"rlif {rlif.__version__}")
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
) -> None:
    """Train a model with GRPO, as a recipe says."""
    if resume is not None:
        if recipe is not None or out is not None:
            raise RlifError("--resume DIR stands alone: the folder holds the recipe of its run")
        _train(resume, recipe=None)
        return
    if recipe is None or out is None:
        raise RlifError("give a recipe and --out DIR (or --resume DIR): rlif train recipes/tiny.yaml --out runs/first")
    from rlif.config import load_recipe
    from rlif.recipes import find_recipe

    _train(out, recipe=load_recipe(find_recipe(recipe), overrides))


def _train(out: Path, recipe: "Recipe | None") -> None:  # type: ignore[name-defined]  # noqa: F821
    from rich.console import Console

    from rlif import train as trainer
    from rlif.config import load_recipe
    from rlif.progress import watch_run
    from rlif.run import recipe_path, resumes_at

    console = Console()
    known = recipe or load_recipe(recipe_path(out))
    done = 0 if recipe else resumes_at(out)
    with watch_run(console, known.steps, done) as watcher:
        final = trainer.train(recipe, out, watcher=watcher) if recipe else trainer.resume(out, watcher=watcher)
    console.print(f"final model: {final}", highlight=False, soft_wrap=True)


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
    from rlif.evals.command import run_eval, run_served
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
    from rlif.endpoint import Server

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
    from rlif.evals.command import run_compare

    run_compare(folders, out)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the five runs, the table and the figures.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 60,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side, one CPU thread each.")] = 2,
) -> None:
    """The paper in miniature: three internal rewards and the verifiable one, a few minutes on two cores."""
    from rlif.quickstart import quickstart as run

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
    from rlif.shading import print_samples

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
    from rlif.theory.report import print_run, print_theory

    if run is not None:
        print_run(run)
        return
    if not print_theory(seed=seed, trials=trials, plot=plot):
        sys.exit(1)


@app.command()
def models(
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the pretrained ones into the cache folder.")] = False,
) -> None:
    """List the models known by name; fetch the pretrained ones."""
    from rlif.models import MODELS, ModelRow, describe, fetch_all

    if fetch:
        fetch_all(say=print)
        from rlif.policy import unpack

        for name in (name for name, model in MODELS.items() if not model.shipped):
            print(f"{name}: unpacked, {unpack(name)}")
    rows = [ModelRow(*ModelRow._fields), *describe()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@tiny_app.command("make")
def tiny_make(
    out: Annotated[Path, typer.Option(help="Folder to write tiny-base and tiny-instruct into.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the tiny models again from their corpus: minutes on a CPU."""
    from rlif.tiny.make import make

    def say(model: str, step: int, steps: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            print(f"{model}: step {step} of {steps}, loss {loss:.3f} nats a token")

    make(out, seed=seed, progress=say)
