"""A run is resumed with what it began with, or not at all: two days, changed inputs, lost histories."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers.utils import chat_template_utils

from rlif.cli import main
from rlif.config import PolicyConfig, Recipe
from rlif.errors import RlifError
from rlif.evals import runner as eval_loop
from rlif.evals.backends import engine
from rlif.evals.backends.engine import EngineBackend
from rlif.evals.runner import Candidate, evaluate
from rlif.evals.settings import settings_of
from rlif.model import template_clock
from rlif.recipes import parse_recipe
from rlif.rewards.registry import REWARDS
from rlif.runs import provenance
from rlif.runs.history import lines_up_to, read_metrics
from rlif.runs.layout import recipe_path
from rlif.runs.provenance import FREE, ROUNDING, Provenance, accept, model_files, start_of
from rlif.runs.resumption import find_start
from rlif.runs.run_log import RunLog
from rlif.runs.trackers import SINKS
from rlif.training.callbacks import NullCallback
from rlif.training.loop import resume, train
from rlif.training.opening import new_run
from toys import toy_policy

DATED = (
    "{{ strftime_now('%d %b %Y at %H.%M') | lower }} {% for message in messages %}{{ message['content'] }}{% endfor %}"
)
FIRST, SECOND = datetime(2026, 11, 3, 23, 59), datetime(2026, 11, 4, 0, 1)
AT_FIRST, AT_SECOND = "03 nov 2026 at 23.59", "04 nov 2026 at 00.01"


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model whose chat template prints the date."""
    policy = toy_policy("llama")
    policy.tokenizer.chat_template = DATED
    folder = tmp_path_factory.mktemp("toy")
    policy.save(folder)
    return folder


@pytest.fixture
def it_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the clock that rlif and transformers look at."""

    def set_clock(moment: datetime) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return moment

        for module in (template_clock, chat_template_utils):
            monkeypatch.setattr(module, "datetime", Clock)

    return set_clock


def recipe(model: Path, **changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "steps": 3,
        "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
        "task": {"name": "arithmetic"},
        "rollout": {"prompts": 2, "group_size": 2, "max_new_tokens": 4},
        "reward": "self_certainty",
        "grpo": {"lr": 1e-3, "kl_coef": 0.0},
        "eval": {"every": 2, "problems": 2},
        "checkpoint": {"every": 1},
        "log": {"entropy_share": 0.0},
    }
    return parse_recipe({**data, **changes})


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def prompts_of(run: Path) -> set[str]:
    return {text for path in (run / "rollouts").glob("*.parquet") for text in pq.read_table(path)["prompt"].to_pylist()}


def info_of(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())


class At:
    """A callback that does something once the line of a step was written."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._step, self._act = step, act

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            self._act()


def pull_the_plug() -> None:
    raise ConnectionAbortedError


# --- the date


def test_a_run_resumed_on_another_day_is_told_the_day_it_began(
    toy_model: Path, tmp_path: Path, it_is: Callable[[datetime], None]
) -> None:
    it_is(FIRST)
    whole = train(recipe(toy_model), tmp_path / "whole")
    train(recipe(toy_model), tmp_path / "run", until=1)
    with pytest.raises(ConnectionAbortedError):  # before its first checkpoint: only run.json knows the day
        train(recipe(toy_model, checkpoint={"every": 0}), tmp_path / "early", callback=At(1, pull_the_plug))
    it_is(SECOND)
    for name in ("run", "early"):
        assert_same_weights(whole, resume(tmp_path / name))
        assert all(text.startswith(AT_FIRST) for text in prompts_of(tmp_path / name))
    evaluations = [
        [row.get("eval/entropy") for row in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "run")
    ]
    assert evaluations[0] == evaluations[1]
    train(recipe(toy_model, steps=1), tmp_path / "later")  # the clock is looked at where it should be
    assert all(text.startswith(AT_SECOND) for text in prompts_of(tmp_path / "later"))


