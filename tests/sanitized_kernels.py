"""Calls every kernel of a library made with the address sanitizer, on memory cut to size. Run by
tests/model/test_cpu_kernels.py:

    python sanitized_kernels.py LIBRARY bf16|fp32 WIDE CHUNKS

Needs nothing but Python: torch under a sanitizer takes minutes.
"""

import ctypes
import itertools
import random
import struct
import sys

path, kind, wide, chunks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
library, libc = ctypes.CDLL(path), ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
draw = random.Random(0)
SPECIAL = [float("inf"), float("-inf"), float("nan"), 1e38, -1e38, 0.0]
held: list[int] = []


def memory(data: bytes) -> ctypes.c_void_p:
    """As many bytes as there are, not one more."""
    at = libc.malloc(len(data))
    ctypes.memmove(at, data, len(data))
    held.append(at)
    return ctypes.c_void_p(at)


def encoded(values: list[float]) -> bytes:
    data = struct.pack(f"<{len(values)}f", *values)
    return data if kind == "fp32" else b"".join(data[i + 2 : i + 4] for i in range(0, len(data), 4))


POOL = {
    special: encoded([draw.choice(SPECIAL) if special and i % 5 == 0 else draw.uniform(-3, 3) for i in range(60_000)])
    for special in (False, True)
}


def numbers(n: int, special: bool = False) -> ctypes.c_void_p:
    size = 4 if kind == "fp32" else 2
    start = draw.randrange(60_000 - n) * size
    return memory(POOL[special][start : start + n * size])


def floats(n: int) -> ctypes.c_void_p:
    return memory(bytes(4 * n))


def integers(values: list[int]) -> ctypes.c_void_p:
    return memory(struct.pack(f"<{len(values)}q", *values))


def call(name: str, *arguments: object) -> None:
    made = [
        ctypes.c_long(x) if isinstance(x, int) else ctypes.c_float(x) if isinstance(x, float) else x for x in arguments
    ]
    getattr(library, name)(2, *made)
    while held:
        libc.free(held.pop())


flag = ctypes.c_int
for special in (False, True):
    for rows, size in [(1, 1), (1, 7), (5, 64), (12, 96), (40, 577), (chunks - 1, 3), (chunks + 1, 3)]:
        n = rows * size
        call("rms_norm", numbers(n, special), numbers(size), 1.0, 1e-5, numbers(n), rows, size)
        call(
            *("rms_norm_backward", numbers(n, special), numbers(size), 0.0, 1e-5, numbers(n)),
            *(numbers(n), floats(chunks * size), rows, size),
        )
        for gelu in (0, 1):
            both = numbers(2 * n, special)
            up = ctypes.c_void_p((both.value or 0) + size * (4 if kind == "fp32" else 2))
            call("gated", both, 2 * size, up, 2 * size, flag(gelu), numbers(n), rows, size)
            call(
                *("gated_backward", numbers(n, special), numbers(n), flag(gelu), numbers(n)),
                *(numbers(n), numbers(n), rows, size),
            )
    for rows, heads, features in [(1, 1, 2), (5, 3, 10), (25, 4, 128), (3, 2, 256)]:
        n = rows * heads * features
        call(
            *("rotate", numbers(n, special), heads * features, numbers(rows * features), numbers(rows * features)),
            *(-1.0, numbers(n), rows, heads, features),
        )
    for vocab, coldness in itertools.product([1, 3, 255, 256, 257, 1000], [0.0, 1.0, 0.7]):
        for u in (0.0, 0.5, 1.0 - 2.0**-53):
            rows = 3
            uniform = memory(struct.pack("<3d", u, u, u))
            told = [floats(rows) for _ in range(4)]
            call(
                "draw",
                numbers(rows * vocab, special),
                vocab,
                uniform,
                coldness,
                integers([0] * rows),
                *told,
                rows,
                vocab,
            )

shapes = [(4, 2, 8), (9, 3, 64), (5, 1, 96), (8, 1, 128), (6, 2, 256), (2, 2, 80), (3, 1, 160), (1, 1, 2)]
for (heads, kv_heads, features), window, normed in itertools.product(shapes, [1, 70], [False, True]):
    lengths, slots, columns = [0, 3, 63, 64, 70], [4, 0, 3, 2, 1], 71
    rows, padded = len(lengths), -(-features // wide) * wide
    cache = 5 * kv_heads * columns * padded
    stride = (heads + 2 * kv_heads) * features
    line, bytes_each = numbers(rows * stride), 4 if kind == "fp32" else 2
    q = line.value or 0
    k, v = q + heads * features * bytes_each, q + (heads + kv_heads) * features * bytes_each
    norms = (numbers(features), numbers(features)) if normed else (None, None)
    call(
        *("attend", line, ctypes.c_void_p(k), ctypes.c_void_p(v), stride, stride, stride, *norms, 0.0, 1e-5),
        *(numbers(rows * features), numbers(rows * features), memory(bytes(cache * bytes_each))),
        *(memory(bytes(cache * bytes_each)), integers(slots), integers(lengths)),
        *(rows, heads, kv_heads, features, columns, window, features**-0.5, numbers(rows * heads * features)),
    )
print("clean")
