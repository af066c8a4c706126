"""What every benchmark needs: the machine in words, its matrix rate, a table, a JSON file."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlif.runs.environment import collect_info

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_PRODUCT = {"cpu": (1024, 576, 1536, 24), "cuda": (8192, 4096, 4096, 8)}  # rows, inputs, outputs, weights


def matrix_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """GFLOP/s of products, weights not in cache. On a CPU they have the size of a small model's update, 1024 x 576 by
    576 x 1536; on a GPU they are large enough to fill it."""
    rows, inputs, outputs, count = _PRODUCT[DEVICE.type]
    x = torch.randn(rows, inputs, device=DEVICE).to(dtype)
    weights = [torch.randn(outputs, inputs, device=DEVICE).to(dtype) for _ in range(count)]
    times = _times_a_second(lambda: [torch.nn.functional.linear(x, weight) for weight in weights], seconds)
    return times * count * 2 * rows * inputs * outputs / 1e9


def memory_rate(seconds: float = 0.3) -> float:
    """GB/s at which the device adds up 1 GiB: near what memory gives (or a very large cache: see lscpu)."""
    numbers = torch.ones(1 << 28, device=DEVICE)
    return _times_a_second(numbers.sum, seconds) * numbers.nbytes / 1e9


def _times_a_second(work: Callable[[], Any], seconds: float) -> float:
    """How often ``work`` was done in so many seconds, after a first time that does not count."""
    work()
    wait()
    done, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        work()
        wait()
        done += 1
    return done / taken


def wait() -> None:
    """Until a GPU has done what it was asked for."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Processor, cores, versions, commit."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "cpu": model,
        "cores": torch.get_num_threads(),
        "bf16": bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{key: value for key, value in collect_info(model="").items() if key in ("versions", "commit", "python")},
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range of several runs."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A markdown table of rows with the same keys."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def write(out: Path, name: str, result: Mapping[str, Any]) -> None:
    """``out/name.json``: the result with the machine it was measured on."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
