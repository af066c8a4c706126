"""How a conversation is written for a model that has no chat template yet: by the tokens that its vocabulary keeps for
turns, else as plain lines. Nothing is added to a vocabulary."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from rlif.errors import Argument, RlifError
from rlif.model.chat_templates import template_of


class Form(NamedTuple):
    """A way to write turns. ``end`` closes each of them; None: the tokenizer's EOS closes the model's alone."""

    end: str | None
    template: str


FORMS = (
    Form(
        "<end_of_turn>",  # Gemma's, arXiv 2503.19786; it knows no system message, which goes in front of the user's
        "{{ bos_token }}{% for message in messages if message['role'] != 'system' %}"
        "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    Form(
        "<|im_end|>",  # ChatML
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    Form(None, "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"),
)
"""The first whose token a vocabulary has is taken."""


@dataclass(frozen=True)
class Turns:
    """How a model's conversations are written: a chat template, and the token that ends an answer."""

    template: str
    end_id: int


def turns_of(tokenizer: Any) -> Turns:
    """Those of a tokenizer: of its own chat template if it has one, else of the first of `FORMS` it has tokens for.

    Raises `RlifError` if nothing could end an answer, or if it has several templates and no default. Source: project.
    """
    try:
        own = template_of(tokenizer)
    except ValueError as error:
        raise RlifError(Argument("chat_template"), f": {error}; set it to off") from error
    vocabulary = tokenizer.get_vocab()
    for form in FORMS:
        end_id = tokenizer.eos_token_id if form.end is None else vocabulary.get(form.end)
        if end_id is not None and (own is None or form.end is None or form.end in own):
            return Turns(form.template if own is None else own, int(end_id))
    raise RlifError(Argument("model"), ": its tokenizer names no EOS token; name one in tokenizer_config.json")
