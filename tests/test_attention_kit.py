"""Fused attention in the kit: its operations, its recording, and defects named from the outputs.

The kernel here is written as others would write it, in plain NumPy that shares no code with the
package, and each fault is a few lines of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import kit_backends
import numpy as np
import pytest
from conftest import ROOT

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Operand, SiteRecipe, apply_recipe, calibrate
from bert_numpy.commands.main import main
from bert_numpy.kit import open_kit, verify
from bert_numpy.kit.attention_cases import add_attention_cases
from bert_numpy.kit.attention_defects import attention_defects
from bert_numpy.kit.attention_operations import ATTENTION_OPERATIONS
from bert_numpy.kit.attention_steps import Operands, add_attention
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.cases import random_codes
from bert_numpy.kit.checks import check_entry
from bert_numpy.kit.defects import ACCUMULATED, DEFECTS
from bert_numpy.kit.evaluation import Evaluation
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.history import Traced
from bert_numpy.kit.manifest import LEVELS, Kit, Tensor, apply_view, manifest_of, write_kit
from bert_numpy.model.model import Model
from bert_numpy.model.sites import expected_shapes
from bert_numpy.quantization.tiled_attention import TiledAttention, finished, steps
from npfp8 import E4M3FN, QuantizedTensor
from npfp8.bfloat16 import round_to_bfloat16

F = np.float32
SCORES = "model/0/encoder.layer.0.attention.scores"
CONTEXT = "model/0/encoder.layer.0.attention.context"


# A kernel that is right, in plain NumPy


def table(exponents: int, mantissas: int, bias: int, top: int) -> np.ndarray:
    """The values of the codes from 0 to the largest one, by their fields."""
    codes = np.arange(top + 1)
    e, m = codes >> mantissas, codes & (2**mantissas - 1)
    fraction = m / 2**mantissas
    return np.where(e > 0, (1 + fraction) * 2.0 ** (e - bias), fraction * 2.0 ** (1 - bias))


MAGNITUDES = {"E4M3FN": table(4, 3, 7, 0x7E), "E5M2": table(5, 2, 15, 0x7B)}


def values(codes: np.ndarray, fmt: str) -> np.ndarray:
    return np.where(codes & 0x80, -1, 1) * MAGNITUDES[fmt][codes & 0x7F]


def nearest(p: np.ndarray, fmt: str) -> np.ndarray:
    """The codes of numbers from 0 on: nearest, of two the even one, at most the largest."""
    magnitudes = MAGNITUDES[fmt]
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    low, high = np.searchsorted(middle, p), np.searchsorted(middle, p, side="right")
    return np.where(low % 2 == 0, low, high).astype(np.uint8)


def exact_sums(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    return np.array([math.fsum(row) for row in rows.tolist()], F).reshape(*x.shape[:-1], 1)


class Kernel:
    """FlashAttention in FP8. A fault is a method in another way."""

    fmt, tile, offset, of_codes = "E4M3FN", 16, 8, False
    bias = None

    def __init__(self, **given):
        vars(self).update(given)
        self.keys = self.k.shape[-1]

    def tiles(self):
        return [range(i, min(i + self.tile, self.keys)) for i in range(0, self.keys, self.tile)]

    def sum(self, keys):
        return (values(self.q, self.fmt) @ values(self.k[..., keys], self.fmt)).astype(F)

    def scores(self, total, keys):
        return self.with_bias(total * (self.qs * self.ks) * self.factor, keys)

    def with_bias(self, x, keys):
        return x if self.bias is None else x + self.bias[..., keys]

    def maximum(self, x, old):
        largest = x.max(axis=-1, keepdims=True)
        return largest if old is None else np.maximum(old, largest)

    def weights(self, x, m, old):
        return self.power(x.astype(np.float64) - m, self.offset)

    def power(self, x, offset):
        return (np.exp(x) * 2.0**offset).astype(F)

    def codes(self, p):
        return nearest(p, self.fmt)

    def row_sum(self, p, codes, m):
        return exact_sums(values(codes, self.fmt) if self.of_codes else p)

    def rescale(self, old, m):
        return self.power(old.astype(np.float64) - m, 0)

    def product(self, p, codes, keys):
        return self.of_values(values(codes, self.fmt), keys)

    def of_values(self, p, keys):
        return (p @ values(self.v[..., keys, :], self.fmt)).astype(F)

    def total(self, old, a, new):
        return old * a + new

    def output(self, old, a, new):
        return old * a + new

    def result(self, output, total):
        return output * (F(1) / total * self.vs)

    def run(self):
        """Every tensor by its name in a kit."""
        found, m, total, output = {}, None, None, None
        for i, places in enumerate(self.tiles()):
            keys, old = list(places), m
            found[f"{i}/sum"] = self.sum(keys)
            x = found[f"{i}/scores"] = self.scores(found[f"{i}/sum"], keys)
            m = found[f"{i}/maximum"] = self.maximum(x, old)
            p = found[f"{i}/weights"] = self.weights(x, m, old)
            codes = found[f"{i}/codes"] = self.codes(p)
            row_sum = found[f"{i}/row_sum"] = self.row_sum(p, codes, m)
            product = found[f"{i}/product"] = self.product(p, codes, keys)
            if old is None:
                total, output = row_sum, product
                continue
            a = found[f"{i}/rescale"] = self.rescale(old, m)
            total = found[f"{i}/total"] = self.total(total, a, row_sum)
            output = found[f"{i}/output"] = self.output(output, a, product)
        return found | {"attention": self.result(output, total)}


CASES = {
    "tiles": {"given": "e4m3fn"},
    "plain": {"given": "e4m3fn", "offset": 0, "of_codes": True},
    "whole": {"given": "e5m2", "fmt": "E5M2", "tile": 64, "of_codes": True},
}

#: The steps that the case "plain" has in common with "tiles".
SHARED = ("sum", "scores", "maximum", "rescale")


@pytest.fixture(scope="module")
def kit() -> Kit:
    builder = Builder()
    add_attention_cases(builder)
    return builder.kit({"levels": ["operator"], "arithmetic": []})


def given(kit, case):
    """The arguments of a kernel."""
    how = dict(CASES[case])
    place = f"operator/attention-{how.pop('given')}"
    how |= {role: kit.arrays[f"{place}/{role}"] for role in "qkv"}
    how |= {f"{role}s": kit.arrays[f"operator/attention/{role}.scale"] for role in "qkv"}
    bias = kit.arrays.get(f"{place}/bias")
    return how | {"factor": F(1 / math.sqrt(8)), "bias": bias}


def candidate(kit, case, kernel=Kernel, **changes):
    """What a kernel makes of a case, as far as the kit has tensors of these shapes."""
    with np.errstate(all="ignore"):
        made = kernel(**given(kit, case) | changes).run()
    found = {}
    for what, x in made.items():
        shared = case == "plain" and what.rpartition("/")[2] in SHARED
        name = f"operator/attention-{'tiles' if shared else case}/{what}"
        if name in kit.arrays and kit.arrays[name].shape == x.shape:
            found[name] = x
    return found


def computed(kit, *levels):
    return {
        name: kit.arrays[name]
        for name, tensor in kit.tensors.items()
        if tensor.operation != "given" and tensor.level in levels
    }


def causes(kit, tensors):
    """The causes at each place where something goes wrong, by its name in the case."""
    report = verify(kit, tensors)
    assert not report.passed
    return {
        item.name.partition("/attention-")[2].partition("/")[2]: item.causes
        for item in report.differences
        if item.root
    }


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_of_these_tests_is_right(kit, case):
    found = candidate(kit, case)
    assert f"operator/attention-{case}/attention" in found
    for name, x in found.items():
        assert x.tobytes() == kit.arrays[name].tobytes(), name
    of_case = {n for n, t in kit.tensors.items() if n.startswith(f"operator/attention-{case}/")
               and t.operation != "given"}  # fmt: skip
    assert of_case <= set(found)
    assert verify(kit, found).passed


def test_torch_attention(kit, torch):
    """Bit for bit, with float8 types; with another offset, that is what the report says."""
    how = {"tiles": {}, "plain": {"offset": 0, "of_codes": True},
           "whole": {"keys": 64, "of_codes": True}}  # fmt: skip
    for case, options in how.items():
        found = kit_backends.torch_attention(torch, kit, case, **options)
        report = verify(kit, found)
        assert report.passed, report.text()
        assert len(found) == {"tiles": 28, "plain": 17, "whole": 8}[case]
    other = kit_backends.torch_attention(torch, kit, "tiles", offset=0)
    assert causes(kit, other)["0/weights"] == ("offset of the weights left out",)


def test_cases_are_what_they_are_meant_to_be(kit):
    """The largest score rises in later tiles, stays and ties; weights underflow without 2^8."""
    place = "operator/attention-tiles"
    m = np.stack([kit.arrays[f"{place}/{i}/maximum"][0, :, 0] for i in range(3)])
    assert (m[0, 0] == m[1, 0]) & (m[1, 0] == m[2, 0])
    scores = [kit.arrays[f"{place}/{i}/scores"][0] for i in range(3)]
    assert scores[0][0].max() == scores[1][0].max()  # a tie of two tiles
    assert (m[0, 1] == m[1, 1]) & (m[1, 1] < m[2, 1])
    assert m[0, 2] < m[1, 2] < m[2, 2]
    assert all((x[3] == 0).all() for x in scores)
    assert m[2, 4] < 0
    sizes = [x.shape[-1] for x in scores]
    assert sizes == [16, 16, 5]
    zeros = {
        case: sum((kit.arrays[f"operator/attention-{case}/{i}/codes"] == 0).sum() for i in range(3))
        for case in ("tiles", "plain")
    }
    assert zeros["plain"] > zeros["tiles"] > 0
    scales = [float(kit.arrays[f"operator/attention/{role}.scale"]) for role in "qkv"]
    assert len({*scales, *(scale**2 for scale in scales), 1.0}) == 7


# Faults


def fault(**methods):
    """A kernel with some methods in another way."""
    return type("Fault", (Kernel,), methods)


def filled(size, *, maximum, total, score=0.0):
    """A kernel whose last tile is filled up with keys of zeros, whose scores are all one number."""

    def missing(self, x):
        return -x.shape[-1] % size

    def largest(self, x, old):
        right = Kernel.maximum(self, x, old)
        return np.maximum(right, F(score)) if maximum and missing(self, x) else right

    def row_sum(self, p, codes, m):
        empty = np.repeat(
            self.power(score - m.astype(np.float64), self.offset), missing(self, p), -1
        )
        values_of_empty = values(nearest(empty, self.fmt), self.fmt)
        p = np.concatenate([p, empty], -1) if total else p
        codes = values(codes, self.fmt)
        codes = np.concatenate([codes, values_of_empty], -1) if total else codes
        return exact_sums(codes if self.of_codes else p)

    return fault(maximum=largest, row_sum=row_sum)


def toward_zero(self, p):
    return (np.searchsorted(MAGNITUDES[self.fmt], p, side="right") - 1).astype(np.uint8)


def as_bfloat16(self, p, codes, keys):
    return self.of_values(round_to_bfloat16(p).astype(np.float64), keys)


def fused(self, old, a, new):
    """In extended precision, as these numbers' sums fit there or their rounding is no tie."""
    return (old.astype(np.longdouble) * a + new).astype(F)


