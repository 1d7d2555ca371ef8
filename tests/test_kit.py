"""The conformance kit: it equals the model's results, and names defects planted in a candidate."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import kit_backends
import numpy as np
import pytest
from conftest import ROOT
from factories import write_checkpoint

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, apply_recipe, calibrate
from bert_numpy.commands.main import main
from bert_numpy.kit import open_kit, verify
from bert_numpy.kit.attention_defects import attention_defects
from bert_numpy.kit.attention_operations import ATTENTION_OPERATIONS
from bert_numpy.kit.block_defects import PLAIN_RULES
from bert_numpy.kit.block_operations import BLOCK_OPERATIONS
from bert_numpy.kit.candidate import load_candidate
from bert_numpy.kit.checks import check_entry
from bert_numpy.kit.defects import DEFECTS
from bert_numpy.kit.embedding_defects import embedding_defects
from bert_numpy.kit.evaluation import Evaluation
from bert_numpy.kit.export import make_kit, read_inputs
from bert_numpy.kit.function_defects import function_defects
from bert_numpy.kit.manifest import LEVELS, PROFILES, Kit, Reference, Tensor, manifest_of, write_kit
from bert_numpy.kit.operand_defects import Together
from bert_numpy.kit.operations import OPERATIONS, RULES
from bert_numpy.kit.product_defects import product_defects
from bert_numpy.pytest_plugin import golden_kit  # noqa: F401 (a fixture)
from npfp8.bfloat16 import round_to_bfloat16, to_bits
from npfp8.codec import ROUNDINGS
from npfp8.formats import FLOAT_FORMATS
from npfp8.mistakes import encoder_mistakes
from npfp8.mistakes.decoders import decoder_mistakes
from npfp8.storage import Bfloat16Array, save_file

EMBEDDED = ROOT / "bert_numpy" / "assets" / "bert-tiny-sst2-kit"
INPUTS = ROOT / "scripts" / "kit_inputs.json"
SITE = "model/0/encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def kit() -> Kit:
    return open_kit()


def computed(kit: Kit, *levels: str) -> dict[str, np.ndarray]:
    return {
        name: kit.arrays[name]
        for name, tensor in kit.tensors.items()
        if tensor.operation != "given" and tensor.level in levels
    }


# The kit


def test_every_tensor_is_its_operation_of_its_inputs(kit):
    """The manifest explains the kit: nothing but what it names goes into a tensor."""
    for name, tensor in kit.tensors.items():
        if tensor.operation != "given":
            x = OPERATIONS[tensor.operation](kit.inputs(name), tensor.attributes)
            assert x.tobytes() == kit.arrays[name].tobytes(), name
    assert set(RULES) == {"given", *OPERATIONS}


def test_embedded_kit_is_small_and_exported_again_the_same(tmp_path, capsys):
    files = [path.read_bytes() for path in EMBEDDED.iterdir()]
    assert sum(map(len, files)) <= 3_300_000
    assert sum(len(zlib.compress(data, 9)) for data in files) <= 1_500_000  # in the wheel
    for name in ("a", "b"):
        command = ["golden", "export", "bert-tiny-sst2", str(tmp_path / name)]
        assert main([*command, "--recipe", "e4m3", "--inputs", str(INPUTS)]) == 0
    capsys.readouterr()
    for file in ("manifest.json", "tensors.safetensors"):
        written = (tmp_path / "a" / file).read_bytes()
        assert written == (tmp_path / "b" / file).read_bytes()
        assert written == (EMBEDDED / file).read_bytes()


def test_logits_are_the_golden_models(kit):
    model = bert_numpy.load("bert-tiny-sst2")
    assert kit.header["recipe"]["name"] == "e4m3"
    folder = ROOT / "bert_numpy" / "assets" / "bert-tiny-sst2"
    for name, digest in kit.header["model"]["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    for i, inputs in enumerate(read_inputs(INPUTS, bert_numpy.load_tokenizer("bert-tiny-sst2"))):
        exact = model(**inputs).logits
        assert np.abs(exact - kit.arrays[f"model/{i}/logits"]).max() < 0.5


def test_others_read_the_kit(kit):
    """By the safetensors library and json alone: names, dtypes, shapes and digests."""
    manifest = json.loads((EMBEDDED / "manifest.json").read_text())
    data = (EMBEDDED / "tensors.safetensors").read_bytes()
    from safetensors import deserialize  # noqa: PLC0415

    stored = dict(deserialize(data))
    assert len(stored) == len(manifest["tensors"])
    dtypes = {"bfloat16": {"BF16"}, "float32": {"F32"}, "integers": {"I64"}}
    for entry in manifest["tensors"]:
        tensor = stored[entry["name"]]
        assert hashlib.sha256(tensor["data"]).hexdigest() == entry["sha256"]
        assert tensor["shape"] == entry["shape"]
        codes = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "U8", "I8"}
        assert tensor["dtype"] in dtypes.get(entry["kind"], codes)
        assert entry["operation"] in manifest["operations"]
    levels = {entry["level"] for entry in manifest["tensors"]}
    assert levels == set(LEVELS)


@pytest.mark.parametrize("recipe", PRESETS)
def test_every_recipe_is_explained(recipe, tmp_path):
    """The recorder itself compares each step with the engine's own result, to the last bit."""
    model = bert_numpy.load("bert-tiny-sst2")
    ids = np.array([[101, 2025, 3294, 6659, 102]])
    by_gptq = PRESETS[recipe].by_gptq  # whose codes are made first, in floating point
    calibration = calibrate(model, [{"input_ids": ids}], golden=not by_gptq, hessians=by_gptq)
    if by_gptq:
        model = apply_recipe(model, PRESETS[recipe], calibration)
    golden = apply_recipe(model, PRESETS[recipe], calibration, golden=True)
    inputs = {"input_ids": ids, "attention_mask": np.array([[0, 1, 1, 0, 1]])}
    made = make_kit(("layer", "model"), golden, {}, [inputs])
    logits = golden(**inputs).logits
    assert made.arrays["model/0/logits"].tobytes() == logits.tobytes()
    write_kit(made, tmp_path / "kit")
    again = open_kit(tmp_path / "kit")
    assert manifest_of(again) == manifest_of(made)
    assert verify(again, computed(again, *LEVELS)).passed


