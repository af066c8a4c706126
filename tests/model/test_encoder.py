"""Embeddings against a padded batch through the same model, and every folder that is no encoder of texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5Model

from encoders import PLACES, save_toy_encoder
from rlif.errors import RlifError
from rlif.model.encoder import load_encoder
from toys import toy_policy, toy_tokenizer

CPU = torch.device("cpu")
TEXTS = ["paris", "it is paris, of course.", "no", "no one knows"]


def padded(model: Any, texts: list[str]) -> np.ndarray:
    """Mean pooling as sentence-transformers writes it: one padded batch, a masked sum over the tokens."""
    batch = toy_tokenizer()(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state.double()
    sums = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return (sums / sums.norm(dim=1, keepdim=True)).numpy()


def test_an_embedding_is_the_normalised_mean_over_the_tokens(tmp_path: Path) -> None:
    model = save_toy_encoder(tmp_path)
    encoder = load_encoder(str(tmp_path), CPU)
    found = np.stack([encoder.embed(text) for text in TEXTS])
    np.testing.assert_allclose(found, padded(model, TEXTS), atol=1e-6)
    assert np.abs(found @ found.T - np.eye(4)).max() < 0.99  # they are not all one


def test_an_embedding_does_not_depend_on_what_came_before(tmp_path: Path) -> None:
    save_toy_encoder(tmp_path)
    one, other = load_encoder(str(tmp_path), CPU), load_encoder(str(tmp_path), CPU)
    forward = [one.embed(text) for text in TEXTS]
    backward = [other.embed(text) for text in reversed(TEXTS)]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_a_text_is_read_as_far_as_the_model_knows_positions(tmp_path: Path) -> None:
    save_toy_encoder(tmp_path)
    encoder = load_encoder(str(tmp_path), CPU)
    assert encoder.longest == PLACES - 2
    whole = "ab" * (PLACES // 2 - 1)
    assert np.array_equal(encoder.embed(whole), encoder.embed(whole + " and much more"))
    assert not np.array_equal(encoder.embed(whole), encoder.embed(whole[:-1]))


def test_a_text_without_tokens_is_near_nothing(tmp_path: Path) -> None:
    save_toy_encoder(tmp_path)
    assert not load_encoder(str(tmp_path), CPU).embed("").any()


def test_a_language_model_may_encode(tmp_path: Path) -> None:
    toy_policy().save(tmp_path)
    assert np.linalg.norm(load_encoder(str(tmp_path), CPU).embed("paris")) == pytest.approx(1.0)


def test_the_digest_is_of_weights_and_tokenizer(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_toy_encoder(tmp_path / name, seed=seed)
    digests = [load_encoder(str(tmp_path / name), CPU).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    rules = tmp_path / "b" / "tokenizer.json"
    rules.write_text(rules.read_text().replace('"a":3', '"a":4').replace('"a": 3', '"a": 4'))
    assert load_encoder(str(tmp_path / "b"), CPU).digest != digests[0]


def without(folder: Path, start: str) -> None:
    """Take weights out of a saved model."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(start)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_pooler_that_was_not_saved_is_not_missed_though_it_is_made_up(tmp_path: Path) -> None:
    save_toy_encoder(tmp_path)
    whole = load_encoder(str(tmp_path), CPU)
    without(tmp_path, "pooler.")
    found = [load_encoder(str(tmp_path), CPU) for _ in range(2)]
    assert found[0].digest == found[1].digest == whole.digest
    assert np.array_equal(found[0].embed("paris"), whole.embed("paris"))


def no_weights(folder: Path) -> None:
    save_toy_encoder(folder)
    without(folder, "encoder.")


def other_pooling(folder: Path) -> None:
    save_toy_encoder(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))


def two_towers(folder: Path) -> None:
    T5Model(T5Config(vocab_size=60, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)


def not_finite(folder: Path) -> None:
    save_toy_encoder(folder)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    save_toy_encoder(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_tokenizer(folder: Path) -> None:
    save_toy_encoder(folder)
    for path in folder.glob("*token*"):
        path.unlink()


def own_code(folder: Path) -> None:
    save_toy_encoder(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is a folder without a config.json; give a model folder$"),
        (no_weights, r"lacks the weights encoder\.layer\.0\..* and \d+ more$"),
        (other_pooling, r"1_Pooling/config\.json asks for another pooling than the mean; give an encoder"),
        (two_towers, r"has no hidden states of a text to pool \(a decoder stands behind them\); give an encoder"),
        (not_finite, r"has no hidden states of a text to pool \(they are not finite\); give an encoder of texts$"),
        (cut_short, r"cannot load .*model\.safetensors"),
        (no_tokenizer, "is a folder without a tokenizer; put its tokenizer.json there$"),
        (own_code, r"cannot load .* contains custom code .*; give one without code of its own$"),
    ],
)
def test_what_is_no_encoder_is_one_line(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path)
    with pytest.raises(RlifError, match=said) as caught:
        load_encoder(str(tmp_path), CPU)
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)


def test_there_is_no_encoder_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match=r"^model: no such folder or file: nowhere/at/all"):
        load_encoder("nowhere/at/all", CPU)
    with pytest.raises(RlifError, match=r"^model: x\.gguf: an encoder is a folder or a hub id, and no \.gguf file$"):
        load_encoder("x.gguf", CPU)
