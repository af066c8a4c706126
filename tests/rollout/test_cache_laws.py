"""The laws of `rlif.rollout.kv_cache.KeyValueCache`, held against every cache: random lives, against lists in float64.

transformers' own forward pass takes no cache of that protocol, but `append_cache` obeys the same laws as far as it can:
its rows enter together, when there are no others, and it has no limit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from rlif.model.decoder import Attend, Heads
from rlif.model.kernels.cpu import kernels
from rlif.model.layers import Rotation
from rlif.rollout.cuda_graphs import SlotCache
from rlif.rollout.kv_cache import KernelCache, KeyValueCache, RowCache
from rlif.rollout.transformers_cache import append_cache

ROWS, COLUMNS = 6, 12
HEADS, KV_HEADS, FEATURES = 4, 2, 8
LAYERS = (Heads(0, FEATURES**-0.5, None), Heads(1, 0.5, 4))
"""One that sees everything, one that sees four tokens."""


def kernel_cache() -> KernelCache:
    compiled = kernels(torch.float32)
    if compiled is None:
        pytest.skip("there is no C compiler")
    return KernelCache(ROWS, COLUMNS, compiled)


class Appended:
    """`append_cache` as `rlif.rollout.decode_batch.TransformersBatch` uses it, padded on the left."""

    def __init__(self) -> None:
        self.lengths = torch.zeros(0, dtype=torch.long)

    def prefill(self, layers: Any, places: Tensor, lengths: Tensor, copies: Tensor) -> None:
        assert not len(self.lengths)
        self._cache = append_cache(LlamaConfig(num_hidden_layers=len(layers)), room=3)
        width = places.shape[1]
        shift = (torch.arange(width) - (width - lengths[:, None])).clamp_min(0)
        for i, states in enumerate(layers):
            self._cache.update(*(x[places.gather(1, shift)].transpose(1, 2) for x in states), i)
        self._cache.reorder_cache(copies)
        self.lengths = lengths[copies]

    def select(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)
        self.lengths = self.lengths[rows]

    @contextmanager
    def step(self) -> Iterator[Attend]:
        def attend(heads: Heads, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
            q, k = heads.apply_norm_and_rope(q, k, rotation)
            keys, values = self._cache.update(k[:, :, None], v[:, :, None], heads.layer)
            back = keys.shape[2] - 1 - torch.arange(keys.shape[2])  # how far behind the newest a column is
            seen = back <= torch.minimum(self.lengths, torch.tensor((heads.window or 1000) - 1))[:, None]
            grouped = q.unflatten(1, (KV_HEADS, -1))
            scores = heads.scaling * grouped @ keys.mT
            return (scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1) @ values).flatten(1)

        yield attend
        self.lengths = self.lengths + 1


CACHES: dict[str, Callable[[], KeyValueCache]] = {
    "KernelCache": kernel_cache,
    "RowCache": RowCache,
    "SlotCache": lambda: SlotCache(ROWS, COLUMNS, torch.device("cpu")),
    "append_cache": Appended,
}
LIMITED, ENTER_TOGETHER = ("KernelCache", "SlotCache"), ("append_cache",)


class Lists:
    """The laws, written down: of each row a list of keys and values for each layer, in float64."""

    def __init__(self, columns: int | None) -> None:
        self.rows: list[list[list[tuple[Tensor, Tensor]]]] = []
        self._columns = columns

    @property
    def lengths(self) -> list[int]:
        return [len(row[0]) for row in self.rows]

    def prefill(self, prompts: list[list[list[tuple[Tensor, Tensor]]]], copies: list[int]) -> None:
        self.rows += [[list(layer) for layer in prompts[copy]] for copy in copies]

    def select(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def step(self, row: int, heads: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one token, already turned; it stays, unless the row is full."""
        known = self.rows[row][heads.layer]
        seen = [*known, (k, v)][-(heads.window or 1000) :]
        if self._columns is None or len(known) < self._columns - 1:
            known.append((k, v))
        outputs = []
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            weights = torch.stack([heads.scaling * q[head] @ key[shared] for key, _ in seen]).softmax(dim=0)
            outputs.append(sum(weight * value[shared] for weight, (_, value) in zip(weights, seen, strict=True)))
        return torch.cat(outputs)


def turned(x: Tensor, rotation: Rotation, row: int) -> Tensor:
    cosines, sines = (part[row, 0].double() for part in rotation)
    half = FEATURES // 2
    x = x[row].double()
    return x * cosines + torch.cat([x[:, half:], x[:, :half]], dim=1) * sines


