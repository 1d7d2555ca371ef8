"""What all commands have in common: options, exit codes, interrupts, progress."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from terminal import on_a_terminal

from bert_numpy import PRESETS
from bert_numpy.assets import REVIEWS
from bert_numpy.commands import jobs
from bert_numpy.commands import main as cli
from bert_numpy.commands.main import main
from bert_numpy.commands.parser import FORMATS_HELP
from bert_numpy.kit.manifest import Kit, open_kit, write_kit
from bert_numpy.model.model import Model
from npfp8 import ACCUMULATIONS, E4M3FN, encode
from npfp8.vectors import format_vectors, make_vectors

EMBEDDED = "bert-tiny-sst2"
PAGE = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
Capture = pytest.CaptureFixture[str]


COMMANDS = dict(cli.build_parser().every_command())


def table(header: str) -> list[list[str]]:
    """The cells of a table of the page."""
    rows = PAGE.split(f"| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    lines = (REVIEWS / "dev.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:9]
    for name in ("dev.tsv", "train.tsv"):
        (folder / name).write_text("".join(lines), encoding="utf-8")
    texts = [line.split("\t")[0] for line in lines[1:]]
    rows = [f"{i}\t{text}\n" for i, text in enumerate(texts)]
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.fixture
def scales(data: Path, tmp_path: Path, capsys: Capture) -> Path:
    file = tmp_path / "scales.safetensors"
    argv = ["evaluate", EMBEDDED, *task(data), "--format", "e4m3", "--save-calibration", str(file)]
    assert main(argv) == 0
    capsys.readouterr()
    return file


def task(data: Path) -> list[str]:
    return ["--task", "sst2", "--data", str(data)]


def error_of(capsys: Capture, argv: list[str], code: int = 2) -> str:
    assert main(argv) == code
    output = capsys.readouterr()
    assert output.err.startswith("bert-numpy: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("bert-numpy: ").rstrip("\n")


# Names


def test_the_page_lists_every_command() -> None:
    assert [row[0].strip("`") for row in table("command | what it does | what it writes")] == list(
        COMMANDS
    )


@pytest.mark.parametrize("block", re.findall(r"```text\n\$ bert-numpy (.*?)```", PAGE, re.S))
def test_the_page_shows_what_is_printed(block: str, capsys: Capture) -> None:
    """Every line in its order; "..." stands for others."""
    line, *expected = block.splitlines()
    with suppress(SystemExit):
        main(shlex.split(line))
    output = capsys.readouterr()
    found = (output.out + output.err).splitlines()
    if "..." not in expected:
        assert found == expected
    wanted = [text for text in expected if text != "..."]
    assert [text for text in found if text in wanted] == wanted


def test_options_are_alike() -> None:
    """One name is one thing: the same spellings, the same kind of value, the same word for it."""
    seen: dict[str, tuple[object, ...]] = {}
    for command, parser in COMMANDS.items():
        names = set()
        for action in parser.arguments:
            names.update(action.option_strings)
            for name in action.option_strings or [str(action.metavar)]:
                kind = (action.option_strings, action.type, action.metavar, action.nargs)
                if name not in ("MODEL", "FILE", "OUT"):
                    assert seen.setdefault(name, kind) == kind, (command, name)
            if action.type is None and action.option_strings and action.nargs != 0:
                default = action.default
                assert not isinstance(default, str) or "/" not in default, (command, default)
        common = {"--json", "--debug", "--quiet", "--help"}
        assert command in ("completion", "help") or common <= names, command
        assert ("--revision" in names) == any(a.dest == "model" for a in parser.arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: Capture) -> None:
    """Every argument is explained, there is an example, and nothing in it is this machine's."""
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert str(ROOT) not in text.replace("\n", "")
    for action in COMMANDS[command].arguments:
        assert action.help, (command, action.dest)
    begin, _, examples = text.partition("\nexample")
    assert all(line.startswith(f"  bert-numpy {command}") for line in examples.splitlines()[1:])
    assert examples.startswith((":\n", "s:\n"))
    takes_format = re.search("^  --formats? ", begin, re.M) is not None
    if command == "golden vectors":  # formats of codes, not of models
        takes_format = False
    assert (FORMATS_HELP in text) == takes_format


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits(
    command: str, columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the examples, which are to be copied in one line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["help", *command.split()]) == 0
    text = capsys.readouterr().out.partition("\nexample")[0]
    assert max(map(len, text.splitlines())) <= columns
    groups = re.findall("^([a-z]+):$", text, re.M)
    expected = ["input", "recipe", "calibration", "output", "general"]
    assert groups == [group for group in expected if group in groups]


