"""The signals against loops over single tokens in float64, closed forms, and the known traps."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlif.signals import REDUCERS, SIGNALS, masked_mean, masked_sum, token_signals
from rlif.types import TokenSignals


def by_loops(z: Sequence[float], token: int) -> tuple[float, float, float]:
    """logprob, entropy, KL(U‖p) of one distribution, term by term in float64."""
    largest = max(z)
    log_total = largest + math.log(math.fsum(math.exp(x - largest) for x in z))
    log_p = [x - log_total for x in z]
    entropy = -math.fsum(math.exp(x) * x for x in log_p)
    uniform = 1.0 / len(z)
    divergence = math.fsum(uniform * (math.log(uniform) - x) for x in log_p)
    return log_p[token], entropy, divergence


def of(*z: float, token: int = 0) -> tuple[float, float, float]:
    """logprob, entropy, self-certainty of one distribution, by the code under test."""
    signals = token_signals(torch.tensor(z), torch.tensor(token))
    return signals.logprob.item(), signals.entropy.item(), signals.self_certainty.item()


LOGITS = st.lists(st.floats(-40.0, 40.0, width=32), min_size=1, max_size=40)


# Against the definition


@settings(max_examples=150, deadline=None)
@given(z=LOGITS, data=st.data())
def test_equals_the_float64_loops(z: list[float], data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(z) - 1))
    # Numbers up to 80 nats carry fp32 rounding of 80 · 2⁻²⁴ = 5e-6 each; a handful of them are added.
    assert of(*z, token=token) == pytest.approx(by_loops(z, token), abs=4e-5)


def test_equals_the_float64_loops_at_a_real_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(3, 50_257, generator=generator)
    tokens = torch.tensor([0, 50_256, 17])
    signals = token_signals(logits, tokens)
    for row in range(3):
        found = [values[row].item() for values in signals]
        assert found == pytest.approx(by_loops(logits[row].tolist(), int(tokens[row])), abs=2e-5)


def test_keeps_every_leading_axis() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 7, generator=generator)
    tokens = torch.randint(7, (2, 3, 4), generator=generator)
    signals = token_signals(logits, tokens)
    assert all(values.shape == (2, 3, 4) for values in signals)
    for at in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        found = [values[at].item() for values in signals]
        assert found == pytest.approx(by_loops(logits[at].tolist(), int(tokens[at])), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(z=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40), data=st.data())
def test_bounds_hold_for_logits_of_any_size(z: list[float], data: st.DataObject) -> None:
    logprob, entropy, self_certainty = of(*z, token=data.draw(st.integers(0, len(z) - 1)))
    assert logprob <= 0.0
    assert 0.0 <= entropy <= math.log(len(z)) + 1e-6
    assert self_certainty >= 0.0


def test_self_certainty_of_the_nearly_uniform_is_not_negative() -> None:
    # KL(U‖p) = 5e-9 here, far below the rounding of the ln V that is taken off: unguarded, half of them are negative.
    logits = 1e-4 * torch.randn(500, 1000, generator=torch.Generator().manual_seed(9))
    found = token_signals(logits, torch.zeros(500, dtype=torch.long)).self_certainty
    assert (found >= 0.0).all()
    assert (found < 2e-6).all()


@settings(max_examples=100, deadline=None)
@given(
    z=st.lists(st.integers(-1024, 1024).map(lambda n: n / 64), min_size=2, max_size=30),
    shift=st.integers(-4096, 4096),
)
def test_a_constant_added_to_all_logits_changes_nothing(z: list[float], shift: int) -> None:
    # Multiples of 1/64 below 2¹³ stay exact in fp32, so the results are the same bits.
    assert of(*(x + shift for x in z)) == of(*z)


# Closed forms


@pytest.mark.parametrize("vocab", [1, 2, 1000, 151_936])
@pytest.mark.parametrize("level", [0.0, -7.5, 100.0])
def test_uniform(vocab: int, level: float) -> None:
    signals = token_signals(torch.full((vocab,), level), torch.tensor(vocab - 1))
    assert signals.logprob.item() == pytest.approx(-math.log(vocab), abs=1e-5)
    assert signals.entropy.item() == pytest.approx(math.log(vocab), abs=1e-5)
    assert signals.self_certainty.item() == pytest.approx(0.0, abs=1e-5)


def test_one_hot() -> None:
    # z = (a, 0, …, 0): logsumexp = ln(e^a + V - 1), which is a to within V·e^-a; mean z = a / V.
    vocab, a = 500, 60.0
    certain = (0.0, 0.0, a - a / vocab - math.log(vocab))
    assert of(a, *[0.0] * (vocab - 1)) == pytest.approx(certain, abs=1e-5)
    # Any other token lies a nats below.
    assert of(a, *[0.0] * (vocab - 1), token=3)[0] == pytest.approx(-a, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0, 25.0])
def test_temperature_family_of_two_tokens(temperature: float) -> None:
    # p ∝ e^{z/T} with z = (0, a) and x = a/T: p₁ = 1/(1+e^-x), p₀·p₁ = 1/(4 cosh²(x/2)), hence
    # KL(U‖p) = -ln 2 - ½ ln(p₀·p₁) = ln cosh(x/2), and H = ln(2 cosh(x/2)) - x/2 · tanh(x/2).
    x = 3.0 / temperature
    expected = (
        -math.log1p(math.exp(-x)),
        math.log(2.0 * math.cosh(x / 2)) - x / 2 * math.tanh(x / 2),
        math.log(math.cosh(x / 2)),
    )
    assert of(0.0, x, token=1) == pytest.approx(expected, abs=1e-5)


def test_sharper_is_more_confident_by_every_signal() -> None:
    # dH/dβ = -β·Var_p(z) < 0 and dSC/dβ = E_p z - mean z > 0 along p ∝ e^{βz}; the likeliest token's logprob rises.
    z = torch.randn(200, generator=torch.Generator().manual_seed(2))
    betas = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])
    signals = token_signals(betas[:, None] * z, z.argmax().expand(5))
    for signal in SIGNALS.values():
        assert (signal.score(signals).diff() > 0).all(), signal.name


# What the two kinds of certainty see


def test_self_certainty_reads_the_tail_and_entropy_does_not() -> None:
    # Two head tokens at 0 and 998 tail tokens at -20, lowered to -25.
    # Tail mass q = 998·e^-20/2 = 1.0e-6 adds q·(1 + ln(998/q) - ln 2) = 2.16e-5 to H, at -25 1.8e-7: ΔH = -2.14e-5.
    # The mean logit falls by 5 · 998/1000 = 4.99 and logsumexp by 1e-6: ΔSC = +4.99.
    head, tail = [0.0, 0.0], 998
    _, entropy_before, certainty_before = of(*head, *[-20.0] * tail)
    _, entropy_after, certainty_after = of(*head, *[-25.0] * tail)
    assert entropy_after - entropy_before == pytest.approx(-2.14e-5, abs=5e-7)
    assert certainty_after - certainty_before == pytest.approx(4.99, abs=1e-4)


def test_entropy_is_affine_in_the_reverse_divergence() -> None:
    # KL(p‖U) = ln V - H, the divergence taken from torch.
    p = torch.randn(50, 30, generator=torch.Generator().manual_seed(3)).mul(2).log_softmax(-1)
    uniform = torch.full((30,), -math.log(30))
    reverse = torch.nn.functional.kl_div(uniform.expand_as(p), p, reduction="none", log_target=True).sum(-1)
    entropy = token_signals(p, torch.zeros(50, dtype=torch.long)).entropy
    torch.testing.assert_close(entropy + reverse, torch.full((50,), math.log(30)), atol=1e-5, rtol=0)


def test_self_certainty_is_the_forward_divergence() -> None:
    p = torch.randn(50, 30, generator=torch.Generator().manual_seed(4)).mul(2).log_softmax(-1)
    uniform = torch.full((50, 30), -math.log(30))
    forward = torch.nn.functional.kl_div(p, uniform, reduction="none", log_target=True).sum(-1)
    found = token_signals(p, torch.zeros(50, dtype=torch.long)).self_certainty
    torch.testing.assert_close(found, forward, atol=1e-5, rtol=0)


def test_self_certainty_is_no_function_of_entropy() -> None:
    # z = (3, 0, 0, 0): p₀ = e³/(e³+3) = .8700, H = .8700·.1392 + 3·.0433·3.1392 = .5291, SC = ln(e³+3) - .75 - ln 4.
    # z = (0, 0, -8, -8): H = ln 2 + 2·e^-8·(…) > ln 2, SC = ln(2 + 2e^-8) + 4 - ln 4.
    _, entropy_a, certainty_a = of(3.0, 0.0, 0.0, 0.0)
    _, entropy_b, certainty_b = of(0.0, 0.0, -8.0, -8.0)
    assert entropy_a == pytest.approx(0.5291, abs=1e-4)
    assert certainty_a == pytest.approx(math.log(math.e**3 + 3) - 0.75 - math.log(4), abs=1e-5)
    assert certainty_b == pytest.approx(math.log(2 + 2 * math.exp(-8)) + 4 - math.log(4), abs=1e-5)
    assert entropy_a < entropy_b  # a is the more confident by entropy,
    assert certainty_a < certainty_b  # b is by self-certainty


# Padding of the vocabulary, types


@pytest.mark.parametrize("rubbish", [0.0, 1e4, -1e4, math.inf, math.nan])
def test_rows_that_pad_the_vocabulary_do_not_count(rubbish: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(5))
    tokens = torch.arange(5)
    padded = torch.cat([logits, torch.full((5, 24), rubbish)], dim=1)
    expected = token_signals(logits, tokens)
    for found, wanted in zip(token_signals(padded, tokens, vocab_size=40), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_are_fp32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits = (4.0 * torch.randn(20, 3000, generator=torch.Generator().manual_seed(6))).to(dtype)
    tokens = torch.arange(20)
    found, expected = token_signals(logits, tokens), token_signals(logits.float(), tokens)
    for values, wanted in zip(found, expected, strict=True):
        assert values.dtype == torch.float32
        assert torch.equal(values, wanted)


def test_all_bf16_statistics_would_drown_self_certainty() -> None:
    """Why point 2 of the module: it states by how much the obvious shortcut is wrong."""
    logits = (4.0 * torch.randn(64, 3000, generator=torch.Generator().manual_seed(7))).bfloat16()
    exact = torch.tensor([by_loops(row.tolist(), 0)[2] for row in logits])
    shortcut = (logits.logsumexp(-1) - logits.mean(-1) - math.log(3000)).float()
    found = token_signals(logits, torch.zeros(64, dtype=torch.long)).self_certainty
    assert (found - exact).abs().max() < 1e-5
    assert (shortcut - exact).abs().max() > 1e-2


def test_fp16_logits_at_the_edge_of_their_range_do_not_overflow() -> None:
    logits = torch.tensor([65_000.0, -65_000.0, 64_992.0], dtype=torch.float16)
    signals = token_signals(logits, torch.tensor(0))
    expected = by_loops(logits.tolist(), 0)
    assert signals.logprob.item() == pytest.approx(expected[0], abs=1e-6)
    assert signals.entropy.item() == pytest.approx(expected[1], abs=1e-6)
    assert signals.self_certainty.item() == pytest.approx(expected[2], rel=1e-6)


def test_the_logits_are_left_alone() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(8))
    before = logits.clone()
    token_signals(logits, torch.zeros(3, dtype=torch.long), vocab_size=7)
    assert torch.equal(logits, before)


# Reducers


def test_reducers_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 100.0, 100.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert masked_sum(values, mask).tolist() == [9.0, 4.0, 0.0]
    assert masked_mean(values, mask).tolist() == [3.0, 4.0, 0.0]
    assert REDUCERS["sum"] is masked_sum
    assert REDUCERS["mean"] is masked_mean


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(REDUCERS))
def test_what_lies_under_the_mask_does_not_leak(name: str, rubbish: float) -> None:
    values = torch.tensor([[1.0, 3.0, rubbish], [rubbish, rubbish, rubbish]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    reduced = REDUCERS[name](values, mask)
    assert reduced.tolist() == [{"mean": 2.0, "sum": 4.0}[name], 0.0]
    reduced.sum().backward()
    share = {"mean": 0.5, "sum": 1.0}[name]
    assert values.grad is not None
    assert values.grad.tolist() == [[share, share, 0.0], [0.0, 0.0, 0.0]]


CELL = st.tuples(st.floats(-9, 9, width=32), st.booleans())  # value, counts


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(CELL, min_size=4, max_size=4), min_size=1))
def test_reducers_equal_loops(rows: list[list[tuple[float, bool]]]) -> None:
    values = torch.tensor([[value for value, _ in row] for row in rows])
    mask = torch.tensor([[counts for _, counts in row] for row in rows])
    kept = [[value for value, counts in row if counts] for row in rows]
    assert masked_sum(values, mask).tolist() == pytest.approx([sum(row) for row in kept], abs=1e-5)
    assert masked_mean(values, mask).tolist() == pytest.approx([sum(row) / max(1, len(row)) for row in kept], abs=1e-5)


# The table


def test_scores_are_higher_for_the_more_confident() -> None:
    signals = TokenSignals(*(torch.tensor([value]) for value in (-0.25, 0.75, 1.5)))
    expected = {"self_certainty": 1.5, "token_entropy": -0.75, "trajectory_entropy": -0.25}
    assert {name: signal.score(signals).item() for name, signal in SIGNALS.items()} == expected


def test_every_entry_says_what_it_is() -> None:
    for name, signal in SIGNALS.items():
        assert name == signal.name
        assert "arXiv" in signal.citation
        assert "higher" in signal.direction
        assert signal.formula
        assert "nats" in signal.unit


def test_signals_carry_gradient_when_asked() -> None:
    # d(entropy)/dz_i = -p_i (ln p_i + H); d(SC)/dz_i = p_i - 1/V; d(logprob)/dz_i = [i = token] - p_i.
    z = torch.tensor([0.3, -1.0, 2.0, 0.0], requires_grad=True)
    p = z.detach().softmax(0)
    entropy = -(p * p.log()).sum()
    chosen = torch.tensor([0.0, 1.0, 0.0, 0.0])
    expected: list[Tensor] = [chosen - p, -p * (p.log() + entropy), p - 0.25]
    for values, wanted in zip(token_signals(z, torch.tensor(1)), expected, strict=True):
        (gradient,) = torch.autograd.grad(values, z, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)
