"""A served model as a back-end: questions go to a server that speaks the OpenAI protocol
(`rlif.evals.backends.openai_client`)."""

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from rlif.errors import RlifError
from rlif.evals.backends.base import Answer, RenderedProblem, Trace
from rlif.evals.backends.openai_client import Client
from rlif.evals.backends.openai_protocol import Ask, Reply
from rlif.rng import Key, seed_of
from rlif.types import Sampling

# Sent once before anything is asked for: it shows whether the server is there, has the model, takes the fields.
_TRIAL = Sampling(temperature=0.0, max_new_tokens=1, stop=("\n\n\n",))
_TRIAL_QUESTION = "1+1="
_FEW = 16  # tokens: some servers give a few more than one
# Sent with several seeds where answers are to be sampled: a model that samples does not say the same every time.
_HOT, _SEEDS = Sampling(temperature=2.0, max_new_tokens=32), 4


class ServedBackend:
    """A model behind a server; see `rlif.evals.backends.base.Backend`.

    Of the signals it knows the log-probability, where the server tells it. Nobody can look at a server's chat template:
    ``auto`` sends messages, unless the server says that it has no template.
    """

    def __init__(self, client: Client, chat_template: Literal["auto", "on", "off"] = "auto") -> None:
        """Asks the server one question. Raises `RlifError` if it does not answer, or has no such model."""
        self.name, self.seconds = client.server.model, 0.0
        self._client = client
        self._chat = chat_template != "off"
        try:
            trial = self._try_out()
        except RlifError as error:
            if chat_template != "auto":
                raise
            self._chat = False
            if not re.search("chat.template", str(error)):
                raise RlifError(f"{error}{self._other_way(error)}") from None
            trial = self._try_out()
        self._client.settled = True  # all answers are had with the same fields
        self._logprobs = trial.logprobs is not None
        self._fell_back = chat_template == "auto" and not self._chat
        self._trial = trial

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how this server answers: one line each."""
        found = []
        if self._fell_back:
            found.append("the server says that the model has no chat template: it is given plain text")
        if self._trial.model not in (None, self.name):
            found.append(f"the server calls the model that answers {self._client.shown(str(self._trial.model))}")
        if self._trial.n_tokens > _FEW:
            found.append(f"the server does not keep the limit of tokens: asked for 1 it gave {self._trial.n_tokens}")
        if refused := sorted(self._client.refused - {"seed", "logprobs", "max_tokens"}):
            found.append(f"the server does not take {', '.join(refused)}: its own settings hold for these")
        if "seed" in self._client.refused:
            found.append("the server takes no seed: the same command may give other answers")
        if not self._logprobs:
            found.append("the server tells no log-probabilities: the results hold no signals")
        return tuple(found)

    def facts(self) -> Mapping[str, Any]:
        return {
            "model": self.name,
            "endpoint": self._client.base,
            "chat_template": self._chat,
            "logprobs": self._logprobs,
            "refused": sorted(self._client.refused),
        }

    def check(self, problems: Sequence[RenderedProblem], sampling: Sampling) -> None:
        """Raise `RlifError` if answers are to be sampled and the server does not: `transformers serve` answers greedily
        whatever the temperature, if the model's generation config does not say do_sample.

        The context only the server knows, and says so when a question does not fit.
        """
        if sampling.temperature == 0.0 or not problems:
            return
        tries = [Ask(f"trial {seed}", self._prompt(problems[0]), seed) for seed in range(_SEEDS)]
        texts = {reply.text for _, reply in self._client.answers(tries, _HOT)}
        if len(texts) == 1 and texts != {""}:  # all empty: a server that keeps thoughts to itself, and thinks for long
            raise RlifError(
                f"endpoint {self._client.base}, model {self.name!r}: {_SEEDS} seeds at temperature "
                f"{_HOT.temperature:g} give one and the same answer, so it does not sample; add --temperature 0, or "
                "let the model's generation_config.json say do_sample"
            )

    def answer(
        self,
        problems: Sequence[RenderedProblem],
        *,
        samples: int,
        sampling: Sampling,
        key: Key,
        have: Mapping[str, Set[int]],
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Sequence[Answer], None, None]:
        wanted = {
            f"{one.problem.id}, sample {i}": (one, i)
            for one in problems
            for i in range(samples)
            if i not in have.get(one.problem.id, ())
        }
        asks = [Ask(label, self._prompt(one), seed_of(key, one.problem.id, i)) for label, (one, i) in wanted.items()]
        began = time.monotonic()
        try:
            for ask, reply in self._client.answers(asks, sampling):
                self.seconds += time.monotonic() - began
                one, sample = wanted[ask.label]
                yield [_answer(one, sample, self._chat, reply)]
                began = time.monotonic()
        except RlifError as error:
            raise RlifError(f"{error}; what came is kept, the same command asks for the rest") from error

    def close(self) -> None:
        """Connections last no longer than `answer`."""

    def _prompt(self, one: RenderedProblem) -> str | Sequence[Mapping[str, str]]:
        return one.messages if self._chat else one.text

    def _try_out(self, client: Client | None = None) -> Reply:
        prompt = [{"role": "user", "content": _TRIAL_QUESTION}] if self._chat else _TRIAL_QUESTION
        ((_, reply),) = (client or self._client).answers([Ask("a first question", prompt, seed=0)], _TRIAL)
        return reply

    def _other_way(self, error: RlifError) -> str:
        """A remedy for messages that are not answered: plain text, if that is. Nothing is guessed: it is tried."""
        if re.search(r": HTTP (400|404|405|422|5\d\d)\b", str(error)):
            with suppress(RlifError):
                self._try_out(Client(replace(self._client.server, retries=0)))
                return "; plain text it answers: for a base model add --chat-template off"
        return ""


def _answer(one: RenderedProblem, sample: int, chat: bool, reply: Reply) -> Answer:
    logprobs = None if reply.logprobs is None else np.array(reply.logprobs, dtype=np.float32)
    return Answer(
        problem_id=one.problem.id,
        sample=sample,
        prompt=str(one.messages[-1]["content"]) if chat else one.text,
        text=reply.text,
        n_tokens=reply.n_tokens,
        stop=reply.stop,
        thoughts=reply.thoughts,
        logprob=None if logprobs is None else float(logprobs.mean(dtype=np.float64)),
        trace=Trace(logprob=logprobs) if logprobs is not None and len(logprobs) == reply.n_tokens else None,
    )
