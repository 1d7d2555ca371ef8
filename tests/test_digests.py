"""The committed digests of the codec over all float32 inputs, a few blocks per run."""

import secrets

import numpy as np
import pytest
from conftest import ROOT

from npfp8.formats import FLOAT_FORMATS

DIGESTS = ROOT / "tests" / "digests" / "codec.txt"
ROUNDINGS = ROOT / "tests" / "digests" / "roundings.txt"


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


def test_every_block_of_every_format_and_rounding_is_there(prove_codec):
    lines = ROUNDINGS.read_text().splitlines()
    assert lines == sorted(set(lines))
    assert [line.split()[:3] for line in lines] == sorted(
        [name, rounding, f"{block:02x}"]
        for name in FLOAT_FORMATS
        for rounding in prove_codec.OTHERS
        for block in range(256)
    )


def test_roundings_of_a_random_choice(prove_codec):
    known = set(ROUNDINGS.read_text().splitlines())
    index = secrets.randbelow(256)
    pairs = [(fmt, how) for fmt in FLOAT_FORMATS.values() for how in prove_codec.OTHERS]
    for fmt, how in (secrets.choice(pairs) for _ in range(8)):
        print(f"block {index:02x}, {fmt}, {how}")  # shown if the test fails
        assert set(prove_codec.rounding_digests_of(index, [(fmt, how)])) <= known


@pytest.mark.parametrize("place", [0, 12345, (1 << 24) - 1])
def test_a_wrong_code_is_found_by_integers(prove_codec, monkeypatch, place):
    """Wherever it is, it begins or ends a run of equal codes, or the one before it ends."""
    right = prove_codec.encode

    def wrong(x, fmt, saturate, **options):
        codes = right(x, fmt, saturate, **options)
        codes[place] ^= 1
        return codes

    monkeypatch.setattr(prove_codec, "encode", wrong)
    with pytest.raises(SystemExit, match=f"E5M2 up saturate=True .* of 0x40{place:06X} is not"):
        list(prove_codec.rounding_digests_of(0x40, [(FLOAT_FORMATS["E5M2"], "up")]))


def test_a_shifted_boundary_is_found_by_integers(prove_codec, monkeypatch):
    right = prove_codec.encode
    monkeypatch.setattr(
        prove_codec,
        "encode",
        lambda x, fmt, saturate, **options: np.append(right(x, fmt, saturate, **options)[1:], 0),
    )
    with pytest.raises(SystemExit, match="E4M3FN odd saturate=True overflow=ieee: the code of"):
        list(prove_codec.rounding_digests_of(0x41, [(FLOAT_FORMATS["E4M3FN"], "odd")]))


def test_samples_are_of_all_roundings(prove_codec):
    pairs = [(fmt, how) for fmt in FLOAT_FORMATS.values() for how in prove_codec.OTHERS]
    assert prove_codec.sampled(3, pairs, None, 1) == tuple(pairs)
    found = [set(prove_codec.sampled(index, pairs, 5, 1)) for index in range(256)]
    assert {len(one) for one in found} == {5}
    assert set().union(*found) == set(pairs)
    assert found[0] != set(prove_codec.sampled(0, pairs, 5, 2))
