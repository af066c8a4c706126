"""The recipe of the tiny models: pretrain `tiny-base`, fine-tune it into `tiny-instruct`, write both as folders.

Run as ``rlif tiny make --out DIR``; minutes on one CPU core. The same seed, versions and kind of machine give the same
weights: one thread, fp32, every draw from one seed. The steps were chosen by what the models do when sampled
(docs/tiny.md), before any reinforcement learning.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlif.errors import RlifError
from rlif.tiny.corpus import BASE, INSTRUCT, Corpus, example
from rlif.tiny.tokenizer import build_tokenizer

Progress = Callable[[str, int, int, float], None]
"""Called after every step with (model name, steps done, steps in all, loss in nats per token)."""

IGNORED = -100
"""The label transformers leaves out of the loss."""


def make(
    out: Path,
    *,
    seed: int = 0,
    base_steps: int = 800,
    instruct_steps: int = 150,
    batch_size: int = 96,
    progress: Progress | None = None,
) -> None:
    """Train both models and write them to ``out/tiny-base`` and ``out/tiny-instruct``.

    Each folder holds config, generation config, weights (safetensors, fp32) and tokenizer, loadable by plain
    transformers. ``batch_size`` counts examples per optimizer step. Raises `RlifError` if either folder exists or
    ``out`` cannot be written.
    """
    folders = {name: _new_folder(out / name) for name in ("tiny-base", "tiny-instruct")}
    with _reproducible(seed):
        rng = Random(seed)
        tokenizer = build_tokenizer()
        model = LlamaForCausalLM(_config(tokenizer))
        plan: tuple[tuple[str, Corpus, int, float, bool], ...] = (
            ("tiny-base", BASE, base_steps, 2e-3, False),
            ("tiny-instruct", INSTRUCT, instruct_steps, 1e-3, True),
        )
        for name, corpus, steps, lr, chat in plan:
            for step, loss in enumerate(_train(model, tokenizer, corpus, rng, steps, batch_size, lr), start=1):
                if progress:
                    progress(name, step, steps, loss)
            model.save_pretrained(folders[name])
            build_tokenizer(chat=chat).save_pretrained(folders[name])


def collate(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, rng: Random, batch_size: int
) -> tuple[Int[Tensor, "row tok"], Int[Tensor, "row tok"]]:
    """Draw a batch: (token ids, labels), right-padded; the loss counts completion tokens and EOS, never the prompt."""
    rows, labels = [], []
    for _ in range(batch_size):
        drawn = example(rng, corpus)
        prompt = tokenizer.encode(drawn.prompt)
        completion = [*tokenizer.encode(drawn.completion), tokenizer.eos_token_id]
        rows.append(prompt + completion)
        labels.append([IGNORED] * len(prompt) + completion)
    width = max(map(len, rows))
    return (
        torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
    )


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    rng: Random,
    steps: int,
    batch_size: int,
    lr: float,
) -> Iterator[float]:
    """AdamW with a short warm-up and a cosine to 0; yields the loss of each step. Updates ``model`` in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    model.train()
    for _ in range(steps):
        tokens, labels = collate(tokenizer, corpus, rng, batch_size)
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss  # right padding: causality is mask enough
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
    model.eval()


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def _new_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise RlifError(f"{folder}: exists already; name another folder with --out") from error
    except OSError as error:
        raise RlifError(f"{folder}: cannot make this folder ({error.strerror}); name another with --out") from error
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
