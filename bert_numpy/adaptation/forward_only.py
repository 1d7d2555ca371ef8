"""Forward-only adaptation: for each batch, try candidates of prompts and keep the best.

Source: Niu et al., *Test-Time Model Adaptation with Only Forward Passes* (arXiv 2404.01650),
and the authors' code. No gradient is computed and no weight changes, so a quantized model
adapts as a float one does. In each batch

1. a search (CMA-ES) proposes candidates; the best prompts of the last batch are one more;
2. the model runs the batch with each of them, and each gets its fitness;
3. the search learns the fitness of all of them;
4. the model's answers are those with the best candidate, whose features are shifted by the
   distance of the source's mean from the moving average up to the last batch.

The answers depend on the batch and on those before it. That is the nature of the method, so
nothing here is golden: the runs of a golden model are, but the search is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_numpy.adaptation.fitness import fitness
from bert_numpy.adaptation.run import AdaptedRun, adapted_run
from bert_numpy.adaptation.search import CmaSearch, Search
from bert_numpy.adaptation.shifting import moved_average
from bert_numpy.adaptation.statistics import FeatureStatistics
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.model import Model, require_head
from npfp8.arguments import integer, number, require, require_function, require_iterable
from npfp8.arrays import Float32Array, Float64Array

__all__ = ["AdaptedBatch", "ForwardOnly", "adapt", "first_prompts"]


@dataclass(frozen=True)
class ForwardOnly:
    """The settings of an adaptation; the defaults are the paper's.

    Attributes
    ----------
    prompts : int
        The number of prompts. With 0 nothing is searched, and only the shift adapts.
    weight : float
        The weight of the discrepancy in the fitness: see :func:`.fitness.fitness`.
    sigma : float
        The standard deviation of the first candidates' elements.
    population : int, optional
        The candidates per batch, by default ``4 + floor(3 ln(prompts * hidden))``; 4 or more.
        With fewer, only the best one moves the search. If it is that of the batch before, the
        search stands still, and ``cma`` divides by zero.
    share : float
        The share of a batch in the moving average of features.
    step : float
        The factor of the shift.
    seed : int
        It decides the first prompts and the search.

    Raises
    ------
    TypeError
        If a setting is no number, or no integer where one is expected.
    BertNumpyError
        If a setting is out of its range.

    Examples
    --------
    >>> from bert_numpy.adaptation import ForwardOnly
    >>> ForwardOnly(prompts=0)
    ForwardOnly(prompts=0, weight=0.4, sigma=1.0, population=None, share=0.1, step=1.0, seed=0)
    """

    prompts: int = 3
    weight: float = 0.4
    sigma: float = 1.0
    population: int | None = None
    share: float = 0.1
    step: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise BertNumpyError(f"{name}: expected {expected}, found {getattr(self, name)}")

        for name in ("prompts", "seed"):
            check(name, integer(name, getattr(self, name)) >= 0, "0 or more")
        if self.population is not None:
            check("population", integer("population", self.population) >= 4, "4 or more")
        check("weight", 0 <= number("weight", self.weight) < math.inf, "0 or more")
        check("sigma", 0 < number("sigma", self.sigma) < math.inf, "more than 0")
        check("share", 0 <= number("share", self.share) <= 1, "0 to 1")
        check("step", math.isfinite(number("step", self.step)), "a finite number")


@dataclass(frozen=True, eq=False)
class AdaptedBatch:
    """The answers for a batch, and how they came about.

    Attributes
    ----------
    logits : ndarray of float32, (texts, labels)
        The answers: with the best prompts, and shifted.
    unshifted : ndarray of float32, (texts, labels)
        The answers with the best prompts alone.
    prompts : ndarray of float32, (prompts, hidden)
        The best prompts.
    fitness : tuple of float
        The fitness of each candidate; the last one is that of the prompts of the batch before.
    shift : ndarray of float32, (hidden,), or None
        None for the first batch, which has no average before it.

    Examples
    --------
    :func:`adapt` makes them:

    >>> import bert_numpy
    >>> from bert_numpy.adaptation import ForwardOnly, adapt, source_statistics
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> batch = bert_numpy.load_tokenizer("bert-tiny-sst2").batch(["warm and funny", "dull"])
    >>> source = source_statistics(model, [batch])
    >>> (found,) = adapt(model, source, [batch], ForwardOnly(prompts=0))
    >>> found.logits.argmax(axis=1), len(found.fitness), found.shift
    (array([1, 0]), 1, None)
    """

    logits: Float32Array
    unshifted: Float32Array
    prompts: Float32Array
    fitness: tuple[float, ...]
    shift: Float32Array | None

    @property
    def best(self) -> float:
        """The fitness of the best prompts."""
        return min(self.fitness)


def first_prompts(count: int, hidden: int, seed: int) -> Float32Array:
    """Draw the prompts before the first batch, evenly between ``-bound`` and ``bound``.

    The bound is Xavier's, ``sqrt(6 / (hidden + hidden))``, as in Visual Prompt Tuning, where
    the numbers of a patch stand for the first of the two. (count, hidden).
    """
    bound = math.sqrt(6 / (2 * hidden))
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    return (bound * (2 * generator.random((count, hidden)) - 1)).astype(np.float32)


def adapt(
    model: Model,
    source: FeatureStatistics,
    batches: Iterable[Mapping[str, npt.ArrayLike]],
    settings: ForwardOnly = ForwardOnly(),
    search: Callable[[int, ForwardOnly], Search] | None = None,
) -> Iterator[AdaptedBatch]:
    """Adapt a model to batches of texts in turn, and yield the answers for each.

    Parameters
    ----------
    model : Model
        A float or a quantized model for sequence classification. It is not changed.
    source : FeatureStatistics
        From :func:`.statistics.source_statistics` of the same model.
    batches : iterable of mappings
        The arguments of the model, batch by batch in the order of their arrival. Each has at
        least two texts, of which the standard deviations are taken.
    settings : ForwardOnly
    search : callable, optional
        Makes the search from the number of elements and the settings; by default
        :class:`.search.CmaSearch`, which needs the package ``cma``.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If the model has another head, or the statistics other sizes; for a batch, if it has
        fewer than two texts, or a number is not finite; if the package ``cma`` is missing.

    Examples
    --------
    >>> import bert_numpy
    >>> from bert_numpy.adaptation import ForwardOnly, adapt, source_statistics
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> source = source_statistics(model, [tokenizer.batch(["warm and funny", "dull and slow"])])
    >>> batches = [tokenizer.batch(["wrm and fumny", "dul and slw"])] * 2
    >>> one, two = adapt(model, source, batches, ForwardOnly(prompts=0))
    >>> one.shift is None, two.shift.shape, one.logits.shape
    (True, (128,), (2, 2))
    """
    require_head(model, "sequence classification")
    require("source", source, FeatureStatistics, "statistics of features")
    require_iterable("batches", batches, "a list of batches, each the arguments of the model")
    require("settings", settings, ForwardOnly, "settings of an adaptation")
    require_function("search", search, "a function that makes a search", optional=True)
    sizes = (model.config.num_hidden_layers, model.config.hidden_size)
    if source.mean.shape != sizes:
        raise BertNumpyError(
            f"source: expected statistics of {sizes[0]} layers of {sizes[1]}, found {source!r}"
        )
    best = first_prompts(settings.prompts, sizes[1], settings.seed)
    searching = _search(best.size, settings, search) if settings.prompts else None
    return _adapted(model, source, batches, settings, best, searching)


def _adapted(
    model: Model,
    source: FeatureStatistics,
    batches: Iterable[Mapping[str, npt.ArrayLike]],
    settings: ForwardOnly,
    best: Float32Array,
    searching: Search | None,
) -> Iterator[AdaptedBatch]:
    """Answer batch by batch, from the first prompts on."""
    average: Float64Array | None = None
    for batch in batches:
        asked = [] if searching is None else [np.asarray(x) for x in searching.ask()]
        candidates = [*asked, best.reshape(-1).astype(np.float64)]
        losses: list[float] = []
        means: list[Float64Array] = []
        chosen: AdaptedRun | None = None
        for candidate in candidates:
            prompts = candidate.astype(np.float32).reshape(best.shape)
            run = adapted_run(model, batch, prompts)
            loss = fitness(run.logits, run.features, source, settings.weight)
            if not losses or loss < min(losses):
                chosen, kept = run, prompts
            losses.append(loss)
            means.append(run.features[:, -1].astype(np.float64).mean(axis=0))
        assert chosen is not None
        best = kept
        if searching is not None:
            searching.tell(candidates, losses)
        shift, logits = None, chosen.logits
        if average is not None:
            shift = (settings.step * (source.mean[-1] - average)).astype(np.float32)
            logits = chosen.shifted(shift)
        average = moved_average(average, np.mean(means, axis=0), settings.share)
        yield AdaptedBatch(logits, chosen.logits, best, tuple(losses), shift)


def _search(
    dimension: int, settings: ForwardOnly, make: Callable[[int, ForwardOnly], Search] | None
) -> Search:
    if make is not None:
        return make(dimension, settings)
    return CmaSearch(dimension, settings.sigma, settings.population, settings.seed)
