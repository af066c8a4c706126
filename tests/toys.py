"""Random tiny models with a character tokenizer: what the offline tests sample from and train."""

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlif.model.policy import Policy
from rlif.types import Problem, Prompt

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +=?.,\n"
SPECIAL = ["<pad>", "<eos>", "<unk>"]
PADDED_ROWS = 5  # embedding rows beyond the true vocabulary, as real models have them


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _llama(**common: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**common))


def _qwen3(**common: Any) -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**common, head_dim=8))


def _gemma3(**common: Any) -> Any:
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**common, head_dim=8, sliding_window=6, layer_types=layers))


def _olmo2(**common: Any) -> Any:
    return Olmo2ForCausalLM(Olmo2Config(**common))


FAMILIES = {"llama": _llama, "qwen3": _qwen3, "gemma3": _gemma3, "olmo2": _olmo2}
"""Models that `rlif.model.decoder` reads, and one (olmo2) that runs through transformers' own forward pass."""


def toy_policy(family: str = "llama", *, seed: int = 0) -> Policy:
    """A random fp32 model of two layers. Its weights are enlarged so that its distributions are not uniform."""
    tokenizer = toy_tokenizer()
    torch.manual_seed(seed)
    model = FAMILIES[family](
        vocab_size=len(tokenizer) + PADDED_ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=(1,),
        pad_id=0,
        vocab_size=len(tokenizer),
        context=128,
        chat_template=False,
        source=f"toy {family}",
    )


def toy_prompts(policy: Policy, texts: list[str]) -> list[Prompt]:
    return [
        Prompt(f"toy/{i}", text, policy.encode_text(text)[1], Problem(f"toy/{i}", text)) for i, text in enumerate(texts)
    ]