def test_the_help_has_every_format() -> None:
    lines = [line[2:] for line in FORMATS_HELP.splitlines()[1:] if not line.startswith("   ")]
    cells = [re.split(",? {2,}", line)[0] for line in lines]
    names = [name for cell in cells for name in cell.split(", ")]
    assert sorted(names) == sorted([*PRESETS, "FILE.json", "stored"])


# Words that are nearly right


def usage_error(capsys: Capture, argv: list[str]) -> str:
    """The last line of an error about the usage, of which the command's own usage is the first."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    usage, where, message = output.err.splitlines()
    prog = message.split(":")[0]
    assert usage.startswith(f"usage: {prog} [options]")
    assert where == f"help:  {prog} --help"
    return message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evalute m", "bert-numpy: error: 'evalute' is not a command; did you mean 'evaluate'?"),
        ("Predict m", "bert-numpy: error: 'Predict' is not a command; did you mean 'predict'?"),
        ("xyzzy", "bert-numpy: error: 'xyzzy' is not a command"),
        ("-q xyzzy", "bert-numpy: error: 'xyzzy' is not a command"),
        ("--verion", "bert-numpy: error: unknown option --verion; did you mean '--version'?"),
        (
            "golden verfy",
            "bert-numpy golden: error: 'verfy' is not a command; did you mean 'verify'?",
        ),
        (
            "evaluate m --taks sst2 --data .",
            "bert-numpy evaluate: error: unknown option --taks; did you mean '--task'?",
        ),
        (
            "predict m text --fromat=e4m3",
            "bert-numpy predict: error: unknown option --fromat; did you mean '--format'?",
        ),
        (
            "golden verify k c --htm1 x",
            "bert-numpy golden verify: error: unknown option --htm1; did you mean '--html'?",
        ),
        (
            "golden verify k c --profile Statistica",
            "bert-numpy golden verify: error: argument --profile: expected one of bit-exact, "
            "accumulate-order, statistical, found 'Statistica'; did you mean 'statistical'?",
        ),
        (
            "golden export m o --level modle",
            "bert-numpy golden export: error: argument --level: expected one of codec, operator, "
            "layer, model, found 'modle'; did you mean 'model'?",
        ),
        (
            "predict m text --accumulate hoper",
            "bert-numpy predict: error: argument --accumulate: expected one of "
            f"{', '.join(ACCUMULATIONS)}, found 'hoper'; did you mean 'hopper'?",
        ),
        *(
            (
                f"evaluate m --task {wrong} --data .",
                "bert-numpy evaluate: error: argument --task: expected one of cola, sst2, mrpc, "
                "stsb, qqp, mnli, mnli-mm, qnli, rte, wnli, squad, stsb-cosine, found "
                f"{wrong!r}; did you mean {meant!r}?",
            )
            for wrong, meant in (("Sts2", "sst2"), ("sst22", "sst2"), ("SQUADD", "squad"))
        ),
        *(
            (
                f"{line} {value}",
                f"bert-numpy {line.split()[0]}: error: argument {option}: expected one of "
                f"{', '.join(PRESETS)}, stored, found {wrong!r}; did you mean {meant!r}?",
            )
            for line, option, value, wrong, meant in (
                ("predict m text --format", "--format/--recipe", "E4M4", "E4M4", "e4m3"),
                ("embed m text --recipe", "--format/--recipe", "stroed", "stroed", "stored"),
                (
                    "submit m o --format",
                    "--format/--recipe",
                    "INT8-chanel",
                    "INT8-chanel",
                    "int8-channel",
                ),
                ("compare m --formats", "--formats", "FP32,int8-tokne", "int8-tokne", "int8-token"),
                ("demo --formats", "--formats", "em43", "em43", "e4m3"),
            )
        ),
        ("-v", "bert-numpy: error: unknown option -v; did you mean '-V'?"),
        (
            "predict m text -json -",
            "bert-numpy predict: error: unknown option -json; did you mean '--json'?",
        ),
        (
            "--format e4m3 predict m text",
            "bert-numpy: error: option --format belongs after a command",
        ),
        (
            "golden --json - verify",
            "bert-numpy golden: error: option --json belongs after a command",
        ),
        ("info m -x", "bert-numpy info: error: unknown option -x"),
        ("info m more", "bert-numpy info: error: unrecognized arguments: more"),
        ("help evaluat", "bert-numpy: error: 'evaluat' is not a command; did you mean 'evaluate'?"),
        ("help info x", "bert-numpy info: error: expected no more words, found 'x'"),
    ],
)
def test_mistyped_words(line: str, message: str, capsys: Capture) -> None:
    assert usage_error(capsys, line.split()) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("info bert-tiny-sst2/", "found no such folder; did you mean 'bert-tiny-sst2'?"),
        ("info elsewhere/", "elsewhere/: expected a model folder, found no such folder"),
        ("info bert-tiny-sst", "found no such folder; did you mean 'bert-tiny-sst2'?"),
        ("info Bert-Tiny-SST2", "found no such folder; did you mean 'bert-tiny-sst2'?"),
        ("golden verify bert-tiny-sst .", "found no such folder; did you mean 'bert-tiny-sst2'?"),
    ],
)
def test_mistyped_names(
    line: str, message: str, data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network is asked for a name that is nearly the embedded model's."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    monkeypatch.setattr(socket.socket, "connect", None)
    assert error_of(capsys, writing(line, data, data)).endswith(message)


def test_words_in_any_case(data: Path, scales: Path, capsys: Capture) -> None:
    """Formats, tasks and accumulators; the results have them as the package spells them."""

    def report(line: str) -> Any:
        argv = [*writing(line, data, data), "--json", "-"]
        assert main(argv) == 0
        return json.loads(capsys.readouterr().out)

    saved = f"--calibration {scales}"
    assert report(f"predict MODEL film --format E4M3 --accumulate Hopper {saved}") == report(
        f"predict MODEL film --recipe e4m3 --accumulate hopper {saved}"
    )
    rows = report(f"compare MODEL --task Sst2 --data {data} --formats E4M3,e4m3,BF16 {saved}")
    assert rows["task"] == "sst2"
    assert [row["format"] for row in rows["rows"]] == ["fp32", "e4m3", "bf16"]


def test_a_beginning_of_an_option_is_enough(capsys: Capture) -> None:
    assert main(["predict", EMBEDDED, "--form", "bf16", "a -- film"]) == 0
    assert main(["predict", EMBEDDED, "--", "--film"]) == 0
    assert capsys.readouterr().out.count("positive") == 2


def test_quiet_anywhere(capsys: Capture) -> None:
    for line in ("-q predict MODEL film", "predict -q MODEL film", "predict MODEL film -q"):
        assert main([*line.replace("MODEL", EMBEDDED).split(), "--format", "e4m3"]) == 0
        assert capsys.readouterr().err == ""
    assert error_of(capsys, ["golden", "-q", "verify", "none", "none"]).startswith("none: ")


def test_a_group_of_commands_has_examples(capsys: Capture) -> None:
    assert main(["help", "golden"]) == 0
    examples = capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    for line in examples:
        command = next(name for name in COMMANDS if line.startswith(f"  bert-numpy {name} "))
        assert command.startswith("golden ")


@pytest.mark.parametrize(("argv", "group"), [([], ""), (["-q"], ""), (["golden"], "golden")])
def test_no_command_prints_the_whole_help(argv: list[str], group: str, capsys: Capture) -> None:
    """The exit code is 2, as nothing was done that a script may have wanted."""
    assert main(["help", *group.split()]) == 0
    expected = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == (expected, "")
    assert "\ncommands:\n" in expected


def test_help_is_the_option(capsys: Capture) -> None:
    for command in ("", "evaluate", "golden", "golden verify"):
        assert main(["help", *command.split()]) == 0
        expected = capsys.readouterr().out
        for option in ("-h", "--help"):
            with pytest.raises(SystemExit) as ended:
                main([*command.split(), option])
            assert ended.value.code == 0
            assert capsys.readouterr().out == expected


# Exit codes


def test_the_page_and_the_help_list_every_exit_code() -> None:
    codes = [row[0] for row in table("exit code | means")]
    assert re.findall(r"(?:^|  )(\d+) ", cli._EPILOG.split("exit codes:\n")[1], re.M) == codes
    assert codes == ["0", "1", "2", "70", "130", "141"]  # each is tested below or in test_cli.py


def test_a_difference(tmp_path: Path, capsys: Capture) -> None:
    kit = open_kit()
    name = "model/0/logits"
    write_kit(
        Kit(kit.header, {name: kit.tensors[name]}, {name: -kit.arrays[name]}), tmp_path / "bad"
    )
    file = str(tmp_path / "bad" / "tensors.safetensors")
    assert main(["golden", "verify", EMBEDDED, file, "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["first"]["name"] == name


def test_an_error_of_the_program(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "__call__", None)
    assert main(["predict", EMBEDDED, "a film"]) == 70
    assert "TypeError" in capsys.readouterr().err.splitlines()[-1]


def test_a_reader_that_goes_away(data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = ["golden", "verify", EMBEDDED, str(ROOT / "bert_numpy/assets/bert-tiny-sst2-kit")]
    done = subprocess.run(
        [sys.executable, "-m", "bert_numpy", *argv],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# Interrupts

WRITERS = {
    "compare": "compare MODEL TASK --formats e4m3 --json OUT",
    "save-calibration": "evaluate MODEL TASK --format e4m3 --save-calibration OUT",
    "submit": "submit MODEL OUT TASK",
    "quantize": "quantize MODEL OUT TASK --format e4m3",
    "quantize without a task": "quantize MODEL OUT --format e4m3-weights",
    "calibrate": "calibrate MODEL --out OUT TASK",
    "export-onnx": "export-onnx MODEL OUT TASK --format e4m3",
    "golden export": "golden export MODEL OUT --level codec",
    "golden text": f"golden text {EMBEDDED} OUT --operation round",
    "golden vectors": "golden vectors OUT",
    "golden verify": f"golden verify {EMBEDDED} KIT --html OUT",
}


def writing(line: str, data: Path, out: Path) -> list[str]:
    kit = str(ROOT / "bert_numpy/assets/bert-tiny-sst2-kit/tensors.safetensors")
    given = {"MODEL": [EMBEDDED], "TASK": task(data), "OUT": [str(out)], "KIT": [kit]}
    return [part for word in line.split() for part in given.get(word, [word])]


@pytest.mark.parametrize("line", WRITERS.values(), ids=WRITERS)
def test_interrupt_leaves_nothing(
    line: str, data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last moment: when what was written is to be given its name."""
    if line.startswith("export-onnx"):
        pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")
    place = tmp_path / "place"
    place.mkdir()

    def interrupted(*_: object) -> None:
        assert list(place.iterdir())  # something is there, under another name
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    monkeypatch.setattr(Path, "rename", interrupted)
    assert error_of(capsys, writing(line, data, place / "out"), 130) == "interrupted"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("line", WRITERS.values(), ids=WRITERS)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    line: str, data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the work was begun")

    work = ["demo.prepare", "jobs.prepare", "predict.load", "quantize.load", "inspect.load"]
    work += ["jobs.prepare_texts", "embed.load"]
    work += ["golden.load", "golden.open_kit", "kit_text.open_kit"]
    work = [f"bert_numpy.commands.{name}" for name in work]
    work += ["bert_numpy.kit.export.make_kit", "npfp8.vectors.write_all_vectors"]
    for name in work:
        monkeypatch.setattr(name, worked)
    message = error_of(capsys, writing(line, data, tmp_path / "none" / "out"))
    assert str(tmp_path / "none") in message
    assert "written" in message or "to write into" in message


