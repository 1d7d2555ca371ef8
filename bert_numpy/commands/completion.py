"""Completion scripts for shells, made from the parser: commands, their options, and files."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping

__all__ = ["SHELLS", "completion_script"]

#: The shells that a script can be made for.
SHELLS = ("bash", "zsh", "fish")

# zsh runs bash's functions after bashcompinit, so the two share one script.
_BASHCOMPINIT = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"

_BASH = """\
_bert_numpy() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" options= nested= values=
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
        *) options={options} ;;
    esac
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    esac
    COMPREPLY=()
    case "${{values:+value}}$COMP_CWORD,$cur" in
        value*) COMPREPLY=($(compgen -W "$values" -- "$cur")) ;;
        *,-*) COMPREPLY=($(compgen -W "$options" -- "$cur")) ;;
        1,*) COMPREPLY=($(compgen -W {commands} -- "$cur")) ;;
        2,*) COMPREPLY=($(compgen -W "$nested" -- "$cur")) ;;
    esac
}}
complete -o default -F _bert_numpy bert-numpy
"""


def completion_script(
    parser: argparse.ArgumentParser, shell: str, values: Mapping[str, Iterable[str]]
) -> str:
    """The script that makes a shell complete the commands and options of ``bert-numpy``.

    Where neither fits, such as after an option that takes a file, names of files are offered.

    Parameters
    ----------
    parser : ArgumentParser
        With commands, which may have commands of their own.
    shell : str
        One of :data:`SHELLS`.
    values : mapping of str to strings
        Likely values of options that take others, too; those that an option is limited to are
        known to the parser.
    """
    commands = _commands(parser)
    if shell == "fish":
        return _fish(parser, commands, values)
    cases, found = [], dict(values)
    for name, (sub, _) in commands.items():
        nested = _commands(sub)
        leaves = [sub, *(leaf for leaf, _ in nested.values())]
        cases += [
            f"        '{name} {inner}') options={_quoted(_options(leaf))} ;;"
            for inner, (leaf, _) in nested.items()
        ]
        following = _quoted(nested or _choices(sub).get("", []))
        cases.append(f"        '{name} '*) options={_quoted(_options(sub))} nested={following} ;;")
        for leaf in leaves:
            found |= {option: words for option, words in _choices(leaf).items() if option}
    script = _BASH.format(
        cases="\n".join(cases),
        values="\n".join(f"        {name}) values={_quoted(of)} ;;" for name, of in found.items()),
        options=_quoted(_options(parser)),
        commands=_quoted(commands),
    )
    return _BASHCOMPINIT + script if shell == "zsh" else script


def _fish(
    parser: argparse.ArgumentParser,
    commands: dict[str, tuple[argparse.ArgumentParser, str]],
    values: Mapping[str, Iterable[str]],
) -> str:
    lines = []
    for name, (_, summary) in commands.items():
        lines.append(f"-n __fish_use_subcommand -f -a {name} -d {shlex.quote(summary)}")
    lines += [f"-n __fish_use_subcommand -l {name[2:]}" for name in _options(parser)]
    for name, (sub, _) in commands.items():
        nested = _commands(sub)
        leaves = {name: sub} | {inner: leaf for inner, (leaf, _) in nested.items()}
        for word, leaf in leaves.items():
            seen, known = f"-n '__fish_seen_subcommand_from {word}'", {**values, **_choices(leaf)}
            for option in _options(leaf):
                of = f" -r -a {_quoted(known[option])}" if option in known else ""
                lines.append(f"{seen} -l {option[2:]}{of}")
        if following := _quoted(nested or _choices(sub).get("", [])).strip("'"):
            lines.append(f"-n '__fish_seen_subcommand_from {name}' -f -a '{following}'")
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
    """The long options of a parser."""
    names = [name for action in parser._actions for name in action.option_strings]
    return [name for name in names if name.startswith("--")]


def _choices(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The values of each option that has a list of them; of an argument, under an empty name."""
    return {
        name: list(action.choices)
        for action in parser._actions
        if action.choices and not isinstance(action, argparse._SubParsersAction)
        for name in (action.option_strings or [""])
    }


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))
