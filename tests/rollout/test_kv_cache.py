"""The appending cache holds what transformers' own cache holds, and copies less."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma3TextConfig, Lfm2Config, LlamaConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlif.rollout.transformers_cache import AppendLayer, append_cache
from toys import FAMILIES, toy_policy

HEADS, KEY_FEATURES, VALUE_FEATURES = 2, 3, 5


def states(rows: int, positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random keys and values; they differ in width, as they do in some models."""
    return (
        torch.randn(rows, HEADS, positions, KEY_FEATURES, generator=generator),
        torch.randn(rows, HEADS, positions, VALUE_FEATURES, generator=generator),
    )


@pytest.mark.parametrize("seed", range(20))
def test_equals_dynamic_layer_through_a_random_life(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def dice(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    ours, theirs = AppendLayer(room=dice(0, 5)), DynamicLayer()
    rows = dice(1, 4)
    for _ in range(40):
        operation = dice(0, 5)
        if operation <= 2 or not ours.get_seq_length():  # the first thing a layer sees is an update
            fresh = states(rows, dice(1, 4), generator)
            returned, expected = ours.update(*fresh), theirs.update(*fresh)
            assert torch.equal(returned[0], expected[0])
            assert torch.equal(returned[1], expected[1])
        elif operation <= 4:
            indices = torch.randint(rows, (dice(1, 4),), generator=generator)  # dropped, repeated, reordered
            select = "batch_select_indices" if operation == 3 else "reorder_cache"
            getattr(ours, select)(indices)
            getattr(theirs, select)(indices)
            rows = len(indices)
        elif rows <= 4:
            repeats = dice(1, 3)
            ours.batch_repeat_interleave(repeats)
            theirs.batch_repeat_interleave(repeats)
            rows *= repeats
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


@pytest.mark.parametrize("prefill", [2, 9])
def test_holds_the_window_of_a_sliding_layer_and_everything_before(prefill: int) -> None:
    window, generator = 4, torch.Generator().manual_seed(0)
    ours, sliding, full = AppendLayer(room=2), DynamicSlidingWindowLayer(sliding_window=window), DynamicLayer()
    for positions in (prefill, 1, 1, 1, 1, 1, 1):
        fresh = states(2, positions, generator)
        returned = [layer.update(*fresh) for layer in (ours, sliding, full)]
        for mine, windowed, whole in zip(*returned, strict=True):
            assert torch.equal(mine, whole)
            assert torch.equal(mine[:, :, -windowed.shape[2] :], windowed)
    assert torch.equal(ours.keys[:, :, -(window - 1) :], sliding.keys)


def test_an_empty_layer_has_no_rows_to_select_or_repeat() -> None:
    layer = AppendLayer(room=4)
    layer.batch_select_indices(torch.tensor([0, 0]))
    layer.batch_repeat_interleave(3)
    assert layer.get_seq_length() == 0


def test_a_token_costs_one_write() -> None:
    generator = torch.Generator().manual_seed(0)
    layer, places = AppendLayer(room=1), [0]
    for _ in range(256):
        layer.update(*states(1, 1, generator))
        if layer.keys.data_ptr() != places[-1]:  # a new buffer is made while the old one still holds its place
            places.append(layer.keys.data_ptr())
    assert len(places) - 1 == 8  # the room doubles: 2, 4, ..., 256; a copy for each token would make 256

    layer = AppendLayer(room=300)
    layer.update(*states(1, 8, generator))
    place = layer.keys.data_ptr()
    for _ in range(300):
        layer.update(*states(1, 1, generator))
    assert layer.keys.data_ptr() == place


def test_what_was_handed_out_stays_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = AppendLayer(room=2)
    kept = []
    for _ in range(12):
        keys, _ = layer.update(*states(2, 1, generator))
        kept.append((keys, keys.clone()))
    assert all(torch.equal(view, before) for view, before in kept)


def test_rows_share_nothing_once_repeated() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = AppendLayer(room=8)
    layer.update(*states(1, 3, generator))
    layer.batch_select_indices(torch.tensor([0, 0]))
    fresh, _ = states(2, 1, generator)
    layer.update(fresh, states(2, 1, generator)[1])
    assert torch.equal(layer.keys[:, :, 3:], fresh)
    assert torch.equal(layer.keys[0, :, :3], layer.keys[1, :, :3])


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (LlamaConfig(num_hidden_layers=3), "AAA"),
        (Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]), "AA"),
        (Lfm2Config(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"]), ".A."),
    ],
    ids=["llama", "gemma3", "lfm2"],
)
def test_attention_layers_append_and_others_keep_their_own_class(config: object, kinds: str) -> None:
    cache, own = append_cache(config, room=4), DynamicCache(config=config)
    assert "".join("A" if type(layer) is AppendLayer else "." for layer in cache.layers) == kinds
    for layer, theirs, kind in zip(cache.layers, own.layers, kinds, strict=True):
        assert kind == "A" or type(layer) is type(theirs)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_cannot_tell_it_from_its_own_cache(family: str) -> None:
    """Prefill, expand, decode past the sliding window (6), drop rows, decode on: the same logits."""
    model = toy_policy(family).model
    generator = torch.Generator().manual_seed(0)
    ours, theirs = append_cache(model.config, room=3), DynamicCache(config=copy.deepcopy(model.config))
    step = torch.randint(3, 40, (2, 9), generator=generator)
    for select in (None, torch.tensor([0, 0, 1, 1, 1]), None, torch.tensor([4, 0]), None, None):
        if select is not None:
            ours.reorder_cache(select)
            theirs.reorder_cache(select)
            step = torch.randint(3, 40, (len(select), 1), generator=generator)
        expected = model(input_ids=step, past_key_values=theirs, use_cache=True).logits
        got = model(input_ids=step, past_key_values=ours, use_cache=True).logits
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        step = torch.randint(3, 40, (len(step), 1), generator=generator)
