"""The study's scripts: sites by kind, rankings, rescued recipes, outlier channels, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import load_script

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, SiteRecipe
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.calibration import Calibration
from bert_numpy.quantization.observers import observe
from bert_numpy.study import cluster
from bert_numpy.study.cells import Subject, calibrate_subject, run_cell, subject_in
from bert_numpy.study.channels import INPUTS, outlier_channels, recurring_channels
from bert_numpy.study.figures import draw_differences, draw_headline, draw_outliers
from bert_numpy.study.sites import by_place, fewest, grouped, only, place_in_layer, ranked
from bert_numpy.study.tables import (
    accuracy_tables,
    block_tables,
    headline,
    outlier_sites,
    outlier_summary,
    rescue_table,
    rule_tables,
    sensitivity_tables,
    summary,
)

reproduce = load_script("reproduce_paper")
sensitivity = load_script("study_sensitivity")
rescue = load_script("study_rescue")
measure = load_script("measure_outliers")

REVIEWS = Path(bert_numpy.__file__).parent / "assets" / "reviews"
EXAMPLES = 16
SITES = encoder_sites(bert_numpy.load("bert-tiny-sst2").config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    found = subject_in(folder, "bert-tiny-sst2", "sst2", str(REVIEWS), limit=EXAMPLES)
    calibrate_subject(found, samples=20)
    return found


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client that runs cells in this process, in turn; it has ``ran`` how many."""
    ran: list[Path] = []

    def run_cells(cells: list[Any], client: Any) -> None:
        ran.extend(cell.file for cell in cells if not cell.file.exists())
        for cell in cells:
            run_cell(cell)

    monkeypatch.setattr(cluster, "run_cells", run_cells)
    monkeypatch.setattr(reproduce, "run_cells", run_cells)
    return SimpleNamespace(
        map=lambda f, items, pure: [f(item) for item in items],
        gather=lambda results: results,
        ran=ran,
    )


# Sites by their place


