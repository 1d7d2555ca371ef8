"""Every small format that FloatFormat can describe, against an oracle in rational arithmetic.

The oracle shares no code with npfp8: it makes the values from the definition
as Fractions, the boundaries of rounding from the values, and finds inputs among
the boundaries as integers, multiples of one tiny power of two. The inputs are
all 65,536 float16 numbers.
"""

import copy
import dataclasses
import pickle
from fractions import Fraction
from itertools import cycle, pairwise, product

import numpy as np
import pytest

from bert_numpy.quantization.counts import OperandCounts
from npfp8 import (
    FloatFormat,
    QuantizedTensor,
    absmax_scale,
    decode,
    decode_bfloat16,
    encode,
    encode_bfloat16,
    matmul,
    quantize,
    quantize_bfloat16,
    testing,
)
from npfp8.bfloat16 import from_bits, round_to_bfloat16, to_bits
from npfp8.mistakes import encoder_mistakes
from npfp8.vectors import MODES, SOURCES, check_results, format_vectors, make_vectors

#: Every number here is a multiple of 1 / UNIT, and as such an int64.
UNIT = 1 << 36

NAN = "nan"
INFINITE = Fraction(10**9)  # stands for it, beyond all that float16 and the formats have

ROUNDINGS = ("nearest", "nearest_away", "nearest_toward_zero", "toward_zero")

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def nan_lists(exponent_bits, mantissa_bits, sign_bit):
    """Lists of NaN codes worth a format: none, one, IEEE's, that of -0, mixed and doubled."""
    top = ((1 << exponent_bits) - 1) << mantissa_bits
    last = top | (1 << mantissa_bits) - 1
    ieee = tuple(range(top + 1, last + 1))
    both = [(), (last,), ieee, tuple(range(top, last + 1))]
    if not sign_bit:
        return both
    signed = [tuple(c for code in codes for c in (code | sign_bit, code)) for codes in both]
    mixed = [(sign_bit, *codes, *codes[:1]) for codes in signed]
    return signed + mixed


def small_formats():
    """Every format of the grid that is one, each once, with the arguments that made it."""
    seen = {}
    infinities = (False, "first", "on top")
    for e, m, signed, zero, infinity in product(
        range(6), range(5), (True, False), (True, False), infinities
    ):
        bits = int(signed) + e + m
        if not 2 <= bits <= 8:
            continue
        bias = (1 << e >> 1) - 1 if e else 1
        for nans in nan_lists(e, m, 1 << (bits - 1) if signed else 0):
            try:
                on_top = infinity == "on top"
                fmt = FloatFormat(
                    e, m, bias, bool(infinity), nans, signed, zero, infinity_on_top=on_top
                )
            except ValueError:
                continue
            seen.setdefault(fmt, fmt)
    return list(seen)


SMALL = small_formats()


def name_of(fmt):
    kind = "s" if fmt.signed else "u"
    rest = ("" if fmt.has_zero else "-nozero") + ("-inf" if fmt.has_infinity else "")
    rest += "-top" if fmt.infinity_on_top else ""
    nans = ".".join(f"{code:x}" for code in fmt.nan_codes)
    return f"{kind}E{fmt.exponent_bits}M{fmt.mantissa_bits}{rest}-{nans}"


def number(fmt, code):
    """The value of a code by the definition: (sign, magnitude), or NaN."""
    if code in fmt.nan_codes:
        return NAN
    bits = int(fmt.signed) + fmt.exponent_bits + fmt.mantissa_bits
    sign = -1 if fmt.signed and code >> (bits - 1) else 1
    e = code >> fmt.mantissa_bits & ((1 << fmt.exponent_bits) - 1)
    m = code & ((1 << fmt.mantissa_bits) - 1)
    ones = (1 << fmt.mantissa_bits) - 1 if fmt.infinity_on_top else 0
    if fmt.has_infinity and e == (1 << fmt.exponent_bits) - 1 and m == ones:
        return sign, INFINITE
    fraction = Fraction(m, 1 << fmt.mantissa_bits)
    if fmt.has_zero and e == 0:
        return sign, Fraction(2) ** (1 - fmt.bias) * fraction
    return sign, Fraction(2) ** (e - fmt.bias) * (1 + fraction)


class Inputs:
    """float16 numbers taken apart."""

    def __init__(self, x):
        wide = x.astype(np.float64)
        finite = np.isfinite(wide)
        self.x, self.negative = x, np.signbit(wide).astype(int)
        self.magnitudes = (np.abs(np.where(finite, wide, 0)) * UNIT).astype(np.int64)
        self.infinite, self.nan, self.zero = np.isinf(wide), np.isnan(wide), wide == 0


