"""GSM8K, greedy: does `rlif eval` count the same problems right as lm-evaluation-harness 0.4.13?

    python -m venv lm-eval && . lm-eval/bin/activate
    pip install torch==2.13.0
    pip install -c constraints.txt . "lm-eval[hf]==0.4.13" datasets
    rlif models --fetch
    python benchmarks/lm_eval_gsm8k.py GSM8K_TEST.jsonl [--limit 200] [--dtype float32] [--out runs/bench]

GSM8K_TEST.jsonl holds openai/gsm8k's test split: columns question or problem, answer, id if there is one. Both systems
read the same weights (the model's unpacked folder in rlif's cache) in one number format, ask the same problems without
worked examples ("Question: ...\\nAnswer:"), stop at the same strings and after the same number of tokens, and draw
greedily. lm-evaluation-harness runs its own task gsm8k as it ships it, but for the local file and zero instead of five
examples.

Each answer is judged twice, by the rules strict-match and flexible-extract; rlif's verdict is `right` and `formatted`
with the extractor that repeats the rule. Every problem on which the two disagree is listed with its reason: the same
answer judged otherwise, or another answer. Of another answer it says where the two part, and how far apart the model
in float64 holds the two tokens there: less than the rounding of the number format is a tie that rounding decides.

Stopped, the same command goes on from the answers that either system has kept in --out; then its seconds mean nothing.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from common import print_table, write

from rlif.cli.evaluate import local
from rlif.evals.plan import Plan
from rlif.evals.runner import evaluate
from rlif.evals.settings import Settings
from rlif.evals.store import slug
from rlif.grading.grader import Grader
from rlif.model.registry import resolve

VERSION = "0.4.13"
RULES = {"strict-match": "gsm8k_strict", "flexible-extract": "gsm8k_flexible"}
"""Filter of lm-evaluation-harness to the extractor of rlif that repeats it."""


@dataclass(frozen=True)
class Answered:
    """One system's answer to a problem, and what each rule makes of it: what was read, and whether it is right."""

    prompt: str
    text: str
    read: Mapping[str, str | None]
    right: Mapping[str, bool]


def harness_task(problems: Path, max_new_tokens: int) -> dict[str, Any]:
    """The harness's own gsm8k, its stop strings and filters untouched, on a local file."""
    import lm_eval

    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8"))
    for key in ("tag", "dataset_name", "training_split", "fewshot_split"):
        del task[key]
    task["generation_kwargs"]["max_gen_toks"] = max_new_tokens
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(problems)}}}
    return {**task, **files, "task": "gsm8k_local", "num_fewshot": 0}


def ask_harness(task: dict[str, Any], given: argparse.Namespace, ids: Sequence[str], work: Path) -> dict[str, Answered]:
    """What lm-evaluation-harness answers and how it judges, by problem id."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": resolve(given.model), "dtype": given.dtype},
        tasks=[task],
        batch_size=given.batch,
        device="cpu",
        use_cache=str(work / "lm-eval"),
        bootstrap_iters=0,
    )
    found: dict[str, dict[str, Any]] = {}
    for sample in results["samples"]["gsm8k_local"]:
        one = found.setdefault(ids[sample["doc_id"]], {"read": {}, "right": {}})
        one["prompt"], one["text"] = sample["arguments"][0][0], sample["resps"][0][0]
        one["read"][sample["filter"]] = sample["filtered_resps"][0]
        one["right"][sample["filter"]] = bool(sample["exact_match"])
    return {name: Answered(**one) for name, one in found.items()}


def ask_rlif(settings: Settings, given: argparse.Namespace, out: Path) -> tuple[dict[str, Answered], dict[str, float]]:
    """What `rlif eval` answers, by problem id, and its speed."""
    from pyarrow import parquet

    model = local(given.model, settings, dtype=given.dtype, device="cpu")
    results = evaluate([model], settings, out)
    rows = parquet.read_table(out / slug(given.model) / "gsm8k").to_pylist()
    with Grader() as grader:
        found = {row["problem_id"]: judge(grader, row["prompt"], row["completion"], row["answer"]) for row in rows}
    return found, results["results"][0]["speed"]


def judge(grader: Grader, prompt: str, text: str, answer: str) -> Answered:
    """An answer by rlif's grader under both rules."""
    verdicts = {rule: grader.grade(text, answer, format=format, row_id=prompt) for rule, format in RULES.items()}
    return Answered(
        prompt,
        text,
        {rule: verdict.extracted if verdict.formatted else None for rule, verdict in verdicts.items()},
        {rule: bool(verdict.right) and verdict.formatted for rule, verdict in verdicts.items()},
    )


