"""How a question is put to a model. A template is data with a version: change the wording, raise the version."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rlif.config import TemplateText
from rlif.errors import Argument, RlifError, did_you_mean
from rlif.recipes import read_mapping
from rlif.tasks.few_shot import Shot
from rlif.utils.paths import expanded
from rlif.utils.validation import of_arguments


@dataclass(frozen=True)
class Template:
    """Wording around a question: an optional system message and a user message that contains ``{question}``.

    ``format`` is the extractor that reads the form it asks for. The ``stop`` strings end an answer, in training as in
    an evaluation; there worked examples may stand before the question, each ends in ``closing`` with its ``{answer}``.
    """

    name: str
    version: int
    user: str
    system: str | None
    citation: str
    format: str = "boxed"
    closing: str = r"The answer is \boxed{{answer}}."
    stop: tuple[str, ...] = ()


_BOX = r"put your final answer within \boxed{}."

TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template(
            name="plain",
            version=1,
            user="{question}",
            system=None,
            citation="the question alone",
        ),
        Template(
            name="boxed",
            version=1,
            user=f"{{question}}\nPlease reason step by step, and {_BOX}",
            system=None,
            citation="the instruction recommended for Qwen2.5-Math (arXiv 2409.12122)",
        ),
        Template(
            name="intuitor_small",
            version=1,
            user="{question}",
            system=f"Think the question through first, one step after another, then answer it: {_BOX}",
            citation="own words after the idea of Intuitor's prompt for small models (arXiv 2505.19590): not a copy",
        ),
        Template(
            name="intuitor_large",
            version=1,
            user="{question}",
            system=(
                "You help people with questions of mathematics. For each question, first think about how to reason: "
                "write down what is known and what is asked, work towards the answer step by step, and check each "
                f"step before the next. Only then answer: {_BOX}"
            ),
            citation="own words after the idea of Intuitor's prompt for larger models (arXiv 2505.19590): not a copy",
        ),
        Template(
            name="gsm8k_short",
            version=1,
            user="{question}\nThink step by step, and end with the final number after ####.",
            system=None,
            citation="GSM8K's own answer format (arXiv 2110.14168), asked for in one sentence",
            format="hash",
            closing="#### {answer}",
        ),
        Template(
            name="qa",
            version=1,
            user="Question: {question}\nAnswer:",
            system=None,
            citation="for base models, best behind worked examples (arXiv 2005.14165); GSM8K's own answer format",
            format="hash",
            closing="#### {answer}",
            stop=("Question:",),
        ),
    )
}


Wording = str | TemplateText | Template
"""What says how a question is put: a name, a YAML file, one's own text, or what `find_template` makes of it."""


def find_template(wording: Wording) -> Template:
    """A template by its name; of one's own by its text, or by the name of a YAML file with the keys of `TemplateText`.

    Raises `RlifError` for an unknown name, and for a file that is no template.
    """
    if isinstance(wording, Template):
        return wording
    if isinstance(wording, str) and is_file(wording):
        wording = read_template(Path(wording))
    if isinstance(wording, TemplateText):
        mark = hashlib.sha256(wording.model_dump_json().encode()).hexdigest()[:8]  # two of them are told apart by it
        return Template(f"own-{mark}", 1, citation="a template of yours", **wording.model_dump())
    if wording not in TEMPLATES:
        meant, known = did_you_mean(wording, TEMPLATES), ", ".join(TEMPLATES)
        raise RlifError(
            Argument("template"),
            f": no template {wording!r}{meant} (there are {known}; one of yours is a .yaml file)",
        )
    return TEMPLATES[wording]


def is_file(template: str) -> bool:
    """Whether a template's name is that of a file."""
    return template.endswith((".yaml", ".yml"))


def read_template(path: Path) -> TemplateText:
    """A template of the user's own. Raises `RlifError` naming the file and the first wrong key."""
    try:
        return TemplateText.model_validate(read_mapping(expanded(path), "template"))
    except ValidationError as error:
        mistakes = error.errors()
        raise RlifError(f"{path}: {of_arguments(mistakes, {}, TemplateText.model_fields)}") from None


def render_messages(template: Wording, question: str, shots: Sequence[Shot] = ()) -> list[dict[str, str]]:
    """The question as chat messages (role, content), behind worked examples as earlier turns.

    Raises `RlifError` for an unknown template.
    """
    found = find_template(template)
    messages = [{"role": "system", "content": found.system}] if found.system else []
    for shot in shots:
        messages.append({"role": "user", "content": _fill(found, shot.question)})
        messages.append({"role": "assistant", "content": worked_solution(template, shot)})
    return [*messages, {"role": "user", "content": _fill(found, question)}]


def render_text(template: Wording, question: str, shots: Sequence[Shot] = ()) -> str:
    """The question as plain text, for base models: system message, worked examples, user message, blank lines between.

    Raises `RlifError` for an unknown template.
    """
    found = find_template(template)
    worked = [f"{_fill(found, shot.question)}{gap(template)}{worked_solution(template, shot)}" for shot in shots]
    return "\n\n".join([*([found.system] if found.system else []), *worked, _fill(found, question)])


def worked_solution(template: Wording, shot: Shot) -> str:
    """What a worked example answers: its steps, then the answer in the form that the template asks for.

    Raises `RlifError` for an unknown template.
    """
    return f"{shot.reasoning}\n{find_template(template).closing.replace('{answer}', shot.answer)}"


def gap(template: Wording) -> str:
    """What parts a question from its answer in plain text: a space if the template ends with a cue, else a line.

    Raises `RlifError` for an unknown template.
    """
    return " " if find_template(template).user.endswith(":") else "\n"


def _fill(template: Template, question: str) -> str:
    return template.user.replace("{question}", question)  # not str.format: questions are full of braces
