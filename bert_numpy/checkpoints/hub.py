"""Finding a model: from a user's name for it to a folder on this machine.

``huggingface-hub`` fetches repositories of the Hugging Face hub into its cache, uses its
tokens, and reads only the cache when it is offline.
"""

from __future__ import annotations

import glob
import os.path
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_numpy.assets import ASSETS
from bert_numpy.checkpoints.tensors import INDEX, SINGLE, missing_weights, read_weight_map
from bert_numpy.errors import BertNumpyError
from bert_numpy.progress import is_shown
from npfp8.arguments import require
from npfp8.names import suggestion

__all__ = [
    "EMBEDDED",
    "MODEL_FILES",
    "check_name",
    "fetch_dataset",
    "is_hub_id",
    "is_local",
    "kit_folder",
    "resolve",
]

#: The checkpoint that comes with the package.
EMBEDDED = "bert-tiny-sst2"


_CONFIG = "config.json"

#: The files, besides the weights, that are read from a hub repository or copied beside quantized
#: weights. Nothing else is fetched.
MODEL_FILES = [
    _CONFIG,
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    # The files of a sentence-transformers folder:
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_Pooling/config.json",
    "[0-9]*_Dense/config.json",
    "[0-9]*_Normalize/config.json",
    # An adapter is fetched so that load() can refuse a model that is incomplete without it:
    "adapter_config.json",
]


