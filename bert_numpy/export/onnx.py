"""The quantized model as an ONNX graph: each operation of the forward pass adds nodes.

The operands of a product go through QuantizeLinear and DequantizeLinear, and are then
multiplied in float32; a weight is an initializer of codes and a DequantizeLinear. A
rounding to bfloat16 is a Cast to it and a Cast back. Padding is masked before the
softmax, which gives it an exact 0. docs/onnx.md describes the possible differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.engines.engine import Engine, Table, Weights
from bert_numpy.engines.functions import parameter
from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError
from bert_numpy.export.graph import TYPES, Edge, Graph, onnx_package, save_graph
from bert_numpy.finite import require_finite
from bert_numpy.model.config import BertConfig
from bert_numpy.model.encoder import Pass
from bert_numpy.model.heads import outputs
from bert_numpy.model.model import Model, has_pooler
from bert_numpy.model.sites import sites_of
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.quantization.recipe import Operand, Recipe
from bert_numpy.quantization.recipe_json import recipe_json
from npfp8 import ACCUMULATORS, INT8, FloatFormat, Format, QuantizedTensor
from npfp8.arguments import path_of, require
from npfp8.arrays import IntArray

__all__ = ["check_exportable", "export_onnx", "onnx_model"]


def export_onnx(model: QuantizedModel, path: str | Path) -> None:
    """Write a quantized model as an ONNX file, atomically. This needs the package ``onnx``.

    Above 2 GiB, the limit of such a file, the weights go into a
    second file beside it, PATH.data.

    Raises
    ------
    BertNumpyError
        In the cases of :func:`onnx_model`, or if a file cannot be written.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> import importlib.util, os, tempfile
    >>> quantized = bert_numpy.apply_recipe(model, "e4m3", calibration)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "e4m3.onnx")
    ...     if importlib.util.find_spec("onnx"):  # the extra onnx
    ...         bert_numpy.export_onnx(quantized, path)
    """
    require("model", model, QuantizedModel, "a quantized model, as apply_recipe returns it")
    target = path_of("path", path)
    graph, proto = _traced(model)
    save_graph(graph, proto, target)


def onnx_model(model: QuantizedModel) -> Any:
    """Convert a quantized model to an ``onnx.ModelProto``, checked by ``onnx.checker``.

    Its inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64
    (batch, length), of any batch and length; (batch, choices, length) for multiple choice.
    Its outputs are those that the head adds to :class:`bert_numpy.ModelOutput`; for a bare
    encoder ``last_hidden_state`` and, if there is a pooler, ``pooler_output``. All are float32.
    Above 2 GiB of weights it cannot be serialized; :func:`export_onnx` writes two files.

    Raises
    ------
    BertNumpyError
        If the package ``onnx`` is missing; if a parameter, or an output for one token, is NaN
        or infinite; or if a graph cannot express the recipe. It cannot express a format
        without an ONNX type, inputs by block, dynamic scales with zero points or of powers
        of two, outliers, an accumulator with fewer bits than float32, or one for the rest,
        or attention in tiles.
    """
    graph, proto = _traced(model)
    return graph.filled(proto)


def _traced(model: QuantizedModel) -> tuple[Graph, Any]:
    """Make the graph of a model, and its ``onnx.ModelProto`` without data."""
    check_exportable(model, model.recipe)
    for name, weight in model.weights.items():
        if isinstance(weight, np.ndarray):
            require_finite(f"{model.name}: tensor {name!r}", weight)
    choices = model.config.head.has_choices
    of_one = vars(model([[[0]]] if choices else [[0]]))
    for name, output in of_one.items():
        if isinstance(output, np.ndarray):
            require_finite(f"{model.name}, {model.recipe.name}: {name} of one token", output)
    graph = Graph()
    layout = OnnxLayout(graph, model.config)
    engine = OnnxEngine(graph, layout, model.weights, model.recipe, model.plans)
    found = outputs(Pass(model.config, engine, layout), has_pooler(model))
    states = ("last_hidden_state", "pooler_output")
    answers = {name: edge for name, edge in found.items() if name not in states} or found
    if choices:
        of_text = answers["logits"].name
        shape = graph.op("Concat", layout.dimension(0), layout.dimension(1), axis=0)
        answers = {"logits": Edge(graph.op("Reshape", of_text, shape), ("batch", "choices"))}
    properties = {"recipe": recipe_json(model.recipe), "labels": "\n".join(model.config.labels)}
    return graph, graph.model(layout.inputs, answers, properties)


def check_exportable(model: Model, recipe: Recipe) -> None:
    """Raise :class:`BertNumpyError` if a graph cannot express a recipe for a model.

    The reasons are those of :func:`onnx_model`, except numbers that are not finite. No
    calibration is needed for the check.
    """
    onnx_package()
    if ACCUMULATORS[recipe.accumulate].narrow:
        known = (x for x in ACCUMULATORS.values() if not x.narrow and x.formats != ())
        expected = " or ".join(repr(x.name) for x in known)
        raise BertNumpyError(
            f"recipe {recipe.name}: accumulate: expected {expected} in ONNX, "
            f"found {recipe.accumulate!r}"
        )
    if recipe.accumulate_rest is not None:
        raise BertNumpyError(
            f"recipe {recipe.name}: accumulate_rest: expected None in ONNX, "
            f"found {recipe.accumulate_rest!r}"
        )
    if recipe.attention is not None:
        raise BertNumpyError(
            f"recipe {recipe.name}: attention: expected None in ONNX, found {recipe.attention}"
        )
    for site in sites_of(model):
        if recipe.site(site).quantizes:
            _check(recipe, site)


def _check(recipe: Recipe, site: Site) -> None:
    """Refuse settings that have no nodes here."""
    how = recipe.site(site)

    def check(good: bool, expected: str, found: object = None) -> None:
        if not good:
            ending = "" if found is None else f", found {found}"
            raise BertNumpyError(
                f"recipe {recipe.name}: {site.name}: expected {expected} in ONNX{ending}"
            )

    check(how.outlier_threshold is None, "no outlier_threshold")
    for side, operand in (("a", how.a), ("b", how.b)):
        if operand.fmt is None:
            continue
        check(operand.fmt in TYPES, f"one of {', '.join(map(str, TYPES))}", operand.fmt)
        assert isinstance(operand.fmt, Format)
        if operand.dynamic and (side == "a" or site.is_attention):
            check(operand.granularity == "token", "no inputs by block")
            check(not operand.fmt.has_zero_point, "no dynamic scales with zero points")
            check(not operand.power_of_two, "no dynamic scales of powers of two")


class OnnxLayout:
    """The layout of a graph's arrays: (batch, length, features), including padding."""

    def __init__(self, graph: Graph, config: BertConfig) -> None:
        self.graph, self.choices = graph, config.head.has_choices
        names = ("batch", "choices", "length") if self.choices else ("batch", "length")
        self.inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), names)

    def _input(self, name: str) -> str:
        """Return an input as (texts, length)."""
        if not self.choices:
            return name
        shape = self.graph.op("Concat", self.graph.integers(-1), self.dimension(2), axis=0)
        return self.graph.op("Reshape", name, shape)

    def dimension(self, axis: int) -> str:
        """Return a length of the inputs, as an array of one number."""
        return self.graph.op("Shape", "input_ids", start=axis, end=axis + 1)

    @property
    def ids(self) -> str:
        """``input_ids`` as (texts, length)."""
        return self._input("input_ids")

    @property
    def present(self) -> str:
        """The attention mask as bool, (texts, length)."""
        mask = self._input("attention_mask")
        return self.graph.op("Cast", mask, to=self.graph.onnx.TensorProto.BOOL)

    @property
    def present_numbers(self) -> str:
        """The attention mask as int32, 0 or 1."""
        return self.graph.op("Cast", self.present, to=self.graph.onnx.TensorProto.INT32)

    @property
    def numbers(self) -> str:
        """The numbers 0, 1, ...: (length,)."""
        graph = self.graph
        axis = 2 if self.choices else 1
        length = graph.op("Squeeze", self.dimension(axis), graph.integers(0))
        zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
        return graph.op("Range", zero, length, one)

    @property
    def computed(self) -> str:
        """A mask of the tokens that the model computes: those present, and position 0."""
        first = self.graph.op("Equal", self.numbers, self.graph.constant(np.int64(0)))
        return self.graph.op("Or", self.present, first)

    def words(self) -> str:
        """Return the ids: (batch, length)."""
        return self.ids

    def types(self) -> str:
        """Return the types: (batch, length)."""
        return self._input("token_type_ids")

    def places(self, padding: int | None) -> str:
        """Return position numbers: (length,), or (batch, length) if padding is skipped."""
        if padding is None:
            return self.numbers
        graph, pad = self.graph, self.graph.constant(np.int64(padding))
        is_padding = graph.op("Equal", self.ids, pad)
        kind = graph.onnx.TensorProto.INT64
        counted = graph.op("Cast", graph.op("Not", is_padding), to=kind)
        summed = graph.op("CumSum", counted, graph.constant(np.int64(1)))
        return graph.op("Add", graph.op("Mul", summed, counted), pad)

    def distances(self, numbers: IntArray) -> Iterator[str]:
        """Yield the numbers once: (1, length, length)."""
        graph, farthest = self.graph, len(numbers) // 2
        keys = graph.op("Unsqueeze", self.numbers, graph.integers(0, 1))
        queries = graph.op("Unsqueeze", self.numbers, graph.integers(0, 2))
        least, most = (graph.constant(np.int64(x)) for x in (-farthest, farthest))
        apart = graph.op("Clip", graph.op("Sub", keys, queries), least, most)
        table = graph.constant(np.asarray(numbers, np.int64))
        yield graph.op("Gather", table, graph.op("Add", apart, most))

    def split_heads(
        self, query: Edge, key: Edge, value: Edge, heads: int
    ) -> Iterator[tuple[Edge, Edge, Edge]]:
        """Put all sequences into one product."""
        *lengths, hidden = query.shape
        d = int(hidden) // heads
        shape = self.graph.integers(0, 0, heads, d)

        def split(x: Edge, *order: int) -> Edge:
            apart = self.graph.op("Reshape", x.name, shape)
            axes = (*lengths, heads, d)
            turned = self.graph.op("Transpose", apart, perm=order)
            return Edge(turned, tuple(axes[i] for i in order))

        yield split(query, 0, 2, 1, 3), split(key, 0, 2, 3, 1), split(value, 0, 2, 1, 3)

    def merge_heads(self, parts: Sequence[Edge]) -> Edge:
        """Merge the heads: (batch, length, hidden)."""
        (part,) = parts
        batch, heads, length, d = part.shape
        hidden = int(heads) * int(d)
        turned = self.graph.op("Transpose", part.name, perm=(0, 2, 1, 3))
        merged = self.graph.op("Reshape", turned, self.graph.integers(0, 0, hidden))
        return Edge(merged, (batch, length, hidden))

    def texts(self, x: Edge) -> Iterator[tuple[Edge, str]]:
        """Yield all texts at once, with places (batch, length); the pooling leaves padding out."""
        graph = self.graph
        first = graph.op("ArgMax", self.present_numbers, axis=1, keepdims=1)
        places = graph.op("Sub", self.numbers, first)
        yield x, graph.op("Add", places, graph.constant(np.int64(1)))

    def join(self, parts: Sequence[Edge]) -> Edge:
        """Return the one result."""
        return parts[0]

    def first(self, x: Edge) -> Edge:
        """Select the first token of each text: (batch, features)."""
        row = self.graph.op("Gather", x.name, self.graph.constant(np.int64(0)), axis=1)
        return Edge(row, (x.shape[0], *x.shape[2:]))

    def padded(self, x: Edge) -> Edge:
        """Set the positions that the model does not compute to 0."""
        tokens = self.graph.op("Unsqueeze", self.computed, self.graph.integers(2))
        zero = self.graph.constant(np.float32(0))
        return Edge(self.graph.op("Where", tokens, x.name, zero), x.shape)

    def column(self, x: Edge, number: int, masked: float | None = None) -> Edge:
        """Select one feature: (batch, length)."""
        column = self.graph.op("Gather", x.name, self.graph.constant(np.int64(number)), axis=-1)
        where = self.computed if masked is None else self.present
        other = self.graph.constant(np.float32(masked or 0))
        return Edge(self.graph.op("Where", where, column, other), x.shape[:-1])


