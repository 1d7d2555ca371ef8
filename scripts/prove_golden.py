"""Run one golden job under many settings of a machine, and under many machines; compare the bits.

    python scripts/prove_golden.py                       # this machine and interpreter
    python scripts/prove_golden.py --numpy 1.26.4 2.0.2 newest --python python3.10 python3.12
    python scripts/prove_golden.py --interpreter "BLIS=/opt/x/python"
    python scripts/prove_golden.py job                   # the job alone; prints its digests

The job calibrates the embedded model (or --model) and runs it in golden
arithmetic, in every recipe and in batches of several sizes. A digest is the
SHA-256 of every operand and every result of every matrix product and of the
logits. For contrast, the job does the same with the plain float32 engine.

The settings are every kernel that OpenBLAS has for the processor, with 1 and 2 threads,
and NumPy's SIMD code from all to none. The options --numpy and --python add fresh virtual
environments. The option --interpreter NAME=COMMAND adds any other Python that can import
NumPy, safetensors and tokenizers. The script scripts/foreign_pythons.sh gets some from
Debian's packages, with other BLAS libraries and for 64-bit Arm.

The exit code is 0 if all golden digests are equal (and equal to --check), 1 otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # interpreters that run the job have not installed it

import numpy as np  # noqa: E402

from bert_numpy import Model, load, load_tokenizer  # noqa: E402
from bert_numpy.engines.engine import Engine, Weights  # noqa: E402
from bert_numpy.engines.noting import NotingEngine  # noqa: E402
from bert_numpy.evaluation.evaluate import batches, calibrate_on  # noqa: E402
from bert_numpy.model.packing import Batch  # noqa: E402
from bert_numpy.quantization.convert import apply_recipe  # noqa: E402
from bert_numpy.quantization.presets import PRESETS  # noqa: E402
from bert_numpy.quantization.tiled_attention import TiledAttention  # noqa: E402
from bert_numpy.tasks.glue import read_examples, task_named  # noqa: E402
from bert_numpy.tasks.tokenization import EncodedText  # noqa: E402
from npfp8 import QuantizedTensor  # noqa: E402

#: The paper's comparison, and attention over tiles so short that most reviews have several.
RECIPES = (
    *(PRESETS[name] for name in ("e4m3", "e5m2", "int8", "bf16", "fp32")),
    replace(PRESETS["e4m3-flash"], name="e4m3-flash-8", attention=TiledAttention(8)),
)
BATCH_SIZES = (16, 5)

#: OpenBLAS's names of its x86 kernels. Some are aliases, so the core that it reports is used.
CORES = ("Prescott", "Core2", "Nehalem", "Barcelona", "Sandybridge", "Haswell", "Zen", "SkylakeX")

#: Environment variables that choose a library's code; each setting starts without them.
CHOOSERS = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "BLIS_ARCH_TYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
)


# The job


def run_job(model_name: str, samples: int) -> dict[str, Any]:
    """Compute the digests of one golden job here, and of the plain float32 engine."""
    model, tokenizer = load(model_name), load_tokenizer(model_name)
    return {
        "golden": dict(golden_digests(model, tokenizer, samples)),
        "float32": digest_of(model, encoded("dev.tsv", tokenizer, samples)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "blas": blas_core(),
        "simd": ",".join(simd_features()),
    }


def encoded(name: str, tokenizer: Any, samples: int) -> list[EncodedText]:
    """Encode review sentences that are spread evenly over a file."""
    reviews = REPOSITORY / "bert_numpy" / "assets" / "reviews"
    examples = read_examples(reviews / name, task_named("sst2")).sample(samples)
    found: list[EncodedText] = tokenizer.encode(examples.texts, None, 128)
    return found


def golden_digests(model: Model, tokenizer: Any, samples: int) -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of the job's calibration and of each recipe."""
    calibration = calibrate_on(model, encoded("train.tsv", tokenizer, samples), golden=True)
    statistics = hashlib.sha256()
    for name, seen in sorted(calibration.operands.items()):
        statistics.update(f"{name} {seen.low!r} {seen.high!r}".encode())
        statistics.update(seen.histogram.astype("<i8").tobytes())
    yield "calibration", statistics.hexdigest()
    texts = encoded("dev.tsv", tokenizer, samples)
    for recipe in RECIPES:
        quantized = apply_recipe(model, recipe, calibration, golden=True)
        yield recipe.name, digest_of(quantized, texts)


