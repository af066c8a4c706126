"""`rlif show`: answers of a run on the terminal."""

from pathlib import Path
from typing import Annotated

import typer


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or going on.")],
    step: Annotated[
        int | None, typer.Option(min=0, help="Of this step; else the last one whose answers lie there.")
    ] = (None),
    prompt: Annotated[str | None, typer.Option(metavar="ID", help="The answers to this prompt, step by step.")] = None,
    n: Annotated[int, typer.Option("--number", "-n", min=1, help="Answers of each kind; steps, with --prompt.")] = 2,
    whole: Annotated[bool, typer.Option("--whole", help="Long answers to their end.")] = False,
) -> None:
    """Show the best, the worst and the flipped answers of a run, each token shaded by its entropy."""
    from rlif.cli.show import show_run

    show_run(run, step=step, prompt=prompt, n=n, whole=whole)
