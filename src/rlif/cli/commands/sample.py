"""`rlif sample`: completions on the terminal."""

from typing import Annotated

import typer

from rlif.cli.options import finite


def sample(
    model: Annotated[str, typer.Argument(help="A named model, hub id, folder or .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="What to say to it.")],
    n: Annotated[int, typer.Option("--samples", "-n", min=1, help="Completions.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0, callback=finite)] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length limit; unless given that of a run, or 128.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template; unless given that of a run, or plain.")] = None,
    chat_template: Annotated[str, typer.Option(help="auto, on or off.")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print completions, each token shaded by the entropy of the distribution it was drawn from."""
    from rlif.cli.sample import print_samples

    print_samples(
        model,
        prompt,
        n=n,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        template=template,
        chat_template=chat_template,
        seed=seed,
    )
