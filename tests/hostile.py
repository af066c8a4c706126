"""Hostile names and files for every command, and what must be true of the end that each of them comes to.

As a script: a random campaign, `python tests/hostile.py --tries 2000 --seed 0`; it prints how many ended wrongly.
"""

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import typer

from rlif.cli import main
from rlif.utils.atomic_io import LOCK
from rlif.utils.interrupts import STOP_SIGNALS

NAMES = (
    "",
    " ",
    ".",
    "..",
    "a/../../b",
    "-",
    "a=b",
    "=",
    "~nobody-of-this-name/x",
    "n" * 300,
    "n" * 100_000,
    "9" * 5000,
    "1e999",
    "nan",
    "-1",
    "a\0b",
    "a\nb\rc",
    "a\tb",
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m\x85\x7f",
    "\u202egnp.exe\u2066",
    "\u2028\u2029\ufeff\u200e",
    "\udcff\ud800",
    "[/b]",
    "[link=https://example.org]here[/link]",
    "[bold red]\\[",
    ":smile: {0} %s %(x)s {x!r}",
    "$\\frac{1$",
    "naïve 😀 ½ 中文 e\u0301",
    "[" * 2000,
    "{a: [1, 2",
    "!!python/object/apply:os.getcwd []",
    "2001-13-45",
    "*alias",
    "'",
)

