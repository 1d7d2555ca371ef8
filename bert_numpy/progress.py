"""Progress of long work, reported to any function that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

__all__ = ["Progress", "ProgressBar", "is_quiet", "is_shown", "no_bar", "quiet"]

#: Called with the number of texts or sequences just done.
Progress = Callable[[int], None]

#: Makes a progress bar: called with a total and a label.
ProgressBar = Callable[[int, str], AbstractContextManager[Progress]]


@contextmanager
def no_bar(total: int, label: str) -> Iterator[Progress]:
    """Make a progress bar that shows nothing."""
    yield lambda count: None


_QUIET = ContextVar("quiet", default=False)


@contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Show no progress bars and no notes within this context, if that is wanted."""
    token = _QUIET.set(wanted)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Tell whether progress bars and notes are left out."""
    return _QUIET.get()


def is_shown() -> bool:
    """Tell whether progress bars are drawn: not where they are left out, nor without a terminal."""
    return not is_quiet() and sys.stderr.isatty()
