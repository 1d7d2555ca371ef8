"""The parser of a command's words: options in groups, help with formats and examples, errors.

It uses the public interface of :mod:`argparse` alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import takewhile
from typing import Any, NoReturn, Protocol

from bert_numpy.commands.report import Outcome
from bert_numpy.errors import shown
from npfp8.names import match, suggestion

__all__ = ["FORMATS", "FORMATS_HELP", "FORMAT_LIST", "AddCommand", "Parser", "one_of"]

#: The groups of a command's arguments, in the order of the help.
_SECTIONS = ("input", "recipe", "calibration", "output", "general")

#: The values of an argument that are names of formats, or a list of them with commas between.
FORMATS, FORMAT_LIST = "formats", "format list"

#: A word that is an option, and not a value: "-" is standard output, and -5 a number.
_OPTION = re.compile(r"-[^\d.]")

#: The formats, as every help lists them.
FORMATS_HELP = """\
formats, in upper or lower case:
  fp32                    float32 throughout, not quantized: the reference
  bf16                    not quantized: float32 products, the rest in bfloat16
  e4m3                    the paper's: all products of the encoder in FP8 E4M3,
                          one static scale per tensor, the rest in bfloat16
  int8, e5m2              the same in symmetric INT8, in FP8 E5M2
  mixed                   E4M3 weights, K and V; E5M2 activations, Q and P
  int8-asymmetric         UINT8 activations with a zero point
  int8-mse, e4m3-mse,     scales by other rules than the largest magnitude
  int8-percentile, int8-entropy
  int8-channel, e4m3-channel   one scale per output channel of a weight
  int8-token, e4m3-token  one scale per token
  e4m3-block              one scale per 128 elements
  int8-outliers           int8-token, with single outliers in bfloat16
  int8-outliers-columns   the same with whole columns, as LLM.int8()
  int8-smooth, e4m3-smooth     SmoothQuant's migration, by powers of two
  int8-smooth-paper       SmoothQuant's migration as in its paper
  e4m3-pow2               scales that are powers of two
  mxfp8, mxfp8-e5m2       OCP MX: a power of two for every 32 elements,
                          which are in E4M3 or E5M2
  mxfp6, mxfp6-e3m2       the same with elements in FP6, E2M3 or E3M2
  mxfp4, mxint8           the same with elements in FP4, in INT8
  nvfp4                   NVIDIA's: an E4M3 scale for every 16 elements,
                          which are in FP4, and one scale per tensor
  mxfp4-mixed, nvfp4-mixed     linear layers in FP4, attention in E4M3
  e4m3-flash              e4m3, with attention over tiles of 64 keys, as
                          FlashAttention-3 computes it
  e4m3-weights            only the weights are quantized
  mxfp4-weights, nvfp4-weights  the same in FP4
  w4a16, w4a16-asym       the same in INT4, one scale per 128 inputs; in UINT4,
                          with a zero point as well
  w4a16-g64, w4a16-g32    one scale per 64, per 32
  w4a16-channel           one scale per output channel
  w4a16-gptq, w4a16-asym-gptq  weights rounded by GPTQ, on a sample
  FILE.json               a recipe of your own
  stored                  the recipe that a quantized checkpoint was made with
"""


class AddCommand(Protocol):
    """Add a command: its name, its function, a summary, and examples (what follows the name)."""

    def __call__(
        self,
        name: str,
        function: Callable[[argparse.Namespace], Outcome],
        summary: str,
        *examples: str,
    ) -> Parser:
        """Return the command's parser."""


