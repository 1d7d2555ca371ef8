"""The inputs of an operation, with what they were computed from.

Most defects change what an operation makes of its inputs. Some confuse it with what other
operations had: the maximum before this tile for the one after it. For these, a defective
operation may look at how its inputs came about.
"""

from __future__ import annotations

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

    def view(self, role: str) -> str:
        """Return the view in which the operation reads an input."""
        return self._kit.tensors[self._name].inputs[role].view

    def viewed(self, role: str) -> Array:
        """Return an input as it is before the operation's view of it."""
        return self._value(self._kit.tensors[self._name].inputs[role].tensor)

    def other_scale(self) -> Array | None:
        """Return the scale of the other operand of the product that reads this tensor.

        None if no product reads it, or the scale was not given.
        """
        for tensor in self._kit.tensors.values():
            operands = {role: reference.tensor for role, reference in tensor.inputs.items()}
            if tensor.operation == "sum" and self._name in (operands["a"], operands["b"]):
                other = "b_scale" if operands["a"] == self._name else "a_scale"
                for user in self._kit.tensors.values():
                    reads = user.inputs.get("sum")
                    if reads is not None and reads.tensor == tensor.name and other in user.inputs:
                        return self._value(user.inputs[other].tensor)
        return None

    def source(self, role: str) -> Made:
        """Return how the input of a role came about."""
        name, _ = self._kit.tensors[self._name].inputs[role]
        tensor = self._kit.tensors[name]
        inputs = {
            key: apply_view(self._value(reference.tensor), reference.view)
            for key, reference in tensor.inputs.items()
        }
        traced = Traced(inputs, self._kit, name, self._value)
        return Made(tensor.operation, traced, tensor.attributes)


class Made(NamedTuple):
    """How a tensor was computed: by which operation, from what."""

    operation: str
    inputs: Traced
    attributes: Mapping[str, Any]
