"""The accumulators by name: a tensor core is a row of numbers.

Sources of the rows
-------------------
- Hopper's were found by this project and compared with an H100 and an H200, to the last bit
  (``docs/hopper.md``, ``docs/tensor-cores.md``).
- The others are as MMA-Sim 2.1.1 describes them (PyPI ``mmasim``; its authors compared them
  with the devices that it names). This project compares with MMA-Sim, not with the devices.

Accumulators whose names end in "float16" return float16, those with "16bit" take float16 and
bfloat16 operands.
"""

from __future__ import annotations

from dataclasses import replace

from npfp8.arguments import named
from npfp8.blocks.formats import (
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NVFP4,
    BlockFormat,
)
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
)
from npfp8.products.accumulator import FLOATS, Accumulator

__all__ = ["ACCUMULATIONS", "ACCUMULATORS", "as_accumulator"]

_MEASURED = "measured on an H100 and an H200"
_MMASIM = "MMA-Sim 2.1.1, whose authors compared it with the device"

_ADA = Accumulator(
    "ada",
    "fused",
    "accumulation in Ada's tensor cores",
    formats=(E4M3FN, E5M2),
    scales_along_k=False,
    nan_bits=0x7FFFFFFF,
    step=16,
    fraction_bits=13,
    precision=14,
    emin=-126,
    emax=127,
    least_exponent=-132,
    source=_MMASIM,
)

_HOPPER_FAST = replace(
    _ADA,
    name="hopper-fast",
    description="fast accumulation, as Hopper's tensor cores do it",
    step=32,
    least_exponent=-133,
    source=_MEASURED,
    proven=True,
)

_BLACKWELL = replace(
    _ADA,
    name="blackwell",
    description="accumulation in Blackwell's tensor cores",
    formats=(E4M3FN, E5M2, E3M2, E2M3, E2M1),
    step=32,
    fraction_bits=25,
    precision=24,
    least_exponent=-133,
)

_HOPPER_16BIT = replace(
    _HOPPER_FAST,
    name="hopper-16bit",
    description="accumulation of 16-bit operands in Hopper's tensor cores",
    formats=(),
    floats=FLOATS,
    step=16,
    fraction_bits=25,
    precision=24,
)

_BLACKWELL_16BIT = replace(
    _HOPPER_16BIT,
    name="blackwell-16bit",
    description="accumulation of 16-bit operands in Blackwell's tensor cores",
    source=_MMASIM,
    proven=False,
)

_AMPERE_16BIT = replace(
    _HOPPER_16BIT,
    name="ampere-16bit",
    description="accumulation of 16-bit operands in Turing's, Ampere's and Ada's tensor cores",
    step=8,
    fraction_bits=24,
    least_exponent=-132,
    source=_MMASIM,
    proven=False,
)

_MXF8F6F4 = replace(
    _BLACKWELL,
    name="blackwell-mxf8f6f4",
    description="accumulation of MX blocks in Blackwell's tensor cores",
    formats=(MXFP8_E4M3, MXFP8_E5M2, MXFP6_E3M2, MXFP6_E2M3, MXFP4),
    scales_along_k=True,
    block=32,
)

_MXF4 = replace(
    _MXF8F6F4,
    name="blackwell-mxf4",
    kind="groups",
    description="accumulation of MXFP4 in Blackwell's tensor cores",
    formats=(MXFP4,),
    step=64,
    fraction_bits=35,
    least_exponent=-139,
    group=16,
)

_CDNA3 = replace(
    _ADA,
    name="cdna3",
    kind="dot",
    description="accumulation in CDNA3's matrix cores",
    formats=(E4M3FNUZ, E5M2FNUZ),
    fraction_bits=24,
    precision=24,
    nearest=True,
    least_exponent=-126,
    apart=2,
    sum_bits=31,
)


def _float16(how: Accumulator, least_exponent: int) -> Accumulator:
    """Return the accumulator whose sum is rounded to float16 after each step."""
    return replace(
        how,
        name=f"{how.name}-float16",
        description=f"{how.description}, to float16",
        floats=("float16",) if how.floats else (),
        nan_bits=0x7FFFE000,
        precision=11,
        emin=-14,
        emax=15,
        nearest=True,
        least_exponent=least_exponent,
    )


#: The accumulators by name.
ACCUMULATORS = {
    accumulator.name: accumulator
    for accumulator in (
        Accumulator("exact", "exact", "exact sums, rounded once"),
        Accumulator("float32", "blas", "float32 accumulation by a BLAS", reproducible=False),
        replace(
            _HOPPER_FAST,
            name="hopper",
            description=(
                "accumulation in Hopper's tensor cores, promoted to float32 every 128 products"
            ),
            steps_to_float32=4,
        ),
        _HOPPER_FAST,
        _float16(_HOPPER_FAST, -21),
        replace(
            _HOPPER_FAST,
            name="hopper-mma-sync",
            description="accumulation of mma.sync on Hopper, by float16 instructions",
            step=16,
            fraction_bits=25,
            precision=24,
            steps_to_float32=2,
            # Of each four k, the first two, then of each four the others.
            order=tuple(
                k for first in (0, 2) for i in range(0, 32, 4) for k in (i + first, i + first + 1)
            ),
            operand_emin=-14,
        ),
        _HOPPER_16BIT,
        _float16(_HOPPER_16BIT, -21),
        _ADA,
        _float16(_ADA, -20),
        _AMPERE_16BIT,
        _float16(_AMPERE_16BIT, -20),
        _BLACKWELL,
        _float16(_BLACKWELL, -21),
        _BLACKWELL_16BIT,
        _float16(_BLACKWELL_16BIT, -21),
        _MXF8F6F4,
        _MXF4,
        replace(
            _MXF4,
            name="blackwell-mxf4nvf4",
            description="accumulation of NVFP4 in Blackwell's tensor cores",
            formats=(NVFP4, BlockFormat(E2M1, 16, name="MXFP4 in blocks of 16")),
            block=16,
        ),
        _CDNA3,
        replace(
            _CDNA3,
            name="cdna3-16bit",
            description="accumulation of 16-bit operands in CDNA3's matrix cores",
            formats=(),
            floats=FLOATS,
            step=8,
            apart=1,
        ),
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
