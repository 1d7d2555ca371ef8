"""Running a forward pass without numbers: which parameters it takes, which products it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bert_numpy.engines.engine import Engine, Table
from bert_numpy.engines.site import Site

__all__ = ["ShapeEngine", "ShapeLayout"]


@dataclass(frozen=True)
class ShapeEngine(Engine[int]):
    """A value is the number of its features; collected is what each operation needs.

    Attributes
    ----------
    parameters : dict of str to tuple of int
        The shape of every parameter, by name, in the order of the data flow.
    products : list of tuple of Site
        The sites of every input that is multiplied, in the same order.
    """

    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    products: list[tuple[Site, ...]] = field(default_factory=list)

    def gather(self, tables: Sequence[Table]) -> int:
        """Tables of (rows, columns)."""
        for name, rows, columns, _ in tables:
            self.parameters[name] = (rows, columns)
        return columns

    def position_bias(self, table: Table) -> int:
        """A table of (rows, columns)."""
        return self.gather([table])

    def linears(self, sites: Sequence[Site], x: int) -> list[int]:
        """A weight of (outputs, inputs) and a bias each."""
        self.products.append(tuple(sites))
        for site in sites:
            self.parameters[f"{site.name}.weight"] = (site.outputs, x)
            self.parameters[f"{site.name}.bias"] = (site.outputs,)
        return [site.outputs for site in sites]

    def product(self, site: Site, a: int, b: int) -> int:
        """As many features as the right operand has."""
        self.products.append((site,))
        return b

    def layer_norm(self, name: str, x: int, eps: float) -> int:
        """A weight and a bias, a number for each feature."""
        self.parameters[f"{name}.weight"] = self.parameters[f"{name}.bias"] = (x,)
        return x

    def add(self, x: int, y: int) -> int:
        """No parameter."""
        return x

    def multiply(self, x: int, factor: float) -> int:
        """No parameter."""
        return x

    def softmax(self, x: int) -> int:
        """No parameter."""
        return x

    def activation(self, name: str, x: int, answer: bool = False) -> int:
        """No parameter."""
        return x

    def pool(self, mode: str, x: int, places: None) -> int:
        """No parameter."""
        return x

    def concatenate(self, parts: Sequence[int]) -> int:
        """The features of all."""
        return sum(parts)

    def normalize(self, x: int) -> int:
        """No parameter."""
        return x

    def output(self, name: str, x: int) -> int:
        """No parameter."""
        return x


class ShapeLayout:
    """Nowhere: there are no tokens."""

    def words(self) -> None:
        """None."""

    def types(self) -> None:
        """None."""

    def places(self, padding: int | None) -> None:
        """None."""

    def distances(self, numbers: object) -> Iterator[None]:
        """One, of None."""
        yield None

    def split_heads(
        self, query: int, key: int, value: int, heads: int
    ) -> Iterator[tuple[int, int, int]]:
        """The features of all heads."""
        yield query, key, value

    def merge_heads(self, parts: Sequence[int]) -> int:
        """The features of all heads."""
        return parts[0]

    def texts(self, x: int) -> Iterator[tuple[int, None]]:
        """One."""
        yield x, None

    def join(self, parts: Sequence[int]) -> int:
        """One."""
        return parts[0]

    def first(self, x: int) -> int:
        """As many features."""
        return x

    def padded(self, x: int) -> int:
        """As many features."""
        return x

    def column(self, x: int, number: int, masked: float | None = None) -> int:
        """One feature."""
        return 1
