r"""Where in a completion the answer stands: one small function a form, in the table `EXTRACTORS`.

A *strict* extractor sees one prescribed form and nothing else: it tells whether a model has learned the form. A
*flexible* one finds the answer in text that nobody prescribed. docs/grading.md lists them all.

Every pattern is linear in the length of the text, however hostile: they read what a model wrote.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlif.errors import Argument, RlifError, did_you_mean
from rlif.grading.citations import BEHIND_A_SENTENCE
from rlif.grading.normalize import clean
from rlif.grading.numerals import MINUS, VULGAR
from rlif.grading.prose import conclusion, last_value, stated
from rlif.grading.prose_values import DELIMITED


@dataclass(frozen=True)
class Extractor:
    """One way to find the answer. Called with a completion, it returns the answer as written, or None."""

    read: Callable[[str], str | None]
    strict: bool
    rule: str
    """What counts, in a line; as in docs/grading.md."""
    same: Callable[[str, str], bool] | None = None
    """Whether a ground truth and what was read are the same; None: as numbers and formulas are compared."""

    def __call__(self, text: str) -> str | None:
        return self.read(text)


_THOUGHTS = re.compile(
    r"(?P<open><(?:seed:)?(?:think|thinking|thought|reasoning)>|<\|begin_of_thought\|>|\[think\]|◁think▷)"
    r"|</(?:seed:)?(?:think|thinking|thought|reasoning)>|<\|end_of_thought\|>|\[/think\]|◁/think▷",
    re.IGNORECASE,
)
_ENDS_OF_TAGS = ("think>", "thinking>", "thought>", "reasoning>", "thought|>", "think]", "think▷")
_BEFORE_A_MENTION = " \t\"'`“‘«([{*_,/"
_SAYS = re.compile(r"[^\W_]")
_LAST_BLOCK = re.compile(r"(?:\A|\n)[ \t]*(<answer>(?:(?!</?answer>)[\s\S])*</answer>)\s*\Z")


def without_thoughts(text: str) -> str | None:
    """A completion without its thoughts, each from ``<think>`` (or a like tag) to the next closing one.

    A tag without its partner may be a mere mention. An opening one begins thoughts if it begins a line, or is glued to
    the word before: what stands before them is left, or an ``<answer>`` block that ends the text; None if there is
    neither, as there is no answer yet. A closing one ends thoughts that began in the prompt, and all before it is
    taken off, if words follow.
    """
    lowered = text.lower()
    if not any(end in lowered for end in _ENDS_OF_TAGS):
        return text
    said: list[str] = []
    end, opened, real_opened = 0, -1, -1
    read, begins_line = 0, True  # up to which tag the text is read; whether only tags stand before in that line
    for tag in _THOUGHTS.finditer(text):
        _, newline, before = text[read : tag.start()].rpartition("\n")
        begins_line = not before.strip() and (bool(newline) or begins_line)
        read = tag.end()
        if tag["open"]:
            opened = tag.start() if opened < 0 else opened
            real = begins_line or text[tag.start() - 1] not in _BEFORE_A_MENTION
            real_opened = tag.start() if real_opened < 0 and real else real_opened
            continue
        begins_line = True
        begin = real_opened if real_opened >= 0 else opened
        if begin >= 0:
            said.append(text[end:begin])
        elif not _SAYS.search(text, tag.end()):
            break
        else:
            said.clear()
        end, opened, real_opened = tag.end(), -1, -1
    if real_opened < 0:
        return "\n".join([*said, text[end:]])
    before = "\n".join([*said, text[end:real_opened]])
    block = _LAST_BLOCK.search(text, real_opened)
    return block[1] if block else before if _SAYS.search(before) else None


_BRACES = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s{}$\\]+))|\\\\(?!boxed|fbox)|\\[{}]|[{}]")


def boxed(text: str) -> str | None:
    r"""The content of the last closed ``\boxed{...}`` or ``\fbox{...}``; of nested ones the innermost last.

    None if there is no such box or it is empty. ``\boxed 5`` counts, as in TeX.
    """
    last_start, content = -1, ""
    for start, inside, end in _boxes(text):
        if start > last_start:
            last_start, content = start, text[inside:end]
    return content.strip() or None


def _boxes(text: str) -> Iterator[tuple[int, int, int]]:
    """Where each closed box starts, where its content starts, and where that ends; in the order they close."""
    first = min((place for name in (r"\boxed", r"\fbox") if (place := text.find(name)) >= 0), default=len(text))
    open_groups: list[tuple[int, int]] = []  # where each open group and its content start; -1: not a box
    for token in _BRACES.finditer(text, first):
        symbol = token.group()
        if token["bare"]:
            yield token.start(), *token.span("bare")
        elif symbol == "{":
            open_groups.append((-1, -1))
        elif symbol == "}":
            start, inside = open_groups.pop() if open_groups else (-1, -1)
            if start >= 0:
                yield start, inside, token.start()
        elif symbol.endswith("{") and symbol != r"\{":
            open_groups.append((token.start(), token.end()))


def boxed_once(text: str) -> str | None:
    r"""The content of the only box, ``\boxed{...}`` with braces and nothing boxed inside; None if there are others.

    Boxes with the same content are one: an answer may be repeated, not hedged.
    """
    contents: set[str] = set()
    outermost = -1
    for start, inside, end in _boxes(text):
        if start < outermost or text[inside - 1] != "{" or not text.startswith(r"\boxed", start):
            return None  # around another box, or not the prescribed command
        outermost = start
        contents.add(text[inside:end].strip())
        if len(contents) > 1:
            return None
    return contents.pop() or None if contents else None


_TAG = re.compile(r"<answer>|</answer>")


def answer_tag(text: str) -> str | None:
    """The content of the last closed ``<answer>...</answer>``, as in the DeepSeek-R1 template (arXiv 2501.12948)."""
    start, content = -1, ""
    for tag in _TAG.finditer(text):
        if tag.group() == "<answer>":
            start = tag.end()
        elif start >= 0:
            content, start = text[start : tag.start()], -1
    return content.strip() or None


_LETTER = r"[A-Za-z] ?[-+*/^=(\\](?![^\n]{0,80}(?<![\\A-Za-z])[A-Za-z]{3})"
_HASH = re.compile(rf"####[ \t]*\**(?=(?:{MINUS}|\+)?(?:[$€£¥₹\\(\[{{.\d√π]|{VULGAR}|{_LETTER}))")


def after_hash(text: str) -> str | None:
    """What follows the last ``####`` on its line, as in GSM8K; a word there makes it a heading, not an answer."""
    found = _last(_HASH, text)
    return _announced(text, found.end()) if found else None


