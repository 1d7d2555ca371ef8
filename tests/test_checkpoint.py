"""safetensors files and their shards: exact values, or an error that names file and key."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from factories import entry, safetensors_bytes, write_checkpoint, write_tensors
from hypothesis import given
from hypothesis import strategies as st

from bert_numpy import BertNumpyError, load
from bert_numpy.checkpoints.tensors import open_checkpoint, read_float32

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

#: A header of one tensor, and its data.
ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
DATA = struct.pack("<2f", 1.5, -2.0)


def write(folder: Path, content: bytes) -> Path:
    (folder / SINGLE).write_bytes(content)
    return folder


def write_index(folder: Path, weight_map: Any) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    return {key: read_float32(tensor) for key, tensor in open_checkpoint(folder).items()}


def refusal(folder: Path, file: str) -> str:
    """The message of the error, which must begin with the file."""
    with pytest.raises(BertNumpyError) as caught:
        read(folder)
    path = str(folder / file)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def every_code(dtype: str) -> np.ndarray:
    """Every finite float16 or bfloat16 value."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    if dtype == "F16":
        with np.errstate(invalid="ignore"):
            values = codes.view(np.float16).astype(np.float32)
    else:
        values = (codes.astype(np.uint32) << 16).view(np.float32)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_value_is_exact(tmp_path: Path, dtype: str) -> None:
    values = every_code(dtype)
    write_tensors(tmp_path, {"a": values}, dtype)
    (got,) = read(tmp_path).values()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), values.view(np.uint32))


def test_float32_bits_are_kept(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    safetensors.numpy.save_file({"a": values}, tmp_path / SINGLE)
    np.testing.assert_array_equal(read(tmp_path)["a"].view(np.uint32), values.view(np.uint32))


def test_bfloat16_against_torch(tmp_path: Path, torch: Any) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 (needs torch)

    values = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"a": values}, tmp_path / SINGLE)
    np.testing.assert_array_equal(read(tmp_path)["a"], values.float().numpy())


def test_every_shape_and_place(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = ((3, 4), (5,), (), (2, 3, 4), (0,), (1, 1))
    tensors = {
        str(shape): generator.normal(size=shape).astype(np.float32).reshape(shape)
        for shape in shapes
    }
    safetensors.numpy.save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    got = read(tmp_path)
    assert sorted(got) == sorted(tensors)
    for key, tensor in tensors.items():
        assert got[key].shape == tensor.shape
        np.testing.assert_array_equal(got[key], tensor)


def test_stored_tensor_says_where_it_is(tmp_path: Path) -> None:
    write_tensors(tmp_path, {"a": np.ones((2, 3), np.float32), "b": np.ones(1, np.float32)}, "F16")
    stored = open_checkpoint(tmp_path)["a"]
    assert (stored.file, stored.key, stored.dtype) == (tmp_path / SINGLE, "a", "F16")
    assert (stored.shape, stored.nbytes) == ((2, 3), 12)
    assert stored.file.read_bytes()[stored.begin : stored.end] == np.ones(6, "<f2").tobytes()


def test_only_what_is_read_must_be_float(tmp_path: Path) -> None:
    ids = np.arange(4)
    safetensors.numpy.save_file({"a": np.ones(1, np.float32), "ids": ids}, tmp_path / SINGLE)
    stored = open_checkpoint(tmp_path)
    assert read_float32(stored["a"]) == 1
    with pytest.raises(BertNumpyError, match="expected dtype F32, F16 or BF16, found I64") as error:
        read_float32(stored["ids"])
    assert f"{tmp_path / SINGLE}: tensor 'ids'" in str(error.value)


@pytest.mark.parametrize("dtype", ["I64", "I32", "U8", "BOOL", "F64", "F8_E4M3"])
def test_other_dtypes_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    size = {"I64": 8, "I32": 4, "F64": 8}.get(dtype, 1)
    content = safetensors_bytes({"a": entry(0, 2 * size, [2], dtype)}, bytes(2 * size))
    message = refusal(write(tmp_path, content), SINGLE)
    assert message == f"tensor 'a': expected dtype F32, F16 or BF16, found {dtype}"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(tmp_path: Path, dtype: str, value: float) -> None:
    tensor = np.ones((3, 2), np.float32)
    tensor[1, 1] = tensor[2, 0] = value
    write_tensors(tmp_path, {"fine": np.ones(2, np.float32), "a": tensor}, dtype)
    message = refusal(tmp_path, SINGLE)
    assert message == f"tensor 'a': expected finite numbers, found {value} at [1, 1]"


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *(("F8_E4M3FNUZ", 4), ("F8_E5M2FNUZ", 4), ("F8_E8M0", 4), ("F4", 2), ("F6_E2M3", 3)),
        *(("F6_E3M2", 3), ("C64", 32), ("F31", 7)),
    ],
)
def test_dtypes_newer_than_the_library(tmp_path: Path, dtype: str, size: int) -> None:
    """Whatever the installed release knows, a tensor that nobody reads is left alone."""
    header = {"a": entry(0, 8, [2]), "new": entry(8, 8 + size, [4], dtype)}
    stored = open_checkpoint(write(tmp_path, safetensors_bytes(header, DATA + bytes(size))))
    assert read_float32(stored["a"]).tolist() == [1.5, -2.0]
    with pytest.raises(BertNumpyError, match=f"'new': expected dtype F32, .*, found {dtype}$"):
        read_float32(stored["new"])
    cut = safetensors_bytes(header, DATA + bytes(size - 1))
    assert refusal(write(tmp_path, cut), SINGLE).startswith("expected a safetensors file, found: ")


