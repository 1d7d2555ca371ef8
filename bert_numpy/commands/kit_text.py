"""The command ``golden text``: a kit's tensors as text, memory files or C headers.

The kit's modules are imported where they are needed, so that all other commands start sooner.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.kit_list import add_kit, add_operation, chosen_operations
from bert_numpy.commands.options import AddCommand
from bert_numpy.commands.parser import one_of
from bert_numpy.commands.report import Outcome, counted, print_lines
from bert_numpy.commands.vectors import FORMS
from bert_numpy.errors import writing
from bert_numpy.kit.manifest import LEVELS, open_kit
from npfp8.files import created_folder

__all__ = ["add_text_command"]

#: The levels that are written by default: those that need no model.
_DEFAULT = ("codec", "operator")


def add_text_command(command: AddCommand) -> None:
    """Add ``golden text``."""
    text = command(
        "text",
        _text,
        "Write a kit's tensors as text, for test benches and programs without Python.",
        f"{EMBEDDED} vectors --form memory",
        f"{EMBEDDED} vectors --form c --level operator --operation sum",
    )
    add = text.add_argument
    add_kit(text)
    add("out", metavar="OUT", section="output", values="folder", help="the folder to make")
    text.set_defaults(out_kind="folder")
    add(
        "--form",
        type=one_of(FORMS),
        choices=FORMS,
        metavar="FORM",
        default=FORMS[0],
        section="output",
        help="text (the default), memory (for Verilog's $readmemh) or c (C headers)",
    )
    add(
        "--level",
        action="append",
        type=one_of(LEVELS),
        choices=LEVELS,
        metavar="LEVEL",
        section="output",
        help=f"write only this level, repeated for several (default: {', '.join(_DEFAULT)})",
    )
    add_operation(
        text,
        "write only results of this operation, such as sum, quantize or softmax, repeated for "
        "several",
    )


def _text(arguments: argparse.Namespace) -> Outcome:
    from bert_numpy.kit.text import write_kit_text  # noqa: PLC0415

    out = Path(arguments.out)
    levels = [level for level in LEVELS if level in (arguments.level or _DEFAULT)]
    kit = open_kit(arguments.kit)
    operations = chosen_operations(kit, arguments)
    with writing(out), created_folder(out) as folder:
        done = write_kit_text(kit, folder, arguments.form, levels, operations)
    report = {
        "folder": str(out),
        "form": arguments.form,
        "levels": levels,
        "operations": operations,
        "cases": done.cases,
        "results": done.results,
        "files": done.files,
        "bytes": done.size,
    }
    sizes = f"{counted(done.cases, 'case')}, {counted(done.results, 'result')}"
    line = f"{out}: {sizes}, {counted(done.files, 'file')}, {done.size:,} bytes"
    return Outcome(report, lambda: print_lines(line))
