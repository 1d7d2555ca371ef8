"""Calibration: the range of every product's operands over a sample of real input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from bert_numpy.model import Model
from bert_numpy.policy import Operand, Policy, float32_policy
from npfp8 import Format, absmax_scale

__all__ = ["Calibration", "calibrate"]

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """The absolute maxima of both operands of every site.

    Attributes
    ----------
    absmax : mapping of str to (float, float)
        By site: the left operand (the activations, Q, or the attention
        weights P) and the right one (the layer's weights, K^T, or V).
    samples : int
        How many sequences were seen.
    """

    absmax: Mapping[str, tuple[float, float]]
    samples: int

    def scales(self, site: str, fmt: Format) -> tuple[Float32Array, Float32Array]:
        """The static scales of both operands of ``site`` in ``fmt``.

        Raises
        ------
        BertNumpyError
            If the calibration did not see the site.
        """
        if site not in self.absmax:
            raise BertNumpyError(f"calibration: site {site!r}: expected absmax, found none")
        left, right = self.absmax[site]
        return absmax_scale(left, fmt), absmax_scale(right, fmt)


def calibrate(
    model: Model, batches: Iterable[Mapping[str, npt.NDArray[np.int64]]], golden: bool = False
) -> Calibration:
    """Run the model in float32 over a sample and note the operands' absolute maxima.

    Parameters
    ----------
    model : Model
        Its weights must not be quantized.
    batches : iterable of mappings
        The arguments of calls of the model: ``input_ids`` and so on.
    golden : bool
        Whether to run in golden arithmetic, so that the maxima, and with them
        every code of the quantized model, are the same on every machine.

    Raises
    ------
    BertNumpyError
        If there is no batch, or an operand is NaN or infinite; names the site.
    """
    absmax: dict[str, tuple[float, float]] = {}
    observing = replace(model, policy=observing_policy(float32_policy(golden), absmax))
    samples = 0
    for batch in batches:
        observing(**batch)
        samples += len(batch["input_ids"])
    if not samples:
        raise BertNumpyError("calibration: expected at least one sample, found none")
    return Calibration(absmax, samples)


def observing_policy(inner: Policy, absmax: dict[str, tuple[float, float]]) -> Policy:
    """A policy that computes as ``inner`` does and notes the absolute maxima of each site."""

    def gemm(site: str, a: Float32Array, b: Operand, bias: Float32Array | None) -> Float32Array:
        assert isinstance(b, np.ndarray), site
        seen = absmax.get(site, (0.0, 0.0))
        absmax[site] = (_larger(site, seen[0], a), _larger(site, seen[1], b))
        return inner.gemm(site, a, b, bias)

    return Policy(gemm, inner.arithmetic)


def _larger(site: str, seen: float, x: Float32Array) -> float:
    largest = float(np.maximum(x.max(), -x.min()))
    if not np.isfinite(largest):
        raise BertNumpyError(
            f"calibration: site {site!r}: expected finite operands, found {largest}"
        )
    return max(seen, largest)
