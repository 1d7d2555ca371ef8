"""Unit scaling: the magnitude of every tensor of training, expected from the shapes alone.

*Unit Scaling: Out-of-the-Box Low-Precision Training* (Blake et al., arXiv 2303.11257) gives each
operation factors, forward and backward, such that activations, weights and gradients have
variance 1 at the beginning of training, and needs no scale from data. Its library changes the
operations of the network. Here the network stays as it is, so that a pretrained checkpoint can be
used: the same factors, multiplied along the pass and back, are the expected magnitude (the root
of the mean square) of each operand, which is divided by it before it becomes codes. Both give the
same numbers in FP8, except for the library's weighting of residual branches.

The rules assume independent numbers of mean 0: weights of ``1 / sqrt(K)``, where K is the number
of inputs; sums of n products that are ``sqrt(n)`` times one; activations at standard normal
numbers; and a softmax over n keys whose results and gradients are 1.31 / n and 1.65 / n (the
constants of the paper's library, found there empirically). They are exact nowhere, and need not
be: a format of 8 bits is wide enough for a factor of a hundred.

The factors are found by a pass through the one description of the network, with an engine whose
values are magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_numpy.engines.engine import Engine, Table
from bert_numpy.engines.functions import activation as apply_activation
from bert_numpy.engines.shape import ValueLayout
from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from bert_numpy.model.encoder import Pass
from bert_numpy.model.heads import outputs
from bert_numpy.training.adamw import require_number
from bert_numpy.training.losses import LOSSES
from npfp8.arguments import flag, require
from npfp8.arrays import Float64Array

__all__ = [
    "Magnitude",
    "MagnitudeEngine",
    "MagnitudeLayout",
    "activation_factors",
    "expected_magnitudes",
]

#: The standard deviations of a softmax's results and of the gradients through it, times n.
SOFTMAX_FORWARD, SOFTMAX_BACKWARD = 1.31, 1.65


def activation_factors(name: str) -> tuple[float, float]:
    """Return an activation's standard deviation, and its gradient's, at standard normal numbers.

    Examples
    --------
    >>> [round(factor, 3) for factor in activation_factors("gelu")]  # as in the library
    [0.588, 0.675]
    """
    step = 2.0**-10
    x = np.arange(-8, 8, step)
    density = np.exp(-x * x / 2) * step / math.sqrt(2 * math.pi)
    y, above, below = (_float64(name, points) for points in (x, x + 0.01, x - 0.01))
    mean = (density * y).sum()
    deviation = math.sqrt((density * (y - mean) ** 2).sum())
    slope = (above - below) / 0.02
    return deviation, math.sqrt((density * slope**2).sum())


def _float64(name: str, x: Float64Array) -> Float64Array:
    return apply_activation(name, x.astype(np.float32)).astype(np.float64)


@dataclass(eq=False)
class Magnitude:
    """A tensor of the pass: its features, its magnitude, and that of its gradient.

    Attributes
    ----------
    features : int
    size : float
        The expected magnitude.
    squared : float
        The square of its gradient's, the sum over all uses; complete once the backward walk has
        come to it.
    """

    features: int
    size: float
    squared: float = 0.0

    @property
    def gradient(self) -> float:
        """The magnitude of the gradient."""
        return math.sqrt(self.squared)


@dataclass(frozen=True, eq=False)
class MagnitudeEngine(Engine[Magnitude]):
    """An engine whose values are expected magnitudes.

    Attributes
    ----------
    tokens : float
        The tokens of a text.
    heads : int
    forward : dict of str to float
        The magnitudes of the operands, by tensor.
    back : list of callable
        One per operation: it adds to the gradients of what the operation has read.
    gradients : list of tuple of str and Magnitude
        The results of the products.
    """

    tokens: float
    heads: int
    forward: dict[str, float] = field(default_factory=dict)
    back: list[Callable[[], None]] = field(default_factory=list)
    gradients: list[tuple[str, Magnitude]] = field(default_factory=list)

    def derived(self, size: float, features: int, *sources: tuple[Magnitude, float]) -> Magnitude:
        """Make a result, whose gradient goes to each source times a factor."""
        result = Magnitude(features, size)

        def back() -> None:
            for source, factor in sources:
                source.squared += result.squared * factor**2

        self.back.append(back)
        return result

    def gather(self, tables: Sequence[Table]) -> Magnitude:
        """Return the magnitude 1: it is normalised next."""
        return self.derived(1.0, tables[0][2])

    def position_bias(self, table: Table) -> Magnitude:
        """Return the magnitude 1."""
        return self.derived(1.0, table[2])

    def linears(self, sites: Sequence[Site], x: Magnitude) -> Iterator[Magnitude]:
        """Return the input's magnitude: weights are ``1 / sqrt(K)``."""
        for site in sites:
            self.forward[f"{site.name}:a"] = x.size
            weight = self.forward[f"{site.name}:b"] = x.features**-0.5
            back = weight * math.sqrt(site.outputs)
            yield self.named(site, self.derived(x.size, site.outputs, (x, back)))

    def product(self, site: Site, a: Magnitude, b: Magnitude) -> Magnitude:
        """Return ``sqrt(K)`` times both magnitudes; K is a head's features, or the tokens."""
        self.forward[f"{site.name}:a"], self.forward[f"{site.name}:b"] = a.size, b.size
        d, n = a.features / self.heads, self.tokens
        k, width = (d, n) if site.kind == "scores" else (n, d)
        size = a.size * b.size * math.sqrt(k)
        sources = (a, b.size * math.sqrt(width)), (b, a.size * math.sqrt(n))
        return self.named(site, self.derived(size, b.features, *sources))

    def named(self, site: Site, y: Magnitude) -> Magnitude:
        """Note the result of a site, for its gradient."""
        self.gradients.append((f"{site.name}:dy", y))
        return y

    def add(self, x: Magnitude, y: Magnitude) -> Magnitude:
        """Return the magnitude of a sum of independent numbers."""
        return self.derived(math.hypot(x.size, y.size), x.features, (x, 1), (y, 1))

    def multiply(self, x: Magnitude, factor: float) -> Magnitude:
        """Return the magnitude times the factor."""
        return self.derived(x.size * factor, x.features, (x, factor))

    def softmax(self, x: Magnitude) -> Magnitude:
        """Return 1.31 / n."""
        n = self.tokens
        return self.derived(SOFTMAX_FORWARD / n, x.features, (x, SOFTMAX_BACKWARD / n))

    def layer_norm(self, name: str, x: Magnitude, eps: float) -> Magnitude:
        """Return 1; the gradient is divided by the magnitude that was normalised."""
        return self.derived(1.0, x.features, (x, 1 / x.size))

    def activation(self, name: str, x: Magnitude, answer: bool = False) -> Magnitude:
        """Return the deviation at standard normal numbers."""
        forward, backward = activation_factors(name)
        return self.derived(forward, x.features, (x, backward))

    def pool(self, mode: str, x: Magnitude, places: None) -> Magnitude:
        """Return the magnitude of a mean over the tokens."""
        factor = self.tokens**-0.5
        return self.derived(x.size * factor, x.features, (x, 1 / self.tokens))

    def concatenate(self, parts: Sequence[Magnitude]) -> Magnitude:
        """Return the first part's magnitude."""
        features = sum(part.features for part in parts)
        return self.derived(parts[0].size, features, *((part, 1) for part in parts))

    def normalize(self, x: Magnitude) -> Magnitude:
        """Return the magnitude of an element of a vector of length 1."""
        size = x.features**-0.5
        return self.derived(size, x.features, (x, size / x.size))

    def output(self, name: str, x: Magnitude) -> Magnitude:
        """Return the same magnitude."""
        return x


