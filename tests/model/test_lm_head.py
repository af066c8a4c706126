"""The head's Triton kernels, run by Triton's interpreter where there is no GPU; and TRL's chunked kernel beside ours.

What is compared with is plain PyTorch in float64 over all logits. `tests/model/test_decoder.py` holds the plain version
to the same standard.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlif.model import lm_head as plain
from rlif.model.lm_head import Head
from rlif.types import TokenSignals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB, PADDED, HIDDEN, ROWS = 37, 41, 24, 7  # no power of two, no multiple of a block or of a tile


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`rlif.model.kernels.lm_head_triton` in blocks of 16 columns, tiles of 3 rows and 32 columns: several of each, the
    last partial."""
    pytest.importorskip("triton", reason="Triton is not installed (it comes with PyTorch for CUDA, on Linux)")
    from rlif.model.kernels import lm_head_triton

    monkeypatch.setattr(lm_head_triton, "_BLOCK", 16)
    monkeypatch.setattr(lm_head_triton, "_TILE_ROWS", 3)
    monkeypatch.setattr(lm_head_triton, "_TILE", 3 * 32)
    return lm_head_triton


class Exact:
    """Signals and gradients by plain PyTorch in float64 from all logits of the true vocabulary."""

    def __init__(self, hidden: Tensor, head: Head, tokens: Tensor) -> None:
        leaves = (hidden, head.weight, head.bias)
        self.leaves = [None if x is None else x.detach().cpu().double().requires_grad_() for x in leaves]
        h, weight, bias = self.leaves
        assert h is not None
        assert weight is not None
        z = h @ weight[: head.vocab_size].T + (0.0 if bias is None else bias[: head.vocab_size])
        z = z * head.scale
        self._z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        self._tokens = tokens.cpu()

    def all_logprobs(self, temperature: float) -> Tensor:
        return (self._z / temperature).log_softmax(dim=-1)

    def logprobs(self, temperature: float) -> Tensor:
        return self.all_logprobs(temperature).gather(-1, self._tokens[:, None]).squeeze(-1)

    def signals(self) -> TokenSignals:
        logp = self._z.log_softmax(dim=-1)
        vocab = self._z.shape[-1]
        certainty = -(logp + math.log(vocab)).mean(dim=-1)  # Σ 1/V · ln((1/V) / p)
        return TokenSignals(self.logprobs(1.0), -(logp.exp() * logp).sum(dim=-1), certainty)


def case(
    *,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
    n: int = ROWS,
) -> tuple[Tensor, Head, Tensor, Tensor]:
    """Hidden states, a head whose padding would dominate if it counted, tokens, a gradient from above."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    weight[VOCAB:] *= 100.0
    added = torch.randn(PADDED, generator=generator) if bias else None
    tokens = torch.randint(0, VOCAB, (n,), generator=generator)
    tokens[:4] = torch.tensor([0, VOCAB - 1, 15, 16])[:n]  # both sides of a block's edge
    upstream = torch.randn(n, generator=generator).to(DEVICE)
    leaf = lambda x: None if x is None else x.to(DEVICE, dtype).requires_grad_()  # noqa: E731
    return leaf(hidden), Head(leaf(weight), leaf(added), scale, softcap, VOCAB), tokens.to(DEVICE), upstream


def assert_same(found: Tensor, expected: Tensor, *, atol: float) -> None:
    torch.testing.assert_close(found.detach().cpu().double(), expected.detach(), atol=atol, rtol=1e-5)


OPTIONS = pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"scale": 0.4}, {"softcap": 3.0}, {"bias": True, "scale": 0.4, "softcap": 3.0}],
    ids=lambda options: "+".join(options) or "plain",
)


@OPTIONS
def test_signals_equal_float64(kernels: ModuleType, options: dict[str, Any]) -> None:
    hidden, head, tokens, _ = case(**options)
    found = kernels.head_signals(hidden, head, tokens)
    for mine, exact in zip(found, Exact(hidden, head, tokens).signals(), strict=True):
        assert mine.dtype == torch.float32
        assert not mine.requires_grad
        assert_same(mine, exact, atol=1e-5)


@OPTIONS
def test_logprobs_and_gradients_equal_float64(kernels: ModuleType, options: dict[str, Any]) -> None:
    temperature = 0.7
    hidden, head, tokens, upstream = case(**options)
    exact = Exact(hidden, head, tokens)
    found, expected = kernels.head_logprobs(hidden, head, tokens, temperature), exact.logprobs(temperature)
    assert_same(found, expected, atol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream.cpu().double()).sum().backward()
    for mine, leaf in zip((hidden, head.weight, head.bias), exact.leaves, strict=True):
        if mine is not None and leaf is not None:
            assert_same(mine.grad, leaf.grad, atol=2e-5)
    assert not head.weight.grad[VOCAB:].any()


@OPTIONS
@pytest.mark.parametrize("tile", [(3, 3 * 5), (1024, 1 << 21)], ids=["small tiles", "one tile"])
def test_entropy_and_its_gradient_equal_float64(
    options: dict[str, Any], tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sum of both, each with a gradient of its own from above, by autograd over all logits."""
    monkeypatch.setattr(plain, "_TILE_TOKENS", {DEVICE: tile[0]})
    monkeypatch.setattr(plain, "_TILE", {DEVICE: tile[1]})
    temperature = 0.7
    hidden, head, tokens, upstream = case(**options)
    exact = Exact(hidden, head, tokens)
    logprobs, entropy = plain.head_logprobs_and_entropy(hidden, head, tokens, temperature)
    logp = exact.all_logprobs(temperature)
    expected = -(logp.exp() * logp).sum(dim=-1)
    assert_same(logprobs, exact.logprobs(temperature), atol=1e-5)
    assert_same(entropy, expected, atol=1e-5)
    other = upstream.flip(0) + 0.5
    (logprobs * upstream + entropy * other).sum().backward()
    (exact.logprobs(temperature) * upstream.cpu().double() + expected * other.cpu().double()).sum().backward()
    for mine, leaf in zip((hidden, head.weight, head.bias), exact.leaves, strict=True):
        if mine is not None and leaf is not None:
            assert_same(mine.grad, leaf.grad, atol=5e-5)
    assert not head.weight.grad[VOCAB:].any()