@pytest.mark.parametrize("command", ["quantize", "golden export", "golden text", "golden vectors"])
def test_no_folder_is_written_over(
    command: str, data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "prepare", None)
    message = error_of(capsys, writing(WRITERS[command], data, data))
    assert message == (
        f"{data} already exists and is not empty. Choose another folder; existing output is never "
        "overwritten"
    )


# What to do next


def test_where_a_calibration_comes_from(data: Path, tmp_path: Path, capsys: Capture) -> None:
    file = str(tmp_path / "none.safetensors")
    hint = (
        f"{file}: no such file. To make one: bert-numpy evaluate MODEL --task NAME --data DATA "
        f"--format e4m3 --save-calibration {file}"
    )
    inputs, out = str(ROOT / "scripts" / "kit_inputs.json"), str(tmp_path / "out")
    for argv in (
        ["calibration", file],
        ["predict", EMBEDDED, "a film", "--format", "e4m3", "--calibration", file],
        ["compare", EMBEDDED, *task(data), "--calibration", file],
        ["export-onnx", EMBEDDED, out, "--format", "e4m3", "--calibration", file],
        ["golden", "export", EMBEDDED, out, "--inputs", inputs, "--calibration", file],
    ):
        assert error_of(capsys, argv) == hint
    assert main(hint.rsplit(": ", maxsplit=1)[-1].replace("MODEL", EMBEDDED).replace("NAME", "sst2")
                .replace("DATA", str(data)).split()[1:]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["calibration", file]) == 0


