"""BERT's relatives and every head, compared with transformers on checkpoints that it writes."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from factories import Batch, hard_batches, relative, write_tensors
from oracles import assert_same_bits
from safetensors.numpy import load_file
from watching import arrays_of, noted

from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Model,
    apply_recipe,
    calibrate,
    load,
    load_tokenizer,
)
from bert_numpy.checkpoints.quantized import save_quantized
from bert_numpy.commands.main import main
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.kit import verify
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.operations import OPERATIONS
from bert_numpy.model import packing
from bert_numpy.model.architectures import ARCHITECTURES
from bert_numpy.model.relative_positions import BUCKETS
from bert_numpy.model.sites import (
    expected_shapes,
    model_sites,
    site_named,
    sites_of,
    sites_of_input,
)
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.recipe import SiteRecipe
from npfp8 import QuantizedTensor

PARITY = 1e-5

WORDS = 60
LONGEST = 120  # tokens: two fewer than positions, for RoBERTa

_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
_COMMON = {
    "vocab_size": WORDS,
    "max_position_embeddings": LONGEST + 2,
    "initializer_range": 0.3,  # activations of the order of 1, as in a trained model
    "num_labels": 3,
}

#: Names of transformers' classes: model type, and options of its config.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("bert", _SIZES),
    "DistilBert": ("distilbert", {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40}),
    "Roberta": ("roberta", _SIZES | {"layer_norm_eps": 1e-5}),
    "XLMRoberta": ("xlm-roberta", _SIZES | {"type_vocab_size": 1, "pad_token_id": 5}),
    "Camembert": ("camembert", _SIZES | {"type_vocab_size": 1}),
    "Electra": ("electra", _SIZES | {"embedding_size": 12}),
    "Albert": (
        "albert",
        _SIZES | {"embedding_size": 12, "num_hidden_layers": 3, "num_hidden_groups": 2},
    ),
    "MPNet": ("mpnet", _SIZES | {"layer_norm_eps": 1e-5, "relative_attention_num_buckets": 40}),
}

HEADS = {
    "Model": "none: a bare encoder",
    "ForSequenceClassification": "sequence classification",
    "ForQuestionAnswering": "question answering",
    "ForMaskedLM": "masked language modelling",
    "ForTokenClassification": "token classification",
    "ForMultipleChoice": "multiple choice",
    "ForNextSentencePrediction": "next sentence prediction",
    "ForPreTraining": "pre-training",
}

#: Where a class of the same name as BERT's is another head.
OTHER_HEADS = {
    ("Electra", "ForPreTraining"): "replaced token detection",
    ("Albert", "ForPreTraining"): "sentence order pre-training",
}

CASES = [
    (kind, head)
    for kind in KINDS
    for head in HEADS
    if (kind, head) in OTHER_HEADS
    or head not in ("ForNextSentencePrediction", "ForPreTraining")
    or kind == "Bert"
]


def saved(
    transformers: Any, torch: Any, folder: Path, kind: str, head: str, **options: Any
) -> Path:
    """A checkpoint of random weights that transformers made and wrote."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # arrays are small
    sizes = {**_COMMON, **KINDS[kind][1], **options}
    if head == "ForQuestionAnswering":
        sizes["num_labels"] = 2
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, kind + head)(config)
    for name, parameter in model.named_parameters():  # zeros and ones would hide errors
        if name.endswith("bias") or "norm" in name.lower():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Case:
    """A checkpoint in this package and, with eager attention, in transformers."""

    kind: str
    head: str
    folder: Path
    torch: Any
    transformers: Any

    @cached_property
    def model(self) -> Model:
        return load(self.folder)

    @cached_property
    def peer(self) -> Any:
        name = self.kind + self.head
        known = getattr(self.transformers, name)
        return known.from_pretrained(self.folder, attn_implementation="eager").eval()

    def fit(self, batch: Batch) -> Batch:
        """The batch with the arguments, and the layout, that the model takes."""
        batch = dict(batch)
        if self.model.config.type_vocab_size < 2:
            batch.pop("token_type_ids", None)
        if self.head == "ForMultipleChoice":  # two choices for each of half as many examples
            rows = len(batch["input_ids"])
            pairs = np.arange(rows + rows % 2) % rows
            batch = {name: x[pairs].reshape(-1, 2, x.shape[1]) for name, x in batch.items()}
        return batch

    def theirs(self, batch: Batch) -> dict[str, np.ndarray]:
        tensors = {name: self.torch.from_numpy(array) for name, array in batch.items()}
        with self.torch.no_grad():
            output = self.peer(**tensors)
        return {name: value.numpy() for name, value in output.items()}

    def check(self, batch: Batch) -> None:
        """Every output of transformers' is one of ours, at every token and at position 0."""
        batch = self.fit(batch)
        ours, theirs = self.model(**batch), self.theirs(batch)
        shape = batch["input_ids"].shape
        tokens = batch.get("attention_mask", np.ones(shape)) != 0
        assert theirs
        for name, expected in theirs.items():
            got = getattr(ours, name)
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            if expected.shape[:2] == shape and self.head != "ForMultipleChoice":
                assert relative(got[tokens], expected[tokens]) <= PARITY, name
                if not name.startswith(("start", "end")):
                    assert relative(got[:, 0], expected[:, 0]) <= PARITY, name
            else:
                assert relative(got, expected) <= PARITY, name
        assert arrays_of(ours).keys() - {"last_hidden_state", "pooler_output"} == theirs.keys() - {
            "last_hidden_state",
            "pooler_output",
        }


