"""How each party quantizes to scales that are powers of two, to the last byte.

Parties compute in floats. Where one takes a logarithm, the float32 logarithm of a number a few
last bits from a power of two is that of the power, and so are its floor and ceiling. Where one
computes in the type of its input, a bfloat16 logarithm has 8 bits. Parties also differ in what
they make of a NaN, an infinity and a block of zeros, and some use another factor for tiny
blocks than their stored scale says.

What depends on the processor (the sign of a NaN that a processor makes, a NaN cast to an
integer) is as on x86-64, and on NVIDIA's GPUs for kernels.

Sources: pytorch/ao 0.18 (``prototype/mx_formats/mx_tensor.py``, ``custom_fp_utils.py``);
vllm-project/compressed-tensors 0.20 (``quantization/utils/mxfp_utils.py``, ``helpers.py``,
``compressors/mx_utils.py``); microsoft/microxcaling (``mx/mx_ops.py``, ``mx/elemwise_ops.py``);
NVIDIA/Model-Optimizer 0.47 (``qtensor/mxfp4_tensor.py``, ``mxfp8_tensor.py``); AMD Quark 0.13
(``torch/quantization/utils.py``, ``torch/utils/numerics.py``, ``kernel/hw_emulation``);
vllm-project/vllm (``csrc/quantization/fp4/nvfp4_utils.cuh``, ``mxfp4_experts_quant.cu``,
``layers/quantization/utils/mxfp8_utils.py``); NVIDIA/TransformerEngine
(``common/util/ptx.cuh``); triton-lang/triton (``triton_kernels/numerics_details``); graphcore
gfloat 0.5.2 (``block.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.blocks.exponents import (
    Blocks,
    PowerRule,
    emax_of,
    mantissa_bits_of,
    reciprocals,
)
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E5M2,
    FIXED8,
    FloatFormat,
    Format,
)

__all__ = ["PARTY_RULES"]

_FP8 = (E4M3FN, E5M2)
_FLOATS = (E4M3FN, E5M2, E2M3, E3M2, E2M1)
_NAN = np.float32(np.nan)

#: From an amax to codes and factors; the scales' format is E8M0FNU.
_Party = Callable[[Float32Array, Format, str], Blocks]


def _party(
    name: str, blocks: _Party, description: str, elements: tuple[Format, ...], **fields: Any
) -> PowerRule:
    def checked(
        amax: Float32Array, element: Format, scale_format: FloatFormat, source: str
    ) -> Blocks:
        return blocks(amax, element, source)

    return PowerRule(name, checked, description, elements=elements, **fields)


def _factors(codes: Array, **others: float) -> Float32Array:
    """Return 2^(127 - code), NaN for 255; others as ``_0=`` of code 0 and so on."""
    table = ((254 - np.arange(256)) << 23).astype(np.uint32).view(np.float32)
    table[254], table[255] = np.uint32(1 << 22).view(np.float32), _NAN
    for name, factor in others.items():
        table[int(name[1:])] = factor
    found: Float32Array = table[codes]
    return found


def _in_type(x: Array, source: str) -> Float32Array:
    """Round float32 numbers to the type of the input."""
    if source == "bfloat16":
        return round_to_bfloat16(x)
    return x.astype(np.float16).astype(np.float32) if source == "float16" else x


def _log2(x: Float32Array, source: str = "float32") -> Float32Array:
    """Return the logarithm, rounded to float32, and from there to the type of the input.

    float64's decides all floors and ceilings: of the numbers beside a power of two, none has a
    logarithm that is within 1e-10 of where rounding to float32 changes.
    """
    return _in_type(np.log2(x.astype(np.float64)).astype(np.float32), source)


def _codes_of_exponents(exponents: Array) -> npt.NDArray[np.uint8]:
    """Return the codes of whole exponents that are floats; of a NaN, 0: as x86 casts it."""
    codes = np.clip(np.where(np.isnan(exponents), np.float32(-127), exponents) + 127, 0, 255)
    return codes.astype(np.uint8)


def _signs(x: Float32Array) -> npt.NDArray[np.uint8]:
    """Return the sign bits of numbers as 0x80, also of a NaN; of 0 times infinity as x86."""
    bits = np.where(np.isnan(x), x.view(np.uint32), np.uint32(0x80000000))
    return (bits >> np.uint32(24)).astype(np.uint8) & np.uint8(0x80)


def _signed_nan(x: Float32Array, element: Format, source: str) -> Array:
    """Return FP8's NaN with all magnitude bits set, and the sign."""
    return np.uint8(0x7F) | _signs(x)


