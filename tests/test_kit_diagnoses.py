"""Faults as outsiders write them, in NumPy and torch, and the names that the kit gives them.

The encoder around them is tests/outsiders.py, which has no arithmetic of this project.
"""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import outsiders
import pytest
from outsiders import bfloat16, e4m3, encoder, to_e4m3

from bert_numpy.kit import open_kit, verify
from bert_numpy.kit.diagnosis import Partial
from bert_numpy.kit.html import html_report
from bert_numpy.kit.manifest import Kit

F = np.float32
_ERF = np.frompyfunc(math.erf, 1, 1)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def kit() -> Kit:
    return open_kit()


@pytest.fixture(autouse=True)
def _silent():
    with np.errstate(all="ignore"):
        yield


def named(kit, candidate):
    """The causes of each place where an error arises, counted by operation and first cause."""
    report = verify(kit, candidate)
    roots = [item for item in report.differences if item.root]
    return Counter((item.operation, item.causes[0] if item.causes else "") for item in roots)


def erf(x):
    return _ERF(x.astype(np.float64)).astype(np.float64)


# Functions


def gelu_tanh(x, kind=np.float64):
    x, c, k = x.astype(kind), kind(math.sqrt(2 / math.pi)), kind(0.044715)
    return bfloat16(kind(0.5) * x * (1 + np.tanh(c * (x + k * x**3))))


def tanhf_one_off(x):
    """As a library whose tanh is the next float32 toward 0."""
    u = (F(math.sqrt(2 / math.pi)) * (x + F(0.044715) * x * x * x)).astype(F)
    tanh = np.nextafter(np.tanh(u.astype(np.float64)).astype(F), F(0))
    return bfloat16(F(0.5) * x * (F(1) + tanh))


def tanh_approx(x):
    """As tanh.approx of a GPU: near 2^-11 off, and never above 1."""
    u = (F(math.sqrt(2 / math.pi)) * (x + F(0.044715) * x * x * x)).astype(F)
    tanh = np.tanh(u.astype(np.float64)) * (
        1 + 2.0**-11.2 * np.sin(1e4 * np.clip(np.nan_to_num(u), -9, 9))
    )
    tanh = np.where(np.isinf(u), np.sign(u), tanh)
    return bfloat16(F(0.5) * x * (F(1) + np.clip(tanh, -1, 1).astype(F)))


def erff(x):
    return bfloat16(x * F(0.5) * (F(1) + erf(x * F(math.sqrt(0.5))).astype(F)))


def quick(x, kind=F):
    x = x.astype(kind)
    return bfloat16(x * (kind(1) / (kind(1) + np.exp(kind(-1.702) * x))))


BY_TANH, BY_SIGMOID = "GELU by tanh instead of erf", "GELU by a sigmoid, x * sigmoid(1.702 x)"

GELUS = {
    "tanh in float64": (gelu_tanh, f"{BY_TANH}, in float64"),
    "tanh in float32": (lambda x: gelu_tanh(x, F), f"{BY_TANH}, in float32"),
    "another library's tanh": (tanhf_one_off, f"{BY_TANH}, in float32"),
    "tanh.approx": (tanh_approx, f"{BY_TANH}, by an approximation, within 2^-11"),
    "erf in float32": (erff, "GELU by erf, in float32"),
    "sigmoid in float32": (quick, BY_SIGMOID),
    "sigmoid in float64": (lambda x: quick(x, np.float64), BY_SIGMOID),
    "ReLU": (lambda x: np.maximum(x, F(0)), "ReLU instead of GELU"),
}


