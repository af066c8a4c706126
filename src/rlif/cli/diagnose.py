"""What ``rlif diagnose`` does once its options are read: the verdict first, then why, then the numbers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rlif.config import FileTask, PolicyConfig
from rlif.errors import Argument, RlifError, named, printable, printable_lines, with_error
from rlif.experiments.calibration import label_of
from rlif.experiments.diagnose import Diagnosis, diagnose
from rlif.experiments.subject import ARITHMETIC, as_trained, settings_of, subject_of
from rlif.experiments.untrained import OnPass
from rlif.experiments.verdict import VerdictName
from rlif.model.loading import load_policy
from rlif.recipes import dump_recipe
from rlif.report.diagnosis import WAYS, figure
from rlif.rollout.engine import Engine
from rlif.utils.atomic_io import make_folder, write_whole, writing
from rlif.utils.plotting import png
from rlif.utils.terminal import Console, say, text_column

_SAME = (
    *("template", "format", "temperature", "reward", "limit", "samples", "similarity", "max_new_tokens"),
    *("labels", "seed"),
    *("chat_template", "dtype", "device"),
)
OPTIONS: Mapping[str, str] = {
    **{name: f"--{name.replace('_', '-')}" for name in _SAME},
    **{"model": "MODEL", "path": "--prompts", "prompts": "--prompts", "prompt": "--prompts: prompt"},
    **{"question_column": "--question", "answer_column": "--answer", "config": "--config", "split": "--split"},
    **{"reward.name": "--reward", "reward.of": "--reward"},
}
"""What the command calls the arguments that an `RlifError` of the library names."""


@named(OPTIONS)
def print_diagnosis(
    model: str,
    source: str,
    settings: Mapping[str, Any],
    loading: Mapping[str, Any],
    *,
    as_json: bool = False,
    out: Path | None = None,
) -> None:
    """Diagnose a model and print what was found, as tables or as JSON; write it and a picture into ``out``.

    Args:
        source: a file of prompts, or ``arithmetic``.
        settings: fields of `rlif.experiments.subject.DiagnoseSettings`.
        loading: fields of `rlif.config.PolicyConfig` besides the model.

    Raises `RlifError` for what the user can fix.
    """
    console = Console()
    asked, config = settings_of(**settings), _policy(model, loading)
    if source != ARITHMETIC:
        asked, config, said = as_trained(asked, config)
        if said:
            (Console(stderr=True) if as_json else console).write_line(said)
    subject = subject_of(source, asked, config)
    engine = Engine(load_policy(config))
    with _progress(Console(stderr=True) if as_json else console) as (on_pass, advance):
        found = diagnose(engine, subject, asked, on_pass=on_pass, progress=advance)
    if as_json:
        for line in json.dumps(found.as_json(), indent=1, allow_nan=False).splitlines():
            say(line)
    else:
        _show(console, view(found))
    if out is not None:
        for path in write(found, out):
            (Console(stderr=True) if as_json else console).write_line(f"written: {path}")


_UNWRAPPED = 10_000
"""Columns of what is not a terminal: no line is as long."""


def _show(console: Console, found: RenderableType) -> None:
    """On a terminal as wide as it is; a pipe gets whole lines, without the blanks that fill a terminal's."""
    if console.is_terminal:
        console.print(found)
        return
    page = Console(width=_UNWRAPPED, file=StringIO())
    with page.capture() as captured:
        page.print(found)
    for line in captured.get().splitlines():
        console.write_line(line.rstrip())


_CHOICES = {"chat_template": ("auto", "on", "off"), "dtype": ("auto", "float32", "bfloat16")}


def _policy(model: str, loading: Mapping[str, Any]) -> PolicyConfig:
    for name, known in _CHOICES.items():
        if loading[name] not in known:
            raise RlifError(Argument(name), f": {loading[name]!r}; choose {', '.join(known[:-1])} or {known[-1]}")
    return PolicyConfig(model=model, **loading)


