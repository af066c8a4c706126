"""A prompt step by step as a picture: each answer's tokens on the ground of their entropy, the verdict beside it.

The prompt is chosen by the first of `RULES` that any keeps, and the picture says which. For print: PNG and SVG.
"""

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rlif.errors import printable, printable_lines, shortened
from rlif.report.answer_tables import Candidate, of_evaluation, step_files
from rlif.report.answers import spread
from rlif.report.pieces import Decode, find_decoder, pieces
from rlif.report.run_record import Group, RunRecord
from rlif.runs.layout import EVAL_ANSWERS
from rlif.utils.palette import DARK, LIGHT
from rlif.utils.plotting import drawn_in, legible, theme, write_drawn

STEPS = 4
"""Steps that are shown at most: the first, the last, the best, and what lies between."""

MOST_TOKENS = 240
"""Tokens of an answer that are drawn; of a longer one the first two thirds of them and the last third."""

UNSURE = 3.0
"""Nats at which a token's ground is darkest. Grounds go by the square root, as on the page."""

_WIDTH, _LEFT, _EDGE = 8.0, 1.85, 0.12
"""Of the picture, of the verdicts, around both, in inches."""
_FACTS = 0.78
"""Height of the verdict and what else is said of an answer."""


@dataclass(frozen=True)
class Type:
    """DejaVu Sans Mono of a size in points: width of a letter, height of a line (inches), and letters on a line."""

    size: float

    @property
    def letter(self) -> float:
        return 0.60205 * self.size / 72

    @property
    def line(self) -> float:
        return 1.6 * self.size / 72

    @property
    def columns(self) -> int:
        return int((_WIDTH - _LEFT - 2 * _EDGE) / self.letter)


LARGE, SMALL = Type(12.0), Type(9.0)
"""Where every answer has a line to itself, and else."""

Token = tuple[str, float | None]
"""Its text and its entropy in nats; None: not known."""
Course = Mapping[int, Candidate]
"""The answers to a prompt, by step."""


@dataclass(frozen=True)
class Answers:
    """What a picture shows: a prompt's answers in the order of steps, and the rule it was chosen by."""

    prompt: str
    reference: str | None
    kind: str
    rule: str
    answers: tuple[Candidate, ...]


def write_answer_figures(groups: Sequence[Group], folder: Path, notes: list[str], *, dark: bool = False) -> list[Path]:
    """Write answers-RUN.svg and answers-RUN.png of each group's first run; returns their paths.

    A run without kept answers gets a line in ``notes``. Raises `RlifError` if they cannot be written.
    """
    paths: list[Path] = []
    names: set[str] = set()
    with drawn_in(DARK if dark else LIGHT):
        for group in groups:
            run = group.runs[0]
            if (found := choose(run, notes)) is None:
                continue
            name = f"answers-{printable(run.folder.resolve().name)}"
            while name in names:
                name += "-2"
            names.add(name)
            paths += write_drawn(name, draw(found, group.label, find_decoder(run.folder, run.models)), folder)
    return paths


def choose(run: RunRecord, notes: list[str]) -> Answers | None:
    """The prompt of a run whose answers are drawn, greedy ones where there are any; None, and a line in ``notes``, if
    it kept no answers to one prompt at two steps."""
    files = step_files(run.folder / EVAL_ANSWERS)
    steps, best = _steps(run, list(files))
    by_step = {step: of_evaluation(files[step], notes) for step in steps}
    kind = "greedy" if any(one.kind == "greedy" for own in by_step.values() for one in own) else "sampled"
    courses: dict[str, dict[int, Candidate]] = {}
    for step, own in by_step.items():
        for one in own:
            if one.kind == kind:
                courses.setdefault(one.prompt_id, {})[step] = one
    most = max(map(len, courses.values()), default=0)
    if most < 2:
        kept = f"those of step {steps[0]} alone" if most else "none"
        notes.append(
            f"{run.folder}: no answers step by step to draw, it kept {kept}; see log.eval_answers and eval.every in "
            "its recipe"
        )
        return None
    whole = [course for course in courses.values() if len(course) == most]
    rule, holds = next((rule, holds) for rule, holds in RULES.items() if any(holds(one, best) for one in whole))
    course = next(one for one in whole if holds(one, best))
    first = next(iter(course.values()))
    said = f"the first prompt {rule}, of {len(whole)} kept".replace("BEST", str(best))
    asked, answer = first.value("prompt") or first.value("question") or "", first.value("answer")
    return Answers(asked, answer, kind, said, tuple(course.values()))


