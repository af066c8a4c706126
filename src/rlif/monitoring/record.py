"""A look as numbers: what the guards read, whoever has looked. Free of torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProbeRecord:
    """One look: numbers for the log, and by prompt what the guards compare. JSON-able.

    Attributes:
        metrics: keys ``probe/…`` of `rlif.runs.metric_keys.METRICS`; what cannot be known is left out.
        samples: completions of each prompt.
        counts: of a prompt's samples, how many are as they should be: more is better. ``agreement`` (with the frozen
            answer, in the asked form) and ``content`` (in whatever form) of prompts that have one, in their order;
            ``answered``, ``ended`` (not cut off) and ``not_looping`` of all prompts.
        nats: means over the tokens of a prompt's samples: ``entropy``, and ``cross_entropy`` under the frozen start.
        renewals: how often the frozen answers had been renewed: looks of different ones do not compare in agreement.
    """

    step: int
    samples: int
    metrics: Mapping[str, float]
    counts: Mapping[str, tuple[int, ...]]
    nats: Mapping[str, tuple[float, ...]]
    renewals: int = 0

    def as_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProbeRecord":
        """What `as_json` wrote."""
        tuples = {field: {name: tuple(row) for name, row in data[field].items()} for field in ("counts", "nats")}
        return cls(data["step"], data["samples"], dict(data["metrics"]), **tuples, renewals=data.get("renewals", 0))
