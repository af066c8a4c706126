"""`rlif train`: a recipe, or a run to go on with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from rlif.errors import RlifError, named
from rlif.utils import terminal

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


def _train(out: Path, recipe: "Recipe | None", *, allow_changed: bool = False) -> None:
    from rlif.cli.train_progress import ending_lines, show_progress
    from rlif.recipes import load_recipe
    from rlif.report.card import write_card
    from rlif.runs.checkpoint import resumes_at
    from rlif.runs.layout import recipe_path
    from rlif.training import loop as trainer

    console = terminal.Console()
    known = recipe or load_recipe(recipe_path(out))
    done = 0 if recipe else resumes_at(out)
    with named({"out": "--out"}), show_progress(console, known.steps, done) as callback:
        if recipe:
            trainer.train(recipe, out, callback=callback, card=write_card)
        else:
            trainer.resume(out, callback=callback, allow_changed=allow_changed, card=write_card)
    for line in ending_lines(out):
        console.write_line(line)
