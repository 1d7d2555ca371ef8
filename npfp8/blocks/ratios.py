"""Scales with a mantissa (NVFP4): from the magnitudes of a block and the tensor to its scale.

With ``g`` the largest magnitude of the tensor, ``b`` that of a block, ``M`` the largest value
of the elements' format and ``L`` that of the scales', implementations compute the number of the
tensor, the codes of the scales and those of the elements in different orders of float32
operations. Each :class:`RatioRule` is one of these ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npfp8.arrays import Array, Float32Array, Kernel
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.blocks.pieces import block_amax, encode_blocks
from npfp8.codec import encode
from npfp8.codec.definition import integer_kernel
from npfp8.codec.tables import table_encoder, values_of
from npfp8.formats import E2M1, FloatFormat, Format, IntFormat
from npfp8.scaling import spread

__all__ = ["RATIO_RULES", "RatioRule", "RatioScales", "ratio_codes", "ratio_scales"]

#: The number of a tensor; None in a format without.
_Number = Float32Array | None


@dataclass(frozen=True)
class RatioRule:
    """A way to compute the scales of blocks.

    Attributes
    ----------
    name : str
    stored : {"multiplier", "divisor", "absmax"}
        The meaning of the number that is stored for the tensor: values are multiplied by it,
        or divided by it, or it is ``g`` itself, so that values are multiplied by it over
        ``M L``. :meth:`multiplier` turns it into the factor.
    tensor_scale : callable ``(g, M, L, source="float32")`` -> float32
        The number that is stored for the tensor. ``source`` is the type in which the numbers
        were given.
    scale : callable ``(b, t, M, scale_format, source)`` -> ndarray of uint8
        The codes of the scales of blocks. ``t`` is the number of the tensor, None in a format
        without; so it is in the other functions.
    factor : callable ``(s, t, M, L)`` -> ndarray of float32
        From the values of the scales to the number by which each element of the block is
        multiplied, or divided, before it is rounded.
    block_scale : callable ``(s, t, M, L)`` -> ndarray of float32
        From the values of the scales to the float32 scale of each block, by which codes are
        multiplied, as the implementation dequantizes.
    description : str
        The rule in words, and its source.
    divide : bool
        Whether elements are divided by ``factor``, and not multiplied.
    negative_zero : {"all", "rounded", "none"}
        Which quotients have the code of -0: -0 and the negative numbers that round to it; those
        numbers only; or none.
    nan_codes : tuple of int, optional
        The codes in E2M1 of a quotient that is a NaN: where the scale is a NaN, and elsewhere.
        Without them, numbers that are not finite are an error.
    infinite : float, optional
        The value in E2M1, with the sign, that an infinite quotient becomes; the largest without.
    negative_nan : bool
        Whether a scale that is a NaN where no number is one has the sign: that of x86's invalid
        operations, where the implementation runs on the CPU.
    skips_nan : bool
        Whether ``b`` is the largest magnitude of the numbers that are not NaN.
    one_type : bool
        Whether quotients of elements are also rounded to the type of the numbers in a format
        without a number of the tensor.
    sources : tuple of str
        The types of numbers that the party takes.
    """

    name: str
    stored: str
    tensor_scale: Callable[..., Float32Array]
    scale: Callable[[Float32Array, _Number, float, FloatFormat, str], Array]
    factor: Callable[[Float32Array, _Number, float, float], Array]
    block_scale: Callable[[Float32Array, Float32Array, float, float], Float32Array]
    description: str
    divide: bool = False
    negative_zero: str = "all"
    nan_codes: tuple[int, int] | None = None
    infinite: float | None = None
    negative_nan: bool = False
    skips_nan: bool = False
    one_type: bool = False
    sources: tuple[str, ...] = ("float32", "float16", "bfloat16")

    @property
    def divides(self) -> bool:
        """Whether values are divided by the number that is stored for the tensor."""
        return self.stored == "divisor"

    def multiplier(
        self, tensor_scale: Float32Array, element_max: float, scale_max: float
    ) -> Float32Array:
        """Return the float32 number by which the stored number multiplies values.

        Parameters
        ----------
        tensor_scale : ndarray of float32, ()
            The number that is stored for the tensor.
        element_max, scale_max : float
            The largest values of the formats of the elements and of the scales.

        Examples
        --------
        >>> import numpy as np
        >>> from npfp8.blocks import RATIO_RULES
        >>> for name in ("torchao", "compressed-tensors", "te"):
        ...     rule = RATIO_RULES[name]
        ...     stored = rule.tensor_scale(np.float32(2.0), 6.0, 448.0)
        ...     float(stored), float(rule.multiplier(stored, 6.0, 448.0))
        (0.0007440476329065859, 0.0007440476329065859)
        (1344.0, 0.0007440476329065859)
        (2.0, 0.0007440476329065859)
        """
        with np.errstate(all="ignore"):
            if self.stored == "divisor":
                number = _ONE / tensor_scale
            elif self.stored == "absmax":
                number = tensor_scale / np.float32(element_max * scale_max)
            else:
                number = tensor_scale
        return np.asarray(number, np.float32)

    def divisor(
        self, tensor_scale: Float32Array, element_max: float, scale_max: float
    ) -> Float32Array:
        """Return the float32 number by which the stored number divides values.

        For a ``g`` of 0 it is 1. The parameters are those of :meth:`multiplier`.

        Examples
        --------
        >>> import numpy as np
        >>> from npfp8.blocks import RATIO_RULES
        >>> float(RATIO_RULES["te"].divisor(np.float32(2.0), 6.0, 448.0))
        1344.0
        """
        with np.errstate(all="ignore"):
            if self.stored == "divisor":
                number = tensor_scale
            elif self.stored == "absmax":
                number = np.float32(element_max * scale_max) / tensor_scale
                number = np.where(tensor_scale == 0, _ONE, number)
            else:
                number = _ONE / tensor_scale
        return np.asarray(number, np.float32)


_ONE = np.float32(1)
_FLOAT32 = np.finfo(np.float32)


def _rounded(x: Float32Array, source: str) -> Float32Array:
    """Round float32 numbers to the type in which an implementation computes."""
    if source == "bfloat16":
        return round_to_bfloat16(x)
    if source == "float16":
        return x.astype(np.float16).astype(np.float32)
    return x


def _encoded(ratio: Float32Array, fmt: FloatFormat, smallest: float = 0.0) -> Array:
    """Encode the ratios of scales after a clamp from below; above, encoding saturates."""
    return encode(np.maximum(ratio, np.float32(smallest)) if smallest else ratio, fmt)


# exact: real arithmetic


def _exact_tensor_scale(
    g: Float32Array, element_max: float, scale_max: float, source: str = "float32"
) -> Float32Array:
    # In float64, where M L is exact: its 53 bits keep the quotient off ties of float32.
    scale = np.maximum(np.float64(g) / (element_max * scale_max), _FLOAT32.tiny)
    return np.where(g == 0, _ONE, scale).astype(np.float32)


def _exact_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    # The quotient in float64 is on a boundary of the format only if the exact one is: both
    # sides of b = boundary * element_max * t have fewer than 53 bits.
    divisor = element_max * (1.0 if t is None else np.float64(t))
    return encode(b.astype(np.float64) / divisor, fmt)


def _exact_factor(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Array:
    divisor = s.astype(np.float64) * (1.0 if t is None else np.float64(t))  # exact
    return np.where(s == 0, np.inf, divisor)


# TransformerEngine: pytorch/custom_recipes/reference_nvfp4.py (quantization), and
# common/cast/nvfp4/dequantize_nvfp4.cuh


def _absmax(
    g: Float32Array, element_max: float, scale_max: float, source: str = "float32"
) -> Float32Array:
    return np.asarray(g, np.float32)


def _te_encode_scale(t: _Number, element_max: float, scale_max: float) -> Float32Array:
    """Return TE's global encode scale: the largest representable scale over g."""
    if t is None:
        return np.asarray(_ONE)
    encode_scale = np.minimum(np.float32(element_max * scale_max) / t, _FLOAT32.max)
    return np.where(encode_scale == 0, _ONE, encode_scale).astype(np.float32)


