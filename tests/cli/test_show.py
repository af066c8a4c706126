"""`rlif show`: the answers it picks are those that the files say, whatever the run lacks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hostile import run as command
from pages import STEPS, write_run
from rlif.cli.show import show_run
from rlif.errors import RlifError, printable_lines
from rlif.report.answer_tables import Candidate
from rlif.report.highlights import flipped, highlights, of_prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """p0 is right at steps 0 and 2 and wrong at 4; p1 is wrong, then right."""
    texts = {0: ["it is 7", "so 2"], 2: ["7", "so 2"], 4: ["6", "7"]}
    return write_run(tmp_path_factory.mktemp("show") / "run", texts)


def shown(run: Path, *arguments: str) -> str:
    outcome = command(["show", str(run), *arguments])
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def test_best_worst_and_flipped_are_those_of_the_files(run: Path) -> None:
    best, worst, turned = highlights(run, None, 1, [])
    assert [one.value("advantage") for one in best.answers] == [1.0]
    assert [one.value("advantage") for one in worst.answers] == [-1.0]
    assert turned.title == "flipped between steps 0 and 4: 2 of 2 evaluation prompts"
    (before, after) = turned.answers
    assert (before.prompt_id, before.value("right"), after.value("right")) == ("p0", True, False), "the losses first"
    assert [one.kind for one in turned.answers] == ["greedy", "greedy"]
    both = highlights(run, 2, 9, [])
    shares = [[one.value("advantage") for one in section.answers] for section in both[:2]]
    assert shares == [[1.0, 0.5], [-1.0, -0.5]], "none is called best and worst"
    assert both[2].answers == (), "nothing has turned by step 2"


def test_the_terminal_shows_verdict_reference_and_text(run: Path) -> None:
    text = shown(run)
    assert "toy, self_certainty, finished: 4 of 4 steps" in text
    assert "The best of 4 training completions of step 4, by advantage" in text
    assert "what is 5 + 2?  (reference answer: 7)" in text
    # tokens of row 0 have entropy 0, .01, …: five of them ("but 7" and EOS are six tokens)
    assert "step 4, training 1: right, formatted, read as 7, 6 tokens, entropy 0.025, self-certainty 0.250" in text
    assert "advantage +1.00\nbut 7<eos>\n" in text
    assert "step 4, greedy: wrong, formatted, 2 tokens" in text
    assert "evaluation answers" not in text
    first = shown(run, "--step", "0", "-n", "1")
    assert "The surest of 6 evaluation answers of step 0" in first
    assert "The least sure of 6 evaluation answers of step 0" in first


def test_a_prompt_is_followed_through_the_run(run: Path) -> None:
    sections = of_prompt(run, "p0", None, 9, [])
    assert [section.title for section in sections] == [f"step {step}" for step in STEPS]
    assert [section.answers[0].value("completion") for section in sections] == ["it is 7", "7", "6"]
    assert [len(section.answers) for section in sections] == [3, 3, 3]
    ends = of_prompt(run, "p0", None, 1, [])
    assert [section.title for section in ends] == ["step 0", "step 4"], "there is nothing to compare in one step"
    (group,) = of_prompt(run, "t2-0", None, 2, [])
    assert [one.kind for one in group.answers] == [f"training {i}" for i in (1, 2, 3, 4)]


def test_flips_without_labels_are_other_answers() -> None:
    def answers(right: list[bool | None], extracted: list[str]) -> list[Candidate]:
        table = pa.table({"right": pa.array(right, pa.bool_()), "extracted": extracted})
        return [Candidate(table, row, "0", "sampled", f"p{row}", 1) for row in range(len(right))]

    before = answers([None, None, True, None], ["7", "8", "7", "7"])
    after = answers([None, None, None, False], ["7", "9", "8", "7"])
    assert [one.prompt_id for _, one in flipped(before, after)] == ["p1"], "an undecided verdict is no flip"


def test_a_broken_off_run_shows_what_it_has(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "final" / "tokenizer.json").unlink()
    (run / "final").rmdir()
    for step in STEPS:
        (run / "eval_answers" / f"step-{step:06d}.parquet").unlink()
    (run / "rollouts" / "step-000004.parquet").write_bytes(b"PAR1 and nothing more")
    text = shown(run)
    assert "not finished: 4 of 4 steps so far" in text
    assert "no tokenizer.json is at hand" in text
    assert re.search(r"not shown: .*step-000004.parquet cannot be read and is left out", text)
    assert "The best of 4 training completions of step 2" in shown(run, "--step", "2")
    table = pq.read_table(run / "rollouts" / "step-000002.parquet").drop_columns(["advantage"])
    pq.write_table(table.replace_schema_metadata(None), run / "rollouts" / "step-000002.parquet")
    assert "has no column advantage and is left out" in shown(run, "--step", "2")


def test_no_label_no_reference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for path in sorted((run / "eval_answers").glob("*.parquet")):
        table = pq.read_table(path).replace_schema_metadata(None)  # without its checksum
        rows = [{**row, "right": None, "answer": None} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    text = shown(run, "--prompt", "p0")
    assert "reference answer" not in text
    assert "greedy: no label, " in text
    assert "no label: nobody knows what is right" in text
    assert "undecided" not in text


def test_the_words_on_the_screen_are_explained_and_no_others(run: Path) -> None:
    text = shown(run, "--step", "4")
    legend = text.splitlines()[1]
    assert "training N: the N-th completion of its prompt; greedy, sampled: how" in legend
    assert "advantage: above 0 made likelier" in legend
    for absent in ("cut off", "undecided", "no label", "colour"):  # the colours: there are none in a pipe
        assert absent not in text
    assert "advantage" not in shown(run, "--prompt", "p0")


def test_an_answer_of_nothing_is_seen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {4: ["", " \n "]})
    assert re.search(r"step 4, greedy: .*\n\(empty\)\n", shown(run, "--prompt", "p0"))
    assert re.search(r"step 4, greedy: .*\n\(only white space: ' \\n '\)\n", shown(run, "--prompt", "p1"))


def test_what_is_wrong_is_said_in_one_line(run: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([str(tmp_path / "none")], "no such folder; give a folder that rlif train wrote"),
        ([str(tmp_path)], "holds no run; give a folder that rlif train wrote"),
        ([str(run), "--step", "3"], "--step: no answers of step 3 were kept; choose from 0, 2, 4"),
        ([str(run), "--prompt", "p9"], f"--prompt: {run} has no answer to 'p9'; did you mean"),
    ):
        outcome = command(["show", *arguments])
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert said in outcome.err
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(RlifError, match=r"no answer was kept; see log\.rollouts_every"):
        show_run(tmp_path, step=None, prompt=None, n=1, whole=False)


def test_long_and_hostile_answers_stand_as_text(tmp_path: Path) -> None:
    wild = "\x1b[2J\u202e[bold]" + "long " * 1000
    run = write_run(tmp_path / "run", {4: [wild, "so 2"]})
    (run / "final" / "tokenizer.json").unlink()  # the toy tokenizer knows few characters
    text = shown(run, "--prompt", "p0")
    assert printable_lines(wild)[:1000] in text
    assert "\x1b" not in text
    assert f"… {len(printable_lines(wild)) - 1200:,} more characters (--whole shows them)" in text
    assert printable_lines(wild) in shown(run, "--prompt", "p0", "--whole")


def test_answers_are_shown_without_torch(run: Path) -> None:
    read = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises
from pathlib import Path
from rlif.cli.show import show_run
show_run(Path(sys.argv[1]), step=None, prompt=None, n=1, whole=False)
"""
    done = subprocess.run([sys.executable, "-c", read, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The best of 4" in done.stdout
