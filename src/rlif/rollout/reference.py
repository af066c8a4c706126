"""The reference: sampling in its slow, obvious version, which the tests hold the engine against."""

from collections.abc import Sequence

import torch

from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.recorder import Recorder
from rlif.rollout.sampling import draw
from rlif.signals import token_signals
from rlif.types import Prompt, Rollouts, Sampling


@torch.no_grad()
def sample_reference(
    policy: Policy, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, key: Key
) -> Rollouts:
    """What `Engine.sample` must give: every token of every row from one forward pass over the whole text so far."""
    recorder = Recorder(policy, prompts, group_size, sampling, key)
    for i, prompt in enumerate(recorder.owners):
        row, text = torch.tensor([i]), list(prompt.token_ids)
        while not recorder.finished[i]:
            logits = policy.model(input_ids=torch.tensor([text])).logits[:, -1, : policy.vocab_size].float()
            tokens, sampler_logprobs, _ = draw(logits, recorder.numbers(row), sampling)
            recorder.append(row, tokens, sampler_logprobs, token_signals(logits, tokens))
            recorder.sync()
            text.append(int(tokens))
    return recorder.rollouts(range(len(prompts)))
