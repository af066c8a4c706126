"""Watching a run without a probe: what guards say of the looks that `rlif.monitoring.run_looks` makes of its files.

`WATCHED` is the table. Those guards of `rlif.monitoring.guards` that ask no frozen answer are taken as they are: what
they compare with is the run's own first look, or its best. Each that tests has its part of a false-alarm rate, over all
looks together: `FALSE_ALARM` is the chance that a run in which nothing changes is ever stopped or warned of by any.
How far from it such a run is in practice, and what is no test but a size: docs/watch.md. Free of torch.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlif.config import MISMATCH_LIMITS, Recipe
from rlif.monitoring import guards
from rlif.monitoring.guards import FALSE_ALARMS, LEVELS, OK, Alarm, Level, Records
from rlif.monitoring.run_looks import Line, RunLook, RunReader, Seen, State
from rlif.monitoring.sequential import fall

CONSTANT_RATE = 0.01
FALSE_ALARM = CONSTANT_RATE + sum(FALSE_ALARMS[name] for name in ("no_answer", "truncation", "repetition", "entropy"))
"""Of all tests of `WATCHED` together and all looks of a run, by the union bound."""

RunLooks = Sequence[RunLook]


def constant_answer(looks: RunLooks) -> Alarm:
    """One answer to all prompts: warn from a quarter of the completions, stop from half, if training brought it.

    Which it did if that is twice the share of the first look's commonest answer, or half way from there to all, and if
    significantly fewer prompts are answered otherwise than at the first look.
    """
    said, share = _commonest(looks[-1])
    _, first = _commonest(looks[0])
    if share < 0.25 or share < min(2.0 * first, (1.0 + first) / 2.0):
        return OK
    otherwise = [np.array([sum(key != said for key in keys) for keys in look.answers]) for look in looks]
    if fall(otherwise, rate=CONSTANT_RATE, start_only=True) is None:
        return OK
    level: Level = "stop" if share >= 0.5 else "warn"
    before = f"the commonest had {first:.0%} at step {looks[0].record.step}"
    return Alarm(level, f"{share:.0%} of the completions answer {_short(said)}, whatever the question; {before}")


def no_advantage(looks: RunLooks) -> Alarm:
    """Nothing left to learn from: every group of every step of the look is worth the same to the reward."""
    shares = [line.get("advantage/zero_groups", 0.0) for line in looks[-1].lines]
    if min(shares) < 1.0:
        return OK
    return Alarm("stop", f"no group had an advantage in {_steps(looks[-1])}: there is nothing to learn from")


def mismatch(looks: RunLooks, recipe: Recipe) -> Alarm:
    """Sampler and trainer apart by more than rollout.max_mismatch: warn in a step of the look, stop in all of them.

    For a step that compared nothing (null) nothing is said, nor where the two are no equal distributions
    (docs/metrics.md).
    """
    sampling = recipe.rollout
    limit = MISMATCH_LIMITS.get(recipe.policy.dtype, max(MISMATCH_LIMITS.values()))
    limit = limit if sampling.max_mismatch is None else sampling.max_mismatch
    unequal = sampling.temperature not in (0.0, 1.0) and (sampling.top_p < 1.0 or sampling.top_k > 0)
    gaps = [line["mismatch/mean"] for line in looks[-1].lines if line.get("mismatch/mean", np.nan) >= 0.0]
    if not gaps or not limit or unequal or max(gaps) <= limit:
        return OK
    level: Level = "stop" if min(gaps) > limit else "warn"
    return Alarm(level, f"sampler and trainer are up to {max(gaps):.2g} nats a token apart, more than {limit:g}")


def _commonest(look: RunLook) -> tuple[str, float]:
    """The commonest answer of a look, and its share of all completions; of none that can be read, 0."""
    keys = [key for keys in look.answers for key in keys]
    (said, count), *_ = Counter(key for key in keys if key is not None).most_common(1) or [("", 0)]
    return said, count / len(keys)


def _short(answer: str) -> str:
    return repr(answer if len(answer) <= 40 else answer[:39] + "…")


def _steps(look: RunLook) -> str:
    first, last = int(look.lines[0]["step"]), look.record.step
    return f"step {last}" if first == last else f"steps {first} to {last}"


class Watched(NamedTuple):
    """A guard on a run's looks; ``needs`` rollouts, or is content with the log."""

    guard: Callable[[RunLooks, Recipe], Alarm]
    needs_rollouts: bool = False


