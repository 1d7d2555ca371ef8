"""Calibration: the range of every product's operands over a sample of real input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.config import read_json
from bert_numpy.errors import BertNumpyError
from bert_numpy.model import Model
from bert_numpy.policy import Operand, Policy, float32_policy
from npfp8 import Format, absmax_scale
from npfp8.files import replaced_file

__all__ = ["Calibration", "calibrate", "load_calibration", "save_calibration"]

Float32Array = npt.NDArray[np.float32]

_FILE_FORMAT = "bert-numpy calibration 1"
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Calibration:
    """The absolute maxima of both operands of every site.

    Attributes
    ----------
    absmax : mapping of str to (float, float)
        By site: the left operand (the activations, Q, or the attention
        weights P) and the right one (the layer's weights, K^T, or V).
    samples : int
        How many sequences were seen.
    golden : bool
        Whether they were run in golden arithmetic.
    """

    absmax: Mapping[str, tuple[float, float]]
    samples: int
    golden: bool = False

    def scales(self, site: str, fmt: Format) -> tuple[Float32Array, Float32Array]:
        """The static scales of both operands of ``site`` in ``fmt``.

        Raises
        ------
        BertNumpyError
            If the calibration did not see the site.
        """
        if site not in self.absmax:
            raise BertNumpyError(f"calibration: site {site!r}: expected absmax, found none")
        left, right = self.absmax[site]
        return absmax_scale(left, fmt), absmax_scale(right, fmt)


def calibrate(
    model: Model, batches: Iterable[Mapping[str, npt.NDArray[np.int64]]], golden: bool = False
) -> Calibration:
    """Run the model in float32 over a sample and note the operands' absolute maxima.

    Parameters
    ----------
    model : Model
        Its weights must not be quantized.
    batches : iterable of mappings
        The arguments of calls of the model: ``input_ids`` and so on.
    golden : bool
        Whether to run in golden arithmetic, so that the maxima, and with them
        every code of the quantized model, are the same on every machine.

    Raises
    ------
    BertNumpyError
        If there is no batch, or an operand is NaN or infinite; names the site.
    """
    absmax: dict[str, tuple[float, float]] = {}
    observing = replace(model, policy=observing_policy(float32_policy(golden), absmax))
    samples = 0
    for batch in batches:
        observing(**batch)
        samples += len(batch["input_ids"])
    if not samples:
        raise BertNumpyError("calibration: expected at least one sample, found none")
    return Calibration(absmax, samples, golden)


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration to a JSON file, whole or not at all; every maximum to its last bit.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.
    """
    content = {
        "format": _FILE_FORMAT,
        "samples": calibration.samples,
        "golden": calibration.golden,
        "absmax": {site: list(pair) for site, pair in calibration.absmax.items()},
    }
    try:
        with replaced_file(Path(path)) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise BertNumpyError(f"{path}: cannot be written: {error.strerror or error}") from None


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration that :func:`save_calibration` wrote.

    Raises
    ------
    BertNumpyError
        If the file is missing or is not as it was written; names the key or the site.
    """
    content = read_json(Path(path))

    def get(key: str, kind: type) -> Any:
        value = content.get(key)
        if type(value) is not kind:
            raise BertNumpyError(f"{path}: key {key!r}: expected {kind.__name__}, found {value!r}")
        return value

    if get("format", str) != _FILE_FORMAT:
        raise BertNumpyError(
            f"{path}: key 'format': expected {_FILE_FORMAT!r}, found {content['format']!r}"
        )
    absmax: dict[str, tuple[float, float]] = {}
    for site, pair in get("absmax", dict).items():
        numbers = pair if isinstance(pair, list) else []
        good = [x for x in numbers if type(x) in (int, float) and 0 <= x <= _LARGEST]
        if not len(numbers) == len(good) == 2:
            raise BertNumpyError(
                f"{path}: site {site!r}: expected two numbers, finite and not negative, "
                f"found {pair!r}"
            )
        absmax[site] = (float(good[0]), float(good[1]))
    if get("samples", int) < 1:
        raise BertNumpyError(
            f"{path}: key 'samples': expected at least 1, found {get('samples', int)}"
        )
    return Calibration(absmax, get("samples", int), get("golden", bool))


def observing_policy(inner: Policy, absmax: dict[str, tuple[float, float]]) -> Policy:
    """A policy that computes as ``inner`` does and notes the absolute maxima of each site."""

    def gemm(site: str, a: Float32Array, b: Operand, bias: Float32Array | None) -> Float32Array:
        assert isinstance(b, np.ndarray), site
        seen = absmax.get(site, (0.0, 0.0))
        absmax[site] = (_larger(site, seen[0], a), _larger(site, seen[1], b))
        return inner.gemm(site, a, b, bias)

    return Policy(gemm, inner.arithmetic)


def _larger(site: str, seen: float, x: Float32Array) -> float:
    largest = float(np.maximum(x.max(), -x.min()))
    if not np.isfinite(largest):
        raise BertNumpyError(
            f"calibration: site {site!r}: expected finite operands, found {largest}"
        )
    return max(seen, largest)
