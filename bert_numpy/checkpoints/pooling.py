"""The layout of a sentence-transformers folder: the steps from hidden states to a vector.

``modules.json`` lists the modules. The encoder is in the folder itself; the settings of the
pooling, and the settings and weights of each Dense module, are in subfolders,
``1_Pooling`` and ``2_Dense`` by custom.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.checkpoints.tensors import SINGLE, open_checkpoint, read_float32
from bert_numpy.errors import BertNumpyError, key_error, read_json
from bert_numpy.model.architectures import ARCHITECTURES, ENCODER, HEADS
from bert_numpy.model.config import BertConfig, Dense, Pooling
from bert_numpy.model.sites import expected_shapes
from npfp8.arrays import Float32Array
from npfp8.files import is_plain_name

__all__ = ["pooling_files", "read_dense", "read_pooling"]

_MODULES = "modules.json"

_SETTINGS = "config_sentence_transformers.json"

#: The past and present names of the encoder's settings, which concern the tokenizer.
_ENCODER_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

#: The modes by the keys that switch them on, in the order in which several are concatenated.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

#: The functions that a Dense module may apply, by the end of torch's name for them.
_ACTIVATIONS = {
    "activation.Tanh": "tanh",
    "activation.ReLU": "relu",
    "activation.GELU": "gelu",
    "activation.SiLU": "silu",
    "activation.Sigmoid": "sigmoid",
    "linear.Identity": None,
}

#: The same by all names that sentence-transformers may write: ``torch.nn.Tanh`` is a second one.
_ACTIVATION_NAMES = {
    f"torch.nn.{prefix}{name}": function
    for full, function in _ACTIVATIONS.items()
    for prefix, name in (("modules.", full), ("", full.rpartition(".")[2]))
}

#: The keys with which modules after the pooling would read or write something else.
_VECTOR_KEYS = ("module_input_name", "module_output_name")
_VECTOR = "sentence_embedding"

_DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function", "use_residual")

#: Keys of the encoder's settings that would replace the encoder, or make it return something
#: else than its last hidden states; with the only values, besides null, that do not.
_ENCODER_KEYS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ),
    "model_args": ({},),
    "model_kwargs": ({},),
    "config_args": ({},),
    "config_kwargs": ({},),
    "processing_kwargs": ({},),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
}

#: All keys that sentence-transformers reads in the pooling's ``config.json``.
_KEYS = (
    *("pooling_mode", *_SWITCHES),
    *("word_embedding_dimension", "embedding_dimension", "include_prompt"),
)

#: The heads with which a sentence-transformers folder's encoder may have been trained.
_WITHOUT_TASK = {ENCODER.name} | {
    (HEADS | dict(architecture.heads))[task].name
    for architecture in ARCHITECTURES.values()
    for task in ("MaskedLM", "PreTraining")
}


def read_pooling(folder: Path, config: BertConfig | None = None) -> Pooling | None:
    """Read ``modules.json`` and the settings of its modules; None if there is no such list.

    Parameters
    ----------
    folder : Path
    config : BertConfig, optional
        The encoder's config; a classifier cannot be an encoder, too.

    Raises
    ------
    BertNumpyError
        If a file is missing or is not JSON, or if it demands something unsupported. Only an
        encoder, a pooling, and then Dense and Normalize in any order are supported. A Dense
        module must not have a residual, another function or another number of input features.
        ``config_sentence_transformers.json`` must not add a prompt before every text, nor
        shorten the vectors.
    """
    if not (folder / _MODULES).is_file():
        return None
    modules = _modules(folder / _MODULES)
    if config is not None and config.head.name not in _WITHOUT_TASK:
        raise BertNumpyError(
            f"{folder / _MODULES}: expected an encoder's class in 'architectures' of config.json, "
            f"found {config.architecture!r}: is it a classifier, or does it embed sentences? "
            "Remove modules.json, or name another class"
        )
    if (folder / _SETTINGS).is_file():
        _check_settings(folder / _SETTINGS)
    for name in _ENCODER_SETTINGS:  # the first that exists counts
        if (folder / name).is_file():
            _check_encoder(folder / name)
            break
    modes = _modes(folder / modules[1]["path"] / "config.json")
    features = None if config is None else config.hidden_size * len(modes)
    normalize, layers = False, list[Dense]()
    for number, module in enumerate(modules[2:], 2):
        path = folder / module["path"] / "config.json"
        if _kind(module) == "Dense":
            layers.append(_dense(path, f"{number}_Dense.linear", features))
            features = layers[-1].outputs
            continue
        if path.is_file():  # releases before 6 write none
            _check_vector(path, read_json(path))
        if layers:
            layers[-1] = replace(layers[-1], normalize=True)
        else:
            normalize = True
    return Pooling("+".join(modes), normalize, tuple(layers))


def read_dense(folder: Path, config: BertConfig) -> dict[str, Float32Array]:
    """Read the weights of a folder's Dense modules, as float32; a missing bias is 0.

    Parameters
    ----------
    folder : Path
    config : BertConfig
        A config with the folder's pooling.

    Raises
    ------
    BertNumpyError
        If a file is missing or corrupt; or if a tensor is missing, not expected, has another
        shape, or has a NaN or an infinity.
    """
    weights: dict[str, Float32Array] = {}
    if config.pooling is None:
        return weights
    shapes = expected_shapes(config)
    modules = [one for one in _modules(folder / _MODULES)[2:] if _kind(one) == "Dense"]
    for layer, module in zip(config.pooling.dense, modules, strict=True):
        place = folder / module["path"]
        stored = open_checkpoint(place)
        names = {"linear.weight": f"{layer.site}.weight"}
        if read_json(place / "config.json").get("bias", True):
            names["linear.bias"] = f"{layer.site}.bias"
        else:
            weights[f"{layer.site}.bias"] = np.zeros(layer.outputs, np.float32)
        for key in (*names, *stored):
            if key not in names or key not in stored:
                wrong = "missing" if key in names else "not one of Dense's"
                raise BertNumpyError(
                    f"{place / SINGLE}: tensor {key!r}: expected {' and '.join(names)}, but it is "
                    f"{wrong}"
                )
        for key, name in names.items():
            if stored[key].shape != shapes[name]:
                raise BertNumpyError(
                    f"{stored[key].place}: expected shape {shapes[name]} by config.json, found "
                    f"{stored[key].shape}"
                )
            weights[name] = read_float32(stored[key])
    return weights


def pooling_files(folder: Path) -> list[str]:
    """List a sentence-transformers folder's files besides the encoder's, as relative paths.

    Any other folder has none.

    Raises
    ------
    BertNumpyError
        If ``modules.json`` is invalid, as in :func:`read_pooling`.
    """
    if not (folder / _MODULES).is_file():
        return []
    modules = _modules(folder / _MODULES)
    names = [_MODULES, *(f"{module['path']}/config.json" for module in modules[1:])]
    names += [f"{module['path']}/{SINGLE}" for module in modules if _kind(module) == "Dense"]
    names += [_SETTINGS, *_ENCODER_SETTINGS]
    return [name for name in dict.fromkeys(names) if (folder / name).is_file()]


def _kind(module: dict[str, Any]) -> str:
    """Return the class of a module, without its package."""
    kind: str = module["type"].rpartition(".")[2]
    return kind


def _modules(path: Path) -> list[dict[str, Any]]:
    """Read and check the list of modules: encoder, pooling, then Dense and Normalize."""
    modules: list[dict[str, Any]] = read_json(path, list)
    for number, module in enumerate(modules):
        for key in ("type", "path"):
            if not isinstance(module, dict) or not isinstance(module.get(key), str):
                raise BertNumpyError(f"{path}: module {number}: expected a {key!r}, a string")
    kinds = [_kind(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize"}:
        raise BertNumpyError(
            f"{path}: expected the modules Transformer, Pooling and perhaps Dense and Normalize, "
            f"found {', '.join(kinds) or 'none'}"
        )
    for number, module in enumerate(modules):
        if not module["type"].startswith("sentence_transformers."):
            raise BertNumpyError(
                f"{path}: module {number}: expected the 'type' to be one of sentence_transformers, "
                f"found {module['type']!r}: code that comes with a checkpoint is not run"
            )
    names = [str(module["name"]) for module in modules if "name" in module]
    if len(set(names)) < len(names):  # sentence-transformers would lose one of the two
        raise BertNumpyError(
            f"{path}: expected modules with a 'name' of their own, found {', '.join(names)}"
        )
    if modules[0]["path"]:
        raise BertNumpyError(
            f"{path}: module 0: expected the path '', this folder, found {modules[0]['path']!r}"
        )
    for number, module in enumerate(modules[1:], 1):
        if not is_plain_name(module["path"]):
            raise BertNumpyError(
                f"{path}: module {number}: expected a folder in this one, found {module['path']!r}"
            )
    return modules


def _modes(path: Path) -> tuple[str, ...]:
    """Return the active modes: those in ``pooling_mode``, or else those with a key set to true."""
    raw = read_json(path)
    for key in raw:
        if key not in _KEYS:
            raise BertNumpyError(
                f"{path}: expected keys that sentence-transformers reads, found {key!r}"
            )
    for key in (*_SWITCHES, "include_prompt"):
        if not isinstance(raw.get(key, True), bool):
            raise BertNumpyError(f"{path}: key {key!r}: expected true or false, found {raw[key]!r}")
    name = raw.get("pooling_mode")
    if name is not None:
        modes = name if isinstance(name, list) else [name]
    else:
        modes = [mode for key, mode in _SWITCHES.items() if raw.get(key, False)]
        if modes and modes != ["mean"] and "pooling_mode_mean_tokens" not in raw:
            raise BertNumpyError(
                f"{path}: key 'pooling_mode_mean_tokens': expected true or false, found nothing, "
                "which is true in some releases of sentence-transformers and false in others"
            )
    known = list(_SWITCHES.values())
    if not modes or any(mode not in known for mode in modes) or len(set(modes)) < len(modes):
        found = ", ".join(map(str, modes)) or "none"
        raise BertNumpyError(
            f"{path}: expected one or more of the poolings {', '.join(known)}, each once, found "
            f"{found}"
        )
    return tuple(modes)


def _dense(path: Path, site: str, features: int | None) -> Dense:
    """Describe a Dense module by its ``config.json``; ``features`` is its input size, if known."""
    raw = read_json(path)
    for key in raw:
        if key not in (*_DENSE_KEYS, *_VECTOR_KEYS):
            raise BertNumpyError(
                f"{path}: expected keys that sentence-transformers reads, found {key!r}"
            )
    _check_vector(path, raw)
    for key in ("in_features", "out_features"):
        if type(raw.get(key)) is not int or not 0 < raw[key] < 1 << 31:
            raise key_error(path, key, "a number of at least 1", raw.get(key))
    if features not in (None, raw["in_features"]):
        expected = f"{features}, the features of what is before it"
        raise key_error(path, "in_features", expected, raw["in_features"])
    if type(raw.get("bias", True)) is not bool:
        raise key_error(path, "bias", "true or false", raw["bias"])
    if raw.get("use_residual", False) is not False:
        raise key_error(path, "use_residual", "false: it is not implemented", raw["use_residual"])
    name = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str) or name not in _ACTIVATION_NAMES:
        expected = f"one of {', '.join(f'torch.nn.modules.{one}' for one in _ACTIVATIONS)}"
        raise key_error(path, "activation_function", expected, name)
    return Dense(site, raw["out_features"], _ACTIVATION_NAMES[name])


def _check_vector(path: Path, raw: dict[str, Any]) -> None:
    """Refuse a module that reads or writes something else than the text's vector."""
    for key in _VECTOR_KEYS:
        if raw.get(key) not in (None, _VECTOR):
            raise key_error(path, key, f"nothing or {_VECTOR!r}", raw[key])


