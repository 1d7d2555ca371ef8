"""Files: written whole or not at all, and read only if they are files."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular", "replaced_file"]


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once all of it is written.

    If the body raises, whatever was at ``path`` stays as it was. What is there
    and is no file, such as ``/dev/null`` or a pipe, is written into, not
    replaced.

    Parameters
    ----------
    path : Path

    Yields
    ------
    binary file, open for writing

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to, or ``path`` is one.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 is for secrets
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; anything else is not waited for.

    Raises
    ------
    ValueError
        If it is a folder, a pipe, a socket or a device: a read of those could
        wait, or go on, for ever.
    OSError
        If it cannot be opened.
    """
    # Without waiting: the other end of a pipe may never be opened.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_dir():  # which Windows does not open
        raise ValueError(f"{path}: expected a file, found a folder")
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path}: expected a file, found a pipe or a device")
    return os.fdopen(handle, "rb")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
