"""How a run's final model is asked in plain transformers: with the words of its training, as code for a model card."""

import json
from collections.abc import Sequence
from pathlib import Path

from rlif.config import ArithmeticTask, Recipe
from rlif.runs.layout import FINAL
from rlif.tasks.templates import find_template, render_messages, render_text

_PLACE = "\0question\0"
"""Stands for the question while a template words it: no template holds it."""
_PLAINLY = ("do_sample=False", "repetition_penalty=1.0", "return_full_text=False")
"""Greedy, and nothing else that a model's generation_config.json may ask for."""


def usage(recipe: Recipe, run: Path) -> str:
    """Python that asks the model of the run in a folder one question, greedily, with template, stop strings and length
    limit of its training. Whether prompts are conversations is as the recipe says, or else the tokenizer in final/.

    A system message that the chat template leaves out is left out here, too: training puts it before the question.
    """
    template, limit = recipe.task.template, recipe.rollout.max_new_tokens
    stop = [*dict.fromkeys((*find_template(template).stop, *recipe.rollout.stop))]
    options = [f"max_new_tokens={limit}", *_PLAINLY]
    options += [f"stop_strings={stop!r}", "tokenizer=ask.tokenizer"] if stop else []
    if _chats(recipe, run / FINAL):
        turns = [(turn["role"], turn["content"]) for turn in render_messages(template, _PLACE)]
        asked = _over_lines("[", [f'{{"role": "{role}", "content": {_spelled(words)}}}' for role, words in turns], "]")
    else:
        asked = _spelled(render_text(template, _PLACE))
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f"question = {example(recipe)!r}",
            f"prompt = {asked}",
            'ask = pipeline("text-generation", model="DIR")',
            f"said = ask{_over_lines('(', ['prompt', *options], ')')}",
            'print(said[0]["generated_text"])',
        ]
    )


def example(recipe: Recipe) -> str:
    """A question as the run's task asks them; a sum, worded anyhow, where the questions are in a file."""
    task = recipe.task
    asked = task.question if isinstance(task, ArithmeticTask) else "What is {a} + {b}?"
    return asked.replace("{a}", "27").replace("{b}", "58")


def _chats(recipe: Recipe, final: Path) -> bool:
    if recipe.policy.chat_template != "auto":
        return recipe.policy.chat_template == "on"
    config = final / "tokenizer_config.json"
    told = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    return told is not None or (final / "chat_template.jinja").is_file()


def _spelled(words: str) -> str:
    """An expression for words with the question in its places."""
    first, *others = words.split(_PLACE)
    parts = [repr(first), *(part for other in others for part in ("question", repr(other)))]
    return " + ".join(part for part in parts if part != "''") or "''"


def _over_lines(opening: str, parts: Sequence[str], closing: str) -> str:
    """Parts in brackets, one a line where they are long."""
    line = f"{opening}{', '.join(parts)}{closing}"
    return line if len(line) <= 100 else f"{opening}\n" + "".join(f"    {part},\n" for part in parts) + closing