@pytest.mark.parametrize("name", GELUS)
def test_gelu(kit, name):
    """At all numbers of the operators' case, and inside the model."""
    gelu, cause = GELUS[name]
    case = "operator/activation/gelu"
    candidates = {case: gelu(kit.inputs(case)["x"])}, encoder(kit, gelu=gelu)
    for candidate in candidates:
        found = named(kit, candidate)
        assert found
        assert all(
            operation == "activation" and first.startswith(cause) for operation, first in found
        ), found


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("float32 tanh", f"{BY_TANH}, in float32"),
        ("bfloat16 tanh", f"{BY_TANH}, in float32"),
        ("float16 tanh", f"{BY_TANH}, in float32, of float16 numbers"),
        ("composed tanh", f"{BY_TANH}, each step rounded to bfloat16"),
        ("composed fast tanh", f"{BY_TANH}, each step rounded to bfloat16"),
        ("float32 erf", "GELU by erf, in float32"),
        ("bfloat16 erf", "GELU by erf, in float32"),
        ("composed erf", "GELU by erf, each step rounded to bfloat16"),
        ("composed sigmoid", f"{BY_SIGMOID}, each step rounded to bfloat16"),
    ],
)
def test_gelu_in_torch(torch, kit, name, cause):
    gelu, tanh = torch.nn.functional.gelu, torch.tanh

    def fast(i):
        return 0.5 * i * (1.0 + tanh(i * 0.7978845608 * (1.0 + 0.044715 * i * i)))

    def new(i):
        c = math.sqrt(2.0 / math.pi)
        return 0.5 * i * (1.0 + tanh(c * (i + 0.044715 * torch.pow(i, 3.0))))

    def composed(i):
        return i * 0.5 * (1 + torch.erf(i / math.sqrt(2.0)))

    functions = {
        "float32 tanh": lambda x: gelu(x, approximate="tanh"),
        "bfloat16 tanh": lambda x: gelu(x.bfloat16(), approximate="tanh"),
        "float16 tanh": lambda x: gelu(x.half(), approximate="tanh"),
        "composed tanh": lambda x: new(x.bfloat16()),
        "composed fast tanh": lambda x: fast(x.bfloat16()),
        "float32 erf": gelu,
        "bfloat16 erf": lambda x: gelu(x.bfloat16()),
        "composed erf": lambda x: composed(x.bfloat16()),
        "composed sigmoid": lambda x: x.bfloat16() * torch.sigmoid(1.702 * x.bfloat16()),
    }

    def computed(x):
        return functions[name](torch.from_numpy(np.array(x))).bfloat16().float().numpy()

    case = "operator/activation/gelu"
    for candidate in ({case: computed(kit.inputs(case)["x"])}, encoder(kit, gelu=computed)):
        found = named(kit, candidate)
        assert found
        assert all(first.startswith(cause) for _, first in found), found


def softmax(kind=np.float64, power=np.exp, axis=-1, rounded=lambda x: x, shifted=True):
    def function(x):
        x = x.astype(kind)
        weights = rounded(power(rounded(x - x.max(axis, keepdims=True) if shifted else x)))
        return bfloat16(weights / rounded(weights.sum(axis, keepdims=True, dtype=kind)))

    return function


def undivided(x):
    return bfloat16(np.exp(x.astype(np.float64) - x.max(-1, keepdims=True)))


def divided(weights):
    return bfloat16(weights / weights.sum(-1, keepdims=True, dtype=np.float64))


def approximate_exp(x):
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    weights = np.exp(shifted) * (1 + 2.0**-11.5 * np.sin(99 * np.nan_to_num(shifted)))
    return bfloat16(weights / weights.sum(-1, keepdims=True))


SOFTMAXES = {
    "2^x instead of e^x": softmax(power=np.exp2),
    "2^x instead of e^x, in": softmax(F, np.exp2),
    "softmax over another axis": softmax(axis=-2),
    "softmax, each step rounded to bfloat16": softmax(rounded=bfloat16),
    "weights of the softmax rounded to bfloat16 before they are added": lambda x: divided(
        undivided(x)
    ),
    "softmax not divided by the sum": undivided,
    "x log2(e) rounded to bfloat16 before the power of 2": softmax(
        power=lambda x: np.exp2(bfloat16(x * 1.4426950408889634).astype(np.float64))
    ),
    "softmax, by an approximation, within 2^-11": approximate_exp,
    "double rounding through float16": lambda x: bfloat16(_softmax64(x).astype(np.float16)),
}


def _softmax64(x):
    weights = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("cause", SOFTMAXES)
