"""Sentence encoders compared with sentence-transformers: poolings, Dense modules, long texts."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tokenizers
from factories import Batch, hard_batches, relative, write_checkpoint, write_safetensors
from oracles import assert_same_bits
from test_architectures import CASES, KINDS, WORDS, Case, saved

from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Model,
    apply_recipe,
    calibrate,
    load,
    load_tokenizer,
)
from bert_numpy.checkpoints.pooling import read_dense
from bert_numpy.checkpoints.quantized import check_writable, save_quantized, side_files
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.kit import verify
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.operations import OPERATIONS
from bert_numpy.model.config import Dense, Pooling
from bert_numpy.model.sites import expected_shapes, model_sites
from bert_numpy.quantization.recipe import SiteRecipe
from npfp8 import QuantizedTensor

#: The goal: differences of embeddings, relative to the largest element.
PARITY = 1e-5

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

#: How poolings are written: each alone by name, some by their switches, and several at once.
POOLINGS: dict[str, dict[str, Any]] = {
    **{mode: {"pooling_mode": mode, "word_embedding_dimension": 24} for mode in MODES},
    "switches": {
        "word_embedding_dimension": 24,
        "pooling_mode_lasttoken": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": True,
        "pooling_mode_cls_token": True,
    },
    "all": {"pooling_mode": MODES[::-1], "word_embedding_dimension": 24},
}

#: What stands behind the pooling: a number is a Dense module of so many outputs.
TAILS: list[tuple[Any, ...]] = [
    (),
    ("N",),
    ((8, "Tanh"),),
    ((20, "GELU"), "N"),
    ("N", (24, "Identity")),
    ((12, "ReLU"), "N", (9, "Sigmoid"), (7, "SiLU"), "N"),
]

TEXTS = [
    "a good film",
    ".",
    "a",
    "naïve café — déjà vu, 3.14 “fine” 日本語 Ωmega 😀",
    "the plot was very funny and not dull " * 9,
    "\u200b",  # no word is left of it
    "GOOD Bad the warm movie",
]

#: Where torch's names for functions are.
PLACES = {"Identity": "linear"}


@pytest.fixture(scope="module")
def sentence_transformers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sentence_transformers", reason="it is not installed")


def release(theirs: ModuleType) -> int:
    return int(theirs.__version__.partition(".")[0])


def embedded(theirs: ModuleType, folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Embed texts by sentence-transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = theirs.SentenceTransformer(str(folder), device="cpu")
        return np.asarray(peer.encode(list(texts), show_progress_bar=False))


def ours(folder: Path, texts: Sequence[str]) -> np.ndarray:
    vectors = load(folder)(**load_tokenizer(folder).batch(texts)).sentence_embedding
    assert vectors is not None
    return vectors


@pytest.fixture(scope="module", params=["Bert", "DistilBert", "Roberta"])
def encoder(
    request: pytest.FixtureRequest,
    torch: ModuleType,
    quiet_transformers: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A small encoder of random weights with its tokenizer; longer texts than 20 tokens are cut."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    if kind == "Roberta":
        byte_level(folder)
        words = len(json.loads((folder / "vocab.json").read_text()))
    else:
        write_checkpoint(folder)  # for its tokenizer
        words = len((folder / "vocab.txt").read_text().splitlines())
    saved(quiet_transformers, torch, folder, kind, "Model", vocab_size=words)
    settings = {"max_seq_length": 20, "do_lower_case": kind == "Roberta"}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def byte_level(folder: Path) -> None:
    """RoBERTa's tokenizer: vocab.json, merges.txt and tokenizer.json."""
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    corpus = [text.lower() for text in TEXTS]
    trained.train_from_iterator(corpus, 300, 1, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    trained.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trained.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "RobertaTokenizer", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_modules(
    folder: Path, pooling: dict[str, Any], tail: Sequence[Any], features: int, seed: int = 0
) -> Path:
    """The files of sentence-transformers beside an encoder of ``features`` hidden features."""
    generator = np.random.default_rng(seed)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modes = pooling.get("pooling_mode", [key for key in pooling if pooling[key] is True])
    features *= 1 if isinstance(modes, str) else len(modes)
    kinds, paths = ["Transformer", "Pooling"], ["", "1_Pooling"]
    for number, step in enumerate(tail, 2):
        kinds.append("Normalize" if step == "N" else "Dense")
        paths.append(f"{number}_{kinds[-1]}")
        if step == "N":
            continue
        outputs, function = step
        place = folder / paths[-1]
        place.mkdir()
        bias = number % 2 == 0
        config = {"in_features": features, "out_features": outputs, "bias": bias}
        name = f"torch.nn.modules.{PLACES.get(function, 'activation')}.{function}"
        (place / "config.json").write_text(json.dumps(config | {"activation_function": name}))
        tensors = {"linear.weight": generator.normal(0, 0.3, (outputs, features))}
        tensors |= {"linear.bias": generator.normal(0, 0.3, outputs)} if bias else {}
        arrays = {name: x.astype(np.float32) for name, x in tensors.items()}
        write_safetensors(place / "model.safetensors", arrays)
        features = outputs
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings(
    encoder: Path, pooling: str, tmp_path: Path, sentence_transformers: ModuleType
) -> None:
    if pooling == "all" and release(sentence_transformers) < 6:
        pytest.skip("before release 6 pooling_mode was one name")
    for number, tail in enumerate(TAILS):
        folder = shutil.copytree(encoder, tmp_path / str(number))
        write_modules(folder, POOLINGS[pooling], tail, 24, seed=number)
        expected = embedded(sentence_transformers, folder, TEXTS)
        found = ours(folder, TEXTS)
        assert relative(found, expected) <= PARITY, tail
        for row, text in enumerate(TEXTS):
            assert relative(ours(folder, [text])[0], found[row]) <= PARITY


def test_long_texts_are_cut(encoder: Path, sentence_transformers: ModuleType) -> None:
    """So the test above sees it: the length, and what is beyond it has no effect."""
    batch = load_tokenizer(write_modules(encoder, POOLINGS["mean"], (), 24)).batch(TEXTS)
    assert batch["input_ids"].shape == (len(TEXTS), 20)
    long = TEXTS[4]
    assert_same_bits(ours(encoder, [long]), ours(encoder, [long + "and bad"]))


# Any mask, as the pooling of sentence-transformers has it


@pytest.mark.parametrize("mode", MODES[1:])
def test_masks(mode: str, everything: Model, sentence_transformers: ModuleType) -> None:
    """Padding on the left, holes, position 0 masked: as the module of release 6 and later."""
    import torch  # noqa: PLC0415 (a peer)

    if mode == "weightedmean" and release(sentence_transformers) < 6:
        pytest.skip("before release 6 the weights counted padding on the left")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers.models import Pooling as Peer  # noqa: PLC0415

        peer = Peer(16, pooling_mode=mode)
    model = replace(
        everything, config=replace(everything.config, pooling=Pooling(mode, normalize=False))
    )
    for batch in hard_batches(model.config.vocab_size, 128).values():
        output = model(**batch)
        mask = batch.get("attention_mask", np.ones_like(batch["input_ids"]))
        features = {"token_embeddings": output.last_hidden_state, "attention_mask": mask}
        tensors = {name: torch.from_numpy(x.copy()) for name, x in features.items()}
        expected = peer(tensors)["sentence_embedding"].numpy()
        assert relative(output.sentence_embedding, expected) <= PARITY
        golden = replace(model, engine=GoldenEngine)(**batch).sentence_embedding
        assert relative(golden, expected) <= PARITY


# Every engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All modes at once, then Dense and Normalize by turns, twice in a row among them."""
    made = tmp_path_factory.mktemp("everything")
    write_checkpoint(made, config_overrides={"architectures": ["BertModel"]})
    tail = ((12, "GELU"), "N", "N", (9, "Sigmoid"), (8, "Identity"))
    return write_modules(made, POOLINGS["all"], tail, 16)


@pytest.fixture(scope="module")
def everything(folder: Path) -> Model:
    return load(folder)


def some_batch(model: Model, kind: str = "right padding") -> Batch:
    return hard_batches(model.config.vocab_size, 128)[kind]


DENSE = ["2_Dense.linear", "5_Dense.linear", "6_Dense.linear"]


def test_parameters_and_sites(folder: Path, everything: Model) -> None:
    assert everything.config.pooling == Pooling(
        "+".join(MODES[::-1]),
        False,
        (
            Dense(DENSE[0], 12, "gelu", normalize=True),
            Dense(DENSE[1], 9, "sigmoid"),
            Dense(DENSE[2], 8),
        ),
    )
    shapes = expected_shapes(everything.config, pooler=False)
    assert shapes.keys() == everything.weights.keys()
    assert shapes["2_Dense.linear.weight"] == (12, 96)
    assert model_sites(everything)[-3:] == DENSE
    assert not everything.weights["5_Dense.linear.bias"].any()  # the file has none
    assert read_dense(folder, everything.config).keys() == {
        f"{site}.{part}" for site in DENSE for part in ("weight", "bias")
    }


@pytest.mark.parametrize("name", ["fp32", "bf16", "e4m3", "int8-token"])
def test_recipes(name: str, everything: Model) -> None:
    """The vectors are float32 in each; golden ones are the same bits alone and in a batch."""
    batch = some_batch(everything)
    plain = everything(**batch).sentence_embedding
    assert plain is not None
    calibration = calibrate(everything, [batch], golden=True)
    assert set(DENSE) <= {operand.rpartition(":")[0] for operand in calibration.operands}
    fast, golden = (
        apply_recipe(everything, PRESETS[name], calibration, golden=golden)
        for golden in (False, True)
    )
    assert not set(DENSE) & set(fast.plans)
    close = PARITY if name == "fp32" else 0.1
    for model in (fast, golden):
        found = model(**batch).sentence_embedding
        assert relative(found, plain) <= close
        assert (name == "fp32") or not np.array_equal(found, plain)
        bits = found.view(np.uint32)
        assert (bits & 0xFFFF).any()  # not bfloat16
    found = golden(**batch).sentence_embedding
    for row in range(len(found)):
        alone = golden(**{key: x[row : row + 1] for key, x in batch.items()})
        assert_same_bits(alone.sentence_embedding[0], found[row])


def quantizing_dense() -> Any:
    linear = PRESETS["e4m3"].linear
    return replace(PRESETS["e4m3"], name="dense", overrides=(("*_Dense.linear", linear),))


def test_a_recipe_may_quantize_dense_modules(
    folder: Path, everything: Model, tmp_path: Path
) -> None:
    """By name, as a head; a checkpoint has no place for it, which is known before the work."""
    batch, recipe = some_batch(everything), quantizing_dense()
    model = apply_recipe(everything, recipe, calibrate(everything, [batch]))
    assert set(DENSE) <= set(model.plans)
    assert isinstance(model.weights["2_Dense.linear.weight"], QuantizedTensor)
    assert "2_Dense.linear:a" in model(**batch).counts
    message = "recipe dense: 2_Dense.linear: expected no quantization"
    with pytest.raises(BertNumpyError, match=message):
        check_writable(everything.config, recipe, folder)
    with pytest.raises(BertNumpyError, match=message):
        save_quantized(model, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kit(everything: Model) -> None:
    """Its own arithmetic agrees, and a wrong pooling does not."""
    ids = {"input_ids": np.array([[2, 7, 9, 3]]), "attention_mask": np.array([[1, 1, 0, 1]])}
    calibration = calibrate(everything, [ids], golden=True)
    model = apply_recipe(everything, PRESETS["e4m3"], calibration, golden=True)
    kit = make_kit(("layer", "model"), model, {}, [ids])
    name = "model/0/sentence_embedding"
    assert kit.arrays[name].tobytes() == model(**ids).sentence_embedding.tobytes()
    found = {
        key: OPERATIONS[tensor.operation](kit.inputs(key), tensor.attributes)
        for key, tensor in kit.tensors.items()
        if tensor.operation != "given"
    }
    assert verify(kit, found).passed
    operations = {tensor.operation: key for key, tensor in kit.tensors.items()}
    assert kit.tensors[operations["weightedmean"]].attributes["weights"] == [1, 2, 4]
    for operation in (*MODES[1:], "concatenate", "normalize", "activation"):
        wrong = kit.arrays[operations[operation]].copy()
        wrong.flat[0] += 1
        assert not verify(kit, {operations[operation]: wrong}).passed


def test_onnx(everything: Model, onnx: ModuleType, onnxruntime: ModuleType) -> None:
    from bert_numpy.export.onnx import onnx_model  # noqa: PLC0415 (needs onnx)

    batch = some_batch(everything)
    model = apply_recipe(everything, PRESETS["fp32"], calibrate(everything, [batch]))
    graph = onnx_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for kind in ("right padding", "left padding", "holes", "position 0 masked"):
        batch = some_batch(everything, kind)
        (found,) = session.run(["sentence_embedding"], batch)
        assert relative(found, model(**batch).sentence_embedding) <= PARITY


# Checkpoints


def test_quantized_folder(folder: Path, everything: Model, tmp_path: Path) -> None:
    """Dense modules come along byte for byte, and the loaded model gives the same bits."""
    batch = some_batch(everything)
    model = apply_recipe(everything, PRESETS["e4m3"], calibrate(everything, [batch]))
    save_quantized(model, folder, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.config == model.config
    assert loaded.weights.keys() == model.weights.keys()
    vectors = (one(**batch).sentence_embedding for one in (loaded, model))
    assert_same_bits(*vectors)
    sums = (tmp_path / "out" / "SHA256SUMS").read_text()
    for name in ("2_Dense/model.safetensors", "2_Dense/config.json", "modules.json"):
        assert name in side_files(folder)
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
        assert f"  {name}\n" in sums
    other = shutil.copytree(folder, tmp_path / "other")
    shape = everything.weights["2_Dense.linear.weight"].shape
    tensors = {
        "linear.weight": np.zeros(shape, np.float32),
        "linear.bias": np.zeros(12, np.float32),
    }
    write_safetensors(other / "2_Dense" / "model.safetensors", tensors)
    with pytest.raises(BertNumpyError, match=r"2_Dense.linear.weight: expected the weights that"):
        save_quantized(model, other, tmp_path / "no")


CHANGES: list[tuple[dict[str, Any], str]] = [
    (
        {"in_features": 95},
        "'in_features': expected 96, the features of what is before it, found 95",
    ),
    ({"out_features": 0}, "'out_features': expected a number of at least 1, found 0"),
    ({"out_features": 12.0}, "'out_features': expected a number of at least 1, found 12.0"),
    ({"bias": 1}, "'bias': expected true or false, found 1"),
    ({"activation_function": None}, "'activation_function': expected one of torch.nn.modules.act"),
    ({"activation_function": "my.Tanh"}, "'activation_function': expected one of torch.nn.module"),
    ({"activation_function": "torch.nn.modules.activation.Softmax"}, "activation.Softmax'"),
    ({"use_residual": True}, "'use_residual': expected false: it is not implemented, found True"),
    ({"module_input_name": "token_embeddings"}, "'module_input_name': expected nothing or 'sent"),
    ({"module_output_name": "x"}, "'module_output_name': expected nothing or 'sentence_embedding'"),
    ({"init_weight": 1}, "expected keys that sentence-transformers reads, found 'init_weight'"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_dense_settings(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert message in refusal(copy, path)


def refusal(folder: Path, path: Path) -> str:
    with pytest.raises(BertNumpyError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def test_names_of_functions(folder: Path, tmp_path: Path) -> None:
    """By either of torch's names; tanh if there is none, as in sentence-transformers."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "2_Dense" / "config.json"
    config = json.loads(path.read_text())
    for name, function in (("torch.nn.ReLU", "relu"), ("torch.nn.Identity", None), (None, "tanh")):
        given = {**config, "activation_function": name}
        path.write_text(json.dumps({key: x for key, x in given.items() if x is not None}))
        pooling = load(copy).config.pooling
        assert pooling is not None
        assert pooling.dense[0] == Dense(DENSE[0], 12, function, normalize=True)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"linear.weight": (12, 96)}, "tensor 'linear.bias': expected linear.weight and linear.bi"),
        (
            {"linear.weight": (12, 96), "linear.bias": (12,), "residual.weight": (12, 96)},
            "tensor 'residual.weight': expected linear.weight and linear.bias, but it is not one",
        ),
        ({"linear.weight": (12, 95), "linear.bias": (12,)}, "expected shape (12, 96) by config.js"),
        (
            {"linear.weight": (12, 96), "linear.bias": (1, 12)},
            "expected shape (12,) by config.json",
        ),
    ],
)
def test_dense_weights(
    folder: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "2_Dense" / "model.safetensors"
    write_safetensors(path, {name: np.ones(shape, np.float32) for name, shape in tensors.items()})
    with pytest.raises(BertNumpyError, match=str(path)) as caught:
        load(copy)
    assert message in str(caught.value)
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(BertNumpyError, match=r"2_Dense: expected .* found only pytorch_model.bin"):
        load(copy)


def test_normalize_of_something_else(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "3_Normalize" / "config.json"
    path.parent.mkdir()
    path.write_text('{"module_input_name": "sentence_embedding", "module_output_name": null}')
    assert load(copy).config == load(folder).config
    assert "3_Normalize/config.json" in side_files(copy)
    path.write_text('{"module_input_name": "token_embeddings"}')
    assert "'module_input_name': expected nothing or" in refusal(copy, path)


# Quantized folders in transformers and sentence-transformers


def layers_alone(name: str) -> Any:
    """The part of a recipe that transformers with compressed-tensors computes."""
    return replace(PRESETS[name], scores=SiteRecipe(), context=SiteRecipe(), arithmetic="float32")


def weights_alone(name: str) -> Any:
    """The same where it makes numbers of codes while it loads, so that inputs stay as they are."""
    return replace(layers_alone(name), linear=SiteRecipe(b=PRESETS[name].linear.b))


#: The relative error of a text: measured 1e-3 in INT8, whose largest magnitude is 127 here and 128
#: there, else 5e-7.
CLOSE = 5e-2


def assert_alike(found: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> None:
    """Text by text; in one of them, sums in another order may have made another code.

    A number so near to a tie is rare, and changes its own text alone: a few in a hundred of it.
    """
    errors = [relative(x[mask], y[mask]) for x, y, mask in zip(found, expected, masks, strict=True)]
    *others, largest = sorted(errors)
    assert max(others) <= CLOSE
    assert largest <= 0.5


@pytest.mark.parametrize("name", ["e4m3", "int8", "e4m3-token"])
def test_quantized_embeddings(
    name: str,
    encoder: Path,
    tmp_path: Path,
    sentence_transformers: ModuleType,
    quiet_transformers: Any,
    compressed_tensors: ModuleType,
) -> None:
    source = shutil.copytree(encoder, tmp_path / "source")
    write_modules(source, POOLINGS["mean"], ((8, "Tanh"), "N"), 24)
    model, batch = load(source), load_tokenizer(source).batch(TEXTS)
    quantized = apply_recipe(model, layers_alone(name), calibrate(model, [batch]))
    save_quantized(quantized, source, tmp_path / "out")
    theirs = embedded(sentence_transformers, tmp_path / "out", TEXTS)
    found = quantized(**batch)
    if release(quiet_transformers) < 5:  # it has no such key, and quantizes inputs
        assert relative(found.sentence_embedding, theirs) <= CLOSE
    else:
        ours = apply_recipe(model, weights_alone(name))(**batch)
        assert relative(ours.sentence_embedding, theirs) <= PARITY
        assert relative(found.sentence_embedding, theirs) > PARITY
    assert_same_as_transformers(quiet_transformers, tmp_path / "out", batch, found)


def assert_same_as_transformers(
    transformers: Any, folder: Path, batch: Batch, found: Any, name: str = "AutoModel"
) -> None:
    """The last hidden states of the tokens that the mask has, of quantized inputs too."""
    import torch  # noqa: PLC0415 (a peer)

    options: dict[str, Any] = {"num_labels": 2} if "QuestionAnswering" in name else {}
    if release(transformers) >= 5:
        loading = transformers.CompressedTensorsConfig(dequantize=False)
        options["quantization_config"] = loading
    with warnings.catch_warnings():  # that the folder has most of such settings
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        peer = getattr(transformers, name).from_pretrained(folder, **options).eval()
    known = peer.config.model_type != "distilbert"
    tensors = {
        key: torch.from_numpy(x) for key, x in batch.items() if known or key != "token_type_ids"
    }
    with torch.no_grad():
        states = peer(**tensors, output_hidden_states=True).hidden_states[-1].numpy()
    tokens = batch["attention_mask"] != 0
    assert_alike(found.last_hidden_state, states, tokens)


def some_classes(kind: str) -> Iterator[str]:
    yield "AutoModel"
    yield from (f"{kind}{head}" for one, head in CASES if one == kind)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_a_quantized_checkpoint_does_not_have(
    kind: str,
    tmp_path: Path,
    torch: ModuleType,
    quiet_transformers: Any,
    compressed_tensors: ModuleType,
) -> None:
    """Every class of the family loads every other's encoder; what is new is no code."""
    heads = [head for one, head in CASES if one == kind]
    for head in heads:
        source = saved(quiet_transformers, torch, tmp_path / head, kind, head)
        if head == "Model":
            write_modules(source, POOLINGS["mean"], (), 24)  # whose pooler is left out
        case = Case(kind, head, source, torch, quiet_transformers)
        batch = case.fit(hard_batches(WORDS, 120)["right padding"])
        model = case.model
        quantized = apply_recipe(model, layers_alone("e4m3"), calibrate(model, [batch]))
        out = tmp_path / f"{head} quantized"
        save_quantized(quantized, source, out)
        found = quantized(**batch)
        if head == "ForMultipleChoice":
            batch = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items()}
        assert_same_as_transformers(quiet_transformers, out, batch, found)
    for name in some_classes(kind):
        if "MultipleChoice" not in name:
            assert_same_as_transformers(
                quiet_transformers, tmp_path / "Model quantized", *encoded(tmp_path, kind), name
            )


def encoded(folder: Path, kind: str) -> tuple[Batch, Any]:
    model = load(folder / "Model quantized")
    batch = dict(hard_batches(WORDS, 120)["right padding"])
    if model.config.type_vocab_size < 2:
        del batch["token_type_ids"]
    return batch, model(**batch)


def test_the_key_for_loading_changes_nothing_here(
    folder: Path, everything: Model, tmp_path: Path
) -> None:
    """It is written for encoders of sentences, and read whatever it says."""
    model = apply_recipe(everything, PRESETS["e4m3-weights"])
    save_quantized(model, folder, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    assert config["quantization_config"]["dequantize"] is True
    for value in (False, None):
        config["quantization_config"]["dequantize"] = value
        if value is None:
            del config["quantization_config"]["dequantize"]
        path.write_text(json.dumps(config))
        assert load(tmp_path / "out").recipe == model.recipe
    config["quantization_config"]["dequantize"] = "yes"
    path.write_text(json.dumps(config))
    with pytest.raises(BertNumpyError, match="'quantization_config': expected what the recip"):
        load(tmp_path / "out")


def test_ignored_layers_of_other_releases(folder: Path, everything: Model, tmp_path: Path) -> None:
    """Those that are not in the checkpoint may be named or not; those that are may not."""
    model = apply_recipe(everything, PRESETS["e4m3-weights"])
    save_quantized(model, folder, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    ignored = config["quantization_config"]["ignore"]
    assert r"re:(.*\.)?pooler\.dense$" in ignored
    for names in ([], ignored[1:], [*ignored, "a.layer.of.another.class"]):
        config["quantization_config"]["ignore"] = names
        path.write_text(json.dumps(config))
        load(tmp_path / "out")
    for name in ("encoder.layer.0.output.dense", r"re:.*dense$", "Linear"):
        config["quantization_config"]["ignore"] = [*ignored, name]
        path.write_text(json.dumps(config))
        with pytest.raises(BertNumpyError, match="'quantization_config': expected what the recip"):
            load(tmp_path / "out")


# Real encoders

REAL_TEXTS = [
    "A man is eating food.",
    "a",
    "?!",
    "\u200b",
    "naïve café — déjà vu, 3.14 and it's 100% “fine”",
    "日本語 テスト 😀",
    "The girl is carrying a baby. " * 3,
    " ".join(f"Sentence {i} of a text that is longer than the model reads." for i in range(60)),
]


def check_real(theirs: ModuleType, folder: Path, length: int) -> None:
    texts = load_tokenizer(folder)
    assert texts.batch(REAL_TEXTS)["input_ids"].shape == (len(REAL_TEXTS), length)
    found = ours(folder, REAL_TEXTS)
    assert np.abs(found - embedded(theirs, folder, REAL_TEXTS)).max() <= PARITY
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_all_minilm(all_minilm: Path, sentence_transformers: ModuleType) -> None:
    check_real(sentence_transformers, all_minilm, 256)


def test_all_mpnet_base(mpnet_base: Path, sentence_transformers: ModuleType) -> None:
    check_real(sentence_transformers, mpnet_base, 384)


def test_every_pair_of_poolings(everything: Model) -> None:
    """Modes stand side by side in the order that is given."""
    batch = some_batch(everything, "holes")
    config = everything.config
    single = {
        mode: replace(everything, config=replace(config, pooling=Pooling(mode, normalize=False)))(
            **batch
        )
        for mode in MODES
    }
    for pair in itertools.permutations(MODES, 2):
        both = replace(everything, config=replace(config, pooling=Pooling("+".join(pair), False)))(
            **batch
        )
        parts = [single[mode].sentence_embedding for mode in pair]
        assert_same_bits(both.sentence_embedding, np.concatenate(parts, axis=1))
