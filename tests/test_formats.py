"""The formats against their definitions and against ml_dtypes."""

import copy
import importlib
import math
import pickle

import numpy as np
import pytest
from oracles import code_values

import npfp8
from npfp8 import (
    E2M1,
    E4M3,
    E4M3FN,
    E5M2,
    E8M0FNU,
    FIXED8,
    INT4,
    INT8,
    P3109_K8P3,
    P3109_K8P4,
    UINT4,
    UINT8,
    FloatFormat,
    IntFormat,
    describe,
)
from npfp8.bfloat16 import from_bits
from npfp8.formats import FLOAT_FORMATS
from npfp8.interop import ML_DTYPES_NAMES, from_ml_dtypes, to_ml_dtypes

FORMATS = list(FLOAT_FORMATS.values())
IN_ML_DTYPES = list(ML_DTYPES_NAMES)

#: max, smallest normal, smallest positive, finite codes: OFP8 1.0 table 1, MX 1.0 tables 1 to 3,
#: arXiv 2206.02915, ml_dtypes' documentation, arXiv 2309.14592 table 1 (E3M4 of largest value
#: 30), and P3109's value tables Binary8p3se and Binary8p4se.
PUBLISHED = {
    "E4M3FN": (448, 2**-6, 2**-9, 254),
    "E5M2": (57344, 2**-14, 2**-16, 248),
    "E4M3FNUZ": (240, 2**-7, 2**-10, 255),
    "E5M2FNUZ": (57344, 2**-15, 2**-17, 255),
    "E4M3": (240, 2**-6, 2**-9, 240),
    "E3M4": (15.5, 2**-2, 2**-6, 224),
    "E4M3B11FNUZ": (30, 2**-10, 2**-13, 255),
    "E8M0FNU": (2.0**127, 2.0**-127, 2.0**-127, 255),
    "E2M3": (7.5, 1, 2**-3, 64),
    "E3M2": (28, 2**-2, 2**-4, 64),
    "E2M1": (6, 1, 2**-1, 16),
    "E3M4FN": (30, 2**-2, 2**-6, 254),
    "P3109_K8P3": (49152, 2**-15, 2**-17, 253),
    "P3109_K8P4": (224, 2**-7, 2**-10, 253),
    "UE4M3": (448, 2**-6, 2**-9, 127),
}


def test_every_format_by_name():
    assert {name: getattr(npfp8, name) for name in npfp8.formats.FORMATS} == npfp8.formats.FORMATS
    made = {fmt.name for fmt in vars(npfp8).values() if isinstance(fmt, npfp8.Format)}
    assert (
        set(npfp8.formats.FORMATS)
        == made
        == {*(*PUBLISHED, "INT8", "UINT8", "FIXED8", "INT4", "UINT4")}
    )


def test_formats_with_a_zero_point():
    unsigned = [name for name, fmt in npfp8.formats.FORMATS.items() if fmt.has_zero_point]
    assert unsigned == ["UINT8", "UINT4"]
    assert IntFormat(0, 15, "int8").has_zero_point
    assert not INT8.has_zero_point


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_published_properties(fmt):
    found = (fmt.max, fmt.min_normal, fmt.min_positive, describe(fmt)["finite_values"])
    assert found == PUBLISHED[fmt.name]


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_values_are_those_of_the_definition(fmt):
    assert np.array_equal(fmt.values, np.array(code_values(fmt.name), float), equal_nan=True)


@pytest.mark.parametrize("fmt", IN_ML_DTYPES, ids=str)
def test_values_equal_ml_dtypes(fmt, ml_dtypes):
    codes = np.arange(fmt.values.size, dtype=np.uint8)
    theirs = codes.view(getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])).astype(np.float64)
    assert np.array_equal(npfp8.values(fmt), theirs, equal_nan=True)
    assert np.array_equal(np.signbit(fmt.values), np.signbit(theirs)) or fmt.nan_codes


