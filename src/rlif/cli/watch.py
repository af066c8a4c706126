"""`rlif watch`: what guards say of runs, read from their folders."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlif.errors import RlifError
from rlif.monitoring.run_looks import RunReader
from rlif.monitoring.watch import Report, Said, report
from rlif.runs.layout import RECIPE
from rlif.utils.terminal import note, say

_IDLE = 2
"""A run has been broken off if so often in a row no process is at work: those of a study are left between chunks."""


def watch_runs(folders: Sequence[Path], *, every: float | None, as_json: bool) -> bool:
    """Say what there is to say of each run; returns whether a guard says stop.

    With ``every`` so many seconds again, whenever there is news, until one does or all runs have ended; a run that has
    not begun is waited for. Raises `RlifError` if a run cannot be read and no other one is to be stopped.
    """
    watchers = [_Watcher(folder, waits=every is not None) for folder in folders]
    while True:
        for watcher in watchers:
            for line in watcher.news(as_json):
                say(line)
        stop = any(watcher.stops for watcher in watchers)
        if stop or every is None or all(watcher.ended for watcher in watchers):
            break
        time.sleep(every)
    errors = [watcher.error for watcher in watchers if watcher.error is not None]
    for error in errors if stop else errors[1:]:
        note(f"rlif: {error}")
    if errors and not stop:
        raise errors[0]
    return stop


class _Watcher:
    """One run, and what was said of it last."""

    def __init__(self, run: Path, *, waits: bool) -> None:
        self.error: RlifError | None = None
        self.report: Report | None = None
        self._run, self._waits = run, waits
        self._reader: RunReader | None = None
        self._idle = 0  # how often in a row no process was at work
        self._said: object = None

    @property
    def stops(self) -> bool:
        return self.report is not None and self.report.level == "stop"

    @property
    def ended(self) -> bool:
        return (
            self.error is not None
            or self._idle >= _IDLE
            or (self.report is not None and self.report.state == "finished")
        )

    def news(self, as_json: bool) -> list[str]:
        """What is to be said now; nothing if it was said last."""
        if self.ended:
            return []
        try:
            self._look()
        except RlifError as error:
            self.error = error
            return [json.dumps({"run": str(self._run), "error": str(error)})] if as_json else []
        mark = self.report._replace(step=0) if self.report else "waiting"
        if mark == self._said:
            return []
        self._said = mark
        if self.report is None:
            return [json.dumps({"run": str(self._run), "state": "waiting"}) if as_json else f"{self._run}: waiting"]
        return [json.dumps(as_record(self.report))] if as_json else told(self.report)

    def _look(self) -> None:
        if self._reader is None and self._waits and not (self._run / RECIPE).is_file():
            return
        self._reader = self._reader or RunReader(self._run)
        self.report = report(self._reader)
        self._idle = self._idle + 1 if self.report.state == "stopped" else 0


def as_record(found: Report) -> dict[str, Any]:
    """A report for JSON (docs/watch.md)."""
    course = [{"step": step, "agreement": value} for step, value in found.agreement]
    return {
        **{name: getattr(found, name) for name in ("state", "level", "step", "steps", "looks", "due", "unwatched")},
        "run": str(found.run),
        "guards": _words(found.said),
        "probe": {"guards": _words(found.probe), **dict(zip(("first", "best", "last"), course, strict=False))},
    }


def _words(said: Mapping[str, Said]) -> dict[str, dict[str, Any]]:
    return {name: word._asdict() for name, word in said.items()}


def told(found: Report) -> list[str]:
    """A report for a reader: where the run stands, and below it each guard that has something to say."""
    states = {"running": "", "stopped": "no process is at work, ", "finished": "finished, "}
    done = found.state == "finished" and found.step == found.steps
    where = f"{found.run}: " + (
        f"all {found.steps} steps are done" if done else f"{states[found.state]}step {found.step} of {found.steps}"
    )
    last = f", the last at step {found.looks[-1]}" if found.looks else f" (the first is due at step {found.due})"
    lines = [f"{where}; {_count(len(found.looks), 'look')}{last}: {found.level}"]
    lines += [f"  {name}: {_word(said)}: {said.reason}" for name, said in found.said.items()]
    if found.agreement or found.probe:
        lines.append(f"  its own probe: {_probe(found)}")
    if found.unwatched:
        lines.append(f"  not watched, for there are no rollouts: {', '.join(found.unwatched)}")
    return lines


def _word(said: Said) -> str:
    return f"stop since step {said.step}" if said.level == "stop" else said.level


def _probe(found: Report) -> str:
    course = [f"{value:.2f} at step {step}" for step, value in found.agreement]
    names = ("agrees with start", "at best", "at last")
    numbers = ", ".join(f"{name} {value}" for name, value in zip(names, course, strict=False))
    return "; ".join(filter(None, [numbers, _guards(found.probe)]))


def _guards(probe: Mapping[str, Said]) -> str:
    return ", ".join(f"{name} says {_word(said)}" for name, said in probe.items()) or "its guards are quiet"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