COMMANDS: Mapping[str, Callable[[str], list[str]]] = {
    "a command": lambda t: [t],
    "an option": lambda t: ["train", f"--{t}"],
    "the recipe of train": lambda t: ["train", t, "--out", "run"],
    "an override": lambda t: ["train", "tiny", "policy.model=./none", t, "--out", "run"],
    "an override's key": lambda t: ["train", "tiny", "policy.model=./none", f"{t}=1", "--out", "run"],
    "an override's last key": lambda t: ["train", "tiny", "policy.model=./none", f"grpo.{t}=1", "--out", "run"],
    "an override's number": lambda t: ["train", "tiny", "policy.model=./none", f"steps={t}", "--out", "run"],
    "an override's text": lambda t: ["train", "tiny", "policy.model=./none", f"task.template={t}", "--out", "run"],
    "an override's list": lambda t: ["train", "tiny", "policy.model=./none", f"rollout.stop={t}", "--out", "run"],
    "the model of train": lambda t: ["train", "tiny", f"policy.model=./{t}", "--out", "run"],
    "a reward": lambda t: ["train", "tiny", "policy.model=./none", f"reward={t}", "--out", "run"],
    "a sink": lambda t: ["train", "tiny", "policy.model=./none", f"log.sinks=['{t}']", "--out", "run"],
    "the best": lambda t: ["train", "tiny", "policy.model=./none", f"checkpoint.best='{t}'", "--out", "run"],
    "the training file": lambda t: [
        *("train", "tiny", "policy.model=./none", f"task={{name: file, path: '{t}'}}", "--out", "run")
    ],
    "the folder of train": lambda t: ["train", "tiny", "policy.model=./none", "--out", t],
    "a folder below a file": lambda t: ["train", "tiny", "policy.model=./none", "--out", f"file/{t}"],
    "a folder to resume": lambda t: ["train", "--resume", t],
    "the model of eval": lambda t: ["eval", f"./{t}", "--tasks", "arithmetic", "--out", "judged"],
    "the tasks": lambda t: ["eval", "tiny-base", "--tasks", t, "--out", "file/judged"],
    "the data": lambda t: ["eval", "tiny-base", "--tasks", "own", "--data", f"own={t}", "--out", "file/judged"],
    "bare data": lambda t: ["eval", "tiny-base", "--data", t, "--out", "file/judged"],
    "the data of train": lambda t: ["train", "--model", "./none", "--data", t, "--out", "run"],
    "a column of the data": lambda t: [
        *("train", "--model", "./none", "--data", "file.jsonl", "--question", t, "--answer", t, "--out", "run")
    ],
    "the task of the data": lambda t: ["eval", "tiny-base", "--tasks", "own", "--data", f"{t}=x", "--out", "file/e"],
    "the template": lambda t: ["eval", "tiny-base", "--tasks", "arithmetic", "--template", t, "--out", "file/judged"],
    "the format": lambda t: ["eval", "tiny-base", "--tasks", "arithmetic", "--format", t, "--out", "file/judged"],
    "the shots": lambda t: [
        *("eval", "tiny-base", "--tasks", "arithmetic", "--shots", "1", "--shots-from", t, "--out", "file/judged")
    ],
    "a number of eval": lambda t: ["eval", "tiny-base", "--tasks", "arithmetic", "--top-k", t, "--out", "file/judged"],
    "a temperature": lambda t: [
        *("eval", "tiny-base", "--tasks", "arithmetic", "--temperature", t, "--out", "file/judged")
    ],
    "the type": lambda t: ["eval", "tiny-base", "--tasks", "arithmetic", "--dtype", t, "--out", "file/judged"],
    "the folder of eval": lambda t: ["eval", "./none", "--tasks", "arithmetic", "--out", t],
    "the endpoint": lambda t: [
        "eval",
        "--endpoint",
        t,
        "--model",
        "m",
        "--tasks",
        "arithmetic",
        "--out",
        "file/judged",
    ],
    "a served model": lambda t: [
        *("eval", "--endpoint", "http://127.0.0.1:9", "--model", t, "--tasks", "arithmetic", "--out", "file/judged")
    ],
    "the key's variable": lambda t: [
        *("eval", "--endpoint", "http://h", "--model", "m", "--api-key-env", f"RLIF_NONE_{t}", "--tasks", "arithmetic"),
        *("--out", "file/judged"),
    ],
    "what is reported": lambda t: ["report", f"file/{t}", "--out", "file/page.html"],
    "the page": lambda t: ["report", "none", "--out", f"file/{t}"],
    "what is shown": lambda t: ["show", f"file/{t}"],
    "a step shown": lambda t: ["show", "none", "--step", t],
    "a prompt shown": lambda t: ["show", "none", "--prompt", t],
    "what is pushed": lambda t: ["push", f"file/{t}", "--repo", "nobody/none"],
    "where it is pushed to": lambda t: ["push", "none", "--repo", t],
    "what is compared": lambda t: ["compare", t, t],
    "the folder of quickstart": lambda t: ["quickstart", "--out", f"file/{t}"],
    "the model of sample": lambda t: ["sample", f"./{t}", "1+1=?"],
    "a temperature of sample": lambda t: ["sample", "./none", "1+1=?", "--temperature", t],
    "a chat template of sample": lambda t: ["sample", "./none", "1+1=?", "--chat-template", t],
    "the run of theory": lambda t: ["theory", "--run", t],
    "the trials of theory": lambda t: ["theory", "--trials", f"-{t}"],
    "the model of sft": lambda t: ["sft", f"./{t}", "--out", "file/tuned"],
    "the data of sft": lambda t: ["sft", "tiny-base", "--data", t, "--out", "file/tuned"],
    "the question of sft": lambda t: ["sft", "./none", "--question", t, "--out", "file/tuned"],
    "the base of merge": lambda t: ["merge", f"./{t}", "tiny-instruct", "--ratio", "0.5", "--out", "file/merged"],
    "the other of merge": lambda t: ["merge", "tiny-base", f"./{t}", "--ratio", "0.5", "--out", "file/merged"],
    "the ratio of merge": lambda t: ["merge", "tiny-base", "tiny-instruct", "--ratio", t, "--out", "file/merged"],
    "a merged model": lambda t: [
        *("train", "tiny", f"policy.model={{merge: {{base: './{t}', instruct: tiny-base, ratio: 0.5}}}}"),
        *("--out", "run"),
    ],
    "the recipe of estimate": lambda t: ["estimate", f"./{t}"],
    "the model of estimate": lambda t: ["estimate", "tiny", f"policy.model=./{t}"],
    "the device of estimate": lambda t: ["estimate", "tiny", "--device", f"x{t}"],
    "a grid": lambda t: ["study", f"./{t}", "--out", "study"],
    "a cell": lambda t: ["study", "tiny", "--dry-run", "--only", f"x{t}"],
    "an axis": lambda t: ["study", "tiny", "--dry-run", "--where", t],
    "a label": lambda t: ["study", "tiny", "--dry-run", "--where", f"reward={t}"],
    "a study": lambda t: ["study", f"./{t}", "--findings"],
    "a recipe to print": lambda t: ["recipe", f"x{t}"],
    "a section to print": lambda t: ["recipe", "--keys", f"x{t}"],
    "a reward of a module": lambda t: ["train", "tiny", f"reward=no_such_module_{t}:f", "--out", "run"],
    "an export": lambda t: ["eval", "./none", "--tasks", "arithmetic", "--out", "file/e", "--export", f"x{t}"],
    "an argument of models": lambda t: ["models", t, "x"],
    "an argument of tiny": lambda t: ["tiny", t],
}
"""Where a name can stand, and the command line with one there. None of them can come to an end that is good."""

