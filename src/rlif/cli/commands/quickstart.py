"""`rlif quickstart`: the paper in miniature."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.errors import named


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the five runs, the table and the figures.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and sampling.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side, one CPU thread each.")] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only what came of it.")] = False,
) -> None:
    """The paper in miniature: three internal rewards and the verifiable one, a few minutes on two cores."""
    from rlif.experiments.quickstart import quickstart as run

    with named({"out": "--out", "processes": "--processes"}):
        run(out, steps=steps, seed=seed, processes=processes, quiet=quiet)
