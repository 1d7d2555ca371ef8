"""Prompts: vectors that enter the encoder behind the first token, as if they were tokens.

Every text gets the same prompts. They stand between the first token ([CLS]) and the rest,
and enter where the embeddings do, at the input of the first Transformer layer. All tokens
attend to them. The other tokens keep their position numbers, and the outputs have no rows
for prompts, so a run with no prompts is the run of the model itself, bit by bit.

The forward pass is not changed. :class:`PromptedBatch` is a layout with more tokens, and
:class:`PromptEngine` replaces the embeddings of these tokens.

Source: section 3.1 of arXiv 2404.01650, which inserts prompts into a Vision Transformer as
Jia et al., *Visual Prompt Tuning* (arXiv 2203.12119), do at its first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bert_numpy.adaptation.wrapping import WrappingEngine
from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from bert_numpy.model.packing import Batch, pack
from npfp8.arrays import Float32Array, IntArray

__all__ = ["PromptEngine", "PromptedBatch", "entry_of", "require_prompts", "with_prompts"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class PromptedBatch(Batch):
    """A batch whose texts have ``prompts`` more tokens behind their first one.

    ``input_ids``, ``token_type_ids`` and ``packing`` include the prompts, with the id and the
    type 0. The embeddings of these ids are replaced.

    Attributes
    ----------
    prompts : int
        The number of prompts per text.

    Examples
    --------
    >>> import bert_numpy
    >>> from bert_numpy.adaptation.prompts import with_prompts
    >>> from bert_numpy.model.model import batch_of
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> batch = with_prompts(batch_of(model.config, [[101, 2204, 102]]), 2)
    >>> batch.words(), batch.places(None), batch.rows
    (array([ 101,    0,    0, 2204,  102]), array([0, 0, 0, 1, 2]), array([[1, 2]]))
    """

    prompts: int = 0

    def places(self, padding: int | None) -> IntArray:
        """Return the position numbers that the tokens have without prompts: (tokens,).

        A prompt has the number of the first token. For MPNet it is therefore as far from every
        other token as the first token is.
        """
        ids = without_prompts(self.input_ids, self.prompts)
        text = Batch(ids, ids, pack(np.ones(ids.shape, bool)))  # every position, also padding
        numbers = text.places(padding).reshape(ids.shape)
        return self.packing.take(_inserted(numbers, numbers[:, :1], self.prompts))

    def padded(self, x: Float32Array) -> Float32Array:
        """Pad with zeros, without the prompts: (batch, length, features)."""
        return without_prompts(self.packing.unpack(x), self.prompts)

    @property
    def rows(self) -> IntArray:
        """The packed rows of the prompts: (batch, prompts)."""
        return self.packing.first[:, None] + np.arange(1, 1 + self.prompts)


def with_prompts(batch: Batch, count: int) -> PromptedBatch:
    """Add ``count`` tokens behind the first token of each text, for prompts.

    The attention mask keeps the prompts in every text.
    """
    ids, mask = batch.input_ids, batch.packing.mask
    zero, true = np.zeros((1, 1), ids.dtype), np.ones((1, 1), bool)
    return PromptedBatch(
        _inserted(ids, zero, count),
        _inserted(batch.token_type_ids, zero, count),
        pack(_inserted(mask, true, count)),
        count,
    )


def without_prompts(x: npt.NDArray[_Scalar], count: int) -> npt.NDArray[_Scalar]:
    """Remove the prompts. (batch, count + length, ...) -> (batch, length, ...)."""
    return np.concatenate([x[:, :1], x[:, 1 + count :]], axis=1)


def _inserted(
    x: npt.NDArray[_Scalar], value: npt.NDArray[_Scalar], count: int
) -> npt.NDArray[_Scalar]:
    """Insert ``count`` columns of a value, (batch or 1, 1), behind the first column."""
    columns = np.broadcast_to(value, (len(x), count))
    return np.concatenate([x[:, :1], columns, x[:, 1:]], axis=1)


def entry_of(config: BertConfig) -> str:
    """Return the name of the operation whose result is the input of the first layer."""
    return "embeddings_project" if config.projects_embeddings else "embeddings.LayerNorm"


def require_prompts(prompts: Float32Array, config: BertConfig) -> None:
    """Raise :class:`BertNumpyError` unless ``prompts`` are float32, (prompts, hidden_size)."""
    hidden = config.hidden_size
    if prompts.dtype != np.float32 or prompts.ndim != 2 or prompts.shape[1] != hidden:
        raise BertNumpyError(
            f"prompts: expected float32 of shape (prompts, {hidden}), "
            f"found {prompts.dtype} of shape {prompts.shape}"
        )


@dataclass(frozen=True, eq=False)
class PromptEngine(WrappingEngine):
    """An engine that computes as ``inner`` does, with prompts as embeddings of some tokens.

    Attributes
    ----------
    layout : PromptedBatch
    prompts : ndarray of float32, (prompts, hidden)
        They are rounded to the precision of ``inner``, as its own embeddings are.
    entry : str
        The name of the operation whose result they join: see :func:`entry_of`.
    """

    layout: PromptedBatch
    prompts: Float32Array
    entry: str

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """Put in the prompts behind the embeddings' LayerNorm."""
        return self._entered(name, self.inner.layer_norm(name, x, eps))

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """Put in the prompts behind the projection of embeddings."""
        for site, y in zip(sites, self.inner.linears(sites, x), strict=True):
            yield self._entered(site.name, y)

    def _entered(self, name: str, x: Float32Array) -> Float32Array:
        """Replace the prompts' rows, if they enter here: (tokens, hidden)."""
        if name != self.entry or not len(self.prompts):
            return x
        entered = x.copy()
        zero = np.zeros_like(self.prompts)  # an addition rounds to the precision
        entered[self.layout.rows] = self.inner.add(self.prompts, zero)
        return entered
