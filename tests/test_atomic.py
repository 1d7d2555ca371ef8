"""Writers that are killed: the target is the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint

from bert_numpy import calibrate, load
from bert_numpy.quantization.calibration import load_calibration, save_calibration
from npfp8 import files
from npfp8.files import (
    check_file,
    check_folder,
    created_folder,
    is_plain_name,
    replaced_file,
    require_distinct_names,
    same_file,
)
from npfp8.storage import load_file, save_file

# Writes files of equal numbers, 1, 2, 3 and so on, until it is killed.
_SAVE_FILE = """
import sys
import numpy as np
from npfp8.storage import save_file
number = 0
while True:
    number += 1
    tensors = {f"t{i}": np.full(50_000, number, np.float32) for i in range(20)}
    save_file(tensors, sys.argv[1], {"number": str(number)})
    if number == 1:
        print("begun", flush=True)
"""

# The same with calibrations: of 1, 2, 3 samples and so on.
_SAVE_CALIBRATION = """
import sys
from dataclasses import replace
from bert_numpy.quantization.calibration import load_calibration, save_calibration
calibration = load_calibration(sys.argv[1])
number = 0
while True:
    number += 1
    origin = replace(calibration.origin, name=str(number))
    save_calibration(replace(calibration, origin=origin), sys.argv[1])
    if number == 2:
        print("begun", flush=True)
"""


def kill_while_writing(code: str, path: Path, delay: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay)
    process.kill()
    process.wait()
    process.stdout.close()


DELAYS = [0.0, 0.01, 0.035]


@pytest.mark.parametrize("delay", DELAYS)
def test_save_file(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t0": np.zeros(3, np.float32)}, path)
    kill_while_writing(_SAVE_FILE, path, delay)
    values = {float(x) for tensor in load_file(path).values() for x in np.unique(tensor)}
    assert len(values) == 1
    left = {file.name for file in tmp_path.iterdir()} - {path.name}
    assert len(left) <= 1  # what was being written, under a name of its own
    assert all(name.startswith(".x.safetensors.") for name in left)


@pytest.mark.parametrize("delay", DELAYS[::2])
def test_save_calibration(tmp_path: Path, delay: float) -> None:
    model = load(write_checkpoint(tmp_path / "model"))
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "calibration"
    before = calibrate(model, [{"input_ids": np.array([[2, 5, 6, 3]])}])
    save_calibration(before, path)
    kill_while_writing(_SAVE_CALIBRATION, path, delay)
    after = load_calibration(path)
    assert after.origin is not None
    assert int(after.origin.name) > 1
    assert after.operands.keys() == before.operands.keys()
    for name, seen in before.operands.items():
        assert np.array_equal(after.operands[name].histogram, seen.histogram)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_kill_at_any_write(tmp_path: Path) -> None:
    """Dead before the n-th change of a file: the old one is there until the last."""
    path = tmp_path / "x"
    code = """
import os, signal, sys
import numpy as np
from npfp8 import files, storage

class Dying:
    def __init__(self, file): self.file = file
    def __enter__(self): self.file.__enter__(); return self
    def __exit__(self, *error): step(); return self.file.__exit__(*error)
    def write(self, data): step(); self.file.write(data); self.file.flush()

def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

fdopen, replace = os.fdopen, files.Path.replace
for left in range(9):
    storage.save_file({"a": np.zeros(9)}, f"{sys.argv[1]}{left}")
    child = os.fork()
    if not child:
        os.fdopen = lambda *a: Dying(fdopen(*a))
        files.Path.replace = lambda *a: (step(), replace(*a), step())
        storage.save_file({"a": np.ones(9), "b": np.ones(9)}, f"{sys.argv[1]}{left}")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", code, path]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    outcomes = []
    for step, status in enumerate(map(int, finished.stdout.split())):
        tensors = load_file(f"{path}{step}")
        new = "b" in tensors
        assert all(np.array_equal(x, np.full(9, float(new))) for x in tensors.values())
        outcomes.append((status != 0, new))
    killed = [new for was_killed, new in outcomes if was_killed]
    assert killed == sorted(killed)  # first the old one, then the new one
    assert set(killed) == {False, True}
    assert outcomes[-1] == (False, True)


# Interrupts


def interrupted_everywhere(write: Callable[[], None], check: Callable[[], bool]) -> list[bool]:
    """Run ``write`` with a KeyboardInterrupt at its n-th bytecode, for every n; what each found.

    Counted are the bytecodes of ``npfp8.files`` and of ``contextlib``, whose context managers
    it consists of.
    """
    places = {files.__file__, contextlib.__file__}
    outcomes = []
    for step in itertools.count():
        left = step

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in places:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                if left == 0:
                    sys.settrace(None)
                    left = -1
                    raise KeyboardInterrupt
                left -= 1
            return trace

        before = sys.gettrace()
        try:
            sys.settrace(trace)
            write()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        outcomes.append(check())
        if left >= 0:
            return outcomes
    raise AssertionError


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


