"""The scales of training: rules of the papers, against their code's arithmetic written again."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_numpy.training.scalings import SCALINGS, Seen, TensorState, ratio_scale
from npfp8 import E4M3FN, E5M2, FloatFormat, absmax_scale

FORMATS = pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)

magnitudes = st.floats(2.0**-40, 2.0**40)
any_magnitudes = st.one_of(
    st.floats(2.0**-149, 2.0**127), st.sampled_from([0.0, 2.0**-149, 2.0**127, math.inf, math.nan])
)


def transformer_engine(amaxes: list[float], length: int, latest: bool, largest: float) -> list:
    """The multipliers of each step, as the kernel of delayed_scaling.cu rolls and reduces them.

    The history is an array of a fixed length whose first entry is the present step's.
    """
    history, scale, used = np.zeros(length), 1.0, []
    for amax in amaxes:
        used.append(scale)
        history[0] = amax
        last = history[0]
        rolled = np.roll(history, -1)
        reduced = last if latest else max(rolled)
        if np.isfinite(reduced) and reduced > 0:
            scale = largest / reduced
        history = rolled
        history[0] = 0
    return used


@FORMATS
@pytest.mark.parametrize("name", ["delayed", "delayed-1024", "delayed-latest"])
@given(amaxes=st.lists(st.one_of(magnitudes, st.just(0.0)), min_size=1, max_size=40))
def test_delayed_scaling_is_transformer_engines(
    name: str, fmt: FloatFormat, amaxes: list[float]
) -> None:
    how, state, found = SCALINGS[name], TensorState(), []
    for amax in amaxes:
        found.append(1 / how.scale(state, fmt, absmax=math.nan))  # it does not read the tensor
        state = how.next(state, fmt, Seen(amax, 1))
    expected = transformer_engine(amaxes, how.history, how.latest, float(fmt.max))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "steps"), [("delayed", 16), ("delayed-1024", 1024), ("delayed-latest", 1)]
)
def test_how_long_a_magnitude_counts(name: str, steps: int) -> None:
    how, state = SCALINGS[name], TensorState()
    state = how.next(state, E4M3FN, Seen(4480.0, 1))
    for step in range(steps + 1):
        assert how.scale(state, E4M3FN, math.nan) == (10 if step < steps else 1), step
        state = how.next(state, E4M3FN, Seen(448.0, 1))


def test_an_infinity_in_the_history_keeps_the_scale() -> None:
    how = SCALINGS["delayed-latest"]
    state = how.next(TensorState(), E4M3FN, Seen(896.0, 1))
    for bad in (math.inf, math.nan, 0.0):
        assert how.next(state, E4M3FN, Seen(bad, 1)).scale == state.scale == 2.0


@FORMATS
@given(absmax=magnitudes)
def test_a_power_of_two_is_that_of_ms_amp(fmt: FloatFormat, absmax: float) -> None:
    """MS-AMP multiplies by ``2^floor(log2(max / amax))``; FP8-AMAX's bias is the same."""
    scale = SCALINGS["dynamic-pow2"].scale(TensorState(), fmt, absmax)
    assert math.frexp(scale)[0] == 0.5
    # Between half of the largest value, and it: the log2 of the formula may round.
    assert fmt.max / 2 < absmax / scale * (1 + 1e-15)
    assert absmax / scale <= fmt.max


@FORMATS
@given(absmax=magnitudes)
def test_dynamic_is_npfp8s_absmax(fmt: FloatFormat, absmax: float) -> None:
    absmax = float(np.float32(absmax))
    scale = SCALINGS["dynamic"].scale(TensorState(), fmt, absmax)
    assert np.float32(scale) == absmax_scale(np.float32(absmax), fmt)


@given(absmax=any_magnitudes)
def test_every_scale_is_usable(absmax: float) -> None:
    """The product of two scales is a normal float32, whatever a step has seen."""
    rules = [*SCALINGS.values()]
    for how in SCALINGS.values():
        rules += [other for other in (how.weight_scaling, how.gradient_scaling) if other]
    for how in rules:
        state = TensorState()
        for _ in range(3):
            scale = how.scale(state, E5M2, absmax)
            assert 2.0**-62 <= scale <= 2.0**62
            state = how.next(state, E5M2, Seen(absmax, 8, 8))


def test_static_keeps_the_largest_of_the_first_steps() -> None:
    how, state = SCALINGS["static"], TensorState()
    for step in range(40):
        absmax = 448.0 * (1 + step % 7) * (1 if step < 16 else 1000)
        scale = how.scale(state, E4M3FN, absmax)
        assert scale == (2 * (1 + step % 7) if step < 16 else 2 * 7)
        state = how.next(state, E4M3FN, Seen(absmax, 1))
    assert how.scale(state, E4M3FN, 1e9) == 14


def test_the_factor_follows_overflows() -> None:
    """Over 1,000 steps without overflow it doubles; more than 0.001 % halves it at once."""
    how, state = SCALINGS["automatic"].weight_scaling, TensorState()
    assert how is not None
    for _ in range(1000):
        state = how.next(state, E4M3FN, Seen(1.0, 10**6, 10))
    assert state.factor == pytest.approx(2)
    assert how.scale(state, E4M3FN, 448.0) == pytest.approx(0.5)
    assert how.scale(TensorState(), E4M3FN, 500.0) == 2  # a power of two
    assert how.next(state, E4M3FN, Seen(1.0, 10**6, 11)).factor == pytest.approx(1)
    # In a tensor of fewer than 100,000 elements a single one is too many.
    assert how.next(state, E4M3FN, Seen(1.0, 99_999, 1)).factor == pytest.approx(1)


@given(margin=st.integers(0, 4), absmax=magnitudes)
def test_a_margin_is_headroom(margin: int, absmax: float) -> None:
    how = replace(SCALINGS["dynamic"], margin=margin)
    scale = ratio_scale(how, E4M3FN, absmax)
    assert absmax / scale == pytest.approx(448 / 2**margin)


def test_the_states_of_steps_are_counted() -> None:
    for how in SCALINGS.values():
        state = how.next(how.next(TensorState(), E4M3FN, Seen()), E4M3FN, Seen())
        assert state.steps == 2
        assert len(state.history) <= how.history
        assert SCALINGS[how.name] is how
        assert how.description


def test_seen_is_added() -> None:
    assert Seen(1.0, 2, 3) + Seen(0.5, 5, 0) == Seen(1.0, 7, 3)
    assert math.isnan((Seen(math.nan, 1) + Seen(1.0, 1)).absmax)
    assert math.isnan((Seen(1.0, 1) + Seen(math.nan, 1)).absmax)
