"""An ONNX graph in the making, and its file: with its data in it, or beside it above 2 GiB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import npfp8
from bert_numpy.errors import BertNumpyError, writing
from npfp8 import (
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    INT8,
    UINT8,
    Format,
)
from npfp8.files import replaced_file

__all__ = ["TYPES", "Edge", "Graph", "onnx_package", "save_graph"]

#: The first with DequantizeLinear by block. FP8 came with 19, Gelu with 20.
OPSET = 21

#: The version of the file format that came with it.
_IR_VERSION = 10

#: Bytes of a file of protocol buffers at most, less some for all that is no tensor.
_MOST = (1 << 31) - (1 << 24)

#: Bytes of a tensor that is written beside the graph; smaller ones are read to find shapes.
_LARGE = 1 << 10

#: ONNX's element type of each format's codes.
TYPES: dict[Format, str] = {
    E4M3FN: "FLOAT8E4M3FN",
    E4M3FNUZ: "FLOAT8E4M3FNUZ",
    E5M2: "FLOAT8E5M2",
    E5M2FNUZ: "FLOAT8E5M2FNUZ",
    INT8: "INT8",
    UINT8: "UINT8",
}

Array = npt.NDArray[Any]


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
    """Nodes and initializers. Each method appends, and returns its result's name."""

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        self.initializers: dict[str, tuple[Any, Array]] = {}  # without data, and the data
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """The only result of a new node."""
        output = name or f"{kind}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(kind, inputs, [output], f"node_{output}", **attributes)
        self.nodes.append(node)
        return output

    def constant(self, values: npt.ArrayLike) -> str:
        """A small initializer of a NumPy dtype, which is there once."""
        given = np.asarray(values)
        element = self.onnx.helper.np_dtype_to_tensor_dtype(given.dtype)
        return self._small(element, given)

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
        if name not in self.initializers:
            proto = self.onnx.TensorProto(name=name, data_type=element, dims=values.shape)
            self.initializers[name] = proto, values
        return name

    def zero_point(self, fmt: Format, zero_point: int | None) -> str:
        """A number's zero point, whose type is the type of the codes."""
        element = getattr(self.onnx.TensorProto, TYPES[fmt])
        return self._small(element, np.array(zero_point or 0, fmt.code_dtype))

    def _small(self, element: int, values: Array) -> str:
        key = (str(element), values.shape, values.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            proto = self.onnx.TensorProto(name=name, data_type=element, dims=values.shape)
            self.initializers[name] = proto, values
        return self._constants[key]

    def model(
        self,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, Edge],
        properties: Mapping[str, str],
    ) -> Any:
        """The ``onnx.ModelProto``, whose initializers have no data yet.

        What no output needs is left out.

        Parameters
        ----------
        inputs : mapping of str to sequence
            The shape of each, int64.
        outputs : mapping of str to Edge
            By the name that each gets, float32.
        properties : mapping of str to str
        """
        for name, edge in outputs.items():
            self.op("Identity", edge.name, name=name)
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
        return proto

    def filled(self, proto: Any) -> Any:
        """The model with its data in it, checked by ``onnx.checker``."""
        for tensor in proto.graph.initializer:
            tensor.raw_data = np.ascontiguousarray(self.initializers[tensor.name][1]).tobytes()
        self.onnx.checker.check_model(proto, full_check=True)
        return proto

    def nbytes(self, proto: Any) -> int:
        """Bytes of all data."""
        return sum(self.initializers[tensor.name][1].nbytes for tensor in proto.graph.initializer)


def save_graph(graph: Graph, proto: Any, path: Path) -> None:
    """Write a model, whole or not at all; above 2 GiB its data are in a file beside it.

    That one is called as the other, with ``.data`` behind; it is written first.

    Raises
    ------
    BertNumpyError
        If a file cannot be written.
    """
    if graph.nbytes(proto) <= _MOST:
        content = graph.filled(proto).SerializeToString(deterministic=True)
        with writing(path), replaced_file(path) as file:
            file.write(content)
        return
    _check_without_data(graph, proto)
    beside = path.with_name(f"{path.name}.data")
    with writing(path), replaced_file(path) as file:
        with writing(beside), replaced_file(beside) as data:
            for tensor in proto.graph.initializer:
                values = np.ascontiguousarray(graph.initializers[tensor.name][1])
                if values.nbytes < _LARGE:
                    tensor.raw_data = values.tobytes()
                    continue
                place = {"location": beside.name, "offset": data.tell(), "length": values.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensor.data_location = graph.onnx.TensorProto.EXTERNAL
                data.write(values.data.cast("B") if values.size else b"")
        file.write(proto.SerializeToString(deterministic=True))


def _check_without_data(graph: Graph, proto: Any) -> None:
    """Check a model whose large tensors are inputs, as it has too many bytes to be checked."""
    checked = graph.onnx.ModelProto()
    checked.CopyFrom(proto)
    del checked.graph.initializer[:]
    for tensor in proto.graph.initializer:
        values = graph.initializers[tensor.name][1]
        if values.nbytes < _LARGE:
            checked.graph.initializer.add().CopyFrom(tensor)
            checked.graph.initializer[-1].raw_data = values.tobytes()
        else:
            info = graph.onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(values.shape)
            )
            checked.graph.input.append(info)
    graph.onnx.checker.check_model(checked, full_check=True)
