"""The usual mistakes of FP8 encoders, each planted in an otherwise correct encoder.

They were found in the field: in serving kernels (early saturation, ties rounded away
from zero), vector units of processors (NaN instead of clamping, an ignored rounding
mode) and libraries (double rounding through bfloat16). A good test catches each of
them. If one of them reproduces all codes of an implementation, it is the likely cause.

There is one list: :func:`npfp8.testing.check_encoder`, :mod:`npfp8.vectors` and the kits of
``bert_numpy`` all name what is in it. :mod:`npfp8.decoder_mistakes` is that of decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, flag, integer
from npfp8.arrays import Array, Float32Array, Float64Array, IntArray, require_array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.codec import ROUNDINGS, encode
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E3M4FN,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    P3109_K8P3,
    P3109_K8P4,
    FloatFormat,
    as_float_format,
)

__all__ = [
    "CONFUSED",
    "NAN_BIASED",
    "Encoder",
    "Explanation",
    "FittedEncoder",
    "best_explanation",
    "clamped_codes",
    "differing",
    "encoder_mistakes",
    "explain_codes",
    "fitted_mistakes",
    "likely_mistake",
]

Codes = npt.NDArray[np.uint8]
Encoder = Callable[[Float32Array], Array]
FittedEncoder = Callable[[Float32Array, Codes], "Array | None"]

#: The format with another bias and NaN that each OCP format is confused with, and back.
NAN_BIASED = {E4M3FN: E4M3FNUZ, E4M3FNUZ: E4M3FN, E5M2: E5M2FNUZ, E5M2FNUZ: E5M2}

#: Further formats that a format is confused with: one of another name, bias or division.
CONFUSED = {
    E4M3FN: (E4M3, E4M3B11FNUZ, E5M2, P3109_K8P4),
    E5M2: (E4M3FN, P3109_K8P3),
    E4M3FNUZ: (E4M3B11FNUZ, E5M2FNUZ),
    E5M2FNUZ: (E4M3FNUZ,),
    E4M3: (E4M3FN,),
    E3M4: (E3M4FN,),
    E3M4FN: (E3M4,),
    E2M3: (E3M2,),
    E3M2: (E2M3,),
    P3109_K8P4: (E4M3FN, E4M3FNUZ),
    P3109_K8P3: (E5M2, E5M2FNUZ),
    E2M1: (),
}

_NEAREST = ("nearest", "nearest_away", "nearest_toward_zero")
_TIES = {
    "nearest": "ties rounded to even",
    "nearest_away": "ties rounded away from zero",
    "nearest_toward_zero": "ties rounded toward zero",
}
_WORDS = {name: name.replace("_", " ") for name in ROUNDINGS}
_WORDS["nearest_away"] = "nearest, ties away from zero,"
_WORDS["nearest_toward_zero"] = "nearest, ties toward zero,"


@dataclass(frozen=True, eq=False)
class _Rules:
    """The behaviour of a correct encoder: the arguments of :func:`npfp8.encode`."""

    fmt: FloatFormat
    saturate: bool
    rounding: str
    overflow: str = "ieee"
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None
    bit_count: int | None = None

    def __call__(self, x: Array) -> Codes:
        """Encode as asked for."""
        return encode(
            x,
            self.fmt,
            self.saturate,
            rounding=self.rounding,
            overflow=self.overflow,
            random_bits=self.random_bits,
            bit_count=self.bit_count,
        )

    def by(self, x: Array, rounding: str, saturate: bool | None = None) -> Codes:
        """Encode by another rounding, and perhaps saturation."""
        saturate = self.saturate if saturate is None else saturate
        overflow = "ieee" if saturate else self.overflow
        return encode(x, self.fmt, saturate, rounding=rounding, overflow=overflow)

    def toward_zero(self, x: Array) -> Codes:
        """Encode toward zero, saturating."""
        return encode(x, self.fmt, rounding="toward_zero")

    def infinite(self, x: Array) -> Codes:
        """Return the codes of infinities of the signs of ``x`` that do not saturate."""
        infinities = np.copysign(np.float32(np.inf), x)
        return encode(infinities, self.fmt, False, rounding="nearest")

    @property
    def nearest(self) -> bool:
        return self.rounding in _NEAREST

    @property
    def directed(self) -> bool:
        return self.rounding not in (*_NEAREST, "stochastic")

    @property
    def magnitude(self) -> np.uint8:
        """The bits of a code below the sign."""
        return np.uint8((self.fmt.sign_bit or 1 << self.fmt.bits) - 1)

    def signs(self, x: Array) -> Codes:
        """Return the sign bits of codes of ``x``."""
        return np.where(np.signbit(x), np.uint8(self.fmt.sign_bit), np.uint8(0))


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
        If the format or the rounding is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import encoder_mistakes
    >>> name, wrong = encoder_mistakes(E4M3FN)[0]
    >>> name, wrong(np.float32([1.99])).tolist()  # 2.0 is 64
    ('truncation', [63])
    """
    rules = _rules(fmt, saturate, rounding, overflow, random_bits, bit_count)
    return [
        *_other_roundings(rules),
        *_other_overflows(rules),
        *_subnormals(rules),
        *_precisions(rules),
        *_specials(rules),
        *_signs(rules),
        *_carries(rules),
        *_formats(rules),
    ]


