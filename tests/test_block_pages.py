"""The tables of docs/block-formats.md say what the records and the rules do."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import ROOT

import npfp8
from npfp8 import BLOCK_FORMATS, POWER_RULES, RATIO_RULES, BlockFormat
from npfp8.formats import IntFormat

PAGE = (ROOT / "docs" / "block-formats.md").read_text(encoding="utf-8")


def table(head: str) -> list[dict[str, str]]:
    """Read the rows of the table whose header begins so, by the names of the columns."""
    lines = PAGE[PAGE.index(f"\n| {head}") :].strip().split("\n\n")[0].splitlines()
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(names, (cell.strip("`") for cell in row), strict=True)) for row in rows]


def test_formats() -> None:
    rows = table("format | element")
    assert [row["format"] for row in rows] == list(BLOCK_FORMATS)
    for row in rows:
        fmt = BLOCK_FORMATS[row["format"]]
        element, scale = fmt.element, fmt.scale_format
        bits = 8 if isinstance(element, IntFormat) else element.bits
        # A scale is a byte, whatever the format's width.
        assert row == {
            "format": fmt.name,
            "element": str(element),
            "block": str(fmt.block),
            "block scale": str(scale),
            "tensor scale": "float32" if fmt.tensor_scale else "none",
            "default rule": fmt.rule,
            "bits per element": f"{bits + 8 / fmt.block:g}",
            "largest element": f"{element.max:,.9g}",
        }


def scale_of(largest: np.float32, fmt: BlockFormat, rule: str) -> int:
    codes = npfp8.quantize([largest, 0], fmt, rule=rule).scale_codes
    assert codes is not None
    return int(codes[0])


def doubling(fmt: BlockFormat, rule: str) -> str:
    """Find where the scale doubles between 1 and 2, as the page writes it, by bisection."""
    step = 2.0**-23
    start = scale_of(np.float32(1), fmt, rule)
    below, above = 0, 2**23 - 1  # in steps from 1 on
    if scale_of(np.float32(1 + above * step), fmt, rule) == start:
        return "never"
    while above - below > 1:
        middle = (below + above) // 2
        if scale_of(np.float32(1 + middle * step), fmt, rule) == start:
            below = middle
        else:
            above = middle
    assert scale_of(np.float32(1 + above * step), fmt, rule) == start + 1
    # The boundary has few bits: it is the last number below, or the first one above.
    if below % 2**14 == 0:
        return f"> {1 + below * step:.9g}"
    return f"≥ {1 + above * step:.9g}"


@pytest.mark.parametrize("row", table("rule | exponent e"), ids=lambda row: row["rule"])
def test_where_a_scale_doubles(row: dict[str, str]) -> None:
    powers = [fmt for fmt in BLOCK_FORMATS.values() if fmt.powers_of_two]
    assert list(row)[2:] == [fmt.name for fmt in powers]
    for fmt in powers:
        assert row[fmt.name] == doubling(fmt, row["rule"]), fmt
        # One less below in the one case that the page says.
        difference = scale_of(np.float32(1), fmt, row["rule"]) - scale_of(
            np.float32(1), fmt, "floor"
        )
        assert difference == (-1 if "one less" in row["exponent e"] else 0)


def test_every_rule_is_on_the_page() -> None:
    plain = [row["rule"] for row in table("rule | exponent e")]
    parties = [row["rule"] for row in table("rule | scale")]
    assert plain + parties == list(POWER_RULES)
    assert [row["rule"] for row in table("rule | number stored")] == list(RATIO_RULES)


def formats_of(row: dict[str, str]) -> list[BlockFormat]:
    powers = [fmt for fmt in BLOCK_FORMATS.values() if fmt.powers_of_two]
    _, everything, rest = row["formats"].rpartition("all")
    if not everything:
        return [BLOCK_FORMATS[name] for name in rest.split(", ")]
    left_out = rest.removeprefix(" except ")
    return [fmt for fmt in powers if fmt.name != left_out]


PARTIES = pytest.mark.parametrize("row", table("rule | scale"), ids=lambda row: row["rule"])


@PARTIES
def test_formats_of_parties(row: dict[str, str]) -> None:
    powers = [fmt for fmt in BLOCK_FORMATS.values() if fmt.powers_of_two]
    known = POWER_RULES[row["rule"]].elements
    assert formats_of(row) == [fmt for fmt in powers if fmt.element in known]


@PARTIES
def test_scales_of_parties(row: dict[str, str]) -> None:
    """Those of the plain rule, but beside powers of two, where logarithms are not exact."""
    plain, _, exception = row["scale"].partition("`, except ")
    for fmt in formats_of(row):
        for largest in (1 + np.arange(64, dtype=np.float32) / 64) * np.float32(2.0**-20):
            found = scale_of(largest, fmt, row["rule"])
            expected = scale_of(largest, fmt, plain.strip("`"))
            if not exception.startswith(fmt.name):
                assert found == expected, (fmt, largest)
            elif "floor(log2 a)" in exception:
                assert found == 127 - 20, (fmt, largest)
            else:
                up = largest >= np.float32(1.75 * 2.0**-20)
                assert found == scale_of(largest, fmt, "floor") + up, (fmt, largest)


@PARTIES
def test_elements_of_parties(row: dict[str, str]) -> None:
    """Every tie of a format, in blocks whose largest number is a power of two."""
    roundings = {
        "ties to even": "nearest",
        "ties away from zero": "nearest_away",
        "ties toward zero": "nearest_toward_zero",
        "toward zero": "toward_zero",
    }
    usual, _, exception = row["elements"].partition(", ")
    for fmt in formats_of(row):
        kind = exception.removeprefix(f"{fmt.name} ") if fmt.name in exception else usual
        values = npfp8.values(fmt.element)
        values = np.unique(values[np.isfinite(values) & (values >= 0)])
        power = 2.0 ** np.floor(np.log2(fmt.element.max))
        ties = (values[1:] + values[:-1])[values[1:] < power] / 2
        for start in range(0, ties.size, 31):
            some = np.float32([power, *ties[start : start + 31]])
            scale = npfp8.quantize(some, fmt, rule=row["rule"]).scale
            q = npfp8.quantize(some * scale, fmt, rule=row["rule"])
            assert q.scale == scale or row["rule"] == "vllm"
            numbers = some * scale / q.scale
            expected = npfp8.encode(numbers, fmt.element, rounding=roundings[kind])
            # -0 and +0 are alike here.
            found = npfp8.decode(q.codes, fmt.element)
            np.testing.assert_array_equal(found, npfp8.decode(expected, fmt.element))


@PARTIES
def test_special_blocks_of_parties(row: dict[str, str]) -> None:
    usual, _, exception = row["block of zeros"].partition(", ")
    for fmt in formats_of(row):
        expected = exception.rpartition(" ")[2] if exception.startswith(fmt.name) else usual
        assert f"0x{scale_of(np.float32(0), fmt, row['rule']):02X}" == expected
        x = np.float32([1, np.nan, -2])
        without = npfp8.quantize(np.nan_to_num(x), fmt, rule=row["rule"])
        try:
            q = npfp8.quantize(x, fmt, rule=row["rule"])
        except ValueError:
            assert "refused" in row["block with a NaN"]
            continue
        assert q.scale_codes is not None
        assert without.scale_codes is not None
        if "all NaN" in row["block with a NaN"]:
            assert np.isnan(q.dequantize()).all()
        elif row["block with a NaN"] == "scale 0x00":
            assert q.scale_codes[0] == 0
        else:
            assert row["block with a NaN"] == "only that number"
            assert q.scale_codes[0] == without.scale_codes[0]
            assert q.codes[[0, 2]].tolist() == without.codes[[0, 2]].tolist()


@pytest.mark.parametrize("row", table("rule | number stored"), ids=lambda row: row["rule"])
def test_dialects(row: dict[str, str]) -> None:
    x = np.array([[2688], [0], [2.0**-12]], np.float32).repeat(16, axis=1)
    q = npfp8.quantize(x, npfp8.NVFP4, rule=row["rule"])
    assert q.scale_codes is not None
    assert q.tensor_scale is not None
    for name, code in (
        ("scale of a block of zeros", q.scale_codes[1, 0]),
        ("of a block that is too small", q.scale_codes[2, 0]),
    ):
        if row[name] == "E4M3(2^-23 / t)":
            small = npfp8.quantize(x / 2**20, npfp8.NVFP4, rule=row["rule"]).scale_codes
            expected = npfp8.encode([2.0**-23, 2.0**-3], npfp8.E4M3FN)  # t is 1, then 2^-20
            assert small is not None
            assert [code, small[1, 0]] == expected.tolist()
            continue
        value = float(npfp8.values(npfp8.E4M3FN)[code])
        power = f"2^{int(np.log2(value))}" if 0 < value < 1 else f"{value:g}"
        assert row[name] == (f"0x{code:02X} ({power})" if value else "0x00")
    zeros = npfp8.quantize(np.zeros(16, np.float32), npfp8.NVFP4, rule=row["rule"]).dequantize()
    assert row["tensor of zeros"] == ("NaN" if np.isnan(zeros).any() else "zeros")
    doubled = npfp8.quantize(2 * x, npfp8.NVFP4, rule=row["rule"]).tensor_scale
    meaning = {2: "a factor", 0.5: "a divisor"}[float(doubled / q.tensor_scale)]
    largest = float(q.tensor_scale) == 2688
    assert row["number stored for the tensor"].endswith("g itself" if largest else meaning)


def test_a_wrong_table_is_found() -> None:
    assert doubling(npfp8.MXFP4, "rceil") == "> 1.5"
    assert doubling(npfp8.MXFP4, "trunc") == "≥ 1.5"
    assert re.search(r"^\| `rceil` .* > 1\.5 \|", PAGE, re.MULTILINE)
