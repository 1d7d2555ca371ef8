"""The results of an implementation, compared with the test vectors and named by a mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arguments import require
from npfp8.mistakes import Explanation, differing, explain_codes
from npfp8.mistakes.decoders import explain_values
from npfp8.vectors.cases import Vectors, make_vectors
from npfp8.vectors.files import widths_of
from npfp8.vectors.modes import DECODE, MODES
from npfp8.vectors.sources import SOURCES, Bits

__all__ = ["VectorReport", "check_results"]


@dataclass(frozen=True)
class VectorReport:
    """The result of the comparison of a results file.

    Attributes
    ----------
    name : str
        ``FORMAT-MODE-SOURCE.txt``.
    cases : int
    mistake : Explanation
        The number of wrong cases, and the usual mistake that explains all or most of them.
    first : str
        The first wrong case in words, or "".

    Examples
    --------
    >>> from npfp8.mistakes import Explanation
    >>> from npfp8.vectors import VectorReport
    >>> VectorReport("E4M3FN-nearest-bfloat16.txt", 3118, Explanation(wrong=7)).wrong
    7
    """

    name: str
    cases: int
    mistake: Explanation
    first: str = ""

    @property
    def wrong(self) -> int:
        """The number of wrong cases."""
        return self.mistake.wrong

    @property
    def cause(self) -> str:
        """The one usual mistake that explains every result found, or ""."""
        return self.mistake.cause

    @property
    def partial(self) -> str:
        """If none does: the mistake that explains most of the wrong cases, or ""."""
        return self.mistake.partial

    @property
    def explained(self) -> int:
        """The number of wrong cases that ``cause``, or ``partial``, explains."""
        return self.mistake.explained

    @property
    def contradicted(self) -> int:
        """The number of right cases that would be wrong with ``partial``."""
        return self.mistake.contradicted

    def explanation(self) -> str:
        """Return the cause, or how much the most likely mistake explains; "" if nothing does.

        Examples
        --------
        >>> from npfp8.mistakes import Explanation
        >>> from npfp8.vectors import VectorReport
        >>> mistake = Explanation(7, partial="truncation", explained=4)
        >>> VectorReport("E4M3FN-nearest-bfloat16.txt", 3118, mistake).explanation()
        'truncation explains 4 of 7 wrong cases'
        """
        return self.mistake.text()


def check_results(results: Vectors) -> VectorReport:
    """Compare the results of an implementation with the expected ones.

    Parameters
    ----------
    results : Vectors
        With the column "found".

    Raises
    ------
    ValueError
        If the column is another, or the inputs and the expected results are not all
        those of the test vectors, in their order.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from npfp8.vectors import check_results, make_vectors
    >>> vectors = make_vectors("E4M3FN", "nearest", "bfloat16")
    >>> check_results(replace(vectors, column="found", third=vectors.codes)).wrong
    0
    """
    require("results", results, Vectors, "test vectors")
    right = make_vectors(results.fmt, results.mode, results.source)
    if results.column != "found":
        columns = " ".join(widths_of(right.mode, right.source, "found"))
        raise ValueError(
            f"{right.name}: expected the column 'found' (a line '# columns: {columns}', "
            f"and an implementation's results in the last), found {results.column!r}"
        )
    _require_same_cases(results, right)
    found = results.third
    if right.mode == DECODE:
        wrong, explain = _compare_numbers(right, found)
    else:
        wrong, explain = _compare_codes(right, found)
    if not wrong.any():
        return VectorReport(right.name, right.inputs.size, Explanation(0))
    first = _in_words(right, found, int(np.flatnonzero(wrong)[0]))
    return VectorReport(right.name, right.inputs.size, explain(), first)


def _require_same_cases(results: Vectors, right: Vectors) -> None:
    if results.inputs.size != right.inputs.size:
        raise ValueError(
            f"{right.name}: expected {right.inputs.size} cases, found {results.inputs.size}"
        )
    other = (results.inputs != right.inputs) | (results.expected != right.expected)
    if right.random_bits is not None:
        given = results.random_bits
        other |= True if given is None else given != right.random_bits
    if other.any():
        case = int(np.flatnonzero(other)[0])
        raise ValueError(
            f"{right.name} case {case + 1}: expected {_case(right, case)}, "
            f"found {_case(results, case)}"
        )


def _digits(bits: Bits, case: int) -> str:
    return f"{bits[case]:0{2 * bits.itemsize}X}"


def _case(vectors: Vectors, case: int) -> str:
    """Return a case without its last column, as a line of the file."""
    random_bits = [] if vectors.random_bits is None else [vectors.random_bits]
    columns = [vectors.inputs, *random_bits, vectors.expected]
    return " ".join(_digits(column, case) for column in columns)


def _in_words(right: Vectors, found: Bits, case: int) -> str:
    if right.mode == DECODE:
        value = f"({right.fmt.values[right.inputs[case]]!r})".replace("np.float64", "")
    else:
        value = f"({float(SOURCES[right.source].exact(right.inputs)[case])!r})"
    bits = right.random_bits
    random_bits = "" if bits is None else f", random bits {bits[case]:X}"
    return (
        f"input {_digits(right.inputs, case)} {value}{random_bits}: "
        f"expected {_digits(right.expected, case)}, found {_digits(found, case)}"
    )


_Compared = tuple[npt.NDArray[np.bool_], Callable[[], Explanation]]


def _compare_codes(right: Vectors, found: npt.NDArray[np.uint8]) -> _Compared:
    how = MODES[right.mode]
    with np.errstate(invalid="ignore"):
        x = SOURCES[right.source].to_float(right.inputs).astype(np.float32)

    def explain() -> Explanation:
        return explain_codes(
            x,
            found,
            right.fmt,
            how.saturate,
            how.rounding,
            how.overflow,
            random_bits=right.random_bits,
            bit_count=how.bit_count,
        )

    return differing(right.codes, found, right.fmt), explain


def _compare_numbers(right: Vectors, found: Bits) -> _Compared:
    """Compare the bits of numbers. All NaNs count as equal."""
    kind = SOURCES[right.source]
    values = kind.exact(found)
    wrong = (right.expected != found) & ~(np.isnan(right.fmt.values) & np.isnan(values))
    return wrong, lambda: explain_values(right.codes, values, right.fmt, kind.smallest)
