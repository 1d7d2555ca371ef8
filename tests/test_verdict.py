"""The verdict: what was not given, which mistakes would not show, and ways to fool a verifier."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, apply_recipe, calibrate
from bert_numpy.commands.main import main
from bert_numpy.kit import Kit, open_kit, verify
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.html import html_report, percent
from bert_numpy.kit.manifest import LEVELS, PROFILES, Reference, Tensor
from bert_numpy.kit.network import network_pictures
from bert_numpy.kit.scales import telling_scale, with_telling_scales
from npfp8 import E4M3FN, INT8, quantize
from npfp8.storage import save_file

Arrays = dict[str, np.ndarray]
RECIPROCAL = "multiplication by the reciprocal of the scale"
VALUES = "codec/E4M3FN/values"
SITE = "model/0/encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def kit() -> Kit:
    return open_kit()


def computed(kit: Kit, *levels: str) -> Arrays:
    return {
        name: kit.arrays[name]
        for name, tensor in kit.tensors.items()
        if tensor.operation != "given" and tensor.level in levels
    }


# What was not given


def test_verdicts(kit: Kit) -> None:
    everything, codec = computed(kit, *LEVELS), computed(kit, "codec")
    wrong = {VALUES: kit.arrays[VALUES] + np.float32(1)}
    for candidate, options, verdict, passed in (
        (everything, {}, "passed", True),
        (everything, {"complete": True}, "passed", True),
        (everything | wrong, {}, "FAILED", False),
        (codec, {}, "consistent as far as given", True),
        (codec, {"require": ["codec"]}, "passed: codec complete", True),
        (codec, {"require": ["CODEC", "codec"]}, "passed: codec complete", True),
        (codec, {"require": ("operator",)}, "FAILED", False),
        (codec, {"require": ["codec", "model"]}, "FAILED", False),
        (codec, {"complete": True}, "FAILED", False),
        (codec | wrong, {"require": ["codec"]}, "FAILED", False),
        (wrong, {}, "FAILED", False),
    ):
        report = verify(kit, candidate, **options)
        assert (report.verdict, report.passed) == (verdict, passed), options
        assert report.complete == (candidate.keys() == everything.keys())
        assert report.text().startswith(verdict.split(":")[0] + " (bit-exact): ")


def test_coverage_counts_every_computed_tensor_once(kit: Kit) -> None:
    rng = np.random.default_rng(4)
    everything = computed(kit, *LEVELS)
    given = {name: x for name, x in everything.items() if rng.random() < 0.3}
    report = verify(kit, given | {"codec/E4M3FN/codes": kit.arrays["codec/E4M3FN/codes"]})
    listed = [name for item in report.coverage for name in (*item.given, *item.missing)]
    assert sorted(listed) == sorted(everything)
    for item in report.coverage:
        assert set(item.given) == {n for n in (*item.given, *item.missing) if n in given}
        for name in (*item.given, *item.missing):
            tensor = kit.tensors[name]
            assert (tensor.level, tensor.operation) == (item.level, item.operation)
    assert report.missing == len(everything) - len(given)
    counts = report.as_json()["coverage"]
    missing = {x: sum(y["missing"] for y in counts[x].values()) for x in counts}
    assert missing == {
        x: sum(kit.tensors[name].level == x for name in everything if name not in given)
        for x in LEVELS
    }
    json.dumps(report.as_json())


def test_the_text_names_levels_and_operations(kit: Kit) -> None:
    given = computed(kit, "codec")
    del given[VALUES]
    lines = verify(kit, given, require=["codec"]).text().splitlines()
    every, operators = len(computed(kit, *LEVELS)), len(computed(kit, "operator"))
    assert (
        lines[0] == f"FAILED (bit-exact): {len(given)} of {every} computed tensors given, 0 differ"
    )
    assert lines[1] == f"missing: of codec: 1 tensor: {VALUES}"
    assert lines[2] == f"not given: codec: 1 of {len(given) + 1} (decode 1 of 15)"
    assert lines[3].split() == ["operator:", "all", str(operators)]
    assert all(
        len(line) <= 100 for line in verify(kit, {VALUES: kit.arrays[VALUES]}).text().splitlines()
    )


def test_only_levels_of_the_kit_can_be_required(kit: Kit) -> None:
    part = Kit({}, {x: kit.tensors[x] for x in ("codec/E4M3FN/codes", VALUES)}, kit.arrays)
    given = {VALUES: kit.arrays[VALUES]}
    assert verify(part, given, complete=True).verdict == "passed"
    with pytest.raises(BertNumpyError, match="require: expected a level of the kit: codec; found"):
        verify(part, given, require=["model"])
    with pytest.raises(BertNumpyError, match=r"expected a level of the kit: .*found 'modle'"):
        verify(kit, given, require=["modle"])
    for odd in ("codec", 3, [3]):  # a str is one thing, not a list of levels
        with pytest.raises(TypeError, match="require: expected"):
            verify(kit, given, require=odd)  # type: ignore[arg-type]


# Ways to fool a verifier


@pytest.mark.parametrize("profile", PROFILES)
def test_a_candidate_that_shows_nothing_is_refused(kit: Kit, profile: str) -> None:
    inputs = {name: x for name, x in kit.arrays.items() if kit.tensors[name].operation == "given"}
    with pytest.raises(BertNumpyError, match="found only inputs of the kit"):
        verify(kit, inputs, profile)
    with pytest.raises(BertNumpyError, match="found none"):
        verify(kit, {}, profile)
    with pytest.raises(BertNumpyError, match="expected a name of the kit's"):
        verify(kit, {"codec/E4M3FN/valeus": kit.arrays[VALUES]}, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_outputs_alone_pass_nothing(kit: Kit, profile: str) -> None:
    """Whoever copies the logits has shown no layer; and the text tells it."""
    report = verify(
        kit, {f"model/{i}/logits": kit.arrays[f"model/{i}/logits"] for i in (0, 1)}, profile
    )
    if profile == "accumulate-order":  # which judges each tensor by its own inputs
        assert report.verdict == "FAILED"
    else:
        assert report.verdict == "consistent as far as given"
        assert "layer: all 164" in report.text()
    assert not verify(kit, computed(kit, "model"), profile, require=["layer", "model"]).passed


@pytest.mark.parametrize("profile", PROFILES)
def test_other_inputs_than_the_kits_fail(kit: Kit, profile: str) -> None:
    """Everything follows from the candidate's own input, which is not the kit's."""
    place = "operator/gemm-e4m3"
    a = kit.arrays[f"{place}/a"].copy()
    a[0, 0] ^= 1
    inputs = kit.inputs(f"{place}/sum") | {"a": a}
    from bert_numpy.kit.operations import OPERATIONS  # noqa: PLC0415

    total = OPERATIONS["sum"](inputs, kit.tensors[f"{place}/sum"].attributes)
    report = verify(kit, {f"{place}/a": a, f"{place}/sum": total}, profile)
    assert not report.passed
    assert f"{place}/a" in report.failures
    # Without the input, it is the kit's that the sum is judged by.
    assert profile == "statistical" or not verify(kit, {f"{place}/sum": total}, profile).passed


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf])
@pytest.mark.parametrize("profile", PROFILES)
def test_constant_results_fail(kit: Kit, profile: str, value: float) -> None:
    for what in ("sum", "product", "result"):
        name = f"{SITE}/{what}"
        constant = np.full_like(kit.arrays[name], value)
        assert not verify(kit, {name: constant}, profile).passed


def test_noise_is_no_excuse_for_a_codec_or_a_layout(kit: Kit) -> None:
    """The profile "statistical" is for sums and functions: a wrong code here is a defect."""
    codes = kit.arrays["codec/E4M3FN/nearest-saturating"].copy()
    codes[np.flatnonzero(codes == 0x31)[0]] += 1
    report = verify(kit, {"codec/E4M3FN/nearest-saturating": codes}, "statistical")
    assert "nothing is noise" in report.failures["codec/E4M3FN/nearest-saturating"]
    name = next(n for n, t in kit.tensors.items() if t.operation == "pack_codes")
    packed = kit.arrays[name].copy()
    packed.reshape(-1)[0] ^= 1
    assert not verify(kit, {name: packed}, "statistical").passed


def test_right_tensors_between_wrong_ones_do_not_hide_them(kit: Kit) -> None:
    """The kit's own tensors at the places where it goes wrong, one's own elsewhere."""
    found = computed(kit, "layer", "model")
    wrong = [f"{SITE}/product", f"{SITE}/result"]
    found |= {name: found[name] + np.float32(1) for name in wrong}
    found[wrong[0]] = kit.arrays[wrong[0]]
    report = verify(kit, found)
    assert [item.name for item in report.differences] == wrong[1:]
    assert report.differences[0].root
    assert not verify(kit, found, "accumulate-order").passed


def test_the_kit_as_a_candidate_is_noted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The kit has the answers: a copy passes, and nothing but its place gives it away."""
    own = ROOT / "bert_numpy" / "assets" / "bert-tiny-sst2-kit"
    for candidate in (own, own / "tensors.safetensors"):
        assert main(["golden", "verify", "bert-tiny-sst2", str(candidate)]) == 0
        assert "note: the candidate is the kit itself" in capsys.readouterr().out
    save_file({VALUES: open_kit().arrays[VALUES]}, tmp_path / "x.safetensors")
    assert main(["golden", "verify", "bert-tiny-sst2", str(tmp_path / "x.safetensors")]) == 0
    assert "note:" not in capsys.readouterr().out


