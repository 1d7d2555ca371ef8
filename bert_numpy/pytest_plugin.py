"""A pytest plugin for the tests of other backends: fixtures of the golden kit.

In a ``conftest.py``::

    pytest_plugins = ["bert_numpy.pytest_plugin"]

and in a test module, which becomes one test per case, with the tensor's name as its id::

    @pytest.mark.golden(operation="sum", level="operator")
    def test_my_products(golden_kit, golden_case):
        a, b = golden_case.inputs["a"], golden_case.inputs["b"]
        golden_kit.check({golden_case.name: my_sum(a, b)})

``pytest --golden-kit FOLDER`` takes the cases of another kit. It is not an entry point, because
loading it imports NumPy and would slow down every pytest run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest

from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.errors import BertNumpyError
from bert_numpy.kit import Kit, Report, open_kit, verify
from bert_numpy.kit.coverage import coverage_of, missing_in_words
from bert_numpy.kit.manifest import Case

__all__ = ["GoldenKit", "golden_case", "golden_kit"]


class GoldenKit:
    """A kit whose comparison raises AssertionError.

    Attributes
    ----------
    kit : Kit
    checked : set of str
        The names of the tensors that :meth:`check` has compared.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit
    >>> from bert_numpy.pytest_plugin import GoldenKit
    >>> kit = GoldenKit(open_kit())
    >>> next(kit.cases("decode")).name
    'codec/E4M3FN/values'
    """

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.checked: set[str] = set()

    def cases(self, operation: str | None = None, level: str | None = None) -> Iterator[Case]:
        """Yield the cases to compute: inputs, attributes and names of an operation's tensors.

        See :meth:`bert_numpy.kit.Kit.cases`.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> from bert_numpy.pytest_plugin import GoldenKit
        >>> kit = GoldenKit(open_kit())
        >>> next(kit.cases("decode")).name
        'codec/E4M3FN/values'
        """
        return self.kit.cases(operation, level)

    def check(
        self,
        candidate: Mapping[str, Any],
        profile: str = "bit-exact",
        *,
        require: Iterable[str] = (),
        complete: bool = False,
    ) -> Report:
        """Compare tensors by name with the kit's; see :func:`bert_numpy.kit.verify`.

        Raises
        ------
        AssertionError
            With the report, if the profile does not tolerate a difference, or a required tensor
            is missing.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> from bert_numpy.pytest_plugin import GoldenKit
        >>> kit = GoldenKit(open_kit())
        >>> kit.check({case.name: case.expected for case in kit.cases("decode")}).verdict
        'consistent as far as given'
        """
        report = verify(self.kit, candidate, profile, require=require, complete=complete)
        self.checked.update(report.compared)
        if not report.passed:
            raise AssertionError(report.text())
        return report


#: The kit of a run of pytest.
_KIT = pytest.StashKey[GoldenKit]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names a kit."""
    parser.addoption(
        "--golden-kit",
        metavar="KIT",
        default=EMBEDDED,
        help="the folder of the kit to test against, as bert-numpy golden export writes it "
        f"(default: {EMBEDDED}, which comes with bert-numpy)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "golden(operation, level, name, **attributes): the kit's cases that golden_case takes: "
        "of an operation, of a level, with a name that fits a pattern, with these attributes; "
        "several markers add up",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per case for every test that asks for ``golden_case``."""
    if "golden_case" not in metafunc.fixturenames:
        return
    kit = _kit_of(metafunc.config).kit
    markers = list(metafunc.definition.iter_markers("golden"))
    names: dict[str, None] = {}
    for marker in reversed(markers):  # the uppermost decorator is the last
        names |= dict.fromkeys(_selected(kit, marker, metafunc.definition.nodeid))
    if not markers:
        names = dict.fromkeys(case.name for case in kit.cases())
    metafunc.parametrize("golden_case", list(names), ids=list(names), indirect=True)


def _selected(kit: Kit, marker: pytest.Mark, test: str) -> list[str]:
    """Return the names of the cases that a marker selects; it is an error if there are none."""
    positional = zip(("operation", "level", "name"), marker.args, strict=False)
    wanted: dict[str, Any] = {**dict(positional), **marker.kwargs}
    attributes = {x: wanted[x] for x in wanted if x not in ("operation", "level", "name")}
    try:
        names = [
            case.name
            for case in kit.cases(wanted.get("operation"), wanted.get("level"))
            if fnmatchcase(case.name, wanted.get("name", "*")) and _fits(case, attributes)
        ]
    except (BertNumpyError, TypeError) as error:
        pytest.fail(f"{test}: marker golden: {error}", pytrace=False)
    if not names:
        pytest.fail(f"{test}: marker golden: expected cases of {wanted}, found none", pytrace=False)
    return names


def _fits(case: Case, wanted: Mapping[str, Any]) -> bool:
    """Check a case's attributes; of an operand's, those that are wanted."""
    for key, value in wanted.items():
        found = case.attributes.get(key)
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            found = {name: found.get(name) for name in value}
        if found != value:
            return False
    return True


def _kit_of(config: pytest.Config) -> GoldenKit:
    """Open the run's kit, once."""
    if _KIT not in config.stash:
        try:
            config.stash[_KIT] = GoldenKit(open_kit(config.getoption("golden_kit", EMBEDDED)))
        except BertNumpyError as error:
            raise pytest.UsageError(f"--golden-kit: {error}") from None
    return config.stash[_KIT]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how much of the kit was compared in this run, and what was not."""
    golden = config.stash.get(_KIT, None)
    if golden is None or not golden.checked:
        return
    coverage = coverage_of(golden.kit, golden.checked)
    given = sum(len(item.given) for item in coverage)
    total = given + sum(len(item.missing) for item in coverage)
    terminalreporter.section("golden kit")
    terminalreporter.write_line(f"{given:,} of {total:,} computed tensors compared")
    for line in missing_in_words(coverage):
        terminalreporter.write_line(f"not given: {line}")


@pytest.fixture(scope="session")
def golden_kit(request: pytest.FixtureRequest) -> GoldenKit:
    """Open the kit of ``--golden-kit``, by default the one that comes with the package."""
    return _kit_of(request.config)


@pytest.fixture
def golden_case(request: pytest.FixtureRequest) -> Case:
    """Return one case of the kit; the marker ``golden`` selects them."""
    return _kit_of(request.config).kit.case(request.param)
