"""docs/architecture.md says which folder imports which, and the code does so."""

import ast

from conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("npfp8", "bert_numpy")


def module_name(path):
    """The dotted name of a file: of a folder's ``__init__`` the folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


def imports(path):
    """The project's modules that a file imports, those for types alone too, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in MODULES
                else node.module
                for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def test_npfp8_knows_nothing_of_bert():
    for name, path in MODULES.items():
        if name.split(".")[0] == "npfp8":
            assert not [found for found in imports(path) if found.startswith("bert_numpy")], name
