"""Plant faults in small backends and note what each of the three instruments says of them.

    python scripts/plant_faults.py                           # the table, as Markdown
    python scripts/plant_faults.py --check docs/planted-faults.md
    python scripts/plant_faults.py --write docs/planted-faults.md
    python scripts/plant_faults.py --only softmax --verbose

The faults are written as an outsider would write them: in C (examples/faults, compiled with
gcc), in NumPy without this package's functions, or in torch. Each one makes results, which
the instruments judge as they come: `npfp8.testing.check_encoder`, `bert-numpy golden
check-vectors` and `bert-numpy golden verify`. A fault counts as named only if the cause
that an instrument prints says what was planted. The exit code is 1 if a fault is not
found, or if the page differs from the table. Without gcc or torch, the rows in C or torch are
left as the page has them.
"""

import argparse
import atexit
import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoints.hub import kit_folder
from bert_numpy.commands.main import main as bert_numpy_command
from bert_numpy.kit import open_kit
from npfp8.storage import load_file

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "examples" / "faults"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


# What the backends below need to know of the formats, from their definitions


def values_of(exponent_bits: int, mantissa_bits: int, bias: int) -> Array:
    """Return the values of a format's positive codes, ascending, without special values."""
    codes = np.arange(1 << (exponent_bits + mantissa_bits))
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    significand = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    return significand * 2.0 ** (np.maximum(exponent, 1) - bias - mantissa_bits)


E4M3 = values_of(4, 3, 7)[:0x7F]
E2M1 = values_of(2, 1, 1)


def encoded(x: Array, values: Array = E4M3, sign: int = 0x80, nan: int = 0x7F) -> Array:
    """Encode to nearest, ties to the even code, saturating."""
    magnitude = np.abs(np.where(np.isnan(x), 0, x)).astype(np.float64)
    below = np.clip(np.searchsorted(values, magnitude, "right") - 1, 0, values.size - 1)
    above = np.minimum(below + 1, values.size - 1)
    middle = (values[below] + values[above]) / 2
    up = (magnitude > middle) | ((magnitude == middle) & (below % 2 == 1))
    codes = np.where(up, above, below) | np.where(np.signbit(x), sign, 0)
    return np.where(np.isnan(x), nan, codes).astype(np.uint8)


def decoded(codes: Array, values: Array = E4M3) -> Array:
    """Decode codes whose sign is the bit above the largest code's."""
    sign = 8 if values is E2M1 else 0x80
    padded = np.append(values, np.full(sign - values.size, np.nan))
    magnitude = padded[codes & (sign - 1)]
    return np.where(codes & sign, -magnitude, magnitude)


def bfloat16(x: Array) -> Array:
    """Round float32 numbers to bfloat16, to nearest even; they stay float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))


def float32(x: Array) -> Array:
    return np.asarray(x, np.float32)


# The tools and the kit


@cache
def kit() -> Any:
    """Open the kit that comes with the package."""
    return open_kit()


def inputs(name: str) -> dict[str, Array]:
    """Return the inputs of a tensor of the kit by their roles."""
    return dict(kit().inputs(name))


@cache
def program(name: str) -> str:
    """Compile a C program of examples/faults."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = ["gcc", "-O2", "-o", str(folder / name), str(SOURCES / f"{name}.c"), "-lm"]
    subprocess.run(command, check=True)
    return str(folder / name)


def run_c(name: str, *words: Any, data: bytes) -> bytes:
    """Run a C program of examples/faults on bytes."""
    command = [program(name), *map(str, words)]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


@cache
def torch() -> Any:
    """Import torch when it is needed."""
    import torch as module  # noqa: PLC0415

    return module


# Faults


@dataclass(frozen=True)
class Fault:
    """A fault: the words for it, the code that has it, and the causes that name it.

    Attributes
    ----------
    group, title : str
    language : {"C", "NumPy", "torch"}
    names : tuple of str
        Regular expressions; the cause that an instrument prints must match one of them.
    tensors : callable () -> mapping of str to ndarray
        The backend's results under the kit's names.
    encoder : str
        The name of a fault of examples/faults/encoders.c, whose results go to check_encoder
        and check-vectors, too; or "".
    fmt, mode : str
        The format and the mode of the vectors in which the encoder is checked.
    """

    group: str
    title: str
    language: str
    names: tuple[str, ...]
    tensors: Callable[[], Mapping[str, Array]] = field(repr=False)
    encoder: str = ""
    fmt: str = "E4M3FN"
    mode: str = "nearest-saturating"


FAULTS: list[Fault] = []


def fault(
    group: str, title: str, language: str, *names: str
) -> Callable[[Callable[[], Mapping[str, Array]]], Callable[[], Mapping[str, Array]]]:
    """Add a function that makes a faulty backend's tensors to the table."""

    def add(function: Callable[[], Mapping[str, Array]]) -> Callable[[], Mapping[str, Array]]:
        FAULTS.append(Fault(group, title, language, names, function))
        return function

    return add


# Encoders, in C


def encoder_in_c(name: str) -> Callable[[Array], Array]:
    """Return an encoder of examples/faults/encoders.c as a function over float32 arrays."""

    def encode(x: Array) -> Array:
        data = run_c("encoders", name, data=float32(x).tobytes())
        return np.frombuffer(data, np.uint8).reshape(np.shape(x))

    return encode


def _encoder_fault(
    title: str, name: str, *names: str, fmt: str = "E4M3FN", mode: str = "nearest-saturating"
) -> None:
    case = f"codec/{fmt}/{mode}"

    def tensors() -> Tensors:
        return {case: encoder_in_c(name)(inputs(case)["x"])}

    FAULTS.append(Fault("Encoding", title, "C", names, tensors, name, fmt, mode))


