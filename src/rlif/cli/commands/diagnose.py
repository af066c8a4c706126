"""`rlif diagnose`: is training this model worth it?"""

from pathlib import Path
from typing import Annotated

import typer

from rlif.cli.options import finite
from rlif.errors import RlifError


def diagnose(
    model: Annotated[str, typer.Argument(help="A named model, hub id, folder or .gguf file.")],
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            "--data",
            metavar="FILE",
            help="Problems of yours: .jsonl, .json, .csv, .tsv, .parquet, or a hub id; answers are not read.",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="COLUMN", help="The question's in --prompts.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="COLUMN", help="The answer's, for --labels.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a data set of the hub, where it has several.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub; train unless given.")] = None,
    task: Annotated[str | None, typer.Option(help="Instead of a file: arithmetic.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt template; else what a run or a named model brings, or boxed.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Form of answer asked for; unless given, the template's.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="You decode at it; 0: greedy.")] = 1.0,
    reward: Annotated[str | None, typer.Option(help="Judge training on this reward; else on the best known.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many prompts.")] = 64,
    samples: Annotated[int, typer.Option(min=4, help="Answers to a prompt in a vote.")] = 16,
    similarity: Annotated[
        str | None,
        typer.Option(metavar="ENCODER", help="For answers in sentences: alike are those of near embeddings."),
    ] = None,
    least: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, callback=finite, help="The least cosine for --similarity: .85.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length limit; else the model's own, or 512; the context lowers it.")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Put the truth beside it, where there are answers.")] = False,
    chat_template: Annotated[str, typer.Option(help="auto, on or off.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="A torch device; auto takes CUDA when there is one.")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for diagnosis.json, diagnosis.png and recipe.yaml.")] = None,
) -> None:
    """Say before training whether it is worth it: minutes, no labels."""
    from rlif.cli.diagnose import print_diagnosis

    if (prompts is None) == (task is None):
        raise RlifError("give the prompts: --prompts FILE, or --task arithmetic")
    if task not in (None, "arithmetic"):
        raise RlifError(f"--task {task}: only arithmetic needs no file; give --prompts FILE")
    if least is not None and similarity is None:
        raise RlifError("--least: belongs to --similarity ENCODER")
    if least == 0.0:
        raise RlifError("--least: at 0 all answers would be the same; give a number above 0")
    near = None if similarity is None else {"model": similarity} | ({} if least is None else {"least": least})
    print_diagnosis(
        model,
        task or str(prompts),
        {
            "question_column": question,
            "answer_column": answer,
            "config": config,
            "split": split,
            "temperature": temperature,
            "template": template,
            "format": format,
            "limit": limit,
            "samples": samples,
            "similarity": near,
            "max_new_tokens": max_new_tokens,
            "reward": reward,
            "labels": labels,
            "seed": seed,
        },
        {"chat_template": chat_template, "dtype": dtype, "device": device},
        as_json=json,
        out=out,
    )
