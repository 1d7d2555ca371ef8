"""From a float model and its calibration to a quantized model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bert_numpy.calibration import Calibration
from bert_numpy.errors import BertNumpyError
from bert_numpy.model import Model, encoder_sites
from bert_numpy.policy import OperandCounts, quantized_policy
from bert_numpy.recipe import Recipe
from npfp8 import quantize

__all__ = ["QuantizedModel", "apply_recipe"]


@dataclass(frozen=True, eq=False)
class QuantizedModel(Model):
    """A model that runs by a recipe.

    Attributes
    ----------
    recipe : Recipe
    counts : dict of str to OperandCounts
        What quantization did to the activations of every run since it was made.
    """

    recipe: Recipe = field(kw_only=True)
    counts: dict[str, OperandCounts] = field(kw_only=True)


def apply_recipe(
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None = None,
    golden: bool = False,
) -> QuantizedModel:
    """Quantize a model: convert the weights, fix the scales; nothing is trained.

    Parameters
    ----------
    model : Model
        In float32; it is not changed.
    recipe : Recipe
    calibration : Calibration, optional
        Needed unless the recipe quantizes nothing.
    golden : bool
        Whether the model computes the same bits on every machine, whatever the
        batch; a calibration that shall not depend on the machine either has to
        be made with ``golden`` too, or loaded from a file.

    Returns
    -------
    QuantizedModel
        Quantized weights are held as 8-bit codes only.

    Raises
    ------
    BertNumpyError
        If a calibration is needed and there is none, or it misses a site.
    """
    if recipe.fmt is not None and calibration is None:
        raise BertNumpyError(f"recipe {recipe.name}: expected a calibration, found none")
    weights = dict(model.weights)
    scales = {}
    for site in encoder_sites(model.config):
        if recipe.fmt is None or calibration is None or not recipe.quantizes(site):
            continue
        scales[site] = calibration.scales(site, recipe.fmt)
        weight = weights.get(f"{site}.weight")
        if isinstance(weight, np.ndarray):  # the attention products have none
            weights[f"{site}.weight"] = quantize(weight, recipe.fmt, scales[site][1])
    counts: dict[str, OperandCounts] = {}
    policy = quantized_policy(recipe, scales, counts, golden)
    return QuantizedModel(model.config, weights, policy, model.name, recipe=recipe, counts=counts)