_encoder_fault("Ties are rounded away from zero", "ties_away", "ties rounded away from zero")
_encoder_fault("Ties are rounded toward zero", "ties_toward_zero", "ties rounded toward zero")
_encoder_fault("Truncation", "truncation", "truncation")
_encoder_fault("The sticky bit is missing", "no_sticky_bit", "missing sticky bit")
_encoder_fault("The sticky bit covers one bit only", "sticky_of_two_bits", "a missing sticky bit")
_encoder_fault("Clamped to 240", "clamp_240", "saturation at too small a value")
_encoder_fault("Clamped to 416", "clamp_416", "saturation at too small a value")
_encoder_fault("448 from 256 on", "largest_from_256", "saturation from too small a value on")
_encoder_fault("448 from 384 on", "largest_from_384", "saturation from too small a value on")
_encoder_fault("Overflow becomes NaN", "overflow_is_nan", "overflow that does not saturate")
_encoder_fault("Infinity alone becomes NaN", "infinity_is_nan", "infinity encoded as NaN")
_encoder_fault("NaN becomes 448", "nan_to_largest", "NaN clamped to the largest")
_encoder_fault("NaN becomes -448", "nan_to_lowest", "NaN clamped to the largest value")
_encoder_fault(
    "Clamped by fminf, which drops quiet NaNs", "clamp_by_fminf", "NaN clamped to the largest value"
)
_encoder_fault("E4M3FNUZ instead of E4M3FN", "fnuz", "E4M3FNUZ instead of E4M3FN")
_encoder_fault("A bias of 8", "bias_8", "exponent field off by one")
_encoder_fault("A bias of 6", "bias_6", "exponent field off by one")
_encoder_fault("Rounded to bfloat16 before", "through_bfloat16", "double rounding through bfloat16")
_encoder_fault("Rounded to float16 before", "through_float16", "double rounding through float16")
_encoder_fault("Inputs below 2^-6 are flushed", "flush_small_inputs", "subnormals flushed")
_encoder_fault("Subnormal codes are flushed", "flush_subnormal_codes", "subnormals flushed")
_encoder_fault("Inputs below 2^-9 become 0", "underflow_too_early", "zero up to too large a value")
_encoder_fault("Subnormals are truncated", "subnormals_truncated", "subnormals truncated")
_encoder_fault("The mantissa's carry is lost", "carry_lost", "carry into the exponent lost")
_encoder_fault(
    "The mantissa stays at 7 instead of carrying", "carry_clamped", "carry into the exponent lost"
)
_encoder_fault(
    "No carry from the largest subnormal", "subnormal_carry_lost", "carry from the subnormals lost"
)
_encoder_fault(
    "The shift has five bits", "shift_of_five_bits", "shift of the significand modulo 32"
)
_encoder_fault("-0 becomes 0", "zero_unsigned", "-0 encoded as 0")
_encoder_fault("The sign is x < 0", "sign_by_comparison", "-0 encoded as 0")
_encoder_fault(
    "The rounding mode toward zero is ignored",
    "none",
    "nearest instead of toward zero",
    mode="toward-zero",
)
_encoder_fault(
    "E5M2 by the upper byte of float16", "upper_byte", "truncation through float16", fmt="E5M2"
)


# Quantizing


def _quantized(case: str, quotient: Callable[[Array, Array], Array]) -> Tensors:
    how = inputs(f"operator/{case}/codes")
    with np.errstate(all="ignore"):
        return {f"operator/{case}/codes": encoded(quotient(how["x"], how["scale"]))}


_E4M3_QUANTIZED = ("quantize-e4m3", "quantize-e4m3fn-ties", "quantize-e4m3fn-ties-by-3")


def _all_quantized(quotient: Callable[[Array, Array], Array]) -> Tensors:
    found: Tensors = {}
    for case in _E4M3_QUANTIZED:
        found |= _quantized(case, quotient)
    return found


def _model_codes(quotient: Callable[[Array, Array], Array]) -> Tensors:
    name = f"{SITE}.attention.self.query/a"
    how = inputs(name)
    return {name: encoded(quotient(how["x"], how["scale"]))}


def _layer_codes(quotient: Callable[[Array, Array], Array]) -> Tensors:
    """Quantize every activation of the layers."""
    found: Tensors = {}
    for name, tensor in kit().tensors.items():
        if tensor.operation == "quantize" and tensor.level == "layer":
            how = inputs(name)
            found[name] = encoded(quotient(how["x"], how["scale"]))
    return found


SITE = "model/0/encoder.layer.0"


@fault("Quantizing", "Times the reciprocal of the scale", "NumPy", "reciprocal of the scale")
def _reciprocal() -> Tensors:
    return _all_quantized(lambda x, scale: x * (np.float32(1) / scale))


@fault("Quantizing", "The reciprocal, in a layer's codes alone", "NumPy", "reciprocal of the scale")
def _reciprocal_in_a_layer() -> Tensors:
    return _layer_codes(lambda x, scale: x * (np.float32(1) / scale))


@fault("Quantizing", "Times the scale", "NumPy", "scale inverted")
def _inverted() -> Tensors:
    return _all_quantized(lambda x, scale: x * scale)


@fault("Quantizing", "The quotient in float64", "NumPy", "quotient in float64")
def _float64_quotient() -> Tensors:
    return _layer_codes(lambda x, scale: x.astype(np.float64) / scale.astype(np.float64))


@fault(
    "Quantizing",
    "The quotient in bfloat16",
    "torch",
    "numbers and scale rounded to bfloat16, and their quotient",
)
def _bfloat16_quotient() -> Tensors:
    def quotient(x: Array, scale: Array) -> Array:
        a, b = (torch().from_numpy(np.array(v)).to(torch().bfloat16) for v in (x, scale))
        return (a / b).float().numpy()

    return _all_quantized(quotient)


@fault("Quantizing", "A scale of amax / 240", "NumPy", "over another number than the format")
def _scale_by_240() -> Tensors:
    return _model_codes(lambda x, scale: x / np.float32(scale * np.float32(448 / 240)))


@fault(
    "Quantizing",
    "Each token's own scale instead of the given one",
    "NumPy",
    "scale of these numbers, not the given",
)
def _scale_of_tokens() -> Tensors:
    return _model_codes(lambda x, scale: x / float32(np.abs(x).max(-1, keepdims=True) / 448))


@fault(
    "Quantizing",
    "Each feature's own scale instead of the given one",
    "NumPy",
    "scale of these numbers, not the given",
)
def _scale_of_features() -> Tensors:
    return _model_codes(lambda x, scale: x / float32(np.abs(x).max(0, keepdims=True) / 448))


@fault("Quantizing", "A floor of 0.1 under the scale", "NumPy", "larger scale than the given")
def _scale_floor() -> Tensors:
    return _model_codes(lambda x, scale: x / np.maximum(scale, np.float32(0.1)))


def _integers(case: str, change: Callable[[Array, int], Array]) -> Tensors:
    found: Tensors = {}
    for name in (case, f"{case}-ties"):
        if f"operator/{name}/codes" in kit().tensors:
            how = inputs(f"operator/{name}/codes")
            zero = int(how.get("zero_point", 0))
            with np.errstate(over="ignore"):
                codes = change(float32(how["x"] / how["scale"]), zero)
            dtype = np.uint8 if "uint8" in case else np.int8
            found[f"operator/{name}/codes"] = codes.astype(np.int64).astype(dtype)
    return found


@fault("Quantizing", "UINT8: the zero point is off by one", "NumPy", "zero point off by one")
def _zero_point_off() -> Tensors:
    return _integers("quantize-uint8", lambda x, z: np.clip(np.rint(x) + z + 1, 0, 255))


@fault(
    "Quantizing",
    "UINT8: clamped before the zero point is added",
    "NumPy",
    "clipping before the zero point is added",
)
def _clamped_before() -> Tensors:
    return _integers("quantize-uint8", lambda x, z: (np.clip(np.rint(x), 0, 255) + z) % 256)


