"""What options of several commands share."""

import math

import typer


def finite(value: float | None) -> float | None:
    """The value of an option that is a number. nan is within any bounds, for no comparison with it is true; no option
    means anything at infinity. Raises typer's error, which names the option, for either."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value
