"""Every script answers --help, without doing its work."""

from __future__ import annotations

import subprocess
import sys
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
    *("compressed_tensors", "hypothesis", "ml_dtypes", "mpmath", "onnx", "onnxruntime"),
    *("torch", "torchao", "transformers"),
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
