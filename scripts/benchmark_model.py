"""Time the model beside its peers, in one run: same inputs, same cores, in turns.

    python scripts/benchmark_model.py --data DIR --model minilm-sst2=FOLDER --json FILE
    python scripts/benchmark_model.py --model bert-tiny --inputs 1x16 1x128 --cores 1

Models are ``bert-tiny`` (comes with the package), ``base`` and ``large`` (random
weights of BERT's sizes, written into a temporary folder) and any ``NAME=FOLDER``.
Inputs are data sets at their real lengths (``sst2``, ``mrpc``, ``squad``: the
first ``--limit`` examples) or ``BATCHxLENGTH``. Data sets are sorted by length and cut
into batches of 32; a fixed shape has its own batch size. All peers get the same batches.
The model's own tokenizer makes the ids, or the embedded one's for random models.

In each round every peer runs all batches of an input, and the order of peers rotates.
The report has medians, spreads (quartiles) and ratios of throughput; the ratio of
two peers is the median over the rounds. It also has start-up times, the peak memory of a
process that loads and runs (Linux), and calibration beside the float32 pass.

With ``--cores N`` the process starts anew on the first N of its cores (Linux). The libraries
make their threads when they are loaded, one per core, so every peer has N threads.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_golden import print_profile
from benchmark_memory import write_model

from bert_numpy import PRESETS, apply_recipe, calibrate, export_onnx, load, load_tokenizer
from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.colors import color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.evaluation.evaluate import batches
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import merge_examples, read_examples, task_named
from bert_numpy.tasks.squad import SQUAD, merge_questions, read_questions
from bert_numpy.threads import default_threads, map_in_order
from npfp8.files import replaced_file

Batches = list[dict[str, Any]]
#: Runs all batches; returns the first batch's last hidden states.
Runner = Callable[[Batches], Any]

RANDOM = {"base": (768, 12, 30_522), "large": (1024, 24, 30_522)}

#: The approximate number of tokens in a fixed shape's run, which decides its batches.
FIXED_TOKENS = 8192


@dataclass(frozen=True)
class Goal:
    """A bound of a ratio of throughput, ``peer`` over ``than``.

    Attributes
    ----------
    peer, than : str
    bound : float, optional
        At least this, or at most if ``most``. Without one, the ratio is only reported.
    models, inputs : str
        Patterns of their names, with | between.
    cores : int, optional
        By default, the goal holds for any number.
    most : bool
    """

    peer: str
    than: str
    bound: float | None = None
    models: str = "*"
    inputs: str = "*"
    cores: int | None = None
    most: bool = False

    def holds_for(self, model: str, name: str, cores: int) -> bool:
        """Check whether the goal is one for a model and an input on some cores."""
        asked = ((model, self.models), (name, self.inputs))
        fits = (any(fnmatchcase(x, one) for one in some.split("|")) for x, some in asked)
        return all(fits) and self.cores in (None, cores)

    def __str__(self) -> str:
        if self.bound is None:
            return "no goal"
        return f"goal at {'most' if self.most else 'least'} {self.bound}"


TINY, MINILM, BASE, MPNET = "bert-tiny", "minilm*", "base", "mpnet*"
SINGLE = "1x16|1x128"

#: The first goal of two peers that fits is theirs.
GOALS = (
    Goal("float32", "torch", 1.05, f"{TINY}|{MINILM}|{BASE}|{MPNET}", "sst2"),
    Goal("e4m3", "float32", 0.5, TINY, SINGLE, 1),
    Goal("e4m3", "float32", 0.65, MINILM, SINGLE, 1),
    Goal("e4m3", "float32", 0.6, BASE, SINGLE, 1),
    Goal("e4m3", "float32", 0.5, TINY, "sst2"),
    Goal("e4m3", "float32", 0.6, MINILM, "sst2|32x128"),
    Goal("e4m3", "float32", 0.52, f"{BASE}|{MPNET}", "sst2"),
    Goal("e4m3-golden", "float32", 0.4, TINY, "sst2"),
    Goal("e4m3-golden", "float32", 0.5, f"{MINILM}|{BASE}", "sst2"),
    Goal("float32", "calibration", 1.4, TINY, "sst2", most=True),
    Goal("e4m3", "torch-fake-fp8-folded", 1.0, f"{MINILM}|{BASE}", "sst2"),
    Goal("e4m3-float32", "torch-fake-fp8-folded", 1.5, f"{MINILM}|{BASE}", "sst2"),
    *(
        Goal(name, "e4m3", 0.8, f"{TINY}|{MINILM}|{BASE}", "sst2")
        for name in ("mxfp8", "mxfp4", "nvfp4")
    ),
    Goal("float32", "onnxruntime", 0.8, BASE, "sst2"),
    # Reported for every model and input:
    *(Goal(name, "float32") for name in ("e4m3", "e4m3-float32", "e4m3-golden")),
    *(Goal(name, "torch-fake-fp8-folded") for name in ("e4m3", "e4m3-float32")),
    *(Goal(name, "e4m3") for name in ("mxfp8", "mxfp4", "nvfp4")),
    *(
        Goal(name, than)
        for than in ("onnxruntime", "onnxruntime-int8")
        for name in ("float32", "e4m3")
    ),
    Goal("float32", "torch"),
    Goal("float32", "calibration", most=True),
)

#: Our recipes, each with golden or not, by the names of the peers.
OURS: Mapping[str, tuple[Recipe, bool]] = {
    "float32": (PRESETS["fp32"], False),
    "e4m3": (PRESETS["e4m3"], False),
    "e4m3-float32": (replace(PRESETS["e4m3"], accumulate="float32"), False),
    "e4m3-golden": (PRESETS["e4m3"], True),
    **{name: (PRESETS[name], False) for name in ("int8", "mxfp8", "mxfp4", "nvfp4")},
}


def quantized(name: str, folder: Path, sample: Batches) -> QuantizedModel:
    """Load a model and apply one of our recipes, calibrated on a sample if need be."""
    recipe, golden = OURS[name]
    model = load(folder)
    calibration = calibrate(model, sample) if recipe.calibrated else None
    return apply_recipe(model, recipe, calibration, golden)


def ours(name: str, folder: Path, sample: Batches) -> Runner:
    """Make a runner of one of our recipes; batches go over threads, single texts in sequence."""
    model = quantized(name, folder, sample)

    def run(inputs: Batches) -> Any:
        threads = 1 if len(inputs[0]["input_ids"]) == 1 else default_threads()
        outputs = map_in_order(lambda batch: model(**batch), inputs, threads)
        first = next(outputs).last_hidden_state
        for _ in outputs:
            pass
        return first

    return run


def calibrating(folder: Path, sample: Batches) -> Runner:
    """Make a runner of a calibration: the float32 pass with all operands counted."""
    model = load(folder)
    return lambda inputs: calibrate(model, inputs)


def torch_peer(attention: str, folder: Path, sample: Batches) -> Runner:
    """Make a runner of PyTorch, with the encoder of transformers, in float32."""
    import torch  # noqa: PLC0415 (a peer)
    import transformers  # noqa: PLC0415

    torch.set_num_threads(default_threads())
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_pretrained(
        str(folder), attn_implementation=attention, dtype=torch.float32
    ).eval()
    taken = inspect.signature(model.forward).parameters  # not all models have token types

    def forward(batch: dict[str, Any]) -> Any:
        given = {name: torch.from_numpy(x) for name, x in batch.items() if name in taken}
        return model(**given).last_hidden_state

    def run(inputs: Batches) -> Any:
        with torch.inference_mode():
            first = forward(inputs[0])
            for batch in inputs[1:]:
                forward(batch)
        return first.numpy()

    run.model = model  # type: ignore[attr-defined]
    return run


def torch_fake_fp8(folded: bool, folder: Path, sample: Batches) -> Runner:
    """Make a runner that casts operands to float8_e4m3fn and back before float32 products.

    This is fake quantization with static scales, as after calibration. Weights are cast at
    each product, as in toolkits that search for a recipe, or once if they are ``folded``.
    """
    import torch  # noqa: PLC0415 (a peer)
    import transformers  # noqa: PLC0415

    def fake(x: Any, scale: float) -> Any:
        codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return codes.to(torch.float32) * scale

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        scores = torch.matmul(fake(q, 0.05), fake(k, 0.05).transpose(2, 3))
        scores = scores * (options.get("scaling") or q.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores + mask
        mixed = torch.matmul(fake(scores.softmax(-1), 1 / 448), fake(v, 0.05))
        return mixed.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("fake_fp8", attention)
    masks = transformers.masking_utils
    transformers.AttentionMaskInterface.register("fake_fp8", masks.eager_mask)
    run = torch_peer("fake_fp8", folder, sample)

    def linear(layer: Any, scale: float, x: Any) -> Any:
        weight = layer.weight if folded else fake(layer.weight, scale)
        return torch.nn.functional.linear(fake(x, 0.05), weight, layer.bias)

    for layer in run.model.encoder.modules():  # type: ignore[attr-defined]
        if isinstance(layer, torch.nn.Linear):
            scale = float(layer.weight.detach().abs().max()) / 448
            if folded:
                layer.weight.data = fake(layer.weight.data, scale)
            layer.forward = functools.partial(linear, layer, scale)
    return run


def onnxruntime_peer(int8: bool, folder: Path, sample: Batches) -> Runner:
    """Make a runner of onnxruntime, for the float32 export or its dynamic INT8 version."""
    import onnxruntime  # noqa: PLC0415 (a peer)

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        export_onnx(apply_recipe(load(folder), PRESETS["fp32"], None), path)
        if int8:
            from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415

            quantize_dynamic(path, path.with_name("int8.onnx"))
            path = path.with_name("int8.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = default_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]  # not all models have token types

    def given(batch: dict[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in names}

    (output,) = [one.name for one in session.get_outputs() if one.name == "last_hidden_state"] or [
        session.get_outputs()[0].name
    ]

    def run(inputs: Batches) -> Any:
        first = session.run([output], given(inputs[0]))[0]
        for batch in inputs[1:]:
            session.run([output], given(batch))
        return first

    return run


def plain_numpy(folder: Path, sample: Batches) -> Runner:
    """Make a runner in picoGPT's style: text by text, head by head, one expression per layer."""
    model = load(folder)
    heads, eps = model.config.num_attention_heads, model.config.layer_norm_eps
    w: Any = dict(model.weights)

    def norm(x: Any, site: str) -> Any:
        centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return centred * w[f"{site}.weight"] + w[f"{site}.bias"]

    def linear(x: Any, site: str) -> Any:
        return x @ w[f"{site}.weight"].T + w[f"{site}.bias"]

    def softmax(x: Any) -> Any:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def gelu(x: Any) -> Any:  # picoGPT uses the tanh form
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attend(q: Any, k: Any, v: Any) -> Any:
        return softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v

    def encode(ids: Any, types: Any) -> Any:
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
        for i in range(model.config.num_hidden_layers):
            site = f"encoder.layer.{i}"
            parts = (
                linear(x, f"{site}.attention.self.{name}") for name in ("query", "key", "value")
            )
            split = (np.split(part, heads, axis=-1) for part in parts)
            context = np.hstack([attend(q, k, v) for q, k, v in zip(*split, strict=True)])
            dense = linear(context, f"{site}.attention.output.dense")
            x = norm(x + dense, f"{site}.attention.output.LayerNorm")
            inner = gelu(linear(x, f"{site}.intermediate.dense"))
            x = norm(x + linear(inner, f"{site}.output.dense"), f"{site}.output.LayerNorm")
        return x

    def run(inputs: Batches) -> Any:
        for batch in inputs:
            arguments = (batch[name] for name in ("input_ids", "token_type_ids", "attention_mask"))
            for ids, types, mask in zip(*arguments, strict=True):
                encode(ids[mask == 1], types[mask == 1])

    return run


