"""Memory of the process: how much it held at most, and giving back what it no longer needs."""

import ctypes
import sys
from functools import lru_cache
from typing import Any

import torch


def peak_memory_gb(device: torch.device) -> float | None:
    """Peak memory since the start, in GB: of the GPU if the policy lives there, else of the process. None where the
    system does not count it (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def release_free_memory(device: torch.device) -> None:
    """Give freed memory of the CPU back to the system; elsewhere PyTorch's allocator uses its own again.

    A rollout and an update leave holes of different sizes behind. glibc keeps them and takes fresh memory for what does
    not fit, so that a process holds nearly twice what it uses after some steps. Without glibc, nothing is done.
    """
    if device.type == "cpu" and (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@lru_cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") else None
