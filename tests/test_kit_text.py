"""A kit as text: every word is the kit's, exact sums are exact, and results are read back strictly.

A C program and a Verilog test bench (``tests/vectors``) use the files as an outsider would, where
gcc and iverilog are installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from bert_numpy import BertNumpyError
from bert_numpy.commands.main import main
from bert_numpy.kit import Kit, open_kit, verify
from bert_numpy.kit.candidate import load_candidate
from bert_numpy.kit.exact import exact_sum
from bert_numpy.kit.manifest import Reference, Tensor
from bert_numpy.kit.text import write_kit_text
from npfp8 import decode
from npfp8.bfloat16 import round_to_bfloat16, to_bits
from npfp8.formats import FORMATS

KIT = open_kit()
PROGRAMS = ROOT / "tests" / "vectors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of all forms, with the codec's and the operators' cases."""
    folders = {}
    for form in ("text", "memory", "c"):
        folders[form] = tmp_path_factory.mktemp("vectors") / form
        folders[form].mkdir()
        write_kit_text(KIT, folders[form], form)
    return folders


def computed(*levels: str) -> list[str]:
    return [name for name, t in KIT.tensors.items() if t.operation != "given" and t.level in levels]


def bits_of(tensor: Tensor, x: np.ndarray) -> list[int]:
    """The words that a tensor is to be written as."""
    if tensor.kind == "bfloat16":
        return to_bits(np.ascontiguousarray(x)).reshape(-1).tolist()
    unsigned = {1: np.uint8, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize]
    return np.ascontiguousarray(x).reshape(-1).view(unsigned).tolist()


def words_in(file: Path) -> list[str]:
    lines = file.read_text().splitlines()
    return [line for line in lines if not line.startswith(("#", "//"))]


# Exact sums


def exact_products(name: str) -> np.ndarray:
    """The sums of a product as fractions, from the values of codes and scales."""
    inputs, how = KIT.inputs(name), KIT.tensors[name].attributes
    operands = []
    for role, k_axis in (("a", -1), ("b", -2)):
        x = inputs[role]
        if role in how:
            x = decode(x, FORMATS[how[role]["fmt"]])
        numbers = np.vectorize(Fraction, otypes=[object])(np.where(np.isfinite(x), x, 0))
        if (zero := inputs.get(f"{role}_zero_point")) is not None:
            numbers = numbers - int(zero)
        if (codes := inputs.get(f"{role}_scale_codes")) is not None:
            scales = decode(codes, FORMATS[how[role]["scale_fmt"]])
            scales = np.vectorize(Fraction, otypes=[object])(np.nan_to_num(scales))
            scales = scales.repeat(how[role]["block"], axis=k_axis)
            numbers = numbers * scales.take(range(x.shape[k_axis]), axis=k_axis)
        operands.append(numbers)
    a, b = operands
    return sum(a[..., k, None] * b[..., k, None, :] for k in range(a.shape[-1]))


def nearest_float32(exact: Fraction) -> float:
    """A fraction rounded to nearest even, by the definition."""
    magnitude = abs(exact)
    if magnitude == 0:
        return 0.0
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(magnitude / unit) * unit
    value = float(rounded) if rounded < 2**128 else np.inf
    return -value if exact < 0 else value


PRODUCTS = [
    name
    for name in computed("operator")
    if exact_sum(KIT.tensors[name], KIT.inputs(name)) is not None
]


@pytest.mark.parametrize("name", PRODUCTS)
def test_exact_sums(name):
    """They are the sums of fractions, and the kit's sums are these rounded once."""
    inputs, expected = KIT.inputs(name), KIT.arrays[name]
    exact = exact_sum(KIT.tensors[name], inputs)
    assert exact.integers.shape == expected.shape
    sums = np.array([int(n) * Fraction(2) ** exact.unit for n in exact.integers.flat], object)
    if inputs["a"].shape[-1] <= 128 and "block" not in KIT.tensors[name].attributes:
        right = exact_products(name)
        assert (sums.reshape(expected.shape) == right)[exact.known].all()
    rounded = np.array([nearest_float32(total) for total in sums]).reshape(expected.shape)
    assert np.array_equal(rounded[exact.known], expected[exact.known])
    assert not np.isfinite(expected[~exact.known]).any()
    largest = max(exact.integers.flat, key=abs)
    assert -(1 << exact.bits - 1) <= largest < 1 << exact.bits - 1
    everything = [int(n) for n in exact.integers.flat]
    half = 1 << max(exact.bits - 2, 0)
    assert exact.bits == 1 or not all(-half <= n < half for n in everything)


