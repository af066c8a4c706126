"""The short fine-tuning: its loss and step beside plain transformers, what it shows, and the folder it leaves."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import toy_policy
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlif.config import ArithmeticTask, GrpoConfig, PolicyConfig
from rlif.errors import RlifError, named
from rlif.experiments import sft
from rlif.experiments.sft import Demonstration, SftSettings, demonstrated, fine_tune, speaking
from rlif.experiments.turns import FORMS, turns_of
from rlif.model import registry
from rlif.model.loading import load_policy
from rlif.model.merge import merge
from rlif.tasks.arithmetic import Arithmetic
from rlif.training.optim import MasterOptimizer, NonFiniteError, adamw
from rlif.types import Problem

SHOWN = [
    Demonstration(Problem("one", "12+34=?", "46"), "12 + 34 = 46"),
    Demonstration(Problem("two", "5+6=?", "11"), "5 + 6 = 11, so it is 11"),
    Demonstration(Problem("three", "1+1=?", "2"), "2"),
]
TINY = SftSettings(steps=6, batch=4, lr=1e-3, low=10, high=99, question="{a}+{b}=?", dtype="float32")


# --- one step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
def test_a_step_is_that_of_plain_transformers_and_adamw(family: str) -> None:
    """Rows one by one through transformers' own forward pass, over the true vocabulary, from the answer on."""
    policy = toy_policy(family)
    plain = copy.deepcopy(policy.model)
    batch = demonstrated(policy, "plain", SHOWN, end=1)
    optimizer = MasterOptimizer(policy.model, adamw(GrpoConfig(lr=1e-2)))
    loss = sft._update(policy, optimizer, batch, 1e-2)

    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    total, expected = sum(len(_solution(policy, one)) for one in SHOWN), 0.0
    for shown in SHOWN:
        prompt, solution = list(policy.encode_text(shown.problem.question)[1]), _solution(policy, shown)
        logits = plain(input_ids=torch.tensor([prompt + solution])).logits[0, len(prompt) - 1 : -1, : policy.vocab_size]
        part = torch.nn.functional.cross_entropy(logits, torch.tensor(solution), reduction="sum") / total
        part.backward()
        expected += part.item()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    theirs.step()
    assert loss == pytest.approx(expected, rel=1e-5)
    moved = dict(plain.named_parameters())
    for name, weight in policy.model.named_parameters():
        # AdamW's first step is the sign of a gradient: one that is 0 but for rounding may go either way.
        apart = (weight - moved[name]).abs() > 1e-4
        assert apart.float().mean() < 0.02, name


def _solution(policy: Any, shown: Demonstration) -> list[int]:
    return [*policy.tokenizer("\n" + shown.solution, add_special_tokens=False)["input_ids"], 1]


def test_only_the_answer_and_its_end_are_learnt() -> None:
    policy = toy_policy()
    batch = demonstrated(policy, "plain", SHOWN, end=1)
    assert batch.lengths.tolist() == [len(_solution(policy, shown)) for shown in SHOWN]
    assert [batch.tokens[row][batch.mask[row]][-1].item() for row in range(3)] == [1, 1, 1]
    assert [prompt.text for prompt in batch.prompts] == [shown.problem.question for shown in SHOWN]


def test_in_a_conversation_the_answer_follows_the_turn_that_the_template_opens() -> None:
    policy, end = speaking(load_policy(PolicyConfig(model="tiny-base", dtype="float32")), turns_of(_tiny()))
    batch = demonstrated(policy, "plain", SHOWN, end)
    assert batch.prompts[0].text == "12+34=?\n"
    assert policy.decode(batch.tokens[0][batch.mask[0]].tolist()) == "12 + 34 = 46"
    assert end == policy.tokenizer.eos_token_id
    plain = demonstrated(speaking(policy, None)[0], "plain", SHOWN, end)  # chat off: the line's end is the answer's
    assert plain.texts == batch.texts


def test_a_demonstration_longer_than_the_context_is_refused_by_its_name() -> None:
    long = [Demonstration(Problem("sum 7", "1+1=?", "2"), "2" * 200)]
    with pytest.raises(RlifError, match=r"sum 7: 20\d tokens with its answer exceed the context of toy llama \(128\)"):
        demonstrated(toy_policy(), "plain", long, end=1)


# --- what is shown ------------------------------------------------------------------------------------------------


def test_no_held_out_sum_is_shown_and_each_says_its_own_sum() -> None:
    settings = SftSettings(steps=1, batch=64, low=1, high=20)
    draw = sft._source(settings)
    shown = [one for step in range(1, 8) for one in draw(step)]
    task = Arithmetic(ArithmeticTask(name="arithmetic", low=1, high=20))
    held_out = {problem.id for problem in task.eval_problems(40)}
    assert not held_out & {one.problem.id for one in shown}
    for one in shown:
        left, right = one.solution.split(" = ")
        assert eval(left) == int(right)
        assert one.problem.question == f"What is {left}?"
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_solutions_of_a_file_end_in_the_form_of_the_template_and_each_comes_once_an_epoch(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1=?", "answer": f"One more than {n}.\n#### {n + 1}"} for n in range(6)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = sft._source(SftSettings(data=str(path), batch=3, template="qa"))
    epoch = [*draw(1), *draw(2)]
    assert sorted(one.problem.question for one in epoch) == [row["question"] for row in rows]
    for one in epoch:
        n = int(one.problem.question[0])
        assert one.solution == f"One more than {n}.\n#### {n + 1}"
    boxed = sft._source(SftSettings(data=str(path), batch=3, template="boxed"))(1)[0]
    assert boxed.solution.endswith(rf"The answer is \boxed{{{boxed.problem.answer}}}.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "1+1=?", "answer": "2"}\n', "0 rows with a question, a solution and an answer; give a file"),
        ('{"question": "1+1=?", "answer": "so #### 2"}\n', "1 worked solutions; lower --batch to 1"),
        ("{\n", "own.jsonl:1: not JSON"),
        (None, "own.jsonl: No such file or directory"),
    ],
)
def test_a_file_of_no_use_is_refused_in_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RlifError) as refused, named({"batch": "--batch"}):
        fine_tune("./none", tmp_path / "out", SftSettings(data=str(path), batch=2))
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


