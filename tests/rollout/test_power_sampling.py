"""Power sampling against enumeration: on a language of three tokens every text, and every chain's law, is known.

Frequencies are compared by a chi-square test that a right sampler fails with probability `FALSE_ALARM` (the seeds are
fixed: on one machine a test passes always or never). Chains are independent, so there is no autocorrelation to guess.
"""

import dataclasses
import math
from itertools import product

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlif.errors import RlifError
from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.power_sampling import PowerSamples, Schedule, Suffix, log_acceptance, power_sample
from rlif.signals import token_signals
from rlif.types import Problem, Prompt, Rollouts, Sampling
from toys import toy_policy, toy_prompts

FALSE_ALARM = 1e-4
CHAINS = 1500
EOS, A, B = range(3)
Text = tuple[int, ...]


# A language, enumerated.


def enumerated(limit: int, stop: Text | None = None) -> list[Text]:
    """Every text of at most ``limit`` tokens: ended by EOS, by the tokens of a stop string, or by the limit."""
    found: list[Text] = []
    for length in range(1, limit + 1):
        for text in product((EOS, A, B), repeat=length):
            ends = [ended(text[:n], stop) for n in range(1, length + 1)]
            if not any(ends[:-1]) and (ends[-1] or length == limit):
                found.append(text)
    return found


def ended(text: Text, stop: Text | None) -> bool:
    return text[-1:] == (EOS,) or (stop is not None and text[-len(stop) :] == stop)


class Law:
    """What texts are worth under a table of next-token log-probabilities, and how a chain moves between them."""

    def __init__(self, table: dict[Text, np.ndarray], temperature: float, stop: Text | None = None) -> None:
        self.stop = stop
        self._p = table
        self._q = {prefix: row / temperature - np.logaddexp.reduce(row / temperature) for prefix, row in table.items()}

    def log_p(self, text: Text, start: int = 0) -> float:
        return sum(float(self._p[text[:t]][text[t]]) for t in range(start, len(text)))

    def log_q(self, text: Text, start: int = 0) -> float:
        return sum(float(self._q[text[:t]][text[t]]) for t in range(start, len(text)))

    def target(self, texts: list[Text], alpha: float) -> np.ndarray:
        weights = np.exp([alpha * self.log_p(text) for text in texts])
        return weights / weights.sum()

    def moves(self, texts: list[Text], alpha: float, accept: object = None) -> np.ndarray:
        """The chain's transition matrix: from the definition, or with a given acceptance."""
        matrix = np.zeros((len(texts), len(texts)))
        for i, old in enumerate(texts):
            for j, new in enumerate(texts):
                for t in range(min(len(old), len(new))):
                    if i != j and old[:t] == new[:t]:
                        there = math.exp(self.log_q(new, t)) / len(old)
                        back = math.exp(self.log_q(old, t)) / len(new)
                        ratio = math.exp(alpha * (self.log_p(new) - self.log_p(old))) * back / there
                        if accept is not None:
                            ratio = float(np.exp(log_acceptance(self.suffix(old, t), self.suffix(new, t), alpha))[0])
                        matrix[i, j] += there * min(1.0, ratio)
        return matrix + np.diag(1.0 - matrix.sum(axis=1))

    def suffix(self, text: Text, start: int) -> Suffix:
        return Suffix(*map(np.array, ([self.log_p(text, start)], [self.log_q(text, start)], [len(text)])))

    def extended(self, shares: dict[Text, float], texts: list[Text]) -> np.ndarray:
        """Shares after texts that had not ended went on to a greater limit."""
        # Of a text's beginnings exactly one was a text before: itself, if it had ended.
        befores = [next(text[:n] for n in range(len(text) + 1) if text[:n] in shares) for text in texts]
        pairs = zip(texts, befores, strict=True)
        return np.array([shares[before] * math.exp(self.log_q(text, len(before))) for text, before in pairs])

    def after(self, schedule: Schedule, max_new_tokens: int) -> tuple[list[Text], np.ndarray]:
        """The exact law of a completion at the end of a schedule."""
        shares: dict[Text, float] = {(): 1.0}
        for limit in schedule.limits(max_new_tokens):
            texts = enumerated(limit, self.stop)
            law = self.extended(shares, texts)
            matrix = np.linalg.matrix_power(self.moves(texts, schedule.alpha), schedule.moves)
            if schedule.leave_ended:
                stays = np.array([text in shares for text in texts])
                law = np.where(stays, law, 0.0) + np.where(stays, 0.0, law) @ matrix
            else:
                law = law @ matrix
            shares = dict(zip(texts, law.tolist(), strict=True))
        return texts, law


