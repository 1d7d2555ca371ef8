"""Numbers that tell the rules of block formats apart, the same on every machine.

A rule shows where the scale changes, on ties of elements, at the ends of the ranges and in
blocks of zeros. Random numbers of float32 have few of these: most rules agree on them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FloatFormat, Format

if TYPE_CHECKING:
    from npfp8.blocks.formats import BlockFormat

__all__ = ["SOURCES", "hard_inputs", "normal_numbers", "special_inputs", "to_source", "wide_inputs"]

#: The types of numbers: mantissa bits, and the exponents of the smallest and largest number.
SOURCES = {"float32": (23, -149, 127), "float16": (10, -24, 15), "bfloat16": (7, -133, 127)}

#: All tensors have as many rows and blocks per row: whole tiles of every layout of scales.
_ROWS, _BLOCKS = 128, 4

#: sqrt(8 / e)
_WIDTH = 1.7155277699214135


def _random(seed: int) -> np.random.PCG64:
    return np.random.PCG64(seed)


def _uniform(bits: np.random.PCG64, count: int) -> npt.NDArray[np.float64]:
    """Return multiples of 2^-53 above 0 and below 1; NumPy fixes the raw integers for ever."""
    raw = bits.random_raw(count).astype(np.uint64)
    return ((raw >> np.uint64(12)) * np.float64(2.0**-52)) + 2.0**-53


def _integers(bits: np.random.PCG64, low: int, high: int, shape: tuple[int, ...]) -> Array:
    """Return integers from ``low`` to ``high``, without the latter."""
    count = int(np.prod(shape))
    return (low + np.floor(_uniform(bits, count) * (high - low))).astype(np.int64).reshape(shape)


def normal_numbers(count: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return normally distributed float64 numbers, the same on every machine.

    The ratio of two uniform numbers is normal if it is accepted (Kinderman and Monahan 1977).
    Only the acceptance takes a logarithm; no decision is near enough for its last bits to
    matter, which a test checks for the seed 0.

    Examples
    --------
    >>> from npfp8.blocks.inputs import normal_numbers
    >>> normal_numbers(3).round(3).tolist()
    [0.885, 2.144, 0.547]
    """
    bits = _random(seed)
    parts: list[Array] = []
    found = 0
    while found < count:
        u, v = _uniform(bits, 1 << 16), _uniform(bits, 1 << 16)
        x = _WIDTH * (v - 0.5) / u
        parts.append(x[_excess(x, u) <= 0])
        found += parts[-1].size
    return np.concatenate(parts)[:count] if parts else np.zeros(0)


def _excess(x: Array, u: Array) -> Array:
    """Return what is at most 0 where a ratio is accepted."""
    return x * x + 4 * np.log(u)


def to_source(x: npt.ArrayLike, source: str) -> Float32Array:
    """Round numbers to a type, in float32; what is beyond its range to its largest number.

    Examples
    --------
    >>> from npfp8.blocks.inputs import to_source
    >>> to_source([1.01, 1e6], "float16").tolist()
    [1.009765625, 65504.0]
    """
    bits, _, largest = SOURCES[source]
    end = float((2 - 2.0**-bits) * 2.0**largest)
    with np.errstate(all="ignore"):
        limited = np.clip(np.asarray(x, np.float64), -end, end).astype(np.float32)
        if source == "float16":
            return limited.astype(np.float16).astype(np.float32)
        return round_to_bfloat16(limited) if source == "bfloat16" else limited


def _finite(element: Format) -> Array:
    """Return the positive values of a format, 0 included."""
    values = np.unique(np.abs(element.values[np.isfinite(element.values)]).astype(np.float64))
    return values[values <= element.max]


def _elements(element: Format) -> Array:
    """Return the values of a format, the midpoints between them, and numbers beyond."""
    values = _finite(element)
    beyond = element.max * np.array([1 + 2.0**-6, 1.0625, 1.125, 1.25, 1.5, 1.75, 2])
    return np.concatenate([values, (values[1:] + values[:-1]) / 2, beyond])


