"""The measurements of scripts/measure_structure.py meet their goals.

The goals are only in that script, as GOALS. If one is missed, the message lists
the files, or the circle. Change the code, not the goal.
"""

import subprocess
import sys
import types

import pytest
from conftest import ROOT, load_script

PATH = ROOT / "scripts" / "measure_structure.py"
script = load_script(PATH.stem)


#: What has been reached where a goal is missed: it may not get worse, and is reported.
REACHED = {"files entered, one quantized linear layer": 7}


@pytest.fixture(scope="module")
def measured():
    return script.measure(ROOT)


@pytest.mark.parametrize("name", script.GOALS)
def test_goals(name, measured):
    values, lists = measured
    goal, reached = script.GOALS[name], REACHED.get(name, script.GOALS[name])
    assert values[name] <= reached, "\n".join([name, *lists[name]])
    if values[name] > goal:
        pytest.xfail(f"{name}: the goal is at most {goal}, reached is {values[name]}")


def test_what_is_entered_is_there(measured):
    """A trace that saw nothing would reach every goal."""
    _, lists = measured
    text, alone, linear = (
        set(lists[f"files entered, {name}"])
        for name in ("text to logits", "the pass alone", "one quantized linear layer")
    )
    assert alone < text
    assert "bert_numpy/tasks/tokenization.py" in text - alone
    assert any(name.startswith("bert_numpy/model/") for name in alone)
    assert any(name.startswith("bert_numpy/") for name in linear)
    assert any(name.startswith("npfp8/") for name in linear)
    assert all((ROOT / name).is_file() for name in text | alone | linear)


def test_the_tables_rows(measured):
    values, lists = measured
    assert all(type(value) is int for value in values.values())
    assert values["npfp8: lines"] + values["bert_numpy: lines"] == values["both: lines"]
    assert 0 < values["both: lines of code"] < values["both: lines"]
    assert len(lists["longest function"]) == 10
    assert lists["longest function"][0].startswith(f"{values['longest function']} ")


def test_lines_of_code():
    source = (
        '"""Words.\n\nMore."""\n\nX = 1  # one\n# none\n\ndef f(\n    y,\n):\n    """Words."""\n'
    )
    assert script.code_lines(source) == 4
    assert script.code_lines(source + '    return """\n\n"""\n') == 7
    nested = "class A:\n    def f(self):\n        def g():\n            pass\n        return g\n"
    assert list(script.functions("m", nested)) == [(4, "m.A.f"), (2, "m.A.f.g")]


def test_circles(tmp_path):
    """Over several modules, for types alone, inside functions; a folder is a circle of its own."""
    package = tmp_path / "bert_numpy"
    files = {
        "a/x.py": "def f():\n    from bert_numpy.b import y\n",
        "a/z.py": "",
        "b/y.py": "if TYPE_CHECKING:\n    from bert_numpy.c import name\n",
        "c.py": "import bert_numpy.a.x\nimport bert_numpy.d.v\n",
        "d/v.py": "from bert_numpy.e.s import name\n",
        "d/w.py": "",
        "e/s.py": "",
        "e/t.py": "from bert_numpy.d import w\n",
    }
    for name, source in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    modules = script.modules_of(tmp_path)
    edges = script.imports(modules)
    assert script.circles(edges) == [["bert_numpy.a.x", "bert_numpy.b.y", "bert_numpy.c"]]
    assert script.circles(script.by_folder(edges)) == [
        ["bert_numpy.a", "bert_numpy.b", "bert_numpy.c"],
        ["bert_numpy.d", "bert_numpy.e"],
    ]


def test_a_site_is_found_by_name_object_or_list():
    site = types.SimpleNamespace(name="pooler.dense")
    for value in ("pooler.dense", site, [site], ("pooler.dense",)):
        assert script.names_site(value, "pooler.dense")
    for value in ("pooler", None, [], [site, site], types.SimpleNamespace(name=1)):
        assert not script.names_site(value, "pooler.dense")


def test_it_prints_two_checkouts_side_by_side():
    command = [sys.executable, PATH, "--before", ROOT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    header, _, *rows = done.stdout.split("\n\n")[0].splitlines()
    assert header == "| | before | now | goal |"
    for row in rows:
        _, before, now, _ = row.strip("|").split("|")
        assert before == now


def test_speed_needs_something_to_compare_with():
    command = [sys.executable, PATH, "--benchmark", "model"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected --before" in done.stderr


def test_the_rows_of_speed(monkeypatch, capsys):
    seconds = iter((1.0, 1.02, 1.0, 1.06, 2.0, 2.08))

    def report_of(*_):
        one = next(seconds)
        return {"results": {"tiny": {"peers": {"fp32": {"median_seconds": one, "rounds": [one]}}}}}

    monkeypatch.setattr(script, "report_of", report_of)
    script.compare_speed(ROOT, ROOT, ["model"], 3, True, [])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| model | tiny: fp32 | 1.060 | 1.020 | 1.020 to 1.060 | slower |"
