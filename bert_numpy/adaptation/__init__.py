"""Adapting a model to the texts that it meets, by forward passes alone.

Source: Niu et al., *Test-Time Model Adaptation with Only Forward Passes* (arXiv 2404.01650).
"""

from bert_numpy.adaptation.forward_only import AdaptedBatch, ForwardOnly, adapt
from bert_numpy.adaptation.run import AdaptedRun, adapted_run
from bert_numpy.adaptation.statistics import (
    FeatureStatistics,
    load_statistics,
    save_statistics,
    source_statistics,
    statistics_of,
)

__all__ = [
    "AdaptedBatch",
    "AdaptedRun",
    "FeatureStatistics",
    "ForwardOnly",
    "adapt",
    "adapted_run",
    "load_statistics",
    "save_statistics",
    "source_statistics",
    "statistics_of",
]
