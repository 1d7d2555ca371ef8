"""Engines: the steps between the products, against float64 (or better), and their interface."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from watching import engine_for, noted

import npfp8
from bert_numpy import PRESETS, BertNumpyError, apply_recipe, calibrate, load, load_tokenizer
from bert_numpy.engines import functions
from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.engines.float import Bfloat16Engine, FloatEngine
from bert_numpy.engines.functions import ACTIVATIONS, gelu
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.engines.shape import ShapeEngine
from bert_numpy.kit.recording import RecordingEngine
from bert_numpy.model.encoder import Pass, linears
from bert_numpy.model.model import EngineOf, batch_of
from bert_numpy.model.sites import model_sites, site_named
from bert_numpy.quantization import engine as quantized_engine
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.plan import Scale, SitePlan
from npfp8 import QuantizedTensor, golden, quantize
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.products.operands import decoded_bfloat16

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Arithmetic:
    """The operations of an engine that have no site.

    Those that are ``silent`` may overflow inside, or meet infinity: a model asks NumPy for
    no warning of it, as whoever reads its outputs looks whether they are finite.
    """

    name: str
    make: Callable[[Weights], Any]
    silent: tuple[str, ...] = ()

    def call(self, operation: str, *operands: Any, weights: Weights | None = None) -> Float32Array:
        function: Callable[..., Float32Array] = getattr(self.make(weights or {}), operation)
        with np.errstate(all="ignore") if operation in self.silent else nullcontext():
            return function(*operands)

    def add(self, x: Float32Array, y: Float32Array) -> Float32Array:
        return self.call("add", x, y)

    def multiply(self, x: Float32Array, factor: np.float32) -> Float32Array:
        return self.call("multiply", x, float(factor))

    def softmax(self, x: Float32Array) -> Float32Array:
        return self.call("softmax", x)

    def layer_norm(
        self, x: Float32Array, weight: Float32Array, bias: Float32Array, eps: float
    ) -> Float32Array:
        weights = {"norm.weight": weight, "norm.bias": bias}
        return self.call("layer_norm", "norm", x, eps, weights=weights)

    def activation(self, name: str, x: Float32Array) -> Float32Array:
        return self.call("activation", name, x)

    def mean(self, x: Float32Array) -> Float32Array:
        return self.call("pool", "mean", x, np.ones(x.shape[:-1], np.int64))

    def normalize(self, x: Float32Array) -> Float32Array:
        return self.call("normalize", x)

    def round(self, x: Float32Array) -> Float32Array:
        return self.call("rounded", x)


#: Without tokens: nothing of this needs a layout.
LAYOUT: Any = None


def float_engine(weights: Weights) -> FloatEngine:
    return FloatEngine(weights, LAYOUT)


ROWS = ("softmax", "layer_norm")
FLOAT32 = Arithmetic("float32", float_engine, ("activation", *ROWS))
BFLOAT16 = Arithmetic("bfloat16", lambda weights: Bfloat16Engine(float_engine(weights)), ROWS)
GOLDEN_FLOAT32, GOLDEN_BFLOAT16 = (
    Arithmetic(name, lambda weights, name=name: GoldenEngine(weights, LAYOUT, name))
    for name in ("float32", "bfloat16")
)

FLOAT32S = [pytest.param(FLOAT32, id="float32"), pytest.param(GOLDEN_FLOAT32, id="golden float32")]
BFLOAT16S = [
    pytest.param(BFLOAT16, id="bfloat16"),
    pytest.param(GOLDEN_BFLOAT16, id="golden bfloat16"),
]
EACH = FLOAT32S + BFLOAT16S

#: Half a unit in the last of bfloat16's 8 bits, relative; some more for the float32 inside.
HALF_ULP = 2.0**-8 * (1 + 1e-3)

#: The same of golden results, which have float64 inside: rounded once.
GOLDEN_HALF_ULP = {"float32": 2.0**-24 * (1 + 1e-6), "bfloat16": 2.0**-8 * (1 + 1e-9)}

#: Every bfloat16 value.
EVERY = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
EVERY_FINITE = EVERY[np.isfinite(EVERY)]

EXTREMES = np.float32(
    [0, 1e-45, 1e-38, 1e-20, 1e-6, 1, 14, 50, 88, 89, 104, 1e3, 1e10, 1e13, 2e19, 3.4e38]
)
EXTREMES = np.concatenate([EXTREMES, -EXTREMES])


def floats(limit: float, **options: Any) -> st.SearchStrategy[Float32Array]:
    """float32 arrays of any shape, with values up to a limit."""
    limit = float(np.float32(limit))
    values = st.floats(-limit, limit, width=32, **options)
    return hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=values)


def round_once(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64 to the nearest bfloat16, ties to even, in one step."""
    exponent = np.maximum(np.frexp(x)[1] - 8, -133)
    rounded = np.ldexp(np.rint(np.ldexp(x, -exponent)), exponent)
    largest = float(EVERY_FINITE.max())
    return np.where(np.abs(rounded) > largest, np.copysign(np.inf, rounded), rounded)


