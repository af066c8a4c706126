"""The recipes that ship with rlif, by name."""

from pathlib import Path

from rlif.errors import RlifError

RECIPE = "recipe.yaml"
"""What the resolved recipe is called in the folder of a run."""

# Beside the package in a wheel; at the top of the repository in a checkout.
_FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[2] / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with rlif."""
    return {path.stem: path for folder in _FOLDERS for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: Path) -> Path:
    """The file itself, or the shipped recipe of that name. Raises `RlifError` if there is neither."""
    if recipe.is_file():
        return recipe
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    raise RlifError(f"{recipe}: no such recipe; give a YAML file, or the name of a shipped one: {', '.join(shipped)}")
