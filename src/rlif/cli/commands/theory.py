"""`rlif theory`: what is claimed of internal rewards, tried."""

from pathlib import Path
from typing import Annotated

import typer


def theory(
    seed: Annotated[int, typer.Option(min=0, help="Seeds every random policy.")] = 0,
    trials: Annotated[int, typer.Option(min=1, help="Random cases for each statement.")] = 4000,
    plot: Annotated[Path | None, typer.Option(help="Also draw entropy flows and the simplex into this folder.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Only hold the entropy lemma against the run in this folder.")
    ] = None,
) -> None:
    """Check what is claimed of internal rewards and entropy: theorems on random policies, counter-examples to the rest.

    Exits with 1 if a statement does not come out as stated.
    """
    from rlif.cli.theory import print_run, print_theory

    if run is not None:
        print_run(run)
        return
    if not print_theory(seed=seed, trials=trials, plot=plot):
        raise typer.Exit(1)
