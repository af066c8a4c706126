"""The page in a headless Chromium, where there is one: what its scripts make of the numbers and answers."""

import html
import importlib.util
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pages import HOSTILE, STEPS, line, write_run
from rlif.cli.report import gather
from rlif.errors import printable_lines
from rlif.report.page import page, plotly

BROWSER = shutil.which("chromium")


@pytest.fixture(autouse=True)
def browser() -> None:
    """Absent: the tests are skipped. .ci/run installs it where it can."""
    if BROWSER is None:
        pytest.skip("no chromium here: apt-get install chromium")


STUB = """
window.drawn = [];
window.Plotly = { react: (node, traces, layout) => window.drawn.push({ traces, layout }) };
"""
"""In the place of plotly: it notes what is drawn."""

# Runs the checks when the page has set itself up.
BEFORE = """
window.errors = [];
window.addEventListener("error", (event) => window.errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => window.errors.push(event.blockedURI));
window.addEventListener("load", () => setTimeout(async () => {
  let found;
  try { found = await (async () => { CHECK })(); } catch (error) { found = { thrown: String(error) }; }
  document.documentElement.dataset.found = JSON.stringify({ ...found, errors: window.errors });
}, 300));
"""

CARDS = """
const cards = () => [...document.querySelectorAll(".card")].map((node) => ({
  title: node.querySelector("h3").textContent, current: node.getAttribute("aria-current"),
  text: node.querySelector(".tokens").textContent, label: node.getAttribute("aria-label"),
  unsure: [...node.querySelectorAll(".tokens span")].map((one) => Number(one.style.getPropertyValue("--u"))),
  words: [...node.querySelectorAll(".word")].map((one) => one.textContent).join(""),
}));
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const focus = () => document.querySelector('.card[aria-current="true"]').focus();
const pick = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("change"));
};
"""


def seen(run: Path, check: str, *, address: str = "", width: int = 1200, script: str = STUB) -> Any:
    """What ``check`` returns in the page of a run. Fails if anything went wrong in the browser."""
    path = run / "page.html"
    path.write_text(page(gather([run]), script + "\n" + BEFORE.replace("CHECK", CARDS + check)), "utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"),
        *(f"--window-size={width},900", "--dump-dom", path.as_uri() + address),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, "the page's scripts did not come to their end"
    found = json.loads(html.unescape(match[1]))
    assert found.pop("errors") == []
    assert "thrown" not in found, found
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("browser") / "run")


def test_curves_and_cards_are_those_of_the_files(run: Path) -> None:
    found = seen(run, "return { drawn: window.drawn, cards: cards(), asked: asked.textContent };")
    ys = [trace["y"] for one in found["drawn"] for trace in one["traces"]]
    assert [0.25, 0.75, 0.125] in ys
    assert [card["title"] for card in found["cards"]] == [f"step {step}, greedy" for step in STEPS]
    rows = [
        row
        for step in STEPS
        for row in pq.read_table(run / "eval_answers" / f"step-{step:06d}.parquet").to_pylist()
        if row["prompt_id"] == "p0" and row["decoding"] == "greedy"
    ]
    for card, row in zip(found["cards"], rows, strict=True):
        assert card["text"] == row["completion"] + "<eos>"
        assert card["words"] == "wait"
        assert "right, formatted" in card["label"]
        # the square root of the share of 3 nats that a token's entropy is
        expected = [min(1.0, value / 3) ** 0.5 for value in row["entropy"]]
        assert card["unsure"] == pytest.approx(expected, abs=2e-3)
    assert found["asked"].startswith("what is 3 + 4?")
    assert found["asked"].endswith("reference answer: 7")


