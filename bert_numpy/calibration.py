"""Calibration: what every product's activations look like over a sample of real input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError, writing
from bert_numpy.model import Model
from bert_numpy.observers import Statistics, clip_range, follow, look_at, merge, quantization_noise
from bert_numpy.policy import Operandlike, Policy, Scale, float32_policy, naming
from bert_numpy.recipe import Operand
from bert_numpy.threads import default_threads, map_in_order
from npfp8 import QuantizedTensor
from npfp8.storage import load_file, read_metadata, save_file

__all__ = [
    "Calibration",
    "calibrate",
    "load_calibration",
    "merge_calibrations",
    "save_calibration",
]

Float32Array = npt.NDArray[np.float32]

#: The products of two activations; at all others the right operand is a weight.
_ATTENTION_PRODUCTS = (".attention.scores", ".attention.context")

_FILE_FORMAT = "bert-numpy calibration 2"


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was seen of the activations at every site.

    Attributes
    ----------
    operands : mapping of str to Statistics
        By ``site:a``, the left operand (activations, Q, or the attention weights
        P), and for the attention's products ``site:b``, the right one (K^T or V).
    channels : mapping of str to ndarray of float32, (K,)
        By the site of a linear layer: the absolute maximum of each column of
        its left operand.
    samples : int
        How many sequences were seen.
    golden : bool
        Whether they were run in golden arithmetic.
    """

    operands: Mapping[str, Statistics]
    channels: Mapping[str, Float32Array]
    samples: int
    golden: bool = False

    def scale(self, name: str, operand: Operand) -> Scale:
        """The static scale of an operand, ``site:a`` or ``site:b``.

        Raises
        ------
        BertNumpyError
            If the calibration did not see it.
        """
        assert operand.fmt is not None
        if name not in self.operands:
            raise BertNumpyError(f"calibration: operand {name!r}: expected statistics, found none")
        return observed_scale(self.operands[name], operand)


def observed_scale(seen: Statistics, operand: Operand) -> Scale:
    """The scale that an operand's observer makes of statistics."""
    assert operand.fmt is not None
    low, high = clip_range(seen, operand.observer, operand.fmt, operand.percentile)
    return Scale.of(low, high, operand)


def sqnr(seen: Statistics, operand: Operand) -> float:
    """Signal-to-quantization-noise ratio of an operand's elements with a static scale, in dB."""
    assert operand.fmt is not None
    signal, noise = quantization_noise(seen, operand.observer, operand.fmt, operand.percentile)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else math.nan


def calibrate(
    model: Model,
    batches: Iterable[Mapping[str, npt.NDArray[np.int64]]],
    golden: bool = False,
    threads: int | None = None,
) -> Calibration:
    """Run the model in float32 over a sample and note what the activations look like.

    Memory does not grow with the sample: see :mod:`bert_numpy.observers`.

    Parameters
    ----------
    model : Model
        Its weights must not be quantized.
    batches : iterable of mappings
        The arguments of calls of the model: ``input_ids`` and so on.
    golden : bool
        Whether to run in golden arithmetic, so that the statistics, and with
        them every code of the quantized model, are the same on every machine.
    threads : int, optional
        Over which the batches are spread, by default as many as there are cores.
        What is seen is put together in the order of the batches.

    Raises
    ------
    BertNumpyError
        If there is no batch, or an operand is NaN or infinite; names the site.
        If the model is quantized.
    """
    if any(isinstance(weight, QuantizedTensor) for weight in model.weights.values()):
        raise BertNumpyError(f"{model.name}: expected a model in float32 to calibrate, found codes")
    inner = float32_policy(golden)
    counts: list[_Histograms] = []  # of each thread
    mine = local()

    def observed(batch: Mapping[str, npt.NDArray[np.int64]]) -> tuple[_Sight, int]:
        if not hasattr(mine, "histograms"):
            mine.histograms = {}
            counts.append(mine.histograms)
        sight = _Sight(mine.histograms)
        replace(model, policy=observing_policy(inner, sight))(**batch)
        return sight, len(batch["input_ids"])

    operands: dict[str, Statistics] = {}
    channels: dict[str, Float32Array] = {}
    same: dict[str, str] = {}
    samples = 0
    for sight, size in map_in_order(observed, batches, threads or default_threads()):
        for name, extrema in sight.extrema.items():
            operands[name] = follow(operands.get(name), extrema)
        for site, largest in sight.channels.items():
            channels[site] = np.maximum(channels.get(site, largest), largest)
        same |= sight.same
        samples += size
    if not samples:
        raise BertNumpyError("calibration: expected at least one sample, found none")
    first, *others = counts
    for histograms in others:
        for name, histogram in histograms.items():
            first[name] = first[name] + histogram if name in first else histogram
    operands = {
        name: replace(seen, histogram=first[same.get(name, name)])
        for name, seen in operands.items()
    }
    return Calibration(operands, channels, samples, golden)


#: By operand how many elements there were of each bfloat16 value. Sums of integers do not depend
#: on an order: each thread counts into its own, from batch to batch.
_Histograms = dict[str, npt.NDArray[np.int64]]


