"""The pages: lines short enough to read anywhere, and links that lead somewhere."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from rlif.cli.main import UsageError, app

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text("utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
}
WIDTH = 110
WIDER = {
    *("CHANGELOG.md", "CONTRIBUTING.md", "docs/LOG.md", "docs/architecture.md", "docs/tiny.md"),
    *("docs/commands.md", "docs/metrics.md", "docs/recipe.md"),
}
"""Pages that may be wider: lists that are generated or grow by a line at a time, and notebooks."""


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines outside fenced blocks, with their numbers."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def too_long(text: str) -> list[tuple[int, int]]:
    """Number and length of each line of prose that is too long; tables and lines of a single link or word may be."""
    return [
        (number, len(line))
        for number, line in prose(text)
        if len(line) > WIDTH
        and not line.startswith("|")
        and not re.fullmatch(r"\s*(?:[-*>] )?(?:!?\[[^\]]*\]\(\S+\)|\S+)", line)
    ]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, words joined by hyphens, other marks left out."""
    found: dict[str, int] = {}
    for _, line in prose(text):
        if heading := re.match(r"#+ +(.*)", line):
            words = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", heading[1]).lower()).replace(" ", "-")
            found[words] = found.get(words, 0) + 1
    return {name if n == 0 else f"{name}-{n}" for name, count in found.items() for n in range(count)}


def broken_links(page: str, text: str) -> list[str]:
    """The relative links of a page to a file that is not there, or to a heading that its file does not have."""
    plain = re.sub(r"`[^`]*`", "", "\n".join(line for _, line in prose(text)))
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", plain):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8") if name else text)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", sorted(PAGES.keys() - WIDER))
def test_lines_are_short(page: str) -> None:
    assert not too_long(PAGES[page])


@pytest.mark.parametrize("page", sorted(PAGES))
def test_relative_links_and_anchors_resolve(page: str) -> None:
    assert not broken_links(page, PAGES[page])


def test_long_lines_and_broken_links_are_seen() -> None:
    long = "word " * 30
    assert too_long(f"# A\n{long}\n```\n{long}\n```\n| {long} |\n- {long}") == [(2, 150), (7, 152)]
    assert anchors("# One & two: `three`?\n## Same\n## Same\n```\n# no heading\n```") == {
        *("one--two-three", "same", "same-1"),
    }
    links = "[a](LICENSE) [b](absent.md) [c](#here) [d](#there) [e](https://absent.example) `[f](absent)`\n# Here"
    assert broken_links("README.md", links) == ["absent.md", "#there"]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_page_holds_the_marks_of_a_merge(page: str) -> None:
    assert not [line for line in PAGES[page].splitlines() if re.match(r"(<{7}|>{7}) |={7}$", line)]


def test_what_the_architecture_page_says_where_is_there() -> None:
    """`path: name` stands for a name defined in that module; a path or a name alone for a module or a folder."""
    _, _, table = PAGES["docs/architecture.md"].partition("## Where is …")
    entries = re.findall(r"`([^`]+)`", table.partition("\n## ")[0])
    assert len(entries) >= 10
    for entry in entries:
        place, _, name = entry.partition(": ")
        path = ROOT / "src/rlif" / place
        assert path.exists() or path.with_suffix(".py").exists(), entry
        for part in name.split("."):
            assert not part or re.search(rf"^\s*(?:def|class) {part}\b|^{part}\b", path.read_text("utf-8"), re.M), entry


def commands(text: str) -> Iterator[str]:
    """What a page's shell blocks tell a user to type: rlif's commands, continued lines joined, without comments."""
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(
                r"\s*(?:\$ )?(?:\.venv/bin/|HF_HUB_OFFLINE=1 )*rlif ([^;|&>]*)", line.partition(" #")[0]
            ):
                yield found[1]


def refusal(command: str) -> str:
    """Why the command line would not take a command; empty if it would. Nothing is run."""
    context = typer.main.get_command(app).make_context("rlif", shlex.split(command))
    try:
        while isinstance(context.command, typer.core.TyperGroup):
            name, inner, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
            assert inner is not None
            context = inner.make_context(name, rest, parent=context)
    except UsageError as error:
        return str(error.format_message())
    return ""


GENERATED = "docs/commands.md"  # its lines are usage: rlif [OPTIONS] …
TOLD = sorted({(page, told) for page, text in PAGES.items() if page != GENERATED for told in commands(text)})


@pytest.mark.parametrize(("page", "command"), TOLD)
def test_the_command_line_takes_what_a_page_tells_to_type(page: str, command: str) -> None:
    assert not refusal(command), page


def test_a_command_that_is_not_taken_is_seen() -> None:
    text = (
        "```sh\n.venv/bin/rlif eval a \\\n  --tasks x  # why; rlif\nls\n```\n`rlif inline`\n```python\nrlif = 1\n```\n"
    )
    assert [*commands(text)] == ["eval a    --tasks x "]
    assert "--reward" in refusal("diagnose M --rewards x")
    assert "No such command" in refusal("trian x")


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("docs/recipe.md", ["rlif.recipe_keys"]),
        ("docs/cost.md", ["rlif.analysis.cost_page"]),
        (GENERATED, ["typer", "rlif.cli.main", "utils", "docs", "--name", "rlif", "--title", "Every command"]),
    ],
)
def test_a_generated_page_is_that_of_the_code(page: str, module: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, check=True)
    assert PAGES[page] == done.stdout, f"run: python -m {' '.join(module)} > {page}"


def test_the_readme_s_numbers_are_those_of_the_results() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGES["docs/results.md"].splitlines()]
    sampled = {row[0]: row[2:5] for row in rows if len(row) > 5 and row[1] == "sampled" and " @ " in row[3]}

    def brief(cell: str) -> str:
        return f"{float(cell):.2f}".lstrip("0")

    start, best, last = sampled["base, self-certainty"]
    score, _, step = best.partition(" @ ")
    said = f"from {brief(start)} right to {brief(score)} at step {step} and {brief(last)} at step 60"
    readme = " ".join(PAGES["README.md"].split())
    assert said in readme
    assert f"with labels to {brief(sampled['base, verifiable (labels)'][2])}" in readme
