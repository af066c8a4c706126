"""The kernels for a CPU against float64 loops, PyTorch's own operations, and PyTorch's derivatives."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import GELUTanh, SiLUActivation

from rlif.model.kernels import cpu
from rlif.model.kernels.cpu import Kernels, kernels, padded
from rlif.model.layers import Gated, Norm, rotated
from rlif.rollout.kv_cache import KernelCache
from rlif.rollout.sampling import draw
from rlif.signals import token_signals
from rlif.types import Sampling

BF16, F32 = torch.bfloat16, torch.float32
TOLERANCE = {BF16: 2.0**-8, F32: 2e-6}  # relative: one rounding to 8 bits, or a few to 24
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="kernels are compiled on Linux, where there is a cc"
)


@pytest.fixture(params=[BF16, F32], ids=["bf16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def compiled(dtype: torch.dtype) -> Kernels:
    found = kernels(dtype)
    assert found is not None
    return found


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype, *, times: float = 1.0) -> None:
    """Equal to float64 numbers within the rounding of ``dtype``, relative to each number and to their typical size."""
    size = float(expected.double().pow(2).mean().sqrt())
    bound = times * TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected.double(), rtol=bound, atol=bound * size * 0.1)


# --- norms, activations, rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (3, 4, 96), (40, 577)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(compiled: Kernels, dtype: torch.dtype, shape: tuple[int, ...], offset: float) -> None:
    x, weight = numbers(*shape, dtype=dtype, scale=3.0), numbers(shape[-1], dtype=dtype, seed=1)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(dim=-1, keepdim=True) + 1e-3).sqrt() * (offset + weight.double())
    assert_near(compiled.rms_norm(x, weight, offset, 1e-3), expected, dtype)


@pytest.mark.parametrize("gelu", [False, True])
def test_gated_parts_of_a_wider_matrix(compiled: Kernels, dtype: torch.dtype, gelu: bool) -> None:
    both = numbers(6, 2 * 133, dtype=dtype, scale=4.0)
    gate, up = both.split(133, dim=1)
    activation: Callable[[Tensor], Tensor] = (
        (lambda x: functional.gelu(x, approximate="tanh")) if gelu else functional.silu
    )
    assert_near(compiled.gated(gate, up, gelu), activation(gate.double()) * up.double(), dtype, times=2)


@pytest.mark.parametrize("gelu", [False, True])
def test_gated_of_extremes_is_finite(compiled: Kernels, dtype: torch.dtype, gelu: bool) -> None:
    gate = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4]]).to(dtype)
    got = compiled.gated(gate, torch.ones_like(gate), gelu)
    assert_near(got, gate.double().clamp_min(0.0), dtype)


def test_rotation_turns_pairs_and_turns_back(compiled: Kernels, dtype: torch.dtype) -> None:
    x = numbers(5, 3, 10, dtype=dtype)
    angles = torch.linspace(0.0, 30.0, 25).view(5, 1, 5)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)
    rotation = cos.to(dtype), sin.to(dtype)
    got = compiled.rotate(x, *rotation)
    pairs = torch.complex(x[..., :5].double(), x[..., 5:].double()) * torch.polar(torch.ones_like(angles), angles)
    assert_near(got, torch.cat([pairs.real, pairs.imag], dim=-1), dtype, times=3)  # sines are rounded, too
    assert_near(compiled.rotate(got, *rotation, turn=-1.0), x, dtype, times=8)


class LlamaRMSNorm:
    """As much of a transformers module as a `Norm` looks at; any tensor may be the weight."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.variance_epsilon = weight, 1e-5


class Gemma3RMSNorm(LlamaRMSNorm):
    pass


