"""What a candidate gives of a kit, and which mistakes the tensors that it gives would not show.

A comparison says nothing about a tensor that was not given, and nothing about a mistake that
changes no element of those that were. A verdict names both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from bert_numpy.kit.defects import DEFECTS, Defect
from bert_numpy.kit.evaluation import NOT_COMPUTED, unlike
from bert_numpy.kit.history import Traced
from bert_numpy.kit.manifest import Kit

__all__ = [
    "Coverage",
    "as_counts",
    "by_level",
    "coverage_of",
    "missing_in_words",
    "unseen_mistakes",
]

#: The operations of single numbers, whose mistakes show on chosen numbers alone, such as ties.
_ELEMENTWISE = ("encode", "quantize", "round")


@dataclass(frozen=True)
class Coverage:
    """The tensors of one operation on one level of a kit: those given, and those that are not.

    Attributes
    ----------
    level, operation : str
    given, missing : tuple of str
        The names of the computed tensors that the candidate has, and of those that it lacks.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit, verify
    >>> kit = open_kit()
    >>> first = verify(kit, {"codec/E4M3FN/values": kit.arrays["codec/E4M3FN/values"]}).coverage[0]
    >>> first.level, first.operation, len(first.given), len(first.missing)
    ('codec', 'decode', 1, 14)
    """

    level: str
    operation: str
    given: tuple[str, ...]
    missing: tuple[str, ...]


def coverage_of(kit: Kit, found: Collection[str]) -> tuple[Coverage, ...]:
    """Count the computed tensors of a kit that a candidate has, by level and operation.

    Parameters
    ----------
    kit : Kit
    found : collection of str
        The names of the candidate's tensors.
    """
    return tuple(
        Coverage(
            level,
            operation,
            tuple(name for name in names if name in found),
            tuple(name for name in names if name not in found),
        )
        for (level, operation), names in kit.operations().items()
    )


def unseen_mistakes(kit: Kit, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """List known mistakes in single numbers that would change no element of some tensors.

    A mistake in encoding, quantizing or rounding to bfloat16 shows only in some numbers: in ties,
    subnormals, NaN, beyond the largest value. If none of these is among the inputs of the tensors
    that a candidate gives, they are right with the mistake, too.

    Parameters
    ----------
    kit : Kit
    names : iterable of str
        The tensors that the candidate gives.

    Returns
    -------
    dict of str to tuple of str
        For each operation, the mistakes that fit one of its tensors and change none, but do change
        one of the kit's other tensors of the operation, if there are any in these formats.
    """
    given: dict[str, list[str]] = {operation: [] for operation in _ELEMENTWISE}
    for name in names:
        if (operation := kit.tensors[name].operation) in given:
            given[operation].append(name)
    unseen = {}
    for operation, every in given.items():
        tensors = _distinct(kit, every)
        shown: dict[str, bool] = {}
        for defect in DEFECTS:
            if operation in defect.operations and not shown.get(defect.name, False):
                changes = (_changes(kit, defect, name) for name in tensors)
                fitting = [change for change in _up_to_true(changes) if change is not None]
                if fitting:
                    shown[defect.name] = fitting[-1] or shown.get(defect.name, False)
        others = _others(kit, operation, every)
        if mistakes := tuple(
            defect.name
            for defect in DEFECTS
            if shown.get(defect.name) is False
            and (not others or any(_changes(kit, defect, name) for name in others))
        ):
            unseen[operation] = tuple(dict.fromkeys(mistakes))
    return unseen


def _others(kit: Kit, operation: str, given: Collection[str]) -> list[str]:
    """List the kit's other tensors of an operation, in the formats of those given.

    A mistake that none of these shows either can hardly be made in these formats.
    """
    formats = {kit.tensors[name].fmt for name in given}
    return [
        name
        for name, tensor in kit.tensors.items()
        if tensor.operation == operation and tensor.fmt in formats and name not in given
    ]


def _up_to_true(values: Iterable[bool | None]) -> Iterator[bool | None]:
    """Yield values up to the first that is true: what follows need not be computed."""
    for value in values:
        yield value
        if value:
            return


#: What :func:`_changes` has found for a kit. A kit does not change, and is compared more than once.
_known: WeakKeyDictionary[Kit, dict[tuple[Defect, str], bool | None]] = WeakKeyDictionary()


def _changes(kit: Kit, defect: Defect, name: str) -> bool | None:
    """Check whether a defect changes a tensor; None if it is no defect of such tensors."""
    known = _known.setdefault(kit, {})
    if (defect, name) not in known:
        known[defect, name] = _found_changes(kit, defect, name)
    return known[defect, name]


def _found_changes(kit: Kit, defect: Defect, name: str) -> bool | None:
    tensor, right = kit.tensors[name], kit.arrays[name]
    inputs = Traced(kit.inputs(name), kit, name, kit.arrays.__getitem__)
    try:
        with np.errstate(all="ignore"):
            x = defect.operations[tensor.operation](inputs, tensor.attributes)
    except NOT_COMPUTED:
        return None
    if not isinstance(x, np.ndarray):
        return None
    if x.shape != right.shape or unlike(tensor, right, x).any():
        return True
    # The codec's inputs are all that could show a mistake: one that changes nothing is none here.
    return None if tensor.level == "codec" else False


def _distinct(kit: Kit, names: Iterable[str]) -> list[str]:
    """Leave out tensors that an operation makes from the same inputs as another."""
    made: dict[str, str] = {}
    for name in names:
        tensor = kit.tensors[name]
        # Sites that share an input share its tensor, but each has a scale of its own.
        inputs = [
            kit.arrays[source].tobytes() if kit.arrays[source].ndim == 0 else (source, view)
            for source, view in tensor.inputs.values()
        ]
        made.setdefault(repr((inputs, tensor.attributes)), name)
    return list(made.values())


def by_level(coverage: Iterable[Coverage]) -> dict[str, list[Coverage]]:
    """Group coverages by level, in their order."""
    levels: dict[str, list[Coverage]] = {}
    for item in coverage:
        levels.setdefault(item.level, []).append(item)
    return levels


def missing_in_words(coverage: Iterable[Coverage]) -> list[str]:
    """Say for each level what was not given: "codec: all 60", or the operations with counts."""
    lines = []
    for level, items in by_level(coverage).items():
        missing = sum(len(item.missing) for item in items)
        total = missing + sum(len(item.given) for item in items)
        if missing == total:
            lines.append(f"{level}: all {total}")
        elif missing:
            parts = (
                f"{item.operation} {len(item.missing)}"
                + (f" of {len(item.missing) + len(item.given)}" if item.given else "")
                for item in items
                if item.missing
            )
            lines.append(f"{level}: {missing} of {total} ({', '.join(parts)})")
    return lines


def as_counts(coverage: Iterable[Coverage]) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Return the numbers of tensors given and missing, by level and operation, for JSON."""
    return {
        level: {
            item.operation: {"given": len(item.given), "missing": len(item.missing)}
            for item in items
        }
        for level, items in by_level(coverage).items()
    }
