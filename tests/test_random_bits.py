"""Stochastic rounding by given bits, and the bits that kernels give."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer_rounding import FACTS, codes, parts_of
from test_codec import LAYOUTS

import npfp8
import npfp8.testing
from npfp8 import E4M3FN, E5M2, encode, encode_bfloat16
from npfp8.bfloat16 import from_bits
from npfp8.formats import FLOAT_FORMATS
from npfp8.random_bits import CVT_RS_BIT_COUNTS, cvt_rs_bits, philox4x32, philox_words

BITS = np.arange(1 << 16, dtype=np.uint16)
with np.errstate(invalid="ignore"):
    INPUTS = {"float16": BITS.view(np.float16), "bfloat16": from_bits(BITS)}
PARTS = {"float16": parts_of(BITS, 10, 5), "bfloat16": parts_of(BITS, 7, 8)}


def stochastic(x, fmt, bits, count, saturate=True, **options):
    return encode(
        x, fmt, saturate, rounding="stochastic", random_bits=bits, bit_count=count, **options
    )


def random(count, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, count, np.uint64)


# Rounding


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("source", INPUTS)
@pytest.mark.parametrize("count", [1, 8, 13, 16, 32, 64])
@np.errstate(invalid="ignore")
def test_every_number_of_16_bits(name, source, count):
    """Against shifts of integers, with other bits for each number."""
    x, kept = INPUTS[source], np.ones(BITS.size, bool)
    if FACTS[name].nan is None:
        kept = ~np.isnan(x)
    words = random(BITS.size, count)
    low = words & np.uint64((1 << count) - 1)
    for saturate in (True, False):
        right = codes(
            PARTS[source], name, "stochastic", saturate, random_bits=low, bit_count=count
        )[kept]
        assert np.array_equal(stochastic(x[kept], name, words[kept], count, saturate), right)
        wide = x[kept].astype(np.float64)
        assert np.array_equal(stochastic(wide, name, words[kept], count, saturate), right)
        if source == "bfloat16":
            found = encode_bfloat16(
                BITS[kept], name, saturate, rounding="stochastic",
                random_bits=words[kept], bit_count=count,
            )  # fmt: skip
            assert np.array_equal(found, right)


@given(
    st.sampled_from(sorted(FACTS)), st.floats(allow_nan=False, allow_infinity=False),
    st.integers(1, 10),
)  # fmt: skip
def test_as_many_values_of_the_bits_round_away_as_the_fraction_says(name, x, count):
    fmt = FLOAT_FORMATS[name]
    x = x if fmt.signed else abs(x)
    if abs(x) >= fmt.max or abs(x) < fmt.min_positive:
        x = fmt.max / 3  # not exact in any format
    every = np.arange(1 << count, dtype=np.uint16)
    found = stochastic(np.full(every.shape, x), fmt, every, count)
    below, above = (
        Fraction(float(fmt.values[encode(abs(x), fmt, rounding=how)])) for how in ("down", "up")
    )
    if below == above:
        assert len(set(found.tolist())) == 1
        return
    fraction = (Fraction(abs(x)) - below) / (above - below)
    away = np.abs(fmt.values[found]) == float(above)
    assert np.count_nonzero(away) == int(fraction * 2**count)
    assert (np.diff(away.astype(int)) >= 0).all()  # the largest ones do


def test_stated_cases():
    x = np.full(4, 1.03125)  # a quarter of the way from 1 to 1.125
    assert stochastic(x, E4M3FN, np.uint8([0, 1, 2, 3]), 2).tolist() == [56, 56, 56, 57]
    assert stochastic(-x, E4M3FN, np.uint8([0, 1, 2, 3]), 2).tolist() == [184, 184, 184, 185]
    # With one bit, a quarter is cut off to nothing.
    assert stochastic(x, E4M3FN, np.uint8([0, 1, 2, 3]), 1).tolist() == [56] * 4
    # 464 is half way from 448 to the missing 480.
    y = np.float32([464, 464, 480, -464, np.inf, -np.inf, np.nan])
    bits = np.uint8([0, 128, 0, 255, 0, 0, 255])
    assert stochastic(y, E4M3FN, bits, 8).tolist() == [126, 126, 126, 254, 126, 254, 127]
    assert stochastic(y, E4M3FN, bits, 8, False).tolist() == [126, 127, 127, 255, 127, 255, 127]
    # The smallest float64, and the largest.
    tiny = np.array([5e-324, -5e-324, np.finfo(np.float64).max])
    assert stochastic(tiny, E4M3FN, np.uint64(2**64 - 1), 64).tolist() == [0, 128, 126]


def test_no_bits_set_is_toward_zero():
    for name, fmt in FLOAT_FORMATS.items():
        x = npfp8.testing.edge_cases(fmt)
        x = x[np.isfinite(x)]
        found = stochastic(x, name, np.uint8(0), 8)
        assert np.array_equal(found, encode(x, name, rounding="toward_zero"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, ">u4"])
def test_only_the_low_bits_count(dtype):
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    words = random(1000).astype(dtype)
    for count in (1, 5, 8):
        low = words & np.array((1 << count) - 1, dtype)
        assert np.array_equal(
            stochastic(x, E5M2, words, count), stochastic(x, E5M2, low.astype(np.uint8), count)
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_layouts_and_threads(layout, threads, monkeypatch):
    monkeypatch.setattr("npfp8.arrays._SMALLEST_SHARE", 1)
    x = (np.random.default_rng(5).standard_normal((70, 50, 30)) * 100).astype(np.float32)
    words = random(x.size, 1).reshape(x.shape).astype(np.uint16)
    change = LAYOUTS[layout]
    right = change(stochastic(x, E4M3FN, words, 13))
    if layout == "broadcast":
        right = stochastic(change(x).copy(), E4M3FN, change(words).copy(), 13)
    assert np.array_equal(stochastic(change(x), E4M3FN, change(words), 13, threads=threads), right)
    copied = np.array(change(words), order="C")
    assert np.array_equal(stochastic(change(x), E4M3FN, copied, 13, threads=threads), right)


def test_bits_are_broadcast():
    x = np.random.default_rng(2).standard_normal((6, 5, 4))
    row = random(4).astype(np.uint32)
    full = np.broadcast_to(row, x.shape).copy()
    right = stochastic(x, E4M3FN, full, 20)
    assert np.array_equal(stochastic(x, E4M3FN, row, 20), right)
    assert np.array_equal(stochastic(np.asfortranarray(x), E4M3FN, row, 20), right)
    column = random(6).astype(np.uint32)[:, None, None]
    full = np.broadcast_to(column, x.shape).copy()
    assert np.array_equal(stochastic(x, E4M3FN, column, 20), stochastic(x, E4M3FN, full, 20))
    assert stochastic(np.float32(1.0625), E4M3FN, np.uint8(255), 8).shape == ()
    assert stochastic(x[:0], E4M3FN, row, 20).shape == (0, 5, 4)


def test_out_may_be_the_bits():
    x = np.random.default_rng(3).standard_normal(3000).astype(np.float32)
    words = random(3000).astype(np.uint8)
    right = stochastic(x, E4M3FN, words.copy(), 8)
    assert stochastic(x, E4M3FN, words, 8, out=words) is words
    assert np.array_equal(words, right)


def test_other_sources(ml_dtypes):
    x = np.linspace(-3, 3, 999, dtype=np.float32).astype(ml_dtypes.bfloat16)
    words = random(999)
    right = stochastic(x.astype(np.float32), E4M3FN, words, 16)
    assert np.array_equal(stochastic(x, E4M3FN, words, 16), right)


def test_integers():
    x = np.int64([17, -17, 2**53])
    assert stochastic(x, E4M3FN, np.uint8([127, 128, 0]), 8).tolist() == [0x58, 0xD9, 0x7E]
    with pytest.raises(ValueError, match=r"integers up to 2\^53, found larger ones"):
        stochastic(np.int64([2**53 + 1]), E4M3FN, np.uint8(0), 8)


def test_errors():
    x, bits = np.float32([1, 2, 3]), np.uint16([1, 2, 3])
    rng = np.random.default_rng(0)

    def check(error, match, fmt=E4M3FN, rounding="stochastic", **options):
        with pytest.raises(error, match=match):
            encode(x, fmt, rounding=rounding, **options)

    check(TypeError, "random_bits: expected unsigned integers, found int64",
          random_bits=np.int64([1, 2, 3]), bit_count=8)  # fmt: skip
    check(TypeError, "random_bits: expected unsigned integers, found float32",
          random_bits=x, bit_count=8)  # fmt: skip
    check(TypeError, "random_bits: expected unsigned integers", random_bits=[True], bit_count=1)
    check(ValueError, r"random_bits: expected shape \(3,\), or one that broadcasts to it, found "
          r"\(2,\)", random_bits=bits[:2], bit_count=8)  # fmt: skip
    check(ValueError, r"random_bits: .* found \(2, 3\)",
          random_bits=np.zeros((2, 3), np.uint8), bit_count=8)  # fmt: skip
    check(ValueError, "rng: expected None with random_bits", random_bits=bits, bit_count=8, rng=rng)
    check(ValueError, "bit_count: expected the number of random bits", random_bits=bits)
    check(ValueError, "random_bits: expected an array with bit_count, found None", bit_count=8)
    check(ValueError, "random_bits: .* with bit_count, found None", bit_count=8, rng=None)
    for count in (0, 17, -1):
        check(ValueError, f"bit_count: expected 1 to 16 for uint16 bits, found {count}",
              random_bits=bits, bit_count=count)  # fmt: skip
    check(TypeError, "bit_count: expected an integer, found float", random_bits=bits, bit_count=8.0)
    check(ValueError, "random_bits: expected them with rounding='stochastic' only, found 'near",
          rounding="nearest", random_bits=bits, bit_count=8)  # fmt: skip
    check(ValueError, "rounding: expected 'nearest' or .* for INT8, found 'stochastic'",
          "INT8", random_bits=bits, bit_count=8)  # fmt: skip
    check(ValueError, "random_bits: expected them with rounding='stochastic' only, found 'up'",
          "INT8", "up", random_bits=bits, bit_count=8)  # fmt: skip
    check(ValueError, "threads: expected at least 1", random_bits=bits, bit_count=8, threads=0)
    with pytest.raises(ValueError, match="found NaN, and E2M1 has no code for it"):
        stochastic([np.nan], "E2M1", np.uint8(0), 8)
    with pytest.raises(TypeError, match=r"expected a numpy\.random\.Generator, found None"):
        encode(x, E4M3FN, rounding="stochastic")


@pytest.mark.parametrize("name", ["ocp_e4m3", "ocp_e5m2", "ocp_e2m1"])
@pytest.mark.parametrize("count", [1, 8, 16])
def test_gfloats_fastest_agrees(name, count, gfloat):
    """Its mode StochasticFastest. Its others round the fraction, or add half a bit."""
    formats = pytest.importorskip("gfloat.formats")
    info = getattr(formats, f"format_info_{name}")
    fmt = {"ocp_e4m3": "E4M3FN", "ocp_e5m2": "E5M2", "ocp_e2m1": "E2M1"}[name]
    x = INPUTS["bfloat16"]
    x = x[np.isfinite(x)].astype(np.float64)
    bits = (random(x.size) & np.uint64((1 << count) - 1)).astype(np.int64)
    theirs = {
        mode: gfloat.round_ndarray(info, x, gfloat.RoundMode[mode], True, bits, count)
        for mode in ("StochasticFastest", "StochasticFast", "Stochastic")
    }
    found = npfp8.decode(stochastic(x, fmt, bits.astype(np.uint64), count), fmt, np.float64)
    assert np.array_equal(found, theirs["StochasticFastest"])
    if count < 16:  # with more bits than bfloat16 has, nothing is left to differ in
        assert not np.array_equal(found, theirs["StochasticFast"])


# Philox


#: Random123's tests/kat_vectors: rounds, counter, key, result.
KNOWN_ANSWERS = """
 7 00000000 00000000 00000000 00000000 00000000 00000000 5f6fb709 0d893f64 4f121f81 4f730a48
 7 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 5207ddc2 45165e59 4d8ee751 8c52f662
 7 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 4dfccaba 190a87f0 c47362ba b6b5242a
