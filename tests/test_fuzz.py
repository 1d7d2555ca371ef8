"""The fuzzer's share of every run; the script itself runs any number of cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from factories import write_checkpoint

from bert_numpy import BertNumpyError, load, load_tokenizer
from bert_numpy.quantization.calibration import load_calibration
from npfp8.storage import save_file

SCRIPT = ROOT / "scripts" / "fuzz_checkpoint.py"


@pytest.mark.skipif(sys.platform == "win32", reason="the cases have pipes and links")
def test_damaged_files_are_refused_or_read_right() -> None:
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "400", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "400 cases, seed 1: 0 failures" in finished.stdout


# What the fuzzer has found.


def test_a_vocabulary_without_the_unknown_token(tmp_path: Path) -> None:
    """The library would say so only at a text that needs it."""
    folder = write_checkpoint(tmp_path)
    (folder / "tokenizer.json").unlink()
    words = (folder / "vocab.txt").read_text().replace("[UNK]", "[unk]")
    (folder / "vocab.txt").write_text(words)
    with pytest.raises(BertNumpyError, match=r"vocab\.txt: expected a tokenizer, found an error"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_larger_than_memory(tmp_path: Path, name: str) -> None:
    """The library would end the process."""
    folder = write_checkpoint(tmp_path)
    (folder / "tokenizer.json").unlink()
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BertNumpyError, match=f"{name}: expected at most 268435456 bytes, found"):
        load_tokenizer(folder)


def test_more_labels_than_a_head_has(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"]
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": 10**12}))
    with pytest.raises(BertNumpyError, match="'num_labels': expected at most 100000, found 1000"):
        load(folder)


def test_a_calibration_of_a_number_that_is_none(tmp_path: Path) -> None:
    metadata = {"format": "bert-numpy calibration 3", "golden": "false", "samples": "9" * 5000}
    save_file({}, tmp_path / "x", metadata)
    with pytest.raises(BertNumpyError, match="metadata 'samples': expected a number of at least 1"):
        load_calibration(tmp_path / "x")


def test_a_large_json_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    with (folder / "config.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(BertNumpyError, match="expected at most 100000000 bytes of JSON"):
        load(folder)


def test_an_error_is_not_as_long_as_what_was_found(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, config_overrides={"hidden_act": "x" * 1_000_000})
    with pytest.raises(BertNumpyError, match="'hidden_act': expected one of") as caught:
        load(folder)
    assert len(str(caught.value)) < 5000
