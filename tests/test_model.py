"""The forward pass: parity with transformers, and properties that hold without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import VOCABULARY, Batch, hard_batches, relative, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from watching import noted

from bert_numpy import BertNumpyError, Model, ModelOutput, load, load_tokenizer
from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.model.sites import encoder_sites
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import read_examples, task_named

#: Checkpoints with a classifier or a span head, and the GLUE task of their inputs.
CLASSIFIERS = {
    "minilm-sst2": "sst2",
    "minilm-cola": "cola",
    "minilm-mrpc": "mrpc",
    "bert-tiny-stsb": "stsb",
    "bert-tiny-mrpc": "mrpc",
    "bert-tiny-sst2": "sst2",
    # MPNet-base, where the folder of its base is at hand.
    "mpnet-sst2": "sst2",
    "mpnet-cola": "cola",
    "mpnet-mrpc": "mrpc",
    "mpnet-squad": "rte",
}
BASE_SIZE = [name for name in CLASSIFIERS if name.startswith("mpnet")]
ENCODERS = {"minilm-squad": "rte", "bert-tiny-mlm": "mrpc"}

PARITY = 1e-5


def refusal(function: Callable[[], Any]) -> str:
    with pytest.raises(BertNumpyError) as caught:
        function()
    return str(caught.value)


# Parity with transformers


class Peer:
    """A checkpoint in this package and, in float32 with eager attention, in transformers."""

    def __init__(self, torch: Any, transformers: Any, folder: Path, kind: str = "") -> None:
        self.torch = torch
        self.folder = folder
        self.model = load(folder)
        kind = kind or self.model.config.architecture
        # A pooler that is not in the file would be random there.
        options = {} if kind != "BertModel" or self.has_pooler else {"add_pooling_layer": False}
        self.peer = getattr(transformers, kind).from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, **options
        )
        self.peer.eval()

    @property
    def has_pooler(self) -> bool:
        return "pooler.dense.weight" in self.model.weights

    def theirs(self, batch: Mapping[str, np.ndarray]) -> SimpleNamespace:
        """Logits (a classifier's), and the hidden states of every position."""
        tensors = {name: self.torch.from_numpy(array) for name, array in batch.items()}
        with self.torch.no_grad():
            output = self.peer(**tensors, output_hidden_states=True)
        return SimpleNamespace(
            last_hidden_state=output.hidden_states[-1].numpy(),
            **{
                name: output[name].numpy() if name in output else None
                for name in ("logits", "start_logits", "end_logits", "pooler_output")
            },
        )

    def check(self, batch: Mapping[str, np.ndarray]) -> None:
        errors = self.errors(self.model(**batch), self.theirs(batch), batch)
        beyond = {name: error for name, error in errors.items() if error > PARITY}
        if beyond:
            # A few inputs are so near a decision that float32 does not determine their result.
            moved = self.sensitivity(batch)
            assert all(error <= 4 * moved[name] for name, error in beyond.items()), (beyond, moved)

    def errors(self, ours: Any, theirs: Any, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The relative difference of each output."""
        tokens = batch.get("attention_mask", np.ones_like(batch["input_ids"])) != 0
        pairs = {
            "hidden": (ours.last_hidden_state[tokens], theirs.last_hidden_state[tokens]),
            # even where it is masked
            "first": (ours.last_hidden_state[:, 0], theirs.last_hidden_state[:, 0]),
            "logits": (ours.logits, theirs.logits),
            "pooled": (ours.pooler_output, theirs.pooler_output),
        }
        for name in ("start_logits", "end_logits"):
            span = getattr(ours, name), getattr(theirs, name)
            pairs[name] = tuple(x if x is None else x[tokens] for x in span)
        return {name: relative(x, y) for name, (x, y) in pairs.items() if y is not None}

    def sensitivity(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Measure how far transformers' own outputs move if each weight moves by a float32 step."""
        before = self.theirs(batch)
        weights = {name: x.clone() for name, x in self.peer.state_dict().items()}
        generator = self.torch.Generator().manual_seed(0)
        moved: list[dict[str, float]] = []
        for _ in range(8):
            signs = {
                name: self.torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
                for name, x in weights.items()
            }
            self.peer.load_state_dict(
                {name: x * (1 + signs[name] * 2.0**-23) for name, x in weights.items()}
            )
            moved.append(self.errors(self.theirs(batch), before, batch))
        self.peer.load_state_dict(weights)
        return {name: max(each[name] for each in moved) for name in moved[0]}


@pytest.fixture(scope="module", params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest, torch: Any, quiet_transformers: Any) -> Peer:
    at_base_size = request.param in BASE_SIZE
    folder = request.getfixturevalue("base_checkpoints" if at_base_size else "checkpoints")
    return Peer(torch, quiet_transformers, folder / request.param)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(
    request: pytest.FixtureRequest, torch: Any, quiet_transformers: Any, checkpoints: Path
) -> Peer:
    return Peer(torch, quiet_transformers, checkpoints / request.param, "BertModel")


def real_batches(peer: Peer, glue: Path, task_name: str, count: int, size: int) -> Iterator[Batch]:
    """The task's inputs in the file's order, so that lengths are mixed."""
    task = task_named(task_name)
    examples = read_examples(*find_files(glue, task, task.dev), task).sample(count)
    tokenizer = load_tokenizer(peer.folder)
    for start in range(0, len(examples), size):
        part = examples.select(range(start, min(start + size, len(examples))))
        yield tokenizer.batch(part.texts, part.pairs, 128)


def test_real_inputs_of_classifiers(classifier: Peer, glue: Path) -> None:
    task = CLASSIFIERS[classifier.folder.name]
    for batch in real_batches(classifier, glue, task, count=48, size=12):
        classifier.check(batch)


def test_real_inputs_of_encoders(encoder: Peer, glue: Path) -> None:
    task = ENCODERS[encoder.folder.name]
    for batch in real_batches(encoder, glue, task, count=24, size=8):
        encoder.check(batch)


HARD = list(hard_batches(10, 128))


@pytest.mark.parametrize("kind", HARD)
def test_hard_masks_of_classifiers(classifier: Peer, kind: str) -> None:
    batch = hard_batches(30522, 512)[kind]
    if not classifier.model.config.type_vocab_size:
        batch.pop("token_type_ids", None)
    classifier.check(batch)


@pytest.mark.parametrize("kind", HARD)
def test_hard_masks_of_encoders(encoder: Peer, kind: str) -> None:
    encoder.check(hard_batches(30522, 512)[kind])


def test_encoders_come_without_a_pooler(encoder: Peer) -> None:
    output = encoder.model([[101, 2143, 102]])
    assert not encoder.has_pooler
    assert output.pooler_output is None


SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 200,
    "max_position_embeddings": 130,
    "type_vocab_size": 2,
    "initializer_range": 0.3,  # activations of the order of 1, as in a trained model
}


def saved_by_transformers(
    transformers: Any, folder: Path, kind: str, dtype: Any = None, **options: Any
) -> Path:
    """A checkpoint of random weights that transformers made and wrote."""
    shard = {"max_shard_size": options.pop("max_shard_size", "50GB")}
    transformers.set_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**(SMALL | options)))
    for name, parameter in model.named_parameters():  # they are zeros and ones, which hide errors
        if name.endswith("bias") or "LayerNorm" in name:
            parameter.data += 0.2 * parameter.data.new_empty(parameter.shape).normal_()
    (model if dtype is None else model.to(dtype)).save_pretrained(folder, **shard)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        *(
            pytest.param({"hidden_act": name}, id=name)
            for name in ("gelu_new", "gelu_pytorch_tanh", "relu", "silu")
        ),
        pytest.param({"num_labels": 3}, id="3 labels"),
        pytest.param({"num_labels": 1}, id="regression"),
        pytest.param({"num_attention_heads": 1}, id="one head"),
        pytest.param({"num_attention_heads": 24}, id="24 heads"),
        pytest.param({"num_hidden_layers": 1}, id="one layer"),
        pytest.param({"type_vocab_size": 5}, id="5 types"),
        pytest.param({"layer_norm_eps": 0.1}, id="large eps"),
        pytest.param({"max_shard_size": "20KB"}, id="sharded"),
    ],
)
def test_saved_by_transformers(
    torch: Any, quiet_transformers: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    kind = "BertForSequenceClassification"
    saved_by_transformers(quiet_transformers, tmp_path, kind, **options)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert shards > 1 if "max_shard_size" in options else shards == 1
    peer = Peer(torch, quiet_transformers, tmp_path, kind)
    assert len(peer.model.config.labels) == options.get("num_labels", 2)
    for batch in hard_batches(SMALL["vocab_size"], 130).values():
        peer.check(batch)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_saved_in_16_bits(torch: Any, quiet_transformers: Any, tmp_path: Path, name: str) -> None:
    kind = "BertForSequenceClassification"
    saved_by_transformers(quiet_transformers, tmp_path, kind, getattr(torch, name))
    peer = Peer(torch, quiet_transformers, tmp_path, kind)
    stored = {np.dtype(weight.dtype) for weight in peer.model.weights.values()}
    assert stored == {np.dtype(np.float32)}
    assert (tmp_path / "model.safetensors").stat().st_size < 0.7 * peer.model.weight_bytes
    for batch in hard_batches(SMALL["vocab_size"], 130).values():
        peer.check(batch)


@pytest.mark.parametrize("kind", ["BertModel", "BertLMHeadModel"])
def test_other_architectures_as_encoders(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str
) -> None:
    saved_by_transformers(quiet_transformers, tmp_path, kind)
    peer = Peer(torch, quiet_transformers, tmp_path, "BertModel")
    assert peer.has_pooler == (kind == "BertModel")
    for batch in hard_batches(SMALL["vocab_size"], 130).values():
        peer.check(batch)
        output = peer.model(**batch)
        assert (output.pooler_output is not None) == peer.has_pooler
        assert output.logits is None


# Without peers


@pytest.fixture(scope="module")
def embedded() -> Model:
    return load(EMBEDDED)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_checkpoint(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def run_small(small: Model) -> Callable[..., ModelOutput]:
    """The model as a function: hypothesis prints arguments, and a model has many numbers."""

    def run(*arrays: np.ndarray) -> ModelOutput:
        return small(*arrays)

    return run


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("bare")
    return load(write_checkpoint(folder, config_overrides={"architectures": ["BertModel"]}))


def test_known_logits(embedded: Model) -> None:
    """Computed once by transformers in float32."""
    batch = load_tokenizer(EMBEDDED).batch(["a warm and funny film", "dull, and far too long."])
    logits = embedded(**batch).logits
    assert logits.dtype == np.float32
    assert relative(logits, np.array([[-2.9720268, 2.7559028], [2.5848179, -2.4243705]])) <= PARITY
    assert [embedded.config.labels[i] for i in logits.argmax(axis=1)] == ["positive", "negative"]


SENTENCES = [
    "a warm and funny film",
    "dull",
    "it 's a charming and often affecting journey , with a plot that is not all that new .",
    "the actors are good , the movie is bad",
    "a very long word : antidisestablishmentarianism",
]


def test_a_sequence_does_not_depend_on_its_batch(embedded: Model) -> None:
    tokenizer = load_tokenizer(EMBEDDED)
    together = embedded(**tokenizer.batch(SENTENCES))
    for row, sentence in enumerate(SENTENCES):
        batch = tokenizer.batch([sentence])
        length = batch["input_ids"].shape[1]
        padded = {name: np.pad(array, ((0, 0), (0, 200))) for name, array in batch.items()}
        alone, wide = embedded(**batch), embedded(**padded)
        assert relative(together.logits[row], alone.logits[0]) <= 1e-5
        assert relative(wide.logits, alone.logits) <= 1e-5
        hidden = alone.last_hidden_state[0]
        assert relative(together.last_hidden_state[row, :length], hidden) <= 1e-5
        assert relative(wide.last_hidden_state[0, :length], hidden) <= 1e-5
        assert not together.last_hidden_state[row, length:].any()
        assert not wide.last_hidden_state[0, length:].any()


@given(
    mask=hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 7))),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_masked_has_no_influence(
    run_small: Callable[..., ModelOutput], mask: np.ndarray, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    mask[:, 0] = True
    batch, length = mask.shape
    ids, others = generator.integers(0, len(VOCABULARY), (2, batch, length))
    types, other_types = generator.integers(0, 2, (2, batch, length))
    one = run_small(ids, mask, types)
    other = run_small(np.where(mask, ids, others), mask, np.where(mask, types, other_types))
    np.testing.assert_array_equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.last_hidden_state, other.last_hidden_state)
    assert not one.last_hidden_state[~mask].any()
    for row in range(batch):
        alone = run_small(ids[row : row + 1], mask[row : row + 1], types[row : row + 1])
        np.testing.assert_allclose(one.logits[row], alone.logits[0], rtol=0, atol=1e-5)
        hidden = one.last_hidden_state[row]
        np.testing.assert_allclose(hidden, alone.last_hidden_state[0], rtol=0, atol=1e-5)


