"""The one exception for unusable input, and the display of text from files.

Every file is read within :func:`reading` and written within :func:`writing`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from npfp8.files import open_regular

__all__ = [
    "NAMED",
    "BertNumpyError",
    "key_error",
    "naming",
    "one_line",
    "parse_json",
    "raise_named",
    "read_json",
    "reading",
    "shown",
    "writing",
]

#: The most characters of a message.
_LONGEST = 4000

#: The most bytes of a JSON file; each may become about twenty in memory.
_MAX_JSON = 100_000_000

#: Categories of characters that a terminal obeys, hides or breaks lines at: controls, formats
#: (zero-width, bidirectional), surrogates, and separators of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: str) -> str:
    r"""Make a text one line that is safe on any terminal, by escaping invisible characters.

    These are control characters (C0, DEL, C1, which include newlines, tabs and the start of
    every escape sequence), marks of direction and of zero width, separators of
    lines and paragraphs, and lone surrogates, which no encoding has. All
    others stay unchanged.

    >>> print(shown("caf\u00e9\x1b[31m\n\u202e"))
    café\x1b[31m\n\u202e
    """
    if text.isprintable():  # this is stricter: wide spaces are not printable, either
        return text
    return "".join(
        _escaped(character) if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(error: BaseException) -> str:
    """Return an exception's text with its lines joined, or its type if it has no text."""
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory"
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return shown(" ".join(line for line in lines if line)) or type(error).__name__


class BertNumpyError(ValueError):
    """An error in the input. It names the file, key or line, the value found and expected.

    The message is one line, see :func:`shown`. If the value found is large, the middle of
    the message is left out.

    Examples
    --------
    >>> import bert_numpy
    >>> try:
    ...     bert_numpy.load_recipe("no-such-file.json")
    ... except bert_numpy.BertNumpyError as error:
    ...     print(error)
    no-such-file.json: no such file
    """

    def __init__(self, message: str) -> None:
        half = _LONGEST // 2
        if len(message) > _LONGEST:  # shorten it before its characters are checked
            message = f"{message[:half]} {message[-half:]}"
        text = shown(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}")


def key_error(place: str | Path, key: str, expected: str, found: Any) -> BertNumpyError:
    """Make the error for a key of a JSON object at a place; None is shown as nothing."""
    shown_value = "nothing" if found is None else repr(found)
    return BertNumpyError(f"{place}: key {key!r}: expected {expected}, found {shown_value}")


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an error of reading ``path`` into a :class:`BertNumpyError` that begins with its name.

    The message of a ValueError is kept. The file's name is put before it, unless it begins
    with the name already (perhaps followed by a line number).

    Raises
    ------
    BertNumpyError
    """
    try:
        yield
    except FileNotFoundError:
        raise BertNumpyError(f"{path}: no such file") from None
    except (OSError, MemoryError) as error:  # MemoryError: the file cannot be mapped
        reason = getattr(error, "strerror", None) or one_line(error)
        raise BertNumpyError(f"{path}: cannot be read: {reason}") from None
    except ValueError as error:
        text, place = str(error), Path(path)
        if not text.startswith((f"{place}: ", f"{place} ")):
            text = f"{place}: {text.removeprefix(f'{place.name}: ')}"
        raise BertNumpyError(text) from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError within it into the error that ``path`` cannot be written.

    Raises
    ------
    BertNumpyError
    BrokenPipeError
        If ``path`` is a pipe whose reader has closed it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BertNumpyError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON object or list from a file; raise :class:`BertNumpyError` naming the file."""
    with reading(path), open_regular(path) as file:
        text = file.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        raise BertNumpyError(f"{path}: expected at most {_MAX_JSON} bytes of JSON, found more")
    try:
        value = parse_json(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or a number too long
        raise BertNumpyError(f"{path}: expected JSON, found an error: {error}") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise BertNumpyError(f"{path}: expected a JSON {expected}, found {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON in which a repeated key must have the same value.

    Raises
    ------
    ValueError, RecursionError
        If it is not JSON, if a key has two values, if a number is too long, or if
        it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unambiguous)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, in which a repeated key must have the same value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"key {key!r} has two values")
    return found


class naming:  # noqa: N801 (used as: with naming(place))
    """Turn an error that any function raises within it into one that names the place.

    It is for errors of npfp8 and NumPy: scales that overflow, K beyond a limit, NaN for
    integers, shapes that do not fit, too little memory.

    Raises
    ------
    BertNumpyError
    """

    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, NAMED):
            raise_named(error, self.place)


#: The errors of npfp8 and NumPy that are not mistakes of this package.
NAMED = (ArithmeticError, MemoryError, TypeError, ValueError)


def raise_named(error: Exception, place: str) -> NoReturn:
    """Raise an error as one of this package that names the place; keep it if it is one already."""
    if isinstance(error, BertNumpyError):
        raise error
    lacks = "expected enough memory, found none left. " * isinstance(error, MemoryError)
    raise BertNumpyError(f"{place}: {lacks}{error}") from error
