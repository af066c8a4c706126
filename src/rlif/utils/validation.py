"""What the checks of a recipe or of options say, in plain words: what is expected, and what was given."""

from collections.abc import Mapping
from typing import Any

from rlif.errors import shown

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
    details["discriminator"] = details["discriminator"].strip("'")
    expected = _WORDS.get(kind)
    words = f"expected {expected.format_map(details)}" if expected else str(mistake["msg"])
    if isinstance(given, Mapping) and details["discriminator"] in given:
        given = given[details["discriminator"]]
    return words + _given(given)


def _given(value: object) -> str:
    """What stood there; of a section or a list only what it is, for its values are not the mistake."""
    kinds: tuple[tuple[type, str], ...] = ((Mapping, "a section"), (list, "a list"), (tuple, "a list"))
    kind = next((word for types, word in kinds if isinstance(value, types)), None)
    return f" (given {kind or ('null' if value is None else shown(value))})"
