"""`rlif report`: what lies in the folders it is given, and the page made of that. Free of torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlif.cli.report_server import HOST, server
from rlif.errors import RlifError, named
from rlif.experiments.findings import Finding, basis, findings
from rlif.experiments.study import GRIDS, RUNS, collect
from rlif.report.eval_record import is_evaluation, read_evaluation
from rlif.report.page import Study, Subjects, check_free, page, plotly, write_page
from rlif.report.run_record import RunRecord, grouped, is_run, read_run
from rlif.report.story import is_scored
from rlif.utils.terminal import say


def write_report(folders: Sequence[Path], out: Path, figures: Path | None = None, *, dark: bool = False) -> None:
    """Write the page of what lies in ``folders``, and figures of it into another if that is given; tell where.

    ``dark``: the figures on a dark ground. Raises `RlifError` for a folder that holds nothing to show.
    """
    check_free(out)
    subjects = gather(folders)
    size = write_page(subjects, out)
    say(f"written: {out} ({size / 1e6:.1f} MB); it opens in a browser and loads nothing")
    if figures is not None:
        _write_figures(subjects, figures, dark=dark)


def _write_figures(subjects: Subjects, folder: Path, *, dark: bool) -> None:
    """The paper's figures, those of a few runs, and answers step by step; tell where they are, and what is missing."""
    from rlif.report.answer_figures import write_answer_figures  # these load matplotlib
    from rlif.report.figures import MOST_CURVES, Curve, write_figures
    from rlif.report.paper_figures import write_paper_figures

    groups, notes = grouped(subjects.runs), list[str]()
    paths = write_paper_figures(groups, subjects.evaluations, folder, dark=dark)
    curves = [Curve(group.label, group.evaluated) for group in groups if is_scored(group)]
    if 0 < len(curves) <= MOST_CURVES:
        paths += write_figures(curves, folder, dark=dark)
    elif curves:
        notes.append(
            f"accuracy, surer, format and confidence are drawn of {MOST_CURVES} runs at most, not {len(curves)}"
        )
    paths += write_answer_figures(groups, folder, notes, dark=dark)
    say(f"figures: {', '.join(map(str, paths)) or 'none: no run or evaluation has the numbers'}")
    for note in notes:
        say(f"not drawn: {note}")


def serve_report(folders: Sequence[Path], port: int) -> None:
    """Serve the page of what lies in ``folders`` until interrupted; ``port`` 0: a free one."""
    page(gather(folders), "")  # what is wrong with them is said before a browser asks
    script = plotly()
    with named({"port": "--port"}), server(folders, port, lambda: page(gather(folders), script).encode()) as served:
        say(f"http://{HOST}:{served.server_address[1]}/ (Ctrl-C ends it)")
        served.serve_forever()


def gather(folders: Sequence[Path]) -> Subjects:
    """What a page shows of these folders; a folder of runs, such as a quickstart's, stands for all of them."""
    found = Subjects()
    for folder in dict.fromkeys(folders):
        own = _subjects(folder)
        found = Subjects(
            (*found.runs, *own.runs), (*found.studies, *own.studies), (*found.evaluations, *own.evaluations)
        )
    return found


def _subjects(folder: Path) -> Subjects:
    if not folder.is_dir():
        raise RlifError(f"{folder}: no such folder; give the folder of a run, a study or an evaluation")
    if is_run(folder):
        return Subjects(runs=(read_run(folder),))
    if is_evaluation(folder):
        return Subjects(evaluations=(read_evaluation(folder),))
    if (folder / GRIDS).is_dir():
        return _study(folder)
    if inside := [path for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path)]:
        return Subjects(runs=tuple(read_run(path) for path in inside))
    raise RlifError(
        f"{folder}: holds no run, study or evaluation; give a folder that rlif train, study, eval or quickstart wrote"
    )


def _study(folder: Path) -> Subjects:
    rows = collect(folder).to_pylist()
    grids = {name: [row for row in rows if row["grid"] == name] for name in sorted({row["grid"] for row in rows})}
    shown = tuple(
        {"name": name, "basis": basis(own), "findings": [_texts(one) for one in findings(own)]}
        for name, own in grids.items()
    )
    return Subjects(runs=tuple(_runs(folder, rows)), studies=(Study(folder, shown),))


def _texts(finding: Finding) -> Mapping[str, str]:
    return {
        "claim": finding.claim,
        "verdict": finding.verdict,
        "effect": finding.effect_text,
        "interval": finding.interval_text,
        "n": str(finding.n),
        "test": finding.test,
        "seen": finding.seen,
        "source": finding.source,
    }


def _runs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[RunRecord]:
    """The runs of a study that have begun, called by the labels of the grid."""
    names = {row["cell"]: f"{row['model']}, {row['reward']}" for row in rows}
    errors = {row["cell"]: row["error"] for row in rows if row["error"]}
    for cell, name in names.items():
        if is_run(folder / RUNS / cell):
            run = read_run(folder / RUNS / cell, name)
            yield replace(run, notes=(*run.notes, errors[cell])) if cell in errors else run
