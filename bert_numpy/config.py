"""The model's ``config.json``, checked and typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_numpy.architectures import ARCHITECTURES, SENTENCE_EMBEDDINGS, Architecture, Head
from bert_numpy.errors import BertNumpyError
from npfp8.files import open_regular

__all__ = ["BertConfig", "Pooling", "parse_json", "read_config", "read_json"]

#: What transformers' BertConfig has where a key is missing.
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}

#: Of keys that say what is not computed here: the only value that is.
_EXPECTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Pooling:
    """How sentence-transformers makes one vector of a text's hidden states.

    ``mode`` is "mean", over the tokens, or "cls", the first token's;
    ``normalize`` says whether the vector is divided by its Euclidean norm.
    """

    mode: str
    normalize: bool


#: Bytes of a JSON file that is still read; each may become some twenty in memory.
_MAX_JSON = 100_000_000

#: Labels of a head that are named without being listed.
_MAX_LABELS = 100_000


@dataclass(frozen=True)
class BertConfig:
    """The hyperparameters of a BERT or a relative, under the keys of BERT's ``config.json``.

    ``labels`` holds the names of the head's outputs in their order (from
    ``id2label``); ``architecture`` the class that wrote the checkpoint.
    ``type_vocab_size`` is 0 where there are no token types. ``pooling`` is that of a
    sentence-transformers folder.
    """

    model_type: str
    architecture: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float
    tie_word_embeddings: bool
    labels: tuple[str, ...]
    problem_type: str | None = None
    pooling: Pooling | None = None

    @property
    def description(self) -> Architecture:
        """In what the model type differs from BERT."""
        return ARCHITECTURES[self.model_type]

    @property
    def head(self) -> Head:
        """What stands on the encoder."""
        return SENTENCE_EMBEDDINGS if self.pooling else self.description.head(self.architecture)

    @property
    def max_length(self) -> int:
        """The longest input, in tokens: RoBERTa leaves the first positions to the padding."""
        first = self.pad_token_id + 1 if self.description.counts_positions else 0
        return self.max_position_embeddings - first


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON object, or a list, from a file; raises :class:`BertNumpyError` naming it."""
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
        value = parse_json(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a number too long to read
        raise BertNumpyError(f"{path}: expected JSON, found an error: {error}") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise BertNumpyError(f"{path}: expected a JSON {expected}, found {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON in which a key that comes again has the same value.

    Raises
    ------
    ValueError, RecursionError
        If it is no JSON, a key has two values, a number is too long to read, or
        it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unambiguous)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes again must have the same value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"key {key!r} has two values")
    return found


def read_config(path: Path) -> BertConfig:
    """Read and check the ``config.json`` of a BERT or a relative.

    Raises
    ------
    BertNumpyError
        If the file is missing or no JSON, or a key is missing, of another type
        or of a value that this implementation does not compute.
    """
    raw = read_json(path)

    def refuse(key: str, expected: str, found: Any) -> BertNumpyError:
        found = "nothing" if found is None else repr(found)
        return BertNumpyError(f"{path}: key {key!r}: expected {expected}, found {found}")

    model_type = raw.get("model_type", "bert")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise refuse("model_type", f"one of {', '.join(ARCHITECTURES)}", model_type)
    description = ARCHITECTURES[model_type]
    defaults = _DEFAULTS | dict(description.defaults)

    def get(key: str, kind: type[Any], least: int = 1) -> Any:
        if key in description.fixed:
            return description.fixed[key]
        name = description.keys.get(key, key)
        value: Any = raw.get(name, defaults.get(key))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise refuse(name, kind.__name__, value)
        if kind is int and value < least:
            raise refuse(name, f"at least {least}", value)
        return value

    hidden_size = get("hidden_size", int)
    if raw.get("pad_token_id", 0) is None:
        del raw["pad_token_id"]
    config = BertConfig(
        model_type=model_type,
        architecture=_architecture(raw, path, f"{description.class_name}Model"),
        vocab_size=get("vocab_size", int),
        embedding_size=get("embedding_size", int) if "embedding_size" in defaults else hidden_size,
        hidden_size=hidden_size,
        num_hidden_layers=get("num_hidden_layers", int),
        num_attention_heads=get("num_attention_heads", int),
        intermediate_size=get("intermediate_size", int),
        hidden_act=get("hidden_act", str),
        max_position_embeddings=get("max_position_embeddings", int),
        type_vocab_size=get("type_vocab_size", int),
        pad_token_id=get("pad_token_id", int, least=0),
        layer_norm_eps=_layer_norm_eps(raw | dict(description.fixed), path),
        tie_word_embeddings=get("tie_word_embeddings", bool),
        labels=_labels(raw, path),
        problem_type=raw.get("problem_type"),
    )
    needed = _EXPECTED | dict(description.expected.get(config.head.name, {}))
    for key, expected in needed.items():
        if (found := raw.get(key, expected)) != expected:
            raise BertNumpyError(f"{path}: key {key!r}: expected {expected!r}, found {found!r}")
    if config.problem_type not in (None, *_PROBLEMS):
        raise refuse("problem_type", f"one of {', '.join(_PROBLEMS)}", config.problem_type)
    if config.hidden_size % config.num_attention_heads:
        raise BertNumpyError(
            f"{path}: expected hidden_size to be a multiple of num_attention_heads, found "
            f"{config.hidden_size} and {config.num_attention_heads}"
        )
    if config.pad_token_id >= config.vocab_size:
        raise refuse("pad_token_id", f"0..{config.vocab_size - 1}", config.pad_token_id)
    if config.max_length < 1:
        raise refuse(
            "max_position_embeddings",
            f"more than pad_token_id + 1 = {config.pad_token_id + 1}",
            config.max_position_embeddings,
        )
    return config


def _architecture(raw: Mapping[str, Any], path: Path, default: str) -> str:
    names = raw.get("architectures") or [default]
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
