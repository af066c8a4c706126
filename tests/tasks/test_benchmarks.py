"""Benchmarks in the hub's own schemas (rows written by us), read from files and through the package datasets."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlif.config import OwnData
from rlif.errors import RlifError
from rlif.tasks.base import digest
from rlif.tasks.benchmarks import BENCHMARKS, find_benchmark, load_benchmark
from rlif.tasks.few_shot import FIXED, read_shots
from rlif.tasks.templates import TEMPLATES, render_messages, render_text

HUB = Path(__file__).parents[1] / "fixtures" / "hub"
FILES = {
    "gsm8k": ("gsm8k_main_test.jsonl", ["63", "3000"], ["gsm8k/test/0", "gsm8k/test/1"]),
    "math500": (
        "math500_test.jsonl",
        [r"\frac{5}{6}", r"\left( 2, \frac{\pi}{2} \right)"],
        ["test/prealgebra/1.json", "test/precalculus/2.json"],
    ),
    "aime2025": ("aime25_test.jsonl", ["70", "588"], ["0", "1"]),
    "math_train": ("math_lighteval_train.jsonl", ["5", "2"], ["math/train/0", "math/train/1"]),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The package datasets, replaced at its one function; returns what it is asked for."""
    asked: list[tuple[Any, ...]] = []
    by_hub = {BENCHMARKS[name].hub: HUB / file for name, (file, _, _) in FILES.items()}

    def load_dataset(path: str, name: str | None = None, *, split: str) -> list[dict[str, Any]]:
        asked.append((path, name, split))
        return [json.loads(line) for line in by_hub[path].read_text().splitlines()]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize("name", FILES)
def test_hub_and_file_give_the_same_problems(name: str, hub: list[tuple[Any, ...]]) -> None:
    file, answers, ids = FILES[name]
    benchmark = find_benchmark(name, data=None)
    from_hub = load_benchmark(benchmark)
    assert [problem.answer for problem in from_hub] == answers
    assert [problem.id for problem in from_hub] == ids
    from_file = load_benchmark(benchmark, OwnData(str(HUB / file)))
    assert from_file == from_hub
    assert digest(from_file) == digest(from_hub) != digest(from_file[:1])
    assert load_benchmark(benchmark, limit=1) == from_hub[:1]


def test_the_hub_is_asked_by_the_published_names(hub: list[tuple[Any, ...]]) -> None:
    for name in FILES:
        load_benchmark(BENCHMARKS[name])
    assert hub == [
        ("openai/gsm8k", "main", "test"),
        ("HuggingFaceH4/MATH-500", None, "test"),
        ("math-ai/aime25", None, "test"),
        ("DigitalLearningGmbH/MATH-lighteval", None, "train"),
    ]


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(RlifError, match=r"openai/gsm8k: cannot be loaded .*no route to host\).*data gsm8k=PATH"):
        load_benchmark(BENCHMARKS["gsm8k"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RlifError, match="pip install datasets"):
        load_benchmark(BENCHMARKS["gsm8k"])


def test_names_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match=r"no benchmark 'gms8k'; did you mean gsm8k\?.*data gms8k=PATH"):
        find_benchmark("gms8k", data=None)
    assert find_benchmark("mine", data="mine.jsonl").schema == "file"
    path = tmp_path / "mine.jsonl"
    path.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "2+2?", "answer": null}\n')
    problems = load_benchmark(find_benchmark("mine", data="mine.jsonl"), OwnData(str(path)))
    assert [problem.answer for problem in problems] == ["2", None]  # what is right is said of the first alone


def test_generated_benchmarks_are_held_out_and_have_a_size() -> None:
    for name in ("arithmetic", "additions"):
        problems = load_benchmark(BENCHMARKS[name])
        assert len(problems) == BENCHMARKS[name].size
        assert load_benchmark(BENCHMARKS[name], limit=3) == load_benchmark(BENCHMARKS[name], limit=3)


def test_worked_examples_stand_before_the_question_in_both_forms() -> None:
    shots = FIXED[:2]
    text = render_text("qa", "How many?", shots)
    assert text == (
        f"Question: {shots[0].question}\nAnswer: {shots[0].reasoning}\n#### 15\n\n"
        f"Question: {shots[1].question}\nAnswer: {shots[1].reasoning}\n#### 104\n\nQuestion: How many?\nAnswer:"
    )
    messages = render_messages("intuitor_small", "How many?", shots[:1])
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"].endswith(r"The answer is \boxed{15}.")
    assert render_text("boxed", "How many?") == render_text("boxed", "How many?", ())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_worked_example_is_in_the_form_that_its_template_asks_for(name: str) -> None:
    from rlif.grading.extraction import EXTRACTORS

    answer = render_messages(name, "?", FIXED[:1])[-2]["content"]
    extract = EXTRACTORS[TEMPLATES[name].format]
    assert extract(answer) == "15"
    assert not any(stop in answer for stop in TEMPLATES[name].stop)


def test_fixed_examples_are_right() -> None:
    """Every equation in a worked example holds, and its last number is the answer."""
    import re

    for shot in FIXED:
        for left, right in re.findall(r"(?<![\w.])(\d[\d. ]*[+*/-][\d. +*/-]*) = (\d+)", shot.reasoning):
            assert eval(left) == int(right), (shot, left)
        assert re.findall(r"\d+", shot.reasoning.replace("4 outcomes", "4"))[-1] == shot.answer


def test_examples_from_training_files(tmp_path: Path) -> None:
    first, second = read_shots(HUB / "gsm8k_main_test.jsonl", 2)
    assert (first.answer, second.answer) == ("63", "3,000")
    assert first.reasoning == "There are 6*12 = 72 eggs.\nAfter that 72-9 = 63 are left."
    assert [shot.answer for shot in read_shots(HUB / "math_lighteval_train.jsonl", 2)] == ["5", "2"]
    with pytest.raises(RlifError, match="0 rows with a question, a solution and an answer, but shots 1"):
        read_shots(HUB / "aime25_test.jsonl", 1)
