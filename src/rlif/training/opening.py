"""Opening a run: in a new folder, or an old one from its last checkpoint. What can be wrong is found here.

`new_run` and `old_run` give a `Run` while its folder is locked and its log is open. Of several ranks only the first
opens the folder; the others have the same run beside it, and write nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.model.template_clock import present
from rlif.recipes import load_recipe
from rlif.runs.environment import collect_info
from rlif.runs.layout import EXTENDED, INFO, recipe_path
from rlif.runs.provenance import accept, read_provenance, start_of
from rlif.runs.resumption import Start, find_start, keep_what_is_dropped
from rlif.runs.run_log import BEGINNING, NoLog, RunLog
from rlif.runs.trackers import Sinks, open_sinks
from rlif.training.callbacks import NullCallback, ProgressCallback
from rlif.training.consensus import NoConsensusError
from rlif.training.custom import CODE, NEEDS, Custom, check_code, check_needs, code_of
from rlif.training.extension import check_extension, extend, with_overrides, with_steps
from rlif.training.parallel import ALONE, Ranks
from rlif.training.resolve import as_before, resolved
from rlif.training.run import Run
from rlif.training.setup import Origin, Setup, prepare
from rlif.utils.atomic_io import emptied_on_failure, locked


@contextmanager
def new_run(
    recipe: Recipe, out: Path, callback: ProgressCallback, custom: Custom | None = None, ranks: Ranks = ALONE
) -> Iterator[Run]:
    """A new run in a new folder. If anything is wrong, no folder is left behind.

    Raises `RlifError` for what the user can fix.
    """
    if ranks.first:
        RunLog.check_free(out)
    custom = custom or Custom()
    recipe = resolved(recipe, custom.rewards)
    setup = prepare(recipe, Origin(out, ranks.agreed(present())), custom, ranks)
    recipe = setup.recipe
    if not ranks.first:
        yield _beside(setup, out)
        return
    with locked(out), ExitStack() as stack:
        RunLog.check_free(out)  # again: nobody else can take it from here on
        # The loop asks for the answers, when the log is open: it is closed before its files are taken away.
        stack.enter_context(emptied_on_failure(out, last=BEGINNING, error=NoConsensusError))
        with emptied_on_failure(out, last=BEGINNING):
            info = {**_info(recipe, ranks), "provenance": setup.state["provenance"]}
            info |= {key: known for key, known in ((NEEDS, custom.needs(recipe)), (CODE, code_of(recipe))) if known}
            log = RunLog.create(out, recipe, info=info)
            run = stack.enter_context(_opened(setup, out, log, callback))
        yield run


@contextmanager
def old_run(
    out: Path,
    callback: ProgressCallback,
    custom: Custom | None = None,
    ranks: Ranks = ALONE,
    *,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    allow_changed: bool = False,
) -> Iterator[Run]:
    """An old run, from its last checkpoint (from the beginning if it never had one). ``steps``: for so many in all,
    which its recipe.yaml then holds; None: for as many as that says. ``overrides``: changes of keys that decide no
    number, which it then holds as well.

    Raises `RlifError` if what decides the result has changed since it began, unless ``allow_changed``.
    """
    custom = custom or Custom()
    recipe = ranks.told(lambda: load_recipe(recipe_path(out)))
    with locked(out) if ranks.first else nullcontext():
        start = _start(out, ranks)
        recipe = with_steps(with_overrides(as_before(recipe, start.info), overrides), steps)
        check_needs(recipe, custom, start.info, out, allow_changed=allow_changed)
        code = check_code(recipe, start.info, out, allow_changed=allow_changed)
        recorded, where = (
            (start.checkpoint.state, start.checkpoint.path) if start.checkpoint else (start.info, out / INFO)
        )
        began = read_provenance(recorded, where)
        now = began.date if began else start_of(start.info)
        setup = prepare(recipe, Origin(out, now, start.checkpoint, began, allow_changed), custom, ranks)
        start.release()
        extended = steps is not None or start.info.get(EXTENDED) == recipe.steps
        changed = code + accept(
            began,
            setup.provenance,
            step=setup.step,
            out=out,
            allow=allow_changed,
            extended=extended,
            teacher=setup.teacher is not None,
        )
        if not ranks.first:
            yield _beside(setup, out)
            return
        if steps is not None:
            check_extension(setup, out)
        keep_what_is_dropped(out, start)
        info = {**_info(recipe, ranks), **({"changed": changed} if changed else {})}
        # Without a checkpoint nothing is kept, the evaluation of step 0 included: it will be made again.
        log = RunLog.resume(out, start.step, info=info)
        with _opened(setup, out, log, callback) as run:
            if steps is not None or overrides:
                extend(log, setup, out, more_steps=steps is not None)
            if start.lost is not None:
                log.note_checkpoint(start.step)  # told once
            yield run


@contextmanager
def _opened(setup: Setup, out: Path, log: RunLog, callback: ProgressCallback) -> Iterator[Run]:
    """The run over a log that was just opened, with the mirrors that its recipe names; all are closed behind it."""
    first_step = setup.step + 1 if setup.step else 0
    with closing(log), open_sinks(setup.recipe.log.sinks, out, setup.recipe, first_step=first_step) as sinks:
        yield Run(setup, out, log, sinks, callback)


def _beside(setup: Setup, out: Path) -> Run:
    """The run on a rank that does not own its folder: it writes nothing and tells nobody."""
    return Run(setup, out, NoLog(), Sinks({}), NullCallback())


def _start(out: Path, ranks: Ranks) -> Start:
    """From where an old run goes on, as the first rank finds it; it alone holds the optimizer's tensors."""
    found = find_start(out) if ranks.first else None
    held = found and found.checkpoint
    told = ranks.agreed(replace(found, checkpoint=replace(held, tensors={})) if found and held else found)
    start = found or told
    assert start is not None
    return start


def _info(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    """What run.json records; the number of ranks where there are several."""
    return collect_info(model=str(recipe.policy.model)) | ({"ranks": ranks.size} if ranks.size > 1 else {})
