"""The phases of a step: timed, told, and guarded against numbers that are not finite and devices that are full."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlif.errors import RlifError
from rlif.rollout.engine import SamplerError
from rlif.runs.checkpoint import latest_checkpoint
from rlif.runs.layout import resume_with
from rlif.training.callbacks import ProgressCallback


class Phases:
    """Brackets each phase of a step (rollout, score, watch, update, eval), and what comes before the first one
    (consensus). ``checkpoints`` is the run's folder of them.

    What has to be known of a phase is said here once: how long it took, that it began, and how it ends if it fails.
    """

    def __init__(self, callback: ProgressCallback, checkpoints: Path) -> None:
        self._callback, self._checkpoints = callback, checkpoints
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, *, step: int, tokens: int = 0) -> Iterator[None]:
        """Time what happens inside, as ``time/<name>``; a phase may come in parts. With ``tokens``, the most completion
        tokens that it works through, it is announced to the callback.

        Turns a FloatingPointError, a full device or a sampler that failed into an `RlifError` that says what to do:
        nothing of the step is kept, for weights are saved and metrics logged after its last phase only.
        """
        if tokens:
            self._callback.begin(name, step, tokens)
        began = time.monotonic()
        try:
            yield
        except FloatingPointError as error:
            raise self._not_finite(step, error) from error
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(step, error) from error
        except SamplerError as error:
            raise self._sampler_failed(step, error) from error
        key = f"time/{name}"
        self._seconds[key] = self._seconds.get(key, 0.0) + time.monotonic() - began

    def take_seconds(self) -> dict[str, float]:
        """``time/<name>`` of each phase since this was last asked."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _not_finite(self, step: int, error: FloatingPointError) -> RlifError:
        last = latest_checkpoint(self._checkpoints)
        begin = f"begin a new run at it (policy.model={last})" if last else "begin again"
        return RlifError(
            f"step {step}: {error}; nothing of this step is kept; {self._said(last)}; {begin} with a lower grpo.lr or "
            "a higher grpo.kl_coef"
        )

    def _out_of_memory(self, step: int, error: torch.OutOfMemoryError) -> RlifError:
        return RlifError(
            f"step {step}: out of memory ({str(error).splitlines()[0]}); "
            f"{self._said(latest_checkpoint(self._checkpoints))}; lower grpo.micro_batch_tokens (null: 16384 on a GPU) "
            "or rollout.max_rows, or set grpo.gradient_checkpointing"
        )

    def _sampler_failed(self, step: int, error: SamplerError) -> RlifError:
        said = self._said(latest_checkpoint(self._checkpoints))
        return RlifError(
            f"step {step}: {error}; nothing of this step is kept; {said}; go on from there with: ",
            resume_with(self._checkpoints.parent),
        )

    def _said(self, last: Path | None) -> str:
        if not self._checkpoints.parent.is_dir():
            return "checkpoints, if any, are where the first rank is"
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
