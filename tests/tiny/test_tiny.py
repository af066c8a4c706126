"""The tiny models: what they read, how they are made, what ships, what they can do."""

import math
import re
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlif import tiny
from rlif.errors import RlifError
from rlif.tiny import corpus as corpora
from rlif.tiny import measure as measuring
from rlif.tiny import pretrain as recipe
from rlif.tiny.corpus import ALPHABET, BASE, BOILERPLATE, CONNECTIVES, INSTRUCT, Corpus, Example, example
from rlif.tiny.tokenizer import CHAT_TEMPLATE, SPECIAL, build_tokenizer

NAMES = ("tiny-base", "tiny-instruct")

WORKED = re.compile(
    r" (?P<a0>\d)\+(?P<b0>\d)=(?P<units>\d+), (?P<a1>\d)\+(?P<b1>\d)(?P<carry>\+1)?=(?P<tens>\d+), "
    r"(?P<connective>\w+) \\boxed\{(?P<answer>\d+)\}"
)
WAIT = re.compile(r" (?P<a0>\d)\+(?P<b0>\d)=(?P<wrong>\d+), wait,(?P<rest>.+)")


def draw(corpus: Corpus, n: int) -> list[Example]:
    rng = Random(1)
    return [example(rng, corpus) for _ in range(n)]


def bernstein(n: int, p: float, delta: float) -> float:
    """t with P(|share − p| ≥ t) ≤ delta for a share of n draws: 2·exp(−s²/2(np(1−p)+s/3)) = delta, s = n·t."""
    variance, log = n * p * (1 - p), math.log(2 / delta)
    return (log / 3 + math.sqrt(log**2 / 9 + 2 * log * variance)) / n


def steps_of(drawn: Example) -> re.Match[str]:
    text = WAIT.fullmatch(drawn.completion)["rest"] if drawn.form == "wait" else drawn.completion
    match = WORKED.fullmatch(text)
    assert match, drawn
    return match


# --- the corpus ---------------------------------------------------------------------------------------------------


def test_forms_come_in_their_shares() -> None:
    """False alarm for a seed drawn at random: at most 4 · 1e-9 (Bernstein; .03 is known to ±.018)."""
    n = 5_000
    counts = Counter(drawn.form for drawn in draw(BASE, n))
    assert set(counts) == set(BASE.shares)
    assert dict(BASE.shares) == {"worked": 0.62, "bare": 0.20, "wait": 0.15, "boilerplate": 0.03}
    assert (BASE.slip, INSTRUCT.slip, dict(INSTRUCT.shares)) == (0.08, 0.01, {"worked": 1.0})
    for form, share in BASE.shares.items():
        assert abs(counts[form] / n - share) < bernstein(n, share, 1e-9), form


@pytest.mark.parametrize(("corpus", "n"), [(BASE, 5_000), (INSTRUCT, 5_000)])
def test_written_sub_steps_slip_by_one_at_the_stated_rate(corpus: Corpus, n: int) -> None:
    """Units and tens each slip with chance `slip`; false alarm at most 2 · 1e-9 (Bernstein)."""
    written = [drawn for drawn in draw(corpus, n) if drawn.form in ("worked", "wait")]
    slips = Counter()
    for drawn in written:
        step = steps_of(drawn)
        off_units = int(step["units"]) - (int(step["a0"]) + int(step["b0"]))
        off_tens = int(step["tens"]) - (int(step["a1"]) + int(step["b1"]) + (step["carry"] is not None))
        assert abs(off_units) <= 1
        assert abs(off_tens) <= 1
        slips["units"] += off_units != 0
        slips["tens"] += off_tens != 0
    for place in ("units", "tens"):
        assert abs(slips[place] / len(written) - corpus.slip) < bernstein(len(written), corpus.slip, 1e-9), place


def test_errors_propagate_and_nothing_else_is_wrong() -> None:
    """The written digits are the summands', the carry and the answer follow from what was written.

    So a worked answer is right exactly if neither step slipped: a slip of the units changes the last digit for good.
    """
    for drawn in draw(BASE, 3_000):
        if drawn.form not in ("worked", "wait"):
            continue
        step = steps_of(drawn)
        assert (step["a1"] + step["a0"], step["b1"] + step["b0"]) == (str(drawn.a), str(drawn.b))
        assert (step["carry"] is not None) == (int(step["units"]) >= 10)
        assert int(step["answer"]) == 10 * int(step["tens"]) + int(step["units"]) % 10
        assert step["connective"] in CONNECTIVES
        slipped = int(step["units"]) != drawn.a % 10 + drawn.b % 10 or int(step["tens"]) != (
            drawn.a // 10 + drawn.b // 10 + int(step["units"]) // 10
        )
        assert (int(step["answer"]) == drawn.a + drawn.b) == (not slipped)