def resolve(name: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name : str or Path
        The first that fits of: a folder; ``bert-tiny-sst2``, the embedded model; an
        ``owner/name`` on the Hugging Face hub, fetched into its cache. A name without an owner
        is looked for on the hub too (``bert-base-uncased``), unless it is so near the embedded
        model's that it must be a typing error.
    revision : str, optional
        A branch, tag or commit of the repository on the hub; by default "main".
    weights : bool
        True if the weights are needed, too.

    Raises
    ------
    BertNumpyError
        If there is no such folder and the hub does not provide it, or if a revision
        is given for a model that is not on the hub.
    """
    text = os.fspath(name)
    folder = Path(text)
    found = None
    if os.path.isdir(text):  # unlike Path.is_dir, False for "" and for impossible paths
        found = folder
    elif text == EMBEDDED:
        found = ASSETS / EMBEDDED
    elif os.path.exists(text):
        raise BertNumpyError(f"{text}: expected a model folder, found a file")
    else:
        near = suggestion(text, [EMBEDDED]) if "/" not in text.rstrip("/") else ""
        if near or not is_hub_id(text):
            place = text or repr(text)
            raise BertNumpyError(f"{place}: expected a model folder, found no such folder{near}")
    if found is None:
        return _fetch_model(text, revision, weights)
    if revision is not None:
        raise BertNumpyError(f"{text}: expected a hub id for revision {revision!r}, found a folder")
    return found


def check_name(folder_or_hub_id: object, revision: object = None) -> None:
    """Raise TypeError unless a model's name is a str or a path, and a revision a str or None."""
    require("folder_or_hub_id", folder_or_hub_id, (str, os.PathLike), "a folder or a model's name")
    require("revision", revision, (str, type(None)), "a branch, tag or commit, or None")


def is_local(name: str) -> bool:
    """Check whether a model's name refers to a folder of this machine, not to the hub."""
    return os.path.exists(name) or name == EMBEDDED


def kit_folder(name: str | Path) -> Path:
    """Return the folder of a kit; the embedded kit has the name of the embedded model."""
    embedded = os.fspath(name) == EMBEDDED and not os.path.isdir(name)
    return ASSETS / f"{EMBEDDED}-kit" if embedded else Path(name)


def is_hub_id(text: str) -> bool:
    """Check whether a name can be ``owner/name`` on the hub, and is not clearly a path."""
    unlike = not text or Path(text).is_absolute() or text.startswith((".", "~"))
    unlike |= text.endswith("/")
    return not unlike and text.count("/") <= 1


def fetch_dataset(repository: str, patterns: list[str], revision: str | None = None) -> Path:
    """Fetch the files of a data set on the hub that fit any of the patterns into its cache.

    Raises
    ------
    BertNumpyError
        If the hub does not provide them.
    """
    return _fetch(repository, patterns, "dataset", revision)


def _fetch_model(repository: str, revision: str | None, weights: bool) -> Path:
    """Fetch the one file of weights or, if there is none, the shards that the index names."""
    wanted = [*MODEL_FILES, SINGLE, INDEX, f"[0-9]*_Dense/{SINGLE}"] if weights else MODEL_FILES
    folder = _fetch(repository, wanted, "model", revision)
    if not (folder / _CONFIG).is_file():
        found = ", ".join(_listing(repository, folder)[:10]) or "no file"
        raise BertNumpyError(f"{_called(repository, revision)}: expected {_CONFIG}, found {found}")
    if not weights or (folder / SINGLE).is_file():
        return folder
    if not (folder / INDEX).is_file():
        raise missing_weights(_called(repository, revision), _listing(repository, folder))
    # The folder's name is the commit: the shards come from the same commit as the index.
    shards = dict.fromkeys(read_weight_map(folder / INDEX).values())
    return _fetch(repository, [glob.escape(shard) for shard in shards], "model", folder.name)


def _listing(repository: str, folder: Path) -> list[str]:
    """List all files of a fetched commit; only those in the cache if the hub is unreachable."""
    from huggingface_hub import HfApi  # noqa: PLC0415 (only where the hub is asked)

    try:
        return sorted(HfApi().list_repo_files(repository, revision=folder.name))
    except Exception:  # the list is for an error's text and must not raise another error
        return sorted(path.name for path in folder.iterdir())


def _fetch(repository: str, patterns: list[str], kind: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (only where the hub is asked)

    try:
        return Path(
            snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                allow_patterns=patterns,
                tqdm_class=_progress_bar(),
            )
        )
    except Exception as error:  # its own errors, and any error of its HTTP library
        raise BertNumpyError(
            f"{_called(repository, revision)}: expected a {kind} folder or a hub id, found no such "
            f"folder, and from the hub: {_reason(error, repository, kind, revision)}"
            f"{suggestion(repository, [EMBEDDED]) if kind == 'model' else ''}"
        ) from error


def _called(repository: str, revision: str | None) -> str:
    return repository if revision is None else f"{repository}@{revision}"


def _progress_bar() -> Any:
    """Make the library's progress bar silent without a terminal, or if that is wanted."""
    import huggingface_hub.utils  # noqa: PLC0415

    silent = not is_shown()  # asked here: files are fetched by threads
    base: Any = huggingface_hub.utils.tqdm  # type: ignore[attr-defined]

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if silent:
                options["disable"] = True
            super().__init__(*arguments, **options)

    return Bar


def _reason(error: BaseException, repository: str, kind: str, revision: str | None) -> str:
    """Explain the hub's answer, and what to do about it, in one line."""
    import huggingface_hub.utils  # noqa: PLC0415

    constants: Any = huggingface_hub.constants
    utils: Any = huggingface_hub.utils  # every release has all of these errors here
    chain = list(_causes(error))
    responses = [getattr(each, "response", None) for each in chain]
    status = next((r.status_code for r in responses if r is not None), None)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    token = "set HF_TOKEN to a token of an account that may read it"
    if constants.HF_HUB_OFFLINE:
        return "it is not whole in the cache, and HF_HUB_OFFLINE is set: unset it to fetch"
    if is_a(utils.GatedRepoError) or status == 403:
        page = {"model": repository}.get(kind, f"{kind}s/{repository}")
        return (
            f"access refused ({status}): accept the terms at {constants.ENDPOINT}/{page}, and "
            f"{token}"
        )
    if is_a(utils.RevisionNotFoundError):
        return f"revision {revision!r} not found ({status}): expected a branch, a tag or a commit"
    if is_a(utils.RepositoryNotFoundError) or status in (401, 404):
        return f"{kind} not found, or private ({status}): check its name, or {token}"
    lines = [line for line in str(chain[-1]).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(chain[-1]).__name__
    if is_a(utils.HFValidationError):
        return text.rstrip(".")
    if status is None and any(type(each).__name__ in _UNREACHABLE for each in chain):
        text = f"{constants.ENDPOINT} cannot be reached: check the name, and the connection"
    return f"{text}; run it again once the hub can be reached"


#: The classes by which HTTP libraries, and Python, say that a connection could not be made.
_UNREACHABLE = (
    *("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "SSLError"),
    *("NewConnectionError", "MaxRetryError", "gaierror", "ConnectionRefusedError"),
)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