#: A file object that an interrupt has left open is closed where it ends.
left_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@left_open
@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("old", [True, False])
def test_an_interrupt_anywhere_leaves_the_old_file_or_the_new_one(
    old: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x"

    def write() -> None:
        path.unlink(missing_ok=True)
        if old:
            path.write_bytes(b"old")
        with replaced_file(path) as file:
            file.write(b"new")

    def is_new() -> bool:
        content = path.read_bytes() if path.exists() else None
        assert content in ((b"old" if old else None), b"new")
        assert {file.name for file in tmp_path.iterdir()} <= {"x"}
        return content == b"new"

    outcomes = interrupted_everywhere(write, is_new)
    assert len(outcomes) > 200
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


@left_open
@pytest.mark.usefixtures("_no_waiting")
def test_an_interrupt_anywhere_leaves_no_folder_or_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def write() -> None:
        shutil.rmtree(path, ignore_errors=True)
        with created_folder(path) as folder:
            (folder / "a").touch()
            (folder / "b").touch()

    def is_there() -> bool:
        assert {file.name for file in tmp_path.iterdir()} <= {"x"}
        assert not path.exists() or {file.name for file in path.iterdir()} == {"a", "b"}
        return path.exists()

    outcomes = interrupted_everywhere(write, is_there)
    assert len(outcomes) > 100
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


@left_open
@pytest.mark.parametrize("check", [check_file, check_folder])
def test_an_interrupt_anywhere_in_a_check_leaves_nothing(
    check: Callable[[Path], None], tmp_path: Path
) -> None:
    def is_empty() -> bool:
        return not list(tmp_path.iterdir())

    outcomes = interrupted_everywhere(lambda: check(tmp_path / "x"), is_empty)
    assert len(outcomes) > 50
    assert all(outcomes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_ended_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """It is ended in the middle of a file: when the file is there under its other name."""
    code = """
import sys, time
from pathlib import Path
from bert_numpy import __main__
from bert_numpy.commands import demo
from bert_numpy.commands.report import Outcome
from npfp8.files import created_folder, replaced_file
def command(arguments):
    with created_folder(Path(sys.argv[-1])) as folder, replaced_file(folder / "x") as file:
        file.write(b"half")
        print("begun", flush=True)
        time.sleep(60)
demo._demo = command
sys.argv[1:1] = ["demo", "--json"]
sys.exit(__main__.main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [  # noqa: PLW1509
            signal.signal(signal.SIGINT, signal.default_int_handler),
            *(signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)),
        ],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == ("bert-numpy: interrupted\n" if number == signal.SIGINT else "")
    assert not list(tmp_path.iterdir())


# Links, modes, open files


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    old, new = tmp_path / "a" / "old", tmp_path / "a" / "new"
    old.write_text("old")
    for name, target in (("old", "a/old"), ("new", "a/new"), ("twice", "old")):
        (tmp_path / name).symlink_to(target)
    for name, target in (("old", old), ("new", new), ("twice", old)):
        with replaced_file(tmp_path / name) as file:
            file.write(name.encode())
        assert target.read_text() == name
        assert (tmp_path / name).is_symlink()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"old", "new"}


def test_links_in_a_circle_or_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("missing/x")
    for name in ("loop", "lost"):
        for write in (check_file, lambda path: replaced_file(path).__enter__()):
            with pytest.raises(OSError, match=r"symbolic links|No such file"):
                write(tmp_path / name)
        assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444, 0o000])
def test_the_mode_of_the_old_file_is_kept(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(mode)
    if not os.access(path, os.W_OK):
        for write in (check_file, lambda path: replaced_file(path).__enter__()):
            with pytest.raises(PermissionError):
                write(path)
        return
    with replaced_file(path) as file:
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert temporary.stat().st_mode & 0o077 == 0  # nobody reads it meanwhile
        file.write(b"new")
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can")
def test_the_owner_of_the_old_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    os.chown(path, 1234, 2345)
    path.chmod(0o664)
    with replaced_file(path) as file:
        file.write(b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)  # as for anybody else
    with replaced_file(path) as file:
        file.write(b"new")
    assert path.stat().st_mode & 0o777 == 0o644  # other people's group gets no more than all


def test_the_umask_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the whole process's: another thread's files would get the one set meanwhile."""
    monkeypatch.setattr(os, "umask", None)
    with replaced_file(tmp_path / "x") as file:
        file.write(b"new")
    with created_folder(tmp_path / "y"):
        pass


def test_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def synchronized(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append("folder" if is_folder else f"file of {os.fstat(handle).st_size}")

    rename = Path.replace
    monkeypatch.setattr(os, "fsync", synchronized)
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("name"), rename(*paths)))
    with replaced_file(tmp_path / "x") as file:
        file.write(b"new")
    assert done == ["file of 3", "name", "folder"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "out"])
