"""The typical defects of a block-scaled product: operands read wrongly, sums in other parts.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_numpy.kit.block_operations import BLOCK_OPERATIONS, Attributes, Inputs
from bert_numpy.kit.spans import Span
from npfp8.arrays import Array
from npfp8.formats import FORMATS

__all__ = [
    "FOUND",
    "Alone",
    "Defective",
    "Elementwise",
    "Named",
    "Spanning",
    "Together",
    "operand_defects",
]

#: ``(inputs, attributes) -> array``, or None if the defect cannot show. If the candidate has
#: this very tensor, it is an input too, called "found".
Defective = Callable[[Inputs, Attributes], "Array | None"]

#: The same with the span of all possible results.
Spanning = Callable[[Inputs, Attributes], "Span | None"]

#: The name of the candidate's tensor among the inputs.
FOUND = "found"

#: A defect: its name and its defective operations.
Named = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Elementwise:
    """A defective operation whose elements depend on the same elements of its inputs alone.

    Inputs of one number belong to every element. So a few elements are enough to find that a
    candidate's tensor was not made so.

    Attributes
    ----------
    function : callable
        A defective operation (:data:`Defective`), which does not read the candidate's tensor.
    """

    function: Defective

    def __call__(self, inputs: Inputs, attributes: Attributes) -> Array | None:
        """Apply the operation."""
        return self.function(inputs, attributes)


class Together(dict[str, Any]):
    """Defective operations that a backend has together: none is planted without the rest."""


class Alone(dict[str, Any]):
    """Defective operations that are looked for only where their own results are given.

    These are the less usual ones. To look for them behind other operations takes much longer.
    """


#: Formats of one width that are taken for each other: the right one, the wrong one.
_TAKEN_FOR = (
    ("E4M3FN", "E5M2"),
    ("E5M2", "E4M3FN"),
    ("E4M3FN", "E4M3FNUZ"),
    ("E5M2", "E5M2FNUZ"),
    ("E2M3", "E3M2"),
    ("E3M2", "E2M3"),
    ("FIXED8", "INT8"),
)

#: The formats of scales that are taken for each other, with a rule that has the wrong one.
_SCALES_TAKEN_FOR = (("E8M0FNU", "E4M3FN", "exact"), ("E4M3FN", "E8M0FNU", "floor"))

#: The operands of a sum that are read wrongly: both, or one alone.
_OPERANDS = (("a", "b"), ("a",), ("b",))

#: The run of K that an instruction for FP4 adds up at a time: several blocks.
_RUN = 64

#: From an operand's codes and attributes to other ones; None if they stay.
Reading = Callable[[Array, Attributes], "tuple[Array, Attributes] | None"]


def operand_defects(operations: Mapping[str, Defective]) -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once.

    Parameters
    ----------
    operations : mapping
        The operations as they are right.
    """
    for fmt, other in _TAKEN_FOR:
        yield from _read(f"{other} instead of {fmt}", operations, _elements_as(fmt, other))
    for fmt, other, rule in _SCALES_TAKEN_FOR:
        name = f"scales read as {other}"
        reading = _scales_as(fmt, other, rule)
        yield from _read(name, operations, reading)
        yield name, {"block_scales": _block_scales_as(fmt, other, rule)}
    name = "codes in the layout high-first (the high nibble first)"
    yield from _read(name, operations, _other_nibble)
    yield name, {"block_codes": _codes_by_other_nibble}
    runs = _in_runs(_RUN, backwards=False)
    yield f"exact sums of {_RUN} along K, added in float32", {"block_sum": runs}
    backwards = _in_runs(0, backwards=True)
    yield "exact sums of blocks of K, added in float32 from the last one", {"block_sum": backwards}


# Reading


