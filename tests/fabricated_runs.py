"""Run folders made by hand: what each completion is, is a function of step, prompt and sample."""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlif.recipes import dump_recipe, find_recipe, load_recipe
from rlif.runs.layout import FINAL, METRICS_FILE, RECIPE, ROLLOUTS, step_name
from rlif.utils.parquet_files import parquet_bytes

PROMPTS, SAMPLES = 16, 4


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a row of a table of rollouts says; ``answer`` None: unreadable."""

    text: str
    answer: str | None
    reason: str = "eos"
    tokens: int = 40
    entropy: float = 0.3


Behaves = Callable[[random.Random, int], Completion]
"""(what to draw with, the step) → a completion."""


def healthy(draw: random.Random, step: int) -> Completion:
    """As with labels: ever surer and a little shorter, some cut off, some unreadable, answers all over the place."""
    answer = str(draw.randint(20, 198))
    text = f"so {draw.randint(1, 9)} and {draw.randint(1, 9)}, then {answer}. " + draw.choice(("", "But wait. "))
    cut = draw.random() < 0.05
    read = draw.random() < 0.9 and not cut
    length = draw.randint(30, 50) - min(step, 60) // 10
    surer = 0.3 / (1.0 + step / 40)
    return Completion(
        text, answer if read else None, "length" if cut else "eos", length, surer * draw.uniform(0.5, 1.5)
    )


class FabricatedRun:
    """A run's folder, to which steps are added."""

    def __init__(self, folder: Path, *, steps: int = 40, overrides: tuple[str, ...] = (), seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = (f"steps={steps}", f"rollout.prompts={PROMPTS}", f"rollout.group_size={SAMPLES}")
        self.folder, self.recipe = folder, load_recipe(find_recipe(Path("tiny")), [*sizes, *overrides])
        self._draw, self.step = random.Random(seed), 0
        (folder / RECIPE).write_text(dump_recipe(self.recipe), "utf-8")
        self.write({"step": 0, "eval/right": 0.5})

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of the log."""
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def add(self, steps: int, behaves: Behaves = healthy, **metrics: float | None) -> "FabricatedRun":
        """So many steps more; ``metrics`` (``__`` for a slash) in place of those that the completions give."""
        every = self.recipe.log.rollouts_every
        for _ in range(steps):
            self.step += 1
            rows = [behaves(self._draw, self.step) for _ in range(PROMPTS * SAMPLES)]
            if every and self.step % every == 0:
                self._write_rollouts(rows)
            self.write(self._line(rows) | {key.replace("__", "/"): value for key, value in metrics.items()})
        return self

    def finish(self) -> "FabricatedRun":
        """As if the last step were done."""
        (self.folder / FINAL).mkdir()
        return self

    def _line(self, rows: list[Completion]) -> dict[str, Any]:
        tokens = sum(row.tokens for row in rows)
        return {
            "step": self.step,
            "length/mean": tokens / len(rows),
            "signal/entropy": sum(row.tokens * row.entropy for row in rows) / tokens,
            "stop/length": sum(row.reason == "length" for row in rows) / len(rows),
            "advantage/zero_groups": self._draw.randint(0, 12) / PROMPTS,
            "mismatch/mean": 2e-5,
        }

    def _write_rollouts(self, rows: list[Completion]) -> None:
        columns = {
            "completion": pa.array([row.text for row in rows]),
            "stop_reason": pa.array([row.reason for row in rows]),
            "extracted": pa.array([row.answer for row in rows], pa.string()),
            "entropy": pa.array([[row.entropy] * row.tokens for row in rows], pa.list_(pa.float32())),
        }
        path = self.folder / ROLLOUTS / f"{step_name(self.step)}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(parquet_bytes(columns, {}))
