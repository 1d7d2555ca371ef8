"""Helpers to run commands on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress


def on_a_terminal(argv: Sequence[str]) -> tuple[str, str]:
    """Run a command whose standard error is a terminal; return both of its outputs."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def listen() -> None:
        with suppress(OSError):  # when the other end is closed
            while part := os.read(ours, 4096):
                seen.extend(part)

    listener = threading.Thread(target=listen)
    listener.start()
    done = subprocess.run(
        [sys.executable, "-m", "bert_numpy", *argv],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        check=False,
    )
    os.close(theirs)
    listener.join(timeout=10)
    os.close(ours)
    assert done.returncode == 0, seen
    return done.stdout.decode(), seen.decode()
