"""Models in another trainer's hands: sampled from in the right mode, left as they were, refused in the wrong one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rlif
from rlif.errors import RlifError
from rlif.model.decoder import has_decoder
from rlif.model.in_training import check_sampling_mode, policy_of, sampling_mode, unwrapped
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Sampling
from toys import toy_policy, toy_prompts

REFUSED = (
    "model: it is in train mode with gradient checkpointing, where no cache is kept and samples are garbage; sample "
    "under `with rlif.sampling_mode(model):`, or call model.eval()"
)


def training(model: Any) -> Any:
    """As a trainer has it by default."""
    model.train()
    model.activation_checkpointing_enable()
    return model


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_what_is_drawn_in_the_middle_of_training_is_what_is_drawn_before(family: str) -> None:
    policy = toy_policy(family)
    prompts = toy_prompts(policy, ["a", "12+34=?"])
    draw: dict[str, Any] = {"group_size": 2, "sampling": Sampling(max_new_tokens=8), "key": Key(0, 1)}
    before, engine = Engine(policy).sample(prompts, **draw), Engine(policy)
    training(policy.model)
    for refused in (lambda: Engine(policy), lambda: engine.sample(prompts, **draw)):
        with pytest.raises(RlifError) as raised:
            refused()
        assert str(raised.value) == REFUSED
    with pytest.raises(RlifError):
        next(engine.groups(prompts, **draw))
    with sampling_mode(policy.model):
        assert has_decoder(policy.model) == (family == "llama")
        within = Engine(policy).sample(prompts, **draw)
    assert within.texts == before.texts
    for one, other in zip(within.signals, before.signals, strict=True):
        assert torch.equal(one, other)


def test_train_mode_alone_is_not_refused_nor_are_flags_in_evaluation_mode() -> None:
    model: Any = toy_policy().model
    check_sampling_mode(model.train())
    model.activation_checkpointing_enable()
    check_sampling_mode(model.eval())
    model.model.layers[1].train()  # a single layer that would lose its cache is enough
    with pytest.raises(RlifError):
        check_sampling_mode(model)


def test_every_module_is_left_as_it_was_also_after_an_error() -> None:
    """Some in train mode and some not, one layer of two checkpointing, the user's own hook beside the trainer's."""
    model: Any = training(toy_policy().model)
    model.model.layers[0].eval()
    model.model.layers[1].gradient_checkpointing = False
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: None)

    def state() -> list[Any]:
        return [
            (module.training, getattr(module, "gradient_checkpointing", None), dict(module._forward_hooks))
            for module in model.modules()
        ]

    before = state()
    assert len({flag for _, flag, _ in before}) == 3
    with pytest.raises(KeyError), sampling_mode(model):  # noqa: PT012  (what is seen within is the point)
        assert not any(mode or flag for mode, flag, _ in state())
        assert len(model.get_input_embeddings()._forward_hooks) == 1, "the user's own hook stays"
        raise KeyError
    assert state() == before
    model.disable_input_require_grads()
    assert len(model.get_input_embeddings()._forward_hooks) == 1, "the trainer's handle still removes its hook"


class Wrapper(nn.Module):
    """As DDP and DeepSpeed wrap a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Adapter(nn.Module):
    """As peft wraps one: its parts are below, and it says where."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def get_base_model(self) -> nn.Module:
        return self.base

    def forward(self, ids: Tensor) -> Tensor:
        raise AssertionError("nobody should run the wrapper")


def test_a_policy_of_a_model_in_memory_shares_its_weights() -> None:
    loaded = rlif.load_policy("tiny-base", dtype="float32")
    compiled = nn.Module()
    compiled._orig_mod = loaded.model
    for model in (loaded.model, Wrapper(loaded.model), Wrapper(Adapter(loaded.model)), compiled):
        assert unwrapped(model) is loaded.model
        policy = policy_of(model, loaded.tokenizer)
        assert policy.model is loaded.model
        for field in ("eos_ids", "pad_id", "vocab_size", "context", "chat_template"):
            assert getattr(policy, field) == getattr(loaded, field), field
    chat = rlif.load_policy("tiny-instruct")
    assert policy_of(chat.model, chat.tokenizer).chat_template
    assert not policy_of(chat.model, chat.tokenizer, chat_template="off").chat_template


def test_what_is_no_model_or_no_tokenizer_is_told() -> None:
    policy = toy_policy()
    for make, said in (
        (lambda: policy_of(nn.Linear(1, 1), policy.tokenizer), "model: a Linear is no causal language model of transf"),
        (lambda: policy_of(policy.model, None), "tokenizer: a NoneType is no tokenizer of transformers; give that of"),
        (lambda: policy_of(policy.model, policy.tokenizer, chat_template="on"), "chat_template: "),
    ):
        with pytest.raises(RlifError) as raised:
            make()
        assert str(raised.value).startswith(said)