EVERY, NO_NAN = Inputs(HALVES), Inputs(HALVES[~np.isnan(HALVES)])


class Oracle:
    """The right results for a format: every code by its value, every input by its rounding."""

    def __init__(self, fmt):
        self.fmt = fmt
        half = 1 << (fmt.exponent_bits + fmt.mantissa_bits)
        self.numbers = [number(fmt, code) for code in range(half << int(fmt.signed))]
        self.by_number = {}
        for code, one in enumerate(self.numbers):
            self.by_number.setdefault(one, code)
        self.finite = sorted({one[1] for one in self.numbers if one != NAN} - {INFINITE})
        self.nans = sorted(fmt.nan_codes)
        # The step above the largest number, as if the binade or the exponents went on.
        e = (self.by_number[1, self.finite[-1]] >> fmt.mantissa_bits) or int(fmt.has_zero)
        step = Fraction(2) ** (e - fmt.bias - fmt.mantissa_bits)
        self.points = [*self.finite, self.finite[-1] + step]
        self.kinds = {}

    def rounded(self, magnitudes, rounding):
        """The index in `points` that each magnitude (an int64 in UNITs) is rounded to."""
        points = self.points
        if rounding == "toward_zero":
            bounds = [int(p * UNIT) for p in points[1:-1]]  # a number itself is reached
            return np.searchsorted(np.array(bounds, np.int64), magnitudes, side="right")
        bounds = []
        for low, high in pairwise(points):
            middle = (low + high) / 2 * UNIT
            assert middle.denominator == 1
            # A tie goes to the one that is an even number of steps, if to no side at all.
            to_lower = (low / (high - low)) % 2 == 0
            if rounding != "nearest":
                to_lower = rounding == "nearest_toward_zero"
            bounds.append(int(middle) + (1 if to_lower else 0))
        return np.searchsorted(np.array(bounds, np.int64), magnitudes, side="right")

    def positive_nan(self, quiet):
        """The NaN of the largest payload, or the quiet one; positive if there is such."""
        positive = [
            c for c in self.nans if c < 1 << (self.fmt.exponent_bits + self.fmt.mantissa_bits)
        ]
        found = max(positive or self.nans)
        top = ((1 << self.fmt.exponent_bits) - 1) << self.fmt.mantissa_bits
        is_quiet = top + (1 << self.fmt.mantissa_bits) // 2
        return is_quiet if quiet and is_quiet in self.nans else found

    def nan(self, sign, saturate):
        """The code that a NaN, or what becomes one, gets; None where there is none."""
        if not self.nans:
            return None
        code = self.positive_nan(quiet=not saturate)
        half = 1 << (self.fmt.exponent_bits + self.fmt.mantissa_bits)
        if not saturate and sign < 0 and self.fmt.signed and code + half in self.nans:
            code += half
        return code

    def code(self, sign, magnitude, saturate):
        """The code of a rounded magnitude: one of `points`, or INFINITE."""
        fmt = self.fmt
        if not fmt.signed and sign < 0 and magnitude != "zero":
            return self.nan(1, saturate) if self.nans else 0
        if magnitude == "zero":
            if fmt.has_zero:
                magnitude = Fraction(0)
                half = 1 << (fmt.exponent_bits + fmt.mantissa_bits)
                negative = sign < 0 and fmt.signed and half not in self.nans
                return half if negative else 0
            if not saturate and self.nans:
                return self.nan(sign, saturate)
            magnitude = self.finite[0]
        if magnitude > self.finite[-1]:
            if saturate:
                magnitude = self.finite[-1]
            elif fmt.has_infinity:
                magnitude = INFINITE
            elif self.nans:
                return self.nan(sign, saturate)
            else:
                magnitude = self.finite[-1]
        if magnitude == 0:
            return self.code(sign, "zero", saturate)
        return self.by_number[sign if fmt.signed else 1, magnitude]

    def kinds_of(self, inputs, rounding):
        """What each number becomes, by its place in [*points, infinity, zero, NaN]."""
        if (inputs, rounding) not in self.kinds:
            index = self.rounded(inputs.magnitudes, rounding)
            if rounding == "toward_zero":  # finite numbers stop at the largest
                index = np.minimum(index, len(self.finite) - 1)
            for i, kind in enumerate((inputs.infinite, inputs.zero, inputs.nan)):
                index[kind] = len(self.points) + i
            self.kinds[inputs, rounding] = index
        return self.kinds[inputs, rounding]

    def encoded(self, inputs, rounding, saturate):
        """The codes of float16 numbers; -1 for a NaN where the format has none."""
        kinds = (*self.points, INFINITE, "zero")
        table = [[self.code(sign, kind, saturate) for kind in kinds] for sign in (1, -1)]
        for row, sign in zip(table, (1, -1), strict=True):
            nan = self.nan(sign, saturate)
            row.append(-1 if nan is None else nan)
        return np.array(table)[inputs.negative, self.kinds_of(inputs, rounding)]