def test_a_recipe_with_another_accumulator_is_explained():
    """Its sums are the accumulator's; another order of the exact ones is out of its reach."""
    model = bert_numpy.load("bert-tiny-sst2")
    inputs = {"input_ids": np.array([[101, 2025, 3294, 6659, 102]])}
    calibration = calibrate(model, [inputs], golden=True)
    recipe = replace(PRESETS["e4m3"], accumulate="hopper-fast")
    golden = apply_recipe(model, recipe, calibration, golden=True)
    made = make_kit(("layer", "model"), golden, {}, [inputs])
    assert made.tensors[f"{SITE}/sum"].attributes["accumulate"] == "hopper-fast"
    assert verify(made, computed(made, *LEVELS)).passed
    assert f"{SITE}/sum" in verify(made, computed(made, "layer"), "accumulate-order").failures


def test_levels_are_parts(kit, tmp_path):
    for level in ("codec", "operator"):
        part = make_kit([level])
        assert set(part.tensors) == {n for n, t in kit.tensors.items() if t.level == level}
    out = tmp_path / "layers"
    command = ["golden", "export", "bert-tiny-sst2", str(out), "--level", "layer"]
    assert main([*command, "--inputs", str(INPUTS)]) == 0
    layers = open_kit(out)
    assert layers.tensors["model/0/embeddings/layer_norm"].operation == "given"
    assert set(computed(layers, "layer")) == set(computed(kit, "layer"))
    assert "model/0/logits" not in layers.tensors


# Verifying


def test_the_kit_itself_passes_every_profile(kit):
    for profile in ("bit-exact", "accumulate-order", "statistical"):
        report = verify(kit, kit.arrays, profile)
        assert report.passed, report.text()
        assert (report.first, report.missing) == (None, 0)


def plant(kit, defect, *levels):
    evaluation = Evaluation(kit, lambda name: None, defect, "", np.zeros(0))
    with np.errstate(all="ignore"):
        found = {name: evaluation.value(name) for name in computed(kit, *levels)}
    # A layout may take more or fewer bytes, which a kit refuses at once.
    return {name: x for name, x in found.items() if x.shape == kit.arrays[name].shape}


#: What two sentences do not bring about: no saturation, no NaN, no integers.
_NOT_IN_THE_MODEL = {
    "overflow that does not saturate",
    "NaN clamped to the largest value",
    "E5M2FNUZ instead of E5M2",
    "E4M3FN instead of E4M3FNUZ",
    "E5M2 instead of E5M2FNUZ",
    # Here the sums are exact, of one scale per tensor, and no format is CDNA3's.
    "exact sums, rounded once",
    "exact sums of blocks of K, added in float32",
    "accumulation in CDNA3's matrix cores",
    "zero point left out",
    "clipping to one code beyond the smallest",
    "zero point off by one",
    "clipping before the zero point is added",
    "softmax without taking the largest element off",
    # Its numbers are neither NaN nor infinite, nor beyond the largest value, nor subnormal.
    "rounding beyond the largest value not clamped",
    "overflow that wraps around",
    "infinity encoded as NaN",
    "sign lost where it saturates",
    "subnormals of the input flushed to zero",
    "NaN encoded as zero",
    "NaN encoded by the upper bits of its payload",
    "ties rounded away from zero in subnormals",
    "ties rounded toward zero in subnormals",
}


def mistakes_of(rounding):
    """Name the mistakes of encoders that round so, in every format and with any overflow."""
    ways = ((True, "ieee"), (False, "ieee"), (False, "special"))
    return {
        name
        for fmt in FLOAT_FORMATS.values()
        for saturate, overflow in ways
        for name, _ in encoder_mistakes(fmt, saturate, rounding, overflow)
    }


_OF_ROUNDINGS = {rounding: mistakes_of(rounding) for rounding in ROUNDINGS[:-1]}

#: The mistakes of encoders and decoders that are not this model's, which saturates.
_OF_OTHER_CODECS = set().union(*_OF_ROUNDINGS.values()) | {
    name for fmt in FLOAT_FORMATS.values() for name, _ in decoder_mistakes(fmt)
}
_OF_OTHER_CODECS -= {name for name, _ in encoder_mistakes("E4M3FN")}

#: The mistakes of the one rounding that no case has, and one whose limit the candidate gives.
_OF_NO_CASE = _OF_ROUNDINGS.pop("nearest_toward_zero") - set().union(*_OF_ROUNDINGS.values())
_OF_NO_CASE |= {"zero up to too large a value"}


