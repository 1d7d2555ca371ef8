"""Every notebook runs, and prints its committed output."""

import json
import re

import pytest
from conftest import ROOT

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
    nbclient.NotebookClient(found, timeout=120, resources=resources).execute()
    for before, after in zip(committed.cells, found.cells, strict=True):
        if before.cell_type == "code":
            assert printed(after) == printed(before), before.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_complete(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert '"execution_count": null' not in text  # every cell was run
    assert "image/png" in text
    assert not re.search(r'"output_type": "error"|Warning: |"name": "stderr"', text)
    cells = json.loads(text)["cells"]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (path.parent / target).exists(), target
