"""Other formulas for the functions between products, and right ones in other arithmetic.

Libraries differ in the last bit of an exponential, a tanh or a sum. Where such a bit shows in a
result, no formula reproduces a tensor that a library computed. So these defects return spans
(:mod:`bert_numpy.kit.spans`): all numbers that the formula can give in a type. They come in
tiers, the narrowest spans first, and in each type the right formula before the others: a tensor
that the right formula explains in some type, has no wrong one in that type or a coarser one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from bert_numpy.kit.operand_defects import FOUND, Alone, Defective, Named, Spanning
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs
from bert_numpy.kit.spans import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Span, Working
from npfp8.arrays import Array
from npfp8.bfloat16 import round_to_bfloat16

__all__ = ["EPS", "function_defects", "tolerant_defects"]

#: The values of eps that models and libraries have.
EPS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3)

#: The relative error of PTX's tanh.approx (PTX ISA 8.7, section 9.7.3.21), and about that of
#: exponentials by a polynomial of degree 2 or 3, as attention kernels compute them.
_APPROXIMATE = 2.0**-11

_C = float(np.sqrt(2 / np.pi))

#: A formula: from the inputs' spans by role, and the attributes, to the result.
Formula = Callable[[dict[str, Span], Attributes], "Span | None"]


def tolerant_defects() -> Iterator[list[Named]]:
    """Yield tiers of names and defective operations, whose results are spans."""
    approximate = replace(FLOAT32, name="approximate", approximate=_APPROXIMATE)
    for working in (FLOAT64, FLOAT32):
        yield list(_right(working))
        yield list(_wrong(working))
    for working in (BFLOAT16, FLOAT16):
        yield list(_right(working))
    yield list(_right(approximate))
    for working in (BFLOAT16, FLOAT16):
        yield list(_wrong(working))
    yield list(_wrong(approximate))


_OF_FLOAT16 = "in float32, of float16 numbers, rounded to float16"

#: What is said after a formula about the type it is computed in.
_IN = {
    "float64": "in float64",
    "float32": "in float32",
    "bfloat16": "each step rounded to bfloat16",
    "float16": "each step rounded to float16",
    "approximate": "by an approximation, within 2^-11",
}


def _right(working: Working) -> Iterator[Named]:
    """Yield the right formulas in an arithmetic."""
    how = _IN[working.name]
    for function, (label, formula) in _ACTIVATIONS.items():
        yield f"{label}, {how}", {"activation": _activation(formula, working, (function,))}
    yield f"softmax, {how}", {"softmax": _softmax(working)}
    if not working.approximate:
        yield f"LayerNorm, {how}", {"layer_norm": _layer_norm(working)}
    if working is FLOAT32:
        name = "double rounding through float16"
        yield (
            name,
            {
                "softmax": _softmax(working, after=_to_float16),
                "layer_norm": _layer_norm(working, after=_to_float16),
            },
        )
        softmax = _softmax(working, after=_to_float16, before=_to_float16)
        yield f"softmax, {_OF_FLOAT16}", {"softmax": softmax}
        for function, (label, formula) in _ACTIVATIONS.items():
            made = _activation(formula, working, (function,), _to_float16)
            yield name, {"activation": made}
            made = _activation(formula, working, (function,), _to_float16, _to_float16)
            yield f"{label}, {_OF_FLOAT16}", {"activation": made}


def _wrong(working: Working) -> Iterator[Named]:
    """Yield the formulas that are not the ones asked for, in an arithmetic."""
    how = _IN[working.name]
    gelus = ("gelu", "gelu_tanh")
    for function, (label, formula) in _ACTIVATIONS.items():
        others = tuple(name for name in gelus if name != function)
        asked = " or ".join({"gelu": "erf", "gelu_tanh": "tanh"}[name] for name in others)
        operations = {"activation": _activation(formula, working, others)}
        instead = f"instead of {asked}" if function in gelus else "instead of GELU"
        yield f"{label} {instead}, {how}", operations
        if working is FLOAT32:
            made = _activation(formula, working, others, _to_float16, _to_float16)
            yield f"{label} {instead}, {_OF_FLOAT16}", {"activation": made}
    if working in (BFLOAT16, FLOAT16):
        name = f"GELU by tanh instead of erf, {how}"
        yield name, {"activation": _activation(_fast_gelu, working, ("gelu",))}
    name = f"GELU by a sigmoid, x * sigmoid(1.702 x), {how}"
    yield name, {"activation": _activation(_quick_gelu, working, gelus)}
    if not working.approximate:
        yield from _wrong_norms(working)
    yield from _wrong_softmaxes(working)


# Activations


def _activation(
    formula: Callable[[Span], Span],
    working: Working,
    asked: tuple[str, ...],
    after: Callable[[Array], Array] | None = None,
    before: Callable[[Array], Array] | None = None,
) -> Spanning:
    """Make an activation by a formula, where one of some functions is asked for."""

    def activation(inputs: Inputs, attributes: Attributes) -> Span | None:
        if attributes["function"] not in asked:
            return None
        x = inputs["x"] if before is None else before(inputs["x"])
        result = formula(working.span(x))
        if working is not FLOAT64:
            result = result.flushed().overflowing(x)
        return _finished(result if after is None else result.through(after), attributes)

    return activation


def _finished(result: Span, attributes: Attributes) -> Span:
    """Round a result to the precision."""
    narrow = attributes["precision"] == "bfloat16"
    return result.through(round_to_bfloat16 if narrow else lambda x: x.astype(np.float32))


def _to_float16(x: Array) -> Array:
    return x.astype(np.float16)


def _gelu(x: Span) -> Span:
    number = x.working.span
    cdf = number(1.0) + (x * number(float(np.sqrt(0.5)))).erf()
    return x * number(0.5) * cdf


def _gelu_tanh(x: Span) -> Span:
    number = x.working.span
    u = number(_C) * (x + number(0.044715) * (x * x * x))
    return number(0.5) * x * (number(1.0) + u.tanh())


def _fast_gelu(x: Span) -> Span:
    """Compute GELU by tanh in another order of multiplications."""
    number = x.working.span
    u = x * number(_C) * (number(1.0) + number(0.044715) * x * x)
    return number(0.5) * x * (number(1.0) + u.tanh())


def _quick_gelu(x: Span) -> Span:
    return x * (x.working.span(1.702) * x).sigmoid()


def _relu(x: Span) -> Span:
    return x.through(lambda end: np.maximum(end, 0.0))


_ACTIVATIONS: dict[str, tuple[str, Callable[[Span], Span]]] = {
    "gelu": ("GELU by erf", _gelu),
    "gelu_tanh": ("GELU by tanh", _gelu_tanh),
    "silu": ("SiLU", lambda x: x * x.sigmoid()),
    "tanh": ("tanh", Span.tanh),
    "relu": ("ReLU", _relu),
}


# Softmax


def _same(x: Span) -> Span:
    return x


def _softmax(
    working: Working,
    *,
    before: Callable[[Array], Array] | None = None,
    power: Callable[[Span], Span] = Span.exp,
    weights: Callable[[Span], Span] = _same,
    shifted: bool = True,
    divided: bool = True,
    after: Callable[[Array], Array] | None = None,
) -> Spanning:
    def softmax(inputs: Inputs, attributes: Attributes) -> Span | None:
        x = working.span(inputs["x"] if before is None else before(inputs["x"]))
        exponentials = weights(power(x - x.max() if shifted else x))
        result = exponentials
        if divided:
            total = exponentials.sum()
            result = exponentials / total
        return _finished(result if after is None else result.through(after), attributes)

    return softmax


def _power_of_two(x: Span) -> Span:
    return (x * x.working.span(float(np.log(2.0)))).exp()


def _by_rounded_log2(x: Span) -> Span:
    """Compute ``2^(x log2(e))`` where the exponent is rounded to bfloat16."""
    exponent = (x * x.working.span(float(1 / np.log(2.0)))).through(round_to_bfloat16)
    return _power_of_two(exponent)


def _wrong_softmaxes(working: Working) -> Iterator[Named]:
    how = _IN[working.name]
    changes: dict[str, dict[str, object]] = {
        "2^x instead of e^x": {"power": _power_of_two},
        "softmax without taking the largest element off": {"shifted": False},
        "softmax not divided by the sum": {"divided": False},
    }
    if working is FLOAT32:
        changes |= {
            "x log2(e) rounded to bfloat16 before the power of 2": {"power": _by_rounded_log2},
            "weights of the softmax rounded to bfloat16 before they are added and divided": {
                "weights": lambda x: x.through(round_to_bfloat16)
            },
            "scores rounded to float16 before the softmax": {"before": _to_float16},
        }
    for name, change in changes.items():
        yield f"{name}, {how}", {"softmax": _softmax(working, **change)}  # type: ignore[arg-type]
    yield f"softmax over another axis, {how}", {"softmax": _across(_softmax(working))}


def _across(softmax: Spanning) -> Spanning:
    """Make a softmax over the axis before the last."""

    def function(inputs: Inputs, attributes: Attributes) -> Span | None:
        if inputs["x"].ndim < 2:
            return None
        found = softmax({"x": inputs["x"].swapaxes(-1, -2)}, attributes)
        assert found is not None
        low, high = (end.swapaxes(-1, -2) for end in (found.low, found.high))
        nan = np.broadcast_to(found.nan, found.low.shape).swapaxes(-1, -2)
        return Span(low, high, nan, found.working)

    return function


# LayerNorm


def _layer_norm(
    working: Working,
    *,
    eps: float | None = None,
    outside: bool = False,
    off: int = 0,
    variance: str = "centred",
    between: Callable[[Array], Array] | None = None,
    parameters: Callable[[Array], Array] | None = None,
    left_out: tuple[str, ...] = (),
    after: Callable[[Array], Array] | None = None,
) -> Spanning:
    """Make LayerNorm: with eps in or outside the root, the variance of n - ``off``, and so on."""

    def layer_norm(inputs: Inputs, attributes: Attributes) -> Span | None:
        number, x = working.span, working.span(inputs["x"])
        length = inputs["x"].shape[-1]
        if length <= off or eps == attributes["eps"]:
            return None
        chosen = number(attributes["eps"] if eps is None else eps)
        count = number(float(length))
        mean = x.sum() / count
        centred = x if variance == "no mean" else x - mean
        if variance == "squares":
            spread = x.squared().sum() / count - mean.squared()
        else:
            spread = centred.squared().sum() / number(float(length - off))
        root = spread.sqrt() + chosen if outside else (spread + chosen).sqrt()
        result = centred / root
        if between is not None:
            result = result.through(between)
        for role in ("weight", "bias"):
            if role not in left_out:
                given = inputs[role] if parameters is None else parameters(inputs[role])
                other = number(given)
                result = result * other if role == "weight" else result + other
        return _finished(result if after is None else result.through(after), attributes)

    return layer_norm


def _wrong_norms(working: Working) -> Iterator[Named]:
    how = _IN[working.name]
    changes: dict[str, dict[str, object]] = {
        "variance over n - 1": {"off": 1},
        "variance as E[x^2] - E[x]^2": {"variance": "squares"},
        "eps outside the root": {"outside": True},
        "mean not taken off (RMSNorm)": {"variance": "no mean"},
        "weight of LayerNorm left out": {"left_out": ("weight",)},
        "bias of LayerNorm left out": {"left_out": ("bias",)},
        "normalized numbers rounded to bfloat16 before the weight": {"between": round_to_bfloat16},
        "normalized numbers rounded to float16 before the weight": {"between": _to_float16},
        "weight and bias of LayerNorm rounded to bfloat16": {"parameters": round_to_bfloat16},
        "weight and bias of LayerNorm rounded to float16": {"parameters": _to_float16},
    }
    for eps in EPS if working in (FLOAT64, FLOAT32) else ():
        changes[f"eps of {eps:g}"] = {"eps": eps}
        changes[f"eps of {eps:g}, outside the root"] = {"eps": eps, "outside": True}
    for name, change in changes.items():
        made = _layer_norm(working, **change)  # type: ignore[arg-type]
        yield f"{name}, {how}", {"layer_norm": made}


# Without tolerance


def function_defects() -> Iterator[Named]:
    """Yield names and defective operations whose results are certain."""
    yield "residual left out", {"add": lambda x, how: _precise(x["x"], how)}
    yield "residual alone", {"add": lambda x, how: _precise(x["y"], how)}
    yield "residual added twice", {"add": _added(np.float32, twice=True)}
    yield "sum in float16", {"add": _added(np.float16)}
    for name, change in _FACTORS.items():
        yield name, {"multiply": _multiplied(change)}
    yield "1/sqrt(d) of all heads' features, not of one's", {"multiply": _of_all_heads}
    yield "1/sqrt(d) of another d", Alone(multiply=_of_another_size)
    yield "tanh left out", {"activation": _without_tanh}


def _precise(x: Array, attributes: Attributes) -> Array:
    return round_to_bfloat16(x) if attributes["precision"] == "bfloat16" else x


def _added(dtype: type[np.floating], twice: bool = False) -> Defective:
    def add(inputs: Inputs, attributes: Attributes) -> Array:
        x, y = (inputs[role].astype(dtype) for role in ("x", "y"))
        total = x + y + y if twice else x + y
        return _precise(np.asarray(total, np.float32), attributes)

    return add


#: Other factors than the right one, which is 1/sqrt(d).
_FACTORS: dict[str, Callable[[float], list[float]]] = {
    "1/sqrt(d) left out": lambda factor: [],
    "1/sqrt(d) applied twice": lambda factor: [factor, factor],
    "multiplication by sqrt(d) instead of its reciprocal": lambda factor: [1 / factor],
    "the fourth root of 1/d instead of the square root": lambda factor: [factor**0.5],
}


def _multiplied(change: Callable[[float], list[float]]) -> Defective:
    def multiply(inputs: Inputs, attributes: Attributes) -> Array | None:
        x = inputs["x"]
        if attributes["factor"] <= 0:
            return None
        for factor in change(attributes["factor"]):
            how = {**attributes, "factor": float(np.float32(factor))}
            x = OPERATIONS["multiply"]({"x": x}, how)
        return x

    return multiply


def _of_all_heads(inputs: Inputs, attributes: Attributes) -> Array | None:
    x = inputs["x"]
    if x.ndim != 4 or x.shape[1] < 2:
        return None
    factor = np.float32(attributes["factor"] / np.sqrt(x.shape[1]))
    return OPERATIONS["multiply"]({"x": x}, {**attributes, "factor": float(factor)})


def _without_tanh(inputs: Inputs, attributes: Attributes) -> Array | None:
    return _precise(inputs["x"], attributes) if attributes["function"] == "tanh" else None


def _of_another_size(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Multiply by 1/sqrt(n), where n is read off the candidate's largest result."""
    found, x = inputs.get(FOUND), inputs["x"]
    if found is None or attributes["factor"] <= 0:
        return None
    wide = np.where(np.isfinite(found) & np.isfinite(x), x, 0.0).astype(np.float64)
    place = np.unravel_index(int(np.abs(wide).argmax()), x.shape)
    if not wide[place] or not found[place]:
        return None
    size = int(np.rint((wide[place] / found[place]) ** 2))
    sizes = range(max(1, size - size // 64 - 1), size + size // 64 + 2)
    right = round(attributes["factor"] ** -2)
    named = {right, 1, right**2, round(right**0.5)}  # these are defects of their own
    for other in sorted(sizes, key=lambda n: (n & (n - 1) != 0, abs(n - size))):
        if other not in named:
            how = {**attributes, "factor": float(np.float32(other**-0.5))}
            result = OPERATIONS["multiply"]({"x": x}, how)
            if np.array_equal(result, found, equal_nan=True):
                return result
    return None
