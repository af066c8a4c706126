"""One page of runs, studies and evaluations: a single HTML file that opens offline and says first what happened.

Everything is inside the file: the style, the scripts, plotly's JavaScript, the numbers, and as many answers as its size
allows (`LIMIT`). Nothing is loaded, and the page's own security policy forbids it: only the scripts that were put in
run, each known by its hash. What models wrote is text and nothing else: the template escapes it, the data hold no
``<``, and the scripts set it as text.

Free of torch.
"""

import base64
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlif
from rlif.errors import RlifError, printable, printable_lines
from rlif.report import eval_record, story
from rlif.report.answers import SCALES, Source, evaluation_answers, run_answers
from rlif.report.charts import charts
from rlif.report.eval_record import EvalRecord
from rlif.report.pieces import find_decoder
from rlif.report.run_record import Group, RunRecord, flat, grouped
from rlif.utils.atomic_io import write_whole, writing
from rlif.utils.palette import DARK, LIGHT

LIMIT = 9_500_000
"""Bytes of a page at most, as far as it depends on how many answers are shown."""

ANSWERS_MOST = 4_000_000
"""Bytes that answers take at most: more would open slowly."""

MARK = "<!-- rlif report -->"
"""By this line a page is known, which may then be written over."""

_COLOURS = {"light": LIGHT.colours, "dark": DARK.colours}
_TEMPLATES = Path(__file__).parent / "templates"
_PLOTLY = Path("package_data") / "plotly.min.js"


@dataclass(frozen=True)
class Study:
    """What a page shows of a study besides its runs: for each grid a name, what its findings rest on, and these.

    A finding is a mapping of texts: claim, verdict, effect, interval, n, test, seen, source.
    """

    folder: Path
    grids: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Subjects:
    """What a page is about. The runs of studies stand among ``runs``."""

    runs: tuple[RunRecord, ...] = ()
    studies: tuple[Study, ...] = ()
    evaluations: tuple[EvalRecord, ...] = ()


