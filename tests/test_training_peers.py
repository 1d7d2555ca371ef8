"""Gradients compared with torch's autograd, for every family and head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import hard_batches
from test_architectures import CASES, LONGEST, WORDS, Case, saved

from bert_numpy.training.tape import tape

#: The goal: differences of a gradient, relative to the largest element of all gradients.
PARITY = 1e-5

BATCHES = ("right padding", "holes", "position 0 masked", "single token")


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


def their_gradients(case: Case, batch: dict[str, np.ndarray], dys: Any) -> dict[str, np.ndarray]:
    case.peer.zero_grad()
    for module in case.peer.modules():
        if isinstance(module, case.torch.nn.Embedding):
            module.padding_idx = None  # torch leaves out the gradient of the padding's row
    tensors = {name: case.torch.from_numpy(x) for name, x in case.fit(batch).items()}
    output = case.peer(**tensors)
    total = 0
    for name, dy in dys.items():
        y = output[name]
        at = case.torch.from_numpy(dy != 0)
        total = total + (y[at] * case.torch.from_numpy(dy)[at]).sum()
    total.backward()
    grads: dict[int, np.ndarray] = {}
    return {  # of one parameter with two names one array
        name: grads.setdefault(id(parameter), parameter.grad.numpy())
        for name, parameter in case.peer.named_parameters(remove_duplicate=False)
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