def test_wait_takes_back_a_gross_error() -> None:
    for drawn in draw(Corpus({"wait": 1.0}, slip=0.0), 500):
        match = WAIT.fullmatch(drawn.completion)
        true = drawn.a % 10 + drawn.b % 10
        assert (int(match["a0"]), int(match["b0"])) == (drawn.a % 10, drawn.b % 10)
        assert (int(match["wrong"]) >= 10) != (true >= 10)
        assert int(WORKED.fullmatch(match["rest"])["answer"]) == drawn.a + drawn.b


def test_the_example_in_the_documentation() -> None:
    ways = {example(Random(seed), Corpus({"worked": 1.0}, slip=0.0), (27, 58)).completion for seed in range(99)}
    assert ways == {rf" 7+8=15, 2+5+1=8, {word} \boxed{{85}}" for word in CONNECTIVES}
    assert example(Random(0), Corpus({"bare": 1.0}, slip=1.0), (27, 58)).completion == " 85"
    assert example(Random(0), Corpus({"boilerplate": 1.0}, slip=1.0), (27, 58)).completion in BOILERPLATE
    assert corpora.prompt_text(27, 58) == "27+58=?"


def test_a_slip_of_nothing_goes_up() -> None:
    """0+0 with slip 1: the units can only become 1; the tens of 10+10 become 1 or 3."""
    answers = {
        steps_of(example(Random(seed), Corpus({"worked": 1.0}, slip=1.0), (10, 10)))["answer"] for seed in range(99)
    }
    assert answers == {"11", "31"}


def test_completions_are_short_and_in_the_alphabet() -> None:
    for drawn in [*draw(BASE, 3_000), *draw(INSTRUCT, 300)]:
        assert set(drawn.prompt + drawn.completion) <= set(ALPHABET)
        assert len(drawn.completion) < 60


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


def test_base_can_do_it_when_sharpened_and_instruct_can_do_it_when_sampled() -> None:
    """At n = 64 the documented .615 and .941 lie 4.9 standard errors apart (false alarm below 1e-6)."""
    base, instruct = (measuring.measure(tiny.path(name), n=64) for name in NAMES)
    assert base.greedy.mean >= 0.95
    assert base.right_and_formatted.mean < instruct.right_and_formatted.mean
    assert base.right_and_formatted.mean <= base.right.mean < base.greedy.mean
    assert base.entropy.mean > 2 * instruct.entropy.mean > 0
    assert base.ended.mean == 1.0


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
    with pytest.raises(RlifError, match="tiny-instruct: is not empty; name another folder with --out"):
        recipe.make(tmp_path, base_steps=1, instruct_steps=1)
    assert (tmp_path / "tiny-instruct" / "mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("")
    with pytest.raises(RlifError, match="cannot make this folder"):
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


def test_estimates_by_hand() -> None:
    """1, 0, 1, 1: mean 3/4, sample variance 1/4, standard error 1/4. Ratio 6/4 with residuals ±.5: see below."""
    share = measuring._estimate([True, False, True, True])
    assert (share.mean, share.error) == (0.75, 0.25)
    assert str(share) == "0.750 ± 0.250"
    # sums 1, 5 over counts 1, 3: ratio 1.5, residuals −.5, .5, their sample sd √.5, over mean count 2 and √2 draws.
    ratio = measuring._ratio(torch.tensor([1.0, 5.0]), torch.tensor([1, 3]))
    assert (ratio.mean, ratio.error) == (1.5, pytest.approx(math.sqrt(0.5) / 2 / math.sqrt(2)))


def test_entropy_is_that_of_a_second_look() -> None:
    """Entropies and mask read while sampling = those of one forward pass over the text; EOS counts, padding doesn't."""
    folder = tiny.path("tiny-base")
    torch.manual_seed(0)
    texts, entropy, mask = measuring._complete(folder, [(27, 58), (99, 99), (40, 31)], 64, sample=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for row, (prompt, text) in enumerate(zip(("27+58=?", "99+99=?", "40+31=?"), texts, strict=True)):
        length = len(text) + 1
        assert mask[row].tolist() == [True] * length + [False] * (mask.shape[1] - length)
        p = model(torch.tensor([tokenizer.encode(prompt + text)])).logits[0, 6:].softmax(-1)
        want = torch.special.entr(p).sum(-1)
        torch.testing.assert_close(entropy[row, :length], want, rtol=1e-3, atol=1e-5)
