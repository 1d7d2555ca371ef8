"""Small parts of the kit on numbers by hand: accumulators' bits, chosen scales, unseen mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bert_numpy.commands.main import main
from bert_numpy.kit import Kit, open_kit
from bert_numpy.kit.coverage import unseen_mistakes
from bert_numpy.kit.exact import ExactSum
from bert_numpy.kit.manifest import Reference, Tensor, apply_view
from bert_numpy.kit.scales import telling_scale
from bert_numpy.kit.text import write_kit_text
from npfp8 import E4M3FN, INT8, quantize
from npfp8.formats import Format


@pytest.mark.parametrize(
    ("sums", "bits"),
    [
        ([], 1),
        ([0], 1),
        ([-1], 1),
        ([1], 2),
        ([-128], 8),
        ([127, -128], 8),
        ([128], 9),
        ([-129], 9),
        ([2**80, -3], 82),
    ],
)
def test_the_bits_of_an_accumulator_are_those_of_twos_complement(
    sums: list[int], bits: int
) -> None:
    integers = np.array(sums, object)
    assert ExactSum(0, integers, np.ones(integers.shape, bool)).bits == bits


@pytest.mark.parametrize("fmt", [E4M3FN, INT8], ids=str)
def test_of_several_telling_scales_the_nearest_is_chosen(fmt: Format) -> None:
    """From a telling scale on, no other is nearer."""
    rng = np.random.default_rng(8)
    for _ in range(3):
        bits = rng.standard_normal(600).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        x = bits.view(np.float32)
        scale = telling_scale(x, float(np.abs(x).max() / np.float32(fmt.max)), fmt)
        assert telling_scale(x, float(scale), fmt) == scale


def quantizations(numbers: dict[str, list[float]]) -> Kit:
    """A kit that quantizes some arrays of numbers with a scale of 1."""
    tensors, arrays = {"operator/scale": Tensor("operator/scale", "operator", "given")}, {}
    arrays["operator/scale"] = np.asarray(np.float32(1))
    for name, x in numbers.items():
        source, codes = f"operator/{name}.x", f"operator/{name}"
        inputs = {"x": Reference(source), "scale": Reference("operator/scale")}
        tensors[source] = Tensor(source, "operator", "given")
        tensors[codes] = Tensor(
            codes, "operator", "quantize", inputs, {"fmt": "E4M3FN"}, "codes", "E4M3FN"
        )
        arrays[source] = np.array(x, np.float32)
        arrays[codes] = quantize(arrays[source], E4M3FN, np.float32(1)).codes
    return Kit({}, tensors, arrays)


def test_a_mistake_is_unseen_if_another_tensor_of_the_kit_shows_it() -> None:
    plain, tie = [0.0, 1.0], [1.0625]  # halfway from 1 to 1.125: to the even 1
    alone = unseen_mistakes(quantizations({"plain": plain}), ["operator/plain"])["quantize"]
    both = quantizations({"plain": plain, "tie": tie})
    unseen = unseen_mistakes(both, ["operator/plain"])["quantize"]
    assert {"ties rounded away from zero", "subnormals flushed to zero"} <= set(alone)
    assert "ties rounded away from zero" in unseen
    assert "subnormals flushed to zero" not in unseen  # the other tensor does not show it either
    assert set(unseen) < set(alone)
    all_given = unseen_mistakes(both, ["operator/plain", "operator/tie"])["quantize"]
    assert "ties rounded away from zero" not in all_given
    assert "subnormals flushed to zero" in all_given


def test_names_that_differ_in_case_alone_become_two_files(tmp_path: Path) -> None:
    """Verilog's parameters are in upper case, and not every file system tells the two apart."""
    names = {"x": "operator/case/a.s", "scale": "operator/case/A_s"}
    inputs = {role: Reference(name) for role, name in names.items()}
    tensors = {name: Tensor(name, "operator", "given") for name in names.values()}
    result = "operator/case/codes"
    tensors[result] = Tensor(
        result, "operator", "quantize", inputs, {"fmt": "E4M3FN"}, "codes", "E4M3FN"
    )
    arrays = {names["x"]: np.float32([1, 2]), names["scale"]: np.asarray(np.float32(0.5))}
    arrays[result] = quantize(arrays[names["x"]], E4M3FN, arrays[names["scale"]]).codes
    write_kit_text(Kit({}, tensors, arrays), tmp_path, "memory", ["operator"])
    folder = tmp_path / "operator" / "case"
    files = {path.name.casefold() for path in folder.glob("*.mem")}
    assert len(files) == 3
    parameters = re.findall(r"localparam (\w+)_WORDS = (\d+)", (folder / "case.vh").read_text())
    assert sorted(count for _, count in parameters) == ["1", "2", "2"]
    assert len({name for name, _ in parameters}) == 3


def test_levels_of_the_text_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default those that need no model; asked for, in the order of the kit."""
    argv = ["golden", "text", "bert-tiny-sst2"]
    some = ["--operation", "add", "--operation", "decode", "--json", "-"]
    assert main([*argv, str(tmp_path / "usual"), *some]) == 0
    usual = json.loads(capsys.readouterr().out)
    assert usual["levels"] == ["codec", "operator"]
    assert {path.name for path in (tmp_path / "usual").iterdir() if path.is_dir()} == {
        "codec",
        "operator",
    }
    asked = ["--level", "operator", "--level", "codec"]
    assert main([*argv, str(tmp_path / "asked"), *some, *asked]) == 0
    assert json.loads(capsys.readouterr().out) == {**usual, "folder": str(tmp_path / "asked")}


def test_listed_inputs_have_the_shapes_that_the_operation_sees(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["golden", "list", "bert-tiny-sst2", "--level", "layer", "--json", "-"]) == 0
    kit, seen = open_kit(), 0
    for entry in json.loads(capsys.readouterr().out)["tensors"]:
        for role, (source, view) in kit.tensors[entry["name"]].inputs.items():
            assert entry["inputs"][role] == list(apply_view(kit.arrays[source], view).shape)
            seen += entry["inputs"][role] != list(kit.arrays[source].shape)
    assert seen > 10
