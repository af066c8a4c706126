"""A policy: a causal language model with its tokenizer, its end-of-sequence set and its true vocabulary.

`load_policy` takes a hub id, a folder, a .gguf file (dequantised) or the name of a shipped model. Weights come from
safetensors or GGUF only, never from pickles; code that comes with a model runs only on request.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlif import models
from rlif.config import PolicyConfig
from rlif.disk import flush_folder, settle
from rlif.errors import RlifError


@dataclass(frozen=True)
class Policy:
    """A model ready to sample from and to train.

    Attributes:
        eos_ids: every token that ends a completion (generation config ∪ tokenizer).
        vocab_size: the true vocabulary; embedding rows beyond it are padding and are never sampled.
        context: most positions the model knows, None if unlimited.
        chat_template: whether prompts go through the tokenizer's chat template.
    """

    model: nn.Module
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    context: int | None
    chat_template: bool
    source: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, tuple[int, ...]]:
        """A conversation as (exact text, token ids), ready for the model's answer.

        Raises `RlifError` if the model's template refuses it (some know no system message).
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RlifError(
                f"policy.chat_template: the template of {self.source} refuses {roles} ({error}); choose "
                "another task.template, or set policy.chat_template to off"
            ) from error
        return text, tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_text(self, text: str) -> tuple[str, tuple[int, ...]]:
        """Plain text as (text, token ids), with whatever the tokenizer puts before every text (a BOS, or nothing)."""
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])  # check_context has its own say on length
        if ids and ids[-1] in self.eos_ids:  # some tokenizers close every text; a prompt must stay open
            ids.pop()
        return text, tuple(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        ids = list(token_ids)
        if ids and ids[-1] in self.eos_ids:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path, *, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a folder that plain transformers loads: safetensors, config, tokenizer; all of it is on the disk then.

        ``state_dict`` takes the place of the model's own weights (the optimizer's fp32 masters, say).
        """
        weights = None if state_dict is None else dict(state_dict)  # transformers empties the mapping it is given
        self.model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)
        settle(folder)


def load_policy(config: PolicyConfig, *, dtype: torch.dtype | None = None) -> Policy:
    """Load model and tokenizer; the model comes in ``dtype`` (None: `compute_dtype` of the config), in eval mode.

    Raises `RlifError` if there is no such model, or it holds no safetensors or GGUF weights, or it has no chat template
    where one was asked for.
    """
    # transformers takes seconds to import and decides by the environment; only those who load a model pay.
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = models.resolve(config.model)
    location, options = _locate(source, config)
    options["trust_remote_code"] = config.remote_code
    device = _device(config.device)
    dtype = dtype or compute_dtype(config.dtype, device)
    try:
        weights = {"quantization_config": _dequantise()} if "gguf_file" in options else {"use_safetensors": True}
        with _quietly():
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
            model, info = AutoModelForCausalLM.from_pretrained(
                location, **options, **weights, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        hint = "; if you trust it, set policy.remote_code=true" if "trust_remote_code" in str(error) else ""
        raise RlifError(f"policy.model: cannot load {config.model!r}: {_first_line(error)}{hint}") from error
    if info["mismatched_keys"]:  # transformers would go on with random ones, here and below
        key, found, expected = sorted(info["mismatched_keys"])[0]
        raise RlifError(
            f"policy.model: the weights of {config.model!r} do not fit its config.json: {key} is {tuple(found)}, "
            f"expected {tuple(expected)}"
        )
    if info["missing_keys"]:
        first, *others = sorted(info["missing_keys"])
        raise RlifError(f"policy.model: {config.model!r} lacks the weights {first} and {len(others)} more")
    if "gguf_file" in options:
        model = _plain_copy(model, dtype)
    return _assemble(model.to(device).eval(), tokenizer, config)


def check_source(config: PolicyConfig) -> None:
    """Raise `RlifError` if there is no such model, as far as that shows without loading it."""
    _locate(models.resolve(config.model), config)


def unpack(name: str) -> Path:
    """Dequantise a fetched GGUF model into a folder of plain fp32 weights beside it, once; returns the folder.

    A GGUF file takes tens of seconds to unpack, the folder is read in two. Raises `RlifError` if it cannot be written.
    """
    model = models.MODELS[name]
    folder = models.unpacked_path(model)
    if model.shipped or folder.exists():
        return folder
    policy = load_policy(PolicyConfig(model=name, device="cpu"), dtype=torch.float32)
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        policy.save(unfinished)
        unfinished.rename(folder)
        flush_folder(folder.parent)
    except Exception as error:  # a full disk comes as an exception of safetensors' own
        raise RlifError(f"{folder}: cannot keep the unpacked model here ({_first_line(error)})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch type behind a recipe's dtype; auto is bfloat16 where the hardware multiplies it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton kernels and CUDA graphs run on the current one
    except (RuntimeError, AssertionError) as error:
        raise RlifError(f"policy.device: cannot use {name!r}: {_first_line(error)}") from error
    return device


_TOKENIZERS = ("*token*", "vocab*", "*.model")
"""What the files of a tokenizer are called."""


def _locate(source: str, config: PolicyConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers shall look, and with which options."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise RlifError(f"policy.model: no such file: {source}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RlifError(f"policy.model: {source} is a folder without a config.json; give a model folder")
        if not any(next(path.glob(pattern), None) for pattern in _TOKENIZERS):
            raise RlifError(f"policy.model: {source} is a folder without a tokenizer; put its tokenizer.json there")
        return str(path), {}
    why_not = "" if _names_a_path(source) else _missing_on_hub(source)
    if why_not is not None:
        known = ", ".join(models.MODELS)
        raise RlifError(f"policy.model: no such folder or file: {config.model}{why_not} (named models: {known})")
    return source, {}


def _names_a_path(source: str) -> bool:
    """Whether what is not there can only have been a folder: OWNER/NAME may be a hub id, unless OWNER lies here."""
    path = Path(source).expanduser()
    return path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1 or path.parent.is_dir()


def _missing_on_hub(source: str) -> str | None:
    """Why the hub cannot give ``source``, as the end of a sentence; None if it can.

    Asked once, and quickly: transformers would try for a minute, and tell of each attempt.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return None
        if is_offline_mode():
            return ", not in the hub's cache either, and the hub is switched off (HF_HUB_OFFLINE)"
        get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=10)
    except HFValidationError:
        return ""
    except HfHubHTTPError as error:
        return f", nor can the hub give it ({_first_line(error)})"
    except Exception as error:  # whatever the HTTP client raises when there is no network
        return f", and the hub cannot be reached ({_first_line(error)})"
    return None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what libraries tell while they load: warnings whose cause is raised, or checked here, as well.

    And without the progress bar that transformers draws for GGUF files whatever its settings say.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf

    bar = getattr(gguf, "tqdm", None)
    if bar is not None:
        gguf.tqdm = lambda items, **options: items
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bar is not None:
            gguf.tqdm = bar


