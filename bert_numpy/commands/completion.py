"""Completion scripts for shells, made from the parser by shtab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.options import FORMAT_NAMES
from bert_numpy.commands.parser import FORMAT_LIST, FORMATS, Parser
from bert_numpy.tasks.registry import TASK_NAMES

__all__ = ["SHELLS", "completion_script"]

#: The shells that a script can be made for.
SHELLS = ("bash", "zsh", "fish", "tcsh")


def completion_script(parser: Parser, shell: str) -> str:
    """Return the script that makes a shell complete the words after ``bert-numpy``.

    It completes commands, options, formats, tasks and other names, files and folders.

    Parameters
    ----------
    parser : Parser
    shell : str
        One of :data:`SHELLS`.
    """
    import shtab  # noqa: PLC0415 (only this command needs it)

    _describe(parser, {"file": shtab.FILE, "folder": shtab.DIRECTORY, **_names(parser)})
    return shtab.complete(parser, shell)


def _describe(parser: Parser, kinds: dict[str, Any]) -> None:
    """Tell shtab what the values of each argument are; it reads the attribute ``complete``."""
    for action, values in parser.arguments.items():
        if values:
            action.complete = kinds[values]  # type: ignore[attr-defined]
    for command in parser.commands.values():
        _describe(command, kinds)


_NONE: Mapping[str, str] = {}

#: How shells list the files whose names end in .json, with folders, and how all files.
_JSON_FILES = {
    "bash": "; compgen -f -X '!*.json' -- $1; compgen -d -- $1",
    "zsh": " 'files:file:_files -g \"*.json\"'",
    "fish": "; __fish_complete_path (commandline -ct)"
    r" | string match -r '.*(?:/|\.json)(?:\t.*)?$'",
}
_ALL_FILES = {
    "bash": "; compgen -f -- $1",
    "zsh": " 'files:file:_files'",
    "fish": "; __fish_complete_path (commandline -ct)",
    "tcsh": "f",  # it completes words or files, not both
}


def _names(parser: Parser) -> dict[str, Any]:
    """Return how each shell completes names of commands, models, tasks and formats."""
    return {
        "commands": _one_of("commands", tuple(parser.commands)),
        "model": _one_of("models", (EMBEDDED,), _ALL_FILES),
        "tasks": _one_of("tasks", TASK_NAMES),
        FORMATS: _one_of("formats", FORMAT_NAMES, _JSON_FILES),
        FORMAT_LIST: _list_of("format_list", FORMAT_NAMES),
    }


def _one_of(name: str, words: Sequence[str], files: Mapping[str, str] = _NONE) -> dict[str, Any]:
    """Complete one of some words, or a file that each shell lists in this way."""
    function, listed = f"_bert_numpy_{name}", " ".join(words)
    bash = f"compgen -W '{listed}' -- $1" + files.get("bash", "")
    fish = f"string split ' ' '{listed}'" + files.get("fish", "")
    zsh = f"_alternative 'names:name:({listed})'" + files.get("zsh", "")
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "tcsh": files.get("tcsh", f"({listed})"),
        "preamble": {
            "bash": f"{function}() {{ {bash}; }}",
            "zsh": f"{function}() {{ {zsh} }}",
            "fish": f"function {function}; {fish}; end",
        },
    }


def _list_of(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Complete the last of some words with commas between."""
    function, listed = f"_bert_numpy_{name}", " ".join(words)
    bash = f'compgen -P "${{1%"${{1##*,}}"}}" -W \'{listed}\' -- "${{1##*,}}"'
    return {
        "bash": function,
        "zsh": f"_values -s , format {listed}",
        "fish": f"({function})",
        "tcsh": f"({listed})",
        "preamble": {
            "bash": f"{function}() {{ {bash}; }}",
            "fish": f"function {function}\n"
            "  set -l before (string replace -r '[^,]*$' '' -- (commandline -ct))\n"
            f'  for name in {listed}; echo "$before$name"; end\nend',
        },
    }