def digest_of(runner: Any, texts: Sequence[EncodedText]) -> str:
    """Hash every operand and result of every matrix product, and the logits."""
    sha = hashlib.sha256()

    def update(x: Any) -> None:
        if isinstance(x, QuantizedTensor):
            update(x.codes)
            update(x.scale)
        elif x is not None:
            little_endian = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
            sha.update(str(x.shape).encode() + little_endian.tobytes())

    def note(_: str, *operands_and_result: Any) -> None:
        for x in operands_and_result:
            update(x)

    def noting(weights: Weights, batch: Batch) -> Engine[Any]:
        return NotingEngine(runner.engine(weights, batch), weights, note)

    watched = replace(runner, engine=noting)
    for batch_size in BATCH_SIZES:
        for _, batch in batches(texts, batch_size):
            output = watched(**batch)
            update(output.last_hidden_state)
            update(output.logits)
    return sha.hexdigest()


def blas_core() -> str:
    """Find the library that NumPy multiplies with, and the kernel that it reports."""
    np.ones((2, 2)) @ np.ones((2, 2))
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = sorted({line.split()[-1] for line in lines if "blas" in line or "blis" in line})
    for path in paths:
        for symbol in (
            "scipy_openblas_get_corename64_",
            "openblas_get_corename64_",
            "openblas_get_corename",
        ):
            function = getattr(ctypes.CDLL(path), symbol, None)
            if function is not None:
                function.restype = ctypes.c_char_p
                return f"OpenBLAS {function().decode()}"
    return ", ".join("/".join(Path(path).parts[-2:]) for path in paths) or "unknown"


def simd_features() -> list[str]:
    """List the SIMD features that NumPy dispatches on and that are not disabled."""
    features, dispatch = numpy_features()
    return [name for name in dispatch if features.get(name)]


def numpy_features() -> tuple[dict[str, bool], list[str]]:
    """Return the SIMD features with their states, and the ones that can be disabled."""
    core = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
    umath = importlib.import_module(f"{core}._multiarray_umath")
    return umath.__cpu_features__, list(umath.__cpu_dispatch__)


# The settings


