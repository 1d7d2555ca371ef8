"""FP8 safetensors files: our reader and writer against the library and torch."""

import contextlib
import json
import os
import struct
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import npfp8
from npfp8 import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FloatFormat,
    storage,
)
from npfp8.formats import FLOAT_FORMATS
from npfp8.storage import Bfloat16Array, Fp8Array, load_file, read_header, save_file

ALL_CODES = np.arange(256, dtype=np.uint8)


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def saved(tmp_path):
    tensors = {
        "e4m3": Fp8Array(ALL_CODES.reshape(16, 16), E4M3FN),
        "e5m2": Fp8Array(ALL_CODES[::-1], E5M2),
        "e8m0": Fp8Array(ALL_CODES[:0], E8M0FNU),
        "e4m3fnuz": Fp8Array(ALL_CODES[::2], E4M3FNUZ),
        "e5m2fnuz": Fp8Array(ALL_CODES[::3], E5M2FNUZ),
        "scale": np.float32(0.5),
        "ids": np.arange(6).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">f8"),
        "flags": np.array([True, False]),
        "e2m1": Fp8Array(ALL_CODES[:48].reshape(3, 16) % 16, E2M1),
        "e2m3": Fp8Array(ALL_CODES[:64].reshape(4, 16)[:, ::-1], E2M3),
        "e3m2": Fp8Array(ALL_CODES[:64].reshape(4, 16).T, E3M2),
        "complex": np.complex64([[1 + 2j, -3j]]),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"made by": "npfp8"})
    return tensors, tmp_path / "x.safetensors"


def test_round_trip(saved):
    tensors, path = saved
    found = load_file(path)
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        if isinstance(tensor, Fp8Array):
            assert found[key].fmt == tensor.fmt
            assert found[key].codes.dtype == np.uint8
            assert np.array_equal(found[key].codes, tensor.codes)
        else:
            assert found[key].dtype == np.asarray(tensor).dtype.newbyteorder("=")
            assert np.array_equal(found[key], tensor)


def test_the_library_accepts_it(saved):
    tensors, path = saved
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        assert file.metadata() == {"made by": "npfp8"}
        assert file.get_slice("e4m3").get_dtype() == "F8_E4M3"
        assert file.get_slice("e5m2").get_dtype() == "F8_E5M2"
        assert np.array_equal(file.get_tensor("ids"), tensors["ids"])


