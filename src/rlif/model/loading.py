"""Loading a policy: a named model, a hub id, a folder or a .gguf file, and what is refused."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlif.config import PolicyConfig
from rlif.errors import Argument, RlifError, brief, did_you_mean
from rlif.model import chat_templates, checks, registry
from rlif.model.adapter_files import AdapterFiles, merge_adapter, read_adapter
from rlif.model.files import ADAPTER_CONFIG, ModelFiles, inspect_folder, inspect_gguf
from rlif.model.merge import model_source
from rlif.model.policy import Policy, _reason
from rlif.utils.atomic_io import flush_folder, unfinished
from rlif.utils.paths import expanded


def load_policy(config: PolicyConfig, *, dtype: torch.dtype | None = None) -> Policy:
    """Load model and tokenizer; the model comes in ``dtype`` (None: `compute_dtype` of the config), in eval mode.

    An adapter is merged into its base, whose tokenizer the policy has. ``config.lora`` is for who trains
    (`rlif.model.lora.with_adapter`). Raises `RlifError` if there is no such model, if its files are damaged or describe
    another model than the weights are of, if weights would be left out or made up, if its tokenizer does not fit, or if
    it has no chat template where one was asked for.
    """
    if (adapter := adapter_named(config)) is not None:
        base = load_base(config, adapter, dtype=dtype)
        return replace(merge_adapter(base, adapter), source=str(config.model))
    # transformers takes seconds to import and decides by the environment; only those who load a model pay.
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    name, source = str(config.model), registry.resolve(model_source(config.model))
    location, options = _locate(source, config)
    with _verdict(name):
        files = _inspect(source)
    options["trust_remote_code"] = config.remote_code
    device = _device(config.device)
    dtype = dtype or compute_dtype(config.dtype, device)
    weights = {"quantization_config": _dequantise()} if "gguf_file" in options else {"use_safetensors": True}
    with _verdict(name), _quietly():
        with _explained("its tokenizer: " if files.folder else "", checks.check_files, files.folder):
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
            tokenizer("12+34=?")  # some damage shows in use alone
        with _explained("", checks.check_configs, files.folder):
            if not config.remote_code:
                checks.check_fit(name, location, files)
            model, info = AutoModelForCausalLM.from_pretrained(
                location, **options, **weights, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    checks.check_loaded(name, model, info, files)
    if "gguf_file" in options:
        model = _plain_copy(model, dtype)
    return assemble(model.to(device).eval(), tokenizer, config)


@contextmanager
def _verdict(source: str, *, remote_code: bool = True) -> Iterator[None]:
    """Around what a library says of the user's files, and nothing of ours: whatever it raises is its verdict on them.

    It raises nearly anything: for damaged files ``Exception`` itself, errors of struct, of indices, of recursion. A
    panic in Rust (the tokenizers' library) is not even an ``Exception``. ``remote_code``: whether code that comes with
    a model may be run, if the user asks for it.
    """
    try:
        yield
    except RlifError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        asks = any("trust_remote_code" in str(one) for one in (error, error.__cause__))
        allowed = ("; if you trust it, set ", Argument("remote_code"), "=true")
        hint = (allowed if remote_code else ("; give one without code of its own",)) if asks else ()
        raise RlifError(Argument("model"), f": cannot load {source!r}: {_reason(error)}", *hint) from error


@contextmanager
def _explained(what: str, check: Callable[[Path], None], folder: Path | None) -> Iterator[None]:
    """Say of an error which file it comes from, where ``check`` finds one that is damaged; else put ``what`` before."""
    try:
        yield
    except RlifError:
        raise
    except Exception as error:
        if folder is not None:
            check(folder)
        raise ValueError(f"{what}{_reason(error)}") from error


def _inspect(source: str) -> ModelFiles:
    """What the files of a model say of themselves; nothing for those of a hub id that are not in the cache yet."""
    if source.endswith(".gguf"):
        inspect_gguf(expanded(source))
        return ModelFiles(None, {}, {})
    path = expanded(source)
    folder = path if path.is_dir() else _snapshot(source, "config.json")
    return inspect_folder(folder) if folder is not None else ModelFiles(None, {}, {})


def _snapshot(source: str, file: str) -> Path | None:
    """The folder of the hub's cache that holds a model, as far as ``file`` of it lies there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, file)
    except HFValidationError:  # nothing that the hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def adapter_named(config: PolicyConfig) -> AdapterFiles | None:
    """The adapter that ``config.model`` is, in a folder or in the hub's cache; None if it is a whole model."""
    if not isinstance(config.model, str):
        return None
    source = registry.resolve(config.model)
    path = expanded(source)
    folder = path if path.is_dir() else None if _names_a_path(source) else _snapshot(source, ADAPTER_CONFIG)
    alone = folder is not None and (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists()
    return read_adapter(folder) if folder is not None and alone else None


def load_base(config: PolicyConfig, adapter: AdapterFiles, *, dtype: torch.dtype | None = None) -> Policy:
    """The base model of an adapter, loaded as ``config`` says. Raises `RlifError` as `load_policy` does."""
    with _of_adapter(config, adapter) as base:
        return load_policy(base, dtype=dtype)


@contextmanager
def _of_adapter(config: PolicyConfig, adapter: AdapterFiles) -> Iterator[PolicyConfig]:
    """The config of an adapter's base; what is said of that says whose it is."""
    said = f": {brief(str(config.model))} is an adapter of {brief(adapter.base)}"
    base = config.model_copy(update={"model": adapter.base})
    if adapter_named(base) is not None:
        raise RlifError(Argument("model"), said, ", which is an adapter itself; merge that with its base first")
    try:
        yield base
    except RlifError as error:
        of_model = error.args[0] == Argument("model")
        raise RlifError(Argument("model"), said, *(error.args[1:] if of_model else (": ", *error.args))) from error


def check_source(config: PolicyConfig) -> None:
    """Raise `RlifError` if there is no such model, as far as that shows without loading it."""
    if (adapter := adapter_named(config)) is not None:
        with _of_adapter(config, adapter) as base:
            check_source(base)
        return
    _locate(registry.resolve(model_source(config.model)), config)


def unpack(name: str) -> Path:
    """Dequantise a fetched GGUF model into a folder of plain fp32 weights beside it, once; returns the folder.

    A GGUF file takes tens of seconds to unpack, the folder is read in two. Raises `RlifError` if it cannot be written.
    """
    model = registry.MODELS[name]
    folder = registry.unpacked_path(model)
    if model.shipped or folder.exists():
        return folder
    policy = load_policy(PolicyConfig(model=name, device="cpu"), dtype=torch.float32)
    try:
        with unfinished(folder, "unpacking") as temporary:
            policy.save(temporary)
            temporary.rename(folder)
            flush_folder(folder.parent)
    except Exception as error:  # a full disk comes as an exception of safetensors' own
        raise RlifError(f"{folder}: cannot keep the unpacked model here ({_reason(error)})") from error
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
        raise RlifError(Argument("device"), f": cannot use {name!r}: {_reason(error)}") from error
    return device


_TOKENIZERS = ("*token*", "vocab*", "*.model")
"""What the files of a tokenizer are called."""


def _locate(source: str, config: PolicyConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers shall look, and with which options."""
    path = expanded(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise RlifError(Argument("model"), f": no such file: {source}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RlifError(Argument("model"), f": {source} is a folder without a config.json; give a model folder")
        if not any(next(path.glob(pattern), None) for pattern in _TOKENIZERS):
            raise RlifError(
                Argument("model"), f": {source} is a folder without a tokenizer; put its tokenizer.json there"
            )
        return str(path), {}
    why_not = "" if _names_a_path(source) else _missing_on_hub(source)
    if why_not is not None:
        known, meant = ", ".join(registry.MODELS), did_you_mean(str(config.model), registry.MODELS)
        said = f": no such folder or file: {config.model}{why_not}{meant} (named models: {known})"
        raise RlifError(Argument("model"), said)
    return source, {}


def _names_a_path(source: str) -> bool:
    """Whether what is not there can only have been a folder: OWNER/NAME may be a hub id, unless OWNER lies here."""
    path = expanded(source)
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
    except RlifError:
        raise
    except HFValidationError:
        return ""
    except HfHubHTTPError as error:
        return f", nor can the hub give it ({_reason(error)})"
    except Exception as error:  # whatever the HTTP client raises when there is no network
        return f", and the hub cannot be reached ({_reason(error)})"
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


def assemble(model: Any, tokenizer: Any, config: PolicyConfig) -> Policy:
    """A model that is there, with its tokenizer, as a policy.

    Raises `RlifError` if it has no EOS token, if its tokenizer does not fit, or if it has no chat template where one
    was asked for.
    """
    eos_ids = checks.eos_ids_of(str(config.model), model, tokenizer)
    tokens = checks.check_tokenizer(str(config.model), model, tokenizer)
    text_config = model.config.get_text_config(decoder=True)
    pad = tokenizer.pad_token_id
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=pad if pad is not None else min(eos_ids),
        vocab_size=min(tokens, text_config.vocab_size),
        context=getattr(text_config, "max_position_embeddings", None),
        chat_template=_uses_template(tokenizer, config),
        source=str(config.model),
    )


def _uses_template(tokenizer: Any, config: PolicyConfig) -> bool:
    if config.chat_template == "off":
        return False
    try:
        template = chat_templates.template_of(tokenizer)
    except ValueError as error:
        raise RlifError(Argument("chat_template"), f": {config.model}: {brief(str(error))}; set it to off") from error
    if config.chat_template == "on" and template is None:
        raise RlifError(Argument("chat_template"), f": {config.model} has no chat template; set it to off")
    return template is not None
