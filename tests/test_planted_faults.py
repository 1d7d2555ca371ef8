"""The table of planted faults: a share of it is made again, and its backends are right without."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, load_script

from bert_numpy.kit import verify

PAGE = ROOT / "docs" / "planted-faults.md"

pytestmark = pytest.mark.skipif(
    not (ROOT / "examples").exists(), reason="the examples are in the repository"
)

#: One fault of so many is planted again in the tests; scripts/plant_faults.py plants all.
SHARE = 6

plant_faults = load_script("plant_faults") if (ROOT / "scripts").exists() else None
FAULTS = plant_faults.FAULTS if plant_faults else []


@pytest.fixture(scope="module")
def rows():
    """The rows of the page, by fault and language."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines[lines.index(plant_faults.BEGIN) : lines.index(plant_faults.END)]:
        if line.startswith("| ") and line not in (plant_faults.HEADER, plant_faults.RULE):
            title, language, *said = (cell.strip() for cell in line.strip("|").split("|"))
            found[title, language] = said
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def test_every_fault_is_in_the_page_and_found(rows):
    titles = {(fault.title, fault.language) for fault in FAULTS}
    assert len(rows) == len(titles) == len(FAULTS) >= 40
    assert rows.keys() == titles
    for said in rows.values():
        assert any(cell.startswith(("found", "named")) for cell in said[:3])
        assert ("named" in said[:3]) == bool(said[3])


def test_enough_faults_are_named(rows):
    named = sum(bool(said[3]) for said in rows.values())
    assert named >= 36
    assert named / len(rows) >= 0.9


def check(fault, folder, rows):
    said = plant_faults.ask(fault, folder)
    cells = [cell.strip() for cell in plant_faults.row(fault, said).strip("|").split("|")]
    assert cells[2:] == rows[fault.title, fault.language]


def numbered(language):
    """Every sixth fault of a language."""
    faults = [fault for fault in FAULTS if fault.language == language]
    return [pytest.param(x, id=f"{x.group}-{x.title}") for x in faults[::SHARE]]


@pytest.mark.parametrize("fault", numbered("NumPy"))
def test_faults_in_numpy(fault, folder, rows):
    check(fault, folder, rows)


@pytest.mark.parametrize("fault", numbered("C"))
def test_faults_in_c(fault, folder, rows):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    check(fault, folder, rows)


@pytest.mark.parametrize("fault", numbered("torch"))
def test_faults_in_torch(fault, folder, rows, torch):
    check(fault, folder, rows)


def softmax(x):
    weights = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


#: The backends of the script without a fault, in NumPy.
RIGHT = {
    "quantizing": lambda p: p._all_quantized(lambda x, scale: x / scale),
    "uint8": lambda p: p._integers(
        "quantize-uint8", lambda x, zero: np.clip(np.rint(x) + zero, 0, 255)
    ),
    "int8": lambda p: p._integers("quantize-int8", lambda x, zero: np.clip(np.rint(x), -127, 127)),
    "sums": lambda p: p._sums(lambda a, b: a @ b),
    "scaled": lambda p: p._scaled(lambda x, a, b, bias: x * (a * b) + bias),
    "layer norm": lambda p: p._normalised(p._moments),
    "softmax": lambda p: p._softmaxes(softmax),
    "layer": lambda p: p._layer(),
    "model": lambda p: p._model(),
    "model with types": lambda p: p._model(case="model/1"),
    "attention": lambda p: p._attention(),
    "plain attention": lambda p: p._attention("plain", offset=0, codes_summed=True),
    "mx": lambda p: p._mx_quantized(lambda x: np.clip(p._exponents(x) - 8 + 127, 0, 254)),
    "block sum": lambda p: p._block_sum(lambda a, b: (a, b)),
    "layout": lambda p: p._scale_tiles(
        lambda codes: codes.reshape(4, 32, 2, 4).transpose(2, 1, 0, 3)
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_backend_without_a_fault_is_right(name):
    """Otherwise an instrument could name another fault than the planted one."""
    tensors = RIGHT[name](plant_faults)
    report = verify(plant_faults.kit(), tensors)
    assert not report.differences, report.text()


def test_c_programs_without_a_fault_are_right():
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    tensors = plant_faults._c_sums("none") | plant_faults._c_sums("int8", ("gemm-int8",))
    case = "codec/E4M3FN/nearest-saturating"
    tensors[case] = plant_faults.encoder_in_c("none")(plant_faults.inputs(case)["x"])
    assert not verify(plant_faults.kit(), tensors).differences


def test_every_fault_of_the_c_programs_is_planted():
    programs = {"encoders": {fault.encoder for fault in FAULTS}, "gemm": set()}
    source = (ROOT / "scripts" / "plant_faults.py").read_text(encoding="utf-8")
    for name, planted in programs.items():
        text = (ROOT / "examples" / "faults" / f"{name}.c").read_text(encoding="utf-8")
        for fault in set(re.findall(r'\bis\("(\w+)"\)', text)):
            assert fault in planted or f'"{fault}"' in source, fault
