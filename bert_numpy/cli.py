"""The command line's former place: see :mod:`bert_numpy.commands.main`."""

from bert_numpy.assets import REVIEWS
from bert_numpy.commands.main import interrupted, main

__all__ = ["REVIEWS", "interrupted", "main"]
