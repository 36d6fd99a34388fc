"""The base of all sections, and the number types of the language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weight = Annotated[float, Field(gt=0, lt=1e9)]
Word = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys. A docstring below a field is its entry in docs/spec.md."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    unkeyed: ClassVar[frozenset[str]] = frozenset()  # fields that change no result, and so stay out of keys
    bare: ClassVar[str | None] = None  # the field that a bare number sets
    mark: ClassVar[str | None] = None  # the key that tells a map of this section from other maps, words and numbers


def by_form(expected: str, length: int | None = None, marked: tuple[str, str] | None = None) -> Discriminator:
    """Choose the arm of a union by form (number, word, list, map), so that an error names one arm, not all of them.

    Args:
        expected: says in words what a value must be.
        length: of lists; one of another length has no arm. None: any.
        marked: (key, form): a map with this key has this form, in place of "map"; the section's `mark` is that key.
    """

    def form(value: Any) -> str:
        if isinstance(value, (int, float)):
            return "number"
        if isinstance(value, (tuple, list)):
            return "list" if length in (None, len(cast("tuple[Any, ...]", value))) else "a list of another length"
        if marked is not None and (marked[0] in value if isinstance(value, Mapping) else hasattr(value, marked[0])):
            return marked[1]
        return "word" if isinstance(value, str) else "map"

    return Discriminator(form, custom_error_type="form", custom_error_message=f"must be {expected}")
