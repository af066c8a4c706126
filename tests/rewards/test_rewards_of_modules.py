"""Rewards that a recipe names by module and function: found in the current folder, told of, imported, blamed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_own_rewards import INPUTS, ROLLOUTS

import rlif
from rlif.config import AdvantageConfig, NegatedConfig, RewardConfig
from rlif.errors import RlifError
from rlif.rewards import registry
from rlif.rewards.registry import find_reward, needs_labels
from rlif.rewards.score import score
from rlif.rng import Key
from rlif.utils import own_code

MINE = '''\
"""Rewards of a user."""
import rlif

def brief(inputs):
    "Minus the characters."
    return [-len(text) for text in inputs.rollouts.texts]

brief.uses_labels = False

def weighty(inputs, config):
    return [config.weight] * inputs.rollouts.n_rows

@rlif.register_reward("registered", uses_labels=False, meaning="ones")
def ones(inputs):
    return [1.0] * inputs.rollouts.n_rows

ready = rlif.Reward("ready", "twos", "ours", False, lambda inputs, config: (inputs.rollouts.lengths * 0 + 2).float())
number = 3

def raises(inputs):
    return 1 / 0

def nans(inputs):
    return [0.0, float("nan")]

def texts(inputs):
    return ["a", "b"]
'''


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test in an empty folder; what it imports and registers is forgotten."""
    known, modules = dict(registry._known), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(own_code, "_folders", [])
    monkeypatch.setattr(own_code, "_told", set())
    yield
    registry._known.clear()
    registry._known.update(known)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine_a.py").write_text(MINE)
    return tmp_path


def values(name: str, **options: float) -> list[float]:
    config = RewardConfig(name=name, **options)
    return find_reward(config).function(INPUTS, config).tolist()


@pytest.mark.usefixtures("mine")
def test_a_function_of_the_current_folder_is_a_reward_with_or_without_its_section() -> None:
    assert values("mine_a:brief") == [-1.0, -2.0]  # texts a and bb
    assert values("mine_a:weighty", weight=3.0) == [3.0, 3.0]
    assert values("mine_a:ready") == [2.0, 2.0]
    assert values("mine_a:ones") == [1.0, 1.0]
    negated = NegatedConfig(of="mine_a:brief")
    assert find_reward(negated).function(INPUTS, negated).tolist() == [1.0, 2.0]


@pytest.mark.usefixtures("mine")
def test_a_function_is_taken_to_use_labels_unless_it_says_otherwise() -> None:
    names = ("brief", "weighty", "ones", "ready")
    assert needs_labels([RewardConfig(name=f"mine_a:{name}") for name in names]) == ["mine_a:weighty"]
    assert find_reward(RewardConfig(name="mine_a:ones")).meaning == "ones"


def test_a_module_is_named_once_on_stderr_before_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine_b.py").write_text("import sys\nprint('runs', file=sys.stderr)\ndef f(inputs): return [1, 2]\n")
    values("mine_b:f")
    values("mine_b:f")
    told, runs = capsys.readouterr().err.splitlines()
    assert told == f"rlif: reward mine_b:f: importing {tmp_path / 'mine_b.py'}, which runs its code"
    assert runs == "runs"


def test_a_module_of_a_package_finds_its_neighbours_also_later(tmp_path: Path) -> None:
    (tmp_path / "pack_a" / "deep").mkdir(parents=True)
    (tmp_path / "pack_a" / "__init__.py").write_text("")
    (tmp_path / "pack_a" / "deep" / "own.py").write_text(
        "def f(inputs):\n    import pack_a.late\n    return pack_a.late.V\n"
    )
    (tmp_path / "pack_a" / "late.py").write_text("V = [5.0, 6.0]\n")
    assert values("pack_a.deep.own:f") == [5.0, 6.0]


def test_another_folder_is_searched_behind_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "mine_c.py").write_text("def f(inputs): return [1, 2]\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(RlifError, match=r"reward mine_c:f: no module mine_c in .*elsewhere.*none of this name is inst"):
        find_reward(RewardConfig(name="mine_c:f"))
    own_code.also_search(tmp_path)
    assert values("mine_c:f") == [1.0, 2.0]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine_a:breif", r"reward mine_a:breif: \S+mine_a.py has no breif; did you mean brief\?"),
        ("mine_a:number", "reward mine_a:number: a int; expected a function"),
        ("no_such_module_a:f", "reward no_such_module_a:f: no module no_such_module_a in"),
        ("broken_a:f", r"importing broken_a failed \(SyntaxError: .*, broken_a.py:2\)"),
        ("leaves_a:f", r"importing leaves_a failed \(SystemExit: 1, leaves_a.py:1\)"),
        ("lacks_a:f", r"importing lacks_a failed \(ModuleNotFoundError: No module named 'no_such_b', lacks_a.py:1\)"),
        ("json:f", "reward json:f: json is already .*json/__init__.py; give .*json.py another name"),
        ("os:system", "reward os:system: os is a module of Python itself; name one of yours"),
        ("typer.main:f", r"reward typer.main:f: \S+typer/main.py has no f; did you mean"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_module_and_function(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "broken_a.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "leaves_a.py").write_text("raise SystemExit(1)\n")
    (tmp_path / "lacks_a.py").write_text("import no_such_b\n")
    (tmp_path / "json.py").write_text("def f(inputs): return [1, 2]\n")
    with pytest.raises(RlifError, match=said) as raised:
        find_reward(RewardConfig(name=name))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", r"step 1: reward mine_a:raises: it raised ZeroDivisionError: division by zero, mine_a.py:21; mend"),
        ("nans", "step 1: reward mine_a:nans of a completion of prompt p is nan"),
        ("texts", "step 1: reward mine_a:texts: returned a list that is no list of numbers"),
    ],
)
def test_a_reward_that_fails_names_step_module_and_line(function: str, said: str) -> None:
    mix = [RewardConfig(name=f"mine_a:{function}")]
    with pytest.raises(RlifError, match=said):
        score(ROLLOUTS, INPUTS.verdicts, mix, AdvantageConfig(), Key(0, 1))


def test_an_installed_module_is_found_without_being_run() -> None:
    code = "from rlif.utils.own_code import find; import sys; print(find('jinja2.loaders:f', 'reward').file)"
    code += "; print('jinja2' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told[0].endswith("jinja2/loaders.py")
    assert told[1] == "False"


def test_a_path_is_no_reference() -> None:
    for name in ("self_certainty", "a.b", "a:b:c", "a/b:c", "a:b.c", ":f", "a:", "1a:f", "C:\\x", "a: b"):
        assert not own_code.is_reference(name), name
    assert own_code.is_reference("my_rewards:brief")
    assert rlif.REWARDS  # nothing was added
