"""The quantized model as an ONNX graph: the forward pass node by node.

What a product takes goes through QuantizeLinear and DequantizeLinear, and is then
multiplied in float32; a weight is an initializer of codes and a DequantizeLinear. A
rounding to bfloat16 is a Cast there and a Cast back. Padding is masked before the
softmax, which gives it an exact 0. docs/onnx.md says what may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import npfp8
from bert_numpy.errors import BertNumpyError, writing
from bert_numpy.finite import require_finite
from bert_numpy.model.architectures import ENCODER, HEADS
from bert_numpy.model.layers import array
from bert_numpy.model.model import Model, model_sites
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.policy import Scale
from bert_numpy.quantization.recipe import Operand, Recipe, recipe_json
from npfp8 import (
    ACCUMULATORS,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    INT8,
    UINT8,
    FloatFormat,
    Format,
    QuantizedTensor,
)
from npfp8.files import replaced_file

__all__ = ["check_exportable", "export_onnx", "onnx_model"]

#: The first with DequantizeLinear by block. FP8 came with 19, Gelu with 20.
OPSET = 21

#: The version of the file format that came with it.
_IR_VERSION = 10

#: The heads that have nodes here.
_HEADS = (HEADS["SequenceClassification"], HEADS["QuestionAnswering"], ENCODER)

_TYPES: dict[Format, str] = {
    E4M3FN: "FLOAT8E4M3FN",
    E4M3FNUZ: "FLOAT8E4M3FNUZ",
    E5M2: "FLOAT8E5M2",
    E5M2FNUZ: "FLOAT8E5M2FNUZ",
    INT8: "INT8",
    UINT8: "UINT8",
}

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export_onnx(model: QuantizedModel, path: str | Path) -> None:
    """Write a quantized model as an ONNX file, whole or not at all. Needs the package ``onnx``.

    Raises
    ------
    BertNumpyError
        As :func:`onnx_model`, or if the file cannot be written.
    """
    content = onnx_model(model).SerializeToString(deterministic=True)
    with writing(path), replaced_file(Path(path)) as file:
        file.write(content)


def onnx_model(model: QuantizedModel) -> Any:
    """A quantized model as an ``onnx.ModelProto``, checked by ``onnx.checker``.

    Its inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64
    (batch, length), of any batch and length; its outputs are those of the
    head: ``logits``; ``start_logits`` and ``end_logits``; or
    ``last_hidden_state`` and, if there is a pooler, ``pooler_output``. All float32.

    Raises
    ------
    BertNumpyError
        If the package ``onnx`` is missing, the model is another than a BERT
        with one of these heads, a parameter or an output for one token is NaN or infinite,
        or the recipe has what a graph cannot say: a format without an ONNX type, inputs
        by block, dynamic scales with zero points or of powers of two, outliers, or another
        accumulation than "exact" or "float32".
    """
    onnx = _onnx()
    check_exportable(model, model.recipe)
    for name, weight in model.weights.items():
        if isinstance(weight, np.ndarray):
            require_finite(f"{model.name}: tensor {name!r}", weight)
    for name, output in vars(replace(model, counts={})([[0]])).items():
        if output is not None:
            require_finite(f"{model.name}, {model.recipe.name}: {name} of one token", output)
    graph = _Graph(onnx, model)
    outputs = _forward(graph, model)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "bert",
            [graph.value(name, "INT64", ["batch", "length"]) for name in _INPUTS],
            [graph.value(name, "FLOAT", shape) for name, shape in outputs.items()],
            graph.initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fp8-bert-numpy",
        producer_version=npfp8.__version__,
    )
    onnx.helper.set_model_props(
        proto, {"recipe": recipe_json(model.recipe), "labels": "\n".join(model.config.labels)}
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _onnx() -> Any:
    """The package ``onnx``, which is imported where a graph is asked for (extra: onnx)."""
    try:
        import onnx  # noqa: PLC0415
        import onnx.checker  # noqa: PLC0415
    except ImportError:
        raise BertNumpyError(
            "ONNX export needs the package onnx: pip install 'fp8-bert-numpy[onnx]'"
        ) from None
    return onnx


def check_exportable(model: Model, recipe: Recipe) -> None:
    """Raise :class:`BertNumpyError` if no graph can say what a recipe makes of a model.

    For the reasons of :func:`onnx_model`, except weights that are not finite; nothing has to be
    calibrated for it.
    """
    _onnx()
    config = model.config
    if config.model_type != "bert" or config.head not in _HEADS or config.pooling is not None:
        pooling = "" if config.pooling is None else " with a pooling (modules.json)"
        raise BertNumpyError(
            f"{model.name}: expected for ONNX a BertForSequenceClassification, a "
            "BertForQuestionAnswering or a BertModel alone, found "
            f"{config.stated_architecture}{pooling}"
        )
    if ACCUMULATORS[recipe.accumulate].narrow:
        expected = " or ".join(repr(x.name) for x in ACCUMULATORS.values() if not x.narrow)
        raise BertNumpyError(
            f"recipe {recipe.name}: accumulate: expected {expected} in ONNX, "
            f"found {recipe.accumulate!r}"
        )
    for site in model_sites(model):
        if recipe.site(site).quantizes:
            _check(recipe, site)


def _check(recipe: Recipe, site: str) -> None:
    """Refuse what has no nodes here."""
    how = recipe.site(site)

    def check(good: bool, expected: str) -> None:
        if not good:
            raise BertNumpyError(f"recipe {recipe.name}: {site}: expected {expected} in ONNX")

    check(how.outlier_threshold is None, "no outlier_threshold")
    weighs = not site.endswith((".scores", ".context"))
    for side, operand in (("a", how.a), ("b", how.b)):
        if operand.fmt is None:
            continue
        check(operand.fmt in _TYPES, f"one of {', '.join(map(str, _TYPES))}")
        if operand.dynamic and not (side == "b" and weighs):
            check(operand.granularity == "token", "no inputs by block")
            check(operand.fmt != UINT8, "no dynamic scales with zero points")
            check(not operand.power_of_two, "no dynamic scales of powers of two")


class _Graph:
    """A graph in the making. Each method appends nodes and returns its result's name."""

    def __init__(self, onnx: ModuleType, model: QuantizedModel) -> None:
        self.onnx = onnx
        self.recipe = model.recipe
        self.plans = model.plans
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def value(self, name: str, kind: str, shape: Sequence[str | int]) -> Any:
        element = getattr(self.onnx.TensorProto, kind)
        return self.onnx.helper.make_tensor_value_info(name, element, shape)

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """The only result of a new node."""
        output = name or f"{kind}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(kind, inputs, [output], f"node_{output}", **attributes)
        self.nodes.append(node)
        return output

    def constant(self, values: npt.ArrayLike, name: str | None = None) -> str:
        """An initializer of a NumPy dtype; a small one without a name is there once."""
        given = np.asarray(values)
        key = (given.dtype.str, given.shape, given.tobytes() if name is None else name.encode())
        if key not in self._constants:
            self._constants[key] = name or f"constant_{len(self._constants)}"
            tensor = self.onnx.numpy_helper.from_array(given, self._constants[key])
            self.initializers.append(tensor)
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """An initializer of axes or a shape."""
        return self.constant(np.array(values, np.int64))

    def codes(self, codes: npt.NDArray[Any], fmt: Format, name: str) -> str:
        """An initializer of codes."""
        element = getattr(self.onnx.TensorProto, _TYPES[fmt])
        data = np.ascontiguousarray(codes).tobytes()
        tensor = self.onnx.helper.make_tensor(name, element, codes.shape, data, raw=True)
        self.initializers.append(tensor)
        return name

    def zero_point(self, fmt: Format, zero_point: int | None) -> str:
        """A number's zero point, whose type is the type of the codes."""
        key = (_TYPES[fmt], (), bytes([zero_point or 0]))
        if key not in self._constants:
            code = np.array(zero_point or 0, fmt.code_dtype)
            self._constants[key] = self.codes(code, fmt, f"zero_point_{len(self._constants)}")
        return self._constants[key]

    def rounded(self, x: str) -> str:
        """In the recipe's arithmetic."""
        if self.recipe.arithmetic == "float32":
            return x
        half = self.op("Cast", x, to=self.onnx.TensorProto.BFLOAT16)
        return self.op("Cast", half, to=self.onnx.TensorProto.FLOAT)

    def quantized(self, x: str, operand: Operand, static: Scale | None, k_axis: int) -> str:
        """Codes of ``x`` and their values again; a scale per token is one along ``k_axis``."""
        if operand.fmt is None:
            return x
        if static is not None:
            return self._quantize(x, operand.fmt, static.scale, static.zero_point)
        largest = self.op("ReduceMax", self.op("Abs", x), self.integers(k_axis), keepdims=1)
        limit = self.constant(np.float32(operand.fmt.max))
        smallest = self.constant(np.finfo(np.float32).tiny)
        scale = self.op("Max", self.op("Div", largest, limit), smallest)
        is_zero = self.op("Equal", largest, self.constant(np.float32(0)))
        scale = self.op("Where", is_zero, self.constant(np.float32(1)), scale)
        values = self._quantize(self.op("Div", x, scale), operand.fmt, np.float32(1), None)
        return self.op("Mul", values, scale)

    def _quantize(self, x: str, fmt: Format, scale: Any, zero_point: int | None) -> str:
        if fmt == INT8:  # its -128, which QuantizeLinear uses, is left out here
            x = self.op("Max", x, self.constant(np.float32(-fmt.max) * np.float32(scale)))
        arguments = self.constant(np.float32(scale)), self.zero_point(fmt, zero_point)
        attributes: dict[str, Any] = {"saturate": 1} if isinstance(fmt, FloatFormat) else {}
        codes = self.op("QuantizeLinear", x, *arguments, **attributes)
        return self.op("DequantizeLinear", codes, *arguments)

    def weight(self, name: str, weight: npt.NDArray[np.float32] | QuantizedTensor) -> str:
        """A linear layer's weight, transposed: (in, out)."""
        if not isinstance(weight, QuantizedTensor):
            return self.constant(np.ascontiguousarray(weight.T), name)
        transposed = weight.mT
        codes = self.codes(transposed.codes, weight.fmt, name)
        scale = self.constant(transposed.scale, f"{name}_scale")
        inputs = [codes, scale]
        if transposed.zero_point is not None:
            inputs.append(self.codes(transposed.zero_point, weight.fmt, f"{name}_zero_point"))
        attributes: dict[str, Any] = {}
        if transposed.axis is not None:
            attributes["axis"] = transposed.axis
        if transposed.block is not None:
            attributes["block_size"] = transposed.block
        return self.op("DequantizeLinear", *inputs, **attributes)

    def product(self, site: str, a: str, b: str, bias: str | None = None) -> str:
        """What :func:`bert_numpy.quantization.policy.quantized_policy` computes at a site."""
        plan = self.plans.get(site)
        if plan is not None:
            if plan.smoothing is not None:
                a = self.rounded(self.op("Div", a, self.constant(plan.smoothing)))
            a = self.quantized(a, plan.recipe.a, plan.a, -1)
            if bias is None:  # or b is a weight and has its codes
                b = self.quantized(b, plan.recipe.b, plan.b, -2)
        result = self.op("MatMul", a, b)
        if bias is not None:
            result = self.op("Add", result, bias)
        return self.rounded(result) if site.startswith("encoder.") else result


