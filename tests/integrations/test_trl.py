"""rlif inside TRL in one process: signals, rollouts, agreement, probe and guard, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rlif
from encoders import save_toy_encoder
from rlif.config import RewardConfig
from rlif.errors import RlifError
from rlif.integrations import trl_callbacks, trl_rewards
from rlif.integrations.trl import AgreementProbe, AgreementReward, CollapseGuard, EngineRollouts, InternalReward
from rlif.integrations.trl_batch import joined, runs_of, sampling_of, tokenized
from rlif.integrations.trl_scoring import check_layout
from rlif.model.in_training import sampling_mode
from rlif.model.policy import Policy
from rlif.monitoring.record import ProbeRecord
from rlif.rewards.base import RewardInputs
from rlif.rewards.registry import REWARDS
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Sampling
from rlif.utils import packages
from scripted import written
from toys import toy_policy, toy_prompts

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL, accelerate and transformers warn about themselves

PROMPTS = ["12+34=?", "a", "what is this"]


def trainer(policy: Policy, out: Path, **options: Any) -> Any:
    """A GRPOTrainer on a toy, as TRL configures it by default: gradient checkpointing on."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    own = ("reward_funcs", "callbacks", "rollout_func")
    parts = {name: options.pop(name) for name in own if name in options}
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.01,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        args=GRPOConfig(**{**settings, **options}),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        **parts,
    )


class Spy:
    """A reward function that looks at what it is given, and passes it on or not."""

    __name__ = "spy"

    def __init__(self, look: Callable[..., Any]) -> None:
        self.look, self.seen = look, list[Any]()

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **given: Any) -> list[float]:
        self.seen.append(self.look(prompts=prompts, completion_ids=completion_ids, **given))
        return [0.0] * len(prompts)


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
def test_a_pass_in_the_middle_of_training_gives_the_engine_s_signals(family: str, tmp_path: Path) -> None:
    """Gradient checkpointing on, train mode: token by token, with a decoder of ours and (olmo2) without."""
    policy, reward = toy_policy(family), InternalReward("token_entropy")

    def compare(prompts: Any, completion_ids: Any, rlif_recorded: Any, **_: Any) -> float:
        model: Any = policy.model
        assert model.training, "the trap is not set"
        assert model.is_activation_checkpointing, "the trap is not set"
        hooks = model.get_input_embeddings()._forward_hooks
        before = dict(hooks)
        scored = reward._score(prompts, completion_ids)
        assert before, "the trap is not set"
        assert dict(hooks) == before
        assert all(module.training for module in model.modules()), "the pass should leave no trace"
        assert model.is_activation_checkpointing
        values = [reward(prompts, [], completion_ids), reward(prompts, [], completion_ids, rlif_recorded=rlif_recorded)]
        assert values[0] == pytest.approx([-float(row.entropy.mean()) for row in scored], abs=1e-6)
        both = [pair for rows in zip(scored, rlif_recorded, strict=True) for pair in [(rows[0], rows[1].signals)]]
        pairs = [(a, b) for mine, its in both for a, b in zip(mine, its, strict=True)]
        assert all(len(a) > 0 for a, _ in pairs)
        return max(float((a - b).abs().max()) for a, b in pairs)

    spy = Spy(compare)
    trained = trainer(policy, tmp_path, reward_funcs=[reward, spy], callbacks=[reward], rollout_func=EngineRollouts())
    trained.train()
    assert len(spy.seen) == 1
    assert spy.seen[0] < 2e-5
    logged = trained.state.log_history[0]
    assert logged["rewards/token_entropy/mean"] == pytest.approx(-logged["signal/entropy"], rel=0.2)


