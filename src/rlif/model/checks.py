"""A model as transformers loads it, held against its files: what was left out, made up, or cannot be said for sure."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlif.errors import Argument, RlifError, brief
from rlif.model.files import DamagedFileError, ModelFiles, check_tokenizer_files

_HARMLESS: Mapping[str, str] = {
    r"(^|\.)rotary_emb\.(original_)?inv_freq$": "frequencies of rotary positions, which the config says as well",
    r"(^|\.)position_ids$": "0, 1, 2 …: older versions of transformers kept it",
    r"(^|\.)attn\.(masked_)?bias$|(^|\.)attention\.(masked_)?bias$": "the causal mask, as GPT-2 and GPT-NeoX kept it",
    r"_extra_state$": "what Transformer Engine notes beside its weights",
    r"\.(k|v)_scale$": "how another engine quantises its key-value cache",
}
"""Stored tensors that no module asks for and nothing is lost with: pattern to reason.

Besides these, what an architecture declares itself (`_keys_to_ignore_on_load_unexpected` in transformers: heads for
several tokens at once, towers for images) is passed over by transformers before we see it.
"""

_MOST_TIMES = 2
"""A tied matrix may be stored once and counted twice; no config describes more than that of what is stored."""
_BUFFERS = 1 << 28
"""Elements of buffers (masks, tables of positions) that a model may build without any weights for them."""


def check_fit(source: str, location: str, files: ModelFiles) -> None:
    """Raise `RlifError` if config.json describes another model than the weights are of.

    The model is built without memory for its weights (on torch's meta device), so nothing is allocated that a wrong
    number asks for. Weights that are packed or renamed on the way are left to the loading itself.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if files.quantised:
        _check_method(files)
        return
    if not files.tensors:
        return
    config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _check_shapes(source, model, files)
    stored = sum(_size(tensor.shape) for tensor in files.tensors.values())
    described = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if described > _MOST_TIMES * stored or buffers > _BUFFERS + stored:
        raise RlifError(
            Argument("model"),
            f": config.json of {source!r} describes {described:,} parameters and {buffers:,} numbers "
            f"beside them, the weights hold {stored:,}; fix config.json",
        )


def check_files(folder: Path) -> None:
    """`check_configs`, and the same of a tokenizer's files: a tokenizer goes by the config, too."""
    check_configs(folder)
    check_tokenizer_files(folder)


def check_configs(folder: Path) -> None:
    """Raise `DamagedFileError` for a config.json or generation_config.json that transformers cannot read."""
    from transformers import AutoConfig, GenerationConfig

    for name, kind in (("config.json", AutoConfig), ("generation_config.json", GenerationConfig)):
        if (folder / name).exists():
            try:
                kind.from_pretrained(folder, trust_remote_code=False)
            except Exception as error:
                if "trust_remote_code" not in str(error):
                    raise DamagedFileError(folder / name, str(error) or type(error).__name__) from error


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _check_method(files: ModelFiles) -> None:
    """transformers would take packed weights of a method it does not know for values, with a warning."""
    from transformers.quantizers import auto

    packing, known = files.config["quantization_config"], getattr(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING", None)
    method = packing.get("quant_method") if isinstance(packing, Mapping) else None
    if known is not None and files.folder is not None and not (isinstance(method, str) and method in known):
        reason = f"quantization_config is of the method {method!r}, which transformers does not know"
        raise DamagedFileError(files.folder / "config.json", reason)


def _check_shapes(source: str, model: nn.Module, files: ModelFiles) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(files.tensors.keys() & expected.keys()):
        if (found := files.tensors[name].shape) != expected[name]:
            raise _misfit(source, name, found, expected[name], files.tensors[name].file)


def _misfit(source: str, name: str, found: Any, expected: Any, file: str = "") -> RlifError:
    where = f" in {file}" if file not in ("", "model.safetensors") else ""  # of several files: in which
    return RlifError(
        Argument("model"),
        f": the weights of {source!r} do not fit its config.json: {brief(name)} "
        f"is {tuple(found)}{where}, expected {tuple(expected)}",
    )


def check_loaded(source: str, model: Any, info: Mapping[str, Any], files: ModelFiles) -> None:
    """Raise `RlifError` for weights that were not there, had no place, or whose use is unclear.

    ``info`` is what transformers tells of the loading. It would go on with random weights for those that are missing
    or do not fit, and without those it has no place for.
    """
    if info["mismatched_keys"]:
        raise _misfit(source, *sorted(info["mismatched_keys"])[0])
    if info["missing_keys"]:
        first, *others = sorted(info["missing_keys"])
        raise RlifError(Argument("model"), f": {source!r} lacks the weights {brief(first)} and {len(others)} more")
    harmless = re.compile("|".join(_HARMLESS))
    if left := sorted(name for name in info["unexpected_keys"] if not harmless.search(name)):
        where = f" in {files.tensors[left[0]].file}" if left[0] in files.tensors else ""
        raise RlifError(
            Argument("model"),
            f": the weights of {source!r} hold {brief(left[0])}{where} and {len(left) - 1} more that "
            "its config.json has no place for (fewer layers, or another architecture?); fix config.json, or take them "
            "out of the file",
        )
    if says_tied(model) and not is_tied(model):
        raise RlifError(
            Argument("model"),
            f": config.json of {source!r} says tie_word_embeddings, but the weights hold two matrices that "
            "differ: which of them is the output is unclear; set it to false to use both, or take one out of the file",
        )


def says_tied(model: Any) -> bool:
    """Whether the config says that input and output embedding are one matrix."""
    texts = (model.config.get_text_config(decoder=True), model.config)
    return any(getattr(config, "tie_word_embeddings", False) is True for config in texts)


def is_tied(model: Any) -> bool:
    """Whether input and output embedding are one matrix; True for a model that has only one of them."""
    output = model.get_output_embeddings()
    return output is None or output.weight is model.get_input_embeddings().weight


def state_tie(model: Any) -> None:
    """Let the config say of the tie what is so: whoever loads a saved folder goes by it."""
    if says_tied(model) != is_tied(model):
        for config in (model.config.get_text_config(decoder=True), model.config):
            config.tie_word_embeddings = is_tied(model)


def check_tokenizer(source: str, model: Any, tokenizer: Any) -> int:
    """How many ids the tokenizer has, from 0 to its largest.

    Raises `RlifError` if it can make ids beyond the rows of the embedding, which would end in an error of an index in
    the middle of a run.

    A special token that neither the tokenizer's settings nor its chat template name can only come from its own name in
    a question (Gemma 3 has one for images): it is refused when it does (`rlif.model.policy.Policy.encode_text`).
    """
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()  # once: it is made anew each time
    beyond = {token: i for token, i in vocabulary.items() if i >= rows}
    if not vocabulary:
        raise RlifError(Argument("model"), f": the tokenizer of {source!r} has no tokens; put its tokenizer.json there")
    special = set(map(str, tokenizer.all_special_tokens))
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    named = {str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
    template = str(getattr(tokenizer, "chat_template", None) or "")

    def unused(token: str) -> bool:
        is_special = token in added and (added[token].special or token in special)
        return is_special and token not in named and token not in template

    if found := {token: i for token, i in beyond.items() if not unused(token)}:
        token = max(found, key=lambda name: found[name])
        raise RlifError(
            Argument("model"),
            f": the tokenizer of {source!r} has ids up to {found[token]} ({brief(token)!r}), the "
            f"embedding only {rows} rows; resize the embedding (resize_token_embeddings) or take back the added tokens",
        )
    return int(max(vocabulary.values())) + 1


def eos_ids_of(source: str, model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a completion: those of the generation config and that of the tokenizer, in order.

    Raises `RlifError` if there is none, or one that is no token of the model.
    """
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = [*(eos if isinstance(eos, list | tuple) else [eos]), tokenizer.eos_token_id]
    rows = model.get_input_embeddings().weight.shape[0]
    for one in found:
        if one is not None and (not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < rows):
            raise RlifError(
                Argument("model"),
                f": eos_token_id of {source!r} holds {brief(repr(one))}, which is no id of its {rows} "
                "tokens; fix generation_config.json or config.json",
            )
    if not (ids := {one for one in found if one is not None}):
        raise RlifError(Argument("model"), f": {source} names no EOS token; name one in its generation config")
    return tuple(sorted(ids))
