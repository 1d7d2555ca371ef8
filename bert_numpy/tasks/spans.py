"""From start and end logits to answers: the likely spans of a context, over its windows.

The rules are those of ``run_squad.py`` of the original BERT
(github.com/google-research/bert), except two. All spans are compared, not only those
that join one of the best starts to one of the best ends. And the text of a span is the
context's own characters from its first token to its last, not pieced together from tokens.
Accents written as combining characters belong to the letter before them, even if an uncased
tokenizer drops them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from bert_numpy.tasks.tokenization import Window
from npfp8 import elementary
from npfp8.arrays import Float32Array
from npfp8.golden import tree_sum

__all__ = ["Answer", "best_answers", "most_context"]


@dataclass(frozen=True)
class Answer:
    """A span of a context.

    Attributes
    ----------
    text : str
        ``context[start:end]``.
    start, end : int
        The place of the span, in characters.
    start_logit, end_logit : float
    probability : float
        The probability among the answers of the same list.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float


def best_answers(
    context: str,
    windows: Sequence[Window],
    logits: Sequence[Float32Array],
    n_best: int = 20,
    max_answer_length: int = 30,
) -> tuple[Answer, ...]:
    """List the most likely answers to a question, the best first.

    A span lies in one window, and begins where no other window has more
    context (:func:`most_context`). Its score is the sum of the start logit of
    its first and the end logit of its last token, in float64. On a tie
    the earlier start comes first, then the earlier end. A text is listed once,
    at its best place, and without white space around it; a span of white space alone
    is an answer only if there is no other.

    Parameters
    ----------
    context : str
    windows : sequence of Window
        All windows of one question, in order.
    logits : sequence of ndarray of float32, (tokens, 2)
        The start and end logits of every token, per window.
    n_best : int
        The most answers to list.
    max_answer_length : int
        The longest answer, in tokens.

    Returns
    -------
    tuple of Answer
        At least one answer. The probabilities are the softmax of the scores, in
        float64 and the same on every machine.

    Raises
    ------
    BertNumpyError
        If a logit is NaN or +infinity, or if every span has a logit of -infinity, like
        masked tokens.
    """
    for array in logits:
        if not (array < np.inf).all():  # NaN fails this, too
            bad = array[~(array < np.inf)].flat[0]
            raise BertNumpyError(
                f"answers: expected logits that are finite, or -infinity, found {bad}"
            )
    usable = most_context(windows)
    spans: list[tuple[float, int, int, float, float]] = []
    for window, array, starts in zip(windows, logits, usable, strict=True):
        spans += _spans(context, window, array, starts, n_best, max_answer_length)
    distinct: dict[str, tuple[float, int, int, float, float]] = {}
    for span in sorted(spans):
        distinct.setdefault(context[span[1] : span[2]], span)
    if len(distinct) > 1:
        distinct.pop("", None)
    best = list(distinct.items())[:n_best]
    scores = np.array([-span[0] for _, span in best])
    if scores[0] == -np.inf:
        raise BertNumpyError("answers: expected a span of finite logits, found none")
    weights = elementary.exp(scores - scores[0])
    weights /= tree_sum(weights)
    return tuple(
        Answer(text, *span[1:], probability)
        for (text, span), probability in zip(best, weights.tolist(), strict=True)
    )


def _spans(
    context: str,
    window: Window,
    logits: Float32Array,
    starts: npt.NDArray[np.bool_],
    n_best: int,
    max_answer_length: int,
) -> Iterator[tuple[float, int, int, float, float]]:
    """Yield a window's best distinct spans: -score, start, end (characters), both logits."""
    count = len(window.offsets)
    part = logits[window.position : window.position + count].astype(np.float64)
    first = np.flatnonzero(starts)[:, None]  # (starts, 1)
    last = first + np.arange(max_answer_length)  # (starts, max_answer_length)
    allowed = last < count
    first = np.broadcast_to(first, last.shape)[allowed]  # (spans,), in the order of the ties
    last = last[allowed]
    scores = part[first, 0] + part[last, 1]
    seen: set[str] = set()
    for span in np.argsort(-scores, kind="stable"):
        start_logit, end_logit = part[first[span], 0], part[last[span], 1]
        start, end = _trimmed(
            context, window.offsets[first[span]][0], window.offsets[last[span]][1]
        )
        if context[start:end] not in seen:
            seen.add(context[start:end])
            yield -float(scores[span]), start, end, float(start_logit), float(end_logit)
        if len(seen - {""}) == n_best:
            break


def _trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Remove the white space at the ends of a span."""
    end = start + len(context[start:end].rstrip())
    return end - len(context[start:end].lstrip()), end


def most_context(windows: Sequence[Window]) -> list[npt.NDArray[np.bool_]]:
    """Mark the tokens of each window that have the most context there, among all windows.

    The context of a token in a window is the number of tokens to its left or
    to its right, whichever is less, plus a hundredth of the window's length. On a tie
    the first window counts. Context is counted in hundredths, so that nothing is rounded.

    Parameters
    ----------
    windows : sequence of Window
        All windows of one question.

    Returns
    -------
    list of ndarray of bool, (tokens of the window,)
        Every token of the context is True in exactly one window.
    """
    total = max(window.first + len(window.offsets) for window in windows)
    context = np.full((len(windows), total), -1)
    for row, window in zip(context, windows, strict=True):
        length = len(window.offsets)
        left = np.arange(length)
        row[window.first : window.first + length] = 100 * np.minimum(left, left[::-1]) + length
    best = context.argmax(axis=0)  # the first of equals
    return [
        best[window.first : window.first + len(window.offsets)] == number
        for number, window in enumerate(windows)
    ]
