"""Calibration: the statistics of every product's activations over a sample of real input."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.engines.float import FloatEngine
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.errors import BertNumpyError, reading, writing
from bert_numpy.model.model import EngineOf, Model
from bert_numpy.model.sites import site_named, sites_of
from bert_numpy.quantization.observers import (
    MOST_ELEMENTS,
    Statistics,
    clip_range,
    contradiction,
    follow,
    merge,
    quantization_noise,
)
from bert_numpy.quantization.observing import Hessians, Histograms, ObservingEngine, Sight
from bert_numpy.quantization.origin import SIZES, Origin, origin_of
from bert_numpy.quantization.plan import Scale
from bert_numpy.quantization.recipe import Operand
from bert_numpy.threads import default_threads, map_in_order
from npfp8 import BlockFormat, QuantizedTensor
from npfp8.arguments import flag, integer, loaded, path_of, require, require_iterable, wrong_type
from npfp8.arrays import Array, Float32Array, Float64Array, IntArray
from npfp8.storage import load_file, read_metadata, save_file

__all__ = [
    "Calibration",
    "as_calibration",
    "calibrate",
    "check_calibration",
    "how_to_make",
    "load_calibration",
    "merge_calibrations",
    "save_calibration",
]


_FILE_FORMAT = "bert-numpy calibration 3"

#: The names of products and operands in a file. No name that leads out of a folder fits.
_SITE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_OPERAND = re.compile(rf"{_SITE.pattern}:[ab]")

#: The arguments of a model.
_ARGUMENTS = {"input_ids", "attention_mask", "token_type_ids"}

#: The tensors of an operand, and the one tensor of a linear layer.
_OF_OPERANDS, _OF_SITES = ("range", "bits", "counts"), ("channels", "hessian")


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """The statistics of the activations at every site.

    Attributes
    ----------
    operands : mapping of str to Statistics
        Statistics by ``site:a``, the left operand (activations, Q, or the attention weights
        P), and for the attention's products also by ``site:b``, the right one (K^T or V).
    channels : mapping of str to ndarray of float32, (K,)
        By the site of a linear layer: the absolute maximum of each column of
        its left operand.
    samples : int
        The number of sequences in the sample.
    golden : bool
        True if the sample was run in golden arithmetic.
    origin : Origin, optional
        The model that the calibration was made with. None for statistics that were put
        together by hand, which are not compared with a model's weights.
    place : str
        The file, for messages.
    hessians : mapping of str to ndarray of float64, (K, K)
        ``x^T x`` of a linear layer's input, by the layer's site, if the calibration was asked for
        it; GPTQ takes it. Layers that share an input have one, under the first of their sites.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> calibration
    <Calibration of bert-tiny-sst2: 2 samples, 22 operands>
    >>> calibration.operands["classifier:a"].absmax > 0
    True
    """

    operands: Mapping[str, Statistics]
    channels: Mapping[str, Float32Array]
    samples: int
    golden: bool = False
    origin: Origin | None = None
    place: str = "calibration"
    hessians: Mapping[str, Float64Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        model = "no model" if self.origin is None else self.origin.name
        golden = ", golden" if self.golden else ""
        counts = f"{self.samples} samples, {len(self.operands)} operands"
        return f"<Calibration of {model}: {counts}{golden}>"

    def scale(self, name: str, operand: Operand) -> Scale:
        """Compute the static scale of an operand, ``site:a`` or ``site:b``.

        Raises
        ------
        BertNumpyError
            If the calibration has no statistics of it, or its observer finds no scale.

        Examples
        --------
        >>> import bert_numpy
        >>> model = bert_numpy.load("bert-tiny-sst2")
        >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
        >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
        >>> calibration = bert_numpy.calibrate(model, batches)
        >>> operand = bert_numpy.Operand("E4M3FN")
        >>> scale = calibration.scale("encoder.layer.0.attention.scores:a", operand)
        >>> bool(scale.scale > 0), scale.zero_point
        (True, None)
        """
        require("name", name, str, "an operand's name, such as 'encoder.layer.0.output.dense:a'")
        _require_quantized(operand)
        if name not in self.operands:
            raise BertNumpyError(f"calibration: operand {name!r}: expected statistics, found none")
        try:
            return observed_scale(self.operands[name], operand)
        except BertNumpyError as error:
            raise BertNumpyError(f"calibration: operand {name!r}: {error}") from None


def observed_scale(seen: Statistics, operand: Operand) -> Scale:
    """Compute the scale that an operand's observer derives from statistics."""
    assert operand.element is not None
    low, high = clip_range(seen, operand.observer, operand.element, operand.percentile)
    return Scale.of(low, high, operand)