10 00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
10 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
10 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("line", KNOWN_ANSWERS.strip().splitlines())
def test_known_answers(line):
    rounds, *words = line.split()
    numbers = np.array([int(word, 16) for word in words], np.uint32)
    assert philox4x32(numbers[:4], numbers[4:6], int(rounds)).tolist() == numbers[6:].tolist()


def philox(width, counter, key, rounds=10):
    """Philox with four words of a width, in Python's integers."""
    multipliers, increments = {
        32: ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)),
        64: ((0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)),
    }[width]
    size = 1 << width
    for i in range(rounds):
        high_0, low_0 = divmod(multipliers[0] * counter[0], size)
        high_1, low_1 = divmod(multipliers[1] * counter[2], size)
        keys = [(k + i * step) % size for k, step in zip(key, increments, strict=True)]
        counter = [high_1 ^ counter[1] ^ keys[0], low_1, high_0 ^ counter[3] ^ keys[1], low_0]
    return counter


words32 = st.integers(0, 2**32 - 1)


@given(st.lists(words32, min_size=4, max_size=4), st.lists(words32, min_size=2, max_size=2),
       st.integers(1, 12))  # fmt: skip
def test_philox_of_any_counter(counter, key, rounds):
    found = philox4x32(np.uint32(counter), np.uint32(key), rounds)
    assert found.tolist() == philox(32, counter, key, rounds)


