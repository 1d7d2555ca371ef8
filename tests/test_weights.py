"""From a checkpoint's tensors to the parameters that the config requires."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import CONFIG, random_tensors, write_checkpoint, write_tensors

from bert_numpy import BertNumpyError, load
from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.checkpoints.parameters import canonical_names, read_weights
from bert_numpy.checkpoints.tensors import open_checkpoint
from bert_numpy.model.sites import expected_shapes

FILE = "model.safetensors"
BARE = {"architectures": ["BertModel"]}


def tensors_of(config: Mapping[str, Any] = CONFIG) -> dict[str, np.ndarray]:
    return random_tensors(config, 2, seed=0)


def rewritten(folder: Path, tensors: Mapping[str, np.ndarray], **overrides: Any) -> Path:
    """A checkpoint folder with these tensors instead of its own."""
    write_tensors(write_checkpoint(folder, config_overrides=overrides), tensors)
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    return read_weights(read_config(folder / "config.json"), open_checkpoint(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(BertNumpyError) as caught:
        read(folder)
    return str(caught.value)


def without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


def in_order(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names in the order of the data flow: positions are added last, and written before."""
    places, kinds = (f"embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    swapped = {places: kinds, kinds: places}
    return [swapped.get(name, name) for name in tensors]


def test_values_under_canonical_names(tmp_path: Path) -> None:
    got = read(write_checkpoint(tmp_path))
    expected = without_prefix(tensors_of())
    assert list(got) == in_order(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], tensor)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_each_dtype_is_exact(tmp_path: Path, dtype: str, shards: int) -> None:
    got = read(write_checkpoint(tmp_path, dtype=dtype, shards=shards))
    stored = {
        "F32": lambda x: x,
        "F16": lambda x: x.astype(np.float16).astype(np.float32),
        "BF16": lambda x: (x.view(np.uint32) & 0xFFFF0000).view(np.float32),
    }[dtype]
    for name, tensor in without_prefix(tensors_of()).items():
        np.testing.assert_array_equal(got[name], stored(tensor), err_msg=name)


def test_names_and_shapes_are_those_of_transformers(tmp_path: Path, transformers: Any) -> None:
    sizes = {key: value for key, value in CONFIG.items() if isinstance(value, int | float)}
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, num_labels=3)
    )
    peer = {
        name.removeprefix("bert."): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    config = read_config(write_checkpoint(tmp_path, labels=("a", "b", "c")) / "config.json")
    assert expected_shapes(config) == peer


def renamed_as_in_tensorflow(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("rename", [str, renamed_as_in_tensorflow])
def test_old_and_new_names(tmp_path: Path, prefix: str, rename: Any) -> None:
    tensors = without_prefix(tensors_of())
    stored = {
        rename(name if name.startswith("classifier") else prefix + name): tensor
        for name, tensor in tensors.items()
    }
    assert len(stored) == len(tensors)
    got = read(rewritten(tmp_path, stored))
    assert all(np.array_equal(got[name], tensor) for name, tensor in tensors.items())


def test_beta_and_gamma_elsewhere_are_names_as_any(tmp_path: Path) -> None:
    write_tensors(tmp_path, {"a.gamma": np.ones(1, np.float32), "beta": np.ones(1, np.float32)})
    assert list(canonical_names(open_checkpoint(tmp_path), "bert.")) == ["a.gamma", "beta"]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (
            "bert.pooler.dense.bias",
            "pooler.dense.bias",
            "pooler.dense.bias",
        ),
        (
            "bert.embeddings.LayerNorm.weight",
            "bert.embeddings.LayerNorm.gamma",
            "embeddings.LayerNorm.weight",
        ),
        (
            "bert.encoder.layer.1.output.LayerNorm.bias",
            "encoder.layer.1.output.LayerNorm.beta",
            "encoder.layer.1.output.LayerNorm.bias",
        ),
    ],
)
def test_two_names_for_one_parameter(tmp_path: Path, first: str, second: str, name: str) -> None:
    tensors = tensors_of()
    message = refusal(rewritten(tmp_path, tensors | {second: tensors[first]}))
    assert message == f"{tmp_path / FILE}: tensors {first!r} and {second!r}: expected one {name!r}"


