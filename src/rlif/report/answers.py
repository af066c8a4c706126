"""The answers that a page shows: read from the folder of a run or of an evaluation, chosen, made small.

A page has room for some of them. Chosen first are those that can be compared: answers to the same prompts at several
steps (or of several models); then, of the steps' training answers, those of the highest and of the lowest advantage.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlif.analysis.text import loops, transitional_spans
from rlif.errors import printable_lines
from rlif.report.answer_tables import (
    PER_TOKEN,
    Candidate,
    by_advantage,
    of_evaluation,
    read_table,
    step_files,
    training,
)
from rlif.report.pieces import Decode, pieces
from rlif.runs.layout import EVAL_ANSWERS, ROLLOUTS

SCALES: Mapping[str, float] = {"entropy": 1000.0, "logprob": 1000.0, "self_certainty": 100.0}
"""Signals as whole numbers: nats times this. A reader tells thousandths of a nat, and they take a third of the room."""

FLAGS: Mapping[str, Callable[[str], bool]] = {
    "repeating": loops,
    "garbled": lambda text: any(_is_garbled(character) for character in text),
}
"""What is wrong with a text as such, by a rule that needs no label."""

FOR_COMPARISON = 0.7
"""Share of the room that answers to the same prompts may take; training answers take what is left."""

TRAINING_STEPS = 40
"""Steps whose training answers are looked through at most, spread over the run."""


@dataclass
class Source:
    """The answers of one run or evaluation as the page holds them; ``axis`` says what their places are."""

    label: str
    folder: str
    axis: str
    places: list[str] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


def run_answers(label: str, run: Path, decode: Decode | None, room: int) -> Source:
    """Of a training run's folder, as many answers as there is ``room`` for (bytes); damaged files are noted."""
    source = Source(label, str(run), "step")
    asked = [one for path in step_files(run / EVAL_ANSWERS).values() for one in of_evaluation(path, source.notes)]
    chosen = compared(asked, int(room * FOR_COMPARISON))
    left = room - sum(one.size for one in chosen)
    files = list(step_files(run / ROLLOUTS).values())
    looked = spread(files, TRAINING_STEPS)
    by_step = [by_advantage(training(path, source.notes)) for path in looked]
    trained = fitting(interleaved(by_step), left)
    source.notes += _left_out(run, asked, chosen)
    if len(looked) < len(files) or len(trained) < sum(map(len, by_step)):
        steps = len({one.place for one in trained})
        source.notes.append(
            f"{len(trained):,} training answers from {steps} of {len(files)} steps are here, those of the highest and "
            f"the lowest advantage first; all lie in {run / ROLLOUTS}"
        )
    return _filled(source, [*chosen, *trained], decode)


Tables = Mapping[str, Mapping[str, Sequence[Path]]]
"""The files of a task's answers, by model and way to decode."""


def evaluation_answers(label: str, folder: Path, tables: Tables, room: int) -> Source:
    """Of one task of an evaluation, as many answers as there is ``room`` for (bytes)."""
    source = Source(label, str(folder), "model")
    found: list[Candidate] = []
    for model, by_kind in tables.items():
        for kind, paths in by_kind.items():
            for path in paths:
                found += _evaluated(path, source, model, kind)
    chosen = compared(_disputed_first(found), room)
    if len(chosen) < len(found):
        source.notes.append(f"{len(chosen):,} of {len(found):,} answers of this task are here; all lie in {folder}")
    return _filled(source, chosen, None)


def compared(candidates: Sequence[Candidate], room: int) -> list[Candidate]:
    """Answers to the same prompts at all places: prompt by prompt, first one of each way to decode, then more samples.

    Where the answers to one prompt alone would fill the room, places are left out evenly, the first and the last not.
    """
    if not candidates:
        return []
    places = list(dict.fromkeys(one.place for one in candidates))
    kinds = {"greedy": 0, "sampled": 0}
    mean = sum(one.size for one in candidates) / len(candidates)
    kept = set(spread(places, max(4, int(room / (4 * mean)))))
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(one.prompt_id for one in candidates))}
    ranked = sorted(
        (one for one in candidates if one.place in kept),
        key=lambda one: (kinds.get(one.kind, 1), prompts[one.prompt_id]),
    )
    return list(fitting(ranked, room))


def fitting(candidates: Iterable[Candidate], room: int) -> list[Candidate]:
    """The first candidates that fit into ``room`` together; one that does not is passed over."""
    found = []
    for one in candidates:
        if one.size <= room:
            found.append(one)
            room -= one.size
    return found


def interleaved(lists: Sequence[Sequence[Candidate]]) -> Iterator[Candidate]:
    """The first of each list, then the second of each, and so on."""
    for i in range(max(map(len, lists), default=0)):
        yield from (one[i] for one in lists if i < len(one))


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly, in their order, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]


def _evaluated(path: Path, source: Source, model: str, kind: str) -> list[Candidate]:
    table = read_table(path, source.notes)
    if table is None:
        return []
    columns = [table[name].to_pylist() for name in ("problem_id", "sample", "completion")]
    return [
        # No tokens are kept, so that the room is that of the text.
        Candidate(
            table, row, model, kind if not sample else f"{kind} {sample + 1}", problem, len(text) // PER_TOKEN + 8
        )
        for row, (problem, sample, text) in enumerate(zip(*columns, strict=True))
    ]


