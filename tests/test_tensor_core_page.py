"""The page of tensor cores: its table is the records', and it names every accumulator."""

from __future__ import annotations

import pytest
from conftest import ROOT, load_script

from npfp8 import ACCUMULATORS

PAGE = ROOT / "docs" / "tensor-cores.md"


@pytest.fixture
def text() -> str:
    if not PAGE.is_file():
        pytest.skip("the pages are in the repository, not in the package")
    return PAGE.read_text(encoding="utf-8")


def test_the_table_is_the_records(text: str) -> None:
    script = load_script("describe_tensor_cores")
    assert script.with_table(text) == text
    assert len(script.table()) == 2 + sum(how.is_tensor_core for how in ACCUMULATORS.values())


def test_the_table_follows_a_record(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("describe_tensor_cores")
    monkeypatch.setattr(script, "ROWS", script.ROWS[1:])
    assert script.with_table(text) != text


def test_the_speed_of_every_accumulator_is_there(text: str) -> None:
    speed = text.partition("## Speed")[2]
    for name, how in ACCUMULATORS.items():
        assert f"| `{name}` |" in speed or not how.is_tensor_core, name
