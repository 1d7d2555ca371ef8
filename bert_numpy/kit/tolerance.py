"""Float32 sums in another order: bounds of their error, and its effect on later tensors.

A float32 sum of K products, in any order, is within ``gamma_K sum|a_k b_k|``
of the exact sum, where ``gamma_K = K u / (1 - K u)`` and ``u = 2^-24``. (Source: Higham,
*Accuracy and Stability of Numerical Algorithms*, section 3.1.) A candidate with such sums
differs from the kit from there on. So each of its tensors is compared with the result of
the kit's operation on the candidate's own tensors. If the candidate lacks a sum, the
possible values are an interval, and scaling, adding and rounding map it to an interval,
as they are monotone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError, one_line
from bert_numpy.kit.block_operations import block_operand
from bert_numpy.kit.manifest import Kit, apply_view
from bert_numpy.kit.operations import OPERATIONS
from npfp8.arrays import Array, Float64Array, blas_product
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat, IntFormat
from npfp8.scaling import spread

__all__ = ["MONOTONE", "accumulation_failures", "sum_bound"]


_UNIT = 2.0**-24

#: The monotone operations, with their inputs that may be intervals.
MONOTONE = {
    "scale_sum": ("sum",),
    "block_product": ("sum",),
    "round": ("x",),
    "quantize": ("x",),
    "block_codes": ("x",),
    "add": ("x", "y"),
    "add_float32": ("x", "y"),
    "multiply": ("x",),
    "output": ("x",),
    "encode": ("x",),
    "attention_scores": ("sum",),
    "running_maximum": ("x", "before"),
    "row_sum": ("x", "codes"),
    "running_total": ("x", "before"),
    "running_output": ("x", "before"),
    "attention": ("output",),
}


def gamma(k: int) -> float:
    """Compute Higham's ``gamma_K`` for float32."""
    return k * _UNIT / (1 - k * _UNIT)


def sum_bound(magnitudes: Float64Array, k: int) -> Float64Array:
    """Bound the distance of a float32 sum from the exact sum rounded to float32.

    Parameters
    ----------
    magnitudes : ndarray of float64
        The sums of the magnitudes of the products.
    k : int
        The number of products.
    """
    # The kit's sum is itself rounded, with a relative error of at most u.
    return magnitudes * (gamma(k) + _UNIT) + 2.0**-149


def accumulation_failures(kit: Kit, found: Mapping[str, Array]) -> dict[str, str]:
    """Find the tensors that no order of float32 additions explains, with the reasons."""
    failures = {}
    intervals: dict[str, tuple[Array, Array] | None] = {}
    needed = kit.sources(
        found, lambda source: source in found or kit.tensors[source].operation == "given"
    )
    for name in kit.tensors:  # in the order of the data flow, so that inputs are known
        if name in needed:
            intervals[name] = _interval(kit, name, found, intervals)
    for name, x in found.items():
        tensor = kit.tensors[name]
        if tensor.operation == "given":
            low = high = kit.arrays[name]
        else:
            interval = _interval(kit, name, found, intervals)
            if interval is None:
                failures[name] = (
                    "cannot be judged: give what its operation reads, which a sum in another "
                    "order may have changed"
                )
                continue
            low, high = interval
        fmt = FORMATS.get(tensor.fmt)
        values = fmt.values if isinstance(fmt, FloatFormat) else None
        numbers = [z if values is None else values[z] for z in (low, x, high)]
        inside = (numbers[0] <= numbers[1]) & (numbers[1] <= numbers[2])
        exact = (low == high) & ~np.isnan(numbers[0])
        if values is None and low.dtype == np.float32:
            inside &= ~exact | (np.signbit(x) == np.signbit(low))
        elif values is not None:
            inside &= ~exact | (x == low)
        inside |= np.isnan(numbers[0]) & np.isnan(numbers[1])
        if not inside.all():
            index = tuple(int(i) for i in np.argwhere(~inside)[0])
            failures[name] = (
                f"{int((~inside).sum())} elements are beyond the bound; first at {list(index)}: "
                f"expected {float(numbers[0][index])!r} to {float(numbers[2][index])!r}, "
                f"found {float(numbers[1][index])!r}"
            )
    return failures


def _interval(
    kit: Kit,
    name: str,
    found: Mapping[str, Array],
    intervals: Mapping[str, tuple[Array, Array] | None],
) -> tuple[Array, Array] | None:
    """Return the least and the largest possible value of a tensor, or None if unknown."""
    try:
        return _computed_interval(kit, name, found, intervals)
    except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise BertNumpyError(
            f"kit: tensor {name!r}: expected inputs that {kit.tensors[name].operation!r} can be "
            f"computed of, found an error: {one_line(error)}"
        ) from None