def on_grid(x: Float32Array) -> bool:
    """Check that every value is a bfloat16 value."""
    return x.dtype == np.float32 and not (x.view(np.uint32) & 0xFFFF).any()


# Activations: scalar definitions, with more digits than float64 has where it cancels.


def gelu_exactly(x: float) -> float:
    result = 0.5 * x * math.erfc(-x / math.sqrt(2))
    # It is above x / 2, a tie of the smallest bfloat16 values, by less than float64 can show.
    return math.nextafter(result, math.inf) if x and result == x / 2 else result


def toward(exact: Decimal) -> float:
    """The float64 next to a number, on the number's side of a tie of shorter formats."""
    result = float(exact)
    if Decimal(result) == exact:
        return result
    return math.nextafter(result, math.copysign(math.inf, exact - Decimal(result)))


def logistic(x: float, slope_times_x: Decimal) -> float:
    """``x / (1 + exp(-slope_times_x))``; beyond 1000 the exp is nothing or everything."""
    if abs(slope_times_x) > 1000:
        return x if slope_times_x > 0 else 0.0
    return toward(Decimal(x) / (1 + (-slope_times_x).exp()))


def gelu_tanh_exactly(x: float) -> float:
    inner = Decimal(x) + Decimal("0.044715") * Decimal(x) ** 3
    return logistic(x, inner * 2 * Decimal(math.sqrt(2 / math.pi)))


def silu_exactly(x: float) -> float:
    return logistic(x, Decimal(x))


def tanh_exactly(x: float) -> float:
    power = (-2 * abs(Decimal(x)).min(1000)).exp()
    return math.copysign(float((1 - power) / (1 + power)), x)


EXACT: dict[str, Callable[[float], float]] = {
    "gelu": gelu_exactly,
    "gelu_new": gelu_tanh_exactly,
    "gelu_pytorch_tanh": gelu_tanh_exactly,
    "relu": lambda x: max(x, 0.0),
    "silu": silu_exactly,
    "tanh": tanh_exactly,
}


def exact(name: str, x: Float32Array) -> npt.NDArray[np.float64]:
    with localcontext() as context:
        context.prec = 60  # 1 - exp(-2 x) loses up to 45 digits of it
        values = [EXACT[name](value) for value in x.reshape(-1).tolist()]
    return np.array(values).reshape(x.shape)


def gelu_bound(truth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 2e-7 + 2 * np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)


def test_every_activation_has_a_truth() -> None:
    assert set(ACTIVATIONS) == set(EXACT) - {"tanh"}


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(np.linspace(-16, 16, 400_001, dtype=np.float32), id="dense"),
        pytest.param(np.linspace(-0.01, 0.01, 20_001, dtype=np.float32), id="around zero"),
        pytest.param(EVERY_FINITE, id="every bfloat16"),
    ],
)
def test_gelu_error_bound(x: Float32Array) -> None:
    truth = np.array([gelu_exactly(value) for value in x.tolist()])
    assert (np.abs(FLOAT32.activation("gelu", x) - truth) <= gelu_bound(truth)).all()
    golden = GOLDEN_FLOAT32.activation("gelu", x)
    np.testing.assert_allclose(golden, truth, rtol=2.0**-24 * (1 + 1e-4), atol=2.0**-149)


@given(x=floats(3.4e38))
def test_gelu_of_any_array(x: Float32Array) -> None:
    truth = exact("gelu", x)
    result = FLOAT32.activation("gelu", x)
    assert (np.abs(result - truth) <= gelu_bound(truth)).all()
    assert (result.dtype, result.shape) == (np.float32, x.shape)


