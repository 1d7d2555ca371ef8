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

#: Parameters by name: float32 arrays, or 8-bit codes with scales where quantized.
Weights = Mapping[str, npt.NDArray[np.float32] | QuantizedTensor]


def expected_shapes(config: BertConfig, pooler: bool = True) -> dict[str, tuple[int, ...]]:
    """The canonical name and the shape of every parameter, in the order of the data flow.

    Canonical names are those of transformers' ``BertModel`` (no ``bert.``
    prefix) and of its heads. Linear weights are (out_features, in_features).
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    shapes["embeddings.word_embeddings.weight"] = (config.vocab_size, hidden)
    shapes["embeddings.position_embeddings.weight"] = (config.max_position_embeddings, hidden)
    shapes["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, hidden)
    layer_norm("embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", intermediate, hidden)
        linear(f"{layer}.output.dense", hidden, intermediate)
        layer_norm(f"{layer}.output.LayerNorm")
    if pooler:
        linear("pooler.dense", hidden, hidden)
    if config.has_classifier:
        linear("classifier", len(config.labels), hidden)
    if config.has_qa_outputs:
        linear("qa_outputs", 2, hidden)
    return shapes


def canonical_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Rename a checkpoint's tensors: no ``bert.`` prefix, LayerNorm's gamma and beta as now.

    Raises
    ------
    BertNumpyError
        If two tensors come to the same name.
    """
    renamed: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        name = key.removeprefix("bert.")
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
    """Find every parameter that ``config`` calls for; the data is not read yet.

    A bare encoder may lack the pooler; question answering has none, as in
    transformers. Tensors that are not parameters of the architecture
    (``position_ids``, other heads, a pooler that nothing reads) are left out.

    Raises
    ------
    BertNumpyError
        If a tensor is missing or of another shape.
    """
    tensors = canonical_names(stored)
    pooler = config.has_classifier or (
        not config.has_qa_outputs and "pooler.dense.weight" in tensors
    )
    parameters = {}
    for name, shape in expected_shapes(config, pooler).items():
        if name not in tensors:
            files = sorted({tensor.file for tensor in stored.values()})
            place = str(files[0] if len(files) == 1 else files[0].parent) if files else "checkpoint"
            raise BertNumpyError(f"{place}: tensor {name!r}: expected shape {shape}, but missing")
        tensor = tensors[name]
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

    Raises
    ------
    BertNumpyError
        If a tensor is missing, of another shape or dtype, or not finite.
    """
    parameters = find_parameters(config, stored)
    return {name: read_float32(tensor) for name, tensor in parameters.items()}
