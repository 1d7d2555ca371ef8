"""Test vectors of the codec in files: for hardware, simulators and kernels without Python.

A file has the cases of one format, one mode and one float type. In the direction *encode* the
cases are every number at which the rounding changes its result and the numbers next to it, the
overflow threshold, subnormals, zeros, infinities and NaNs; in the direction *decode* they are all
codes. Comment lines state the rules. They are followed by one case per line, in hexadecimal, like
TestFloat's::

    43E80000 7E 01

These are the bits of the input, the code, and flags; in stochastic rounding the random bits follow
the input. An implementation under test reads the input and writes its results in place of the
flags; :func:`check_results` checks such a file. The files are the same on every machine, and have
three written forms: text, memory files for ``$readmemh``, and C headers
(:mod:`npfp8.vectors.writers`).

A module imports only from those before it: :mod:`~npfp8.vectors.modes` and
:mod:`~npfp8.vectors.sources` list what there is, :mod:`~npfp8.vectors.flags` and
:mod:`~npfp8.vectors.cases` make the cases, :mod:`~npfp8.vectors.columns`,
:mod:`~npfp8.vectors.writers` and :mod:`~npfp8.vectors.readers` have the written forms,
:mod:`~npfp8.vectors.files` writes and reads the files, and :mod:`~npfp8.vectors.results` compares.
"""

from npfp8.vectors.cases import Vectors, boundary_inputs, make_vectors
from npfp8.vectors.files import format_vectors, read_vectors, write_all_vectors
from npfp8.vectors.modes import DECODE, DEFAULT_MODES, MODES
from npfp8.vectors.results import VectorReport, check_results
from npfp8.vectors.sources import SOURCES

__all__ = [
    "DECODE",
    "DEFAULT_MODES",
    "MODES",
    "SOURCES",
    "VectorReport",
    "Vectors",
    "boundary_inputs",
    "check_results",
    "format_vectors",
    "make_vectors",
    "read_vectors",
    "write_all_vectors",
]