class Counter:
    """Calls of a model's embedding, by which every token enters: those of the engine's sampling, and the others."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch, *, by_pass: bool) -> None:
        self.sampling, self.by_pass, self.draw, self.seen = False, by_pass, EngineRollouts(), list[bool]()
        self.embedding: Any = policy.model.get_input_embeddings()  # type: ignore[operator]
        self.plain = self.embedding.forward
        monkeypatch.setattr(self.embedding, "forward", self.forward)

    def forward(self, ids: Tensor) -> Tensor:
        self.seen.append(self.sampling)
        found: Tensor = self.plain(ids)
        return found

    def __call__(self, *given: Any) -> dict[str, Any]:
        """The rollout function; with ``by_pass`` what the engine recorded is not handed on."""
        self.sampling = True
        fields = self.draw(*given)
        self.sampling = False
        return {name: value for name, value in fields.items() if not self.by_pass or name != "rlif_recorded"}


@pytest.mark.parametrize(("by_pass", "forwards"), [(False, 1), (True, 2)])
def test_with_engine_rollouts_the_reward_costs_no_forward(
    by_pass: bool, forwards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of sampling there is the update's own forward pass alone."""
    policy, reward = toy_policy(), InternalReward()
    counter = Counter(policy, monkeypatch, by_pass=by_pass)
    # Layers that checkpoint run again in the backward pass, the embedding does not.
    trainer(policy, tmp_path, reward_funcs=[reward], callbacks=[reward], rollout_func=counter).train()
    assert sum(counter.seen) >= 12, "the engine samples through it, too"
    assert len(counter.seen) - sum(counter.seen) == forwards


def test_without_rollout_func_the_reward_scores_what_trl_draws(tmp_path: Path) -> None:
    """Beside float64 log-softmax of whole logits; two rewards, one reduced by a sum. TRL draws padding of the toy's
    vocabulary as well: such a completion is worth None, and TRL leaves it out."""
    policy, mean, total = toy_policy(), InternalReward(), InternalReward("trajectory_entropy", reduce="sum")

    def expect(prompts: Any, completion_ids: Any, **_: Any) -> list[tuple[float, float] | None]:
        found: list[tuple[float, float] | None] = []
        with sampling_mode(policy.model), torch.no_grad():
            for text, ids in zip(prompts, completion_ids, strict=True):
                if max(ids) >= policy.vocab_size:
                    found.append(None)
                    continue
                asked = policy.encode_text(text)[1]
                logits = policy.model(torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1]
                logp = logits[:, : policy.vocab_size].double().log_softmax(dim=-1)
                certainty = -logp.mean(dim=-1) - torch.tensor(float(policy.vocab_size)).log()
                chosen = logp[torch.arange(len(ids)), torch.tensor(ids)]
                found.append((float(certainty.mean()), float(chosen.sum())))
        return found

    spies = [Spy(expect)]
    spies.append(Spy(lambda **given: [reward(completions=[], **given) for reward in (mean, total)]))
    trained = trainer(policy, tmp_path, reward_funcs=[mean, total, *spies], callbacks=[mean, total])
    trained.train()
    assert 0 < sum(pair is None for pair in spies[0].seen[0]) < 8
    for pair, c, d in zip(spies[0].seen[0], *spies[1].seen[0], strict=True):
        assert pair is not None or (c, d) == (None, None)
        assert pair is None or pair == (pytest.approx(c, abs=2e-5), pytest.approx(d, abs=2e-4))
    assert policy.model.training


def test_one_prompt_in_parts_is_drawn_as_in_one() -> None:
    policy = toy_policy()
    prompts, engine = toy_prompts(policy, ["a", "12+34=?"]), Engine(policy)
    draw: dict[str, Any] = {"sampling": Sampling(max_new_tokens=8), "key": Key(0, 1)}
    whole = engine.sample(prompts, group_size=4, **draw)
    for prompt, texts in zip(prompts, (whole.texts[:4], whole.texts[4:]), strict=True):
        parts = engine.sample([prompt, prompt], group_size=2, first_sample=[0, 2], **draw)
        assert parts.texts == texts
    assert len(set(whole.texts[:4])) == 4, "streams should differ"
    for wrong in ([0], [0, -1]):
        with pytest.raises(RlifError, match=r"^first_sample: "):
            engine.sample(prompts, group_size=2, first_sample=wrong, **draw)


