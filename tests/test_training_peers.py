"""Training compared with torch: gradients by its autograd, losses, AdamW, and a whole training."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import hard_batches
from test_architectures import CASES, KINDS, LONGEST, WORDS, Case, saved
from test_training import write_encoder_with_dense

from bert_numpy import embed, load, load_tokenizer
from bert_numpy.model.config import Dense, Pooling
from bert_numpy.tasks.tokenization import EncodedText, pad
from bert_numpy.training import gradients
from bert_numpy.training.adamw import AdamW, adamw_start, adamw_step, clip_factor, global_norm, rate
from bert_numpy.training.fit import Training, fit, shuffled_batches
from bert_numpy.training.heads import with_head
from bert_numpy.training.losses import cross_entropy, loss_of, mean_squared_error
from bert_numpy.training.products import FloatProducts
from bert_numpy.training.save import save_trained
from bert_numpy.training.tape import tape
from npfp8 import golden

#: The goal: differences of a gradient, relative to the largest element of all gradients.
PARITY = 1e-5

BATCHES = ("right padding", "holes", "position 0 masked", "single token")


# Every operation


@dataclass(frozen=True)
class Operation:
    """An operation in torch, the shapes of its operands, and our gradients of them.

    ``ours`` takes the operands, the result, and its gradient.
    """

    theirs: Callable[..., Any]
    ours: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


def operations(torch: Any) -> dict[str, Operation]:
    functional, at = torch.nn.functional, np.array([3, 0, 3, 4, 3])
    buckets = np.arange(24).reshape(2, 4, 3) % 7
    places = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    weights = torch.arange(1.0, 5.0)[:, None]
    products = FloatProducts()
    site: Any = None
    found = {
        "product": Operation(
            torch.matmul,
            lambda a, b, y, dy: products.backward(site, products.forward(site, a, b)[1], dy),
            ((2, 3, 5, 4), (2, 3, 4, 6)),
        ),
        "add": Operation(
            torch.add,
            lambda a, b, y, dy: [gradients.add(dy, x.shape) for x in (a, b)],
            ((3, 2, 4, 5), (1, 2, 4, 5)),
        ),
        "bias": Operation(
            lambda x, b: x + b, lambda x, b, y, dy: (dy, gradients.bias(dy)), ((2, 3, 4), (4,))
        ),
        "multiply": Operation(
            lambda x: x * 0.125, lambda x, y, dy: [gradients.multiply(dy, 0.125)], ((3, 4),)
        ),
        "softmax": Operation(
            lambda x: functional.softmax(x, -1),
            lambda x, y, dy: [gradients.softmax(y, dy)],
            ((2, 3, 9),),
        ),
        "layer_norm": Operation(
            lambda x, w, b: functional.layer_norm(x, (8,), w, b, 1e-5),
            lambda x, w, b, y, dy: gradients.layer_norm(x, w, 1e-5, dy),
            ((6, 8), (8,), (8,)),
        ),
        "normalize": Operation(
            lambda x: functional.normalize(x, dim=-1, eps=1e-12),
            lambda x, y, dy: [gradients.normalize(x, y, dy)],
            ((4, 7),),
        ),
        "concatenate": Operation(
            lambda *x: torch.cat(x, -1),
            lambda a, b, c, y, dy: gradients.concatenate([2, 5, 1], dy),
            ((3, 2), (3, 5), (3, 1)),
        ),
        "gather": Operation(
            lambda table: functional.embedding(torch.from_numpy(at), table),
            lambda table, y, dy: [gradients.rows(at, 6, dy)],
            ((6, 4),),
        ),
        "position_bias": Operation(
            lambda table: table[torch.from_numpy(buckets)].permute(0, 3, 1, 2),
            lambda table, y, dy: [gradients.position_bias(buckets, 7, dy)],
            ((7, 3),),
        ),
    }
    functions = {
        **{"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu},
        "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
        **{"tanh": torch.tanh, "sigmoid": torch.sigmoid},
    }
    for name, function in functions.items():
        found[name] = Operation(
            lambda x, f=function: f(x * 3),
            lambda x, y, dy, name=name: [gradients.activation(name, x * 3, y, dy) * 3],
            ((40, 50),),
        )
    poolings = {
        "mean": lambda x: x.mean(-2),
        "mean_sqrt_len_tokens": lambda x: x.sum(-2) / x.shape[-2] ** 0.5,
        "weightedmean": lambda x: (x * weights).sum(-2) / weights.sum(),
        "max": lambda x: x.max(-2)[0],
        "lasttoken": lambda x: x[..., -1, :],
    }
    assert poolings.keys() == golden.POOLINGS.keys()
    for name, function in poolings.items():
        found[f"pool {name}"] = Operation(
            function,
            lambda x, y, dy, name=name: [gradients.POOLINGS[name](x, places, dy)],
            ((2, 4, 5),),
        )
    return found


def test_every_operation(torch: Any) -> None:
    generator = np.random.default_rng(0)
    for name, operation in operations(torch).items():
        arrays = [generator.normal(size=s).astype(np.float32) for s in operation.shapes]
        tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
        result = operation.theirs(*tensors)
        dy = generator.normal(size=tuple(result.shape)).astype(np.float32)
        result.backward(torch.from_numpy(dy))
        ours = operation.ours(*arrays, result.detach().numpy(), dy)
        for gradient, tensor in zip(ours, tensors, strict=True):
            expected = tensor.grad.numpy()
            assert gradient.dtype == np.float32, name
            assert gradient.shape == expected.shape, name
            assert np.abs(gradient - expected).max() <= PARITY * np.abs(expected).max(), name


# Every family and head


@pytest.fixture(scope="module", params=CASES, ids="".join)
def case(
    request: pytest.FixtureRequest, torch: Any, quiet_transformers: Any, tmp_path_factory: Any
) -> Case:
    kind, head = request.param
    folder: Path = tmp_path_factory.mktemp(kind + head)
    saved(quiet_transformers, torch, folder, kind, head)
    return Case(kind, head, folder, torch, quiet_transformers)


def weighted(case: Case, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A random gradient for each output of transformers': the loss is their weighted sum."""
    generator = np.random.default_rng(1)
    batch = case.fit(batch)
    mask = batch.get("attention_mask", np.ones_like(batch["input_ids"])) != 0
    found = {}
    for name, y in case.theirs(batch).items():
        dy = generator.normal(size=y.shape).astype(np.float32)
        if y.shape[:2] == mask.shape and case.head != "ForMultipleChoice":
            dy[~mask] = 0  # theirs computes padding, too
        found[name] = dy
    return found


