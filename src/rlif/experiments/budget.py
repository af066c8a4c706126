"""What a study will take: completion tokens, time, and how many cells fit on the machine at once.

Tokens are an upper bound: every completion at its length limit. Time is scaled from the finished runs of the same
folder by that bound; without one it is known for the tiny models alone, and only roughly.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from rlif.config import MergedModel, Recipe
from rlif.recipes import load_recipe
from rlif.runs.history import read_metrics
from rlif.runs.layout import FINAL, METRICS_FILE, RECIPE

TINY_SECONDS_PER_TOKEN = 1.1e-4
"""One core, tiny models, a token of the upper bound: 85 and 136 s of processor time for two cells of grids/tiny."""
TINY_GB = 0.8
"""Peak memory of a process that trains a tiny model."""


def tokens_at_most(recipe: Recipe) -> int:
    """Completion tokens of a run if every completion reached the length limit.

    Rollouts, evaluations (sampled, and greedy where that is apart), looks at the probe and its reference, and a
    teacher's answers (consensus) where a reward reads them: to each step's problems, none of which counts as asked
    before.
    """
    from rlif.rewards.registry import read_consensus
    from rlif.training.probe_problems import looks_every

    rollout, probe = recipe.rollout, recipe.probe
    evaluations, looks = _times(recipe.steps, recipe.eval.every), _times(recipe.steps, looks_every(recipe))
    prompts = recipe.steps * rollout.prompts
    rows = prompts * rollout.group_size + evaluations * recipe.eval.problems * _samples_of_an_evaluation(recipe)
    if looks:
        rows += probe.prompts * (looks * probe.samples + 2 * probe.reference_samples + 1)
    if read_consensus(recipe.reward):
        rows += prompts * recipe.consensus.samples
    return rows * rollout.max_new_tokens


def _times(steps: int, every: int) -> int:
    """Before the first step, after every so many, and at the end; 0: never."""
    return 1 + steps // every + (steps % every > 0) if every else 0


def _samples_of_an_evaluation(recipe: Recipe) -> int:
    """Completions of each problem."""
    from rlif.training.resolve import eval_sampling

    sampling = eval_sampling(recipe)
    return recipe.eval.samples + (recipe.eval.greedy and sampling != replace(sampling, temperature=0.0))


def seconds(recipes: Collection[Recipe], runs: Path) -> tuple[float, str] | None:
    """How long the recipes take one after the other on one core each, and where that is known from; None if it is not.

    ``runs`` is the folder of a study's runs, of which the finished ones are the measure.
    """
    total = sum(tokens_at_most(recipe) for recipe in recipes)
    measured = [(read_metrics(run / METRICS_FILE)[-1]["time"], _tokens_of(run)) for run in _finished(runs)]
    if measured:
        spent, tokens = (sum(column) for column in zip(*measured, strict=True))
        return total * spent / tokens, f"measured on {len(measured)} finished cells"
    if all(_is_tiny(recipe) for recipe in recipes):
        return total * TINY_SECONDS_PER_TOKEN, "rough: no cell is finished here"
    return None


def side_by_side(recipes: Iterable[Recipe], runs: Path) -> int:
    """As many runs as there are cores, and as the free memory holds at the peak of those that are finished in ``runs``.

    One where nothing is known of their memory, or where they share a GPU.
    """
    import torch

    peaks = [read_metrics(run / METRICS_FILE)[-1].get("memory/peak_gb", 0.0) for run in _finished(runs)]
    if torch.cuda.is_available() or not (peaks or all(_is_tiny(recipe) for recipe in recipes)):
        return 1
    return max(1, min(_cores(), int(_free_gb() / max(peaks, default=TINY_GB))))


def _finished(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob(f"*/{FINAL}")) if (path.parent / METRICS_FILE).is_file()]


def _tokens_of(run: Path) -> int:
    return tokens_at_most(load_recipe(run / RECIPE))


def _is_tiny(recipe: Recipe) -> bool:
    """Whether it is of the models that are in the package, or between them."""
    model = recipe.policy.model
    names = {model.merge.base, model.merge.instruct} if isinstance(model, MergedModel) else {model}
    return names <= {"tiny-base", "tiny-instruct"}


def _cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_gb() -> float:
    """Memory that can be had without swapping, in GB; where the system does not say, all there is."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / 1e9
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