#: The peers to time, by name. The first is compared with all.
PEERS: dict[str, Callable[[Path, Batches], Runner]] = {
    "float32": functools.partial(ours, "float32"),
    "torch": functools.partial(torch_peer, "eager"),
    "torch-sdpa": functools.partial(torch_peer, "sdpa"),
    "onnxruntime": functools.partial(onnxruntime_peer, False),
    "numpy": plain_numpy,
    **{name: functools.partial(ours, name) for name in OURS if name != "float32"},
    "torch-fake-fp8": functools.partial(torch_fake_fp8, False),
    "torch-fake-fp8-folded": functools.partial(torch_fake_fp8, True),
    "onnxruntime-int8": functools.partial(onnxruntime_peer, True),
    "calibration": calibrating,
}

#: The markers of a figure's peers, in order. Several peers have one colour, their format's.
MARKERS = "oDsPXv^<>*phHd81"

#: Peers that support BERT alone, without relative positions.
BERT_ALONE = ("torch-sdpa", "numpy", "torch-fake-fp8", "torch-fake-fp8-folded")

#: Peers whose hidden states must equal the float32 engine's within 1e-3.
SAME_AS_FLOAT32 = ("torch", "torch-sdpa")


def read_inputs(name: str, data: Path | None, limit: int, batch_size: int, folder: Path) -> Batches:
    """Make an input's batches for a model: padded, sorted by length, the longest first."""
    random = not any((folder / one).is_file() for one in ("tokenizer.json", "vocab.txt"))
    tokenizer = load_tokenizer("bert-tiny-sst2" if random else folder)
    if name[0].isdecimal():
        batch, length = (int(part) for part in name.split("x"))
        generator = np.random.default_rng(0)
        shape = (max(1, FIXED_TOKENS // (batch * length)), batch, length)
        ids = generator.integers(1000, 30_000, shape)
        return [
            {
                "input_ids": one,
                "token_type_ids": np.zeros_like(one),
                "attention_mask": np.ones_like(one),
            }
            for one in ids[:64]
        ]
    if data is None:
        raise SystemExit(f"{name}: expected --data, the folder of data sets")
    if name == SQUAD.name:
        paths = [data] if data.is_file() else sorted(data.rglob("dev-v1.1*.json"))
        items = merge_questions([read_questions(path) for path in paths]).items[:limit]
        windows = tokenizer.windows(
            [item.question for item in items],
            [item.context for item in items],
            SQUAD.max_length,
            SQUAD.doc_stride,
            SQUAD.max_query_length,
        )
        encoded = [window.encoded for parts in windows for window in parts]
    else:
        task = task_named(name)
        root = next(place for place in (data, *data.iterdir()) if (place / task.folder).is_dir())
        examples = merge_examples(
            [read_examples(path, task) for path in find_files(root, task, task.dev)]
        )
        examples = examples.select(range(min(limit, len(examples))))
        encoded = tokenizer.encode(examples.texts, examples.pairs, 128)
    return [batch for _, batch in batches(encoded, batch_size, tokenizer.pad_token_id)]


def time_peers(
    runners: dict[str, Runner], inputs: Batches, rounds: int, pause: float
) -> dict[str, list[float]]:
    """Measure the seconds of each round, by peer; a different peer begins in each round."""
    found: dict[str, Any] = {}
    for name, run in runners.items():  # warms up
        found[name] = run(inputs[:2])
    for name in SAME_AS_FLOAT32:
        if name in runners and "float32" in runners:
            there = inputs[0]["attention_mask"] != 0
            error = np.abs(found[name][there] - found["float32"][there]).max()
            if not error < 1e-3:
                raise SystemExit(f"{name}: hidden states differ by {error} from float32's")
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(pause)  # until the previous peer's threads have stopped spinning
            begin = time.perf_counter()
            runners[name](inputs)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def throughput_ratio(seconds: dict[str, list[float]], name: str, than: str) -> float:
    """Return how many times faster ``name`` is: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[than], strict=True))


def goals(model: str, name: str, cores: int) -> dict[tuple[str, str], Goal]:
    """Choose the goals for a model and an input, by their peers."""
    found: dict[tuple[str, str], Goal] = {}
    for goal in GOALS:
        if goal.holds_for(model, name, cores):
            found.setdefault((goal.peer, goal.than), goal)
    return found


def summary(
    seconds: dict[str, list[float]], tokens: int, wanted: Mapping[tuple[str, str], Goal]
) -> dict[str, Any]:
    """Summarize an input: its peers, and the ratios of those that goals compare."""
    result: dict[str, Any] = {"tokens": tokens, "peers": {}, "goals": []}
    for name, times in seconds.items():
        low, middle, high = np.percentile(times, [25, 50, 75]).tolist()
        result["peers"][name] = {
            "median_seconds": middle,
            "quartiles": [low, high],
            "tokens_per_second": tokens / middle,
            "float32_over": throughput_ratio(seconds, "float32", name)
            if "float32" in seconds
            else None,
            "rounds": times,
        }
    for (name, than), goal in wanted.items():
        if name in seconds and than in seconds:
            ratio = throughput_ratio(seconds, name, than)
            one = {"peer": name, "than": than, "ratio": ratio, "goal": goal.bound}
            result["goals"].append(one | {"shown": str(goal)})
    return result


def startup_seconds(rounds: int) -> dict[str, dict[str, float]]:
    """Measure the time of a whole process, and the time of an import in one; and CPU time."""
    python = [sys.executable]
    clock = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    commands = {
        "python -c pass": [*python, "-c", "pass"],
        "bert-numpy predict": [*python, "-m", "bert_numpy", "predict", "bert-tiny-sst2", "a film"],
        "import numpy": [*python, "-c", clock.format("numpy")],
        "import npfp8": [*python, "-c", clock.format("npfp8")],
        "import bert_numpy": [*python, "-c", clock.format("bert_numpy")],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            before, begin = os.times(), time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            whole, after = time.perf_counter() - begin, os.times()
            seconds[name].append(float(done.stdout) if name.startswith("import") else whole)
            user = after.children_user - before.children_user
            cpu[name].append(user + after.children_system - before.children_system)
    return {
        name: {
            "median_seconds": statistics.median(times),
            "least_seconds": min(times),
            "median_cpu_seconds": statistics.median(cpu[name]),  # of the whole process
        }
        for name, times in seconds.items()
    }


def peak_memory(peer: str, folder: Path, name: str, arguments: argparse.Namespace) -> int:
    """Measure the peak bytes of a process that loads a model and runs an input once."""
    command = [sys.executable, __file__, "--child", peer, str(folder), "--inputs", name]
    command += ["--limit", str(arguments.limit), "--batch-size", str(arguments.batch_size)]
    if arguments.data:
        command += ["--data", str(arguments.data)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_child(arguments: argparse.Namespace) -> None:
    peer, folder = arguments.child
    name, data = arguments.inputs[0], arguments.data
    inputs = read_inputs(name, data, arguments.limit, arguments.batch_size, Path(folder))
    PEERS[peer](Path(folder), inputs[-1:])(inputs)
    with open("/proc/self/status") as file:
        print(next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")))


def folders(names: Sequence[str], place: Path) -> Iterator[tuple[str, Path]]:
    """Yield each model's name and folder; random models are written when it is their turn."""
    for name in names:
        label, _, given = name.partition("=")
        folder = Path(given)
        if label in RANDOM:
            folder = place / label
            folder.mkdir()
            write_model(folder, *RANDOM[label])
        elif not given:
            folder = resolve("bert-tiny-sst2" if label == "bert-tiny" else label)
        yield label, folder
        if label in RANDOM:
            (folder / "model.safetensors").unlink()


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the throughput of every peer over the float32 engine's, by model and input."""
    names = [name for name in PEERS if any(name in one["peers"] for one in results.values())]
    figure, axis = subplots(figsize=(WIDTH, 1.3 + 0.4 * len(results)))
    for name, marker in zip(names, MARKERS, strict=False):
        rows = [(i, one) for i, one in enumerate(results.values()) if name in one["peers"]]
        ratios = [1 / one["peers"][name]["float32_over"] for _, one in rows]
        places = [i for i, _ in rows]
        axis.plot(ratios, places, marker, color=color_of(name), markersize=5, label=name)
    axis.set_yticks(range(len(results)), list(results))
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set_xscale("log", base=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("throughput, over this project's float32 engine", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    save_figure(figure, path)


def print_result(label: str, result: dict[str, Any]) -> None:
    print(f"\n{label}: {result['tokens']} tokens")
    print("| peer | median s | quartiles | tokens/s | throughput / float32 |")
    print("| --- | --- | --- | --- | --- |")
    for name, one in result["peers"].items():
        low, high = one["quartiles"]
        ratio = "" if one["float32_over"] is None else f"{1 / one['float32_over']:.2f}"
        print(
            f"| {name} | {one['median_seconds']:.3f} | {low:.3f} to {high:.3f} | "
            f"{one['tokens_per_second']:.0f} | {ratio} |"
        )
    for goal in result["goals"]:
        print(f"{goal['peer']} / {goal['than']}: {goal['ratio']:.2f} ({goal['shown']})")
    if "peak_bytes" in result:
        peaks = ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in result["peak_bytes"].items())
        print(f"peak memory: {peaks}")
    sys.stdout.flush()


def keep_to(cores: int) -> None:
    """Start the process anew on the first of its cores, unless it has no others (Linux)."""
    usable = sorted(os.sched_getaffinity(0))
    if not 1 <= cores <= len(usable):
        raise SystemExit(f"--cores: expected 1 to {len(usable)}, found {cores}")
    if cores < len(usable):
        os.sched_setaffinity(0, usable[:cores])  # a new program image keeps it
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", dest="models", metavar="NAME[=FOLDER]")
    parser.add_argument("--inputs", nargs="+", default=["32x128", "1x128", "1x16", "8x384"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--data", type=Path, help="with the folders of GLUE's tasks and of SQuAD")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each turn")
    parser.add_argument("--cores", type=int, help="all by default")
    parser.add_argument("--memory", action="store_true", help="measure each peer's peak too")
    parser.add_argument("--startup", action="store_true", help="measure start-up too")
    parser.add_argument("--profile", nargs="*", default=[], metavar="PEER", choices=list(OURS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cores is not None:
        keep_to(arguments.cores)
    if arguments.child:
        run_child(arguments)
        return
    load_before = os.getloadavg()[0]
    print(f"{platform.machine()}, {default_threads()} cores, NumPy {np.__version__}")
    print(f"load before: {load_before:.1f}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for model, folder in folders(arguments.models or ["bert-tiny"], Path(place)):
            inputs = {
                name: read_inputs(
                    name, arguments.data, arguments.limit, arguments.batch_size, folder
                )
                for name in arguments.inputs
            }
            sample = [{k: x[:8] for k, x in one[-1].items()} for one in inputs.values()]
            relative = read_config(folder / "config.json").relative_attention_num_buckets
            without = BERT_ALONE if relative else ()
            peers = [name for name in arguments.peers if name not in without]
            runners = {name: PEERS[name](folder, sample) for name in peers}
            for name, given in inputs.items():
                tokens = sum(int(batch["attention_mask"].sum()) for batch in given)
                result = summary(
                    time_peers(runners, given, arguments.rounds, arguments.pause),
                    tokens,
                    goals(model, name, default_threads()),
                )
                if arguments.memory:
                    result["peak_bytes"] = {
                        peer: peak_memory(peer, folder, name, arguments) for peer in runners
                    }
                results[f"{model}, {name}"] = result
                print_result(f"{model}, {name}", result)
                for peer in arguments.profile:
                    print_profile(quantized(peer, folder, given[-1:]), given, peer)
            del runners
    startup = startup_seconds(arguments.rounds) if arguments.startup else {}
    for name, one in startup.items():
        times = f"{one['median_seconds']:.3f} s (least {one['least_seconds']:.3f})"
        print(f"{name}: {times}; the process took {one['median_cpu_seconds']:.2f} s of CPU time")
    if arguments.json:
        report = {
            "numpy": np.__version__,
            "machine": platform.machine(),
            "cores": default_threads(),
            "load_before": load_before,
            "rounds": arguments.rounds,
            "results": results,
            "startup": startup,
        }
        with replaced_file(arguments.json) as file:
            file.write(json.dumps(report, indent=1).encode())
    if arguments.figure:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
