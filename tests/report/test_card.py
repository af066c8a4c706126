"""The model card: what it says is what the run's files say, and no path of the machine leaves with it."""

import json
from pathlib import Path

import pytest
import yaml

from pages import STEPS, line, write_run
from rlif.report.card import _chosen, card, public_name, write_card
from rlif.report.run_record import Group, read_run
from rlif.report.story import story


def test_the_card_says_what_the_files_say(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = write_card(run)
    text = path.read_text("utf-8")
    assert path == run / "final" / "README.md"
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "toy"
    assert front["library_name"] == "transformers"
    assert "trained with GRPO for 4 steps on self_certainty, 128 prompts × 8 completions a step." in text
    assert "No label entered its reward." in text
    assert "| sampled | 0.250 ± 0.030 | 0.750 ± 0.030 @ 2 | 0.125 ± 0.030 @ 4 | 0.38 → 0.25 | 0.88 → 0.88 |" in text
    assert "| greedy | 0.250 ± 0.040 |" in text
    assert "rlif 0, torch 2." in text


@pytest.mark.parametrize(("model", "license"), [("tiny-base", "apache-2.0"), ("gemma3-270m", "gemma"), ("toy", None)])
def test_the_license_is_that_of_a_base_model_that_is_known(model: str, license: str | None, tmp_path: Path) -> None:
    front = yaml.safe_load(card(read_run(write_run(tmp_path / "run", policy={"model": model})), []).split("---\n")[1])
    assert front.get("license") == license


def test_problems_that_were_trained_on_are_not_called_held_out(tmp_path: Path) -> None:
    file = {"name": "file", "path": "problems.jsonl"}
    for task, said in (
        ({"name": "arithmetic"}, "64 held-out problems"),
        (file | {"eval_path": "others.jsonl"}, "64 held-out problems"),
        (file, "64 of the problems it was trained on"),
        ({"name": "mine.problems:sums"}, "64 problems of the evaluation"),
    ):
        run = write_run(tmp_path / str(len(list(tmp_path.iterdir()))), task=task)
        assert f"± one standard error, {said}." in write_card(run).read_text("utf-8")
        told = " ".join(story([Group("run", (read_run(run),))]))
        assert ("Judged on problems that it was trained on" in told) == (said == "64 of the problems it was trained on")


def test_labels_are_owned_up_to(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", reward=["self_certainty", {"name": "negated", "of": "verifiable"}])
    text = write_card(run).read_text("utf-8")
    assert "Labels entered: " in text
    assert "verifiable read the ground truth." in text
    logged = write_run(tmp_path / "logged", reward=["self_certainty", {"name": "verifiable", "weight": 0.0}])
    assert "No label entered its reward." in write_card(logged).read_text("utf-8"), "logged, not trained on"


def test_no_score_is_made_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"step": step, **line(step), "eval/undecided": 1.0} for step in STEPS]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert "cannot be said: no problem has a label" in card(read_run(run), [])
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"selected": {"step": 2, "last": 4, "looks": 3}}))
    text = card(read_run(run), [])
    assert "| without labels | before training | chosen, step 2 | last, step 4 |" in text
    assert "| entropy, nats a token | 1.500 | 1.300 | 1.100 |" in text
    assert "| length, tokens | 8 | 6 | 4 |" in text
    assert "self-agreement" not in text, "of one answer a problem it tells nothing"
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert "It was not evaluated while it was trained." in card(read_run(run), [])


@pytest.mark.parametrize(
    ("model", "public"),
    [
        ("tiny-base", "tiny-base"),
        ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B-Base"),
        ("/home/somebody/models/mine", "mine"),
        ("~/models/mine", "mine"),
        ("../models/mine", "mine"),
        ("./mine", "mine"),
    ],
)
def test_names_lose_their_folders(model: str, public: str, tmp_path: Path) -> None:
    assert public_name(model) == public
    task = {"name": "file", "path": "/home/somebody/data/problems.jsonl"}
    text = card(read_run(write_run(tmp_path / "run", policy={"model": model}, task=task)), [])
    assert "somebody" not in text
    assert "problems.jsonl" in text


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        (None, "These are the weights of the last step; none was chosen."),
        ({"step": 40, "last": 40, "looks": 9}, "These are the weights of the last step; none was chosen."),
        (
            {"step": 40, "last": 40, "looks": 9, "chosen": False},
            "These are the weights of the last step; none was chosen.",
        ),
        (
            {"step": 40, "last": 40, "looks": 9, "chosen": True},
            "These are the weights of step 40, the last, which of 9 looks without labels agreed most with the "
            "untrained model's own answers.",
        ),
        (
            {"step": 0, "last": 40, "looks": 9, "chosen": True},
            "These are the weights of step 0, the untrained model, which of 9 looks without labels agreed most with "
            "the untrained model's own answers.",
        ),
        (
            {"step": 20, "last": 40, "looks": 9},
            "These are the weights of step 20 of 40, which of 9 looks without labels agreed most with the untrained "
            "model's own answers.",
        ),
        (
            {"step": 20, "last": 40, "looks": 9, "renewed": [10]},
            "These are the weights of step 20 of 40, which of 9 looks without labels agreed most with its own renewed "
            "answers.",
        ),
        (
            {"step": 20, "last": 40, "looks": 9, "criterion": "probe/labelled_right_and_formatted"},
            "These are the weights of step 20 of 40, which of 9 looks had most right and formatted answers to a few "
            "labelled problems.",
        ),
    ],
    ids=["not looked at", "of before", "not chosen", "the last", "the first", "an earlier one", "renewed", "by labels"],
)
def test_the_card_says_by_what_its_weights_were_chosen(selected: object, said: str) -> None:
    assert _chosen(selected) == said
