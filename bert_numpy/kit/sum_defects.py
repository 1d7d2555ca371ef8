"""Defects of the sums of a product: other orders of addition, operands read wrongly.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bert_numpy.kit.history import Traced
from bert_numpy.kit.operand_defects import Alone, Defective, Named
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs, operand
from bert_numpy.kit.spans import FLOAT32, Span
from npfp8.arrays import Array, blas_product
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat, IntFormat

__all__ = ["sum_defects", "tolerant_sums"]

#: The runs of K that instructions and tiles have.
_RUNS = (4, 8, 16, 32, 64, 128, 256)

#: Those that are looked for behind other operations, too.
_USUAL_RUNS = (16, 32, 64, 128)

#: The numbers of interleaved sums of a vector unit.
_LANES = (2, 4, 8, 16, 32)

_UNIT = 2.0**-24


def sum_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    for run in _RUNS:
        for how, total in _ORDERS.items():
            name = f"exact sums of {run} along K, added in float32{how}"
            operations = {"sum": _in_runs(run, total)}
            usual = run in _USUAL_RUNS and total is _forward
            yield name, operations if usual else Alone(operations)
    name = "exact sums of the halves of K, added in float32"
    yield name, Alone(sum=_in_runs(0, _forward))
    for lanes in _LANES:
        name = f"float32 accumulation in {lanes} interleaved sums"
        yield name, Alone(sum=_interleaved(lanes))
    yield "float32 accumulation in pairs", Alone(sum=_in_runs(1, _in_pairs))
    name = "float32 accumulation, from the last product to the first"
    yield name, Alone(sum=_in_runs(1, _back))
    yield "right operand in the other order of storage", Alone(sum=_other_storage)
    yield "last element of K left out", Alone(sum=_without_the_last)
    yield "NaN codes read as numbers", Alone(sum=_without_nan)
    yield "integer accumulation in 16 bits, saturating", Alone(sum=_in_16_bits(saturate=True))
    yield "integer accumulation in 16 bits, wrapping", Alone(sum=_in_16_bits(saturate=False))
    parameters = {"sum": ("b",), "scale_sum": ("b_scale", "bias"), "layer_norm": ("weight", "bias")}
    name = "parameters of the layer before"
    yield name, {op: _of_layer_before(op, roles) for op, roles in parameters.items()}
    yield "last token instead of the first", {"product": _by_rows(lambda x: x[-1:])}
    name = "mean of the tokens instead of the first"
    yield name, {"product": _by_rows(_mean)}
    yield name, {"product": _by_rows(lambda x: round_to_bfloat16(_mean(x)))}


def _forward(parts: Sequence[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _back(parts: Sequence[Array]) -> Array:
    return _forward(parts[::-1])


def _in_pairs(parts: Sequence[Array]) -> Array:
    """Add neighbours, then neighbouring sums, until one is left."""
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        pairs = [x + y for x, y in zip(parts[0:even:2], parts[1:even:2], strict=True)]
        parts = [*pairs, *parts[even:]]
    return parts[0]


def _in_halves(parts: Sequence[Array]) -> Array:
    """Add the second half to the first, until one is left."""
    while len(parts) > 1:
        half = -(-len(parts) // 2)
        parts = [
            *(x + y for x, y in zip(parts[: len(parts) - half], parts[half:], strict=True)),
            *parts[len(parts) - half : half],
        ]
    return parts[0]


_ORDERS: dict[str, Callable[[Sequence[Array]], Array]] = {
    "": _forward,
    ", from the last to the first": _back,
    ", in pairs": _in_pairs,
    ", the second half onto the first": _in_halves,
}


def _values(inputs: Inputs, attributes: Attributes) -> list[Array] | None:
    """Return the operands' values in float32, if each has one scale along K."""
    if attributes.get("block") is not None or attributes.get("accumulate", "exact") != "exact":
        return None
    zero_points = [f"{name}_zero_point" for name in ("a", "b")]
    if any(inputs[name].ndim for name in zero_points if name in inputs):
        return None
    return [operand(name, inputs, attributes).code_values() for name in ("a", "b")]


def _in_runs(run: int, total: Callable[[Sequence[Array]], Array]) -> Defective:
    """Make a sum of exact sums of so many elements of K, each rounded to float32; 0 for half."""

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        k = inputs["a"].shape[-1]
        length = run or -(-k // 2)
        if length >= k or (values := _values(inputs, attributes)) is None:
            return None
        if total is not _forward and k <= 2 * length:
            return None  # of two parts the order is no matter
        a, b = values
        if length == 1:
            parts = [a[..., i, None] * b[..., i, None, :] for i in range(k)]
        else:
            wide = a.astype(np.float64), b.astype(np.float64)
            parts = [
                blas_product(wide[0][..., i : i + length], wide[1][..., i : i + length, :]).astype(
                    np.float32
                )
                for i in range(0, k, length)
            ]
        return np.asarray(total(parts) + np.float32(0), np.float32)

    return sums


def _interleaved(lanes: int) -> Defective:
    """Make a sum of so many float32 sums, each of every ``lanes``-th product."""

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        k = inputs["a"].shape[-1]
        if k <= lanes or (values := _values(inputs, attributes)) is None:
            return None
        a, b = values
        shape = np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape)
        total = np.zeros((lanes, *shape), np.float32)
        for i in range(k):
            total[i % lanes] += a[..., i, None] * b[..., i, None, :]
        return np.asarray(_in_halves(list(total)) + np.float32(0), np.float32)

    return sums


