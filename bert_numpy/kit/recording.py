"""Recording a golden run: a policy that computes as the golden one does and notes every step.

There is one forward pass, and it is not touched. The recording policy computes
each product and each function between them twice: by the policy that the model
came with, whose result goes on, and step by step by the operations of
:mod:`bert_numpy.kit.operations`. If the two differ in a bit, the kit would not
explain the model, and is not made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.engines.functions import ACTIVATIONS, Arithmetic
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.manifest import Reference, apply_view
from bert_numpy.model.model import Model
from bert_numpy.model.packing import Packing
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.policy import Operandlike, Policy, SitePlan
from bert_numpy.quantization.recipe import Operand, SiteRecipe
from npfp8 import QuantizedTensor

__all__ = ["record"]

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]


def record(builder: Builder, model: QuantizedModel, case: str, inputs: Mapping[str, Array]) -> None:
    """Run a golden model on one sequence and add all that it computes.

    Parameters
    ----------
    builder : Builder
    model : QuantizedModel
        Golden.
    case : str
        What the tensors' names begin with.
    inputs : mapping of str to ndarray of int, (1, length)
        The model's arguments.
    """
    recorder = _Recorder(builder, model, case)
    for name, ids in inputs.items():
        builder.give(f"{case}/{name}", "model", np.asarray(ids, np.int64))
    policy = Policy(recorder.gemm, recorder.arithmetic(), model.policy.check, recorder.for_batch)
    recording = Model(model.config, model.weights, policy, model.name)
    output = recording(**inputs)
    for name, x in vars(output).items():
        source = None if x is None or name == "last_hidden_state" else recorder.find(x)
        if source is not None:
            builder.compute(f"{case}/{name}", "model", "output", {"x": source})


class _Recorder:
    """What has been computed of one sequence, and where in the data flow it is."""

    def __init__(self, builder: Builder, model: QuantizedModel, case: str) -> None:
        self.builder, self.model, self.case = builder, model, case
        self.policy = model.policy
        self.rows, self.tokens = 0, list[int]()
        self.site = "embeddings"
        self.results: list[str] = []
        self.names = {id(weight): name for name, weight in model.weights.items()}
        self.precision = model.recipe.arithmetic
        heads = model.config.num_attention_heads
        self.views = (
            "",
            f"split_heads:{heads}",
            f"split_heads_transposed:{heads}",
            "merge_heads",
            "first_row",
        )

    def level(self) -> str:
        return "layer" if self.site.startswith("encoder.layer.") else "model"

    def find(self, x: Array) -> Reference | None:
        """The result that an array is, and how it is looked at; the latest of several."""
        for name in reversed(self.results):
            result = self.builder.arrays[name]
            for view in self.views:
                if (view == "merge_heads") != (result.ndim == 4) and view:
                    continue
                if view.startswith("split") and (result.ndim != 2 or x.ndim != 4):
                    continue
                if _same(apply_view(result, view), x):
                    return Reference(name, view)
        return None

    def source(self, what: str, x: Float32Array) -> Reference:
        """Where an operand is from; given, if it is no result."""
        found = self.find(x)
        if found is not None:
            return found
        return self.builder.give(self.name(what), self.level(), x)

    def name(self, what: str) -> str:
        return f"{self.case}/{self.site}/{what}"

    def parameter(self, what: str, x: Float32Array) -> Reference:
        """A weight that is not quantized, a bias, LayerNorm's parameters."""
        name = self.names.get(id(x), f"{self.site}.{what}")
        return self.builder.give(f"weights/{name}", self.level(), x)

    def compute(
        self, what: str, operation: str, inputs: Mapping[str, Reference], **options: Any
    ) -> Reference:
        """A tensor of this site by an operation; ``result`` is what others may read."""
        name = self.name(what)
        self.builder.compute(name, self.level(), operation, inputs, **options)
        return Reference(name)

    def finish(self, name: str, expected: Float32Array) -> None:
        """Make sure that the policy's result is the operation's."""
        if not _same(self.builder.arrays[name], expected):
            raise AssertionError(f"{name}: the kit's operations do not give the model's bits")
        self.results.append(name)

    # Products

    def for_batch(self, policy: Policy, packing: Packing) -> Policy:
        """Note which rows are tokens, for products that depend on it."""
        self.policy = self.model.policy.for_batch(self.model.policy, packing)
        self.rows = len(packing.tokens)
        self.tokens = np.flatnonzero(packing.take(packing.mask)).tolist()
        return policy

    def gemm(
        self, site: str, a: Float32Array, b: Operandlike, bias: Float32Array | None
    ) -> Float32Array:
        result = self.policy.gemm(site, a, b, bias)
        self.site = site
        plan = self.model.plans.get(site, SitePlan(SiteRecipe()))
        steps = {} if bias is None else {"bias": self.parameter("bias", bias)}
        self.product(plan, a, b, steps)
        last = self.name("product")
        if self.precision == "bfloat16" and site.startswith(("encoder.", "embeddings_project")):
            last = self.compute("result", "round", {"x": Reference(last)}, kind="bfloat16").tensor
        self.finish(last, result)
        return result

    def product(
        self, plan: SitePlan, a: Float32Array, b: Operandlike, bias: dict[str, Reference]
    ) -> None:
        """The product and the bias, as the tensor ``product``."""
        left = self.source("a.float", a)
        how = {"precision": self.precision}
        if plan.smoothing is not None:
            divisor = self.builder.give(self.shared("smoothing"), self.level(), plan.smoothing)
            left = self.compute(
                "a.smoothed", "divide", {"x": left, "divisor": divisor}, attributes=how
            )
        outliers = None
        if plan.recipe.outlier_threshold is not None:
            threshold: dict[str, Any] = {"threshold": plan.recipe.outlier_threshold}
            if plan.recipe.outliers == "column":  # the kit's inputs are one sequence each
                threshold["rows"] = self.tokens if len(a) == self.rows else [0]
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
            codes, parts = self.quantized("a", left, plan.recipe.a, plan.a, -1, a.ndim)
        if not parts or not right_parts:  # only codes are multiplied with codes
            left = self.dequantized("a", codes, parts) if parts else left
            right = self.dequantized("b", right, right_parts) if right_parts else right
            self.multiply(last, left, right, outliers, given, bias)
            return
        zero = {
            f"{name}_zero_point": scales["zero_point"]
            for name, scales in (("a", parts), ("b", right_parts))
            if "zero_point" in scales
        }
        described: dict[str, Any] = {
            "a": parts["how"] | {"ndim": a.ndim},
            "b": right_parts["how"] | {"ndim": b.ndim},
        }
        block = parts["how"].get("block") or right_parts["how"].get("block")
        described |= {} if block is None else {"block": block}
        accumulate = self.model.recipe.accumulate
        described |= {} if accumulate == "exact" else {"accumulate": accumulate}
        total = self.compute("sum", "sum", {"a": codes, "b": right, **zero}, attributes=described)
        scales = {"a_scale": parts["scale"], "b_scale": right_parts["scale"]}
        self.compute(last, "scale_sum", {"sum": total, **scales, **given}, attributes=described)
        if outliers is not None:
            self.add_outliers(outliers, self.dequantized("b", right, right_parts), bias)

    def multiply(
        self,
        last: str,
        left: Reference,
        right: Reference,
        outliers: Reference | None,
        given: Mapping[str, Reference],
        bias: Mapping[str, Reference],
    ) -> None:
        """A product that is not of codes."""
        self.compute(last, "product", {"a": left, "b": right, **given})
        if outliers is not None:
            self.add_outliers(outliers, right, bias)

    def add_outliers(
        self, outliers: Reference, right: Reference, bias: Mapping[str, Reference]
    ) -> None:
        """The product of the outliers, and of all."""
        beyond = self.compute("product.outliers", "product", {"a": outliers, "b": right})
        both = {"x": Reference(self.name("product.others")), "y": beyond}
        self.compute("product", "add_float32", {**both, **bias})

    def shared(self, what: str) -> str:
        """The name of what is the same for every input."""
        return f"scales/{self.site}/{what}"

    def right(self, plan: SitePlan, b: Operandlike) -> tuple[Reference, dict[str, Any]]:
        """The right operand: a weight's codes, or an activation; and, of codes, their scales."""
        if isinstance(b, QuantizedTensor):
            stored = b.mT
            name = f"weights/{self.site}.weight"
            give, level = self.builder.give, self.level()
            codes = give(name, level, stored.codes, b.fmt)
            parts: dict[str, Any] = {
                "how": _described(str(b.fmt), b.axis, b.block),
                "scale": Reference(give(f"{name}.scale", level, stored.scale).tensor, "transposed"),
            }
            if stored.zero_point is not None:
                zero = give(f"{name}.zero_point", level, stored.zero_point, b.fmt)
                parts["zero_point"] = Reference(zero.tensor, "transposed")
            return Reference(codes.tensor, "transposed"), parts
        weight = self.model.weights.get(f"{self.site}.weight")
        if isinstance(weight, np.ndarray):
            given = self.builder.give(f"weights/{self.site}.weight", self.level(), weight)
            source = Reference(given.tensor, "transposed")
        else:
            source = self.source("b.float", b)
        if plan.recipe.b.fmt is None:
            return source, {}
        return self.quantized("b", source, plan.recipe.b, plan.b, -2, b.ndim)

    def dequantized(self, name: str, codes: Reference, parts: Mapping[str, Any]) -> Reference:
        """An operand's codes as numbers again."""
        inputs = {"x": codes, "x_scale": parts["scale"]}
        if "zero_point" in parts:
            inputs["x_zero_point"] = parts["zero_point"]
        options = {"x": parts["how"]}
        return self.compute(f"{name}.dequantized", "dequantize", inputs, attributes=options)

    def quantized(
        self, name: str, x: Reference, operand: Operand, static: Any, k_axis: int, ndim: int
    ) -> tuple[Reference, dict[str, Any]]:
        """An activation's codes, and their scales."""
        fmt = operand.fmt
        assert fmt is not None
        if static is not None:
            scale = self.builder.give(
                self.shared(f"{name}.scale"), self.level(), np.asarray(static.scale)
            )
            parts: dict[str, Any] = {"how": _described(str(fmt)), "scale": scale}
            if static.zero_point is not None:
                zero = np.asarray(static.zero_point, fmt.code_dtype)
                parts["zero_point"] = self.builder.give(
                    self.shared(f"{name}.zero_point"), self.level(), zero, fmt
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

    # Between the products

    def arithmetic(self) -> Arithmetic:
        inner = self.model.policy.arithmetic

        def recorded(
            operation: str,
            function: Callable[..., Float32Array],
            precision: str,
            given: Callable[..., tuple[dict[str, Reference], dict[str, Any]]],
        ) -> Callable[..., Float32Array]:
            def wrapped(*operands: Any) -> Float32Array:
                inputs, how = given(*operands)
                what = operation if operation != "activation" else how["function"]
                expected = function(*operands)
                name = self.compute(
                    what,
                    operation,
                    inputs,
                    attributes={"precision": precision, **how},
                    kind=precision,
                ).tensor
                self.finish(name, expected)
                return expected

            return wrapped

        def one(what: str) -> Callable[[Float32Array], Any]:
            return lambda x: ({"x": self.source(f"{what}.x", x)}, {})

        def activation(name: str, x: Float32Array) -> Any:
            function = name if name == "tanh" else ACTIVATIONS[name][1]
            source = self.source(f"{function}.x", x)
            if (
                self.precision == "bfloat16"
                and self.builder.tensors[source.tensor].kind == "float32"
            ):
                source = self.compute(f"{function}.x", "round", {"x": source}, kind="bfloat16")
            return {"x": source}, {"function": function}

        return replace(
            inner,
            add=recorded(
                "add",
                inner.add,
                self.precision,
                lambda x, y: (
                    {"x": self.source("add.x", x), "y": self.source("add.y", y)},
                    {},
                ),
            ),
            multiply=recorded(
                "multiply",
                inner.multiply,
                self.precision,
                lambda x, factor: (
                    {"x": self.source("multiply.x", x)},
                    {"factor": float(factor)},
                ),
            ),
            softmax=recorded("softmax", inner.softmax, self.precision, one("softmax")),
            layer_norm=recorded(
                "layer_norm",
                inner.layer_norm,
                self.precision,
                lambda x, weight, bias, eps: (
                    {
                        "x": self.source("layer_norm.x", x),
                        "weight": self.parameter("layer_norm.weight", weight),
                        "bias": self.parameter("layer_norm.bias", bias),
                    },
                    {"eps": eps},
                ),
            ),
            activation=recorded("activation", inner.activation, self.precision, activation),
            mean=recorded("mean", inner.mean, "float32", one("mean")),
            normalize=recorded("normalize", inner.normalize, "float32", one("normalize")),
        )


def _described(fmt: str, axis: int | None = None, block: int | None = None) -> dict[str, Any]:
    how: dict[str, Any] = {"fmt": fmt}
    if axis is not None:
        how["axis"] = axis
    if block is not None:
        how["block"] = block
    return how


def _same(x: Array, y: Array) -> bool:
    """Whether two arrays hold the same bits."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if x.dtype == np.float32:
        x, y = (np.ascontiguousarray(z).view(np.uint32) for z in (x, y))
    return bool(np.array_equal(x, y))
