"""Pictures of the theory: entropy along the flow of each reward, and the simplex of three choices."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rlif.theory.gradient_flow import Flow, flow
from rlif.theory.gradients import REWARDS, natural_gradient
from rlif.theory.tabular import Language, Policies, random_policies, tree
from rlif.utils.palette import BLUE, GREEN, GREY, ORANGE, PINK
from rlif.utils.plotting import End, bare, headed, label_ends, legible, png

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
        paths[-1].write_bytes(png(figure))
    return paths


def entropy_flows(generator: torch.Generator) -> Figure:
    """Trajectory entropy of 200 random policies, two choices among four, as each reward drives them."""
    policies = random_policies(tree(4, 2), _POLICIES, generator)
    flows = {name: flow(policies, reward, step=_STEP, steps=_STEPS) for name, reward in REWARDS.items()}
    rose = {name: float(_ever_rose(each).double().mean()) for name, each in flows.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    ends: tuple[list[End], list[End]] = ([], [])
    for name, each in flows.items():
        times, values = _thinned(each)
        highest = int((each.entropies.amax(dim=0) - each.entropies[0]).argmax())
        label = f"{_shown(name)}: {rose[name]:.0%}"
        for axes, line, found in (
            (left, values.median(dim=1).values, ends[0]),
            (right, values[:, highest], ends[1]),
        ):
            axes.plot(times, line, color=_COLOURS[name], linewidth=1.5)
            found.append((times[-1], float(line[-1]), label if axes is right else _shown(name), _COLOURS[name]))
    left.set_title(f"median of {_POLICIES} random policies", fontsize=9, loc="left")
    right.set_title("the policy whose entropy rose most; share in which it ever rose", fontsize=9, loc="left")
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xticks([0, 1, 3, 10, 30], labels=["0", "1", "3", "10", "30"])
        axes.minorticks_off()
        axes.set_xlim(0, _STEP * _STEPS)
        axes.set_ylim(0.0, 2.5)
        axes.set_xlabel("time along the natural gradient (steps × step size)", fontsize=8)
        axes.tick_params(labelsize=8)
        bare(axes)
    left.set_ylabel("trajectory entropy, nats", fontsize=8)
    up = min(rose["self_certainty"], rose["token_entropy"])
    headed(
        figure,
        f"Self-certainty and token entropy raise entropy on their way in {up:.0%} of random policies",
        "trajectory entropy along the flow of each reward: two choices among four, one after the other",
    )
    for axes, found in zip((left, right), ends, strict=True):
        label_ends(axes, found, size=8.0)
    return figure


def _ever_rose(each: Flow) -> Bool[Tensor, " policy"]:
    """Whose entropy grew in any step of the flow."""
    return (each.entropies[:-1] < each.entropies[1:] - 1e-12).any(dim=0)


def _shown(name: str) -> str:
    return name.replace("_", " ")


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
    figure, grid = plt.subplots(1, len(REWARDS), figsize=(11.5, 2.9), layout="constrained")
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
        axes.set_title(_shown(name), fontsize=9, color=legible(_COLOURS[name]))
        _label(axes, corners)
    headed(
        figure,
        "Two rewards have a goal of their own, two go where the policy leans, only labels know what is right",
        "chance of three first choices, all followed by the same second ones; arrows: natural gradient; "
        "dots: ends of the flows; shade: trajectory entropy",
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
    axes.set_xlim(-0.22, 1.22)
    axes.set_ylim(-0.16, 1.02)
    for name, corner in corners.items():
        x, y = _CORNERS[corner].tolist()
        axes.text(x, y + (0.05 if y > 0 else -0.06), name, ha="center", va="bottom" if y > 0 else "top", fontsize=8)
