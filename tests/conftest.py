"""Offline, quiet, and with shapes checked: every jaxtyping annotation in rlif is enforced while the tests run."""

import os
import sys
from pathlib import Path

# Read once, at import: these have to stand before torch, transformers, tokenizers and matplotlib are loaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # also of the commands that tests start: they share the cores with other tests

import pytest
import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():  # read when Triton is imported: its kernels then run as Python, on any machine
    os.environ["TRITON_INTERPRET"] = "1"

assert "rlif" not in sys.modules, "rlif was imported before the hook that checks its shapes"
install_import_hook("rlif", "beartype.beartype")

from rlif.errors import RlifError  # noqa: E402
from rlif.model import registry  # noqa: E402  (after the hook)
from rlif.model.kernels import cpu  # noqa: E402  (after the hook)

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def fetched(name: str) -> Path:
    """Path of a pretrained model. Absent: the test is skipped; where CI=true, which promises the models, it fails."""
    try:
        registry.resolve(name)
        return registry.file_path(registry.MODELS[name])
    except RlifError as error:
        reason = str(error)
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI needs the real models: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operations instead of `rlif.model.kernels.cpu`."""
    monkeypatch.setattr(cpu, "kernels", lambda dtype: None)


@pytest.fixture(params=["kernels", "pytorch"])
def either_way(request: pytest.FixtureRequest) -> None:
    """The test runs twice: with the kernels of `rlif.model.kernels.cpu`, and with PyTorch's own operations."""
    if request.param == "pytorch":
        request.getfixturevalue("without_kernels")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a .gguf file."""
    return fetched("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M (base) as a .gguf file."""
    return fetched("gemma3-270m")


@pytest.fixture(scope="session")
def tiny_base_path() -> Path:
    """The folder of the shipped tiny base model."""
    return Path(registry.resolve("tiny-base"))
