"""The conformance kit: golden tensors to compare another backend's tensors with.

``docs/kit.md`` describes a kit's files. :func:`open_kit` reads one,
:func:`verify` compares.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_numpy.kit.compare import Report, verify
    from bert_numpy.kit.manifest import Kit, open_kit

__all__ = ["Kit", "Report", "open_kit", "verify"]

#: The module of each name, imported at the name's first use.
_HOMES = {"Kit": "manifest", "open_kit": "manifest", "Report": "compare", "verify": "compare"}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
