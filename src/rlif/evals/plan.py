"""What one task of an evaluation asks, settled: problems, prompts, sampling, and who judges."""

import logging
from datetime import datetime

from rlif.config import OwnData
from rlif.evals.backends.base import RenderedProblem
from rlif.evals.grader_mark import grader_mark
from rlif.evals.passes import Pass
from rlif.evals.settings import Settings
from rlif.grading.extraction import find_extractor
from rlif.tasks.base import Task, digest, most
from rlif.tasks.benchmarks import GENERATED, Benchmark, find_benchmark, load_benchmark, made_task
from rlif.tasks.few_shot import FIXED, Shot, read_shots
from rlif.tasks.templates import Template, find_template, render_messages, render_text
from rlif.types import Problem, Sampling
from rlif.utils.paths import expanded

_LOG = logging.getLogger(__name__)

_COLUMNS = ("question_column", "answer_column", "config", "split")
"""What settings say of data of your own, in the order of `OwnData`."""


class Plan:
    """One task of an evaluation, ready to be asked: problems, wording, sampling. ``now`` is the moment that chat
    templates are told. Raises `RlifError` for what is wrong with any of them."""

    def __init__(self, name: str, settings: Settings, *, now: datetime | None = None) -> None:
        self._now = now
        source = settings.data.get(name)
        own = None if source is None else OwnData(source, *(getattr(settings, key) for key in _COLUMNS))
        self.name = name
        self.benchmark: Benchmark = find_benchmark(name, data=source)
        self.template: Template = find_template(settings.template or self.benchmark.template)
        usual = self.template.format if settings.template else self.benchmark.format or self.template.format
        self.format = settings.format or usual
        find_extractor(self.format)
        self.task = made_task(self.benchmark, self.format)
        self.sample_seed = settings.sample_seed
        self.problems: tuple[Problem, ...] = _problems(self.benchmark, self.task, own, settings)
        self.shots = _shots(settings)
        self._shots_from = settings.shots_from or "rlif.tasks.few_shot"
        self.samples = settings.samples
        self.sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_new_tokens=settings.max_new_tokens or self.benchmark.max_new_tokens,
            stop=tuple(dict.fromkeys((*self.template.stop, *settings.stop))),
        )
        self.rendered = tuple(self._render(problem) for problem in self.problems)
        judge = None if self.task is None else self.task.grade
        self.main = Pass(name, "", self.rendered, self.format, self.samples, self.sampling, judge=judge)

    def _render(self, problem: Problem) -> RenderedProblem:
        question = problem.question
        return RenderedProblem(
            problem,
            tuple(render_messages(self.template, question, self.shots)),
            render_text(self.template, question, self.shots),
            self._now,
        )

    def protocol(self) -> dict[str, object]:
        """What was asked and how, for results.json: two evaluations with equal protocols can be compared."""
        return {
            "source": self.benchmark.citation,
            "problems": len(self.problems),
            "of": self.benchmark.size,
            "digest": digest(self.problems),
            "template": f"{self.template.name} v{self.template.version}",
            "format": self.format,
            "shots": len(self.shots),
            **({"shots_from": self._shots_from, "shots_digest": _digest(self.shots)} if self.shots else {}),
            "samples": self.samples,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k,
            "max_new_tokens": self.sampling.max_new_tokens,
            "stop": list(self.sampling.stop),
            "grader": grader_mark() if self.task is None else f"{self.benchmark.citation}; {grader_mark()}",
            **({} if self.sample_seed is None else {"sample_seed": self.sample_seed}),
        }


def _problems(benchmark: Benchmark, task: Task | None, own: OwnData | None, settings: Settings) -> tuple[Problem, ...]:
    limit, seed = settings.limit, settings.sample_seed
    if task is None:
        return load_benchmark(benchmark, own, limit=limit, sample_seed=seed)
    count = most(task.eval_problems, limit or GENERATED)
    if not count:
        task.eval_problems(1)  # says why there is none
    if limit is None and benchmark.size is None and count == GENERATED:  # it may have more, or no end
        _LOG.warning("%s: %d of its problems are asked; say with a limit how many", benchmark.name, count)
    return task.eval_problems(count) if seed is None else task.eval_problems(count, seed)


def _digest(shots: tuple[Shot, ...]) -> str:
    return digest([Problem(shot.answer, shot.question, shot.reasoning) for shot in shots])


def _shots(settings: Settings) -> tuple[Shot, ...]:
    if not settings.shots:
        return ()
    if settings.shots_from:
        return read_shots(expanded(settings.shots_from), settings.shots)
    return FIXED[: settings.shots]
