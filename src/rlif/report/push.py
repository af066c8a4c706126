"""What leaves with a model that is published: its files, its card, the page of its run, the scores of its evaluation.

Everything is gathered first (`parcel`), so that it can be listed before anything leaves; `upload` is the one function
that talks to the hub. Names of local folders stay at home, as in the card.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

import rlif
from rlif.errors import Argument, RlifError, brief, printable
from rlif.report.card import CARD, card_of, public_name, public_recipe
from rlif.report.eval_record import RESULTS, EvalRecord, read_evaluation
from rlif.report.page import Subjects, page, plotly
from rlif.report.run_record import RunRecord, is_run, read_run
from rlif.runs.layout import FINAL
from rlif.tasks.benchmarks import BENCHMARKS
from rlif.utils.paths import expanded

EVAL_RESULTS = ".eval_results"
"""The folder of a model's repository from which the hub reads scores.
Source: https://huggingface.co/docs/hub/eval-results."""

REPORT = "report.html"
_CONFIG = "config.json"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Parcel:
    """Names in the repository, each with a file here or its bytes; ``notes`` say what stays here, and why."""

    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def parcel(folder: Path, evaluation: Path | None = None, *, report: bool = True) -> Parcel:
    """What is published of a finished run, or of a folder that holds a model.

    A run's model is the one in its ``final/``, which leaves with its card and, unless ``report`` is false, the page of
    the run. ``evaluation``: a folder of `rlif eval` that judged this model, for `EVAL_RESULTS`. Raises `RlifError` for
    a folder without a model, a model without weights, or an evaluation of others.
    """
    run, model = _find(folder)
    files: dict[str, Path | bytes] = {}
    notes = []
    for path in sorted(model.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            files[path.name] = path
        else:
            notes.append(f"{printable(str(path))} stays here")
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise RlifError(f"{model}: holds no weights (*.safetensors); give a run that is finished, or a model's folder")
    if run is not None and CARD not in files:
        files[CARD] = card_of(run).encode()
    if CARD not in files:
        notes.append(f"there is no {CARD}, so the model leaves without a card")
    if run is not None and report:
        files[REPORT] = _public_page(run).encode()
    if evaluation is not None:
        scored, unscored = eval_results(read_evaluation(evaluation), model)
        files |= scored
        notes += unscored
    return Parcel(files, tuple(notes))


def eval_results(record: EvalRecord, model: Path) -> tuple[dict[str, bytes], list[str]]:
    """The scores of ``model`` as files of `EVAL_RESULTS`, one a benchmark that has a table on the hub, and of the other
    tasks why they are none. Raises `RlifError` if the evaluation has no result of this model."""
    own = [one for one in record.results if expanded(str(one["model"])).resolve() == model.resolve()]
    if not own:
        known = ", ".join(dict.fromkeys(printable(str(one["model"])) for one in record.results)) or "none yet"
        raise RlifError(
            Argument("evaluation"),
            f": {record.folder} has no result of {model} (it judged {brief(known)}); judge it: ",
            f"rlif eval {model} --tasks gsm8k --out DIR",
        )
    date = datetime.fromtimestamp((record.folder / RESULTS).stat().st_mtime, timezone.utc).date().isoformat()
    files, notes = {}, []
    for one in own:
        task, asked = str(one["task"]), record.asked["tasks"][one["task"]]
        benchmark = BENCHMARKS.get(task)
        if benchmark is None or not benchmark.leaderboard:
            notes.append(f"{printable(task)}: the hub has no table of it")
        elif asked["problems"] != benchmark.size:
            notes.append(f"{task}: {asked['problems']} of its {benchmark.size} problems are no score of the benchmark")
        else:
            entry = {
                "dataset": {"id": benchmark.hub, "task_id": benchmark.leaderboard},
                "value": round(100.0 * one["metrics"]["right"], 2),
                "date": date,
                "notes": _how(one["metrics"], asked),
            }
            files[f"{EVAL_RESULTS}/{task}.yaml"] = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True).encode()
    return files, notes


