"""The colour of each format: one table for every figure, notebook and page.

The colours are those of Okabe and Ito (*Color Universal Design*, 2008), which people
with any kind of colour vision tell apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["COLORS", "OTHER", "color_of"]

#: A colour per format or family of formats. FP32's is that of the text: on a dark ground, light.
COLORS: Mapping[str, str] = MappingProxyType(
    {
        "FP32": "#000000",
        "BF16": "#777777",
        "INT8": "#D55E00",
        "E4M3": "#0072B2",
        "E5M2": "#009E73",
        "FP8": "#56B4E9",  # another format of 8 bits, or two of them in one recipe
        "MX": "#CC79A7",
        "NVFP4": "#E69F00",
    }
)

#: The colour of a series that is no format's, such as a defect or an accumulator.
OTHER = "#882255"

_FAMILIES = {
    "E4M3": ("E4M3FN",),
    "INT8": ("UINT8", "INT4", "UINT4", "W4A16"),
    "FP32": ("FLOAT32",),
    "BF16": ("BFLOAT16",),
    "FP8": (
        *("E3M4", "E3M4FN", "E4M3FNUZ", "E4M3B11FNUZ", "E5M2FNUZ", "P3109", "UE4M3"),
        "MIXED",
    ),
    "MX": ("E2M1", "E2M3", "E3M2", "E8M0FNU", "FIXED8", "MXFP8", "MXFP6", "MXFP4", "MXINT8"),
}

_FAMILY = {name: name for name in COLORS} | {
    name: family for family, names in _FAMILIES.items() for name in names
}


def color_of(name: object) -> str:
    """Return the colour of a format or a recipe.

    Parameters
    ----------
    name : object
        A format, or a name in any case, of which one part is a format: ``"int8-token"``.

    Returns
    -------
    str
        As ``"#D55E00"``; :data:`OTHER` if no part of the name is a format.

    Examples
    --------
    >>> color_of("e4m3-weights") == COLORS["E4M3"]
    True
    >>> color_of("float16") == OTHER
    True
    """
    for part in re.split("[^A-Z0-9]+", str(name).upper()):
        if part in _FAMILY:
            return COLORS[_FAMILY[part]]
    return OTHER
