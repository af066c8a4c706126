"""Rewards for TRL: the internal signals, and agreement of answers.

A reward is one object in two places, ``GRPOTrainer(reward_funcs=[reward], callbacks=[reward])``: as a callback it is
told which model trains.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import TrainerCallback

from rlif.errors import RlifError, nearest
from rlif.grading.extraction import find_extractor
from rlif.grading.grader import Grader
from rlif.grading.voting import agreeing, ballots
from rlif.integrations.trl_batch import (
    RECORDED,
    Recorded,
    Runs,
    as_prompt,
    rollouts_of,
    runs_of,
    tokenized,
    unbound,
)
from rlif.integrations.trl_scoring import completion_signals
from rlif.model.in_training import policy_of, unwrapped
from rlif.model.policy import Policy
from rlif.rewards.agreement import consensus_shares, in_majority, voting_answers
from rlif.signals import REDUCERS, SIGNALS
from rlif.types import TokenSignals

Groups = Sequence[Sequence[str | None]]


class BoundReward(TrainerCallback):
    """What the rewards share: a callback that learns the model, its tokenizer and the arguments.

    ``probe`` is a `rlif.integrations.trl_callbacks.AgreementProbe` whose numbers this reward logs: a callback's own
    come too late for the trackers.
    """

    def __init__(self, name: str, probe: Any = None) -> None:
        self.__name__ = name  # what TRL logs it under
        self._probe = probe
        self._args: Any = None
        self._policy: Policy | None = None
        self._known: tuple[Any, Any] = None, None

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The trainer is there: what it was given."""
        self._bind(args, given)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Training begins: sharding may have changed the model since."""
        self._bind(args, given)

    def _bind(self, args: Any, given: Mapping[str, Any]) -> None:
        self._args, self._known, self._policy = args, (given["model"], given["processing_class"]), None

    @property
    def policy(self) -> Policy:
        """The model that trains. Raises `RlifError` before a trainer has told of it, and for one that is no policy."""
        model, tokenizer = self._known
        if model is None:
            raise unbound(type(self).__name__, "reward_funcs=[reward]")
        if self._policy is None:
            self._policy = policy_of(model, tokenizer)
        return self._policy

    def _log(self, log_metric: Callable[[str, float], None] | None, values: Mapping[str, float]) -> None:
        if log_metric is not None:
            for name, value in {**values, **(self._probe.take_unlogged() if self._probe else {})}.items():
                log_metric(name, value)


class InternalReward(BoundReward):
    """A signal of `rlif.SIGNALS` as the reward: the model's own confidence in each completion, higher is better.

    With `EngineRollouts` it reads what the engine recorded; otherwise it makes one pass over the batch without gradient
    (`rlif.integrations.trl_scoring`). Signals are of the distribution at temperature 1 over the true vocabulary, in
    nats, of every completion token, EOS included; ``reduce`` makes one number of them. Also logs ``signal/*``.

    Raises `RlifError` for an unknown signal.
    """

    def __init__(
        self, signal: str = "self_certainty", *, reduce: Literal["mean", "sum"] = "mean", probe: Any = None
    ) -> None:
        if signal not in SIGNALS:
            known = f"did you mean {nearest(signal, SIGNALS)}? (there are {', '.join(SIGNALS)})"
            raise RlifError(f"InternalReward: no signal {signal!r}; {known}")
        if reduce not in REDUCERS:
            raise RlifError(f"InternalReward: reduce={reduce!r}; give mean or sum")
        super().__init__(signal, probe)
        self._signal, self._reduce = SIGNALS[signal], REDUCERS[reduce]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One number a completion; None, which TRL leaves out, where a token is padding of the vocabulary.

        Raises `RlifError` if recorded signals are not of these completions.
        """
        recorded = columns.get(RECORDED)
        signals = self._score(prompts, completion_ids) if recorded is None else _as_recorded(recorded, completion_ids)
        known = [row for row in signals if row is not None]
        means = {
            f"signal/{name}": float(np.mean([float(row[i].mean()) for row in known]))
            for i, name in enumerate(TokenSignals._fields)
            if known
        }
        self._log(log_metric, means)
        return [None if row is None else self._value(row) for row in signals]

    def _value(self, signals: TokenSignals) -> float:
        values = self._signal.score(signals)
        return float(self._reduce(values, torch.ones_like(values, dtype=torch.bool)))

    def _score(self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]]) -> list[TokenSignals | None]:
        """By a pass. TRL also draws rows of the embedding that are no tokens: those completions have no signals."""
        policy, args = self.policy, self._args
        runs = runs_of(tokenized(policy, prompts, getattr(args, "chat_template_kwargs", None)))
        sound = [max(ids) < policy.vocab_size for ids in completion_ids]
        scored = [ids if good else [policy.pad_id] for ids, good in zip(completion_ids, sound, strict=True)]
        rollouts = rollouts_of(policy, runs, scored)
        train = unwrapped(policy.model).training
        rows = args.per_device_train_batch_size if train else args.per_device_eval_batch_size
        found = completion_signals(policy, rollouts, rows_at_once=rows)
        return [
            TokenSignals(*(values[row][rollouts.mask[row]] for values in found)) if good else None
            for row, good in enumerate(sound)
        ]


def _as_recorded(
    recorded: Sequence[Recorded], completion_ids: Sequence[Sequence[int]]
) -> Sequence[TokenSignals | None]:
    for row, (one, ids) in enumerate(zip(recorded, completion_ids, strict=True)):
        if list(one.completion_ids) != list(ids):
            raise RlifError(
                f"row {row}: the recorded signals are of another completion; the rows of the dataset must be dicts of "
                "their own, and nothing may change the completions after EngineRollouts"
            )
    return [one.signals for one in recorded]


AGREEMENT: Mapping[str, Callable[[Groups], np.ndarray]] = {
    "majority_vote": lambda groups: in_majority(ballots(groups)),
    "soft_consensus": lambda groups: agreeing(ballots(groups)) / len(groups[0]),
}
"""Rewards of `rlif.rewards.agreement` that need nothing but the answers of a group."""


class AgreementReward(BoundReward):
    """Agreement of the answers to a prompt with each other, or with those of a column; no label.

    Args:
        name: ``majority_vote``, ``soft_consensus``, or ``frozen_consensus``, which compares with the column
            ``consensus`` of the dataset: the answers that a teacher settled on, a list of texts a row.
        format: how an answer is read (docs/grading.md). A completion that was cut off does not vote.

    A group may be split over processes: its answers are gathered. Raises `RlifError` for an unknown name or format, and
    in the call for a dataset without the column.
    """

    def __init__(self, name: str = "majority_vote", *, format: str = "boxed", probe: Any = None) -> None:
        known = [*AGREEMENT, "frozen_consensus"]
        if name == "ema_vote":
            raise RlifError(
                "AgreementReward: ema_vote needs a teacher that follows the policy; only rlif train has one"
            )
        if name not in known:
            raise RlifError(f"AgreementReward: no reward {name!r}; did you mean {nearest(name, known)}?")
        find_extractor(format)
        super().__init__(name, probe)
        self._format, self._grader = format, Grader()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One number in [0, 1] a completion."""
        answers = self._answers(completion_ids)
        self._log(log_metric, {f"{self.__name__}/voting": float(np.mean([answer is not None for answer in answers]))})
        if self.__name__ == "frozen_consensus":
            settled = columns.get("consensus")
            if settled is None:
                raise RlifError("AgreementReward: frozen_consensus reads the column consensus; add it to the dataset")
            winners = [[given] if isinstance(given, str) else list(given or ()) for given in settled]
            return [consensus_shares([answer], won)[0] for answer, won in zip(answers, winners, strict=True)]
        return self._by_group(answers)

    def _answers(self, completion_ids: Sequence[Sequence[int]]) -> list[str | None]:
        """What each completion votes for."""
        policy, nothing_asked = self.policy, as_prompt("", ())
        rollouts = rollouts_of(policy, Runs((nothing_asked,) * len(completion_ids), 1, ()), completion_ids)
        verdicts = [
            self._grader.grade(text, None, format=self._format, row_id=f"row {row}")
            for row, text in enumerate(rollouts.texts)
        ]
        return [answer for (answer,) in voting_answers(rollouts, verdicts)]

    def _by_group(self, answers: Sequence[str | None]) -> list[float]:
        """Of all processes' rows; then those of this one."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        size = self._args.num_generations
        if not unwrapped(self.policy.model).training:
            size = self._args.num_generations_eval or size
        everywhere: list[str | None] = gather_object(list(answers))
        if len(everywhere) % size:
            raise RlifError(f"AgreementReward: {len(everywhere)} completions do not make groups of {size}")
        groups = [everywhere[first : first + size] for first in range(0, len(everywhere), size)]
        values = AGREEMENT[self.__name__](groups).reshape(-1)
        first = PartialState().process_index * len(answers)
        return [float(value) for value in values[first : first + len(answers)]]