def _how(metrics: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """How a score was found, in a line: without it, it cannot be compared."""
    error = metrics.get("right_stderr")
    shots = f"{asked['shots']}-shot" if asked["shots"] else "zero-shot"
    drawn = f"mean of {asked['samples']} samples" if asked["samples"] > 1 else "one sample"
    known = f", ± {100.0 * error:.2f}" if error else ""
    return (
        f"rlif {rlif.__version__}, right in any form{known}; {shots}, template {asked['template']}, {drawn} at "
        f"temperature {asked['temperature']:g}, {asked['max_new_tokens']} tokens at most"
    )


def check_repo(repo: str) -> None:
    """Raise `RlifError` unless this is OWNER/NAME as the hub has it."""
    name = repo.rpartition("/")[2]
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or name.endswith((".git", "-", ".")):
        raise RlifError(Argument("repo"), f": {brief(repo, 80)!r} is no OWNER/NAME of letters, digits, -, _ and .")


def upload(sent: Parcel, repo: str, *, private: bool) -> str:
    """Publish a parcel as one commit to a model repository of the hub, made if it is missing; returns its address.

    Raises `RlifError` if there is no token, the hub cannot be reached or refuses, or a repository that should be
    ``private`` is there already and is not.
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if constants.is_offline_mode():
        raise RlifError("the hub is switched off (HF_HUB_OFFLINE); unset it and push again")
    if not huggingface_hub.get_token():
        raise RlifError("no token of the hub is at hand; log in with hf auth login, or set HF_TOKEN")
    api = huggingface_hub.HfApi(library_name="rlif", library_version=rlif.__version__)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise RlifError(
                Argument("repo"), f": {repo} is there and is public; make it private first, or choose another"
            )
        operations = [CommitOperationAdd(name, _content(content)) for name, content in sent.files.items()]
        return str(api.create_commit(repo, operations, commit_message="Model, card and report of rlif").repo_url)
    except (RlifError, OfflineModeIsEnabled):
        raise
    except HfHubHTTPError as error:
        raise RlifError(Argument("repo"), f": the hub refuses {repo} ({_said(error)}); ", _remedy(error)) from error
    except (OSError, ValueError) as error:
        raise RlifError(f"the hub does not take it ({brief(str(error))}); mend that and push again") from error
    except Exception as error:  # whatever the HTTP client raises when there is no network
        raise RlifError(
            f"the hub cannot be reached ({brief(str(error)) or type(error).__name__}); try again"
        ) from error


def _said(error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = brief(str(getattr(error, "server_message", None) or error), 200)
    return f"{status}: {message}" if status else message


def _remedy(error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "log in with a token that may write to it: hf auth login"
    return "choose another name" if status == 400 else "try again; what was sent before need not be sent again"


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _find(folder: Path) -> tuple[Path | None, Path]:
    """The run that a model is of, if it is the final one of any, and the model's folder."""
    if not folder.is_dir():
        raise RlifError(f"{folder}: no such folder; give a finished run, or the folder of a model")
    if is_run(folder):
        if not (folder / FINAL / _CONFIG).is_file():
            raise RlifError(
                f"{folder}: the run is not finished ({FINAL}/ is missing); push a checkpoint's folder, or resume"
            )
        return folder, folder / FINAL
    if not (folder / _CONFIG).is_file():
        raise RlifError(
            f"{folder}: holds no model ({_CONFIG} is missing); give a finished run, or the folder of a model"
        )
    own = folder.resolve()
    return (own.parent if own.name == FINAL and is_run(own.parent) else None), folder


def _public_page(run: Path) -> str:
    """The page of a run by its own name: no folder above it, no path of its recipe or its model stands there."""
    with _working_in(run.resolve().parent):
        return page(Subjects(runs=(_public(read_run(Path(run.resolve().name))),)), plotly())


def _public(run: RunRecord) -> RunRecord:
    info = {**run.info, "model": public_name(str(run.info["model"]))} if "model" in run.info else run.info
    return replace(run, given=public_name(run.name), recipe_text=public_recipe(run.recipe_text), info=info)


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
