"""Measure the structure of the two packages: the files that a reader opens, and the imports.

    python scripts/measure_structure.py [FOLDER] [--before FOLDER]
    python scripts/measure_structure.py --before FOLDER --benchmark model codec [--quick]

FOLDER is a checkout, by default the one of this script. With ``--before``
another checkout is measured beside it.

A file is entered if one of its functions is called. The script counts the calls of the
embedded model on one text, in a separate process with the checkout first on its
path. It takes the calls of the second run, when all tables exist:

- text to logits: ``tokenizer.batch`` and the float32 pass, both loaded before
- the pass alone
- a checkpoint to logits: ``bert_numpy.load`` and the float32 pass, without tokenizer
- the quantized pass with the static recipe e4m3
- one quantized linear layer: in that pass, everything from the call of the first function
  that gets the site of the attention's output layer, until it returns

Every import counts, including those inside functions or for types alone. A circle is a set
of modules, or of folders, in which each imports all others directly or indirectly.

With ``--benchmark`` each checkout's own scripts are run in turns (before, now, before,
now, ...). For every row the ratio of its medians, now over before, is printed.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("npfp8", "bert_numpy")

#: The upper bounds for this repository, which tests/test_structure.py checks.
GOALS = {
    "files entered, text to logits": 9,
    "files entered, one quantized linear layer": 5,
    "import circles, module by module": 0,
    "import circles, folder by folder": 0,
}

TEXT = "a warm and funny film with a wonderful cast"
SITE = "encoder.layer.0.attention.output.dense"

#: By the name in --benchmark: the script, its options, and its options for --quick.
BENCHMARKS = {
    "model": (
        "benchmark_model.py",
        ["--startup", "--peers", "float32", "e4m3", "e4m3-golden", "int8", "calibration"],
        ["--inputs", "32x128", "1x16", "--rounds", "3"],
    ),
    "codec": ("benchmark_codec.py", [], ["--quick"]),
}
#: Rows that are slower, or faster, by more than this share are marked.
TOLERANCE = 0.03


# Which files are entered


def entered_files(folder: Path) -> dict[str, list[str]]:
    """Trace the embedded model in another process, with the packages of ``folder``."""
    command = [sys.executable, __file__, "--trace", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment(folder))
    return json.loads(done.stdout)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that imports the packages of ``folder``."""
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def trace(folder: Path) -> dict[str, list[str]]:
    """List the files that each run enters. Called in the separate process."""
    import bert_numpy  # noqa: PLC0415 (of the folder)

    assert Path(bert_numpy.__file__).is_relative_to(folder), bert_numpy.__file__
    model, tokenizer = (of("bert-tiny-sst2") for of in (bert_numpy.load, bert_numpy.load_tokenizer))
    batch = tokenizer.batch([TEXT])
    calibration = bert_numpy.calibrate(model, [batch])
    quantized = bert_numpy.apply_recipe(model, bert_numpy.PRESETS["e4m3"], calibration)
    runs: dict[str, tuple[Callable[[], Any], str | None]] = {
        "text to logits": (lambda: model(**tokenizer.batch([TEXT])), None),
        "the pass alone": (lambda: model(**batch), None),
        "a checkpoint to logits": (lambda: bert_numpy.load("bert-tiny-sst2")(**batch), None),
        "the quantized pass": (lambda: quantized(**batch), None),
        "one quantized linear layer": (lambda: quantized(**batch), SITE),
    }
    found = {}
    for name, (run, site) in runs.items():
        run()
        files = files_called(run, site)
        inside = {path.relative_to(folder) for path in files if path.is_relative_to(folder)}
        found[name] = sorted(str(path) for path in inside if path.parts[0] in PACKAGES)
    return found


