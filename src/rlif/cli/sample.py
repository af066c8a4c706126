"""Completions on the terminal, each token shaded by the entropy of the distribution it was drawn from."""

from time import monotonic
from typing import Literal, cast

from rich.text import Text

from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.model.loading import load_policy
from rlif.model.policy import Policy
from rlif.report.token_view import _summary, legend, shaded
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import render
from rlif.types import Problem, Prompt, Sampling
from rlif.utils.terminal import Console


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
    try:
        policy = load_policy(PolicyConfig(model=model, chat_template=choice))
    except RlifError as error:
        raise RlifError(_in_own_words(error)) from error
    try:
        prompts = render(policy, "plain", [Problem("prompt", prompt)])
    except RlifError as error:
        raise RlifError(_in_own_words(error)) from error
    _check_fits(policy, prompts[0], max_new_tokens)
    started = monotonic()
    sampling = Sampling(temperature, top_p, max_new_tokens=max_new_tokens)
    try:
        rollouts = Engine(policy).sample(prompts, group_size=n, sampling=sampling, key=Key(seed, "sample"))
    except FloatingPointError as error:
        raise RlifError(f"MODEL: {model}: {error}; the model is damaged, or needs float32") from error
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


def _in_own_words(error: RlifError) -> str:
    """A mistake in the words of `rlif sample`, which has an argument and an option where a recipe has keys."""
    return str(error).replace("policy.model: ", "MODEL: ").replace("policy.chat_template", "--chat-template")


def _check_fits(policy: Policy, prompt: Prompt, max_new_tokens: int) -> None:
    length, context = len(prompt.token_ids), policy.context
    if not length:
        raise RlifError("PROMPT: it is empty; a model needs at least one token to go on from")
    if context is not None and length + max_new_tokens > context:
        raise RlifError(
            f"PROMPT: {length} tokens and --max-new-tokens {max_new_tokens} exceed the context of {policy.source} "
            f"({context}); shorten the prompt or lower the limit"
        )
