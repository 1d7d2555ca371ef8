"""Building a kit: each tensor is computed by the operation that the manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_numpy.kit.block_operations import described
from bert_numpy.kit.manifest import Kit, Reference, Tensor, apply_view
from bert_numpy.kit.operations import OPERATIONS
from npfp8 import BlockFormat
from npfp8.arrays import Array
from npfp8.formats import Format

__all__ = ["Builder"]


#: The kinds of given tensors without a format, by dtype.
_KINDS = {"float32": "float32", "uint8": "bytes"}


class Builder:
    """A collection of tensors in the order of the data flow."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, Array] = {}

    def give(
        self,
        name: str,
        level: str,
        x: Array,
        fmt: Format | None = None,
        *,
        kind: str | None = None,
        **attributes: Any,
    ) -> Reference:
        """Add an input; a name given again refers to the same input."""
        if name not in self.tensors:
            if kind is None:
                kind = _KINDS.get(x.dtype.name, "integers") if fmt is None else "codes"
            self._add(Tensor(name, level, "given", {}, attributes, kind, str(fmt or "")), x)
        return Reference(name)

    def compute(
        self,
        name: str,
        level: str,
        operation: str,
        inputs: Mapping[str, Reference],
        attributes: Mapping[str, Any] | None = None,
        *,
        kind: str = "float32",
        fmt: Format | None = None,
    ) -> Array:
        """Add a tensor computed by its operation, and return its value."""
        given = dict(attributes or {})
        values = {
            role: apply_view(self.arrays[reference.tensor], reference.view)
            for role, reference in inputs.items()
        }
        x = OPERATIONS[operation](values, given)
        kind = "codes" if fmt is not None else kind
        self._add(Tensor(name, level, operation, dict(inputs), given, kind, str(fmt or "")), x)
        return x

    def quantize_blocks(
        self,
        names: Mapping[str, str],
        level: str,
        x: Reference,
        fmt: BlockFormat,
        axis: int,
        tensor_scale: Reference | None = None,
        source: str = "float32",
    ) -> dict[str, Reference]:
        """Add the steps of quantizing to a block format, and return their results by role.

        Parameters
        ----------
        names : mapping of str to str
            The names of "codes", "scale_codes" and "tensor_scale".
        level : str
        x : Reference
        fmt : BlockFormat
        axis : int
        tensor_scale : Reference, optional
            The number of the tensor if it is known before; without it, it is computed.
        source : {"float32", "float16", "bfloat16"}
            The type in which the numbers are taken to be given.
        """
        how, made = described(fmt, axis), {}
        how |= {} if source == "float32" else {"source": source}
        if fmt.tensor_scale:
            if tensor_scale is None:
                self.compute(names["tensor_scale"], level, "tensor_scale", {"x": x}, how)
                tensor_scale = Reference(names["tensor_scale"])
            made["tensor_scale"] = tensor_scale
        for role, operation, kind in (
            ("scale_codes", "scale_codes", fmt.scale_format),
            ("codes", "block_codes", fmt.element),
        ):
            self.compute(names[role], level, operation, {"x": x, **made}, how, fmt=kind)
            made[role] = Reference(names[role])
        return made

    def kit(self, header: Mapping[str, Any]) -> Kit:
        """Make a kit of the tensors collected so far."""
        return Kit(header, self.tensors, self.arrays)

    def _add(self, tensor: Tensor, x: Array) -> None:
        assert tensor.name not in self.tensors, tensor.name
        self.tensors[tensor.name] = tensor
        self.arrays[tensor.name] = np.ascontiguousarray(x).reshape(np.shape(x))