class Parser(argparse.ArgumentParser):
    """The parser of one command, or of a word that commands follow.

    Attributes
    ----------
    arguments : dict of argparse.Action to str
        All arguments in their order, and the kind of their values for completion: "file",
        "folder", "model", "tasks", "commands", :data:`FORMATS`, :data:`FORMAT_LIST`, or nothing.
    commands : dict of str to Parser
        The commands that may follow, by name.
    """

    def __init__(
        self, prog: str, description: str, epilog: str = "", examples: Iterable[str] = ()
    ) -> None:
        super().__init__(
            prog,
            description=description,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.arguments: dict[argparse.Action, str] = {}
        self.commands: dict[str, Parser] = {}
        self._examples = tuple(examples)
        self._notes = epilog
        for name in (None, "store"):
            self.register("action", name, _Store)
        self._sections = {title: self.add_argument_group(title) for title in _SECTIONS}
        self.add_argument("-h", "--help", action="help", help="show this help and exit")

    def add_argument(
        self, *names: str, section: str | None = None, values: str = "", **options: Any
    ) -> argparse.Action:
        """Add an argument to a section of the help; its default, if there is one, is named.

        Parameters
        ----------
        *names : str
        section : str, optional
            By default "input" for positional arguments and "general" for options.
        values : str
            The kind of its values; see ``arguments``.
        **options
            As argparse takes them.
        """
        default = options.get("default")
        if default not in (None, False, argparse.SUPPRESS) and "help" in options:
            options["help"] += f" (default: {default})"
        title = section or ("general" if names[0].startswith("-") else "input")
        action = self._sections[title].add_argument(*names, **options)
        self.arguments[action] = values
        return action

    def add_commands(self) -> Callable[[str, str, tuple[str, ...]], Parser]:
        """Return the function that adds a command: its name, a summary, and examples."""
        group = self.add_subparsers(
            title="commands", metavar="COMMAND", prog=self.prog, parser_class=Parser
        )

        def add(name: str, summary: str, examples: tuple[str, ...]) -> Parser:
            parser = group.add_parser(
                name, help=summary, description=summary, examples=examples or ("",)
            )
            self.commands[name] = parser
            return parser

        return add

    def every_command(self) -> Iterator[tuple[str, Parser]]:
        """List the commands that do something, each by its words."""
        for name, parser in self.commands.items():
            if parser.commands:
                yield from ((f"{name} {inner}", leaf) for inner, leaf in parser.every_command())
            else:
                yield name, parser

    def named(self, words: Sequence[str]) -> Parser:
        """Find the parser of a command; end with an error if there is none of this name."""
        parser = self
        for word in words:
            if word not in parser.commands:
                parser.error(
                    f"{word!r} is not a command{suggestion(word, parser.commands)}"
                    if parser.commands
                    else f"expected no more words, found {word!r}"
                )
            parser = parser.commands[word]
        return parser

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command's words, so that an error shows the usage of this very command."""
        parser, rest, found = self, list(words), argparse.Namespace()
        while parser.commands:
            front = list(takewhile(lambda word: len(word) > 1 and word[0] == "-", rest))
            parser._parse_own(front, found)
            rest = rest[len(front) :]
            if getattr(found, "version", False):
                return found
            if not rest:
                parser.print_help()
                parser.exit(2)
            parser = parser.named(rest[:1])
            rest = rest[1:]
        parser._parse_own(rest, found)
        return found

    def _parse_own(self, words: list[str], found: argparse.Namespace) -> None:
        """Parse options and arguments of this command; an unknown option is named first."""
        options = self._options()
        letters = {option[1] for option in options if option[1] != "-"}
        for word in takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            # argparse takes a word with a space for a text, and a negative number for a value.
            if not _OPTION.match(word) or " " in word:
                continue
            # It takes the beginning of an option for it, and letters together, as -qV.
            if name.startswith("--"):
                is_known = any(option.startswith(name) for option in options)
            else:
                is_known = letters.issuperset(name[1:])
            if not is_known:
                if any(name in leaf._options() for _, leaf in self.every_command()):
                    self.error(f"option {name} belongs after a command")
                self.error(f"unknown option {name}{suggestion(name, options)}")
        self.parse_args(words, found)

    def _options(self) -> list[str]:
        """List all spellings of this command's own options."""
        return [name for action in self.arguments for name in action.option_strings]

    def format_usage(self) -> str:
        """Return the usage: what must be given, and the word ``[options]``."""
        self.usage = self._usage()
        return super().format_usage()

    def format_help(self) -> str:
        """Return the whole help: usage, arguments by section, formats and examples."""
        self.usage = self._usage()
        parts = [self._notes] if self._notes else []
        if {FORMATS, FORMAT_LIST} & set(self.arguments.values()) and not self.commands:
            parts.append(FORMATS_HELP)
        if self._examples:
            lines = "".join(f"  {f'{self.prog} {line}'.rstrip()}\n" for line in self._examples)
            parts.append(f"example{'s' * (len(self._examples) > 1)}:\n{lines}")
        self.epilog = "\n".join(parts)
        return super().format_help()

    def print_usage(self, file: Any = None) -> None:
        """Print the usage; unlike argparse, fail where standard output does."""
        _print(self.format_usage(), file)

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse, fail where standard output does."""
        _print(self.format_help(), file)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2: the usage, where the help is, and the message in one line."""
        self.print_usage(sys.stderr)
        self.exit(2, f"help:  {self.prog} --help\n{self.prog}: error: {shown(message)}\n")

    def _usage(self) -> str:
        """Build the usage of the arguments that must be given."""
        if self.commands:
            return "%(prog)s [options] COMMAND ..."
        words = []
        for action in self.arguments:
            value = str(action.metavar or action.dest.upper()).replace("%", "%%")
            if action.option_strings:
                words += [f"{action.option_strings[0]} {value}"] if action.required else []
            elif action.nargs in ("?", "*"):
                words.append(f"[{value}{' ...' * (action.nargs == '*')}]")
            else:
                words.append(value + f" [{value} ...]" * (action.nargs == "+"))
        return " ".join(("%(prog)s [options]", *words))


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
        # The last of several numbers counts, as usual: a script's can be followed by another.
        is_number = isinstance(values, int | float)
        given[self.dest] = 1 if is_number else given.get(self.dest, 0) + 1
        setattr(namespace, self.dest, values)


@cache
def one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    """Return the type of an argument whose value is one of some names, in any case."""

    def find(text: str) -> str:
        if (found := match(text, known)) is None:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(known)}, found {text!r}{suggestion(text, known)}"
            )
        return found

    return find


def _print(text: str, file: Any) -> None:
    try:
        print(text, end="", file=file)
    except OSError:
        if file is not sys.stderr:
            raise
