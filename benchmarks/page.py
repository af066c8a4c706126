"""How large a page of `rlif report` is, how long it takes to write, and how long a browser takes to open it.

    python benchmarks/page.py [--steps 100] [--rows 128] [--tokens 100] [--every 10] [--browser chromium]

Of a fabricated run: so many steps of so many completions, each of so many tokens on average, their ids random words of
the tiny models' tokenizer; 8 held-out problems, each answered greedily and by four samples, at every so many steps.
Seconds are of the processor, user and system, so that other work on the machine does not count: of this process for
writing, of all the browser's processes for opening (up to its load event, when answers and charts can be used), less
those that it takes for an empty page.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from common import print_table
from tokenizers import Tokenizer

from rlif import tiny
from rlif.recipes import dump_recipe, find_recipe, load_recipe
from rlif.report.page import Subjects, write_page
from rlif.report.run_record import read_run
from rlif.runs.layout import EVAL_ANSWERS, FINAL, METRICS_FILE, RECIPE, ROLLOUTS, step_name
from rlif.utils.parquet_files import parquet_bytes

PROBLEMS, SAMPLES, GROUP = 8, 4, 8


def answers(chance: random.Random, tokenizer: Tokenizer, n: int, tokens: int) -> dict[str, pa.Array]:
    """Columns of ``n`` completions; lengths between half and one and a half times ``tokens``."""
    size = tokenizer.get_vocab_size()
    ids = [[chance.randrange(3, size) for _ in range(chance.randint(tokens // 2, 3 * tokens // 2))] for _ in range(n)]
    signals = {name: [[scale * chance.random() for _ in row] for row in ids] for name, scale in SIGNALS.items()}
    return {
        "completion": pa.array([tokenizer.decode(row) for row in ids]),
        "tokens": pa.array(ids, pa.list_(pa.int32())),
        **{name: pa.array(rows, pa.list_(pa.float32())) for name, rows in signals.items()},
        "stop_reason": pa.array(["eos"] * n),
        "right": pa.array([chance.random() < 0.5 for _ in range(n)]),
        "formatted": pa.array([True] * n),
        "extracted": pa.array([str(chance.randrange(200)) for _ in range(n)]),
        "answer": pa.array(["7"] * n),
    }


SIGNALS = {"entropy": 3.0, "logprob": -3.0, "self_certainty": 20.0}
"""Each with the largest value that a token gets, nats."""


def write(path: Path, columns: Mapping[str, pa.Array], prompts: Sequence[str], **more: Sequence[object]) -> None:
    """A table of rollouts or answers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {"prompt_id": pa.array(prompts), "prompt": pa.array([f"{one}: what is 3 + 4?" for one in prompts])}
    path.write_bytes(parquet_bytes({**named, **columns, **{key: pa.array(of) for key, of in more.items()}}, {}))


def fabricated(run: Path, steps: int, rows: int, tokens: int, every: int) -> None:
    """A run's folder."""
    chance, tokenizer = random.Random(0), Tokenizer.from_file(str(tiny.path("tiny-base") / "tokenizer.json"))
    (run / FINAL).mkdir(parents=True)
    shutil.copy(tiny.path("tiny-base") / "tokenizer.json", run / FINAL)
    recipe = load_recipe(find_recipe(Path("tiny")), [f"steps={steps}", "rollout.group_size=8"])
    (run / RECIPE).write_text(dump_recipe(recipe))
    lines = []
    asked = [f"held-out/{i}" for i in range(PROBLEMS) for _ in range(1 + SAMPLES)]
    kinds = {"decoding": ["greedy", *["sampled"] * SAMPLES] * PROBLEMS, "sample": [0, *range(SAMPLES)] * PROBLEMS}
    for step in range(steps + 1):
        lines.append({"step": step, **{f"signal/{name}": chance.random() for name in SIGNALS}})
        if step % every == 0:
            lines[-1] |= {f"eval/{key}": chance.random() for key in ("right", "formatted", "right_and_formatted")}
            columns = answers(chance, tokenizer, len(asked), tokens)
            write(run / EVAL_ANSWERS / f"{step_name(step)}.parquet", columns, asked, **kinds)
        if step:
            trained = [f"train/{step}/{i // GROUP}" for i in range(rows)]
            advantages = [chance.gauss(0, 1) for _ in range(rows)]
            columns = answers(chance, tokenizer, rows, tokens)
            write(run / ROLLOUTS / f"{step_name(step)}.parquet", columns, trained, advantage=advantages)
    (run / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def browser_seconds(browser: str, page: Path) -> float:
    """Processor seconds of a browser that opens a page up to its load event."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 100), ("rows", 128), ("tokens", 100), ("every", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--browser", default="chromium")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, page, empty = Path(folder) / "run", Path(folder) / "page.html", Path(folder) / "empty.html"
        fabricated(run, a.steps, a.rows, a.tokens, a.every)
        started = time.process_time()
        size = write_page(Subjects(runs=(read_run(run),)), page)
        row = {"steps": str(a.steps), "rows": str(a.rows), "tokens": str(a.tokens)}
        row |= {"written, s": f"{time.process_time() - started:.1f}", "MB": f"{size / 1e6:.1f}"}
        if shutil.which(a.browser):
            empty.write_text("<!doctype html><title>empty</title>")
            browser_seconds(a.browser, empty)  # its first start makes folders of its own
            opened = browser_seconds(a.browser, page) - browser_seconds(a.browser, empty)
            row["opened, s"] = f"{opened:.1f}"
        print_table([row])


if __name__ == "__main__":
    main()
