"""The forms of a kit's operations: inputs, attributes and shapes, checked before they run.

A manifest may come from an untrusted source. An entry that passes :func:`check_entry` has
every input and attribute that its operation reads, each of the right type, and its result
has the shape that the operation derives from its inputs. So computing it takes no more
memory than the kit itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.kit.block_operations import block_format
from bert_numpy.quantization.recipe import BFLOAT16_ACCUMULATORS
from bert_numpy.quantization.tiled_attention import MAX_OFFSET
from npfp8 import POWER_RULES, RATIO_RULES, golden
from npfp8.blocks.layouts import (
    BLOCK_LAYOUTS,
    CODE_LAYOUTS,
    SCALE_LAYOUTS,
    Group,
    pack_scales,
    unpack_scales,
)
from npfp8.blocks.layouts.runs import bits_of
from npfp8.codec import ROUNDINGS
from npfp8.formats import FLOAT_FORMATS, FORMATS
from npfp8.products import ACCUMULATORS

__all__ = ["check_entry"]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Attributes = Mapping[str, Any]

#: The requirement for an attribute, in words, and a function that checks a value.
_Check = tuple[str, Callable[[Any], bool]]

_LARGEST = float(np.finfo(np.float32).max)


def _one_of(*values: str) -> _Check:
    return _key_of(values)


def _key_of(names: Collection[str]) -> _Check:
    """Make a check for one of the names; for a table, including those added to it later."""
    return " or ".join(map(repr, names)), lambda x: isinstance(x, str) and x in names


def _is_integer(x: Any, least: int) -> bool:
    return type(x) is int and least <= x < 2**31


_FMT = _key_of(FORMATS)
_BOOL: _Check = ("true or false", lambda x: isinstance(x, bool))
_TRUE: _Check = ("true", lambda x: x is True)
_NUMBER: _Check = (
    "a float32 number",
    lambda x: type(x) in (int, float) and abs(x) <= _LARGEST,  # a NaN fails this
)
_POSITIVE: _Check = ("0 or more", lambda x: _NUMBER[1](x) and x >= 0)
_AXIS: _Check = ("a number of 31 bits", lambda x: _is_integer(x, -32))
_BLOCK: _Check = ("1 or more, of 31 bits", lambda x: _is_integer(x, 1))
_PRECISION = _one_of("bfloat16", "float32")
_ROWS: _Check = (
    "a list of rising row numbers",
    lambda x: (
        isinstance(x, list)
        and bool(x)
        and all(_is_integer(row, 0) for row in x)
        and all(a < b for a, b in itertools.pairwise(x))
    ),
)

_WEIGHTS: _Check = (
    "a list of whole numbers from 1 on",
    lambda x: isinstance(x, list) and bool(x) and all(_is_integer(weight, 1) for weight in x),
)

_OFFSET: _Check = (
    f"a whole number from 0 to {MAX_OFFSET}",
    lambda x: _is_integer(x, 0) and x <= MAX_OFFSET,
)

_SHAPE: _Check = (
    "a list of two numbers of 31 bits",
    lambda x: isinstance(x, list) and len(x) == 2 and all(_is_integer(n, 0) for n in x),
)

_GROUPS = {"axis": _AXIS, "block": _BLOCK}

#: What describes a block format, besides the axis of its blocks.
_BLOCK_FORMAT: dict[str, _Check] = {
    "fmt": _FMT,
    "block": _BLOCK,
    "scale_fmt": _key_of(FLOAT_FORMATS),
    "rule": (
        "the name of a rule",
        lambda x: isinstance(x, str) and (x in POWER_RULES or x in RATIO_RULES),
    ),
}
_TENSOR_SCALE = {"tensor_scale": _BOOL}
_BLOCK_OPTIONS = {**_TENSOR_SCALE, "source": _one_of("float32", "float16", "bfloat16")}


def _is_operand(x: Any) -> bool:
    """Check that a value describes the quantization of an operand."""
    ndim: _Check = ("", lambda y: _is_integer(y, 0))
    checks = {"ndim": ndim, **_GROUPS, **_BLOCK_FORMAT, **_TENSOR_SCALE}
    return (
        isinstance(x, Mapping)
        and x.keys() <= checks.keys()
        and "fmt" in x
        and all(checks[key][1](value) for key, value in x.items())
        and (_is_blocked(x) or x.keys() <= {"fmt", "ndim", *_GROUPS})
    )


def _is_blocked(x: Mapping[str, Any]) -> bool:
    """Check that attributes that are right one by one describe a block format and its axis."""
    try:
        block_format(x)
    except (KeyError, ValueError):
        return False
    return "axis" in x


def _is_factor(x: Any) -> bool:
    return _is_operand(x) and "ndim" in x


_OPERAND: _Check = ("an object of fmt, axis and block, or of a block format", _is_operand)
_FACTOR: _Check = ("an object of fmt, ndim, axis and block, or of a block format", _is_factor)


# Shapes. Each function raises ValueError or IndexError if the inputs do not fit together.


def _same(shapes: Shapes, how: Attributes) -> Shape:
    return shapes["x"]


def _broadcast(shapes: Shapes, how: Attributes) -> Shape:
    return np.broadcast_shapes(*shapes.values())


def _groups(x: Shape, how: Attributes) -> Shape:
    """Return the shape of the scales of a tensor."""
    axis, block = how.get("axis"), how.get("block")
    if axis is None:
        if block is not None:
            raise ValueError("a block without an axis")
        return ()
    if block is None:
        return (x[axis],)
    shape = list(x)
    shape[axis] = -(-x[axis] // block)
    return tuple(shape)


def _outliers(shapes: Shapes, how: Attributes) -> Shape:
    if "rows" in how and how["rows"][-1] >= shapes["x"][-2]:
        raise ValueError(f"no row {how['rows'][-1]}")
    return shapes["x"]


def _require(found: Shape, expected: Shape) -> None:
    if found != expected:
        raise ValueError(f"{found} instead of {expected}")


def _quantize(shapes: Shapes, how: Attributes) -> Shape:
    for role in ("scale", "zero_point"):
        if role in shapes:
            _require(shapes[role], _groups(shapes["x"], how))
    return shapes["x"]


def _dequantize(shapes: Shapes, how: Attributes) -> Shape:
    for role in ("x_scale", "x_zero_point"):
        if role in shapes:
            _require(shapes[role], _groups(shapes["x"], how["x"]))
    return shapes["x"]


def _matmul(shapes: Shapes) -> Shape:
    a, b = shapes["a"], shapes["b"]
    _require((a[-1],), (b[-2],))
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _sum(shapes: Shapes, how: Attributes) -> Shape:
    block = how.get("block")
    for name in ("a", "b"):
        _require((len(shapes[name]),), (how[name]["ndim"],))
        if (zero := f"{name}_zero_point") in shapes:
            _require(shapes[zero], _groups(shapes[name], how[name]))
    parts = () if block is None else (-(-shapes["a"][-1] // block),)
    return (*parts, *_matmul(shapes))


def _product(shapes: Shapes, how: Attributes) -> Shape:
    return _with_bias(_matmul(shapes), shapes)


def _with_bias(result: Shape, shapes: Shapes) -> Shape:
    if "bias" in shapes:
        _require(np.broadcast_shapes(result, shapes["bias"]), result)
    return result


def _scale_sum(shapes: Shapes, how: Attributes) -> Shape:
    result, parts = shapes["sum"], 1
    if how.get("block") is not None:
        parts, result = result[0], result[1:]
    for name, k_axis in (("a", -1), ("b", -2)):
        scale, operand = shapes[f"{name}_scale"], how[name]
        _require((len(result),), (operand["ndim"],))
        spread = list(scale)
        if operand.get("axis") is None:
            _require(scale, ())
        elif operand.get("block") is not None:
            if scale[k_axis] < parts:
                raise ValueError(f"{scale[k_axis]} blocks instead of {parts}")
            spread[k_axis] = 1
        else:
            axis = range(len(result))[operand["axis"]]
            spread = [math.prod(scale) if i == axis else 1 for i in range(len(result))]
        _require(np.broadcast_shapes(result, tuple(spread)), result)
    return _with_bias(result, shapes)


def _blocks(shapes: Shapes, how: Attributes) -> Shape:
    """Return the shape of the scale codes of a tensor."""
    _check_tensor_scale(shapes, how)
    return _groups(shapes["x"], how)


def _check_tensor_scale(shapes: Shapes, how: Attributes, role: str = "tensor_scale") -> None:
    if (role in shapes) != how.get("tensor_scale", False):
        raise ValueError(f"{'no ' if role in shapes else ''}{role} by the format")
    if role in shapes:
        _require(shapes[role], ())


def _block_codes(shapes: Shapes, how: Attributes) -> Shape:
    _require(shapes["scale_codes"], _blocks(shapes, how))
    return shapes["x"]


def _block_scales(shapes: Shapes, how: Attributes) -> Shape:
    _check_tensor_scale(shapes, how)
    return shapes["scale_codes"]


def _block_sum(shapes: Shapes, how: Attributes) -> Shape:
    for name, k_axis in (("a", -1), ("b", -2)):
        operand, codes = shapes[name], how[name]
        _require((len(operand),), (codes["ndim"],))
        groups = _groups(operand, codes)
        along = "block" in codes
        if along and range(len(operand))[codes["axis"]] != range(len(operand))[k_axis]:
            raise ValueError(f"blocks of {name} along axis {codes['axis']}")
        blocked = "scale_fmt" in codes
        for role, wanted in (("scale_codes", blocked), ("scale", along and not blocked)):
            if (f"{name}_{role}" in shapes) != wanted:
                raise ValueError(f"{'' if wanted else 'no '}{name}_{role} by the format")
        for role in ("scale_codes", "scale", "zero_point"):
            if f"{name}_{role}" in shapes:
                _require(shapes[f"{name}_{role}"], groups)
    return _matmul(shapes)


def _block_product(shapes: Shapes, how: Attributes) -> Shape:
    result = shapes["sum"]
    for name in ("a", "b"):
        operand = how[name]
        _require((len(result),), (operand["ndim"],))
        _check_tensor_scale(shapes, operand, f"{name}_tensor_scale")
        if (f"{name}_scale" in shapes) != ("block" not in operand):
            raise ValueError(f"{name}_scale is for one without blocks, and for this needed")
        if (role := f"{name}_scale") in shapes:
            spread = [1] * len(result)
            if "axis" in operand:
                spread[operand["axis"]] = math.prod(shapes[role])
            else:
                _require(shapes[role], ())
            _require(np.broadcast_shapes(result, tuple(spread)), result)
    return _with_bias(result, shapes)


def _packed(codes: Shape, group: Group) -> Shape:
    return (*codes[:-1], -(-codes[-1] // group.codes) * group.nbytes)


def _pack_codes(shapes: Shapes, how: Attributes) -> Shape:
    return _packed(shapes["codes"], _group(CODE_LAYOUTS, how))


def _unpack_codes(shapes: Shapes, how: Attributes) -> Shape:
    codes = (*shapes["bytes"][:-1], how["length"])
    _require(shapes["bytes"], _packed(codes, _group(CODE_LAYOUTS, how)))
    return codes


def _group(layouts: Mapping[str, Any], how: Attributes) -> Group:
    group: Group = layouts[how["layout"]].group(bits_of(FORMATS[how["fmt"]]))
    return group


def _pack_scales(shapes: Shapes, how: Attributes) -> Shape:
    rows, blocks = shapes["codes"]
    return pack_scales(np.broadcast_to(np.uint8(0), (rows, blocks)), how["layout"]).shape


def _unpack_scales(shapes: Shapes, how: Attributes) -> Shape:
    packed = np.broadcast_to(np.uint8(0), shapes["codes"])
    return unpack_scales(packed, how["shape"], how["layout"]).shape


def _pack_blocks(shapes: Shapes, how: Attributes) -> Shape:
    codes = shapes["codes"]
    _require(shapes["scale_codes"], _groups(codes, how))
    if range(len(codes))[how["axis"]] != len(codes) - 1:
        raise ValueError(f"blocks along axis {how['axis']}")
    group, blocks = _group(BLOCK_LAYOUTS, how), -(-codes[-1] // how["block"])
    return (*codes[:-1], blocks * (1 + how["block"] // group.codes * group.nbytes))


def _per_row(x: Shape) -> Shape:
    """Return the shape of one number for each row, along an axis that stays."""
    if x[-1] < 1:
        raise ValueError("rows without elements")
    return (*x[:-1], 1)


def _attention_scores(shapes: Shapes, how: Attributes) -> Shape:
    for role in ("q_scale", "k_scale"):
        _require(shapes[role], ())
    return _with_bias(shapes["sum"], shapes)


def _running_maximum(shapes: Shapes, how: Attributes) -> Shape:
    result = _per_row(shapes["x"])
    _require(shapes.get("before", result), result)
    return result


def _attention_weights(shapes: Shapes, how: Attributes) -> Shape:
    _require(shapes["maximum"], _per_row(shapes["x"]))
    return shapes["x"]


def _rescaling(shapes: Shapes, how: Attributes) -> Shape:
    _require(shapes["before"], shapes["maximum"])
    return shapes["maximum"]


def _row_sum(shapes: Shapes, how: Attributes) -> Shape:
    if ("codes" in shapes) != ("fmt" in how):
        raise ValueError("codes and their format belong together")
    _require(shapes.get("codes", shapes["x"]), shapes["x"])
    return _per_row(shapes["x"])


def _running(shapes: Shapes, how: Attributes) -> Shape:
    _require(shapes["before"], shapes["x"])
    _require(shapes["rescale"], _per_row(shapes["x"]))
    return shapes["x"]


def _attention(shapes: Shapes, how: Attributes) -> Shape:
    _require(shapes["total"], _per_row(shapes["output"]))
    _require(shapes["v_scale"], ())
    return shapes["output"]


def _layer_norm(shapes: Shapes, how: Attributes) -> Shape:
    for role in ("weight", "bias"):
        _require(shapes[role], shapes["x"][-1:])
    return _same(shapes, how)


def _mean(shapes: Shapes, how: Attributes) -> Shape:
    *others, rows, last = shapes["x"]
    if "weights" in how:
        _require((rows,), (len(how["weights"]),))
    return (*others, last)


def _concatenate(shapes: Shapes, how: Attributes) -> Shape:
    *others, _ = shapes["x0"]
    for shape in shapes.values():
        _require(shape[:-1], tuple(others))
    return (*others, sum(shape[-1] for shape in shapes.values()))


@dataclass(frozen=True)
class _Form:
    """The form of an operation: its inputs, its attributes and its result.

    Kinds are "numbers" (bfloat16 or float32), "bytes", "codes" of the format in the
    attribute ``fmt``, "scale codes" of the one in ``scale_fmt``, or either "of" an operand,
    in the format of that operand.
    """

    inputs: Mapping[str, str]
    shape: Callable[[Shapes, Attributes], Shape] = _same
    attributes: Mapping[str, _Check] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, _Check] = field(default_factory=dict)
    result: str = "numbers"


_X = {"x": "numbers"}
_ONE = {"precision": _PRECISION}
_FLOAT32 = {"precision": _one_of("float32")}
_SCALES = {"fmt": _FMT}
_SCALE_OPTIONS = {**_GROUPS, "power_of_two": _BOOL}
_FACTORS = {"a": _FACTOR, "b": _FACTOR}
_SUM_OPTIONS = {"block": _BLOCK, "accumulate": _key_of(ACCUMULATORS)}
_BIAS = {"bias": "numbers"}
_TENSOR = {"tensor_scale": "numbers"}
_RUNNING = {**_X, "before": "numbers", "rescale": "numbers"}

_FORMS = {
    "output": _Form(_X),
    "round": _Form(_X),
    "encode": _Form(
        _X,
        attributes={"fmt": _FMT, "saturate": _BOOL},
        options={"rounding": _one_of(*ROUNDINGS[:-1]), "overflow": _one_of("ieee", "special")},
        result="codes",
    ),
    "decode": _Form(
        {"codes": "codes"}, lambda shapes, how: shapes["codes"], attributes={"fmt": _FMT}
    ),
    "scale": _Form(
        _X,
        lambda shapes, how: _groups(shapes["x"], how),
        attributes=_SCALES,
        options=_SCALE_OPTIONS,
    ),
    "zero_point": _Form(
        _X,
        lambda shapes, how: _groups(shapes["x"], how),
        attributes=_SCALES,
        options=_SCALE_OPTIONS,
        result="codes",
    ),
    "quantize": _Form(
        {**_X, "scale": "numbers"},
        _quantize,
        attributes={"fmt": _FMT},
        optional={"zero_point": "codes"},
        options=_GROUPS,
        result="codes",
    ),
    "sum": _Form(
        {"a": "codes of a", "b": "codes of b"},
        _sum,
        attributes=_FACTORS,
        optional={"a_zero_point": "codes of a", "b_zero_point": "codes of b"},
        options=_SUM_OPTIONS,
    ),
    "scale_sum": _Form(
        {"sum": "numbers", "a_scale": "numbers", "b_scale": "numbers"},
        _scale_sum,
        attributes=_FACTORS,
        optional=_BIAS,
        options=_SUM_OPTIONS,
    ),
    "product": _Form(
        {"a": "numbers", "b": "numbers"},
        _product,
        optional=_BIAS,
        options={"accumulate": _one_of(*BFLOAT16_ACCUMULATORS)},
    ),
    "dequantize": _Form(
        {"x": "codes of x"},
        _dequantize,
        attributes={"x": _OPERAND},
        optional={"x_scale": "numbers", "x_zero_point": "codes of x"},
    ),
    "add_float32": _Form({**_X, "y": "numbers"}, _broadcast, optional=_BIAS),
    "divide": _Form({**_X, "divisor": "numbers"}, _broadcast, attributes=_ONE),
    "outliers": _Form(
        _X,
        _outliers,
        attributes={"threshold": _NUMBER, "keep": _one_of("outliers", "others")},
        options={"rows": _ROWS},
    ),
    "add": _Form({**_X, "y": "numbers"}, _broadcast, attributes=_ONE),
    "multiply": _Form(_X, attributes={**_ONE, "factor": _NUMBER}),
    "softmax": _Form(_X, attributes=_ONE),
    "layer_norm": _Form(
        {**_X, "weight": "numbers", "bias": "numbers"},
        _layer_norm,
        attributes={**_ONE, "eps": _POSITIVE},
    ),
    "activation": _Form(_X, attributes={**_ONE, "function": _one_of(*golden.UNARY)}),
    "mean": _Form(_X, _mean, attributes=_ONE),
    "mean_sqrt_len_tokens": _Form(_X, _mean, attributes=_FLOAT32),
    "weightedmean": _Form(_X, _mean, attributes={**_FLOAT32, "weights": _WEIGHTS}),
    "max": _Form(_X, _mean, attributes=_FLOAT32),
    "lasttoken": _Form(_X, _mean, attributes=_FLOAT32),
    "concatenate": _Form(
        {"x0": "numbers"},
        _concatenate,
        attributes=_FLOAT32,
        optional={f"x{i}": "numbers" for i in range(1, len(golden.POOLINGS) + 1)},
    ),
    "normalize": _Form(_X, attributes=_ONE),
    "tensor_scale": _Form(
        _X,
        lambda shapes, how: (),
        attributes={**_BLOCK_FORMAT, "axis": _AXIS, "tensor_scale": _TRUE},
        options={"source": _BLOCK_OPTIONS["source"]},
    ),
    "scale_codes": _Form(
        _X,
        _blocks,
        attributes={**_BLOCK_FORMAT, "axis": _AXIS},
        optional=_TENSOR,
        options=_BLOCK_OPTIONS,
        result="scale codes",
    ),
    "block_codes": _Form(
        {**_X, "scale_codes": "scale codes"},
        _block_codes,
        attributes={**_BLOCK_FORMAT, "axis": _AXIS},
        optional=_TENSOR,
        options=_BLOCK_OPTIONS,
        result="codes",
    ),
    "block_scales": _Form(
        {"scale_codes": "scale codes"},
        _block_scales,
        attributes={**_BLOCK_FORMAT, "axis": _AXIS},
        optional=_TENSOR,
        options=_TENSOR_SCALE,
    ),
    "block_sum": _Form(
        {"a": "codes of a", "b": "codes of b"},
        _block_sum,
        attributes=_FACTORS,
        optional={
            f"{name}_{role}": kind + (f" of {name}" if "codes" in kind else "")
            for name in "ab"
            for role, kind in (
                ("scale_codes", "scale codes"),
                ("scale", "numbers"),
                ("zero_point", "codes"),
            )
        },
        options={"accumulate": _key_of(ACCUMULATORS)},
    ),
    "block_product": _Form(
        {"sum": "numbers"},
        _block_product,
        attributes=_FACTORS,
        optional={
            **{
                f"{name}_{scale}": "numbers" for name in "ab" for scale in ("scale", "tensor_scale")
            },
            **_BIAS,
        },
        options={"accumulate": _key_of(ACCUMULATORS)},
    ),
    "pack_codes": _Form(
        {"codes": "codes"},
        _pack_codes,
        attributes={"fmt": _FMT, "layout": _key_of(CODE_LAYOUTS)},
        result="bytes",
    ),
    "unpack_codes": _Form(
        {"bytes": "bytes"},
        _unpack_codes,
        attributes={"fmt": _FMT, "layout": _key_of(CODE_LAYOUTS), "length": _BLOCK},
        result="codes",
    ),
    "pack_scales": _Form(
        {"codes": "codes"},
        _pack_scales,
        attributes={"fmt": _FMT, "layout": _key_of(SCALE_LAYOUTS)},
        result="codes",
    ),
    "unpack_scales": _Form(
        {"codes": "codes"},
        _unpack_scales,
        attributes={"fmt": _FMT, "layout": _key_of(SCALE_LAYOUTS), "shape": _SHAPE},
        result="codes",
    ),
    "pack_blocks": _Form(
        {"codes": "codes", "scale_codes": "scale codes"},
        _pack_blocks,
        attributes={**_BLOCK_FORMAT, "axis": _AXIS, "layout": _key_of(BLOCK_LAYOUTS)},
        result="bytes",
    ),
    "attention_scores": _Form(
        {"sum": "numbers", "q_scale": "numbers", "k_scale": "numbers"},
        _attention_scores,
        attributes={"factor": _POSITIVE},
        optional=_BIAS,
    ),
    "running_maximum": _Form(_X, _running_maximum, optional={"before": "numbers"}),
    "attention_weights": _Form(
        {**_X, "maximum": "numbers"}, _attention_weights, attributes={"offset": _OFFSET}
    ),
    "rescaling": _Form({"before": "numbers", "maximum": "numbers"}, _rescaling),
    "row_sum": _Form(
        _X, _row_sum, optional={"codes": "codes"}, options={"fmt": _key_of(FLOAT_FORMATS)}
    ),
    "running_total": _Form(_RUNNING, _running),
    "running_output": _Form(_RUNNING, _running),
    "attention": _Form({"output": "numbers", "total": "numbers", "v_scale": "numbers"}, _attention),
    "given": _Form({}, lambda shapes, how: ()),
}


def check_entry(
    operation: str,
    attributes: Attributes,
    inputs: Mapping[str, tuple[str, str, Shape]],
    result: tuple[str, str, Shape],
    place: str,
) -> None:
    """Refuse a tensor that its operation cannot produce.

    Parameters
    ----------
    operation : str
    attributes : mapping
    inputs : mapping of str to (kind, fmt, shape)
        The inputs by role, with the shapes of their views.
    result : (kind, fmt, shape)
    place : str
        The entry's place, for messages.

    Raises
    ------
    BertNumpyError
        If an input or an attribute is missing, unknown or of another type, or if
        the shapes do not fit together.
    """
    form = _FORMS[operation]
    _check_names(f"{place}: input", inputs, form.inputs, form.optional)
    _check_names(f"{place}: attribute", attributes, form.attributes, form.options)
    for name, (expected, is_right) in {**form.attributes, **form.options}.items():
        if name in attributes and not is_right(attributes[name]):
            raise BertNumpyError(
                f"{place}: attribute {name!r}: expected {expected}, found {attributes[name]!r}"
            )
    if operation == "given":
        return
    if "scale_fmt" in attributes and not _is_blocked(attributes):
        raise BertNumpyError(f"{place}: expected attributes of a block format, found {attributes}")
    if attributes.get("saturate") and attributes.get("overflow", "ieee") != "ieee":
        raise BertNumpyError(f"{place}: expected no overflow with saturate, found {attributes}")
    for role, (kind, fmt, _) in inputs.items():
        expected = {**form.inputs, **form.optional}[role]
        _check_kind(f"{place}: input {role!r}", expected, kind, fmt, attributes)
    _check_kind(place, form.result, *result[:2], attributes)
    shapes = {role: shape for role, (_, _, shape) in inputs.items()}
    try:
        made = form.shape(shapes, attributes)
    except (ValueError, IndexError) as error:
        raise BertNumpyError(
            f"{place}: expected inputs whose shapes fit together, found {shapes}: {error}"
        ) from None
    if made != result[2]:
        raise BertNumpyError(f"{place}: expected shape {made} of its inputs, found {result[2]}")


def _check_names(
    place: str, found: Mapping[str, Any], needed: Mapping[str, Any], optional: Mapping[str, Any]
) -> None:
    if missing := [name for name in needed if name not in found]:
        raise BertNumpyError(f"{place} {missing[0]!r}: expected, but missing")
    if unknown := sorted(found.keys() - needed.keys() - optional.keys()):
        known = ", ".join((*needed, *optional)) or "none"
        raise BertNumpyError(f"{place} {unknown[0]!r}: expected one of: {known}")


def _check_kind(place: str, expected: str, kind: str, fmt: str, attributes: Attributes) -> None:
    codes, _, operand = expected.partition(" of ")
    if codes == "numbers":
        if kind not in ("bfloat16", "float32"):
            raise BertNumpyError(f"{place}: expected numbers, found {kind}")
        return
    if codes == "bytes":
        if kind != "bytes":
            raise BertNumpyError(f"{place}: expected bytes, found {fmt or kind}")
        return
    described = attributes[operand] if operand else attributes
    wanted = described.get("scale_fmt" if codes == "scale codes" else "fmt")
    if kind != "codes" or fmt != wanted:
        raise BertNumpyError(f"{place}: expected codes of {wanted}, found {fmt or kind}")