@pytest.mark.parametrize("size", [0, 1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 80_000])
def test_gelu_of_an_element_does_not_depend_on_its_place(size: int) -> None:
    x = np.random.default_rng(size).normal(0, 3, size).astype(np.float32)
    whole = gelu(x)
    np.testing.assert_array_equal(whole[::-1], gelu(x[::-1].copy()))
    np.testing.assert_array_equal(whole[::-1], gelu(x[::-1]))  # not contiguous


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
@given(x=floats(3.4e38) | floats(20))
def test_other_activations(name: str, x: Float32Array) -> None:
    np.testing.assert_allclose(FLOAT32.activation(name, x), exact(name, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
@given(x=floats(3.4e38) | floats(20))
def test_golden_activations(name: str, x: Float32Array) -> None:
    found = GOLDEN_FLOAT32.activation(name, x)
    assert (found.dtype, found.shape) == (np.float32, x.shape)
    np.testing.assert_allclose(found, exact(name, x), rtol=2.0**-24 * (1 + 1e-4), atol=2.0**-149)


@pytest.mark.parametrize("name", EXACT)
def test_bfloat16_activations_of_every_input(name: str) -> None:
    x = EVERY_FINITE
    result = BFLOAT16.activation(name, x)
    assert on_grid(result)
    np.testing.assert_array_equal(result.astype(np.float64), round_once(exact(name, x)))


@pytest.mark.parametrize("name", EXACT)
def test_bfloat16_activations_round_their_input(name: str) -> None:
    def function(x: Float32Array) -> Float32Array:
        return BFLOAT16.activation(name, x)

    x = np.random.default_rng(0).normal(0, 3, (40, 50)).astype(np.float32)
    rounded = round_once(x.astype(np.float64)).astype(np.float32)
    assert not on_grid(x)
    np.testing.assert_array_equal(function(x), function(rounded))
    np.testing.assert_array_equal(function(x.T), function(x).T)


@pytest.mark.parametrize("arithmetic", EACH)
@pytest.mark.parametrize("name", EXACT)
def test_extreme_finite_inputs(arithmetic: Arithmetic, name: str) -> None:
    """No warning (they are errors here), no NaN, and the right limit."""
    x = EXTREMES
    if arithmetic.name == "bfloat16":  # the largest must not become infinity on input
        x = np.clip(x, EVERY_FINITE.min(), EVERY_FINITE.max())
    result = arithmetic.activation(name, x)
    tolerance = 1e-6 if arithmetic.name == "float32" else 2 * HALF_ULP
    np.testing.assert_allclose(result, exact(name, x), rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_bfloat16_infinity_and_nan(name: str) -> None:
    x = np.float32([np.inf, np.nan, -np.nan])
    result = BFLOAT16.activation(name, x)
    assert result[0] == (1 if name == "tanh" else np.inf)
    assert np.isnan(result[1:]).all()


@pytest.mark.parametrize("arithmetic", EACH)
def test_unknown_activation(arithmetic: Arithmetic) -> None:
    with pytest.raises(BertNumpyError) as caught:
        arithmetic.activation("swish", np.zeros(1, np.float32))
    assert str(caught.value) == (
        "hidden_act: expected one of gelu, gelu_new, gelu_pytorch_tanh, relu, silu, found 'swish'"
    )


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
def test_activations_as_torch(torch: Any, name: str) -> None:
    x = np.random.default_rng(0).normal(0, 4, (64, 512)).astype(np.float32)
    functional = torch.nn.functional
    peer = {
        "gelu": functional.gelu,
        "gelu_new": lambda t: functional.gelu(t, approximate="tanh"),
        "relu": functional.relu,
        "silu": functional.silu,
    }[name]
    expected = peer(torch.from_numpy(x)).numpy()
    # On some processors torch's GELU is 1e-6 from the truth.
    np.testing.assert_allclose(FLOAT32.activation(name, x), expected, rtol=1e-6, atol=2e-6)


# Softmax


def softmax_exactly(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@given(x=floats(100) | floats(1e38))
def test_softmax(x: Float32Array) -> None:
    result = FLOAT32.softmax(x)
    assert (result.dtype, result.shape) == (np.float32, x.shape)
    # A difference of float32 values up to 200 is off by up to 2^-17.
    np.testing.assert_allclose(result, softmax_exactly(x), rtol=2e-5, atol=1e-37)


@given(x=floats(100) | floats(1e38))
def test_bfloat16_softmax(x: Float32Array) -> None:
    result = BFLOAT16.softmax(x)
    assert on_grid(result)
    np.testing.assert_allclose(result, softmax_exactly(x), rtol=HALF_ULP + 2e-5, atol=1e-37)


@pytest.mark.parametrize("arithmetic", [GOLDEN_FLOAT32, GOLDEN_BFLOAT16], ids=lambda a: a.name)
@given(x=floats(100) | floats(1e38))
def test_golden_softmax(arithmetic: Arithmetic, x: Float32Array) -> None:
    result = arithmetic.softmax(x)
    assert (result.dtype, result.shape) == (np.float32, x.shape)
    assert arithmetic is GOLDEN_FLOAT32 or on_grid(result)
    least = 2.0**-149 if arithmetic is GOLDEN_FLOAT32 else 2.0**-133
    half_ulp = GOLDEN_HALF_ULP[arithmetic.name]
    np.testing.assert_allclose(result, softmax_exactly(x), rtol=half_ulp, atol=least)


@pytest.mark.parametrize("arithmetic", EACH)
def test_softmax_of_extremes(arithmetic: Arithmetic) -> None:
    def softmax(*row: float) -> list[float]:
        return arithmetic.softmax(np.float32([row]))[0].tolist()

    assert softmax(-1e38) == [1]
    assert softmax(1e38, -1e38) == [1, 0]
    assert softmax(-3e38, -3e38) == [0.5, 0.5]
    assert softmax(5, -np.inf) == [1, 0]
    assert softmax(0, 0, 0, 0) == [0.25] * 4
    assert softmax(0, -200) == [1, 0]


@pytest.mark.parametrize("arithmetic", [FLOAT32, BFLOAT16], ids=lambda arithmetic: arithmetic.name)
def test_infinity_becomes_nan_without_a_warning(arithmetic: Arithmetic) -> None:
    """Only the row of the overflow becomes NaN; golden arithmetic refuses the infinity."""
    x = np.float32([[np.inf, 1, 2], [3, 1, 2]])
    for result in (
        arithmetic.softmax(x),
        arithmetic.layer_norm(x, np.ones(3, np.float32), np.zeros(3, np.float32), 1e-12),
    ):
        assert np.isnan(result[0]).any()
        assert np.isfinite(result[1]).all()


def test_softmax_of_a_long_row() -> None:
    x = np.random.default_rng(0).normal(0, 3, (4, 2, 512)).astype(np.float32)
    result = FLOAT32.softmax(x)
    np.testing.assert_allclose(result, softmax_exactly(x), rtol=3e-6)
    np.testing.assert_allclose(result.sum(axis=-1), 1, rtol=1e-6)


def test_softmax_as_torch(torch: Any) -> None:
    x = np.random.default_rng(0).normal(0, 3, (4, 2, 16, 100)).astype(np.float32)
    expected = torch.softmax(torch.from_numpy(x), -1).numpy()
    np.testing.assert_allclose(FLOAT32.softmax(x), expected, rtol=3e-6)


# LayerNorm


def layer_norm_exactly(
    x: Float32Array, weight: Float32Array, bias: Float32Array, eps: float
) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def norm_operands(
    width: int, mean: float = 0.0, deviation: float = 1.0
) -> tuple[Float32Array, Float32Array, Float32Array]:
    generator = np.random.default_rng(width)
    x = generator.normal(mean, deviation, (5, 7, width)).astype(np.float32)
    weight = generator.normal(1, 0.3, width).astype(np.float32)
    return x, weight, generator.normal(0, 0.3, width).astype(np.float32)


@pytest.mark.parametrize("width", [2, 3, 16, 384, 768, 1024])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.5])
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (-3, 1), (0, 1e-4), (0, 1e6)])
def test_layer_norm(width: int, eps: float, mean: float, deviation: float) -> None:
    x, weight, bias = norm_operands(width, mean, deviation)
    truth = layer_norm_exactly(x, weight, bias, eps)
    result = FLOAT32.layer_norm(x, weight, bias, eps)
    assert (result.dtype, result.shape) == (np.float32, x.shape)
    # The mean's rounding is divided by the row's deviation, which is small in a row of two.
    spread = np.sqrt(x.astype(np.float64).var(axis=-1, keepdims=True) + eps)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    assert (np.abs(result - truth) <= 2e-6 * (1 + largest / spread) * (1 + np.abs(weight))).all()

    narrow = BFLOAT16.layer_norm(x, weight, bias, eps)
    assert on_grid(narrow)
    limit = HALF_ULP * np.abs(truth) + 4e-6 * (1 + largest / spread)
    assert (np.abs(narrow - truth) <= limit).all()

    for arithmetic in (GOLDEN_FLOAT32, GOLDEN_BFLOAT16):
        golden = arithmetic.layer_norm(x, weight, bias, eps)
        half_ulp = GOLDEN_HALF_ULP[arithmetic.name]
        limit = half_ulp * np.abs(truth) + 1e-14 * (1 + largest / spread) * (1 + np.abs(weight))
        assert (np.abs(golden - truth) <= limit).all()
        assert arithmetic is GOLDEN_FLOAT32 or on_grid(golden)


