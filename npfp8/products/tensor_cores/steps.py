"""One step of a tensor core over a tile of results: what its rules ask of the products.

The products of a step are ``x[i, k] * y[k, j]`` for each result and a few k. Most questions
about all of them are answered by a BLAS product in float64, of which there are three.

The exact sum
-------------
Where no product has a bit below the unit ``u = 2^(e - f)`` of a cut, nothing is cut off, and
all are integers in this unit, below ``2^(f + 2)``. Their sum is below 2^53, because a record's
``f + 2 log2(n)`` is at most 47: it is exact, in whatever order a BLAS adds. That holds for all
but some in a thousand results of usual FP8 data with 25 fraction bits. Where it does not hold,
the products are made, and cut off, one by one.

The largest exponent
--------------------
The product of the matrices of ``2^(8 ea)`` and of ``2^(8 eb - 6)``, with 0 for a zero, is a sum
of at most 32 numbers ``2^(8 e - 6)``, one for each product. With ``E`` the largest ``e``, it is
between ``2^(8 E - 6)`` and ``2^(8 E - 1)``, by any order of addition and with any rounding, as
a factor of 2 is left on either side. The exponent field of a float64 is then 8 times that of
``2^E`` in float32, and 1 to 6 more: the eight upper bits of the field, after the sign, are the
exponent field of ``2^E`` in float32. So the upper half of the sum, without its 23 lower bits,
are the bits of the float32 ``2^E``, and of 0 where all products are zero.

The lowest bit
--------------
By the exponents of the lowest bits that are set, negated, the same product finds the largest
``2^-l``, and so the lowest ``l``.

The factors are at least 2^-688 and at most 2^688 for operands in float32, see
:mod:`npfp8.products.tensor_cores.terms`. For the others, integers are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float64Array, blas_product, chunks, lookup
from npfp8.products.specials import overlay_specials
from npfp8.products.tensor_cores.terms import NO_EXPONENT, NO_LOWEST, Terms, of_one_type
from npfp8.products.tiles import outer, part

__all__ = ["Int64Array", "Powers", "Products", "Step", "exponent_of", "power_of_two"]

Int64Array = npt.NDArray[np.int64]

#: Powers of two: the bits of these numbers in float32.
Powers = npt.NDArray[np.int32]

#: Where more than one result in so many needs its products one by one, all of the tile do.
_FEW = 12

#: A product in units of the cut is below 2^(f + 2), and this many such products below 2^31:
#: 2^(29 - f), one at least.
_INT32_BITS = 29

#: The products of so many k have their largest exponent in a sum of powers.
_POWERS = 32

#: The bits of a float32 that are not of its fraction.
_NO_FRACTION = -1 << 23

#: The powers of two by which products of float32 are multiplied are within this one and its
#: inverse: beyond, all products are zero or far below the unit.
_LARGEST_POWER = 2.0**100

#: How the products of a step are cut off, one by one, to units: the sum, in these.
Cut = Callable[["Step", Array], Float64Array]


class Products:
    """All products of two operands (..., M, K) and (..., K, N), laid out for elementwise work.

    Results have three axes: layers, rows and columns, in the order of their lengths
    (:func:`npfp8.products.tiles.outer`).
    """

    def __init__(self, x: Terms, y: Terms, group: int = 0) -> None:
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
        if self.in_float32:
            self.matrices["exponents"] = self._matrices(
                _eighth_powers(x.exponents, 1, 0), _eighth_powers(y.exponents, 1, -6)
            )
            self.matrices["lowest"] = self._matrices(
                _eighth_powers(x.lowest, -1, 0), _eighth_powers(y.lowest, -1, -6)
            )
        self.block = None
        if x.scales is not None and y.scales is not None:
            self.block = x.scales.block
            self.sides["scales"] = outer(x.scales.exponents, y.scales.exponents)[:2]
        self.group = group
        if group:
            starts = range(0, self.k, group)
            counts = [
                np.add.reduceat((side != 0).astype(np.int16), starts, axis=axis)
                for side, axis in zip(self.matrices["values"], (2, 1), strict=True)
            ]
            #: Whether everywhere in a group more factors than k are not zero: two of them meet.
            self.more_than_zeros = (
                counts[0].min(axis=(0, 1), initial=group)
                + counts[1].min(axis=(0, 2), initial=group)
                > group
            )
        #: Whether in the last step that counted, many results had products cut off.
        self.many_lose = False
        self._kept: dict[np.dtype[Any], Array] = {}

    @property
    def in_float32(self) -> bool:
        """Whether float32 holds every product."""
        return self.sides["values"][0].dtype == np.float32

    def _matrices(self, x: Array, y: Array) -> tuple[Array, Array]:
        lead = self.whole[:-2]
        x, y = (side.astype(np.float64, copy=False) for side in (x, y))
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
    """The products of a few k for a tile of results, or for some of them, ``where``."""

    def __init__(
        self,
        products: Products,
        tile: tuple[slice, ...],
        ks: slice,
        where: tuple[npt.NDArray[np.intp], ...] | None = None,
    ) -> None:
        self._all, self._tile, self._where = products, tile, where
        self.ks = slice(*ks.indices(products.k))

    def of(self, ks: slice) -> Step:
        """Return the products of other k for the same results."""
        return Step(self._all, self._tile, ks, self._where)

    def runs(self, length: int) -> Iterator[Step]:
        """Return the products of ``length`` k, then those of the next, and so on."""
        for start in range(self.ks.start, self.ks.stop, length):
            yield self.of(slice(start, min(start + length, self.ks.stop)))

    def halves(self, apart: int) -> list[Step]:
        """Return the step, or if ``apart`` is 2, its first half and its second, if it has one."""
        if apart == 1 or self.ks.stop - self.ks.start == 1:
            return [self]
        middle = (self.ks.start + self.ks.stop + 1) // 2
        return [self.of(slice(self.ks.start, middle)), self.of(slice(middle, self.ks.stop))]

    def sums(self) -> Float64Array:
        """Return the sums of the products, exact if nothing is to be cut off."""
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

    def powers(self, name: str = "exponents") -> Powers:
        """Return 2^e of the largest exponent, or 2^-l of the lowest bit; 0 if all are zero."""
        powers = None
        for run in self.runs(_POWERS):
            found = self._product(*run._cut(name)).view(np.int64)
            found >>= 32
            of_run = found.astype(np.int32)
            powers = of_run if powers is None else np.maximum(powers, of_run)
        assert powers is not None
        powers &= _NO_FRACTION
        return powers

    def some(self) -> npt.NDArray[np.bool_] | None:
        """Return where a product of a group is not zero; None if there is one everywhere."""
        if self._all.more_than_zeros[self.ks.start // self._all.group]:
            return None
        x, y = ((side != 0).astype(np.float32) for side in self._cut("values"))
        return self._product(x, y) > 0

    def loses(self, per_unit: Array) -> npt.NDArray[np.bool_]:
        """Return where a product is no multiple of the unit: its lowest bit is below."""
        if per_unit.dtype == np.float32:
            return self.powers("lowest") > per_unit.view(np.int32)
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

    def truncated(self, per_unit: Array, cut: Cut) -> Float64Array:
        """Return the sum of the products cut off to multiples of a unit, in this unit.

        Parameters
        ----------
        per_unit : ndarray of float32 or float64
            The inverse of the unit, a power of two; float32 if the products are.
        cut : callable
            It is called where a product loses bits: with the step, maybe for some results, and
            with their ``per_unit``.
        """
        if self._all.many_lose:
            return cut(self, per_unit)
        total = self.sums()
        total *= per_unit
        loses = self.loses(per_unit)
        count = np.count_nonzero(loses)
        if not count:
            return total
        self._all.many_lose = count * _FEW > loses.size
        if self._all.many_lose:
            return cut(self, per_unit)
        where = np.unravel_index(np.flatnonzero(loses), loses.shape)
        total[where] = cut(Step(self._all, self._tile, self.ks, where), per_unit[where])
        return total

    def cut_toward_zero(self, per_unit: Array, fraction_bits: int) -> Float64Array:
        """Cut every product off toward zero to a multiple of a unit; the sum, in this unit.

        The unit is ``fraction_bits`` below the largest exponent, or less far.
        """
        products = self.products()
        if products.dtype != per_unit.dtype:
            per_unit = np.clip(per_unit, 1 / _LARGEST_POWER, _LARGEST_POWER)
            per_unit = per_unit.astype(products.dtype)
        products *= per_unit
        if products.dtype == np.float64 or fraction_bits > _INT32_BITS:
            np.trunc(products, out=products)
            wide: Float64Array = np.add.reduce(products, axis=0, dtype=np.float64)
            return wide
        integers = self._all.memory(products.shape, np.dtype(np.int32))
        np.copyto(integers, products, casting="unsafe")  # cuts off toward zero
        total: Float64Array | None = None
        for ks in chunks(len(integers), 1 << (_INT32_BITS - fraction_bits)):
            some = np.add.reduce(integers[ks], axis=0, dtype=np.int32)
            total = some.astype(np.float64) if total is None else np.add(total, some, out=total)
        assert total is not None
        return total

    def scale_exponents(self) -> npt.NDArray[np.int16]:
        """Return the sum of the exponents of the two scales of a step, which is within a block."""
        assert self._all.block is not None
        number = self.ks.start // self._all.block
        x, y = (part(side, slice(number, number + 1), self._tile)[0]
                for side in self._all.sides["scales"])  # fmt: skip
        return np.add(x, y)

    def _each(self, name: str, operation: np.ufunc) -> Array:
        x, y = (part(side, self.ks, self._tile) for side in self._all.sides[name])
        if self._where is not None:
            x, y = _taken(x, self._where), _taken(y, self._where)
        shape = np.broadcast_shapes(x.shape, y.shape)
        return operation(x, y, out=self._all.memory(shape, x.dtype))

    def _cut(self, name: str) -> tuple[Array, Array]:
        x, y = self._all.matrices[name]
        layers, rows, columns = (self._tile[self._all.order.index(axis)] for axis in range(3))
        return x[layers, rows, self.ks], y[layers, self.ks, columns]

    def _product(self, x: Array, y: Array) -> Array:
        """Multiply (layers, rows, k) by (layers, k, columns); the axes are those of the tile."""
        return np.ascontiguousarray(blas_product(x, y).transpose(self._all.order))


def _eighth_powers(exponents: Array, sign: int, more: int) -> Float64Array:
    """Return ``2^(8 sign e + more)``, and 0 for a zero."""
    bits = exponents.view(f"u{exponents.itemsize}")
    return lookup(_table_of_powers(exponents.dtype, sign, more), bits)


@lru_cache(maxsize=8)
def _table_of_powers(dtype: np.dtype[Any], sign: int, more: int) -> Float64Array:
    bits = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    exponents = bits.view(dtype).astype(np.int64)
    none = NO_EXPONENT[dtype] if sign > 0 else NO_LOWEST[dtype]
    # Exponents that operands in float32 do not have are cut off.
    powers = np.ldexp(1.0, np.clip(8 * sign * exponents + more, -1000, 1000))
    return np.where(exponents == none, 0.0, powers)


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
