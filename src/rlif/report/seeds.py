"""Several seeds of `rlif quickstart` in one table: `python -m rlif.report.seeds runs/quickstart-*`.

A gain is over the best baseline of the same seed and model: sampled, greedy or voted answers before training, whichever
is best. Its standard error is over seeds: how far it depends on the training run, not on which problems were asked.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlif.analysis.student import interval
from rlif.errors import RlifError
from rlif.report.summary import DECODINGS, baselines, decoded
from rlif.utils.terminal import say

Results = Sequence[Mapping[str, Any]]
"""results.json of a quickstart: its runs, as `rlif.report.summary.summarise` has them."""
_GAINS = ("best, over baselines (chosen from noise)", "last, over baselines")
_COLUMNS = ("run", "decoding", "before training", "best", "last", *_GAINS)


def read_results(folders: Sequence[Path]) -> list[Results]:
    """results.json of each folder. Raises `RlifError` if one is missing, or of other runs than the first."""
    found: list[Results] = []
    for folder in folders:
        path = folder / "results.json"
        if not path.is_file():
            raise RlifError(f"{path}: no such file; make it with: rlif quickstart --out {folder} --seed N")
        found.append(json.loads(path.read_text(encoding="utf-8")))
        if [one["label"] for one in found[-1]] != [one["label"] for one in found[0]]:
            raise RlifError(f"{path}: not the same runs as in {folders[0]}")
    return found


def seeds_table(seeds: Sequence[Results]) -> str:
    """Markdown: each run and way to decode, shares right and formatted, as mean ± standard error over the seeds.

    The last gain is bold where its 95 % interval over seeds (Student's t, so two at least) lies above 0. The best is
    never bold: the highest of several noisy evaluations stands above its start if nothing was learnt.
    """
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for i, run in enumerate(seeds[0]):
        for decoding in DECODINGS:
            if all(decoded(results[i], decoding) for results in seeds):
                rows.append((run["label"], decoding, *_cells(seeds, i, decoding)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cells(seeds: Sequence[Results], run: int, decoding: str) -> list[str]:
    each = [decoded(results[run], decoding) or {} for results in seeds]
    bases = [_best_baseline(results, run) for results in seeds]
    scores = [[points[at]["score"] for points in each] for at in ("start", "best", "last")]
    gains = [[score - base for score, base in zip(at, bases, strict=True)] for at in scores[1:]]
    best, last = gains
    return [*(_shown(*_over_seeds(at)) for at in scores), _shown(*_over_seeds(best), sign="+"), _shown_last(last)]


def _over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error, NaN for a single seed."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _best_baseline(results: Results, run: int) -> float:
    """Of the run's model: what the best way to decode gives before training."""
    model = results[run]["label"].partition(", ")[0]
    return float(max(start["score"] for start in baselines(results)[model].values()))


def _shown(mean: float, error: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + (f" ± {error:.2f}" if math.isfinite(error) else "")


def _shown_last(gains: Sequence[float]) -> str:
    shown, (_, low, _) = _shown(*_over_seeds(gains), sign="+"), interval(gains)
    return f"**{shown}**" if low > 0.0 else shown


if __name__ == "__main__":
    for row in seeds_table(read_results([Path(folder) for folder in sys.argv[1:]])).splitlines():
        say(row)
