"""Find the outlier channels, their sizes and their sites, in calibrations.

    python scripts/measure_outliers.py CALIBRATION... --out DIR [--top N]

A calibration of `bert-numpy evaluate --save-calibration` or reproduce_paper.py has the
largest magnitude of every input channel of every linear layer. The report lists for each
linear layer in the encoder the largest channels and their ratio to the median channel. It
counts the channels above 6 times the median and above 6 (the threshold of LLM.int8()), and
names those that are outliers in half of the layers. It has the signal-to-quantization-noise
ratio in INT8 and E4M3. The script writes DIR/outlier-channels.json, .md and .png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bert_numpy.commands.options import positive
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.calibration import load_calibration
from bert_numpy.study.channels import outlier_channels
from bert_numpy.study.figures import draw_outliers
from bert_numpy.study.tables import outlier_sites, outlier_summary


def measure(path: Path, top: int = 3) -> dict[str, Any]:
    """List the outlier channels of one calibration.

    Raises
    ------
    BertNumpyError
        If it cannot be read, or has no linear layer of an encoder.
    """
    calibration = load_calibration(path)
    inputs = outlier_channels(calibration, top)
    if not inputs:
        raise BertNumpyError(f"{path}: expected channels of an encoder's layers, found none")
    assert calibration.origin is not None  # a file always has it
    name = Path(calibration.origin.name).name
    return {"model": name, "samples": calibration.samples, "inputs": inputs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calibrations", nargs="+", type=Path, metavar="CALIBRATION")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--top", type=positive, default=3, help="the largest channels listed")
    arguments = parser.parse_args()

    reports = [measure(path, arguments.top) for path in arguments.calibrations]
    text = "\n".join([outlier_summary(reports), *map(outlier_sites, reports)])
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write_json(str(out / "outlier-channels.json"), reports)
    write_text(out / "outlier-channels.md", text)
    draw_outliers(reports, out / "outlier-channels.png")
    print(text)


if __name__ == "__main__":
    main()
