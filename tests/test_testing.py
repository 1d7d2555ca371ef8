"""npfp8.testing, used as by a user: right codecs pass, and each usual mistake is caught."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npfp8 import E2M1, E4M3FN, E5M2, P3109_K8P3, P3109_K8P4, decode, encode, testing
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FLOAT_FORMATS
from npfp8.interop import ML_DTYPES_NAMES
from npfp8.vectors import boundary_inputs

FORMATS = list(FLOAT_FORMATS.values())
by_format = pytest.mark.parametrize("fmt", FORMATS, ids=str)
ofp8 = pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)


@by_format
def test_our_own_codec_passes(fmt):
    testing.check_encoder(lambda x: encode(x, fmt), fmt)
    testing.check_encoder(lambda x: encode(x, fmt, False), fmt, saturate=False)
    testing.check_decoder(lambda codes: decode(codes, fmt), fmt)


@pytest.mark.parametrize("fmt", ML_DTYPES_NAMES, ids=str)
def test_ml_dtypes_passes(fmt, ml_dtypes):
    dtype = getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])
    testing.check_decoder(lambda codes: codes.view(dtype).astype(np.float32), fmt)
    if fmt.has_zero:  # ml_dtypes rounds what is between 2^-127 and 2^-126 up in E8M0FNU
        with np.errstate(all="ignore"):
            testing.check_encoder(lambda x: x.astype(dtype).view(np.uint8), fmt, saturate=False)


@ofp8
def test_torch_passes(fmt, torch):
    dtype = getattr(torch, ML_DTYPES_NAMES[fmt])

    def torch_encode(x):
        clamped = torch.from_numpy(x).clamp(-fmt.max, fmt.max)
        return clamped.to(dtype).view(torch.uint8).numpy()

    testing.check_encoder(torch_encode, fmt)
    testing.check_decoder(lambda c: torch.from_numpy(c).view(dtype).float().numpy(), fmt)


@pytest.mark.parametrize(
    ("fmt", "name"),
    [
        *((E4M3FN, "ocp_e4m3"), (E5M2, "ocp_e5m2"), (E2M1, "ocp_e2m1")),
        *((P3109_K8P3, "p3109_k8p3se"), (P3109_K8P4, "p3109_k8p4se")),
    ],
    ids=str,
)
def test_gfloat_passes(fmt, name, gfloat):
    formats = importlib.import_module("gfloat.formats")
    if name.startswith("p3109"):
        info = formats.format_info_p3109(8, int(name[-3]))
    else:
        info = getattr(formats, f"format_info_{name}")

    def gfloat_encode(x):
        rounded = gfloat.round_ndarray(info, x.astype(np.float64), sat=True)
        return gfloat.encode_ndarray(info, rounded).astype(np.uint8)

    with np.errstate(all="ignore"):
        testing.check_encoder(gfloat_encode, fmt)
    testing.check_decoder(lambda codes: gfloat.decode_ndarray(info, codes.astype(np.int64)), fmt)


def with_sign(code, x, fmt):
    return (code | np.where(np.signbit(x), fmt.sign_bit, 0)).astype(np.uint8)


def ties_away(x, fmt):
    midpoints = (fmt.grid[:-1] + fmt.grid[1:]) / 2
    code = np.minimum(np.searchsorted(midpoints, np.abs(x), side="right"), fmt.max_code)
    return np.where(np.isnan(x), fmt.nan_code, with_sign(code, x, fmt)).astype(np.uint8)


def flushed(x, fmt):
    return np.where(np.abs(x) < fmt.min_normal, encode(x * 0, fmt), encode(x, fmt))


def early(x, fmt):
    with np.errstate(invalid="ignore"):
        return encode(np.clip(x, -fmt.max / 2, fmt.max / 2), fmt)


def through_float16(x, fmt):
    with np.errstate(all="ignore"):
        return encode(x.astype(np.float16), fmt)


DEFECTS = {
    "truncation": lambda x, fmt: encode(x, fmt, rounding="toward_zero"),
    "ties rounded away from zero": ties_away,
    "subnormals flushed to zero": flushed,
    "overflow that does not saturate": lambda x, fmt: encode(x, fmt, False),
    "double rounding through bfloat16": lambda x, fmt: encode(round_to_bfloat16(x), fmt),
    "double rounding through float16": through_float16,
    "saturation too early": early,
    "NaN lost": lambda x, fmt: encode(np.where(np.isnan(x), 0, x), fmt),
    "sign of zero lost": lambda x, fmt: np.where(x == 0, 0, encode(x, fmt)).astype(np.uint8),
    "infinity as NaN": lambda x, fmt: np.where(np.isinf(x), 0x7F, encode(x, fmt)).astype(np.uint8),
    "one code off": lambda x, fmt: encode(x, fmt) ^ (x == np.float32(fmt.grid[9])),
}  # fmt: skip
NAMED = {name: name for name in list(DEFECTS)[:6]} | {
    "saturation too early": "saturation at too small a value",
    "NaN lost": "NaN encoded as zero",
    "sign of zero lost": "-0 encoded as 0",
    "infinity as NaN": "infinity encoded as NaN",
}


@ofp8
@pytest.mark.parametrize("defect", DEFECTS)
@np.errstate(all="ignore")
def test_planted_defects_are_caught(fmt, defect):
    with pytest.raises(AssertionError, match=f"{fmt} encoder: .* expected 0x.*found 0x") as error:
        testing.check_encoder(lambda x: DEFECTS[defect](x, fmt), fmt)
    named = str(error.value).partition("It looks like ")[2]
    assert named == NAMED.get(defect, "")


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f not in (E4M3FN, E5M2)], ids=str)
@pytest.mark.parametrize("defect", ["truncation", "double rounding through bfloat16"])
def test_planted_defects_in_other_formats(fmt, defect):
    with pytest.raises(AssertionError, match=f"It looks like {defect}"):
        testing.check_encoder(lambda x: DEFECTS[defect](x, fmt), fmt)


def test_saturation_where_there_should_be_none():
    with pytest.raises(AssertionError, match="It looks like overflow that saturates"):
        testing.check_encoder(lambda x: encode(x, E5M2), E5M2, saturate=False)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda x: encode(x, E4M3FN).astype(np.int64), "expected uint8"),
        (lambda x: encode(x, E4M3FN)[1:], "of shape"),
    ],
)
def test_results_of_another_kind(encoder, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_encoder(encoder, E4M3FN)


def test_codes_too_wide():
    fmt = FLOAT_FORMATS["E2M1"]
    with pytest.raises(AssertionError, match="more than 4 bits"):
        testing.check_encoder(lambda x: encode(x, fmt) | np.uint8(0x10), fmt)


DECODER_DEFECTS = {
    "bias": lambda codes, fmt: decode(codes, fmt) * 2,
    "sign of zero": lambda codes, fmt: decode(codes, fmt) + np.float32(0),
    "no NaN": lambda codes, fmt: np.nan_to_num(decode(codes, fmt), posinf=np.inf, neginf=-np.inf),
    "shape": lambda codes, fmt: decode(codes, fmt)[:-1],
    "subnormals": lambda codes, fmt: np.where(
        np.abs(decode(codes, fmt)) < fmt.min_normal, 0, decode(codes, fmt)
    ),
}


@ofp8
@pytest.mark.parametrize("defect", DECODER_DEFECTS)
def test_planted_decoder_defects_are_caught(fmt, defect):
    with pytest.raises(AssertionError, match=f"{fmt} decoder: "):
        testing.check_decoder(lambda codes: DECODER_DEFECTS[defect](codes, fmt), fmt)


@by_format
@given(st.data())
def test_strategies_keep_their_word(fmt, data):
    assert 0 <= data.draw(testing.codes(fmt)) < fmt.values.size
    assert data.draw(testing.finite_values(fmt)) in fmt.values
    boundary = data.draw(testing.boundary_values(fmt))
    assert np.float32(boundary) == boundary or np.isnan(boundary)
    array = data.draw(testing.arrays_near_boundaries(fmt, (2, 3)))
    assert (array.shape, array.dtype) == ((2, 3), np.float32)


@ofp8
def test_edge_cases_hold_every_boundary_and_its_neighbours(fmt):
    edges = set(testing.edge_cases(fmt).tolist())
    midpoints = ((fmt.grid[:-1] + fmt.grid[1:]) / 2).astype(np.float32)
    thresholds = (fmt.max * (1 + np.array([1, 2, 4]) / 32)).astype(np.float32)
    for boundary in (fmt.grid.astype(np.float32), midpoints, thresholds):
        for x in (boundary, np.nextafter(boundary, np.float32(np.inf)), -boundary):
            assert set(x.tolist()) <= edges
    for part in range(8):
        eighths = (fmt.grid[:-1] + np.diff(fmt.grid) * part / 8).astype(np.float32)
        assert set(eighths.tolist()) | set((-eighths).tolist()) <= edges


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_edge_cases_hold_all_that_the_test_vectors_do(fmt):
    bits = boundary_inputs(fmt, "float32")
    numbers = bits[bits & 0x7FFFFFFF <= 0x7F800000]
    assert set(numbers.tolist()) <= set(testing.edge_cases(fmt).view(np.uint32).tolist())
