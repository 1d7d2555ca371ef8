"""The ``bert-numpy`` command."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import npfp8
from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.completion import SHELLS, completion_script
from bert_numpy.commands.demo import add_demo_command
from bert_numpy.commands.embed import add_embed_command
from bert_numpy.commands.evaluate import add_evaluation_commands
from bert_numpy.commands.golden import add_golden_commands
from bert_numpy.commands.inspect import add_inspection_commands
from bert_numpy.commands.options import Parser, check_values
from bert_numpy.commands.outputs import check_outputs
from bert_numpy.commands.predict import add_predict_command
from bert_numpy.commands.quantize import add_quantization_commands
from bert_numpy.commands.report import Outcome, write_json
from bert_numpy.errors import BertNumpyError, one_line, shown, writing
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.tasks.registry import TASK_NAMES

__all__ = ["interrupted", "main"]

_DESCRIPTION = "BERT in NumPy, with post-training quantization to FP8 and INT8."

_EPILOG = f"""\
MODEL is a folder with a safetensors checkpoint, the embedded {EMBEDDED}, or
a Hugging Face hub id (owner/name).

formats:
  fp32   no quantization, float32 throughout
  bf16   no quantization, float32 products, everything else in bfloat16
  e4m3   the paper's: every encoder product in FP8 E4M3, static scale per tensor,
         everything else in bfloat16
  e5m2, int8     the same in FP8 E5M2, in symmetric INT8
  mixed          E4M3 weights, K and V; E5M2 activations, Q and P
  int8-asymmetric                                  UINT8 activations with a zero point
  int8-percentile, int8-mse, int8-entropy, e4m3-mse   other observers than absmax
  int8-channel, e4m3-channel                       a scale for each output of a weight
  int8-token, e4m3-token, e4m3-block               scales per token, per 128 elements
  int8-outliers, int8-outliers-columns             int8-token with outliers in bfloat16:
                                                   single elements, whole columns (LLM.int8())
  int8-smooth, int8-smooth-paper, e4m3-smooth      SmoothQuant's migration
  e4m3-pow2, e4m3-weights                          power-of-two scales; only weights
  FILE.json                                        a recipe of your own
  stored                                           that of a quantized checkpoint, its only one

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
  0 done   1 golden verify, check-vectors: a difference   2 input that cannot be used
  70 an error of this program   130 interrupted   141 nobody reads the output any more
"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Name an option's default where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, see ``bert-numpy --help``.

    All files are written before anything is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        _print_every_character(stream)
    arguments = argparse.Namespace(debug=False)
    try:
        with _output():
            try:
                arguments = _parser().parse_args(argv)
            except SystemExit:  # after --help, --version, or a usage error
                sys.stdout.flush()
                raise
        check_values(arguments)
        check_outputs(arguments)
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


#: What only a mistake in a program raises; all else is about what the program was given.
_MISTAKES = (
    *(AssertionError, AttributeError, LookupError, NameError, NotImplementedError, RuntimeError),
    *(StopIteration, SyntaxError, SystemError, TypeError),
)


def _failed(error: BaseException, arguments: argparse.Namespace) -> int:
    """Say what has ended the command, if anything is to be said; returns the exit code."""
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
        return 70  # not Python's 1, which says that something was compared and differs
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
    """Say that the command was interrupted; returns the exit code."""
    _complain("bert-numpy: interrupted")
    return 130


def _traceback_of(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def _complain(*lines: str) -> None:
    """Print lines on standard error; where it cannot be written to, they are lost."""
    try:
        for line in lines:
            print(shown(line), file=sys.stderr)
        sys.stderr.flush()
    except (AttributeError, OSError):
        _give_up(sys.stderr)


@contextmanager
def _output() -> Iterator[None]:
    """Turn an OSError of standard output, but that nobody reads it, into the one error.

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
    """Drop what is left in a stream's buffer, which Python would write at the exit."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def _print_every_character(stream: Any) -> None:
    """Have a stream escape the characters that its encoding lacks, instead of failing."""
    with suppress(AttributeError, OSError, ValueError):  # one that is no text file of Python's own
        stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "bert-numpy", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=npfp8.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = partial(_add_command, commands)
    add_demo_command(command)
    add_evaluation_commands(command)
    add_predict_command(command)
    add_embed_command(command)
    add_quantization_commands(command)
    add_inspection_commands(command)
    summary = "Print a script that completes commands and options in a shell."
    completion = commands.add_parser("completion", help=summary, description=summary)
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion, json=None, debug=False)
    summary = "Golden outputs that other backends are checked against, and test vectors."
    golden = commands.add_parser("golden", help=summary, description=summary)
    kits = golden.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_golden_commands(partial(_add_command, kits))
    return parser


def _add_command(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], Outcome],
    summary: str,
) -> argparse.ArgumentParser:
    """A command's parser, with the options that all have."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=_HelpFormatter
    )
    sub.set_defaults(run=function)
    sub.add_argument(
        "--json", metavar="FILE", help="write the results as JSON too; - prints them instead"
    )
    sub.add_argument("--debug", action="store_true", help="show a traceback on an error")
    return sub


def _completion(arguments: argparse.Namespace) -> Outcome:
    values = {"--format": PRESETS, "--recipe": PRESETS, "--task": TASK_NAMES}
    script = completion_script(_parser(), arguments.shell, values)
    return Outcome({}, lambda: print(script, end=""))