def test_lists_and_arrays(small: Model) -> None:
    ids, mask, types = [[2, 9, 3], [2, 3, 0]], [[1, 1, 1], [1, 1, 0]], [[0, 1, 1], [0, 0, 0]]
    expected = small(ids, mask, types).logits
    for dtype in (np.int8, np.uint8, np.int32, np.int64, np.uint64):
        arrays = (np.array(values, dtype) for values in (ids, mask, types))
        np.testing.assert_array_equal(small(*arrays).logits, expected)
    np.testing.assert_array_equal(small(ids, np.array(mask, bool), types).logits, expected)
    tuples = tuple(map(tuple, ids))
    np.testing.assert_array_equal(small(tuples, mask, types).logits, expected)
    transposed = np.array(ids).T.copy().T  # not C-contiguous
    np.testing.assert_array_equal(small(transposed, mask, types).logits, expected)


def test_defaults(small: Model) -> None:
    ids = [[2, 9, 10, 3]]
    expected = small(ids, [[1] * 4], [[0] * 4]).logits
    np.testing.assert_array_equal(small(ids).logits, expected)
    assert relative(small(ids, None, [[0, 0, 1, 1]]).logits, expected) > 1e-3
    assert relative(small(ids, [[1, 1, 0, 1]]).logits, expected) > 1e-3