BOTH = ("tiles", "plain")
ALL = ("tiles", "plain", "whole")
OFFSET = ("tiles", "whole")

#: Each fault: its name, the kernel that has it, the cases in which it shows, and the step where it
#: begins, if a candidate has all steps.
FAULTS = {
    "scale of q left out": (
        fault(scores=lambda s, t, ks: s.with_bias(t * s.ks * s.factor, ks)), ALL, "0/scores"),
    "scale of q applied twice": (
        fault(scores=lambda s, t, ks: s.with_bias(t * (s.qs * s.ks * s.qs) * s.factor, ks)),
        ALL, "0/scores"),
    "scale of k left out": (
        fault(scores=lambda s, t, ks: s.with_bias(t * s.qs * s.factor, ks)), ALL, "0/scores"),
    "scale of k applied twice": (
        fault(scores=lambda s, t, ks: s.with_bias(t * (s.qs * s.ks * s.ks) * s.factor, ks)),
        ALL, "0/scores"),
    "scale left out": (
        fault(scores=lambda s, t, ks: s.with_bias(t * s.factor, ks)), ALL, "0/scores"),
    "1/sqrt(d) left out": (
        fault(scores=lambda s, t, ks: s.with_bias(t * (s.qs * s.ks), ks)), ALL, "0/scores"),
    "1/sqrt(d) applied twice": (
        fault(scores=lambda s, t, ks: s.with_bias(t * (s.qs * s.ks) * s.factor * s.factor, ks)),
        ALL, "0/scores"),
    "1/sqrt(d) multiplied by the scales first": (
        fault(scores=lambda s, t, ks: s.with_bias(t * (s.qs * s.ks * s.factor), ks)),
        BOTH, "0/scores"),
    "bias left out": (
        fault(scores=lambda s, t, ks: t * (s.qs * s.ks) * s.factor), BOTH, "0/scores"),
    "bias added before scaling": (
        fault(scores=lambda s, t, ks: s.with_bias(t, ks) * (s.qs * s.ks) * s.factor),
        BOTH, "0/scores"),
    "bias added before 1/sqrt(d)": (
        fault(scores=lambda s, t, ks: s.with_bias(t * (s.qs * s.ks), ks) * s.factor),
        BOTH, "0/scores"),
    "scores rounded to bfloat16": (
        fault(scores=lambda s, t, ks: round_to_bfloat16(Kernel.scores(s, t, ks))),
        ALL, "0/scores"),
    "maximum of the tile alone": (
        fault(maximum=lambda s, x, old: x.max(axis=-1, keepdims=True)), BOTH, "1/maximum"),
    "keys of padding in the maximum": (filled(16, maximum=True, total=False), BOTH, "2/maximum"),
    "stale maximum": (
        fault(weights=lambda s, x, m, old: Kernel.weights(s, x, m if old is None else old, old)),
        BOTH, "1/weights"),
    "softmax without taking the largest element off": (
        fault(weights=lambda s, x, m, old: s.power(x.astype(np.float64), s.offset)),
        ALL, "0/weights"),
    "offset of the weights left out": (
        fault(weights=lambda s, x, m, old: s.power(x.astype(np.float64) - m, 0)),
        OFFSET, "0/weights"),
    "weights times 2^8": (
        fault(weights=lambda s, x, m, old: s.power(x.astype(np.float64) - m, 8)),
        ("plain",), "0/weights"),
    "2^x instead of e^x": (
        fault(power=lambda s, x, offset: np.exp2(x + offset).astype(F)), ALL, "0/weights"),
    "offset in the sum of the weights, but not in the weights": (
        fault(codes=lambda s, p: nearest(p / F(2**s.offset), s.fmt)), ("tiles",), "0/codes"),
    "truncation": (fault(codes=toward_zero), ALL, "0/codes"),
    "weights not rounded to codes": (
        fault(product=lambda s, p, codes, ks: s.of_values(p.astype(np.float64), ks)),
        ALL, "0/product"),
    "weights rounded to bfloat16, not to codes": (fault(product=as_bfloat16), ALL, "0/product"),
    "sum of the weights' codes": (
        fault(row_sum=lambda s, p, codes, m: exact_sums(values(codes, s.fmt))),
        ("tiles",), "0/row_sum"),
    "sum of the weights before they become codes": (
        fault(row_sum=lambda s, p, codes, m: exact_sums(p)), ("plain", "whole"), "0/row_sum"),
    "offset in the weights, but not in their sum": (
        fault(row_sum=lambda s, *x: Kernel.row_sum(s, *x) / F(2**s.offset)), OFFSET, "0/row_sum"),
    "keys of padding in the sum of the weights": (
        filled(16, maximum=False, total=True), BOTH, "2/row_sum"),
    "keys of padding in the maximum and in the sum of the weights": (
        filled(16, maximum=True, total=True), ALL, None),
    "padding masked by a finite number, not by -infinity": (
        filled(16, maximum=True, total=True, score=-1.0), ALL, None),
    "sum of the tiles before not rescaled": (
        fault(total=lambda s, old, a, new: old + new), BOTH, "1/total"),
    "output of the tiles before not rescaled": (
        fault(output=lambda s, old, a, new: old + new), BOTH, "1/output"),
    "rescaling left out": (
        fault(rescale=lambda s, old, m: np.ones_like(m)), BOTH, "1/rescale"),
    "rescaling by the inverse": (
        fault(rescale=lambda s, old, m: s.power(m.astype(np.float64) - old, 0)),
        BOTH, "1/rescale"),
    "sum rescaled by the inverse": (
        fault(total=lambda s, old, a, new: old / a + new), BOTH, "1/total"),
    "output rescaled by the inverse": (
        fault(output=lambda s, old, a, new: old / a + new), BOTH, "1/output"),
    "sum of this tile rescaled, not that of the tiles before": (
        fault(total=lambda s, old, a, new: old + new * a), BOTH, "1/total"),
    "output of this tile rescaled, not that of the tiles before": (
        fault(output=lambda s, old, a, new: old + new * a), BOTH, "1/output"),
    "sum of the tiles before left out": (
        fault(total=lambda s, old, a, new: new), BOTH, "1/total"),
    "output of the tiles before left out": (
        fault(output=lambda s, old, a, new: new), BOTH, "1/output"),
    "output rounded to bfloat16 after every tile": (
        fault(output=lambda s, old, a, new: round_to_bfloat16(old * a + new)), BOTH, "1/output"),
    "rescaling and adding rounded once (fused multiply-add)": (
        fault(total=fused, output=fused), ("tiles",), "1/output"),
    "sum of the weights left out at the end": (
        fault(result=lambda s, o, total: o * s.vs), ALL, "attention"),
    "division by the sum, not multiplication by its reciprocal": (
        fault(result=lambda s, o, total: o / total * s.vs), ALL, "attention"),
    "scale of v left out": (
        fault(result=lambda s, o, total: o * (F(1) / total)), ALL, "attention"),
    "scale of v applied twice": (
        fault(result=lambda s, o, total: o * (F(1) / total * s.vs) * s.vs), ALL, "attention"),
    "scale of v multiplied after 1/sum": (
        fault(result=lambda s, o, total: o * (F(1) / total) * s.vs), ALL, "attention"),
    "scale of v applied tile by tile": (
        fault(of_values=lambda s, p, ks: Kernel.of_values(s, p, ks) * s.vs,
              result=lambda s, o, total: o * (F(1) / total)), ALL, None),
    "offset taken out, though it cancels": (
        fault(result=lambda s, o, t: Kernel.result(s, o, t) / F(2**s.offset)),
        OFFSET, "attention"),
    "last, shorter tile left out": (
        fault(tiles=lambda s: Kernel.tiles(s)[:-1]), BOTH, None),
    "last key left out": (
        fault(tiles=lambda s: [range(t[0], min(t[-1] + 1, s.keys - 1)) for t in Kernel.tiles(s)]),
        ALL, None),
    "key between two tiles counted twice": (
        fault(tiles=lambda s: [range(t[0], min(t[-1] + 2, s.keys)) for t in Kernel.tiles(s)]),
        BOTH, None),
    "tiles from the last to the first": (
        fault(tiles=lambda s: Kernel.tiles(s)[::-1]), BOTH, None),
    "one tile of all keys": (fault(tiles=lambda s: [range(s.keys)]), BOTH, None),
    "tiles of 8 keys": (
        fault(tiles=lambda s: [range(i, min(i + 8, s.keys)) for i in range(0, s.keys, 8)]),
        ("tiles", "whole"), None),
}  # fmt: skip


