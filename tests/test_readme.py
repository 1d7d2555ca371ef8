"""The README's code runs as it stands, and prints what it says."""

import contextlib
import io
import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_code():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_python_block(block):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {})
    said = [line.rsplit("# ", 1)[1] for line in block.splitlines() if line.startswith("print(")]
    for found, expected in zip(printed.getvalue().splitlines(), said, strict=True):
        assert expected.endswith(found)


@pytest.mark.parametrize("ending", ["bert-numpy demo", "pytest"])
def test_set_up_commands_are_one_line_each(ending):
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv .venv ")]
    assert sum(line.endswith(ending) for line in lines) == 1


def test_commands_exist(capsys):
    from bert_numpy.cli import main  # noqa: PLC0415

    for command in re.findall(r"^bert-numpy ([\w-]+)", README, re.MULTILINE):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    assert "usage" in capsys.readouterr().out