@pytest.fixture(scope="module", params=CASES, ids="".join)
def case(
    request: pytest.FixtureRequest,
    torch: Any,
    quiet_transformers: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    kind, head = request.param
    folder = tmp_path_factory.mktemp(kind + head)
    saved(quiet_transformers, torch, folder, kind, head)
    return Case(kind, head, folder, torch, quiet_transformers)


# Parity


def test_outputs(case: Case) -> None:
    """Over padding on either side, holes, pairs, the longest input, rows of one token."""
    for batch in hard_batches(WORDS, case.model.config.max_length).values():
        case.check(batch)


def test_padding_of_the_model(case: Case) -> None:
    """RoBERTa's positions are counted by the ids that a tokenizer pads with, not by the mask."""
    batch = hard_batches(WORDS, LONGEST)["right padding"]
    pad = case.model.config.pad_token_id
    ids = np.where(batch["input_ids"] == pad, pad + 1, batch["input_ids"])
    case.check(batch | {"input_ids": np.where(batch["attention_mask"], ids, pad)})


def test_description(case: Case) -> None:
    config = case.model.config
    assert (config.model_type, config.architecture) == (KINDS[case.kind][0], case.kind + case.head)
    assert config.head.name == OTHER_HEADS.get((case.kind, case.head), HEADS[case.head])
    if case.head.startswith("For"):
        assert config.description.class_of(config.head.name) == config.architecture
    peer = case.peer.config
    assert config.hidden_size == peer.hidden_size
    assert config.num_hidden_layers == peer.num_hidden_layers
    assert config.num_attention_heads == 3
    assert config.pad_token_id == peer.pad_token_id
    assert config.labels == tuple(peer.id2label.values())
    longest = LONGEST + 2
    if "oberta" in case.kind or case.kind in ("Camembert", "MPNet"):
        longest -= peer.pad_token_id + 1
    assert config.max_length == longest


def test_names_and_shapes(case: Case) -> None:
    """The names that a parameter may have are transformers', all of them; the last is stored."""
    config = case.model.config
    encoder = ("embeddings", "encoder.", "transformer.", "pooler.")
    prefix = "" if case.head == "Model" else config.description.prefix
    state = {name: tuple(x.shape) for name, x in case.peer.state_dict().items()}
    stored = {name: x.shape for name, x in load_file(case.folder / "model.safetensors").items()}
    found = set()
    for name, shape in expected_shapes(config, "pooler.dense.weight" in case.model.weights).items():
        names = [
            prefix + other if other.startswith(encoder) else other
            for other in config.description.stored_names(name, config.head)
        ]
        assert [state[other] for other in names] == [shape] * len(names)
        found |= set(names)
        if name == "cls.predictions.decoder.weight":
            assert names[-1] not in stored
        else:
            assert stored.pop(names[-1]) == shape
    assert not stored
    assert found == state.keys()


def test_parameters_are_those_that_the_pass_takes(case: Case) -> None:
    """A pass without numbers names every parameter of the loaded model, in its order; no other."""
    held = {name: weight.shape for name, weight in case.model.weights.items()}
    found = expected_shapes(case.model.config, "pooler.dense.weight" in held)
    assert list(found.items()) == list(held.items())


def test_parameters_are_held_once(case: Case) -> None:
    assert case.model.weight_bytes == 4 * sum(x.numel() for x in case.peer.parameters())
    if "cls.predictions.decoder.weight" in case.model.weights:
        assert (
            case.model.weights["cls.predictions.decoder.weight"]
            is case.model.weights["embeddings.word_embeddings.weight"]
        )


# Policies


def some_batch(case: Case) -> Batch:
    return case.fit(hard_batches(WORDS, LONGEST)["right padding"])


@pytest.mark.parametrize("name", ["e4m3", "int8", "e4m3-token"])
def test_quantized_checkpoint(case: Case, name: str, tmp_path: Path) -> None:
    """Saved and read back: the same bits, whatever the file calls things."""
    batch = some_batch(case)
    calibration = calibrate(case.model, [batch])
    model = apply_recipe(case.model, PRESETS[name], calibration)
    save_quantized(model, case.folder, tmp_path / "out", "")
    output, output_again = model(**batch), load(tmp_path / "out")(**batch)
    expected, again = arrays_of(output), arrays_of(output_again)
    assert again.keys() == expected.keys()
    for key, value in expected.items():
        assert_same_bits(again[key], value)
    assert output_again.counts == output.counts
    assert output.counts


def test_quantized_checkpoint_in_transformers(
    case: Case, tmp_path: Path, compressed_tensors: Any
) -> None:
    """Every layer that is quantized here is found by its name there, with the same weights."""
    calibration = calibrate(case.model, [some_batch(case)])
    recipe = replace(PRESETS["e4m3"], scores=SiteRecipe(), context=SiteRecipe())
    model = apply_recipe(case.model, recipe, calibration)
    save_quantized(model, case.folder, tmp_path / "out", "")
    known = getattr(case.transformers, case.kind + case.head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = known.from_pretrained(tmp_path / "out").eval()
        batch = {key: case.torch.from_numpy(x) for key, x in some_batch(case).items()}
        with case.torch.no_grad():
            peer(**batch)  # which decompresses the weights
    theirs = {key: x.detach().float().numpy() for key, x in peer.named_parameters()}
    config = case.model.config
    prefix = "" if case.head == "Model" else config.description.prefix
    quantized = 0
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            *_, stored = config.description.stored_names(key, config.head)
            assert_same_bits(theirs[prefix + stored], weight.dequantize())
            quantized += 1
    assert quantized == 6 * (config.num_hidden_groups or config.num_hidden_layers)


def test_sites_are_what_an_engine_sees(case: Case) -> None:
    seen: list[str] = []
    noted(case.model, lambda site, *_: seen.append(site))(**some_batch(case))
    assert list(dict.fromkeys(seen)) == model_sites(case.model)
    sites = sites_of(case.model)
    assert [site.name for site in sites] == model_sites(case.model)
    layers = [site for site in sites if site.layer is not None]
    kinds = ["linear"] * 3 + ["scores", "context"] + ["linear"] * 3
    # The layers that share parameters share their names: of each the first.
    config = case.model.config
    first = {number: i for i, number in reversed(list(enumerate(config.layer_parameters)))}
    assert sorted(first) == [0, 1]
    assert [(site.layer, site.kind) for site in layers] == [
        (first[number], kind) for number in range(2) for kind in kinds
    ]
    for site in sites:
        named = site_named(site.name)
        layer = None if named.layer is None else first[named.layer]
        assert named._replace(outputs=site.outputs, layer=layer) == site
        together = sites_of_input(case.model, site)
        assert site in together
        assert len(together) == (3 if ".self." in site.name else 1)
        if site.is_attention:
            assert f"{site.name}.weight" not in case.model.weights
        else:
            assert case.model.weights[f"{site.name}.weight"].shape[0] == site.outputs


def test_golden_float32_is_close(case: Case) -> None:
    batch = some_batch(case)
    fast = arrays_of(case.model(**batch))
    golden = arrays_of(replace(case.model, engine=GoldenEngine)(**batch))
    assert golden.keys() == fast.keys()
    for name, expected in fast.items():
        finite = np.isfinite(expected)
        assert (np.isfinite(golden[name]) == finite).all()
        assert relative(golden[name][finite], expected[finite]) <= PARITY, name


def test_e4m3(case: Case) -> None:
    """The encoder in FP8, then the head too; golden, the same bits for any batch."""
    batch = some_batch(case)
    calibration = calibrate(case.model, [batch], golden=True)
    plain = arrays_of(case.model(**batch))
    recipe = PRESETS["e4m3"]
    everything = replace(recipe, overrides=(("*", recipe.linear),))
    heads = [site for site in model_sites(case.model) if not site.startswith("encoder.")]
    for chosen in (recipe, everything):
        model = apply_recipe(case.model, chosen, calibration, golden=True)
        found = arrays_of(model(**batch))
        alone = arrays_of(model(**{name: x[-1:] for name, x in batch.items()}))
        assert found.keys() == plain.keys()
        for name, expected in plain.items():
            finite = np.isfinite(expected)
            error = np.linalg.norm(found[name][finite] - expected[finite])
            assert 0 < error / np.linalg.norm(expected[finite]) < 0.5, name
            rows = len(alone[name])
            assert_same_bits(alone[name], found[name][-rows:])
        kinds = {type(model.weights[f"{site}.weight"]) for site in heads}
        assert kinds <= {QuantizedTensor if chosen is everything else np.ndarray}
        assert isinstance(model.weights["embeddings.word_embeddings.weight"], np.ndarray)


# Options


@pytest.mark.parametrize("name", ["gelu_new", "relu", "silu"])
@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "Electra", "Albert", "MPNet"])
def test_activations(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str, name: str
) -> None:
    """The encoder's activation, and a masked language model's if the config decides it."""
    key = "activation" if kind == "DistilBert" else "hidden_act"
    saved(quiet_transformers, torch, tmp_path, kind, "ForMaskedLM", **{key: name})
    case = Case(kind, "ForMaskedLM", tmp_path, torch, quiet_transformers)
    for batch in ("right padding", "holes"):
        case.check(hard_batches(WORDS, LONGEST)[batch])


@pytest.mark.parametrize("kind", KINDS)
def test_regression(torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str) -> None:
    head = "ForSequenceClassification"
    saved(quiet_transformers, torch, tmp_path, kind, head, num_labels=1)
    case = Case(kind, head, tmp_path, torch, quiet_transformers)
    case.check(hard_batches(WORDS, LONGEST)["right padding"])
    assert case.model.config.labels == ("LABEL_0",)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining", "Model"])
