"""Which rule does a block quantizer follow? It is held against all rules of its format.

The inputs are those of :mod:`npfp8.blocks.inputs`. If no rule gives the same bytes, the usual
mistakes are undone, or made, one at a time: one that explains every byte is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, require_function
from npfp8.arrays import Array, Float32Array
from npfp8.blocks.formats import BlockFormat, as_block_format, with_rule
from npfp8.blocks.inputs import SOURCES, hard_inputs, special_inputs
from npfp8.blocks.layouts import CODE_LAYOUTS, SCALE_LAYOUTS, unpack_codes, unpack_scales
from npfp8.blocks.powers import POWER_RULES, PowerRule
from npfp8.blocks.quantize import quantize_blocks
from npfp8.blocks.ratios import RATIO_RULES, RatioRule
from npfp8.codec import encode
from npfp8.codec.tables import values_of
from npfp8.formats import FloatFormat, Format
from npfp8.tensor import QuantizedTensor

__all__ = ["BlockReport", "RuleDifference", "check_block_quantizer"]


@dataclass(frozen=True)
class RuleDifference:
    """The first difference of a quantizer from a rule, and the number of all.

    Attributes
    ----------
    rule : str
    scales, codes, tensor_scales : int
        How many scales of blocks, codes of elements and numbers of tensors differ.
    input : str
        The name of the first tensor that differs.
    index : tuple of int
        Row and column of the element, or of the first one of the block.
    number : float
        The element.
    amax : float
        The largest magnitude of the block.
    scale_expected, scale_found : int
        The codes of the block's scale.
    code_expected, code_found : int
        The codes of the element.
    tensor_scale_expected, tensor_scale_found : float, optional
        The numbers of the tensor, if they differ.
    """

    rule: str
    scales: int
    codes: int
    tensor_scales: int
    input: str
    index: tuple[int, int]
    number: float
    amax: float
    scale_expected: int
    scale_found: int
    code_expected: int
    code_found: int
    tensor_scale_expected: float | None = None
    tensor_scale_found: float | None = None

    def __str__(self) -> str:
        counts = [f"{self.scales} scales and {self.codes} codes differ"]
        if self.tensor_scales:
            counts.append(f"{self.tensor_scales} tensor scales")
        where = f"first in {self.input!r} at {self.index}: {self.number:.9g} in a block of amax "
        pairs = [
            f"{name} expected 0x{expected:02X}, found 0x{found:02X}"
            for name, expected, found in (
                ("scale", self.scale_expected, self.scale_found),
                ("code", self.code_expected, self.code_found),
            )
            if expected != found
        ]
        if self.tensor_scale_expected is not None:
            expected, found = self.tensor_scale_expected, self.tensor_scale_found
            pairs.append(f"tensor scale expected {expected:.9g}, found {found:.9g}")
        return f"{self.rule}: {', '.join(counts)}; {where}{self.amax:.9g}: {'; '.join(pairs)}"


@dataclass(frozen=True, repr=False)
class BlockReport:
    """The rules that a block quantizer follows, or its first difference from each.

    Attributes
    ----------
    fmt : BlockFormat
    source : str
        The type of the numbers.
    follows : tuple of str
        The rules that have the same bytes for all finite inputs.
    differences : tuple of RuleDifference
        Those from the other rules, the nearest rule first.
    mistake : str
        The mistake that explains all differences from a rule, or "".
    special : tuple of str
        For each rule that is followed: whether it is also for infinities and NaN.
    refused : tuple of str
        The rules that do not have the format, or do not take the type.
    blocks, elements : int
        The number of blocks and elements that were compared.
    """

    fmt: BlockFormat
    source: str
    follows: tuple[str, ...]
    differences: tuple[RuleDifference, ...]
    mistake: str = ""
    special: tuple[str, ...] = ()
    refused: tuple[str, ...] = field(default=())
    blocks: int = 0
    elements: int = 0

    def __repr__(self) -> str:
        if self.follows:
            said = f"follows {', '.join(self.follows)}"
        else:
            nearest = f", nearest {self.differences[0].rule}" if self.differences else ""
            said = f"follows no rule{nearest}"
        mistake = f"; it looks like {self.mistake}" if self.mistake else ""
        return f"<BlockReport {self.fmt}, {self.source}: {said}{mistake}>"

    def __str__(self) -> str:
        lines = [f"{repr(self)[1:-1].removeprefix('BlockReport ')}"]
        lines.append(f"  compared on {self.blocks} blocks of {self.elements} {self.source} numbers")
        lines += (f"  {one}" for one in self.special)
        lines += (f"  {difference}" for difference in self.differences)
        if self.refused:
            lines.append(f"  not compared, as they refuse these inputs: {', '.join(self.refused)}")
        return "\n".join(lines)


class _Outcome(NamedTuple):
    """What a quantizer made of a tensor, all codes as bytes."""

    codes: Array
    scales: Array
    number: Float32Array | None
    packed: Array | None = None


Quantizer = Callable[[Array], Any]


def check_block_quantizer(
    fn: Quantizer, fmt: BlockFormat | str, rule: str | None = None, source: str = "float32"
) -> BlockReport:
    """Hold a block quantizer against all rules of a format, byte for byte.

    The inputs are random normal numbers (in float32, and rounded to bfloat16), ties and their
    neighbours, numbers at every threshold of a scale, powers of two, subnormal, tiny and huge
    blocks, zeros of both signs and, apart from these, infinities and NaN.

    Parameters
    ----------
    fn : callable (ndarray) -> (codes, scale_codes) or (codes, scale_codes, tensor_scale)
        It is called with arrays of 128 rows and 4 blocks per row, and also may return a
        :class:`npfp8.QuantizedTensor`. ``codes`` are bytes, one per element in the shape of the
        array, or packed along the rows (two FP4 per byte, four FP6 in three bytes), the first
        in the lowest bits. ``scale_codes`` are bytes, (128, 4). ``tensor_scale`` is the float32
        number that the rule stores; without it, it is not compared.
    fmt : BlockFormat or str
        The format, or its name. Its rule does not count.
    rule : str, optional
        The rule that must be followed for all finite numbers.
    source : {"float32", "float16", "bfloat16"}
        The type of the arrays that ``fn`` is given; bfloat16 needs ml_dtypes.

    Returns
    -------
    BlockReport

    Raises
    ------
    AssertionError
        If the quantizer does not follow ``rule``, or what it returns is no bytes of the right
        number.
    TypeError, ValueError
        If an argument is not as stated, or the rule refuses the format or the type.

    Examples
    --------
    >>> import npfp8
    >>> from npfp8 import testing
    >>> def mine(x):
    ...     q = npfp8.quantize(x, "MXFP4", rule="rceil")
    ...     return q.codes, q.scale_codes
    >>> testing.check_block_quantizer(mine, "MXFP4")
    <BlockReport MXFP4, float32: follows rceil>
    >>> report = testing.check_block_quantizer(mine, "MXFP4", source="float16")
    >>> report.differences[0].rule, report.differences[0].scales
    ('modelopt', 0)
    """
    require_function("fn", fn)
    fmt = as_block_format(fmt)
    source = choice("source", source, SOURCES)
    known = POWER_RULES if fmt.powers_of_two else RATIO_RULES
    names = tuple(known) if rule is None else (choice("rule", rule, known),)
    inputs = hard_inputs(_neutral(fmt), source)
    expected, refused = _all_expected(_neutral(fmt), source)
    if rule is not None and names[0] in refused:
        raise ValueError(refused[names[0]])
    found = {name: _outcome(fn(_given(x, source)), x, fmt) for name, x in inputs.items()}
    expected = {name: expected[name] for name in names if name in expected}
    compared = {
        name: _difference(name, made, found, inputs, fmt) for name, made in expected.items()
    }
    follows = tuple(name for name, difference in compared.items() if difference is None)
    differences = [difference for difference in compared.values() if difference is not None]
    report = BlockReport(
        fmt,
        source,
        follows,
        tuple(sorted(differences, key=_distance)),
        "" if follows else _mistake(expected, found, inputs, fmt),
        tuple(_special(fn, fmt, follows, source)),
        tuple(name for name in names if name in refused),
        sum(x.size for x in inputs.values()) // fmt.block,
        sum(x.size for x in inputs.values()),
    )
    if rule is not None and differences:
        cause = f". It looks like {report.mistake}" if report.mistake else ""
        raise AssertionError(f"{fmt}, {source}: rule {differences[0]}{cause}")
    return report


def _neutral(fmt: BlockFormat) -> BlockFormat:
    """Return the format with the rule that is first: inputs and rules do not depend on it."""
    return with_rule(fmt, next(iter(POWER_RULES if fmt.powers_of_two else RATIO_RULES)))


def _given(x: Float32Array, source: str) -> Array:
    """Return a copy in the type of the numbers."""
    if source == "bfloat16":
        import ml_dtypes  # noqa: PLC0415

        return x.astype(ml_dtypes.bfloat16)
    return x.astype(source)


def _quantized(x: Float32Array, fmt: BlockFormat, source: str) -> _Outcome:
    codes, scales, number = quantize_blocks(x, fmt, 1, source)
    return _Outcome(codes.view(np.uint8), scales, number)


@lru_cache(maxsize=4)
def _all_expected(
    fmt: BlockFormat, source: str
) -> tuple[dict[str, dict[str, _Outcome]], dict[str, str]]:
    """Return what every rule makes of the inputs, and why the others refuse them."""
    expected, refused = {}, {}
    for rule in POWER_RULES if fmt.powers_of_two else RATIO_RULES:
        how = with_rule(fmt, rule)
        try:
            inputs = hard_inputs(fmt, source)
            expected[rule] = {name: _quantized(x, how, source) for name, x in inputs.items()}
        except ValueError as error:
            refused[rule] = str(error)
    return expected, refused


# What the quantizer gave


def _outcome(given: Any, x: Float32Array, fmt: BlockFormat) -> _Outcome:
    """Read what a quantizer returned; raise AssertionError if it is nothing to compare."""
    if isinstance(given, QuantizedTensor):
        given = (given.codes, given.scale_codes, given.tensor_scale)
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        raise AssertionError(
            f"expected (codes, scale_codes) or (codes, scale_codes, tensor_scale), found "
            f"{type(given).__name__}"
        )
    codes, scales = _bytes("codes", given[0]), _bytes("scale_codes", given[1])
    number: Float32Array | None = None
    if fmt.tensor_scale and len(given) == 3 and given[2] is not None:
        one = np.asarray(given[2], np.float64)
        if one.size != 1:
            raise AssertionError(f"tensor_scale: expected one number, found {one.size}")
        with np.errstate(over="ignore"):
            number = one.reshape(()).astype(np.float32)
    blocks = (len(x), x.shape[1] // fmt.block)
    if scales.size != blocks[0] * blocks[1]:
        raise AssertionError(f"scale_codes: expected shape {blocks}, found {scales.shape}")
    packed = None
    if codes.shape != x.shape:
        bits = getattr(fmt.element, "bits", 8)
        length = x.shape[1] * bits // 8
        if bits == 8 or codes.shape != (len(x), length):
            also = "" if bits == 8 else f", or {(len(x), length)} packed"
            raise AssertionError(f"codes: expected shape {x.shape}{also}, found {codes.shape}")
        packed, codes = codes, _unpacked(codes, "low-first", fmt, x.shape[1])
    return _Outcome(codes, scales.reshape(blocks), number, packed)


def _bytes(name: str, given: Any) -> Array:
    """Return codes as bytes."""
    array = np.ascontiguousarray(given)
    wide = array.dtype.kind in "iu" and array.dtype.itemsize > 1 and array.size
    if wide and array.min() >= -128 and array.max() <= 255:
        array = (array & 0xFF).astype(np.uint8)
    if array.dtype.itemsize != 1 or array.dtype == bool:
        raise AssertionError(f"{name}: expected bytes, found {array.dtype}")
    return array.view(np.uint8)


def _unpacked(packed: Array, layout: str, fmt: BlockFormat, length: int) -> Array:
    return unpack_codes(packed, fmt.element, length, layout).view(np.uint8)


# Comparing


def _nan_codes(fmt: Format) -> tuple[int, ...]:
    return tuple(fmt.nan_codes) if isinstance(fmt, FloatFormat) else ()


def _unequal(expected: Array, found: Array, fmt: Format) -> npt.NDArray[np.bool_]:
    """Return where codes differ. All NaNs count as equal."""
    differs = expected != found
    if nan := _nan_codes(fmt):
        differs &= ~(np.isin(expected, nan) & np.isin(found, nan))
    return np.asarray(differs)


def _compared(
    expected: _Outcome, found: _Outcome, fmt: BlockFormat
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], bool]:
    """Return which scales, codes and whether the numbers of the tensor differ.

    Codes do not count in blocks whose scales are NaN.
    """
    scales = _unequal(expected.scales, found.scales, fmt.scale_format)
    codes = _unequal(expected.codes, found.codes, fmt.element)
    if nan := _nan_codes(fmt.scale_format):
        lost = np.isin(expected.scales, nan) & np.isin(found.scales, nan)
        codes &= ~lost.repeat(fmt.block, axis=1)
    number = False
    if expected.number is not None and found.number is not None:
        number = not np.array_equal(expected.number, found.number, equal_nan=True)
    return scales, codes, number


def _same(expected: _Outcome, found: _Outcome, fmt: BlockFormat) -> bool:
    scales, codes, number = _compared(expected, found, fmt)
    return not (number or scales.any() or codes.any())


def _distance(difference: RuleDifference) -> tuple[int, int, int]:
    return difference.scales, difference.codes, difference.tensor_scales


def _difference(
    rule: str,
    expected: dict[str, _Outcome],
    found: dict[str, _Outcome],
    inputs: dict[str, Float32Array],
    fmt: BlockFormat,
) -> RuleDifference | None:
    """Return the first difference from a rule, and the number of all; None if there is none."""
    counts = np.zeros(3, np.int64)
    first: dict[str, Any] = {}
    in_bytes = False  # whether the first difference is one of codes: these are preferred
    for name, x in inputs.items():
        one, other = expected[name], found[name]
        scales, codes, number = _compared(one, other, fmt)
        counts += scales.sum(), codes.sum(), number
        differs = bool(scales.any() or codes.any())
        if (differs and not in_bytes) or (number and not first):
            in_bytes = differs
            # The first block whose scale differs, or else that with a code that does.
            groups = codes.reshape(*scales.shape, fmt.block)
            where = scales if scales.any() else groups.any(2)
            row, block = np.unravel_index(int(np.argmax(where)), where.shape)
            column = block * fmt.block + int(np.argmax(groups[row, block]))
            part = x[row, block * fmt.block : (block + 1) * fmt.block]
            first = {
                "input": name,
                "index": (int(row), int(column)),
                "number": float(x[row, column]),
                "amax": float(np.abs(part).max()),
                "scale_expected": int(one.scales[row, block]),
                "scale_found": int(other.scales[row, block]),
                "code_expected": int(one.codes[row, column]),
                "code_found": int(other.codes[row, column]),
            }
            if number:
                assert one.number is not None
                assert other.number is not None
                first["tensor_scale_expected"] = float(one.number)
                first["tensor_scale_found"] = float(other.number)
    if not first:
        return None
    scales, codes, numbers = counts.tolist()
    return RuleDifference(rule, scales, codes, numbers, **first)


def _special(
    fn: Quantizer, fmt: BlockFormat, follows: tuple[str, ...], source: str
) -> Iterator[str]:
    """Yield a sentence for each kind of special number and each rule that is followed."""
    for kind, x in special_inputs(_neutral(fmt), source).items() if follows else ():
        try:
            with np.errstate(all="ignore"):
                found = _outcome(fn(_given(x, source)), x, fmt)
        except Exception as error:  # whatever a quantizer does with such numbers
            found = None
            raised = type(error).__name__
        for rule in follows:
            how = with_rule(fmt, rule)
            try:
                expected = _quantized(x, how, source)
            except ValueError:
                expected = None
            if expected is None:
                yield f"{kind}: the rule {rule} refuses it" + (
                    f", the quantizer too ({raised})" if found is None else ""
                )
            elif found is None:
                yield f"{kind}: the quantizer raises {raised}, the rule {rule} does not"
            else:
                found_all, made = {kind: found}, {kind: expected}
                difference = _difference(rule, made, found_all, {kind: x}, fmt)
                yield f"{kind}: " + (f"as {rule}" if difference is None else str(difference))


# Usual mistakes. One is undone in what was found, or made in what a rule gives.

_Undo = Callable[[_Outcome, BlockFormat], "_Outcome | None"]
_Make = Callable[[Float32Array, _Outcome, BlockFormat], "_Outcome | None"]


def _mistake(
    expected: dict[str, dict[str, _Outcome]],
    found: dict[str, _Outcome],
    inputs: dict[str, Float32Array],
    fmt: BlockFormat,
) -> str:
    """Name the mistake that explains all bytes, with the rule; "" if there is none."""
    for rule, made in expected.items():
        codes = {key: outcome._replace(number=None) for key, outcome in found.items()}
        if all(_same(made[key], codes[key], fmt) for key in inputs):
            return f"the rule {rule} with {_number_mistake(made, found)}"
    for name, undo in _undone():
        undid = {key: undo(outcome, fmt) for key, outcome in found.items()}
        if any(outcome is None for outcome in undid.values()):
            continue
        for rule, made in expected.items():
            if all(_same(made[key], undid[key], fmt) for key in inputs):  # type: ignore[arg-type]
                return f"the rule {rule} with {name}"
    for name, make in _made():
        for rule, made in expected.items():
            how = with_rule(fmt, rule)
            if all(
                (wrong := make(x, made[key], how)) is not None and _same(wrong, found[key], fmt)
                for key, x in inputs.items()
            ):
                return f"the rule {rule} with {name}"
    return ""


def _undone() -> Iterator[tuple[str, _Undo]]:
    """Yield mistakes and how they are undone."""
    yield "the high nibble first", _swapped
    for layout in CODE_LAYOUTS:
        if layout != "low-first":
            yield f"codes in the layout {layout}", partial(_repacked, layout)
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


def _swapped(outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    if getattr(fmt.element, "bits", 8) != 4:
        return None
    codes = outcome.codes
    pairs = codes.reshape(*codes.shape[:-1], -1, 2)[..., ::-1]
    return outcome._replace(codes=pairs.reshape(codes.shape))


def _repacked(layout: str, outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    if outcome.packed is None:
        return None
    try:
        codes = _unpacked(outcome.packed, layout, fmt, outcome.codes.shape[1])
    except ValueError:
        return None
    return outcome._replace(codes=codes)


def _shifted(by: int, outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    if not fmt.powers_of_two:
        return None
    return outcome._replace(scales=(outcome.scales.astype(np.int64) + by).astype(np.uint8))


def _inverted(outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    if not fmt.powers_of_two:
        return None
    return outcome._replace(scales=(254 - outcome.scales.astype(np.int64)).astype(np.uint8))


def _number_mistake(expected: dict[str, _Outcome], found: dict[str, _Outcome]) -> str:
    """Say how the numbers of tensors differ where all codes agree."""
    products = []
    for name, outcome in found.items():
        number = expected[name].number
        if number is None or outcome.number is None:
            return ""
        with np.errstate(all="ignore"):
            product = np.float64(number) * np.float64(outcome.number)
        if np.isfinite(product) and product:
            products.append(product)
    inverted = bool(products) and bool(np.isclose(products, 1, rtol=1e-6).all())
    return "the tensor scale inverted" if inverted else "another tensor scale"


def _laid_out(layout: str, outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    try:
        scales = unpack_scales(outcome.scales, outcome.scales.shape, layout)
    except ValueError:
        return None
    return outcome._replace(scales=scales)


def _by_columns(outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    rows, blocks = outcome.scales.shape
    return outcome._replace(scales=outcome.scales.reshape(blocks, rows).T)


def _made() -> Iterator[tuple[str, _Make]]:
    """Yield mistakes and how they are made."""
    yield "ties rounded away from zero", partial(_rounded, "nearest_away")
    yield "ties rounded toward zero", partial(_rounded, "nearest_toward_zero")
    yield "truncation", partial(_rounded, "toward_zero")
    yield "-0 encoded as 0", _unsigned
    yield "zero blocks with a scale of 1", _zero_is_one
    yield "the scale inverted", _reciprocal


def _rounded(
    rounding: str, x: Float32Array, outcome: _Outcome, fmt: BlockFormat
) -> _Outcome | None:
    """Encode the multiples of numbers by another rounding."""
    blocks = x.reshape(-1, fmt.block)
    scale = values_of(outcome.scales.reshape(-1, 1), fmt.scale_format, np.dtype(np.float32))
    how = fmt.how
    with np.errstate(all="ignore"):
        if isinstance(how, PowerRule):
            scaled = blocks.astype(np.float64) / scale  # exact
        else:
            factor = how.factor(scale, outcome.number, fmt.element.max, fmt.scale_format.max)
            scaled = (np.divide if how.divide else np.multiply)(blocks, factor)
    if np.isnan(scaled).any():
        scaled = np.where(np.isnan(scaled), 0, scaled)
    if isinstance(how, RatioRule) and how.negative_zero == "rounded":
        scaled = scaled + scaled.dtype.type(0)
    codes = encode(scaled, fmt.element, rounding=rounding)
    return outcome._replace(codes=codes.view(np.uint8).reshape(x.shape))


def _unsigned(x: Float32Array, outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    sign = getattr(fmt.element, "sign_bit", 0)
    return outcome._replace(codes=np.where(outcome.codes == sign, 0, outcome.codes))


def _zero_is_one(x: Float32Array, outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    zero = np.abs(x).reshape(len(x), -1, fmt.block).max(axis=2) == 0
    one = encode(np.float32(1), fmt.scale_format)
    return outcome._replace(scales=np.where(zero, one, outcome.scales))


def _reciprocal(x: Float32Array, outcome: _Outcome, fmt: BlockFormat) -> _Outcome | None:
    if fmt.powers_of_two:
        return None
    with np.errstate(all="ignore"):
        scales = np.float32(1) / values_of(outcome.scales, fmt.scale_format, np.dtype(np.float32))
    return outcome._replace(scales=encode(scales, fmt.scale_format))