def test_exact_sums_of_every_exact_product():
    """None is left out but the sums of other accumulators, which are rounded on the way."""
    sums = [n for n in computed("operator") if KIT.tensors[n].operation in ("sum", "block_sum")]
    others = {n for n in sums if "accumulate" in KIT.tensors[n].attributes}
    assert set(sums) - set(PRODUCTS) == others
    assert len(PRODUCTS) > 55
    blocks = KIT.tensors["operator/gemm-scales-of-blocks/sum"]
    assert blocks.attributes["block"] == 16


# Files


@pytest.mark.parametrize(("form", "suffix"), [("text", ".txt"), ("memory", ".mem")])
def test_every_word_is_the_kits(written, form, suffix):
    folder = written[form]
    seen = set()
    for name in computed("codec", "operator"):
        tensor, case = KIT.tensors[name], folder / name.rpartition("/")[0]
        leaf = name.rpartition("/")[2]
        expected = case / f"{leaf}.expected{suffix}"
        assert [int(word, 16) for word in words_in(expected)] == bits_of(tensor, KIT.arrays[name])
        seen.add(expected)
        description = (case / "case.txt").read_text()
        assert f"{leaf} = {tensor.operation}(" in description
        for role, x in KIT.inputs(name).items():
            steps = description.partition(f"  {leaf} = {tensor.operation}(")[2]
            file = case / re.search(rf"^    {role}: (.+)$", steps, re.MULTILINE)[1]
            source = KIT.tensors[tensor.inputs[role].tensor]
            assert [int(word, 16) for word in words_in(file)] == bits_of(source, x), (name, role)
            seen.add(file)
        if name in PRODUCTS:
            exact = exact_sum(tensor, KIT.inputs(name))
            file = case / f"{leaf}.exact{suffix}"
            numbers = [int(w.replace(" ", ""), 16) for w in words_in(file)]
            width = 4 * len(words_in(file)[0].replace(" ", ""))
            signed = [n - (1 << width) if n >> width - 1 else n for n in numbers]
            assert signed == [int(n) for n in exact.integers.flat]
            assert f"times 2^{exact.unit} is the exact sum" in file.read_text()
            seen.add(file)
    files = {
        path for path in folder.rglob(f"*{suffix}") if path.name not in ("case.txt", "index.txt")
    }
    assert files == seen


def test_files_describe_themselves(written):
    text = (written["memory"] / "operator/gemm-ties/sum.expected.mem").read_text()
    for part in ("operator/gemm-ties/sum", "operation sum: over k of", "shape 12 x 4, row by row",
                 "float32", '"fmt": "E4M3FN"', "words: 48 of 32 bits"):  # fmt: skip
        assert part in text
    text = (written["text"] / "operator/attention-tiles/1/b.input.txt").read_text()
    assert "operator/attention-e4m3fn/k, seen columns:16:32: the file has what is seen" in text
    assert "shape 1 x 8 x 16" in text
    assert "codes of E4M3FN: 1 sign, 4 exponent, 3 mantissa bits, bias 7, NaN 7F FF" in text
    text = (written["text"] / "operator/quantize-nvfp4-te/codes.expected.txt").read_text()
    assert "te, scales E4M3FN: TransformerEngine" in text
    assert "1 sign, 2 exponent, 1 mantissa bits" in text
    index = (written["text"] / "index.txt").read_text()
    assert "operator/gemm-ties: sum, scale_sum, round\n" in index
    cases = [line.partition(":")[0] for line in index.splitlines() if not line.startswith("#")]
    assert len(cases) == len({path.parent for path in written["text"].rglob("case.txt")})
    sizes = (written["memory"] / "operator/gemm-ties/case.vh").read_text()
    assert "localparam A_WORDS = 384, A_ROWS = 12, A_COLUMNS = 32, A_BITS = 8;" in sizes
    for folder in written.values():
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes().decode("ascii")


