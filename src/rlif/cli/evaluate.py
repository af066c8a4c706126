"""What ``rlif eval`` and ``rlif compare`` do once their options are read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlif.cli.eval_progress import eval_progress
from rlif.config import NATIVE, PolicyConfig, RolloutConfig
from rlif.errors import Argument, RlifError, named
from rlif.evals.backends.base import Backend
from rlif.evals.backends.engine import EngineBackend
from rlif.evals.backends.openai import ServedBackend
from rlif.evals.backends.openai_client import Client, Server
from rlif.evals.compare import as_json, compare, model_folders
from rlif.evals.export_logs import EXPORTS
from rlif.evals.figures import write_figures
from rlif.evals.runner import Candidate, evaluate
from rlif.evals.settings import Settings, as_trained
from rlif.evals.store import BASELINES, MODEL, RESULTS, read_json
from rlif.evals.tables import print_comparisons, print_results
from rlif.model.loading import check_source
from rlif.utils.atomic_io import write_whole, writing
from rlif.utils.terminal import Console, note, say

_SAME = (
    *("tasks", "data", "sample_seed", "template", "format", "shots", "shots_from", "max_new_tokens", "max_mismatch"),
    *("dtype", "device", "engine", "chat_template", "baselines", "out"),
)
OPTIONS: Mapping[str, str] = {
    **{name: f"--{name.replace('_', '-')}" for name in _SAME},
    **{"question_column": "--question", "answer_column": "--answer", "config": "--config", "split": "--split"},
    "eval_problems": "--limit",
    "model": "MODEL",
}
"""What ``rlif eval`` calls the arguments that an `RlifError` of the library names: for `rlif.errors.named`."""


@named(OPTIONS)
def run_eval(
    models: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    dtype: str,
    device: str,
    rollout: RolloutConfig = NATIVE,
    quiet: bool = False,
) -> None:
    """Evaluate models in this process, one after the other, and print the tables; ``quiet``: these alone. Data of your
    own are asked as a run among the models was trained, or as a named one usually is (`as_trained`).

    Raises `RlifError` for what the user can fix; a model that is not there is found before the first one is asked.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "rollout": rollout}
    settings, said = as_trained(settings, models)
    candidates = [local(name, settings, **options) for name in models]
    if said and not quiet:
        Console().write_line(said)
    judge(candidates if quiet else [_announced(one) for one in candidates], settings, out, quiet=quiet)


def local(model: str, settings: Settings, *, dtype: str, device: str, rollout: RolloutConfig = NATIVE) -> Candidate:
    """A model to be loaded into this process when its turn comes. ``rollout``: see `EngineBackend`."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise RlifError(Argument("dtype"), f": {dtype!r}; choose auto, float32 or bfloat16")
    options: dict[str, Any] = {"dtype": dtype, "device": device, "chat_template": settings.chat_template}
    config = PolicyConfig(model=model, **options)
    check_source(config)
    return Candidate(model, lambda: EngineBackend(model, config, rollout=rollout))


@named(OPTIONS)
def run_served(servers: Sequence[Server], settings: Settings, out: Path, *, quiet: bool = False) -> None:
    """Evaluate models behind a server, and print the tables. Raises `RlifError` for what the user can fix."""
    judge([served(server, settings) for server in servers], settings, out, quiet=quiet)


def served(server: Server, settings: Settings) -> Candidate:
    """A model to be asked through its server when its turn comes."""
    client = Client(server)  # a wrong address or a missing key is found now

    def connect() -> ServedBackend:
        backend = ServedBackend(client, settings.chat_template)
        for remark in backend.notes:
            note(f"{server.model}: {remark}")
        return backend

    return Candidate(server.model, connect)


@named(OPTIONS)
def judge(candidates: Sequence[Candidate], settings: Settings, out: Path, *, quiet: bool = False) -> None:
    """Evaluate whatever answers, with a bar unless ``quiet``, and print the tables. Ctrl-C says how to go on."""
    console = Console()
    try:
        with eval_progress(console, quiet=quiet) as callback:
            results = evaluate(candidates, settings, out, callback=callback)
    except KeyboardInterrupt:
        console.write_line("interrupted: what was finished is kept; the same command goes on from there")
        raise
    print_results(console, results)
    figures = write_figures(results, out)
    console.write_line()
    console.write_line(f"numbers: {out / RESULTS}")
    console.write_line(f"answers: {out}/MODEL/TASK/part-*.parquet")
    if BASELINES in results["asked"]:
        console.write_line(f"of the baselines: {out}/MODEL/TASK/_*/part-*.parquet")
    console.write_line(f"along the answers: {', '.join(map(str, figures))}")


def _announced(candidate: Candidate) -> Candidate:
    """The candidate, which says so before it loads: that may take minutes."""

    def open_loudly() -> Backend:
        Console().write_line(f"{candidate.name}: loading")
        return candidate.open()

    return Candidate(candidate.name, open_loudly)


def check_exports(formats: Sequence[str]) -> None:
    """Raise `RlifError` for a format that there is not, before anything is asked."""
    for name in formats:
        if name not in EXPORTS:
            raise RlifError(f"--export {name}: choose one of {', '.join(EXPORTS)}")


def export_logs(out: Path, formats: Sequence[str]) -> None:
    """Write a finished evaluation in the formats of others, and tell where."""
    for name in dict.fromkeys(formats):
        for path in EXPORTS[name](out):
            say(f"exported: {path}")


@named(OPTIONS)
def run_compare(folders: Sequence[Path], out: Path | None) -> None:
    """Compare the two models that the folders hold, print the tables, and write them to ``out`` if given."""
    a, b = model_folders(folders)
    comparisons = compare(a, b)
    names = [f"{read_json(path / MODEL)['name']} ({path})" for path in (a, b)]
    print_comparisons(Console(), names, comparisons)
    if out is not None:
        content = json.dumps({"a": names[0], "b": names[1], "tasks": as_json(comparisons)}, indent=1)
        with writing(out, "choose another --out"):
            write_whole(out, content.encode())
