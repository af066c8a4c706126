"""`rlif report`: one page that opens anywhere."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.errors import RlifError


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of runs, studies, evaluations or a quickstart.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page's file, report.html unless given; a page of before is written over.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write figures of it too: the paper's, and answers step by step.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="With --figures: on a dark ground, as NAME-dark.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show it on this machine instead, made anew while a run goes on.")
    ] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="With --serve; else a free one.")] = None,
) -> None:
    """Write one self-contained page: what happened, curves, answers token by token, recipe and versions."""
    from rlif.cli.report import serve_report, write_report

    if serve:
        if out is not None or figures is not None or dark:
            raise RlifError("--serve writes no file: leave out --out, --figures and --dark")
        serve_report(folders, port or 0)
        return
    if port is not None:
        raise RlifError("--port belongs to --serve")
    if dark and figures is None:
        raise RlifError("--dark belongs to --figures")
    write_report(folders, out or Path("report.html"), figures, dark=dark)
