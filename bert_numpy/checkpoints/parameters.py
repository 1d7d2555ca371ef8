"""The parameters of a BERT under canonical names, each of the shape that its config says."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from bert_numpy.checkpoints.tensors import read_float32
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from bert_numpy.model.sites import WORDS, expected_shapes
from npfp8.arrays import Float32Array
from npfp8.storage import StoredTensor

__all__ = [
    "canonical_names",
    "find_parameters",
    "read_parameters",
    "read_weights",
]

_DECODER = "cls.predictions.decoder.weight"

#: Parameters that are one where ``tie_word_embeddings`` says so. A file that holds the matrix
#: once has it under either name: safetensors' ``save_model`` keeps the first in the alphabet.
_TIED = {WORDS: _DECODER, _DECODER: WORDS}

#: The dtypes of codes, which only a quantized checkpoint's config explains.
_CODE_DTYPES = re.compile(r"[IU]8|F[468](_\w+)?")

#: How layouts of quantized weights call what stands beside, or in the place of, a weight.
_QUANTIZED_PARTS = ("weight_scale", "weight_scale_inv", "weight_packed", "qweight", "SCB")


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

    Those of Dense modules, which have files of their own, are not among them.

    A bare encoder may lack the pooler; question answering and others have
    none, as in transformers. Tensors that are not parameters of the architecture
    (``position_ids``, other heads, a pooler that nothing reads) are left out.
    Where ``tie_word_embeddings`` is set, the decoder of a masked language model
    and the word embeddings may be stored once, under either name.

    Raises
    ------
    BertNumpyError
        If a tensor is missing or of another shape, or the config asks for more
        layers than there are tensors: no list of them is made.
    """
    files = sorted({tensor.file for tensor in stored.values()})
    place = str(files[0] if len(files) == 1 else files[0].parent) if files else "checkpoint"
    layers = config.num_hidden_groups or config.num_hidden_layers
    if files and layers > len(stored):
        name = "num_hidden_groups" if config.num_hidden_groups else "num_hidden_layers"
        key = config.description.keys.get(name, name)
        raise BertNumpyError(
            f"{files[0].parent / 'config.json'}: key {key!r}: expected fewer than the "
            f"{len(stored)} tensors that there are, found {layers}"
        )
    tensors = canonical_names(stored, config.description.prefix)
    pooler = bool(_found(config, tensors, "pooler.dense.weight"))
    parameters: dict[str, StoredTensor] = {}
    for name, shape in expected_shapes(config.stored_together, pooler).items():
        tensor = next(iter(_found(config, tensors, name)), None)
        if tensor is None:
            *_, missing = config.description.stored_names(name, config.head)
            stem = missing.removesuffix("weight")
            parts = [f"{stem}{part}" for part in _QUANTIZED_PARTS if f"{stem}{part}" in tensors]
            quantized = f"; {parts[0]!r} is of a quantized layout that is not read" if parts else ""
            raise BertNumpyError(
                f"{place}: tensor {missing!r}: expected shape {shape}, but missing{quantized}"
            )
        if tensor.shape != shape:
            raise BertNumpyError(
                f"{tensor.place}: expected shape {shape} by config.json, found {tensor.shape}"
            )
        parameters[name] = tensor
    return parameters


def read_weights(config: BertConfig, stored: Mapping[str, StoredTensor]) -> dict[str, Float32Array]:
    """Read every parameter that ``config`` calls for, as float32; see :func:`find_parameters`.

    Raises
    ------
    BertNumpyError
        If a tensor is missing or of another shape, or as :func:`read_parameters`.
    """
    return read_parameters(config, stored, find_parameters(config, stored))


def read_parameters(
    config: BertConfig,
    stored: Mapping[str, StoredTensor],
    parameters: Mapping[str, StoredTensor],
) -> dict[str, Float32Array]:
    """Read some of the parameters that :func:`find_parameters` found, as float32.

    A decoder that has the word embeddings' numbers is the same array, held once.

    Parameters
    ----------
    config : BertConfig
    stored : mapping of str to StoredTensor
        All that the checkpoint holds.
    parameters : mapping of str to StoredTensor
        By canonical name.

    Raises
    ------
    BertNumpyError
        If a tensor is of codes, or of another dtype that is not float; has a NaN
        or an infinity; or is stored under two names with different numbers,
        which releases of transformers choose between differently.
    """
    tensors = canonical_names(stored, config.description.prefix)
    weights: dict[str, Float32Array] = {}
    read: dict[str, Float32Array] = {}  # by the tensor's key
    for name, tensor in parameters.items():
        if tensor.key not in read:
            read[tensor.key] = _read(tensor)
        weights[name] = read[tensor.key]
        # The word embeddings need not be a decoder's that nothing reads; the decoder is checked,
        # and its bias, which an untied decoder has of its own.
        ties = config.tie_word_embeddings and name != WORDS
        for other in _found(config, tensors, name) if ties else ():
            if other.key not in read:
                read[other.key] = _read(other)
            if not np.array_equal(weights[name], read[other.key]):
                raise _untied(name, tensor, other)
    if _DECODER in weights and np.array_equal(weights[_DECODER], weights.get(WORDS, ())):
        weights[_DECODER] = weights[WORDS]
    return weights


def _untied(name: str, tensor: StoredTensor, other: StoredTensor) -> BertNumpyError:
    """The error for two tensors of other numbers that may both be the parameter ``name``."""
    found = (
        f"tensors {tensor.key!r} and {other.key!r}: expected the same numbers, as the model ties "
        "the two, found others"
    )
    if name != _DECODER:
        return BertNumpyError(f"{other.file}: {found}")
    return BertNumpyError(
        f"{other.file.parent / 'config.json'}: key 'tie_word_embeddings': expected false, as the "
        f"stored decoder is not the word embeddings, found true ({other.file.name}: {found}): "
        "releases of transformers before 5 compute with the embeddings, later ones with the decoder"
    )


def _read(tensor: StoredTensor) -> Float32Array:
    if _CODE_DTYPES.fullmatch(tensor.dtype):
        raise BertNumpyError(
            f"{tensor.place}: expected dtype F32, F16 or BF16, found {tensor.dtype}: codes of a "
            "quantized weight, of which config.json says nothing"
        )
    return read_float32(tensor)


def _found(
    config: BertConfig, tensors: Mapping[str, StoredTensor], name: str
) -> list[StoredTensor]:
    """The tensors that may be a parameter, the one that it is read from first."""
    names = [name]
    if config.tie_word_embeddings and name in _TIED:
        names.append(_TIED[name])
    stored = [other for one in names for other in config.description.stored_names(one, config.head)]
    return [tensors[other] for other in dict.fromkeys(stored) if other in tensors]
