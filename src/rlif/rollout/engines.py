"""What may sample, by what a recipe or ``rlif eval --engine`` calls it; each gives the same `Rollouts`, to rounding."""

from collections.abc import Callable, Mapping

from rlif.config import RolloutConfig
from rlif.model.policy import Policy
from rlif.rollout.engine import Engine


def native(policy: Policy, config: RolloutConfig) -> Engine:
    """Our own (`rlif.rollout.engine`)."""
    return Engine(
        policy,
        max_rows=config.max_rows,
        cuda_graphs=config.cuda_graphs,
        max_mismatch=config.max_mismatch,
    )


def vllm(policy: Policy, config: RolloutConfig) -> Engine:
    """vLLM in this process (`rlif.rollout.vllm_engine`). Raises `RlifError` where it cannot be had."""
    from rlif.rollout.vllm_engine import VllmEngine

    return VllmEngine(policy, config)


ENGINES: Mapping[str, Callable[[Policy, RolloutConfig], Engine]] = {"native": native, "vllm": vllm}
"""By the values of rollout.engine: (policy, section rollout) → what samples from that policy."""