def normalized(*, reciprocal, offset):
    """Softmax first, by a reciprocal or a division; codes of weights with an offset or without."""

    def run(self):
        keys = list(range(self.keys))
        x = self.scores(self.sum(keys), keys)
        p = self.power(x.astype(np.float64) - x.max(axis=-1, keepdims=True), 0)
        p = p * (F(1) / exact_sums(p)) if reciprocal else p / exact_sums(p)
        power = F(2.0 ** (self.offset if offset else 0))
        product = self.of_values(values(nearest(p * power, self.fmt), self.fmt), keys)
        return {"attention": product * (self.vs / power)}

    return fault(run=run)


def in_format(fmt):
    return fault(
        codes=lambda s, p: nearest(p, fmt),
        row_sum=lambda s, p, codes, m: exact_sums(values(codes, fmt) if s.of_codes else p),
        product=lambda s, p, codes, ks: s.of_values(values(codes, fmt), ks),
    )


#: Other ways to the same faults, and faults beside those: a name, a kernel and its cases.
OTHERS = [
    ("key between two tiles counted twice",
     fault(tiles=lambda s: [range(max(t[0] - 1, 0), t[-1] + 1) for t in Kernel.tiles(s)]), BOTH),
    ("division by the sum, not multiplication by its reciprocal",
     fault(result=lambda s, o, total: o * s.vs / total), ALL),
    ("division by the sum, not multiplication by its reciprocal",
     fault(result=lambda s, o, total: o * (s.vs / total)), ALL),
    *(("weights rounded to codes after the division by their sum",
       normalized(reciprocal=reciprocal, offset=offset), ALL)
      for reciprocal in (False, True) for offset in (False, True)),
    *(("keys of padding in the sum of the weights",
       filled(size, maximum=False, total=True), ("whole",)) for size in (16, 32, 64, 128)),
    ("keys of padding in the maximum", filled(64, maximum=True, total=False), ("whole",)),
    *(("padding masked by a finite number, not by -infinity",
       filled(size, maximum=True, total=True, score=score), cases)
      for size, score, cases in (
          (16, -2.5, ALL), (16, -10.0, ("tiles",)), (64, -0.75, ("whole",)))),
    ("scores rounded to float16",
     fault(scores=lambda s, t, ks: Kernel.scores(s, t, ks).astype(np.float16).astype(F)), ALL),
    ("weights times 2^4",
     fault(weights=lambda s, x, m, old: s.power(x.astype(np.float64) - m, 4)), ALL),
    ("weights in E5M2 instead of E4M3FN", in_format("E5M2"), BOTH),
    ("weights in E4M3FN instead of E5M2", in_format("E4M3FN"), ("whole",)),
    ("sum of this tile rescaled, too",
     fault(total=lambda s, old, a, new: (old + new) * a), BOTH),
    ("output of this tile rescaled, too",
     fault(output=lambda s, old, a, new: (old + new) * a), BOTH),
    ("sum rounded to bfloat16 after every tile",
     fault(total=lambda s, old, a, new: round_to_bfloat16(old * a + new)), BOTH),
]  # fmt: skip


