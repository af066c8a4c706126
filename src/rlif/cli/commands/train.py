"""`rlif train`: a recipe, or a run to go on with."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlif.errors import RlifError, named
from rlif.utils import terminal
from rlif.utils.torchrun import launched

if TYPE_CHECKING:
    from rlif.config import Recipe


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
    """Train a model with GRPO, as a recipe says.

    The processes that torchrun starts train one model together.
    """
    with _ranks() as first:
        _checked(recipe, overrides, out, resume, allow_changed=allow_changed, first=first)


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


def _checked(
    recipe: Path | None,
    overrides: list[str] | None,
    out: Path | None,
    resume: Path | None,
    *,
    allow_changed: bool,
    first: bool,
) -> None:
    if resume is not None:
        if recipe is not None or out is not None:
            raise RlifError("--resume DIR stands alone: the folder holds the recipe of its run")
        _train(resume, recipe=None, allow_changed=allow_changed, first=first)
        return
    if allow_changed:
        raise RlifError("--allow-changed belongs to --resume DIR: a new run has nothing that could have changed")
    if recipe is None or out is None:
        raise RlifError("give a recipe and --out DIR (or --resume DIR): rlif train recipes/tiny.yaml --out runs/first")
    from rlif.recipes import find_recipe, load_recipe

    _train(out, recipe=load_recipe(find_recipe(recipe), overrides), first=first)


def _train(out: Path, recipe: "Recipe | None", *, allow_changed: bool = False, first: bool) -> None:
    from rlif.cli.train_progress import ending_lines, show_progress
    from rlif.recipes import load_recipe
    from rlif.report.card import write_card
    from rlif.runs.checkpoint import resumes_at
    from rlif.runs.layout import FINAL, recipe_path
    from rlif.training import loop as trainer

    console = terminal.Console()
    with named({"out": "--out"}), ExitStack() as stack:
        callback = None
        if first:
            known = recipe or load_recipe(recipe_path(out))
            done = 0 if recipe else resumes_at(out)
            callback = stack.enter_context(show_progress(console, known.steps, done))
        if recipe:
            trainer.train(recipe, out, callback=callback)
        else:
            trainer.resume(out, callback=callback, allow_changed=allow_changed)
    if not first:
        return
    if (out / FINAL).is_dir():
        write_card(out)
    for line in ending_lines(out):
        console.write_line(line)
