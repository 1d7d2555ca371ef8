"""Options that several commands share, and what their values have in common.

An option that is given is applied, or refused by its name: never ignored.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.load import stored_recipe
from bert_numpy.commands.report import note, progress_bar
from bert_numpy.errors import BertNumpyError, shown
from bert_numpy.evaluation.job import any_task_named, calibrate_on_sentences
from bert_numpy.model.model import Model
from bert_numpy.quantization.calibration import Calibration
from bert_numpy.quantization.presets import preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.tokenization import Tokenizer

__all__ = [
    "CALIBRATION_SAMPLES",
    "Parser",
    "add_calibration_samples",
    "add_format",
    "add_model",
    "add_sentence_scales",
    "calibrated_on_sentences",
    "check_accumulate",
    "check_scales",
    "check_values",
    "chosen_recipe",
    "finite",
    "named_recipe",
    "natural",
    "positive",
    "refuse",
    "require_together",
]

#: Examples, or sentences, to calibrate on, unless another number is asked for.
CALIBRATION_SAMPLES = 256

#: Arguments that may be empty here, as what reads them refuses that with a better message.
_MAY_BE_EMPTY = ("model", "text", "pair")


class _Store(argparse.Action):
    """Stores a value, as argparse does, and that it was given: ``given`` has how often, by name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", {})
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
            raise BertNumpyError(f"{_spelling(name)}: expected a value, found an empty one")
    if getattr(arguments, "task", None) is not None:
        any_task_named(arguments.task)
    for name, count in given.items():
        if count > 1:
            raise BertNumpyError(f"{_spelling(name)}: expected once, found {count} times")


def refuse(arguments: argparse.Namespace, names: Iterable[str], expected: str) -> None:
    """Raise :class:`BertNumpyError` if one of some options is given, which nothing would use."""
    for name in names:
        if name in _given(arguments) or getattr(arguments, name, None) is True:
            raise BertNumpyError(f"{_spelling(name)}: expected {expected}")


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
    if arguments.calibration is not None:
        refuse(arguments, options[1:], "no --calibration with it, found one")


def check_accumulate(arguments: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """Refuse ``--accumulate`` where no product is of 8-bit codes."""
    sites = [site for recipe in recipes for _, site in recipe.overrides]
    for recipe in recipes:
        sites += [recipe.linear, recipe.scores, recipe.context]
    if not any(site.a.fmt is not None and site.b.fmt is not None for site in sites):
        names = ", ".join(recipe.name for recipe in recipes)
        refuse(arguments, ["accumulate"], f"a format with products of 8-bit codes, found {names}")


def _given(arguments: argparse.Namespace) -> dict[str, int]:
    found: dict[str, int] = getattr(arguments, "given", {})
    return found


def _spelling(name: str) -> str:
    """How an option or argument is written; those with no dashes are in capitals in the usage."""
    return name.upper() if name in _ARGUMENTS else f"--{name.replace('_', '-')}"


#: The arguments that are no options.
_ARGUMENTS = ("out", "file", "files", "kit", "candidate", "model", "text", "pair", "shell")


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


def chosen_recipe(arguments: argparse.Namespace, default: str = "fp32") -> Recipe:
    """The recipe of ``--format``, or a quantized checkpoint's own."""
    name, model = arguments.format, arguments.model
    own = stored_recipe(model, arguments.revision)
    if own is None:
        return named_recipe(default if name is None else name, model)
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
        help="sentences to calibrate on, in SST-2's layout (default: the reviews that come with "
        "the package)",
    )
    add_calibration_samples(parser)


def calibrated_on_sentences(
    arguments: argparse.Namespace,
    model: Model,
    tokenizer: Tokenizer,
    *,
    paired: bool = False,
    golden: bool = False,
) -> Calibration:
    """Calibrate on sentences by these options; notes on which.

    Raises
    ------
    BertNumpyError
        As :func:`bert_numpy.evaluation.job.calibrate_on_sentences`.
    """
    file = Path(arguments.calibration_data or REVIEWS / "train.tsv")
    samples = arguments.calibration_samples
    calibration = calibrate_on_sentences(
        model, tokenizer, file, progress_bar, samples=samples, paired=paired, golden=golden
    )
    which = f"{samples}" if calibration.samples == samples else "the"
    note(f"scales: from {which} sentences of {file}")
    return calibration


def require_together(arguments: argparse.Namespace) -> None:
    """Raise :class:`BertNumpyError` if there is one of ``--task`` and ``--data`` alone."""
    for name, other in (("task", "data"), ("data", "task")):
        if getattr(arguments, name) is not None and getattr(arguments, other) is None:
            raise BertNumpyError(f"--{name}: expected --{other} with it, found none")
