"""The tables of the study of adaptation, from files of cells whose answers are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script

from bert_numpy.adaptation.forward_only import ForwardOnly
from bert_numpy.study import adaptation_tables as tables
from bert_numpy.study.adaptation import AdaptationCell, order_of, parts_of
from bert_numpy.study.adaptation_tables import AdaptationStudy

script = load_script("study_adaptation")

BASE = AdaptationCell("models/tiny", "sst2", "data", "", "none", 0.0, 0, "long")


def logits_of(classes: Any) -> np.ndarray:
    """Make logits whose largest one is that of the given classes: (..., 2)."""
    return np.stack([1.0 - np.array(classes), np.array(classes)], axis=-1)


def write(cell: AdaptationCell, folder: Path, labels: Any, **answers: Any) -> None:
    """Write a cell's file; the answers by way are classes, (texts,) or (passes, texts)."""
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {name: logits_of(np.atleast_2d(x)) for name, x in answers.items()}
    np.savez(cell.file(folder), labels=np.array(labels), **arrays)


def study(recipes: str = "fp32", shifts: str = "none,typos", **changed: Any) -> AdaptationStudy:
    levels, seeds = changed.pop("levels", (1,)), changed.pop("seeds", 2)
    base = replace(BASE, **changed)
    return AdaptationStudy(base, tuple(recipes.split(",")), tuple(shifts.split(",")), levels, seeds)


LABELS = [0, 1, 1, 0]

#: Answers per shift and seed: static, shifting alone, prompts alone, both.
ANSWERS: Mapping[tuple[str, int], tuple[list[int], ...]] = {
    ("none", 0): ([0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]),
    ("none", 1): ([0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]),
    ("typos", 0): ([0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]),
    ("typos", 1): ([0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]),
    ("drops", 0): ([0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]),
    ("drops", 1): ([0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]),
}


def fill(found: AdaptationStudy, folder: Path) -> None:
    for cell in found.cells:
        ways = dict(zip(tables.WAYS, ANSWERS[cell.shift, cell.seed % 2], strict=True))
        write(cell, folder, LABELS, **ways)


def test_the_rows_of_known_answers(tmp_path: Path) -> None:
    found = study(shifts="none,typos,drops")
    fill(found, tmp_path)
    clean, typos, drops, whole = tables.rows_of(found.cells, tmp_path)
    names = [(row["shift"], row["strength"]) for row in (clean, typos, drops, whole)]
    assert names == [("none", 0.0), ("typos", 0.1), ("drops", 0.1), ("all shifts", 0.0)]
    assert (clean["model"], clean["task"], clean["recipe"]) == ("tiny", "sst2", "fp32")
    assert (clean["texts"], clean["cells"], whole["cells"]) == (4, 2, 4)
    assert (clean["static"], typos["static"], drops["static"]) == (0.75, 0.5, 0.75)
    assert whole["static"] == 0.625  # without the clean texts
    assert typos["shifted"]["accuracy"] == 0.875
    assert typos["shifted"]["difference"] == 0.375
    assert typos["shifted"]["seeds"] == [0.25, 0.5]
    assert typos["prompts"]["seeds"] == [0.0, -0.5]
    assert clean["both"]["difference"] == 0.25
    assert whole["both"]["difference"] == pytest.approx((0.5 + 0.25 - 0.25 - 0.5) / 4)
    assert whole["both"]["seeds"] == [0.125, -0.125]
    assert clean["first"] == {
        **{"labels": 0.5, "static": 0.25, "shifted": 0.25},
        **{"prompts": 0.375, "both": 0.5},
    }
    for row in (clean, typos, drops, whole):
        for name in ("shifted", "prompts", "both"):
            low, high = row[name]["interval"]
            assert low <= row[name]["difference"] <= high


def test_the_shares_of_the_first_label(tmp_path: Path) -> None:
    cell = replace(BASE, recipe="fp32")
    write(cell, tmp_path, [0, 1, 0, 0, 0], static=[0, 1, 1, 1, 0], both=[1, 1, 1, 1, 0])
    found = tables.row_of([cell], tmp_path)["first"]
    assert found == {"labels": 0.8, "static": 0.4, "both": 0.2}


def test_an_interval_is_of_95_percent() -> None:
    """Against the quantiles of the binomial distribution: 100 texts, half of them changed."""
    differences = np.repeat([0.0, 1.0], 50)[None]
    low, high = tables.interval(differences)
    assert low == pytest.approx(0.40, abs=0.011)
    assert high == pytest.approx(0.60, abs=0.011)
    assert tables.interval(differences) == [low, high]


