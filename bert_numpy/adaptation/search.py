"""The search for prompts: CMA-ES, which asks for the fitness of candidates and nothing else.

Hansen, *The CMA Evolution Strategy: A Tutorial* (arXiv 1604.00772), by the package ``cma``
(the extra ``adaptation``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bert_numpy.errors import BertNumpyError
from npfp8.arrays import Float64Array

__all__ = ["CmaSearch", "Search", "population_of"]


class Search(Protocol):
    """A search for a vector of low fitness, by candidates."""

    def ask(self) -> Sequence[Float64Array]:
        """Return the candidates of the next generation, (dimension,) each."""

    def tell(self, candidates: Sequence[Float64Array], fitness: Sequence[float]) -> None:
        """Take the fitness of candidates: those of :meth:`ask`, and perhaps others."""


def population_of(dimension: int) -> int:
    """Return the usual size of a population, ``4 + floor(3 ln(dimension))``.

    Examples
    --------
    >>> from bert_numpy.adaptation.search import population_of
    >>> population_of(3 * 768)
    27
    """
    return 4 + math.floor(3 * math.log(dimension))


class CmaSearch:
    """CMA-ES from the mean 0, decided by its seed alone.

    The random numbers come from a generator of its own, not from NumPy's global one. The
    covariance is decomposed by LAPACK, whose last bits differ between machines.

    Parameters
    ----------
    dimension : int
    sigma : float
        The standard deviation of the first generation.
    population : int, optional
        The number of candidates per generation, by default :func:`population_of`.
    seed : int

    Raises
    ------
    BertNumpyError
        If the package ``cma`` is not installed.
    """

    def __init__(
        self, dimension: int, sigma: float = 1.0, population: int | None = None, seed: int = 0
    ) -> None:
        try:
            import cma  # noqa: PLC0415 (an extra)
        except ImportError:
            raise BertNumpyError(
                "adaptation: expected cma, found none: pip install 'fp8-bert-numpy[adaptation]'"
            ) from None
        generator = np.random.Generator(np.random.PCG64(seed))
        options = {
            "popsize": population or population_of(dimension),
            "seed": math.nan,  # do not seed NumPy's global generator
            "randn": lambda *shape: generator.standard_normal(shape),
            "verbose": -10,  # no output, and no file of signals is read
            "verb_log": 0,
            "verb_disp": 0,
        }
        self._strategy: Any = cma.CMAEvolutionStrategy(dimension * [0.0], sigma, options)

    def ask(self) -> Sequence[Float64Array]:
        """Return the candidates of the next generation, (dimension,) each."""
        candidates: Sequence[Float64Array] = self._strategy.ask()
        return candidates

    def tell(self, candidates: Sequence[Float64Array], fitness: Sequence[float]) -> None:
        """Update mean, step size and covariance."""
        self._strategy.tell(list(candidates), list(fitness))