def test_softmax(kit, cause):
    found = named(kit, encoder(kit, softmax=SOFTMAXES[cause]))
    assert found
    assert all(op == "softmax" and first.startswith(cause) for op, first in found), found
    case = "operator/softmax-n2/result"
    candidate = {case: SOFTMAXES[cause](kit.inputs(case)["x"])}
    assert all(first.startswith(cause) for _, first in named(kit, candidate))


def norm(
    kind=np.float64, eps=None, outside=False, off=0, squares=False, between=None, keep=("w", "b")
):
    def function(x, weight, bias, given):
        x, n = x.astype(kind), x.shape[-1]
        chosen = kind(given if eps is None else eps)
        mean = x.mean(-1, keepdims=True, dtype=kind)
        variance = ((x - mean) ** 2).sum(-1, keepdims=True, dtype=kind) / kind(n - off)
        if squares:
            variance = (x * x).mean(-1, keepdims=True, dtype=kind) - mean * mean
        root = np.sqrt(variance) + chosen if outside else np.sqrt(variance + chosen)
        result = (x - mean) / root
        if between is not None:
            result = between(result).astype(kind)
        result = result * (weight.astype(kind) if "w" in keep else kind(1))
        return bfloat16(result + bias.astype(kind) if "b" in keep else result)

    return function


def rms(x, weight, bias, eps):
    x = x.astype(np.float64)
    return bfloat16(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias)


NORMS = {
    "variance over n - 1": norm(off=1),
    "variance over n - 1, in float32": norm(F, off=1),
    "eps of 1e-05": norm(eps=1e-5),
    "eps of 1e-05, in": norm(F, eps=1e-5),
    "eps of 1e-06": norm(eps=1e-6),
    "eps of 1e-05, outside the root": norm(eps=1e-5, outside=True),
    "normalized numbers rounded to bfloat16 before the weight": norm(between=bfloat16),
    "normalized numbers rounded to bfloat16 before the weight, in": norm(F, between=bfloat16),
    "weight and bias of LayerNorm rounded to bfloat16": lambda x, w, b, e: norm()(
        x, bfloat16(w), bfloat16(b), e
    ),
    "bias of LayerNorm left out": norm(keep="w"),
    "weight of LayerNorm left out": norm(keep="b"),
    "mean not taken off (RMSNorm)": rms,
}


@pytest.mark.parametrize("cause", NORMS)
def test_layer_norm(kit, cause):
    found = named(kit, encoder(kit, layer_norm=NORMS[cause]))
    expected = cause.removesuffix(", in").removesuffix(", in float32")
    assert found
    assert all(op == "layer_norm" and first.startswith(expected) for op, first in found), found


@pytest.mark.parametrize(
    ("cause", "function"),
    [
        ("LayerNorm, in float32", norm(F)),
        ("variance as E[x^2] - E[x]^2, in float32", norm(F, squares=True)),
        ("variance over n - 1, in float32", norm(F, off=1)),
    ],
)
def test_layer_norm_in_float32(kit, cause, function):
    """Of numbers far from 0, whose variance cancels."""
    name = "operator/layer_norm/result"
    x, weight, bias = (kit.inputs(name)[role] for role in ("x", "weight", "bias"))
    report = verify(kit, {name: function(x, weight, bias, 1e-12)})
    assert report.first.causes == (cause,)


# Products


def in_runs(run, order="forward"):
    def function(a, b):
        a, b = e4m3(a), e4m3(b)
        parts = [
            (a[..., i : i + run] @ b[..., i : i + run, :]).astype(F)
            for i in range(0, a.shape[-1], run)
        ]
        if order == "pairs":
            while len(parts) > 1:
                parts = [sum(parts[i : i + 2][1:], parts[i]) for i in range(0, len(parts), 2)]
        total = F(0)
        for part in parts[::-1] if order == "back" else parts:
            total = total + part
        return np.asarray(total + F(0), F)

    return function


def in_lanes(lanes):
    def function(a, b):
        a, b = e4m3(a).astype(F), e4m3(b).astype(F)
        total = [F(0)] * lanes
        for k in range(a.shape[-1]):
            total[k % lanes] = total[k % lanes] + a[..., k, None] * b[..., k, None, :]
        while len(total) > 1:
            half = len(total) // 2
            total = [total[i] + total[i + half] for i in range(half)]
        return np.asarray(total[0] + F(0), F)

    return function


