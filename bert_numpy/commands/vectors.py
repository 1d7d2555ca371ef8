"""The commands ``golden vectors`` and ``golden check-vectors``: the codec's test vectors.

The codec's modules are imported where they are needed, so that all other commands start sooner.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from bert_numpy.commands.options import AddCommand
from bert_numpy.commands.parser import one_of
from bert_numpy.commands.report import Outcome, print_lines
from bert_numpy.errors import BertNumpyError, reading, writing
from npfp8.files import created_folder
from npfp8.formats import FLOAT_FORMATS

__all__ = ["FORMS", "add_vector_commands"]

#: The written forms, as :data:`npfp8.vectors.writers.FORMS` has them; a test compares.
FORMS = ("text", "memory", "c")

_SOURCES = ("float32", "float16", "bfloat16")
_DIRECTIONS = ("encode", "decode")
_ALL = "all"

#: The rounding modes, as :data:`npfp8.vectors.MODES` has them; a test compares.
MODES = (
    *("nearest-saturating", "nearest", "toward-zero", "nearest-away-saturating", "nearest-away"),
    *("nearest-toward-zero-saturating", "nearest-toward-zero"),
    *("toward-zero-ieee", "toward-zero-special", "up-saturating", "up-ieee", "up-special"),
    *("down-saturating", "down-ieee", "down-special"),
    *("odd-saturating", "odd-ieee", "odd-special", "stochastic-8-saturating", "stochastic-8"),
    *("stochastic-13-saturating", "stochastic-13", "stochastic-16-saturating", "stochastic-16"),
)


def add_vector_commands(command: AddCommand) -> None:
    """Add ``golden vectors`` and ``golden check-vectors``."""
    vectors = command(
        "vectors",
        _vectors,
        "Write the codec's test vectors: as text, memory files or C headers.",
        "vectors",
        "vectors --form memory --fmt E4M3FN --mode all",
    )
    add = vectors.add_argument
    add("out", metavar="OUT", section="output", values="folder", help="the folder to make")
    vectors.set_defaults(out_kind="folder")
    add(
        "--form",
        type=one_of(FORMS),
        choices=FORMS,
        metavar="FORM",
        default="text",
        section="output",
        help="text, memory (for Verilog's $readmemh), or c (headers)",
    )
    for name, known, text in (
        ("fmt", tuple(FLOAT_FORMATS), "only this format, repeated for several"),
        (
            "mode",
            (_ALL, *MODES),
            "a rounding mode, repeated for several, or all; unless given, the first three of "
            + ", ".join(MODES),
        ),
        ("source", _SOURCES, f"only this float type, repeated for several: {', '.join(_SOURCES)}"),
        ("direction", _DIRECTIONS, "only from numbers to codes (encode), or back (decode)"),
    ):
        add(
            f"--{name}",
            action=None if name == "direction" else "append",
            type=one_of(known),
            choices=known,
            metavar="FORMAT" if name == "fmt" else name.upper(),
            section="output",
            help=text,
        )
    check = command(
        "check-vectors",
        _check_vectors,
        "Compare results with the test vectors.",
        "results/E4M3FN-*.txt",
    )
    check.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        values="file",
        help="a file of test vectors, text or memory, with your codec's results in its last column",
    )


def _vectors(arguments: argparse.Namespace) -> Outcome:
    from npfp8.vectors import DECODE, DEFAULT_MODES, write_all_vectors  # noqa: PLC0415

    if arguments.direction == "decode" and arguments.mode:
        raise BertNumpyError("--mode: expected --direction encode with it, found decode")
    asked = list(dict.fromkeys(arguments.mode or DEFAULT_MODES))
    modes = [mode for mode in (MODES if _ALL in asked else asked) if mode != DECODE]
    if arguments.direction == "decode":
        modes = []
    if arguments.direction != "encode" and not (arguments.mode and _ALL not in asked):
        modes.append(DECODE)
    out = Path(arguments.out)
    with writing(out), created_folder(out) as folder:
        names = [
            path.name
            for path in write_all_vectors(
                folder, arguments.fmt, modes, arguments.source, arguments.form
            )
        ]
    size = sum(path.stat().st_size for path in out.iterdir())
    report = {"folder": str(out), "files": names, "bytes": size}
    return Outcome(report, lambda: print_lines(f"{out}: {len(names)} files, {size:,} bytes"))


def _check_vectors(arguments: argparse.Namespace) -> Outcome:
    from npfp8.vectors import check_results, read_vectors  # noqa: PLC0415

    reports, lines = [], []
    for file in arguments.files:
        with reading(file):
            report = check_results(read_vectors(Path(file)))
        reports.append(report)
        lines.append(f"{file}: {report.wrong} of {report.cases} cases are wrong")
        if report.wrong:
            cause = report.cause or "no known one"
            if report.partial:
                cause += f"; {report.explanation()}"
            lines += [f"  {report.first}", f"  cause: {cause}"]
    found = {
        "passed": not any(report.wrong for report in reports),
        "files": [
            {name: getattr(report, name) for name in ("name", "cases", "wrong", "first")}
            | asdict(report.mistake)
            for report in reports
        ],
    }
    return Outcome(found, lambda: print_lines(*lines))
