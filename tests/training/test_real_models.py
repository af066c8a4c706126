"""A real pretrained model on real problems: the shipped recipe, smaller. Needs `make models`."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlif.config import PolicyConfig
from rlif.model.loading import load_policy, unpack
from rlif.model.policy import Policy
from rlif.recipes import load_recipe, shipped_recipes
from rlif.runs.history import read_metrics
from rlif.training.loop import train

REPOSITORY = Path(__file__).parents[2]
# The data set itself where it lies beside the checkout, else a few problems of the same schema.
GSM8K = next(
    path
    for path in (
        REPOSITORY.parent / "shared" / "data" / "gsm8k_train.jsonl",
        REPOSITORY / "tests" / "fixtures" / "gsm8k_like.jsonl",
    )
    if path.is_file()
)


@pytest.mark.timeout(900)
def test_smollm2_trains_on_gsm8k_and_final_answers(smollm2_path: Path, tmp_path: Path) -> None:
    smaller = ["steps=2", "rollout.prompts=2", "rollout.group_size=4", "rollout.max_new_tokens=32"]
    smaller += ["checkpoint.every=0"]  # two of two gigabytes each; what stands in one is tested with small models
    recipe = load_recipe(shipped_recipes()["smollm2-gsm8k"], [f"task.path={GSM8K}", *smaller])
    final = train(recipe, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert 0.0 < line["signal/entropy"] < 10.8  # ln 49,152
        assert line["grad_norm"] > 0.0
        assert line["mismatch/mean"] < 0.05  # nats; bf16 sampler against bf16 trainer
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the policy is still its reference
    model = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(final)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_unpacked_weights_are_those_of_the_file(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / smollm2_path.name).symlink_to(smollm2_path)
    monkeypatch.setenv("RLIF_CACHE", str(tmp_path))
    loaded, save = [], Policy.save
    monkeypatch.setattr(Policy, "save", lambda policy, *args: (loaded.append(policy), save(policy, *args)))
    unpacked = unpack("smollm2-135m-instruct")
    (from_file,) = loaded  # half a minute to load: once is enough
    assert from_file.source == "smollm2-135m-instruct"
    assert unpack("smollm2-135m-instruct") == unpacked  # the second time there is nothing to do
    assert sorted(path.name for path in folder.iterdir()) == sorted([smollm2_path.name, unpacked.name])
    from_folder = load_policy(PolicyConfig(model="smollm2-135m-instruct"), dtype=torch.float32)
    for (name, a), (_, b) in zip(from_file.model.named_parameters(), from_folder.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert from_folder.eos_ids == from_file.eos_ids
    assert from_folder.chat_template
    assert "quantiz" not in capfd.readouterr().err  # no progress bar of transformers' own