@pytest.mark.parametrize(
    ("fmt", "name"), [(E4M3FN, "float8_e4m3fn"), (E5M2, "float8_e5m2")], ids=str
)
def test_torch_reads_ours_and_we_read_torch(fmt, name, torch, tmp_path):
    from safetensors.torch import load_file as load_torch  # noqa: PLC0415
    from safetensors.torch import save_file as save_torch  # noqa: PLC0415

    save_file({"w": Fp8Array(ALL_CODES, fmt)}, tmp_path / "ours")
    tensor = load_torch(tmp_path / "ours")["w"]
    assert tensor.dtype == getattr(torch, name)
    assert np.array_equal(tensor.view(torch.uint8).numpy(), ALL_CODES)
    save_torch({"w": tensor, "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "theirs")
    found = load_file(tmp_path / "theirs")
    assert (found["w"].fmt, found["w"].codes.tolist()) == (fmt, ALL_CODES.tolist())
    assert found["b"].tolist() == [0x3F80] * 3


def stored_bytes(path, key):
    return read_header(path)[key].read_bytes()


def test_the_dtypes_are_the_librarys():
    """Every dtype of Dtype in safetensors' tensor.rs, 0.8, with its bits."""
    names = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]
    known = dict.fromkeys(names, 8) | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    known |= dict.fromkeys(["I16", "U16", "F16", "BF16"], 16)
    known |= dict.fromkeys(["I32", "U32", "F32"], 32)
    known |= dict.fromkeys(["C64", "F64", "I64", "U64"], 64)
    assert known == storage._BITS


@pytest.mark.parametrize("dtype", storage._BITS)
def test_the_library_knows_every_dtype(dtype, tmp_path):
    bits = storage._BITS[dtype]
    nbytes = bits * 8 // 8
    path = tmp_path / "x"
    path.write_bytes(file_of({"a": entry(dtype, (8,), (0, nbytes))}, bytes(nbytes)))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.get_slice("a").get_dtype() == dtype
        assert file.get_slice("a").get_shape() == [8]
    loaded = load_file(path)["a"]
    assert (loaded.codes if isinstance(loaded, Fp8Array) else loaded).shape == (8,)


def test_bytes_of_four_and_six_bits(tmp_path):
    codes = np.uint8([[1, 2, 3, 4], [5, 6, 7, 8]])
    tensors = {name: Fp8Array(codes, fmt) for name, fmt in (("a", E2M1), ("b", E2M3), ("c", E3M2))}
    save_file(tensors, tmp_path / "x")
    assert stored_bytes(tmp_path / "x", "a") == bytes([0x21, 0x43, 0x65, 0x87])
    number = sum(int(code) << (6 * i) for i, code in enumerate(codes.reshape(-1)))
    for key, dtype in (("b", "F6_E2M3"), ("c", "F6_E3M2")):
        stored = read_header(tmp_path / "x")[key]
        assert (stored.dtype, stored.shape) == (dtype, (2, 4))
        assert stored.read_bytes() == number.to_bytes(6, "little")
    for key, tensor in load_file(tmp_path / "x").items():
        assert tensor.fmt == tensors[key].fmt
        assert np.array_equal(tensor.codes, codes)


@pytest.mark.parametrize("shape", [(2, 3), (4, 1, 3), (0, 3), (8,), (1, 2, 0)])
def test_rows_need_not_be_whole_bytes(shape, tmp_path):
    """The stream goes on from row to row; the whole tensor is whole bytes."""
    codes = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) + 1
    save_file({"a": Fp8Array(codes, E2M1)}, tmp_path / "x")
    found = load_file(tmp_path / "x")["a"].codes
    assert found.shape == shape
    assert np.array_equal(found, codes)
    assert found.flags.writeable


def test_fp4_is_torchs_both_ways(torch, tmp_path):
    """torch's type has two elements; the file's shape counts them all."""
    from safetensors.torch import load_file as load_torch  # noqa: PLC0415
    from safetensors.torch import save_file as save_torch  # noqa: PLC0415

    codes = np.random.default_rng(0).integers(0, 16, (3, 8)).astype(np.uint8)
    save_file({"w": Fp8Array(codes, E2M1)}, tmp_path / "ours")
    tensor = load_torch(tmp_path / "ours")["w"]
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float4_e2m1fn_x2, (3, 4))
    packed = tensor.view(torch.uint8).numpy()
    assert np.array_equal(packed & 15, codes[:, ::2])
    assert np.array_equal(packed >> 4, codes[:, 1::2])
    save_torch({"w": tensor}, tmp_path / "theirs")
    found = load_file(tmp_path / "theirs")["w"]
    assert found.fmt == E2M1
    assert np.array_equal(found.codes, codes)
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


@pytest.mark.parametrize(
    ("fmt", "name"),
    [(E8M0FNU, "float8_e8m0fnu"), (E4M3FNUZ, "float8_e4m3fnuz"), (E5M2FNUZ, "float8_e5m2fnuz")],
    ids=str,
)
def test_scales_and_fnuz_are_torchs_both_ways(fmt, name, torch, tmp_path):
    from safetensors.torch import load_file as load_torch  # noqa: PLC0415
    from safetensors.torch import save_file as save_torch  # noqa: PLC0415

    save_file({"w": Fp8Array(ALL_CODES, fmt)}, tmp_path / "ours")
    tensor = load_torch(tmp_path / "ours")["w"]
    assert tensor.dtype == getattr(torch, name)
    assert np.array_equal(tensor.view(torch.uint8).numpy(), ALL_CODES)
    save_torch({"w": tensor}, tmp_path / "theirs")
    assert load_file(tmp_path / "theirs")["w"].fmt == fmt


