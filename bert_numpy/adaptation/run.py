"""One run of a model with prompts and a shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bert_numpy.adaptation.features import FeatureEngine
from bert_numpy.adaptation.prompts import PromptEngine, entry_of, require_prompts, with_prompts
from bert_numpy.adaptation.shifting import shifted
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.encoder import Pass, encode
from bert_numpy.model.heads import answers
from bert_numpy.model.model import Model, ModelOutput, batch_of, has_pooler, require_head
from npfp8.arguments import require
from npfp8.arrays import Float32Array

__all__ = ["AdaptedRun", "adapted_run"]


@dataclass(frozen=True, eq=False)
class AdaptedRun:
    """A run's output, and the features of its layers.

    Attributes
    ----------
    output : ModelOutput
        Without rows for prompts.
    features : ndarray of float32, (batch, layers, hidden)
        The first token's state at the end of each layer, before the shift.
    shifted : callable (shift) -> ndarray of float32, (batch, labels)
        The logits of the same texts with another shift: the head is run again, and no layer.

    Examples
    --------
    >>> import numpy as np
    >>> import bert_numpy
    >>> from bert_numpy.adaptation import adapted_run
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> run = adapted_run(model, {"input_ids": [[101, 2204, 3185, 102], [101, 2919, 3185, 102]]})
    >>> run.logits.argmax(axis=1), run.features.shape
    (array([1, 0]), (2, 2, 128))
    >>> np.array_equal(run.shifted(np.zeros(128, np.float32)), run.logits)
    True
    """

    output: ModelOutput
    features: Float32Array
    shifted: Callable[[Float32Array], Float32Array] = field(repr=False)

    @property
    def logits(self) -> Float32Array:
        """The logits of the classes: (batch, labels)."""
        assert self.output.logits is not None
        return self.output.logits


def adapted_run(
    model: Model,
    batch: Mapping[str, npt.ArrayLike],
    prompts: Float32Array | None = None,
    shift: Float32Array | None = None,
) -> AdaptedRun:
    """Run a classifier with prompts and a shift, as the model's own engine computes.

    Parameters
    ----------
    model : Model
        A float or a quantized model for sequence classification.
    batch : mapping
        The arguments of the model: ``input_ids`` and so on.
    prompts : ndarray of float32, (prompts, hidden_size), optional
        See :mod:`bert_numpy.adaptation.prompts`. The prompts do not count for the longest text.
    shift : ndarray of float32, (hidden_size,), optional
        Added to the last layer's features before the classifier reads them.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If the model has another head, or an array is not as expected.

    Examples
    --------
    >>> import numpy as np
    >>> import bert_numpy
    >>> from bert_numpy.adaptation import adapted_run
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> batch = {"input_ids": [[101, 2204, 3185, 102]]}
    >>> prompts = np.zeros((3, model.config.hidden_size), np.float32)
    >>> run = adapted_run(model, batch, prompts)
    >>> run.logits.shape, run.features.shape, run.output.last_hidden_state.shape
    ((1, 2), (1, 2, 128), (1, 4, 128))
    >>> np.array_equal(adapted_run(model, batch).logits, model(**batch).logits)
    True
    """
    require_head(model, "sequence classification")
    require("batch", batch, Mapping, "the arguments of the model, by name")
    for name, given in (("prompts", prompts), ("shift", shift)):
        require(name, given, (np.ndarray, type(None)), "an array of float32, or None")
    config = model.config
    if prompts is None:
        prompts = np.zeros((0, config.hidden_size), np.float32)
    require_prompts(prompts, config)
    if shift is not None and (shift.dtype != np.float32 or shift.shape != (config.hidden_size,)):
        raise BertNumpyError(
            f"shift: expected float32 of shape ({config.hidden_size},), "
            f"found {shift.dtype} of shape {shift.shape}"
        )
    layout = with_prompts(batch_of(config, **batch), len(prompts))
    kept = FeatureEngine(model.engine(model.weights, layout), layout)
    engine = PromptEngine(kept, layout, prompts, entry_of(config))
    run = Pass(config, engine, layout)

    def answered(shift: Float32Array | None) -> dict[str, Float32Array]:
        with np.errstate(all="ignore"):  # the fitness checks that the numbers are finite
            x = states if shift is None else shifted(engine, layout, states, shift)
            return answers(run, x, has_pooler(model))

    with np.errstate(all="ignore"):
        states = encode(run)
    output = ModelOutput(**answered(shift), counts=engine.counted())
    features = np.stack(kept.features, axis=1)
    return AdaptedRun(output, features, lambda shift: answered(shift)["logits"])
