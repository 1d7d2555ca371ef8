"""The layout of a sentence-transformers folder: what becomes of the hidden states.

``modules.json`` lists the modules; the encoder is in the folder itself, the
pooling's settings in one of its own, ``1_Pooling`` by custom.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_numpy.errors import BertNumpyError, key_error, read_json
from bert_numpy.model.architectures import ARCHITECTURES, ENCODER, HEADS
from bert_numpy.model.config import BertConfig, Pooling
from npfp8.files import is_plain_name

__all__ = ["pooling_files", "read_pooling"]

_MODULES = "modules.json"

_SETTINGS = "config_sentence_transformers.json"

#: The encoder's own settings, which are the tokenizer's: the names that they have had.
_ENCODER_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

#: Modes that are computed, by the names that sentence-transformers has for them: the key that
#: switches one on, and since release 5 the value of ``pooling_mode``.
_MODES = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}

#: Keys of these by which the encoder would be another, or give something else than its last
#: hidden states; and the only values, besides null, with which it does not.
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
    "pooling_mode",
    "pooling_mode_cls_token",
    "pooling_mode_mean_tokens",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
    "word_embedding_dimension",
    "embedding_dimension",
    "include_prompt",
)

#: Heads that a sentence-transformers folder's encoder may have been trained with.
_WITHOUT_TASK = {ENCODER.name} | {
    (HEADS | dict(architecture.heads))[task].name
    for architecture in ARCHITECTURES.values()
    for task in ("MaskedLM", "PreTraining")
}


def read_pooling(folder: Path, config: BertConfig | None = None) -> Pooling | None:
    """Read ``modules.json`` and the pooling's ``config.json``; None where there is no such list.

    Parameters
    ----------
    folder : Path
    config : BertConfig, optional
        The encoder's; a classifier cannot be an encoder, too.

    Raises
    ------
    BertNumpyError
        If one is missing or no JSON, or asks for what is not computed here: other
        modules than an encoder, a pooling and a normalization; a pooling that is
        neither the mean of the tokens nor the first one; a prompt before every
        text, or shortened vectors (``config_sentence_transformers.json``).
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
    for name in _ENCODER_SETTINGS:  # the first that is there counts
        if (folder / name).is_file():
            _check_encoder(folder / name)
            break
    return Pooling(_mode(folder / modules[1]["path"] / "config.json"), len(modules) == 3)


def pooling_files(folder: Path) -> list[str]:
    """The files of the layout beside the encoder's, as paths in the folder; none in any other.

    Raises
    ------
    BertNumpyError
        As :func:`read_pooling`.
    """
    if not (folder / _MODULES).is_file():
        return []
    pooling = f"{_modules(folder / _MODULES)[1]['path']}/config.json"
    names = (_MODULES, pooling, _SETTINGS, *_ENCODER_SETTINGS)
    return [name for name in names if (folder / name).is_file()]


def _modules(path: Path) -> list[dict[str, Any]]:
    """The list of modules, checked: an encoder here, a pooling, and perhaps a normalization."""
    modules: list[dict[str, Any]] = read_json(path, list)
    for number, module in enumerate(modules):
        for key in ("type", "path"):
            if not isinstance(module, dict) or not isinstance(module.get(key), str):
                raise BertNumpyError(f"{path}: module {number}: expected a {key!r}, a string")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BertNumpyError(
            f"{path}: expected the modules Transformer, Pooling and perhaps Normalize, "
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
    if not is_plain_name(modules[1]["path"]):
        raise BertNumpyError(
            f"{path}: module 1: expected a folder in this one, found {modules[1]['path']!r}"
        )
    return modules


def _mode(path: Path) -> str:
    """The one mode that is switched on: by a key of its own, or by name, which goes before them."""
    raw = read_json(path)
    for key in raw:
        if key not in _KEYS:
            raise BertNumpyError(
                f"{path}: expected keys that sentence-transformers reads, found {key!r}"
            )
    switches = [key for key in raw if key.startswith("pooling_mode_")]
    for key in (*switches, "include_prompt"):
        if not isinstance(raw.get(key, True), bool):
            raise BertNumpyError(f"{path}: key {key!r}: expected true or false, found {raw[key]!r}")
    name = raw.get("pooling_mode")
    modes = [key.removeprefix("pooling_mode_") for key in switches if raw[key]]
    if name is not None or not modes:
        modes = [name]
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in _MODES:
        found = ", ".join(map(str, modes))
        raise BertNumpyError(
            f"{path}: expected pooling_mode_mean_tokens or pooling_mode_cls_token, found {found}"
        )
    if name is None and modes != ["mean_tokens"] and "pooling_mode_mean_tokens" not in raw:
        raise BertNumpyError(
            f"{path}: key 'pooling_mode_mean_tokens': expected true or false, found nothing, which "
            "is true in some releases of sentence-transformers and false in others"
        )
    return _MODES[modes[0]]


def _check_encoder(path: Path) -> None:
    """Refuse keys that change the encoder or what it gives; the tokenizer's are not looked at."""
    raw = read_json(path)
    for key, values in _ENCODER_KEYS.items():
        if raw.get(key) not in (None, *values):
            expected = "".join(f" or {value!r}" for value in values)
            raise key_error(path, key, f"nothing{expected}", raw[key])


def _check_settings(path: Path) -> None:
    """Refuse what changes the vectors of a text, or says that they are something else."""
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