class Referee:
    """The model in float64, one text at a time, without padding or cache."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(resolve(model))
        self._model = AutoModelForCausalLM.from_pretrained(resolve(model), dtype=torch.float64).eval()

    @torch.no_grad()
    def parting(self, prompt: str, a: str, b: str) -> tuple[int, str, str, float]:
        """Where two answers part (tokens), with which tokens, and by how many nats the first is the likelier one.

        The tokens are those of the text; a text that ends where the other goes on is taken to end with EOS.
        """
        first, second = (self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in (a, b))
        first, second = [*first, self._tokenizer.eos_token_id], [*second, self._tokenizer.eos_token_id]
        at = next(i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y)
        text = [*self._tokenizer(prompt)["input_ids"], *first[:at]]
        logits = self._model(input_ids=torch.tensor([text])).logits[0, -1]
        tokens = first[at], second[at]
        x, y = (self._tokenizer.decode([token]) for token in tokens)
        return at, x, y, float(logits[tokens[0]] - logits[tokens[1]])


def differences(
    harness: Mapping[str, Answered], rlif: Mapping[str, Answered], answers: Mapping[str, str], referee: Referee
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The problems judged differently, rule by rule, each with its reason; and all answers that part."""
    parted, judged = {}, []
    for name, theirs in harness.items():
        ours = rlif[name]
        if theirs.prompt != ours.prompt:
            raise SystemExit(f"{name}: the prompts differ: {theirs.prompt!r}, {ours.prompt!r}")
        if theirs.text != ours.text:
            at, x, y, gap = referee.parting(ours.prompt, theirs.text, ours.text)
            parted[name] = {"id": name, "token": at, "lm-eval": x, "rlif": y, "nats": gap}
    for name, theirs in harness.items():
        for rule in RULES:
            if theirs.right[rule] == rlif[name].right[rule]:
                continue
            reason = "the same answer, judged otherwise"
            if name in parted:
                one = parted[name]
                reason = f"parted at token {one['token']}: {one['lm-eval']!r}, {one['rlif']!r}, {one['nats']:+.1e} nats"
            judged.append(
                {
                    "problem": name,
                    "rule": rule,
                    "truth": answers[name],
                    "lm-eval": _shown(theirs, rule),
                    "rlif": _shown(rlif[name], rule),
                    "reason": reason,
                }
            )
    return judged, list(parted.values())


def _shown(answered: Answered, rule: str) -> str:
    return f"{answered.read[rule]!r} {'right' if answered.right[rule] else 'wrong'}"


def main() -> None:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=50, help="rows of lm-evaluation-harness; rlif chooses its own")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = parser.parse_args()
    if version("lm-eval") != VERSION:
        raise SystemExit(f"lm-eval {version('lm-eval')} is installed, {VERSION} is what is compared with")

    work = given.out / f"lm-eval-gsm8k-{slug(given.model)}-{given.dtype}-{given.limit}"
    work.mkdir(parents=True, exist_ok=True)
    task = harness_task(work / "problems.jsonl", given.max_new_tokens)
    settings = Settings(
        tasks=("gsm8k",),
        data={"gsm8k": str(given.problems)},
        limit=given.limit,
        samples=1,
        temperature=0.0,
        max_new_tokens=given.max_new_tokens,
        template="qa",
        format="gsm8k_flexible",
        chat_template="off",
        stop=tuple(task["generation_kwargs"]["until"]),
    )
    problems = Plan("gsm8k", settings).problems
    rows = ({"question": one.question, "answer": f"#### {one.answer}"} for one in problems)
    (work / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    began = time.perf_counter()
    rlif, speed = ask_rlif(settings, given, work / "rlif")
    answered = time.perf_counter()
    harness = ask_harness(task, given, [one.id for one in problems], work)
    seconds = {"rlif": answered - began, "lm-eval": time.perf_counter() - answered}
    answers = {one.id: one.answer or "" for one in problems}
    judged, parted = differences(harness, rlif, answers, Referee(given.model))
    with Grader() as grader:  # the harness's own texts by our grader: what the grading alone does
        regraded = {name: judge(grader, one.prompt, one.text, answers[name]) for name, one in harness.items()}

    def right(system: Mapping[str, Answered], rule: str) -> int:
        return sum(one.right[rule] for one in system.values())

    table = [
        {
            "rule": rule,
            "problems": len(problems),
            f"lm-eval {VERSION}": right(harness, rule),
            "rlif": right(rlif, rule),
            "lm-eval's answers, graded by rlif": right(regraded, rule),
            "judged differently": sum(one["rule"] == rule for one in judged),
        }
        for rule in RULES
    ]
    print_table(table)
    print(f"\n{len(problems) - len(parted)} of {len(problems)} answers are the same, character by character.")
    print(f"seconds, loading included: rlif {seconds['rlif']:.0f}, lm-eval {seconds['lm-eval']:.0f}\n")
    for rows in (judged, parted):
        if rows:
            print_table(rows)
            print()
    write(
        given.out,
        work.name,
        {
            "table": table,
            "judged_differently": judged,
            "parted": parted,
            "seconds": seconds,
            "speed": speed,
            "task": task,
            "settings": settings.model_dump(),
            "answers": {name: {"lm-eval": asdict(harness[name]), "rlif": asdict(rlif[name])} for name in harness},
        },
    )


if __name__ == "__main__":
    main()
