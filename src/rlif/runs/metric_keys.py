"""Every key of metrics.jsonl with its meaning: `python -m rlif.runs.metric_keys > docs/metrics.md`."""

import re
import sys
from functools import cache
from typing import NamedTuple


class Metric(NamedTuple):
    """A key of metrics.jsonl: its unit, and what the number means."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("steps", "rollout-and-update steps done; 0 is the policy before training"),
    "time": Metric("s", "wall-clock time since the run's start"),
    "time/rollout": Metric("s", "sampling the step's completions, signals included"),
    "time/consensus": Metric(
        "s", "a teacher's answers: to the run's problems, in step 1 (frozen_consensus), or to the step's (ema_vote)"
    ),
    "time/score": Metric("s", "grading, rewards and advantages"),
    "time/update": Metric("s", "losses, gradients and optimizer steps"),
    "time/watch": Metric("s", "looking at entropy before and after the update (log.entropy_share)"),
    "time/eval": Metric("s", "the evaluation at this step"),
    "time/reference": Metric(
        "s", "the untrained policy's answers to the probe's prompts, in step 1; the policy's own where they are renewed"
    ),
    "time/probe": Metric("s", "the look at the probe's prompts at this step"),
    "tokens/prompt": Metric("tokens", "prompt tokens of the step, each prompt counted once"),
    "tokens/completion": Metric("tokens", "completion tokens of the step, EOS included"),
    "tokens/total": Metric("tokens", "completion tokens since the run's start"),
    "tokens_per_second/rollout": Metric("tokens/s", "completion tokens over rollout time"),
    "reward/<name>/mean": Metric("reward", "mean of the named reward over rows, before it is normalised"),
    "reward/<name>/std": Metric("reward", "standard deviation of the named reward over rows"),
    "advantage/std": Metric("advantage", "standard deviation of the advantages over rows"),
    "advantage/zero_groups": Metric(
        "share", "groups whose advantages are all zero; without a KL term the update leaves them out"
    ),
    "advantage/token_share": Metric(
        "share", "of its completion's advantage that a token gets, mean over tokens (grpo.clip_cov, grpo.answer_share)"
    ),
    "signal/self_certainty": Metric("nats", "KL(uniform, policy) at temperature 1, mean over completion tokens"),
    "signal/entropy": Metric("nats", "entropy of the policy at temperature 1, mean over completion tokens"),
    "signal/logprob": Metric("nats", "log-probability of the drawn tokens at temperature 1, mean over them"),
    "length/mean": Metric("tokens", "mean completion length, EOS included"),
    "length/max": Metric("tokens", "longest completion, EOS included"),
    "stop/eos": Metric("share", "completions that ended with an EOS token"),
    "stop/stop_string": Metric("share", "completions that ended with a stop string"),
    "stop/length": Metric("share", "completions cut off at the length limit"),
    "verdict/right": Metric(
        "share", "right answers, in whatever form, of problems with a label; undecided is not right"
    ),
    "verdict/formatted": Metric("share", "answers in the form that was asked for, right or wrong"),
    "verdict/right_and_formatted": Metric("share", "as verdict/right, and in the form that was asked for"),
    "verdict/undecided": Metric("share", "answers to problems with a label that could not be decided in time"),
    "verdict/self_agreement": Metric(
        "share", "mean share of a prompt's completions that give its commonest answer; of a task without labels alone"
    ),
    "transitional/rate": Metric("words/token", "transitional words (but, wait, ...) per completion token"),
    "transitional/share": Metric("share", "completions with at least one transitional word"),
    "loss": Metric("nats", "the GRPO loss with its KL term, mean over the optimizer steps"),
    "grad_norm": Metric("norm", "global gradient norm before clipping, mean over the optimizer steps"),
    "entropy/predicted": Metric(
        "nats", "change of entropy by the update, −Cov(ln π, Δ ln π), a watched token; not if greedy, top-p or top-k"
    ),
    "entropy/predicted_stderr": Metric(
        "nats", "standard error of entropy/predicted over watched rows, within the watched prompts; from 2 rows"
    ),
    "entropy/measured": Metric("nats", "change of entropy by the update on the same states, mean over watched tokens"),
    "entropy/advantage_covariance": Metric(
        "nats", "Cov(ln π, A) in a state, mean over tokens; above 0: entropy falls; not if greedy, top-p or top-k"
    ),
    "lr": Metric("1", "learning rate of the last optimizer step"),
    "kl": Metric("nats", "k3 estimate of KL(policy, reference), mean over completion tokens; 0 without one"),
    "kl_coef": Metric("1", "weight of the KL term in this step's update, where it follows grpo.kl_target"),
    "kl_cov": Metric("nats", "k3 estimate of the KL of grpo.kl_cov, mean over the tokens under it"),
    "importance/mean": Metric(
        "1", "min(π_trainer / π_sampler, grpo.importance_cap), mean over the tokens compared; with a cap"
    ),
    "importance/capped": Metric("share", "of these tokens, those at the cap: more than a few, and the two differ"),
    "entropy_coef": Metric(
        "1", "weight of the bonus for entropy in this step's update, where it follows grpo.entropy_floor"
    ),
    "clip/fraction_low": Metric("share", "completion tokens whose ratio was clipped from below"),
    "clip/fraction_high": Metric("share", "completion tokens whose ratio was clipped from above"),
    "mismatch/mean": Metric(
        "nats", "mean gap of policy and sampler log-probability before the update; a warning above rollout.max_mismatch"
    ),
    "mismatch/max": Metric(
        "nats", "largest gap of policy and sampler log-probability before the update, in what it ran"
    ),
    "optimizer_steps": Metric("steps", "optimizer steps since the run's start"),
    "memory/peak_gb": Metric("GB", "peak memory since the run's start: of the GPU if one is used, else of the process"),
    "eval/right": Metric("share", "the evaluation's right answers, in whatever form"),
    "eval/right_stderr": Metric("share", "standard error of eval/right over problems"),
    "eval/formatted": Metric("share", "the evaluation's answers in the form that was asked for"),
    "eval/right_and_formatted": Metric(
        "share", "the evaluation's answers both right and in the form that was asked for"
    ),
    "eval/right_and_formatted_stderr": Metric("share", "standard error of eval/right_and_formatted over problems"),
    "eval/greedy_right": Metric("share", "the evaluation's right greedy answers, in whatever form (eval.greedy)"),
    "eval/greedy_right_stderr": Metric("share", "standard error of eval/greedy_right over problems"),
    "eval/greedy_formatted": Metric("share", "the evaluation's greedy answers in the form that was asked for"),
    "eval/greedy_right_and_formatted": Metric(
        "share", "the evaluation's greedy answers both right and in the form that was asked for"
    ),
    "eval/greedy_right_and_formatted_stderr": Metric(
        "share", "standard error of eval/greedy_right_and_formatted over problems"
    ),
    "eval/greedy_length": Metric("tokens", "mean length of the greedy completions, EOS included"),
    "eval/majority_right": Metric(
        "share", "problems whose commonest sampled answer is right; ties by chance; from 4 samples (eval.samples)"
    ),
    "eval/majority_right_stderr": Metric("share", "standard error of eval/majority_right over problems"),
    "eval/majority_right_and_formatted": Metric(
        "share", "the same, and in the form that was asked for, if any answer that gave the commonest is handed in"
    ),
    "eval/majority_right_and_formatted_stderr": Metric(
        "share", "standard error of eval/majority_right_and_formatted over problems"
    ),
    "eval/pass_at_k": Metric(
        "share",
        "problems with a right answer among k samples, unbiased (arXiv 2107.03374); k is eval.samples, 8 at most",
    ),
    "eval/pass_at_k_stderr": Metric("share", "its standard error over problems"),
    "eval/undecided": Metric("share", "as verdict/undecided, of the evaluation's answers"),
    "eval/entropy": Metric("nats", "entropy of the policy at temperature 1, mean over completion tokens"),
    "eval/self_certainty": Metric("nats", "KL(uniform, policy) at temperature 1, mean over completion tokens"),
    "eval/logprob": Metric("nats", "log-probability of the drawn tokens at temperature 1, mean over them"),
    "eval/length": Metric("tokens", "mean completion length, EOS included"),
    "eval/truncated": Metric("share", "completions cut off at the length limit"),
    "eval/self_agreement": Metric("share", "mean share of a problem's samples that give its most frequent answer"),
    "eval/transitional_rate": Metric("words/token", "transitional words per completion token"),
    "eval/transitional_share": Metric("share", "completions with at least one transitional word"),
    "eval/n": Metric("completions", "completions evaluated: problems times samples"),
    "eval/problems": Metric("problems", "distinct problems evaluated"),
    "eval/labelled": Metric("completions", "of eval/n those to problems with an answer, where some problems have none"),
    "probe/agreement": Metric(
        "share", "probe answers that agree with the frozen answer, in the asked form; of prompts that have one"
    ),
    "probe/agreement/stderr": Metric("share", "its standard error over prompts"),
    "probe/agreement/any_form": Metric("share", "the same in whatever form"),
    "probe/agreement/weighted": Metric("share", "probe/agreement, prompts weighted by the margin of the frozen vote"),
    "probe/agreement/trusted": Metric("share", "probe/agreement of prompts whose frozen vote was significant"),
    "probe/trusted": Metric("share", "prompts whose frozen vote was significant; the same at every look"),
    "probe/agreement/disputed": Metric(
        "share", "probe/agreement of prompts on which the start's temperatures disagree"
    ),
    "probe/agreement/change": Metric(
        "share", "probe/agreement less that of the first look (since the frozen answers were renewed)"
    ),
    "probe/agreement/change_low": Metric("share", "lower end of its 95 % interval, paired over prompts"),
    "probe/agreement/change_high": Metric("share", "upper end of its 95 % interval, paired over prompts"),
    "probe/rival/disputed": Metric("share", "of these prompts' answers, those that give the sharper source's answer"),
    "probe/self_agreement": Metric("share", "mean share of a prompt's samples that give its most frequent answer"),
    "probe/distinct": Metric("share", "different leading answers among the prompts that have one"),
    "probe/constant": Metric("share", "largest share that one answer has on prompts where it is not the frozen one"),
    "probe/identical": Metric(
        "share", "prompts whose samples are all the same text: no advantage for any reward of it"
    ),
    "probe/answered": Metric("share", "completions from which an answer could be read"),
    "probe/formatted": Metric("share", "completions with an answer in the asked form"),
    "probe/truncated": Metric("share", "completions cut off at the length limit"),
    "probe/looping": Metric(
        "share", "completions that repeat themselves: most word 4-grams, or zlib shrinks them sixfold"
    ),
    "probe/length": Metric("tokens", "mean completion length, EOS included"),
    "probe/repeated_ngrams": Metric("share", "word 4-grams that have stood in their completion before"),
    "probe/compression_ratio": Metric("1", "bytes over compressed bytes, mean over completions"),
    "probe/transitional_rate": Metric("words/token", "transitional words per completion token"),
    "probe/transitional_share": Metric("share", "completions with at least one transitional word"),
    "probe/entropy": Metric("nats", "entropy of the policy at temperature 1, mean over completion tokens"),
    "probe/cross_entropy": Metric("nats", "-ln π of fresh samples under the frozen start, mean over completion tokens"),
    "probe/cross_entropy_stderr": Metric("nats", "its standard error over prompts"),
    "probe/kl": Metric("nats", "k3 estimate of KL(policy, frozen start), mean over completion tokens"),
    "probe/kl/reasoning": Metric("nats", "the same over the tokens before the answer, where that was found"),
    "probe/kl/answer": Metric("nats", "the same over the tokens from the answer on, where that was found"),
    "probe/labelled_right": Metric("share", "right answers, in whatever form, to the problems of probe.labels"),
    "probe/labelled_right/stderr": Metric("share", "its standard error over problems"),
    "probe/labelled_right_and_formatted": Metric("share", "the same, right and in the asked form"),
    "probe/labelled_right_and_formatted/stderr": Metric("share", "its standard error over problems"),
    "probe/renewals": Metric("count", "how often the frozen answers have been renewed, this look included"),
    "probe/tokens": Metric("tokens", "what the look cost: tokens drawn, and those the frozen start was shown"),
    "guard/<name>": Metric("level", "what that guard says after a look: 0 ok, 1 warn, 2 stop"),
}


_PAGE_HEAD = """# Metrics

