"""What a user meets on the command line when something is wrong: one line, exit code 2, nothing lost."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rlif
from rlif.cli import main
from rlif.runs.checkpoint import latest_checkpoint, load_checkpoint
from rlif.utils.interrupts import STOP_SIGNALS, AtOnce, stop_on_signal
from toys import toy_policy

SMALL = ["steps=2", "rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "eval.every=0"]


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


class Outcome:
    """What a command left behind: its exit code, and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Call the command line in this process, in a folder of its own; its signal handlers are taken back."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rlif", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Outcome(code, *capfd.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(run, model: Path | str, *changes: str, out: str = "run"):  # type: ignore[no-untyped-def]
    return run("train", "tiny", f"policy.model={model}", *SMALL, *changes, "--out", out)


def assert_one_line(outcome: Outcome, said: str) -> None:
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert outcome.err.startswith("rlif: ")
    assert outcome.err.endswith("\n")
    assert len(outcome.err.splitlines()) == 1, outcome.err


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A disk on which files of that many bytes find no room: the system refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("grpo.lrr=1", "grpo.lrr: unknown key; did you mean grpo.lr?"),
        ("lr=1", "lr: unknown key; did you mean grpo.lr?"),
        ("grpo.betas=[0.9,1.5]", "grpo.betas.1: expected a number below 1"),
        ("grpo.lr=1e39", "grpo.lr: expected 1 or less"),
        ("rollout.group_size=1", "rollout.group_size: 1 makes every advantage 0"),
        ('rollout.stop=[""]', "rollout.stop.0: expected text that is not empty"),
        ("task.question={a}+{b}", "the value is not YAML; text with signs in it stands in quotes"),
        ("policy.model=nowhere", "no such folder or file: nowhere"),
        ("policy.model=nobody/nothing", "no such folder or file: nobody/nothing"),
        ("rollout.max_new_tokens=4000", "exceed the context of"),
        ("task.question='{a}{b}" + "?" * 300 + "'", "exceed the context of"),
        ("log.sinks=[trackio]", "log.sinks: trackio is not usable"),
    ],
)
def test_a_mistake_in_a_recipe(run, toy_model: Path, change: str, said: str) -> None:  # type: ignore[no-untyped-def]
    if "trackio" in change and importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed here")
    assert_one_line(train(run, toy_model, change), said)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"problem": "1+1=?", "answer": "2"}\n{"problem": 1+1}\n', "problems.jsonl:2: not JSON"),
        ('{"problem": "1+1=?", "answer": "2"}\n{"answer": "2"}\n', "problems.jsonl:2: no column 'problem'"),
        ('{"problem": "1+1=?", "answer": "2"}\n{"problem": "2+2=?"}\n', "problems.jsonl:2: no column 'answer'"),
        ("", "problems.jsonl: holds no problems"),
        (None, "problems.jsonl: No such file or directory"),
    ],
)
def test_a_mistake_in_a_file(run, toy_model: Path, tmp_path: Path, lines: str | None, said: str) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    task = {"name": "file", "path": "problems.jsonl", "template": "plain"}
    fields = {"steps": 1, "policy": {"model": str(toy_model)}, "task": task, "reward": "self_certainty"}
    recipe.write_text(json.dumps({**fields, "rollout": {"prompts": 2, "max_new_tokens": 8}}))
    if lines is not None:
        Path("problems.jsonl").write_text(lines)
    assert_one_line(run("train", recipe, "--out", "run"), said)
    assert not Path("run").exists()


def test_an_occupied_folder(run, toy_model: Path) -> None:  # type: ignore[no-untyped-def]
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("precious")
    assert_one_line(train(run, toy_model), "run: not empty; choose a new or an empty folder for --out")
    assert_one_line(run("quickstart", "--out", "run"), "run: not an empty folder, it holds thesis.txt")
    assert os.listdir("run") == ["thesis.txt"]
    Path("run/recipe.yaml").write_text("steps: 3")
    assert_one_line(train(run, toy_model), "run: holds another run")