#: The defects of operations that a model of scales per tensor does not have.
_OF_BLOCKS = {defect.name for defect in DEFECTS} - {
    defect.name
    for defect in DEFECTS
    if not defect.operations.keys() <= {*BLOCK_OPERATIONS, "dequantize"}
}

#: The defects of a fused attention, which this model does not have.
_OF_ATTENTION = {name for name, _ in attention_defects()} - {
    defect.name
    for defect in DEFECTS
    if not defect.operations.keys() <= {*ATTENTION_OPERATIONS, "encode", "sum"}
}

#: Tiles of as many keys as the cases have, or more; tests/test_attention_kit.py plants these.
_NOT_IN_THE_CASES = {
    name
    for name, size in ((name, name.removeprefix("tiles of ")) for name in _OF_ATTENTION)
    if size != name and int(size.removesuffix(" keys")) >= 37
}


#: tests/test_kit_diagnoses.py plants these as others write them: some show in a model alone, some
#: nowhere in this kit, and of some each part alone is another defect.
_PLANTED_ELSEWHERE = {
    name for name, _ in (*product_defects(), *function_defects(), *embedding_defects())
} - {
    "scale inverted",
    "scales multiplied one after the other",
}


@pytest.mark.parametrize("name", dict.fromkeys(defect.name for defect in DEFECTS))
def test_each_planted_defect_is_named(kit, name, monkeypatch):
    """In the codec's and operators' cases and inside the model, wherever it changes a bit.

    Only the defects that may be named are tried: what the others make is no matter here.
    """
    shown = {"operator": 0, "model": 0}
    plain = {f"the rule {rule}" for rule in PLAIN_RULES} if name.startswith("the rule ") else set()
    # What a plain rule makes is a plain rule's, whoever makes it too.
    names = {name, name.removesuffix(" computed in bfloat16")} | plain
    tried = tuple(defect for defect in DEFECTS if defect.name in names)
    monkeypatch.setattr("bert_numpy.kit.diagnosis.DEFECTS", tried)
    for defect in (defect for defect in DEFECTS if defect.name == name):
        if isinstance(defect.operations, Together):
            continue
        for part, levels in (("operator", ("codec", "operator")), ("model", ("layer", "model"))):
            planted = plant(kit, defect, *levels)
            if all(x is kit.arrays[name] for name, x in planted.items()):
                continue  # the kit itself, which passes: test_the_kit_itself_passes_every_profile
            report = verify(kit, planted)
            roots = [item for item in report.differences if item.root]
            assert all(names & set(item.causes) for item in roots)
            assert report.first is None or report.first.root
            shown[part] += len(roots)
    if name in _PLANTED_ELSEWHERE:
        return
    assert (shown["operator"] == 0) == (name in _NOT_IN_THE_CASES | _OF_NO_CASE)
    elsewhere = _NOT_IN_THE_MODEL | _OF_OTHER_CODECS | _OF_NO_CASE | _OF_BLOCKS | _OF_ATTENTION
    assert (shown["model"] == 0) == (name in elsewhere)


def sums(kit, site):
    return kit.inputs(f"{site}/sum")


def independent(kit):
    """Defects by their own few lines of NumPy, at one product inside the model."""
    a, b = (np.where(np.isnan(v := _e4m3(codes)), 0, v) for codes in sums(kit, SITE).values())
    x, scale = kit.inputs(f"{SITE}/a").values()
    product = kit.arrays[f"{SITE}/product"]
    total = np.zeros((a.shape[0], b.shape[1]), np.float16)
    stored = kit.arrays["weights/encoder.layer.0.attention.self.query.weight"]
    bits = product.view(np.uint32)
    gelu = kit.inputs("model/0/encoder.layer.0.intermediate.dense/gelu")["x"].astype(np.float64)
    with np.errstate(over="ignore"):
        inner = 1 + np.exp(-2 * np.sqrt(2 / np.pi) * (gelu + 0.044715 * gelu**3))
        for k in range(a.shape[1]):
            total = (total + a[:, k, None] * b[k]).astype(np.float16)
    return {
        "float16 accumulation": ("sum", total.astype(np.float32)),
        "right operand not transposed": ("sum", (a @ _e4m3(stored)).astype(np.float32)),
        "scale inverted": ("product", _with_bias(kit, lambda s, p, q: s / (p * q))),
        "scales multiplied one after the other": (
            "product",
            _with_bias(kit, lambda s, p, q: s * p * q),
        ),
        "bfloat16 results truncated": (
            "result",
            (bits & np.uint32(0xFFFF0000)).view(np.float32),
        ),
        "GELU by tanh instead of erf, or the other way round": (
            "model/0/encoder.layer.0.intermediate.dense/gelu",
            round_to_bfloat16(gelu / inner),
        ),
        "E4M3FNUZ instead of E4M3FN": ("a", _fnuz(x / scale)),
    }


def _e4m3(codes):
    """E4M3FN's values by its fields."""
    codes = codes.astype(np.int64)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    magnitude = np.where((codes & 0x7F) == 0x7F, np.nan, magnitude)
    return np.where(codes & 0x80, -magnitude, magnitude)


