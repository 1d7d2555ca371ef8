"""Every notebook runs, and prints its committed output; each figure is sharp and explained."""

import base64
import json
import re

import pytest
from conftest import ROOT
from test_colors import pixels_per_inch

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def printed(cell):
    """A cell's text outputs; figures are left out."""
    return "".join(
        output.get("text", "") or output.get("evalue", "")
        for output in cell.get("outputs", [])
        if output["output_type"] in ("stream", "error")
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(nbclient, path):
    import nbformat  # noqa: PLC0415 (it comes with nbclient)

    committed = nbformat.read(path, as_version=4)
    found = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    # The limit only ends a cell that hangs: 10 s of training take 2 minutes on a busy machine.
    nbclient.NotebookClient(found, timeout=900, resources=resources).execute()
    for before, after in zip(committed.cells, found.cells, strict=True):
        if before.cell_type == "code":
            assert printed(after) == printed(before), before.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_complete(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 250_000
    assert '"execution_count": null' not in text  # every cell was run
    assert "image/png" in text
    assert not re.search(r'"output_type": "error"|Warning: |"name": "stderr"', text)
    cells = json.loads(text)["cells"]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    # What has to stretch or shrink is drawn wrongly where no font of mathematics is installed.
    assert not re.search(r"\\(left|right|begin|[,!])(?![a-z])", prose)
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (path.parent / target).exists(), target


def images(cell):
    """The figures that a cell shows, as PNG."""
    for output in cell.get("outputs", []):
        if image := output.get("data", {}).get("image/png"):
            yield base64.b64decode(image)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_figure_is_sharp_and_followed_by_what_to_see(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell, following in zip(cells, [*cells[1:], {}], strict=True):
        for image in images(cell):
            assert pixels_per_inch(image) >= 100, cell["source"]
            assert following["cell_type"] == "markdown"
            assert following["source"][0].startswith("**What to see.** "), cell["source"]
