"""Tokens on the terminal: every character once, the colour of its entropy."""

import re
from io import StringIO

import pytest
import torch
from rich.console import Console

from rlif.report.token_view import colour, legend, shaded
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Sampling
from toys import toy_policy, toy_prompts


def test_the_shaded_text_is_the_completion() -> None:
    policy = toy_policy()
    prompts = toy_prompts(policy, ["12+34=?"])
    rollouts = Engine(policy).sample(prompts, group_size=6, sampling=Sampling(max_new_tokens=20), key=Key(0, 0))
    for row in range(6):
        text = shaded(policy, rollouts, row)
        eos = "<eos>" if rollouts.stop_reasons[row] == "eos" else ""
        assert text.plain == rollouts.texts[row] + eos


def test_colours_darken_with_entropy() -> None:
    shades = [colour(entropy) for entropy in torch.linspace(0.0, 4.0, 50).tolist()]
    assert shades[0] == "#ffffff"
    brightness = [sum(int(shade[i : i + 2], 16) for i in (1, 3, 5)) for shade in shades]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(shades)) == 7
    assert "3+" in legend().plain


@pytest.mark.parametrize("system", ["standard", "256", "truecolor"])
def test_seven_shades_differ_on_any_terminal(system: str) -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system=system, width=200, legacy_windows=False)
    console.print(legend(few=console.color_system == "standard"))
    backgrounds = re.findall(r"\x1b\[30;([0-9;]+)m [0-9.]+\+ ", out.getvalue())
    assert len(backgrounds) == len(set(backgrounds)) == 7