@pytest.mark.parametrize("append", [False, True])
def test_standard_output_is_written_into(name: str, append: bool, tmp_path: Path) -> None:
    """Sent to a file, by any name of it: what was printed before and after stays, in order."""
    if name.startswith("/") and not os.path.exists(name):
        pytest.skip(f"the system has no {name}")
    out = tmp_path / "out"
    out.write_text("before\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from npfp8.files import replaced_file, check_file\n"
        "print('one', flush=True); check_file(Path(sys.argv[1]))\n"
        "with replaced_file(Path(sys.argv[1])) as file: file.write(b'two\\n')\n"
        "print('three')"
    )
    with out.open("ab" if append else "wb") as stream:
        command = [sys.executable, "-c", code, name]
        subprocess.run(command, stdout=stream, check=True, cwd=tmp_path)
    assert out.read_text() == ("before\n" if append else "") + "one\ntwo\nthree\n"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_what_cannot_be_written_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    places = [
        *(tmp_path, tmp_path / "missing" / "x", file / "x", tmp_path / ("x" * 256)),
        *(tmp_path / ("\u00e9" * 128), tmp_path / "a\0b", Path("/proc/x"), Path("")),
    ]
    if os.path.exists("/dev/loop0"):
        places.append(Path("/dev/loop0"))
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket")
        for place in [*places, Path("socket")]:
            for write in (check_file, lambda path: replaced_file(path).__enter__()):
                with pytest.raises(OSError, match=r"."):
                    write(place)
    for name in ("x" * 255, "\u00e9" * 127, "\U0001f600" * 63):
        check_file(tmp_path / name)
        with replaced_file(tmp_path / name) as stream:
            stream.write(b"new")
        assert (tmp_path / name).read_bytes() == b"new"
    check_file(Path("/dev/null"))
    assert all(not path.name.startswith(".") for path in tmp_path.iterdir())


def test_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    os.link(tmp_path / "a" / "x", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a/x")
    (tmp_path / "folder").symlink_to("a")
    (tmp_path / "lost").symlink_to("a/new")
    one = {"a/x", "a/../a/./x", "a//x", "hard", "soft", "folder/x", "a/X"}
    for name in one:
        assert same_file(tmp_path / "a" / "x", tmp_path / name), name
    for name in ("a/new", "lost", "folder/new", "a/NEW"):
        assert same_file(tmp_path / "a" / "new", tmp_path / name), name
        assert not same_file(tmp_path / "a" / "x", tmp_path / name), name
    assert same_file(tmp_path / "caf\u00e9", tmp_path / "cafe\u0301")
    assert not same_file(tmp_path / "x", tmp_path / "a" / "x")
    assert not same_file(tmp_path / "x", tmp_path / "x\0")


PLAIN = [
    "x",
    "model-00001-of-00002.safetensors",
    ".x",
    "a b",
    "caf\u00e9",
    "\u5dee",
    "console",
    "a-b",
]
NOT_PLAIN = [
    *("", ".", "..", "../x", "a/b", "/x", "a\\b", "..\\x", "C:x", "C:\\x", "\\\\host\\x", "a:b"),
    *(
        "con",
        "NUL",
        "aux.png",
        "Com1.tar.gz",
        "lpt9",
        "nul .txt",
        "CONIN$",
        "com\u00b9",
        "x.",
        "x ",
    ),
    *("a\0b", "a\nb", "a\x1b[31m", "a\x7f", "a\x85b", "a\u202eb", "a\u200bb", "a\u2028b", "\ud800"),
    *("x" * 256, "\u00e9" * 128, "file:stream"),
]


@pytest.mark.parametrize("name", PLAIN, ids=ascii)
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", NOT_PLAIN, ids=ascii)
def test_names_that_are_not_plain(name: str) -> None:
    assert not is_plain_name(name)
    with pytest.raises(ValueError, match="'thing': expected a name that a file can have"):
        require_distinct_names({"thing": name})


@pytest.mark.parametrize("pair", [("a", "a"), ("a", "A"), ("\u00e9", "e\u0301"), ("ss", "\u00df")])
def test_names_that_are_one(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="'second': expected a file name of its own, found"):
        require_distinct_names(dict(zip(("first", "second"), pair, strict=True)))
