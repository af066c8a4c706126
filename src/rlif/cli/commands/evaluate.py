"""`rlif eval`: models in this process, or behind a server."""

import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlif.cli.options import finite
from rlif.errors import RlifError, named

if TYPE_CHECKING:
    from rlif.evals.backends.openai_client import Server


def evaluate(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the evaluation; one of the same settings is gone on with.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Named models, hub ids, folders, .gguf.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated names, also yours; `list` shows those there are.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK=]PATH",
            help="Problems of yours: .jsonl, .json, .csv, .tsv, .parquet, a hub id, or a function, module:function.",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="COLUMN", help="The question's in --data.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="COLUMN", help="The answer's in --data.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a data set of the hub, where it has several.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub; test unless given.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems of each task.")] = None,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the --limit problems at random by this seed, not the first.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Answers to each problem; 8, or 1 if greedy.")] = None,
    temperature: Annotated[float, typer.Option(callback=finite, help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(callback=finite, help="Nucleus sampling; 1 is off.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Among the k likeliest tokens; 0 is off.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length limit; else the task's, or a run's own.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template; else the task's, or a run's.")] = None,
    format: Annotated[str | None, typer.Option(help="Extractor for `formatted`; else the template's.")] = None,
    shots: Annotated[int, typer.Option(help="Worked examples before each question.")] = 0,
    shots_from: Annotated[str | None, typer.Option(help="Training file to take them from, not our fixed set.")] = None,
    chat_template: Annotated[str, typer.Option(help="auto, on or off.")] = "auto",
    stop: Annotated[list[str] | None, typer.Option(help="A further string that ends an answer.")] = None,
    baselines: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="none, or of greedy,low_temperature,temperature_1,power; else greedy."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="A torch device; auto takes CUDA when there is one.")] = "auto",
    engine: Annotated[str, typer.Option(help="What samples: native (ours), or vllm (docs/vllm.md).")] = "native",
    max_mismatch: Annotated[
        float | None,
        typer.Option(min=0.0, callback=finite, help="Most nats a token from a plain forward pass; 0: any."),
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask an OpenAI-compatible server (vLLM, llama.cpp ...).")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="What the server calls the model.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests on their way to the server at once.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=1.0, callback=finite, help="Seconds that the server has for an answer.")
    ] = 600.0,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Holds the server's key; RLIF_API_KEY, if that is set.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the results.")] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="inspect or lm-eval: logs for their tools, in OUT/export."),
    ] = None,
) -> None:
    """Judge models: avg@k, pass@k, maj@k, format, signals, every answer kept, error bars on everything."""
    if tasks is not None and tasks.strip() == "list":
        from rlif.cli.lists import print_benchmarks

        print_benchmarks()
        return
    if out is None:
        raise RlifError("say with --out DIR where the answers go; a folder of the same evaluation is gone on with")
    from rlif.cli.evaluate import OPTIONS, check_exports, export_logs, run_eval, run_served
    from rlif.config import RolloutConfig
    from rlif.evals.settings import settings_of

    names, sources = _asked(tasks, data or [])
    check_exports(export or [])
    settings = settings_of(
        tasks=names,
        data=sources,
        question_column=question,
        answer_column=answer,
        config=config,
        split=split,
        limit=limit,
        sample_seed=sample_seed,
        samples=samples if samples is not None else (1 if temperature == 0.0 else 8),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        template=template,
        format=format,
        shots=shots,
        shots_from=shots_from,
        chat_template=chat_template,
        stop=tuple(stop or ()),
        baselines=None if baselines is None else _names(baselines) if baselines.strip() != "none" else (),
        seed=seed,
    )
    if endpoint is not None:
        if (dtype, device) != ("auto", "auto"):
            raise RlifError(f"--endpoint {endpoint}: --dtype and --device are the server's to choose")
        if engine != "native":
            raise RlifError(f"--endpoint {endpoint}: --engine is for models in this process; leave it out")
        if max_mismatch is not None:
            raise RlifError(f"--endpoint {endpoint}: --max-mismatch is for models in this process; leave it out")
        run_served(_servers(endpoint, models, model, api_key_env, concurrency, timeout), settings, out, quiet=quiet)
    elif model or not models:
        raise RlifError("name the models to evaluate (rlif eval MODEL ...); --model NAME belongs to --endpoint URL")
    else:
        with named(OPTIONS):
            sampler: dict[str, Any] = {"engine": engine, "max_mismatch": max_mismatch}
            rollout = RolloutConfig(**sampler)
        run_eval(models, settings, out, dtype=dtype, device=device, rollout=rollout, quiet=quiet)
    export_logs(out, export or [])


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _servers(
    endpoint: str,
    models: list[str] | None,
    served: list[str] | None,
    api_key_env: str | None,
    concurrency: int,
    timeout: float,
) -> "list[Server]":
    from rlif.evals.backends.openai_client import Server

    if models or not served:
        raise RlifError(f"--endpoint {endpoint}: say with --model NAME, and only so, what the server calls the model")
    return [Server(endpoint, name, api_key_env, concurrency, timeout) for name in served]


def _asked(tasks: str | None, data: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The tasks, and where the problems of some of them are read from. What --data alone names is asked, too."""
    if tasks is None and not data:
        raise RlifError("say what to ask: --tasks gsm8k (or others, see --help), or --data PATH for problems of yours")
    found: dict[str, str] = {}
    own = []
    for given in data:
        name, source = _assignment(given)
        if name in found:
            raise RlifError(f"--data {given!r}: two are called {name}; name one otherwise: TASK=PATH")
        found[name] = source
        own += [name] if tasks is None or source == given else []
    asked = _names(tasks or "")
    return (*asked, *(name for name in own if name not in asked)), found


def _assignment(given: str) -> tuple[str, str]:
    """TASK=PATH as the two; of a bare path the task is called like its file."""
    task, separator, path = given.partition("=")
    if separator and re.fullmatch(r"\w[\w.-]*", task) and path:
        return task, path
    name = re.sub(r"[^\w.-]+", "-", PurePath(given).stem).strip(".-")
    if not name or given.startswith("="):
        raise RlifError(f"--data {given!r}: write PATH or TASK=PATH, for example gsm8k=data/gsm8k_test.jsonl")
    return name, given
