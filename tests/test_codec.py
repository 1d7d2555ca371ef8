"""encode and decode: exhaustive for finite sets of inputs, against definition and peers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import nearest_code

import npfp8
from npfp8 import (
    E2M1,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E8M0FNU,
    FIXED8,
    INT8,
    UINT8,
    FloatFormat,
    decode,
    encode,
)
from npfp8.bfloat16 import from_bits
from npfp8.codec import codes_of
from npfp8.formats import FLOAT_FORMATS
from npfp8.interop import ML_DTYPES_NAMES
from npfp8.testing import edge_cases

FORMATS = list(FLOAT_FORMATS.values())
IN_ML_DTYPES = list(ML_DTYPES_NAMES)
ROUNDINGS = [how for how in npfp8.ROUNDINGS if how != "stochastic"]
UNUSUAL = [
    FloatFormat(5, 3, 15, signed=False, name="UE5M3"),
    FloatFormat(0, 7, 0, name="fixed point"),
    FloatFormat(1, 7, 0, signed=False, name="UE1M7"),
    FloatFormat(7, 0, 63, name="E7M0"),
    FloatFormat(2, 5, 1, nan_codes=(0x80,), name="E2M5FNUZ"),
    FloatFormat(4, 4, 8, True, signed=False, infinity_on_top=True, name="UE4M4, infinity on top"),
]
by_format = pytest.mark.parametrize("fmt", FORMATS, ids=str)
by_ml_dtypes = pytest.mark.parametrize("fmt", IN_ML_DTYPES, ids=str)
by_any_format = pytest.mark.parametrize("fmt", FORMATS + UNUSUAL, ids=str)
by_mode = pytest.mark.parametrize("saturate", [True, False], ids=["saturate", "overflow"])

BITS16 = np.arange(1 << 16, dtype=np.uint16)
BFLOAT16 = from_bits(BITS16)
with np.errstate(invalid="ignore"):
    FLOAT16 = BITS16.view(np.float16)


def without_nan(x, fmt):
    return x[~np.isnan(x)] if fmt.nan_code is None else x


def exact_code(x, fmt, saturate):
    """The code by Fractions: the nearest value, a tie to the even significand."""
    if math.isnan(x) or (x == 0 and not fmt.has_zero and not saturate):
        code = fmt.nan_code if saturate else fmt.quiet_nan_code
        own_sign = not saturate and fmt.signed and code & ~fmt.sign_bit
        return code | fmt.sign_bit if own_sign and math.copysign(1, x) < 0 else code
    if x < 0 and not fmt.signed:
        return fmt.nan_code or 0
    grid = [Fraction(float(v)) for v in fmt.grid]
    code = len(grid) - 1 if math.isinf(x) else nearest_of(grid, abs(Fraction(x)))
    if code == len(grid) - 1:
        code = fmt.max_code
        if not saturate:
            code = fmt.infinity_code or fmt.quiet_nan_code or fmt.max_code
    if math.copysign(1, x) < 0 and (fmt.has_negative_zero or code & (fmt.sign_bit - 1)):
        code |= fmt.sign_bit
    return code


def nearest_of(grid, magnitude):
    """The index of the nearest of ``grid``; beyond its end, the end."""
    below = max((i for i, value in enumerate(grid) if value <= magnitude), default=0)
    if below == len(grid) - 1 or magnitude < grid[0]:
        return below
    gap = grid[below + 1] - grid[below]
    rest = (magnitude - grid[below]) / gap
    odd = (grid[below] / gap) % 2 == 1
    return below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and odd))


@by_any_format
@by_mode
def test_edges_equal_fractions(fmt, saturate):
    x = without_nan(edge_cases(fmt), fmt)[::7]
    expected = [exact_code(float(v), fmt, saturate) for v in x]
    assert encode(x, fmt, saturate).tolist() == expected


@by_any_format
@by_mode
@pytest.mark.parametrize("rounding", ROUNDINGS)
@np.errstate(invalid="ignore")  # signalling NaNs
def test_every_16_bit_input_equals_the_definition(fmt, saturate, rounding):
    for every in (BFLOAT16, FLOAT16):
        x = without_nan(every, fmt)
        expected = codes_of(x.astype(np.float64), fmt, saturate, rounding)
        assert np.array_equal(encode(x, fmt, saturate, rounding=rounding), expected)
    bits = BITS16[~np.isnan(BFLOAT16)] if fmt.nan_code is None else BITS16
    found = npfp8.encode_bfloat16(bits, fmt, saturate, rounding=rounding)
    expected = codes_of(from_bits(bits).astype(np.float64), fmt, saturate, rounding)
    assert np.array_equal(found, expected)


#: Inputs for which ml_dtypes differs on purpose of ours, by format: it rounds float32's subnormals
#: above 2^-127 up to 2^-126 instead of to the nearer 2^-127.
def is_exception(x, fmt):
    if fmt == E8M0FNU:
        return (x > 2.0**-127) & (x < 1.5 * 2.0**-127)
    return np.zeros(x.shape, bool)


@by_ml_dtypes
@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32"])
@np.errstate(all="ignore")
def test_overflowing_mode_is_ml_dtypes(fmt, source, ml_dtypes):
    """Every 16-bit input, as its own dtype; and the edges in float32."""
    if source == "bfloat16":
        x = BITS16.view(ml_dtypes.bfloat16)
    else:
        x = FLOAT16 if source == "float16" else edge_cases(fmt)
    x = without_nan(x, fmt)
    theirs = x.astype(getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])).view(np.uint8)
    differ = (encode(x, fmt, saturate=False) != theirs) & ~is_exception(x.astype(np.float64), fmt)
    assert not differ.any()


@by_ml_dtypes
@pytest.mark.parametrize("source", ["float16", "bfloat16"])
def test_saturating_mode_is_ml_dtypes_of_clipped_numbers(fmt, source, ml_dtypes):
    x = (BFLOAT16 if source == "bfloat16" else FLOAT16).astype(np.float32)
    x = x[~np.isnan(x)]
    low = -fmt.max if fmt.signed else fmt.min_positive
    kept = x if fmt.signed else x[x >= 0]
    clipped = np.clip(kept, np.float32(low), np.float32(fmt.max))
    theirs = clipped.astype(getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])).view(np.uint8)
    differ = (encode(kept, fmt) != theirs) & ~is_exception(kept, fmt)
    assert not differ.any()


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
@by_mode
@given(st.floats(width=32))
def test_float32_equals_fractions(fmt, saturate, value):
    assert encode(np.float32(value), fmt, saturate) == exact_code(value, fmt, saturate)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_float32_equals_ml_dtypes(fmt, ml_dtypes):
    @given(st.integers(0, 2**32 - 1))
    def same(bits):
        x = np.uint32([bits]).view(np.float32)
        with np.errstate(all="ignore"):
            theirs = x.astype(getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])).view(np.uint8)
        assert encode(x, fmt, saturate=False) == theirs

    same()


@by_any_format
@given(st.data())
def test_float64_is_rounded_once(fmt, data):
    """Beside every boundary by less than float32, float16 or bfloat16 can tell."""
    midpoints = (fmt.grid[:-1] + fmt.grid[1:]) / 2
    boundary = data.draw(st.sampled_from([*fmt.grid.tolist(), *midpoints.tolist()]))
    offset = data.draw(
        st.sampled_from([0.0, *(s * 2.0**-b for b in (52, 40, 25, 12) for s in (1, -1))])
    )
    x = boundary * (1 + offset) * data.draw(st.sampled_from([1, -1]))
    for saturate in (True, False):
        assert encode(x, fmt, saturate) == exact_code(x, fmt, saturate)


def test_float64_through_float32_would_differ():
    x = 1.0625 + 2.0**-40  # beside the tie of 1 and 1.125
    assert encode(x, E4M3FN) == 0x39
    assert encode(np.float32(x), E4M3FN) == 0x38


@given(st.integers(-(2**63), 2**64 - 1))
def test_integers_equal_fractions(value):
    dtype = np.int64 if value < 2**63 else np.uint64
    for fmt in (E4M3FN, E5M2, FloatFormat(7, 0, 63)):
        x = np.array(value, dtype)
        assert encode(x, fmt, saturate=False) == exact_integer_code(value, fmt)


def exact_integer_code(value, fmt):
    code = nearest_of([Fraction(float(v)) for v in fmt.grid], Fraction(abs(value)))
    if code > fmt.max_code:
        code = fmt.infinity_code or fmt.quiet_nan_code or fmt.max_code
    return code | (fmt.sign_bit if value < 0 else 0)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_integer_dtypes(dtype):
    x = np.array([0, 1, 17, 100, 127], dtype)
    assert encode(x, E4M3FN).tolist() == [nearest_code("E4M3FN", float(v)) for v in x]


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
@given(st.floats(width=32, allow_nan=False))
def test_an_independent_oracle_agrees(fmt, value):
    assert encode(np.float32(value), fmt) == nearest_code(fmt.name, value)


def test_stated_cases():
    assert encode(np.float32([464.0, 464.1, np.inf, 1e9]), E4M3FN, False).tolist() == [
        0x7E, 0x7F, 0x7F, 0x7F,
    ]  # fmt: skip
    assert encode([61440.0, 61439.9], E5M2, False).tolist() == [0x7C, 0x7B]
    nans = np.uint32([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001]).view(np.float32)
    assert encode(nans, E4M3FN).tolist() == encode(nans, E5M2).tolist() == [0x7F] * 4
    assert encode(nans, E4M3FN, False).tolist() == [0x7F, 0xFF] * 2
    assert encode(nans, E5M2, False).tolist() == [0x7E, 0xFE] * 2
    assert encode([0.0, -0.0, 1e-30, -1e-30], E4M3FN).tolist() == [0, 0x80, 0, 0x80]
    assert encode([0.0, -0.0, 1e-30, -1e-30], E4M3FNUZ).tolist() == [0, 0, 0, 0]
    assert encode([np.inf, -np.inf, np.nan], E4M3FNUZ).tolist() == [0x7F, 0xFF, 0x80]


def test_formats_without_sign_zero_or_nan():
    assert encode([0.0, -0.0, -1.0, -np.inf, 1e-45, np.inf], E8M0FNU).tolist() == [
        0, 0, 0xFF, 0xFF, 0, 0xFE,
    ]  # fmt: skip
    assert encode([0.0, -1.0, 3.0, 1.5, np.inf], E8M0FNU, False).tolist() == [
        0xFF, 0xFF, 0x81, 0x80, 0xFF,
    ]  # fmt: skip
    assert encode([7.0, np.inf, -np.inf], E2M1, False).tolist() == [7, 7, 15]
    for x in ([np.nan], np.float16([np.nan]), np.float32([1, np.nan])):
        with pytest.raises(ValueError, match="found NaN, and E2M1 has no code"):
            encode(x, E2M1)
    with pytest.raises(ValueError, match="found NaN"):
        npfp8.encode_bfloat16(np.uint16([0x7FC0]), E2M1)
    assert encode([-1.0, 1.0], FloatFormat(5, 3, 15, signed=False)).tolist() == [0, 0x78]


@by_any_format
def test_codes_of_values_are_themselves(fmt):
    codes = np.arange(fmt.values.size, dtype=np.uint8)[fmt.is_finite]
    for saturate in (True, False):
        assert np.array_equal(encode(decode(codes, fmt), fmt, saturate), codes)


@by_any_format
def test_toward_zero_is_the_largest_value_not_beyond(fmt):
    x = without_nan(edge_cases(fmt), fmt)
    x = x[np.isfinite(x) & (x >= fmt.min_positive)]
    values = decode(encode(x, fmt, rounding="toward_zero"), fmt, np.float64)
    above = np.append(fmt.grid[1:-1], np.inf)[encode(x, fmt, rounding="toward_zero")]
    assert (values <= x).all()
    assert (x.astype(np.float64) < above).all()
    for huge in (1e30, np.inf):
        if fmt.max < huge:
            assert encode(huge, fmt, rounding="toward_zero") == fmt.max_code


def test_toward_zero_without_saturation():
    def code(x, fmt):
        return int(encode(x, fmt, False, rounding="toward_zero"))

    assert code(1e30, E5M2) == 0x7B  # finite numbers do not reach infinity
    assert code(-np.inf, E5M2) == 0xFC
    assert code(np.inf, E4M3FN) == 0x7F
    assert code(-0.9999, E4M3FN) == 0xB7


# Stochastic rounding


class Bits:
    """A generator whose draws are given."""

    def __new__(cls, *draws):
        generator = np.random.Generator(np.random.PCG64(0))
        queue = list(draws)

        class Fixed(np.random.Generator):
            def integers(self, low, high, size, dtype):
                assert (low, high, dtype) == (0, 1 << 64, np.uint64)
                return np.array([queue.pop(0) for _ in range(size)], np.uint64)

        return Fixed(generator.bit_generator)


def stochastic(x, fmt, *draws, saturate=True):
    return encode(x, fmt, saturate, rounding="stochastic", rng=Bits(*draws)).tolist()


def test_stochastic_probability_is_exact():
    quarter = 1 << 62  # 1.03125 is a quarter of the way from 1 to 1.125
    x = np.full(2, 1.03125)
    assert stochastic(x, E4M3FN, quarter - 1, quarter) == [0x39, 0x38]
    assert stochastic(-x, E4M3FN, quarter - 1, quarter) == [0xB9, 0xB8]


def test_stochastic_draws_more_bits_where_64_do_not_decide():
    step = 2.0**-9
    x = np.array([step * 2.0**-103])
    first, second = 0, 1 << (128 - 103)
    assert stochastic(x, E4M3FN, 1) == [0]
    assert stochastic(x, E4M3FN, first, second - 1) == [1]
    assert stochastic(x, E4M3FN, first, second) == [0]
    almost = np.array([step * (1 - 2.0**-53)])  # of 2^64 draws, all but the last 2^11 say up
    assert stochastic(almost, E4M3FN, (1 << 64) - (1 << 11) - 1) == [1]
    assert stochastic(almost, E4M3FN, (1 << 64) - (1 << 11)) == [0]
    tiny = np.array([2.0**-1074])  # its only bit is number 1065, in the 17th draw
    position = 1074 - 9
    zeros = [0] * (position // 64)
    last = 1 << (64 - position % 64)
    assert stochastic(tiny, E4M3FN, *zeros, last - 1) == [1]
    assert stochastic(tiny, E4M3FN, *zeros, last) == [0]


@by_any_format
def test_values_are_never_moved_by_stochastic_rounding(fmt):
    codes = np.arange(fmt.values.size, dtype=np.uint8)[fmt.is_finite]
    x = decode(codes, fmt, np.float64)
    found = encode(x, fmt, rounding="stochastic", rng=np.random.default_rng(0))
    assert np.array_equal(found, codes)


@by_any_format
@by_mode
def test_stochastic_rounding_gives_a_neighbour(fmt, saturate):
    x = without_nan(edge_cases(fmt), fmt)
    down = encode(np.abs(x), fmt, saturate, rounding="toward_zero").astype(int)
    found = encode(x, fmt, saturate, rounding="stochastic", rng=np.random.default_rng(1))
    finite = np.isfinite(x) & (np.abs(x) < fmt.max) & ((x >= 0) | fmt.signed) & (x != 0)
    magnitude = found[finite] & ((fmt.sign_bit or 256) - 1)
    assert np.isin(magnitude - down[finite], (0, 1)).all()
    rest = ~np.isfinite(x) | (x == 0)
    assert np.array_equal(found[rest], encode(x[rest], fmt, saturate))


def test_stochastic_rounding_of_the_largest_float64_raises_no_warning():
    x = np.array([1.0, -1.0]) * np.finfo(np.float64).max
    assert stochastic(x, E4M3FN, 0, 0) == [0x7E, 0xFE]


def test_stochastic_overflow():
    top = (1 << 64) - 1
    x = np.array([464.0, 464.0, 480.0, 1e9])  # 464 is half way from 448 to the missing 480
    assert stochastic(x, E4M3FN, 0, top, top, top) == [0x7E] * 4
    assert stochastic(x, E4M3FN, 0, top, top, top, saturate=False) == [0x7F, 0x7E, 0x7F, 0x7F]
    assert stochastic([np.inf], E5M2, top, saturate=False) == [0x7C]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("part", [1 / 8, 1 / 2, 7 / 8])
def test_stochastic_frequencies(dtype, part):
    n = 100_000
    x = np.full(n, 1 + part / 8, dtype)
    up = encode(x, E4M3FN, rounding="stochastic", rng=np.random.default_rng(2)) == 0x39
    deviation = abs(np.count_nonzero(up) - n * part) / math.sqrt(n * part * (1 - part))
    assert deviation < 5  # one run in two million beyond, and the seed is fixed


def test_stochastic_rounding_is_reproducible_whatever_the_layout():
    x = np.random.default_rng(3).standard_normal((300, 400))
    expected = encode(x, E5M2, rounding="stochastic", rng=np.random.default_rng(4))
    for other in (np.asfortranarray(x), x.astype(">f8")):
        found = encode(other, E5M2, rounding="stochastic", rng=np.random.default_rng(4), threads=2)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float16, np.float64])
def test_stochastic_rounding_of_nothing(dtype):
    x = np.zeros((0, 3), dtype)
    assert encode(x, E4M3FN, rounding="stochastic", rng=np.random.default_rng(0)).shape == (0, 3)


def test_stochastic_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match=r"expected a numpy\.random\.Generator, found None"):
        encode([1.0], E4M3FN, rounding="stochastic")
    with pytest.raises(TypeError, match=r"expected a numpy\.random\.Generator, found int"):
        encode([1.0], E4M3FN, rounding="stochastic", rng=0)
    for value in (2**53 + 1, -(2**53) - 1):
        with pytest.raises(ValueError, match=r"^stochastic rounding: .*integers up to 2\^53"):
            encode(np.int64([value]), E4M3FN, rounding="stochastic", rng=rng)
    exact = np.int64([2**53, -(2**53)])  # these are floats
    assert encode(exact, E4M3FN, rounding="stochastic", rng=rng).tolist() == [0x7E, 0xFE]
    with pytest.raises(ValueError, match="found NaN, and E2M1 has no code for it"):
        encode([np.nan], E2M1, rounding="stochastic", rng=rng)


def test_results_go_where_they_are_wanted():
    x, out = np.float32([1, -2, 1e9]), np.zeros(3, np.uint8)
    assert encode(x, E4M3FN, rounding="stochastic", rng=np.random.default_rng(0), out=out) is out
    assert out.tolist() == [0x38, 0xC0, 0x7E]
    bits, out = (x.view(np.uint32) >> 16).astype(np.uint16), np.zeros(3, np.uint8)
    assert npfp8.encode_bfloat16(bits, E4M3FN, out=out) is out  # saturating, unless told
    assert out.tolist() == [0x38, 0xC0, 0x7E]


# Arrays of every kind

BASE = (np.random.default_rng(5).standard_normal((70, 50, 30)) * 100).astype(np.float32)
CODES = encode(BASE, E4M3FN)
LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda x: x[::-1, ::2, ::3],
    "transposed": lambda x: x.T,
    "empty": lambda x: x[:0],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "scalar": lambda x: x[1, 2, 3],
    "0-d": lambda x: x[1, 2, 3].reshape(()),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": lambda x: np.frombuffer(b"x" + x.tobytes(), x.dtype, x.size, 1).reshape(x.shape),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_layouts(layout, threads, monkeypatch):
    monkeypatch.setattr("npfp8.arrays._SMALLEST_SHARE", 1)
    change = LAYOUTS[layout]
    assert np.array_equal(encode(change(BASE), E4M3FN, threads=threads), change(CODES))
    values = E4M3FN.values.astype(np.float32)[CODES]
    assert np.array_equal(decode(change(CODES), E4M3FN, threads=threads), change(values))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_large_arrays(threads):
    x = np.tile(BASE, (6, 1, 1))
    for array in (x, x.T, x[:, ::-1]):
        expected = encode(np.ascontiguousarray(array), E4M3FN)
        assert np.array_equal(encode(array, E4M3FN, threads=threads), expected)


def test_read_only_and_memory_mapped(tmp_path):
    x = BASE.copy()
    x.flags.writeable = False
    assert np.array_equal(encode(x, E4M3FN), CODES)
    np.save(tmp_path / "x.npy", BASE)
    mapped = encode(np.load(tmp_path / "x.npy", mmap_mode="r"), E4M3FN)
    assert type(mapped) is np.ndarray
    assert np.array_equal(mapped, CODES)


def test_out():
    wide = np.zeros((70, 100, 60), np.uint8)
    out = wide[:, ::2, ::-2]
    assert encode(BASE, E4M3FN, out=out) is out
    assert np.array_equal(out, CODES)
    assert not wide[:, 1::2].any()
    values = np.empty(CODES.shape, np.float64)
    assert decode(CODES, E4M3FN, np.float64, out=values) is values
    x = BASE.copy()
    inside = x.view(np.uint8)[:, :, 1::4]  # the result over the input itself
    encode(x, E4M3FN, out=inside)
    assert np.array_equal(inside, CODES)


def test_out_errors():
    with pytest.raises(TypeError, match="expected an array of uint8, found int8"):
        encode([1.0], E4M3FN, out=np.zeros(1, np.int8))
    with pytest.raises(TypeError, match="found list"):
        encode([1.0], E4M3FN, out=[0])
    with pytest.raises(ValueError, match=r"expected shape \(1,\), found \(2,\)"):
        encode([1.0], E4M3FN, out=np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="threads: expected at least 1, found 0"):
        encode([1.0], E4M3FN, threads=0)


def test_memory_is_a_few_blocks_whatever_the_array(tmp_path):
    import tracemalloc  # noqa: PLC0415

    x = np.zeros(1 << 24, np.float32)
    codes, out = np.zeros(1 << 24, np.uint8), np.empty_like(x)
    encode(x[:8], E4M3FN), decode(codes[:4096], E4M3FN)  # the tables
    for work in (
        lambda: encode(x, E4M3FN, out=codes),
        lambda: encode(x[::-1], E4M3FN, out=codes),
        lambda: decode(codes, E4M3FN, out=out),
    ):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


@pytest.mark.parametrize("x", [["a"], [1j], [True], [None], np.array([1], "M8[s]"), [2**70]])
def test_unusable_input(x):
    with pytest.raises(TypeError, match="expected float16, bfloat16, float32, float64 or integers"):
        encode(x, E4M3FN)


def test_bad_arguments():
    modes = ", ".join(map(repr, npfp8.ROUNDINGS))
    with pytest.raises(ValueError, match=f"^rounding: expected one of {modes}, found 'ceiling'$"):
        encode([1.0], E4M3FN, rounding="ceiling")
    others = " or ".join(map(repr, npfp8.ROUNDINGS[:-1]))
    with pytest.raises(ValueError, match=f"rounding: expected {others} for INT8, found 'stoch"):
        encode([1.0], INT8, rounding="stochastic")
    with pytest.raises(TypeError, match=r"rng: expected a numpy\.random\.Generator, found None"):
        npfp8.encode_bfloat16(np.uint16([1]), E4M3FN, rounding="stochastic")
    with pytest.raises(TypeError, match="bits: expected uint16, found float32"):
        npfp8.encode_bfloat16(np.float32([1]), E4M3FN)
    with pytest.raises(TypeError, match="E4M3FN codes: expected uint8, found int8"):
        decode(np.int8([1]), E4M3FN)
    with pytest.raises(TypeError, match="holds every value of E5M2 exactly"):
        decode(np.uint8([1]), E5M2, np.int32)
    with pytest.raises(ValueError, match=r"E2M1 codes: expected 0..15, found 16"):
        decode(np.uint8([1, 16]), E2M1)


@by_format
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 255, 1023, 1024, 1025, 65536, 65537, 200_001])
def test_decode_every_size(fmt, dtype, size):
    codes = np.resize(np.arange(fmt.values.size, dtype=np.uint8), size)
    expected = fmt.values[codes].astype(dtype)
    assert np.array_equal(decode(codes, fmt, dtype), expected, equal_nan=True)


@by_format
def test_no_codes_have_no_values(fmt):
    values = decode(np.zeros((0, 3), np.uint8), fmt)
    assert values.shape == (0, 3)
    assert values.dtype == np.float32


@by_any_format
@by_mode
def test_the_definition_of_codes(fmt, saturate):
    """Also where there is no code for a NaN, which :func:`encode` refuses."""
    codes = codes_of(np.float64([np.nan, 1.0]), fmt, saturate, "nearest")
    assert codes.dtype == np.uint8
    nan_code = (fmt.nan_code if saturate else fmt.quiet_nan_code) or 0
    assert codes.tolist() == [nan_code, exact_code(1.0, fmt, saturate)]


def test_codes_of_bits_are_bytes():
    assert npfp8.encode_bfloat16(np.uint16([0x3F80]), E4M3FN).dtype == np.uint8


# Integers


@given(st.floats(width=32, allow_nan=False))
def test_int8_is_rint_and_clip(value):
    expected = max(-127, min(127, round(value) if math.isfinite(value) else value))
    assert encode(np.float32(value), INT8) == expected


@pytest.mark.parametrize("fmt", [INT8, UINT8, E4M3FN], ids=str)
def test_bfloat16_arrays_are_their_numbers(fmt, ml_dtypes):
    """Without a table as well: to integers, and at random."""
    finite = BITS16[np.isfinite(BFLOAT16)]
    x, same = finite.view(ml_dtypes.bfloat16), from_bits(finite)
    if isinstance(fmt, FloatFormat):
        found, expected = (
            encode(y, fmt, rounding="stochastic", rng=np.random.default_rng(3)) for y in (x, same)
        )
    else:
        found, expected = encode(x, fmt), encode(same, fmt)
    assert np.array_equal(found, expected)


def test_integer_formats():
    assert encode([-1.0, 0.5, 1.5, 300.0], UINT8).tolist() == [0, 0, 2, 255]
    assert encode(np.int64([-(2**62), 5]), INT8).tolist() == [-127, 5]
    assert encode(np.uint64([2**64 - 1]), INT8).tolist() == [127]
    assert encode(np.uint8([0, 126, 255]), INT8).tolist() == [0, 126, 127]
    assert encode(np.int8([-128, -1, 127]), INT8).tolist() == [-127, -1, 127]
    assert encode(np.int8([-128, -1, 127]), UINT8).tolist() == [0, 0, 127]
    with pytest.raises(ValueError, match="found NaN, and INT8 has no code"):
        encode([np.nan], INT8)
    with pytest.raises(ValueError, match=r"outside INT8's -127\.\.127 with saturate=False$"):
        encode([128.0], INT8, saturate=False)
    assert encode([-127.0, 0.0, 127.0], INT8, saturate=False).tolist() == [-127, 0, 127]
    assert decode(np.int8([-128, 127]), INT8).tolist() == [-128, 127]


# Values as bfloat16


@pytest.mark.parametrize("fmt", [*FLOAT_FORMATS.values(), INT8, UINT8, FIXED8], ids=str)
def test_decode_to_bfloat16(fmt, ml_dtypes):
    codes = np.arange(fmt.values.size, dtype=np.uint8).view(fmt.code_dtype)
    bits = npfp8.decode_bfloat16(codes, fmt)
    values = decode(codes, fmt, ml_dtypes.bfloat16)
    assert bits.dtype == np.uint16
    assert values.dtype == ml_dtypes.bfloat16
    assert np.array_equal(values.view(np.uint16), bits)
    assert np.array_equal(values.astype(np.float64), fmt.values, equal_nan=True)
    numbers = ~np.isnan(fmt.values)
    assert np.array_equal(np.signbit(values)[numbers], np.signbit(fmt.values)[numbers])
    if isinstance(fmt, FloatFormat):  # and back
        with np.errstate(invalid="ignore"):
            again = npfp8.encode_bfloat16(bits, fmt, saturate=False)
        assert np.array_equal(again[numbers], codes[numbers])


class Subclass(np.ndarray):
    """An ndarray of another class."""


def layouts(x):
    """An array in every layout that an argument may have."""
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "C": x,
        "Fortran": np.asfortranarray(x),
        "strided": np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
        "reversed": x[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": read_only,
        "subclass": x.view(Subclass),
        "empty": x[:, :0],
        "0-d": x[1, 2, ...],
        "unaligned": np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    }


@pytest.mark.parametrize("layout", list(layouts(np.zeros((3, 4)))))
@pytest.mark.parametrize(
    "dtype", ["f2", "<f4", ">f4", ">f2", "f8", ">f8", "longdouble", "bfloat16"]
)
def test_decode_to_every_dtype(dtype, layout, ml_dtypes):
    codes = layouts(np.arange(4096, dtype=np.uint16).astype(np.uint8).reshape(64, 64))[layout]
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    expected = E4M3FN.values[codes].astype(wanted)
    found = decode(codes, E4M3FN, wanted)
    assert type(found) is np.ndarray
    assert found.dtype == wanted
    assert found.shape == codes.shape
    assert found.tobytes() == np.asarray(expected).tobytes() or np.array_equal(
        found.astype(np.float64), expected.astype(np.float64), equal_nan=True
    )
    out = np.zeros(codes.shape, wanted)
    assert decode(codes, E4M3FN, wanted, out=out) is out
    assert np.array_equal(out.astype(np.float64), expected.astype(np.float64), equal_nan=True)
    if codes.ndim == 2:
        strided = np.zeros((codes.shape[0], 2 * codes.shape[1]), wanted)
        assert decode(codes, E4M3FN, wanted, out=strided[:, ::2]).base is strided
        assert np.array_equal(
            strided[:, ::2].astype(np.float64), expected.astype(np.float64), equal_nan=True
        )


@pytest.mark.parametrize("dtype", ["i4", "u1", "?", "c8", "O", "U4", "V2", "M8[s]"])
@pytest.mark.parametrize("fmt", [E4M3FN, INT8], ids=str)
def test_decode_refuses_what_is_no_float(fmt, dtype):
    codes = np.zeros(3, fmt.code_dtype)
    with pytest.raises(TypeError, match="expected a float dtype"):
        decode(codes, fmt, dtype)


def test_decode_refuses_another_array_for_bfloat16(ml_dtypes):
    codes = np.zeros(3, np.uint8)
    with pytest.raises(TypeError, match="expected an array of bfloat16, found uint16"):
        decode(codes, E4M3FN, ml_dtypes.bfloat16, out=np.zeros(3, np.uint16))
    with pytest.raises(ValueError, match=r"expected shape \(3,\), found \(2,\)"):
        decode(codes, E4M3FN, ml_dtypes.bfloat16, out=np.zeros(2, ml_dtypes.bfloat16))
    with pytest.raises(TypeError, match="expected an array of uint16"):
        npfp8.decode_bfloat16(codes, E4M3FN, out=np.zeros(3, np.int16))
    wide = FloatFormat(1, 7, 0, signed=False)  # 8 bits with the hidden one: they fit
    assert decode(np.uint8([255]), wide, ml_dtypes.bfloat16) == wide.max
    fine = FloatFormat(0, 8, 1, signed=False)
    with np.errstate(all="ignore"):
        assert float(decode(np.uint8([255]), fine, ml_dtypes.bfloat16)[0]) == fine.max


@pytest.mark.parametrize("layout", list(layouts(np.zeros((3, 4)))))
def test_quantize_bfloat16_arrays_of_every_layout(layout, ml_dtypes):
    x = np.linspace(-3, 3, 4096, dtype=np.float32).reshape(64, 64)
    given = layouts(x.astype(ml_dtypes.bfloat16))[layout]
    q = npfp8.quantize(given, E4M3FN, 0.25)
    expected = npfp8.quantize(np.asarray(given).astype(np.float32), E4M3FN, 0.25)
    assert type(q.codes) is np.ndarray
    assert np.array_equal(q.codes, expected.codes)
    assert q.dequantize().shape == given.shape


def test_code_values_with_a_zero_point_as_any_dtype(ml_dtypes):
    q = npfp8.quantize(np.float32([-1, 0, 0.5, 3]), UINT8, 0.02, zero_point=np.uint8(51))
    expected = q.codes.astype(int) - 51
    for dtype in (np.float16, np.float32, np.float64, ">f4", ml_dtypes.bfloat16):
        assert np.array_equal(q.code_values(dtype).astype(int), expected)


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_signalling_nans_make_no_warning(dtype, rounding):
    width = np.dtype(dtype).itemsize
    bits = {2: 0x7C01, 4: 0x7F800001, 8: 0x7FF0000000000001}[width]
    x = np.full(40, bits, f"u{width}").view(dtype)
    codes = encode(x, E4M3FN, rounding=rounding, rng=np.random.default_rng(0))
    assert (codes == 0x7F).all()


def test_an_error_has_the_name_of_the_format_that_was_given():
    """Equal formats share their tables, but not their names."""
    for name in ("one", "other"):
        fmt = FloatFormat(2, 1, 1, name=name)
        for x in (np.float16([np.nan]), np.float32([np.nan])):
            with pytest.raises(ValueError, match=f"found NaN, and {name} has no code"):
                encode(x, fmt)


@by_any_format
@pytest.mark.parametrize("later", [63, 64, 70_000, 199_999])
def test_one_number_that_is_no_bfloat16_value(fmt, later):
    """bfloat16 values among float32 numbers are encoded another way, if there is nothing else."""
    x = np.resize(without_nan(BFLOAT16, fmt), 200_000)
    with np.errstate(invalid="ignore"):
        expected = codes_of(x.astype(np.float64), fmt, True, "nearest")
    assert np.array_equal(encode(x, fmt), expected)
    x[later] = np.float32(1.0625 + 2.0**-20)  # above a tie of E4M3's
    expected[later] = codes_of(np.float64(x[later]), fmt, True, "nearest")
    assert np.array_equal(encode(x, fmt), expected)
