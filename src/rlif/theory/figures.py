"""Pictures of the theory: entropy along the flow of each reward, and the simplex of three choices."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rlif.theory.gradient_flow import Flow, flow
from rlif.theory.gradients import REWARDS, natural_gradient
from rlif.theory.tabular import Language, Policies, random_policies, tree
from rlif.utils.palette import BLUE, GREEN, GREY, ORANGE, PINK
from rlif.utils.plotting import png

_COLOURS = {
    "self_certainty": BLUE,
    "token_entropy": ORANGE,
    "trajectory_entropy": GREEN,
    "verifiable": GREY,
    "majority_vote": PINK,
}
_CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
_STEP, _STEPS, _POLICIES = 0.2, 200, 200


def draw_all(folder: Path, *, seed: int) -> list[Path]:
    """Write theory-entropy.png and theory-simplex.png into the folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    figures = {"theory-entropy": entropy_flows(generator), "theory-simplex": simplex(generator)}
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(png(figure, dpi=100))
    return paths


def entropy_flows(generator: torch.Generator) -> Figure:
    """Trajectory entropy of 200 random policies, two choices among four, as each reward drives them."""
    policies = random_policies(tree(4, 2), _POLICIES, generator)
    flows = {name: flow(policies, reward, step=_STEP, steps=_STEPS) for name, reward in REWARDS.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, each in flows.items():
        times, values = _thinned(each)
        left.plot(times, values.median(dim=1).values, color=_COLOURS[name], label=name.replace("_", " "))
        rose = (each.entropies[:-1] < each.entropies[1:] - 1e-12).any(dim=0).double().mean()
        highest = (each.entropies.amax(dim=0) - each.entropies[0]).argmax()
        label = f"{name.replace('_', ' ')}: entropy ever rose in {float(rose):.0%}"
        right.plot(times, values[:, highest], color=_COLOURS[name], label=label)
    left.set_title(f"median of {_POLICIES} random policies", fontsize=10)
    right.set_title("the policy whose entropy rose most", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xlim(0, _STEP * _STEPS)
        axes.set_ylim(0.0, 3.6)
        axes.set_xlabel("time along the natural gradient (steps × step size)")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("trajectory entropy, nats")
    left.legend(frameon=False, fontsize=8, loc="upper right")
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def _thinned(each: Flow) -> tuple[list[float], Float[Tensor, "time policy"]]:
    """About a hundred moments of a flow, later ones farther apart, its end repeated to the last."""
    marks = sorted({round(1.08**i) - 1 for i in range(200) if 1.08**i - 1 <= _STEPS} | {_STEPS})
    last = len(each.entropies) - 1
    return [_STEP * mark for mark in marks], each.entropies[[min(mark, last) for mark in marks]]


def simplex(generator: torch.Generator) -> Figure:
    """Three first choices, each followed by a second: where each reward drives the chance of the first."""
    language = tree(3, 2)
    language = replace(language, answers=torch.tensor([sequence[0] for sequence in language.sequences]))
    second, corners = _telling_second_choices(language, generator)
    figure, grid = plt.subplots(1, len(REWARDS), figsize=(13, 3.2), layout="constrained")
    for axes, name in zip(grid.flat, REWARDS, strict=True):
        _background(axes, language, second)
        points = [(i / 12, j / 12) for i, j in product(range(1, 11), repeat=2) if i + j < 12]
        starts = torch.tensor([(a, b, 1 - a - b) for a, b in points], dtype=torch.float64)
        policies = _with_first(language, second, starts, right=corners["right"])
        change = natural_gradient(policies, REWARDS[name](policies))[:, 0]
        motion = (starts * (change - (starts * change).sum(dim=1, keepdim=True))) @ _CORNERS
        length = motion.norm(dim=1, keepdim=True).clamp_min(1e-12)
        arrows = motion / length * (length / length.max()).sqrt()
        at = starts @ _CORNERS
        axes.quiver(*at.T, *arrows.T, color=_COLOURS[name], scale=16, width=0.008, pivot="mid")
        end = flow(policies, REWARDS[name], step=0.5, steps=400, tolerance=1e-6).end
        goals = (end.policy[:, 0] @ _CORNERS).numpy()
        axes.scatter(*goals.T, s=22, color=_COLOURS[name], edgecolor="white", linewidth=0.5, zorder=5)
        axes.set_title(name.replace("_", " "), fontsize=10)
        _label(axes, corners)
    figure.suptitle(
        "Chance of three first choices (second choices start equal in every start; dots: where the flows end; "
        "shade: trajectory entropy)",
        fontsize=10,
    )
    return figure


def _telling_second_choices(
    language: Language, generator: torch.Generator
) -> tuple[Float[Tensor, "state action"], Mapping[str, int]]:
    """Random second choices among which lowest entropy, highest self-certainty and the right answer lie apart."""
    for _ in range(10_000):
        policies = random_policies(language, 1, generator, spread=torch.tensor([1.5], dtype=torch.float64))
        entropy, certainty = policies.entropy[0, 1:], policies.self_certainty[0, 1:]
        least, surest = int(entropy.argmin()), int(certainty.argmax())
        gaps = entropy.sort().values.diff().min(), certainty.sort().values.diff().min()
        if least != surest and min(gaps) > 0.1:
            return policies.logits[0], {"lowest entropy": least, "surest": surest, "right": 3 - least - surest}
    raise AssertionError("no such choices among 10,000: the two orders differ in about one random tree of ten")


def _with_first(
    language: Language, second: Float[Tensor, "state action"], first: Float[Tensor, "policy action"], *, right: int
) -> Policies:
    """Policies with these chances of the first choice."""
    logits = second.expand(len(first), -1, -1).clone()
    logits[:, 0] = first.log()
    return Policies(language, logits, torch.full((len(first),), right))


def _background(axes: Axes, language: Language, second: Tensor) -> None:
    grid = torch.linspace(0.005, 0.99, 70, dtype=torch.float64)
    points = torch.tensor([(a, b, 1 - a - b) for a, b in product(grid.tolist(), repeat=2) if a + b < 0.995])
    points = points.double()
    shade = _with_first(language, second, points, right=0).trajectory_entropy
    axes.tricontourf(*(points @ _CORNERS).T, shade, levels=12, cmap="Greys", alpha=0.5)


def _label(axes: Axes, corners: Mapping[str, int]) -> None:
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-0.25, 1.25)
    axes.set_ylim(-0.2, 1.05)
    for name, corner in corners.items():
        x, y = _CORNERS[corner].tolist()
        axes.text(x, y + (0.05 if y > 0 else -0.06), name, ha="center", va="bottom" if y > 0 else "top", fontsize=8)