@given(st.integers(0, 2**63), st.integers(1, 2**63))
def test_numpy_has_the_wide_one(seed, offset):
    """What Triton makes of an offset of 64 bits; the test of this file's own Philox too."""
    generator = np.random.Philox(key=np.uint64([seed, 0]), counter=np.uint64([offset - 1, 0, 0, 0]))
    assert generator.random_raw(4).tolist() == philox(64, [offset, 0, 0, 0], [seed, 0])


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_words_of_seeds_and_offsets(seed, offset, subsequence):
    halves = [x >> shift & 0xFFFFFFFF for x in (offset, subsequence) for shift in (0, 32)]
    right = philox(32, halves, [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    assert philox_words(seed, np.uint64(offset), np.uint64(subsequence)).tolist() == right


def test_words_are_broadcast():
    words = philox_words(7, np.arange(5), np.arange(3)[:, None])
    assert words.shape == (3, 5, 4)
    assert words.dtype == np.uint32
    for thread, offset in ((0, 0), (2, 4), (1, 3)):
        assert np.array_equal(words[thread, offset], philox_words(7, offset, thread))
    assert philox_words(7, np.zeros((0, 2), np.int32)).shape == (0, 2, 4)
    counters, keys = np.zeros((2, 1, 4), np.uint32), np.zeros((3, 2), np.uint32)
    assert philox4x32(counters, keys).shape == (2, 3, 4)
    assert len(np.unique(philox_words(1, np.arange(1000)))) > 3990


def test_philox_errors():
    four, two = np.zeros(4, np.uint32), np.zeros(2, np.uint32)
    with pytest.raises(TypeError, match="counter: expected uint32, found int64"):
        philox4x32(np.zeros(4, np.int64), two)
    with pytest.raises(ValueError, match=r"counter: expected shape \(\.\.\., 4\), found \(2,\)"):
        philox4x32(two, two)
    with pytest.raises(ValueError, match=r"key: expected shape \(\.\.\., 2\), found \(\)"):
        philox4x32(four, np.uint32(0))
    with pytest.raises(ValueError, match="rounds: expected 1 to 16, found 0"):
        philox4x32(four, two, 0)
    with pytest.raises(ValueError, match="rounds: expected 1 to 16, found 17"):
        philox_words(1, 0, rounds=17)
    with pytest.raises(ValueError, match=r"key: expected axes that broadcast .* found \(3, 2\)"):
        philox4x32(np.zeros((2, 4), np.uint32), np.zeros((3, 2), np.uint32))
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed: .* 64 bits, found {seed}"):
            philox_words(seed, 0)
    with pytest.raises(TypeError, match="seed: expected an integer, found float"):
        philox_words(1.0, 0)
    with pytest.raises(TypeError, match="offset: expected integers of 64 bits, found float64"):
        philox_words(1, 0.5)
    with pytest.raises(ValueError, match="subsequence: expected integers of at least 0, found -1"):
        philox_words(1, 0, -1)
    with pytest.raises(ValueError, match=r"subsequence: expected a shape that broadcasts with"):
        philox_words(1, [1, 2], [1, 2, 3])


# cvt.rs


def reverse16(x):
    return int(f"{x:016b}"[::-1], 2)


def bits_of_operands(rbits, destination):
    """What each operand takes, in Python's integers, bit by bit."""
    if destination == "f16x2":
        return [rbits >> 16 & 0x1FFF, rbits & 0x1FFF]
    if destination == "bf16x2":
        return [rbits >> 16, rbits & 0xFFFF]
    if destination == "e2m1x4":
        byte = [rbits >> 8 * i & 0xFF for i in range(4)]
        pairs = [byte[3] << 8 | byte[1], byte[2] << 8 | byte[0]]
    else:
        pairs = [rbits >> 16, rbits & 0xFFFF]
    return [one for pair in pairs for one in (reverse16(pair), pair)]


@given(words32)
def test_cvt_rs_takes_the_bits(rbits):
    for destination in CVT_RS_BIT_COUNTS:
        found = cvt_rs_bits(np.uint32(rbits), destination)
        assert found.dtype == np.uint16
        assert found.tolist() == bits_of_operands(rbits, destination)


def flashinfer_e4m3(x, chunk):
    """One float32 number to E4M3 with 16 random bits, as an emulation in integers does it."""
    bits = int(np.float32(x).view(np.uint32))
    sign, exponent, mantissa = bits >> 31, bits >> 23 & 0xFF, bits & 0x7FFFFF
    if exponent == 0xFF:
        return 0x7F if mantissa else sign << 7 | 0x7E
    if exponent == 0:
        return sign << 7
    significand = mantissa | 1 << 23
    shift = 20 + max(0, 121 - exponent)  # 121 is the exponent of 2^-6
    added = significand + (chunk << shift >> 16)
    code = (added >> shift) + (max(exponent - 121, 0) << 3)
    return sign << 7 | min(code, 0x7E)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4), words32)