def test_electra_without_a_projection(
    torch: Any, quiet_transformers: Any, tmp_path: Path, head: str
) -> None:
    saved(quiet_transformers, torch, tmp_path, "Electra", head, embedding_size=24)
    case = Case("Electra", head, tmp_path, torch, quiet_transformers)
    assert "embeddings_project.weight" not in case.model.weights
    case.check(hard_batches(WORDS, LONGEST)["holes"])


@pytest.mark.parametrize("kind", KINDS)
def test_untied_decoder(torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str) -> None:
    options = {"tie_word_embeddings": False}
    saved(quiet_transformers, torch, tmp_path, kind, "ForMaskedLM", **options)
    case = Case(kind, "ForMaskedLM", tmp_path, torch, quiet_transformers)
    case.check(hard_batches(WORDS, LONGEST)["holes"])
    words, decoder = (
        case.model.weights[f"{name}.weight"]
        for name in ("embeddings.word_embeddings", "cls.predictions.decoder")
    )
    assert not np.array_equal(words, decoder)
    tensors = load_file(tmp_path / "model.safetensors")
    *_, name = case.model.config.description.stored_names(
        "cls.predictions.decoder.weight", case.model.config.head
    )
    del tensors[name]
    write_tensors(tmp_path, tensors)
    with pytest.raises(BertNumpyError, match=f"tensor '{name}': expected shape .*, but missing"):
        load(tmp_path)


TIED_HEADS = [
    *((kind, "ForMaskedLM") for kind in KINDS),
    *((kind, "ForPreTraining") for kind in ("Bert", "Albert")),
]


@pytest.mark.parametrize(("kind", "head"), TIED_HEADS)
@pytest.mark.parametrize("kept", ["words", "decoder", "both"])
def test_tied_tensors_are_stored_once(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str, head: str, kept: str
) -> None:
    """safetensors' save_model stores one of several tied tensors, under the first name."""
    saved(quiet_transformers, torch, tmp_path / "a", kind, head)
    case = Case(kind, head, tmp_path / "a", torch, quiet_transformers)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    description, its_head = case.model.config.description, case.model.config.head
    *_, decoder = description.stored_names("cls.predictions.decoder.weight", its_head)
    words = f"{description.prefix}embeddings.word_embeddings.weight"
    matrix = tensors.pop(words)
    tensors.pop(decoder, None)
    names = {"words": [words], "decoder": [decoder], "both": [words, decoder]}[kept]
    tensors |= dict.fromkeys(names, matrix)
    model = rewritten(case, tmp_path / "b", tensors)
    assert model.weights.keys() == case.model.weights.keys()
    for name, weight in case.model.weights.items():
        np.testing.assert_array_equal(model.weights[name], weight)
    tied = [
        model.weights[f"{name}.weight"]
        for name in ("embeddings.word_embeddings", "cls.predictions.decoder")
    ]
    assert tied[0] is tied[1]
    # A model that does not tie them needs both; and two that differ are no tied ones.
    (tmp_path / "c").mkdir()
    source = with_config(tmp_path / "b", tmp_path / "c", tie_word_embeddings=False)
    write_tensors(source, tensors)
    if kept == "both":
        tensors[decoder] = matrix + 1
        write_tensors(source, tensors)
        load(source)
        write_tensors(tmp_path / "b", tensors)
        assert "expected the same numbers, as the model ties the two" in refusal(tmp_path / "b")
    else:
        missing = decoder if kept == "words" else words.removeprefix(description.prefix)
        assert f"tensor '{missing}': expected shape" in refusal(source)


def test_a_tied_decoder_is_not_written_quantized(
    torch: Any, quiet_transformers: Any, tmp_path: Path
) -> None:
    """Its codes would take the place of the word embeddings'."""
    saved(quiet_transformers, torch, tmp_path / "a", "Roberta", "ForMaskedLM")
    model = load(tmp_path / "a")
    layer = PRESETS["e4m3-token"].linear
    recipe = replace(PRESETS["e4m3-token"], overrides=(("cls.predictions.decoder", layer),))
    ids = [[0, 5, 6, 2]]
    made = apply_recipe(model, recipe, calibrate(model, [{"input_ids": ids}]))
    with pytest.raises(
        BertNumpyError, match="decoder: expected no quantization: the checkpoint ho"
    ):
        save_quantized(made, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_decoder_that_nothing_reads(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """The decoder of another head is ignored, whatever it holds."""
    saved(quiet_transformers, torch, tmp_path / "a", "Bert", "ForSequenceClassification")
    case = Case("Bert", "ForSequenceClassification", tmp_path / "a", torch, quiet_transformers)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    words = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = np.full_like(words, np.nan)
    model = rewritten(case, tmp_path / "b", tensors)
    assert model.weights.keys() == case.model.weights.keys()


def test_save_model_of_safetensors(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_model  # noqa: PLC0415 (needs torch)

    for kind in ("Bert", "Roberta", "MPNet"):
        saved(quiet_transformers, torch, tmp_path / kind, kind, "ForMaskedLM")
        case = Case(kind, "ForMaskedLM", tmp_path / kind, torch, quiet_transformers)
        save_model(case.peer, str(tmp_path / kind / "model.safetensors"))
        model = load(tmp_path / kind)
        for name, weight in case.model.weights.items():
            np.testing.assert_array_equal(model.weights[name], weight)


def rewritten(case: Case, folder: Path, tensors: Mapping[str, np.ndarray]) -> Model:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    write_tensors(folder, tensors)
    return load(folder)


def old_names(name: str) -> str:
    return re.sub(
        r"LayerNorm\.(weight|bias)$",
        lambda found: {"weight": "LayerNorm.gamma", "bias": "LayerNorm.beta"}[found[1]],
        name,
    )


def test_other_names(case: Case, tmp_path: Path) -> None:
    """No prefix or one more; gamma and beta; buffers; a decoder that is stored though tied."""
    tensors = load_file(case.folder / "model.safetensors")
    prefix = case.model.config.description.prefix
    decoder = {
        "Bert": "cls.predictions.decoder",
        "DistilBert": "vocab_projector",
        "Electra": "generator_lm_head",
        "Albert": "predictions.decoder",
    }.get(case.kind, "lm_head.decoder")
    words = next(x for name, x in tensors.items() if name.endswith("word_embeddings.weight"))
    more = {
        f"{prefix}embeddings.position_ids": np.zeros((1, 4), np.float32),
        "something.else": np.float32([np.nan]),  # would be refused
    }
    if "cls.predictions.decoder.weight" in case.model.weights:
        more[f"{decoder}.weight"] = words
    if case.model.config.description.head_names and case.head == "ForSequenceClassification":
        # Older versions wrote a pooler that nothing reads.
        more[f"{prefix}pooler.dense.weight"] = np.float32([np.nan])
    variants = {
        "bare": {name.removeprefix(prefix): x for name, x in tensors.items()},
        "more": tensors | more,
    }
    if case.head == "Model":
        variants["prefixed"] = {prefix + name: x for name, x in tensors.items()}
    if case.kind == "Bert":
        variants["old"] = {old_names(name): x for name, x in tensors.items()}
        assert variants["old"].keys() != tensors.keys()
    for name, variant in variants.items():
        model = rewritten(case, tmp_path / name, variant)
        assert list(model.weights) == list(case.model.weights)
        assert model.weight_bytes == case.model.weight_bytes
        for key, weight in case.model.weights.items():
            np.testing.assert_array_equal(model.weights[key], weight)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "MPNet"])
def test_a_decoder_of_its_own_that_is_tied(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str
) -> None:
    """transformers 4 computes with the embeddings, and 5 with the decoder."""
    saved(quiet_transformers, torch, tmp_path, kind, "ForMaskedLM", tie_word_embeddings=False)
    path = tmp_path / "config.json"
    load(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    start = f"{path}: key 'tie_word_embeddings': expected false, as the stored decoder is not the "
    assert refusal(tmp_path).startswith(start)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "MPNet"])