def test_arguments_are_left_as_they_are(small: Model) -> None:
    arrays = [np.array(x) for x in ([[2, 9, 3]], [[0, 1, 1]], [[0, 1, 1]])]
    before = [array.copy() for array in arrays]
    weights = {name: weight.copy() for name, weight in small.weights.items()}
    small(*arrays)
    assert all(np.array_equal(*pair) for pair in zip(arrays, before, strict=True))
    assert all(np.array_equal(small.weights[name], weights[name]) for name in weights)


def test_outputs_of_a_classifier(small: Model) -> None:
    output = small([[2, 9, 3], [2, 9, 3]])
    assert output.last_hidden_state.shape == (2, 3, 16)
    assert output.pooler_output.shape == (2, 16)
    assert output.logits.shape == (2, 2)
    assert (np.abs(output.pooler_output) <= 1).all()
    weight, bias = (small.weights[f"pooler.dense.{name}"] for name in ("weight", "bias"))
    pooled = np.tanh(output.last_hidden_state[:, 0] @ weight.T + bias)
    np.testing.assert_allclose(output.pooler_output, pooled, rtol=1e-5, atol=1e-6)
    weight, bias = (small.weights[f"classifier.{name}"] for name in ("weight", "bias"))
    np.testing.assert_allclose(output.logits, pooled @ weight.T + bias, rtol=1e-5, atol=1e-6)


