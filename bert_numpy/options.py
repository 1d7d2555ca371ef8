"""Options that several commands share, and what their values have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_numpy.errors import BertNumpyError
from bert_numpy.loading import stored_recipe
from bert_numpy.recipe import Recipe, preset

__all__ = [
    "add_format",
    "add_model",
    "add_sentence_scales",
    "check_output",
    "chosen_recipe",
    "named_recipe",
    "natural",
    "positive",
    "require_together",
]


def positive(text: str) -> int:
    """The value of an option that takes a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """The value of an option that takes a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}, found {text!r}"
        )
    return int(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``MODEL`` and ``--revision``."""
    parser.add_argument("model", metavar="MODEL", help="a folder, or a hub id")
    parser.add_argument("--revision", metavar="NAME", help="of a hub id: a branch, tag or commit")


def add_format(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add ``--format``; without a default it is required."""
    parser.add_argument(
        "--format",
        "--recipe",
        metavar="NAME",
        required=default is None,
        help="see the list of formats in bert-numpy --help; or a recipe's .json file"
        + ("" if default is None else f" (default: {default}, or stored)"),
    )


def chosen_recipe(arguments: argparse.Namespace, default: str = "fp32") -> Recipe:
    """The recipe of ``--format``, or a quantized checkpoint's own."""
    name, model = arguments.format, arguments.model
    own = stored_recipe(model, arguments.revision)
    if own is None:
        return named_recipe(name or default, model)
    if name not in (None, "stored"):
        raise BertNumpyError(
            f"{model}: expected format 'stored' of a quantized checkpoint, found {name!r}"
        )
    return own


def named_recipe(name: str, model: str) -> Recipe:
    """The recipe of a name or file, for a checkpoint that is not quantized."""
    if name == "stored":
        raise BertNumpyError(f"{model}: expected a quantized checkpoint for format 'stored'")
    return preset(name)


def add_sentence_scales(parser: argparse.ArgumentParser) -> None:
    """Add ``--calibration`` and ``--calibration-data`` of commands that need no task."""
    add = parser.add_argument
    add("--calibration", metavar="FILE", help="take the scales from what --save-calibration wrote")
    add(
        "--calibration-data",
        metavar="FILE",
        help="sentences to calibrate on, in SST-2's layout (default: the reviews that come with "
        "the package)",
    )


def require_together(arguments: argparse.Namespace) -> None:
    """Raise :class:`BertNumpyError` if there is one of ``--task`` and ``--data`` alone."""
    for name, other in (("task", "data"), ("data", "task")):
        if getattr(arguments, name) is not None and getattr(arguments, other) is None:
            raise BertNumpyError(f"--{name}: expected --{other} with it, found none")


def check_output(path: str | Path) -> None:
    """Raise :class:`BertNumpyError` if a file cannot be there: before the work, not after it."""
    path = Path(path)
    if path.is_dir():
        raise BertNumpyError(f"{path}: cannot be written: expected a file's name, found a folder")
    if not path.absolute().parent.is_dir():
        raise BertNumpyError(f"{path}: cannot be written: there is no folder {path.parent}")
