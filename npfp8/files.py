"""Files, and folders of them: written whole or not at all, and read only if they are files.

A name that comes from a file and becomes part of a path is checked here too.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

__all__ = [
    "check_file",
    "check_folder",
    "created_folder",
    "is_plain_name",
    "open_regular",
    "replaced_file",
    "require_absent",
    "require_distinct_names",
    "same_file",
]

#: Bytes of a file's name on every usual file system.
_LONGEST_NAME = 255

#: Names that Windows gives to devices, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.I | re.S)


# Writing


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once all of it is written and on the disk.

    If the body raises, whatever was at ``path`` stays as it was, and nothing is
    left beside it. Links are followed: the file that they lead to is replaced,
    or made. The new file has the mode of the old one, and its owner and group
    where the system allows it; where there was none, the umask decides.

    What is there and is no file, such as ``/dev/null`` or a pipe, is written
    into, not replaced. So is a file that this process has open as its standard
    output or error, or that ``path`` names as an open one (``/dev/stdout``,
    ``/dev/fd/3``): after what was written there before.

    Parameters
    ----------
    path : Path

    Yields
    ------
    binary file, open for writing

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to, ``path`` is a folder, a
        block device or a file that may not be written, or no path can be so.
    """
    final, found = _destination(path)
    number = _descriptor(path, found)
    if number is not None:
        with os.fdopen(os.dup(number), "wb") as file:
            yield file
        return
    if found is not None and not stat.S_ISREG(found.st_mode):
        with final.open("wb") as file:
            yield file
        return
    # The name is chosen before the file is made: whenever an interrupt comes, it is removed.
    temporary = _beside(final)
    handle: int | None = None
    try:
        handle = _created(temporary, 0o666 if found is None else 0o600)
        with os.fdopen(os.dup(handle), "wb") as file:
            yield file
        if found is not None:
            _take_access(handle, found)
        _flush(handle)
        closing, handle = handle, None  # so that it is not closed twice
        os.close(closing)
        temporary.replace(final)
    except BaseException:
        if handle is not None:
            os.close(handle)
        with suppress(OSError):
            temporary.unlink()
        raise
    _synchronize_names(final.parent)


