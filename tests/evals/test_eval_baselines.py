"""Training-free baselines of evaluated models: what is asked for them, kept, resumed, counted and compared."""

import io
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

from evaluations import Scripted, candidate, settings, timeless
from rlif.analysis.baselines import GradedSamples
from rlif.analysis.paired import paired
from rlif.cli.main import app
from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.evals import passes, tables
from rlif.evals import runner as loop
from rlif.evals.backends.base import Answer, PowerSampler, RenderedProblem
from rlif.evals.backends.engine import EngineBackend, answers_of
from rlif.evals.baselines import graded_samples
from rlif.evals.compare import as_json, compare
from rlif.evals.plan import Plan
from rlif.evals.runner import Candidate, evaluate
from rlif.evals.store import GradedAnswer, Spent, Store, read_answers
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.power_sampling import Schedule, power_sample
from rlif.types import Sampling, Verdict
from rlif.utils.terminal import Console
from toys import toy_policy, toy_prompts

ALL = ("greedy", "low_temperature", "temperature_1")


class Moody(Scripted):
    """Says other things at other temperatures, in other lengths; notes what it was asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[float, int, str, int]] = []
        self._temperature = -1.0

    def answer(
        self, asked: Any, *, samples: int, sampling: Sampling, key: Key, have: Any, progress: Any = None
    ) -> Iterator[Any]:
        self.calls.append((sampling.temperature, samples, str(key.step), len(asked)))
        self._temperature = sampling.temperature
        yield from super().answer(asked, samples=samples, sampling=sampling, key=key, have=have, progress=progress)

    def _say(self, one: RenderedProblem, sample: int) -> Answer:
        draw = int(np.random.default_rng([*one.problem.id.encode(), sample, int(100 * self._temperature)]).integers(4))
        said = one.problem.answer if draw < 2 else str(draw)  # right half the time, or one of two wrong answers
        text = f"\\boxed{{{said}}}" if draw % 2 else f"it is {said}"
        tokens = 3 + draw + round(10 * self._temperature)
        return Answer(
            one.problem.id, sample, one.text, text, tokens, "eos", logprob=-draw / 4, entropy=draw / 4,
            self_certainty=1.0 + sample,
        )  # fmt: skip


def kept(folder: Path) -> list[list[dict[str, Any]]]:
    """A folder's rows, problem by problem, read with nothing of the project's."""
    rows = sorted(parquet.read_table(folder).to_pylist(), key=lambda row: (row["position"], row["sample"]))
    positions = sorted({row["position"] for row in rows})
    return [[row for row in rows if row["position"] == position] for position in positions]


def test_results_hold_every_baseline_counted_from_the_answers(tmp_path: Path) -> None:
    asked = settings(samples=4, baselines=ALL)
    backend = Moody()
    (found,) = evaluate([candidate(backend)], asked, tmp_path / "e")["results"]
    assert [call[:2] for call in backend.calls] == [(0.6, 4), (0.0, 1), (0.4, 4), (1.0, 4)]
    assert len({call[2] for call in backend.calls}) == 4  # each has random numbers of its own
    baselines = found["baselines"]
    assert set(baselines) == {"sampled", "majority", "borda", "best_of_k", *ALL}

    main = tmp_path / "e" / "scripted" / "arithmetic"
    for name, folder in (("sampled", main), *((name, main / f"_{name}") for name in ALL)):
        problems = kept(folder)
        for key, holds in (
            ("right", lambda row: row["right"]),
            ("right_and_formatted", lambda row: row["right"] and row["formatted"]),
        ):
            means = [np.mean([float(holds(row)) for row in rows]) for rows in problems]
            assert baselines[name][key]["value"] == pytest.approx(np.mean(means)), (name, key)
            assert baselines[name][key]["stderr"] == pytest.approx(np.std(means, ddof=1) / 6**0.5), (name, key)
        assert baselines[name]["tokens"] == np.mean([row["length"] for rows in problems for row in rows])
    assert baselines["sampled"]["right"]["value"] == found["metrics"]["right"]
    assert baselines["majority"]["right"] == found["maj_at"]["4"]

    problems = kept(main)
    assert baselines["majority"]["tokens"] == np.mean([sum(row["length"] for row in rows) for rows in problems])
    signals = {"self_certainty": ("self_certainty", 1), "token_entropy": ("entropy", -1), "trajectory_entropy": ("logprob", 1)}  # noqa: E501  # fmt: skip
    assert set(baselines["best_of_k"]) == set(signals)
    for name, (column, sign) in signals.items():
        shares = []
        for rows in problems:
            surest = max(sign * row[column] for row in rows)
            shares.append(np.mean([float(row["right"]) for row in rows if sign * row[column] == surest]))
        assert baselines["best_of_k"][name]["right"]["value"] == pytest.approx(np.mean(shares)), name
    votes = []
    for rows in problems:  # the last sample is the surest, so that its place is worth 4^.5
        points = dict.fromkeys((row["extracted"] for row in rows), 0.0)
        for row in rows:
            points[row["extracted"]] += (row["sample"] + 1) ** 0.5
        (winner,) = [answer for answer, sum_ in points.items() if sum_ > max(points.values()) - 1e-9]
        votes.append(np.mean([float(row["right"]) for row in rows if row["extracted"] == winner]))
    assert baselines["borda"]["right"]["value"] == pytest.approx(np.mean(votes))


def test_graded_samples_of_kept_answers_are_those_of_their_rollouts(tmp_path: Path) -> None:
    policy = toy_policy()
    prompts = toy_prompts(policy, ["ab", "1+2", "c"])
    options: Any = {"group_size": 3, "sampling": Sampling(max_new_tokens=9), "key": Key(1, "eval/toy")}
    rollouts = Engine(policy).sample(prompts, **options)
    extracted = ["1", None, "1", "2", "2.0", "3", None, None, "4"]
    verdicts = [Verdict(i % 2 == 0, i % 3 == 0, answer) for i, answer in enumerate(extracted)]
    graded = [
        GradedAnswer(answer, prompt.problem, i // 3, verdict)
        for i, (answer, prompt, verdict) in enumerate(
            zip(answers_of(rollouts), rollouts.row_prompts, verdicts, strict=True)
        )
    ]
    Store(tmp_path).add("toy", "t", 0, graded, Spent())
    found, expected = graded_samples(read_answers(tmp_path / "toy" / "t").table), GradedSamples.from_rollouts(
        rollouts, verdicts
    )  # fmt: skip
    for name in ("right", "formatted", "votes", "tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert set(found.confidences) == set(expected.confidences)
    for name, values in expected.confidences.items():
        np.testing.assert_allclose(found.confidences[name], values, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "asked", "reported"),
    [
        ({}, [0.6, 0.0], {"sampled", "greedy"}),
        ({"temperature": 0.0, "samples": 1}, [0.0], {"greedy"}),
        ({"temperature": 0.0, "samples": 1, "baselines": ()}, [0.0], {"sampled"}),
        ({"temperature": 0.0, "samples": 1, "baselines": ALL}, [0.0, 0.4, 1.0], set(ALL)),
        ({"temperature": 1.0, "baselines": ("temperature_1",)}, [1.0], {"sampled", "temperature_1"}),
        ({"temperature": 0.4, "baselines": ALL}, [0.4, 0.0, 1.0], {"sampled", *ALL}),
        ({"temperature": 0.6, "samples": 1, "baselines": ()}, [0.6], {"sampled"}),
    ],
)
def test_no_pass_is_run_twice_and_one_answer_neither_votes_nor_is_chosen(
    changes: dict[str, Any], asked: list[float], reported: set[str], tmp_path: Path
) -> None:
    backend = Moody()
    wanted = settings(**{"samples": 2, "baselines": None, **changes})
    (found,) = evaluate([candidate(backend)], wanted, tmp_path / "e")["results"]
    assert [call[0] for call in backend.calls] == asked
    free = {"majority", "borda", "best_of_k"} if wanted.samples > 1 else set()
    assert set(found["baselines"]) == reported | free


def test_the_folder_of_a_task_reads_as_it_did_without_baselines(tmp_path: Path) -> None:
    for name, baselines in (("with", ALL), ("without", ())):
        evaluate([candidate(Moody())], settings(baselines=baselines), tmp_path / name)
    found = [parquet.read_table(tmp_path / name / "scripted" / "arithmetic") for name in ("with", "without")]
    assert found[0].equals(found[1])
    asked = json.loads((tmp_path / "with" / "eval.json").read_text())
    assert asked["baselines"]["low_temperature"] == {"samples": 3, "temperature": 0.4, "top_p": 1.0, "top_k": 0}
    before = json.loads((tmp_path / "without" / "eval.json").read_text())
    assert {name: value for name, value in asked.items() if name not in ("baselines", "date")} == {
        name: value for name, value in before.items() if name != "date"
    }


def test_a_baseline_that_was_broken_off_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(baselines=ALL)
    whole = evaluate([candidate(Moody())], asked, tmp_path / "whole")
    monkeypatch.setattr(loop, "_EVERY", 0.0)

    class Impatient(loop.NullEvalCallback):
        def __init__(self) -> None:
            self.left = 6 * 3 + 6 + 3 * 3  # in the middle of the second baseline

        def answered(self, answers: Any) -> None:
            self.left -= len(answers)
            if self.left <= 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([candidate(Moody())], asked, tmp_path / "e", callback=Impatient())
    again = Moody()
    assert timeless(evaluate([candidate(again)], asked, tmp_path / "e")) == timeless(whole)
    assert [(call[0], call[3]) for call in again.calls] == [(0.4, 3), (1.0, 6)]


BEFORE = {"rlif_eval", "models", "seed", "chat_template", "tasks", "date"}
"""The keys of eval.json in the version that knew no baselines."""


def old_folder(out: Path, *, finished: bool) -> Path:
    """As that version left it."""
    try:
        evaluate([candidate(Moody(fail_after=None if finished else 2))], settings(baselines=()), out)
    except RlifError:
        assert not finished
    assert set(json.loads((out / "eval.json").read_text())) == BEFORE
    assert [path.name for path in out.rglob("_*")] == []
    return out


@pytest.mark.parametrize("finished", [True, False])
def test_an_evaluation_from_before_there_were_baselines_is_finished_without_them(
    finished: bool, tmp_path: Path
) -> None:
    out = old_folder(tmp_path / "old", finished=finished)
    before = (out / "eval.json").read_bytes()
    backend = Moody()
    results = evaluate([candidate(backend)], settings(baselines=None), out)
    assert [call[0] for call in backend.calls] == ([] if finished else [0.6])
    assert set(results["results"][0]["baselines"]) == {"sampled", "majority", "borda", "best_of_k"}
    assert "baselines" not in results["asked"]
    assert (out / "eval.json").read_bytes() == before
    evaluate([candidate(Moody("b"))], settings(baselines=None), tmp_path / "new")
    (one,) = compare(out / "scripted", tmp_path / "new" / "b")
    assert "greedy" not in one.baselines
    assert one.baselines["majority"]["right"].n == 6
    assert one.different == ()


def test_baselines_are_added_to_an_evaluation_and_left_out_of_it(tmp_path: Path) -> None:
    out = old_folder(tmp_path / "e", finished=True)
    os.utime(out / "eval.json", (1e9, 1e9))  # of one that holds no date this is the date of its start
    more = Moody()
    results = evaluate([candidate(more)], settings(baselines=("greedy",)), out)
    assert [call[0] for call in more.calls] == [0.0]
    assert {"greedy"} == set(results["asked"]["baselines"])
    assert (out / "eval.json").stat().st_mtime == 1e9
    with pytest.raises(RlifError, match="gone"):
        evaluate([candidate(Moody(fail_after=3))], settings(baselines=("low_temperature",)), out)
    without = Moody()
    (found,) = evaluate([candidate(without)], settings(baselines=()), out)["results"]
    assert without.calls == []  # a baseline that is half there is not finished against somebody's will, nor reported
    assert "greedy" in found["baselines"]
    assert "low_temperature" not in found["baselines"]
    (one,) = compare(out / "scripted", out / "scripted")
    assert "low_temperature" not in one.baselines
    rest = Moody()
    (found,) = evaluate([candidate(rest)], settings(baselines=None), out)["results"]
    assert [(call[0], call[3]) for call in rest.calls] == [(0.4, 3)]
    assert "low_temperature" in found["baselines"]


def test_a_baseline_of_another_definition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate([candidate(Moody())], settings(baselines=ALL), tmp_path / "e")
    monkeypatch.setattr(passes, "LOW_TEMPERATURE", 0.3)
    message = r"holds another evaluation \(baselines\.low_temperature\.temperature was 0\.4, is 0\.3\)"
    with pytest.raises(RlifError, match=message):
        evaluate([candidate(Moody())], settings(baselines=None), tmp_path / "e")


def test_a_comparison_pairs_each_baseline_by_problem(tmp_path: Path) -> None:
    """B lacks two problems and one baseline; the others by a loop over the problems that both have."""
    a, b = tmp_path / "a", tmp_path / "b"
    evaluate([candidate(Moody("a"))], settings(baselines=ALL), a)
    evaluate([candidate(Scripted("b"))], settings(baselines=ALL[:2], limit=4), b)
    (one,) = compare(a / "a", b / "b")
    # Scripted knows no self-certainty, so that nothing can be ranked by it.
    assert set(one.baselines) == {"sampled", "majority", "best_of_k/token_entropy", *ALL[:2]}
    for name in ("greedy", "low_temperature"):
        first, second = kept(a / "a" / "arithmetic" / f"_{name}")[:4], kept(b / "b" / "arithmetic" / f"_{name}")
        means = [
            np.array([np.mean([float(row["right"]) for row in rows]) for rows in problems])
            for problems in (first, second)
        ]
        assert one.baselines[name]["right"] == paired(*means)
        assert one.baselines[name]["right"].n == 4
    (written,) = as_json([one])
    assert json.loads(json.dumps(written))["baselines"]["greedy"]["right"]["n"] == 4
    console = Console(width=80, file=io.StringIO())
    tables.print_comparisons(console, ["a", "b"], [one])
    shown = console.file.getvalue()
    assert shown.count("  surest by −entropy") == 2
    assert "temperature 1" not in shown


def test_a_table_names_what_a_model_without_signals_lacks_and_cuts_no_number(tmp_path: Path) -> None:
    name = "a-model-of-a-very-long-name"
    results = evaluate([candidate(Scripted(name)), candidate(Moody())], settings(baselines=ALL), tmp_path / "e")
    for result in results["results"]:
        result["baselines"]["majority"]["tokens"] = 123_456.7
        result["baselines"]["majority"]["right_and_formatted"] = {"value": 1.0, "stderr": 0.111}
    console = Console(width=80, file=io.StringIO())
    console.print(tables.baselines(3, results["results"]))
    shown = console.file.getvalue()
    assert shown.count("100.0 ± 11.1") == shown.count("123,457") == 2
    assert shown.count("majority by confidence") == 2  # of the one that can, and in the note on the one that cannot
    assert "no majority by confidence, surest by self-certainty, surest by logprob: " in shown
    assert "does not tell these signals" in " ".join(shown.split())
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  temperature 0.4") for line in lines) == 2
    assert tables.baselines(1, [{"model": "m", "baselines": {"sampled": {}}}]) is None
    assert tables.baselines(1, [{"model": "m"}]) is None  # results of before


def test_power_sampling_is_refused_by_what_cannot_go_on_within_a_text(tmp_path: Path) -> None:
    backend = Scripted()
    with pytest.raises(RlifError, match=r"^baselines: power sampling .* leave power out$"):
        evaluate([candidate(backend)], settings(baselines=("power",)), tmp_path / "e")
    assert backend.asked == []


def test_power_sampling_in_an_evaluation_is_that_of_the_rollouts_with_what_it_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "Schedule", partial(Schedule, blocks=2, moves=2))
    monkeypatch.setattr("rlif.evals.backends.engine._CHAINS", 2)  # two batches
    config = PolicyConfig(model="tiny-base", dtype="float32", device="cpu")
    backend = EngineBackend("tiny-base", config)
    assert isinstance(backend, PowerSampler)
    asked = settings(samples=1, limit=3, max_new_tokens=8, baselines=("power",))
    results = evaluate([Candidate("tiny-base", partial(EngineBackend, "tiny-base", config))], asked, tmp_path / "e")
    assert results["asked"]["baselines"]["power"] == {
        "samples": 1, "temperature": 0.25, "top_p": 1.0, "top_k": 0, "alpha": 4.0, "blocks": 2, "moves": 2,
    }  # fmt: skip
    plan = Plan("arithmetic", asked)
    expected = power_sample(
        Engine(backend._policy),
        [backend._prompt(one) for one in plan.rendered],
        group_size=1,
        proposal=Sampling(temperature=0.25, max_new_tokens=8, stop=plan.sampling.stop),
        key=Key(0, "eval/arithmetic/power"),
        schedule=Schedule(blocks=2, moves=2),
    )
    rows = [row for (row,) in kept(tmp_path / "e" / "tiny-base" / "arithmetic" / "_power")]
    assert [row["completion"] for row in rows] == list(expected.rollouts.texts)
    assert [row["drawn"] for row in rows] == expected.drawn.tolist()
    assert all(row["drawn"] > row["length"] for row in rows)
    means = expected.rollouts.signals.logprob.sum(dim=1) / expected.rollouts.lengths
    torch.testing.assert_close(torch.tensor([row["logprob"] for row in rows]), means)
    assert results["results"][0]["baselines"]["power"]["tokens"] == expected.drawn.mean()


def test_the_command_takes_a_list_of_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    few = ("--tasks", "arithmetic", "--limit", "2", "--samples", "2", "--max-new-tokens", "8", "--dtype", "float32")

    def run(name: str, *options: str) -> Any:
        return CliRunner().invoke(app, ["eval", "tiny-base", *few, "--out", str(tmp_path / name), *options])

    done = run("e", "--baselines", "low_temperature, greedy")
    assert done.exit_code == 0, done.output
    assert "\n  temperature 0.4 " in done.output
    asked = json.loads((tmp_path / "e" / "results.json").read_text())["asked"]
    assert set(asked["baselines"]) == {"greedy", "low_temperature"}
    done = run("none", "--baselines", "none")
    assert done.exit_code == 0, done.output
    assert "baselines" not in json.loads((tmp_path / "none" / "results.json").read_text())["asked"]
    wrong = run("e", "--baselines", "greed")
    assert isinstance(wrong.exception, RlifError)
    assert str(wrong.exception).startswith("--baselines: no 'greed'; did you mean greedy? (there are greedy, low_temp")
