"""Measure how soon a command line of this size answers --help with argparse, click and typer.

The commands and options are those of bert-numpy, written as a program of each library that does
nothing else, so that only the libraries differ. The programs are run in turn, and the shortest
time and the least processor time of each count; the latter changes less on a busy machine. The
last rows are bert-numpy itself, which imports NumPy, too.

    pip install click typer
    python scripts/measure_command_line.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bert_numpy.commands.main import build_parser
from bert_numpy.commands.options import positive

#: A command of each library: the beginning of a program, a command, an option, and the end.
PROGRAMS = {
    "argparse": (
        "import argparse\np = argparse.ArgumentParser()\nc = p.add_subparsers()\n",
        "s = c.add_parser({name!r}, help={summary!r})\n",
        "s.add_argument('--{option}', help={text!r})\n",
        "",
        "p.parse_args()\n",
    ),
    "click": (
        "import click\n@click.group()\ndef p(): pass\n",
        "@p.command({name!r}, help={summary!r})\n",
        "@click.option('--{option}', help={text!r})\n",
        "def f(**_): pass\n",
        "p()\n",
    ),
    "typer": (
        "import typer\nfrom typing import Annotated, Optional\np = typer.Typer()\n",
        "@p.command({name!r}, help={summary!r})\ndef f(\n",
        "    {word}: Annotated[Optional[str], typer.Option('--{option}', help={text!r})] = None,\n",
        "): pass\n",
        "p()\n",
    ),
}


def program(library: str) -> str:
    """Write the commands and options of bert-numpy as a program of a library."""
    begin, command, option, end, run = PROGRAMS[library]
    parts = [begin]
    for name, parser in build_parser().every_command():
        parts.append(command.format(name=name.replace(" ", "-"), summary=parser.description))
        for action in parser.arguments:
            if action.option_strings and action.dest != "help":
                word = action.option_strings[-1].removeprefix("--")
                plain = f"o_{word.replace('-', '_')}"
                text = str(action.help).replace("%", "")
                parts.append(option.format(option=word, word=plain, text=text))
        parts.append(end)
    return "".join([*parts, run])


def shortest(commands: dict[str, list[str]], repeats: int) -> dict[str, tuple[float, float]]:
    """Run commands in turn; return the shortest time and processor time of each, in seconds."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, words in commands.items():
            begin, used = time.perf_counter(), os.times()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            end, total = time.perf_counter(), os.times()
            processor = total.children_user + total.children_system
            processor -= used.children_user + used.children_system
            found[name].append((end - begin, processor))
    return {name: tuple(map(min, zip(*times, strict=True))) for name, times in found.items()}


def lines(repeats: int) -> Iterator[str]:
    """Measure all programs and print the rows of a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        commands = {"Python alone": [sys.executable, "-c", "pass"]}
        for library in PROGRAMS:
            path = Path(folder) / f"with_{library}.py"
            path.write_text(program(library), encoding="utf-8")
            version = "" if library == "argparse" else f" {metadata.version(library)}"
            commands[library + version] = [sys.executable, str(path), "--help"]
        commands["bert-numpy"] = [sys.executable, "-m", "bert_numpy", "--help"]
        commands["bert-numpy completion bash"] = [
            *(sys.executable, "-m", "bert_numpy", "completion", "bash")
        ]
        yield "| `--help` of | seconds | of the processor |"
        yield "| --- | --- | --- |"
        for name, (seconds, processor) in shortest(commands, repeats).items():
            yield f"| {name} | {seconds:.2f} | {processor:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=positive, default=20, metavar="N", help="(default: 20)")
    for line in lines(parser.parse_args().repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
