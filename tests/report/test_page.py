"""The page: it needs no network, shows what is in the files and nothing else, and stays small."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pages import HOSTILE, INFO, SCORES, STEPS, data_of, line, write_run
from rlif.cli.report import gather
from rlif.errors import RlifError, printable_lines
from rlif.report import page as page_module
from rlif.report.charts import MOST_ROWS, _rows
from rlif.report.page import LIMIT, MARK, Subjects, page, write_page
from rlif.report.run_record import read_run
from toys import toy_tokenizer

STUB = "/* plotly stands here */"


class Elements(HTMLParser):
    """The elements of a page, the texts in them, and the raw text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page(gather([run]), STUB)


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    elements = Elements(html)
    for tag, attributes in elements.tags:
        assert not {"src", "srcset", "action", "background", "ping"} & set(attributes), (tag, attributes)
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        assert attributes.get("href", "#").startswith("#"), attributes
    assert "url(" not in html
    assert "@import" not in html
    policy = next(attributes["content"] for tag, attributes in elements.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert policy.count("unsafe-inline") == 1, "of styles, which plotly writes"


def test_only_the_page_s_own_scripts_may_run(html: str) -> None:
    import base64
    import hashlib

    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert [scripts[0] == STUB, len(scripts)] == [True, 3]
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"&#39;sha256-{digest}&#39;" in html


def test_numbers_on_the_page_are_those_of_the_files(html: str, run: Path) -> None:
    lines = [json.loads(one) for one in (run / "metrics.jsonl").read_text().splitlines()]
    data = data_of(html)
    drawn = {one["key"]: one for chart in data["panels"][0]["charts"] for one in chart["lines"]}
    assert {"eval/right_and_formatted", "eval/greedy_right_and_formatted", "kl", "entropy/predicted"} <= set(drawn)
    for key, one in drawn.items():
        assert one["x"] == [each["step"] for each in lines if key in each], key
        assert one["y"] == pytest.approx([each[key] for each in lines if key in each], rel=1e-5), key
    assert drawn["eval/right_and_formatted"]["e"] == [0.03] * 3
    assert drawn["kl"]["e"] is None
    text = " ".join(Elements(html).texts)
    assert "0.250 ± 0.030" in text
    assert "0.750 ± 0.030 @ 2" in text
    assert "0.125 ± 0.030 @ 4" in text
    assert "rises, then falls with self_certainty (0.25 → 0.75 at step 2 → 0.12)" in text
    assert "entropy 1.500 → 1.100 nats a token" in text
    assert "One run, finished: 4 of 4 steps." in text
    assert html.count('<th scope="row" rowspan="2">toy, self_certainty</th><td rowspan="2">1</td>') == 1


def test_a_folder_of_runs_is_named_and_what_stays_0_is_not_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "pairs" / name, reward=name) for name in ("self_certainty", "token_entropy")]
    rows = [{"step": step, **line(step, **{"eval/truncated": 0.0, "eval/length": 7.0})} for step in STEPS]
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    html = page(gather([tmp_path / "pairs"]), STUB)
    assert "<title>pairs: 2 runs</title>" in html
    text = " ".join(Elements(html).texts)
    assert "length 7 → 7 tokens" in text
    assert "cut off at the limit" not in text.partition("Right and formatted answers to the problems")[0]


