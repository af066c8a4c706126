"""The frozen reference: which answer is chosen from three sources, and how far it says to trust it."""

import json
from pathlib import Path

import pytest

from rlif.errors import RlifError
from rlif.monitoring.reference import (
    Answer,
    FrozenAnswer,
    Reference,
    ReferenceSettings,
    Source,
    choose_reference,
    reference_digest,
    reference_path,
    share_interval,
    trust_numbers,
    winner,
)
from rlif.tasks.base import Task
from rlif.tasks.problems import task_of
from rlif.types import Problem, Sampling
from toys import toy_policy, toy_prompts

SURE = "7777777777777777"


def answers(letters: str, *, ended: bool = True) -> list[Answer]:
    """A letter an answer; a dot is one that could not be read."""
    return [Answer(None if letter == "." else letter, ended) for letter in letters]


def choose(sampled: str, low: str, greedy: str, *, others: int = 0) -> FrozenAnswer:
    """The choice for one prompt, beside ``others`` on which all sources agree: the gate is of all of them."""
    draws: dict[Source, list[list[Answer]]] = {
        "sampled": [answers(sampled), *[answers(SURE)] * others],
        "low": [answers(low), *[answers(SURE)] * others],
        "greedy": [answers(greedy), *[answers("7")] * others],
    }
    return choose_reference([str(i) for i in range(others + 1)], draws)[0]


def test_the_significant_majority_of_the_training_samples_is_chosen_before_a_surer_low_temperature() -> None:
    found = choose("1111111111111222", "2222222222222222", "2", others=3)
    assert (found.answer, found.source, found.trusted) == ("1", "sampled", True)
    assert found.margin == pytest.approx(10 / 16)
    assert found.disputed
    assert found.rival == "2"


def test_an_insignificant_majority_gives_way_to_the_low_temperature() -> None:
    found = choose("1111111111112222", "2222222222222222", "2", others=3)
    assert (found.answer, found.source, found.trusted, found.rival) == ("2", "low", True, "1")
    assert found.margin == 1.0


def test_without_a_significant_majority_the_low_temperature_is_taken_and_not_trusted() -> None:
    found = choose("1111222233334444", "1111111222222333", "1", others=3)
    assert (found.answer, found.source, found.trusted, found.disputed) == ("1", "low", False, False)


def test_a_greedy_answer_is_in_doubt_where_another_source_disagrees_or_no_vote_is_significant() -> None:
    sure, disputed = choose(SURE, SURE, SURE[0], others=3), choose(SURE, SURE, "9", others=3)
    split = choose("1111222233334444", "1111111222222333", "1", others=3)
    assert [one.in_doubt for one in (sure, disputed, split)] == [False, True, True]
    assert [one.disputed for one in (sure, disputed, split)] == [False, True, False]


def test_the_greedy_answer_is_the_last_resort_and_never_trusted() -> None:
    found = choose("................", "................", "5", others=3)
    assert (found.answer, found.source, found.trusted, found.disputed) == ("5", "greedy", False, False)
    assert found.margin == 1.0
    assert found.low < 0.0


def test_a_prompt_without_an_answer_has_no_reference() -> None:
    found = choose("................", "................", ".")
    assert found == FrozenAnswer("0", None, None, 0.0, 0.0, 0.0, disputed=False, rival=None)
    assert not found.trusted


def test_training_samples_that_mostly_ramble_are_not_asked() -> None:
    """As SmolLM2: T = 1 mostly gives nothing, and where it does one and the same answer."""
    draws: dict[Source, list[list[Answer]]] = {
        "sampled": [answers("9999999.........")] * 4,
        "low": [
            answers("1111111111111111"),
            answers("2222222222222222"),
            answers("3333333333333333"),
            answers("." * 16),
        ],
        "greedy": [answers(letter) for letter in "1234"],
    }
    found = choose_reference(["a", "b", "c", "d"], draws)
    assert [one.answer for one in found] == ["1", "2", "3", "4"]
    assert [one.source for one in found] == ["low", "low", "low", "greedy"]
    assert not any(one.disputed for one in found)  # who does not count disputes nothing


def test_training_samples_of_which_few_vote_are_not_asked_however_they_agree() -> None:
    draws: dict[Source, list[list[Answer]]] = {
        "sampled": [answers("1111111.........")] * 4,
        "low": [*[answers("1" * 16)] * 3, answers("2" * 16)],
        "greedy": [answers("1")] * 4,
    }
    assert choose_reference(["a", "b", "c", "d"], draws)[3].answer == "2"
    draws["sampled"] = [answers("11111111........")] * 4  # half of them
    assert choose_reference(["a", "b", "c", "d"], draws)[3].answer == "1"


def test_training_samples_of_another_opinion_than_the_low_temperature_are_not_asked() -> None:
    others: list[list[Answer]] = [answers(letter * 16) for letter in "123"]
    draws: dict[Source, list[list[Answer]]] = {
        "sampled": [answers("9" * 16)] * 3,
        "low": others,
        "greedy": [answers(letter) for letter in "123"],
    }
    assert [one.answer for one in choose_reference(["a", "b", "c"], draws)] == ["1", "2", "3"]
    draws["sampled"] = [*others[:2], answers("9" * 16)]  # of the same opinion on two of three
    assert [one.answer for one in choose_reference(["a", "b", "c"], draws)] == ["1", "2", "9"]