def test_a_decoder_with_a_bias_of_its_own(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str
) -> None:
    """Older versions wrote the bias under both names, or under the decoder's."""
    saved(quiet_transformers, torch, tmp_path / "a", kind, "ForMaskedLM")
    case = Case(kind, "ForMaskedLM", tmp_path / "a", torch, quiet_transformers)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    stem = "cls.predictions" if kind == "Bert" else "lm_head"
    both = tensors | {f"{stem}.decoder.bias": tensors[f"{stem}.bias"]}
    other = {name: x for name, x in both.items() if name != f"{stem}.bias"}
    for number, variant in enumerate((both, other)):
        model = rewritten(case, tmp_path / str(number), variant)
        np.testing.assert_array_equal(
            model.weights["cls.predictions.decoder.bias"], tensors[f"{stem}.bias"]
        )


def refusal(folder: Path) -> str:
    with pytest.raises(BertNumpyError) as caught:
        load(folder)
    return str(caught.value)


def with_config(source: Path, folder: Path, without: str = "", **changes: Any) -> Path:
    config = json.loads((source / "config.json").read_text()) | changes
    config.pop(without, None)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return folder


def test_errors_name_the_files_own_keys(
    torch: Any, quiet_transformers: Any, tmp_path: Path
) -> None:
    saved(quiet_transformers, torch, tmp_path / "a", "DistilBert", "Model")
    place = tmp_path / "b" / "config.json"
    for key in ("dim", "n_layers", "n_heads", "hidden_dim"):
        message = refusal(with_config(tmp_path / "a", tmp_path / "b", without=key))
        assert message == f"{place}: key {key!r}: expected int, found nothing"
    message = refusal(with_config(tmp_path / "a", tmp_path / "b", activation="swish"))
    assert message.startswith(f"{place}: key 'activation': expected one of gelu, ")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    name = "transformer.layer.1.attention.q_lin.weight"
    del tensors[name]
    with_config(tmp_path / "a", tmp_path / "b")
    write_tensors(tmp_path / "b", tensors)
    assert f"tensor {name!r}: expected shape (24, 24), but missing" in refusal(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value"),
    [("summary_type", "mean"), ("summary_use_proj", False), ("summary_activation", "tanh")],
)
def test_other_summaries_of_electra(
    torch: Any, quiet_transformers: Any, tmp_path: Path, key: str, value: Any
) -> None:
    saved(quiet_transformers, torch, tmp_path / "a", "Electra", "ForMultipleChoice")
    message = refusal(with_config(tmp_path / "a", tmp_path / "b", **{key: value}))
    assert f"key {key!r}: expected " in message
    assert message.endswith(f"found {value!r}")


@pytest.mark.parametrize("kind", ["DistilBert", "Roberta", "XLMRoberta", "MPNet"])
def test_inputs_that_the_model_cannot_have(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str
) -> None:
    model = load(saved(quiet_transformers, torch, tmp_path, kind, "Model"))
    longest = model.config.max_length
    assert longest == {"DistilBert": 122, "Roberta": 120, "XLMRoberta": 116, "MPNet": 120}[kind]
    ids = np.full((1, longest), 7)
    assert model(ids).last_hidden_state.shape == (1, longest, 24)
    with pytest.raises(BertNumpyError, match=f"expected at most {longest} tokens .*{longest + 1}"):
        model(np.full((1, longest + 1), 7))
    if kind != "Roberta":
        model(ids, token_type_ids=np.zeros_like(ids))
        with pytest.raises(BertNumpyError, match=r"token_type_ids: expected 0\.\.0, found 1"):
            model(ids, token_type_ids=np.ones_like(ids))


