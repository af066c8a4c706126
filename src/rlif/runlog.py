"""The run folder: what a run was told, what it measured, what the model said.

    recipe.yaml                       the resolved recipe
    run.json                          versions, commit, machine, start time
    metrics.jsonl                     one JSON line a step, append-only; every key stands in `METRICS`
    rollouts/step-000001.parquet      completions with per-token signals, verdicts, rewards
    checkpoints/, final/              see rlif.checkpoint
    .lock                             held by the process at work here (rlif.disk)

A line or a file is whole or absent, also after a kill or on a full disk. ``python -m rlif.runlog`` prints
docs/metrics.md. A new metric is one line in `METRICS`.
"""

import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rlif
from rlif.config import Recipe, dump_recipe
from rlif.cpu import kernels
from rlif.disk import LOCK, one_line, write_whole, writing
from rlif.errors import RlifError
from rlif.recipes import RECIPE
from rlif.types import Scored

INFO, METRICS_FILE, ROLLOUTS = "run.json", "metrics.jsonl", "rollouts"
_APPEND = os.O_WRONLY | os.O_APPEND


class Metric(NamedTuple):
    """A key of metrics.jsonl: its unit, and what the number means."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("steps", "rollout-and-update steps done; 0 is the policy before training"),
    "time": Metric("s", "wall-clock time since the run's start"),
    "time/rollout": Metric("s", "sampling the step's completions, signals included"),
    "time/score": Metric("s", "grading, rewards and advantages"),
    "time/update": Metric("s", "losses, gradients and optimizer steps"),
    "time/watch": Metric("s", "looking at entropy before and after the update (log.entropy_share)"),
    "time/eval": Metric("s", "the evaluation at this step"),
    "tokens/prompt": Metric("tokens", "prompt tokens of the step, each prompt counted once"),
    "tokens/completion": Metric("tokens", "completion tokens of the step, EOS included"),
    "tokens/total": Metric("tokens", "completion tokens since the run's start"),
    "tokens_per_second/rollout": Metric("tokens/s", "completion tokens over rollout time"),
    "reward/<name>/mean": Metric("reward", "mean of the named reward over rows, before it is normalised"),
    "reward/<name>/std": Metric("reward", "standard deviation of the named reward over rows"),
    "advantage/std": Metric("advantage", "standard deviation of the advantages over rows"),
    "advantage/zero_groups": Metric(
        "share", "groups whose advantages are all zero; without a KL term the update leaves them out"
    ),
    "signal/self_certainty": Metric("nats", "KL(uniform, policy) at temperature 1, mean over completion tokens"),
    "signal/entropy": Metric("nats", "entropy of the policy at temperature 1, mean over completion tokens"),
    "signal/logprob": Metric("nats", "log-probability of the drawn tokens at temperature 1, mean over them"),
    "length/mean": Metric("tokens", "mean completion length, EOS included"),
    "length/max": Metric("tokens", "longest completion, EOS included"),
    "stop/eos": Metric("share", "completions that ended with an EOS token"),
    "stop/stop_string": Metric("share", "completions that ended with a stop string"),
    "stop/length": Metric("share", "completions cut off at the length limit"),
    "verdict/right": Metric("share", "right answers, in whatever form; an undecided answer is not right"),
    "verdict/formatted": Metric("share", "answers in the form that was asked for, right or wrong"),
    "verdict/right_and_formatted": Metric("share", "answers both right and in the form that was asked for"),
    "verdict/undecided": Metric(
        "share", "answers without a verdict: not decided in time, or the problem has no label (1.0 in a task without)"
    ),
    "transitional/rate": Metric("words/token", "transitional words (but, wait, ...) per completion token"),
    "transitional/share": Metric("share", "completions with at least one transitional word"),
    "loss": Metric("nats", "the GRPO loss with its KL term, mean over the optimizer steps"),
    "grad_norm": Metric("norm", "global gradient norm before clipping, mean over the optimizer steps"),
    "entropy/predicted": Metric(
        "nats", "change of entropy by the update, −Cov(ln π, Δ ln π), a watched token; not if greedy, top-p or top-k"
    ),
    "entropy/predicted_stderr": Metric(
        "nats", "standard error of entropy/predicted over watched rows, within the watched prompts; from 2 rows"
    ),
    "entropy/measured": Metric("nats", "change of entropy by the update on the same states, mean over watched tokens"),
    "entropy/advantage_covariance": Metric(
        "nats", "Cov(ln π, A) in a state, mean over tokens; above 0: entropy falls; not if greedy, top-p or top-k"
    ),
    "lr": Metric("1", "learning rate of the last optimizer step"),
    "kl": Metric("nats", "k3 estimate of KL(policy, reference), mean over completion tokens"),
    "clip/fraction_low": Metric("share", "completion tokens whose ratio was clipped from below"),
    "clip/fraction_high": Metric("share", "completion tokens whose ratio was clipped from above"),
    "mismatch/mean": Metric(
        "nats",
        "mean gap of policy and sampler log-probability before the update, in what it ran; top-p, top-k off",
    ),
    "mismatch/max": Metric(
        "nats", "largest gap of policy and sampler log-probability before the update, in what it ran"
    ),
    "optimizer_steps": Metric("steps", "optimizer steps since the run's start"),
    "memory/peak_gb": Metric("GB", "peak memory since the run's start: of the GPU if one is used, else of the process"),
    "eval/right": Metric("share", "held-out right answers, in whatever form"),
    "eval/right_stderr": Metric("share", "standard error of eval/right over problems"),
    "eval/formatted": Metric("share", "held-out answers in the form that was asked for"),
    "eval/right_and_formatted": Metric("share", "held-out answers both right and in the form that was asked for"),
    "eval/right_and_formatted_stderr": Metric("share", "standard error of eval/right_and_formatted over problems"),
    "eval/undecided": Metric("share", "as verdict/undecided, of held-out answers; 1.0 in a task without labels"),
    "eval/entropy": Metric("nats", "entropy of the policy at temperature 1, mean over completion tokens"),
    "eval/self_certainty": Metric("nats", "KL(uniform, policy) at temperature 1, mean over completion tokens"),
    "eval/logprob": Metric("nats", "log-probability of the drawn tokens at temperature 1, mean over them"),
    "eval/length": Metric("tokens", "mean completion length, EOS included"),
    "eval/truncated": Metric("share", "completions cut off at the length limit"),
    "eval/self_agreement": Metric("share", "mean share of a problem's samples that give its most frequent answer"),
    "eval/transitional_rate": Metric("words/token", "transitional words per completion token"),
    "eval/transitional_share": Metric("share", "completions with at least one transitional word"),
    "eval/n": Metric("completions", "completions evaluated: problems times samples"),
    "eval/problems": Metric("problems", "distinct problems evaluated"),
}

_PAGE_HEAD = """# Metrics

