"""The nouns of the project: frozen records, with the axes of every tensor in its type.

Axes, everywhere:

- ``prompt``: distinct prompts of a batch;
- ``group``: the G completions of one prompt;
- ``row`` = prompt * group, groups adjacent (row r belongs to prompt r // G);
- ``tok``: completion positions, right-padded;
- ``vocab``: the true vocabulary.

Masks are bool, True = counts. Masked positions hold 0. Log-probabilities and entropies are in nats.
Two policies have two names: ``sampler_logprobs`` (what the sampler drew from: temperature, top-p and top-k applied)
and ``policy_logprobs`` (what the trainer computes).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.config import RolloutConfig
from rlif.errors import Argument, RlifError, expect, expect_each

StopReason = Literal["eos", "stop_string", "length"]


@dataclass(frozen=True)
class Problem:
    """One question of a task. ``answer`` is the ground truth: only graders and controls may look at it.

    >>> import rlif
    >>> rlif.Problem("sum", "12+34=?", "46").answer
    '46'
    """

    id: str
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A problem rendered for one model: the exact text and the exact token ids the model is given.

    >>> import rlif
    >>> prompt = rlif.Prompt("sum", "12+34=", (17, 18), rlif.Problem("sum", "12+34=?"))
    >>> prompt.problem.question
    '12+34=?'
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    problem: Problem


class TokenSignals(NamedTuple):
    """What a next-token distribution says about itself; at temperature 1, over the true vocabulary, in nats.

    >>> import rlif, torch
    >>> signals = rlif.token_signals(torch.zeros(1, 4), torch.tensor([2]))  # four tokens, all as likely
    >>> [round(value.item(), 3) for value in signals]  # -ln 4, ln 4, and no distance from the uniform distribution
    [-1.386, 1.386, 0.0]
    """

    logprob: Float[Tensor, "*batch"]
    entropy: Float[Tensor, "*batch"]
    self_certainty: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature (0 is greedy), nucleus, top-k (0 is off), length limit in tokens, stop strings.

    >>> import rlif
    >>> rlif.Sampling(temperature=0.6, top_p=0.95, max_new_tokens=1024).top_k
    0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `RlifError` for a number that draws nothing, and for what is none."""
        for name in ("temperature", "top_p"):
            expect(getattr(self, name), Real, name, "a number")
        for name in ("top_k", "max_new_tokens"):
            expect(getattr(self, name), Integral, name, "a whole number")
        expect_each(self.stop, str, "stop", "a list of texts")
        for name, right, wanted in (
            ("temperature", 0.0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "more than 0, at most 1 (off)"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
        ):
            if not right:
                raise RlifError(Argument(name), f": {getattr(self, name)}; give {wanted}")

    @classmethod
    def from_config(cls, config: RolloutConfig) -> "Sampling":
        return cls(config.temperature, config.top_p, config.top_k, config.max_new_tokens, config.stop)

    @property
    def training_temperature(self) -> float:
        """The temperature at which an update takes log-probabilities: that of the draw, without top-p and top-k.

        1.0 for greedy completions: at temperature 0 each of them would be certain and its gradient 0, so they are
        trained on as the policy itself gives them.
        """
        return self.temperature or 1.0


@dataclass(frozen=True)
class Rollouts:
    """G completions for each prompt, with how they were drawn and what the sampler knew while drawing them.

    A completion includes its EOS token and nothing after it; ``texts`` leave out special tokens and stop strings.
    Position t of every per-token field belongs to the distribution that *produced* token t.

    >>> import rlif
    >>> policy = rlif.load_policy("tiny-base")
    >>> prompts = rlif.render(policy, "plain", [rlif.Problem("sum", "12+34=?")])
    >>> greedy = rlif.Sampling(temperature=0.0, max_new_tokens=4)
    >>> rollouts = rlif.Engine(policy).sample(prompts, group_size=1, sampling=greedy, key=rlif.Key(0, 1))
    >>> rollouts.n_rows, rollouts.lengths.tolist(), rollouts.stop_reasons
    (1, [4], ('length',))
    """

    prompts: tuple[Prompt, ...]
    group_size: int
    tokens: Int[Tensor, "row tok"]
    mask: Bool[Tensor, "row tok"]
    sampler_logprobs: Float[Tensor, "row tok"]
    signals: TokenSignals
    texts: tuple[str, ...]
    stop_reasons: tuple[StopReason, ...]
    sampling: Sampling

    @property
    def n_rows(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """Completion lengths in tokens, EOS included."""
        return self.mask.sum(dim=1)

    @property
    def old_logprobs(self) -> Float[Tensor, "row tok"]:
        """What the sampler said of each token at `Sampling.training_temperature`, to be held against what the trainer
        says: without top-p and top-k at temperature 1, with them at another."""
        return self.signals.logprob if self.sampling.training_temperature == 1.0 else self.sampler_logprobs

    @property
    def row_prompts(self) -> tuple[Prompt, ...]:
        """The prompt of each row."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.group_size))


@dataclass(frozen=True)
class Verdict:
    """What the grader says of one answer.

    ``right``: the answer is right, in whatever form it was given (None: the grader could not decide in time).
    ``formatted``: an answer stands in the form that was asked for. ``extracted``: the answer as it was read.

    >>> import rlif
    >>> with rlif.Grader() as grader:
    ...     grader.grade("It is 46.", "46", format="boxed", row_id="sum")
    Verdict(right=True, formatted=False, extracted='46')
    """

    right: bool | None
    formatted: bool
    extracted: str | None


def labelled(answers: Sequence[str | None], verdicts: Sequence[Verdict]) -> list[bool]:
    """Which problems can be judged at all: those with a ground truth, and those on which a task's own judge has
    given a verdict.

    Args:
        answers: the ground truth of each problem, None where it has none.
        verdicts: those on all its answers, as many each, a problem's adjacent.

    What is right or wrong is said of these alone: of the others it is not known, which is no 0.
    """
    size = len(verdicts) // max(len(answers), 1)
    return [
        answer is not None or any(verdict.right is not None for verdict in verdicts[i * size : (i + 1) * size])
        for i, answer in enumerate(answers)
    ]


@dataclass(frozen=True)
class Scored:
    """Rollouts with verdicts, each named reward, and the advantage the update will use.

    ``shares``: how much of its row's advantage a token gets; None: all of it. ``penalised``: the tokens under the KL
    term of grpo.kl_cov; None: none. Both are 0 where masked.
    """

    rollouts: Rollouts
    verdicts: tuple[Verdict, ...]
    rewards: Mapping[str, Float[Tensor, " row"]]
    advantages: Float[Tensor, " row"]
    shares: Float[Tensor, "row tok"] | None = None
    penalised: Bool[Tensor, "row tok"] | None = None


@dataclass(frozen=True)
class Update:
    """What one update did: metrics averaged over its optimizer steps, keys as in docs/metrics.md."""

    loss: float
    grad_norm: float
    metrics: Mapping[str, float]
