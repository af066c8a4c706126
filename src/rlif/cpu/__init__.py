"""Kernels in C for a CPU: what PyTorch does in several passes over memory, and some microseconds a pass, in one.

``kernels.c`` is compiled when first needed (half a second), if there is a C compiler, and kept in the cache folder.
Where there is none, on another system than Linux, or with ``RLIF_CPU_KERNELS=0``, PyTorch's own operations serve: the
slow twins that the kernels are tested against.

The library shares PyTorch's OpenMP threads: it is linked to libgomp by a name that PyTorch has already loaded.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.disk import one_line
from rlif.types import TokenSignals

_FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # What vectors of sums need. Not -ffast-math: infinities count, and gcc would switch off denormals for all of us.
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
)
_DEFINED = {torch.bfloat16: ("-DBF16",), torch.float32: ()}
_CHUNKS, _WIDE = 16, 32  # as in kernels.c


def kernels_for(x: Tensor) -> "Kernels | None":
    """The kernels for a tensor's kind of numbers; None if it does not lie on a CPU or there are no such kernels."""
    return kernels(x.dtype) if x.device.type == "cpu" else None


@cache
def kernels(dtype: torch.dtype) -> "Kernels | None":
    """The kernels for bfloat16 or float32, compiled if they have not been yet; None if that cannot be done.

    A compiler that is there and fails is a RuntimeWarning.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or [path for path in [shutil.which("cc")] if path]
    unwanted = os.environ.get("RLIF_CPU_KERNELS") == "0" or sys.platform != "linux"
    if unwanted or not compiler or dtype not in _DEFINED:
        return None
    try:
        return Kernels(_library([*compiler, *_FLAGS, *_width(), *_DEFINED[dtype]]))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        warnings.warn(
            f"{compiler[0]} cannot compile rlif's CPU kernels, PyTorch's slower operations serve instead "
            f"(RLIF_CPU_KERNELS=0 says so beforehand): {one_line(said)[:200]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _width() -> tuple[str, ...]:
    return ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()


def _library(command: list[str]) -> ctypes.CDLL:
    """The library that this command makes of the source on this processor. Raises OSError or SubprocessError."""
    from rlif.models import cache_dir

    source = files("rlif.cpu").joinpath("kernels.c").read_bytes()
    made_of = "\n".join([*command, platform.platform(), _processor()]).encode() + source
    name = f"{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    folder = cache_dir() / "kernels"
    if not (folder / name).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # nothing can be kept here: made for this process alone
            folder = Path(tempfile.mkdtemp())
        with tempfile.TemporaryDirectory(dir=folder) as new:
            made = Path(new) / name
            subprocess.run(
                [*command, "-x", "c", "-", "-o", str(made), "-lm"],
                input=source,
                capture_output=True,
                check=True,
                timeout=300,
            )
            made.replace(folder / name)
    return ctypes.CDLL(str(folder / name))


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def padded(features: int) -> int:
    """The features of a head as `Kernels.attend` wants them in the cache."""
    return -(-features // _WIDE) * _WIDE


_P, _N, _F, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    "rms_norm": (_P, _P, _F, _F, _P, _N, _N),
    "rms_norm_backward": (_P, _P, _F, _F, _P, _P, _P, _N, _N),
    "gated": (_P, _P, _N, _I, _P, _N, _N),
    "gated_backward": (_P, _P, _I, _P, _P, _P, _N, _N),
    "rotate": (_P, _N, _P, _P, _F, _P, _N, _N, _N),
    "draw": (_P, _N, _P, _F, *(_P,) * 5, _N, _N),
    "attend": (*(_P,) * 3, _N, _P, _P, _F, _F, *(_P,) * 6, *(_N,) * 6, _F, _P),
}


class Kernels:
    """The functions of ``kernels.c`` for one number type. Tensors are of that type and on a CPU, and not checked."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, _N if name == "draw" else None
        self._c = library

    def rms_norm(
        self, x: Float[Tensor, "*row size"], weight: Float[Tensor, " size"], offset: float, eps: float
    ) -> Tensor:
        """(offset + weight) · x / rms(x), rms(x) = √(mean x² + eps)."""
        x = x.contiguous()
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.rms_norm(x.data_ptr(), weight.data_ptr(), offset, eps, out.data_ptr(), x.numel() // size, size)
        return out

    def rms_norm_backward(
        self,
        x: Float[Tensor, "*row size"],
        weight: Float[Tensor, " size"],
        offset: float,
        eps: float,
        gradient: Float[Tensor, "*row size"],
    ) -> tuple[Float[Tensor, "*row size"], Float[Tensor, " size"]]:
        """The gradients to x and to weight of `rms_norm`, of which ``gradient`` is the one to its result."""
        x, gradient = x.contiguous(), gradient.contiguous()
        to_x, size = torch.empty_like(x), x.shape[-1]
        sums = torch.empty(_CHUNKS, size)
        self._c.rms_norm_backward(
            *(x.data_ptr(), weight.data_ptr(), offset, eps, gradient.data_ptr()),
            *(to_x.data_ptr(), sums.data_ptr(), x.numel() // size, size),
        )
        return to_x, sums.sum(dim=0).to(weight.dtype)

    def gated(self, gate: Float[Tensor, "row size"], up: Float[Tensor, "row size"], gelu: bool) -> Tensor:
        """SiLU (or the tanh approximation of GELU) of ``gate``, times ``up``; both may be parts of a wider matrix."""
        (rows, size), stride = gate.shape, gate.stride(0)
        out = gate.new_empty(rows, size)
        self._c.gated(gate.data_ptr(), up.data_ptr(), stride, gelu, out.data_ptr(), rows, size)
        return out

    def gated_backward(
        self,
        gate: Float[Tensor, "row size"],
        up: Float[Tensor, "row size"],
        gelu: bool,
        gradient: Float[Tensor, "row size"],
    ) -> tuple[Float[Tensor, "row size"], Float[Tensor, "row size"]]:
        """The gradients to ``gate`` and ``up`` of `gated`."""
        gate, up, gradient = gate.contiguous(), up.contiguous(), gradient.contiguous()
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        self._c.gated_backward(
            *(gate.data_ptr(), up.data_ptr(), gelu, gradient.data_ptr(), to_gate.data_ptr(), to_up.data_ptr()),
            *gate.shape,
        )
        return to_gate, to_up

    def rotate(
        self,
        x: Float[Tensor, "tok head feature"],
        cosines: Float[Tensor, "tok 1 feature"],
        sines: Float[Tensor, "tok 1 feature"],
        turn: float = 1.0,
    ) -> Float[Tensor, "tok head feature"]:
        """Rotary embedding, halves swapped, sines signed; ``turn`` −1 turns back. Heads lie side by side."""
        if x.stride()[1:] != (x.shape[2], 1):
            x = x.contiguous()
        out = x.new_empty(x.shape)
        self._c.rotate(
            *(x.data_ptr(), x.stride(0), cosines.data_ptr(), sines.data_ptr(), turn, out.data_ptr()), *x.shape
        )
        return out

    def attend(
        self,
        q: Float[Tensor, "row head feature"],
        k: Float[Tensor, "row kv_head feature"],
        v: Float[Tensor, "row kv_head feature"],
        norms: tuple[Float[Tensor, " feature"], Float[Tensor, " feature"], float, float] | None,
        rotation: tuple[Float[Tensor, "row 1 feature"], Float[Tensor, "row 1 feature"]],
        keys: Float[Tensor, "slot kv_head column padded"],
        values: Float[Tensor, "slot kv_head column padded"],
        slots: Int[Tensor, " row"],
        lengths: Int[Tensor, " row"],
        *,
        window: int | None,
        scaling: float,
    ) -> Float[Tensor, "row head*feature"]:
        """Attention of one more token in each row, whose key and value are written into the cache.

        Args:
            q, k, v: parts of one matrix, as the product with the weights left them.
            norms: weights of the RMS norms of queries and keys, their offset and eps; None: there are none.
            keys, values: features padded to `padded`.
            slots, lengths: of each row, where its text lies in the cache and how many tokens it has already.
            window: how many tokens a query sees, its own included; None: all.
        """
        rows, heads, features = q.shape
        kv_heads, columns = keys.shape[1:3]
        q_norm, k_norm, offset, eps = norms or (None, None, 0.0, 0.0)
        out = q.new_empty(rows, heads * features)
        self._c.attend(
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0)),
            *(
                None if q_norm is None else q_norm.data_ptr(),
                None if k_norm is None else k_norm.data_ptr(),
                offset,
                eps,
            ),
            *(rotation[0].data_ptr(), rotation[1].data_ptr(), keys.data_ptr(), values.data_ptr()),
            *(slots.data_ptr(), lengths.data_ptr(), rows, heads, kv_heads, features),
            *(columns, window or columns, scaling, out.data_ptr()),
        )
        return out

    def draw(
        self, logits: Float[Tensor, "row vocab"], numbers: Float[Tensor, " row"], temperature: float
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], TokenSignals, int]:
        """One token a row, its log-probability under the distribution it was drawn from, its signals; and how many rows
        are no distribution. See `rlif.draw.draw`, of which this is the case without top-k and top-p.

        Args:
            numbers: one in [0, 1) a row.
            temperature: 0 is greedy.
        """
        logits, numbers = logits.contiguous(), numbers.double().contiguous()
        rows, vocab = logits.shape
        tokens = torch.empty(rows, dtype=torch.long)
        values = [torch.empty(rows) for _ in range(4)]
        bad = self._c.draw(
            *(logits.data_ptr(), logits.stride(0), numbers.data_ptr(), 1.0 / temperature if temperature else 0.0),
            *(tokens.data_ptr(), *(value.data_ptr() for value in values), rows, vocab),
        )
        return tokens, values[0], TokenSignals(*values[1:]), bad
