"""A model that another trainer holds: as a `Policy`, and in the mode to sample from and to score in.

A trainer leaves its model in train mode, and its gradient checkpointing hangs a hook on the embedding and throws away
the key-value cache. Who samples from such a model, or scores with it, gets garbage and no error: log-probabilities that
are wrong by 10 nats were measured. `sampling_mode` is the cure, `check_sampling_mode` the refusal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from rlif.config import PolicyConfig
from rlif.errors import Argument, RlifError, expect
from rlif.model.loading import assemble
from rlif.model.policy import Policy

_INPUT_GRADIENT_HOOK = "make_inputs_require_grad"  # how the functions of transformers and of peft begin


def policy_of(model: nn.Module, tokenizer: Any, *, chat_template: Literal["auto", "on", "off"] = "auto") -> Policy:
    """A transformers model that is already in memory, with its tokenizer, as a `Policy` that shares its weights.

    Wrappers (DDP, ``torch.compile``, an adapter's) are taken off; what the trainer changes, the policy sees. Nothing is
    copied and no mode is changed: sample under `sampling_mode`. Source: project.

    Args:
        model: a causal language model of transformers.
        tokenizer: the one that makes its prompts.
        chat_template: auto is on if the tokenizer has one.

    Raises `RlifError` for what is no such model, a model without an EOS token, and a tokenizer that does not fit.

    >>> import rlif
    >>> loaded = rlif.load_policy("tiny-base")
    >>> policy = rlif.policy_of(loaded.model, loaded.tokenizer)
    >>> policy.eos_ids == loaded.eos_ids, policy.vocab_size == loaded.vocab_size
    (True, True)
    """
    expect(model, nn.Module, "model", "a causal language model of transformers")
    plain: Any = unwrapped(model)
    if not hasattr(plain, "config") or not hasattr(plain, "get_output_embeddings"):
        said = f": a {type(plain).__name__} is no causal language model of transformers; give the model itself"
        raise RlifError(Argument("model"), said)
    if not hasattr(tokenizer, "get_vocab"):
        kind = type(tokenizer).__name__
        raise RlifError(Argument("tokenizer"), f": a {kind} is no tokenizer of transformers; give that of the model")
    source = str(getattr(plain.config, "name_or_path", "") or type(plain).__name__)
    return assemble(plain, tokenizer, PolicyConfig(model=source, chat_template=chat_template))


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model below the wrappers of DDP and others, of ``torch.compile`` and of an adapter."""
    for attribute in ("module", "_orig_mod"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    base = getattr(model, "get_base_model", None)
    return unwrapped(base()) if callable(base) else model


@contextmanager
def sampling_mode(model: nn.Module) -> Iterator[None]:
    """Within it a model that trains may be sampled from; afterwards every module is as it was.

    Evaluation mode; no layer checkpoints; the hooks that make embeddings ask for a gradient are off. Other hooks stay:
    with them a model runs through transformers' own forward pass. Source: project.

    >>> import rlif
    >>> model = rlif.load_policy("tiny-base").model.train()
    >>> with rlif.sampling_mode(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    training = [(module, module.training) for module in model.modules()]
    flagged = [module for module, _ in training if getattr(module, "gradient_checkpointing", False)]
    hooks = [
        (module._forward_hooks, number, hook)
        for module, _ in training
        for number, hook in module._forward_hooks.items()
        if getattr(hook, "__name__", "").startswith(_INPUT_GRADIENT_HOOK)
    ]
    try:
        model.eval()
        for module in flagged:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        for where, number, _ in hooks:
            del where[number]
        yield
    finally:
        for where, number, hook in hooks:
            where[number] = hook
        for module in flagged:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        for module, was in training:
            module.training = was


def check_sampling_mode(model: nn.Module) -> None:
    """Raise `RlifError` for a model of which a layer would checkpoint: without a cache, what is drawn is garbage."""
    if any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise RlifError(
            Argument("model"),
            ": it is in train mode with gradient checkpointing, where no cache is kept and samples are garbage; sample "
            "under `with rlif.sampling_mode(model):`, or call model.eval()",
        )
