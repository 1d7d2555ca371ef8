"""Options that several commands share, and what their values have in common.

An option that is given is applied, or refused by its name: never ignored.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from bert_numpy.commands.report import Outcome
from bert_numpy.errors import BertNumpyError, shown
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.registry import TASK_NAMES, any_task_named
from bert_numpy.tasks.squad import SQUAD
from npfp8 import ACCUMULATORS

__all__ = [
    "CALIBRATION_SAMPLES",
    "AddCommand",
    "Parser",
    "add_accumulate",
    "add_calibration_samples",
    "add_data",
    "add_format",
    "add_golden",
    "add_limit",
    "add_model",
    "add_out",
    "add_sentence_scales",
    "add_sizes",
    "add_texts",
    "check_scales",
    "check_values",
    "finite",
    "natural",
    "positive",
    "refuse",
    "require_together",
]

#: Adds a command: its name, its function and a summary.
AddCommand = Callable[[str, Callable[[argparse.Namespace], Outcome], str], argparse.ArgumentParser]

#: Examples, or sentences, to calibrate on, unless another number is asked for.
CALIBRATION_SAMPLES = 256

#: Arguments that may be empty here, as what reads them refuses that with a better message.
_MAY_BE_EMPTY = ("model", "text", "pair", "sources")


class _Store(argparse.Action):
    """Stores a value, as argparse does, and that it was given.

    ``given`` has how often, by name; ``positional`` the names of those that are no options.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", {})
        if option_string is None:
            vars(namespace).setdefault("positional", set()).add(self.dest)
        # Of a number the last counts, as usual, so that a script's can be followed by another.
        given[self.dest] = 1 if self.type is not None else given.get(self.dest, 0) + 1
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser that knows which options were given, and whose errors are safe on a terminal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name in (None, "store"):
            self.register("action", name, _Store)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help, or a message; unlike argparse, fail where standard output does."""
        try:
            print(message, end="", file=file)
        except OSError:
            if file is not sys.stderr:
                raise

    def error(self, message: str) -> NoReturn:
        """End with a message in one line after the usage."""
        super().error(shown(message))


def check_values(arguments: argparse.Namespace) -> None:
    """Refuse empty values, unknown tasks, and two names or files for one option.

    Raises
    ------
    BertNumpyError
        Names the option.
    """
    given = _given(arguments)
    for name in given:
        value = getattr(arguments, name)
        values = value if isinstance(value, list) else [value]
        if "" in values and name not in _MAY_BE_EMPTY:
            raise BertNumpyError(
                f"{_spelling(arguments, name)}: expected a value, found an empty one"
            )
    if getattr(arguments, "task", None) is not None:
        any_task_named(arguments.task)
    for name, count in given.items():
        if count > 1:
            raise BertNumpyError(
                f"{_spelling(arguments, name)}: expected once, found {count} times"
            )


def refuse(arguments: argparse.Namespace, names: Iterable[str], expected: str) -> None:
    """Raise :class:`BertNumpyError` if one of some options is given, which nothing would use."""
    for name in names:
        if name in _given(arguments) or getattr(arguments, name, None) is True:
            raise BertNumpyError(f"{_spelling(arguments, name)}: expected {expected}")


def check_scales(
    arguments: argparse.Namespace, recipes: Sequence[Recipe], *, stored: bool = False
) -> None:
    """Refuse options of a calibration that nothing needs, or that another one makes useless.

    Parameters
    ----------
    arguments : Namespace
    recipes : sequence of Recipe
    stored : bool
        Whether the checkpoint is quantized: it has its scales.

    Raises
    ------
    BertNumpyError
        Names the option.
    """
    options = ("calibration", "calibration_data", "calibration_samples")
    if stored or not any(recipe.calibrated for recipe in recipes):
        found = ", ".join(recipe.name for recipe in recipes)
        where = " in a quantized checkpoint" if stored else ""
        expected = f"a format that needs a calibration, found {found}{where}"
        if getattr(arguments, "save_calibration", None) is not None:
            raise BertNumpyError(f"{arguments.save_calibration}: expected {expected}")
        refuse(arguments, options, expected)
    if getattr(arguments, "calibration", None) is not None:
        refuse(arguments, options[1:], "no --calibration with it, found one")


def _given(arguments: argparse.Namespace) -> dict[str, int]:
    found: dict[str, int] = getattr(arguments, "given", {})
    return found


def _spelling(arguments: argparse.Namespace, name: str) -> str:
    """How an option or argument is written; those with no dashes are in capitals in the usage."""
    positional = name in getattr(arguments, "positional", ())
    return name.upper() if positional else f"--{name.replace('_', '-')}"


def positive(text: str) -> int:
    """The value of an option that takes a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """The value of an option that takes a whole number of at least 0."""
    return _whole(text, 0)


