"""The one exception for input that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BertNumpyError", "writing"]

#: Characters of a message.
_LONGEST = 4000


class BertNumpyError(ValueError):
    """Bad input: says which file, key or line, what was found and what was expected.

    However large what was found is, the message is not: its middle is left out.
    """

    def __init__(self, message: str) -> None:
        cut = len(message) > _LONGEST
        half = _LONGEST // 2
        super().__init__(f"{message[:half]} ... {message[-half:]}" if cut else message)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError within it into the error that ``path`` cannot be written.

    Raises
    ------
    BertNumpyError
    """
    try:
        yield
    except OSError as error:
        raise BertNumpyError(f"{path}: cannot be written: {error.strerror or error}") from None
