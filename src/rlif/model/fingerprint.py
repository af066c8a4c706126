"""What tells one model from another: digests of weights and tokenizers."""

import hashlib

import torch
from torch import nn

from rlif.model.policy import Policy


def weights_digest(model: nn.Module) -> str:
    """sha256 of a model's parameters, bit for bit, in hexadecimal."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


_HASHED = 4096  # numbers of each weight that tell one model from another


def tokenizer_mark(policy: Policy) -> str:
    """16 hexadecimal digits that differ if questions become other tokens: a hash of tokenizer and chat template."""
    tokenizer = policy.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    text = policy.encode_text("Is 12+7 = 19?\n")
    return hashlib.sha256(repr((rules, getattr(tokenizer, "chat_template", None), text)).encode()).hexdigest()[:16]


def weights_mark(model: nn.Module) -> str:
    """16 hexadecimal digits that differ if the weights do: a hash of each parameter's shape and some of its values."""
    return _mark(model, torch.float32)


def base_mark(model: nn.Module) -> str:
    """`weights_mark` of the weights rounded to bf16: the same whether the model was loaded in fp32 or in bf16."""
    return _mark(model, torch.bfloat16)


def _mark(model: nn.Module, dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // _HASHED)].to(dtype).float().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]
