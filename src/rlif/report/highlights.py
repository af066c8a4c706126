"""Which answers of a run are worth reading: the best and the worst of a step, those that flipped, those to one prompt.

Best and worst are said by the advantage: what the step taught the policy to write, and what not to. Where a step's
completions were not kept, its evaluation answers stand in, ranked by self-certainty. Neither needs a label. An answer
flips if its verdict is another than at the first evaluation; without labels, if another answer is read from it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rlif.errors import Argument, RlifError, nearest, shown
from rlif.report.answer_tables import Candidate, of_evaluation, ranked_by_advantage, read_table, step_files, training
from rlif.report.answers import spread
from rlif.runs.layout import EVAL_ANSWERS, ROLLOUTS


@dataclass(frozen=True)
class Section:
    """Answers that stand together under a title."""

    title: str
    answers: tuple[Candidate, ...]


def highlights(run: Path, step: int | None, most: int, notes: list[str]) -> list[Section]:
    """Best, worst and flipped answers of a step (None: the last one that has any), ``most`` of each.

    What cannot be read is noted. Raises `RlifError` if no answer was kept, or none of that step.
    """
    asked, trained = step_files(run / EVAL_ANSWERS), step_files(run / ROLLOUTS)
    at = _step(run, sorted({*asked, *trained}), step)
    found = []
    if at in trained:
        ranked = ranked_by_advantage(training(trained[at], notes))
        found += _ends(ranked, most, f"training completions of step {at}, by advantage", ("best", "worst"))
    earlier = [each for each in asked if each <= at]
    now = of_evaluation(asked[earlier[-1]], notes) if earlier else []
    if not found and at in asked:
        ranked = sorted(now, key=lambda one: -_mean(one, "self_certainty"))
        found += _ends(ranked, most, f"evaluation answers of step {at}", ("surest", "least sure"))
    if len(earlier) > 1:
        pairs = list(flipped(of_evaluation(asked[earlier[0]], notes), now))
        title = f"flipped between steps {earlier[0]} and {earlier[-1]}: {len(pairs)} of {len(_one_a_prompt(now))}"
        title += " evaluation prompts"
        found.append(Section(title, tuple(one for pair in pairs[:most] for one in pair)))
    return found


def of_prompt(run: Path, prompt: str, step: int | None, most: int, notes: list[str]) -> list[Section]:
    """The answers to one prompt: of an evaluated one those of ``most`` steps, spread over the run, or of ``step``; of a
    training one its group. Raises `RlifError` for a prompt or a step that is not there."""
    asked, trained = step_files(run / EVAL_ANSWERS), step_files(run / ROLLOUTS)
    if step is not None:
        _step(run, sorted({*asked, *trained}), step)
    known: dict[str, None] = {}
    for files, read in ((asked, of_evaluation), (trained, training)):
        chosen = {at: path for at, path in files.items() if step in (None, at)}
        holding = [path for path in chosen.values() if prompt in _prompts(path, known, notes)]
        if holding:
            return [_section(prompt, path, read, notes) for path in spread(holding, max(most, 2))]
    if not known:
        raise RlifError(f"{run}: {_NONE_KEPT}")
    near = shown(nearest(prompt, known))
    raise RlifError(Argument("prompt"), f": {run} has no answer to {shown(prompt)}; did you mean {near}?")


def flipped(before: Sequence[Candidate], after: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Answers to the same prompt, drawn in the same way, that are right on one side alone, those now wrong first;
    where neither side has a verdict, those from which different answers are read."""
    first = _one_a_prompt(before)
    pairs = [(first[id_], one) for id_, one in _one_a_prompt(after).items() if id_ in first]
    changed = [pair for pair in pairs if _differ(*pair)]
    yield from sorted(changed, key=lambda pair: pair[1].value("right") is True)


def _differ(before: Candidate, after: Candidate) -> bool:
    verdicts = before.value("right"), after.value("right")
    if verdicts == (None, None):
        return bool(before.value("extracted") != after.value("extracted"))
    return None not in verdicts and verdicts[0] != verdicts[1]


def _one_a_prompt(answers: Sequence[Candidate]) -> dict[str, Candidate]:
    """The greedy answer to each prompt; the first sampled one where none is greedy."""
    kind = "greedy" if any(one.kind == "greedy" for one in answers) else "sampled"
    return {one.prompt_id: one for one in answers if one.kind == kind}


def _ends(ranked: Sequence[Candidate], most: int, what: str, words: tuple[str, str]) -> list[Section]:
    """The first and the last of a ranking, which share none."""
    high = ranked[: min(most, (len(ranked) + 1) // 2)]
    low = ranked[len(high) :][::-1][:most]
    parts = ((words[0], high), (words[1], low))
    return [Section(f"the {word} of {len(ranked)} {what}", tuple(own)) for word, own in parts if own]


def _section(prompt: str, path: Path, read: Callable[[Path, list[str]], list[Candidate]], notes: list[str]) -> Section:
    own = [one for one in read(path, notes) if one.prompt_id == prompt]
    return Section(f"step {own[0].place}", tuple(own))


def _prompts(path: Path, known: dict[str, None], notes: list[str]) -> set[str]:
    """The prompts that a table has answers to, which are put among the known ones, too."""
    table: Any = read_table(path, notes, ("prompt_id",), alone=True)
    own = dict.fromkeys(table["prompt_id"].to_pylist()) if table is not None else {}
    known.update(own)
    return set(own)


_NONE_KEPT = "no answer was kept; see log.rollouts_every, log.eval_answers and eval.every in its recipe"


def _step(run: Path, steps: Sequence[int], asked: int | None) -> int:
    if not steps:
        raise RlifError(f"{run}: {_NONE_KEPT}")
    if asked is None:
        return steps[-1]
    if asked not in steps:
        near = sorted(sorted(steps, key=lambda one: abs(one - asked))[:6])
        told = ", ".join(map(str, near)) + (f" … (steps {steps[0]} to {steps[-1]})" if len(steps) > len(near) else "")
        raise RlifError(Argument("step"), f": no answers of step {asked} were kept; choose from {told}")
    return asked


def _mean(one: Candidate, signal: str) -> float:
    return fmean(one.value(signal) or [0.0])
