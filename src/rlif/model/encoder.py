"""An encoder of texts: a frozen transformer whose hidden states, averaged over the tokens, say what a text is about.

The usual way of sentence-transformers models (Sentence-BERT, arXiv 1908.10084: mean pooling), for models made for it.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from rlif.config import PolicyConfig
from rlif.errors import Argument, RlifError, brief
from rlif.model import registry
from rlif.model.checks import check_tokenizer
from rlif.model.files import read_object
from rlif.model.loading import _inspect, _locate, _quietly, _verdict
from rlif.model.policy import _reason

LONGEST = 512
"""Tokens of a text that are read at most; what comes after does not count."""

_POOLER = "pooler."
"""A layer behind the hidden states that pooling by the mean does not ask. Many files lack it, so that it is random."""

_KEPT = 4096  # embeddings; a reference of 64 prompts has 2112 answers


class Encoder:
    """Texts in, vectors of length 1 out.

    Attributes:
        config: the model's.
        longest: tokens of a text that are read.
        digest: sha256 in hexadecimal of what decides the vectors: weights, tokenizer, and ``longest``.
    """

    def __init__(self, model: Any, tokenizer: Any, longest: int) -> None:
        """``model`` is a transformer of transformers' without a head, in eval mode."""
        self._model, self._tokenizer, self.config, self.longest = model, tokenizer, model.config, longest
        self.digest = _digest(model, tokenizer, longest)
        self._known = lru_cache(maxsize=_KEPT)(self._embedded)

    def embed(self, text: str) -> Float[np.ndarray, " dimension"]:
        """The mean of the last hidden states over the tokens, divided by its length; float64. Zeros of no token."""
        return self._known(text)

    def _embedded(self, text: str) -> Float[np.ndarray, " dimension"]:
        # One text at a time: beside others it would be padded, and depend on them by rounding.
        ids = torch.tensor([self._tokenizer(text, truncation=True, max_length=self.longest)["input_ids"]])
        if not ids.shape[1]:
            return np.zeros(int(self.config.hidden_size))
        ids = ids.to(next(self._model.parameters()).device)
        with torch.no_grad():
            states = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        mean: Float[np.ndarray, " dimension"] = states[0].mean(dim=0).double().cpu().numpy()
        return mean / max(float(np.linalg.norm(mean)), 1e-12)


def load_encoder(source: str, device: torch.device) -> Encoder:
    """An encoder from a folder or the hub, in fp32 on a device, frozen.

    Raises `RlifError` if there is none of that name, if its files are damaged or lack weights, if it is made for
    another pooling than the mean, or if it has no hidden states of a text alone.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if source.endswith(".gguf"):
        raise RlifError(Argument("model"), f": {source}: an encoder is a folder or a hub id, and no .gguf file")
    name = registry.resolve(source)
    location, _ = _locate(name, PolicyConfig(model=source))
    with _verdict(source, remote_code=False):
        folder = _inspect(name).folder
        if folder is not None:
            _check_pooling(folder)
    with _verdict(source, remote_code=False), _quietly():
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        model, info = AutoModel.from_pretrained(
            location, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    _check_weights(source, info)
    check_tokenizer(source, model, tokenizer)
    model = model.to(device).eval().requires_grad_(False)
    # Two places fewer than the model has: RoBERTa counts its positions from 2.
    places = (getattr(model.config, "max_position_embeddings", None) or LONGEST + 2) - 2
    longest = max(1, min(LONGEST, int(tokenizer.model_max_length), places))
    encoder = Encoder(model, tokenizer, longest)
    _check_states(source, encoder)
    return encoder


def _check_pooling(folder: Path) -> None:
    """Raise `RlifError` if the folder, written by sentence-transformers, says that the mean is not its pooling."""
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        pooling = read_object(path)
        if pooling.get("pooling_mode_mean_tokens") is False or pooling.get("pooling_mode", "mean") != "mean":
            said = f": {path} asks for another pooling than the mean; give an encoder that is made for that"
            raise RlifError(Argument("model"), said)


def _check_weights(source: str, info: Mapping[str, Any]) -> None:
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(_POOLER))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise RlifError(Argument("model"), f": {source!r} lacks the weights {brief(lacking[0])}{more}")


def _check_states(source: str, encoder: Encoder) -> None:
    """Raise `RlifError` unless a text alone has finite hidden states, at any length."""
    try:
        if getattr(encoder.config, "is_encoder_decoder", False):
            raise ValueError("a decoder stands behind them")
        for text in ("a", "word " * LONGEST):
            if not np.isfinite(encoder.embed(text)).all():
                raise ValueError("they are not finite")
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        said = f": {source!r} has no hidden states of a text to pool ({_reason(error)}); give an encoder of texts"
        raise RlifError(Argument("model"), said) from error


def _digest(model: nn.Module, tokenizer: Any, longest: int) -> str:
    """Before the tokenizer is used: that it cuts texts becomes part of its rules."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not name.startswith(_POOLER):
            found.update(f"{name}{tuple(parameter.shape)}".encode() + parameter.detach().cpu().numpy().tobytes())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    found.update(f"{rules}{longest}".encode())
    return found.hexdigest()
