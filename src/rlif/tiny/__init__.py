"""Two models of 0.9 M parameters that ship with the package: something to train in seconds, offline, on any CPU.

`tiny-base` writes two-digit additions in several ways and errs at times; `tiny-instruct` is the same model after
supervised fine-tuning on one way. `rlif.tiny.corpus` is what they read, `rlif.tiny.pretrain` the recipe that made them,
`rlif.tiny.measure` what they can do; docs/tiny.md has the numbers.
"""

from pathlib import Path

from rlif.errors import RlifError

TINY_MODELS: dict[str, str] = {
    "tiny-base": "character-level Llama, 0.9 M parameters, pretrained on additions written four ways, with slips",
    "tiny-instruct": "tiny-base, fine-tuned on worked additions that end in a formatted answer",
}
"""Name to what it is, in one line."""


def path(name: str) -> Path:
    """The folder of a shipped model, loadable by plain transformers. Raises `RlifError` for an unknown name."""
    if name not in TINY_MODELS:
        raise RlifError(f"{name}: no tiny model has this name; there are {', '.join(TINY_MODELS)}")
    return Path(__file__).parent / "models" / name
