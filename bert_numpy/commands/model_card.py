"""The model card of a quantized checkpoint: what it is, what it costs, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from bert_numpy.errors import shown
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.quantization.recipe_json import recipe_json
from bert_numpy.tasks.registry import TASK_NAMES
from bert_numpy.tasks.similarity import EMBEDDINGS

__all__ = ["model_card"]

#: Punctuation by which a name would become a link, a picture, HTML, another cell or emphasis.
_MARKUP = re.compile(r"[\\`*_~\[\]()<>&|!#$@:]")


def model_card(report: Mapping[str, Any], recipe: Recipe, base_model: str | None = None) -> str:
    """The text of ``README.md``, in Markdown.

    Parameters
    ----------
    report : mapping
        As ``bert-numpy quantize`` writes it: ``model``, ``task``, ``examples``,
        ``calibration_samples``, ``golden``, and two ``rows``, in float32 and by
        the recipe, as :func:`bert_numpy.commands.report.comparison_row` makes them;
        or none, where nothing was compared.
    recipe : Recipe
    base_model : str, optional
        The id on the hub of what was quantized; a folder of this machine has none.
    """
    source = str(report["model"])
    local_name = PurePath(source).name or "a local checkpoint"
    name = _as_text(local_name if base_model is None else source)
    recipe_name = _as_text(recipe.name)
    samples = report["calibration_samples"]
    examples = "training examples" if report["task"] in TASK_NAMES else "texts"
    calibration = f", calibrated on {samples} {examples}" if samples else ""
    front = ""
    if base_model is not None:  # JSON's strings are YAML's, too
        front = f"base_model: {json.dumps(base_model)}\nbase_model_relation: quantized\n"
    return (
        f"---\n{front}tags:\n- compressed-tensors\n- fp8-bert-numpy\n---\n\n"
        f"# {name}, quantized: {recipe_name}\n\n"
        f"Post-training quantization of {name} by the recipe {recipe_name} of fp8-bert-numpy"
        f"{calibration}; nothing was trained. The license is that of the original.\n\n"
        f"{_results(report, recipe_name)}"
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


def _results(report: Mapping[str, Any], recipe_name: str) -> str:
    """What was compared with float32, and the table of it; nothing if nothing was."""
    if not report["rows"]:
        return ""
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

    about = f"Task {report['task']}, development set, {report['examples']} examples."
    if report["task"] == EMBEDDINGS.name:
        about = (
            f"The vectors of {report['examples']} texts, and those in float32: their cosines, and "
            "the share of the 1 and the 10 nearest texts that stay (in %). The nearest text is the "
            "prediction, a number of the vector a logit."
        )
    golden = " All figures are of golden arithmetic." if report["golden"] else ""
    return (
        f"{about} Flips are "
        "predictions that differ from those in float32, and the relative logit error is "
        f"norm(logits - float32's) / norm(float32's) over the whole set.{golden}\n\n"
        f"| | {' | '.join(titles)} |\n|{' --- |' * (len(titles) + 1)}\n"
        f"{row('FP32', reference)}{row(recipe_name, result)}\n"
    )


def _as_text(name: str) -> str:
    """A name from a file or a path, as Markdown shows it."""
    return _MARKUP.sub(r"\\\g<0>", shown(name))