def test_rows_become_groups_and_know_their_number() -> None:
    a, b = toy_prompts(toy_policy(), ["a", "b"])
    runs = runs_of([a, a, b, b, b, b], before=[a.id, a.id])
    assert (runs.size, [prompt.text for prompt in runs.prompts], runs.first_sample) == (2, ["a", "b", "b"], (2, 0, 2))
    assert runs_of([a, b, b, b], before=[b.id]) == runs_of([a, b, b, b], before=[b.id])
    assert runs_of([a, b, b, b], before=[b.id]).first_sample == (0, 1, 2, 3)
    again = runs_of([a, a, b, b, a, a])  # the same prompt twice in a batch: two groups that differ
    assert again.first_sample == (0, 0, 2)


def test_rollouts_of_several_processes_are_those_of_one() -> None:
    policy = toy_policy()
    prompts, draw = toy_prompts(policy, PROMPTS), {"group_size": 2, "sampling": Sampling(max_new_tokens=9)}
    whole = Engine(policy).sample(prompts, key=Key(0, 1), **draw)  # type: ignore[arg-type]
    parts = [Engine(policy).sample(some, key=Key(0, 1), **draw) for some in (prompts[:2], prompts[2:])]  # type: ignore[arg-type]
    both = joined(parts)
    assert (both.texts, both.stop_reasons, both.prompts) == (whole.texts, whole.stop_reasons, whole.prompts)
    assert torch.equal(both.mask, whole.mask)
    assert torch.equal(both.tokens[both.mask], whole.tokens[whole.mask])
    for one, other in zip(both.signals, whole.signals, strict=True):
        assert (one - other).abs().max() < 1e-5


def test_conversations_are_rendered_as_trl_renders_them() -> None:
    policy = rlif.load_policy("tiny-instruct", dtype="float32")
    asked = [{"role": "user", "content": "12+34=?"}]
    (prompt,) = tokenized(policy, [asked], {})
    made = policy.tokenizer.apply_chat_template([asked], add_generation_prompt=True, tokenize=True, return_dict=True)
    assert list(prompt.token_ids) == made["input_ids"][0]
    assert prompt.problem.question == "12+34=?"
    assert prompt.id == tokenized(policy, [asked, asked], {})[1].id


def bound(reward: Any, policy: Policy, **arguments: Any) -> Any:
    """A reward as a trainer leaves it."""
    args = SimpleNamespace(num_generations=4, num_generations_eval=None, **arguments)
    reward.on_init_end(args, None, None, model=policy.model, processing_class=policy.tokenizer)
    return reward


def test_agreement_rewards_are_those_of_the_registry() -> None:
    """Answers that agree, that differ, that are cut off and that are not there."""
    policy = toy_policy()
    texts = ["so 12", "it is 12.0", "13", "12~", "no idea", "7", "8", "7"]
    encoded = [policy.encode_text(text.rstrip("~"))[1] for text in texts]
    ids = [[*row, *([] if text.endswith("~") else [1])] for row, text in zip(encoded, texts, strict=True)]
    rollouts = written(toy_prompts(policy, ["a", "b"]), texts)
    with rlif.Grader() as grader:
        verdicts = tuple(grader.grade(text, None, format="last_number", row_id="r") for text in rollouts.texts)
    inputs = RewardInputs(rollouts, verdicts, Key(0, 1), {"toy/0": ["12"], "toy/1": ["7", "8"]})
    policy.model.train()
    for name in ("majority_vote", "soft_consensus", "frozen_consensus"):
        expected = REWARDS[name].function(inputs, RewardConfig(name=name))
        reward, logged = bound(AgreementReward(name, format="last_number"), policy), dict[str, float]()
        given = reward([""] * 8, [""] * 8, ids, logged.__setitem__, consensus=[["12"]] * 4 + [["7", "8"]] * 4)
        assert given == pytest.approx(expected.tolist()), name
        assert logged == {f"{name}/voting": 0.75}
    assert sum(expected) == pytest.approx(3.5)
    with pytest.raises(RlifError, match="reads the column consensus"):
        reward([""] * 8, [""] * 8, ids)


