"""One run on several ranks: the same as on one, ended together, gone on with by any number of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ranks import Ended, command, run_ranks
from rlif.runs.history import read_metrics
from rlif.training.optim import MasterOptimizer
from rlif.training.parallel import ALONE, Group

SMALL = [
    # AdamW first moves a weight by lr · g / |g|: where g is near 0, its rounding is no longer small in the weight.
    "grpo.lr=1e-5",
    *("steps=6", "rollout.prompts=4", "rollout.group_size=4", "rollout.max_new_tokens=24", "checkpoint.every=2"),
    *("eval.every=3", "eval.problems=3", "eval.samples=2", "grpo.micro_batch_tokens=128"),
]
WATCHED = [
    *("grpo.kl_coef=0.01", "probe.every=2", "probe.prompts=3", "probe.samples=2", "probe.reference_samples=2"),
    *("guards.stop=true", "guards.restore=true", "checkpoint.best=eval/right"),
]
EPOCHS = ["grpo.epochs=2", "grpo.minibatches=2", "reward=[self_certainty, {name: ema_vote, weight: 0.5}]"]

Prepare = Callable[[int], None] | None


def rlif(size: int, folder: Path, words: list[str], prepare: Prepare = None) -> list[Ended]:
    return run_ranks(size, command, folder, [(words, prepare)] * size)


def trained(size: int, out: Path, changes: list[str], prepare: Prepare = None) -> list[Ended]:
    return rlif(size, out.with_suffix(".said"), ["train", "tiny", "--out", str(out), *changes], prepare)


def lines(ended: list[Ended]) -> list[str]:
    """What the ranks said together, less warnings."""
    return [line for one in ended for line in one.said.splitlines() if not line.startswith("rlif: warning:")]


def numbers(out: Path) -> list[dict[str, Any]]:
    """The log without what the clock and the memory say."""
    clock = ("time", "tokens_per_second", "memory")
    return [
        {key: line[key] for key in line if not key.startswith(clock)} for line in read_metrics(out / "metrics.jsonl")
    ]


def assert_equal(one: Path, other: Path, *, within: float = 0.0) -> None:
    """No number differs by more than ``within``, and on average they differ by a hundredth of that."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    differences = {name: (tensor - second[name]).abs() for name, tensor in first.items()}
    assert max(float(difference.max()) for difference in differences.values()) <= within
    assert max(float(difference.mean()) for difference in differences.values()) <= within / 100.0


def alarm_at_4(rank: int) -> None:
    """A guard says stop at step 4, and on the first rank alone."""
    from rlif.monitoring.guards import Alarm
    from rlif.training import looks

    if rank == 0:
        looks.examine = lambda records: {"agreement": Alarm("stop", "a fall")} if records[-1].step == 4 else {}


def digests(folder: Path, rank: int) -> None:
    """Each rank leaves a digest of its weights after every update in a folder."""
    from rlif.model.fingerprint import weights_digest
    from rlif.training import loop

    real = loop.grpo_step

    def noted(policy: Any, *arguments: Any, **options: Any) -> Any:
        update = real(policy, *arguments, **options)
        with (folder / f"{rank}.digests").open("a") as file:
            file.write(weights_digest(policy.model) + "\n")
        return update

    loop.grpo_step = noted


def work_counted(folder: Path, rank: int, *, also: Prepare) -> None:
    """Each rank leaves how many rows it has read the signals of, and looked for the answers of."""
    from rlif.model import logprobs
    from rlif.monitoring import measurement

    counts = Counter({"signals": 0, "answers": 0})
    read, token_of = logprobs.policy_signals, measurement._token_of

    def counted(name: str, rows: int) -> None:
        counts[name] += rows
        (folder / f"{rank}.work").write_text(json.dumps(counts))

    def policy_signals(policy: Any, rollouts: Any, rows: Any) -> Any:
        counted("signals", len(rows))
        return read(policy, rollouts, rows)

    def found(*arguments: Any) -> Any:
        counted("answers", 1)
        return token_of(*arguments)

    logprobs.policy_signals, measurement._token_of = policy_signals, found
    if also is not None:
        also(rank)


