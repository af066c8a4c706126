"""Packages that rlif can do without: whether they are here, and in a version that serves."""

from importlib.metadata import PackageNotFoundError, version

from rlif.errors import RlifError


class MissingPackageError(RlifError, ImportError):
    """A package of an extra is missing or of another version; also an ImportError, for who tries an import."""


def require(package: str, *, least: str, below: str, extra: str) -> None:
    """Raise `MissingPackageError`, with the command to install it, unless ``least <= version < below`` is installed."""
    from packaging.version import Version  # of transformers' own requirements

    try:
        found = version(package)
    except PackageNotFoundError:
        found = ""
    if found and Version(least) <= Version(found) < Version(below):
        return
    said = f"{package} {found} is installed" if found else f"{package} is not installed"
    raise MissingPackageError(f"{said}, {least} or later below {below} is needed; run: pip install 'rlif[{extra}]'")
