"""Compare a quantized BERT on the CPU with a torch implementation on a Hopper GPU, bit for bit.

    python scripts/prove_bert_cuda.py MODEL --data FILE --calibration-data FILE [--json FILE]

The script needs an H100 or H200 and torch. MODEL is a checkpoint for SST-2, and the files
have SST-2's layout. The model is quantized by a recipe with E4M3 or E5M2 and one scale per
tensor, and accumulates as "hopper" and as "hopper-fast". It is golden, so its numbers are
the same on every machine. While it runs, torch computes every step again on the GPU from
the same inputs as our model, so that each step is compared on its own:

- The codes of activations, from their bfloat16 values and the scale, must be equal.
- Every quantized product by `torch._scaled_mm`, with the `use_fast_accum` of the mode, must
  be equal, both in float32 and in bfloat16. It takes only matrices whose axes are multiples
  of 16, so the attention's are padded with zeros. The zeros do not affect the rule, and add
  no block of 32. There is one call per head.
- Linear layers, with their bias added in float32 and rounded to bfloat16, must be equal.
  torch's own bias has to be bfloat16; it is compared, too, with the rounded bias on both sides.
- Everything between the products, in bfloat16 with float32 inside (ours is rounded from
  float64), must be within one unit in the last place of bfloat16, or an absolute 1e-6.

Then torch runs the whole model alone, and its logits are compared with ours.
The pooler and the classifier are not quantized: they are products in float32, on the CPU.
The exit code is 1 if a step fails its comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.engines.functions import parameter, parameters
from bert_numpy.engines.noting import NotingEngine
from bert_numpy.engines.site import Site
from bert_numpy.evaluation.evaluate import batches, predict_logits
from bert_numpy.evaluation.job import prepare, with_calibration
from bert_numpy.finite import require_finite
from bert_numpy.model.model import EngineOf, Model
from bert_numpy.model.packing import Batch
from bert_numpy.quantization import engine as quantized_engine
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.quantization.presets import preset
from npfp8 import QuantizedTensor, matmul
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.files import replaced_file

MODES = ("hopper", "hopper-fast")
DTYPES = {"E4M3FN": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}

#: The largest error of a function in bfloat16: in its last place, or absolute near zero.
ULPS, ABSOLUTE = 1.0, 1e-6


# The torch implementation


@dataclass(frozen=True)
class Torch:
    """The steps that torch computes, from arrays to arrays; all arithmetic is on the device."""

    device: str
    fast: bool

    def put(self, x: np.ndarray) -> torch.Tensor:
        """Copy an array to the device."""
        return torch.from_numpy(np.array(x, order="C")).to(self.device)

    def bfloat16(self, x: np.ndarray) -> torch.Tensor:
        """Copy an array of bfloat16 values to the device."""
        return self.put(x).to(torch.bfloat16)

    def codes(self, x: np.ndarray, scale: Scale, fmt: str) -> torch.Tensor:
        """Quantize bfloat16 values: the float32 quotient, clamped, to nearest."""
        dtype = DTYPES[fmt]
        largest = torch.finfo(dtype).max
        quotients = self.bfloat16(x).float() / self.put(scale.scale)
        return quotients.clamp(-largest, largest).to(dtype)

    def held(self, x: QuantizedTensor) -> torch.Tensor:
        """Copy the codes of a tensor to the device, in their own layout."""
        return self.put(x.codes).view(DTYPES[x.fmt.name])

    def product(
        self, a: torch.Tensor, b: torch.Tensor, scales: tuple[Any, Any], **options: Any
    ) -> torch.Tensor:
        """Multiply (..., M, K) and (..., K, N) by `torch._scaled_mm`, matrix by matrix."""
        (m, k), n = a.shape[-2:], b.shape[-1]
        left = padded(a.reshape(-1, m, k))
        right = padded(b.mT.reshape(-1, n, k))  # the instruction takes it transposed
        scale_a, scale_b = (self.put(np.asarray(scale, np.float32)) for scale in scales)
        results = [
            torch._scaled_mm(
                x, y.t(), scale_a=scale_a, scale_b=scale_b, use_fast_accum=self.fast, **options
            )[:m, :n]
            for x, y in zip(left, right, strict=True)
        ]
        return torch.stack(results).reshape(*a.shape[:-1], n)

    # As in `bert_numpy.engines.engine.Engine`, except that layer_norm gets its parameters.

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:  # noqa: D102
        return array(self.put(x) + self.put(y))

    def multiply(self, x: np.ndarray, factor: float) -> np.ndarray:  # noqa: D102
        return array(self.bfloat16(x) * float(np.float32(factor)))

    def softmax(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return array(torch.softmax(self.bfloat16(x), -1))

    def layer_norm(  # noqa: D102
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
    ) -> np.ndarray:
        parameters = (self.put(weight), self.put(bias))
        normalised = torch.nn.functional.layer_norm(
            self.bfloat16(x).float(), x.shape[-1:], *parameters, eps
        )
        return array(normalised)

    def activation(self, name: str, x: np.ndarray) -> np.ndarray:  # noqa: D102
        function = {"gelu": torch.nn.functional.gelu, "tanh": torch.tanh}[name]
        return array(function(self.bfloat16(x)))


def padded(x: torch.Tensor) -> torch.Tensor:
    """Pad matrices (count, rows, columns) with zeros up to multiples of 16."""
    rows, columns = (-size % 16 for size in x.shape[1:])
    codes = torch.nn.functional.pad(x.view(torch.uint8), (0, columns, 0, rows))
    return codes.contiguous().view(x.dtype)


def array(x: torch.Tensor) -> np.ndarray:
    """Convert a tensor to a float32 array of bfloat16 values, rounding if necessary."""
    return x.to(torch.bfloat16).float().cpu().numpy()


# The comparison


@dataclass
class Count:
    """The number of elements compared, of calls, and of differences."""

    calls: int = 0
    elements: int = 0
    different: int = 0
    beyond: int = 0  # the tolerance
    largest_ulps: float = 0.0  # where the error is above the absolute tolerance


@dataclass
class Tally:
    """The counts by the kind of comparison."""

    counts: dict[str, Count] = field(default_factory=dict)

    def same(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Count elements whose bits differ; none may."""
        assert ours.dtype == theirs.dtype
        bits = f"u{ours.itemsize}"
        x, y = (np.ascontiguousarray(z).view(bits) for z in (ours, theirs))
        wrong = int(np.count_nonzero(x != y))
        count = self._counted(name, ours, wrong)
        if wrong and not count.beyond:
            index = tuple(int(i) for i in np.argwhere(x != y)[0])
            print(f"  {name}: {wrong} differ, first at {index}: npfp8 {ours[index]!r}, "
                  f"torch {theirs[index]!r}")  # fmt: skip
        count.beyond += wrong

    def close(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Count bfloat16 results that differ, and by more than the tolerance."""
        count = self._counted(name, ours, int(np.count_nonzero(ours != theirs)))
        error = np.abs(ours.astype(np.float64) - theirs)
        exponents = np.where(ours == 0, -126, np.maximum(np.frexp(ours)[1] - 1, -126))
        ulps = np.where(error <= ABSOLUTE, 0, error / np.ldexp(1.0, exponents - 7))
        count.beyond += int(np.count_nonzero(~(ulps <= ULPS)))
        count.largest_ulps = max(count.largest_ulps, float(ulps.max(initial=0)))

    def _counted(self, name: str, x: np.ndarray, different: int) -> Count:
        count = self.counts.setdefault(name, Count())
        count.calls += 1
        count.elements += x.size
        count.different += different
        return count


def kind(site: str) -> str:
    """Return the kind under which a site's results are counted."""
    return site.rpartition(".")[2] if site.endswith(("scores", "context")) else "linear"


@dataclass(frozen=True, eq=False)
class ComparingEngine(Engine[np.ndarray]):
    """An engine that computes the steps between products by ``inner``, and compares torch's."""

    inner: Engine[np.ndarray]
    gpu: Torch
    weights: Weights
    tally: Tally

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compare the sum."""
        return self.compared("add", self.inner.add(x, y), self.gpu.add(x, y))

    def multiply(self, x: np.ndarray, factor: float) -> np.ndarray:
        """Compare the product with a number."""
        ours = self.inner.multiply(x, factor)
        return self.compared("multiply", ours, self.gpu.multiply(x, factor))

    def softmax(self, x: np.ndarray) -> np.ndarray:
        """Compare the softmax."""
        return self.compared("softmax", self.inner.softmax(x), self.gpu.softmax(x))

    def layer_norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        """Compare the normalization."""
        theirs = self.gpu.layer_norm(x, *parameters(self.weights, name), eps)
        return self.compared("layer_norm", self.inner.layer_norm(name, x, eps), theirs)

    def activation(self, name: str, x: np.ndarray) -> np.ndarray:
        """Compare the function, counted under its name."""
        ours = self.inner.activation(name, x)
        return self.compared(name, ours, self.gpu.activation(name, x))

    def compared(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Count the differences, and return our result."""
        self.tally.close(name, ours, theirs)
        return ours


def compared_logits(model: QuantizedModel, gpu: Torch, tally: Tally, job: Any) -> np.ndarray:
    """Compute the model's own logits, and compare torch's steps on the same inputs."""
    products: list[tuple[QuantizedTensor, QuantizedTensor, np.ndarray]] = []

    def kept(a: QuantizedTensor, b: QuantizedTensor, accumulate: str) -> np.ndarray:
        result = matmul(a, b, accumulate)
        products.append((a, b, result.copy()))  # the bias is added in place
        return result

    def note(site: str, a: np.ndarray, b: Any, bias: np.ndarray | None, result: np.ndarray) -> None:
        if site not in model.plans:
            return
        qa, qb, product = products.pop(0)
        operands = torch_operands(gpu, model.plans[site], qa, qb, a, b)
        for ours, theirs in list(zip((qa, qb), operands, strict=True))[: 1 + (bias is None)]:
            tally.same("codes", ours.codes, theirs.view(torch.uint8).cpu().numpy())
        scales = (qa.scale, qb.scale)
        found = gpu.product(*operands, scales, out_dtype=torch.float32)
        tally.same(f"{kind(site)}: float32 product", product, found.cpu().numpy())
        short = gpu.product(*operands, scales, out_dtype=torch.bfloat16)
        tally.same(f"{kind(site)}: bfloat16 product", round_to_bfloat16(product), array(short))
        if bias is not None:
            with_bias = array(found + gpu.put(bias))
            tally.same("linear: output, bias in float32", result, with_bias)
            rounded = round_to_bfloat16(bias)
            pad = np.pad(rounded, (0, -bias.size % 16))
            fused = gpu.product(*operands, scales, out_dtype=torch.bfloat16, bias=gpu.bfloat16(pad))
            expected = round_to_bfloat16(product + rounded)
            tally.same("linear: output, torch's bfloat16 bias", expected, array(fused))

    def engine(weights: Weights, batch: Batch) -> ComparingEngine:
        noting = NotingEngine(model.engine(weights, batch), weights, note)
        return ComparingEngine(noting, gpu, weights, tally)

    with patch.object(quantized_engine, "matmul", kept):
        logits = logits_by(model, engine, job)
    assert not products
    return logits


def torch_operands(
    gpu: Torch, plan: SitePlan, qa: QuantizedTensor, qb: QuantizedTensor, a: Any, b: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the codes of a product's operands by torch; a weight keeps the model's."""
    assert plan.a is not None
    left = gpu.codes(a, plan.a, qa.fmt.name)
    if plan.b is None:
        return left, gpu.held(qb)
    return left, gpu.codes(b, plan.b, qb.fmt.name)


@dataclass(frozen=True, eq=False)
class TorchEngine(Engine[np.ndarray]):
    """An engine for the whole model by torch; ``inner`` does what is not quantized."""

    inner: Engine[np.ndarray]
    gpu: Torch
    weights: Weights
    model: QuantizedModel

    def linears(self, sites: Sequence[Site], x: np.ndarray) -> list[np.ndarray]:
        """Compute each layer, by torch if it has a plan."""
        return [self.linear(site, x) for site in sites]

    def linear(self, site: Site, x: np.ndarray) -> np.ndarray:
        """Compute a layer."""
        if site.name not in self.model.plans:
            (y,) = self.inner.linears([site], x)
            return y
        weight = self.weights[f"{site.name}.weight"]
        assert isinstance(weight, QuantizedTensor)
        return array(
            self.planned(self.model.plans[site.name], x, weight.mT)
            + self.gpu.put(parameter(self.weights, f"{site.name}.bias"))
        )

    def product(self, site: Site, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Multiply two activations, by torch if the site has a plan."""
        plan = self.model.plans.get(site.name)
        return self.inner.product(site, a, b) if plan is None else array(self.planned(plan, a, b))

    def planned(
        self, plan: SitePlan, a: np.ndarray, b: np.ndarray | QuantizedTensor
    ) -> torch.Tensor:
        """Multiply codes to a float32 product."""
        assert plan.a is not None
        left = self.gpu.codes(a, plan.a, str(plan.recipe.a.fmt))
        if isinstance(b, QuantizedTensor):
            right, scale = self.gpu.held(b), b.scale
        else:
            assert plan.b is not None
            right, scale = self.gpu.codes(b, plan.b, str(plan.recipe.b.fmt)), plan.b.scale
        return self.gpu.product(left, right, (plan.a.scale, scale), out_dtype=torch.float32)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Add by torch."""
        return self.gpu.add(x, y)

    def multiply(self, x: np.ndarray, factor: float) -> np.ndarray:
        """Multiply by torch."""
        return self.gpu.multiply(x, factor)

    def softmax(self, x: np.ndarray) -> np.ndarray:
        """Compute the softmax by torch."""
        return self.gpu.softmax(x)

    def layer_norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        """Normalize by torch."""
        return self.gpu.layer_norm(x, *parameters(self.weights, name), eps)

    def activation(self, name: str, x: np.ndarray) -> np.ndarray:
        """Apply a function by torch."""
        return self.gpu.activation(name, x)


def logits_by(model: Model, engine: EngineOf, job: Any) -> np.ndarray:
    """Compute logits on one thread, as :func:`compared_logits` takes operands on the way."""
    model = replace(model, engine=engine)
    logits = predict_logits(model, job.encoded, job.batch_size, threads=1)
    require_finite(f"{model.name}: logits", logits)
    return logits


def proved(job: Any, recipe: str, mode: str, device: str) -> dict[str, Any]:
    """Compare one mode on all of a job's texts; return counts and the whole model's results."""
    how = replace(preset(recipe), accumulate=mode)
    model = apply_recipe(job.model, how, job.calibration, golden=True)
    gpu, tally = Torch(device, mode == "hopper-fast"), Tally()
    begin = time.perf_counter()
    ours = compared_logits(model, gpu, tally, job)
    seconds = time.perf_counter() - begin

    def by_torch(weights: Weights, batch: Batch) -> TorchEngine:
        return TorchEngine(model.engine(weights, batch), gpu, weights, model)

    theirs = logits_by(model, by_torch, job)
    exact = apply_recipe(model, replace(how, accumulate="exact"), golden=True)
    ideal = logits_by(exact, exact.engine, job)
    return {
        "mode": mode,
        "counts": {name: vars(count) for name, count in tally.counts.items()},
        "seconds": seconds,
        "logit_error_of_torch": error(theirs, ours),
        "logit_error_of_exact": error(ideal, ours),
        "flips_of_torch": int(np.count_nonzero(theirs.argmax(1) != ours.argmax(1))),
        "flips_of_exact": int(np.count_nonzero(ideal.argmax(1) != ours.argmax(1))),
    }


def error(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration-data", required=True)
    parser.add_argument("--recipe", default="e4m3")
    parser.add_argument("--limit", type=int, default=128, help="texts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()

    device = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    job = prepare(
        arguments.model,
        "sst2",
        arguments.data,
        calibration_data=arguments.calibration_data,
        limit=arguments.limit,
    )
    job = with_calibration(job, [preset(arguments.recipe)], golden=True)
    tokens = sum(int(batch["attention_mask"].sum()) for _, batch in batches(job.encoded, 32))
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}; {job.model.name}, "
          f"{arguments.recipe}, {len(job.encoded)} texts, {tokens} tokens")  # fmt: skip
    report: dict[str, Any] = {"device": device, "torch": torch.__version__, "tokens": tokens}
    report |= {"texts": len(job.encoded), "recipe": arguments.recipe, "modes": []}
    wrong = 0
    for mode in MODES:
        result = proved(job, arguments.recipe, mode, arguments.device)
        report["modes"].append(result)
        print(f"{mode}: {result['seconds']:.0f} s; logits of torch's own run: error "
              f"{result['logit_error_of_torch']:.2e}, {result['flips_of_torch']} flips; of "
              f"exact sums: {result['logit_error_of_exact']:.2e}, "
              f"{result['flips_of_exact']}")  # fmt: skip
        for name, count in result["counts"].items():
            wrong += count["beyond"]
            print(f"  {name}: {count['elements']} results of {count['calls']} calls, "
                  f"{count['different']} differ, {count['beyond']} beyond the tolerance, at most "
                  f"{count['largest_ulps']} ulp", flush=True)  # fmt: skip
    if arguments.json:
        with replaced_file(arguments.json) as file:
            file.write(json.dumps(report, indent=1).encode())
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