def work(folder: Path, ranks: int) -> list[Counter[str]]:
    return [Counter(json.loads((folder / f"{rank}.work").read_text())) for rank in range(ranks)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with a KL term on two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = trained(2, folder / "two", [*SMALL, "grpo.kl_coef=0.01"], partial(digests, folder))
    assert [one.code for one in ended] == [0, 0]
    return folder


def test_the_ranks_hold_the_same_weights_after_every_update(undisturbed: Path) -> None:
    first, second = ((undisturbed / f"{rank}.digests").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 6


@pytest.mark.parametrize(
    ("changes", "prepare", "last"),
    [(WATCHED, alarm_at_4, 4), (EPOCHS, None, 6)],
    ids=["KL, a probe and a guard that stops", "several optimizer steps and a teacher"],
)
def test_two_ranks_train_as_one_does(tmp_path: Path, changes: list[str], prepare: Prepare, last: int) -> None:
    one, two, done = tmp_path / "one", tmp_path / "two", {}
    for ranks, out in ((1, one), (2, two)):
        (at := tmp_path / f"work of {ranks}").mkdir()
        ended = trained(ranks, out, [*SMALL, *changes], partial(work_counted, at, also=prepare))
        assert [end.code for end in ended] == [0] * ranks
        done[ranks] = work(at, ranks)
    assert sum(done[2], Counter()) == sum(done[1], Counter())  # what was read of the rows was read once, by one of them
    assert 0.3 < done[2][0]["signals"] / done[1][0]["signals"] < 0.7
    assert ended[1].said == ""  # the first speaks for both
    expected, found = numbers(one), numbers(two)
    assert [line["step"] for line in found] == list(range(last + 1))
    for before, now in zip(expected, found, strict=True):
        assert now == {key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in before.items()}
    for file in (f"checkpoints/step-{last:06d}/model.safetensors", "final/model.safetensors"):
        assert_equal(one / file, two / file, within=1e-6)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def killed_in_step_4(rank: int) -> None:
    _in_step(4, rank == 1, lambda: os.kill(os.getpid(), signal.SIGKILL))


def terminated_in_step_4(rank: int) -> None:
    _in_step(4, rank == 1, lambda: os.kill(os.getpid(), signal.SIGTERM))


def out_of_memory_in_step_4(rank: int) -> None:
    """The first rank would never come to the end of that step by itself: it does not wait for the other one, either."""

    def fail() -> None:
        if rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        while True:
            time.sleep(0.01)

    _in_step(4, True, fail)


def _in_step(step: int, here: bool, action: Callable[[], None]) -> None:
    from rlif.training import loop

    real = loop.grpo_step

    def update(*arguments: Any, **options: Any) -> Any:
        nonlocal step
        step -= 1
        if here and step == 0:
            action()
        return real(*arguments, **options)

    loop.grpo_step = update


@pytest.mark.parametrize("ranks", [2, 1])
def test_a_killed_rank_ends_the_run_which_is_resumed_by_any_number(
    undisturbed: Path, tmp_path: Path, ranks: int
) -> None:
    out = tmp_path / "run"
    if ranks == 2:
        ended = trained(2, out, [*SMALL, "grpo.kl_coef=0.01"], killed_in_step_4)
        assert [one.code for one in ended] == [2, -signal.SIGKILL]
        (line,) = lines(ended)
        assert line.startswith("rlif: another rank of this run has gone without a word (")
        assert line.endswith("the last checkpoint is whole: start the same ranks, or another number of them, with "
                             "--resume DIR")  # fmt: skip
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    else:
        shutil.copytree(undisturbed / "two", out)
        for path in ("final", "checkpoints/step-000006"):
            shutil.rmtree(out / path)
    resumed = rlif(ranks, tmp_path / "resumed", ["train", "--resume", str(out)])
    assert [one.code for one in resumed] == [0] * ranks
    whole, within = undisturbed / "two", 0.0 if ranks == 2 else 1e-6
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert_equal(whole / "checkpoints/step-000006" / file, out / "checkpoints/step-000006" / file, within=within)
    if ranks == 2:
        assert numbers(out) == numbers(whole)
    else:
        warned = "went on 2 ranks so far, goes on on 1: the same to rounding, not bit for bit"
        assert warned.replace("on on", "on") in resumed[0].said.replace("on on", "on")
        assert json.loads((out / "run.json").read_text())["ranks"] == 2


def test_a_rank_that_fails_ends_the_others_wherever_they_are(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = trained(2, out, SMALL, out_of_memory_in_step_4)
    assert [one.code for one in ended] == [2, 2]
    (line,) = lines(ended)
    assert line.startswith("rlif: rank 1: step 4: out of memory (CUDA out of memory.); the last good checkpoint is ")
    assert (out / "checkpoints" / "step-000002" / "manifest.json").is_file()


def test_a_signal_to_one_rank_stops_all_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = trained(2, out, SMALL, terminated_in_step_4)
    assert [one.code for one in ended] == [128 + signal.SIGTERM] * 2
    assert lines(ended) == [f"rlif: stopped after step 4 of 6; go on with: rlif train --resume {out}"]
    assert (out / "checkpoints" / "step-000004" / "manifest.json").is_file()


def test_ranks_that_cannot_train_together_say_so_once_and_leave_no_folder(tmp_path: Path, tiny_base_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base_path, other)
    weights = load_file(other / "model.safetensors")
    name = min(weights)
    save_file({**weights, name: weights[name] + 1.0}, other / "model.safetensors", metadata={"format": "pt"})
    cases: dict[str, tuple[list[str], list[str], str]] = {
        "recipe": (["seed=0"], ["seed=1"], "the recipe differs between ranks: seed is 0 on rank 0 and 1 on rank 1"),
        "model": (
            [f"policy.model={tiny_base_path}"],
            [f"policy.model={other}"],
            "what was loaded differs between ranks: policy.model.model.safetensors is ",
        ),
        "prompts": (
            ["rollout.prompts=3"],
            ["rollout.prompts=3"],
            "rollout.prompts: 3 do not divide among 2 ranks; give a multiple of 2",
        ),
        "key": (["grpo.lrr=1"], ["grpo.lrr=1"], "grpo.lrr: unknown key; did you mean grpo.lr?"),
    }
    for case, (*changes, message) in cases.items():
        out = tmp_path / case
        words = [(["train", "tiny", "--out", str(out), *SMALL, *some], None) for some in changes]
        ended = run_ranks(2, command, tmp_path / f"{case}.said", words)
        assert [one.code for one in ended] == [2, 2], case
        (line,) = lines(ended)
        assert message in line, case
        assert not out.exists(), case


def test_torchrun_itself_starts_them(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = ["-m", "rlif", "train", "tiny", "--out", str(tmp_path / "run"), *SMALL, "steps=1", "eval.every=0"]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step    1") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["ranks"] == 2


def optimize(rank: int, folder: Path) -> None:
    """Three steps of AdamW on weights whose numbers three ranks cannot share evenly; what each holds is kept."""
    from rlif.training.launch import joined

    with joined() as ranks:
        model, optimizer = _optimizer(ranks)
        norms = [_step(optimizer, model, ranks.rank, ranks.size) for _ in range(3)]
        held = dict(zip(optimizer.names, optimizer.masters, strict=True))
        moments, whole = optimizer.moments(), optimizer.master_state_dict()
        again = _optimizer(ranks)[1]
        again.restore(moments if ranks.first else {})
        for one, other in zip(optimizer.masters, again.masters, strict=True):
            for field, value in optimizer.inner.state[one].items() if one in optimizer.inner.state else ():
                assert torch.equal(value, again.inner.state[other][field])
        shapes = {name: list(part.shape) for name, part in held.items()}
        if ranks.first:
            save_file({**whole, **{f"moment/{key}": value for key, value in moments.items()}}, folder / "whole")
        (folder / f"{rank}.json").write_text(json.dumps([norms, shapes]))


def _optimizer(ranks: Any) -> tuple[torch.nn.Module, MasterOptimizer]:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(5, 7), "b": torch.nn.Linear(1, 1), "unused": torch.nn.Linear(2, 2)}
    )
    build = lambda masters: torch.optim.AdamW(masters, lr=0.1, weight_decay=0.1)  # noqa: E731
    return model, MasterOptimizer(model, build, compute_dtype=torch.bfloat16, ranks=ranks)


def _step(optimizer: MasterOptimizer, model: Any, rank: int, size: int) -> float:
    """A step on six rows, of which each rank has every n-th."""
    rows = torch.linspace(-1.0, 1.0, 30).view(6, 5)[rank::size].bfloat16()
    for row in rows:
        optimizer.backward((model["b"](model["a"](row)[:1]) ** 2).sum().float() + model["a"](row).sum().float())
    return optimizer.step(0.1, 0.5)


def test_masters_and_moments_in_parts_are_those_of_one_process(tmp_path: Path) -> None:
    assert [one.code for one in run_ranks(3, optimize, tmp_path, [tmp_path] * 3)] == [0, 0, 0]
    model, optimizer = _optimizer(ALONE)
    norms = [_step(optimizer, model, 0, 1) for _ in range(3)]
    expected = {
        **optimizer.master_state_dict(),
        **{f"moment/{key}": value for key, value in optimizer.moments().items()},
    }
    found = load_file(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name
    assert found["moment/unused.weight/step"] == 0.0  # no rank has ever had a gradient for it
    for rank in range(3):
        own_norms, shapes = json.loads((tmp_path / f"{rank}.json").read_text())
        assert own_norms == pytest.approx(norms, rel=1e-5)
        assert shapes["a.weight"] == [12]  # a third of 35, filled up
        assert shapes["b.bias"] == [1]


def test_the_shares_of_all_ranks_are_all_items() -> None:
    for size in (1, 2, 3, 5):
        for count in (0, 1, 4, 7):
            ranks, items = [Group(rank, size) for rank in range(size)], list(range(count))
            assert [item for one in ranks for item in one.block(items)] == items
            assert [item for one in ranks for item in one.balanced(items, [1] * count)] == items
            assert max(len(one.block(items)) for one in ranks) - min(len(one.block(items)) for one in ranks) <= 1


def test_rows_are_shared_by_what_they_weigh() -> None:
    weights = [30, 1, 1, 10, 8, 8, 2]
    shares = [Group(rank, 2).balanced(weights, weights) for rank in (0, 1)]
    assert shares == [[30], [1, 1, 10, 8, 8, 2]]
    assert Group(0, 2).balanced([7], [0]) == [7]  # rows without tokens belong to somebody
    assert ALONE.balanced(weights, weights) == weights
