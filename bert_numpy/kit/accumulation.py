"""Which accumulator computed a candidate's products? Its name, from the outputs alone.

Each accumulator in turn computes the products from the candidate's own operands. One that
makes every product of some formats, to the last bit, may be the candidate's. If several do,
the cases are listed that would tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bert_numpy.kit.defects import ACCUMULATED, Defect
from bert_numpy.kit.evaluation import NOT_COMPUTED, Evaluation, reproduces, unlike
from bert_numpy.kit.manifest import Kit, Tensor
from npfp8.arrays import Array
from npfp8.products import ACCUMULATORS

__all__ = ["Products", "products_of"]

#: The operations whose results an accumulator decides.
_SUMS = ("sum", "block_sum", "product")

#: The most formats of operands that a text names.
_NAMED = 6

#: The most cases that are tried to tell accumulators apart.
_TRIED = 64


@dataclass(frozen=True)
class Products:
    """Products of a candidate that are not the kit's, and the accumulators that make them.

    Attributes
    ----------
    operands : tuple of str
        The formats of the operands, such as "E4M3FN x E5M2".
    tensors : int
        The number of the candidate's tensors with such products: all were compared.
    accumulators : tuple of str
        The keys of :data:`npfp8.ACCUMULATORS` that reproduce every one of them.
    told_apart_by : tuple of str
        The kit's tensors which the candidate lacks, and in which these accumulators differ.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.kit import open_kit, verify
    >>> from bert_numpy.kit.operations import OPERATIONS
    >>> kit, name = open_kit(), "operator/gemm-k4096/sum"
    >>> how = kit.tensors[name].attributes | {"accumulate": "hopper-fast"}
    >>> candidate = {name: OPERATIONS["sum"](kit.inputs(name), how)}
    >>> verify(kit, candidate).products[0].accumulators
    ('hopper-fast',)
    """

    operands: tuple[str, ...]
    tensors: int
    accumulators: tuple[str, ...]
    told_apart_by: tuple[str, ...] = ()

    def text(self) -> str:
        """Return one line of text.

        Examples
        --------
        >>> from bert_numpy.kit.accumulation import Products
        >>> Products(("E4M3FN x E4M3FN",), 12, ("ada", "hopper")).text()
        'products of E4M3FN x E4M3FN (12 tensors): those of ada or hopper'
        """
        known = [*self.operands[:_NAMED], *(["others"] if len(self.operands) > _NAMED else [])]
        count = f"{self.tensors} tensor{'s' * (self.tensors != 1)}"
        names = " or ".join(self.accumulators)
        apart = "; to tell them apart, give " if self.told_apart_by else ""
        wanted = " and ".join(self.told_apart_by)
        return f"products of {', '.join(known)} ({count}): those of {names}{apart}{wanted}"


def products_of(
    kit: Kit, found: Mapping[str, Array], differing: Mapping[str, Array]
) -> tuple[Products, ...]:
    """Find the accumulators that made a candidate's products, where these are not the kit's.

    Parameters
    ----------
    kit : Kit
    found : mapping of str to ndarray
        The candidate's tensors.
    differing : mapping of str to ndarray
        Those that differ from the kit's.
    """
    if not differing:
        return ()

    def own(name: str) -> Array | None:
        # The kit's array, if it is equal, lets an evaluation pass on what follows from it.
        return kit.arrays[name] if name in found and name not in differing else found.get(name)

    groups: dict[tuple[str, ...], list[str]] = {}
    computed = set()
    for name in found:
        sums = {
            source
            for source in (name, *kit.sources([name], found.__contains__))
            if kit.tensors[source].operation in _SUMS
        }
        if sums:
            computed |= sums
            operands = tuple(sorted({_operands(kit.tensors[source]) for source in sums}))
            groups.setdefault(operands, []).append(name)
    made = []
    for operands, names in groups.items():
        # What differs comes first: most accumulators are ruled out there.
        order = sorted(names, key=lambda name: (name not in differing, found[name].size))
        if order[0] not in differing or _is_by_the_kit(kit, order, found, own):
            continue
        able = [
            accumulate
            for accumulate, defect in ACCUMULATED.items()
            if all(reproduces(kit, defect, name, found[name], own) for name in order)
        ]
        if able:
            made.append(Products(operands, len(names), tuple(able)))
    return tuple(_with_cases(kit, products, computed) for products in _joined(made))


def _joined(products: Iterable[Products]) -> list[Products]:
    """Join products with those whose accumulators are some of theirs, or the same."""
    joined: list[Products] = []
    for item in sorted(products, key=lambda item: len(item.accumulators)):
        for i, other in enumerate(joined):
            if set(other.accumulators) <= set(item.accumulators):
                operands = tuple(dict.fromkeys((*other.operands, *item.operands)))
                count = other.tensors + item.tensors
                joined[i] = replace(other, operands=operands, tensors=count)
                break
        else:
            joined.append(item)
    return joined


def _with_cases(kit: Kit, products: Products, computed: Collection[str]) -> Products:
    """Add the cases, of those that are not computed, that tell the accumulators apart."""
    lacking = [
        name
        for name, tensor in kit.tensors.items()
        if _is_one_of(tensor, products.operands) and name not in computed
    ]
    return replace(
        products, told_apart_by=tuple(_telling_apart(kit, products.accumulators, lacking))
    )


def _is_by_the_kit(
    kit: Kit, names: Iterable[str], found: Mapping[str, Array], own: Callable[[str], Array | None]
) -> bool:
    """Check that the kit's own operations make products of the candidate's operands."""
    nothing = Defect("", {})
    for name in names:
        try:
            with np.errstate(all="ignore"):
                x = Evaluation(kit, own, nothing, name, found[name]).value(name)
        except NOT_COMPUTED:
            return False
        if x.shape != found[name].shape or unlike(kit.tensors[name], x, found[name]).any():
            return False
    return True


def _operands(tensor: Tensor) -> str:
    """Name the formats of a product's operands."""
    if tensor.operation == "product":
        return "bfloat16 x bfloat16"
    names = []
    for how in (tensor.attributes["a"], tensor.attributes["b"]):
        blocks = f" in blocks of {how['block']}" if "block" in how else ""
        names.append(f"{how['fmt']}{blocks}")
    return " x ".join(names)


