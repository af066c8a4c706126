"""`rlif compare`: two evaluated models."""

from pathlib import Path
from typing import Annotated

import typer


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