def run_setting(
    command: Sequence[str], environment: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Any] | str:
    """Run the job by an interpreter under a setting; return its report, or why there is none."""
    inherited = {name: value for name, value in os.environ.items() if name not in CHOOSERS}
    job = [str(Path(__file__).resolve()), "job", "--model", arguments.model]
    try:
        done = subprocess.run(
            [*command, *job, "--samples", str(arguments.samples)],
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot run: {error}"
    if done.returncode in (-4, 132):  # SIGILL
        return "not run: this processor lacks an instruction (SIGILL)"
    if done.returncode and plain_product_crashes(command, inherited | environment):
        return "not run: NumPy crashes in a product of its own (SIGSEGV)"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"failed with status {done.returncode}: {last}"
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def plain_product_crashes(command: Sequence[str], environment: dict[str, str]) -> bool:
    """Check whether NumPy alone crashes in a product.

    NumPy 2.5.2 and 2.5.5 (OpenBLAS 0.3.34) crash on an AMD EPYC with AVX-512, but not on an
    Intel Xeon, when they are told to use the kernels of Prescott, Core2, Haswell or Zen.
    """
    product = (
        "import numpy as np\n"
        "for dtype in (np.float32, np.float64):\n"
        "    np.ones((100, 512), dtype) @ np.ones((512, 128), dtype)"
    )
    done = subprocess.run([*command, "-c", product], env=environment, check=False)
    return done.returncode in (-11, 139)


def local_settings(simd: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield settings of one interpreter: BLAS threads and kernels, NumPy's SIMD code."""
    yield "as it is", {}
    for threads in ("1", "2"):
        for core in CORES:
            yield (
                f"{core}, {threads} threads",
                {"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": threads},
            )
    for count in range(1, len(simd) + 1):  # the newest first, as they build on older ones
        off = " ".join(simd[-count:])
        yield f"without {off}", {"NPY_DISABLE_CPU_FEATURES": off}


def few_settings() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the settings for one of many interpreters."""
    yield "as it is", {}
    yield "1 thread", dict.fromkeys(CHOOSERS[1:4], "1")
    yield "Nehalem, 2 threads", {"OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "2"}


def environment_with(python: str, numpy: str, folder: Path) -> list[str] | str:
    """Make a fresh virtual environment; return its interpreter, or why there is none."""
    place = folder / f"{Path(python).name}-{numpy}"
    wanted = "numpy" if numpy == "newest" else f"numpy=={numpy}"
    interpreter = str(place / "bin" / "python")
    packages = [wanted, "safetensors", "tokenizers", "huggingface-hub"]
    for step in (
        [python, "-m", "venv", str(place)],
        [interpreter, "-m", "pip", "install", "-q", "--only-binary=:all:", *packages],
    ):
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"not run: {error}"
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return f"not run: cannot be installed: {last}"
    return [interpreter]


def all_settings(
    arguments: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, list[str] | str, dict[str, str]]]:
    """Yield every setting: name, interpreter's command (or why there is none), variables."""
    if not arguments.only_others:
        for name, variables in local_settings(simd_features()):
            yield name, [sys.executable], variables
    for python in arguments.python:
        for numpy in arguments.numpy:
            command = environment_with(python, numpy, folder)
            for name, variables in few_settings():
                yield f"{Path(python).name}, NumPy {numpy}, {name}", command, variables
                if isinstance(command, str):
                    break
    for given in arguments.interpreter:
        name, _, command_line = given.partition("=")
        yield name, shlex.split(command_line), {}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", choices=["prove", "job"], default="prove")
    add("--model", default="bert-tiny-sst2")
    add("--samples", type=int, default=24, metavar="N", help="texts to run, and to calibrate on")
    add("--numpy", nargs="+", default=["newest"], metavar="VERSION")
    add("--python", nargs="+", default=[], metavar="COMMAND")
    add("--interpreter", action="append", default=[], metavar="NAME=COMMAND")
    add("--only-others", action="store_true", help="leave out the settings of this interpreter")
    add("--check", type=Path, metavar="FILE", help="digests that must be met too")
    add("--write", type=Path, metavar="FILE", help="write the digests there")
    arguments = parser.parse_args()
    if arguments.what == "job":
        print(json.dumps(run_job(arguments.model, arguments.samples)))
        return 0

    expected = json.loads(arguments.check.read_text()) if arguments.check else None
    contrast, compared, failed = set(), 0, False
    with tempfile.TemporaryDirectory() as folder:
        for name, command, variables in all_settings(arguments, Path(folder)):
            report = (
                command if isinstance(command, str) else run_setting(command, variables, arguments)
            )
            if isinstance(report, str):
                print(f"{name}: {report}", flush=True)
                failed |= not report.startswith("not run")
                continue
            expected = expected or report["golden"]
            different = [key for key in expected if report["golden"].get(key) != expected[key]]
            compared += 1
            failed |= bool(different)
            contrast.add(report["float32"])
            whole = hashlib.sha256(json.dumps(report["golden"], sort_keys=True).encode())
            print(
                f"{name}: golden {whole.hexdigest()[:16]} float32 {report['float32'][:8]}  "
                f"[{report['machine']}, Python {report['python']}, NumPy {report['numpy']}, "
                f"{report['blas']}, SIMD {report['simd'] or 'baseline'}]"
                + (f"  DIFFERENT: {', '.join(different)}" if different else ""),
                flush=True,
            )
    print(
        f"{compared} settings: golden digests {'DIFFER' if failed else 'equal'}; the plain float32 "
        f"engine has {len(contrast)} different ones"
    )
    if arguments.write and expected and not failed:
        arguments.write.write_text(json.dumps(expected, indent=1) + "\n")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
