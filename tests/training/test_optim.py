"""Master weights, gradient accumulation and the learning rate, on models of one or two numbers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlif.config import GrpoConfig
from rlif.training.optim import SCHEDULES, MasterOptimizer, NonFiniteError, adamw, learning_rate, merge_back
from toys import FAMILIES, toy_policy

NO_CLIP = 1e9


def sgd(masters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(masters, lr=math.nan)  # the rate must come from `step`


class Weights(nn.Module):
    """A model that is nothing but its weights."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))

    def loss(self, *gradient: float) -> Tensor:
        """A loss with this gradient."""
        return (self.w * torch.tensor(gradient, dtype=self.w.dtype)).sum()


# Precision


def test_small_steps_add_up_in_the_masters_and_vanish_in_bf16() -> None:
    # 3000 steps of 2⁻²⁰ = 9.5e-7 from 1 make .99714. Below 1 bf16 numbers lie 2⁻⁸ = .0039 apart: .99609375 is the
    # nearest to it. A single such step from 1 rounds back to 1, for ever.
    model, pure = Weights(1.0), Weights(1.0).bfloat16()
    optimizer = MasterOptimizer(model, sgd, compute_dtype=torch.bfloat16)
    pure_optimizer = torch.optim.SGD(pure.parameters(), lr=2.0**-20)
    for _ in range(3000):
        optimizer.backward(model.loss(1.0))
        optimizer.step(2.0**-20, NO_CLIP)
        pure.loss(1.0).backward()
        pure_optimizer.step()
        pure_optimizer.zero_grad()
    assert optimizer.masters[0].item() == 1.0 - 3000 * 2.0**-20
    assert model.w.dtype == torch.bfloat16
    assert model.w.item() == 0.99609375
    assert pure.w.item() == 1.0


