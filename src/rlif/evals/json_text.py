"""JSON files of an evaluation: what JSON cannot say is null, and what differs between two is said in words."""

import json
import math
from collections.abc import Mapping
from typing import Any


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first setting in which two descriptions differ, in words; empty if there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            if found := first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return found
        return ""
    return "" if old == new else f"{where} was {json.dumps(old)}, is {json.dumps(new)}"


def as_json(data: Any) -> bytes:
    return json.dumps(_finite(data), indent=1).encode() + b"\n"


def _finite(data: Any) -> Any:
    """Numbers that are not finite as null: JSON knows no others."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