# What would not show


def test_every_known_mistake_in_single_numbers_shows_in_the_kit(kit: Kit) -> None:
    assert verify(kit, kit.arrays).unseen == {}
    assert verify(kit, computed(kit, "codec", "operator")).unseen == {}
    codes = "codec/E4M3FN/nearest-saturating"  # all boundaries: whatever shows, shows here
    assert verify(kit, {codes: kit.arrays[codes]}).unseen == {}
    name = "operator/quantize-e4m3/codes"
    assert RECIPROCAL in verify(kit, {name: kit.arrays[name]}).unseen["quantize"]


def test_unseen_mistakes_are_those_that_change_nothing(kit: Kit) -> None:
    """Ones and zeros are right with nearly every mistake; a tie shows that of ties."""
    scale = np.asarray(np.float32(1))
    how = {"fmt": "E4M3FN"}

    def small(x: list[float]) -> tuple[Kit, Arrays]:
        numbers = np.array(x, np.float32)
        tensors = {
            "operator/x": Tensor("operator/x", "operator", "given"),
            "operator/s": Tensor("operator/s", "operator", "given"),
            "operator/q": Tensor("operator/q", "operator", "quantize",
                                 {"x": Reference("operator/x"), "scale": Reference("operator/s")},
                                 how, "codes", "E4M3FN"),
        }  # fmt: skip
        codes = quantize(numbers, E4M3FN, scale).codes
        arrays = {"operator/x": numbers, "operator/s": scale, "operator/q": codes}
        return Kit({}, tensors, arrays), {"operator/q": codes}

    plain = verify(*small([0.0, 1.0])).unseen["quantize"]
    assert {"ties rounded away from zero", RECIPROCAL, "truncation"} <= set(plain)
    ties = verify(*small([0.0, 1.0, 1.0625])).unseen[
        "quantize"
    ]  # halfway from 1 to 1.125: to the even 1
    assert set(plain) - set(ties) >= {"ties rounded away from zero"}
    assert "ties rounded toward zero" in ties  # as the tie went
    report = verify(*small([1.5]))
    assert report.as_json()["unseen"] == {"quantize": list(report.unseen["quantize"])}
    assert f"would not show: quantize: {report.unseen['quantize'][0]}" in report.text()
    kit_, found = small([1.0625])
    found["operator/q"] = found["operator/q"] + np.uint8(1)
    assert verify(kit_, found).unseen == {}  # it fails anyway


