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
