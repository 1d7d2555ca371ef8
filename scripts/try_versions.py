"""Install the package with pairs of Python and NumPy, and with extras, and run the tests there.

    python scripts/try_versions.py --python python3.10 python3.13 --numpy 1.26.4 2.4.6
    python scripts/try_versions.py --python python3.12 --numpy 2.2.6 --extras data plot onnx

Each pair gets a virtual environment, which is deleted afterwards. A pair without
a wheel on the index is "not published". The script prints a table of the counts of
pytest, and exits with 1 if a test failed or an install broke. It runs a representative
part of the tests unless ``--tests`` names others.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: The representative tests: bits, files and the model.
TESTS = (
    "tests/test_bfloat16.py",
    "tests/test_codec.py",
    "tests/test_golden.py",
    "tests/test_golden_model.py",
    "tests/test_matmul.py",
    "tests/test_model.py",
    "tests/test_startup.py",
    "tests/test_storage.py",
    "tests/test_weights.py",
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def outcome(python: str, numpy: str, extra: str, tests: list[str]) -> tuple[str, bool]:
    """Try one environment; return the outcome in words, and whether it is good."""
    with tempfile.TemporaryDirectory() as place:
        if (made := run(python, "-m", "venv", place)).returncode:
            return f"no environment: {made.stderr.strip()[-200:]}", False
        pip = [Path(place) / "bin" / "python", "-m", "pip", "install", "--quiet"]
        if run(*pip, "--only-binary=:all:", f"numpy=={numpy}").returncode:
            return "not published", True
        extras = ",".join(filter(None, ("test", extra)))
        installed = run(*pip, f"numpy=={numpy}", "-e", f".[{extras}]")
        if installed.returncode:
            return f"cannot be installed: {installed.stderr.strip()[-200:]}", False
        tested = run(
            Path(place) / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests
        )
        counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", tested.stdout[-300:])
        if tested.returncode:
            print(tested.stdout[-3000:], file=sys.stderr)
        return ", ".join(counts) or tested.stdout[-200:], not tested.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="COMMAND")
    parser.add_argument("--numpy", nargs="+", required=True, metavar="VERSION")
    parser.add_argument("--extras", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH")
    arguments = parser.parse_args()
    well = True
    print("| Python | NumPy | extra | tests |\n| --- | --- | --- | --- |")
    for python in arguments.python:
        version = run(python, "--version").stdout.split()[-1]
        for numpy in arguments.numpy:
            for extra in arguments.extras:
                text, fine = outcome(python, numpy, extra, arguments.tests)
                well &= fine
                print(f"| {version} | {numpy} | {extra} | {text} |", flush=True)
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