def test_the_grid_has_every_kind():
    assert len(SMALL) > 400
    for kind in product((True, False), repeat=3):
        assert any((f.signed, f.has_zero, f.has_infinity) == kind for f in SMALL), kind
    assert {f.bits for f in SMALL} == set(range(2, 9))
    assert {f.exponent_bits for f in SMALL} == set(range(6))
    assert {f.mantissa_bits for f in SMALL} == set(range(5))
    assert {f.infinity_on_top for f in SMALL} == {True, False}


def test_a_signed_format_without_zero():
    fmt = FloatFormat(3, 4, bias=3, has_zero=False)
    smallest = 2.0**-3
    assert (fmt.values[0], fmt.values[0x80]) == (smallest, -smallest)
    x = np.array([smallest, -smallest, 0.0, -0.0, 1e-9, -1e-9, -1.0])
    expected = [0x00, 0x80, 0x00, 0x80, 0x00, 0x80, 0xB0]
    generator = np.random.default_rng(0)
    for rounding in ("nearest", "toward_zero", "stochastic"):
        for saturate in (True, False):
            found = encode(x, fmt, saturate, rounding=rounding, rng=generator)
            assert found.tolist() == expected, (rounding, saturate)
    assert not fmt.has_negative_zero


def test_nan_codes_among_which_is_that_of_minus_zero():
    nans = (0x7C, 0x7D, 0x7E, 0x7F, 0x80, 0xFC, 0xFD, 0xFE, 0xFF)
    fmt = FloatFormat(4, 3, 7, nan_codes=nans)
    assert (fmt.nan_code, fmt.quiet_nan_code) == (0x7F, 0x7C)
    assert encode([np.nan, -np.nan, 1e9, -1e9], fmt, False).tolist() == [0x7C, 0xFC] * 2
    assert encode([np.nan, -np.nan], fmt).tolist() == [0x7F, 0x7F]
    assert encode([0.0, -0.0], fmt).tolist() == [0, 0]


def test_equal_formats_are_equal_however_they_are_written():
    one = FloatFormat(4, 3, 7, nan_codes=[0xFF, 0x7F, 0x7F])
    other = FloatFormat(np.int64(4), 3, 7, np.bool_(False), np.array([0x7F, 0xFF]))
    assert one == other
    assert hash(one) == hash(other)
    assert one.nan_codes == (0x7F, 0xFF)
    with pytest.raises(TypeError):
        FloatFormat(4.0, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 4, 3, False, (0x80,), True, False), "alike in both signs"),  # -smallest has no code
        ((4, 3, 7, True, (0x78, 0xF8)), "found it to be a NaN's"),
        ((4, 3, 7, True, tuple(range(0x79, 0x80))), "alike in both signs"),
    ],
)
def test_contradictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloatFormat(*arguments)


def test_infinity_behind_a_nan():
    fmt = FloatFormat(4, 3, 7, True, (0x77, 0xF7, *range(0x79, 0x80), *range(0xF9, 0x100)))
    assert (fmt.max_code, fmt.infinity_code) == (0x76, 0x78)
    assert encode([np.inf, -np.inf], fmt, saturate=False).tolist() == [0x78, 0xF8]


@pytest.mark.parametrize("fmt", SMALL, ids=name_of)
def test_every_code_and_every_float16(fmt):
    oracle = Oracle(fmt)
    codes = np.arange(len(oracle.numbers), dtype=np.uint8)
    with np.errstate(over="ignore"):
        values = [
            np.nan if one == NAN else one[0] * (np.inf if one[1] == INFINITE else float(one[1]))
            for one in oracle.numbers
        ]
    assert np.array_equal(decode(codes, fmt, np.float64), values, equal_nan=True)
    numbers = ~np.isnan(values)
    assert np.array_equal(np.signbit(fmt.values)[numbers], np.signbit(values)[numbers])
    assert np.array_equal(from_bits(decode_bfloat16(codes, fmt)), values, equal_nan=True)
    inputs = EVERY if fmt.nan_codes else NO_NAN
    x = inputs.x
    for rounding, saturate in product(ROUNDINGS, (True, False)):
        expected = oracle.encoded(inputs, rounding, saturate)
        found = encode(x, fmt, saturate, rounding=rounding)
        wrong = np.flatnonzero(found != expected)
        assert not wrong.size, (
            rounding,
            saturate,
            x[wrong[0]],
            found[wrong[0]],
            expected[wrong[0]],
        )
        # The other inputs go through other tables.
        assert np.array_equal(
            encode(x[::7].astype(np.float32), fmt, saturate, rounding=rounding), found[::7]
        )


