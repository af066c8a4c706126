"""Sampling: the engine against its reference, against one plain forward pass, and against numbers worked out by hand.

Where reference and engine are compared, a token may differ only if its random number falls within rounding (about 1e-6)
of the boundary between two tokens. The numbers are fixed, so on one machine a test passes always or never; on another
one the chance that some token of this file flips is below 2 %.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlif.config import RolloutConfig
from rlif.errors import RlifError, named
from rlif.model.policy import Policy
from rlif.rng import Key, uniforms
from rlif.rollout import decode_batch
from rlif.rollout.decode_batch import PackedBatch, left_pad, rows_that_fit
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context
from rlif.rollout.recorder import Recorder
from rlif.rollout.reference import sample_reference
from rlif.rollout.sampling import draw
from rlif.signals import token_signals
from rlif.types import Rollouts, Sampling, TokenSignals
from toys import CHARACTERS, FAMILIES, PADDED_ROWS, SPECIAL, toy_policy, toy_prompts

pytestmark = pytest.mark.usefixtures("either_way")

PAD, EOS, UNKNOWN = range(len(SPECIAL))
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
KEY = Key(seed=1, step=3)
UNEVEN = ["a", "12+34=?", "what is this"]  # 1, 7 and 12 tokens: left padding, and texts beyond Gemma's window of 6
ALMOST_ONE = 1.0 - 2.0**-53  # the largest number a stream can hold


def with_bias(policy: Policy, biases: dict[int, float]) -> Policy:
    """The policy with these numbers added to the logits of these tokens (changed in place: give it a fresh one)."""
    head = policy.model.lm_head
    biased = nn.Linear(head.in_features, head.out_features, bias=True)
    biased.weight = head.weight
    with torch.no_grad():
        biased.bias.zero_()
        for token, bias in biases.items():
            biased.bias[token] = bias
    policy.model.lm_head = biased
    return policy


def restless(family: str = "llama") -> Policy:
    """A toy policy that ends now and then, at the first step too, and writes a character with every other token."""
    return with_bias(toy_policy(family), {EOS: 2.0, PAD: -100.0, UNKNOWN: -100.0})


def sample(policy: Policy, texts: list[str], *, group_size: int = 2, max_rows: int = 1024, **sampling: Any) -> Rollouts:
    """Completions of these prompts; of at most 12 tokens unless told otherwise."""
    return Engine(policy, max_rows=max_rows).sample(
        toy_prompts(policy, texts),
        group_size=group_size,
        sampling=Sampling(**{"max_new_tokens": 12, **sampling}),
        key=KEY,
    )


def fields(rollouts: Rollouts) -> dict[str, Tensor]:
    return {"sampler_logprobs": rollouts.sampler_logprobs, **rollouts.signals._asdict()}


def assert_same(got: Rollouts, expected: Rollouts) -> None:
    """The same completions; the numbers beside them within 1e-5."""
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.mask, expected.mask)
    assert (got.texts, got.stop_reasons) == (expected.texts, expected.stop_reasons)
    assert (got.prompts, got.group_size) == (expected.prompts, expected.group_size)
    for name, values in fields(got).items():
        torch.testing.assert_close(values, fields(expected)[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def rows_of(rollouts: Rollouts) -> list[list[int]]:
    """The tokens of each completion, without padding."""
    return [tokens[mask].tolist() for tokens, mask in zip(rollouts.tokens, rollouts.mask, strict=True)]


@torch.no_grad()
def teacher_forced(policy: Policy, rollouts: Rollouts, row: int) -> Tensor:
    """Logits of the true vocabulary from one pass over prompt + completion; [t] produced token t, one more after it."""
    prompt, completion = rollouts.row_prompts[row].token_ids, rows_of(rollouts)[row]
    logits = policy.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, :, : policy.vocab_size]
    return logits[len(prompt) - 1 :]


# --- the engine and its reference -------------------------------------------------------------------------------------

PLAIN = Sampling(max_new_tokens=12)
EVERYTHING = Sampling(temperature=1.4, top_p=0.9, top_k=12, max_new_tokens=12, stop=("q", "7"))
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
OTHERS = {
    "hot": Sampling(temperature=2.0, max_new_tokens=12),
    "cold": Sampling(temperature=0.5, max_new_tokens=12),
    "top-p": Sampling(top_p=0.7, max_new_tokens=12),
    "top-k": Sampling(top_k=3, max_new_tokens=12),
    "one token": Sampling(max_new_tokens=1),
}
CASES = [
    pytest.param(family, sampling, id=f"{family}-{name}")
    for family in FAMILIES
    for name, sampling in {"plain": PLAIN, "everything": EVERYTHING, "greedy": GREEDY}.items()
] + [pytest.param("gemma3", sampling, id=f"gemma3-{name}") for name, sampling in OTHERS.items()]


@pytest.mark.parametrize(("family", "sampling"), CASES)
def test_engine_equals_its_reference_whatever_the_batch_split(family: str, sampling: Sampling) -> None:
    policy = restless(family)
    prompts = toy_prompts(policy, UNEVEN)
    expected = sample_reference(policy, prompts, group_size=2, sampling=sampling, key=KEY)
    for max_rows in (1, 2, 3, 6):  # 1: a group over two batches; 2: a group each; 3: across groups; 6: all at once
        got = Engine(policy, max_rows=max_rows).sample(prompts, group_size=2, sampling=sampling, key=KEY)
        assert_same(got, expected)


@pytest.mark.parametrize("sampling", [PLAIN, OTHERS["top-p"], EVERYTHING, GREEDY])
def test_a_long_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch, sampling: Sampling) -> None:
    """As on a GPU: finished rows go on for a while, and nothing of that is kept."""
    policy, counted = restless(), list[int]()
    prompts = toy_prompts(policy, UNEVEN)
    expected = sample_reference(policy, prompts, group_size=2, sampling=sampling, key=KEY)
    for chunk in (2, 5, 40):
        monkeypatch.setattr(PackedBatch, "chunk", chunk)
        for max_rows in (1, 2, 3, 6):
            options = {"group_size": 2, "sampling": sampling, "key": KEY}
            got = Engine(policy, max_rows=max_rows).sample(prompts, **options, progress=counted.append)
            assert_same(got, expected)
            assert sum(counted) == int(expected.mask.sum())
            counted.clear()


def test_the_cases_above_are_not_empty() -> None:
    """Rows of the plain case end at the first step, in between, and at the limit; stop strings stop some."""
    policies = [restless(family) for family in FAMILIES]
    plain = [sample(policy, UNEVEN, **dataclasses.asdict(PLAIN)) for policy in policies]
    lengths = {int(length) for rollouts in plain for length in rollouts.lengths}
    assert {1, PLAIN.max_new_tokens} < lengths
    assert all(rollouts.stop_reasons.count("eos") >= 3 for rollouts in plain)
    everything = [sample(policy, UNEVEN, **dataclasses.asdict(EVERYTHING)) for policy in policies]
    assert {reason for rollouts in everything for reason in rollouts.stop_reasons} == {"eos", "stop_string", "length"}


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_one_length_need_no_padding(family: str) -> None:
    policy = restless(family)
    prompts = toy_prompts(policy, ["1+2=", "3+4=", "5+6="])
    expected = sample_reference(policy, prompts, group_size=2, sampling=PLAIN, key=KEY)
    assert_same(Engine(policy).sample(prompts, group_size=2, sampling=PLAIN, key=KEY), expected)


def gpt2(**common: Any) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **common))


def bloom(**common: Any) -> nn.Module:
    return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, **common))


def lfm2(**common: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = ["conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(num_hidden_layers=2, layer_types=layers, **sizes, **common))


@pytest.mark.parametrize("build", [gpt2, bloom, lfm2], ids=["absolute positions", "no positions", "convolutions"])
def test_other_kinds_of_models(build: Callable[..., nn.Module]) -> None:
    """Rotary positions forgive a shift that is the same for all tokens; absolute ones do not."""
    torch.manual_seed(0)
    model = build(vocab_size=VOCABULARY + PADDED_ROWS, pad_token_id=0, eos_token_id=EOS, bos_token_id=None).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # larger weights: distributions that are not uniform
                parameter.mul_(5.0)
    policy = dataclasses.replace(toy_policy(), model=model)
    prompts = toy_prompts(policy, UNEVEN)
    expected = sample_reference(policy, prompts, group_size=2, sampling=PLAIN, key=KEY)
    assert_same(Engine(policy, max_rows=4).sample(prompts, group_size=2, sampling=PLAIN, key=KEY), expected)


def test_a_model_without_key_value_cache_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(RlifError, match=r"^model: toy llama has no key-value cache to sample with"):
        Engine(dataclasses.replace(toy_policy(), model=model))


def test_greedy_is_what_transformers_generates() -> None:
    policy = restless("qwen3")
    with torch.no_grad():  # transformers knows nothing of padded rows
        policy.model.lm_head.bias[VOCABULARY:] = -1e9
    got = sample(policy, UNEVEN, group_size=1, temperature=0.0, max_new_tokens=20)
    for row, prompt in zip(rows_of(got), got.prompts, strict=True):
        text = torch.tensor([prompt.token_ids])
        generated = policy.model.generate(
            text, attention_mask=torch.ones_like(text), do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        assert generated[0, text.shape[1] :].tolist() == row


# --- what a completion does not depend on -----------------------------------------------------------------------------


def test_other_prompts_and_their_order_change_nothing() -> None:
    policy = restless("gemma3")
    prompts = toy_prompts(policy, UNEVEN)
    whole = Engine(policy).sample(prompts, group_size=3, sampling=PLAIN, key=KEY)
    some = Engine(policy).sample([prompts[2], prompts[0]], group_size=3, sampling=PLAIN, key=KEY)
    assert rows_of(some) == rows_of(whole)[6:9] + rows_of(whole)[0:3]
    assert some.texts == whole.texts[6:9] + whole.texts[0:3]


def test_a_larger_group_goes_on_where_the_smaller_one_ends() -> None:
    policy = restless()
    small, large = sample(policy, UNEVEN, group_size=2), sample(policy, UNEVEN, group_size=5, max_rows=2)
    for prompt in range(3):
        assert rows_of(large)[5 * prompt : 5 * prompt + 2] == rows_of(small)[2 * prompt : 2 * prompt + 2]


def test_seed_step_and_sample_change_the_completion() -> None:
    policy = toy_policy()
    prompts = toy_prompts(policy, ["1+1="])

    def rows(key: Key) -> list[list[int]]:
        return rows_of(Engine(policy).sample(prompts, group_size=4, sampling=PLAIN, key=key))

    base = rows(Key(0, 1))
    assert rows(Key(0, 1)) == base
    assert len({tuple(row) for row in base}) == 4
    for other in (Key(1, 1), Key(0, 2), Key(0, "eval")):
        assert all(row not in base for row in rows(other))


def test_each_prompt_is_read_once_and_finished_rows_leave() -> None:
    policy, shapes = restless(), []
    policy.model.register_forward_pre_hook(
        lambda module, arguments, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    rollouts = sample(policy, UNEVEN, group_size=8, max_new_tokens=20)
    assert shapes[0] == (3, 12)  # three prompts, as wide as the longest, whatever the group size
    assert shapes[1:] == [(rows, 1) for rows, _ in shapes[1:]]
    for step, (rows, _) in enumerate(shapes[1:], start=1):
        going_on = int((rollouts.lengths > step).sum())
        assert going_on <= rows < going_on / (1 - 1 / 8) + 1e-9  # at most an eighth is carried along
    assert len(shapes) == int(rollouts.lengths.max())  # the last token is not read


def test_progress_counts_every_token() -> None:
    counted: list[int] = []
    policy = restless()
    rollouts = Engine(policy, max_rows=4).sample(
        toy_prompts(policy, UNEVEN), group_size=3, sampling=PLAIN, key=KEY, progress=counted.append
    )
    assert sum(counted) == int(rollouts.mask.sum())
    assert counted[0] == 4


# --- signals and log-probabilities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_time_signals_are_teacher_forced_signals(family: str) -> None:
    """One pass over prompt and completion gives the same signals; shifted by one position it gives others."""
    policy = restless(family)
    rollouts = sample(policy, UNEVEN, group_size=3, temperature=1.3, top_p=0.95, max_new_tokens=16)
    apart = []
    for row, completion in enumerate(rows_of(rollouts)):
        logits, tokens = teacher_forced(policy, rollouts, row), torch.tensor(completion)
        recorded = TokenSignals(*(signal[row, : len(completion)] for signal in rollouts.signals))
        for got, expected in zip(recorded, token_signals(logits[:-1], tokens), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        off_by_one = token_signals(logits[1:], tokens)
        apart.append([float((a - b).abs().mean()) for a, b in zip(recorded, off_by_one, strict=True)])
    assert min(np.mean(apart, axis=0)) > 0.03  # 3,000 times the tolerance above


def naive_distribution(logits: Tensor, sampling: Sampling) -> list[float]:
    """Probabilities of one row after temperature, then top-k, then top-p; in float64, by sorting a list."""
    scaled = [math.exp(float(z - logits.max()) / sampling.temperature) for z in logits]
    ranked = sorted(range(len(scaled)), key=lambda token: -scaled[token])[: sampling.top_k or None]
    total = sum(scaled[token] for token in ranked)
    kept, mass = [], 0.0
    for token in ranked:
        if mass >= sampling.top_p and kept:
            break
        kept.append(token)
        mass += scaled[token] / total
    total = sum(scaled[token] for token in kept)
    return [scaled[token] / total if token in kept else 0.0 for token in range(len(scaled))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, max_new_tokens=10),
        Sampling(top_p=0.6, max_new_tokens=10),
        Sampling(top_k=4, max_new_tokens=10),
        Sampling(temperature=1.8, top_k=20, top_p=0.8, max_new_tokens=10),
    ],
    ids=["temperature", "top-p", "top-k", "all"],
)
def test_sampler_logprobs_belong_to_the_distribution_sampled_from(sampling: Sampling) -> None:
    policy = restless()
    rollouts = sample(policy, UNEVEN, group_size=3, **dataclasses.asdict(sampling))
    for row, completion in enumerate(rows_of(rollouts)):
        for position, logits in enumerate(teacher_forced(policy, rollouts, row)[:-1].double()):
            token = completion[position]
            expected = math.log(naive_distribution(logits, sampling)[token])  # -inf would mean: outside the filter
            assert float(rollouts.sampler_logprobs[row, position]) == pytest.approx(expected, abs=2e-5)
            at_temperature_1 = float(logits.log_softmax(dim=-1)[token])
            assert float(rollouts.signals.logprob[row, position]) == pytest.approx(at_temperature_1, abs=1e-5)


def test_unfiltered_at_temperature_1_the_two_logprobs_are_one() -> None:
    rollouts = sample(restless(), UNEVEN, group_size=4, max_new_tokens=20)
    torch.testing.assert_close(rollouts.sampler_logprobs, rollouts.signals.logprob, atol=1e-5, rtol=0)
    hot = sample(restless(), UNEVEN, group_size=4, max_new_tokens=20, temperature=2.0)
    assert float((hot.sampler_logprobs - hot.signals.logprob).abs().max()) > 0.5


def test_greedy_draws_are_certain() -> None:
    rollouts = sample(restless(), UNEVEN, temperature=0.0, max_new_tokens=8)
    assert torch.equal(rollouts.sampler_logprobs, torch.zeros_like(rollouts.sampler_logprobs))
    assert rows_of(rollouts)[0] == rows_of(rollouts)[1]


def test_padded_rows_of_the_vocabulary_do_not_exist() -> None:
    """Their logits are made the largest by far: not a token, not a signal changes."""
    expected = sample(with_bias(toy_policy(), {}), UNEVEN, max_new_tokens=16)
    padding = {VOCABULARY + i: 100.0 for i in range(PADDED_ROWS)}
    got = sample(with_bias(toy_policy(), padding), UNEVEN, max_new_tokens=16)
    assert int(got.tokens.max()) < VOCABULARY
    assert_same(got, expected)
    assert torch.equal(got.signals.entropy, expected.signals.entropy)


# --- the end of a completion ------------------------------------------------------------------------------------------


def test_eos_at_the_first_step() -> None:
    rollouts = sample(with_bias(toy_policy(), {EOS: 100.0}), UNEVEN, group_size=2, max_new_tokens=9)
    assert torch.equal(rollouts.tokens, torch.full((6, 1), EOS))
    assert bool(rollouts.mask.all())
    assert rollouts.texts == ("",) * 6
    assert rollouts.stop_reasons == ("eos",) * 6


def test_no_eos_before_the_limit() -> None:
    rollouts = sample(
        with_bias(toy_policy(), dict.fromkeys((PAD, EOS, UNKNOWN), -100.0)), UNEVEN, group_size=2, max_new_tokens=9
    )
    assert rollouts.lengths.tolist() == [9] * 6
    assert rollouts.stop_reasons == ("length",) * 6
    assert all(len(text) == 9 for text in rollouts.texts)


def test_nothing_stands_after_the_end() -> None:
    policy = dataclasses.replace(restless(), pad_id=7)
    rollouts = sample(policy, UNEVEN, group_size=8, max_new_tokens=16)
    assert set(rollouts.stop_reasons) == {"eos", "length"}
    assert rollouts.tokens.shape[1] == int(rollouts.lengths.max())
    for row, (length, reason) in enumerate(zip(rollouts.lengths.tolist(), rollouts.stop_reasons, strict=True)):
        assert rollouts.mask[row].tolist() == [True] * length + [False] * (rollouts.tokens.shape[1] - length)
        is_eos = (rollouts.tokens[row, :length] == EOS).tolist()
        assert is_eos == [False] * (length - 1) + [reason == "eos"]
        assert (length == 16) or reason == "eos"
    assert torch.all(rollouts.tokens[~rollouts.mask] == 7)
    for name, values in fields(rollouts).items():
        assert torch.all(values[~rollouts.mask] == 0.0), name
        assert torch.all(values[rollouts.mask].isfinite()), name
    assert torch.all(rollouts.signals.entropy[rollouts.mask] > 0.0)


def test_the_batch_is_as_wide_as_its_longest_completion() -> None:
    rollouts = sample(restless(), UNEVEN, group_size=2, max_new_tokens=100)
    assert rollouts.tokens.shape[1] == int(rollouts.lengths.max()) < 100


def test_an_eos_at_the_limit_is_an_eos() -> None:
    policy = restless()
    long = sample(policy, UNEVEN, group_size=8, max_new_tokens=16)
    row = next(i for i, n in enumerate(long.lengths.tolist()) if long.stop_reasons[i] == "eos" and n > 2)
    length = int(long.lengths[row])
    at_limit, before = (sample(policy, UNEVEN, group_size=8, max_new_tokens=n) for n in (length, length - 1))
    assert (at_limit.stop_reasons[row], rows_of(at_limit)[row]) == ("eos", rows_of(long)[row])
    assert (before.stop_reasons[row], rows_of(before)[row]) == ("length", rows_of(long)[row][:-1])


def test_every_token_of_the_eos_set_ends_a_completion() -> None:
    policy = restless()
    endless = dataclasses.replace(policy, eos_ids=(VOCABULARY,))  # a padded row: never drawn
    free = rows_of(sample(endless, UNEVEN, group_size=8, max_new_tokens=20))
    both = (EOS, free[0][0])
    got = sample(dataclasses.replace(policy, eos_ids=both), UNEVEN, group_size=8, max_new_tokens=20)
    for tokens, row, reason in zip(free, rows_of(got), got.stop_reasons, strict=True):
        ends = [position + 1 for position, token in enumerate(tokens) if token in both]
        assert row == tokens[: min(ends, default=len(tokens))]
        assert reason == ("eos" if ends else "length")
    assert set(both) <= {row[-1] for row in rows_of(got)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stop_string_cuts_the_text_and_keeps_its_tokens(family: str) -> None:
    """Expected completions come from the same draws without stop strings: a token is a character here."""
    policy = restless(family)
    free = sample(policy, UNEVEN, group_size=6, max_new_tokens=24)
    longest = max(free.texts, key=len)
    stops = (longest[5:7], longest[11:12])
    got = sample(policy, UNEVEN, group_size=6, max_new_tokens=24, stop=stops)
    for row, text in enumerate(free.texts):
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        if not ends:
            assert (rows_of(got)[row], got.texts[row]) == (rows_of(free)[row], text)
            assert got.stop_reasons[row] == free.stop_reasons[row]
            continue
        end = min(ends)
        assert rows_of(got)[row] == rows_of(free)[row][:end]
        assert got.stop_reasons[row] == "stop_string"
        assert got.texts[row] == text[: min(text[:end].find(stop) for stop in stops if stop in text[:end])]
    assert {"stop_string", "eos"} <= set(got.stop_reasons)


def spelling(policy: Policy, words: dict[int, str], decoder: Any) -> Policy:
    """The policy with a vocabulary of these words alone, so that they are drawn often."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)} | {word: i for i, word in words.items()}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    return dataclasses.replace(policy, tokenizer=fast, vocab_size=len(vocabulary))