#: Names beside a fault's own: in these cases both come to the same bits.
TOO = {
    # The sum is that of the codes, which do not have the offset either.
    ("offset of the weights left out", "whole"): {
        "offset in the sum of the weights, but not in the weights"
    },
    # A bias of 11 instead of 7 is a factor of 2^4.
    ("weights times 2^4", "plain"): {"E4M3B11FNUZ instead of E4M3FN"},
    ("weights times 2^4", "tiles"): {"E4M3B11FNUZ instead of E4M3FN"},
}

#: Names beside those of encoders, in all cases: weights are not negative, and normal in float16.
OF_WEIGHTS = {"truncation": {"down instead of nearest", "truncation through float16"}}


def assert_named(named, name, case):
    others = TOO.get((name, case), set()) | OF_WEIGHTS.get(name, set())
    assert {name} <= set(named) <= {name} | others, case


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_from_the_result_alone(kit, name):
    kernel, cases, _ = FAULTS[name]
    for case in cases:
        result = f"operator/attention-{case}/attention"
        named = causes(kit, {result: candidate(kit, case, kernel)[result]})["attention"]
        assert_named(named, name, case)


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name][2]])
def test_a_fault_is_found_where_it_begins(kit, name):
    """All steps are given, and those after it follow from it."""
    kernel, cases, place = FAULTS[name]
    for case in cases:
        found = causes(kit, candidate(kit, case, kernel))
        assert place in found, found
        assert_named(set().union(*found.values()), name, case)