Every key of `metrics.jsonl`, one line a step. `python -m rlif.runs.metric_keys` prints this page from
`rlif.runs.metric_keys.METRICS`.

- `<name>` stands for any name, for example `reward/self_certainty/mean`.
- A share lies in [0, 1]. Keys under `eval/` are of the evaluation problems, at the steps that evaluate.
- A number that is not finite is written as `null`. So is one that needs labels, `verdict/right` and the like, in a
  task without: it is not known. Where some problems have a label it is of these.
- `eval/greedy_*` are the same problems at temperature 0, `eval/majority_*` the vote of the samples. At step 0 they
  are what the model gives without training: a gain is what goes beyond them.
- `mismatch/*` compares log-probabilities without top-p and top-k, of the completions that an update ran. At a
  temperature other than 1 the sampler's have these filters: the gap says nothing then, and nothing is warned of.
- Resuming from a checkpoint cuts the file back to the checkpoint's step first. A hole up to that step is refused
  (reliability.md).
- TensorBoard, W&B and trackio (`log.sinks`) receive the same keys; `time`, which trackio keeps for itself, is
  `time/total` there. They also receive the recipe, completions at each evaluation, and the model card at the end.
  A mirror that fails is reported once and switched off; the run and `metrics.jsonl` go on.

| key | unit | meaning |
|---|---|---|
"""


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    rows = (f"| `{key}` | {metric.unit} | {metric.meaning} |\n" for key, metric in METRICS.items())
    return _PAGE_HEAD + "".join(rows)


@cache
def find_metric(key: str) -> Metric | None:
    """What ``key`` means, None if `METRICS` does not know it; a ``<name>`` there matches any one path component."""
    matching = (metric for pattern, metric in METRICS.items() if re.fullmatch(_expression(pattern), key))
    return next(matching, None)


def _expression(pattern: str) -> str:
    return re.sub(r"<\w+>", "[^/]+", pattern)


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
