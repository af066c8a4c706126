"""Which answers a page shows, and the pieces their tokens are."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlif import tiny
from rlif.analysis.text import count_transitional, transitional_spans
from rlif.report.answers import FLAGS, Candidate, _token_spans, compared, fitting, interleaved, spread
from rlif.report.pieces import find_decoder, pieces


def candidate(place: str, prompt: str, kind: str = "greedy", length: int = 10) -> Candidate:
    return Candidate(None, 0, place, kind, prompt, length)


def byte_level() -> Tokenizer:
    """A tokenizer whose tokens are bytes and a few merges, as those of real models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<eos>"])
    tokenizer.train_from_iterator(["the cat sat on the mat with the hat"], trainer)
    return tokenizer


@pytest.mark.parametrize("text", ["the cat", " the mat", "naïve 😀 中文", "a\n\tb", "", "e\u0301"])
def test_pieces_make_up_the_text(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text).ids

    def decode(tokens: object) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))  # type: ignore[call-overload]

    found = pieces(decode, [*ids, 0])
    assert "".join(found) == text + "<eos>"
    assert len(found) == len(ids) + 1
    for piece in found:
        assert "\ufffd" not in piece, "a part of a character has no text of its own"


def test_bytes_that_are_no_text_stay_visible() -> None:
    tokenizer = byte_level()
    broken = [tokenizer.token_to_id(token) for token in tokenizer.encode("😀").tokens[:2]] * 6
    found = pieces(lambda tokens: str(tokenizer.decode(list(tokens))), broken)
    assert len(found) == len(broken)
    assert "\ufffd" in "".join(found)


def test_the_shipped_models_tokenizer_is_found_by_name(tmp_path: Path) -> None:
    decode = find_decoder(tmp_path, ["tiny-base"])
    assert decode is not None
    tokenizer = Tokenizer.from_file(str(tiny.path("tiny-base") / "tokenizer.json"))
    assert pieces(decode, tokenizer.encode("12+34").ids) == list("12+34")
    assert find_decoder(tmp_path, ["none"]) is None
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "tokenizer.json").write_text("{")
    assert find_decoder(tmp_path, []) is None


def test_compared_answers_are_whole_prompts_at_every_place() -> None:
    places = [str(step) for step in range(5)]
    found = [candidate(p, q, kind) for p in places for q in "abc" for kind in ("greedy", "sampled", "sampled 2")]
    size = found[0].size
    chosen = compared(found, 20 * size)
    assert {(one.prompt_id, one.kind) for one in chosen} == {(q, k) for q in "ab" for k in ("greedy", "sampled")}
    assert len(chosen) == 20
    assert len(compared(found, 10**9)) == len(found)
    assert compared([], 100) == []


def test_where_one_prompt_fills_the_room_places_are_left_out_evenly() -> None:
    found = [candidate(str(step), "a", length=1000) for step in range(101)]
    chosen = compared(found, 20 * found[0].size)
    assert [int(one.place) for one in chosen] == [0, 25, 50, 75, 100]


def test_spread_interleaved_and_fitting() -> None:
    assert spread(list(range(11)), 3) == [0, 5, 10]
    assert spread([1, 2], 5) == [1, 2]
    lists = [[candidate("0", name) for name in names] for names in ("ab", "c", "")]
    assert [one.prompt_id for one in interleaved(lists)] == ["a", "c", "b"]
    sizes = [candidate("0", "a", length=n) for n in (10, 10_000, 10)]
    assert fitting(sizes, 2 * sizes[0].size) == [sizes[0], sizes[2]]


def test_transitional_words_are_found_across_tokens() -> None:
    text = "so 5, wait, let  me\ncheck but no"
    spans = transitional_spans(text)
    assert [text[a:b] for a, b in spans] == ["wait", "let  me\ncheck", "but"]
    assert count_transitional(text) == 3
    texts = ["so 5", ", wa", "", "it, let  m", "e\ncheck b", "ut", " no"]
    assert _token_spans(texts) == [(1, 4), (3, 5), (4, 6)]
    assert _token_spans([]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a plain answer\nof two lines", []),
        ("again and again we go " * 9, ["repeating"]),
        ("half a character \ufffd", ["garbled"]),
        ("bell \x07", ["garbled"]),
        ("中文 and עברית 😀", []),
        ("", []),
    ],
)
def test_flags(text: str, expected: list[str]) -> None:
    assert [name for name, holds in FLAGS.items() if holds(text)] == expected
