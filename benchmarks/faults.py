"""Faults on purpose: changed bytes, kills and power cuts at every file operation, processes killed at random.

    python benchmarks/faults.py                       # everything; some minutes on two cores
    python benchmarks/faults.py --only bytes,kernels  # a part of it
    python benchmarks/faults.py --every 4 --kills 5   # every fourth state, five kills of each command

Prints a table: what was done, how often, and what came of it. Ends with code 1 if anything came out silently wrong.
The states are those of tests/runs/test_crashes.py, of which CI tries a part.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runs"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from pyarrow import ArrowException, parquet
from test_crashes import KINDS, Recorded, RecordedEvaluation, ends_alike, outcome

from evaluations import timeless
from rlif.errors import RlifError
from rlif.evals import runner as loop
from rlif.evals.store import read_answers, read_json
from rlif.runs.checkpoint import load_checkpoint
from rlif.utils.parquet_files import read_parquet
from toys import toy_policy

torch.set_num_threads(1)
Result = tuple[str, str]  # what was done, what came of it
GOOD = ("refused", "harmless", "same", "begun anew", "made anew", "clean")


def bytes_of_parts(base: Path, draw: random.Random) -> Iterator[Result]:
    """Each byte of an evaluation's part, and of a step's rollouts, changed in one bit."""
    evaluation, recorded = base / "evaluation", Recorded(base / "recorded")
    RecordedEvaluation(evaluation)
    (part,) = (evaluation / "work" / "e").glob("*/*/part-000000.parquet")
    rollouts = sorted((recorded.base / "work" / "run" / "rollouts").glob("*.parquet"))[0]
    for what, path in (("a bit of each byte of an evaluation's part", part), ("... of a step's rollouts", rollouts)):
        whole, right = path.read_bytes(), str(read_parquet(path).to_pydict())
        for position in range(len(whole)):
            path.write_bytes(changed(whole, position, draw))
            try:
                if path is part:
                    read_answers(path.parent)
                yield what, "harmless" if str(read_parquet(path).to_pydict()) == right else "SILENTLY WRONG"
            except (RlifError, ArrowException, OSError, ValueError):
                yield what, "refused"
        path.write_bytes(whole)
        plain = base / "plain.parquet"  # what the same changes do where nobody looks at checksums
        for position in range(len(whole)):
            plain.write_bytes(changed(whole, position, draw))
            try:
                same = str(parquet.read_table(plain).to_pydict()) == right
            except (ArrowException, OSError, ValueError):
                same = True
            yield f"({what}, read without checking)", "harmless or refused" if same else "wrong, as expected"


def bytes_of_checkpoints(base: Path, draw: random.Random) -> Iterator[Result]:
    """Bits of every file of a checkpoint, and files cut, emptied and filled with zeros."""
    checkpoint = Recorded(base / "recorded").base / "work" / "run" / "checkpoints" / "step-000003"
    for path in sorted(checkpoint.iterdir()):
        whole = path.read_bytes()
        places = draw.sample(range(len(whole)), min(200, len(whole)))
        damaged = [changed(whole, place, draw) for place in places] + [whole[:place] for place in places[:40]]
        for data in (*damaged, b"", bytes(len(whole)), whole + b"\0"):
            path.write_bytes(data)
            try:
                load_checkpoint(checkpoint)
                yield "bits, cuts and zeros in a checkpoint's files", "SILENTLY WRONG"
            except RlifError:
                yield "bits, cuts and zeros in a checkpoint's files", "refused"
        path.write_bytes(whole)
    load_checkpoint(checkpoint)


def bytes_of_kernels(base: Path, draw: random.Random) -> Iterator[Result]:
    """Bits of a compiled library, and cut ones: nothing of it may be loaded."""
    from rlif.model.kernels import build
    from rlif.model.kernels.cpu import kernels

    os.environ["RLIF_CACHE"] = str(base / "cache")
    if kernels.__wrapped__(torch.float32) is None:
        return
    (library,) = (base / "cache" / "kernels").glob("*.so")
    whole, key = library.read_bytes(), library.name.partition("-")[0]
    for place in draw.sample(range(len(whole)), 2000):
        for data in (changed(whole, place, draw), whole[:place]):
            library.write_bytes(data)
            kept = build._kept(library.parent, key)
            yield "bits and cuts in a compiled library", "made anew" if kept is None else "LOADED"


def states_of_runs(base: Path, draw: random.Random, every: int) -> Iterator[Result]:
    """Every state that a kill or a power cut may leave of a training run."""
    recorded = Recorded(base / "recorded", cuts=8)
    for kind in KINDS:
        for begun in (True, False):
            for _, tree in recorded.of_kind(kind, begun=begun)[::every]:
                folder = Path(tempfile.mkdtemp(dir=base)) / "left"
                what = f"run, {kind}" if begun else f"run being started, {kind}"
                yield what, ends_alike(recorded, tree, folder)
                shutil.rmtree(folder.parent)


def states_of_evaluations(base: Path, draw: random.Random, every: int) -> Iterator[Result]:
    """Every state that a kill or a power cut may leave of an evaluation."""
    from crash_points import put

    loop._EVERY = 0.0
    evaluation = RecordedEvaluation(base / "recorded", cuts=8)
    for kind, found in evaluation.states.items():
        for tree in list(found.values())[::every]:
            folder = Path(tempfile.mkdtemp(dir=base)) / "left"
            put(tree, folder)
            try:
                same = evaluation.run(folder / "e") == evaluation.results
                yield f"evaluation, {kind}", "same" if same else "SILENTLY WRONG"
            except RlifError as error:
                yield f"evaluation, {kind}", f"refused: {error}"
            shutil.rmtree(folder.parent)


def random_kills(base: Path, draw: random.Random, kills: int) -> Iterator[Result]:
    """`rlif train` and `rlif eval` killed (SIGKILL) after a random time, again and again until they are through."""
    if not kills:
        return
    model = base / "model"
    toy_policy("llama").save(model)
    recipe = base / "recipe.yaml"
    recipe.write_text(
        f"steps: 40\npolicy: {{model: {model}, dtype: float32, device: cpu}}\ntask: {{name: arithmetic}}\n"
        "rollout: {prompts: 2, group_size: 2, max_new_tokens: 16}\nreward: self_certainty\n"
        "eval: {every: 20, problems: 4}\ncheckpoint: {every: 2}\n"
    )

    def train(out: Path) -> list[str]:
        begun = (out / "recipe.yaml").exists()
        return ["train", "--resume", str(out)] if begun else ["train", str(recipe), "--out", str(out)]

    def evaluate(out: Path) -> list[str]:
        return ["eval", str(model), "--tasks", "arithmetic", "--limit", "256", "--samples", "2", "--out", str(out)]

    def results(out: Path) -> object:
        return str(timeless(read_json(out / "results.json")))

    commands: tuple[tuple[str, Callable[[Path], list[str]], Callable[[Path], object]], ...] = (
        ("rlif train killed at random, resumed", train, outcome),
        ("rlif eval killed at random, run again", evaluate, results),
    )
    for what, command, read in commands:
        whole, out, done = base / f"whole {command.__name__}", base / command.__name__, 0
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "rlif", *command(whole)], check=True, capture_output=True)
        duration = time.monotonic() - started
        while done < kills:
            process = subprocess.Popen(
                [sys.executable, "-m", "rlif", *command(out)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                _, said = process.communicate(timeout=draw.uniform(0.3, 1.1) * duration)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
                yield what.partition(",")[0], "killed"
                continue
            if process.returncode:
                yield what, f"ended with code {process.returncode}: {said.strip()}"
            else:
                yield what, "same" if read(out) == read(whole) else "SILENTLY WRONG"
            shutil.rmtree(out)
            if process.returncode:
                return


def changed(data: bytes, position: int, draw: random.Random) -> bytes:
    """One bit of one byte."""
    return data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :]


def main() -> int:
    """Run the campaigns, print their table; 1 if anything was silently wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="bytes,checkpoints,kernels,runs,evaluations,kills")
    parser.add_argument("--every", type=int, default=1, help="try every so many-th state of runs and evaluations")
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    campaigns: dict[str, Callable[[Path], Iterator[Result]]] = {
        "bytes": lambda base: bytes_of_parts(base, draw),
        "checkpoints": lambda base: bytes_of_checkpoints(base, draw),
        "kernels": lambda base: bytes_of_kernels(base, draw),
        "runs": lambda base: states_of_runs(base, draw, options.every),
        "evaluations": lambda base: states_of_evaluations(base, draw, options.every),
        "kills": lambda base: random_kills(base, draw, options.kills),
    }
    print(f"{date.today()}: python benchmarks/faults.py {' '.join(sys.argv[1:])}\n")
    print("| fault | outcome | times |\n|---|---|---|", flush=True)
    bad = 0
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as base:
            counted = collections.Counter(campaigns[name](Path(base)))
        for (what, came), times in sorted(counted.items()):
            print(f"| {what} | {came} | {times:,} |", flush=True)
            bad += times * (not came.startswith((*GOOD, "killed", "wrong, as expected")))
    print(f"\n{'nothing was silently wrong' if not bad else f'{bad} times not as it should be'}")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
