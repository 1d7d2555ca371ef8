"""Text vectors from a sentence encoder, and their distance from the float32 vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_numpy.checkpoints.load import as_model
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import text_logits
from bert_numpy.finite import NO_CLASS
from bert_numpy.model.model import Model, require_head
from bert_numpy.progress import Progress
from bert_numpy.tasks.similarity import EMBEDDINGS, cosines, neighbours
from bert_numpy.tasks.tokenization import EncodedText, Tokenizer, as_tokenizer
from npfp8.arguments import integer, require_function
from npfp8.arrays import Float32Array

__all__ = ["NEIGHBOURS", "embed", "embed_encoded", "similarity"]

#: The numbers of nearest texts to compare: the nearest one, and the first page of a search.
NEIGHBOURS = (1, 10)


def embed(
    model: Model | str | Path,
    tokenizer: Tokenizer | str | Path,
    texts: Sequence[str],
    batch_size: int = 32,
    *,
    max_length: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Float32Array:
    """Compute the vectors of texts with the settings of a sentence-transformers folder.

    Parameters
    ----------
    model : Model
        The model of a sentence-transformers folder; quantized or not.
    tokenizer : Tokenizer
        The tokenizer of the same folder.
    texts : sequence of str
        No text may be blank.
    batch_size : int
        The number of texts per batch; texts of similar length are put together.
    max_length : int, optional
        Longer texts are truncated to this number of tokens; the folder's length by default.
    progress : callable, optional
        Called with the number of texts just done.
    threads : int, optional
        The number of threads; by default one per core.

    Returns
    -------
    ndarray of float32, (texts, width)
        The vectors in the order of the texts. They are NaN or infinite if the model
        overflows: see :mod:`bert_numpy.finite`.

    Raises
    ------
    BertNumpyError
        If the model does not embed sentences, if there is no text, or if a text is
        blank or cannot be encoded.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> tokenizer = bert_numpy.load_tokenizer("all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> bert_numpy.embed(model, tokenizer, ["a warm film", "dull"]).shape  # doctest: +SKIP
    (2, 384)
    """
    model, tokenizer = as_model(model), as_tokenizer(tokenizer)
    if (batch_size := integer("batch_size", batch_size)) < 1:
        raise BertNumpyError(f"batch_size: expected at least 1, found {batch_size}")
    if threads is not None and (threads := integer("threads", threads)) < 1:
        raise BertNumpyError(f"threads: expected at least 1, found {threads}")
    require_function("progress", progress, optional=True)
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
    """Compute :func:`embed` for encoded texts."""
    vectors = text_logits(model, EMBEDDINGS.head, encoded, batch_size, progress, threads)
    if not vectors:
        raise BertNumpyError("expected at least one text, found none")
    return np.stack(vectors)


def similarity(reference: Float32Array, vectors: Float32Array) -> dict[str, float]:
    """Compare vectors with the vectors of the same texts by a reference, usually FP32.

    Parameters
    ----------
    reference, vectors : ndarray of float32, (texts, width)
        The vectors of at least two texts. The reference must be finite.

    Returns
    -------
    dict
        ``mean_cosine`` and ``min_cosine`` are over the cosines of each vector with its
        reference, NaN if a vector is zero or not finite. ``neighbours_at_10`` is the share
        of the ten texts nearest to a text that stay among its ten nearest, averaged over
        the texts; ``neighbours_at_1`` is the same for the nearest text. If there are not
        ten others, all of them count.
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
