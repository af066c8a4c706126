"""A model's output is a function of (its own tokens, positions, cache): held, refused, or found out by the guard."""

import copy
import dataclasses
import gc
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP

from rlif.config import GrpoConfig, PolicyConfig, Recipe, RolloutConfig
from rlif.errors import RlifError
from rlif.evals.backends.engine import EngineBackend
from rlif.evals.runner import Candidate
from rlif.evals.runner import evaluate as judge
from rlif.evals.settings import settings_of
from rlif.model import positions
from rlif.model.decoder import Decoder, decoder_of, joined
from rlif.model.logprobs import plain_logprobs, policy_logprobs
from rlif.model.policy import Policy
from rlif.model.positions import alike_up_to, check_alike, limit_passed
from rlif.monitoring import mismatch
from rlif.monitoring.mismatch import Guard, comparable, measure_mismatch, tolerance
from rlif.recipes import parse_recipe
from rlif.rng import Key
from rlif.rollout import decode_batch
from rlif.rollout import engine as rollout
from rlif.rollout.cuda_graphs import CudaGraphBatch
from rlif.rollout.engine import Engine
from rlif.rollout.reference import sample_reference
from rlif.runs.history import read_metrics
from rlif.training.grpo import grpo_step
from rlif.training.loop import resume, train
from rlif.training.optim import MasterOptimizer
from rlif.types import Rollouts, Sampling, Scored, Verdict
from toys import toy_policy, toy_prompts

KEY = Key(seed=3, step=1)
UNEVEN = ["a", "12+34=?", "what is this"]  # 1, 7 and 12 tokens
PLAIN = Sampling(max_new_tokens=8)

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def tiny(kind: str, **sizes: Any) -> Policy:
    """A random model of a ``model_type`` with the tokenizer of the toys; weights enlarged as theirs."""
    torch.manual_seed(0)
    sizes = copy.deepcopy(sizes)  # some configurations write into the mapping of rotary parameters they are given
    common = {"vocab_size": 51, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**common, **sizes)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    return dataclasses.replace(toy_policy(), model=model, source=f"tiny {kind}")


def draw(policy: Policy, texts: list[str] = UNEVEN, sampling: Sampling = PLAIN, **options: Any) -> Rollouts:
    return Engine(policy, **options).sample(toy_prompts(policy, texts), group_size=2, sampling=sampling, key=KEY)


# --- models of many kinds: the engine agrees with the slow reference, or refuses -------------------------------------

