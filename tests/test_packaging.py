"""The wheel is pure, small and enough for the demo; the sdist has the files for tests and docs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import npfp8


def build(kind, source, target):
    """Call the build backend's hook; returns the path of what it made."""
    reason = "setuptools 77 or newer is not installed (extra: test)"
    pytest.importorskip("setuptools", minversion="77", reason=reason)
    program = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Built from a copy without what git ignores, so that nothing is written beside the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(
        "build", "site", "*.egg-info", ".*_cache", ".git", ".venv", "__pycache__"
    )
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    return build("sdist", folder / "source", folder)


@pytest.fixture(scope="module")
def unpacked(sdist):
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked):
    return build("wheel", unpacked, unpacked.parent)


def tracked():
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).exists()]


def test_sdist_has_every_tracked_file(unpacked):
    missing = [name for name in tracked() if not (unpacked / name).exists()]
    assert missing == [".gitignore"]


def test_wheel_is_pure_and_small(wheel):
    assert wheel.name == f"fp8_bert_numpy-{npfp8.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 12e6


def test_wheel_has_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {name for name in tracked() if name.startswith(("npfp8/", "bert_numpy/"))}
    assert wanted <= names
    assert {name.split("/")[0] for name in names - wanted} == {
        f"fp8_bert_numpy-{npfp8.__version__}.dist-info"
    }


def test_wheel_runs_the_demo_in_an_empty_environment(wheel, tmp_path):
    """Installed alone, without a network; only what it depends on is lent by this environment."""
    venv.create(tmp_path, symlinks=True)
    python, command = tmp_path / "bin" / "python", tmp_path / "bin" / "bert-numpy"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    # A folder in a .pth file comes last, and its own .pth files, such as a checkout's, count not.
    lent = Path(found.stdout.strip()) / "lent.pth"
    lent.write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def output(*arguments):
        done = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for package in ("npfp8", "bert_numpy"):
        origin = output(python, "-c", f"import {package}; print({package}.__file__)")
        assert origin.startswith(str(tmp_path))
    assert output(command, "--version").strip() == npfp8.__version__
    assert re.search(r"^\| E4M3 ", output(command, "demo"), re.MULTILINE)
