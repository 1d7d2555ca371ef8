"""From a name to a folder: local folders, the embedded model, and a stand-in for the hub."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import write_checkpoint
from hub_server import HubServer, hub_server

from bert_numpy import BertNumpyError, load, load_tokenizer
from bert_numpy.checkpoints.hub import EMBEDDED, resolve
from bert_numpy.errors import shown

#: Files of repositories that are not for this package.
OTHERS = {"pytorch_model.bin": b"x", "README.md": b"x", "onnx/model.onnx": b"x", "tf_model.h5": b""}


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
    "name", ["two words", "owner/name with spaces", "-a/b", "a\\b", "a\0b", "x" * 300]
)
def test_names_that_no_repository_has(name: str) -> None:
    with pytest.raises(BertNumpyError) as caught:
        load(name)
    assert str(caught.value).startswith(
        f"{shown(name)}: expected a model folder or a hub id, found no "
    )


@pytest.mark.usefixtures("no_network")
def test_a_revision_of_what_has_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for name in (folder, EMBEDDED):
        for function in (load, load_tokenizer):
            with pytest.raises(BertNumpyError) as caught:
                function(name, revision="main")
            expected = f"{name}: expected a hub id for revision 'main', found a folder"
            assert str(caught.value) == expected


@pytest.mark.usefixtures("no_network")
def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: no such file"


# Each client of the stand-in for the hub is a process of its own, with a cache of its own.

_CLIENT = """
import json, sys
import bert_numpy
from bert_numpy.commands.main import main
from bert_numpy.checkpoints.hub import fetch_dataset, resolve

def logits(name, revision):
    model = bert_numpy.load(name, revision)
    ids = bert_numpy.load_tokenizer(name, revision).batch(["a warm film"])
    return {
        "name": model.name,
        "folder": str(resolve(name, revision)),
        "logits": model(**ids).logits.tolist(),
    }

actions = {
    "load": logits,
    "tokenizer": lambda *name: len(bert_numpy.load_tokenizer(*name).encode(["film"])),
    "resolve": lambda *name: str(resolve(*name)),
    "dataset": lambda name, pattern: str(fetch_dataset(name, [pattern])),
    "info": lambda name, revision: main(["info", name, "--revision", revision]),
}
for action, *arguments in json.loads(sys.argv[1]):
    try:
        result = {"done": actions[action](*arguments)}
    except bert_numpy.BertNumpyError as error:
        result = {"error": str(error)}
    print("\\nresult", json.dumps(result))
