"""Prove parity with transformers at full size: BERT-base, BERT-large, RoBERTa-base and so on.

For each size and head transformers writes a checkpoint of random weights. Both load it
and run in float32: transformers with eager attention, this package with its fast
engine. The script prints max|difference| / max|transformers'| of each output over
all tokens of a batch, the largest over the batches: pairs of
texts with padding and a row of one token, holes in the mask, and inputs of the
longest length. In brackets are the largest distances of this package and of
transformers from transformers in float64. The exit code is 1 if a difference exceeds 1e-5.

The script needs the extra ``peers``, and for BERT-large 8 GB of memory.

Usage: python scripts/prove_parity.py [--sizes bert-base,roberta-base] [--heads MaskedLM]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers

import bert_numpy

GOAL = 1e-5

_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_ROBERTA = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}

#: The class name and the config of each size, as in the papers' checkpoints.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("Bert", _BASE),
    "bert-large": ("Bert", _LARGE),
    "distilbert-base": ("DistilBert", {}),
    "roberta-base": ("Roberta", _BASE | _ROBERTA),
    "roberta-large": ("Roberta", _LARGE | _ROBERTA),
    "electra-base": ("Electra", _BASE | {"embedding_size": 768}),
    "electra-small": ("Electra", {}),
    "albert-base": ("Albert", _BASE),
    "mpnet-base": ("MPNet", {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}),
}

HEADS = (
    "Model",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForPreTraining",
)


def batches(config: bert_numpy.BertConfig) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of random tokens, padded with the model's padding."""
    generator = np.random.default_rng(0)

    def batch(mask: np.ndarray) -> dict[str, np.ndarray]:
        ids = generator.integers(5, config.vocab_size, mask.shape)
        arrays = {
            "input_ids": np.where(mask, ids, config.pad_token_id),
            "attention_mask": mask.astype(np.int64),
        }
        if config.type_vocab_size > 1:
            arrays["token_type_ids"] = np.cumsum(ids < np.median(ids), axis=1) // mask.shape[1]
        return arrays

    yield batch(np.arange(128) < np.array([[128], [77], [77], [1]]))
    yield batch(generator.random((2, 64)) < 0.7)
    yield batch(np.arange(config.max_length) < np.array([[config.max_length], [300]]))


def relative(x: np.ndarray, y: np.ndarray) -> float:
    """Compute ``max|x - y| / max|y|``."""
    return float(np.abs(x.astype(np.float64) - y).max() / np.abs(y).max())


def errors(size: str, head: str) -> dict[str, np.ndarray]:
    """Compute for each output: ours from theirs; ours, and theirs, from float64."""
    kind, options = SIZES[size]
    transformers.set_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options, attn_implementation="eager")
    peer = getattr(transformers, kind + head)(config).eval()
    assert peer.config._attn_implementation == "eager"
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = bert_numpy.load(folder)
    runs = []
    for batch in batches(model.config):
        mask = batch["attention_mask"] != 0
        arrays = {name: x[None] if head == "ForMultipleChoice" else x for name, x in batch.items()}
        tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
        with torch.no_grad():
            runs.append((mask, tensors, model(**arrays), peer(**tensors)))
    peer.double()
    found: dict[str, np.ndarray] = {}
    for mask, tensors, ours, theirs in runs:
        with torch.no_grad():
            exact = peer(**tensors)
        for name in theirs:
            outputs = getattr(ours, name), theirs[name].numpy(), exact[name].numpy()
            if outputs[0].shape[:2] == mask.shape:
                outputs = tuple(x[mask] for x in outputs)
            x, y, truth = outputs
            these = np.array([relative(x, y), relative(x, truth), relative(y, truth)])
            found[name] = np.maximum(found.get(name, 0), these)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: %(default)s")
    parser.add_argument("--heads", default=",".join(HEADS), help="default: %(default)s")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    worst = 0.0
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print("| size | class | difference of each output (ours, theirs from float64) | seconds |")
    print("| --- | --- | --- | --- |")
    for size in arguments.sizes.split(","):
        for head in arguments.heads.split(","):
            name = SIZES[size][0] + head
            if not hasattr(transformers, name):
                continue
            begin = time.perf_counter()
            found = errors(size, head)
            # NumPy's maximum is used because it passes NaN on.
            worst = float(np.max([worst, *(value[0] for value in found.values())]))
            shown = ", ".join(
                f"{key} {value[0]:.1e} ({value[1]:.1e}, {value[2]:.1e})"
                for key, value in found.items()
            )
            seconds = time.perf_counter() - begin
            print(f"| {size} | {name} | {shown} | {seconds:.0f} |", flush=True)
    print(f"largest: {worst:.1e}; goal: {GOAL:.0e}")
    return int(not worst <= GOAL)


if __name__ == "__main__":
    sys.exit(main())
