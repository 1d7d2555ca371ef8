"""The parameters of a BERT under canonical names, with the shapes from its config."""

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

#: Parameters that are one if ``tie_word_embeddings`` is set. A file that stores the matrix
#: once uses either name: safetensors' ``save_model`` keeps the first in the alphabet.
_TIED = {WORDS: _DECODER, _DECODER: WORDS}

#: The dtypes of codes, whose meaning is only in a quantized checkpoint's config.
_CODE_DTYPES = re.compile(r"[IU]8|F[468](_\w+)?")

#: The names, in layouts of quantized weights, of tensors beside a weight or in its place.
_QUANTIZED_PARTS = ("weight_scale", "weight_scale_inv", "weight_packed", "qweight", "SCB")

#: The ending of the name of packed codes.
_PACKED = ".weight_packed"


def canonical_names(stored: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Remove the prefix from a checkpoint's tensor names, and modernize LayerNorm's names.

    Raises
    ------
    BertNumpyError
        If two tensors get the same name.
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
    config: BertConfig, stored: Mapping[str, StoredTensor], *, packed: bool = False
) -> dict[str, StoredTensor]:
    """Find every parameter that ``config`` requires, by canonical name; nothing is read yet.

    If ``packed``, weights may be packed codes: ``weight_packed``, or ``weight`` in uint8. Their
    shapes, which depend on the format of the codes, are not checked.

    Parameters of Dense modules, which have separate files, are not included.

    A bare encoder may lack the pooler; question answering and others have
    none, as in transformers. Tensors that are not parameters of the architecture
    (``position_ids``, other heads, a pooler that nothing reads) are left out.
    If ``tie_word_embeddings`` is set, the decoder of a masked language model
    and the word embeddings may be stored once, under either name.

    Raises
    ------
    BertNumpyError
        If a tensor is missing or has another shape, or if the config has more
        layers than there are tensors (checked before any list of layers is made).
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
    if packed:
        tensors = _with_packed(tensors)
    pooler = bool(_found(config, tensors, "pooler.dense.weight"))
    parameters: dict[str, StoredTensor] = {}
    for name, shape in expected_shapes(config.stored_together, pooler).items():
        tensor = next(iter(_found(config, tensors, name)), None)
        if tensor is None:
            *_, missing = config.description.stored_names(name, config.head)
            stem = missing.removesuffix("weight")
            why = "of a quantized layout that is not read, or that config.json does not describe"
            parts = (f"{stem}{part}" for part in _QUANTIZED_PARTS)
            found = (f"; {tensors[part].key!r} is {why}" for part in parts if part in tensors)
            quantized = next(found, "")
            raise BertNumpyError(
                f"{place}: tensor {missing!r}: expected shape {shape}, but missing{quantized}"
            )
        if tensor.shape != shape and not (packed and _is_packed(tensor)):
            raise BertNumpyError(
                f"{tensor.place}: expected shape {shape} by config.json, found {tensor.shape}"
            )
        parameters[name] = tensor
    return parameters


def _with_packed(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give packed weights the names of weights.

    Raises
    ------
    BertNumpyError
        If a weight is stored in both ways.
    """
    named: dict[str, StoredTensor] = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(_PACKED):
            weight = name.removesuffix("_packed")
            if weight in tensors:
                raise BertNumpyError(
                    f"{tensor.file}: tensors {tensors[weight].key!r} and {tensor.key!r}: expected "
                    "one, as both are the same weight"
                )
            named[weight] = named.pop(name)
    return named


def _is_packed(tensor: StoredTensor) -> bool:
    return tensor.key.endswith(_PACKED) or tensor.dtype == "U8"


def read_weights(config: BertConfig, stored: Mapping[str, StoredTensor]) -> dict[str, Float32Array]:
    """Read every parameter that ``config`` requires, as float32; see :func:`find_parameters`.

    Raises
    ------
    BertNumpyError
        In the same cases as :func:`find_parameters` and :func:`read_parameters`.
    """
    return read_parameters(config, stored, find_parameters(config, stored))


def read_parameters(
    config: BertConfig,
    stored: Mapping[str, StoredTensor],
    parameters: Mapping[str, StoredTensor],
) -> dict[str, Float32Array]:
    """Read some of the parameters that :func:`find_parameters` found, as float32.

    A decoder with the same numbers as the word embeddings shares their array.

    Parameters
    ----------
    config : BertConfig
    stored : mapping of str to StoredTensor
        All tensors of the checkpoint.
    parameters : mapping of str to StoredTensor
        The parameters to read, by canonical name.

    Raises
    ------
    BertNumpyError
        If a tensor has codes or another dtype that is not float; if it has a NaN
        or an infinity; or if it is stored under two names with different numbers.
        (Releases of transformers differ in the one that they use.)
    """
    tensors = canonical_names(stored, config.description.prefix)
    weights: dict[str, Float32Array] = {}
    read: dict[str, Float32Array] = {}  # by the tensor's key
    for name, tensor in parameters.items():
        if tensor.key not in read:
            read[tensor.key] = _read(tensor)
        weights[name] = read[tensor.key]
        # The word embeddings need not equal an unread decoder. A decoder that is read is checked,
        # and so is its bias, of which an untied decoder has its own.
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
    """Make the error for two different tensors that may both be the parameter ``name``."""
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
    """List the tensors that may be a parameter, beginning with the one to read."""
    names = [name]
    if config.tie_word_embeddings and name in _TIED:
        names.append(_TIED[name])
    stored = [other for one in names for other in config.description.stored_names(one, config.head)]
    return [tensors[other] for other in dict.fromkeys(stored) if other in tensors]
