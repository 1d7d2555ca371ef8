"""A pytest fixture for the tests of other backends: the golden kit.

In a ``conftest.py``::

    pytest_plugins = ["bert_numpy.pytest_plugin"]

and in a test::

    def test_my_products(golden_kit):
        golden_kit.check({case.name: my_sum(case.inputs["a"], case.inputs["b"])
                          for case in golden_kit.cases("sum", "operator")})

It is not an entry point, because loading it imports NumPy and would slow down every pytest run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from bert_numpy.kit import Kit, Report, open_kit, verify
from bert_numpy.kit.manifest import Case

__all__ = ["GoldenKit", "golden_kit"]


class GoldenKit:
    """A kit whose comparison raises AssertionError.

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

    def cases(self, operation: str, level: str | None = None) -> Iterator[Case]:
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

    def check(self, candidate: Mapping[str, Any], profile: str = "bit-exact") -> Report:
        """Compare tensors by name with the kit's; see :func:`bert_numpy.kit.compare`.

        Raises
        ------
        AssertionError
            With the report, if the profile does not tolerate a difference.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> from bert_numpy.pytest_plugin import GoldenKit
        >>> kit = GoldenKit(open_kit())
        >>> kit.check({case.name: case.expected for case in kit.cases("decode")}).passed
        True
        """
        report = verify(self.kit, candidate, profile)
        if not report.passed:
            raise AssertionError(report.text())
        return report


@pytest.fixture(scope="session")
def golden_kit() -> GoldenKit:
    """Open the kit that comes with the package."""
    return GoldenKit(open_kit())
