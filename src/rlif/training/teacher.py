"""A teacher that follows the policy: its weights are a moving average of the policy's, and its vote is what `ema_vote`
rewards.

After each step θ̄ ← decay · θ̄ + (1 − decay) · θ over the fp32 masters, with a decay that rises along a cosine from the
first of ``consensus.decay`` to the last: the teacher follows at first and stands still in the end. Source:
Co-rewarding-II, arXiv 2508.00410 (1 − decay from .01 to 1e-5); its schedule is that of BYOL, arXiv 2006.07733.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlif.errors import RlifError
from rlif.model.policy import Policy
from rlif.training.optim import MasterOptimizer
from rlif.training.parallel import ALONE, Ranks

FILE = "teacher.safetensors"
"""Where a checkpoint keeps the teacher, beside the policy."""


class Teacher:
    """A copy of a policy whose fp32 weights follow those of its optimizer. ``policy`` is what samples, in the compute
    type of the one that is trained. Another copy of the weights in memory; in bf16 the fp32 ones besides."""

    def __init__(self, policy: Policy, optimizer: MasterOptimizer) -> None:
        self.policy = replace(policy, model=copy.deepcopy(policy.model))
        self.policy.model.requires_grad_(False).eval()
        self._parameters = dict(self.policy.model.named_parameters())
        masters = zip(self._parameters.items(), optimizer.whole_masters(), strict=True)
        # A model that computes in fp32 is its own master, as in the optimizer.
        self.weights: dict[str, Tensor] = {
            name: parameter.data if parameter.dtype == torch.float32 else master.clone()
            for (name, parameter), master in masters
        }

    @torch.no_grad()
    def follow(self, optimizer: MasterOptimizer, decay: float) -> None:
        """Move towards the policy: θ̄ ← decay · θ̄ + (1 − decay) · θ, in fp32, on the masters of ``optimizer``."""
        for mine, theirs in zip(self.weights.values(), optimizer.whole_masters(), strict=True):
            mine.lerp_(theirs, 1.0 - decay)
        self._publish()

    def save(self, folder: Path) -> None:
        """Write the fp32 weights into a checkpoint that is being made."""
        save_file({name: weight.contiguous() for name, weight in self.weights.items()}, folder / FILE)

    @torch.no_grad()
    def restore(self, checkpoint: Path, ranks: Ranks = ALONE) -> None:
        """Take the weights of a checkpoint (verified by `rlif.runs.checkpoint.load_checkpoint`), bit for bit, as the
        first of the ranks finds them.

        Raises `RlifError` if it holds no teacher, or that of another model.
        """
        ranks.told(lambda: self._read(checkpoint))
        ranks.copied(self.weights.values())
        self._publish()

    def _read(self, checkpoint: Path) -> None:
        if not (checkpoint / FILE).is_file():
            raise RlifError(
                f"{checkpoint}: no {FILE}: this run had no teacher that follows it (ema_vote); begin a new run at it: "
                f"policy.model={checkpoint}"
            )
        self._take(load_file(checkpoint / FILE), checkpoint)

    def _take(self, found: Mapping[str, Tensor], checkpoint: Path) -> None:
        shapes = {name: tuple(weight.shape) for name, weight in found.items()}
        if shapes != {name: tuple(weight.shape) for name, weight in self.weights.items()}:
            raise RlifError(f"{checkpoint}: {FILE} is of another model; resume with the recipe that wrote it")
        for name, weight in self.weights.items():
            weight.copy_(found[name])

    def _publish(self) -> None:
        """Write the fp32 weights, rounded, into the model that samples."""
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32:
                parameter.copy_(self.weights[name])


def decay_at(decay: tuple[float, float], step: int, steps: int) -> float:
    """The decay after step 1 … ``steps``: along half a cosine from the first number to the last.

    Source: BYOL, arXiv 2006.07733, τ = 1 − (1 − τ₀) (cos(π k / K) + 1) / 2, which ends at 1.
    """
    first, last = decay
    done = (step - 1) / max(1, steps - 1)
    return last - (last - first) * (math.cos(math.pi * done) + 1.0) / 2.0