def _fnuz(x):
    """Codes of x by E4M3FNUZ's bias: those of 2 x in E4M3FN, where neither ends."""
    table = _e4m3(np.arange(0x7F)) / 2
    magnitude = np.abs(x).astype(np.float64)
    index = np.searchsorted((table[:-1] + table[1:]) / 2, magnitude)
    index = np.minimum(index, 0x7F)
    top = magnitude >= 232
    index = np.where(top, 0x7F, index)
    return np.where(index == 0, 0, index | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def _with_bias(kit, change):
    total, a_scale, b_scale, bias = kit.inputs(f"{SITE}/product").values()
    return change(total, a_scale, b_scale) + bias


def test_defects_written_out_are_named(kit):
    for cause, (what, x) in independent(kit).items():
        name = what if what.startswith("model/") else f"{SITE}/{what}"
        report = verify(kit, {name: x})
        assert report.first is not None, cause
        assert cause in report.first.causes, (cause, report.text())


def test_only_logits_are_enough(kit):
    """The tensors in between are computed with the defect throughout."""
    (defect,) = (defect for defect in DEFECTS if defect.name == "bfloat16 accumulation")
    planted = plant(kit, defect, "layer", "model")
    logits = {name: planted[name] for name in ("model/0/logits", "model/1/logits")}
    report = verify(kit, logits)
    assert len(report.differences) == 2
    assert all("bfloat16 accumulation" in item.causes for item in report.differences)
    assert "cause: bfloat16 accumulation" in report.text()


@pytest.mark.parametrize("limit", [0x7D, 0x70, 0x60])
def test_saturation_anywhere_is_named(kit, limit):
    """At any value, and from any on: the limit is read off the candidate."""
    name = "codec/E4M3FN/nearest-saturating"
    right, x = kit.arrays[name], kit.inputs(name)["x"]
    magnitude, sign = right & 0x7F, right & 0x80
    nan = np.isnan(x)
    clamped = np.where(nan, right, np.minimum(magnitude, limit) | sign).astype(np.uint8)
    report = verify(kit, {name: clamped})
    assert report.first.causes == ("saturation at too small a value",)
    early = np.where((magnitude >= limit) & ~nan, 0x7E | sign, right).astype(np.uint8)
    report = verify(kit, {name: early})
    assert report.first.causes[0] == "saturation from too small a value on"


def test_no_cause_is_made_up(kit):
    """One element off, or noise: differing elements are counted, and no cause is given."""
    name = f"{SITE}/a"
    codes = kit.arrays[name].copy()
    codes[2, 5] ^= 1
    report = verify(kit, {name: codes})
    assert report.first.causes == ()
    assert (report.first.different, report.first.index, report.first.ulp) == (1, (2, 5), 1.0)
    assert "no known one" in report.text()
    result = kit.arrays[f"{SITE}/result"].copy()
    result[0, 0], result[1, 1] = -result[0, 0], np.nan
    report = verify(kit, {f"{SITE}/result": result})
    assert (report.first.causes, report.first.different, report.first.ulp) == ((), 2, None)


def test_every_defect_is_tried_on_every_operation(kit):
    """One element off in a tensor of each operation and dtype: no defect makes that, or fails."""
    candidate, kinds = {}, set()
    for name, tensor in kit.tensors.items():
        kind = (tensor.operation, tensor.fmt, tensor.attributes.get("scale_fmt"))
        right = kit.arrays[name]
        if tensor.level != "operator" or tensor.operation == "given" or kind in kinds:
            continue
        if right.size < 2 or not np.isfinite(right.reshape(-1)[1]):
            continue
        kinds.add(kind)
        candidate[name] = right.copy()
        flat = candidate[name].reshape(-1)
        flat[1] = flat[1] + 3 if flat.dtype == np.float32 else flat[1] ^ 1
    report = verify(kit, candidate)
    every = {*BLOCK_OPERATIONS, *ATTENTION_OPERATIONS} - {"tensor_scale"}
    assert {item.operation for item in report.differences} >= every
    assert [item.name for item in report.differences if item.causes] == []


def test_a_defect_that_explains_only_some_is_not_given(kit):
    name = "codec/E4M3FN/nearest-saturating"
    codes = next(d for d in DEFECTS if d.name == "truncation").operations["encode"](
        kit.inputs(name), kit.tensors[name].attributes
    )
    assert verify(kit, {name: codes}).first.causes == ("truncation",)
    codes[np.flatnonzero(codes == 0x31)[0]] ^= 2
    assert verify(kit, {name: codes}).first.causes == ()


def test_first_is_in_the_order_of_the_data_flow(kit):
    candidate = dict(reversed(list(computed(kit, *LEVELS).items())))
    late, early = "model/0/logits", f"{SITE}/sum"
    for name in (late, early):
        candidate[name] = candidate[name] + np.float32(1)
    report = verify(kit, candidate)
    assert [item.name for item in report.differences] == [early, late]
    # What lies between was given and is right: both are places where something goes wrong.
    assert [item.root for item in report.differences] == [True, True]


def test_accumulate_order_takes_any_order_and_no_more(kit):
    rng = np.random.default_rng(5)
    for name in ("operator/gemm-k4096/sum", "operator/gemm-e4m3/sum", f"{SITE}/sum"):
        a, b = (_e4m3(codes).astype(np.float32) for codes in kit.inputs(name).values())
        order = rng.permutation(a.shape[1])
        total = np.zeros(kit.arrays[name].shape, np.float32)
        for k in order:
            total += a[:, k, None] * b[k]
        assert verify(kit, {name: total}, "accumulate-order").passed
        bound = 2.0**-24 * (a.shape[1] + 2) * (np.abs(a) @ np.abs(b))
        beyond = (kit.arrays[name] + 1.1 * bound + np.spacing(np.abs(kit.arrays[name]))).astype(
            np.float32
        )
        report = verify(kit, {name: beyond}, "accumulate-order")
        assert list(report.failures) == [name]
        assert "beyond the bound" in report.text()
    float16 = next(d for d in DEFECTS if d.name == "float16 accumulation")
    planted = plant(kit, float16, "operator")
    assert not verify(kit, planted, "accumulate-order").passed
    only = {name: x for name, x in planted.items() if name.endswith("k4096/result")}
    assert not verify(kit, only, "accumulate-order").passed  # through scaling and rounding


def test_accumulate_order_says_what_it_cannot_judge(kit):
    logits = {"model/0/logits": kit.arrays["model/0/logits"]}
    report = verify(kit, logits, "accumulate-order")
    assert "cannot be judged" in report.failures["model/0/logits"]


def test_statistical_limits(kit):
    name = f"{SITE}/result"
    noisy = round_to_bfloat16(kit.arrays[name] * np.float32(1.02))
    assert verify(kit, {name: noisy}, "statistical").passed
    report = verify(kit, {name: noisy}, "statistical", min_sqnr=60)
    assert "expected 60 dB or more" in report.failures[name]
    flipped = {"model/0/logits": kit.arrays["model/0/logits"][:, ::-1]}
    report = verify(kit, flipped, "statistical", min_sqnr=-100)
    assert report.failures == {"model/0/logits": "expected at most 0 flips, found 1"}
    assert verify(kit, flipped, "statistical", min_sqnr=-100, max_flips=1).passed
    infinite = kit.arrays[name].copy()
    infinite[0, 0] = np.inf
    assert "infinities" in verify(kit, {name: infinite}, "statistical").failures[name]


# Files


def test_verify_command(kit, tmp_path, capsys):
    right = tmp_path / "right.safetensors"
    sites = [f"{SITE}/{what}" for what in ("a", "sum", "result")]
    bfloat16 = Bfloat16Array(to_bits(kit.arrays[sites[2]]))
    save_file({sites[0]: kit.arrays[sites[0]], sites[2]: bfloat16}, right)
    assert main(["golden", "verify", "bert-tiny-sst2", str(right)]) == 0
    folder = tmp_path / "dumps"
    for name in sites:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = kit.arrays[name]
        with np.errstate(over="ignore"):
            np.save(path, x.astype(np.float16).astype(np.float32) if name.endswith("sum") else x)
    page, report = tmp_path / "report.html", tmp_path / "report.json"
    command = ["golden", "verify", str(EMBEDDED), str(folder)]
    assert main([*command, "--json", str(report), "--html", str(page)]) == 1
    found = json.loads(report.read_text())
    assert found["first"]["name"] == sites[1]
    assert found["first"]["causes"] == ["double rounding through float16"]
    assert (found["passed"], found["compared"], len(found["differences"])) == (False, 3, 1)
    html = page.read_text()
    assert "<svg" in html
    assert "http" not in html
    assert "double rounding through float16" in html
    assert "cause: double rounding through float16" in capsys.readouterr().out
    assert main([*command, "--profile", "accumulate-order"]) == 1


def npy_header(text):
    """The beginning of a NumPy file, and no data."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 119) + text.ljust(118).encode() + b"\n"


def test_candidates_that_cannot_be_read(kit, tmp_path):
    def refuse(candidate, message):
        with pytest.raises(BertNumpyError, match=message):
            verify(kit, candidate)

    refuse({}, "expected tensors")
    refuse({"model/0/logit": np.zeros(2)}, "'model/0/logit': expected a name of the kit's")
    refuse({"model/0/logits": np.zeros((1, 2))}, "expected float32, found float64")
    refuse({"model/0/logits": np.zeros((2, 1), np.float32)}, r"expected shape \(1, 2\)")
    refuse({f"{SITE}/a": np.zeros((7, 128), np.float32)}, "expected E4M3FN, found float32")
    refuse(
        {"codec/E2M1/nearest": np.full(kit.arrays["codec/E2M1/nearest"].shape, 16, np.uint8)},
        "below 16",
    )
    with pytest.raises(BertNumpyError, match="profile: expected one of"):
        verify(kit, kit.arrays, "close enough")
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,)"
    for name, content in (
        ("x.npy", b"no"),
        *(("x.npy", npy_header(header % shape + "}")) for shape in (10**15, 10**25)),
        ("x.npy", npy_header(header % 4)),
        ("x.npy", npy_header(header % 4 + "}")),
        ("x.safetensors", b"no"),
        ("x.txt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BertNumpyError, match=f"{name}: "):
            load_candidate(tmp_path / name, kit)
        assert main(["golden", "verify", "bert-tiny-sst2", str(tmp_path / name)]) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "missing.npy"):
        assert main(["golden", "verify", "bert-tiny-sst2", str(path)]) == 2
    assert main(["golden", "verify", str(empty), str(tmp_path / "x.npy")]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="bert-numpy kit 9"), "key 'format'"),
        (lambda m: m.update(tensors=[]), "key 'tensors'"),
        (lambda m: m["tensors"][1].update(colour="red"), "key 'colour'"),
        (lambda m: m["tensors"][1].pop("sha256"), "key 'sha256'"),
        (lambda m: m["tensors"][1].update(sha256="00"), "expected SHA-256 00"),
        (lambda m: m["tensors"][1].update(shape=[1]), "expected shape"),
        (lambda m: m["tensors"][1].update(operation="guess"), "key 'operation'"),
        (lambda m: m["tensors"][1].update(level="top"), "key 'level'"),
        (lambda m: m["tensors"][1].update(kind="codes", fmt="INT8"), "expected int8"),
        (lambda m: m["tensors"][1].update(fmt="E4M3FN"), "key 'fmt': expected none for float32"),
        (lambda m: m["tensors"][1].update(inputs={"codes": "later"}), "expected a tensor before"),
        (lambda m: m["tensors"][1]["inputs"].update(codes=["codec/E4M3FN/codes", "up"]), "view"),
        (lambda m: m["tensors"][1].update(inputs={"codes": []}), "expected a name, or one and"),
        (lambda m: m["tensors"][1].update(inputs={"codes": ["x", "", ""]}), "expected a name, or"),
        *(
            (
                lambda m, view=view: m["tensors"][1].update(
                    inputs={"codes": ["codec/E4M3FN/codes", view]}
                ),
                rf"input 'codes': expected a view of shape \(256,\), found '{view}'",
            )
            for view in ("merge_heads", "split_heads:x", "split_heads:7", "split_heads")
        ),
        (lambda m: m["tensors"][1].update(name="codec/E4M3FN/codes"), "expected a new one"),
        (lambda m: m["tensors"].pop(), "expected an entry"),
        (lambda m: m["tensors"][1].update(name="other"), "found none"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_one(tmp_path, change, message):
    manifest = json.loads((EMBEDDED / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "tensors.safetensors").write_bytes((EMBEDDED / "tensors.safetensors").read_bytes())
    with pytest.raises(BertNumpyError, match=message):
        open_kit(tmp_path)


def attributes_of(**changes):
    """A change of attributes; ... takes one away, and a dict changes an operand's."""

    def change(entry):
        for key, value in changes.items():
            if value is ...:
                del entry["attributes"][key]
            elif isinstance(value, dict):
                entry["attributes"][key] |= value
            else:
                entry["attributes"][key] = value

    return change


def inputs_of(**changes):
    def change(entry):
        for key, value in changes.items():
            if value is ...:
                del entry["inputs"][key]
            else:
                entry["inputs"][key] = value

    return change


SUM, SCALED = "operator/gemm-e4m3/sum", "operator/gemm-e4m3/product"
ENCODED, QUANTIZED = "codec/E4M3FN/nearest-saturating", "operator/quantize-uint8/codes"
NORM = "operator/layer_norm/result"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *(
            (name, attributes_of(**{key: ...}), f"attribute '{key}': expected, but missing")
            for name, keys in (
                (ENCODED, ("fmt", "saturate")),
                (SUM, ("a", "b")),
                (NORM, ("eps", "precision")),
                ("operator/activation/gelu", ("function", "precision")),
                ("operator/multiply/result", ("factor", "precision")),
            )
            for key in keys
        ),
        *(
            (name, inputs_of(**{key: ...}), f"input '{key}': expected, but missing")
            for name, keys in (
                (ENCODED, ("x",)),
                (SUM, ("a", "b")),
                (SCALED, ("sum", "a_scale")),
                (NORM, ("weight", "bias")),
                (QUANTIZED, ("x", "scale")),
            )
            for key in keys
        ),
        (ENCODED, attributes_of(fmt="E9M9"), "attribute 'fmt': expected 'E4M3FN' or"),
        (ENCODED, attributes_of(fmt=["E4M3FN"]), "attribute 'fmt': expected 'E4M3FN' or"),
        (ENCODED, attributes_of(fmt="E5M2"), "expected codes of E5M2, found E4M3FN"),
        (ENCODED, attributes_of(saturate=1), "attribute 'saturate': expected true or false"),
        (ENCODED, attributes_of(rounding="over"), "attribute 'rounding': expected 'nearest' or"),
        (ENCODED, attributes_of(colour="red"), "attribute 'colour': expected one of: fmt, sat"),
        (NORM, attributes_of(eps=float("nan")), "attribute 'eps': expected 0 or more"),
        (NORM, attributes_of(eps="1"), "attribute 'eps': expected 0 or more"),
        (NORM, inputs_of(weight="operator/layer_norm/x"), "whose shapes fit together"),
        (NORM, inputs_of(colour="operator/layer_norm/x"), "input 'colour': expected one of: x"),
        ("operator/multiply/result", attributes_of(factor=1e300), "expected a float32 number"),
        ("operator/multiply/result", attributes_of(factor=10**400), "expected a float32 num"),
        ("operator/activation/gelu", attributes_of(function="sin"), "'function': expected 'e"),
        (QUANTIZED, attributes_of(axis=7, block=1), "whose shapes fit together"),
        (QUANTIZED, attributes_of(axis=0, block=10**30), "'block': expected 1 or more, of 31"),
        (QUANTIZED, attributes_of(block=3), "a block without an axis"),
        (QUANTIZED, inputs_of(x="operator/quantize-e4m3/codes"), "expected numbers, found codes"),
        (SUM, attributes_of(a={"ndim": 9}), "whose shapes fit together"),
        (SUM, attributes_of(a={"fmt": "E5M2"}), "expected codes of E5M2, found E4M3FN"),
        (SUM, attributes_of(a={"colour": 1}), "attribute 'a': expected an object of fmt, ndim"),
        (SUM, attributes_of(accumulate="double"), "attribute 'accumulate': expected 'exact' or"),
        (SUM, inputs_of(a="operator/gemm-e4m3/b"), "whose shapes fit together"),
        (SUM, attributes_of(block=0), "attribute 'block': expected 1 or more, of 31 bits"),
        (SCALED, inputs_of(a_scale="operator/gemm-e4m3/bias"), "whose shapes fit together"),
        (SCALED, inputs_of(sum="operator/gemm-e4m3/bias"), "whose shapes fit together"),
        ("operator/add/result", inputs_of(y="operator/layer_norm/x"), "whose shapes fit together"),
        (SUM, lambda entry: entry.update(operation="product"), "attribute|expected numbers"),
        (SUM, lambda entry: entry.update(operation="given"), "input 'a': expected one of: none"),
        (
            "operator/gemm-e4m3/result",
            inputs_of(x=["operator/gemm-e4m3/product", "split_heads:" + "9" * 30]),
            "expected a view of shape",
        ),
    ],
)
def test_entries_that_no_operation_makes(name, change, message, tmp_path):
    manifest = json.loads((EMBEDDED / "manifest.json").read_text())
    change(next(entry for entry in manifest["tensors"] if entry["name"] == name))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "tensors.safetensors").write_bytes((EMBEDDED / "tensors.safetensors").read_bytes())
    with pytest.raises(BertNumpyError, match=message) as caught:
        open_kit(tmp_path)
    assert "\n" not in str(caught.value)
    assert f"tensor {name!r}" in str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_data_flow_deeper_than_the_stack(profile):
    """And of more ways through it than could be gone: each tensor is computed once."""
    x = np.zeros(3, np.float32)
    tensors = {"model/x": Tensor("model/x", "model", "given")}
    arrays = {"model/x": x}
    for i in range(2 * sys.getrecursionlimit()):
        before = Reference(f"model/{i - 1}" if i else "model/x")
        name = f"model/{i}"
        how = {"precision": "float32"}
        tensors[name] = Tensor(name, "model", "add", {"x": before, "y": before}, how)
        arrays[name] = x
    kit = Kit({}, tensors, arrays)
    assert verify(kit, {name: arrays[name]}, profile).passed
    other = verify(kit, {name: arrays[name] + np.float32(1)}, profile)
    assert [item.name for item in other.differences] == [name]


