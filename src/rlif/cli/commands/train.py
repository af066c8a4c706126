"""`rlif train`: a recipe, data of your own, or a run to go on with."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from rlif.errors import RlifError, named
from rlif.utils import terminal
from rlif.utils.torchrun import launched

if TYPE_CHECKING:
    from rlif.config import Recipe


class TrainCommand(TyperCommand):
    """With the keys of a recipe below its options; they are looked up when somebody asks for help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rlif.cli.lists import keys_in_short

        self.epilog = (
            f"What KEY may be, as section.key (seed alone):\n\n{keys_in_short()}\n\n"
            "rlif recipe --keys explains each of them, rlif recipe --keys grpo those of a section; "
            "rlif rewards, tasks, templates and recipes list what there is by name."
        )
        super().format_help(ctx, formatter)


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file, or the name of a shipped one.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe; with --resume: of some keys alone."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must be new or empty.")] = None,
    model: Annotated[str | None, typer.Option(help="A named model, hub id, folder, .gguf file, or a run.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Problems of yours: .jsonl, .json, .csv, .tsv, .parquet, or a hub id."),
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="COLUMN", help="The question's in --data.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="COLUMN", help="The answer's in --data, if any.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a data set of the hub, where it has several.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub; train unless given.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What is rewarded; module:function of yours, or '{name: formatted, of: majority_vote}'.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the run; with --resume: go on until there are so many.")
    ] = None,
    until: Annotated[
        int | None, typer.Option(min=1, metavar="STEP", help="Pause after that step, with a checkpoint.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder instead.")] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="With --resume: also if recipe, data or model have changed.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only how it ended.")] = False,
) -> None:
    """Train a model with GRPO: as a recipe says, or on problems of your own (--model M --data FILE).

    The processes that torchrun starts train one model together.
    """
    with _ranks() as first:
        if recipe is not None and "=" in str(recipe) and not os.path.isfile(recipe):  # the first change, no recipe
            recipe, overrides = None, [str(recipe), *(overrides or [])]
        begins = [recipe, out, model, data, question, answer, config, split, reward]
        if resume is not None:
            if any(one is not None for one in begins):
                raise RlifError(
                    "--resume DIR goes with --steps, --until, --allow-changed and KEY=VALUE alone: the folder holds "
                    "the recipe of its run; for another one, begin a new run"
                )
            options: dict[str, Any] = {"steps": steps, "overrides": overrides or [], "allow_changed": allow_changed}
            _go_on(resume, options, until, quiet=quiet, first=first)
            return
        if allow_changed:
            raise RlifError("--allow-changed belongs to --resume DIR: a new run has nothing that could have changed")
        if data is None and (odd := _named_of(question=question, answer=answer, config=config, split=split)):
            raise RlifError(f"--{odd}: belongs to --data FILE, whose columns or parts it names")
        if recipe is None and data is None:
            raise RlifError(
                "give a recipe, or a model and data (or --resume DIR): rlif train recipes/tiny.yaml --out runs/first, "
                "rlif train --model MODEL --data FILE --out runs/own"
            )
        from rlif.config import OwnData
        from rlif.training.own_data import recipe_for, usual_folder

        own = None if data is None else OwnData(data, question, answer, config, split)
        found = recipe_for(model, own, recipe=recipe, reward=reward, steps=steps, overrides=overrides or [])
        if out is None:
            if own is None or recipe is not None:
                raise RlifError(f"give a folder for the run: rlif train {recipe} --out DIR")
            out = usual_folder(model, own)
        given = {"model": model, "path": data, "question_column": question, "answer_column": answer}
        given |= {"config": config, "split": split, "reward.name": reward, "reward.of": reward}
        of_data = {"answer_column", "question_column"} if data is not None else set()  # also if they are the usual ones
        with _by_options(of_data | {name for name, value in given.items() if value is not None}):
            _begin(found, out, until, quiet=quiet, first=first)


@contextmanager
def _ranks() -> Iterator[bool]:
    """Whether this process is the one that shows how the run goes. Those that torchrun started meet before anything
    else, for from then on what is wrong is said once."""
    if launched() is None:
        yield True
        return
    from rlif.training.launch import joined

    with joined() as ranks:
        yield ranks.first


def _named_of(**options: Any) -> str:
    return next((name for name, value in options.items() if value is not None), "")


_OPTIONS = {"out": "--out", "steps": "--steps", "until": "--until"}
_OF_RECIPE = {
    "question_column": "--question",
    "answer_column": "--answer",
    "path": "--data",
    "reward.name": "--reward",
    "reward.of": "--reward",
}


@contextmanager
def _by_options(given: set[str]) -> Iterator[None]:
    """Let an error speak of the options that were given, where it would name their keys in a recipe."""
    try:
        yield
    except RlifError as error:
        error.names |= {name: _OF_RECIPE.get(name, f"--{name}") for name in given}
        raise


def _begin(recipe: "Recipe", out: Path, until: int | None, *, quiet: bool, first: bool) -> None:
    from rlif.cli.train_progress import beginning_line, show_progress
    from rlif.report.card import write_card
    from rlif.training import loop as trainer

    console = terminal.Console()
    with named(_OPTIONS), ExitStack() as stack:
        callback = None
        if first:
            opening = partial(beginning_line, out)
            stack.enter_context(_telling_what_is_kept(console, out))
            callback = stack.enter_context(show_progress(console, recipe, quiet=quiet, opening=opening))
        trainer.train(recipe, out, callback=callback, until=until, card=write_card)
    if first:
        _end(console, out)


def _go_on(out: Path, options: dict[str, Any], until: int | None, *, quiet: bool, first: bool) -> None:
    from rlif.cli.train_progress import show_progress
    from rlif.recipes import load_recipe
    from rlif.report.card import write_card
    from rlif.runs.checkpoint import resumes_at
    from rlif.runs.layout import recipe_path
    from rlif.training import loop as trainer
    from rlif.training.extension import with_overrides, with_steps

    console = terminal.Console()
    with named(_OPTIONS), ExitStack() as stack:
        callback = None
        if first:  # the others may not have the folder
            recipe, done = with_overrides(load_recipe(recipe_path(out)), options["overrides"]), resumes_at(out)
            recipe = with_steps(recipe, options["steps"])
            going = f"going on from step {done} of {recipe.steps}"
            done_all = f"{done} steps are done; --steps counts them, too"
            opening = f"{out}: {going if done < recipe.steps else done_all}"
            shown = show_progress(console, recipe, done, quiet=quiet, opening=lambda: opening)
            stack.enter_context(_telling_what_is_kept(console, out))
            callback = stack.enter_context(shown)
        trainer.resume(out, callback=callback, until=until, card=write_card, **options)
    if first:
        _end(console, out)


@contextmanager
def _telling_what_is_kept(console: terminal.Console, out: Path) -> Iterator[None]:
    """Of a run that is ended at once, say what its folder holds and how to go on."""
    from rlif.cli.train_progress import kept_line

    try:
        yield
    except KeyboardInterrupt:
        console.write_line(kept_line(out))
        raise


def _end(console: terminal.Console, out: Path) -> None:
    """Say what came of a run."""
    from rlif.cli.train_progress import ending_lines, paused_line
    from rlif.runs.layout import FINAL

    if not (out / FINAL).is_dir():
        console.write_line(paused_line(out))
        return
    for line in ending_lines(out):
        console.write_line(line)