def test_cvt_rs_by_integers(patterns, rbits):
    """The bits are added at the top of those that are cut off, and a carry rounds up."""
    x = np.uint32(patterns).view(np.float32)
    bits = cvt_rs_bits(np.uint32(rbits), "e4m3x4")
    found = stochastic(x, E4M3FN, bits, CVT_RS_BIT_COUNTS["e4m3x4"])
    right = [
        flashinfer_e4m3(one, chunk)
        for one, chunk in zip(x, bits_of_operands(rbits, "e4m3x4"), strict=True)
    ]
    assert found.tolist() == right


@given(st.lists(st.floats(-500, 500, width=32), min_size=4, max_size=4), words32)
def test_cvt_rs_within_range(numbers, rbits):
    x = np.float32(numbers)
    bits = cvt_rs_bits(np.uint32(rbits), "e4m3x4")
    found = stochastic(x, E4M3FN, bits, 16).tolist()
    chunks = bits_of_operands(rbits, "e4m3x4")
    assert found == [flashinfer_e4m3(*pair) for pair in zip(x, chunks, strict=True)]


def test_each_value_of_a_pair_comes_once():
    """Reversed or not, the 2^16 values of a half are all values: each element is rounded fairly."""
    words = np.arange(1 << 16, dtype=np.uint32)
    bits = cvt_rs_bits(words, "e4m3x4")
    assert bits.shape == (1 << 16, 4)
    for place in (2, 3):
        assert np.array_equal(np.sort(bits[:, place]), np.arange(1 << 16))
    x = np.full((1 << 16, 4), 1 + 3 / 64, np.float32)  # three eighths of the way
    up = stochastic(x, E4M3FN, bits, 16) == 0x39
    assert np.count_nonzero(up[:, 2]) == np.count_nonzero(up[:, 3]) == 3 << 13


def test_cvt_rs_errors():
    with pytest.raises(ValueError, match=r"destination: expected one of 'f16x2', .* 'e8m0x4'"):
        cvt_rs_bits(np.uint32(0), "e8m0x4")
    with pytest.raises(TypeError, match="words: expected uint32, found int64"):
        cvt_rs_bits(np.int64([1]), "e4m3x4")
    assert cvt_rs_bits(np.zeros((2, 3), np.uint32), "E4M3X4").shape == (2, 3, 4)
    assert cvt_rs_bits(np.zeros((2, 3), np.uint32), "bf16x2").shape == (2, 3, 2)
