"""The statistics of a model's features on texts of the source domain, kept at calibration.

A few texts like those that the model was trained on are enough. Their means and standard
deviations are all that an adaptation needs of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_numpy.adaptation.run import adapted_run
from bert_numpy.errors import BertNumpyError, reading, writing
from bert_numpy.finite import require_finite
from bert_numpy.model.model import Model, require_head
from npfp8.arguments import path_of, require, require_iterable
from npfp8.arrays import Array, Float64Array
from npfp8.storage import load_file, read_metadata, save_file

__all__ = [
    "FeatureStatistics",
    "load_statistics",
    "save_statistics",
    "source_statistics",
    "statistics_of",
]

_FILE_FORMAT = "bert_numpy feature statistics 1"


@dataclass(frozen=True, eq=False, repr=False)
class FeatureStatistics:
    """Means and standard deviations of the features of each layer.

    Attributes
    ----------
    mean, deviation : ndarray of float64, (layers, hidden)
        The deviation of a sample, with ``samples - 1`` in the denominator.
    samples : int
        The number of texts.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.adaptation import statistics_of
    >>> statistics_of(np.ones((64, 12, 768), np.float32))
    <FeatureStatistics of 64 texts, 12 layers of 768>
    """

    mean: Float64Array
    deviation: Float64Array
    samples: int

    def __repr__(self) -> str:
        layers, hidden = self.mean.shape
        return f"<FeatureStatistics of {self.samples} texts, {layers} layers of {hidden}>"


def statistics_of(features: Array) -> FeatureStatistics:
    """Compute the statistics of features, (texts, layers, hidden), in float64.

    Raises
    ------
    TypeError
        If the features are no array.
    BertNumpyError
        If they have another number of axes, if there are fewer than two texts, or if a feature
        is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.adaptation import statistics_of
    >>> found = statistics_of(np.array([[[1.0, 0.0]], [[3.0, 4.0]]]))
    >>> found.mean, found.deviation
    (array([[2., 2.]]), array([[1.41421356, 2.82842712]]))
    """
    require("features", features, np.ndarray, "an array of floats, (texts, layers, hidden)")
    if features.ndim != 3:
        raise BertNumpyError(
            f"features: expected shape (texts, layers, hidden), found {features.shape}"
        )
    if len(features) < 2:
        raise BertNumpyError(f"features: expected those of at least 2 texts, found {len(features)}")
    require_finite("features", features)
    x = features.astype(np.float64)
    return FeatureStatistics(x.mean(axis=0), x.std(axis=0, ddof=1), len(x))


def source_statistics(
    model: Model, batches: Iterable[Mapping[str, npt.ArrayLike]]
) -> FeatureStatistics:
    """Run a model over texts of the source domain, and keep the statistics of its features.

    Parameters
    ----------
    model : Model
        The model that will be adapted: the statistics of a quantized model are its own.
    batches : iterable of mappings
        The arguments of the model for each batch of texts, for example of the training data.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If there are fewer than two texts, a feature is not finite, or the model has another
        head than sequence classification.

    Examples
    --------
    >>> import bert_numpy
    >>> from bert_numpy.adaptation import source_statistics
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> source_statistics(model, [tokenizer.batch(["a warm and funny film", "dull and slow"])])
    <FeatureStatistics of 2 texts, 2 layers of 128>
    """
    require_head(model, "sequence classification")
    require_iterable("batches", batches, "a list of batches, each the arguments of the model")
    hidden = model.config.hidden_size
    found = [np.zeros((0, model.config.num_hidden_layers, hidden), np.float32)]
    found += [adapted_run(model, batch).features for batch in batches]
    return statistics_of(np.concatenate(found))


def save_statistics(statistics: FeatureStatistics, path: str | Path) -> None:
    """Write statistics to a safetensors file, atomically and without rounding.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If the file cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from bert_numpy.adaptation import save_statistics, statistics_of
    >>> with TemporaryDirectory() as folder:
    ...     save_statistics(statistics_of(np.eye(4)[:, None]), Path(folder, "source.safetensors"))
    """
    require("statistics", statistics, FeatureStatistics, "statistics of features")
    target = path_of("path", path)
    tensors: dict[str, Array] = {"mean": statistics.mean, "deviation": statistics.deviation}
    metadata = {"format": _FILE_FORMAT, "samples": str(statistics.samples)}
    with writing(path):
        save_file(tensors, target, metadata)


def load_statistics(path: str | Path) -> FeatureStatistics:
    """Read statistics that :func:`save_statistics` wrote.

    Raises
    ------
    TypeError
        If the argument is no path.
    BertNumpyError
        If the file is missing, damaged, or not of this kind.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from bert_numpy.adaptation import load_statistics, save_statistics, statistics_of
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "source.safetensors")
    ...     save_statistics(statistics_of(np.eye(4)[:, None]), file)
    ...     load_statistics(file)
    <FeatureStatistics of 4 texts, 1 layers of 4>
    """
    path = path_of("path", path)
    with reading(path):
        tensors, metadata = load_file(path), read_metadata(path)
    if (version := metadata.get("format", "")) != _FILE_FORMAT:
        raise BertNumpyError(
            f"{path}: metadata 'format': expected {_FILE_FORMAT!r}, found {version!r}"
        )
    samples = metadata.get("samples", "")
    if not (samples.isascii() and samples.isdecimal() and len(samples) < 19 and int(samples) > 1):
        raise BertNumpyError(
            f"{path}: metadata 'samples': expected a number of at least 2, found {samples!r}"
        )
    found: list[Float64Array] = []
    for name in ("mean", "deviation"):
        x = tensors.get(name)
        if not isinstance(x, np.ndarray) or x.dtype != np.float64 or x.ndim != 2 or not x.size:
            raise BertNumpyError(f"{path}: tensor {name!r}: expected 2-D float64")
        require_finite(f"{path}: tensor {name!r}", x)
        found.append(x)
    mean, deviation = found
    if mean.shape != deviation.shape or (deviation < 0).any():
        raise BertNumpyError(
            f"{path}: tensor 'deviation': expected the shape of 'mean', and no negative numbers"
        )
    return FeatureStatistics(mean, deviation, int(samples))