@pytest.mark.parametrize("arithmetic", EACH)
@pytest.mark.parametrize("value", [0.0, 1.0, -1e4, 1e30])
def test_layer_norm_of_a_constant_row_is_the_bias(arithmetic: Arithmetic, value: float) -> None:
    x = np.full((2, 8), value, np.float32)
    bias = np.arange(8, dtype=np.float32)
    result = arithmetic.layer_norm(x, np.full(8, 3, np.float32), bias, 1e-12)
    np.testing.assert_array_equal(result, [bias, bias])


@pytest.mark.parametrize("width", [1, 25, 128, 384])
def test_a_row_does_not_depend_on_the_others(width: int) -> None:
    """Bit for bit, alone and among few or many rows: a text may come in any batch."""
    x = np.random.default_rng(width).normal(0.3, 2, (700, width)).astype(np.float32)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    for function in (functions.softmax, lambda x: functions.layer_norm(x, ones, zeros, 1e-12)):
        whole = function(x)
        for first, last in ((0, 1), (1, 2), (3, 30), (5, 133), (1, 700)):
            np.testing.assert_array_equal(function(x[first:last].copy()), whole[first:last])


@pytest.mark.parametrize("outputs", [1, 48, 77, 512])
@pytest.mark.parametrize("inputs", [32, 500])
@pytest.mark.parametrize("rows", [0, 1, 4, 16, 25, 50, 51, 200])
def test_linear(rows: int, inputs: int, outputs: int) -> None:
    """In pieces or at once: within the bound of float32 sums, in any order."""
    generator = np.random.default_rng(rows)
    x, weight, bias = (
        generator.normal(0, 1, shape).astype(np.float32)
        for shape in ((rows, inputs), (outputs, inputs), outputs)
    )
    result = functions.linear(x, weight, bias)
    assert (result.dtype, result.shape) == (np.float32, (rows, outputs))
    assert result.flags.c_contiguous
    wide_x, wide_weight = x.astype(np.float64), weight.astype(np.float64)
    truth = wide_x @ wide_weight.T + bias
    bound = (inputs + 1) * 2.0**-24 * (np.abs(wide_x) @ np.abs(wide_weight.T) + np.abs(bias))
    assert (np.abs(result - truth) <= bound).all()
    stacked = functions.linear(x[None], weight, bias)
    assert (np.abs(stacked - truth) <= bound).all()


