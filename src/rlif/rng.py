"""Randomness: every random number is a function of names, so that no order of work changes it.

The one rule: whatever a run or an evaluation depends on (which problems, which tokens, which seed a server is sent) is
drawn here, from a key. Nobody else turns names into seeds. What is an experiment or a test of its own, drawn in one go
by one process, seeds a generator with a number it is given: `rlif.theory`, `rlif.tiny` and the resampling of
`rlif.analysis.paired`. tests/test_architecture.py holds the list.
"""

import hashlib
from dataclasses import dataclass
from random import Random

import numpy as np


@dataclass(frozen=True)
class Key:
    """What makes a draw reproducible, besides the prompt: the run's seed and the step (or an evaluation's name).

    >>> import rlif
    >>> rlif.Key(seed=0, step=1) == rlif.Key(seed=0, step=2)
    False
    """

    seed: int
    step: int | str


def uniforms(key: Key, prompt_id: str, sample: int, count: int) -> np.ndarray:
    """The first ``count`` numbers in [0, 1) of one completion's random stream; float64. Source: project."""
    text = f"{key.seed}/{key.step}/{prompt_id}/{sample}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


SEED_BITS = 31  # what every server takes: some hold seeds in 32 bits, signed


def seed_of(key: Key, problem_id: str, sample: int) -> int:
    """The seed of one answer, the same on every machine: a hash of (run seed, step, problem, sample), 31 bits."""
    digest = hashlib.blake2b(f"{key.seed}/{key.step}/{problem_id}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (1 << SEED_BITS)


def keyed_random(*key: str | int) -> Random:
    """A random stream of its own for each key, the same in every process (seeded with the key's SHA-512)."""
    return Random("/".join(map(str, key)))


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair of summands belongs to evaluation: an eighth of all pairs, in either order."""
    low, high = sorted((a, b))
    return is_text_held_out(f"{low}+{high}")


def is_text_held_out(text: str) -> bool:
    """Whether a question belongs to evaluation: an eighth of all, whoever asks it."""
    return hashlib.blake2b(text.encode()).digest()[0] % 8 == 0
