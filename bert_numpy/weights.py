"""The parameters of a BERT under canonical names, each of the shape that its config says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoint import read_float32
from bert_numpy.config import BertConfig
from bert_numpy.errors import BertNumpyError
from npfp8 import QuantizedTensor
from npfp8.storage import StoredTensor

__all__ = ["Weights", "canonical_names", "expected_shapes", "find_parameters", "read_weights"]

_WORDS = "embeddings.word_embeddings.weight"
_DECODER = "cls.predictions.decoder.weight"

#: Parameters by name: float32 arrays, or 8-bit codes with scales where quantized.
Weights = Mapping[str, npt.NDArray[np.float32] | QuantizedTensor]


def expected_shapes(config: BertConfig, pooler: bool = True) -> dict[str, tuple[int, ...]]:
    """The canonical name and the shape of every parameter, in the order of the data flow.

    Canonical names are those of transformers' ``BertModel`` (no ``bert.``
    prefix) and of BERT's heads, whatever the model type. Two are not BERT's:
    ``embeddings_project`` and ``discriminator_predictions`` are ELECTRA's.
    Linear weights are (out_features, in_features). ``pooler`` says whether there
    is one where the head leaves it open.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    embedding = config.embedding_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def layer_norm(name: str, size: int = hidden) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    shapes["embeddings.word_embeddings.weight"] = (config.vocab_size, embedding)
    shapes["embeddings.position_embeddings.weight"] = (config.max_position_embeddings, embedding)
    if config.type_vocab_size:
        shapes["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, embedding)
    layer_norm("embeddings.LayerNorm", embedding)
    if embedding != hidden:
        linear("embeddings_project", hidden, embedding)
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", intermediate, hidden)
        linear(f"{layer}.output.dense", hidden, intermediate)
        layer_norm(f"{layer}.output.LayerNorm")
    head = config.head
    if pooler if head.pooler is None else head.pooler:
        linear("pooler.dense", hidden, hidden)
    if head.name in ("sequence classification", "token classification"):
        linear("classifier", len(config.labels), hidden)
    elif head.name == "multiple choice":
        linear("classifier", 1, hidden)
    elif head.name == "question answering":
        linear("qa_outputs", 2, hidden)
    elif head.name == "replaced token detection":
        linear("discriminator_predictions.dense", hidden, hidden)
        linear("discriminator_predictions.dense_prediction", 1, hidden)
    if head.name in ("next sentence prediction", "pre-training"):
        linear("cls.seq_relationship", 2, hidden)
    if head.name in ("masked language modelling", "pre-training"):
        linear("cls.predictions.transform.dense", embedding, hidden)
        layer_norm("cls.predictions.transform.LayerNorm", embedding)
        linear("cls.predictions.decoder", config.vocab_size, embedding)
    return shapes


def canonical_names(stored: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Rename a checkpoint's tensors: no prefix, LayerNorm's gamma and beta as they are called now.

    Raises
    ------
    BertNumpyError
        If two tensors come to the same name.
    """
    renamed: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        name = key.removeprefix(prefix)
        for old, new in (
            ("LayerNorm.gamma", "LayerNorm.weight"),
            ("LayerNorm.beta", "LayerNorm.bias"),
        ):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name in renamed:
            raise BertNumpyError(
                f"{tensor.file}: tensors {renamed[name].key!r} and {key!r}: expected one {name!r}"
            )
        renamed[name] = tensor
    return renamed


def find_parameters(
    config: BertConfig, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Find every parameter that ``config`` calls for, by canonical name; nothing is read yet.

    A bare encoder may lack the pooler; question answering and others have
    none, as in transformers. Tensors that are not parameters of the architecture
    (``position_ids``, other heads, a pooler that nothing reads) are left out.
    The decoder of a masked language model that is not stored is the word
    embeddings' tensor.

    Raises
    ------
    BertNumpyError
        If a tensor is missing or of another shape.
    """
    description, head = config.description, config.head
    tensors = canonical_names(stored, description.prefix)

    def find(name: str) -> StoredTensor | None:
        names = description.stored_names(name, head)
        return next((tensors[other] for other in names if other in tensors), None)

    parameters: dict[str, StoredTensor] = {}
    pooler = find("pooler.dense.weight") is not None
    for name, shape in expected_shapes(config, pooler).items():
        tensor = find(name)
        if tensor is None and name == _DECODER and config.tie_word_embeddings:
            tensor = parameters[_WORDS]
        if tensor is None:
            *_, missing = description.stored_names(name, head)
            files = sorted({tensor.file for tensor in stored.values()})
            place = str(files[0] if len(files) == 1 else files[0].parent) if files else "checkpoint"
            raise BertNumpyError(
                f"{place}: tensor {missing!r}: expected shape {shape}, but missing"
            )
        if tensor.shape != shape:
            raise BertNumpyError(
                f"{tensor.file}: tensor {tensor.key!r}: expected shape {shape} by config.json, "
                f"found {tensor.shape}"
            )
        parameters[name] = tensor
    return parameters


def read_weights(
    config: BertConfig, stored: Mapping[str, StoredTensor]
) -> dict[str, npt.NDArray[np.float32]]:
    """Read every parameter that ``config`` calls for, as float32; see :func:`find_parameters`.

    A decoder that has the word embeddings' numbers is the same array, held once.

    Raises
    ------
    BertNumpyError
        If a tensor is missing or of another shape.
    """
    parameters = find_parameters(config, stored)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, tensor in parameters.items():
        if name == _DECODER and tensor is parameters[_WORDS]:
            weights[name] = weights[_WORDS]
            continue
        weights[name] = read_float32(tensor)
        if name == _DECODER and np.array_equal(weights[name], weights[_WORDS]):
            weights[name] = weights[_WORDS]
    return weights
