"""Scalings: which number each tensor of training is divided by before it becomes codes.

A *scale* is a divisor, as everywhere in :mod:`npfp8`: codes are ``encode(x / scale)``. (Papers on
training often name its inverse a scale.) A :class:`Scaling` is a record of two pure functions. One
chooses the scale of a tensor from what is known before its codes are made. The other takes the
tensor's :class:`TensorState` from one step to the next. :data:`SCALINGS` has those of the papers:

- *FP8 Formats for Deep Learning* (Micikevicius et al., arXiv 2209.05433) needs a scale per tensor
  and leaves open which: "none" and "static" are its two simplest.
- *Training and inference of large language models using 8-bit floating point* (Perez et al., arXiv
  2309.17224), FP8-AMAX: a power of two from the largest magnitude of the tensor itself.
- NVIDIA's Transformer Engine, delayed scaling: the largest magnitude of the steps before.
- *FP8-LM* (Peng et al., arXiv 2310.18313) and its code, MS-AMP: powers of two as in FP8-AMAX; the
  gradients of weights are kept in E4M3 too, scaled by a factor that follows their overflows.
- *Unit Scaling* (Blake et al., arXiv 2303.11257): constants from the shapes alone
  (:mod:`bert_numpy.training.unit_scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from npfp8 import E4M3FN, FloatFormat

__all__ = ["SCALINGS", "Scaling", "Seen", "TensorState", "ratio_scale"]

#: Scales are kept within these bounds, so that the product of two is a normal float32.
SMALLEST, LARGEST = 2.0**-62, 2.0**62


@dataclass(frozen=True)
class TensorState:
    """The state of a tensor that its scale depends on, carried from step to step.

    Attributes
    ----------
    scale : float
        The scale of the next step, if it does not depend on the tensor itself. Transformer Engine
        begins with 1.
    history : tuple of float
        The largest magnitudes of the last steps, the latest first.
    factor : float
        FP8-LM's factor: numbers are multiplied by it before they become codes.
    steps : int
        The number of steps so far.

    Examples
    --------
    >>> TensorState()
    TensorState(scale=1.0, history=(), factor=1.0, steps=0)
    """

    scale: float = 1.0
    history: tuple[float, ...] = ()
    factor: float = 1.0
    steps: int = 0


@dataclass(frozen=True)
class Seen:
    """The statistics of a tensor in one step: of all its arrays, if it occurs several times.

    Attributes
    ----------
    absmax : float
        The largest magnitude.
    elements : int
        The number of elements.
    largest : int
        The number of codes that are the largest finite value, of either sign.

    Examples
    --------
    >>> Seen(2.0, 10, 1) + Seen(3.0, 10)
    Seen(absmax=3.0, elements=20, largest=1)
    """

    absmax: float = 0.0
    elements: int = 0
    largest: int = 0

    def __add__(self, other: Seen) -> Seen:
        absmax = max(self.absmax, other.absmax)
        if math.isnan(self.absmax) or math.isnan(other.absmax):
            absmax = math.nan
        return Seen(absmax, self.elements + other.elements, self.largest + other.largest)


#: The scale of a tensor, from its state, its format, its largest magnitude, and the magnitude
#: that its shape lets expect.
Choose = Callable[["Scaling", TensorState, FloatFormat, float, float], float]

#: The state of the next step, from that of a step, the format, and the step's statistics.
Follow = Callable[["Scaling", TensorState, FloatFormat, Seen], TensorState]


@dataclass(frozen=True)
class Scaling:
    """A rule for the scales of all tensors of a training run.

    Attributes
    ----------
    name : str
    choose, follow : callable
        The scale of a tensor, and its state after a step. The functions of this module are
        those of the papers.
    description : str
        One line for tables.
    margin : int
        The largest magnitude is mapped to ``2**-margin`` times the largest value of the format.
    power_of_two : bool
        True if scales are powers of two, rounded up: nothing saturates by the rounding.
    history : int
        The number of steps that :func:`from_history` and :func:`from_first_steps` look at.
    latest : bool
        True if only the latest of these steps counts (Transformer Engine's "most_recent").
    gradient_scaling : Scaling, optional
        The rule for gradients of results, if it is another.
    weight_gradient : FloatFormat, optional
        The format in which the gradients of weights are kept; None for float32.
    weight_scaling : Scaling, optional
        The rule for their scales.
    threshold : float
        The share of largest values from which FP8-LM's factor is halved.
    window : int
        The number of steps without overflow in which it doubles.

    Examples
    --------
    >>> from npfp8 import E4M3FN
    >>> how = SCALINGS["dynamic"]
    >>> how.scale(TensorState(), E4M3FN, absmax=896.0)
    2.0
    >>> delayed = SCALINGS["delayed"]
    >>> state = delayed.next(TensorState(), E4M3FN, Seen(absmax=896.0, elements=1))
    >>> delayed.scale(state, E4M3FN, absmax=5.0)
    2.0
    """

    name: str
    choose: Choose
    follow: Follow
    description: str = ""
    margin: int = 0
    power_of_two: bool = False
    history: int = 16
    latest: bool = False
    gradient_scaling: Scaling | None = None
    weight_gradient: FloatFormat | None = None
    weight_scaling: Scaling | None = None
    threshold: float = 1e-5
    window: int = 1000

    def scale(
        self, state: TensorState, fmt: FloatFormat, absmax: float, expected: float = 1.0
    ) -> float:
        """Return the scale of a tensor, within bounds whose products are normal float32."""
        return min(max(self.choose(self, state, fmt, absmax, expected), SMALLEST), LARGEST)

    def next(self, state: TensorState, fmt: FloatFormat, seen: Seen) -> TensorState:
        """Return the state after a step."""
        return replace(self.follow(self, state, fmt, seen), steps=state.steps + 1)


def ratio_scale(how: Scaling, fmt: FloatFormat, absmax: float, otherwise: float = 1.0) -> float:
    """Return the scale that maps a magnitude to the largest value, less the margin.

    ``otherwise`` is returned where the magnitude is 0 or not finite, as in Transformer Engine.

    Examples
    --------
    >>> from npfp8 import E4M3FN, E5M2
    >>> ratio_scale(SCALINGS["dynamic-pow2"], E4M3FN, 500.0)
    2.0
    >>> ratio_scale(SCALINGS["dynamic"], E5M2, 0.0, otherwise=0.25)
    0.25
    """
    if not (math.isfinite(absmax) and absmax > 0):
        return otherwise
    scale = absmax / float(fmt.max) * 2.0**how.margin
    if not how.power_of_two:
        return scale
    fraction, exponent = math.frexp(scale)
    return math.ldexp(1.0, exponent - (fraction == 0.5))


# How a scale is chosen


def one(
    how: Scaling, state: TensorState, fmt: FloatFormat, absmax: float, expected: float
) -> float:
    """Choose 1: the numbers are cast as they are."""
    return 1.0


def from_itself(
    how: Scaling, state: TensorState, fmt: FloatFormat, absmax: float, expected: float
) -> float:
    """Choose by the tensor's own largest magnitude: it has to be read twice."""
    return ratio_scale(how, fmt, absmax)


def from_state(
    how: Scaling, state: TensorState, fmt: FloatFormat, absmax: float, expected: float
) -> float:
    """Choose the scale that the steps before determined, 1 in the first."""
    return state.scale


def from_itself_at_first(
    how: Scaling, state: TensorState, fmt: FloatFormat, absmax: float, expected: float
) -> float:
    """Choose as :func:`from_itself` in the first steps, then the scale that they left."""
    return ratio_scale(how, fmt, absmax) if state.steps < how.history else state.scale


def from_shape(
    how: Scaling, state: TensorState, fmt: FloatFormat, absmax: float, expected: float
) -> float:
    """Choose the magnitude that the shapes let expect: the codes' numbers are about 1."""
    return expected


def with_factor(
    how: Scaling, state: TensorState, fmt: FloatFormat, absmax: float, expected: float
) -> float:
    """Choose as :func:`from_itself`, divided by FP8-LM's factor."""
    return ratio_scale(how, fmt, absmax) / state.factor


# How a state follows


def unchanged(how: Scaling, state: TensorState, fmt: FloatFormat, seen: Seen) -> TensorState:
    """Keep the state."""
    return state


def from_history(how: Scaling, state: TensorState, fmt: FloatFormat, seen: Seen) -> TensorState:
    """Take the largest magnitude of the last steps, as Transformer Engine's delayed scaling.

    The scale stays as it is if that magnitude is 0 or not finite.
    """
    history = (seen.absmax, *state.history)[: how.history]
    largest = history[0] if how.latest else max(history)
    return replace(state, history=history, scale=ratio_scale(how, fmt, largest, state.scale))


def from_first_steps(how: Scaling, state: TensorState, fmt: FloatFormat, seen: Seen) -> TensorState:
    """Take the largest magnitude of the first steps, and keep it."""
    return from_history(how, state, fmt, seen) if state.steps < how.history else state


def by_overflow(how: Scaling, state: TensorState, fmt: FloatFormat, seen: Seen) -> TensorState:
    """Halve the factor if too many codes are the largest value; otherwise let it grow slowly.

    FP8-LM, section 2.1, as in MS-AMP's code: the largest values are counted, not only what was
    beyond them.
    """
    if seen.largest > how.threshold * seen.elements:
        return replace(state, factor=state.factor / 2)
    return replace(state, factor=state.factor * 2.0 ** (1 / how.window))


def _table() -> Mapping[str, Scaling]:
    delayed = Scaling(
        "delayed", from_state, from_history, "largest magnitude of the 16 steps before"
    )
    powers = Scaling(
        "dynamic-pow2",
        from_itself,
        unchanged,
        "largest magnitude of the tensor, to a power of two",
        power_of_two=True,
    )
    static = Scaling(
        "static",
        from_itself_at_first,
        from_first_steps,
        "largest magnitude of the first 16 steps, doubled, and kept",
        margin=1,
    )
    rules = (
        Scaling("none", one, unchanged, "1: the numbers are cast as they are"),
        static,
        replace(
            static,
            name="static-headroom",
            description="as static; gradients with a margin of 8 powers of two, not one",
            gradient_scaling=replace(static, margin=8),
        ),
        Scaling("dynamic", from_itself, unchanged, "largest magnitude of the tensor"),
        powers,
        delayed,
        replace(
            delayed,
            name="delayed-1024",
            history=1024,
            description="largest magnitude of the 1,024 steps before",
        ),
        replace(
            delayed,
            name="delayed-latest",
            latest=True,
            description="largest magnitude of the step before",
        ),
        replace(
            powers,
            name="automatic",
            description="as dynamic-pow2; gradients of weights in E4M3, by how many overflow",
            weight_gradient=E4M3FN,
            weight_scaling=replace(powers, choose=with_factor, follow=by_overflow),
        ),
        Scaling("unit", from_shape, unchanged, "a constant from the shapes"),
    )
    return MappingProxyType({rule.name: rule for rule in rules})


#: The scalings by name.
SCALINGS: Mapping[str, Scaling] = _table()
