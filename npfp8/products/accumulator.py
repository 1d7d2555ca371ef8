"""Accumulators as data: how the products of a matrix product are added up over K.

An :class:`Accumulator` holds the numbers in which accumulators differ; the sums are
computed from these numbers alone. A record of your own works like the named ones::

    mine = dataclasses.replace(ACCUMULATORS["hopper-fast"], name="mine", step=16)
    npfp8.matmul(a, b, mine)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields

from npfp8.arguments import choice, flag, integer, require, require_iterable, wrong_type
from npfp8.blocks.formats import BLOCK_FORMATS, BlockFormat, as_block_format
from npfp8.formats import FloatFormat, Format, as_format
from npfp8.names import match

__all__ = ["FLOATS", "Accumulator", "as_any_format"]

#: The types of operands that are not codes.
FLOATS = ("float16", "bfloat16")

_TENSOR_CORES = ("fused", "groups", "dot")
_KINDS = ("exact", "blocks", "blas", "sequential", *_TENSOR_CORES)

#: The fields of tensor cores that only some of them use.
_RARELY = (
    *("nearest", "steps_to_float32", "order", "operand_emin", "block"),
    *("group", "apart", "sum_bits"),
)

_INTEGERS = (
    *("nan_bits", "step", "fraction_bits", "precision", "emin", "emax"),
    *("least_exponent", "group", "apart", "sum_bits"),
)


@dataclass(frozen=True, repr=False)
class Accumulator:
    """The way in which the products of a matrix product are added up over K.

    Parameters
    ----------
    name : str
    kind : {"exact", "blocks", "blas", "sequential", "fused", "groups", "dot"}
        - "exact": the exact sum, rounded once to float32 (:mod:`npfp8.products.exact`).
        - "blocks": the exact sum of each block of K, scaled and rounded to float32; the
          blocks are added in float32 (:mod:`npfp8.products.blocks`).
        - "blas": a float32 product by NumPy's BLAS, in the order of the BLAS.
        - "sequential": the sum is rounded to a narrow type after every product, from the
          first to the last of K (:mod:`npfp8.products.sequential`).
        - "fused", "groups", "dot": the sum of a tensor core, ``step`` products at a time
          (:mod:`npfp8.products.tensor_cores.rules`). "fused": the products and the
          accumulator are cut off alike and added exactly. "groups": the same for sums of
          ``group`` products each. "dot": the products are cut off and added; the sum is then
          added to the accumulator.
    description : str
        The description in reports.
    formats : tuple of FloatFormat, BlockFormat or str, optional
        The formats of the operands; None for all. A tensor core's must be named.
    scales_along_k : bool
        Whether scales may vary along K, block by block. Each block then has its own
        accumulator, and the scaled sums of the blocks are added in float32.
    reproducible : bool
        Whether the bits are the same on every machine.
    nan_bits : int
        The bits of a NaN in the result.
    step : int
        Tensor cores: the number of products added at a time.
    fraction_bits : int
        Tensor cores: the bits after the leading one of the largest term, to which all terms
        are cut off.
    precision, emin, emax : int
        Sequential and tensor cores: the bits, with the leading one, of the type to which the
        sum is rounded, and its exponents; if not given, float32's.
    nearest : bool
        Tensor cores: whether the sum is rounded to nearest, ties to even, and not toward zero.
    least_exponent : int
        Tensor cores: the exponent of an accumulator of zero, and of a sum of zeros.
    steps_to_float32 : int, optional
        Tensor cores: the number of steps after which the accumulator is added to a float32 sum
        and starts again from zero. None: once, at the end.
    order : tuple of int
        Tensor cores: the order in which the k of each ``len(order)`` are added.
    operand_emin : int, optional
        Tensor cores: the smallest exponent of an operand, if it is not its format's.
    floats : tuple of {"float16", "bfloat16"}
        Tensor cores: the operands of :func:`npfp8.matmul_16bit` that it takes.
    block : int, optional
        Tensor cores: the elements of K that share a scale, whose exponent counts with the
        products'.
    group : int
        Groups: the products that are added exactly.
    apart : int
        Dot: 2 if the products of even and of odd k are cut off and added apart.
    sum_bits : int
        Dot: the bits kept after the leading one of the sum with the accumulator.
    source : str
        Who found the numbers, and how.
    proven : bool
        Whether this project has compared the sums with the hardware's.

    Raises
    ------
    TypeError
        If a field is not of the type stated.
    ValueError
        If a number is missing, or the arithmetic that computes the sums cannot hold them.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from npfp8 import ACCUMULATORS, E4M3FN, matmul, quantize
    >>> import numpy as np
    >>> x = np.float32([[1.0] + [2**-6] * 255])
    >>> a, b = quantize(x, E4M3FN, 1.0), quantize(np.ones((256, 1)), E4M3FN, 1.0)
    >>> coarse = replace(ACCUMULATORS["hopper-fast"], name="coarse", fraction_bits=5)
    >>> [float(matmul(a, b, how)[0, 0]) for how in ("exact", "hopper-fast", coarse)]
    [4.984375, 4.984375, 1.0]
    """

    name: str
    kind: str
    description: str = ""
    formats: tuple[Format | BlockFormat, ...] | None = None
    scales_along_k: bool = True
    reproducible: bool = True
    nan_bits: int = 0x7FC00000
    step: int = 0
    fraction_bits: int = 0
    precision: int = 24
    emin: int = -126
    emax: int = 127
    nearest: bool = False
    least_exponent: int = -126
    steps_to_float32: int | None = None
    order: tuple[int, ...] = ()
    operand_emin: int | None = None
    floats: tuple[str, ...] = ()
    block: int | None = None
    group: int = 0
    apart: int = 1
    sum_bits: int = 0
    source: str = ""
    proven: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "kind", "description", "source"):
            require(name, getattr(self, name), str, "a str")
        for name in ("scales_along_k", "reproducible", "nearest", "proven"):
            flag(name, getattr(self, name))
        for name in _INTEGERS:
            integer(name, getattr(self, name))
        for name in ("steps_to_float32", "operand_emin", "block"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name))
        require_iterable("order", self.order, "a tuple of integers")
        object.__setattr__(self, "order", tuple(integer("order", k) for k in self.order))
        require_iterable("floats", self.floats, "a tuple of names")
        object.__setattr__(
            self, "floats", tuple(choice("floats", name, FLOATS) for name in self.floats)
        )
        if self.formats is not None:
            if not isinstance(self.formats, tuple | list):
                raise wrong_type("formats", "a tuple of formats or None", self.formats)
            formats = tuple(as_any_format(fmt, "formats") for fmt in self.formats)
            object.__setattr__(self, "formats", formats)
        if self.kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise ValueError(f"{self.name}: kind: expected one of {known}, found {self.kind!r}")
        for good, expected in self._limits():
            if not good:
                raise ValueError(f"{self.name}: expected {expected}, found {self}")

    def __repr__(self) -> str:
        names = ["precision", "emin", "emax"] if self.kind == "sequential" else []
        if self.kind in _TENSOR_CORES:
            names = ["step", "fraction_bits", "precision"]
            names += [name for name in _RARELY if getattr(self, name) != _DEFAULTS[name]]
        shown = {name: getattr(self, name) for name in names}
        if "order" in shown:
            shown["order"] = f"of {len(self.order)}"
        numbers = "".join(f", {name} {number}" for name, number in shown.items())
        operands = [*map(str, self.formats or ()), *self.floats]
        return f"<Accumulator {self.name}: {self.kind}{numbers}{_only(operands)}>"

    def _limits(self) -> Iterator[tuple[bool, str]]:
        """Yield the conditions under which the float arithmetic is exact, with their words."""
        if self.kind in ("sequential", *_TENSOR_CORES):
            # Cut off to its leading bit alone, a NaN would be an infinity.
            least = 8 if self.kind == "sequential" else 2
            yield least <= self.precision <= 24, f"precision of {least} to 24"
            yield -126 <= self.emin < self.emax <= 127, "-126 <= emin < emax <= 127"
        if self.kind not in _TENSOR_CORES:
            return
        yield 1 <= self.step <= 1024, "step of 1 to 1024"
        yield 1 <= self.fraction_bits <= 35, "fraction_bits of 1 to 35"
        # A sum of products is exact in float64: see npfp8/products/tensor_cores/steps.py.
        bits = self.fraction_bits + 2 * math.log2(self.step)
        yield bits <= 47, "fraction_bits + 2 log2(step) of at most 47"
        yield -200 <= self.least_exponent <= self.emin, "least_exponent of -200 to emin"
        steps = self.steps_to_float32
        yield steps is None or steps > 0, "steps_to_float32 of at least 1, or None"
        run = len(self.order)
        whole = sorted(self.order) == list(range(run)) and run % self.step == 0
        yield whole, "order to be a permutation of the k of whole steps"
        yield bool(self.formats or self.floats), "formats or floats"
        blocks = [fmt for fmt in self.formats or () if isinstance(fmt, BlockFormat)]
        elements = [
            fmt.element if isinstance(fmt, BlockFormat) else fmt for fmt in self.formats or ()
        ]
        yield all(map(_is_narrow, elements)), "float formats of exponents from -16 to 15"
        if self.block is None:
            yield not blocks, "block, for block formats"
        else:
            words = f"block formats with blocks of {self.block}"
            yield blocks == list(self.formats or ()) and not self.floats, words
            yield all(fmt.block == self.block for fmt in blocks), words
        if self.kind == "fused":
            yield self.block in (None, self.step), "block to be step"
        if self.kind == "groups":
            yield self.group > 0 and self.block is not None, "group of at least 1, and block"
            yield self.step % self.group == (self.block or 0) % self.group == 0, "whole groups"
            # With 4 bits of each scale, a float64 must hold a group's sum in units of the cut.
            largest = max((fmt.max for fmt in elements), default=1.0)
            bits = math.log2(self.group * largest**2) + 2 + self.fraction_bits
            yield bits <= 50, "log2(group * max^2) + 2 + fraction_bits of at most 50"
        if self.kind == "dot":
            yield self.apart in (1, 2), "apart of 1 or 2"
            yield self.fraction_bits <= self.sum_bits <= 40, "sum_bits of fraction_bits to 40"

    @property
    def narrow(self) -> bool:
        """Whether it loses more bits than the float32 product of any framework."""
        return self.kind == "sequential" or (self.is_tensor_core and self.precision < 24)

    @property
    def is_tensor_core(self) -> bool:
        """Whether it adds up as a tensor core does, some products at a time."""
        return self.kind in _TENSOR_CORES

    def check(
        self,
        fmt_a: Format | BlockFormat | str,
        fmt_b: Format | BlockFormat | str,
        block: int | None = None,
    ) -> None:
        """Raise unless this accumulator adds up products of two formats.

        Parameters
        ----------
        fmt_a, fmt_b : FloatFormat, IntFormat, BlockFormat or str
        block : int, optional
            The number of elements of K that share a scale, if scales vary along K.

        Raises
        ------
        ValueError
            Names the operand, what is expected and what was found.

        Examples
        --------
        >>> from npfp8 import ACCUMULATORS
        >>> ACCUMULATORS["hopper"].check("E4M3FN", "E5M2")
        >>> ACCUMULATORS["hopper"].check("E4M3FN", "INT8")
        Traceback (most recent call last):
        ...
        ValueError: b: accumulate 'hopper': expected E4M3FN or E5M2, found INT8
        """
        formats = as_any_format(fmt_a, "fmt_a"), as_any_format(fmt_b, "fmt_b")
        if block is not None:
            block = integer("block", block)
        for operand, fmt in zip("ab", formats, strict=True):
            if self.formats is not None and not self._takes(fmt):
                expected = " or ".join([*map(str, self.formats), *self.floats])
                raise ValueError(
                    f"{operand}: accumulate {self.name!r}: expected {expected}, found {fmt}"
                )
            if block is None and self.block is None and isinstance(fmt, BlockFormat):
                block = fmt.block
        if block is not None and not self.scales_along_k:
            raise ValueError(
                f"accumulate {self.name!r}: expected scales that do not vary along K, "
                f"found blocks of {block}"
            )

    def _takes(self, fmt: Format | BlockFormat) -> bool:
        """Return whether it takes operands of a format; how their scales are found is no matter."""
        assert self.formats is not None
        if self.block is None:
            return getattr(fmt, "element", fmt) in self.formats
        return isinstance(fmt, BlockFormat) and any(
            (fmt.element, fmt.block, fmt.scale_format)
            == (known.element, known.block, known.scale_format)
            for known in self.formats
            if isinstance(known, BlockFormat)
        )


#: The default of each field that has one.
_DEFAULTS = {f.name: f.default for f in fields(Accumulator) if f.default is not MISSING}


def as_any_format(fmt: Format | BlockFormat | str, argument: str) -> Format | BlockFormat:
    """Return a format or block format that is given as such or by its name."""
    if isinstance(fmt, BlockFormat):
        return fmt
    if isinstance(fmt, str) and match(fmt, BLOCK_FORMATS) is not None:
        return as_block_format(fmt, argument)
    return as_format(fmt, argument)


def _only(operands: list[str]) -> str:
    return f", {' '.join(operands)} only" if operands else ""


def _is_narrow(fmt: Format) -> bool:
    """Return whether the exponents of products are within -32 to 30."""
    return isinstance(fmt, FloatFormat) and fmt.min_normal >= 2.0**-16 and fmt.max < 2.0**16