def test_log_probabilities_are_the_same_numbers_beside_an_entropy_that_nobody_asks_for() -> None:
    results = []
    for function in (plain.head_logprobs, lambda *given: plain.head_logprobs_and_entropy(*given)[0]):
        hidden, head, tokens, upstream = case(bias=True)
        logprobs = function(hidden, head, tokens)
        (logprobs * upstream).sum().backward()
        results.append((logprobs, hidden.grad, head.weight.grad, head.bias.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_one_tile_over_everything_gives_the_same(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that a GPU works with, and few rows: one tile, a block a row, the weight's gradient one product."""
    for name, size in (("_BLOCK", 4096), ("_TILE", 1 << 26), ("_TILE_ROWS", 4096)):
        monkeypatch.setattr(kernels, name, size)
    hidden, head, tokens, upstream = case(bias=True, softcap=3.0, n=3)
    exact = Exact(hidden, head, tokens)
    for mine, expected in zip(kernels.head_signals(hidden, head, tokens), exact.signals(), strict=True):
        assert_same(mine, expected, atol=1e-5)
    (kernels.head_logprobs(hidden, head, tokens) * upstream).sum().backward()
    (exact.logprobs(1.0) * upstream.cpu().double()).sum().backward()
    for leaf, expected in zip((hidden, head.weight, head.bias), exact.leaves, strict=True):
        assert_same(leaf.grad, expected.grad, atol=2e-5)


def test_bf16_is_as_close_as_the_reference(kernels: ModuleType) -> None:
    """Both round products and gradients to bf16; kernels and reference may differ by little more than fp32 sums do."""
    results = []
    for module in (kernels, plain):
        hidden, head, tokens, upstream = case(dtype=torch.bfloat16, softcap=3.0)
        logprobs = module.head_logprobs(hidden, head, tokens, 0.7)
        (logprobs * upstream).sum().backward()
        results.append((logprobs, *module.head_signals(hidden, head, tokens), hidden.grad, head.weight.grad))
    for mine, reference in zip(*results, strict=True):
        atol = 1e-5 if mine.dtype == torch.float32 else 2**-7 * reference.abs().max().item()
        torch.testing.assert_close(mine, reference, atol=atol, rtol=0)


def test_only_the_gradients_asked_for(kernels: ModuleType) -> None:
    hidden, head, tokens, upstream = case(bias=True)
    frozen = Head(head.weight.detach(), head.bias.detach(), 1.0, None, VOCAB)
    (kernels.head_logprobs(hidden, frozen, tokens) * upstream).sum().backward()
    alone = hidden.grad
    hidden.grad = None
    (kernels.head_logprobs(hidden.detach(), head, tokens) * upstream).sum().backward()
    assert hidden.grad is None
    (kernels.head_logprobs(hidden, head, tokens) * upstream).sum().backward()
    assert torch.equal(alone, hidden.grad)


def test_extreme_logits(kernels: ModuleType) -> None:
    """exp(200) overflows fp32. The maximum stands in the second block, far above the first; nothing else has weight."""
    weight = torch.zeros(20, 1)
    weight[17], weight[3] = 200.0, -200.0
    head = Head(weight.to(DEVICE), None, 1.0, None, 20)
    tokens = torch.tensor([17, 3, 0], device=DEVICE)
    signals = kernels.head_signals(torch.ones(3, 1, device=DEVICE), head, tokens)
    torch.testing.assert_close(signals.logprob.cpu(), torch.tensor([0.0, -400.0, -200.0]))
    torch.testing.assert_close(signals.entropy.cpu(), torch.zeros(3))
    # logsumexp is 200, the mean of the logits 0.
    torch.testing.assert_close(signals.self_certainty.cpu(), torch.full((3,), 200.0 - math.log(20)))


def test_no_rows(kernels: ModuleType) -> None:
    hidden, head, tokens, _ = case(n=0)
    assert all(signal.shape == (0,) for signal in kernels.head_signals(hidden, head, tokens))
    kernels.head_logprobs(hidden, head, tokens).sum().backward()
    assert not head.weight.grad.any()


def test_the_kernels_compile_for_a_gpu(kernels: ModuleType, tmp_path: Path) -> None:
    """By Triton's own compiler, which needs no GPU: the interpreter would run what no GPU can. 16 bytes a load."""
    code = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from rlif.model.kernels import lm_head_triton

numbers = dict.fromkeys(("scale", "softcap", "per_temperature", "log_vocab"), "fp32")
others = dict.fromkeys(("stride", "width", "first", "slots", "plane", "n", "vocab"), "i32")
pointers = dict.fromkeys(("partial", "chosen", "results", "log_normaliser", "gradient"), "*fp32")
types = {**numbers, **others, **pointers, "tile": "*bf16", "tokens": "*i64"}
for name, constants in (
    ("_fold", {"HAS_SOFTCAP": True, "BLOCK": 4096}),
    ("_merge", {"BLOCK": 4096, "SLOTS": 64}),
    ("_differentiate", {"HAS_SOFTCAP": True, "BLOCK": 4096}),
):
    kernel = getattr(lm_head_triton, name)
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    aligned = [i for i, argument in enumerate(kernel.arg_names) if argument in ("tile", "stride", "width")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    print(compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"].count("ld.global.v4"))
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # 4,096 numbers of 2 bytes by 128 threads, 16 bytes each: 4 loads a thread.
    assert done.stdout.split() == ["4", "0", "4"]


def test_without_a_gpu_plain_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain._kernels("cpu") is None
    monkeypatch.setattr(plain, "find_spec", lambda name: None)
    plain._kernels.cache_clear()
    assert plain._kernels("cuda") is None  # PyTorch for CUDA on Windows: no Triton
    plain._kernels.cache_clear()


def test_on_a_gpu_the_kernels_serve(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain._kernels("cuda") is kernels
    monkeypatch.setattr(plain, "_kernels", lambda device: kernels)
    monkeypatch.setattr(plain, "_fold", None)  # the reference must not be reached
    hidden, head, tokens, _ = case()
    assert_same(
        plain.head_signals(hidden, head, tokens).entropy, Exact(hidden, head, tokens).signals().entropy, atol=1e-5
    )
    assert_same(plain.head_logprobs(hidden, head, tokens, 0.7), Exact(hidden, head, tokens).logprobs(0.7), atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_trl_has_the_same_signals(softcap: float | None) -> None:
    """TRL's chunked kernel returns no normaliser, but it follows from the token's own logit:
    self-certainty = z_token − logprob − mean logit − ln V."""
    pytest.importorskip("trl", reason="TRL is not installed")
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    hidden, head, tokens, upstream = case(scale=0.4, softcap=softcap)
    weight = head.weight.detach()[:VOCAB].requires_grad_()  # TRL knows of no padding
    logprob, entropy, _, mean, _ = ChunkedLogProbFunction.apply(
        hidden, weight, None, tokens, 1.0, 16, softcap, 0.4, ("entropy", "mean_logits")
    )
    chosen = head.shaped((hidden * weight[tokens]).sum(dim=-1, keepdim=True))
    certainty = chosen.squeeze(-1) - logprob - mean - math.log(VOCAB)
    for ours, theirs in zip(plain.head_signals(hidden, head, tokens), (logprob, entropy, certainty), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=1e-5)
    (logprob * upstream).sum().backward()
    theirs, hidden.grad = hidden.grad, None
    (plain.head_logprobs(hidden, head, tokens) * upstream).sum().backward()
    torch.testing.assert_close(hidden.grad, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(head.weight.grad[:VOCAB], weight.grad, atol=1e-5, rtol=1e-4)
