"""Packages that rlif can do without: whether they are here, and in a version that serves."""

from importlib.metadata import PackageNotFoundError, version

from rlif.errors import RlifError


class MissingPackageError(RlifError, ImportError):
    """A package of an extra is missing or of another version; also an ImportError, for who tries an import."""


def require(package: str, *, least: str, below: str, extra: str, also: tuple[str, ...] = ()) -> str:
    """The version of an installed package. Raises `MissingPackageError`, with the command to install it, unless
    ``least <= version < below``. ``also``: other names under which the same package is distributed."""
    from packaging.version import Version  # of transformers' own requirements

    found = next((known for known in map(_version, (package, *also)) if known), "")
    if found and Version(least) <= Version(found) < Version(below):
        return found
    said = f"{package} {found} is installed" if found else f"{package} is not installed"
    raise MissingPackageError(f"{said}, {least} or later below {below} is needed; run: pip install 'rlif[{extra}]'")


def _version(package: str) -> str:
    """ "" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