@dataclass(frozen=True, eq=False)
class MagnitudeLayout(ValueLayout[Magnitude]):
    """The layout of a batch of texts of one length."""

    engine: MagnitudeEngine

    def first(self, x: Magnitude) -> Magnitude:
        """Return the same magnitude; one of the tokens has a gradient, the others 0."""
        engine = self.engine
        return engine.derived(x.size, x.features, (x, engine.tokens**-0.5))


def expected_magnitudes(
    config: BertConfig, batch_size: int, tokens: float, pooler: bool = True
) -> dict[str, float]:
    """Compute the expected magnitude of every operand and gradient of a model's products.

    Parameters
    ----------
    config : BertConfig
    batch_size : int
        The terms of which the loss is the mean: the texts of a batch, or all of its labelled
        tokens if the head's logits are those of tokens.
    tokens : float
        The tokens of a text, on average.
    pooler : bool
        Whether there is a pooler if the head leaves it open.

    Returns
    -------
    dict of str to float
        By tensor, as :class:`~bert_numpy.training.fp8_products.FP8Products` names them. The
        gradient begins at the logits of V labels, of the mean of the cross entropy over the batch:
        ``sqrt(V - 1) / V / batch_size``, as in the paper's library.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the type stated, or a number not above 0.
    BertNumpyError
        If the head has no logits of classes.

    Examples
    --------
    >>> import bert_numpy
    >>> config = bert_numpy.load("bert-tiny-sst2").config
    >>> found = expected_magnitudes(config, 32, 16)
    >>> site = "encoder.layer.1.output.dense"
    >>> [round(found[f"{site}:{part}"], 6) for part in ("a", "b", "dy")]
    [0.587915, 0.044194, 0.000287]
    """
    require("config", config, BertConfig, "a BertConfig, such as model.config")
    for name, value in (("batch_size", batch_size), ("tokens", tokens)):
        require_number(name, value, lambda x: x > 0, "a number above 0")
    flag("pooler", pooler)
    engine = MagnitudeEngine(tokens, config.num_attention_heads)
    wanted = config.head.pooler
    found = outputs(
        Pass(config, engine, MagnitudeLayout(engine)), pooler if wanted is None else wanted
    )
    if config.head.name not in LOSSES or "logits" not in found:
        raise BertNumpyError(f"head: expected one with logits of classes, found {config.head.name}")
    labels = max(found["logits"].features, 2)
    found["logits"].squared = (math.sqrt(labels - 1) / labels / batch_size) ** 2
    for step in reversed(engine.back):
        step()
    gradients = {name: y.gradient for name, y in engine.gradients if y.squared}
    return {**engine.forward, **gradients}