@pytest.mark.parametrize(("name", "kernel", "cases"), OTHERS)
def test_another_way_to_a_fault_has_its_name(kit, name, kernel, cases):
    for case in cases:
        result = f"operator/attention-{case}/attention"
        named = causes(kit, {result: candidate(kit, case, kernel)[result]})["attention"]
        assert_named(named, name, case)


def test_scales_multiplied_one_after_the_other_are_named(kit):
    """No weight's code changes in these cases: the scores have to be given."""
    kernel = fault(scores=lambda s, t, ks: s.with_bias(t * s.qs * s.ks * s.factor, ks))
    found = causes(kit, candidate(kit, "tiles", kernel))
    assert set().union(*found.values()) == {"scales multiplied one after the other"}


def test_a_fused_multiply_add_rounds_once():
    """Where a sum in float64 lies halfway between two of float32, and the exact one does not."""
    name = "rescaling and adding rounded once (fused multiply-add)"
    (fma,) = (x.operations["running_total"] for x in DEFECTS if x.name == name)
    old = F([2**-24 * (1 + 2**-15), 2**-24 * (1 + 2**-15), -(2**-24) * (1 + 2**-15), 0.1])
    factor, new = F([1 - 2**-15, 1 - 2**-15, 1 - 2**-15, 0.3]), F([1 + 2**-23, 1, -1, 0.7])
    found = fma({"before": old, "rescale": factor, "x": new}, {})
    for i, x in enumerate(found):
        exact = Fraction(float(old[i])) * Fraction(float(factor[i])) + Fraction(float(new[i]))
        beside = [np.nextafter(x, F(end)) for end in (-2, 2)]
        distance = abs(Fraction(float(x)) - exact)
        assert all(distance < abs(Fraction(float(other)) - exact) for other in beside)
    twice = (old.astype(np.float64) * factor + new).astype(F)
    assert found[0] != twice[0]


def test_every_fault_is_planted():
    """In a kernel above, or, for the sizes of tiles, in the one below with more keys."""
    known = {name for name, _ in attention_defects() if not name.startswith("tiles of ")}
    planted = {*FAULTS, *(name for name, _, _ in OTHERS), "scales multiplied one after the other"}
    assert known <= planted
    assert len(known) >= 60


def of_random_codes(keys: int, how: TiledAttention, place: str = "operator/attention-x") -> Kit:
    """A kit of one attention with as many keys as wanted."""
    builder = Builder()
    shapes = {"q": (1, 4, 16), "k": (1, 16, keys), "v": (1, keys, 16)}
    references = {
        role: builder.give(f"{place}/{role}", "operator", random_codes(i, shape, E4M3FN), E4M3FN)
        for i, (role, shape) in enumerate(shapes.items())
    }
    for role, scale in (("q", 0.01), ("k", 0.003), ("v", 0.02)):
        x = np.asarray(F(scale))
        references[f"{role}_scale"] = builder.give(f"{place}/{role}.scale", "operator", x)

    def name(what, tile):
        return f"{place}/{what}" if tile is None else f"{place}/{tile}/{what}"

    add_attention(builder, "operator", name, Operands(**references), 0.25, E4M3FN, how)
    return builder.kit({"levels": ["operator"], "arithmetic": []})


def test_steps_whose_sources_are_given_have_causes_too(kit):
    """Where a kit has only the last step, a defect that needs those before it is not tried."""
    place = "operator/attention-tiles"
    steps_of = {n: t for n, t in kit.tensors.items() if t.operation in ATTENTION_OPERATIONS}
    for name, tensor in steps_of.items():
        sources = {x.tensor: Tensor(x.tensor, "operator", "given") for x in tensor.inputs.values()}
        sources = {n: replace(x, kind=kit.tensors[n].kind, fmt=kit.tensors[n].fmt)
                   for n, x in sources.items()}  # fmt: skip
        tensors = sources | {name: tensor}
        part = Kit(kit.header, tensors, {n: kit.arrays[n] for n in tensors})
        wrong = kit.arrays[name] + F(1)
        assert verify(part, {name: wrong}).first.causes == (), name
        if name == f"{place}/attention":
            given = part.inputs(name)
            wrong = given["output"] * (F(1) / given["total"])
            assert verify(part, {name: wrong}).first.causes == ("scale of v left out",)


def test_every_size_of_tiles_is_named():
    """Those with more keys than the cases have: here are enough."""
    keys, place = 300, "operator/attention-x/attention"
    sizes = [
        int(name.removeprefix("tiles of ").removesuffix(" keys"))
        for name in dict.fromkeys(name for name, _ in attention_defects())
        if name.startswith("tiles of ")
    ]
    # Few tiles in the kit, as every defect is tried on all of them; none of the sizes named.
    tile = 150
    assert sizes[-1] < keys
    assert tile not in sizes
    kit = of_random_codes(keys, TiledAttention(tile))
    arrays = {name.rpartition("/")[2]: x for name, x in kit.arrays.items()}
    how = {role: arrays[role] for role in "qkv"}
    how |= {f"{role}s": arrays[f"{role}.scale"] for role in "qkv"}
    right = Kernel(**how, factor=F(0.25), tile=tile).run()["attention"]
    assert right.tobytes() == kit.arrays[place].tobytes()
    for size in sizes:
        found = Kernel(**how, factor=F(0.25), tile=size).run()["attention"]
        assert causes(kit, {place: found}) == {"attention": (f"tiles of {size} keys",)}


