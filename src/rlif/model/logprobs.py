"""What a model says of completions it is shown: teacher-forced log-probabilities, with gradient.

Two ways to the same numbers. Models that `rlif.model.decoder` can read run over one line of tokens, each prompt once,
no padding, no logits in memory. Any other runs through transformers, a row per completion, padded on the right.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rlif.model.decoder import Decoder, decoder_of, has_decoder
from rlif.model.lm_head import head_logprobs, head_logprobs_and_entropy, head_of, head_signals
from rlif.model.packing import Packed, rounded
from rlif.model.policy import Policy
from rlif.model.positions import check_alike
from rlif.signals import token_signals
from rlif.types import Rollouts, TokenSignals
from rlif.utils.splitting import Split, unsplit


def policy_logprobs(
    policy: Policy, rollouts: Rollouts, rows: Sequence[int], *, recompute: bool = False
) -> Float[Tensor, "row tok"]:
    """Log-probability (nats, fp32, with gradient) of each completion token of these rows; 0 where masked.

    At the temperature that the rollouts are trained at (`rlif.types.Sampling.training_temperature`).

    Args:
        policy: the one that drew them, or another over the same tokens, such as a reference.
        recompute: keep no activations within a layer, make them again in the backward pass (gradient checkpointing).

    Raises `RlifError` for rows beyond the original context of a model whose positions then depend on the batch.
    """
    decoder = decoder_of(policy.model, recompute=recompute)
    return _padded(policy, rollouts, rows) if decoder is None else _packed(decoder, policy, rollouts, rows)


def policy_logprobs_and_entropy(
    policy: Policy, rollouts: Rollouts, rows: Sequence[int], *, recompute: bool = False
) -> tuple[Float[Tensor, "row tok"], Float[Tensor, "row tok"]]:
    """`policy_logprobs`, and the entropy of the distribution that produced each token: over the true vocabulary, at the
    same temperature (nats, fp32); both with gradient, 0 where masked. Source: project."""
    decoder = decoder_of(policy.model, recompute=recompute)
    if decoder is None:
        scores, targets, placed = _padded_scores(policy, rollouts, rows)
        logp = scores.log_softmax(dim=-1)
        chosen, entropy = logp.gather(-1, targets[..., None])[..., 0], -(logp.exp() * logp).sum(dim=-1)
        return placed(chosen), placed(entropy)
    hidden, tokens = _predicting(decoder, policy, rollouts, rows)
    head, temperature = head_of(policy.model, policy.vocab_size), rollouts.sampling.training_temperature
    chosen, entropy = head_logprobs_and_entropy(hidden, head, tokens, temperature)
    return _at_tokens(chosen, rollouts, rows), _at_tokens(entropy, rollouts, rows)


def micro_batches(model: nn.Module, rollouts: Rollouts, rows: Sequence[int], budget: int | None) -> list[list[int]]:
    """Split rows into parts of at most ``budget`` tokens each, counted as `policy_logprobs` runs them, but for filling.

    A single row that exceeds the budget is a part of its own. Every row is in one part. A budget of None is what suits
    the device: 16,384, on a CPU 1,024 or four times the longest prompt, which every part that needs it runs again.
    """
    if budget is None:
        longest = max(len(prompt.token_ids) for prompt in rollouts.prompts)
        budget = max(1024, 4 * longest) if next(model.parameters()).device.type == "cpu" else 16384
    return (_packed_parts if has_decoder(model) else _padded_parts)(rollouts, rows, budget)


@torch.no_grad()
def policy_signals(policy: Policy, rollouts: Rollouts, rows: Sequence[int]) -> TokenSignals:
    """The policy's signals, as it stands, at each completion token of these rows: (row, tok), fp32, 0 where masked.

    Those in ``rollouts`` are the same numbers as the sampler computed them, for the policy of that moment.
    """
    decoder = decoder_of(policy.model)
    if decoder is None:
        ids = _concatenate(rollouts, rows, policy.pad_id).to(policy.device)
        check_alike(policy.model, ids.shape[1])
        prompts, lengths = rollouts.row_prompts, rollouts.lengths.tolist()
        logits = policy.model(input_ids=ids, use_cache=False).logits
        starts = [len(prompts[row].token_ids) for row in rows]
        producing = [
            logits[i, n - 1 : n - 1 + lengths[row]] for i, (n, row) in enumerate(zip(starts, rows, strict=True))
        ]
        tokens = rollouts.tokens[list(rows)][rollouts.mask[list(rows)]].to(policy.device)
        signals = token_signals(torch.cat(producing), tokens, vocab_size=policy.vocab_size)
    else:
        hidden, tokens = _predicting(decoder, policy, rollouts, rows)
        signals = head_signals(hidden, head_of(policy.model, policy.vocab_size), tokens)
    return TokenSignals(*(_at_tokens(values, rollouts, rows) for values in signals))


def signals_of(
    policy: Policy, rollouts: Rollouts, rows: Sequence[int], budget: int | None = None, split: Split = unsplit
) -> TokenSignals:
    """`policy_signals` of as many rows as wanted, on the CPU: in `micro_batches` of ``budget`` tokens, by whoever
    takes part in ``split``. All of them have all rows."""

    def read(own: Sequence[int]) -> TokenSignals:
        result = TokenSignals(*(torch.zeros(len(own), rollouts.mask.shape[1]) for _ in range(3)))
        place = {row: i for i, row in enumerate(own)}
        for part in micro_batches(policy.model, rollouts, own, budget):
            for whole, values in zip(result, policy_signals(policy, rollouts, part), strict=True):
                whole[[place[row] for row in part]] = values.cpu()
        return result

    parts = split(rows, read, rollouts.lengths[list(rows)].tolist())
    return TokenSignals(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def plain_logprobs(policy: Policy, rollouts: Rollouts, row: int, at: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
    """Log-probability (nats, fp32, temperature 1, true vocabulary) of a completion's tokens at these places.

    From transformers' own forward pass over that row alone, on the CPU afterwards: neither cache nor padding nor
    `rlif.model.decoder` has a part in it. Only these places reach the vocabulary, if the model lets them be chosen; of
    models whose code comes with them, which take the number of the last ones alone, all that follow the prompt.
    """
    prompt, tokens = rollouts.row_prompts[row].token_ids, rollouts.tokens[row][rollouts.mask[row]]
    ids = torch.tensor([[*prompt, *tokens.tolist()]], device=policy.device)
    places, last = at.to(policy.device), len(tokens) + 1
    chooses = "logits_to_keep" in inspect.signature(policy.model.forward).parameters
    if chooses and type(policy.model).__module__.startswith("transformers."):
        logits = policy.model(input_ids=ids, use_cache=False, logits_to_keep=places + len(prompt) - 1).logits[0]
    else:
        options = {"logits_to_keep": last} if chooses else {}
        logits = policy.model(input_ids=ids, use_cache=False, **options).logits[0, -last:][places]
    logits = logits[:, : policy.vocab_size].float()
    return logits.log_softmax(dim=-1).gather(1, tokens[at].to(policy.device)[:, None])[:, 0].cpu()


def _packed(decoder: Decoder, policy: Policy, rollouts: Rollouts, rows: Sequence[int]) -> Float[Tensor, "row tok"]:
    hidden, tokens = _predicting(decoder, policy, rollouts, rows)
    head, temperature = head_of(policy.model, policy.vocab_size), rollouts.sampling.training_temperature
    return _at_tokens(head_logprobs(hidden, head, tokens, temperature), rollouts, rows)


def _predicting(
    decoder: Decoder, policy: Policy, rollouts: Rollouts, rows: Sequence[int]
) -> tuple[Float[Tensor, "predicted hidden"], Int[Tensor, " predicted"]]:
    """The hidden state that predicts each completion token, and the token; filled up to a round number behind them."""
    owners = [row // rollouts.group_size for row in rows]
    index = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
    tokens = [rollouts.tokens[row][rollouts.mask[row]] for row in rows]
    packed = Packed(
        [rollouts.prompts[owner].token_ids for owner in index],
        [(index[owner], ids.tolist()) for owner, ids in zip(owners, tokens, strict=True)],
        device=policy.device,
    )
    count = len(packed.predicting)
    filling = (0, rounded(count) - count)
    hidden = decoder(packed.tokens, packed.positions, packed.attend)
    predicting, targets = functional.pad(packed.predicting, filling), functional.pad(torch.cat(tokens), filling)
    return hidden.index_select(0, predicting), targets.to(policy.device)


def _at_tokens(
    values: Float[Tensor, " predicted"], rollouts: Rollouts, rows: Sequence[int]
) -> Float[Tensor, "row tok"]:
    """One value a completion token, in its place; 0 where masked. What lies behind the last token is dropped."""
    mask = rollouts.mask[list(rows)].to(values.device)
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values[: int(mask.sum())])


def _packed_parts(rollouts: Rollouts, rows: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in order, so that a group stays together; a prompt counts once in each part that needs it."""
    lengths = rollouts.lengths.tolist()
    parts: list[list[int]] = []
    size = 0
    for row in sorted(rows):
        owner = row // rollouts.group_size
        prompt = len(rollouts.prompts[owner].token_ids)
        more = lengths[row] - 1
        if not parts or parts[-1][-1] // rollouts.group_size != owner:
            more += prompt
        if parts and size + more <= budget:
            parts[-1].append(row)
            size += more
        else:
            parts.append([row])
            size = prompt + lengths[row] - 1
    return parts


