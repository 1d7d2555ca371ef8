"""Sites: the places of a model at which matrices are multiplied. Recipes choose by this data."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KINDS", "Site"]

#: The kinds of sites. All except "head" are parts of the encoder, so their results have the
#: precision of its arithmetic; the results of a head are the model's answer, or lead to it.
KINDS = ("linear", "scores", "context", "projection", "head")


class Site(NamedTuple):
    """One matrix product of the forward pass.

    Attributes
    ----------
    name : str
        The name of the layer in the checkpoint. The overrides of a recipe use it.
    kind : {"linear", "scores", "context", "projection", "head"}
        A linear layer of a Transformer layer, Q K^T, P V, the projection of small
        embeddings, or a layer after the encoder.
    layer : int, optional
        The number of the Transformer layer, from 0; None outside these layers. Layers that
        share their parameters share a name but have different numbers.
    outputs : int
        The features of the result; 0 where the operands determine them.
    """

    name: str
    kind: str = "head"
    layer: int | None = None
    outputs: int = 0

    @property
    def is_attention(self) -> bool:
        """True if both operands are activations; otherwise the right one is a weight."""
        return self.kind in ("scores", "context")