def _nan(x: Float32Array, element: Format, source: str, *, code: int) -> Array:
    return np.full(x.shape, code, element.code_dtype)


# torchao ---------------------------------------------------------------------------------------


def _torchao(
    amax: Float32Array, element: Format, source: str, *, half: bool = False, up: bool = False
) -> Blocks:
    bits = amax.view(np.int32)
    nan = np.isnan(amax)
    if half:
        bits = np.where(nan, bits, bits + (1 << (22 - mantissa_bits_of(element))))
    fields = (bits >> 23) + (up & ((bits & 0x7FFFFF) > 0))
    codes = np.clip(fields - emax_of(element), 0, 255).astype(np.uint8)
    codes[nan] = 255
    # The scale is at least 2^-126; that of code 255 is an infinity.
    return Blocks(codes, _factors(codes, _0=2.0**126, _255=0.0))


def _torchao_rceil(amax: Float32Array, element: Format, source: str) -> Blocks:
    descale = amax / np.float32(element.max)
    codes = _codes_of_exponents(np.clip(np.ceil(_log2(descale)), -127, 127))
    codes[np.isnan(descale)] = 255
    return Blocks(codes, _factors(codes, _0=1.0))


def _torchao_nan(x: Float32Array, element: Format, source: str) -> Array:
    """Return FP8's NaN; in FP4 and FP6, where the bits of a NaN are rounded as a number's are."""
    assert isinstance(element, FloatFormat)
    if element in _FP8:
        return _signed_nan(x, element, source)
    bits = np.where(np.isnan(x), x.view(np.int32) & 0x7FFFFFFF | 0x400000, 0x7FC00000)
    cut = 23 - element.mantissa_bits
    bits = bits + ((bits >> cut) & 1) + ((element.bias - 127) << 23) + (1 << (cut - 1)) - 1
    signs = _signs(x) >> np.uint8(8 - element.bits)
    return (bits >> cut).astype(np.uint8) | signs


def _torchao_rceil_nan(x: Float32Array, element: Format, source: str) -> Array:
    """Return what torchao makes of a NaN whose sign and payload are lost."""
    return _torchao_nan(np.full(x.shape, _NAN), element, source)


# compressed-tensors ----------------------------------------------------------------------------


def _compressed_tensors(amax: Float32Array, element: Format, source: str) -> Blocks:
    if np.isnan(amax).any():
        raise ValueError(
            "x: expected no NaN for the rule compressed-tensors, found nan; what its code makes of "
            "a NaN depends on where it lies"
        )
    bits = amax.view(np.int32)
    kept = 3 if element == E2M3 else 1  # of E4M3 as of E2M1
    if source == "float16":
        half = amax.astype(np.float16).view(np.int16).astype(np.int32)
        fields = ((half + (1 << (9 - kept))) & 0x7FFF) >> 10
        fields = np.where(fields == 31, 255, np.where(fields == 0, 0, fields + 112))
    else:
        fields = (bits + (1 << (22 - kept))) >> 23
    found = np.clip(np.where(fields == 0, 0, fields - emax_of(element)), 0, 255)
    found = np.where(fields == 255, 255, found)
    # The scale is a number of the input's type: float16 has none below 2^-24, where it is 1.
    if source == "float16":
        found = np.where(found < 127 - 24, 127, found)
    factors = _factors(found, _255=0.0)
    # The code is taken from the scale; of an infinity it is that of 1.
    return Blocks(np.where(found == 255, 127, found).astype(np.uint8), factors)