def test_the_viewer_has_the_tokens_of_the_parquet_files(html: str, run: Path) -> None:
    (source,) = data_of(html)["sources"]
    ids = [prompt["id"] for prompt in source["prompts"]]
    shown = {(ids[one["p"]], source["places"][one["s"]], one["k"]): one for one in source["answers"]}
    assert source["places"] == ["0", "2", "4"]
    assert len(shown) == len(source["answers"]) == 3 * 2 * 3 + 2 * 4
    tokenizer = toy_tokenizer()
    for step in STEPS:
        for row in pq.read_table(run / "eval_answers" / f"step-{step:06d}.parquet").to_pylist():
            kind = row["decoding"] + (f" {row['sample'] + 1}" if row["sample"] else "")
            one = shown[row["prompt_id"], str(step), kind]
            assert "".join(one["t"]) == tokenizer.decode(row["tokens"]), "EOS by its name at the end"
            assert len(one["t"]) == one["n"] == len(row["tokens"])
            for name, scale in (("entropy", 1000), ("logprob", 1000), ("self_certainty", 100)):
                assert one["v"][name] == [round(value * scale) for value in row[name]]
                assert one["m"][name] == pytest.approx(sum(row[name]) / len(row[name]), rel=1e-4)
            assert (one["r"], one["f"], one["x"]) == (row["right"], row["formatted"], row["extracted"])
    first = shown["p0", "0", "greedy"]
    assert ["".join(first["t"][a:b]) for a, b in first["w"]] == ["wait"]
    trained = [one for one in source["answers"] if one["k"].startswith("training")]
    assert sorted(one["a"] for one in trained) == [-1.0, -1.0, -0.5, -0.5, 0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_writes_stands_there_as_text(text: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {2: [text, "so 2"]}, policy={"model": f"./{text[:60]}".replace("\0", "")})
    (run / "final" / "tokenizer.json").unlink()  # the toy tokenizer knows few characters: the text is shown whole
    html = page(gather([run]), STUB)
    plain = page(gather([write_run(tmp_path / "plain")]), STUB)
    tags = [[tag for tag, _ in Elements(one).tags if tag != "li"] for one in (html, plain)]  # a note more or less
    assert tags[0] == tags[1], "the text made an element"
    assert not any(name.startswith("on") for _, attributes in Elements(html).tags for name in attributes)
    wild = [character for character in html if not character.isprintable() and character not in "\n\t"]
    assert wild == []
    raw = html.partition('id="data">')[2].partition("</script>")[0]
    assert not {"<", ">", "&"} & set(raw), "whatever a parser takes for an end"
    (source,) = data_of(html)["sources"]
    answers = [one for one in source["answers"] if one["s"] == 1 and source["prompts"][one["p"]]["id"] == "p0"]
    assert {one["k"] for one in answers} == {"greedy", "sampled", "sampled 2"}
    for one in answers:
        assert one["t"] == [printable_lines(text)]


def test_without_a_tokenizer_the_text_is_whole(tmp_path: Path) -> None:
    text = HOSTILE[0]
    run = write_run(tmp_path / "run", {0: [text, text]})
    (run / "final" / "tokenizer.json").unlink()
    html = page(gather([run]), STUB)
    (source,) = data_of(html)["sources"]
    first = next(one for one in source["answers"] if one["s"] == 0)
    assert first["t"] == [printable_lines(text)]
    assert "v" not in first
    assert "no tokenizer.json was found" in html


def test_a_page_keeps_to_its_size_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", {step: ["7 is it. " * 40, "so 2"] for step in STEPS})
    whole = page(gather([run]), STUB)
    assert "evaluation answers are here" not in whole
    without = len(page_module._render(*_context_of(run), [], [STUB]).encode())
    monkeypatch.setattr(page_module, "LIMIT", without + 60_000)
    small = page(gather([run]), STUB)
    assert without < len(small.encode()) <= without + 60_000
    (source,) = data_of(small)["sources"]
    assert 0 < len(source["answers"]) < len(data_of(whole)["sources"][0]["answers"])
    assert {one["k"] for one in source["answers"]} >= {"greedy"}
    assert source["places"][0] == "0"
    assert source["places"][-1] == "4"
    assert re.search(
        rf"\d+ of 18 evaluation answers are here; all lie in {re.escape(str(run / 'eval_answers'))}", small
    )


def _context_of(run: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    subjects = gather([run])
    groups = page_module.grouped(subjects.runs)
    return page_module._context(subjects, groups), list(page_module._panels(subjects, groups))


def test_seeds_are_one_line_with_a_band(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]
    path = runs[1] / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, **line(step, kl=0.5)}) + "\n" for step in STEPS))
    data = data_of(page(gather(runs), STUB))
    assert data["panels"][0]["groups"] == ["toy, self_certainty"]
    drawn = {one["key"]: one for chart in data["panels"][0]["charts"] for one in chart["lines"]}
    first = [0.001 * step for step in STEPS]
    assert drawn["kl"]["y"] == pytest.approx([(kl + 0.5) / 2 for kl in first])
    # Two values a and b: sd = |a - b| / √2, and its standard error of the mean |a - b| / 2.
    assert drawn["kl"]["e"] == pytest.approx([(0.5 - kl) / 2 for kl in first])
    labels = [source["label"] for source in data["sources"]]
    assert labels == ["toy, self_certainty, seed 0", "toy, self_certainty, seed 1"]


