"""The search for the causes of a candidate's differences: where errors arise, and which do.

An error arises in a tensor that the kit's operations do not make of the candidate's own
tensors. There each known defect is planted in turn; one that makes every element is a cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bert_numpy.kit.defects import DEFECTS, TOLERANT, Defect
from bert_numpy.kit.evaluation import NOT_COMPUTED, Evaluation, agreement, bits_of, unlike
from bert_numpy.kit.manifest import Kit, Tensor, apply_view
from bert_numpy.kit.operand_defects import Alone, Elementwise, Together
from npfp8.arrays import Array

__all__ = ["Diagnosis", "Partial", "diagnose"]

#: A partial cause must make this many of the differing elements, and leave at most this share
#: of the differences: of noise, which a defect meets here and there, it leaves most.
_LEAST, _MOST_LEFT = 4, 1 / 3

#: The most partial causes of a tensor.
_NAMED = 3

#: The tensors of an operation without a cause, after which later ones are not searched.
_TRIED = 3

_Fixed = Callable[[str], "Array | None"]


@dataclass(frozen=True)
class Partial:
    """A defect that makes most of the elements that differ, but not all.

    It is named only if the tensor with this defect differs from the candidate's in at most a
    third as many elements as the right tensor does, and makes four of those that differ.

    Attributes
    ----------
    cause : str
    explained : int
        The number of elements that differ from the kit's, and are what the defect makes.
    different : int
        The number of all elements that differ from the kit's.
    changed : int
        The number of elements that are equal to the kit's, and would not be with the defect.
    equal : int
        The number of all elements that are equal to the kit's.
    """

    cause: str
    explained: int
    different: int
    changed: int
    equal: int

    def text(self) -> str:
        """Return the claim in words.

        Examples
        --------
        >>> from bert_numpy.kit.diagnosis import Partial
        >>> Partial("truncation", 40, 42, 1, 958).text()
        'truncation explains 40 of 42 differing elements, but would change 1 of 958 equal ones'
        """
        broken = f", but would change {self.changed} of {self.equal} equal ones"
        return (
            f"{self.cause} explains {self.explained} of {self.different} differing elements"
            f"{broken if self.changed else ' and changes none of the others'}"
        )


@dataclass
class Diagnosis:
    """What is known of the place where an error arises.

    Attributes
    ----------
    causes : tuple of str
    partial : tuple of Partial
        The defects that explain most of it, the best first, if none explains all.
    """

    causes: tuple[str, ...] = ()
    partial: tuple[Partial, ...] = ()


@dataclass
class _Search:
    """What one tensor's search has found: causes, those in its own operation, and partial ones."""

    causes: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)
    partial: dict[str, Partial] = field(default_factory=dict)


def diagnose(
    kit: Kit,
    found: Mapping[str, Array],
    differing: Mapping[str, npt.NDArray[np.bool_]],
    roots: list[str],
    advance: Callable[[int], None],
) -> dict[str, Diagnosis]:
    """Find the causes of a candidate's differences, by the tensors in which they arise.

    Parameters
    ----------
    kit : Kit
    found : mapping of str to ndarray
        The candidate's tensors.
    differing : mapping of str to ndarray of bool
        The elements that differ, of tensors that do.
    roots : list of str
        The tensors that differ although their nearest sources do not.
    advance : callable
        Called with 1 for each root that is done.

    Returns
    -------
    dict of str to Diagnosis
        Of the roots, and of tensors after them in which a further error arises: the kit's
        operations do not make them of the candidate's own tensors.
    """

    def given(name: str) -> Array | None:
        return kit.arrays[name]

    def fixed(name: str) -> Array | None:
        return kit.arrays[name] if name in found and name not in differing else None

    searches: dict[str, _Search] = {}
    known: dict[str, set[str]] = {}
    for root in roots:
        causes = known.setdefault(kit.tensors[root].operation, set())
        search = _searched(kit, root, found, differing[root], given, fixed, causes)
        searches[root] = search
        causes |= search.causes
        advance(1)
    further = [name for name in differing if name not in searches]
    searches |= _further(kit, found, differing, further, searches, (given, fixed))
    defects = (*DEFECTS, *(defect for tier in TOLERANT for defect in tier))
    order = {name: i for i, name in enumerate(dict.fromkeys(item.name for item in defects))}
    explained: dict[str, set[str]] = {}
    for root, search in searches.items():
        for name in search.causes:
            explained.setdefault(name, set()).add(root)

    def named(search: _Search) -> tuple[str, ...]:
        # By chance two defects make the same tensor, if it is small. Then one that makes others,
        # too, is the cause, and one that makes some of these alone is not.
        likely = [
            name
            for name in search.causes
            if not any(explained[name] < explained[other] for other in search.causes)
        ]

        def rank(name: str) -> tuple[int, bool, int]:
            return -len(explained[name]), name not in search.alone, order[name]

        return tuple(sorted(likely, key=rank))

    return {
        root: Diagnosis(named(search), () if search.causes else _best(search.partial.values()))
        for root, search in searches.items()
    }


