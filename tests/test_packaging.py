"""The wheel is pure, small and enough for the demo; the sdist has what tests and docs need."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from conftest import ROOT

import npfp8


def build(kind, source, target):
    """Call the build backend's hook; returns the path of what it made."""
    backend = pytest.importorskip("setuptools.build_meta", reason="setuptools is not installed")
    assert backend is not None
    program = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, check=False
    )
    if "license" in done.stderr and "must be" in done.stderr:
        pytest.skip("setuptools is older than the project's build requires (77)")
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Built from a copy without what git ignores, so that nothing is written beside the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(
        "build", "*.egg-info", ".*_cache", ".git", ".venv", "__pycache__"
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
    """The wheel alone in an environment; its dependencies are lent by this one's site-packages.

    They are found last and have no checkout of this project in front: an editable install
    works by a .pth file, which a folder in PYTHONPATH does not run.
    """
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target.stdout.strip())
    script = re.search(r"^bert-numpy = (\w+\.\w+):(\w+)$", _entry_points(wheel), re.MULTILINE)
    # Behind the wheel's own folder, so that what both have is the wheel's.
    lent = f"import sys; sys.path += [{sysconfig.get_path('purelib')!r}]; "
    check = "import npfp8; assert npfp8.__file__.startswith(sys.prefix), npfp8.__file__; "
    program = f"{lent}{check}from {script[1]} import {script[2]} as f; sys.exit(f(['demo']))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "COLUMNS": "120"
    }
    done = subprocess.run(
        [python, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "e4m3" in done.stdout


def _entry_points(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        return archive.read(name).decode()
