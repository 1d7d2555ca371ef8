"""The encoder: its sizes, its forward pass, its heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_numpy.model.model import Model, ModelOutput, require_head
    from bert_numpy.model.sites import encoder_sites, model_sites

__all__ = ["Model", "ModelOutput", "encoder_sites", "model_sites", "require_head"]


def __getattr__(name: str) -> object:
    """A public name of the forward pass, at its first use: the sizes alone need no arithmetic."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bert_numpy.model import model, sites  # noqa: PLC0415

    return getattr(sites if name.endswith("_sites") else model, name)
