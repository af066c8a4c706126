"""Where rlif runs: what a system without Unix's own modules, or without a C compiler, still gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlif.model.kernels.cpu import kernels
from test_architecture import modules

WITHOUT_UNIX = """
import builtins, importlib, sys
anywhere, UNIX = builtins.__import__, ("resource", "fcntl", "termios", "pwd", "grp")
def as_on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    if name in UNIX and (globals or {}).get("__name__", "").startswith("rlif"):
        raise ImportError(name)
    return anywhere(name, globals, locals, fromlist, level)
builtins.__import__ = as_on_windows
by_name = importlib.import_module
def by_name_as_on_windows(name, package=None):
    if name in UNIX:
        raise ImportError(name)
    return by_name(name, package)
importlib.import_module = by_name_as_on_windows
"""
"""What other packages import is left to them: their own Windows versions differ."""


def python(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_every_module_is_imported_without_the_modules_of_unix() -> None:
    names = sorted(f"rlif.{name}" for name in modules() if not name.endswith("__main__"))
    assert len(names) > 150
    wanted = f"{WITHOUT_UNIX}\nfor name in {names}:\n    importlib.import_module(name)\n"
    for optional in ("model.kernels.lm_head_triton", "rollout.vllm_processors"):  # need triton and vLLM
        wanted = wanted.replace(f"'rlif.{optional}', ", "")
    done = python(wanted)
    assert done.returncode == 0, done.stderr


def test_folders_are_written_and_peaks_left_out_without_the_modules_of_unix(tmp_path: Path) -> None:
    code = f"""{WITHOUT_UNIX}
from pathlib import Path
import torch
from rlif.utils.atomic_io import in_use, unfinished
from rlif.utils.memory import peak_memory_gb
folder = Path(sys.argv[1])
with unfinished(folder, "making") as path:
    (path / "made").touch()
    path.rename(folder)
assert (folder / "made").exists() and not in_use(folder)
assert peak_memory_gb(torch.device("cpu")) is None
"""
    done = python(code, tmp_path / "folder")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no kernels")
def test_a_missing_c_compiler_is_said_once_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="no C compiler .* install gcc or clang, or set RLIF_CPU_KERNELS=0"):
        assert kernels.__wrapped__(torch.float32) is None
