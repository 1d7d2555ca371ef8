"""Check where the results of a command go, before the work that makes them.

Each output can be written, is not a file that the command reads, and is neither the file of
another output nor in its folder.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.hub import EMBEDDED, MODEL_FILES, is_hub_id, kit_folder, resolve
from bert_numpy.checkpoints.pooling import pooling_files
from bert_numpy.checkpoints.quantized import TOKENIZER_FILES, check_target
from bert_numpy.checkpoints.tensors import INDEX, SINGLE, read_weight_map
from bert_numpy.errors import BertNumpyError, writing
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.registry import any_task_named, require_test_set
from bert_numpy.tasks.task import Task
from npfp8.files import check_file, same_file

__all__ = ["check_apart", "check_output", "check_outputs", "submission_file"]

#: The options whose value is a file to write.
_FILES = ("json", "save_calibration", "predictions", "html")

#: The options and arguments whose values are files to read, or folders of files.
_READ = (
    *("calibration", "calibration_data", "texts", "sources", "inputs"),
    *("file", "files", "kit", "candidate"),
)

#: The files of a checkpoint's folder that are not read.
_OTHER_MODEL_FILES = ("README.md", "SHA256SUMS", "pytorch_model.bin", "tf_model.h5")


@dataclass(frozen=True)
class Output:
    """A file, or a folder to make, and the option or argument that names it."""

    option: str
    path: Path
    is_folder: bool = False


def check_outputs(arguments: argparse.Namespace) -> None:
    """Check all outputs of a command.

    Raises
    ------
    BertNumpyError
        Names the output.
    """
    outputs = _outputs(arguments)
    for output in outputs:
        if output.is_folder:
            check_target(output.path)
        else:
            check_output(output.path)
    if getattr(arguments, "plot", None) is not None:
        _check_figures(Path(arguments.plot))
    check_apart(outputs)
    if outputs:
        _check_inputs(outputs, arguments)


def check_output(path: str | Path) -> None:
    """Check that a file can be written; raise :class:`BertNumpyError` if not."""
    path = Path(path)
    with writing(path):
        try:
            check_file(path)
        except IsADirectoryError:
            raise BertNumpyError(
                f"{path}: cannot be written: expected a file's name, found a folder"
            ) from None
        except FileNotFoundError:
            folder = os.path.dirname(os.path.realpath(path) if path.is_symlink() else path) or "."
            if os.path.isdir(folder):
                raise
            raise BertNumpyError(
                f"{path}: cannot be written: there is no folder {folder}"
            ) from None


def check_apart(outputs: Sequence[Output]) -> None:
    """Refuse two outputs that are one file, or one inside a folder that another makes."""
    for number, output in enumerate(outputs):
        for other in outputs[:number]:
            if same_file(output.path, other.path) and not output.path.is_char_device():
                raise BertNumpyError(
                    f"{output.path}: expected a file for {other.option} and another for "
                    f"{output.option}, found one for both"
                )
    for folder in (output for output in outputs if output.is_folder):
        for output in outputs:
            if not output.is_folder and _is_within(output.path, folder.path):
                raise BertNumpyError(
                    f"{output.path}: expected a place for {output.option} outside the folder "
                    f"{folder.path}, which is made whole"
                )


def submission_file(out: str, task: Task[Any]) -> str:
    """Return the file of a submission: ``out``, or a file in it if it is a folder.

    Raises
    ------
    BertNumpyError
        If the task has no test set.
    """
    name = require_test_set(task).submission_file
    return os.path.join(out, name) if os.path.isdir(out) else out


def _outputs(arguments: argparse.Namespace) -> list[Output]:
    found = [
        Output(f"--{name.replace('_', '-')}", _file(value))
        for name in _FILES
        if (value := getattr(arguments, name, None)) is not None
        and not (name == "json" and value == "-")
    ]
    kind = getattr(arguments, "out_kind", None)
    if kind is None and getattr(arguments, "out", None) is not None:
        found.append(Output("--out", _file(arguments.out)))
    elif kind == "folder":
        found.append(Output("OUT", Path(arguments.out), is_folder=True))
    elif kind is not None:
        path = arguments.out
        if kind == "submission":
            path = submission_file(path, any_task_named(arguments.task))
        found.append(Output("OUT", _file(path)))
    return found


def _file(path: str) -> Path:
    """Return the path of a file; its last part must be a name."""
    if path.endswith((os.sep, os.altsep or os.sep)) or os.path.basename(path) == os.curdir:
        raise BertNumpyError(f"{path}: cannot be written: expected a file's name, found a folder's")
    return Path(path)


def _check_figures(folder: Path) -> None:
    """Refuse a folder of figures that cannot be made or written to."""
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise BertNumpyError(f"{folder}: cannot be written: expected a folder, found a file")
        place = folder / "sqnr.png"
    else:
        place = Path(os.path.abspath(folder))
        while not os.path.lexists(place.parent):
            place = place.parent
    with writing(folder):
        check_file(place)


def _check_inputs(outputs: Sequence[Output], arguments: argparse.Namespace) -> None:
    """Refuse to overwrite what the command reads."""
    inputs = [path for path in _inputs(arguments) if not path.is_char_device()]
    for output in outputs:
        for path in inputs:
            if same_file(output.path, path):
                raise BertNumpyError(
                    f"{output.path}: cannot be written: {output.option} would overwrite a file "
                    "that is read"
                )
    for name, kind in (("model", "models"), ("data", "datasets")):
        value = getattr(arguments, name, None)
        if value in (None, EMBEDDED) or os.path.exists(value) or not is_hub_id(value):
            continue
        from huggingface_hub import constants  # noqa: PLC0415 (only for what is on the hub)

        cache = Path(constants.HF_HUB_CACHE) / f"{kind}--{value.replace('/', '--')}"
        for output in outputs:
            if _is_within(output.path, cache):
                raise BertNumpyError(
                    f"{output.path}: cannot be written: {output.option} would write into the hub's "
                    "cache"
                )


def _inputs(arguments: argparse.Namespace) -> Iterator[Path]:
    """List the files that a command reads, and those that it would read if they were there."""
    for name in _READ:
        values = getattr(arguments, name, None) or []
        as_path = kit_folder if name == "kit" else Path
        for path in map(as_path, values if isinstance(values, list) else [values]):
            yield path
            if os.path.isdir(path):
                yield from (part for part in path.rglob("*") if part.is_file())
    formats = getattr(arguments, "format", None) or getattr(arguments, "formats", None) or ""
    yield from (Path(part.strip()) for part in formats.split(",") if part.strip().endswith(".json"))
    yield from REVIEWS.iterdir()
    model = getattr(arguments, "model", None)
    if model is not None:
        with suppress(BertNumpyError):  # which loading it will find
            if os.path.isdir(model) or model == EMBEDDED:
                yield from _model_files(resolve(model))
    if getattr(arguments, "data", None) is not None:
        yield from _data_files(arguments.data, arguments.task)


def _model_files(folder: Path) -> Iterator[Path]:
    names = [*MODEL_FILES, *TOKENIZER_FILES, *_OTHER_MODEL_FILES, SINGLE, INDEX]
    for find in (lambda: read_weight_map(folder / INDEX).values(), lambda: pooling_files(folder)):
        with suppress(BertNumpyError, OSError):
            names += find()
    yield from (folder / name for name in dict.fromkeys(names))


def _data_files(data: str, task: str | None) -> Iterator[Path]:
    if not os.path.isdir(data):
        yield Path(data)
        # The training file beside it is read, too.
        data = os.path.dirname(data) or "."
    if task is None or not os.path.isdir(data):
        return
    known = any_task_named(task)
    test = [] if known.test_set is None else [known.test_set.file]
    for part in (known.dev, known.train, *test):
        with suppress(BertNumpyError):
            yield from find_files(data, known, part)


def _is_within(path: Path, folder: Path) -> bool:
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return Path(inner).is_relative_to(outer) and inner != outer
