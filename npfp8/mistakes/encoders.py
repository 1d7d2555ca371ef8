"""The list of the mistakes of encoders, in the order in which they are tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.formats import FloatFormat
from npfp8.mistakes.carry import lost_carries
from npfp8.mistakes.formats import other_formats
from npfp8.mistakes.overflow import other_overflows
from npfp8.mistakes.precision import lost_precision
from npfp8.mistakes.rounding import other_roundings
from npfp8.mistakes.rules import Encoder, Rules, rules_of
from npfp8.mistakes.specials import wrong_nans, wrong_signs
from npfp8.mistakes.subnormals import wrong_subnormals

__all__ = ["encoder_mistakes", "mistaken_encoders"]


def encoder_mistakes(
    fmt: FloatFormat | str,
    saturate: bool = True,
    rounding: str = "nearest",
    overflow: str = "ieee",
    *,
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> list[tuple[str, Encoder]]:
    """Return encoders with one usual mistake each, with the name of the mistake.

    Parameters
    ----------
    fmt : FloatFormat or str
        The format, or its name.
    saturate, rounding, overflow, random_bits, bit_count
        The behaviour of a correct encoder; see :func:`npfp8.encode`. Stochastic rounding is
        that by given random bits, of the shape of the numbers.

    Returns
    -------
    list of (str, callable (ndarray of float32) -> ndarray of uint8)
        A name may occur more than once, for variants of a mistake. Some mistakes do not show
        in every format: a format without subnormals cannot flush them.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the format or the rounding is unknown, or ``overflow`` is "special" with saturation.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import encoder_mistakes
    >>> name, wrong = encoder_mistakes(E4M3FN)[0]
    >>> name, wrong(np.float32([1.99])).tolist()  # 2.0 is 64
    ('truncation', [63])
    """
    return mistaken_encoders(rules_of(fmt, saturate, rounding, overflow, random_bits, bit_count))


def mistaken_encoders(rules: Rules) -> list[tuple[str, Encoder]]:
    """Return the encoders with one usual mistake each, made from the right encoder."""
    return [
        *other_roundings(rules),
        *other_overflows(rules),
        *wrong_subnormals(rules),
        *lost_precision(rules),
        *wrong_nans(rules),
        *wrong_signs(rules),
        *lost_carries(rules),
        *other_formats(rules),
    ]
