"""Runs whose probe takes answers in sentences for the same where their embeddings are near."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from encoders import save_toy_encoder
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.recipes import parse_recipe
from rlif.runs.checkpoint import latest_checkpoint, load_checkpoint
from rlif.runs.history import read_metrics
from rlif.training.loop import resume, train
from rlif.training.resolve import resolved
from toys import toy_policy

pytestmark = pytest.mark.filterwarnings("ignore:step [0-9]+:RuntimeWarning")  # guards have their say on random models

PROBE = {"every": 1, "prompts": 4, "samples": 2, "reference_samples": 3}


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_toy_encoder(tmp_path / "encoder")
    return tmp_path / "encoder"


def recipe(model: Path, encoder: Path | None, least: float = 0.6, **changes: object) -> Recipe:
    data: dict[str, object] = {
        "steps": 2,
        "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
        "task": {"name": "arithmetic", "format": "text"},
        "rollout": {"prompts": 2, "group_size": 3, "max_new_tokens": 16, "stop": list("aeiou1357=+,")},
        "eval": {"every": 0, "problems": 3},
        "reward": "self_certainty",
        "grpo": {"lr": 1e-2, "kl_coef": 0.0, "schedule": "constant", "warmup": 0.0},
        "probe": PROBE | ({"similarity": {"model": str(encoder), "least": least}} if encoder else {}),
        "guards": {"stop": False, "restore": False},
        "checkpoint": {"every": 0, "keep_last": 1},
    }
    return parse_recipe({**data, **changes})


def probe_state(run: Path) -> dict[str, object]:
    path = latest_checkpoint(run / "checkpoints")
    assert path is not None
    found: dict[str, object] = load_checkpoint(path).state["probe"]
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def test_similarity_moves_agreement_and_neither_weights_nor_other_numbers(
    toy_model: Path, encoder: Path, tmp_path: Path
) -> None:
    train(recipe(toy_model, encoder), tmp_path / "near")
    train(recipe(toy_model, None), tmp_path / "read")
    one, other = weights(tmp_path / "near"), weights(tmp_path / "read")
    assert all(torch.equal(one[name], other[name]) for name in other)
    near, read = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("near", "read"))
    for key in ("probe/entropy", "probe/cross_entropy", "probe/answered", "loss"):
        assert [line.get(key) for line in near] == [line.get(key) for line in read], key
    assert near[0]["probe/agreement/any_form"] > read[0]["probe/agreement/any_form"]


def test_a_run_that_was_broken_off_goes_on_bit_for_bit(toy_model: Path, encoder: Path, tmp_path: Path) -> None:
    train(recipe(toy_model, encoder), tmp_path / "whole")
    train(recipe(toy_model, encoder), tmp_path / "halves", until=1)
    resume(tmp_path / "halves")
    assert probe_state(tmp_path / "whole") == probe_state(tmp_path / "halves")
    assert [path.name for path in (tmp_path / "whole" / "probe").glob("reference-*")] == [
        path.name for path in (tmp_path / "halves" / "probe").glob("reference-*")
    ]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_reference_that_was_removed_is_made_again(toy_model: Path, encoder: Path, tmp_path: Path) -> None:
    train(recipe(toy_model, encoder), tmp_path / "run", until=1)
    (path,) = (tmp_path / "run" / "probe").glob("reference-*.json")
    before = path.read_bytes()
    path.unlink()
    resume(tmp_path / "run")
    assert path.read_bytes() == before


def test_another_encoder_or_threshold_is_refused_and_a_moved_one_is_not(
    toy_model: Path, encoder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(recipe(toy_model, encoder), run, until=1)
    save_toy_encoder(encoder, seed=1)
    said = r"^probe\.similarity\.model: weights, tokenizer or threshold of .*encoder have changed since the run"
    with pytest.raises(RlifError, match=said):
        resume(run)
    kept = (run / "recipe.yaml").read_text()
    save_toy_encoder(tmp_path / "moved")
    moved = kept.replace(str(encoder), str(tmp_path / "moved"))
    (run / "recipe.yaml").write_text(moved.replace("least: 0.6", "least: 0.7"))
    with pytest.raises(RlifError, match=r"^recipe\.yaml: probe\.similarity\.least was 0\.6, is 0\.7 \(and 1 more\)"):
        resume(run)
    (run / "recipe.yaml").write_text(moved)
    assert resume(run) == run / "final"


def test_a_missing_encoder_ends_the_run_before_its_folder_is_made(toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RlifError, match=r"^probe\.similarity\.model: no such folder or file: .*gone"):
        train(recipe(toy_model, tmp_path / "gone"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    never = recipe(toy_model, tmp_path / "gone", probe={**PROBE, "every": 0, "similarity": {"model": "gone"}})
    assert train(never, tmp_path / "run") == tmp_path / "run" / "final"  # nobody asks for it


@pytest.mark.parametrize("least", [0.0, 1.5, "much"])
def test_a_threshold_is_a_cosine_above_0(toy_model: Path, least: object) -> None:
    with pytest.raises(RlifError, match=r"probe\.similarity\.least: .*\(given"):
        recipe(toy_model, None, probe={"similarity": {"model": "x", "least": least}})


def test_a_run_s_recipe_names_its_encoder_wherever_it_is_resumed(
    toy_model: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(encoder.parent)
    found = resolved(recipe(toy_model, Path("encoder"))).probe.similarity
    assert found is not None
    assert (found.model, found.least) == (str(encoder.resolve()), 0.6)
    on_hub = resolved(recipe(toy_model, Path("someone/encoder"))).probe.similarity
    assert on_hub is not None
    assert on_hub.model == "someone/encoder"
    assert json.loads(resolved(recipe(toy_model, None)).model_dump_json())["probe"]["similarity"] is None
