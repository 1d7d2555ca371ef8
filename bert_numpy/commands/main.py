"""The ``bert-numpy`` command."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import npfp8
from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.completion import SHELLS, completion_script
from bert_numpy.commands.demo import add_demo_command
from bert_numpy.commands.embed import add_embed_command
from bert_numpy.commands.evaluate import add_evaluation_commands
from bert_numpy.commands.golden import add_golden_commands
from bert_numpy.commands.inspect import add_inspection_commands
from bert_numpy.commands.options import check_values
from bert_numpy.commands.outputs import check_outputs
from bert_numpy.commands.parser import FORMATS_HELP, AddCommand, Parser, one_of
from bert_numpy.commands.predict import add_predict_command
from bert_numpy.commands.quantize import add_quantization_commands
from bert_numpy.commands.report import Outcome, write_json
from bert_numpy.errors import BertNumpyError, one_line, shown, writing
from bert_numpy.progress import quiet

__all__ = ["build_parser", "interrupted", "main"]

_DESCRIPTION = "BERT in NumPy, with post-training quantization to FP8, INT8, MX and NVFP4."

_EPILOG = f"""\
bert-numpy help COMMAND explains the options of a command.

MODEL is a folder with a safetensors checkpoint, the embedded {EMBEDDED}, or
a Hugging Face hub id (owner/name).

{FORMATS_HELP}
examples:
  bert-numpy demo
  bert-numpy compare ./my-model --task sst2 --data glue/SST-2
  bert-numpy predict {EMBEDDED} "a warm and funny film" --format e4m3

  bert-numpy evaluate ./my-model --task sst2 --data glue/SST-2 --format e4m3 --golden
  bert-numpy quantize ./my-model ./my-model-fp8 --task sst2 --data glue/SST-2 --recipe e4m3
  bert-numpy evaluate ./my-qa-model --task squad --data squad --predictions answers.json

  bert-numpy embed ./my-encoder texts.txt --out vectors.npy --format e4m3
  bert-numpy compare ./my-encoder --texts texts.txt
  bert-numpy calibrate ./my-encoder --calibration-data texts.txt --out scales.safetensors

exit codes:
  0 done   1 golden verify, check-vectors: a difference, or a required tensor is missing
  2 input that cannot be used, or no command
  70 an error of this program   130 interrupted   141 nobody reads the output any more
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code; ``bert-numpy --help`` lists them.

    All files are written before anything is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        _print_every_character(stream)
    arguments = argparse.Namespace(debug=False)
    try:
        with _output():
            try:
                given = build_parser().parse(sys.argv[1:] if argv is None else argv)
                if given.version:
                    print(npfp8.__version__)
                    raise SystemExit(0)
                arguments = given
            except SystemExit:  # after --help, --version, or a usage error
                sys.stdout.flush()
                raise
        check_values(arguments)
        check_outputs(arguments)
        with quiet(arguments.quiet):
            outcome = arguments.run(arguments)
        if arguments.json not in (None, "-"):
            write_json(arguments.json, outcome.report)
        with _output():
            if arguments.json == "-":
                write_json("-", outcome.report)
            else:
                outcome.show()
            sys.stdout.flush()
    except BaseException as error:
        return _failed(error, arguments)
    return 0 if outcome.report.get("passed", True) else 1


#: Examples of the commands that follow ``golden``.
_GOLDEN_EXAMPLES = (
    f"verify {EMBEDDED} my-backend.safetensors",
    f"list {EMBEDDED} --operation sum",
    f"export {EMBEDDED} kit --inputs inputs.json",
    "vectors vectors",
)

#: Examples of where shells look for completion scripts.
_COMPLETION_FILES = (
    "bash > ~/.local/share/bash-completion/completions/bert-numpy",
    "zsh > ~/.zfunc/_bert-numpy  # in a folder of fpath",
    "fish > ~/.config/fish/completions/bert-numpy.fish",
    "tcsh > ~/.bert-numpy.tcsh   # and: source ~/.bert-numpy.tcsh",
)

#: The exceptions that only a mistake in a program raises; all others are about its input.
_MISTAKES = (
    *(AssertionError, AttributeError, LookupError, NameError, NotImplementedError, RuntimeError),
    *(StopIteration, SyntaxError, SystemError, TypeError),
)