def test_spellings_of_one_number_vote_together_and_do_not_dispute() -> None:
    halves = [Answer(text, True) for text in ("1/2", "0.5", "0.50", "2/4") * 4]
    draws: dict[Source, list[list[Answer]]] = {"sampled": [halves], "low": [answers("." * 16)], "greedy": [halves[1:2]]}
    found = choose_reference(["half"], draws)[0]
    assert (found.answer, found.margin, found.disputed) == ("1/2", 1.0, False)


def test_cut_off_answers_do_not_vote() -> None:
    assert winner(answers("1111", ended=False)) is None
    found = winner([*answers("11"), *answers("222", ended=False)])
    assert found is not None
    assert (found.answer, found.margin) == ("1", 2 / 5)


@pytest.mark.parametrize(
    ("first", "second", "significant"), [(13, 3, True), (12, 4, False), (6, 0, True), (5, 0, False)]
)
def test_the_interval_of_a_margin_excludes_0_where_a_two_sided_sign_test_does(
    first: int, second: int, significant: bool
) -> None:
    low, high = share_interval(first, first + second)
    assert (low > 0.0) is significant
    assert low < (first - second) / (first + second) <= high


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    """6 of 6: the lower end solves θ^6 = .025; 3 of 4: from tables (.1941, .9937)."""
    low, high = share_interval(6, 6)
    assert (low + 1) / 2 == pytest.approx(0.025 ** (1 / 6), abs=1e-9)
    assert high == 1.0
    low, high = share_interval(3, 4)
    assert ((low + 1) / 2, (high + 1) / 2) == pytest.approx((0.1941, 0.9937), abs=1e-4)


def test_who_does_not_vote_narrows_margin_and_interval() -> None:
    """Seven of seven, among 14: half of the margin, half of the interval."""
    found = winner(answers("1111111......."))
    assert found is not None
    assert (found.margin, found.high) == (0.5, 0.5)
    assert found.low == pytest.approx(share_interval(7, 7)[0] / 2)


def test_trust_numbers_count_prompts_and_answers() -> None:
    draws: dict[Source, list[list[Answer]]] = {
        "sampled": [answers("1" * 8), answers("1112222."), answers("33......")],
        "low": [answers("1" * 8), answers("1" * 8), answers("........", ended=False)],
        "greedy": [answers("1"), answers("2"), answers(".", ended=False)],
    }
    found = choose_reference(["a", "b", "c"], draws)
    assert [(one.answer, one.trusted, one.disputed) for one in found] == [
        ("1", True, False),
        ("1", True, True),
        ("3", False, False),
    ]
    trust = trust_numbers(found, draws)
    assert trust["answered"] == 1.0
    assert trust["trusted"] == pytest.approx(2 / 3)
    assert trust["disputed"] == pytest.approx(1 / 3)
    assert trust["distinct"] == pytest.approx(2 / 3)
    assert trust["voting/sampled"] == pytest.approx(17 / 24)
    assert trust["ended/low"] == pytest.approx(2 / 3)
    assert trust["agree/sampled_low"] == 0.5
    assert trust["agree/low_greedy"] == 0.5
    assert trust["from/sampled"] + trust["from/low"] + trust["from/greedy"] == pytest.approx(1.0)
    nothing = choose_reference(["a"], {"sampled": [answers("..")], "low": [answers("..")], "greedy": [answers(".")]})
    numbers = trust_numbers(nothing, {"sampled": [answers("..")], "low": [answers("..")], "greedy": [answers(".")]})
    assert numbers["answered"] == 0.0
    assert "distinct" not in numbers
    assert "agree/sampled_low" not in numbers


def test_a_reference_is_kept_and_read_as_it_was(tmp_path: Path) -> None:
    found = (choose("1111111111111222", "2222222222222222", "2", others=3), choose("..", "..", "."))
    made = Reference("0123456789abcdef", found, {"answered": 0.5}, 12.5, 1000)
    path = made.write(tmp_path / "new")
    assert path == reference_path(tmp_path / "new", "0123456789abcdef")
    assert Reference.read(path) == made


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"digest": "x", "answers": [{"prompt_id": "a"}]})])
def test_a_damaged_reference_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "reference-x.json"
    path.write_text(content)
    with pytest.raises(RlifError, match=r"reference-x\.json: no reference of a probe"):
        Reference.read(path)


def task(name: str = "sums", format: str = "answer_is", answer: str = "2") -> Task:
    """Of one problem, with the digest that it leaves in a run."""
    return task_of([Problem("one", "1+1=", answer)], name=name, format=format)


def test_the_digest_differs_with_whatever_the_reference_depends_on() -> None:
    policy, other = toy_policy(), toy_policy(seed=1)
    settings = ReferenceSettings(Sampling(max_new_tokens=8))
    prompts = toy_prompts(policy, ["1+1=", "2+2="])
    sums = task()
    digests = {
        reference_digest(policy, task(format="boxed"), prompts, settings),
        reference_digest(policy, task(answer="3"), prompts, settings),
        reference_digest(policy, sums, prompts, settings),
        reference_digest(other, sums, prompts, settings),
        reference_digest(policy, task(name="words"), prompts, settings),
        reference_digest(policy, sums, prompts[:1], settings),
        reference_digest(policy, sums, prompts, ReferenceSettings(Sampling(max_new_tokens=9))),
        reference_digest(policy, sums, prompts, ReferenceSettings(Sampling(max_new_tokens=8), low_temperature=0.5)),
        reference_digest(policy, sums, prompts, ReferenceSettings(Sampling(max_new_tokens=8), samples=8)),
        reference_digest(policy, sums, prompts, ReferenceSettings(Sampling(max_new_tokens=8), seed=1)),
    }
    assert len(digests) == 10
    assert reference_digest(toy_policy(), task(), prompts, settings) in digests
