"""The places of a model at which matrices are multiplied: data, by which recipes choose."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KINDS", "Site"]

#: What is multiplied at a site. All but "head" are parts of the encoder, whose results have the
#: precision of its arithmetic; a head's results are the model's answer, or lead to it.
KINDS = ("linear", "scores", "context", "projection", "head")


class Site(NamedTuple):
    """One matrix product of the forward pass.

    Attributes
    ----------
    name : str
        As the checkpoint names the layer; by which a recipe's overrides find it.
    kind : {"linear", "scores", "context", "projection", "head"}
        A linear layer of a Transformer layer, Q K^T, P V, the projection of small
        embeddings, or a layer after the encoder.
    layer : int, optional
        The number of the Transformer layer, from 0; None outside of these. Layers that
        share their parameters share a name, and have numbers of their own.
    outputs : int
        The features of the result; 0 where the operands alone say.
    """

    name: str
    kind: str = "head"
    layer: int | None = None
    outputs: int = 0

    @property
    def is_attention(self) -> bool:
        """Whether both operands are activations; at all others the right one is a weight."""
        return self.kind in ("scores", "context")
