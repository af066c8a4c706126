"""`rlif study`: a grid of runs, one table, and what it says of the paper's claims."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.errors import RlifError


def study(
    grid: Annotated[Path, typer.Argument(help="A grid file, or the name of a shipped one; with --findings: a folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the study; it may hold other grids.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Cells of this name; * stands for anything.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=LABEL", help="Cells of this label; several with commas.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Cells side by side; else as cores and memory allow.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells, tokens and time; run nothing.")] = False,
    findings: Annotated[bool, typer.Option("--findings", help="Compare a study with the paper's claims.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only what came of it.")] = False,
) -> None:
    """Run a grid of cells (models × rewards × seeds × any key), or say what came of one."""
    from rlif.cli.study import print_findings, print_plan, print_study

    if findings:
        if out is not None or only or where or dry_run or processes is not None:
            raise RlifError(f"--findings stands alone: rlif study {out or 'DIR'} --findings")
        print_findings(grid)
    elif dry_run:
        print_plan(grid, out, only or [], where or [])
    elif out is None:
        raise RlifError(f"give a folder for the study: rlif study {grid} --out DIR (or --dry-run)")
    else:
        print_study(grid, out, only or [], where or [], processes=processes, quiet=quiet)
