"""Measure a kit as text: cases, files, bytes and seconds of each form, and of reading it back."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.kit.candidate import load_candidate
from bert_numpy.kit.manifest import LEVELS, Kit, open_kit
from bert_numpy.kit.text import write_kit_text
from npfp8.vectors.writers import FORMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kit", default=EMBEDDED)
    arguments = parser.parse_args()
    kit = open_kit(arguments.kit)
    print("| level | form | cases | results | files | bytes | seconds | read back, seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for level in LEVELS:
        for form, how in FORMS.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                start = time.perf_counter()
                done = write_kit_text(kit, folder, form, [level])
                seconds = time.perf_counter() - start
                back = "" if form == "c" else f"{_read_back(folder, how.suffix, kit):.2f}"
            print(
                f"| {level} | {form} | {done.cases} | {done.results} | {done.files:,} | "
                f"{done.size:,} | {seconds:.2f} | {back} |"
            )


def _read_back(folder: Path, suffix: str, kit: Kit) -> float:
    """Return the seconds of reading the expected files as results."""
    end = f".expected{suffix}"
    for path in list(folder.rglob(f"*{end}")):
        shutil.copy(path, path.with_name(path.name.removesuffix(end) + suffix))
    start = time.perf_counter()
    load_candidate(folder, kit)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