@fault("Quantizing", "INT8 has -128", "NumPy", "one code beyond the smallest")
def _with_minus_128() -> Tensors:
    return _integers("quantize-int8", lambda x, z: np.clip(np.rint(x), -128, 127))


@fault("Quantizing", "INT8 by adding 0.5 and flooring", "NumPy", "ties rounded up")
def _half_up() -> Tensors:
    return _integers(
        "quantize-int8", lambda x, z: np.clip(np.floor(x + np.float32(0.5)), -127, 127)
    )


@fault("Quantizing", "INT8 wraps", "NumPy", "overflow that does not saturate")
def _wraps() -> Tensors:
    return _integers("quantize-int8", lambda x, z: np.clip(np.rint(x), -(2**31), 2**31 - 1))


# Products

_GEMMS = (
    "gemm-e4m3",
    "gemm-square",
    "gemm-k17",
    "gemm-k4096",
    "gemm-cancellation",
    "gemm-subnormals",
)


def _sums(product: Callable[[Array, Array], Array], cases: tuple[str, ...] = _GEMMS) -> Tensors:
    """Make the sums of products; operands are the values of the codes."""
    found: Tensors = {}
    for case in cases:
        a, b = (decoded(codes) for codes in inputs(f"operator/{case}/sum").values())
        found[f"operator/{case}/sum"] = float32(product(a, b)) + np.float32(0)
    return found


def _c_sums(name: str, cases: tuple[str, ...] = _GEMMS) -> Tensors:
    found: Tensors = {}
    for case in cases:
        a, b = inputs(f"operator/{case}/sum").values()
        data = a.tobytes() + np.ascontiguousarray(b).tobytes()
        sums = run_c("gemm", name, a.shape[0], *b.shape, data=data)
        found[f"operator/{case}/sum"] = np.frombuffer(sums, np.float32).reshape(
            a.shape[0], b.shape[1]
        )
    return found


def _one_by_one(add: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    def product(a: Array, b: Array) -> Array:
        total = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(a.shape[1]):
            total = add(total, float32(a[:, k, None] * b[k]))
        return total

    return product


@fault("Products", "Added in bfloat16", "NumPy", "bfloat16 accumulation")
def _in_bfloat16() -> Tensors:
    return _sums(_one_by_one(lambda total, x: bfloat16(total + x)))


@fault("Products", "Added in float16", "NumPy", "float16 accumulation")
def _in_float16() -> Tensors:
    with np.errstate(over="ignore", invalid="ignore"):
        return _sums(_one_by_one(lambda total, x: float32((total + x).astype(np.float16))))


@fault(
    "Products",
    "Added in float32, in order",
    "C",
    "float32 accumulation, one product after the other",
)
def _in_order() -> Tensors:
    return _c_sums("float_in_order")


@fault(
    "Products", "Added in float32, in 8 lanes", "C", "float32 accumulation in 8 interleaved sums"
)
def _in_lanes() -> Tensors:
    return _c_sums("float_in_8_lanes")


@fault(
    "Products",
    "Exact blocks of 32, added in float32",
    "C",
    "exact sums of 32 along K, added in float32",
)
def _blocks_of_32() -> Tensors:
    return _c_sums("blocks_of_32")


@fault(
    "Products",
    "Cut to 13 bits behind the largest product, as Hopper does",
    "NumPy",
    "as Hopper's tensor cores do it",
)
def _hopper() -> Tensors:
    def exponent(x: Array) -> Array:  # of a code's value; a subnormal has -6
        return np.maximum(np.frexp(np.where(x == 0, 2.0**-9, x))[1] - 1, -6)

    def product(a: Array, b: Array) -> Array:
        total = np.zeros((a.shape[0], b.shape[1]))
        for start in range(0, a.shape[1], 32):
            x, y = a[:, start : start + 32, None], b[None, start : start + 32]
            products = x * y
            each = np.where(products == 0, -1000, exponent(x) + exponent(y))
            own = np.where(total == 0, -1000, np.frexp(total)[1] - 1)
            largest = np.maximum(each.max(1), own)
            unit = np.ldexp(1.0, largest - 13)
            total = (np.trunc(products / unit[:, None]) * unit[:, None]).sum(1) + (
                np.trunc(total / unit) * unit
            )
            unit = np.ldexp(1.0, np.frexp(np.where(total == 0, 1, total))[1] - 14)
            total = np.trunc(total / unit) * unit
        return total

    return _sums(product)


@fault(
    "Products",
    "The right operand is read by columns",
    "C",
    "right operand in the other order of storage",
)
def _by_columns() -> Tensors:
    return _c_sums("b_read_by_columns")


@fault("Products", "Subnormal operands are flushed", "C", "subnormals flushed")
def _subnormal_operands() -> Tensors:
    return _c_sums("subnormal_operands_flushed")


@fault("Products", "NaN operands count as 480", "C", "NaN codes read as numbers")
def _nan_operands() -> Tensors:
    return _c_sums("nan_is_480", ("gemm-e4m3-nan",))


@fault("Products", "The last of K is left out", "C", "last element of K left out")
def _last_left_out() -> Tensors:
    return _c_sums("last_k_left_out")


@fault(
    "Products",
    "INT8 in an accumulator of 16 bits",
    "C",
    "integer accumulation in 16 bits, saturating",
)
def _int8_in_16_bits() -> Tensors:
    return _c_sums("int8_in_16_bits", ("gemm-int8",))


def _scaled(change: Callable[..., Array], what: str = "product") -> Tensors:
    """Make the scaled product of the first product; change gets sum, both scales and bias."""
    how = inputs("operator/gemm-e4m3/product")
    values = (how[name] for name in ("sum", "a_scale", "b_scale", "bias"))
    return {f"operator/gemm-e4m3/{what}": float32(change(*values))}


@fault("Products", "A scale is left out", "NumPy", "scale of the right operand left out")
def _one_scale() -> Tensors:
    return _scaled(lambda x, a, b, bias: x * a + bias)


@fault("Products", "A scale is applied twice", "NumPy", "scale of the left operand applied twice")
def _scale_twice() -> Tensors:
    return _scaled(lambda x, a, b, bias: x * (a * a * b) + bias)


@fault("Products", "Both scales are left out", "NumPy", "^scale left out")
def _no_scales() -> Tensors:
    return _scaled(lambda x, a, b, bias: x + bias)


@fault(
    "Products", "The scales one after the other", "NumPy", "scales multiplied one after the other"
)
def _scales_in_turn() -> Tensors:
    return _scaled(lambda x, a, b, bias: x * a * b + bias)


@fault("Products", "The bias before the scales", "NumPy", "bias added before scaling")
def _bias_before() -> Tensors:
    return _scaled(lambda x, a, b, bias: (x + bias) * (a * b))


@fault("Products", "No bias", "NumPy", "bias left out")
def _no_bias() -> Tensors:
    return _scaled(lambda x, a, b, bias: x * (a * b))


@fault("Products", "The bias in bfloat16", "NumPy", "bias rounded to bfloat16")
def _bias_in_bfloat16() -> Tensors:
    how = inputs(f"{SITE}.intermediate.dense/product")
    product = how["sum"] * (how["a_scale"] * how["b_scale"]) + bfloat16(how["bias"])
    return {f"{SITE}.intermediate.dense/product": product}


@fault("Products", "Scaled and biased by one fused multiply-add", "NumPy", "fused multiply-add")
def _fused() -> Tensors:
    return _scaled(
        lambda x, a, b, bias: x.astype(np.float64) * np.float32(a * b) + bias.astype(np.float64)
    )


@fault("Results", "Through float16", "NumPy", "double rounding through float16")
def _through_float16() -> Tensors:
    x = inputs("operator/gemm-e4m3/result")["x"]
    return {"operator/gemm-e4m3/result": bfloat16(float32(x.astype(np.float16)))}


@fault("Results", "float32's upper half", "NumPy", "bfloat16 results truncated")
def _upper_half() -> Tensors:
    x = inputs("operator/gemm-e4m3/result")["x"]
    cut = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return {"operator/gemm-e4m3/result": cut}


@fault(
    "Results",
    "The sum is rounded to bfloat16 before the scales",
    "torch",
    "double rounding through bfloat16",
)
def _bfloat16_sum() -> Tensors:
    def change(x: Array, a: Array, b: Array, bias: Array) -> Array:
        total = torch().from_numpy(np.array(x)).to(torch().bfloat16).float().numpy()
        return bfloat16(float32(total * (a * b) + bias))

    return _scaled(change, "result")


# Functions


def _of_activation(function: Callable[[Array], Array], name: str = "gelu") -> Tensors:
    x = inputs(f"operator/activation/{name}")["x"]
    with np.errstate(all="ignore"):
        return {f"operator/activation/{name}": bfloat16(float32(function(x)))}


def _of_gelu_in_torch(dtype: str, approximate: str) -> Tensors:
    def function(x: Array) -> Array:
        given = torch().from_numpy(np.array(x)).to(getattr(torch(), dtype))
        gelu = torch().nn.functional.gelu(given, approximate=approximate)
        return gelu.to(torch().bfloat16).float().numpy()

    return _of_activation(function)


def _tanh_gelu(x: Array) -> Array:
    kind = x.dtype.type
    inner = kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x**3)
    return kind(0.5) * x * (kind(1) + np.tanh(inner))