HOPELESS: Mapping[str, list[str]] = {
    "train": ["tiny", "policy.model=./none", "--out", "run"],
    "eval": ["./none", "--tasks", "arithmetic", "--out", "judged"],
    "compare": ["./none", "./none"],
    "quickstart": ["--out", "file/q"],
    "estimate": ["tiny", "policy.model=./none"],
    "study": ["tiny", "--dry-run", "--only", "no such cell"],
    "watch": ["./none"],
    "report": ["./none"],
    "show": ["./none"],
    "push": ["./none", "--repo", "nobody/none"],
    "diagnose": ["./none", "--task", "arithmetic"],
    "sample": ["./none", "1+1=?"],
    "theory": ["--run", "./none"],
    "sft": ["./none", "--out", "file/tuned"],
    "merge": ["./none", "tiny-instruct", "--ratio", "0.5", "--out", "merged"],
    "models": ["--no-such-option"],
    "tiny make": ["--out", "file/tiny"],
    "rewards": ["--no-such-option"],
    "signals": ["--no-such-option"],
    "templates": ["--no-such-option"],
    "tasks": ["--no-such-option"],
    "recipes": ["--no-such-option"],
    "recipe": ["no-such-recipe"],
}
"""Arguments for each command with which it comes to no good end, whatever else it is told."""


def options() -> list[tuple[str, str]]:
    """Every option of every command, as the command line declares them: a new one is in the matrix by being there."""
    found = []
    commands = [("", typer.main.get_command(main.app))]
    for name, command in commands:
        children = getattr(command, "commands", {})
        commands += [(f"{name} {child}".strip(), children[child]) for child in children]
        if not children:
            found += [(name, each) for option in command.params for each in option.opts if each.startswith("--")]
    return found


def with_option(command: str, option: str, name: str) -> list[str]:
    """A hopeless command line with a name as the value of one more option. Folders lie below a file, where no command
    can make them."""
    value = f"file/{name}" if option in ("--out", "--plot", "--figures") else name
    return [*command.split(), *HOPELESS[command], f"{option}={value}"]


RECIPE = """\
steps: 2
seed: 1
policy: {model: ./none, dtype: float32}
task: &task
  name: arithmetic
  question: "{a}+{b}=?"
rollout: {prompts: 4, group_size: 2, stop: ["\\n\\n", 'x']}
reward: [{name: self_certainty, weight: 0.5}, length]
grpo: {lr: 1e-5, betas: [0.9, 0.95]}
"""
ROWS = "".join(json.dumps({"id": i, "question": f"{i}+1=?", "answer": f"{i + 1}"}) + "\n" for i in range(4))
METRICS = "".join(json.dumps({"step": i, "entropy/predicted": 0.1, "entropy/measured": 0.2}) + "\n" for i in range(5))

