"""docs/byte: its tables are npfp8's, its codec too, and what its button proves is true.

The tests by Node need Node; those in WebAssembly also npm's pyodide, and NumPy's wheel for it;
those of the page also npm's playwright-core, and Chromium. BYTE_PARTS names a folder where npm has
installed them; BYTE_SCREENSHOTS one for pictures of the page.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import npfp8
from npfp8.blocks import BLOCK_FORMATS
from npfp8.formats import FORMATS, FloatFormat, IntFormat

PAGE = ROOT / "docs" / "byte"
TESTS = ROOT / "tests"
WHEEL = "numpy-2.0.2-cp312-cp312-pyodide_2024_0_wasm32.whl"
CORE = ("pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip")
REFUSED = 256
_FAR = np.float32(1e38)


@pytest.fixture(scope="module")
def make_byte_page() -> ModuleType:
    path = ROOT / "scripts" / "make_byte_page.py"
    spec = importlib.util.spec_from_file_location("make_byte_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pyodide(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Pyodide's core files with NumPy's wheel beside them."""
    shared = Path(os.environ.get("FP8_BERT_SHARED", ROOT.parent / "shared"))
    wheel = shared / "wasm" / WHEEL
    if not wheel.is_file():
        pytest.skip(f"no NumPy for WebAssembly at {wheel} (set FP8_BERT_SHARED)")
    if not (parts / "pyodide").is_dir():
        pytest.skip(f"no npm package pyodide at {parts}")
    folder = tmp_path_factory.mktemp("pyodide")
    for name in (*CORE, "pyodide-lock.json", "package.json"):
        shutil.copy(parts / "pyodide" / name, folder)
    shutil.copy(wheel, folder)
    return folder


