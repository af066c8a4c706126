"""`rlif tiny make`: the shipped models, made again."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.errors import named
from rlif.utils import terminal


def make(
    out: Annotated[Path, typer.Option(help="Folder to write tiny-base and tiny-instruct into.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the tiny models again from their corpus: minutes on a CPU."""
    from rlif.tiny.pretrain import make as pretrain

    def say(model: str, step: int, steps: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            terminal.say(f"{model}: step {step} of {steps}, loss {loss:.3f} nats a token")

    with named({"out": "--out"}):
        pretrain(out, seed=seed, progress=say)
