"""Adding a fused attention to a kit, tile by tile: the operators' cases, and a golden model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_numpy.kit.builder import Builder
from bert_numpy.kit.manifest import Reference
from bert_numpy.quantization.tiled_attention import TiledAttention
from npfp8 import ACCUMULATORS
from npfp8.arrays import chunks
from npfp8.formats import FloatFormat

__all__ = ["Operands", "add_attention"]


@dataclass(frozen=True)
class Operands:
    """The tensors that an attention is computed from, by their names in the kit.

    Attributes
    ----------
    q, k, v : Reference
        Codes of shapes (..., queries, d), (..., d, keys) and (..., keys, d).
    q_scale, k_scale, v_scale : Reference
    bias : Reference, optional
        (..., queries, keys), added to the scores.
    """

    q: Reference
    k: Reference
    v: Reference
    q_scale: Reference
    k_scale: Reference
    v_scale: Reference
    bias: Reference | None = None


def add_attention(
    builder: Builder,
    level: str,
    name: Callable[[str, int | None], str],
    given: Operands,
    factor: float,
    fmt: FloatFormat,
    how: TiledAttention,
    accumulate: str = "exact",
) -> Reference:
    """Add every step of an attention, and return the result in float32.

    A name that the builder has already is a step of another attention that is the same.

    Parameters
    ----------
    builder : Builder
    level : str
    name : callable
        Names a step from what it is and the number of its tile, None for the result.
    given : Operands
    factor : float
        1/sqrt(d).
    fmt : FloatFormat
        The format of the weights.
    how : TiledAttention
    accumulate : str
        The accumulator of both products.
    """

    def compute(
        what: str,
        tile: int | None,
        operation: str,
        inputs: Mapping[str, Reference],
        attributes: Mapping[str, Any] | None = None,
        fmt: FloatFormat | None = None,
    ) -> Reference:
        made = name(what, tile)
        if made not in builder.tensors:
            builder.compute(made, level, operation, inputs, attributes, fmt=fmt)
        return Reference(made)

    def product(a: Reference, b: Reference) -> dict[str, Any]:
        described: dict[str, Any] = {
            role: {"fmt": tensor.fmt, "ndim": builder.arrays[tensor.name].ndim}
            for role, tensor in (("a", builder.tensors[a.tensor]), ("b", builder.tensors[b.tensor]))
        }
        if ACCUMULATORS[accumulate].kind != "exact":
            described["accumulate"] = accumulate
        return described

    keys = builder.arrays[given.k.tensor].shape[-1]
    before: dict[str, Reference] = {}
    for tile, part in enumerate(chunks(keys, how.keys)):
        places = f"{part.start}:{min(part.stop, keys)}"
        columns, rows = f"columns:{places}", f"rows:{places}"
        k, v = Reference(given.k.tensor, columns), Reference(given.v.tensor, rows)
        total = compute("sum", tile, "sum", {"a": given.q, "b": k}, product(given.q, k))
        inputs = {"sum": total, "q_scale": given.q_scale, "k_scale": given.k_scale}
        if given.bias is not None:
            inputs["bias"] = Reference(given.bias.tensor, columns)
        scores = compute(
            "scores", tile, "attention_scores", inputs, {"factor": float(np.float32(factor))}
        )
        inputs = {"x": scores} | ({"before": before["maximum"]} if before else {})
        maximum = compute("maximum", tile, "running_maximum", inputs)
        inputs = {"x": scores, "maximum": maximum}
        weights = compute("weights", tile, "attention_weights", inputs, {"offset": how.offset})
        attributes: dict[str, Any] = {"fmt": str(fmt)}
        rounded = attributes | {"saturate": True, "rounding": "nearest"}
        codes = compute("codes", tile, "encode", {"x": weights}, rounded, fmt)
        inputs, of_codes = {"x": weights}, how.row_sum == "quantized"
        inputs |= {"codes": codes} if of_codes else {}
        sums = {
            "total": compute("row_sum", tile, "row_sum", inputs, attributes if of_codes else None),
            "output": compute("product", tile, "sum", {"a": codes, "b": v}, product(codes, v)),
        }
        if before:
            inputs = {"before": before["maximum"], "maximum": maximum}
            rescale = compute("rescale", tile, "rescaling", inputs)
            for what, x in sums.items():
                inputs = {"x": x, "before": before[what], "rescale": rescale}
                sums[what] = compute(what, tile, f"running_{what}", inputs)
        before = {"maximum": maximum, **sums}
    inputs = {"output": before["output"], "total": before["total"], "v_scale": given.v_scale}
    return compute("attention", None, "attention", inputs)