def test_complex_and_bfloat16_are_the_librarys(torch, tmp_path):
    from safetensors.torch import load_file as load_torch  # noqa: PLC0415

    numbers = np.complex64([[1 + 2j, -3.5j], [np.inf, 0]])
    bits = np.uint16([0x3F80, 0xC000])
    save_file({"c": numbers, "b": Bfloat16Array(bits), "d": numbers.astype(">c8")}, tmp_path / "x")
    theirs = load_torch(tmp_path / "x")
    assert np.array_equal(theirs["c"].numpy(), numbers)
    assert np.array_equal(theirs["d"].numpy(), numbers)
    assert theirs["b"].tolist() == [1.0, -2.0]
    safetensors.numpy.save_file({"c": numbers}, tmp_path / "y")
    found = load_file(tmp_path / "y")["c"]
    assert found.dtype == np.complex64
    assert np.array_equal(found, numbers)


def test_same_input_same_bytes_whatever_the_order(saved):
    tensors, path = saved
    other = path.with_name("y.safetensors")
    save_file(dict(reversed(tensors.items())), other, {"made by": "npfp8"})
    assert other.read_bytes() == path.read_bytes()


def test_reads_what_the_library_writes(tmp_path):
    arrays = {"a": np.arange(5, dtype=np.float16), "b": np.ones((2, 0, 3)), "c": np.int8([[-1]])}
    safetensors.numpy.save_file(arrays, tmp_path / "x")
    found = load_file(tmp_path / "x")
    assert all(np.array_equal(found[key], arrays[key]) for key in arrays)
    assert all(found[key].dtype == arrays[key].dtype for key in arrays)


@pytest.mark.parametrize(
    ("dtype", "nbytes"),
    [
        *(("F8_E4M3FNUZ", 4), ("F8_E5M2FNUZ", 4), ("F8_E8M0", 4), ("F4", 2), ("F6_E2M3", 3)),
        *(("F6_E3M2", 3), ("C64", 32), ("BF16", 8), ("F8_E3M4", 4), ("F2", 1), ("\u00e9 \n", 0)),
    ],
)
def test_every_dtype_is_copied_as_bytes(dtype, nbytes, tmp_path):
    """Known or not, it is found, and copied byte for byte; only reading an unknown one fails."""
    header = {"a": entry(dtype, (4,), (0, nbytes)), "b": entry("U8", (1,), (nbytes, nbytes + 1))}
    path = tmp_path / "x"
    path.write_bytes(file_of(header, bytes(range(nbytes + 1))))
    stored = read_header(path)
    assert stored["a"].read_bytes() == bytes(range(nbytes))
    assert stored["b"].read_as("u1").tolist() == [nbytes]
    save_file(stored, tmp_path / "again")
    again = read_header(tmp_path / "again")["a"]
    assert (again.dtype, again.shape) == (dtype, (4,))
    assert again.read_bytes() == stored["a"].read_bytes()
    if dtype in storage._BITS:
        load_file(path)
    else:
        with pytest.raises(ValueError, match=r"tensor 'a': expected dtype F64, .*, found"):
            load_file(path)


