"""Paper and pencil: the paper's own setting on one and on eight H100-class GPUs, from their data sheet alone.

    python benchmarks/estimate.py [--parameters 1.72e9] [--layers 28] [--heads 16] [--kv-heads 8] [--feature 128]
        [--prompts 128] [--group 8] [--prompt-tokens 300] [--tokens 3072]

Nothing here is measured. Decoding is bound by memory: each step reads the weights once and the keys and values of every
row; training by the matrix rate. The efficiencies are assumptions, printed with the result. Left out: the exchange of
gradients between GPUs, and the forward pass of a reference model if there is a KL term.
"""

import argparse

from common import print_table

BANDWIDTH, MATRIX, MEMORY = 3.35e12, 989e12, 80e9  # bytes/s, dense bf16 operations/s, bytes: H100 SXM
BANDWIDTH_SHARE, MATRIX_SHARE = 0.7, 0.4  # of the data sheet's figures that good code reaches
TRAINING_BYTES = 18  # a parameter: fp32 master, two Adam moments, fp32 gradient, bf16 copy
WORKING_SHARE = 0.1  # of the memory, for activations and workspaces


def step(a: argparse.Namespace, gpus: int, tokens: float) -> dict[str, str]:
    """One step with completions of ``tokens`` on average, rows split evenly over the GPUs, weights on each of them."""
    rows, width = a.prompts * a.group / gpus, a.prompt_tokens + tokens
    cell = 2 * a.layers * a.kv_heads * a.feature * 2  # bytes of keys and values a token
    room = MEMORY * (1 - WORKING_SHARE) - TRAINING_BYTES * a.parameters
    at_once = max(1.0, min(rows, room / (cell * width)))
    read = 2 * a.parameters + at_once * cell * (a.prompt_tokens + tokens / 2)
    decode = rows * tokens / at_once * read / (BANDWIDTH * BANDWIDTH_SHARE)
    n = rows * tokens + a.prompts / gpus * a.prompt_tokens
    attention = 4 * a.layers * a.heads * a.feature * rows * tokens * (a.prompt_tokens + tokens / 2)
    update = 3 * (2 * a.parameters * n + attention) / (MATRIX * MATRIX_SHARE)
    prefill = 2 * a.parameters * a.prompts / gpus * a.prompt_tokens / (MATRIX * MATRIX_SHARE)
    return {
        "GPUs": str(gpus),
        "tokens a completion": f"{tokens:.0f}",
        "rows at once, a GPU": f"{at_once:.0f}",
        "prefill, s": f"{prefill:.2f}",
        "decode, s": f"{decode:.0f}",
        "update, s": f"{update:.0f}",
        "step, s": f"{prefill + decode + update:.0f}",
        "tokens/s": f"{gpus * rows * tokens / (prefill + decode + update):,.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("parameters", 1.72e9), ("prompt-tokens", 300.0), ("tokens", 3072.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    for name, count in (
        ("layers", 28),
        ("heads", 16),
        ("kv-heads", 8),
        ("feature", 128),
        ("prompts", 128),
        ("group", 8),
    ):
        parser.add_argument(f"--{name}", type=int, default=count)
    a = parser.parse_args()
    print(
        f"assumed: {BANDWIDTH_SHARE:.0%} of {BANDWIDTH / 1e12} TB/s, {MATRIX_SHARE:.0%} of {MATRIX / 1e12:.0f} TFLOP/s;"
    )
    print(f"{TRAINING_BYTES} bytes a parameter, {WORKING_SHARE:.0%} of the memory for activations\n")
    print_table([step(a, gpus, tokens) for gpus in (1, 8) for tokens in (a.tokens / 3, a.tokens)])


if __name__ == "__main__":
    main()
