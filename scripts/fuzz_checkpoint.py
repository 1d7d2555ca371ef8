"""Damage files in every way known to break readers, and read them: an error, or the truth.

    python scripts/fuzz_checkpoint.py [--cases N] [--seed S] [--first NUMBER]

Each case is a fresh folder with a checkpoint (quantized or not), a calibration, a
recipe, an FP8 file, a tokenizer, a task's data (TSV, JSON Lines, SQuAD's JSON and, with
pyarrow, Parquet) or a kit. One of its files is damaged or replaced. Reading it may have
these outcomes:

    refused   one error of this project, in one line, that names the file
    valid     the file is still (or again) valid, and the values read are those
              that an independent reader finds in it

Anything else is a failure: another exception, a wrong value, an end of the
process, no end within a time limit, or memory beyond a limit. Cases run in
worker processes with these limits. A case depends only on the seed and
its number, and is repeated with ``--first NUMBER --cases 1``.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers

import bert_numpy
from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.checkpoints.quantized import save_quantized
from bert_numpy.kit.compare import verify
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.manifest import MANIFEST, TENSORS, Kit, open_kit, write_kit
from bert_numpy.model.sites import expected_shapes
from bert_numpy.quantization.calibration import calibrate, load_calibration, save_calibration
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.quantization.recipe_json import load_recipe, recipe_json
from bert_numpy.tasks.glue import TASKS, read_examples, read_test_set
from bert_numpy.tasks.squad import read_questions
from npfp8 import E4M3FN, FloatFormat, QuantizedTensor
from npfp8.storage import Fp8Array, load_file, save_file

#: The limits of a worker: bytes of memory beyond those at its start, and seconds per case.
MEMORY_LIMIT = 1 << 30
TIME_LIMIT = 20.0

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "hidden_act": "gelu",
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "negative", "1": "positive"},
}
#: The recipes of quantized checkpoints to damage.
QUANTIZED = ("e4m3", "int8-channel", "nvfp4", "mxfp6", "mxfp8", "w4a16-asym")

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
OLD_DTYPES = frozenset(
    ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32")
) | {"F64", "I64", "U64"}
EMBEDDED = Path(bert_numpy.__file__).parent / "assets" / "bert-tiny-sst2"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcde")]

Rng = random.Random

#: The parts of the operators' kit that together have most kinds of operations.
KIT_PARTS = tuple(
    f"operator/{part}/"
    for part in ("gemm-e4m3", "gemm-uint8-int8", "quantize-uint8", "softmax-n33", "layer_norm")
)

#: Arrow's default memory pool reserves more address space than a worker may have.
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
HAS_PARQUET = importlib.util.find_spec("pyarrow") is not None


# Files before any damage.


def pack(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """Make a safetensors file without padding, so that its data begins at any byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def model_file(dtype: str, names: list[str] | None = None) -> bytes:
    """Make random weights of the small model, all or those of the given names."""
    generator = np.random.default_rng(0)
    header, data = {}, b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(CONFIG))
        shapes = expected_shapes(read_config(path))
    for name, shape in shapes.items():
        values = generator.normal(0, 0.3, shape).astype("<f4")
        if names is not None and name not in names:
            continue
        stored = values.view("<u4") >> 16 if dtype == "BF16" else values
        content = stored.astype(DTYPES[dtype]).tobytes()
        key = name if name.startswith("classifier") else f"bert.{name}"
        offsets = [len(data), len(data) + len(content)]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += content
    return pack(header, data)


def foreign(config: bytes) -> bytes:
    """Make a quantized checkpoint's config like compressed-tensors': without ``npfp8_config``."""
    raw = json.loads(config)
    del raw["npfp8_config"]
    return json.dumps(raw).encode()


def as_parquet(columns: dict[str, Any]) -> bytes:
    from pyarrow import parquet, table  # noqa: PLC0415 (an extra)

    file = io.BytesIO()
    parquet.write_table(table(columns), file)
    return file.getvalue()


def data_files() -> dict[str, dict[str, bytes]]:
    """Make a task's examples in every layout, by target."""
    texts = ["a warm film", 'so "dull"', "caf\u00e9 \U0001f642", "good"]
    rows = {"sentence": texts, "label": [1, 0, 1, 1], "idx": [3, 0, 7, 1]}
    lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    tsv = "".join(f"{row['sentence']}\t{row['label']}\n" for row in lines)
    test = "".join(f"{row['idx']}\t{row['sentence']}\n" for row in lines)
    answer = {"text": "mat", "answer_start": 15}
    context = "The cat on the mat."
    qas = [{"id": f"q{i}", "question": f"Where {i}?", "answers": [answer]} for i in range(3)]
    paragraph = {"context": context, "qas": qas}
    squad = {"version": "1.1", "data": [{"title": "Cats", "paragraphs": [paragraph]}]}
    files = {
        "tsv": {"dev.tsv": f"sentence\tlabel\n{tsv}".encode()},
        "test tsv": {"test.tsv": f"index\tsentence\n{test}".encode()},
        "jsonl": {"dev.jsonl": "".join(json.dumps(row) + "\n" for row in lines).encode()},
        "squad": {"dev-v1.1.json": json.dumps(squad).encode()},
    }
    if HAS_PARQUET:
        answers = [{"text": ["mat"], "answer_start": [15]}] * 3
        names = {"id": ["a", "b", "c"], "question": ["Where?"] * 3, "context": [context] * 3}
        files["parquet"] = {"dev.parquet": as_parquet(rows)}
        files["squad parquet"] = {"dev.parquet": as_parquet({**names, "answers": answers})}
    return files


def small_kit(folder: Path) -> dict[str, bytes]:
    """Write a kit of few tensors, and return its files."""
    whole = make_kit(["operator"])
    names = [name for name in whole.tensors if name.startswith(KIT_PARTS)]
    tensors = {name: whole.tensors[name] for name in names}
    write_kit(Kit(whole.header, tensors, {name: whole.arrays[name] for name in names}), folder)
    return {file: (folder / file).read_bytes() for file in (MANIFEST, TENSORS)}