SUMS = {
    **{f"exact sums of {n} along K, added in float32": in_runs(n) for n in (16, 32, 64, 128)},
    "exact sums of 32 along K, added in float32, in pairs": in_runs(32, "pairs"),
    "exact sums of 32 along K, added in float32, from the last to the first": in_runs(32, "back"),
    "float32 accumulation in 4 interleaved sums": in_lanes(4),
    "float32 accumulation in 8 interleaved sums": in_lanes(8),
    "float32 accumulation in 16 interleaved sums": in_lanes(16),
    "float32 accumulation, one product after the other": in_runs(1),
    "double rounding through float16": lambda a, b: (
        outsiders.exact_sum(a, b).astype(np.float16).astype(F)
    ),
}


@pytest.mark.parametrize("cause", SUMS)
def test_sums(kit, cause):
    """Of two parts the order is no matter: there, and in few others, another name comes first."""
    found = named(kit, encoder(kit, sum=SUMS[cause]))
    assert {operation for operation, _ in found} == {"sum"}
    assert found[("sum", cause)] >= 0.8 * sum(found.values())


def test_results_of_exact_blocks_of_32_are_enough(kit):
    """Only the codes that the layers' last products are made of, and their results."""
    sites = [f"model/0/encoder.layer.{i}.output.dense" for i in range(2)]
    found = encoder(kit, sum=in_runs(32))
    inner = {
        f"{site}/{what}": found[f"{site}/{what}"] for site in sites for what in ("a", "product")
    }
    causes = named(kit, inner)
    assert causes[("scale_sum", "exact sums of 32 along K, added in float32")] == 2


def test_float32_sums_in_an_unknown_order(kit):
    """A random order for each element: no formula makes it, but it lies within the likely error."""
    rng = np.random.default_rng(3)

    def shuffled(a, b):
        order = rng.permutation(a.shape[-1])
        return in_runs(1)(a[..., order], b[..., order, :])

    found = named(kit, encoder(kit, sum=shuffled))
    cause = "float32 accumulation in another order, within its likely error"
    assert found[("sum", cause)] > 0.8 * sum(found.values())


def scaled(change):
    def function(total, a, b, bias=None):
        return np.asarray(change(total, a, b, F(-0.0) if bias is None else bias), F)

    return function


SCALINGS = {
    "scaled sum rounded to bfloat16 before the bias": lambda t, a, b, c: bfloat16(t * (a * b)) + c,
    "bias rounded to bfloat16": lambda t, a, b, c: t * (a * b) + bfloat16(c),
    "bias added before scaling": lambda t, a, b, c: (t + c) * (a * b),
    "bias left out": lambda t, a, b, c: t * (a * b),
    "bias added twice": lambda t, a, b, c: t * (a * b) + c + c,
    "bias subtracted": lambda t, a, b, c: t * (a * b) - c,
    "scaling and bias rounded once (fused multiply-add)": lambda t, a, b, c: (
        t.astype(np.float64) * F(a * b) + c
    ),
    "scale of the right operand left out": lambda t, a, b, c: t * a + c,
    "scale of the left operand left out": lambda t, a, b, c: t * b + c,
    "scale of the left operand for both": lambda t, a, b, c: t * (a * a) + c,
    "scale of the left operand applied twice": lambda t, a, b, c: t * (a * a * b) + c,
    "scale of the right operand for both": lambda t, a, b, c: t * (b * b) + c,
    "scale inverted": lambda t, a, b, c: t * (F(1) / a) * (F(1) / b) + c,
    "scales multiplied in float64": lambda t, a, b, c: (
        (t.astype(np.float64) * (np.float64(a) * np.float64(b))).astype(F) + c
    ),
    "scales multiplied one after the other": lambda t, a, b, c: t * b * a + c,
}