def _read(name: str, operations: Mapping[str, Defective], reading: Reading) -> Iterator[Named]:
    """Yield the defect that operands are read wrongly: those of sums, and of dequantizing."""

    def of(operation: str, roles: Sequence[str]) -> Defective:
        def function(inputs: Inputs, attributes: Attributes) -> Array | None:
            changed, how = dict(inputs), dict(attributes)
            for role in roles:
                if "scale_fmt" in how[role]:
                    found = reading(inputs[role], how[role])
                    changed[role], how[role] = found or (inputs[role], how[role])
            same = how == attributes and all(changed[role] is inputs[role] for role in roles)
            return None if same else operations[operation](changed, how)

        return function

    for roles in _OPERANDS:
        both = {"dequantize": of("dequantize", ["x"])} if len(roles) > 1 else {}
        yield name, {"block_sum": of("block_sum", roles), **both}


def _elements_as(fmt: str, other: str) -> Reading:
    def reading(codes: Array, how: Attributes) -> tuple[Array, Attributes] | None:
        if how["fmt"] != fmt:
            return None
        return codes.view(FORMATS[other].code_dtype), {**how, "fmt": other, "rule": _any_rule(how)}

    return reading


def _any_rule(how: Attributes) -> str:
    """Return a rule that has every format of elements; what is read does not depend on it."""
    return "floor" if how["scale_fmt"] == "E8M0FNU" else str(how["rule"])


def _scales_as(fmt: str, other: str, rule: str) -> Reading:
    def reading(codes: Array, how: Attributes) -> tuple[Array, Attributes] | None:
        if how["scale_fmt"] != fmt:
            return None
        return codes, {**how, "scale_fmt": other, "rule": rule}

    return reading


def _block_scales_as(fmt: str, other: str, rule: str) -> Defective:
    def scales(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes["scale_fmt"] != fmt or "tensor_scale" in inputs:
            return None
        how = {**attributes, "scale_fmt": other, "rule": rule}
        return BLOCK_OPERATIONS["block_scales"](inputs, how)

    return scales


def _other_nibble(codes: Array, how: Attributes) -> tuple[Array, Attributes] | None:
    found = _exchanged(codes, how)
    return None if found is None else (found, how)


def _codes_by_other_nibble(inputs: Inputs, attributes: Attributes) -> Array | None:
    return _exchanged(BLOCK_OPERATIONS["block_codes"](inputs, attributes), attributes)


def _exchanged(codes: Array, how: Attributes) -> Array | None:
    """Exchange the two codes of every byte, for codes of 4 bits along the axis of blocks."""
    axis = how["axis"]
    if FORMATS[how["fmt"]].values.size != 16 or codes.shape[axis] % 2:
        return None
    return codes.take(np.arange(codes.shape[axis]) ^ 1, axis=axis)


# Sums


def _in_runs(length: int, *, backwards: bool) -> Defective:
    """Make a sum whose exact parts, of so many elements of K, are added in float32.

    With 0, the parts are the operands' blocks.
    """

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        scaled = [name for name in ("a", "b") if "scale_fmt" in attributes[name]]
        blocks = {attributes[name]["block"] for name in scaled}
        run = length or max(blocks)
        size = inputs["a"].shape[-1]
        plain = [attributes[name] for name in ("a", "b") if name not in scaled]
        if any(run % block for block in blocks) or run >= size or any("block" in x for x in plain):
            return None
        starts = range(0, size, run)
        parts = [
            BLOCK_OPERATIONS["block_sum"](_part(inputs, attributes, start, run), attributes)
            for start in (reversed(starts) if backwards else starts)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    return sums


def _part(inputs: Inputs, attributes: Attributes, start: int, run: int) -> dict[str, Array]:
    """Return the inputs of the sum over one run of K."""
    part = dict(inputs)
    for name, axis in (("a", -1), ("b", -2)):
        places = np.arange(start, min(start + run, inputs[name].shape[axis]))
        part[name] = inputs[name].take(places, axis=axis)
        if (role := f"{name}_scale_codes") in inputs:
            block = attributes[name]["block"]
            blocks = np.arange(start // block, places[-1] // block + 1)
            part[role] = inputs[role].take(blocks, axis=axis)
    return part
