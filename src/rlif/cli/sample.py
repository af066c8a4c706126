"""Completions on the terminal, each token shaded by the entropy of the distribution it was drawn from."""

from time import monotonic
from typing import Literal, cast

from rich.text import Text

from rlif.config import PolicyConfig
from rlif.errors import Argument, RlifError, named
from rlif.model.loading import load_policy
from rlif.report.token_view import _summary, legend, shaded
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context, render
from rlif.types import Problem, Sampling
from rlif.utils.terminal import Console

_WORDS = {
    "model": "MODEL",
    "prompt": "PROMPT",
    "chat_template": "--chat-template",
    "max_new_tokens": "--max-new-tokens",
}
"""What the library's arguments are called here."""


def print_samples(
    model: str,
    prompt: str,
    *,
    n: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    chat_template: str,
    seed: int,
) -> None:
    """Load ``model``, draw ``n`` completions of ``prompt`` and print them with their signals.

    Raises `RlifError` if the model cannot be loaded or the prompt does not fit.
    """
    if chat_template not in ("auto", "on", "off"):
        raise RlifError(f"--chat-template: {chat_template!r}; choose auto, on or off")
    choice = cast(Literal["auto", "on", "off"], chat_template)
    sampling = Sampling(temperature, top_p, max_new_tokens=max_new_tokens)
    with named(_WORDS):
        policy = load_policy(PolicyConfig(model=model, chat_template=choice))
        prompts = render(policy, "plain", [Problem("prompt", prompt)])
        check_context(policy, prompts, max_new_tokens)
        started = monotonic()
        try:
            rollouts = Engine(policy).sample(prompts, group_size=n, sampling=sampling, key=Key(seed, "sample"))
        except FloatingPointError as error:
            said = f": {model}: {error}; the model is damaged, or needs float32"
            raise RlifError(Argument("model"), said) from error
    seconds = monotonic() - started
    console = Console()
    few = console.color_system in ("standard", "windows")
    console.print(legend(few))
    for row in range(rollouts.n_rows):
        console.print()
        console.print(shaded(policy, rollouts, row, few), soft_wrap=True)
        console.print(Text(_summary(rollouts, row), style="dim"))
    speed = int(rollouts.mask.sum()) / seconds
    console.print(Text(f"\n{int(rollouts.mask.sum())} tokens in {seconds:.1f} s ({speed:,.0f} tokens/s)", style="dim"))
