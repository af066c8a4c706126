"""The theory of internal rewards, executed.

The paper (arXiv 2506.17219) rests on statements about how a reward moves the entropy of a softmax policy. Here each is
a check on thousands of random policies whose every trajectory is enumerated, float64, no sampling: `rlif theory` prints
the table, docs/theory.md explains it.

Differences from the paper:

1. the entropy lemma carries a bound on its remainder, and has a form for whole trajectories;
2. the propositions on token entropy and self-certainty carry an assumption, and what happens without it: the lemma's
   condition, which is enough by definition, and one on the order of states, which can be looked up in the policy;
3. what "partially equivalent" leaves open is stated, too, with its counter-examples.

A new statement is a `Statement` in the list of its room; its trial says what it claims and what is true.
"""

from rlif.theory import entropy, grpo_checks, reward_equivalence, token_rewards
from rlif.theory.statements import Statement

STATEMENTS: dict[str, Statement] = {
    statement.name: statement
    for room in (entropy, token_rewards, reward_equivalence, grpo_checks)
    for statement in room.STATEMENTS
}
