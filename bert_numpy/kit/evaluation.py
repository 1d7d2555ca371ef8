"""Tensors of a kit as a backend with a defect computes them, and whether a candidate has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bert_numpy.kit.defects import FOUND, Defect
from bert_numpy.kit.history import Traced
from bert_numpy.kit.manifest import Kit, Tensor, apply_view
from bert_numpy.kit.operations import OPERATIONS
from bert_numpy.kit.spans import FLOAT32, Span, is_within
from bert_numpy.kit.tolerance import MONOTONE
from npfp8.arrays import Array
from npfp8.formats import FORMATS, FloatFormat
from npfp8.mistakes import differing

__all__ = ["NOT_COMPUTED", "Evaluation", "agreement", "bits_of", "reproduces", "unlike"]


def unlike(tensor: Tensor, x: Array, y: Array) -> npt.NDArray[np.bool_]:
    """Mark the elements in which two tensors differ. All NaNs are equal."""
    if tensor.kind in ("bfloat16", "float32"):
        bits_x, bits_y = (bits_of(z) for z in (x, y))
        return np.asarray((bits_x != bits_y) & ~(np.isnan(x) & np.isnan(y)))
    fmt = FORMATS.get(tensor.fmt)
    if isinstance(fmt, FloatFormat):
        return differing(x, y, fmt)
    return np.asarray(x != y)


def bits_of(x: Array) -> npt.NDArray[np.uint32]:
    """Return the bits of numbers as float32."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32).reshape(x.shape)


#: The errors of operations whose inputs a defect, here or before, has made unfit.
NOT_COMPUTED = (ArithmeticError, LookupError, TypeError, ValueError, MemoryError)


class Evaluation:
    """The values of a kit's tensors if a defect is in everything that is not held fixed."""

    def __init__(
        self,
        kit: Kit,
        fixed: Callable[[str], Array | None],
        defect: Defect,
        target: str,
        found: Array,
    ) -> None:
        self.kit, self.fixed, self.defect = kit, fixed, defect
        self.target, self.found = target, found
        self.known: dict[str, Array] = {}
        self.spans: dict[str, Span] = {}
        self.applied = False

    def value(self, name: str) -> Array:
        """Return a tensor, fixed or computed with the defect."""
        x = self.result(name)
        if isinstance(x, Span):
            raise TypeError(f"{name}: expected a tensor, found a span")
        return x

    def result(self, name: str) -> Array | Span:
        """Return a tensor, or the span of what it may be."""
        if not self._is_known(name):
            needed = self.kit.sources([name], self._is_known)
            before = [source for source in self.kit.tensors if source in needed] if needed else []
            for source in (*before, name):  # in the order of the data flow
                x = self._computed(source)
                if isinstance(x, Span):
                    self.spans[source] = x
                else:
                    self.known[source] = x
        return self.spans[name] if name in self.spans else self.known[name]

    def _is_known(self, name: str) -> bool:
        """Check whether a tensor is available without computing anything."""
        if name not in self.known and name not in self.spans:
            x = self.fixed(name) if name != self.target else None
            if x is None and self.kit.tensors[name].operation == "given":
                x = self.kit.arrays[name]
            if x is None:
                return False
            self.known[name] = x
        return True

    def _seen(self, name: str) -> Array:
        """Return a tensor that need not have been computed: then it is the kit's."""
        is_known = self._is_known(name) and name not in self.spans
        return self.known[name] if is_known else self.kit.arrays[name]

    def _computed(self, name: str) -> Array | Span:
        """Compute a tensor with the defect; its inputs must be known.

        Where nothing differs from the kit, its own array is passed on: what follows from it
        need not be computed again.
        """
        tensor, right = self.kit.tensors[name], self.kit.arrays[name]
        sources = [source for source, _ in tensor.inputs.values()]
        if not self.spans.keys().isdisjoint(sources):
            return self._computed_span(tensor)
        unchanged = all(self.known[source] is self.kit.arrays[source] for source in sources)
        defective = self.defect.operations.get(tensor.operation)
        if defective is None and unchanged:
            return right
        inputs = {
            role: apply_view(self.known[reference.tensor], reference.view)
            for role, reference in tensor.inputs.items()
        }
        if defective is not None:
            given = {FOUND: self.found} if name == self.target else {}
            try:
                x = defective(
                    Traced({**inputs, **given}, self.kit, name, self._seen), tensor.attributes
                )
            except NOT_COMPUTED:  # the defect is none of these inputs
                x = None
            if isinstance(x, Span):
                self.applied = True
                return x
            if x is not None:
                self.applied = True
                same = x.shape == right.shape and not unlike(tensor, right, x).any()
                return right if unchanged and same else x
        return right if unchanged else OPERATIONS[tensor.operation](inputs, tensor.attributes)

    def _computed_span(self, tensor: Tensor) -> Span:
        """Take spans through an operation that never exchanges two numbers."""
        spans = {
            role: self.spans[reference.tensor]
            for role, reference in tensor.inputs.items()
            if reference.tensor in self.spans
        }
        if not spans.keys() <= set(MONOTONE.get(tensor.operation, ())):
            raise ValueError(f"{tensor.name}: expected certain inputs")
        others = {
            role: apply_view(self.known[reference.tensor], reference.view)
            for role, reference in tensor.inputs.items()
            if role not in spans
        }
        ends = []
        for name in ("low", "high"):
            inputs = dict(others)
            for role, span in spans.items():
                end = np.asarray(getattr(span, name), np.float32)
                inputs[role] = apply_view(end, tensor.inputs[role].view)
            result = OPERATIONS[tensor.operation](inputs, tensor.attributes)
            ends.append(_numbers(tensor, result))
        # That NaN may arise from numbers before, is not followed.
        return Span(ends[0], ends[1], np.isnan(ends[0]) | np.isnan(ends[1]), FLOAT32)


def _numbers(tensor: Tensor, x: Array) -> Array:
    """Return the numbers of a tensor: of codes their values."""
    fmt = FORMATS.get(tensor.fmt)
    return fmt.values[x] if isinstance(fmt, FloatFormat) else x.astype(np.float64)


def agreement(
    kit: Kit, defect: Defect, root: str, found: Array, fixed: Callable[[str], Array | None]
) -> npt.NDArray[np.bool_] | None:
    """Mark the elements of a tensor that a defect, applied to the fixed tensors, makes.

    Parameters
    ----------
    kit : Kit
    defect : Defect
    root : str
        The tensor.
    found : ndarray
        The candidate's.
    fixed : callable
        Returns a tensor that is not to be computed, or None.

    Returns
    -------
    ndarray of bool, or None
        None if the defect is not on the way from the fixed tensors, or does not make a
        tensor of this shape.
    """
    evaluation = Evaluation(kit, fixed, defect, root, found)
    try:
        with np.errstate(all="ignore"):
            x = evaluation.result(root)
            if not evaluation.applied:
                return None
            if isinstance(x, Span):
                inside = is_within(x, _numbers(kit.tensors[root], found))
                return inside if inside.shape == found.shape else None
    except NOT_COMPUTED:
        return None
    return ~unlike(kit.tensors[root], x, found) if x.shape == found.shape else None


def reproduces(
    kit: Kit, defect: Defect, root: str, found: Array, fixed: Callable[[str], Array | None]
) -> bool:
    """Check that a defect, applied to the fixed tensors, reproduces every element of a tensor."""
    same = agreement(kit, defect, root, found, fixed)
    return same is not None and bool(same.all())