def by_the_reciprocal(kit: Kit) -> Arrays:
    """A layer-only dump, each code by x * (1 / scale) in float32, encoded by a table."""
    table = E4M3FN.values[:0x7F]
    middles = (table[:-1] + table[1:]) / 2

    def encoded(y: np.ndarray) -> np.ndarray:
        magnitude = np.abs(y).astype(np.float64)
        index = np.searchsorted(middles, magnitude, side="left")
        tie = (index < len(middles)) & (middles[np.minimum(index, len(middles) - 1)] == magnitude)
        index = index + (tie & (index % 2 == 1))
        return (index | np.where(np.signbit(y), 0x80, 0)).astype(np.uint8)

    found = computed(kit, "layer")
    for name in found:
        if kit.tensors[name].operation == "quantize":
            x, scale = kit.inputs(name)["x"], kit.inputs(name)["scale"]
            assert np.array_equal(encoded(x / scale), found[name])
            found[name] = encoded(x * (np.float32(1) / scale))
    return found


def test_a_layer_that_multiplies_by_the_reciprocal_is_caught(kit: Kit) -> None:
    """In nearly every tensor of codes, and named; the right layer is not accused."""
    right = computed(kit, "layer")
    assert verify(kit, right).passed
    assert RECIPROCAL not in verify(kit, right).unseen["quantize"]
    found = by_the_reciprocal(kit)
    report = verify(kit, found)
    codes = [name for name in found if kit.tensors[name].operation == "quantize"]
    assert len(report.differences) >= len(codes) * 3 // 4
    assert {item.name for item in report.differences} <= set(codes)
    assert all(RECIPROCAL in item.causes for item in report.differences)
    sites = {item.name.partition("encoder")[2] for item in report.differences}
    assert len(sites) >= 18  # of 20
    assert not verify(kit, found, "accumulate-order").passed


