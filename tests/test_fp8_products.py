"""Products of training in FP8: their codes, their sums and their counts, against rational sums."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bert_numpy.engines.site import Site
from bert_numpy.quantization.counts import OperandCounts
from bert_numpy.training.fp8_products import ENCODER_KINDS, FP8Products, absmax_of, coded
from bert_numpy.training.products import FloatProducts
from bert_numpy.training.scalings import SCALINGS, TensorState
from npfp8 import E4M3FN, E5M2, FloatFormat, decode, encode, matmul, quantize

LINEAR = Site("encoder.layer.0.output.dense", "linear", 0, 5)
SCORES = Site("encoder.layer.0.attention.scores", "scores", 0)
HEAD = Site("classifier", "head", None, 2)


def numbers(*shape: int, seed: int = 0, spread: float = 2.0) -> Any:
    """Numbers of many magnitudes."""
    generator = np.random.default_rng(seed)
    size = np.exp(spread * generator.normal(size=shape))
    return (generator.normal(size=shape) * size).astype(np.float32)


def rounded(x: Any, fmt: FloatFormat, scale: float) -> Any:
    """The values of codes, by the codec alone."""
    return decode(encode(x / np.float32(scale), fmt), fmt)


def rational_product(x: Any, y: Any, scale: float) -> Any:
    """A product of matrices, summed exactly, rounded once, times a float32 scale."""
    sums = []
    for row in x:
        pairs = [zip(row.tolist(), column.tolist(), strict=True) for column in y.T]
        sums.append([float(sum(Fraction(p) * Fraction(q) for p, q in pair)) for pair in pairs])
    return np.array(sums, np.float32) * np.float32(scale)


@pytest.mark.parametrize("name", SCALINGS)
def test_the_three_products(name: str) -> None:
    """With exact sums they are those of the decoded values, to the last bit, in three steps."""
    how = SCALINGS[name]
    products = FP8Products(how, accumulate="exact", expected={f"{LINEAR.name}:a": 0.3})
    states = dict.fromkeys(["a", "b", "dy", "db"], TensorState())
    for step in range(3):
        x = {
            part: numbers(*shape, seed=seed + 10 * step)
            for seed, (part, shape) in enumerate((("a", (4, 9)), ("b", (9, 5)), ("dy", (4, 5))))
        }
        formats = {"a": E4M3FN, "b": E4M3FN, "dy": E5M2}
        y, saved = products.forward(LINEAR, x["a"], x["b"])
        da, db = products.backward(LINEAR, saved, x["dy"])
        scales, values = {}, {}
        for part, fmt in formats.items():
            expected = 0.3 if part == "a" else 1.0
            rule = (part == "dy" and how.gradient_scaling) or how
            scale = rule.scale(states[part], fmt, float(np.abs(x[part]).max()), expected)
            scales[part] = np.float32(scale)
            values[part] = rounded(x[part], fmt, scale)
        s = scales
        want = rational_product(values["a"], values["b"], s["a"] * s["b"])
        np.testing.assert_array_equal(y, want)
        want = rational_product(values["dy"], values["b"].T, s["dy"] * s["b"])
        np.testing.assert_array_equal(da, want)
        want = rational_product(values["a"].T, values["dy"], s["a"] * s["dy"])
        if how.weight_gradient is not None:
            rule = how.weight_scaling or how
            scale = np.float32(rule.scale(states["db"], E4M3FN, float(np.abs(want).max())))
            want = rounded(want, E4M3FN, scale) * scale
        np.testing.assert_array_equal(db, want)
        counted = {part: products.counts[f"{LINEAR.name}:{part}"] for part in formats}
        for part, fmt in formats.items():
            beyond = np.abs(x[part] / scales[part]) > fmt.max * (1 + 2.0**-20)
            gone = (values[part] == 0) & (x[part] != 0)
            assert counted[part] == OperandCounts(x[part].size, beyond.sum(), gone.sum())
        following = products.following()
        states = {
            part: following.states.get(f"{LINEAR.name}:{part}", TensorState()) for part in states
        }
        assert following.step == step + 1
        assert not following.counts
        assert not following.seen
        products = following


def test_fast_sums_differ_by_roundings_alone() -> None:
    """The BLAS's float32 sums of products that are exact: K roundings of 2^-24 at most."""
    a, b = numbers(64, 512, spread=1), numbers(512, 32, seed=1, spread=1)
    fast, exact = (
        FP8Products(SCALINGS["dynamic"], accumulate=how).forward(LINEAR, a, b)[0]
        for how in ("float32", "exact")
    )
    q = [quantize(x, E4M3FN) for x in (a, b)]
    np.testing.assert_array_equal(fast, matmul(*q, "float32"))
    np.testing.assert_array_equal(exact, matmul(*q, "exact"))
    # In any order 511 additions, then the product with the scale; exact has two roundings.
    x, y = (np.abs(one.dequantize().astype(np.float64)) for one in q)
    assert (np.abs(fast - exact) <= (512 + 4) * 2.0**-24 * (x @ y)).all()


