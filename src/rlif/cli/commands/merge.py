"""`rlif merge`: models between two others."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    base: Annotated[str, typer.Argument(help="A named model, hub id or folder.")],
    instruct: Annotated[str, typer.Argument(help="Another of the same architecture, tuned from the same ancestor.")],
    ratio: Annotated[str, typer.Option(help="From 0 (base) to 1 (instruct); several with commas, into OUT/r….")],
    out: Annotated[Path, typer.Option(help="Folder of the merged model; must be new or empty.")],
    tokenizer_from: Annotated[str, typer.Option(help="Whose tokenizer and settings: base or instruct.")] = "base",
    dtype: Annotated[str, typer.Option(help="auto (the base's), float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Merge two models: (1 − ratio) · base + ratio · instruct, weight by weight."""
    from rlif.cli.merge import print_merge

    print_merge(base, instruct, ratio, out, tokenizer_from=tokenizer_from, dtype=dtype)
