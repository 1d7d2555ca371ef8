"""Arrays: the names of their types, and elementwise work on large ones, chunk by chunk.

Most of this package is one operation, ``table[keys]``, on arrays of any layout.
NumPy makes three passes over memory, with temporaries as large as the array. Here
the work is done chunk by chunk, on several threads: temporaries stay in the cache of
a core and need no more memory than a few chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import integer, wrong_type

__all__ = [
    "Array",
    "Float32Array",
    "Float64Array",
    "IntArray",
    "Kernel",
    "Kernels",
    "apply_chunkwise",
    "as_right_operand",
    "bfloat16_kernel",
    "blas_product",
    "chunks",
    "lookup",
    "parts",
    "require_array",
    "require_writable",
    "scratch",
    "table_kernel",
]

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: A function that fills its last argument, a 1-D chunk of results, from 1-D chunks of inputs: of
#: one array, or of several.
Kernel = Callable[[Array, Array], None]
Kernels = Callable[..., None]

#: Elements per chunk: few enough that temporaries stay in the L2 cache, enough that threads
#: rarely wait for the interpreter lock.
CHUNK = 1 << 17

#: Arrays no larger than this are not shared between threads.
_SMALLEST_SHARE = 1 << 19

#: Temporaries no larger than this come from memory that the allocator keeps by itself.
_SMALLEST_SCRATCH = 1 << 12

#: The temporaries that each thread keeps, by the name of their dtype.
_KEPT = threading.local()

#: OpenBLAS with AVX-512 multiplies small matrices without packing them first. Packing the weights
#: for few rows takes half of the time, so the columns of a product are cut into pieces that need
#: none. The limits are the most multiplications of a piece; the most results, if the right operand
#: is the transpose of a contiguous array; the fewest columns; and the most rows. A text of 16
#: tokens then takes 0.6 to 0.7 of the time; with smaller pieces it takes more. The kernels for
#: AVX2 gain nothing, and lose some 5 %.
_UNPACKED_WORK, _UNPACKED_RESULTS = 100**3, 1200
_FEWEST_COLUMNS, _FEW_ROWS = 16, 64
_FEWEST_COLUMNS_TRANSPOSED = 24

#: A right operand with at most so many numbers is faster as it is, row by row; a larger one
#: transposed, so that its pieces lie side by side.
_SMALL = 1 << 18

#: Codes in a chunk from which a table of pairs, once made, is worth its memory.
_PAIRS_FROM = 1 << 10

#: By the size of a value in bytes, the dtype that carries two of them.
_PAIR_DTYPES = {1: np.uint16, 2: np.uint32, 4: np.uint64}


def chunks(length: int, size: int) -> list[slice]:
    """Cut ``range(length)`` into slices of ``size`` elements; the last may reach beyond the end.

    Work that makes several passes over an array is done chunk by chunk, so that
    its temporaries stay in the cache of a core. The number of elements depends on
    the work: each module states its own.

    Examples
    --------
    >>> [list(range(5))[chunk] for chunk in chunks(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    return [slice(start, start + size) for start in range(0, length, size)]


def parts(x: Array, size: int) -> list[Array]:
    """Cut an array into views of ``size`` rows: itself, in a fraction of the time, if it is small.

    Examples
    --------
    >>> import numpy as np
    >>> parts(np.arange(5), 2)
    [array([0, 1]), array([2, 3]), array([4])]
    """
    return [x] if len(x) <= size else [x[chunk] for chunk in chunks(len(x), size)]


def blas_product(x: Array, y: Array) -> Array:
    """Multiply matrices of floats by the BLAS, whose floating-point exceptions mean nothing.

    A BLAS may compute numbers that it then drops, in the padding of a block of its own: on
    some processors NumPy then warns, now and then, of an invalid value in a product of finite
    numbers. What the results say is for the caller to read.

    Parameters
    ----------
    x : ndarray of float32 or float64, (..., M, K) or (K,)
    y : ndarray of the same dtype, (..., K, N) or (K,)

    Returns
    -------
    ndarray of that dtype, (..., M, N)
        As :func:`numpy.matmul` has it. In which order the sums are added is up to the BLAS.

    Examples
    --------
    >>> import numpy as np
    >>> blas_product(np.float32([[1, 2]]), np.float32([[3], [4]]))
    array([[11.]], dtype=float32)
    """
    pieces, right = 1, y
    if x.ndim == 2 and y.ndim > 1:
        # Sums in float64 are exact where it matters. Those in float32 should not depend on the
        # layout of y, so it is always cut in the same way.
        by_rows = y.dtype == np.float64 and y.flags.c_contiguous
        pieces = _pieces(len(x), y.shape[-2], y.shape[-1], by_rows)
        if pieces > 1:
            right = _cut(y, pieces, by_rows)
    with np.errstate(all="ignore"):
        product: Array = np.matmul(x, right)
    if right is not y:
        product = product.swapaxes(-3, -2).reshape(*product.shape[:-3], len(x), -1)
    return product


def _pieces(rows: int, k: int, columns: int, by_rows: bool) -> int:
    """Return into how many parts to cut the columns of a product: a power of 2, often 1."""
    if not 0 < rows <= _FEW_ROWS or not k:
        return 1
    most, fewest = _UNPACKED_WORK // (rows * k), _FEWEST_COLUMNS
    if not by_rows:
        most, fewest = min(most, _UNPACKED_RESULTS // rows), _FEWEST_COLUMNS_TRANSPOSED
    pieces = 1
    while columns > pieces * most and columns % (2 * pieces) == 0:
        pieces *= 2
    return pieces if most >= columns // pieces >= fewest else 1


def _cut(y: Array, pieces: int, by_rows: bool) -> Array:
    """Cut the columns of matrices: (..., K, N) -> (..., pieces, K, N / pieces)."""
    if by_rows:
        return y.reshape(*y.shape[:-1], pieces, -1).swapaxes(-3, -2)
    columns = np.ascontiguousarray(y.swapaxes(-2, -1))
    return columns.reshape(*y.shape[:-2], pieces, -1, y.shape[-2]).swapaxes(-2, -1)


def as_right_operand(x: Float64Array) -> Float64Array:
    """Lay out a matrix as :func:`blas_product` reads it fastest, for products with few rows.

    Parameters
    ----------
    x : ndarray of float64, (K, N)

    Returns
    -------
    ndarray of float64, (K, N)
        Row by row if it is small, and otherwise column by column; ``x`` itself if it is so.

    Examples
    --------
    >>> import numpy as np
    >>> as_right_operand(np.ones((3, 2)).T).flags.c_contiguous
    True
    """
    return np.ascontiguousarray(x) if x.size <= _SMALL else np.asfortranarray(x)


def scratch(size: int, dtype: type[np.generic]) -> Array:
    """Return a 1-D array that lives until its thread asks for the next one of the dtype.

    A large array that is made anew costs more than a pass over it, because the system maps and
    clears each of its pages. So each thread keeps one chunk of memory per dtype.

    Examples
    --------
    >>> import numpy as np
    >>> first, second = scratch(1 << 16, np.float32), scratch(1 << 15, np.float32)
    >>> first.size, second.size, np.shares_memory(first, second)
    (65536, 32768, True)
    """
    if not _SMALLEST_SCRATCH < size <= CHUNK:
        return np.empty(size, dtype)
    kept, name = vars(_KEPT), dtype.__name__
    if name not in kept:
        kept[name] = np.empty(CHUNK, dtype)
    memory: Array = kept[name]
    return memory[:size]


def lookup(
    table: Array,
    keys: Array,
    *,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Return ``table[keys]``.

    Parameters
    ----------
    table : ndarray, (256,) or (65536,)
    keys : ndarray of uint8, uint16, or float32
        The table has an entry for every key. float32 keys are bfloat16 values; their
        upper 16 bits are looked up.
    out, threads
        As in :func:`apply_chunkwise`.

    Returns
    -------
    ndarray of the table's dtype and the shape of ``keys``
    """
    if keys.dtype == np.float32:
        kernel = bfloat16_kernel(table)
    elif keys.dtype == np.uint8 and table.itemsize in _PAIR_DTYPES:
        kernel = _pair_kernel(table)
    else:
        kernel = table_kernel(table)
    return apply_chunkwise(kernel, keys, table.dtype, out=out, threads=threads)


def table_kernel(table: Array) -> Kernel:
    """Return the kernel of ``table[keys]`` for keys of an unsigned dtype."""
    take = table.take

    def kernel(keys: Array, results: Array) -> None:
        indices = scratch(keys.size, np.intp)
        indices[...] = keys
        # mode="clip" spares take's bounds check; every key is within the table.
        take(indices, None, results, "clip")

    return kernel


def bfloat16_kernel(table: Array) -> Kernel:
    """Return the kernel of ``table[bits]`` for float32 chunks: the upper 16 bits of each."""
    take, shift = table.take, np.array(16, np.uint32)

    def kernel(x: Array, results: Array) -> None:
        indices = np.right_shift(x.view(np.uint32), shift, scratch(x.size, np.intp))
        take(indices, None, results, "clip")

    return kernel


def _pair_kernel(table: Array) -> Kernel:
    """Return the kernel of ``table[codes]`` for 8-bit codes: two at a time in large chunks."""
    single = table_kernel(table)
    pair_dtype = _PAIR_DTYPES[table.itemsize]

    def kernel(codes: Array, results: Array) -> None:
        if codes.size < _PAIRS_FROM:
            single(codes, results)
            return
        even = codes.size & ~1
        pairs = table_kernel(_pair_table(table.tobytes(), table.dtype))
        pairs(codes[:even].view(np.uint16), results[:even].view(pair_dtype))
        if even < codes.size:
            single(codes[even:], results[even:])

    return kernel


@lru_cache(maxsize=64)
def _pair_table(table: bytes, dtype: np.dtype[Any]) -> Array:
    """Return the two entries of each pair of 8-bit codes as one word, in the order of the pairs."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    return np.frombuffer(table, dtype)[codes].view(_PAIR_DTYPES[dtype.itemsize])


def apply_chunkwise(
    kernel: Kernel | Kernels,
    x: Array,
    dtype: npt.DTypeLike,
    *,
    out: Array | None = None,
    threads: int = 1,
    order: Any = "K",
    others: tuple[Array, ...] = (),
) -> Array:
    """Apply a kernel to every element of an array, chunk by chunk.

    Chunks that are contiguous in memory go to the kernel as they are; others,
    and those of another byte order, are copied a chunk at a time.

    Parameters
    ----------
    kernel : callable (chunk, ..., results)
        It is called with contiguous 1-D chunks in native byte order.
    x : ndarray
    dtype : dtype
        The dtype of the results.
    out : ndarray of ``dtype``, optional
        The array for the results, of the shape of ``x``, in any layout; it may overlap ``x``.
    threads : int
        The number of threads that share an array of more than 2^19 elements.
    order : {"K", "C"}
        The order of the elements: as they lie in memory, or row by row.
    others : tuple of ndarray
        Arrays of the shape of ``x``, whose chunks the kernel gets after those of ``x``.

    Returns
    -------
    ndarray of ``dtype``, ``out`` or a new one in the memory layout of ``x``

    Raises
    ------
    TypeError
        If ``out`` is not an array of ``dtype``, or ``threads`` is not an integer.
    ValueError
        If it is of another shape or read-only, or ``threads`` is less than 1.
    """
    dtype = np.dtype(dtype)
    if type(threads) is not int:
        threads = integer("threads", threads)
    if fresh := out is None:
        out = np.empty_like(x, dtype, order, False)
    else:
        require_array("out", out, dtype)
        if out.shape != x.shape:
            raise ValueError(f"out: expected shape {x.shape}, found {out.shape}")
        require_writable("out", out)
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    result, out = out, np.asarray(out)  # np.matrix has two axes always
    arrays = [np.asarray(array) for array in (x, *others)]
    if threads == 1 or x.size <= _SMALLEST_SHARE:
        _apply(kernel, arrays, out, order, fresh)
        return result
    # Else one thread could write what another has yet to read.
    arrays = [array.copy() if np.may_share_memory(array, out) else array for array in arrays]
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 (a tenth of the import's time)

    axis = int(np.argmax(x.shape))
    *inputs, outputs = (np.array_split(array, threads, axis) for array in (*arrays, out))
    shares = list(zip(zip(*inputs, strict=True), outputs, strict=True))
    with ThreadPoolExecutor(threads - 1) as pool:
        running = [
            pool.submit(_apply, kernel, sources, target, order) for sources, target in shares[1:]
        ]
        _apply(kernel, *shares[0], order)
        for share in running:
            share.result()
    return result


def require_array(name: str, x: Any, *dtypes: npt.DTypeLike) -> None:
    """Raise TypeError unless ``x`` is an array of one of some dtypes."""
    if isinstance(x, np.ndarray) and x.dtype in dtypes:
        return
    expected = f"an array of {' or '.join(str(np.dtype(dtype)) for dtype in dtypes)}"
    if isinstance(x, np.ndarray | np.generic):
        raise TypeError(f"{name}: expected {expected}, found {x.dtype}")
    raise wrong_type(name, expected, x)


def require_writable(name: str, x: Array) -> None:
    """Raise ValueError for an array that is read-only."""
    if not x.flags.writeable:
        raise ValueError(f"{name}: expected an array that can be written, found a read-only one")


def _apply(
    kernel: Kernels, inputs: Sequence[Array], out: Array, order: Any, fresh: bool = False
) -> None:
    """Apply a kernel to arrays; ``fresh`` says that the inputs cannot overlap ``out``."""
    usable = all(x.flags.aligned and x.dtype.isnative for x in inputs)
    if usable and (fresh or not any(np.may_share_memory(x, out) for x in inputs)):
        flat = _flat([*inputs, out], order)
        if flat is not None:
            if out.size <= CHUNK:
                kernel(*flat)
                return
            for chunk in chunks(out.size, CHUNK):
                kernel(*(array[chunk] for array in flat))
            return
    pieces = np.nditer(  # type: ignore[call-overload]  # NumPy's stubs misspell "contig"
        [*inputs, out],
        flags=["external_loop", "buffered", "zerosize_ok", "copy_if_overlap"],
        op_flags=[["readonly", "contig", "aligned"]] * len(inputs) + [["writeonly", "contig"]],
        op_dtypes=[*(x.dtype.newbyteorder("=") for x in inputs), out.dtype],
        order=order,
        casting="equiv",
        buffersize=CHUNK,
    )
    with pieces:
        for operands in pieces:
            kernel(*operands)


def _flat(arrays: list[Array], order: Any) -> list[Array] | None:
    """Return arrays of one shape as 1-D views; None if they lie in memory in several orders.

    An array whose axes are permuted, as heads of attention are, lies in an order of its own.
    """
    if not _contiguous(arrays):
        if order != "K":
            return None
        strides = arrays[-1].strides
        axes = sorted(range(len(strides)), key=lambda axis: -strides[axis])
        arrays = [array.transpose(axes) for array in arrays]
        if not _contiguous(arrays):
            return None
    return [array.reshape(-1) for array in arrays]


def _contiguous(arrays: list[Array]) -> bool:
    for array in arrays:  # noqa: SIM110 (a third of the time of `all`, which tiny models feel)
        if not array.flags.c_contiguous:
            return False
    return True