@pytest.mark.parametrize("cause", SCALINGS)
def test_scaling(kit, cause):
    found = encoder(kit, scaled=scaled(SCALINGS[cause]))
    report = verify(kit, {n: x for n, x in found.items() if kit.tensors[n].operation != "add"})
    roots = [item for item in report.differences if item.operation == "scale_sum" and item.root]
    with_bias = [item for item in roots if "bias" in kit.tensors[item.name].inputs]
    assert len(with_bias) >= 10
    assert all(item.causes[0] == cause for item in with_bias)


QUANTIZERS = {
    "scale of the largest magnitude over another number than the format's largest": (
        lambda x, s: to_e4m3(x / F(s * F(448 / 240)))
    ),
    "scale inverted": lambda x, s: to_e4m3(x * s),
    "scale left out": lambda x, s: to_e4m3(x),
    "scale applied twice": lambda x, s: to_e4m3(x / (s * s)),
    "scale rounded to bfloat16": lambda x, s: to_e4m3(x / bfloat16(s)),
    "scale rounded to a power of two": lambda x, s: to_e4m3(x / np.exp2(np.ceil(np.log2(s)))),
    "numbers and scale rounded to bfloat16, and their quotient": lambda x, s: to_e4m3(
        bfloat16(x / bfloat16(s))
    ),
    "scale of these numbers, not the given one": lambda x, s: to_e4m3(
        x / F(np.abs(x).max() / F(448))
    ),
}


@pytest.mark.parametrize("cause", QUANTIZERS)
def test_quantizing(kit, cause):
    found = named(kit, encoder(kit, quantize=QUANTIZERS[cause]))
    assert found
    assert set(found) == {("quantize", cause)}


LARGER = "a larger scale than the given one, as with a floor under it"
SMALLER = "a smaller scale than the given one, as with a limit to it"


@pytest.mark.parametrize(
    ("scale", "cause"), [(0.1, LARGER), (0.0731, LARGER), (1 / 3, LARGER), (0.0077, SMALLER)]
)
def test_another_scale(kit, scale, cause):
    """One number instead of each activation's own scale; in one tensor, and in a whole model."""
    name = "model/0/encoder.layer.0.attention.self.query/a"
    given = kit.inputs(name)
    assert given["scale"] < F(scale) if cause == LARGER else given["scale"] > F(scale)
    codes = to_e4m3(given["x"] / F(scale))
    assert named(kit, {name: codes}) == {("quantize", cause): 1}
    found = named(kit, encoder(kit, quantize=lambda x, s: to_e4m3(x / F(scale))))
    assert {operation for operation, _ in found} == {"quantize"}
    assert found["quantize", cause] >= 10


def test_no_scale_for_codes_of_two(kit):
    """A scale is named only if it makes every code."""
    name = "model/0/encoder.layer.0.attention.self.query/a"
    given = kit.inputs(name)
    codes = to_e4m3(given["x"] / F(0.1))
    codes[0] = kit.arrays[name][0]
    assert named(kit, {name: codes}) == {("quantize", ""): 1}


def test_a_scale_of_integers(kit):
    """With a zero point and at the ends of the codes, too."""
    for case, dtype, low, high in (("uint8", np.uint8, 0, 255), ("int8", np.int8, -127, 127)):
        name = f"operator/quantize-{case}/codes"
        given = kit.inputs(name)
        zero = float(given.get("zero_point", 0))
        wrong = np.clip(np.rint(given["x"] / F(given["scale"] * F(1.37))) + zero, low, high)
        assert named(kit, {name: wrong.astype(dtype)}) == {("quantize", LARGER): 1}


# Embeddings


