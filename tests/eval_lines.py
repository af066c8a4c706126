"""Lines of a log, as evaluations write them."""


def line(
    step: int, score: float, right: float = 0.7, formatted: float = 0.8, entropy: float = 0.1
) -> dict[str, float | int]:
    """The metrics of an evaluation of sampled answers."""
    return {
        "step": step,
        "eval/right_and_formatted": score,
        "eval/right_and_formatted_stderr": 0.02,
        "eval/right": right,
        "eval/formatted": formatted,
        "eval/entropy": entropy,
        "eval/transitional_share": 0.2,
        "eval/length": 25.0,
        "eval/n": 512,
        "eval/problems": 128,
    }


def greedy_line(greedy: float, majority: float) -> dict[str, float | int]:
    """What an evaluation has besides."""
    return {
        "eval/greedy_right_and_formatted": greedy,
        "eval/greedy_right_and_formatted_stderr": 0.03,
        "eval/greedy_right": 0.75,
        "eval/greedy_formatted": 0.9,
        "eval/greedy_length": 26.0,
        "eval/majority_right_and_formatted": majority,
        "eval/majority_right_and_formatted_stderr": 0.03,
        "eval/majority_right": 0.95,
    }
