"""The commands ``golden vectors`` and ``golden check-vectors``: the codec's test vectors.

The codec's modules are imported where they are needed, so that all other commands start sooner.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from bert_numpy.commands.options import AddCommand
from bert_numpy.commands.report import Outcome, print_lines
from bert_numpy.errors import reading, writing
from npfp8.files import created_folder

__all__ = ["add_vector_commands"]


def add_vector_commands(command: AddCommand) -> None:
    """Add ``golden vectors`` and ``golden check-vectors``."""
    vectors = command(
        "vectors", _vectors, "Write the codec's test vectors as plain text.", "vectors"
    )
    vectors.add_argument(
        "out", metavar="OUT", section="output", values="folder", help="the folder to make"
    )
    vectors.set_defaults(out_kind="folder")
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
        help="a file of test vectors, with your codec's codes in its third column",
    )


def _vectors(arguments: argparse.Namespace) -> Outcome:
    from npfp8.vectors import write_all_vectors  # noqa: PLC0415

    out = Path(arguments.out)
    with writing(out), created_folder(out) as folder:
        names = [path.name for path in write_all_vectors(folder)]
    report = {"folder": str(out), "files": names}
    return Outcome(report, lambda: print_lines(f"{out}: {len(names)} files"))


def _check_vectors(arguments: argparse.Namespace) -> Outcome:
    from npfp8.vectors import check_results, read_vectors  # noqa: PLC0415

    reports, lines = [], []
    for file in arguments.files:
        with reading(file):
            report = check_results(read_vectors(Path(file)))
        reports.append(report)
        lines.append(f"{file}: {report.wrong} of {report.cases} cases are wrong")
        if report.wrong:
            lines += [f"  {report.first}", f"  cause: {report.cause or 'no known one'}"]
    found = {
        "passed": not any(report.wrong for report in reports),
        "files": [asdict(report) for report in reports],
    }
    return Outcome(found, lambda: print_lines(*lines))
