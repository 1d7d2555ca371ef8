"""The one exception for input that cannot be used."""

from __future__ import annotations

__all__ = ["BertNumpyError"]


class BertNumpyError(ValueError):
    """Bad input: says which file, key or line, what was found and what was expected."""
