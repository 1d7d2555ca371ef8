"""Work on several threads: batch by batch, in order, with one BLAS thread per batch.

A BLAS splits a product between the cores, but everything except products runs on one
core. NumPy releases the interpreter lock in both cases, so batches side by side keep
every core busy throughout, if each product stays on its own thread.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from npfp8.arguments import integer, require_function, wrong_type

__all__ = ["default_threads", "map_in_order", "one_blas_thread"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: The names of OpenBLAS's functions, which depend on its build.
_OPENBLAS_NAMES = (
    "scipy_openblas_{}64_",
    "scipy_openblas_{}",
    "openblas_{}64_",
    "openblas_{}",
)

_lock = Lock()
_users = 0
_before = 1


def default_threads() -> int:
    """Return the number of cores that the process may use.

    Examples
    --------
    >>> from bert_numpy.threads import default_threads
    >>> default_threads() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterator[_Result]:
    """Compute ``map(function, items)`` on several threads, with results in the items' order.

    Items are taken lazily: at most one more than ``threads`` of them, or their results, are held
    at a time. The one that waits keeps a thread busy while the oldest is not done. If the BLAS
    cannot be kept on one thread, or if there is a single item, the items are done one after
    another, and the BLAS uses the cores.

    Parameters
    ----------
    function : callable
        A function of one item, called from several threads.
    items : iterable
        The items; only the caller's thread iterates over them.
    threads : int
        At least 1; with 1 no other thread is started.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If ``threads`` is less than 1.

    Examples
    --------
    >>> from bert_numpy.threads import map_in_order
    >>> list(map_in_order(abs, [-1, 2, -3], threads=2))
    [1, 2, 3]
    """
    require_function("function", function)
    try:
        iterator = iter(items)
    except TypeError:
        raise wrong_type("items", "an iterable", items) from None
    if (threads := integer("threads", threads)) < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    first = list(islice(iterator, 2))
    if threads == 1 or len(first) < 2 or not _blas_threads():
        for part in (first, iterator):
            yield from map(function, part)
        return
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        running: deque[Future[_Result]] = deque()
        try:
            for part in (first, iterator):
                for item in part:
                    if len(running) > threads:
                        yield running.popleft().result()
                    running.append(pool.submit(function, item))
                    del item
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep every product of NumPy's OpenBLAS on the calling thread while in the context.

    The setting applies to the whole process. Without OpenBLAS nothing happens.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.threads import one_blas_thread
    >>> with one_blas_thread():
    ...     np.ones((2, 2)) @ np.ones((2, 2))
    array([[2., 2.],
           [2., 2.]])
    """
    global _users, _before  # noqa: PLW0603 (the setting is global too)
    get_and_set = _blas_threads()
    if get_and_set is None:
        yield
        return
    get, set_ = get_and_set
    with _lock:
        if not _users:
            _before = get()
            set_(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users = max(_users - 1, 0)  # a forked child has forgotten those of its parent
            if not _users:
                set_(_before)


def _forget_users_after_fork() -> None:
    """Undo the setting in a child process, which lacks the threads that asked for it.

    It also lacks the thread that may have held the lock.
    """
    global _lock, _users  # noqa: PLW0603
    _lock = Lock()
    get_and_set = _blas_threads() if _users else None
    _users = 0
    if get_and_set is not None:
        get_and_set[1](_before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_users_after_fork)


@lru_cache(maxsize=1)
def _blas_threads() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """Find OpenBLAS's functions to get and set its number of threads; None without OpenBLAS."""
    core = getattr(np, "_core", None) or np.core
    try:  # a library also finds the symbols of the libraries linked to it
        library = ctypes.CDLL(core._multiarray_umath.__file__)
    except OSError:
        return None
    for name in _OPENBLAS_NAMES:
        get = getattr(library, name.format("get_num_threads"), None)
        set_ = getattr(library, name.format("set_num_threads"), None)
        if get is not None and set_ is not None:
            get.restype, get.argtypes = ctypes.c_int, []
            set_.restype, set_.argtypes = None, [ctypes.c_int]
            return get, set_
    return None