def embedded(kit, case, *, places=None, types=None):
    """The sum of a text's embeddings by tables of the rows that the kit's two texts have."""
    words, positions, kinds = {}, {}, {}
    for text in ("model/0", "model/1"):
        ids, of, mask = (
            kit.arrays[f"{text}/{name}"][0]
            for name in ("input_ids", "token_type_ids", "attention_mask")
        )
        kept = np.flatnonzero(mask == 1)
        for i, x, y in zip(
            kept,
            kit.arrays[f"{text}/embeddings/add.x"],
            kit.arrays[f"{text}/embeddings/add.y"],
            strict=True,
        ):
            words[int(ids[i]), int(of[i])] = x
            positions[int(i)] = y
        if text == case:
            chosen = kept, ids[kept], of[kept]
    separator = 102
    kinds = words[separator, 1].astype(np.float64) - words[separator, 0]
    kept, ids, of = chosen
    rows = []
    for number, (place, word, kind) in enumerate(zip(kept, ids, of, strict=True)):
        wanted = types(int(kind)) if types else int(kind)
        x = words[int(word), int(kind)] + (wanted - int(kind)) * kinds
        y = positions[places(int(place), number) if places else int(place)]
        rows.append(bfloat16(np.asarray(x.astype(F) + y, F)))
    return np.stack(rows)


EMBEDDINGS = {
    "positions begin at 1, not at 0": ("model/0", {"places": lambda place, number: place + 1}),
    "positions counted without padding": ("model/1", {"places": lambda place, number: number}),
    "token types ignored (all are 0)": ("model/1", {"types": lambda kind: 0}),
    "token types exchanged (0 for 1)": ("model/1", {"types": lambda kind: 1 - kind}),
}


def test_embeddings_are_right(kit):
    for case in ("model/0", "model/1"):
        assert (embedded(kit, case) == kit.arrays[f"{case}/embeddings/add"]).all()


@pytest.mark.parametrize("cause", EMBEDDINGS)
def test_embeddings(kit, cause):
    case, changes = EMBEDDINGS[cause]
    name = f"{case}/embeddings/add"
    wrong = embedded(kit, case, **changes)
    assert named(kit, {name: wrong}) == {("add", cause): 1}
    wrong[2, 5] += F(1)
    report = verify(kit, {name: wrong})
    assert report.first.causes == ()
    assert [part.cause for part in report.first.partial] == [cause]


def test_positions_that_no_text_has(kit):
    """Where a row is not in the kit, most of the elements are explained by the others."""
    cause = "positions begin at 1, not at 0"
    only = {name: x for name, x in kit.tensors.items() if not name.startswith("model/1")}
    part = Kit(kit.header, only, {name: kit.arrays[name] for name in only})
    name = "model/0/embeddings/add"
    wrong = embedded(kit, "model/0", **EMBEDDINGS[cause][1])
    first = verify(part, {name: wrong}).first
    assert first.causes == ()
    assert [item.cause for item in first.partial] == [cause]
    assert verify(part, {name: np.full_like(wrong, np.nan)}).first.causes == ()


def test_multiplication_by_the_reciprocal_of_the_scale(kit):
    name = "operator/quantize-e4m3fn-ties/codes"
    x, scale = kit.inputs(name).values()
    report = verify(kit, {name: to_e4m3(x * (F(1) / scale))})
    assert report.first.causes[0] == "multiplication by the reciprocal of the scale"


def test_quotients_in_float64(kit):
    """Where the float32 quotient is a tie, and the exact one lies beside it."""
    name, scale = "operator/quantize-e4m3fn-ties/codes", np.asarray(F(0.1))
    values = outsiders._VALUES[:0x7F]
    x = ((values[:-1] + values[1:]) / 2 * np.float64(scale)).astype(F)
    place = name.removesuffix("/codes")
    tensors = {
        f"{place}/{what}": kit.tensors[f"{place}/{what}"] for what in ("x", "scale", "codes")
    }
    right = to_e4m3(x / scale)
    small = Kit({}, tensors, dict(zip(tensors, (x, scale, right), strict=True)))
    codes = to_e4m3(x.astype(np.float64) / np.float64(scale))
    assert (codes != right).any()
    assert "quotient in float64" in verify(small, {name: codes}).first.causes


RESULTS = {
    "double rounding through float16": lambda x: bfloat16(x.astype(np.float16)),
    "bfloat16 results truncated": lambda x: (x.view(np.uint32) & outsiders.BF16).view(F),
    "results rounded to float16, not to bfloat16": lambda x: x.astype(np.float16).astype(F),
    "results not rounded to bfloat16": lambda x: x,
    "results rounded to E4M3FN": lambda x: e4m3(to_e4m3(x)).astype(F),
}