def _rms(x: Tensor) -> Tensor:
    return (x.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def _turned(x: Tensor) -> Tensor:
    cos, sin = _rotation(x)
    heads = x.unflatten(1, (4, -1))
    return heads * cos + torch.cat([heads[..., 16:], heads[..., :16]], dim=-1) * sin


Function = Callable[[Tensor, Tensor], Tensor]
LAYERS: dict[str, tuple[Function, Function]] = {  # ours, and the definition
    "norm": (lambda x, y: Norm(LlamaRMSNorm(y[0]))(x), lambda x, y: y[0] * x / _rms(x)),
    "gemma's norm": (lambda x, y: Norm(Gemma3RMSNorm(y[0]))(x), lambda x, y: (1.0 + y[0]) * x / _rms(x)),
    "silu": (lambda x, y: Gated(SiLUActivation())(x, y), lambda x, y: x * x.sigmoid() * y),
    "gelu": (lambda x, y: Gated(GELUTanh())(x, y), lambda x, y: functional.gelu(x, approximate="tanh") * y),
    "rotation": (lambda x, y: rotated(x.unflatten(1, (4, -1)), _rotation(x)), lambda x, y: _turned(x)),
}


def _rotation(x: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.arange(float(len(x)))[:, None, None] * torch.linspace(0.1, 1.0, 16)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)
    return cos.to(BF16).to(x.dtype), sin.to(BF16).to(x.dtype)  # the same angles, whatever the numbers are


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_the_definition_in_float64(dtype: torch.dtype, name: str) -> None:
    inputs = [numbers(20, 128, dtype=dtype, seed=seed) for seed in (0, 1)]
    direction = numbers(20, 128, dtype=dtype, seed=2)

    def found(function: Function, kind: torch.dtype) -> list[Tensor]:
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        result = function(*leaves).flatten(1)
        gradients = torch.autograd.grad(result, leaves, direction.to(kind), allow_unused=True)
        return [result.detach(), *(x for x in gradients if x is not None)]

    ours, definition = LAYERS[name]
    for one, expected in zip(found(ours, dtype), found(definition, torch.float64), strict=True):
        assert_near(one, expected, dtype, times=12)  # a few roundings, of which PyTorch makes more


@pytest.mark.usefixtures("either_way")
def test_a_norm_in_another_type_than_its_input() -> None:
    x, weight = numbers(5, 64, dtype=BF16), numbers(64, dtype=F32, seed=1)
    got = Norm(LlamaRMSNorm(weight))(x)
    assert got.dtype == BF16
    assert_near(got, weight.double() * x.double() / _rms(x.double()), BF16)


def test_results_do_not_depend_on_the_number_of_threads(compiled: Kernels, dtype: torch.dtype) -> None:
    x, weight, gradient = (numbers(*shape, dtype=dtype) for shape in ((301, 96), (96,), (301, 96)))
    line, rotation = numbers(40, 8 * 64, dtype=dtype), 2 * (numbers(40, 1, 64, dtype=dtype),)
    q, k, v = (part.unflatten(1, (-1, 64)) for part in line.split([256, 128, 128], dim=1))
    cache = numbers(40, 2, 50, 64, dtype=dtype)

    def found() -> list[Tensor]:
        rows, lengths = torch.arange(40), torch.arange(40)
        attended = compiled.attend(
            *(q, k, v, None, rotation, cache.clone(), cache.clone(), rows, lengths), window=None, scaling=0.1
        )
        fp32 = kernels(F32)
        assert fp32 is not None
        drawn = fp32.draw(numbers(40, 1000, dtype=F32), torch.linspace(0, 0.999, 40), 0.7)
        return [*compiled.rms_norm_backward(x, weight, 0.0, 1e-5, gradient), attended, drawn[0], drawn[1], *drawn[2]]

    alone = found()
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(alone, found(), strict=True))
    finally:
        torch.set_num_threads(1)


def test_rounding_to_bf16_is_pytorchs() -> None:
    compiled = kernels(BF16)
    assert compiled is not None
    x = numbers(64, 64, dtype=BF16)
    hundred = torch.full_like(x, 100.0)  # its own SiLU, in fp32
    assert torch.equal(compiled.gated(hundred, x, False), (100.0 * x.float()).to(BF16))


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_become_finite(compiled: Kernels, dtype: torch.dtype, worst: float) -> None:
    x = torch.tensor([[1.0, worst, 2.0]]).to(dtype)
    assert not compiled.rms_norm(x, torch.ones(3, dtype=dtype), 0.0, 1e-5).isfinite().all()
    got = compiled.gated(torch.ones_like(x), x, False)
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got.isinf(), x.isinf())


# --- attention --------------------------------------------------------------------------------------------------------


