"""Checks of the values in a checkpoint's ``config.json``, with errors that name their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bert_numpy.errors import BertNumpyError, key_error

__all__ = ["ConfigReader"]


@dataclass(frozen=True)
class ConfigReader:
    """A JSON object's place in the file."""

    place: str

    def at(self, key: str) -> ConfigReader:
        """Return the place of a key's value."""
        return ConfigReader(f"{self.place}: key {key!r}")

    def error(self, key: str, expected: str, found: Any) -> BertNumpyError:
        """Make the error for a key's value."""
        return key_error(self.place, key, expected, found)

    def mapping(self, value: Any) -> Mapping[str, Any]:
        """Return the value at this place, which must be a JSON object."""
        if not isinstance(value, Mapping):
            shown = "nothing" if value is None else repr(value)
            raise BertNumpyError(f"{self.place}: expected a JSON object, found {shown}")
        return value

    def names(self, values: Mapping[str, Any], key: str) -> list[str]:
        """Return a list of strings; an empty one if the key is missing."""
        names = values.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error(key, "a list of names", names)
        return names

    def absent(self, values: Mapping[str, Any], *keys: str) -> None:
        """Refuse keys that would change the result and are not implemented."""
        for key in keys:
            if values.get(key):
                raise self.error(key, "nothing: this is not implemented", values[key])