def test_double_precision_quotients_show_in_layers_too(kit: Kit) -> None:
    """The float32 quotient is a tie where the exact one is beside it."""
    shown = 0
    for name in computed(kit, "layer"):
        if kit.tensors[name].operation == "quantize":
            x, scale = (v.astype(np.float64) for v in kit.inputs(name).values())
            magnitude = np.abs(x / scale)
            nearest = np.abs(magnitude[..., None] - E4M3FN.values[:0x7F]).argmin(-1)
            shown += int((nearest != (kit.arrays[name] & 0x7F)).sum())
    assert shown > 0


def test_the_examples_of_the_page(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "kit.md").read_text(encoding="utf-8")
    report = verify(kit, computed(kit, "layer"))
    example = page.split("```text\nconsistent")[1].split("```")[0].splitlines()
    lines = report.text().splitlines()
    assert ["consistent" + example[0], *example[1:-1]] == lines[: len(example) - 1]
    assert lines[len(example) - 1].startswith("would not show: quantize: ")
    shown = example[-1].removeprefix("would not show: quantize: ").removesuffix(", ...").split(", ")
    assert len(shown) > 1
    assert set(shown) <= set(report.unseen["quantize"])
    main(["golden", "list", "bert-tiny-sst2", "--operation", "softmax", "--level", "operator"])
    assert f"```text\n{capsys.readouterr().out}```" in page
    codes = [name for name, tensor in kit.tensors.items() if tensor.operation == "quantize"]
    layers = [name for name in codes if kit.tensors[name].level == "layer"]
    wrong = verify(kit, by_the_reciprocal(kit)).differences
    assert f"{len(wrong)} of the {len(layers)} tensors of codes" in page
    count = sum(kit.arrays[name].size for name in layers)
    assert f"all {count:,} codes" in " ".join(page.split())


# Scales that tell


@pytest.mark.parametrize("fmt", [E4M3FN, INT8])
def test_a_telling_scale_is_near_and_tells(fmt: Any) -> None:
    rng = np.random.default_rng(8)
    for _ in range(5):
        x = bert_numpy_bfloat16(rng.standard_normal(600))
        start = np.float32(np.abs(x).max() / fmt.max)
        scale = telling_scale(x, float(start), fmt)
        assert scale.dtype == np.float32
        assert -0.002 < scale / start - 1 < 0.008
        values = np.unique(np.abs(fmt.values[np.isfinite(fmt.values)]))
        middles = (values[:-1] + values[1:]) / 2
        assert np.isin(np.abs(x / scale), middles).any()
        assert (np.abs(x / scale) < (values[-1] * 1.01)).all()
        reciprocal = x * (np.float32(1) / scale)
        assert (np.isin(np.abs(reciprocal), middles) != np.isin(np.abs(x / scale), middles)).any()
    assert telling_scale(np.zeros(3, np.float32), 0.5, fmt) == np.float32(0.5)


