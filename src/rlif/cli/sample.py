"""Completions on the terminal, each token shaded by the entropy of the distribution it was drawn from."""

from time import monotonic

from rich.text import Text

from rlif.config import PolicyConfig
from rlif.errors import Argument, RlifError, named
from rlif.model.loading import load_policy
from rlif.model.registry import run_of
from rlif.report.token_view import _summary, legend, shaded
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context, render
from rlif.runs.model_defaults import Prompting, prompting_of
from rlif.tasks.templates import find_template
from rlif.types import Problem, Sampling
from rlif.utils.terminal import Console

_WORDS = {
    "model": "MODEL",
    "prompt": "PROMPT",
    "chat_template": "--chat-template",
    "max_new_tokens": "--max-new-tokens",
    "template": "--template",
}
"""What the library's arguments are called here."""
_TOKENS = 128
"""Length limit unless told."""


def print_samples(
    model: str,
    prompt: str,
    *,
    n: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int | None,
    chat_template: str,
    seed: int,
    template: str | None = None,
) -> None:
    """Load ``model``, draw ``n`` completions of ``prompt`` and print them with their signals. The model of a run is
    asked as it was trained, any other one is given the prompt alone, where nobody says otherwise.

    Raises `RlifError` if the model cannot be loaded or the prompt does not fit.
    """
    if chat_template not in ("auto", "on", "off"):
        raise RlifError(f"--chat-template: {chat_template!r}; choose auto, on or off")
    console = Console()
    given = {"template": template, "max_new_tokens": max_new_tokens, "chat_template": chat_template}
    found = prompting_of([model], given) if run_of(model) else Prompting()
    if found.said:
        console.write_line(found.said)
    asked = given | dict(found.settings)
    with named(_WORDS):
        words = find_template(asked["template"] or "plain")
        stop = tuple(dict.fromkeys((*words.stop, *asked.get("stop", ()))))
        sampling = Sampling(temperature, top_p, max_new_tokens=asked["max_new_tokens"] or _TOKENS, stop=stop)
        policy = load_policy(PolicyConfig(model=model, chat_template=asked["chat_template"]))
        prompts = render(policy, words, [Problem("prompt", prompt)])
        check_context(policy, prompts, sampling.max_new_tokens)
        started = monotonic()
        try:
            rollouts = Engine(policy).sample(prompts, group_size=n, sampling=sampling, key=Key(seed, "sample"))
        except FloatingPointError as error:
            said = f": {model}: {error}; the model is damaged, or needs float32"
            raise RlifError(Argument("model"), said) from error
    seconds = monotonic() - started
    few = console.color_system in ("standard", "windows")
    console.print(legend(few))
    for row in range(rollouts.n_rows):
        console.print()
        console.print(shaded(policy, rollouts, row, few), soft_wrap=True)
        console.print(Text(_summary(rollouts, row), style="dim"))
    speed = int(rollouts.mask.sum()) / seconds
    console.print(Text(f"\n{int(rollouts.mask.sum())} tokens in {seconds:.1f} s ({speed:,.0f} tokens/s)", style="dim"))
