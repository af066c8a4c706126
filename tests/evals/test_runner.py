"""The evaluation loop: what is asked, kept, resumed, counted; and the two commands."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

from evaluations import Crashing, Scripted, candidate, settings, timeless
from rlif.analysis.text import compression_ratio, repeated_ngrams, tenths, transitional_tenths
from rlif.cli.main import app
from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.evals import figures, tables
from rlif.evals import grader_mark as marks
from rlif.evals import pace as pace_module
from rlif.evals import plan as plans
from rlif.evals import runner as loop
from rlif.evals.backends import engine
from rlif.evals.backends.base import Answer, Backend, RenderedProblem
from rlif.evals.backends.engine import EngineBackend, answers_of
from rlif.evals.compare import compare, model_folders
from rlif.evals.grader_mark import SAME_VERDICTS
from rlif.evals.metrics import AnswerTable, counts, headline, profile
from rlif.evals.pace import Pace
from rlif.evals.plan import Plan
from rlif.evals.runner import Candidate, evaluate
from rlif.evals.store import Store, read_answers, slug
from rlif.grading.grader import GRADER_VERSION
from rlif.model.fingerprint import tokenizer_mark, weights_mark
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Sampling, Verdict
from rlif.utils.durations import duration
from rlif.utils.terminal import Console
from toys import toy_policy, toy_prompts


def test_protocol_is_met() -> None:
    assert isinstance(Scripted(), Backend)
    missing = {name for name in ("facts", "check", "answer", "close") if not hasattr(EngineBackend, name)}
    assert not missing


def test_results_by_hand(tmp_path: Path) -> None:
    """Counted from the answers themselves, with nothing of the project's but the Parquet files."""
    results = evaluate([candidate(Scripted())], settings(), tmp_path / "e")
    rows = parquet.read_table(tmp_path / "e" / "scripted" / "arithmetic").to_pylist()
    assert len(rows) == 18
    right = [
        row["completion"].rstrip("}").endswith(f"{{{row['answer']}") or row["completion"].endswith(f" {row['answer']}")
        for row in rows
    ]
    assert [row["right"] for row in rows] == right
    assert 0 < sum(right) < 18
    (found,) = results["results"]
    assert found["metrics"]["right"] == pytest.approx(sum(right) / 18)
    assert found["metrics"]["formatted"] == pytest.approx(12 / 18)  # sample 0 has no box
    assert found["metrics"]["transitional_per_answer"] == pytest.approx(12 / 18)
    assert found["metrics"]["length"] == 5.0
    entropy = sum(row["entropy"] * row["length"] for row in rows) / sum(row["length"] for row in rows)
    assert found["metrics"]["entropy"] == pytest.approx(entropy)
    assert sum(found["counts"].values()) == 18
    assert found["counts"]["right_formatted"] == sum(r for r, row in zip(right, rows, strict=True) if row["sample"])
    solved = [
        any(right[i] for i, row in enumerate(rows) if row["problem_id"] == name)
        for name in {row["problem_id"] for row in rows}
    ]
    assert found["pass_at"]["3"]["value"] == pytest.approx(np.mean(solved))
    # The made-up entropy is below one half exactly where the answer is right: confidence knows everything.
    assert found["confidence"]["entropy"]["auroc"]["value"] == 1.0
    assert "logprob" not in found["confidence"]
    assert json.loads((tmp_path / "e" / "results.json").read_text())["results"][0]["counts"] == found["counts"]


def test_a_back_end_that_knows_no_signals(tmp_path: Path) -> None:
    (found,) = evaluate([candidate(Scripted(known=False))], settings(samples=1), tmp_path / "e")["results"]
    assert "entropy" not in found["metrics"]
    assert found["confidence"] == {}
    assert list(found["course"]) == ["transitional"]