def bert_numpy_bfloat16(x: np.ndarray) -> np.ndarray:
    """Cut float32 numbers to bfloat16."""
    bits = x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


@pytest.mark.parametrize("recipe", ["e4m3", "int8", "mixed", "e4m3-flash", "mxfp4", "nvfp4",
                                    "int8-asymmetric", "e4m3-pow2", "e4m3-token"])  # fmt: skip
def test_telling_scales_of_every_kind_of_recipe(recipe: str) -> None:
    """The kit is the golden run of the model with these scales; others stay as they were."""
    model = bert_numpy.load("bert-tiny-sst2")
    inputs = {"input_ids": np.array([[101, 2025, 3294, 6659, 102]])}
    calibration = calibrate(model, [inputs], golden=True)
    golden = apply_recipe(model, PRESETS[recipe], calibration, golden=True)
    chosen = with_telling_scales(golden, inputs)
    made = make_kit(("layer", "model"), chosen, {}, [inputs])
    assert made.arrays["model/0/logits"].tobytes() == chosen(**inputs).logits.tobytes()
    moved = 0
    for site, plan in golden.plans.items():
        for side in ("a", "b"):
            before, after = getattr(plan, side), getattr(chosen.plans[site], side)
            assert (before is None) == (after is None)
            if before is not None:
                assert before.zero_point == after.zero_point
                assert abs(float(after.scale) / float(before.scale) - 1) < 0.01
                moved += float(after.scale) != float(before.scale)
    assert (moved > 0) == (recipe not in ("mxfp4", "nvfp4", "e4m3-pow2"))
    report = verify(
        made, {n: x for n, x in made.arrays.items() if made.tensors[n].operation != "given"}
    )
    assert report.verdict == "passed"
    if recipe in ("e4m3", "e4m3-flash", "int8"):
        assert RECIPROCAL not in report.unseen.get("quantize", ())


