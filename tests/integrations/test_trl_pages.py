"""docs/trl.md and the example: what they show runs as it is written."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from trl import GRPOConfig

from toys import toy_policy

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL, accelerate and transformers warn about themselves

ROOT = Path(__file__).parents[2]
PAGE, EXAMPLE = ROOT / "docs" / "trl.md", ROOT / "examples" / "trl_internal_feedback.py"


def test_the_five_lines_run_as_written(tmp_path: Path) -> None:
    """With a model, a tokenizer, a dataset and a GRPOConfig, as a script for TRL has them."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    policy = toy_policy()
    small = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8}
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    given = {
        "model": policy.model,
        "tokenizer": policy.tokenizer,
        "config": GRPOConfig(output_dir=str(tmp_path), **small, **quiet),
        "dataset": Dataset.from_dict({"prompt": ["12+34=?", "a"]}),
    }
    exec(compile(block, str(PAGE), "exec"), given)
    logged = given["trainer"].state.log_history[0]
    assert logged["rewards/self_certainty/mean"] > 0.0
    assert logged["signal/entropy"] > 0.0


def test_the_example_trains_and_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps; a probe of four prompts looks before and after, and is too small to choose a step."""
    assert len(EXAMPLE.read_text("utf-8").splitlines()) < 60
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2", "--probe", "4", "--out", str(out)])
    found = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "ended after step 2; best step None; stopped by None" in capsys.readouterr().out
    assert [record.step for record in found["probe"].records] == [0, 2]
    assert found["probe"].records[0].metrics["probe/answered"] > 0.5
    first, second = (
        line["rewards/self_certainty/mean"] for line in found["trainer"].state.log_history if "loss" in line
    )
    assert (first, second) == (pytest.approx(second, rel=0.5), pytest.approx(first, rel=0.5))
    assert (out / "probe" / "looks.json").is_file()
