"""What README and docs say: their code runs and prints what it says, their commands exist."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from bert_numpy.commands import main as cli

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def blocks(language):
    """Every code block of a language, with its page and line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            name = f"{page.relative_to(ROOT)}:{line}"
            yield pytest.param(match[1], id=name)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block(block, tmp_path, monkeypatch):
    """It runs; a comment behind a print is the end of what is printed."""
    monkeypatch.chdir(tmp_path)
    # No test asks the hub: the model of an example is the embedded one.
    block = block.replace('"owner/name", revision="v1.0"', '"bert-tiny-sst2"')
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), np.printoptions():
        exec(compile(block, "block", "exec"), {})
    prints = [line for line in block.splitlines() if line.startswith("print(")]
    for found, line in zip(printed.getvalue().splitlines(), prints, strict=True):
        if "  # " in line:
            assert line.rsplit("  # ", 1)[1].endswith(found)


def commands():
    for parameter in blocks("sh"):
        (block,) = parameter.values
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line.replace('eval "$(', "").replace(')"', "")):
                words = shlex.split(part, comments=True)
                while words and "=" in words[0]:  # a variable for one command
                    words.pop(0)
                if words:
                    yield pytest.param(words, id=f"{parameter.id} {part.strip()[:50]}")


#: What adds the options that several scripts have, and where it is.
SHARED_OPTIONS = {
    "add_cluster_options": "bert_numpy/study/cluster.py",
    "add_subject_options": "bert_numpy/study/options.py",
}


@pytest.mark.parametrize("words", commands())
def test_command(words):
    """Arguments parse, scripts exist and know their options, and nothing else is run."""
    program = Path(words[0]).name
    if program == "bert-numpy" and words[1:] not in (["--help"], ["--version"]):
        cli.build_parser().parse(words[1:])
    scripts = [word for word in words if word.startswith(("scripts/", "tests/", ".ci/"))]
    for script in scripts:
        assert (ROOT / script).exists(), script
        if script.startswith("scripts/") and script.endswith(".py"):
            source = (ROOT / script).read_text(encoding="utf-8")
            for function, module in SHARED_OPTIONS.items():
                if f"{function}(" in source:
                    source += (ROOT / module).read_text(encoding="utf-8")
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert f'"{option}"' in source, f"{script} has no {option}"
    known = {
        "bert-numpy",
        "python",
        "python3",
        "pip",
        "pytest",
        "git",
        "ruff",
        "mypy",
        "bash",
        "sha256sum",
        "jupyter",
    }
    assert program in known | {"mkdocs", "pre-commit", "run", "tar", "cd"}, (
        f"a program no test knows: {program}"
    )


def named_objects():
    """Every name of ours in a page, a docstring or a comment: ``npfp8.storage.save_file``."""
    pages = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    for folder in ("npfp8", "bert_numpy", "scripts"):
        pages += sorted((ROOT / folder).rglob("*.py"))
    pattern = r"`~?((?:npfp8|bert_numpy)(?:\.[A-Za-z]\w*)+)[`(]"
    return sorted({name for page in pages for name in re.findall(pattern, page.read_text("utf-8"))})


@pytest.mark.parametrize("name", named_objects())
def test_name_exists(name):
    """As a reader types it: each part is an attribute, or a module of a package to import."""
    place, *parts = name.split(".")
    found = importlib.import_module(place)
    for part in parts:
        place += f".{part}"
        if not hasattr(found, part):
            assert isinstance(found, types.ModuleType), f"{name}: {place} of no module"
            importlib.import_module(place)
        found = getattr(found, part)


def test_a_name_behind_a_function_is_refused():
    with pytest.raises(AssertionError, match="of no module"):
        test_name_exists("npfp8.matmul.exact_k_limit")


@pytest.mark.parametrize("ending", ["bert-numpy demo", "pytest"])
def test_set_up_commands_are_one_line_each(ending):
    readme = PAGES[0].read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv .venv ")]
    assert sum(line.endswith(ending) for line in lines) == 1


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_to_files(page):
    """Of the pages that are not part of the site, whose own links its build checks."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_site_builds_without_warnings(mkdocs, tmp_path):
    """Links and anchors are checked by the build; every public name is in the reference."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for package in ("npfp8", "bert_numpy"):
        reference = (tmp_path / "reference" / package / "index.html").read_text(encoding="utf-8")
        module = importlib.import_module(package)
        for name in module.__all__:
            # The formats are constants, and Format a union of two classes that are there.
            if callable(getattr(module, name)) and name != "Format":
                ids = (f'id="{package}.{name}"', f'id="{package}.{name}.{name}"')
                assert any(id_ in reference for id_ in ids), name
