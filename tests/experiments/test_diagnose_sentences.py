"""`rlif diagnose` of answers in sentences: all that it says is what it says of one word for each meaning, read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import rlif
from encoders import Degrees, save_toy_encoder
from rlif.cli.main import app
from rlif.config import SimilarityConfig
from rlif.errors import RlifError
from rlif.experiments.calibration import read_calibration
from rlif.experiments.diagnose import Diagnosis, diagnose
from rlif.experiments.subject import DiagnoseSettings, Subject
from rlif.experiments.untrained import Asking, Untrained, look_at
from rlif.experiments.ways import same_answer
from rlif.model.registry import run_of
from rlif.monitoring.probe import distinct_prompts
from rlif.monitoring.sameness import BY_READING, BySimilarity, Sameness
from rlif.recipes import load_recipe
from rlif.rng import Key
from rlif.rollout.prompts import render
from rlif.types import Problem, Sampling
from scripted import Says, Scripted
from toys import toy_policy

N = 18


NEAR = BySimilarity(Degrees(), math.cos(math.radians(10.5)))


def meaning(i: int, j: int, sampling: Sampling, key: Key) -> int:
    """About 20 i degrees. A third of the samples at temperature 1 mean something else, and on every fifth prompt what
    is sharp does."""
    if sampling.temperature < 1.0:
        return (20 * i + (80 if i % 5 == 0 else 0)) % 360
    return (20 * i if (i + j) % 3 else 20 * (i + 1 + j % 4)) % 360


def in_words(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """The same within three degrees, never twice in the same words."""
    return f"{meaning(i, j, sampling, key) + j % 4} or {'abcdefghijklmnopqrst'[j]} {sampling.temperature:g} {key.step}"


def in_a_word(i: int, j: int, sampling: Sampling, key: Key) -> str:
    return str(meaning(i, j, sampling, key))


def found_by(says: Says, same: Sameness, temperature: float = 1.0) -> Untrained:
    problems = [Problem(f"p{i}", f"{i}?") for i in range(N)]
    prompts = distinct_prompts(render(toy_policy(), "plain", problems))
    task = rlif.task_of(problems, format="text", name="words")
    asking = Asking(Sampling(max_new_tokens=64), temperature, votes=12, same=same)
    return look_at(Scripted(says), task, prompts, asking)


@pytest.mark.parametrize("temperature", [1.0, 0.0, 0.7])
def test_sentences_of_one_meaning_count_as_its_word_would(temperature: float) -> None:
    sentences, words = found_by(in_words, NEAR, temperature), found_by(in_a_word, BY_READING, temperature)
    assert sentences.trust == pytest.approx(words.trust)
    assert sentences.ways.keys() == words.ways.keys()
    for name, way in sentences.ways.items():
        if name in ("temperature_1", "own", "low_temperature", "greedy", "majority"):  # the others weigh by confidence
            np.testing.assert_allclose(way.agrees, words.ways[name].agrees)
    for one, other in (("temperature_1", "greedy"), ("low_temperature", "majority"), ("greedy", "low_temperature")):
        assert same_answer(sentences.ways[one], sentences.ways[other]) == pytest.approx(
            same_answer(words.ways[one], words.ways[other])
        )
    for key in ("self_agreement", "constant", "distinct"):
        assert sentences.look[key] == pytest.approx(words.look[key])
    unread = found_by(in_words, BY_READING, temperature)
    assert unread.trust["trusted"] < words.trust["trusted"], "read, hardly two of them agree"


def test_labels_are_held_beside_sentences_as_frozen_answers_are() -> None:
    """The label is the same word for both: 20 i degrees, which every fifth greedy answer is not."""

    def labelled(says: Says, same: Sameness) -> Untrained:
        problems = [Problem(f"p{i}", f"{i}?", str(20 * i)) for i in range(N)]
        prompts = distinct_prompts(render(toy_policy(), "plain", problems))
        task = rlif.task_of(problems, format="text", name="words")
        return look_at(Scripted(says), task, prompts, Asking(Sampling(max_new_tokens=64), 1.0, same=same, labels=True))

    sentences, words = labelled(in_words, NEAR), labelled(in_a_word, BY_READING)
    assert sentences.reference_right == words.reference_right
    assert 0.5 < (words.reference_right or 0.0) <= 1.0
    assert sentences.greedy_mistakes == words.greedy_mistakes
    for name in ("temperature_1", "low_temperature", "greedy", "majority"):
        truths = [found.ways[name].truth for found in (sentences, words)]
        assert truths[0] is not None
        assert truths[1] is not None
        np.testing.assert_allclose(truths[0].right, truths[1].right)


def diagnosed(says: Says, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Diagnosis:
    monkeypatch.setattr("rlif.experiments.subject.sameness", lambda config, *_, **__: NEAR if config else BY_READING)
    task = rlif.task_of([Problem(f"p{i}", f"{i}?") for i in range(N)], format="text", name="words")
    sections = {"policy": {"model": "tiny-base"}, "task": {"name": "arithmetic", "format": "text"}}
    return diagnose(Scripted(says), Subject(task, "plain", sections), DiagnoseSettings(limit=N, **settings))


def test_the_calibration_is_not_asked_and_the_recipe_looks_by_the_same_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    similarity = SimilarityConfig(model="an/encoder", least=0.9)
    found = diagnosed(in_words, monkeypatch, similarity=similarity)
    assert isinstance(found.prediction, str)
    assert found.prediction.startswith("the calibration knows answers that are read")
    assert found.recipe is not None
    assert found.recipe.probe.similarity == similarity
    assert [one.name for one in found.recipe.reward] == ["self_certainty"], "votes read: no two sentences agree"
    assert found.as_json()["settings"]["similarity"] == {"model": "an/encoder", "least": 0.9}
    asked_for = diagnosed(in_words, monkeypatch, similarity=similarity, reward="token_entropy")
    assert asked_for.recipe is not None
    assert [one.name for one in asked_for.recipe.reward] == ["token_entropy"]
    assert read_calibration().cases, "there is one that could have been asked"


def test_one_meaning_to_every_prompt_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(i: int, j: int, sampling: Sampling, key: Key) -> str:
        return f"{j % 4} {'abcdefghijklmnopqrst'[(i + j) % 20]} {i}"

    found = diagnosed(same, monkeypatch, similarity=SimilarityConfig(model="an/encoder"))
    assert found.verdict == "cannot tell"
    assert "one and the same answer to every prompt" in found.reasons[0]
    assert found.reasons[0].endswith("so raise the least similarity if they are not one")


def test_answers_that_hardly_ever_agree_are_told_of_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    def scattered(i: int, j: int, sampling: Sampling, key: Key) -> str:
        return f"{20 * (i + j) % 360} so"

    unread = diagnosed(in_words, monkeypatch)
    assert unread.reasons[0].endswith("; answers in sentences need a similarity")
    assert any("by answers that are not settled" in one for one in unread.reasons[1:]) == (
        any("over how you decode" in one for one in unread.reasons[1:])
    )
    near = diagnosed(scattered, monkeypatch, similarity=SimilarityConfig(model="an/encoder"))
    assert near.reasons[0].endswith("; if answers that mean the same are told apart, lower the least similarity")


def test_the_command_takes_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_toy_encoder(tmp_path / "encoder")
    toy_policy().save(tmp_path / "model")
    assert run_of(str(tmp_path / "model")) is None
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"question": f"what is {n}?"}) + "\n" for n in range(6)))
    asked = ["diagnose", str(tmp_path / "model"), "--prompts", str(tmp_path / "asked.jsonl"), "--template", "plain"]
    asked += ["--format", "text", "--samples", "4", "--max-new-tokens", "8", "--dtype", "float32", "--json"]
    near = ["--similarity", str(tmp_path / "encoder"), "--least", "0.6"]
    done = CliRunner().invoke(app, [*asked, *near, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "out" / "diagnosis.json").read_text("utf-8"))
    assert said["settings"]["similarity"] == {"model": str(tmp_path / "encoder"), "least": 0.6}
    assert load_recipe(tmp_path / "out" / "recipe.yaml").probe.similarity is not None
    for wrong, why in (
        (["--least", "0.6"], "--least: belongs to --similarity ENCODER"),
        (["--similarity", "x", "--least", "0"], "--least: at 0 all answers would be the same"),
        (["--similarity", str(tmp_path / "none")], "--similarity"),
    ):
        refused = CliRunner().invoke(app, [*asked, *wrong])
        assert refused.exit_code
        assert why in (str(refused.exception) if isinstance(refused.exception, RlifError) else refused.output)
