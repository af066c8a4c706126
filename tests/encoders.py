"""What the offline tests embed texts with: known directions, and tiny random encoders, saved as real ones are."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import BertConfig, BertModel

from toys import toy_tokenizer

PLACES = 42
"""Positions that a toy encoder knows; two fewer are used."""


def save_toy_encoder(folder: Path, *, seed: int = 0, **options: Any) -> Any:
    """A random BERT of one layer in a folder; returns it. ``options`` go to its `save_pretrained`."""
    tokenizer = toy_tokenizer()
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=PLACES,
            initializer_range=0.5,  # so that texts differ
        )
    ).eval()
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return model


class Degrees:
    """Embeds a text as the direction that its first word names: "20 or so" lies at 20 degrees."""

    digest = "degrees"

    def embed(self, text: str) -> Float[np.ndarray, " dimension"]:
        angle = math.radians(float(text.split()[0]))
        return np.array([math.cos(angle), math.sin(angle)])
