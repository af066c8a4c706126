"""A rollout function for TRL: our engine samples the model that trains, and what it saw rides along to the rewards.

The rewards then make no pass. Random numbers are keyed by (seed, step, tokens of the prompt, sample), so neither the
number of processes nor how groups are split over them changes what is drawn.
"""

from collections.abc import Sequence
from typing import Any

from rlif.errors import RlifError, named
from rlif.integrations.trl_batch import RECORDED, Recorded, rows_before, runs_of, sampling_of, tokenized
from rlif.integrations.trl_scoring import check_layout, gathered_copy, is_sharded
from rlif.model.in_training import policy_of, sampling_mode
from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Rollouts, TokenSignals

_NAMES = {"max_new_tokens": "max_completion_length", "prompt": "prompt", "model": "model"}


class EngineRollouts:
    """For ``GRPOTrainer(rollout_func=…)``: completions by `rlif.Engine`, as the GRPOConfig says.

    ``max_rows`` and ``cuda_graphs`` are the engine's. The model is sampled from in the dtype of its weights, whatever
    autocast the update runs under. Of a model that FSDP2 has sharded each rank keeps a whole copy to sample from.

    Raises `RlifError`, in the call, for what it cannot honour: vLLM, tools, images, ``min_p`` and their like; for a
    prompt that does not fit into the context.
    """

    __name__ = "engine_rollouts"

    def __init__(self, *, max_rows: int | None = None, cuda_graphs: bool = False) -> None:
        self._options: dict[str, Any] = {"max_rows": max_rows, "cuda_graphs": cuda_graphs}
        self._copy: Any = None
        self._known: tuple[Any, Policy] | None = None
        self._calls: tuple[str, int] = "", 0

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """What TRL asks of a rollout function, and the field `RECORDED` for the rewards; a row for each prompt."""
        _check(trainer)
        sampling = sampling_of(trainer.args)
        policy = self._adopted(trainer)
        rows = tokenized(policy, prompts, trainer.args.chat_template_kwargs)
        runs = runs_of(rows, rows_before([row.id for row in rows], trainer.accelerator.process_index))
        key = self._key(trainer)  # while the model still says whether it trains
        with sampling_mode(policy.model), named(_NAMES):
            rollouts = Engine(policy, **self._options).sample(
                runs.prompts,
                group_size=runs.size,
                sampling=sampling,
                key=key,
                first_sample=runs.first_sample,
            )
        return _as_fields(rollouts)

    def _adopted(self, trainer: Any) -> Policy:
        """The policy to sample from: the trainer's model itself, or this rank's copy of one that is sharded."""
        check_layout(trainer.model)
        model = trainer.model
        if is_sharded(model):
            model = self._copy = gathered_copy(model, self._copy)
        if self._known is None or self._known[0] is not model:
            self._known = model, policy_of(model, trainer.processing_class)
        return self._known[1]

    def _key(self, trainer: Any) -> Key:
        """By the step, and by which generation within it; evaluation draws from streams of its own."""
        step = f"{'train' if trainer.model.training else 'eval'}/{trainer.state.global_step}"
        self._calls = step, self._calls[1] + 1 if self._calls[0] == step else 0
        return Key(trainer.args.seed, f"{step}/{self._calls[1]}")


def _check(trainer: Any) -> None:
    refused = (
        (trainer.use_vllm, "use_vllm=True", "switch it off, or leave out rollout_func: InternalReward scores vLLM's"),
        (bool(trainer.tools), "tools", "leave out rollout_func"),
        (not hasattr(trainer.processing_class, "get_vocab"), "a processor of images", "give a tokenizer"),
    )
    for found, what, remedy in refused:
        if found:
            raise RlifError(f"EngineRollouts: {what} is not what it samples with; {remedy}")


def _as_fields(rollouts: Rollouts) -> dict[str, Any]:
    masks = rollouts.mask
    completions = [rollouts.tokens[row][masks[row]].tolist() for row in range(rollouts.n_rows)]
    return {
        "prompt_ids": [list(prompt.token_ids) for prompt in rollouts.row_prompts],
        "completion_ids": completions,
        "logprobs": [rollouts.sampler_logprobs[row][masks[row]].tolist() for row in range(rollouts.n_rows)],
        RECORDED: [
            Recorded(tuple(ids), TokenSignals(*(values[row][masks[row]] for values in rollouts.signals)))
            for row, ids in enumerate(completions)
        ],
    }
