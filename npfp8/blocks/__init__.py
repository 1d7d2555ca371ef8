"""Block-scaled formats (MX, NVFP4): their records, their rules, and the bytes they are kept in.

:mod:`npfp8.blocks.formats` has the formats as data; :mod:`npfp8.blocks.powers` and
:mod:`npfp8.blocks.ratios` the rules by which scales follow from numbers. :func:`npfp8.quantize`
applies them. :mod:`npfp8.blocks.layouts` has the bytes.
"""

from npfp8.blocks.formats import (
    BLOCK_FORMATS,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
    as_block_format,
)
from npfp8.blocks.layouts import (
    BLOCK_LAYOUTS,
    CODE_LAYOUTS,
    SCALE_LAYOUTS,
    BlockLayout,
    CodeLayout,
    ScaleLayout,
    pack_blocks,
    pack_codes,
    pack_scales,
    unpack_blocks,
    unpack_codes,
    unpack_scales,
)
from npfp8.blocks.powers import POWER_RULES, PowerRule
from npfp8.blocks.ratios import RATIO_RULES, RatioRule

__all__ = [
    "BLOCK_FORMATS",
    "BLOCK_LAYOUTS",
    "CODE_LAYOUTS",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NVFP4",
    "POWER_RULES",
    "RATIO_RULES",
    "SCALE_LAYOUTS",
    "BlockFormat",
    "BlockLayout",
    "CodeLayout",
    "PowerRule",
    "RatioRule",
    "ScaleLayout",
    "as_block_format",
    "pack_blocks",
    "pack_codes",
    "pack_scales",
    "unpack_blocks",
    "unpack_codes",
    "unpack_scales",
]