def test_choices_have_an_axis(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    model = load(saved(quiet_transformers, torch, tmp_path, "Bert", "ForMultipleChoice"))
    assert model(np.full((2, 3, 4), 7)).logits.shape == (2, 3)
    with pytest.raises(BertNumpyError) as caught:
        model([[7, 7]])
    assert str(caught.value) == ("input_ids: expected shape (batch, choices, length), found (1, 2)")
    with pytest.raises(BertNumpyError, match="found 60 at row 1, 2, column 3"):
        model(np.where(np.arange(24).reshape(2, 3, 4) == 23, 60, 7))


def test_every_model_type_is_tested() -> None:
    assert {model_type for model_type, _ in KINDS.values()} == ARCHITECTURES.keys()


# Relative positions


def test_buckets_of_distances_against_transformers(torch: Any) -> None:
    """Ours are integers; transformers takes logarithms in float32."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder  # noqa: PLC0415 (a peer)

    distances = np.arange(-2000, 2001)
    expected = MPNetEncoder.relative_position_bucket(torch.from_numpy(distances)).numpy()
    farthest = len(BUCKETS) // 2
    found = BUCKETS[np.clip(distances, -farthest, farthest) + farthest]
    np.testing.assert_array_equal(found, expected)
    assert farthest == 91
    assert sorted(set(found.tolist())) == [*range(16), *range(17, 32)]  # 0 is not behind itself


def test_distances_of_a_batch() -> None:
    """One sequence stands for all if their tokens lie alike; otherwise each has its own."""
    numbers = np.arange(-3, 4)
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0]])
    batch = packing.Batch(mask, mask, packing.pack(mask != 0))
    sets = list(batch.distances(numbers))
    for group, found in zip(batch.packing.groups, sets, strict=True):
        rows = np.broadcast_to(found, (len(group.rows), *found.shape[1:]))
        for row, distances in zip(group.rows.tolist(), rows, strict=True):
            keys = np.flatnonzero(mask[row])
            queries = np.union1d(keys, [0])
            np.testing.assert_array_equal(distances, keys[None, :] - queries[:, None])
    assert sorted(x.shape for x in sets) == [(1, 1, 1), (1, 4, 3), (2, 3, 3)]
    same = mask[:1].repeat(3, 0)
    alike = packing.Batch(same, same, packing.pack(same != 0))
    assert [x.shape for x in alike.distances(numbers)] == [(1, 3, 3)]
    ones = np.ones((1, 9), int)
    far = packing.Batch(ones, ones, packing.pack(ones != 0))
    (found,) = far.distances(numbers)
    assert (found.min(), found.max(), found[0, 0, 8], found[0, 8, 0]) == (-3, 3, 3, -3)


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_mpnets_padding_is_always_1(
    torch: Any, quiet_transformers: Any, tmp_path: Path, padding: int
) -> None:
    """transformers counts positions over the tokens other than 1, whatever the config says."""
    saved(quiet_transformers, torch, tmp_path, "MPNet", "Model", pad_token_id=padding)
    case = Case("MPNet", "Model", tmp_path, torch, quiet_transformers)
    assert case.model.config.position_padding == 1
    ids = np.random.default_rng(0).integers(0, 7, (3, 20))
    case.check({"input_ids": ids, "attention_mask": np.ones_like(ids)})


@pytest.mark.parametrize("mask", ["tokens", "holes"])
def test_the_table_of_distances_matters(
    torch: Any, quiet_transformers: Any, tmp_path: Path, mask: str
) -> None:
    """Each bucket that a batch has changes its result, the rows behind the 32nd never do."""
    case_folder = saved(quiet_transformers, torch, tmp_path, "MPNet", "Model")
    model = load(case_folder)
    name = "encoder.relative_attention_bias.weight"
    ids = np.full((1, 100), 7)
    present = np.ones_like(ids)
    if mask == "holes":
        present[:, 1::2] = 0  # all distances are even
    before = model(ids, present).last_hidden_state
    table = model.weights[name]
    assert table.shape == (40, 3)
    for bucket in range(40):
        changed = np.array(table)
        changed[bucket] += 1
        found = replace(model, weights={**model.weights, name: changed})(ids, present)
        odd = bucket % 16 in (1, 3, 5, 7)
        used = bucket < 32 and bucket != 16 and not (mask == "holes" and odd)
        assert (not np.array_equal(found.last_hidden_state, before)) == used, bucket


# Layers that share their parameters


ALBERT_HEADS = [head for kind, head in CASES if kind == "Albert"]

#: More layers than divide among the groups; one group; embeddings as large as hidden states.
ALBERTS: dict[str, dict[str, Any]] = {
    "5 layers": {"num_hidden_layers": 5},
    "one group": {"num_hidden_groups": 1},
    "large embeddings": {"num_hidden_groups": 1, "num_hidden_layers": 2, "embedding_size": 24},
}


def albert(
    torch: Any, transformers: Any, folder: Path, head: str = "Model", **options: Any
) -> Case:
    saved(transformers, torch, folder, "Albert", head, **options)
    return Case("Albert", head, folder, torch, transformers)


@pytest.mark.parametrize("head", ALBERT_HEADS)
@pytest.mark.parametrize("name", ALBERTS)
def test_other_alberts(
    torch: Any, quiet_transformers: Any, tmp_path: Path, head: str, name: str
) -> None:
    case = albert(torch, quiet_transformers, tmp_path / "a", head, **ALBERTS[name])
    test_outputs(case)
    test_names_and_shapes(case)
    test_parameters_are_held_once(case)
    test_golden_float32_is_close(case)
    test_quantized_checkpoint(case, "e4m3", tmp_path)


def test_groups_of_layers(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """Layers get parameters by the same groups as in transformers, for any numbers."""
    base = load(saved(quiet_transformers, torch, tmp_path, "Albert", "Model")).config
    small = {"hidden_size": 2, "embedding_size": 2, "num_attention_heads": 1}
    small |= {"intermediate_size": 2, "vocab_size": 2, "max_position_embeddings": 2}
    pairs = [(n, groups) for n in range(1, 25) for groups in range(1, n + 1)]
    seen: list[int] = []

    class Noted(torch.nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, hidden: Any, *_: Any, **__: Any) -> Any:
            seen.append(self.number)
            # Version 4 takes the first of a tuple.
            return (hidden,) if quiet_transformers.__version__ < "5" else hidden

    made = quiet_transformers.AlbertModel(quiet_transformers.AlbertConfig(**small)).encoder
    for layers, groups in pairs:
        made.config.num_hidden_layers, made.config.num_hidden_groups = layers, groups
        made.albert_layer_groups = torch.nn.ModuleList(map(Noted, range(groups)))
        seen.clear()
        made(torch.zeros(1, 1, 2), head_mask=[None] * layers)
        config = replace(base, num_hidden_layers=layers, num_hidden_groups=groups)
        assert list(config.layer_parameters) == seen
        assert len(set(seen)) == groups


def test_shared_weights_are_held_once(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """However many layers there are: in float32, and quantized."""
    case = albert(torch, quiet_transformers, tmp_path / "a", num_hidden_groups=1)
    more = load(with_config(tmp_path / "a", tmp_path / "b", num_hidden_layers=7))
    assert list(more.weights) == list(case.model.weights)
    assert more.weight_bytes == case.model.weight_bytes
    assert model_sites(more) == model_sites(case.model)
    sizes = set()
    for model in (case.model, more):
        made = apply_recipe(model, PRESETS["e4m3"], calibrate(model, [some_batch(case)]))
        assert sum(isinstance(x, QuantizedTensor) for x in made.weights.values()) == 6
        sizes.add(made.weight_bytes)
    assert len(sizes) == 1
    assert sizes.pop() < case.model.weight_bytes


def test_a_calibration_sees_every_pass(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """One scale for all the layers that share a site, of what all of them multiply."""
    case = albert(torch, quiet_transformers, tmp_path)
    batch = some_batch(case)
    seen: dict[str, list[np.ndarray]] = {}
    noted(case.model, lambda site, a, *_: seen.setdefault(site, []).append(a))(**batch)
    found = calibrate(case.model, [batch])
    of_later_layers = 0
    for site in model_sites(case.model):
        passes = seen[site]
        statistics = found.operands[f"{site}:a"]
        low = min(0.0, *(float(x.min()) for x in passes))
        high = max(0.0, *(float(x.max()) for x in passes))
        assert (statistics.low, statistics.high) == (low, high)
        assert statistics.counts.sum() == sum(x.size for x in passes)
        if site in found.channels:
            rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in passes])
            np.testing.assert_array_equal(found.channels[site], np.abs(rows).max(axis=0))
        if site.startswith("encoder.layer.0."):
            of_later_layers += (low, high) != (
                min(0.0, float(passes[0].min())),
                max(0.0, float(passes[0].max())),
            )
    assert of_later_layers


def test_overrides_of_shared_layers(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """A pattern names parameters, and so all the layers that have them."""
    case = albert(torch, quiet_transformers, tmp_path)
    batch = some_batch(case)
    layer = PRESETS["e4m3"].linear
    recipe = replace(PRESETS["fp32"], overrides=(("encoder.layer.1.*.dense", layer),))
    model = apply_recipe(case.model, recipe, calibrate(case.model, [batch]))
    quantized = {name for name, x in model.weights.items() if isinstance(x, QuantizedTensor)}
    names = ("attention.output", "intermediate", "output")
    assert quantized == {f"encoder.layer.1.{name}.dense.weight" for name in names}
    assert {name.rpartition(":")[0] for name in model(**batch).counts} == {
        name.removesuffix(".weight") for name in quantized
    }


def test_decoded_weights_of_shared_layers(
    torch: Any, quiet_transformers: Any, tmp_path: Path
) -> None:
    """They are kept once, and all layers take them."""
    case = albert(torch, quiet_transformers, tmp_path, num_hidden_groups=1)
    batch = some_batch(case)
    for name, size in (("e4m3", 8), ("int8", 4)):
        model = apply_recipe(case.model, PRESETS[name], calibrate(case.model, [batch]))
        found = [model(**batch).last_hidden_state for _ in range(2)]
        weights = [x for x in model.weights.values() if isinstance(x, QuantizedTensor)]
        kept = model.engine.keywords["kept"]  # type: ignore[attr-defined]
        assert kept.nbytes == size * sum(weight.size for weight in weights)
        engine = engine_of(model.recipe, model.plans, budget=0)
        plain = replace(model, engine=engine)(**batch).last_hidden_state
        assert [x.tobytes() for x in found] == 2 * [plain.tobytes()]


def test_kit_of_shared_layers(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """Each layer is in it, the later ones by their numbers; its own arithmetic agrees."""
    case = albert(torch, quiet_transformers, tmp_path, "ForPreTraining", num_hidden_groups=1)
    ids = {"input_ids": np.array([[2, 7, 9, 3]])}
    for name in ("e4m3", "int8-token"):
        calibration = calibrate(case.model, [ids], golden=True)
        model = apply_recipe(case.model, PRESETS[name], calibration, golden=True)
        kit = make_kit(("layer", "model"), model, {}, [ids])
        sop = model(**ids).sop_logits
        assert kit.arrays["model/0/sop_logits"].tobytes() == sop.tobytes()
        found = {
            key: OPERATIONS[tensor.operation](kit.inputs(key), tensor.attributes)
            for key, tensor in kit.tensors.items()
            if tensor.operation != "given"
        }
        assert verify(kit, found).passed
        site = "encoder.layer.0.intermediate.dense"
        for layer in ("", "@1", "@2"):
            (result,) = (key for key in kit.arrays if f"{site}{layer}/product" in key)
            wrong = kit.arrays[result].copy()
            wrong.flat[0] += 1
            assert not verify(kit, {result: wrong}).passed
        assert not any(f"{site}@3" in key for key in kit.arrays)


# Real checkpoints


SENTENCES = [
    "the capital of france is [MASK] .",
    "she opened the [MASK] and walked into the room .",
    "he was born in [MASK] in 1952 .",
    "[MASK] is the largest planet in the solar system .",
    "the movie was so [MASK] that i fell asleep .",
    "a [MASK] is an animal that barks .",
    "they drove their [MASK] to the [MASK] yesterday .",
    "water [MASK] at one hundred degrees .",
    "the band released its first [MASK] in 1999 .",
    "[MASK] [MASK] [MASK]",
]


def test_masks_of_a_real_model(
    torch: Any, quiet_transformers: Any, checkpoints: Path, tmp_path: Path
) -> None:
    """Its top five equal transformers', in Python and on the command line."""
    folder = checkpoints / "bert-tiny-mlm"
    tokenizer = quiet_transformers.AutoTokenizer.from_pretrained(folder)
    peer = quiet_transformers.AutoModelForMaskedLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    batch = load_tokenizer(folder).batch(SENTENCES)
    logits = load(folder)(**batch).logits
    with torch.no_grad():
        expected = peer(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).logits.numpy()
    tokens = batch["attention_mask"] != 0
    assert relative(logits[tokens], expected[tokens]) <= PARITY
    masks = batch["input_ids"] == tokenizer.mask_token_id
    assert masks.sum() == 13
    top = np.argsort(-expected[masks], axis=-1)[:, :5]
    np.testing.assert_array_equal(np.argsort(-logits[masks], axis=-1)[:, :5], top)
    found = []
    for sentence in SENTENCES:
        assert main(["predict", str(folder), sentence, "--json", str(tmp_path / "x")]) == 0
        for mask in json.loads((tmp_path / "x").read_text())["masks"]:
            found.append([one["token"] for one in mask["tokens"]])
    assert found == [tokenizer.convert_ids_to_tokens(row) for row in top.tolist()]


# Sentence embeddings

TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Two men pushed carts through the woods, and a third one, who had been sitting by the river "
    "for hours, watched them without a word.",
    "monkey",
]


