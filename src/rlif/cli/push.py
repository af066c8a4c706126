"""`rlif push`: what leaves is listed first."""

from pathlib import Path

from rlif.errors import named
from rlif.report.push import Parcel, check_repo, parcel, upload
from rlif.utils.terminal import say

_WORDS = {"repo": "--repo", "evaluation": "--eval"}


def push_model(folder: Path, repo: str, evaluation: Path | None, *, private: bool, report: bool, dry_run: bool) -> None:
    """List what is published of ``folder``, upload it unless this is a dry run, and say where it lies.

    Raises `RlifError` for what the user can mend.
    """
    with named(_WORDS):
        check_repo(repo)
        sent = parcel(folder, evaluation, report=report)
        for line in _listed(sent):
            say(line)
        if dry_run:
            say(f"nothing was uploaded; without --dry-run it goes to {repo}")
        else:
            say(f"uploaded: {upload(sent, repo, private=private)}")


def _listed(sent: Parcel) -> list[str]:
    sizes = {name: sent.size(name) for name in sent.files}
    lines = [f"{_size(size):>10}  {name}" for name, size in sizes.items()]
    total = f"{_size(sum(sizes.values())):>10}  {len(sizes)} files"
    return [*lines, total, *(f"note: {note}" for note in sent.notes)]


def _size(n: int) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 100_000 else f"{n:,} B"