def _computed_interval(
    kit: Kit,
    name: str,
    found: Mapping[str, Array],
    intervals: Mapping[str, tuple[Array, Array] | None],
) -> tuple[Array, Array] | None:
    tensor = kit.tensors[name]
    lows: dict[str, Array] = {}
    highs: dict[str, Array] = {}
    spread = set()
    for role, reference in tensor.inputs.items():
        source = reference.tensor
        if source in found or kit.tensors[source].operation == "given":
            ends = (found.get(source, kit.arrays[source]),) * 2
        else:
            inner = intervals[source]
            if inner is None:
                return None
            ends = inner
        lows[role], highs[role] = (apply_view(end, reference.view) for end in ends)
        if ends[0] is not ends[1] and not np.array_equal(
            *ends, equal_nan=ends[0].dtype.kind == "f"
        ):
            spread.add(role)
    if tensor.operation in ("sum", "product", "block_sum"):
        return None if spread else _sum_interval(tensor.operation, lows, tensor.attributes)
    if spread - set(MONOTONE.get(tensor.operation, ())):
        return None
    operation = OPERATIONS[tensor.operation]
    low = operation(lows, tensor.attributes)
    return (low, low) if not spread else (low, operation(highs, tensor.attributes))


def _sum_interval(
    operation: str, inputs: Mapping[str, Array], attributes: Mapping[str, Any]
) -> tuple[Array, Array] | None:
    if operation == "product" and "accumulate" in attributes:  # it is of bfloat16 numbers
        rounded = {name: round_to_bfloat16(inputs[name]) for name in ("a", "b")}
        return _sum_interval(operation, {**inputs, **rounded}, {})
    exactly = {} if operation == "product" else {"accumulate": "exact"}
    exact = OPERATIONS[operation](inputs, {**attributes, **exactly})
    block = attributes.get("block")
    if operation == "product":
        a, b = (np.abs(inputs[name].astype(np.float64)) for name in ("a", "b"))
        magnitudes = blas_product(a, b)
        if "bias" in inputs:
            magnitudes += np.abs(inputs["bias"])
        bound = sum_bound(magnitudes, a.shape[-1] + 1)
    elif operation == "block_sum":
        a, b = (_block_magnitudes(name, inputs, attributes) for name in ("a", "b"))
        # A block's sum may be scaled, once or by one scale after the other, before it is added.
        k = a.shape[-1]
        bound = sum_bound(blas_product(a, b), k + 2) + 2.0**-149 * k
    else:
        if block is not None and any(f"{name}_zero_point" in inputs for name in ("a", "b")):
            return None
        if all(isinstance(FORMATS[attributes[name]["fmt"]], IntFormat) for name in ("a", "b")):
            return exact, exact  # integer sums are exact
        a, b = (_magnitudes(inputs, attributes, name) for name in ("a", "b"))
        step = block or a.shape[-1]
        starts = range(0, a.shape[-1], step)
        parts = [blas_product(a[..., i : i + step], b[..., i : i + step, :]) for i in starts]
        bound = sum_bound(np.stack(parts) if block else parts[0], step)
    with np.errstate(over="ignore", invalid="ignore"):
        wide = exact.astype(np.float64)
        low, high = ((wide + sign * bound).astype(np.float32) for sign in (-1, 1))
    special = ~np.isfinite(exact)
    return np.where(special, exact, low), np.where(special, exact, high)


def _block_magnitudes(name: str, inputs: Mapping[str, Array], attributes: Mapping[str, Any]) -> Any:
    """Return the magnitudes of an operand's values, scales included, those of NaNs as 0."""
    how, x = attributes[name], inputs[name]
    values = block_operand(name, inputs, attributes).code_values(np.float64)
    if "block" in how:
        if "scale_fmt" in how:
            scales = FORMATS[how["scale_fmt"]].values[inputs[f"{name}_scale_codes"]]
        else:
            scales = inputs[f"{name}_scale"].astype(np.float64)
        values = values * spread(scales, x.shape, how["axis"] % x.ndim, how["block"])
    return np.nan_to_num(np.abs(values), nan=0.0, posinf=0.0)


def _magnitudes(inputs: Mapping[str, Array], attributes: Mapping[str, Any], name: str) -> Array:
    fmt = FORMATS[attributes[name]["fmt"]]
    if isinstance(fmt, IntFormat):
        values = inputs[name].astype(np.float64)
        zero = inputs.get(f"{name}_zero_point")
        return np.abs(values if zero is None else values - zero.astype(np.float64))
    return np.nan_to_num(np.abs(fmt.values[inputs[name]]), nan=0.0, posinf=0.0)
