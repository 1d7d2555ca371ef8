"""Which rule does a block quantizer follow? It is held against all rules of its format.

The inputs are those of :mod:`npfp8.blocks.inputs`. If no rule gives the same bytes,
:mod:`npfp8.block_mistakes` looks for the usual mistakes that explain every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from npfp8.arguments import choice, require_function
from npfp8.arrays import Array, Float32Array
from npfp8.block_mistakes import likely_block_mistake
from npfp8.block_outcomes import Outcome, compared, given_as, outcome_by_rule, outcome_of
from npfp8.blocks.formats import BlockFormat, as_block_format, with_rule
from npfp8.blocks.inputs import SOURCES, hard_inputs, special_inputs, wide_inputs
from npfp8.blocks.powers import POWER_RULES
from npfp8.blocks.ratios import RATIO_RULES
from npfp8.formats import Format

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
        The usual mistake, or two, with which a rule gives all bytes that were found, or "".
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
        It is called with arrays of 128 rows and 4 blocks per row, and with one of 8 blocks per
        row. ``codes`` are bytes, one per element in the shape of the array, or packed along the
        rows (two FP4 per byte, four FP6 in three bytes), the first in the lowest bits.
        ``scale_codes`` are bytes, (rows, blocks per row). ``tensor_scale`` is the float32
        number that the rule stores; without it, it is not compared.
        A :class:`npfp8.QuantizedTensor` is read too.
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
        If the quantizer does not follow ``rule``, raises an exception for finite numbers, or
        returns anything but bytes of the right number.
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
    inputs = _inputs(_neutral(fmt), source)
    expected, refused = _all_expected(_neutral(fmt), source)
    if rule is not None and names[0] in refused:
        raise ValueError(refused[names[0]])
    found = {name: _found(fn, name, x, fmt, source) for name, x in inputs.items()}
    expected = {name: expected[name] for name in names if name in expected}
    against = {name: _difference(name, made, found, inputs, fmt) for name, made in expected.items()}
    follows = tuple(name for name, difference in against.items() if difference is None)
    differences = [difference for difference in against.values() if difference is not None]
    mistake = "" if follows else likely_block_mistake(expected, found, inputs, fmt, source)
    if not follows and not mistake:
        _refuse_beyond(found, fmt)
    report = BlockReport(
        fmt,
        source,
        follows,
        tuple(sorted(differences, key=_distance)),
        mistake,
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


def _inputs(fmt: BlockFormat, source: str) -> dict[str, Float32Array]:
    return hard_inputs(fmt, source) | wide_inputs(fmt, source)


def _found(fn: Quantizer, name: str, x: Float32Array, fmt: BlockFormat, source: str) -> Outcome:
    """Call a quantizer; raise AssertionError, which names the tensor, if it gives no bytes."""
    try:
        given = fn(given_as(x, source))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise AssertionError(
            f"{fmt}, {source}, {name!r}: expected codes and scales, found "
            f"{type(error).__name__}: {first}"
        ) from error
    try:
        return outcome_of(given, x, fmt)
    except AssertionError as error:
        raise AssertionError(f"{fmt}, {source}, {name!r}: {error}") from error


def _refuse_beyond(found: dict[str, Outcome], fmt: BlockFormat) -> None:
    """Raise AssertionError for codes that have more bits than their format."""
    parts: tuple[tuple[str, Format], ...] = (("codes", fmt.element), ("scales", fmt.scale_format))
    for name, outcome in found.items():
        for part, one in parts:
            largest = getattr(outcome, part).max(initial=0)
            if largest >= one.values.size:
                raise AssertionError(
                    f"{fmt}, {name!r}: {part}: expected 0..{one.values.size - 1} for {one}, "
                    f"found {largest}"
                )


@lru_cache(maxsize=4)
def _all_expected(
    fmt: BlockFormat, source: str
) -> tuple[dict[str, dict[str, Outcome]], dict[str, str]]:
    """Return what every rule makes of the inputs, and why the others refuse them."""
    expected, refused = {}, {}
    for rule in POWER_RULES if fmt.powers_of_two else RATIO_RULES:
        how = with_rule(fmt, rule)
        try:
            inputs = _inputs(fmt, source)
            expected[rule] = {name: outcome_by_rule(x, how, source) for name, x in inputs.items()}
        except ValueError as error:
            refused[rule] = str(error)
    return expected, refused


def _distance(difference: RuleDifference) -> tuple[int, int, int]:
    return difference.scales, difference.codes, difference.tensor_scales


def _difference(
    rule: str,
    expected: dict[str, Outcome],
    found: dict[str, Outcome],
    inputs: dict[str, Float32Array],
    fmt: BlockFormat,
) -> RuleDifference | None:
    """Return the first difference from a rule, and the number of all; None if there is none."""
    counts = np.zeros(3, np.int64)
    first: dict[str, Any] = {}
    in_bytes = False  # whether the first difference is one of codes: these are preferred
    for name, x in inputs.items():
        one, other = expected[name], found[name]
        scales, codes, number = compared(one, other, fmt)
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
                found = outcome_of(fn(given_as(x, source)), x, fmt)
        except Exception as error:  # whatever a quantizer does with such numbers
            found = None
            raised = type(error).__name__
        for rule in follows:
            how = with_rule(fmt, rule)
            try:
                expected = outcome_by_rule(x, how, source)
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
