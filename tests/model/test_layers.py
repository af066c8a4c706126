"""Products that keep the inputs of an elementwise operation instead of its result."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from rlif.model.decoder import decoder_of
from rlif.model.layers import ElementwiseOp, Gated, products
from rlif.model.packing import Packed
from toys import toy_policy


class Mixed:
    """An operation with a parameter and two inputs, each of them used twice."""

    def __init__(self, weight: Tensor) -> None:
        self.parameters = (weight,)

    def __call__(self, a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = self.parameters[0] if weight is None else weight
        return (a * weight).sin() * b + a * b.exp() * weight


@pytest.mark.parametrize("frozen", list(product([False, True], repeat=4)))
def test_gradients_are_those_of_autograd(frozen: tuple[bool, ...]) -> None:
    """Whatever is frozen: the inputs, the operation's parameter, a weight, a bias."""
    inputs_frozen, op_frozen, weight_frozen, bias_frozen = frozen
    torch.manual_seed(0)
    a, b = (torch.randn(5, 6, dtype=torch.float64, requires_grad=not inputs_frozen) for _ in range(2))
    scale = torch.randn(6, dtype=torch.float64, requires_grad=not op_frozen)
    weights = [torch.randn(n, 6, dtype=torch.float64, requires_grad=n > 3 or not weight_frozen) for n in (3, 4)]
    biases = [torch.randn(3, dtype=torch.float64, requires_grad=not bias_frozen), None]
    leaves = [x for x in (a, b, scale, *weights, biases[0]) if x is not None and x.requires_grad]
    direction = [torch.randn(5, n, dtype=torch.float64) for n in (3, 4)]

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((x * y).sum() for x, y in zip(outputs, direction, strict=True)), leaves)

    op: ElementwiseOp = Mixed(scale)
    found = list(products(op, (a, b), weights, biases))
    expected = [functional.linear(op(a, b), w, bias) for w, bias in zip(weights, biases, strict=True)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found), gradients(expected))


@pytest.mark.parametrize("same", [False, True])
def test_an_input_used_twice_and_a_second_backward_pass(same: bool) -> None:
    torch.manual_seed(0)
    a, scale, weight = (torch.randn(6, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    b = a if same else torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    leaves = {a, b, scale, weight}
    (found,) = products(Mixed(scale), (a, b), [weight], [None])
    expected = functional.linear(Mixed(scale)(a, b), weight)
    for _ in range(2):
        gradients = torch.autograd.grad(found.square().sum(), leaves, retain_graph=True)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), leaves, retain_graph=True))


def test_a_hook_on_a_parameter_hears_of_its_gradient_once() -> None:
    scale, heard = torch.ones(6, requires_grad=True), []
    scale.register_hook(heard.append)
    (found,) = products(Mixed(scale), (torch.ones(2, 6), torch.ones(2, 6)), [torch.eye(6)], [None])
    found.sum().backward()
    assert len(heard) == 1


@pytest.mark.usefixtures("either_way")
def test_under_autocast_the_backward_pass_runs_outside() -> None:
    policy = toy_policy("llama")
    line, decoder = Packed([[1, 2, 3]], [(0, [6, 7, 8, 9])]), decoder_of(policy.model)
    assert decoder is not None
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder(line.tokens, line.positions, line.attend)
    hidden.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.model.model.parameters())


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_recomputed_as_a_whole_runs_no_operation_a_third_time(
    monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    policy = toy_policy("llama")
    line, decoder = Packed([[1, 2, 3]], [(0, [6, 7, 8, 9])]), decoder_of(policy.model, recompute=recompute)
    assert decoder is not None
    made, gated = [], Gated.__call__
    monkeypatch.setattr(Gated, "__call__", lambda *arguments: made.append(1) or gated(*arguments))
    decoder(line.tokens, line.positions, line.attend).square().sum().backward()
    assert len(made) == 2 * policy.model.config.num_hidden_layers


@pytest.mark.usefixtures("either_way")
def test_norms_gates_and_probabilities_are_not_kept() -> None:
    policy = toy_policy("llama")
    config = policy.model.config
    line = Packed([[1, 2, 3], [4, 5]], [(0, [6, 7, 8, 9]), (1, [6] * 10)])
    kept: dict[int, tuple[int, ...]] = {}

    def pack(x: Tensor) -> Tensor:
        if not x.is_leaf or x.dim() == 4:  # no parameters and indices; masks are leaves
            kept[x.untyped_storage().data_ptr()] = tuple(x.shape)
        return x

    decoder = decoder_of(policy.model)
    assert decoder is not None
    with saved_tensors_hooks(pack, lambda x: x):
        hidden = decoder(line.tokens, line.positions, line.attend)  # holds on to what is kept
    shapes = Counter(kept.values())
    layers, tokens = config.num_hidden_layers, len(line.tokens)
    assert shapes[tokens, config.hidden_size] == 3 * layers + 1  # before each norm, and what attention found
    assert shapes[tokens, config.intermediate_size] == 2 * layers  # gate and up
    blocks = 2  # prompts, completions
    masks = [shape for shape in kept.values() if len(shape) == 4 and shape[-1] != config.head_dim]
    assert len(masks) == blocks
    assert hidden.requires_grad
