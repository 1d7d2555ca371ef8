"""The one exception for input that cannot be used, and how text from files is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BertNumpyError", "one_line", "shown", "writing"]

#: Characters of a message.
_LONGEST = 4000

#: Categories of characters that a terminal obeys, hides or breaks lines at: controls, formats
#: (zero-width, bidirectional), surrogates, and separators of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: str) -> str:
    r"""A text as one line that is safe on any terminal: characters that are not seen are escaped.

    These are control characters (C0, DEL, C1: so newlines, tabs and the start of
    every escape sequence), marks of direction and of zero width, separators of
    lines and paragraphs, and lone surrogates, which no encoding has. All
    others stay as they are.

    >>> print(shown("caf\u00e9\x1b[31m\n\u202e"))
    café\x1b[31m\n\u202e
    """
    if text.isprintable():  # which is stricter: no wide space is printable, either
        return text
    return "".join(
        _escaped(character) if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(error: BaseException) -> str:
    """The text of an exception of any library, its lines joined; its type if it has none."""
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory"
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return shown(" ".join(line for line in lines if line)) or type(error).__name__


class BertNumpyError(ValueError):
    """Bad input: says which file, key or line, what was found and what was expected.

    The message is one line, see :func:`shown`. However large what was found is,
    the message is not: its middle is left out.
    """

    def __init__(self, message: str) -> None:
        half = _LONGEST // 2
        if len(message) > _LONGEST:  # before it is gone through
            message = f"{message[:half]} {message[-half:]}"
        text = shown(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError within it into the error that ``path`` cannot be written.

    Raises
    ------
    BertNumpyError
    BrokenPipeError
        If ``path`` is a pipe that nobody reads any more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BertNumpyError(f"{path}: cannot be written: {error.strerror or error}") from None
