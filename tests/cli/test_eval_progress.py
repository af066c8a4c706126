"""What an evaluation shows on a terminal of 80 columns."""

import re
from io import StringIO

from rlif.cli.eval_progress import LiveEvalProgress, eval_progress
from rlif.utils.terminal import Console


def test_a_long_path_gives_way_and_no_number_is_cut() -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, no_color=True)
    with eval_progress(console) as callback:
        assert isinstance(callback, LiveEvalProgress)
        path = "studies/tiny/runs/r0-trajectory_entropy-s0-0123abcd/final"
        callback.begin(path, "arithmetic", answers=65536, done=1234, limit=4096)
        callback.advance(10)
    written = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert f"{path}, arithmetic: 65,536 answers, 1,234 of them kept from before\n" in written
    with console.capture() as shown:
        console.print(callback._progress.get_renderable())
    (line,) = re.sub(r"\x1b\[[0-9;]*m", "", shown.get()).splitlines()
    assert len(line.rstrip()) <= 80
    assert re.match(r"studies/t\S*…, arithmetic ", line)
    assert re.search(r" 1,234/65,536  [\d,]+ tokens/s  [\d.,]+ (s|min|h) left$", line.rstrip())
