"""An ONNX graph under construction, and its file: data above 2 GiB go into a second file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

import npfp8
from bert_numpy.errors import BertNumpyError, writing
from npfp8 import E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, INT4, INT8, UINT4, UINT8, Format
from npfp8.arrays import Array
from npfp8.blocks.layouts import pack_codes
from npfp8.files import replaced_file

__all__ = ["TYPES", "Edge", "Graph", "onnx_package", "save_graph"]

#: The first opset whose DequantizeLinear takes blocks and 4 bits. FP8 came with 19, Gelu with 20.
OPSET = 21

#: The version of the file format that belongs to the opset.
_IR_VERSION = 10

#: The most bytes of tensors in a file of protocol buffers; some bytes are left for the rest.
_MOST = (1 << 31) - (1 << 24)

#: The least bytes of a tensor in the second file. Smaller tensors may determine shapes.
_LARGE = 1 << 10

#: Tensors in the second file begin at multiples of this, so that they can be mapped into memory.
_PAGE = 4096

#: The ONNX element type of each format's codes.
TYPES: dict[Format, str] = {
    E4M3FN: "FLOAT8E4M3FN",
    E4M3FNUZ: "FLOAT8E4M3FNUZ",
    E5M2: "FLOAT8E5M2",
    E5M2FNUZ: "FLOAT8E5M2FNUZ",
    INT8: "INT8",
    UINT8: "UINT8",
    INT4: "INT4",
    UINT4: "UINT4",
}


def onnx_package() -> Any:
    """Import the package ``onnx`` (extra: onnx), which only an export needs."""
    try:
        import onnx  # noqa: PLC0415
        import onnx.checker  # noqa: PLC0415
    except ImportError:
        raise BertNumpyError(
            "ONNX export needs the package onnx: pip install 'fp8-bert-numpy[onnx]'"
        ) from None
    return onnx


@dataclass(frozen=True)
class Edge:
    """A result of a node: its name, and its shape, in which variable lengths are names."""

    name: str
    shape: tuple[str | int, ...] = ()


class Graph:
    """The nodes and initializers of a graph. Most methods return the name of their result.

    Two nodes of one kind with the same inputs and attributes compute the same, so the
    second one is not added: query, key and value, for example, share the codes of their input.
    """

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        #: Without data, and the data; codes of 4 bits are packed, two into a byte.
        self.initializers: dict[str, tuple[Any, Array]] = {}
        self._results: dict[tuple[Any, ...], str] = {}
        self._constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one result."""
        key = (kind, inputs, tuple(sorted(attributes.items())))
        if key not in self._results:
            self._results[key] = f"{kind}_{len(self.nodes)}"
            self._append(kind, inputs, self._results[key], attributes)
        return self._results[key]

    def _append(
        self, kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]
    ) -> None:
        make = self.onnx.helper.make_node
        self.nodes.append(make(kind, inputs, [output], f"node_{output}", **attributes))

    def constant(self, values: npt.ArrayLike) -> str:
        """Add a small initializer of a NumPy dtype; equal ones are shared."""
        given = np.asarray(values)
        return self._small(self.onnx.helper.np_dtype_to_tensor_dtype(given.dtype), given)

    def integers(self, *values: int) -> str:
        """Add an initializer for axes or a shape."""
        return self.constant(np.array(values, np.int64))

    def tensor(self, name: str, values: Array, fmt: Format | None = None) -> str:
        """Add a named initializer: numbers, or the codes of a format; a repeated name is shared."""
        element = (
            self.onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            if fmt is None
            else getattr(self.onnx.TensorProto, TYPES[fmt])
        )
        return self._initializer(name, element, values, fmt)

    def zero_point(self, fmt: Format, zero_point: int | None) -> str:
        """Add the zero point of a scalar scale; it has the type of the codes."""
        element = getattr(self.onnx.TensorProto, TYPES[fmt])
        return self._small(element, np.array(zero_point or 0, fmt.code_dtype))

    def _small(self, element: int, values: Array) -> str:
        key = (element, values.shape, values.tobytes())
        name = self._constants.setdefault(key, f"constant_{len(self._constants)}")
        return self._initializer(name, element, values)

    def _initializer(
        self, name: str, element: int, values: Array, fmt: Format | None = None
    ) -> str:
        if name not in self.initializers:
            proto = self.onnx.TensorProto(name=name, data_type=element, dims=values.shape)
            if fmt is not None and fmt.bits < 8:
                values = pack_codes(values.reshape(-1), fmt)
            self.initializers[name] = proto, values
        return name

    def model(
        self,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, Edge],
        properties: Mapping[str, str],
    ) -> Any:
        """Make the ``onnx.ModelProto``, checked by ``onnx.checker``, its initializers still empty.

        Nodes and initializers that no output needs are left out.

        Parameters
        ----------
        inputs : mapping of str to sequence
            The shape of each int64 input, by its name.
        outputs : mapping of str to Edge
            The edge of each float32 output, by its new name.
        properties : mapping of str to str
        """
        for name, edge in outputs.items():
            self._append("Identity", [edge.name], name, {})
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        proto = helper.make_model(
            helper.make_graph(
                nodes[::-1],
                "bert",
                [helper.make_tensor_value_info(x, kinds.INT64, list(inputs[x])) for x in inputs],
                [
                    helper.make_tensor_value_info(name, kinds.FLOAT, list(edge.shape))
                    for name, edge in outputs.items()
                ],
                [proto for name, (proto, _) in self.initializers.items() if name in needed],
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="fp8-bert-numpy",
            producer_version=npfp8.__version__,
        )
        helper.set_model_props(proto, properties)
        self._check(proto)
        return proto

    def _check(self, proto: Any) -> None:
        """Check a model with its large tensors as inputs, as ``onnx.checker`` copies it twice."""
        checked = self.onnx.ModelProto()
        checked.CopyFrom(proto)
        del checked.graph.initializer[:]
        for tensor in proto.graph.initializer:
            values = self.values(tensor)
            if values.nbytes < _LARGE:
                small = self.onnx.TensorProto(raw_data=values.tobytes())
                small.MergeFrom(tensor)
                checked.graph.initializer.append(small)
            else:
                make = self.onnx.helper.make_tensor_value_info
                large = make(tensor.name, tensor.data_type, list(tensor.dims))
                checked.graph.input.append(large)
        self.onnx.checker.check_model(checked, full_check=True)

    def values(self, tensor: Any) -> Array:
        """Return the numbers of an initializer, or the bytes of its codes."""
        return self.initializers[tensor.name][1]

    def filled(self, proto: Any) -> Any:
        """Fill the data of the initializers into a model."""
        for tensor in proto.graph.initializer:
            tensor.raw_data = self.values(tensor).tobytes()
        return proto


def save_graph(graph: Graph, proto: Any, path: Path) -> None:
    """Write a model atomically; above 2 GiB, its large tensors go into the file PATH.data.

    Both files are written before either takes its place, so a failed write
    leaves everything unchanged. Then the data are renamed first, so a new
    model never exists without its data. A process that is killed between the two
    renames leaves new data beside an old graph, if there was one.

    Raises
    ------
    BertNumpyError
        If a file cannot be written.
    """
    size = sum(graph.values(tensor).nbytes for tensor in proto.graph.initializer)
    if size <= _MOST:
        with writing(path), replaced_file(path) as file:
            file.write(graph.filled(proto).SerializeToString(deterministic=True))
        return
    beside = path.with_name(f"{path.name}.data")
    with writing(path), replaced_file(path) as file, writing(beside), replaced_file(beside) as data:
        _write_data(graph, proto, data, beside.name)
        with writing(path):
            file.write(proto.SerializeToString(deterministic=True))
            file.flush()


def _write_data(graph: Graph, proto: Any, file: BinaryIO, location: str) -> None:
    """Write the large tensors of a model in turn, and note their places in the model."""
    end = 0
    for tensor in proto.graph.initializer:
        values = np.ascontiguousarray(graph.values(tensor))
        if values.nbytes < _LARGE:
            tensor.raw_data = values.tobytes()
            continue
        offset = end + -end % _PAGE
        file.write(bytes(offset - end))
        file.write(values.data.cast("B"))
        end = offset + values.nbytes
        tensor.data_location = graph.onnx.TensorProto.EXTERNAL
        place = {"location": location, "offset": offset, "length": values.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