def test_an_old_folder_is_told_the_day_of_its_run_json(
    toy_model: Path, tmp_path: Path, it_is: Callable[[datetime], None]
) -> None:
    """Folders of before: no provenance, no note of checkpoints."""
    started = "2026-11-03T12:00:00+00:00"
    assert start_of({"started": started}).date().isoformat() in ("2026-11-03", "2026-11-04")  # wherever the test runs
    it_is(FIRST)
    train(recipe(toy_model), tmp_path / "run", until=1)
    info = info_of(tmp_path / "run")
    info = {key: info[key] for key in info if key not in ("provenance", "last_checkpoint")} | {"started": started}
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    strip_state(tmp_path / "run" / "checkpoints" / "step-000001")
    it_is(SECOND)
    resume(tmp_path / "run")
    told = start_of(info).strftime("%d %b %Y at %H.%M").lower()
    assert any(text.startswith(told) for text in prompts_of(tmp_path / "run"))
    assert not any(text.startswith(AT_SECOND) for text in prompts_of(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    with pytest.raises(RlifError, match=r"no checkpoint here, but metrics\.jsonl has 3 steps"):
        resume(tmp_path / "run")


def strip_state(checkpoint: Path) -> None:
    """Make a checkpoint one of before: without provenance in its state."""
    change_state(checkpoint, lambda state: state.pop("provenance"))


def change_state(checkpoint: Path, change: Callable[[Any], object]) -> None:
    """Change the state of a checkpoint of step 1, and make its manifest fit."""
    from rlif.runs.checkpoint import MANIFEST, Manifest, _files_in, _sum

    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state))
    files = {name: _sum(checkpoint / name) for name in _files_in(checkpoint) if name != MANIFEST}
    (checkpoint / MANIFEST).write_bytes(Manifest(step=1, files=files).to_bytes())


