"""Engines seen from outside: the operands and results of a model's products, or of one product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bert_numpy import Model, ModelOutput
from bert_numpy.engines.engine import Engine
from bert_numpy.engines.noting import Note, NotingEngine
from bert_numpy.model.encoder import Pass, linears, product
from bert_numpy.model.model import EngineOf
from bert_numpy.model.packing import Batch, pack
from bert_numpy.model.sites import site_named


def arrays_of(output: ModelOutput) -> dict[str, np.ndarray]:
    """Return the arrays of a model's output by name, without its counts."""
    return {name: x for name, x in vars(output).items() if x is not None and name != "counts"}


def noted(model: Model, note: Note) -> Model:
    """The model, every product of which is noted."""
    return replace(
        model,
        engine=lambda weights, batch: NotingEngine(model.engine(weights, batch), weights, note),
    )


def engine_for(
    engine: EngineOf, weights: Mapping[str, Any] | None = None, mask: Any = ((1,),)
) -> Engine[np.ndarray]:
    """The engine of one run, outside of a model: for a batch of a mask, of one token by default."""
    ids = np.zeros(np.shape(mask), np.int64)
    return engine(weights or {}, Batch(ids, ids, pack(np.asarray(mask) != 0)))


def product_of(
    engine: EngineOf, name: str, a: np.ndarray, b: Any, bias: np.ndarray | None = None
) -> np.ndarray:
    """Compute one product by an engine: (M, K), (K, N), (N,) -> (M, N).

    With a bias it is a linear layer, whose weight is ``b`` transposed. The rows are those of
    one sequence.
    """
    site, mask = site_named(name), np.ones((1, len(a)))
    weights = {}
    if bias is not None:
        weights = {f"{name}.weight": b.mT if hasattr(b, "codes") else b.T, f"{name}.bias": bias}
    run: Pass[np.ndarray] = Pass(None, engine_for(engine, weights, mask), None)
    return product(run, site, a, b) if bias is None else linears(run, [site], a)[0]