def _require_quantized(operand: object) -> None:
    """Raise unless a value is an operand with a format."""
    require("operand", operand, Operand, "an Operand")
    if isinstance(operand, Operand) and operand.fmt is None:
        raise BertNumpyError("operand: fmt: expected a format, found None")


def sqnr(seen: Statistics, operand: Operand) -> float:
    """Compute an operand's signal-to-quantization-noise ratio, in dB, with a static scale.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If the operand has no format, its observer finds no scale, or the format is a block
        format: statistics do not say which numbers shared a block.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> from bert_numpy.calibration import sqnr
    >>> seen = calibration.operands["encoder.layer.0.attention.self.query:a"]
    >>> sqnr(seen, bert_numpy.Operand("INT8")) > sqnr(seen, bert_numpy.Operand("E5M2"))
    True
    """
    require("seen", seen, Statistics, "statistics of an operand")
    _require_quantized(operand)
    assert operand.fmt is not None
    if isinstance(operand.fmt, BlockFormat):
        raise BertNumpyError(
            f"operand: fmt: expected a format with one scale per tensor, found {operand.fmt}: the "
            "statistics do not say which numbers shared a block"
        )
    signal, noise = quantization_noise(seen, operand.observer, operand.fmt, operand.percentile)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else math.nan


def calibrate(
    model: Model,
    batches: Iterable[Mapping[str, IntArray]],
    golden: bool = False,
    threads: int | None = None,
    hessians: bool = False,
) -> Calibration:
    """Run the model in float32 over a sample, and count the values of its activations.

    Memory does not grow with the sample: see :mod:`bert_numpy.quantization.observers`.

    Parameters
    ----------
    model : Model
        A model whose weights are not quantized.
    batches : iterable of mappings
        The arguments of calls of the model: ``input_ids`` and so on.
    golden : bool
        True to run in golden arithmetic, so that the statistics, and with
        them every code of the quantized model, are the same on every machine.
    threads : int, optional
        The number of threads that share the batches; by default one per core.
        The statistics are combined in the order of the batches.
    hessians : bool
        True to add up ``x^T x`` of every linear layer's input, which GPTQ takes. The batches then
        run one after the other, because sums of floats depend on their order. Golden mode refuses
        it, because the sums depend on the BLAS.

    Raises
    ------
    BertNumpyError
        If there is no batch, if a batch has other keys than the arguments of the model, if an
        operand is NaN or infinite (the message names the site), or if the model is quantized.
    TypeError
        If an argument is not of the type stated.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> bert_numpy.calibrate(model, batches)
    <Calibration of bert-tiny-sst2: 2 samples, 22 operands>
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    golden, hessians = flag("golden", golden), flag("hessians", hessians)
    if golden and hessians:
        raise BertNumpyError("hessians: expected False in golden mode: they depend on the BLAS")
    if threads is not None and (threads := integer("threads", threads)) < 1:
        raise BertNumpyError(f"threads: expected at least 1, found {threads}")
    expected = "a list of batches, each the arguments of the model"
    require_iterable("batches", batches, expected)
    if isinstance(batches, Mapping):
        raise wrong_type("batches", expected, batches)
    if any(isinstance(weight, QuantizedTensor) for weight in model.weights.values()):
        raise BertNumpyError(f"{model.name}: expected a model in float32 to calibrate, found codes")
    inner: EngineOf = GoldenEngine if golden else FloatEngine
    histograms: list[Histograms] = []  # one per thread
    sums: Hessians | None = {} if hessians else None
    mine = local()

    def observed(batch: Mapping[str, IntArray]) -> tuple[Sight, int]:
        require("batches", batch, Mapping, "mappings of the model's arguments")
        if "input_ids" not in batch or not set(batch) <= _ARGUMENTS:
            raise BertNumpyError(
                "batches: expected input_ids, and perhaps attention_mask and token_type_ids, "
                f"found {', '.join(map(str, batch)) or 'nothing'}"
            )
        if not hasattr(mine, "histograms"):
            mine.histograms = {}
            histograms.append(mine.histograms)
        sight = Sight(mine.histograms, sums)
        seen_by = lambda weights, given: ObservingEngine(inner(weights, given), sight)  # noqa: E731
        replace(model, engine=seen_by)(**batch)
        return sight, len(batch["input_ids"])

    operands: dict[str, Statistics] = {}
    channels: dict[str, Float32Array] = {}
    same: dict[str, str] = {}
    samples = 0
    count = 1 if hessians else threads or default_threads()
    for sight, size in map_in_order(observed, batches, count):
        for name, extrema in sight.extrema.items():
            operands[name] = follow(operands.get(name), extrema)
        for site, largest in sight.channels.items():
            channels[site] = np.maximum(channels.get(site, largest), largest)
        same |= sight.same
        samples += size
    if not samples:
        raise BertNumpyError("calibration: expected at least one sample, found none")
    first, *others = histograms
    for counted in others:
        for name, histogram in counted.items():
            first[name] = first[name] + histogram if name in first else histogram
    operands = {
        name: seen.with_histogram(first[same.get(name, name)]) for name, seen in operands.items()
    }
    return Calibration(operands, channels, samples, golden, origin_of(model), hessians=sums or {})


def check_calibration(calibration: Calibration, model: Model) -> None:
    """Raise :class:`BertNumpyError` if a calibration belongs to another model.

    This is the only such check: :func:`bert_numpy.apply_recipe` makes it before
    it computes any scale.
    """
    place = calibration.place
    if calibration.origin is not None:
        expected = origin_of(model)
        if _identity(calibration.origin) != _identity(expected):
            raise BertNumpyError(
                f"{place}: expected a calibration of this model, {expected}, "
                f"found one of {calibration.origin}"
            )
    sites = sites_of(model)
    layers = {site.name for site in sites if not site.is_attention}
    names = {f"{site.name}:a" for site in sites}
    names |= {f"{site.name}:b" for site in sites if site.is_attention}
    for name in calibration.operands:
        if name not in names:
            raise BertNumpyError(f"{place}: operand {name!r}: {model.name} has no such operand")
    for site, largest in calibration.channels.items():
        if site not in layers:
            raise BertNumpyError(f"{place}: channels of {site!r}: {model.name} has no such layer")
        weight = model.weights[f"{site}.weight"]
        if largest.shape != weight.shape[1:]:
            raise BertNumpyError(
                f"{place}: channels of {site!r}: expected {weight.shape[1]} numbers, as "
                f"{model.name} has inputs there, found shape {largest.shape}"
            )
    for site, hessian in calibration.hessians.items():
        if site not in layers:
            raise BertNumpyError(f"{place}: Hessian of {site!r}: {model.name} has no such layer")
        inputs = model.weights[f"{site}.weight"].shape[1]
        if hessian.shape != (inputs, inputs):
            raise BertNumpyError(
                f"{place}: Hessian of {site!r}: expected {inputs} rows and columns, as "
                f"{model.name} has inputs there, found shape {hessian.shape}"
            )


def _identity(origin: Origin | None) -> tuple[Any, ...]:
    """Return the part of an origin that all calibrations of one model share: all but its name."""
    return () if origin is None else (origin.sizes, origin.digest)


def merge_calibrations(a: Calibration, b: Calibration) -> Calibration:
    """Merge the calibrations of one model over two samples; the moving averages are ``b``'s.

    Raises
    ------
    BertNumpyError
        If the two are of different models, or have different sites.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> bert_numpy.merge_calibrations(calibration, calibration).samples
    4
    """
    for argument, given in (("a", a), ("b", b)):
        require(argument, given, Calibration, "a calibration")
    if _identity(a.origin) != _identity(b.origin):
        found = " and ".join(
            "one of no model" if x is None else str(x) for x in (a.origin, b.origin)
        )
        raise BertNumpyError(f"calibrations: expected both of one model, found {found}")
    for one, other in (
        (a.operands, b.operands), (a.channels, b.channels), (a.hessians, b.hessians)
    ):  # fmt: skip
        if one.keys() != other.keys():
            raise BertNumpyError("calibrations: expected the same sites in both")
    for site, largest in a.channels.items():
        if largest.shape != b.channels[site].shape:
            raise BertNumpyError(
                f"calibrations: channels of {site!r}: expected as many in both, found "
                f"{largest.size} and {b.channels[site].size}"
            )
    operands = {}
    for name, seen in a.operands.items():
        try:
            operands[name] = merge(seen, b.operands[name])
        except BertNumpyError as error:
            raise BertNumpyError(f"calibrations: operand {name!r}: {error}") from None
    return Calibration(
        operands,
        {site: np.maximum(seen, b.channels[site]) for site, seen in a.channels.items()},
        a.samples + b.samples,
        a.golden and b.golden,
        a.origin,
        hessians={site: seen + b.hessians[site] for site, seen in a.hessians.items()},
    )


def how_to_make(path: str | Path) -> str:
    """Return the command that writes a calibration file."""
    return (
        f"bert-numpy evaluate MODEL --task NAME --data DATA --format e4m3 --save-calibration {path}"
    )


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration to a safetensors file, atomically and without rounding.

    Each operand has ``NAME/range`` (the extrema and moving averages) and the
    histogram as ``NAME/bits`` and ``NAME/counts``; each linear layer has
    ``SITE/channels``, and ``SITE/hessian`` if there are Hessians: the upper triangle, row after
    row. The metadata holds the number of samples, and the name, the
    sizes and the digest of the model.

    Raises
    ------
    BertNumpyError
        If the file cannot be written, or the calibration does not belong to a model.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "scales.safetensors")
    ...     bert_numpy.save_calibration(calibration, path)
    ...     bert_numpy.load_calibration(path).samples
    2
    """
    require("calibration", calibration, Calibration, "a calibration")
    target = path_of("path", path)
    origin = calibration.origin
    if origin is None:
        raise BertNumpyError(
            f"{path}: expected a calibration that calibrate() made of a model, found statistics "
            "that were put together by hand"
        )
    tensors: dict[str, Array] = {}
    for name, seen in calibration.operands.items():
        tensors[f"{name}/range"] = np.array(
            [seen.low, seen.high, seen.average_low, seen.average_high]
        )
        tensors[f"{name}/bits"] = seen.bits
        tensors[f"{name}/counts"] = seen.counts
    for site, largest in calibration.channels.items():
        tensors[f"{site}/channels"] = largest
    for site, hessian in calibration.hessians.items():
        tensors[f"{site}/hessian"] = hessian[_upper(len(hessian))]
    metadata = {
        "format": _FILE_FORMAT,
        "samples": str(calibration.samples),
        "golden": str(calibration.golden).lower(),
        "model": origin.name,
        "sizes": json.dumps(dict(zip(SIZES, origin.sizes, strict=True))),
        "digest": origin.digest,
    }
    with writing(path):
        save_file(tensors, target, metadata)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration that :func:`save_calibration` wrote.

    It takes as much memory as the file has bytes, whatever the file contains.

    Raises
    ------
    BertNumpyError
        If the file is missing, damaged or changed, or if its numbers contradict each
        other. The message names the tensor or the key.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "scales.safetensors")
    ...     bert_numpy.save_calibration(calibration, path)
    ...     bert_numpy.load_calibration(path).samples
    2
    """
    path = path_of("path", path)
    with reading(path):
        tensors, metadata = load_file(path), read_metadata(path)

    def value(key: str, good: Any, expected: str) -> str:
        found = metadata.get(key, "")
        if not good(found):
            raise BertNumpyError(f"{path}: metadata {key!r}: expected {expected}, found {found!r}")
        return found

    if (version := metadata.get("format", "")) != _FILE_FORMAT:
        raise BertNumpyError(
            f"{path}: metadata 'format': expected {_FILE_FORMAT!r}, found {version!r}. To make "
            f"one: {how_to_make(path)}"
        )
    samples = int(value("samples", _is_positive, "a number of at least 1"))
    golden = value("golden", lambda x: x in ("true", "false"), "true or false") == "true"
    sizes = value("sizes", _sizes, f"a JSON object of the sizes {', '.join(SIZES)}, from 0 on")
    digest = value("digest", re.compile("[0-9a-f]{64}").fullmatch, "64 hexadecimal digits")
    name = value("model", bool, "the model's name")
    origin = Origin(name, _sizes(sizes), digest)

    operands, channels, hessians = {}, {}, {}
    for key in tensors:
        name, _, what = key.rpartition("/")
        pattern = {**dict.fromkeys(_OF_OPERANDS, _OPERAND), **dict.fromkeys(_OF_SITES, _SITE)}
        if what not in pattern or not pattern[what].fullmatch(name):
            raise BertNumpyError(
                f"{path}: tensor {key!r}: expected OPERAND/range, OPERAND/bits, OPERAND/counts, "
                "SITE/channels or SITE/hessian"
            )
        if what == "channels":
            channels[name] = _tensor(path, tensors, key, "float32", _are_magnitudes, "magnitudes")
        elif what == "hessian":
            hessians[name] = _stored_hessian(path, tensors, name)
        elif name not in operands:
            operands[name] = _stored_statistics(path, tensors, name)
    if not operands:
        raise BertNumpyError(f"{path}: expected statistics of at least one operand, found none")
    for site, largest in channels.items():
        seen = operands.get(f"{site}:a")
        if seen is not None and float(largest.max(initial=0)) != seen.absmax:
            raise BertNumpyError(
                f"{path}: tensor '{site}/channels': expected the largest to be {seen.absmax}, the "
                f"largest magnitude of '{site}:a', found {largest.max(initial=0)}"
            )
    _check_counts(path, operands, channels, samples, origin)
    return Calibration(operands, channels, samples, golden, origin, str(path), hessians)


def as_calibration(
    calibration: Calibration | str | Path, argument: str = "calibration"
) -> Calibration:
    """Return a calibration that is given as such, or as a file.

    Raises
    ------
    TypeError
        If it is neither.
    BertNumpyError
        As :func:`load_calibration`.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> from bert_numpy.quantization.calibration import as_calibration
    >>> as_calibration(calibration) is calibration
    True
    """
    return loaded(
        argument, calibration, Calibration, load_calibration, "a calibration or the path of one"
    )


def _stored_statistics(path: str | Path, tensors: Mapping[str, Any], name: str) -> Statistics:
    """Read an operand's statistics, and check that they do not contradict each other."""
    extrema = _tensor(
        path, tensors, f"{name}/range", "float64", _is_range, "4 numbers around 0, float32 extrema"
    )
    bits = _tensor(path, tensors, f"{name}/bits", "uint16", _rises, "rising numbers")
    counts = _tensor(
        path,
        tensors,
        f"{name}/counts",
        "int64",
        lambda x: x.size == bits.size and (x > 0).all(),
        f"{bits.size} positive numbers",
    )
    if sum(counts.tolist()) > MOST_ELEMENTS:  # Python's integers cannot overflow
        raise BertNumpyError(
            f"{path}: tensor '{name}/counts': expected at most {MOST_ELEMENTS} in all, found "
            f"{sum(counts.tolist())}"
        )
    low, high, average_low, average_high = extrema.tolist()
    seen = Statistics(low, high, average_low, average_high, bits, counts)
    problem = contradiction(seen)
    if problem is not None:
        which, what = problem
        raise BertNumpyError(f"{path}: tensor '{name}/{which}': expected {what}")
    return seen