def _forward(graph: _Graph, model: QuantizedModel) -> dict[str, list[str | int]]:
    """The nodes of the whole model; returns the outputs and their shapes."""
    present = graph.op("Cast", "attention_mask", to=graph.onnx.TensorProto.BOOL)
    keys = graph.op("Unsqueeze", present, graph.integers(1, 2))  # (batch, 1, 1, length)
    x = _embeddings(graph, model)  # (batch, length, hidden)
    for i in range(model.config.num_hidden_layers):
        x = _layer(graph, model, f"encoder.layer.{i}", x, keys)
    return _heads(graph, model, x, present)


def _embeddings(graph: _Graph, model: QuantizedModel) -> str:
    def embedding(kind: str, numbers: str) -> str:
        return graph.op("Gather", _array(graph, model, f"{site}.{kind}_embeddings.weight"), numbers)

    site = "embeddings"
    zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
    length = graph.op("Gather", graph.op("Shape", "input_ids"), one)
    positions = graph.op("Range", zero, length, one)
    both = graph.op(
        "Add", embedding("word", "input_ids"), embedding("token_type", "token_type_ids")
    )
    summed = graph.op("Add", both, embedding("position", positions))
    return _layer_norm(graph, model, f"{site}.LayerNorm", graph.rounded(summed))


