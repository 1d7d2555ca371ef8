"""An ONNX graph in the making, and its file: with its data in it, or beside it above 2 GiB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

import npfp8
from bert_numpy.errors import BertNumpyError, writing
from npfp8 import E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, INT8, UINT8, Format
from npfp8.arrays import Array
from npfp8.files import replaced_file

__all__ = ["TYPES", "Edge", "Graph", "onnx_package", "save_graph"]

#: The first with DequantizeLinear by block. FP8 came with 19, Gelu with 20.
OPSET = 21

#: The version of the file format that came with it.
_IR_VERSION = 10

#: Bytes of a file of protocol buffers at most, less some for all that is no tensor.
_MOST = (1 << 31) - (1 << 24)

#: Bytes from which a tensor is written beside the graph. Smaller ones may decide shapes.
_LARGE = 1 << 10

#: Tensors beside the graph begin at multiples of this, so that they can be mapped into memory.
_PAGE = 4096

#: ONNX's element type of each format's codes.
TYPES: dict[Format, str] = {
    E4M3FN: "FLOAT8E4M3FN",
    E4M3FNUZ: "FLOAT8E4M3FNUZ",
    E5M2: "FLOAT8E5M2",
    E5M2FNUZ: "FLOAT8E5M2FNUZ",
    INT8: "INT8",
    UINT8: "UINT8",
}


def onnx_package() -> Any:
    """The package ``onnx``, which is imported where a graph is asked for (extra: onnx)."""
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
    """A result of a node: its name, and its shape, in which lengths that may vary have names."""

    name: str
    shape: tuple[str | int, ...] = ()


class Graph:
    """Nodes and initializers. Each method returns the name of its result.

    Two nodes of one kind with the same inputs and attributes compute the same, so the
    second one is not appended: query, key and value, for example, share their input's codes.
    """

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        self.initializers: dict[str, tuple[Any, Array]] = {}  # without data, and the data
        self._results: dict[tuple[Any, ...], str] = {}
        self._constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The only result of a node."""
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
        """A small initializer of a NumPy dtype; equal ones are one."""
        given = np.asarray(values)
        return self._small(self.onnx.helper.np_dtype_to_tensor_dtype(given.dtype), given)

    def integers(self, *values: int) -> str:
        """An initializer of axes or a shape."""
        return self.constant(np.array(values, np.int64))

    def tensor(self, name: str, values: Array, fmt: Format | None = None) -> str:
        """An initializer of a name: numbers, or the codes of a format; given twice it is one."""
        element = (
            self.onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            if fmt is None
            else getattr(self.onnx.TensorProto, TYPES[fmt])
        )
        return self._initializer(name, element, values)

    def zero_point(self, fmt: Format, zero_point: int | None) -> str:
        """The zero point of a scalar scale; its type is that of the codes."""
        element = getattr(self.onnx.TensorProto, TYPES[fmt])
        return self._small(element, np.array(zero_point or 0, fmt.code_dtype))

    def _small(self, element: int, values: Array) -> str:
        key = (element, values.shape, values.tobytes())
        name = self._constants.setdefault(key, f"constant_{len(self._constants)}")
        return self._initializer(name, element, values)

    def _initializer(self, name: str, element: int, values: Array) -> str:
        if name not in self.initializers:
            proto = self.onnx.TensorProto(name=name, data_type=element, dims=values.shape)
            self.initializers[name] = proto, values
        return name

    def model(
        self,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, Edge],
        properties: Mapping[str, str],
    ) -> Any:
        """The ``onnx.ModelProto``, checked by ``onnx.checker``; its initializers have no data yet.

        Nodes and initializers that no output needs are left out.

        Parameters
        ----------
        inputs : mapping of str to sequence
            The shape of each, int64.
        outputs : mapping of str to Edge
            By the name that each gets, float32.
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
        """Check a model in which large tensors are inputs: ``onnx.checker`` copies it, twice."""
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
                large = make(tensor.name, tensor.data_type, values.shape)
                checked.graph.input.append(large)
        self.onnx.checker.check_model(checked, full_check=True)

    def values(self, tensor: Any) -> Array:
        """The numbers, or the codes, of an initializer."""
        return self.initializers[tensor.name][1]

    def filled(self, proto: Any) -> Any:
        """The model with its data in it."""
        for tensor in proto.graph.initializer:
            tensor.raw_data = self.values(tensor).tobytes()
        return proto


def save_graph(graph: Graph, proto: Any, path: Path) -> None:
    """Write a model whole or not at all; above 2 GiB, its large tensors are in a file beside it.

    That file is PATH.data. Both files are written before either takes its place, so a write
    that fails leaves everything as it was. Then the data are renamed first: where there was no
    model yet, one is there only when its data are. A process that is killed between the two
    renames leaves new data under the graph that was there before.

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
    """Write the large tensors of a model, one after the other; the model says where they are."""
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
