"""Files, and folders of them: written whole or not at all, and read only if they are files."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["created_folder", "open_regular", "replaced_file", "require_absent"]


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


@contextmanager
def created_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears as ``path`` once all of it is written and on the disk.

    The body fills a temporary folder beside it, ``.NAME.`` and random letters,
    which is then renamed. A rename is one step and cannot replace a folder that
    holds anything; so nothing may be there yet but an empty folder, and
    whenever the process is killed, ``path`` is as it was or complete. A killed
    process leaves the temporary folder behind; one that raises does not.

    Parameters
    ----------
    path : Path

    Yields
    ------
    Path
        The temporary folder.

    Raises
    ------
    OSError
        If ``path`` is a file or a folder that is not empty, or the folder that
        it is in is missing or cannot be written to.
    """
    require_absent(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for part in temporary.rglob("*"):
            _synchronize(part)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's 0700 is for secrets
        _synchronize(temporary)
        if path.is_dir():
            path.rmdir()  # empty; Windows renames onto nothing
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _synchronize(path.parent)


def require_absent(path: Path) -> None:
    """Raise :class:`FileExistsError` unless nothing, or an empty folder, is at ``path``."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _synchronize(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
