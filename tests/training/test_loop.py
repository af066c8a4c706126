"""Runs as a user meets them: started, killed, resumed, stopped, and refused."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interruptions import StopAfter
from rlif.config import PolicyConfig, Recipe
from rlif.errors import RlifError
from rlif.model.loading import load_policy
from rlif.recipes import load_recipe, parse_recipe, shipped_recipes
from rlif.runs.history import read_metrics
from rlif.runs.metric_keys import METRICS, find_metric
from rlif.runs.trackers import SINKS, TensorBoardSink
from rlif.training import evaluation as evaluation_module
from rlif.training import loop as trainer
from rlif.training import setup
from rlif.training.callbacks import NullCallback
from rlif.training.final import write_masters
from rlif.training.loop import resume, train
from rlif.training.opening import new_run
from rlif.types import Sampling
from rlif.utils.interrupts import Interrupted
from toys import toy_policy

OF_SOME = {
    "eval/labelled",
    "time/consensus",
    "kl_coef",
    "entropy_coef",
    "kl_cov",
    "advantage/token_share",
    "verdict/self_agreement",
    "time/reference",
    "time/probe",
    "importance/mean",
    "importance/capped",
}
"""Keys that only some recipes log: test_consensus.py, test_coefficients.py, test_importance.py,
test_without_labels.py; and of looks, with `probe/*`: test_looks.py."""


INTERVENTIONS = {
    **{"lr": 1e-3, "kl_coef": 0.05, "kl_target": 1e-3, "entropy_floor": 9.0, "entropy_step": 0.1, "entropy_most": 1.0},
    **{"kl_cov": 0.05, "clip_cov": 0.1, "clip_cov_range": [-9.0, 9.0], "answer_share": 0.25},
}
"""Everything that docs/interventions.md has, at once."""


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model: training it teaches nothing and costs nothing."""
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


def recipe(model: Path | str, **changes: object) -> Recipe:
    data: dict[str, object] = {
        "steps": 4,
        "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
        "task": {"name": "arithmetic"},
        "rollout": {"prompts": 2, "group_size": 3, "max_new_tokens": 12},
        "reward": "self_certainty",
        "grpo": {"lr": 1e-3, "kl_coef": 0.05, "schedule": "cosine", "warmup": 0.25},
        "eval": {"every": 2, "problems": 4},
        "checkpoint": {"every": 2},
    }
    return parse_recipe({**data, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def without_clock(line: Mapping[str, float]) -> dict[str, float]:
    """A metrics line less what the clock and the memory counter say."""
    return {k: v for k, v in line.items() if not k.startswith(("time", "tokens_per_second", "memory"))}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy_dtype": "bfloat16"},
        {"grpo": {"lr": 1e-3, "kl_coef": 0.05, "epochs": 2, "minibatches": 2}},
        {"reward": [{"name": "token_entropy", "weight": 0.5}, "random", {"name": "verifiable", "weight": 0.0}]},
        {"grpo": INTERVENTIONS},
    ],
    ids=["fp32", "bf16", "several optimizer steps", "mix", "interventions"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    toy_model: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    if "policy_dtype" in changes:
        changes = {"policy": {"model": str(toy_model), "dtype": "bfloat16", "device": "cpu"}}
    whole = train(recipe(toy_model, **changes), tmp_path / "whole")
    # Broken off after step 3: the line of step 3 is there, its checkpoint is not. Step 3 must be made again.
    with pytest.raises(ConnectionAbortedError):
        train(recipe(toy_model, **changes), tmp_path / "broken", callback=StopAfter(3))
    again = resume(tmp_path / "broken")
    assert_same_weights(whole, again)
    assert_same_weights(
        tmp_path / "whole" / "checkpoints" / "step-000004", tmp_path / "broken" / "checkpoints" / "step-000004"
    )
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    assert [line["step"] for line in lines[1]] == [0, 1, 2, 3, 4]
    assert [without_clock(line) for line in lines[0]] == [without_clock(line) for line in lines[1]]


def test_training_moves_the_weights_and_another_seed_moves_them_elsewhere(toy_model: Path, tmp_path: Path) -> None:
    first = weights(train(recipe(toy_model), tmp_path / "first"))
    second = weights(train(recipe(toy_model, seed=1), tmp_path / "second"))
    start = weights(toy_model)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], start[name])
    assert not torch.equal(first[name], second[name])


