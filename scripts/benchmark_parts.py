"""Print where the CPU time of the forward pass goes, in several recipes side by side.

    python scripts/benchmark_parts.py --model minilm-sst2=FOLDER --data DIR --inputs sst2
    python scripts/benchmark_parts.py --inputs 1x16 --recipes float32 e4m3 calibration --json FILE

Models and inputs are named as in ``benchmark_model.py``. Each function of :data:`PARTS` is
replaced by one that also counts its calls and its own CPU time, without that of others that
it calls. So the parts add up to the whole, in microseconds per token and layer. All runs on one
thread, and the recipes take turns. What is printed is the round of median time; the
clocks take time, too, so the time without them is printed below.

The last line compares the end of a product (to float32, scale, bias, to bfloat16) over rows that
stay in the cache with the same operations pass by pass, for a batch's first feed-forward layer.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from benchmark_model import OURS, Batches, folders, quantized, read_inputs

from bert_numpy import calibrate, load
from bert_numpy.model.config import BertConfig
from bert_numpy.threads import one_blas_thread
from npfp8.arrays import Float32Array, Float64Array
from npfp8.files import replaced_file
from npfp8.products.operands import finished_sums

#: The functions of each part of the pass. What belongs to none of them is :data:`REST`.
PARTS: Mapping[str, Sequence[str]] = {
    "products of the BLAS": ["npfp8.arrays:blas_product"],
    "values and counts of operands": [
        "npfp8.products.operands:decoded_bfloat16",
        "npfp8.products.blocks:prepared_blocks",
        "npfp8.products.blocks:operand_of",
        "npfp8.tensor:QuantizedTensor.lost",
        "bert_numpy.quantization.plan:quantize_operand",
    ],
    "ends of products: scale, bias": [
        "npfp8.products.operands:finished_sums",
        "npfp8.products:prepared_product",
        "bert_numpy.engines.functions:linear",
        "bert_numpy.quantization.engine:QuantizedEngine.planned",
    ],
    "rounding to bfloat16": [
        "npfp8.bfloat16:as_bfloat16",
        "npfp8.bfloat16:round_finite",
        "npfp8.bfloat16:round_in_place",
        "npfp8.bfloat16:round_to_bfloat16",
    ],
    "GELU, tanh": ["bert_numpy.engines.functions:activation", "npfp8.golden:unary"],
    "LayerNorm, softmax": [
        "bert_numpy.engines.functions:layer_norm",
        "bert_numpy.engines.functions:softmax",
        "npfp8.golden:layer_norm",
        "npfp8.golden:softmax",
    ],
    "residuals, factors of scores": [
        "bert_numpy.engines.float:Bfloat16Engine.add",
        "bert_numpy.engines.float:Bfloat16Engine.multiply",
        "bert_numpy.engines.float:FloatEngine.add",
        "bert_numpy.engines.float:FloatEngine.multiply",
        "npfp8.golden:add",
        "npfp8.golden:multiply",
    ],
    "histograms of a calibration": [
        "bert_numpy.quantization.observing:Sight.see",
        "bert_numpy.quantization.observing:Sight.see_input",
    ],
}

REST = "the rest"

#: The packages whose modules and classes may hold a function under a name of their own.
PACKAGES = ("npfp8", "bert_numpy")

#: Runs all batches on one thread.
Run = Callable[[Batches], Any]


@dataclass(eq=False)
class Account:
    """The CPU seconds and the calls of each part, and the seconds inside the open calls."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    inside: list[float] = field(default_factory=list)

    def counting(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and adds its own time to a part."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(0.0)
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - begin
                self.seconds[part] = self.seconds.get(part, 0) + whole - self.inside.pop()
                self.calls[part] = self.calls.get(part, 0) + 1
                if self.inside:
                    self.inside[-1] += whole

        return counted


@contextmanager
def counted(parts: Mapping[str, Sequence[str]]) -> Iterator[Account]:
    """Count the calls of functions, and their own time, by parts; in the calling thread alone.

    Parameters
    ----------
    parts : mapping of str to sequence of str
        Functions and methods as ``module:name`` or ``module:class.name``. Each is replaced
        wherever a module or a class of :data:`PACKAGES` holds it, and put back at the end.

    Yields
    ------
    Account

    Raises
    ------
    AttributeError
        If there is no such function.
    """
    account = Account()
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for part, names in parts.items():
            for name in names:
                function = resolve_name(name)
                new = account.counting(part, function)
                for place, attribute, value in places_of(function):
                    replaced.append((place, attribute, value))
                    setattr(place, attribute, staticmethod(new) if value is not function else new)
        yield account
    finally:
        for place, attribute, value in reversed(replaced):
            setattr(place, attribute, value)


def places_of(function: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Find the modules and classes with a function: the place, the name, and what is there."""
    modules = [x for name, x in sys.modules.items() if name.partition(".")[0] in PACKAGES]
    classes = {x for module in modules for x in vars(module).values() if isinstance(x, type)}
    inside = [x for x in classes if x.__module__.partition(".")[0] in PACKAGES]
    return [
        (place, name, value)
        for place in (*modules, *inside)
        for name, value in vars(place).items()
        if value is function or (isinstance(value, staticmethod) and value.__func__ is function)
    ]


def runner(name: str, folder: Path, sample: Batches) -> Run:
    """Make a run of a recipe, or of a calibration."""
    if name == "calibration":
        model = load(folder)
        return lambda inputs: calibrate(model, inputs, threads=1)
    quantized_model = quantized(name, folder, sample)
    return lambda inputs: [quantized_model(**batch) for batch in inputs]


def measure(run: Run, inputs: Batches) -> tuple[Account, float]:
    """Measure one round: the parts, and the CPU seconds of another run without the clocks."""
    begin = time.thread_time()
    run(inputs)
    plain = time.thread_time() - begin
    with counted(PARTS) as account:
        account.counting(REST, run)(inputs)
    return account, plain


def compare(runs: Mapping[str, Run], inputs: Batches, layers: int, rounds: int) -> dict[str, Any]:
    """Measure recipes in turns: microseconds per token and layer, and calls per batch."""
    found: dict[str, list[tuple[Account, float]]] = {name: [] for name in runs}
    with one_blas_thread():
        for run in runs.values():  # makes the tables
            run(inputs[:2])
        for _ in range(rounds):
            for name, run in runs.items():
                found[name].append(measure(run, inputs))
    scale = 1e6 / (layers * sum(int(batch["attention_mask"].sum()) for batch in inputs))
    result = {}
    for name, measured in found.items():
        accounts = sorted((one for one, _ in measured), key=lambda one: sum(one.seconds.values()))
        account = accounts[(rounds - 1) // 2]
        parts = {
            part: {
                "microseconds": account.seconds[part] * scale,
                "calls": account.calls[part] / len(inputs),
            }
            for part in (*PARTS, REST)
            if part in account.seconds
        }
        result[name] = {
            "parts": parts,
            "microseconds": sum(part["microseconds"] for part in parts.values()),
            "without_clocks": statistics.median(plain for _, plain in measured) * scale,
        }
    return result


def end_by_passes(sums: Float64Array, scale: Float32Array, bias: Float32Array) -> Float32Array:
    """End a product pass by pass: to float32, every zero +0, scale, bias, to bfloat16."""
    result = sums.astype(np.float32)
    result += np.float32(0)
    result *= scale
    result += bias
    bits = result.view(np.uint32)
    bits += (bits >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF)
    bits &= np.uint32(0xFFFF0000)
    return result


def compare_ends(rows: int, columns: int, rounds: int) -> dict[str, float]:
    """Measure the CPU seconds of the end of a product, by passes and in the cache, in turns.

    Raises
    ------
    SystemExit
        If the two ways differ in a bit.
    """
    generator = np.random.default_rng(0)
    sums = generator.normal(0, 1000, (rows, columns))
    bias = generator.normal(size=columns).astype(np.float32)
    scale = np.asarray(1e-3, np.float32)
    ways: dict[str, Callable[[], Float32Array]] = {
        "by_passes": lambda: end_by_passes(sums, scale, bias),
        "in_cache": lambda: finished_sums(sums, scale, None, bias, True),
    }
    slow, fast = (way().view(np.uint32) for way in ways.values())
    if not np.array_equal(slow, fast):
        raise SystemExit(f"the two ends of a product differ in {np.count_nonzero(slow != fast)}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(max(20, rounds)):
        for name, way in ways.items():
            begin = time.thread_time()
            way()
            seconds[name].append(time.thread_time() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {"rows": rows, "columns": columns, **medians}


def print_result(label: str, recipes: Mapping[str, Any]) -> None:
    """Print a table with a row for each part and a column for each recipe."""
    print(f"\n{label}: CPU time, µs per token and layer\n")
    print(f"| part | {' | '.join(recipes)} |")
    print(f"| --- |{' ---: |' * len(recipes)}")
    for part in (*PARTS, REST):
        cells = []
        for one in recipes.values():
            own = one["parts"].get(part, {"microseconds": 0.0})["microseconds"]
            cells.append(f"{own:.2f} ({100 * own / one['microseconds']:.0f} %)" if own else "")
        if any(cells):
            print(f"| {part} | {' | '.join(cells)} |")
    for row, key in (("together", "microseconds"), ("without the clocks", "without_clocks")):
        print(f"| {row} | {' | '.join(f'{one[key]:.2f}' for one in recipes.values())} |")


def print_ends(ends: Mapping[str, float]) -> None:
    """Print the ratio of the two ways to end a product."""
    print(
        f"\nthe end of a product, {ends['rows']}x{ends['columns']}: "
        f"{ends['by_passes'] / ends['in_cache']:.2f} times as fast in the cache as pass by pass "
        f"({1e3 * ends['in_cache']:.2f} and {1e3 * ends['by_passes']:.2f} ms)"
    )
    sys.stdout.flush()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = [*OURS, "calibration"]
    parser.add_argument("--model", action="append", dest="models", metavar="NAME[=FOLDER]")
    parser.add_argument("--inputs", nargs="+", default=["32x128"])
    parser.add_argument(
        "--recipes", nargs="+", default=["float32", "e4m3", "e4m3-golden", "mxfp8"], choices=recipes
    )
    parser.add_argument("--data", type=Path, help="with the folders of GLUE's tasks and of SQuAD")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    for name in ("limit", "batch_size", "rounds"):
        if (number := getattr(arguments, name)) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, found {number}")
    print(f"{platform.machine()}, one thread, NumPy {np.__version__}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for model, folder in folders(arguments.models or ["bert-tiny"], Path(place)):
            config: BertConfig = load(folder).config
            for name in arguments.inputs:
                inputs = read_inputs(
                    name, arguments.data, arguments.limit, arguments.batch_size, folder
                )
                sample = [{key: x[:8] for key, x in inputs[-1].items()}]
                runs = {one: runner(one, folder, sample) for one in arguments.recipes}
                found = compare(runs, inputs, config.num_hidden_layers, arguments.rounds)
                print_result(f"{model}, {name}", found)
                tokens = int(inputs[0]["attention_mask"].sum())
                ends = compare_ends(tokens, config.intermediate_size, arguments.rounds)
                print_ends(ends)
                results[f"{model}, {name}"] = {"recipes": found, "ends": ends}
    if arguments.json:
        report = {
            "numpy": np.__version__,
            "machine": platform.machine(),
            "rounds": arguments.rounds,
            "results": results,
        }
        with replaced_file(arguments.json) as file:
            file.write(json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