def _check_encoder(path: Path) -> None:
    """Refuse keys that change the encoder or its output; the tokenizer's are ignored."""
    raw = read_json(path)
    for key, values in _ENCODER_KEYS.items():
        if raw.get(key) not in (None, *values):
            expected = "".join(f" or {value!r}" for value in values)
            raise key_error(path, key, f"nothing{expected}", raw[key])


def _check_settings(path: Path) -> None:
    """Refuse settings that change the vectors of a text, or give them another meaning."""
    raw = read_json(path)
    kind = raw.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise BertNumpyError(
            f"{path}: key 'model_type': expected 'SentenceTransformer', found {kind!r}"
        )
    if raw.get("truncate_dim") is not None:
        expected = "nothing (vectors are not shortened)"
        raise key_error(path, "truncate_dim", expected, raw["truncate_dim"])
    prompts, name = raw.get("prompts", {}), raw.get("default_prompt_name")
    if not isinstance(prompts, dict):
        raise BertNumpyError(f"{path}: key 'prompts': expected an object, found {prompts!r}")
    texts = {"query": "", "document": ""} | prompts  # two are there in every model
    if name is not None and (not isinstance(name, str) or texts.get(name, "unknown")):
        expected = "nothing, or the name of an empty prompt (no text is put before others)"
        raise key_error(path, "default_prompt_name", expected, name)