def count_padding(case: Case, peer: Any) -> None:
    """Let torch compute the gradient of the padding's embedding, too."""
    for module in peer.modules():
        if isinstance(module, case.torch.nn.Embedding):
            module.padding_idx = None


def their_gradients(case: Case, batch: dict[str, np.ndarray], dys: Any) -> dict[str, np.ndarray]:
    """Compute torch's in float64, so that the roundings of a float32 run are ours alone."""
    peer = deepcopy(case.peer).double()
    count_padding(case, peer)
    tensors = {name: case.torch.from_numpy(x) for name, x in case.fit(batch).items()}
    output = peer(**tensors)
    total = 0
    for name, dy in dys.items():
        y = output[name]
        at = case.torch.from_numpy(dy != 0)
        total = total + (y[at] * case.torch.from_numpy(dy)[at].double()).sum()
    total.backward()
    grads: dict[int, np.ndarray] = {}
    return {  # of one parameter with two names one array
        name: grads.setdefault(id(parameter), parameter.grad.numpy())
        for name, parameter in peer.named_parameters(remove_duplicate=False)
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", BATCHES)
def test_gradients(case: Case, name: str) -> None:
    batch = hard_batches(WORDS, LONGEST)[name]
    dys = weighted(case, batch)
    theirs = their_gradients(case, batch, dys)
    ours = tape(case.model, **case.fit(batch)).gradients(dys)
    largest = max(np.abs(x).max() for x in theirs.values())
    seen = set()
    for parameter, gradient in ours.items():
        names = stored(case, parameter)
        found = next(other for other in names if other in theirs)
        seen.add(id(theirs[found]))
        assert gradient.dtype == np.float32
        assert gradient.shape == theirs[found].shape
        error = np.abs(gradient.astype(np.float64) - theirs[found]).max()
        assert error <= PARITY * largest, (parameter, error / largest)
    assert all(not x.any() for x in theirs.values() if id(x) not in seen)


def stored(case: Case, parameter: str) -> list[str]:
    """The names that a parameter may have in transformers."""
    config = case.model.config
    prefix = "" if case.head == "Model" else config.description.prefix
    encoder = ("embeddings", "encoder.", "transformer.", "pooler.")
    return [
        prefix + other if other.startswith(encoder) else other
        for other in config.description.stored_names(parameter, config.head)
    ]


@pytest.mark.parametrize("name", ["gelu_new", "relu", "silu"])
def test_activations(torch: Any, quiet_transformers: Any, tmp_path: Path, name: str) -> None:
    saved(quiet_transformers, torch, tmp_path, "Bert", "ForMaskedLM", hidden_act=name)
    test_gradients(Case("Bert", "ForMaskedLM", tmp_path, torch, quiet_transformers), "holes")


@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_vectors(
    torch: Any, quiet_transformers: Any, tmp_path: Path, normalize: bool
) -> None:
    """All poolings side by side, and a Dense module."""
    saved(quiet_transformers, torch, tmp_path, "Bert", "Model")
    case = Case("Bert", "Model", tmp_path, torch, quiet_transformers)
    modes = ("cls", *golden.POOLINGS)
    generator = np.random.default_rng(0)
    shape, site = (7, 24 * len(modes)), "2_Dense.linear"
    dense = {
        f"{site}.weight": generator.normal(size=shape).astype(np.float32) / 8,
        f"{site}.bias": generator.normal(size=7).astype(np.float32),
    }
    pooling = Pooling("+".join(modes), normalize, (Dense(site, 7, "tanh", normalize),))
    config = replace(case.model.config, pooling=pooling)
    model = replace(case.model, config=config, weights=dict(case.model.weights) | dense)
    batch = hard_batches(WORDS, LONGEST)["right padding"]
    dy = generator.normal(size=(len(batch["input_ids"]), 7)).astype(np.float32)
    ours = tape(model, **batch).gradients({"sentence_embedding": dy})
    functional, normal = torch.nn.functional, torch.nn.functional.normalize
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    count_padding(case, case.peer)
    hidden = case.peer(**tensors).last_hidden_state
    of_dense = {name: torch.from_numpy(w).requires_grad_() for name, w in dense.items()}
    vectors = []
    for x, mask in zip(hidden, batch["attention_mask"], strict=True):
        kept = x[: mask.sum()]
        places = torch.arange(1.0, len(kept) + 1)[:, None]
        pooled = {
            "cls": kept[0],
            "mean": kept.mean(0),
            "mean_sqrt_len_tokens": kept.sum(0) / len(kept) ** 0.5,
            "weightedmean": (kept * places).sum(0) / places.sum(),
            "max": kept.max(0)[0],
            "lasttoken": kept[-1],
        }
        vector = torch.cat([pooled[mode] for mode in modes])
        vectors.append(normal(vector, dim=-1) if normalize else vector)
    y = torch.tanh(functional.linear(torch.stack(vectors), *of_dense.values()))
    (normal(y, dim=-1) if normalize else y).backward(torch.from_numpy(dy))
    theirs = {
        name: x.grad.numpy() for name, x in case.peer.named_parameters() if x.grad is not None
    }
    theirs |= {name: x.grad.numpy() for name, x in of_dense.items()}
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(x).max() for x in theirs.values())
    for name, gradient in ours.items():
        assert np.abs(gradient - theirs[name]).max() <= PARITY * largest, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_saved_models_are_theirs(
    torch: Any, quiet_transformers: Any, tmp_path: Path, kind: str, head: str
) -> None:
    """transformers loads what is written: a new classifier, or all that the source has."""
    source = saved(quiet_transformers, torch, tmp_path / "source", kind, "ForMaskedLM")
    model = load(source)
    if head == "ForSequenceClassification":
        model = with_head(model, "sequence classification", ["a", "b", "c"])
    save_trained(model, source, tmp_path / "out")
    known = getattr(quiet_transformers, kind + head)
    _, report = known.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    case = Case(kind, head, tmp_path / "out", torch, quiet_transformers)
    case.check(hard_batches(WORDS, LONGEST)["right padding"])


