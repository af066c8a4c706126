"""vLLM as the engine, held against ours: the same numbers draw the same tokens, whatever vLLM does with its batch.

A token may differ only if its random number falls within rounding (about 1e-6 in fp32) of the boundary between two
tokens. The numbers are fixed, so on one machine a test passes always or never; on another one the chance that some
token of this file flips is about 2 %.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlif.cli.evaluate import run_eval
from rlif.config import LoraConfig, PolicyConfig, RolloutConfig, VllmConfig
from rlif.errors import RlifError
from rlif.evals.settings import Settings
from rlif.model.loading import load_policy
from rlif.model.lora import adapted_layers, with_adapter
from rlif.model.policy import Policy
from rlif.recipes import find_recipe, load_recipe
from rlif.rng import Key
from rlif.rollout import vllm_engine
from rlif.rollout.engine import Engine, SamplerError
from rlif.rollout.prompts import render
from rlif.rollout.recorder import Recorder
from rlif.rollout.vllm_draw import ROW, Drawing
from rlif.rollout.vllm_engine import VllmEngine
from rlif.runs.layout import resume_with
from rlif.signals import token_signals
from rlif.training.loop import resume, train
from rlif.types import Problem, Prompt, Rollouts, Sampling
from toys import toy_policy, toy_tokenizer

EAGER = RolloutConfig(engine="vllm", max_new_tokens=32, vllm=VllmConfig(memory=0.2, eager=True))
KEY = Key(5, 2)
TINY_BASE = PolicyConfig(model="tiny-base", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return load_policy(TINY_BASE)


@pytest.fixture(autouse=True, scope="module")
def one_server() -> Iterator[None]:
    """It is kept from test to test, as it is from step to step."""
    yield
    vllm_engine._stop()


def sums(policy: Policy, count: int = 4) -> tuple[Prompt, ...]:
    return render(policy, "plain", [Problem(f"sum{i}", f"{12 + 7 * i}+{34 + i}=?") for i in range(count)])


def both(policy: Policy, sampling: Sampling, **options: Any) -> tuple[Rollouts, Rollouts]:
    """The completions of vLLM and ours."""
    given: dict[str, Any] = {"group_size": 4, "sampling": sampling, "key": KEY}
    found = VllmEngine(policy, EAGER.model_copy(update=options)).sample(sums(policy), **given)
    return found, Engine(policy).sample(sums(policy), **given)


def assert_same(found: Rollouts, ours: Rollouts) -> None:
    assert found.texts == ours.texts
    assert found.stop_reasons == ours.stop_reasons
    assert torch.equal(found.tokens, ours.tokens)
    assert torch.equal(found.mask, ours.mask)
    pairs = zip((found.sampler_logprobs, *found.signals), (ours.sampler_logprobs, *ours.signals), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0.0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=32),
        Sampling(temperature=0.0, max_new_tokens=12),
        Sampling(temperature=0.6, top_p=0.9, top_k=7, max_new_tokens=32),
        Sampling(temperature=1.3, max_new_tokens=32, stop=("=", "so")),
    ],
    ids=["plain", "greedy", "filtered", "stop strings"],
)
def test_the_same_completions_as_ours(tiny: Policy, sampling: Sampling) -> None:
    found, ours = both(tiny, sampling)
    assert_same(found, ours)
    if sampling.stop:
        assert "stop_string" in found.stop_reasons
    assert len(set(found.lengths.tolist())) > 1 or sampling.temperature == 0.0


def test_signals_are_those_of_one_plain_forward_pass(tiny: Policy) -> None:
    found, _ = both(tiny, Sampling(temperature=1.2, max_new_tokens=32))
    for row, prompt in enumerate(found.row_prompts):
        tokens = found.tokens[row][found.mask[row]]
        text = torch.tensor([[*prompt.token_ids, *tokens.tolist()]])
        with torch.no_grad():
            logits = tiny.model(input_ids=text).logits[0, len(prompt.token_ids) - 1 : -1].float()
        for mine, plain in zip(found.signals, token_signals(logits, tokens), strict=True):
            torch.testing.assert_close(mine[row][found.mask[row]], plain, atol=2e-4, rtol=0.0)


def test_the_policy_as_it_is_now_is_sampled_from_and_no_other(tiny: Policy) -> None:
    """Weights are handed over before each call: of the head, which is tied, too; and prompts are read anew."""
    other = load_policy(TINY_BASE)
    server = vllm_engine._running
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        with torch.no_grad():
            for parameter in other.model.parameters():
                parameter.data.mul_(1.0 + 0.1 * torch.randn(parameter.shape, generator=generator))
        found, ours = both(other, Sampling(max_new_tokens=16))
        assert_same(found, ours)
        assert found.texts != both(tiny, Sampling(max_new_tokens=16))[0].texts
    assert vllm_engine._running is server  # policies of one shape share it


def test_an_adapter_is_merged(tiny: Policy) -> None:
    base = load_policy(TINY_BASE)
    policy = with_adapter(base, LoraConfig(r=4), base="tiny-base", mark="", seed=0)
    with torch.no_grad():
        for layer in adapted_layers(policy.model).values():
            layer.lora_B.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    found, ours = both(policy, Sampling(max_new_tokens=16))
    assert_same(found, ours)
    assert found.texts != both(tiny, Sampling(max_new_tokens=16))[0].texts


def test_groups_come_as_they_are_finished(tiny: Policy) -> None:
    given: dict[str, Any] = {"group_size": 4, "sampling": Sampling(max_new_tokens=32), "key": KEY}
    drawn: list[int] = []
    parts = list(VllmEngine(tiny, EAGER).groups(sums(tiny), **given, progress=drawn.append))
    whole = Engine(tiny).sample(sums(tiny), **given)
    texts = {prompt.id: part.texts[4 * i : 4 * i + 4] for part in parts for i, prompt in enumerate(part.prompts)}
    assert [text for prompt in whole.prompts for text in texts[prompt.id]] == list(whole.texts)
    assert sum(drawn) == int(whole.mask.sum())
    generator = VllmEngine(tiny, EAGER).groups(sums(tiny), **given)
    next(generator)
    generator.close()  # broken off: vLLM is free for the next
    assert_same(*both(tiny, Sampling(max_new_tokens=32)))


def test_parts_of_a_group_are_what_one_call_draws(tiny: Policy) -> None:
    engine, given = VllmEngine(tiny, EAGER), {"sampling": Sampling(max_new_tokens=16), "key": KEY}
    whole = engine.sample(sums(tiny, 2), group_size=4, **given)
    later = engine.sample(sums(tiny, 2), group_size=2, first_sample=[2, 2], **given)
    assert later.texts == (*whole.texts[2:4], *whole.texts[6:8])


def test_whatever_vllm_does_with_its_batch(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows at a time, prompts in parts of 3 tokens, and a cache in which not even these four find room."""
    cramped = {"max_num_batched_tokens": 7, "max_num_seqs": 4, "block_size": 32, "num_gpu_blocks_override": 6}
    arguments, room = vllm_engine._arguments, vllm_engine._ROOM
    monkeypatch.setattr(vllm_engine, "_ROOM", 64)
    monkeypatch.setattr(vllm_engine, "_arguments", lambda *given: {**arguments(*given), **cramped})
    engine = VllmEngine(tiny, EAGER.model_copy(update={"max_rows": 4}))
    assert room > 64
    server = vllm_engine._running
    assert server is not None
    scheduler, preempted = server._engine.engine_core.engine_core.scheduler, []
    preempt = scheduler._preempt_request
    monkeypatch.setattr(scheduler, "_preempt_request", lambda *given, **more: preempted.append(preempt(*given, **more)))
    draws: list[int] = []
    draw = server._drawing.draw
    monkeypatch.setattr(server._drawing, "draw", lambda *given: draws.append(len(given[0])) or draw(*given))
    given: dict[str, Any] = {"group_size": 4, "sampling": Sampling(max_new_tokens=32), "key": KEY}
    found, ours = engine.sample(sums(tiny), **given), Engine(tiny).sample(sums(tiny), **given)
    assert_same(found, ours)
    assert preempted
    assert sum(draws) > int(found.mask.sum())  # prompts in parts: vLLM asked for more tokens than it took


