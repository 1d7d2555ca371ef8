"""The imports between the folders follow docs/architecture.md."""

import ast
import re

import numpy as np
import pytest
from conftest import ROOT, load_script

structure = load_script("measure_structure")

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULES = structure.modules_of(ROOT)
IMPORTS = structure.imports(MODULES)

#: The modules of model/ that describe: the others are the pass.
NOT_OF_THE_PASS = {"architectures", "config", "packing", "relative_positions", "sites"}


# The table of the page: every row's folders, and what they may import


def read_table(page):
    """The rows of the page's table of folders, in order: (folders, what they may import)."""
    table = page.split("\n| folder | question | imports |\n")[1].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[1:]]
    return [tuple(re.findall(r"`([\w.]+)`", row[i]) for i in (0, 2)) for row in rows]


TABLE = read_table(PAGE)
ROW = {folder: number for number, (folders, _) in enumerate(TABLE) for folder in folders}
GROUND = [folder for folders, _ in TABLE[:2] for folder in folders]


def place(module):
    """A module as the table has it: ``npfp8``, or the dotted name inside ``bert_numpy``."""
    package, _, rest = module.partition(".")
    return "npfp8" if package == "npfp8" else rest


def may_import(module, imported, table=TABLE):
    """Check whether a module may import another: in its folder, its row, or the ground."""
    importer, target = place(module), place(imported)
    folder = importer.partition(".")[0]
    if folder == target.partition(".")[0]:
        return True
    for folders, allowed in table:
        if folder in folders:
            names = [*allowed, *(GROUND if folder != "npfp8" else ())]
            return any(target == name or target.startswith(f"{name}.") for name in names)
    raise AssertionError(f"{module}: expected a row for {folder} in docs/architecture.md")


def test_every_folder_has_a_row():
    folders = {place(name).partition(".")[0] for name in MODULES} - {""}
    assert folders == set(ROW)
    assert sum(len(folders) for folders, _ in TABLE) == len(ROW)


def test_a_row_imports_only_from_rows_above():
    for number, (folders, allowed) in enumerate(TABLE):
        for name in allowed:
            assert ROW[name.partition(".")[0]] < number, f"{folders} imports {name}"
            assert f"bert_numpy.{name}" in MODULES, f"{folders} imports {name}"


@pytest.mark.parametrize("folder", ROW)
def test_a_folder_imports_what_its_row_names(folder):
    """Types alone and imports inside functions too."""
    wrong = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in sorted(targets)
        if place(name).partition(".")[0] == folder and not may_import(name, target)
    ]
    assert not wrong, "\n".join(wrong)


def test_npfp8_knows_nothing_of_bert():
    for name, targets in IMPORTS.items():
        if place(name) == "npfp8":
            assert not [target for target in targets if place(target) != "npfp8"], name


@pytest.mark.parametrize("edges", [IMPORTS, structure.by_folder(IMPORTS)], ids=["module", "folder"])
def test_no_import_leads_in_a_circle(edges):
    assert structure.circles(edges) == []


def test_what_a_row_allows():
    """The rule itself, on a table of its own."""
    table = [(["npfp8"], []), (["errors"], []), (["b"], []), (["c"], ["b.x"])]
    for module, imported, expected in (
        ("bert_numpy.c.a", "bert_numpy.b.x", True),
        ("bert_numpy.c.a", "bert_numpy.b.x.inner", True),
        ("bert_numpy.c.a", "bert_numpy.b.xy", False),
        ("bert_numpy.c.a", "bert_numpy.b", False),
        ("bert_numpy.c", "bert_numpy.c.a", True),
        ("bert_numpy.b", "bert_numpy.c.a", False),
        ("bert_numpy.b", "bert_numpy.errors", True),
        ("bert_numpy.b", "npfp8.tensor", True),
        ("npfp8.tensor", "npfp8.codec", True),
        ("npfp8.tensor", "bert_numpy.errors", False),
    ):
        assert may_import(module, imported, table) is expected, (module, imported)
    with pytest.raises(AssertionError, match="expected a row for d"):
        may_import("bert_numpy.d", "bert_numpy.b", table)


# model/ describes the pass: it opens no file, and computes nothing itself

#: Modules that open files.
OPENING = (
    *("io", "json", "mmap", "os", "pathlib", "shutil", "tempfile"),
    *("safetensors", "npfp8.files", "npfp8.storage"),
)
#: Functions and methods that do.
OPENERS = {
    *("open", "read_bytes", "read_text", "write_bytes", "write_text"),
    *("load", "save", "fromfile", "memmap"),
}

#: NumPy's functions that compute with activations: what gives float32, and what sums.
ARITHMETIC = {
    *(
        name
        for name, function in vars(np).items()
        if isinstance(function, np.ufunc) and any(types.endswith(">f") for types in function.types)
    ),
    *("average", "clip", "dot", "einsum", "inner", "linalg", "mean", "outer", "std", "sum"),
    *("tensordot", "var", "vdot"),
}
#: Methods that do, without those that an engine has.
METHODS = {"dot", "prod", "std", "sum", "var"}


def opens(tree):
    """Yield what opens a file, or imports what does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in OPENERS:
                yield f"line {node.lineno}: {called}"
            continue
        else:
            continue
        for name in names:
            if any(name == one or name.startswith(f"{one}.") for one in OPENING):
                yield f"line {node.lineno}: imports {name}"


def computes(tree):
    """Yield the arithmetic that belongs into an engine: ``@``, ``+=``, ``np.exp``, ``x.sum()``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield f"line {node.lineno}: @"
        elif isinstance(node, ast.AugAssign):
            if not isinstance(node.op, ast.BitOr) and not isinstance(node.value, ast.List):
                yield f"line {node.lineno}: an assignment with arithmetic"
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "np":
            if node.attr in ARITHMETIC:
                yield f"line {node.lineno}: np.{node.attr}"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in METHODS:
            yield f"line {node.lineno}: .{node.func.attr}()"


def trees(*left_out):
    for name, path in MODULES.items():
        folder, _, module = place(name).partition(".")
        if folder == "model" and module not in left_out:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_the_model_opens_no_file():
    assert [f"{path.name}: {found}" for path, tree in trees() for found in opens(tree)] == []


def test_the_pass_computes_nothing_itself():
    found = [
        f"{path.name}: {one}" for path, tree in trees(*NOT_OF_THE_PASS) for one in computes(tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        *((source, computes) for source in ("y = x @ w", "x += y", "np.exp(x)", "f = np.matmul")),
        *((source, computes) for source in ("np.add(x, y)", "x.sum(-1)", "np.einsum('ij', x)")),
        *((source, opens) for source in ("import json", "from pathlib import Path", "open(x)")),
        *((source, opens) for source in ("from npfp8.files import replaced_file", "np.load(x)")),
        *((source, opens) for source in ("from npfp8 import storage", "path.read_bytes()")),
    ],
)
def test_these_rules_find(source, rule):
    assert list(rule(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "x = run.add(x, y)\nscale = 1 / math.sqrt(hidden // heads)\nmean = engine.mean(x)",
        "ids = np.cumsum(np.not_equal(ids, pad), 1)\nx = x.reshape(a, b)",
        "names += [name]\noutputs |= head(x)",
        "from npfp8 import QuantizedTensor\nwith np.errstate(all='ignore'):\n    pass",
    ],
)
def test_these_rules_let_pass(source):
    tree = ast.parse(source)
    assert [*computes(tree), *opens(tree)] == []