def _is_one_of(tensor: Tensor, operands: tuple[str, ...]) -> bool:
    return tensor.operation in _SUMS and _operands(tensor) in operands


def _telling_apart(kit: Kit, accumulators: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Yield tensors, few of them, in which the accumulators differ, of those that can."""
    alike = [list(accumulators)]  # groups of those that no tensor up to now tells apart
    for name in names[:_TRIED]:
        if all(_have_the_same_numbers(group) for group in alike):
            return
        apart: list[list[str]] = []
        for group in alike:
            by_bits: dict[bytes, list[str]] = {}
            for accumulate in group:
                by_bits.setdefault(_bits(kit, name, ACCUMULATED[accumulate]), []).append(accumulate)
            apart += by_bits.values()
        if len(apart) > len(alike):
            yield name
        alike = apart


def _have_the_same_numbers(accumulators: list[str]) -> bool:
    """Check that accumulators differ in their names alone."""
    first, *others = (
        replace(ACCUMULATORS[name], name="", description="", source="", proven=False)
        for name in accumulators
    )
    return all(other == first for other in others)


def _bits(kit: Kit, name: str, defect: Defect) -> bytes:
    """Return the bits of a sum by an accumulator; its NaNs are all the same."""
    tensor = kit.tensors[name]
    with np.errstate(all="ignore"):
        operation = defect.operations.get(tensor.operation)
        x = operation and operation(kit.inputs(name), tensor.attributes)
    x = kit.arrays[name] if x is None else x
    return np.where(np.isnan(x), np.float32(np.nan), x).tobytes()
