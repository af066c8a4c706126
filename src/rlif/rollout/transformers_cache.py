"""A cache for transformers' own forward pass whose attention layers append in place."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class AppendLayer(DynamicLayer):
    """Keys and values of one attention layer, shape (row, head, position, feature), appended to in place.

    Also serves sliding-window layers: it keeps every position, and the attention mask applies the window.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._length = 0
        self._key_buffer: Tensor
        self._value_buffer: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer, self._value_buffer = key_states[:, :, :0], value_states[:, :, :0]
        start, end = self._length, self._length + key_states.shape[-2]
        self._key_buffer = self._with_room(self._key_buffer, end)
        self._value_buffer = self._with_room(self._value_buffer, end)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._length = end
        self._expose()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._length:
            self._key_buffer = self._select(self._key_buffer, indices)
            self._value_buffer = self._select(self._value_buffer, indices)
            self._expose()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """`batch_select_indices` under the one name that layers of every kind answer to."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._length:
            rows = torch.arange(self.keys.shape[0], device=self.keys.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def _expose(self) -> None:
        self.keys = self._key_buffer[:, :, : self._length]
        self.values = self._value_buffer[:, :, : self._length]

    def _with_room(self, buffer: Tensor, needed: int) -> Tensor:
        rows, heads, capacity, features = buffer.shape
        if needed <= capacity:
            return buffer
        grown = buffer.new_empty(rows, heads, max(needed + self._room, 2 * capacity), features)
        grown[:, :, : self._length] = buffer[:, :, : self._length]
        return grown

    def _select(self, buffer: Tensor, indices: Tensor) -> Tensor:
        """Copy the filled part of the chosen rows; the room behind it stays uninitialised."""
        chosen = buffer.new_empty(len(indices), *buffer.shape[1:])
        torch.index_select(buffer[:, :, : self._length], 0, indices, out=chosen[:, :, : self._length])
        return chosen


def append_cache(config: Any, *, room: int) -> Cache:
    """A cache for a model of this config whose attention layers append in place.

    Args:
        config: the model's transformers config.
        room: positions to allocate beyond those first written, in tokens.

    Layers that keep another kind of state (linear attention, state-space) keep transformers' own class.
    """
    cache = DynamicCache(config=config)
    if not cache.layers:  # a config that names no layer types: every layer is full attention, made on first use
        return Cache(layers=[AppendLayer(room) for _ in range(config.get_text_config(decoder=True).num_hidden_layers)])
    cache.layers = [
        AppendLayer(room) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
        for layer in cache.layers
    ]
    return cache
