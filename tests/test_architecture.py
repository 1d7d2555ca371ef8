"""docs/architecture.md says what imports what, and the code does so."""

import ast
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("npfp8", "bert_numpy")


def layers(package):
    """Each module's layer, by the package's table."""
    table = PAGE.split(f"\n### {package}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (\d+) [^|]*\|(.*)\|$", table, re.MULTILINE)
    return {name: int(layer) for layer, names in rows for name in re.findall(r"`(\w+)`", names)}


def module_of(path, package):
    """A file's module directly below its package: a subpackage counts as one."""
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, with what it takes from it; typing's alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_npfp8_knows_nothing_of_bert():
    for path in (ROOT / "npfp8").rglob("*.py"):
        assert not any(name.split(".")[0] == "bert_numpy" for name in imports(path)), path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_layer(package):
    files = {module_of(path, package) for path in (ROOT / package).rglob("*.py")}
    assert files - {"__init__", "__main__", "assets"} == set(layers(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_up_the_table(package):
    layer = layers(package)
    for path in (ROOT / package).rglob("*.py"):
        importer = module_of(path, package)
        if importer not in layer:
            continue
        for name in imports(path):
            if name.split(".")[0] == package:
                # Within a package its modules are named, not what __init__ takes from them.
                imported = name.partition(".")[2].split(".")[0]
                assert imported in layer, f"{importer} imports {name}"
                assert layer[imported] <= layer[importer], f"{importer} imports {imported}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_have_no_circle(package):
    edges = {}
    for path in (ROOT / package).rglob("*.py"):
        found = {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}
        importer = module_of(path, package)
        edges.setdefault(importer, set()).update((found & set(layers(package))) - {importer})
    remaining = {name: targets for name, targets in edges.items() if name in layers(package)}
    while remaining:
        ready = [name for name, targets in remaining.items() if not targets & set(remaining)]
        assert ready, f"a circle among {sorted(remaining)}"
        for name in ready:
            del remaining[name]
