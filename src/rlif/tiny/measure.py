"""What a tiny model does when sampled: accuracy, format, entropy, each with its standard error.

Run as ``python -m rlif.tiny.measure [NAME or FOLDER …]``; without one, both shipped models. Slow and plain on
purpose (transformers' own `generate`): the numbers in docs/tiny.md do not lean on the engine they are used to test.
"""

import re
import sys
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path
from random import Random

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlif.errors import with_error
from rlif.tiny import TINY_MODELS, path
from rlif.tiny.corpus import HIGH, LOW, prompt_text
from rlif.utils.terminal import say

BOXED = re.compile(r"\\boxed\{(\d+)\}")
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return with_error(self.mean, self.error, ".3f")


@dataclass(frozen=True)
class Measurement:
    """Shares are of the ``n`` completions; entropy is in nats per token; length is in tokens; both include EOS."""

    n: int
    right_and_formatted: Estimate
    right: Estimate
    formatted: Estimate
    wait: Estimate
    ended: Estimate
    entropy: Estimate
    length: Estimate
    greedy: Estimate


def measure(folder: Path, *, n: int = 512, seed: int = 0, max_new_tokens: int = 96) -> Measurement:
    """Sample one completion at temperature 1 for each of ``n`` random additions, and a greedy one.

    ``right`` reads the last number of the text, formatted or not. ``greedy`` is right and formatted at temperature 0.
    Entropy is the mean over all tokens of all completions; its error treats each completion as one draw (ratio
    estimator), since tokens of one completion are not independent.
    """
    rng = Random(seed)
    pairs = [(rng.randint(LOW, HIGH), rng.randint(LOW, HIGH)) for _ in range(n)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        texts, entropy, mask = _complete(folder, pairs, max_new_tokens, sample=True)
    greedy_texts, _, _ = _complete(folder, pairs, max_new_tokens, sample=False)
    boxed = [_last(BOXED, text) for text in texts]
    sums = [a + b for a, b in pairs]
    lengths = mask.sum(dim=1)
    return Measurement(
        n=n,
        right_and_formatted=_estimate([got == want for got, want in zip(boxed, sums, strict=True)]),
        right=_estimate([_last(NUMBER, text) == want for text, want in zip(texts, sums, strict=True)]),
        formatted=_estimate([got is not None for got in boxed]),
        wait=_estimate(["wait" in text for text in texts]),
        ended=_estimate((lengths < max_new_tokens).tolist()),
        entropy=_ratio((entropy * mask).sum(dim=1), lengths),
        length=_estimate(lengths.tolist()),
        greedy=_estimate([_last(BOXED, text) == want for text, want in zip(greedy_texts, sums, strict=True)]),
    )


def _complete(
    folder: Path, pairs: list[tuple[int, int]], max_new_tokens: int, *, sample: bool
) -> tuple[list[str], Float[Tensor, "row tok"], Bool[Tensor, "row tok"]]:
    """Completions of all pairs in one batch (prompts have one length): texts, entropies (nats), mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = torch.tensor([tokenizer.encode(prompt_text(a, b)) for a, b in pairs])
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=sample,
        temperature=1.0 if sample else None,
        top_k=0 if sample else None,
        max_new_tokens=max_new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[:, prompts.shape[1] :]
    ends = tokens == tokenizer.eos_token_id
    mask = ends.cumsum(dim=1) - ends.int() == 0  # no EOS before this token
    logprobs = torch.stack(out.logits, dim=1).log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True), entropy, mask


def _last(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.findall(text)
    return int(found[-1]) if found else None


def _estimate(values: list[bool] | list[int]) -> Estimate:
    numbers = torch.tensor(values, dtype=torch.float64)
    return Estimate(numbers.mean().item(), numbers.std().item() / sqrt(len(values)))


def _ratio(sums: Float[Tensor, " row"], counts: Shaped[Tensor, " row"]) -> Estimate:
    """Σ sums / Σ counts with the standard error of a ratio estimator (linearised)."""
    ratio = (sums.sum() / counts.sum()).item()
    residuals = (sums - ratio * counts).double()
    return Estimate(ratio, residuals.std().item() / counts.double().mean().item() / sqrt(len(counts)))


def _main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or TINY_MODELS:
        measured = measure(path(name) if name in TINY_MODELS else Path(name))
        say(f"{name} (n = {measured.n}, ± one standard error)")
        for field in fields(measured):
            if field.name != "n":
                say(f"  {field.name:<20} {getattr(measured, field.name)}")


if __name__ == "__main__":
    _main(sys.argv[1:])
