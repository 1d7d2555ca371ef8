"""The command that runs a model on one text, or a pair: predict."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.checkpoints.load import load
from bert_numpy.commands.describe import label_names
from bert_numpy.commands.jobs import accumulated, chosen_recipe, sentence_scales, sums_of
from bert_numpy.commands.options import (
    AddCommand,
    add_accumulate,
    add_format,
    add_golden,
    add_model,
    add_sentence_scales,
    check_scales,
)
from bert_numpy.commands.report import Outcome, columns, print_lines
from bert_numpy.evaluation.predict import check_prediction, predict_text
from bert_numpy.model.sites import model_sites
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.tasks.tokenization import load_tokenizer

__all__ = ["add_predict_command"]


def add_predict_command(command: AddCommand) -> None:
    """Add the command."""
    predict = command(
        "predict",
        _predict,
        "Classify, score, label, fill in or embed a text; answer a question.",
        f'{EMBEDDED} "a warm and funny film" --format e4m3',
        './my-qa-model "Who wrote it?" "Mary Shelley wrote it in 1818."',
    )
    add_model(predict)
    add_golden(predict)
    add_format(predict, default="fp32")
    add_accumulate(predict)
    predict.add_argument("text", metavar="TEXT", help="a text, or a question")
    predict.add_argument(
        "pair",
        metavar="SECOND_TEXT",
        nargs="?",
        help="the second text of a pair, the question's context, or a text to compare with",
    )
    add_sentence_scales(predict)


def _predict(arguments: argparse.Namespace) -> Outcome:
    (recipe,) = accumulated([chosen_recipe(arguments)], arguments)
    model = load(arguments.model, arguments.revision)
    check_scales(arguments, [recipe], stored=isinstance(model, QuantizedModel))
    recipe.check_accumulation(model_sites(model))
    tokenizer = load_tokenizer(arguments.model, arguments.revision)
    check_prediction(model, tokenizer, arguments.text, arguments.pair)
    paired = arguments.pair is not None and model.config.pooling is None
    calibration = sentence_scales(arguments, recipe, model, tokenizer, paired=paired)
    quantized = apply_recipe(model, recipe, calibration, arguments.golden)
    found = predict_text(quantized, tokenizer, arguments.text, arguments.pair)
    names = label_names(model.config)
    report = {
        "model": model.name,
        "format": recipe.name,
        **sums_of(recipe),
        "golden": arguments.golden,
    }
    return Outcome(report | found.report, lambda: print_lines(*_lines(found.report, names)))


def _lines(found: dict[str, Any], names: Mapping[str, str]) -> list[str]:
    """Lay out the outputs of any head in aligned columns, with these names for the labels."""
    masks = [(mask["position"], one) for mask in found.get("masks", ()) for one in mask["tokens"]]
    tokens, norms = found.get("tokens", ()), found.get("norms", ())
    values = {
        f"norm {number}" if len(norms) > 1 else "norm": x for number, x in enumerate(norms, 1)
    }
    if "cosine_similarity" in found:
        values["cosine similarity"] = found["cosine_similarity"]
    outputs = found.get("probabilities", found.get("logits", {}))  # a score has logits alone
    values |= {names[label]: value for label, value in outputs.items()}
    values |= found.get("next_sentence", {})
    return [
        *columns([[str(place), one["token"], _chance(one)] for place, one in masks], right=[0]),
        *columns([[one["token"], names[one["label"]], _chance(one)] for one in tokens]),
        *columns([[_chance(one), one["text"]] for one in found.get("answers", ())]),
        *columns([[name, f"{value:.4f}"] for name, value in values.items()], right=[1]),
    ]


def _chance(one: dict[str, Any]) -> str:
    return f"{one['probability']:.4f}"