@pytest.mark.parametrize("cause", RESULTS)
def test_results_through_another_dtype(kit, cause):
    found = named(kit, encoder(kit, result=RESULTS[cause]))
    assert set(found) == {("round", cause)}
    amax = F(448) / F(1)
    again = encoder(
        kit,
        result=lambda x: bfloat16(
            e4m3(to_e4m3(x / (np.abs(x).max() / amax))).astype(F) * (np.abs(x).max() / amax)
        ),
    )
    assert set(named(kit, again)) == {("round", "results rounded to E4M3FN")}


# The network


STEPS = {
    "1/sqrt(d) left out": ("multiply", {"scores": lambda x: x}),
    "1/sqrt(d) applied twice": ("multiply", {"scores": lambda x: bfloat16(x * F(1 / 64))}),
    "multiplication by sqrt(d) instead of its reciprocal": (
        "multiply",
        {"scores": lambda x: bfloat16(x * F(8))},
    ),
    "1/sqrt(d) of all heads' features, not of one's": (
        "multiply",
        {"scores": lambda x: bfloat16(x * F(1 / math.sqrt(128)))},
    ),
    "1/sqrt(d) of another d": ("multiply", {"scores": lambda x: bfloat16(x * F(1 / math.sqrt(2)))}),
    "residual left out": ("add", {"add": lambda x, y: bfloat16(x)}),
    "residual alone": ("add", {"add": lambda x, y: bfloat16(y)}),
    "sum in float16": (
        "add",
        {"add": lambda x, y: bfloat16(x.astype(np.float16) + y.astype(np.float16))},
    ),
    "heads split without a transposition": (
        "quantize",
        {"split": lambda x, heads: x.reshape(1, heads, len(x), -1)},
    ),
    "heads merged without a transposition": (
        "quantize",
        {"merge": lambda x: x.reshape(x.shape[2], -1)},
    ),
    "right operand not transposed": (
        "sum",
        {"weight": lambda codes: np.ascontiguousarray(codes).reshape(codes.T.shape)},
    ),
    "1/sqrt(d) applied before quantizing": (
        "quantize",
        {
            "quantize_query": lambda x, scale, own: own(bfloat16(x * F(0.125)), scale),
            "scores": lambda x: x,
        },
    ),
    "tanh left out": ("activation", {"tanh": lambda x: x}),
}


@pytest.mark.parametrize("cause", STEPS)
def test_steps_of_the_network(kit, cause):
    operation, faults = STEPS[cause]
    report = verify(kit, encoder(kit, **faults))
    assert report.first.operation == operation
    assert report.first.causes[0] == cause
    roots = [item for item in report.differences if item.root and item.operation == operation]
    assert all(cause in item.causes for item in roots)


@pytest.mark.parametrize(
    "cause",
    [
        "1/sqrt(d) left out",
        "residual left out",
        "heads split without a transposition",
        "1/sqrt(d) of all heads' features, not of one's",
    ],
)
def test_the_logits_are_enough(kit, cause):
    found = encoder(kit, **STEPS[cause][1])
    report = verify(kit, {"model/0/logits": found["model/0/logits"]})
    assert cause in report.first.causes, report.text()


def test_queries_and_keys_exchanged(kit):
    place = "model/0/encoder.layer.0.attention"
    q, k = (
        outsiders.split(kit.arrays[f"{place}.self.{what}/result"], 2) for what in ("query", "key")
    )
    scales = [kit.arrays[f"scales/encoder.layer.0.attention.scores/{x}.scale"] for x in "ab"]
    candidate = {
        f"{place}.scores/a": outsiders.quantize(k, scales[0]),
        f"{place}.scores/b": outsiders.quantize(q, scales[1]).swapaxes(-1, -2),
    }
    found = named(kit, candidate)
    assert set(found) == {("quantize", "operands exchanged (queries for keys)")}


# Several errors