GRID = """\
recipe: tiny
models: {m: no-such-model}
rewards: {certain: self_certainty, mix: [{name: length, weight: 0.5}, random]}
seeds: [0, 1]
vary: {grpo.lr: [1e-6, 1e-4]}
set: {steps: 4, eval.every: 2}
"""
RECORD = json.dumps(
    {
        "grid": {},
        "cells": [
            {
                "cell": "a-0",
                "axes": {"model": "m", "reward": "r", "seed": 0},
                "model_kind": "base",
                "merge_ratio": None,
                "reward_kind": "internal",
            }
        ],
    }
)
CONFIG = json.dumps({"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": False})
_HEADER = json.dumps({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
WEIGHTS = f"{chr(len(_HEADER))}{7 * chr(0)}{_HEADER}{8 * chr(0)}"
"""A file of safetensors, all of whose bytes are ASCII."""

FILES: Mapping[str, tuple[Mapping[str, str], list[str]]] = {
    "a recipe": ({"recipe.yaml": RECIPE}, ["train", "recipe.yaml", "--out", "run"]),
    "the recipe of a run": ({"old/recipe.yaml": RECIPE, "old/run.json": "{}"}, ["train", "--resume", "old"]),
    "problems": (
        {"own.jsonl": ROWS},
        ["eval", "tiny-base", "--tasks", "own", "--data", "own=own.jsonl", "--out", "file/judged"],
    ),
    "problems as CSV": (
        {"own.csv": 'id,question,answer\n0,"1+1=?",2\n1,2+1=?,3\n'},
        ["eval", "tiny-base", "--data", "own.csv", "--question", "question", "--out", "file/judged"],
    ),
    "problems as JSON": (
        {"own.json": json.dumps([{"messages": [{"role": "user", "content": "1+1=?"}]}])},
        ["eval", "tiny-base", "--data", "own.json", "--out", "file/judged"],
    ),
    "problems as Parquet": (
        {"own.parquet": "PAR1" + ROWS + "PAR1"},
        ["eval", "tiny-base", "--tasks", "own", "--data", "own=own.parquet", "--out", "file/judged"],
    ),
    "worked examples": (
        {"own.jsonl": ROWS},
        *(
            [
                "eval",
                "tiny-base",
                "--tasks",
                "arithmetic",
                "--shots",
                "1",
                "--shots-from",
                "own.jsonl",
                "--out",
                "file/e",
            ],
        ),
    ),
    "metrics": ({"old/metrics.jsonl": METRICS}, ["theory", "--run", "old"]),
    "a grid": ({"grid.yaml": GRID}, ["study", "grid.yaml", "--dry-run"]),
    "the record of a study": (
        {"s/grids/g.json": RECORD, "s/runs/a-0/metrics.jsonl": METRICS},
        ["study", "s", "--findings"],
    ),
    "a failure of a study": (
        {"s/grids/g.json": RECORD, "s/failed/a-0.json": '{"error": "of memory"}'},
        ["study", "s", "--findings"],
    ),
    "a model to merge": (
        {"m/config.json": CONFIG, "m/model.safetensors": WEIGHTS},
        ["merge", "m", "m", "--ratio", "0.5", "--out", "merged"],
    ),
    "an evaluation": (
        {"old/asked.json": '{"models": ["a", "b"], "tasks": {}}', "old/a/model.json": '{"name": "a"}'},
        ["compare", "old"],
    ),
}
"""Files that a command reads, sound ones, and the command: it ends badly even so, for want of a model or a folder."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def run(arguments: Sequence[str]) -> Outcome:
    """The command line in this process, as it ends in one of its own."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    code = 0
    try:
        with patch.multiple(sys, argv=["rlif", *arguments], stdout=streams[0], stderr=streams[1]):
            main.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out, err = (stream.buffer.getvalue().decode("utf-8") for stream in streams)  # type: ignore[attr-defined]
    return Outcome(code, out, err)


def fault(outcome: Outcome, before: Sequence[str], after: Sequence[str]) -> str:
    """What is wrong with an end, in words; "" if nothing is. ``before``, ``after``: what the folder held."""
    wild = {c for c in outcome.out + outcome.err if not c.isprintable() and c not in "\n\t"}
    lines = outcome.err.splitlines()
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}"
    if wild:
        return f"unprintable: {wild}"
    if "Traceback" in outcome.err:
        return "a traceback"
    if outcome.code == 2 and (len(lines) != 1 or not lines[0].startswith("rlif: ") or len(lines[0]) > 2500):
        return f"not one line of a bearable length: {len(lines)} lines, {len(outcome.err)} characters"
    left = {name for name in set(after) - set(before) if not name.endswith(LOCK)}
    return f"left behind: {left}" if outcome.code == 2 and left else ""


def tried(arguments: Sequence[str]) -> tuple[str, Outcome]:
    """Run a command in the current folder: what is wrong with its end, and the end."""
    before = contents()
    outcome = run(arguments)
    return fault(outcome, before, contents()), outcome


def contents() -> list[str]:
    """Every name below the current folder."""
    return [str(path) for path in Path().rglob("*")]


def write(files: Mapping[str, bytes]) -> None:
    """Files below the current folder."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with one to three spans cut out, doubled, or replaced by something hostile."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice((0, 0, 1, 2, 8, 40)))
        piece = chance.choice((b"", content[start:end] * 2, bytes([chance.randrange(256)]), _hostile_bytes(chance)))
        content = content[:start] + piece + content[end:]
    return content


def _hostile_bytes(chance: random.Random) -> bytes:
    wild = (
        b"\xff\xfe",
        b"\0",
        b"&a [*a]",
        b"<<: *task\n",
        b"9" * 4301,
        b"0b" + b"1" * 20_000,
        b"!!int a",
        b"!!set {a}",
    )
    wild += (b"!!timestamp x", b"\\ud800", b"? [a]\n: b\n", b"[" * 500, b"{" * 500, b'{"a":' * 500, b"NaN", b"1: 2\n")
    return chance.choice((*wild, chance.choice(NAMES).encode("utf-8", "surrogatepass")))


def campaign(tries: int, seed: int) -> list[str]:
    """Random names in random places, random damage to random files; returns a line for each end that is wrong."""
    chance, faults = random.Random(seed), []
    for number in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write({"file": b""})
            kind = chance.random()
            name = "".join(chance.choice(NAMES)[:400] for _ in range(chance.randint(1, 3)))
            if kind < 0.25:
                command, option = chance.choice(options())
                place, arguments, what = f"{command} {option}", with_option(command, option, name), repr(name)[:200]
            elif kind < 0.5:
                place = chance.choice(list(COMMANDS))
                arguments, what = COMMANDS[place](name), repr(name)[:200]
            else:
                place = chance.choice(list(FILES))
                files, arguments = FILES[place]
                hostile = {name: damaged(content.encode(), chance) for name, content in files.items()}
                write(hostile)
                what = repr(hostile)[:400]
            wrong, outcome = tried(arguments)
            if wrong:
                faults.append(f"try {number}, {place}, {what}: {wrong}; {outcome.err[-1500:]!a}")
            os.chdir("/")
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started = time.monotonic()
    found = campaign(asked.tries, asked.seed)
    for line in found:
        print(line)
    seconds = time.monotonic() - started
    print(f"{asked.tries} tries (seed {asked.seed}), {len(found)} did not end as they should; {seconds:.0f} s")
