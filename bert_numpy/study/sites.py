"""The sites of an encoder by their place in a layer, and recipes that quantize some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.recipe import Recipe

__all__ = ["by_place", "fewest", "grouped", "only", "place_in_layer", "ranked"]

_IN_LAYER = re.compile(r"encoder\.layer\.\d+\.(.+)")

#: The places that form one group: the three layers with one input.
_GROUPS = dict.fromkeys(
    ("attention.self.query", "attention.self.key", "attention.self.value"), "query, key and value"
)


def place_in_layer(site: str) -> str:
    """Return the place of an encoder's site in its layer, such as ``attention.output.dense``.

    Raises
    ------
    BertNumpyError
        If the site is not in a layer.

    Examples
    --------
    >>> place_in_layer("encoder.layer.11.output.dense")
    'output.dense'
    """
    found = _IN_LAYER.fullmatch(site)
    if found is None:
        raise BertNumpyError(f"site: expected one of an encoder's layer, found {site!r}")
    return found[1]


def by_place(sites: Iterable[str]) -> dict[str, list[str]]:
    """Group sites by their places in the layers, in the order of the data flow."""
    places: dict[str, list[str]] = {}
    for site in sites:
        places.setdefault(place_in_layer(site), []).append(site)
    return places


def grouped(sites: Iterable[str]) -> dict[str, list[str]]:
    """Group sites like :func:`by_place`, with query, key and value as one group."""
    groups: dict[str, list[str]] = {}
    for place, found in by_place(sites).items():
        groups.setdefault(_GROUPS.get(place, place), []).extend(found)
    return groups


def only(recipe: Recipe, sites: Iterable[str]) -> Recipe:
    """Restrict a recipe to some sites of the encoder; the other sites are left unquantized."""
    rest = recipe.skipping("encoder.*")
    kept = tuple((site, recipe.site(site)) for site in sites)
    return replace(rest, overrides=rest.overrides + kept)


def ranked(report: Mapping[str, object], places: Iterable[str]) -> list[str]:
    """List the sites of some places in a sensitivity report, the most sensitive first.

    Raises
    ------
    BertNumpyError
        If the report ranks no site of one of the places.
    """
    rows = report.get("sites")
    names = [str(row["site"]) for row in rows] if isinstance(rows, list) else []
    found = by_place(names)
    for place in places:
        if place not in found:
            raise BertNumpyError(
                f"ranking: expected sites of {place!r}, found {', '.join(found) or 'none'}"
            )
    return [name for name in names if place_in_layer(name) in set(places)]


def fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """Find the number from which ``enough`` holds, by doubling and then halving.

    Parameters
    ----------
    enough : callable
        Called with about ``2 log2(n)`` numbers from 0 to ``most``.
    most : int

    Returns
    -------
    int or None
        A number that is enough while one less is not. It is the least such number if every
        larger number is enough as well. None if ``most`` is not enough.

    Examples
    --------
    >>> fewest(lambda n: n >= 6, 48)
    6
    """
    low, high = -1, 0
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(max(2 * high, 1), most)
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
