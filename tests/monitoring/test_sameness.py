"""Answers in sentences: groups, frozen answers and agreement by embeddings whose angles are known."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float

import rlif
from encoders import Degrees
from rlif.config import SimilarityConfig
from rlif.errors import RlifError
from rlif.grading.grader import GRADER_VERSION
from rlif.model.fingerprint import weights_digest
from rlif.monitoring.guards import examine
from rlif.monitoring.measurement import Look, judge, measure
from rlif.monitoring.probe import Probe, freeze, kept_reference
from rlif.monitoring.reference import Answer, FrozenAnswer, ReferenceSettings, agreement_of, reference_digest, winner
from rlif.monitoring.sameness import BY_READING, BySimilarity, sameness
from rlif.rng import Key
from rlif.rollout.prompts import prompts_digest
from rlif.types import Problem, Prompt, Sampling
from scripted import Scripted, written

TASK = rlif.task_of([Problem("any", "?", "0")], format="text", name="words")
SETTINGS = ReferenceSettings(Sampling(max_new_tokens=64))
PLAIN = {"sampling": dataclasses.asdict(SETTINGS.sampling), "low_temperature": 0.4, "samples": 16, "seed": 0}


NEAR = BySimilarity(Degrees(), math.cos(math.radians(30.5)))
"""Within 30 degrees two answers are one."""
BY_NEARNESS = dataclasses.replace(SETTINGS, same=NEAR)


def prompts_of(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"{i}?", (3 + i, 4), Problem(f"p{i}", f"{i}?")) for i in range(n)]


def frozen(answer: str | None, rival: str | None = None) -> FrozenAnswer:
    return FrozenAnswer("p", answer, "low" if answer else None, 1.0, 0.5, 1.0, disputed=rival is not None, rival=rival)


def look(texts: list[str], answers: list[FrozenAnswer]) -> Look:
    rollouts = written(prompts_of(len(answers)), texts)
    return Look(rollouts, judge(TASK, rollouts, [one.answer for one in answers], NEAR), answers, same=NEAR)


def test_an_answer_joins_the_first_group_whose_first_member_is_near_enough() -> None:
    assert NEAR.keys(["0 a", "20 b", "40 c", "60 d", "31 e", "-30 f"]) == ["0 a", "0 a", "40 c", "40 c", "40 c", "0 a"]
    assert NEAR.keys(["20 b", "0 a", "40 c", "60 d"]) == ["20 b", "20 b", "20 b", "60 d"]  # the order decides
    assert NEAR.keys(["25 a", "0 b", "50 c"]) == ["25 a", "25 a", "25 a"]  # 0 and 50 are not near each other


def test_an_answer_that_was_not_read_is_in_no_group() -> None:
    assert NEAR.keys([None, "0 a", "", "5 b"]) == [None, "0 a", None, "0 a"]
    assert NEAR.keys([]) == []


def test_one_text_is_itself_at_any_threshold() -> None:
    class Short(Degrees):
        """Vectors a little shorter than 1, as rounding makes them."""

        def embed(self, text: str) -> Float[np.ndarray, " dimension"]:
            return super().embed(text) * (1.0 - 1e-9)

    assert BySimilarity(Short(), 1.0).keys(["7 a", "7 b", "7 a"]) == ["7 a", "7 b", "7 a"]


def test_votes_are_those_of_groups_and_the_first_of_the_greatest_is_the_winner() -> None:
    row = [Answer(text, True) for text in ("90 a", "0 b", "20 c", "100 d", "10 e", "25 f", "180 g", "5 h")]
    found = winner([*row, Answer("0 x", False)], NEAR.keys)  # one that was cut off does not vote
    assert found is not None
    assert found.answer == "0 b"
    assert found.margin == pytest.approx((5 - 2) / 9)
    alone = winner(row)
    assert alone is not None
    assert (alone.answer, alone.margin) == ("90 a", 0.0)  # read, no two of them agree


def test_winners_of_two_sources_agree_if_they_are_near() -> None:
    ones = [winner([Answer(text, True)], NEAR.keys) for text in ("0 a", "0 a", "0 a")]
    others = [winner([Answer(text, True)], NEAR.keys) for text in ("30 b", "31 c", "0 d")]
    assert agreement_of(ones, others, NEAR.keys) == pytest.approx(2 / 3)
    assert agreement_of(ones, others) == 0.0


def test_an_answer_agrees_if_it_is_near_the_frozen_one_and_its_rival_is_told_apart() -> None:
    texts = ["10 w", "29 x", "31 y", "95 z", "-30 w", "140 x", "", "200 z"]
    found = measure(look(texts, [frozen("0 a", rival="40 b"), frozen("0 a", rival="170 b")]), 5)
    assert found.counts["agreement"] == found.counts["content"] == (2, 1)
    assert found.metrics["probe/agreement"] == pytest.approx(3 / 8)
    assert found.metrics["probe/rival/disputed"] == pytest.approx((1 + 2) / 8)  # 29 is near both: the frozen one's
    assert found.metrics["probe/answered"] == pytest.approx(7 / 8)


def test_answers_are_held_beside_each_other_by_the_same_groups() -> None:
    texts = ["10 w", "20 x", "170 y", "180 z", "175 w", "190 x", "165 y", "300 z"]
    found = measure(look(texts, [frozen("0 a"), frozen("250 b")]), 0).metrics
    assert found["probe/self_agreement"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert found["probe/constant"] == pytest.approx(5 / 8)  # about 170, to both prompts
    assert found["probe/distinct"] == 1.0  # 0 leads the first prompt, 170 the second


def test_a_prompt_without_a_frozen_answer_is_not_judged() -> None:
    rollouts = written(prompts_of(1), ["0 a", "10 b"])
    assert [one.right for one in judge(TASK, rollouts, [None], NEAR)] == [None, None]
    assert [one.right for one in judge(TASK, rollouts, ["5 c"], NEAR)] == [True, True]
    assert [one.right for one in judge(TASK, written(prompts_of(1), ["", "9 b"]), ["5 c"], NEAR)] == [False, True]


def varied(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """About 40 i degrees, never twice in the same words."""
    return f"{40 * i + j % 5} {'abcdefghijklmnopqrstuvwxyz'[j]} {sampling.temperature:g} {key.step}"


def test_a_probe_of_sentences_freezes_watches_and_alarms() -> None:
    prompts, engine = prompts_of(9), Scripted(varied)
    unread = freeze(engine, TASK, prompts, SETTINGS)
    assert unread.trust["trusted"] == 0.0
    reference = freeze(engine, TASK, prompts, BY_NEARNESS)
    assert reference.trust["trusted"] == reference.trust["distinct"] == 1.0
    assert reference.trust["disputed"] == 0.0
    assert reference.trust["agree/sampled_low"] == 1.0
    assert [one.answer.split()[0] for one in reference.answers if one.answer] == [str(40 * i) for i in range(9)]
    probe = Probe(engine, TASK, prompts, reference, BY_NEARNESS)
    assert probe.measure(0).metrics["probe/agreement"] == 1.0
    engine.says = lambda i, j, sampling, key: f"{200 + j} to {'abcdefghi'[i]}"
    last = probe.measure(10)
    assert last.counts["content"] == (0, 0, 0, 0, 0, 4, 0, 0, 0)  # 200 is what the start says to prompt 5
    assert last.metrics["probe/constant"] == 1.0
    assert examine(probe.records)["constant_answer"].level == "stop"


def test_frozen_answers_to_other_prompts_are_told_apart_by_the_same_threshold() -> None:
    """0, 15 and 30 degrees are one answer, 90 is another one: 2 of 4."""
    turns = (0, 15, 30, 90)
    engine = Scripted(lambda i, j, sampling, key: f"{turns[i]} to {'abcd'[i]}")
    assert freeze(engine, TASK, prompts_of(4), BY_NEARNESS).trust["distinct"] == 2 / 4
    assert freeze(engine, TASK, prompts_of(4), SETTINGS).trust["distinct"] == 1.0


def test_reading_alone_leaves_the_digest_of_a_reference_what_it_was(tmp_path: Path) -> None:
    engine, prompts = Scripted(varied), prompts_of(3)
    known = (
        weights_digest(engine.policy.model),
        prompts_digest(prompts),
        (TASK.name, sorted(TASK.digests().items()), "text"),
        GRADER_VERSION,
        PLAIN,
    )
    expected = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    assert reference_digest(engine.policy, TASK, prompts, SETTINGS) == expected
    assert kept_reference(tmp_path, engine, TASK, prompts, SETTINGS).digest == expected
    assert kept_reference(tmp_path, engine, TASK, prompts, BY_NEARNESS).digest != expected
    assert len(list(tmp_path.iterdir())) == 2


def test_the_digest_of_a_reference_is_also_of_the_encoder_and_the_threshold() -> None:
    class Other(Degrees):
        digest = "others"

    policy, prompts = Scripted(varied).policy, prompts_of(3)
    kinds = (BY_READING, BySimilarity(Degrees(), 0.8), BySimilarity(Degrees(), 0.9), BySimilarity(Other(), 0.8))
    settings = [dataclasses.replace(SETTINGS, same=kind) for kind in (*kinds, BySimilarity(Degrees(), 0.8))]
    digests = [reference_digest(policy, TASK, prompts, one) for one in settings]
    assert len(set(digests[:4])) == 4
    assert digests[4] == digests[1]


def test_what_an_encoder_cannot_be_is_said_of_the_recipe_s_key() -> None:
    recipe = {"model": "nowhere/at/all", "least": 0.9}
    with pytest.raises(RlifError, match=r"^least: "):
        SimilarityConfig(model="x", least=1.5)
    with pytest.raises(RlifError, match=r"^least: "):
        SimilarityConfig(model="x", least=0.0)
    with pytest.raises(RlifError, match=r"^probe\.similarity\.model: no such folder or file: nowhere/at/all"):
        sameness(SimilarityConfig.model_validate(recipe), torch.device("cpu"))
    assert sameness(None, torch.device("cpu")) is BY_READING
