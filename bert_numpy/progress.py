"""Progress of long work, reported to any function that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Progress", "ProgressBar", "no_bar"]

#: Called with the number of texts or sequences just done.
Progress = Callable[[int], None]

#: Makes a progress bar: called with a total and a label.
ProgressBar = Callable[[int, str], AbstractContextManager[Progress]]


@contextmanager
def no_bar(total: int, label: str) -> Iterator[Progress]:
    """Make a progress bar that shows nothing."""
    yield lambda count: None
