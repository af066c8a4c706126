"""The tiny models: how they are made, what ships, what they can do. What they read: test_corpus.py."""

import math
import subprocess
import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlif import tiny
from rlif.config import ArithmeticTask
from rlif.errors import RlifError
from rlif.tasks.arithmetic import Arithmetic
from rlif.tiny import corpus as corpora
from rlif.tiny import measure as measuring
from rlif.tiny import pretrain as recipe
from rlif.tiny.corpus import ALPHABET, BASE, Corpus, Example, example
from rlif.tiny.measure import Answered, Completion, Decoding
from rlif.tiny.tokenizer import CHAT_TEMPLATE, SPECIAL, build_tokenizer

NAMES = ("tiny-base", "tiny-instruct")


def draw(corpus: Corpus, n: int) -> list[Example]:
    rng = Random(1)
    return [example(rng, corpus) for _ in range(n)]


# --- the tokenizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_gives_the_text_back(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path(name))
    texts = [ALPHABET, "", " ", "\n\n  a , b .", *(drawn.prompt + drawn.completion for drawn in draw(BASE, 200))]
    for text in texts:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(range(len(SPECIAL)))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.encode("A") == [2]
    assert len(tokenizer) == len(SPECIAL) + len(ALPHABET)
    assert tokenizer.backend_tokenizer.to_str() == build_tokenizer().backend_tokenizer.to_str()


def test_only_instruct_has_a_chat_template_and_it_adds_nothing() -> None:
    base, instruct = (AutoTokenizer.from_pretrained(tiny.path(name)) for name in NAMES)
    messages = [
        {"role": "system", "content": "never seen"},
        {"role": "user", "content": "11+22=?"},
        {"role": "assistant", "content": " 33"},
        {"role": "user", "content": "27+58=?"},
    ]
    assert base.chat_template is None
    assert instruct.chat_template == CHAT_TEMPLATE
    assert instruct.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "27+58=?"
    assert instruct.apply_chat_template(messages)["input_ids"] == base.encode("27+58=?")


# --- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shipped_folder_loads_in_plain_transformers(name: str) -> None:
    """49·128 embeddings (tied), 4 layers of 4·128² + 3·128·384 + 2·128, a last norm of 128: 859,392 parameters."""
    folder = tiny.path(name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == 49 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128) + 128 == 859_392
    assert model.dtype == torch.float32
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(sizes)
    assert 4 * 859_392 < sizes["model.safetensors"] < 4 * 859_392 + 10_000
    assert sum(sizes.values()) < 4_000_000


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    assert tuple(tiny.TINY_MODELS) == NAMES
    with pytest.raises(RlifError, match="tiny-bass: no tiny model has this name; there are tiny-base, tiny-instruct"):
        tiny.path("tiny-bass")


def test_the_package_is_light() -> None:
    code = "import sys, rlif.tiny; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_folders_say_their_version() -> None:
    for name in NAMES:
        assert AutoConfig.from_pretrained(tiny.path(name)).rlif_tiny_version == tiny.VERSION


SUMS = measuring.held_out_sums(160)
MISCONCEIVED = [(a, b) for a, b in measuring.held_out_sums() if b >= 60 and a % 10 + b % 10 >= 10][:32]
"""Sums in which a carry is more often forgotten than not."""


def decoded(name: str, pairs: list[tuple[int, int]], samples: int, temperature: float | None) -> list[Answered]:
    return measuring.decode(tiny.path(name), pairs, Decoding("", samples, temperature))


@pytest.fixture(scope="module")
def sampled() -> dict[str, list[Answered]]:
    return {name: decoded(name, SUMS, 1, 1.0) for name in NAMES}


@pytest.fixture(scope="module")
def greedy() -> dict[str, list[Answered]]:
    return {name: decoded(name, SUMS, 1, None) for name in NAMES}


