"""The committed digests of the codec over all float32 inputs, a few blocks per run."""

import secrets

import pytest
from conftest import ROOT

from npfp8.formats import FLOAT_FORMATS

DIGESTS = ROOT / "tests" / "digests" / "codec.txt"


@pytest.fixture(scope="module")
def prove_codec():
    import importlib.util  # noqa: PLC0415

    spec = importlib.util.spec_from_file_location("prove_codec", ROOT / "scripts/prove_codec.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_block_of_every_format_and_mode_is_there():
    lines = DIGESTS.read_text().splitlines()
    assert len(lines) == len(FLOAT_FORMATS) * 2 * 256
    assert lines == sorted(set(lines))
    keys = {tuple(line.split()[:3]) for line in lines}
    assert keys == {
        (name, mode, f"{block:02x}")
        for name in FLOAT_FORMATS
        for mode in ("saturate", "overflow")
        for block in range(256)
    }


def test_one_block_of_a_random_choice(prove_codec):
    index = secrets.randbelow(256)
    print(f"block {index:02x}")  # shown if the test fails
    known = set(DIGESTS.read_text().splitlines())
    assert set(prove_codec.digests_of(index, frozenset())) <= known


def test_a_wrong_code_changes_a_digest(prove_codec, monkeypatch):
    right = prove_codec.encode

    def wrong(x, fmt, saturate):
        codes = right(x, fmt, saturate)
        codes[12345] ^= 1
        return codes

    monkeypatch.setattr(prove_codec, "FLOAT_FORMATS", {"E4M3FN": FLOAT_FORMATS["E4M3FN"]})
    monkeypatch.setattr(prove_codec, "encode", wrong)
    found = set(prove_codec.digests_of(0x40, frozenset()))
    assert not found & set(DIGESTS.read_text().splitlines())
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed (extra: peers)")
    with pytest.raises(SystemExit, match="1 differ from ml_dtypes in block 40"):
        list(prove_codec.digests_of(0x40, frozenset({"ml_dtypes"})))
