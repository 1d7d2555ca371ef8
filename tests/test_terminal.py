"""Text from files on a terminal, encodings, closed and full streams, and how commands end."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint
from terminal import on_a_terminal

from bert_numpy import PRESETS, BertNumpyError, load_calibration, save_calibration, save_recipe
from bert_numpy.assets import ASSETS, REVIEWS
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.commands import predict
from bert_numpy.commands.main import main
from bert_numpy.commands.model_card import model_card
from bert_numpy.errors import one_line, shown, writing
from bert_numpy.kit.manifest import Kit, open_kit, write_kit
from bert_numpy.tasks.tokenizer_backend import library_errors

EMBEDDED = "bert-tiny-sst2"
Capture = pytest.CaptureFixture[str]

#: What a terminal obeys, hides or breaks lines at, and markup and emoji names of rich.
HOSTILE = "a\x1b[31mb\x1b]0;t\x07c\r\nd\0e\x7ff\x85g\x9bh\u202ei\u2066j\u200bk\ufeffl\u2028m\u2029n"
MARKUP = "[red]o[/red] [/] [bold :smile: \\["


def is_safe(text: str) -> bool:
    """Check that a text has only visible characters and line ends."""
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return all(c == "\n" or unicodedata.category(c) not in unsafe for c in text)


# What is shown


def test_every_character() -> None:
    for code in [*range(0x3400), *range(0xD7F0, 0x1F650), *range(0xE0000, 0xE01F0)]:
        character = chr(code)
        text = shown(character)
        if is_safe(character) and character != "\n":
            assert text == character
        else:
            assert text == character.encode("unicode_escape").decode("ascii")
            assert text.isascii()
            assert text.isprintable()


@pytest.mark.parametrize(
    "text", ["", "a b", "caf\u00e9 \u5dee \U0001f600", "a\u00a0b\u3000c", MARKUP]
)
def test_text_that_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_messages_are_one_safe_line_of_a_bounded_length() -> None:
    error = BertNumpyError(f"{HOSTILE}: expected")
    assert is_safe(str(error))
    assert "\n" not in str(error)
    assert str(error).startswith(r"a\x1b[31mb\x1b]0;t\x07c\r\nd\x00e\x7ff\x85g\x9bh\u202e")
    for long in ("x" * 10**6, "\U000e0001" * 10**6, "\x1b" * 3999):
        assert 3900 < len(str(BertNumpyError(f"begin{long}end"))) < 4100
        assert str(BertNumpyError(f"begin{long}end")).startswith("begin")
        assert str(BertNumpyError(f"begin{long}end")).endswith("end")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (BertNumpyError, str(error))


def test_errors_of_libraries_become_one_line() -> None:
    assert one_line(ValueError("first\n\n  second\tpart\r\nthird")) == "first second part third"
    assert one_line(LookupError()) == "LookupError"
    with pytest.raises(BrokenPipeError), writing("x"):
        raise BrokenPipeError


# Names from files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    lines = (REVIEWS / "dev.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:9]
    for name in ("dev.tsv", "train.tsv"):
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder


def model_of_labels(folder: Path, labels: Sequence[str]) -> Path:
    shutil.copytree(resolve(EMBEDDED), folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    config["label2id"] = {label: number for number, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", [HOSTILE, MARKUP, "\ud800", "x" * 500])
def test_names_of_labels_operands_and_recipes(
    name: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    lines: dict[str, int] = {}

    def run(key: str, argv: Sequence[str], code: int = 0) -> str:
        assert main([*argv]) == code, capsys.readouterr().err
        output = capsys.readouterr()
        assert is_safe(output.out + output.err), ascii(output.out + output.err)
        # A long name may wrap a text or the headers of a table; then lines begin with spaces.
        begin = [line.removeprefix("|")[:2] for line in output.out.splitlines()]
        count = len(begin) - begin.count("  ")
        assert count == lines.setdefault(key, count)
        return output.out + output.err

    for number, text in enumerate(("plain", name)):
        label = "".join(text.splitlines())  # one line, as a config must have it
        folder = model_of_labels(tmp_path / f"model{number}", [label, "other"])
        saved = tmp_path / f"saved{number}"
        recipe = tmp_path / f"{number}.json"
        save_recipe(replace(PRESETS["e4m3"], name=text), recipe)
        assert shown(label) in run("predict", ["predict", str(folder), "a warm film"])
        assert shown(label) in run("info", ["info", str(folder)])
        task = ["--task", "sst2", "--data", str(data), "--formats", str(recipe)]
        argv = ["compare", EMBEDDED, *task, "--save-calibration", str(saved)]
        assert shown(text.upper()) in run("compare", argv)
        argv = ["predict", EMBEDDED, "film", "--format", str(recipe), "--accumulate", "float16"]
        assert shown(text) in run("recipe", argv, code=2)  # its logits are NaN
        calibration = load_calibration(saved)
        message = run("pattern", ["calibration", str(saved), "--operand", f"{text}!"], code=2)
        assert len(message.splitlines()) == 1
        operands = {f"{text}{key}": seen for key, seen in calibration.operands.items()}
        if text not in ("\ud800", "plain", "x" * 500):  # the name of no file; names of sites
            save_calibration(replace(calibration, operands=operands), saved)
            message = run("calibration", ["calibration", str(saved)], code=2)
            assert shown(repr(text)[1:-1]) in message
            assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", [f"{HOSTILE}{MARKUP}"])
def test_names_of_a_kits_tensors(name: str, tmp_path: Path, capsys: Capture) -> None:
    kit = open_kit()
    rounded = "operator/round/result"
    (source,) = (item.tensor for item in kit.tensors[rounded].inputs.values())
    tensors = {source: kit.tensors[source], name: kit.tensors[rounded]}
    for folder, sign in (("good", 1), ("bad", -1)):
        arrays = {source: kit.arrays[source], name: sign * kit.arrays[rounded]}
        write_kit(Kit(kit.header, tensors, arrays), tmp_path / folder)
    page = tmp_path / "page.html"
    argv = [str(tmp_path / "good"), str(tmp_path / "bad" / "tensors.safetensors")]
    assert main(["golden", "verify", *argv, "--html", str(page)]) == 1
    output = capsys.readouterr()
    assert is_safe(output.out + output.err)
    assert shown(name) in output.out
    text = page.read_text(encoding="utf-8")
    assert is_safe(text)
    assert "[red]o[/red]" in text


@pytest.mark.parametrize(
    "argv",
    [
        ["info", f"./{HOSTILE}"],
        ["predict", EMBEDDED, "film", "--format", f"{HOSTILE}.json"],
        ["predict", EMBEDDED, "film", "--json", f"missing{HOSTILE}/x"],
        ["predict", EMBEDDED, "film", "--revision", HOSTILE],
        ["predict", EMBEDDED, "film", "--format", "e4m3", "--calibration", HOSTILE],
        ["predict", EMBEDDED, "film", "--format", "e4m3", "--calibration-data", HOSTILE],
        ["evaluate", EMBEDDED, "--task", "sst2", "--data", HOSTILE],
        ["golden", "verify", HOSTILE, "."],
        ["golden", "check-vectors", HOSTILE],
        ["calibration", HOSTILE],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_arguments_in_messages(argv: list[str], capsys: Capture) -> None:
    assert main(argv) == 2
    output = capsys.readouterr()
    assert is_safe(output.err)
    assert (output.out, output.err.count("\n")) == ("", 1)


def test_arguments_in_messages_about_the_usage(capsys: Capture) -> None:
    for argv in (
        [HOSTILE],
        ["info", EMBEDDED, HOSTILE],
        ["info", EMBEDDED, f"--{HOSTILE}"],
        ["predict", EMBEDDED, "film", "--format", HOSTILE],
        ["evaluate", EMBEDDED, "--task", HOSTILE, "--data", "."],
    ):
        with pytest.raises(SystemExit):
            main(argv)
        error = capsys.readouterr().err
        assert is_safe(error)
        assert error.count("\n") == 3  # the usage, where the help is, and the message


def test_names_in_progress_bars(data: Path, tmp_path: Path) -> None:
    save_recipe(replace(PRESETS["e4m3"], name=f"{MARKUP}\x1b]0;title\x07"), tmp_path / "r.json")
    argv = ["evaluate", EMBEDDED, "--task", "sst2", "--data", str(data)]
    _, seen = on_a_terminal([*argv, "--format", str(tmp_path / "r.json"), "--json", "-"])
    assert "[red]o[/red]" in seen
    assert "\x1b]0;" not in seen


def test_names_in_a_model_card() -> None:
    row = {"metrics": {}, "flips": 0, "relative_logit_error": 0.0, "weight_bytes": 1}
    report = {"task": "sst2", "examples": 1, "calibration_samples": 0, "golden": False}
    report |= {"model": f"/x/{HOSTILE}", "rows": [row, row]}
    text = model_card(report, replace(PRESETS["e4m3"], name=HOSTILE))
    assert is_safe(text)
    assert "\n# a\\\\x1b\\[31mb" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a|b", r"a\|b"),
        ("`c`", r"\`c\`"),
        ("<script>x</script>", r"\<script\>x"),
        ("![x](http://y)", r"\!\[x\]\(http\:"),
        ("&lt;", r"\&lt;"),
        ("\n---\nlicense: mit", r"\\n---\\nlicense\: mit"),
    ],
)
def test_a_name_is_no_markup_in_a_model_card(name: str, written: str) -> None:
    row = {"metrics": {}, "flips": 0, "relative_logit_error": 0.0, "weight_bytes": 1}
    report = {"task": "sst2", "examples": 1, "calibration_samples": 0, "golden": False}
    recipe = replace(PRESETS["e4m3"], name=name)
    text = model_card(report | {"model": name, "rows": [row, row]}, recipe).partition("## Use")[0]
    assert text.count(written) >= 3  # the title, the first sentence, the table
    assert name not in text.replace(written, "")
    table = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1


def test_a_model_card_names_a_model_of_the_hub_only(tmp_path: Path) -> None:
    row = {"metrics": {}, "flips": 0, "relative_logit_error": 0.0, "weight_bytes": 1}
    report = {"task": "sst2", "examples": 1, "calibration_samples": 0, "golden": False}
    for name in ("models/mine", "./model"):
        text = model_card(report | {"model": name, "rows": [row, row]}, PRESETS["e4m3"])
        assert "base_model" not in text
    for name in ("owner/name", "null"):
        text = model_card(report | {"model": name, "rows": [row, row]}, PRESETS["e4m3"], name)
        assert f'\nbase_model: "{name}"\n' in text


def test_an_error_without_text_is_named() -> None:
    assert one_line(MemoryError()) == "not enough memory"
    assert one_line(MemoryError("of 3 GB")) == "of 3 GB"
    assert one_line(KeyError()) == "KeyError"
    with (
        pytest.raises(BertNumpyError, match=r"^tokenizer\.json: not enough memory$"),
        library_errors("tokenizer.json: "),
    ):
        raise MemoryError


def test_a_name_too_long_in_messages(capsys: Capture) -> None:
    name = "x" * 300
    for argv in (
        ["golden", "verify", EMBEDDED, name],
        ["predict", EMBEDDED, "film", "--format", "e4m3", "--calibration-data", name],
        ["evaluate", EMBEDDED, "--task", "sst2", "--data", name],
        ["golden", "check-vectors", name],
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bert-numpy: {name}: ")
        assert error.count(name) == error.count("\n") == 1


def test_vectors_that_are_none_are_named_once(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "file"
    for text, message in (("{", " line 1: expected"), ("\u00e9", ": expected ASCII text")):
        file.write_text(text, encoding="utf-8")
        assert main(["golden", "check-vectors", str(file)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bert-numpy: {file}{message}")
        assert error.count(str(file)) == 1


# Processes


def run_process(*argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {"COLUMNS": "200", **options.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-m", "bert_numpy", *argv],
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


ENCODINGS: dict[str, dict[str, str]] = {
    **{name: {"PYTHONIOENCODING": name} for name in ("ascii", "cp1252", "latin-1")},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LC_ALL": "POSIX"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_letters_that_the_encoding_lacks(encoding: str, data: Path, tmp_path: Path) -> None:
    """They are printed in another way, on both streams, and in as many lines."""
    environment = {"PYTHONIOENCODING": "", **ENCODINGS[encoding]}
    labels = ["\u5dee\U0001f600", "\u597d"]
    model = str(model_of_labels(tmp_path / "model", labels))
    save_recipe(replace(PRESETS["e4m3"], name="\u5dee"), tmp_path / "r.json")
    task = ["--task", "sst2", "--data", str(data), "--formats", str(tmp_path / "r.json")]
    runs: list[tuple[list[str], int | None]] = [(["predict", model, "film"], 2)]
    if encoding == "C":  # one of those with strict ASCII is enough for the others
        runs += [(["info", model], None), (["compare", EMBEDDED, *task], 7)]
    for argv, count in runs:
        done = run_process(*argv, environment=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert count in (None, done.stdout.count(b"\n"))
        if encoding in ("UTF-8", "POSIX"):
            assert labels[0].encode() in done.stdout
        else:
            assert done.stdout.isascii()
            assert b"\\u5dee" in done.stdout.lower()
    done = run_process("info", "./\u5dee", environment=environment)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_progress_bars_in_any_encoding(
    encoding: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    argv = ["evaluate", EMBEDDED, "--task", "sst2", "--data", str(data), "--format", "e4m3"]
    _, seen = on_a_terminal(argv)
    assert "8/8" in seen
    assert encoding == "utf-8" or seen.isascii()


def closed(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


PREDICT = ["predict", EMBEDDED, "film"]
FULL = Path("/dev/full")


@pytest.mark.parametrize("argv", [PREDICT, [*PREDICT, "--json", "-"], ["--help"], ["--version"]])
def test_output_that_cannot_be_written(argv: list[str], tmp_path: Path) -> None:
    """Closed, or on a full disk: a line, exit code 2, and all the files are there."""
    out = tmp_path / "x.json"
    more = ["--json", str(out)] if argv == PREDICT else []
    runs = [run_process(*argv, *more, stdout=None, preexec_fn=closed(1))]
    if FULL.exists():
        with FULL.open("wb") as full:
            runs.append(run_process(*argv, *more, stdout=full))
    for done, reason in zip(
        runs, (b"Bad file descriptor", b"No space left on device"), strict=False
    ):
        message = b"bert-numpy: standard output: cannot be written: " + reason + b"\n"
        assert (done.returncode, done.stderr) == (2, message)
        if more:
            assert json.loads(out.read_text())["label"] == "positive"


@pytest.mark.parametrize("argv", [PREDICT, ["info", "./none"], ["info"], ["nothing"]])
def test_errors_that_cannot_be_written(argv: list[str]) -> None:
    """They are lost; the exit code is not."""
    expected = run_process(*argv)
    runs = [run_process(*argv, stderr=None, preexec_fn=closed(2))]
    runs.append(run_process(*argv, stderr=None, preexec_fn=closed(0, 2)))
    if FULL.exists():
        with FULL.open("wb") as full:
            runs.append(run_process(*argv, stderr=full))
    for done in runs:
        assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)


def test_no_file_gets_the_number_of_a_closed_stream(data: Path, tmp_path: Path) -> None:
    """Else what is printed would be in it."""
    out, saved = tmp_path / "x.json", tmp_path / "saved"
    argv = ["compare", EMBEDDED, "--task", "sst2", "--data", str(data), "--json", str(out)]
    done = run_process(
        *argv, "--save-calibration", str(saved), stdout=None, stderr=None,
        preexec_fn=closed(0, 1, 2),
    )  # fmt: skip
    assert done.returncode == 2
    assert len(json.loads(out.read_text())["rows"]) == 4
    assert load_calibration(saved).samples == 8


@pytest.mark.parametrize(
    "argv",
    [
        ["compare", EMBEDDED, "TASK", "--json", "OUT"],
        ["evaluate", EMBEDDED, "TASK", "--json", "OUT"],
        [*PREDICT, "--json", "OUT"],
        ["info", EMBEDDED, "--json", "OUT"],
        ["quantize", EMBEDDED, "MADE", "TASK", "--format", "e4m3", "--json", "OUT"],
        ["golden", "verify", EMBEDDED, "KIT", "--json", "OUT"],
        ["golden", "export", EMBEDDED, "MADE", "--level", "codec", "--json", "OUT"],
        ["--help"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_files_are_there_before_the_reader_goes(
    argv: list[str], data: Path, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    out, made = tmp_path / "x.json", tmp_path / "made"
    given = {
        "TASK": ["--task", "sst2", "--data", str(data)],
        "OUT": [str(out)],
        "MADE": [str(made)],
        "KIT": [str(ASSETS / f"{EMBEDDED}-kit")],
    }
    done = run_process(*(part for word in argv for part in given.get(word, [word])), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
    assert "OUT" not in argv or json.loads(out.read_text())
    assert "MADE" not in argv or len(list(made.iterdir())) > 1


def test_a_pipe_that_is_closed_after_the_first_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    command = (
        f'"{sys.executable}" -m bert_numpy compare {EMBEDDED} --task sst2 --data "{data}" '
        f'--json "{out}" | head -n 1; exit "${{PIPESTATUS[0]}}"'
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)  # it may be faster than head
    assert (done.stdout, done.stderr) == (f"{EMBEDDED}, sst2, 8 examples\n", "")
    assert len(json.loads(out.read_text())["rows"]) == 4


# Exceptions


class PanicException(BaseException):
    """An exception like pyo3's, which does not derive from Exception."""