@pytest.mark.parametrize("layout", ["C", "F", "strided", "heads"])
def test_codes_of_every_layout(layout: str) -> None:
    x = numbers(6, 10, spread=4)
    if layout == "F":
        x = numbers(10, 6, spread=4).T
    elif layout == "strided":
        x = numbers(6, 20, spread=4)[:, ::2]
    elif layout == "heads":
        x = numbers(2, 5, 3, 4).transpose(0, 2, 3, 1)
    for fmt in (E4M3FN, E5M2):
        found, q = coded(x, fmt, 0.3), quantize(x, fmt, np.float32(0.3))
        np.testing.assert_array_equal(found.codes, q.codes)
        np.testing.assert_array_equal(found.values, q.code_values())
        np.testing.assert_array_equal(found.mT.values, found.values.swapaxes(-1, -2))
        np.testing.assert_array_equal(found.tensor.dequantize(), q.dequantize())


def test_heads_stay_in_float32() -> None:
    a, b, dy = numbers(4, 9), numbers(9, 2, seed=1), numbers(4, 2, seed=2)
    products, plain = FP8Products(SCALINGS["dynamic"]), FloatProducts()
    y, saved = products.forward(HEAD, a, b)
    np.testing.assert_array_equal(y, plain.forward(HEAD, a, b)[0])
    for mine, right in zip(
        products.backward(HEAD, saved, dy), plain.backward(HEAD, (a, b), dy), strict=True
    ):
        np.testing.assert_array_equal(mine, right)
    assert not products.seen
    everywhere = FP8Products(SCALINGS["dynamic"], kinds=(*ENCODER_KINDS, "head"))
    assert (everywhere.forward(HEAD, a, b)[0] != y).any()


def test_a_site_that_occurs_several_times_in_a_step() -> None:
    """Sets of attention, and layers that share parameters: one state, from all of them."""
    products = FP8Products(SCALINGS["delayed-latest"])
    for size in (1.0, 4.0, 2.0):
        products.forward(SCORES, np.full((2, 3), size, np.float32), np.ones((3, 2), np.float32))
    state = products.following().states[f"{SCORES.name}:a"]
    assert state.history == (4.0,)
    assert state.scale == 4 / 448
    assert products.counts[f"{SCORES.name}:a"].elements == 18


@pytest.mark.parametrize("name", ["dynamic", "delayed", "unit"])
def test_one_input_of_several_layers_is_quantized_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query, key and value: the same results as from copies, with one encoding."""
    from bert_numpy.training import fp8_products  # noqa: PLC0415

    calls: list[Any] = []

    def counted(*x: Any) -> Any:
        calls.append(x)
        return encode(*x)

    monkeypatch.setattr(fp8_products, "encode", counted)
    sites = [LINEAR._replace(name=f"encoder.layer.0.attention.self.{x}") for x in ("query", "key")]
    a, weights = numbers(4, 9), [numbers(9, 5, seed=seed) for seed in (1, 2)]
    shared, apart = FP8Products(SCALINGS[name]), FP8Products(SCALINGS[name])
    for site, weight in zip(sites, weights, strict=True):
        y, _ = shared.forward(site, a.reshape(4, 9), weight)  # another view of it
        np.testing.assert_array_equal(y, apart.forward(site, a.copy(), weight)[0])
    assert shared.seen == apart.seen
    assert shared.counts == apart.counts
    # A weight comes between the two uses, so the last operand alone would not be enough.
    assert len(calls) == 3 + 4


def test_one_memory_is_not_one_input() -> None:
    """Another scale of the same numbers, their transpose, and a part of them."""
    x, weight = numbers(6, 6), numbers(6, 5, seed=1)
    other = LINEAR._replace(name="encoder.layer.1.output.dense")
    for second, first_scale in ((x, 7.0), (x.T, 0.3), (x[:3], 0.3)):
        scales = {f"{LINEAR.name}:a": first_scale, f"{other.name}:a": 0.3}
        states = {name: TensorState(scale=scale) for name, scale in scales.items()}
        products = FP8Products(SCALINGS["delayed"], states=states)
        products.forward(LINEAR, x, weight)
        _, (found, _) = products.forward(other, second, weight)
        np.testing.assert_array_equal(found.values, rounded(second, E4M3FN, 0.3))
        assert products.seen[f"{other.name}:a"].elements == second.size


def test_codes_of_the_largest_value_are_counted_for_gradients_of_weights() -> None:
    """MS-AMP's overflows: codes of the largest value, of either sign, not only what is beyond."""
    name = f"{LINEAR.name}:db"
    products = FP8Products(SCALINGS["automatic"])
    _, saved = products.forward(LINEAR, np.ones((2, 1), np.float32), np.ones((1, 6), np.float32))
    dy = np.float32([[448, -448, 384, 384, 1, 0], [0, 0, 32, 0, 0, 0]])
    _, db = products.backward(LINEAR, saved, dy)
    assert db.tolist() == [[448, -448, 416, 384, 1, 0]]  # 416 is the value below the largest
    assert products.seen[name].largest == 2
    assert products.seen[f"{LINEAR.name}:dy"].largest == 0


