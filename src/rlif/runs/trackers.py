"""Mirrors of metrics.jsonl: TensorBoard, W&B, trackio. Thin, optional, imported only when a recipe asks for them.

A mirror must not lose the run. One that cannot start is the user's to fix, before the first step; one that fails
later is reported once, as a warning on stderr, and switched off: metrics.jsonl has every number anyway.
"""

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlif.config import Recipe
from rlif.errors import RlifError, printable, shortened


@runtime_checkable
class Sink(Protocol):
    """Takes each step's metrics, keys as in docs/metrics.md.

    ``first_step`` is the first step that will be written: above 0 in a resumed run.
    """

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None: ...

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files in OUT/tensorboard; a resumed run purges the steps it will repeat."""

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(str(out / "tensorboard"), purge_step=first_step or None)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A W&B run in project rlif, grouped by the run folder's name; a resumed run is a further one of its group."""

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
        wandb = importlib.import_module("wandb")
        config = recipe.model_dump(mode="json")
        self._run: Any = wandb.init(project="rlif", name=_name(out), group=_name(out), dir=str(out), config=config)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioSink:
    """A trackio run in project rlif, named after the run folder; a resumed run continues it."""

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        resume = "allow" if first_step else "never"
        self._trackio.init(project="rlif", name=_name(out), config=recipe.model_dump(mode="json"), resume=resume)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self._trackio.finish()


SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoardSink, "wandb": WandbSink, "trackio": TrackioSink}


class Sinks:
    """All mirrors of a run as one that never raises; ``with`` closes it."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Pass one step's metrics on; a mirror that fails is reported (RuntimeWarning) and switched off."""
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(step, metrics)
            except Exception as error:  # whatever a third-party client raises, the run is worth more
                del self._sinks[name]
                _report(name, f"failed at step {step} and is switched off", error)

    def close(self) -> None:
        """Close every mirror still on; a failure is reported."""
        while self._sinks:
            name, sink = self._sinks.popitem()
            try:
                sink.close()
            except Exception as error:  # as in write
                _report(name, "failed to close", error)


def open_sinks(names: Sequence[str], out: Path, recipe: Recipe, *, first_step: int = 0) -> Sinks:
    """Start the mirrors a recipe names in ``log.sinks``. Raises `RlifError` if one is not installed or cannot start."""
    opened: dict[str, Sink] = {}
    for name in names:
        try:
            opened[name] = SINKS[name](out, recipe, first_step)
        except ImportError as error:
            raise RlifError(f"log.sinks: {name} is not usable ({_brief(error)}); pip install 'rlif[{name}]'") from error
        except Exception as error:
            raise RlifError(f"log.sinks: {name} cannot start ({_brief(error)}); fix it or leave it out") from error
    return Sinks(opened)


def _report(name: str, what: str, error: Exception) -> None:
    message = f"log.sinks: {name} {what} ({_brief(error)}); metrics.jsonl is complete"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _name(out: Path) -> str:
    """What a mirror calls the run: the folder's own name, as much of it as W&B takes."""
    return shortened(printable(out.absolute().name), 128) or "run"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