def finite(text: str) -> float:
    """The value of an option that takes a number: no NaN, which nothing is below, no infinity."""
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return number


def _whole(text: str, least: int) -> int:
    # Python reads no longer numbers, and needs none here. Digits of other scripts are refused, as
    # they are in files.
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or int(text) < least:
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


def add_golden(parser: argparse.ArgumentParser) -> None:
    """Add ``--golden``."""
    parser.add_argument(
        "--golden",
        action="store_true",
        help="compute the same bits on every machine and in every batch, calibration included",
    )


def add_accumulate(parser: argparse.ArgumentParser) -> None:
    """Add ``--accumulate``."""
    parser.add_argument(
        "--accumulate",
        choices=tuple(ACCUMULATORS),
        metavar="MODE",
        help="how products of 8-bit codes are added up, instead of what the format's recipe "
        f"says (exact in every named one): {', '.join(ACCUMULATORS)}",
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add ``--limit``."""
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="evaluate only the first N examples"
    )


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Add ``--texts``."""
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="without --task, of a model of sentence embeddings: compare the vectors of these "
        f"texts; {_TEXTS}",
    )


def add_out(parser: argparse.ArgumentParser, description: str, required: bool = False) -> None:
    """Add ``--out``."""
    parser.add_argument("--out", metavar="FILE", required=required, help=description)


#: What a file of texts is.
_TEXTS = "a line each, or in SST-2's layout"


def add_data(parser: argparse.ArgumentParser, required: bool = True, *, saved: bool = True) -> None:
    """Add the options of a task, its data and the calibration on it.

    Parameters
    ----------
    parser : ArgumentParser
    required : bool
        Whether there must be a task.
    saved : bool
        Whether a calibration can be one that was saved, and saved.
    """
    add = parser.add_argument
    add("--task", required=required, metavar="NAME", help=", ".join(TASK_NAMES))
    add(
        "--data",
        required=required,
        metavar="DATA",
        help="the task's folder, a folder of such folders, a file to evaluate on, or a data set "
        "on the hub (nyu-mll/glue, rajpurkar/squad)",
    )
    add_calibration_samples(parser)
    add(
        "--calibration-data",
        metavar="FILE",
        help="take them from FILE instead of the training file beside the data"
        + ("" if required else f"; without --task, texts, {_TEXTS}"),
    )
    if saved:
        add(
            "--calibration",
            metavar="FILE",
            help="take the scales from what --save-calibration wrote; nothing is calibrated",
        )
        add("--save-calibration", metavar="FILE", help="write the calibration to FILE")
    add_sizes(parser)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-length`` and ``--batch-size``."""
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="cut inputs to N tokens (default: 128), contexts of questions into windows "
        f"(default: {SQUAD.max_length}), texts to embed (default: the model's own length)",
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", default=32, help="sequences at a time"
    )


def add_calibration_samples(parser: argparse.ArgumentParser) -> None:
    """Add ``--calibration-samples``."""
    parser.add_argument(
        "--calibration-samples",
        type=positive,
        metavar="N",
        default=CALIBRATION_SAMPLES,
        help="examples to calibrate on, spread evenly over the file",
    )


def add_sentence_scales(parser: argparse.ArgumentParser) -> None:
    """Add the options of a calibration for commands that need no task."""
    add = parser.add_argument
    add("--calibration", metavar="FILE", help="take the scales from what --save-calibration wrote")
    add(
        "--calibration-data",
        metavar="FILE",
        help=f"texts to calibrate on, {_TEXTS} (default: the reviews that come with the package)",
    )
    add_calibration_samples(parser)


def require_together(arguments: argparse.Namespace) -> None:
    """Raise :class:`BertNumpyError` if there is one of ``--task`` and ``--data`` alone."""
    for name, other in (("task", "data"), ("data", "task")):
        if getattr(arguments, name) is not None and getattr(arguments, other) is None:
            raise BertNumpyError(f"--{name}: expected --{other} with it, found none")
