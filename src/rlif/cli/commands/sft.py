"""`rlif sft`: the tuned side of a pair of one ancestor."""

from pathlib import Path
from typing import Annotated

import typer

from rlif.cli.options import finite


def sft(
    model: Annotated[str, typer.Argument(help="A named model, hub id, folder or .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder of the tuned model; must be new or empty.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 40,
    batch: Annotated[int, typer.Option(min=1, help="Demonstrations a step.")] = 16,
    lr: Annotated[float, typer.Option(min=0.0, max=1.0, callback=finite, help="Peak learning rate.")] = 1e-5,
    template: Annotated[str, typer.Option(help="Prompt template: as the tuned model will be asked.")] = "plain",
    chat_template: Annotated[str, typer.Option(help="auto (the model's, or made for its turns) or off.")] = "auto",
    low: Annotated[int, typer.Option(min=0, help="Smallest summand of the additions shown.")] = 1,
    high: Annotated[int, typer.Option(min=1, help="Largest summand.")] = 20,
    question: Annotated[str, typer.Option(help="How an addition is put.")] = "What is {a} + {b}?",
    data: Annotated[str | None, typer.Option(help="Worked solutions instead: a .jsonl or .parquet file.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="A torch device; auto takes CUDA when there is one.")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Fine-tune a base model a little, on worked answers: the instruct side of a pair, to compare and to merge."""
    from rlif.cli.sft import print_sft

    print_sft(
        model,
        out,
        {
            "steps": steps,
            "batch": batch,
            "lr": lr,
            "template": template,
            "chat_template": chat_template,
            "low": low,
            "high": high,
            "question": question,
            "data": data,
            "dtype": dtype,
            "device": device,
            "seed": seed,
        },
    )