def test_layer_norm_as_torch(torch: Any) -> None:
    x, weight, bias = norm_operands(384, mean=0.5, deviation=2)
    tensors = (torch.from_numpy(array) for array in (weight, bias))
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (384,), *tensors, 1e-12).numpy()
    np.testing.assert_allclose(
        FLOAT32.layer_norm(x, weight, bias, 1e-12), expected, rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("arithmetic", EACH)
@pytest.mark.parametrize("length", [1, 5, 128])
def test_mean_and_normalize(arithmetic: Arithmetic, length: int) -> None:
    """The steps of sentence embeddings are in float32, whatever the rest is in."""
    x = np.random.default_rng(length).normal(0.5, 1, (3, length, 48)).astype(np.float32)
    wide = x.astype(np.float64)
    means = arithmetic.mean(x)
    assert (means.dtype, means.shape) == (np.float32, (3, 48))
    np.testing.assert_allclose(means, wide.mean(axis=1), rtol=0, atol=1e-6)
    units = arithmetic.normalize(x)
    assert (units.dtype, units.shape) == (np.float32, x.shape)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    np.testing.assert_allclose(units, wide / norms, rtol=1e-6, atol=0)
    assert not arithmetic.normalize(np.zeros((2, 4), np.float32)).any()


@pytest.mark.parametrize("arithmetic", EACH)
@pytest.mark.parametrize("mode", functions.POOLINGS)
def test_pool(arithmetic: Arithmetic, mode: str) -> None:
    """In float32 whatever the rest is in, as golden arithmetic has it."""
    x = np.random.default_rng(7).normal(0.5, 1, (3, 129, 48)).astype(np.float32)
    places = np.arange(1, 130) + np.array([[0], [3], [9]])
    found = arithmetic.call("pool", mode, x, places)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden.pool(mode, x, places), rtol=2e-6, atol=2e-6)
    assert not np.shares_memory(found, x)


