"""`rlif estimate`: what it prints, what it advises, and what it refuses."""

import json
from pathlib import Path

import pytest

from hostile import run

PAPER = "paper-qwen3-1.7b-base"


def lines(*arguments: str) -> dict[str, str]:
    """What is printed, by the first word of each line."""
    ended = run(["estimate", *arguments])
    assert (ended.code, ended.err) == (0, "")
    return {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}


def test_hours_and_price_follow_from_the_seconds_of_a_step() -> None:
    said = lines(PAPER, "--count", "8", "--price", "2.5", "--tokens", "1024")
    step, run_ = said["a"].split(), said["80"]
    seconds = float(step[2])
    hours = float(run_.split(", ")[1].split()[0])
    assert hours == pytest.approx(seconds * 80 * 8 / 3600, rel=0.05)  # seconds are printed in two digits
    assert float(run_.split(", ")[2].split()[0]) == pytest.approx(hours * 2.5, rel=0.01)
    assert "nothing measured" in said["8"]
    assert "1.72 B parameters, all weights, 16 bits" in said["Qwen/Qwen3-1.7B-Base:"]


def test_what_does_not_fit_has_no_times_and_the_ways_out_that_are_left() -> None:
    said = lines(PAPER, "policy.model=Qwen/Qwen3-8B-Base", "--count", "8")
    assert "a" not in said
    assert "policy.lora={}" in said["it"]
    assert "grpo.kl_coef=0 probe.start=false" in said["it"]
    assert "gradient_checkpointing" not in said["it"]  # the recipe has it
    said = lines(PAPER, "policy.model=Qwen/Qwen3-32B", "policy.lora={}")
    assert "policy.lora" not in said["it"]
    assert "FSDP" in said["it"]


def test_more_rows_than_fit_are_told_of() -> None:
    small = ("policy.model=Qwen/Qwen3-4B-Base", "policy.lora={}", "--device", "rtx4090")
    said = lines(PAPER, *small)
    rows = int(said["set"].split("max_rows=")[1].split(":")[0])
    assert f"({rows} rows)" in said["memory"]
    assert "set" not in lines(PAPER, *small, f"rollout.max_rows={rows}")


def test_vllm_has_its_part_of_the_card_and_no_seconds_of_its_own() -> None:
    asked = (PAPER, "policy.lora={}", "rollout.engine=vllm")
    said = lines(*asked)
    assert "takes 32 GB, weights and cache (rollout.vllm.memory=0.4), and keeps it in the update" in said["vLLM"]
    assert "times are those of our engine: vLLM's have not been measured" in said["vLLM"]
    assert "set" not in said  # it knows itself how many rows have room
    assert said["a"] != lines(*asked[:2])["a"]
    assert "sleeps in the update" in lines(*asked, "rollout.vllm.sleep=true")["vLLM"]
    for share, advice in ((0.02, "a larger"), (0.9, "a smaller")):
        said = lines(*asked, f"rollout.vllm.memory={share}")
        assert f" {advice} rollout.vllm.memory; rollout.engine=native" in said["it"]
        assert "more devices" not in said["it"]


def test_a_model_by_name_by_folder_and_an_adapter_of_it(tmp_path: Path) -> None:
    def memory(model: str) -> str:
        return lines("tiny", f"policy.model={model}", "--device", "cpu-avx2")["memory"]

    shape = {"hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16, "intermediate_size": 4096}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({**shape, "vocab_size": 5000}))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "m")}))
    folder = memory(str(tmp_path / "m"))
    assert folder == memory(str(tmp_path / "a")) != memory("tiny-base")
    merged = f"{{merge: {{base: {tmp_path / 'm'}, instruct: tiny-instruct, ratio: 0.5}}}}"
    assert memory(merged) == folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--device", "h10"], "--device h10: none known; did you mean h100?"),
        (["tiny", "--count", "3"], "--count 3: rollout.prompts, 16, must be a multiple of it"),
        (["tiny", "--tokens", "97"], "--tokens 97: more than rollout.max_new_tokens, 96"),
        (["tiny", "policy.model=no/such"], "policy.model: no config.json of no/such lies here; give a folder"),
        (
            ["tiny", "--device", "cpu-amx", "--count", "2"],
            "--count 2: how cpu-amx reach each other is not known; give 1",
        ),
        (
            ["tiny", "rollout.engine=vllm", "--count", "2"],
            "--count 2: vllm samples in a run of one process; give 1, or rollout.engine=native",
        ),
        (["none"], "none: no such recipe"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str) -> None:
    ended = run(["estimate", *arguments])
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1