def _layer(graph: _Graph, model: QuantizedModel, site: str, x: str, keys: str) -> str:
    context = _attention(graph, model, f"{site}.attention", x, keys)
    projected = _linear(graph, model, f"{site}.attention.output.dense", context)
    added = graph.rounded(graph.op("Add", projected, x))
    x = _layer_norm(graph, model, f"{site}.attention.output.LayerNorm", added)

    inner = _linear(graph, model, f"{site}.intermediate.dense", x)
    inner = graph.rounded(_ACTIVATIONS[model.config.hidden_act](graph, inner))
    projected = _linear(graph, model, f"{site}.output.dense", inner)
    added = graph.rounded(graph.op("Add", projected, x))
    return _layer_norm(graph, model, f"{site}.output.LayerNorm", added)


def _attention(graph: _Graph, model: QuantizedModel, site: str, x: str, keys: str) -> str:
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    scale = graph.constant(np.float32(1 / math.sqrt(hidden // heads)))
    shape = graph.integers(0, 0, heads, hidden // heads)

    def split(name: str, *order: int) -> str:
        projected = _linear(graph, model, f"{site}.self.{name}", x)
        return graph.op("Transpose", graph.op("Reshape", projected, shape), perm=order)

    query, key, value = (
        split("query", 0, 2, 1, 3),
        split("key", 0, 2, 3, 1),
        split("value", 0, 2, 1, 3),
    )
    scores = graph.product(f"{site}.scores", query, key)  # (batch, heads, queries, keys)
    scores = graph.rounded(graph.op("Mul", scores, scale))
    least = graph.constant(np.finfo(np.float32).min)  # an exact 0 after the softmax
    weights = graph.op("Softmax", graph.op("Where", keys, scores, least), axis=-1)
    mixed = graph.product(f"{site}.context", graph.rounded(weights), value)
    merged = graph.op("Transpose", mixed, perm=(0, 2, 1, 3))
    return graph.op("Reshape", merged, graph.integers(0, 0, hidden))


def _heads(
    graph: _Graph, model: QuantizedModel, x: str, present: str
) -> dict[str, list[str | int]]:
    hidden, outputs = model.config.hidden_size, len(model.config.labels)
    shapes: dict[str, list[str | int]] = {}

    def give(name: str, kind: str, *inputs: str, shape: list[str | int]) -> None:
        graph.op(kind, *inputs, name=name)
        shapes[name] = shape

    head = model.config.head.name
    if head == "question answering":
        logits = _linear(graph, model, "qa_outputs", x)
        nothing = graph.constant(np.float32(-np.inf))
        for j, name in enumerate(("start_logits", "end_logits")):
            of_one = graph.op("Gather", logits, graph.constant(np.int64(j)), axis=-1)
            give(name, "Where", present, of_one, nothing, shape=["batch", "length"])
        return shapes
    pooled = None
    if "pooler.dense.weight" in model.weights:
        first = graph.op("Gather", x, graph.constant(np.int64(0)), axis=1)  # (batch, hidden)
        projected = graph.rounded(_linear(graph, model, "pooler.dense", first))
        pooled = graph.rounded(graph.op("Tanh", projected))
    if head == "sequence classification" and pooled is not None:
        logits = _linear(graph, model, "classifier", pooled)
        give("logits", "Identity", logits, shape=["batch", outputs])
        return shapes
    tokens = graph.op("Unsqueeze", present, graph.integers(2))
    zero = graph.constant(np.float32(0))
    give("last_hidden_state", "Where", tokens, x, zero, shape=["batch", "length", hidden])
    if pooled is not None:
        give("pooler_output", "Identity", pooled, shape=["batch", hidden])
    return shapes


def _linear(graph: _Graph, model: QuantizedModel, site: str, x: str) -> str:
    weight = graph.weight(f"{site}.weight", model.weights[f"{site}.weight"])
    return graph.product(site, x, weight, _array(graph, model, f"{site}.bias"))


def _layer_norm(graph: _Graph, model: QuantizedModel, site: str, x: str) -> str:
    weight, bias = (_array(graph, model, f"{site}.{name}") for name in ("weight", "bias"))
    eps = model.config.layer_norm_eps
    return graph.rounded(graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps))


def _array(graph: _Graph, model: QuantizedModel, name: str) -> str:
    return graph.constant(array(model, name), name)


_ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "gelu": lambda graph, x: graph.op("Gelu", x),
    "gelu_new": lambda graph, x: graph.op("Gelu", x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda graph, x: graph.op("Gelu", x, approximate="tanh"),
    "relu": lambda graph, x: graph.op("Relu", x),
    "silu": lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)),
}