def test_given_scales_are_taken_as_they_are(tmp_path: Path) -> None:
    sentences = str(ROOT / "bert_numpy" / "assets" / "reviews" / "train.tsv")
    scales, inputs = str(tmp_path / "scales.safetensors"), tmp_path / "inputs.json"
    inputs.write_text('["a warm and funny film"]')
    command = ["calibrate", "bert-tiny-sst2", "--out", scales, "--calibration-data", sentences]
    assert main(command) == 0
    calibration = bert_numpy.load_calibration(scales)
    export = ["golden", "export", "bert-tiny-sst2", "--inputs", str(inputs), "--level", "layer"]
    assert main([*export[:3], str(tmp_path / "a"), *export[3:], "--calibration", scales]) == 0
    assert main([*export[:3], str(tmp_path / "b"), *export[3:]]) == 0
    given, free = open_kit(tmp_path / "a"), open_kit(tmp_path / "b")
    site = "encoder.layer.0.attention.self.query"
    right = np.float32(calibration.operands[f"{site}:a"].absmax / np.float32(448))
    name = f"scales/{site}/a.scale"
    assert given.arrays[name] == right
    assert "scales" not in given.header
    # No bfloat16 number at all would show it with a scale of the calibration.
    numbers = (np.arange(0x80, 0x7F00, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    for place, scale in given.arrays.items():
        if place.endswith(("/a.scale", "/b.scale")) and place.startswith("scales/"):
            numbers_ = numbers[numbers < 500 * scale]
            codes, reciprocals = (
                quantize(x, E4M3FN, s).codes
                for x, s in (
                    (numbers_, scale),
                    (numbers_ * (np.float32(1) / scale), np.float32(1)),
                )
            )
            assert np.array_equal(codes, reciprocals), place
    assert free.arrays[name] != right
    assert "ties" in free.header["scales"]
    assert RECIPROCAL in verify(given, computed(given, "layer")).unseen["quantize"]


# On the command line


@pytest.fixture
def codec(kit: Kit, tmp_path: Path) -> str:
    path = tmp_path / "codec.safetensors"
    save_file(computed(kit, "codec"), path)
    return str(path)


def test_exit_codes(
    kit: Kit, codec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_ = ["golden", "verify", "bert-tiny-sst2", codec]
    for options, code, verdict in (
        ([], 0, "consistent as far as given"),
        (["--require", "codec"], 0, "passed: codec complete"),
        (["--require", "codec", "--require", "layer"], 1, "FAILED"),
        (["--complete"], 1, "FAILED"),
    ):
        file = tmp_path / "report.json"
        assert main([*verify_, *options, "--json", str(file)]) == code, options
        report = json.loads(file.read_text())
        out = capsys.readouterr().out
        assert out.startswith(verdict.partition(":")[0])
        assert (report["verdict"], report["passed"]) == (verdict, code == 0)
        assert report["complete"] is False
        assert report["coverage"]["layer"]["sum"] == {"given": 0, "missing": 32}
        rest = len(computed(kit, "operator", "layer", "model"))
        lacking = {"layer": 164, "--complete": rest}.get(options[-1] if options else "", 0)
        assert len(report["lacking"]) == lacking
        assert ("missing: of " in out) == bool(lacking)
    with pytest.raises(SystemExit) as ended:
        main([*verify_, "--require", "layers"])
    assert ended.value.code == 2
    save_file({"codec/E4M3FN/codes": kit.arrays["codec/E4M3FN/codes"]}, tmp_path / "i.safetensors")
    assert main(["golden", "verify", "bert-tiny-sst2", str(tmp_path / "i.safetensors")]) == 2
    assert "found only inputs of the kit" in capsys.readouterr().err


def test_list_command(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["golden", "list", "bert-tiny-sst2", "--operation", "sum", "--level", "operator"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    expected = [case.name for case in kit.cases("sum", "operator")]
    assert [line.split()[0] for line in lines[1:-1]] == expected
    assert re.search(
        r"gemm-e4m3/sum +sum +a 16x64, b 64x16 +float32 16x16", "\n".join(lines)
    ) or any(line.startswith("operator/gemm-e4m3/sum ") and "float32 " in line for line in lines)
    assert lines[-1] == f"{len(expected)} tensors of {len(kit.tensors):,}"
    two = ["--operation", "softmax", "--operation", "given", "--level", "codec", "--level", "layer"]
    assert main(["golden", "list", "bert-tiny-sst2", *two, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["tensors"]
    assert {entry["operation"] for entry in found} == {"softmax", "given"}
    assert {entry["level"] for entry in found} == {"codec", "layer"}
    assert all(list(kit.arrays[entry["name"]].shape) == entry["shape"] for entry in found)
    assert main(["golden", "list", "bert-tiny-sst2", "--json", "-"]) == 0
    every = [entry["name"] for entry in json.loads(capsys.readouterr().out)["tensors"]]
    assert every == list(computed(kit, *LEVELS)) == [case.name for case in kit.cases()]
    assert main(["golden", "list", "bert-tiny-sst2", "--operation", "sums"]) == 2
    assert "did you mean 'sum'?" in capsys.readouterr().err


def test_info_command(kit: Kit, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["golden", "info", "bert-tiny-sst2", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    every = len(computed(kit, *LEVELS))
    assert (found["tensors"], found["computed"]) == (len(kit.tensors), every)
    assert found["given"] == len(kit.tensors) - every
    assert sum(found["levels"]["layer"].values()) == 164
    assert found["model"]["name"] == "bert-tiny-sst2"
    assert found["recipe"]["name"] == "e4m3"
    assert found["inputs"] == {"model/0": 7, "model/1": 8}
    folder = ROOT / "bert_numpy" / "assets" / "bert-tiny-sst2-kit"
    assert found["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert main(["golden", "info", "bert-tiny-sst2"]) == 0
    text = capsys.readouterr().out
    codec = len(computed(kit, "codec"))
    assert f"codec     {codec}: decode 15, encode {codec - 15}" in text
    assert (
        main(["golden", "export", "bert-tiny-sst2", str(tmp_path / "k"), "--level", "codec"]) == 0
    )
    capsys.readouterr()
    assert main(["golden", "info", str(tmp_path / "k")]) == 0
    assert not re.search("^(model|recipe|inputs) ", capsys.readouterr().out, re.M)
    assert repr(open_kit(tmp_path / "k")) == f"<Kit: {codec + 30} tensors, computed: codec {codec}>"
    assert repr(kit).startswith("<Kit of bert-tiny-sst2, e4m3: ")


def test_cases(kit: Kit) -> None:
    assert [case.name for case in kit.cases()] == list(computed(kit, *LEVELS))
    assert {case.level for case in kit.cases("sum")} == {"operator", "layer"}
    for arguments in (("sums",), (None, "codecs"), ("sum", "Layer")):
        with pytest.raises(BertNumpyError, match="expected one of"):
            kit.cases(*arguments)  # at once, not when the first case is asked for


# The page


def page_of(kit: Kit, candidate: Arrays) -> str:
    return html_report(kit, verify(kit, candidate), candidate)


@pytest.fixture(scope="module")
def wrong(kit: Kit) -> Arrays:
    """A candidate with a wrong GELU, everything after it, and layer 1 of one input left out."""
    from bert_numpy.kit.operations import OPERATIONS  # noqa: PLC0415

    found: Arrays = {}
    for name, tensor in kit.tensors.items():
        if tensor.operation != "given" and tensor.level in ("layer", "model"):
            inputs = kit.inputs(name, lambda n: found.get(n, kit.arrays[n]))
            found[name] = OPERATIONS[tensor.operation](inputs, tensor.attributes)
            if name == "model/0/encoder.layer.0.intermediate.dense/gelu":
                found[name] = kit.arrays[name] * np.float32(2)
    return {n: x for n, x in found.items() if not n.startswith("model/1/encoder.layer.1")}


def test_the_picture_has_every_tensor_of_the_network(kit: Kit, wrong: Arrays) -> None:
    report = verify(kit, wrong)
    pictures = network_pictures(kit, report)
    assert list(pictures) == ["model/0", "model/1"]
    for case, picture in pictures.items():
        root = ET.fromstring(f"<x>{picture}</x>")
        titles = [title.text or "" for title in root.iter("title")]
        names = [name for name in computed(kit, "layer", "model") if name.startswith(f"{case}/")]
        assert [title.split(": ")[0] for title in titles] == [x.split("/")[-1] for x in names]
        differing = {item.name: item.root for item in report.differences}
        for name, title in zip(names, titles, strict=True):
            words = {True: "goes wrong here", False: "follows from something wrong"}
            equal = "equal" if name in wrong else "not given"
            assert title.endswith(": " + words.get(differing.get(name), equal)), name
        parts = [part.get("aria-label") for part in root]
        assert parts == ["embeddings", "layer 0", "layer 1", "head"]
    assert pictures["model/0"].count("first: gelu") == 1
    assert "first: " not in pictures["model/1"]


def test_the_page_writes_numbers_as_people_do(kit: Kit, wrong: Arrays) -> None:
    page = page_of(kit, wrong)
    assert not re.search(r"\d[eE][+-]?\d+ (%|ulp|dB)", page)
    assert re.search(r"<span>100 %, [\d,]+ ulp, -?[\d.]+ dB</span>", page)
    assert "http" not in page
    assert "viewport" in page


def test_percent() -> None:
    for share, text in (
        (0.0, "0 %"), (1.0, "100 %"), (0.5, "50 %"), (0.999999, "99.99 %"), (0.996, "99.60 %"),
        (0.994, "99 %"), (0.0999, "10.0 %"), (1 / 3, "33 %"), (0.0234, "2.3 %"),
        (0.00021, "0.02 %"), (1e-4, "0.01 %"), (9e-5, "less than 0.01 %"),
    ):  # fmt: skip
        assert percent(share) == text


def test_pages_of_every_verdict(kit: Kit) -> None:
    good = page_of(kit, computed(kit, *LEVELS))
    assert '<h1 class="passed">passed</h1>' in good
    assert "goes wrong here" in good  # in the legend
    assert "first: " not in good
    part = page_of(kit, computed(kit, "codec"))
    assert '<h1 class="consistent">consistent as far as given</h1>' in part
    assert "Where in the network" not in part