def test_codes_that_a_format_does_not_have(tmp_path, kit):
    name = "codec/E2M1/codes"
    arrays = {name: np.full(16, 200, np.uint8)}
    write_kit(Kit({}, {name: kit.tensors[name]}, arrays), tmp_path / "kit")
    with pytest.raises(BertNumpyError, match="expected codes below 16, found 200"):
        open_kit(tmp_path / "kit")


def test_export_refuses(tmp_path, capsys):
    out = str(tmp_path / "kit")
    export = ["golden", "export", "bert-tiny-sst2", out]
    assert main(export) == 2
    assert main([*export, "--task", "sst2"]) == 2
    for number, text in enumerate(("[]", "[3]", '[{"text": 3}]', '[{"input_ids": "a"}]', "{}")):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        assert main([*export, "--inputs", str(path)]) == 2
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "file").touch()
    assert main([*export, "--level", "codec"]) == 2
    assert capsys.readouterr().err.count("bert-numpy: ") == 8


@pytest.mark.parametrize(
    "ids", ["[101.5, 102]", '["101"]', "[true]", "[[101]]", f"[{2**63}]", "101", "null"]
)
def test_inputs_that_are_no_integers(tmp_path, ids):
    path = tmp_path / "inputs.json"
    path.write_text(f'[{{"input_ids": [101, 102]}}, {{"input_ids": {ids}}}]')
    with pytest.raises(BertNumpyError, match="item 1: expected lists of integers"):
        read_inputs(path, None)


