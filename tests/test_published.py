"""README, docs and notebook 4 show the results at base size from docs/data."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, load_script
from test_study_scripts import ROWS, row_of

from bert_numpy import BertNumpyError

publish = load_script("publish_results")

EMPTY: dict[str, list[Any]] = {part: [] for part in publish.PARTS}
BLOCK = "<!-- base size, {0}: begin -->\n<!-- base size, {0}: end -->\n"


@pytest.mark.parametrize("name", publish.PAGES)
def test_pages_are_what_the_data_gives(name: str) -> None:
    data = publish.read_data(ROOT / publish.DATA)
    assert publish.page(Path(name), data) == (ROOT / name).read_text(encoding="utf-8"), (
        "python scripts/publish_results.py"
    )


def test_the_readme_sums_the_data_up() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.search(r"loses (\d+) points on CoLA and (\d+) on SQuAD", readme)
    assert quoted is not None
    rows = publish.read_data(ROOT / publish.DATA)["accuracy"]
    found = {(row["task"], row["recipe"]): row for row in rows}
    assert [round(-100 * found[task, "int8"]["difference"]) for task in ("cola", "squad")] == [
        int(points) for points in quoted.groups()
    ]
    for task in ("sst2", "cola", "mrpc", "squad"):  # E4M3 "keeps FP32's accuracy"
        low, high = found[task, "e4m3"]["interval"]
        assert low <= 0 <= high


def test_the_demo_quotes_the_data() -> None:
    """What the package carries is what docs/data has, and the script writes it."""
    data = publish.read_data(ROOT / publish.DATA)
    text = (ROOT / publish.EXCERPT).read_text(encoding="utf-8")
    assert publish.excerpt_text(data) == text, "python scripts/publish_results.py"
    published = {(row["model"], row["recipe"]): row for row in data["accuracy"]}
    for row in json.loads(text):
        found = published[row["model"], row["recipe"]]
        assert row["value"] == found[row["metric"]]
        for name in ("task", "examples", "flips"):
            assert row[name] == found[name]


def test_a_model_without_all_results_is_not_quoted() -> None:
    quoted = json.loads(publish.excerpt_text({**EMPTY, "accuracy": ROWS}))
    assert {row["recipe"] for row in quoted} == set(publish.QUOTED)
    rows = [row for row in ROWS if row["recipe"] != "e4m3"]
    assert json.loads(publish.excerpt_text({**EMPTY, "accuracy": rows})) == []
    scores = [{key: x for key, x in row.items() if key != "flips"} for row in ROWS]
    assert json.loads(publish.excerpt_text({**EMPTY, "accuracy": scores})) == []


def test_figures_are_there_where_there_are_results() -> None:
    data = publish.read_data(ROOT / publish.DATA)
    for name, (part, _, _) in publish.FIGURES.items():
        assert (ROOT / "docs" / "figures" / name).exists() == bool(data[part]), name


def test_every_block_is_on_a_page() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in publish.PAGES)
    for name in (*publish.FIGURES, *publish.TABLES):
        assert f"<!-- base size, {name}: begin -->" in text, name


def test_a_block() -> None:
    text = f"before\n{BLOCK.format('headline')}after\n{BLOCK.format('accuracy-base.png')}"
    assert publish.filled(text, EMPTY, Path()) == text
    data = {**EMPTY, "accuracy": ROWS}
    found = publish.filled(text, data, Path("docs"))
    assert found.startswith("before\n<!-- base size, headline: begin -->\n\nMetric in percent")
    assert "| **60.00** |" in found
    assert "](figures/accuracy-base.png)" in found
    assert "](../docs/figures/accuracy-base.png)" in publish.filled(text, data, Path("notebooks"))
    assert publish.filled(found, data, Path("docs")) == found
    other = {**EMPTY, "accuracy": [*ROWS, row_of("int8", 0.61, -0.4, -0.2)]}
    assert publish.filled(found, other, Path("docs")) != found
    assert publish.filled(found, EMPTY, Path("docs")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BLOCK.format("other"), "expected one of accuracy-base.png, .*found 'other'"),
        (BLOCK.format("headline").replace("headline: end", "summary: end"), "an end of the same"),
        ("<!-- base size, headline: begin -->\n", "an end of the same name"),
    ],
)
def test_a_block_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(BertNumpyError, match=message):
        publish.filled(text, EMPTY, Path())


def test_a_file_per_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files are put together; what is not given stays; --check finds a changed digit."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "PAGES", ("README.md", "notebooks/n.ipynb"))
    for folder in ("docs/data", "docs/figures", "notebooks", "bert_numpy/assets"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / publish.EXCERPT).write_text(publish.excerpt_text(EMPTY))
    (tmp_path / "README.md").write_text(f"# T\n\n{BLOCK.format('headline')}")
    cell = {"cell_type": "markdown", "source": BLOCK.format("summary").splitlines(keepends=True)}
    shown = {
        "cell_type": "code",
        "source": ['Image("../docs/figures/accuracy-base.png", width=650)'],
        "outputs": [{"data": {"image/png": "stale"}}],
    }
    cells = json.dumps({"cells": [cell, shown]}, indent=1)
    (tmp_path / "notebooks" / "n.ipynb").write_text(cells + "\n")
    (tmp_path / publish.DATA).write_text(publish.data_text(EMPTY))
    for name, rows in (("a.json", ROWS[:3]), ("b.json", ROWS[3:])):
        (tmp_path / name).write_text(json.dumps(rows))

    def run(*arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", ["publish_results.py", *map(str, arguments)])
        publish.main()

    run("--accuracy", tmp_path / "a.json", tmp_path / "b.json")
    assert publish.read_data(tmp_path / publish.DATA) == {**EMPTY, "accuracy": ROWS}
    assert "**60.00**" in (tmp_path / "README.md").read_text()
    assert (tmp_path / publish.EXCERPT).read_text() == publish.excerpt_text(
        {**EMPTY, "accuracy": ROWS}
    )
    notebook = json.loads((tmp_path / "notebooks" / "n.ipynb").read_text())
    assert "| bf16 | +0.00" in "".join(notebook["cells"][0]["source"])
    figure = (tmp_path / "docs" / "figures" / "accuracy-base.png").read_bytes()
    image = notebook["cells"][1]["outputs"][0]["data"]["image/png"]
    assert base64.b64decode(image) == figure
    assert not (tmp_path / "docs" / "figures" / "outlier-channels-base.png").exists()
    before = (tmp_path / publish.DATA).read_text()
    run()
    assert (tmp_path / publish.DATA).read_text() == before
    with pytest.raises(SystemExit) as done:
        run("--check")
    assert done.value.code == 0
    readme = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme.replace("60.00", "61.00"))
    with pytest.raises(SystemExit) as done:
        run("--check")
    assert done.value.code == 1
    assert (tmp_path / "README.md").read_text() != readme