@fault("Functions", "GELU by tanh, in float64", "NumPy", "GELU by tanh instead of erf, in float64")
def _gelu_float64() -> Tensors:
    return _of_activation(lambda x: _tanh_gelu(x.astype(np.float64)))


@fault("Functions", "GELU by tanh, in float32", "NumPy", "GELU by tanh instead of erf, in float32")
def _gelu_float32() -> Tensors:
    return _of_activation(_tanh_gelu)


@fault(
    "Functions",
    "GELU by tanh, in float32 by torch",
    "torch",
    "GELU by tanh instead of erf, in float32",
)
def _gelu_torch_float32() -> Tensors:
    return _of_gelu_in_torch("float32", "tanh")


@fault("Functions", "GELU by tanh, in bfloat16 by torch", "torch", "GELU by tanh instead of erf")
def _gelu_torch_bfloat16() -> Tensors:
    return _of_gelu_in_torch("bfloat16", "tanh")


@fault(
    "Functions",
    "GELU by erf, in float32 by torch, whose tail cancels",
    "torch",
    "GELU by erf, in float32",
)
def _gelu_erf_float32() -> Tensors:
    return _of_gelu_in_torch("float32", "none")


@fault("Functions", "GELU as x sigmoid(1.702 x)", "NumPy", r"x \* sigmoid\(1.702 x\)")
def _gelu_sigmoid() -> Tensors:
    return _of_activation(
        lambda x: x.astype(np.float64) / (1 + np.exp(-1.702 * x.astype(np.float64)))
    )


@fault("Functions", "ReLU instead of GELU", "NumPy", "ReLU instead of GELU")
def _relu() -> Tensors:
    return _of_activation(lambda x: np.maximum(x, 0))


_NORM = "operator/layer_norm/result"


def _normalised(
    centre: Callable[[Array], tuple[Array, Array]], eps: float = 1e-12, name: str = _NORM
) -> Tensors:
    how = inputs(name)
    with np.errstate(all="ignore"):
        centred, variance = centre(how["x"])
        root = np.sqrt(variance + centred.dtype.type(eps))
        result = centred / root * how["weight"] + how["bias"]
    return {name: bfloat16(float32(result))}


def _moments(x: Array, dtype: Any = np.float64, ddof: int = 0) -> tuple[Array, Array]:
    x = x.astype(dtype)
    centred = x - x.mean(-1, keepdims=True)
    return centred, (centred**2).sum(-1, keepdims=True) / dtype(x.shape[-1] - ddof)


@fault("Functions", "LayerNorm with the variance over n - 1", "NumPy", "variance over n - 1")
def _unbiased() -> Tensors:
    return _normalised(lambda x: _moments(x, ddof=1))


@fault("Functions", "LayerNorm with an epsilon of 1e-5", "NumPy", "eps of 1e-05")
def _other_eps() -> Tensors:
    return _normalised(_moments, 1e-5, "model/0/embeddings/layer_norm")


@fault(
    "Functions",
    "LayerNorm by E[x^2] - E[x]^2, in float32",
    "NumPy",
    r"E\[x\^2\] - E\[x\]\^2, in float32",
)
def _difference_of_squares() -> Tensors:
    def centre(x: Array) -> tuple[Array, Array]:
        mean = x.mean(-1, keepdims=True)
        return x - mean, (x * x).mean(-1, keepdims=True) - mean * mean

    return _normalised(centre)


@fault("Functions", "LayerNorm without the mean (RMSNorm)", "NumPy", "mean not taken off")
def _rms_norm() -> Tensors:
    return _normalised(
        lambda x: (x.astype(np.float64), (x.astype(np.float64) ** 2).mean(-1, keepdims=True))
    )


_SOFTMAX = (
    "operator/softmax-n33/result",
    "operator/softmax-n512/result",
    "operator/softmax-n2/result",
)


def _softmaxes(function: Callable[[Array], Array]) -> Tensors:
    with np.errstate(all="ignore"):
        return {name: bfloat16(float32(function(inputs(name)["x"]))) for name in _SOFTMAX}


@fault(
    "Functions",
    "Softmax without the maximum",
    "NumPy",
    "softmax without taking the largest element off",
)
def _no_maximum() -> Tensors:
    def softmax(x: Array) -> Array:
        weights = np.exp(x)
        return weights / weights.sum(-1, keepdims=True)

    return _softmaxes(softmax)


