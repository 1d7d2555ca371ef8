"""A forward pass without numbers: it lists the parameters and the products of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bert_numpy.engines.engine import Engine, Table
from bert_numpy.engines.site import Site

__all__ = ["ShapeEngine", "ShapeLayout", "ValueLayout"]

V = TypeVar("V")


@dataclass(frozen=True)
class ShapeEngine(Engine[int]):
    """An engine whose values are numbers of features; it collects parameters and products.

    Attributes
    ----------
    parameters : dict of str to tuple of int
        The shape of every parameter, by name, in the order of the data flow.
    products : list of tuple of Site
        The sites that share each multiplied input, in the same order.
    """

    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    products: list[tuple[Site, ...]] = field(default_factory=list)

    def gather(self, tables: Sequence[Table]) -> int:
        """Note tables of (rows, columns)."""
        for name, rows, columns, _ in tables:
            self.parameters[name] = (rows, columns)
        return columns

    def position_bias(self, table: Table) -> int:
        """Note a table of (rows, columns)."""
        return self.gather([table])

    def linears(self, sites: Sequence[Site], x: int) -> list[int]:
        """Note a weight of (outputs, inputs) and a bias per layer."""
        self.products.append(tuple(sites))
        for site in sites:
            self.parameters[f"{site.name}.weight"] = (site.outputs, x)
            self.parameters[f"{site.name}.bias"] = (site.outputs,)
        return [site.outputs for site in sites]

    def product(self, site: Site, a: int, b: int) -> int:
        """Note the product; the result has as many features as the right operand."""
        self.products.append((site,))
        return b

    def layer_norm(self, name: str, x: int, eps: float) -> int:
        """Note a weight and a bias, with one number per feature each."""
        self.parameters[f"{name}.weight"] = self.parameters[f"{name}.bias"] = (x,)
        return x

    def add(self, x: int, y: int) -> int:
        """Note nothing: an addition has no parameter."""
        return x

    def multiply(self, x: int, factor: float) -> int:
        """Note nothing: the factor is no parameter."""
        return x

    def softmax(self, x: int) -> int:
        """Note nothing: a softmax has no parameter."""
        return x

    def activation(self, name: str, x: int, answer: bool = False) -> int:
        """Note nothing: an activation has no parameter."""
        return x

    def pool(self, mode: str, x: int, places: None) -> int:
        """Note nothing: a pooling has no parameter."""
        return x

    def concatenate(self, parts: Sequence[int]) -> int:
        """Add up the features of the parts."""
        return sum(parts)

    def normalize(self, x: int) -> int:
        """Note nothing: a normalization to length 1 has no parameter."""
        return x

    def output(self, name: str, x: int) -> int:
        """Note nothing: an output has no parameter."""
        return x


class ValueLayout(Generic[V]):
    """A layout without tokens: every move leaves a value as it is, in one set."""

    def words(self) -> None:
        """Return None."""

    def types(self) -> None:
        """Return None."""

    def places(self, padding: int | None) -> None:
        """Return None."""

    def distances(self, numbers: object) -> Iterator[None]:
        """Yield None once, for one set."""
        yield None

    def split_heads(self, query: V, key: V, value: V, heads: int) -> Iterator[tuple[V, V, V]]:
        """Yield one set, of all heads together."""
        yield query, key, value

    def merge_heads(self, parts: Sequence[V]) -> V:
        """Return the value of the one set."""
        return parts[0]

    def texts(self, x: V) -> Iterator[tuple[V, None]]:
        """Yield one set."""
        yield x, None

    def join(self, parts: Sequence[V]) -> V:
        """Return the value of the one set."""
        return parts[0]

    def first(self, x: V) -> V:
        """Return the same value."""
        return x

    def padded(self, x: V) -> V:
        """Return the same value."""
        return x

    def column(self, x: V, number: int, masked: float | None = None) -> V:
        """Return the same value."""
        return x


class ShapeLayout(ValueLayout[int]):
    """The layout of numbers of features."""

    def column(self, x: int, number: int, masked: float | None = None) -> int:
        """Return one feature."""
        return 1
