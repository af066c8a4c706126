"""A run that goes on with other questions (allow_changed), or finds its frozen answers changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.monitoring.guards import LABELLED, Alarm
from rlif.monitoring.record import ProbeRecord
from rlif.recipes import parse_recipe
from rlif.runs.checkpoint import latest_checkpoint, load_checkpoint
from rlif.training import looks
from rlif.training.loop import resume, train
from toys import toy_policy

pytestmark = pytest.mark.filterwarnings("ignore:step [0-9]+:RuntimeWarning")  # guards have their say on random models


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


def questions(path: Path, first: int) -> str:
    rows = [{"question": f"{first + i}+{i}=?", "answer": str(first + 2 * i)} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(model: Path, **probe: Any) -> Recipe:
    return parse_recipe(
        {
            "steps": 2,
            "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
            "task": {"name": "arithmetic"},
            "rollout": {"prompts": 2, "group_size": 2, "max_new_tokens": 8},
            "reward": "self_certainty",
            "grpo": {"kl_coef": 0.0, "schedule": "constant", "warmup": 0.0},
            "log": {"entropy_share": 0.0},
            "probe": {"every": 1, "prompts": 4, "samples": 1, "reference_samples": 2, **probe},
        }
    )


def seen(out: Path) -> dict[str, Any]:
    path = latest_checkpoint(out / "checkpoints")
    assert path is not None
    found: dict[str, Any] = load_checkpoint(path).state["probe"]
    return found


def test_looks_at_other_prompts_begin_anew_with_a_reference_of_their_own(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(records: list[ProbeRecord]) -> dict[str, Alarm]:
        return {"agreement": Alarm("stop", "it fell")} if records[-1].step == 1 else {}

    monkeypatch.setattr(looks, "examine", examine)
    path, out = tmp_path / "p.jsonl", tmp_path / "run"
    asked = recipe(toy_model, path=questions(path, 11))
    train(asked, out)
    before = seen(out)
    assert (before["stopped"]["step"], [record["step"] for record in before["records"]]) == (1, [0, 1])
    questions(path, 51)
    train(asked, tmp_path / "other", until=1)
    with pytest.warns(RuntimeWarning, match="the probe's prompts are others than at the looks so far: .* anew"):
        resume(out, allow_changed=True)
    after = seen(out)
    assert (after["stopped"], after["said"], [record["step"] for record in after["records"]]) == (None, [], [2])
    assert after["reference"] == seen(tmp_path / "other")["reference"] != before["reference"]
    assert after["sha256"] == seen(tmp_path / "other")["sha256"]  # what the untrained policy says, not the trained one


def test_a_finished_run_takes_back_what_looks_at_other_prompts_chose(toy_model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "run"
    train(recipe(toy_model, path=questions(path, 11)), out)
    assert json.loads((out / "run.json").read_text())["selected"]["looks"] == 3
    questions(path, 51)
    with pytest.warns(RuntimeWarning, match="the probe's prompts are others"):
        resume(out, allow_changed=True)
    assert json.loads((out / "run.json").read_text())["selected"] is None


def test_what_was_seen_of_other_labelled_problems_is_dropped(toy_model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "labels.jsonl", tmp_path / "run"
    train(recipe(toy_model, labels=questions(path, 11)), out, until=1)
    before = seen(out)["records"]
    assert all(LABELLED in record["metrics"] for record in before)
    questions(path, 51)
    with pytest.warns(RuntimeWarning, match="the probe's labelled problems are others than at the looks so far"):
        resume(out, allow_changed=True)
    after = seen(out)["records"]
    assert [LABELLED in record["metrics"] for record in after] == [False, False, True]
    assert [record["counts"] for record in after[:2]] == [record["counts"] for record in before]


def test_frozen_answers_that_have_changed_are_refused_and_made_anew_when_they_are_gone(
    toy_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(recipe(toy_model), out, until=1)
    (path,) = (out / "probe").glob("reference-*.json")
    kept = path.read_bytes()
    content = json.loads(kept)
    content["answers"][0]["answer"] = "7"
    path.write_text(json.dumps(content))
    with pytest.raises(RlifError, match=r"reference-.*\.json: these are not the answers .*sha256.*; delete it to"):
        resume(out)
    path.write_text(json.dumps(json.loads(kept), indent=1))  # laid out otherwise: the same answers
    resume(out, until=2)
    assert len(seen(out)["records"]) == 3
    path.unlink()
    resume(out)
    assert path.read_bytes() == kept
