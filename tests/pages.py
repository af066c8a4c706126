"""Run folders as the page's tests read them: written by the run log, their numbers known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlif.recipes import parse_recipe
from rlif.runs.run_log import RunLog
from rlif.types import Problem, Prompt, Rollouts, Sampling, Scored, TokenSignals, Verdict
from toys import toy_tokenizer

INFO = {"model": "toy", "started": "2026-01-02T03:04:05+00:00", "versions": {"rlif": "0", "torch": "2"}}
STEPS = (0, 2, 4)
SCORES = {0: 0.25, 2: 0.75, 4: 0.125}
"""Right and formatted, sampled, by step: a rise and a fall."""

HOSTILE = (
    '</script><script>document.title="broken"</script><!-- <img src=x onerror=alert(1)> & "quotes" \'too\'',
    '</script ><script >document.title="broken"</script ><!--<script ',
    "left \u202etfel\u2066 \u200f right",
    "bell\x07 escape\x1b[31m null\x00 nel\x85 lines\u2028\u2029 bom\ufeff",
    "long " * 2000,
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "中文 😀 עברית",
)
"""Texts that a model may write, each of which must stand on the page as text."""


def rollouts(prompts: Sequence[Prompt], texts: Sequence[str], group_size: int = 1) -> Rollouts:
    """Completions of character tokens (those the toy tokenizer knows, else <unk>), then EOS; signals tell their place:
    token t of row r has entropy r + t / 100, log-probability its negative and self-certainty ten times as much."""
    tokenizer = toy_tokenizer()
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    width = max(map(len, ids))
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in ids])
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    entropy = (torch.arange(len(ids))[:, None] + torch.arange(width)[None] / 100.0) * mask
    return Rollouts(
        prompts=tuple(prompts),
        group_size=group_size,
        tokens=tokens,
        mask=mask,
        sampler_logprobs=-entropy,
        signals=TokenSignals(-entropy, entropy, 10.0 * entropy),
        texts=tuple(texts),
        stop_reasons=("eos",) * len(ids),
        sampling=Sampling(),
    )


def prompts(texts: Sequence[str], name: str = "p") -> list[Prompt]:
    return [Prompt(f"{name}{i}", text, (3,), Problem(f"{name}{i}", text, "7")) for i, text in enumerate(texts)]


def judged(texts: Sequence[str]) -> tuple[Verdict, ...]:
    """Right is what holds a 7."""
    return tuple(Verdict("7" in text, True, "7" if "7" in text else None) for text in texts)


def line(step: int, **more: float) -> dict[str, float]:
    """The metrics of a step that is evaluated."""
    score = SCORES[step]
    return {
        "signal/entropy": 2.0 - step / 10,
        "entropy/predicted": -0.03,
        "entropy/measured": -0.02,
        "length/mean": 9.0 - step,
        "reward/self_certainty/mean": 4.0 + step,
        "kl": 0.001 * step,
        "eval/n": 64,
        "eval/problems": 64,
        "eval/undecided": 0.0,
        "eval/right": score + 0.125,
        "eval/formatted": 0.875,
        "eval/right_and_formatted": score,
        "eval/right_and_formatted_stderr": 0.03,
        "eval/greedy_right_and_formatted": score,
        "eval/greedy_right_and_formatted_stderr": 0.04,
        "eval/entropy": 1.5 - step / 10,
        "eval/self_certainty": 3.0 + step,
        "eval/length": 8.0 - step,
        "eval/transitional_share": 0.5 - step / 10,
        **more,
    }


def write_run(out: Path, texts: Mapping[int, Sequence[str]] | None = None, **recipe: Any) -> Path:
    """A finished run of four steps, evaluated at `STEPS`: two held-out problems, each answered greedily and twice.

    ``texts``: at a step, the answers to them (greedy ones; sampled ones are the same); else they get shorter.
    """
    changes = {"steps": 4, "policy": {"model": "toy"}, "task": {"name": "arithmetic"}, "reward": "self_certainty"}
    log = RunLog.create(out, parse_recipe({**changes, **recipe}), info=INFO)
    asked = prompts(["what is 3 + 4?", "what is 1 + 1?"])
    for step in STEPS:
        said = (texts or {}).get(step) or [f"wait, {'so ' * (4 - step)}7", "so 2"]
        greedy = (rollouts(asked, said), judged(said))
        twice = [text for text in said for _ in range(2)]
        sampled = (rollouts(asked, twice, group_size=2), judged(twice))
        log.write_eval_answers(step, {"sampled": sampled, "greedy": greedy}, 8)
        if step:
            train = prompts(["what is 5 + 2?"], f"t{step}-")
            rows = ["but 7", "6", "7", "no"]
            scored = rollouts(train, rows, group_size=4)
            advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
            log.write_rollouts(step, Scored(scored, judged(rows), {"self_certainty": advantages}, advantages))
        log.write(step, line(step))
    log.close()
    (out / "final").mkdir()
    toy_tokenizer().backend_tokenizer.save(str(out / "final" / "tokenizer.json"))
    return out


def data_of(page: str) -> Any:
    """The JSON that a page's scripts read."""
    return json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
