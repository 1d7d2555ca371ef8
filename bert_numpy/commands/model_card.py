"""The model card of a quantized checkpoint: what it is, what it costs, how it was made."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from bert_numpy.checkpoints.tensors import open_checkpoint
from bert_numpy.errors import shown
from bert_numpy.model.architectures import ENCODER, SENTENCE_EMBEDDINGS
from bert_numpy.model.config import BertConfig
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.quantization.recipe_json import recipe_json
from bert_numpy.tasks.registry import TASK_NAMES
from bert_numpy.tasks.similarity import EMBEDDINGS
from npfp8.files import open_regular

__all__ = ["PIPELINE_TAGS", "model_card", "stated_base"]

#: Punctuation by which a name would become a link, a picture, HTML, another cell or emphasis.
_MARKUP = re.compile(r"[\\`*_~\[\]()<>&|!#$@:]")


#: The hub's task for models with a head, by the name of the head. The hub has no task for the
#: heads that are missing here. A regression, as of STS-B, is a text classification, too.
PIPELINE_TAGS = {
    "sequence classification": "text-classification",
    "multiple choice": "multiple-choice",
    "pre-training": "fill-mask",
    "sentence order pre-training": "fill-mask",
    "masked language modelling": "fill-mask",
    "token classification": "token-classification",
    "question answering": "question-answering",
    ENCODER.name: "feature-extraction",
    SENTENCE_EMBEDDINGS.name: "sentence-similarity",
}

#: An id on the hub, ``owner/name``.
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)

#: The name that a training script gives to the folder of a model that is not finished.
_SNAPSHOT = re.compile(r"(.*/)?checkpoint-\d+")

#: The hub's first models of these families, which it still finds without an owner.
_WITHOUT_OWNER = frozenset(
    [
        *("albert-base-v1", "albert-base-v2", "bert-base-cased", "bert-base-german-cased"),
        *("bert-base-multilingual-cased", "bert-base-multilingual-uncased", "bert-base-uncased"),
        *("bert-large-cased", "bert-large-uncased", "camembert-base", "distilbert-base-cased"),
        *("distilbert-base-uncased", "distilroberta-base", "roberta-base", "roberta-large"),
        *("xlm-roberta-base", "xlm-roberta-large"),
    ]
)

#: Bytes of a card that are read.
_MAX_CARD = 1 << 20


def model_card(
    report: Mapping[str, Any],
    recipe: Recipe,
    base_model: str | None = None,
    *,
    config: BertConfig | None = None,
    source: Path | None = None,
    made: Path | None = None,
    layout: str = "compressed-tensors",
) -> str:
    """Return the text of ``README.md``, in Markdown.

    Parameters
    ----------
    report : mapping
        The report that ``bert-numpy quantize`` writes: ``model``, ``task``, ``examples``,
        ``calibration_samples``, ``golden``, and two ``rows``, in float32 and by
        the recipe, as :func:`bert_numpy.commands.report.comparison_row` makes them;
        or none, if nothing was compared.
    recipe : Recipe
    base_model : str, optional
        The id on the hub of the quantized model; None for a local folder.
    config : BertConfig, optional
        The config of the model, from which the library and the task of the hub follow.
    source : Path, optional
        The folder that was quantized, for the sizes of its files of weights. If there is
        no ``base_model``, the one that the folder's own card names is taken.
    made : Path, optional
        The folder of the quantized checkpoint, for the sizes of its files of weights.
    layout : str
        The layout of the folder, a tag on the hub; see :func:`bert_numpy.save_quantized`.
    """
    name_of_source = str(report["model"])
    local_name = PurePath(name_of_source).name or "a local checkpoint"
    name = _as_text(local_name if base_model is None else name_of_source)
    recipe_name = _as_text(recipe.name)
    samples = report["calibration_samples"]
    examples = "training examples" if report["task"] in TASK_NAMES else "texts"
    calibration = f", calibrated on {samples} {examples}" if samples else ""
    return (
        f"---\n{_front_matter(base_model, config, source, layout)}---\n\n"
        f"# {name}, quantized: {recipe_name}\n\n"
        f"Post-training quantization of {name} by the recipe {recipe_name} of fp8-bert-numpy"
        f"{calibration}; nothing was trained. The license is that of the original.\n\n"
        f"{_results(report, recipe_name)}"
        f"{_sizes(source, made, recipe_name)}"
        "## Use\n\n"
        "```python\nimport bert_numpy\n\n"
        'model = bert_numpy.load("path/of/this/folder")  # runs by the recipe, to the same bits\n'
        "```\n\n"
        f"{_READERS[layout]} load the linear "
        "layers' codes and scales. They leave out what the layout has no place for: quantized "
        "products of the attention, and the rounding of the rest to bfloat16. `npfp8_config` in "
        "`config.json` has all of it. `sha256sum -c SHA256SUMS` checks the files.\n\n"
        f"## Recipe\n\n```json\n{recipe_json(recipe)}\n```\n"
    )


#: Those who read a layout, for a sentence.
_READERS = {
    "compressed-tensors": "transformers with compressed-tensors and other readers of its layout",
    "modelopt": "Readers of ModelOpt's layout, such as vLLM and TensorRT-LLM,",
}


def _front_matter(
    base_model: str | None, config: BertConfig | None, source: Path | None, layout: str
) -> str:
    """Return the metadata, in YAML; JSON's strings are YAML's, too."""
    lines = []
    if base_model is not None:
        lines += [f"base_model: {json.dumps(base_model)}", "base_model_relation: quantized"]
    elif source is not None and (found := stated_base(source)) is not None:
        lines.append(f"base_model: {json.dumps(found)}")
    if config is not None:
        embeds = config.head == SENTENCE_EMBEDDINGS
        lines.append(f"library_name: {'sentence-transformers' if embeds else 'transformers'}")
        if config.head.name in PIPELINE_TAGS:
            lines.append(f"pipeline_tag: {PIPELINE_TAGS[config.head.name]}")
    return "\n".join([*lines, "tags:", f"- {layout}", "- fp8-bert-numpy"]) + "\n"


def stated_base(folder: Path) -> str | None:
    """Read the base model that a checkpoint's own card names, if it is an id on the hub.

    A card that cannot be read counts as one without a base model. So does a card that names
    a folder: training scripts often write a path of the machine on which they ran.

    Examples
    --------
    >>> from bert_numpy.checkpoints.hub import resolve
    >>> from bert_numpy.commands.model_card import stated_base
    >>> stated_base(resolve("bert-tiny-sst2"))
    'google/bert_uncased_L-2_H-128_A-2'
    """
    from huggingface_hub import ModelCard  # noqa: PLC0415 (other commands start sooner)

    try:
        with open_regular(folder / "README.md") as file:
            text = file.read(_MAX_CARD).decode("utf-8-sig")
        found = ModelCard(text, ignore_metadata_errors=True).data.get("base_model")
    except Exception:  # of the YAML library, too, which is not this package's
        return None
    if isinstance(found, list) and len(found) == 1:
        (found,) = found
    if not isinstance(found, str) or not (_HUB_ID.fullmatch(found) or found in _WITHOUT_OWNER):
        return None
    local = os.path.exists(found) or os.path.exists(folder / found) or _SNAPSHOT.fullmatch(found)
    return None if local else found


def _sizes(source: Path | None, made: Path | None, recipe_name: str) -> str:
    """Return the section on the sizes of the weights' files; nothing if there are none yet."""
    if source is None or made is None:
        return ""
    rows = [
        _size_row(title, folder) for title, folder in (("original", source), (recipe_name, made))
    ]
    return (
        "## Files\n\n| | files of weights | dtypes | bytes on disk |\n| --- | --- | --- | --- |\n"
        f"{''.join(rows)}\n"
    )


def _size_row(title: str, folder: Path) -> str:
    tensors = open_checkpoint(folder).values()
    dense = folder.glob("[0-9]*_Dense/*.safetensors")
    files = sorted({*(tensor.file for tensor in tensors), *dense})
    bits: Counter[str] = Counter()
    for tensor in tensors:
        bits[tensor.dtype] += tensor.nbytes
    dtypes = ", ".join(dtype for dtype, _ in bits.most_common())
    names = ", ".join(_as_text(file.relative_to(folder).as_posix()) for file in files)
    size = sum(file.stat().st_size for file in files)
    return f"| {title} | {names} | {dtypes} | {size:,} |\n"


def _results(report: Mapping[str, Any], recipe_name: str) -> str:
    """Return the comparison with float32 and its table; nothing if nothing was compared."""
    if not report["rows"]:
        return ""
    reference, result = report["rows"]
    change = "flips" if "flips" in result else "mean_abs_difference"
    titles = [
        *reference["metrics"],
        change.replace("_", " "),
        "relative logit error",
        "bytes of the weights",
    ]

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
    """Escape a name from a file or a path, so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", shown(name))