def test_a_case_stands_alone(written):
    """Every file that a description names is in its folder, and every file is named."""
    for form in ("text", "memory"):
        for path in written[form].rglob("case.txt"):
            named = set(re.findall(r"\S+\.(?:input|expected|exact)\.(?:txt|mem)", path.read_text()))
            there = {file.name for file in path.parent.iterdir() if file.is_file()}
            assert named == there - {"case.txt", "case.vh"}


def test_names_in_c_and_verilog_are_distinct(written, tmp_path):
    """Where "a.scale" and "a_scale" come together, as in a model's products."""
    (tmp_path / "vectors").mkdir()
    write_kit_text(KIT, tmp_path / "vectors", "c", ["layer", "model"])
    for folder in (written["c"], tmp_path / "vectors"):
        for path in folder.rglob("case.h"):
            names = re.findall(r"^#ifndef (\w+)_H$", path.read_text(), re.MULTILINE)
            assert len(set(names)) == len(names) > 1, path
    for path in written["memory"].rglob("case.vh"):
        names = re.findall(r"localparam (\w+)_WORDS", path.read_text())
        assert len(set(names)) == len(names) > 1, path


def test_layers_and_the_model_too(tmp_path):
    done = write_kit_text(KIT, tmp_path, "text", ["layer", "model"])
    assert done.results == len(computed("layer", "model"))
    logits = tmp_path / "model/0/logits.expected.txt"
    assert [int(word, 16) for word in words_in(logits)] == bits_of(
        KIT.tensors["model/0/logits"], KIT.arrays["model/0/logits"]
    )


def test_operations_are_chosen(tmp_path):
    done = write_kit_text(KIT, tmp_path, "memory", ["operator"], ["round"])
    assert (done.cases, done.results) == (done.cases, sum(
        KIT.tensors[name].operation == "round" for name in computed("operator")
    ))  # fmt: skip
    files = {path.name for path in (tmp_path / "operator/gemm-ties").iterdir()}
    assert files == {"product.input.mem", "result.expected.mem", "case.txt", "case.vh"}
    with pytest.raises(BertNumpyError, match="expected results of level codec of operation round"):
        write_kit_text(KIT, tmp_path, "memory", ["codec"], ["round"])


def test_names_that_no_folder_can_have(tmp_path):
    x = np.float32([1])
    tensors = {
        "../x/given": Tensor("../x/given", "operator", "given"),
        "../x/result": Tensor("../x/result", "operator", "output", {"x": Reference("../x/given")}),
    }
    kit = Kit({}, tensors, dict.fromkeys(tensors, x))
    with pytest.raises(BertNumpyError, match=r"expected a name of folders, found '\.\.'"):
        write_kit_text(kit, tmp_path)


# Results


def results(folder: Path, source: Path, suffix: str, names: list[str], change=str) -> Path:
    """Copy expected files as results."""
    for name in names:
        text = (source / f"{name}.expected{suffix}").read_text()
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change(text))
    return folder


@pytest.mark.parametrize(("form", "suffix"), [("text", ".txt"), ("memory", ".mem")])
def test_results_are_read_back(written, form, suffix, tmp_path):
    names = computed("codec", "operator")
    found = load_candidate(results(tmp_path, written[form], suffix, names), KIT)
    assert list(found) == names
    for name in names:
        assert bits_of(KIT.tensors[name], found[name]) == bits_of(
            KIT.tensors[name], KIT.arrays[name]
        )
    assert verify(KIT, found).passed


def bare(text: str) -> str:
    """Lower-case digits without comments, and lines as Windows ends them."""
    lines = [line.lower() for line in text.splitlines() if not line.startswith(("#", "//"))]
    return "\r\n".join(lines)


