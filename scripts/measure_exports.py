"""Compare a quantized model with its checkpoint in transformers and with its ONNX graph.

For each recipe a model is calibrated and written as a quantized checkpoint and as an ONNX
file. Then this package and the others run on the first examples of a task's development
set. Each line has the relative distance of the logits, norm(theirs - ours) / norm(ours),
the flips (predictions that differ from our quantized model's), and the largest margin
between our two best logits at a flip. The script needs the extra "peers".

transformers makes bfloat16 numbers of weights in block formats, and does not quantize the
inputs of their layers: our weights are rounded to it for the comparison, and our linear layers
alone have inputs in float32. ONNX has no block formats.

    python scripts/measure_exports.py MODEL --task sst2 --data glue/SST-2
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from onnx.reference import ReferenceEvaluator

import bert_numpy
from bert_numpy.checkpoints.quantized import save_quantized
from bert_numpy.evaluation.evaluate import batches, predict_logits
from bert_numpy.evaluation.job import prepare, with_calibration
from bert_numpy.export.onnx import onnx_model
from bert_numpy.quantization.presets import preset
from bert_numpy.quantization.recipe import SiteRecipe
from npfp8 import QuantizedTensor
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.storage import read_header

Batch = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipes", default="e4m3,e4m3-channel,e4m3-token,int8,int8-token")
    parser.add_argument("--limit", type=int, default=64)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()

    recipes = [preset(name) for name in arguments.recipes.split(",")]
    job = prepare(arguments.model, arguments.task, arguments.data, limit=arguments.limit)
    job = with_calibration(job, recipes)
    floats = predict_logits(job.model, job.encoded)
    print(f"{job.model.name}, {job.task.name}, {len(job.encoded)} examples")
    for recipe in recipes:
        model = bert_numpy.apply_recipe(job.model, recipe, job.calibration)
        ours = predict_logits(model, job.encoded)
        print(f"{recipe.name}")
        print(f"  {'float32, not quantized':<42}{compared(floats, ours)}")
        blocks = recipe.linear.b.block_format is not None
        linear = replace(recipe, scores=SiteRecipe(), context=SiteRecipe(), arithmetic="float32")
        if blocks:
            linear = replace(linear, linear=SiteRecipe(b=recipe.linear.b))
        of_layers = bert_numpy.apply_recipe(job.model, linear, job.calibration)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            save_quantized(model, arguments.model, out)
            share, size = linear_share(out / "model.safetensors", model)
            print(f"  {'linear weights':<42}{share:.4f} of float32; file {size:,} bytes")
            theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
            found = run(job.encoded, partial(in_torch, theirs))
            exact = same_weights(theirs, model)
        print(f"  {'transformers: weights that are ours':<42}{exact}")
        print(f"  {'transformers, to ours':<42}{compared(found, ours)}")
        expected = predict_logits(of_layers, job.encoded)
        print(f"  {'transformers, to our linear layers alone':<42}{compared(found, expected)}")
        if blocks:
            continue
        proto = onnx_model(model)
        evaluator = ReferenceEvaluator(proto)
        found = run(job.encoded, partial(in_session, evaluator))
        print(f"  {'ONNX, reference evaluator':<42}{compared(found, ours)}")
        for title, level in (("not optimized", "ORT_DISABLE_ALL"), ("optimized", "ORT_ENABLE_ALL")):
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            found = run(job.encoded, partial(in_session, session))
            print(f"  {f'ONNX, onnxruntime, {title}':<42}{compared(found, ours)}")
    return 0


def run(encoded: Any, forward: Callable[[Batch], np.ndarray]) -> np.ndarray:
    logits: dict[int, np.ndarray] = {}
    for rows, inputs in batches(encoded, 16):
        logits |= dict(zip(rows, forward(inputs), strict=True))
    return np.stack([logits[row] for row in range(len(encoded))])


def in_torch(model: Any, inputs: Batch) -> np.ndarray:
    with torch.no_grad():
        return model(**{name: torch.from_numpy(x) for name, x in inputs.items()}).logits.numpy()


def in_session(session: Any, inputs: Batch) -> np.ndarray:
    return session.run(None, inputs)[0]


def compared(found: np.ndarray, ours: np.ndarray) -> str:
    flipped = found.argmax(axis=1) != ours.argmax(axis=1)
    best = np.sort(ours, axis=1)
    margin = (best[:, -1] - best[:, -2])[flipped].max(initial=0)
    text = f"distance {np.linalg.norm(found - ours) / np.linalg.norm(ours):.1e}"
    return f"{text}, {flipped.sum()} flips" + (f", margin {margin:.3f}" if margin else "")


def same_weights(theirs: Any, model: bert_numpy.QuantizedModel) -> str:
    """Count the quantized weights that are the same to the last bit of their type."""
    parameters = {name.removeprefix("bert."): x for name, x in theirs.named_parameters()}
    coded = {name: x for name, x in model.weights.items() if not isinstance(x, np.ndarray)}
    same = sum(
        np.array_equal(parameters[name].detach().numpy(), as_there(weight))
        for name, weight in coded.items()
    )
    return f"{same} of {len(coded)}"


def as_there(weight: QuantizedTensor) -> np.ndarray:
    """Return a weight as compressed-tensors makes numbers of it."""
    values = weight.dequantize()
    return values if weight.block_format is None else round_to_bfloat16(values)


def linear_share(path: Path, model: bert_numpy.QuantizedModel) -> tuple[float, int]:
    """Return the encoder's linear weights' bytes over their float32 bytes, and the file's size."""
    endings = (".weight", ".weight_packed", "_scale", "_zero_point")
    stored = sum(
        tensor.nbytes
        for key, tensor in read_header(path).items()
        if ".encoder." in key and "LayerNorm" not in key and key.endswith(endings)
    )
    floats = sum(
        4 * weight.size
        for name, weight in model.weights.items()
        if name.startswith("encoder.") and name.endswith(".weight") and "LayerNorm" not in name
    )
    return stored / floats, path.stat().st_size


if __name__ == "__main__":
    raise SystemExit(main())