def test_every_pooling() -> None:
    assert functions.POOLINGS.keys() == golden.POOLINGS.keys()


@pytest.mark.parametrize("arithmetic", EACH)
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "relu", "silu"])
def test_activations_of_an_answer(arithmetic: Arithmetic, name: str) -> None:
    """In float32 in every precision, and of what is no bfloat16 number."""
    x = np.random.default_rng(8).normal(0, 2, (3, 48)).astype(np.float32)
    found = arithmetic.call("activation", name, x, True)
    expected = golden.unary(functions.golden_name(name), x, "float32")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("arithmetic", EACH)
def test_concatenate(arithmetic: Arithmetic) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = arithmetic.call("concatenate", [x, x[:, :1], -x])
    np.testing.assert_array_equal(found, np.concatenate([x, x[:, :1], -x], axis=1))


# Sums and products


_EVERY = st.sampled_from(EVERY_FINITE.tolist())
_GRID = hnp.arrays(np.float32, (6,), elements=_EVERY)


@pytest.mark.parametrize("arithmetic", BFLOAT16S)
@given(x=_GRID, y=_GRID)
def test_bfloat16_sum_is_rounded_once(
    arithmetic: Arithmetic, x: Float32Array, y: Float32Array
) -> None:
    with np.errstate(over="ignore"):
        result = arithmetic.add(x, y)
    truth = round_once(x.astype(np.float64) + y)
    assert on_grid(result)
    np.testing.assert_array_equal(result.astype(np.float64), truth)


def test_bfloat16_sums_as_torch(torch: Any) -> None:
    generator = np.random.default_rng(0)
    x, y = (BFLOAT16.round(generator.normal(0, 9, 10_000).astype(np.float32)) for _ in range(2))
    peer = (torch.from_numpy(array).to(torch.bfloat16) for array in (x, y))
    np.testing.assert_array_equal(BFLOAT16.add(x, y), sum(peer, start=0).float().numpy())


@given(x=_GRID, factor=st.floats(2.0**-10, 1, width=32))
def test_bfloat16_product(x: Float32Array, factor: float) -> None:
    result = BFLOAT16.multiply(x, np.float32(factor))
    inside = (x * np.float32(factor)).astype(np.float64)
    assert on_grid(result)
    np.testing.assert_array_equal(result.astype(np.float64), round_once(inside))


@given(x=_GRID, factor=st.floats(2.0**-10, 1, width=32))
def test_golden_bfloat16_product_is_rounded_once(x: Float32Array, factor: float) -> None:
    result = GOLDEN_BFLOAT16.multiply(x, np.float32(factor))
    np.testing.assert_array_equal(
        result.astype(np.float64), round_once(x.astype(np.float64) * factor)
    )


@pytest.mark.parametrize("arithmetic", FLOAT32S)
@given(x=floats(1e38), y=st.floats(-1, 1, width=32))
def test_float32_sums_and_products_are_numpys(
    arithmetic: Arithmetic, x: Float32Array, y: float
) -> None:
    factor = np.float32(y)
    np.testing.assert_array_equal(arithmetic.add(x, x), x + x)
    np.testing.assert_array_equal(arithmetic.multiply(x, factor), x * factor)
    np.testing.assert_array_equal(arithmetic.round(x), x)