def test_results_as_others_write_them(written, tmp_path):
    names = ["operator/gemm-ties/sum", "operator/packed-e2m1/low-first-codes"]
    results(tmp_path, written["text"], ".txt", names, bare)
    path = tmp_path / f"{names[1]}.txt"  # a byte for each code of 4 bits
    path.write_text("".join(f"0{word}\n" for word in path.read_text().split()))
    name = "operator/gemm-ties/result"  # bfloat16 in the upper half of float32
    words = words_in(written["text"] / f"{name}.expected.txt")
    (tmp_path / f"{name}.mem").write_text("".join(f"{word}_0000\n" for word in words))
    np.save(tmp_path / "operator/gemm-ties/product.npy", KIT.arrays["operator/gemm-ties/product"])
    (tmp_path / "operator/gemm-ties/notes.md").write_text("other files are passed over")
    found = load_candidate(tmp_path, KIT)
    assert len(found) == 4
    assert verify(KIT, found).passed
    alone = load_candidate(tmp_path / "operator/gemm-ties/sum.txt", KIT)
    assert list(alone) == ["operator/gemm-ties/sum"]


def test_expected_files_are_no_results(written, tmp_path):
    """A folder as it was written has nothing that a verifier could take for results."""
    for form in ("text", "memory", "c"):
        with pytest.raises(BertNumpyError, match="of results, found none"):
            load_candidate(written[form], KIT)
    folder = tmp_path / "vectors"
    shutil.copytree(written["memory"] / "operator" / "gemm-ties", folder / "operator" / "gemm-ties")
    results(folder, folder, ".mem", ["operator/gemm-ties/sum"])
    assert list(load_candidate(folder, KIT)) == ["operator/gemm-ties/sum"]