@pytest.fixture(scope="module")
def misconceived() -> dict[float, list[Answered]]:
    """Eight answers of tiny-base to each of the sums, by temperature."""
    return {temperature: decoded("tiny-base", MISCONCEIVED, 8, temperature) for temperature in (1.0, 0.4)}


def share(metric: str, answered: Iterable[Answered]) -> float:
    return measuring.estimate(measuring.METRICS[metric], list(answered)).mean


def test_base_leaves_room_when_sampled_and_when_greedy(
    sampled: dict[str, list[Answered]], greedy: dict[str, list[Answered]]
) -> None:
    """The targets of docs/tiny.md; greedy nothing is drawn.

    Sampled, n = 160: .65, .45 and .66 are known to .038 at most: 4 standard errors, a false alarm below 1e-4.
    """
    base = sampled["tiny-base"]
    assert 0.50 < share("right, in any form", base) < 0.80
    assert share("right and formatted", base) < 0.60
    assert 0.50 < share("formatted", base) < 0.81
    assert share("ended by itself", base) > 0.98
    base = greedy["tiny-base"]
    assert 0.70 < share("right, in any form", base) < 0.85
    assert share("right and formatted", base) < 0.60
    assert 0.60 < share("formatted", base) < 0.75


def test_instruct_is_better_both_ways_and_surer(
    sampled: dict[str, list[Answered]], greedy: dict[str, list[Answered]]
) -> None:
    """Sampled .86 against .45, n = 160: the difference is known to .05 (5 standard errors), false alarm below 1e-6."""
    for answers in (sampled, greedy):
        base, instruct = (share("right and formatted", answers[name]) for name in NAMES)
        assert instruct - base > 0.15
        assert 0.72 < instruct < 0.97
    base, instruct = (
        measuring.estimate(measuring.METRICS["mean token entropy, nats"], sampled[name]) for name in NAMES
    )
    assert 0 < instruct.mean < base.mean / 2
    assert base.mean / 2 - instruct.mean > 4 * math.hypot(base.error / 2, instruct.error)


def test_the_greedy_answer_goes_by_the_digits(greedy: dict[str, list[Answered]]) -> None:
    """The carry is forgotten where the second summand begins with 6 or more, the box left out where the first does
    with 3 or less. Nothing is drawn."""
    base, instruct = (greedy[name] for name in NAMES)
    for answers, kept in ((base, 0.2), (instruct, 0.3)):
        assert share("right, in any form", (one for one in answers if one.carries and one.b >= 60)) < kept
        assert share("right, in any form", (one for one in answers if not one.carries or one.b < 50)) > 0.97
    assert share("formatted", (one for one in base if one.a < 40)) < 0.1
    assert share("formatted", (one for one in base if one.a >= 40)) > 0.95
    assert share("formatted", instruct) > 0.98


def test_votes_know_better_than_the_greedy_answer_and_sharpening_knows_less(
    misconceived: dict[float, list[Answered]],
) -> None:
    """32 sums of which greedy has 2. Majority of 8: .60 ± .06, 4 standard errors above .33.

    A carry is forgotten in .67 of the samples at T = 1 and in .89 at T = .4 (n = 256 each, ± .03 and .02): 4 standard
    errors for .07. False alarm below 1e-4.
    """
    alone = decoded("tiny-base", MISCONCEIVED, 1, None)
    assert share("right, in any form", alone) < 0.2
    assert share("majority right, in any form", misconceived[1.0]) > 0.33
    forgets = {temperature: share("forgets the carry", answers) for temperature, answers in misconceived.items()}
    assert forgets[0.4] - forgets[1.0] > 0.07


def test_wait_is_said_where_a_carry_was_forgotten(misconceived: dict[float, list[Answered]]) -> None:
    """.41 of about 170 against .001 of about 85: 4 standard errors (.038) for the first; 5 of 85 have chance 1e-8."""
    assert share('"wait" after a forgotten carry', misconceived[1.0]) > 0.25
    assert share('"wait" elsewhere', misconceived[1.0]) < 0.05