@fault(
    "Functions",
    "Softmax in bfloat16, step by step",
    "NumPy",
    "softmax, each step rounded to bfloat16",
)
def _softmax_in_bfloat16() -> Tensors:
    def softmax(x: Array) -> Array:
        weights = bfloat16(np.exp(bfloat16(x - x.max(-1, keepdims=True))))
        total = bfloat16(weights.sum(-1, keepdims=True))
        return weights / total

    return _softmaxes(softmax)


@fault("Functions", "Softmax by 2^x", "NumPy", r"2\^x")
def _softmax_of_two() -> Tensors:
    def softmax(x: Array) -> Array:
        weights = np.exp2(x.astype(np.float64) - x.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    return _softmaxes(softmax)


# An encoder layer and a model, from the kit's weights and scales


@dataclass(frozen=True)
class Changes:
    """The faults of the model below; without arguments, there is none."""

    factor: float = 1 / 8
    softmax_axis: int = -1
    heads_in_rows: bool = False
    residual: bool = True
    transposed_weights: bool = True
    swapped: bool = False
    pooled: str = "first"
    pooler_tanh: bool = True
    first_position: int = 0
    types: bool = True
    layer_order: tuple[int, int] = (0, 1)


_ERF = np.vectorize(math.erf, otypes=[np.float64])


def _weight(name: str) -> Array:
    return kit().arrays[f"weights/{name}"]


class Backend:
    """A BERT in NumPy that keeps each step's result under the kit's name."""

    def __init__(self, changes: Changes, case: str = "model/0") -> None:
        self.changes, self.case, self.found = changes, case, {}

    def keep(self, name: str, x: Array) -> Array:
        """Keep a result under its name in the kit."""
        self.found[f"{self.case}/{name}"] = np.ascontiguousarray(x)
        return x

    def codes(self, name: str, role: str, x: Array) -> tuple[Array, Array]:
        """Quantize an operand: the values of its codes, and its scale."""
        scale = kit().arrays[f"scales/{name}/{role}.scale"]
        codes = self.keep(f"{name}/{role}", encoded(float32(x / scale)))
        return decoded(codes), scale

    def scaled(self, name: str, total: Array, scale: Array, bias: Array | None = None) -> Array:
        """Round the sum once, scale it, add the bias, round to bfloat16."""
        total = self.keep(f"{name}/sum", float32(total) + np.float32(0))
        product = total * scale if bias is None else total * scale + bias
        self.keep(f"{name}/product", product)
        return self.keep(f"{name}/result", bfloat16(product))

    def linear(self, name: str, x: Array, weights: str | None = None) -> Array:
        """Apply a linear layer."""
        values, scale = self.codes(name, "a", x)
        weights = weights or name
        weight = decoded(_weight(f"{weights}.weight"))
        weight = weight.T if self.changes.transposed_weights else weight.reshape(weight.shape[::-1])
        scale = scale * _weight(f"{weights}.weight.scale")
        return self.scaled(name, values @ weight, scale, _weight(f"{weights}.bias"))

    def product(self, name: str, x: Array, y: Array) -> Array:
        """Multiply two activations."""
        b, b_scale = self.codes(name, "b", y)
        a, a_scale = self.codes(name, "a", x)
        return self.scaled(name, a @ b, a_scale * b_scale)

    def norm(self, name: str, parameters: str, x: Array) -> Array:
        """Apply a LayerNorm."""
        centred, variance = _moments(x)
        weight, bias = (_weight(f"{parameters}.LayerNorm.{part}") for part in ("weight", "bias"))
        result = centred / np.sqrt(variance + 1e-12) * weight + bias
        return self.keep(f"{name}/layer_norm", bfloat16(float32(result)))

    def residual(self, name: str, parameters: str, x: Array, before: Array) -> Array:
        """Add the residual and apply the LayerNorm."""
        if self.changes.residual:
            x = self.keep(f"{name}/add", bfloat16(float32(x + before)))
        return self.norm(name, parameters, x)

    def split(self, x: Array) -> Array:
        """Split (tokens, 128) into (1, 2 heads, tokens, 64)."""
        tokens = x.shape[0]
        if self.changes.heads_in_rows:
            return x.reshape(1, 2, tokens, 64)
        return x.reshape(1, tokens, 2, 64).swapaxes(1, 2)

    def layer(self, number: int, x: Array) -> Array:
        """Run a layer; its weights are those of the layer of this number in the order."""
        site = f"encoder.layer.{number}"
        own = f"encoder.layer.{self.changes.layer_order[number]}"

        def linear(name: str, x: Array) -> Array:
            return self.linear(f"{site}.{name}", x, f"{own}.{name}")

        parts = ("query", "key", "value")
        query, key, value = (linear(f"attention.self.{part}", x) for part in parts)
        if self.changes.swapped:
            query, key = key, query
        keys = np.ascontiguousarray(self.split(key).swapaxes(-1, -2))
        scores = self.product(f"{site}.attention.scores", self.split(query), keys)
        if self.changes.factor != 1:
            scores = bfloat16(scores * np.float32(self.changes.factor))
            self.keep(f"{site}.attention.scores/multiply", scores)
        axis = self.changes.softmax_axis
        weights = np.exp(scores.astype(np.float64) - scores.max(axis, keepdims=True))
        weights = bfloat16(float32(weights / weights.sum(axis, keepdims=True)))
        self.keep(f"{site}.attention.scores/softmax", weights)
        context = self.product(f"{site}.attention.context", weights, self.split(value))
        if self.changes.heads_in_rows:
            merged = context.reshape(x.shape)
        else:
            merged = context.swapaxes(1, 2).reshape(x.shape)
        projected = linear("attention.output.dense", merged)
        x = self.residual(f"{site}.attention.output.dense", f"{own}.attention.output", projected, x)
        inner = linear("intermediate.dense", x).astype(np.float64)
        # 1 + erf(x) as erfc: the sum cancels for negative x.
        gelu = inner * np.vectorize(math.erfc, otypes=[np.float64])(-inner / math.sqrt(2)) / 2
        inner = self.keep(f"{site}.intermediate.dense/gelu", bfloat16(float32(gelu)))
        return self.residual(
            f"{site}.output.dense", f"{own}.output", linear("output.dense", inner), x
        )

    def model(self) -> Array:
        """Run the model from the tokens on, with the checkpoint's embeddings."""
        tables = _checkpoint()
        ids = kit().arrays[f"{self.case}/input_ids"][0]
        mask = kit().arrays[f"{self.case}/attention_mask"][0] == 1
        types = kit().arrays[f"{self.case}/token_type_ids"][0]
        places = self.changes.first_position + np.arange(ids.size)
        if not self.changes.types:
            types = types * 0
        x = tables["word"][ids] + tables["token_type"][types]
        x = bfloat16(float32((x + tables["position"][places])[mask]))
        x = self.norm("embeddings", "embeddings", self.keep("embeddings/add", x))
        for number in range(2):
            x = self.layer(number, x)
        pooled = x.astype(np.float64)[:1]
        if self.changes.pooled == "mean":
            pooled = bfloat16(float32(x.astype(np.float64).mean(0, keepdims=True)))
            pooled = pooled.astype(np.float64)
        if self.changes.pooled == "last":
            pooled = x.astype(np.float64)[-1:]
        pooled = pooled @ _weight("pooler.dense.weight").astype(np.float64).T
        pooled = self.keep("pooler.dense/product", float32(pooled) + _weight("pooler.dense.bias"))
        pooled = bfloat16(pooled)
        if self.changes.pooler_tanh:
            pooled = bfloat16(float32(np.tanh(pooled.astype(np.float64))))
        self.keep("pooler_output", pooled)
        logits = pooled.astype(np.float64) @ _weight("classifier.weight").astype(np.float64).T
        return self.keep("logits", float32(logits) + _weight("classifier.bias"))


@cache
def _checkpoint() -> dict[str, Array]:
    """Read the embeddings of the checkpoint from which the kit was made."""
    path = kit_folder("bert-tiny-sst2").parent / "bert-tiny-sst2" / "model.safetensors"
    stored = load_file(path)
    prefix = "bert.embeddings."
    names = ("word", "token_type", "position")
    return {name: float32(stored[f"{prefix}{name}_embeddings.weight"]) for name in names}


def _layer(**changes: Any) -> Tensors:
    """Run the first layer from the kit's embeddings."""
    backend = Backend(Changes(**changes))
    backend.layer(0, kit().arrays["model/0/embeddings/layer_norm"])
    return backend.found


def _model(only: str = "", case: str = "model/0", **changes: Any) -> Tensors:
    backend = Backend(Changes(**changes), case)
    backend.model()
    return {name: x for name, x in backend.found.items() if re.search(only, name)}


@fault("Layers", "1/sqrt(d) is missing", "NumPy", r"1/sqrt\(d\) left out")
def _no_factor() -> Tensors:
    return _layer(factor=1)


@fault(
    "Layers",
    "1/sqrt(d) is missing, and only the logits are given",
    "NumPy",
    r"1/sqrt\(d\) left out",
)
def _no_factor_in_logits() -> Tensors:
    return _model("logits", factor=1)


@fault(
    "Layers",
    "1/sqrt of the width instead of the head's",
    "NumPy",
    r"1/sqrt\(d\) of all heads' features",
)
def _factor_of_width() -> Tensors:
    return _layer(factor=128**-0.5)


@fault("Layers", "Softmax over the queries", "NumPy", "softmax over another axis")
def _softmax_of_queries() -> Tensors:
    return _layer(softmax_axis=-2)


@fault(
    "Layers",
    "Heads are split without a transposition",
    "NumPy",
    "heads split without a transposition",
)
def _heads_in_rows() -> Tensors:
    return _layer(heads_in_rows=True)


@fault("Layers", "The residual is missing", "NumPy", "residual left out")
def _no_residual() -> Tensors:
    return _layer(residual=False)


@fault("Layers", "Weights are not transposed", "NumPy", "right operand not transposed")
def _not_transposed() -> Tensors:
    return _layer(transposed_weights=False)


@fault("Layers", "Queries and keys are exchanged", "NumPy", "operands exchanged")
def _swapped() -> Tensors:
    return _layer(swapped=True)


@fault("Models", "Positions begin at 1", "NumPy", "positions begin at 1")
def _from_one() -> Tensors:
    return _model(first_position=1)


@fault("Models", "Token types are ignored", "NumPy", "token types ignored")
def _no_types() -> Tensors:
    return _model(case="model/1", types=False)


@fault("Models", "The pooler takes the mean", "NumPy", "mean of the tokens instead of the first")
def _mean_pooled() -> Tensors:
    return _model(pooled="mean")


@fault("Models", "The pooler takes the last token", "NumPy", "last token instead of the first")
def _last_pooled() -> Tensors:
    return _model(pooled="last")


@fault("Models", "The pooler has no tanh", "NumPy", "tanh left out")
def _no_tanh() -> Tensors:
    return _model("pooler_output|logits", pooler_tanh=False)


@fault(
    "Models", "Both layers have the first one's weights", "NumPy", "parameters of the layer before"
)
def _same_layers() -> Tensors:
    return _model(layer_order=(0, 0))


# Attention over tiles of keys


def _attention(
    case: str = "tiles",
    *,
    factor: float = 8**-0.5,
    stale: bool = False,
    offset: int = 8,
    codes_summed: bool = False,
    rescaled: bool = True,
    tile_maximum: bool = False,
    padding: bool = False,
    masked: float = 0.0,
) -> Tensors:
    """Compute attention over tiles of 16 keys; padding fills the last one with scores of masked."""
    place, operands = f"operator/attention-{case}", "operator/attention-e4m3fn"
    arrays = kit().arrays
    q, k, v = (decoded(arrays[f"{operands}/{role}"]) for role in "qkv")
    q_scale, k_scale, v_scale = (arrays[f"operator/attention/{role}.scale"] for role in "qkv")
    bias = arrays[f"{operands}/bias"]
    maximum = total = output = None
    for start in range(0, k.shape[-1], 16):
        part = slice(start, start + 16)
        scores = float32(q @ k[..., part]) * (q_scale * k_scale) * np.float32(factor)
        scores = scores + bias[..., part]
        values = v[..., part, :]
        if padding and scores.shape[-1] < 16:
            missing = 16 - scores.shape[-1]
            scores = np.pad(scores, ((0, 0), (0, 0), (0, missing)), constant_values=masked)
            values = np.pad(values, ((0, 0), (0, missing), (0, 0)))
        before, maximum = maximum, scores.max(-1, keepdims=True)
        if before is not None and not tile_maximum:
            maximum = np.maximum(before, maximum)
        reference = before if stale and before is not None else maximum
        weights = float32(np.exp(scores.astype(np.float64) - reference) * 2.0**offset)
        codes = encoded(weights)
        summed = decoded(codes) if codes_summed else weights.astype(np.float64)
        new, product = float32(summed.sum(-1, keepdims=True)), float32(decoded(codes) @ values)
        if before is None:
            total, output = new, product
            continue
        rescale = float32(np.exp(before.astype(np.float64) - maximum))
        if not rescaled:
            rescale = np.float32(1)
        total, output = total * rescale + new, output * rescale + product
    return {f"{place}/attention": output * (1 / total * v_scale)}


@fault("Fused attention", "1/sqrt(d) is missing in the tiles", "NumPy", r"1/sqrt\(d\) left out")
def _attention_factor() -> Tensors:
    return _attention(factor=1)


@fault("Fused attention", "The maximum is the last tile's", "NumPy", "stale maximum")
def _stale() -> Tensors:
    return _attention(stale=True)


@fault("Fused attention", "The maximum is the tile's own", "NumPy", "maximum of the tile alone")
def _tile_maximum() -> Tensors:
    return _attention(tile_maximum=True)


@fault("Fused attention", "P without the offset of 8", "NumPy", "offset of the weights left out")
def _no_offset() -> Tensors:
    return _attention(offset=0)


@fault("Fused attention", "The row sum is that of the codes", "NumPy", "sum of the weights' codes")
def _codes_summed() -> Tensors:
    return _attention(codes_summed=True)


@fault("Fused attention", "Earlier tiles are not rescaled", "NumPy", "rescaling left out")
def _not_rescaled() -> Tensors:
    return _attention(rescaled=False)


@fault(
    "Fused attention",
    "Padding is not masked",
    "NumPy",
    "keys of padding in the maximum and in the sum",
)
def _padding() -> Tensors:
    return _attention(padding=True)


@fault(
    "Fused attention",
    "Padding is masked by -1 instead of -infinity",
    "NumPy",
    "padding masked by a finite number",
)
def _weak_mask() -> Tensors:
    return _attention(padding=True, masked=-1.0)


# Block formats


def _mx_quantized(scale_codes: Callable[[Array], Array], case: str = "mxfp8_e4m3-floor") -> Tensors:
    """Quantize rows of 32 to E4M3 with a power of two for a scale."""
    name = f"operator/quantize-{case}"
    x = inputs(f"{name}/scale_codes")["x"].astype(np.float64)
    codes = scale_codes(np.abs(x).max(-1, keepdims=True))
    numbers = float32(x / 2.0 ** (codes.astype(np.float64) - 127))
    elements = encoded(numbers) if "e4m3" in case else encoded(numbers, E2M1, 8)
    return {f"{name}/scale_codes": codes.astype(np.uint8), f"{name}/codes": elements}


def _exponents(x: Array) -> Array:
    return np.where(x > 0, np.frexp(np.where(x > 0, x, 1))[1] - 1, -127)


@fault("Block formats", "The scale by ceil where it is floor", "NumPy", "the rule rceil")
def _ceil() -> Tensors:
    def codes(largest: Array) -> Array:
        ratio = largest / 448
        exact = np.frexp(np.where(ratio > 0, ratio, 1))
        exponent = np.where(exact[0] == 0.5, exact[1] - 1, exact[1])
        return np.clip(np.where(ratio > 0, exponent, -127) + 127, 0, 254)

    return _mx_quantized(codes)


@fault("Block formats", "The scale by round where it is floor", "NumPy", "rounded logarithm")
def _rounded_scale() -> Tensors:
    def codes(largest: Array) -> Array:
        with np.errstate(divide="ignore"):
            exponent = np.rint(np.log2(largest / 448))
        return np.clip(np.where(largest > 0, exponent, -127) + 127, 0, 254)

    return _mx_quantized(codes)


@fault(
    "Block formats", "The largest exponent is taken for 7, not 8", "NumPy", "emax.* too small by 1"
)
def _other_emax() -> Tensors:
    return _mx_quantized(lambda x: np.clip(_exponents(x) - 7 + 127, 0, 254))


_SCALES = "operator/dequantize-mxfp8_e4m3/scale"


@fault("Block formats", "E8M0's NaN is 2^128", "NumPy", r"the NaN of E8M0 read as 2\^128")
def _nan_scale() -> Tensors:
    codes = inputs(_SCALES)["scale_codes"]
    with np.errstate(over="ignore"):
        return {_SCALES: float32(2.0 ** (codes.astype(np.float64) - 127))}


@fault("Block formats", "E8M0 has a bias of 128", "NumPy", "a bias of E8M0 of 128")
def _other_bias() -> Tensors:
    codes = inputs(_SCALES)["scale_codes"]
    scales = float32(2.0 ** (codes.astype(np.float64) - 128))
    return {_SCALES: np.where(codes == 255, np.float32(np.nan), scales)}


@fault("Block formats", "E8M0's code 0 is the number 0", "NumPy", "subnormals flushed to zero")
def _zero_scale() -> Tensors:
    codes = inputs(_SCALES)["scale_codes"]
    bits = np.where(codes == 255, np.uint32(0x7FC00000), codes.astype(np.uint32) << 23)
    return {_SCALES: bits.astype(np.uint32).view(np.float32)}


def _scale_tiles(order: Callable[[Array], Array], case: str = "scales-128x8/low") -> Tensors:
    codes = inputs(f"operator/{case}-128x4")["codes"]
    return {f"operator/{case}-128x4": np.ascontiguousarray(order(codes)).reshape(codes.shape)}


@fault("Block formats", "Scale bytes are left in rows", "NumPy", "scales in the layout linear")
def _linear_scales() -> Tensors:
    return _scale_tiles(lambda codes: codes)


@fault(
    "Block formats",
    "Scale bytes are in tiles, but not interleaved",
    "NumPy",
    "not interleaved",
)
def _only_tiles() -> Tensors:
    return _scale_tiles(lambda codes: codes.reshape(128, 2, 4).swapaxes(0, 1))


@fault("Block formats", "The interleaving has the four columns outside", "NumPy", "by columns")
def _wrong_swizzle() -> Tensors:
    return _scale_tiles(lambda codes: codes.reshape(4, 32, 2, 4).transpose(2, 1, 3, 0))


@fault("Block formats", "Nibbles are in the other order", "NumPy", "high-first")
def _nibbles() -> Tensors:
    name = "operator/packed-e2m1/low-first"
    codes = inputs(name)["codes"]
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return {name: (padded[:, 0::2] << 4 | padded[:, 1::2]).astype(np.uint8)}


_BLOCK_GEMM = "operator/block-gemm-mxfp4"


def _block_sum(change: Callable[[Array, Array], tuple[Array, Array]]) -> Tensors:
    how = inputs(f"{_BLOCK_GEMM}/sum")
    a, b = decoded(how["a"], E2M1), decoded(how["b"], E2M1)
    scales = [2.0 ** (how[f"{x}_scale_codes"].astype(np.float64) - 127) for x in "ab"]
    left, right = change(*scales)
    sums = (a * np.repeat(left, 32, 1)[:, : a.shape[1]]) @ (
        b * np.repeat(right, 32, 0)[: b.shape[0]]
    )
    return {f"{_BLOCK_GEMM}/sum": float32(sums) + np.float32(0)}


@fault("Block formats", "The neighbouring block's scale", "NumPy", "neighbouring")
def _next_scale() -> Tensors:
    return _block_sum(lambda a, b: (np.roll(a, -1, 1), np.roll(b, -1, 0)))


@fault(
    "Block formats", "Scales of the right operand left out", "NumPy", "scales of blocks left out"
)
def _no_right_scales() -> Tensors:
    return _block_sum(lambda a, b: (a, np.ones_like(b)))


@fault(
    "Block formats",
    "NVFP4: the tensors' numbers are left out",
    "NumPy",
    "tensor scale left out",
)
def _no_tensor_scales() -> Tensors:
    how = inputs("operator/block-gemm-nvfp4/product")
    return {"operator/block-gemm-nvfp4/product": float32(how["sum"] + how["bias"])}


# The instruments


@dataclass(frozen=True)
class Said:
    """What an instrument says: nothing of it, passed, or found with a cause, "" if unknown."""

    applies: bool = True
    found: bool = False
    cause: str = ""
    text: str = ""

    def cell(self, fault: Fault) -> str:
        """Return a word for the table."""
        if not self.applies:
            return ""
        if not self.found:
            return "not found"
        if names(fault, self.cause):
            return "named"
        return "found (another cause)" if self.cause else "found"


def names(fault: Fault, cause: str) -> bool:
    """Return whether a cause says what was planted."""
    return any(re.search(name, cause) for name in fault.names)


def command(*words: Any) -> tuple[int, str]:
    """Run bert-numpy in this process: the exit code, and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = bert_numpy_command([str(word) for word in words])
    return code, printed.getvalue()


def by_check_encoder(fault: Fault) -> Said:
    """Ask npfp8.testing.check_encoder."""
    from npfp8.testing import check_encoder  # noqa: PLC0415 (needs hypothesis)

    if not fault.encoder or not fault.mode.startswith("nearest"):
        return Said(applies=False)
    try:
        check_encoder(encoder_in_c(fault.encoder), fault.fmt, fault.mode == "nearest-saturating")
    except AssertionError as error:
        _, _, cause = str(error).partition("It looks like ")
        return Said(found=True, cause=cause, text=str(error))
    return Said()


def by_check_vectors(fault: Fault, folder: Path) -> Said:
    """Ask golden check-vectors about results that the program makes of a vectors file."""
    if not fault.encoder:
        return Said(applies=False)
    name = f"{fault.fmt}-{fault.mode}-float32.txt"
    results = folder / "results"
    results.mkdir(exist_ok=True)
    vectors = (folder / "vectors" / name).read_bytes()
    (results / name).write_bytes(run_c("encoders", fault.encoder, "vectors", data=vectors))
    code, printed = command("golden", "check-vectors", results / name)
    _, _, cause = printed.partition("cause: ")
    cause = "" if cause.startswith("no known one") else cause.strip()
    return Said(found=code == 1, cause=cause, text=printed)


def by_verify(fault: Fault, folder: Path) -> Said:
    """Ask golden verify about the backend's tensors, as .npy files."""
    candidate = folder / "candidate"
    shutil.rmtree(candidate, ignore_errors=True)
    for name, x in fault.tensors().items():
        path = candidate / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, x)
    code, printed = command("golden", "verify", "bert-tiny-sst2", candidate, "--json", "-")
    report = json.loads(printed)
    roots = [item for item in report["differences"] if item["root"]]
    causes = roots[0]["causes"] if roots else []
    products = [name for item in report.get("products", []) for name in item["accumulators"]]
    return Said(found=code == 1, cause="; ".join([*causes, *products]), text=printed)


