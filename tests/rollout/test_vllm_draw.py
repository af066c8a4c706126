"""Drawing inside vLLM, without vLLM: a batch whose rows come, go and change places, held against plain loops."""

import enum
import math
import random
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlif.rng import Key, uniforms
from rlif.rollout.recorder import Recorder
from rlif.rollout.vllm_draw import ROW, BatchRows, Drawing
from rlif.types import Sampling
from toys import PADDED_ROWS, toy_policy, toy_prompts

POLICY = toy_policy()
WIDTH = POLICY.vocab_size + PADDED_ROWS
KEY = Key(3, 7)


class Direction(enum.Enum):
    """As vLLM's MoveDirectionality."""

    UNIDIRECTIONAL = 0
    SWAP = 1


class Batch:
    """vLLM's V1 batch as its source says it behaves: requests fill it from the front, leave holes that the last ones
    fill, change places, are preempted and come back; a prompt may be read in two parts, and what is drawn after the
    first is thrown away. ``logits`` are functions of (row, how many tokens it has)."""

    def __init__(self, drawing: Drawing, logits: Tensor, limit: int, seed: int) -> None:
        self.drawing, self.logits, self.limit = drawing, logits, limit
        self.random = random.Random(seed)
        self.tokens: list[list[int]] = [[] for _ in logits]
        self.waiting, self.places = list(range(len(logits))), list[int]()
        self.rows = BatchRows()
        self.seen = {"swaps": 0, "moves": 0, "parts": 0, "preempted": 0}

    def change(self, most: int) -> None:
        """One round of the scheduler, told as a ``BatchUpdate``."""
        ended = [i for i, row in enumerate(self.places) if self.done(row)]
        if len(self.places) > 1 and self.random.random() < 0.5 and not ended:
            ended = [self.random.randrange(len(self.places))]
            self.waiting.append(self.places[ended[0]])
            self.seen["preempted"] += 1
        slots: list[int | None] = [None if i in ended else row for i, row in enumerate(self.places)]
        added, moved = [], []
        for place in range(most):
            if place == len(slots):
                slots.append(None)
            if slots[place] is None and self.waiting and (place in ended or place >= len(self.places)):
                row = slots[place] = self.waiting.pop(0)
                added.append((place, SimpleNamespace(extra_args={ROW: (row, 3)}), None, self.tokens[row]))
        while None in slots:  # condensed: the last one fills the first hole
            hole = slots.index(None)
            last = slots.pop()
            if last is not None:
                slots[hole] = last
                moved.append((len(slots), hole, Direction.UNIDIRECTIONAL))
        if len(slots) > 1 and self.random.random() < 0.4:
            a, b = self.random.sample(range(len(slots)), 2)
            slots[a], slots[b] = slots[b], slots[a]
            moved.append((a, b, Direction.SWAP))
        replaced = [place for place, *_ in added]
        self.rows.update([i for i in ended if i not in replaced], added, moved)
        self.seen["swaps"] += any(way is Direction.SWAP for *_, way in moved)
        self.seen["moves"] += any(way is not Direction.SWAP for *_, way in moved)
        self.places = [row for row in slots if row is not None]

    def done(self, row: int) -> bool:
        return len(self.tokens[row]) == self.limit or self.tokens[row][-1:] == [POLICY.eos_ids[0]]

    def run(self, most: int) -> None:
        while self.waiting or self.places:
            self.change(most)
            if not self.places:
                break
            logits = torch.stack([self.logits[row, len(self.tokens[row])] for row in self.places])
            parts = [not self.tokens[row] and self.random.random() < 0.5 for row in self.places]
            self.seen["parts"] += sum(parts)
            for i, part in enumerate(parts):
                if part:  # within the prompt: the logits of another token
                    logits[i] = logits[i].flip(0)
            places, rows, lengths = torch.tensor(self.rows.table()).T
            whole = len(rows) == len(logits)
            self.drawing.draw(logits, None if whole else places, rows, lengths)
            for row, part, token in zip(self.places, parts, logits.argmax(dim=-1).tolist(), strict=True):
                if not part:
                    self.tokens[row].append(token)