def test_gradients_of_the_model_do_not_pile_up() -> None:
    """Each goes to its master before the next is made: in the backward pass of the first layer none is left."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    optimizer = MasterOptimizer(model, sgd, compute_dtype=torch.bfloat16)
    held = []
    hidden = model[0](torch.ones(2, 4, dtype=torch.bfloat16))
    hidden.register_hook(lambda _: held.append(sum(p.grad is not None for p in model.parameters())))
    optimizer.backward(model[1:](hidden).sum())
    assert held == [0]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(master.grad is not None and master.grad.dtype == torch.float32 for master in optimizer.masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_weight_has_no_master_and_is_left_alone(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = MasterOptimizer(model, sgd, compute_dtype=dtype)
    assert optimizer.names == list(optimizer.named_masters()) == ["1.weight", "1.bias"]
    before = [parameter.clone() for parameter in model.parameters()]
    assert {parameter.dtype for parameter in before} == {dtype}
    optimizer.backward(model(torch.ones(1, 2, dtype=dtype)).sum())
    optimizer.step(0.1, NO_CLIP)
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_gradients_are_summed_in_fp32() -> None:
    # 1 + 256 · 2⁻⁹ = 1.5. Summed in bf16, whose numbers above 1 lie 2⁻⁷ apart, each 2⁻⁹ would be lost.
    model = Weights(0.0)
    optimizer = MasterOptimizer(model, sgd, compute_dtype=torch.bfloat16)
    for gradient in (1.0, *[2.0**-9] * 256):
        optimizer.backward(model.loss(gradient))
        assert model.w.grad is None
    assert optimizer.step(1.0, NO_CLIP) == 1.5
    assert optimizer.masters[0].item() == -1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_by_hand(dtype: torch.dtype) -> None:
    # Gradients (1, 2) and (2, 2) sum to (3, 4): norm 5, scaled to norm 1 it is (.6, .8); half of it is taken off.
    model = Weights(1.0, 1.0)
    optimizer = MasterOptimizer(model, sgd, compute_dtype=dtype)
    for gradient in ((1.0, 2.0), (2.0, 2.0)):
        optimizer.backward(model.loss(*gradient))
    assert optimizer.step(0.5, 1.0) == 5.0
    assert optimizer.masters[0].tolist() == pytest.approx([0.7, 0.6], abs=1e-6)
    assert model.w.tolist() == pytest.approx([0.7, 0.6], abs=2e-7 if dtype == torch.float32 else 2e-3)
    assert model.w.dtype == dtype
    # Nothing is left behind: the next step starts from zero.
    optimizer.backward(model.loss(0.0, 1.0))
    assert optimizer.step(0.1, 1.0) == 1.0
    assert optimizer.masters[0].tolist() == pytest.approx([0.7, 0.5], abs=1e-6)


def test_a_gradient_below_the_bound_is_not_scaled() -> None:
    model = Weights(0.0, 0.0)
    optimizer = MasterOptimizer(model, sgd)
    optimizer.backward(model.loss(3.0, 4.0))
    assert optimizer.step(1.0, 6.0) == 5.0
    assert model.w.tolist() == [-3.0, -4.0]


def test_fp32_is_its_own_master() -> None:
    model = Weights(1.0)
    optimizer = MasterOptimizer(model, sgd)
    assert optimizer.masters[0] is model.w


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_masters_are_fp32_however_the_model_was_stored(stored: torch.dtype, compute: torch.dtype) -> None:
    model = Weights(1.0).to(stored)
    optimizer = MasterOptimizer(model, sgd, compute_dtype=compute)
    assert model.w.dtype == compute
    assert optimizer.masters[0].dtype == torch.float32


def test_the_model_holds_the_rounded_masters() -> None:
    policy = toy_policy()
    optimizer = MasterOptimizer(policy.model, sgd, compute_dtype=torch.bfloat16)
    for _ in range(3):
        logits = policy.model(input_ids=torch.arange(3, 15)[None]).logits
        optimizer.backward(logits.float().logsumexp(-1).sum())
        optimizer.step(1e-3, 1.0)
    assert optimizer.names == [name for name, _ in policy.model.named_parameters()]
    for parameter, master in zip(policy.model.parameters(), optimizer.masters, strict=True):
        assert torch.equal(parameter, master.bfloat16())
        assert not torch.equal(parameter.float(), master)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_buffers_are_not_cast(family: str) -> None:
    policy = toy_policy(family)
    before = {name: buffer.clone() for name, buffer in policy.model.named_buffers()}
    assert any(buffer.is_floating_point() for buffer in before.values()), "the toy should have rotary frequencies"
    MasterOptimizer(policy.model, sgd, compute_dtype=torch.bfloat16)
    for name, buffer in policy.model.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.bfloat16}


# What is not finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("start", "lr"), [((3e38, 1.0), 1e38), ((1.0, math.nan), 0.1)])
def test_weights_that_a_step_leaves_not_finite_are_told(
    dtype: torch.dtype, start: tuple[float, float], lr: float
) -> None:
    # fp32 ends at 3.4e38: 3e38 + 1e38 is beyond it. What was not a number stays none.
    model = Weights(*start)
    optimizer = MasterOptimizer(model, sgd, compute_dtype=dtype)
    optimizer.backward(model.loss(-1.0, 0.0))
    with pytest.raises(NonFiniteError, match=r"largest weight after the optimizer step is (inf|nan)"):
        optimizer.step(lr, NO_CLIP)


def test_large_weights_whose_squares_overflow_are_finite() -> None:
    model = Weights(1e30, 1e30)
    optimizer = MasterOptimizer(model, sgd)
    optimizer.backward(model.loss(1.0, 1.0))
    optimizer.step(1.0, NO_CLIP)
    assert model.w.tolist() == pytest.approx([1e30, 1e30])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype: torch.dtype, bad: float) -> None:
    model = Weights(1.0, 2.0)
    optimizer = MasterOptimizer(model, adamw(GrpoConfig(lr=0.1, weight_decay=0.1)), compute_dtype=dtype)
    optimizer.backward(model.loss(1.0, 1.0))
    optimizer.step(0.1, 1.0)
    weights, masters = model.w.detach().clone(), optimizer.masters[0].detach().clone()
    state = copy.deepcopy(optimizer.inner.state_dict()["state"])
    optimizer.backward(model.loss(1.0, 1.0))
    optimizer.backward(model.loss(bad, 1.0))
    with pytest.raises(NonFiniteError, match=r"gradient norm is (nan|inf)"):
        optimizer.step(0.1, 1.0)
    assert torch.equal(model.w, weights)
    assert torch.equal(optimizer.masters[0], masters)
    assert model.w.grad is None
    assert optimizer.masters[0].grad is None
    for name, value in optimizer.inner.state_dict()["state"][0].items():
        assert torch.equal(value, state[0][name]), name
    # And the next step is a step like any other.
    optimizer.backward(model.loss(0.0, 3.0))
    assert optimizer.step(0.1, NO_CLIP) == 3.0


# State dict


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("tie", [False, True])
def test_master_state_dict_has_fp32_values_and_keeps_ties(family: str, tie: bool) -> None:
    policy = toy_policy(family)
    policy.model.config.tie_word_embeddings = tie
    if tie:
        policy.model.lm_head.weight = policy.model.model.embed_tokens.weight
    elif policy.model.lm_head.weight is policy.model.model.embed_tokens.weight:
        policy.model.lm_head.weight = nn.Parameter(policy.model.lm_head.weight.detach().clone())
    exact = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    state = MasterOptimizer(policy.model, sgd, compute_dtype=torch.bfloat16).master_state_dict()
    assert state.keys() == exact.keys()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert torch.equal(tensor, exact[name]), name  # never rounded to bf16 on the way
    same = state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert same == tie


def test_master_state_dict_follows_the_steps_and_loads_into_a_plain_model() -> None:
    model = Weights(1.0)
    optimizer = MasterOptimizer(model, sgd, compute_dtype=torch.bfloat16)
    optimizer.backward(model.loss(1.0))
    optimizer.step(1e-6, NO_CLIP)
    fresh = Weights(0.0)
    fresh.load_state_dict(optimizer.master_state_dict())
    assert fresh.w.item() == pytest.approx(1.0 - 1e-6, abs=1e-7)
    assert fresh.w.item() != 1.0


# AdamW and the learning rate


def test_adamw_by_hand() -> None:
    # First step: m̂ = g, v̂ = g², so w = w(1 - lr·decay) - lr·g/(|g| + 1e-8) = 2·(1 - .01·.1) - .01·sign(g).
    # Second step with g = 0 instead of .5: m̂ = β₁(1-β₁)·.5/(1-β₁²), v̂ = β₂(1-β₂)·.25/(1-β₂²).
    config = GrpoConfig(lr=1.0, weight_decay=0.1, betas=(0.8, 0.9))
    model = Weights(2.0)
    optimizer = MasterOptimizer(model, adamw(config))
    model.loss(0.5).backward()
    optimizer.step(0.01, NO_CLIP)
    first = 2.0 * (1 - 0.01 * 0.1) - 0.01
    assert model.w.item() == pytest.approx(first, abs=1e-6)
    model.loss(0.0).backward()
    optimizer.step(0.02, NO_CLIP)
    m, v = 0.8 * 0.2 * 0.5 / (1 - 0.8**2), 0.9 * 0.1 * 0.25 / (1 - 0.9**2)
    assert model.w.item() == pytest.approx(first * (1 - 0.02 * 0.1) - 0.02 * m / math.sqrt(v), abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        # 20 steps, warm-up .1: two steps up to the peak; then 18 steps, the n-th at (n - 1)/18 of the way down.
        ("constant", 1, 0.5),
        ("constant", 2, 1.0),
        ("constant", 3, 1.0),
        ("constant", 20, 1.0),
        ("linear", 1, 0.5),
        ("linear", 2, 1.0),
        ("linear", 3, 1.0),
        ("linear", 4, 17 / 18),
        ("linear", 12, 0.5),
        ("linear", 20, 1 / 18),
        ("cosine", 1, 0.5),
        ("cosine", 3, 1.0),
        ("cosine", 9, 0.75),  # a third of the way: ½(1 + cos 60°)
        ("cosine", 12, 0.5),
        ("cosine", 20, 0.5 * (1 + math.cos(math.pi * 17 / 18))),
    ],
)
def test_learning_rate_by_hand(schedule: str, step: int, expected: float) -> None:
    config = GrpoConfig.model_validate({"lr": 4e-6, "schedule": schedule, "warmup": 0.1})
    assert learning_rate(config, step, 20) == pytest.approx(4e-6 * expected, rel=1e-12)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_a_run_of_one_step_takes_it_at_full_rate(schedule: str, warmup: float) -> None:
    config = GrpoConfig.model_validate({"lr": 1e-5, "schedule": schedule, "warmup": warmup})
    assert learning_rate(config, 1, 1) == 1e-5


def test_every_schedule_a_recipe_may_name_exists() -> None:
    field = GrpoConfig.model_fields["schedule"].annotation
    assert set(SCHEDULES) == set(getattr(field, "__args__", ()))


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0.0, 0.99),
    schedule=st.sampled_from(sorted(SCHEDULES)),
)
def test_no_step_is_wasted_and_none_exceeds_the_peak(steps: int, warmup: float, schedule: str) -> None:
    config = GrpoConfig.model_validate({"lr": 1.0, "schedule": schedule, "warmup": warmup})
    rates = [learning_rate(config, step, steps) for step in range(1, steps + 1)]
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert max(rates) == 1.0
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# Back towards the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_back_moves_masters_and_model_and_leaves_the_moments(dtype: torch.dtype) -> None:
    policy, start = toy_policy(), {name: p.detach().clone() for name, p in toy_policy().model.named_parameters()}
    optimizer = MasterOptimizer(policy.model, adamw(GrpoConfig()), compute_dtype=dtype)
    for parameter in policy.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    if dtype != torch.float32:
        for parameter, master in zip(policy.model.parameters(), optimizer.masters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
    optimizer.step(0.1, NO_CLIP)
    here = [master.detach().double() for master in optimizer.masters]
    moments = [{name: value.clone() for name, value in optimizer.inner.state[m].items()} for m in optimizer.masters]
    merge_back(optimizer, start, 0.3)
    for name, parameter in policy.model.named_parameters():
        place = optimizer.names.index(name)
        master = optimizer.masters[place].detach()
        expected = 0.7 * here[place] + 0.3 * start[name].double()
        torch.testing.assert_close(master.double(), expected, atol=4e-6, rtol=0)
        assert (master - here[place]).abs().max() > 0.02  # AdamW's first step is lr: 0.3 · 0.1 of it is taken back
        assert torch.equal(parameter, master.to(dtype))
    for master, before in zip(optimizer.masters, moments, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in optimizer.inner.state[master].items())


def test_merging_back_by_nothing_and_by_all() -> None:
    policy, start = toy_policy(), {name: p.detach().clone() for name, p in toy_policy(seed=1).model.named_parameters()}
    optimizer = MasterOptimizer(policy.model, sgd)
    before = [master.detach().clone() for master in optimizer.masters]
    merge_back(optimizer, start, 0.0)
    assert all(torch.equal(*pair) for pair in zip(before, optimizer.masters, strict=True))
    merge_back(optimizer, start, 1.0)
    assert all(torch.equal(p, start[name]) for name, p in policy.model.named_parameters())


def test_merging_back_to_what_is_no_start_moves_nothing() -> None:
    policy = toy_policy()
    optimizer = MasterOptimizer(policy.model, sgd)
    start = {name: p.detach() + 1 for name, p in policy.model.named_parameters()}
    before = [master.detach().clone() for master in optimizer.masters]
    name = next(iter(start))
    for wrong, rho in (
        (start, 1.5),
        (start, -0.1),
        ({**start, name: start[name][:1]}, 0.5),
        ({name: start[name]}, 0.5),
    ):
        with pytest.raises(ValueError, match=r"rho is|the start has other weights"):
            merge_back(optimizer, wrong, rho)
    assert all(torch.equal(*pair) for pair in zip(before, optimizer.masters, strict=True))
