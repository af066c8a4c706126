"""What W&B, trackio and TensorBoard are told: names, recipe, metrics, completions, the card. Stand-ins have the few
functions of the packages that are called, with the signatures of wandb 0.31 and trackio 0.43."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pages import judged, prompts, rollouts
from rlif.recipes import parse_recipe
from rlif.runs.trackers import COLUMNS, open_sinks

BASE = {"steps": 1, "policy": {"model": "toy"}, "task": {"name": "arithmetic"}, "reward": "length"}
VARIABLES = ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "TRACKIO_PROJECT", "TRACKIO_NAME")


class Client:
    """A stand-in for either package; ``calls`` has what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.id = "x1"

    def init(
        self,
        *,
        project: str,
        name: str,
        config: dict[str, Any],
        group: str | None = None,
        dir: str | None = None,
        resume: str | None = None,
    ) -> "Client":
        self.calls.append(("init", {"project": project, "name": name, "group": group, "config": config}))
        return self

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.calls.append((f"log {step}", metrics))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    def log_artifact(self, artifact: "Artifact") -> None:
        self.calls.append(("artifact", (artifact.name, artifact.type, artifact.files)))

    @staticmethod
    def Table(*, columns: list[str], data: list[list[Any]]) -> SimpleNamespace:  # noqa: N802 (theirs)
        return SimpleNamespace(columns=columns, data=data)

    @staticmethod
    def Markdown(text: str) -> str:  # noqa: N802 (theirs)
        return f"markdown {text}"

    def Artifact(self, name: str, type: str) -> "Artifact":  # noqa: N802 (theirs)
        return Artifact(name, type)


class Artifact:
    def __init__(self, name: str, type: str) -> None:
        self.name, self.type, self.files = name, type, {}  # type: ignore[var-annotated]

    @contextmanager
    def new_file(self, name: str) -> Iterator[io.StringIO]:
        file = io.StringIO()
        yield file
        self.files[name] = file.getvalue()


@pytest.fixture(params=["wandb", "trackio"])
def tracked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Client]:
    client = Client()
    monkeypatch.setitem(sys.modules, request.param, client)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return request.param, client


def begun(sink: str, out: Path, client: Client, **log: str) -> dict[str, Any]:
    recipe = parse_recipe({**BASE, "log": {"sinks": [sink], **log}})
    open_sinks([sink], out, recipe).close()
    (kind, told), _ = client.calls[-2:]
    assert kind == "init"
    assert told["config"] == recipe.model_dump(mode="json")
    return dict(told)


def test_project_and_name_are_the_recipes_else_the_variables_else_the_folders(
    tracked: tuple[str, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, client = tracked
    out = tmp_path / "my-run"
    plain = begun(name, out, client)
    assert (plain["project"], plain["name"]) == ("rlif", "my-run")
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "theirs")
    monkeypatch.setenv(f"{name.upper()}_NAME", "named")
    by_variable = begun(name, out, client)
    assert (by_variable["project"], by_variable["name"]) == ("theirs", "named")
    by_recipe = begun(name, out, client, project="ours", name="first")
    assert (by_recipe["project"], by_recipe["name"]) == ("ours", "first")
    assert by_recipe["group"] == ("first" if name == "wandb" else None)


def test_completions_of_an_evaluation_and_the_card_at_the_end(tracked: tuple[str, Client], tmp_path: Path) -> None:
    name, client = tracked
    texts = ["7", "6", "so 7", "no"]
    answers = {"sampled": (rollouts(prompts(["3 + 4?", "1 + 1?"]), texts, group_size=2), judged(texts))}
    with open_sinks([name], tmp_path, parse_recipe(BASE)) as sinks:
        sinks.completions(4, answers, 1)
        sinks.completions(5, answers, 0)  # the recipe keeps none
        sinks.card(9, "# Card")
    (kind, told), (where, card), _ = client.calls[1:]
    table = told["eval/completions"]
    assert (kind, tuple(table.columns)) == ("log 4", COLUMNS)
    assert table.data == [
        ["sampled", "3 + 4?", "7", "7", True, True],
        ["sampled", "3 + 4?", "6", "7", False, True],
    ]
    if name == "wandb":
        assert (where, card) == ("artifact", ("card-x1", "model-card", {"README.md": "# Card"}))
    else:
        assert (where, card) == ("log 9", {"card": "markdown # Card"})


def test_the_key_that_trackio_keeps_for_itself_has_another_name_there(
    tracked: tuple[str, Client], tmp_path: Path
) -> None:
    name, client = tracked
    with open_sinks([name], tmp_path, parse_recipe(BASE)) as sinks:
        sinks.write(1, {"time": 2.0, "time/eval": 1.0})
    assert client.calls[1] == ("log 1", {"time" if name == "wandb" else "time/total": 2.0, "time/eval": 1.0})


def test_a_mirror_that_fails_at_a_table_is_switched_off(
    tracked: tuple[str, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, client = tracked

    def fails(**_: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(client, "Table", fails)
    answers = {"greedy": (rollouts(prompts(["3 + 4?"]), ["7"]), judged(["7"]))}
    with open_sinks([name], tmp_path, parse_recipe(BASE)) as sinks:
        with pytest.warns(RuntimeWarning, match=f"{name} failed at step 4 and is switched off"):
            sinks.completions(4, answers, 1)
        sinks.card(9, "# Card")
    assert [kind for kind, _ in client.calls] == ["init"]


@pytest.mark.filterwarnings("default")  # third-party imports
def test_tensorboard_has_recipe_completions_and_card(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    answers = {"greedy": (rollouts(prompts(["3 + 4?"]), ["``` 7"]), judged(["7"]))}
    with open_sinks(["tensorboard"], tmp_path, parse_recipe(BASE)) as sinks:
        sinks.completions(4, answers, 1)
        sinks.card(9, "# Card")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    said = {tag: events.Tensors(tag)[0] for tag in events.Tags()["tensors"]}
    texts = {tag.partition("/text_summary")[0]: one.tensor_proto.string_val[0].decode() for tag, one in said.items()}
    assert texts["eval/completions"] == "**greedy, right: True**\n\n````\n3 + 4?``` 7\n````"
    assert texts["card"] == "# Card"
    assert "name: length" in texts["recipe"]