def test_two_defects_are_named_where_each_arises(kit):
    """Also where the second one's inputs are wrong already."""
    for case in ("model/0", "model/1"):
        faults = {"result": RESULTS["bfloat16 results truncated"], "gelu": gelu_tanh}
        found = named(kit, encoder(kit, case, **faults))
        assert set(found) == {
            ("round", "bfloat16 results truncated"),
            ("activation", f"{BY_TANH}, in float64"),
        }
    faults = {"scaled": scaled(SCALINGS["bias left out"]), "layer_norm": norm(eps=1e-5)}
    found = named(kit, encoder(kit, **faults))
    assert {operation for operation, _ in found} == {"scale_sum", "layer_norm"}
    assert all(first for _, first in found)


def test_a_defect_and_another_accumulator(kit):
    faults = {"sum": in_runs(32), "result": RESULTS["bfloat16 results truncated"]}
    found = named(kit, encoder(kit, **faults))
    assert found[("sum", "exact sums of 32 along K, added in float32")] >= 8
    assert found[("round", "bfloat16 results truncated")] >= 10
    assert {operation for operation, _ in found} == {"sum", "round"}
    assert all(first for _, first in found)


def test_a_right_backend_hears_of_nothing(kit):
    for case in ("model/0", "model/1"):
        report = verify(kit, encoder(kit, case))
        assert report.passed
        assert report.text().count("\n") == 0 or "cause" not in report.text()


# Parts


@pytest.fixture(scope="module")
def half_wrong(kit):
    """Codes that are truncated, and in which three others are wrong."""
    name = "operator/quantize-e4m3/codes"
    x, scale = kit.inputs(name).values()
    right = kit.arrays[name]
    values = np.abs(outsiders._VALUES[:0x7F])
    quotient = np.minimum(np.abs((x / scale).astype(np.float64)), 448)
    codes = np.searchsorted(values, quotient, side="right") - 1
    found = np.where(np.isnan(x), right, codes | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)
    found[[900, 1000, 1100]] ^= 4
    return name, found


def test_most_of_the_elements(kit, half_wrong):
    name, found = half_wrong
    report = verify(kit, {name: found})
    assert report.first.causes == ()
    best = report.first.partial[0]
    assert best.cause == "truncation"
    different = int((found != kit.arrays[name]).sum())
    assert best.different == report.first.different == different
    assert different - 3 <= best.explained < different
    assert best.changed <= 3
    assert f"truncation explains {best.explained} of {different} differing" in report.text()
    assert report.as_json()["first"]["partial"][0]["cause"] == "truncation"
    json.dumps(report.as_json())
    assert "truncation explains" in html_report(kit, report, {name: found})


def test_texts_of_parts():
    assert Partial("x", 4, 5, 0, 7).text() == (
        "x explains 4 of 5 differing elements and changes none of the others"
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_noise_gets_no_cause(kit, seed, share):
    """One unit in the last place, up or down, at random elements of several operations.

    256 units in float32: fewer may be a sum in another order, and are said to be.
    """
    rng = np.random.default_rng(seed)
    names = [
        "operator/quantize-e4m3/codes",
        "codec/E4M3FN/nearest-saturating",
        "model/0/encoder.layer.0.attention.self.query/product",
        "model/0/encoder.layer.0.attention.self.query/result",
        "model/0/encoder.layer.0.attention.output.dense/layer_norm",
        "model/0/encoder.layer.0.intermediate.dense/gelu",
        "model/0/encoder.layer.0.output.dense/add",
    ]
    candidate = {}
    for name in names:
        right = kit.arrays[name]
        chosen = rng.random(right.shape) < share
        up = rng.random(right.shape) < 0.5
        if right.dtype == np.uint8:
            magnitude = np.clip((right & 0x7F).astype(int) + np.where(up, 1, -1), 0, 0x7E)
            moved = ((right & 0x80) | magnitude).astype(np.uint8)
        else:
            step = 0x10000 if kit.tensors[name].kind == "bfloat16" else 0x100
            bits = right.view(np.uint32).astype(np.int64)
            moved = np.where(up, bits + step, np.maximum(bits - step, 0)).astype(np.uint32).view(F)
        candidate[name] = np.where(chosen & (right != 0), moved, right)
    report = verify(kit, candidate)
    for item in report.differences:
        if item.different >= 8:
            assert item.causes == (), item
            assert item.partial == (), item