def check_file(path: Path) -> None:
    """Raise the OSError that :func:`replaced_file` would find, by trying; ``path`` stays as it is.

    A file of another name is made beside it and removed again.
    """
    final, found = _destination(path)
    number = _descriptor(path, found)
    if number is not None:
        os.write(number, b"")  # which fails if it is closed, or open for reading alone
        return
    if found is not None and not stat.S_ISREG(found.st_mode):
        return
    temporary = _beside(final)
    try:
        os.close(_created(temporary, 0o600))
        temporary.unlink()
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


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
        If ``path`` is a file, a folder that is not empty, or the working folder; or
        the folder that it is in is missing or cannot be written to.
    """
    path = _named(path)
    require_absent(path)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for part in temporary.rglob("*"):
            _synchronize(part)
        _synchronize(temporary)
        if path.is_dir():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            if os.name == "nt":
                path.rmdir()  # empty; Windows renames onto nothing
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _synchronize_names(path.parent)


def check_folder(path: Path) -> None:
    """Raise the OSError that :func:`created_folder` would find, by trying; nothing is left."""
    path = _named(path)
    require_absent(path)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        temporary.rmdir()
    except BaseException:
        with suppress(OSError):
            temporary.rmdir()
        raise


def require_absent(path: Path) -> None:
    """Raise :class:`FileExistsError` unless nothing, or an empty folder, is at ``path``.

    Raises
    ------
    OSError
        Also if ``path`` is the working folder: one that takes its place leaves the process, and
        the shell that has started it, in a folder that is gone.
    """
    with _os_errors(path):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            found = None
    if found is None:
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    elif not stat.S_ISDIR(found.st_mode) or any(path.iterdir()):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    elif os.path.samestat(found, os.stat(os.curdir)):
        raise OSError(errno.EBUSY, "it is the working folder, which cannot be replaced", str(path))


def same_file(a: str | Path, b: str | Path) -> bool:
    """Whether two paths lead to one file, there or yet to be written.

    By any spelling, through links of both kinds, and by names that differ in
    case alone, which some file systems do not tell apart.
    """
    try:
        with suppress(OSError):
            if os.path.samefile(a, b):
                return True
        return _place(a) == _place(b)
    except ValueError:  # a name that no file can have
        return False


def _place(path: str | Path) -> tuple[object, str]:
    folder, name = os.path.split(os.path.realpath(path))
    key: object = folder
    with suppress(OSError, ValueError):
        found = os.stat(folder)
        key = (found.st_dev, found.st_ino)
    return key, unicodedata.normalize("NFC", name).casefold()


def _destination(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where a file of this name is, links followed, and what is there; raises what forbids one."""
    with _os_errors(path):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            found = None
        final = Path(os.path.realpath(path)) if os.path.islink(path) else path
        if found is None:
            if len(os.fsencode(final.name)) > _LONGEST_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
            return final, None
    reason = None
    if stat.S_ISDIR(found.st_mode):
        reason = errno.EISDIR
    elif stat.S_ISBLK(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        reason = errno.ENXIO
    elif not os.access(path, os.W_OK):
        reason = errno.EACCES
    if reason is not None:
        raise OSError(reason, os.strerror(reason), str(path))
    return final, found


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Make an OSError of the ValueError for a name that no path can have."""
    try:
        yield
    except ValueError as error:  # a NUL, or a character that the system's names lack
        raise OSError(errno.EINVAL, str(error), str(path)) from None


def _descriptor(path: Path, found: os.stat_result | None) -> int | None:
    """The number of the open file that a path leads to: standard output's, or the one it names."""
    if os.name == "nt":
        return None
    if found is not None and stat.S_ISREG(found.st_mode):
        for number in (1, 2):
            with suppress(OSError):
                if os.path.samestat(os.fstat(number), found):
                    return number
    open_files = re.compile(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd")
    step = os.path.abspath(path)
    for _ in range(40):  # as many links as systems follow
        folder, name = os.path.split(step)
        folder = os.path.realpath(folder)
        if open_files.fullmatch(folder) and name.isascii() and name.isdecimal():
            return int(name)
        if not os.path.islink(step):
            break
        step = os.path.join(folder, os.readlink(step))
    return None


def _beside(path: Path) -> Path:
    """A name in the same folder that nothing has: a dot, the name, and random letters."""
    start = os.fsencode(path.name)[: _LONGEST_NAME - 18].decode("utf-8", "ignore")
    return path.with_name(f".{start}.{os.urandom(8).hex()}")


def _named(path: Path) -> Path:
    """A folder's path with a last part that is its name, which ``.`` and ``..`` are not."""
    return path if path.name not in ("", "..") else Path(os.path.realpath(path))


def _created(path: Path, mode: int) -> int:
    """Open a new file for writing; the system takes the umask from its mode."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, mode)


def _take_access(handle: int, found: os.stat_result) -> None:
    """Give a new file the owner, group and mode of an old one, as far as the system allows."""
    if not hasattr(os, "fchown") or not hasattr(os, "fchmod"):
        return  # Windows
    mode = stat.S_IMODE(found.st_mode) & 0o777
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (found.st_uid, found.st_gid):
        try:
            os.fchown(handle, found.st_uid, found.st_gid)
        except OSError:
            try:
                os.fchown(handle, -1, found.st_gid)
            except OSError:  # another group's members get no more than anybody
                mode &= ~0o070 | (mode & 0o007) << 3
    with suppress(OSError):  # on a file system without modes
        os.fchmod(handle, mode)


def _flush(handle: int) -> None:
    """Wait until an open file is on the disk, where the file system has a way to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _synchronize(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        _flush(handle)
    finally:
        os.close(handle)


def _synchronize_names(folder: Path) -> None:
    """The same for a folder that something was renamed in: it is there, whatever this finds."""
    with suppress(OSError):
        _synchronize(folder)


# Reading


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


# Names


def is_plain_name(name: str) -> bool:
    r"""Whether a name from a file names a file in a folder, on any system, and nothing else.

    No path, drive, stream or device; printable; at most 255 bytes of UTF-8.

    >>> [is_plain_name(x) for x in ("model.safetensors", "../x", "a/b", "C:x", "nul.txt", "x\n")]
    [True, False, False, False, False, False]
    """
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if parts != (name, name) or name == ".." or name[-1] in ". ":
        return False
    if _DEVICES.fullmatch(name) or ":" in name:  # Windows' streams of a file
        return False
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        return False
    return len(name.encode()) <= _LONGEST_NAME


def require_distinct_names(names: dict[str, str]) -> None:
    """Refuse names of files that are not plain, or of which two are one.

    Parameters
    ----------
    names : dict of str to str
        The file name of each thing. Two that differ in case alone count as one.

    Raises
    ------
    ValueError
        Names the thing.
    """
    seen: dict[str, str] = {}
    for thing, name in names.items():
        if not is_plain_name(name):
            raise ValueError(f"{thing!r}: expected a name that a file can have, found {name!r}")
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise ValueError(
                f"{thing!r}: expected a file name of its own, found {name!r}, which "
                f"{seen[key]!r} has"
            )
        seen[key] = thing
