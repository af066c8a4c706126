"""`rlif show`: answers of a run on the terminal, with verdict and reference answer, tokens shaded. Free of torch."""

from pathlib import Path
from statistics import fmean

from rich.text import Text

from rlif.errors import RlifError, named, printable, printable_lines, shortened
from rlif.report.answer_tables import Candidate
from rlif.report.highlights import Section, highlights, of_prompt
from rlif.report.pieces import Decode, find_decoder, pieces
from rlif.report.run_record import is_run, read_run
from rlif.report.token_view import legend, shaded_pieces
from rlif.utils.terminal import Console

_LONGEST = 1200
"""Characters of an answer or a prompt that are shown, unless all are asked for."""

_VERDICTS = {None: "undecided", True: "right", False: "wrong"}
_COLOURS = {None: "yellow", True: "green", False: "red"}
_UNLABELLED = "no label"
_MEANINGS = {
    "training ": "training N: the N-th completion of its prompt",
    "greedy:": "greedy, sampled: how an evaluation answer was drawn",
    "sampled": "greedy, sampled: how an evaluation answer was drawn",
    "undecided": "undecided: could not be judged in time",
    _UNLABELLED: f"{_UNLABELLED}: nobody knows what is right",
    "formatted": "formatted: in the form that was asked for",
    "read as": "read as: the answer found in it",
    "cut off": "cut off: at the length limit",
    "entropy": "entropy, self-certainty: in nats a token",
    "advantage": "advantage: above 0 made likelier by the step, below 0 less likely",
}
"""What the words beside an answer mean, by what stands there."""


def show_run(folder: Path, *, step: int | None, prompt: str | None, n: int, whole: bool) -> None:
    """Print answers of a run: ``n`` of the best, the worst and the flipped ones of a step, or those to a prompt.

    Raises `RlifError` for a folder that is no run, a step or a prompt without answers.
    """
    if not folder.is_dir() or not is_run(folder):
        what = "holds no run" if folder.is_dir() else "no such folder"
        raise RlifError(f"{folder}: {what}; give a folder that rlif train wrote")
    record = read_run(folder)
    notes = list(record.notes)
    with named({"step": "--step", "prompt": "--prompt"}):
        sections = highlights(folder, step, n, notes) if prompt is None else of_prompt(folder, prompt, step, n, notes)
    console = Console()
    few = console.color_system in ("standard", "windows")
    decode = find_decoder(folder, record.models)
    console.write_line(f"{record.name}, {record.state}")
    if decode is None:
        console.print(Text("no tokenizer.json is at hand: tokens are not shaded", style="dim"))
    elif console.color_system is not None:
        console.print(Text("each token on the colour of its ").append(legend(few)))
    facts = [_facts(one).plain for section in sections for one in section.answers]
    said = dict.fromkeys(meaning for word, meaning in _MEANINGS.items() if any(word in one for one in facts))
    console.print(Text("; ".join(said), style="dim"), soft_wrap=True)
    for section in sections:
        _print_section(console, section, decode, few, None if whole else _LONGEST)
    for note in notes:
        console.print(Text(printable(f"not shown: {note}"), style="dim"), soft_wrap=True)
    console.print()
    console.print(Text(printable(f"more in a browser: rlif report {folder}"), style="dim"), soft_wrap=True)


def _print_section(console: Console, section: Section, decode: Decode | None, few: bool, most: int | None) -> None:
    console.print(Text(f"\n{section.title[0].upper()}{section.title[1:]}", style="bold"), soft_wrap=True)
    asked = None
    for one in section.answers:
        console.print()
        if one.prompt_id != asked:
            asked = one.prompt_id
            console.print(_question(one, most), soft_wrap=True)
        console.print(_facts(one), soft_wrap=True)
        console.print(_answer(one, decode, few, most), soft_wrap=True)


def _question(one: Candidate, most: int | None) -> Text:
    """The prompt's id, its text, and the reference answer if there is one."""
    text = Text(f"{printable(one.prompt_id)}  ", style="dim")
    asked = printable_lines(one.value("prompt") or "").strip()
    text.append(asked if most is None else shortened(asked, most), style="default not dim")
    if (answer := one.value("answer")) is not None:
        text.append(f"  (reference answer: {printable(answer)})", style="default not dim")
    return text


def _facts(one: Candidate) -> Text:
    verdict = one.value("right")
    text = Text(f"step {one.place}, {one.kind}: ")
    unlabelled = verdict is None and one.value("answer") is None
    text.append(_UNLABELLED if unlabelled else _VERDICTS[verdict], style=_COLOURS[verdict])
    said = ["formatted" if one.value("formatted") else "not formatted"]
    if (read := one.value("extracted")) is not None:
        said.append(f"read as {shortened(printable(read), 40)}")
    said.append(f"{one.length} tokens" + (", cut off" if one.value("stop_reason") == "length" else ""))
    for name, words in (("entropy", "entropy"), ("self_certainty", "self-certainty")):
        if values := one.value(name):
            said.append(f"{words} {fmean(values):.3f}")
    if (advantage := one.value("advantage")) is not None:
        said.append(f"advantage {advantage:+.2f}")
    return text.append(f", {', '.join(said)}")


def _answer(one: Candidate, decode: Decode | None, few: bool, most: int | None) -> Text:
    tokens, entropies = one.value("tokens"), one.value("entropy")
    if not (completion := one.value("completion")).strip():
        return Text(f"(only white space: {shortened(repr(completion), 40)})" if completion else "(empty)", style="dim")
    if decode is not None and entropies:
        text = shaded_pieces(zip(pieces(decode, tokens), entropies, strict=True), few)
    else:
        text = Text(printable_lines(one.value("completion")))
    if most is not None and len(text) > most:
        left = len(text) - most
        text = text[:most].append(f" … {left:,} more characters (--whole shows them)", style="dim")
    return text
