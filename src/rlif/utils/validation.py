"""What the checks of a recipe or of options say, in plain words: what is expected, and what was given."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlif.errors import near, printable, shortened, shown

_MOST = 4  # mistakes on one line

_WORDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_unicode": "text without halves of characters",
    "string_too_short": "text that is not empty",
    "literal_error": "one of {expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "a list of {min_length} values or more",
    "too_long": "a list of {max_length} values",
    "dict_type": "a section, which is a mapping of keys to values",
    "model_type": "a section, which is a mapping of keys to values",
    "model_attributes_type": "a section, which is a mapping of keys to values",
    "union_tag_not_found": "a section with a {discriminator}",
    "union_tag_invalid": "one of {expected_tags} as its {discriminator}",
    "invalid_key": "keys that are text",
    "recursion_loop": "values that do not contain themselves",
}
"""The type of a mistake as pydantic calls it, and what would have been right."""


def explained(mistake: Mapping[str, Any]) -> str:
    """One entry of pydantic's `ValidationError.errors()` without the key: `expected ... (given ...)`, one line.

    A rule of our own says itself what is wrong. Of what was given at most 60 characters are shown.
    """
    kind, given = mistake["type"], mistake.get("input")
    if kind == "value_error":
        message = str(mistake["msg"]).removeprefix("Value error, ")
        return message + (_given(given) if isinstance(given, str | int | float) else "")
    details = {"discriminator": "", **mistake.get("ctx", {})}
    details["discriminator"] = details["discriminator"].strip("'").removesuffix("()")  # of a function
    expected = _WORDS.get(kind)
    words = f"expected {expected.format_map(details)}" if expected else "this is no value for it"
    if isinstance(given, Mapping) and details["discriminator"] in given:
        given = given[details["discriminator"]]
    return words + _given(given)


def misspelt_first(mistakes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Unknown keys before all else, for what is missing beside one is often the same mistake; else their order."""
    return sorted(mistakes, key=lambda mistake: mistake["type"] != "extra_forbidden")


def listed(said: Sequence[str]) -> str:
    """What is said of each mistake, on one line: of the first four, and how many there are besides."""
    more = f" (and {len(said) - _MOST} more)" if len(said) > _MOST else ""
    return "; also ".join(said[:_MOST]) + more


def of_arguments(mistakes: Sequence[Mapping[str, Any]], given: Mapping[str, Any], known: Iterable[str]) -> str:
    """What is wrong with the arguments of a section that was made in Python, on one line.

    Args:
        mistakes: pydantic's `ValidationError.errors()`.
        given: the arguments; they tell keys from the kinds of section that pydantic puts between them.
        known: what the section takes.
    """
    said, meant = [], ""
    for mistake in misspelt_first(mistakes):
        keys = _keys(mistake["loc"], given)
        key = shortened(printable(".".join(map(str, keys))), 200)
        if mistake["type"] == "extra_forbidden":
            meant = near(str(keys[-1])[:100], known) if len(keys) == 1 else ""
            said.append(f"{key}: unknown key" + (f"; did you mean {meant}?" if meant else ""))
        elif mistake["type"] != "missing":
            said.append(f"{key + ': ' if key else ''}{explained(mistake)}")
        elif key != meant:
            said.append(f"{key}: this key is required")
    return listed(said)


def _keys(location: Sequence[str | int], given: Any) -> list[str | int]:
    keys: list[str | int] = []
    for place, part in enumerate(location):
        if isinstance(part, int) or place == len(location) - 1 or not isinstance(given, Mapping) or part in given:
            keys.append(part)
            given = given.get(part) if isinstance(given, Mapping) and part in given else given
            given = given[part] if isinstance(given, list | tuple) and isinstance(part, int) else given
    return keys


def _given(value: object) -> str:
    """What stood there; of a section or a list only what it is, for its values are not the mistake."""
    kinds: tuple[tuple[type, str], ...] = ((Mapping, "a section"), (list, "a list"), (tuple, "a list"))
    kind = next((word for types, word in kinds if isinstance(value, types)), None)
    return f" (given {kind or ('null' if value is None else shown(value))})"
