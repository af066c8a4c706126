"""The reference of recipe keys, from the types of `rlif.config`: what each may be, its default, its meaning.

``python -m rlif.recipe_keys > docs/recipe.md`` writes the page.
"""

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from rlif.config import Recipe

Schema = Mapping[str, Any]

_PAGE_HEAD = """\
# Every key of a recipe

A recipe is a YAML file of the sections below. `rlif train RECIPE section.key=value` changes a key for one
run; a run's own `recipe.yaml` has all of them spelled out. An unknown key is an error.

This page is written by `python -m rlif.recipe_keys > docs/recipe.md`.

```sh
rlif train recipes/tiny.yaml steps=20 grpo.lr=3e-5 reward=token_entropy --out runs/mine
```
"""


@cache
def recipe_page() -> str:
    """The text of docs/recipe.md. Source: project."""
    schema = Recipe.model_json_schema()
    known: Mapping[str, Schema] = schema["$defs"]
    sections = {name: part for name, part in schema["properties"].items() if _objects(part, known)}
    top = {**schema, "properties": {k: v for k, v in schema["properties"].items() if k not in sections}}
    chapters = [f"\n## At the top\n\n{_table(top, known, '')}"]
    for name, part in sections.items():
        chapters.append(f"\n## {name}\n")
        chapters += [f"\n{part['description']}\n"] if "description" in part else []
        chapters += _tables(name, _objects(part, known), known)
    return _PAGE_HEAD + "".join(chapters)


def _tables(section: str, kinds: Mapping[str, Schema], known: Mapping[str, Schema]) -> Iterator[str]:
    """A table for each kind that a section may be; a section of several kinds names them."""
    for schema in kinds.values():
        names = schema["properties"].get("name", {})
        said = names.get("enum", [names["const"]] if "const" in names else [])
        label = " or ".join(f"`name: {name}`" for name in said) or "any other `name`"
        heading = f"\n### {label}\n" if len(kinds) > 1 else ""
        yield f"{heading}\n{_table(schema, known, section)}"


def _table(schema: Schema, known: Mapping[str, Schema], section: str) -> str:
    required = schema.get("required", ())
    lines = ["| key | may be | unless given | meaning |", "|---|---|---|---|"]
    for key, part in schema["properties"].items():
        path = f"`{section}.{key}`" if section else f"`{key}`"
        default = "required" if key in required else f"`{_plain(part.get('default'))}`"
        meaning = " ".join(part.get("description", "").split())
        cells = (path, _values(part, known), default, meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _objects(part: Schema, known: Mapping[str, Schema]) -> dict[str, Schema]:
    """The sections that a key may hold, by the names of their types; a list's are those of its entries."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return {name: known[name]} if "properties" in known[name] else {}
    entries = [part["items"]] if isinstance(part.get("items"), dict) else []
    inner = [*part.get("anyOf", ()), *part.get("oneOf", ()), *entries]
    return {name: found for entry in inner for name, found in _objects(entry, known).items()}


def _values(part: Schema, known: Mapping[str, Schema]) -> str:
    """What a key may be, in words: its type, its bounds, its choices."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return "{" + ", ".join(known[name]["properties"]) + "}"
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if choices := [*part.get("anyOf", ()), *part.get("oneOf", ())]:
        return " or ".join(dict.fromkeys(_values(choice, known) for choice in choices))
    if part["type"] == "array":
        entries = part.get("prefixItems") or [part["items"]]
        words = ", ".join(_values(entry, known) for entry in entries)
        return f"[{words}]" if "prefixItems" in part else f"a list of {words}"
    return f"{_TYPES[part['type']]}{_bounds(part)}"


_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
_LOWER = {"minimum": ("[{}", "≥ {}"), "exclusiveMinimum": ("({}", "> {}")}
_UPPER = {"maximum": ("{}]", "≤ {}"), "exclusiveMaximum": ("{})", "< {}")}


def _bounds(part: Schema) -> str:
    """One bound as a comparison, two as an interval."""
    found = [(forms, _plain(part[key])) for side in (_LOWER, _UPPER) for key, forms in side.items() if key in part]
    if len(found) == 2:
        return f" in {', '.join(forms[0].format(bound) for forms, bound in found)}"
    return "".join(f" {forms[1].format(bound)}" for forms, bound in found)


def _plain(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, list):
        return f"[{', '.join(_plain(entry) for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(recipe_page())
