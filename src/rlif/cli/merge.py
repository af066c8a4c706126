"""`rlif merge`: models between two others, with a table of what was written and a README in each folder."""

import shlex
import time
from pathlib import Path

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rlif import __version__
from rlif.errors import RlifError, named
from rlif.model.merge import merge
from rlif.model.merge_sources import Side
from rlif.utils.atomic_io import write_whole
from rlif.utils.paths import expanded
from rlif.utils.terminal import Console

_OPTIONS = {"base": "BASE", "instruct": "INSTRUCT", "ratios": "--ratio", "dtype": "--dtype"}


def print_merge(base: str, instruct: str, ratios: str, out: Path, *, tokenizer_from: str, dtype: str) -> None:
    """Merge at the ratios of a comma-separated list, print where each model lies and what made it.

    Raises `RlifError` for what the user can mend.
    """
    console, started = Console(), time.monotonic()
    wanted = _ratios(ratios)
    side = _side(tokenizer_from)
    with named(_OPTIONS):
        folders = merge(base, instruct, wanted, out, tokenizer_from=side, dtype=None if dtype == "auto" else dtype)
    table = Table(box=SIMPLE_HEAD)
    for column in ("ratio", "MB", "folder"):
        table.add_column(column, justify="left" if column == "folder" else "right", overflow="fold")
    for ratio, folder in zip(wanted, folders, strict=True):
        sides = f"{shlex.quote(_public_name(base))} {shlex.quote(_public_name(instruct))}"
        command = f"rlif merge {sides} --ratio {ratio:g} --out DIR"
        options = (f" --tokenizer-from {side}" if side != "base" else "") + (
            f" --dtype {dtype}" if dtype != "auto" else ""
        )
        card = readme(_public_name(base), _public_name(instruct), ratio, command + options)
        write_whole(folder / "README.md", card.encode())
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        table.add_row(f"{ratio:g}", f"{size / 1e6:,.1f}", str(folder))
    console.print(table)
    console.write_line(f"merged in {time.monotonic() - started:.0f} s; tokenizer and generation config of {side}")


def readme(base: str, instruct: str, ratio: float, command: str) -> str:
    """The card of a merged model: what it is made of, and the command that makes it again."""
    head = {"library_name": "transformers", "base_model": [base, instruct], "base_model_relation": "merge"}
    return (
        f"---\n{yaml.safe_dump({**head, 'tags': ['merge', 'rlif']}, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {base} and {instruct}, merged at {ratio:g}\n\n"
        f"Every weight is {1 - ratio:g} · {base} + {ratio:g} · {instruct}. Made with rlif {__version__}:\n\n"
        f"```bash\n{command}\n```\n"
    )


def _public_name(model: str) -> str:
    """A model's name without the folders above it: a card may be published."""
    return expanded(model).name if expanded(model).is_dir() else model


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RlifError(
            f"--ratio {text!r}: write numbers from 0 to 1 with commas between them, such as .1,.3"
        ) from None


def _side(text: str) -> Side:
    if text == "base":
        return "base"
    if text == "instruct":
        return "instruct"
    raise RlifError(f"--tokenizer-from {text!r}: choose base or instruct")
