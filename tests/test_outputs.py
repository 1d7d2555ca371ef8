"""Outputs are checked before the work, and no given option is ignored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from factories import write_checkpoint

import bert_numpy
from bert_numpy import (
    PRESETS,
    BertNumpyError,
    QuantizedModel,
    apply_recipe,
    calibrate,
    load,
    load_calibration,
    save_calibration,
    save_quantized,
)
from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.quantized import side_files
from bert_numpy.commands.figures import draw_figures
from bert_numpy.commands.main import main

EMBEDDED = "bert-tiny-sst2"
KIT = ROOT / "bert_numpy" / "assets" / f"{EMBEDDED}-kit"
Capture = pytest.CaptureFixture[str]


def write_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = (REVIEWS / "dev.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:9]
    for name in ("dev.tsv", "train.tsv"):
        (folder / name).write_text("".join(lines), encoding="utf-8")
    rows = [f"{i}\t{line.split(chr(9))[0]}\n" for i, line in enumerate(lines[1:])]
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: with a model, data, a calibration, a recipe, and a kit's candidate."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve(EMBEDDED), "model")
    write_data(Path("data"))
    sample = {"input_ids": np.array([[101, 2204, 3185, 102]])}
    save_calibration(calibrate(load("model"), [sample]), "scales")
    bert_numpy.save_recipe(PRESETS["e4m3"], "recipe.json")
    shutil.copyfile(KIT / "tensors.safetensors", "candidate.safetensors")
    Path("inputs.json").write_text('["a film"]')
    Path("lines.txt").write_text("a film\na warm and funny film\ndull\n")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def error_of(capsys: Capture, line: str | Sequence[str]) -> str:
    capsys.readouterr()
    argv = line.split() if isinstance(line, str) else line
    assert main(argv) == 2, argv
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("bert-numpy: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("bert-numpy: ").rstrip("\n")


TASK = "--task sst2 --data data"

#: Every output of every command, as OUT.
OUTPUTS = [
    "demo --json OUT",
    f"compare model {TASK} --json OUT",
    f"compare model {TASK} --save-calibration OUT",
    f"evaluate model {TASK} --json OUT",
    f"evaluate model {TASK} --format e4m3 --save-calibration OUT",
    f"submit model OUT {TASK}",
    f"submit model x {TASK} --json OUT",
    f"submit model x {TASK} --format recipe.json --save-calibration OUT",
    "predict model film --format e4m3 --calibration scales --json OUT",
    "compare model --texts lines.txt --json OUT",
    "compare model --texts lines.txt --save-calibration OUT",
    "embed model lines.txt --out OUT.npy",
    "embed model film --out x.npy --json OUT",
    "embed model film --format e4m3 --calibration scales --json OUT",
    "calibrate model --out OUT",
    f"calibrate model --out OUT {TASK}",
    "calibrate model --out x --calibration-data lines.txt --json OUT",
    "quantize model OUT --format e4m3",
    "quantize model q --format e4m3 --texts lines.txt --save-calibration OUT",
    f"quantize model OUT {TASK} --format e4m3",
    f"quantize model q {TASK} --format e4m3 --json OUT",
    f"quantize model q {TASK} --format e4m3 --save-calibration OUT",
    "export-onnx model OUT --format e4m3 --calibration scales",
    "export-onnx model x --format e4m3 --calibration scales --json OUT",
    "info model --json OUT",
    "calibration scales --json OUT",
    "calibration scales --plot OUT",
    "golden export model OUT --inputs inputs.json",
    "golden export model k --inputs inputs.json --json OUT",
    f"golden verify {EMBEDDED} candidate.safetensors --html OUT",
    f"golden verify {EMBEDDED} candidate.safetensors --json OUT",
    f"golden list {EMBEDDED} --json OUT",
    f"golden info {EMBEDDED} --json OUT",
    "golden vectors OUT",
    "golden vectors v --json OUT",
    "golden check-vectors data/dev.tsv --json OUT",
]

#: The commands that make what only one output of another kind would.
WORK = ["demo.prepare", "jobs.prepare", "jobs.prepare_texts", "jobs.run"]
WORK += ["predict.load", "embed.load", "embed.read_texts", "jobs.saved_calibration"]
WORK += [f"quantize.{name}" for name in ("load", "saved_calibration")]
WORK += [f"inspect.{name}" for name in ("load", "saved_calibration")]
WORK += [f"golden.{name}" for name in ("open_kit", "load")] + ["kit_list.open_kit"]
WORK = [f"bert_numpy.commands.{name}" for name in WORK]
WORK += ["bert_numpy.export.onnx.export_onnx", "bert_numpy.kit.export.make_kit"]
WORK += ["npfp8.vectors.write_all_vectors"]


@pytest.fixture
def no_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the work was begun")

    for name in WORK:
        monkeypatch.setattr(name, worked)
    return place


@pytest.mark.parametrize("line", OUTPUTS)
def test_what_cannot_be_written_is_refused_before_the_work(
    line: str, no_work: Path, capsys: Capture
) -> None:
    Path("file").touch()
    Path("loop").symlink_to("loop")
    before = contents(no_work)
    for target in ("file/x", "x" * 256, "a\0b", "", "loop", "/proc/x"):
        argv = [target if word.startswith("OUT") else word for word in line.split()]
        message = error_of(capsys, argv)
        assert "written" in message or "to write into" in message or "expected" in message
        assert contents(no_work) == before
    if "--plot" not in line:  # which makes its folder
        assert "missing" in error_of(capsys, line.replace("OUT", "missing/x"))
    assert contents(no_work) == before


@pytest.mark.parametrize("line", [line for line in OUTPUTS if "--plot" not in line])
def test_nothing_that_is_read_is_written_over(line: str, no_work: Path, capsys: Capture) -> None:
    os.link("model/model.safetensors", "hard")
    Path("soft").symlink_to("model/tokenizer.json")
    Path("folder").symlink_to("model")
    before = contents(no_work)
    read = []
    if " model" in line:
        read += ["model/config.json", "model/../model/model.safetensors", "hard", "soft"]
        read += ["model/CONFIG.json", "folder/vocab.txt", "model/tokenizer_config.json"]
    if TASK in line:
        read += ["data/dev.tsv", "data/train.tsv", "data/test.tsv"]
    named = [word for word in line.split() if os.path.isfile(word)]
    read += [*named, *(f"./{name}" for name in named)]
    for target in read:
        error_of(capsys, line.replace("OUT.npy", "OUT").replace("OUT", target))
        assert contents(no_work) == before, target


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f"evaluate model {TASK} --format e4m3 --json A --save-calibration B",
            "found one for both",
        ),
        (f"submit model A {TASK} --json B", "found one for both"),
        ("calibrate model --out A --json B", "found one for both"),
        ("embed model film --out A --json B", "found one for both"),
        (f"export-onnx model A --format e4m3 {TASK} --save-calibration B", "found one for both"),
        (f"golden verify {EMBEDDED} candidate.safetensors --json A --html B", "found one for both"),
    ],
)
def test_two_outputs_are_two_files(line: str, message: str, no_work: Path, capsys: Capture) -> None:
    Path("link").symlink_to("x")
    before = contents(no_work)
    for a, b in (("x", "x"), ("x", "./x"), ("x", "link"), ("link", "data/../x"), ("x", "X")):
        assert message in error_of(capsys, line.replace("A", a).replace("B", b))
    assert contents(no_work) == before


@pytest.mark.parametrize("option", ["--json", "--save-calibration"])
def test_no_output_is_in_a_folder_that_is_made(option: str, no_work: Path, capsys: Capture) -> None:
    Path("out").mkdir()
    line = f"quantize model out {TASK} --format e4m3 {option} out/x"
    assert "outside the folder out, which is made whole" in error_of(capsys, line)


#: The commands that make a folder.
FOLDERS = [
    "quantize model OUT --format e4m3",
    f"quantize model OUT {TASK} --format e4m3",
    "golden export model OUT --inputs inputs.json",
    "golden vectors OUT",
]


@pytest.mark.parametrize(
    "line", [line for line in OUTPUTS if line not in FOLDERS and "--plot" not in line]
)
def test_a_file_ends_in_a_name(line: str, no_work: Path, capsys: Capture) -> None:
    for target in ("x/.", "x/./", "x/"):
        line_ = line.replace("OUT.npy", "OUT").replace("OUT", target)
        assert "a folder's" in error_of(capsys, line_)
    assert not os.path.lexists("x")


@pytest.mark.parametrize("line", FOLDERS)
def test_a_folder_to_make_is_not_the_working_one(
    line: str, no_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Replacing the working folder would leave the command without a place to write."""
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    for name in ("model", "data", "inputs.json"):
        line = line.replace(f" {name}", f" {no_work / name}")
    for target in (".", "./", "../empty", str(no_work / "empty")):
        assert "the working folder" in error_of(capsys, line.replace("OUT", target))
    assert os.path.samefile(".", no_work / "empty")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"quantize model q {TASK} --format int8-smooth", "expected no migration"),
        ("export-onnx model x --format int8-outliers --calibration-data data/dev.tsv", "in ONNX"),
        (f"export-onnx model x --format int8-outliers {TASK}", "expected no outlier_threshold"),
    ],
)
def test_what_no_file_can_say_is_refused_before_the_calibration(
    line: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the calibration was begun")

    for name in ("with_calibration", "calibrated_on_sentences", "results_of"):
        monkeypatch.setattr(f"bert_numpy.commands.quantize.{name}", worked)
    assert message in error_of(capsys, line)
    assert not os.path.lexists("q")
    assert not os.path.lexists("x")


def test_the_embedded_kit_is_not_written_over(no_work: Path, capsys: Capture) -> None:
    before = contents(KIT)
    for option in ("--json", "--html"):
        for name in ("manifest.json", "tensors.safetensors"):
            line = f"golden verify {EMBEDDED} candidate.safetensors {option} {KIT / name}"
            assert "overwrite a file that is read" in error_of(capsys, line)
    assert contents(KIT) == before


def test_nothing_is_written_into_the_cache_that_is_read(
    no_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from huggingface_hub import constants  # noqa: PLC0415 (as the code does)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(no_work / "hub"))
    for folder in ("models--owner--name", "datasets--nyu-mll--glue"):
        Path("hub", folder).mkdir(parents=True)
        line = f"evaluate owner/name --task sst2 --data nyu-mll/glue --json hub/{folder}/x"
        assert "into the hub's cache" in error_of(capsys, line)


def test_a_device_takes_several_outputs(place: Path, capsys: Capture) -> None:
    line = f"evaluate model {TASK} --format e4m3 --json /dev/null --save-calibration /dev/null"
    assert main(line.split()) == 0
    assert not os.path.isfile("/dev/null")


def test_the_outputs_of_an_earlier_run_are_written_again(place: Path, capsys: Capture) -> None:
    """Also beside the model's files, of which they are none."""
    more = "--json model/result.json --save-calibration model/scales"
    for _ in range(2):
        assert main(f"evaluate model {TASK} --format e4m3 {more}".split()) == 0
    assert json.loads(Path("model/result.json").read_text())["format"] == "e4m3"


def test_nothing_is_written_into_the_hubs_cache(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants  # noqa: PLC0415 (slow to import)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("owner/name", "name"):
        folder = place / "cache" / f"models--{name.replace('/', '--')}" / "blobs"
        folder.mkdir(parents=True)
        assert "into the hub's cache" in error_of(capsys, f"info {name} --json {folder}/x")
        assert "HF_HUB_OFFLINE" in error_of(capsys, f"info {name} --json {place}/x")


# Names of files from files


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../x"], "expected a name that a file can have"),
        (["/tmp/x"], "expected a name that a file can have"),
        (["a\0b"], "expected a name that a file can have"),
        (["a\\b"], "expected a name that a file can have"),
        (["x" * 300], "expected a name that a file can have"),
        (["nul"], "expected a name that a file can have"),
        (["a:b", "a-b"], "which 'a:b' has"),
        (["a", "A"], "which 'a' has"),
        (["sqnr"], "which 'the figure of all' has"),
    ],
)
def test_operands_that_are_no_names(names: list[str], message: str, place: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    (seen, *_) = load_calibration("scales").operands.values()
    before = contents(place)
    with pytest.raises(BertNumpyError, match=message):
        draw_figures(dict.fromkeys(names, seen), Path("deep/plots"), [], lambda count: None)
    assert contents(place) == before
    assert not Path("deep").exists()


@pytest.mark.parametrize(
    "name", ["../x:a", "/tmp/x:a", "a\0:a", "a\\b:a", "a/../x:a", "sqnr", "$x_{$:a"]
)
def test_operands_of_a_file_have_names_of_sites(name: str, place: Path, capsys: Capture) -> None:
    calibration = load_calibration("scales")
    (seen, *_) = calibration.operands.values()
    save_calibration(replace(calibration, operands={name: seen}), "hostile")
    before = contents(place)
    for line in ("calibration hostile --plot deep/plots", "calibration hostile"):
        assert "expected OPERAND/range" in error_of(capsys, line)
    assert contents(place) == before


@pytest.mark.parametrize("names", [["x" * 300 + ":a"], ["a:a", "A:a"]])
def test_operands_without_a_figure_of_their_own(
    names: list[str], place: Path, capsys: Capture
) -> None:
    """On the command line, too, which describes them all the same."""
    calibration = load_calibration("scales")
    (seen, *_) = calibration.operands.values()
    save_calibration(replace(calibration, operands=dict.fromkeys(names, seen)), "hostile")
    before = contents(place)
    assert "figures: operand" in error_of(capsys, "calibration hostile --plot deep/plots")
    assert contents(place) == before
    assert not Path("deep").exists()
    assert main(["calibration", "hostile"]) == 0


def test_figures_of_names_with_markup(place: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    (seen, *_) = load_calibration("scales").operands.values()
    names = ["$x_{$", "$", "a^^b$c$", "\u5dee", "a b", "[red]", "{x}"]
    draw_figures(dict.fromkeys(names, seen), Path("plots"), [], lambda count: None)
    assert {path.stem for path in Path("plots").iterdir()} == {"sqnr", *names}


def test_no_figure_takes_the_place_of_another_file(place: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    Path("plots").mkdir()
    shutil.copyfile("scales", "plots/sqnr.png")
    for line in (
        "calibration plots/sqnr.png --plot plots",
        "calibration scales --plot plots --json plots/sqnr.png",
    ):
        assert "expected a figure's place" in error_of(capsys, line)
    assert Path("plots/sqnr.png").read_bytes() == Path("scales").read_bytes()


# What is copied beside quantized weights


def quantized(folder: Path) -> QuantizedModel:
    model = load(folder)
    sample = {"input_ids": np.array([[2, 5, 6, 3]])}
    return apply_recipe(model, PRESETS["e4m3"], calibrate(model, [sample]))


def test_no_link_that_leads_out_is_copied(place: Path, capsys: Capture) -> None:
    Path("secret").write_text("a key")
    Path("secret.json").write_text('{"a": "key"}')
    line = f"quantize model out {TASK} --format e4m3"
    for name, target in (
        ("merges.txt", "../secret"),
        ("added_tokens.json", f"{place}/secret.json"),
        ("sentencepiece.bpe.model", "/etc/hostname"),
        ("merges.txt", "/dev/zero"),
        ("merges.txt", "../nowhere"),
        ("merges.txt", "merges.txt"),
    ):
        link = Path("model", name)
        link.symlink_to(target)
        message = error_of(capsys, line)
        assert message.startswith(f"model/{name}: ")
        with pytest.raises(BertNumpyError, match=f"model/{name}: "):
            save_quantized(quantized(Path("model")), "model", "out")
        assert not Path("out").exists()
        link.unlink()


@pytest.mark.parametrize("kind", ["pipe", "folder", "no JSON", "huge"])
def test_nothing_else_than_a_file_is_copied(kind: str, place: Path, capsys: Capture) -> None:
    path = Path("model/added_tokens.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("a secret")
    if kind == "huge":
        os.truncate(path, 1 << 40)
    assert error_of(capsys, f"quantize model out {TASK} --format e4m3").startswith(f"{path}: ")


def test_links_within_the_folder_or_the_hubs_cache_are_copied(tmp_path: Path) -> None:
    """The cache has the contents in ``blobs``, and links to them in ``snapshots``."""
    repository = tmp_path / "models--owner--name"
    snapshot = write_checkpoint(repository / "snapshots" / "0123")
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert side_files(snapshot) == ["tokenizer.json", "vocab.txt"]
    save_quantized(quantized(snapshot), snapshot, tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (snapshot / "vocab.txt").read_bytes()

    inner = write_checkpoint(tmp_path / "inner")
    (inner / "files").mkdir()
    (inner / "vocab.txt").rename(inner / "files" / "words")
    (inner / "vocab.txt").symlink_to("files/words")
    (tmp_path / "linked").symlink_to("inner")
    assert side_files(tmp_path / "linked") == ["tokenizer.json", "vocab.txt"]
    (snapshot / "merges.txt").symlink_to("../../../inner/files/words")
    with pytest.raises(BertNumpyError, match=r"merges\.txt: expected a file of the model's folder"):
        side_files(snapshot)


def test_a_source_that_the_model_was_not_made_of(tmp_path: Path) -> None:
    """Another one of the same shapes: any one weight or setting differs."""
    source = write_checkpoint(tmp_path / "source")
    model = quantized(source)
    other = write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(BertNumpyError, match=r"other/model\.safetensors: tensor .*found others"):
        save_quantized(model, other, tmp_path / "out")
    tensors = bert_numpy.checkpoints.tensors.open_checkpoint(source)
    content = bytearray((source / "model.safetensors").read_bytes())
    for key in ("bert.encoder.layer.1.output.dense.weight", "classifier.bias",
                "bert.embeddings.word_embeddings.weight"):  # fmt: skip
        changed = bytearray(content)
        changed[tensors[key].end - 1] ^= 0x80  # a sign
        folder = tmp_path / f"changed {key}"
        shutil.copytree(source, folder)
        (folder / "model.safetensors").write_bytes(changed)
        with pytest.raises(BertNumpyError, match=rf"tensor '{key}': expected the weights that"):
            save_quantized(model, folder, tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    config["layer_norm_eps"] = 0.5
    shutil.copytree(source, tmp_path / "config")
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BertNumpyError, match="expected the config of the checkpoint that"):
        save_quantized(model, tmp_path / "config", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    save_quantized(model, source, tmp_path / "out")


# Options that would be ignored


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"evaluate model {TASK} --calibration scales",
         "--calibration: expected a format that needs a calibration, found fp32"),
        (f"evaluate model {TASK} --format bf16 --calibration-data data/train.tsv",
         "--calibration-data: expected a format that needs a calibration, found bf16"),
        (f"compare model {TASK} --formats fp32,bf16 --calibration-samples 3",
         "--calibration-samples: expected a format that needs a calibration, found fp32, bf16"),
        (f"submit model x {TASK} --save-calibration y",
         "y: expected a format that needs a calibration, found fp32"),
        (f"evaluate model {TASK} --format e4m3 --calibration scales --calibration-data x",
         "--calibration-data: expected no --calibration with it, found one"),
        (f"quantize model q {TASK} --format e4m3 --calibration scales --calibration-samples 2",
         "--calibration-samples: expected no --calibration with it, found one"),
        ("predict model film --calibration scales",
         "--calibration: expected a format that needs a calibration, found fp32"),
        ("predict model film --format e4m3-weights --calibration-data data/train.tsv",
         "--calibration-data: expected a format that needs a calibration, found e4m3-weights"),
        ("predict model film --format e4m3 --calibration scales --calibration-data x",
         "--calibration-data: expected no --calibration with it, found one"),
        ("predict model film --accumulate hopper",
         "--accumulate: expected a format with products of codes, found fp32"),
        ("predict model film --format e4m3-weights --accumulate float16",
         "--accumulate: expected a format with products of codes, found e4m3-weights"),
        (f"compare model {TASK} --formats bf16 --accumulate float16",
         "--accumulate: expected a format with products of codes, found fp32, bf16"),
        (f"compare model {TASK} --texts lines.txt",
         "--texts: expected no --task with it, found sst2"),
        ("compare model --data data", "--data: expected --task with it, found none"),
        ("compare model", "model: expected --task NAME and --data DATA to compare on, or texts"),
        ("quantize model q --format e4m3 --limit 3",
         "--limit: expected --task or --texts with it, found neither"),
        ("quantize model q --format e4m3-weights --calibration-data lines.txt",
         "--calibration-data: expected a format that needs a calibration, found e4m3-weights"),
        ("quantize model q --format e4m3 --calibration scales --calibration-data lines.txt",
         "--calibration-data: expected no --calibration with it, found one"),
        ("calibrate model --out x --task sst2", "--task: expected --data with it, found none"),
        (f"evaluate model {TASK} --predictions x",
         "--predictions: expected task squad, found sst2"),
        ("predict model film --revision main",
         "model: expected a hub id for revision 'main', found a folder"),
        ("export-onnx model x --golden",
         "--golden: expected a calibration to make, found fp32"),
        ("export-onnx model x --format e4m3 --calibration scales --golden",
         "--golden: expected a calibration to make, found --calibration"),
        (f"export-onnx model x {TASK}", "--task: expected a calibration to make, found fp32"),
        (f"export-onnx model x --format e4m3 --calibration scales {TASK}",
         "--task: expected a calibration to make, found --calibration"),
        ("export-onnx model x --format e4m3 --calibration scales --max-length 9",
         "--max-length: expected --task with it, found none"),
        ("export-onnx model x --format e4m3 --calibration-data data/train.tsv --batch-size 9",
         "--batch-size: expected --task with it, found none"),
        ("export-onnx model x --format e4m3 --calibration-samples 9",
         "--calibration-samples: expected --task or --calibration-data with it, found neither"),
        ("golden export model x --level codec --inputs inputs.json",
         "--inputs: expected --level layer or model with it, found codec"),
        ("golden export model x --level operator --calibration scales",
         "--calibration: expected --level layer or model with it, found operator"),
        ("golden export model x --inputs inputs.json --limit 3",
         "--limit: expected --task with it, found --inputs"),
        ("golden export model x --inputs inputs.json --format fp32 --calibration scales",
         "--calibration: expected a format that needs a calibration, found fp32"),
        (f"golden export model x --inputs inputs.json {TASK}",
         "expected --inputs FILE, or --task NAME and --data DATA"),
        (f"golden verify {EMBEDDED} candidate.safetensors --min-sqnr 3",
         "--min-sqnr: expected --profile statistical with it, found bit-exact"),
        (f"golden verify {EMBEDDED} candidate.safetensors --profile accumulate-order --max-flips 1",
         "--max-flips: expected --profile statistical with it, found accumulate-order"),
        ("info model --json x --json y", "--json: expected once, found 2 times"),
        (f"evaluate model {TASK} --format e4m3 --recipe int8", "--format: expected once, found 2"),
    ],
)  # fmt: skip
def test_no_option_is_ignored(line: str, message: str, place: Path, capsys: Capture) -> None:
    before = contents(place)
    assert error_of(capsys, line).startswith(message)
    assert contents(place) == before


def test_a_quantized_checkpoint_needs_no_calibration(place: Path, capsys: Capture) -> None:
    assert main(f"quantize model q {TASK} --format e4m3 --calibration scales".split()) == 0
    for line in (
        f"evaluate q {TASK} --calibration scales",
        f"compare q {TASK} --calibration-samples 3",
        "predict q film --calibration-data data/train.tsv",
        "export-onnx q x --calibration scales",
    ):
        assert "in a quantized checkpoint" in error_of(capsys, line)
    assert main(["predict", "q", "film"]) == 0


@pytest.mark.parametrize(
    "line",
    [
        *(f"evaluate model --task sst2 --data data --{name} EMPTY"
          for name in ("format", "json", "calibration", "calibration-data", "save-calibration",
                       "predictions", "revision")),
        "evaluate model --task EMPTY --data data",
        "evaluate model --task sst2 --data EMPTY",
        "compare model --task sst2 --data data --formats EMPTY",
        "calibration scales --operand EMPTY",
        "calibration scales --plot EMPTY",
        "calibration EMPTY",
        "quantize model EMPTY --task sst2 --data data --format e4m3",
        "calibrate model --out EMPTY",
        "embed model film --out EMPTY",
        "compare model --texts EMPTY",
        "quantize model q --task sst2 --data data --recipe EMPTY",
        "export-onnx model EMPTY",
        "submit model EMPTY --task sst2 --data data",
        "golden export model EMPTY --level codec",
        "golden export model k --inputs EMPTY",
        "golden vectors EMPTY",
        "golden verify EMPTY candidate.safetensors",
        "golden info EMPTY",
        "golden list EMPTY",
        f"golden list {EMBEDDED} --operation EMPTY",
        f"golden verify {EMBEDDED} EMPTY",
        f"golden verify {EMBEDDED} candidate.safetensors --html EMPTY",
        "golden check-vectors data/dev.tsv EMPTY",
    ],
)  # fmt: skip
def test_no_value_is_empty(line: str, place: Path, capsys: Capture) -> None:
    argv = ["" if word == "EMPTY" else word for word in line.split()]
    assert error_of(capsys, argv).endswith(": expected a value, found an empty one")


@pytest.mark.parametrize("formats", [",", " , ", ",,,"])
def test_no_list_of_formats_is_empty(formats: str, place: Path, capsys: Capture) -> None:
    argv = ["compare", "model", *TASK.split(), "--formats", formats]
    assert "expected names between commas" in error_of(capsys, argv)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x", ""])
def test_the_least_ratio_is_a_number(value: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["golden", "verify", EMBEDDED, str(KIT), f"--min-sqnr={value}"])
    assert "--min-sqnr: expected a number, found" in capsys.readouterr().err


# Calibration on sentences


def write_sentences(path: Path, count: int) -> Path:
    rows = [f"word {i} of a film\t{i % 2}\n" for i in range(count)]
    path.write_text("sentence\tlabel\n" + "".join(rows))
    return path


def test_a_sample_of_the_sentences_is_enough(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spread evenly, as an evaluation takes it."""
    write_sentences(Path("many.tsv"), 1000)
    used: list[list[str]] = []
    encode = bert_numpy.Tokenizer.encode

    def noted(self: object, texts: list[str], *more: object) -> object:
        used.append(list(texts))
        return encode(self, texts, *more)

    monkeypatch.setattr(bert_numpy.Tokenizer, "encode", noted)
    line = "predict model film --format e4m3 --calibration-data many.tsv"
    for more, count in (("", 256), (" --calibration-samples 10", 10)):
        used.clear()
        assert main((line + more).split()) == 0
        (texts,) = [texts for texts in used if len(texts) > 2]
        assert texts == [f"word {i * 1000 // count} of a film" for i in range(count)]
        assert capsys.readouterr().err == f"scales: from {count} sentences of many.tsv\n"
    export = "golden export model k --inputs inputs.json --calibration-samples 5"
    assert main([*export.split(), "--calibration-data", "many.tsv"]) == 0
    assert capsys.readouterr().err == "scales: from 5 sentences of many.tsv\n"


def test_an_export_calibrates_on_sentences(place: Path, capsys: Capture) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")
    write_sentences(Path("few.tsv"), 9)
    line = "export-onnx model x.onnx --format e4m3 --calibration-data few.tsv"
    assert main([*line.split(), "--save-calibration", "made"]) == 0
    assert capsys.readouterr().err == "scales: from the sentences of few.tsv\n"
    assert load_calibration("made").samples == 9
    line = "export-onnx model y.onnx --format e4m3 --calibration made"
    assert main(line.split()) == 0
    assert Path("x.onnx").read_bytes() == Path("y.onnx").read_bytes()


@pytest.mark.parametrize(
    "command", ["predict", "evaluate", "export-onnx", "golden export", "quantize", "calibrate"]
)
def test_sentences_are_in_a_file(command: str, place: Path, capsys: Capture) -> None:
    os.mkfifo("pipe")
    rest = {
        "predict": "film",
        "evaluate": TASK,
        "export-onnx": "x",
        "golden export": "x --inputs inputs.json",
        "quantize": "q",
        "calibrate": "--out x",
    }[command]
    rest += "" if command == "calibrate" else " --format e4m3"
    for file in ("pipe", "/dev/zero", "data", "missing"):
        line = f"{command} model {rest} --calibration-data {file}"
        assert error_of(capsys, line).startswith(f"{file}: ")
