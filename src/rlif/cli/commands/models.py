"""`rlif models`: what is known by name."""

from typing import Annotated

import typer

from rlif.utils import terminal


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