def _best(partial: Iterable[Partial]) -> tuple[Partial, ...]:
    items = sorted(partial, key=lambda item: item.changed - item.explained)
    return tuple(items[:_NAMED])


def _searched(
    kit: Kit,
    root: str,
    found: Mapping[str, Array],
    mask: npt.NDArray[np.bool_],
    given: _Fixed,
    fixed: _Fixed,
    likely: set[str],
    everything: bool = True,
) -> _Search:
    """Plant every known defect on the way to a tensor, those without tolerance first.

    If those that are likely, as they explain the same operation elsewhere, explain this tensor,
    no others are planted.
    """
    search = _Search()
    for defects in (DEFECTS, *TOLERANT):
        if likely and not search.causes:
            _plant(kit, root, found, mask, given, fixed, _named(defects, likely), search)
    if search.causes or not everything:
        return search
    search = _Search()
    for defects in (DEFECTS, *TOLERANT):
        if not search.causes:
            _plant(kit, root, found, mask, given, fixed, defects, search)
    return search


def _plant(
    kit: Kit,
    root: str,
    found: Mapping[str, Array],
    mask: npt.NDArray[np.bool_],
    given: _Fixed,
    fixed: _Fixed,
    defects: tuple[Defect, ...],
    search: _Search,
) -> None:
    """Plant defects on the way to a tensor, and add to the search what they explain."""
    chain = (root, *kit.sources([root], found.__contains__))
    operations = {kit.tensors[name].operation for name in chain}
    is_behind = len(chain) > 1 and not _are_at_hand(kit, root, fixed)
    sample = _sample(kit, root, found[root], mask, given)
    for defect in defects:
        if defect.name in search.causes or operations.isdisjoint(defect.operations):
            continue
        own = kit.tensors[root].operation
        for variant, is_alone in _variants(defect, own, operations, is_behind):
            if is_alone and sample is not None and sample.excludes(variant):
                continue
            same = agreement(kit, variant, root, found[root], given if is_alone else fixed)
            if same is None:
                continue
            if same.all():
                search.causes.add(defect.name)
                if is_alone:
                    search.alone.add(defect.name)
                break
            explained = int((same & mask).sum())
            changed = int((~same & ~mask).sum())
            different = int(mask.sum())
            left = different - explained + changed
            if explained >= _LEAST and left <= _MOST_LEFT * different:
                best = search.partial.get(defect.name)
                if best is None or explained - changed > best.explained - best.changed:
                    equal = mask.size - different
                    search.partial[defect.name] = Partial(
                        defect.name, explained, different, changed, equal
                    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """Every second element of a tensor's difference, and of the inputs that they depend on.

    A defect that does not make most of these explains nothing, and is not applied to the whole.
    """

    tensor: Tensor
    inputs: Mapping[str, Array]
    found: Array
    different: int

    def excludes(self, defect: Defect) -> bool:
        """Check that a defect of single elements leaves more than a partial cause may leave."""
        defective = defect.operations[self.tensor.operation]
        if not isinstance(defective, Elementwise):
            return False
        try:
            with np.errstate(all="ignore"):
                x = defective(self.inputs, self.tensor.attributes)
        except NOT_COMPUTED:
            return False
        if x is None:
            return True
        left = np.count_nonzero(unlike(self.tensor, x, self.found))
        return bool(left > _MOST_LEFT * self.different)


def _sample(
    kit: Kit, root: str, found: Array, mask: npt.NDArray[np.bool_], given: _Fixed
) -> _Sample | None:
    """Take a sample of a tensor; None where no element depends on the same of the inputs alone."""
    tensor, places = kit.tensors[root], np.flatnonzero(mask)
    if tensor.operation not in ("encode", "quantize") or tensor.attributes.get("axis") is not None:
        return None
    inputs = {}
    for role, (source, view) in tensor.inputs.items():
        if (x := given(source)) is None or (x := apply_view(x, view)).shape not in ((), mask.shape):
            return None
        inputs[role] = x.reshape(-1)[places[::2]] if x.ndim else x
    return _Sample(tensor, inputs, found.reshape(-1)[places[::2]], places.size)


def _are_at_hand(kit: Kit, root: str, fixed: _Fixed) -> bool:
    """Check that all inputs of a tensor are fixed, so that only its own operation is applied."""
    sources = (reference.tensor for reference in kit.tensors[root].inputs.values())
    return all(kit.tensors[x].operation == "given" or fixed(x) is not None for x in sources)


def _variants(
    defect: Defect, operation: str, operations: set[str], is_behind: bool
) -> Iterator[tuple[Defect, bool]]:
    """Yield a defect as it may be planted, and if it is in the tensor's own operation alone.

    The defect is in this operation alone, which the kit's inputs went into, or in all on the
    way or, if it fits several kinds of them, in one kind alone. The latter two are others only
    if there are operations behind the tensor's own.
    """
    shared = [name for name in defect.operations if name in operations]
    if isinstance(defect.operations, Together):
        if len(shared) == len(defect.operations):
            yield defect, False
        return
    if operation in shared:
        yield defect, True
    if shared and is_behind and not isinstance(defect.operations, Alone):
        yield defect, False
        if len(shared) > 1:
            for name in shared:
                yield Defect(defect.name, {name: defect.operations[name]}), False


def _further(
    kit: Kit,
    found: Mapping[str, Array],
    differing: Mapping[str, npt.NDArray[np.bool_]],
    names: list[str],
    searches: Mapping[str, _Search],
    kits: tuple[_Fixed, _Fixed],
) -> dict[str, _Search]:
    """Search the tensors that do not follow from the candidate's own, which differ before them.

    After a few tensors of an operation for which no cause was found, no more is looked for.
    """
    nothing = Defect("", {})
    known: dict[str, set[str]] = {}
    unknown: dict[str, int] = {}
    for root, search in searches.items():
        operation = kit.tensors[root].operation
        known.setdefault(operation, set()).update(search.causes)
        unknown[operation] = unknown.get(operation, 0) + (not search.causes)
    results: dict[str, _Search] = {}
    for name in names:

        def own(source: str, of: str = name) -> Array | None:
            return found.get(source) if source != of else None

        evaluation = Evaluation(kit, own, nothing, name, found[name])
        try:
            with np.errstate(all="ignore"):
                x = evaluation.value(name)
        except NOT_COMPUTED:
            continue
        if x.shape != found[name].shape or not _is_readable(kit, name, found):
            continue
        mask = unlike(kit.tensors[name], x, found[name])
        if not mask.any():
            continue

        def given(source: str, of: Evaluation = evaluation) -> Array | None:
            return of.value(source)

        operation = kit.tensors[name].operation
        causes = known.setdefault(operation, set())
        # An operation may have been tested alone, on the kit's inputs.
        ways = ((mask, given, own), (differing[name], *kits))
        everything = unknown.get(operation, 0) < _TRIED
        for whole in (False, True) if everything else (False,):
            for how in ways:
                search = _searched(kit, name, found, *how, causes, whole)
                if search.causes:
                    break
            if search.causes:
                break
        causes |= search.causes
        unknown[operation] = unknown.get(operation, 0) + (not search.causes)
        results[name] = search
    return results


def _is_readable(kit: Kit, name: str, found: Mapping[str, Array]) -> bool:
    """Check that the candidate's bfloat16 tensors before one have no more bits than that."""
    nearest = {name, *kit.sources([name], found.__contains__)}
    sources = {x.tensor for step in nearest for x in kit.tensors[step].inputs.values()}
    return not any(
        kit.tensors[source].kind == "bfloat16" and (bits_of(found[source]) & 0xFFFF).any()
        for source in sources
        if source in found
    )


def _named(defects: tuple[Defect, ...], names: set[str]) -> tuple[Defect, ...]:
    return tuple(defect for defect in defects if defect.name in names)