HELD = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": LLAMA,
    "opt": {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "phi": LLAMA,
    "phi3": LLAMA,
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 6},
    "olmo": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
    "cohere": LLAMA,
    "granite": LLAMA,
    "mixtral": {**LLAMA, **EXPERTS},
    "olmoe": {**LLAMA, **EXPERTS},
    "lfm2": {**LLAMA, "layer_types": ["conv", "full_attention"]},
    "mistral": LLAMA,
    "qwen2": LLAMA,
}
MINIMAX = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 2}
RECURRENT = {**LLAMA, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16}
RECURRENT.pop("max_position_embeddings")
REFUSED = {
    "recurrent_gemma": (RECURRENT, "answers differently beside another prompt"),  # a state outside the cache
    "bart": (BART, "answers differently beside another prompt"),  # padding has positions
    "roberta": ({**LLAMA, "is_decoder": True}, "answers differently beside another prompt"),  # so has its padding token
    "minimax": ({**LLAMA, **EXPERTS, **MINIMAX}, "takes no key-value cache but a class of its own"),
    "mamba": ({"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, "has no key-value cache to sample with"),
}


@pytest.mark.parametrize("kind", HELD)
def test_the_engine_equals_its_reference_for_models_of_many_kinds(kind: str) -> None:
    policy = tiny(kind, **HELD[kind])
    found = draw(policy, max_rows=4)
    expected = sample_reference(policy, toy_prompts(policy, UNEVEN), group_size=2, sampling=PLAIN, key=KEY)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.signals.logprob, expected.signals.logprob, atol=1e-5, rtol=0)
    assert measure_mismatch(policy, found).mean < 1e-5


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_whose_rows_are_not_what_they_are_alone_is_refused_when_an_engine_is_built(kind: str) -> None:
    sizes, words = REFUSED[kind]
    with pytest.raises(RlifError) as raised:
        Engine(tiny(kind, **sizes))
    assert str(raised.value).startswith(f"model: tiny {kind} {words}")
    assert str(raised.value).endswith("use another model")
    assert "\n" not in str(raised.value)


def test_a_state_outside_the_cache_is_refused_however_small_its_weights_are() -> None:
    policy = tiny("recurrent_gemma", **RECURRENT)
    with torch.no_grad():  # as transformers makes it
        for parameter in policy.model.parameters():
            if parameter.dim() == 2:
                parameter.div_(5.0)
    with pytest.raises(RlifError, match="answers differently"):
        Engine(policy)


@pytest.mark.parametrize("leak", [lambda x: x.shape[0], lambda x: x.shape[1] - 1], ids=["rows", "length"])
def test_a_layer_that_reads_the_batch_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leak: Callable[[Tensor], int]
) -> None:
    """In training before the run's folder is made."""
    plain = Olmo2MLP.forward
    monkeypatch.setattr(Olmo2MLP, "forward", lambda self, x: plain(self, x) + 0.3 * leak(x) * x.roll(1, dims=-1))
    with pytest.raises(RlifError, match="answers differently beside another prompt"):
        Engine(toy_policy("olmo2"))
    with pytest.raises(RlifError, match="a higher max_mismatch accepts it"):
        Engine(toy_policy("olmo2"), max_mismatch=1e-4)
    for accepted in (0.0, 100.0):
        Engine(toy_policy("olmo2"), max_mismatch=accepted)
    toy_policy("olmo2").save(tmp_path / "model")
    with pytest.raises(RlifError, match="answers differently beside another prompt"):
        train(recipe(tmp_path / "model"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(recipe(tmp_path / "model", max_mismatch=0.0), tmp_path / "run") is not None
    config = PolicyConfig(model=str(tmp_path / "model"), dtype="float32")
    with pytest.raises(RlifError, match="answers differently beside another prompt"):
        EngineBackend("model", config)
    EngineBackend("model", config, rollout=RolloutConfig(max_mismatch=0.0))


def test_where_rounding_was_not_measured_the_check_of_rows_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    known = decode_batch._limit_known
    assert [known(dtype, torch.device("cuda")) for dtype in (torch.float32, torch.bfloat16)] == [True, False]
    assert known(torch.bfloat16, torch.device("cpu"))
    monkeypatch.setattr(decode_batch, "_limit_known", lambda *_: False)
    with pytest.warns(RuntimeWarning, match="tiny bart answers differently .*; float32 tells whether it is rounding"):
        Engine(tiny("bart", **BART))


# --- rotary embeddings that change with the longest text --------------------------------------------------------------

LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 9.0, 27.0],
    "original_max_position_embeddings": 24,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
CHANGING: dict[str, Callable[[], Policy]] = {
    "phi3": lambda: tiny("phi3", **LLAMA, rope_parameters=LONG, original_max_position_embeddings=24),
    "llama": lambda: tiny("llama", **LLAMA, rope_parameters=LONG),
    "phimoe": lambda: tiny("phimoe", **LLAMA, rope_parameters={**LONG, "short_mscale": 1.0, "long_mscale": 1.3}),
    # A context beyond the one that the frequencies are for: dynamic NTK goes on, with others at every length.
    "dynamic": lambda: tiny("llama", **{**LLAMA, "max_position_embeddings": 24}, rope_parameters=DYNAMIC),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*rope:UserWarning")


@pytest.mark.parametrize("kind", CHANGING)
def test_within_the_original_context_a_row_does_not_depend_on_a_longer_one(kind: str) -> None:
    policy = CHANGING[kind]()
    texts = ["12+34=?", "what is this now"]  # 7 and 16 tokens, and 8 more: 24 at most
    together, alone = draw(policy, texts), draw(policy, texts[:1])
    assert torch.equal(together.tokens[:2], alone.tokens)
    assert torch.equal(together.mask[:2], alone.mask)
    torch.testing.assert_close(together.signals.logprob[:2], alone.signals.logprob, atol=1e-5, rtol=0)
    rows = range(4)
    update = policy_logprobs(policy, together, rows).detach()
    torch.testing.assert_close(update, together.signals.logprob, atol=1e-5, rtol=0)
    one = policy_logprobs(policy, together, [0]).detach()
    torch.testing.assert_close(one[0], update[0], atol=1e-5, rtol=0)
    assert measure_mismatch(policy, together).mean < 1e-5


@pytest.mark.parametrize("kind", CHANGING)
def test_beyond_the_original_context_the_first_step_does_not_come(kind: str) -> None:
    """25 tokens: beside such a text, transformers turns the others differently."""
    policy = CHANGING[kind]()
    prompts = toy_prompts(policy, ["a", "what is this now?"])
    with pytest.raises(RlifError) as raised:
        Engine(policy).sample(prompts, group_size=2, sampling=PLAIN, key=KEY)
    assert str(raised.value) == (
        f"prompt toy/1: 17 tokens and max_new_tokens 8 exceed the original context of {policy.source} "
        "(24; beyond it a text depends on the longest beside it); give max_new_tokens 7 or less"
    )
    rollouts = draw(policy, ["a"])
    long = dataclasses.replace(rollouts, prompts=tuple(prompts[1:]))
    with pytest.raises(RlifError, match="exceeds the original context of the model"):
        policy_logprobs(policy, long, [0, 1])


@pytest.mark.parametrize("kind", CHANGING)
def test_what_was_run_before_does_not_matter(kind: str) -> None:
    """Dynamic NTK keeps the frequencies of the longest text it met; looking for the limit leaves no trace either."""
    fresh, used = CHANGING[kind](), CHANGING[kind]()
    with torch.no_grad():
        used.model(input_ids=torch.full((1, 60), 7))
    alike_up_to(used.model, 100)
    expected, found = draw(fresh), draw(used)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.signals.logprob, expected.signals.logprob)


@pytest.mark.parametrize("kind", CHANGING)
def test_looking_for_the_limit_leaves_the_model_as_it_was(kind: str) -> None:
    rotary = CHANGING[kind]().model.model.rotary_emb
    before = {name: value.clone() for name, value in rotary.named_buffers()}, rotary.max_seq_len_cached
    policy = CHANGING[kind]()
    assert alike_up_to(policy.model, 100) == 24
    rotary = policy.model.model.rotary_emb
    assert rotary.max_seq_len_cached == before[1]
    assert not hasattr(rotary, "long_inv_freq")
    for name, value in rotary.named_buffers():
        assert torch.equal(value, before[0][name])


@settings(max_examples=25, deadline=None)
@given(original=st.integers(2, 120), tokens=st.integers(1, 130))
def test_the_limit_is_where_the_frequencies_change(original: int, tokens: int) -> None:
    for parameters, at in (({**LONG, "original_max_position_embeddings": original}, original), (DYNAMIC, 128)):
        model = tiny("llama", **{**LLAMA, "num_hidden_layers": 1}, rope_parameters=parameters).model
        assert alike_up_to(model, tokens) == min(tokens, at)


def test_the_limit_is_looked_for_once_in_a_models_life(monkeypatch: pytest.MonkeyPatch) -> None:
    for policy, at in ((CHANGING["phi3"](), 24), (toy_policy("olmo2"), 10**9)):
        assert alike_up_to(policy.model, 7) == 7
        with monkeypatch.context() as patch:
            patch.setattr(positions, "_turns", None)  # not called
            assert [alike_up_to(policy.model, tokens) for tokens in (4, 24, 25, 4000)] == [
                min(tokens, at) for tokens in (4, 24, 25, 4000)
            ]
        assert alike_up_to(policy.model, 5000) == min(5000, at)
        assert alike_up_to(policy.model, 2**16 + 1) == min(2**16 + 1, at)
    known = len(positions._FOUND)
    assert policy.model in positions._FOUND
    del policy
    gc.collect()
    assert len(positions._FOUND) < known


@pytest.mark.parametrize("kind", HELD)
def test_other_models_have_no_such_limit(kind: str) -> None:
    policy = tiny(kind, **HELD[kind])
    check_alike(policy.model, 10**6)
    assert limit_passed(dataclasses.replace(policy, context=None), 10**6) is None
    assert limit_passed(policy, 128) is None
    limit = limit_passed(policy, 129)
    assert limit is not None
    assert (limit.tokens, limit.words) == (128, f"the context of tiny {kind} (128)")


def test_an_evaluation_says_how_many_tokens_are_left(tmp_path: Path) -> None:
    CHANGING["llama"]().save(tmp_path / "long")
    (tmp_path / "t.jsonl").write_text('{"question": "what is this now?", "answer": "1"}\n')
    asked = settings_of(tasks=("t",), data={"t": str(tmp_path / "t.jsonl")}, samples=1, max_new_tokens=9000)
    long = Candidate("long", lambda: EngineBackend("long", PolicyConfig(model=str(tmp_path / "long"), dtype="float32")))
    with pytest.raises(RlifError, match=r"exceed the original context of .*\(24; .*\); give a shorter question"):
        judge([long], asked, tmp_path / "e")


# --- the guard --------------------------------------------------------------------------------------------------------

SAMPLINGS = {
    "plain": PLAIN,
    "greedy": Sampling(temperature=0.0, max_new_tokens=8),
    "hot": Sampling(temperature=1.7, max_new_tokens=8),
    "filtered": Sampling(temperature=0.7, top_p=0.8, top_k=5, max_new_tokens=8),
    "stopped": Sampling(stop=("q", "7", "a"), max_new_tokens=8),
}


def graphs(engine: Engine, rows: int, columns: int, *, room: int) -> CudaGraphBatch:
    decoder = decoder_of(engine.policy.model, joined)
    assert decoder is not None
    return CudaGraphBatch(engine.policy, decoder, rows=rows, columns=columns)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("way", ["llama", "gemma3", "olmo2", "graphs"])
def test_healthy_models_agree_however_they_are_sampled(
    monkeypatch: pytest.MonkeyPatch, way: str, sampling: Sampling
) -> None:
    if way == "graphs":
        monkeypatch.setattr(Engine, "_decode_batch", graphs)
    policy = toy_policy("llama" if way == "graphs" else way)
    found = measure_mismatch(policy, draw(policy, sampling=sampling))
    assert found.mean < 1e-5
    Guard(policy, None).check("here", draw(policy, sampling=sampling))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "olmo2"])
