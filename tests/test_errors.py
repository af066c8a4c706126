"""Errors speak of arguments, and the edges give these their names."""

import pickle

import pytest

from rlif.cli import main
from rlif.errors import Advice, Argument, RlifError, named
from rlif.utils.interrupts import Interrupted


def test_an_argument_is_called_by_its_own_name_until_an_edge_gives_another() -> None:
    error = RlifError(Argument("model"), ": cannot be read; lower ", Argument("max_new_tokens"))
    assert str(error) == "model: cannot be read; lower max_new_tokens"
    with pytest.raises(RlifError) as caught, named({"model": "policy.model"}):
        raise error
    assert str(caught.value) == "policy.model: cannot be read; lower max_new_tokens"


def test_the_innermost_name_stays() -> None:
    with (
        pytest.raises(RlifError, match=r"^--max-new-tokens: 3$"),
        named({"n": "rollout.n"}),
        named({"n": "--max-new-tokens"}),
    ):
        raise RlifError(Argument("n"), ": 3")


def test_names_survive_the_way_out_of_a_process() -> None:
    with pytest.raises(RlifError) as caught, named({"n": "rollout.n"}):
        raise RlifError(Argument("n"), ": 3")
    assert str(pickle.loads(pickle.dumps(caught.value))) == "rollout.n: 3"


ADVICE = Advice("rlif.resume('a')", "rlif train --resume a")


@pytest.mark.parametrize(
    ("error", "code"), [(RlifError("a: gone; ", ADVICE), 2), (Interrupted(15, "a: gone; ", ADVICE), 143)]
)
def test_advice_is_for_who_reads_it(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise pickle.loads(pickle.dumps(error))

    assert str(error) == "a: gone; rlif.resume('a')"
    monkeypatch.setattr("rlif.training.own_data.find_recipe", broken)
    assert main._outcome(["train", "tiny", "--out", "run"]) == (code, "a: gone; rlif train --resume a")


def test_what_is_not_printable_is_escaped_in_texts_and_names() -> None:
    assert str(RlifError("a\x1b[2J", Argument("b\n"))) == r"a\x1b[2Jb\n"
