"""Accumulators as data: how the products of a matrix product are added up over K.

An :class:`Accumulator` holds the numbers in which accumulators differ; the sums are
computed from these numbers alone. A record of your own works like the named ones::

    mine = dataclasses.replace(ACCUMULATORS["hopper-fast"], name="mine", step=16)
    npfp8.matmul(a, b, mine)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from npfp8.arguments import flag, integer, named, require, wrong_type
from npfp8.formats import E4M3FN, E5M2, FloatFormat, Format, as_format

__all__ = ["ACCUMULATIONS", "ACCUMULATORS", "Accumulator", "as_accumulator"]

_KINDS = ("exact", "blocks", "blas", "fused", "sequential")


@dataclass(frozen=True, repr=False)
class Accumulator:
    """The way in which the products of a matrix product are added up over K.

    Parameters
    ----------
    name : str
    kind : {"exact", "blocks", "blas", "fused", "sequential"}
        - "exact": the exact sum, rounded once to float32 (:mod:`npfp8.products.exact`).
        - "blocks": the exact sum of each block of K, scaled and rounded to float32; the
          blocks are added in float32 (:mod:`npfp8.products.blocks`).
        - "blas": a float32 product by NumPy's BLAS, in the order of the BLAS.
        - "fused": the sum of a tensor core. ``step`` products and the accumulator at a
          time are cut off to the same last place and added exactly, and the sum is cut
          off again (:mod:`npfp8.products.fused`).
        - "sequential": the sum is rounded to a narrow type after every product, from the
          first to the last of K (:mod:`npfp8.products.sequential`).
    description : str
        The description in reports.
    formats : tuple of FloatFormat or str, optional
        The formats of the operands; None for all. A fused accumulator must name them.
    scales_along_k : bool
        Whether scales may vary along K, block by block. Each block then has its own
        accumulator, and the scaled sums of the blocks are added in float32.
    reproducible : bool
        Whether the bits are the same on every machine.
    nan_bits : int
        The bits of a NaN in the result.
    step : int
        Fused: the number of products added at a time.
    fraction_bits : int
        Fused: the bits after the leading one of the accumulator, and of the largest term.
    steps_to_float32 : int, optional
        Fused: the number of steps after which the accumulator is added to a float32 sum
        and starts again from zero. None: once, at the end.
    precision, emin, emax : int
        Sequential: the bits of the narrow type with the leading one, and its exponents.

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
    formats: tuple[Format, ...] | None = None
    scales_along_k: bool = True
    reproducible: bool = True
    nan_bits: int = 0x7FC00000
    step: int = 0
    fraction_bits: int = 0
    steps_to_float32: int | None = None
    precision: int = 0
    emin: int = 0
    emax: int = 0

    def __post_init__(self) -> None:
        for name in ("name", "kind", "description"):
            require(name, getattr(self, name), str, "a str")
        for name in ("scales_along_k", "reproducible"):
            flag(name, getattr(self, name))
        for name in ("nan_bits", "step", "fraction_bits", "precision", "emin", "emax"):
            integer(name, getattr(self, name))
        if self.steps_to_float32 is not None:
            integer("steps_to_float32", self.steps_to_float32)
        if self.formats is not None:
            if not isinstance(self.formats, tuple | list):
                raise wrong_type("formats", "a tuple of formats or None", self.formats)
            formats = tuple(as_format(fmt, "formats") for fmt in self.formats)
            object.__setattr__(self, "formats", formats)
        if self.kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise ValueError(f"{self.name}: kind: expected one of {known}, found {self.kind!r}")
        for good, expected in self._limits():
            if not good:
                raise ValueError(f"{self.name}: expected {expected}, found {self}")

    def __repr__(self) -> str:
        names = {
            "fused": ("step", "fraction_bits", "steps_to_float32"),
            "sequential": ("precision", "emin", "emax"),
        }.get(self.kind, ())
        numbers = "".join(f", {name} {getattr(self, name)}" for name in names)
        formats = f", {' '.join(map(str, self.formats))} only" if self.formats else ""
        return f"<Accumulator {self.name}: {self.kind}{numbers}{formats}>"

    def _limits(self) -> tuple[tuple[bool, str], ...]:
        """Return the conditions under which the float arithmetic is exact, with their words."""
        if self.kind == "sequential":
            return (
                (8 <= self.precision <= 24, "precision of 8 to 24"),
                (-126 <= self.emin < self.emax <= 127, "-126 <= emin < emax <= 127"),
            )
        if self.kind == "fused":
            formats, steps = self.formats or (), self.steps_to_float32
            # No more than 25 bits are shifted: the result is too large then.
            largest = (2 * self.step + 1) << (min(max(self.fraction_bits, 0), 24) + 1)
            return (
                (self.step > 0, "step of at least 1"),
                (self.fraction_bits > 0, "fraction_bits of at least 1"),
                (largest <= 1 << 24, "(2 step + 1) 2^(fraction_bits + 1) of at most 2^24"),
                (steps is None or steps > 0, "steps_to_float32 of at least 1, or None"),
                (
                    bool(formats) and all(map(_is_narrow, formats)),
                    "float formats of exponents from -16 to 15",
                ),
            )
        return ()

    @property
    def narrow(self) -> bool:
        """Whether it loses more bits than the float32 product of any framework."""
        return self.kind in ("fused", "sequential")

    def check(self, fmt_a: Format | str, fmt_b: Format | str, block: int | None = None) -> None:
        """Raise unless this accumulator adds up products of two formats.

        Parameters
        ----------
        fmt_a, fmt_b : FloatFormat, IntFormat or str
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
        formats = as_format(fmt_a, "fmt_a"), as_format(fmt_b, "fmt_b")
        if block is not None:
            block = integer("block", block)
        for operand, fmt in zip("ab", formats, strict=True):
            if self.formats is not None and fmt not in self.formats:
                expected = " or ".join(map(str, self.formats))
                raise ValueError(
                    f"{operand}: accumulate {self.name!r}: expected {expected}, found {fmt}"
                )
        if block is not None and not self.scales_along_k:
            raise ValueError(
                f"accumulate {self.name!r}: expected scales that do not vary along K, "
                f"found blocks of {block}"
            )


def _is_narrow(fmt: Format) -> bool:
    """Return whether the exponents of products are within -32 to 30."""
    return isinstance(fmt, FloatFormat) and fmt.min_normal >= 2.0**-16 and fmt.max < 2.0**16


_HOPPER_FAST = Accumulator(
    "hopper-fast",
    "fused",
    "fast accumulation, as Hopper's tensor cores do it",
    formats=(E4M3FN, E5M2),
    scales_along_k=False,
    nan_bits=0x7FFFFFFF,
    step=32,
    fraction_bits=13,
)

_HOPPER = replace(
    _HOPPER_FAST,
    name="hopper",
    description="accumulation in Hopper's tensor cores, promoted to float32 every 128 products",
    steps_to_float32=4,
)

#: The accumulators by name; docs/hopper.md has the evidence for Hopper's.
ACCUMULATORS = {
    accumulator.name: accumulator
    for accumulator in (
        Accumulator("exact", "exact", "exact sums, rounded once"),
        Accumulator("float32", "blas", "float32 accumulation by a BLAS", reproducible=False),
        _HOPPER,
        _HOPPER_FAST,
        Accumulator(
            "float16", "sequential", "float16 accumulation", precision=11, emin=-14, emax=15
        ),
        Accumulator(
            "bfloat16", "sequential", "bfloat16 accumulation", precision=8, emin=-126, emax=127
        ),
        Accumulator("block-sums", "blocks", "exact sums of blocks of K, added in float32"),
    )
}

#: The names of the accumulators.
ACCUMULATIONS = tuple(ACCUMULATORS)


def as_accumulator(accumulate: str | Accumulator, argument: str = "accumulate") -> Accumulator:
    """Return an accumulator that is given as such or by its name, in upper or lower case.

    Parameters
    ----------
    accumulate : str or Accumulator
    argument : str
        The name of the argument, for the error.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If no accumulator has the name; suggests the nearest one.

    Examples
    --------
    >>> from npfp8.products import as_accumulator
    >>> as_accumulator("Float16")
    <Accumulator float16: sequential, precision 11, emin -14, emax 15>
    """
    if isinstance(accumulate, Accumulator):
        return accumulate
    return named(argument, accumulate, ACCUMULATORS)