"""


def start(hub: HubServer, cache: Path, *actions: list[Any], **variables: str) -> Any:
    """A process that does things which need a hub, and knows no other than this one."""
    return subprocess.Popen(
        [sys.executable, "-c", _CLIENT, json.dumps(actions)],
        env=hub.environment(cache, **variables),
        cwd=cache.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def client(hub: HubServer, cache: Path, *actions: list[Any], **variables: str) -> list[Any]:
    """Return the outcome of each action: ``{"done": result}`` or ``{"error": message}``."""
    process = start(hub, cache, *actions, **variables)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "%|" not in errors, "a progress bar where no terminal is"
    return [json.loads(text) for text in re.findall(r"^result (.*)$", output, re.MULTILINE)]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


def test_fetched_once_then_found_offline(tmp_path: Path, hub: HubServer) -> None:
    folder = write_checkpoint(tmp_path / "repository", shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("owner/name", files | OTHERS)
    cache = tmp_path / "cache"

    client(hub, cache, ["tokenizer", "owner/name"])
    small = ["config.json", "tokenizer.json", "vocab.txt"]
    assert hub.fetched() == small
    (partly,) = client(hub, cache, ["load", "owner/name", None], HF_HUB_OFFLINE="1")
    assert partly["error"].startswith("owner/name: expected ")

    hub.requests.clear()
    (fetched,) = client(hub, cache, ["load", "owner/name", None], HF_TOKEN="hf_secret")
    assert {request.token for request in hub.requests} == {"Bearer hf_secret"}
    done = fetched["done"]
    assert done["name"] == "owner/name"
    assert Path(done["folder"]).is_relative_to(cache)
    batch = load_tokenizer(folder).batch(["a warm film"])
    assert done["logits"] == load(folder)(**batch).logits.tolist()
    names = {path.name for path in Path(done["folder"]).iterdir()}
    assert names == {path.name for path in folder.iterdir()}  # nothing of the others

    hub.requests.clear()
    actions = (["load", "owner/name", None], ["load", "owner/other", None])
    offline, missing = client(hub, cache, *actions, HF_HUB_OFFLINE="1")
    assert offline == fetched
    assert "HF_HUB_OFFLINE is set" in missing["error"]
    assert missing["error"].startswith("owner/other: expected a model folder or a hub id, found no")
    assert not hub.requests
    hub.status = 503  # the hub is down: what is in the cache serves
    assert client(hub, cache, ["load", "owner/name", None]) == [fetched]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcomes of requests for repositories of all kinds, by case."""
    base = tmp_path_factory.mktemp("hub")
    first = write_checkpoint(base / "first", seed=1)
    second = write_checkpoint(base / "second", seed=2)
    without = {path.name: path.read_bytes() for path in first.iterdir()}
    whole = dict(without)
    weights = without.pop("model.safetensors")
    index = {"weight_map": {"a": "*"}}
    cases: dict[str, list[Any]] = {
        "main": ["load", "owner/name", None],
        "branch": ["load", "owner/name", "main"],
        "tag": ["load", "owner/name", "v2"],
        "no revision": ["load", "owner/name", "v3"],
        "moved": ["load", "old/name", None],
        "command": ["info", "owner/name", "v2"],
        "both": ["resolve", "owner/both"],
        "sentences": ["resolve", "owner/sentences"],
        "pickle": ["load", "owner/pickle", None],
        "nothing": ["load", "owner/nothing", None],
        "renamed": ["load", "owner/renamed", None],
        "star": ["load", "owner/star", None],
        "missing": ["load", "owner/missing", None],
        "gated": ["load", "owner/gated", None],
        "not accepted": ["load", "owner/not-accepted", None],
        "private": ["load", "owner/private", None],
        "forbidden": ["load", "owner/forbidden", None],
        "accepted": ["resolve", "owner/accepted"],
        "broken off": ["load", "owner/broken", None],
        "data": ["dataset", "owner/data", "sst2/train-*"],
        "no data": ["dataset", "owner/no-data", "*"],
        "gated data": ["dataset", "owner/gated-data", "*"],
    }
    with hub_server() as hub:
        commit = hub.add("owner/name", whole).revisions["main"]
        hub.add("owner/name", second, revision="v2")
        hub.add("owner/name", {}, revision="v3")
        del hub.repositories["model", "owner/name"].revisions["v3"]
        hub.moved["old/name"] = "owner/name"
        hub.add("owner/both", whole | {"model.safetensors.index.json": b"{}"} | OTHERS)
        folder = {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "2_Dense/config.json": b""}
        folder |= {"2_Dense/model.safetensors": b"", "2_Dense/pytorch_model.bin": b""}
        folder |= {"config_sentence_transformers.json": b"{}", "adapter_config.json": b"{}"}
        roberta = {"vocab.json": b"{}", "merges.txt": b""}
        hub.add("owner/sentences", whole | folder | roberta | OTHERS)
        hub.add("owner/pickle", without | OTHERS)
        hub.add("owner/nothing", {"README.md": b"x"})
        hub.add("owner/renamed", without | {"weights.safetensors": weights})
        text = json.dumps(index).encode()
        hub.add("owner/star", without | OTHERS | {"model.safetensors.index.json": text})
        for name, refusal in {
            "gated": (401, "GatedRepo"),
            "not-accepted": (403, "GatedRepo"),
            "private": (401, "RepoNotFound"),
            "forbidden": (403, ""),
            "accepted": (401, "GatedRepo"),
        }.items():
            hub.add(f"owner/{name}", whole).refusal = refusal
        hub.repositories["model", "owner/private"].refused = "everything"
        hub.repositories["model", "owner/accepted"].token = "hf_right"
        hub.add("owner/broken", {"config.json": whole["config.json"], "vocab.txt": bytes(9000)})
        hub.breaks["vocab.txt"] = []
        parts = {"sst2/train-00000-of-00001.parquet": b"abc", "sst2/test.parquet": b"abc"}
        hub.add("owner/data", parts, "dataset")
        hub.add("owner/gated-data", parts, "dataset").refusal = (403, "GatedRepo")
        last = cases.pop("broken off")
        results = client(hub, base / "cache", *cases.values(), HF_TOKEN="hf_right")
        hub.breaks["vocab.txt"] = [1000] * 50
        results += client(hub, base / "cache", last)
        fetched = hub.fetched()
    found: dict[str, Any] = dict(zip([*cases, "broken off"], results, strict=True))
    batch = load_tokenizer(first).batch(["a warm film"])
    found["logits"] = [load(folder)(**batch).logits.tolist() for folder in (first, second)]
    found["commit"] = commit
    found["fetched"] = fetched
    return found


def test_revisions(answers: dict[str, Any]) -> None:
    first, second = answers["logits"]
    assert first != second
    assert answers["main"]["done"]["logits"] == first
    assert Path(answers["main"]["done"]["folder"]).name == answers["commit"]
    assert answers["branch"]["done"]["logits"] == first
    assert answers["tag"]["done"]["logits"] == second
    assert answers["tag"]["done"]["name"] == "owner/name@v2"
    assert answers["command"]["done"] == 0
    assert answers["moved"]["done"]["logits"] == first


def test_only_what_is_needed_is_fetched(answers: dict[str, Any]) -> None:
    def files(case: str) -> set[str]:
        folder = Path(answers[case]["done"])
        return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}

    usual = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert files("both") == usual | {"model.safetensors.index.json"}
    assert files("accepted") == usual
    sentences = {"modules.json", "1_Pooling/config.json", "vocab.json", "merges.txt"}
    sentences |= {"2_Dense/config.json", "2_Dense/model.safetensors"}
    sentences |= {"config_sentence_transformers.json", "adapter_config.json"}  # read to refuse
    assert files("sentences") == usual | sentences
    assert files("data") == {"sst2/train-00000-of-00001.parquet"}
    assert not set(OTHERS) & set(answers["fetched"])


