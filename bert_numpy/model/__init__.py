"""The encoder: its sizes, its forward pass, its heads."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_numpy.model.model import Model, ModelOutput, require_head
    from bert_numpy.model.sites import encoder_sites, model_sites

__all__ = ["Model", "ModelOutput", "encoder_sites", "model_sites", "require_head"]

#: The module of each name, imported at the name's first use: a config needs no arithmetic.
_HOMES = {
    "Model": "model",
    "ModelOutput": "model",
    "require_head": "model",
    "encoder_sites": "sites",
    "model_sites": "sites",
}


def __getattr__(name: str) -> object:
    """Import a public name of the forward pass at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
