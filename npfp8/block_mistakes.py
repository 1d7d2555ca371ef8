"""Usual mistakes of block quantizers: the one or two that explain every byte are named.

A mistake is undone in what a quantizer gave, or made in what a rule gives; mistakes about the
sign of zero are made after others. The number of the tensor is looked at apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np

from npfp8.arrays import Array, Float32Array
from npfp8.block_outcomes import Outcome, outcome_by_rule, same, unpacked
from npfp8.blocks.formats import BLOCK_FORMATS, BlockFormat, with_rule
from npfp8.blocks.inputs import to_source
from npfp8.blocks.layouts import CODE_LAYOUTS, SCALE_LAYOUTS, unpack_scales
from npfp8.blocks.layouts.runs import bits_of
from npfp8.blocks.powers import PowerRule
from npfp8.blocks.ratios import RatioRule
from npfp8.codec import encode
from npfp8.codec.tables import values_of
from npfp8.formats import FloatFormat, Format

__all__ = ["likely_block_mistake"]

#: More mistakes at once are not looked for, the number of the tensor aside.
_AT_ONCE = 2

Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class _Case:
    """A tensor, what a rule makes of it, the rule as that of a format, and what was found."""

    x: Float32Array
    made: Outcome
    how: BlockFormat
    source: str
    found: Outcome


_Undo = Callable[[Outcome, BlockFormat], "Outcome | None"]
_Make = Callable[[_Case], "Outcome | None"]


def likely_block_mistake(
    expected: dict[str, Outcomes],
    found: Outcomes,
    inputs: dict[str, Float32Array],
    fmt: BlockFormat,
    source: str,
) -> str:
    """Name the mistakes that explain all bytes, with the rule; "" if there are none.

    Parameters
    ----------
    expected : dict of str to dict of str to Outcome
        For each rule, what it makes of each tensor.
    found : dict of str to Outcome
        What the quantizer makes of it.
    inputs : dict of str to ndarray of float32
    fmt : BlockFormat
    source : {"float32", "float16", "bfloat16"}
        The type of the numbers.
    """
    undoes = {"": _nothing} | dict(_codes_undone()), {"": _nothing} | dict(_scales_undone())
    makes = {"": _as_it_is} | dict(_made(found, fmt, source)), {"": _as_it_is} | dict(_signs(fmt))

    @cache
    def undone(codes: str, scales: str, key: str) -> Outcome | None:
        outcome = undoes[0][codes](found[key], fmt)
        return None if outcome is None else undoes[1][scales](outcome, fmt)

    @cache
    def made(rule: str, name: str, key: str) -> Outcome | None:
        how = with_rule(fmt, rule)
        try:
            return makes[0][name](_Case(inputs[key], expected[rule][key], how, source, found[key]))
        except ValueError:  # the rule refuses such numbers or elements
            return None

    def explains(rule: str, codes: str, scales: str, name: str, sign: str) -> bool:
        for key, x in inputs.items():
            right, wrong = undone(codes, scales, key), made(rule, name, key)
            if right is None or wrong is None:
                return False
            if sign:
                wrong = makes[1][sign](_Case(x, wrong, fmt, source, found[key]))
            if wrong is None or not same(wrong, right, fmt):
                return False
        return True

    def count(names: tuple[str, ...]) -> int:
        return sum(map(bool, names))

    # What is undone costs less than what is made: of as many mistakes, it is tried first.
    for name, sign, codes, scales in sorted(product(*makes, *undoes), key=count):
        names = codes, scales, name, sign
        if count(names) > _AT_ONCE:
            break
        for rule in expected:
            if explains(rule, *names):
                wrong = {key: outcome for key in found if (outcome := made(rule, name, key))}
                number = _number_mistake(with_rule(fmt, rule), wrong, found, inputs)
                return f"the rule {rule} with {' and '.join(filter(None, (*names, number)))}"
    return ""


def _nothing(outcome: Outcome, fmt: BlockFormat) -> Outcome:
    return outcome


def _as_it_is(case: _Case) -> Outcome:
    return case.made


# Undone in what was found


def _codes_undone() -> Iterator[tuple[str, _Undo]]:
    """Yield mistakes about the places of codes, and how they are undone."""
    yield "the high nibble first", _swapped
    for layout in CODE_LAYOUTS:
        if layout != "low-first":
            yield f"codes in the layout {layout}", partial(_repacked, layout)
    yield "codes in the upper bits of bytes", _lowered


def _scales_undone() -> Iterator[tuple[str, _Undo]]:
    """Yield mistakes about the codes of scales and their places, and how they are undone."""
    yield "the scale's exponent without its bias", partial(_shifted, 127)
    for by in (1, -1):
        yield (
            f"the scale's exponent {'too large' if by < 0 else 'too small'} by 1",
            partial(_shifted, by),
        )
    yield "the scale inverted", _inverted
    for layout in SCALE_LAYOUTS:
        if layout != "linear":
            yield f"scales in the layout {layout}", partial(_laid_out, layout)
    yield "scales in the order of columns", _by_columns


def _swapped(outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    if bits_of(fmt.element) != 4:
        return None
    codes = outcome.codes
    pairs = codes.reshape(*codes.shape[:-1], -1, 2)[..., ::-1]
    return outcome._replace(codes=pairs.reshape(codes.shape))


def _repacked(layout: str, outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    if outcome.packed is None or bits_of(fmt.element) == 8:
        return None
    try:
        codes = unpacked(outcome.packed, layout, fmt, outcome.codes.shape[1])
    except ValueError:
        return None
    return outcome._replace(codes=codes)


def _lowered(outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    free = 8 - bits_of(fmt.element)
    if not free or (outcome.codes & np.uint8((1 << free) - 1)).any():
        return None
    return outcome._replace(codes=outcome.codes >> np.uint8(free))


def _shifted(by: int, outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    if not fmt.powers_of_two:
        return None
    return outcome._replace(scales=(outcome.scales.astype(np.int64) + by).astype(np.uint8))


def _inverted(outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    if not fmt.powers_of_two:
        return None
    return outcome._replace(scales=(254 - outcome.scales.astype(np.int64)).astype(np.uint8))


def _laid_out(layout: str, outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    try:
        scales = unpack_scales(outcome.scales, outcome.scales.shape, layout)
    except ValueError:
        return None
    return outcome._replace(scales=scales)


def _by_columns(outcome: Outcome, fmt: BlockFormat) -> Outcome | None:
    rows, blocks = outcome.scales.shape
    return outcome._replace(scales=outcome.scales.reshape(blocks, rows).T)


# Made in what a rule gives


def _made(found: Outcomes, fmt: BlockFormat, source: str) -> Iterator[tuple[str, _Make]]:
    """Yield mistakes and how they are made."""
    yield "ties rounded away from zero", partial(_encoded, rounding="nearest_away")
    yield "ties rounded toward zero", partial(_encoded, rounding="nearest_toward_zero")
    yield "ties rounded up", _ties_up
    yield "truncation", partial(_encoded, rounding="toward_zero")
    yield "numbers beyond the largest not saturated", partial(_encoded, saturate=False)
    yield "zero blocks with a scale of 1", _zero_is_one
    yield "the scale inverted", _reciprocal
    if fmt.powers_of_two:
        yield "scales twice as large", partial(_scaled, 1)
        yield "scales half as large", partial(_scaled, -1)
    scales = np.concatenate([outcome.scales.reshape(-1) for outcome in found.values()])
    for side, end in (("below", scales.min()), ("above", scales.max())):
        name = f"no scale {side} 0x{end:02X}"
        yield name, partial(_limited, side, end, False)
        yield f"{name}, and elements to match", partial(_limited, side, end, True)
    yield "subnormal numbers flushed to zero", partial(_flushed, True)
    yield "subnormal numbers flushed to +0", partial(_flushed, False)
    if source == "float32":
        for narrow in ("bfloat16", "float16"):
            yield f"numbers rounded to {narrow} first", partial(_narrowed, narrow)
    else:
        yield "numbers taken as float32", _as_float32
    yield "blocks along axis 0", _along_rows
    for other in dict.fromkeys(known.element for known in BLOCK_FORMATS.values()):
        if other != fmt.element and other.values.size == fmt.element.values.size:
            yield f"elements in {other}", partial(_elements, other)
    for name, steps in (
        ("some scales one code larger", (0, 1)),
        ("some scales one code smaller", (-1, 0)),
        ("some scales one code larger or smaller", (-1, 1)),
        ("other scales", (-255, 255)),
    ):
        yield f"{name}, and elements to match", partial(_other_scales, *steps)


def _quotients(case: _Case, scales: Array, number: Float32Array | None) -> Array:
    """Return what is rounded to codes under scales and a number of the tensor, in blocks."""
    fmt, how = case.how, case.how.how
    blocks = case.x.reshape(-1, fmt.block)
    scale = values_of(scales.reshape(-1, 1), fmt.scale_format, np.dtype(np.float32))
    with np.errstate(all="ignore"):
        if isinstance(how, PowerRule):
            scaled = blocks.astype(np.float64) / scale  # exact
        else:
            factor = how.factor(scale, number, fmt.element.max, fmt.scale_format.max)
            scaled = (np.divide if how.divide else np.multiply)(blocks, factor)
    scaled = np.where(np.isnan(scaled), 0, scaled)
    if isinstance(how, RatioRule) and how.negative_zero == "rounded":
        scaled = scaled + scaled.dtype.type(0)
    return scaled


def _encoded(
    case: _Case,
    scales: Array | None = None,
    number: Float32Array | None = None,
    rounding: str = "nearest",
    saturate: bool = True,
) -> Outcome:
    """Encode the multiples of numbers under other scales, or in another way."""
    scales = case.made.scales if scales is None else scales
    scaled = _quotients(case, scales, case.made.number if number is None else number)
    codes = encode(scaled, case.how.element, saturate, rounding=rounding)
    return case.made._replace(codes=codes.view(np.uint8).reshape(case.x.shape), scales=scales)


def _ties_up(case: _Case) -> Outcome:
    up = _encoded(case, rounding="nearest_away")
    down = _encoded(case, rounding="nearest_toward_zero")
    return up._replace(codes=np.where(case.x > 0, up.codes, down.codes))


def _zero_is_one(case: _Case) -> Outcome:
    zero = np.abs(case.x).reshape(*case.made.scales.shape, -1).max(axis=2) == 0
    one = encode(np.float32(1), case.how.scale_format)
    return case.made._replace(scales=np.where(zero, one, case.made.scales))


def _reciprocal(case: _Case) -> Outcome | None:
    fmt = case.how.scale_format
    if case.how.powers_of_two:
        return None
    with np.errstate(all="ignore"):
        scales = np.float32(1) / values_of(case.made.scales, fmt, np.dtype(np.float32))
    return case.made._replace(scales=encode(scales, fmt))


def _scaled(by: int, case: _Case) -> Outcome:
    scales = case.made.scales.astype(np.int64) + by
    return _encoded(case, np.clip(scales, 0, case.how.scale_format.max_code).astype(np.uint8))


def _limited(side: str, end: int, matching: bool, case: _Case) -> Outcome:
    limit = np.maximum if side == "below" else np.minimum
    scales = limit(case.made.scales, np.uint8(end))
    return _encoded(case, scales) if matching else case.made._replace(scales=scales)


def _flushed(signed: bool, case: _Case) -> Outcome:
    smallest = 2.0**-14 if case.source == "float16" else 2.0**-126
    zero = np.copysign(np.float32(0), case.x) if signed else np.float32(0)
    x = np.where(np.abs(case.x) < smallest, zero, case.x)
    return outcome_by_rule(x.astype(np.float32), case.how, case.source)


def _narrowed(narrow: str, case: _Case) -> Outcome:
    return outcome_by_rule(to_source(case.x, narrow), case.how, case.source)


def _as_float32(case: _Case) -> Outcome:
    return outcome_by_rule(case.x, case.how, "float32")


def _along_rows(case: _Case) -> Outcome | None:
    if len(case.x) % case.how.block:
        return None
    outcome = outcome_by_rule(case.x, case.how, case.source, axis=0)
    return outcome._replace(scales=outcome.scales.reshape(case.made.scales.shape))


def _other_scales(low: int, high: int, case: _Case) -> Outcome | None:
    steps = case.found.scales.astype(np.int64) - case.made.scales
    if steps.min() < low or steps.max() > high:
        return None
    return _encoded(case, case.found.scales, case.found.number)


def _elements(element: Format, case: _Case) -> Outcome:
    return outcome_by_rule(case.x, replace(case.how, element=element), case.source)


# The signs of codes


def _signs(fmt: BlockFormat) -> Iterator[tuple[str, _Make]]:
    """Yield mistakes about signs and how they are made, if the elements have a -0."""
    if not isinstance(fmt.element, FloatFormat) or not fmt.element.has_negative_zero:
        return
    sign = np.uint8(fmt.element.sign_bit)

    def put(code: np.uint8, where: Callable[[Float32Array, Array], Array]) -> _Make:
        def make(case: _Case) -> Outcome:
            codes = case.made.codes
            return case.made._replace(codes=np.where(where(case.x, codes), code, codes))

        return make

    zero = np.uint8(0)
    yield "-0 encoded as 0", put(zero, lambda x, codes: codes == sign)
    yield "the sign of -0 itself lost", put(zero, lambda x, codes: (x == 0) & (codes == sign))
    yield "the sign of -0 itself kept", put(sign, lambda x, codes: np.signbit(x) & (codes == 0))
    yield "0 encoded as -0", put(sign, lambda x, codes: codes == 0)
    yield "the signs lost", lambda case: case.made._replace(codes=case.made.codes & ~sign)


# The number of the tensor

_STORED = {
    "multiplier": "a factor of the values",
    "divisor": "a divisor of the values",
    "absmax": "the largest magnitude",
}


def _number_mistake(
    how: BlockFormat, expected: Outcomes, found: Outcomes, inputs: dict[str, Float32Array]
) -> str:
    """Say how the numbers of tensors differ; "" if they do not."""
    rule, ends = how.how, (how.element.max, how.scale_format.max)
    rows, differs = [], False
    for key, x in inputs.items():
        one, other = expected[key].number, found[key].number
        if one is None or other is None:
            continue
        assert isinstance(rule, RatioRule)
        differs |= not np.array_equal(one, other, equal_nan=True)
        if 2.0**-60 < np.abs(x).max() < 2.0**60:  # beyond, rules are limited in their own ways
            rows.append((one, other, rule.multiplier(one, *ends)))
    if not differs:
        return ""
    assert isinstance(rule, RatioRule)
    right, wrong, factors = np.array(rows, np.float64).T
    with np.errstate(all="ignore"):
        ratios = wrong / right
    meanings = {
        "multiplier": factors,
        "divisor": 1 / factors,
        "absmax": factors * ends[0] * ends[1],
    }

    def close(one: Array, other: Array | float) -> bool:
        return bool(np.isclose(one, other, rtol=1e-6, atol=0).all())

    said = {"the tensor scale inverted": close(right * wrong, 1)}
    for name, meaning in meanings.items():
        stored = f"the tensor scale stored as {_STORED[name]}, not as {_STORED[rule.stored]}"
        said[stored] = name != rule.stored and close(wrong, meaning)
    said["another tensor scale of tensors at the ends of the range"] = close(ratios, 1)
    said[f"the tensor scale multiplied by {ratios[0]:.6g}"] = close(ratios, ratios[0])
    return next((one for one, holds in said.items() if holds), "another tensor scale")
