"""``python -m bert_numpy``: the same as the ``bert-numpy`` command."""

import sys

from bert_numpy.cli import main

if __name__ == "__main__":
    sys.exit(main())
