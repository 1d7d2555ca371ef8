"""The outlier channels of a model's activations, found in a calibration.

A channel is a column of a linear layer's input. One scale per tensor becomes
coarse if a channel is far larger than the typical one: the ratio to the
median channel tells how many levels of a uniform format the others lose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.model.sites import site_named
from bert_numpy.quantization.calibration import Calibration, sqnr
from bert_numpy.quantization.recipe import Operand
from bert_numpy.study.sites import place_in_layer
from npfp8 import E4M3FN, INT8
from npfp8.bfloat16 import from_bits

__all__ = ["INPUTS", "RATIO", "THRESHOLD", "outlier_channels", "recurring_channels"]

#: The inputs in a layer, by the place of the linear layer that multiplies them.
#: Key and value have the same input as query.
INPUTS: Mapping[str, str] = {
    "attention.self.query": "LayerNorm, to query, key and value",
    "attention.output.dense": "attention's context",
    "intermediate.dense": "LayerNorm, to the feed-forward network",
    "output.dense": "GELU",
}

#: A channel is an outlier if its largest magnitude is above this times the median channel's,
RATIO = 6.0

#: or, by the rule of LLM.int8() (Dettmers et al., arXiv 2208.07339), above this.
THRESHOLD = 6.0


def outlier_channels(calibration: Calibration, top: int = 3) -> list[dict[str, Any]]:
    """List the largest channels of every input in the encoder.

    Parameters
    ----------
    calibration : Calibration
    top : int
        The number of largest channels to list.

    Returns
    -------
    list of dict
        One dict per layer and place of :data:`INPUTS`, by layer and in the order of the data
        flow. Its keys are:

        - ``place`` and ``layer``;
        - ``channels``, their number, and ``median``, the median of their largest magnitudes;
        - ``top``, dicts of ``channel``, ``absmax`` and ``ratio``, the largest first;
        - ``outliers``, the channels above :data:`RATIO` times the median, ascending;
        - ``above_threshold``, the number of channels above :data:`THRESHOLD`;
        - ``per_token``, the elements above :data:`RATIO` times the median per token, which is
          at least the share of tokens that have one;
        - ``int8`` and ``e4m3``, the signal-to-quantization-noise ratio in dB with one scale
          per tensor.

        A ratio is None if the median is 0, a noise ratio if there is no noise or no signal.

    Raises
    ------
    BertNumpyError
        If the calibration has the channels of an input but no statistics of its elements.
    """
    rows = []
    for name, largest in calibration.channels.items():
        layer = site_named(name).layer
        if layer is None or (place := place_in_layer(name)) not in INPUTS:
            continue
        median = float(np.median(largest))
        order = np.argsort(-largest, kind="stable")[:top]
        seen = calibration.operands.get(f"{name}:a")
        if seen is None:
            raise BertNumpyError(
                f"{calibration.place}: operand '{name}:a': expected statistics, found none"
            )
        magnitudes = np.abs(from_bits(seen.bits))
        above = int(seen.counts[magnitudes > RATIO * median].sum())
        noise = {"int8": sqnr(seen, Operand(INT8)), "e4m3": sqnr(seen, Operand(E4M3FN))}
        rows.append(
            {
                "place": place,
                "layer": layer,
                "channels": largest.size,
                "median": median,
                "top": [
                    {
                        "channel": int(i),
                        "absmax": float(largest[i]),
                        "ratio": float(largest[i]) / median if median else None,
                    }
                    for i in order
                ],
                "outliers": np.flatnonzero(largest > RATIO * median).tolist(),
                "above_threshold": int(np.count_nonzero(largest > THRESHOLD)),
                "per_token": above * largest.size / seen.count,
                **{name: ratio if math.isfinite(ratio) else None for name, ratio in noise.items()},
            }
        )
    return sorted(rows, key=lambda row: (row["layer"], list(INPUTS).index(row["place"])))


def recurring_channels(rows: Sequence[Mapping[str, Any]], place: str) -> dict[int, int]:
    """Count the layers of each channel that is an outlier in at least half of the layers.

    Parameters
    ----------
    rows : sequence of mappings
        The rows of :func:`outlier_channels`.
    place : str
        A key of :data:`INPUTS`.
    """
    layers = [row["outliers"] for row in rows if row["place"] == place]
    counts = Counter(channel for outliers in layers for channel in outliers)
    return {
        channel: count
        for channel, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if 2 * count >= len(layers) and count > 1
    }
