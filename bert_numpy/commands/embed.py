"""The command that writes the vectors of texts: embed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_numpy.checkpoints.load import load
from bert_numpy.commands.jobs import accumulated, chosen_recipe, sentence_scales, sums_of
from bert_numpy.commands.options import (
    AddCommand,
    add_accumulate,
    add_format,
    add_golden,
    add_model,
    add_out,
    add_sentence_scales,
    add_sizes,
    check_scales,
)
from bert_numpy.commands.report import Outcome, counted, print_lines, progress_bar
from bert_numpy.errors import BertNumpyError, writing
from bert_numpy.evaluation.embed import embed_encoded
from bert_numpy.finite import require_finite, rows_not_finite
from bert_numpy.model.model import require_head
from bert_numpy.model.sites import model_sites
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.tasks.records import RECORD_SUFFIXES
from bert_numpy.tasks.similarity import EMBEDDINGS
from bert_numpy.tasks.texts import read_texts
from bert_numpy.tasks.tokenization import load_tokenizer
from npfp8.arrays import Float32Array
from npfp8.files import replaced_file

__all__ = ["add_embed_command"]

#: Endings of files of texts.
_ENDINGS = (".txt", ".tsv", *RECORD_SUFFIXES)

#: How many texts are printed, how many characters of each, and how many numbers of its vector.
_TEXTS, _CHARACTERS, _NUMBERS = 5, 40, 4


def add_embed_command(command: AddCommand) -> None:
    """Add the command."""
    embed = command(
        "embed",
        _embed,
        "Write the vectors of texts (sentence embeddings).",
        './my-encoder "a warm and funny film" "two hours of my life, gone"',
        "./my-encoder texts.txt --out vectors.npy --format e4m3",
    )
    add_model(embed)
    embed.add_argument(
        "sources",
        metavar="FILE_OR_TEXT",
        nargs="+",
        values="file",
        help="a text; or the name of a file of texts, one per line, or in SST-2's layout",
    )
    add_out(
        embed,
        "where to write the vectors in the texts' order: .npy (texts, width) of float32, .jsonl "
        "or .parquet with text and embedding (extra: data)",
    )
    add_golden(embed)
    add_format(embed, default="fp32")
    add_accumulate(embed)
    add_sentence_scales(embed)
    add_sizes(embed)


def _embed(arguments: argparse.Namespace) -> Outcome:
    write = None if arguments.out is None else _writer(arguments.out)
    (recipe,) = accumulated([chosen_recipe(arguments)], arguments)
    texts = _texts(arguments.sources)
    model = load(arguments.model, arguments.revision)
    require_head(model, EMBEDDINGS.head)
    check_scales(arguments, [recipe], stored=isinstance(model, QuantizedModel))
    recipe.check_accumulation(model_sites(model))
    tokenizer = load_tokenizer(arguments.model, arguments.revision)
    encoded = tokenizer.encode(texts, None, arguments.max_length)
    calibration = sentence_scales(arguments, recipe, model, tokenizer)
    quantized = apply_recipe(model, recipe, calibration, arguments.golden)
    with progress_bar(len(texts), "vectors") as advance:
        vectors = embed_encoded(quantized, encoded, arguments.batch_size, advance)
    none = rows_not_finite(vectors)
    if none.any():
        first = int(none.argmax())
        require_finite(f"{model.name}, {recipe.name}: text {first + 1}: vector", vectors[first])
    if write is not None:
        with writing(arguments.out), replaced_file(Path(arguments.out)) as file:
            write(file, texts, vectors)
    report: dict[str, Any] = {
        "model": model.name,
        "format": recipe.name,
        **sums_of(recipe),
        "golden": arguments.golden,
        "texts": len(texts),
        "truncated": sum(one.truncated for one in encoded),
        "width": vectors.shape[1],
    }
    report |= {"embeddings": vectors.tolist()} if write is None else {"out": arguments.out}
    count = counted(len(texts), "text")
    lines = [f"{model.name}, {recipe.name}, {count}, vectors of {vectors.shape[1]} numbers"]
    lines += _beginning(texts, vectors) if write is None else [f"written: {arguments.out}"]
    return Outcome(report, lambda: print_lines(*lines))


def _texts(sources: Sequence[str]) -> list[str]:
    """Return the texts of the arguments; an argument that names a file stands for its texts.

    A word with the ending of a file of texts names one, so that a mistyped name is an error.
    """
    found: list[str] = []
    for source in sources:
        is_file = os.path.exists(source) and not os.path.isdir(source)
        is_file |= source.split() == [source] and source.endswith(_ENDINGS)
        found += read_texts(Path(source)) if is_file else [source]
    return found


def _beginning(texts: Sequence[str], vectors: Float32Array) -> list[str]:
    """Describe the first vectors in lines: their norms and their first numbers."""
    lines = []
    for text, vector in zip(texts[:_TEXTS], vectors, strict=False):
        numbers = "  ".join(f"{x:.4f}" for x in vector[:_NUMBERS].tolist())
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        more = "  ..." if len(vector) > _NUMBERS else ""
        shortened = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
        lines.append(f"norm {norm:.4f}  {numbers}{more}  {shortened}")
    if len(texts) > _TEXTS:
        lines.append(f"and {len(texts) - _TEXTS} more; --out FILE writes all")
    return lines


#: Writes texts and vectors to an open file.
_Writer = Callable[[BinaryIO, Sequence[str], Float32Array], None]


def _writer(out: str) -> _Writer:
    """Return the function that writes a file of this name, by its ending.

    Raises
    ------
    BertNumpyError
        If the ending is unknown, or is Parquet's and pyarrow is not installed.
    """
    suffix = Path(out).suffix
    if suffix not in _WRITERS:
        raise BertNumpyError(f"{out}: expected a name that ends in {', '.join(_WRITERS)}")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401, PLC0415 (an extra)
        except ImportError:
            raise BertNumpyError(
                f"{out}: expected pyarrow, which writes Parquet, found none: "
                "pip install 'fp8-bert-numpy[data]'"
            ) from None
    return _WRITERS[suffix]


def _npy(file: BinaryIO, texts: Sequence[str], vectors: Float32Array) -> None:
    np.save(file, vectors, allow_pickle=False)


def _jsonl(file: BinaryIO, texts: Sequence[str], vectors: Float32Array) -> None:
    for text, vector in zip(texts, vectors, strict=True):  # as doubles, which restore every float32
        file.write(f"{json.dumps({'text': text, 'embedding': vector.tolist()})}\n".encode())


def _parquet(file: BinaryIO, texts: Sequence[str], vectors: Float32Array) -> None:
    import pyarrow  # noqa: PLC0415 (an extra)
    from pyarrow import parquet  # noqa: PLC0415

    numbers = pyarrow.array(vectors.reshape(-1))
    rows = pyarrow.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
    parquet.write_table(pyarrow.table({"text": list(texts), "embedding": rows}), file)


_WRITERS: dict[str, _Writer] = {".npy": _npy, ".jsonl": _jsonl, ".parquet": _parquet}
