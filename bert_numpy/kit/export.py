"""Making a kit: the cases of the codec and of the operators, and a golden run of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError, read_json
from bert_numpy.kit.attention_cases import add_attention_cases
from bert_numpy.kit.block_cases import add_block_cases
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.cases import add_codec_cases, add_operator_cases
from bert_numpy.kit.manifest import LEVELS, Kit, Tensor
from bert_numpy.kit.recording import record
from bert_numpy.kit.trap_cases import add_trap_cases
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.recipe_json import recipe_object
from bert_numpy.tasks.tokenization import EncodedText, Tokenizer, pad
from npfp8.arrays import IntArray

__all__ = ["make_kit", "model_files", "read_inputs", "sequence"]


#: The number of tokens that texts are truncated to, if the model takes as many.
_LONGEST_TEXT = 128

#: The arithmetic of the whole kit, in words.
_SUMMARY = [
    "A tensor is what its operation makes of its inputs; operations has each one's rule.",
    "Tensors are in the order of the data flow: each comes after its inputs.",
    "An input [name, view] is the tensor seen otherwise: transposed (last two axes swapped, one "
    "axis as it is), first_row, split_heads:H ((tokens, H * d) as (1, H, tokens, d)), "
    "split_heads_transposed:H (then the last two axes swapped), merge_heads (back again), "
    "columns:A:B and rows:A:B (A to before B along the last axis, or the one before it).",
    "bfloat16 is BF16 in the file. Codes are F8_E4M3, F8_E5M2, F8_E8M0, or U8 or I8; packed "
    "bytes are U8.",
    "Rounding is to nearest, ties to even, unless said otherwise. Any NaN is as good as another.",
]


def make_kit(
    levels: Sequence[str] = LEVELS,
    model: QuantizedModel | None = None,
    files: Mapping[str, str] | None = None,
    inputs: Sequence[Mapping[str, IntArray]] = (),
    progress: Callable[[int], None] | None = None,
) -> Kit:
    """Make a kit.

    Parameters
    ----------
    levels : sequence of str
        Levels from :data:`LEVELS`; "layer" and "model" need the next three arguments.
    model : QuantizedModel, optional
        A golden model.
    files : mapping of str to str, optional
        The SHA-256 of the model's files by their names.
    inputs : sequence of mappings
        The model's arguments, each for one sequence: (1, length).
    progress : callable, optional
        Called with 1 after each input.
    """
    builder = Builder()
    header: dict[str, Any] = {"levels": list(levels), "arithmetic": _SUMMARY}
    if "codec" in levels:
        add_codec_cases(builder)
    if "operator" in levels:
        add_operator_cases(builder)
        add_block_cases(builder)
        add_attention_cases(builder)
        add_trap_cases(builder)
    if {"layer", "model"} & set(levels):
        if model is None or not inputs:
            raise BertNumpyError("levels layer and model: expected a model and inputs, found none")
        header["model"] = {"name": Path(model.name).name, "files": dict(files or {})}
        header["recipe"] = recipe_object(model.recipe)
        for number, arguments in enumerate(inputs):
            record(builder, model, f"model/{number}", arguments)
            if progress is not None:
                progress(1)
    return _of_levels(builder.kit(header), levels)


def _of_levels(kit: Kit, levels: Sequence[str]) -> Kit:
    """Drop the tensors of other levels; those that the kept ones read become given."""
    kept = {name for name, tensor in kit.tensors.items() if tensor.level in levels}
    read = {
        reference.tensor for name in kept for reference in kit.tensors[name].inputs.values()
    } - kept

    def given(tensor: Tensor) -> Tensor:
        return replace(tensor, operation="given", inputs={}, attributes={})

    tensors = {
        name: tensor if name in kept else given(tensor)
        for name, tensor in kit.tensors.items()
        if name in kept | read
    }
    return Kit(kit.header, tensors, {name: kit.arrays[name] for name in tensors})


def model_files(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of the files that hold a checkpoint's numbers."""
    paths = [folder / "config.json", *sorted(folder.glob("*.safetensors*"))]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()
    }


def read_inputs(path: Path, tokenizer: Tokenizer | None) -> list[dict[str, IntArray]]:
    """Read inputs: a JSON list of texts, or of objects.

    Texts are truncated to 128 tokens, or to the model's own length if it is less. An object has
    "text" and optionally "pair", or "input_ids" and optionally
    "attention_mask" and "token_type_ids", which are lists of integers.

    Raises
    ------
    BertNumpyError
        If the file has anything else; the message names the item.
    """
    keys = ("input_ids", "attention_mask", "token_type_ids")
    found = []
    for number, item in enumerate(read_json(path, list)):
        place = f"{path}: item {number}"
        fields = {"text": item} if isinstance(item, str) else item
        if not isinstance(fields, dict) or not ({"text"} <= set(fields) <= {"text", "pair"}
                or {"input_ids"} <= set(fields) <= set(keys)):  # fmt: skip
            raise BertNumpyError(
                f"{place}: expected a text, or an object of text and pair, or of "
                f"{', '.join(keys)}; found {item!r}"
            )
        if "text" in fields:
            if tokenizer is None or not all(isinstance(text, str) for text in fields.values()):
                raise BertNumpyError(f"{place}: expected strings, found {item!r}")
            pair = [fields["pair"]] if "pair" in fields else None
            length = min(_LONGEST_TEXT, tokenizer.model_max_length)
            found.append(sequence(tokenizer.encode([fields["text"]], pair, length)[0]))
            continue
        if not all(map(_are_integers, fields.values())):  # NumPy would truncate 1.5 and read "1"
            raise BertNumpyError(f"{place}: expected lists of integers, found {item!r}")
        found.append({key: np.array([value], np.int64) for key, value in fields.items()})
    if not found:
        raise BertNumpyError(f"{path}: expected at least one input, found none")
    return found


def _are_integers(values: Any) -> bool:
    """Check for a list of 64-bit integers; JSON's true and false are not accepted."""
    return isinstance(values, list) and all(type(x) is int and abs(x) < 2**63 for x in values)


def sequence(encoded: EncodedText) -> dict[str, IntArray]:
    """Return the arguments of a model for one text, without padding."""
    return dict(pad([encoded]))
