"""The layout of a sentence-transformers folder: what becomes of the hidden states.

``modules.json`` lists the modules; the encoder is in the folder itself, the
pooling's settings in one of its own, ``1_Pooling`` by custom.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_numpy.config import Pooling, read_json
from bert_numpy.errors import BertNumpyError
from npfp8.files import is_plain_name

__all__ = ["pooling_files", "read_pooling"]

_MODULES = "modules.json"

_MODES = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}


def read_pooling(folder: Path) -> Pooling | None:
    """Read ``modules.json`` and the pooling's ``config.json``; None where there is no such list.

    Raises
    ------
    BertNumpyError
        If one is missing or no JSON, or asks for what is not computed here: other
        modules than an encoder, a pooling and a normalization; a pooling that is
        neither the mean of the tokens nor the first one.
    """
    if not (folder / _MODULES).is_file():
        return None
    modules = _modules(folder / _MODULES)
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
    names = (_MODULES, pooling, "sentence_bert_config.json")  # the last one is for others
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
    """The one mode that is switched on: by a key of its own, or by name as newer versions write."""
    raw = read_json(path)
    switches = [key for key, on in raw.items() if key.startswith("pooling_mode_") and on is True]
    modes = [key.removeprefix("pooling_mode_") for key in switches] or [raw.get("pooling_mode")]
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in _MODES:
        found = ", ".join(map(str, modes))
        raise BertNumpyError(
            f"{path}: expected pooling_mode_mean_tokens or pooling_mode_cls_token, found {found}"
        )
    return _MODES[modes[0]]
