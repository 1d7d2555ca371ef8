"""Checks of arguments: one plain error that names the argument, what was expected and found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from npfp8.names import match, suggestion

__all__ = [
    "array_of",
    "choice",
    "dtype_of",
    "flag",
    "integer",
    "loaded",
    "named",
    "number",
    "path_of",
    "require",
    "require_function",
    "require_iterable",
    "wrong_array",
    "wrong_type",
]

_Value = TypeVar("_Value")

_FLAGS = (bool, np.bool_)
_NUMBERS = (int, float, np.integer, np.floating)


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
        if isinstance(given, int):
            return TypeError(f"{argument}: expected {expected}, found an integer beyond 64 bits")
        return wrong_type(argument, expected, given)
    return TypeError(f"{argument}: expected {expected}, found {array.dtype}")


def require(argument: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise TypeError unless a value is an instance of one of some classes."""
    if not isinstance(value, kinds):
        raise wrong_type(argument, expected, value)


def require_function(
    argument: str, value: object, expected: str = "a function", *, optional: bool = False
) -> None:
    """Raise TypeError unless a value can be called, or is None where that is allowed."""
    if not callable(value) and not (optional and value is None):
        raise wrong_type(argument, expected, value)


def loaded(
    argument: str, value: Any, kind: type[_Value], load: Callable[[Any], _Value], expected: str
) -> _Value:
    """Return an object that is given as such, or by the name or path that ``load`` takes.

    Raises
    ------
    TypeError
        If it is neither of this class nor a str or a path.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, str | os.PathLike):
        raise wrong_type(argument, expected, value)
    return load(value)


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


def number(argument: str, value: Any, expected: str = "a number") -> Any:
    """Return a real number as given, out of its array if it is in one of no axes."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    require(argument, value, _NUMBERS, expected)
    try:
        float(value)
    except OverflowError:
        found = "an integer beyond float64"
        raise ValueError(f"{argument}: expected {expected}, found {found}") from None
    return value


def path_of(argument: str, value: object) -> Path:
    """Return a path; raise TypeError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise wrong_type(argument, "a path", value)
    return Path(value)


def array_of(argument: str, value: Any, *dtypes: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a value as an array; raise for rows of several lengths, and what is no array.

    Parameters
    ----------
    argument : str
    value
    *dtypes
        The dtypes that are accepted; all, if none is given.

    Raises
    ------
    ValueError
        If rows have several lengths.
    TypeError
        If the value's own conversion to an array fails, such as that of a torch tensor, or if
        the array is of another dtype.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{argument}: expected an array, found an error: {error}") from None
    except (TypeError, RuntimeError) as error:
        found = _type_name(value)
        raise TypeError(f"{argument}: expected an array, found {found}: {error}") from None
    if dtypes and array.dtype not in dtypes:
        expected = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        raise wrong_array(argument, expected, array, value)
    return array


def dtype_of(argument: str, value: Any, expected: str = "a dtype") -> np.dtype[Any]:
    """Return a dtype; raise TypeError for what is none."""
    try:
        return np.dtype(value)
    except (TypeError, ValueError):
        if isinstance(value, str):
            raise TypeError(f"{argument}: expected {expected}, found {value!r}") from None
        raise wrong_type(argument, expected, value) from None


def choice(argument: str, name: object, known: Iterable[str]) -> str:
    """Return the name of a list that a name is, in upper or lower case.

    Raises
    ------
    TypeError
        If the name is no str.
    ValueError
        If the list does not have it; suggests the nearest name.

    Examples
    --------
    >>> choice("kind", "Exact", ["exact", "fused"])
    'exact'
    """
    known = tuple(known)
    if not isinstance(name, str):
        raise wrong_type(argument, f"one of {', '.join(map(repr, known))}", name)
    found = name if name in known else match(name, known)
    if found is None:
        expected = ", ".join(map(repr, known))
        nearest = suggestion(name, known)
        raise ValueError(f"{argument}: expected one of {expected}, found {name!r}{nearest}")
    return found


def require_iterable(argument: str, value: object, expected: str) -> None:
    """Raise TypeError for what cannot be iterated over, a str included: it is one thing."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:  # arrays of no axes are Iterable, but not iterable
        raise wrong_type(argument, expected, value) from None
    if isinstance(value, str):
        raise wrong_type(argument, expected, value)


def named(argument: str, name: object, known: Mapping[str, _Value]) -> _Value:
    """Return the value that a table has under a name; see :func:`choice`.

    Examples
    --------
    >>> named("kind", "Exact", {"exact": 1, "fused": 2})
    1
    """
    return known[choice(argument, name, known)]


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__