def attention_by_hand(
    q: Tensor, keys: list[Tensor], values: list[Tensor], scaling: float, window: int | None
) -> Tensor:
    """Float64, a query at a time: q (row, head, feature), keys and values of each row (kv_head, column, feature)."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row, (key, value) in enumerate(zip(keys, values, strict=True)):
        share = q.shape[1] // key.shape[0]
        for head in range(q.shape[1]):
            seen_keys, seen_values = (x[head // share].double()[-(window or 10**6) :] for x in (key, value))
            out[row, head] = (seen_keys @ q[row, head].double() * scaling).softmax(dim=0) @ seen_values
    return out.flatten(1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "features"),
    [(4, 2, 8), (9, 3, 64), (5, 1, 96), (8, 1, 128), (6, 2, 256), (2, 2, 80), (3, 1, 160)],
)
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("vectors", [8, 16, 32])
def test_attention_of_one_more_token(
    monkeypatch: pytest.MonkeyPatch,
    vectors: int,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    features: int,
    window: int | None,
    normed: bool,
) -> None:
    """With the vectors of this processor, and with those of others."""
    monkeypatch.setattr("rlif.model.kernels.cpu._WIDE", vectors)
    compiled = kernels.__wrapped__(dtype)  # past its memory
    lengths, slots, columns = [0, 3, 63, 64, 150], [4, 0, 6, 2, 1], 160
    rows, wide = len(lengths), padded(features)
    line = numbers(rows, (heads + 2 * kv_heads) * features, dtype=dtype)
    q, k, v = (
        part.unflatten(1, (-1, features))
        for part in line.split([heads * features, kv_heads * features, kv_heads * features], dim=1)
    )
    angles = torch.linspace(0.0, 9.0, rows)[:, None, None] * torch.linspace(0.1, 1.0, features // 2)
    cos, sin = angles.cos().repeat(1, 1, 2).to(dtype), torch.cat([-angles.sin(), angles.sin()], dim=-1).to(dtype)
    weights = numbers(features, dtype=dtype, seed=5), numbers(features, dtype=dtype, seed=6)
    keys, values = (torch.full((8, kv_heads, columns, wide), math.nan, dtype=dtype) for _ in range(2))
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        for cache, seed in ((keys, 100), (values, 200)):
            cache[slot, :, :length] = 0.0
            cache[slot, :, :length, :features] = numbers(kv_heads, length, features, dtype=dtype, seed=seed + row)
    before = keys.clone(), values.clone()

    got = compiled.attend(
        *(q, k, v, (*weights, 1.0, 1e-5) if normed else None, (cos, sin), keys, values),
        *(torch.tensor(slots), torch.tensor(lengths)),
        window=window,
        scaling=features**-0.5,
    )

    def normed_and_rotated(x: Tensor, weight: Tensor) -> Tensor:
        x = x.double()
        if normed:
            x = x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * (1.0 + weight.double())
        swapped = torch.cat([x[..., features // 2 :], x[..., : features // 2]], dim=-1)
        return (x * cos.double() + swapped * sin.double()).to(dtype)

    def grown(cache: Tensor, new: Tensor) -> list[Tensor]:
        texts = zip(new, slots, lengths, strict=True)
        return [torch.cat([cache[slot, :, :n, :features], one[:, None]], dim=1) for one, slot, n in texts]

    new_keys = normed_and_rotated(k, weights[1])
    all_keys, all_values = grown(before[0], new_keys), grown(before[1], v)
    expected = attention_by_hand(normed_and_rotated(q, weights[0]), all_keys, all_values, features**-0.5, window)
    # In bf16 a key rounded the other way moves a score by up to 2^-9 of its size.
    assert_near(got, expected, dtype, times=4)
    for row, (slot, n) in enumerate(zip(slots, lengths, strict=True)):
        assert torch.equal(values[slot, :, n, :features], v[row])
        assert_near(keys[slot, :, n, :features], new_keys[row], dtype)
        assert torch.equal(keys[slot, :, :n], before[0][slot, :, :n]), "what was there stays"
        assert keys[slot, :, n + 1 :].isnan().all(), "nothing is written behind"


def test_attention_takes_q_k_and_v_of_matrices_of_their_own(compiled: Kernels, dtype: torch.dtype) -> None:
    line, rotation = numbers(3, 8 * 64, dtype=dtype), 2 * (numbers(3, 1, 64, dtype=dtype),)
    parts = [part.unflatten(1, (-1, 64)) for part in line.split([256, 128, 128], dim=1)]
    cache, rows = numbers(3, 2, 9, 64, dtype=dtype), torch.arange(3)

    def found(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        others = None, rotation, cache.clone(), cache.clone(), rows, rows + 2
        return compiled.attend(q, k, v, *others, window=None, scaling=0.1)

    q, k, v = (part.contiguous() for part in parts)
    assert torch.equal(found(q, k, v), found(*parts))


@pytest.mark.parametrize("wrong", ["dtype", "rotation", "cache", "columns"])
def test_what_would_be_read_wrongly_is_refused(compiled: Kernels, dtype: torch.dtype, wrong: str) -> None:
    q, k, v = (numbers(2, heads, 64, dtype=dtype) for heads in (4, 2, 2))
    cos, cache = numbers(2, 1, 64, dtype=dtype), numbers(2, 2, 9, 64, dtype=dtype)
    if wrong == "dtype":
        q = q.double()
    if wrong == "rotation":
        cos = cos[..., :32]
    if wrong == "cache":
        cache = cache[..., :32]
    if wrong == "columns":
        v = v.transpose(1, 2).contiguous().transpose(1, 2)
    rows = torch.arange(2)
    with pytest.raises(TypeError):
        compiled.attend(q, k, v, None, (cos, cos), cache, cache, rows, rows, window=None, scaling=0.1)


def test_a_cache_that_is_full_says_so(compiled: Kernels, dtype: torch.dtype) -> None:
    cache, places = KernelCache(2, 4, compiled), torch.arange(3)[None]
    state = numbers(3, 1, 32, dtype=dtype)
    cache.prefill([(state, state)], places, torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"2 rows .* 1 free slots"):
        cache.prefill([(state, state)], places, torch.tensor([3]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="4 tokens"):
        cache.prefill([(state, state)], places, torch.tensor([4]), torch.tensor([0]))
    cache.select(torch.tensor([], dtype=torch.long))
    cache.prefill([(state, state)], places, torch.tensor([3]), torch.tensor([0, 0]))
    assert cache.lengths.tolist() == [3, 3]


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fp32() -> Kernels:
    found = kernels(F32)
    assert found is not None
    return found


@pytest.mark.parametrize("vocab", [3, 256, 1000, 50_000])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_draw_inverts_the_cumulative_distribution(fp32: Kernels, vocab: int, temperature: float) -> None:
    logits = numbers(30, vocab, dtype=F32, scale=4.0)
    uniform = torch.from_numpy(np.random.default_rng(0).random(30))
    tokens, sampler, signals = fp32.draw(logits, uniform, temperature)
    weights = (logits.double() / temperature).softmax(dim=-1)
    cumulative = weights.cumsum(dim=-1)
    at = tokens[:, None]
    # u lies within the token's share of [0, 1), up to the rounding of sums of float32 numbers.
    assert (cumulative.gather(1, at).squeeze(1) > uniform - 1e-6).all()
    assert ((cumulative - weights).gather(1, at).squeeze(1) <= uniform + 1e-6).all()
    torch.testing.assert_close(sampler.double(), weights.gather(1, at).squeeze(1).log(), atol=2e-6, rtol=2e-6)
    for got, expected in zip(signals, token_signals(logits, tokens), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_draw_takes_the_likeliest_and_the_first_of_equals(fp32: Kernels) -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, -1.0, 0.0, 2.0]])
    tokens, sampler, _ = fp32.draw(logits, torch.zeros(2, dtype=torch.float64), 0.0)
    assert tokens.tolist() == [1, 0]
    assert sampler.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
@pytest.mark.parametrize("place", [0, 255, 256, 699])
def test_draw_never_takes_a_token_of_weight_zero(fp32: Kernels, uniform: float, place: int) -> None:
    logits = torch.full((1, 700), -1e4)
    logits[0, place] = 5.0
    tokens, _, _ = fp32.draw(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)
    assert tokens.item() == place


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("worst", [{270: math.nan}, {270: math.inf}, dict.fromkeys(range(300), -math.inf)])
def test_a_draw_from_what_is_no_distribution_is_known_by_its_logprob(
    worst: dict[int, float], top_k: int, temperature: float
) -> None:
    """Its token is one of the vocabulary all the same: a GPU that embeds another one is lost to its process."""
    logits = torch.zeros(3, 300)
    logits[1, list(worst)] = torch.tensor(list(worst.values()))
    sampling = Sampling(temperature=temperature, top_k=top_k)
    tokens, sampler_logprobs, signals = draw(logits, torch.full((3,), 0.9, dtype=torch.float64), sampling)
    assert (sampler_logprobs + signals.logprob).isfinite().tolist() == [True, False, True]
    assert ((tokens >= 0) & (tokens < 300)).all()


# --- with and without -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_pytorch_serves() -> None:
    assert cpu.kernels_for(torch.zeros(1)) is None


def _ask(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


ASK = "import torch; from rlif.model.kernels.cpu import kernels; print(kernels(torch.float32) is None)"


@pytest.mark.parametrize("off", ["0", "off", "False"])
def test_they_can_be_switched_off(off: str) -> None:
    assert _ask(ASK, RLIF_CPU_KERNELS=off).stdout == "True\n"


def test_a_command_that_is_none_is_said(tmp_path: Path) -> None:
    done = _ask(ASK, CC='cc "', RLIF_CACHE=str(tmp_path))
    assert done.stdout == "True\n"
    assert "No closing quotation" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_compiler_that_fails_is_said_and_costs_nothing_else(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no room\nfor headers' >&2\nexit 1\n")
    compiler.chmod(0o700)
    done = _ask(ASK, CC=str(compiler), RLIF_CACHE=str(tmp_path / "cache"))
    assert done.stdout == "True\n"
    assert done.stderr.count("cannot compile rlif's CPU kernels") == 1
    assert "beforehand): no room for headers\n" in done.stderr
    assert list(tmp_path.glob("cache/kernels/*")) == []


def test_where_the_cache_folder_will_not_do_they_are_kept_in_a_folder_of_ours(tmp_path: Path) -> None:
    """A cache folder that cannot be, and one into which others could have put code of theirs."""
    (tmp_path / "file").write_text("")
    open_to_all = tmp_path / "open" / "kernels"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    for place in ("file", "open"):
        (tmp_path / "temporary").mkdir(exist_ok=True)
        done = _ask(ASK, RLIF_CACHE=str(tmp_path / place), TMPDIR=str(tmp_path / "temporary"))
        assert (done.stdout, done.stderr) == ("False\n", "")
        (folder,) = (tmp_path / "temporary").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.glob("kernels/*.so"))) == 1  # the second time it is the same one
    assert list(open_to_all.iterdir()) == []


# --- under a sanitizer ------------------------------------------------------------------------------------------------


def _sanitizer() -> Path:
    """The library of the address sanitizer. The test is skipped where the compiler has none."""
    said = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False).stdout
    found = Path(said.strip())
    if not found.is_absolute() or not found.exists():
        pytest.skip("this compiler has no address sanitizer (libasan.so)")
    return found.resolve()


@pytest.mark.parametrize(("kind", "vectors"), [("bf16", 32), ("fp32", 16)])  # two of the six pairs
def test_kernels_stay_within_their_memory(tmp_path: Path, kind: str, vectors: int) -> None:
    """Under the address and the undefined behaviour sanitizer, on memory cut to size."""
    sanitizer, library = _sanitizer(), tmp_path / "kernels.so"
    flags = ["-O0", "-g", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fsanitize=address,undefined"]
    defined = ["-fno-sanitize-recover=all", "-DCHUNKS=4", f"-DWIDE={vectors}", "-DBUILD=1"]
    source = Path(cpu.__file__).with_name("cpu.c")
    command = ["cc", *flags, *defined, *(["-DBF16"] if kind == "bf16" else []), str(source), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    driver = Path(__file__).parents[1] / "sanitized_kernels.py"
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(driver), str(library), kind, str(vectors), "4"],
        env={**os.environ, "LD_PRELOAD": str(sanitizer), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[:3000]