class OnnxEngine(Engine[Edge]):
    """An engine that adds the nodes of each operation to a graph."""

    def __init__(
        self,
        graph: Graph,
        layout: OnnxLayout,
        weights: Weights,
        recipe: Recipe,
        plans: Mapping[str, SitePlan],
    ) -> None:
        self.graph, self.layout, self.weights = graph, layout, weights
        self.recipe, self.plans = recipe, plans
        self._tables: dict[int, str] = {}  # the tables looked up so far, by array
        self._rounded: set[str] = set()

    def parameter(self, name: str) -> str:
        """Add a parameter that is not quantized."""
        return self.graph.tensor(name, parameter(self.weights, name))

    def rounded(self, x: str) -> str:
        """Round to the recipe's arithmetic."""
        if self.recipe.arithmetic == "float32" or x in self._rounded:
            return x
        half = self.graph.op("Cast", x, to=self.graph.onnx.TensorProto.BFLOAT16)
        whole = self.graph.op("Cast", half, to=self.graph.onnx.TensorProto.FLOAT)
        self._rounded.add(whole)
        return whole

    def gather(self, tables: Sequence[Table]) -> Edge:
        """Add one Gather per table, and add them up in float32."""
        found = []
        for name, _, _, rows in tables:
            table = self.parameter(name)
            self._tables[id(self.weights[name])] = table
            found.append(self.graph.op("Gather", table, rows))
        total = found[0]
        for other in found[1:]:
            total = self.graph.op("Add", total, other)
        return Edge(total, ("batch", "length", tables[0][2]))

    def position_bias(self, table: Table) -> Edge:
        """Add a Gather and a Transpose."""
        name, _, heads, rows = table
        found = self.graph.op("Gather", self.parameter(name), rows)
        turned = self.graph.op("Transpose", found, perm=(0, 3, 1, 2))
        return Edge(self.rounded(turned), (1, heads, "length", "length"))

    def linears(self, sites: Sequence[Site], x: Edge) -> list[Edge]:
        """Add one product per layer."""
        found = []
        for site in sites:
            bias = self.parameter(f"{site.name}.bias")
            result = self._product(site, x.name, self._weight(f"{site.name}.weight"), bias)
            found.append(Edge(result, (*x.shape[:-1], site.outputs)))
        return found

    def product(self, site: Site, a: Edge, b: Edge) -> Edge:
        """Add a product of two activations."""
        return Edge(self._product(site, a.name, b.name), (*a.shape[:-1], b.shape[-1]))

    def _product(self, site: Site, a: str, b: str, bias: str | None = None) -> str:
        """Add the same steps as :class:`bert_numpy.quantization.engine.QuantizedEngine`."""
        plan = self.plans.get(site.name)
        if plan is not None:
            if plan.smoothing is not None:
                divisor = self.graph.tensor(f"{site.name}.smoothing", plan.smoothing)
                a = self.rounded(self.graph.op("Div", a, divisor))
            a = self._quantized(a, plan.recipe.a, plan.a, -1)
            if site.is_attention:  # a weight already has codes
                b = self._quantized(b, plan.recipe.b, plan.b, -2)
        result = self.graph.op("MatMul", a, b)
        if bias is not None:
            result = self.graph.op("Add", result, bias)
        return result if site.kind == "head" else self.rounded(result)

    def _quantized(self, x: str, operand: Operand, static: Scale | None, k_axis: int) -> str:
        """Quantize and dequantize ``x``; a scale per token is one along ``k_axis``."""
        if operand.fmt is None:
            return x
        assert isinstance(operand.fmt, Format)  # `check_exportable` refuses block formats
        if static is not None:
            return self._quantize(x, operand.fmt, static.scale, static.zero_point)
        graph = self.graph
        largest = graph.op("ReduceMax", graph.op("Abs", x), graph.integers(k_axis), keepdims=1)
        limit = graph.constant(np.float32(operand.fmt.reach))
        smallest = graph.constant(np.finfo(np.float32).tiny)  # also for a row of zeros
        scale = graph.op("Max", graph.op("Div", largest, limit), smallest)
        values = self._quantize(graph.op("Div", x, scale), operand.fmt, np.float32(1), None)
        return graph.op("Mul", values, scale)

    def _quantize(self, x: str, fmt: Format, scale: Any, zero_point: int | None) -> str:
        graph = self.graph
        if fmt == INT8:  # QuantizeLinear uses -128, which is left out here
            x = graph.op("Max", x, graph.constant(np.float32(-fmt.max) * np.float32(scale)))
        arguments = graph.constant(np.float32(scale)), graph.zero_point(fmt, zero_point)
        attributes: dict[str, Any] = {"saturate": 1} if isinstance(fmt, FloatFormat) else {}
        codes = graph.op("QuantizeLinear", x, *arguments, **attributes)
        return graph.op("DequantizeLinear", codes, *arguments)

    def _weight(self, name: str) -> str:
        """Add a linear layer's weight, transposed: (in, out)."""
        graph, weight = self.graph, self.weights[name]
        if not isinstance(weight, QuantizedTensor):
            if id(weight) in self._tables:  # the decoder that is the word embeddings
                return graph.op("Transpose", self._tables[id(weight)], perm=(1, 0))
            return graph.tensor(name, weight.T)
        turned = weight.mT
        codes = graph.tensor(name, turned.codes, weight.fmt)
        inputs = [codes, graph.tensor(f"{name}_scale", turned.scale)]
        if turned.zero_point is not None:
            inputs.append(graph.tensor(f"{name}_zero_point", turned.zero_point, weight.fmt))
        attributes: dict[str, Any] = {}
        if turned.axis is not None:
            attributes["axis"] = turned.axis
        if turned.block is not None:
            attributes["block_size"] = turned.block
        return graph.op("DequantizeLinear", *inputs, **attributes)

    # Between the products

    def add(self, x: Edge, y: Edge) -> Edge:
        """Append Add, then round."""
        return Edge(self.rounded(self.graph.op("Add", x.name, y.name)), x.shape)

    def multiply(self, x: Edge, factor: float) -> Edge:
        """Append Mul, then round."""
        constant = self.graph.constant(np.float32(factor))
        return Edge(self.rounded(self.graph.op("Mul", x.name, constant)), x.shape)

    def softmax(self, x: Edge) -> Edge:
        """Append Softmax over keys; padding gets the least score, and so exactly the weight 0."""
        graph = self.graph
        keys = graph.op("Unsqueeze", self.layout.present, graph.integers(1, 2))
        least = graph.constant(np.finfo(np.float32).min)
        scores = graph.op("Where", keys, x.name, least)
        return Edge(self.rounded(graph.op("Softmax", scores, axis=-1)), x.shape)

    def layer_norm(self, name: str, x: Edge, eps: float) -> Edge:
        """Append LayerNormalization, then round."""
        inputs = [x.name, self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")]
        result = self.graph.op("LayerNormalization", *inputs, axis=-1, epsilon=eps)
        return Edge(self.rounded(result), x.shape)

    def activation(self, name: str, x: Edge, answer: bool = False) -> Edge:
        """Append the function's node; its input and its result are rounded, except an answer's."""
        if answer:
            return Edge(_ACTIVATIONS[name](self.graph, x.name), x.shape)
        result = _ACTIVATIONS[name](self.graph, self.rounded(x.name))
        return Edge(self.rounded(result), x.shape)

    def pool(self, mode: str, x: Edge, places: str) -> Edge:
        """Pool the tokens that the mask keeps."""
        result = _POOLINGS[mode](self.graph, self.layout, x.name, places)
        return Edge(result, (x.shape[0], *x.shape[2:]))

    def concatenate(self, parts: Sequence[Edge]) -> Edge:
        """Append Concat."""
        joined = self.graph.op("Concat", *(part.name for part in parts), axis=-1)
        features = sum(int(part.shape[-1]) for part in parts)
        return Edge(joined, (*parts[0].shape[:-1], features))

    def normalize(self, x: Edge) -> Edge:
        """Divide by the norm from ReduceL2."""
        graph = self.graph
        norm = graph.op("ReduceL2", x.name, graph.integers(-1), keepdims=1)
        least = graph.op("Max", norm, graph.constant(np.float32(1e-12)))
        return Edge(graph.op("Div", x.name, least), x.shape)

    def output(self, name: str, x: Edge) -> Edge:
        """Return ``x`` unchanged."""
        return x


_ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu": lambda graph, x: graph.op("Gelu", x),
    "gelu_new": lambda graph, x: graph.op("Gelu", x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda graph, x: graph.op("Gelu", x, approximate="tanh"),
    "relu": lambda graph, x: graph.op("Relu", x),
    "silu": lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)),
    "tanh": lambda graph, x: graph.op("Tanh", x),
    "sigmoid": lambda graph, x: graph.op("Sigmoid", x),
}


