"""From a name to a folder: local folders, the embedded model, and a stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from factories import write_checkpoint

from bert_numpy import BertNumpyError, load, load_tokenizer
from bert_numpy.hub import EMBEDDED, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test, not just the call, if anything asks for a connection."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model")
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    assert resolve(f"{folder}/") == folder
    monkeypatch.chdir(tmp_path)
    assert resolve("model") == Path("model")
    assert resolve("./model") == Path("model")
    assert load("model")([[2, 3]]).logits.shape == (1, 2)
    monkeypatch.chdir(folder)
    assert load(".").name == "."
    assert load_tokenizer("..//model").encode(["film"])[0].input_ids[0] == 2


@pytest.mark.usefixtures("no_network")
def test_embedded_model() -> None:
    folder = resolve(EMBEDDED)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert load(EMBEDDED).config.labels == ("negative", "positive")
    assert load_tokenizer(EMBEDDED).model_max_length == 512


@pytest.mark.usefixtures("no_network")
def test_a_folder_of_the_embedded_models_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / EMBEDDED)
    monkeypatch.chdir(tmp_path)
    assert load(EMBEDDED).config.hidden_size == 16


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name",
    ["./x", "../x", ".x", "~/x", "~", "/nowhere", "/nowhere/at/all", "a/b/c", "a//b", "a/b/", ""],
)
def test_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for function in (resolve, load, load_tokenizer):
        with pytest.raises(BertNumpyError) as caught:
            function(name)
        shown = name or "''"
        assert str(caught.value) == f"{shown}: expected a model folder, found no such folder"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("relative", [True, False])
def test_file_instead_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    name = "model.safetensors" if relative else str(tmp_path / "model.safetensors")
    with pytest.raises(BertNumpyError) as caught:
        load(name)
    assert str(caught.value) == f"{name}: expected a model folder, found a file"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name", ["two words", "owner/", "owner/name with spaces", "-a/b", "a\\b", "a\0b", "x" * 300]
)
def test_names_that_no_repository_has(name: str) -> None:
    with pytest.raises(BertNumpyError) as caught:
        load(name)
    assert str(caught.value).startswith(f"{name}: expected a model folder or a hub id, found no ")


@pytest.mark.usefixtures("no_network")
def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: no such file"


# A stand-in for the hub; each client is a process of its own, with a cache of its own.


@dataclass
class Hub:
    """A server of one repository ``owner/name``."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 200
    cut: bool = False

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer to a request."""
        self.asked.append(path)
        if self.status != 200:
            return self.status, {}, b"{}"
        path = path.partition("?")[0]
        if path.startswith("/api/models/owner/name/tree/"):  # newer clients ask for both lists
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                for name, content in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT}
            body = json.dumps(about | {"siblings": siblings}).encode()
            return 200, {"Content-Type": "application/json"}, body
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if name in self.files:
            content = self.files[name]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return 200, {"ETag": tag, "X-Repo-Commit": COMMIT}, content
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = state.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(
                    body[: len(body) // 2] if state.cut and "ETag" in headers else body
                )

        do_HEAD = do_GET  # noqa: N815 (http.server's name)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def repository(tmp_path: Path, hub: Hub) -> Path:
    """The folder that the hub serves, with files that are not for this package."""
    folder = write_checkpoint(tmp_path / "repository", shards=2)
    others = {"pytorch_model.bin": b"x", "README.md": b"x", "onnx/model.onnx": b"x"}
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | others
    return folder


_CLIENT = """
import json, sys
import bert_numpy
from bert_numpy.hub import resolve
try:
    model = bert_numpy.load(sys.argv[1])
    ids = bert_numpy.load_tokenizer(sys.argv[1]).batch(["a warm film"])
    result = {
        "name": model.name,
        "folder": str(resolve(sys.argv[1])),
        "logits": model(**ids).logits.tolist(),
    }
except bert_numpy.BertNumpyError as error:
    result = {"error": str(error)}
print(json.dumps(result))
"""


def client(cache: Path, hub: Hub, name: str = "owner/name", **variables: str) -> dict[str, Any]:
    """Load a model in another process that knows no hub but this one."""
    unwanted = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.upper().startswith(unwanted) and not key.lower().endswith("_proxy")
    }
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    finished = subprocess.run(
        [sys.executable, "-c", _CLIENT, name],
        env=environment | variables,
        cwd=cache.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def test_fetched_once_then_found_offline(tmp_path: Path, hub: Hub, repository: Path) -> None:
    cache = tmp_path / "cache"
    fetched = client(cache, hub)
    assert "error" not in fetched
    assert fetched["name"] == "owner/name"
    assert Path(fetched["folder"]).is_relative_to(cache)
    batch = load_tokenizer(repository).batch(["a warm film"])
    assert fetched["logits"] == load(repository)(**batch).logits.tolist()

    names = {path.partition("?")[0].rpartition("/")[2] for path in hub.asked if "resolve" in path}
    assert names == {
        *("config.json", "model.safetensors.index.json", "tokenizer.json", "vocab.txt"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    }
    assert {path.name for path in Path(fetched["folder"]).iterdir()} == names

    hub.asked.clear()
    assert client(cache, hub, HF_HUB_OFFLINE="1") == fetched
    assert not hub.asked
    hub.status = 503  # the hub is down: what is in the cache serves
    assert client(cache, hub) == fetched


@pytest.mark.usefixtures("repository")
def test_offline_without_a_cache(tmp_path: Path, hub: Hub) -> None:
    error = client(tmp_path / "cache", hub, HF_HUB_OFFLINE="1")["error"]
    assert error.startswith("owner/name: expected a model folder or a hub id, found no such folder")
    assert not hub.asked


def refusal(tmp_path: Path, hub: Hub, name: str = "owner/name") -> str:
    """What the hub is said to have answered."""
    error = client(tmp_path / "cache", hub, name)["error"]
    start = f"{name}: expected a model folder or a hub id, found no such folder, and from the hub: "
    assert error.startswith(start)
    assert len(error.splitlines()) == 1
    return str(error.removeprefix(start))


def test_missing_repository(tmp_path: Path, hub: Hub) -> None:
    reason = refusal(tmp_path, hub, "owner/missing")
    assert "404" in reason
    assert "not found" in reason.lower()


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refused_by_the_hub(tmp_path: Path, hub: Hub, status: int) -> None:
    hub.status = status
    assert str(status) in refusal(tmp_path, hub)


def test_unreachable(tmp_path: Path, hub: Hub) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        hub.address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert refusal(tmp_path, hub)


@pytest.mark.usefixtures("repository")
def test_connection_that_breaks_off(tmp_path: Path, hub: Hub) -> None:
    hub.cut = True
    assert refusal(tmp_path, hub)


def test_repository_without_a_model(tmp_path: Path, hub: Hub) -> None:
    hub.files = {"README.md": b"x"}
    error = client(tmp_path / "cache", hub)["error"]
    assert error.endswith("config.json: no such file")
    assert COMMIT in error
