"""The pytest plugin in projects of their own: one test per case, another kit, clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from bert_numpy.kit import open_kit
from bert_numpy.kit.manifest import Kit, write_kit

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["bert_numpy.pytest_plugin"]\n'

DECODER = """
import numpy as np
import pytest
from npfp8 import decode

@pytest.mark.golden(operation="decode", level="codec")
def test_decoder(golden_kit, golden_case):
    values = decode(golden_case.inputs["codes"], golden_case.attributes["fmt"])
    if golden_case.attributes["fmt"] == "E5M2":
        values = values + np.float32(1)
    golden_kit.check({golden_case.name: values})
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def run(project: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    project.makepyfile(source)
    return project.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_one_test_per_case_with_its_name(project: pytest.Pytester) -> None:
    result = run(project, DECODER, "-v", "--strict-markers")
    levels = [tensor.level for tensor in open_kit().tensors.values() if tensor.operation != "given"]
    codec = levels.count("codec")
    result.assert_outcomes(passed=14, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_decoder[[]codec/E4M3FN/values] PASSED*",
            "*::test_decoder[[]codec/E5M2/values] FAILED*",
            f"*FAILED (bit-exact): 1 of {len(levels)} computed tensors given, 1 differ*",
            f"15 of {len(levels)} computed tensors compared",
            f"not given: codec: {codec - 15} of {codec} (encode {codec - 15})",
            "not given: layer: all 164",
        ]
    )
    one = project.runpytest_subprocess("-k", "E3M2", "-p", "no:cacheprovider")
    one.assert_outcomes(passed=1, deselected=14)


def test_the_example_of_the_page(project: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "kit.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[3].split("```")[0]
    lines = page.split("PASSED")[0].rpartition("```text\n")[2]
    project.makepyfile(test_backend=example)
    result = project.runpytest_subprocess("-v", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=15)
    assert lines.strip() in result.stdout.str()


def test_another_kit(project: pytest.Pytester, tmp_path: Path) -> None:
    kit = open_kit()
    names = ("codec/E4M3FN/codes", "codec/E4M3FN/values")
    small = Kit({}, {n: kit.tensors[n] for n in names}, {n: kit.arrays[n] for n in names})
    write_kit(small, tmp_path / "small")
    result = run(project, DECODER, "-v", f"--golden-kit={tmp_path / 'small'}")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1 of 1 computed tensors compared"])
    result = run(project, DECODER, "--golden-kit=nowhere")
    assert result.ret != 0
    output = result.stdout.str() + result.stderr.str()
    assert "--golden-kit: nowhere: expected a kit's folder, found no such folder" in output


def test_markers_select_and_add_up(project: pytest.Pytester) -> None:
    source = """
    import pytest

    @pytest.mark.golden("encode", fmt="E5M2", saturate=True, rounding="nearest", level="codec")
    @pytest.mark.golden(operation="sum", name="operator/gemm-e*", a={"fmt": "E5M2"})
    def test_some(golden_kit, golden_case):
        golden_kit.check({golden_case.name: golden_case.expected})
        assert golden_case.operation in ("encode", "sum")

    def test_all(golden_case):
        assert golden_case.inputs
    """
    kit = open_kit()
    chosen = [
        name
        for name, tensor in kit.tensors.items()
        if name == "codec/E5M2/nearest-saturating"
        or (
            name.startswith("operator/gemm-e")
            and tensor.operation == "sum"
            and tensor.attributes["a"]["fmt"] == "E5M2"
        )
    ]
    assert len(chosen) > 2
    result = run(project, source, "-v")
    every = sum(tensor.operation != "given" for tensor in kit.tensors.values())
    result.assert_outcomes(passed=len(chosen) + every)
    for name in chosen:
        result.stdout.fnmatch_lines([f"*::test_some[[]{name}] PASSED*"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('operation="sums"', "*marker golden: operation: expected one of *did you mean 'sum'?*"),
        ('level="codecs"', "*marker golden: level: expected one of codec, *found 'codecs'*"),
        ('operation="sum", level="codec"', "*marker golden: expected cases of *, found none*"),
        ('operation="encode", fmt="E9M9"', "*marker golden: expected cases of *, found none*"),
    ],
)
def test_a_marker_that_selects_nothing_is_an_error(
    project: pytest.Pytester, marker: str, message: str
) -> None:
    """Otherwise a misspelt name would pass, with no test at all."""
    source = f"""
    import pytest

    @pytest.mark.golden({marker})
    def test_nothing(golden_case):
        pass
    """
    result = run(project, source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])


def test_required_levels(project: pytest.Pytester) -> None:
    source = """
    import pytest

    def test_codec(golden_kit):
        found = {case.name: case.expected for case in golden_kit.cases(level="codec")}
        golden_kit.check(found, require=["codec"])
        with pytest.raises(AssertionError, match="missing: of codec: 1 tensor"):
            golden_kit.check(dict(list(found.items())[1:]), require=["codec"])
        with pytest.raises(AssertionError, match="FAILED"):
            golden_kit.check(found, complete=True)
    """
    run(project, source).assert_outcomes(passed=1)


def test_golden_kit_without_the_option() -> None:
    """As in a module that imports the fixture alone: the kit that comes with the package."""
    kit = open_kit()
    case = kit.case("operator/gemm-e4m3/sum")
    assert (case.operation, case.level) == ("sum", "operator")
    assert np.array_equal(case.expected, kit.arrays[case.name])