def random_table(limit: int, seed: int) -> dict[Text, np.ndarray]:
    random = np.random.default_rng(seed)
    prefixes = [prefix for n in range(limit) for prefix in product((A, B), repeat=n)]
    logits = random.normal(scale=1.5, size=(len(prefixes), 3))
    rows = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return dict(zip(prefixes, rows, strict=True))


@pytest.mark.parametrize("stop", [None, (A, B)])
@pytest.mark.parametrize(("alpha", "temperature"), [(4.0, 0.25), (2.0, 1.0), (1.0, 1.0), (0.5, 0.7)])
def test_the_acceptance_balances_every_pair_of_texts(alpha: float, temperature: float, stop: Text | None) -> None:
    """π(x) K(x → y) = π(y) K(y → x) for texts of 1 to 4 tokens, so p^α / Z stays as it is; all to 1e-12."""
    texts = enumerated(4, stop)
    for seed in range(3):
        law = Law(random_table(4, seed), temperature, stop)
        assert math.fsum(math.exp(law.log_p(text)) for text in texts) == pytest.approx(1.0, abs=1e-12)
        target, matrix = law.target(texts, alpha), law.moves(texts, alpha, log_acceptance)
        flow = target[:, None] * matrix
        np.testing.assert_allclose(flow, flow.T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(target @ matrix, target, rtol=0, atol=1e-12)
        np.testing.assert_allclose(matrix, law.moves(texts, alpha), rtol=0, atol=1e-12)
        assert (matrix > 0.0).all()  # the chain gets everywhere, so there is no other such law


# The sampler itself.


def three_tokens(seed: int = 0) -> Policy:
    """A random model that knows <eos>, a and b."""
    tokenizer = Tokenizer(tokenizer_models.WordLevel({"<eos>": EOS, "a": A, "b": B}, unk_token="<eos>"))
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, eos_token_id=EOS, max_position_embeddings=64, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    return Policy(model, fast, (EOS,), EOS, 3, None, False, "three tokens")


def prompt(name: str = "p", ids: Text = (A,)) -> Prompt:
    return Prompt(name, name, ids, Problem(name, name))


@torch.no_grad()
def table_of(policy: Policy, limit: int, ids: Text = (A,)) -> dict[Text, np.ndarray]:
    """The model's next-token log-probabilities after every text that has not ended, by plain forward passes."""
    found = {}
    for n in range(limit):
        for prefix in product((A, B), repeat=n):
            logits = policy.model(input_ids=torch.tensor([[*ids, *prefix]])).logits[0, -1].double()
            found[prefix] = logits.log_softmax(dim=-1).numpy()
    return found


def texts_of(found: PowerSamples) -> list[Text]:
    rollouts = found.rollouts
    return [tuple(row[mask].tolist()) for row, mask in zip(rollouts.tokens, rollouts.mask, strict=True)]


def p_value(drawn: list[Text], texts: list[Text], law: np.ndarray) -> float:
    """Of Pearson's chi-square test; texts of which fewer than 5 are expected count together."""
    place = {text: i for i, text in enumerate(texts)}
    counts = np.bincount([place[text] for text in drawn], minlength=len(texts))
    expected = law * len(drawn)
    rare = expected < 5.0
    pairs = [*zip(counts[~rare], expected[~rare], strict=True), (counts[rare].sum(), expected[rare].sum())]
    pairs = [(n, e) for n, e in pairs if e > 0.0]
    statistic = sum((n - e) ** 2 / e for n, e in pairs)
    half = torch.tensor([(len(pairs) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


LIMIT = 4
CASES = {
    "whole texts": (Schedule(alpha=2.0, blocks=1, moves=3), 0.5, None),
    "two blocks": (Schedule(alpha=3.0, blocks=2, moves=2), 1 / 3, None),
    "proposals at another temperature": (Schedule(alpha=2.0, blocks=1, moves=3), 0.8, None),
    "ended texts leave": (Schedule(alpha=3.0, blocks=2, moves=2, leave_ended=True), 1 / 3, None),
    "a stop string across the cut": (Schedule(alpha=2.0, blocks=2, moves=1), 0.5, (A, B)),
}


@pytest.mark.parametrize("name", CASES)
def test_completions_follow_the_exact_law_of_their_schedule(name: str) -> None:
    schedule, temperature, stop = CASES[name]
    policy = three_tokens()
    law = Law(table_of(policy, LIMIT), temperature, stop)
    texts, shares = law.after(schedule, LIMIT)
    assert shares.sum() == pytest.approx(1.0, abs=1e-9)
    assert shares.max() < 0.8, "a language that says one thing tests nothing"
    strings = () if stop is None else ("".join("_ab"[token] for token in stop),)
    proposal = Sampling(temperature, max_new_tokens=LIMIT, stop=strings)
    found = power_sample(
        Engine(policy), [prompt()], group_size=CHAINS, proposal=proposal, key=Key(0, 1), schedule=schedule
    )
    assert p_value(texts_of(found), texts, shares) > FALSE_ALARM


def test_long_chains_reach_the_power_distribution_and_not_the_low_temperature() -> None:
    policy, alpha, moves = three_tokens(2), 2.0, 20  # its chains forget their start soon
    law = Law(table_of(policy, LIMIT), 1.0 / alpha)
    texts = enumerated(LIMIT)
    target, cold = law.target(texts, alpha), np.exp([law.log_q(text) for text in texts])
    left = np.linalg.matrix_power(law.moves(texts, alpha), moves)
    assert abs(cold @ left - target).sum() < 4e-3  # what these moves leave is far below what the chains can show
    found = power_sample(
        Engine(policy),
        [prompt()],
        group_size=CHAINS,
        proposal=Sampling(1.0 / alpha, max_new_tokens=LIMIT),
        key=Key(1, 1),
        schedule=Schedule(alpha, blocks=1, moves=moves),
    )
    drawn = texts_of(found)
    assert p_value(drawn, texts, target) > FALSE_ALARM
    assert p_value(drawn, texts, cold) < FALSE_ALARM


# What a completion comes with.

UNEVEN = ["a", "12+34=?", "what is this"]
SHORT = Schedule(alpha=2.0, blocks=2, moves=2)
PROPOSAL = Sampling(0.5, max_new_tokens=12)


class Watched(Engine):
    """Notes what it is asked for."""

    def sample(self, prompts, **options) -> Rollouts:
        self.asked = [*getattr(self, "asked", []), (list(prompts), options["sampling"])]
        return super().sample(prompts, **options)


def test_every_token_has_the_numbers_of_the_distribution_it_was_drawn_from() -> None:
    policy = toy_policy()
    found = power_sample(
        Engine(policy), toy_prompts(policy, UNEVEN), group_size=3, proposal=PROPOSAL, key=Key(0, 1), schedule=SHORT
    )
    rollouts = found.rollouts
    assert 0.0 < found.accepted.mean() < 1.0, "a chain that never or always moves tests nothing"
    assert set(rollouts.stop_reasons) == {"eos", "length"}
    for row, prompt in enumerate(rollouts.row_prompts):
        tokens = rollouts.tokens[row][rollouts.mask[row]]
        ids = torch.tensor([[*prompt.token_ids, *tokens.tolist()]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1, : policy.vocab_size]
        n = len(tokens)
        for recorded, expected in zip(rollouts.signals, token_signals(logits, tokens), strict=True):
            torch.testing.assert_close(recorded[row, :n], expected, rtol=1e-4, atol=1e-4)
            assert not recorded[row, n:].any()
        drawn = (logits / PROPOSAL.temperature).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(rollouts.sampler_logprobs[row, :n], drawn, rtol=1e-4, atol=1e-4)
        assert rollouts.texts[row] == policy.decode(tokens.tolist())
        assert (rollouts.stop_reasons[row] == "eos") == (int(tokens[-1]) in policy.eos_ids)
        assert (tokens[:-1] != policy.eos_ids[0]).all()
        assert n == PROPOSAL.max_new_tokens or rollouts.stop_reasons[row] == "eos"


def test_neither_the_other_prompts_nor_the_batch_split_nor_the_context_change_a_completion() -> None:
    policy = toy_policy()
    prompts = toy_prompts(policy, UNEVEN)
    options = {"group_size": 3, "proposal": PROPOSAL, "key": Key(0, 1), "schedule": SHORT}
    together = power_sample(Engine(policy), prompts, **options)
    narrow = power_sample(Engine(policy, max_rows=2), prompts[::-1], **options)
    alone = [power_sample(Engine(policy), [prompt], **options) for prompt in prompts]
    longest = max(len(prompt.token_ids) for prompt in prompts)
    tight = Engine(dataclasses.replace(policy, context=longest + PROPOSAL.max_new_tokens))
    fitted = power_sample(tight, prompts, **options)
    texts = texts_of(together)
    assert len(set(texts)) > 4
    assert [text for one in (2, 1, 0) for text in texts_of(narrow)[3 * one :][:3]] == texts
    assert [text for found in alone for text in texts_of(found)] == texts
    assert texts_of(fitted) == texts
    np.testing.assert_array_equal(fitted.drawn, together.drawn)
    np.testing.assert_array_equal(fitted.accepted, together.accepted)


def test_no_row_is_given_more_than_twice_its_own_limit() -> None:
    policy = toy_policy()
    engine = Watched(policy)
    prompts = toy_prompts(policy, UNEVEN[:1])
    schedule = Schedule(alpha=2.0, blocks=1, moves=4)
    power_sample(engine, prompts, group_size=40, proposal=PROPOSAL, key=Key(0, 1), schedule=schedule)
    longest = len(prompts[0].token_ids) + PROPOSAL.max_new_tokens
    assert len(engine.asked) > 1 + schedule.moves
    for asked, sampling in engine.asked:
        for one in asked:
            assert sampling.max_new_tokens <= 2 * (longest - len(one.token_ids))
    assert sum(len(asked) for asked, _ in engine.asked) == 40 * (1 + schedule.moves)


def test_the_model_itself_is_never_refused_and_every_drawn_token_is_counted() -> None:
    """α = 1, T = 1 and texts of one length: the acceptance is 1 whatever is proposed."""
    policy = dataclasses.replace(toy_policy(), eos_ids=(10**6,))
    prompts = toy_prompts(policy, UNEVEN[:2])
    options = {"group_size": 5, "proposal": Sampling(1.0, max_new_tokens=6), "key": Key(0, 1)}
    still = power_sample(Engine(policy), prompts, schedule=Schedule(1.0, blocks=2, moves=0), **options)
    assert still.drawn.tolist() == [6] * 10
    assert np.isnan(still.accepted).all()
    engine = Watched(policy)
    moved = power_sample(engine, prompts, schedule=Schedule(1.0, blocks=1, moves=8), **options)
    assert moved.accepted.tolist() == [1.0] * 10
    proposed = np.zeros(10)
    for asked, _ in engine.asked:
        for one in asked:
            name, sample = one.id.rsplit("/", 1)
            row = 5 * [prompt.id for prompt in prompts].index(name) + int(sample)
            proposed[row] += 6 + len(prompts[row // 5].token_ids) - len(one.token_ids)
    assert moved.drawn.tolist() == proposed.tolist()


def test_a_text_ends_with_its_first_stop_string_also_if_it_began_in_the_kept_tokens() -> None:
    policy = three_tokens()
    proposal = Sampling(1.0, max_new_tokens=8, stop=("ab", "bb"))
    found = power_sample(Engine(policy), [prompt()], group_size=60, proposal=proposal, key=Key(0, 1), schedule=SHORT)
    rollouts = found.rollouts
    assert "stop_string" in rollouts.stop_reasons
    for text, shown, reason in zip(texts_of(found), rollouts.texts, rollouts.stop_reasons, strict=True):
        spoken = "".join("_ab"[token] for token in text)
        assert (spoken[-2:] in proposal.stop) == (reason == "stop_string")
        assert not any(stop in spoken[:-1] for stop in proposal.stop)
        assert shown == (spoken[:-2] if reason == "stop_string" else spoken.removesuffix("_"))


def test_what_makes_no_chain_is_refused_in_words_of_the_arguments() -> None:
    for name, wrong in (("alpha", 0.0), ("alpha", math.inf), ("blocks", 0), ("moves", -1)):
        with pytest.raises(RlifError, match=rf"^{name}: "):
            Schedule(**{name: wrong})
    policy = toy_policy()
    with pytest.raises(RlifError, match=r"^proposal: temperature 0; power sampling"):
        power_sample(Engine(policy), toy_prompts(policy, ["a"]), group_size=1, proposal=Sampling(0.0), key=Key(0, 1))
    with pytest.raises(RlifError, match="context"):
        power_sample(
            Engine(policy),
            toy_prompts(policy, ["a"]),
            group_size=1,
            proposal=Sampling(0.5, max_new_tokens=128),
            key=Key(0, 1),
        )


def test_block_limits_rise_to_the_whole_length() -> None:
    assert Schedule(blocks=4).limits(10) == [3, 5, 8, 10]
    assert Schedule(blocks=16).limits(3) == [1, 2, 3]
    assert Schedule(blocks=1).limits(7) == [7]