def _other_storage(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Read an operand (K, N) that is stored by rows as one that is stored by columns."""
    b = inputs["b"]
    if b.ndim < 2 or "b_zero_point" in inputs:
        return None
    k, n = b.shape[-2:]
    other = np.ascontiguousarray(b).reshape(*b.shape[:-2], n, k).swapaxes(-1, -2)
    return OPERATIONS["sum"]({**inputs, "b": np.ascontiguousarray(other)}, attributes)


def _without_the_last(inputs: Inputs, attributes: Attributes) -> Array | None:
    if inputs["a"].shape[-1] < 2 or attributes.get("block") is not None:
        return None
    if any(attributes[name].get("axis") is not None for name in ("a", "b")):
        return None
    parts = {"a": inputs["a"][..., :-1], "b": inputs["b"][..., :-1, :]}
    parts = {name: np.ascontiguousarray(x) for name, x in parts.items()}
    return OPERATIONS["sum"]({**inputs, **parts}, attributes)


def _without_nan(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Read E4M3FN's code of NaN as 480."""
    if any(attributes[name]["fmt"] != "E4M3FN" for name in ("a", "b")):
        return None
    if attributes.get("block") is not None:
        return None
    a, b = (FORMATS["E4M3FN"].values[inputs[name]] for name in ("a", "b"))
    codes = (inputs["a"], inputs["b"])
    a, b = (
        np.where(np.isnan(x), np.where(code & 0x80, -480.0, 480.0), x)
        for x, code in zip((a, b), codes, strict=True)
    )
    return np.asarray(blas_product(a, b).astype(np.float32) + np.float32(0), np.float32)


def _in_16_bits(*, saturate: bool) -> Defective:
    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        formats = [FORMATS[attributes[name]["fmt"]] for name in ("a", "b")]
        if not all(isinstance(fmt, IntFormat) for fmt in formats):
            return None
        if (values := _values(inputs, attributes)) is None:
            return None
        a, b = (x.astype(np.int64) for x in values)
        total = np.zeros(np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape), np.int64)
        for k in range(a.shape[-1]):
            total = total + a[..., k, None] * b[..., k, None, :]
            if saturate:
                total = np.clip(total, -(2**15), 2**15 - 1)
        return total.astype(np.int16).astype(np.float32)

    return sums


def _of_layer_before(operation: str, roles: Sequence[str]) -> Defective:
    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced):
            return None
        others = {role: inputs.of_layer_before(role) for role in roles if role in inputs}
        changed = {role: x for role, x in others.items() if x is not None}
        return OPERATIONS[operation]({**inputs, **changed}, attributes) if changed else None

    return function


def _mean(x: Array) -> Array:
    return x.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)


def _by_rows(change: Callable[[Array], Array]) -> Defective:
    """Make the product of other rows than the first."""

    def product(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced) or inputs.view("a") != "first_row":
            return None
        rows = np.ascontiguousarray(change(inputs.viewed("a")))
        return OPERATIONS["product"]({**inputs, "a": rows}, attributes)

    return product


def tolerant_sums() -> Iterator[list[Named]]:
    """Yield tiers of sums that may be any of a span's."""
    name = "float32 accumulation in another order, within its likely error"
    yield [(name, {"sum": _in_any_order})]


def _in_any_order(inputs: Inputs, attributes: Attributes) -> Span | None:
    """Bound float32 sums in any order, by the likely error of K roundings.

    The bound is ``sqrt(K) u sum|a_k b_k|`` (Higham and Mary, *A new approach to probabilistic
    rounding error analysis*, SIAM J. Sci. Comput. 41, 2019), not K u: a wrong element should not
    pass for a sum in another order.
    """
    values = _values(inputs, attributes)
    if values is None or not any(
        isinstance(FORMATS[attributes[name]["fmt"]], FloatFormat) for name in ("a", "b")
    ):
        return None
    exact = OPERATIONS["sum"](inputs, attributes)
    a, b = (np.nan_to_num(np.abs(x.astype(np.float64)), posinf=0.0) for x in values)
    bound = (np.sqrt(a.shape[-1]) + 1) * _UNIT * blas_product(a, b)
    bound = np.where(np.isfinite(exact), bound, 0.0)
    wide = exact.astype(np.float64)
    return Span(
        (wide - bound).astype(np.float32).astype(np.float64),
        (wide + bound).astype(np.float32).astype(np.float64),
        np.isnan(wide),
        FLOAT32,
    )