def _compressed_tensors_nan(x: Float32Array, element: Format, source: str) -> Array:
    """Return what becomes of an infinity, whose scale is infinite, so that it is NaN."""
    bfloat16 = source == "bfloat16"
    codes: dict[Format, int] = {
        E2M1: 8 if bfloat16 else 0,
        E2M3: 0x20,
        E4M3FN: 0x7F if bfloat16 else 0xFF,
    }
    return _nan(x, element, source, code=codes[element])


# microxcaling ----------------------------------------------------------------------------------


def _microxcaling(amax: Float32Array, element: Format, source: str) -> Blocks:
    smallest = np.float32(0 if source == "float16" else 2.0**-126)  # as the type has it
    exponents = np.floor(_log2(np.where(amax == 0, smallest, amax), source))
    exponents = _in_type(exponents - np.float32(emax_of(element)), source)
    exponents = np.where(exponents > 127, _NAN, np.maximum(exponents, -127))
    if source == "float16":  # its powers end at 2^-24 and 2^15: the scale is 0 or infinite
        exponents = np.where((exponents < -24) | (exponents > 15), _NAN, exponents)
    codes = np.where(np.isnan(exponents), 255, exponents + 127).astype(np.uint8)
    return Blocks(codes, _factors(codes, _255=0.0))


def _microxcaling_elements(
    x: Float32Array, element: Format, source: str, *, rounding: str
) -> Float32Array:
    """Round to the element's values as microxcaling does, in the input's type."""
    x = _in_type(x, source)
    magnitude = np.abs(x)
    if isinstance(element, FloatFormat):
        bits = element.mantissa_bits
        exponents = np.floor(_log2(np.where(magnitude == 0, np.float32(1), magnitude), source))
        # 2^16 is infinite in float16, and its multiples NaN.
        steps = _in_type(np.exp2(np.maximum(exponents, np.float32(1 - element.bias))), source)
    else:
        bits, steps = mantissa_bits_of(element), np.float32(1)
    lifted = _in_type(magnitude / steps, source) * np.float32(1 << bits)
    if rounding == "floor":
        whole = np.floor(lifted)
    else:
        whole = np.floor(_in_type(lifted + np.float32(0.5), source))
    if rounding == "even":
        whole = whole - (np.mod(_in_type(lifted - np.float32(0.5), source), 2) == 0)
    whole = _in_type(whole, source)
    values = np.minimum(whole / np.float32(1 << bits) * steps, np.float32(element.max))
    return np.where(x < 0, -values, values).astype(np.float32)


# ModelOpt --------------------------------------------------------------------------------------


def _modelopt(amax: Float32Array, element: Format, source: str) -> Blocks:
    descale = amax / np.float32(element.max)
    exponents = np.ceil(np.maximum(_log2(descale), np.float32(-127)))
    if element == E2M1:
        # The factor of a NaN or an infinity makes NaN and 0 of all, which have the code of -0.
        codes = _codes_of_exponents(np.where(np.isinf(exponents), _NAN, exponents))
        return Blocks(codes, np.where(np.isfinite(amax), _factors(codes), np.float32(0)))
    codes = _codes_of_exponents(np.minimum(exponents, np.float32(127)))
    return Blocks(codes, _factors(codes))


def _modelopt_nan(x: Float32Array, element: Format, source: str) -> Array:
    if element == E2M1:
        return _nan(x, element, source, code=8)
    return _signed_nan(x, element, source)


# AMD Quark -------------------------------------------------------------------------------------


def _quark_scale(exponents: Array) -> Blocks:
    """Return the codes, which are at least 1, and the reciprocals of scales that may be smaller."""
    return Blocks(np.clip(exponents + 127, 1, 254).astype(np.uint8), reciprocals(exponents))


def _quark(amax: Float32Array, element: Format, source: str) -> Blocks:
    fields = (amax.view(np.int32) + (1 << (22 - mantissa_bits_of(element)))) >> 23
    exponents = np.where(amax == 0, 1, fields) - 127 - emax_of(element)
    exponents = np.where(fields == 255, 127, exponents)  # rounded up to an infinity
    return _quark_scale(np.clip(exponents, -127, 127))


