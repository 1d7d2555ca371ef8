"""One step of a tensor core over a tile of results: what its rules ask of the products.

The products of a step are ``x[i, k] * y[k, j]`` for each result and a few k. Three questions
about them need no sum, so that integers of 8 or 16 bits answer them in one pass each: the
largest exponent, the lowest bit that is set, and which products are zero. The exact sum is a
BLAS product in float64.

The truncated sum
-----------------
In units of ``u = 2^(e - f)``, with the exact sum ``S`` and each product cut off toward zero::

    sum of trunc(p / u) = S / u - sum of (p / u - trunc(p / u))           (1)

The left side is an integer. A remainder ``p / u - trunc(p / u)`` is exact in float32 and below
1, so that the sum of ``n`` of them errs by less than ``n^2 2^-24`` in float32: 2^-4 for the 1,024
products that a record may have. ``p / u`` is below ``2^(f + 2)``, so that ``S / u`` errs by less
than ``n^2 2^(f + 2 - 53)`` in float64, in whatever order a BLAS adds: by at most 2^-4, because a
record's ``f + 2 log2(n)`` is at most 47. The nearest integer to the right side is the left side,
and nothing depends on the BLAS.

Where no product has a bit below ``u``, there is no remainder, and ``S / u`` is the sum. That
holds for all but some in a thousand results of usual data with 25 fraction bits; only the
other results need their products one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float64Array, blas_product, chunks
from npfp8.products.specials import overlay_specials
from npfp8.products.tensor_cores.terms import Terms, of_one_type
from npfp8.products.tiles import outer, part

__all__ = ["Int64Array", "Products", "Step", "exponent_of", "power_of_two"]

Int64Array = npt.NDArray[np.int64]

#: Where more than one result in so many needs its products one by one, all of the tile do.
_FEW = 12

#: A product in units of the cut is below 2^(f + 2), and this many such products below 2^31:
#: 2^(29 - f), one at least.
_INT32_BITS = 29

#: The powers of two by which products of float32 are multiplied are within this one and its
#: inverse: beyond, all products are zero or far below the unit.
_LARGEST_POWER = 2.0**100


class Products:
    """All products of two operands (..., M, K) and (..., K, N), laid out for elementwise work.

    Results have three axes: layers, rows and columns, in the order of their lengths
    (:func:`npfp8.products.tiles.outer`).
    """

    def __init__(self, x: Terms, y: Terms) -> None:
        x, y = of_one_type(x, y)
        *_, self.order, self.whole = values = outer(x.values, y.values)
        self.k = x.values.shape[-1]
        self.shape = np.broadcast_shapes(*(side.shape[1:] for side in values[:2]))
        #: By name, the two operands as (k, ., ., .).
        self.sides: dict[str, tuple[Array, Array]] = {
            "values": values[:2],
            "exponents": outer(x.exponents, y.exponents)[:2],
            "lowest": outer(x.lowest, y.lowest)[:2],
        }
        #: The same as (layers, rows, k) and (layers, k, columns) in float64, for a BLAS.
        self.matrices = {"values": self._matrices(x.values, y.values)}
        if x.specials is not None or y.specials is not None:
            self.matrices["specials"] = self._matrices(
                *(t.values if t.specials is None else t.specials for t in (x, y))
            )
        self.block = None
        if x.scales is not None and y.scales is not None:
            self.block = x.scales.block
            self.sides["scales"] = outer(x.scales.exponents, y.scales.exponents)[:2]
        #: Whether in the last step that counted, many results had products cut off.
        self.many_lose = False
        self._kept: dict[np.dtype[Any], Array] = {}

    @property
    def in_float32(self) -> bool:
        """Whether float32 holds every product."""
        return self.sides["values"][0].dtype == np.float32

    def _matrices(self, x: Array, y: Array) -> tuple[Array, Array]:
        lead = self.whole[:-2]
        x, y = x.astype(np.float64), y.astype(np.float64)
        layers, (m, k), n = math.prod(lead), x.shape[-2:], y.shape[-1]
        rows = np.broadcast_to(x, (*lead, m, k))
        if math.prod(y.shape[:-2]) == 1:
            return rows.reshape(1, layers * m, k), y.reshape(1, k, n)
        columns = np.broadcast_to(y, (*lead, k, n))
        return rows.reshape(layers, m, k), columns.reshape(layers, k, n)

    def step(self, tile: tuple[slice, ...], ks: slice) -> Step:
        """Return the products of the part ``ks`` of K for a tile of results."""
        return Step(self, tile, ks)

    def memory(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array that lives until the next one of its dtype is asked for."""
        size = math.prod(shape)
        if dtype not in self._kept or self._kept[dtype].size < size:
            self._kept[dtype] = np.empty(size, dtype)
        return self._kept[dtype][:size].reshape(shape)