def test_a_card_without_a_reference_answer_says_that_there_is_no_label(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare")
    for path in sorted((run / "eval_answers").glob("*.parquet")):
        table = pq.read_table(path).replace_schema_metadata(None)  # without its checksum
        bare = {"p0": {"right": None, "answer": None}, "p1": {"right": None}}
        rows = [{**row, **bare[row["prompt_id"]]} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    found = seen(
        run,
        """
        const labels = () => cards().map((one) => one.label);
        const first = labels(); focus(); press("ArrowDown");
        return { first, second: labels() };
        """,
    )
    assert all(": no label, formatted" in label for label in found["first"])
    assert all(": undecided, formatted" in label for label in found["second"])


def test_keys_and_filters_lead_through_steps_and_prompts(run: Path) -> None:
    found = seen(
        run,
        """
        const at = () => cards().find((one) => one.current === "true").title;
        const trail = [at()];
        focus();
        for (const key of ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"]) { press(key); trail.push(at()); }
        press("]"); press("]");
        const token = document.getElementById("token").textContent;
        press("ArrowDown");
        const second = [asked.textContent, at(), location.hash];
        pick("verdict", "right");
        const right = [document.getElementById("count").textContent, asked.textContent];
        pick("verdict", ""); pick("kind", "training");
        const training = cards().map((one) => one.title);
        return { trail, token, second, right, training };
        """,
    )
    steps = ["step 0", "step 2", "step 4", "step 4", "step 2"]
    assert found["trail"] == [f"{step}, greedy" for step in steps]
    assert found["token"].startswith("token 2 of ")
    assert "“a”: entropy 0.010, self-certainty 0.100, log-probability -0.010 nats" in found["token"]
    assert found["second"][0].startswith("what is 1 + 1?")
    assert found["second"][2] == "#prompt=p1&step=2&drawn=greedy"
    assert found["right"][0].startswith("1 of ")
    assert found["right"][1].startswith("what is 3 + 4?")
    assert found["training"] == [f"step 2, training {i}" for i in (1, 2, 3, 4)]


def test_an_address_leads_to_its_answer(run: Path) -> None:
    check = "return { cards: cards(), asked: asked.textContent };"
    found = seen(run, check, address="#prompt=p1&step=4&drawn=sampled+2")
    assert found["asked"].startswith("what is 1 + 1?")
    assert [card["title"] for card in found["cards"] if card["current"] == "true"] == ["step 4, sampled 2"]


def test_nothing_a_model_writes_becomes_markup(tmp_path: Path) -> None:
    for i, text in enumerate(HOSTILE[:3]):
        run = write_run(tmp_path / f"run{i}", {step: [text, "so 2"] for step in STEPS})
        (run / "final" / "tokenizer.json").unlink()  # the toy tokenizer knows few characters
        found = seen(run, "return { cards: cards(), title: document.title, images: document.images.length };")
        assert found["cards"][0]["text"] == printable_lines(text)
        assert (found["title"], found["images"]) == ("toy, self_certainty", 0)


def test_a_phone_does_not_scroll_sideways(run: Path) -> None:
    check = "return { wide: document.documentElement.scrollWidth, room: innerWidth };"
    found = seen(run, check, width=500)
    assert found["wide"] <= found["room"]


def test_guards_are_a_row_each_told_apart_by_colour_and_shape(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    said = {0: (0, 0), 2: (0, 1), 4: (0, 2)}
    rows = [{**line(step), "step": step, "guard/length": a, "guard/agreement": b} for step, (a, b) in said.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = seen(
        run,
        """
        const figures = [...document.querySelectorAll("figure")];
        const guards = figures.find((one) => one.textContent.startsWith("What the guards"));
        const key = guards.querySelector("figcaption").textContent, label = guards.querySelector(".plot").ariaLabel;
        const chart = PAGE.panels[0].charts.find((one) => one.kind === "states");
        const drawn = [PAGE.panels[0], chart, new Set([0])];
        return { key, label, traces: traces(...drawn), layout: layout(...drawn) };
        """,
    )
    assert found["label"] == "What the guards say: agreement says warn at step 2; agreement says stop at step 4"
    assert "● ok" in found["key"]
    assert found["layout"]["yaxis"]["categoryarray"] == ["agreement", "length"]
    marks = [(one["name"], list(zip(one["x"], one["y"], strict=True))) for one in found["traces"]]
    assert marks == [
        ("ok", [(0, "agreement"), (0, "length"), (2, "length"), (4, "length")]),
        ("warn", [(2, "agreement")]),
        ("stop", [(4, "agreement")]),
    ]
    for name in ("symbol", "color"):
        assert len({one["marker"][name] for one in found["traces"]}) == 3


def test_axes_reach_as_far_as_what_they_show_is_told_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    seldom = {"eval/transitional_share": 0.2, "eval/truncated": 0.0}
    rows = [{"step": step, **line(step, **seldom)} for step in STEPS]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = seen(
        run,
        """
        const axis = (title) => {
          const chart = PAGE.panels[0].charts.find((one) => one.title.startsWith(title));
          return layout(PAGE.panels[0], chart, new Set([0])).yaxis;
        };
        const titles = ["Right and", "Answers with a", "Answers cut", "Self-certainty", "Length"];
        return { axes: titles.map((one) => [axis(one).range, axis(one).rangemode]) };
        """,
    )
    high, seldom_seen, never, certainty, length = found["axes"]
    assert high[0] == pytest.approx([-0.02, 1.05]), "up to .75: to 1"
    assert seldom_seen[0] == pytest.approx([-0.004, 0.21])
    assert never[0] == pytest.approx([-0.002, 0.105])
    assert (certainty[1], length[1]) == ("normal", "tozero")


def test_of_many_lines_the_solid_ones_alone_have_bands(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"run{i}", reward=name) for i, name in enumerate(("self_certainty", "length", "random"))
    ]
    rows = [{"step": step, **line(step), "eval/majority_right_and_formatted": 0.5} for step in STEPS]
    errors = {f"eval/{name}right_and_formatted_stderr": 0.1 for name in ("", "greedy_", "majority_")}
    for run in runs:
        (run / "metrics.jsonl").write_text("".join(json.dumps({**one, **errors}) + "\n" for one in rows))
    check = """
    const bands = (shown) => traces(PAGE.panels[0], PAGE.panels[0].charts[0], new Set(shown))
      .filter((one) => one.fill).length;
    return { nine: bands([0, 1, 2]), six: bands([0, 1]) };
    """
    assert seen(tmp_path, check) == {"nine": 3, "six": 6}


@pytest.mark.parametrize(("theme", "width"), [("light", 1200), ("dark", 1200), ("light", 500)])
def test_axe_finds_no_serious_violation(run: Path, theme: str, width: int) -> None:
    axe = (resources.files("axe_core_python") / "axe.min.js").read_text("utf-8")
    found = seen(
        run,
        f"""
        setTheme("{theme}");
        for (const one of document.querySelectorAll("details")) one.open = true;
        const all = await axe.run(document);
        const told = (one) => `${{one.id}} (${{one.impact}}): ${{one.nodes.map((node) => node.html.slice(0, 150))}}`;
        const serious = all.violations.filter((one) => ["serious", "critical"].includes(one.impact));
        return {{ serious: serious.map(told), passed: all.passes.map((one) => one.id) }};
        """,
        width=width,
        script=STUB + axe,
    )
    assert found["serious"] == []
    looked_at = {"color-contrast", "select-name", "button-name", "document-title", "html-has-lang"}
    assert looked_at <= {*found["passed"]}, found["passed"]


@pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="no plotly here")
def test_plotly_draws_under_the_page_s_policy(run: Path) -> None:
    check = """
    const first = document.querySelector(".plot");
    const lines = () => first.querySelectorAll(".scatterlayer .trace path.js-line").length;
    document.getElementById("theme").click();
    return { drawn: document.querySelectorAll(".plot .main-svg").length, lines: lines(), label: first.ariaLabel };
    """
    found = seen(run, check, script=plotly())
    assert found["drawn"] > 0
    assert found["lines"] >= 2
    assert "sampled from 0.25 to 0.125" in found["label"]