def test_gradients_may_have_more_headroom() -> None:
    """The scale of E5M2 is 2^7 larger than with a margin of one, the others are the same."""
    scales = {}
    for name in ("static", "static-headroom"):
        products = FP8Products(SCALINGS[name])
        _, saved = products.forward(LINEAR, numbers(4, 9), numbers(9, 5, seed=1))
        products.backward(LINEAR, saved, numbers(4, 5, seed=2))
        states = products.following().states
        scales[name] = {part: states[f"{LINEAR.name}:{part}"].scale for part in ("a", "b", "dy")}
    plain, wide = scales.values()
    assert wide == plain | {"dy": plain["dy"] * 128}


def test_the_factor_is_that_of_gradients_of_weights_alone() -> None:
    """FP8-LM: the factor grows without overflow, and is halved by the first of few elements."""
    products = FP8Products(SCALINGS["automatic"])
    for step in range(40):
        _, saved = products.forward(LINEAR, numbers(4, 9, seed=step), numbers(9, 5, seed=1))
        products.backward(LINEAR, saved, numbers(4, 5, seed=step))
        products = products.following()
    factors = {name.rpartition(":")[2]: state.factor for name, state in products.states.items()}
    assert factors.keys() == {"a", "b", "dy", "db"}
    assert factors["a"] == factors["b"] == factors["dy"] == 1
    assert factors["db"] != 1
    assert not products.seen
    products.backward(
        LINEAR, products.forward(LINEAR, np.eye(4, 9, dtype=np.float32), numbers(9, 5))[1],
        np.full((4, 5), 2.0**-9 / 448, np.float32),
    )  # fmt: skip
    assert products.seen[f"{LINEAR.name}:a"].largest == 0
    assert products.seen[f"{LINEAR.name}:db"].elements == 45


def test_the_right_operand_of_attention_is_no_weight() -> None:
    """FP8-LM keeps gradients of weights in E4M3, and not those of keys and values."""
    found = {}
    for name in ("automatic", "dynamic-pow2"):
        products = FP8Products(SCALINGS[name])
        _, saved = products.forward(SCORES, numbers(4, 9), numbers(9, 5, seed=1))
        found[name] = products.backward(SCORES, saved, numbers(4, 5, seed=2))
        assert f"{SCORES.name}:db" not in products.seen
    for mine, right in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(mine, right)


def test_fields_are_checked() -> None:
    how = SCALINGS["dynamic"]
    for options, message in (
        ({"scaling": "dynamic"}, "scaling: expected a Scaling, such as .*, found str"),
        ({"accumulate": "hoper"}, "accumulate: expected one of .*; did you mean 'hopper'"),
        ({"kinds": ("linears",)}, "kinds: expected one of .*; did you mean 'linear'"),
        ({"gradient_format": "E5M2"}, "gradient_format: expected a FloatFormat"),
        ({"count_every": -1}, "count_every: expected at least 0, found -1"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            FP8Products(**({"scaling": how} | options))  # type: ignore[arg-type]


def test_counts_now_and_then() -> None:
    products = FP8Products(SCALINGS["none"], count_every=3)
    counted = []
    for _ in range(7):
        products.forward(LINEAR, np.float32([[500, 2.0**-11, 0, 1]]), np.ones((4, 1), np.float32))
        counted.append(bool(products.counts))
        if products.counts:
            assert products.counts[f"{LINEAR.name}:a"] == OperandCounts(4, 1, 1)
        products = products.following()
    assert counted == [step % 3 == 0 for step in range(7)]
    silent = FP8Products(SCALINGS["none"], count_every=0)
    silent.forward(LINEAR, np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    assert not silent.counts
    assert silent.seen


def test_nothing_but_numbers_that_are_lost() -> None:
    """A NaN in a gradient goes through; zeros and empty arrays have a scale."""
    products = FP8Products(SCALINGS["dynamic"])
    _, saved = products.forward(LINEAR, np.zeros((2, 3), np.float32), np.ones((3, 2), np.float32))
    da, _ = products.backward(LINEAR, saved, np.float32([[np.nan, 1], [1, 1]]))
    assert np.isnan(da[0]).all()
    assert (da[1] == 2).all()
    assert absmax_of(np.zeros((0, 3), np.float32)) == 0
    assert np.isnan(absmax_of(np.float32([1, np.nan])))