def test_every_site_has_a_place_and_a_group() -> None:
    places, groups = by_place(SITES), grouped(SITES)
    for found in (places, groups):
        assert sorted(site for sites in found.values() for site in sites) == sorted(SITES)
    assert {len(sites) for sites in places.values()} == {2}  # layers
    assert len(groups) == len(places) - 2
    assert len(groups["query, key and value"]) == 6
    assert places["output.dense"] == [f"encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert set(INPUTS) <= set(places)
    for name in ("pooler.dense", "classifier", "encoder.layer.x.output.dense"):
        with pytest.raises(BertNumpyError, match="expected one of an encoder's layer"):
            place_in_layer(name)


def test_a_recipe_at_some_sites_only() -> None:
    base = PRESETS["int8-smooth"]
    recipe = only(base, SITES[:3])
    for site in SITES:
        assert recipe.site(site) == (base.site(site) if site in SITES[:3] else SiteRecipe())
    assert only(base, SITES).site(SITES[5]) == base.site(SITES[5])


@pytest.mark.parametrize("most", [0, 1, 2, 7, 16, 96])
def test_fewest(most: int) -> None:
    """Against a search of all numbers, with far fewer questions."""
    for least in (*range(most + 1), None):
        asked: list[int] = []

        def enough(n: int, least: int | None = least, asked: list[int] = asked) -> bool:
            asked.append(n)
            return least is not None and n >= least

        assert fewest(enough, most) == least
        assert len(asked) <= 2 * math.log2(most + 1) + 3
        assert len(asked) == len(set(asked))
        assert all(0 <= n <= most for n in asked)


def test_ranked() -> None:
    names = ["encoder.layer.3.output.dense", "encoder.layer.0.attention.output.dense"]
    names += ["encoder.layer.1.output.dense"]
    report = {"sites": [{"site": name} for name in names]}
    assert ranked(report, ["output.dense"]) == [names[0], names[2]]
    assert ranked(report, ["attention.output.dense", "output.dense"]) == names
    with pytest.raises(BertNumpyError, match=r"expected sites of .intermediate\.dense., found out"):
        ranked(report, ["intermediate.dense"])
    with pytest.raises(BertNumpyError, match="found none"):
        ranked({}, ["output.dense"])


# The scripts


def test_sensitivity(subject: Subject, folder: Path, serial: Any) -> None:
    base = PRESETS["int8"]
    runs = ["groups", "alone", "steps"]
    report = sensitivity.study(subject, base, folder, serial, runs=runs, budget=0)
    assert report["examples"] == EXAMPLES
    assert {row["site"] for row in report["sites"]} == set(SITES)
    errors = [row["alone"]["relative_logit_error"] for row in report["sites"]]
    assert errors == sorted(errors, reverse=True)
    by_group = {row["group"]: row for row in report["groups"]}
    assert {row["sites"] for row in report["groups"]} == {2, 6}
    assert set(by_group) == set(grouped(SITES))
    # Fewest sites: it is enough, one less is not; each step is a prefix of the ranking.
    ranking = [row["site"] for row in report["sites"]]
    flips = {len(step["kept"]): step["flips"] for step in report["steps"]}
    assert all(step["kept"] == ranking[: len(step["kept"])] for step in report["steps"])
    assert flips[0] == report["all"]["flips"]
    if report["suggestion"] is None:
        assert flips[len(SITES)] > 0
    else:
        count = len(report["suggestion"])
        assert flips[count] == 0
        assert count == 0 or flips[count - 1] > 0
    text = sensitivity_tables(report)
    assert text.count("\n| encoder.layer.") == len(SITES)
    assert sensitivity_tables(report, 3).count("\n| encoder.layer.") == 3
    # Again: nothing is run.
    ran = len(serial.ran)
    assert sensitivity.study(subject, base, folder, serial, runs=runs, budget=0) == report
    assert len(serial.ran) == ran


def test_parts_of_sensitivity(subject: Subject, serial: Any, tmp_path: Path) -> None:
    """Only what is asked for is run: FP32, all, and 2 sites alone; then groups, and all but 2."""
    base = PRESETS["int8"]
    report = sensitivity.study(
        subject, base, tmp_path, serial, runs=["alone"], places=["output.dense"]
    )
    assert len(serial.ran) == 2 + 2
    assert report["groups"] == report["steps"] == []
    assert report["suggestion"] is None
    assert all(row.keys() == {"site", "sites", "alone"} for row in report["sites"])
    assert "all but it" not in sensitivity_tables(report)
    report = sensitivity.study(
        subject, base, tmp_path, serial, runs=["groups", "without"], places=["output.dense"]
    )
    assert len(serial.ran) == 4 + 2 * 6 + 2
    assert all(row.keys() == {"site", "sites", "without"} for row in report["sites"])
    assert sensitivity_tables(report).count("\n| site | all but it: flips | error |\n") == 1
    for options, message in (
        ({"runs": ["groups", "all"]}, "--runs: expected some of groups, .*found 'all'"),
        ({"runs": ["steps"]}, "expected alone with it"),
        ({"places": ["output"]}, "--places: expected some of attention.self.query, .*'output'"),
    ):
        with pytest.raises(BertNumpyError, match=message):
            sensitivity.study(subject, base, tmp_path, serial, **options)


def test_rescue(subject: Subject, folder: Path, serial: Any) -> None:
    recipes = [PRESETS["int8"], PRESETS["int8-channel"]]
    rows = rescue.study(subject, recipes, SITES, [0, 2, len(SITES)], folder, serial)
    assert [(row["recipe"], row["kept"]) for row in rows] == [
        (recipe.name, kept) for recipe in recipes for kept in (0, 2, len(SITES))
    ]
    errors = [row["relative_logit_error"] for row in rows]
    # With all sites kept, both recipes are bfloat16 and nothing else.
    assert errors[2] == errors[5] < 0.02 < min(errors[0], errors[3])
    assert rows[1]["sites"] == SITES[:2]
    lines = rescue_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert f"| {100 * rows[1]['accuracy']:.2f} |" in lines[3]
    with pytest.raises(BertNumpyError, match=rf"expected 0\.\.{len(SITES)} sites, found 99"):
        rescue.study(subject, recipes, SITES, [99], folder, serial)


def test_each_task_has_its_recipes(subject: Subject, folder: Path, serial: Any) -> None:
    lists = ["int8,fp32,e4m3", "squad=int8"]
    found = reproduce.recipes_by_task(lists, ["sst2", "squad"])
    assert {task: [recipe.name for recipe in recipes] for task, recipes in found.items()} == {
        "sst2": ["fp32", "int8", "e4m3"],
        "squad": ["fp32", "int8"],
    }
    every = reproduce.recipes_by_task([], ["sst2"])
    expected = [name for name, recipe in PRESETS.items() if not recipe.by_gptq]
    assert [recipe.name for recipe in every["sst2"]] == expected
    with pytest.raises(BertNumpyError, match="--recipes cola=int8: expected one of sst2"):
        reproduce.recipes_by_task(["cola=int8"], ["sst2"])
    with pytest.raises(BertNumpyError, match="found 'int9'"):
        reproduce.recipes_by_task(["int9"], ["sst2"])
    rows = reproduce.run_study([subject], found, folder, serial, 512)
    assert [row["recipe"] for row in rows] == ["fp32", "int8", "e4m3"]
    assert (
        reproduce.markdown(rows).count("| e4m3 |") == 4
    )  # the summary's three tables, and the model's


# Outlier channels


def calibration_of(columns: dict[str, list[float]]) -> Calibration:
    """Statistics of inputs whose channels have these largest magnitudes."""
    operands, channels = {}, {}
    for site, largest in columns.items():
        x = np.float32([largest, -0.5 * np.float32(largest)])
        operands[f"{site}:a"] = observe(site, None, x)
        channels[site] = np.float32(largest)
    return Calibration(operands, channels, 2)


def test_outlier_channels() -> None:
    usual = [0.5, 1.0, 1.0, 1.0, 1.5]
    calibration = calibration_of(
        {
            "encoder.layer.10.output.dense": [*usual, 20, 7, 6, 1, 1],
            "encoder.layer.2.output.dense": [*usual, 1, 7, 1, 1, 1],
            "encoder.layer.2.attention.self.query": [0, 0, 3],
            "encoder.layer.2.attention.self.key": usual,  # its input is query's
            "pooler.dense": [1, 1, 99],  # in no layer
        }
    )
    rows = outlier_channels(calibration, top=2)
    places = [(row["layer"], row["place"]) for row in rows]
    assert places == [(2, "attention.self.query"), (2, "output.dense"), (10, "output.dense")]
    query, second, tenth = rows
    assert tenth["top"] == [
        {"channel": 5, "absmax": 20, "ratio": 20},
        {"channel": 6, "absmax": 7, "ratio": 7},
    ]
    assert tenth["outliers"] == [5, 6]  # 6 is not above 6
    assert (tenth["median"], tenth["channels"], tenth["above_threshold"]) == (1, 10, 2)
    assert tenth["per_token"] == 1.5  # 20, 7 and 10 (of the second token), of two tokens
    assert query["top"][0]["ratio"] is None
    assert query["outliers"] == [2]
    assert tenth["int8"] < second["int8"]  # larger outliers
    assert recurring_channels(rows, "output.dense") == {6: 2}
    assert recurring_channels(rows, "attention.self.query") == {}  # one layer shows nothing
    report = {"model": "m", "inputs": json.loads(json.dumps(rows))}
    text = outlier_summary([report])
    assert "| m | GELU | 20.0 | 20 | 5 | 10 |" in text
    assert "| m | GELU | 10 | 1 to 2 | 1 to 2 | 0.50 to 1.50 | 6 (2) |" in text
    assert "| 3.0 | none | 2 | 2 |" in text
    sites = outlier_sites(report)
    assert "\n| 10 | 5 | 20.00 | 20.0 | 6 | 7.00 | 7.0 |\n" in sites
    assert sites.count("\n| 2 |") == 2 * 2
    incomplete = Calibration({}, calibration.channels, 2)
    with pytest.raises(BertNumpyError, match=r"operand '.*:a': expected statistics, found none"):
        outlier_channels(incomplete)


def test_measured_of_a_file(subject: Subject, tmp_path: Path) -> None:
    """Every input of the encoder has a row, whose largest channel is the operand's absmax."""
    path = Path(subject.calibration)
    report = measure.measure(path)
    assert report["model"] == "bert-tiny-sst2"
    assert [(row["layer"], row["place"]) for row in report["inputs"]] == [
        (layer, place) for layer in (0, 1) for place in INPUTS
    ]
    calibration = bert_numpy.load_calibration(path)
    for row in report["inputs"]:
        operand = calibration.operands[f"encoder.layer.{row['layer']}.{row['place']}:a"]
        assert row["top"][0]["absmax"] == operand.absmax
    with pytest.raises(BertNumpyError, match="no such file"):
        measure.measure(tmp_path / "none.safetensors")


# Tables and figures


def row_of(recipe: str, accuracy: float, low: float, high: float, **others: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "task": "sst2",
        "recipe": recipe,
        "examples": 1043,
        "accuracy": accuracy,
        "not_finite": 0,
        "flips": 3,
        "relative_logit_error": 0.25,
        "difference": accuracy - 0.9,
        "interval": [low, high],
        **others,
    }


ROWS = [
    row_of("fp32", 0.9, 0, 0, flips=0, relative_logit_error=0.0),
    row_of("int8", 0.6, -0.4, -0.2),
    row_of("e4m3", 0.89, -0.02, 0.01),
    row_of("fp32", 0.5, 0, 0, model="n", task="squad"),
    row_of("int8", 0.4, -0.2, -0.1, model="n", task="squad"),
    row_of("bf16", 0.9, 0, 0),
]


def test_headline() -> None:
    lines = headline(ROWS).splitlines()
    assert [line for line in lines if line.startswith("| m |")] == [
        "| m | accuracy | 90.00 | **60.00** |  |  | 89.00 |  |",
        "| m | 1,043 | 3 |  |  | 3 |  |",
        "| m | sst2 | 0.250 |  |  | 0.250 |  |",
    ]
    assert "| n | accuracy | 50.00 | **40.00** |  |  |  |  |" in lines
    lines = summary(ROWS).splitlines()
    assert [line for line in lines if line.startswith("| e4m3 |")] == [
        "| e4m3 | -1.00 |  |",
        "| e4m3 | 3 |  |",
        "| e4m3 | 0.250 |  |",
    ]
    assert "| int8 | **-30.00** | **-50.00** |" in lines
    assert "\n| bf16 | 90.00 | +0.00 | +0.00 to +0.00 | 3 | 0.2500 |\n" in accuracy_tables(ROWS)
    assert "\n<summary>n, squad, 1043 examples</summary>\n\n|" in accuracy_tables(ROWS)


def test_block_formats_by_family_of_models() -> None:
    rows = [
        row_of(recipe, 0.9, 0, 0, model=model)
        for model in ("tiny-sst2", "big-cola", "big-sst2")
        for recipe in ("fp32", "mxfp4", "nvfp4", "mxfp4-rceil", "mxfp4-even")
        if (model, recipe) != ("big-cola", "mxfp4-even")
    ]
    text = block_tables(rows)
    tiny, big = text.split("**big.** ")
    assert tiny.startswith("**tiny.** Difference of the first metric")
    assert "| recipe | tiny-sst2 |\n" in tiny
    assert "| recipe | big-cola | big-sst2 |\n" in big
    assert text.count("\n| mxfp4 |") == text.count("\n| nvfp4 |") == 6
    assert "rceil" not in text
    text = rule_tables(rows)
    assert "big-cola" not in text, "it has not all of the rules"
    assert text.count("\n| mxfp4-even |") == text.count("\n| mxfp4-rceil |") == 6
    assert "nvfp4" not in text
    assert block_tables([]) == rule_tables([]) == ""


def test_what_is_not_finite() -> None:
    """JSON has null for it."""
    lost = row_of("int8", 0.5, 0, 0, relative_logit_error=None, difference=None)
    rows = [ROWS[0], {**lost, "accuracy": None, "interval": [None, None], "not_finite": 1043}]
    assert "| m | sst2 | none |" in headline(rows)
    assert summary(rows).count("\n| int8 | none |\n") == 2
    expected = "| int8 (1043 not finite) | none | none | none to none | 3 | none |"
    assert expected in accuracy_tables(rows)


def test_a_later_row_replaces_an_earlier_one() -> None:
    rows = [*ROWS, row_of("int8", 0.7, -0.3, -0.1)]
    assert "**70.00**" in headline(rows)
    assert "60.00" not in headline(rows)


@pytest.mark.parametrize("draw", [draw_headline, draw_differences])
def test_figures(draw: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    draw(ROWS, tmp_path / "a.png")
    draw(ROWS, tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b.png").read_bytes()
    draw([*ROWS[:1], row_of("int8", 0.7, -0.3, -0.1)], tmp_path / "b.png")
    assert content != (tmp_path / "b.png").read_bytes()


def test_figure_of_outliers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    calibration = calibration_of(
        {"encoder.layer.0.output.dense": [1, 1, 9], "encoder.layer.1.output.dense": [0, 0, 2]}
    )
    reports = [{"model": "m", "inputs": outlier_channels(calibration)}] * 2
    draw_outliers(reports, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