NAME = "operator/gemm-ties/sum"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sum.txt", lambda t: t[: t.rindex("\n", 0, -1) + 1], "cut off after line {47}: "),
        ("sum.mem", lambda t: t[: t.rindex("\n", 0, -1) + 1], "cut off after line {47}: "),
        ("sum.txt", lambda t: t[:-4], "line {48}: cut off within the line"),
        ("sum.mem", lambda t: t[:-4], "line {48}: cut off within the line"),
        ("sum.txt", lambda _: "", "cut off before the first case: expected 48"),
        ("sum.txt", lambda t: t + "00000000\n", "line {49}: expected 48 cases, found 49"),
        ("sum.mem", lambda t: t + "xxxxxxxx\n", "line {49}: expected a known value"),
        ("sum.mem", lambda t: t + "@10\n", "line {49}: expected the address @30, found '@10'"),
        ("sum.txt", lambda t: t.replace("\n4", "\n0x4"), "line {1}: expected hexadecimal digits"),
        ("sum.txt", lambda t: t + "\u00e9", "line {49}: expected ASCII, found 0xc3"),
        ("summ.txt", str, "expected the name of a tensor of the kit; did you mean '.*/sum'"),
    ],
)  # fmt: skip
def test_results_that_cannot_be_read(written, name, change, message, tmp_path, capsys):
    suffix = name[-4:]
    form = {".txt": "text", ".mem": "memory"}[suffix]
    right = (written[form] / f"{NAME}.expected{suffix}").read_text()
    head = right.count("\n") - 48
    message = re.sub(r"\{(\d+)\}", lambda number: str(head + int(number[1])), message)
    text = change(right)
    path = tmp_path / "operator" / "gemm-ties" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BertNumpyError, match=f"{re.escape(str(path))}: .*{message}"):
        load_candidate(tmp_path, KIT)
    assert main(["golden", "verify", "bert-tiny-sst2", str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_results_that_do_not_fit(written, tmp_path):
    results(tmp_path, written["text"], ".txt", [NAME])
    results(tmp_path, written["memory"], ".mem", [NAME])
    with pytest.raises(BertNumpyError, match="expected once, found again"):
        load_candidate(tmp_path, KIT)
    stray = tmp_path / "sum.mem"
    stray.write_text("0\n")
    with pytest.raises(BertNumpyError, match="expected a path that ends in the name of a tensor"):
        load_candidate(stray, KIT)
    codes = tmp_path / "other" / "operator/packed-e2m1/low-first-codes.txt"
    codes.parent.mkdir(parents=True)
    codes.write_text("10\n" * KIT.arrays["operator/packed-e2m1/low-first-codes"].size)
    with pytest.raises(BertNumpyError, match="expected codes below 16, found 16"):
        load_candidate(tmp_path / "other", KIT)


# The command


def test_command(tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    argv = ["golden", "text", "bert-tiny-sst2", str(out), "--form", "memory"]
    argv += ["--operation", "sum", "--operation", "layer_norm", "--level", "operator"]
    assert main([*argv, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    files = [path for path in out.rglob("*") if path.is_file()]
    assert (found["files"], found["bytes"]) == (
        len(files),
        sum(path.stat().st_size for path in files),
    )
    assert (found["form"], found["levels"]) == ("memory", ["operator"])
    assert found["operations"] == ["sum", "layer_norm"]
    assert f"{out}: {found['cases']} cases, {found['results']} results" in capsys.readouterr().out
    assert main(argv) == 2
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["golden", "text", "bert-tiny-sst2", str(tmp_path / "x"), "--form", "hex"])
    assert "expected one of text, memory, c" in capsys.readouterr().err
    assert main([*argv[:3], str(tmp_path / "x"), "--level", "codec", "--operation", "sum"]) == 2
    assert "expected results of level codec of operation sum" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# Traps


def cancelled(name: str) -> int:
    """How many sums are less than 2^-30 of the sum of the products' magnitudes."""
    exact = exact_sum(KIT.tensors[name], KIT.inputs(name))
    a, b = (
        np.abs(decode(KIT.inputs(name)[role], FORMATS[KIT.tensors[name].attributes[role]["fmt"]]))
        for role in ("a", "b")
    )
    total = np.abs(exact.integers.astype(np.float64)) * 2.0**exact.unit
    return int(((total < 2.0**-30 * (a.astype(np.float64) @ b)) & (total > 0)).sum())


def test_traps_of_products():
    """In one case of K = 32: ties of float32 and bfloat16 of both kinds, and cancellation."""
    exact = exact_sum(KIT.tensors[NAME], KIT.inputs(NAME))
    sums = [int(n) for n in exact.integers.flat]
    kinds = set()
    for n in sums:
        sign, magnitude = np.sign(n), abs(n)
        for digits in (24, 8):
            shift = max(magnitude.bit_length() - digits, 0)
            rest, half = magnitude & ((1 << shift) - 1), (1 << shift) >> 1
            odd = magnitude >> shift & 1
            if half and abs(rest - half) <= (1 << max(shift - 13, 0) if digits == 8 else 1):
                kinds.add((digits, sign, odd, int(np.sign(rest - half))))
    assert kinds == {
        (digits, sign, odd, beside)
        for digits in (24, 8)
        for sign in (-1, 1)
        for odd in (0, 1)
        for beside in (-1, 0, 1)
    }
    once = [nearest_bfloat16(int(n) * Fraction(2) ** exact.unit) for n in sums]
    twice = KIT.arrays["operator/gemm-ties/result"].reshape(-1).tolist()
    assert sum(x != y for x, y in zip(once, twice, strict=True)) == 4
    assert cancelled(NAME) == 8
    assert 0 in sums


def nearest_bfloat16(exact: Fraction) -> float:
    """A fraction rounded once to bfloat16: through float32 rounded to odd."""
    x = nearest_float32(exact)
    if Fraction(x) != exact:
        bits = int(np.float32(x).view(np.uint32))
        bits -= abs(Fraction(x)) > abs(exact)
        x = np.uint32(bits | 1).view(np.float32)
    return float(round_to_bfloat16(np.float32([x]))[0])


def test_traps_of_scaling():
    place = "operator/gemm-scale-vectors"
    inputs, product = KIT.inputs(f"{place}/product"), KIT.arrays[f"{place}/product"]
    with np.errstate(all="ignore"):
        scale = inputs["a_scale"][:, None] * inputs["b_scale"]
        plain = inputs["sum"] * scale
    tiny = np.float32(2.0**-126)
    assert ((scale > 0) & (scale < tiny)).any()
    assert ((plain != 0) & (np.abs(plain) < tiny)).any()
    assert np.isinf(plain).any()
    assert ((product == 0) & ~np.signbit(product)).any()
    assert ((product == 0) & np.signbit(product)).any()
    assert product[4, 2] == 0  # by the bias
    assert plain[4, 2] != 0
    assert not np.array_equal(product, inputs["sum"] * (inputs["b_scale"] * scale[:, :1]))


def test_traps_of_rounding_to_bfloat16():
    x = KIT.inputs("operator/round/result")["x"]
    bits = x.view(np.uint32).reshape(-1)
    upper, lower = bits >> 16, bits & 0xFFFF
    assert {(int(u) & 1, int(u) >> 15) for u in upper[lower == 0x8000]} == {
        (odd, sign) for odd in (0, 1) for sign in (0, 1)
    }
    assert {0x7FFF, 0x8000, 0x8001} <= set(lower.tolist())
    result = KIT.arrays["operator/round/result"].reshape(-1)
    finite = np.isfinite(x).reshape(-1)
    assert np.isinf(result[finite]).sum() == 6  # from the tie below 2^128 on, of both signs
    nan = np.isnan(x).reshape(-1)
    assert (np.isnan(result) == nan).all()
    assert (upper[nan] & 0x7F == 0).any()  # one that would become an infinity if it was cut off


def test_traps_of_functions():
    x = KIT.inputs("operator/activation-traps/gelu")["x"]
    erf, tanh = (KIT.arrays[f"operator/activation-traps/{f}"] for f in ("gelu", "gelu_tanh"))
    assert x.size <= 100
    assert ((erf != tanh) & (np.abs(x) < 3)).sum() >= 10
    with np.errstate(all="ignore"):
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        float32 = np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
    float32 = round_to_bfloat16(float32)
    finite = np.isfinite(x)
    assert (float32 != tanh)[finite].sum() >= 5  # the tail cancels in float32
    assert ((erf != 0) & (float32 == 0)).any()
    rows = KIT.inputs("operator/softmax-traps/result")["x"]
    result = KIT.arrays["operator/softmax-traps/result"]
    masked = (rows == -np.inf).all(axis=1)
    assert masked.sum() == 1
    assert np.isnan(result[masked]).all()
    assert (result[0] == 0.125).all()
    with np.errstate(all="ignore"):
        plain = np.exp(rows)
        plain /= plain.sum(axis=1, keepdims=True)
    right = ~np.isnan(result).any(axis=1)
    assert (~np.isfinite(plain).all(axis=1) & right).sum() >= 2  # the largest is to be taken off
    states = KIT.inputs("operator/layer_norm-traps/result")["x"]
    with np.errstate(all="ignore"):
        mean = states.mean(axis=1, dtype=np.float32)
        squares = (states * states).mean(axis=1, dtype=np.float32) - mean * mean
        variance = states.astype(np.float64).var(axis=1)
    usual = np.isfinite(squares) & (variance > 0)
    assert (np.abs(squares - variance)[usual] > variance[usual] / 100).sum() >= 1
    assert (~np.isfinite(squares) & np.isfinite(variance)).sum() >= 3
    assert (variance == 0).sum() >= 4
    other = KIT.arrays["operator/layer_norm-traps/result-eps-1e-5"]
    assert not np.array_equal(KIT.arrays["operator/layer_norm-traps/result"], other, equal_nan=True)


@pytest.mark.parametrize("fmt", ["E4M3FN", "E5M2", "INT8"])
def test_traps_of_quotients(fmt):
    """Float32's quotients are ties, the exact ones are not; 1 / scale gives other codes, too."""
    name = f"operator/quantize-{fmt}-quotients/codes".lower()
    x, scale = KIT.inputs(name).values()
    right = decode(KIT.arrays[name], FORMATS[fmt])
    values = np.unique(FORMATS[fmt].values[np.isfinite(FORMATS[fmt].values)])
    assert np.isin(x / scale, (values[:-1] + values[1:]) / 2).all()
    for quotient in (x.astype(np.float64) / np.float64(scale), x * (np.float32(1) / scale)):
        nearest = values[np.abs(quotient[:, None] - values).argmin(axis=1)]
        apart = np.abs(quotient[:, None] - values)
        apart.sort(axis=1)
        wrong = (nearest != right) & (apart[:, 0] != apart[:, 1])
        assert wrong.sum() >= 20


def test_traps_of_quantizing():
    place = "operator/quantize-dynamic-e4m3-rows"
    inputs = KIT.inputs(f"{place}/codes")
    x, scale = inputs["x"], inputs["scale"]
    assert scale[0] == 1  # of a row of zeros
    assert ((np.abs(x) < 2.0**-126) & (x != 0)).any()
    assert np.signbit(x[x == 0]).any()
    assert np.array_equal(round_to_bfloat16(x), x)
    assert np.unique(scale).size == scale.size


@pytest.mark.parametrize("kind", ["bfloat16"])
def test_numbers_are_of_their_kind(kind):
    """A number with more bits than its kind would be another one in the file."""
    for name, tensor in KIT.tensors.items():
        if tensor.kind == kind:
            x = KIT.arrays[name]
            assert np.array_equal(round_to_bfloat16(x), x, equal_nan=True), name


# Programs of others

RECIPROCAL = "multiplication by the reciprocal of the scale"
C_CASES = (
    *("gemm-ties", "gemm-scale-vectors", "quantize-e4m3fn-quotients"),
    *("quantize-dynamic-e4m3-rows", "layer_norm-traps"),
)


def run_c(folder: Path, vectors: Path, *flags: str) -> Path:
    found = folder / "results"
    for case in C_CASES:
        (found / "operator" / case).mkdir(parents=True)
    program = folder / "operations"
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", *flags]
    command += ["-I", str(vectors), str(PROGRAMS / "operations.c"), "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    done = subprocess.run([program, found], check=True, capture_output=True, text=True)
    assert done.stdout == "0 exact sums are wrong\n"
    return found


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize(
    ("bug", "causes"),
    [
        (None, {}),
        (
            "TRUNCATE",
            {
                f"operator/{case}/result": "bfloat16 results truncated"
                for case in ("gemm-ties", "gemm-scale-vectors")
            },
        ),
        (
            "RECIPROCAL",
            {"operator/quantize-e4m3fn-quotients/codes": RECIPROCAL},
        ),
    ],
)
def test_a_program_in_c(written, bug, causes, tmp_path):
    """It has products with exact sums, quantization and LayerNorm right; each bug is named."""
    folder = run_c(tmp_path, written["c"], *([f"-D{bug}"] if bug else []))
    found = load_candidate(folder, KIT)
    assert len(found) == 9
    report = verify(KIT, found)
    assert {item.name for item in report.differences} == set(causes)
    for item in report.differences:
        assert causes[item.name] in item.causes


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="iverilog is not installed")
@pytest.mark.parametrize("bug", [None, "FLUSH"])
def test_a_test_bench_in_verilog(written, bug, tmp_path):
    """It reads memories, compares its accumulator with the exact sums, and writes a memory."""
    wrong = {}
    for case in ("gemm-ties", "gemm-subnormals", "gemm-e4m3-nan", "gemm-k17"):
        folder = tmp_path / "operator" / case
        shutil.copytree(written["memory"] / "operator" / case, folder)
        program = tmp_path / "test_bench"
        flags = [f"-D{bug}"] if bug else []
        command = ["iverilog", "-Wall", *flags, "-I", str(folder), "-o", str(program)]
        done = subprocess.run(
            [*command, str(PROGRAMS / "dot_product.v")], check=True, capture_output=True, text=True
        )
        assert "error" not in done.stderr
        done = subprocess.run(
            ["vvp", "-n", str(program)], cwd=folder, check=True, capture_output=True, text=True
        )
        wrong[case] = int(re.search(r"^(\d+) of \d+ accumulators", done.stdout, re.MULTILINE)[1])
    found = load_candidate(tmp_path, KIT)
    assert len(found) == 4
    report = verify(KIT, found)
    assert report.passed == (bug is None) == (not any(wrong.values()))
    assert all("subnormals flushed to zero" in item.causes for item in report.differences)
    assert bug is None or wrong["gemm-subnormals"] == 64