def _stored_hessian(path: str | Path, tensors: Mapping[str, Any], site: str) -> Float64Array:
    """Read a Hessian of a linear layer from its upper triangle."""
    channels = tensors.get(f"{site}/channels")
    inputs = channels.size if isinstance(channels, np.ndarray) else 0
    size = inputs * (inputs + 1) // 2
    found = _tensor(
        path,
        tensors,
        f"{site}/hessian",
        "float64",
        lambda x: x.size == size and np.isfinite(x).all(),
        f"{size} finite numbers, the upper triangle for the {inputs} numbers of '{site}/channels'",
    )
    upper = _upper(inputs)
    hessian = np.zeros((inputs, inputs))
    hessian[upper] = found
    if (np.diag(hessian) < 0).any():
        raise BertNumpyError(f"{path}: tensor '{site}/hessian': expected no negative diagonal")
    return np.where(upper, hessian, hessian.T)


def _upper(size: int) -> npt.NDArray[np.bool_]:
    """Return where the upper triangle of a square matrix is, with the diagonal."""
    return np.tri(size, dtype=bool).T


def _check_counts(
    path: str | Path,
    operands: Mapping[str, Statistics],
    channels: Mapping[str, Float32Array],
    samples: int,
    origin: Origin | None,
) -> None:
    """Check that all layers have counted the same tokens, at least one per sample."""
    tokens_of: dict[int | None, int] = {}  # by layer: the tokens at its first site
    numbers = {site_named(site).layer for site in channels} - {None}
    shared = origin is not None and len(numbers) < origin.sizes[SIZES.index("num_hidden_layers")]
    for site, largest in channels.items():
        if f"{site}:a" not in operands:
            continue
        count = operands[f"{site}:a"].count
        tokens, rest = divmod(count, max(largest.size, 1))
        layer = site_named(site).layer
        # All layers see the same tokens, but layers with shared parameters see them repeatedly.
        key = layer if shared or layer is None else 0
        wanted = tokens if layer is None else tokens_of.setdefault(key, tokens)
        if rest or tokens != wanted or tokens < samples:
            raise BertNumpyError(
                f"{path}: tensor '{site}:a/counts': expected {largest.size} elements for each of "
                f"{max(wanted, samples)} tokens, found {count}"
            )
    for name, seen in operands.items():
        site, _, _ = name.rpartition(".attention.")
        alike = {
            f"{site}.attention.scores:a": f"{site}.attention.self.query:a",
            f"{site}.attention.context:b": f"{site}.attention.scores:b",
        }.get(name)
        if alike is not None and alike in operands and operands[alike].count != seen.count:
            raise BertNumpyError(
                f"{path}: tensor '{name}/counts': expected {operands[alike].count}, as '{alike}' "
                f"has, found {seen.count}"
            )