@pytest.mark.parametrize("fmt", IN_ML_DTYPES, ids=str)
def test_finfo_equals_ml_dtypes(fmt, ml_dtypes):
    info = ml_dtypes.finfo(ML_DTYPES_NAMES[fmt])
    assert float(info.max) == fmt.max
    if fmt.has_zero:
        assert float(info.smallest_normal) == fmt.min_normal
        assert float(info.smallest_subnormal) == fmt.min_subnormal
    assert info.bits in (fmt.bits, 8)


def test_ml_dtypes_has_no_other_of_these_formats(ml_dtypes):
    """Those without a name there: a new release of ml_dtypes may bring them."""
    types = [getattr(ml_dtypes, name) for name in dir(ml_dtypes) if name.startswith("float")]
    floats = {np.dtype(one).name for one in types if isinstance(one, type)}
    assert floats == set(ML_DTYPES_NAMES.values())
    others = {fmt.name for fmt in FORMATS} - {fmt.name for fmt in IN_ML_DTYPES}
    assert others == {"E3M4FN", "P3109_K8P3", "P3109_K8P4", "UE4M3"}
    for name in others:
        with pytest.raises(ValueError, match=f"expected a format that ml_dtypes has, .*{name}"):
            to_ml_dtypes(np.uint8([1]), name)


def gfloats(gfloat, precision):
    """gfloat's binary8 of a precision, signed, with infinities."""
    return importlib.import_module("gfloat.formats").format_info_p3109(8, precision)


BY_P3109 = pytest.mark.parametrize(
    ("fmt", "precision"), [(P3109_K8P3, 3), (P3109_K8P4, 4)], ids=["k8p3", "k8p4"]
)


@BY_P3109
def test_p3109_values_are_gfloats(fmt, precision, gfloat):
    info = gfloats(gfloat, precision)
    theirs = [gfloat.decode_float(info, code).fval for code in range(256)]
    assert np.array_equal(fmt.values, theirs, equal_nan=True)
    assert (info.bias, info.max) == (fmt.bias, fmt.max)


@BY_P3109
@pytest.mark.parametrize("source", ["float16", "bfloat16"])
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize(
    ("rounding", "mode"),
    [("nearest", "TiesToEven"), ("nearest_away", "TiesToAway"), ("toward_zero", "TowardZero")],
)
def test_p3109_rounds_as_gfloat(fmt, precision, source, saturate, rounding, mode, gfloat):
    """Every finite number of 16 bits; infinities, which saturation leaves to the user there."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = from_bits(bits) if source == "bfloat16" else bits.view(np.float16)
    x = x[np.isfinite(x)].astype(np.float64)
    info = gfloats(gfloat, precision)
    rounded = gfloat.round_ndarray(info, x, gfloat.RoundMode[mode], saturate)
    theirs = gfloat.encode_ndarray(info, rounded)
    assert np.array_equal(npfp8.encode(x, fmt, saturate, rounding=rounding), theirs)


def test_p3109_specials():
    for fmt in (P3109_K8P3, P3109_K8P4):
        assert (fmt.infinity_code, fmt.nan_code, fmt.max_code) == (0x7F, 0x80, 0x7E)
        assert (fmt.values[0x7F], fmt.values[0xFF]) == (np.inf, -np.inf)
        assert np.isnan(fmt.values[0x80])
        assert describe(fmt)["infinity_codes"] == (0x7F, 0xFF)
        assert not fmt.has_negative_zero
        assert npfp8.encode([-0.0, -1e-30, np.nan, -np.nan], fmt).tolist() == [0, 0, 0x80, 0x80]
        assert npfp8.encode([np.inf, -np.inf, np.nan], fmt, False).tolist() == [0x7F, 0xFF, 0x80]
    # One more infinity than the FNUZ formats of the same fields and bias.
    for fmt, fnuz in ((P3109_K8P3, npfp8.E5M2FNUZ), (P3109_K8P4, npfp8.E4M3FNUZ)):
        differ = np.flatnonzero(~((fmt.values == fnuz.values) | np.isnan(fmt.values)))
        assert differ.tolist() == [0x7F, 0xFF]


def test_relatives():
    """The formats of NVFP4's scales and of arXiv 2309.14592 by others."""
    assert np.array_equal(npfp8.UE4M3.values, E4M3FN.values[:128], equal_nan=True)
    assert np.array_equal(npfp8.E3M4FN.values[:0x70], npfp8.E3M4.values[:0x70])
    assert npfp8.E3M4FN.values[0x70:0x7F].tolist() == [16.0 + i for i in range(15)]