def _disputed_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Problems on which the models differ before the others, else as they came."""
    verdicts: dict[str, dict[str, set[Any]]] = {}
    for one in candidates:
        verdicts.setdefault(one.prompt_id, {}).setdefault(one.place, set()).add(one.value("right"))

    def disputed(prompt_id: str) -> bool:
        by_model = list(verdicts[prompt_id].values())
        return any(found != by_model[0] for found in by_model)

    return sorted(candidates, key=lambda one: not disputed(one.prompt_id))


def _left_out(run: Path, asked: Sequence[Candidate], chosen: Sequence[Candidate]) -> Iterator[str]:
    if len(chosen) < len(asked):
        yield f"{len(chosen):,} of {len(asked):,} evaluation answers are here; all lie in {run / EVAL_ANSWERS}"
    if not asked:
        yield f"no evaluation answers are in {run / EVAL_ANSWERS}: see log.eval_answers and eval.every in the recipe"


def _filled(source: Source, chosen: Sequence[Candidate], decode: Decode | None) -> Source:
    """The source with its chosen answers, in order of places, as the page's script reads them."""
    order = {place: i for i, place in enumerate(_ordered({one.place for one in chosen}, source.axis))}
    source.places = list(order)
    prompts: dict[tuple[str, str], int] = {}
    for one in sorted(chosen, key=lambda one: (order[one.place], one.kind)):
        of_evaluation = not one.kind.startswith("training")
        key = (one.prompt_id, "" if of_evaluation else one.place)
        if key not in prompts:
            prompts[key] = len(prompts)
            source.prompts.append(_prompt(one, of_evaluation))
        source.answers.append({"p": prompts[key], "s": order[one.place], **_record(one, decode)})
    if decode is None and chosen and source.axis == "step":
        source.notes.append(
            "no tokenizer.json was found in final/, the checkpoints or the model's folder, so tokens are not told apart"
        )
    source.ranges = {name: _range(source.answers, name) for name in SCALES}
    return source


def _ordered(places: set[str], axis: str) -> list[str]:
    return sorted(places, key=int) if axis == "step" else sorted(places)


def _prompt(one: Candidate, of_evaluation: bool) -> dict[str, Any]:
    asked = one.value("prompt") or one.value("question") or ""
    answer = one.value("answer")
    shown = {"id": printable_lines(one.prompt_id), "text": printable_lines(asked), "of_evaluation": of_evaluation}
    return shown if answer is None else {**shown, "answer": printable_lines(answer)}


def _record(one: Candidate, decode: Decode | None) -> dict[str, Any]:
    """Short keys, for there are thousands: kind, right, formatted, extracted, stop, length, means, flags, texts of
    tokens, signals of tokens, and the tokens of transitional words (first, one after the last)."""
    text, tokens = one.value("completion"), one.value("tokens")
    split = decode is not None and tokens is not None
    texts = pieces(decode, tokens) if decode is not None and tokens is not None else [text]
    found: dict[str, Any] = {
        "k": one.kind,
        "r": one.value("right"),
        "f": one.value("formatted"),
        "x": _shown(one.value("extracted")),
        "o": one.value("stop_reason"),
        "n": one.length if tokens is not None else one.value("length"),
        "m": {name: _mean(one.value(name)) for name in SCALES},
        "g": [name for name, holds in FLAGS.items() if holds(text)],
        "t": [printable_lines(piece) for piece in texts],
        "w": _token_spans(texts),
    }
    if split:
        found["v"] = {name: _whole(one.value(name), scale) for name, scale in SCALES.items()}
    if (advantage := one.value("advantage")) is not None:
        found["a"] = round(advantage, 3)
    return found


def _shown(text: str | None) -> str | None:
    return None if text is None else printable_lines(text)


def _mean(values: Any) -> float | None:
    """Of a signal over tokens, or as an evaluation has it."""
    if isinstance(values, list):
        values = sum(values) / len(values) if values else None
    return None if values is None or not math.isfinite(values) else float(f"{values:.5g}")


def _whole(values: Sequence[float], scale: float) -> list[int | None]:
    return [round(value * scale) if math.isfinite(value) else None for value in values]


def _token_spans(texts: Sequence[str]) -> list[tuple[int, int]]:
    """The tokens that transitional words stand in: the first of each word, and the one after its last."""
    ends, total = [], 0
    for text in texts:
        total += len(text)
        ends.append(total)
    found = []
    for start, end in transitional_spans("".join(texts)):
        first = next(i for i, stop in enumerate(ends) if stop > start)
        last = next(i for i, stop in enumerate(ends) if stop >= end)
        found.append((first, last + 1))
    return found


def _range(answers: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Nats of a token between which shading goes from the surest to the least sure: 5 % lie beyond on either side."""
    values = sorted(value for one in answers for value in one.get("v", {}).get(name, ()) if value is not None)
    if not values:
        return 0.0, 1.0
    low, high = values[int(0.05 * (len(values) - 1))], values[int(0.95 * (len(values) - 1))]
    return low / SCALES[name], max(high, low + 1) / SCALES[name]


def _is_garbled(character: str) -> bool:
    """No character of a text: a control code, the mark of bytes that are none, a private or unassigned one."""
    wild = unicodedata.category(character) in ("Cc", "Co", "Cn")
    return character == "\ufffd" or (wild and character not in "\n\t\r")