def result(difference: float, low: float, high: float, *seeds: float) -> dict[str, Any]:
    return {"difference": difference, "interval": [low, high], "seeds": list(seeds)}


def test_the_cells_of_the_tables() -> None:
    """Bold where zero is outside of the interval."""
    row = {
        **{"recipe": "int8", "shift": "noise", "strength": 0.05, "static": 0.81234},
        "shifted": result(0.02, 0.01, 0.03, 0.025, 0.015),
        "prompts": result(-0.02, -0.03, -0.01, -0.02),
        "both": result(0.01, -0.001, 0.02, -0.01, 0.03, 0.0),
        "first": {"labels": 0.5, "static": 0.7014, "shifted": 0.5, "prompts": 0.6, "both": 0.4},
    }
    named = "| int8 | noise 0.05 |"
    head, _, line = tables.table([row]).splitlines()
    assert head == "| recipe | texts | static | shifting alone | prompts alone | both (FOA) |"
    assert line == (
        f"{named} 81.23 | **+2.00 (+1.00 to +3.00)** | **-2.00 (-3.00 to -1.00)** "
        "| +1.00 (-0.10 to +2.00) |"
    )
    line = tables.seed_table([row]).splitlines()[2]
    assert line == f"{named} +1.50 to +2.50 | -2.00 to -2.00 | -1.00 to +3.00 |"
    assert tables.share_table([row]).splitlines()[2] == f"{named} 70.1 | 50.0 | 60.0 | 40.0 |"
    row |= {"shift": "order", "strength": 1.0, "study": "mine", "both": result(0, 0, 0, 0)}
    assert tables.table([row], "study").splitlines()[2].startswith("| mine | order 1 | 81.23 |")
    assert tables.table([row]).endswith(" | +0.00 (+0.00 to +0.00) |\n")


def test_a_page(tmp_path: Path) -> None:
    """The whole is first; the range over seeds is there if there are several."""
    found = study("int8,fp32")
    fill(found, tmp_path)
    rows = tables.rows_of(found.cells, tmp_path)
    text = tables.page(found, rows)
    assert text.startswith(
        "tiny on sst2, 4 texts in 1 batch, 2 seeds. The statistics of the source come from 256 "
        "training texts of at least 12 words.\n\n| recipe | texts |"
    )
    whole, *rest = text.split("<details>\n")
    assert [line.split(" | ")[:2] for line in whole.splitlines()[4:8]] == [
        *(["| int8", "clean"], ["| int8", "all shifts"]),
        *(["| fp32", "clean"], ["| fp32", "all shifts"]),
    ]
    assert [part.split("\n", 1)[0].strip() for part in rest] == [
        "<summary>Every shift and strength</summary>",
        "<summary>The range of the differences over the seeds</summary>",
        "<summary>Texts that are called negative, in percent (50.0 are)</summary>",
    ]
    assert "all shifts" not in rest[0]
    assert rest[0].count("| typos 0.1 |") == 2
    one = study(seeds=1, source="dev")
    fill(one, tmp_path)
    text = tables.page(one, tables.rows_of(one.cells, tmp_path))
    assert text.startswith(
        "tiny on sst2, 4 texts in 1 batch, 1 seed. The statistics of the source come from"
    )
    assert "from all of these texts before their shift.\n" in text
    assert "over the seeds" not in text


def test_the_passes(tmp_path: Path) -> None:
    """Means over the cells; the fitness of the best candidate, per text."""
    cells = [replace(BASE, recipe="fp32", shift="typos", seed=seed, passes=3) for seed in (0, 1)]
    for number, cell in enumerate(cells):
        static = [[0, 1, 1, 0]] * 3
        both = [[0, 1, 1, 1], [1, 0, 0, 1], [0, 1, number, number]]
        arrays: dict[str, Any] = {"static": logits_of(static), "both": logits_of(both)}
        fitness = np.arange(12.0).reshape(6, 2)[:, ::-1] + number  # two batches a pass
        np.savez(
            cell.file(tmp_path),
            labels=LABELS,
            fitness=fitness,
            static_fitness=np.arange(6.0) * 2,
            **arrays,
        )
    rows = tables.pass_rows(cells, tmp_path)
    assert [row["pass"] for row in rows] == [1, 2, 3]
    assert [row["both"] for row in rows] == [0.75, 0.0, 0.75]
    assert [row["static"] for row in rows] == [1.0, 1.0, 1.0]
    assert rows[1]["static fitness"] == (4 + 6) / 4
    assert rows[1]["best fitness"] == (4 + 6) / 4 + 0.25
    line = tables.pass_table(rows).splitlines()[3]
    assert line == "| 2 | 100.00 | 0.00 | 2.500 | 2.750 |"


