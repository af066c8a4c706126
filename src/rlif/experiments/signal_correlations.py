"""How alike the three internal rewards are on one step's completions: what partial equivalence means in practice.

A table of rollouts holds all signals of every token, whatever the run was rewarded for. So each of the three rewards
can be made from it afterwards, and correlated with the others: as rewards over all rows, and as the advantages that
training would have made of them. Free of torch.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rlif.utils.parquet_files import read_parquet

_COLUMNS = ("prompt_id", "self_certainty", "entropy", "logprob")
_STD_FLOOR = 1e-4  # the default of advantage.std_floor


def signal_correlations(path: Path) -> dict[str, float]:
    """Pearson's r of every two of the paper's internal rewards over the rows of a rollout table.

    Keys are ``correlation/reward/A~B`` and ``correlation/advantage/A~B``; NaN where one of the two does not vary.
    Trajectory entropy is summed over the completion, the two others are means (as in the grids that are shipped).
    Raises ValueError or OSError for a table that is damaged.
    """
    table = read_parquet(path, _COLUMNS)
    rewards = {
        "self_certainty": _per_row(table["self_certainty"], np.mean),
        "token_entropy": -_per_row(table["entropy"], np.mean),
        "trajectory_entropy": _per_row(table["logprob"], np.sum),
    }
    groups = np.unique(table["prompt_id"].to_pylist(), return_inverse=True)[1].reshape(-1)
    relative = {name: _advantages(values, groups) for name, values in rewards.items()}
    return {
        f"correlation/{kind}/{a}~{b}": _pearson(values[a], values[b])
        for kind, values in (("reward", rewards), ("advantage", relative))
        for a, b in itertools.combinations(rewards, 2)
    }


def _per_row(column: Any, reduce: Any) -> Float[np.ndarray, " row"]:
    return np.array([reduce(np.asarray(tokens, dtype=np.float64)) for tokens in column.to_pylist()])


def _advantages(rewards: Float[np.ndarray, " row"], groups: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """As `rlif.rewards.advantages.advantages` by default, for groups of any size; 0 in a group of one."""
    found = np.zeros_like(rewards)
    for group in range(groups.max() + 1):
        own = rewards[groups == group]
        if len(own) > 1 and np.ptp(own) > 0.0:
            found[groups == group] = (own - own.mean()) / max(own.std(ddof=1), _STD_FLOOR)
    return found


def _pearson(a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"]) -> float:
    if len(a) < 2 or np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