class Life:
    """A cache and the lists beside it, through the same random events."""

    def __init__(self, name: str, seed: int) -> None:
        self.cache, self.lists = CACHES[name](), Lists(COLUMNS if name in LIMITED else None)
        self.together, self.dice, self.generator = name in ENTER_TOGETHER, Random(seed), torch.Generator()
        self.generator.manual_seed(seed)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def prefill(self, lengths: list[int], copies: list[int]) -> None:
        """Prompts of random states in one line, with filling behind them."""
        total = sum(lengths)
        layers = [
            (self.numbers(total + 2, KV_HEADS, FEATURES), self.numbers(total + 2, KV_HEADS, FEATURES)) for _ in LAYERS
        ]
        spans = [
            range(end - length, end)
            for length, end in zip(lengths, torch.tensor(lengths).cumsum(0).tolist(), strict=True)
        ]
        places = torch.tensor([[*span, *[0] * (max(lengths) - len(span))] for span in spans])
        self.cache.prefill(layers, places, torch.tensor(lengths), torch.tensor(copies))
        wide = [[[(k[i].double(), v[i].double()) for i in span] for k, v in layers] for span in spans]
        self.lists.prefill(wide, copies)

    def select(self, rows: list[int]) -> None:
        self.cache.select(torch.tensor(rows, dtype=torch.long))
        self.lists.select(rows)

    def step(self) -> None:
        n = len(self.lists.rows)
        angles = self.numbers(n, 1, FEATURES)
        rotation = angles.cos(), angles.sin()
        with self.cache.step() as attend:
            for heads in LAYERS:
                q, k, v = (self.numbers(n, count, FEATURES) for count in (HEADS, KV_HEADS, KV_HEADS))
                found = attend(heads, q, k, v, rotation)
                for row in range(n):
                    placed = turned(q, rotation, row), turned(k, rotation, row)
                    expected = self.lists.step(row, heads, *placed, v[row].double())
                    torch.testing.assert_close(found[row].double(), expected, atol=2e-5, rtol=0, msg=f"row {row}")

    def event(self) -> None:
        n = len(self.lists.rows)
        choices = ["select", "step", "step", "step", "step"] if n else []
        if n < ROWS and not (self.together and n):
            choices += ["prefill", "prefill"]
        kind = self.dice.choice(choices)
        if kind == "prefill":
            lengths = [self.dice.randint(1, COLUMNS - 1) for _ in range(self.dice.randint(1, 3))]
            self.prefill(lengths, self.dice.choices(range(len(lengths)), k=self.dice.randint(1, ROWS - n)))
        elif kind == "select":
            self.select(self.dice.sample(range(n), self.dice.choice([0, *range(max(0, n - 3), n + 1)])))
        else:
            self.step()


@pytest.fixture(autouse=True)
def unwritten_memory_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever reads it is found out."""
    new_empty = Tensor.new_empty

    def nan_filled(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        made = new_empty(self, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", nan_filled)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", CACHES)
def test_a_random_life_is_that_of_lists_in_float64(name: str, seed: int) -> None:
    life = Life(name, seed)
    assert life.cache.lengths.tolist() == []
    for _ in range(30):
        handed_out = life.cache.lengths
        before = handed_out.clone()
        life.event()
        assert life.cache.lengths.tolist() == life.lists.lengths
        assert torch.equal(handed_out, before)


def test_the_lives_above_are_not_empty() -> None:
    """Some meet full rows, caches that fall empty and are filled again, and rows that change their places."""
    events = {"full": 0, "empty": 0, "moved": 0}
    for seed in range(10):
        life = Life("SlotCache", seed)
        select = life.select

        def counted(rows: list[int], select: Callable[[list[int]], None] = select) -> None:
            events["empty"] += not rows
            events["moved"] += rows != sorted(rows)
            select(rows)

        life.select = counted  # type: ignore[method-assign]
        for _ in range(30):
            life.event()
            events["full"] += COLUMNS - 1 in life.lists.lengths
    assert min(events.values()) >= 3, events


@pytest.mark.parametrize("name", LIMITED)
def test_what_does_not_fit_is_refused_and_changes_nothing(name: str) -> None:
    life = Life(name, 0)
    life.prefill([3, COLUMNS - 1], [1, 0, 0, 1])
    for lengths, copies in (([2], [0, 0, 0]), ([COLUMNS], [0])):
        with pytest.raises(ValueError, match="rows of"):
            life.prefill(lengths, copies)
        assert life.cache.lengths.tolist() == [COLUMNS - 1, 3, 3, COLUMNS - 1]
    for _ in range(2):
        life.step()


@pytest.mark.parametrize("name", [name for name in CACHES if name not in ENTER_TOGETHER])
def test_it_is_a_cache_by_the_protocol(name: str) -> None:
    assert isinstance(CACHES[name](), KeyValueCache)