@dataclass(eq=False)
class _Sight:
    """What was seen in one batch: of each operand the extrema, array by array.

    ``histograms`` are added to. ``same`` has the names of inputs that are those of
    an earlier name: query, key and value have one.
    """

    histograms: _Histograms
    extrema: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    channels: dict[str, Float32Array] = field(default_factory=dict)
    last: tuple[Float32Array, str] | None = None

    def see(self, name: str, x: Float32Array) -> None:
        """Look at an operand, in the attention one of several arrays."""
        histogram = self.histograms.get(name)
        if histogram is None:
            histogram = self.histograms[name] = np.zeros(1 << 16, np.int64)
        self.extrema.setdefault(name, []).append(look_at(name, x, histogram))

    def see_input(self, site: str, x: Float32Array) -> None:
        """Look at a linear layer's input; one array that is given to several is looked at once."""
        name = f"{site}:a"
        if self.last is not None and self.last[0] is x:
            first = self.last[1]
            self.same[name] = f"{first}:a"
            self.extrema[name] = self.extrema[f"{first}:a"]
            self.channels[site] = self.channels[first]
            return
        self.see(name, x)
        columns = x.reshape(-1, x.shape[-1])
        lowest, highest = columns.min(axis=0, initial=0), columns.max(axis=0, initial=0)
        self.channels[site] = np.maximum(highest, np.abs(lowest))
        self.last = (x, site)


def observing_policy(inner: Policy, sight: _Sight) -> Policy:
    """A policy that computes as ``inner`` does and notes what it is given."""

    def gemm(site: str, a: Float32Array, b: Operandlike, bias: Float32Array | None) -> Float32Array:
        assert isinstance(b, np.ndarray), site
        with naming(site):
            if site.endswith(_ATTENTION_PRODUCTS):
                sight.see(f"{site}:a", a)
                sight.see(f"{site}:b", b)
            else:
                sight.see_input(site, a)
        return inner.gemm(site, a, b, bias)

    return Policy(gemm, inner.arithmetic)


def merge_calibrations(a: Calibration, b: Calibration) -> Calibration:
    """The calibration over both samples; its moving averages are ``b``'s.

    Raises
    ------
    BertNumpyError
        If the two did not see the same sites.
    """
    if a.operands.keys() != b.operands.keys() or a.channels.keys() != b.channels.keys():
        raise BertNumpyError("calibrations: expected the same sites in both")
    return Calibration(
        {name: merge(seen, b.operands[name]) for name, seen in a.operands.items()},
        {site: np.maximum(seen, b.channels[site]) for site, seen in a.channels.items()},
        a.samples + b.samples,
        a.golden and b.golden,
    )


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration to a safetensors file, whole or not at all; nothing is rounded.

    Each operand has ``NAME/range``, the extrema and moving averages, and the
    histogram as ``NAME/bits`` and ``NAME/counts``; each linear layer
    ``SITE/channels``. The number of samples is in the metadata.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, seen in calibration.operands.items():
        bits = np.flatnonzero(seen.histogram)
        tensors[f"{name}/range"] = np.array(
            [seen.low, seen.high, seen.average_low, seen.average_high]
        )
        tensors[f"{name}/bits"] = bits.astype(np.uint16)
        tensors[f"{name}/counts"] = seen.histogram[bits]
    for site, largest in calibration.channels.items():
        tensors[f"{site}/channels"] = largest
    metadata = {
        "format": _FILE_FORMAT,
        "samples": str(calibration.samples),
        "golden": str(calibration.golden).lower(),
    }
    with writing(path):
        save_file(tensors, path, metadata)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration that :func:`save_calibration` wrote.

    Raises
    ------
    BertNumpyError
        If the file is missing, damaged or not as it was written; names the
        tensor or the key.
    """
    try:
        tensors, metadata = load_file(path), read_metadata(path)
    except FileNotFoundError:
        raise BertNumpyError(f"{path}: no such file") from None
    except OSError as error:
        raise BertNumpyError(f"{path}: expected a file, found an error: {error.strerror}") from None
    except ValueError as error:
        text = str(error)
        raise BertNumpyError(text if str(path) in text else f"{path}: {text}") from None

    def value(key: str, good: Any, expected: str) -> str:
        found = metadata.get(key, "")
        if not good(found):
            raise BertNumpyError(f"{path}: metadata {key!r}: expected {expected}, found {found!r}")
        return found

    value("format", lambda x: x == _FILE_FORMAT, repr(_FILE_FORMAT))
    samples = int(value("samples", _is_positive, "a number of at least 1"))
    golden = value("golden", lambda x: x in ("true", "false"), "true or false") == "true"

    def tensor(key: str, dtype: str, good: Any, expected: str) -> npt.NDArray[Any]:
        found = tensors.get(key)
        if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim != 1:
            what = "nothing" if found is None else getattr(found, "dtype", type(found).__name__)
            raise BertNumpyError(f"{path}: tensor {key!r}: expected 1-D {dtype}, found {what}")
        if not good(found):
            raise BertNumpyError(f"{path}: tensor {key!r}: expected {expected}")
        return found

    operands, channels = {}, {}
    for key in tensors:
        name, _, what = key.rpartition("/")
        if what == "range":
            extrema = tensor(key, "float64", _is_range, "4 numbers around 0")
            bits = tensor(f"{name}/bits", "uint16", _rises, "rising numbers")
            counts = tensor(
                f"{name}/counts",
                "int64",
                lambda x, n=bits.size: x.size == n and (x > 0).all(),
                f"{bits.size} positive numbers",
            )
            histogram = np.zeros(1 << 16, np.int64)
            histogram[bits] = counts
            low, high, average_low, average_high = extrema.tolist()
            operands[name] = Statistics(low, high, average_low, average_high, histogram)
        elif what == "channels":
            channels[name] = tensor(
                key, "float32", lambda x: np.isfinite(x).all() and (x >= 0).all(), "magnitudes"
            )
    return Calibration(operands, channels, samples, golden)


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) > 0


def _is_range(x: npt.NDArray[np.float64]) -> bool:
    largest = np.finfo(np.float32).max
    return x.size == 4 and bool((np.abs(x) <= largest).all() and x[0] <= 0 <= x[1])


def _rises(x: npt.NDArray[np.uint16]) -> bool:
    return bool((np.diff(x.astype(np.int64)) > 0).all())
