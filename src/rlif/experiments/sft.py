"""A short supervised fine-tuning: from a base model the instruct side of a pair of one ancestor (`rlif sft`).

The paper compares base models with instruction-tuned ones and with merges of the two (arXiv 2506.17219, section 5). For
a small model both sides of such a pair are seldom to be had; this makes the other one, in tens of steps. It is no
trainer for instructions at large: plain cross-entropy on the answers, nothing else.

A demonstration is a completion that somebody else wrote. So a batch is held as rollouts, one a prompt, and goes through
`rlif.model.logprobs`: packed, each token of the line a token of the batch, no logits in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml

from rlif import __version__
from rlif.config import ArithmeticTask, Fraction, GrpoConfig, Natural, PolicyConfig, Positive, Section
from rlif.errors import Argument, RlifError
from rlif.experiments.turns import Turns, turns_of
from rlif.model import registry
from rlif.model.loading import compute_dtype, load_policy
from rlif.model.logprobs import micro_batches, policy_logprobs
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.rollout.prompts import render
from rlif.tasks.arithmetic import Arithmetic
from rlif.tasks.base import walk
from rlif.tasks.few_shot import read_shots
from rlif.tasks.templates import find_template, gap, worked_solution
from rlif.training.optim import MasterOptimizer, NonFiniteError, adamw, learning_rate
from rlif.types import Problem, Rollouts, Sampling, StopReason, TokenSignals
from rlif.utils.atomic_io import disk_reason, flush_folder, system_error, unfinished, write_whole
from rlif.utils.paths import expanded

Progress = Callable[[int, float], None]
"""Called after every step with the step, from 1, and its loss before the update (nats a token)."""


class SftSettings(Section):
    """What a model is fine-tuned on, and how far.

    >>> import rlif.experiments.sft
    >>> rlif.experiments.sft.SftSettings(steps=10).low
    1
    """

    steps: Positive = 40
    """Optimizer steps."""
    batch: Positive = 16
    """Demonstrations a step."""
    lr: Fraction = 1e-5
    """Peak learning rate of AdamW: a tenth of the steps up, then linearly down to 0."""
    seed: Natural = 0
    """Chooses the demonstrations and their order; nothing else is drawn."""
    template: str = "plain"
    """How a question is put (rlif.tasks.templates): as the tuned model will be asked."""
    chat_template: Literal["auto", "off"] = "auto"
    """auto: as a conversation, by the model's own chat template or else by one for the turns it has tokens for
    (`rlif.experiments.turns`). off: as plain text; base, merges and tuned model then read the same prompts."""
    low: Natural = 1
    """Smallest summand of the additions that are shown."""
    high: Positive = 20
    """Largest summand."""
    question: str = "What is {a} + {b}?"
    """How an addition is put; {a} and {b} are the summands."""
    data: str | None = None
    """A training file with worked solutions (.jsonl or .parquet, such as GSM8K's), in place of additions."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; the optimizer's weights are always fp32."""
    device: str = "auto"
    """A torch device; auto takes CUDA when there is one."""


class Demonstration(NamedTuple):
    """A problem and the text that a good answer to it is."""

    problem: Problem
    solution: str


def fine_tune(model: str, out: Path, settings: SftSettings, *, progress: Progress | None = None) -> list[float]:
    """Fine-tune a model and write it to ``out``, a folder that plain transformers loads: fp32 safetensors, tokenizer
    with the chat template it was tuned in, a card. Returns the loss of each step before its update, nats a token.

    The same settings, versions and kind of machine give the same weights. Of additions only pairs that evaluation does
    not hold out are shown, each step others; of a file every row once an epoch.

    Raises `RlifError`, with nothing left behind, for a model or file that cannot be used, for demonstrations that
    exceed the model's context, if the loss is not finite, or if ``out`` cannot be written. Source: project.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RlifError(f"{out}: there is something already; name a new folder for ", Argument("out"))
    draw = _source(settings)
    batches = [draw(step) for step in range(1, settings.steps + 1)]  # whatever is wrong with them, before a model loads
    policy = load_policy(
        PolicyConfig(model=model, dtype=settings.dtype, device=settings.device, chat_template="off"),
        dtype=torch.float32,
    )
    config = GrpoConfig(lr=settings.lr, schedule="linear", warmup=0.1)
    dtype = compute_dtype(settings.dtype, policy.device)
    optimizer = MasterOptimizer(policy.model, adamw(config), compute_dtype=dtype)
    policy, end = speaking(policy, None if settings.chat_template == "off" else turns_of(policy.tokenizer))
    rollouts = [demonstrated(policy, settings.template, batch, end) for batch in batches]
    losses = []
    for step, batch in enumerate(rollouts, 1):
        try:
            losses.append(_update(policy, optimizer, batch, learning_rate(config, step, settings.steps)))
        except NonFiniteError as error:
            raise RlifError(f"step {step}: {error}; nothing was kept, lower ", Argument("lr")) from error
        if progress:
            progress(step, losses[-1])
    _write(out, policy, optimizer, card(model, policy, settings, losses), registry.notices(model))
    return losses


def speaking(policy: Policy, turns: Turns | None) -> tuple[Policy, int]:
    """The policy as it will be asked, and the token that ends its answers. ``turns``: None for plain text.

    What makes it so is said in its tokenizer and its generation config as well, which are saved with it.
    """
    if turns is None:
        policy.tokenizer.chat_template = None
        eos = policy.tokenizer.eos_token_id
        return replace(policy, chat_template=False), policy.eos_ids[0] if eos is None else eos
    model: Any = policy.model
    eos_ids = tuple(sorted({*policy.eos_ids, turns.end_id}))
    policy.tokenizer.chat_template = turns.template
    model.generation_config.eos_token_id = list(eos_ids)
    return replace(policy, chat_template=True, eos_ids=eos_ids), turns.end_id


def demonstrated(policy: Policy, template: str, batch: Sequence[Demonstration], end: int) -> Rollouts:
    """Demonstrations as rollouts, one completion a prompt, each closed by the token ``end``: (row, tok).

    Nobody sampled them: log-probabilities and signals of a sampler are 0. Raises `RlifError` for one that does not fit
    into the model's context, or a prompt that holds a token the model does not know.
    """
    prompts = render(policy, template, [shown.problem for shown in batch])
    before = "" if policy.chat_template else gap(template)
    completions = []
    for prompt, shown in zip(prompts, batch, strict=True):
        ids = policy.tokenizer(before + shown.solution, add_special_tokens=False, verbose=False)["input_ids"]
        completions.append((*ids, end))
        length = len(prompt.token_ids) + len(completions[-1])
        if (limit := limit_passed(policy, length)) is not None:
            raise RlifError(f"{prompt.id}: {length} tokens with its answer exceed {limit.words}; leave it out")
    width = max(map(len, completions))
    tokens, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.bool)
    for row, completion in enumerate(completions):
        tokens[row, : len(completion)] = torch.tensor(completion)
        mask[row, : len(completion)] = True
    nothing = torch.zeros(len(batch), width)
    return Rollouts(
        prompts=prompts,
        group_size=1,
        tokens=tokens,
        mask=mask,
        sampler_logprobs=nothing,
        signals=TokenSignals(nothing, nothing, nothing),
        texts=tuple(shown.solution for shown in batch),
        stop_reasons=tuple[StopReason, ...](["eos"] * len(batch)),
        sampling=Sampling(max_new_tokens=width),
    )


