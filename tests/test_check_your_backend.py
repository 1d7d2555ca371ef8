"""The page "Check your backend in ten minutes": its commands run, and print what it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, load_script

PAGE = ROOT / "docs" / "check-your-backend.md"
EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the page's commands are a POSIX shell's"),
    pytest.mark.skipif(not EXAMPLES.exists(), reason="the examples are in the repository"),
]

#: The program without which a section cannot run.
TOOLS = {"C": "gcc", "CUDA": "nvcc", "Verilog": "iverilog"}


@pytest.fixture(scope="module")
def page():
    return load_script("run_page")


@pytest.fixture(scope="module")
def section(page):
    return page.sections(PAGE.read_text(encoding="utf-8")).__getitem__


def steady(text: str) -> str:
    """Leave out what changes with every new case of the kit, and the name of the device."""
    text = re.sub(r"^(kit|vectors): .*", r"\1: ...", text, flags=re.MULTILINE)
    text = re.sub(r" of [\d,]+ computed tensors given", " of ... computed tensors given", text)
    text = re.sub(r"^(not given|would not show): .*\n(?: +.*\n)*", "", text, flags=re.MULTILINE)
    return re.sub(r"^on (the CPU|NVIDIA.*)$", "on ...", text, flags=re.MULTILINE)


def check(page, section, title):
    text = section(title)
    assert len(page.commands(text)) >= 6
    assert steady(page.made_again(text)) == steady(text)


@pytest.mark.parametrize("title", TOOLS)
def test_section(title, page, section):
    if shutil.which(TOOLS[title]) is None:
        pytest.skip(f"{TOOLS[title]} is not installed")
    check(page, section, title)


def test_section_pytorch(torch, page, section):
    check(page, section, "PyTorch")


def test_every_section_with_commands_is_run(page):
    titles = page.sections(PAGE.read_text(encoding="utf-8")).items()
    assert {title for title, text in titles if page.commands(text)} == {*TOOLS, "PyTorch"}


@pytest.mark.parametrize("title", [*TOOLS, "PyTorch"])
def test_each_section_goes_from_a_named_fault_to_none(title, section):
    """The first check names a cause, and the last one finds nothing."""
    named, right = re.split(r"Without the faults?:", section(title))
    assert re.search(r"^ +cause: (?!no known one)", named, re.MULTILINE)
    assert "cause:" not in right
    assert re.search(r"\b0 (of \d+ cases are wrong|differ)", right)
    assert "FAILED" not in right


def test_other_output_is_noticed(page, tmp_path):
    text = "Words.\n\n```console\n$ echo one\none\n$ false\n$ echo two >&2\ntwo\n```\n"
    assert page.commands(text) == ["echo one", "false", "echo two >&2"]
    assert page.made_again(text) == text
    assert page.made_again(text.replace("\none\n", "\nother\n")) == text


def test_code_in_the_page_is_the_files(section):
    (code,) = re.findall(r"^```c\n(.*?)^```", section("C"), re.DOTALL | re.MULTILINE)
    assert code in (EXAMPLES / "c" / "encode.c").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", ["", "-DTIES_AWAY"])
def test_c_has_no_warnings(fault, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", *fault.split()]
    command = ["gcc", *flags, "-o", tmp_path / "encode", EXAMPLES / "c" / "encode.c"]
    subprocess.run(command, check=True)


def test_cuda_on_a_gpu(tmp_path, page):
    """The kernels themselves, where there is a GPU; elsewhere the section runs on the CPU."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if shutil.which("nvidia-smi") is None or subprocess.run("nvidia-smi", check=False).returncode:
        pytest.skip("there is no NVIDIA GPU: the CUDA example runs on the CPU instead")
    lines = [
        f"cp {EXAMPLES / 'cuda' / 'backend.cu'} .",
        "bert-numpy golden text bert-tiny-sst2 kit --operation encode --operation quantize "
        "--operation sum",
        "nvcc -arch=sm_89 -o backend backend.cu",
        "./backend kit",
    ]
    folder = tmp_path / "empty"
    folder.mkdir()
    printed = page.run(lines, folder)[-1]
    assert printed.startswith("on NVIDIA")
    assert "\n0 of " in printed
