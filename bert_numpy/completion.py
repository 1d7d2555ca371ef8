"""Completion scripts for shells, made from the parser: commands, their options, and files."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable

__all__ = ["SHELLS", "completion_script"]

#: The shells that a script can be made for.
SHELLS = ("bash", "zsh", "fish")

# zsh runs bash's functions after bashcompinit, so the two share one script.
_BASHCOMPINIT = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"

_BASH = """\
_bert_numpy() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" words nested=
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) words={options} ;;
    esac
    COMPREPLY=()
    case "$COMP_CWORD,$cur" in
        *,-*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
        1,*) COMPREPLY=($(compgen -W {commands} -- "$cur")) ;;
        2,*) COMPREPLY=($(compgen -W "$nested" -- "$cur")) ;;
    esac
}}
complete -o default -F _bert_numpy bert-numpy
"""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that makes a shell complete the commands and options of ``bert-numpy``.

    Where neither fits, such as after an option that takes a file, names of files are offered.

    Parameters
    ----------
    parser : ArgumentParser
        With commands, which may have commands of their own.
    shell : str
        One of :data:`SHELLS`.
    """
    commands = _commands(parser)
    if shell == "fish":
        return _fish(parser, commands)
    cases = "\n".join(
        f"        {name}) words={_quoted(_options(sub))} nested={_quoted(_commands(sub))} ;;"
        for name, (sub, _) in commands.items()
    )
    script = _BASH.format(
        cases=cases,
        options=_quoted(_options(parser)),
        commands=_quoted(commands),
    )
    return _BASHCOMPINIT + script if shell == "zsh" else script


def _fish(
    parser: argparse.ArgumentParser, commands: dict[str, tuple[argparse.ArgumentParser, str]]
) -> str:
    lines = []
    for name, (_, summary) in commands.items():
        lines.append(f"-n __fish_use_subcommand -f -a {name} -d {shlex.quote(summary)}")
    lines += [f"-n __fish_use_subcommand -l {name[2:]}" for name in _options(parser)]
    for name, (sub, _) in commands.items():
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"{seen} -l {option[2:]}" for option in _options(sub)]
        lines += [f"{seen} -a {nested}" for nested in _commands(sub)]
    return "".join(f"complete -c bert-numpy {line}\n" for line in lines)


def _commands(
    parser: argparse.ArgumentParser,
) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Each command's parser and summary, by name; none of a parser without commands."""
    # argparse has no public way to its actions.
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (sub, summaries[name]) for name, sub in action.choices.items()}
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of a parser and of its commands' commands, each once."""
    names = [name for action in parser._actions for name in action.option_strings]
    if parser.prog.count(" "):  # not those of every command for the program itself
        for sub, _ in _commands(parser).values():
            names += _options(sub)
    return list(dict.fromkeys(name for name in names if name.startswith("--")))


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))