def test_special_codes():
    assert (E4M3FN.nan_code, E4M3FN.quiet_nan_code, E4M3FN.infinity_code) == (0x7F, 0x7F, None)
    assert (E5M2.nan_code, E5M2.quiet_nan_code, E5M2.infinity_code) == (0x7F, 0x7E, 0x7C)
    assert (E4M3.nan_code, E4M3.quiet_nan_code, E4M3.infinity_code) == (0x7F, 0x7C, 0x78)
    assert (E8M0FNU.nan_code, E2M1.nan_code) == (0xFF, None)
    assert npfp8.E4M3FNUZ.nan_code == npfp8.E4M3FNUZ.quiet_nan_code == 0x80
    assert describe(E5M2)["infinity_codes"] == (0x7C, 0xFC)


def test_negative_zero():
    with_it = {fmt.name for fmt in FORMATS if fmt.has_negative_zero}
    assert with_it == {"E4M3FN", "E5M2", "E4M3", "E3M4", "E3M4FN", "E2M1", "E2M3", "E3M2"}
    assert math.copysign(1, E4M3FN.values[0x80]) == -1


def test_equality_ignores_the_name():
    same = FloatFormat(4, 3, bias=7, nan_codes=[0x7F, 0xFF], name="mine")
    assert same == E4M3FN
    assert hash(same) == hash(E4M3FN)
    assert same != E4M3
    assert str(same) == "mine"


def test_values_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        E4M3FN.values[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        E4M3FN.grid[0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 3, 15), "2 to 8 bits in all, found 1 \\+ 5 \\+ 3"),
        ((-1, 3, 15), "2 to 8 bits"),
        ((0, 3, 15, True), "expected exponent bits"),
        ((4, 3, 7, False, (0x100,)), "NaN codes of 8 bits, found \\[256\\]"),
        ((4, 3, 7, False, (0x00,)), "code 0 to be finite"),
        ((4, 3, 7, False, (0x10, 0x90)), "contiguous"),
        ((4, 3, 7, False, (0x7F,)), "alike in both signs"),
        ((4, 3, 140), "bias 140 leads out of the range"),
        ((8, 0, 140, False, (), False), "bias 140 leads out of the range"),
        ((4, 3, 7, False, (), True, True, "x", True), "infinity_on_top with has_infinity only"),
        ((4, 3, 8, True, (0x7F, 0xFF), True, True, "x", True), "infinity, found it to be a NaN's"),
    ],
)
def test_impossible_formats(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloatFormat(*arguments)


@pytest.mark.parametrize(
    ("fmt", "first"),
    [
        (FloatFormat(5, 3, 15, signed=False), [0, 2**-17, 2**-16]),
        (FloatFormat(0, 7, 0), [0, 2**-6, 2**-5]),
        (FloatFormat(1, 7, 0, signed=False), [0, 2**-6, 2**-5]),
        (FloatFormat(7, 0, 63), [0, 2.0**-62, 2.0**-61]),
        (FloatFormat(4, 4, 8, True, signed=False, infinity_on_top=True), [0, 2**-11, 2**-10]),
    ],
    ids=["UE5M3", "fixed point", "unsigned E1M7", "E7M0", "unsigned, infinity on top"],
)
def test_unusual_formats(fmt, first):
    assert fmt.values[:3].tolist() == first
    assert fmt.values.size == 1 << fmt.bits


@pytest.mark.parametrize("fmt", IN_ML_DTYPES, ids=str)
def test_views_of_ml_dtypes_share_memory(fmt, ml_dtypes):
    codes = np.arange(fmt.values.size, dtype=np.uint8)
    array = to_ml_dtypes(codes, fmt)
    assert array.dtype == getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])
    back, found = from_ml_dtypes(array)
    assert found == fmt
    assert np.shares_memory(codes, back)
    assert np.array_equal(codes, back)


