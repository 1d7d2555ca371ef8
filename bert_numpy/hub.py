"""From what a user calls a model to a folder on this machine."""

from __future__ import annotations

import os.path
from pathlib import Path

from bert_numpy.errors import BertNumpyError

__all__ = ["EMBEDDED", "fetch_dataset", "is_hub_id", "resolve"]

#: The checkpoint that comes with the package.
EMBEDDED = "bert-tiny-sst2"

_ASSETS = Path(__file__).parent / "assets"

#: What this package reads of a hub repository; nothing else is fetched.
_FILES = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
]


def resolve(name: str | Path) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name : str or Path
        In this order: a folder; ``bert-tiny-sst2``, the embedded model; an
        ``owner/name`` on the Hugging Face hub, fetched into its cache.

    Raises
    ------
    BertNumpyError
        If there is no such folder and the hub does not give it.
    """
    text = str(name)
    folder = Path(text)
    if os.path.isdir(text):  # unlike Path.is_dir, False for "" and for what no path can be
        return folder
    if text == EMBEDDED:
        return _ASSETS / EMBEDDED
    if os.path.exists(text):
        raise BertNumpyError(f"{text}: expected a model folder, found a file")
    if not is_hub_id(text):
        raise BertNumpyError(f"{text or repr(text)}: expected a model folder, found no such folder")
    return _fetch(text, _FILES, "model")


def is_hub_id(text: str) -> bool:
    """Whether a name may be one on the hub, ``owner/name``, and can be no path."""
    unlike = not text or Path(text).is_absolute() or text.startswith((".", "~"))
    return not unlike and text.count("/") <= 1


def fetch_dataset(repository: str, patterns: list[str]) -> Path:
    """Fetch the files of a data set on the hub that fit one of the patterns into its cache.

    Raises
    ------
    BertNumpyError
        If the hub does not give them.
    """
    return _fetch(repository, patterns, "dataset")


def _fetch(repository: str, patterns: list[str], kind: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (only where the hub is asked)

    try:
        return Path(snapshot_download(repository, repo_type=kind, allow_patterns=patterns))
    except Exception as error:  # its own errors, and whatever its HTTP library raises
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__  # "404", then what that means
        raise BertNumpyError(
            f"{repository}: expected a {kind} folder or a hub id, found no such folder, and from "
            f"the hub: {reason}"
        ) from error