def test_a_sum_in_another_order_is_tolerated(kit):
    """The profile accumulate-order takes float32 sums of any order, and no more."""

    def backwards(self, p, codes, keys):
        x, y = values(codes, self.fmt)[..., ::-1], values(self.v[..., keys, :], self.fmt)
        total = F(0)
        for k in range(x.shape[-1]):
            total = total + (x[..., k, None] * y[..., ::-1, :][..., k, None, :]).astype(F)
        return total

    found = candidate(kit, "tiles", fault(product=backwards))
    assert not verify(kit, found).passed
    report = verify(kit, found, "accumulate-order")
    assert report.passed, report.text()
    assert verify(kit, {n: x for n, x in found.items() if not n.endswith("/product")},
                  "accumulate-order").passed  # fmt: skip
    wrong = found["operator/attention-tiles/2/output"] * F(1.001)
    wrong = found | {"operator/attention-tiles/2/output": wrong}
    failures = verify(kit, wrong, "accumulate-order").failures
    assert "operator/attention-tiles/2/output" in failures


def test_accumulators_of_attention_are_named():
    """Both products of a kernel that adds as Hopper does, from the sums or the result alone."""
    kit = of_random_codes(96, TiledAttention(32))
    place = "operator/attention-x"
    hopper = ACCUMULATED["hopper-fast"]
    evaluation = Evaluation(kit, lambda name: None, hopper, "", np.zeros(0))
    found = {name: evaluation.value(name) for name in computed(kit, "operator")}
    report = verify(kit, found)
    (products,) = report.products
    assert "hopper-fast" in products.accumulators
    assert (
        hopper.name in verify(kit, {f"{place}/attention": found[f"{place}/attention"]}).first.causes
    )


# Models


TEXT = {"input_ids": np.array([[101, 2025, 3294, 6659, 102, 1037, 10520, 2000, 3737, 2143, 102]])}
LONG = {"input_ids": (np.arange(150) * 37 % 900 + 100)[None]}


def golden_model(recipe, model="bert-tiny-sst2", inputs=TEXT):
    model = bert_numpy.load(model) if isinstance(model, str) else model
    inputs = {name: ids % model.config.vocab_size for name, ids in inputs.items()}
    calibration = calibrate(model, [inputs], golden=True)
    return apply_recipe(model, recipe, calibration, golden=True), inputs


def recorded(recipe, model="bert-tiny-sst2", inputs=TEXT):
    golden, inputs = golden_model(recipe, model, inputs)
    return make_kit(("layer", "model"), golden, {}, [inputs]), golden, inputs


def flash(**how):
    return replace(PRESETS["e4m3-flash"], attention=TiledAttention(**how))


def tiles_of(kit, scores=SCORES, context=CONTEXT):
    """The steps of an attention of a kit, one dict a tile."""
    found = []
    while f"{scores}/{len(found)}/sum" in kit.arrays:
        i = len(found)
        names = {name: f"{context}/{i}/{name}" for name in ("maximum", "weights", "codes",
                 "row_sum", "product", "rescale", "total", "output")}  # fmt: skip
        names |= {name: f"{scores}/{i}/{name}" for name in ("sum", "scores")}
        found.append({what: kit.arrays[x] for what, x in names.items() if x in kit.arrays})
    return found


