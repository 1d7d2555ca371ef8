"""The model's ``config.json``, checked and typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bert_numpy.errors import BertNumpyError, key_error, read_json
from bert_numpy.model.architectures import ARCHITECTURES, Architecture, family_of
from bert_numpy.model.config import BertConfig
from bert_numpy.model.relative_positions import BUCKET_COUNT

__all__ = ["EXTRA_KEY", "HF_QUANT_CONFIG", "is_quantized", "quantization_key", "read_config"]

#: This project's key in the config of a quantized checkpoint.
EXTRA_KEY = "npfp8_config"

#: ModelOpt's file, whose older releases write no section into ``config.json``.
HF_QUANT_CONFIG = "hf_quant_config.json"

#: The defaults of transformers' BertConfig for missing keys.
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}

#: By key: the only value that this package supports, of those that transformers supports.
_EXPECTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "is_causal": False,
}

#: Keys that make transformers run, read or build something else than the rest of the file
#: describes, with the reason why they must be empty here.
_EMPTY = {
    "auto_map": "code that comes with a checkpoint is not run",
    "pruned_heads": "heads are not pruned",
    "per_layer_config": "all layers have the same sizes",
    "attribute_map": "keys have their own names",
    "configuration_files": "config.json is the only configuration",
    "transformers_weights": "the weights are in model.safetensors or its shards",
}

#: Keys that Google's BERT files, the only ones without ``model_type``, do not have.
_NOT_GOOGLES = ("embedding_size", "bos_token_id", "eos_token_id")

_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

#: The largest size, within the length of an array's axis on every machine.
_LARGEST = 2**31 - 1

#: The most labels of a head that get default names.
_MAX_LABELS = 100_000

#: The most layers that share parameters: no tensors show their number.
_MOST_LAYERS = 1000

#: The number of labels that an error lists.
_SHOWN_LABELS = 10


def quantization_key(raw: Mapping[str, Any]) -> str | None:
    """Return the key of ``config.json`` for the quantization; None if there is none."""
    keys = ("quantization_config", "compression_config")
    return next((key for key in keys if raw.get(key) is not None), None)


def is_quantized(folder: Path) -> bool:
    """Check whether ``config.json``, or ModelOpt's file beside it, describes a quantization."""
    raw = read_json(folder / "config.json")
    own = quantization_key(raw) is not None or EXTRA_KEY in raw
    return own or (folder / HF_QUANT_CONFIG).is_file()


def read_config(path: Path) -> BertConfig:
    """Read and check the ``config.json`` of a BERT or a relative.

    Raises
    ------
    BertNumpyError
        If the file is missing or is not JSON, if a key is missing, or if its value has
        another type or is not supported.
    """
    raw = read_json(path)

    refuse = partial(key_error, path)
    name = _architecture(raw, path)
    model_type = _model_type(raw, path, name)
    description = ARCHITECTURES[model_type]
    defaults = _DEFAULTS | dict(description.defaults)

    def get(key: str, kind: type[Any], least: int = 1) -> Any:
        if key in description.fixed:
            return description.fixed[key]
        name = _stored_key(raw, path, description, key)
        value: Any = raw.get(name, defaults.get(key))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise refuse(name, kind.__name__, value)
        if kind is int and value < least:
            raise refuse(name, f"at least {least}", value)
        if kind is int and value > _LARGEST:
            raise refuse(name, f"at most {_LARGEST}", value)
        return value

    hidden_size = get("hidden_size", int)
    if raw.get("pad_token_id", 0) is None and not description.counts_positions:
        del raw["pad_token_id"]  # only models that skip padding in positions depend on it
    config = BertConfig(
        model_type=model_type,
        architecture=name or f"{description.class_name}Model",
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
        architecture_found=name is not None,
        num_hidden_groups=get("num_hidden_groups", int) if description.shares_layers else 0,
        relative_attention_num_buckets=(
            get("relative_attention_num_buckets", int, least=BUCKET_COUNT)
            if "relative_attention_num_buckets" in defaults
            else 0
        ),
    )
    needed = dict(_EXPECTED)
    for head in ("", config.head.name):
        needed |= description.expected.get(head, {})
    for key, expected in needed.items():
        if (found := raw.get(key, expected)) != expected:
            raise BertNumpyError(f"{path}: key {key!r}: expected {expected!r}, found {found!r}")
    for key, reason in _EMPTY.items():
        if raw.get(key):
            raise refuse(key, f"nothing ({reason})", raw[key])
    if config.problem_type not in (None, *_PROBLEMS):
        raise refuse("problem_type", f"one of {', '.join(_PROBLEMS)}", config.problem_type)
    if config.num_hidden_groups and config.num_hidden_layers > _MOST_LAYERS:
        raise refuse("num_hidden_layers", f"at most {_MOST_LAYERS}", config.num_hidden_layers)
    if config.num_hidden_groups > config.num_hidden_layers:
        expected = f"at most num_hidden_layers, {config.num_hidden_layers}"
        raise refuse("num_hidden_groups", expected, config.num_hidden_groups)
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


def _architecture(raw: Mapping[str, Any], path: Path) -> str | None:
    """Return the class that wrote the checkpoint; None if the file names none."""
    names = raw.get("architectures")
    if names is None or names == []:
        return None
    if not (
        isinstance(names, list)
        and len(names) == 1
        and isinstance(names[0], str)
        and names[0].isidentifier()
    ):
        raise key_error(path, "architectures", "one name", names)
    return names[0]


