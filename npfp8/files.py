"""Files and folders: written atomically, and read only if they are regular files.

A name that comes from a file and becomes part of a path is also checked here.
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
    """Open a file that takes the place of ``path`` once it is written completely, on the disk.

    If the body raises, ``path`` stays as it was, and nothing is left beside it.
    Links are followed: the file that they lead to is replaced or made. The new
    file gets the mode of the old one, and its owner and group if the system
    allows it. If there was no file, the umask decides.

    A device or a pipe, such as ``/dev/null``, is written into, not replaced. So is
    a file that this process has open as its standard output or error, or that
    ``path`` names as an open one (``/dev/stdout``, ``/dev/fd/3``): the content is
    appended.

    Parameters
    ----------
    path : Path

    Yields
    ------
    binary file, open for writing

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to; ``path`` is a folder, a
        block device or a file that may not be written; or it is not a valid path.
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
    """Raise the OSError that :func:`replaced_file` would raise; ``path`` stays as it is.

    To find out, a file of another name is made beside it and removed.
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
    """Fill a folder that appears as ``path`` once it is written completely, on the disk.

    The body fills a temporary folder beside it, ``.NAME.`` and random letters,
    which is then renamed. A rename is one step, and cannot replace a folder that
    is not empty. So ``path`` must not exist, or be an empty folder; if the process is
    killed, ``path`` is as it was or complete. A killed process leaves the temporary
    folder behind; a process that raises does not.

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
    """Raise the OSError that :func:`created_folder` would raise; nothing is left behind."""
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
    """Raise :class:`FileExistsError` unless ``path`` does not exist or is an empty folder.

    Raises
    ------
    OSError
        Also if ``path`` is the working folder: after its replacement the process, and the
        shell that started it, would be in a folder that no longer exists.
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
    """Return whether two paths lead to one file, whether or not it exists.

    Spellings may differ, links of both kinds are followed, and names that differ only in
    case count as equal, as some file systems do not distinguish them.
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
    """Return the path of a file with links followed, and its status; raise if none can be there."""
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
    """Turn the ValueError for an invalid path into an OSError."""
    try:
        yield
    except ValueError as error:  # a NUL, or a character that the system's names lack
        raise OSError(errno.EINVAL, str(error), str(path)) from None


def _descriptor(path: Path, found: os.stat_result | None) -> int | None:
    """Return the descriptor of the open file that a path leads to, or names; None without."""
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
    """Return an unused name in the same folder: a dot, the name, and random letters."""
    start = os.fsencode(path.name)[: _LONGEST_NAME - 18].decode("utf-8", "ignore")
    return path.with_name(f".{start}.{os.urandom(8).hex()}")


def _named(path: Path) -> Path:
    """Return the path of a folder so that its last part is a name, not ``.`` or ``..``."""
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
    """Wait for the names in a folder after a rename; errors are ignored, as the file is there."""
    with suppress(OSError):
        _synchronize(folder)


# Reading


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; never wait for anything else.

    Raises
    ------
    ValueError
        If it is a folder, a pipe, a socket or a device: reading from those could
        wait, or continue, forever.
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
    r"""Return whether a name from a file is the name of a file in a folder, on any system.

    It is not a path, drive, stream or device; it is printable, and at most 255 bytes of
    UTF-8.

    Examples
    --------
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
    """Raise unless names of files are plain and differ from each other.

    Parameters
    ----------
    names : dict of str to str
        The file name of each thing. Names that differ only in case count as equal.

    Raises
    ------
    ValueError
        The message names the thing.
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
