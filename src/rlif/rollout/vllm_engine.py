"""vLLM as the engine: it runs the model, we draw.

What was decided, and why:

1. **In this process.** vLLM is installed beside rlif and started inside of it, one worker, no server. Weights are
   handed over as tensors, signals are read from its logits where they lie, and a run has nothing else to start.
   So one GPU, and no run of several ranks.
2. **We draw, not vLLM** (`rlif.rollout.vllm_draw`): a logits processor draws each token from the raw logits by the same
   code and random numbers as `rlif.rollout.engine`, and leaves vLLM one token to choose. So temperature, top-p, top-k,
   stop strings, log-probabilities and signals mean the same, and a completion is a function of (seed, step, prompt,
   sample) and the logits. These differ by rounding, with the batch and with vLLM's version: where a random number lies
   within rounding of the boundary between two tokens, a completion goes another way.
3. **Weights before every call.** vLLM takes the policy's weights, in its compute type, whenever they are not those that
   it has; an adapter is merged. The training loop tells it nothing.
4. **It sees a folder with a config, no weights and no tokenizer**: so a policy from a hub id, a .gguf, a merge or a
   checkpoint is the same to it.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlif.config import RolloutConfig
from rlif.errors import Argument, RlifError, brief
from rlif.model import checks
from rlif.model.lora import merged
from rlif.model.policy import Policy
from rlif.rollout.engine import Engine, SamplerError
from rlif.rollout.prompts import check_context
from rlif.rollout.recorder import Recorder
from rlif.rollout.vllm_draw import ROW, Drawing
from rlif.utils.packages import require

_LEAST, _BELOW = "0.32", "1"  # the release that this was written against and is tested with
_ROOM = 2048  # tokens of a text that vLLM is started for, at least: for longer ones it is started again
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its one worker is this process
    "VLLM_NO_USAGE_STATS": "1",  # it would report to its makers
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are ours as well
}


class VllmEngine(Engine):
    """Samples from a policy by vLLM; `sample` and `groups` are those of `rlif.rollout.engine.Engine`.

    Of several in a process, policies of one shape share one vLLM, which takes the weights of whichever samples.
    ``config``: of a recipe's section rollout what says how vLLM is started (`VllmConfig`), and ``max_rows``. Raises
    `RlifError` if vLLM is missing, of another version, or does not start with this model.
    """

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        self.version = require("vllm", also=("vllm-cpu",), least=_LEAST, below=_BELOW, extra="vllm")
        if policy.device.type == "cuda" and policy.device.index not in (None, 0):
            raise RlifError(
                Argument("device"),
                f": {policy.device}, but vLLM samples on the first GPU that it sees; take cuda, with "
                f"CUDA_VISIBLE_DEVICES={policy.device.index}",
            )
        self.policy, self._config = policy, config
        try:
            self._server(2 * config.max_new_tokens)  # what vLLM cannot do is found now, not at the first step
        except SamplerError as error:
            raise RlifError(Argument("engine"), f": {error}; set it to native") from error

    @property
    def facts(self) -> Mapping[str, str]:
        return {"engine": f"vllm {self.version}"}

    def close(self) -> None:
        _stop()

    def steps(self, recorder: Recorder) -> Iterator[int]:
        prompts, sampling = recorder.prompts, recorder.sampling
        check_context(self.policy, prompts, sampling.max_new_tokens)
        longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
        server = self._server(longest + sampling.max_new_tokens)
        server.take(self.policy)
        yield from server.draw(recorder, self.policy.eos_ids)

    def _server(self, columns: int) -> "Server":
        """The vLLM of this process, started (again) if it is not for models of this shape, or for shorter texts."""
        global _running
        limit = self.policy.context
        columns = max(_ROOM, 1 << (columns - 1).bit_length())
        columns = columns if limit is None else min(columns, limit)
        shape = (_config_json(self.policy), self._config.vllm, self._config.max_rows)
        if _running is None or _running.shape != shape or _running.columns < columns:
            _stop()
            _running = Server(self.policy, self._config, columns, shape)
        return _running


_running: "Server | None" = None
"""One in a process: it takes its share of the memory when it starts."""


def _stop() -> None:
    global _running
    if _running is not None:
        _running.stop()
    _running = None


class Server:
    """vLLM in this process, for policies of one shape and texts of at most ``columns`` tokens.

    Raises `SamplerError` if it does not start.
    """

    def __init__(self, policy: Policy, config: RolloutConfig, columns: int, shape: tuple[Any, ...]) -> None:
        self.shape, self.columns = shape, columns
        self._drawing = Drawing(policy.vocab_size)
        self._sleeps = config.vllm.sleep and policy.device.type == "cuda"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(shape[0], "utf-8")
            try:
                with _vllm_in_process():
                    self._engine = _start(folder, self._drawing, _arguments(policy, config, columns))
            except (torch.OutOfMemoryError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise SamplerError(f"vLLM does not start with {policy.source} ({_said(error)})") from error

    def take(self, policy: Policy) -> None:
        """Give vLLM the policy's weights, and have it forget what it computed with others."""
        plain = policy if policy.adapter is None else merged(policy)
        with self._failure_told():
            if self._sleeps and self._engine.is_sleeping():
                self._engine.wake_up()
            weights = {"weights_iterator": plain.model.named_parameters()}
            self._engine.collective_rpc("reload_weights", kwargs=weights)
            self._engine.apply_model(_settle_head)
            self._engine.reset_prefix_cache()

    def draw(self, recorder: Recorder, eos_ids: tuple[int, ...]) -> Iterator[int]:
        """Draw what the recorder is to hold; yields the number of tokens drawn after each step of vLLM."""
        if self._drawing.recorder is not None:
            raise RlifError(Argument("engine"), ": vLLM is drawing already; finish or close what draws first")
        self._drawing.recorder = recorder
        under_way: set[str] = set()
        finished: dict[int, list[int]] = {}
        try:
            with self._failure_told():
                for row in range(recorder.n_rows):
                    under_way.add(self._add(recorder, row, eos_ids))
            while under_way:
                with self._failure_told():
                    outputs = self._engine.step()
                drawn = recorder.sync()
                for output in outputs:
                    if output.finished:
                        under_way.discard(output.request_id)
                        finished[int(output.request_id)] = list(output.outputs[0].token_ids)
                    elif recorder.finished[int(output.request_id)]:  # a stop string, of which vLLM knows nothing
                        under_way.discard(output.request_id)
                        self._engine.abort_request([output.request_id])
                yield drawn
            if not bool(recorder.finished.all()):
                raise SamplerError("vLLM has ended a completion that was not finished")
            _check_same(recorder.completions(), finished)
        finally:
            self._drawing.recorder = None
            with suppress(Exception):  # of a vLLM that has failed
                self._engine.abort_request(list(under_way))
                if self._sleeps:
                    self._engine.sleep(level=2)

    def stop(self) -> None:
        """Free what vLLM holds."""
        with suppress(Exception):
            self._engine.engine_core.shutdown()

    def _add(self, recorder: Recorder, row: int, eos_ids: tuple[int, ...]) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, prompt = recorder.sampling, recorder.owners[row].token_ids
        params = SamplingParams(
            temperature=0.0,  # one token is left to choose
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(eos_ids),
            ignore_eos=True,  # of the config: those of the policy count
            detokenize=False,
            extra_args={ROW: (row, len(prompt))},
            output_kind=RequestOutputKind.DELTA if sampling.stop else RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(str(row), {"prompt_token_ids": list(prompt)}, params)
        return str(row)

    @contextmanager
    def _failure_told(self) -> Iterator[None]:
        """Whatever vLLM raises is one line. It is not used again."""
        try:
            yield
        except (torch.OutOfMemoryError, FloatingPointError, RlifError):
            raise
        except Exception as error:
            _stop()
            raise SamplerError(f"vLLM failed ({_said(error)})") from error


def _check_same(drawn: list[list[int]], found: Mapping[int, list[int]]) -> None:
    """Raise `SamplerError` unless vLLM went on from the tokens that were drawn for it; those of rows that were ended by
    a stop string are not told."""
    for row, tokens in found.items():
        if tokens[-len(drawn[row]) :] != drawn[row][-len(tokens) :]:
            raise SamplerError(f"vLLM went on from other tokens than were drawn for it (row {row})")


def _settle_head(model: nn.Module) -> None:
    """Have a head that is tied to the embedding look at its new weights: on a CPU vLLM 0.32 keeps a copy of the old
    ones, laid out for the matrix product, because none were loaded under the head's own name."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _start(folder: str, drawing: Drawing, arguments: Mapping[str, Any]) -> Any:
    """vLLM over a folder with a config, its logits processor of ours. Its imports take seconds."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    from rlif.rollout.vllm_processors import processor_v1, processor_v2

    config = EngineArgs(model=folder, **arguments).create_engine_config()
    make = processor_v2 if config.use_v2_model_runner else processor_v1
    config.model_config.logits_processors = [make(drawing)]
    return LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)