@contextmanager
def _progress(console: Console) -> "Iterator[tuple[OnPass, Any]]":
    """On a terminal what is being drawn and how many tokens so far, elsewhere a line a pass."""
    if not console.is_terminal:
        yield (lambda name, completions: console.write_line(f"drawing: {name} ({completions:,} completions)")), None
        return
    columns = (SpinnerColumn(), text_column("{task.description}"), text_column("{task.completed:,.0f} tokens"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("loading", total=None)

        def on_pass(name: str, completions: int) -> None:
            progress.update(bar, description=f"{name}, {completions:,} completions")

        yield on_pass, lambda tokens: progress.advance(bar, tokens)


def write(found: Diagnosis, out: Path) -> list[Path]:
    """Write diagnosis.json, diagnosis.png and, where there is one, recipe.yaml; returns their paths.

    Raises `RlifError` if it cannot.
    """
    content = found.as_json()
    files = {
        "diagnosis.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
        "diagnosis.png": png(figure(content)),
    }
    if found.recipe is not None:
        judged = printable(f"# rlif diagnose: {content['model']}, {content['task']}: {found.verdict}")
        files["recipe.yaml"] = f"{judged}\n{dump_recipe(found.recipe)}".encode()
    with writing(out, "choose another --out"):
        make_folder(out)
        for name, data in files.items():
            write_whole(out / name, data)
    return [out / name for name in files]


def view(found: Diagnosis) -> RenderableType:
    """Verdict, reasons and tables, for a terminal of 80 columns."""
    content = found.as_json()
    reasons = (Padding(Text(f"- {printable_lines(reason)}"), (0, 0, 0, 2)) for reason in content["reasons"])
    task = found.recipe.task if found.recipe else None
    asked = Path(task.path).name if isinstance(task, FileTask) else content["task"]
    head = f"{content['model']}, {asked}, {content['prompts']} prompts"
    if (near := found.settings.similarity) is not None:
        head += f"; answers are the same from a cosine of {near.least:g} by {near.model}"
    return Group(
        Text(printable_lines(head)),
        Text(f"verdict: {content['verdict']}", style="bold"),
        *reasons,
        Text(""),
        ways(content),
        Text(""),
        *((same_answers(content), Text("")) if _frozen(content) else ()),
        numbers(content),
        *((Text(""), recipe(found)) if found.verdict == ADVISED else ()),
    )


def ways(content: Mapping[str, Any]) -> RenderableType:
    """What each way to answer gives and costs; with labels the truth beside it. No column that nothing can fill."""
    truth = content["labels"]["ways"] if content["labels"] else {}
    frozen = _frozen(content)
    heads = [*(("agrees", "in form") if frozen else ()), "tokens", *(("right", "in form") if truth else ())]
    table, unsure = _table("without training", *heads), False
    for name in (name for name in WAYS if name in content["numbers"]["ways"]):
        way = content["numbers"]["ways"][name]
        agreement = [way["agrees"], way["agrees_in_form"]] if frozen else []
        truths = [truth[name]["right"], truth[name]["right_and_formatted"]] if truth else []
        unsure |= any(not one["stderr"] for one in (*agreement, *truths))
        cells = [*map(_percent, agreement), f"{way['tokens']:,.0f}", *map(_percent, truths)]
        mark = " *" if name == content["decoding"] else ""
        table.add_row(WAYS[name] + mark, *cells)
    notes = []
    if frozen or truth:
        notes.append("in %, ± one standard error over prompts" + (", without where all are alike" if unsure else ""))
    if frozen:
        notes.append(f"agrees: with its own frozen answers, which {frozen} of {content['prompts']} prompts have")
    else:
        notes.append("no prompt has a frozen answer: there is nothing to agree with")
    notes.append("tokens: of an answer; * as you decode" + ("" if truth else "; no label was read"))
    if truth:
        notes.append(f"right: of {content['labels']['prompts']} prompts with a label, which no verdict reads")
    return Group(table, *(Text(note, style="dim") for note in notes))


def _frozen(content: Mapping[str, Any]) -> int:
    """How many prompts have a frozen answer."""
    return round(content["numbers"]["trust"]["answered"] * content["prompts"])


def same_answers(content: Mapping[str, Any]) -> RenderableType:
    """How far the ways agree with one another."""
    same = content["numbers"]["same_answer"]
    names = list(dict.fromkeys(name for pair in same for name in pair.split("~")))
    table = _table("same answer, %", *(WAYS[name] for name in names[1:]))
    for i, name in enumerate(names[:-1]):
        cells = [f"{100 * same[f'{name}~{other}']:.0f}" if j > i else "" for j, other in enumerate(names) if j]
        table.add_row(WAYS[name], *cells)
    return table


def numbers(content: Mapping[str, Any]) -> RenderableType:
    """Headroom, form, entropy, repetition, diversity, trust: one line each."""
    found = content["numbers"]
    head, form, trust = found["headroom"], found["formatted"], found["trust"]
    entropy, repetition, diversity = found["entropy"], found["repetition"], found["diversity"]
    states = ", ".join(
        f"{name} {with_error(one['value'], one['stderr'], '.3f')}" for name, one in entropy["states"].items()
    )
    lines = {
        "headroom": f"{_percent(head['sharpening'])} % by sharpening; {_percent(head['over_best'])} % over the best",
        "in asked form": ", ".join(f"{name} {100 * share:.0f} %" for name, share in form.items()),
        "entropy": f"{states} nats a token, of the model at T = 1 in {entropy['dtype']}, over the states of each",
        "repetition": f"{100 * repetition['looping']:.0f} % loop, {100 * repetition['truncated']:.0f} % cut off",
        "diversity": f"{100 * diversity['self_agreement']:.0f} % of a prompt's samples agree, "
        f"{100 * diversity.get('distinct', 0.0):.0f} % of prompts have an answer of their own",
        "trust": f"{100 * trust['trusted']:.0f} % trusted, {100 * trust['disputed']:.0f} % disputed, "
        f"{100 * trust['in_doubt']:.0f} % in doubt (disputed, or not trusted)",
    }
    if not _frozen(content):
        del lines["headroom"]
    if content["labels"]:
        lines |= _truth_lines(content["labels"])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, line in lines.items():
        table.add_row(name, line)
    return table


def _truth_lines(labels: Mapping[str, Any]) -> dict[str, str]:
    return {
        "frozen right": f"{100 * labels['reference_right']:.0f} % of the labelled prompts",
        **{name.replace("_", " "): _found(one) for name, one in labels["greedy_mistakes"].items()},
    }


def _found(one: Mapping[str, Any]) -> str:
    counts = f"{one['both']} of {one['marked']} so marked, {one['greedy_wrong']} wrong"
    precision, recall = _plain(one["precision"]), _plain(one["recall"])
    return f"finds greedy's mistakes with precision {precision}, recall {recall} ({counts})"


ADVISED: VerdictName = "worth training"
"""The verdict under which the recipe is shown."""


def recipe(found: Diagnosis) -> RenderableType:
    """The recipe in a line: what it rewards, for how long, how fast."""
    if found.recipe is None:
        return Text("recipe: none can name these problems; train them from Python")
    one, rollout = found.recipe, found.recipe.rollout
    said = f"{label_of(one.reward)}, {one.steps} steps of {rollout.prompts} × {rollout.group_size}, lr {one.grpo.lr:g}"
    return Text(f"recipe: {said}; --out DIR writes it")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    return table


def _percent(estimate: Mapping[str, Any]) -> str:
    """An estimate in %, with its standard error where that is known (see `rlif.errors.with_error`)."""
    if estimate["value"] is None:
        return "–"
    value, error = 100 * estimate["value"], estimate["stderr"]
    return with_error(value, 100 * error, ".0f") if error else f"{value:.0f}"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
