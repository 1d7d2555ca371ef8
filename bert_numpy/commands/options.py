"""Options that several commands share, and the checks that all values go through.

Every option that is given is either applied, or refused by its name; none is ignored.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence

from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.parser import FORMAT_LIST, FORMATS, AddCommand, Parser, one_of
from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.quantization.recipe import BFLOAT16_ACCUMULATORS, Recipe
from bert_numpy.tasks.registry import TASK_NAMES, any_task_named
from bert_numpy.tasks.squad import SQUAD
from npfp8 import ACCUMULATORS

__all__ = [
    "CALIBRATION_SAMPLES",
    "FORMAT_NAMES",
    "STORED",
    "AddCommand",
    "add_accumulate",
    "add_calibration",
    "add_calibration_samples",
    "add_data",
    "add_format",
    "add_formats",
    "add_golden",
    "add_limit",
    "add_model",
    "add_out",
    "add_sentence_scales",
    "add_sizes",
    "add_task",
    "add_texts",
    "check_scales",
    "check_values",
    "finite",
    "natural",
    "positive",
    "refuse",
    "require_together",
]

#: The recipe of a quantized checkpoint, and all names of formats.
STORED = "stored"
FORMAT_NAMES = (*PRESETS, STORED)

#: The default number of examples, or sentences, to calibrate on.
CALIBRATION_SAMPLES = 256

#: Arguments that may be empty here: the code that reads them refuses that with a better message.
_MAY_BE_EMPTY = ("model", "text", "pair", "sources")


def check_values(arguments: argparse.Namespace) -> None:
    """Refuse empty values, and two names or files for one option.

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
    """Refuse options of a calibration that no recipe needs, or that another option makes useless.

    Parameters
    ----------
    arguments : Namespace
    recipes : sequence of Recipe
    stored : bool
        Whether the checkpoint is quantized, so that it has scales of its own.

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
    """Spell an option or argument as the usage does: one without dashes is in capitals."""
    positional = name in getattr(arguments, "positional", ())
    return name.upper() if positional else f"--{name.replace('_', '-')}"


def positive(text: str) -> int:
    """Read the value of an option that takes a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Read the value of an option that takes a whole number of at least 0."""
    return _whole(text, 0)


def finite(text: str) -> float:
    """Read the value of an option that takes a finite number."""
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return number


def _whole(text: str, least: int) -> int:
    # Python does not read longer numbers, and none is needed here. Digits of other scripts are
    # refused, as they are in files.
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}, found {text!r}"
        )
    return int(text)


def add_model(parser: Parser) -> None:
    """Add ``MODEL`` and ``--revision``."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a folder, the embedded {EMBEDDED}, or an id on the Hugging Face hub (owner/name)",
        values="model",
    )
    parser.add_argument(
        "--revision",
        metavar="NAME",
        section="input",
        help="the branch, tag or commit of a model on the hub (default: main)",
    )


def _task_name(text: str) -> str:
    """Read the value of ``--task``: the name of a task in any case; check_values refuses none."""
    try:
        return any_task_named(text).name if text else text
    except BertNumpyError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("task: ")) from None


def _format_name(text: str) -> str:
    """Read the value of ``--format``: a known name in any case, or a file's; or none."""
    return text if not text or text.endswith(".json") else one_of(FORMAT_NAMES)(text)


def _format_names(text: str) -> str:
    """Read the value of ``--formats``: names with commas between."""
    return ",".join(_format_name(name.strip()) for name in text.split(","))


def add_format(parser: Parser, default: str | None) -> None:
    """Add ``--format``; without a default it is required."""
    parser.add_argument(
        "--format",
        "--recipe",
        type=_format_name,
        metavar="NAME",
        required=default is None,
        section="recipe",
        values=FORMATS,
        help="one of the formats below, or a recipe's .json file"
        + ("" if default is None else f" (default: {default}, or stored)"),
    )


def add_formats(parser: Parser, default: str) -> None:
    """Add ``--formats``."""
    parser.add_argument(
        "--formats",
        type=_format_names,
        metavar="LIST",
        section="recipe",
        values=FORMAT_LIST,
        help="formats below, or recipes' .json files, with commas between; fp32 always runs, as "
        f"the others are compared with it (default: {default})",
    )


def add_golden(parser: Parser) -> None:
    """Add ``--golden``."""
    parser.add_argument(
        "--golden",
        action="store_true",
        section="recipe",
        help="compute the same bits on every machine and in every batch, calibration included",
    )