def _on_records(guard: Callable[[Records], Alarm]) -> Callable[[RunLooks, Recipe], Alarm]:
    return lambda looks, recipe: guard([look.record for look in looks])


WATCHED: Mapping[str, Watched] = {
    "constant_answer": Watched(lambda looks, recipe: constant_answer(looks), needs_rollouts=True),
    "no_answer": Watched(_on_records(guards.no_answer), needs_rollouts=True),
    "truncation": Watched(_on_records(guards.truncation)),
    "repetition": Watched(_on_records(guards.repetition), needs_rollouts=True),
    "length": Watched(_on_records(guards.length)),
    "entropy": Watched(_on_records(guards.entropy)),
    "no_advantage": Watched(lambda looks, recipe: no_advantage(looks)),
    "mismatch": Watched(mismatch),
}


class Said(NamedTuple):
    """What a guard says of a run: a stop since its first, a warning only while it stands."""

    level: Level
    step: int
    reason: str


class Report(NamedTuple):
    """A run as it stands.

    Attributes:
        step, steps: the last one logged, and as many as the recipe has.
        looks: the steps of the looks.
        due: the step of the first look.
        unwatched: guards that need rollouts, where there are none.
        said: of `WATCHED`, by guard; who says nothing is left out.
        probe: of the run's own guards (``guard/…`` in its log), the same.
        agreement: step and ``probe/agreement`` at the first look of the probe, at the highest, and at the last.
    """

    run: Path
    state: State
    step: int
    steps: int
    looks: tuple[int, ...]
    due: int
    unwatched: tuple[str, ...]
    said: Mapping[str, Said]
    probe: Mapping[str, Said]
    agreement: tuple[tuple[int, float], ...]

    @property
    def level(self) -> Level:
        """The gravest of all that is said."""
        return max((said.level for said in (*self.said.values(), *self.probe.values())), key=LEVELS.index, default="ok")


def report(reader: RunReader) -> Report:
    """What there is to say of a run now. Raises as `RunReader.read`."""
    seen, recipe = reader.read(), reader.recipe
    watched = {name: each for name, each in WATCHED.items() if seen.source == "rollouts" or not each.needs_rollouts}
    return Report(
        run=reader.run,
        state=seen.state,
        step=int(seen.lines[-1]["step"]) if seen.lines else 0,
        steps=recipe.steps,
        looks=tuple(look.record.step for look in seen.looks),
        due=seen.due,
        unwatched=tuple(name for name in WATCHED if name not in watched),
        said={name: said for name, each in watched.items() if (said := _over_time(each, seen, recipe))},
        probe=said_by_probe(seen.lines),
        agreement=_course(seen.lines),
    )


def _over_time(watched: Watched, seen: Seen, recipe: Recipe) -> Said | None:
    """The first look's word that says stop; else that of the last look, if it warns."""
    alarms = (
        (seen.looks[n - 1].record.step, watched.guard(seen.looks[:n], recipe)) for n in range(1, len(seen.looks) + 1)
    )
    return _first_stop_or_last([Said(alarm.level, step, alarm.reason) for step, alarm in alarms])


def _first_stop_or_last(words: Sequence[Said]) -> Said | None:
    stop = next((word for word in words if word.level == "stop"), None)
    return stop or (words[-1] if words and words[-1].level != "ok" else None)


def said_by_probe(lines: Sequence[Line]) -> dict[str, Said]:
    """What the run's own guards said after its looks at its probe: ``guard/<name>`` is the place of a level."""
    names = sorted({key for line in lines for key in line if key.startswith("guard/")})
    words = {
        name: [Said(LEVELS[int(line[name])], int(line["step"]), "") for line in lines if line.get(name, -1.0) >= 0.0]
        for name in names
    }
    found = {name.removeprefix("guard/"): _first_stop_or_last(said) for name, said in words.items()}
    return {name: said for name, said in found.items() if said is not None}


def _course(lines: Sequence[Line]) -> tuple[tuple[int, float], ...]:
    looks = [
        (int(line["step"]), float(line["probe/agreement"]))
        for line in lines
        if line.get("probe/agreement", -1.0) >= 0.0
    ]
    return (looks[0], max(looks, key=lambda look: look[1]), looks[-1]) if looks else ()