def _failed(error: BaseException, arguments: argparse.Namespace) -> int:
    """Say why the command ended, if there is something to say, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        _give_up(sys.stdout)
        return 141
    if isinstance(error, KeyboardInterrupt):
        return interrupted()
    is_panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception
    if not isinstance(error, Exception) and not is_panic:
        raise error
    if isinstance(error, _MISTAKES) and not isinstance(error, RecursionError | ValueError):
        _complain(*_traceback_of(error))
        return 70  # not Python's 1, which means that a comparison found a difference
    if arguments.debug:
        _complain(*_traceback_of(error))
    elif isinstance(error, BertNumpyError):
        _complain(f"bert-numpy: {error}")
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        _complain(f"bert-numpy: {os.fsdecode(error.filename)}: {error.strerror}")
    else:
        place = getattr(arguments, "model", None) or getattr(arguments, "file", None)
        text = one_line(error)
        _complain(f"bert-numpy: {f'{place}: ' if place else ''}{text} (--debug shows where)")
    return 2


def interrupted() -> int:
    """Say that the command was interrupted and return the exit code."""
    _complain("bert-numpy: interrupted")
    return 130


def _traceback_of(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def _complain(*lines: str) -> None:
    """Print lines on standard error; if it cannot be written to, they are lost."""
    try:
        for line in lines:
            print(shown(line), file=sys.stderr)
        sys.stderr.flush()
    except (AttributeError, OSError):
        _give_up(sys.stderr)


@contextmanager
def _output() -> Iterator[None]:
    """Turn an OSError of standard output, except a closed pipe, into the one error.

    Raises
    ------
    BertNumpyError
    """
    with writing("standard output"):
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError:
            _give_up(sys.stdout)
            raise


def _give_up(stream: Any) -> None:
    """Drop the rest of a stream's buffer, which Python would write at the exit."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def _print_every_character(stream: Any) -> None:
    """Make a stream escape the characters that its encoding lacks, instead of failing."""
    with suppress(AttributeError, OSError, ValueError):  # one that is no text file of Python's own
        stream.reconfigure(errors="backslashreplace")


def build_parser() -> Parser:
    """Build the parser of all commands."""
    parser = Parser("bert-numpy", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("-V", "--version", action="store_true", help="print the version and exit")
    _add_quiet(parser)
    add = parser.add_commands()
    command = _adding(add)
    add_demo_command(command)
    add_evaluation_commands(command)
    add_predict_command(command)
    add_embed_command(command)
    add_quantization_commands(command)
    add_inspection_commands(command)
    summary = "Write and check golden outputs and test vectors for other backends."
    golden = add("golden", summary, _GOLDEN_EXAMPLES)
    _add_quiet(golden)
    add_golden_commands(_adding(golden.add_commands()))
    summary = "Print a script that completes commands, options and names in a shell."
    completion = add("completion", summary, _COMPLETION_FILES)
    completion.add_argument(
        "shell", type=one_of(SHELLS), choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS)
    )
    completion.set_defaults(run=_completion, json=None, debug=False, quiet=False)
    words = add("help", "Show the help of a command.", ("", "evaluate", "golden verify"))
    words.add_argument(
        "words", metavar="COMMAND", nargs="*", values="commands", help="all commands by default"
    )
    words.set_defaults(run=_help, json=None, debug=False, quiet=False)
    return parser


def _adding(add: Callable[[str, str, tuple[str, ...]], Parser]) -> AddCommand:
    """Return the function that adds a command with the options that all have."""

    def command(
        name: str,
        function: Callable[[argparse.Namespace], Outcome],
        summary: str,
        *examples: str,
    ) -> Parser:
        parser = add(name, summary, examples)
        parser.set_defaults(run=function)
        parser.add_argument(
            "--json",
            metavar="FILE",
            section="output",
            values="file",
            help="write the results as JSON too; - prints them in place of the text",
        )
        parser.add_argument("--debug", action="store_true", help="show a traceback on an error")
        _add_quiet(parser)
        return parser

    return command


def _add_quiet(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress and no notes")


def _completion(arguments: argparse.Namespace) -> Outcome:
    script = completion_script(build_parser(), arguments.shell)
    return Outcome({}, lambda: print(script))


def _help(arguments: argparse.Namespace) -> Outcome:
    return Outcome({}, build_parser().named(arguments.words).print_help)
