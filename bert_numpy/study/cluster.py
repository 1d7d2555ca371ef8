"""Running the study's cells on processes and machines, by dask.distributed (extra: study)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bert_numpy.commands.options import positive
from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.study.cells import Cell, Result, Subject, cells_of, merged, run_cell

__all__ = ["add_cluster_options", "connect", "results_of", "run_cells"]

#: The environment that the workers start with, as numpy and glibc read it only once.
_ENVIRONMENT = {
    # The cluster's processes are the parallelism; their products must not depend on its size.
    **dict.fromkeys(
        ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), 1
    ),
    # By default glibc returns the memory of large arrays to the system at once, which clears
    # every page before reuse: a third of the time at base size.
    "MALLOC_MMAP_THRESHOLD_": 1 << 32,
    "MALLOC_TRIM_THRESHOLD_": 1 << 33,
}


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a study: the size of a cell, and the place where the cells run."""
    parser.add_argument(
        "--cell", type=positive, default=512, metavar="N", help="examples in a cell"
    )
    parser.add_argument("--workers", type=positive, default=2, help="processes on this machine")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a scheduler that runs already")


def connect(workers: int, scheduler: str | None = None) -> Any:
    """Connect to the scheduler at an address, or to a new local cluster of processes.

    Raises
    ------
    BertNumpyError
        If dask.distributed is not installed.
    """
    try:
        import dask  # noqa: PLC0415 (an extra)
        from dask.distributed import Client, LocalCluster  # noqa: PLC0415
    except ImportError:
        raise BertNumpyError(
            "cluster: expected dask.distributed, found none: pip install 'fp8-bert-numpy[study]'"
        ) from None
    if scheduler:
        return Client(scheduler)
    with dask.config.set({"distributed.nanny.pre-spawn-environ": _ENVIRONMENT}):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
        )
    return Client(cluster)


def run_cells(cells: Sequence[Cell], client: Any) -> None:
    """Run the cells that have no file yet; another worker runs the cells of a lost one."""
    from dask.distributed import as_completed  # noqa: PLC0415 (an extra)

    wanted = [cell for cell in cells if not cell.file.exists()]
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("cells", total=len(wanted))
        for future in as_completed(client.map(run_cell, wanted, pure=False, retries=3)):
            future.result()
            progress.advance(task)


def results_of(
    subject: Subject, recipes: Sequence[Recipe], folder: Path, client: Any, size: int
) -> list[Result]:
    """Run the missing cells of several recipes on a subject, and return a result per recipe."""
    every = [cells_of(subject, recipe, folder, size) for recipe in recipes]
    run_cells([cell for cells in every for cell in cells], client)
    return [merged(cells) for cells in every]