def check_tiles(kit, how, fmt=E4M3FN, accumulate="exact", bias=None):
    """Compare every recorded step with the tiles of the engine's own function."""

    def operand(site, role):
        name = f"{site}/{role}"
        scale = kit.arrays[f"scales/{site.removeprefix('model/0/')}/{role}.scale"]
        return QuantizedTensor(kit.arrays[name], scale, fmt)

    q, k, v = operand(SCORES, "a"), operand(SCORES, "b"), operand(CONTEXT, "b")
    factor = kit.tensors[f"{SCORES}/0/scores"].attributes["factor"]
    tiles = list(steps(q, k, v, factor, bias, fmt, how, accumulate))
    recorded_tiles = tiles_of(kit)
    assert len(tiles) == len(recorded_tiles) == -(-k.shape[-1] // how.keys)
    for tile, found in zip(tiles, recorded_tiles, strict=True):
        for what in ("scores", "maximum", "weights"):
            assert getattr(tile, what).tobytes() == found[what].tobytes()
        assert tile.codes.codes.tobytes() == found["codes"].tobytes()
        first = tile.rescale is None
        assert first == ("rescale" not in found)
        assert tile.total.tobytes() == found["row_sum" if first else "total"].tobytes()
        assert tile.output.tobytes() == found["product" if first else "output"].tobytes()
    result = finished(tiles[-1].output, tiles[-1].total, v.scale)
    assert result.tobytes() == kit.arrays[f"{CONTEXT}/attention"].tobytes()


@pytest.mark.parametrize("row_sum", ["unquantized", "quantized"])
@pytest.mark.parametrize("offset", [0, 8])
@pytest.mark.parametrize("keys", [1, 3, 4, 11, 64])
def test_a_model_is_recorded_tile_by_tile(keys, offset, row_sum, tmp_path):
    how = TiledAttention(keys, offset, row_sum)
    made, golden, inputs = recorded(replace(PRESETS["e4m3-flash"], attention=how))
    assert made.arrays["model/0/logits"].tobytes() == golden(**inputs).logits.tobytes()
    check_tiles(made, how)
    write_kit(made, tmp_path / "kit")
    again = open_kit(tmp_path / "kit")
    assert manifest_of(again) == manifest_of(made)
    for profile in ("bit-exact", "accumulate-order", "statistical"):
        report = verify(again, computed(again, *LEVELS), profile)
        assert report.passed, report.text()


@pytest.mark.parametrize("accumulate", ["hopper", "hopper-fast"])
def test_the_accumulator_of_both_products_is_recorded(accumulate):
    made, _, _ = recorded(replace(flash(keys=4), accumulate=accumulate))
    for name in (f"{SCORES}/1/sum", f"{CONTEXT}/1/product"):
        assert made.tensors[name].attributes["accumulate"] == accumulate
    check_tiles(made, TiledAttention(4), accumulate=accumulate)
    assert verify(made, computed(made, *LEVELS)).passed


def test_attention_in_e5m2_is_recorded():
    site = SiteRecipe(Operand("E5M2"), Operand("E5M2"))
    made, _, _ = recorded(replace(flash(keys=4), name="mine", scores=site, context=site))
    assert made.tensors[f"{CONTEXT}/0/codes"].fmt == "E5M2"
    assert verify(made, computed(made, *LEVELS)).passed


def test_texts_longer_than_a_tile_are_recorded():
    """By the preset, whose tiles have 64 keys: two whole ones, and a part of one."""
    made, golden, inputs = recorded(PRESETS["e4m3-flash"], inputs=LONG)
    assert made.arrays["model/0/logits"].tobytes() == golden(**inputs).logits.tobytes()
    check_tiles(made, TiledAttention())
    assert [tile["scores"].shape[-1] for tile in tiles_of(made)] == [64, 64, 22]
    assert verify(made, computed(made, *LEVELS)).passed


def test_masked_tokens_and_numbers_in_float32_are_recorded():
    mask = np.ones_like(TEXT["input_ids"])
    mask[0, 2:4] = 0
    recipe = replace(flash(keys=4), name="mine", arithmetic="float32")
    made, golden, inputs = recorded(recipe, inputs=TEXT | {"attention_mask": mask})
    assert made.arrays["model/0/logits"].tobytes() == golden(**inputs).logits.tobytes()
    assert f"{CONTEXT}/result" not in made.tensors
    assert verify(made, computed(made, *LEVELS)).passed


MPNET = {"model_type": "mpnet", "architecture": "MPNetModel", "type_vocab_size": 0,
         "relative_attention_num_buckets": 40}  # fmt: skip
ALBERT = {"model_type": "albert", "architecture": "AlbertModel", "embedding_size": 12,
          "num_hidden_groups": 1}  # fmt: skip


def random_model(**different):
    """A small model of a family, of random parameters."""
    sizes = {"embedding_size": 24, "hidden_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 1000}  # fmt: skip
    config = bert_numpy.load("bert-tiny-sst2").config
    config = replace(config, **{"labels": ()} | sizes | different)
    rng = np.random.default_rng(5)
    shapes = expected_shapes(config)
    weights = {name: rng.normal(0, 0.3, shape).astype(F) for name, shape in shapes.items()}
    return Model(config, weights, name="random")


@pytest.mark.parametrize("family", [MPNET, ALBERT], ids=["mpnet", "albert"])
def test_other_families_are_recorded(family):
    """The bias of MPNet's positions in tiles, and the layers of ALBERT that share a site."""
    made, golden, inputs = recorded(flash(keys=4), random_model(**family))
    last = [name for name, tensor in made.tensors.items() if tensor.operation == "layer_norm"][-1]
    output = golden(**inputs).last_hidden_state
    assert made.arrays[last].tobytes() == output.tobytes()
    assert verify(made, computed(made, *LEVELS)).passed
    scores = [n for n, t in made.tensors.items() if t.operation == "attention_scores"]
    assert len(scores) == 2 * 3
    if family is MPNET:
        reference = made.tensors[scores[1]].inputs["bias"]
        assert tuple(reference) == ("model/0/encoder.relative_attention_bias", "columns:4:8")
    else:
        assert sum("@1/" in name for name in scores) == 3


def test_a_recorder_that_computes_otherwise_makes_no_kit(monkeypatch):
    def other(inputs, attributes):
        return ATTENTION_OPERATIONS["running_maximum"](inputs, attributes) + F(1)

    monkeypatch.setitem(bert_numpy.kit.operations.OPERATIONS, "running_maximum", other)
    with pytest.raises(AssertionError, match="not the model's bits by the kit's operations"):
        recorded(flash(keys=4))


def model_kernel(kit, kernel, **how):
    """A kernel on the operands of a model's first layer."""
    arrays = kit.arrays
    q, k, v = (arrays[name] for name in (f"{SCORES}/a", f"{SCORES}/b", f"{CONTEXT}/b"))
    sites = [f"scales/{x.removeprefix('model/0/')}" for x in (SCORES, CONTEXT)]
    places = (f"{sites[0]}/a.scale", f"{sites[0]}/b.scale", f"{sites[1]}/b.scale")
    qs, ks, vs = (arrays[name] for name in places)
    factor = F(1 / math.sqrt(q.shape[-1]))
    return kernel(q=q, k=k, v=v, qs=qs, ks=ks, vs=vs, factor=factor, **how).run()["attention"]


IN_A_MODEL = ("stale maximum", "output of the tiles before not rescaled", "scale of v left out",
              "offset in the weights, but not in their sum", "last, shorter tile left out",
              "sum of the weights' codes", "1/sqrt(d) left out")  # fmt: skip


@pytest.mark.parametrize("name", IN_A_MODEL)
def test_faults_in_a_model_are_named(name):
    """In the attention of one layer: from its result in float32, and rounded to bfloat16."""
    made, _, _ = recorded(flash(keys=4))
    right = model_kernel(made, Kernel, tile=4)
    assert right.tobytes() == made.arrays[f"{CONTEXT}/attention"].tobytes()
    wrong = model_kernel(made, FAULTS[name][0], tile=4)
    others = {
        name: x
        for name, x in computed(made, *LEVELS).items()
        if name in (f"{SCORES}/a", f"{SCORES}/b", f"{CONTEXT}/b")
        or not name.startswith((SCORES, CONTEXT))
    }
    for what, x in (("attention", wrong), ("result", round_to_bfloat16(wrong))):
        report = verify(made, others | {f"{CONTEXT}/{what}": x})
        (item,) = (item for item in report.differences if item.root)
        assert item.causes[0] == name, item.causes


@pytest.mark.parametrize("name", ["stale maximum", "1/sqrt(d) left out", "rescaling left out"])
def test_logits_are_enough(name):
    """Nothing else is given: the whole model is computed with the defect."""
    one_layer = random_model(labels=("negative", "positive"), num_hidden_layers=1)
    made, _, _ = recorded(flash(keys=4), one_layer)
    (one, *_) = (defect for defect in DEFECTS if defect.name == name)
    evaluation = Evaluation(made, lambda name: None, one, "", np.zeros(0))
    with np.errstate(all="ignore"):
        logits = evaluation.value("model/0/logits")
    assert name in verify(made, {"model/0/logits": logits}).first.causes


def test_export_and_verify_commands(tmp_path, capsys):
    out, inputs = tmp_path / "kit", tmp_path / "inputs.json"
    inputs.write_text('["%s"]' % ("a warm and funny film, " * 15))
    command = ["golden", "export", "bert-tiny-sst2", str(out), "--recipe", "e4m3-flash"]
    assert main([*command, "--inputs", str(inputs), "--level", "layer"]) == 0, capsys.readouterr()
    kit = open_kit(out)
    assert len(tiles_of(kit)) == 2
    assert main(["golden", "verify", str(out), str(out / "tensors.safetensors")]) == 0
    wrong = kit.arrays[f"{CONTEXT}/1/output"] * F(2)
    (tmp_path / "dumps" / CONTEXT / "1").mkdir(parents=True)
    np.save(tmp_path / "dumps" / CONTEXT / "1" / "output.npy", wrong)
    assert main(["golden", "verify", str(out), str(tmp_path / "dumps")]) == 1
    assert "1/output (running_output)" in capsys.readouterr().out


# Entries and views


X, ROW, ONE = ("float32", "", (1, 6, 16)), ("float32", "", (1, 6, 1)), ("float32", "", ())
OUTPUT = ("float32", "", (1, 6, 8))
CODES = ("codes", "E4M3FN", (1, 6, 16))

ENTRIES = [
    ("attention_scores", {"factor": 0.25},
     {"sum": X, "q_scale": ONE, "k_scale": ONE, "bias": X}, ("bias",), X),
    ("running_maximum", {}, {"x": X, "before": ROW}, ("before",), ROW),
    ("attention_weights", {"offset": 8}, {"x": X, "maximum": ROW}, (), X),
    ("rescaling", {}, {"before": ROW, "maximum": ROW}, (), ROW),
    ("row_sum", {"fmt": "E4M3FN"}, {"x": X, "codes": CODES}, (), ROW),
    ("row_sum", {}, {"x": X}, (), ROW),
    ("running_total", {}, {"x": ROW, "before": ROW, "rescale": ROW}, (), ROW),
    ("running_output", {}, {"x": OUTPUT, "before": OUTPUT, "rescale": ROW}, (), OUTPUT),
    ("attention", {}, {"output": OUTPUT, "total": ROW, "v_scale": ONE}, (), OUTPUT),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "attributes", "inputs", "optional", "result"), ENTRIES)
def test_entries_of_attention(operation, attributes, inputs, optional, result):
    """The right one passes; without any part, or with a part of another kind, it does not."""

    def check(attributes=attributes, inputs=inputs, result=result):
        check_entry(operation, attributes, inputs, result, "kit")

    def refuse(**changed):
        with pytest.raises(BertNumpyError, match=r"^kit: ") as caught:
            check(**changed)
        assert "\n" not in str(caught.value)

    check()
    for key in attributes:
        refuse(attributes={k: v for k, v in attributes.items() if k != key})
        for value in (None, -1, 10**400, [], "E9M9", True):
            refuse(attributes=attributes | {key: value})
    for role, (kind, fmt, shape) in inputs.items():
        rest = {k: v for k, v in inputs.items() if k != role}
        (check if role in optional else refuse)(inputs=rest)
        refuse(inputs=inputs | {role: ("integers", "", shape)})
        refuse(inputs=inputs | {role: (kind, fmt, (*shape, 3))})
    kind, fmt, shape = result
    refuse(result=(kind, fmt, (*shape, 1)))
    refuse(result=("integers", "", shape))
    refuse(attributes=attributes | {"colour": "red"})


def test_every_operation_has_an_entry_here():
    assert {entry[0] for entry in ENTRIES} == set(ATTENTION_OPERATIONS)


def test_empty_rows_have_no_maximum():
    empty = ("float32", "", (1, 6, 0))
    with pytest.raises(BertNumpyError, match="rows without elements"):
        check_entry("running_maximum", {}, {"x": empty}, ROW, "kit")


def test_views_of_a_tile():
    x = np.arange(24).reshape(2, 3, 4)
    assert (apply_view(x, "columns:1:3") == x[:, :, 1:3]).all()
    assert (apply_view(x, "rows:0:2") == x[:, :2]).all()
    for view in ("columns", "columns:1", "columns:1:2:3", "columns:a:b", "columns:2:2",
                 "columns:3:2", "columns:-1:2", "columns:0:5", "rows:0:4"):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            apply_view(x, view)
    with pytest.raises(IndexError):
        apply_view(x[0, 0], "rows:0:1")


@pytest.mark.parametrize("view", ["columns:0:999", "columns:3", "rows:2:1"])
def test_a_manifest_with_a_view_of_no_tile(view, tmp_path):
    folder = ROOT / "bert_numpy" / "assets" / "bert-tiny-sst2-kit"
    text = (folder / "manifest.json").read_text()
    assert '"columns:0:16"' in text
    (tmp_path / "manifest.json").write_text(text.replace('"columns:0:16"', f'"{view}"'))
    (tmp_path / "tensors.safetensors").write_bytes((folder / "tensors.safetensors").read_bytes())
    with pytest.raises(BertNumpyError, match=f"expected a view of shape .*, found '{view}'"):
        open_kit(tmp_path)


def test_how_inputs_came_about(kit):
    name = "operator/attention-tiles/1/weights"
    traced = Traced(kit.inputs(name), kit, name, kit.arrays.__getitem__)
    made = traced.source("maximum")
    assert made.operation == "running_maximum"
    before = kit.arrays["operator/attention-tiles/0/maximum"]
    assert (made.inputs["before"] == before).all()
    product = made.inputs.source("x").inputs.source("sum")
    assert (product.operation, product.inputs["b"].shape) == ("sum", (1, 8, 16))
    assert product.inputs.source("a").operation == "given"


@pytest.mark.parametrize("before", [{}, {"before": F([[-0.0], [-1.0]])}])
def test_a_zero_maximum_is_positive(before):
    """As the model's is: which of two zeros NumPy takes depends on the processor."""
    found = ATTENTION_OPERATIONS["running_maximum"](
        {"x": F([[-0.0, -1.0], [-0.0, -0.0]]), **before}, {}
    )
    assert not np.signbit(found).any()
    assert not found.any()
