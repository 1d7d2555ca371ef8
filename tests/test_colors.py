"""A format has one colour, from one table; figures are large enough to be read."""

import ast
import json
import re
import struct
import sys
from subprocess import check_output

import pytest
from conftest import ROOT

from bert_numpy import PRESETS
from bert_numpy.colors import COLORS, OTHER, color_of
from npfp8.blocks import BLOCK_FORMATS
from npfp8.formats import FORMATS

TABLE = ROOT / "bert_numpy" / "colors.py"
FIGURES = sorted((ROOT / "docs" / "figures").glob("*.png"))


def sources():
    """Yield the Python source of every module, script and notebook, by its place."""
    for folder in ("npfp8", "bert_numpy", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != TABLE:
                place = path.relative_to(ROOT).as_posix()
                yield pytest.param(place, path.read_text(encoding="utf-8"), id=place)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield pytest.param(path.name, "\n".join(code), id=path.stem)


#: Arguments of matplotlib that are colours, and the colours that no format has.
ARGUMENTS = {"color", "c", "colors", "facecolor", "edgecolor", "markerfacecolor"}
NEUTRAL = {"black", "white", "silver", "lightgray", "none", OTHER}


def named_colors(code):
    """Yield the colours that the code names: in calls, and as hexadecimal numbers anywhere."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            yield from (
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant)
                and isinstance(part.value, str)
                and part.value not in COLORS  # a key of the table
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.findall(r"#[0-9A-Fa-f]{6}\b|\btab:\w+", node.value)
            yield from (one for one in found if one.upper() in COLORS.values() or ":" in one)


def test_a_colour_for_every_format_and_recipe():
    assert len({*COLORS.values(), OTHER}) == len(COLORS) + 1
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in (*COLORS.values(), OTHER))
    for name in (*FORMATS, *BLOCK_FORMATS, *PRESETS):
        assert color_of(name) in COLORS.values(), name
    for name, recipe in PRESETS.items():
        if name != "mixed" and recipe.linear.b.fmt is not None:
            assert color_of(name) == color_of(recipe.linear.b.fmt), name
    assert color_of("int8-token") == color_of("INT8") == color_of("UINT8") == COLORS["INT8"]
    assert color_of(FORMATS["E4M3FN"]) == color_of("quantization to E4M3") == COLORS["E4M3"]
    assert color_of("E4M3FNUZ") == color_of("mixed") == COLORS["FP8"]
    assert color_of("FIXED8") == color_of("MXINT8") == color_of("MXFP8_E5M2") == COLORS["MX"]
    assert color_of("a recipe of one's own") == color_of("float16") == OTHER


@pytest.mark.parametrize(("place", "code"), sources())
def test_no_other_place_names_a_colour_of_a_format(place, code):
    assert set(named_colors(code)) <= NEUTRAL, (
        f"{place}: bert_numpy.colors has the formats' colours"
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('axis.plot(x, color="red")', {"red"}),
        ('axis.plot(x, color=COLORS["E4M3"])', set()),
        ('axis.plot(x, c="C0" if bad else "black")', {"C0", "black"}),
        ('_INT = "tab:red"', {"tab:red"}),
        ('STYLE = "stroke: #d55e00; fill: #eeeeee"', {"#d55e00"}),
    ],
)
def test_a_colour_that_is_named(code, expected):
    assert set(named_colors(code)) == expected


def test_the_table_needs_no_other_package():
    code = "import sys, bert_numpy.colors; print('matplotlib' in sys.modules)"
    assert check_output([sys.executable, "-c", code], text=True) == "False\n"


def pixels_per_inch(png):
    """The density that a PNG file records."""
    place = png.index(b"pHYs") + 4
    per_metre, other, unit = struct.unpack(">IIB", png[place : place + 9])
    assert (per_metre, unit) == (other, 1)
    return round(per_metre * 0.0254)


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_is_sharp_and_as_wide_as_a_page(path):
    png = path.read_bytes()
    assert pixels_per_inch(png) >= 100
    (width,) = struct.unpack(">I", png[16:20])
    assert width / pixels_per_inch(png) < 7  # inches: text of 8 points stays readable on a phone
    assert width >= 800
