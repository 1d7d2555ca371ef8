"""Recipes: what is quantized, and into which format."""

from __future__ import annotations

from dataclasses import dataclass

from bert_numpy.errors import BertNumpyError
from npfp8 import E4M3FN, E5M2, INT8, Format

__all__ = ["PRESETS", "Recipe", "preset"]


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    The encoder's linear layers and both attention products are quantized with
    one static scale per tensor; the pooler and the head are not (FP8-BERT,
    section 3).

    Attributes
    ----------
    name : str
        As on the command line.
    fmt : FloatFormat or IntFormat, optional
        The format of both operands of every quantized product; None quantizes
        nothing.
    arithmetic : str
        The precision of everything else: "bfloat16" or "float32".
    accumulate : str
        See :func:`npfp8.matmul`.
    """

    name: str
    fmt: Format | None
    arithmetic: str = "bfloat16"
    accumulate: str = "exact"

    def quantizes(self, site: str) -> bool:
        """Whether the product at ``site`` is quantized."""
        return self.fmt is not None and site.startswith("encoder.")


#: The named recipes, from the reference to the coarsest.
PRESETS = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", None, arithmetic="float32"),
        Recipe("bf16", None),
        Recipe("int8", INT8),
        Recipe("e4m3", E4M3FN),
        Recipe("e5m2", E5M2),
    )
}


def preset(name: str) -> Recipe:
    """Look a recipe up by its name; raises :class:`BertNumpyError` if there is none."""
    if name not in PRESETS:
        raise BertNumpyError(f"format: expected one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name]
