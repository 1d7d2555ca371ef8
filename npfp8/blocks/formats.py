"""Block formats as data: elements that share a scale, which is a code itself.

A :class:`BlockFormat` states what a specification states: the format of the elements, the
length of a block, the format of its scale, and whether one more scale, in float32, is shared
by the whole tensor. It also names the rule by which a scale follows from the numbers, as
implementations differ in it (:mod:`npfp8.blocks.powers`, :mod:`npfp8.blocks.ratios`).

Sources: *OCP Microscaling Formats (MX) Specification* version 1.0, sections 5.1 to 5.4, for
the MX formats; NVIDIA, *Pretraining Large Language Models with NVFP4* (arXiv 2509.25149),
section 2, for NVFP4.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from npfp8.arguments import choice, flag, integer, require, wrong_type
from npfp8.blocks.powers import POWER_RULES, PowerRule
from npfp8.blocks.ratios import RATIO_RULES, RatioRule
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E5M2,
    E8M0FNU,
    FIXED8,
    FloatFormat,
    Format,
    as_float_format,
    as_format,
)
from npfp8.names import match, suggestion

__all__ = [
    "BLOCK_FORMATS",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NVFP4",
    "BlockFormat",
    "as_block_format",
    "with_rule",
]

#: The largest block: its number of elements fits into an index on every machine.
_MAX_BLOCK = 2**31 - 1


@dataclass(frozen=True, repr=False)
class BlockFormat:
    """A format in which runs of elements along an axis share a scale of few bits.

    The value of an element is ``code value * scale``, times the tensor's factor if the format
    has one. The rule says whether the number stored for the tensor is this factor
    (:meth:`~npfp8.blocks.ratios.RatioRule.multiplier`).

    Parameters
    ----------
    element : FloatFormat, IntFormat or str
        The format of the codes; not one with a zero point.
    block : int
        The number of elements that share a scale. A tensor whose axis is no multiple of it
        has a shorter last block: the missing elements count as zeros.
    scale_format : FloatFormat or str
        The format of the scales: E8M0FNU, or another of powers of two, or a format with a
        mantissa and a zero, such as E4M3FN.
    rule : str
        How scales and codes follow from numbers: a key of :data:`npfp8.POWER_RULES` if the
        scales are powers of two, else one of :data:`npfp8.RATIO_RULES`.
    tensor_scale : bool
        Whether the scales of the blocks are relative to one float32 number per tensor.
        Scales that are powers of two are not.
    name : str
        The name in messages and reports. Formats that differ only in name are equal.

    Raises
    ------
    TypeError, ValueError
        If a field is not as stated above.

    Examples
    --------
    >>> import npfp8
    >>> npfp8.MXFP4
    <BlockFormat MXFP4: E2M1 in blocks of 32, scales E8M0FNU by the rule floor>
    >>> mine = npfp8.BlockFormat("E4M3FN", 16, rule="rceil", name="mine")
    >>> npfp8.quantize([1.0, 500.0], mine).scale
    array([2.], dtype=float32)
    """

    element: Format
    block: int
    scale_format: FloatFormat = E8M0FNU
    rule: str = "floor"
    tensor_scale: bool = False
    name: str = field(default="custom", compare=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the way to normalise a field of a frozen dataclass
        require("name", self.name, str, "a str")
        set_field(self, "element", as_format(self.element, "element"))
        set_field(self, "scale_format", as_float_format(self.scale_format, "scale_format"))
        set_field(self, "block", integer("block", self.block))
        set_field(self, "tensor_scale", flag("tensor_scale", self.tensor_scale))
        if self.element.has_zero_point:
            raise ValueError(
                f"{self.name}: element: expected a format without a zero point, "
                f"found {self.element}"
            )
        if not 1 <= self.block <= _MAX_BLOCK:
            raise ValueError(f"{self.name}: block: expected 1..{_MAX_BLOCK}, found {self.block}")
        scale = self.scale_format
        if not self.powers_of_two and not (scale.has_zero and scale.mantissa_bits):
            raise ValueError(
                f"{self.name}: scale_format: expected powers of two without zero, or a mantissa "
                f"and a zero, found {scale}"
            )
        if self.powers_of_two and self.tensor_scale:
            raise ValueError(f"{self.name}: tensor_scale: expected False for scales {scale}")
        rules = POWER_RULES if self.powers_of_two else RATIO_RULES
        set_field(self, "rule", choice("rule", self.rule, rules))

    @property
    def powers_of_two(self) -> bool:
        """Whether all scales are powers of two."""
        return not self.scale_format.mantissa_bits and not self.scale_format.has_zero

    @property
    def how(self) -> PowerRule | RatioRule:
        """The rule's record."""
        return POWER_RULES[self.rule] if self.powers_of_two else RATIO_RULES[self.rule]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        tensor = ", one float32 scale per tensor" if self.tensor_scale else ""
        return (
            f"<BlockFormat {self.name}: {self.element} in blocks of {self.block}, scales "
            f"{self.scale_format}{tensor} by the rule {self.rule}>"
        )


#: OCP MX's FP8 with E4M3 elements.
MXFP8_E4M3 = BlockFormat(E4M3FN, 32, name="MXFP8_E4M3")

#: OCP MX's FP8 with E5M2 elements.
MXFP8_E5M2 = BlockFormat(E5M2, 32, name="MXFP8_E5M2")

#: OCP MX's FP6 with E3M2 elements.
MXFP6_E3M2 = BlockFormat(E3M2, 32, name="MXFP6_E3M2")

#: OCP MX's FP6 with E2M3 elements.
MXFP6_E2M3 = BlockFormat(E2M3, 32, name="MXFP6_E2M3")

#: OCP MX's FP4.
MXFP4 = BlockFormat(E2M1, 32, name="MXFP4")

#: OCP MX's INT8: fixed point with 6 fraction bits.
MXINT8 = BlockFormat(FIXED8, 32, name="MXINT8")

#: NVIDIA's FP4: blocks of 16 with an E4M3 scale, and one float32 scale per tensor.
NVFP4 = BlockFormat(E2M1, 16, E4M3FN, rule="te", tensor_scale=True, name="NVFP4")

#: The block formats above, by name.
BLOCK_FORMATS = {
    fmt.name: fmt for fmt in (MXFP8_E4M3, MXFP8_E5M2, MXFP6_E3M2, MXFP6_E2M3, MXFP4, MXINT8, NVFP4)
}


def as_block_format(fmt: BlockFormat | str, argument: str = "fmt") -> BlockFormat:
    """Return a block format that is given as such or by its name, in upper or lower case.

    Parameters
    ----------
    fmt : BlockFormat or str
    argument : str
        The name of the argument, for the error.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If no block format has the name; suggests the nearest one.

    Examples
    --------
    >>> from npfp8.blocks import as_block_format
    >>> as_block_format("nvfp4").block
    16
    """
    if isinstance(fmt, BlockFormat):
        return fmt
    if not isinstance(fmt, str):
        raise wrong_type(argument, "a block format or its name, such as 'MXFP4'", fmt)
    name = match(fmt, BLOCK_FORMATS)
    if name is None:
        raise ValueError(
            f"{argument}: expected a block format ({', '.join(BLOCK_FORMATS)}), found {fmt!r}"
            f"{suggestion(fmt, BLOCK_FORMATS)}"
        )
    return BLOCK_FORMATS[name]


@lru_cache(maxsize=256)
def with_rule(fmt: BlockFormat, rule: str) -> BlockFormat:
    """Return a block format with another rule."""
    return fmt if rule == fmt.rule else replace(fmt, rule=rule)
