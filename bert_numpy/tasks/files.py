"""Finding a task's examples: in a file, a folder, or a data set of the Hugging Face hub.

A folder may hold the official files, JSON Lines, or the hub's Parquet files. For
each part of the data they are searched in this order, in the folder itself and
in the task's subfolders.
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.hub import fetch_dataset, is_hub_id
from bert_numpy.errors import BertNumpyError
from bert_numpy.tasks.task import Task

__all__ = ["find_files"]


def find_files(data: str | Path, task: Task[Any], name: str) -> list[Path]:
    """Find the files of one part of a task's data; there are several if it comes in shards.

    Parameters
    ----------
    data : str or Path
        The task's folder, a folder of tasks' folders, or the id of a data set
        on the hub (``nyu-mll/glue``, ``rajpurkar/squad``), from which the files
        of this part are fetched.
    task : Task
    name : str
        The official file's name, such as ``dev.tsv``; other names follow from it.

    Raises
    ------
    BertNumpyError
        If there is no such folder, or if it has none of the files.
    """
    stem = name.rpartition(".")[0]
    split = hub_split(name)
    lines = dict.fromkeys((f"{stem}.jsonl", f"{split}.jsonl"))
    shards = f"{split}-*-of-*.parquet"
    folder = Path(data)
    if not os.path.lexists(folder):
        if "/" not in str(data) or not is_hub_id(str(data)):
            raise BertNumpyError(f"{data}: no such file or folder")
        folder = fetch_dataset(str(data), [f"{task.hub_config}/{shards}"])
    places = [
        folder / part for part in dict.fromkeys(("", task.folder, task.name, task.hub_config))
    ]
    for pattern in (name, *lines, shards):
        for place in places:
            if found := sorted(path for path in place.glob(pattern) if path.is_file()):
                _check_shards(found)
                return found
    names = ", ".join((name, *lines, shards))
    raise BertNumpyError(
        f"{data}: expected one of {names}, here or in {task.folder}, found none of them"
    )


def hub_split(name: str) -> str:
    """Return the hub's name for the part of the data that an official file holds.

    >>> hub_split("dev_matched.tsv"), hub_split("train-v1.1.json")
    ('validation_matched', 'train')
    """
    return name.rpartition(".")[0].removesuffix("-v1.1").replace("dev", "validation")


def _check_shards(paths: list[Path]) -> None:
    """Refuse a part of the data that lacks a shard, by the number in the names."""
    if paths[0].suffix != ".parquet":
        return
    count = paths[0].stem.rpartition("-of-")[2]
    if not count.isdecimal():
        raise BertNumpyError(f"{paths[0]}: expected a name that ends in -of-NUMBER")
    if len(paths) != int(count):
        raise BertNumpyError(
            f"{paths[0]}: expected {int(count)} files as the name says, found {len(paths)}"
        )