def test_a_model_that_is_not_finite(run, toy_model: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(toy_model, "spoilt")
    weights = load_file("spoilt/model.safetensors")
    weights["model.norm.weight"].fill_(torch.inf)
    save_file(weights, "spoilt/model.safetensors", metadata={"format": "pt"})
    assert_one_line(train(run, "spoilt"), "step 1: the policy's logits are not finite; nothing of this step is kept")


def test_a_disk_without_room(run, toy_model: Path) -> None:  # type: ignore[no-untyped-def]
    """The last good checkpoint stays, and the run goes on from it when there is room again."""
    weights = toy_model.joinpath("model.safetensors").stat().st_size
    assert train(run, toy_model, "checkpoint.every=1", "steps=1").code == 0
    shutil.rmtree("run/final")
    Path("run/recipe.yaml").write_text(Path("run/recipe.yaml").read_text().replace("steps: 1\n", "steps: 2\n"))
    last = latest_checkpoint(Path("run/checkpoints"))
    with no_file_larger_than(weights // 2):
        outcome = run("train", "--resume", "run")
    assert_one_line(outcome, f"checkpoint not written; the last good checkpoint is {last}")
    assert last is not None
    assert load_checkpoint(last).step == 1
    assert run("train", "--resume", "run").code == 0
    assert Path("run/final/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "tiny", "--otu", "x"], "No such option: --otu"),
        (["train", "no-such-recipe", "--out", "x"], "no such recipe"),
        (["train", "tiny"], "give a folder for the run: rlif train tiny --out DIR"),
        (["train", "--resume", "nowhere"], "nowhere: holds no run"),
        (["quickstart"], "Missing option '--out'; see rlif quickstart --help"),
        (["quickstart", "--out", "x", "--steps", "0"], "Invalid value for '--steps'"),
        (["tiny"], "Missing command; see rlif tiny --help"),
        (["report", "g", "--out"], "Option '--out' requires an argument; see rlif report --help"),
        (["report", "g", "--dark"], "--dark belongs to --figures"),
        (["report", "g", "--serve", "--dark"], "--serve writes no file: leave out --out, --figures and --dark"),
        (["tiny", "make", "--out"], "requires an argument; see rlif tiny make --help"),
        (["sample", "nowhere", "hello"], "MODEL: no such folder or file: nowhere"),
        (["sample", "tiny-base", ""], "PROMPT: it is empty"),
        (["sample", "tiny-base", "1" * 5000], "PROMPT: 5000 tokens and --max-new-tokens 128 exceed the context of"),
        (["sample", "tiny-base", "1", "--chat-template", "on"], "--chat-template: tiny-base has no chat template"),
        (["sample", "tiny-base", "1", "--chat-template", "of"], "--chat-template: 'of'; choose auto, on or off"),
    ],
)
def test_a_mistake_in_the_command(run, arguments: list[str], said: str) -> None:  # type: ignore[no-untyped-def]
    assert_one_line(run(*arguments), said)
    assert os.listdir() == []


def test_the_version_and_the_help(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"rlif {rlif.__version__}\n", "")
    for arguments in ([], ["--help"]):
        outcome = run(*arguments)
        assert outcome.code == 0
        assert "quickstart" in outcome.out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_nothing_runs_yet(  # type: ignore[no-untyped-def]
    run, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int
) -> None:
    """While models load, say: there is nothing to keep."""
    monkeypatch.setattr("rlif.cli.commands.train._begin", lambda *arguments, **options: signal.raise_signal(signum))
    outcome = run("train", "tiny", "--out", "run")
    assert (outcome.code, outcome.err) == (code, "rlif: interrupted\n")


def test_of_a_run_that_is_ended_at_once_is_said_what_is_kept(  # type: ignore[no-untyped-def]
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: object, **options: object) -> None:
        raise AtOnce(signal.SIGINT)

    monkeypatch.setattr("rlif.training.loop.train", train)
    outcome = run("train", "tiny", "--out", "run")
    assert outcome.code == 130
    assert "nothing is kept: the run had not begun; the same command begins it\n" in outcome.out


def test_a_second_signal_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_on_signal() as stop:
        assert stop() == 0
        signal.raise_signal(signal.SIGTERM)
        assert stop() == signal.SIGTERM
        with pytest.raises(AtOnce) as ended:
            signal.raise_signal(signal.SIGINT)
    assert ended.value.args == (signal.SIGINT,)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert capfd.readouterr().err == "\nstopping after this step, with a checkpoint (once more: at once)\n"


def test_what_torchrun_starts_several_times_over_is_refused_unless_it_trains(  # type: ignore[no-untyped-def]
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert_one_line(run("models"), "rlif models: torchrun has started this 2 times over; only train shares its work")


def test_threads_do_not_wait_busily_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    main.prepare()
    assert "GOMP_SPINCOUNT" not in os.environ, "who has asked for something gets it"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    main.prepare()
    assert os.environ.pop("GOMP_SPINCOUNT") == "10000"
