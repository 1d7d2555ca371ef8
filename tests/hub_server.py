"""A stand-in for the Hugging Face hub on 127.0.0.1: repositories of models and data sets.

Clients run in separate processes, because huggingface-hub reads its environment
when it is first imported. :meth:`HubServer.environment` makes this server the
only hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Request:
    """The request of a client: ``range`` and ``token`` are the headers' values, or ""."""

    method: str
    path: str
    range: str
    token: str


@dataclass
class Repository:
    """Files by name, of each commit; the commit of each revision; who is let in.

    ``refusal`` is the status and the hub's error code that ``refused`` answers
    with: of its files only, as the hub does with gated repositories, or of
    everything. A request that has ``token`` is let in.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    refused: str = "files"
    token: str = ""

    def files(self, revision: str) -> dict[str, bytes] | None:
        """The files of a revision or a commit."""
        return self.commits.get(self.revisions.get(revision, revision))


@dataclass
class HubServer:
    """The server: change what it holds, and look at what it was asked.

    Attributes
    ----------
    address : str
    repositories : dict of (str, str) to Repository
        By kind (``model`` or ``dataset``) and ``owner/name``.
    moved : dict of str to str
        New ``owner/name`` by the old one.
    breaks : dict of str to list of int
        By a file's name: after how many bytes the coming answers break off, in turn.
    stalls : dict of str to int
        By a file's name: after how many bytes an answer comes to a standstill.
    stalled : Event
        Set when one has; it goes on, and breaks off, when the server ends.
    status : int
        If not 200: the answer to everything.
    requests : list of Request
    """

    address: str
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    requests: list[Request] = field(default_factory=list)

    def add(
        self,
        name: str,
        files: Mapping[str, bytes] | Path,
        kind: str = "model",
        revision: str = "main",
    ) -> Repository:
        """Add a commit to a repository: a folder, or files by their names."""
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault((kind, name), Repository())
        content = repr((name, revision, sorted(files.items())))
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.revisions[revision] = commit
        return repository

    def fetched(self) -> list[str]:
        """The names of the files whose content was asked for, sorted; each once."""
        matches = [_FILE.fullmatch(request.path) for request in self.requests]
        return sorted({match[4] for match in matches if match})

    def environment(self, cache: Path, **variables: str) -> dict[str, str]:
        """The variables of a client whose cache is ``cache`` and whose hub is this one."""
        unwanted = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_")
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.upper().startswith(unwanted) and not key.lower().endswith("_proxy")
        }
        ours = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }
        return kept | ours | variables

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        if self.status != 200:
            return self.status, {}, b"{}"
        path = request.path.partition("?")[0]
        for old, new in self.moved.items():
            if f"/{old}/" in f"{path}/":
                return 307, {"Location": request.path.replace(f"/{old}", f"/{new}", 1)}, b""
        if match := _API.fullmatch(path):
            kind, name, what, revision = match.groups()
            return self._about(request, kind, name, what, revision or "main")
        if match := _FILE.fullmatch(path):
            folder, name, revision, file = match.groups()
            return self._file(request, "dataset" if folder else "model", name, revision, file)
        return 404, {}, b"{}"

    def _about(
        self, request: Request, kind: str, name: str, what: str | None, revision: str
    ) -> tuple[int, dict[str, str], bytes]:
        """List the contents of a repository; newer clients ask for both kinds of list."""
        repository = self.repositories.get((kind, name))
        if repository is None:
            return _error(404, "RepoNotFound")
        if repository.refused == "everything" and (refusal := _refusal(repository, request)):
            return refusal
        files = repository.files(revision)
        if files is None:
            return _error(404, "RevisionNotFound")
        about: Any
        if what == "tree":
            about = [
                {"type": "file", "path": file, "size": len(content), "oid": _tag(content)[:40]}
                for file, content in files.items()
            ]
        else:
            about = {"id": name, "sha": repository.revisions.get(revision, revision)}
            about |= {"private": False, "disabled": False, "gated": False, "tags": []}
            about |= {"downloads": 0, "likes": 0}  # which older clients insist on
            about["siblings"] = [{"rfilename": file} for file in files]
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()

    def _file(
        self, request: Request, kind: str, name: str, revision: str, file: str
    ) -> tuple[int, dict[str, str], bytes]:
        repository = self.repositories.get((kind, name))
        if repository is None:
            return _error(404, "RepoNotFound")
        if refusal := _refusal(repository, request):
            return refusal
        files = repository.files(revision)
        if files is None:
            return _error(404, "RevisionNotFound")
        if file not in files:
            return _error(404, "EntryNotFound")
        content = files[file]
        headers = {"ETag": f'"{_tag(content)}"', "Accept-Ranges": "bytes"}
        headers["X-Repo-Commit"] = repository.revisions.get(revision, revision)
        if match := re.fullmatch(r"bytes=(\d+)-", request.range):
            first = int(match[1])
            if first >= len(content):
                return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return 206, headers, content[first:]
        return 200, headers, content


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _error(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"


def _refusal(repository: Repository, request: Request) -> tuple[int, dict[str, str], bytes] | None:
    welcome = repository.token and request.token == f"Bearer {repository.token}"
    return None if repository.refusal is None or welcome else _error(*repository.refusal)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server, empty at first."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token, part = self.headers.get("Authorization", ""), self.headers.get("Range", "")
            request = Request(self.command, self.path, part, token)
            state.requests.append(request)
            status, headers, body = state.answer(request)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # a client that ended
                    self.send(body)

        def send(self, body: bytes) -> None:
            name = self.path.rpartition("/")[2]
            if breaks := state.breaks.get(name):
                body = body[: breaks.pop(0)]
            if name in state.stalls:
                self.wfile.write(body[: state.stalls[name]])
                state.stalled.set()
                state.ended.wait()
            else:
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 (http.server's name)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = HubServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            state.ended.set()
            server.shutdown()
            thread.join()