def templates() -> dict[str, dict[str, bytes]]:
    """Make the files of undamaged folders, by target."""
    config = json.dumps(CONFIG).encode()
    whole = model_file("F32")
    keys = [key.removeprefix("bert.") for key in unpack(whole)[0]]
    halves = [keys[::2], keys[1::2]]
    shards = {name: model_file("F32", half) for name, half in zip(SHARDS, halves, strict=True)}
    weight_map = {key: name for name in SHARDS for key in unpack(shards[name])[0]}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_bytes(config)
        (folder / SINGLE).write_bytes(whole)
        model = bert_numpy.load(folder)
        calibration = calibrate(model, [{"input_ids": [[2, 5, 6, 3]]}])
        save_calibration(calibration, folder / "c")
        quantized = {}
        for recipe, layout in (*((name, "") for name in QUANTIZED), ("nvfp4", "modelopt")):
            made = bert_numpy.apply_recipe(model, PRESETS[recipe], calibration)
            target = f"{layout or 'quantized'} {recipe}"
            save_quantized(made, folder, folder / target, layout=layout or "compressed-tensors")
            quantized[target] = {
                file: (folder / target / file).read_bytes() for file in ("config.json", SINGLE)
            }
        codes = Fp8Array(np.arange(24, dtype=np.uint8).reshape(4, 6), E4M3FN)
        save_file({"w": codes, "s": np.full(4, 0.5, np.float32)}, folder / "f")
        vocabulary = {token: number for number, token in enumerate(TOKENS)}
        tokenizers.BertWordPieceTokenizer(vocabulary).save(str(folder / "t"))
        files = {key: (folder / key).read_bytes() for key in "cft"}
        kit = small_kit(folder / "kit")
    sources = {name: f"quantized {name}" for name in ("e4m3", "nvfp4", "w4a16-asym")}
    sources["modelopt"] = "modelopt nvfp4"
    others = {
        f"foreign {name}": {
            **quantized[source],
            "config.json": foreign(quantized[source]["config.json"]),
        }
        for name, source in sources.items()
    }
    return {
        **{
            f"model {dtype}": {"config.json": config, SINGLE: model_file(dtype)} for dtype in DTYPES
        },
        "shards": {"config.json": config, INDEX: index, **shards},
        **quantized,
        "bert-tiny-sst2": {
            name: (EMBEDDED / name).read_bytes() for name in ("config.json", SINGLE)
        },
        "calibration": {"calibration.safetensors": files["c"]},
        "fp8": {"fp8.safetensors": files["f"]},
        "recipe": {"recipe.json": recipe_json(PRESETS["int8-smooth"]).encode()},
        "tokenizer": {"config.json": config, "tokenizer.json": files["t"]},
        "vocabulary": {"config.json": config, "vocab.txt": "\n".join(TOKENS).encode()},
        **others,
        "kit": kit,
        **data_files(),
    }


# Reading, and comparing with an independent reader.


class WrongValueError(Exception):
    """A value was read that differs from the file."""


def expect(good: bool, what: str) -> None:
    if not good:
        raise WrongValueError(what)


def independent(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Read dtype, shape and bytes of each tensor, by the safetensors library if it can."""
    content = path.read_bytes()
    header, data = unpack(content)
    header.pop("__metadata__", None)
    if not {info["dtype"] for info in header.values()} <= OLD_DTYPES:
        return {
            key: (info["dtype"], info["shape"], data[slice(*info["data_offsets"])])
            for key, info in header.items()
        }
    found = safetensors.deserialize(content)
    return {key: (str(x["dtype"]), list(x["shape"]), bytes(x["data"])) for key, x in found}


def as_float32(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    stored = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def read_model(folder: Path) -> None:
    model = bert_numpy.load(folder)
    files = [folder / SINGLE]
    if not files[0].exists():
        weight_map = json.loads((folder / INDEX).read_bytes())["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
    stored = {}
    for file in files:
        for key, tensor in independent(file).items():
            name = key.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
            stored[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    for name, weight in model.weights.items():
        expect(np.array_equal(np.asarray(weight), as_float32(*stored[name])), f"weight {name}")
    raw = json.loads((folder / "config.json").read_bytes())
    defaults = {"hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2}
    for key in CONFIG.keys() - {"architectures", "model_type", "id2label", "layer_norm_eps"}:
        expect(getattr(model.config, key) == raw.get(key, defaults.get(key)), f"config {key}")
    with np.errstate(all="ignore"):
        model([[0, min(1, model.config.vocab_size - 1)]])


def read_quantized(folder: Path) -> None:
    """Check that codes and scales are the file's, and that scales are positive and normal."""
    model = bert_numpy.load(folder)
    tensors = independent(folder / SINGLE)
    stored = {key.removeprefix("bert."): tensor for key, tensor in tensors.items()}
    tiny = np.finfo(np.float32).tiny
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor) and weight.block_format is not None:
            check_blocks(key, weight, stored)
            continue
        if isinstance(weight, QuantizedTensor) and f"{key}_packed" in stored:
            check_packed(key, weight, stored)
            continue
        dtype, shape, data = stored[key]
        if not isinstance(weight, QuantizedTensor):
            expect(np.array_equal(np.asarray(weight), as_float32(dtype, shape, data)), key)
            continue
        expect(weight.codes.tobytes() == data, f"codes of {key}")
        expect(list(weight.shape) == shape, f"shape of {key}")
        scale = stored[f"{key}_scale"]
        given = as_float32(*scale)
        expect(weight.scale.tobytes() == given.tobytes(), f"scale of {key}")
        expect(bool(np.isfinite(given).all() and (given >= tiny).all()), f"scale of {key}")
    with np.errstate(all="ignore"):
        model([[0, min(1, model.config.vocab_size - 1)]])


def check_packed(
    key: str, weight: QuantizedTensor, stored: dict[str, tuple[str, list[int], bytes]]
) -> None:
    """Check that packed codes of 4 bits, their scales and their zero points are the file's."""
    rows, columns = weight.shape

    def nibbles(name: str, lines: int, count: int) -> np.ndarray:
        words = np.frombuffer(stored[name][2], "<u4").reshape(lines, -1)
        return (words[..., None] >> np.arange(0, 32, 4) & 15).reshape(lines, -1)[:, :count]

    half = 8 * (weight.codes.dtype == np.int8)
    expect(np.array_equal(nibbles(f"{key}_packed", rows, columns), weight.codes + half), key)
    data = stored[f"{key}_shape"][2]
    shape = np.frombuffer(data, "<i8" if len(data) == 16 else "<i4").tolist()
    expect(shape == [rows, columns], f"shape of {key}")
    given = as_float32(*stored[f"{key}_scale"])
    expect(weight.scale.tobytes() == given.tobytes(), f"scale of {key}")
    tiny = np.finfo(np.float32).tiny
    expect(bool(np.isfinite(given).all() and (given >= tiny).all()), f"scale of {key}")
    if weight.zero_point is not None:
        _, (lines, groups), data = stored[f"{key}_zero_point"]
        words = np.frombuffer(data, "<u4").reshape(lines, groups)
        zeros = (words[:, None] >> np.arange(0, 32, 4)[:, None] & 15).reshape(-1, groups)
        expect(np.array_equal(zeros[:rows], weight.zero_point.reshape(rows, groups)), key)


