"""A policy: a causal language model with its tokenizer, its end-of-sequence set and its true vocabulary.

`load_policy` takes a hub id, a folder, a .gguf file (dequantised) or the name of a shipped model. Weights come from
safetensors or GGUF only, never from pickles; code that comes with a model runs only on request.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlif.errors import Argument, RlifError, brief
from rlif.model import chat_templates, checks
from rlif.model.lora import Adapter, merged
from rlif.model.template_clock import clock_at
from rlif.utils.atomic_io import settle


@dataclass(frozen=True)
class Policy:
    """A model ready to sample from and to train.

    Attributes:
        eos_ids: every token that ends a completion (generation config ∪ tokenizer).
        vocab_size: the true vocabulary; embedding rows beyond it are padding and are never sampled.
        context: most positions the model knows, None if unlimited.
        chat_template: whether prompts go through the tokenizer's chat template.
        adapter: what is trained of the model, if not all of it (`rlif.model.lora`).

    >>> import rlif
    >>> policy = rlif.load_policy("tiny-base")
    >>> text, token_ids = policy.encode_text("12+34=")
    >>> policy.tokenizer.decode(token_ids), policy.vocab_size
    ('12+34=', 49)
    """

    model: nn.Module
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    context: int | None
    chat_template: bool
    source: str
    adapter: Adapter | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_messages(
        self, messages: Sequence[Mapping[str, str]], *, now: datetime | None = None
    ) -> tuple[str, tuple[int, ...]]:
        """A conversation as (exact text, token ids), ready for the model's answer.

        A system message that the model's template leaves out is put in front of the first user message, with a
        warning. ``now`` is the moment that a template which prints the date is told; None: the present. Raises
        `RlifError` if the template refuses the conversation (some know no system message), breaks a limit of time or
        memory, or leaves out or rewrites another message.
        """
        with clock_at(now):
            text = self._rendered(messages)
            lost = chat_templates.lost(messages, text)
            if lost is not None and lost["role"] == "system":
                warnings.warn(
                    f"the chat template of {self.source} drops the system message; it is put in front "
                    "of the user message instead",
                    stacklevel=2,
                )
                messages = chat_templates.system_in_user(messages)
                text = self._rendered(messages)
        chat_templates.check_complete(messages, text, self.source)
        return text, self._ids(text, add_special_tokens=False)

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation's text, made by the tokenizer's template once a worker has found that to be harmless."""
        roles = ", ".join(message["role"] for message in messages)
        try:
            broken = chat_templates.limit_broken(self.tokenizer, messages, {"add_generation_prompt": True})
        except ValueError as error:  # no template among several
            raise self._refused(roles, error) from error
        if broken is not None:
            raise RlifError(
                Argument("chat_template"),
                f": the template of {self.source} {broken} ({roles}); fix it, or set ",
                Argument("chat_template"),
                " to off",
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja's, or anything that Python raises for what a template computes
            raise self._refused(roles, error) from error
        return text

    def _refused(self, roles: str, error: Exception) -> RlifError:
        return RlifError(
            Argument("chat_template"),
            f": the template of {self.source} refuses {roles} ({_reason(error)}); choose another ",
            Argument("template"),
            ", or set ",
            Argument("chat_template"),
            " to off",
        )

    def encode_text(self, text: str) -> tuple[str, tuple[int, ...]]:
        """Plain text as (text, token ids), with whatever the tokenizer puts before every text (a BOS, or nothing).

        Raises `RlifError` for a token that the model does not know.
        """
        ids = self._ids(text)
        if ids and ids[-1] in self.eos_ids:  # some tokenizers close every text; a prompt must stay open
            ids = ids[:-1]
        return text, ids

    def _ids(self, text: str, **options: Any) -> tuple[int, ...]:
        ids = tuple(self.tokenizer(text, verbose=False, **options)["input_ids"])  # check_context has its say on length
        if ids and max(ids) >= self.vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise RlifError(
                Argument("model"),
                f": a prompt holds {token!r}, token {max(ids)} of the tokenizer of {self.source}, but the "
                f"model knows {self.vocab_size}; take it out of the question, or resize the embedding",
            )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        ids = list(token_ids)
        if ids and ids[-1] in self.eos_ids:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path, *, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a folder that plain transformers loads: safetensors, config, tokenizer; all of it is on the disk then.

        An adapter is merged into the weights. Without one ``state_dict`` takes the place of the model's own weights
        (the optimizer's fp32 masters, say).
        """
        if self.adapter is not None:
            merged(self).save(folder)
            return
        checks.state_tie(self.model)
        generation: Any = self.model.generation_config
        if generation is not None:  # whoever loads it is to end where we do
            named = generation.eos_token_id
            if {*(named if isinstance(named, list | tuple) else [named])} != {*self.eos_ids}:
                generation.eos_token_id = list(self.eos_ids)
        weights = None if state_dict is None else dict(state_dict)  # transformers empties the mapping it is given
        self.model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)
        settle(folder)


def _reason(error: BaseException) -> str:
    """What an error says on its first line with anything on it, and on those it announces by a colon at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines) if lines[0].endswith(":") else lines[0]
    return brief(f"{text} is missing" if isinstance(error, KeyError) else text)
