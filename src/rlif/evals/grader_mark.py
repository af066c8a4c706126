"""Who graded an evaluation: the mark that results carry, and what marks of before it say the same as."""

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rlif.grading.grader import GRADER_VERSION

SAME_VERDICTS: Mapping[str, str] = {
    "da482d34142b2cf3": "2",  # the last of the flat folder, before the modules moved
    "2ca4b2c2d9804182": "2",  # the last that was marked by its source code
}
"""Hashes of the grader's source code, by which evaluations were marked before it had a version, to that version."""

_BY_SOURCE = re.compile(r"rlif [^,]+, (math-verify [^,]+), ([0-9a-f]{16})")


def grader_mark() -> str:
    """The versions of the grader and of math-verify: equal marks, equal verdicts."""
    return f"rlif grader {GRADER_VERSION}, math-verify {version('math-verify')}"


def with_known_grader(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A task's protocol as it would be written today, if its grader was marked by a source code that is known."""
    found = _BY_SOURCE.fullmatch(str(protocol.get("grader")))
    if found is None or found[2] not in SAME_VERDICTS:
        return dict(protocol)
    return {**protocol, "grader": f"rlif grader {SAME_VERDICTS[found[2]]}, {found[1]}"}