def look(step: int, agreement: float) -> ProbeRecord:
    """A look at which 32 prompts are alike."""
    counts = dict.fromkeys(("answered", "ended", "not_looping"), (4,) * 32)
    counts |= dict.fromkeys(("agreement", "content"), (round(4 * agreement),) * 32)
    values = {"agreement": agreement, "trusted": 0.8, "constant": 0.0, "length": 9.0, "entropy": 0.5, "identical": 0.1}
    metrics = {f"probe/{name}": value for name, value in values.items()}
    return ProbeRecord(step, 4, metrics, counts, {"entropy": (0.5,) * 32})


@pytest.fixture
def agreements(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Looks as the test wants them, step by step."""
    shares = {0: 0.5, 1: 0.75, 2: 0.75, 3: 1.0, 4: 1.0, 5: 0.5, 6: 0.5}

    def measure(self: Any, step: int, progress: Any = None) -> ProbeRecord:
        self.records.append(look(step, shares[step]))
        return self.records[-1]

    monkeypatch.setattr(trl_callbacks.Probe, "measure", measure)
    return shares


def probe() -> AgreementProbe:
    return AgreementProbe(PROMPTS, format="last_number", every=1, reference_samples=2)


@pytest.mark.parametrize("order", ["probe first", "guard first", "guard alone"])
def test_the_guard_stops_and_the_best_checkpoint_survives(
    order: str, tmp_path: Path, agreements: dict[int, float]
) -> None:
    """A checkpoint a step of which one may stay: the best, of step 3, stays beside the last."""
    watched = probe()
    guard, reward = CollapseGuard(watched), InternalReward(probe=watched)
    parts = {"probe first": [watched, guard], "guard first": [guard, watched], "guard alone": [guard]}[order]
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": 9}
    trained = trainer(
        toy_policy(),
        tmp_path,
        reward_funcs=[reward],
        callbacks=[reward, *parts],
        rollout_func=EngineRollouts(),
        **options,
    )
    with pytest.warns(RuntimeWarning, match="^step 5: agreement: agreement with the frozen answers fell from 100%"):
        trained.train()
    assert trained.state.global_step == 5
    assert guard.stopped is not None
    assert (guard.stopped["step"], guard.best_step) == (5, 3)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-5"]
    assert trained.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    assert [record.step for record in watched.records] == list(range(6))
    history = trained.state.log_history
    assert [line["probe/agreement"] for line in history if "probe/length" in line and "loss" not in line][3] == 1.0
    sent = [line["probe/agreement"] for line in history if "loss" in line]
    assert sent == [agreements[step] for step in range(5)], "a reward sends each look to the trackers, one step later"


def test_a_resumed_run_goes_on_with_its_looks(tmp_path: Path, agreements: dict[int, float]) -> None:
    """Killed after step 4, resumed from the checkpoint of step 3: looks 0 to 3 are read, not made."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "max_steps": 4}
    first = CollapseGuard(probe(), keep_best=False)
    reward = InternalReward()
    trainer(toy_policy(), tmp_path, reward_funcs=[reward], callbacks=[reward, first], **options).train()
    agreements |= dict.fromkeys(range(4), 0.0)
    second, reward = CollapseGuard(probe()), InternalReward()
    again = trainer(
        toy_policy(), tmp_path, reward_funcs=[reward], callbacks=[reward, second], **options | {"max_steps": 6}
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [record.metrics["probe/agreement"] for record in second.probe.records] == [0.5, 0.75, 0.75, 1.0, 1.0, 0.5]
    assert (again.state.global_step, second.best_step) == (5, 3)
    assert second.probe.reference == first.probe.reference
    other = AgreementProbe(PROMPTS, format="boxed", every=1, reference_samples=2)
    third = trainer(toy_policy(), tmp_path, reward_funcs=[reward], callbacks=[CollapseGuard(other)], **options)
    with pytest.raises(RlifError, match=r"looks\.json: the looks so far were compared in another way; give Agreement"):
        third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    third = trainer(toy_policy(), tmp_path, reward_funcs=[reward], callbacks=[CollapseGuard(probe())], **options)
    (path,) = (tmp_path / "probe").glob("reference-*.json")
    content = json.loads(path.read_text())
    content["answers"][0]["answer"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(RlifError, match=r"these are not the answers that were frozen \(another sha256\)"):
        third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "probe" / "looks.json").unlink()
    third = trainer(toy_policy(), tmp_path, reward_funcs=[reward], callbacks=[CollapseGuard(probe())], **options)
    with pytest.raises(RlifError, match=r"looks.json: a run that is resumed needs its looks \(FileNotFoundError\)"):
        third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_probe_sees_what_a_run_of_ours_would() -> None:
    """On the shipped tiny model: the reference and the look are those of `rlif.monitoring` on a plain engine."""
    policy = rlif.load_policy("tiny-base", dtype="float32")
    asked = [f"{a}+{100 - a}=?" for a in (12, 34, 57)]
    args = SimpleNamespace(
        temperature=1.0, top_p=1.0, top_k=0, max_completion_length=24, seed=3, output_dir="", chat_template_kwargs=None
    )
    watched = AgreementProbe(asked, format="last_number", samples=2, reference_samples=4, folder=None)
    state = SimpleNamespace(global_step=0, is_world_process_zero=False, log_history=[], max_steps=9)
    policy.model.train()
    policy.model.gradient_checkpointing_enable()  # type: ignore[operator]
    watched.on_train_begin(args, state, None, model=policy.model, processing_class=policy.tokenizer)
    policy.model.gradient_checkpointing_disable()  # type: ignore[operator]
    policy.model.disable_input_require_grads()  # type: ignore[operator]
    policy.model.eval()
    from rlif.monitoring.probe import Probe, freeze
    from rlif.monitoring.reference import ReferenceSettings

    prompts = tokenized(policy, asked, None)
    task = rlif.task_of([prompt.problem for prompt in prompts], format="last_number")
    settings = ReferenceSettings(Sampling(max_new_tokens=24), 0.4, 4, 3)
    frozen = freeze(Engine(policy), task, prompts, settings)
    assert watched.reference == frozen
    expected = Probe(Engine(policy), task, prompts, frozen, settings, samples=2).measure(0)
    assert watched.records[0].counts == expected.counts
    assert watched.records[0].metrics == pytest.approx(expected.metrics)
    assert state.log_history == [{"step": 0, **watched.records[0].metrics}]


def test_a_probe_of_sentences_holds_them_beside_each_other_by_an_encoder(tmp_path: Path) -> None:
    save_toy_encoder(tmp_path / "encoder")
    policy = toy_policy()
    args = SimpleNamespace(
        temperature=1.0, top_p=1.0, top_k=0, max_completion_length=24, seed=3, output_dir="", chat_template_kwargs=None
    )
    distinct = {}
    for least in (None, 0.05, 0.9999):
        near = None if least is None else {"model": str(tmp_path / "encoder"), "least": least}
        watched = AgreementProbe(PROMPTS, format="text", samples=2, reference_samples=4, similarity=near)
        state = SimpleNamespace(global_step=0, is_world_process_zero=False, log_history=[], max_steps=9)
        watched.on_train_begin(args, state, None, model=policy.model, processing_class=policy.tokenizer)
        assert watched.reference is not None
        distinct[least] = (watched.reference.digest, watched.records[0].metrics["probe/agreement/any_form"])
    assert len({digest for digest, _ in distinct.values()}) == 3, "a reference for each way to compare"
    assert distinct[0.05][1] > distinct[None][1] == distinct[0.9999][1], "near enough is whatever it says"


def failing(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(RlifError) as raised:
        make()
    assert str(raised.value) == message


def test_what_a_user_can_get_wrong_is_one_line(tmp_path: Path) -> None:
    failing(
        "InternalReward: no signal 'certainty'; did you mean self_certainty? (there are self_certainty, token_entropy, "
        "trajectory_entropy)",
        lambda: InternalReward("certainty"),
    )
    failing("AgreementReward: no reward 'vote'; did you mean majority_vote?", lambda: AgreementReward("vote"))
    failing(
        "AgreementReward: ema_vote needs a teacher that follows the policy; only rlif train has one",
        lambda: AgreementReward("ema_vote"),
    )
    failing(
        "InternalReward: it does not know the model; give it to the callbacks, too: "
        "GRPOTrainer(…, reward_funcs=[reward], callbacks=[InternalReward, …])",
        lambda: InternalReward()(["a"], [""], [[5]]),
    )
    failing(
        "AgreementProbe: give it at least one prompt, and a whole number of steps as `every`",
        lambda: AgreementProbe([]),
    )
    failing(
        "AgreementProbe: similarity: least: expected a number above 0 (given 0)",
        lambda: AgreementProbe(["a"], similarity={"model": "m", "least": 0}),
    )
    failing(
        "AgreementProbe: similarity: modl: unknown key; did you mean model?",
        lambda: AgreementProbe(["a"], similarity={"modl": "m"}),
    )
    config = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=8, min_p=0.1)
    failing("GRPOConfig: min_p=0.1 is not known to rlif's sampler; leave it out", lambda: sampling_of(config))
    vllm = SimpleNamespace(use_vllm=True, tools=None, processing_class=toy_policy().tokenizer)
    failing(
        "EngineRollouts: use_vllm=True is not what it samples with; switch it off, or leave out rollout_func: "
        "InternalReward scores vLLM's",
        lambda: EngineRollouts()(["a"], vllm),
    )
    guard = CollapseGuard(probe())
    failing(
        "CollapseGuard: it chooses the best checkpoint, and so does metric_for_best_model='loss'; leave that out (and "
        "load_best_model_at_end), or set keep_best=False",
        lambda: guard.on_train_begin(SimpleNamespace(metric_for_best_model="loss"), None, None),
    )
    reward = InternalReward()
    long = trainer(
        toy_policy(), tmp_path, reward_funcs=[reward], rollout_func=EngineRollouts(), max_completion_length=500
    )
    with pytest.raises(
        RlifError, match=r"^prompt \w+: \d+ tokens and max_completion_length 500 exceed .*; give max_co"
    ):
        long.train()


def test_recorded_signals_of_another_completion_are_refused() -> None:
    recorded = [trl_rewards.Recorded((5, 6), rlif.TokenSignals(*torch.zeros(3, 2)))]
    assert InternalReward()(["a"], [""], [[5, 6]], rlif_recorded=recorded) == [0.0]
    with pytest.raises(RlifError, match=r"^row 0: the recorded signals are of another completion"):
        InternalReward()(["a"], [""], [[5, 7]], rlif_recorded=recorded)


def test_trl_that_is_missing_or_too_old_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise packages.PackageNotFoundError(package)

    for version, said in ((missing, "trl is not installed"), (lambda package: "1.9.0", "trl 1.9.0 is installed")):
        monkeypatch.setattr(packages, "version", version)
        with pytest.raises(ImportError) as raised:
            packages.require("trl", least="1.16", below="2", extra="trl")
        assert isinstance(raised.value, RlifError)
        assert str(raised.value) == f"{said}, 1.16 or later below 2 is needed; run: pip install 'rlif[trl]'"
    for version in (lambda package: "1.16.0", lambda package: "1.99"):
        monkeypatch.setattr(packages, "version", version)
        packages.require("trl", least="1.16", below="2", extra="trl")


def test_weights_that_cannot_be_read_are_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    partitioned = nn.Linear(1, 1)
    partitioned.weight.ds_id = 7  # type: ignore[assignment]
    for model, said in ((FullyShardedDataParallel(), "^FSDP1 "), (partitioned, "^DeepSpeed ZeRO-3 ")):
        with pytest.raises(RlifError, match=said):
            check_layout(model)
    check_layout(toy_policy().model)
