"""What a run looks like while it runs: two live bars on a terminal, one plain line a step anywhere else."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.text import Text

from rlif.cli.time_left import TimeLeft
from rlif.config import Recipe
from rlif.errors import with_error
from rlif.recipes import load_recipe
from rlif.rewards.score import logged_names
from rlif.runs.checkpoint import resumes_at
from rlif.runs.layout import FINAL, INFO, LAST, METRICS_FILE, recipe_path
from rlif.runs.run_log import read_info
from rlif.training.callbacks import NullCallback, ProgressCallback
from rlif.utils.durations import duration
from rlif.utils.terminal import Console, text_column

LINE_EVERY = 30.0
"""Seconds between two lines of a log, at most, while something is done."""
_WIDE = 72
"""Columns of a terminal from which on a bar has its speed beside it."""


class _Speed(ProgressColumn):
    """Tokens per second of the phase under way."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        shown = f"{speed:,.0f} tokens/s" if speed and task.fields.get("tokens") else ""
        return Text(shown, style="cyan")


def step_parts(
    step: int,
    metrics: Mapping[str, float | int],
    steps: int | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """What one line says of a step, the most telling first: reward, entropy, verdicts, length, speed.
    ``names``: what rewards are called here, by their names in the log.

    Where no prompt of the step has a label nothing is said of right and wrong, but how far a prompt's answers agree
    with each other.
    """
    parts = [f"step {step:4d}" if steps is None else f"step {step:4d} of {steps}"]
    rewards = [key for key in metrics if key.startswith("reward/") and key.endswith("/mean")]
    parts += [f"{names.get(name := key.split('/')[1], name)} {metrics[key]:.3f}" for key in rewards]
    known = (
        ("entropy", "signal/entropy", "{:.3f}"),
        *([] if _unknown(metrics.get("verdict/right", 0.0)) else [("right", "verdict/right", "{:.2f}")]),
        ("self-agree", "verdict/self_agreement", "{:.2f}"),
        ("formatted", "verdict/formatted", "{:.2f}"),
        ("length", "length/mean", "{:.0f}"),
        ("tokens/s", "tokens_per_second/rollout", "{:,.0f}"),
    )
    return parts + [f"{label} {_shown(metrics[key], form)}" for label, key, form in known if key in metrics]


def _unknown(value: float | int) -> bool:
    return not math.isfinite(value)


def _shown(value: float | int, form: str) -> str:
    return "–" if _unknown(value) else form.format(value)


def eval_parts(metrics: Mapping[str, float | int]) -> list[str]:
    """What one line says of an evaluation; nothing if the step had none."""
    if "eval/right" not in metrics:
        return []
    right, both, entropy, n = (metrics[f"eval/{key}"] for key in ("right", "right_and_formatted", "entropy", "n"))
    greedy = metrics.get("eval/greedy_right_and_formatted")
    if _unknown(right):
        # Of one answer a problem there is nothing to say: it agrees with itself.
        agree = [f"self-agree {metrics['eval/self_agreement']:.3f}"] if n > metrics["eval/problems"] else []
        first, *others = [*agree, f"formatted {metrics['eval/formatted']:.3f}", f"entropy {entropy:.3f}", f"n {n:.0f}"]
        return [f"eval: {first}", *others]
    return [
        f"eval: right {with_error(right, metrics['eval/right_stderr'], '.3f')}",
        f"right and formatted {both:.3f}" + (f" (greedy {greedy:.3f})" if greedy is not None else ""),
        f"entropy {entropy:.3f}",
        f"n {metrics['eval/labelled']:.0f} of {n:.0f} with an answer" if "eval/labelled" in metrics else f"n {n:.0f}",
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
    parts = [f"probe: agrees with start {agreement} in the asked form"]
    if "probe/agreement/any_form" in metrics:
        parts[0] += f", {_shown(metrics['probe/agreement/any_form'], '{:.3f}')} in any"
    return parts + [f"{label} {_shown(metrics[key], form)}" for label, key, form in known if key in metrics]


def labelled_parts(metrics: Mapping[str, float | int]) -> list[str]:
    """What one line says of the few labelled problems (`probe.labels`); nothing if the step did not look at them."""
    if (right := metrics.get(_LABELLED)) is None:
        return []
    return [f"labelled: right and formatted {with_error(right, metrics.get(f'{_LABELLED}/stderr'), '.3f')}"]


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
        lines.append(_stop_line(stopped, selected["last"], of=load_recipe(recipe_path(out)).steps))
    value = "unknown" if selected["value"] is None else f"{selected['value']:.3f}"
    why = f"{_MERITS.get(selected['criterion'], selected['criterion'])} is {value} there"
    step, last = selected["step"], selected["last"]
    if selected.get("chosen", step != last):
        why += f", the highest of {selected['looks']} looks"
    named = "the last step's, " if step == last else "the untrained one, step " if step == 0 else "of step "
    lines.append(f"final model: {out / FINAL} ({named}{step}: {why})")
    return [*lines, *([] if step == last else [f"the last step's ({last}): {out / LAST}"])]


def _stop_line(stopped: Mapping[str, Any], last: int, *, of: int) -> str:
    """What a guard's stop did to a run that ended after step ``last`` of so many."""
    step, reason = stopped["step"], stopped["reason"]
    if step != last:
        return f"would have been stopped after step {step}: {reason}"
    if step == of:  # it stopped nothing, but what it says holds
        return f"all {of} steps are done; a guard says stop: {reason}"
    return f"stopped after step {step} of {of}: {reason}"


def fitting(parts: Sequence[str], width: int) -> str:
    """As many of the parts, from the first on, as a line of this width holds."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line[:width]


def beginning_line(out: Path) -> str:
    """What a run does that has begun, by the recipe in its folder: prompts and lengths are fitted there."""
    recipe = load_recipe(recipe_path(out))
    rollout, rewards = recipe.rollout, ", ".join(reward.label for reward in recipe.reward)
    return (
        f"{recipe.policy.model} on {rewards}: {recipe.steps} steps of {rollout.prompts} prompts × "
        f"{rollout.group_size} answers, into {out}"
    )


def reward_labels(recipe: Recipe) -> dict[str, str]:
    """What the rewards of a mix are called on the screen, by their names in the log."""
    return {name: one.label for name, one in zip(logged_names(recipe.reward), recipe.reward, strict=True)}


def paused_line(out: Path) -> str:
    """How to go on with a run that has not ended."""
    return f"paused; go on with: rlif train --resume {out}"


def kept_line(out: Path) -> str:
    """What is kept of a run that was ended at once, and how to go on."""
    if not (out / INFO).is_file():
        return "nothing is kept: the run had not begun; the same command begins it"
    done, go_on = resumes_at(out), f"rlif train --resume {out}"
    if not done:
        return f"there is no checkpoint yet, and no step is kept; begin again with: {go_on}"
    return f"kept up to the checkpoint of step {done}; go on with: {go_on}"


class LiveProgress:
    """A `rlif.training.callbacks.ProgressCallback` with a bar for the run and one for the phase under way."""

    def __init__(self, console: Console, progress: Progress, recipe: Recipe, done: int = 0) -> None:
        self._console, self._progress = console, progress
        self._left, self._names = TimeLeft(recipe, done), reward_labels(recipe)
        self._run = progress.add_task("run", total=recipe.steps, completed=done, left="")
        self._phase = progress.add_task("loading", total=None, tokens=True, left="")

    def begin(self, phase: str, step: int, total: int) -> None:
        self._progress.reset(self._phase, total=total, description=f"step {step}: {phase}")

    def advance(self, tokens: int) -> None:
        self._progress.advance(self._phase, tokens)

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._left.logged(step, metrics)
        self._progress.update(self._run, completed=step, left=_left(self._left))
        told = step_parts(step, metrics, names=self._names)
        for parts in filter(None, (told, look_parts(metrics), labelled_parts(metrics), eval_parts(metrics))):
            self._console.write_line(fitting(parts, self._console.width))

    def close(self) -> None:
        """Take the bar of the phase away: what stays on the screen is the run's."""
        self._progress.update(self._phase, visible=False)


class Opened:
    """A `rlif.training.callbacks.ProgressCallback` that tells another one, and calls ``say`` before the first thing
    that it is told: then a run has begun, and whatever is wrong with its files has been said."""

    def __init__(self, callback: ProgressCallback, say: Callable[[], None]) -> None:
        self._callback, self._say = callback, say
        self.said = False

    def open(self) -> None:
        """Say it, unless it is said."""
        if not self.said:
            self.said = True
            self._say()

    def begin(self, phase: str, step: int, total: int) -> None:
        self.open()
        self._callback.begin(phase, step, total)

    def advance(self, tokens: int) -> None:
        self._callback.advance(tokens)

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self.open()
        self._callback.logged(step, metrics)


def _left(left: TimeLeft) -> str:
    return "" if left.seconds is None else f"{duration(left.seconds)} left"


class PlainProgress:
    """A `rlif.training.callbacks.ProgressCallback` for logs and pipes: the first step and the last, whatever evaluates
    or looks, and else a line every half minute, also within a step. metrics.jsonl has every step."""

    def __init__(self, console: Console, recipe: Recipe, done: int = 0) -> None:
        self._console, self._steps, self._left = console, recipe.steps, TimeLeft(recipe, done)
        self._names = reward_labels(recipe)
        self._said, self._phase, self._done, self._total, self._first = monotonic(), "", 0, 0, True
        self._began, self._known = monotonic(), list[str]()

    def begin(self, phase: str, step: int, total: int) -> None:
        self._phase, self._done, self._total = f"step {step} of {self._steps}, {phase}", 0, total
        self._began = monotonic()
        self._say_if_due()

    def advance(self, tokens: int) -> None:
        self._done += tokens
        self._say_if_due()

    def _say_if_due(self) -> None:
        if monotonic() - self._said < LINE_EVERY:
            return
        speed = self._done / max(monotonic() - self._began, 1e-9)
        parts = [f"{self._phase}: {self._done:,} of at most {self._total:,} tokens", f"{speed:,.0f} tokens/s"]
        self._say([*parts, *self._known, _left(self._left)])

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._left.logged(step, metrics)
        if step > 0:  # within the next step it is what is known: rewards, and what is right
            telling = {key: metrics[key] for key in metrics if key.startswith(("reward/", "verdict/right"))}
            known = step_parts(step, telling, names=self._names)
            self._known = [f"last step: {', '.join(known[1:])}"]
        seen = [*look_parts(metrics), *labelled_parts(metrics), *eval_parts(metrics)]
        if self._first or seen or step == self._steps or monotonic() - self._said >= LINE_EVERY:
            self._first = self._first and step == 0
            self._say([*step_parts(step, metrics, self._steps, self._names), *seen, _left(self._left)])

    def _say(self, parts: Sequence[str]) -> None:
        self._console.write_line("  ".join(filter(None, parts)))
        self._said = monotonic()


@contextmanager
def show_progress(
    console: Console, recipe: Recipe, done: int = 0, *, quiet: bool = False, opening: Callable[[], str] | None = None
) -> Iterator[ProgressCallback]:
    """The callback that fits the console: live bars on a terminal, plain lines elsewhere, nothing if ``quiet``.

    ``opening``: the first line, asked for when the run has begun (or has ended well with nothing left to do).
    """
    if quiet:
        yield NullCallback()
        return

    def say() -> None:
        if opening is not None:
            console.write_line(opening())
            if not console.is_terminal:
                console.write_line(_HOW_OFTEN)

    with _progress(console, recipe, done) as shown:
        callback = Opened(shown, say)
        yield callback
        callback.open()


_HOW_OFTEN = (
    f"lines follow for the first step, the last, every evaluation and look, and else every {LINE_EVERY:.0f} s; "
    f"{METRICS_FILE} has every step"
)


@contextmanager
def _progress(console: Console, recipe: Recipe, done: int) -> Iterator[ProgressCallback]:
    if not console.is_terminal:
        yield PlainProgress(console, recipe, done)
        return
    wide = console.width >= _WIDE
    columns = [text_column("{task.description}"), BarColumn(20 if wide else 5), MofNCompleteColumn()]
    columns += [_Speed()] if wide else []
    with Progress(*columns, text_column("{task.fields[left]}"), console=console) as progress:
        callback = LiveProgress(console, progress, recipe, done)
        try:
            yield callback
        finally:
            callback.close()