def test_the_passes_that_a_table_has(tmp_path: Path) -> None:
    cell = replace(BASE, passes=25)
    np.savez(
        cell.file(tmp_path),
        labels=LABELS,
        static=logits_of([LABELS] * 25),
        fitness=np.zeros((25, 2)),
        static_fitness=np.zeros(25),
    )
    rows = tables.pass_rows([cell], tmp_path)
    assert [row["pass"] for row in rows] == [1, 2, 5, 10, 20, 25]


def test_studies_are_compared_over_their_common_cells(tmp_path: Path) -> None:
    """Of three seeds and levels, those that the other study has; named by their settings."""
    whole = study(shifts="none,typos,drops", levels=(0, 1, 2), seeds=4)
    other = study(source="train", settings=ForwardOnly(sigma=0.1), seeds=1, samples=32)
    third = study(seeds=1, samples=32, passes=2, data="elsewhere", model="copies/tiny")
    for one in (whole, other, third):
        fill(one, tmp_path)
    rows = tables.compared([whole, other, third], tmp_path)
    assert [(row["settings"], row["shift"], row["cells"]) for row in rows[::3]] == [
        ("sigma 1, source long, samples 256, passes 1", "none", 1),
        ("sigma 0.1, source train, samples 32", "none", 1),
        ("samples 32, passes 2", "none", 1),
    ]
    assert [row["shift"] for row in rows] == ["none", "typos", "all shifts"] * 3
    assert rows[1]["both"] == rows[2]["both"]
    assert rows[1]["both"]["difference"] == 0.5  # seed 0 alone
    text = tables.comparison_page([whole, other, third], rows)
    assert text.startswith(
        "tiny on sst2, 4 texts in 1 batch, 1 seed, fp32.\n\n| settings | texts |"
    )
    assert "\n| samples 32, passes 2 | all shifts | 50.00 |" in text


def test_studies_of_several_recipes_are_compared(tmp_path: Path) -> None:
    one, two = study("int8,fp32", seeds=1), study("fp32,int8", seeds=1, samples=8)
    for found in (one, two):
        fill(found, tmp_path)
    rows = tables.compared([one, two], tmp_path)
    assert [row["settings"] for row in rows[::3]] == [
        *("samples 256, int8", "samples 256, fp32", "samples 8, fp32", "samples 8, int8"),
    ]


def test_a_study_from_its_json() -> None:
    found = study("int8,fp32", settings=ForwardOnly(sigma=0.5, population=7), limit=9)
    assert tables.study_from_json(json.loads(json.dumps(asdict(found)))) == found


# Random prompts


def candidates(folder: Path, texts: int = 70) -> tuple[AdaptationCell, np.ndarray]:
    """Write a cell of four candidates in two batches, of 64 and 6 texts."""
    cell = replace(BASE, recipe="e4m3", shift="noise", strength=0.1, seed=3, candidates=4)
    right = np.array([[32, 40, 48, 16], [3, 4, 6, 3]]) / [[64], [6]]
    entropy = np.array([[1.0, 3.0, 2.0, 4.0], [9.0, 5.0, 6.0, 7.0]])
    discrepancy = np.array([[4.0, 0.5, 2.0, 3.0], [1.0, 6.0, 2.0, 3.0]])
    np.savez(cell.file(folder), entropy=entropy, discrepancy=discrepancy, right=right)
    return cell, right


def test_the_candidates_against_the_static_model(tmp_path: Path) -> None:
    """In each batch one prompt is chosen; the differences are means over the texts."""
    cell, right = candidates(tmp_path)
    (row,) = tables.candidate_rows([cell], tmp_path)
    assert "differences" not in row
    assert row["batches"] == 2
    assert row["spread"] == pytest.approx((right[0].std() + right[1].std()) / 2)
    order = order_of(70, 3)
    assert [len(part) for part in parts_of(order)] == [64, 6]
    static = np.zeros(70, int)
    static[order[:30]] = static[order[64:66]] = 1  # 30 and 2 are right
    write(replace(cell, candidates=0), tmp_path, np.ones(70, int), static=static)
    (row,) = tables.candidate_rows([cell], tmp_path)
    expected = {
        "random": (32 + 40 + 48 + 16) / 4 - 30 + (3 + 4 + 6 + 3) / 4 - 2,
        "entropy": 32 - 30 + 4 - 2,
        "discrepancy": 40 - 30 + 3 - 2,
        "fitness": 40 - 30 + 6 - 2,
    }
    for name, texts in expected.items():
        found = row["differences"][name]
        assert found["difference"] == pytest.approx(texts / 70)
        assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    # Two texts more in both batches: whichever batches are drawn, the mean is the same.
    assert row["differences"]["entropy"]["interval"] == pytest.approx([4 / 70, 4 / 70])
    each = [
        np.corrcoef(x, y)[0, 1] for x, y in zip([[1, 3, 2, 4], [9, 5, 6, 7]], right, strict=True)
    ]
    assert row["entropy"]["correlation"] == pytest.approx(np.mean(each))