@pytest.mark.parametrize("fmt", SMALL[::3], ids=name_of)
def test_stochastic_rounding_gives_a_neighbour(fmt):
    oracle, generator = Oracle(fmt), np.random.default_rng(0)
    x = HALVES[::5]
    x = x if fmt.nan_codes else x[~np.isnan(x)]
    inputs = Inputs(x)
    magnitudes = inputs.magnitudes
    for saturate in (True, False):
        found = encode(x, fmt, saturate, rounding="stochastic", rng=generator)
        down = oracle.encoded(inputs, "toward_zero", saturate)
        index = np.minimum(oracle.rounded(magnitudes, "toward_zero"), len(oracle.finite) - 1)
        points = np.array([int(p * UNIT) for p in oracle.points], np.int64)
        above = [[oracle.code(sign, p, saturate) for p in oracle.points[1:]] for sign in (1, -1)]
        up = np.array(above)[np.signbit(x).astype(int), index]
        exact = (points[index] >= magnitudes) | ~np.isfinite(x)
        assert ((found == down) | (~exact & (found == up))).all()


@pytest.mark.parametrize("fmt", SMALL[::5], ids=name_of)
def test_every_public_function_takes_it(fmt):
    oracle = Oracle(fmt)
    x = testing.edge_cases(fmt)
    x = x if fmt.nan_codes else x[~np.isnan(x)]
    x = round_to_bfloat16(x)
    right = encode(x, fmt)
    assert np.array_equal(encode_bfloat16(to_bits(x), fmt), right)
    assert np.array_equal(quantize(x, fmt, 1.0).codes, right)
    q = quantize_bfloat16(x, fmt, 1.0)
    assert np.array_equal(q.codes, right)
    assert np.array_equal(q.dequantize(), decode(right, fmt), equal_nan=True)
    testing.check_encoder(lambda given: encode(given, fmt), fmt)
    testing.check_decoder(lambda given: decode(given, fmt), fmt)
    for name, mistaken in encoder_mistakes(fmt):
        with np.errstate(all="ignore"):
            assert mistaken(x).max(initial=0) < fmt.values.size, name
    for mode, source in zip(MODES, cycle(SOURCES), strict=False):
        vectors = make_vectors(fmt, mode, source)
        assert format_vectors(vectors).count("\n") > vectors.inputs.size
        results = dataclasses.replace(vectors, third=vectors.expected, column="found")
        assert check_results(results).wrong == 0
    for clone in (copy.copy(fmt), copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt))):
        assert clone == fmt
        assert not clone.values.flags.writeable
    largest = np.float32(3)
    scale = absmax_scale(largest, fmt)
    assert quantize(np.array([largest]), fmt, scale).codes.tolist() == [
        oracle.by_number[1, oracle.finite[-1]]
    ]


@pytest.mark.parametrize("fmt", SMALL[::11], ids=name_of)
def test_products_of_every_code(fmt):
    oracle = Oracle(fmt)
    numbers = [one for one in oracle.numbers if one != NAN and one[1] != INFINITE]
    codes = np.array([oracle.by_number[one] for one in numbers], np.uint8)
    a = QuantizedTensor(codes[:, None], 1.0, fmt)
    found = matmul(a, a.mT)
    for i in range(0, len(codes), 3):
        for j in range(0, len(codes), 5):
            (s, x), (t, y) = numbers[i], numbers[j]
            assert Fraction(float(found[i, j])) == s * x * t * y
    row = QuantizedTensor(codes[None], 1.0, fmt)
    total = sum((x * x for _, x in numbers), Fraction(0))
    assert found.shape == (codes.size, codes.size)
    assert matmul(row, row.mT)[0, 0] == np.float32(float(total))  # of 64 small numbers: exact


@pytest.mark.parametrize("fmt", SMALL[::3], ids=name_of)
def test_counts_of_an_operand(fmt):
    """Saturated: beyond the largest number; underflowed: not zero, and of the code of a zero."""
    x = HALVES[np.isfinite(HALVES)].astype(np.float32)
    if fmt.nan_codes:
        x = np.append(x, np.float32([np.nan, -np.nan]))
    q = quantize(x, fmt, 1.0)
    largest = float(Oracle(fmt).finite[-1])
    beyond = np.abs(x) > largest * (1 + 2.0**-20)
    if not fmt.signed:
        beyond &= x > 0
    value = decode(q.codes, fmt, np.float64)
    expected = OperandCounts(
        x.size, int(np.count_nonzero(beyond)), int(np.count_nonzero((value == 0) & (x != 0)))
    )
    assert OperandCounts(x.size, *q.lost(x)) == expected
