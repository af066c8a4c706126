"""Kernels in C for a CPU: what PyTorch does in several passes over memory, and some microseconds a pass, in one.

``cpu.c`` is compiled when first needed (a second), if there is a C compiler, tried, and kept in the cache folder
(`rlif.model.kernels.build`).
Where there is none, on another system than Linux, or with ``RLIF_CPU_KERNELS=0``, PyTorch's own operations serve: the
slow reference that the kernels are tested against.

They use as many threads as PyTorch, and PyTorch's own where both are linked to the same OpenMP (pip's wheels, gcc).
"""

import ctypes
import os
import platform
import shlex
import shutil
import sys
import warnings
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.model.kernels.build import BuildError, library
from rlif.types import TokenSignals
from rlif.utils.atomic_io import one_line

_CHUNKS = 16  # parts of a sum over rows
# Numbers read at once: two vectors. gcc makes wider ones than the processor has go through memory, at half the speed.
_WIDE = {"AVX512": 32, "AVX2": 16}.get(torch.backends.cpu.get_cpu_capability(), 8)
_FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", f"-DCHUNKS={_CHUNKS}"),
    # What vectors of sums need. Not -ffast-math: infinities count, and gcc would switch off denormals for all of us.
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
)
_DEFINED = {torch.bfloat16: ("-DBF16",), torch.float32: ()}


def kernels_for(x: Tensor) -> "Kernels | None":
    """The kernels for a tensor's kind of numbers; None if it does not lie on a CPU or there are no such kernels."""
    return kernels(x.dtype) if x.device.type == "cpu" else None


@cache
def kernels(dtype: torch.dtype) -> "Kernels | None":
    """The kernels for bfloat16 or float32, compiled if they have not been yet; None if that cannot be done.

    No compiler, or one that fails or makes something else, is a RuntimeWarning, said once.
    """
    wanted = os.environ.get("RLIF_CPU_KERNELS", "1").lower() not in ("0", "off", "no", "false")
    if not wanted or sys.platform != "linux" or dtype not in _DEFINED:
        return None
    command = os.environ.get("CC") or shutil.which("cc")
    if not command:
        warnings.warn(
            "there is no C compiler (cc) for rlif's CPU kernels, PyTorch's slower operations serve instead; "
            "install gcc or clang, or set RLIF_CPU_KERNELS=0",
            RuntimeWarning,
            stacklevel=1,  # one place, whoever asks: Python says it once
        )
        return None
    wide = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
    try:
        whole = [*shlex.split(command), *_FLAGS, f"-DWIDE={_WIDE}", *wide, *_DEFINED[dtype]]
        source = files("rlif.model.kernels").joinpath("cpu.c").read_bytes()
        return Kernels(library(whole, source, "bf16" if dtype is torch.bfloat16 else "fp32", list(_SIGNATURES)), dtype)
    except (BuildError, ValueError) as error:  # the last: quotes in CC that do not close, a NUL in it
        warnings.warn(
            f"{command} cannot compile rlif's CPU kernels, PyTorch's slower operations serve instead "
            f"(RLIF_CPU_KERNELS=0 says so beforehand): {one_line(error)[:300]}",
            RuntimeWarning,
            stacklevel=1,  # one place, whoever asks: Python says it once
        )
        return None


