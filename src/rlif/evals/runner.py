"""The evaluation loop: ask, grade, keep, count. It resumes from whatever answers the folder holds."""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rlif import __version__
from rlif.errors import Argument, RlifError
from rlif.evals.backends.base import Answer, Backend, KnowsPrompts, PowerSampler, RenderedProblem
from rlif.evals.backends.openai_protocol import replace_surrogates
from rlif.evals.baselines import read_passes, scores
from rlif.evals.callbacks import EvalCallback, NullEvalCallback
from rlif.evals.export import RESULTS_CSV, RESULTS_MD, as_csv, as_markdown
from rlif.evals.metrics import details, headline
from rlif.evals.passes import PASSES, USUAL, Pass, further, is_main
from rlif.evals.plan import Plan
from rlif.evals.settings import Settings
from rlif.evals.store import ASKED, BASELINES, MODEL, Answers, GradedAnswer, Spent, Store, read_answers, read_json, slug
from rlif.grading.grader import Grader
from rlif.model.template_clock import present
from rlif.rng import Key

_EVERY = 20.0  # seconds between two parts: small enough to lose little, large enough for few files


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate: what it is called, and how to get at it when its turn comes."""

    name: str
    open: Callable[[], Backend]


def evaluate(
    candidates: Sequence[Candidate],
    settings: Settings,
    out: Path,
    *,
    callback: EvalCallback | None = None,
    grader: Grader | None = None,
) -> dict[str, Any]:
    """Ask every candidate every task into the folder ``out``; returns what results.json holds.

    In a folder of the same evaluation only the missing answers are asked for. Raises `RlifError` for what the user can
    fix; however it ends, the answers written so far stay.
    """
    if twice := _first_twice([slug(candidate.name) for candidate in candidates]):
        raise RlifError(f"{twice}: two models of this name; name them apart (by their folders, say)")
    now, date = _date(out)
    plans = [Plan(name, settings, now=now) for name in settings.tasks]
    begun_with = _begun_with(out)
    names = _usual(begun_with) if settings.baselines is None else settings.baselines
    further_passes = {name: further(plans[0].main, name).protocol() for name in names}
    known = {**(begun_with or {}), **further_passes}
    asked = {
        "rlif_eval": 1,
        "models": [candidate.name for candidate in candidates],
        "seed": settings.seed,
        "chat_template": settings.chat_template,
        "tasks": {plan.name: plan.protocol() for plan in plans},
        **({BASELINES: known} if known else {}),
    }
    passes = _passes(plans, tuple(further_passes))
    with Store.open(out, {**asked, **date}) as store, grader or Grader() as judge:
        for candidate in candidates:
            _ask_all(candidate, passes, settings.seed, store, judge, callback or NullEvalCallback())
        results = collect(out, candidates, plans, asked)
        store.write_results(results)
        store.write_texts({RESULTS_MD: as_markdown(results), RESULTS_CSV: as_csv(results)})
    return results


def _ask_all(
    candidate: Candidate, passes: Sequence[Pass], seed: int, store: Store, judge: Grader, callback: EvalCallback
) -> None:
    """Whatever one model has not answered yet. One with nothing left to do is loaded as well: it may have changed."""
    have = {one.place: store.have(candidate.name, one.place) for one in passes}
    open_passes = [one for one in passes if _missing(one, have[one.place])]
    backend = candidate.open()
    try:
        store.begin_model(
            candidate.name, {**backend.facts(), **_prompts(backend, passes, store.folder(candidate.name) / MODEL)}
        )
        for one in open_passes:
            _check(backend, one)
        for one in passes:
            answers = len(one.rendered) * one.samples
            kept = sum(len(samples) for samples in have[one.place].values())
            callback.begin(candidate.name, one.title, answers=answers, done=kept, limit=one.sampling.max_new_tokens)
            if one in open_passes:
                _ask(backend, one, have[one.place], seed, store, judge, callback)
    finally:
        backend.close()


def _passes(plans: Sequence[Plan], names: Sequence[str]) -> list[Pass]:
    """All that is asked: of every task the main pass, then of every task those of these names that are another one."""
    found = [plan.main for plan in plans]
    others = [further(plan.main, name) for plan in plans for name in names]
    return found + [one for one in others if not is_main(one.protocol(), plans[0].main.protocol())]


def _begun_with(out: Path) -> dict[str, Any] | None:
    """The further passes that the evaluation in ``out`` was ever asked for, by name; None if there is no evaluation."""
    path = out / ASKED
    if not path.is_file():
        return None
    known = read_json(path)
    passes = known.get(BASELINES) if isinstance(known, dict) else None
    return passes if isinstance(passes, dict) else {}


def _usual(begun_with: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The passes to ask for unless told: of an evaluation from before there were any, none."""
    return USUAL if begun_with is None else tuple(name for name in begun_with if name in PASSES)


def _check(backend: Backend, one: Pass) -> None:
    """Raise `RlifError` for what cannot be answered."""
    if one.schedule is not None and not isinstance(backend, PowerSampler):
        problem = ": power sampling goes on from the middle of a text, which takes a model in this process"
        raise RlifError(Argument("baselines"), f"{problem}; leave power out")
    backend.check(one.rendered, one.sampling)


def _answers(
    backend: Backend, one: Pass, have: Mapping[str, Set[int]], seed: int, callback: EvalCallback
) -> Generator[Sequence[Answer], None, None]:
    """What a back-end says to the problems that lack an answer."""
    missing, key = _missing(one, have), Key(seed, one.stream)
    options: dict[str, Any] = {"samples": one.samples, "sampling": one.sampling, "progress": callback.advance}
    if one.schedule is not None and isinstance(backend, PowerSampler):
        return backend.power_answer(missing, schedule=one.schedule, key=key, **options)
    return backend.answer(missing, key=key, have=have, **options)