def test_interop_errors(ml_dtypes):
    with pytest.raises(TypeError, match="expected an array of uint8, found int8"):
        to_ml_dtypes(np.int8([1]), E4M3FN)
    with pytest.raises(ValueError, match="custom"):
        to_ml_dtypes(np.uint8([1]), FloatFormat(3, 3, 3))
    with pytest.raises(TypeError, match="found float32"):
        from_ml_dtypes(np.float32([1]))


def test_everything_is_made_at_once():
    """Threads that share a format find the same tables, and a forked child needs no lock."""
    fmt = FloatFormat(3, 2, bias=3)
    made = set(vars(fmt))
    for name in dir(FloatFormat):
        if not name.startswith("_"):
            getattr(fmt, name)
    assert set(vars(fmt)) == made
    assert fmt.values is fmt.values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-8, 7, "int8", "x", -1), "x: expected fraction_bits of 0 to 16, found -1"),
        ((-8, 7, "int8", "x", 17), "x: expected fraction_bits of 0 to 16, found 17"),
        ((0, 7, "uint8", "x", 1), "x: expected fraction_bits with negative codes only"),
    ],
)
def test_impossible_fixed_point(arguments, message):
    with pytest.raises(ValueError, match=message):
        IntFormat(*arguments)


def test_fixed_point_is_told_apart_from_integers():
    assert FIXED8 != INT8
    assert IntFormat(-127, 127, "int8", "mine", 6) == FIXED8
    assert repr(FIXED8) == "<IntFormat FIXED8: int8 codes -127..127 / 2^6>"
    assert npfp8.values(FIXED8)[[0, 1, 127, 128, 255]].tolist() == [
        0,
        1 / 64,
        127 / 64,
        -2,
        -1 / 64,
    ]
    for clone in (copy.deepcopy(FIXED8), pickle.loads(pickle.dumps(FIXED8))):
        assert clone == FIXED8
        assert hash(clone) == hash(FIXED8)


def test_integers_have_the_bits_that_hold_their_limits():
    found = {fmt.name: fmt.bits for fmt in (INT8, UINT8, FIXED8, INT4, UINT4)}
    assert found == {"INT8": 8, "UINT8": 8, "FIXED8": 8, "INT4": 4, "UINT4": 4}
    limits = [(-2, 1), (-1, 1), (-4, 3), (-1, 100), (-128, 127), (-100, 1), (-65, 0), (-64, 0)]
    assert [IntFormat(*pair, "int8").bits for pair in limits] == [2, 2, 3, 8, 8, 8, 8, 7]
    assert [IntFormat(0, most, "uint8").bits for most in (1, 2, 3, 4, 127, 128)] == [
        1,
        2,
        2,
        3,
        7,
        8,
    ]
    assert INT4.values.tolist() == [*range(8), *range(-8, 0)]
    assert UINT4.values.tolist() == list(range(16))
    assert (INT4.code_range, UINT4.code_range, INT8.code_range) == ((-8, 7), (0, 15), (-128, 127))
    assert IntFormat(0, 5, "uint8").code_range == (0, 7)


def test_codes_of_other_bits_are_refused():
    assert npfp8.decode(np.int8([-8, -1, 0, 7]), INT4).tolist() == [-8, -1, 0, 7]
    for codes, fmt, message in (
        (np.int8([0, 8]), INT4, r"INT4 codes: expected -8\.\.7, found 8"),
        (np.int8([-9]), INT4, r"INT4 codes: expected -8\.\.7, found -9"),
        (np.uint8([16]), UINT4, r"UINT4 codes: expected 0\.\.15, found 16"),
    ):
        with pytest.raises(ValueError, match=message):
            npfp8.decode(codes, fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_formats_are_pickled_and_copied(fmt):
    for clone in (copy.copy(fmt), copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt))):
        assert clone == fmt
        assert clone.name == fmt.name
        assert np.array_equal(clone.values, fmt.values, equal_nan=True)