def test_runs_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{lr}", grpo={"lr": lr}) for lr in (1e-4, 1e-5)]
    groups = data_of(page(gather(runs), STUB))["panels"][0]["groups"]
    assert groups == ["toy, self_certainty (grpo.lr=0.0001)", "toy, self_certainty (grpo.lr=1e-05)"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("run.json", "recipe.yaml", "final/tokenizer.json", "rollouts/step-000002.parquet"):
        (run / name).unlink()
    (run / "final").rmdir()
    (run / "eval_answers" / "step-000002.parquet").write_bytes(b"PAR1 and nothing more")
    text = " ".join(Elements(page(gather([run]), STUB)).texts)
    assert "run.json cannot be read (No such file or directory)" in text
    assert "recipe.yaml cannot be used" in text
    assert re.search(r"eval_answers/step-000002.parquet cannot be read and is left out", text)
    assert "One run, not finished: 4 steps so far." in text


def test_a_run_without_labels_or_evaluations_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"step": step, **line(step), "eval/undecided": 1.0} for step in STEPS]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    bare = page(gather([run]), STUB)
    assert "No answer has a label, so nothing is said of right and wrong" in bare
    titles = [chart["title"] for chart in data_of(bare)["panels"][0]["charts"]]
    assert "Form or reasoning: right in any form, and in the asked form" in titles, "eval/right is there"
    formed = [{key: value for key, value in one.items() if key != "eval/right"} for one in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in formed))
    titles = [chart["title"] for chart in data_of(page(gather([run]), STUB))["panels"][0]["charts"]]
    assert "Answers in the asked form" in titles
    assert not any(title.startswith("Form or reasoning") for title in titles)
    kept = [{key: value for key, value in one.items() if not key.startswith("eval/")} for one in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    text = page(gather([run]), STUB)
    assert "Nothing was evaluated (eval.every)" in text
    assert "length 9 → 5 tokens" in text
    (run / "metrics.jsonl").write_text("")
    assert "metrics.jsonl holds no step yet" in page(gather([run]), STUB)


def test_the_chosen_step_stands_between_the_first_and_the_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    agreed = {0: 0.42, 2: 0.54, 4: 0.4}
    lines = [{"step": step, **line(step), "probe/agreement": value} for step, value in agreed.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert "untrained policy&#39;s answers 0.42 → 0.40" in page(gather([run]), STUB)
    selected = {"step": 2, "last": 4, "looks": 3, "criterion": "probe/agreement", "value": 0.54}
    (run / "run.json").write_text(json.dumps({**INFO, "selected": selected}))
    assert "untrained policy&#39;s answers 0.42 → 0.54 at step 2, chosen → 0.40" in page(gather([run]), STUB)


def test_guards_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    levels = {0: 0.0, 2: 1.0, 4: 2.0}
    lines = [{"step": step, **line(step), "guard/agreement": level, "kl": math.nan} for step, level in levels.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one).replace("NaN", "null") + "\n" for one in lines))
    text = page(gather([run]), STUB)
    assert "Guards spoke in 1 of 1 runs. toy, self_certainty: agreement warned at step 2, agreement said stop" in text


def test_a_file_of_another_is_not_written_over(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "plotly", lambda: STUB)
    out = tmp_path / "sub" / "report.html"
    size = write_page(gather([run]), out)
    assert size == out.stat().st_size <= LIMIT
    assert MARK in out.read_text("utf-8")
    write_page(gather([run]), out)
    out.write_text("my own")
    with pytest.raises(RlifError, match="holds something else"):
        write_page(gather([run]), out)
    assert out.read_text() == "my own"
    with pytest.raises(RlifError, match="a folder; give the name of a file"):
        write_page(gather([run]), tmp_path)
    with pytest.raises(RlifError, match="nothing to show"):
        page(Subjects(), STUB)
    with pytest.raises(RlifError, match="holds no run, study or evaluation"):
        gather([tmp_path])
    with pytest.raises(RlifError, match="no such folder"):
        gather([tmp_path / "none"])


def test_a_folder_of_runs_is_all_of_them(run: Path) -> None:
    assert [one.folder for one in gather([run.parent]).runs] == [run]


READ = """
import sys
from pathlib import Path

sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises
from rlif.cli.report import gather
from rlif.report.page import page

text = page(gather([Path(sys.argv[1])]), "")
assert '"v":{' in text, "tokens"
"""


def test_the_page_is_made_without_torch(run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READ, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_info_stands_on_the_page(html: str) -> None:
    text = " ".join(Elements(html).texts)
    assert INFO["started"] in text
    assert "reward:" in text
    assert str(SCORES[2]) in text
    assert torch.__version__ not in text, "what the run says, not what is here"


def test_a_kl_that_nobody_measured_is_not_shown_as_none(tmp_path: Path) -> None:
    """0 is logged where a run has no reference, however far its policy has moved."""
    free = read_run(write_run(tmp_path / "free", grpo={"kl_coef": 0.0}))
    held = read_run(write_run(tmp_path / "held", grpo={"kl_coef": 0.1}))
    assert not any("kl" in one for one in free.lines)
    assert all("kl" in one for one in held.lines)


def test_the_step_of_the_final_model_is_told_where_looks_chose_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    chosen = {"step": 2, "last": 4, "looks": 3, "stopped": None}
    (run / "run.json").write_text(json.dumps({**info, "selected": chosen}))
    told = "the final model is that of step 2 of 4, which of 3 looks without labels agreed most"
    write_page(gather([run]), tmp_path / "page.html")
    assert told in (tmp_path / "page.html").read_text("utf-8")


def test_of_many_guards_those_that_were_always_ok_are_left_out() -> None:
    quiet = [{"name": f"quiet {i}", "y": [0.0, 0.0]} for i in range(MOST_ROWS)]
    loud = {"name": "loud", "y": [0.0, 2.0]}
    assert _rows([*quiet, loud]) == {"lines": [loud], "quiet": MOST_ROWS}
    assert _rows([*quiet[1:], loud]) == {"lines": [*quiet[1:], loud], "quiet": 0}
    many = quiet + quiet
    assert _rows(many) == {"lines": quiet, "quiet": MOST_ROWS}, "some are drawn where none has spoken"