def test_goes_on_where_it_stopped_with_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_EVERY", 0.0)
    whole = evaluate([candidate(Scripted())], settings(), tmp_path / "whole")
    with pytest.raises(RlifError, match="the server is gone"):
        evaluate([candidate(Scripted(fail_after=2))], settings(), tmp_path / "e")
    assert not (tmp_path / "e" / "results.json").exists()
    kept = parquet.read_table(tmp_path / "e" / "scripted" / "arithmetic")
    assert kept.num_rows == 2 * 3 + 1  # the answer of the problem that was left in the middle, too
    again = Scripted()  # says it once more: the one that is kept stays
    resumed = evaluate([candidate(again)], settings(), tmp_path / "e")
    assert len(again.asked) == 4
    assert timeless(resumed) == timeless(whole)
    idle = Scripted()
    assert evaluate([candidate(idle)], settings(), tmp_path / "e") == resumed
    assert idle.asked == []


def test_whatever_ends_it_what_was_judged_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate([candidate(Scripted())], settings(), tmp_path / "e", grader=Crashing(8))
    assert parquet.read_table(tmp_path / "e" / "scripted" / "arithmetic").num_rows == 8
    resumed = evaluate([candidate(Scripted())], settings(), tmp_path / "e")
    assert timeless(resumed) == timeless(evaluate([candidate(Scripted())], settings(), tmp_path / "whole"))


