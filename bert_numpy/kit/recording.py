"""Recording a golden run, with an engine that computes as the golden one and notes every step.

The one forward pass is used unchanged. The values that its operations exchange are here
arrays together with the kit's tensors that they equal (:class:`Traced`). Each operation is
computed twice: by the model's own engine, whose result is passed on, and step by
step by the operations of :mod:`bert_numpy.kit.operations`. If the two differ in a bit, the
kit would not explain the model, so it is not made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bert_numpy.engines.engine import Engine, Table
from bert_numpy.engines.functions import golden_name
from bert_numpy.engines.site import Site
from bert_numpy.kit.attention_steps import Operands, add_attention
from bert_numpy.kit.block_operations import described
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.manifest import Reference, apply_view
from bert_numpy.model.encoder import Pass
from bert_numpy.model.heads import outputs
from bert_numpy.model.model import ModelOutput, batch_of, has_pooler
from bert_numpy.model.packing import Batch
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.quantization.recipe import Operand, SiteRecipe
from npfp8 import ACCUMULATORS, BlockFormat, FloatFormat, QuantizedTensor
from npfp8.arrays import Array, Float32Array, IntArray

__all__ = ["record"]


def record(builder: Builder, model: QuantizedModel, case: str, inputs: Mapping[str, Array]) -> None:
    """Run a golden model on one sequence, and add everything that it computes.

    Parameters
    ----------
    builder : Builder
    model : QuantizedModel
        A golden model.
    case : str
        The beginning of the tensors' names.
    inputs : mapping of str to ndarray of int, (1, length)
        The model's arguments.
    """
    for name, ids in inputs.items():
        builder.give(f"{case}/{name}", "model", np.asarray(ids, np.int64))
    batch = batch_of(model.config, **inputs)
    engine = RecordingEngine(builder, model, case, batch)
    with np.errstate(all="ignore"):
        found = outputs(Pass(model.config, engine, TracedLayout(batch)), has_pooler(model))
    for name in (item.name for item in fields(ModelOutput)):
        source = found[name].source if name in found else None
        if source is not None:
            builder.compute(f"{case}/{name}", "model", "output", {"x": source})


@dataclass(frozen=True, eq=False)
class Traced:
    """An array, and the tensor of the kit (or its view) that it equals; None if there is none."""

    x: Float32Array
    source: Reference | None = None

    def seen(self, x: Float32Array, view: str) -> Traced:
        """Trace a view of the whole array; a part, or a view of a view, has no tensor."""
        if self.source is None or self.source.view or x.size != self.x.size:
            return Traced(x)
        return Traced(x, Reference(self.source.tensor, view))


@dataclass(frozen=True, eq=False)
class TracedLayout:
    """The layout of one sequence with traced arrays."""

    batch: Batch

    def words(self) -> Array:
        """Return the ids: (tokens,)."""
        return self.batch.words()

    def types(self) -> Array:
        """Return the types: (tokens,)."""
        return self.batch.types()

    def places(self, padding: int | None) -> Array:
        """Return the position numbers: (tokens,)."""
        return self.batch.places(padding)

    def distances(self, numbers: Array) -> Iterator[Array]:
        """Yield the numbers: (1, queries, keys)."""
        return self.batch.distances(numbers)

    def split_heads(
        self, query: Traced, key: Traced, value: Traced, heads: int
    ) -> Iterator[tuple[Traced, Traced, Traced]]:
        """Split heads into traced views."""
        for q, k, v in self.batch.split_heads(query.x, key.x, value.x, heads):
            yield (
                query.seen(q, f"split_heads:{heads}"),
                key.seen(k, f"split_heads_transposed:{heads}"),
                value.seen(v, f"split_heads:{heads}"),
            )

    def merge_heads(self, parts: Sequence[Traced]) -> Traced:
        """Merge heads into a traced view."""
        (part,) = parts
        return part.seen(self.batch.merge_heads([part.x]), "merge_heads")

    def texts(self, x: Traced) -> Iterator[tuple[Traced, IntArray]]:
        """Yield the tokens that the mask keeps."""
        for tokens, places in self.batch.texts(x.x):
            yield Traced(tokens), places

    def join(self, parts: Sequence[Traced]) -> Traced:
        """Return the one result."""
        return parts[0]

    def first(self, x: Traced) -> Traced:
        """Return a traced view of the first row."""
        row = self.batch.first(x.x)
        return Traced(row, x.source and Reference(x.source.tensor, "first_row"))

    def padded(self, x: Traced) -> Traced:
        """Pad; the result is not a tensor of the kit."""
        return Traced(self.batch.padded(x.x))

    def column(self, x: Traced, number: int, masked: float | None = None) -> Traced:
        """Select a feature; the result is not a tensor of the kit."""
        return Traced(self.batch.column(x.x, number, masked))


class RecordingEngine(Engine[Traced]):
    """An engine that adds every tensor computed for one sequence to a builder."""

    def __init__(self, builder: Builder, model: QuantizedModel, case: str, batch: Batch) -> None:
        self.builder, self.model, self.case = builder, model, case
        self.golden = model.engine(model.weights, batch)
        self.rows = len(batch.packing.tokens)
        self.tokens = np.flatnonzero(batch.packing.take(batch.packing.mask)).tolist()
        self.site = Site("embeddings")
        self.places: set[str] = set()
        self.place = self.site.name
        self.precision = model.recipe.arithmetic

    @property
    def level(self) -> str:
        """The level of the tensors at the present site."""
        return "model" if self.site.layer is None else "layer"

    def source(self, what: str, x: Traced) -> Reference:
        """Return an operand's tensor; if it is not a result, it becomes a given tensor."""
        return x.source or self.builder.give(self.name(what), self.level, x.x)

    def name(self, what: str) -> str:
        """Name a tensor at the present site."""
        return f"{self.case}/{self.place}/{what}"

    def parameter(self, name: str) -> Reference:
        """Give a parameter that is not quantized."""
        weight = self.model.weights[name]
        assert isinstance(weight, np.ndarray)
        return self.builder.give(f"weights/{name}", self.level, weight)

    def compute(
        self, what: str, operation: str, inputs: Mapping[str, Reference], **options: Any
    ) -> Reference:
        """Compute a tensor of this site by an operation."""
        self.builder.compute(self.name(what), self.level, operation, inputs, **options)
        return Reference(self.name(what))

    def result(self, tensor: Reference, expected: Traced) -> Traced:
        """Return the golden engine's result, which must equal the operation's."""
        if not _same(self.builder.arrays[tensor.tensor], expected.x):
            raise AssertionError(f"{tensor.tensor}: not the model's bits by the kit's operations")
        return Traced(expected.x, tensor)

    # Products

    def gather(self, tables: Sequence[Table]) -> Traced:
        """Look rows up; the result is given, as this is no arithmetic."""
        return Traced(self.golden.gather(tables))

    def position_bias(self, table: Table) -> Traced:
        """Look the bias up; it is given once for all layers."""
        x = self.golden.position_bias(table)
        name = f"{self.case}/{table[0].removesuffix('.weight')}"
        return Traced(x, self.builder.give(name, "model", x, kind=self.precision))

    def linears(self, sites: Sequence[Site], x: Traced) -> list[Traced]:
        """Record each layer with its bias."""
        products = self.golden.linears(sites, x.x)
        return [self.multiplied(site, x, None, y) for site, y in zip(sites, products, strict=True)]

    def product(self, site: Site, a: Traced, b: Traced) -> Traced:
        """Record a product of two activations."""
        return self.multiplied(site, a, b, self.golden.product(site, a.x, b.x))

    def multiplied(self, site: Site, a: Traced, b: Traced | None, y: Float32Array) -> Traced:
        """Record a product step by step; without ``b`` the site's weight is used."""
        self.enter(site)
        plan = self.model.plans.get(site.name, SitePlan(SiteRecipe()))
        bias = {} if b is not None else {"bias": self.parameter(f"{site.name}.bias")}
        self.steps(plan, a, b, bias)
        return self.rounded(Reference(self.name("product")), y)

    def enter(self, site: Site) -> None:
        """Go to a site. Layers that share their parameters visit one site several times."""
        self.site = site
        again = site.name in self.places
        self.place = f"{site.name}@{site.layer}" if again else site.name
        self.places.add(site.name)

    def rounded(self, last: Reference, y: Float32Array) -> Traced:
        """Round the result of a site to the precision; that of a head stays in float32."""
        if self.precision == "bfloat16" and self.site.kind != "head":
            last = self.compute("result", "round", {"x": last}, kind="bfloat16")
        return self.result(last, Traced(y))

    @property
    def fuses_attention(self) -> bool:  # type: ignore[override]
        """True if the golden engine fuses attention."""
        return self.golden.fuses_attention

    def attention(
        self,
        scores_site: Site,
        context_site: Site,
        q: Traced,
        k: Traced,
        v: Traced,
        factor: float,
        bias: Traced | None,
    ) -> Traced:
        """Record an attention over tiles of keys, tile by tile: scores at their own site."""
        numbers = (q.x, k.x, v.x, factor, None if bias is None else bias.x)
        y = self.golden.attention(scores_site, context_site, *numbers)
        plans, recipe = self.model.plans, self.model.recipe
        self.enter(scores_site)
        plan, at_scores = plans[scores_site.name], self.name("")
        left = self.quantized("a", self.source("a.float", q), plan.recipe.a, plan.a, -1, q.x.ndim)
        right = self.quantized("b", self.source("b.float", k), plan.recipe.b, plan.b, -2, k.x.ndim)
        self.enter(context_site)
        plan, at_context = plans[context_site.name], self.name("")
        values = self.quantized("b", self.source("b.float", v), plan.recipe.b, plan.b, -2, v.x.ndim)
        given = Operands(
            q=left[0],
            k=right[0],
            v=values[0],
            q_scale=left[1]["scale"],
            k_scale=right[1]["scale"],
            v_scale=values[1]["scale"],
            bias=None if bias is None else self.source("bias", bias),
        )

        def name(what: str, tile: int | None) -> str:
            place = at_scores if what in ("sum", "scores") else at_context
            return f"{place}{what}" if tile is None else f"{place}{tile}/{what}"

        fmt, how = plan.recipe.a.fmt, recipe.attention
        assert isinstance(fmt, FloatFormat)
        assert how is not None
        options = (factor, fmt, how, recipe.accumulate)
        return self.rounded(add_attention(self.builder, self.level, name, given, *options), y)

    def steps(
        self, plan: SitePlan, a: Traced, b: Traced | None, bias: dict[str, Reference]
    ) -> None:
        """Record the product and the bias, as the tensor ``product``."""
        left = self.source("a.float", a)
        ndim = a.x.ndim
        how = {"precision": self.precision}
        rest = self.model.recipe.accumulate_rest
        summed = {} if rest is None else {"accumulate": rest}
        if plan.smoothing is not None:
            divisor = self.builder.give(self.shared("smoothing"), self.level, plan.smoothing)
            left = self.compute(
                "a.smoothed", "divide", {"x": left, "divisor": divisor}, attributes=how
            )
        outliers = None
        if plan.recipe.outlier_threshold is not None:
            threshold: dict[str, Any] = {"threshold": plan.recipe.outlier_threshold}
            if plan.recipe.outliers == "column":  # the kit's inputs are one sequence each
                threshold["rows"] = self.tokens if len(a.x) == self.rows else [0]
            split = {
                keep: self.compute(
                    f"a.{keep}", "outliers", {"x": left}, attributes=threshold | {"keep": keep}
                )
                for keep in ("outliers", "others")
            }
            outliers, left = split["outliers"], split["others"]
        last = "product" if outliers is None else "product.others"
        given = bias if outliers is None else {}
        right, right_parts = self.right(plan, b)
        codes = left
        parts: dict[str, Any] = {}
        if plan.recipe.a.fmt is not None:
            codes, parts = self.quantized("a", left, plan.recipe.a, plan.a, -1, ndim)
        if not parts or not right_parts:  # codes are only multiplied with codes
            left = self.dequantized("a", codes, parts) if parts else left
            right = self.dequantized("b", right, right_parts) if right_parts else right
            operands = {"a": left, "b": right, **given}
            self.compute(last, "product", operands, attributes=summed)
            if outliers is not None:
                self.add_outliers(outliers, right, bias, summed)
            return
        scaled = {"a": parts, "b": right_parts}
        attributes: dict[str, Any] = {
            "a": parts["how"] | {"ndim": ndim},
            "b": right_parts["how"] | {"ndim": ndim if b is not None else 2},
        }
        blocked = any("scale_codes" in scales for scales in scaled.values())
        block = parts["how"].get("block") or right_parts["how"].get("block")
        attributes |= {} if block is None or blocked else {"block": block}
        accumulate = self.model.recipe.accumulate
        attributes |= {} if ACCUMULATORS[accumulate].kind == "exact" else {"accumulate": accumulate}
        inner: dict[str, Reference] = {"a": codes, "b": right}
        outer: dict[str, Reference] = {}
        for name, scales in scaled.items():
            # Beside scales that are codes, all those that vary along K belong to the sum.
            along = blocked and "block" in scales["how"]
            inside = ("zero_point", "scale_codes", *(["scale"] if along else []))
            for role in ("zero_point", "scale_codes", "scale", "tensor_scale"):
                if role in scales:
                    (inner if role in inside else outer)[f"{name}_{role}"] = scales[role]
        operations = ("block_sum", "block_product") if blocked else ("sum", "scale_sum")
        total = self.compute("sum", operations[0], inner, attributes=attributes)
        inputs = {"sum": total, **outer, **given}
        self.compute(last, operations[1], inputs, attributes=attributes)
        if outliers is not None:
            right = self.dequantized("b", right, right_parts)
            self.add_outliers(outliers, right, bias, summed)

    def add_outliers(
        self,
        outliers: Reference,
        right: Reference,
        bias: Mapping[str, Reference],
        summed: Mapping[str, Any],
    ) -> None:
        """Record the product of the outliers, and the sum of both products."""
        operands = {"a": outliers, "b": right}
        beyond = self.compute("product.outliers", "product", operands, attributes=summed)
        both = {"x": Reference(self.name("product.others")), "y": beyond}
        self.compute("product", "add_float32", {**both, **bias})

    def shared(self, what: str) -> str:
        """Name a tensor that is the same for every input."""
        return f"scales/{self.site.name}/{what}"

    def right(self, plan: SitePlan, b: Traced | None) -> tuple[Reference, dict[str, Any]]:
        """Return the right operand, a weight or an activation, and the scales if it has codes."""
        if b is not None:
            source, ndim = self.source("b.float", b), b.x.ndim
        else:
            name = f"{self.site.name}.weight"
            weight, ndim = self.model.weights[name], 2
            if isinstance(weight, QuantizedTensor):
                return self.stored(f"weights/{name}", weight)
            given = self.builder.give(f"weights/{name}", self.level, weight)
            source = Reference(given.tensor, "transposed")
        if plan.recipe.b.fmt is None:
            return source, {}
        return self.quantized("b", source, plan.recipe.b, plan.b, -2, ndim)

    def stored(self, name: str, weight: QuantizedTensor) -> tuple[Reference, dict[str, Any]]:
        """Give a weight's codes and their scales, both viewed transposed."""
        give, level, b = self.builder.give, self.level, weight.mT
        codes = give(name, level, weight.codes, weight.fmt)
        if weight.block_format is not None:
            return Reference(codes.tensor, "transposed"), self.stored_blocks(name, weight)
        scale = give(f"{name}.scale", level, weight.scale)
        parts: dict[str, Any] = {
            "how": _described(str(weight.fmt), b.axis, b.block),
            "scale": Reference(scale.tensor, "transposed"),
        }
        if weight.zero_point is not None:
            zero = give(f"{name}.zero_point", level, weight.zero_point, weight.fmt)
            parts["zero_point"] = Reference(zero.tensor, "transposed")
        return Reference(codes.tensor, "transposed"), parts

    def stored_blocks(self, name: str, weight: QuantizedTensor) -> dict[str, Any]:
        """Give the scales of a weight in a block format, as those of the transposed weight."""
        give, level, fmt, b = self.builder.give, self.level, weight.block_format, weight.mT
        assert fmt is not None
        assert b.axis is not None
        assert weight.scale_codes is not None
        scales = give(f"{name}.scale_codes", level, weight.scale_codes, fmt.scale_format)
        parts: dict[str, Any] = {
            "how": described(fmt, b.axis),
            "scale_codes": Reference(scales.tensor, "transposed"),
        }
        if weight.tensor_scale is not None:
            number = np.asarray(weight.tensor_scale)
            parts["tensor_scale"] = give(f"{name}.tensor_scale", level, number)
        return parts

    def dequantized(self, name: str, codes: Reference, parts: Mapping[str, Any]) -> Reference:
        """Convert an operand's codes back to numbers."""
        if "scale_codes" in parts:
            given = {role: x for role, x in parts.items() if role != "how"}
            how = parts["how"]
            scale = self.compute(f"{name}.scale", "block_scales", given, attributes=how)
        else:
            scale = parts["scale"]
        inputs = {"x": codes, "x_scale": scale}
        if "zero_point" in parts:
            inputs["x_zero_point"] = parts["zero_point"]
        options = {"x": parts["how"]}
        return self.compute(f"{name}.dequantized", "dequantize", inputs, attributes=options)

    def quantized(
        self,
        name: str,
        x: Reference,
        operand: Operand,
        static: Scale | None,
        k_axis: int,
        ndim: int,
    ) -> tuple[Reference, dict[str, Any]]:
        """Quantize an activation; return its codes and their scales."""
        fmt = operand.fmt
        assert fmt is not None
        if isinstance(fmt, BlockFormat):
            return self.blocked(name, x, fmt, static, k_axis % ndim)
        if static is not None:
            scale = self.builder.give(
                self.shared(f"{name}.scale"), self.level, np.asarray(static.scale)
            )
            parts: dict[str, Any] = {"how": _described(str(fmt)), "scale": scale}
            if static.zero_point is not None:
                zero = np.asarray(static.zero_point, fmt.code_dtype)
                parts["zero_point"] = self.builder.give(
                    self.shared(f"{name}.zero_point"), self.level, zero, fmt
                )
        else:
            value = apply_view(self.builder.arrays[x.tensor], x.view)
            length = value.shape[k_axis]
            block = length if operand.granularity == "token" else operand.block
            how = _described(str(fmt), k_axis % ndim, block)
            options = how | {"power_of_two": operand.power_of_two}
            scale = self.compute(f"{name}.scale", "scale", {"x": x}, attributes=options)
            parts = {"how": how, "scale": scale}
            if fmt.has_zero_point:
                parts["zero_point"] = self.compute(
                    f"{name}.zero_point", "zero_point", {"x": x}, attributes=options, fmt=fmt
                )
        inputs = {"x": x, "scale": parts["scale"]}
        if "zero_point" in parts:
            inputs["zero_point"] = parts["zero_point"]
        return self.compute(name, "quantize", inputs, attributes=parts["how"], fmt=fmt), parts

    def blocked(
        self, name: str, x: Reference, fmt: BlockFormat, static: Scale | None, axis: int
    ) -> tuple[Reference, dict[str, Any]]:
        """Quantize an activation to a block format; return its codes and their scales."""
        names = {"codes": self.name(name)} | {
            role: self.name(f"{name}.{role}") for role in ("scale_codes", "tensor_scale")
        }
        number = None
        if static is not None:
            number = self.builder.give(
                self.shared(f"{name}.tensor_scale"), self.level, np.asarray(static.scale)
            )
        made = self.builder.quantize_blocks(names, self.level, x, fmt, axis, number)
        return made.pop("codes"), {"how": described(fmt, axis), **made}

    # Between the products

    def operation(
        self,
        what: str,
        operation: str,
        inputs: Mapping[str, Reference],
        expected: Float32Array,
        precision: str | None = None,
        **how: Any,
    ) -> Traced:
        """Record a function in one step."""
        kind = precision or self.precision
        attributes = {"precision": kind, **how}
        tensor = self.compute(what, operation, inputs, attributes=attributes, kind=kind)
        return self.result(tensor, Traced(expected))

    def add(self, x: Traced, y: Traced) -> Traced:
        """Record :func:`npfp8.golden.add`."""
        inputs = {"x": self.source("add.x", x), "y": self.source("add.y", y)}
        return self.operation("add", "add", inputs, self.golden.add(x.x, y.x))

    def multiply(self, x: Traced, factor: float) -> Traced:
        """Record :func:`npfp8.golden.multiply`."""
        inputs, y = {"x": self.source("multiply.x", x)}, self.golden.multiply(x.x, factor)
        return self.operation("multiply", "multiply", inputs, y, factor=float(np.float32(factor)))

    def softmax(self, x: Traced) -> Traced:
        """Record :func:`npfp8.golden.softmax`."""
        inputs = {"x": self.source("softmax.x", x)}
        return self.operation("softmax", "softmax", inputs, self.golden.softmax(x.x))

    def layer_norm(self, name: str, x: Traced, eps: float) -> Traced:
        """Record :func:`npfp8.golden.layer_norm`."""
        inputs = {
            "x": self.source("layer_norm.x", x),
            "weight": self.parameter(f"{name}.weight"),
            "bias": self.parameter(f"{name}.bias"),
        }
        y = self.golden.layer_norm(name, x.x, eps)
        return self.operation("layer_norm", "layer_norm", inputs, y, eps=eps)

    def activation(self, name: str, x: Traced, answer: bool = False) -> Traced:
        """Record :func:`npfp8.golden.unary`; in bfloat16 its input is rounded first."""
        function = golden_name(name)
        precision = "float32" if answer else self.precision
        source = self.source(f"{function}.x", x)
        kind = self.builder.tensors[source.tensor].kind
        if precision == "bfloat16" and kind == "float32":
            source = self.compute(f"{function}.x", "round", {"x": source}, kind="bfloat16")
        y = self.golden.activation(name, x.x, answer)
        return self.operation(
            function, "activation", {"x": source}, y, precision, function=function
        )

    def pool(self, mode: str, x: Traced, places: IntArray) -> Traced:
        """Record :func:`npfp8.golden.pool`; its weights are an attribute."""
        inputs, y = {"x": self.source(f"{mode}.x", x)}, self.golden.pool(mode, x.x, places)
        weights = {"weights": places[0].tolist()} if mode == "weightedmean" else {}
        return self.operation(mode, mode, inputs, y, "float32", **weights)

    def concatenate(self, parts: Sequence[Traced]) -> Traced:
        """Record the parts copied one after the other."""
        inputs = {f"x{i}": self.source(f"concatenate.x{i}", x) for i, x in enumerate(parts)}
        y = self.golden.concatenate([part.x for part in parts])
        return self.operation("concatenate", "concatenate", inputs, y, "float32")

    def normalize(self, x: Traced) -> Traced:
        """Record :func:`npfp8.golden.normalize`."""
        inputs, y = {"x": self.source("normalize.x", x)}, self.golden.normalize(x.x)
        return self.operation("normalize", "normalize", inputs, y, "float32")

    def output(self, name: str, x: Traced) -> Traced:
        """Check that an output is finite."""
        self.golden.output(name, x.x)
        return x


def _described(fmt: str, axis: int | None = None, block: int | None = None) -> dict[str, Any]:
    how: dict[str, Any] = {"fmt": fmt}
    if axis is not None:
        how["axis"] = axis
    if block is not None:
        how["block"] = block
    return how


def _same(x: Array, y: Array) -> bool:
    """Check that two arrays hold the same bits."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if x.dtype == np.float32:
        x, y = (np.ascontiguousarray(z).view(np.uint32) for z in (x, y))
    return bool(np.array_equal(x, y))
