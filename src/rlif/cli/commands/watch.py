"""`rlif watch`: runs, seen from outside."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.cli.options import finite

STOP = 3
"""Exit code where a guard says stop."""


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or going on.")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep watching until a guard says stop or all runs have ended.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.1, callback=finite, metavar="SECONDS", help="With --follow: look so often; 10."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a run and line.")] = False,
) -> None:
    """Guard runs from outside, without labels or a probe: answers, lengths, entropy, advantages in their files.

    Exits with 3 if a guard says stop, with 0 if none does.
    """
    from rlif.cli.watch import watch_runs

    if watch_runs(runs, every=every or (10.0 if follow else None), as_json=json):
        raise typer.Exit(STOP)
