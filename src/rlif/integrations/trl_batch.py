"""What TRL hands to its hooks, as prompts and rollouts of ours.

TRL gives each process its slice of a global list of rows, in which the completions of a prompt stand side by side. A
slice may begin and end within a group.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import gcd
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rlif.errors import RlifError
from rlif.model.policy import Policy
from rlif.types import Problem, Prompt, Rollouts, Sampling, StopReason, TokenSignals

RECORDED = "rlif_recorded"
"""The field by which `rlif.integrations.trl_rollouts.EngineRollouts` hands signals to the rewards."""


class Recorded(NamedTuple):
    """What the sampler knew of one completion: its tokens, and the signal of each, (tok,), fp32, in nats."""

    completion_ids: tuple[int, ...]
    signals: TokenSignals


class Runs(NamedTuple):
    """Rows as whole groups: ``size`` of each prompt in turn; a prompt may come again, for the next part of its group.

    ``first_sample`` is the number of each part's first row among all rows of that prompt, over all processes.
    """

    prompts: tuple[Prompt, ...]
    size: int
    first_sample: tuple[int, ...]


def sampling_of(args: Any) -> Sampling:
    """How a GRPOConfig draws. Raises `RlifError` for what our sampler does not know."""
    for name, off in (("min_p", (None, 0.0)), ("repetition_penalty", (None, 1.0)), ("generation_kwargs", (None, {}))):
        if (given := getattr(args, name, None)) not in off:
            raise RlifError(f"GRPOConfig: {name}={given!r} is not known to rlif's sampler; leave it out")
    return Sampling(
        temperature=float(args.temperature),
        top_p=float(args.top_p),
        top_k=int(args.top_k or 0),
        max_new_tokens=int(args.max_completion_length),
    )


def tokenized(policy: Policy, prompts: Sequence[Any], template_options: Mapping[str, Any] | None) -> list[Prompt]:
    """The prompts of a batch as TRL tokenizes them: texts, or conversations through the chat template.

    The id of a prompt is a hash of its tokens, the same on every process and at every place of a batch.
    """
    ids = _token_ids(policy.tokenizer, prompts, template_options or {})
    return [as_prompt(_question(prompt), row) for prompt, row in zip(prompts, ids, strict=True)]


def as_prompt(text: str, token_ids: Sequence[int]) -> Prompt:
    """A prompt whose id is a hash of its tokens."""
    ids = tuple(int(token) for token in token_ids)
    name = hashlib.sha256(str(ids).encode()).hexdigest()[:16]
    return Prompt(name, text, ids, Problem(name, text))


def _token_ids(tokenizer: Any, prompts: Sequence[Any], options: Mapping[str, Any]) -> list[list[int]]:
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        return [list(ids) for ids in tokenizer(text=list(prompts))["input_ids"]]
    made = tokenizer.apply_chat_template(
        conversation=list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )
    return [list(ids) for ids in made["input_ids"]]


def _question(prompt: Any) -> str:
    """A prompt's text; of a conversation that of its last message."""
    content = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return str(content)


def runs_of(rows: Sequence[Prompt], before: Sequence[str] = ()) -> Runs:
    """The rows of this process as groups. ``before``: the prompts' ids of all rows of the processes before it."""
    parts = [(prompt, len(list(same))) for prompt, same in groupby(rows)]
    size = gcd(*(length for _, length in parts))
    seen = Counter(before)
    prompts, first = [], []
    for prompt, length in parts:
        for _ in range(length // size):
            prompts.append(prompt)
            first.append(seen[prompt.id])
            seen[prompt.id] += size
    return Runs(tuple(prompts), size, tuple(first))


def rows_before(ids: Sequence[str], process_index: int) -> list[str]:
    """The ids of all rows on the processes before this one; every process has to ask, each with as many rows."""
    from accelerate.utils import gather_object

    everywhere: list[str] = gather_object(list(ids))
    return everywhere[: process_index * len(ids)]


def rollouts_of(
    policy: Policy, runs: Runs, completion_ids: Sequence[Sequence[int]], sampling: Sampling | None = None
) -> Rollouts:
    """Completions that somebody else drew as `Rollouts`; nobody recorded anything: log-probabilities and signals are 0.

    A completion that does not end in an EOS token was cut off. Raises `RlifError` for one without a token.
    """
    if (empty := next((row for row, ids in enumerate(completion_ids) if not len(ids)), None)) is not None:
        raise RlifError(f"completion {empty} of the batch has no token: nothing can be said of it")
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    width = int(lengths.max())
    tokens = torch.full((len(lengths), width), policy.pad_id, dtype=torch.long)
    for row, ids in enumerate(completion_ids):
        tokens[row, : len(ids)] = torch.tensor(list(ids))
    nothing = torch.zeros(len(lengths), width)
    return Rollouts(
        prompts=runs.prompts,
        group_size=runs.size,
        tokens=tokens,
        mask=torch.arange(width) < lengths[:, None],
        sampler_logprobs=nothing,
        signals=TokenSignals(nothing, nothing, nothing),
        texts=tuple(policy.decode(list(ids)) for ids in completion_ids),
        stop_reasons=tuple(_stop_reason(policy, ids) for ids in completion_ids),
        sampling=sampling or Sampling(max_new_tokens=width),
    )


def _stop_reason(policy: Policy, ids: Sequence[int]) -> StopReason:
    return "eos" if ids[-1] in policy.eos_ids else "length"


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts of the same sampling and group size as one: the prompts of each in turn."""
    width = max(part.mask.shape[1] for part in parts)

    def stacked(fields: Sequence[Tensor]) -> Tensor:
        return torch.cat([functional.pad(field, (0, width - field.shape[1])) for field in fields])

    signals: list[Float[Tensor, "row tok"]] = [
        stacked(values) for values in zip(*(part.signals for part in parts), strict=True)
    ]
    return Rollouts(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        group_size=parts[0].group_size,
        tokens=stacked([part.tokens for part in parts]),
        mask=stacked([part.mask for part in parts]),
        sampler_logprobs=stacked([part.sampler_logprobs for part in parts]),
        signals=TokenSignals(*signals),
        texts=tuple(text for part in parts for text in part.texts),
        stop_reasons=tuple(reason for part in parts for reason in part.stop_reasons),
        sampling=parts[0].sampling,
    )


def unbound(name: str, given_as: str) -> RlifError:
    """The error of a part that was not told of the trainer's model."""
    return RlifError(
        f"{name}: it does not know the model; give it to the callbacks, too: "
        f"GRPOTrainer(…, {given_as}, callbacks=[{name.rpartition('.')[2]}, …])"
    )