def test_the_page_of_candidates(tmp_path: Path) -> None:
    cell, _ = candidates(tmp_path)
    found = AdaptationStudy(cell, ("e4m3",), ("noise",), (1,), 4)
    text = tables.candidate_page(found, tables.candidate_rows([cell], tmp_path))
    head, _, first, _, line = text.splitlines()
    assert head == "tiny on sst2, 4 prompts on each of 2 batches."
    assert first.startswith("| recipe | texts | spread of the accuracy | entropy |")
    assert line.startswith("| e4m3 | noise 0.1 | ")
    write(replace(cell, candidates=0), tmp_path, np.ones(70, int), static=np.ones(70, int))
    text = tables.candidate_page(found, tables.candidate_rows([cell], tmp_path))
    assert "minus that of the static model, in points:\n\n| recipe | texts | at random |" in text
    # All texts are right without prompts, 32 of 70 fewer with them: that is certain, so bold.
    assert "| e4m3 | noise 0.1 | **-45.71 (" in text


def test_rows_that_are_constant_have_no_correlation(tmp_path: Path) -> None:
    cell, right = candidates(tmp_path)
    with np.load(cell.file(tmp_path)) as arrays:
        kept = dict(arrays)
    np.savez(cell.file(tmp_path), **kept | {"right": right * [[0.0], [1.0]]})
    (row,) = tables.candidate_rows([cell], tmp_path)
    assert row["entropy"]["correlation"] == pytest.approx(np.corrcoef([9, 5, 6, 7], right[1])[0, 1])


# The figure and the script


def test_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracies by strength, from the clean texts on; a panel per shift."""
    pytest.importorskip("matplotlib")
    found, drawn = study(shifts="none,typos", levels=(0, 2)), []
    fill(found, tmp_path)
    rows = tables.rows_of(found.cells, tmp_path)
    tables.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(tables, "save_figure", lambda figure, path: drawn.append(figure))
    tables.draw(rows, tmp_path / "figure.png")
    (panel,) = drawn[0].axes
    assert panel.get_title() == "typos"
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert list(lines) == ["fp32, static", "fp32, shifting alone", "fp32, both (FOA)"]
    expected = ([75, 50, 50], [75, 87.5, 87.5], [100, 87.5, 87.5])
    for line, values in zip(lines.values(), expected, strict=True):
        assert list(line.get_xdata()) == [0.0, 0.05, 0.2]
        assert list(line.get_ydata()) == pytest.approx(values)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["study_adaptation.py", *map(str, arguments)])
    script.main()


def test_the_script_on_finished_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It computes nothing, and its files have the tables; two of them are compared."""
    (tmp_path / "cells").mkdir()
    for one in (study(), study(source="dev", seeds=1)):
        fill(one, tmp_path / "cells")
    given = ["models/tiny", "--task", "sst2", "--data", "data", "--out", tmp_path]
    given += ["--recipes", "fp32", "--shifts", "none,typos", "--level", 1]
    run(monkeypatch, *given, "--source", "long", "--seeds", 2, "--name", "one")
    assert capsys.readouterr().out.startswith("4 cells, 0 of them to run\ntiny on sst2, 4 texts")
    run(monkeypatch, *given, "--source", "dev", "--seeds", 1, "--name", "two")
    report = json.loads((tmp_path / "one.json").read_text())
    assert tables.study_from_json(report["study"]) == study()
    rows = tables.rows_of(study().cells, tmp_path / "cells")
    assert report["rows"] == json.loads(json.dumps(rows))
    assert (tmp_path / "one.md").read_text() == tables.page(study(), rows)
    run(monkeypatch, "--compare", "one", "two", "--out", tmp_path, "--name", "both")
    text = (tmp_path / "both.md").read_text()
    assert "| source long | clean |" in text
    assert "| source dev | clean |" in text
    assert len(json.loads((tmp_path / "both.json").read_text())["rows"]) == 6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--compare", "one"], "--compare needs --name"),
        (["tiny", "--task", "sst2"], "MODEL, --task and --data are needed"),
        (
            ["tiny", "--task", "sst2", "--data", "x", "--figure", "x.png", "--candidates", "2"],
            "--figure needs shifts",
        ),
    ],
)
def test_what_the_script_refuses(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments, "--out", tmp_path)
    assert expected in capsys.readouterr().err
