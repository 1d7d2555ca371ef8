"""Small checkpoints and safetensors files, written without the code under test."""

from __future__ import annotations

import json
import string
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from oracles import assert_same_bits

VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.ascii_lowercase,
    *string.digits,
    *(f"##{character}" for character in string.ascii_lowercase + string.digits),
    *string.punctuation,
    *("an", "the", "is", "was", "not", "and", "very", "warm", "funny", "dull", "good", "bad"),
    *("film", "movie", "plot", "actor"),
    *("##ing", "##ly", "##ed", "##er", "##est"),
]

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}

_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


def write_checkpoint(
    folder: Path,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    dtype: str = "F32",
    shards: int = 1,
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
) -> Path:
    """Write a checkpoint folder of random weights, as transformers lays one out.

    With ``architectures`` of ``BertModel`` it is a bare encoder: no head, and no
    ``bert.`` before its names. A head on tokens has no pooler.
    """
    config = CONFIG | {"id2label": {str(i): label for i, label in enumerate(labels)}}
    config |= config_overrides or {}
    if config["id2label"] is not None:
        config = {"label2id": {v: int(k) for k, v in config["id2label"].items()}} | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    write_tensors(folder, random_tensors(config, len(labels), seed), dtype, shards)
    return folder


def write_encoder(folder: Path, **options: Any) -> Path:
    """A sentence-transformers folder of random weights: the mean of the tokens, not normalized."""
    options["config_overrides"] = {"architectures": ["BertModel"]} | options.get(
        "config_overrides", {}
    )
    write_checkpoint(folder, **options)
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    module = "sentence_transformers.models"
    modules = [{"type": f"{module}.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def random_tensors(config: Mapping[str, Any], outputs: int, seed: int) -> dict[str, np.ndarray]:
    """Random float32 parameters under transformers' names."""
    generator = np.random.default_rng(seed)
    prefix = "" if config["architectures"] == ["BertModel"] else "bert."
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tensors = {}

    def normal(name: str, *shape: int, mean: float = 0.0, deviation: float = 0.3) -> None:
        tensors[name] = generator.normal(mean, deviation, shape).astype(np.float32)

    def linear(name: str, outputs: int, inputs: int) -> None:
        normal(f"{name}.weight", outputs, inputs)
        normal(f"{name}.bias", outputs)

    def layer_norm(name: str) -> None:
        normal(f"{name}.weight", hidden, mean=1.0, deviation=0.1)
        normal(f"{name}.bias", hidden, deviation=0.1)

    embeddings = f"{prefix}embeddings"
    normal(f"{embeddings}.word_embeddings.weight", config["vocab_size"], hidden)
    normal(f"{embeddings}.position_embeddings.weight", config["max_position_embeddings"], hidden)
    normal(f"{embeddings}.token_type_embeddings.weight", config["type_vocab_size"], hidden)
    layer_norm(f"{embeddings}.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        layer_norm(f"{layer}.output.LayerNorm")
    head = config["architectures"][0].removeprefix("Bert")
    if head not in ("ForQuestionAnswering", "ForTokenClassification", "ForMaskedLM"):
        linear(f"{prefix}pooler.dense", hidden, hidden)
    if head == "ForQuestionAnswering":
        linear("qa_outputs", 2, hidden)
    if head in ("ForSequenceClassification", "ForTokenClassification"):
        linear("classifier", outputs, hidden)
    if head in ("ForMaskedLM", "ForPreTraining"):
        linear("cls.predictions.transform.dense", hidden, hidden)
        layer_norm("cls.predictions.transform.LayerNorm")
        normal("cls.predictions.bias", config["vocab_size"])
    if head in ("ForNextSentencePrediction", "ForPreTraining"):
        linear("cls.seq_relationship", 2, hidden)
    return tensors


def write_tokenizer(folder: Path, vocabulary: Sequence[str] = VOCABULARY) -> None:
    """Write ``vocab.txt`` and the ``tokenizer.json`` of the same uncased WordPiece tokenizer."""
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    numbered = {token: i for i, token in enumerate(vocabulary)}
    tokenizers.BertWordPieceTokenizer(numbered).save(str(folder / "tokenizer.json"))


def write_tensors(
    folder: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32", shards: int = 1
) -> None:
    """Write float32 arrays as ``model.safetensors``, or as shards and their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        write_safetensors(folder / name, part, dtype)
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.size * _ITEM_SIZES[dtype] for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write float32 arrays as one safetensors file; BF16 cuts the lower bits off."""
    header = {}
    data = b""
    for name, tensor in tensors.items():
        stored = stored_bytes(tensor, dtype)
        offsets = [len(data), len(data) + len(stored)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += stored
    path.write_bytes(safetensors_bytes(header, data))


def stored_bytes(tensor: np.ndarray, dtype: str) -> bytes:
    """The bytes of a float32 array in a safetensors dtype."""
    if dtype == "BF16":
        return (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
    return tensor.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file: the header's length, the header (JSON, or as given), the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: Sequence[int], dtype: str = "F32") -> dict[str, Any]:
    """Make the entry of a tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


#: The recipes of the paper's comparison, which come first.
PAPER = ["fp32", "bf16", "int8", "e4m3", "e5m2"]


def assert_same_statistics(actual: Any, expected: Any) -> None:
    """Assert that two operands' statistics are equal to the last bit."""
    for name in ("low", "high", "average_low", "average_high"):
        assert getattr(actual, name).hex() == getattr(expected, name).hex(), name
    assert_same_bits(actual.histogram, expected.histogram)


def assert_same_calibrations(actual: Any, expected: Any) -> None:
    """Assert that two calibrations are equal to the last bit."""
    assert (actual.samples, actual.golden) == (expected.samples, expected.golden)
    assert actual.operands.keys() == expected.operands.keys()
    assert actual.channels.keys() == expected.channels.keys()
    for name, seen in expected.operands.items():
        assert_same_statistics(actual.operands[name], seen)
    for site, largest in expected.channels.items():
        assert_same_bits(actual.channels[site], largest)


Batch = dict[str, np.ndarray]


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """``max|difference| / max|expected|``."""
    assert got.shape == expected.shape
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def hard_batches(vocabulary: int, longest: int) -> dict[str, Batch]:
    """Batches of random tokens with every kind of mask."""
    generator = np.random.default_rng(0)

    def batch(mask: np.ndarray) -> Batch:
        ids = generator.integers(0, vocabulary, mask.shape)
        types = generator.integers(0, 2, mask.shape)
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": types}

    places = np.arange(24)
    lengths = np.array([[24], [1], [17], [17], [2]])
    holes = generator.random((5, 24)) < 0.6
    holes[:, 5] = True
    masked_first = np.ones((3, 24), bool)
    masked_first[1:, 0] = False
    masked_first[2, 7:] = False
    return {
        "no padding": batch(np.ones((3, 24))),
        "right padding": batch(places < lengths),
        "left padding": batch(places >= 24 - lengths),
        "holes": batch(holes),
        "position 0 masked": batch(masked_first),
        "one token each": batch(places == np.array([[0], [3], [23]])),
        "single token": batch(np.ones((1, 1))),
        "ids only": {"input_ids": generator.integers(0, vocabulary, (2, 9))},
        "longest": batch(np.arange(longest) < np.array([[longest], [longest - 100]])),
    }
