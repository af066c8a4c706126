"""What all sections of a recipe share: frozen, closed to keys they do not know, their numbers bounded by type."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from rlif.errors import RlifError
from rlif.utils.validation import of_arguments

Positive = Annotated[int, Strict(), Field(ge=1)]  # strict: `true` is no 1
Natural = Annotated[int, Strict(), Field(ge=0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
AboveZero = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Made in Python. Raises `RlifError` for what is wrong, where `model_validate` raises pydantic's own error."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RlifError(of_arguments(error.errors(), values, type(self).model_fields)) from None

    # pydantic asks this mark whether it may go on making the sections inside of another one itself.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
