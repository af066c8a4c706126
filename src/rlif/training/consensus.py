"""What a teacher answers to the problems of a run, which rewards that read `RewardInputs.consensus` hold the policy to.

It is the initial policy (`frozen_consensus`): settled before the first step and never again. A checkpoint keeps these
answers in its state, with a digest of what was asked, so that a resumed run asks nobody. Only if it was given more
steps than before, or other questions (``allow_changed``), the initial model is loaded again to answer these.

Or it is a teacher that follows the policy (`ema_vote`): it settles the problems of each step anew, from weights that
the checkpoint keeps beside the policy's (`rlif.training.teacher`).

Either way answers are drawn under a key of their own and graded without the truth.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rlif.errors import Argument, RlifError
from rlif.rewards.agreement import settled, voting_answers
from rlif.rewards.registry import read_consensus
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.prompt_source import PromptSource
from rlif.training.setup import Setup, build_engine
from rlif.types import Problem, Prompt, Sampling


class NoConsensusError(RlifError):
    """The initial policy gives no readable answer to any problem: the run cannot begin."""


ASKED = "consensus_asked"
"""The key of a run's state that holds the digest of the question behind each answer in ``consensus``, by its id."""


def question_digest(problem: Problem) -> str:
    """16 hexadecimal digits that differ if the question does: an id may be no more than a line of a file."""
    return hashlib.sha256(problem.question.encode()).hexdigest()[:16]


def unsettled(source: PromptSource, known: Mapping[str, str | None]) -> list[tuple[Problem, ...]]:
    """The problems of each of the run's steps that are not ``known``, less those of the steps before.

    ``known``: by id the digest of the question that was asked under it, None where that was not noted.
    """
    recipe, seen = source.recipe, set[str]()
    batches = []
    for step in range(1, recipe.steps + 1):
        problems = source.task.train_problems(step, recipe.rollout.prompts, recipe.seed)
        new = tuple(one for one in problems if one.id not in seen and not _is_known(one, known))
        if new:
            batches.append(new)
        seen |= {problem.id for problem in problems}
    return batches


def _is_known(problem: Problem, known: Mapping[str, str | None]) -> bool:
    return problem.id in known and known[problem.id] in (None, question_digest(problem))


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


class Consensus:
    """The answers that a run's rewards read, whoever gives them; nobody is asked where no reward reads any."""

    def __init__(self, setup: Setup) -> None:
        self.teacher, self._ranks = setup.teacher, setup.ranks
        self._source, self._state = setup.prompts, setup.state
        self._reads = read_consensus(setup.recipe.reward, setup.rewards)
        self._engine = None if self.teacher is None else build_engine(setup.recipe, self.teacher.policy, setup.ranks)
        self._taught: dict[str, list[str]] = {}  # the teacher's answers to the problems of the step under way

    @property
    def answers(self) -> Mapping[str, list[str]]:
        """By id of the problem."""
        given: Mapping[str, list[str]] = self._taught if self.teacher else self._state.get("consensus", {})
        return given

    def pending(self) -> list[tuple[Problem, ...]]:
        """What the initial policy has yet to answer, step by step."""
        asked = self._reads and self.teacher is None
        return unsettled(self._source, self._known) if asked else []

    @property
    def _known(self) -> dict[str, str | None]:
        """What has been answered, and to which question; a checkpoint of before that was noted knows the ids alone."""
        noted = self._state.get(ASKED, {})
        return {name: noted.get(name) for name in self._state.get("consensus", {})}

    def tokens(self, problems: int) -> int:
        """The most tokens that are drawn for so many problems."""
        recipe = self._source.recipe
        return problems * recipe.consensus.samples * recipe.rollout.max_new_tokens

    def settle(self, untrained: Engine, progress: Callable[[int], None], between: Callable[[], None]) -> None:
        """Have the initial policy answer what is pending; ``between`` is called before each step's problems.

        Raises `NoConsensusError` if it gives no readable answer to any.
        """
        answers: dict[str, list[str]] = self._state.setdefault("consensus", {})
        asked: dict[str, str] = self._state.setdefault(ASKED, {})
        pending = self.pending()
        if changed := sum(problem.id in answers for problems in pending for problem in problems):
            warnings.warn(
                f"consensus: {changed} questions are not those that were answered; the initial policy is asked again",
                RuntimeWarning,
                stacklevel=2,
            )
        for problems in pending:
            between()
            answers |= self._ranks.agreed(settle(untrained, self._source, problems, progress))
            asked |= {problem.id: question_digest(problem) for problem in problems}
        if not any(answers.values()):
            raise NoConsensusError(
                f"consensus: the initial policy gives no readable answer to any of {len(answers)} problems, so no "
                "answer can be held to it; raise ",
                Argument("max_new_tokens"),
                ", or choose another template or model",
            )

    def ask_teacher(self, step: int, prompts: Sequence[Prompt], progress: Callable[[int], None]) -> None:
        """Have a teacher that follows the policy answer the problems of a step."""
        assert self._engine is not None, "no teacher"
        problems = tuple(dict.fromkeys(prompt.problem for prompt in prompts))
        given = settle(self._engine, self._source, problems, progress, when=f"teacher/{step}")
        self._taught = self._ranks.agreed(given)