def _update(policy: Policy, optimizer: MasterOptimizer, batch: Rollouts, lr: float) -> float:
    """One optimizer step on −Σ ln p / tokens over the answers of the batch; returns that loss, in nats a token.

    Raises `NonFiniteError` as `MasterOptimizer.step`.
    """
    tokens, total = int(batch.mask.sum()), 0.0
    for rows in micro_batches(policy.model, batch, range(batch.n_rows), None):
        loss = -policy_logprobs(policy, batch, rows).sum() / tokens
        optimizer.backward(loss)
        total += loss.item()
    optimizer.step(lr, 1.0)
    return total


def _source(settings: SftSettings) -> Callable[[int], list[Demonstration]]:
    """Step → its demonstrations: a pure function of the settings. Raises `RlifError` for a file or range of no use."""
    find_template(settings.template)
    if settings.data is not None:
        path = expanded(settings.data)
        shots = read_shots(path, None)
        if len(shots) < settings.batch:
            raise RlifError(f"{path}: {len(shots)} worked solutions; lower ", Argument("batch"), f" to {len(shots)}")
        solved = [
            Demonstration(
                Problem(f"{path.name}:{row}", shot.question, shot.answer), worked_solution(settings.template, shot)
            )
            for row, shot in enumerate(shots, 1)
        ]
        return lambda step: [solved[row] for row in walk(len(solved), step, settings.batch, settings.seed)]
    task = Arithmetic(
        ArithmeticTask(name="arithmetic", low=settings.low, high=settings.high, question=settings.question)
    )
    return lambda step: [_sum(problem) for problem in task.train_problems(step, settings.batch, settings.seed)]


