"""The recipe of the tiny models: pretrain `tiny-base`, fine-tune it into `tiny-instruct`, write both as folders.

Run as ``rlif tiny make --out DIR``; about five minutes on one CPU core. The same seed, versions and kind of machine
give the same weights: one thread, fp32, every draw from one seed. The corpus was fixed by what the models do when
decoded (docs/tiny.md), before any reinforcement learning.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlif.errors import Argument, RlifError
from rlif.tiny import VERSION
from rlif.tiny.corpus import BASE, INSTRUCT, Corpus, Example, example
from rlif.tiny.tokenizer import CONTEXT, build_tokenizer

Progress = Callable[[str, int, int, float], None]
"""Called after every step with (model name, steps done, steps in all, loss in nats per token)."""

IGNORED = -100
"""The label transformers leaves out of the loss."""

PARTS = 3
"""Parts a batch is run in; changes speed, not the gradient (beyond rounding)."""


@dataclass(frozen=True)
class Stage:
    """One training: the model it ends in, what it reads, for how many optimizer steps, at which peak learning rate."""

    name: str
    corpus: Corpus
    steps: int
    lr: float
    chat: bool


def make(
    out: Path,
    *,
    seed: int = 0,
    base_steps: int = 1000,
    instruct_steps: int = 60,
    batch_size: int = 48,
    progress: Progress | None = None,
) -> None:
    """Train both models and write them to ``out/tiny-base`` and ``out/tiny-instruct``.

    Each folder holds config, generation config, weights (safetensors, fp32) and tokenizer, loadable by plain
    transformers. ``batch_size`` counts examples per optimizer step. Raises `RlifError` if either folder holds something
    already or cannot be made.
    """
    stages = (
        Stage("tiny-base", BASE, base_steps, lr=3e-3, chat=False),
        Stage("tiny-instruct", INSTRUCT, instruct_steps, lr=5e-4, chat=True),
    )
    folders = {stage.name: _empty_folder(out / stage.name) for stage in stages}
    with _reproducible(seed):
        rng = Random(seed)
        tokenizer = build_tokenizer()
        model = _new_model(tokenizer)
        for stage in stages:
            for step, loss in enumerate(_train(model, tokenizer, stage, rng, batch_size), start=1):
                if progress:
                    progress(stage.name, step, stage.steps, loss)
            model.save_pretrained(folders[stage.name])
            build_tokenizer(chat=stage.chat).save_pretrained(folders[stage.name])


def collate(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> tuple[Int[Tensor, "row tok"], Int[Tensor, "row tok"]]:
    """Token ids and labels of a batch, right-padded; labels leave out prompt and padding, and count EOS."""
    prompts = [tokenizer.encode(drawn.prompt) for drawn in examples]
    completions = [[*tokenizer.encode(drawn.completion), tokenizer.eos_token_id] for drawn in examples]
    width = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True))
    tokens = torch.full((len(examples), width), tokenizer.pad_token_id)
    labels = torch.full((len(examples), width), IGNORED)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, end = len(prompt), len(prompt) + len(completion)
        tokens[row, :end] = torch.tensor(prompt + completion)
        labels[row, start:end] = torch.tensor(completion)
    return tokens, labels


def _train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage, rng: Random, batch_size: int
) -> Iterator[float]:
    """AdamW, warm-up over a twentieth of the steps, cosine to 0. Updates ``model``; yields each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, stage.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / stage.steps)) / 2)
    )
    model.train()
    for _ in range(stage.steps):
        optimizer.zero_grad()
        loss = _backward(model, tokenizer, [example(rng, stage.corpus) for _ in range(batch_size)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss
    model.eval()


def _backward(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> float:
    """Add the gradient of the mean loss per completion token to ``model``; returns that loss, in nats.

    Rows of like length go together: much of the time would otherwise be spent on padding.
    """
    by_length = sorted(examples, key=lambda drawn: len(drawn.completion))
    counted = sum(len(drawn.completion) + 1 for drawn in examples)
    size = -(-len(examples) // PARTS)
    total = 0.0
    for first in range(0, len(examples), size):
        tokens, labels = collate(tokenizer, by_length[first : first + size])
        # Right padding comes after every token that counts, so causality is mask enough.
        loss = model(input_ids=tokens, labels=labels, num_items_in_batch=counted, use_cache=False).loss
        loss.backward()
        total += loss.item()
    return total


def _new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,  # the usual 0.02 is for wider models: from there this one learns more slowly
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        rlif_tiny_version=VERSION,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def _empty_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RlifError(f"{folder}: cannot make it ({error.strerror}); name another ", Argument("out")) from error
    if any(folder.iterdir()):
        raise RlifError(f"{folder}: is not empty; name another ", Argument("out"))
    return folder


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded generator inside; both as they were outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