def expected(logits: Tensor, numbers: Any, temperature: float) -> tuple[list[int], list[tuple[float, ...]]]:
    """A row's tokens and (sampler, logprob, entropy, self-certainty), in float64, number by number."""
    tokens, values = [], []
    for z, number in zip(logits.double().tolist(), numbers, strict=False):
        z = z[: POLICY.vocab_size]
        total = sum(math.exp(value) for value in z)
        probs = [math.exp(value) / total for value in z]
        pool = [math.exp(value / temperature) for value in z]
        target = number * sum(pool)
        token = next(token for token, running in enumerate(accumulate(pool)) if running > target)
        tokens.append(token)
        entropy = -sum(p * math.log(p) for p in probs)
        certainty = -sum(math.log(p) for p in probs) / len(probs) - math.log(len(probs))
        values.append((math.log(pool[token] / sum(pool)), math.log(probs[token]), entropy, certainty))
        if token == POLICY.eos_ids[0]:
            break
    return tokens, values


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_every_row_gets_its_own_tokens_and_signals_wherever_it_stands(
    either_way: None, temperature: float, seed: int
) -> None:
    limit, prompts = 12, toy_prompts(POLICY, ["12+", "what", "a"])
    recorder = Recorder(POLICY, prompts, 3, Sampling(temperature=temperature, max_new_tokens=limit), KEY)
    torch.manual_seed(seed)
    logits = 2.0 * torch.randn(9, limit, WIDTH)
    logits[..., POLICY.eos_ids[0]] += 1.0  # some rows end early
    logits[..., POLICY.vocab_size :] = 50.0  # padding of the vocabulary: never drawn
    drawing = Drawing(POLICY.vocab_size)
    drawing.recorder = recorder
    batch = Batch(drawing, logits, limit, seed)
    batch.run(most=4)
    assert all(batch.seen.values()), batch.seen  # all of it has happened
    assert recorder.sync() == sum(map(len, batch.tokens))
    assert recorder.completions() == batch.tokens  # what was drawn is what "vLLM" went on from
    rollouts = recorder.rollouts(range(3))
    for row in range(9):
        numbers = uniforms(KEY, prompts[row // 3].id, row % 3, limit)
        tokens, values = expected(logits[row], numbers, temperature)
        assert batch.tokens[row] == tokens
        found = torch.stack([rollouts.sampler_logprobs, *rollouts.signals])[:, row, : len(tokens)].T
        torch.testing.assert_close(found.double(), torch.tensor(values).double(), atol=2e-5, rtol=0.0)


def test_a_request_that_is_none_of_ours_is_left_alone() -> None:
    rows = BatchRows()
    foreign, own = SimpleNamespace(extra_args=None), SimpleNamespace(extra_args={ROW: (0, 2)})
    rows.update([], [(0, foreign, None, []), (1, own, None, [])], [])
    assert rows.table() == [(1, 0, 0)]
    recorder = Recorder(POLICY, toy_prompts(POLICY, ["a"]), 1, Sampling(max_new_tokens=3), KEY)
    drawing = Drawing(POLICY.vocab_size)
    logits = torch.randn(2, WIDTH)
    before = logits.clone()
    places, numbers, lengths = torch.tensor(rows.table()).T
    drawing.draw(logits, places, numbers, lengths)
    assert torch.equal(logits, before)  # nothing is being drawn
    drawing.recorder = recorder
    drawing.draw(logits, places, numbers, lengths)
    assert torch.equal(logits[0], before[0])
    assert logits[1].isfinite().sum() == 1
    rows.update([], [(1, foreign, None, [])], [])  # another request takes the place
    assert rows.table() == []


def test_places_that_are_exchanged_and_left() -> None:
    rows = BatchRows()
    rows.update([], [(i, SimpleNamespace(extra_args={ROW: (10 + i, 2)}), None, [0] * i) for i in range(3)], [])
    rows.update([], [], [(0, 2, Direction.SWAP)])
    assert rows.table() == [(0, 12, 2), (1, 11, 1), (2, 10, 0)]
    rows.update([0], [], [(2, 0, Direction.UNIDIRECTIONAL)])
    assert rows.table() == [(0, 10, 0), (1, 11, 1)]
    rows.update([], [], [(1, 4, Direction.SWAP)])  # with an empty place
    assert rows.table() == [(0, 10, 0), (4, 11, 1)]


def test_a_row_that_has_ended_and_is_asked_once_more_stays_as_it_is() -> None:
    """An engine that schedules ahead of what it knows asks for a token behind the end."""
    recorder = Recorder(POLICY, toy_prompts(POLICY, ["a"]), 1, Sampling(max_new_tokens=3), KEY)
    drawing = Drawing(POLICY.vocab_size)
    drawing.recorder = recorder
    logits = torch.zeros(1, WIDTH)
    logits[0, POLICY.eos_ids[0]] = 100.0
    for length in (0, 1):
        drawing.draw(logits.clone(), None, torch.tensor([0]), torch.tensor([length]))
    assert recorder.completions() == [[POLICY.eos_ids[0]]]
    assert recorder.sync() == 1


def test_logits_that_are_no_numbers_are_told() -> None:
    recorder = Recorder(POLICY, toy_prompts(POLICY, ["a"]), 1, Sampling(max_new_tokens=3), KEY)
    drawing = Drawing(POLICY.vocab_size)
    drawing.recorder = recorder
    drawing.draw(torch.full((1, WIDTH), math.nan), None, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(FloatingPointError, match="not finite"):
        recorder.sync()


def test_stop_strings_seen_in_a_part_of_the_prompt_are_forgotten() -> None:
    stop = POLICY.tokenizer.decode([7])
    recorder = Recorder(POLICY, toy_prompts(POLICY, ["a"]), 1, Sampling(max_new_tokens=3, stop=(stop,)), KEY)
    drawing = Drawing(POLICY.vocab_size)
    drawing.recorder = recorder
    for token, length in ((7, 0), (8, 0), (9, 1), (7, 2)):
        logits = torch.zeros(1, WIDTH)
        logits[0, token] = 100.0
        drawing.draw(logits, None, torch.tensor([0]), torch.tensor([length]))
    assert recorder.completions() == [[8, 9, 7]]
    assert recorder.rollouts([0]).stop_reasons == ("stop_string",)