def _te_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    multiplier = _te_encode_scale(t, element_max, fmt.max) * (_ONE / np.float32(element_max))
    return _encoded(b * multiplier, fmt)


def _te_factor(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Array:
    decode_scale = _ONE / _te_encode_scale(t, element_max, scale_max)
    return np.minimum(_ONE / (s * decode_scale), _FLOAT32.max)


def _te_block_scale(
    s: Float32Array, t: Float32Array, element_max: float, scale_max: float
) -> Float32Array:
    return s * t * (_ONE / np.float32(element_max * scale_max))


# ModelOpt: torch/quantization/qtensor/nvfp4_tensor.py


def _multiplier(
    g: Float32Array, element_max: float, scale_max: float, source: str = "float32"
) -> Float32Array:
    return np.asarray(g / np.float32(element_max * scale_max), np.float32)


def _modelopt_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    ratio = b / (np.float32(element_max) * (_ONE if t is None else t))
    return _encoded(np.where(ratio == 0, _ONE, ratio), fmt, fmt.min_positive)


def _product(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Float32Array:
    return s if t is None else s * t


# torchao: prototype/mx_formats/nvfp4_tensor.py


def _torchao_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    ratio = b / np.float32(element_max)
    return _encoded(ratio if t is None else ratio / t, fmt, fmt.min_normal)


def _torchao_factor(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Array:
    return (_ONE if t is None else _ONE / t) / s


# compressed-tensors: quantization/utils/helpers.py and lifecycle/forward_helpers.py

#: The smallest normal number of the types in which compressed-tensors computes.
_TINY = {"float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}


def _ct_tensor_scale(
    g: Float32Array, element_max: float, scale_max: float, source: str = "float32"
) -> Float32Array:
    # torch computes `number / tensor` as `reciprocal(tensor) * number`.
    reciprocal = _rounded(np.asarray(_ONE / np.maximum(g, np.float32(_TINY[source]))), source)
    ratio = _rounded(np.asarray(reciprocal * np.float32(element_max * scale_max)), source)
    return np.where(np.isfinite(ratio), ratio, _ONE).astype(np.float32)


def _ct_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    ratio = _rounded(b / np.float32(element_max), source)
    codes = _encoded(ratio if t is None else ratio * t, fmt)
    smallest = encode(2.0**-fmt.mantissa_bits, fmt)  # torch.finfo's eps
    return np.where(codes == 0, smallest, codes).astype(np.uint8)


def _quotient(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Float32Array:
    return s if t is None else s / t


# Quark: torch/quantization/observer/observer.py and tensor_quantize.py, the scheme "nvfp4"


def _nonzero(x: Array) -> Float32Array:
    return np.where(x == 0, _FLOAT32.eps, x).astype(np.float32)


def _quark_tensor_scale(
    g: Float32Array, element_max: float, scale_max: float, source: str = "float32"
) -> Float32Array:
    return _nonzero(_multiplier(g, element_max, scale_max))


def _quark_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    ratio = _nonzero(b / np.float32(element_max))
    return _encoded(ratio if t is None else ratio / t, fmt)


def _quark_factor(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Array:
    return _nonzero(_product(s, t, element_max, scale_max))


# vLLM: csrc/libtorch_stable/quantization/fp4/nvfp4_utils.cuh


def _vllm_tensor_scale(
    g: Float32Array, element_max: float, scale_max: float, source: str = "float32"
) -> Float32Array:
    return np.asarray(np.float32(element_max * scale_max) / g, np.float32)


def _vllm_reciprocal(x: Array) -> Float32Array:
    """Return the reciprocal, rounded once, with subnormals taken and given as zeros."""
    flushed = np.where(np.abs(x) < _FLOAT32.tiny, np.float32(0), x)
    reciprocal = _ONE / flushed
    return np.where(np.abs(reciprocal) < _FLOAT32.tiny, np.float32(0), reciprocal)


def _vllm_scale(
    b: Float32Array, t: _Number, element_max: float, fmt: FloatFormat, source: str
) -> Array:
    ratio = b * _vllm_reciprocal(np.float32(element_max))
    return _encoded(ratio if t is None else t * ratio, fmt)


def _vllm_factor(s: Float32Array, t: _Number, element_max: float, scale_max: float) -> Array:
    decode_scale = s if t is None else s * _vllm_reciprocal(t)
    return np.where(s == 0, np.float32(0), _vllm_reciprocal(decode_scale))


#: The rules, by name.
RATIO_RULES = {
    rule.name: rule
    for rule in (
        RatioRule(
            "exact",
            "multiplier",
            _exact_tensor_scale,
            _exact_scale,
            _exact_factor,
            _product,
            "t = float32(g / (M L)), s = E4M3(b / (M t)), code = E2M1(x / (s t)): each rounded "
            "once from real numbers",
            divide=True,
        ),
        RatioRule(
            "te",
            "absmax",
            _absmax,
            _te_scale,
            _te_factor,
            _te_block_scale,
            "TransformerEngine's reference_nvfp4.py: S = min(M L / g, largest float32), "
            "s = E4M3(b (S (1 / M))), code = E2M1(x min(1 / (s (1 / S)), largest float32)); "
            "g is stored, and values are code (s g (1 / (M L)))",
            negative_zero="rounded",
            nan_codes=(0, 0),
        ),
        RatioRule(
            "modelopt",
            "multiplier",
            _multiplier,
            _modelopt_scale,
            _product,
            _product,
            "ModelOpt's nvfp4_tensor.py: t = g / (M L), s = E4M3(b / (M t)), 1 if it is 0, at "
            "least the smallest subnormal, code = E2M1(x / (s t))",
            divide=True,
            negative_zero="rounded",
            nan_codes=(7, 7),
            negative_nan=True,
        ),
        RatioRule(
            "torchao",
            "multiplier",
            _multiplier,
            _torchao_scale,
            _torchao_factor,
            _product,
            "torchao's nvfp4_tensor.py: t = g / (M L), s = E4M3((b / M) / t), at least the "
            "smallest normal, code = E2M1(x ((1 / t) / s))",
            nan_codes=(0xC, 0xB),
            negative_nan=True,
            sources=("float32", "bfloat16"),
        ),
        RatioRule(
            "compressed-tensors",
            "divisor",
            _ct_tensor_scale,
            _ct_scale,
            _quotient,
            _quotient,
            "compressed-tensors: G = (1 / g) (M L), 1 if not finite, s = E4M3(G (b / M)), 2^-3 if "
            "it is 0, code = E2M1(x / (s / G)); G and b / M are rounded to the type of the numbers",
            divide=True,
            negative_zero="rounded",
            nan_codes=(0, 0),
            negative_nan=True,
            one_type=True,
        ),
        RatioRule(
            "quark",
            "multiplier",
            _quark_tensor_scale,
            _quark_scale,
            _quark_factor,
            _product,
            "Quark's scheme nvfp4: t = g / (M L), s = E4M3((b / M) / t), code = E2M1(x / (s t)), "
            "where t, b / M and this s t are 2^-23 if they are 0; no code is that of -0, and an "
            "infinite quotient has that of 4, whose bits Pack_fp4 finds in an infinity",
            divide=True,
            negative_zero="none",
            nan_codes=(7, 7),
            infinite=4.0,
            negative_nan=True,
        ),
        RatioRule(
            "vllm",
            "divisor",
            _vllm_tensor_scale,
            _vllm_scale,
            _vllm_factor,
            _quotient,
            "vLLM's nvfp4_utils.cuh with reciprocals that are rounded once: G = M L / g, "
            "s = E4M3(G (b (1 / M))), code = E2M1(x (1 / (s (1 / G)))), 0 if s is 0; reciprocals "
            "take and give subnormals as zeros",
            nan_codes=(7, 7),
            skips_nan=True,
        ),
    )
}


def ratio_codes(
    x: Float32Array,
    amax: Float32Array,
    tensor_scale: _Number,
    rule: RatioRule,
    element: Format,
    scale_format: FloatFormat,
    block: int,
    axis: int,
    source: str = "float32",
) -> tuple[Array, Array]:
    """Return the codes of numbers, and of the scales of their blocks, by a rule.

    Parameters
    ----------
    x : ndarray of float32
    amax : ndarray of float32
        The largest magnitude of each block, as :func:`npfp8.blocks.pieces.block_amax` finds it.
    tensor_scale : ndarray of float32, (), optional
        The number of the tensor, as the rule stores it, if the format has one.
    rule : RatioRule
    element, scale_format : Format, FloatFormat
    block, axis : int
        The length of the blocks, and their axis, not negative.
    source : {"float32", "float16", "bfloat16"}
        The type in which the numbers were given.

    Returns
    -------
    codes : ndarray, of the shape of ``x``
    scale_codes : ndarray of uint8, of the shape of ``amax``

    Raises
    ------
    ValueError
        If a number is not finite and the rule does not say what becomes of it, nor of a number of
        the tensor, or a block's scale with it, that is 0 or beyond float32; or the rule's party
        does not take the type.
    """
    made = ratio_scales(x, amax, tensor_scale, rule, element, scale_format, block, axis, source)
    scale_codes, s, factors, numbers = made
    operation = np.divide if rule.divide else np.multiply
    with np.errstate(all="ignore"):
        kernel = _kernel(element, rule, source if tensor_scale is None else "float32", numbers)
        codes = encode_blocks(
            x, factors, axis, block, kernel, element.code_dtype, operation=operation
        )
    nan = np.isnan(s)
    if rule.nan_codes is not None and element == E2M1 and nan.any():
        np.copyto(codes, np.uint8(rule.nan_codes[0]), where=spread(nan, x.shape, axis, block))
    return codes, scale_codes


class RatioScales(NamedTuple):
    """The codes of the scales of blocks, their values, and the factors of elements.

    ``finite`` says whether all numbers are, and what the factors make of them.
    """

    scale_codes: Array
    values: Float32Array
    factors: Array
    finite: bool


def ratio_scales(
    x: Float32Array,
    amax: Float32Array,
    tensor_scale: _Number,
    rule: RatioRule,
    element: Format,
    scale_format: FloatFormat,
    block: int,
    axis: int,
    source: str = "float32",
) -> RatioScales:
    """Return the scales of the blocks of numbers by a rule.

    The parameters and errors are those of :func:`ratio_codes`.
    """
    if source not in rule.sources:
        known = " or ".join(rule.sources)
        raise ValueError(f"x: expected {known} for the rule {rule.name}, found {source}")
    finite = np.isfinite(amax)
    numbers = bool(finite.all())
    if not numbers:
        if rule.nan_codes is None:
            found = amax[~finite][0]
            raise ValueError(f"x: expected finite numbers for the rule {rule.name}, found {found}")
        if rule.skips_nan:
            amax = block_amax(np.where(np.isnan(x), np.float32(0), x), axis, block)
    limits = element.max, scale_format.max
    if rule.nan_codes is None and tensor_scale is not None and not 0 < tensor_scale < np.inf:
        raise ValueError(
            f"tensor_scale: expected a positive, finite float32 for the rule {rule.name}, found "
            f"{tensor_scale}"
        )
    operation = np.divide if rule.divide else np.multiply
    with np.errstate(all="ignore"):
        scale_codes = rule.scale(amax, tensor_scale, limits[0], scale_format, source)
        if rule.negative_nan and not np.isnan(0 if tensor_scale is None else tensor_scale):
            scale_codes = _with_nan_sign(scale_codes, ~np.isnan(amax), scale_format)
        s = values_of(scale_codes, scale_format, np.dtype(np.float32))
        factors = rule.factor(s, tensor_scale, *limits)
        if rule.nan_codes is None and tensor_scale is not None:
            scale = rule.block_scale(s, tensor_scale, *limits)
            if not np.isfinite(scale).all():
                found = amax[~np.isfinite(scale)][0]
                raise ValueError(
                    f"x: expected numbers whose blocks have finite float32 scales by the rule "
                    f"{rule.name}, found {found} with elements {element} up to {element.max:g}"
                )
        numbers = numbers and bool(np.isfinite(operation(amax, factors)).all())  # multiples, too
    return RatioScales(scale_codes, s, factors, numbers)


def _with_nan_sign(codes: Array, where: Array, fmt: FloatFormat) -> Array:
    """Set the sign of scales that are NaN, where one is to be set."""
    if fmt.nan_code is None or not fmt.sign_bit or fmt.nan_code == fmt.sign_bit:
        return codes
    signed = np.uint8(fmt.nan_code | fmt.sign_bit)
    return np.where(where & (codes == fmt.nan_code), signed, codes)


def _kernel(element: Format, rule: RatioRule, source: str, finite: bool) -> Kernel:
    """Return the kernel that rounds quotients, all finite or any, to codes as a rule does it."""
    finite = finite and not rule.one_type
    if isinstance(element, IntFormat):
        encoder, sign_bit = integer_kernel(element, True), 0
    else:
        encoder = table_encoder(element, True, "nearest", "float32", numbers=finite)
        sign_bit = element.sign_bit if element.has_negative_zero else 0
    unsigned = sign_bit and rule.negative_zero == "none"

    def kernel(scaled: Array, codes: Array) -> None:
        if rule.one_type:
            scaled = _rounded(scaled, source)
        if rule.negative_zero == "rounded":
            scaled += scaled.dtype.type(0)
        if finite or rule.nan_codes is None or element != E2M1 or np.isfinite(scaled.sum()):
            encoder(scaled, codes)
        else:
            nan = np.isnan(scaled)
            scaled[nan] = 0
            if rule.infinite is not None:
                infinity = np.isinf(scaled)
                scaled[infinity] = np.copysign(rule.infinite, scaled[infinity])
            encoder(scaled, codes)
            codes[nan] = rule.nan_codes[1]
        if unsigned:
            codes[codes == sign_bit] = 0

    return kernel