# --- how they are made --------------------------------------------------------------------------------------------


def make_tiny(out: Path, seed: int = 0) -> dict[str, str]:
    """The sha256 of the weights of both models."""
    recipe.make(out, seed=seed, base_steps=3, instruct_steps=2, batch_size=6)
    return {name: sha256((out / name / "model.safetensors").read_bytes()).hexdigest() for name in NAMES}


def test_same_seed_same_weights(tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = make_tiny(tmp_path / "first")
    torch.rand(5)  # whatever the caller drew before must not matter
    assert make_tiny(tmp_path / "second") == first
    assert make_tiny(tmp_path / "third", seed=1)["tiny-base"] != first["tiny-base"]
    assert first["tiny-base"] != first["tiny-instruct"]
    torch.set_rng_state(state)
    make_tiny(tmp_path / "fourth")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_progress_and_the_folders_made(tmp_path: Path) -> None:
    calls = []
    recipe.make(
        tmp_path / "new" / "out",
        base_steps=2,
        instruct_steps=1,
        batch_size=4,
        progress=lambda *call: calls.append(call),
    )
    assert [call[:3] for call in calls] == [("tiny-base", 1, 2), ("tiny-base", 2, 2), ("tiny-instruct", 1, 1)]
    # Untrained: nearly uniform over 49 tokens. Logits of variance 128·.05² cost half of that above ln 49.
    assert calls[0][3] == pytest.approx(math.log(49) + 128 * 0.05**2 / 2, abs=0.3)
    for name in NAMES:
        shipped, made = (
            {file.name for file in folder.iterdir()} for folder in (tiny.path(name), tmp_path / "new/out" / name)
        )
        assert made == shipped


def test_training_lowers_the_loss() -> None:
    """Below 3.25 nats, the entropy of the corpus's characters without context, within 12 small steps."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    stage = recipe.Stage("any", BASE, steps=12, lr=3e-3, chat=False)
    losses = list(recipe._train(recipe._new_model(tokenizer), tokenizer, stage, Random(0), batch_size=8))
    assert max(losses[-3:]) < 2.75 < 3.25 < losses[0]


def test_a_folder_with_something_in_it_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "tiny-instruct").mkdir()
    (tmp_path / "tiny-instruct" / "mine.txt").write_text("keep")
    with pytest.raises(RlifError, match="tiny-instruct: is not empty; name another out"):
        recipe.make(tmp_path, base_steps=1, instruct_steps=1)
    assert (tmp_path / "tiny-instruct" / "mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("")
    with pytest.raises(RlifError, match=r"cannot make it \(Not a directory\); name another out"):
        recipe.make(tmp_path / "file", base_steps=1, instruct_steps=1)


def test_only_completion_and_eos_are_learnt() -> None:
    tokenizer = build_tokenizer()
    pair = [Example(10, 10, "bare", "10+10=?", " 20"), Example(50, 60, "bare", "50+60=?", " 110")]
    tokens, labels = recipe.collate(tokenizer, pair)
    assert tokenizer.decode(tokens[0]) == "10+10=? 20<eos><pad>"
    assert tokenizer.decode(tokens[1]) == "50+60=? 110<eos>"
    assert labels[0].tolist() == [-100] * 7 + [*tokenizer.encode(" 20"), 1, -100]
    assert labels[1].tolist() == [-100] * 7 + [*tokenizer.encode(" 110"), 1]


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of the plain mean over completion tokens, computed without padding, one row at a time."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = recipe._new_model(tokenizer)
    examples = draw(BASE, 7)
    nats, count = torch.zeros(()), 0
    for drawn in examples:
        ids = torch.tensor([[*tokenizer.encode(drawn.prompt + drawn.completion), 1]])
        logprobs = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        nats, count = nats - logprobs[len(drawn.prompt) - 1 :].sum(), count + len(drawn.completion) + 1
    (nats / count).backward()
    want = [parameter.grad.clone() for parameter in model.parameters()]
    for parts in (1, 3):
        monkeypatch.setattr(recipe, "PARTS", parts)
        model.zero_grad()
        assert recipe._backward(model, tokenizer, examples) == pytest.approx((nats / count).item(), rel=1e-5)
        for parameter, gradient in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


# --- how they are measured ----------------------------------------------------------------------------------------


def answered(*texts: str) -> Answered:
    """27+58 answered so; each text of one token and a nat."""
    return Answered(27, 58, [Completion(text, 1, 1.0, True) for text in texts])


def test_estimates_by_hand() -> None:
    """Sums 1, 5 over counts 1, 3: ratio 1.5, residuals −.5, .5, sample sd √.5, times √2 problems over 4 counts: .25."""
    problems = [Answered(1, 1, ()), Answered(5, 3, ())]
    assert measuring.estimate(lambda one: (one.a, one.b), problems) == (1.5, pytest.approx(0.25))
    # One sample a problem: the usual standard error. 1, 0, 1, 1: mean 3/4, sample variance 1/4, √(1/4 / 4).
    share = measuring.estimate(lambda one: (one.a, 1), [Answered(a, 0, ()) for a in (1, 0, 1, 1)])
    assert share == (0.75, pytest.approx(0.25))
    assert str(share) == "0.750 ± 0.250"


def test_metrics_by_hand() -> None:
    one = answered(
        r" 7+8=15, 2+5+1=8, so \boxed{85}",
        " 7+8=15, 2+5=7, so it is 75.",
        r" 7+8=15, 2+5=7, wait, 2+5+1=8, thus \boxed{85}",
        r" 7+8=9, 2+5=7, so \boxed{79}",  # nothing to carry was written
        " 85",
        " well, wait.",
    )
    counts = {
        "right, in any form": (3, 6),
        "right and formatted": (2, 6),
        "formatted": (3, 6),
        "majority right, in any form": (1, 1),
        "forgets the carry": (2, 6),
        '"wait" after a forgotten carry': (1, 2),
        '"wait" elsewhere': (1, 4),
        "ended by itself": (6, 6),
        "mean token entropy, nats": (6, 6),
        "tokens with EOS": (6, 6),
    }
    assert {name: metric(one) for name, metric in measuring.METRICS.items()} == counts


def test_a_tied_vote_is_drawn_and_silence_does_not_vote() -> None:
    majority = measuring.METRICS["majority right, in any form"]
    assert majority(answered(" 85", " 75", " 85", " 75", " 95")) == (0.5, 1)
    assert majority(answered(" 85", " no", " no")) == (1, 1)
    assert majority(answered(" no")) == (0, 1)


def test_held_out_sums_are_those_of_the_task() -> None:
    sums = measuring.held_out_sums()
    task = Arithmetic(ArithmeticTask(name="arithmetic", low=10, high=99))
    assert {f"arithmetic/{a}+{b}" for a, b in sums} == {problem.id for problem in task.eval_problems(len(sums))}
    assert measuring.held_out_sums(5) == sums[:5]


def test_entropy_is_that_of_a_second_look() -> None:
    """Entropies added up while sampling = those of one forward pass over the text; EOS counts, padding does not."""
    folder = tiny.path("tiny-base")
    found = measuring.decode(folder, [(27, 58), (99, 99), (40, 31)], Decoding("", 2, 1.0), max_new_tokens=64)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert [(one.a, one.b) for one in found] == [(27, 58), (99, 99), (40, 31)]
    for one in found:
        for text, tokens, nats, ended in one.completions:
            assert (tokens, ended) == (len(text) + 1, True)
            ids = tokenizer.encode(corpora.prompt_text(one.a, one.b) + text)
            probabilities = model(torch.tensor([ids])).logits[0, 6:].softmax(-1)
            assert nats == pytest.approx(torch.special.entr(probabilities).sum().item(), rel=1e-3, abs=1e-4)
    assert len({done.text for one in found for done in one.completions}) > 3  # each row is drawn for itself
