"""Make what docs/byte, the page of a byte in the browser, is given: its tables and its archive.

    python scripts/make_byte_page.py                # write docs/byte/tables.json (committed)
    python scripts/make_byte_page.py --check        # exit 1 if the committed one differs
    python scripts/make_byte_page.py --archive      # write docs/byte/project.zip (not committed)

The tables are the formats of npfp8 with the value of every code, a row of numbers for the
block with an outlier, accuracies at base size from docs/data/results-base.json, and the golden
logits of a sentence. The archive holds the packages, the embedded model, the two scripts of
proof and the committed digests: what the page's button runs in Pyodide. A site's build needs
the archive beside the page: run the third line first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy import PRESETS, apply_recipe, load, load_tokenizer
from bert_numpy.colors import color_of
from bert_numpy.evaluation.evaluate import calibrate_on
from bert_numpy.study.tables import first_metric, results_by_model
from bert_numpy.tasks.glue import read_examples, task_named
from npfp8.blocks import (
    BLOCK_FORMATS,
    POWER_RULES,
    RATIO_RULES,
    BlockFormat,
    PowerRule,
    RatioRule,
)
from npfp8.files import replaced_file
from npfp8.formats import FORMATS, Format, IntFormat

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "byte"
RESULTS = REPOSITORY / "docs" / "data" / "results-base.json"

#: The recipes of the sentence, by the name that the page shows; and of the results, if measured.
RECIPES = {
    "fp32": "FP32",
    "int8": "INT8",
    "e4m3": "E4M3",
    "e5m2": "E5M2",
    "mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
}

SENTENCE = "a warm and funny film"

#: Reviews of the calibration; as in scripts/prove_golden.py.
SAMPLES = 24

#: The formats with one scale for a whole row of numbers, from its absolute maximum.
ROW_FORMATS = [
    {"name": name, "element": element, "colour": color_of(name)}
    for name, element in {"INT8": "INT8", "E4M3": "E4M3FN", "E5M2": "E5M2"}.items()
]

#: What the archive holds besides the packages; the page's own modules stand at its top.
OTHERS = (
    "scripts/prove_codec.py",
    "scripts/prove_golden.py",
    "tests/digests/codec.txt",
    "tests/digests/golden.json",
)
MODULES = ("proof.py", "wordpiece.py")

#: The embedded kit, which the page does not read.
LEFT_OUT = "bert-tiny-sst2-kit"


def tables() -> dict[str, Any]:
    """Make the content of tables.json."""
    return {
        "formats": [format_table(fmt) for fmt in FORMATS.values()],
        "row_formats": ROW_FORMATS,
        "block_formats": [block_format_table(fmt) for fmt in BLOCK_FORMATS.values()],
        "rules": rules(),
        "row": row(64),
        "results": list(results()),
        "proof": proof(),
        "sentence": sentence(),
    }


def format_table(fmt: Format) -> dict[str, Any]:
    """Describe a format, with the value of each code, by its bits."""
    values = [_number(value) for value in fmt.values.tolist()]
    named = {"colour": color_of(fmt.name), **asdict(fmt)}
    if isinstance(fmt, IntFormat):
        return {"kind": "integer", **named, "bits": fmt.bits, "values": values}
    return {
        "kind": "float",
        **named,
        "bits": fmt.bits,
        "sign_bit": fmt.sign_bit,
        "max_code": fmt.max_code,
        "infinity_code": fmt.infinity_code,
        "nan_code": fmt.nan_code,
        "quiet_nan_code": fmt.quiet_nan_code,
        "values": values,
        "next": float(fmt.grid[-1]),
    }


def block_format_table(fmt: BlockFormat) -> dict[str, Any]:
    """Describe a block format, with the names of its rules; rules.js has a function for each."""
    return {
        "name": fmt.name,
        "element": fmt.element.name,
        "block": fmt.block,
        "scale_format": fmt.scale_format.name,
        "tensor_scale": fmt.tensor_scale,
        "rule": fmt.rule,
        "rules": list(rules_of(fmt)),
        "colour": color_of(fmt.name),
    }


def rules_of(fmt: BlockFormat) -> dict[str, PowerRule | RatioRule]:
    """Return the rules that a block format can have."""
    if not fmt.powers_of_two:
        return {**RATIO_RULES}
    element = fmt.element
    return {
        name: rule
        for name, rule in POWER_RULES.items()
        if not rule.elements or element in rule.elements
    }


def rules() -> dict[str, dict[str, str]]:
    """Describe the rules, by the format of the scales and by name."""
    found: dict[str, dict[str, str]] = {}
    for fmt in BLOCK_FORMATS.values():
        known = found.setdefault(fmt.scale_format.name, {})
        known |= {name: rule.description for name, rule in rules_of(fmt).items()}
    return found


def _number(value: float) -> float | str:
    """Write NaN and infinities as the strings that JavaScript reads; JSON has none."""
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def row(count: int) -> list[float]:
    """Draw the numbers of a block: a normal sample, with three decimals."""
    sample = np.random.default_rng(0).standard_normal(count)
    return [round(number, 3) for number in sample.tolist()]


def results() -> Iterator[dict[str, Any]]:
    """Yield the score and the flips of each recipe at base size, by model and task."""
    rows = json.loads(RESULTS.read_text())["accuracy"]
    for (model, task), found in results_by_model(rows).items():
        metric = first_metric(found["fp32"])
        scores = {
            name: {"score": found[recipe][metric], "flips": found[recipe]["flips"]}
            for recipe, name in RECIPES.items()
            if recipe in found
        }
        examples = found["fp32"]["examples"]
        yield {
            "model": model,
            "task": task,
            "metric": metric,
            "examples": examples,
            "recipes": scores,
        }


def proof() -> dict[str, int]:
    """Count the digests that are committed: of the golden job, and of each block of the codec."""
    digests = REPOSITORY / "tests" / "digests"
    codec = (digests / "codec.txt").read_text().splitlines()
    return {
        "golden": len(json.loads((digests / "golden.json").read_text())),
        "codec": len(codec) // 256,
    }


def sentence() -> dict[str, Any]:
    """Hash the golden logits of a sentence by the embedded model: equal on every machine."""
    name = "bert-tiny-sst2"
    model, tokenizer = load(name), load_tokenizer(name)
    reviews = REPOSITORY / "bert_numpy" / "assets" / "reviews" / "train.tsv"
    texts = read_examples(reviews, task_named("sst2")).sample(SAMPLES).texts
    calibration = calibrate_on(model, tokenizer.encode(texts, None, 128), golden=True)
    batch = tokenizer.batch([SENTENCE])
    digests = {}
    for recipe in RECIPES:
        logits = apply_recipe(model, PRESETS[recipe], calibration, golden=True)(**batch).logits
        assert logits is not None
        digests[recipe] = hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()
    return {"text": SENTENCE, "recipes": RECIPES, "sha256": digests}


def text_of(content: dict[str, Any]) -> str:
    """Write JSON with a line for each entry of a list."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            shown = "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]"
        else:
            shown = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def archive_files() -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each file of the archive, in order."""
    for module in MODULES:
        yield module, PAGE / module
    for other in OTHERS:
        yield other, REPOSITORY / other
    for package in ("bert_numpy", "npfp8"):
        for path in sorted((REPOSITORY / package).rglob("*")):
            if path.is_file() and not {"__pycache__", LEFT_OUT} & set(path.parts):
                yield path.relative_to(REPOSITORY).as_posix(), path


def write_archive(path: Path) -> None:
    """Write the archive; the same files give the same bytes."""
    with replaced_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in archive_files():
            archive.writestr(
                zipfile.ZipInfo(name), source.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the committed tables")
    action.add_argument("--archive", action="store_true", help="write the archive instead")
    parser.add_argument(
        "--folder", type=Path, default=PAGE, help="of the files (default: the page's)"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.archive:
        write_archive(folder / "project.zip")
        return 0
    path, text = folder / "tables.json", text_of(tables())
    if not arguments.check:
        with replaced_file(path) as file:
            file.write(text.encode())
    elif path.read_text() != text:
        print(f"{path}: differs from what npfp8 gives; run python scripts/make_byte_page.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