def test_texts_are_truncated_to_what_the_model_takes(tmp_path):
    shape = {"max_position_embeddings": 24}
    folder = write_checkpoint(tmp_path / "model", config_overrides=shape)
    (tmp_path / "inputs.json").write_text(json.dumps(["a warm and funny film", "good " * 60]))
    command = ["golden", "export", str(folder), str(tmp_path / "kit"), "--level", "model"]
    assert main([*command, "--recipe", "mxfp4", "--inputs", str(tmp_path / "inputs.json")]) == 0
    made = open_kit(tmp_path / "kit")
    lengths = [made.arrays[f"model/{i}/input_ids"].shape[1] for i in range(2)]
    assert lengths == [7, 24]


def test_export_from_a_task(tmp_path):
    out = tmp_path / "kit"
    reviews = str(ROOT / "bert_numpy" / "assets" / "reviews" / "dev.tsv")
    command = ["golden", "export", "bert-tiny-sst2", str(out), "--task", "sst2", "--data", reviews]
    assert main([*command, "--limit", "1", "--level", "model", "--recipe", "bf16"]) == 0
    assert list(open_kit(out).arrays["model/0/logits"].shape) == [1, 2]


def test_vector_commands(tmp_path, capsys):
    out = tmp_path / "vectors"
    assert main(["golden", "vectors", str(out)]) == 0
    text = (out / "E4M3FN-nearest-saturating-float32.txt").read_text()
    lines = text.replace("input expected flags", "input expected found").splitlines()

    def with_codes(change):
        path = tmp_path / "results.txt"
        rows = [x if x.startswith("#") else f"{x[:12]}{change(x[9:11])}" for x in lines]
        path.write_text("\n".join(rows) + "\n")
        return str(path)

    assert main(["golden", "check-vectors", with_codes(lambda code: code)]) == 0
    flushed = with_codes(lambda code: "00" if code == "80" else code)
    assert main(["golden", "check-vectors", flushed, "--json", str(tmp_path / "r.json")]) == 1
    assert json.loads((tmp_path / "r.json").read_text())["files"][0]["cause"] == "-0 encoded as 0"
    assert "cause: -0 encoded as 0" in capsys.readouterr().out
    assert main(["golden", "check-vectors", str(out / "E4M3FN-nearest-float32.txt")]) == 2
    assert main(["golden", "check-vectors", str(tmp_path / "none.txt")]) == 2