def test_rounding_to_bfloat16_is_within_its_tolerance(family: str) -> None:
    policy = toy_policy(family)
    policy.model.bfloat16()
    assert tolerance(policy) == 0.1
    assert measure_mismatch(policy, draw(policy)).mean < 0.05


@torch.no_grad()
def test_the_plain_forward_pass_knows_nothing_of_ours() -> None:
    """Against a loop over softmaxes in float64; of a model that chooses no logits, too."""
    for policy in (toy_policy(), tiny("gpt_neox", **LLAMA), tiny("bart", **BART)):
        rollouts = draw(toy_policy())
        for row in range(rollouts.n_rows):
            prompt, tokens = rollouts.row_prompts[row].token_ids, rollouts.tokens[row][rollouts.mask[row]]
            text = torch.tensor([[*prompt, *tokens.tolist()]])
            logits = policy.model(input_ids=text).logits[0, len(prompt) - 1 : -1, : policy.vocab_size].double()
            each = [float(z[token].exp() / z.exp().sum()) for z, token in zip(logits, tokens, strict=True)]
            at = torch.arange(0, len(tokens), 2)
            found = plain_logprobs(policy, rollouts, row, at)
            assert found.tolist() == pytest.approx([math.log(p) for p in each[::2]], abs=1e-5)