def files_called(run: Callable[[], Any], site: str | None) -> set[Path]:
    """Return the files of all functions that ``run`` calls, or those at ``site`` alone."""
    names: set[str] = set()
    outermost: list[Any] = []  # the frame that the site was given to, until it returns

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            if not outermost and site is not None:
                arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
                if any(names_site(frame.f_locals.get(name), site) for name in arguments):
                    outermost.append(frame)
            if site is None or outermost:
                names.add(code.co_filename)
        elif event == "return" and outermost and frame is outermost[0]:
            outermost.clear()

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    assert names, f"nothing was called at {site}"
    return {Path(name) for name in names}


def names_site(value: Any, site: str) -> bool:
    """Check that an argument is a site: its name, an object of that name, or a list of one."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return names_site(value[0], site)
    name = value if isinstance(value, str) else getattr(value, "name", None)
    return isinstance(name, str) and name == site


# How long the code is


def modules_of(folder: Path) -> dict[str, Path]:
    """Map the dotted name of every module to its file; ``__init__`` has its folder's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def code_lines(source: str) -> int:
    """Count the lines other than blank lines, comments and docstrings."""
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*no_code, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= set(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(lines)


def functions(module: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield the number of lines and the dotted name of every function, including nested ones."""

    def visit(node: ast.AST, place: str) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            name = f"{place}.{getattr(child, 'name', '')}"
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield (child.end_lineno or 0) - child.lineno + 1, name
            named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            yield from visit(child, name if named else place)

    yield from visit(ast.parse(source), module)


# What imports what


def imports(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return the modules that each module imports, inside functions and for types, too."""
    return {name: set(imports_of(path, modules)) - {name} for name, path in modules.items()}


def imports_of(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the packages that a file imports; a name counts as its module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in below]
        else:
            continue
        yield from (name for name in names if name in modules)


def folder_of(module: str) -> str:
    """Return the folder, or the module, of a module directly below its package."""
    return ".".join(module.split(".")[:2])


def by_folder(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the folders that each folder imports."""
    found: dict[str, set[str]] = {}
    for name, targets in edges.items():
        folder = folder_of(name)
        found.setdefault(folder, set()).update({folder_of(one) for one in targets} - {folder})
    return found


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of nodes that reach each other: the strongly connected components."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        reached[start], waiting = set(), list(edges[start])
        while waiting:
            if (name := waiting.pop()) not in reached[start]:
                reached[start].add(name)
                waiting += edges.get(name, ())
    found = {
        tuple(sorted(one for one in reached[name] if name in reached.get(one, ())))
        for name in edges
        if name in reached[name]
    }
    return [list(names) for names in sorted(found)]


# The table


def measure(folder: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Measure a checkout.

    Returns
    -------
    values : dict
        The rows of the table.
    lists : dict
        The items behind some rows, by the rows' names.
    """
    values: dict[str, Any] = {}
    lists: dict[str, list[str]] = {}
    for name, files in entered_files(folder).items():
        values[f"files entered, {name}"] = len(files)
        lists[f"files entered, {name}"] = files

    modules = modules_of(folder)
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
    lengths = {name: len(source.splitlines()) for name, source in sources.items()}
    code = {name: code_lines(source) for name, source in sources.items()}
    for package in PACKAGES:
        inside = [name for name in modules if name.split(".")[0] == package]
        values[f"{package}: modules"] = len(inside)
        values[f"{package}: lines"] = sum(lengths[name] for name in inside)
        values[f"{package}: lines of code"] = sum(code[name] for name in inside)
    values["both: lines"], values["both: lines of code"] = sum(lengths.values()), sum(code.values())
    longest = sorted(
        (one for name, source in sources.items() for one in functions(name, source)), reverse=True
    )
    values["longest function"] = longest[0][0]
    lists["longest function"] = [f"{lines} {name}" for lines, name in longest[:10]]
    files = sorted(((lines, name) for name, lines in lengths.items()), reverse=True)
    values["longest file"] = files[0][0]
    lists["longest file"] = [f"{lines} {name}" for lines, name in files[:5]]

    edges = imports(modules)
    for key, found in (
        ("import circles, module by module", circles(edges)),
        ("import circles, folder by folder", circles(by_folder(edges))),
    ):
        values[key], lists[key] = len(found), [", ".join(names) for names in found]
    return values, lists


def print_table(folders: Mapping[str, Path]) -> None:
    measured = {label: measure(folder) for label, folder in folders.items()}
    print(f"| | {' | '.join(measured)} | goal |\n| --- |{' --- |' * (len(measured) + 1)}")
    for name in next(iter(measured.values()))[0]:
        cells = " | ".join(f"{values[name]:,}" for values, _ in measured.values())
        goal = f"at most {GOALS[name]}" if name in GOALS else ""
        print(f"| {name} | {cells} | {goal} |")
    for label, (_, lists) in measured.items():
        for name, items in lists.items():
            print(f"\n{label}: {name}")
            for item in items or ["none"]:
                print(f"  {item}")


# Benchmarks, in turns


def timings(report: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the rows of a benchmark's ``--json``, each with its median and least time."""
    for place, result in dict(report.get("results", {})).items():
        for peer, one in result["peers"].items():
            yield f"{place}: {peer}", (one["median_seconds"], min(one["rounds"]))
    for name, one in dict(report.get("startup", {})).items():
        yield name, (one["median_seconds"], one["least_seconds"])
    for row in report.get("rows", ()):
        keys = ("what", "fmt", "source", "bytes", "threads")
        yield ", ".join(f"{row[key]}" for key in keys), (row["npfp8_us"], row["npfp8_us"])


def compare_speed(
    before: Path, now: Path, names: list[str], turns: int, quick: bool, more: list[str]
) -> None:
    """Run benchmarks of two checkouts in turns, and print the ratios of their medians.

    Two more columns show the ratio of the least times, which other work on the machine
    disturbs less, and the lowest and highest ratio of medians in one turn, which is the noise.
    """
    print("| benchmark | row | medians | least | in one turn | |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        script, options, if_quick = BENCHMARKS[name]
        options = [*options, *(if_quick if quick else []), *more]
        rows: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {}
        for _ in range(turns):
            old, new = (
                dict(timings(report_of(folder, script, options))) for folder in (before, now)
            )
            for row, times in old.items():
                rows.setdefault(row, []).append((times, new[row]))
        for row, pairs in rows.items():
            olds, least_old = zip(*(old for old, _ in pairs), strict=True)
            news, least_new = zip(*(new for _, new in pairs), strict=True)
            ratio = statistics.median(news) / statistics.median(olds)
            least = min(least_new) / min(least_old)
            each = [a / b for a, b in zip(news, olds, strict=True)]
            mark = "" if abs(ratio - 1) <= TOLERANCE else "slower" if ratio > 1 else "faster"
            spread = f"{min(each):.3f} to {max(each):.3f}"
            print(f"| {name} | {row} | {ratio:.3f} | {least:.3f} | {spread} | {mark} |", flush=True)


def report_of(folder: Path, script: str, options: list[str]) -> Any:
    """Run a script of a folder, with the packages of that folder, and return its report."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "report.json"
        command = [sys.executable, str(folder / "scripts" / script), *options, "--json", str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(folder), check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="what it is compared with")
    parser.add_argument("--benchmark", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer rows of the benchmarks")
    parser.add_argument("--turns", type=int, default=3, help="runs of each benchmark and folder")
    parser.add_argument("--options", default="", help="more options for the benchmarks, in quotes")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    now = arguments.folder.resolve()
    before = arguments.before and arguments.before.resolve()
    if arguments.trace:
        print(json.dumps(trace(now)))
    elif not arguments.benchmark:
        print_table({"before": before, "now": now} if before else {"now": now})
    elif before:
        more = arguments.options.split()
        compare_speed(before, now, arguments.benchmark, arguments.turns, arguments.quick, more)
    else:
        parser.error("--benchmark: expected --before, the folder to compare with")


if __name__ == "__main__":
    main()