@pytest.mark.parametrize("arithmetic", BFLOAT16S)
@given(x=floats(3.4e38))
def test_bfloat16_round(arithmetic: Arithmetic, x: Float32Array) -> None:
    truth = round_once(x.astype(np.float64))
    result = arithmetic.round(x)  # in place
    assert on_grid(result)
    np.testing.assert_array_equal(result.astype(np.float64), truth)


@pytest.mark.parametrize("arithmetic", EACH)
@pytest.mark.parametrize("contiguous", [True, False])
def test_inputs_are_left_as_they_are(arithmetic: Arithmetic, contiguous: bool) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(0, 2, (2, 8, 8)).astype(np.float32)
    if not contiguous:
        x, y = x.T, y[::-1]
    weight, bias = generator.normal(0, 1, (2, 8)).astype(np.float32)
    operands = (x, y, weight, bias)
    before = [operand.copy() for operand in operands]
    results = [
        arithmetic.add(x, y),
        arithmetic.multiply(x, np.float32(0.3)),
        arithmetic.softmax(x),
        arithmetic.layer_norm(x, weight, bias, 1e-5),
        arithmetic.activation("tanh", x),
        arithmetic.mean(x),
        arithmetic.normalize(x),
        *(arithmetic.activation(name, x) for name in ACTIVATIONS),
    ]
    for operand, copy in zip(operands, before, strict=True):
        np.testing.assert_array_equal(operand, copy)
    for result in results:
        assert result.dtype == np.float32
        assert not any(np.shares_memory(result, operand) for operand in operands)
        result[...] = 0  # a table's entries would change here
    for operand, copy in zip(operands, before, strict=True):
        np.testing.assert_array_equal(operand, copy)
    assert arithmetic.activation("gelu", np.float32([1.0]))[0] == pytest.approx(0.8413, abs=2e-3)


# The interface


#: Operations that the pass composes of others, unless an engine does them at once.
FUSED = {"attention", "fuses_attention", "activated_linear", "fuses_activation"}

#: What every engine that computes on its own has to have.
OPERATIONS = [name for name in vars(Engine) if not name.startswith("_") and name not in FUSED]

LEAVES = {"float": FloatEngine, "golden": GoldenEngine, "shape": ShapeEngine}


@pytest.mark.parametrize("engine", LEAVES.values(), ids=LEAVES)
def test_a_leaf_has_every_operation(engine: type[Engine[Any]]) -> None:
    """It has no other engine that it could leave one to."""
    assert len(OPERATIONS) == 14
    for name in set(OPERATIONS) - ({"counted"} if engine is ShapeEngine else set()):
        assert getattr(engine, name) is not getattr(Engine, name), name


def test_recording_has_every_operation_that_gives_a_value() -> None:
    for name in set(OPERATIONS) - {"counted"}:
        assert getattr(RecordingEngine, name) is not getattr(Engine, name), name


class Named(Engine[Any]):
    """Gives back what it was called with."""

    def __getattribute__(self, name: str) -> Any:
        if name in (*OPERATIONS, "attention", "activated_linear"):
            return lambda *operands: (name, operands)
        return object.__getattribute__(self, name)


class Delegating(Engine[Any]):
    """Changes nothing."""

    def __init__(self, inner: Engine[Any]) -> None:
        self.inner = inner


def test_what_an_engine_does_not_change_is_the_inner_ones() -> None:
    engine = Delegating(Named())
    for name in (*OPERATIONS, "attention", "activated_linear"):
        count = len(inspect.signature(getattr(engine, name)).parameters)
        operands = tuple(object() for _ in range(count))
        assert getattr(engine, name)(*operands) == (name, operands)


QKV = [site_named(f"encoder.layer.0.attention.self.{name}") for name in ("query", "key", "value")]


def qkv_weights(width: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"weight": (width, width), "bias": (width,)}
    return {
        f"{site.name}.{what}": rng.normal(0, 1, shape).astype(np.float32)
        for site in QKV
        for what, shape in shapes.items()
    }


def int8_plans(**scales: Scale) -> dict[str, SitePlan]:
    """A plan for query, key and value, by default of one scale."""
    return {
        site.name: SitePlan(INT8.linear, scales.get(site.name.rpartition(".")[2], Scale(STEP)))
        for site in QKV
    }