def test_a_stop_string_may_end_within_a_token() -> None:
    policy = with_bias(toy_policy(), dict.fromkeys((PAD, EOS, UNKNOWN), -100.0))
    policy = spelling(policy, {3: "ab", 4: "cd", 5: "xy"}, decoders.Fuse())
    prompts = toy_prompts(toy_policy(), ["1", "2", "3"])
    free, got = (
        Engine(policy).sample(prompts, group_size=8, sampling=Sampling(max_new_tokens=6, stop=stop), key=KEY)
        for stop in ((), ("bc",))
    )
    cut = 0
    for row, text in enumerate(free.texts):
        at = text.find("bc")
        if at >= 0:  # "…ab" + "cd": the token cd is kept whole, the text ends after the a
            cut += 1
            assert got.texts[row] == text[:at]
            assert rows_of(got)[row] == rows_of(free)[row][: (at + 3) // 2]
            assert got.stop_reasons[row] == "stop_string"
        else:
            assert (got.texts[row], got.stop_reasons[row]) == (text, "length")
    assert 0 < cut < 24


def test_a_stop_string_may_span_tokens_that_are_not_characters() -> None:
    """é is two bytes in UTF-8, and here a token each: neither alone is a character."""
    policy = with_bias(toy_policy(), dict.fromkeys((PAD, EOS, UNKNOWN), -100.0))
    policy = spelling(policy, {3: "Ã", 4: "©"}, decoders.ByteLevel())
    prompts = toy_prompts(toy_policy(), ["1", "2", "3"])
    got = Engine(policy).sample(prompts, group_size=8, sampling=Sampling(max_new_tokens=4, stop=("é",)), key=KEY)
    for row, text in zip(rows_of(got), got.texts, strict=True):
        assert (3, 4) not in pairwise(row[:-1])  # it stopped at the first one
        assert "é" not in text
    stopped = [row for row, reason in zip(rows_of(got), got.stop_reasons, strict=True) if reason == "stop_string"]
    assert stopped
    assert all(row[-2:] == [3, 4] for row in stopped)


# --- drawing one token ------------------------------------------------------------------------------------------------


def logits_of(*probabilities: float) -> Tensor:
    """One row of logits with these probabilities (0 is allowed)."""
    return torch.tensor([probabilities]).log().clamp_min(-1e9)


def drawn(logits: Tensor, numbers: list[float], **sampling: Any) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities for one distribution and many numbers."""
    column = torch.tensor(numbers, dtype=torch.float64)
    tokens, logprobs, _ = draw(logits.expand(len(numbers), -1), column, Sampling(**sampling))
    return tokens.tolist(), logprobs.tolist()


def test_draw_takes_the_first_token_whose_cumulative_probability_exceeds_the_number() -> None:
    numbers = [0.0, 0.2499999, 0.25, 0.4999999, 0.5, 0.75, 0.7499999, ALMOST_ONE]
    tokens, logprobs = drawn(torch.zeros(1, 4), numbers)  # cumulative: .25, .5, .75, 1, exact in binary
    assert tokens == [0, 0, 1, 1, 2, 3, 2, 3]
    assert logprobs == pytest.approx([math.log(0.25)] * 8)


def test_draw_covers_each_token_with_its_probability() -> None:
    """Numbers on a fine grid: each token is drawn n * p times, give or take one at each of its two boundaries."""
    probabilities = [0.05, 0.4, 0.0, 0.25, 0.3]
    n = 10_000
    tokens, _ = drawn(logits_of(*probabilities), [(i + 0.5) / n for i in range(n)])
    counts = np.bincount(tokens, minlength=5)
    assert np.abs(counts - n * np.array(probabilities)).max() <= 2
    assert counts[2] == 0


@pytest.mark.parametrize("number", [0.0, 2.0**-53, 0.5, 1.0 - 2.0**-24, ALMOST_ONE])
def test_tokens_without_probability_are_never_drawn(number: float) -> None:
    for probabilities in ([0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0 / 3, 1.0 / 3, 1.0 / 3, 0.0]):
        tokens, logprobs = drawn(logits_of(*probabilities), [number])
        assert probabilities[tokens[0]] > 0.0
        assert math.isfinite(logprobs[0])


@pytest.mark.parametrize("number", [0.0, ALMOST_ONE])
def test_the_ends_of_the_unit_interval_stay_within_large_vocabularies(number: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5.0 * torch.randn(64, 50_000, generator=generator)
    logits[:, :10] = logits[:, -10:] = -1e9
    tokens, logprobs, _ = draw(logits, torch.full((64,), number, dtype=torch.float64), Sampling())
    assert 10 <= int(tokens.min()) <= int(tokens.max()) < 49_990
    assert bool(logprobs.isfinite().all())


@pytest.mark.parametrize("vocab", [3, 256, 257, 5000])
def test_the_search_by_blocks_finds_what_a_plain_cumulative_sum_finds(vocab: int) -> None:
    """In float64, token by token; a disagreement must be a tie to fp32 rounding."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 3.0 * torch.randn(200, vocab, generator=generator)
    logits[:, ::3] = -1e9
    numbers = torch.rand(200, dtype=torch.float64, generator=generator)
    tokens, _, _ = draw(logits, numbers, Sampling())
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    below = torch.where(tokens > 0, cumulative.gather(-1, (tokens - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    above = cumulative.gather(-1, tokens[:, None])[:, 0]
    assert bool((below <= numbers + 1e-6).all())
    assert bool((numbers < above + 1e-6).all())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.5, top_p=0.9)])
def test_the_signals_of_a_draw_are_token_signals(sampling: Sampling) -> None:
    logits = 3.0 * torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    tokens, _, signals = draw(logits, torch.linspace(0, 0.99, 50, dtype=torch.float64), sampling)
    for found, expected in zip(signals, token_signals(logits, tokens), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([[2.0, 1.0, 2.0, 2.0, 0.0]])
    tokens, logprobs = drawn(logits, [0.1, 0.5, 0.9, ALMOST_ONE], top_k=2)  # three are equally likely: all three stay
    assert tokens == [0, 2, 3, 3]
    assert logprobs == pytest.approx([math.log(1 / 3)] * 4)
    assert drawn(torch.tensor([[0.0, 3.0, 1.0]]), [0.0, ALMOST_ONE], top_k=1)[0] == [1, 1]
    assert drawn(torch.zeros(1, 4), [ALMOST_ONE], top_k=9)[0] == [3]  # more than there are: off


def test_top_p_keeps_the_smallest_set_that_holds_it() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    assert drawn(logits, [0.0, ALMOST_ONE], top_p=0.45) == ([1, 1], pytest.approx([0.0, 0.0], abs=1e-6))
    tokens, logprobs = drawn(logits, [0.0, 0.62, 0.63, ALMOST_ONE], top_p=0.55)  # .5 and .3 stay: 5/8 and 3/8
    assert tokens == [1, 1, 2, 2]
    assert logprobs == pytest.approx([math.log(5 / 8)] * 2 + [math.log(3 / 8)] * 2)
    assert drawn(logits, [0.0], top_p=0.85)[0] == [0]
    assert drawn(logits, [0.0, ALMOST_ONE], top_p=1e-9)[0] == [1, 1]  # at least one stays


def test_filters_act_in_the_order_temperature_top_k_top_p() -> None:
    # Temperature first: [.8, .2] sharpened to 16/17, which holds .9 alone; before, .8 would not.
    assert drawn(logits_of(0.8, 0.2), [ALMOST_ONE], temperature=0.5, top_p=0.9)[0] == [0]
    # top-k first: of [.4, .3, .2, .1] two stay, .4 becomes 4/7 and holds .5 alone; before, .4 would not.
    assert drawn(logits_of(0.4, 0.3, 0.2, 0.1), [ALMOST_ONE], top_k=2, top_p=0.5)[0] == [0]


def test_greedy_ignores_the_number() -> None:
    assert drawn(torch.tensor([[0.0, 3.0, 1.0]]), [0.0, 0.5, ALMOST_ONE], temperature=0.0) == ([1, 1, 1], [0.0] * 3)


def chi_square_survival(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Chance that draws from these probabilities fit them as badly as the counts do, or worse (Pearson)."""
    expected = counts.sum() * probabilities
    statistic = float(((counts - expected) ** 2 / expected).sum())
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_agree_with_the_softmax(temperature: float) -> None:
    """20,000 draws of 12 tokens; a right sampler fails for one seed in a million, a wrong temperature always does."""
    logits = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64)
    numbers = uniforms(Key(0, "chi-square"), "p", 0, 20_000)
    tokens, _ = drawn(logits.float()[None], numbers.tolist(), temperature=temperature)
    counts = np.bincount(tokens, minlength=12)
    assert chi_square_survival(counts, (logits / temperature).softmax(dim=-1).numpy()) > 1e-6
    assert chi_square_survival(counts, (logits / (temperature * 1.1)).softmax(dim=-1).numpy()) < 1e-6


def test_completions_of_a_prompt_are_independent_draws() -> None:
    """The first tokens of 2,000 completions against the model's softmax; false alarm: one seed in a million."""
    policy = toy_policy()
    rollouts = sample(policy, ["1+1="], group_size=2_000, max_new_tokens=1)
    probabilities = teacher_forced(policy, rollouts, 0)[0].double().softmax(dim=-1).numpy()
    counts = np.bincount(rollouts.tokens[:, 0], minlength=VOCABULARY)
    rare = 2_000 * probabilities < 5.0
    probabilities[rare.argmin()] += probabilities[rare].sum()  # pooled with the first of the others
    counts[rare.argmin()] += counts[rare].sum()
    assert (~rare).sum() > 8
    assert chi_square_survival(counts[~rare], probabilities[~rare]) > 1e-6


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_uniforms_are_philox_keyed_by_the_name_of_the_completion() -> None:
    key = int.from_bytes(hashlib.blake2b(b"7/3/task/12/5", digest_size=16).digest(), "little")
    raw = np.random.Philox(key=key).random_raw(100)
    assert np.array_equal(uniforms(Key(7, 3), "task/12", 5, 100), (raw >> np.uint64(11)) * 2.0**-53)


def test_uniforms_never_change() -> None:
    """Values written down once: a run repeated years later draws the same tokens."""
    assert uniforms(Key(0, 0), "toy/0", 0, 4).tolist() == [
        0.6970941486717671,
        0.4991133933485772,
        0.12311465588780623,
        0.5759382444612832,
    ]
    assert uniforms(Key(42, "eval"), "gsm8k/17", 3, 4).tolist() == [
        0.9009419632303844,
        0.9827541236608394,
        0.1993244246800252,
        0.5146974473967107,
    ]


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    assert np.array_equal(uniforms(KEY, "p", 0, 1000)[:10], uniforms(KEY, "p", 0, 10))


def test_streams_differ_by_seed_step_prompt_and_sample() -> None:
    names = [
        (Key(seed, step), prompt, sample)
        for seed in (0, 1)
        for step in (0, 1, 11, "0-eval")
        for prompt in ("a", "b", "a/1")
        for sample in (0, 1, 11)
    ]
    streams = np.stack([uniforms(*name, 50) for name in names])
    assert len({tuple(stream[:2]) for stream in streams}) == len(names)
    assert 0.0 <= streams.min() < streams.max() < 1.0
    # Mean of 3,600 numbers: 1/2 with standard deviation 1/sqrt(12 * 3600) = .0048; five of them: one seed in a million.
    assert abs(streams.mean() - 0.5) < 5 / math.sqrt(12 * streams.size)


# --- padding, context, settings ---------------------------------------------------------------------------------------


def test_left_pad_aligns_at_the_right_end() -> None:
    tokens, mask = left_pad([(5,), (6, 7, 8), (9, 9)], 0, torch.device("cpu"))
    assert tokens.tolist() == [[0, 0, 5], [6, 7, 8], [0, 9, 9]]
    assert mask.tolist() == [[False, False, True], [True, True, True], [False, True, True]]


def test_the_cache_takes_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = toy_policy()  # 2 layers, keys and values, 2 heads of 8 numbers of 4 bytes: 256 bytes a token
    monkeypatch.setattr(decode_batch, "_cache_share", lambda device: 256.0 * 100 * 7.5)
    assert rows_that_fit(policy, 100) == 7
    assert rows_that_fit(policy, 1000) == 1  # one row has to go, whatever it takes
    assert rows_that_fit(policy, 1) == 750
    monkeypatch.undo()
    assert rows_that_fit(policy, 1) == 1024  # a thousand rows of the toy fit anywhere


def test_a_prompt_longer_than_the_context() -> None:
    policy = dataclasses.replace(toy_policy(), context=20)
    prompts = toy_prompts(policy, ["a", "0123456789"])
    check_context(policy, prompts, 10)
    with pytest.raises(RlifError) as raised:
        Engine(policy).sample(prompts, group_size=2, sampling=Sampling(max_new_tokens=11), key=KEY)
    assert str(raised.value) == (
        "prompt toy/1: 10 tokens and max_new_tokens 11 exceed the context of toy llama (20); "
        "give max_new_tokens 10 or less"
    )
    check_context(dataclasses.replace(policy, context=None), prompts, 10**9)


def test_what_does_not_fit_is_told_of_the_longest_prompt_so_that_one_remedy_serves_all() -> None:
    policy = dataclasses.replace(toy_policy(), context=20)
    short, long, longest = toy_prompts(policy, ["0123", "0123456789", "0123456789012345678"])
    for prompts, words in (
        (
            [short, long],
            "prompt toy/1: 10 tokens and --new 30 exceed the context of toy llama (20); give --new 10 or less",
        ),
        ([long], "prompt: 10 tokens and --new 30 exceed the context of toy llama (20); give --new 10 or less"),
        (
            [long, dataclasses.replace(longest, token_ids=longest.token_ids * 2)],
            "prompt toy/2: 38 tokens and --new 30 exceed the context of toy llama (20); give a shorter question",
        ),
    ):
        with pytest.raises(RlifError) as raised, named({"max_new_tokens": "--new"}):
            check_context(policy, prompts, 30)
        assert str(raised.value) == words


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_model_whose_logits_are_no_distribution_is_an_error(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(PackedBatch, "chunk", chunk)
    policy = with_bias(toy_policy(), {EOS: math.nan})
    prompts, options = toy_prompts(policy, UNEVEN), {"group_size": 2, "sampling": PLAIN, "key": KEY}
    with pytest.raises(FloatingPointError, match="the policy's logits are not finite"):
        Engine(policy).sample(prompts, **options)
    with pytest.raises(FloatingPointError, match="the policy's logits are not finite"):
        sample_reference(policy, prompts, **options)


def test_what_finished_rows_draw_is_nobodys_affair() -> None:
    """A row that is carried along beyond its end may meet numbers that no distribution has."""
    policy = toy_policy()
    recorder = Recorder(policy, toy_prompts(policy, ["ab"]), 2, PLAIN, KEY)
    rows, logits = torch.arange(2), torch.zeros(2, policy.vocab_size)
    logits[0, EOS] = 100.0
    recorder.sample(rows, logits)
    assert (recorder.finished.tolist(), recorder.sync()) == ([True, False], 2)
    logits[0] = math.nan
    recorder.sample(rows, logits)
    assert recorder.sync() == 1
    logits[1] = math.nan
    recorder.sample(rows, logits)
    with pytest.raises(FloatingPointError, match="the policy's logits are not finite"):
        recorder.sync()


def test_an_empty_prompt() -> None:
    policy = toy_policy()
    with pytest.raises(RlifError) as raised:
        sample(policy, ["a", ""])
    assert str(raised.value) == "prompt toy/1: it is empty; a model needs at least one token to go on from"


def test_sampling_is_read_from_the_recipe() -> None:
    config = RolloutConfig(temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=99, stop=("x",))
    assert Sampling.from_config(config) == Sampling(0.5, 0.9, 7, 99, ("x",))