@pytest.mark.parametrize("fmt", [E4M3FNUZ, E5M2FNUZ], ids=str)
def test_fnuz_by_the_librarys_names(fmt, tmp_path):
    path = tmp_path / "x"
    save_file({"x": Fp8Array(ALL_CODES, fmt)}, path)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert header["x"]["dtype"] == f"F8_{fmt}"
    assert path.read_bytes()[8 + length :] == ALL_CODES.tobytes()
    assert load_file(path)["x"].fmt == fmt


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "8 bytes of header length, found 0"),
        (b"\x01\0\0", "8 bytes of header length, found 3"),
        (struct.pack("<Q", 2**63) + b"{}", "found a length of 9223372036854775808"),
        (struct.pack("<Q", 3) + b"{}", "within 2 bytes, found a length of 3"),
        (file_of(b" {}"), "begins with '{'"),
        (file_of(b"{"), "JSON header"),
        (file_of(b'{"\xff": 1}'), "JSON header"),
        (file_of(b"{" + b'"a":[' * 9999), "JSON header"),
        (
            file_of({"a": 1}),
            "tensor 'a': expected an object of dtype, shape and data_offsets, found 1",
        ),
        (file_of({"a": {**entry(), "more": 1}}), "tensor 'a': expected an object of dtype"),
        (file_of({"a": {**entry(), "dtype": ["U8"]}}), "expected the name of a dtype"),
        (file_of({"a": entry("F8_E3M4")}, b"ab"), "'a': expected dtype F64.*, found F8_E3M4"),
        (file_of({"a": entry("F8_E3M4")}), "expected .* bytes by the header, found"),
        (file_of({"a": entry("F8_E3M4", offsets=[2, 0])}), "data_offsets in order, found .2, 0"),
        (file_of({"a": entry("")}, b"ab"), "'a': expected the name of a dtype, found ''"),
        (file_of({"a": entry("F4")}, b"ab"), "'a': expected 1 bytes for F4 of shape .2., found"),
        (file_of({"a": entry("F4", shape=[3])}, b"ab"), "whole bytes of F4, 4 bits each, found"),
        (file_of({"a": entry("F6_E2M3", shape=[2])}, b"ab"), "whole bytes of F6_E2M3, 6 bits"),
        (file_of({"a": entry("F3", shape=[4])}, b"ab"), "'a': expected dtype F64.*, found F3"),
        (file_of({"a": entry(shape=[-1])}), "non-negative integers"),
        (file_of({"a": entry(shape=[True])}), "non-negative integers"),
        (file_of({"a": entry(shape=[2.0])}), "non-negative integers"),
        (file_of({"a": entry(offsets=[0, 2, 3])}), "non-negative integers"),
        (file_of({"a": entry(shape=[3])}, b"ab"), "tensor 'a': expected 3 bytes for U8"),
        (file_of({"a": entry(offsets=[2, 0], shape=[0])}), "expected 0 bytes for U8"),
        (file_of({"a": entry(offsets=[1, 3])}, b"abc"), "data from byte 0, .* found 1"),
        (file_of({"a": entry(), "b": entry(offsets=[1, 3])}, b"abc"), "'b': expected data from"),
        (file_of({"a": entry()}, b"a"), "bytes by the header, found"),
        (file_of({"a": entry()}, b"abc"), "bytes by the header, found"),
        (file_of({"__metadata__": {"a": 1}}), "'__metadata__': expected strings"),
        (file_of({"__metadata__": []}), "'__metadata__': expected strings"),
        (file_of(b'{"a":{},"a":{}}'), "key 'a': expected once, found 2 times"),
        (file_of(b'{"a":' + b"9" * 5000 + b"}"), "numbers of 64 bits, found one of 5000 digits"),
        (
            file_of({"a": entry(shape=[2**63, 2**63, 0], offsets=[0, 0])}),
            f"at most {sys.maxsize} bytes",
        ),
        (file_of({"a": entry(shape=[2] + 32 * [1])}, b"ab"), "at most 32 axes, found 33"),
        (file_of({"a": entry(shape=[2**63] * 10_000)}), "at most 32 axes, found 10000"),
    ],
)
def test_corrupt_files(content, message, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_file(path)
    assert str(path) in str(error.value)


def test_no_shape_is_let_through_that_a_32_bit_machine_cannot_hold(tmp_path, monkeypatch):
    path = tmp_path / "empty.safetensors"
    path.write_bytes(file_of({"a": entry(shape=[2**16, 2**16, 0], offsets=[0, 0])}))
    assert load_file(path)["a"].shape == (2**16, 2**16, 0)
    monkeypatch.setattr(storage, "_MAX_BYTES", 2**31 - 1)
    with pytest.raises(ValueError, match="'a': expected at most 2147483647 bytes"):
        load_file(path)


@pytest.mark.parametrize("error", [ValueError, OverflowError])
def test_a_file_larger_than_an_address_is_named(error, tmp_path, monkeypatch):
    def too_large(*_, **__):
        raise error("mmap length is too large")

    path = tmp_path / "large.safetensors"
    path.write_bytes(file_of({"a": entry()}, b"ab"))
    monkeypatch.setattr(storage.mmap, "mmap", too_large)
    with pytest.raises(ValueError, match=r"large.safetensors: .*too large"):
        load_file(path)


@given(data=st.data())
def test_no_corruption_gets_another_error(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    save_file({"w": Fp8Array(ALL_CODES[:9], E4M3FN), "s": np.float32([1, 2])}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ValueError):
        load_file(path)


@pytest.mark.parametrize(
    "content",
    [
        file_of({"k" * 1_000_000: 1}),
        file_of({"a": ["x" * 1_000_000]}),
        file_of({"a": entry("x" * 1_000_000)}),
        file_of({"__metadata__": ["x"] * 1_000_000}),
        file_of(b'{"a": "' + b"x" * 1_000_000),
    ],
)
def test_a_message_does_not_repeat_all_that_was_found(content, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected") as error:
        load_file(path)
    assert len(str(error.value)) < 2000


def test_a_duplicate_among_many_keys_is_found_in_time(tmp_path):
    """A search that is quadratic in the number of keys would take minutes."""
    keys = [*range(100_000), 99_999]
    path = tmp_path / "x"
    path.write_bytes(file_of(("{" + ",".join(f'"{key}":0' for key in keys) + "}").encode()))
    with pytest.raises(ValueError, match="key '99999': expected once, found 2 times"):
        read_header(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_what_is_no_file(tmp_path):
    """Nothing is waited for, and nothing read without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, found in (
        ("pipe", "a pipe or a device"),
        ("zeros", "a pipe or a device"),
        ("folder", "a folder"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected a file, found {found}"):
            read_header(tmp_path / name)


def test_a_link_is_followed(saved, tmp_path):
    """The hub's cache has links to files outside the folder."""
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "x"
    link.symlink_to("../x.safetensors")
    assert load_file(link).keys() == saved[0].keys()


def test_what_was_opened_is_what_is_read(saved):
    """Another file in its place between the header and the data changes nothing."""
    _, path = saved
    stored = read_header(path)["e4m3"]
    save_file({"e4m3": Fp8Array(ALL_CODES[:3], E4M3FN)}, path)
    assert np.array_equal(stored.read_as(np.uint8), ALL_CODES.reshape(16, 16))
    assert stored.read_bytes() == ALL_CODES.tobytes()
    save_file({"e4m3": stored}, path)  # a copy into the other file's place
    assert np.array_equal(load_file(path)["e4m3"].codes, ALL_CODES.reshape(16, 16))


def test_read_is_a_copy_and_view_is_not(saved):
    stored = read_header(saved[1])["e4m3"]
    assert stored.read_as(np.uint8).flags.writeable
    view = stored.view_as(np.uint8)
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.array_equal(view, stored.read_as(np.uint8))


def test_unwritable(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(
        TypeError, match="'a': expected a dtype that safetensors has, found complex128"
    ):
        save_file({"a": np.array([1j])}, path)
    with pytest.raises(ValueError, match="'__metadata__': expected a name"):
        save_file({"__metadata__": np.zeros(1)}, path)
    with pytest.raises(TypeError, match="'a': expected an array, or codes as an Fp8Array, found Q"):
        save_file({"a": npfp8.quantize([1.0], "MXFP4")}, path)
    with pytest.raises(TypeError, match="expected uint8 codes of E4M3FN"):
        save_file({"a": Fp8Array(ALL_CODES, FloatFormat(3, 3, 3))}, path)
    for fmt in set(FLOAT_FORMATS.values()) - set(storage._FP8_NAMES):
        expected = f"tensor 'a': expected uint8 codes of E4M3FN, .*, found uint8 codes of {fmt}$"
        with pytest.raises(TypeError, match=expected):
            save_file({"a": Fp8Array(ALL_CODES[:4], fmt)}, path)
    with pytest.raises(ValueError, match=r"'a': expected whole bytes of F4, .* found shape \(3,\)"):
        save_file({"a": Fp8Array(ALL_CODES[:3], E2M1)}, path)
    with pytest.raises(ValueError, match=r"'a': expected whole bytes of F6_E2M3, 6 bits each"):
        save_file({"a": Fp8Array(ALL_CODES[:6], E2M3)}, path)
    with pytest.raises(ValueError, match=r"tensor 'a': E2M1 codes: expected 0..15, found 17"):
        save_file({"a": Fp8Array(ALL_CODES[16:18], E2M1)}, path)
    with pytest.raises(TypeError, match="metadata 'samples': expected strings, found 256"):
        save_file({}, path, {"samples": 256})
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    with pytest.raises(FileNotFoundError):
        save_file({}, tmp_path / "none" / "x")
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    from npfp8.files import replaced_file  # noqa: PLC0415

    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted():
        with replaced_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(IsADirectoryError), replaced_file(tmp_path):
        pass
