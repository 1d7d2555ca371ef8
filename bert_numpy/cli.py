"""The former module of the command line: see :mod:`bert_numpy.commands.main`."""

from bert_numpy.assets import REVIEWS
from bert_numpy.commands.main import interrupted, main

__all__ = ["REVIEWS", "interrupted", "main"]
