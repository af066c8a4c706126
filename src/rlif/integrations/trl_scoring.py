"""Signals of completions that somebody else drew: one pass without gradient through our head, no logits in memory.

A model that `rlif.model.decoder` reads runs over lines of tokens, each prompt once. Any other runs through its own
forward pass, row by row: a hook keeps the hidden states of its body, and only one position reaches its own head. So do
models that FSDP2 has sharded, where each forward pass is a collective: every rank makes as many.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlif.errors import RlifError
from rlif.model.decoder import has_decoder
from rlif.model.in_training import sampling_mode
from rlif.model.lm_head import head_of, head_signals
from rlif.model.logprobs import micro_batches, policy_signals
from rlif.model.policy import Policy
from rlif.model.positions import check_alike
from rlif.types import Rollouts, TokenSignals


@torch.no_grad()
def completion_signals(policy: Policy, rollouts: Rollouts, *, rows_at_once: int) -> TokenSignals:
    """The signals of every completion token, (row, tok), fp32 on the CPU, in nats, 0 where masked.

    The model may be in train mode, with gradient checkpointing: it runs under `sampling_mode`. ``rows_at_once`` bounds
    a forward pass of the models that have no decoder of ours. Source: project.

    Raises `RlifError` for a model of which no rank holds whole layers.
    """
    check_layout(policy.model)
    with sampling_mode(policy.model):
        if has_decoder(policy.model):
            parts = micro_batches(policy.model, rollouts, range(rollouts.n_rows), None)
            found = [policy_signals(policy, rollouts, rows) for rows in parts]
        else:
            parts = [
                list(range(first, min(first + rows_at_once, rollouts.n_rows)))
                for first in range(0, rollouts.n_rows, rows_at_once)
            ]
            found = [_through_forward(policy, rollouts, rows) for rows in parts]
    order = torch.tensor([row for part in parts for row in part])
    return TokenSignals(*(_in_order(values, order) for values in zip(*found, strict=True)))


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 (or tensor parallelism) has spread a model's weights over ranks."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def check_layout(model: nn.Module) -> None:
    """Raise `RlifError` for a model whose weights are not where they can be asked for: FSDP1, DeepSpeed ZeRO-3."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise RlifError("FSDP1 flattens the weights, which rlif cannot read; use FSDP2 (fsdp_version: 2) or DDP")
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise RlifError("DeepSpeed ZeRO-3 partitions the weights, which rlif cannot read; use ZeRO-2, FSDP2 or DDP")


@torch.no_grad()
def gathered_copy(model: Any, copy: Any = None) -> Any:
    """A sharded model's weights, whole, in a plain copy of it in evaluation mode; every rank has to ask.

    Made once, and given back as ``copy`` to be filled anew. It costs each rank the memory of all weights.
    Source: project.

    Raises `RlifError` if the names of the weights are not those of the plain model.
    """
    if copy is None:
        from transformers import AutoModelForCausalLM

        first = next(model.parameters())
        copy = AutoModelForCausalLM.from_config(model.config, dtype=first.dtype).to(first.device)
        copy.generation_config = model.generation_config
        copy.requires_grad_(False).eval()
    shards, whole = dict(model.named_parameters()), dict(copy.named_parameters())
    if shards.keys() != whole.keys():
        name = sorted(shards.keys() ^ whole.keys())[0]
        raise RlifError(
            f"the sharded model cannot be gathered ({name}); use DDP, or InternalReward without EngineRollouts"
        )
    for name, shard in shards.items():
        whole[name].copy_(shard.full_tensor() if hasattr(shard, "full_tensor") else shard)
    return copy


def _through_forward(policy: Policy, rollouts: Rollouts, rows: Sequence[int]) -> TokenSignals:
    """By transformers' own forward pass, rows padded on the right: no real token attends to padding."""
    prompts, mask = rollouts.row_prompts, rollouts.mask[list(rows)]
    own = [rollouts.tokens[row][rollouts.mask[row]] for row in rows]
    texts = [[*prompts[row].token_ids, *ids.tolist()] for row, ids in zip(rows, own, strict=True)]
    width = max(map(len, texts))
    ids = torch.tensor([text + [policy.pad_id] * (width - len(text)) for text in texts], device=policy.device)
    check_alike(policy.model, width)
    hidden = _last_hidden(policy.model, ids)
    starts = [len(prompts[row].token_ids) - 1 for row in rows]
    producing = [hidden[i, n : n + len(ids)] for i, (n, ids) in enumerate(zip(starts, own, strict=True))]
    head = head_of(policy.model, policy.vocab_size)
    states = torch.cat(producing).to(head.weight.dtype)
    signals = head_signals(states, head, torch.cat(own).to(policy.device))
    placed = torch.zeros(mask.shape, device=policy.device)
    on_device = mask.to(policy.device)
    return TokenSignals(*(placed.masked_scatter(on_device, values) for values in signals))


def _last_hidden(model: Any, ids: Tensor) -> Float[Tensor, "row position hidden"]:
    """What a model's body gives its head, caught on the way; only the last position goes on."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    chooses = "logits_to_keep" in inspect.signature(model.forward).parameters
    hook = model.base_model.register_forward_hook(catch)
    try:
        model(input_ids=ids, use_cache=False, **({"logits_to_keep": 1} if chooses else {}))
    finally:
        hook.remove()
    return caught[-1]


def _in_order(values: Sequence[Float[Tensor, "part tok"]], order: Tensor) -> Float[Tensor, "row tok"]:
    joined = torch.cat([part.cpu() for part in values])
    result = torch.zeros_like(joined)
    result[order] = joined
    return result
