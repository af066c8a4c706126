"""vLLM's two interfaces for logits processors, each a few lines over `rlif.rollout.vllm_draw`.

Written against vLLM 0.32.0. V1 (vllm/v1/sample/logits_processor/interface.py) is told of each change of the batch and
is what runs on a CPU: tested. V2 (vllm/v1/worker/gpu/sample/logits_processor/interface.py), which needs Triton, is told
of each step's rows: **untested**, for nothing here has a GPU. Both are called before temperature, top-k and top-p.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1

from rlif.rollout.vllm_draw import ROW, BatchRows, Drawing


def processor_v1(drawing: Drawing) -> type[Any]:
    """A class for ``logits_processors=`` of the V1 runner that draws into ``drawing``."""

    class DrawV1(ProcessorV1):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self._rows, self._device = BatchRows(), device

        def is_argmax_invariant(self) -> bool:
            return False  # it decides what is drawn: also of greedy requests, as all of ours are

        def update_state(self, batch_update: Any) -> None:
            if batch_update is not None:
                self._rows.update(batch_update.removed, batch_update.added, batch_update.moved)

        def apply(self, logits: Tensor) -> Tensor:
            if table := self._rows.table():
                places, rows, lengths = torch.tensor(table, device=self._device).T
                whole = len(table) == len(logits)  # by place, and none is missing: all of them in order
                drawing.draw(logits, None if whole else places, rows, lengths)
            return logits

    return DrawV1


def processor_v2(drawing: Drawing) -> type[Any]:
    """A class for ``logits_processors=`` of the V2 runner that draws into ``drawing``. Not yet run."""
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

    class DrawV2(ProcessorV2):
        def __init__(self, vllm_config: Any, req_states: Any) -> None:
            slots = req_states.max_num_reqs
            self._prompts = torch.zeros(slots, dtype=torch.long, device=req_states.device)
            self._rows = torch.full((slots,), -1, dtype=torch.long, device=req_states.device)  # -1: none of ours

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            row, prompt = (sampling_params.extra_args or {}).get(ROW, (-1, 0))
            self._rows[req_idx], self._prompts[req_idx] = row, prompt
            return row >= 0

        def apply(self, logits: Tensor, ctx: Any) -> Tensor:
            slots = ctx.expanded_idx_mapping.long()
            rows = self._rows[slots]
            lengths = ctx.pos.long() + 1 - self._prompts[slots]
            drawing.draw(logits, None, rows, lengths)
            return logits

    return DrawV2
