"""Mirrors of metrics.jsonl: TensorBoard, W&B, trackio. Thin, optional, imported only when a recipe asks for them.

A mirror must not lose the run. One that cannot start is the user's to fix, before the first step; one that fails
later is reported once, as a warning on stderr, and switched off: metrics.jsonl has every number anyway.
"""

import importlib
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlif.config import Recipe
from rlif.errors import RlifError, printable, shortened
from rlif.recipes import dump_recipe
from rlif.runs.rollout_table import Judged

PROJECT = "rlif"
"""The project of runs that name none."""


COLUMNS = ("decoding", "prompt", "completion", "answer", "right", "formatted")
"""Of the table of completions at an evaluation."""

Row = tuple[str | bool | None, ...]


@runtime_checkable
class Sink(Protocol):
    """Takes each step's metrics, keys as in docs/metrics.md; at an evaluation some completions, rows of `COLUMNS`; and
    at the end of a run its evidence card, Markdown.

    ``first_step`` is the first step that will be written: above 0 in a resumed run.
    """

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None: ...

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None: ...

    def completions(self, step: int, rows: Sequence[Row]) -> None: ...

    def card(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files in OUT/tensorboard; a resumed run purges the steps it will repeat."""

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(str(out / "tensorboard"), purge_step=first_step or None)
        self._writer.add_text("recipe", _fenced(dump_recipe(recipe), "yaml"), first_step)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        said = [f"**{row[0]}, right: {row[4]}**\n\n{_fenced(f'{row[1]}{row[2]}')}" for row in rows]
        self._writer.add_text("eval/completions", "\n\n".join(said), step)

    def card(self, step: int, text: str) -> None:
        self._writer.add_text("card", text, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A W&B run, grouped by its name: a resumed run is a further one of its group. Project, name and group are the
    recipe's (log.project, log.name), else those of W&B's own variables, else rlif and the run folder's name."""

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        name = recipe.log.name or os.environ.get("WANDB_NAME") or _name(out)
        self._run: Any = self._wandb.init(
            project=recipe.log.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            group=os.environ.get("WANDB_RUN_GROUP") or name,
            dir=str(out),
            config=recipe.model_dump(mode="json"),
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._run.log(dict(metrics), step=step)

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        table = self._wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._run.log({"eval/completions": table}, step=step)  # the metrics of this step follow

    def card(self, step: int, text: str) -> None:
        card = self._wandb.Artifact(f"card-{self._run.id}", type="model-card")
        with card.new_file("README.md") as file:
            file.write(text)
        self._run.log_artifact(card)

    def close(self) -> None:
        self._run.finish()


class TrackioSink:
    """A trackio run; a resumed run continues it. Project and name are the recipe's (log.project, log.name), else those
    of TRACKIO_PROJECT and TRACKIO_NAME, else rlif and the run folder's name."""

    _OURS: Mapping[str, str] = {"time": "time/total"}
    """What trackio keeps for itself, to what it is called there: it would say so at every step."""

    def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        self._trackio.init(
            project=recipe.log.project or os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=recipe.log.name or os.environ.get("TRACKIO_NAME") or _name(out),
            config=recipe.model_dump(mode="json"),
            resume="allow" if first_step else "never",
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._trackio.log({self._OURS.get(key, key): value for key, value in metrics.items()}, step=step)

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        table = self._trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._trackio.log({"eval/completions": table}, step=step)

    def card(self, step: int, text: str) -> None:
        self._trackio.log({"card": self._trackio.Markdown(text)}, step=step)

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

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Pass one step's metrics on; a mirror that fails is reported (RuntimeWarning) and switched off."""
        self._tell(step, lambda sink: sink.write(step, metrics))

    def completions(self, step: int, answers: Mapping[str, Judged], prompts: int) -> None:
        """Pass the answers to the first ``prompts`` prompts of an evaluation on, by way to decode; as `write`."""
        rows = rows_of(answers, prompts) if self else []
        if rows:
            self._tell(step, lambda sink: sink.completions(step, rows))

    def card(self, step: int, text: str) -> None:
        """Pass the evidence card of a run that has ended on; as `write`."""
        self._tell(step, lambda sink: sink.card(step, text))

    def _tell(self, step: int, what: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                what(sink)
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


def rows_of(answers: Mapping[str, Judged], prompts: int) -> list[Row]:
    """Rows of `COLUMNS`: the answers to the first ``prompts`` prompts."""
    rows: list[Row] = []
    for decoding, (rollouts, verdicts) in answers.items():
        for row, prompt in enumerate(rollouts.row_prompts[: prompts * rollouts.group_size]):
            said, verdict = rollouts.texts[row], verdicts[row]
            rows.append((decoding, prompt.text, said, prompt.problem.answer, verdict.right, verdict.formatted))
    return rows


def _fenced(text: str, kind: str = "") -> str:
    """Text as a block of Markdown that it cannot end itself."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{kind}\n{text}\n{fence}"


def _report(name: str, what: str, error: Exception) -> None:
    message = f"log.sinks: {name} {what} ({_brief(error)}); metrics.jsonl is complete"
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _name(out: Path) -> str:
    """What a mirror calls the run: the folder's own name, as much of it as W&B takes."""
    return shortened(printable(out.absolute().name), 128) or "run"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