# --- turns --------------------------------------------------------------------------------------------------------


def _tokenizer(*words: str, eos: str | None = "<eos>", template: str | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token=eos, bos_token="<unk>", chat_template=template
    )


def _tiny() -> Any:
    return AutoTokenizer.from_pretrained(registry.resolve("tiny-base"))


TALK = [{"role": "user", "content": " 1+1=? "}]
WHOLE = [*TALK, {"role": "assistant", "content": "2"}]


def test_a_model_speaks_in_the_turns_that_its_vocabulary_has() -> None:
    gemma = _tokenizer("<start_of_turn>", "<end_of_turn>")
    turns = turns_of(gemma)
    assert turns.end_id == 3
    opened = gemma.apply_chat_template(TALK, chat_template=turns.template, tokenize=False, add_generation_prompt=True)
    assert opened == "<unk><start_of_turn>user\n1+1=?<end_of_turn>\n<start_of_turn>model\n"
    whole = gemma.apply_chat_template(WHOLE, chat_template=turns.template, tokenize=False)
    assert whole == opened + "2<end_of_turn>\n"
    assert turns_of(_tokenizer("<|im_start|>", "<|im_end|>")).end_id == 3
    assert turns_of(_tokenizer("<|im_start|>", "<|im_end|>")).template == FORMS[1].template
    assert turns_of(_tokenizer()) == sft.Turns(FORMS[2].template, 1)


def test_a_template_of_the_models_own_is_kept_with_the_end_that_it_writes() -> None:
    own = "{{ messages[0]['content'] }}<|im_end|>"
    assert turns_of(_tokenizer("<|im_end|>", template=own)) == sft.Turns(own, 2)
    assert turns_of(_tokenizer("<|im_end|>", template="{{ messages[0]['content'] }}")).end_id == 1  # it never writes it


def test_a_tokenizer_that_can_end_nothing_is_refused() -> None:
    with pytest.raises(RlifError, match="names no EOS token"):
        turns_of(_tokenizer(eos=None))


# --- the folder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("sft") / "tuned"
    steps: list[int] = []
    losses = fine_tune("tiny-base", out, TINY, progress=lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]
    return out, losses


def test_it_learns_and_the_folder_loads_in_plain_transformers_and_here(tuned: tuple[Path, list[float]]) -> None:
    out, losses = tuned
    assert losses[-1] < losses[0] - 1.0
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == [1]
    policy = load_policy(PolicyConfig(model=str(out), dtype="float32"))
    assert policy.chat_template
    assert policy.encode_messages([{"role": "user", "content": "27+58=?"}])[0] == "27+58=?\n"


def test_the_card_says_of_what_it_was_made_and_how_and_no_path(tuned: tuple[Path, list[float]]) -> None:
    out, losses = tuned
    card = (out / "README.md").read_text()
    assert "base_model: tiny-base\n" in card
    assert "tiny-base is under: Apache-2.0." in card
    assert f"Loss {losses[0]:.3f} nats a token at the first step, {losses[-1]:.3f} at the last" in card
    assert "steps: 6\n" in card
    assert str(out.parent) not in card


def test_a_seed_decides_the_weights(tuned: tuple[Path, list[float]], tmp_path: Path) -> None:
    out, losses = tuned
    assert fine_tune("tiny-base", tmp_path / "same", TINY) == losses
    assert (tmp_path / "same/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    other = fine_tune("tiny-base", tmp_path / "other", TINY.model_copy(update={"seed": 1, "steps": 1}))
    assert other[0] != losses[0]


def test_it_merges_with_its_base_as_a_pair_of_one_ancestor(tuned: tuple[Path, list[float]], tmp_path: Path) -> None:
    merge("tiny-base", str(tuned[0]), [0.5], tmp_path / "half")
    sides = [AutoModelForCausalLM.from_pretrained(registry.resolve("tiny-base"), dtype=torch.float32)]
    sides.append(AutoModelForCausalLM.from_pretrained(tuned[0]))
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    one, other, between = (model.model.layers[0].mlp.up_proj.weight for model in (*sides, half))
    assert not torch.equal(one, other)
    torch.testing.assert_close(between, (one + other) / 2)


def test_notices_of_a_fetched_model_travel_with_what_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLIF_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "gemma3-270m"
    folder.mkdir(parents=True)
    for name in ("NOTICE.md", "GEMMA_TERMS.html", registry.MODELS["gemma3-270m"].file):
        (folder / name).write_text(name)
    assert {path.name for path in registry.notices("gemma3-270m")} == {"NOTICE.md", "GEMMA_TERMS.html"}
    assert registry.notices("tiny-base") == registry.notices("some/model") == []


def test_what_is_there_is_left_alone_and_a_failed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with (
        pytest.raises(RlifError, match="there is something already; name a new folder for --out"),
        named({"out": "--out"}),
    ):
        fine_tune("tiny-base", tmp_path / "full", TINY)

    def diverged(*arguments: object) -> float:
        raise NonFiniteError("the gradient norm is nan")

    monkeypatch.setattr(sft, "_update", diverged)
    with (
        pytest.raises(RlifError, match="step 1: the gradient norm is nan; nothing was kept, lower --lr"),
        named({"lr": "--lr"}),
    ):
        fine_tune("tiny-base", tmp_path / "out", TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
