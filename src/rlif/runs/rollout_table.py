"""Rollouts as a Parquet table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlif.types import Rollouts, Scored, TokenSignals, Verdict
from rlif.utils.parquet_files import parquet_bytes

Judged = tuple[Rollouts, Sequence[Verdict]]
"""Completions and what the grader says of each."""


def _parquet(step: int, scored: Scored) -> bytes:
    import pyarrow as pa

    def per_row(values: Tensor) -> pa.Array:
        return pa.array(values.detach().cpu().to(torch.float32).numpy())

    columns = {
        **_columns(step, scored.rollouts, scored.verdicts),
        **{f"reward_{name}": per_row(values) for name, values in scored.rewards.items()},
        "advantage": per_row(scored.advantages),
    }
    return parquet_bytes(columns, {})


def answers_parquet(step: int, answers: Mapping[str, Judged], prompts: int) -> bytes:
    """The answers to the first ``prompts`` prompts of an evaluation as one table, for each way to decode that it has.

    Before the columns of rollouts stand ``decoding`` (the key in ``answers``) and ``sample`` (from 0, of a prompt).
    """
    import pyarrow as pa

    tables = []
    for decoding, (rollouts, verdicts) in answers.items():
        kept = _first_prompts(rollouts, prompts)
        columns = {
            "decoding": pa.array([decoding] * kept.n_rows, pa.string()),
            "sample": pa.array([row % kept.group_size for row in range(kept.n_rows)], pa.int32()),
            **_columns(step, kept, verdicts[: kept.n_rows]),
        }
        tables.append(pa.table(columns))
    whole = pa.concat_tables(tables)
    return parquet_bytes({name: whole[name].combine_chunks() for name in whole.column_names}, {})


def verdicts_parquet(step: int, answers: Mapping[str, Judged]) -> bytes:
    """What is said of every answer of an evaluation, for each way to decode that it has: see
    `rlif.runs.run_log.RunLog.write_eval_verdicts`."""
    import pyarrow as pa

    tables = []
    for decoding, (rollouts, verdicts) in answers.items():
        rows, prompts = rollouts.n_rows, rollouts.row_prompts
        columns = {
            "step": pa.array([step] * rows, pa.int32()),
            "decoding": pa.array([decoding] * rows, pa.string()),
            "prompt_id": pa.array([prompt.id for prompt in prompts], pa.string()),
            "question": pa.array([prompt.problem.question for prompt in prompts], pa.string()),
            "sample": pa.array([row % rollouts.group_size for row in range(rows)], pa.int32()),
            "right": pa.array([verdict.right for verdict in verdicts], pa.bool_()),
            "formatted": pa.array([verdict.formatted for verdict in verdicts], pa.bool_()),
            "extracted": pa.array([verdict.extracted for verdict in verdicts], pa.string()),
            "length": pa.array(rollouts.lengths.tolist(), pa.int32()),
        }
        tables.append(pa.table(columns))
    whole = pa.concat_tables(tables)
    return parquet_bytes({name: whole[name].combine_chunks() for name in whole.column_names}, {})


def _first_prompts(rollouts: Rollouts, prompts: int) -> Rollouts:
    rows = min(prompts, len(rollouts.prompts)) * rollouts.group_size
    return replace(
        rollouts,
        prompts=rollouts.prompts[:prompts],
        tokens=rollouts.tokens[:rows],
        mask=rollouts.mask[:rows],
        sampler_logprobs=rollouts.sampler_logprobs[:rows],
        signals=TokenSignals(*(values[:rows] for values in rollouts.signals)),
        texts=rollouts.texts[:rows],
        stop_reasons=rollouts.stop_reasons[:rows],
    )


def _columns(step: int, rollouts: Rollouts, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    import pyarrow as pa

    prompts = rollouts.row_prompts
    mask = rollouts.mask.cpu()
    ends = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(dim=1).cumsum(dim=0, dtype=torch.int32)])

    def per_token(values: Tensor, dtype: torch.dtype = torch.float32) -> pa.ListArray:
        counted = values.detach().cpu()[mask].to(dtype)  # row by row, so the ends of the rows cut it up again
        return pa.ListArray.from_arrays(ends.numpy(), counted.numpy())

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
        "right": pa.array([verdict.right for verdict in verdicts], pa.bool_()),
        "formatted": pa.array([verdict.formatted for verdict in verdicts], pa.bool_()),
        "extracted": pa.array([verdict.extracted for verdict in verdicts], pa.string()),
        "answer": pa.array([prompt.problem.answer for prompt in prompts], pa.string()),
    }
