"""The engine as a back-end: a model in this process, answers handed over problem by problem, every signal known."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rlif.config import NATIVE, PolicyConfig, RolloutConfig
from rlif.errors import RlifError
from rlif.evals.backends.base import Answer, RenderedProblem, Trace
from rlif.model.fingerprint import tokenizer_mark, weights_mark
from rlif.model.kernels.cpu import kernels_for
from rlif.model.loading import load_policy
from rlif.monitoring.mismatch import Guard
from rlif.rng import Key
from rlif.rollout.engines import ENGINES
from rlif.rollout.power_sampling import Schedule, power_sample
from rlif.rollout.prompts import check_context, prompts_digest, tell_unknown
from rlif.types import Prompt, Rollouts, Sampling

_BATCH_TOKENS = 4_000_000  # the engine's records take some 40 bytes for each token that a batch may have
_CHAINS = 32  # of power sampling side by side: each draws tens of times as many tokens as an answer has


class EngineBackend:
    """A policy asked through one of `rlif.rollout.engines.ENGINES`; see `rlif.evals.backends.base.Backend`."""

    def __init__(self, name: str, config: PolicyConfig, *, rollout: RolloutConfig = NATIVE) -> None:
        """Loads the model. Raises `RlifError` as `rlif.model.loading.load_policy` does.

        ``rollout`` says which engine, and how far it may be from a plain forward pass.
        """
        self.name, self.seconds = name, 0.0
        self._policy = load_policy(config)
        self._engine = ENGINES[rollout.engine](self._policy, rollout)
        self._guard = Guard(self._policy, rollout.max_mismatch)
        self._told: set[str] = set()  # texts of prompts: what is asked in several ways is warned of once
        self._checked = 0  # tokens of the longest text that the guard has seen

    def facts(self) -> Mapping[str, Any]:
        policy = self._policy
        weight = next(policy.model.parameters())
        return {
            "model": policy.source,
            "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
            "weights": weights_mark(policy.model),
            "tokenizer": tokenizer_mark(policy),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": policy.device.type,
            "cpu_kernels": kernels_for(weight) is not None,
            "chat_template": policy.chat_template,
            "eos": list(policy.eos_ids),
            **self._engine.facts,
        }

    def prompts_digest(self, problems: Sequence[RenderedProblem]) -> str:
        return prompts_digest([self._prompt(one) for one in problems])

    def check(self, problems: Sequence[RenderedProblem], sampling: Sampling) -> None:
        prompts = [self._prompt(one) for one in problems]
        check_context(self._policy, prompts, sampling.max_new_tokens)
        tell_unknown(self._policy, [prompt for prompt in prompts if prompt.text not in self._told])
        self._told |= {prompt.text for prompt in prompts}

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
        del have  # a problem's samples are drawn together
        rendered = [self._prompt(one) for one in problems]
        size = max(1, _BATCH_TOKENS // (sampling.max_new_tokens * samples))
        for start in range(0, len(rendered), size):
            prompts = rendered[start : start + size]
            began = time.monotonic()
            with self._damage_told():
                for rollouts in self._engine.groups(
                    prompts, group_size=samples, sampling=sampling, key=key, progress=progress
                ):
                    self._check(rollouts)
                    self.seconds += time.monotonic() - began
                    yield answers_of(rollouts)
                    began = time.monotonic()

    def power_answer(
        self,
        problems: Sequence[RenderedProblem],
        *,
        samples: int,
        sampling: Sampling,
        schedule: Schedule,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Sequence[Answer], None, None]:
        size = max(1, _CHAINS // samples)
        for start in range(0, len(problems), size):
            prompts = [self._prompt(one) for one in problems[start : start + size]]
            began = time.monotonic()
            with self._damage_told():
                found = power_sample(
                    self._engine,
                    prompts,
                    group_size=samples,
                    proposal=sampling,
                    key=key,
                    schedule=schedule,
                    progress=progress,
                )
            self._check(found.rollouts)
            self.seconds += time.monotonic() - began
            answers = zip(answers_of(found.rollouts), found.drawn.tolist(), strict=True)
            yield [replace(answer, drawn=drawn) for answer, drawn in answers]

    def close(self) -> None:
        self._engine.close()
        del self._engine, self._policy
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            raise RlifError(f"{self.name}: {error}; the model is damaged, or needs float32") from error

    def _check(self, rollouts: Rollouts) -> None:
        """Hold the first answers, and later any that are twice as long, against a plain forward pass."""
        prompts = zip(rollouts.row_prompts, rollouts.lengths.tolist(), strict=True)
        longest = max(len(prompt.token_ids) + length for prompt, length in prompts)
        if longest >= 2 * self._checked:
            self._guard.check(rollouts.prompts[0].id, rollouts)
            self._checked = longest

    def _prompt(self, one: RenderedProblem) -> Prompt:
        policy = self._policy
        if policy.chat_template:
            text, ids = policy.encode_messages(one.messages, now=one.now)
        else:
            text, ids = policy.encode_text(one.text)
        return Prompt(one.problem.id, text, ids, one.problem)


def answers_of(rollouts: Rollouts) -> list[Answer]:
    """A batch of rollouts, answer by answer."""
    signals = {name: values.numpy() for name, values in rollouts.signals._asdict().items()}
    found = []
    for row, prompt in enumerate(rollouts.row_prompts):
        length = int(rollouts.mask[row].sum())
        traces = {name: values[row, :length] for name, values in signals.items()}
        means: dict[str, Any] = {name: float(values.mean(dtype=np.float64)) for name, values in traces.items()}
        found.append(
            Answer(
                problem_id=prompt.id,
                sample=row % rollouts.group_size,
                prompt=prompt.text,
                text=rollouts.texts[row],
                n_tokens=length,
                stop=rollouts.stop_reasons[row],
                **means,
                trace=Trace(**traces),
                thoughts=0,
            )
        )
    return found
