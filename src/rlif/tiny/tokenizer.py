"""The tokenizer of the tiny models: one token a character, so that a reader sees every decision the model takes."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlif.tiny.corpus import ALPHABET

SPECIAL = ("<pad>", "<eos>", "<unk>")
"""Ids 0, 1, 2; the alphabet follows."""

CONTEXT = 256
"""Longest text the models are given, in characters, prompt and completion together."""

CHAT_TEMPLATE = "{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }}"
"""The last user message and nothing else: base, merged and instruct models are given the same text."""


def build_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A character-level tokenizer; encoding adds no special tokens, decoding gives the text back exactly.

    ``chat`` adds `CHAT_TEMPLATE`. A character outside `ALPHABET` becomes ``<unk>``.
    """
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *ALPHABET))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # a dot would skip newlines
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE if chat else None,
    )