def _sum(problem: Problem) -> Demonstration:
    """An addition with its answer in a short sentence: 11 + 17 = 28."""
    a, b = problem.id.removeprefix("arithmetic/").split("+")
    return Demonstration(problem, f"{a} + {b} = {problem.answer}")


def _write(out: Path, policy: Policy, optimizer: MasterOptimizer, readme: str, notices: Sequence[Path]) -> None:
    """The folder, whole or not at all."""
    try:
        with unfinished(out, "tuning") as temporary:
            for path in notices:
                write_whole(temporary / path.name, path.read_bytes())
            write_whole(temporary / "README.md", readme.encode())
            policy.save(temporary, state_dict=optimizer.master_state_dict())
            if out.exists():
                out.rmdir()
            temporary.rename(out)
            flush_folder(out.parent)
    except Exception as error:
        reason = system_error(error)  # safetensors raises a full disk as its own exception
        if reason is None:
            raise
        raise RlifError(f"{out}: {disk_reason(reason)}; nothing was kept, name another ", Argument("out")) from error


def card(model: str, policy: Policy, settings: SftSettings, losses: Sequence[float]) -> str:
    """README.md of a tuned model: of what it was made, how, and on which terms. No folder's name above it is told."""
    base = expanded(model).name if expanded(model).is_dir() else model
    named = registry.MODELS.get(model)
    head = {"library_name": "transformers", "base_model": base, "base_model_relation": "finetune"}
    shown = (
        f"worked solutions of {expanded(settings.data).name}"
        if settings.data is not None
        else f"additions of {settings.low} to {settings.high} that evaluation does not hold out"
    )
    said = settings.model_dump(mode="json", exclude={"data", "device"} if settings.data is None else {"device"})
    if settings.data is not None:
        said["data"] = expanded(settings.data).name
    terms = "" if named is None else f"\n{base} is under: {named.licence}. Its terms go with this model.\n"
    asked = "in its chat template" if policy.chat_template else "as plain text"
    return (
        f"---\n{yaml.safe_dump({**head, 'tags': ['sft', 'rlif']}, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {base}, fine-tuned for {settings.steps} steps\n\n"
        f"Supervised, on {shown}, asked {asked}: cross-entropy on the answers alone, AdamW. Loss {losses[0]:.3f} "
        f"nats a token at the first step, {losses[-1]:.3f} at the last. It is the tuned side of a pair of one "
        f"ancestor, for experiments, and no assistant.\n{terms}\nMade with rlif {__version__} (`rlif sft`):\n\n"
        f"```yaml\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}```\n"
    )