@pytest.fixture(scope="module")
def archive(make_byte_page: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "project.zip"
    make_byte_page.write_archive(path)
    return path


def run(*command: object) -> str:
    """The output of a command; its errors if it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# The tables


def test_committed_tables_are_what_the_script_writes(make_byte_page: ModuleType) -> None:
    assert (PAGE / "tables.json").read_text() == make_byte_page.text_of(make_byte_page.tables())


def test_check_finds_a_changed_table(make_byte_page: ModuleType, tmp_path: Path) -> None:
    text = (PAGE / "tables.json").read_text()
    (tmp_path / "tables.json").write_text(text.replace("0.001953125", "0.001953126", 1))
    command = [sys.executable, ROOT / "scripts/make_byte_page.py", "--check", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs" in done.stdout


def test_archive_is_the_same_each_time(
    make_byte_page: ModuleType, archive: Path, tmp_path: Path
) -> None:
    make_byte_page.write_archive(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_page_names_no_other_place_than_the_one_setting() -> None:
    for path in PAGE.iterdir():
        if path.suffix in (".js", ".html", ".css") and path.name != "config.js":
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, path


# The page's Python, here


def test_word_pieces_are_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from bert_numpy import load_tokenizer  # noqa: PLC0415
    from bert_numpy.assets import ASSETS, REVIEWS  # noqa: PLC0415

    monkeypatch.syspath_prepend(PAGE)
    wordpiece = importlib.import_module("wordpiece").WordPiece.read(ASSETS / "bert-tiny-sst2")
    texts = [
        line.split("\t")[0]
        for name in ("dev.tsv", "train.tsv")
        for line in (REVIEWS / name).read_text().splitlines()[1:]
    ]
    texts += [
        "Café Über 東京!",
        "it's (well-made) $5,000…",
        "word " * 200,
        "a" * 101,
        "\t x\u200b\n",
    ]
    library = load_tokenizer("bert-tiny-sst2")
    assert wordpiece.encode(texts) == library.encode(texts, None, 128)


# The codec in JavaScript


def numbers() -> np.ndarray:
    """2^18 float64 numbers: every boundary of every format and its neighbours, and random ones."""
    generator = np.random.default_rng(20)
    edges = [np.array([0.0, np.inf, np.nan, 1e-320, 5e-324, 1.7e308])]
    for fmt in FORMATS.values():
        values = np.unique(fmt.values[np.isfinite(fmt.values)])
        if isinstance(fmt, FloatFormat):
            values = np.union1d(values, fmt.grid)
        ties = (values[1:] + values[:-1]) / 2
        for near in (values, ties):
            edges += [near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf)]
    found = np.concatenate([edges[0], *edges[1:]])
    found = np.concatenate([found, -found])
    count = (1 << 18) - found.size
    patterns = generator.integers(0, 1 << 32, count // 2, np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        wide = patterns.astype(np.float64)
    usual = generator.standard_normal(count - wide.size)
    usual *= 2.0 ** generator.integers(-12, 12, usual.size)
    assert found.size < draws().size
    generator.shuffle(found)  # the first 2^17 are rounded in other ways too
    everything = np.concatenate([found, wide, usual])
    # JavaScript does not know a NaN's sign: every NaN is the positive one.
    return np.where(np.isnan(everything), np.nan, everything)


class Draws(np.random.Generator):
    """A generator whose 64-bit integers are given: one for each element, in order."""

    def __init__(self, given: np.ndarray) -> None:
        super().__init__(np.random.PCG64(0))
        self.given = given

    def integers(self, low: int, high: int, size: int, dtype: Any) -> np.ndarray:  # type: ignore[override]
        drawn, self.given = self.given[:size], self.given[size:]
        assert (low, high, dtype, drawn.size) == (0, 1 << 64, np.uint64, size)
        return drawn


@pytest.fixture(scope="module")
def by_javascript(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what tests/byte_codec.mjs has written."""
    folder = tmp_path_factory.mktemp("codec")
    x = numbers()
    x.astype("<f8").tofile(folder / "numbers.f64")
    draws().astype("<u8").tofile(folder / "draws.u64")
    (folder / "rows.json").write_text(json.dumps([row.tolist() for row in rows()]))
    run(node, TESTS / "byte_codec.mjs", PAGE, folder)
    return folder


@pytest.fixture(scope="module")
def blocks_by_javascript(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what tests/byte_blocks.mjs has written."""
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "tensors.json").write_text(json.dumps([x.tolist() for x in tensors()]))
    run(node, TESTS / "byte_blocks.mjs", PAGE, folder)
    return folder


def draws() -> np.ndarray:
    """64 bits for each of the first 2^17 numbers; some are a half, or the most."""
    given = np.random.default_rng(64).integers(0, 1 << 64, 1 << 17, np.uint64)
    given[1::7] = 1 << 63
    given[2::7] = (1 << 64) - 1
    return given


def rows() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    found = [np.zeros(16, np.float32), np.float32([1e-40, -3e-41, 0, 0])]
    for exponent in range(0, 25, 2):
        row = generator.standard_normal(32).astype(np.float32)
        row[exponent] = np.float32(2.0**exponent)
        found.append(row)
    return found


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_codec_in_javascript_is_npfp8_s(by_javascript: Path, fmt: npfp8.Format) -> None:
    everything = numbers()
    given = draws()
    roundings = ["nearest", "nearest_away", "nearest_toward_zero", "toward_zero", "stochastic"]
    for rounding in roundings if isinstance(fmt, FloatFormat) else roundings[:-1]:
        x = everything if rounding in ("nearest", "toward_zero") else everything[: given.size]
        for saturate in (True, False):
            name = f"{fmt}.{rounding}.{str(saturate).lower()}.u16"
            found = np.fromfile(by_javascript / name, "<u2")
            refused = np.zeros(x.shape, bool)
            if fmt not in npfp8_formats_with_nan():
                refused |= np.isnan(x)
            if not isinstance(fmt, FloatFormat) and not saturate:
                refused |= is_beyond(x, fmt, rounding)
            options = {"rng": Draws(given)} if rounding == "stochastic" else {}
            encodable = np.where(refused, 0.0, x)
            codes = npfp8.encode(encodable, fmt, saturate, rounding=rounding, **options)
            bits = codes.view(np.uint8).astype(int) & ((1 << fmt.bits) - 1)
            expected = np.where(refused, REFUSED, bits)
            wrong = np.flatnonzero(found != expected)
            assert not wrong.size, (
                f"{name}: {wrong.size} differ, first {x[wrong[0]]!r}: "
                f"{found[wrong[0]]}, expected {expected[wrong[0]]}"
            )


def is_beyond(x: np.ndarray, fmt: IntFormat, rounding: str) -> np.ndarray:
    """Whether numbers round beyond the range of an integer format."""
    with np.errstate(over="ignore"):
        scaled = x * 2.0**fmt.fraction_bits
    low, high = np.float64(fmt.min_code), np.float64(fmt.max_code)
    if rounding == "toward_zero":
        return (scaled >= high + 1) | (scaled <= low - 1)
    ties = {  # whether the tie beyond each end rounds away from the range
        "nearest": (fmt.min_code % 2 == 1, fmt.max_code % 2 == 1),
        "nearest_away": (True, True),
        "nearest_toward_zero": (False, False),
    }[rounding]
    below = scaled <= low - 0.5 if ties[0] else scaled < low - 0.5
    above = scaled >= high + 0.5 if ties[1] else scaled > high + 0.5
    return below | above


def npfp8_formats_with_nan() -> list[npfp8.Format]:
    floats = [fmt for fmt in FORMATS.values() if isinstance(fmt, FloatFormat)]
    return [fmt for fmt in floats if fmt.nan_code is not None]


def test_values_steps_and_errors_in_javascript(by_javascript: Path) -> None:
    x = numbers()[:1000]
    decoded = json.loads((by_javascript / "decoded.json").read_text())
    assert [name for name, *_ in decoded] == list(FORMATS)
    for name, values, steps, above, ulps in decoded:
        fmt = FORMATS[name]
        shown = [float(value.replace("Infinity", "inf")) for value in values]
        np.testing.assert_array_equal(shown, fmt.values)
        used = fmt.values[np.isfinite(fmt.values)]
        if not isinstance(fmt, FloatFormat):
            used = used[(used >= fmt.min_code * fmt.min_subnormal) & (used <= fmt.max)]
        distinct = np.unique(used)
        stepped = fmt.values[steps]
        assert (np.diff(stepped) >= 0).all()
        np.testing.assert_array_equal(np.unique(stepped), distinct[1:])
        assert above[-1] is None
        np.testing.assert_array_equal(fmt.values[above[:-1]], distinct[1:])
        inside = (x >= distinct[0]) & (x <= distinct[-1])
        assert (np.abs(np.asarray(ulps)[inside]) <= 0.5).all()


def test_rows_in_javascript_are_quantize_s(by_javascript: Path) -> None:
    tables = json.loads((PAGE / "tables.json").read_text())
    found = json.loads((by_javascript / "rows.out.json").read_text())
    for row, by_format in zip(rows(), found, strict=True):
        for row_format, got in zip(tables["row_formats"], by_format, strict=True):
            fmt = FORMATS[row_format["element"]]
            q = npfp8.quantize(row, fmt)
            np.testing.assert_array_equal(np.uint8(got["codes"]), q.codes.view(np.uint8))
            assert got["scales"] == [float(q.scale)]
            np.testing.assert_array_equal(np.float32(got["values"]), q.dequantize())
            errors = q.dequantize().astype(np.float64) - row
            np.testing.assert_allclose(got["errors"], errors, rtol=1e-12)


def tensors() -> list[np.ndarray]:
    """Rows of blocks: normal ones of every size, ties, zeros, and all where a scale doubles."""
    generator = np.random.default_rng(9)
    found = [np.zeros(64), np.full(64, -0.0), np.full(64, np.finfo(np.float32).max)]
    found.append(np.concatenate([np.zeros(16), [-0.0] * 16, np.ones(16), np.full(16, 2.0**-100)]))
    for exponent in (*range(-149, 127, 12), 0, 0, 0, 0):
        found.append(generator.standard_normal(64) * 2.0**exponent)
    for exponent in (-140, -20, 0, 3, 100):  # as bfloat16 has them: many ties
        found.append(np.rint(generator.standard_normal(64) * 16) / 16 * 2.0**exponent)
        found.append(generator.integers(-28, 29, 64) / 4 * 2.0**exponent)
    near = [1.0, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.96875, 1.984375, 1.9921875, 2.0]
    for exponent in (-127, 0, 120):
        for end in np.float32(near) * np.float32(2.0**exponent):
            for largest in (np.nextafter(end, np.float32(0)), end, np.nextafter(end, _FAR)):
                row = generator.uniform(-1, 1, 32).astype(np.float32)
                row[::8] = 1
                found.append(row * largest)
    wide = generator.standard_normal(64) * 2.0 ** generator.integers(-40, 40, 64)
    found += [wide, wide[:5], np.float32([1e-45]), wide * 1e-30, np.full(33, 6.0)]
    found.append(np.array([3e38] + [0] * 15 + [2.0**105, -(2.0**106), 2.0**104, 1] * 4))
    with np.errstate(over="ignore"):
        return [np.asarray(x, np.float32) for x in found]


def cases() -> list[Any]:
    blocks = json.loads((PAGE / "tables.json").read_text())["block_formats"]
    return [pytest.param(one["name"], rule, id=f"{one['name']}-{rule}")
            for one in blocks for rule in one["rules"]]  # fmt: skip


def test_the_page_has_every_block_format_and_rule() -> None:
    expected = [
        (name, rule)
        for name, fmt in BLOCK_FORMATS.items()
        for rule in (npfp8.POWER_RULES if fmt.powers_of_two else npfp8.RATIO_RULES)
        if is_possible(fmt, rule)
    ]
    assert [tuple(case.values) for case in cases()] == expected


def is_possible(fmt: npfp8.BlockFormat, rule: str) -> bool:
    try:
        npfp8.quantize(np.ones(4, np.float32), fmt, rule=rule)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("name", "rule"), cases())
def test_blocks_in_javascript_are_quantize_s(
    blocks_by_javascript: Path, name: str, rule: str
) -> None:
    """Codes, scales and their bytes, the tensor's number, values, packed bytes: to the last bit."""
    found = json.loads((blocks_by_javascript / f"{name}.{rule}.blocks.json").read_text())
    for x, got in zip(tensors(), found, strict=True):
        try:
            q = npfp8.quantize(x, name, rule=rule)
        except ValueError:
            assert got is None, (x, got)
            continue
        codes = q.codes.view(np.uint8)
        tensor_scale = [] if q.tensor_scale is None else [q.tensor_scale]
        expected = {
            "codes": codes,
            "scaleCodes": q.scale_codes,
            "scales": q.scale,
            "values": q.dequantize(),
            "tensorScale": np.asarray(tensor_scale, np.float32),
            "packed": np.uint8(packed(codes, q.fmt.bits)),
        }
        assert got == {part: hexadecimal(numbers) for part, numbers in expected.items()}, x


def hexadecimal(numbers: np.ndarray) -> str:
    """The bytes of uint8 or float32 numbers; every NaN is the one that JavaScript has."""
    if numbers.dtype == np.float32:
        numbers = np.where(np.isnan(numbers), np.float32(np.nan), numbers).astype("<f4")
    return numbers.tobytes().hex()


def packed(codes: np.ndarray, bits: int) -> list[int]:
    """Codes as the digits of one large number, of which the bytes are the digits too."""
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return list(number.to_bytes(-(-codes.size * bits // 8), "little"))


# WebAssembly


def test_golden_digests_in_wasm(node: str, pyodide: Path, archive: Path) -> None:
    """The embedded model's golden digests, and a block of the codec's, on a 32-bit machine."""
    lines = run(node, TESTS / "byte_wasm.mjs", PAGE, archive, pyodide, 0x47).splitlines()
    found = [json.loads(line) for line in lines]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        by_kind.setdefault(one.pop("kind"), []).append(one)
    (machine,) = by_kind["machine"]
    assert (machine["machine"], machine["bits"]) == ("wasm32", "32")
    golden = json.loads((ROOT / "tests/digests/golden.json").read_text())
    assert {one["name"]: one["found"] for one in by_kind["golden"]} == golden
    known = set((ROOT / "tests/digests/codec.txt").read_text().splitlines())
    codec = {f"{one['name']} {one['found']}" for one in by_kind["codec"]}
    assert codec <= known
    assert len(codec) == 2 * sum(isinstance(fmt, FloatFormat) for fmt in FORMATS.values())
    sentence = json.loads((PAGE / "tables.json").read_text())["sentence"]
    assert {one["name"]: one["sha256"] for one in by_kind["sentence"]} == sentence["sha256"]


# The page in a browser


@pytest.fixture(scope="module")
def seen(
    node: str,
    browser: tuple[Path, str],
    pyodide: Path,
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What tests/byte_browser.mjs has read on the page, which is used once."""
    folder = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("pyodide", "project.zip")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=ignored)
    shutil.copy(archive, folder)
    (folder / "pyodide").symlink_to(pyodide)
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/index.html"
        pictures = os.environ.get("BYTE_SCREENSHOTS", "")
        driver = TESTS / "byte_browser.mjs"
        file = (PAGE / "index.html").as_uri()
        found = run(node, driver, *browser, url, file, pictures)
        server.shutdown()
    report = json.loads(found)
    report["origin"] = url.rpartition("/")[0]
    return report


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))  # noqa: RUF001


def assert_code_is_right(
    reading: dict[str, Any], x: float, saturate: bool = True, rounding: str = "nearest"
) -> None:
    fmt = FORMATS[reading["format"]]
    try:
        code = int(npfp8.encode([x], fmt, saturate, rounding=rounding).view(np.uint8)[0])
    except ValueError:
        assert reading["code"] == "none", reading
        assert reading["verdict"].startswith("No code"), reading
        return
    code &= (1 << fmt.bits) - 1  # the page shows the bits of the format, of INT4 four
    assert reading["code"].startswith(f"0x{code:02X} "), reading
    value = float(fmt.values[code])
    np.testing.assert_array_equal(number(reading["value"]), value)
    assert np.signbit(number(reading["value"])) == np.signbit(value)


def test_page_has_no_errors_and_asks_nobody_else(seen: Any) -> None:
    assert not seen["errors"]
    assert all(url.startswith((seen["origin"], "data:", "blob:")) for url in seen["requests"])


def test_typed_numbers_become_npfp8_s_codes(seen: Any) -> None:
    assert {reading["format"] for reading in seen["typed"]} == set(FORMATS)
    for reading in seen["typed"]:
        x = number(reading["typed"])
        assert_code_is_right(reading, x, reading["saturate"], reading["rounding"])


def test_what_is_no_number_changes_nothing_and_is_said(seen: Any) -> None:
    *mistyped, infinite = seen["mistyped"]
    for reading in mistyped:
        assert "is not a number" in reading["verdict"]
        assert reading["invalid"] == "true"
        assert reading["value"] == "0.75"
    assert_code_is_right(infinite, -np.inf)
    assert infinite["invalid"] is None


def test_saturation_is_said_where_it_is(seen: Any) -> None:
    assert seen["verdicts"] == [
        "450 is beyond the largest value: it becomes 448.",
        "465 is beyond the largest value: it becomes 448 (saturation).",
        "1000 is beyond the largest value: it becomes 448.",
        "−264 is beyond the lowest value: it becomes −127 (saturation).",  # noqa: RUF001
        "−5 is beyond the lowest value: it becomes 0 (saturation).",  # noqa: RUF001
        f"0 becomes {2.0**-127}.".replace("-", "−"),  # noqa: RUF001
    ]


def test_a_blank_sentence_is_refused(seen: Any) -> None:
    assert seen["blank"] == "Write a sentence."


def test_without_a_connection_the_page_says_what_is_missing(seen: Any) -> None:
    """Pyodide from elsewhere cannot be loaded; the page itself, opened as a file, cannot run."""
    assert seen["early"], "a click before the tables are there would do nothing"
    assert "Is there a connection?" in seen["unconnected"]
    assert "python -m http.server" in seen["opened"]


def test_the_browser_keeps_its_shortcuts(seen: Any) -> None:
    before, after = seen["shortcut"]
    assert before == after


def test_dragging_moves_the_number(seen: Any) -> None:
    assert len({reading["number"] for reading in seen["dragged"]}) == 4
    for reading in seen["dragged"]:
        assert_code_is_right(reading, number(reading["number"]))
    assert [number(reading["number"]) > 0 for reading in seen["dragged"]] == [
        True,
        True,
        True,
        False,
    ]
    assert seen["released"] == seen["dragged"][-1]


def test_clicked_bits_make_the_code(seen: Any) -> None:
    code = 0
    for place, reading in enumerate(seen["clicked"]):
        code |= 0x80 >> place
        assert reading["code"].startswith(f"0x{code:02X} ")
        np.testing.assert_array_equal(number(reading["value"]), npfp8.E4M3FN.values[code])


def test_keys_step_codes(seen: Any) -> None:
    codes = [int(reading["code"].split()[0], 16) for reading in seen["keyed"]]
    one = 0x38
    assert codes == [one + 1, one + 2, one + 1, one + 9, 0x7E, 0x7E, 0xFE, 0xFE, 0xFD, 0x7D]
    first = seen["keyed"][0]
    assert first["aria"] == "1.125 becomes 1.125, code 0x39 = 0 0111 001"


def test_everything_is_in_the_tab_order(seen: Any) -> None:
    order = [name for name in seen["tabbed"] if name]
    wanted = ["theme", "format", "rounding", "saturate", "number", "line", "scale", "zoom", "sign"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)


def test_outlier_s_figures_are_npfp8_s(seen: Any) -> None:
    tables = json.loads((PAGE / "tables.json").read_text())
    assert seen["blocks"][0]["outlier"] == 12
    assert seen["blocks"][1]["outlier"] > 0
    assert seen["blocks"][3]["outlier"] == pytest.approx(seen["blocks"][2]["outlier"] + 5, abs=0.3)
    for reading in seen["blocks"]:
        row = np.float32(tables["row"][: reading["count"]])
        place = reading["place"] - 1
        row[place] = np.sign(row[place]) * np.float32(2.0 ** reading["outlier"])
        others = np.arange(row.size) != place
        shown = [npfp8.quantize(row, FORMATS[one["element"]]) for one in tables["row_formats"]]
        shown.append(npfp8.quantize(row, reading["format"], rule=reading["rule"]))
        for q, text in zip(shown, reading["names"], strict=True):
            wide = row.astype(np.float64)
            error = q.dequantize() - wide
            for name, chosen in (("SQNR", others | True), ("SQNR of the others", others)):
                ratio = 10 * np.log10(np.sum(wide[chosen] ** 2) / np.sum(error[chosen] ** 2))
                assert f"{name} {ratio:.1f} dB" in text
            lost = int(np.count_nonzero((q.dequantize() == 0) & (row != 0) & others))
            assert f"{lost} of {row.size - 1} others become 0" in text


def test_the_bytes_of_blocks_are_npfp8_s(seen: Any) -> None:
    row = np.float32(json.loads((PAGE / "tables.json").read_text())["row"])
    wanted = [tuple(case.values) for case in cases()]
    found = [(one["format"], one["rule"]) for one in seen["bytes"]]
    assert found[: len(wanted)] == wanted
    assert dict(found[len(wanted) :]).keys() == dict(wanted).keys()  # each format once more
    for reading in seen["bytes"]:
        x = row[: reading["count"]].copy()
        x[reading["place"] - 1] = np.copysign(2.0 ** reading["outlier"], x[reading["place"] - 1])
        fmt = BLOCK_FORMATS[reading["format"]]
        q = npfp8.quantize(x, fmt, rule=reading["rule"])
        codes = q.codes.view(np.uint8)
        bits = q.fmt.bits
        assert reading["codes"] == codes.tolist()
        assert reading["bits"] == [f"{code:0{bits}b}" for code in codes]
        assert reading["scaleBytes"] == [f"0x{code:02X}" for code in q.scale_codes]
        blocks = [codes[i : i + fmt.block] for i in range(0, codes.size, fmt.block)]
        assert reading["packed"] == [bytes(packed(one, bits)).hex(" ").upper() for one in blocks]
        stored = [] if q.tensor_scale is None else [float(q.tensor_scale)]
        assert [float(text) for text in reading["tensor"]] == stored


def test_a_finger_drags_the_outlier_and_scrolls_elsewhere(seen: Any) -> None:
    for on_the_bar, beside in seen["touched"]:
        assert on_the_bar == {"outlier": 6, "scrolled": 0}
        assert beside["outlier"] == 6
        assert beside["scrolled"] > 0


def test_theme_follows_the_system_unless_chosen(seen: Any) -> None:
    assert seen["themes"] == ["light", "dark", "light", "dark", "light"]


def test_proof_turns_green(seen: Any) -> None:
    proof = seen["proof"]
    golden = json.loads((ROOT / "tests/digests/golden.json").read_text())
    count = len(golden) + 2 * sum(isinstance(fmt, FloatFormat) for fmt in FORMATS.values())
    assert proof["equal"] == proof["all"] == count
    assert proof["status"].startswith(f"All {count} digests are equal")
    sentence = json.loads((PAGE / "tables.json").read_text())["sentence"]
    hashes = [row[4] for row in proof["sentences"]]
    assert hashes == list(sentence["sha256"].values())
    assert [row[5] for row in proof["sentences"]] == ["as committed"] * len(hashes)


def test_another_sentence_has_the_logits_of_this_machine(seen: Any) -> None:
    from bert_numpy import PRESETS, apply_recipe, load, load_tokenizer  # noqa: PLC0415
    from bert_numpy.assets import REVIEWS  # noqa: PLC0415
    from bert_numpy.evaluation.evaluate import calibrate_on  # noqa: PLC0415
    from bert_numpy.tasks.glue import read_examples, task_named  # noqa: PLC0415

    model, tokenizer = load("bert-tiny-sst2"), load_tokenizer("bert-tiny-sst2")
    texts = read_examples(REVIEWS / "train.tsv", task_named("sst2")).sample(24).texts
    calibration = calibrate_on(model, tokenizer.encode(texts, None, 128), golden=True)
    batch = tokenizer.batch(["a dull and endless film"])
    recipes = json.loads((PAGE / "tables.json").read_text())["sentence"]["recipes"]
    for recipe, row in zip(recipes, seen["other"], strict=True):
        logits = apply_recipe(model, PRESETS[recipe], calibration, golden=True)(**batch).logits
        assert logits is not None
        assert row[1] == model.config.labels[int(logits[0].argmax())]
        assert row[4] == hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()


def test_page_fits_a_phone(seen: Any) -> None:
    assert seen["overflow"] == dict.fromkeys(
        ["1280 light", "1280 dark", "390 light", "390 dark"], 0
    )
