"""The run folder: what a run was told, what it measured, what the model said.

    recipe.yaml                       the resolved recipe
    run.json                          versions, commit, machine, start time
    metrics.jsonl                     one JSON line a step, append-only; every key stands in `METRICS`
    rollouts/step-000001.parquet      completions with per-token signals, verdicts, rewards; checksummed
    eval_answers/step-000010.parquet  the same of evaluation problems, those of before at every evaluation; checksummed
    eval_verdicts/step-000010.parquet verdicts on all answers of the evaluation, without the answers; checksummed
    checkpoints/, final/              see rlif.runs.checkpoint
    .lock                             held by the process at work here (rlif.utils.atomic_io)

A line or a file is whole or absent, also after a kill or on a full disk. A folder holds a run from the moment that
recipe.yaml is there: it is written last. ``python -m rlif.runs.metric_keys`` prints docs/metrics.md. A new metric is
one line in `METRICS`.
"""

import errno
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.errors import Advice, Argument, RlifError
from rlif.recipes import dump_recipe
from rlif.runs.history import lines_up_to, remove_completions_after
from rlif.runs.layout import (
    BY_STEP,
    EVAL_ANSWERS,
    EVAL_VERDICTS,
    INFO,
    METRICS_FILE,
    RECIPE,
    ROLLOUTS,
    begin_with,
    resume_with,
    step_name,
)
from rlif.runs.metric_keys import find_metric
from rlif.runs.rollout_table import Judged, _parquet, answers_parquet, verdicts_parquet
from rlif.types import Scored
from rlif.utils.atomic_io import LOCK, flush_folder, make_folder, one_line, write_whole, writing

BEGINNING = (METRICS_FILE, INFO, RECIPE)
"""What a run's folder begins with, in the order of writing."""
_APPEND = os.O_RDWR | os.O_APPEND