def test_outputs_of_a_bare_encoder(bare: Model) -> None:
    output = bare([[2, 9, 3]])
    assert output.last_hidden_state.shape == (1, 3, 16)
    assert output.pooler_output.shape == (1, 16)
    assert output.logits is None
    weights = {name: w for name, w in bare.weights.items() if not name.startswith("pooler")}
    without = replace(bare, weights=weights)([[2, 9, 3]])
    assert without.pooler_output is None
    np.testing.assert_array_equal(without.last_hidden_state, output.last_hidden_state)


@pytest.mark.parametrize("labels", [("score",), ("a", "b", "c")])
def test_one_output_a_label(tmp_path: Path, labels: Sequence[str]) -> None:
    model = load(write_checkpoint(tmp_path, labels=labels))
    assert model([[2, 3]]).logits.shape == (1, len(labels))


def test_weight_bytes(small: Model) -> None:
    vocabulary, hidden, inner, positions = len(VOCABULARY), 16, 32, 128
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    parameters = (vocabulary + positions + 2) * hidden + 2 * hidden + 2 * layer
    parameters += hidden * hidden + hidden + 2 * hidden + 2
    assert small.weight_bytes == 4 * parameters


def test_weight_bytes_do_not_depend_on_the_file(tmp_path: Path, small: Model) -> None:
    halved = load(write_checkpoint(tmp_path, dtype="F16"))
    assert halved.weight_bytes == small.weight_bytes


def test_name_is_what_was_asked_for(tmp_path: Path, embedded: Model) -> None:
    assert embedded.name == EMBEDDED
    assert load(write_checkpoint(tmp_path)).name == str(tmp_path)
    assert load(str(tmp_path)).name == str(tmp_path)