@pytest.mark.parametrize("command", ["export-onnx", "golden export"])
@pytest.mark.parametrize(("given", "other"), [("task", "data"), ("data", "task")])
def test_task_and_data_go_together(
    command: str, given: str, other: str, tmp_path: Path, capsys: Capture
) -> None:
    argv = [*command.split(), EMBEDDED, str(tmp_path / "x"), f"--{given}", "sst2"]
    assert error_of(capsys, argv) == f"--{given}: expected --{other} with it, found none"


def test_export_saves_no_calibration_that_it_does_not_make(tmp_path: Path, capsys: Capture) -> None:
    argv = ["export-onnx", EMBEDDED, str(tmp_path / "x"), "--save-calibration", str(tmp_path / "c")]
    message = f"{tmp_path / 'c'}: expected a format that needs a calibration, found fp32"
    assert error_of(capsys, argv) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--fmt e5m2 --source float16", "decode nearest nearest-saturating toward-zero"),
        ("--fmt E5M2 --mode up-ieee --mode odd-ieee --source float16", "odd-ieee up-ieee"),
        ("--fmt E5M2 --direction decode --source float16", "decode"),
        ("--fmt E5M2 --mode nearest --direction encode --source float16", "nearest"),
    ],
)
@pytest.mark.parametrize("form", ["text", "memory", "c"])
def test_vectors_asked_for(
    options: str, names: str, form: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "vectors"
    command = ["golden", "vectors", str(out), *options.split(), "--form", form, "--json", "-"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    suffix = {"text": "txt", "memory": "mem", "c": "h"}[form]
    files = [f"E5M2-{name}-float16.{suffix}" for name in names.split()]
    assert sorted(path.name for path in out.iterdir()) == sorted(report["files"]) == files
    assert report["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    if form != "c":
        assert main(["golden", "check-vectors", str(out / files[0])]) == 2  # no results yet
        assert "expected the column 'found'" in capsys.readouterr().err


def test_vectors_of_no_mode(tmp_path: Path, capsys: Capture) -> None:
    command = ["golden", "vectors", f"{tmp_path}/v", "--direction", "decode", "--mode", "nearest"]
    assert "--mode" in error_of(capsys, command)


def test_vectors_explained_in_part(tmp_path: Path, capsys: Capture) -> None:
    vectors = make_vectors(E4M3FN, "nearest-saturating", "bfloat16")
    x = (vectors.inputs.astype(np.uint32) << np.uint32(16)).view(np.float32)
    codes = encode(x, E4M3FN, rounding="nearest_away")
    codes[codes == 0x80] = 0
    file = tmp_path / "results.txt"
    file.write_text(format_vectors(replace(vectors, third=codes, column="found")), "ascii")
    assert main(["golden", "check-vectors", str(file)]) == 1
    assert "cause: no known one; ties rounded away from zero explains" in capsys.readouterr().out


def test_vectors_without_results(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "E4M3FN-nearest-saturating-float32.txt"
    vectors = make_vectors(E4M3FN, "nearest-saturating", "float32")
    file.write_text(format_vectors(vectors), encoding="utf-8")
    assert error_of(capsys, ["golden", "check-vectors", str(file)]) == (
        f"{file}: expected the column 'found' (a line '# columns: input expected found', and an "
        "implementation's results in the last), found 'flags'"
    )


def test_damaged_vectors_are_named_once(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "results.txt"
    file.write_text("no vectors\n", encoding="utf-8")
    assert error_of(capsys, ["golden", "check-vectors", f"{tmp_path}/./results.txt"]) == (
        f"{file} line 1: expected '# npfp8 test vectors 2', found 'no vectors'"
    )


# Single commands


def test_predict_with_saved_scales(scales: Path, data: Path, tmp_path: Path) -> None:
    """The logits are those of an evaluation with them."""
    files = [str(tmp_path / name) for name in ("predicted.json", "evaluated.json")]
    more = ["--format", "e4m3", "--golden", "--calibration", str(scales), "--json"]
    text = (data / "dev.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[0]
    assert main(["predict", EMBEDDED, text, *more, files[0]]) == 0
    assert main(["evaluate", EMBEDDED, *task(data), *more, files[1]]) == 0
    predicted, evaluated = (json.loads(Path(file).read_text()) for file in files)
    assert list(predicted["logits"].values()) == evaluated["logits"][0]


def test_submission_of_a_task_without_a_test_set(tmp_path: Path, capsys: Capture) -> None:
    for out in (tmp_path, tmp_path / "out.tsv"):
        argv = ["submit", EMBEDDED, str(out), "--task", "squad", "--data", str(tmp_path)]
        expected = "task squad: expected a task of GLUE, as no other has a test set"
        assert error_of(capsys, argv) == expected


def test_submission_without_a_format(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Float32's; of a quantized checkpoint its own."""
    quantized = str(tmp_path / "quantized")
    assert main(["quantize", EMBEDDED, quantized, *task(data), "--format", "int8"]) == 0
    for model, name in ((EMBEDDED, "fp32"), (quantized, "int8")):
        capsys.readouterr()
        assert main(["submit", model, str(tmp_path), *task(data), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["format"] == name


@pytest.mark.parametrize(
    "argv", [["golden", "export", EMBEDDED, "x", "--limit", "0"]]
    + [["golden", "verify", EMBEDDED, "x", "--max-flips", value] for value in ("-1", "some")],
    ids=" ".join,
)  # fmt: skip
def test_numbers(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "expected a whole number of at least" in capsys.readouterr().err


# Progress


@pytest.mark.parametrize("command", ["evaluate", "predict", "golden export", "calibration"])
def test_progress(command: str, data: Path, scales: Path, tmp_path: Path) -> None:
    if command == "calibration":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    sentences = ["--calibration-data", str(data / "train.tsv")]
    kit, plots = str(tmp_path / "kit"), str(tmp_path / "plots")
    argv, shown = {
        "evaluate": (
            ["evaluate", EMBEDDED, *task(data), "--format", "e4m3"],
            ["texts", "16/16", "calibration", "e4m3", "8/8"],
        ),
        "predict": (
            ["predict", EMBEDDED, "a", "--format", "e4m3", *sentences],
            ["calibration", "8/8"],
        ),
        "golden export": (
            ["golden", "export", EMBEDDED, kit, *task(data), "--level", "model", *sentences],
            ["calibration", "8/8", "inputs", "2/2"],
        ),
        "calibration": (
            ["calibration", str(scales), "--plot", plots, "--operand", "*layer.0*context:*"],
            ["figures", "2/2"],
        ),
    }[command]
    _, text = on_a_terminal(argv)
    for word in shown:
        assert word in text
    assert re.search(r"\d:\d\d:\d\d", text)  # the time left