def _steps(run: RunRecord, kept: Sequence[int]) -> tuple[list[int], int | None]:
    """The steps to show, and the best one among those kept, which is among them; None without scores."""
    for key in ("eval/greedy_right_and_formatted", "eval/right_and_formatted"):
        scores = {int(line["step"]): line[key] for line in run.lines if key in line and line["step"] in kept}
        if scores:
            break
    else:
        return spread(kept, STEPS), None
    best = max(scores, key=lambda step: scores[step])
    shown = spread(kept, STEPS)
    if best not in shown:  # in the place of the nearest that is no end
        shown.remove(min(shown[1:-1], key=lambda step: abs(step - best)))
    return sorted({*shown, best}), best


def _verdicts(course: Course) -> list[Any]:
    return [one.value("right") for one in course.values()]


def _wrong_at_last(course: Course) -> bool:
    return _verdicts(course)[-1] is False


def _fell(course: Course, best: int | None) -> bool:
    right = any(step == best and one.value("right") is True for step, one in course.items())
    return right and _wrong_at_last(course)


RULES: Mapping[str, Callable[[Course, int | None], bool]] = {
    "wrong at the first step, right at the best (BEST) and wrong at the last": lambda course, best: (
        _verdicts(course)[0] is False and _fell(course, best)
    ),
    "right at the best step (BEST) and wrong at the last": _fell,
    "right at some step and wrong at the last": lambda course, _: True in _verdicts(course) and _wrong_at_last(course),
    "wrong at the first step and right at the last": lambda course, _: (
        _verdicts(course)[0] is False and _verdicts(course)[-1] is True
    ),
    "whose answer, as it is read, changes": lambda course, _: (
        len({one.value("extracted") for one in course.values()}) > 1
    ),
    "in the order of the evaluation": lambda course, _: True,
}
"""Which prompt is drawn, what is most worth seeing first: (answers by step, best step) → kept."""


def tokens_of(one: Candidate, decode: Decode | None) -> list[Token]:
    """An answer's tokens with their entropies, as they are drawn; the whole text with none where no tokenizer is."""
    ids, entropies = one.value("tokens"), one.value("entropy")
    if decode is None or entropies is None:
        return [(printable_lines(one.value("completion")), None)]
    texts = map(printable_lines, pieces(decode, ids))
    return cut(list(zip(texts, entropies, strict=True)))


def cut(tokens: Sequence[Token]) -> list[Token]:
    """At most `MOST_TOKENS` tokens; in the place of those left out stands how many they are."""
    if len(tokens) <= MOST_TOKENS:
        return list(tokens)
    head, tail = MOST_TOKENS * 2 // 3, MOST_TOKENS // 3
    return [*tokens[:head], (f" … {len(tokens) - head - tail:,} tokens … ", None), *tokens[-tail:]]


def laid_out(tokens: Sequence[Token], columns: int) -> Iterator[tuple[int, int, int, str]]:
    """Where the tokens' letters stand: line, column, index of the token, text.

    A token that does not fit goes to the next line, one that is longer than a line is broken; ↵ stands where a line
    ends in the text.
    """
    line = column = 0
    for i, (text, _) in enumerate(tokens):
        for at, part in enumerate(text.split("\n")):
            part = f"{part}↵" if at < text.count("\n") else part
            while part:
                if column and column + _columns(part) > columns:
                    line, column = line + 1, 0
                fits = part
                while _columns(fits) > columns:
                    fits = fits[:-1]
                yield line, column, i, fits
                column, part = column + _columns(fits), part[len(fits) :]
            if at < text.count("\n"):
                line, column = line + 1, 0


def _columns(text: str) -> int:
    """Letters that a text takes: East Asian ones two, marks over others none."""
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) > 0 for one in text)


def ground(entropy: float | None) -> str:
    """The colour behind a token of this entropy (nats) in the theme; the picture's own where it is unknown."""
    share = 0.0 if entropy is None else math.sqrt(min(1.0, max(0.0, entropy) / UNSURE))
    pairs = zip(to_rgb(theme().ground), to_rgb(theme().unsure), strict=True)
    return to_hex([sure + share * (unsure - sure) for sure, unsure in pairs])


