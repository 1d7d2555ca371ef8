"""Errors of reading: one phrase per error, beginning with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_numpy import BertNumpyError, load_calibration, load_recipe
from bert_numpy.checkpoints.tensors import read_weight_map
from bert_numpy.commands.main import main
from bert_numpy.errors import read_json, reading
from bert_numpy.evaluation.job import require_regular
from bert_numpy.tasks.records import read_lines

FILE = Path("folder") / "x.bin"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory"), "no such file"),
        (PermissionError(13, "Permission denied"), "cannot be read: Permission denied"),
        (OSError("of a library"), "cannot be read: of a library"),
        (MemoryError(), "cannot be read: not enough memory"),
        (ValueError("expected a, found b"), "expected a, found b"),
        (ValueError(f"{FILE}: expected a, found b"), "expected a, found b"),
        (ValueError("x.bin: expected a, found b"), "expected a, found b"),
        (ValueError(f"{FILE.parent}: of another place"), f"{FILE.parent}: of another place"),
        (BertNumpyError(f"{FILE}: expected a, found b"), "expected a, found b"),
        (BertNumpyError("key 'a': expected b"), "key 'a': expected b"),
    ],
)
def test_reading(error: Exception, message: str) -> None:
    for name in (FILE, str(FILE), f"./{FILE}"):
        with pytest.raises(BertNumpyError) as found, reading(name):
            raise error
        assert str(found.value).removeprefix("./") == f"{FILE}: {message}"


def test_reading_keeps_the_place_in_a_file() -> None:
    with pytest.raises(BertNumpyError) as found, reading(FILE):
        raise ValueError(f"{FILE} line 3: expected a, found b")
    assert str(found.value) == f"{FILE} line 3: expected a, found b"


def test_a_short_name_is_not_taken_for_a_word_of_the_message() -> None:
    with pytest.raises(BertNumpyError) as found, reading("e"):
        raise ValueError("expected a, found b")
    assert str(found.value) == "e: expected a, found b"


def test_mistakes_of_the_program_stay_what_they_are() -> None:
    with pytest.raises(KeyError), reading(FILE):
        raise KeyError("x")


READERS = {
    "read_json": read_json,
    "read_lines": read_lines,
    "read_weight_map": read_weight_map,
    "load_recipe": load_recipe,
    "load_calibration": load_calibration,
    "require_regular": require_regular,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_every_reader_says_it_alike(
    reader: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(reader)
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop.name)
    for path, message in (
        (tmp_path / "none.jsonl", "no such file"),
        (loop, "cannot be read: Too many levels of symbolic links"),
        (tmp_path, "expected a file, found a folder"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
    ):
        with pytest.raises(BertNumpyError) as found:
            reader(path)
        assert str(found.value) == f"{path}: {message}"
        assert main(["golden", "check-vectors", str(path)]) == 2
        assert capsys.readouterr().err == f"bert-numpy: {path}: {message}\n"
