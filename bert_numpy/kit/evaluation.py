"""Tensors of a kit as a backend with a defect computes them, and whether a candidate has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bert_numpy.kit.defects import FOUND, Defect
from bert_numpy.kit.history import Traced
from bert_numpy.kit.manifest import Kit, Tensor
from bert_numpy.kit.operations import OPERATIONS
from npfp8.arrays import Array
from npfp8.formats import FORMATS, FloatFormat
from npfp8.mistakes import differing

__all__ = ["NOT_COMPUTED", "Evaluation", "bits_of", "reproduces", "unlike"]


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
        self.applied = False

    def value(self, name: str) -> Array:
        """Return a tensor, fixed or computed with the defect."""
        if not self._is_known(name):
            needed = {name, *self.kit.sources([name], self._is_known)}
            for source in self.kit.tensors:  # in the order of the data flow
                if source in needed:
                    self.known[source] = self._computed(source)
        return self.known[name]

    def _is_known(self, name: str) -> bool:
        """Check whether a tensor is available without computing anything."""
        if name not in self.known:
            x = self.fixed(name) if name != self.target else None
            if x is None and self.kit.tensors[name].operation == "given":
                x = self.kit.arrays[name]
            if x is None:
                return False
            self.known[name] = x
        return True

    def _seen(self, name: str) -> Array:
        """Return a tensor that need not have been computed: then it is the kit's."""
        return self.known[name] if self._is_known(name) else self.kit.arrays[name]

    def _computed(self, name: str) -> Array:
        """Compute a tensor with the defect; its inputs must be known.

        Where nothing differs from the kit, its own array is passed on: what follows from it
        need not be computed again.
        """
        tensor, right = self.kit.tensors[name], self.kit.arrays[name]
        sources = [source for source, _ in tensor.inputs.values()]
        unchanged = all(self.known[source] is self.kit.arrays[source] for source in sources)
        inputs = self.kit.inputs(name, self.known.__getitem__)
        defective = self.defect.operations.get(tensor.operation)
        if defective is not None:
            given = {FOUND: self.found} if name == self.target else {}
            try:
                x = defective(
                    Traced({**inputs, **given}, self.kit, name, self._seen), tensor.attributes
                )
            except NOT_COMPUTED:  # the defect is none of these inputs
                x = None
            if x is not None:
                self.applied = True
                same = x.shape == right.shape and not unlike(tensor, right, x).any()
                return right if unchanged and same else x
        return right if unchanged else OPERATIONS[tensor.operation](inputs, tensor.attributes)


def reproduces(
    kit: Kit, defect: Defect, root: str, found: Array, fixed: Callable[[str], Array | None]
) -> bool:
    """Check that a defect, applied to the fixed tensors, reproduces every element of a tensor."""
    evaluation = Evaluation(kit, fixed, defect, root, found)
    try:
        with np.errstate(all="ignore"):
            x = evaluation.value(root)
    except NOT_COMPUTED:
        return False
    if not evaluation.applied or x.shape != found.shape:
        return False
    return not unlike(kit.tensors[root], x, found).any()