@pytest.mark.parametrize("name", sorted(tensors_of()))
def test_every_parameter_is_needed(tmp_path: Path, name: str) -> None:
    tensors = tensors_of()
    shape = tensors.pop(name).shape
    canonical = name.removeprefix("bert.")
    assert refusal(rewritten(tmp_path, tensors)) == (
        f"{tmp_path / FILE}: tensor {canonical!r}: expected shape {shape}, but missing"
    )


def test_missing_from_shards_names_the_folder(tmp_path: Path) -> None:
    tensors = tensors_of()
    del tensors["classifier.bias"]
    write_checkpoint(tmp_path)
    (tmp_path / FILE).unlink()
    write_tensors(tmp_path, tensors, shards=2)
    assert refusal(tmp_path) == (
        f"{tmp_path}: tensor 'classifier.bias': expected shape (2,), but missing"
    )


def test_empty_file(tmp_path: Path) -> None:
    message = refusal(rewritten(tmp_path, {}))
    assert "tensor 'embeddings.word_embeddings.weight'" in message
    assert "missing" in message


@pytest.mark.parametrize("name", sorted(tensors_of()))
def test_every_shape_is_checked(tmp_path: Path, name: str) -> None:
    tensors = tensors_of()
    shape = tensors[name].shape
    for wrong in ((shape[0] + 1, *shape[1:]), (*shape[:-1], shape[-1] - 1), (*shape, 1)):
        tensors[name] = np.zeros(wrong, np.float32)
        assert refusal(rewritten(tmp_path, tensors)) == (
            f"{tmp_path / FILE}: tensor {name!r}: expected shape {shape} by config.json, "
            f"found {wrong}"
        )


def test_a_transposed_weight_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of()
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    message = refusal(rewritten(tmp_path, tensors))
    assert f"tensor {name!r}: expected shape (32, 16) by config.json, found (16, 32)" in message


def test_number_of_labels_must_fit(tmp_path: Path) -> None:
    names = {"0": "a", "1": "b", "2": "c"}
    message = refusal(rewritten(tmp_path, tensors_of(), id2label=names))
    assert "'classifier.weight': expected shape (3, 16) by config.json, found (2, 16)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite(tmp_path: Path, value: float) -> None:
    tensors = tensors_of()
    name = "bert.encoder.layer.1.attention.self.key.weight"
    tensors[name][3, 4] = value
    assert refusal(rewritten(tmp_path, tensors)) == (
        f"{tmp_path / FILE}: tensor {name!r}: expected finite numbers, found {value} at [3, 4]"
    )


def test_what_is_no_parameter_is_not_read(tmp_path: Path) -> None:
    others = {
        "bert.embeddings.position_ids": np.float32([[0, 1]]),
        "cls.predictions.bias": np.float32([np.nan]),  # would be refused
    }
    got = read(rewritten(tmp_path, tensors_of() | others))
    assert list(got) == in_order(without_prefix(tensors_of()))


@pytest.mark.parametrize("pooler", [True, False])
def test_a_bare_encoder_may_lack_the_pooler(tmp_path: Path, pooler: bool) -> None:
    tensors = tensors_of(CONFIG | BARE)
    if not pooler:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("pooler")}
    got = read(rewritten(tmp_path, tensors, **BARE))
    assert list(got) == in_order(tensors)
    assert (load(tmp_path)([[2, 3]]).pooler_output is not None) == pooler


def test_half_a_pooler_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG | BARE)
    del tensors["pooler.dense.bias"]
    message = refusal(rewritten(tmp_path, tensors, **BARE))
    assert "tensor 'pooler.dense.bias': expected shape (16,), but missing" in message