@pytest.mark.parametrize(
    ("case", "start", "parts"),
    [
        ("missing", "owner/missing", ["not found, or private (404)", "HF_TOKEN"]),
        ("no revision", "owner/name@v3", ["revision 'v3' not found (404)"]),
        ("gated", "owner/gated", ["refused (401)", "terms at http", "/owner/gated", "HF_TOKEN"]),
        ("not accepted", "owner/not-accepted", ["refused (403)", "terms at http", "HF_TOKEN"]),
        ("private", "owner/private", ["not found, or private (401)", "HF_TOKEN"]),
        ("forbidden", "owner/forbidden", ["refused (403)", "HF_TOKEN"]),
        ("broken off", "owner/broken", ["found no such folder", "run it again"]),
        ("pickle", "owner/pickle", ["only pytorch_model.bin, a pickle", "save_pretrained"]),
        ("nothing", "owner/nothing", ["expected config.json, found README.md"]),
        ("renamed", "owner/renamed", ["expected model.safetensors or", "found neither"]),
        ("no data", "owner/no-data", ["dataset not found, or private (404)"]),
        ("gated data", "owner/gated-data", ["/datasets/owner/gated-data", "HF_TOKEN"]),
    ],
)
def test_what_the_hub_does_not_give(
    answers: dict[str, Any], case: str, start: str, parts: list[str]
) -> None:
    message = answers[case]["error"]
    assert message.startswith(f"{start}: expected ")
    assert len(message.splitlines()) == 1
    assert all(part in message for part in parts), message


def test_an_index_is_no_pattern(answers: dict[str, Any]) -> None:
    assert answers["star"]["error"].endswith("*: no such file")


def test_server_error(tmp_path: Path, hub: HubServer) -> None:
    hub.status = 500
    (answer,) = client(hub, tmp_path / "cache", ["load", "owner/name", None])
    assert "500" in answer["error"]
    assert answer["error"].startswith("owner/name: expected a model folder or a hub id, found no")


def test_unreachable(tmp_path: Path, hub: HubServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        hub.address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (answer,) = client(hub, tmp_path / "cache", ["load", "owner/name", None])
    assert answer["error"] == (
        "owner/name: expected a model folder or a hub id, found no such folder, and from the hub: "
        f"{hub.address} cannot be reached: check the name, and the connection; run it again once "
        "the hub can be reached"
    )


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["bert-tiny-sst", "Bert-Tiny-SST2", "bert_tiny_sst2", "bert-tiny"])
def test_a_name_like_the_embedded_models_is_not_asked_for(name: str) -> None:
    for function in (resolve, load, load_tokenizer):
        with pytest.raises(BertNumpyError) as caught:
            function(name)
        assert str(caught.value) == (
            f"{name}: expected a model folder, found no such folder; did you mean {EMBEDDED!r}?"
        )


@pytest.mark.parametrize("name", ["bert-base-uncased", "roberta-base", "owner/bert-tiny-sst"])
def test_other_names_are_asked_for(name: str, tmp_path: Path, hub: HubServer) -> None:
    (answer,) = client(hub, tmp_path / "cache", ["resolve", name])
    assert "model not found, or private (404)" in answer["error"]
    assert any(name in request.path for request in hub.requests)
    assert ("did you mean" in answer["error"]) == ("tiny" in name)


def test_interrupted_and_resumed(tmp_path: Path, hub: HubServer) -> None:
    """The connection breaks off after 11 MB, of which whole blocks of 10 MB are kept."""
    content = b"".join(i.to_bytes(4, "little") for i in range(3 << 20))
    hub.add("owner/name", {"config.json": b"{}", "model.safetensors": content})
    hub.breaks["model.safetensors"] = [11_000_000]
    for _ in range(2):  # some releases go on by themselves, others when run again
        (answer,) = client(hub, tmp_path / "cache", ["resolve", "owner/name"])
        if "done" in answer:
            break
    assert (Path(answer["done"]) / "model.safetensors").read_bytes() == content
    ranges = [int(r.range.removeprefix("bytes=")[:-1]) for r in hub.requests if r.range]
    assert ranges
    assert all(0 < first <= 11_000_000 for first in ranges)


def test_killed_while_downloading(tmp_path: Path, hub: HubServer) -> None:
    """Files in the cache are whole or absent."""
    content = bytes(range(256)) * (1 << 16)
    hub.add("owner/name", {"config.json": b"{}", "model.safetensors": content})
    hub.stalls["model.safetensors"] = 12_000_000
    cache = tmp_path / "cache"
    process = start(hub, cache, ["resolve", "owner/name"])
    hub.stalled.wait(60)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.stalls.clear()
    (offline,) = client(hub, cache, ["resolve", "owner/name"], HF_HUB_OFFLINE="1")
    assert "error" in offline
    (answer,) = client(hub, cache, ["resolve", "owner/name"])
    assert (Path(answer["done"]) / "model.safetensors").read_bytes() == content