def _arguments(policy: Policy, config: RolloutConfig, columns: int) -> dict[str, Any]:
    """How vLLM is started. Source: EngineArgs of vllm/engine/arg_utils.py."""
    dtype = next(policy.model.parameters()).dtype
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": columns,
        "distributed_executor_backend": "uni",
        "load_format": "dummy",  # weights are handed over
        "skip_tokenizer_init": True,  # prompts are tokens, and so are answers
        "generation_config": "vllm",  # no sampling defaults out of files
        "disable_log_stats": True,
        "async_scheduling": False,  # nothing is scheduled ahead of what is drawn
        "enforce_eager": config.vllm.eager,
        "gpu_memory_utilization": config.vllm.memory,
        "enable_sleep_mode": config.vllm.sleep and policy.device.type == "cuda",
        **({} if config.max_rows is None else {"max_num_seqs": config.max_rows}),
    }


def _config_json(policy: Policy) -> str:
    """The config of a policy's model as vLLM reads it: of its class, ties as they are."""
    model: Any = policy.model
    checks.state_tie(model)
    known = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    return json.dumps(known, sort_keys=True, default=str)


@contextmanager
def _vllm_in_process() -> Iterator[None]:
    """vLLM is imported and started quietly, and leaves PyTorch's threads to us (on a CPU it would replace the function
    that sets their number)."""
    os.environ.update(_ENVIRONMENT)
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what its imports find on this machine
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)


def _said(error: Exception) -> str:
    return brief(str(error) or type(error).__name__)