def _dequantise() -> Any:
    """GGUF weights unpacked into plain ones, where transformers could also leave them packed; None for older ones."""
    from transformers.utils import quantization_config

    config = getattr(quantization_config, "GgufConfig", None)
    return config(dequantize=True) if config is not None else None


def _plain_copy(quantised: nn.Module, dtype: torch.dtype) -> nn.Module:
    """transformers remembers that weights came from GGUF and refuses to save them; a model built afresh does not."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(quantised.config, dtype=dtype)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    for config in (model.config, model.generation_config):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    return model


def _assemble(model: Any, tokenizer: Any, config: PolicyConfig) -> Policy:
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    eos_ids = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}
    if not eos_ids:
        raise RlifError(f"policy.model: {config.model} names no EOS token; name one in its generation config")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if config.chat_template == "on" and not has_template:
        raise RlifError(f"policy.chat_template: {config.model} has no chat template; set it to off")
    text_config = model.config.get_text_config(decoder=True)
    pad = tokenizer.pad_token_id
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=tuple(sorted(eos_ids)),
        pad_id=pad if pad is not None else min(eos_ids),
        vocab_size=min(max(tokenizer.get_vocab().values()) + 1, text_config.vocab_size),
        context=getattr(text_config, "max_position_embeddings", None),
        chat_template=has_template if config.chat_template == "auto" else config.chat_template == "on",
        source=config.model,
    )


def _first_line(error: BaseException) -> str:
    """The first line with anything on it, and the ones it announces by a colon at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines) if lines[0].endswith(":") else lines[0]
