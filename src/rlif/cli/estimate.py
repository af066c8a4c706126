"""`rlif estimate`: the cost model of `rlif.analysis.cost`, for a recipe, in a few lines."""

from collections.abc import Sequence
from pathlib import Path

from rlif.analysis.cost import Cost, Work, cost, engine_rows
from rlif.analysis.hardware import DEVICES, SHAPES, Device, Shape
from rlif.config import MergedModel, Recipe
from rlif.errors import RlifError, nearest
from rlif.model import registry
from rlif.model.files import ADAPTER_CONFIG, DamagedFileError, read_object
from rlif.recipes import find_recipe, load_recipe
from rlif.utils.durations import duration
from rlif.utils.paths import expanded
from rlif.utils.terminal import say


def print_estimate(
    path: Path,
    overrides: Sequence[str],
    on: tuple[str, int],
    *,
    tokens: float | None = None,
    prompt_tokens: float = 300.0,
    price: float | None = None,
) -> None:
    """Memory, seconds, tokens a second and device hours of a recipe, on so many devices of a name.

    Raises `RlifError` for an unknown device, for more devices than share a step, and where the shape of the recipe's
    model is not known.
    """
    recipe, (name, count) = load_recipe(find_recipe(path), overrides), on
    if name not in DEVICES:
        raise RlifError(f"--device {name}: none known; did you mean {nearest(name, DEVICES)}? ({', '.join(DEVICES)})")
    if recipe.rollout.prompts % count:
        raise RlifError(f"--count {count}: rollout.prompts, {recipe.rollout.prompts}, must be a multiple of it")
    if tokens is not None and tokens > recipe.rollout.max_new_tokens:
        raise RlifError(f"--tokens {tokens:g}: more than rollout.max_new_tokens, {recipe.rollout.max_new_tokens}")
    device, shape = DEVICES[name], shape_of(_base(recipe))
    if count > device.a_machine and not device.network:
        raise RlifError(f"--count {count}: how {name} reach each other is not known; give 1")
    work = Work.of(recipe, device, prompt_tokens=prompt_tokens, tokens=tokens)
    if count > 1 and work.vllm is not None:
        raise RlifError(f"--count {count}: vllm samples in a run of one process; give 1, or rollout.engine=native")
    found = cost(shape, work, device, count)
    trained = f"an adapter of rank {work.lora}" if work.lora else "all weights"
    say(f"{recipe.policy.model}: {_count(shape.parameters)} parameters, {trained}, {8 * work.width} bits")
    say(f"{work.prompts} × {work.group} completions of {work.tokens:g} tokens, prompts of {prompt_tokens:g}")
    say(f"{count} × {device.name}; from its data sheet and assumed shares of it, nothing measured (docs/cost.md)")
    say()
    for line in (*_memory(found), *_sampler(work, device), *_remedies(shape, work, device, found)):
        say(line)
    if found.memory.fits:
        for line in _times(recipe, found, price):
            say(line)


def _memory(found: Cost) -> list[str]:
    m = found.memory
    return [
        f"memory    {_gb(m.peak)} of {_gb(m.usable)} GB a device: rollout {_gb(m.rollout)} + cache {_gb(m.cache)} "
        f"({m.rows} rows), update {_gb(m.update)}"
    ]


def _sampler(work: Work, device: Device) -> list[str]:
    """What is and is not known of a sampler that is not ours."""
    if work.vllm is None:
        return []
    kept = "sleeps in the update" if work.vllm_sleeps else "keeps it in the update"
    return [
        f"vLLM      takes {_gb(work.vllm * device.memory)} GB, weights and cache (rollout.vllm.memory={work.vllm:g}), "
        f"and {kept}; times are those of our engine: vLLM's have not been measured (docs/vllm.md)"
    ]


def _remedies(shape: Shape, work: Work, device: Device, found: Cost) -> list[str]:
    """What to change where it does not fit, or where the engine would take more rows than there is room for."""
    if not found.memory.fits:
        ways = [] if work.lora else ["policy.lora={}"]
        ways += [] if work.lora or work.vllm else ["more devices, which share masters and moments"]
        ways += [] if work.checkpointing else ["grpo.gradient_checkpointing=true"]
        ways += ["a smaller grpo.micro_batch_tokens"] if found.memory.update > found.memory.usable else []
        if not work.lora and (work.reference or work.frozen_start):
            ways += ["grpo.kl_coef=0 probe.start=false, which keep no frozen copy"]
        if work.vllm:
            ways += [f"a {'smaller' if found.memory.rows else 'larger'} rollout.vllm.memory", "rollout.engine=native"]
        return [f"          it does not fit; try {'; '.join(ways)}; or FSDP by TRL (docs/scaling.md)"]
    if work.vllm:
        return []  # it takes as many rows as its cache has room for
    taken = min(engine_rows(shape, work, device), -(-work.prompts * work.group // found.devices))
    if taken > found.memory.rows:
        return [f"          set rollout.max_rows={found.memory.rows}: the engine would take {taken} rows"]
    return []


def _times(recipe: Recipe, found: Cost, price: float | None) -> list[str]:
    run = found.seconds * recipe.steps
    hours = run * found.devices / 3600
    paid = "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"
    return [
        f"a step    {_s(found.seconds)} s: prefill {_s(found.prefill)}, decoding {_s(found.decode)}, "
        f"update {_s(found.update)}, exchange {_s(found.exchange)}",
        f"tokens    {found.tokens_a_second:,.0f} a second",
        f"longest   {found.bound}",
        f"{recipe.steps} steps  {duration(run)}, {hours:.3g} device hours{paid}; evaluations and probe come on top",
    ]


def _base(recipe: Recipe) -> str:
    model = recipe.policy.model
    return model.merge.base if isinstance(model, MergedModel) else model


def shape_of(source: str) -> Shape:
    """The shape of a model by name, hub id or folder. Raises `RlifError` where no config.json of it lies here."""
    if source in SHAPES:
        return SHAPES[source]
    folder = expanded(registry.resolve(source))
    if not folder.is_dir():
        folder = _in_hub_cache(source) or folder
    try:
        if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
            return shape_of(str(read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")))
        if (folder / "config.json").is_file():
            return Shape.from_config(read_object(folder / "config.json"), where=str(folder / "config.json"))
    except DamagedFileError as error:
        raise RlifError(str(error)) from error
    raise RlifError(
        f"policy.model: no config.json of {source} lies here; give a folder that has one, a model that the hub's cache "
        f"has, or one of {', '.join(SHAPES)}"
    )


def _in_hub_cache(source: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def _gb(size: float) -> str:
    return f"{size / 1e9:.0f}" if size >= 1e10 else f"{size / 1e9:.2g}"


def _s(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
