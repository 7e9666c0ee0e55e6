"""What every group of settings is: a frozen dataclass that checks itself, and says what decides a result.

Fields marked `neutral()` change how a result is computed but not the result, so that changing
one does not invalidate artifacts already made.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, get_origin, get_type_hints

NEUTRAL = {"neutral": True}


def neutral(default: Any) -> Any:
    """A field that does not change results: speed, logging, where things run."""
    return field(default=default, metadata=NEUTRAL)


def identity(settings: Any) -> Any:
    """`settings` as plain JSON data without its neutral fields: what decides a stage's result."""
    if dataclasses.is_dataclass(settings):
        return {
            f.name: identity(getattr(settings, f.name))
            for f in dataclasses.fields(settings)
            if not f.metadata.get("neutral")
        }
    if isinstance(settings, dict):
        return {key: identity(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [identity(value) for value in settings]
    return settings


def check(holds: bool, message: str) -> None:
    """Raises `ValueError(message)` unless the setting holds; the message says what to set instead."""
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings, which checks itself when it is made: first the types, then the values."""

    def __post_init__(self) -> None:
        # Here, because it takes longer to import than the command line to answer.
        from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

        for name, expected in get_type_hints(type(self)).items():
            value = getattr(self, name)
            try:
                check_type(value, expected, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            except TypeCheckError:
                readable = re.sub(
                    r"\b(typing|jaxprune\.config\.\w+)\.|<class '(?:\w+\.)*(\w+)'>", r"\2", str(expected)
                )
                alone = get_origin(expected) is tuple and not isinstance(value, tuple | list)
                hint = f", such as {(value,)!r}" if alone else ""
                raise ValueError(
                    f"{type(self).__name__}.{name} is {value!r}: give a value of type {readable}{hint}"
                ) from None
        self.check_values()

    def check_values(self) -> None:
        """Raises ValueError with one line that says what to set instead."""
