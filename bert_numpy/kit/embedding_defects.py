"""Defects of a model's embeddings: rows of the tables of positions and of token types.

A kit has no tables, only the rows that its texts look up. A defect takes its rows from there,
and from all texts of the kit. Each is a name and its defective operations, as
:mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bert_numpy.kit.history import Traced
from bert_numpy.kit.manifest import Kit
from bert_numpy.kit.operand_defects import FOUND, Alone, Defective, Named
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs
from npfp8.arrays import Array

__all__ = ["embedding_defects"]

#: What follows a text's name in that of the sum of its embeddings.
_SUM = "/embeddings/add"


def embedding_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    places: dict[str, Callable[[Array], Array]] = {
        "positions begin at 1, not at 0": lambda places: places + 1,
        "positions counted without padding": lambda places: np.arange(places.size),
    }
    for name, change in places.items():
        yield name, Alone(add=_with_rows("y", _by_places(change)))
    types: dict[str, Callable[[Array], Array]] = {
        "token types ignored (all are 0)": lambda types: 0 * types,
        "token types exchanged (0 for 1)": lambda types: 1 - types,
    }
    for name, change in types.items():
        yield name, Alone(add=_with_rows("x", _by_types(change)))


class _Text(NamedTuple):
    """The tokens of a text that are no padding, and the rows that they look up.

    Attributes
    ----------
    ids, types, places : ndarray of int, (tokens,)
    x, y : ndarray of float32, (tokens, features)
        The sums of word and type, and the positions.
    """

    ids: Array
    types: Array
    places: Array
    x: Array
    y: Array


def _texts(kit: Kit) -> Iterator[_Text]:
    for name in kit.tensors:
        if name.endswith(_SUM) and (text := _text(kit.arrays, name.removesuffix(_SUM))):
            yield text


def _text(arrays: Mapping[str, Array], place: str) -> _Text | None:
    """Return a text of a kit; None if it does not say enough."""
    roles = {"ids": "input_ids", "types": "token_type_ids", "mask": "attention_mask"}
    roles |= {role: f"embeddings/add.{role}" for role in ("x", "y")}
    found = {role: arrays.get(f"{place}/{name}") for role, name in roles.items()}
    ids, types, mask, x, y = found.values()
    if ids is None or x is None or y is None or ids.ndim != 2:
        return None
    types = np.zeros_like(ids) if types is None else types
    kept = np.ones_like(ids, bool) if mask is None else mask == 1
    if types.shape != ids.shape or kept.shape != ids.shape or len(x) != kept.sum():
        return None
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return _Text(ids[kept], types[kept], places[kept], x, y)


def _with_rows(role: str, rows: Callable[[_Text, list[_Text]], Array | None]) -> Defective:
    """Make a sum of embeddings, one of whose parts has other rows.

    Rows that no text of the kit has are NaN: elements that the defect cannot explain.
    """

    def add(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced) or not inputs.name.endswith(_SUM):
            return None
        if FOUND not in inputs or np.isnan(inputs[FOUND]).any():
            return None
        text = _text(inputs.kit.arrays, inputs.name.removesuffix(_SUM))
        found = None if text is None else rows(text, list(_texts(inputs.kit)))
        return None if found is None else OPERATIONS["add"]({**inputs, role: found}, attributes)

    return add


def _by_places(change: Callable[[Array], Array]) -> Callable[[_Text, list[_Text]], Array | None]:
    """Make rows of other positions."""

    def rows(text: _Text, texts: list[_Text]) -> Array | None:
        places = change(text.places)
        table: dict[int, Array] = {}
        for other in texts:
            for place, row in zip(other.places.tolist(), other.y, strict=True):
                if not np.array_equal(table.setdefault(place, row), row):
                    return None  # positions are counted in another way
        if np.array_equal(places, text.places):
            return None
        unknown = np.full(text.y.shape[1:], np.nan, np.float32)
        return np.stack([table.get(place, unknown) for place in places.tolist()])

    return rows


def _by_types(change: Callable[[Array], Array]) -> Callable[[_Text, list[_Text]], Array | None]:
    """Make rows of other token types: a word's own row, or by the difference of the types' rows.

    The difference is that of a word which the kit has with both types.
    """

    def rows(text: _Text, texts: list[_Text]) -> Array | None:
        types = change(text.types)
        if np.array_equal(types, text.types):
            return None
        table = {
            (word, of): row
            for other in texts
            for word, of, row in zip(other.ids.tolist(), other.types.tolist(), other.x, strict=True)
        }
        differences: dict[tuple[int, int], Array] = {}
        for (word, of), row in table.items():
            for to in {kind for _, kind in table} - {of}:
                if (word, to) in table:
                    differences[of, to] = table[word, to].astype(np.float64) - row
        unknown = np.full(text.x.shape[1:], np.nan)
        found = [
            table[word, to] if (word, to) in table else row + differences.get((of, to), unknown)
            for word, of, to, row in zip(
                text.ids.tolist(), text.types.tolist(), types.tolist(), text.x, strict=True
            )
        ]
        return np.asarray(np.stack(found), np.float32)

    return rows