def qwen3(**common: Any) -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**common, tie_word_embeddings=False))


def gemma3(**common: Any) -> Any:
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**common, sliding_window=6, layer_types=layers, query_pre_attn_scalar=32))


@pytest.mark.parametrize("family", [qwen3, gemma3], ids=["qwen3, head not tied", "gemma3"])
def test_other_families(family: Any) -> None:
    tokenizer = toy_tokenizer()
    torch.manual_seed(0)
    model = family(
        vocab_size=len(tokenizer) + 5,  # rows that pad the vocabulary
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    policy = dataclasses.replace(toy_policy(), model=model, tokenizer=tokenizer, source="a family")
    assert_same(*both(policy, Sampling(max_new_tokens=24)))


def test_a_model_that_vllm_does_not_take_is_one_line() -> None:
    policy = toy_policy()
    policy.model.__class__ = type("OddForCausalLM", (LlamaForCausalLM,), {})
    with pytest.raises(RlifError, match=r"^engine: vLLM does not start with toy llama \(.+\); set it to native$"):
        VllmEngine(policy, EAGER)


def test_logits_that_are_no_numbers_end_it_and_vllm_goes_on(tiny: Policy) -> None:
    broken = load_policy(TINY_BASE)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        both(broken, Sampling(max_new_tokens=8))
    assert_same(*both(tiny, Sampling(max_new_tokens=8)))


def test_threads_stay_ours(tiny: Policy) -> None:
    VllmEngine(tiny, EAGER)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


TINY = find_recipe(Path("tiny"))
RECIPE = (
    *("steps=5", "rollout.prompts=4", "rollout.group_size=4", "rollout.max_new_tokens=24", "policy.dtype=float32"),
    *("eval.every=0", "probe.every=0", "grpo.kl_coef=0.01", "rollout.vllm.eager=true", "rollout.vllm.memory=0.2"),
    *("checkpoint.every=2", "policy.device=cpu"),
)


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_what_it_learns_with_our_engine_and_outlives_a_vllm_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = load_recipe(TINY, [*RECIPE, "rollout.engine=native"])
    train(native, tmp_path / "native")
    steps = VllmEngine.steps
    calls: list[int] = []

    def failing(self: VllmEngine, recorder: Any) -> Iterator[int]:
        calls.append(1)
        if len(calls) == 4:
            server = vllm_engine._running
            assert server is not None
            monkeypatch.setattr(server._engine, "step", lambda: 1 / 0)
        return steps(self, recorder)

    monkeypatch.setattr(VllmEngine, "steps", failing)
    out = tmp_path / "vllm"
    with pytest.raises(RlifError) as failed:
        train(load_recipe(TINY, [*RECIPE, "rollout.engine=vllm"]), out)
    assert not isinstance(failed.value, SamplerError)
    assert str(failed.value) == (
        "step 4: vLLM failed (division by zero); nothing of this step is kept; the last good checkpoint is "
        f"{out}/checkpoints/step-000002; go on from there with: {resume_with(out).python}"
    )
    resume(out)
    found, expected = metrics(out), metrics(tmp_path / "native")
    assert len(found) == len(expected) == 5
    for mine, ours in zip(found, expected, strict=True):
        for key in ("signal/self_certainty", "signal/entropy", "length/mean", "loss", "grad_norm", "kl"):
            assert mine[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5), key
        assert mine["mismatch/max"] < 2e-4
        assert mine["importance/mean"] == pytest.approx(1.0, abs=1e-4)
        assert mine["importance/capped"] == 0.0


def test_an_evaluation_gives_the_same_numbers(tmp_path: Path) -> None:
    settings = Settings(
        tasks=("arithmetic",), limit=8, samples=2, max_new_tokens=48, template="plain", temperature=1.0, baselines=()
    )
    results = {}
    for name in ("native", "vllm"):
        rollout = EAGER.model_copy(update={"engine": name})
        options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "rollout": rollout, "quiet": True}
        run_eval(["tiny-base"], settings, tmp_path / name, **options)
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    mine, ours = (results[name]["results"][0] for name in ("vllm", "native"))
    assert mine["facts"].pop("engine") == f"vllm {VllmEngine(load_policy(TINY_BASE), EAGER).version}"
    assert mine["facts"] == ours["facts"]
    assert ours["metrics"]["right"] > 0.0
    assert mine["metrics"] == pytest.approx(ours["metrics"], rel=1e-3, abs=1e-5, nan_ok=True)