def _quark_log(
    amax: Float32Array, element: Format, source: str, *, rounding: Callable[[Array], Array]
) -> Blocks:
    exponents = _in_type(rounding(_log2(amax, source)) - np.float32(emax_of(element)), source)
    smallest = {"float32": -149, "float16": -24, "bfloat16": -133}[source]
    exponents = np.where(exponents < smallest, np.float32(-23), exponents)  # a scale of 0
    return _quark_scale(exponents.astype(np.int32))


def _quark_elements(x: Array, element: Format, source: str) -> Array:
    """Make what becomes 0 a positive 0, in FP4 and FP6."""
    if element in _FP8:
        return x
    assert isinstance(element, FloatFormat)
    zero = x.dtype.type(0)
    return np.where(np.abs(x) <= element.min_subnormal / 2, zero, x)


# vLLM ------------------------------------------------------------------------------------------


def _vllm(amax: Float32Array, element: Format, source: str) -> Blocks:
    if element == E2M1:
        # rcp.approx(6) is 1/6 rounded to nearest, and exact for powers of two (run on an H200).
        scale = amax * np.float32(1 / 6)
        codes = ((scale.view(np.int32) >> 23) & 255).astype(np.uint8)
        return Blocks(codes, _factors(codes, _0=0.0, _255=0.0))
    exponents = np.floor(_log2(np.maximum(amax, np.finfo(np.float32).tiny)))
    exponents = np.clip(exponents, -127, 127)
    codes = _codes_of_exponents(exponents)
    return Blocks(codes, np.where(np.isnan(amax), _NAN, _factors(codes)))


def _nvidia_nan(x: Float32Array, element: Format, source: str) -> Array:
    """Return what NVIDIA's conversions make of a NaN: FP8's NaN, FP4's largest value."""
    return _nan(x, element, source, code=7 if element == E2M1 else 0x7F)


# TransformerEngine -----------------------------------------------------------------------------


def _te(amax: Float32Array, element: Format, source: str) -> Blocks:
    amax = np.where(np.isnan(amax), np.float32(0), amax)
    scale = amax * np.float32(1 / element.max)
    bits = scale.view(np.int32)
    fields, mantissas = bits >> 23, bits & 0x7FFFFF
    up = (mantissas > 0) & (fields != 254) & ((fields > 0) | (mantissas > 0x400000))
    codes = np.where(np.isinf(scale), 254, fields + up).astype(np.uint8)
    return Blocks(codes, _factors(codes, _0=1.0))


# Triton ----------------------------------------------------------------------------------------


def _triton(amax: Float32Array, element: Format, source: str, *, up: bool) -> Blocks:
    largest = element.max if up else 2.0 ** emax_of(element)
    bits = (amax / np.float32(largest)).view(np.uint32)
    # The bits of a NaN overflow to 0 where rounded up, and are an infinity's where not.
    nan = np.uint32(0 if up else 0x7F800000)
    bits = np.where(np.isnan(amax), nan, bits + np.uint32(0x7FFFFF if up else 0))
    codes = ((bits >> np.uint32(23)) & np.uint32(255)).astype(np.uint8)
    return Blocks(codes, _factors(codes, _0=0.0, _255=0.0))


# gfloat ----------------------------------------------------------------------------------------


def _gfloat(amax: Float32Array, element: Format, source: str) -> Blocks:
    if np.isnan(amax).any() and element not in _FP8:
        raise ValueError(f"x: expected no NaN for the rule gfloat with elements {element}")
    exponents = np.clip(np.floor(_log2(amax)) - np.float32(emax_of(element)), -127, 127)
    codes = _codes_of_exponents(exponents)
    codes[np.isnan(amax)] = 255
    return Blocks(codes, _factors(codes))


def _fp4_zero(element: Format, *, code: int) -> int | None:
    return code if element == E2M1 else None


_TORCHAO: dict[str, Any] = {
    "elements": _FLOATS,
    "sources": ("float32", "bfloat16"),
    "nan": _torchao_nan,
}
_QUARK: dict[str, Any] = {"elements": _FLOATS, "quantize": _quark_elements}
_TRITON: dict[str, Any] = {"elements": (*_FP8, E2M1), "nan": _nvidia_nan, "skips_nan": True}


