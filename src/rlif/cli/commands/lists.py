"""`rlif rewards | signals | templates | tasks | recipes`, and `rlif recipe NAME`: what there is by name."""

from typing import Annotated

import typer

from rlif.errors import RlifError


def rewards() -> None:
    """List the rewards: name, whether it needs labels, what it is, source."""
    from rlif.cli.lists import print_rewards

    print_rewards()


def signals() -> None:
    """List the internal signals: formula, unit, source."""
    from rlif.cli.lists import print_signals

    print_signals()


def templates() -> None:
    """List the prompt templates: form of answer, words, source."""
    from rlif.cli.lists import print_templates

    print_templates()


def tasks() -> None:
    """List the tasks that a recipe may train on."""
    from rlif.cli.lists import print_tasks

    print_tasks()


def recipes() -> None:
    """List the shipped recipes."""
    from rlif.cli.lists import print_recipes

    print_recipes()


def recipe(
    name: Annotated[str | None, typer.Argument(help="A shipped recipe or, with --keys, a section.")] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="Print every key a recipe may have instead: default and meaning.")
    ] = False,
) -> None:
    """Print a shipped recipe, or every key that a recipe may have."""
    from rlif.cli.lists import print_keys, print_recipe

    if keys:
        print_keys(name)
    elif name is None:
        raise RlifError("name a recipe (rlif recipes lists them), or ask for all keys: rlif recipe --keys")
    else:
        print_recipe(name)