REFUSALS = [
    (ValueError("scale: expected finite"), "scale: expected finite"),
    (MemoryError(), "not enough memory"),
    (FloatingPointError("overflow\nencountered"), "overflow encountered"),
    (OverflowError("too large"), "too large"),
    (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth exceeded"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "'utf-8' codec can't decode byte"),
    (Exception("a bare one"), "a bare one"),
    (PanicException("index out of bounds\n\x1b[31m"), r"index out of bounds \x1b[31m"),
    (type("ArrowInvalid", (ValueError,), {})("third\nparty"), "third party"),
]


@pytest.mark.parametrize(("error", "text"), REFUSALS, ids=lambda x: type(x).__name__)
def test_any_exception_about_the_input_is_one_line(
    error: BaseException, text: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(predict, "load", fail)
    assert main(PREDICT) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"bert-numpy: {EMBEDDED}: {text}")
    assert output.err.endswith(" (--debug shows where)\n")
    assert output.err.count("\n") == 1
    assert main([*PREDICT, "--debug"]) == 2
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize(
    "error", [TypeError("x\x1b[31m"), KeyError("x"), AssertionError(), RuntimeError("x")]
)
def test_a_mistake_of_the_program_is_a_safe_traceback(
    error: Exception, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(predict, "load", fail)
    assert main(PREDICT) == 70
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert type(error).__name__ in text.splitlines()[-1]
    assert is_safe(text)


def test_errors_of_the_system_name_the_file(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/x/\x1b[31m")

    monkeypatch.setattr(predict, "load", fail)
    assert main(PREDICT) == 2
    assert capsys.readouterr().err == ("bert-numpy: /x/\\x1b[31m: Permission denied\n")


def test_a_quantized_model_whose_products_overflow(tmp_path: Path, capsys: Capture) -> None:
    """Whatever it is that the arithmetic refuses, it is one line."""
    model = write_checkpoint(tmp_path / "model")
    saved = tmp_path / "saved"
    sentences = tmp_path / "train.tsv"
    sentences.write_text("sentence\tlabel\nthe film\t1\n")
    argv = ["predict", str(model), "the film", "--format", "e4m3"]
    assert main([*argv, "--calibration-data", str(sentences)]) == 0
    data = ["--task", "sst2", "--data", str(tmp_path)]
    shutil.copyfile(sentences, tmp_path / "dev.tsv")
    evaluate = ["evaluate", str(model), *data, "--format", "e4m3"]
    assert main([*evaluate, "--save-calibration", str(saved)]) == 0
    calibration = load_calibration(saved)
    huge = float(np.finfo(np.float32).max)
    operands = {
        key: replace(seen, low=-huge, high=huge) for key, seen in calibration.operands.items()
    }
    save_calibration(replace(calibration, operands=operands), saved)
    capsys.readouterr()
    assert main([*argv, "--calibration", str(saved)]) in (0, 2)
    assert capsys.readouterr().err.count("\n") <= 1


def test_signals_are_left_alone_where_they_are_ignored() -> None:
    """A shell ignores signals for commands in the background."""
    done = run_process(
        *PREDICT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None
    )
    assert done.returncode == 0


def test_public_names_are_found_at_their_first_use() -> None:
    code = (
        "import bert_numpy, sys; assert 'numpy' not in sys.modules; "
        "assert set(bert_numpy.__all__) == set(bert_numpy._HOMES); "
        "[getattr(bert_numpy, name) for name in bert_numpy.__all__]; "
        "assert bert_numpy.load.__module__ == 'bert_numpy.checkpoints.load'; "
        "assert bert_numpy.job.Job.__name__ == 'Job'; "
        "assert not hasattr(bert_numpy, 'nothing'); "
        "assert set(bert_numpy.__all__) <= set(dir(bert_numpy))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
