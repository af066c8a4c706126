"""For verl, untested there: what a completion votes for, as a number that `vote_advantage` counts.

    reward.custom_reward_function.path=vote_reward.py

verl's reward functions see one completion at a time, as text. A vote needs all answers to a prompt, and only an
advantage estimator has them, as rewards. So the answer itself goes along in the reward: 24 bits of its digest, which
fp32 holds exactly. The logged rewards are no scores, then; ``voting`` is the share that votes. A completion that was
cut off votes if its answer can be read: whether it ended is not told.
"""

from hashlib import sha256
from typing import Any

from rlif.grading.equivalence import canonical
from rlif.grading.grader import LONGEST_ANSWER, Grader

GRADER = Grader()
NO_VOTE = 0.0


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, float]:
    """The ballot as ``score``: 0 where no answer can be read, else 1 to 2^24. The ground truth is not read."""
    answer = GRADER.grade(solution_str, None, format="boxed", row_id=data_source).extracted
    if not answer or len(answer) > LONGEST_ANSWER:
        return {"score": NO_VOTE, "voting": 0.0}
    digest = sha256(canonical(answer).encode()).digest()
    return {"score": 1.0 + int.from_bytes(digest[:3], "big"), "voting": 1.0}