def test_a_run_without_a_checkpoint_starts_again(toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionAbortedError):
        train(recipe(toy_model), tmp_path / "run", callback=StopAfter(1))
    resume(tmp_path / "run")
    whole = train(recipe(toy_model), tmp_path / "whole")
    assert_same_weights(whole, tmp_path / "run" / "final")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_resuming_a_finished_run_changes_nothing(toy_model: Path, tmp_path: Path) -> None:
    final = train(recipe(toy_model), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    kept = weights(final)
    again = weights(resume(tmp_path / "run"))
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_the_reference_of_a_resumed_run_is_the_first_policy(toy_model: Path, tmp_path: Path) -> None:
    """At the step after a resume the KL is to the start, not to the checkpoint: it does not fall back to 0."""
    with pytest.raises(ConnectionAbortedError):
        train(recipe(toy_model), tmp_path / "run", callback=StopAfter(3))
    resume(tmp_path / "run")
    kl = {line["step"]: line.get("kl") for line in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert kl[1] == 0.0  # the policy is still the reference
    assert kl[3] > 1e-4


def test_every_logged_key_is_documented_and_final_loads(toy_model: Path, tmp_path: Path) -> None:
    final = train(recipe(toy_model, eval={"every": 2, "problems": 4, "samples": 4}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {key for line in lines for key in line}
    assert all(find_metric(key) for key in logged)
    patterns = {key for key in METRICS if "<" not in key and not key.startswith("probe/")} - OF_SOME
    assert patterns <= logged  # and what is documented is logged
    assert lines[-1]["optimizer_steps"] == 4
    assert lines[-1]["tokens/total"] == sum(line.get("tokens/completion", 0) for line in lines)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    answer = model.generate(**tokenizer("12+34=?", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > 7


def test_step_zero_is_the_untrained_policy_and_evaluations_share_their_numbers(toy_model: Path, tmp_path: Path) -> None:
    quiet = {"grpo": {"lr": 1e-30, "kl_coef": 0.0}}
    train(recipe(toy_model, **quiet), tmp_path / "run")
    evaluations = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval/right" in line]
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert evaluations[0]["eval/entropy"] == evaluations[1]["eval/entropy"] == evaluations[2]["eval/entropy"]
    assert all(line["time/eval"] > 0.0 for line in evaluations)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_greedy_evaluation_is_one_answer_a_problem_at_temperature_0(
    toy_model: Path, tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = evaluation_module.evaluate_policy

    def evaluate_policy(*args: Any, samples: int, sampling: Sampling, **options: Any) -> Any:
        asked.append((samples, sampling.temperature))
        return real(*args, samples=samples, sampling=sampling, **options)

    monkeypatch.setattr(evaluation_module, "evaluate_policy", evaluate_policy)
    changes = {"eval": {"every": 2, "problems": 4, "samples": 2, "temperature": temperature}}
    with new_run(recipe(toy_model, **changes), tmp_path / "run", NullCallback()) as run:
        metrics = run.evaluate()
        assert asked == [(2, temperature), (1, 0.0)][: 2 if temperature else 1]  # greedy answers are not made twice
        # The same by transformers' own greedy search.
        model, tokenizer = AutoModelForCausalLM.from_pretrained(toy_model), AutoTokenizer.from_pretrained(toy_model)
        lengths = []
        for prompt in run._prompts.evaluation():
            ids = torch.tensor([prompt.token_ids])
            answer = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
            lengths.append(answer.shape[1] - ids.shape[1])
    assert metrics["eval/greedy_length"] == sum(lengths) / len(lengths)


def test_what_is_evaluated_beside_changes_nothing_else(toy_model: Path, tmp_path: Path) -> None:
    for name, greedy in (("with", True), ("without", False)):
        train(recipe(toy_model, eval={"every": 2, "problems": 4, "greedy": greedy}), tmp_path / name)
    assert_same_weights(tmp_path / "with" / "final", tmp_path / "without" / "final")
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("with", "without")]
    for with_greedy, without in zip(*lines, strict=True):
        assert any("greedy" in key for key in with_greedy) == ("eval/right" in with_greedy)
        kept = {key: value for key, value in with_greedy.items() if "greedy" not in key}
        assert without_clock(kept) == pytest.approx(without_clock(without), nan_ok=True, rel=0, abs=0)


def test_the_best_checkpoint_is_kept(toy_model: Path, tmp_path: Path) -> None:
    changes = {"checkpoint": {"every": 1, "keep_last": 1, "best": "signal/entropy"}, "reward": "self_certainty"}
    train(recipe(toy_model, steps=5, **changes), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")[1:]
    best = max(lines, key=lambda line: line["signal/entropy"])["step"]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == sorted({f"step-{best:06d}", "step-000005"})


def test_a_resumed_run_that_goes_by_another_metric_does_not_compare_the_two(toy_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"checkpoint": {"every": 1, "best": "signal/self_certainty"}, "reward": "self_certainty"}  # above 0
    train(recipe(toy_model, steps=3, **changes), out, until=2)
    text = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(text.replace("best: signal/self_certainty", "best: signal/logprob"))  # below 0
    resume(out)
    best = json.loads((out / "checkpoints" / "step-000003" / "state.json").read_text())["best"]
    assert (best["metric"], best["step"]) == ("signal/logprob", 3)


def test_a_loss_that_is_not_finite_stops_before_any_harm(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = trainer.grpo_step, []

    def poisoned(policy, optimizer, scored, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            scored.advantages.fill_(math.nan)
        return real(policy, optimizer, scored, *args, **kwargs)

    monkeypatch.setattr(trainer, "grpo_step", poisoned)
    with pytest.raises(RlifError, match=r"step 3: the loss is nan;.*last good checkpoint is .*step-000002") as caught:
        train(recipe(toy_model), tmp_path / "run")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    whole = train(recipe(toy_model), tmp_path / "whole")
    assert_same_weights(whole, resume(tmp_path / "run"))


def test_weights_that_are_not_finite_are_never_saved(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is finite, the step is not: the checkpoint of the step before stays the last, and is good."""
    monkeypatch.setattr(trainer, "learning_rate", lambda config, step, steps: 1e-3 if step < 3 else 1e39)
    every_step = {"checkpoint": {"every": 1}, "eval": {"every": 0}}
    with pytest.raises(
        RlifError,
        match=r"step 3: the largest weight .* is (nan|inf);.*begin a new run at it .*step-000002",
    ) as caught:
        train(recipe(toy_model, **every_step), tmp_path / "run")
    assert "\n" not in str(caught.value)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000001", "step-000002"]
    assert not (tmp_path / "run" / "final").exists()
    good = tmp_path / "run" / "checkpoints" / "step-000002"
    assert all(tensor.isfinite().all() for tensor in weights(good).values())
    train(recipe(good, **every_step), tmp_path / "again", until=1)  # the advice can be followed


def test_a_full_disk_keeps_the_last_good_checkpoint(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = write_masters, []

    def full(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*given)

    monkeypatch.setattr("rlif.training.run.write_masters", full)
    with pytest.raises(RlifError, match=r"disk full.*step-000002"):
        train(recipe(toy_model), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    assert_same_weights(train(recipe(toy_model), tmp_path / "whole"), resume(tmp_path / "run"))


def test_an_occupied_folder_is_refused_untouched(toy_model: Path, tmp_path: Path) -> None:
    train(recipe(toy_model), tmp_path / "run")
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(RlifError, match="holds another run"):
        train(recipe(toy_model), tmp_path / "run")
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "self_certainity"}, "did you mean self_certainty"),
        ({"policy": {"model": "/no/such/folder"}}, "no such folder or file"),
        ({"policy": {"model": "no/such.gguf"}}, "no such file"),
        ({"task": {"name": "file", "path": "absent.jsonl"}}, "absent.jsonl"),
        ({"task": {"name": "arithmetic", "template": "boxd"}}, "boxed"),
        ({"rollout": {"prompts": 2, "group_size": 3, "max_new_tokens": 4000}}, "context"),
        ({"task": {"name": "arithmetic", "question": "{a}+{b}=" + "?" * 130}}, "context"),
        ({"checkpoint": {"best": "reward/nothing/mean"}}, "checkpoint.best"),
        ({"checkpoint": {"best": "eval/rihgt"}}, "checkpoint.best"),
        ({"checkpoint": {"best": "eval/right"}, "eval": {"every": 0}}, r"no 'eval/right': eval/\* needs eval.every"),
        (
            {"checkpoint": {"best": "eval/greedy_right"}, "eval": {"every": 2, "problems": 4, "greedy": False}},
            r"eval/greedy_\* needs eval\.greedy",
        ),
        (
            {"checkpoint": {"best": "eval/majority_right"}, "eval": {"every": 2, "problems": 4, "samples": 3}},
            r"eval/majority_\* needs eval\.samples=4 or more",
        ),
        ({"eval": {"every": 2, "problems": 5000}}, "5000"),
        (
            {"task": {"name": "arithmetic", "high": 11}, "rollout": {"prompts": 9, "max_new_tokens": 8}},
            "rollout.prompts",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    toy_model: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RlifError, match=message) as caught:
        train(recipe(toy_model, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def assert_one_line(done: "subprocess.CompletedProcess[str]", said: str) -> None:
    """A user's mistake: exit code 2 and one line on stderr, which says what."""
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("rlif: ")
    assert done.stderr.count("\n") == 1, done.stderr


def cli(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlif", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, **options)  # type: ignore[call-overload]


def short_run(tiny_base_path: Path, steps: int) -> list[str]:
    """Changes to the recipe tiny."""
    return [
        f"policy.model={tiny_base_path}",
        f"steps={steps}",
        "eval.every=0",
        "rollout.prompts=2",
        "checkpoint.every=2",
    ]


def start_run(tiny_base_path: Path, out: Path, steps: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "rlif", "train", "tiny", *short_run(tiny_base_path, steps), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_a_label_reward_without_labels_is_refused(toy_model: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{i}+1=?"}) + "\n" for i in range(4)))
    task = {"task": {"name": "file", "path": str(problems), "template": "plain"}, "eval": {"every": 0}}
    with pytest.raises(RlifError, match="reward verifiable needs answers, but 4 problems"):
        train(recipe(toy_model, reward={"name": "negated", "of": "verifiable"}, **task), tmp_path / "run")
    train(recipe(toy_model, **task), tmp_path / "run")  # its own confidence needs none


def test_a_run_resumes_from_another_folder(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_model.parent)
    relative = {"model": f"./{toy_model.name}", "dtype": "float32", "device": "cpu"}
    train(recipe(toy_model, policy=relative), tmp_path / "run", until=2)
    monkeypatch.chdir(tmp_path)
    assert_same_weights(resume(tmp_path / "run"), train(recipe(toy_model), tmp_path / "whole"))


def test_a_named_model_stays_named_where_a_folder_is_called_the_same(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toy_model, tmp_path / "tiny-base")
    monkeypatch.chdir(tmp_path)
    named = recipe("tiny-base", eval={"every": 0}, steps=1)
    train(named, tmp_path / "run")
    assert "\n  model: tiny-base\n" in (tmp_path / "run" / "recipe.yaml").read_text()
    embeddings = "model.embed_tokens.weight"
    assert weights(tmp_path / "run" / "final")[embeddings].shape != weights(toy_model)[embeddings].shape


def test_a_run_in_use_is_refused_untouched(toy_model: Path, tmp_path: Path) -> None:
    """Somebody who looks at a run while it runs must not be able to cut its log back."""

    class Intruder(StopAfter):
        def logged(self, step: int, metrics: Mapping[str, float]) -> None:
            if step == self.step:
                before = {path: path.stat().st_ino for path in (tmp_path / "run").rglob("*")}
                done = cli("train", "--resume", tmp_path / "run")
                assert_one_line(done, "another process is at work in it")
                assert {path: path.stat().st_ino for path in (tmp_path / "run").rglob("*")} == before

    final = train(recipe(toy_model), tmp_path / "run", callback=Intruder(3))
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert final.is_dir()


@pytest.mark.parametrize("existed", [False, True])
def test_a_sink_that_cannot_start_leaves_nothing_behind(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    if existed:
        (tmp_path / "run").mkdir()

    class Broken(TensorBoardSink):
        def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
            (out / "wandb").mkdir()
            raise ImportError("No module named 'wandb'")

    monkeypatch.setitem(SINKS, "wandb", Broken)
    with pytest.raises(RlifError, match=r"log\.sinks: wandb is not usable"):
        train(recipe(toy_model, log={"sinks": ["wandb"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(recipe(toy_model, steps=1), tmp_path / "run")  # the corrected command works


def test_a_pause_changes_nothing(toy_model: Path, tmp_path: Path) -> None:
    assert train(recipe(toy_model), tmp_path / "paused", until=1) is None
    assert resume(tmp_path / "paused", until=3) is None
    assert_same_weights(resume(tmp_path / "paused"), train(recipe(toy_model), tmp_path / "whole"))


@pytest.mark.parametrize("until", [0, -1])
def test_a_pause_before_the_first_step_is_refused(toy_model: Path, tmp_path: Path, until: int) -> None:
    with pytest.raises(RlifError, match=rf"until: {until}; a run pauses after step 1 at the earliest"):
        train(recipe(toy_model), tmp_path / "run", until=until)
    assert not (tmp_path / "run").exists()
    train(recipe(toy_model, steps=1), tmp_path / "whole")
    with pytest.raises(RlifError, match=rf"until: {until}"):
        resume(tmp_path / "whole", until=until)


def test_a_model_blown_up_ends_in_one_line(toy_model: Path, tmp_path: Path) -> None:
    train(recipe(toy_model, grpo={"kl_coef": 0.0}), tmp_path / "run", until=2)
    real = setup.load_policy

    def damaged(*args, **kwargs):  # type: ignore[no-untyped-def]
        policy = real(*args, **kwargs)
        with torch.no_grad():
            policy.model.model.norm.weight.fill_(math.nan)
        return policy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "load_policy", damaged)
        with pytest.raises(RlifError, match=r"step 3: the policy's logits are not finite; nothing .*step-000002"):
            resume(tmp_path / "run")


def test_memory_that_runs_out_ends_in_one_line(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    train(recipe(toy_model), tmp_path / "run", until=2)
    monkeypatch.setattr(trainer, "grpo_step", starved)
    with pytest.raises(RlifError, match=r"step 3: out of memory .*step-000002.*grpo.micro_batch_tokens"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reference_that_has_changed_is_refused(toy_model: Path, tmp_path: Path, dtype: str) -> None:
    """The reference of a resumed run is loaded again: it must be the model that the run began with."""
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    with_kl = recipe(model, policy={"model": str(model), "dtype": dtype, "device": "cpu"})
    train(with_kl, tmp_path / "run", until=2)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    resume(tmp_path / "again", until=3)  # the same model: nothing to say
    policy = load_policy(PolicyConfig(model=str(model)), dtype=torch.float32)
    with torch.no_grad():
        next(policy.model.parameters()).add_(0.1)
    policy.save(model)
    with pytest.raises(RlifError, match=r"policy.model: .*model has changed since this run began.*reference"):
        resume(tmp_path / "run")


def test_killed_and_resumed_gives_the_same_weights(tiny_base_path: Path, tmp_path: Path) -> None:
    run = start_run(tiny_base_path, tmp_path / "killed", steps=16)
    wait_for(tmp_path / "killed" / "checkpoints" / "step-000004", run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not (tmp_path / "killed" / "final").exists()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    resumed = cli("train", "--resume", tmp_path / "killed", env=env)
    assert resumed.returncode == 0, resumed.stderr
    whole = train(load_recipe(shipped_recipes()["tiny"], short_run(tiny_base_path, 16)), tmp_path / "whole")
    assert_same_weights(whole, tmp_path / "killed" / "final")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_checkpoints_then_stops(tiny_base_path: Path, tmp_path: Path, signum: int, code: int) -> None:
    run = start_run(tiny_base_path, tmp_path / "run", steps=4000)
    wait_for(tmp_path / "run" / "checkpoints" / "step-000002", run)
    run.send_signal(signum)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == code, errors
    last = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    step = int(last.removeprefix("step-"))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == step
    assert errors.strip().splitlines() == [
        "stopping after this step, with a checkpoint (once more: at once)",
        f"rlif: stopped after step {step} of 4000; go on with: rlif train --resume {tmp_path / 'run'}",
    ]


@pytest.mark.parametrize("step", [2, 4])  # 4 is the last
def test_a_signal_does_not_wait_for_the_evaluation_of_a_step(toy_model: Path, tmp_path: Path, step: int) -> None:
    """The step is kept with its checkpoint, less its evaluation; that is made when the run goes on."""

    class Asked(NullCallback):
        evaluating, told = False, 0

        def begin(self, phase: str, at: int, total: int) -> None:
            self.evaluating = (phase, at) == ("eval", step)

        def advance(self, tokens: int) -> None:
            self.told += self.evaluating

    asked, out, whole = Asked(), tmp_path / "run", tmp_path / "whole"
    made = recipe(
        toy_model,
        eval={"every": 2, "problems": 8, "samples": 2},
        checkpoint={"every": 3, "best": "eval/entropy"},  # the best is not known before the evaluation
    )
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 4; go on with: "):
        train(made, out, callback=asked, stop=lambda: signal.SIGINT * asked.evaluating)
    assert asked.told == 1
    assert (out / "checkpoints" / f"step-00000{step}").is_dir()
    assert not (out / "final").exists()
    last = read_metrics(out / "metrics.jsonl")[-1]
    assert last["step"] == step
    assert "eval/right" not in last
    again = Asked()  # broken off once more, while it is made anew
    with pytest.raises(Interrupted, match=f"stopped in the evaluation of step {step}; go on with: "):
        resume(out, callback=again, stop=lambda: signal.SIGINT * again.evaluating)
    seen: list[tuple[int, bool]] = []

    class Told(NullCallback):
        def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
            seen.append((step, "eval/right" in metrics and "lr" in metrics))

    resume(out, callback=Told())
    assert seen[0] == (step, True)
    train(made, whole)
    assert_same_weights(out / "final", whole / "final")
    one, other = (read_metrics(folder / "metrics.jsonl") for folder in (out, whole))
    assert [without_clock(line) for line in one] == [without_clock(line) for line in other]
    for name in ("eval_answers", "eval_verdicts"):
        files = [sorted((folder / name).iterdir()) for folder in (out, whole)]
        assert [path.name for path in files[0]] == [path.name for path in files[1]]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    states = [
        json.loads((max((folder / "checkpoints").iterdir()) / "state.json").read_text()) for folder in (out, whole)
    ]
    assert "unevaluated" not in states[0]
    assert states[0]["best"] == states[1]["best"]


def test_a_signal_does_not_wait_for_the_evaluation_before_the_first_step(toy_model: Path, tmp_path: Path) -> None:
    class Asked(NullCallback):
        """The signal comes while the untrained model is evaluated."""

        evaluating, told = False, 0

        def begin(self, phase: str, step: int, total: int) -> None:
            self.evaluating = phase == "eval"

        def advance(self, tokens: int) -> None:
            self.told += self.evaluating

    asked, changes = Asked(), {"eval": {"every": 2, "problems": 8, "samples": 2}}
    out, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(Interrupted, match="stopped before step 1; go on with: "):
        train(recipe(toy_model, **changes), out, callback=asked, stop=lambda: signal.SIGINT * asked.evaluating)
    assert asked.told == 1
    assert read_metrics(out / "metrics.jsonl") == []
    resume(out)
    train(recipe(toy_model, **changes), whole)
    assert_same_weights(out / "final", whole / "final")
    one, other = (read_metrics(folder / "metrics.jsonl") for folder in (out, whole))
    assert [without_clock(line) for line in one] == [without_clock(line) for line in other]