def ask(fault: Fault, folder: Path) -> tuple[Said, Said, Said]:
    """Ask all three instruments."""
    if fault.encoder and not (folder / "vectors").exists():
        chosen = ("--fmt", "E4M3FN", "--fmt", "E5M2", "--source", "float32")
        command("golden", "vectors", folder / "vectors", *chosen)
    return by_check_encoder(fault), by_check_vectors(fault, folder), by_verify(fault, folder)


# The table


def can_run(fault: Fault) -> bool:
    """Return whether the language of a fault is installed."""
    if fault.language == "C":
        return shutil.which("gcc") is not None
    if fault.language == "torch":
        try:
            torch()
        except ImportError:
            return False
    return True


def row(fault: Fault, said: tuple[Said, ...]) -> str:
    """Write a row: the fault, its language, what each instrument said, and the name."""
    cells = [one.cell(fault) for one in said]
    parts = [part for one in said for part in one.cause.split("; ")]
    named = next((part for part in parts if part and names(fault, part)), "")
    return f"| {fault.title} | {fault.language} | {' | '.join([*cells, named])} |"


def key(line: str) -> str:
    """Return the part of a row that says which fault it is of."""
    return "|".join(line.split("|")[:3])


HEADER = "| fault | written in | check_encoder | check-vectors | verify | named as |"
RULE = "| --- | --- | --- | --- | --- | --- |"


