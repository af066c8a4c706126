"""On a GPU, skipped where there is none: a rollout and an update against the same on a CPU, and what is waited for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlif.config import GrpoConfig
from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout import cuda_graphs as graphs
from rlif.rollout.cuda_graphs import CudaGraphBatch
from rlif.rollout.decode_batch import PackedBatch
from rlif.rollout.engine import Engine
from rlif.rollout.recorder import Recorder
from rlif.training.grpo import grpo_step
from rlif.training.optim import MasterOptimizer, adamw
from rlif.types import Rollouts, Sampling, Scored, Verdict
from toys import FAMILIES, toy_policy, toy_prompts

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def on_gpu(family: str) -> Policy:
    policy = toy_policy(family)
    policy.model.to(DEVICE)
    return policy


def sampled(policy: Policy, *, cuda_graphs: bool = False, **sampling: Any) -> Rollouts:
    """More completions than rows at once, so that some leave and others enter."""
    return Engine(policy, max_rows=5, cuda_graphs=cuda_graphs).sample(
        toy_prompts(policy, ["ab", "12+3=?", "a"]),
        group_size=4,
        sampling=Sampling(max_new_tokens=30, **sampling),
        key=Key(0, 0),
    )


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9, "stop": ("q",)}])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_rollout_is_that_of_a_cpu(family: str, sampling: dict[str, Any], cuda_graphs: bool) -> None:
    expected, found = (
        sampled(toy_policy(family), **sampling),
        sampled(on_gpu(family), cuda_graphs=cuda_graphs, **sampling),
    )
    assert torch.equal(found.tokens, expected.tokens)
    assert (found.texts, found.stop_reasons) == (expected.texts, expected.stop_reasons)
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-4, rtol=0)
    for got, wanted in zip(found.signals, expected.signals, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_update_is_that_of_a_cpu(family: str, checkpointing: bool) -> None:
    rollouts = sampled(toy_policy(family))
    advantages = torch.linspace(-1.0, 1.0, rollouts.n_rows)
    scored = Scored(rollouts, (Verdict(None, False, None),) * rollouts.n_rows, {}, advantages)
    config = GrpoConfig(kl_coef=0.0, lr=1e-3, micro_batch_tokens=100, gradient_checkpointing=checkpointing)

    def updated(policy: Policy) -> tuple[list[Tensor], float]:
        optimizer = MasterOptimizer(policy.model, adamw(config))
        norm = grpo_step(policy, optimizer, scored, config, lr=1e-3).grad_norm
        return [master.detach().cpu() for master in optimizer.masters], norm

    (expected, norm), (found, found_norm) = updated(toy_policy(family)), updated(on_gpu(family))
    assert found_norm == pytest.approx(norm, rel=1e-3)
    # Adam's first step is lr whatever the gradient's size: where that is noise, its sign may be either.
    differing = torch.cat([(a - b).abs().flatten() for a, b in zip(found, expected, strict=True)]) > 1e-4
    assert differing.float().mean() < 0.01


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_gpu_is_not_waited_for_between_two_syncs(monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool) -> None:
    """`test_graphs` has the same of any device; this asks CUDA itself, but for first calls, which set up libraries, and
    for steps that record a graph."""
    replayed = graphs.replayed

    def recorded(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        return replayed(*args)

    def hurried(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(function.__qualname__)
            if calls.count(function.__qualname__) > 1:
                torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    calls: list[str] = []
    kind = CudaGraphBatch if cuda_graphs else PackedBatch
    monkeypatch.setattr(graphs, "replayed", recorded)
    monkeypatch.setattr(kind, "step", hurried(kind.step))
    monkeypatch.setattr(Recorder, "sample", hurried(Recorder.sample))
    sampled(on_gpu("llama"), cuda_graphs=cuda_graphs)
    assert len(calls) > 30
