"""The pages: lines short enough to read anywhere, and links that lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text("utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
}
WIDTH = 110
WIDER = {"CHANGELOG.md", "CONTRIBUTING.md", "docs/LOG.md", "docs/architecture.md", "docs/metrics.md", "docs/tiny.md"}
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
