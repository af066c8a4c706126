"""Tokens shaded by what the model thought of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from rlif.errors import printable, printable_lines

if TYPE_CHECKING:  # both load torch, which a reader of a run folder may not have
    import rlif.model.policy
    import rlif.types

# Background from certain to unsure: the darker the ground, the more the model could have said something else. Each is
# a colour of the 256 that nearly every terminal has; those that have but 16 get their own seven.
_RAMP = ("#ffffff", "#ffffd7", "#ffd7af", "#ffaf87", "#ff875f", "#d75f5f", "#af5f5f")


_RAMP_OF_16 = ("bright_white", "white", "bright_yellow", "yellow", "bright_red", "red", "magenta")


_STEPS = (0.05, 0.25, 0.6, 1.2, 2.0, 3.0)  # nats; above the last: the last colour


def shaded(policy: "rlif.model.policy.Policy", rollouts: "rlif.types.Rollouts", row: int, few: bool = False) -> Text:
    """A completion as rich text; EOS is shown as the token's own name. ``few``: the terminal has 16 colours."""
    tokens = rollouts.tokens[row][rollouts.mask[row]].tolist()
    text = shaded_pieces(_pieces(policy, tokens, rollouts.signals.entropy[row].tolist()), few)
    if rollouts.stop_reasons[row] == "eos":
        text.append(printable(str(policy.tokenizer.convert_ids_to_tokens(tokens[-1]))), style="dim")
    return text


def shaded_pieces(pieces: Iterable[tuple[str, float]], few: bool = False) -> Text:
    """Pieces of a text, each on the ground of its entropy (nats)."""
    text = Text()
    for piece, entropy in pieces:
        text.append(printable_lines(piece), style=f"black on {colour(entropy, few)}")
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


def _pieces(
    policy: "rlif.model.policy.Policy", tokens: Sequence[int], entropies: Sequence[float]
) -> Iterator[tuple[str, float]]:
    """Text pieces with the entropy of their (last) token: some tokens are only a part of a character."""
    shown = ""
    for end, entropy in zip(range(1, len(tokens) + 1), entropies, strict=False):
        text = policy.decode(tokens[:end])
        if text.endswith("\ufffd") and end < len(tokens):
            continue
        yield text[len(shown) :], entropy
        shown = text


def _summary(rollouts: "rlif.types.Rollouts", row: int) -> str:
    mask = rollouts.mask[row]
    means = [values[row][mask].mean().item() for values in rollouts.signals]
    return (
        f"{int(mask.sum())} tokens, ended by {rollouts.stop_reasons[row]}; mean per token in nats: "
        f"logprob {means[0]:.3f}, entropy {means[1]:.3f}, self-certainty {means[2]:.3f}"
    )
