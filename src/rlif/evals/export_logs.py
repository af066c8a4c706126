"""An evaluation in the formats of others: logs that `inspect view` opens, and what lm-eval's tools read.

Both are written from the folder alone, every answer with its verdict, so they can be made of an evaluation of long ago.
The formats are those of inspect-ai 0.3 (log version 2) and lm-eval 0.4 (``--log_samples``).
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rlif.errors import RlifError
from rlif.evals.store import ASKED, RESULTS, answers_of, read_json, slug
from rlif.utils.atomic_io import make_folder, write_whole, writing

FOLDER = "export"

_STOPS = {"eos": "stop", "stop_string": "stop", "length": "max_tokens"}


def export_inspect(out: Path) -> list[Path]:
    """Write ``out/export/inspect/*.json``, a log a model and task; returns the paths.

    Raises `RlifError` for a folder without a finished evaluation, or that cannot be written.
    """
    results, began = _finished(out), _began(out)
    found = []
    for one in results["results"]:
        task, model = one["task"], slug(one["model"])
        log = _inspect_log(one, results, list(answers_of(out / model / task)), began)
        # inspect reads time, task and what tells logs apart from the name, at its underscores.
        name = "_".join(part.replace("_", "-") for part in (_stamp(began), slug(task), model))
        found.append(_write(out / FOLDER / "inspect" / f"{name}.json", log))
    return found


def _inspect_log(
    result: Mapping[str, Any], results: Mapping[str, Any], rows: list[Mapping[str, Any]], began: str
) -> dict[str, Any]:
    model, task = result["model"], result["task"]
    protocol = results["asked"]["tasks"][task]
    name = model if "/" in model else f"rlif/{model}"  # inspect's models are PROVIDER/NAME
    scores = [
        {
            "name": scorer,
            "scorer": scorer,
            "params": {},
            "metrics": {
                said: {"name": said, "value": value, "params": {}}
                for said, key in (("accuracy", scorer), ("stderr", f"{scorer}_stderr"))
                if (value := _known(result["metrics"][key])) is not None
            },
        }
        for scorer in ("right", "formatted")
    ]
    ids = list(dict.fromkeys(row["problem_id"] for row in rows))
    config = {
        **{key: protocol[key] for key in ("temperature", "top_p")},
        **({"top_k": protocol["top_k"]} if protocol["top_k"] else {}),
        "max_tokens": protocol["max_new_tokens"],
        "stop_seqs": protocol["stop"],
        "seed": results["asked"]["seed"],
    }
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": _id(model, task, began),
            "run_id": _id(began),
            "created": began,
            "task": task,
            "task_id": _id(task),
            "task_version": 0,
            "task_attribs": {},
            "task_args": {},
            "dataset": {"name": task, "location": str(protocol["source"]), "samples": len(ids), "sample_ids": ids},
            "model": name,
            "model_generate_config": config,
            "model_args": {},
            "config": {"epochs": protocol["samples"], "epochs_reducer": ["mean"]},
            "packages": {"rlif": results["rlif"]},
            "metadata": {"protocol": dict(protocol), "facts": dict(result["facts"])},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": config},
        "results": {"total_samples": len(rows), "completed_samples": len(rows), "scores": scores},
        "stats": {
            "started_at": began,
            "completed_at": began,
            "model_usage": {name: _usage(int(result["speed"]["tokens"]))},
        },
        "samples": [_inspect_sample(row, name) for row in rows],
    }


def _inspect_sample(row: Mapping[str, Any], model: str) -> dict[str, Any]:
    signals = {name: row[name] for name in ("logprob", "entropy", "self_certainty")}
    message = {"role": "assistant", "content": row["completion"], "source": "generate"}
    return {
        "id": row["problem_id"],
        "epoch": row["sample"] + 1,
        "input": row["prompt"],
        "target": row["answer"] or "",
        "messages": [{"role": "user", "content": row["prompt"]}, message],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": _STOPS[row["stop_reason"]]}],
            "usage": _usage(row["length"]),
        },
        "scores": {
            "right": {"value": {True: "C", False: "I", None: "N"}[row["right"]], "answer": row["extracted"]},
            "formatted": {"value": "C" if row["formatted"] else "I", "answer": row["extracted"]},
        },
        "metadata": {"question": row["question"], **signals},
        "store": {},
        "events": [],
        "model_usage": {model: _usage(row["length"])},
    }


def _usage(tokens: int) -> dict[str, int]:
    """The prompt's tokens are not kept in an evaluation: they count as none."""
    return {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}


def export_lm_eval(out: Path) -> list[Path]:
    """Write ``out/export/lm-eval/MODEL/results_DATE.json`` and ``samples_TASK_DATE.jsonl``; returns the paths.

    A sample is a problem, its ``resps`` all answers; ``exact_match`` is the share that is right, ``formatted`` that in
    the asked form. Raises `RlifError` as `export_inspect`.
    """
    results, began = _finished(out), _began(out)
    found = []
    for model in results["asked"]["models"]:
        own = [one for one in results["results"] if one["model"] == model]
        folder, date = out / FOLDER / "lm-eval" / slug(model), _date_id(began)
        found.append(_write(folder / f"results_{date}.json", _lm_eval_results(own, results, began)))
        for one in own:
            problems: dict[str, list[Mapping[str, Any]]] = {}
            for row in answers_of(out / slug(model) / one["task"]):
                problems.setdefault(row["problem_id"], []).append(row)
            protocol = results["asked"]["tasks"][one["task"]]
            lines = [_lm_eval_sample(n, rows, protocol) for n, rows in enumerate(problems.values())]
            path = folder / f"samples_{slug(one['task'])}_{date}.jsonl"
            found.append(_write_lines(path, lines))
    return found


def _lm_eval_results(own: list[Mapping[str, Any]], results: Mapping[str, Any], began: str) -> dict[str, Any]:
    tasks = {one["task"]: results["asked"]["tasks"][one["task"]] for one in own}
    means = {"exact_match": "right", "formatted": "formatted", "exact_match_formatted": "right_and_formatted"}
    names = means | {f"{said}_stderr": f"{name}_stderr" for said, name in means.items()}
    return {
        "results": {
            one["task"]: {
                "alias": one["task"],
                **{f"{said},none": _or_not_known(one["metrics"][name]) for said, name in names.items()},
            }
            for one in own
        },
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: _lm_eval_config(task, protocol) for task, protocol in tasks.items()},
        "versions": dict.fromkeys(tasks, 0),
        "n-shot": {task: protocol["shots"] for task, protocol in tasks.items()},
        "higher_is_better": {task: dict.fromkeys(means, True) for task in tasks},
        "n-samples": {
            task: {"original": protocol["of"] or protocol["problems"], "effective": protocol["problems"]}
            for task, protocol in tasks.items()
        },
        "config": {"model": "rlif", "model_args": {"pretrained": own[0]["model"]}, "limit": None, "batch_size": None},
        "model_name": own[0]["model"],
        "model_source": "rlif",
        "model_name_sanitized": slug(own[0]["model"]),
        "date": datetime.fromisoformat(began).timestamp(),
    }


def _lm_eval_config(task: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    sampled = {key: protocol[key] for key in ("temperature", "top_p", "top_k")}
    return {
        "task": task,
        "output_type": "generate_until",
        "repeats": protocol["samples"],
        "num_fewshot": protocol["shots"],
        "generation_kwargs": {
            "until": protocol["stop"],
            "do_sample": protocol["temperature"] > 0,
            "max_gen_toks": protocol["max_new_tokens"],
            **sampled,
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 0, "protocol": dict(protocol)},
    }


def _lm_eval_sample(number: int, rows: list[Mapping[str, Any]], protocol: Mapping[str, Any]) -> dict[str, Any]:
    first = rows[0]
    document = {"id": first["problem_id"], "question": first["question"], "answer": first["answer"]}
    arguments = {"until": protocol["stop"], "max_gen_toks": protocol["max_new_tokens"]}
    return {
        "doc_id": number,
        "doc": document,
        "target": first["answer"] or "",
        "arguments": {"gen_args_0": {"arg_0": first["prompt"], "arg_1": arguments}},
        "resps": [[row["completion"] for row in rows]],
        "filtered_resps": [row["extracted"] or "" for row in rows],
        "filter": "none",
        "metrics": ["exact_match", "formatted"],
        "doc_hash": _hash(json.dumps(document, sort_keys=True)),
        "prompt_hash": _hash(first["prompt"]),
        "target_hash": _hash(first["answer"] or ""),
        "exact_match": sum(row["right"] is True for row in rows) / len(rows),
        "formatted": sum(bool(row["formatted"]) for row in rows) / len(rows),
    }


EXPORTS: Mapping[str, Callable[[Path], list[Path]]] = {"inspect": export_inspect, "lm-eval": export_lm_eval}
"""Formats of others, by the name of whose they are."""


def _finished(out: Path) -> dict[str, Any]:
    if not (out / RESULTS).is_file():
        raise RlifError(f"{out}: holds no finished evaluation; run the same rlif eval again to finish it first")
    results: dict[str, Any] = read_json(out / RESULTS)
    return results


def _began(out: Path) -> str:
    """When the evaluation began, in ISO 8601 with a time zone."""
    date = read_json(out / ASKED).get("date")
    when = datetime.fromisoformat(date) if date else datetime.fromtimestamp(int((out / ASKED).stat().st_mtime))
    return when.astimezone(timezone.utc).isoformat(timespec="seconds")


def _stamp(began: str) -> str:
    return began.replace(":", "-")


def _date_id(began: str) -> str:
    """The date in lm-eval's names of files, to the microsecond and without a time zone."""
    return _stamp(datetime.fromisoformat(began).replace(tzinfo=None).isoformat(timespec="microseconds"))


def _id(*parts: str) -> str:
    return _hash("/".join(parts))[:22]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _or_not_known(value: float | None) -> float | str:
    """As lm-eval writes a number that is not known."""
    known = _known(value)
    return "N/A" if known is None else known


def _write(path: Path, data: Mapping[str, Any]) -> Path:
    return _put(path, json.dumps(data, indent=1) + "\n")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    return _put(path, "".join(json.dumps(line) + "\n" for line in lines))


def _put(path: Path, text: str) -> Path:
    with writing(path, "the evaluation itself is whole; put that right and run the same command"):
        make_folder(path.parent)
        write_whole(path, text.encode())
    return path