# Backends


def test_ml_dtypes_backend(ml_dtypes, golden_kit):  # noqa: F811
    report = golden_kit.check(kit_backends.ml_dtypes_backend(ml_dtypes, golden_kit.kit))
    assert len(report.compared) >= 30


def test_torch_backend(torch, golden_kit):  # noqa: F811
    report = golden_kit.check(kit_backends.torch_backend(torch, golden_kit.kit))
    assert len(report.compared) >= 8


def test_onnx_backend(onnx, golden_kit):  # noqa: F811
    report = golden_kit.check(kit_backends.onnx_backend(onnx, golden_kit.kit))
    assert len(report.compared) == 4 + 7  # the codec, and the weights of attention by tile


def test_torch_layer(torch, golden_kit):  # noqa: F811
    """Its sums are in another order; its GELU in float32 is not good enough, and is found."""
    layer = kit_backends.torch_layer(torch, golden_kit.kit)
    golden_kit.check(layer, "accumulate-order")
    golden_kit.check(layer, "statistical")
    narrow = kit_backends.torch_layer(torch, golden_kit.kit, wide_gelu=False)
    failures = verify(golden_kit.kit, narrow, "accumulate-order").failures
    assert list(failures) == ["model/0/encoder.layer.0.intermediate.dense/gelu"]


