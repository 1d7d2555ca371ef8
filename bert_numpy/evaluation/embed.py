"""Texts to vectors by a sentence encoder, and how near a recipe's vectors are to float32's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import text_logits
from bert_numpy.finite import NO_CLASS
from bert_numpy.model.model import Model, require_head
from bert_numpy.progress import Progress
from bert_numpy.tasks.similarity import EMBEDDINGS, cosines, neighbours
from bert_numpy.tasks.tokenization import EncodedText, Tokenizer
from npfp8.arrays import Float32Array

__all__ = ["NEIGHBOURS", "embed", "embed_encoded", "similarity"]

#: How many nearest texts are compared: the one, and the first page of a search.
NEIGHBOURS = (1, 10)


def embed(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    batch_size: int = 32,
    *,
    max_length: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Float32Array:
    """The vectors of texts, as a sentence-transformers folder says.

    Parameters
    ----------
    model : Model
        Of a sentence-transformers folder; quantized or not.
    tokenizer : Tokenizer
        The same folder's.
    texts : sequence of str
        No text may be blank.
    batch_size : int
        Texts at a time, of similar length.
    max_length : int, optional
        Cut longer texts to so many tokens; by default to the folder's length.
    progress : callable, optional
        Called with numbers of texts that have their vector.
    threads : int, optional
        By default as many as there are cores.

    Returns
    -------
    ndarray of float32, (texts, width)
        In the texts' order. NaN or infinite where the model overflows:
        :mod:`bert_numpy.finite`.

    Raises
    ------
    BertNumpyError
        If the model does not embed sentences, there is no text, or a text is
        blank or cannot be encoded.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> tokenizer = bert_numpy.load_tokenizer("all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> bert_numpy.embed(model, tokenizer, ["a warm film", "dull"]).shape  # doctest: +SKIP
    (2, 384)
    """
    require_head(model, EMBEDDINGS.head)
    encoded = tokenizer.encode(texts, None, max_length)
    return embed_encoded(model, encoded, batch_size, progress, threads)


def embed_encoded(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Float32Array:
    """:func:`embed` of texts that are encoded already."""
    vectors = text_logits(model, EMBEDDINGS.head, encoded, batch_size, progress, threads)
    if not vectors:
        raise BertNumpyError("expected at least one text, found none")
    return np.stack(vectors)


def similarity(reference: Float32Array, vectors: Float32Array) -> dict[str, float]:
    """How near vectors are to those of the same texts by a reference, usually FP32.

    Parameters
    ----------
    reference, vectors : ndarray of float32, (texts, width)
        Of two texts at least. The reference is finite.

    Returns
    -------
    dict
        ``mean_cosine`` and ``min_cosine`` of each vector with the reference's, NaN if
        a vector is zero or not finite; and for 1 and 10, ``neighbours_at_10``: the share
        of the ten texts nearest to a text that stay among them, a mean over the texts.
        Where there are no ten others, all of them count.
    """
    found = cosines(reference, vectors)
    figures = {"mean_cosine": float(found.mean()), "min_cosine": float(found.min())}
    most = min(max(NEIGHBOURS), len(vectors) - 1)
    before, after = neighbours(reference, most), neighbours(vectors, most)
    for count in NEIGHBOURS:
        old, new = before[:, :count], after[:, :count]
        kept = (old[:, :, None] == new[:, None, :]) & (old[:, :, None] != NO_CLASS)
        figures[f"neighbours_at_{count}"] = float(kept.any(axis=2).mean())
    return figures
