"""Codes as ml_dtypes arrays and back, without a copy. Needs the package ml_dtypes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arguments import require
from npfp8.arrays import Array, require_array
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FloatFormat,
    as_format,
)

__all__ = ["ML_DTYPES_NAMES", "from_ml_dtypes", "to_ml_dtypes"]

#: The name that each format has in ml_dtypes.
ML_DTYPES_NAMES = {
    E4M3FN: "float8_e4m3fn",
    E5M2: "float8_e5m2",
    E4M3FNUZ: "float8_e4m3fnuz",
    E5M2FNUZ: "float8_e5m2fnuz",
    E4M3: "float8_e4m3",
    E3M4: "float8_e3m4",
    E4M3B11FNUZ: "float8_e4m3b11fnuz",
    E8M0FNU: "float8_e8m0fnu",
    E2M3: "float6_e2m3fn",
    E3M2: "float6_e3m2fn",
    E2M1: "float4_e2m1fn",
}


def to_ml_dtypes(codes: npt.NDArray[np.uint8], fmt: FloatFormat | str) -> Array:
    """View codes as an array of the ml_dtypes type of their format; shares memory.

    Parameters
    ----------
    codes : ndarray of uint8
    fmt : FloatFormat or str
        Their format, or its name.

    Raises
    ------
    ImportError
        If ml_dtypes is not installed.
    TypeError
        If ``codes`` is not uint8, or ``fmt`` is not a format or a name.
    ValueError
        If ml_dtypes does not have the format.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.interop import to_ml_dtypes
    >>> to_ml_dtypes(np.uint8([0x38]), E4M3FN)  # doctest: +SKIP
    array([1], dtype=float8_e4m3fn)
    """
    import ml_dtypes  # noqa: PLC0415 (optional)

    known = as_format(fmt)
    require_array("codes", codes, np.uint8)
    if not isinstance(known, FloatFormat) or known not in ML_DTYPES_NAMES:
        raise ValueError(f"fmt: expected a format that ml_dtypes has, found {known!r}")
    return codes.view(getattr(ml_dtypes, ML_DTYPES_NAMES[known]))


def from_ml_dtypes(array: Array) -> tuple[npt.NDArray[np.uint8], FloatFormat]:
    """View an ml_dtypes array as its codes, and return their format; shares memory.

    Parameters
    ----------
    array : ndarray of one of ml_dtypes' types of at most 8 bits

    Returns
    -------
    codes : ndarray of uint8
    fmt : FloatFormat

    Raises
    ------
    TypeError
        If ``array`` is not an array, or its dtype is not one of :data:`ML_DTYPES_NAMES`.

    Examples
    --------
    >>> import ml_dtypes  # doctest: +SKIP
    >>> import numpy as np
    >>> from npfp8.interop import from_ml_dtypes
    >>> from_ml_dtypes(np.array([1.0], ml_dtypes.float8_e4m3fn))  # doctest: +SKIP
    (array([56], dtype=uint8), <FloatFormat E4M3FN: 1+4+3 bits, bias 7, max 448>)
    """
    require("array", array, np.ndarray, "an ml_dtypes array")
    for fmt, name in ML_DTYPES_NAMES.items():
        if array.dtype.name == name:
            return array.view(np.uint8), fmt
    names = ", ".join(ML_DTYPES_NAMES.values())
    raise TypeError(f"array: expected a dtype of {names}, found {array.dtype}")