def add_accumulate(parser: Parser) -> None:
    """Add ``--accumulate`` and ``--accumulate-rest``."""
    parser.add_argument(
        "--accumulate",
        type=one_of(tuple(ACCUMULATORS)),
        choices=tuple(ACCUMULATORS),
        metavar="MODE",
        section="recipe",
        help="how products of codes are added up, instead of the recipe's way (which is "
        f"exact in every format below): {', '.join(ACCUMULATORS)}",
    )
    parser.add_argument(
        "--accumulate-rest",
        type=one_of(BFLOAT16_ACCUMULATORS),
        choices=BFLOAT16_ACCUMULATORS,
        metavar="MODE",
        section="recipe",
        help="how all other products are added up, of operands in bfloat16: "
        f"{', '.join(BFLOAT16_ACCUMULATORS)}",
    )


def add_limit(parser: Parser) -> None:
    """Add ``--limit``."""
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        section="input",
        help="evaluate only the first N examples",
    )


def add_texts(parser: Parser) -> None:
    """Add ``--texts``."""
    parser.add_argument(
        "--texts",
        metavar="FILE",
        section="input",
        values="file",
        help="without --task, for a model of sentence embeddings: compare the vectors of these "
        f"texts; {_TEXTS}",
    )


def add_out(parser: Parser, description: str, required: bool = False) -> None:
    """Add ``--out``."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=required,
        section="output",
        values="file",
        help=description,
    )


#: How a file of texts is laid out.
_TEXTS = "one per line, or in SST-2's layout"


def add_task(parser: Parser, required: bool, description: str) -> None:
    """Add ``--task``, one of the names of tasks in any case."""
    parser.add_argument(
        "--task",
        type=_task_name,
        required=required,
        metavar="NAME",
        section="input",
        values="tasks",
        help=description,
    )


def add_data(parser: Parser, required: bool = True, *, saved: bool = True) -> None:
    """Add the options of a task, its data and the calibration on it.

    Parameters
    ----------
    parser : Parser
    required : bool
        Whether there must be a task.
    saved : bool
        Whether a calibration can be one that was saved, and saved.
    """
    add_task(parser, required, ", ".join(TASK_NAMES))
    parser.add_argument(
        "--data",
        required=required,
        metavar="DATA",
        section="input",
        values="file",
        help="the task's folder, a folder of such folders, a file to evaluate on, or a data set "
        "on the hub (nyu-mll/glue, rajpurkar/squad)",
    )
    add_calibration_samples(parser)
    parser.add_argument(
        "--calibration-data",
        metavar="FILE",
        section="calibration",
        values="file",
        help="take them from FILE instead of the training file beside the data"
        + ("" if required else f"; without --task, texts, {_TEXTS}"),
    )
    if saved:
        add_calibration(parser)
        parser.add_argument(
            "--save-calibration",
            metavar="FILE",
            section="output",
            values="file",
            help="write the calibration to FILE",
        )
    add_sizes(parser)


def add_sizes(parser: Parser) -> None:
    """Add ``--max-length`` and ``--batch-size``."""
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        section="input",
        help="truncate inputs to N tokens (default: 128); split contexts of questions into "
        f"windows (default: {SQUAD.max_length}); texts to embed (default: the model's own length)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        default=32,
        section="input",
        help="how many sequences are run together",
    )


def add_calibration(parser: Parser) -> None:
    """Add ``--calibration``."""
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        section="calibration",
        values="file",
        help="take the scales from a calibration that was saved; nothing is calibrated",
    )


def add_calibration_samples(parser: Parser) -> None:
    """Add ``--calibration-samples``."""
    parser.add_argument(
        "--calibration-samples",
        type=positive,
        metavar="N",
        default=CALIBRATION_SAMPLES,
        section="calibration",
        help="how many examples to calibrate on, spread evenly over the file",
    )


def add_sentence_scales(parser: Parser) -> None:
    """Add the options of a calibration for commands that need no task."""
    add_calibration(parser)
    parser.add_argument(
        "--calibration-data",
        metavar="FILE",
        section="calibration",
        values="file",
        help=f"texts to calibrate on, {_TEXTS} (default: the reviews that come with the package)",
    )
    add_calibration_samples(parser)


def require_together(arguments: argparse.Namespace) -> None:
    """Raise :class:`BertNumpyError` if only one of ``--task`` and ``--data`` is given."""
    for name, other in (("task", "data"), ("data", "task")):
        if getattr(arguments, name) is not None and getattr(arguments, other) is None:
            raise BertNumpyError(f"--{name}: expected --{other} with it, found none")
