"""What README and docs say: their code runs and prints what it says, their commands exist."""

import contextlib
import html
import importlib
import io
import json
import os
import posixpath
import re
import shlex
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

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
    "add_run_options": "bert_numpy/study/training.py",
    "add_samples_option": "bert_numpy/study/options.py",
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
    assert program in known | {"sphinx-build", "jupyter", "pre-commit", "run", "tar", "cd"}, (
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


@pytest.fixture(scope="module")
def site(sphinx, tmp_path_factory):
    """The built site. The build checks links and anchors of the pages; a warning is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    options = ["--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT / "docs", folder],
        env={**os.environ, "DOCS_REPOSITORY": "git@example.org:owner/name.git"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Elements(HTMLParser):
    """The ids of a page, its links, and what it loads."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.loaded, self.images = set(), [], [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "link" and set(attrs.get("rel", "").split()) & {"stylesheet", "icon", "preload"}:
            self.loaded.append(attrs["href"])
        if tag in {"img", "script", "iframe"} and attrs.get("src"):
            self.loaded.append(attrs["src"])
        if tag == "img":
            self.images.append(attrs)


@pytest.fixture(scope="module")
def pages(site):
    return {
        page.relative_to(site).as_posix(): Elements(page)
        for page in sorted(site.rglob("*.html"))
        if page.relative_to(site).parts[0] not in {"_static", "byte"}
    }


def test_every_page_and_notebook_is_in_the_site(pages):
    """Markdown pages as they lie, and the notebooks with their outputs."""
    folder = ROOT / "docs"
    expected = {path.relative_to(folder).with_suffix(".html") for path in folder.rglob("*.md")}
    expected |= {
        Path("notebooks", path.name).with_suffix(".html")
        for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    assert {path.as_posix() for path in expected} <= set(pages)
    assert any(name.startswith("notebooks/") for name, page in pages.items() if page.images)


def test_links_of_the_site(site, pages):
    """Every local link, image and script is there, anchors too; none is from elsewhere."""
    for name, page in pages.items():
        for target in page.loaded:
            assert "//" not in target, f"{name} loads {target}"
        for target in {*page.loaded, *page.links}:
            if re.match(r"[a-z]+:", target):
                continue
            place, _, anchor = unquote(target).partition("#")
            place = place.partition("?")[0]
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), place or name))
            path = path if place else name
            assert (site / path).is_file(), f"{name}: {target}"
            if anchor and path in pages:
                assert anchor in pages[path].ids, f"{name}: {target}"


def test_every_page_has_the_icon(site, pages):
    """Without one, browsers ask the server for /favicon.ico."""
    for name, page in pages.items():
        assert any(target.endswith("favicon.svg") for target in page.loaded), name
    byte = Elements(site / "byte" / "index.html")
    assert "favicon.svg" in byte.loaded
    for target in byte.loaded:
        assert (site / "byte" / target).is_file(), target


@pytest.fixture(scope="module")
def opened(site, pages, node, browser):
    """What tests/site_browser.mjs has seen of every page."""
    command = [node, ROOT / "tests" / "site_browser.mjs", *browser, site, *pages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_page_fits_a_desk_and_a_phone(opened):
    """Tables too, on a desk and with all details open; on a phone they scroll in their box."""
    assert not opened["errors"]
    for width, pages in opened["wide"].items():
        for name, excess in pages.items():
            allowed = {"tables": excess["tables"]} if width == "390" else {"tables": 0}
            assert excess == {"page": 0, "text": 0, "images": 0, **allowed}, f"{name} at {width}"


def test_theme_follows_the_system_unless_chosen(opened):
    assert opened["themes"] == ["light", "dark", "light", "dark", "light"]


def test_site_links_to_the_repository(pages):
    """Every page, by the address that the clone or the environment has."""
    for name, page in pages.items():
        assert "https://example.org/owner/name" in page.links, name


def test_the_home_page_shows_what_the_demo_prints(site):
    """As README has it, which another test compares with the demo."""
    printed = re.search(
        r"^```text\n(.*?)^```", PAGES[0].read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert html.escape(printed[1].strip(), quote=False) in re.sub(
        r"</?span[^>]*>", "", (site / "index.html").read_text(encoding="utf-8")
    )


def test_formulas_need_no_script(site):
    concepts = (site / "concepts.html").read_text(encoding="utf-8")
    assert concepts.count("<math ") > 10
    assert "\\(" not in concepts


def test_images_are_described(pages):
    for name, page in pages.items():
        for image in page.images:
            assert image.get("alt") not in (None, "", image["src"]), name


@pytest.mark.parametrize("package", ["npfp8", "bert_numpy"])
def test_every_public_name_is_in_the_reference(package, pages):
    module = importlib.import_module(package)
    for name in module.__all__:
        # The formats are constants, and Format a union of two classes that are there.
        if callable(getattr(module, name)) and name != "Format":
            assert f"{package}.{name}" in pages[f"reference/{package}.html"].ids, name


def test_every_name_of_the_reference_has_one_module(pages):
    """The anchor of a constant once was npfp8.npfp8.ACCUMULATORS, too long for the index."""
    found = {
        one for name, page in pages.items() if name.startswith("reference/") for one in page.ids
    }
    assert {"npfp8.ACCUMULATORS", "bert_numpy.PRESETS"} <= found
    assert not [one for one in found if re.search(r"^(npfp8|bert_numpy)\..*\b\1\.", one)]


def test_every_page_of_the_reference_is_of_a_module(pages):
    """Its names are in the table at the top, and below it."""
    for name, page in pages.items():
        module = name.removeprefix("reference/").removesuffix(".html")
        if name.startswith("reference/") and module != "index":
            importlib.import_module(module)
            named = [link[1:] for link in page.links if link.startswith(f"#{module}.")]
            assert named, name


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("install", "index#install"),
        ("quantize a model", "quick-start#quantize-a-model"),
        ("jupyter", "notebooks"),
        ("Conformance kit", "kit"),
        ("kit", "kit"),  # by the names of pages
        ("golden", "golden"),
        ("hopper", "hopper"),
        ("recipe", "recipes"),
        ("SmoothQuant", "recipes#smoothquant"),
        ("calibration", "notebooks/3-calibration"),
        ("int8 loses", "results"),
        ("squad", "results#squad-v1-1"),
        ("nan", "faq"),
        ("absmax", "reference/npfp8#npfp8.absmax_scale"),
        ("encode", "reference/npfp8#npfp8.encode"),
        ("apply_recipe", "reference/bert_numpy#bert_numpy.apply_recipe"),
        ("qwertyuiop", None),
    ],
)
def test_search_finds_first(query, expected, site, node):
    """By the site's own script and index, in Node."""
    command = [node, ROOT / "tests" / "search_site.js", site, query]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected]
