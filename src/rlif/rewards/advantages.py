"""Advantages: rewards relative to their group."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def advantages(
    rewards: Float[Tensor, " row"], group_size: int, *, std: bool = True, std_floor: float = 1e-4
) -> Float[Tensor, " row"]:
    """A_i = (r_i - mean of its group) / max(std of its group, std_floor); centred only if ``std`` is False.

    The standard deviation is the unbiased one. The floor keeps a group that agrees to within rounding from turning
    noise into full-size advantages. Source: arXiv 2402.03300 eq. 4; without std: Dr. GRPO, arXiv 2503.20783; the
    floor: project.

    Raises ValueError for groups of one with ``std``, for rows that make no whole groups, and for a reward that is not
    finite.

    >>> import rlif, torch
    >>> rlif.advantages(torch.tensor([1.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 5.0]), group_size=4).tolist()
    [1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0]
    """
    if std and group_size == 1:
        raise ValueError("a group of one has no standard deviation; use groups of at least 2, or std=False")
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make groups of {group_size}")
    if not bool(rewards.isfinite().all()):
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(f"the reward of row {row} is {rewards[row].item()}: no advantage can be taken of it")
    groups = rewards.double().view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if std:
        centred = centred / groups.std(dim=1, keepdim=True).clamp_min(std_floor)
    # Identical rewards leave rounding behind in the mean; with a floor of 0 it would be divided by itself.
    centred = centred.masked_fill((groups == groups[:, :1]).all(dim=1, keepdim=True), 0.0)
    return centred.view(-1).to(rewards.dtype)


def cap_incomplete(
    rewards: Float[Tensor, " row"], incomplete: Bool[Tensor, " row"], group_size: int
) -> Float[Tensor, " row"]:
    """Lower the rewards of truncated or empty completions to at most the least of the complete ones in their group.

    A group without a complete one teaches nothing: all its rewards become its least. Source: project.
    """
    groups, cut = rewards.view(-1, group_size), incomplete.view(-1, group_size)
    least_complete = groups.masked_fill(cut, torch.inf).amin(dim=1, keepdim=True)
    cap = torch.minimum(least_complete, groups.amax(dim=1, keepdim=True))
    none_complete = cut.all(dim=1, keepdim=True)
    cap = torch.where(none_complete, groups.amin(dim=1, keepdim=True), cap)
    return torch.where(cut, torch.minimum(groups, cap), groups).view(-1)