def embedded(torch: Any, peer: Any, batch: Batch, mode: str, normalize: bool) -> np.ndarray:
    """Compute the embeddings in torch, as sentence-transformers documents them."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        hidden = peer(**tensors).last_hidden_state
    mask = tensors["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    vectors = mean if mode == "mean" else hidden[:, 0]
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
    return vectors.numpy()


def write_modules(folder: Path, pooling: Mapping[str, Any], normalize: bool = True) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules[: 2 + normalize])
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


POOLINGS = {
    "mean": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "cls": {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
}


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "XLMRoberta", "Albert", "MPNet"])
def test_sentence_embeddings(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str, mode: str, normalize: bool
) -> None:
    saved(quiet_transformers, torch, tmp_path, kind, "Model")
    write_modules(tmp_path, POOLINGS[mode] | {"word_embedding_dimension": 24}, normalize)
    case = Case(kind, "Model", tmp_path, torch, quiet_transformers)
    model = case.model
    assert model.config.head.name == "sentence embeddings"
    batches = hard_batches(WORDS, model.config.max_length)
    del batches["ids only"]
    for batch in map(case.fit, batches.values()):
        expected = embedded(torch, case.peer, batch, mode, normalize)
        assert relative(model(**batch).sentence_embedding, expected) <= PARITY
    batch = some_batch(case)
    fast = model(**batch).sentence_embedding
    golden = replace(model, engine=GoldenEngine)(**batch).sentence_embedding
    assert relative(golden, fast) <= PARITY
    calibration = calibrate(model, [batch], golden=True)
    quantized = apply_recipe(model, PRESETS["e4m3"], calibration, golden=True)
    found = quantized(**batch).sentence_embedding
    alone = quantized(**{name: x[-1:] for name, x in batch.items()}).sentence_embedding
    assert_same_bits(alone[0], found[-1])
    assert 0 < np.linalg.norm(found - fast) / np.linalg.norm(fast) < 0.3
    if normalize:
        norms = np.linalg.norm(found.astype(np.float64), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)
    new = {"pooling_mode": mode, "include_prompt": True}
    write_modules(tmp_path, new, normalize)  # as newer versions write it
    assert load(tmp_path).config.pooling == model.config.pooling


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        ({"pooling_mode": "median"}, "median"),
        ({"pooling_mode_mean_tokens": False}, "none"),
        ({}, "none"),
    ],
)
def test_other_poolings(
    torch: Any, quiet_transformers: Any, tmp_path: Path, pooling: dict[str, Any], found: str
) -> None:
    saved(quiet_transformers, torch, tmp_path, "Bert", "Model")
    write_modules(tmp_path, pooling)
    assert refusal(tmp_path).startswith(
        f"{tmp_path / '1_Pooling' / 'config.json'}: expected one or more of the poolings cls, max, "
        f"mean, mean_sqrt_len_tokens, weightedmean, lasttoken, each once, found {found}"
    )


TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({}, "expected a JSON list, found dict"),
        (
            [],
            "expected the modules Transformer, Pooling and perhaps Dense and Normalize, found none",
        ),
        ([TRANSFORMER], "and perhaps Dense and Normalize, found Transformer"),
        ([TRANSFORMER, POOLING, {"type": "x.Dense", "path": "2"}], "module 2: expected the 'type'"),
        ([{"path": ""}], "module 0: expected a 'type', a string"),
        ([TRANSFORMER, 3], "module 1: expected a 'type', a string"),
        ([TRANSFORMER, POOLING | {"path": None}], "module 1: expected a 'path', a string"),
        ([TRANSFORMER | {"path": "0_Transformer"}, POOLING], "this folder, found '0_Transformer'"),
        ([TRANSFORMER, POOLING | {"path": "../x"}], "a folder in this one, found '../x'"),
        ([TRANSFORMER, POOLING | {"path": "2_Pooling"}], "2_Pooling/config.json: no such file"),
    ],
)
def test_other_modules(
    torch: Any, quiet_transformers: Any, tmp_path: Path, modules: Any, message: str
) -> None:
    saved(quiet_transformers, torch, tmp_path, "Bert", "Model")
    write_modules(tmp_path, POOLINGS["mean"])
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert message in refusal(tmp_path)


def test_real_sentence_embeddings(
    torch: Any, quiet_transformers: Any, all_minilm: Path, tmp_path: Path
) -> None:
    tokenizer = quiet_transformers.AutoTokenizer.from_pretrained(all_minilm)
    peer = quiet_transformers.AutoModel.from_pretrained(
        all_minilm, attn_implementation="eager", dtype=torch.float32
    ).eval()
    theirs = dict(tokenizer(TEXTS, padding=True, return_tensors="np"))
    expected = embedded(torch, peer, theirs, "mean", True)
    model = load(all_minilm)
    batch = load_tokenizer(all_minilm).batch(TEXTS)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, theirs[name])
    found = model(**batch).sentence_embedding
    assert relative(found, expected) <= PARITY
    argv = ["predict", str(all_minilm), TEXTS[0], TEXTS[1], "--json", str(tmp_path / "x")]
    assert main(argv) == 0
    report = json.loads((tmp_path / "x").read_text())
    cosine = float(expected[0].astype(np.float64) @ expected[1])
    assert report["cosine_similarity"] == pytest.approx(cosine, abs=1e-5)
    assert report["norms"] == pytest.approx([1, 1], abs=1e-6)
    assert cosine > 0.7
    assert float(expected[0] @ expected[4]) < 0.3


# Tokenizers


CORPUS = [*TEXTS, *SENTENCES, "naïve café — déjà vu, 3.14 and it's 100% “fine”", "日本語 テスト"]
HARD_TEXTS = [*CORPUS, "  two  spaces ", "unseen Ωmega 😀 words", "x" * 40, "a<mask>b <mask> c"]
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write_config(folder: Path, vocab_size: int, **changes: Any) -> None:
    config = {"model_type": "roberta", **_SIZES, "vocab_size": vocab_size, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config | {"type_vocab_size": 1} | changes))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt, as RoBERTa's."""
    folder = tmp_path_factory.mktemp("byte level")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, 400, 1, special_tokens=_SPECIAL, show_progress=False)
    trained.save_model(str(folder))
    write_config(folder, trained.get_vocab_size(), max_position_embeddings=130)
    return folder


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json as XLM-R's and CamemBERT's: SentencePiece's Unigram."""
    folder = tmp_path_factory.mktemp("unigram")
    trained = tokenizers.SentencePieceUnigramTokenizer()
    trained.train_from_iterator(
        CORPUS, 200, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False
    )
    trained.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFKC(),
            tokenizers.normalizers.Strip(left=False, right=True),
            tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    )
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    trained.save(str(folder / "tokenizer.json"))
    write_config(
        folder,
        trained.get_vocab_size(),
        model_type="xlm-roberta",
        max_position_embeddings=130,
    )
    return folder