def test_truncated_anywhere(tmp_path: Path) -> None:
    content = safetensors_bytes(ONE, DATA)
    for length in range(len(content)):
        message = refusal(write(tmp_path, content[:length]), SINGLE)
        assert message.startswith("expected a safetensors file, found: "), length
    assert read(write(tmp_path, content))["a"].tolist() == [1.5, -2.0]


CORRUPT = {
    "no header": (b"", b""),
    "a list": (b"[]", b""),
    "cut JSON": (b"{", b""),
    "a number": (b'{"a": 1}', b""),
    "not UTF-8": (b'{"a\xff": 1}', b""),
    "byte order mark": (b"\xef\xbb\xbf{}", b""),
    "zeros": (bytes(8), b""),
    "deep": (b'{"a":' * 100_000, b""),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, DATA),
    "one offset": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, DATA),
    "unknown dtype in a file that is cut": ({"a": entry(0, 8, [2], "F31")}, DATA[1:]),
    "negative size": ({"a": entry(0, 8, [-2])}, DATA),
    "broken size": ({"a": entry(0, 8, [2.0])}, DATA),
    "long number": (b'{"a": {"x": ' + b"1" * 5000 + b"}}", b""),
    "other size": ({"a": entry(0, 8, [3])}, DATA),
    "huge size": ({"a": entry(0, 8, [2**62, 2**62])}, DATA),
    "begin after end": ({"a": entry(8, 0, [2])}, DATA),
    "beyond the file": ({"a": entry(0, 16, [4])}, DATA),
    "data left over": ({"a": entry(0, 4, [1])}, DATA),
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, DATA + DATA[:4]),
    "the same place": ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, DATA),
    "gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, DATA + DATA[:4]),
    "gap at the start": ({"a": entry(4, 12, [2])}, DATA + DATA[:4]),
}


@pytest.mark.parametrize(("header", "data"), CORRUPT.values(), ids=CORRUPT.keys())
def test_corrupt_header(tmp_path: Path, header: Any, data: bytes) -> None:
    message = refusal(write(tmp_path, safetensors_bytes(header, data)), SINGLE)
    assert message.startswith("expected a safetensors file, found: ")
    assert message.removeprefix("expected a safetensors file, found: ")


