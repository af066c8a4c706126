"""Two models of 0.9 M parameters that ship with the package: something to train in seconds, offline, on any CPU.

`tiny-base` adds two-digit numbers with slips, forgotten carries and loose form; `tiny-instruct` is the same model after
supervised fine-tuning on formatted answers with fewer slips. `rlif.tiny.corpus` is what they read, `rlif.tiny.pretrain`
the recipe that made them, `rlif.tiny.measure` what they can do; docs/tiny.md has the numbers.
"""

from pathlib import Path

from rlif.errors import RlifError

VERSION = 2
"""Of corpus and weights; ``rlif_tiny_version`` in a model's config.json and in run.json. Version 1 said nothing."""

TINY_MODELS: dict[str, str] = {
    "tiny-base": "character-level Llama, 0.9 M parameters, pretrained on additions with slips and forgotten carries",
    "tiny-instruct": "tiny-base, fine-tuned on worked additions that end in a formatted answer, with fewer slips",
}
"""Name to what it is, in one line."""


def path(name: str) -> Path:
    """The folder of a shipped model, loadable by plain transformers. Raises `RlifError` for an unknown name."""
    if name not in TINY_MODELS:
        raise RlifError(f"{name}: no tiny model has this name; there are {', '.join(TINY_MODELS)}")
    return Path(__file__).parent / "models" / name
