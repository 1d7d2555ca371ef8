"""The part that all engines of the adaptation have in common."""

from __future__ import annotations

from dataclasses import dataclass

from bert_numpy.engines.engine import Engine
from bert_numpy.model.packing import Batch
from npfp8.arrays import Float32Array

__all__ = ["WrappingEngine"]


@dataclass(frozen=True, eq=False)
class WrappingEngine(Engine[Float32Array]):
    """An engine that leaves every operation to ``inner``, for subclasses that change a few.

    Attributes
    ----------
    inner : Engine
    layout : Batch
        The tokens of the run.
    """

    inner: Engine[Float32Array]
    layout: Batch

    @property
    def fuses_attention(self) -> bool:  # type: ignore[override]
        """True if ``inner`` fuses attention."""
        return self.inner.fuses_attention
