"""Which mistake makes the codes that were found, or most of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, require_array
from npfp8.formats import FloatFormat
from npfp8.mistakes.encoders import mistaken_encoders
from npfp8.mistakes.fitted import fitted_encoders
from npfp8.mistakes.rules import Codes, Rules, rules_of

__all__ = ["Explanation", "best_explanation", "differing", "explain_codes", "likely_mistake"]

#: How many wrong codes, and which share of all codes, a mistake is tried on first.
_FEW = 64


@dataclass(frozen=True)
class Explanation:
    """What mistakes explain of the codes of an encoder.

    Attributes
    ----------
    wrong : int
        The number of wrong codes.
    cause : str
        The one mistake that explains every code, or "".
    partial : str
        If none does: the mistake that explains most of the wrong codes, or "".
    explained : int
        The number of wrong codes that ``cause``, or ``partial``, explains.
    contradicted : int
        The number of right codes that would be wrong with ``partial``.

    Examples
    --------
    >>> from npfp8.mistakes import Explanation
    >>> Explanation(3, partial="truncation", explained=2).text()
    'truncation explains 2 of 3 wrong cases'
    """

    wrong: int
    cause: str = ""
    partial: str = ""
    explained: int = 0
    contradicted: int = 0

    def text(self) -> str:
        """Return the explanation in words; "" if there is none.

        Examples
        --------
        >>> from npfp8.mistakes import Explanation
        >>> Explanation(3, cause="truncation", explained=3).text()
        'truncation'
        """
        if not self.partial:
            return self.cause
        but = f", but not {self.contradicted} right ones" if self.contradicted else ""
        return f"{self.partial} explains {self.explained} of {self.wrong} wrong cases{but}"


def explain_codes(
    x: Float32Array,
    found: Codes,
    fmt: FloatFormat | str,
    saturate: bool = True,
    rounding: str = "nearest",
    overflow: str = "ieee",
    *,
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> Explanation:
    """Find the mistake that explains all codes found, or else the one that explains most.

    Parameters
    ----------
    x : ndarray of float32
        The numbers that were encoded.
    found : ndarray of uint8
        Their codes. All NaNs count as equal.
    fmt, saturate, rounding, overflow, random_bits, bit_count
        As for :func:`encoder_mistakes`.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the shapes differ, the format or the rounding is unknown, or ``overflow`` is "special"
        with saturation.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import explain_codes
    >>> x = np.float32([1.99, 1.98, 1.0])
    >>> explain_codes(x, np.uint8([63, 63, 57]), E4M3FN).text()
    'truncation explains 2 of 3 wrong cases'
    """
    rules = rules_of(fmt, saturate, rounding, overflow, random_bits, bit_count)
    require_array("x", x, np.float32)
    require_array("found", found, np.uint8)
    if found.shape != x.shape:
        raise ValueError(f"found: expected shape {x.shape}, found {found.shape}")

    def mistaken() -> Iterator[tuple[str, Array | None]]:
        for name, encoder in mistaken_encoders(rules):
            yield name, encoder(x)
        for name, fit in fitted_encoders(rules):
            yield name, fit(x, found)

    def differ(one: Array, other: Array) -> npt.NDArray[np.bool_]:
        return differing(one, other, rules.fmt)

    with np.errstate(all="ignore"):
        right = rules(x)
        wrong = differ(right, found)
        if random_bits is None and wrong.any() and (cause := _cause(rules, x, found, wrong)):
            count = int(np.count_nonzero(wrong))
            return Explanation(count, cause=cause, explained=count)
        return best_explanation(right, found, mistaken(), differ)


def _cause(rules: Rules, x: Float32Array, found: Codes, wrong: npt.NDArray[np.bool_]) -> str:
    """Return the first mistake that makes every code found, or "".

    A code depends on its number alone, so a mistake that fails for a few numbers is not tried on
    the others. Some of the few have wrong codes.
    """
    x, found, wrong = x.reshape(-1), found.reshape(-1), wrong.reshape(-1)
    few = np.union1d(np.flatnonzero(wrong)[:_FEW], np.arange(0, x.size, _FEW))
    for name, encoder in mistaken_encoders(rules):
        if differing(encoder(x[few]), found[few], rules.fmt).any():
            continue
        if not differing(encoder(x), found, rules.fmt).any():
            return name
    return ""


def best_explanation(
    right: Array,
    found: Array,
    mistaken: Iterator[tuple[str, Array | None]],
    differ: Callable[[Array, Array], npt.NDArray[np.bool_]],
) -> Explanation:
    """Choose among named results the one that equals what was found, or comes nearest to it.

    One that does not equal it must explain more wrong results than it makes wrong ones out of
    right ones.

    Parameters
    ----------
    right, found : ndarray
    mistaken : iterator of (str, ndarray or None)
        The results of known mistakes, by name.
    differ : callable (ndarray, ndarray) -> ndarray of bool

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.mistakes import best_explanation
    >>> known = iter([("two", np.array([2, 2, 2])), ("three", np.array([3, 3, 1]))])
    >>> best_explanation(np.array([1, 1, 1]), np.array([3, 2, 1]), known, np.not_equal).text()
    'three explains 1 of 2 wrong cases'
    """
    wrong = differ(right, found)
    count = int(np.count_nonzero(wrong))
    best, nearest = 0, Explanation(count)
    for name, codes in mistaken if count else ():
        if codes is None:
            continue
        other = differ(codes, found)
        if not other.any():
            return Explanation(count, cause=name, explained=count)
        explained = int(np.count_nonzero(wrong & ~other))
        contradicted = int(np.count_nonzero(other & ~wrong))
        if explained - contradicted > best:
            best = explained - contradicted
            nearest = Explanation(count, "", name, explained, contradicted)
    return nearest


def likely_mistake(
    x: Float32Array,
    found: Codes,
    fmt: FloatFormat | str,
    saturate: bool = True,
    rounding: str = "nearest",
    overflow: str = "ieee",
) -> str:
    """Return the name of the one mistake that explains every code found, or "".

    Parameters
    ----------
    x, found, fmt, saturate, rounding, overflow
        As for :func:`explain_codes`.

    Raises
    ------
    TypeError, ValueError
        As :func:`explain_codes`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import likely_mistake
    >>> likely_mistake(np.float32([1.99, 1.0]), np.uint8([63, 56]), E4M3FN)
    'truncation'
    """
    return explain_codes(x, found, fmt, saturate, rounding, overflow).cause


def differing(codes: Codes, found: Codes, fmt: FloatFormat) -> npt.NDArray[np.bool_]:
    """Return where codes differ. All NaNs count as equal."""
    wrong: npt.NDArray[np.bool_] = codes != found
    if wrong.any():
        nan = _is_nan(fmt)
        wrong &= ~(nan[codes] & nan[found])
    return wrong


@lru_cache(maxsize=256)
def _is_nan(fmt: FloatFormat) -> npt.NDArray[np.bool_]:
    """Return whether each byte is a NaN's code; also those that are too large for the format."""
    nan = np.zeros(256, bool)
    nan[list(fmt.nan_codes)] = True
    return nan