_ANSWER = re.compile(
    r"\banswer\b(?: to [^.\n:]{1,60}?)?\**[ \t]*"
    r"(?:(?:is|was|equals|(?:would|will|must|should|can only) be)\b|:|=)[\s:*]*",
    re.IGNORECASE,
)
_LAST_ANNOUNCEMENTS = 3


def after_answer_is(text: str) -> str | None:
    """What follows the last "answer is" or "answer:" in its sentence: the formula or number it states, or its words.

    Which number that is in prose: `rlif.grading.prose.stated`. None if nothing follows but what the answer is not.
    """
    found = deque(_ANSWER.finditer(text), maxlen=_LAST_ANNOUNCEMENTS)
    return next(filter(None, (_announced(text, announcement.end()) for announcement in reversed(found))), None)


_MINERVA_START = "Final Answer: The final answer is"
_MINERVA_END = ". I hope it is correct."


def minerva(text: str) -> str | None:
    """What stands between the two halves of the sentence that Minerva's few-shot prompt teaches (arXiv 2206.14858)."""
    start = text.rfind(_MINERVA_START)
    if start < 0:
        return None
    sentence, closed, _ = text[start + len(_MINERVA_START) :].partition(_MINERVA_END)
    return sentence.strip() or None if closed else None


def last_number(text: str) -> str | None:
    r"""The last number, in any spelling of `rlif.grading.numerals`; see `rlif.grading.prose.last_value` for what is
    none."""
    return last_value(text)


# The patterns of EleutherAI's lm-evaluation-harness 0.4.13, so that its numbers can be compared with ours.
_GSM8K_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_GSM8K_COT_STRICT = re.compile(r"The answer is (-?[0-9.,]+)(?=[^\n])")
_GSM8K_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def gsm8k_strict(text: str) -> str | None:
    """The first ``#### 72``: one space, then digits; ``strict-match`` of lm-evaluation-harness's task gsm8k."""
    found = _GSM8K_STRICT.search(text)
    return found[1] if found else None


def gsm8k_cot_strict(text: str) -> str | None:
    """The first ``The answer is 72.``; ``strict-match`` of lm-evaluation-harness's task gsm8k_cot.

    As there, a character has to follow: without a full stop the last digit is taken for it (72 becomes 7).
    """
    found = _GSM8K_COT_STRICT.search(text)
    return found[1] if found else None


def gsm8k_flexible(text: str) -> str | None:
    """The last run of digits; ``flexible-extract`` of lm-evaluation-harness's gsm8k tasks.

    As there, two or more of ``$.,`` in a row are such a run, and no answer.
    """
    found = _last(_GSM8K_FLEXIBLE, text)
    return found.group() if found else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


