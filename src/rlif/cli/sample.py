"""Completions on the terminal, each token shaded by the entropy of the distribution it was drawn from."""

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Literal, cast

from rich.text import Text

from rlif.config import PolicyConfig
from rlif.errors import RlifError, printable, printable_lines
from rlif.model.policy import Policy, load_policy
from rlif.rollout.engine import Engine, Key, Sampling
from rlif.rollout.prompts import render
from rlif.types import Problem, Prompt, Rollouts
from rlif.utils.terminal import Console

# Background from certain to unsure: the darker the ground, the more the model could have said something else. Each is
# a colour of the 256 that nearly every terminal has; those that have but 16 get their own seven.
_RAMP = ("#ffffff", "#ffffd7", "#ffd7af", "#ffaf87", "#ff875f", "#d75f5f", "#af5f5f")
_RAMP_OF_16 = ("bright_white", "white", "bright_yellow", "yellow", "bright_red", "red", "magenta")
_STEPS = (0.05, 0.25, 0.6, 1.2, 2.0, 3.0)  # nats; above the last: the last colour


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
        raise RlifError(f"MODEL: {model}: not finite: {error}; the model is damaged, or needs float32") from error
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


def shaded(policy: Policy, rollouts: Rollouts, row: int, few: bool = False) -> Text:
    """A completion as rich text; EOS is shown as the token's own name. ``few``: the terminal has 16 colours."""
    tokens = rollouts.tokens[row][rollouts.mask[row]].tolist()
    text = Text()
    for piece, entropy in _pieces(policy, tokens, rollouts.signals.entropy[row].tolist()):
        text.append(printable_lines(piece), style=f"black on {colour(entropy, few)}")
    if rollouts.stop_reasons[row] == "eos":
        text.append(printable(str(policy.tokenizer.convert_ids_to_tokens(tokens[-1]))), style="dim")
    return text


def colour(entropy: float, few: bool = False) -> str:
    """The background of a token whose distribution has this entropy (nats)."""
    return (_RAMP_OF_16 if few else _RAMP)[sum(entropy >= step for step in _STEPS)]


def legend(few: bool = False) -> Text:
    """The colours and what they mean."""
    text = Text("entropy in nats: ")
    for step in (0.0, *_STEPS):
        text.append(f" {step:g}+ ", style=f"black on {colour(step, few)}")
    return text


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


def _pieces(policy: Policy, tokens: Sequence[int], entropies: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Text pieces with the entropy of their (last) token: some tokens are only a part of a character."""
    shown = ""
    for end, entropy in zip(range(1, len(tokens) + 1), entropies, strict=False):
        text = policy.decode(tokens[:end])
        if text.endswith("\ufffd") and end < len(tokens):
            continue
        yield text[len(shown) :], entropy
        shown = text


def _summary(rollouts: Rollouts, row: int) -> str:
    mask = rollouts.mask[row]
    means = [values[row][mask].mean().item() for values in rollouts.signals]
    return (
        f"{int(mask.sum())} tokens, ended by {rollouts.stop_reasons[row]}; mean per token in nats: "
        f"logprob {means[0]:.3f}, entropy {means[1]:.3f}, self-certainty {means[2]:.3f}"
    )