def _total(graph: Graph, wanted: str, x: str) -> str:
    """Add up the wanted tokens. (batch, length), (batch, length, features) -> (batch, .)."""
    tokens = graph.op("Unsqueeze", wanted, graph.integers(2))
    chosen = graph.op("Where", tokens, x, graph.constant(np.float32(0)))
    return graph.op("ReduceSum", chosen, graph.integers(1), keepdims=0)


def _count(graph: Graph, layout: OnnxLayout) -> str:
    """Count the tokens that the mask keeps: float32, (batch, 1)."""
    ones = graph.op("Cast", layout.present, to=graph.onnx.TensorProto.FLOAT)
    return graph.op("ReduceSum", ones, graph.integers(1), keepdims=1)


def _mean(graph: Graph, layout: OnnxLayout, x: str, places: str) -> str:
    return graph.op("Div", _total(graph, layout.present, x), _count(graph, layout))


def _mean_sqrt_len(graph: Graph, layout: OnnxLayout, x: str, places: str) -> str:
    root = graph.op("Sqrt", _count(graph, layout))
    return graph.op("Div", _total(graph, layout.present, x), root)


def _weighted_mean(graph: Graph, layout: OnnxLayout, x: str, places: str) -> str:
    weights = graph.op("Cast", places, to=graph.onnx.TensorProto.FLOAT)
    weights = graph.op("Where", layout.present, weights, graph.constant(np.float32(0)))
    weighted = graph.op("Mul", x, graph.op("Unsqueeze", weights, graph.integers(2)))
    whole = graph.op("ReduceSum", weights, graph.integers(1), keepdims=1)
    return graph.op("Div", _total(graph, layout.present, weighted), whole)


def _max(graph: Graph, layout: OnnxLayout, x: str, places: str) -> str:
    tokens = graph.op("Unsqueeze", layout.present, graph.integers(2))
    chosen = graph.op("Where", tokens, x, graph.constant(np.finfo(np.float32).min))
    return graph.op("ReduceMax", chosen, graph.integers(1), keepdims=0)


def _last_token(graph: Graph, layout: OnnxLayout, x: str, places: str) -> str:
    last = graph.op("ArgMax", layout.present_numbers, axis=1, keepdims=1, select_last_index=1)
    return _total(graph, graph.op("Equal", layout.numbers, last), x)


#: By the name in :data:`npfp8.golden.POOLINGS`: the nodes. The runtime decides the order of sums.
_POOLINGS: dict[str, Callable[[Graph, OnnxLayout, str, str], str]] = {
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "max": _max,
    "lasttoken": _last_token,
}
