"""The model card of a quantized checkpoint: what it is, what it costs, how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from bert_numpy.errors import shown
from bert_numpy.recipe import Recipe, recipe_json

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def model_card(report: Mapping[str, Any], recipe: Recipe) -> str:
    """The text of ``README.md``, in Markdown.

    Parameters
    ----------
    report : mapping
        As ``bert-numpy quantize`` writes it: ``model``, ``task``, ``examples``,
        ``calibration_samples``, ``golden``, and two ``rows``, in float32 and by
        the recipe, as :func:`bert_numpy.report.comparison_row` makes them.
    recipe : Recipe
    """
    source = str(report["model"])
    is_hub_id = _HUB_ID.fullmatch(source) is not None
    name = source if is_hub_id else shown(PurePath(source).name) or "a local checkpoint"
    recipe_name = shown(recipe.name)
    reference, result = report["rows"]
    change = "flips" if "flips" in result else "mean_abs_difference"
    titles = [*reference["metrics"], change.replace("_", " "), "relative logit error", "bytes"]

    def row(title: str, values: Mapping[str, Any]) -> str:
        cells = [
            *(f"{100 * value:.2f}" for value in values["metrics"].values()),
            str(values[change]) if change == "flips" else f"{values[change]:.4f}",
            f"{values['relative_logit_error']:.4f}",
            f"{values['weight_bytes']:,}",
        ]
        return f"| {title} | {' | '.join(cells)} |\n"

    samples = report["calibration_samples"]
    calibration = f", calibrated on {samples} training examples" if samples else ""
    golden = " All figures are of golden arithmetic." if report["golden"] else ""
    front = f"base_model: {source}\nbase_model_relation: quantized\n" if is_hub_id else ""
    return (
        f"---\n{front}tags:\n- compressed-tensors\n- fp8-bert-numpy\n---\n\n"
        f"# {name}, quantized: {recipe_name}\n\n"
        f"Post-training quantization of {name} by the recipe `{recipe_name}` of fp8-bert-numpy"
        f"{calibration}; nothing was trained. The license is that of the original.\n\n"
        f"Task {report['task']}, development set, {report['examples']} examples. Flips are "
        "predictions that differ from those in float32, and the relative logit error is "
        f"norm(logits - float32's) / norm(float32's) over the whole set.{golden}\n\n"
        f"| | {' | '.join(titles)} |\n|{' --- |' * (len(titles) + 1)}\n"
        f"{row('FP32', reference)}{row(recipe_name, result)}\n"
        "## Use\n\n"
        "```python\nimport bert_numpy\n\n"
        'model = bert_numpy.load("path/of/this/folder")  # runs by the recipe, to the same bits\n'
        "```\n\n"
        "transformers with compressed-tensors and other readers of its layout load the linear "
        "layers' codes and scales. They leave out what the layout has no place for: quantized "
        "products of the attention, and the rounding of the rest to bfloat16. `npfp8_config` in "
        "`config.json` has all of it. `sha256sum -c SHA256SUMS` checks the files.\n\n"
        f"## Recipe\n\n```json\n{recipe_json(recipe)}\n```\n"
    )
