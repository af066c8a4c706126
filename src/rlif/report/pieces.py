"""A completion cut into the texts of its tokens, as a reader of a run folder can: by tokenizer.json alone, no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlif import tiny
from rlif.runs.layout import FINAL, step_of

_FILE = "tokenizer.json"
_PARTS = 8
"""Tokens that a character is made of at most: four bytes, and room for tokenizers that split these."""

Decode = Callable[[Sequence[int]], str]


def find_decoder(run: Path, models: Sequence[str]) -> Decode | None:
    """From token ids to text, special tokens by their names; None where no tokenizer.json is at hand.

    Looked for in the run's ``final/``, its newest checkpoint, and the folders of its ``models``.
    """
    checkpoints = sorted((run / "checkpoints").glob("step-*"), key=lambda path: step_of(path.name) or -1, reverse=True)
    named = [tiny.path(model) if model in tiny.TINY_MODELS else Path(model) for model in models]
    for folder in (run / FINAL, *checkpoints, *named):
        if (decoder := _decoder(folder / _FILE)) is not None:
            return decoder
    return None


def _decoder(path: Path) -> Decode | None:
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
    except Exception:  # the library raises plain Exception for a file that is missing or damaged
        return None
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def pieces(decode: Decode, ids: Sequence[int]) -> list[str]:
    """The text of each token; "" for those that only begin a character, whose last one has all of it.

    Joined they are the text of all tokens. Each is decoded beside the one before it, for many tokenizers say a token
    otherwise where a text begins.
    """
    found: list[str] = []
    before, start = 0, 0  # the token before the one in hand, and where that begins
    for end in range(1, len(ids) + 1):
        known, text = decode(ids[before:start]), decode(ids[before:end])
        if text.endswith("\ufffd") and end < len(ids) and end - start < _PARTS:
            found.append("")
            continue
        found.append(text[len(known) :])
        before, start = start, end
    return found
