"""What a recipe may add to the loss, each against float64 loops, and that it moves a policy the way it says."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlif.config import GrpoConfig, PolicyConfig
from rlif.errors import RlifError
from rlif.model.loading import load_policy
from rlif.model.logprobs import policy_logprobs_and_entropy, policy_signals
from rlif.model.policy import Policy
from rlif.recipes import parse_recipe
from rlif.rng import Key
from rlif.training.answer_span import answer_tokens, span_of, tokens_of
from rlif.training.grpo import grpo_step
from rlif.training.loss import AGGREGATIONS, LossInputs, grpo_loss
from rlif.training.optim import MasterOptimizer
from rlif.training.token_terms import clip_cov, covariant_tokens, token_covariance, with_token_terms
from rlif.types import Rollouts, Sampling, Scored, TokenSignals, Update, Verdict
from toys import FAMILIES, toy_policy, toy_prompts

ADVANTAGES = [1.0, -0.5, -0.5, -1.0, 2.0, -1.0]
TOKENIZER = toy_policy()
"""Gates are given a policy for the sake of its tokenizer."""


def sgd(masters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(masters, lr=math.nan)


def written(policy: Policy, temperature: float = 1.0) -> Rollouts:
    """Six completions of two prompts, as if the policy had drawn them, with what it thought of them."""
    texts = ["46.", "i do not know", "b", "4", "46", "12+34 is 46"]
    ids = [[*policy.encode_text(text)[1], *policy.eos_ids] for text in texts]
    width = max(map(len, ids))
    mask = torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
    tokens = torch.full(mask.shape, policy.pad_id)
    tokens[mask] = torch.tensor([token for row in ids for token in row])
    zeros = torch.zeros(mask.shape)
    sampling = Sampling(temperature=temperature, max_new_tokens=width)
    empty = Rollouts(
        tuple(toy_prompts(policy, ["12+34=?", "what"])), 3, tokens, mask, zeros, TokenSignals(zeros, zeros, zeros),
        tuple(texts), ("eos",) * 6, sampling,
    )  # fmt: skip
    signals = policy_signals(policy, empty, range(6))
    return dataclasses.replace(empty, signals=signals, sampler_logprobs=signals.logprob)


def scored(rollouts: Rollouts, advantages: list[float] | None = None) -> Scored:
    return Scored(rollouts, (Verdict(None, False, None),) * 6, {}, torch.tensor(advantages or ADVANTAGES))


def updated(
    policy: Policy, batch: Scored, *, lr: float = 0.01, reference: Policy | None = None, **config: object
) -> Update:
    """One `grpo_step` with plain gradient descent."""
    settings = GrpoConfig.model_validate({"kl_coef": 0.0, "max_grad_norm": 1e9, **config})
    return grpo_step(policy, MasterOptimizer(policy.model, sgd), batch, settings, lr=lr, reference=reference)


def all_logprobs(policy: Policy, rollouts: Rollouts) -> list[Tensor]:
    """Teacher forcing said plainly: of each row, ln p of the whole vocabulary at each completion token."""
    temperature, result = rollouts.sampling.temperature, []
    for row, prompt in enumerate(rollouts.row_prompts):
        completion = rollouts.tokens[row][rollouts.mask[row]].tolist()
        logits = policy.model(input_ids=torch.tensor([[*prompt.token_ids, *completion]])).logits[0]
        first = len(prompt.token_ids) - 1
        kept = logits[first : first + len(completion), : policy.vocab_size]
        result.append((kept / temperature).log_softmax(dim=-1))
    return result


def descend(policy: Policy, loss: Tensor, lr: float = 0.01) -> None:
    policy.model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter -= lr * parameter.grad
    policy.model.zero_grad()


def weights_of(policy: Policy) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]).clone()


def assert_same_step(found: Policy, expected: Policy, start: Tensor) -> None:
    moved = (weights_of(expected) - start).abs()
    assert moved.max() > 2e-4
    torch.testing.assert_close(weights_of(found), weights_of(expected), atol=5e-7, rtol=0)


def surrogate(
    logprobs: list[Tensor], rollouts: Rollouts, share: Callable[[int, int], float] = lambda r, t: 1.0
) -> Tensor:
    """At ratio 1: −Σ A · share · ln π over all tokens, divided by their number. Its gradient is that of the loss."""
    total = torch.zeros(())
    for row, logp in enumerate(logprobs):
        for t, token in enumerate(rollouts.tokens[row][rollouts.mask[row]].tolist()):
            total = total - ADVANTAGES[row] * share(row, t) * logp[t, token]
    return total / rollouts.mask.sum()


# The bonus for entropy


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_are_those_of_all_logits(family: str, temperature: float) -> None:
    policy = toy_policy(family)
    rollouts = written(policy, temperature)
    logprobs, entropy = policy_logprobs_and_entropy(policy, rollouts, [4, 0, 5])
    exact = all_logprobs(policy, rollouts)
    for i, row in enumerate([4, 0, 5]):
        mask, logp = rollouts.mask[row], exact[row].double()
        torch.testing.assert_close(entropy[i][mask].double(), -(logp.exp() * logp).sum(-1), atol=3e-5, rtol=0)
        chosen = logp.gather(-1, rollouts.tokens[row][mask][:, None])[:, 0]
        torch.testing.assert_close(logprobs[i][mask].double(), chosen, atol=3e-5, rtol=0)
        assert not entropy[i][~mask].any()


def test_the_loss_pays_for_entropy_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    numbers = [torch.randn(2, 3, generator=generator).double() * mask for _ in range(2)]
    entropy = torch.rand(2, 3, generator=generator).double() * mask
    for aggregation, table in AGGREGATIONS.items():
        weights = table(mask, 4)
        inputs = LossInputs(numbers[0], numbers[1], None, torch.tensor([1.0, -2.0]).double(), mask, weights)
        clip = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0}
        without, sums = grpo_loss(inputs, **clip)
        with_bonus, same = grpo_loss(dataclasses.replace(inputs, entropy=entropy), **clip, entropy_coef=0.3)
        paid = sum(float(weights[r, t]) * float(entropy[r, t]) for r in range(2) for t in range(3) if mask[r, t])
        assert with_bonus.item() == pytest.approx(without.item() - 0.3 * paid, abs=1e-9), aggregation
        assert sums == same


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("budget", [None, 20])
def test_an_update_with_a_bonus_equals_a_plain_loop(family: str, budget: int | None) -> None:
    policy, naive, start = toy_policy(family), toy_policy(family), weights_of(toy_policy(family))
    rollouts = written(policy)
    updated(policy, scored(rollouts), entropy_coef=0.5, micro_batch_tokens=budget)
    logprobs = all_logprobs(naive, rollouts)
    entropy = sum((-(logp.exp() * logp).sum() for logp in logprobs), torch.zeros(()))
    descend(naive, surrogate(logprobs, rollouts) - 0.5 * entropy / rollouts.mask.sum())
    assert_same_step(policy, naive, start)


def test_the_bonus_alone_raises_entropy_also_where_no_advantage_is() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    means = []
    for _ in range(6):
        means.append(policy_signals(policy, rollouts, range(6)).entropy.sum().item() / int(rollouts.mask.sum()))
        updated(policy, scored(rollouts, [0.0] * 6), entropy_coef=1.0, lr=0.02)
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.01


# Covariance of likelihood and advantage


def covariances_by_hand(batch: Scored) -> dict[tuple[int, int], float]:
    """Of each token (row, position): (ln π − mean)(A − mean), by loops."""
    rollouts = batch.rollouts
    tokens = [(r, t) for r in range(rollouts.n_rows) for t in range(int(rollouts.lengths[r]))]
    logprob = {(r, t): float(rollouts.signals.logprob[r, t]) for r, t in tokens}
    advantage = {(r, t): float(batch.advantages[r]) for r, t in tokens}
    means = [sum(numbers.values()) / len(tokens) for numbers in (logprob, advantage)]
    return {token: (logprob[token] - means[0]) * (advantage[token] - means[1]) for token in tokens}


def places(chosen: Tensor) -> set[tuple[int, int]]:
    return {(int(r), int(t)) for r, t in chosen.nonzero()}


def test_covariance_equals_loops_and_sums_to_that_of_the_batch() -> None:
    batch = scored(written(toy_policy()))
    found, expected = token_covariance(batch), covariances_by_hand(batch)
    for (r, t), value in expected.items():
        assert found[r, t].item() == pytest.approx(value, abs=1e-9)
    assert not found[~batch.rollouts.mask].any()
    assert max(expected.values()) > 1.0
    assert min(expected.values()) < -0.4


@pytest.mark.parametrize("share", [1e-9, 0.05, 0.3, 1.0])
def test_kl_cov_takes_exactly_the_tokens_of_the_highest_covariance(share: float) -> None:
    batch = scored(written(toy_policy()))
    by_hand = covariances_by_hand(batch)
    count = max(1, math.floor(share * len(by_hand)))
    best = sorted(by_hand, key=lambda token: -by_hand[token])[:count]
    assert places(covariant_tokens(batch, share)) == set(best)
    # Where nothing tells tokens apart the first are taken.
    alike = covariant_tokens(scored(batch.rollouts, [0.0] * 6), share)
    assert places(alike) == set(list(by_hand)[:count])


def far_from(policy: Policy) -> Policy:
    """Another policy over the same tokens."""
    other = toy_policy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.9)
    return dataclasses.replace(policy, model=other.model)


def test_only_penalised_tokens_pay_and_by_the_kl_from_their_anchor() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    policy, old, reference = (torch.randn(2, 3, generator=generator).double() * mask for _ in range(3))
    penalised = torch.tensor([[False, True, True], [True, False, False]])
    weights = AGGREGATIONS["sequence_mean"](mask, 3)
    inputs = LossInputs(policy, old, reference, torch.tensor([1.0, -2.0]).double(), mask, weights)
    clip = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.1}
    without, sums = grpo_loss(inputs, **clip)
    for anchor, gap in (("start", reference - policy), ("old", policy - old)):
        paid = [(r, t, math.exp(gap[r, t]) - float(gap[r, t]) - 1.0) for r, t in ((0, 1), (0, 2), (1, 0))]
        found, more = grpo_loss(
            dataclasses.replace(inputs, penalised=penalised, anchor=anchor), **clip, kl_cov_coef=0.7
        )
        expected = without.item() + 0.7 * sum(float(weights[r, t]) * kl for r, t, kl in paid)
        assert found.item() == pytest.approx(expected, abs=1e-9)
        assert more == pytest.approx({**sums, "kl_cov": sum(kl for _, _, kl in paid), "penalised": 3}, abs=1e-9)


@pytest.mark.parametrize("budget", [None, 20])
def test_an_update_with_kl_cov_equals_a_plain_loop_and_brings_these_tokens_nearer(budget: int | None) -> None:
    policy, naive, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    reference, rollouts = far_from(policy), written(policy)
    batch = with_token_terms(TOKENIZER, scored(rollouts), GrpoConfig(kl_cov=0.2), Key(0, 1))
    assert batch.penalised is not None
    chosen = places(batch.penalised)
    options = {"kl_cov": 0.2, "kl_cov_coef": 0.5, "lr": 0.003}
    update = updated(policy, batch, reference=reference, micro_batch_tokens=budget, **options)  # type: ignore[arg-type]

    logprobs, theirs = all_logprobs(naive, rollouts), [logp.detach() for logp in all_logprobs(reference, rollouts)]
    loss, kls = surrogate(logprobs, rollouts), []
    for row, t in chosen:
        token = rollouts.tokens[row, t]
        gap = theirs[row][t, token] - logprobs[row][t, token]
        kls.append(gap.exp() - gap - 1.0)
    paid = torch.stack(kls)
    descend(naive, loss + 0.5 * paid.sum() / rollouts.mask.sum(), lr=0.003)
    assert_same_step(policy, naive, start)
    assert update.metrics["kl_cov"] == pytest.approx(paid.mean().item(), rel=1e-4)

    free = toy_policy()
    updated(free, scored(rollouts), lr=0.003)

    def mean_kl(of: Policy) -> float:
        logprobs = all_logprobs(of, rollouts)
        gaps = [(theirs[r] - logprobs[r])[t, rollouts.tokens[r, t]].item() for r, t in chosen]
        return sum(math.exp(gap) - gap - 1 for gap in gaps) / len(gaps)

    assert mean_kl(policy) < mean_kl(free)


def test_from_the_old_policy_the_penalty_begins_with_the_second_optimizer_step() -> None:
    rollouts = written(toy_policy())
    batch = with_token_terms(TOKENIZER, scored(rollouts), GrpoConfig(kl_cov=0.2), Key(0, 1))
    one, plain, two, free = (toy_policy() for _ in range(4))
    options = {"kl_cov": 0.2, "kl_cov_coef": 5.0, "kl_cov_from": "old", "lr": 0.003}
    updated(one, batch, **options)  # type: ignore[arg-type]
    updated(plain, scored(rollouts), lr=0.003)
    assert torch.equal(weights_of(one), weights_of(plain))
    update = updated(two, batch, epochs=2, **options)  # type: ignore[arg-type]
    updated(free, scored(rollouts), epochs=2, lr=0.003)
    assert update.metrics["kl_cov"] > 1e-4
    assert not torch.equal(weights_of(two), weights_of(free))


CLIPPED = GrpoConfig(clip_cov=0.2, clip_cov_range=(0.05, 3.0))


def test_clip_cov_draws_its_share_among_the_tokens_within_its_range() -> None:
    batch = scored(written(toy_policy()))
    by_hand = covariances_by_hand(batch)
    eligible = {token for token, value in by_hand.items() if 0.05 < value < 3.0}
    count = math.floor(0.2 * len(by_hand))
    assert count < len(eligible) < len(by_hand)
    times = dict.fromkeys(eligible, 0)
    for step in range(200):
        shares = clip_cov(TOKENIZER, batch, CLIPPED, Key(0, step))
        stopped = places((shares == 0) & batch.rollouts.mask)
        assert len(stopped) == count
        assert stopped <= eligible
        assert set(shares[batch.rollouts.mask].tolist()) == {0.0, 1.0}
        for token in stopped:
            times[token] += 1
    # Each is drawn with the same chance: beyond 6 standard deviations once in 5e8, for each of a few dozen tokens.
    chance = count / len(eligible)
    deviation = math.sqrt(200 * chance * (1 - chance))
    assert all(abs(n - 200 * chance) < 6 * deviation for n in times.values())
    few = CLIPPED.model_copy(update={"clip_cov": 1.0})
    assert places((clip_cov(TOKENIZER, batch, few, Key(0, 1)) == 0) & batch.rollouts.mask) == eligible


def test_what_clip_cov_draws_depends_on_the_key_alone_and_not_on_the_order_of_prompts() -> None:
    rollouts = written(toy_policy())
    batch = scored(rollouts)
    first = clip_cov(TOKENIZER, batch, CLIPPED, Key(0, 1))
    assert torch.equal(first, clip_cov(TOKENIZER, batch, CLIPPED, Key(0, 1)))
    assert not torch.equal(first, clip_cov(TOKENIZER, batch, CLIPPED, Key(0, 2)))
    assert not torch.equal(first, clip_cov(TOKENIZER, batch, CLIPPED, Key(1, 1)))
    order = [3, 4, 5, 0, 1, 2]
    turned = dataclasses.replace(
        rollouts,
        prompts=rollouts.prompts[::-1],
        tokens=rollouts.tokens[order],
        mask=rollouts.mask[order],
        signals=TokenSignals(*(signal[order] for signal in rollouts.signals)),
        texts=tuple(rollouts.texts[i] for i in order),
    )
    second = clip_cov(TOKENIZER, scored(turned, [ADVANTAGES[i] for i in order]), CLIPPED, Key(0, 1))
    assert torch.equal(second, first[order])


def test_an_update_with_shares_equals_a_plain_loop() -> None:
    policy, naive, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    rollouts = written(policy)
    batch = with_token_terms(TOKENIZER, scored(rollouts), CLIPPED, Key(0, 1))
    assert batch.shares is not None
    shares = batch.shares
    updated(policy, batch)
    loss = surrogate(all_logprobs(naive, rollouts), rollouts, lambda r, t: float(shares[r, t]))
    descend(naive, loss)
    assert_same_step(policy, naive, start)
    assert not torch.equal(weights_of(naive), start)


def test_a_recipe_that_says_nothing_of_tokens_leaves_the_batch_as_it_is() -> None:
    batch = scored(written(toy_policy()))
    same = with_token_terms(TOKENIZER, batch, GrpoConfig(), Key(0, 1))
    assert same.shares is None
    assert same.penalised is None


@pytest.mark.parametrize(
    ("grpo", "said"),
    [
        ({"kl_cov": 0.1, "kl_cov_from": "old"}, "grpo.kl_cov_from: with one optimizer step a rollout"),
        (
            {"clip_cov": 0.1, "clip_cov_range": [2, 1]},
            r"grpo.clip_cov_range: the least \(2\) is not below the most \(1\)",
        ),
    ],
)
def test_what_can_do_nothing_is_refused(grpo: dict[str, object], said: str) -> None:
    data = {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}, "reward": "length"}
    with pytest.raises(RlifError, match=said):
        parse_recipe({**data, "grpo": grpo})
    parse_recipe({**data, "grpo": {"kl_cov": 0.1, "kl_cov_from": "old", "epochs": 2}})


def test_kl_cov_from_the_start_needs_a_reference_though_the_kl_term_is_off() -> None:
    assert GrpoConfig(kl_coef=0.0, kl_cov=0.1).needs_reference
    assert not GrpoConfig(kl_coef=0.0, kl_cov=0.1, kl_cov_from="old").needs_reference
    assert not GrpoConfig(kl_coef=0.0).needs_reference
    with pytest.raises(ValueError, match="need a reference"):
        updated(toy_policy(), scored(written(toy_policy())), kl_cov=0.1)


# The answer's share


@pytest.mark.parametrize(
    ("text", "answer", "said"),
    [
        ("46+5 is 51. So 51.", "51", "51"),
        ("5 of 15 or 5.2, and 1.5", "5", "5"),
        ("so it is 1,234.", "1234", "1,234"),
        ("so it is 1234 or 1,234 5", "1234", "1234"),
        ("\\boxed{\\frac{1}{2}} I think", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("it is -3", "-3", "-3"),
        ("x = 7", "x=7", "x = 7"),
        ("15 apples", "5", None),
        ("nothing", None, None),
        ("nothing", "", None),
    ],
)
def test_an_answer_is_its_last_place_by_itself(text: str, answer: str | None, said: str | None) -> None:
    span = span_of(text, answer)
    assert (None if span is None else text[slice(*span)]) == said


def test_the_last_of_several_places_is_taken() -> None:
    assert span_of("51, 51 and 51!", "51") == (11, 13)
    assert span_of("5 of 15 or 5.2, and 1.5", "5") == (0, 1)


def with_verdicts(rollouts: Rollouts, *extracted: str | None) -> Scored:
    return dataclasses.replace(scored(rollouts), verdicts=tuple(Verdict(None, False, one) for one in extracted))


def test_the_tokens_of_an_answer_by_hand() -> None:
    """One token a character: of "12+34 is 46" the ninth and tenth, counted from 0."""
    rollouts = written(TOKENIZER)
    batch = with_verdicts(rollouts, "46", None, "b", "5", "46", "46")
    expected = {(0, 0), (0, 1), (2, 0), (4, 0), (4, 1), (5, 9), (5, 10)}
    assert places(answer_tokens(TOKENIZER, batch)) == expected
    for share in (0.0, 0.25):
        shares = with_token_terms(TOKENIZER, batch, GrpoConfig(answer_share=share), Key(0, 1)).shares
        assert shares is not None
        for row, length in enumerate(rollouts.lengths.tolist()):
            wanted = [share if (row, t) in expected else 1.0 for t in range(length)]
            assert shares[row].tolist() == wanted + [0.0] * (shares.shape[1] - length)


def test_tokens_of_several_characters_are_masked_whole(tiny_base_path: Path) -> None:
    """The shipped tokenizer, on every completion "so A+B=C." with C of two or three digits."""
    policy = load_policy(PolicyConfig(model=str(tiny_base_path)))
    for number in (7, 46, 151):
        text = f"so 12+34={number}."
        ids = list(policy.encode_text(text)[1])
        span = span_of(text, str(number))
        assert span is not None
        first, end = tokens_of(policy, ids, span)
        before, held = policy.decode(ids[:first]), policy.decode(ids[first:end])
        assert before + held == text[: len(before + held)]
        assert str(number) in held
        assert not policy.decode(ids[: end - 1]).endswith(f"={number}")


def test_an_answer_without_a_share_has_no_gradient_of_its_own() -> None:
    """An update on masked answers equals a plain loop that leaves their tokens out, with the denominator as it was."""
    policy, naive, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    rollouts = written(policy)
    batch = with_verdicts(rollouts, "46", None, "b", "5", "46", "46")
    chosen = places(answer_tokens(policy, batch))
    updated(policy, with_token_terms(policy, batch, GrpoConfig(answer_share=0.25), Key(0, 1)))
    loss = surrogate(all_logprobs(naive, rollouts), rollouts, lambda r, t: 0.25 if (r, t) in chosen else 1.0)
    descend(naive, loss)
    assert_same_step(policy, naive, start)


def test_shares_of_two_gates_multiply() -> None:
    batch = with_verdicts(written(TOKENIZER), "46", None, "b", "5", "46", "46")
    both = CLIPPED.model_copy(update={"answer_share": 0.25})
    found = with_token_terms(TOKENIZER, batch, both, Key(0, 1)).shares
    one, other = clip_cov(TOKENIZER, batch, both, Key(0, 1)), answer_tokens(TOKENIZER, batch)
    assert found is not None
    torch.testing.assert_close(found, one * torch.where(other, 0.25, 1.0))
