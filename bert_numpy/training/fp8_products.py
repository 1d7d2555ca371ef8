"""The three matrix products of training in FP8: E4M3 forward, E5M2 for gradients.

A linear layer has three products: ``y = x W^T``, ``dx = dy W`` and ``dW = dy^T x``. Each operand is
a tensor of codes with one scale: ``x`` and ``W`` in E4M3, ``dy`` in E5M2, as *FP8 Formats for Deep
Learning* (Micikevicius et al., arXiv 2209.05433) recommends. The codes of ``x`` and ``W`` from the
forward pass are used again in the backward pass. The two products of attention work alike. The
weights that the optimizer changes stay in float32, and so do all operations between the products.

The scales are those of a :class:`~bert_numpy.training.scalings.Scaling`. The products are summed as
an accumulator of :func:`npfp8.matmul` does it: "float32" (a BLAS product of the decoded values) is
the fast one, "exact" rounds once, "hopper-fast" sums as a tensor core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from bert_numpy.engines.site import KINDS, Site
from bert_numpy.quantization.counts import OperandCounts
from bert_numpy.training.products import FloatProducts
from bert_numpy.training.scalings import Scaling, Seen, TensorState
from npfp8 import (
    ACCUMULATORS,
    E4M3FN,
    E5M2,
    FloatFormat,
    QuantizedTensor,
    decode,
    encode,
    matmul,
)
from npfp8.arguments import choice, integer, require, require_iterable
from npfp8.arrays import Array, Float32Array, blas_product

__all__ = ["ENCODER_KINDS", "FP8Products", "absmax_of"]

#: The kinds of sites whose products are in FP8: those of the encoder. A head's stay in float32.
ENCODER_KINDS = ("linear", "scores", "context", "projection")


def absmax_of(x: Array) -> float:
    """Return the largest magnitude of an array: NaN if there is one, 0 if it is empty.

    Examples
    --------
    >>> absmax_of(np.float32([1, -3]))
    3.0
    """
    return float(max(x.max(initial=0), -x.min(initial=0)))


class Coded(NamedTuple):
    """A tensor as codes, with their values in float32, which a BLAS multiplies, and the scale."""

    codes: Array
    values: Float32Array
    scale: np.float32
    fmt: FloatFormat

    @property
    def mT(self) -> Coded:  # noqa: N802 (as of an array)
        """The transposed matrices."""
        return Coded(self.codes.swapaxes(-1, -2), self.values.swapaxes(-1, -2), *self[2:])

    @property
    def tensor(self) -> QuantizedTensor:
        """The tensor for :func:`npfp8.matmul`."""
        return QuantizedTensor(self.codes, np.asarray(self.scale), self.fmt)


def coded(x: Array, fmt: FloatFormat, scale: float) -> Coded:
    """Quantize an array as :func:`npfp8.quantize` does, to codes and their values.

    Examples
    --------
    >>> coded(np.float32([1.06, -2000]), E4M3FN, 2.0).values
    array([   0.5, -448. ], dtype=float32)
    """
    if x.ndim == 2 and x.flags.f_contiguous and not x.flags.c_contiguous:  # a transposed weight
        return coded(x.T, fmt, scale).mT
    divisor = np.float32(scale)
    with np.errstate(all="ignore"):
        scaled = np.divide(x, divisor, out=np.empty(x.shape, np.float32))
    codes = encode(scaled, fmt)
    return Coded(codes, decode(codes, fmt, out=scaled), divisor, fmt)


@dataclass(frozen=True, eq=False)
class FP8Products:
    """Products whose operands are FP8 codes, with the scales of one step.

    Attributes
    ----------
    scaling : Scaling
    forward_format, gradient_format : FloatFormat
        The formats of activations and weights, and of gradients.
    kinds : tuple of str
        The kinds of sites (:data:`bert_numpy.engines.site.KINDS`) in FP8; the others' products
        are float32.
    accumulate : str
        How the products are summed: a key of :data:`npfp8.ACCUMULATORS`.
    expected : mapping of str to float
        The magnitudes that the shapes let expect, by tensor
        (:func:`~bert_numpy.training.unit_scaling.expected_magnitudes`); 1 where there is none.
    count_every : int
        Overflows and underflows are counted in every n-th step, from the first on; 0 for none.
    states : mapping of str to TensorState
        The state of each tensor at the beginning of the step. A tensor is named by its site and its
        part: ``site:a``, ``site:b``, ``site:dy``, and ``site:db`` for the gradient of a weight.
    step : int
        The number of the step, from 0.
    seen : dict of str to Seen
        The statistics of the step so far, by tensor.
    counts : dict of str to OperandCounts
        The counts of the step so far, by tensor.

    Raises
    ------
    TypeError, ValueError
        If a field is not of the type stated, or a name is unknown.

    Examples
    --------
    >>> from bert_numpy.engines.site import Site
    >>> from bert_numpy.training.scalings import SCALINGS
    >>> products = FP8Products(SCALINGS["dynamic"])
    >>> site = Site("encoder.layer.0.output.dense", "linear", 0, 1)
    >>> a, b = np.float32([[1, 1.06, 448]]), np.float32([[1], [1], [448]])
    >>> y, saved = products.forward(site, a, b)
    >>> float(y[0, 0])
    200706.0
    >>> da, db = products.backward(site, saved, np.float32([[57344]]))
    >>> da.tolist(), db[:, 0].tolist()
    ([[57344.0, 57344.0, 25690112.0]], [57344.0, 57344.0, 25690112.0])
    >>> products.counts["encoder.layer.0.output.dense:a"]
    OperandCounts(elements=3, saturated=0, underflowed=0)
    >>> products.following().step
    1
    """

    scaling: Scaling
    forward_format: FloatFormat = E4M3FN
    gradient_format: FloatFormat = E5M2
    kinds: tuple[str, ...] = ENCODER_KINDS
    accumulate: str = "float32"
    expected: Mapping[str, float] = field(default_factory=dict)
    count_every: int = 1
    states: Mapping[str, TensorState] = field(default_factory=dict)
    step: int = 0
    seen: dict[str, Seen] = field(default_factory=dict, init=False)
    counts: dict[str, OperandCounts] = field(default_factory=dict, init=False)
    # The last left operand and its codes.
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require("scaling", self.scaling, Scaling, "a Scaling, such as SCALINGS['dynamic']")
        for name in ("forward_format", "gradient_format"):
            require(name, getattr(self, name), FloatFormat, "a FloatFormat, such as npfp8.E4M3FN")
        require_iterable("kinds", self.kinds, "kinds of sites")
        for kind in self.kinds:
            choice("kinds", kind, KINDS)
        choice("accumulate", self.accumulate, ACCUMULATORS)
        for name in ("expected", "states"):
            require(name, getattr(self, name), Mapping, "a mapping by the names of tensors")
        for name in ("count_every", "step"):
            if integer(name, getattr(self, name)) < 0:
                raise ValueError(f"{name}: expected at least 0, found {getattr(self, name)}")

    def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, Any]:
        """Compute ``a b`` of codes in the forward format, and keep the codes."""
        if site.kind not in self.kinds:
            return FloatProducts().forward(site, a, b)
        codes_a = self._codes(f"{site.name}:a", a, self.forward_format, shared=True)
        codes_b = self._codes(f"{site.name}:b", b, self.forward_format)
        return self._product(codes_a, codes_b), (codes_a, codes_b)

    def backward(self, site: Site, saved: Any, dy: Array) -> tuple[Array, Array]:
        """Compute ``dy b^T`` and ``a^T dy`` with ``dy`` as codes in the gradient format."""
        if site.kind not in self.kinds:
            return FloatProducts().backward(site, saved, dy)
        codes_a, codes_b = saved
        codes_dy = self._codes(f"{site.name}:dy", dy, self.gradient_format)
        da = self._product(codes_dy, codes_b.mT)
        db = self._product(codes_a.mT, codes_dy)
        if self.scaling.weight_gradient is not None and not site.is_attention:
            kept = self._codes(f"{site.name}:db", db, self.scaling.weight_gradient)
            db = np.multiply(kept.values, kept.scale)
        return da, db

    def _product(self, a: Coded, b: Coded) -> Float32Array:
        """Multiply codes, as :func:`npfp8.matmul` does."""
        if self.accumulate != "float32":
            return matmul(a.tensor, b.tensor, self.accumulate)
        product: Float32Array = blas_product(a.values, b.values)
        product *= a.scale * b.scale
        return product

    def following(self) -> FP8Products:
        """Return the products of the next step, whose scales depend on this one's statistics."""
        states = dict(self.states)
        for name, seen in self.seen.items():
            how, fmt = self._rule(name)
            states[name] = how.next(states.get(name, TensorState()), fmt, seen)
        return replace(self, states=states, step=self.step + 1)

    def _codes(self, name: str, x: Array, fmt: FloatFormat, shared: bool = False) -> Coded:
        """Quantize a tensor by its scale, and note its statistics.

        The codes of a ``shared`` one are kept until the next: query, key and value have one input.
        """
        state = self.states.get(name, TensorState())
        again = shared and _same_memory(self._made.get("x"), x)
        absmax = self._made["absmax"] if again else absmax_of(x)
        scale = self._rule(name)[0].scale(state, fmt, absmax, self.expected.get(name, 1.0))
        if again and self._made["scale"] == scale:
            found, seen, counts = self._made["result"]
        else:
            found = coded(x, fmt, scale)
            seen, counts = self._seen(name, found, x, absmax)
            if shared:
                self._made.update(x=x, absmax=absmax, scale=scale, result=(found, seen, counts))
        self.seen[name] = self.seen[name] + seen if name in self.seen else seen
        if counts is not None:
            self.counts[name] = self.counts[name] + counts if name in self.counts else counts
        return found

    def _seen(
        self, name: str, found: Coded, x: Array, absmax: float
    ) -> tuple[Seen, OperandCounts | None]:
        fmt, largest = found.fmt, 0
        if name.endswith(":db"):
            largest = int(np.count_nonzero((found.codes & fmt.magnitude_mask) == fmt.max_code))
        counts = None
        if self.count_every and self.step % self.count_every == 0:
            counts = OperandCounts(x.size, *found.tensor.lost(x))
        return Seen(absmax, x.size, largest), counts

    def _rule(self, name: str) -> tuple[Scaling, FloatFormat]:
        """Return the rule and the format of a tensor, by the part in its name."""
        part = name.rpartition(":")[2]
        if part == "db":
            assert self.scaling.weight_gradient is not None
            return self.scaling.weight_scaling or self.scaling, self.scaling.weight_gradient
        if part == "dy":
            return self.scaling.gradient_scaling or self.scaling, self.gradient_format
        return self.scaling, self.forward_format


def _same_memory(x: Array | None, y: Array) -> bool:
    """Return whether two arrays are views of the same numbers."""
    if x is None or x.shape != y.shape or x.strides != y.strides:
        return False
    return bool(x.__array_interface__["data"] == y.__array_interface__["data"])
