"""Run the commands that a page shows, and compare what they print with the page.

    python scripts/run_page.py --check docs/check-your-backend.md
    python scripts/run_page.py --write docs/check-your-backend.md
    python scripts/run_page.py --write docs/check-your-backend.md --only Verilog

A command is a line that begins with `$` in a block of the language `console`; the lines that
follow, up to the next command, are its output. The blocks of a section (a heading with `##`)
run one after the other in an empty folder, with the variable EXAMPLES for examples/.
The exit code is 1 if something else is printed.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "=== run_page ==="


def sections(text: str) -> dict[str, str]:
    """Split a page at its headings of the second level: the text of each, by its title."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(section: str) -> list[str]:
    """Return the commands of a section."""
    return [
        line[2:] for block in blocks(section) for line in block.splitlines() if line[:2] == "$ "
    ]


def blocks(section: str) -> list[str]:
    """Return the blocks of a section that show commands."""
    return re.findall(r"^```console\n(\$ .*?)^```", section, re.DOTALL | re.MULTILINE)


def run(lines: list[str], folder: Path) -> list[str]:
    """Run commands in one shell, in a folder; return what each prints, errors included."""
    tools = folder.parent / f"{folder.name}-tools"
    tools.mkdir()
    for name, arguments in (("python", ()), ("bert-numpy", ("-m", "bert_numpy"))):
        words = shlex.join([sys.executable, *arguments])
        (tools / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (tools / name).chmod(0o755)
    script = "\n".join(f"echo; echo '{MARK}'\n{line}" for line in lines)
    found = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={
            **os.environ,
            "EXAMPLES": str(ROOT / "examples"),
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return found.stdout.split(f"\n{MARK}\n")[1:]


def with_output(section: str, printed: list[str]) -> str:
    """Return a section with this output behind its commands."""
    outputs = iter(printed)
    for block in blocks(section):
        lines = [line for line in block.splitlines() if line[:2] == "$ "]
        made = "".join(f"{line}\n{next(outputs)}" for line in lines)
        section = section.replace(block, made, 1)
    return section


def made_again(section: str) -> str:
    """Run a section's commands; return it with what they print."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        empty.mkdir()
        return with_output(section, run(commands(section), empty))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with this page")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the output into this page"
    )
    parser.add_argument("--only", default="", metavar="TITLE", help="this section only")
    arguments = parser.parse_args()
    page = arguments.check or arguments.write
    if page is None:
        parser.error("expected --check or --write")
    text = made = page.read_text(encoding="utf-8")
    for title, section in sections(text).items():
        if commands(section) and arguments.only in title:
            made = made.replace(section, made_again(section), 1)
    if arguments.write:
        page.write_text(made, encoding="utf-8")
    elif made != text:
        names = (str(page), "now")
        lines = difflib.unified_diff(text.splitlines(), made.splitlines(), *names, lineterm="")
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