def test_fixture_reports(golden_kit):  # noqa: F811
    name = "operator/activation/gelu"
    (case,) = (case for case in golden_kit.cases("activation") if case.name == name)
    with pytest.raises(AssertionError, match="cause: GELU by tanh"):
        golden_kit.check({name: golden_kit.kit.arrays["operator/activation/gelu_tanh"]})
    assert case.expected.shape == case.inputs["x"].shape


def test_three_line_recipe(tmp_path):
    """A project of its own, with the plugin and the test of docs/kit.md."""
    blocks = (ROOT / "docs" / "kit.md").read_text(encoding="utf-8").split("```python\n")[1:]
    conftest, test = (block.split("```")[0] for block in blocks[:2])
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_backend.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_scaled_mm_script(kit):
    """With a stand-in for the GPU: its own modes pass, exact sums do not, and NaNs are seen."""
    path = Path(ROOT / "scripts" / "verify_scaled_mm_cuda.py")
    spec = importlib.util.spec_from_file_location("verify_scaled_mm_cuda", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    from npfp8 import E4M3FN, QuantizedTensor, matmul  # noqa: PLC0415

    def product(mode):
        def run(a, b, fast):
            one = np.float32(1)
            x, y = (
                script.padded(z, len(z) + 3, -(-z.shape[1] // 16) * 16)
                for z in (a, np.ascontiguousarray(b.T))
            )
            chosen = mode or script.MODES[fast]
            whole = matmul(
                QuantizedTensor(x, one, E4M3FN), QuantizedTensor(y, one, E4M3FN).mT, chosen
            )
            return whole[: a.shape[0], : b.shape[1]]

        return run

    report = script.verify_products(kit, product(None))
    assert report["cases"] == 12 + 24
    for mode in script.MODES.values():
        assert report[mode]["unlike_mode"] == report[mode]["unknown_cause"] == []
    assert report["hopper-fast"]["bit_exact"]["differences"]
    assert report["hopper-fast"]["accumulate_order"]
    exact = script.verify_products(kit, product("exact"))
    assert exact["hopper"]["bit_exact"]["passed"]
    assert exact["hopper"]["unlike_mode"]


@pytest.mark.parametrize("rows", [[4], [1, 1], [2, 0], [-1], [0.0], [True], [], "0", 0, [10**30]])
def test_rows_of_outlier_columns_are_rows(rows: object) -> None:
    attributes = {"threshold": 6.0, "keep": "others"}
    x = ("bfloat16", "", (4, 8))
    for right in ({}, {"rows": [0]}, {"rows": [1, 3]}):
        check_entry("outliers", attributes | right, {"x": x}, x, "kit")
    with pytest.raises(BertNumpyError, match=r"^kit: (attribute 'rows'|.*no row 4$)"):
        check_entry("outliers", attributes | {"rows": rows}, {"x": x}, x, "kit")