def encodings(tokenizer: Any, texts: list[str], pairs: list[str] | None) -> list[list[int]]:
    return tokenizer(texts, pairs)["input_ids"]


def check_tokenizer(folder: Path, peer: Any) -> None:
    tokenizer = load_tokenizer(folder)
    for pairs in (None, HARD_TEXTS[::-1]):
        found = tokenizer.encode(HARD_TEXTS, pairs)
        assert [list(item.input_ids) for item in found] == encodings(peer, HARD_TEXTS, pairs)
        assert not any(any(item.token_type_ids) for item in found)
        batch = tokenizer.batch(HARD_TEXTS, pairs)
        padded = peer(HARD_TEXTS, pairs, padding=True, return_tensors="np")
        np.testing.assert_array_equal(batch["input_ids"], padded["input_ids"])
        np.testing.assert_array_equal(batch["attention_mask"], padded["attention_mask"])
    assert tokenizer.pad_token_id == peer.pad_token_id
    assert tokenizer.mask_token_id == peer.mask_token_id


@pytest.mark.parametrize("spaced", [False, True])
def test_byte_level_from_its_merges(
    quiet_transformers: Any, byte_level: Path, tmp_path: Path, spaced: bool
) -> None:
    for name in ("vocab.json", "merges.txt", "config.json"):
        (tmp_path / name).write_bytes((byte_level / name).read_bytes())
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": spaced}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    # As the tokenizer.json of RoBERTa's own checkpoints has it: a space before it belongs to it.
    mask = quiet_transformers.AddedToken("<mask>", lstrip=True, special=True)
    peer = quiet_transformers.RobertaTokenizerFast.from_pretrained(tmp_path, mask_token=mask)
    check_tokenizer(tmp_path, peer)
    peer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_bytes((byte_level / "config.json").read_bytes())
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    check_tokenizer(tmp_path / "saved", peer)


def test_unigram(quiet_transformers: Any, unigram: Path) -> None:
    peer = quiet_transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(unigram / "tokenizer.json"),
        **{f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")},
        cls_token="<s>",
        sep_token="</s>",
    )
    check_tokenizer(unigram, peer)


def albert_tokenizer(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a folder with a tokenizer.json as ALBERT's, and return its description."""
    folder.mkdir(exist_ok=True)
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    parts = [tokenizers.normalizers.Replace(quote, '"') for quote in ("``", "''")]
    if not settings.get("keep_accents", False):
        parts += [tokenizers.normalizers.NFKD(), tokenizers.normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        parts += [tokenizers.normalizers.Lowercase()]
    spaces = tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    trained.normalizer = tokenizers.normalizers.Sequence([*parts, spaces])
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    )
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    trained.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True, special=True)])
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    trained.save(str(folder / "tokenizer.json"))
    size = trained.get_vocab_size()
    own = {"model_type": "albert", "type_vocab_size": 2, "pad_token_id": 0}
    write_config(folder, size, max_position_embeddings=130, **own)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    description: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return description


INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
QUOTED = [*HARD_TEXTS, "``A man'' is ``eating food.", "D\u00c9J\u00c0 Vu [MASK] caf\u00e9", "[CLS]"]


@pytest.mark.parametrize("accents", [{}, {"keep_accents": True}], ids=str)
@pytest.mark.parametrize("case", [{}, {"do_lower_case": False}], ids=str)
def test_alberts_tokenizer(
    quiet_transformers: Any, tmp_path: Path, accents: dict[str, Any], case: dict[str, Any]
) -> None:
    """The file is used unchanged, saved by transformers, or with its class named nowhere."""
    settings = {"tokenizer_class": "AlbertTokenizer", **accents, **case}
    typed = {"model_input_names": INPUTS}
    albert_tokenizer(tmp_path / "a", settings | typed)
    peer = quiet_transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    assert type(peer).__name__.startswith("AlbertTokenizer")
    assert (peer.pad_token_id, peer.mask_token_id) == (0, 4)
    peer.save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "a" / "config.json", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "tokenizer_config.json").write_text(json.dumps(settings))
    if not (accents or case):
        (tmp_path / "c" / "tokenizer_config.json").unlink()
    for name in "abc":
        tokenizer = load_tokenizer(tmp_path / name)
        assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)
        expected = peer(QUOTED)["input_ids"]
        assert [list(one.input_ids) for one in tokenizer.encode(QUOTED)] == expected
    tokenizer = load_tokenizer(tmp_path / "a")
    expected = peer(QUOTED, QUOTED[::-1])
    found = tokenizer.encode(QUOTED, QUOTED[::-1])
    assert [list(one.input_ids) for one in found] == expected["input_ids"]
    assert [list(one.token_type_ids) for one in found] == expected["token_type_ids"]
    assert any(any(types) for types in expected["token_type_ids"])
    with pytest.raises(BertNumpyError, match="key 'model_input_names': expected a list beside Alb"):
        load_tokenizer(tmp_path / "c").encode(["a"], ["b"])


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"do_lower_case": False}, None, "key 'normalizer': expected Replace, Replace, NFKD, "),
        ({"keep_accents": True}, None, "'normalizer': expected Replace, Replace, Lowercase, Preco"),
        ({"keep_accents": 1}, None, "key 'keep_accents': expected true or false, found 1"),
        ({"add_prefix_space": False}, None, "key 'add_prefix_space': expected true, or no such"),
        ({}, {"normalizer": None}, "key 'normalizer': expected Replace, Replace, NFKD, "),
        ({}, {"normalizer": {"type": "NFKD"}}, "key 'normalizer': expected Replace, Replace, "),
        ({}, {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581"}}, "pre_tokenizer"),
        ({}, {"post_processor": None}, r"expected \[CLS\] \$A \[SEP\] \$B \[SEP\] "),
        ({"unk_token": "a"}, None, "key 'model.unk_id': expected the id of 'a', found 1"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_what_is_not_alberts_tokenizer(
    tmp_path: Path, settings: dict[str, Any], change: Any, message: str, named: bool
) -> None:
    """It may have no other components than the class has, whoever names the class."""
    raw = albert_tokenizer(tmp_path, {})
    if named:
        settings = settings | {"tokenizer_class": "AlbertTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if not settings:
        (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | (change or {})))
    with pytest.raises(BertNumpyError, match=message):
        load_tokenizer(tmp_path)


def mpnet_tokenizer(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a folder with a tokenizer.json and a vocab.txt as MPNet's, and return the former."""
    folder.mkdir(exist_ok=True)
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "a", "man", "is", "eat", "##ing", "food"]
    words += ["caf\u00e9", "cafe", ".", "A", "\u65e5", "\u672c", "##\u672c"]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    made.add_special_tokens([*words[:4], mask])
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), "utf-8")
    write_config(folder, len(words), model_type="mpnet", max_position_embeddings=130)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    description: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return description


@pytest.mark.parametrize("case", [{}, {"do_lower_case": False}], ids=str)
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_mpnets_tokenizer(
    quiet_transformers: Any, tmp_path: Path, case: dict[str, Any], file: str
) -> None:
    """WordPiece with RoBERTa's special tokens, two of them between the texts of a pair."""
    settings = {"tokenizer_class": "MPNetTokenizer", **case}
    mpnet_tokenizer(tmp_path, settings)
    (tmp_path / ({"tokenizer.json", "vocab.txt"} - {file}).pop()).unlink()
    peer = quiet_transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(peer).__name__.startswith("MPNetTokenizer")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 4)
    texts = [*QUOTED, "a man is <mask>", "eating  <mask> A caf\u00e9.", "\u65e5\u672c a\u672c"]
    expected = peer(texts)["input_ids"]
    assert [list(one.input_ids) for one in tokenizer.encode(texts)] == expected
    expected = peer(texts, texts[::-1])["input_ids"]
    found = tokenizer.encode(texts, texts[::-1])
    assert [list(one.input_ids) for one in found] == expected
    assert all(not any(one.token_type_ids) for one in found)
    assert list(tokenizer.encode(["a"], ["man"])[0].input_ids) == [0, 5, 2, 2, 6, 2]


