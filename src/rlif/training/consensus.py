"""What a teacher answers to the problems of a run, which rewards that read `RewardInputs.consensus` hold the policy to.

It is the initial policy (`frozen_consensus`): settled before the first step and never again. A checkpoint keeps these
answers in its state, so that a resumed run asks nobody; only if it was given more steps than before, the initial model
is loaded again to answer their problems.

Or it is a teacher that follows the policy (`ema_vote`): it settles the problems of each step anew, from weights that
the checkpoint keeps beside the policy's (`rlif.training.teacher`).

Either way answers are drawn under a key of their own and graded without the truth.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from rlif.errors import RlifError
from rlif.rewards.agreement import settled, voting_answers
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.setup import PromptSource
from rlif.types import Problem, Sampling


class NoConsensusError(RlifError):
    """The initial policy gives no readable answer to any problem: the run cannot begin."""


def unsettled(source: PromptSource, known: Collection[str]) -> list[tuple[Problem, ...]]:
    """The problems of each of the run's steps that are not ``known`` by their id, less those of the steps before."""
    recipe, seen = source.recipe, set(known)
    batches = []
    for step in range(1, recipe.steps + 1):
        problems = source.task.train_problems(step, recipe.rollout.prompts, recipe.seed)
        if new := tuple(problem for problem in problems if problem.id not in seen):
            batches.append(new)
            seen |= {problem.id for problem in new}
    return batches


def settle(
    engine: Engine,
    source: PromptSource,
    problems: Sequence[Problem],
    progress: Callable[[int], None] | None = None,
    *,
    when: str = "consensus",
) -> dict[str, list[str]]:
    """What the engine's policy answers most often to each problem, by its id (`rlif.rewards.agreement.settled`).

    ``when`` names the stream of random numbers, beside the run's seed.
    """
    recipe, config = source.recipe, source.recipe.consensus
    rollouts = engine.sample(
        source.rendered(tuple(problems)),
        group_size=config.samples,
        sampling=replace(Sampling.from_config(recipe.rollout), temperature=config.temperature),
        key=Key(recipe.seed, when),
        progress=progress,
    )
    asked = [replace(prompt.problem, answer=None) for prompt in rollouts.row_prompts]  # no grader sees the truth
    verdicts = [source.task.grade(text, problem) for text, problem in zip(rollouts.texts, asked, strict=True)]
    given = voting_answers(rollouts, verdicts)
    return {problem.id: settled(answers) for problem, answers in zip(problems, given, strict=True)}
