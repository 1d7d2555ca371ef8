"""Weights of 4 bits in groups, against arithmetic of single numbers, and a model with them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import assert_same_bits

import bert_numpy
from bert_numpy.quantization.presets import w4a16
from npfp8 import INT4, UINT4, IntFormat, QuantizedTensor, quantize
from npfp8.scaling import absmax_scale, affine_scale, dynamic_scale

numbers = st.floats(-1000, 1000, width=32, allow_subnormal=False)
weights = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=numbers)


def nearest(x: Fraction) -> int:
    """The nearest integer, a tie to the even one."""
    return round(x)


def quotient(x: np.float32, scale: np.float32) -> Fraction:
    """x / scale, rounded to float32 as quantize does."""
    return Fraction(float(np.float32(x) / np.float32(scale)))


def groups(row: np.ndarray, block: int) -> list[np.ndarray]:
    return [row[start : start + block] for start in range(0, row.size, block)]


@given(weights, st.integers(1, 13))
def test_symmetric_groups(weight, block):
    """The scale is the largest magnitude over 7.5; the codes are -8..7, a tie to the even one."""
    q = quantize(weight, INT4, axis=1, block=block)
    for row, codes, scales in zip(weight, q.codes, q.scale, strict=True):
        parts = zip(groups(row, block), groups(codes, block), scales, strict=True)
        for group, found, scale in parts:
            largest = np.abs(group).max()
            wanted = np.float32(largest / np.float32(7.5)) if largest else np.float32(1)
            assert scale == max(wanted, np.finfo(np.float32).tiny)
            expected = [min(max(nearest(quotient(x, scale)), -8), 7) for x in group]
            assert found.tolist() == expected
            values = found.astype(np.float32) * scale
            assert (np.abs(values - group) <= 0.50001 * scale).all()


@given(weights, st.integers(1, 13))
def test_groups_with_a_zero_point(weight, block):
    """Zero has a code, and each number is within half a step; the range is mapped to 0..15."""
    scale, zero_point = dynamic_scale(weight, UINT4, 1, block)
    q = quantize(weight, UINT4, scale, 1, block, zero_point)
    assert q.codes.max(initial=0) <= 15
    values = q.dequantize()
    for row, found, scales, zeros, codes in zip(
        weight, values, scale, zero_point, q.codes, strict=True
    ):
        parts = zip(
            groups(row, block),
            groups(found, block),
            groups(codes, block),
            scales,
            zeros,
            strict=True,
        )
        for group, decoded, code, step, zero in parts:
            low, high = min(group.min(), 0), max(group.max(), 0)
            assert step == pytest.approx((high - low) / 15 or 1, rel=1e-6, abs=1e-37)
            assert int(zero) == min(max(nearest(-quotient(low, step)), 0), 15)
            for x, y, c in zip(group, decoded, code, strict=True):
                shifted = nearest(quotient(x, step)) + int(zero)
                assert c == min(max(shifted, 0), 15)
                assert y == np.float32(np.float32(int(c) - int(zero)) * step)
                assert abs(y - x) <= 1.0001 * step
            zeros_in = group == 0
            assert (decoded[zeros_in] == 0).all()


def test_formats_of_other_widths_reach_as_far_as_their_codes():
    """7.5 as in GPTQ's program: (xmax - -xmax) / 15. INT8, which leaves -128 unused, has 127."""
    assert float(absmax_scale(15, INT4)) == 2
    assert float(absmax_scale(127, "INT8")) == 1
    assert float(absmax_scale(3, IntFormat(-2, 1, "int8"))) == 2
    assert float(absmax_scale(7, IntFormat(-7, 7, "int8"))) == 1
    assert float(absmax_scale(7, IntFormat(-9, 7, "int8"))) == 1
    assert float(absmax_scale(15, IntFormat(-8, 7, "int8", "fraction", 3))) == 16
    assert [float(x) for x in affine_scale(-3, 12, UINT4)] == [1, 3]


def test_what_saturates():
    x = np.float32([7.5, -7.5, 7.4, 0, 0.2, 7.51, 8])
    q = quantize(x, INT4, 1.0)
    assert q.codes.tolist() == [7, -8, 7, 0, 0, 7, 7]
    assert q.lost(x) == (2, 1)
    assert quantize(x[:5], INT4).lost(x[:5]) == (0, 1)  # 0.2 is nearest to zero


def test_bytes_with_packed_codes_and_zero_points():
    x = np.ones((8, 64), np.float32)
    q = quantize(x, INT4, axis=1, block=32)
    assert (q.nbytes, q.packed_nbytes) == (512 + 16 * 4, 256 + 16 * 4)
    scale, zero_point = dynamic_scale(x, UINT4, 1, 32)
    q = quantize(x, UINT4, scale, 1, 32, zero_point)
    assert (q.nbytes, q.packed_nbytes) == (512 + 16 * 5, 256 + 16 * 4 + 8)


@pytest.mark.parametrize("name", ["w4a16", "w4a16-asym", "w4a16-channel", "w4a16-asym-gptq"])
def test_a_model_computes_as_with_its_dequantized_weights(name):
    """Activations are bfloat16, products float32; only the weights' values differ from bf16."""
    model = bert_numpy.load("bert-tiny-sst2")
    batch = bert_numpy.load_tokenizer("bert-tiny-sst2").batch(["a warm and funny film", "dull"])
    calibration = bert_numpy.calibrate(model, [batch], hessians=True)
    made = bert_numpy.apply_recipe(model, name, calibration)
    plain = {
        key: weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        for key, weight in made.weights.items()
    }
    reference = bert_numpy.apply_recipe(replace(model, weights=plain), "bf16")
    assert_same_bits(made(**batch).logits, reference(**batch).logits)
    quantized = [key for key, x in made.weights.items() if isinstance(x, QuantizedTensor)]
    assert len(quantized) == 6 * model.config.num_hidden_layers
    assert all(key.startswith("encoder.") for key in quantized)


def test_golden_runs_do_not_depend_on_the_batch():
    model = bert_numpy.load("bert-tiny-sst2")
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    made = bert_numpy.apply_recipe(model, "w4a16-asym", golden=True)
    texts = ["a warm and funny film", "dull"]
    both = made(**tokenizer.batch(texts)).logits
    for text, logits in zip(texts, both, strict=True):
        assert_same_bits(made(**tokenizer.batch([text])).logits[0], logits)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("w4a16", 4 + 32 / 128),
        ("w4a16-g64", 4 + 32 / 64),
        ("w4a16-g32", 4 + 32 / 32),
        ("w4a16-asym", 4 + 36 / 128),
    ],
)
def test_bits_of_a_weight(name, bits):
    made = bert_numpy.apply_recipe(bert_numpy.load("bert-tiny-sst2"), name)
    weight = made.weights["encoder.layer.0.output.dense.weight"]
    assert 8 * weight.packed_nbytes == bits * weight.size


def test_names_of_recipes():
    assert [w4a16(block).name for block in (None, 16, 128)] == [
        *("w4a16-channel", "w4a16-g16", "w4a16")
    ]
    assert w4a16(None).linear.b == bert_numpy.Operand("INT4", "channel")
    assert w4a16(16, asymmetric=True).linear.b == bert_numpy.Operand("UINT4", "block", block=16)
