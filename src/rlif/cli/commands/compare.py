"""`rlif compare`: two evaluated models, or two runs."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.errors import RlifError


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="A [B]", help="Folders of rlif eval, or OUT/MODEL in one; or of two runs.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write everything, all flipped problems too, to this JSON file.")
    ] = None,
) -> None:
    """Compare two evaluated models, or two runs, problem by problem: paired differences, intervals, what flipped."""
    from rlif.report.run_record import is_run

    if any(is_run(folder) for folder in folders):
        if not all(is_run(folder) for folder in folders):
            other = next(folder for folder in folders if not is_run(folder))
            raise RlifError(
                f"{other}: no run, but another of these folders is one; compare two runs, or two evaluations"
            )
        from rlif.cli.compare_runs import run_compare_runs

        run_compare_runs(folders, out)
        return
    from rlif.cli.evaluate import run_compare

    run_compare(folders, out)
