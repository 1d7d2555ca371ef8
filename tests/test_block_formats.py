"""Block formats as data, and quantized tensors of them: records, errors, bytes, views, counts."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields, replace
from fractions import Fraction

import numpy as np
import pytest

import npfp8
from npfp8 import (
    BLOCK_FORMATS,
    E2M1,
    E4M3FN,
    E5M2,
    E8M0FNU,
    FIXED8,
    INT8,
    MXFP4,
    MXFP8_E4M3,
    NVFP4,
    POWER_RULES,
    RATIO_RULES,
    UINT8,
    BlockFormat,
    FloatFormat,
    QuantizedTensor,
    decode,
    encode,
    quantize,
)
from npfp8.blocks import as_block_format

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 64)).astype(np.float32)
by_format = pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=BLOCK_FORMATS)

#: element, largest value, block, scale's format, tensor scale: OCP MX 1.0, table 1; arXiv
#: 2509.25149 for NVFP4.
PUBLISHED = {
    "MXFP8_E4M3": ("E4M3FN", 448, 32, "E8M0FNU", False),
    "MXFP8_E5M2": ("E5M2", 57344, 32, "E8M0FNU", False),
    "MXFP6_E3M2": ("E3M2", 28, 32, "E8M0FNU", False),
    "MXFP6_E2M3": ("E2M3", 7.5, 32, "E8M0FNU", False),
    "MXFP4": ("E2M1", 6, 32, "E8M0FNU", False),
    "MXINT8": ("FIXED8", 127 / 64, 32, "E8M0FNU", False),
    "NVFP4": ("E2M1", 6, 16, "E4M3FN", True),
}


# Records


def test_the_formats_are_the_published_ones():
    found = {
        name: (
            fmt.element.name,
            fmt.element.max,
            fmt.block,
            fmt.scale_format.name,
            fmt.tensor_scale,
        )
        for name, fmt in BLOCK_FORMATS.items()
    }
    assert found == PUBLISHED
    assert {name: getattr(npfp8, name) for name in BLOCK_FORMATS} == BLOCK_FORMATS


@by_format
def test_equal_copied_and_pickled(fmt):
    for clone in (copy.copy(fmt), copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt))):
        assert clone == fmt
        assert hash(clone) == hash(fmt)
        assert clone.name == fmt.name
    renamed = replace(fmt, name="mine")
    assert renamed == fmt
    assert hash(renamed) == hash(fmt)
    assert str(renamed) == "mine"
    assert str(fmt) == fmt.name


def test_formats_that_differ():
    changed = {
        "element": INT8,
        "block": 16,
        "scale_format": FloatFormat(7, 0, 63, signed=False, has_zero=False),
        "rule": "rceil",
    }
    for name, value in changed.items():
        assert replace(MXFP4, **{name: value}) != MXFP4
    assert replace(NVFP4, tensor_scale=False) != NVFP4
    assert len(set(BLOCK_FORMATS.values())) == len(BLOCK_FORMATS)


@by_format
def test_frozen(fmt):
    for field in fields(fmt):
        with pytest.raises(FrozenInstanceError):
            setattr(fmt, field.name, None)


def test_reprs():
    assert repr(MXFP4) == (
        "<BlockFormat MXFP4: E2M1 in blocks of 32, scales E8M0FNU by the rule floor>"
    )
    assert repr(NVFP4) == (
        "<BlockFormat NVFP4: E2M1 in blocks of 16, scales E4M3FN, one float32 scale per tensor by "
        "the rule te>"
    )


def test_names_in_any_case():
    for name, fmt in BLOCK_FORMATS.items():
        for spelled in (name, name.lower(), name.title()):
            assert as_block_format(spelled) is fmt
            assert quantize(X, spelled).block_format == fmt
    assert as_block_format(MXFP4) is MXFP4
    made = BlockFormat("e2m1", np.int64(16), "e4m3fn", "TE", True)
    assert made == NVFP4
    assert (type(made.block), type(made.tensor_scale)) == (int, bool)
    assert made.how is RATIO_RULES["te"]
    assert MXFP4.how is POWER_RULES["floor"]


@pytest.mark.parametrize("rules", [POWER_RULES, RATIO_RULES], ids=["power", "ratio"])
def test_rules_are_a_table(rules):
    for name, rule in rules.items():
        assert rule.name == name
        assert rule.description
        for word in ("TODO", "FIXME"):
            assert word not in rule.description
    with pytest.raises(FrozenInstanceError):
        rule.name = "other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"element": UINT8}, "x: element: expected a format without a zero point, found UINT8"),
        ({"block": 0}, r"x: block: expected 1\.\.2147483647, found 0"),
        ({"block": -32}, "x: block: expected .* found -32"),
        ({"block": 2**31}, "x: block: expected .* found 2147483648"),
        ({"scale_format": "E2M1X"}, "scale_format: expected a format .*did you mean 'E2M1'"),
        ({"scale_format": FloatFormat(7, 0, 63)}, "scale_format: expected powers of two without z"),
        ({"tensor_scale": True}, "x: tensor_scale: expected False for scales E8M0FNU"),
        ({"rule": "flor"}, "rule: expected one of .* found 'flor'; did you mean 'floor'"),
        ({"rule": "modelopt2"}, "rule: expected one of"),
        ({"scale_format": E4M3FN, "rule": "floor"}, "rule: expected one of .*, found 'floor'"),
        ({"element": "e4m3"}, "element: expected 'E4M3FN' .* or 'E4M3'"),
    ],
)
def test_impossible_block_formats(arguments, message):
    given = {"element": E2M1, "block": 32, "name": "x"} | arguments
    with pytest.raises(ValueError, match=message) as caught:
        BlockFormat(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"element": 4}, "element: expected a format or its name"),
        ({"element": MXFP4}, "element: expected a format or its name"),
        ({"block": 16.0}, "block: expected an integer, found float"),
        ({"block": "16"}, "block: expected an integer, found str"),
        ({"scale_format": INT8}, "scale_format"),
        ({"scale_format": "INT8"}, "scale_format: expected a float format, found INT8"),
        ({"scale_format": None}, "scale_format: expected a format"),
        ({"tensor_scale": 1}, "tensor_scale: expected True or False, found int"),
        ({"rule": None}, "rule: expected one of"),
        ({"name": None}, "name: expected a str, found None"),
    ],
)
def test_wrong_types_in_a_block_format(arguments, message):
    with pytest.raises(TypeError, match=message):
        BlockFormat(**({"element": E2M1, "block": 32} | arguments))


@pytest.mark.parametrize("found", [None, 4, E2M1, b"MXFP4", ["MXFP4"], BlockFormat])
def test_what_is_no_block_format(found):
    with pytest.raises(TypeError, match=r"^fmt: expected a block format or its name, such as"):
        as_block_format(found)


def test_an_unknown_name_has_a_suggestion():
    with pytest.raises(ValueError, match=r"fmt: expected a block format .*mean 'MXFP4'"):
        as_block_format("MXPF4")
    for call in (
        lambda: quantize(X, "MXPF4"),
        lambda: QuantizedTensor(np.uint8([1]), 1.0, "MXPF4"),
    ):
        with pytest.raises(ValueError, match=r"fmt: .*MXFP8_E4M3.*found 'MXPF4'.*mean 'MXFP4'"):
            call()


# A user's own


OWN = BlockFormat(
    FloatFormat(3, 4, 3, name="E3M4 whole"),
    5,
    FloatFormat(5, 0, 15, nan_codes=(31,), signed=False, has_zero=False, name="E5M0"),
    name="mine",
)


def test_a_format_of_ones_own_by_its_definition():
    """Floor: the largest power of two up to the block's maximum, over that of the element."""
    x = np.float32([[1, -3, 0.5, 0, 0.01, 100, 7, -0.3], [0, 0, 0, 0, 0, 1e-9, 0, 0]])
    q = quantize(x, OWN)
    assert q.scale_codes.dtype == np.uint8
    # 3 -> 2^1, 100 -> 2^6; the element's largest power is 2^4; zeros and 1e-9 -> the smallest.
    assert q.scale_codes.tolist() == [[15 + 1 - 4, 15 + 6 - 4], [0, 0]]
    assert q.scale.tolist() == [[2.0**-3, 2.0**2], [2.0**-15, 2.0**-15]]
    scaled = x / np.repeat(q.scale, 5, axis=1)[:, :8]
    assert np.array_equal(q.codes, encode(scaled, OWN.element))
    assert repr(q) == "<QuantizedTensor (2, 8) mine, 4 blocks of 5 along axis 1>"
    huge = quantize(np.float32([1e30] * 5), OWN)
    assert huge.scale_codes.tolist() == [30]
    assert decode(huge.codes, OWN.element).tolist() == [OWN.element.max] * 5