_SENTENCE_END = re.compile(
    rf"(?<!!)(?<!i\.e)(?<!e\.g)\.(?=\s|\Z|{BEHIND_A_SENTENCE})|(?<=!)(?=\.(?:\s|\Z))|(?<=[!?])(?=\s+[A-Z])"
)


def _announced(text: str, start: int) -> str | None:
    """What the rest of a line says, to the end of its first sentence; a formula may stand on lines of its own."""
    formula = DELIMITED.match(text, start)
    if formula and "\n" in formula.group():
        return formula.group()
    line = text[start:].partition("\n")[0]
    end = _SENTENCE_END.search(line)
    sentence = line[: end.start()] if end else line
    if sentence.endswith("!") and end and line.startswith(".", end.start()):
        sentence += "."  # which tells a factorial from an exclamation
    return stated(sentence) if sentence.strip(" \t*_.") else None


CHAIN = (boxed, answer_tag, after_hash, after_answer_is, conclusion)
"""Surest first: the order in which `extract_any` tries them."""


_LONGEST_CLEANED = 10_000
_MINUS_IN_WORDS = re.compile(r"\A(?:negative|minus) ")


def extract_any(text: str) -> str | None:
    """The answer in whatever form it was given, without its packaging (see `clean`); None if there is none.

    One of more than 10,000 characters is given as written: it is not going to be read.
    """
    found = filter(None, (extract(text) for extract in CHAIN))
    answers = (
        answer if len(answer) > _LONGEST_CLEANED else clean(_MINUS_IN_WORDS.sub("-", answer)) for answer in found
    )
    return next(filter(None, answers), None)


_ARTICLES = frozenset({"a", "an", "the"})


def whole_text(text: str) -> str | None:
    """All of the text, normalised: case, articles, spaces and punctuation around words do not count; None if nothing is
    left. Source: SQuAD's exact match (arXiv 1606.05250); but 3.5, it's and -5 keep the marks within and the sign.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = (_bare(word) for word in folded.split())
    return " ".join(word for word in words if word and word not in _ARTICLES) or None


_NUMBER = re.compile(rf"{MINUS}?\.?[0-9]")


def _bare(word: str) -> str:
    """A word without the punctuation around it; the sign and the point of a number are part of it."""
    first, last = 0, len(word)
    while last and _is_mark(word[last - 1]):
        last -= 1
    while first < last and _is_mark(word[first]) and not _NUMBER.match(word, first, last):
        first += 1
    return word[first:last]


def _is_mark(character: str) -> bool:
    return character not in "%‰" and unicodedata.category(character)[0] == "P"


def same_text(answer: str, found: str) -> bool:
    """Whether the normalised texts are equal; ``found`` is one."""
    return whole_text(answer) == found


EXTRACTORS: Mapping[str, Extractor] = MappingProxyType(
    {
        "boxed": Extractor(boxed, True, r"the last closed `\boxed{}` or `\fbox{}`, of nested ones the innermost"),
        "boxed_once": Extractor(boxed_once, True, r"the only `\boxed{}`; two with different contents are none"),
        "answer_tag": Extractor(answer_tag, True, "the last closed `<answer>…</answer>`"),
        "hash": Extractor(after_hash, True, "what follows the last `####` on its line, unless it is a word"),
        "gsm8k_strict": Extractor(gsm8k_strict, True, "the first `#### 72`, as lm-eval's gsm8k strict-match"),
        "gsm8k_cot_strict": Extractor(
            gsm8k_cot_strict, True, "the first `The answer is 72.`, as lm-eval's gsm8k_cot strict-match"
        ),
        "minerva": Extractor(minerva, True, "`Final Answer: The final answer is … . I hope it is correct.`"),
        "answer_is": Extractor(
            after_answer_is, False, 'after the last "answer is" or "answer:", what that sentence states'
        ),
        "last_number": Extractor(last_number, False, "the last number, in any spelling; not one inside a formula"),
        "conclusion": Extractor(conclusion, False, "the formula or number, list or range that the text ends with"),
        "gsm8k_flexible": Extractor(gsm8k_flexible, False, "the last run of digits, as lm-eval's flexible-extract"),
        "text": Extractor(
            whole_text, False, "the whole text, without case, articles and punctuation around words", same_text
        ),
        "any": Extractor(extract_any, False, "the first of boxed, answer_tag, hash, answer_is, conclusion to find one"),
    }
)
"""The forms an answer can be asked for in, by the name a recipe's ``task.format`` gives them."""


def find_extractor(name: str) -> Extractor:
    """An extractor by its name. Raises `RlifError` for an unknown one."""
    if name not in EXTRACTORS:
        meant, known = did_you_mean(name, EXTRACTORS), ", ".join(EXTRACTORS)
        raise RlifError(Argument("format"), f": no format {name!r}{meant} (there are {known})")
    return EXTRACTORS[name]
