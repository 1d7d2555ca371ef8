"""Accumulators as data: how the products of a matrix product are added up over K.

An :class:`Accumulator` states what distinguishes one from another; the sums are
made from these numbers alone. A record of one's own works as the named ones do::

    mine = dataclasses.replace(ACCUMULATORS["hopper-fast"], name="mine", step=16)
    npfp8.matmul(a, b, mine)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from npfp8.formats import E4M3FN, E5M2, FloatFormat, Format

__all__ = ["ACCUMULATIONS", "ACCUMULATORS", "Accumulator"]

_KINDS = ("exact", "blas", "fused", "sequential")


@dataclass(frozen=True)
class Accumulator:
    """What the sum over K of a matrix product is.

    Parameters
    ----------
    name : str
    kind : {"exact", "blas", "fused", "sequential"}
        - "exact": the exact sum, rounded once to float32 (:mod:`npfp8.products.exact`).
        - "blas": a float32 product by NumPy's BLAS, whose order of sums is its own.
        - "fused": as tensor cores do it, ``step`` products and the accumulator at a
          time, cut off to the same last place and added exactly, the sum cut off
          again (:mod:`npfp8.products.fused`).
        - "sequential": rounded to a narrow type after every product, from the first
          to the last of K (:mod:`npfp8.products.sequential`).
    description : str
        For reports.
    formats : tuple of FloatFormat, optional
        The formats of the operands; None for all. A fused accumulator must name them.
    scales_along_k : bool
        Whether scales may vary along K, block by block. Each block then has an
        accumulator of its own, and the scaled sums of the blocks are added in float32.
    reproducible : bool
        Whether the bits are the same on every machine.
    nan_bits : int
        The bits of a NaN in the result.
    step : int
        Fused: products added at a time.
    fraction_bits : int
        Fused: bits after the leading one of the accumulator, and of the largest term.
    steps_to_float32 : int, optional
        Fused: steps after which the accumulator is added to a float32 sum and starts
        again from zero. None: once, at the end.
    precision, emin, emax : int
        Sequential: the narrow type's bits with the leading one, and its exponents.

    Raises
    ------
    ValueError
        If a number is missing, or the arithmetic that the sums are computed with cannot
        hold what it asks for.

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
        if self.kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise ValueError(f"{self.name}: kind: expected one of {known}, found {self.kind!r}")
        for good, expected in self._limits():
            if not good:
                raise ValueError(f"{self.name}: expected {expected}, found {self}")

    def _limits(self) -> tuple[tuple[bool, str], ...]:
        """The conditions under which the float arithmetic of the sums is exact, in words."""
        if self.kind == "sequential":
            return (
                (8 <= self.precision <= 24, "precision of 8 to 24"),
                (-126 <= self.emin < self.emax <= 127, "-126 <= emin < emax <= 127"),
            )
        if self.kind == "fused":
            formats, steps = self.formats or (), self.steps_to_float32
            largest = (2 * self.step + 1) << (max(self.fraction_bits, 0) + 1)
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
        """Whether it loses more bits than the float32 product that any framework computes."""
        return self.kind in ("fused", "sequential")

    def check(self, fmt_a: Format, fmt_b: Format, block: int | None = None) -> None:
        """Raise unless it adds up products of two formats.

        Parameters
        ----------
        fmt_a, fmt_b : FloatFormat or IntFormat
        block : int, optional
            The elements of K that share a scale, where scales vary along K.

        Raises
        ------
        ValueError
            Names the operand, what is expected and what was found.
        """
        for operand, fmt in (("a", fmt_a), ("b", fmt_b)):
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
    """Whether a product's exponent is one of -32 to 30."""
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
    )
}

#: Their names: how :func:`npfp8.matmul` can add products up.
ACCUMULATIONS = tuple(ACCUMULATORS)