def _model_type(raw: Mapping[str, Any], path: Path, architecture: str | None) -> str:
    """Return the model type, which the class ``architecture`` must not contradict.

    If the file lacks the key, the class decides, as it belongs to one model type.
    If the file names no class either, it is a BERT, like Google's files.
    """
    known = ", ".join(ARCHITECTURES)
    if "model_type" in raw:
        found = raw["model_type"]
        if not isinstance(found, str) or found not in ARCHITECTURES:
            raise key_error(path, "model_type", f"one of {known}", found)
        if architecture is not None and not ARCHITECTURES[found].reads(architecture):
            name = ARCHITECTURES[found].class_name
            expected = f"{name}Model or {name}For..., as 'model_type' is {found!r}"
            raise key_error(path, "architectures", expected, architecture)
        return found
    if architecture is not None:
        family = family_of(architecture)
        types = [kind for kind, other in ARCHITECTURES.items() if other.class_name == family]
        if types:
            return types[0]
        signs = f", and 'architectures' is {architecture!r}"
    else:
        keys = [key for key in _NOT_GOOGLES if raw.get(key) is not None]
        keys += ["pad_token_id"] if raw.get("pad_token_id") else []
        if not keys:
            return "bert"
        signs = f" and no 'architectures', but {keys[0]!r}, which BERT's oldest files do not have"
    raise BertNumpyError(f"{path}: key 'model_type': expected one of {known}, found nothing{signs}")


def _stored_key(raw: Mapping[str, Any], path: Path, description: Architecture, key: str) -> str:
    """Return the name of ``key`` in a file; if the file has two names for it, they must agree."""
    name = description.keys.get(key, key)
    if key not in description.aliases or key not in raw or key == name:
        return name
    if name in raw and raw[name] != raw[key]:
        raise BertNumpyError(
            f"{path}: keys {name!r} and {key!r}: expected one value, found {raw[name]!r} and "
            f"{raw[key]!r}"
        )
    return key


def _layer_norm_eps(raw: Mapping[str, Any], path: Path) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if type(value) not in (int, float) or not 0 <= value <= 1:  # NaN fails this, too
        raise BertNumpyError(f"{path}: key 'layer_norm_eps': expected 0..1, found {value!r}")
    return float(value)


def _labels(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the names of a head's outputs, from ``id2label`` or by their numbers.

    ``label2id`` and ``num_labels``, if present, must agree with it: releases of
    transformers differ in which of them they use.
    """
    count = raw.get("num_labels")
    if count is not None and (type(count) is not int or count < 1):
        raise key_error(path, "num_labels", "at least 1", count)
    names = raw.get("id2label")
    if names is None:
        count = 2 if count is None else count  # 2 is transformers' default
        if count > _MAX_LABELS:
            raise key_error(path, "num_labels", f"at most {_MAX_LABELS}", count)
        labels = tuple(f"LABEL_{i}" for i in range(count))
    else:
        labels = _listed_labels(names, path)
        if count not in (None, len(labels)):
            expected = f"{len(labels)}, as 'id2label' has so many"
            raise key_error(path, "num_labels", expected, count)
    _check_numbers(raw.get("label2id"), labels, path)
    return labels


def _listed_labels(names: Any, path: Path) -> tuple[str, ...]:
    wanted = [str(i) for i in range(len(names))] if isinstance(names, dict) else None
    if not wanted or sorted(names) != sorted(wanted):
        raise BertNumpyError(f"{path}: key 'id2label': expected names for 0..n-1, found {names!r}")
    for name in names.values():  # a number is a name, too
        if type(name) not in (str, int) or "".join(str(name).splitlines()) != str(name):
            raise BertNumpyError(
                f"{path}: key 'id2label': expected each name to be a line of text, found {name!r}"
            )
    labels = tuple(str(names[i]) for i in wanted)
    ((most, count),) = Counter(labels).most_common(1)
    if count > 1:
        raise BertNumpyError(
            f"{path}: key 'id2label': expected names that differ, found {most!r} twice"
        )
    return labels


def _check_numbers(numbers: Any, labels: tuple[str, ...], path: Path) -> None:
    """Refuse a ``label2id`` that gives a label another number than ``id2label``.

    Nothing reads ``label2id``. But if the two contradict each other, the meaning of the
    outputs is unknown. Placeholders, ``LABEL_0`` and so on, do not contradict names.
    """
    if numbers is None:
        return
    if not isinstance(numbers, dict):
        raise key_error(path, "label2id", "an object", numbers)
    known = {f"LABEL_{i}": str(i) for i in range(len(labels))}
    known |= {label: str(i) for i, label in enumerate(labels)}
    for name, number in numbers.items():
        if type(number) is bool or str(number) != known.get(name):
            shown = ", ".join(labels[:_SHOWN_LABELS]) + (", ..." * (len(labels) > _SHOWN_LABELS))
            raise BertNumpyError(
                f"{path}: key 'label2id': expected {known.get(name, 'no label')} for {name!r}, "
                f"as 'id2label' makes the labels {shown}; found {number!r}"
            )