def test_an_evaluation_gone_on_with_on_another_day(
    toy_model: Path, tmp_path: Path, it_is: Callable[[datetime], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_loop, "_EVERY", 0.0)
    monkeypatch.setattr(engine, "_BATCH_TOKENS", 1)
    config = PolicyConfig(model=str(toy_model), dtype="float32", device="cpu")
    candidate = Candidate("toy", lambda: EngineBackend("toy", config))
    settings = settings_of(tasks=("arithmetic",), limit=4, samples=2, max_new_tokens=4)

    class Impatient(eval_loop.NullEvalCallback):
        def answered(self, answers: Any) -> None:
            raise KeyboardInterrupt

    it_is(FIRST)
    whole = evaluate([candidate], settings, tmp_path / "whole")
    for name in ("dated", "old", "changed"):
        with pytest.raises(KeyboardInterrupt):
            evaluate([candidate], settings, tmp_path / name, callback=Impatient())
    it_is(SECOND)
    later = evaluate([candidate], settings, tmp_path / "dated")
    assert [one["metrics"] for one in later["results"]] == [one["metrics"] for one in whole["results"]]
    answers = pq.read_table(tmp_path / "dated" / "toy" / "arithmetic")["prompt"].to_pylist()
    assert len(answers) == 8
    assert all(text.startswith(AT_FIRST) for text in answers)

    asked, model = tmp_path / "old" / "eval.json", tmp_path / "old" / "toy" / "model.json"
    for path, key in ((asked, "date"), (model, "prompts")):  # what an evaluation of before does not hold
        data = json.loads(path.read_text())
        del data[key]
        path.write_text(json.dumps(data))
    os.utime(asked, (FIRST.timestamp(), FIRST.timestamp()))
    evaluate([candidate], settings, tmp_path / "old")
    answers = pq.read_table(tmp_path / "old" / "toy" / "arithmetic")["prompt"].to_pylist()
    assert all(text.startswith(AT_FIRST) for text in answers)
    assert "prompts" not in json.loads(model.read_text())

    model = tmp_path / "changed" / "toy" / "model.json"
    model.write_text(model.read_text().replace('"prompts": {\n  "arithmetic": "', '"prompts": {\n  "arithmetic": "0'))
    with pytest.raises(RlifError, match=r"toy has changed since \(prompts.arithmetic was .*choose another out"):
        evaluate([candidate], settings, tmp_path / "changed")


# --- changed inputs

BEGAN = Provenance(
    date=FIRST,
    recipe=recipe(Path("m")).model_dump(mode="json"),
    model={"config.json": "1", "model.safetensors": "2"},
    problems={"task.path": "3", "task.eval_path": "4"},
    prompts={"train": "5", "eval": "6"},
)


def leaves(data: Mapping[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*where, key))
        else:
            yield (*where, key), value


OTHER: dict[str, Any] = {
    "policy.dtype": "bfloat16",
    "policy.chat_template": "off",
    "policy.device": "cuda",
    "task.name": None,  # another task has other keys
    "task.template": "boxed",
    "task.format": "hash",
    "task.limit": 50,
    "reward": [{"name": "token_entropy"}],
    "advantage.semantic_entropy": [0.1, 1.0],
    "grpo.betas": [0.8, 0.9],
    "grpo.schedule": "linear",
    "grpo.aggregation": "sequence_mean",
    "rollout.stop": ["x"],
    "rollout.max_rows": 3,
    "rollout.engine": "vllm",
    "grpo.micro_batch_tokens": 7,
    "checkpoint.best": "reward/self_certainty/mean",
    "log.sinks": ["wandb"],
    "rollout.prompts": 4,
    "eval.top_k": 5,
    "rollout.top_k": 5,  # 1 is refused
    "steps": 9,
    "probe.every": 5,
    "probe.path": "prompts.jsonl",
    "probe.labels": "labelled.jsonl",
    "policy.lora": None,  # a section: of its keys each is told
    "probe.similarity": None,  # the same
    "guards.choose_by": None,  # it needs labels to choose by
    "log.project": "mine",
    "log.name": "mine",
    "consensus.decay": [0.5, 0.9],
    "grpo.kl_target": None,  # it needs a kl_coef to start from
    "grpo.kl_cov_from": "old",
    "grpo.clip_cov_range": [0.5, 5.0],
}


def another(key: str, value: Any) -> Any:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return f"{value}x" if isinstance(value, str) else 0.5


@pytest.mark.parametrize("path", [path for path, _ in leaves(BEGAN.recipe)], ids=".".join)
def test_every_key_of_a_recipe_that_decides_the_result_is_refused(path: tuple[str, ...], tmp_path: Path) -> None:
    data, key = json.loads(json.dumps(BEGAN.recipe)), ".".join(path)
    section = data
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = another(key, section[path[-1]])
    if section[path[-1]] is None:
        return
    found = BEGAN.model_copy(update={"recipe": parse_recipe(data).model_dump(mode="json")})
    if key == "policy.model":  # another name for the same files
        assert accept(BEGAN, found, step=1, out=tmp_path, allow=False) == []
    elif key.startswith(FREE):
        assert accept(BEGAN, found, step=1, out=tmp_path, allow=False)[0].startswith(f"recipe.yaml: {key} was ")
    elif key in ROUNDING:
        with pytest.warns(RuntimeWarning, match=f"{key} was .*the same to rounding, not bit for bit"):
            accept(BEGAN, found, step=1, out=tmp_path, allow=False)
    else:
        with pytest.raises(
            RlifError, match=rf"^recipe.yaml: {key} was .* began; .*rlif\.resume\(.+, allow_changed=True\)$"
        ) as caught:
            accept(BEGAN, found, step=1, out=tmp_path, allow=False)
        assert "\n" not in str(caught.value)
        assert len(accept(BEGAN, found, step=1, out=tmp_path, allow=True)) == 1


MINE = {"mine": dataclasses.replace(REWARDS["ema_vote"], name="mine")}


@pytest.mark.parametrize(
    "reward", ["majority_vote", "ema_vote", {"name": "negated", "of": "ema_vote"}, "mine"], ids=str
)
def test_more_steps_are_another_run_where_a_teachers_decay_depends_on_them(
    reward: Any, toy_model: Path, tmp_path: Path
) -> None:
    own = MINE if reward == "mine" else {}
    constant = {"grpo": {"kl_coef": 0.0, "schedule": "constant", "warmup": 0.0}, "consensus": {"samples": 1}}
    out = tmp_path / "run"
    train(recipe(toy_model, reward=reward, eval={"every": 0}, **constant), out, until=1, rewards=own)
    path = recipe_path(out)
    path.write_text(path.read_text().replace("steps: 3\n", "steps: 4\n", 1))
    if reward == "majority_vote":
        resume(out, until=2)
        assert info_of(out)["resumed"][-1]["changed"] == ["recipe.yaml: steps was 3, is 4"]
        return
    with pytest.raises(RlifError, match=r"^recipe.yaml: steps was 3, is 4 since the run"):
        resume(out, rewards=own)


def test_a_run_begun_without_greedy_evaluation_goes_on_without_it(toy_model: Path, tmp_path: Path) -> None:
    """A recipe, a run.json and a checkpoint of an rlif that did not know the key; and it can be switched on."""
    out = tmp_path / "run"
    train(recipe(toy_model, eval={"every": 1, "problems": 2, "greedy": False}, steps=4), out, until=1)
    path, info = out / "recipe.yaml", out / "run.json"
    path.write_text(path.read_text().replace("  greedy: false\n", ""))
    recorded = info_of(out)
    del recorded["provenance"]["recipe"]["eval"]["greedy"]
    info.write_text(json.dumps(recorded))
    change_state(out / "checkpoints" / "step-000001", lambda state: state["provenance"]["recipe"]["eval"].pop("greedy"))
    resume(out, until=2)
    assert "changed" not in info_of(out)["resumed"][-1]
    path.write_text(path.read_text().replace("eval:\n", "eval:\n  greedy: true\n"))
    resume(out, until=3)
    assert info_of(out)["resumed"][-1]["changed"] == ["recipe.yaml: eval.greedy was false, is true"]
    evaluated = ["eval/greedy_right" in line for line in read_metrics(out / "metrics.jsonl")]
    assert evaluated == [False, False, False, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"config.json": "1", "model.safetensors": "9"}}, "policy.model: model.safetensors of m has changed"),
        ({"model": {"config.json": "1"}}, "policy.model: model.safetensors of m has changed"),
        ({"model": {**BEGAN.model, "tokenizer.json": "1"}}, "policy.model: tokenizer.json of m has changed"),
        ({"problems": {"task.path": "9", "task.eval_path": "4"}}, "task.path: the problems in"),
        ({"problems": {"task.path": "3", "task.eval_path": "9"}}, "task.eval_path: the problems in"),
        ({"prompts": {"train": "9", "eval": "6"}}, "prompts: tokenizer, chat template or task"),
        ({"prompts": {"train": "5", "eval": "9"}}, "prompts: tokenizer, chat template or task"),
        ({"prompts": {"train": "5"}}, None),  # no evaluation now
        ({"model": {}}, None),  # not there, and nothing needs it
    ],
)
def test_changed_files_are_named(change: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    found = BEGAN.model_copy(update=change)
    if said is None:
        assert accept(BEGAN, found, step=1, out=tmp_path, allow=False) == []
    else:
        with pytest.raises(RlifError, match=f"^{said}.* since the run in"):
            accept(BEGAN, found, step=1, out=tmp_path, allow=False)
    assert accept(None, found, step=1, out=tmp_path, allow=False) == []  # nothing is known of an old run


def test_more_steps_may_follow_where_they_change_no_learning_rate(tmp_path: Path) -> None:
    def of(steps: int, **grpo: Any) -> Provenance:
        return BEGAN.model_copy(update={"recipe": recipe(Path("m"), steps=steps, grpo=grpo).model_dump(mode="json")})

    constant = {"schedule": "constant", "warmup": 0.0}
    accept(of(4, **constant), of(9, **constant), step=4, out=tmp_path, allow=False)
    accept(of(9, **constant), of(4, **constant), step=4, out=tmp_path, allow=False)
    for allow in (False, True):
        with pytest.raises(RlifError, match=r"recipe.yaml: steps is 4, but 5 are done; give 5 or more"):
            accept(of(9, **constant), of(4, **constant), step=5, out=tmp_path, allow=allow)
    for changed in ({"schedule": "cosine"}, {"schedule": "constant", "warmup": 0.5}):
        with pytest.raises(RlifError, match=r"recipe.yaml: steps was 4, is 9"):
            accept(of(4, **changed), of(9, **changed), step=4, out=tmp_path, allow=False)


def test_what_changes_in_a_real_run_is_refused_and_harmless_changes_are_not(toy_model: Path, tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(toy_model, model)
    data.mkdir()
    for name in ("train", "held"):
        rows = [{"question": f"{i}+{len(name)}=?", "answer": str(i + len(name))} for i in range(6)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems, held, template = data / "train.jsonl", data / "held.jsonl", model / "chat_template.jinja"
    task = {"name": "file", "path": str(problems), "eval_path": str(held), "template": "plain"}
    out = tmp_path / "run"
    train(recipe(model, task=task), out, until=1)

    def rewrite(path: Path, old: str, new: str) -> Callable[[], object]:
        return lambda: path.write_text(path.read_text().replace(old, new, 1))

    written = out / "recipe.yaml"
    for file, act, said in (
        (problems, rewrite(problems, "1+5=?", "1 + 5=?"), "task.path: the problems in .*train.jsonl have changed"),
        (problems, rewrite(problems, '"answer": "6"', '"answer": "7"'), "task.path"),
        (held, rewrite(held, "1+4=?", "2+3=?"), "task.eval_path: the problems in .*held.jsonl have changed"),
        (template, rewrite(template, "%d", "%B"), "policy.model: chat_template.jinja"),
        (model / "config.json", rewrite(model / "config.json", "128", "256"), "policy.model: config.json"),
        (written, rewrite(written, "lr: 0.001", "lr: 0.002"), "recipe.yaml: grpo.lr was 0.001, is 0.002"),
    ):  # fmt: skip
        before = file.read_text()
        act()
        assert file.read_text() != before
        history = (out / "metrics.jsonl").read_bytes()
        with pytest.raises(RlifError, match=f"^{said}") as caught:
            resume(out)
        assert str(caught.value).endswith(f"rlif.resume({str(out)!r}, allow_changed=True)")
        assert "\n" not in str(caught.value)
        assert (out / "metrics.jsonl").read_bytes() == history
        file.write_text(before)

    # Other bytes, the same problems, the same recipe; the files lie elsewhere.
    problems.write_text(problems.read_text().replace(": ", ":  "))
    data.rename(tmp_path / "moved")
    moved = written.read_text().replace(str(data), str(tmp_path / "moved"))
    written.write_text("# a comment\n" + moved.replace("checkpoint:\n  every: 1\n", "checkpoint:\n  every:    2\n"))
    resume(out, until=2)
    rewrite(written, "lr: 0.001", "lr: 0.002")()
    resume(out, allow_changed=True)
    *_, harmless, allowed = info_of(out)["resumed"]
    assert harmless["changed"] == ["recipe.yaml: checkpoint.every was 1, is 2"]
    assert allowed["changed"] == ["recipe.yaml: grpo.lr was 0.001, is 0.002"]
    resume(out)  # the checkpoint was written with it: from here on it is the run's own


def test_the_flag_stands_beside_resume_alone(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match="--allow-changed belongs to --resume DIR"):
        main.train(Path("tiny"), None, tmp_path / "run", allow_changed=True)


def test_a_model_folder_is_known_by_what_transformers_reads_of_it(toy_model: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_model, tmp_path / "model")
    before, _ = model_files(str(tmp_path / "model"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(before)
    (tmp_path / "model" / "README.md").write_text("mine")
    assert model_files(str(tmp_path / "model"))[0] == before
    assert model_files(str(tmp_path / "nowhere")) == ({}, {})
    assert model_files("owner/not-in-the-cache") == ({}, {})
    assert set(model_files("tiny-base")[0]) >= {"config.json", "model.safetensors"}
    (tmp_path / "a.gguf").write_bytes(b"weights")
    named, _ = model_files(str(tmp_path / "a.gguf"))
    assert list(named.values()) == [hashlib.sha256(b"weights").hexdigest()]
    (tmp_path / "a.gguf").rename(tmp_path / "b.gguf")
    assert model_files(str(tmp_path / "b.gguf"))[0] == named


def recorded(source: Path | str) -> Provenance:
    files, stamps = model_files(str(source))
    return BEGAN.model_copy(update={"model": files, "stamps": stamps})


def test_a_model_is_not_read_again_while_nothing_has_touched_its_files(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, weights = tmp_path / "model", tmp_path / "model" / "model.safetensors"
    shutil.copytree(toy_model, model)
    train(recipe(model), tmp_path / "run", until=1)
    began, read = recorded(model), []
    digest = provenance.sha256
    monkeypatch.setattr(provenance, "sha256", lambda path: (read.append(path.name), digest(path))[1])
    assert model_files(str(model), began) == (began.model, began.stamps)
    resume(tmp_path / "run", until=2)
    assert read == []
    os.utime(weights)  # other times, the same bytes
    assert model_files(str(model), began)[0] == began.model
    assert read == ["model.safetensors"]

    # Other bytes of the same size, the time put back: the run is refused also without a KL term.
    times, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(RlifError, match=r"^policy\.model: model\.safetensors of .* has changed"):
        resume(tmp_path / "run")


def test_of_a_hub_id_the_files_count_and_not_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "models--owner--name"
    (hub / "refs").mkdir(parents=True)
    (hub / "blobs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def commit(name: str, files: dict[str, str]) -> None:
        (hub / "refs" / "main").write_text(name)
        (hub / "snapshots" / name).mkdir(parents=True)
        for file, text in files.items():
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            blob = hub / "blobs" / (sha256 if file.endswith(".safetensors") else sha256[:40])
            blob.write_text(text)
            (hub / "snapshots" / name / file).symlink_to(os.path.relpath(blob, hub / "snapshots" / name))

    first = {"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "t", "README.md": "1"}
    commit("a" * 40, first)
    began = recorded("owner/name")
    assert began.model == {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in first.items() if name != "README.md"
    }
    for name, files, same in (
        ("b", {**first, "README.md": "2"}, True),
        ("c", {"config.json": "{}"}, True),  # the rest was not fetched, so nothing else is loaded
        ("d", {**first, "model.safetensors": "v"}, False),
        ("e", {**first, "tokenizer.json": "u"}, False),
        ("f", {"config.json": "{ }"}, False),
    ):
        commit(name * 40, files)
        assert (model_files("owner/name", began)[0] == began.model) is same, name


# --- lost histories


def test_a_history_is_whole_or_refused_with_its_line(tmp_path: Path) -> None:
    """Every sequence of up to four steps out of 0 to 3, against every checkpoint, by a definition written apart."""
    path = tmp_path / "metrics.jsonl"
    for length, step in itertools.product(range(5), (-1, 1, 2, 3)):
        for steps in itertools.product(range(4), repeat=length):
            path.write_text("".join(f'{{"step": {s}}}\n' for s in steps))
            kept = [s for s in steps if s <= step]
            first = steps[: len(kept)]
            in_order = first == tuple(kept) in (tuple(range(len(kept))), tuple(range(1, len(kept) + 1)))
            reaches = len(kept) == len(steps) or kept[-1:] == [step] or step == -1
            if in_order and reaches:
                assert lines_up_to(path, step).count(b"\n") == len(kept), (steps, step)
            else:
                with pytest.raises(RlifError, match=r"metrics\.jsonl, line \d: step \d where step \d belongs.*restore"):
                    lines_up_to(path, step)


@pytest.fixture(scope="module")
def finished(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; to be copied, not changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(recipe(toy_model), out)
    return out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: shutil.rmtree(out / "checkpoints"), "no checkpoint here, but metrics.jsonl has 3 steps"),
        (lambda out: [shutil.rmtree(path) for path in (out / "checkpoints").iterdir()], "no checkpoint here"),
        (lambda out: [path.unlink() for path in out.rglob("manifest.json")], "manifest.json is missing.*start the run"),
        (lambda out: (out / "checkpoints/step-000003/manifest.json").unlink(), "to resume from step-000002"),
        (lambda out: drop_lines(out, {2}), r"metrics.jsonl, line 3: step 3 where step 2 belongs"),
        (lambda out: drop_lines(out, {3}), r"metrics.jsonl: ends at step 2, but the checkpoint is of step 3"),
        (lambda out: drop_lines(out, {0, 1, 2, 3}), r"metrics.jsonl: ends at step 0, but the checkpoint is of step 3"),
        (lambda out: (out / "metrics.jsonl").unlink(), r"metrics.jsonl of this run is missing; restore it"),
        (lambda out: (out / "run.json").unlink(), r"run.json of this run is missing; restore it"),
        (lambda out: (out / "run.json").write_text("[1]"), r"run.json: not a run's description"),
        (lambda out: (out / "recipe.yaml").unlink(), r"recipe.yaml is missing\); restore it from a copy"),
    ],
)
def test_a_damaged_history_is_refused_in_one_line_and_left_alone(
    finished: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RlifError, match=said) as caught:
        resume(out)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def drop_lines(out: Path, steps: set[int]) -> None:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["step"] not in steps))


def test_an_older_checkpoint_is_taken_with_a_warning_and_nothing_is_lost(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints" / "step-000003")
    logged, rollouts = (out / "metrics.jsonl").read_bytes(), (out / "rollouts" / "step-000003.parquet").read_bytes()
    with pytest.warns(
        RuntimeWarning, match=r"checkpoint step-000003 is gone: goes on from step 2, steps 3 to 3 are made"
    ):
        final = resume(out)
    assert_same_weights(final, finished / "final")
    assert (out / "metrics.jsonl.before-step-000003").read_bytes() == logged
    assert (out / "rollouts.before-step-000003" / "step-000003.parquet").read_bytes() == rollouts
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [0, 1, 2, 3]
    resume(out)  # told once


def move_away(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def replace_folder(path: Path) -> None:
    shutil.copytree(path, path.with_name("copy"))
    shutil.rmtree(path)
    path.with_name("copy").rename(path)


@pytest.mark.parametrize(
    ("at", "act", "said"),
    [
        (2, lambda out: (out / "metrics.jsonl").unlink(), "metrics.jsonl: was removed while the run was at work"),
        (3, lambda out: (out / "metrics.jsonl").unlink(), "metrics.jsonl: was removed while the run was at work"),
        (2, lambda out: replace(out / "metrics.jsonl"), "metrics.jsonl: was replaced or changed"),
        (2, lambda out: (out / "metrics.jsonl").write_bytes(b""), "metrics.jsonl: was replaced or changed"),
        (2, lambda out: replace_folder(out / "rollouts"), "rollouts: was replaced while"),
        (2, move_away, "was removed, renamed or replaced"),
        (3, move_away, "was removed, renamed or replaced"),
        (2, lambda out: (move_away(out), out.mkdir()), "was removed, renamed or replaced"),
    ],
    ids=["removed", "removed at the end", "replaced", "emptied", "rollouts", "moved", "moved at the end", "new folder"],
)
def test_a_log_taken_away_from_a_running_process_ends_it(
    toy_model: Path, tmp_path: Path, at: int, act: Callable[[Path], object], said: str
) -> None:
    """After the last step, too, when only the checkpoint and final/ are still to be written."""
    out = tmp_path / "run"
    with pytest.raises(RlifError, match=said) as caught:
        train(recipe(toy_model, eval={"every": 0}), out, callback=At(at, lambda: act(out)))
    assert "\n" not in str(caught.value)
    here = tmp_path / "elsewhere" if (tmp_path / "elsewhere").exists() else out
    assert max(path.name for path in (here / "checkpoints").iterdir()) == f"step-{at - 1:06d}"
    if said.startswith("metrics.jsonl: was removed"):  # it is there again
        assert resume(out) is not None
        assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_rollouts_removed_under_a_running_process_are_no_harm(toy_model: Path, tmp_path: Path, at: int) -> None:
    out = tmp_path / "run"
    gone = out / "rollouts"
    final = train(recipe(toy_model, eval={"every": 0}), out, callback=At(at, lambda: shutil.rmtree(gone)))
    assert final is not None
    assert [path.name for path in sorted(gone.iterdir())] == [f"step-{n:06d}.parquet" for n in range(at + 1, 4)]
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3]


# --- killed while the folder is made

_RECORDER: dict[str, Any] = {"folder": None, "snapshots": None}


def _snapshot(event: str, arguments: tuple[Any, ...]) -> None:
    folder, snapshots = _RECORDER["folder"], _RECORDER["snapshots"]
    if folder is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
        return
    if not isinstance(arguments[0], str | Path) or not str(arguments[0]).startswith(str(folder)):
        return
    _RECORDER["folder"] = None  # what the copy itself does is no step of the run's
    if folder.exists():
        shutil.copytree(folder, snapshots / f"{len(list(snapshots.iterdir())):03d}")
    _RECORDER["folder"] = folder


sys.addaudithook(_snapshot)


@pytest.mark.parametrize("ends", ["well", "in a sink that cannot start"])
def test_killed_at_any_moment_of_the_beginning_one_command_works_and_the_other_names_it(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    class Broken:
        def __init__(self, out: Path, recipe: Recipe, first_step: int) -> None:
            (out / "wandb").mkdir()
            (out / "wandb" / "log").touch()
            raise RuntimeError("no key")

    monkeypatch.setitem(SINKS, "wandb", Broken)
    out, snapshots = tmp_path / "run", tmp_path / "snapshots"
    snapshots.mkdir()
    asked = recipe(toy_model, eval={"every": 0}, log={"sinks": [] if ends == "well" else ["wandb"]})
    _RECORDER.update(folder=out, snapshots=snapshots)
    try:
        with new_run(asked, out, NullCallback()):
            pass
    except RlifError:
        assert ends != "well"
    finally:
        _RECORDER["folder"] = None
    states = sorted(snapshots.iterdir())
    assert len(states) >= 6
    works = set()
    for state in states:
        works.add(trial(state, asked))
    assert works == {"train", "resume"}
    if ends == "well":
        assert trial(out, asked) == "resume"
        assert resume(out, until=1) is None


def trial(state: Path, asked: Recipe) -> str:
    """Which of the two commands takes the folder; the other one has to name it."""
    said = {}
    commands = {"train": RunLog.check_free, "resume": lambda out: find_start(recipe_path(out).parent)}
    for name, command in commands.items():
        try:
            command(state)
        except RlifError as error:
            said[name] = str(error)
    assert len(said) == 1, (sorted(path.name for path in state.iterdir()), said)
    if "train" in said:
        assert f"rlif.resume({str(state)!r})" in said["train"]
        return "resume"
    assert "start one with rlif.train(recipe, " in said["resume"]
    log = RunLog.create(state, asked, info={})
    log.close()
    left = sorted(path.name for path in state.iterdir() if path.name != ".lock")
    assert left == ["metrics.jsonl", "recipe.yaml", "run.json"]
    return "train"
