"""The formats against their definitions and against ml_dtypes."""

import math

import numpy as np
import pytest
from oracles import code_values

import npfp8
from npfp8 import E2M1, E4M3, E4M3FN, E5M2, E8M0FNU, INT8, FloatFormat, IntFormat, describe
from npfp8.formats import FLOAT_FORMATS
from npfp8.interop import ML_DTYPES_NAMES, from_ml_dtypes, to_ml_dtypes

FORMATS = list(FLOAT_FORMATS.values())

#: max, smallest normal, smallest positive, finite codes: OFP8 1.0 table 1, MX 1.0 tables 1 to 3,
#: arXiv 2206.02915 and ml_dtypes' documentation.
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
}


def test_every_format_by_name():
    assert {name: getattr(npfp8, name) for name in npfp8.formats.FORMATS} == npfp8.formats.FORMATS
    made = {fmt.name for fmt in vars(npfp8).values() if isinstance(fmt, npfp8.Format)}
    assert set(npfp8.formats.FORMATS) == made == {*PUBLISHED, "INT8", "UINT8"}


def test_formats_with_a_zero_point():
    assert [name for name, fmt in npfp8.formats.FORMATS.items() if fmt.has_zero_point] == ["UINT8"]
    assert IntFormat(0, 15, "int8").has_zero_point
    assert not INT8.has_zero_point


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_published_properties(fmt):
    found = (fmt.max, fmt.min_normal, fmt.min_positive, describe(fmt)["finite_values"])
    assert found == PUBLISHED[fmt.name]


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_values_are_those_of_the_definition(fmt):
    assert np.array_equal(fmt.values, np.array(code_values(fmt.name), float), equal_nan=True)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_values_equal_ml_dtypes(fmt, ml_dtypes):
    codes = np.arange(fmt.values.size, dtype=np.uint8)
    theirs = codes.view(getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])).astype(np.float64)
    assert np.array_equal(npfp8.values(fmt), theirs, equal_nan=True)
    assert np.array_equal(np.signbit(fmt.values), np.signbit(theirs)) or fmt.nan_codes


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_finfo_equals_ml_dtypes(fmt, ml_dtypes):
    info = ml_dtypes.finfo(ML_DTYPES_NAMES[fmt])
    assert float(info.max) == fmt.max
    if fmt.has_zero:
        assert float(info.smallest_normal) == fmt.min_normal
        assert float(info.smallest_subnormal) == fmt.min_subnormal
    assert info.bits in (fmt.bits, 8)


def test_special_codes():
    assert (E4M3FN.nan_code, E4M3FN.quiet_nan_code, E4M3FN.infinity_code) == (0x7F, 0x7F, None)
    assert (E5M2.nan_code, E5M2.quiet_nan_code, E5M2.infinity_code) == (0x7F, 0x7E, 0x7C)
    assert (E4M3.nan_code, E4M3.quiet_nan_code, E4M3.infinity_code) == (0x7F, 0x7C, 0x78)
    assert (E8M0FNU.nan_code, E2M1.nan_code) == (0xFF, None)
    assert npfp8.E4M3FNUZ.nan_code == npfp8.E4M3FNUZ.quiet_nan_code == 0x80
    assert describe(E5M2)["infinity_codes"] == (0x7C, 0xFC)


def test_negative_zero():
    with_it = {fmt.name for fmt in FORMATS if fmt.has_negative_zero}
    assert with_it == {"E4M3FN", "E5M2", "E4M3", "E3M4", "E2M1", "E2M3", "E3M2"}
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
    ],
    ids=["UE5M3", "fixed point", "unsigned E1M7", "E7M0"],
)
def test_unusual_formats(fmt, first):
    assert fmt.values[:3].tolist() == first
    assert fmt.values.size == 1 << fmt.bits


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
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