def recording(model: Model, sites: list[str]) -> Model:
    def note(site: str, a: Any, b: Any, bias: Any, result: Any) -> None:
        assert (bias is None) == site.endswith(("scores", "context"))
        assert a.shape[-1] == b.shape[-2]
        assert result.shape == (*a.shape[:-1], b.shape[-1])
        sites.append(site)

    return noted(model, note)


def test_sites_are_what_an_engine_sees(small: Model, bare: Model) -> None:
    for model, heads in ((small, ["pooler.dense", "classifier"]), (bare, ["pooler.dense"])):
        seen: list[str] = []
        output = recording(model, seen)([[2, 9, 3]])
        np.testing.assert_array_equal(
            output.last_hidden_state, model([[2, 9, 3]]).last_hidden_state
        )
        assert seen == encoder_sites(model.config) + heads


def test_attention_is_called_once_for_each_group(small: Model) -> None:
    seen: list[str] = []
    mask = [[1, 1, 1], [1, 1, 0], [1, 1, 0]]  # two lengths
    recording(small, seen)([[2, 9, 3]] * 3, mask)
    assert set(seen) == {*encoder_sites(small.config), "pooler.dense", "classifier"}
    for site in encoder_sites(small.config):
        attends = site.endswith((".scores", ".context"))
        assert seen.count(site) == (2 if attends else 1), site


def test_site_names(small: Model) -> None:
    sites = encoder_sites(small.config)
    assert len(sites) == 16
    assert sites[:5] == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.key",
        "encoder.layer.0.attention.self.value",
        "encoder.layer.0.attention.scores",
        "encoder.layer.0.attention.context",
    ]
    assert sites[8:11] == [site.replace("layer.0", "layer.1") for site in sites[:3]]


# Errors


GOOD = [[2, 9, 3]]


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([[1.0, 1.0, 1.0]], "expected integers, found float64"),
        ([["a", "b", "c"]], "expected integers, found <U1"),
        ([[1, None, 1]], "expected integers, found object"),
        ([[1, 2**70, 1]], "expected integers, found object"),
        ([1, 1, 1], "expected shape (batch, length), found (3,)"),
        ([[[1, 1, 1]]], "expected shape (batch, length), found (1, 1, 3)"),
        (1, "expected shape (batch, length), found ()"),
        ([], "expected shape (batch, length), found (0,)"),
        ([[]], "expected shape (batch, length), found (1, 0)"),
        ([[1, 1], [1]], "expected rows of one length, found several"),
        ([[0, -1, 1]], "found -1 at row 0, column 1"),
    ],
)
def test_arrays_that_cannot_be_used(small: Model, name: str, value: Any, found: str) -> None:
    message = refusal(lambda: small(**({"input_ids": GOOD} | {name: value})))
    assert message.startswith(f"{name}: expected ")
    assert message.endswith(found)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("input_ids", len(VOCABULARY)), ("attention_mask", 2), ("token_type_ids", 2)],
)
def test_numbers_out_of_range(small: Model, name: str, limit: int) -> None:
    good, bad = np.zeros((2, 3), np.int64), np.zeros((2, 3), np.int64)
    good[:, 0] = bad[:, 0] = 1
    good[1, 2], bad[1, 2] = limit - 1, limit
    ids = np.full((2, 3), 5)
    assert small(**({"input_ids": ids} | {name: good})).logits.shape == (2, 2)
    message = refusal(lambda: small(**({"input_ids": ids} | {name: bad})))
    assert message == f"{name}: expected 0..{limit - 1}, found {limit} at row 1, column 2"


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids"])
@pytest.mark.parametrize("shape", [(1, 2), (1, 4), (2, 3), (3, 1)])
def test_shapes_that_differ(small: Model, name: str, shape: tuple[int, int]) -> None:
    message = refusal(lambda: small(GOOD, **{name: np.ones(shape, np.int64)}))
    assert message == f"{name}: expected shape (1, 3), found {shape}"


def test_too_long(small: Model) -> None:
    assert small(np.full((1, 128), 5)).logits.shape == (1, 2)
    message = refusal(lambda: small(np.full((1, 129), 5)))
    assert message == (
        "input_ids: expected at most 128 tokens (max_position_embeddings), found 129"
    )


def test_row_without_tokens(small: Model) -> None:
    message = refusal(lambda: small([[2, 3], [2, 3]], [[1, 1], [0, 0]]))
    assert message == "attention_mask: expected a token in each row, found none in row 1"
