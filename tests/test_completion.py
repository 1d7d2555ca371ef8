"""Completion scripts, run by the shells themselves."""

import contextlib
import io
import shutil
import subprocess

import pytest

from bert_numpy.commands import main as cli
from bert_numpy.commands.completion import SHELLS
from npfp8 import ACCUMULATORS


def complete(*words):
    """Return the completions that bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    script = io.StringIO()
    with contextlib.redirect_stdout(script):
        assert cli.main(["completion", "bash"]) == 0
    program = (
        f"{script.getvalue()}\n"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_bert_numpy\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash():
    assert complete("bert-numpy", "completion", "z") == ["zsh"]
    commands = complete("bert-numpy", "golden", "")
    assert {"export", "verify", "list", "info", "text", "vectors", "check-vectors"} <= set(commands)
    assert complete("bert-numpy", "golden", "verify", "--require", "op") == ["operator"]
    assert complete("bert-numpy", "golden", "list", "k", "--op") == ["--operation"]
    assert complete("bert-numpy", "golden", "list", "k", "--level", "m") == ["model"]
    assert complete("bert-numpy", "golden", "verify", "--le") == []  # that is export's
    assert complete("bert-numpy", "golden", "export", "m", "o", "--le") == ["--level"]
    assert complete("bert-numpy", "golden", "verify", "--profile", "s") == ["statistical"]
    assert complete("bert-numpy", "predict", "--accumulate", "hopper") == [
        name for name in ACCUMULATORS if name.startswith("hopper")
    ]
    assert complete("bert-numpy", "evaluate", "--task", "mn") == ["mnli", "mnli-mm"]
    assert complete("bert-numpy", "quantize", "--recipe", "mi") == ["mixed"]
    assert complete("bert-numpy", "quantize", "--recipe", "./mine.js") == []  # files
    assert complete("bert-numpy", "qu") == ["quantize"]
    assert complete("bert-numpy", "cal") == ["calibrate", "calibration"]
    assert complete("bert-numpy", "embed", "model", "--ou") == ["--out"]
    assert complete("bert-numpy", "compare", "model", "--te") == ["--texts"]
    assert complete("bert-numpy", "golden", "ver") == ["verify"]
    assert complete("bert-numpy", "golden", "verify", "--js") == ["--json"]
    assert complete("bert-numpy", "--v") == ["--version"]
    assert complete("bert-numpy", "evaluate", "model", "--pre") == ["--predictions"]
    assert complete("bert-numpy", "demo", "--pre") == []
    assert complete("bert-numpy", "quantize", "some") == []


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with files and a folder, which is the current one."""
    for name in ("mine.json", "mine.tsv"):
        (tmp_path / name).touch()
    (tmp_path / "mined").mkdir()
    monkeypatch.chdir(tmp_path)


CASES = {
    "info mi": ["mine.json", "mine.tsv", "mined"],
    "quantize model mi": ["mined"],  # a folder to make
    "evaluate model --data mi": ["mine.json", "mine.tsv", "mined"],
    "predict model text --calibration mi": ["mine.json", "mine.tsv", "mined"],
    "predict model text --format e5": ["e5m2"],
    "predict model text --format sto": ["stored"],
    "quantize model out --recipe mi": ["mine.json", "mined", "mixed"],
    "compare model --formats fp32,e4m3,int8-sm": [
        *("fp32,e4m3,int8-smooth", "fp32,e4m3,int8-smooth-paper"),
    ],
    "compare model --formats e4m3-m": ["e4m3-mse"],
    "embed model a mi": ["mine.json", "mine.tsv", "mined"],
    "golden export model out --level co": ["codec"],
    "completion ": ["bash", "fish", "tcsh", "zsh"],
    "predict be": ["bert-tiny-sst2"],
    "golden verify bert": ["bert-tiny-sst2"],
    "golden info bert": ["bert-tiny-sst2"],
    "golden list mi": ["mine.json", "mine.tsv", "mined"],
    "golden verify mi": ["mine.json", "mine.tsv", "mined"],
    "help ca": ["calibrate", "calibration"],
    "hel": ["help"],
}


@pytest.mark.usefixtures("files")
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("line", CASES)
def test_files_folders_and_names_in_bash(line):
    assert sorted(complete("bert-numpy", *line.split(" "))) == CASES[line]


@pytest.mark.usefixtures("files")
@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize("line", CASES)
def test_files_folders_and_names_in_fish(line, capsys):
    assert cli.main(["completion", "fish"]) == 0
    program = f"{capsys.readouterr().out}\ncomplete -C 'bert-numpy {line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], capture_output=True, text=True, check=True
    )
    words = [part.split("\t")[0].rstrip("/") for part in done.stdout.splitlines()]
    assert sorted(words) == CASES[line]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_offered_and_the_script_is_valid(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    options = ("save-calibration", "texts", "out")
    for command in ("demo", "export-onnx", "calibration", "calibrate", "embed", *options):
        assert command in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script was not parsed")
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