def test_broken_off_right_after_a_part_was_written_it_stands_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Store.add, itertools.count()

    def broken_off(*args: Any) -> None:
        add(*args)
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_EVERY", 0.0)
    monkeypatch.setattr(Store, "add", broken_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate([candidate(Scripted())], settings(), tmp_path / "e")
    kept = parquet.read_table(tmp_path / "e" / "scripted" / "arithmetic").to_pylist()
    assert len({(row["problem_id"], row["sample"]) for row in kept}) == len(kept) == 6
    resumed = evaluate([candidate(Scripted())], settings(), tmp_path / "e")
    assert timeless(resumed) == timeless(evaluate([candidate(Scripted())], settings(), tmp_path / "whole"))


def test_an_answer_that_stands_there_twice_counts_once(tmp_path: Path) -> None:
    found = evaluate([candidate(Scripted())], settings(), tmp_path / "e")
    part = tmp_path / "e" / "scripted" / "arithmetic" / "part-000000.parquet"
    part.with_name("part-000001.parquet").write_bytes(part.read_bytes())
    assert timeless(evaluate([candidate(Scripted())], settings(), tmp_path / "e")) == timeless(found)


def test_problems_are_handed_out_as_they_are_finished_and_kept_when_broken_off(tmp_path: Path) -> None:
    """One batch holds the whole task; Ctrl-C comes in its middle, as the engine's progress sees it."""
    policy = toy_policy()
    prompts = toy_prompts(policy, ["ab", "1+2", "c", "12"])
    options: Any = {"group_size": 2, "sampling": Sampling(max_new_tokens=40), "key": Key(3, "eval/toy")}
    whole = {answer[:2]: answer[2:] for answer in map(told, answers_of(Engine(policy).sample(prompts, **options)))}
    handed = [answers_of(group) for group in Engine(policy, max_rows=3).groups(prompts, **options)]
    assert {answer[:2]: answer[2:] for answers in handed for answer in map(told, answers)} == whole
    assert len(handed) > 1

    class Impatient(loop.NullEvalCallback):
        def answered(self, answers: Any) -> None:
            raise KeyboardInterrupt

    config = PolicyConfig(model="tiny-base", dtype="float32", device="cpu")
    tiny = Candidate("tiny-base", lambda: EngineBackend("tiny-base", config))
    with pytest.raises(KeyboardInterrupt):
        evaluate([tiny], settings(samples=2, limit=8), tmp_path / "e", callback=Impatient())
    kept = parquet.read_table(tmp_path / "e" / "tiny-base" / "arithmetic")
    assert 2 <= kept.num_rows < 16
    assert kept.num_rows % 2 == 0


def told(answer: Answer) -> tuple[Any, ...]:
    return answer.problem_id, answer.sample, answer.text, answer.n_tokens, answer.stop


def test_another_evaluations_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "e"
    evaluate([candidate(Scripted())], settings(), out)
    for changes, what in (
        ({"temperature": 0.5}, r"tasks\.arithmetic\.temperature was 0.6, is 0.5"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"limit": 5}, r"tasks\.arithmetic\.problems was 6, is 5"),
    ):
        with pytest.raises(RlifError, match=rf"holds another evaluation \({what}\)"):
            evaluate([candidate(Scripted())], settings(**changes), out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(RlifError, match="not empty, and no evaluation"):
        evaluate([candidate(Scripted())], settings(), tmp_path / "full")
    with pytest.raises(RlifError, match="a file, not a folder"):
        evaluate([candidate(Scripted())], settings(), tmp_path / "full" / "thesis.tex")


def test_a_model_that_changed_is_refused_and_a_folder_without_answers_is_free(tmp_path: Path) -> None:
    out = tmp_path / "e"
    with pytest.raises(RlifError, match="gone"):
        evaluate([candidate(Scripted(fail_after=0))], settings(), out)
    with pytest.raises(RlifError, match="gone"):  # nothing was answered, so the settings may change
        evaluate([candidate(Scripted(fail_after=3))], settings(limit=8), out)
    changed = Scripted()
    changed.facts = lambda: {"kind": "other"}  # type: ignore[method-assign]
    with pytest.raises(RlifError, match=r'scripted has changed since .kind was "scripted", is "other"'):
        evaluate([candidate(changed)], settings(limit=8), out)


def test_what_ends_before_its_first_answer_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    """A folder that was there stays, with what lay in it; one that was made goes; one with an answer is kept."""
    made, there, other = (tmp_path / name for name in ("made", "there", "other"))
    there.mkdir()
    (there / ".gitkeep").touch()

    class Interrupted(Scripted):
        def facts(self) -> dict[str, Any]:
            raise KeyboardInterrupt

    for backend, why in ((Scripted(fail_after=0), RlifError), (Interrupted(), KeyboardInterrupt)):
        for out in (made, there):
            with pytest.raises(why):
                evaluate([candidate(backend)], settings(), out)
        assert not made.exists()
        assert {path.name for path in there.iterdir()} <= {".gitkeep", ".lock"}

    def with_a_note() -> Scripted:
        (other / "scripted").mkdir()
        (other / "scripted" / "note.txt").touch()
        return Scripted(fail_after=0)

    with pytest.raises(RlifError, match="gone"):
        evaluate([Candidate("scripted", with_a_note)], settings(), other)
    assert [path.name for path in other.rglob("*") if path.name != ".lock"] == ["scripted", "note.txt"]
    with pytest.raises(RlifError, match="gone"):
        evaluate([candidate(Scripted(fail_after=1))], settings(), made)
    assert (made / "eval.json").exists()
    evaluate([candidate(Scripted())], settings(), made)  # and is gone on with


def test_a_finished_folder_does_not_answer_for_a_model_or_a_grader_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate([candidate(Scripted())], settings(), tmp_path / "e")
    changed = Scripted()
    changed.facts = lambda: {"kind": "other"}  # type: ignore[method-assign]
    with pytest.raises(RlifError, match="scripted has changed since"):
        evaluate([candidate(changed)], settings(), tmp_path / "e")
    assert changed.asked == []
    monkeypatch.setattr(plans, "grader_mark", lambda: "another grader")
    with pytest.raises(RlifError, match=r'tasks.arithmetic.grader was "rlif .*", is "another grader"'):
        evaluate([candidate(Scripted())], settings(), tmp_path / "e")


@pytest.mark.parametrize(
    ("source", "version", "known"),
    [
        ("da482d34142b2cf3", GRADER_VERSION, True),  # as long as no verdict had changed since
        *((source, version, version == GRADER_VERSION) for source, version in SAME_VERDICTS.items()),
        ("0" * 16, None, False),
    ],
)
def test_a_folder_marked_by_source_code_is_resumed_if_that_gave_the_same_verdicts(
    source: str, version: str | None, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of rlif to a version that says who grades in other words."""
    monkeypatch.setattr(marks, "SAME_VERDICTS", {source: version} if version else {})
    out, other = tmp_path / "old", tmp_path / "new"
    for folder in (out, other):
        evaluate([candidate(Scripted())], settings(), folder)
    asked = json.loads((out / "eval.json").read_text())
    graders = asked["tasks"]["arithmetic"]
    graders["grader"] = f"rlif 0.1.0, {graders['grader'].rpartition(', ')[2]}, {source}"
    (out / "eval.json").write_text(json.dumps(asked))
    (comparison,) = compare(out / "scripted", other / "scripted")
    assert any(difference.startswith("grader: ") for difference in comparison.different) is not known
    if known:
        evaluate([candidate(Scripted())], settings(), out)
        return
    with pytest.raises(
        RlifError, match=rf"tasks.arithmetic.grader was .*({source}|grader {version},).* is .rlif grader"
    ):
        evaluate([candidate(Scripted())], settings(), out)


def test_another_tokenizer_or_chat_template_has_another_mark() -> None:
    first, second, third = toy_policy(), toy_policy(), toy_policy()
    assert tokenizer_mark(first) == tokenizer_mark(second)
    second.tokenizer.chat_template = "{{ messages }}"
    third.tokenizer.add_tokens(["zebra"])
    assert len({tokenizer_mark(policy) for policy in (first, second, third)}) == 3


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    out = tmp_path / "e"
    evaluate([candidate(Scripted())], settings(), out)
    part = out / "scripted" / "arithmetic" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RlifError, match=r"part-000000.parquet: damaged .*delete it and run rlif eval again"):
        evaluate([candidate(Scripted())], settings(), out)


def test_engine_answers_are_those_of_the_engine() -> None:
    policy = toy_policy()
    prompts = toy_prompts(policy, ["ab", "1+2"])
    rollouts = Engine(policy).sample(
        prompts, group_size=2, sampling=Sampling(max_new_tokens=12), key=Key(0, "eval/toy")
    )
    answers = answers_of(rollouts)
    assert [(answer.problem_id, answer.sample) for answer in answers] == [
        ("toy/0", 0), ("toy/0", 1), ("toy/1", 0), ("toy/1", 1)
    ]  # fmt: skip
    for row, answer in enumerate(answers):
        mask = rollouts.mask[row]
        assert answer.n_tokens == int(mask.sum())
        assert answer.entropy == pytest.approx(rollouts.signals.entropy[row][mask].mean().item(), rel=1e-6)
        assert answer.trace is not None
        assert answer.trace.logprob == pytest.approx(rollouts.signals.logprob[row][mask].numpy())


def test_weights_that_differ_in_one_layer_have_another_mark() -> None:
    first, second = toy_policy(), toy_policy()
    assert weights_mark(first.model) == weights_mark(second.model)
    with torch.no_grad():
        list(second.model.parameters())[-2].mul_(1.001)
    assert weights_mark(first.model) != weights_mark(second.model)


TINY = ("--tasks", "arithmetic", "--limit", "10", "--samples", "3", "--dtype", "float32")


def test_killed_at_any_moment_it_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle, as soon as the first part is there; then the same command again."""
    patches = "local._BATCH_TOKENS, run._EVERY = 96 * 6, 0.0"
    script = f"from rlif.evals import runner as run\nfrom rlif.evals.backends import engine as local\n{patches}\n" + (
        "from rlif.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", script, "eval", "tiny-base", *TINY, "--out", str(tmp_path / "killed")]
    parts = tmp_path / "killed" / "tiny-base" / "arithmetic"
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL) as killed:
        while not list(parts.glob("part-*")):
            assert killed.poll() is None
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "results.json").exists()
    monkeypatch.setattr(engine, "_BATCH_TOKENS", 96 * 6)
    for name in ("killed", "whole"):
        done = CliRunner().invoke(app, ["eval", "tiny-base", *TINY, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")]
    for name in ("right", "formatted", "length"):
        assert found[0]["results"][0]["metrics"][name] == found[1]["results"][0]["metrics"][name]
    kept = [parquet.read_table(tmp_path / name / "tiny-base" / "arithmetic") for name in ("whole", "killed")]
    whole, killed_one = (
        table.sort_by([("position", "ascending"), ("sample", "ascending")]).to_pylist() for table in kept
    )
    assert len(whole) == len(killed_one) == 30
    for one, other in zip(whole, killed_one, strict=True):  # other batches round otherwise
        for name, value in one.items():
            rounded = isinstance(value, float) or name.endswith("_tenths")
            assert other[name] == (pytest.approx(value, abs=1e-5, nan_ok=True) if rounded else value), name


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "e"
    done = CliRunner().invoke(app, ["eval", "tiny-base", "tiny-instruct", *TINY, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "avg@3" in done.output
    assert "…" not in done.output
    # The last lines name a folder of the test's own, which may be long.
    assert max(map(len, done.output.split("\nnumbers:")[0].splitlines())) <= 80
    both = CliRunner().invoke(app, ["compare", str(out), "--out", str(tmp_path / "c.json")])
    assert both.exit_code == 0, both.output
    assert "right and formatted" in both.output
    written = json.loads((tmp_path / "c.json").read_text())["tasks"][0]
    answers = [read_answers(out / name / "arithmetic") for name in ("tiny-base", "tiny-instruct")]
    assert answers[0].ids == answers[1].ids
    means = [one.table.right.mean(axis=1) for one in answers]
    assert written["metrics"]["right"]["difference"] == pytest.approx((means[1] - means[0]).mean())
    assert len(written["gained"]) == int(((means[0] <= 0.5) & (means[1] > 0.5)).sum())
    missing = CliRunner().invoke(app, ["eval", "tiny-base", "no-such", *TINY, "--out", str(tmp_path / "x")])
    assert isinstance(missing.exception, RlifError)
    assert not (tmp_path / "x").exists()


def test_comparing_needs_two_models_and_common_ground(tmp_path: Path) -> None:
    a, b = Scripted("a", right=0.9), Scripted("b", right=0.1)
    evaluate([candidate(a), candidate(b)], settings(), tmp_path / "e")
    evaluate([candidate(a)], settings(limit=4), tmp_path / "f")
    evaluate([candidate(a)], settings(tasks=("additions",)), tmp_path / "g")
    assert model_folders([tmp_path / "e"]) == [tmp_path / "e" / "a", tmp_path / "e" / "b"]
    with pytest.raises(RlifError, match="two models can be compared, not 1"):
        model_folders([tmp_path / "f"])
    with pytest.raises(RlifError, match="holds no evaluation"):
        model_folders([tmp_path])
    (same,) = compare(tmp_path / "e" / "a", tmp_path / "f" / "a")
    assert (same.problems, same.left_out) == (4, 2)
    assert same.metrics["right"].difference == 0.0
    assert same.metrics["right"].p == 1.0
    assert any(difference.startswith("problems: 6 and 4") for difference in same.different)
    with pytest.raises(RlifError, match="no task in common"):
        compare(tmp_path / "e" / "a", tmp_path / "g" / "a")


def test_an_evaluation_that_is_not_finished_is_not_compared(tmp_path: Path) -> None:
    evaluate([candidate(Scripted("a"))], settings(samples=1), tmp_path / "a")
    with pytest.raises(RlifError, match="gone"):
        evaluate(
            [candidate(Scripted("b", fail_after=2)), candidate(Scripted("c"))], settings(samples=1), tmp_path / "b"
        )
    with pytest.raises(RlifError, match=r"b/arithmetic: 3 of 6 problems, 1 of 1 answers each; run the same rlif eval"):
        compare(tmp_path / "a" / "a", tmp_path / "b" / "b")
    with pytest.raises(RlifError, match=r"b/c: not asked yet; run the same rlif eval again"):
        model_folders([tmp_path / "b"])


def own(out: Path, ids: str, questions: list[str]) -> Path:
    """The folder of a model that was asked these questions, under such ids."""
    rows = [{"id": f"{ids}{i}", "problem": question, "answer": "1"} for i, question in enumerate(questions)]
    out.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = settings(tasks=("own",), data={"own": str(out.with_suffix(".jsonl"))}, limit=None)
    evaluate([candidate(Scripted())], asked, out)
    return out / "scripted"


def test_a_pair_is_the_same_question(tmp_path: Path) -> None:
    first = own(tmp_path / "a", "p", ["What?", "What?", "Who?", "Why?"])
    (one,) = compare(first, own(tmp_path / "b", "p", ["What?", "What?", "Who?", "Whence?"]))
    assert (one.problems, one.left_out) == (3, 2)
    with pytest.raises(RlifError, match="3 of 4 problems of the same id ask something else"):
        compare(first, own(tmp_path / "c", "p", ["What?", "When?", "Where?", "Whence?"]))
    (other,) = compare(first, own(tmp_path / "d", "q", ["Who?", "What?", "What?", "How?"]))
    assert (other.problems, other.left_out) == (3, 2)
    twice = read_answers(tmp_path / "d" / "scripted" / "own").table.right.mean(axis=1)[:3].mean()
    assert other.metrics["right"].b == pytest.approx(twice)


class Forgetful(Scripted):
    """Does not know the signals of every problem's second answer; that one is empty."""

    def _say(self, one: RenderedProblem, sample: int) -> Answer:
        answer = super()._say(one, sample)
        return replace(answer, text="", n_tokens=0, entropy=None, trace=None) if sample == 1 else answer


def test_numbers_of_a_signal_are_made_of_the_answers_that_have_it(tmp_path: Path) -> None:
    found = evaluate([candidate(Forgetful("a")), candidate(Forgetful("b", right=0.6))], settings(), tmp_path / "e")[
        "results"
    ][0]
    rows = parquet.read_table(tmp_path / "e" / "a" / "arithmetic").to_pylist()
    known = [row for row in rows if row["entropy"] is not None]
    assert len(known) == 12
    weighed = sum(row["entropy"] * row["length"] for row in known) / sum(row["length"] for row in known)
    assert found["metrics"]["entropy"] == pytest.approx(weighed)
    assert found["confidence"]["entropy"]["known"] == 12
    assert found["confidence"]["entropy"]["auroc"]["value"] == 1.0  # as if the empty answers were not there
    (one,) = compare(*model_folders([tmp_path / "e"]))
    assert one.metrics["entropy"].n == 6
    assert one.metrics["undecided"].a == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "--samples: greedy answers"),
        ({"temperature": -1.0}, "--temperature: .*given -1.0"),
        ({"data": {"gsm8k": "x"}}, "--data: gsm8k is not among the tasks"),
        ({"shots": 99}, "--shots: the fixed set has 8"),
        ({"shots_from": "x"}, "--shots-from: say how many"),
        ({"tasks": ()}, "--tasks: name at least one"),
        ({"tasks": ("../x",), "data": {"../x": "y"}}, "--tasks: '../x' becomes a folder's name"),
        ({"chat_template": "maybe"}, "--chat-template: .*given 'maybe'"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RlifError, match=message):
        settings(**changes)


def test_a_plan_says_what_it_asks() -> None:
    plan = Plan("additions", settings(tasks=("additions",), stop=("END",), template="qa", shots=1))
    assert plan.sampling.stop == ("Question:", "END")
    assert plan.format == "hash"
    assert plan.protocol()["template"] == "qa v1"
    assert Plan("additions", settings(tasks=("additions",))).format == "last_number"
    with pytest.raises(RlifError, match=r"^format: no format"):
        Plan("additions", settings(tasks=("additions",), format="box"))
    with pytest.raises(RlifError, match=r"^template: no template"):
        Plan("additions", settings(tasks=("additions",), template="box"))
    with pytest.raises(RlifError, match=r"asked for; lower eval_problems to \d+$"):
        Plan("arithmetic", settings(limit=9_999))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tasks arithmetic --template box", r"--template: no template 'box'; did you mean boxed\? .*"),
        ("--tasks arithmetic --format box", r"--format: no format 'box'; did you mean boxed\? .*"),
        ("--tasks aritmetic", r"--tasks: no benchmark 'aritmetic'; .* add --data aritmetic=PATH\)"),
        ("--tasks own --data own=none.jsonl", r"none.jsonl: No such file or directory; check --data"),
        (
            "--tasks own --data own=empty.jsonl",
            r"empty.jsonl: no answer in column 'answer' of any row; name another in --answer",
        ),
        (
            "--tasks own --data own=text.jsonl",
            r"text.jsonl:1: no column .* or 'messages'; name the question's in --question .*text, .*",
        ),
        ("--tasks arithmetic --limit 9999", r"the evaluation share of .* 9999 .* asked for; lower --limit to \d+"),
        ("--tasks arithmetic --shots 1 --shots-from none.jsonl", r"none.jsonl: No such file .*; check --shots-from"),
        ("--tasks arithmetic --shots 2 --shots-from text.jsonl", r"text.jsonl: 0 rows with .* answer, but --shots 2"),
        ("--tasks arithmetic --dtype float8", r"--dtype: 'float8'; choose auto, float32 or bfloat16"),
    ],
)
def test_errors_speak_of_options(options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text('{"problem": "1+1=", "answer": ""}\n')
    Path("text.jsonl").write_text('{"text": "1+1=", "answer": "2"}\n')
    done = CliRunner().invoke(app, ["eval", "tiny-base", *options.split(), "--out", "e"])
    assert isinstance(done.exception, RlifError)
    assert re.fullmatch(message, str(done.exception)), str(done.exception)


def test_a_prompt_that_does_not_fit_says_what_would(tmp_path: Path) -> None:
    out = str(tmp_path / "e")
    done = CliRunner().invoke(
        app, ["eval", "tiny-base", "--tasks", "arithmetic", "--limit", "2", "--max-new-tokens", "999", "--out", out]
    )
    assert isinstance(done.exception, RlifError)
    assert "exceed the context of tiny-base (256); give --max-new-tokens 24" in str(done.exception)


def table(verdicts: list[Verdict], **changes: Any) -> AnswerTable:
    n = len(verdicts)
    values: dict[str, Any] = {
        "samples": 1,
        "texts": ("x",) * n,
        "stops": ("eos",) * n,
        "lengths": np.ones(n),
        "means": {},
        "tenths": {},
        **changes,
    }
    return AnswerTable(verdicts=tuple(verdicts), **values)


def test_the_papers_table_2_counts_undecided_answers_apart() -> None:
    found = [Verdict(right, formatted, "1") for right in (True, False, None) for formatted in (True, False, False)]
    assert counts(table(found)) == {
        "right_formatted": 1, "right_unformatted": 2, "wrong_formatted": 1, "wrong_unformatted": 2, "undecided": 3,
    }  # fmt: skip
    assert headline(table(found))["undecided"] == pytest.approx(1 / 3)


def test_course_is_the_mean_over_answers_right_and_wrong_apart() -> None:
    found = [Verdict(True, True, "1"), Verdict(False, True, "2"), Verdict(False, True, "2"), Verdict(None, True, "3")]
    along = np.full((4, 10), np.nan)
    along[:, 0] = [1.0, 3.0, 5.0, 7.0]
    along[1, 9] = 2.0
    texts = ("wait, no", "but " * 10, "plain", "plain")
    entropy = profile(table(found, tenths={"entropy": along}, texts=texts))["entropy"]
    assert entropy["all"]["value"][0] == 4.0
    assert entropy["right"]["value"][0] == 1.0
    assert entropy["wrong"]["value"][0] == 4.0
    assert entropy["all"]["value"][9] == 2.0  # answers that have no such token do not count
    assert np.isnan(entropy["right"]["value"][9])
    words = profile(table(found, texts=texts))["transitional"]
    assert words["right"]["value"] == [1.0] + [0.0] * 9
    assert words["wrong"]["value"] == [0.5] * 10


def test_tables_cut_no_number_however_many_answers(tmp_path: Path) -> None:
    results = evaluate([candidate(Scripted("a-model-of-a-long-name"))], settings(), tmp_path / "e")
    (result,) = results["results"]
    result["counts"] = dict.fromkeys(result["counts"], 123_456)
    result["metrics"] |= {"length": 12_345.0, "length_stderr": 1_234.0}
    console = Console(width=80, file=io.StringIO())
    console.print(tables.task_view("arithmetic", results["asked"]["tasks"]["arithmetic"], [result]))
    shown = console.file.getvalue()
    assert shown.count("123,456") == 5
    assert "12345 ± 1234" in shown
    for line in shown.splitlines():
        assert "…" not in line.partition("  ")[2], line  # a name may be cut, a number never


def test_problems_that_are_all_alike_have_no_known_error(tmp_path: Path) -> None:
    backends = [candidate(Scripted(f"m{right}", right=right)) for right in (0.5, 1.0)]
    results = evaluate(backends, settings(limit=8), tmp_path / "e")
    console = Console(width=80, file=io.StringIO())
    console.print(tables.task_view("arithmetic", results["asked"]["tasks"]["arithmetic"], results["results"]))
    shown = console.file.getvalue()
    assert "100.0 ± –" in shown
    assert "± 0.0" not in shown
    bound = re.search(r"^–: all 8 problems alike; the true value may be (.+) points off \(95 %\)$", shown, re.MULTILINE)
    assert bound is not None
    assert (1 - float(bound[1]) / 100) ** 8 == pytest.approx(0.05, rel=0.02)  # how often such a model looks perfect


def test_the_picture_of_the_course_shows_its_numbers(tmp_path: Path) -> None:
    results = evaluate([candidate(Scripted()), candidate(Scripted("knows", known=False))], settings(), tmp_path / "e")
    figure = figures.profile("arithmetic", results["results"])
    grid = np.array(figure.axes).reshape(2, 2)  # transitional words and entropy of two models
    for row, result in zip(grid, results["results"], strict=True):
        for axes, name in zip(row, ("transitional", "entropy"), strict=True):
            lines = {line.get_label().split()[0]: line.get_ydata() for line in axes.get_lines()}
            if name not in result["course"]:
                assert not lines
                assert axes.texts[0].get_text() == "not known"
                continue
            assert set(lines) == {"right", "wrong"}
            for group, drawn in lines.items():
                np.testing.assert_array_equal(drawn, result["course"][name][group]["value"])
    (path,) = figures.write_figures(results, tmp_path / "e")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_tenths_of_an_answer() -> None:
    assert tenths(np.arange(20.0)) == pytest.approx(np.arange(10) * 2 + 0.5)
    assert tenths(np.array([1.0, 2.0])).tolist()[:1] == [1.0]
    assert np.flatnonzero(np.isfinite(tenths(np.array([1.0, 2.0])))).tolist() == [0, 5]
    assert transitional_tenths("but" + " " * 45 + "wait" + " " * 47 + "b").tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_repetition() -> None:
    assert repeated_ngrams("a b c") == 0.0
    assert repeated_ngrams("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repeated_ngrams("no " * 100) == pytest.approx(1 - 1 / 97)
    assert compression_ratio("") == 1.0
    assert compression_ratio("so it goes on and on " * 200) > 50
    assert 1.0 < compression_ratio(Path(__file__).read_text(encoding="utf-8")) < 10


def test_names_become_folders() -> None:
    assert slug("Qwen/Qwen3-1.7B-Base") == "Qwen--Qwen3-1.7B-Base"
    assert slug("../runs/first/final/") == "first--final"
    assert slug("~/..") == "model"
    with pytest.raises(RlifError, match="two models of this name"):
        evaluate([candidate(Scripted("a/b")), candidate(Scripted("x/a/b"))], settings(), Path("never"))


def test_time_left_follows_the_lengths_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0])
    monkeypatch.setattr(pace_module, "monotonic", lambda: next(clock, 108.0))  # the start, and eight seconds later
    pace = Pace(10, 2, 100)
    pace.advance(80)
    assert pace.position == pytest.approx(2.8)
    pace.answered([Answer("p", 0, "", "", 40, "eos"), Answer("p", 1, "", "", 40, "eos")])
    assert pace.done == 4
    assert pace.speed == 10.0
    assert pace.seconds_left == pytest.approx(6 * 40 / 10)
    assert [duration(s) for s in (45.0, 600.0, 9000.0)] == ["45 s", "10 min", "2.5 h"]