class Step:
    """The products of a few k for a tile of results."""

    def __init__(self, products: Products, tile: tuple[slice, ...], ks: slice) -> None:
        self._all, self._tile = products, tile
        self.ks = slice(*ks.indices(products.k))

    def runs(self, length: int) -> Iterator[Step]:
        """Return the products of ``length`` k, then those of the next, and so on."""
        for start in range(self.ks.start, self.ks.stop, length):
            yield Step(self._all, self._tile, slice(start, min(start + length, self.ks.stop)))

    def halves(self, apart: int) -> list[Step]:
        """Return the step, or if ``apart`` is 2, its first half and its second, if it has one."""
        if apart == 1 or self.ks.stop - self.ks.start == 1:
            return [self]
        middle = (self.ks.start + self.ks.stop + 1) // 2
        parts = slice(self.ks.start, middle), slice(middle, self.ks.stop)
        return [Step(self._all, self._tile, ks) for ks in parts]

    def sums(self) -> Float64Array:
        """Return the sums of the products: exact, or as near as (1) asks for."""
        return self._product(*self._cut("values"))

    def specials(self) -> Float64Array | None:
        """Return what NaN and infinity add to the sums, 0 elsewhere; None without any."""
        if "specials" not in self._all.matrices:
            return None
        x, y = self._cut("specials")
        found = np.zeros((len(x), x.shape[1], y.shape[2]), np.float32)
        overlay_specials(found, x, y)
        return np.ascontiguousarray(found.transpose(self._all.order)).astype(np.float64)

    def largest(self) -> Array:
        """Return the largest exponent of a product, int8 or int16; below all if all are zero."""
        exponents = self._each("exponents", np.add)
        return np.maximum.reduce(exponents, axis=0)

    def some(self) -> npt.NDArray[np.bool_] | None:
        """Return where a product is not zero; None if there is one everywhere."""
        x, y = (side != 0 for side in self._cut("values"))
        k = self.ks.stop - self.ks.start
        if np.count_nonzero(x, axis=-1).min() + np.count_nonzero(y, axis=-2).min() > k:
            return None  # more factors than k: two of them meet
        return self._product(x.astype(np.float32), y.astype(np.float32)) > 0

    def loses(self, per_unit: Array) -> npt.NDArray[np.bool_]:
        """Return where a product is no multiple of the unit: its lowest bit is below."""
        found = np.minimum.reduce(self._each("lowest", np.add), axis=0)
        return np.asarray(found < -exponent_of(per_unit))

    def overflows(self, emax: int) -> Float64Array:
        """Return what products from ``2^(emax + 1)`` on add to the sums, as infinities; else 0."""
        products = self.products()
        large = np.abs(products) >= 2.0 ** (emax + 1)
        return np.where(large, np.copysign(np.inf, products), 0.0).sum(axis=0)

    def products(self) -> Array:
        """Return all products (k, ., ., .), to be overwritten."""
        return self._each("values", np.multiply)

    def truncated(self, per_unit: Array, fraction_bits: int) -> Float64Array:
        """Cut every product off toward zero to a multiple of a unit; the sum, in this unit.

        The unit is ``fraction_bits`` below the largest exponent, or less far. ``per_unit`` is
        its inverse, a power of two, in float32 or float64.
        """
        fits = fraction_bits <= _INT32_BITS and self._all.in_float32
        if self._all.many_lose and fits:
            return self._integers(per_unit, 1 << (_INT32_BITS - fraction_bits))
        total = self.sums()
        total *= per_unit.astype(np.float64, copy=False)
        loses = self.loses(per_unit)
        count = np.count_nonzero(loses)
        if not count:
            return total
        self._all.many_lose = count * _FEW > loses.size
        if self._all.many_lose:
            total -= self._remainders(self.products(), per_unit)
            np.rint(total, out=total)
            return total
        x, y = (part(side, self.ks, self._tile) for side in self._all.sides["values"])
        where = np.nonzero(loses)
        x, y = _taken(x, where), _taken(y, where)
        total[where] = np.rint(total[where] - self._remainders(x * y, per_unit[where]))
        return total

    def _integers(self, per_unit: Array, run: int) -> Float64Array:
        """Return the sums of the products as integers, ``run`` of which int32 can add."""
        products = _in_units(self.products(), per_unit)
        integers = self._all.memory(products.shape, np.dtype(np.int32))
        np.copyto(integers, products, casting="unsafe")  # cuts off toward zero
        parts = [np.add.reduce(integers[ks], axis=0, dtype=np.int32)
                 for ks in chunks(len(integers), run)]  # fmt: skip
        total = parts[0].astype(np.float64)
        for other in parts[1:]:
            total += other
        return total

    @staticmethod
    def _remainders(products: Array, per_unit: Array) -> Array:
        """Return the sums of what is cut off, in units; the products are overwritten."""
        products = _in_units(products, per_unit)
        products -= np.trunc(products)
        return np.add.reduce(products, axis=0)

    def scale_exponents(self) -> npt.NDArray[np.int16]:
        """Return the sum of the exponents of the two scales of a step, which is within a block."""
        assert self._all.block is not None
        number = self.ks.start // self._all.block
        x, y = (part(side, slice(number, number + 1), self._tile)[0]
                for side in self._all.sides["scales"])  # fmt: skip
        return np.add(x, y)

    def _each(self, name: str, operation: np.ufunc) -> Array:
        x, y = (part(side, self.ks, self._tile) for side in self._all.sides[name])
        shape = np.broadcast_shapes(x.shape, y.shape)
        return operation(x, y, out=self._all.memory(shape, x.dtype))

    def _cut(self, name: str) -> tuple[Array, Array]:
        x, y = self._all.matrices[name]
        layers, rows, columns = (self._tile[self._all.order.index(axis)] for axis in range(3))
        return x[layers, rows, self.ks], y[layers, self.ks, columns]

    def _product(self, x: Array, y: Array) -> Array:
        """Multiply (layers, rows, k) by (layers, k, columns); the axes are those of the tile."""
        return np.ascontiguousarray(blas_product(x, y).transpose(self._all.order))


def _in_units(products: Array, per_unit: Array) -> Array:
    """Divide products, in place, by the unit."""
    if products.dtype != per_unit.dtype:
        per_unit = np.clip(per_unit, 1 / _LARGEST_POWER, _LARGEST_POWER).astype(products.dtype)
    products *= per_unit
    return products


def _taken(x: Array, where: tuple[npt.NDArray[np.intp], ...]) -> Array:
    """Return what an operand (k, ., ., .) contributes to some results: (k, results)."""
    layers, rows, columns = (
        np.minimum(index, length - 1) for index, length in zip(where, x.shape[1:], strict=True)
    )
    taken: Array = x[:, layers, rows, columns]
    return taken


def exponent_of(x: Array) -> Array:
    """Return the exponents of normal numbers of float32 or float64, as integers of their size.

    That of 0 is one below all others, that of infinity and NaN one above.
    """
    if x.dtype == np.float32:
        return (x.view(np.int32) >> 23 & 0xFF) - 127
    return (x.view(np.int64) >> 52 & 0x7FF) - 1023


def power_of_two(exponent: Int64Array) -> Float64Array:
    """Return 2^exponent, for exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(np.float64)