def _microxcaling_rule(name: str, rounding: str, ties: str) -> PowerRule:
    return _party(
        name,
        _microxcaling,
        f"microxcaling with round={rounding!r}: {ties}; logarithms and sums in the input's type; "
        "a block with a NaN or an infinity is NaN",
        elements=(*_FLOATS, FIXED8),
        nan=partial(_nan, code=0),
        quantize=partial(_microxcaling_elements, rounding=rounding),
    )


#: The rules of the parties.
PARTY_RULES = (
    _party(
        "torchao",
        _torchao,
        "torchao's default, ScaleCalculationMode.FLOOR: floor; a block with a NaN has code 255 "
        "and zeros; the factor of code 0 is 2^126",
        **_TORCHAO,
    ),
    _party(
        "torchao-rceil",
        _torchao_rceil,
        "torchao's RCEIL: ceil of the float32 log2(a / M); a block of code 0 is not scaled",
        **{**_TORCHAO, "nan": _torchao_rceil_nan},
    ),
    _party(
        "torchao-ceil",
        partial(_torchao, up=True),
        "torchao's CEIL: ceil; the rest as torchao",
        **_TORCHAO,
    ),
    _party(
        "torchao-even",
        partial(_torchao, half=True),
        "torchao's EVEN: even; the rest as torchao",
        **_TORCHAO,
    ),
    _party(
        "compressed-tensors",
        _compressed_tensors,
        "compressed-tensors, llm-compressor: even, with one mantissa bit for E4M3 as for E2M1",
        elements=(E4M3FN, E2M3, E2M1),
        nan=_compressed_tensors_nan,
        zero=partial(_fp4_zero, code=0),
        one_type=True,
    ),
    _microxcaling_rule("microxcaling", "nearest", "floor, ties away from zero"),
    _microxcaling_rule("microxcaling-even", "even", "floor, ties to even"),
    _microxcaling_rule("microxcaling-floor", "floor", "floor, elements toward zero"),
    _party(
        "modelopt",
        _modelopt,
        "Model-Optimizer: ceil of the float32 log2(a / M); E2M1: ties toward zero, and 0 is 0x8",
        elements=(E4M3FN, E2M1),
        nan=_modelopt_nan,
        zero=partial(_fp4_zero, code=8),
        roundings={E2M1: "nearest_toward_zero"},
    ),
    _party(
        "quark",
        _quark,
        "AMD Quark's default: even; the code of a scale is at least 1; FP4 and FP6 without -0",
        **_QUARK,
    ),
    _party(
        "quark-floor",
        partial(_quark_log, rounding=np.floor),
        "Quark's floor, in the logarithms of the input's type; a block of zeros has scale 2^-23",
        **_QUARK,
    ),
    _party(
        "quark-ceil",
        partial(_quark_log, rounding=np.ceil),
        "Quark's ceil, in the logarithms of the input's type; a block of zeros has scale 2^-23",
        **_QUARK,
    ),
    _party(
        "vllm",
        _vllm,
        "vLLM: E2M1 by trunc in float32 (mxfp4_experts_quant); E4M3 by floor(log2 a), with no "
        "emax: elements of magnitude 1 to 2 (_mxfp8_e4m3_quantize_torch)",
        elements=(E4M3FN, E2M1),
        nan=_nvidia_nan,
        skips_nan=True,
    ),
    _party(
        "te",
        _te,
        "TransformerEngine: rceil of a * float32(1 / M); a block of code 0 is not scaled",
        elements=_FP8,
        nan=_nvidia_nan,
        skips_nan=True,
    ),
    _party(
        "triton",
        partial(_triton, up=True),
        "Triton's ROUND_UP: rceil of a / M in float32; a block of code 0 or 255 becomes zeros",
        **_TRITON,
    ),
    _party(
        "triton-floor",
        partial(_triton, up=False),
        "Triton's ROUND_DOWN: floor; a block of code 0 or 255 becomes zeros",
        **_TRITON,
    ),
    _party(
        "gfloat",
        _gfloat,
        "gfloat's compute_scale_amax: floor in float32 logarithms; a block with a NaN is NaN",
        elements=_FLOATS,
        sources=("float32",),
        nan=partial(_nan, code=0xFF),
    ),
)