INT8, STEP = PRESETS["int8"], np.float32(0.02)
ENGINES_OF_LAYERS = {
    "float": FloatEngine,
    "golden": GoldenEngine,
    "bfloat16": lambda weights, batch: Bfloat16Engine(FloatEngine(weights, batch)),
    "nothing quantized": engine_of(PRESETS["bf16"], {}),
    "golden, nothing quantized": engine_of(PRESETS["bf16"], {}, golden=True),
    "weights not quantized": engine_of(INT8, int8_plans()),
}


@pytest.mark.parametrize("engine", ENGINES_OF_LAYERS.values(), ids=ENGINES_OF_LAYERS)
@pytest.mark.parametrize("which", range(3))
def test_an_error_in_one_of_several_layers_names_it(engine: EngineOf, which: int) -> None:
    weights, site = qkv_weights(), QKV[which].name
    weights[f"{site}.weight"] = weights[f"{site}.weight"][:, 1:]  # which fits no input
    x = np.ones((4, 8), np.float32)
    config = load("bert-tiny-sst2").config
    batch = batch_of(config, [[1] * 4])
    run = Pass(config, engine(weights, batch), batch)
    with pytest.raises(BertNumpyError, match=f"^{site}: "):
        linears(run, QKV, x)


@pytest.mark.parametrize("golden", [False, True])
def test_one_input_of_one_scale_is_quantized_once(
    golden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is counted for each of its layers; another scale makes other codes."""
    made: list[float] = []

    def spy(x: Any, fmt: Any, scale: Any, *rest: Any) -> Any:
        made.append(float(scale))
        return decoded_bfloat16(x, fmt, scale, *rest)

    monkeypatch.setattr(quantized_engine, "decoded_bfloat16", spy)
    weights = qkv_weights()
    for site in QKV:
        weights[f"{site.name}.weight"] = quantize(weights[f"{site.name}.weight"], npfp8.INT8)
    x = round_to_bfloat16(np.random.default_rng(2).normal(0, 1, (4, 8)).astype(np.float32))
    results = {}
    for name, plans, expected in (
        ("one scale", int8_plans(), [STEP]),
        ("equal scales", int8_plans(key=Scale(np.float32(0.02))), [STEP]),
        ("another for V", int8_plans(value=Scale(2 * STEP)), [STEP, 2 * STEP]),
    ):
        made.clear()
        engine = engine_for(engine_of(INT8, plans, golden), weights, [[1] * 4])
        results[name] = list(engine.linears(QKV, x))
        assert made == [float(scale) for scale in expected], name
        counts = engine.counted()
        assert list(counts) == [f"{site.name}:a" for site in QKV]
        assert {count.elements for count in counts.values()} == {x.size}
        alone = [y for site in QKV for y in engine.linears([site], x)]
        for y, same in zip(results[name], alone, strict=True):
            np.testing.assert_array_equal(y, same)
    for first, last in zip(results["one scale"][:2], results["another for V"][:2], strict=True):
        np.testing.assert_array_equal(first, last)
    assert (results["one scale"][2] != results["another for V"][2]).any()


def test_a_noting_engine_changes_nothing_and_tells_all() -> None:
    model = load("bert-tiny-sst2")
    batch = load_tokenizer("bert-tiny-sst2").batch(["a warm and funny film", "dull"])
    calibration = calibrate(model, [batch])
    for name in ("fp32", "e4m3", "int8-outliers", "int8-smooth"):
        made = apply_recipe(model, PRESETS[name], calibration, golden=True)
        seen: list[tuple[Any, ...]] = []
        found = noted(made, lambda *product, seen=seen: seen.append(product))(**batch)
        expected = made(**batch)
        assert found.counts == expected.counts
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert list(dict.fromkeys(site for site, *_ in seen)) == model_sites(model)
        for site, a, b, bias, result in seen:
            assert result.shape == (*a.shape[:-1], b.shape[-1])
            if bias is not None:
                weight = made.weights[f"{site}.weight"]
                codes = isinstance(weight, QuantizedTensor)
                assert isinstance(b, QuantizedTensor) == codes
                x, y = (b.mT.codes, weight.codes) if codes else (b.T, weight)
                np.testing.assert_array_equal(x, y)
                assert bias is made.weights[f"{site}.bias"]