@pytest.mark.parametrize("bias", [False, True])
def test_a_saved_sentence_encoder(
    torch: Any, quiet_transformers: Any, tmp_path: Path, bias: bool
) -> None:
    """sentence-transformers computes the same vectors from the folder."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = write_encoder_with_dense(tmp_path / "source", bias)
    model, generator = load(source), np.random.default_rng(0)
    moved = {
        name: w + generator.normal(0, 0.1, np.shape(w)).astype(np.float32)
        for name, w in model.weights.items()
    }
    model = replace(model, weights=moved)
    save_trained(model, source, tmp_path / "out")
    texts = ["a good film", "the plot is not good", "movie"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = theirs.encode(texts, show_progress_bar=False)
    ours = embed(load(tmp_path / "out"), load_tokenizer(tmp_path / "out"), texts)
    assert found.shape == ours.shape == (3, 5)
    assert np.abs(found - ours).max() < 1e-5
    assert np.abs(ours - embed(load(source), load_tokenizer(source), texts)).max() > 0.01


# Losses and AdamW


def test_cross_entropy(torch: Any) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (4, 6, 5)).astype(np.float32)
    labels = generator.integers(0, 5, (4, 6))
    labels[1, 2:] = -100
    x = torch.from_numpy(logits).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(
        x.reshape(-1, 5), torch.from_numpy(labels).reshape(-1)
    )
    theirs.backward()
    value, gradient = cross_entropy(logits, labels)
    assert value == pytest.approx(theirs.item(), rel=1e-6)
    assert np.abs(gradient - x.grad.numpy()).max() <= 1e-6


def test_mean_squared_error(torch: Any) -> None:
    scores, labels = np.float32([[1], [2.5], [-3]]), np.array([0.5, 5, -2])
    x = torch.from_numpy(scores).requires_grad_()
    theirs = torch.nn.functional.mse_loss(x.squeeze(), torch.from_numpy(labels).float())
    theirs.backward()
    value, gradient = mean_squared_error(scores, labels)
    assert value == pytest.approx(theirs.item(), rel=1e-6)
    assert np.abs(gradient - x.grad.numpy()).max() <= 1e-6


#: Of each head with labels: the labels of three texts as transformers takes them.
LABELS: dict[str, dict[str, Any]] = {
    "ForSequenceClassification": {"labels": [2, 0, 1]},
    "ForQuestionAnswering": {"start_positions": [3, 0, 7], "end_positions": [5, 0, 7]},
    "ForTokenClassification": {"labels": [[0, 1, 2, -100] * 6] * 3},
}


@pytest.mark.parametrize("head", LABELS)
def test_losses_of_heads(torch: Any, quiet_transformers: Any, tmp_path: Path, head: str) -> None:
    saved(quiet_transformers, torch, tmp_path, "Bert", head)
    case = Case("Bert", head, tmp_path, torch, quiet_transformers)
    batch = hard_batches(WORDS, LONGEST)["no padding"]
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    labels = {name: np.array(x) for name, x in LABELS[head].items()}
    theirs = case.peer(**tensors, **{name: torch.from_numpy(x) for name, x in labels.items()})
    ours = np.stack(list(labels.values()), axis=-1) if len(labels) > 1 else labels["labels"]
    value, _ = loss_of(case.model.config)(tape(case.model, **batch).outputs, ours)
    assert value == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_adamw(torch: Any) -> None:
    """The same weights after 40 steps, with decay on matrices alone, and clipped gradients."""
    generator = np.random.default_rng(0)
    start = {"w": generator.normal(size=(7, 9)), "b": generator.normal(size=9)}
    weights = {name: w.astype(np.float32) for name, w in start.items()}
    tensors = {name: torch.from_numpy(w.copy()).requires_grad_() for name, w in weights.items()}
    constants = AdamW(0.85, 0.97, 1e-7, 0.1)
    groups = [
        {"params": [tensors["w"]], "weight_decay": 0.1},
        {"params": [tensors["b"]], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, betas=(0.85, 0.97), eps=1e-7)
    state = adamw_start(weights)
    for step in range(1, 41):
        scale = 10.0 ** generator.integers(-3, 2)
        given = {
            n: (scale * generator.normal(size=w.shape)).astype(np.float32)
            for n, w in weights.items()
        }
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(given[name].copy())
        for group in theirs.param_groups:
            group["lr"] = 0.01 * rate(step, 40, 0.25)
        norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        assert global_norm(given) == pytest.approx(norm.item(), rel=1e-5)
        theirs.step()
        factor = clip_factor(global_norm(given), 1.0)
        state = adamw_step(weights, given, state, constants, 0.01 * rate(step, 40, 0.25), factor)
    for name, tensor in tensors.items():
        assert np.abs(weights[name] - start[name]).max() > 0.05
        assert np.abs(weights[name] - tensor.detach().numpy()).max() <= 1e-5, name


def test_a_whole_training(torch: Any, quiet_transformers: Any, tmp_path: Path) -> None:
    """The losses of transformers' model and torch's AdamW on the same batches."""
    saved(quiet_transformers, torch, tmp_path, "Bert", "ForSequenceClassification")
    case = Case("Bert", "ForSequenceClassification", tmp_path, torch, quiet_transformers)
    generator = np.random.default_rng(0)
    encoded = [
        EncodedText(tuple(map(int, generator.integers(1, WORDS, length))), (0,) * length, False)
        for length in generator.integers(3, 20, 48)
    ]
    labels = generator.integers(0, 3, 48)
    training = Training(epochs=4, batch_size=8, learning_rate=2e-3, frozen=("embeddings.*",))
    fitted = fit(load(tmp_path), encoded, labels, training)
    model = case.peer
    model.bert.embeddings.requires_grad_(False)
    free = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in free if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    lengths = np.array([len(one.input_ids) for one in encoded])
    losses = []
    for step, rows in enumerate(islice(shuffled_batches(lengths, 8, 0), 24), 1):
        batch = {n: torch.from_numpy(x) for n, x in pad([encoded[row] for row in rows]).items()}
        loss = model(**batch, labels=torch.from_numpy(labels[rows])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate(step, 24, 0.1)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1.5
    assert fitted.losses == pytest.approx(losses, rel=1e-3, abs=1e-4)
