"""A run folder is read without torch, by whoever only wants to look at it."""

import json
import subprocess
import sys
from pathlib import Path

from rlif.recipes import dump_recipe, find_recipe, load_recipe

EVALS = ("right_and_formatted", "right", "formatted", "entropy", "transitional_share", "length")

READ = """
import sys
from pathlib import Path

sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises
from rlif.recipes import load_recipe
from rlif.report import figures, summary, token_view
from rlif.runs.history import read_metrics
from rlif.runs.layout import METRICS_FILE, recipe_path

run = Path(sys.argv[1])
lines = read_metrics(run / METRICS_FILE)
curve = figures.Curve(load_recipe(recipe_path(run)).reward[0].name, lines)
print(summary.markdown([summary.summarise(curve.label, curve.lines)]))
figures.write_figures([curve], run / "figures")
"""


def test_a_run_is_read_and_drawn_without_torch(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe(find_recipe(Path("tiny")))))
    stderr = {"eval/right_and_formatted_stderr": 0.02, "eval/n": 512}
    lines = [{"step": step, **{f"eval/{key}": step / 20 for key in EVALS}, **stderr} for step in (0, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| self_certainty | sampled | 0.000 | 0.500 @ 10 | 0.500 |" in done.stdout
    assert (tmp_path / "figures" / "accuracy.png").is_file()