def _tensor(
    path: str | Path,
    tensors: Mapping[str, Any],
    key: str,
    dtype: str,
    good: Callable[[Array], Any],
    expected: str,
) -> Array:
    """Return a tensor of a file, checked to have one axis, the dtype and ``good`` numbers."""
    found = tensors.get(key)
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim != 1:
        what = "nothing" if found is None else getattr(found, "dtype", type(found).__name__)
        raise BertNumpyError(f"{path}: tensor {key!r}: expected 1-D {dtype}, found {what}")
    if not good(found):
        raise BertNumpyError(f"{path}: tensor {key!r}: expected {expected}")
    return found


def _sizes(text: str) -> tuple[int, ...]:
    """Parse the sizes in a file's metadata; an empty tuple if they are invalid."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(found, dict) or found.keys() != set(SIZES):
        return ()
    sizes = tuple(found[name] for name in SIZES)
    return sizes if all(type(size) is int and 0 <= size < 2**63 for size in sizes) else ()


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) > 0


def _is_range(x: Float64Array) -> bool:
    largest = np.finfo(np.float32).max
    if x.size != 4 or not (np.abs(x) <= largest).all():
        return False
    return bool(x[0] <= 0 <= x[1] and (x[:2] == x[:2].astype(np.float32)).all())


def _rises(x: npt.NDArray[np.uint16]) -> bool:
    return bool((np.diff(x.astype(np.int64)) > 0).all())


def _are_magnitudes(x: Float32Array) -> bool:
    return bool(np.isfinite(x).all() and (x >= 0).all())
