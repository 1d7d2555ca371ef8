"""Scales of activations that tell a division from a multiplication by the reciprocal.

``x / scale`` and ``x * (1 / scale)`` become different codes only where one of them is halfway
between two values. A calibrated scale leaves hardly a quotient there: of 43,400 in the layers of
the embedded kit, none. So a kit whose scales are free to choose takes, for each activation, a
scale beside the calibrated one with which some quotients of the run are such ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bert_numpy.engines.engine import Weights
from bert_numpy.model.packing import Batch
from bert_numpy.quantization.convert import QuantizedModel, planned_model
from bert_numpy.quantization.decoded_weights import DType
from bert_numpy.quantization.engine import Made, Operandlike, QuantizedEngine
from bert_numpy.quantization.plan import Scale
from bert_numpy.quantization.recipe import Operand
from npfp8 import BlockFormat, quantize
from npfp8.arrays import Array, Float32Array, IntArray
from npfp8.formats import FloatFormat, Format

__all__ = ["CHOSEN", "telling_scale", "with_telling_scales"]

#: The words of a kit's manifest for such scales.
CHOSEN = (
    "those of activations are the calibration's, each moved by less than 1 % to a number with "
    "which some quotients of the first input are ties that a division alone finds"
)

#: How far a scale is moved down and up, relative to itself. Down, the largest magnitude must stay
#: below the value beyond which it would saturate, also in INT8 (127.25).
_DOWN, _UP = -(2.0**-9), 2.0**-7


def telling_scale(x: Float32Array, scale: float, fmt: Format) -> Float32Array:
    """Find a scale near another one with which quotients are ties, and a reciprocal shows.

    Parameters
    ----------
    x : ndarray of float32
        The numbers to quantize.
    scale : float
        The scale to begin from.
    fmt : Format
        The format of the codes, without a zero point.

    Returns
    -------
    ndarray of float32, ()
        The scale within 1 % of ``scale`` that shows the most of three mistakes: multiplying by
        the reciprocal, rounding ties away from zero, and toward zero; of several, the nearest.
        It is ``scale`` itself if none shows any.
    """
    start = np.float32(scale)
    best, most = np.asarray(start), 0
    numbers = np.unique(np.abs(x))
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    values = fmt.grid[:-1] if isinstance(fmt, FloatFormat) else fmt.values[: fmt.max_code + 1]
    ties = (values[:-1] + values[1:]) / 2
    quotients = numbers[:, None] / ties / float(start)
    row, column = np.nonzero((quotients > 1 + _DOWN) & (quotients < 1 + _UP))
    near = (numbers[row] / ties[column]).astype(np.float32)
    near = np.unique([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1e9))])
    for candidate in near[np.argsort(np.abs(near - start), kind="stable")]:
        shown = _shown(numbers, candidate, fmt, ties, values)
        if shown > most:
            best, most = np.asarray(candidate), shown
    return best


def _shown(x: Float32Array, scale: np.float32, fmt: Format, ties: Array, values: Array) -> int:
    """Count which of the three mistakes change a code of positive numbers with a scale."""
    quotient = x / scale
    index = np.searchsorted(ties, quotient)
    is_tie = (index < len(ties)) & (ties[np.minimum(index, len(ties) - 1)] == quotient)
    right = quantize(x, fmt, scale).codes
    reciprocal = quantize(x * (np.float32(1) / scale), fmt, np.float32(1)).codes
    up = fmt.values[right[is_tie]] > quotient[is_tie]
    # The reciprocal counts most: ties of both kinds come with the scales of other activations.
    return 4 * bool((right != reciprocal).any()) + bool(up.any()) + bool((~up).any())


@dataclass(frozen=True, eq=False)
class _ChoosingEngine(QuantizedEngine):
    """A quantized engine that replaces each static scale by a telling one, and keeps them."""

    chosen: dict[str, Scale] = field(default_factory=dict)

    fuses_activation = False  # a scale is chosen by the activation's results

    def codes(
        self,
        name: str,
        x: Operandlike,
        operand: Operand,
        static: Scale | None,
        k_axis: int,
        made: Made | None = None,
        dtype: DType | None = None,
        activation: str | None = None,
    ) -> Operandlike:
        """Quantize an operand with the scale chosen for it."""
        fmt = operand.fmt
        if static is not None and isinstance(x, np.ndarray) and fmt is not None:
            free = static.zero_point is None and not operand.power_of_two
            if name not in self.chosen and free and not isinstance(fmt, BlockFormat):
                self.chosen[name] = Scale(telling_scale(x, float(static.scale), fmt))
            static = self.chosen.get(name, static)
        return super().codes(name, x, operand, static, k_axis, made, dtype, activation)


def with_telling_scales(model: QuantizedModel, inputs: Mapping[str, IntArray]) -> QuantizedModel:
    """Return a golden model whose static scales make quotients of one input ties.

    Parameters
    ----------
    model : QuantizedModel
        A golden model.
    inputs : mapping of str to ndarray
        The model's arguments for the input. Scales are chosen in the order of the data flow, each
        by the numbers that the scales before it have led to.
    """
    chosen: dict[str, Scale] = {}

    def engine(weights: Weights, batch: Batch) -> QuantizedEngine:
        own = model.engine(weights, batch)
        assert isinstance(own, QuantizedEngine)
        return _ChoosingEngine(
            own.inner,
            own.weights,
            own.batch,
            own.recipe,
            own.plans,
            own.kept,
            own.check,
            chosen=chosen,
        )

    replace(model, engine=engine)(**inputs)
    plans = {
        site: replace(plan, a=chosen.get(f"{site}:a", plan.a), b=chosen.get(f"{site}:b", plan.b))
        for site, plan in model.plans.items()
    }
    return planned_model(model.config, model.weights, model.recipe, plans, model.name, golden=True)
