"""A model's predictions for one text or one pair, in a readable form for each head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import text_logits
from bert_numpy.finite import require_finite
from bert_numpy.model.model import Model
from bert_numpy.tasks.squad import SQUAD, Question, Questions
from bert_numpy.tasks.tokenization import Tokenizer
from npfp8.arrays import Float32Array, IntArray
from npfp8.golden import softmax, tree_sum, unary

__all__ = ["Prediction", "check_prediction", "predict_text"]


#: The number of answers to a question, and of tokens for a mask, that are listed.
N_BEST = 5


@dataclass(frozen=True)
class Prediction:
    """The outputs for one text, or a pair, as a JSON object."""

    report: dict[str, Any]


def check_prediction(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> None:
    """Raise :class:`BertNumpyError` if the model cannot predict for the text or the pair."""
    head, name = model.config.head.name, model.name
    if head not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        found = model.config.stated_architecture
        raise BertNumpyError(f"{name}: expected a model for {known}, found {found} ({head})")
    if head in _OF_PAIRS and pair is None:
        raise BertNumpyError(f"{name}: {head}: expected a pair of texts, found one")
    if head in ("masked language modelling", "pre-training"):
        mask = model.config.description.mask_token
        (encoded,) = tokenizer.encode([text], None if pair is None else [pair])
        if tokenizer.mask_token_id not in encoded.input_ids:
            raise BertNumpyError(f"{name}: {head}: expected {mask} in the text, found none")


def predict_text(
    model: Model, tokenizer: Tokenizer, text: str, pair: str | None = None
) -> Prediction:
    """Classify, score, answer, fill in or embed a text or a pair, by the model's head.

    Parameters
    ----------
    model : Model
    tokenizer : Tokenizer
    text, pair : str
        For question answering, the question and the context; for sentence
        embeddings, two texts to compare; otherwise one input of the model.

    Raises
    ------
    BertNumpyError
        In the cases of :func:`check_prediction`; if a text is blank or too long; or if a
        number of the output is NaN or infinite, or a vector to compare is zero. The message
        names the model, the recipe and the text (1, or 2 for the second of two vectors).
    """
    check_prediction(model, tokenizer, text, pair)
    return _PREDICTIONS[model.config.head.name](model, tokenizer, text, pair)


def _classes(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> Prediction:
    """Predict logits by label and, for a classifier, the label and the sorted probabilities."""
    logits = _first(model, model(**_batch(tokenizer, text, pair)).logits)
    labels, problem = model.config.labels, model.config.problem_type
    report: dict[str, Any] = {"logits": dict(zip(labels, logits.tolist(), strict=True))}
    if problem == "regression" or (len(labels) == 1 and problem is None):
        return Prediction(report)
    several = problem == "multi_label_classification" or len(labels) == 1
    values = unary("sigmoid", logits, "float32") if several else softmax(logits, "float32")
    ranked = _ranked(labels, values)
    return Prediction({"label": next(iter(ranked)), "probabilities": ranked, **report})


def _next_sentence(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> Prediction:
    logits = _first(model, model(**_batch(tokenizer, text, pair)).logits)
    return _follows(logits)


def _follows(logits: Float32Array) -> Prediction:
    ranked = _ranked(("follows", "does not follow"), softmax(logits, "float32"))
    return Prediction({"next_sentence": ranked})


def _masks(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> Prediction:
    """Predict the most likely tokens for each mask.

    The next-sentence answer follows if the head gives one and a pair was given.
    """
    batch = _batch(tokenizer, text, pair)
    output = model(**batch)
    given = output.logits if output.prediction_logits is None else output.prediction_logits
    logits = _first(model, given)
    masks = []
    for number in np.flatnonzero(batch["input_ids"][0] == tokenizer.mask_token_id).tolist():
        probabilities = softmax(logits[number], "float32")
        order = np.argsort(-logits[number], kind="stable")[:N_BEST].tolist()
        tokens = [
            {
                "token": tokenizer.backend.id_to_token(token),
                "probability": float(probabilities[token]),
                "logit": float(logits[number, token]),
            }
            for token in order
        ]
        masks.append({"position": number, "tokens": tokens})
    report: dict[str, Any] = {"masks": masks}
    if output.seq_relationship_logits is not None and pair is not None:
        report |= _follows(_first(model, output.seq_relationship_logits)).report
    return Prediction(report)


def _tokens(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> Prediction:
    """Predict the most likely label of each token that stands for text."""
    batch = _batch(tokenizer, text, pair)
    logits = _first(model, model(**batch).logits)
    tokens = []
    for number, token in enumerate(tokenizer.tokens(text, pair)):
        if token is not None:
            probabilities = softmax(logits[number], "float32")
            best = int(logits[number].argmax())
            tokens.append(
                {
                    "token": token,
                    "label": model.config.labels[best],
                    "probability": float(probabilities[best]),
                }
            )
    return Prediction({"tokens": tokens})


def _answers(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> Prediction:
    """Predict the most likely answers to a question, from its context."""
    assert pair is not None
    task = replace(SQUAD, n_best=N_BEST)
    asked = Questions((Question("", text, pair, ()),))
    length = min(task.max_length, tokenizer.model_max_length)
    windows = task.encode(tokenizer, asked, length, None)
    logits = text_logits(model, task.head, [window.encoded for window in windows[0]])
    for array in logits:
        require_finite(f"{_named(model)}: text 1: logits", array)
    (best,) = task.predict(model.config, asked, windows, logits).answers
    return Prediction({"answers": [vars(one) for one in best]})


def _embedding(model: Model, tokenizer: Tokenizer, text: str, pair: str | None) -> Prediction:
    """Compute the vector and its norm; for two texts, both vectors and their cosine."""
    texts = [text] if pair is None else [text, pair]
    vectors = model(**tokenizer.batch(texts)).sentence_embedding
    assert vectors is not None
    for number, vector in enumerate(vectors, 1):
        require_finite(f"{_named(model)}: text {number}: vector", vector)
    wide = vectors.astype(np.float64)
    norms = [math.sqrt(square) for square in tree_sum(np.square(wide)).tolist()]
    report: dict[str, Any] = {"norms": norms, "embeddings": vectors.tolist()}
    if pair is not None:
        if not all(norms):
            raise BertNumpyError(
                f"{_named(model)}: text {norms.index(0) + 1}: expected a vector to compare, found "
                "zeros alone, which have no direction"
            )
        cosine = float(tree_sum(wide[0] * wide[1])) / (norms[0] * norms[1])
        report = {"cosine_similarity": cosine, **report}
    return Prediction(report)


_PREDICTIONS: dict[str, Callable[[Model, Tokenizer, str, str | None], Prediction]] = {
    "sequence classification": _classes,
    "question answering": _answers,
    "masked language modelling": _masks,
    "pre-training": _masks,
    "next sentence prediction": _next_sentence,
    "token classification": _tokens,
    "sentence embeddings": _embedding,
}

_OF_PAIRS = ("question answering", "next sentence prediction")


def _batch(tokenizer: Tokenizer, text: str, pair: str | None) -> dict[str, IntArray]:
    return tokenizer.batch([text], None if pair is None else [pair])


def _first(model: Model, logits: Float32Array | None) -> Float32Array:
    """Return the logits of the one text, checked to be finite."""
    assert logits is not None
    first: Float32Array = logits[0]
    require_finite(f"{_named(model)}: text 1: logits", first)
    return first


def _named(model: Model) -> str:
    """Name the model, and its recipe if it has one."""
    recipe = getattr(model, "recipe", None)
    return model.name if recipe is None else f"{model.name}, {recipe.name}"


def _ranked(labels: tuple[str, ...], probabilities: Float32Array) -> dict[str, float]:
    pairs = zip(labels, probabilities.tolist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: -pair[1]))
