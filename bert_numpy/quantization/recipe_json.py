"""Recipes as JSON: written and read by the fields of the dataclasses and their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from bert_numpy.errors import BertNumpyError, read_json, writing
from bert_numpy.quantization.gptq import Gptq
from bert_numpy.quantization.recipe import AnyFormat, Recipe, format_named
from bert_numpy.quantization.shown import shown
from bert_numpy.quantization.tiled_attention import TiledAttention
from npfp8 import BLOCK_FORMATS, BlockFormat, Format
from npfp8.arguments import path_of, require
from npfp8.blocks.formats import with_rule
from npfp8.files import replaced_file
from npfp8.formats import FORMATS
from npfp8.names import match, suggestion

__all__ = ["load_recipe", "recipe_json", "recipe_object", "recipe_of", "save_recipe"]


def recipe_json(recipe: Recipe) -> str:
    """Return a recipe as JSON text that names every setting."""
    return json.dumps(recipe_object(recipe), indent=1)


def recipe_object(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a JSON object that names every setting."""
    values: dict[str, Any] = _plain(recipe)
    return values


def recipe_of(values: Any) -> Recipe:
    """Make a recipe from a JSON object; missing settings get their defaults.

    Raises
    ------
    BertNumpyError
        If a key is unknown, or its value has another type or is impossible.
    """
    recipe: Recipe = _build(Recipe, values, "recipe")
    return recipe


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe to a JSON file, atomically.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import bert_numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mine.json")
    ...     bert_numpy.save_recipe(bert_numpy.PRESETS["e4m3"], path)
    ...     bert_numpy.load_recipe(path) == bert_numpy.PRESETS["e4m3"]
    True
    """
    require("recipe", recipe, Recipe, "a recipe")
    target = path_of("path", path)
    text = recipe_json(recipe) + "\n"
    with writing(path), replaced_file(target) as file:
        file.write(text.encode())


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a JSON file; missing settings get their defaults.

    Raises
    ------
    BertNumpyError
        If the file is missing or is not JSON, if a key is unknown, or if its value has
        another type or is impossible.

    Examples
    --------
    >>> import os, tempfile
    >>> import bert_numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mine.json")
    ...     bert_numpy.save_recipe(bert_numpy.PRESETS["e4m3"], path)
    ...     bert_numpy.load_recipe(path) == bert_numpy.PRESETS["e4m3"]
    True
    """
    path = path_of("path", path)
    try:
        return recipe_of(read_json(path))
    except BertNumpyError as error:
        text = str(error)
        raise BertNumpyError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _plain(value: Any) -> Any:
    """Convert a recipe, or a part of one, to JSON types, with formats as their names.

    A block format with a name of its own becomes an object of its fields. The rule of a named
    one is a field of the operand.
    """
    if isinstance(value, Format):
        return str(value)
    if isinstance(value, BlockFormat):
        known = BLOCK_FORMATS.get(value.name)
        if known is not None and with_rule(known, value.rule) == value:
            return value.name
    if is_dataclass(value):
        found = {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
        # Files of recipes without these later fields stay as they were.
        later = ("rule", "accumulate_rest", "attention", "gptq")
        return {name: x for name, x in found.items() if x is not None or name not in later}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _build(kind: type, values: Any, place: str) -> Any:
    """Make a dataclass from a JSON object with the keys and types of its fields."""
    if not isinstance(values, Mapping):
        raise BertNumpyError(f"{place}: expected a JSON object, found {shown(values)}")
    types = get_type_hints(kind)
    if unknown := sorted(set(values) - set(types)):
        raise BertNumpyError(
            f"{place}: key {unknown[0]!r}: expected one of {', '.join(sorted(types))}"
        )
    arguments = {
        key: _value(types[key], value, f"{place}: key {key!r}") for key, value in values.items()
    }
    try:
        return kind(**arguments)
    except TypeError:
        raise BertNumpyError(f"{place}: key 'name': expected a string, but missing") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to a field's type, ``kind``."""
    for record in (TiledAttention, Gptq):
        if kind == record | None and value is not None:
            kind = record
    if isinstance(kind, type) and is_dataclass(kind):
        return _build(kind, value, where)
    if get_origin(kind) is tuple:
        return _pairs(get_args(kind)[0], value, where)
    if kind == AnyFormat | None:
        if value is None:
            return None
        if isinstance(value, Mapping) and {"element", "block"} & value.keys():
            return _block_format(value, where)
        known = (*FORMATS, *BLOCK_FORMATS)
        if not isinstance(value, str) or match(value, known) is None:
            nearest = suggestion(value, known) if isinstance(value, str) else ""
            raise BertNumpyError(
                f"{where}: expected null or one of {', '.join(known)}, found {shown(value)}"
                f"{nearest}"
            )
        try:
            return format_named(value, where)
        except ValueError as error:  # an ambiguous name
            raise BertNumpyError(str(error)) from None
    expected: list[type] = []
    for part in get_args(kind) or (kind,):
        expected += (int, float) if part is float else (part,)
    if type(value) not in expected:
        names = " or ".join(item.__name__ for item in expected)
        raise BertNumpyError(f"{where}: expected {names}, found {shown(value)}")
    return value


def _block_format(values: Mapping[str, Any], where: str) -> BlockFormat:
    """Make a block format from a JSON object of its fields."""
    known = [item.name for item in fields(BlockFormat)]
    if unknown := sorted(set(values) - set(known)):
        raise BertNumpyError(f"{where}: key {unknown[0]!r}: expected one of {', '.join(known)}")
    for key, expected in (("element", "the name of a format"), ("block", "a number")):
        if key not in values:
            raise BertNumpyError(f"{where}: key {key!r}: expected {expected}, but missing")
    _value(int, values["block"], f"{where}: key 'block'")  # Python takes true for 1
    try:
        return BlockFormat(**values)
    except (TypeError, ValueError) as error:
        raise BertNumpyError(f"{where}: {error}") from None


def _pairs(kind: Any, value: Any, where: str) -> tuple[tuple[str, Any], ...]:
    """Convert a JSON list of pairs to a tuple of (pattern, dataclass), each of type ``kind``."""
    if not isinstance(value, list):
        raise BertNumpyError(f"{where}: expected a list, found {shown(value)}")
    for item in value:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)):
            raise BertNumpyError(f"{where}: expected [pattern, site] pairs, found {shown(item)}")
    _, part = get_args(kind)
    return tuple((pattern, _build(part, one, f"{where} {pattern!r}")) for pattern, one in value)