def test_the_v2_interface_by_hand(tiny: Policy) -> None:
    """The class for the runner that needs Triton, called as its source says, gives what the other one gives."""
    from vllm import SamplingParams

    from rlif.rollout.vllm_processors import processor_v2

    prompts, sampling = sums(tiny, 2), Sampling(max_new_tokens=4)
    torch.manual_seed(3)
    logits = torch.randn(4, 2, tiny.vocab_size + 2)  # by token and row
    drawn = []
    for slots in (None, [6, 1]):  # drawn directly; through slots
        drawing = Drawing(tiny.vocab_size)
        recorder = drawing.recorder = Recorder(tiny, prompts, 1, sampling, KEY)
        processor = processor_v2(drawing)(None, SimpleNamespace(max_num_reqs=8, device=torch.device("cpu")))
        for row, slot in enumerate(slots or ()):
            length = len(prompts[row].token_ids)
            assert processor.add_request(slot, SamplingParams(extra_args={ROW: (row, length)}))
        if slots:  # a part of the first prompt, whose draw is thrown away
            ctx = SimpleNamespace(expanded_idx_mapping=torch.tensor([6], dtype=torch.int32), pos=torch.tensor([1]))
            processor.apply(torch.randn(1, tiny.vocab_size + 2), ctx)
        for token in range(4):
            if not slots:
                drawing.draw(logits[token].clone(), None, torch.arange(2), torch.full((2,), token))
                continue
            pos = torch.tensor([len(prompt.token_ids) - 1 + token for prompt in reversed(prompts)])
            ctx = SimpleNamespace(expanded_idx_mapping=torch.tensor([1, 6], dtype=torch.int32), pos=pos)
            left = processor.apply(logits[token].flip(0).clone(), ctx)
            assert (left.isfinite().sum(dim=1) == 1).all()
        drawn.append(recorder.rollouts(range(2)))
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)
    assert_same(*drawn)
