"""What README and the page on Python show must run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    block
    for page in ("README.md", "docs/api.md")
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str, tiny_base_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "the page", "exec"), {})
    assert "tensor(" in capsys.readouterr().out


def test_there_is_a_block() -> None:
    assert BLOCKS
