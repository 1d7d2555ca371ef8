"""The model's ``config.json``, checked and typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_numpy.errors import BertNumpyError
from npfp8.files import open_regular

__all__ = ["BertConfig", "read_config", "read_json"]

_SEQUENCE_CLASSIFICATION = "BertForSequenceClassification"
_QUESTION_ANSWERING = "BertForQuestionAnswering"

#: Bytes of a JSON file that is still read; each may become some twenty in memory.
_MAX_JSON = 100_000_000

#: Labels of a head that are named without being listed.
_MAX_LABELS = 100_000


@dataclass(frozen=True)
class BertConfig:
    """The hyperparameters of a BERT, under the names that ``config.json`` uses.

    ``labels`` holds the names of the head's outputs in their order (from
    ``id2label``); ``architecture`` the class that wrote the checkpoint.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    labels: tuple[str, ...]

    @property
    def has_classifier(self) -> bool:
        """Whether there is a sequence classification (or regression) head."""
        return self.architecture == _SEQUENCE_CLASSIFICATION

    @property
    def has_qa_outputs(self) -> bool:
        """Whether there is a question answering head: two logits a token, start and end."""
        return self.architecture == _QUESTION_ANSWERING


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises :class:`BertNumpyError` naming it."""
    try:
        file = open_regular(path)
    except ValueError as error:
        raise BertNumpyError(str(error)) from None
    except FileNotFoundError:
        raise BertNumpyError(f"{path}: no such file") from None
    except OSError as error:
        raise BertNumpyError(f"{path}: expected a file, found an error: {error}") from None
    with file:
        text = file.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        raise BertNumpyError(f"{path}: expected at most {_MAX_JSON} bytes of JSON, found more")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a number too long to read
        raise BertNumpyError(f"{path}: expected JSON, found an error: {error}") from None
    if not isinstance(value, dict):
        raise BertNumpyError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes again must have the same value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"key {key!r} has two values")
    return found


def read_config(path: Path) -> BertConfig:
    """Read and check a BERT's ``config.json``.

    Raises
    ------
    BertNumpyError
        If the file is missing or no JSON, or a key is missing, of another type
        or of a value that this implementation does not compute.
    """
    raw = read_json(path)

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = raw.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = "nothing" if value is None else repr(value)
            raise BertNumpyError(f"{path}: key {key!r}: expected {kind.__name__}, found {found}")
        return value

    def positive(key: str, default: int | None = None) -> int:
        value: int = get(key, int, default)
        if value < 1:
            raise BertNumpyError(f"{path}: key {key!r}: expected at least 1, found {value}")
        return value

    for key, expected in (
        ("model_type", "bert"),
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        if (found := raw.get(key, expected)) != expected:
            raise BertNumpyError(f"{path}: key {key!r}: expected {expected!r}, found {found!r}")

    config = BertConfig(
        architecture=_architecture(raw, path),
        vocab_size=positive("vocab_size"),
        hidden_size=positive("hidden_size"),
        num_hidden_layers=positive("num_hidden_layers"),
        num_attention_heads=positive("num_attention_heads"),
        intermediate_size=positive("intermediate_size"),
        # These defaults are those of transformers' BertConfig.
        hidden_act=get("hidden_act", str, "gelu"),
        max_position_embeddings=positive("max_position_embeddings", 512),
        type_vocab_size=positive("type_vocab_size", 2),
        layer_norm_eps=_layer_norm_eps(raw, path),
        labels=_labels(raw, path),
    )
    if config.hidden_size % config.num_attention_heads:
        raise BertNumpyError(
            f"{path}: expected hidden_size to be a multiple of num_attention_heads, found "
            f"{config.hidden_size} and {config.num_attention_heads}"
        )
    return config


def _architecture(raw: Mapping[str, Any], path: Path) -> str:
    names = raw.get("architectures") or ["BertModel"]
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise BertNumpyError(f"{path}: key 'architectures': expected one name, found {names!r}")
    return names[0]


def _layer_norm_eps(raw: Mapping[str, Any], path: Path) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if type(value) not in (int, float) or not 0 <= value <= 1:  # NaN is not either
        raise BertNumpyError(f"{path}: key 'layer_norm_eps': expected 0..1, found {value!r}")
    return float(value)


def _labels(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    count = raw.get("num_labels", 2)  # 2 is transformers' default
    names = raw.get("id2label")
    if names is None:
        if type(count) is not int or count < 1:
            raise BertNumpyError(f"{path}: key 'num_labels': expected at least 1, found {count!r}")
        if count > _MAX_LABELS:
            raise BertNumpyError(
                f"{path}: key 'num_labels': expected at most {_MAX_LABELS}, found {count}"
            )
        return tuple(f"LABEL_{i}" for i in range(count))
    wanted = [str(i) for i in range(len(names))] if isinstance(names, dict) else None
    if not wanted or sorted(names) != sorted(wanted):
        raise BertNumpyError(f"{path}: key 'id2label': expected names for 0..n-1, found {names!r}")
    return tuple(str(names[i]) for i in wanted)