def table(rows: Mapping[str, list[str]]) -> str:
    """Write the table with a heading for each group, and the sums."""
    lines = [line for group in rows.values() for line in group]
    cells = [line.strip("| ").split(" | ") for line in lines]
    found = sum(bool(re.search(r"\| (found|named) ", line)) for line in lines)
    named = sum("| named |" in line for line in lines)
    assert len(cells) == len(lines)
    text = [f"{len(lines)} faults: {found} found by at least one instrument, {named} named.", ""]
    for group, group_lines in rows.items():
        text += [f"## {group}", "", HEADER, RULE, *group_lines, ""]
    return "\n".join(text)


def make_rows(faults: list[Fault], before: Mapping[str, str], verbose: bool) -> Iterator[Any]:
    """Yield each fault and its row; a row that cannot be made is the one of before."""
    with tempfile.TemporaryDirectory() as folder:
        for fault in faults:
            if not can_run(fault):
                start = f"| {fault.title} | {fault.language} "
                if start in before:
                    yield fault, before[start]
                continue
            said = ask(fault, Path(folder))
            if verbose:
                for one in said:
                    print(one.text[:2000])
            yield fault, row(fault, said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with this page's table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table into this page")
    parser.add_argument("--only", default="", metavar="PATTERN", help="faults whose words match")
    parser.add_argument("--verbose", action="store_true", help="show what the instruments print")
    arguments = parser.parse_args()
    page = arguments.check or arguments.write
    text = page.read_text(encoding="utf-8") if page else f"{BEGIN}\n{END}"
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    before = {key(line): line for line in text[start:stop].splitlines() if line.startswith("| ")}
    rows: dict[str, list[str]] = {}
    chosen = [x for x in FAULTS if re.search(arguments.only, f"{x.group}: {x.title}")]
    for fault, line in make_rows(chosen, before, arguments.verbose):
        rows.setdefault(fault.group, []).append(line)
    made = table(rows)
    print(made)
    if arguments.write:
        page.write_text(f"{text[:start]}\n\n{made}\n{text[stop:]}", encoding="utf-8")
    if arguments.check and made.strip() != text[start:stop].strip():
        sys.exit(f"{page} has another table: run scripts/plant_faults.py --write {page}")
    lines = [line for group in rows.values() for line in group]
    if not all(re.search(r"\| (found|named) ", line) for line in lines):
        sys.exit("a fault was not found")


if __name__ == "__main__":
    main()
