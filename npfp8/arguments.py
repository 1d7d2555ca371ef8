"""Checks of arguments: one plain error that names the argument, what was expected and found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from npfp8.names import match, suggestion

__all__ = [
    "array_of",
    "flag",
    "integer",
    "named",
    "path_of",
    "require",
    "wrong_array",
    "wrong_type",
]

_Value = TypeVar("_Value")

_FLAGS = (bool, np.bool_)


def wrong_type(argument: str, expected: str, found: object) -> TypeError:
    """Return the error for an argument of a wrong type.

    Parameters
    ----------
    argument : str
    expected : str
        In words.
    found : object
        The value; the message has the name of its type.

    Examples
    --------
    >>> raise wrong_type("fmt", "a format or the name of one", 8)
    Traceback (most recent call last):
    ...
    TypeError: fmt: expected a format or the name of one, found int
    """
    return TypeError(f"{argument}: expected {expected}, found {_type_name(found)}")


def wrong_array(argument: str, expected: str, array: npt.NDArray[Any], given: object) -> TypeError:
    """Return the error for an array of a wrong dtype, or for an object that is no array at all."""
    if array.dtype == object and array.ndim == 0:
        return wrong_type(argument, expected, given)
    return TypeError(f"{argument}: expected {expected}, found {array.dtype}")


def require(argument: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise TypeError unless a value is an instance of one of some classes."""
    if not isinstance(value, kinds):
        raise wrong_type(argument, expected, value)


def flag(argument: str, value: object) -> bool:
    """Return True or False as given; raise TypeError for anything else."""
    if not isinstance(value, _FLAGS):
        raise wrong_type(argument, "True or False", value)
    return bool(value)


def integer(argument: str, value: Any) -> int:
    """Return an integer as an int; raise TypeError for anything else."""
    try:
        return index(value)
    except TypeError:
        raise wrong_type(argument, "an integer", value) from None


def path_of(argument: str, value: object) -> Path:
    """Return a path; raise TypeError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise wrong_type(argument, "a path", value)
    return Path(value)


def array_of(argument: str, value: Any) -> npt.NDArray[Any]:
    """Return a value as an array; raise ValueError for rows of several lengths."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{argument}: expected an array, found an error: {error}") from None


def named(argument: str, name: object, known: Mapping[str, _Value]) -> _Value:
    """Return the value that a table has under a name, in upper or lower case.

    Raises
    ------
    TypeError
        If the name is no str.
    ValueError
        If the table does not have it; suggests the nearest name.

    Examples
    --------
    >>> named("kind", "Exact", {"exact": 1, "fused": 2})
    1
    """
    if not isinstance(name, str):
        expected = f"one of {', '.join(map(repr, known))}"
        raise wrong_type(argument, expected, name)
    found = match(name, known)
    if found is None:
        expected = ", ".join(map(repr, known))
        nearest = suggestion(name, known)
        raise ValueError(f"{argument}: expected one of {expected}, found {name!r}{nearest}")
    return known[found]


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__