def padded(features: int) -> int:
    """The features of a head as `Kernels.attend` wants them in the cache."""
    return -(-features // _WIDE) * _WIDE


_P, _N, _F, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_SIGNATURES = {  # each behind the number of threads
    "rms_norm": (_P, _P, _F, _F, _P, _N, _N),
    "rms_norm_backward": (_P, _P, _F, _F, _P, _P, _P, _N, _N),
    "gated": (_P, _N, _P, _N, _I, _P, _N, _N),
    "gated_backward": (_P, _P, _I, _P, _P, _P, _N, _N),
    "rotate": (_P, _N, _P, _P, _F, _P, _N, _N, _N),
    "draw": (_P, _N, _P, _F, *(_P,) * 5, _N, _N),
    "attend": (*(_P,) * 3, *(_N,) * 3, _P, _P, _F, _F, *(_P,) * 6, *(_N,) * 6, _F, _P),
}


class Kernels:
    """The functions of ``cpu.c`` for one number type. Tensors lie on a CPU; one of another type, or whose last axis
    is no line of neighbours where that is needed, raises TypeError."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = (_I, *signature), None
        self._c, self._dtype = library, dtype

    def _at(self, x: Tensor) -> int:
        """Where the numbers of a tensor lie."""
        if x.dtype is not self._dtype or (x.shape[-1] > 1 and x.stride(-1) != 1):
            raise TypeError(f"{x.dtype} with strides {x.stride()}, not lines of {self._dtype}")
        return x.data_ptr()

    def rms_norm(
        self, x: Float[Tensor, "*row size"], weight: Float[Tensor, " size"], offset: float, eps: float
    ) -> Float[Tensor, "*row size"]:
        """(offset + weight) · x / rms(x), rms(x) = √(mean x² + eps)."""
        x, at = x.contiguous(), self._at
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.rms_norm(torch.get_num_threads(), at(x), at(weight), offset, eps, at(out), x.numel() // size, size)
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
        x, gradient, at = x.contiguous(), gradient.contiguous(), self._at
        to_x, size = torch.empty_like(x), x.shape[-1]
        sums = torch.empty(_CHUNKS, size)
        self._c.rms_norm_backward(
            *(torch.get_num_threads(), at(x), at(weight), offset, eps, at(gradient)),
            *(at(to_x), sums.data_ptr(), x.numel() // size, size),
        )
        return to_x, sums.sum(dim=0).to(weight.dtype)

    def gated(
        self, gate: Float[Tensor, "row size"], up: Float[Tensor, "row size"], gelu: bool
    ) -> Float[Tensor, "row size"]:
        """SiLU (or the tanh approximation of GELU) of ``gate``, times ``up``; both may be parts of a wider matrix."""
        out, at = gate.new_empty(gate.shape), self._at
        self._c.gated(
            *(torch.get_num_threads(), at(gate), gate.stride(0), at(up), up.stride(0), gelu, at(out), *gate.shape)
        )
        return out

    def gated_backward(
        self,
        gate: Float[Tensor, "row size"],
        up: Float[Tensor, "row size"],
        gelu: bool,
        gradient: Float[Tensor, "row size"],
    ) -> tuple[Float[Tensor, "row size"], Float[Tensor, "row size"]]:
        """The gradients to ``gate`` and ``up`` of `gated`."""
        gate, up, gradient, at = gate.contiguous(), up.contiguous(), gradient.contiguous(), self._at
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        self._c.gated_backward(
            torch.get_num_threads(), at(gate), at(up), gelu, at(gradient), at(to_gate), at(to_up), *gate.shape
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
        cosines, sines, at = cosines.contiguous(), sines.contiguous(), self._at
        _check_rotation(x, cosines, sines)
        out = x.new_empty(x.shape)
        self._c.rotate(torch.get_num_threads(), at(x), x.stride(0), at(cosines), at(sines), turn, at(out), *x.shape)
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

        One call a layer and token: its many arguments are those of the C function, and bundling them would cost more
        than it explains.

        Args:
            q, k, v: as the products with the weights left them, each line of heads side by side.
            norms: weights of the RMS norms of queries and keys, their offset and eps; None: there are none.
            keys, values: features padded to `padded`; contiguous, they are written to.
            slots, lengths: of each row, where its text lies in the cache and how many tokens it has already.
            window: how many tokens a query sees, its own included; None: all.
        """
        (rows, heads, features), at = q.shape, self._at
        kv_heads, columns = keys.shape[1:3]
        q_norm, k_norm, offset, eps = norms or (None, None, 0.0, 0.0)
        cosines, sines = (x.contiguous() for x in rotation)
        slots, lengths = slots.contiguous(), lengths.contiguous()
        _check_rotation(q, cosines, sines)
        if not (keys.is_contiguous() and values.is_contiguous() and keys.shape[-1] == padded(features)):
            raise TypeError(f"a cache of shape {tuple(keys.shape)} for heads of {features} features")
        if any(x.shape[1] > 1 and x.stride(1) != features for x in (q, k, v)):
            raise TypeError("the heads of a token do not lie side by side")
        out = q.new_empty(rows, heads * features)
        self._c.attend(
            *(torch.get_num_threads(), at(q), at(k), at(v), q.stride(0), k.stride(0), v.stride(0)),
            *(None if weight is None else at(weight) for weight in (q_norm, k_norm)),
            *(offset, eps, at(cosines), at(sines), at(keys), at(values), slots.data_ptr(), lengths.data_ptr()),
            *(rows, heads, kv_heads, features, columns, window or columns, scaling, at(out)),
        )
        return out

    def draw(
        self, logits: Float[Tensor, "row vocab"], numbers: Float[Tensor, " row"], temperature: float
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], TokenSignals]:
        """One token a row, its log-probability under the distribution it was drawn from, and its signals. See
        `rlif.rollout.sampling.draw`, of which this is the case without top-k and top-p.

        Args:
            numbers: one in [0, 1) a row.
            temperature: 0 is greedy.
        """
        logits, numbers = logits.contiguous(), numbers.double().contiguous()
        rows, vocab = logits.shape
        tokens = torch.empty(rows, dtype=torch.long)
        values = [torch.empty(rows) for _ in range(4)]
        self._c.draw(
            *(torch.get_num_threads(), self._at(logits), vocab, numbers.data_ptr()),
            *(1.0 / temperature if temperature else 0.0, tokens.data_ptr(), *(value.data_ptr() for value in values)),
            *(rows, vocab),
        )
        return tokens, values[0], TokenSignals(*values[1:])


def _check_rotation(x: Tensor, cosines: Tensor, sines: Tensor) -> None:
    if not cosines.shape == sines.shape == (x.shape[0], 1, x.shape[2]):
        raise TypeError(f"a rotation of shape {tuple(cosines.shape)} for heads of shape {tuple(x.shape)}")
