"""Values of any kind in messages."""

from __future__ import annotations

import reprlib
from typing import Any

__all__ = ["shown"]


def shown(value: Any) -> str:
    """Return a short text of a value for a message, however large the value is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # more digits than Python converts
        return f"{type(value).__name__} that is too long to show"