def check_blocks(
    key: str, weight: QuantizedTensor, stored: dict[str, tuple[str, list[int], bytes]]
) -> None:
    """Check that the codes of a weight and of its scales, and its number, are the file's."""
    fmt = weight.block_format
    assert fmt is not None
    bits = fmt.element.bits if isinstance(fmt.element, FloatFormat) else 8
    _, shape, data = stored.get(f"{key}_packed") or stored[key]
    rows, columns = weight.shape
    expect(shape == [rows, columns * bits // 8], f"shape of {key}")
    size = len(data) // rows
    for row, codes in enumerate(weight.codes.view(np.uint8).tolist()):
        number = int.from_bytes(data[row * size : (row + 1) * size], "little")
        expect(number == sum(x << bits * i for i, x in enumerate(codes)), f"codes of {key}")
    scales = stored[f"{key}_scale"][2]
    expect(weight.scale_codes is not None and weight.scale_codes.tobytes() == scales, "scales")
    expect(bool(np.isfinite(weight.scale).all() and (weight.scale >= 0).all()), f"scale of {key}")
    if weight.tensor_scale is None:
        return
    number_of = np.float64(weight.tensor_scale)
    kind = getattr(fmt.how, "stored", "")
    divisor = {"absmax": 2688 / number_of, "divisor": number_of}.get(kind, 1 / number_of)
    inverse = f"{key}_scale_2" in stored
    given = as_float32(*stored[f"{key}_scale_2" if inverse else f"{key}_global_scale"])
    expect(bool(given > 0) and given == np.float32(1 / divisor if inverse else divisor), "number")


def read_calibration(folder: Path) -> None:
    path = folder / "calibration.safetensors"
    calibration = load_calibration(path)
    stored = independent(path)
    for name, seen in calibration.operands.items():
        low, high, *averages = np.frombuffer(stored[f"{name}/range"][2], "<f8").tolist()
        expect((seen.low, seen.high) == (low, high), f"{name}/range")
        expect([seen.average_low, seen.average_high] == averages, f"{name}/range")
        bits = np.frombuffer(stored[f"{name}/bits"][2], "<u2")
        counts = np.frombuffer(stored[f"{name}/counts"][2], "<i8")
        expect(bool((seen.histogram[bits] == counts).all()), f"{name}/counts")
        expect(int(seen.histogram.sum()) == int(counts.sum()), f"{name}/counts")
    for site, largest in calibration.channels.items():
        expect(largest.tobytes() == stored[f"{site}/channels"][2], f"{site}/channels")
    expect(all(math.isfinite(seen.low) for seen in calibration.operands.values()), "NaN")


def read_fp8(folder: Path) -> None:
    path = folder / "fp8.safetensors"
    found, stored = load_file(path), independent(path)
    expect(found.keys() == stored.keys(), "keys")
    for key, tensor in found.items():
        array = tensor.codes if isinstance(tensor, Fp8Array) else tensor
        expect(array.tobytes() == stored[key][2], f"tensor {key}")
        expect(list(array.shape) == stored[key][1], f"shape of {key}")
    codes, scale = found.get("w"), found.get("s")
    if isinstance(codes, Fp8Array) and isinstance(scale, np.ndarray):
        try:
            tensor = QuantizedTensor(codes.codes, scale, codes.fmt, axis=0)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None
        expect(bool((tensor.scale > 0).all() and np.isfinite(tensor.scale).all()), "scale")


def read_recipe(folder: Path) -> None:
    path = folder / "recipe.json"
    recipe = json.loads(recipe_json(load_recipe(path)))

    def contains(all_: Any, given: Any) -> bool:
        if isinstance(given, dict):
            return all(contains(all_[key], value) for key, value in given.items())
        if isinstance(given, list):
            return len(all_) == len(given) and all(map(contains, all_, given))
        return type(all_) is type(given) and bool(all_ == given)

    expect(contains(recipe, json.loads(path.read_bytes())), "a setting")


def read_tokenizer(folder: Path) -> None:
    tokenizer = bert_numpy.load_tokenizer(folder)
    size = json.loads((folder / "config.json").read_bytes())["vocab_size"]
    try:
        encoded = tokenizer.encode(["abc j", "\u00e9 b"], ["a", "b"])
    except bert_numpy.BertNumpyError:  # a valid tokenizer may refuse these texts
        return
    ids = [number for item in encoded for number in item.input_ids]
    expect(all(0 <= number < size for number in ids), "token ids")


def plain_rows(path: Path) -> list[dict[str, Any]]:
    """Read a data file's rows by Python's json, by splitting lines, or by pyarrow alone."""
    if path.suffix == ".parquet":
        from pyarrow import parquet  # noqa: PLC0415 (an extra)

        wanted = ["sentence", "label", "id", "question", "context", "answers"]
        names = [name for name in parquet.read_schema(path).names if name in wanted]
        return [dict(row) for row in parquet.read_table(path, columns=names).to_pylist()]
    lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in lines]
    header, *rows = (line.split("\t") for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_task_data(path: Path) -> None:
    examples = read_examples(path, TASKS["sst2"])
    rows = plain_rows(path)
    names = TASKS["sst2"].labels
    expect(examples.texts == [row["sentence"] for row in rows], "a text")
    labels = [names.index(row["label"]) if row["label"] in names else row["label"] for row in rows]
    expect(examples.labels.tolist() == list(map(int, labels)), "a label")


def read_unlabelled(folder: Path) -> None:
    path = folder / "test.tsv"
    found = read_test_set([path], TASKS["sst2"])
    rows = plain_rows(path)
    expect(found.texts == [row["sentence"] for row in rows], "a text")
    number = next((name for name in ("index", "id", "idx") if name in rows[0]), next(iter(rows[0])))
    expect(list(found.ids) == [row[number] for row in rows], "a number")
    expect(len({int(name) for name in found.ids}) == len(rows), "a number twice")


def read_squad(path: Path) -> None:
    found = read_questions(path).items
    if path.suffix == ".parquet":
        rows = plain_rows(path)
        expected = [(row["id"], row["question"], row["context"]) for row in rows]
    else:
        articles = json.loads(path.read_bytes())["data"]
        expected = [
            (node["id"], node["question"], paragraph["context"])
            for article in articles
            for paragraph in article["paragraphs"]
            for node in paragraph["qas"]
        ]
    expect([(item.id, item.question, item.context) for item in found] == expected, "a question")
    for item in found:
        expect(all(text in item.context for text in item.answers), "an answer")


def read_kit(folder: Path) -> None:
    """Check that a kit has its files' values, and compare a candidate with it by every profile."""
    kit = open_kit(folder)
    stored = independent(folder / TENSORS)
    for name, tensor in kit.tensors.items():
        bits = kit.arrays[name]
        if tensor.kind == "bfloat16":
            bits = (bits.view(np.uint32) >> 16).astype(np.uint16)
        expect(bits.tobytes() == stored[name][2], f"tensor {name}")
    candidate = {name: x for name, x in kit.arrays.items() if kit.tensors[name].kind == "codes"}
    last = [name for name in kit.arrays if kit.tensors[name].operation != "given"][-1:]
    candidate |= {
        name: kit.arrays[name] + kit.arrays[name].dtype.type(1)
        for name in last
        if kit.tensors[name].kind != "codes"
    }
    if not candidate:
        return
    with np.errstate(all="ignore"):
        for profile in ("bit-exact", "accumulate-order", "statistical"):
            verify(kit, candidate, profile)


READERS: dict[str, Callable[[Path], None]] = {
    "tsv": lambda folder: read_task_data(folder / "dev.tsv"),
    "jsonl": lambda folder: read_task_data(folder / "dev.jsonl"),
    "parquet": lambda folder: read_task_data(folder / "dev.parquet"),
    "test tsv": read_unlabelled,
    "squad": lambda folder: read_squad(folder / "dev-v1.1.json"),
    "squad parquet": lambda folder: read_squad(folder / "dev.parquet"),
    "kit": read_kit,
    **{f"foreign {name}": read_quantized for name in ("e4m3", "nvfp4", "w4a16-asym", "modelopt")},
    **{f"quantized {recipe}": read_quantized for recipe in QUANTIZED},
    "modelopt nvfp4": read_quantized,
    "calibration": read_calibration,
    "fp8": read_fp8,
    "recipe": read_recipe,
    "tokenizer": read_tokenizer,
    "vocabulary": read_tokenizer,
}


# Damage. Each function takes the content of a file, or its path, and a random generator.


def some_bytes(rng: Rng, content: bytes, first: int, last: int) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(first, max(last, first + 1))] = rng.randrange(256)
    return bytes(damaged)


def any_truncated(rng: Rng, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def any_extended(rng: Rng, content: bytes) -> bytes:
    return content + rng.randbytes(rng.randint(1, 64))


def any_empty(rng: Rng, content: bytes) -> bytes:
    return b""


def any_noise(rng: Rng, content: bytes) -> bytes:
    return rng.randbytes(rng.randrange(200))


def any_flipped(rng: Rng, content: bytes) -> bytes:
    return some_bytes(rng, content, 0, len(content))


def st_header_flipped(rng: Rng, content: bytes) -> bytes:
    return some_bytes(rng, content, 8, 8 + struct.unpack("<Q", content[:8])[0])


def st_data_flipped(rng: Rng, content: bytes) -> bytes:
    return some_bytes(rng, content, 8 + struct.unpack("<Q", content[:8])[0], len(content))


def st_header_length(rng: Rng, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    near = [length - 1, length + 1, length + 8, len(content) - 8, len(content) - 7]
    far = [0, 1, 2, 99_999_999, 100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    return struct.pack("<Q", rng.choice(near + far)) + content[8:]


def st_declares_100_mb(rng: Rng, content: bytes) -> bytes:
    """Write a long header in full: zeros, spaces, or one string."""
    size = rng.choice([99_999_999, 100_000_000, 100_000_001])
    filling = rng.choice([b"\0", b" ", b"{" + b" " * 999, b'{"' + b"a" * 998])
    return struct.pack("<Q", size) + (filling * (size // len(filling) + 1))[:size]


def change_entry(
    change: Callable[[Rng, dict[str, Any], str, dict[str, Any]], None],
) -> Callable[[Rng, bytes], bytes]:
    """Make a damage to one tensor's entry of a header, or to the header through it."""

    def damage(rng: Rng, content: bytes) -> bytes:
        header, data = unpack(content)
        key = rng.choice([key for key in header if key != "__metadata__"])
        change(rng, header, key, header[key])
        return pack(header, data)

    return damage


def _offsets(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    place = rng.randrange(2)
    value = info["data_offsets"][place]
    choices = [value + 4, value - 4, 0, -1, 2**32, 2**63, 2**64, 10**30, value + 0.5, "0", None]
    info["data_offsets"][place] = rng.choice(choices)


def _offsets_moved(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    by = rng.choice([-8, -4, -1, 1, 4, 8, 1 << 20, 2**63])
    info["data_offsets"] = [offset + by for offset in info["data_offsets"]]


def _offsets_shared(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    other = rng.choice([name for name in header if name != "__metadata__"])
    info["data_offsets"] = header[other]["data_offsets"]


def _offsets_reversed(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    info["data_offsets"] = info["data_offsets"][::-1]


def _dtype(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    known = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64"]
    others = ["F8_E8M0", "F4", "f32", "", "F" * 100_000, None, 3, [], {}, {"F32": None}]
    info["dtype"] = rng.choice(known + others)


def _dtype_of_the_same_size(
    rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]
) -> None:
    same = {"F32": ["I32", "U32"], "F16": ["BF16", "I16"], "BF16": ["F16", "U16"]}
    same |= {"F8_E4M3": ["U8", "BOOL", "F8_E5M2", "F8_E8M0"], "F64": ["I64", "U64", "C64"]}
    info["dtype"] = rng.choice(same.get(info["dtype"], ["F64"]))


def _shape(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    shape = info["shape"]
    changes = [
        shape[::-1],
        [*shape, 1],
        [1, *shape],
        [math.prod(shape)],
        [*shape, 0],
        [*shape, 2**62, 2**62, 0],
        [*shape, 2**63],
        [-length for length in shape],
        [float(length) for length in shape],
        [*shape[:-1], True],
        [10**30],
        [*shape] + [1] * rng.choice([29, 31, 32, 33, 64, 65, 1000]),
        [2**63] * 1000,
        [99999999999999999999] * 100_000,
        [],
        None,
        {},
        "4",
    ]
    info["shape"] = rng.choice(changes)


def _entry(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    whole = [info["dtype"], info["shape"], info["data_offsets"]]
    header[key] = rng.choice([whole, None, 1, "x", [], {}, {**info, "more": 1}, [[]] * 100_000])


def _entry_part(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    del info[rng.choice(list(info))]


def _key_gone(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    del header[key]


def _key_renamed(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    others = [name for name in header if name != key]
    names = ["", "x", "k" * 100_000, "\0", "\u202e", f"bert.{key}", key.upper(), *others[:3]]
    header[rng.choice(names)] = header.pop(key)


def _metadata(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    values = [1, None, [], {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": "b"}, "x" * 100_000]
    header["__metadata__"] = rng.choice(values)


def _metadata_of_calibration(
    rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]
) -> None:
    values = ["", "0", "-1", "1" * 5000, "\u0661", "1.0", "true", "x", " 3", "9" * 19]
    header.setdefault("__metadata__", {})[rng.choice(["format", "samples", "golden"])] = rng.choice(
        values
    )


def _unread(rng: Rng, header: dict[str, Any], key: str, info: dict[str, Any]) -> None:
    """Add an empty tensor whose dtype is new or has no name yet."""
    dtypes = ["F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F128", "I4", "f\u0000"]
    end = max(other["data_offsets"][1] for name, other in header.items() if name != "__metadata__")
    header["unread"] = {"dtype": rng.choice(dtypes), "shape": [0], "data_offsets": [end, end]}


def st_duplicate_key(rng: Rng, content: bytes) -> bytes:
    header, data = unpack(content)
    key = rng.choice(list(header))
    changed = header[key]
    if rng.random() < 0.5 and key != "__metadata__":
        changed = {**header[key], "shape": header[key]["shape"][::-1]}
    again = f"{{{json.dumps(key)}:{json.dumps(changed)},".encode()
    return pack(again + json.dumps(header)[1:].encode(), data)


def json_bomb(rng: Rng, content: bytes) -> bytes:
    """Write deep, long, or large JSON, alone or in place of something."""
    size = rng.choice([100, 1000, 100_000, 3_000_000])
    return rng.choice(
        [
            b'{"a":' * size,
            b"[" * size,
            b'{"a":' + b"[" * size + b"]" * size + b"}",
            b'{"a":' + b"9" * size + b"}",
            b'{"a":{"dtype":"F32","shape":[' + b"9" * size + b'],"data_offsets":[0,4]}}',
            b'{"a":-' + b"9" * size + b"e" + b"9" * 100 + b"}",
            b'{"' + b"a" * size + b'":1}',
            b'{"a":"' + b"\\u0000" * size + b'"}',
            b'{"a":[' + b"[]," * size + b"1]}",
            b"{" + b'"a":1,' * size + b'"a":1}',
            b"{" + b",".join(b'"%d":0' % i for i in range(min(size, 200_000))) + b',"0":1}',
            b'{"a": NaN, "b": Infinity}',
            b'{"a": "\\ud800"}',
            b"{" + b" " * size + b"}",
        ]
    )


def json_bomb_of_safetensors(rng: Rng, content: bytes) -> bytes:
    return pack(json_bomb(rng, content), unpack(content)[1])


def json_not_utf8(rng: Rng, content: bytes) -> bytes:
    place = rng.choice([i for i, byte in enumerate(content) if byte == ord('"')]) + 1
    return content[:place] + rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80"]) + content[place:]


def json_marked(rng: Rng, content: bytes) -> bytes:
    return rng.choice(
        [b"\xef\xbb\xbf" + content, content.decode().encode("utf-16"), b"\0" + content]
    )


#: Values that replace any value in JSON.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 10**9, 2**63, 2**64, 10**400, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", "0", "x", "x" * 1_000_000, [], {}, [[]], {"0": "a"}),
    *([0] * 10_000, {"1": "a"}, {"0": {}, "1": []}, ["a", "b"], "gelu", "../x", "E4M3FN", "INT8"),
]


def json_value(rng: Rng, content: bytes) -> bytes:
    """Replace, add or remove a value at any depth."""
    value = json.loads(content)
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            break
        key = rng.choice(list(keys))
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        what = rng.random()
        if what < 0.8:
            node[key] = rng.choice(VALUES)
        elif what < 0.9:
            del node[key]
        elif isinstance(node, dict):
            node[rng.choice(["", "x", "name", "dtype"])] = node[key]
        break
    return json.dumps(value).encode()


def json_duplicate_key(rng: Rng, content: bytes) -> bytes:
    value = json.loads(content)
    key = rng.choice(list(value))
    again = f"{{{json.dumps(key)}:{json.dumps(rng.choice([*VALUES[:15], value[key]]))},".encode()
    return again + json.dumps(value)[1:].encode()


def quantization_value(rng: Rng, content: bytes) -> bytes:
    """Replace a value in the section on quantization, by one of some release or by any."""
    raw = json.loads(content)
    config = raw["quantization_config"]
    group = config["config_groups"]["group_0"]
    weights = group["weights"]
    node = rng.choice([config, group, weights, group["input_activations"] or weights])
    odd = [None, {}, [], "", "auto", 2**31, 10**30, -1, [2**31 - 1, 1], "8x8", True, 0.5]
    known = ["frozen", "dense", {"format": "dense"}, "static", "channel", "token", "torch.uint8"]
    known += [4, 8, 64, 128, "group", "pack-quantized"]
    keys = ["observer", "scale_dtype", "actorder", "block_structure", "sparsity_config", "x"]
    node[rng.choice([*node, *keys])] = rng.choice([*odd, *known])
    if rng.random() < 0.3:
        raw["compression_config"] = raw.pop("quantization_config")
    if rng.random() < 0.3:
        raw["num_hidden_layers"] = rng.choice([2, 100, 10**9, 10**30])
    return json.dumps(raw).encode()


def modelopt_value(rng: Rng, content: bytes) -> bytes:
    """Replace a value in ModelOpt's section, or make it describe each layer."""
    raw = json.loads(content)
    config = raw["quantization_config"]
    odd = [
        None,
        {},
        [],
        "",
        16,
        32,
        16.0,
        True,
        "NVFP4_AWQ",
        "nvfp4",
        "FP8",
        "mxfp4",
        "W4A16_NVFP4",
    ]
    names = ["*", "**", "*" * 900 + "x", "bert.*", "classifier", "(", "re:.*", "\u0000", "a.b*c"]
    keys = ["quant_algo", "group_size", "ignore", "kv_cache_scheme", "pre_quant_scale", "x"]
    chance = rng.random()
    if chance < 0.4:
        config["ignore"] = [rng.choice(names) for _ in range(rng.choice([1, 3, 1000]))]
    elif chance < 0.7:
        layer = {"quant_algo": rng.choice(odd), "group_size": rng.choice(odd)}
        layers = dict.fromkeys(("classifier", "bert.pooler.dense", "x"), layer)
        config.update(quant_algo="MIXED_PRECISION", quantized_layers=rng.choice([layers, *odd]))
    else:
        config[rng.choice([*config, *keys])] = rng.choice(odd)
    return json.dumps(raw).encode()


def quantization_pattern(rng: Rng, content: bytes) -> bytes:
    """Write patterns that are invalid, that Python matches forever, or that hold anything."""
    raw = json.loads(content)
    config = raw["quantization_config"]
    pieces = [
        "(.*)*",
        "(a|a)*",
        "(\\w{1,9}){9}",
        ".*",
        "(?=",
        "(?!",
        "(",
        ")",
        "[",
        "]",
        "\\1",
        "$",
    ]
    pieces += ["{99999}", "{2,1}", "+", "?", "|", "bert", "\\.", "(?P<x>", "\\", "\u0000", "layer"]
    patterns = [
        "re:" + "".join(rng.choice(pieces) for _ in range(rng.choice([1, 3, 9, 100, 500])))
        for _ in range(rng.choice([1, 1, 10, 1000]))
    ]
    where = rng.choice([config, config["config_groups"]["group_0"]])
    key = "ignore" if where is config else "targets"
    where[key] = patterns + where[key] if rng.random() < 0.5 else patterns
    return json.dumps(raw).encode()


#: Texts that replace a cell of a data file, or any value there.
CELLS = [
    *("", " ", "\0", "\x01\x02", "\u200b", "\ud800", "\t", "a\tb", "\r", "\u2028", "\ufeff"),
    *("x" * 100_000, "1" * 5000, "0", "1", "01", "-1", "1.0", "\u0661", "nan", "positive", "7\n3"),
]


def text_cell(rng: Rng, content: bytes) -> bytes:
    """Replace, add or remove a cell in a line of a TSV file, or repeat a line."""
    lines = [line.split("\t") for line in content.decode().split("\n")]
    line = rng.choice(lines)
    place = rng.randrange(len(line))
    change = rng.random()
    if change < 0.6:
        line[place] = rng.choice(CELLS)
    elif change < 0.7:
        line.insert(place, rng.choice([*CELLS, *lines[0]]))
    elif change < 0.8:
        del line[place]
    else:
        lines.insert(rng.randrange(len(lines)), list(line))
    text = "\n".join("\t".join(line) for line in lines)
    return text.encode(rng.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]), "surrogatepass")


def json_line(rng: Rng, content: bytes) -> bytes:
    """Replace a value or a key in a line of JSON Lines, or damage the line like any JSON."""
    lines = content.rstrip(b"\n").split(b"\n")
    place = rng.randrange(len(lines))
    row = json.loads(lines[place])
    if rng.random() < 0.5:
        row[rng.choice([*row, "x"])] = rng.choice([*CELLS, *VALUES])
        lines[place] = json.dumps(row).encode()
    else:
        damage = rng.choice([json_bomb, json_not_utf8, json_value, json_duplicate_key])
        lines[place] = damage(rng, lines[place])
    return b"\n".join(lines)


def parquet_column(rng: Rng, content: bytes) -> bytes:
    """Write columns of other types, of other lengths, or of values that Python cannot hold."""
    import pyarrow  # noqa: PLC0415 (an extra)
    from pyarrow import parquet  # noqa: PLC0415 (an extra)

    found = parquet.read_table(io.BytesIO(content))
    count = len(found)
    large = 2**62 + 1
    broken = pyarrow.array([b"\xff\xfe"] * count, pyarrow.binary())
    values = [
        pyarrow.array([large] * count, pyarrow.timestamp("ns")),
        pyarrow.array([large] * count, pyarrow.timestamp("ms", tz="UTC")),
        pyarrow.array([large] * count, pyarrow.duration("ns")),
        pyarrow.array([2**31 - 1] * count, pyarrow.date32()),
        pyarrow.array([large] * count, pyarrow.uint64()),
        pyarrow.array([1] * count).cast(pyarrow.decimal128(38, 2)),
        pyarrow.array([b"x"] * count),
        pyarrow.array([None] * count, rng.choice([pyarrow.null(), pyarrow.string()])),
        pyarrow.Array.from_buffers(pyarrow.string(), count, broken.buffers()),
        pyarrow.array([[("a", 1)]] * count, pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        pyarrow.array([[["x"]]] * count),
        pyarrow.array([{"a": 1}] * count),
        pyarrow.array([float("nan")] * count),
        pyarrow.array([True] * count),
        pyarrow.array(["x" * 1_000_000] * count).dictionary_encode(),
        pyarrow.array(["\0"] * count),
        pyarrow.array(["x"] * count, pyarrow.large_string()),
    ]
    names, columns = list(found.column_names), list(found.columns)
    place = rng.randrange(len(names))
    change = rng.random()
    if change < 0.5:
        columns[place] = rng.choice(values)
    elif change < 0.8:
        names.append(rng.choice(["x", names[place], ""]))
        columns.append(rng.choice(values))
    elif change < 0.9:
        del names[place], columns[place]
    else:
        rows = rng.choice([100_000, 2_000_000])
        names, columns = names[:1], [pyarrow.array(["same"] * rows)]
    file = io.BytesIO()
    table = pyarrow.Table.from_arrays(columns, names=names)
    parquet.write_table(table, file, use_dictionary=rng.random() < 0.8)
    return file.getvalue()


def kit_entry(rng: Rng, content: bytes) -> bytes:
    """Change an operation, input, attribute or kind of a kit's tensor, or move entries."""
    manifest = json.loads(content)
    entries = manifest["tensors"]
    entry = rng.choice(entries)
    key = rng.choice(["operation", "inputs", "attributes", "kind", "fmt", "order", "name", "level"])
    other = rng.choice(entries)
    if key == "order":
        rng.shuffle(entries)
    elif isinstance(entry.get(key), dict) and entry[key] and rng.random() < 0.8:
        inner = entry[key]
        name = rng.choice(list(inner))
        views = ["transposed", "split_heads:0", "split_heads:2", "merge_heads", "first_row", "x:9"]
        given = [[other["name"], rng.choice(views)], other["name"], entry["name"], 2, -1, 10**9]
        odd = ["E4M3FN", "INT8", "gelu", "float32", {"fmt": "E5M2", "ndim": 2}, {"fmt": "E4M3FN"}]
        value = rng.choice([*given, *odd, None, float("nan"), 10**400, "", {}, [], True])
        if rng.random() < 0.2:
            del inner[name]
        elif isinstance(inner[name], dict) and rng.random() < 0.7:
            inner[name][rng.choice(["fmt", "ndim", "axis", "block"])] = value
        else:
            inner[rng.choice([name, "axis", "block", "bias", "accumulate", "x"])] = value
    else:
        entry[key] = rng.choice([other.get(key), entry["name"], "codes", "E4M3FN", "sum", None, {}])
    return json.dumps(manifest).encode()


def index_shard(rng: Rng, content: bytes) -> bytes:
    """Replace a shard's name; files above and beside the folder wait to be found."""
    index = json.loads(content)
    weight_map = index["weight_map"]
    names = [
        *("../outside.safetensors", "/outside.safetensors", "sub/inside.safetensors", "..", "."),
        *("./" + SHARDS[0], SHARDS[0] + "/", "..\\outside.safetensors", "C:x", "", "\0", "a\0b"),
        *("missing.safetensors", "x" * 300, INDEX, "config.json", SHARDS[0], SHARDS[1], None, 3),
        *([], {}, ["x"], "~/x", "$HOME", "%2e%2e/outside.safetensors", "pipe", "folder", "\ud800"),
    ]
    weight_map[rng.choice(list(weight_map))] = rng.choice(names)
    return json.dumps(index).encode()


def index_key(rng: Rng, content: bytes) -> bytes:
    index = json.loads(content)
    weight_map = index["weight_map"]
    key = rng.choice(list(weight_map))
    choices: list[Callable[[], Any]] = [
        lambda: weight_map.pop(key),
        lambda: weight_map.update({f"{key}.x": SHARDS[0]}),
        lambda: index.update(weight_map=rng.choice(VALUES)),
        lambda: index.pop("weight_map"),
    ]
    rng.choice(choices)()
    return json.dumps(index).encode()


def numbers(
    dtypes: tuple[str, ...], values: list[float], ending: str = ""
) -> Callable[[Rng, bytes], bytes]:
    """Make a damage that writes impossible numbers into a tensor by its dtype and name's ending."""

    def damage(rng: Rng, content: bytes) -> bytes:
        header, data = unpack(content)
        fitting = [
            info
            for key, info in header.items()
            if key != "__metadata__"
            and key.endswith(ending)
            and info["dtype"] in dtypes
            and math.prod(info["shape"])
        ]
        info = rng.choice(fitting)
        begin, end = info["data_offsets"]
        value = rng.choice(values)
        if info["dtype"] == "BF16":
            piece = np.array([value], "<f4").tobytes()[2:]
        else:
            piece = np.array([value], {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[info["dtype"]])
        size = len(bytes(piece))
        place = begin + size * rng.randrange((end - begin) // size)
        return pack(header, data[:place] + bytes(piece) + data[place + size :])

    return damage


NOT_FINITE = [math.nan, math.inf, -math.inf]
BAD_SCALES = [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-45, -1e-45]

ANY = [any_truncated, any_extended, any_empty, any_noise, any_flipped]


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__name__ = name
    return function


SAFETENSORS = [
    *ANY,
    st_header_flipped,
    st_data_flipped,
    st_header_length,
    st_duplicate_key,
    named(json_bomb_of_safetensors, "header_bomb"),
    *(
        named(change_entry(change), f"st{change.__name__}")
        for change in (
            *(_offsets, _offsets_moved, _offsets_shared, _offsets_reversed, _dtype),
            *(_dtype_of_the_same_size, _shape, _entry, _entry_part, _key_gone, _key_renamed),
            *(_metadata, _unread),
        )
    ),
]
JSON = [*ANY, json_bomb, json_not_utf8, json_marked, json_value, json_value, json_duplicate_key]
WEIGHTS = [*SAFETENSORS, named(numbers(tuple(DTYPES), NOT_FINITE), "nan_or_infinite_weight")]
TEXT = [*ANY, named(lambda rng, content: content + b"\xff\xfe", "not_utf8")]
RARE = [st_declares_100_mb]

bad_scale = named(numbers(("F32",), BAD_SCALES, "_scale"), "bad_scale")
bad_number = named(numbers(("F32",), BAD_SCALES, "_global_scale"), "bad_number")
bad_multiplier = named(numbers(("F32",), BAD_SCALES, "_scale_2"), "bad_multiplier")

#: By target: the file to damage, and the ways to do so.
DAMAGE: list[tuple[str, str, list[Callable[[Rng, bytes], bytes]]]] = [
    *((f"model {dtype}", SINGLE, WEIGHTS) for dtype in DTYPES),
    ("model F32", "config.json", JSON),
    ("shards", INDEX, [*JSON, index_shard, index_shard, index_key]),
    ("shards", SHARDS[1], WEIGHTS),
    ("bert-tiny-sst2", SINGLE, WEIGHTS),
    *(
        (f"quantized {recipe}", SINGLE, [*WEIGHTS, bad_scale, bad_scale])
        for recipe in ("e4m3", "int8-channel")
    ),
    *((f"quantized {recipe}", "config.json", JSON) for recipe in QUANTIZED),
    *((f"quantized {recipe}", SINGLE, WEIGHTS) for recipe in ("mxfp6", "mxfp8")),
    ("quantized w4a16-asym", SINGLE, [*WEIGHTS, bad_scale]),
    ("foreign w4a16-asym", SINGLE, [*WEIGHTS, bad_scale]),
    ("foreign w4a16-asym", "config.json", [*JSON, quantization_value]),
    ("quantized nvfp4", SINGLE, [*WEIGHTS, *[bad_number] * 3]),
    ("foreign nvfp4", SINGLE, [*WEIGHTS, *[bad_number] * 3]),
    ("foreign nvfp4", "config.json", [*JSON, quantization_value, quantization_pattern]),
    ("modelopt nvfp4", SINGLE, [*WEIGHTS, bad_multiplier]),
    ("foreign modelopt", SINGLE, [*WEIGHTS, bad_multiplier]),
    ("foreign modelopt", "config.json", [*JSON, *[modelopt_value] * 3]),
    (
        "calibration",
        "calibration.safetensors",
        [
            *SAFETENSORS,
            named(numbers(("F32", "F64"), BAD_SCALES), "bad_range"),
            named(change_entry(_metadata_of_calibration), "calibration_metadata"),
        ],
    ),
    (
        "fp8",
        "fp8.safetensors",
        [*SAFETENSORS, named(numbers(("F32",), BAD_SCALES), "bad_scale")],
    ),
    ("recipe", "recipe.json", JSON),
    ("tokenizer", "tokenizer.json", JSON),
    ("vocabulary", "vocab.txt", TEXT),
    ("tokenizer", "config.json", JSON),
    *[("foreign e4m3", "config.json", [*JSON, quantization_value, quantization_pattern])] * 2,
    ("kit", MANIFEST, [*JSON, *[kit_entry] * 12]),
    ("kit", TENSORS, SAFETENSORS),
    ("tsv", "dev.tsv", [*TEXT, *[text_cell] * 4]),
    ("test tsv", "test.tsv", [*TEXT, *[text_cell] * 4]),
    ("jsonl", "dev.jsonl", [*TEXT, *[json_line] * 4]),
    ("squad", "dev-v1.1.json", JSON),
]
if HAS_PARQUET:
    DAMAGE += [
        ("parquet", "dev.parquet", [*ANY, *[parquet_column] * 5]),
        ("squad parquet", "dev.parquet", [*ANY, *[parquet_column] * 5]),
    ]


def place_pipe(path: Path) -> None:
    os.mkfifo(path)


def place_folder(path: Path) -> None:
    path.mkdir()


def place_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def place_null(path: Path) -> None:
    path.symlink_to("/dev/null")


def place_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def place_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def place_link_to_folder(path: Path) -> None:
    path.symlink_to("/")


def place_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLACES = [
    *(place_pipe, place_folder, place_zeros, place_null, place_dangling_link, place_link_loop),
    *(place_link_to_folder, place_sparse),
]


def make_case(seed: int, number: int, base: Path, all_: dict[str, dict[str, bytes]]) -> list[str]:
    """Write the folder of a case, and return its target and the name of its damage."""
    rng = random.Random(f"{seed}-{number}")
    target, file, damages = rng.choice(DAMAGE)
    if target == "bert-tiny-sst2" and rng.random() < 0.8:  # large, so less often
        target = "model F16"
    folder = base / "folder"
    (folder / "sub").mkdir(parents=True)
    for place in (base / "outside.safetensors", folder / "sub" / "inside.safetensors"):
        place.write_bytes(all_["model F32"][SINGLE])
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    files = all_[target]
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / file
    chance = rng.random()
    if chance < 0.03:
        path.unlink()
        place = rng.choice(PLACES)
        place(path)
        return [target, place.__name__]
    if chance < 0.05:  # as in the hub's cache
        path.rename(base / "blob")
        path.symlink_to("../blob")
        return [target, "link_to_a_file_outside"]
    if chance < 0.06:
        path.unlink()
        return [target, "no_file"]
    if chance < 0.065 and file.endswith(".safetensors"):
        damages = RARE
    damage = rng.choice(damages)
    path.write_bytes(damage(rng, files[file]))
    return [target, damage.__name__]


def run_case(target: str, folder: Path) -> tuple[str, str]:
    """Read a folder; return the outcome, and the failure if there is one."""
    kind: type[Exception] = ValueError if target == "fp8" else bert_numpy.BertNumpyError
    try:
        READERS.get(target, read_model)(folder)
    except WrongValueError as error:
        return "wrong value", str(error)
    except BaseException as error:
        text = str(error)
        found = f"{type(error).__name__}: {text[:300]}"
        cannot_open = target == "fp8" and isinstance(error, OSError)  # npfp8.storage does so
        if type(error) not in (kind, bert_numpy.BertNumpyError) and not cannot_open:
            return "other error", found
        clear = str(folder) in text and len(text) < 5000 and len(text.splitlines()) == 1
        return ("refused", "") if clear else ("unclear error", found)
    return "valid", ""


def work(seed: int, first: int, last: int) -> None:
    """Run cases in a row, with a line of JSON before and after each. Called in a worker."""
    all_ = templates()
    for target, files in all_.items():  # undamaged files must be readable
        with tempfile.TemporaryDirectory() as name:
            for file, content in files.items():
                Path(name, file).write_bytes(content)
            READERS.get(target, read_model)(Path(name))
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_LIMIT, size + MEMORY_LIMIT))
    for number in range(first, last):
        base = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            case = make_case(seed, number, base, all_)
            print(json.dumps([number, *case]), flush=True)
            print(json.dumps(run_case(case[0], base / "folder")), flush=True)
        finally:
            shutil.rmtree(base, ignore_errors=True)


def supervise(
    seed: int, first: int, last: int, results: Counter[tuple[str, str, str]]
) -> list[str]:
    """Run cases in workers, each continuing where the last one ended; return failures."""
    failures = []
    number = first
    while number < last:
        command = [sys.executable, __file__, "--seed", str(seed), "--work", str(number), str(last)]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as worker,
        ):
            assert worker.stdout is not None
            case, buffered = [number, "?", "start"], b""
            deadline = time.monotonic() + 60
            outcome = None
            while outcome is None:
                ready, _, _ = select.select([worker.stdout], [], [], deadline - time.monotonic())
                chunk = os.read(worker.stdout.fileno(), 1 << 16) if ready else b""
                if not chunk:
                    worker.kill()
                    if number < last:
                        errors.seek(0)
                        end = errors.read()[-300:].decode(errors="replace")
                        outcome = ("crash", f"{worker.wait()} {end}") if ready else ("hang", "")
                    break
                deadline = time.monotonic() + TIME_LIMIT
                *lines, buffered = (buffered + chunk).split(b"\n")
                for line in map(json.loads, lines):
                    if len(line) == 3:
                        case = line
                        continue
                    results[case[1], case[2], line[0]] += 1
                    if line[0] not in ("refused", "valid"):
                        failures.append(f"{case}: {line[0]}: {line[1]}")
                    number = case[0] + 1
        if outcome is not None:
            results[case[1], case[2], outcome[0]] += 1
            failures.append(f"{case}: {outcome[0]}: {outcome[1]}")
            number = case[0] + 1
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.seed, *arguments.work)
        return 0
    results: Counter[tuple[str, str, str]] = Counter()
    last = arguments.first + arguments.cases
    failures = supervise(arguments.seed, arguments.first, last, results)
    for title, place in (("target", 0), ("damage", 1)):
        print(f"{title:<28}{'refused':>9}{'valid':>9}{'failed':>9}")
        for name in sorted({key[place] for key in results}):
            counts = Counter[str]()
            for key, count in results.items():
                if key[place] == name:
                    known = key[2] in ("refused", "valid")
                    counts[key[2] if known else "failed"] += count
            print(f"{name:<28}{counts['refused']:>9}{counts['valid']:>9}{counts['failed']:>9}")
        print()
    print(f"{sum(results.values())} cases, seed {arguments.seed}: {len(failures)} failures")
    print("\n".join(failures[:50]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
