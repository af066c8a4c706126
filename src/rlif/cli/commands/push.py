"""`rlif push`: a model leaves the house with its evidence."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished run, or the folder of a model.")],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="The model repository on the Hugging Face hub.")],
    evaluation: Annotated[
        Path | None, typer.Option("--eval", metavar="DIR", help="An rlif eval of this model, for the hub's scores.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only for those who may read the repository.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Without the page, which shows answers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and stop.")] = False,
) -> None:
    """Upload a model to the Hugging Face hub: weights, card, scores, and the page of its run."""
    from rlif.cli.push import push_model

    push_model(folder, repo, evaluation, private=private, report=not no_report, dry_run=dry_run)