def _rules(
    fmt: FloatFormat | str,
    saturate: bool,
    rounding: str,
    overflow: str,
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> _Rules:
    fmt, saturate = as_float_format(fmt), flag("saturate", saturate)
    rounding = choice("rounding", rounding, ROUNDINGS)
    overflow = choice("overflow", overflow, ("ieee", "special"))
    if rounding == "stochastic":
        if random_bits is None or bit_count is None:
            raise ValueError("random_bits: expected given bits for stochastic rounding, found None")
        bit_count = integer("bit_count", bit_count)
    return _Rules(fmt, saturate, rounding, overflow, random_bits, bit_count)


# Rounding


def _other_roundings(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that round in another way than asked for."""
    if rules.rounding == "stochastic":
        yield from _other_randomness(rules)
    for name, change in _named_roundings(rules):
        yield name, change
        if not rules.saturate:  # overflow is found first, and treated rightly
            yield name, _within(rules, change)
    if rules.saturate and rules.rounding == "nearest":
        name = "the first of the nearest values of a table, with one zero"
        yield name, lambda x: _zero_unsigned(rules, rules.by(x, "nearest_toward_zero"))
        yield name, lambda x: _zero_unsigned(rules, _ties_down(rules, x))


def _named_roundings(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    asked, word = rules.rounding, _WORDS[rules.rounding].rstrip(",")

    def by(rounding: str) -> Encoder:
        return lambda x: rules.by(x, rounding)

    if rules.nearest:
        yield "truncation", by("toward_zero")
        for other in ("nearest_away", "nearest_toward_zero", "nearest"):
            if other != asked:
                yield _TIES[other], by(other)
        yield "ties rounded up", lambda x: _ties_up(rules, x)
        yield "ties rounded down", lambda x: _ties_down(rules, x)
        yield "ties rounded to odd", lambda x: _ties_to_odd(rules, x)
    else:
        yield f"nearest instead of {word} (rounding mode ignored)", by("nearest")
        for other in ("nearest_away", "nearest_toward_zero"):
            yield f"{_WORDS[other]} instead of {word}", by(other)
        if asked != "toward_zero":
            yield f"toward zero instead of {word}", by("toward_zero")
    if asked == "up":
        yield "up and down exchanged for negative numbers", lambda x: _away(rules, x)
    for other in ("up", "down", "odd"):
        if other == asked:
            continue
        exchanged = {asked, other} == {"up", "down"}
        name = "up and down exchanged" if exchanged else f"{other} instead of {word}"
        yield name, by(other)
    if asked != "up":
        # Also up and down exchanged for negative numbers, but of "down", which is toward zero.
        name = (
            "up and down exchanged for positive numbers"
            if asked == "down"
            else f"away from zero instead of {word}"
        )
        yield name, lambda x: _away(rules, x)
    if asked == "odd":
        yield "nearest, ties to odd, instead of odd", lambda x: _ties_to_odd(rules, x)
        yield "odd also where the number is exact", lambda x: _always_odd(rules, x)


def _within(rules: _Rules, change: Encoder) -> Encoder:
    """Let a mistake happen up to the largest value only."""
    return lambda x: np.where(np.abs(x) > rules.fmt.max, rules(x), change(x))


def _ties_up(rules: _Rules, x: Array) -> Codes:
    away, toward = rules.by(x, "nearest_away"), rules.by(x, "nearest_toward_zero")
    return np.where(np.signbit(x), toward, away)


def _ties_down(rules: _Rules, x: Array) -> Codes:
    away, toward = rules.by(x, "nearest_away"), rules.by(x, "nearest_toward_zero")
    return np.where(np.signbit(x), away, toward)


def _ties_to_odd(rules: _Rules, x: Array) -> Codes:
    away, toward = rules.by(x, "nearest_away"), rules.by(x, "nearest_toward_zero")
    return np.where(rules.by(x, "nearest") == away, toward, away)


def _away(rules: _Rules, x: Array) -> Codes:
    return np.where(np.signbit(x), rules.by(x, "down"), rules.by(x, "up"))


def _always_odd(rules: _Rules, x: Array) -> Codes:
    codes = rules(x)
    changed = np.isfinite(rules.fmt.values[codes]) & (
        (codes & rules.magnitude) < rules.fmt.max_code
    )
    return np.where(changed & (x != 0), codes | np.uint8(1), codes)


def _other_randomness(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that use random bits in another way."""
    bits, count = rules.random_bits, rules.bit_count
    assert bits is not None
    assert count is not None
    ones = np.uint64((1 << count) - 1)

    def given(other: Any, others: int = count) -> Encoder:
        return lambda x: encode(
            x,
            rules.fmt,
            rules.saturate,
            rounding="stochastic",
            random_bits=np.asarray(other, np.uint64),
            bit_count=others,
        )

    wide = bits.astype(np.uint64)
    yield "random bits inverted", given(wide ^ ones)
    yield "random bits in the reverse order", given(_reversed(wide, count))
    yield "one random bit too few", given(wide >> np.uint64(1), count - 1)
    yield "one random bit too few", given(wide & (ones >> np.uint64(1)), count - 1)
    yield "one random bit too many, a zero", given(wide << np.uint64(1), count + 1)
    yield "random bits one place too low", given(wide, count + 1)
    yield "the same random bits for each number", given(np.full_like(wide, wide.flat[0]))


def _reversed(bits: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    result = np.zeros_like(bits)
    for i in range(count):
        result |= ((bits >> np.uint64(i)) & np.uint64(1)) << np.uint64(count - 1 - i)
    return result


# Overflow


def _other_overflows(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat numbers beyond the largest value wrongly."""
    fmt = rules.fmt
    beyond = float(fmt.grid[-1])

    def specials(x: Array) -> Codes:
        if rules.directed:
            return encode(x, fmt, False, rounding=rules.rounding, overflow="special")
        return _switched(rules, False)(x)

    def ieee(x: Array) -> Codes:
        return _switched(rules, False)(x)

    saturated = _switched(rules, True)
    if rules.saturate:
        yield "overflow that does not saturate", ieee
        yield "overflow that does not saturate", specials
        yield (
            "rounding beyond the largest value not clamped",
            lambda x: np.where(np.abs(x) < beyond, specials(x), rules(x)),
        )
        yield (
            "rounding beyond the largest value not clamped",
            lambda x: np.where(np.abs(x) < _next_binade(fmt), specials(x), rules(x)),
        )
        name = "infinity that does not saturate" if fmt.has_infinity else "infinity encoded as NaN"
        yield name, lambda x: np.where(np.isinf(x), specials(x), rules(x))
    else:
        yield "overflow that saturates", saturated
        yield "overflow that saturates", lambda x: np.where(np.isinf(x), rules(x), saturated(x))
        yield (
            "infinity clamped to the largest value",
            lambda x: np.where(np.isinf(x), saturated(x), rules(x)),
        )
        yield from _thresholds(rules, saturated, specials)
    if fmt.infinity_code is not None and fmt.nan_code is not None:
        yield "infinity encoded as NaN", lambda x: _nan_where(rules, x, np.isinf(x))
        yield (
            "overflow encoded as NaN",
            lambda x: _nan_where(rules, x, ~np.isnan(x) & (specials(x) != saturated(x))),
        )
    yield "overflow that wraps around", lambda x: _wrapped(rules, x)
    smaller = max(fmt.max_code + 1 - (1 << fmt.mantissa_bits), 0)
    yield "saturation at too small a value", lambda x: clamped_codes(rules(x), fmt, smaller)
    yield "saturation from too small a value on", lambda x: _from_largest_binade(rules, x)
    if rules.saturate and fmt.signed:
        yield (
            "sign lost where it saturates",
            lambda x: np.where(np.abs(x) > fmt.max, rules(np.abs(x)), rules(x)),
        )


def _switched(rules: _Rules, saturate: bool) -> Encoder:
    """Make the encoder that saturates, or does not."""
    return replace(rules, saturate=saturate, overflow="ieee")


def _thresholds(
    rules: _Rules, saturated: Encoder, specials: Encoder
) -> Iterator[tuple[str, Encoder]]:
    fmt = rules.fmt
    beyond, tie = float(fmt.grid[-1]), float(fmt.grid[-2] + fmt.grid[-1]) / 2
    if rules.nearest or rules.rounding == "stochastic":
        yield (
            "overflow of every number beyond the largest value, before rounding",
            lambda x: np.where(np.abs(x) > fmt.max, rules.infinite(x), rules(x)),
        )
        yield (
            "overflow only from the value on that would follow the largest",
            lambda x: np.where(np.abs(x) < beyond, saturated(x), rules(x)),
        )
    if rules.nearest:

        def other_tie(x: Array) -> Codes:
            codes, limited = rules(x), saturated(x)
            other = np.where(codes == limited, rules.infinite(x), limited)
            return np.where(np.abs(x) == tie, other, codes)

        yield "tie above the largest value rounded the other way", other_tie
    if not rules.directed:
        return
    if rules.overflow == "ieee":
        yield "overflow to infinity or NaN whatever the rounding", specials
    else:
        yield (
            "overflow to the largest value, where the rounding does not go beyond it",
            _switched(rules, False),
        )
    if rules.rounding in ("up", "down"):
        finite_beyond = "overflow in the wrong direction"

        def mirrored(x: Array) -> Codes:
            other = np.where(rules(x) == saturated(x), rules.infinite(x), saturated(x))
            return np.where(np.isfinite(x) & (np.abs(x) > fmt.max), other, rules(x))

        yield finite_beyond, mirrored


def _nan_where(rules: _Rules, x: Array, mask: npt.NDArray[np.bool_]) -> Codes:
    assert rules.fmt.nan_code is not None
    return np.where(mask, np.uint8(rules.fmt.nan_code), rules(x))


def _next_binade(fmt: FloatFormat) -> float:
    """Return the power of two above the largest value."""
    return float(2.0 ** np.frexp(fmt.max)[1])


def _unbounded(encoder: Callable[[Array], Codes], fmt: FloatFormat, x: Array) -> IntArray:
    """Return the codes of magnitudes if exponents went on beyond the largest one."""
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    # Rounded two binades lower, where nothing overflows.
    excess = np.maximum(np.frexp(exact)[1] - (np.frexp(fmt.max)[1] - 2), 0)
    codes = encoder(np.ldexp(exact, -excess)).astype(np.int64)
    return (codes & ~fmt.sign_bit) + (excess.astype(np.int64) << fmt.mantissa_bits)


def _wrapped(rules: _Rules, x: Array) -> Codes:
    """Let exponents go on beyond the largest one, and lose their upper bits."""
    whole = _unbounded(rules, rules.fmt, x)
    wrapped = (whole & int(rules.magnitude)).astype(np.uint8) | rules.signs(x)
    return np.where(np.isfinite(x) & (whole > rules.fmt.max_code), wrapped, rules(x))


def _from_largest_binade(rules: _Rules, x: Array) -> Codes:
    largest = rules.fmt.max
    beyond = np.abs(x) >= 2.0 ** (np.frexp(largest)[1] - 1)
    return rules(np.where(beyond, np.copysign(np.float32(largest), x), x))


# Subnormals


def _subnormals(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat subnormals wrongly, those of the format or of the input."""
    if rules.fmt.has_zero:
        yield from _own_subnormals(rules)
    for smallest in (2.0**-126, 2.0**-14):
        yield "subnormals of the input flushed to zero", _flushing(rules, smallest)


def _own_subnormals(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    fmt = rules.fmt

    def below(change: Callable[[Array], Array]) -> Encoder:
        return lambda x: np.where(np.abs(x) < fmt.min_normal, change(x), rules(x))

    def flushed(x: Array) -> Codes:
        return rules(np.copysign(np.float32(0), x))

    yield "subnormals flushed to zero", below(flushed)
    yield (
        "subnormals flushed to zero",
        lambda x: np.where(np.abs(fmt.values[rules(x)]) < fmt.min_normal, flushed(x), rules(x)),
    )
    yield "subnormals off by one place", below(lambda x: rules(x.astype(np.float64) / 2))
    yield "subnormals off by one place", below(lambda x: rules(x.astype(np.float64) * 2))
    yield "leading one lost in subnormals", below(lambda x: rules(_without_leading_one(x)))
    if rules.rounding != "toward_zero":
        yield "subnormals truncated", below(rules.toward_zero)
    if rules.nearest:
        for other in _NEAREST:
            if other != rules.rounding:
                yield f"{_TIES[other]} in subnormals", below(partial(rules.by, rounding=other))
    elif rules.rounding != "toward_zero":
        name = f"nearest instead of {_WORDS[rules.rounding]} in subnormals"
        yield name, below(lambda x: rules.by(x, "nearest"))
    if rules.rounding in _TO_INTEGER:
        yield "shift of the significand modulo 32 in subnormals", lambda x: _shifted(rules, x)
    yield "a missing sticky bit in subnormals", below(lambda x: rules(_to_guard_bits(x, fmt, 1)))


#: Roundings of a positive number to an integer.
_TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "nearest": np.rint,
    "nearest_away": lambda x: np.floor(x + 0.5),
    "toward_zero": np.floor,
}


def _shifted(rules: _Rules, x: Array) -> Codes:
    """Shift the 24 bits of a float32 by five bits of the distance, as a processor may do."""
    fmt = rules.fmt
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    exponent, significand = (bits >> 23) - 127, (bits & 0x7FFFFF) | 0x800000
    shift = (23 - fmt.mantissa_bits + (1 - fmt.bias) - exponent) & 31
    kept = _TO_INTEGER[rules.rounding](np.ldexp(significand.astype(np.float64), -shift))
    codes = np.minimum(kept, fmt.max_code).astype(np.uint8) | rules.signs(x)
    return np.where((np.abs(x) < fmt.min_normal) & (x != 0), codes, rules(x))


def _flushing(rules: _Rules, smallest: float) -> Encoder:
    return lambda x: rules(np.where(np.abs(x) < smallest, np.copysign(np.float32(0), x), x))


def _without_leading_one(x: Array) -> Float64Array:
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    leading = np.where(exact == 0, 0, np.ldexp(0.5, np.frexp(exact)[1]))
    return np.copysign(np.abs(exact) - leading, x)


# Precision


def _precisions(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that lose bits of the number before they round it."""
    yield "double rounding through bfloat16", lambda x: rules(round_to_bfloat16(x))
    yield "double rounding through float16", lambda x: rules(x.astype(np.float16))
    if rules.rounding != "toward_zero":
        yield "truncation through float16", lambda x: _by_float16(rules, x)
    for kept in (1, 2, 3):
        yield "a missing sticky bit", _guarded(rules, kept)
    yield (
        "a missing sticky bit",
        lambda x: rules(np.where(np.isnan(x), x, _cut_to_bfloat16(x))),
    )


def _by_float16(rules: _Rules, x: Float32Array) -> Codes:
    """Round to nearest float16, and cut off its lower bits."""
    largest = np.float32(rules.fmt.max)
    limited = np.clip(x, -largest, largest) if rules.saturate else x
    return rules.by(limited.astype(np.float16), "toward_zero")


def _guarded(rules: _Rules, kept: int) -> Encoder:
    return lambda x: rules(_to_guard_bits(x, rules.fmt, kept))


def _cut_to_bfloat16(x: Float32Array) -> Float32Array:
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _to_guard_bits(x: Float32Array, fmt: FloatFormat, kept: int) -> Float32Array:
    """Cut off all bits but so many below the last of a format: near a tie, numbers become it."""
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    exponent = np.frexp(np.maximum(np.abs(exact), fmt.min_normal))[1] - 1
    last = np.ldexp(0.5**kept, exponent - fmt.mantissa_bits)
    cut = np.copysign(np.trunc(exact / last) * last, x)
    return np.where(np.isfinite(x), cut, x).astype(np.float32)


# Infinity and NaN


def _specials(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat NaN wrongly."""
    fmt = rules.fmt
    if fmt.nan_code is None:
        return

    def of_nan(codes: Callable[[Array], Array | np.uint8]) -> Encoder:
        return lambda x: np.where(np.isnan(x), codes(x), rules(np.where(np.isnan(x), 0, x)))

    largest, sign = np.uint8(fmt.max_code), np.uint8(fmt.sign_bit)
    yield "NaN clamped to the largest value", of_nan(lambda x: largest)
    yield "NaN clamped to the largest value", of_nan(lambda x: largest | sign)
    yield "NaN clamped to the largest value", of_nan(lambda x: largest | rules.signs(x))
    for quiet in (largest, largest | sign):  # the others stay NaN, or become the other largest
        for other in (np.uint8(fmt.nan_code), largest ^ sign ^ (quiet & sign)):
            change = partial(_by_quietness, quiet=quiet, signalling=other)
            yield "NaN clamped to the largest value", of_nan(change)
    yield "NaN encoded as zero", of_nan(lambda x: np.uint8(0))
    if fmt.has_negative_zero:
        yield "NaN encoded as zero", of_nan(rules.signs)
    if fmt.infinity_code is not None:
        infinity = np.uint8(fmt.infinity_code)
        yield "NaN encoded as infinity", of_nan(lambda x: infinity)
        yield "NaN encoded as infinity", of_nan(lambda x: infinity | rules.signs(x))
    if fmt.exponent_bits and fmt.has_zero:
        ones = np.uint8(fmt.exponent_ones << fmt.mantissa_bits)
        name = "NaN encoded by the upper bits of its payload"
        yield name, of_nan(lambda x: ones | rules.signs(x) | _payload(x, fmt.mantissa_bits))


def _by_quietness(x: Float32Array, quiet: np.uint8, signalling: np.uint8) -> Codes:
    upper = np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x400000)
    return np.where(upper != 0, quiet, signalling)


def _payload(x: Float32Array, count: int) -> Codes:
    bits = np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x7FFFFF)
    return (bits >> np.uint32(23 - count)).astype(np.uint8)


# Sign and zero


def _signs(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat signs, or zeros, wrongly."""
    fmt = rules.fmt
    sign = np.uint8(fmt.sign_bit)
    if fmt.has_negative_zero:
        yield "-0 encoded as 0", lambda x: _zero_unsigned(rules, rules(x))
        yield "-0 encoded as 0", lambda x: np.where(x == 0, np.uint8(0), rules(x))
        yield (
            "sign of underflow lost",
            lambda x: np.where(x != 0, _zero_unsigned(rules, rules(x)), rules(x)),
        )
    elif fmt.signed and fmt.has_zero:
        yield (
            "-0 encoded as NaN",
            lambda x: np.where(np.signbit(x) & (rules(x) == 0), sign, rules(x)),
        )
        yield (
            "-0 encoded as NaN",
            lambda x: np.where(np.signbit(x) & (x == 0), sign, rules(x)),
        )
    if fmt.signed:
        yield (
            "sign lost",
            lambda x: np.where(np.isnan(fmt.values[rules(x)]), rules(x), rules(x) & ~sign),
        )
        yield "negative numbers in two's complement", lambda x: _twos_complement(rules, x)
    else:
        yield "negative numbers encoded by their magnitude", lambda x: rules(np.abs(x))
        yield (
            "negative numbers clamped to the smallest value",
            lambda x: np.where(np.signbit(x) & ~np.isnan(x), np.uint8(0), rules(x)),
        )
    if not fmt.has_zero:
        smallest = np.float64(fmt.min_positive)
        yield (
            "zero encoded as the smallest value",
            lambda x: np.where(x == 0, np.uint8(0), rules(np.where(x == 0, smallest, x))),
        )


def _zero_unsigned(rules: _Rules, codes: Codes) -> Codes:
    return np.where(codes == rules.fmt.sign_bit, np.uint8(0), codes)


def _twos_complement(rules: _Rules, x: Array) -> Codes:
    codes = rules(x)
    magnitude = codes & rules.magnitude
    ones = np.uint8((1 << rules.fmt.bits) - 1)
    negative = (codes & np.uint8(rules.fmt.sign_bit) != 0) & ~np.isnan(rules.fmt.values[codes])
    return np.where(negative, (~magnitude + np.uint8(1)) & ones, codes)


# Carry


def _carries(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that lose the carry of rounding from the mantissa into the exponent."""
    fmt = rules.fmt
    if not fmt.mantissa_bits or not fmt.exponent_bits:
        return
    mantissa = np.uint8((1 << fmt.mantissa_bits) - 1)
    name = "carry into the exponent lost"

    def carried(x: Array) -> tuple[Codes, npt.NDArray[np.bool_]]:
        codes, below = rules(x), rules.toward_zero(x)
        finite = np.isfinite(fmt.values[codes]) & np.isfinite(x)
        return below, finite & (codes != below) & (below & mantissa == mantissa)

    def cleared(x: Array) -> Codes:
        below, carry = carried(x)
        return np.where(carry, below & ~mantissa, rules(x))

    def kept(x: Array) -> Codes:
        below, carry = carried(x)
        return np.where(carry, below, rules(x))

    def cleared_before_overflow(x: Array) -> Codes:
        # The binade of the largest value has places for the values that would follow it.
        below = _unbounded(rules.toward_zero, fmt, x)
        carry = (_unbounded(rules, fmt, x) != below) & (below & int(mantissa) == mantissa)
        carry &= np.abs(x) < _next_binade(fmt)
        codes = np.minimum(below & ~int(mantissa), fmt.max_code).astype(np.uint8)
        return np.where(carry, codes | rules.signs(x), rules(x))

    def normal(change: Encoder) -> Encoder:
        return lambda x: np.where(np.abs(x) < fmt.min_normal, rules(x), change(x))

    def subnormal(change: Encoder) -> Encoder:
        return lambda x: np.where(np.abs(x) < fmt.min_normal, change(x), rules(x))

    for change in (cleared, kept, cleared_before_overflow):
        yield name, change
        yield name, normal(change)
    yield "carry from the subnormals lost", subnormal(cleared)
    yield "carry from the subnormals lost", subnormal(kept)


# Formats


def _formats(rules: _Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders to a format of another bias, or to another format."""
    fmt = rules.fmt
    others = ([NAN_BIASED[fmt]] if fmt in NAN_BIASED else []) + list(CONFUSED.get(fmt, ()))
    for other in others:
        yield f"{other} instead of {fmt}", replace(rules, fmt=other)
    yield "exponent bias off by one", lambda x: rules(_scaled(x, 2.0))
    yield "exponent bias off by one", lambda x: rules(_scaled(x, 0.5))
    for change in (1, -1):
        for bound in (_next_binade(fmt), np.inf):
            yield "exponent field off by one", partial(_moved, rules, change=change, bound=bound)


def _moved(rules: _Rules, x: Array, change: int, bound: float) -> Codes:
    """Change the exponent field of normal numbers, before what is too large is clamped."""
    fmt = rules.fmt
    moved = np.clip(_unbounded(rules, fmt, x) + (change << fmt.mantissa_bits), 0, fmt.max_code)
    normal = (np.abs(x) >= fmt.min_normal) & (np.abs(x) < bound)
    return np.where(normal, moved.astype(np.uint8) | rules.signs(x), rules(x))


def _scaled(x: Array, factor: float) -> Array:
    return np.where(np.isfinite(x), x.astype(np.float64) * factor, x)


# Mistakes that depend on the codes found


def fitted_mistakes(
    fmt: FloatFormat | str,
    saturate: bool = True,
    rounding: str = "nearest",
    overflow: str = "ieee",
    *,
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> list[tuple[str, FittedEncoder]]:
    """Return the mistakes that have a parameter, which is read off the codes found.

    Parameters
    ----------
    fmt, saturate, rounding, overflow, random_bits, bit_count
        As for :func:`encoder_mistakes`.

    Returns
    -------
    list of (str, callable (ndarray of float32, ndarray of uint8) -> ndarray of uint8 or None)
        Each takes the numbers and the codes found, and returns the codes of an encoder with
        the mistake, or None if the codes found do not look like it.

    Raises
    ------
    TypeError, ValueError
        As :func:`encoder_mistakes`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import fitted_mistakes
    >>> x = np.float32([1, 2, 3, 100])
    >>> for name, fit in fitted_mistakes(E4M3FN):
    ...     codes = fit(x, np.uint8([56, 64, 64, 64]))  # at most 2
    ...     print(name, codes)
    saturation at too small a value [56 64 64 64]
    saturation from too small a value on None
    zero up to too large a value None
    """
    rules = _rules(fmt, saturate, rounding, overflow, random_bits, bit_count)
    return [
        ("saturation at too small a value", lambda x, found: _limited(rules, x, found)),
        ("saturation from too small a value on", lambda x, found: _from(rules, x, found)),
        ("zero up to too large a value", lambda x, found: _up_to(rules, x, found)),
    ]


def _limited(rules: _Rules, x: Array, found: Codes) -> Array | None:
    """Saturate at the largest value found."""
    fmt = rules.fmt
    magnitudes = found[fmt.is_finite[found]] & rules.magnitude
    limit = int(magnitudes.max(initial=0))
    return clamped_codes(rules(x), fmt, limit) if 0 < limit < fmt.max_code else None


def _from(rules: _Rules, x: Array, found: Codes) -> Array | None:
    """Return the largest value from the smallest number on that wrongly became it."""
    fmt, right = rules.fmt, rules(x)
    largest = (found & rules.magnitude) == fmt.max_code
    early = largest & (found != right) & np.isfinite(x) & (np.abs(x) < fmt.max)
    if not early.any():
        return None
    beyond = np.abs(x) >= np.abs(x)[early].min()
    return np.where(beyond, rules.signs(x) | np.uint8(fmt.max_code), right)


def _up_to(rules: _Rules, x: Array, found: Codes) -> Array | None:
    """Return zero up to the largest number that wrongly became it."""
    fmt, right = rules.fmt, rules(x)
    if not fmt.has_zero:
        return None
    zero = fmt.values[found] == 0
    early = zero & (fmt.values[right] != 0) & ~np.isnan(x)
    if not early.any():
        return None
    below = np.abs(x) <= np.abs(x)[early].max()
    return np.where(below, rules(np.copysign(np.float32(0), x)), right)


# Explanations


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
        If the shapes differ, or the format or the rounding is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import explain_codes
    >>> x = np.float32([1.99, 1.98, 1.0])
    >>> explain_codes(x, np.uint8([63, 63, 57]), E4M3FN).text()
    'truncation explains 2 of 3 wrong cases'
    """
    fmt = as_float_format(fmt)
    require_array("x", x, np.float32)
    require_array("found", found, np.uint8)
    if found.shape != x.shape:
        raise ValueError(f"found: expected shape {x.shape}, found {found.shape}")
    known: dict[str, Any] = {"random_bits": random_bits, "bit_count": bit_count}
    rules = _rules(fmt, saturate, rounding, overflow, random_bits, bit_count)

    def mistaken() -> Iterator[tuple[str, Array | None]]:
        for name, encoder in encoder_mistakes(fmt, saturate, rounding, overflow, **known):
            yield name, encoder(x)
        for name, fit in fitted_mistakes(fmt, saturate, rounding, overflow, **known):
            yield name, fit(x, found)

    def differ(one: Array, other: Array) -> npt.NDArray[np.bool_]:
        return differing(one, other, fmt)

    with np.errstate(all="ignore"):
        return best_explanation(rules(x), found, mistaken(), differ)


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
    nan = np.zeros(256, bool)
    nan[list(fmt.nan_codes)] = True
    return np.asarray((codes != found) & ~(nan[codes] & nan[found]))


def clamped_codes(codes: Codes, fmt: FloatFormat, limit: int) -> Codes:
    """Replace the finite codes of a magnitude above the code ``limit`` by it."""
    sign = codes & np.uint8(fmt.sign_bit)
    too_large = np.isfinite(fmt.values[codes]) & ((codes & np.uint8(0xFF - fmt.sign_bit)) > limit)
    return np.where(too_large, sign | np.uint8(limit), codes)
