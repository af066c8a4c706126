"""An adapter in a run: how a policy gets one, and where its start lies (`rlif.model.lora`, recipe key policy.lora)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlif.config import Recipe
from rlif.errors import Argument, RlifError
from rlif.model.adapter_files import AdapterFiles, check_base, load_factors, read_adapter
from rlif.model.fingerprint import base_mark
from rlif.model.loading import adapter_named, load_base, load_policy
from rlif.model.lora import sharing_frozen, with_adapter, without_adapter
from rlif.model.merge import model_source
from rlif.model.policy import Policy
from rlif.model.registry import resolve
from rlif.training.optim import MasterOptimizer


def adapted_policy(recipe: Recipe, checkpoint: Path | None = None) -> Policy:
    """The policy of a recipe with policy.lora: its base in compute type, and an fp32 adapter that can be trained.

    The adapter is that of ``checkpoint``, else the one that policy.model is, else a new one, drawn from the run's seed.
    Raises `RlifError` for an adapter that the recipe describes otherwise, and for targets that the model lacks.
    """
    config, lora, given = recipe.policy, recipe.policy.lora, adapter_named(recipe.policy)
    assert lora is not None, "policy.lora is not set"
    _check(recipe, given)
    policy = load_policy(config) if given is None else load_base(config, given)
    base = str(model_source(config.model)) if given is None else given.base
    mark = check_base(policy.model, given) if given is not None else base_mark(policy.model)
    policy = with_adapter(policy, lora, base=resolve(base), mark=mark, seed=recipe.seed)
    if (files := read_adapter(checkpoint) if checkpoint else given) is not None:
        load_factors(policy, files)
    return replace(policy, source=str(config.model))


def start_of(recipe: Recipe, policy: Policy) -> Policy:
    """The policy of `adapted_policy` as it was before the first step: it shares the base, and owns no weights but those
    of an adapter that the run began with."""
    if (given := adapter_named(recipe.policy)) is None:
        return replace(policy, model=without_adapter(policy.model), adapter=None)
    start = replace(policy, model=sharing_frozen(policy.model))
    load_factors(start, given)
    return start


def start_for_merge_back(optimizer: MasterOptimizer) -> Mapping[str, Tensor]:
    """θ₀ for `rlif.training.optim.merge_back`, where it is the base: B is 0 there, and A stays what it is.

    So W + s B A goes to W + s (1 − ρ) B A, which is (1 − ρ) of the way of every weight.
    """
    masters = {name: master.detach() for name, master in optimizer.named_masters().items()}
    return {name: master if name.endswith("lora_A") else torch.zeros_like(master) for name, master in masters.items()}


def _check(recipe: Recipe, given: AdapterFiles | None) -> None:
    if given is None:
        return
    if given.other is not None:
        raise RlifError(
            Argument("model"),
            f": the adapter in {given.folder} is no plain LoRA ({given.other}) and cannot be trained on; merge it with "
            "its base first (peft: merge_and_unload), or take out policy.lora to train all weights",
        )
    if recipe.guards.merge_back is not None:
        raise RlifError(
            "guards.merge_back: policy.model is an adapter, and what lies between it and the trained one is none of "
            "its rank; take merge_back out, or merge the adapter with its base first"
        )