def _amaxes(element: Format, source: str) -> dict[str, Array]:
    """Return the largest magnitudes at which rules for powers of two differ, by their size."""
    bits, smallest, largest = SOURCES[source]
    step = 2.0**-bits
    fractions = [1.0, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.96875, 1.984375, 1.9921875, element.max]
    leads = np.array([float(np.frexp(value)[0]) * 2 for value in fractions])
    steps = np.array([0, 1, -1, 2, -2, 5, 11, 23, -23, -45, 60])
    around = (leads[:, None] + steps * step).reshape(-1)
    around = np.append(around[around > 0], 2 - step)
    ends = _finite(element)
    emax = int(np.frexp(ends[-1])[1]) - 1
    low = np.arange(smallest, smallest + 40 + emax)
    high = np.arange(largest - 20, largest + 1)
    exponents = {
        "thresholds": np.array([-60, -9, -1, 0, 1, 8, 60] if bits == 23 else np.arange(-8, 8)),
        "tiny blocks": low,
        "huge blocks": high,
    }
    return {name: np.ldexp(around, every[:, None]).reshape(-1) for name, every in exponents.items()}


def _blocks(amax: Array, fmt: BlockFormat, source: str, seed: int) -> Float32Array:
    """Make blocks of given largest magnitudes, of values and midpoints under scales near them."""
    bits = _random(seed)
    shape = (_ROWS * _BLOCKS, fmt.block)
    if not amax.size:
        amax = np.ones(1)
    amax = amax[_integers(bits, 0, amax.size, shape[:1])]
    grid = _elements(fmt.element)
    emax = int(np.frexp(fmt.element.max)[1]) - 1
    exponents = np.frexp(amax)[1][:, None] - 1 - emax + _integers(bits, -1, 2, (shape[0], 1))
    x = np.ldexp(grid[_integers(bits, 0, grid.size, shape)], exponents)
    step = 2.0 ** -SOURCES[source][0]
    x *= 1 + step * _integers(bits, -1, 2, shape) * (_integers(bits, 0, 3, shape) == 0)
    x = np.where(np.abs(x) > amax[:, None], 0, x)
    place = _integers(bits, 0, fmt.block, shape[:1])
    x[np.arange(shape[0]), place] = amax
    x *= 1 - 2 * _integers(bits, 0, 2, shape)
    return _matrix(to_source(x, source))


def _matrix(blocks: Array) -> Float32Array:
    return np.ascontiguousarray(blocks.reshape(_ROWS, -1), np.float32)


def _powers(bits: np.random.PCG64, low: int, high: int, block: int) -> Array:
    """Return one power of two for each block, as a matrix of elements."""
    return np.ldexp(1.0, _integers(bits, low, high, (_ROWS, _BLOCKS))).repeat(block, axis=1)