@pytest.mark.parametrize(
    ("settings", "change", "without", "message"),
    [
        # Version 4 of transformers follows the file, or nothing, and 5 the key.
        ({"tokenize_chinese_chars": False}, {}, "", "'tokenize_chinese_chars': expected True, as"),
        ({"do_basic_tokenize": False}, {}, "tokenizer.json", "'do_basic_tokenize': expected true"),
        ({"unk_token": "<unk>"}, {}, "", "key 'model.unk_token': expected '<unk>'"),
        ({}, {"post_processor": None}, "", r"expected <s> \$A </s> </s> \$B </s> "),
        ({}, {"normalizer": {"type": "Lowercase"}}, "", "expected BertNormalizer, as the class"),
    ],
)
def test_what_is_not_mpnets_tokenizer(
    tmp_path: Path, settings: dict[str, Any], change: Any, without: str, message: str
) -> None:
    raw = mpnet_tokenizer(tmp_path, {"tokenizer_class": "MPNetTokenizer", **settings})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | change))
    if without:
        (tmp_path / without).unlink()
    with pytest.raises(BertNumpyError, match=message):
        load_tokenizer(tmp_path)


def test_spaces_that_are_joined_in_alberts_tokenizer(tmp_path: Path) -> None:
    """Only by a space, before which words are split anyway."""
    raw = albert_tokenizer(tmp_path, {})
    raw["normalizer"]["normalizers"][-1]["content"] = "\u2581"
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BertNumpyError, match="key 'normalizer': expected Replace, Replace, NFKD"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["byte_level", "unigram"])
def test_windows(request: pytest.FixtureRequest, name: str) -> None:
    """No text is cut after a space, which may be no token there; offsets have none before them."""
    tokenizer = load_tokenizer(request.getfixturevalue(name))
    context = " ".join(CORPUS)
    whole = tokenizer.backend.encode(context, add_special_tokens=False)
    questions = [" ".join(TEXTS[::-1])[i:] for i in range(6)]
    questions += ["日 本 語 A man 日 本 語"]
    for most in (3, 8, 9, 20):
        found = tokenizer.windows(questions, [context] * len(questions), 48, 10, most)
        for question, windows in zip(questions, found, strict=True):
            ids = windows[0].encoded.input_ids
            asked = ids[1 : ids.index(2)]
            assert 0 < len(asked) <= most
            text = tokenizer.backend.decode(list(asked))
            assert "".join(question.split()).startswith("".join(text.split()))
            for window in windows:
                assert len(window.encoded.input_ids) <= 48
                tokens = window.encoded.input_ids[window.position : -1]
                assert list(tokens) == whole.ids[window.first : window.first + len(tokens)]
                for (start, end), (_, stop) in zip(
                    window.offsets, whole.offsets[window.first :], strict=False
                ):
                    assert end == stop or start == end  # a space that is not in the text
                    assert context[start:end].strip() == context[start:end]
            last = windows[-1]
            assert last.first + len(last.offsets) == len(whole.ids)


def test_sentencepiece_alone_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, 100)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(BertNumpyError) as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}: expected tokenizer.json, vocab.txt or vocab.json, found only "
        "sentencepiece.bpe.model, which is not read. Convert it: python -c "
    )
    assert "AutoTokenizer" in message


@pytest.mark.parametrize(("name", "content"), [("merges.txt", None), ("vocab.json", b"{}")])
def test_broken_merges(byte_level: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    for other in ("vocab.json", "merges.txt", "config.json"):
        (tmp_path / other).write_bytes((byte_level / other).read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BertNumpyError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'vocab.json'}: expected a tokenizer, found ")


def test_predict_with_a_byte_level_tokenizer(
    torch: Any, quiet_transformers: Any, byte_level: Path, tmp_path: Path
) -> None:
    size = load_tokenizer(byte_level).backend.get_vocab_size()
    options = {"vocab_size": size, "type_vocab_size": 1, "pad_token_id": 1}
    saved(quiet_transformers, torch, tmp_path, "Roberta", "ForMaskedLM", **options)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((byte_level / name).read_bytes())
    argv = ["predict", str(tmp_path), "A man is eating <mask>.", "--json", str(tmp_path / "x")]
    for recipe in ("fp32", "e4m3"):
        assert main([*argv, "--format", recipe]) == 0
        (mask,) = json.loads((tmp_path / "x").read_text())["masks"]
        assert len(mask["tokens"]) == 5
    batch = load_tokenizer(tmp_path).batch(["A man is eating <mask>."])
    case = Case("Roberta", "ForMaskedLM", tmp_path, torch, quiet_transformers)
    expected = case.theirs(case.fit(batch))["logits"][0, mask["position"]]
    assert main(argv) == 0
    (mask,) = json.loads((tmp_path / "x").read_text())["masks"]
    found = [one["logit"] for one in mask["tokens"]]
    np.testing.assert_allclose(found, np.sort(expected)[::-1][:5], rtol=1e-4)
    probabilities = [one["probability"] for one in mask["tokens"]]
    total = np.exp(expected.astype(np.float64) - expected.max()).sum()
    assert probabilities[0] == pytest.approx(math.exp(found[0] - expected.max()) / total, rel=1e-4)