def draw(found: Answers, label: str, decode: Decode | None) -> Figure:
    """The picture, in inches from the top left. Each token is a text whose gid is ``STEP-INDEX``."""
    rows = [(one, tokens_of(one, decode)) for one in found.answers]
    short = all(sum(_columns(text) for text, _ in tokens) <= LARGE.columns for _, tokens in rows)
    type_ = LARGE if short else SMALL
    lines = [1 + max((at[0] for at in laid_out(tokens, type_.columns)), default=0) for _, tokens in rows]
    heights = [max(_FACTS, 0.2 + type_.line * n) for n in lines]
    top, legend = 0.9, 0.36
    height = top + sum(heights) + legend
    figure = plt.figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    _head(axes, found, label)
    for (one, tokens), own in zip(rows, heights, strict=True):
        axes.plot([_EDGE, _WIDTH - _EDGE], [top, top], color=theme().faint, linewidth=0.6)
        _facts(axes, one, top + 0.1)
        _tokens(axes, tokens, one.place, top + 0.12, type_)
        top += own
    _legend(axes, top + 0.1)
    return figure


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """A text, its upper left corner there; nothing in it is a formula."""
    axes.text(x, y, text, va="top", parse_math=False, **{"fontsize": 8.5, "color": theme().ink, **style})


def _head(axes: Axes, found: Answers, label: str) -> None:
    asked = shortened(printable(found.prompt.strip()), 90)
    answer = f"   (reference answer: {shortened(printable(found.reference), 20)})" if found.reference else ""
    _text(axes, _EDGE, 0.1, finding(found.answers), fontsize=12, fontweight="bold")
    _text(axes, _EDGE, 0.38, f"{asked}{answer}", family="monospace", fontsize=SMALL.size)
    _text(axes, _EDGE, 0.62, f"{label}, {found.kind} answers; {found.rule}", fontsize=8, color=theme().soft)


def finding(answers: Sequence[Candidate]) -> str:
    """What is seen: between which steps the verdict last changes, and whether the last answer is surer."""
    last = answers[-1]
    verdict = last.value("right")
    others = [one for one in answers if None not in (verdict, one.value("right")) and one.value("right") != verdict]
    if not others:
        return f"One prompt at steps {', '.join(one.place for one in answers)}"
    words = ("right", "wrong") if verdict is False else ("wrong", "right")
    said = f"{words[0].capitalize()} at step {others[-1].place}, {words[1]} at step {last.place}"
    return f"{said}, and surer" if _mean(last) < _mean(others[-1]) else said


def _mean(one: Candidate) -> float:
    values = one.value("entropy")
    return fmean(values) if values else math.nan


_SIGNS = {True: ("✓ right", 0), False: ("✗ wrong", 1), None: ("undecided", 3)}
"""Of verdicts: what is said, and which colour says it, too."""


def _facts(axes: Axes, one: Candidate, y: float) -> None:
    word, colour = _SIGNS[one.value("right")]
    read = one.value("extracted")
    said = f", reads {shortened(printable(read), 12)}" if read is not None else ""
    facts = [f"{one.length:,} tokens" + (", cut off" if one.value("stop_reason") == "length" else "")]
    facts += [f"{_mean(one):.3f} nats a token"] if math.isfinite(_mean(one)) else []
    _text(axes, _EDGE, y, f"step {one.place}", fontweight="bold")
    _text(axes, _EDGE, y + 0.17, f"{word}{said}", color=legible(theme().colours[colour]))
    _text(axes, _EDGE, y + 0.34, "\n".join(facts), fontsize=7.5, color=theme().soft)


def _tokens(axes: Axes, tokens: Sequence[Token], step: str, y: float, type_: Type) -> None:
    for line, column, i, text in laid_out(tokens, type_.columns):
        entropy = tokens[i][1]
        x, top = _LEFT + _EDGE + column * type_.letter, y + line * type_.line
        size = (_columns(text) * type_.letter, 0.86 * type_.line)
        axes.add_patch(Rectangle((x, top - 0.02), *size, facecolor=ground(entropy), linewidth=0))
        style: dict[str, Any] = {"family": "monospace", "fontsize": type_.size, "gid": f"{step}-{i}"}
        _text(axes, x, top, text, color=theme().soft if entropy is None else theme().ink, **style)


def _legend(axes: Axes, y: float) -> None:
    """Grounds from sure to unsure, each with its nats."""
    _text(axes, _LEFT + _EDGE, y, "entropy of a token, nats", fontsize=7.5, color=theme().soft)
    for i, nats in enumerate((0.0, 0.1, 0.3, 1.0, UNSURE)):
        x = _LEFT + _EDGE + 1.55 + 0.55 * i
        axes.add_patch(
            Rectangle((x, y - 0.01), 0.5, 0.16, facecolor=ground(nats), edgecolor=theme().faint, linewidth=0.5)
        )
        _text(axes, x + 0.25, y + 0.01, f"{nats:g}" + ("+" if nats == UNSURE else ""), fontsize=7.5, ha="center")
