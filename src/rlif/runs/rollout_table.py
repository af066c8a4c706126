"""Rollouts as a Parquet table."""

from typing import Any

import torch
from torch import Tensor

from rlif.types import Scored
from rlif.utils.parquet_files import parquet_bytes


def _parquet(step: int, scored: Scored) -> bytes:
    return parquet_bytes(_columns(step, scored), {})


def _columns(step: int, scored: Scored) -> dict[str, Any]:
    import pyarrow as pa

    rollouts = scored.rollouts
    prompts = rollouts.row_prompts
    mask = rollouts.mask.cpu()
    ends = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(dim=1).cumsum(dim=0, dtype=torch.int32)])

    def per_token(values: Tensor, dtype: torch.dtype = torch.float32) -> pa.ListArray:
        counted = values.detach().cpu()[mask].to(dtype)  # row by row, so the ends of the rows cut it up again
        return pa.ListArray.from_arrays(ends.numpy(), counted.numpy())

    def per_row(values: Tensor) -> pa.Array:
        return pa.array(values.detach().cpu().to(torch.float32).numpy())

    return {
        "step": pa.array([step] * rollouts.n_rows, pa.int32()),
        "prompt_id": pa.array([prompt.id for prompt in prompts], pa.string()),
        "row": pa.array(range(rollouts.n_rows), pa.int32()),
        "prompt": pa.array([prompt.text for prompt in prompts], pa.string()),
        "completion": pa.array(rollouts.texts, pa.string()),
        "tokens": per_token(rollouts.tokens, torch.int32),
        **{name: per_token(values) for name, values in rollouts.signals._asdict().items()},
        "sampler_logprobs": per_token(rollouts.sampler_logprobs),
        "stop_reason": pa.array(rollouts.stop_reasons, pa.string()),
        "right": pa.array([verdict.right for verdict in scored.verdicts], pa.bool_()),
        "formatted": pa.array([verdict.formatted for verdict in scored.verdicts], pa.bool_()),
        "extracted": pa.array([verdict.extracted for verdict in scored.verdicts], pa.string()),
        "answer": pa.array([prompt.problem.answer for prompt in prompts], pa.string()),
        **{f"reward_{name}": per_row(values) for name, values in scored.rewards.items()},
        "advantage": per_row(scored.advantages),
    }