def test_models_whose_code_comes_with_them_are_asked_for_logits_by_a_number() -> None:
    """They take ``hidden[:, -logits_to_keep:]``: with a list of places that is an error, or the wrong places."""
    policy, asked = toy_policy(), list[Any]()
    rollouts = draw(policy)
    usual: Any = type(policy.model)

    def forward(self: Any, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> Any:
        asked.append(logits_to_keep)
        return usual.forward(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **options)

    policy.model.__class__ = type("Own", (usual,), {"forward": forward, "__module__": "transformers_modules.own"})
    assert measure_mismatch(policy, rollouts).mean < 1e-5
    for row, places in ((0, [0]), (0, [0, 2, 3]), (1, [1])):
        at = torch.tensor(places)
        found = plain_logprobs(policy, rollouts, row, at)
        torch.testing.assert_close(found, rollouts.signals.logprob[row, at], atol=1e-5, rtol=0)
    assert {type(one) for one in asked} == {int}


def test_few_of_many_tokens_are_looked_at() -> None:
    policy = toy_policy()
    options: Any = {"sampling": Sampling(max_new_tokens=100), "key": KEY}
    rollouts = Engine(policy).sample(toy_prompts(policy, UNEVEN), group_size=20, **options)
    found = measure_mismatch(policy, rollouts)
    assert found.rows <= 4
    assert found.tokens <= 4 * 100
    assert measure_mismatch(policy, draw(policy, ["a"])).rows == 2  # all there are


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our decoder, in sampler and trainer, sharpens its distributions by the number of tokens beside each other."""
    plain = Decoder.__call__

    def leaking(self: Decoder, tokens: Tensor, positions: Tensor, attend: Any) -> Tensor:
        return plain(self, tokens, positions, attend) * (1.0 + 0.1 * len(tokens))

    monkeypatch.setattr(Decoder, "__call__", leaking)


def recipe(model: Path, **rollout_keys: Any) -> Recipe:
    return parse_recipe(
        {
            "steps": 3,
            "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
            "task": {"name": "arithmetic"},
            "rollout": {"prompts": 2, "group_size": 2, "max_new_tokens": 8, **rollout_keys},
            "reward": "self_certainty",
            "grpo": {"lr": 1e-4, "kl_coef": 0.0},
            "checkpoint": {"every": 1},
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    toy_policy().save(folder)
    return folder


SAID = r"^step {}: the sampler's log-probabilities are .* nats a token .*, more than rollout\.max_mismatch \(0\.01\)"


@pytest.mark.parametrize("keys", [{}, {"top_p": 0.9, "stop": ["a"]}], ids=str)
def test_a_run_whose_sampler_is_another_policy_ends_at_its_first_step(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    broken(monkeypatch)
    with pytest.raises(RlifError, match=SAID.format(1)) as raised:
        train(recipe(model, **keys), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []
    with pytest.raises(RlifError, match=SAID.format(1)):
        resume(tmp_path / "run")


@pytest.mark.parametrize("limit", [0.0, 500.0])
def test_the_key_lets_it_through(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, limit: float) -> None:
    broken(monkeypatch)
    assert train(recipe(model, max_mismatch=limit), tmp_path / "run") is not None
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(line["mismatch/mean"] > 0.01 for line in lines)


def test_a_resumed_run_is_checked_and_a_healthy_one_never_speaks(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    assert train(recipe(model), tmp_path / "run", until=2) is None
    assert all(line["mismatch/mean"] < 1e-5 for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    broken(monkeypatch)
    with pytest.raises(RlifError, match=SAID.format(3)):
        resume(tmp_path / "run")


def test_a_run_that_breaks_later_is_warned_of(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    """From the second step on; once, for it does not come back."""
    looks = Guard.check

    def then_broken(self: Guard, where: str, rollouts: Rollouts) -> None:
        looks(self, where, rollouts)
        broken(monkeypatch)

    monkeypatch.setattr(Guard, "check", then_broken)
    with pytest.warns(
        RuntimeWarning, match=r"^step \d: mismatch/mean is .* more than rollout\.max_mismatch \(0\.01\)"
    ) as warned:
        train(recipe(model), tmp_path / "run")
    assert len([one for one in warned if "mismatch" in str(one.message)]) == 1


def test_a_warning_comes_once_an_excursion() -> None:
    guard = Guard(toy_policy(), None)
    means = [0.001, 0.02, 0.5, math.nan, 0.03, 0.0, 0.01, 0.011, math.inf]
    assert [step for step, mean in enumerate(means, start=1) if guard.leaves_limit(mean)] == [2, 8]
    silent = Guard(toy_policy(), 0.0)
    assert not silent.leaves_limit(10.0)


@pytest.mark.parametrize("mean", [0.02, math.nan, math.inf])
def test_what_is_no_number_is_no_agreement(monkeypatch: pytest.MonkeyPatch, mean: float) -> None:
    policy = toy_policy()
    monkeypatch.setattr(mismatch, "measure_mismatch", lambda *_: mismatch.Mismatch(mean, mean, 1, 1))
    with pytest.raises(RlifError, match=r"^here: "):
        Guard(policy, None).check("here", draw(policy))
    Guard(policy, 0.0).check("here", draw(policy))


def test_an_evaluation_whose_sampler_is_another_policy_ends_at_its_first_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken(monkeypatch)
    config = PolicyConfig(model="tiny-base", dtype="float32", device="cpu")
    asked = settings_of(tasks=("arithmetic",), limit=2, samples=2, max_new_tokens=12)

    def candidate(limit: float | None) -> Candidate:
        rollout = RolloutConfig(max_mismatch=limit)
        return Candidate("tiny-base", partial(EngineBackend, "tiny-base", config, rollout=rollout))

    with pytest.raises(RlifError, match=r"^arithmetic/.*: the sampler's .* more than max_mismatch \(0\.01\)"):
        judge([candidate(None)], asked, tmp_path / "e")
    assert not list((tmp_path / "e").rglob("*.parquet"))
    for limit in (0.0, 500.0):
        assert judge([candidate(limit)], asked, tmp_path / f"e{limit:g}")["results"]


def test_an_evaluation_looks_again_at_answers_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(Guard, "check", lambda self, where, rollouts: looked.append(int(rollouts.lengths.max())))
    backend = EngineBackend("tiny-base", PolicyConfig(model="tiny-base", dtype="float32", device="cpu"))
    policy = toy_policy()
    lengths = [4, 5, 6, 9, 10, 15, 20, 30, 41, 60]
    for n in lengths:
        backend._check(draw(policy, ["a"], Sampling(max_new_tokens=n, temperature=0.0)))
    assert len(looked) < len(lengths)
    assert looked == sorted(looked)


# --- mismatch/* of an update ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_the_logged_mismatch_is_of_equal_distributions_where_it_is_watched(sampling: Sampling) -> None:
    policy = toy_policy()
    rollouts = draw(policy, sampling=sampling)
    verdicts = (Verdict(right=None, formatted=False, extracted=None),) * rollouts.n_rows
    scored = Scored(rollouts, verdicts, {}, torch.tensor([1.0, -1.0] * 3))
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.SGD(masters, lr=0.1))
    found = grpo_step(policy, optimizer, scored, GrpoConfig(kl_coef=0.0), lr=0.0).metrics["mismatch/mean"]
    assert (found < 1e-5) == comparable(rollouts)


def test_the_check_of_rows_hears_no_hooks() -> None:
    """Somebody who counts forward passes counts those that were asked for."""
    policy, heard = toy_policy("olmo2"), list[Any]()
    policy.model.register_forward_hook(lambda *inputs: heard.append(inputs))
    Engine(policy)
    assert not heard
    rollout.check_context(policy, toy_prompts(policy, ["a"]), 3)
    assert not heard