def write_page(subjects: Subjects, out: Path) -> int:
    """Write the page of ``subjects``; returns its size in bytes.

    Raises `RlifError` if there is nothing to show, if ``out`` is a folder or another file, or cannot be written.
    """
    check_free(out)
    data = page(subjects, plotly()).encode()
    with writing(out, "choose another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, data)
    return len(data)


def check_free(out: Path) -> None:
    """Raise `RlifError` if a page may not be written there: a folder, or a file that is no page of ours."""
    if out.is_dir():
        raise RlifError(f"{out}: a folder; give the name of a file, such as {out / 'report.html'}")
    if out.exists() and MARK not in out.read_text("utf-8", errors="replace")[:200]:
        raise RlifError(f"{out}: holds something else than a page of rlif; choose another --out")


def plotly() -> str:
    """plotly's JavaScript, from the installed package. Raises `RlifError` without it."""
    found = importlib.util.find_spec("plotly")  # where it is, without the seconds that its import takes
    path = Path(found.origin).parent / _PLOTLY if found and found.origin else _PLOTLY
    if not path.is_file():
        raise RlifError("the page's curves need plotly; install it: pip install plotly")
    return path.read_text("utf-8")


def page(subjects: Subjects, plotly_js: str) -> str:
    """The page as text, of at most `LIMIT` bytes where leaving answers out can bring it there."""
    if not (subjects.runs or subjects.evaluations or subjects.studies):
        raise RlifError("nothing to show; give the folder of a run, a study or an evaluation")
    groups, scripts = grouped(subjects.runs), [plotly_js, *(_template(name) for name in ("charts.js", "viewer.js"))]
    context, panels = _context(subjects, groups), list(_panels(subjects, groups))
    without = _render(context, panels, [], scripts)
    room = min(ANSWERS_MOST, LIMIT - len(without.encode()))
    for _ in range(3):  # sizes are estimated: what comes out too large is made again with less room
        sources = _sources(subjects, groups, max(room, 0))
        text = _render(context, panels, sources, scripts)
        if (over := len(text.encode()) - LIMIT) <= 0:
            break
        room = int(0.9 * (room - over))
    return text


def _render(
    context: Mapping[str, Any], panels: Sequence[Mapping[str, Any]], sources: Sequence[Source], scripts: Sequence[str]
) -> str:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    shown = [source for source in sources if source.answers]
    data = {"panels": panels, "sources": [_plain(source) for source in shown], "scales": SCALES, "colours": _COLOURS}
    notes = [*context["notes"], *(f"{one.label}: {note}" for one in sources for note in one.notes)]
    return environment.from_string(_template("page.html")).render(
        {**context, "notes": list(map(printable, notes))},
        panels=panels,
        sources=bool(shown),
        policy=_policy(scripts),
        style=_template("page.css"),
        scripts=scripts,
        data=_embedded(data),
    )


def _plain(source: Source) -> dict[str, Any]:
    return {key: value for key, value in vars(source).items() if key not in ("folder", "notes")}


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in, nor begin a comment, whatever its texts hold: ASCII without <."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded, and no script runs but these."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8")


def _context(subjects: Subjects, groups: Sequence[Group]) -> dict[str, Any]:
    """What the template is given besides curves and answers."""
    told = story.story(groups) if groups else []
    evaluations = subjects.evaluations
    return {
        "title": _title(subjects, groups),
        "story": [printable(one) for one in (*_verdicts(subjects.studies), *told, *_judged(evaluations))],
        "scores": story.table(groups),
        "tables": [table for record in evaluations for table in eval_record.tables(record)],
        "studies": subjects.studies,
        "recipes": [_recipe(group, run) for group in groups for run in group.runs],
        "asked": [_asked(record) for record in evaluations],
        "version": rlif.__version__,
        "notes": [
            *(f"{run.name}: {note}" for run in subjects.runs for note in run.notes),
            *(note for record in evaluations for note in record.notes),
        ],
    }


def _title(subjects: Subjects, groups: Sequence[Group]) -> str:
    if len(groups) == 1 and not (subjects.evaluations or subjects.studies):
        return groups[0].label
    folders = [*(one.folder for one in subjects.studies), *(one.folder for one in subjects.evaluations)]
    inside = {run.folder.resolve().parent.name for run in subjects.runs}
    where = f"{inside.pop()}: " if len(inside) == 1 else ""
    names = [folder.resolve().name for folder in folders] or [f"{where}{len(subjects.runs)} runs"]
    return printable(", ".join(names))


_VERDICTS = ("reproduced", "not reproduced", "undecided")


def _verdicts(studies: Sequence[Study]) -> Iterator[str]:
    """How many claims came out how, and which, grid by grid."""
    for study in studies:
        for grid in study.grids:
            claims = {name: [one["claim"] for one in grid["findings"] if one["verdict"] == name] for name in _VERDICTS}
            counts = ", ".join(f"{len(own)} {name}" for name, own in claims.items())
            yield f"{grid['name']}, {grid['basis']}. Of the paper's claims and rlif's own: {counts}."
            yield from (f"{name.capitalize()}: {'; '.join(own)}." for name, own in claims.items() if own)


def _judged(evaluations: Sequence[EvalRecord]) -> Iterator[str]:
    for record in evaluations:
        yield from eval_record.sentences(record) or [f"The evaluation {record.folder} is not finished."]


_FACTS = ("model", "started", "commit", "platform", "cpu_count", "gpu", "cpu_kernels")


def _recipe(group: Group, run: RunRecord) -> dict[str, Any]:
    seed = f", seed {run.recipe.seed}" if run.recipe else ""
    facts = [(name, run.info[name]) for name in _FACTS if run.info.get(name) is not None]
    facts += list(flat(run.info["versions"])) if isinstance(run.info.get("versions"), dict) else []
    resumed = run.info.get("resumed")
    facts += [("resumed", f"{len(resumed)} times")] if isinstance(resumed, list) else []
    shown = [("folder", str(run.folder)), *facts]
    return {
        "label": f"{group.label}{seed}",
        "state": run.state,
        "facts": [(name, printable(str(value))) for name, value in shown],
        "text": printable_lines(run.recipe_text),
    }


def _asked(record: EvalRecord) -> dict[str, str]:
    text = json.dumps(record.asked, indent=1, ensure_ascii=False)
    return {"folder": printable(str(record.folder)), "text": printable_lines(text)}


_BANDS = (
    "Bands: one standard error, over seeds where a line is the mean of several runs, else over problems; of more than "
    "six lines only the solid ones have theirs. Drag over a chart to look closer, click twice to see it whole."
)


def _panels(subjects: Subjects, groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Curves that share their groups: those of all runs, then those of each evaluated task."""
    if groups and (drawn := charts(groups)):
        yield {"title": "Training", "note": _BANDS, "groups": [group.label for group in groups], "charts": drawn}
    for record in subjects.evaluations:
        for task in record.tasks:
            if drawn := eval_record.courses(record, task):
                names = eval_record.models(record.of(task))
                head = {"title": printable(f"{record.folder.name}, {task}"), "note": _BANDS}
                yield {**head, "groups": names, "charts": drawn}


def _sources(subjects: Subjects, groups: Sequence[Group], room: int) -> list[Source]:
    """The answers of every run and every evaluated task, the room shared out evenly."""
    tasks = [(record, task) for record in subjects.evaluations for task in record.tasks]
    runs = list(_labelled(groups))
    own = room // max(len(runs) + len(tasks), 1)
    found = [run_answers(label, run.folder, find_decoder(run.folder, run.models), own) for label, run in runs]
    for record, task in tasks:
        label = printable(f"{record.folder.name}, {task}")
        found.append(evaluation_answers(label, record.folder, eval_record.files(record, task), own))
    return found


def _labelled(groups: Sequence[Group]) -> Iterator[tuple[str, RunRecord]]:
    for group in groups:
        for run in group.runs:
            several = len(group.runs) > 1
            yield f"{group.label}, seed {run.recipe.seed}" if several and run.recipe else group.label, run
