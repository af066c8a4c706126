"""What a run looks like while it runs: two live bars on a terminal, one plain line a step anywhere else."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from rlif.errors import with_error
from rlif.runs.layout import FINAL, INFO, LAST
from rlif.runs.run_log import read_info
from rlif.utils.terminal import Console, text_column


class _Speed(ProgressColumn):
    """Tokens per second of the phase under way."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        shown = f"{speed:,.0f} tokens/s" if speed and task.fields.get("tokens") else ""
        return Text(shown, style="cyan")


def step_parts(step: int, metrics: Mapping[str, float | int]) -> list[str]:
    """What one line says of a step, the most telling first: reward, entropy, verdicts, length, speed."""
    parts = [f"step {step:4d}"]
    rewards = [key for key in metrics if key.startswith("reward/") and key.endswith("/mean")]
    parts += [f"{key.split('/')[1]} {metrics[key]:.3f}" for key in rewards]
    known = (
        ("entropy", "signal/entropy", "{:.3f}"),
        ("right", "verdict/right", "{:.2f}"),
        ("formatted", "verdict/formatted", "{:.2f}"),
        ("length", "length/mean", "{:.0f}"),
        ("tokens/s", "tokens_per_second/rollout", "{:,.0f}"),
    )
    return parts + [f"{label} {form.format(metrics[key])}" for label, key, form in known if key in metrics]


def eval_parts(metrics: Mapping[str, float | int]) -> list[str]:
    """What one line says of an evaluation; nothing if the step had none."""
    if "eval/right" not in metrics:
        return []
    right, both, entropy, n = (metrics[f"eval/{key}"] for key in ("right", "right_and_formatted", "entropy", "n"))
    greedy = metrics.get("eval/greedy_right_and_formatted")
    return [
        f"eval: right {with_error(right, metrics['eval/right_stderr'], '.3f')}",
        f"right and formatted {both:.3f}" + (f" (greedy {greedy:.3f})" if greedy is not None else ""),
        f"entropy {entropy:.3f}",
        f"n {n:.0f}",
    ]


def look_parts(metrics: Mapping[str, float | int]) -> list[str]:
    """What one line says of a look at the probe; nothing if the step had none."""
    if "probe/agreement" not in metrics:
        return []
    known = (
        ("cross-entropy", "probe/cross_entropy", "{:.3f}"),
        ("entropy", "probe/entropy", "{:.3f}"),
        ("formatted", "probe/formatted", "{:.2f}"),
    )
    agreement = with_error(metrics["probe/agreement"], metrics.get("probe/agreement/stderr"), ".3f")
    parts = [f"probe: agreement {agreement}"]
    if (right := metrics.get(_LABELLED)) is not None:
        parts.append(f"labelled {with_error(right, metrics.get(f'{_LABELLED}/stderr'), '.3f')}")
    return parts + [f"{label} {form.format(metrics[key])}" for label, key, form in known if key in metrics]


_LABELLED = "probe/labelled_right_and_formatted"
_MERITS = {
    "probe/agreement": "agreement with the untrained model's answers",
    _LABELLED: "the share right and formatted of the few labelled problems",
}
"""What run.json says a checkpoint was chosen by, in words."""


def ending_lines(out: Path) -> list[str]:
    """What the last lines say of a run that has ended: which step its model is of, and why it stopped."""
    selected = read_info(out / INFO).get("selected")
    if not selected:
        return [f"final model: {out / FINAL}"]
    lines = []
    if stopped := selected["stopped"]:
        verb = "stopped" if stopped["step"] == selected["last"] else "would have been stopped"
        lines.append(f"{verb} after step {stopped['step']}: {stopped['reason']}")
    value = "unknown" if selected["value"] is None else f"{selected['value']:.3f}"
    why = f"{_MERITS.get(selected['criterion'], selected['criterion'])} is {value} there"
    if selected["step"] == selected["last"]:
        return [*lines, f"final model: {out / FINAL} (the last step's, {selected['last']}: {why})"]
    lines.append(
        f"final model: {out / FINAL} (of step {selected['step']}: {why}, the highest of {selected['looks']} looks)"
    )
    return [*lines, f"the last step's ({selected['last']}): {out / LAST}"]


def fitting(parts: Sequence[str], width: int) -> str:
    """As many of the parts, from the first on, as a line of this width holds."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line[:width]


class LiveProgress:
    """A `rlif.training.callbacks.ProgressCallback` with a bar for the run and one for the phase under way."""

    def __init__(self, console: Console, progress: Progress, steps: int, done: int = 0) -> None:
        self._console, self._progress = console, progress
        self._run = progress.add_task("run", total=steps, completed=done, line="")
        self._phase = progress.add_task("", total=None, tokens=True, line="")

    def begin(self, phase: str, step: int, total: int) -> None:
        self._progress.reset(self._phase, total=total, description=f"step {step}: {phase}")

    def advance(self, tokens: int) -> None:
        self._progress.advance(self._phase, tokens)

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._progress.update(self._run, completed=step)
        for parts in filter(None, (step_parts(step, metrics), look_parts(metrics), eval_parts(metrics))):
            self._console.write_line(fitting(parts, self._console.width))

    def close(self) -> None:
        """Take the bar of the phase away: what stays on the screen is the run's."""
        self._progress.update(self._phase, visible=False)


class PlainProgress:
    """A `rlif.training.callbacks.ProgressCallback` for logs and pipes."""

    def __init__(self, console: Console, steps: int, done: int = 0) -> None:
        self._console, self._steps, self._first = console, steps, done
        self._started = monotonic()

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        left = ""
        if step > self._first:
            seconds = (monotonic() - self._started) / (step - self._first) * (self._steps - step)
            left = f"  {seconds:,.0f} s left"
        line = "  ".join([*step_parts(step, metrics), *look_parts(metrics), *eval_parts(metrics)])
        self._console.write_line(line + left)


@contextmanager
def show_progress(console: Console, steps: int, done: int = 0) -> Iterator[LiveProgress | PlainProgress]:
    """The `ProgressCallback` that fits the console: live bars on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainProgress(console, steps, done)
        return
    columns = (text_column("{task.description}"), BarColumn(20), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        callback = LiveProgress(console, progress, steps, done)
        try:
            yield callback
        finally:
            callback.close()