Every key of `metrics.jsonl`, one line a step. `python -m rlif.runlog` prints this page from `rlif.runlog.METRICS`.

- `<name>` stands for any name, for example `reward/self_certainty/mean`.
- A share lies in [0, 1]. Keys under `eval/` are of the evaluation problems, at the steps that evaluate.
- A number that is not finite is written as `null`.
- Resuming from a checkpoint cuts the file back to the checkpoint's step first.
- TensorBoard, W&B and trackio (`log.sinks`) receive the same keys. A mirror that fails is reported once and switched
  off; the run and `metrics.jsonl` go on.

| key | unit | meaning |
|---|---|---|
"""


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    rows = (f"| `{key}` | {metric.unit} | {metric.meaning} |\n" for key, metric in METRICS.items())
    return _PAGE_HEAD + "".join(rows)


@cache
def find_metric(key: str) -> Metric | None:
    """What ``key`` means, None if `METRICS` does not know it; a ``<name>`` there matches any one path component."""
    matching = (metric for pattern, metric in METRICS.items() if re.fullmatch(_expression(pattern), key))
    return next(matching, None)


def _expression(pattern: str) -> str:
    return re.sub(r"<\w+>", "[^/]+", pattern)


class RunLog:
    """Writes one run's folder; made by `RunLog.create` or `RunLog.resume`. One writer a folder."""

    def __init__(self, out: Path, descriptor: int) -> None:
        self.out = out
        self._descriptor = descriptor

    @staticmethod
    def check_free(out: Path) -> None:
        """Raise `RlifError` unless ``out`` is a new or an empty folder; changes nothing."""
        if out.exists() and not out.is_dir():
            raise RlifError(f"{out}: a file, not a folder; choose another --out")
        if (out / RECIPE).exists() or (out / METRICS_FILE).exists():
            raise RlifError(_another_run(out))
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise RlifError(f"{out}: not empty; choose a new or an empty folder for --out")

    @classmethod
    def create(cls, out: Path, recipe: Recipe, *, info: Mapping[str, Any]) -> "RunLog":
        """Start a run in a new or empty folder: write recipe.yaml and run.json, open metrics.jsonl.

        ``info`` is what `collect_info` returns. Raises `RlifError` if the folder holds anything, above all another
        run, or cannot be written.
        """
        cls.check_free(out)
        with writing(out, "put that right, or choose another --out"):
            out.mkdir(parents=True, exist_ok=True)
            try:  # O_EXCL: of two runs started in one folder at the same moment, the second fails here
                descriptor = os.open(out / METRICS_FILE, _APPEND | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                raise RlifError(_another_run(out)) from None
            try:
                write_whole(out / RECIPE, dump_recipe(recipe).encode())
                write_whole(out / INFO, _json(info))
            except OSError:  # leave the folder as it was: a second try must not meet a run that never began
                os.close(descriptor)
                for name in (RECIPE, INFO, METRICS_FILE):
                    (out / name).unlink(missing_ok=True)
                raise
        return cls(out, descriptor)

    @classmethod
    def resume(cls, out: Path, step: int, *, info: Mapping[str, Any] | None = None) -> "RunLog":
        """Reopen a run at a checkpoint's step: metrics and rollouts of later steps are removed, they will come again.

        A half-written last line of metrics.jsonl is dropped. ``info`` (see `collect_info`) is added to run.json under
        ``resumed``, for other versions may give another run. Raises `RlifError` if the folder holds no run, or a line
        before the last of metrics.jsonl is damaged.
        """
        for name in (RECIPE, INFO, METRICS_FILE):
            if not (out / name).is_file():
                raise RlifError(f"{out}: no {name} here, so no run to resume; start one with rlif train RECIPE --out")
        path = out / METRICS_FILE
        kept = b"".join(line + b"\n" for record, line in _lines(path) if record["step"] <= step)
        with writing(path, _resume_later(out)):
            write_whole(path, kept)
            _remove_rollouts_after(out / ROLLOUTS, step)
            if info is not None:
                _add_resumption(out / INFO, step, info)
            return cls(out, os.open(path, _APPEND))

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Append one line, on the disk when this returns: the step, then ``metrics`` in their order.

        Numbers that are not finite become null. Raises ValueError for a key `METRICS` does not know; `RlifError` if
        the disk is full (no half line stays behind).
        """
        unknown = [key for key in metrics if key == "step" or find_metric(key) is None]
        if unknown:
            raise ValueError(f"not a key of rlif.runlog.METRICS to be given here: {', '.join(unknown)}")
        record = {"step": step, **{key: _number(value) for key, value in metrics.items()}}
        with writing(self.out / METRICS_FILE, _resume_later(self.out)):
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def write_rollouts(self, step: int, scored: Scored) -> None:
        """Write rollouts/step-NNNNNN.parquet: one row a completion, lists over its tokens.

        Columns: step, prompt_id, row, prompt, completion, tokens, logprob, entropy, self_certainty, sampler_logprobs
        (nats), stop_reason, right (null: undecided), formatted, extracted, answer, reward_<name>, advantage.
        Raises `RlifError` if the disk is full.
        """
        path = self.out / ROLLOUTS / f"{step_name(step)}.parquet"
        with writing(path, _resume_later(self.out)):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, _parquet(step, scored))

    def close(self) -> None:
        """Close metrics.jsonl; nothing can be written afterwards."""
        os.close(self._descriptor)


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """The lines of a metrics.jsonl in order, null as NaN; a half-written last line is left out.

    Raises `RlifError` naming the line if one before the last is damaged, or if the file cannot be read.
    """
    return [{key: math.nan if value is None else value for key, value in record.items()} for record, _ in _lines(path)]


def collect_info(*, model: str) -> dict[str, Any]:
    """What run.json records about program and machine, besides the recipe; ``model`` is the policy's source."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "math-verify")
    return {
        "model": model,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "rlif": rlif.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
        },
        "commit": git_commit(Path(__file__)),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        # With and without them numbers differ by rounding.
        "cpu_kernels": not torch.cuda.is_available() and kernels(torch.float32) is not None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that tracks ``file``, with -dirty behind it if files were changed; None elsewhere."""
    # An installed copy may lie inside somebody else's repository: only a tracked file tells.
    tracked = ["ls-files", "--error-unmatch", file.name]
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        answers = [
            subprocess.run(["git", "-C", str(file.parent), *command], capture_output=True, text=True, check=True)
            for command in (tracked, describe)
        ]
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answers[-1].stdout.strip()


def step_name(step: int) -> str:
    """``step-000010``: sorts by step as text, up to a million steps."""
    if step < 0:
        raise ValueError(f"step {step} is negative")
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """The step in a name made by `step_name`; None for any other name."""
    match = re.fullmatch(r"step-(\d{6,})", name)
    return int(match[1]) if match else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _resume_later(out: Path) -> str:
    return f"what was written before is intact; put that right, then rlif train --resume {out}"


def _another_run(out: Path) -> str:
    return f"{out}: holds another run; choose another --out, or go on with that one: rlif train --resume {out}"


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each whole line as (record, its bytes without the newline)."""
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise RlifError(f"{path}: cannot read the metrics ({error.strerror}); give a run's {METRICS_FILE}") from error
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            yield record, line
        elif number < len(lines):
            raise RlifError(f"{path}, line {number}: not a metrics line; restore the file or delete this line")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole and all(_is_number(value) for value in record.values()) else None


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _number(value: float | int) -> float | int | None:
    if isinstance(value, int):  # counts stay whole numbers
        return value
    return float(value) if math.isfinite(value) else None


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"


def _remove_rollouts_after(folder: Path, step: int) -> None:
    for path in folder.glob("*.parquet"):
        if (step_of(path.stem) or 0) > step:
            path.unlink()
    for half in folder.glob(".*.parquet.tmp"):
        half.unlink()


def _add_resumption(path: Path, step: int, info: Mapping[str, Any]) -> None:
    try:
        first = json.loads(path.read_bytes())
    except ValueError as error:
        raise RlifError(f"{path}: not JSON ({one_line(error)}); restore it, or write {{}} into it") from error
    had = [first, *first.get("resumed", [])][-1].get("cpu_kernels")
    if had is not None and had != info.get("cpu_kernels"):
        ways = {True: "with CPU kernels", False: "without CPU kernels"}
        warnings.warn(
            f"{path.parent}: went {ways[had]} so far, goes on {ways[not had]}: the same to rounding, not bit for bit",
            RuntimeWarning,
            stacklevel=1,
        )
    write_whole(path, _json({**first, "resumed": [*first.get("resumed", []), {"step": step, **info}]}))


def _parquet(step: int, scored: Scored) -> bytes:
    import pyarrow as pa  # takes a noticeable moment; only runs that keep rollouts pay
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(_columns(step, scored)), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _columns(step: int, scored: Scored) -> dict[str, Any]:
    import pyarrow as pa

    rollouts = scored.rollouts
    prompts = rollouts.row_prompts
    mask = rollouts.mask.cpu()
    ends = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(dim=1).cumsum(dim=0, dtype=torch.int32)])

    def per_token(values: Tensor, dtype: torch.dtype = torch.float32) -> pa.ListArray:
        counted = values.detach().cpu()[mask].to(dtype)  # row by row, so the ends of the rows cut it up again
        return pa.ListArray.from_arrays(ends.numpy(), counted.numpy())

    def per_row(values: Tensor) -> pa.Array:
        return pa.array(values.detach().cpu().to(torch.float32).numpy())

    return {
        "step": pa.array([step] * rollouts.n_rows, pa.int32()),
        "prompt_id": pa.array([prompt.id for prompt in prompts], pa.string()),
        "row": pa.array(range(rollouts.n_rows), pa.int32()),
        "prompt": pa.array([prompt.text for prompt in prompts], pa.string()),
        "completion": pa.array(rollouts.texts, pa.string()),
        "tokens": per_token(rollouts.tokens, torch.int32),
        **{name: per_token(values) for name, values in rollouts.signals._asdict().items()},
        "sampler_logprobs": per_token(rollouts.sampler_logprobs),
        "stop_reason": pa.array(rollouts.stop_reasons, pa.string()),
        "right": pa.array([verdict.right for verdict in scored.verdicts], pa.bool_()),
        "formatted": pa.array([verdict.formatted for verdict in scored.verdicts], pa.bool_()),
        "extracted": pa.array([verdict.extracted for verdict in scored.verdicts], pa.string()),
        "answer": pa.array([prompt.problem.answer for prompt in prompts], pa.string()),
        **{f"reward_{name}": per_row(values) for name, values in scored.rewards.items()},
        "advantage": per_row(scored.advantages),
    }


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
