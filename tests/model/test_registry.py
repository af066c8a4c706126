"""Models by name: what resolves, what is fetched, and what is never kept."""

import hashlib
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rlif import tiny
from rlif.errors import RlifError
from rlif.model import registry
from rlif.model.registry import Member, NamedModel

PARTS = {"fake-part1==1.0": {"fake/part0": b"GGUF first, "}, "fake-part2==1.0": {"fake/part1": b"then second"}}
NOTICE = {"fake==1.0": {"fake/LICENCE.txt": b"be kind"}}
JOINED = b"GGUF first, then second"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NamedModel:
    """A model split over two packages, with its licence in a third, and an empty cache."""
    model = NamedModel(
        name="fake",
        description="a fake",
        kind="base",
        parameters="1",
        licence="Kindness",
        members=(
            Member("fake==1.0", "fake/LICENCE.txt", "LICENCE.txt"),
            Member("fake-part1==1.0", "fake/part0", "fake.gguf"),
            Member("fake-part2==1.0", "fake/part1", "fake.gguf"),
        ),
        file="fake.gguf",
        sha256=hashlib.sha256(JOINED).hexdigest(),
    )
    monkeypatch.setenv("RLIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.MODELS, "fake", model)
    return model


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, dict[str, bytes]]], list[str]]:
    """Put an index of fake wheels in the place of pip; returns the list that collects what is asked of it."""

    def start(index: dict[str, dict[str, bytes]]) -> list[str]:
        asked: list[str] = []

        def download(package: str, into: Path) -> Path:
            asked.append(package)
            wheel = into / "fake.whl"
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in index[package].items():
                    archive.writestr(name, content)
            return wheel

        monkeypatch.setattr(registry, "download", download)
        return asked

    return start


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_is_not_a_known_name_passes_through() -> None:
    for source in ("Qwen/Qwen3-1.7B-Base", "some/folder", "weights.gguf", "Tiny-Base"):
        assert registry.resolve(source) == source


def test_shipped_models_resolve_to_their_folder() -> None:
    assert registry.resolve("tiny-base") == str(tiny.path("tiny-base"))
    assert {model.name for model in registry.MODELS.values() if model.shipped} == set(tiny.TINY_MODELS)


def test_absent_model_says_how_to_get_it(fake: NamedModel) -> None:
    with pytest.raises(RlifError, match=r"^fake: not in the cache \(.*fake\.gguf\); run `rlif models --fetch`"):
        registry.resolve("fake")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RlifError, match=r"^nonesuch: no model has this name; there are tiny-base, .*gemma3-270m"):
        registry.fetch("nonesuch", say=print)


def test_fetch_joins_the_parts_and_keeps_the_licence_beside_them(fake: NamedModel, serve, tmp_path: Path) -> None:
    asked = serve(PARTS | NOTICE)
    said: list[str] = []

    path = registry.fetch("fake", say=said.append)

    assert asked == ["fake==1.0", "fake-part1==1.0", "fake-part2==1.0"]
    assert path == tmp_path / "cache/models/fake/fake.gguf"
    assert path.read_bytes() == JOINED
    assert files_below(tmp_path / "cache/models/fake") == {"LICENCE.txt", "fake.gguf"}  # no staging folder is left
    assert registry.resolve("fake") == str(path)
    assert "licence: Kindness" in said[0]


def test_a_second_fetch_does_nothing(fake: NamedModel, serve) -> None:
    asked = serve(PARTS | NOTICE)
    registry.fetch("fake", say=print)
    asked.clear()
    said: list[str] = []

    registry.fetch("fake", say=said.append)

    assert asked == []
    assert "already there and right" in said[-1]


def test_a_damaged_file_in_the_cache_is_fetched_again(fake: NamedModel, serve) -> None:
    serve(PARTS | NOTICE)
    path = registry.fetch("fake", say=print)
    path.write_bytes(JOINED[:-1] + b"X")

    assert registry.fetch("fake", say=print).read_bytes() == JOINED


def test_wrong_sha256_keeps_nothing(fake: NamedModel, serve, tmp_path: Path) -> None:
    serve(PARTS | NOTICE | {"fake-part2==1.0": {"fake/part1": b"then a stranger"}})

    with pytest.raises(RlifError, match=f"sha256 of fake.gguf is [0-9a-f]{{64}}, expected {fake.sha256}; nothing was"):
        registry.fetch("fake", say=print)

    assert files_below(tmp_path / "cache/models/fake") == set()


def test_package_without_the_file(fake: NamedModel, serve, tmp_path: Path) -> None:
    serve(PARTS | NOTICE | {"fake-part1==1.0": {"fake/other": b""}})

    with pytest.raises(RlifError, match=r"^fake-part1==1\.0: fake\.whl is damaged or lacks fake/part0"):
        registry.fetch("fake", say=print)

    assert files_below(tmp_path / "cache/models/fake") == set()


def test_cache_folder_that_is_a_file(fake: NamedModel, serve, tmp_path: Path) -> None:
    serve(PARTS | NOTICE)
    (tmp_path / "cache").write_text("in the way")

    with pytest.raises(RlifError, match=r"cannot keep a model here \(.*\); free some space or set RLIF_CACHE"):
        registry.fetch("fake", say=print)


def test_failed_download_quotes_pip_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho WARNING: first >&2\necho ERROR: No matching distribution found >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))

    with pytest.raises(RlifError) as raised:
        registry.download("fake==1.0", tmp_path)

    assert str(raised.value) == (
        "fake==1.0: pip could not download it (ERROR: No matching distribution found); "
        "check the connection to the package index"
    )


def test_describe_says_where_each_model_is(fake: NamedModel, serve) -> None:
    def where() -> dict[str, str]:
        return {row.name: row.where for row in registry.describe()}

    assert where()["fake"] == where()["gemma3-270m"] == "not fetched"  # the cache of the fixture is empty
    serve(PARTS | NOTICE)
    path = registry.fetch("fake", say=print)
    assert where()["fake"] == str(path.parent)
    assert list(where()) == list(registry.MODELS)


def test_below_the_home_folder_paths_are_short(fake: NamedModel, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: registry.cache_dir().parent)
    serve(PARTS | NOTICE)
    registry.fetch("fake", say=print)
    assert {row.name: row.where for row in registry.describe()}["fake"] == "~/cache/models/fake"


def test_an_unpacked_model_takes_the_place_of_its_file(fake: NamedModel, serve) -> None:
    serve(PARTS | NOTICE)
    file = registry.fetch("fake", say=print)
    assert registry.resolve("fake") == str(file)
    registry.unpacked_path(fake).mkdir()
    assert registry.resolve("fake") == str(registry.unpacked_path(fake))
    assert fake.sha256[:8] in registry.unpacked_path(fake).name  # of another file there will be another folder


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLIF_CACHE", "~/elsewhere")
    assert registry.cache_dir() == Path(os.path.expanduser("~/elsewhere"))
    monkeypatch.delenv("RLIF_CACHE")
    assert registry.cache_dir() == Path.home() / ".cache/rlif"


@pytest.mark.parametrize(
    ("fixture", "name"), [("smollm2_path", "smollm2-135m-instruct"), ("gemma3_path", "gemma3-270m")]
)
def test_fetched_models_are_what_the_table_says(fixture: str, name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == registry.MODELS[name].sha256
    assert {member.into for member in registry.MODELS[name].members} <= files_below(path.parent)
