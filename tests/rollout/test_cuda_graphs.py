"""Decode steps on fixed memory: the logits of `PackedBatch`, whatever rows enter and leave; recorded once, replayed.

There is no CUDA graph without a GPU, but what one demands is tested: each bucket's step is traced once into a plain
list of operations on the tensors it met, and later steps replay that list. A number that Python knew, or a tensor that
moved since, would show in the logits.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from rlif.model.decoder import decoder_of, joined
from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout import cuda_graphs
from rlif.rollout.cuda_graphs import CudaGraphBatch, SlotCache, Step
from rlif.rollout.decode_batch import PackedBatch
from rlif.rollout.engine import Engine
from rlif.rollout.kv_cache import RowCache
from rlif.rollout.recorder import Recorder
from rlif.types import Sampling
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

    monkeypatch.setattr(cuda_graphs, "replayed", traced)
    monkeypatch.setattr(cuda_graphs, "_FEWEST_COLUMNS", 8)
    return steps


def cuda_graph_batch(policy: Policy, *, rows: int, columns: int) -> CudaGraphBatch:
    decoder = decoder_of(policy.model, joined)
    assert decoder is not None
    return CudaGraphBatch(policy, decoder, rows=rows, columns=columns)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_replayed_steps_equal_a_packed_batch_through_a_random_life(recorded: list[Step], family: str) -> None:
    policy, dice = toy_policy(family), random.Random(4)
    prompts = toy_prompts(policy, ["ab", "12+3=?", "a", "what is it"])
    decoder = decoder_of(policy.model, joined)
    assert decoder is not None
    both = (PackedBatch(policy, decoder, RowCache()), cuda_graph_batch(policy, rows=6, columns=48))

    def each(event: str, argument: object) -> None:
        with torch.no_grad():
            expected, found = (getattr(rows, event)(argument) for rows in both)
        if event != "select":
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)

    each("prefill", [prompts[0], prompts[0], prompts[1]])
    count, steps = 3, 0
    for _ in range(20):
        event = dice.choice(["prefill", "select", "step", "step", "step"])
        if event == "prefill" and count <= 4:
            entering = dice.sample(prompts, 2 if count <= 3 else 1)
            each("prefill", entering)
            count += len(entering)
        elif event == "select" and count > 2:
            count = dice.randint(count - 2, count)
            each("select", torch.tensor(sorted(dice.sample(range(both[1]._cache.slots.numel()), count))))
        elif event == "step":
            each("step", torch.tensor(dice.choices(range(3, 40), k=count)))
            steps += 1
    assert 2 <= len(recorded) < steps  # several buckets, and most steps were replays


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize(("slots", "group_size", "longest"), [(4, 3, 9), (40, 40, 12)])
def test_the_engine_samples_the_same(
    recorded: list[Step], monkeypatch: pytest.MonkeyPatch, slots: int, group_size: int, longest: int, chunk: int
) -> None:
    """Rows leave, others take their place; among forty, those at their length limit are carried along a little."""
    policy = toy_policy()
    prompts, sampling = toy_prompts(policy, ["ab", "12+3=?", "a"]), Sampling(max_new_tokens=longest)
    options = {"group_size": group_size, "sampling": sampling, "key": Key(0, 0)}
    expected = Engine(policy, max_rows=slots).sample(prompts, **options)
    assert {"eos", "length"} <= set(expected.stop_reasons)
    made = lambda self, rows, columns, *, room: cuda_graph_batch(policy, rows=rows, columns=columns)  # noqa: E731
    monkeypatch.setattr(Engine, "_decode_batch", made)
    monkeypatch.setattr(PackedBatch, "chunk", chunk)
    found = Engine(policy, max_rows=slots).sample(prompts, **options)
    assert recorded
    assert torch.equal(found.tokens, expected.tokens)
    assert found.stop_reasons == expected.stop_reasons
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-4, rtol=0)


class Deaf(TorchDispatchMode):
    """Lets nothing wait for a GPU: no number read from a tensor, no tensor whose size depends on one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            waits = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))
        assert not waits, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", ["replayed", "as they come"])
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), Sampling(0.8, 0.9, 12, max_new_tokens=40)])
def test_a_gpu_is_not_waited_for_between_two_syncs(
    monkeypatch: pytest.MonkeyPatch, rows: str, sampling: Sampling
) -> None:
    """Each step and each draw of up to 40 tokens, read back after 5, 10, ..., under `Deaf`."""

    def deaf(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            called.append(function.__qualname__)
            with Deaf(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(Tensor, "tolist", lists)  # of which no dispatcher hears
                return function(*args)

        return call

    def lists(tensor: Tensor) -> None:
        raise AssertionError("a tensor is read into a list")

    policy, called = toy_policy(), list[str]()
    kind = CudaGraphBatch if rows == "replayed" else PackedBatch
    monkeypatch.setattr(kind, "step", deaf(kind.step))
    monkeypatch.setattr(Recorder, "sample", deaf(Recorder.sample))
    monkeypatch.setattr(PackedBatch, "chunk", 5)
    if rows == "replayed":
        made = lambda self, rows, columns, *, room: cuda_graph_batch(policy, rows=rows, columns=columns)  # noqa: E731
        monkeypatch.setattr(Engine, "_decode_batch", made)
    Engine(policy).sample(toy_prompts(policy, ["ab", "12"]), group_size=2, sampling=sampling, key=Key(0, 0))
    assert called.count("Recorder.sample") > 30  # and two of the prompt: more than a cache begins with


def filled(rows: int) -> SlotCache:
    """One layer, one head, one feature; row i holds i + 1 in its only column."""
    cache = SlotCache(rows + 1, 4, torch.device("cpu"))
    states = torch.arange(1.0, rows + 1)[:, None, None]
    each = torch.arange(rows)
    cache.prefill([(states, 10 * states)], each[:, None], torch.ones(rows, dtype=torch.long), each)
    return cache


def test_only_the_last_rows_move_when_others_leave() -> None:
    cache = filled(5)
    cache.select(torch.tensor([0, 2, 4]))  # slots 1 and 3 fall free; slot 4 moves into slot 1
    assert cache.slots.tolist() == [0, 2, 1]
    assert cache._keys[0][cache.slots, 0, 0, 0].tolist() == [1.0, 3.0, 5.0]
    assert cache._values[0][cache.slots, 0, 0, 0].tolist() == [10.0, 30.0, 50.0]
    assert cache.positions.tolist() == [1, 1, 1, 0, 0, 0]
    cache.select(torch.tensor([], dtype=torch.long))
    assert (cache.slots.tolist(), cache.longest) == ([], 0)


def test_memory_stays_where_it_is() -> None:
    cache = filled(3)
    before = [x.data_ptr() for x in (*cache._keys, *cache._values, cache.positions)]
    cache.grown()
    cache.select(torch.tensor([1, 2]))
    state = torch.full((1, 1, 1), 7.0)
    cache.prefill([(state, state)], torch.zeros(1, 1, dtype=torch.long), torch.tensor([1]), torch.tensor([0]))
    assert [x.data_ptr() for x in (*cache._keys, *cache._values, cache.positions)] == before
    assert cache.positions.tolist() == [2, 2, 1, 0]
    assert cache._keys[0][cache.slots, 0, 0, 0].tolist() == [2.0, 3.0, 7.0]


def test_what_does_not_fit_is_refused() -> None:
    cache, state = filled(3), torch.zeros(5, 1, 1)
    places: Tensor = torch.arange(5)[None]
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="1 rows of 5 tokens do not fit beside 3 others"):
        cache.prefill([(state, state)], places, torch.tensor([5]), one)
    for _ in range(3):
        cache.grown()
    assert cache.longest == 3  # a full row goes through the motions in its last column
    assert int(cache.positions.max()) == 3


def test_buckets_waste_at_most_half() -> None:
    assert [cuda_graphs._up(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 100, 129)] == [1, 2, 3, 4, 6, 8, 12, 16, 128, 192]