def _date(out: Path) -> tuple[datetime, dict[str, str]]:
    """The moment that chat templates are told, and what eval.json holds of it: the start of the evaluation in ``out``.

    One begun by an rlif that did not record it has it from the file's own date, and is resumed without a record.
    """
    path = out / ASKED
    if not path.is_file():
        now = present()
        return now, {"date": now.isoformat()}
    known = read_json(path)
    if not isinstance(known, dict) or "date" not in known:
        return datetime.fromtimestamp(int(path.stat().st_mtime)), {}
    try:
        return datetime.fromisoformat(known["date"]), {"date": known["date"]}
    except (TypeError, ValueError) as error:
        raise RlifError(f"{path}: date is {known['date']!r}, no date; restore the file, or choose another") from error


def _prompts(backend: Backend, passes: Sequence[Pass], known: Path) -> dict[str, dict[str, str]]:
    """Digests of what a model is given in each task, where its back-end knows; not if its ``known`` facts lack them."""
    if not isinstance(backend, KnowsPrompts) or (known.exists() and "prompts" not in read_json(known)):
        return {}
    return {"prompts": {one.task: backend.prompts_digest(one.rendered) for one in passes if not one.name}}


def _missing(asked: Pass, have: Mapping[str, Set[int]]) -> list[RenderedProblem]:
    """The problems that lack an answer."""
    return [one for one in asked.rendered if len(have.get(one.problem.id, ())) < asked.samples]


def _ask(
    backend: Backend,
    asked: Pass,
    have: Mapping[str, Set[int]],
    seed: int,
    store: Store,
    judge: Grader,
    callback: EvalCallback,
) -> None:
    """The missing answers of one pass, written part by part."""
    places = {one.problem.id: i for i, one in enumerate(asked.rendered)}
    part = _Part(store.next_part(backend.name, asked.place), time.monotonic(), backend.seconds)
    open_problems: dict[str, list[GradedAnswer]] = defaultdict(list)

    def write() -> None:
        nonlocal part
        now, in_model = time.monotonic(), backend.seconds
        if part.answers:
            spent = Spent(now - part.began, in_model - part.in_model)
            store.add(backend.name, asked.place, part.number, part.answers, spent)
            part = _Part(part.number + 1, now, in_model)  # broken off before this, the same part is written once more

    answers = _answers(backend, asked, have, seed, callback)
    try:
        with closing(answers):
            for batch in answers:
                new = [answer for answer in batch if answer.sample not in have.get(answer.problem_id, ())]
                for graded in _grade(new, asked, places, judge):
                    name = graded.answer.problem_id
                    open_problems[name].append(graded)
                    if len(open_problems[name]) + len(have.get(name, ())) == asked.samples:
                        part.answers.extend(open_problems.pop(name))
                callback.answered(new)
                if time.monotonic() - part.began > _EVERY:
                    write()
    except BaseException:  # whatever it is, what has been graded is right
        for some in open_problems.values():
            part.answers.extend(some)
        write()
        raise
    if open_problems:
        raise RuntimeError(f"{backend.name}, {asked.title}: answers are missing, to {next(iter(open_problems))} first")
    write()


@dataclass(frozen=True)
class _Part:
    """Graded answers that are still to be written: into which part, and when they and the model's clock began."""

    number: int
    began: float
    in_model: float
    answers: list[GradedAnswer] = field(default_factory=list)


def _grade(batch: Sequence[Answer], asked: Pass, places: Mapping[str, int], judge: Grader) -> Iterator[GradedAnswer]:
    for answer in batch:
        place = places[answer.problem_id]
        problem = asked.rendered[place].problem
        text = replace_surrogates(answer.text)  # neither Parquet nor a terminal takes half a character
        row_id = f"{asked.title}, {problem.id}, sample {answer.sample}"
        said = text[answer.thoughts :]  # an answer that ended while it was thought about says nothing
        verdict = (
            asked.judge(said, problem)
            if asked.judge
            else judge.grade(said, problem.answer, format=asked.format, row_id=row_id)
        )
        yield GradedAnswer(replace(answer, text=text), problem, place, verdict)


def collect(
    out: Path, candidates: Sequence[Candidate], plans: Sequence[Plan], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """results.json, made of the answers in the folder alone."""
    results = []
    for candidate in candidates:
        facts = read_json(out / slug(candidate.name) / MODEL)
        for plan in plans:
            folder, protocol = out / slug(candidate.name), plan.protocol()
            answers = read_answers(folder / plan.name)
            passes = read_passes(folder, plan.name, answers, protocol, asked.get(BASELINES, {}))
            found = {**numbers(answers), BASELINES: scores(answers.table, passes)}
            results.append({"model": candidate.name, "task": plan.name, "facts": facts, **found})
    return {"rlif": __version__, "asked": dict(asked), "results": results}


def numbers(answers: Answers) -> dict[str, Any]:
    """Everything that is said of one model's answers to one task."""
    table, spent = answers.table, answers.spent
    tokens = float(table.lengths.sum())
    return {
        "metrics": headline(table),
        **details(table),
        "speed": {
            "tokens": tokens,
            "seconds": spent.seconds,
            "model_seconds": spent.model_seconds,
            "tokens_per_second": tokens / max(spent.seconds, 1e-9),
            "outside_share": 1.0 - spent.model_seconds / max(spent.seconds, 1e-9),
        },
    }


def _first_twice(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)