@pytest.mark.parametrize("length", [0, 2, 10_000, 99_999_999, 100_000_001, 2**63, 2**64 - 1])
def test_wrong_header_length(tmp_path: Path, length: int) -> None:
    content = struct.pack("<Q", length) + safetensors_bytes(ONE, DATA)[8:]
    message = refusal(write(tmp_path, content), SINGLE)
    assert message.startswith("expected a safetensors file, found: ")
    assert "header" in message


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (["F32", [2], [0, 8]], "an object of dtype, shape and data_offsets, found ['F32', ["),
        (
            {"dtype": {"F32": None}, "shape": [2], "data_offsets": [0, 8]},
            "the name of a dtype, found {'F32': None}",
        ),
    ],
)
def test_spellings_that_only_the_library_knows(tmp_path: Path, info: Any, expected: str) -> None:
    """Its JSON reader takes a list for an object, and an object for the name of a dtype."""
    message = refusal(write(tmp_path, safetensors_bytes({"a": info}, DATA)), SINGLE)
    assert message.startswith(f"tensor 'a': expected {expected}")


def test_duplicate_key(tmp_path: Path) -> None:
    one = json.dumps(ONE)[1:-1]
    content = safetensors_bytes(f"{{{one}, {one}}}".encode(), DATA)
    assert refusal(write(tmp_path, content), SINGLE) == "key 'a': expected once, found 2 times"


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    content = safetensors_bytes({"__metadata__": {"format": "np"}, **ONE}, DATA)
    assert list(open_checkpoint(write(tmp_path, content))) == ["a"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), "neither"),
        (("model.bin",), "neither"),
        (("pytorch_model.bin",), "only pytorch_model.bin, a pickle, which is not read, as "),
        (
            ("pytorch_model-00002-of-00002.bin", "pytorch_model-00001-of-00002.bin"),
            "only pytorch_model-00001-of-00002.bin, a pickle, which is not read, as ",
        ),
    ],
)
def test_no_safetensors(tmp_path: Path, files: tuple[str, ...], found: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(BertNumpyError) as caught:
        open_checkpoint(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: expected {SINGLE} or {INDEX}, found {found}")
    assert ("save_pretrained" in message) == ("only" in found)  # how to convert a pickle


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
@pytest.mark.parametrize("name", [SINGLE, INDEX, "x.safetensors"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    """Nothing is waited for: one error, at once."""
    path = tmp_path / name
    if name == "x.safetensors":
        write_index(tmp_path, {"a": name})
    path.symlink_to("nowhere")
    assert refusal(tmp_path, name) == "no such file"
    path.unlink()
    path.mkdir()
    assert refusal(tmp_path, name) == "expected a file, found a folder"
    path.rmdir()
    os.mkfifo(path)
    assert refusal(tmp_path, name) == "expected a file, found a pipe or a device"


def test_links_are_followed(tmp_path: Path) -> None:
    """The hub's cache has links to files outside the folder."""
    (tmp_path / "blob").write_bytes(safetensors_bytes(ONE, DATA))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / SINGLE).symlink_to("../blob")
    assert read(tmp_path / "snapshot")["a"].tolist() == [1.5, -2.0]


def test_an_index_of_two_minds(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(ONE, DATA))
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert "key 'a' has two values" in refusal(tmp_path, INDEX)


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    """The list of a thousand million layers' parameters is never made."""
    folder = write_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key in ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"):
        changed = config | {key: 10**9, "num_attention_heads": 1}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(BertNumpyError, match="expected"):
            load(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError, match=f"expected {SINGLE} or {INDEX}, found neither"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("shards", [2, 3, 5])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_shards_are_as_one_file(tmp_path: Path, shards: int, dtype: str) -> None:
    one = write_checkpoint(tmp_path / "one", dtype=dtype)
    many = write_checkpoint(tmp_path / "many", dtype=dtype, shards=shards)
    assert len(list(many.glob("*.safetensors"))) == shards
    expected, got = read(one), read(many)
    assert sorted(got) == sorted(expected)
    assert all(np.array_equal(got[key], expected[key]) for key in expected)


def test_a_single_file_is_preferred(tmp_path: Path) -> None:
    write_index(write(tmp_path, safetensors_bytes(ONE, DATA)), {"a": "missing.safetensors"})
    assert read(tmp_path)["a"].tolist() == [1.5, -2.0]


def test_tensors_outside_the_index_are_ignored(tmp_path: Path) -> None:
    two = {"a": entry(0, 4, [1]), "b": entry(4, 8, [1])}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(two, DATA))
    assert list(open_checkpoint(write_index(tmp_path, {"b": "x.safetensors"}))) == ["b"]


def test_index_names_a_missing_shard(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    assert refusal(tmp_path, "model-00001-of-00001.safetensors") == "no such file"


def test_shard_name_that_no_file_can_have(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "x" * 300})
    expected = f"tensor 'a': expected a file name in this folder, found {'x' * 300!r}"
    assert refusal(tmp_path, INDEX) == expected


def test_index_names_a_missing_tensor(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(ONE, DATA))
    write_index(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"})
    assert refusal(tmp_path, "x.safetensors") == "tensor 'b': expected, but missing"


def test_corrupt_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.safetensors").write_bytes(safetensors_bytes(ONE, DATA))
    (tmp_path / "2.safetensors").write_bytes(safetensors_bytes(ONE, DATA[:-1]))
    write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    assert "expected a safetensors file" in refusal(tmp_path, "2.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "/x.safetensors", "./x.safetensors", "sub/x.safetensors"),
        *("..\\x.safetensors", "C:\\x.safetensors", "C:x.safetensors", "\\\\host\\share\\x"),
        *("sub\\x.safetensors", "..", ".", "", "x.safetensors/", None, 3, ["x.safetensors"]),
    ],
)
def test_index_leads_out_of_the_folder(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):  # what must not be read is there
        (place / "x.safetensors").write_bytes(safetensors_bytes(ONE, DATA))
    message = refusal(write_index(folder, {"a": name}), INDEX)
    assert message == f"tensor 'a': expected a file name in this folder, found {name!r}"


@pytest.mark.parametrize("weight_map", [{}, None, [], ["a"], "a"])
def test_no_weight_map(tmp_path: Path, weight_map: Any) -> None:
    message = refusal(write_index(tmp_path, weight_map), INDEX)
    assert message == "key 'weight_map': expected tensor names, found none"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}"])
def test_corrupt_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    assert "expected" in refusal(tmp_path, INDEX)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder to write in, and the file of a small but complete checkpoint."""
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 4}
    folder = write_checkpoint(tmp_path_factory.mktemp("fuzz"), config_overrides=sizes)
    return folder, (folder / SINGLE).read_bytes()


@given(data=st.data())
def test_flipped_and_cut_headers(small: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, content = small
    (size,) = struct.unpack("<Q", content[:8])
    damaged = bytearray(content)
    places = st.integers(0, 8 + size - 1)
    for place in data.draw(st.lists(places, max_size=4), label="places"):
        damaged[place] = data.draw(st.integers(0, 255), label="byte")
    if data.draw(st.booleans(), label="cut"):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    (folder / SINGLE).write_bytes(damaged)
    try:
        model = load(folder)
    except BertNumpyError as error:
        refused = str(error)
    else:
        refused = ""
        assert np.isfinite(model([[2, 5, 3]]).logits).all()
    assert not refused or str(folder) in refused


_VALUES = st.recursive(
    st.sampled_from(["F32", "F16", "U8", "x", 0, 1, 2, 4, 8, -1, 2**64, 0.5, None, True]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "F32"]), inner)
    ),
    max_leaves=8,
)


@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), _VALUES) | _VALUES)
def test_any_json_header(tmp_path_factory: pytest.TempPathFactory, header: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder, safetensors_bytes(json.dumps(header).encode(), bytes(8)))
    try:
        tensors = read(folder)
    except BertNumpyError as error:
        refused = str(error)
    else:
        refused = ""
        assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    assert not refused or str(folder / SINGLE) in refused