def _padded(policy: Policy, rollouts: Rollouts, rows: Sequence[int]) -> Float[Tensor, "row tok"]:
    scores, targets, placed = _padded_scores(policy, rollouts, rows)
    logprobs = -functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
    return placed(logprobs.view(targets.shape))


def _padded_scores(
    policy: Policy, rollouts: Rollouts, rows: Sequence[int]
) -> tuple[Tensor, Int[Tensor, "row kept"], Callable[[Tensor], Tensor]]:
    """Scores at the training temperature, the token that each position predicts, and what puts a value of each position
    where its completion token is.

    Rows are padded on the right: no real token attends to padding, so no attention mask is needed, and only positions
    that predict a completion token reach the vocabulary.
    """
    prompts, device = rollouts.row_prompts, policy.device
    starts = torch.tensor([len(prompts[row].token_ids) for row in rows])
    first, input_ids = int(starts.min()) - 1, _concatenate(rollouts, rows, policy.pad_id).to(device)
    check_alike(policy.model, input_ids.shape[1])
    kept = input_ids.shape[1] - first
    output = policy.model(input_ids=input_ids, use_cache=False, logits_to_keep=kept)
    logits, temperature = output.logits[:, :-1, : policy.vocab_size], rollouts.sampling.training_temperature
    # Every kept position is scored and the few that do not count are dropped afterwards: picking rows out of the logits
    # first would cost more, for the gradient of an index is a slow scatter over the vocabulary.
    scores = logits.float() if temperature == 1.0 else logits.float() / temperature
    mask = rollouts.mask[list(rows)]
    row, tok = (index.to(device) for index in mask.nonzero(as_tuple=True))
    at = starts.to(device)[row] - 1 - first + tok

    def placed(values: Float[Tensor, "row kept"]) -> Float[Tensor, "row tok"]:
        return torch.zeros(mask.shape, device=device).index_put((row, tok), values[row, at])

    return scores, input_ids[:, first + 1 :], placed


def _padded_parts(rollouts: Rollouts, rows: Sequence[int], budget: int) -> list[list[int]]:
    """Rows by length, so that padding is small; a part counts as its rows times its longest."""
    prompts, completion = rollouts.row_prompts, rollouts.lengths.tolist()
    length = {row: len(prompts[row].token_ids) + completion[row] for row in rows}
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-length[row], row)):
        if parts and length[parts[-1][0]] * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _concatenate(rollouts: Rollouts, rows: Sequence[int], pad_id: int) -> Int[Tensor, "row position"]:
    """Prompt + completion of each row, padded on the right."""
    prompts = rollouts.row_prompts
    texts = [[*prompts[row].token_ids, *rollouts.tokens[row][rollouts.mask[row]].tolist()] for row in rows]
    result = torch.full((len(rows), max(map(len, texts))), pad_id, dtype=torch.long)
    for i, text in enumerate(texts):
        result[i, : len(text)] = torch.tensor(text)
    return result