def test_a_ratio_format_of_ones_own():
    fmt = BlockFormat(E5M2, 4, E4M3FN, "exact", name="one level")
    x = np.float32([57344 * 2, 1, 0, -8, *[57344 / 4] * 4])
    q = quantize(x, fmt)
    assert q.tensor_scale is None
    assert q.scale[0] == 2.0
    assert np.array_equal(q.dequantize()[:4], [57344 * 2, 1, 0, -8])
    assert q.dequantize()[4:].tolist() == [57344 / 4] * 4


# Quantizing: arguments


@by_format
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 100])
def test_a_short_block_is_as_if_filled_up_with_zeros(fmt, length):
    x = X.reshape(-1)[: 2 * length].reshape(2, length)
    q = quantize(x, fmt)
    count = -(-length // fmt.block)
    assert q.codes.shape == x.shape
    assert q.scale_codes.shape == q.scale.shape == (2, count)
    filled = np.zeros((2, count * fmt.block), np.float32)
    filled[:, :length] = x
    whole = quantize(filled, fmt)
    assert np.array_equal(whole.codes[:, :length], q.codes)
    assert np.array_equal(whole.scale_codes, q.scale_codes)


@by_format
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis(fmt, axis):
    x = RNG.standard_normal((3, 34, 5)).astype(np.float32)
    q = quantize(x, fmt, axis=axis)
    assert q.axis == axis % 3
    moved = quantize(np.moveaxis(x, axis, -1), fmt)
    assert np.array_equal(np.moveaxis(q.codes, axis, -1), moved.codes)
    assert np.array_equal(np.moveaxis(q.scale_codes, axis, -1), moved.scale_codes)
    assert np.array_equal(np.moveaxis(q.dequantize(), axis, -1), moved.dequantize())
    assert quantize(x, fmt).axis == 2


@by_format
@pytest.mark.parametrize("shape", [(0,), (0, 32), (4, 0), (2, 0, 3)])
def test_nothing_has_no_blocks(fmt, shape):
    q = quantize(np.zeros(shape, np.float32), fmt)
    assert q.shape == shape
    assert q.scale.size == 0
    assert q.dequantize().shape == shape
    assert q.is_finite
    assert q.lost(np.zeros(shape, np.float32)) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 2}, "axis: expected one of 2 axes, found 2"),
        ({"axis": -3}, "axis: expected one of 2 axes, found -3"),
        ({"scale": 1.0}, r"scale: expected None for MXFP4, a block format, found 1\.0"),
        ({"scale": np.ones((6, 2))}, r"scale: expected None for MXFP4, .* found shape \(6, 2\)"),
        ({"block": 32}, "block: expected None for MXFP4, a block format, found 32"),
        ({"zero_point": 0}, "zero_point: expected None for MXFP4, a block format, found 0"),
        ({"rule": "exact"}, "rule: expected one of .*'floor', .*found 'exact'"),
        ({"rule": "flor"}, "rule: expected one of .*found 'flor'; did you mean 'floor'"),
        ({"tensor_scale": 1.0}, "tensor_scale: expected None for MXFP4, found 1.0"),
        ({"fmt": "NVFP4", "rule": "floor"}, "rule: expected one of .*'te'.*found 'floor'"),
        ({"fmt": "NVFP4", "tensor_scale": [1.0]}, "tensor_scale: expected one"),
        ({"fmt": "NVFP4", "tensor_scale": -1.0}, "tensor_scale: expected one"),
        ({"fmt": "NVFP4", "tensor_scale": np.nan}, "tensor_scale: expected one"),
        ({"fmt": "NVFP4", "tensor_scale": np.inf}, "tensor_scale: expected one"),
        ({"fmt": "E4M3FN", "rule": "floor"}, "rule: expected None for E4M3FN, .*found 'floor'"),
        ({"fmt": INT8, "tensor_scale": 2.0}, "tensor_scale: expected None for INT8, .*found 2.0"),
        ({"x": np.float32(1)}, "x: expected at least one axis for blocks, found a number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        quantize(**({"x": X, "fmt": MXFP4} | arguments))
    assert "found" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 1.0}, "axis: expected an integer, found float"),
        ({"rule": 1}, "rule: expected the name of a rule, found int"),
        ({"x": ["a"]}, "x: expected"),
        ({"x": np.ones((2, 32), complex)}, "x: expected"),
        ({"fmt": None}, "fmt: expected a format or its name"),
        ({"fmt": NVFP4, "tensor_scale": "one"}, "tensor_scale: expected"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        quantize(**({"x": X, "fmt": MXFP4} | arguments))


# Tensors made of bytes


def parts(fmt, shape=(3, 64)):
    q = quantize(RNG.standard_normal(shape).astype(np.float32), fmt)
    return q, {"scale_codes": q.scale_codes, "tensor_scale": q.tensor_scale}


@by_format
def test_bytes_make_the_same_tensor(fmt):
    q, given = parts(fmt)
    for how in (fmt, fmt.name.lower()):
        made = QuantizedTensor(q.codes, None, how, **given)
        assert (made.fmt, made.block_format) == (fmt.element, fmt)
        assert (made.axis, made.block) == (1, fmt.block)
        assert made.scale.dtype == np.float32
        assert np.array_equal(made.scale, q.scale)
        assert np.array_equal(made.dequantize(), q.dequantize())
        assert repr(made) == repr(q)


@by_format
def test_dequantizing_is_code_times_scale_rounded_once(fmt):
    q, _ = parts(fmt, (3, 40))
    values, found = decode(q.codes, fmt.element, np.float64), q.dequantize()
    for i, j in np.ndindex(q.shape):
        exact = Fraction(float(values[i, j])) * Fraction(float(q.scale[i, j // fmt.block]))
        assert found[i, j] == np.float32(float(exact))  # of few bits: float64 holds it


def test_every_scale_of_mx():
    """2^-127 is a subnormal float32, and 255 a NaN."""
    codes = np.full((256, 1), 2, np.uint8)  # 1 in E2M1
    q = QuantizedTensor(codes, None, MXFP4, scale_codes=np.arange(256, dtype=np.uint8)[:, None])
    expected = [*(2.0**e for e in range(-127, 128)), np.nan]
    assert np.array_equal(q.scale[:, 0], expected, equal_nan=True)
    assert np.array_equal(q.dequantize()[:, 0], expected, equal_nan=True)
    assert not q.is_finite
    assert QuantizedTensor(codes[:255], None, MXFP4, scale_codes=q.scale_codes[:255]).is_finite


def test_values_beyond_float32_become_infinity():
    q = QuantizedTensor(np.uint8([7, 15]), None, MXFP4, scale_codes=np.uint8([254]))
    assert q.dequantize().tolist() == [np.inf, -np.inf]
    assert q.is_finite  # of codes and scales


def test_the_code_that_fixed8_never_writes_is_read():
    q = QuantizedTensor(np.int8([-128, 127]), None, "MXINT8", scale_codes=np.uint8([128]))
    assert q.dequantize().tolist() == [-4.0, 2 * 127 / 64]


@by_format
def test_bytes_are_checked(fmt):
    q, given = parts(fmt)

    def make(codes=q.codes, how=fmt, axis=None, **other):
        return QuantizedTensor(codes, None, how, axis, **(given | other))

    for bad in (given["scale_codes"][:, :1], given["scale_codes"].T, given["scale_codes"][0]):
        with pytest.raises(ValueError, match=r"scale_codes: expected shape \(3, .*found"):
            make(scale_codes=bad)
    with pytest.raises(TypeError, match="scale_codes: expected uint8, found None"):
        make(scale_codes=None)
    with pytest.raises(TypeError, match="scale_codes: expected uint8, found float32"):
        make(scale_codes=q.scale)
    with pytest.raises(TypeError, match=f"{fmt.element} codes: expected u?int8, found float32"):
        make(codes=q.dequantize())
    if getattr(fmt.element, "bits", 8) < 8:
        with pytest.raises(ValueError, match=f"{fmt.element} codes: expected 0.."):
            make(codes=q.codes + np.uint8(64))
    with pytest.raises(ValueError, match="axis: expected one of 2 axes, found 2"):
        make(axis=2)
    with pytest.raises(ValueError, match=f"zero_point: expected None for {fmt}, .*found 0"):
        make(zero_point=0)
    if fmt.tensor_scale:
        for bad in (None, np.nan, [1.0], -1.0):
            with pytest.raises(ValueError, match=r"tensor_scale: expected .*found"):
                make(tensor_scale=bad)
    else:
        with pytest.raises(ValueError, match=f"tensor_scale: expected None for {fmt}, found"):
            make(tensor_scale=1.0)


def test_other_formats_have_no_codes_of_scales():
    for name in ("scale_codes", "tensor_scale"):
        with pytest.raises(ValueError, match=f"{name}: expected None for E4M3FN, .*found"):
            QuantizedTensor(np.uint8([1]), 1.0, E4M3FN, **{name: np.uint8(1)})


def test_codes_of_scales_in_fewer_bits():
    scales = FloatFormat(3, 0, 3, signed=False, has_zero=False, name="E3M0")
    fmt = BlockFormat(E2M1, 2, scales, name="small")
    q = QuantizedTensor(np.uint8([2, 2]), None, fmt, scale_codes=np.uint8([7]))
    assert q.dequantize().tolist() == [16.0, 16.0]
    with pytest.raises(ValueError, match=r"scale_codes: expected 0\.\.7, found 8"):
        QuantizedTensor(np.uint8([2, 2]), None, fmt, scale_codes=np.uint8([8]))


# What a tensor knows


@by_format
def test_replace(fmt):
    q, _ = parts(fmt)
    same = replace(q)
    assert same.block_format == fmt
    assert np.array_equal(same.dequantize(), q.dequantize())
    zeros = replace(q, codes=np.zeros_like(q.codes))
    assert not zeros.dequantize().any()
    lowered = replace(q, scale_codes=q.scale_codes - np.uint8(8 if fmt == NVFP4 else 1))
    assert np.array_equal(lowered.dequantize(), q.dequantize() / 2)
    with pytest.raises(ValueError, match="scale_codes: expected shape"):
        replace(q, axis=0)
    with pytest.raises(ValueError, match=f"fmt: expected {fmt.element} for {fmt}, found "):
        replace(q, fmt="UINT8")
    with pytest.raises(TypeError, match="block_format: expected a block format"):
        replace(q, block_format=32)


def test_replace_with_another_block_format():
    q = quantize(X, MXFP4)
    other = replace(q, fmt=replace(MXFP4, rule="rceil"))
    assert other.block_format.rule == "rceil"
    assert np.array_equal(other.dequantize(), q.dequantize())
    with pytest.raises(ValueError, match="scale_codes: expected shape"):
        replace(q, fmt=NVFP4, tensor_scale=1.0)


@by_format
def test_mt_swaps_codes_and_scales(fmt):
    x = RNG.standard_normal((2, 5, 40)).astype(np.float32)
    for axis in (0, 1, 2):
        q = quantize(x, fmt, axis=axis)
        t = q.mT
        assert t.shape == (2, 40, 5)
        assert t.axis == {0: 0, 1: 2, 2: 1}[axis]
        assert (t.fmt, t.block, t.block_format) == (q.fmt, q.block, q.block_format)
        assert np.shares_memory(t.codes, q.codes)
        assert np.shares_memory(t.scale_codes, q.scale_codes)
        assert t.tensor_scale is q.tensor_scale
        assert np.array_equal(t.dequantize(), q.dequantize().swapaxes(1, 2))
        again = quantize(x.swapaxes(1, 2), fmt, axis=t.axis)
        assert np.array_equal(again.codes, t.codes)
        assert np.array_equal(again.scale_codes, t.scale_codes)
        back = t.mT
        assert (back.axis, back.shape) == (q.axis, q.shape)
        assert np.array_equal(replace(t).dequantize(), t.dequantize())
    with pytest.raises(ValueError, match="mT: expected at least 2 axes, found shape"):
        quantize(x[0, 0], fmt).mT  # noqa: B018


@by_format
def test_bytes_are_counted(fmt):
    q = quantize(X, fmt)
    assert q.nbytes == 6 * 64 + 6 * 64 // fmt.block + (4 if fmt.tensor_scale else 0)
    assert (q.shape, q.ndim, q.size) == ((6, 64), 2, 384)


@by_format
def test_finite(fmt):
    q, given = parts(fmt)
    assert q.is_finite
    assert q.mT.is_finite
    nan = getattr(fmt.element, "nan_code", None)
    if nan is not None:
        codes = q.codes.copy()
        codes[1, 2] = nan
        bad = QuantizedTensor(codes, None, fmt, **given)
        assert not bad.is_finite
        assert not bad.mT.is_finite
        assert np.isnan(bad.dequantize()[1, 2])
    scale_codes = q.scale_codes.copy()
    scale_codes[2, 0] = fmt.scale_format.nan_code
    bad = replace(q, scale_codes=scale_codes)
    assert not bad.is_finite
    assert np.isnan(bad.dequantize()[2, : fmt.block]).all()
    assert np.isfinite(bad.dequantize()[1]).all()


def test_lost_numbers():
    x = np.zeros((2, 32), np.float32)
    x[0, :4] = [7.9, 4, 0.1, -7.5]  # floor: scale 2, 7.9 / 2 < 6
    q = quantize(x, MXFP4)
    assert q.scale_codes[0, 0] == 127
    assert q.lost(x) == (2, 1)  # 7.9 and -7.5 are beyond 6; 0.1 became 0
    x[0, :4] = [5.9, 4, 0.1, -0.01]
    assert quantize(x, MXFP4).lost(x) == (0, 2)
    with pytest.raises(ValueError, match="x: expected shape"):
        q.lost(x[:1])


@pytest.mark.parametrize(("scale_code", "lost"), [(0, (0, 16)), (1, (8, 8)), (0x7F, (0, 8))])
def test_lost_numbers_of_a_scale_that_is_no_number(scale_code, lost):
    """A scale of 0, where all numbers underflow, of 2^-9, and of NaN: no warning."""
    q = QuantizedTensor(
        np.uint8([7, 0] * 8), None, NVFP4, scale_codes=np.uint8([scale_code]), tensor_scale=1.0
    )
    assert q.lost(np.ones(16, np.float32)) == lost


@by_format
def test_pickled_and_copied_tensors(fmt):
    q = quantize(X, fmt)
    for clone in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert clone.block_format == fmt
        assert np.array_equal(clone.dequantize(), q.dequantize())
        assert np.array_equal(clone.scale_codes, q.scale_codes)


def test_float64_and_integers_are_rounded_to_float32_first():
    x = np.arange(64).reshape(2, 32)
    for dtype in (np.int64, np.float64, np.float16, np.uint8):
        q = quantize(x.astype(dtype), MXFP8_E4M3)
        assert np.array_equal(q.codes, quantize(x.astype(np.float32), MXFP8_E4M3).codes)


def test_arrays_of_any_layout():
    for name in BLOCK_FORMATS:
        expected = quantize(X, name)
        for x in (np.asfortranarray(X), X[::-1][::-1], X.astype(">f4"), X.tolist()):
            found = quantize(x, name)
            assert np.array_equal(found.codes, expected.codes)
            assert np.array_equal(found.scale_codes, expected.scale_codes)
    before = X.copy()
    quantize(X, MXFP4)
    assert np.array_equal(before, X)


@pytest.mark.parametrize(("fmt", "rule"), [(NVFP4, "compressed-tensors"), (MXFP4, "microxcaling")])
def test_the_byte_order_of_float16_changes_nothing(fmt, rule):
    """Rules that compute in the type of the numbers know it in either order."""
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    x = (x * np.float32(2.0**-12)).astype(np.float16)
    turned = x.astype(x.dtype.newbyteorder())
    expected, found = quantize(x, fmt, rule=rule), quantize(turned, fmt, rule=rule)
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.scale_codes, expected.scale_codes)
    assert found.tensor_scale == expected.tensor_scale
    wide = quantize(x.astype(np.float32), fmt, rule=rule)
    assert not np.array_equal(wide.scale_codes, found.scale_codes)
    with pytest.raises(
        ValueError, match="expected float32 or bfloat16 for the rule torchao, found"
    ):
        quantize(turned, MXFP4, rule="torchao")


@pytest.mark.parametrize("chunk", [1, 16, 48, 500, 1 << 12])
@pytest.mark.parametrize("name", ["MXFP6_E2M3", "NVFP4"])
def test_pieces_of_any_size_make_the_same_bytes(name, chunk, monkeypatch):
    x = RNG.standard_normal((5, 70, 66)).astype(np.float32)
    layouts = [x, np.asfortranarray(x), x[:, ::2], x.swapaxes(1, 2)]
    cases = [(y, axis) for y in layouts for axis in range(3)]
    expected = [quantize(y, name, axis=axis) for y, axis in cases]
    monkeypatch.setattr("npfp8.blocks.pieces.CHUNK", chunk)
    for (y, axis), one in zip(cases, expected, strict=True):
        found = quantize(y, name, axis=axis)
        assert np.array_equal(found.codes, one.codes)
        assert np.array_equal(found.scale_codes, one.scale_codes)


@pytest.mark.parametrize("axis", [0, 1])
def test_tensors_keep_their_bytes_while_others_are_made(axis):
    """The temporaries of a thread are used again, results and those of other threads are not."""
    arrays = [RNG.standard_normal((512, 300)).astype(np.float32) for _ in range(8)]

    def parts(x):
        q = quantize(x, MXFP8_E4M3, axis=axis)
        return q.codes, q.scale_codes, q.dequantize()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(parts, arrays))
    for x, one in zip(arrays, found, strict=True):
        for part, again in zip(one, parts(x), strict=True):
            assert np.array_equal(part, again)


def test_the_largest_block():
    fmt = BlockFormat(FIXED8, 2**31 - 1, E8M0FNU)
    q = quantize(np.float32([1, 2, -1.5]), fmt)
    assert q.scale.tolist() == [2.0]
    assert q.dequantize().tolist() == [1, 2, -1.5]
