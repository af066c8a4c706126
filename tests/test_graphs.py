"""Decode steps on fixed memory: the logits of `LineRows`, whatever rows enter and leave; recorded once, replayed.

There is no CUDA graph without a GPU, but what one demands is tested: each bucket's step is traced once into a plain
list of operations on the tensors it met, and later steps replay that list. A number that Python knew, or a tensor that
moved since, would show in the logits.
"""

import random

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rlif import graphs
from rlif.cache import RowCache
from rlif.decoder import decoder_of, joined
from rlif.graphs import GraphRows, SlotCache, Step
from rlif.inflight import LineRows
from rlif.policy import Policy
from rlif.rollout import Engine, Key, Sampling
from toys import toy_policy, toy_prompts

pytestmark = pytest.mark.usefixtures("without_kernels")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step is traced instead of recorded as a CUDA graph; small buckets, so that there are several."""
    steps: list[Step] = []

    def traced(step: Step, device: torch.device, pool: None, stream: None) -> Step:
        operations = make_fx(step)()
        steps.append(lambda: operations())
        return steps[-1]

    monkeypatch.setattr(graphs, "replayed", traced)
    monkeypatch.setattr(graphs, "_FEWEST_COLUMNS", 8)
    return steps


def graph_rows(policy: Policy, *, rows: int, columns: int) -> GraphRows:
    decoder = decoder_of(policy.model, joined)
    assert decoder is not None
    return GraphRows(policy, decoder, rows=rows, columns=columns)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_replayed_steps_equal_line_rows_through_a_random_life(recorded: list[Step], family: str) -> None:
    policy, dice = toy_policy(family), random.Random(4)
    prompts = toy_prompts(policy, ["ab", "12+3=?", "a", "what is it"])
    decoder = decoder_of(policy.model, joined)
    assert decoder is not None
    both = (LineRows(policy, decoder, RowCache()), graph_rows(policy, rows=6, columns=48))

    def each(event: str, argument: object) -> None:
        with torch.no_grad():
            expected, found = (getattr(rows, event)(argument) for rows in both)
        if event != "keep":
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)

    each("enter", [prompts[0], prompts[0], prompts[1]])
    count, steps = 3, 0
    for _ in range(20):
        event = dice.choice(["enter", "keep", "step", "step", "step"])
        if event == "enter" and count <= 4:
            entering = dice.sample(prompts, 2 if count <= 3 else 1)
            each("enter", entering)
            count += len(entering)
        elif event == "keep" and count > 2:
            count = dice.randint(count - 2, count)
            each("keep", torch.tensor(sorted(dice.sample(range(both[1]._cache.slots.numel()), count))))
        elif event == "step":
            each("step", torch.tensor(dice.choices(range(3, 40), k=count)))
            steps += 1
    assert 2 <= len(recorded) < steps  # several buckets, and most steps were replays


@pytest.mark.parametrize(("slots", "group_size", "longest"), [(4, 3, 9), (40, 40, 12)])
def test_the_engine_samples_the_same(
    recorded: list[Step], monkeypatch: pytest.MonkeyPatch, slots: int, group_size: int, longest: int
) -> None:
    """Rows leave, others take their place; among forty, those at their length limit are carried along a little."""
    policy = toy_policy()
    prompts, sampling = toy_prompts(policy, ["ab", "12+3=?", "a"]), Sampling(max_new_tokens=longest)
    options = {"group_size": group_size, "sampling": sampling, "key": Key(0, 0)}
    expected = Engine(policy, max_rows=slots).sample(prompts, **options)
    assert {"eos", "length"} <= set(expected.stop_reasons)
    made = lambda self, rows, columns, *, room: graph_rows(policy, rows=rows, columns=columns)  # noqa: E731
    monkeypatch.setattr(Engine, "_in_flight", made)
    found = Engine(policy, max_rows=slots).sample(prompts, **options)
    assert recorded
    assert torch.equal(found.tokens, expected.tokens)
    assert found.stop_reasons == expected.stop_reasons
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-4, rtol=0)


def filled(rows: int) -> SlotCache:
    """One layer, one head, one feature; row i holds i + 1 in its only column."""
    cache = SlotCache(rows + 1, 4, torch.device("cpu"))
    states = torch.arange(1.0, rows + 1)[:, None, None]
    each = torch.arange(rows)
    cache.enter([(states, 10 * states)], each[:, None], torch.ones(rows, dtype=torch.long), each)
    return cache


def test_only_the_last_rows_move_when_others_leave() -> None:
    cache = filled(5)
    cache.keep(torch.tensor([0, 2, 4]))  # slots 1 and 3 fall free; slot 4 moves into slot 1
    assert cache.slots.tolist() == [0, 2, 1]
    assert cache._keys[0][cache.slots, 0, 0, 0].tolist() == [1.0, 3.0, 5.0]
    assert cache._values[0][cache.slots, 0, 0, 0].tolist() == [10.0, 30.0, 50.0]
    assert cache.lengths.tolist() == [1, 1, 1, 0, 0, 0]
    cache.keep(torch.tensor([], dtype=torch.long))
    assert (cache.slots.tolist(), cache.longest) == ([], 0)


def test_memory_stays_where_it_is() -> None:
    cache = filled(3)
    before = [x.data_ptr() for x in (*cache._keys, *cache._values, cache.lengths)]
    cache.grown()
    cache.keep(torch.tensor([1, 2]))
    state = torch.full((1, 1, 1), 7.0)
    cache.enter([(state, state)], torch.zeros(1, 1, dtype=torch.long), torch.tensor([1]), torch.tensor([0]))
    assert [x.data_ptr() for x in (*cache._keys, *cache._values, cache.lengths)] == before
    assert cache.lengths.tolist() == [2, 2, 1, 0]
    assert cache._keys[0][cache.slots, 0, 0, 0].tolist() == [2.0, 3.0, 7.0]


def test_what_does_not_fit_is_refused() -> None:
    cache, state = filled(3), torch.zeros(5, 1, 1)
    places: Tensor = torch.arange(5)[None]
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="1 rows of 5 tokens do not fit beside 3 others"):
        cache.enter([(state, state)], places, torch.tensor([5]), one)
    for _ in range(3):
        cache.grown()
    assert cache.longest == 3  # a full row goes through the motions in its last column
    assert int(cache.lengths.max()) == 3


def test_buckets_waste_at_most_half() -> None:
    assert [graphs._up(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 100, 129)] == [1, 2, 3, 4, 6, 8, 12, 16, 128, 192]
