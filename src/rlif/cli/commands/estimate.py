"""`rlif estimate`: what a recipe would take, before anything is rented."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.cli.options import finite


def estimate(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="What it runs on (docs/cost.md lists them).")] = "h100",
    count: Annotated[int, typer.Option(min=1, help="How many of them, eight to a machine.")] = 1,
    tokens: Annotated[
        float | None, typer.Option(min=1, callback=finite, help="Of a completion, on average; else the recipe's limit.")
    ] = None,
    prompt_tokens: Annotated[float, typer.Option(min=1, callback=finite, help="Of a prompt, on average.")] = 300.0,
    price: Annotated[float | None, typer.Option(min=0, callback=finite, help="Of a device for an hour.")] = None,
) -> None:
    """Estimate time, memory and device hours of a recipe, from data sheets: nothing is run and nothing measured."""
    from rlif.cli.estimate import print_estimate

    print_estimate(recipe, overrides or [], (device, count), tokens=tokens, prompt_tokens=prompt_tokens, price=price)