def _at_scales(fmt: BlockFormat, bits: np.random.PCG64) -> Array:
    """Return blocks whose largest magnitudes are at values and midpoints of the scales' format."""
    scale: FloatFormat = fmt.scale_format
    scales = _finite(scale)
    ratios = np.concatenate([scales[1:], (scales[1:] + scales[:-1]) / 2])
    ratios = ratios[np.arange(_ROWS * _BLOCKS) % ratios.size]
    x = 2 * _uniform(bits, _ROWS * _BLOCKS * fmt.block).reshape(-1, fmt.block) - 1
    x[:, fmt.block // 3] = 1
    x *= ratios[:, None] * fmt.element.max
    x[0] = 0
    x[0, 0] = scale.max * fmt.element.max
    return x.reshape(_ROWS, -1)


@lru_cache(maxsize=32)
def hard_inputs(fmt: BlockFormat, source: str = "float32") -> dict[str, Float32Array]:
    """Return finite tensors on which the rules of a block format differ, by name.

    Parameters
    ----------
    fmt : BlockFormat
    source : {"float32", "float16", "bfloat16"}
        All numbers are of this type; the arrays are float32.

    Returns
    -------
    dict of str to ndarray of float32, (128, 4 blocks)
        Read-only arrays.

    Examples
    --------
    >>> from npfp8 import MXFP4
    >>> from npfp8.blocks.inputs import hard_inputs
    >>> inputs = hard_inputs(MXFP4)
    >>> inputs["normal"].shape, "zero blocks" in inputs
    ((128, 128), True)
    """
    bits = _random(1)
    block, shape = fmt.block, (_ROWS, _BLOCKS * fmt.block)
    size = shape[0] * shape[1]

    def normal(seed: int) -> Array:
        return normal_numbers(size, seed).reshape(shape)

    def signs() -> Array:
        return 1 - 2 * _integers(bits, 0, 2, shape)

    zeros = normal(3)
    zeros[:, :block] = 0
    zeros[3], zeros[4] = -0.0, 0.0
    zeros[5:9, ::2] *= -0.0
    grid = _elements(fmt.element)
    ties = grid[_integers(bits, 0, grid.size, shape)] * signs()
    ties[:, ::block] = fmt.element.max
    found: dict[str, Array] = {
        "normal": normal(0) * 0.02,
        "normal in bfloat16": to_source(normal(4) * 0.02, "bfloat16"),
        "zero blocks": zeros,
    }
    if fmt.powers_of_two:
        for seed, (name, amax) in enumerate(_amaxes(fmt.element, source).items()):
            found[name] = _blocks(to_source(amax, source), fmt, source, 10 + seed)
        if source == "float32":
            amax = _amaxes(fmt.element, "bfloat16")["thresholds"]
            found["thresholds in bfloat16"] = _blocks(amax, fmt, "bfloat16", 20)
    else:
        near = ties * (1 + _integers(bits, -2, 3, shape) * 2.0 ** -SOURCES[source][0])
        at_scales = _at_scales(fmt, bits)
        huge = normal(5)
        huge[::4, :block] = 3e38
        one = np.zeros(shape)
        one[0, 7 % block], one[0, -1] = 2.0 ** SOURCES[source][1], -0.0
        found |= {
            "blocks of all sizes": normal(6) * _powers(bits, -60, 60, block),
            "scales that underflow": normal(7) * _powers(bits, -20, 1, block),
            "next to ties": near * _powers(bits, -8, 9, block),
            "at the scales' values": at_scales,
            "at the scales' values, small": at_scales * 2.0**-30,
            "huge blocks": huge,
            "all the largest number": np.full(shape, 1e300),
            "a tensor that is one tiny number": one,
            "a tiny tensor": normal(8) * 1e-36,
            "around the smallest normal number": normal(9) * 2.0**-126,
            "all zeros": np.zeros(shape),
        }
    smallest = SOURCES[source][1]
    small = np.ldexp(signs().astype(np.float64), _integers(bits, smallest, smallest + 6, shape))
    small[:, ::block] = np.ldexp(1.0, _integers(bits, -3, 5, (_ROWS, _BLOCKS)))
    found |= {
        "ties": ties * (_powers(bits, -8, 9, block) if fmt.powers_of_two else 1.0),
        "powers of two": np.ldexp(1.0, _integers(bits, -30, 5, shape)) * signs(),
        "tiny among large": small,
        "subnormal": np.ldexp(signs().astype(np.float64), _integers(bits, -149, -119, shape)),
    }
    return {name: _fixed(to_source(x, source)) for name, x in found.items()}


@lru_cache(maxsize=32)
def wide_inputs(fmt: BlockFormat, source: str = "float32") -> dict[str, Float32Array]:
    """Return a tensor of twice as many blocks per row, whose scales differ from block to block.

    All layouts of scales put its bytes into orders that differ.

    Parameters
    ----------
    fmt, source
        As for :func:`hard_inputs`.

    Examples
    --------
    >>> from npfp8 import MXFP4
    >>> from npfp8.blocks.inputs import wide_inputs
    >>> {name: x.shape for name, x in wide_inputs(MXFP4).items()}
    {'eight blocks per row': (128, 256)}
    """
    shape = _ROWS, 2 * _BLOCKS
    sizes = np.ldexp(1.0, _integers(_random(2), -6, 7, shape)).repeat(fmt.block, axis=1)
    x = normal_numbers(sizes.size, 2).reshape(sizes.shape) * sizes
    return {"eight blocks per row": _fixed(to_source(x, source))}


def special_inputs(fmt: BlockFormat, source: str = "float32") -> dict[str, Float32Array]:
    """Return tensors with infinities, and with a NaN, in some of their blocks.

    Parameters
    ----------
    fmt, source
        As for :func:`hard_inputs`.

    Examples
    --------
    >>> from npfp8 import MXFP4
    >>> from npfp8.blocks.inputs import special_inputs
    >>> list(special_inputs(MXFP4))
    ['infinity', 'NaN']
    """
    found: dict[str, Any] = {}
    for name, value in (("infinity", np.inf), ("NaN", np.nan)):
        x = to_source(normal_numbers(_ROWS * _BLOCKS * fmt.block).reshape(_ROWS, -1), source)
        x[::3, 1] = value
        x[1::6, fmt.block + 2 : fmt.block + 4] = -value
        found[name] = _fixed(x)
    return found


def _fixed(x: Float32Array) -> Float32Array:
    x.setflags(write=False)
    return x
