"""``python -m bert_numpy`` and the ``bert-numpy`` command.

This module alone is imported before interrupts are handled, so Ctrl-C ends the command with one
line and exit code 130 even while everything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False  # not from typing, which takes longer to import than this whole module
if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

#: Signals within these seconds count as one, so that the second does not stop the cleaning up.
_AT_ONCE = 1.0


def main() -> int:
    """Run the command line as the main program of a process, and return the exit code."""
    _open_streams()
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored
    if handled:
        signal.signal(signal.SIGINT, _leave)
    from bert_numpy.commands.main import interrupted  # noqa: PLC0415 (see above)
    from bert_numpy.commands.main import main as command  # noqa: PLC0415

    for name in ("SIGTERM", "SIGHUP"):  # unfinished files are removed then, too
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _Raise(SystemExit(128 + number)))
    try:
        if handled:
            signal.signal(signal.SIGINT, _Raise(KeyboardInterrupt()))
        return command()
    except KeyboardInterrupt:
        return interrupted()
    finally:
        if handled:
            # Everything is done, and Python is ending. At its very end it takes handlers away, but
            # not SIG_IGN, under which it would complain about a signal that it has not handled yet.
            signal.signal(signal.SIGINT, _ignore)
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Raise:
    """A signal handler that raises an exception; a repetition at once is the same signal."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception
        self.last = -_AT_ONCE

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last >= _AT_ONCE:
            self.last = now
            raise self.exception


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once: nothing is being written yet, and an exception could get lost in an import."""
    signal.signal(signal.SIGINT, _ignore)
    try:
        os.write(2, b"bert-numpy: interrupted\n")
    finally:
        os._exit(130)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def _open_streams() -> None:
    """Open closed standard streams, whose numbers other files would get otherwise.

    Output to a closed standard error is dropped. A closed standard output is opened
    for reading, so that writing to it still fails.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # this takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
