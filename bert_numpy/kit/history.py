"""The inputs of an operation, with what they were computed from.

Most defects change what an operation makes of its inputs. Some confuse it with what other
operations had: the maximum before this tile for the one after it. For these, a defective
operation may look at how its inputs came about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bert_numpy.kit.manifest import Kit, apply_view
from npfp8.arrays import Array

__all__ = ["Made", "Traced"]


class Traced(dict[str, Array]):
    """The inputs of a tensor's operation by role, each with its own operation and inputs.

    Parameters
    ----------
    inputs : mapping of str to ndarray
    kit : Kit
    name : str
        The tensor.
    value : callable
        Returns a tensor of the kit by its name.
    """

    def __init__(
        self, inputs: Mapping[str, Array], kit: Kit, name: str, value: Callable[[str], Array]
    ) -> None:
        super().__init__(inputs)
        self._kit, self._name, self._value = kit, name, value

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self._name

    @property
    def kit(self) -> Kit:
        """The kit that the tensor is of."""
        return self._kit

    def view(self, role: str) -> str:
        """Return the view in which the operation reads an input."""
        return self._kit.tensors[self._name].inputs[role].view

    def viewed(self, role: str) -> Array:
        """Return an input as it is before the operation's view of it."""
        return self._value(self._kit.tensors[self._name].inputs[role].tensor)

    def other_operand(self) -> Made | None:
        """Return how the other operand of the product came about that reads this tensor.

        None if no product reads it, or the other operand is given.
        """
        for tensor in self._kit.tensors.values():
            if tensor.operation == "sum":
                a, b = (tensor.inputs[role].tensor for role in ("a", "b"))
                if self._name in (a, b):
                    return _made(self._kit, b if a == self._name else a, self._value)
        return None

    def of_layer_before(self, role: str) -> Array | None:
        """Return the parameter that the layer before has in the place of an input, if any."""
        name, view = self._kit.tensors[self._name].inputs[role]
        layer = re.fullmatch(r"(weights/.*\blayers?\.)(\d+)(\..*)", name)
        if layer is None:
            return None
        other = f"{layer[1]}{int(layer[2]) - 1}{layer[3]}"
        return apply_view(self._kit.arrays[other], view) if other in self._kit.arrays else None

    def source(self, role: str) -> Made:
        """Return how the input of a role came about."""
        name, _ = self._kit.tensors[self._name].inputs[role]
        return _made(self._kit, name, self._value)


class Made(NamedTuple):
    """How a tensor was computed: by which operation, from what."""

    operation: str
    inputs: Traced
    attributes: Mapping[str, Any]


def _made(kit: Kit, name: str, value: Callable[[str], Array]) -> Made:
    tensor = kit.tensors[name]
    inputs = {
        key: apply_view(value(reference.tensor), reference.view)
        for key, reference in tensor.inputs.items()
    }
    return Made(tensor.operation, Traced(inputs, kit, name, value), tensor.attributes)