class RunLog:
    """Writes one run's folder; made by `RunLog.create` or `RunLog.resume`. One writer a folder."""

    def __init__(self, out: Path, descriptor: int, info: Mapping[str, Any]) -> None:
        self.out = out
        self._descriptor = descriptor
        self._info = dict(info)
        self._folders = {name: _identity(out / name) for name in BY_STEP}
        self._size = os.fstat(descriptor).st_size

    @staticmethod
    def check_free(out: Path) -> None:
        """Raise `RlifError` unless ``out`` is a new or an empty folder; changes nothing.

        What a process left that was killed before its run had begun counts as nothing.
        """
        if out.exists() and not out.is_dir():
            raise RlifError(f"{out}: a file, not a folder; choose another ", Argument("out"))
        if (out / RECIPE).exists():
            raise RlifError(*_another_run(out))
        ours = {LOCK, *(path.name for path in _never_begun(out))}
        if strangers := sorted(path.name for path in out.iterdir() if path.name not in ours) if out.is_dir() else []:
            if METRICS_FILE in strangers:
                raise RlifError(
                    *(f"{out}: holds another run, less its {RECIPE}; choose another ", Argument("out")),
                    *(", or restore that file and go on with: ", resume_with(out)),
                )
            raise RlifError(f"{out}: not empty; choose a new or an empty folder for ", Argument("out"))

    @classmethod
    def create(cls, out: Path, recipe: Recipe, *, info: Mapping[str, Any]) -> "RunLog":
        """Start a run in a new or empty folder: open metrics.jsonl, write run.json and, last of all, recipe.yaml.

        ``info`` is what `collect_info` returns. Raises `RlifError` if the folder holds anything, above all another
        run, or cannot be written.
        """
        cls.check_free(out)
        with writing(out, "put that right, or choose another ", Argument("out")):
            out.mkdir(parents=True, exist_ok=True)
            _clear_never_begun(out)
            try:  # O_EXCL: of two runs started in one folder at the same moment, the second fails here
                descriptor = os.open(out / METRICS_FILE, _APPEND | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                raise RlifError(*_another_run(out)) from None
            try:
                flush_folder(out)  # a run.json without metrics.jsonl would be somebody else's
                write_whole(out / INFO, _json(info))
                write_whole(out / RECIPE, dump_recipe(recipe).encode())  # from here on there is a run to resume
            except OSError:  # leave the folder as it was: a second try must not meet a run that never began
                os.close(descriptor)
                for name in reversed(BEGINNING):
                    (out / name).unlink(missing_ok=True)
                raise
        return cls(out, descriptor, info)

    @classmethod
    def resume(cls, out: Path, step: int, *, info: Mapping[str, Any] | None = None) -> "RunLog":
        """Reopen a run at a checkpoint's step: metrics and rollouts of later steps are removed, they will come again.

        A half-written last line of metrics.jsonl is dropped. ``info`` (see `collect_info`) is added to run.json under
        ``resumed``, for other versions may give another run. Raises `RlifError` if the folder holds no run, or a line
        of metrics.jsonl before the last is damaged, or its steps up to ``step`` are not whole (`lines_up_to`).
        """
        check_resumable(out)
        path = out / METRICS_FILE
        kept, known = lines_up_to(path, step), read_info(out / INFO)
        with writing(path, *_resume_later(out)):
            write_whole(path, kept)
            remove_completions_after(out, step)
            if info is not None:
                known = _add_resumption(out / INFO, step, info)
            return cls(out, os.open(path, _APPEND), known)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Append one line, on the disk when this returns: the step, then ``metrics`` in their order.

        Numbers that are not finite become null. Raises ValueError for a key `METRICS` does not know; `RlifError` if
        the disk is full (no half line stays behind), or if the folder is no longer what it was (`check_place`).
        """
        unknown = [key for key in metrics if key == "step" or find_metric(key) is None]
        if unknown:
            raise ValueError(f"not a key of rlif.runs.metric_keys.METRICS to be given here: {', '.join(unknown)}")
        record = {"step": step, **{key: _number(value) for key, value in metrics.items()}}
        self.check_place()
        with writing(self.out / METRICS_FILE, *_resume_later(self.out)):
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")

    def amend(self, step: int, metrics: Mapping[str, float | int]) -> dict[str, float | int]:
        """Put more ``metrics`` into the last line, which is of this step. Returns the whole line, less its step; NaN is
        what is not known. Raises as `write`."""
        self.check_place()
        path = self.out / METRICS_FILE
        before, _, last = os.pread(self._descriptor, self._size, 0).rstrip(b"\n").rpartition(b"\n")
        line = json.loads(last)
        if line.pop("step") != step:
            raise ValueError(f"the last line of {path} is not of step {step}")
        line |= {key: _number(value) for key, value in metrics.items()}
        content = json.dumps({"step": step, **line}, allow_nan=False).encode() + b"\n"
        with writing(path, *_resume_later(self.out)):
            write_whole(path, before + b"\n" + content if before else content)
            os.close(self._descriptor)
            self._descriptor, self._size = os.open(path, _APPEND), path.stat().st_size
        return {key: math.nan if value is None else value for key, value in line.items()}

    def check_place(self) -> None:
        """Raise `RlifError` if somebody removed or replaced the folder or its metrics.jsonl meanwhile, or replaced
        its rollouts.

        What is written would be written into nothing. A metrics.jsonl that was removed is put back first; a rollouts
        folder that was removed is made again, and the run continues.
        """
        path = self.out / METRICS_FILE
        here, ours = _identity(path), os.fstat(self._descriptor)
        back = ("nothing of this step is kept; put it back as it was, then ", resume_with(self.out))
        if not (self.out / RECIPE).is_file():
            raise RlifError(f"{self.out}: was removed, renamed or replaced while the run was at work in it; ", *back)
        if here is None:
            with writing(path, "it was removed while the run was at work"):
                write_whole(path, os.pread(self._descriptor, ours.st_size, 0))
            raise RlifError(
                f"{path}: was removed while the run was at work, and is put back; nothing of this step is kept; go on "
                "with: ",
                resume_with(self.out),
            )
        if here != (ours.st_dev, ours.st_ino) or ours.st_size != self._size:
            raise RlifError(f"{path}: was replaced or changed while the run was at work; ", *back)
        for name in BY_STEP:
            self._check_folder(name, back)

    def _check_folder(self, name: str, back: tuple[str | Advice, ...]) -> None:
        folder = self.out / name
        if self._folders[name] is None:
            return
        if _identity(folder) is None:  # what is removed to save space is no harm
            with writing(folder, *_resume_later(self.out)):
                make_folder(folder)
            self._folders[name] = _identity(folder)
        elif _identity(folder) != self._folders[name]:
            raise RlifError(f"{folder}: was replaced while the run was at work; ", *back)

    def _append(self, line: bytes) -> None:
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)

    def write_rollouts(self, step: int, scored: Scored) -> None:
        """Write rollouts/step-NNNNNN.parquet: one row a completion, lists over its tokens.

        Columns: step, prompt_id, row, prompt, completion, tokens, logprob, entropy, self_certainty, sampler_logprobs
        (nats), stop_reason, right (null: undecided), formatted, extracted, answer, reward_<name>, advantage.
        Raises `RlifError` if the disk is full, or as `check_place`.
        """
        self._write_table(ROLLOUTS, step, _parquet(step, scored))

    def write_eval_answers(self, step: int, answers: Mapping[str, Judged], prompts: int) -> None:
        """Write eval_answers/step-NNNNNN.parquet: the answers to the first ``prompts`` prompts; nothing if that is 0.

        ``answers``: way to decode (sampled, greedy) to completions and verdicts. Columns: decoding, sample, and those
        of `write_rollouts` without rewards and advantage. Raises as `write_rollouts`.
        """
        if prompts:
            self._write_table(EVAL_ANSWERS, step, answers_parquet(step, answers, prompts))

    def write_eval_verdicts(self, step: int, answers: Mapping[str, Judged]) -> None:
        """Write eval_verdicts/step-NNNNNN.parquet: a row an answer of an evaluation, what the grader says of it.

        Columns: step, decoding, prompt_id, question, sample, right (null: undecided), formatted, extracted, length.
        Raises as `write_rollouts`.
        """
        self._write_table(EVAL_VERDICTS, step, verdicts_parquet(step, answers))

    def _write_table(self, folder: str, step: int, data: bytes) -> None:
        self.check_place()
        path = self.out / folder / f"{step_name(step)}.parquet"
        with writing(path, *_resume_later(self.out)):
            make_folder(path.parent)
            write_whole(path, data)
        self._folders[folder] = _identity(path.parent)

    def note_checkpoint(self, step: int) -> None:
        """Note in run.json that there is a checkpoint of ``step``: a later process can tell if it is missing."""
        self.note(last_checkpoint=step)

    def note(self, **facts: Any) -> None:
        """Add facts to run.json, in place of those of the same names. Raises `RlifError` if it cannot be written."""
        self._info |= facts
        with writing(self.out / INFO, *_resume_later(self.out)):
            write_whole(self.out / INFO, _json(self._info))

    def close(self) -> None:
        """Close metrics.jsonl; nothing can be written afterwards."""
        os.close(self._descriptor)


class NoLog(RunLog):
    """The log of a process that works on a run whose folder another one owns: nothing is written."""

    def __init__(self) -> None: ...

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None: ...

    def amend(self, step: int, metrics: Mapping[str, float | int]) -> dict[str, float | int]:
        return dict(metrics)

    def check_place(self) -> None: ...

    def write_rollouts(self, step: int, scored: Scored) -> None: ...

    def write_eval_answers(self, step: int, answers: Mapping[str, Judged], prompts: int) -> None: ...

    def write_eval_verdicts(self, step: int, answers: Mapping[str, Judged]) -> None: ...

    def note(self, **facts: Any) -> None: ...

    def close(self) -> None: ...


def check_resumable(out: Path) -> None:
    """Raise `RlifError` unless the run in ``out`` can be resumed, as far as its files' names tell."""
    if not (out / RECIPE).is_file():
        raise RlifError(f"{out}: no {RECIPE} here, so no run to resume; start one with ", begin_with(out))
    for name in (INFO, METRICS_FILE):
        if not (out / name).is_file():
            raise RlifError(f"{out}: the {name} of this run is missing; restore it, or start a new run elsewhere")


def read_info(path: Path) -> dict[str, Any]:
    """What a run.json holds. Raises `RlifError` if it cannot be read."""
    try:
        info = json.loads(path.read_bytes())
    except OSError as error:
        raise RlifError(f"{path}: cannot be read ({error.strerror}); restore it") from error
    except (ValueError, RecursionError) as error:
        raise RlifError(f"{path}: not JSON ({one_line(error)}); restore it, or write {{}} into it") from error
    if not isinstance(info, dict) or not isinstance(info.get("resumed", []), list):
        raise RlifError(f"{path}: not a run's description; restore it, or write {{}} into it")
    return info


def _resume_later(out: Path) -> tuple[str | Advice, ...]:
    return "what was written before is intact; put that right, then ", resume_with(out)


def _another_run(out: Path) -> tuple[str | Argument | Advice, ...]:
    other = (f"{out}: holds another run; choose another ", Argument("out"))
    return *other, ", or go on with that one: ", resume_with(out)


def _number(value: float | int) -> float | int | None:
    if isinstance(value, int):  # counts stay whole numbers
        return value
    return float(value) if math.isfinite(value) else None


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"


def _add_resumption(path: Path, step: int, info: Mapping[str, Any]) -> dict[str, Any]:
    first = read_info(path)
    last = [first, *first.get("resumed", [])][-1]
    had, ranks, now = last.get("cpu_kernels"), last.get("ranks", 1), info.get("ranks", 1)
    if had is not None and had != info.get("cpu_kernels"):
        ways = {True: "with CPU kernels", False: "without CPU kernels"}
        _warn_of_rounding(path, ways[had], ways[not had])
    if ranks != now:
        _warn_of_rounding(path, f"on {ranks} rank{'s' * (ranks != 1)}", f"on {now}")
    known = {**first, "resumed": [*first.get("resumed", []), {"step": step, **info}]}
    write_whole(path, _json(known))
    return known


def _warn_of_rounding(path: Path, before: str, now: str) -> None:
    warnings.warn(
        f"{path.parent}: went {before} so far, goes on {now}: the same to rounding, not bit for bit",
        RuntimeWarning,
        stacklevel=2,
    )


def _never_begun(out: Path) -> list[Path]:
    """What is left in a folder by a process that was killed before its run had begun: nothing of any worth.

    An empty metrics.jsonl, which is there first and goes last, tells that the rest is ours. It is the last of the list.
    """
    empty = out / METRICS_FILE
    if (out / RECIPE).exists() or not empty.is_file() or empty.stat().st_size:
        return []
    left = [out / INFO, *(out / f".{name}.tmp" for name in BEGINNING)]
    return [*(path for path in left if path.is_file()), empty]


def _clear_never_begun(out: Path) -> None:
    """Remove `_never_begun`. Raises OSError."""
    for path in _never_begun(out):
        flush_folder(out)  # after a power cut, too, metrics.jsonl is the last to go
        path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file or folder stands under a name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
