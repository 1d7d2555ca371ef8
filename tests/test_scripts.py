"""Every script answers --help, without doing its work, and finds what it imports."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

#: One process for all of them, as most of the time is that of imports.
PROGRAM = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
for script in sys.argv[2:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        print(script, stop.code or "answers", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(script, f"needs {error.name}", file=sys.stderr)
"""

#: Packages that a script may import before it reads its arguments: they are extras, or tools.
OPTIONAL = {
    *("compressed_tensors", "hypothesis", "ml_dtypes", "mmasim", "mpmath", "onnx"),
    *("onnxruntime", "torch", "torchao", "transformers"),
}


def test_every_script_answers() -> None:
    if not SCRIPTS.is_dir():
        pytest.skip("the scripts are in the repository, not in the package")
    names = sorted(map(str, SCRIPTS.glob("*.py")))
    command = [sys.executable, "-c", PROGRAM, str(SCRIPTS), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    answers = dict(line.split(" ", 1) for line in done.stderr.splitlines() if ".py " in line)
    assert done.returncode == 0, done.stderr
    for name in names:
        needed = answers.get(name, "nothing").removeprefix("needs ")
        assert needed == "answers" or needed.split(".")[0] in OPTIONAL, (name, done.stderr)
    answering = [name for name in names if answers[name] == "answers"]
    assert len(answering) > len(names) / 2
    assert done.stdout.count("usage: ") == len(answering)


def imported(script: Path) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of what a script imports from the packages, anywhere in it."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if module.partition(".")[0] in ("npfp8", "bert_numpy"):
            yield from ((module, alias.name) for alias in node.names)


def test_what_scripts_import_is_there() -> None:
    """In functions too, which --help does not call; and it is not a module's own affair."""
    if not SCRIPTS.is_dir():
        pytest.skip("the scripts are in the repository, not in the package")
    found = {(path.name, *names) for path in SCRIPTS.glob("*.py") for names in imported(path)}
    assert len(found) > 100
    for script, module, name in sorted(found):
        assert not name.startswith("_"), (script, module, name)
        try:
            importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), (script, module, name)
