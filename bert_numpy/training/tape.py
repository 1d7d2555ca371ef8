"""A tape around the forward pass: what was computed from what, and the way back.

:class:`TapeEngine` computes each operation as the engine inside it does, and notes on a
:class:`Tape` which nodes it used and how a gradient passes back through it
(:mod:`bert_numpy.training.gradients`). :class:`TapeLayout` does the same for the moves of a
layout. So the pass itself, :mod:`bert_numpy.model.encoder`, is differentiated as it is: reverse
accumulation, as in Linnainmaa (1970) and in Griewank and Walther, *Evaluating Derivatives*
(2008), chapter 3.

The steps are noted in the order of the pass. Backwards, every use of a node comes before the
step that made it, so each step finds its whole gradient.

No way back refers to the engine or the layout, which refer to the tape: in a circle, its arrays
would stay in memory until the interpreter looks for circles, many steps of training later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bert_numpy.engines.engine import Engine, Table, Weights
from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.encoder import Pass
from bert_numpy.model.heads import outputs
from bert_numpy.model.model import Model, batch_of, has_pooler
from bert_numpy.model.packing import Batch
from bert_numpy.training import gradients
from bert_numpy.training.products import FloatProducts, Products, require_products
from npfp8.arguments import array_of, require, require_function
from npfp8.arrays import Array, IntArray

__all__ = ["Node", "Tape", "TapeEngine", "TapeLayout", "Taped", "float_parameter", "tape"]

#: Computes the gradients of a step's operands from those of its results, of one result or of
#: several. None stands for 0.
Backward = Callable[[Array], Sequence[Array | None]]
BackwardAll = Callable[[Sequence[Array | None]], Sequence[Array | None]]


def float_parameter(weights: Weights, name: str) -> Array:
    """Return a parameter of numbers; raise :class:`BertNumpyError` for one of codes."""
    weight = weights[name]
    if not isinstance(weight, np.ndarray):
        raise BertNumpyError(f"{name}: expected float32 numbers to train, found {weight!r}")
    return weight


@dataclass(frozen=True, eq=False)
class Node:
    """An array of the pass.

    ``wanted`` is False if no parameter that is trained leads to it: no gradient is computed.
    """

    value: Array
    wanted: bool = True


class Step(NamedTuple):
    """One operation on the tape: its operands, its results, and the way back."""

    operands: tuple[Node, ...]
    results: tuple[Node, ...]
    backward: BackwardAll


@dataclass(frozen=True, eq=False)
class Tape:
    """The operations of one run in their order, and its parameters.

    Attributes
    ----------
    trains : callable (str) -> bool
        Tells whether a parameter is trained, by its name.
    steps : list of Step
    parameters : dict of str to Node
        Two names of one array, such as those of tied embeddings, have one node.
    """

    trains: Callable[[str], bool] = lambda _: True
    steps: list[Step] = field(default_factory=list)
    parameters: dict[str, Node] = field(default_factory=dict)
    _nodes: dict[int, Node] = field(default_factory=dict)

    def parameter(self, weights: Weights, name: str) -> Node:
        """Return the node of a parameter."""
        weight = float_parameter(weights, name)
        if id(weight) not in self._nodes:
            self._nodes[id(weight)] = Node(weight, self.trains(name))
            self.parameters[name] = self._nodes[id(weight)]
        return self._nodes[id(weight)]

    def note(self, operands: Sequence[Node], value: Array, backward: Backward) -> Node:
        """Note an operation with one result."""

        def only(dys: Sequence[Array | None]) -> Sequence[Array | None]:
            (dy,) = dys
            return () if dy is None else backward(dy)

        return self.note_all(operands, [value], only)[0]

    def note_all(
        self, operands: Sequence[Node], values: Sequence[Array], backward: BackwardAll
    ) -> list[Node]:
        """Note an operation with several results, whose gradients ``backward`` gets together."""
        wanted = any(node.wanted for node in operands)
        results = [Node(value, wanted) for value in values]
        if wanted:
            self.steps.append(Step(tuple(operands), tuple(results), backward))
        return results

    def gradients(self, of_results: Sequence[tuple[Node, Array]]) -> dict[str, Array]:
        """Go back from the gradients of some nodes to those of the parameters.

        A parameter that the nodes do not depend on is not among them. Each array has one
        gradient, under the name that the pass used first.
        """
        found: dict[Node, Array] = {}
        for node, dy in of_results:
            _accumulate(found, node, dy)
        for operands, results, backward in reversed(self.steps):
            dys = [found.pop(node, None) for node in results]
            if all(dy is None for dy in dys):
                continue
            for node, dx in zip(operands, backward(dys), strict=True):
                if dx is not None and node.wanted:
                    _accumulate(found, node, dx)
        return {name: found[node] for name, node in self.parameters.items() if node in found}


def _accumulate(found: dict[Node, Array], node: Node, dx: Array) -> None:
    # Not in place: an array may be the gradient of several nodes.
    found[node] = found[node] + dx if node in found else dx


@dataclass(frozen=True, eq=False)
class TapeLayout:
    """The moves of a batch's layout, noted on a tape."""

    batch: Batch
    tape: Tape

    def words(self) -> IntArray:
        """Return the ids: (tokens,)."""
        return self.batch.words()

    def types(self) -> IntArray:
        """Return the types: (tokens,)."""
        return self.batch.types()

    def places(self, padding: int | None) -> IntArray:
        """Return the position numbers: (tokens,)."""
        return self.batch.places(padding)

    def distances(self, numbers: IntArray) -> Iterator[IntArray]:
        """Yield the numbers of the distances, set by set."""
        return self.batch.distances(numbers)

    def split_heads(
        self, query: Node, key: Node, value: Node, heads: int
    ) -> Iterator[tuple[Node, Node, Node]]:
        """Split heads; back, every token gets the gradients of all heads side by side."""
        groups = self.batch.packing.groups
        operands = (query, key, value)
        split = list(self.batch.split_heads(query.value, key.value, value.value, heads))

        def backward(dys: Sequence[Array | None]) -> list[Array]:
            merged = [np.zeros_like(x.value) for x in operands]
            for i, group in enumerate(groups):
                q, k, v = dys[3 * i : 3 * i + 3]
                k = None if k is None else k.swapaxes(-1, -2)
                places = (group.queries, group.keys, group.keys)
                for dx, at, dy in zip(merged, places, (q, k, v), strict=True):
                    if dy is not None:
                        dx[at] = dy.swapaxes(1, 2).reshape(*at.shape, -1)
            return merged

        nodes = self.tape.note_all(operands, [x for triple in split for x in triple], backward)
        for i in range(0, len(nodes), 3):
            yield nodes[i], nodes[i + 1], nodes[i + 2]

    def merge_heads(self, parts: Sequence[Node]) -> Node:
        """Merge heads; back, the features of a token are split again."""
        groups = self.batch.packing.groups
        heads = parts[0].value.shape[1]

        def backward(dy: Array) -> list[Array]:
            return [
                dy[group.queries].reshape(*group.queries.shape, heads, -1).swapaxes(1, 2)
                for group in groups
            ]

        merged = self.batch.merge_heads([x.value for x in parts])
        return self.tape.note(parts, merged, backward)

    def texts(self, x: Node) -> Iterator[tuple[Node, IntArray]]:
        """Yield the tokens of texts; back, each gets its own gradient."""
        texts = list(self.batch.texts(x.value))
        groups = self.batch.packing.groups

        def backward(dys: Sequence[Array | None]) -> list[Array]:
            dx = np.zeros_like(x.value)
            for group, dy in zip(groups, dys, strict=True):
                if dy is not None:
                    dx[group.keys] = dy
            return [dx]

        nodes = self.tape.note_all([x], [tokens for tokens, _ in texts], backward)
        for node, (_, places) in zip(nodes, texts, strict=True):
            yield node, places

    def join(self, parts: Sequence[Node]) -> Node:
        """Join texts; back, each set gets its rows."""
        groups = self.batch.packing.groups
        joined = self.batch.join([x.value for x in parts])
        return self.tape.note(parts, joined, lambda dy: [dy[group.rows] for group in groups])

    def first(self, x: Node) -> Node:
        """Select the first tokens; back, all others get 0."""
        first = self.batch.packing.first

        def backward(dy: Array) -> list[Array]:
            dx = np.zeros_like(x.value)
            dx[first] = dy
            return [dx]

        return self.tape.note([x], self.batch.first(x.value), backward)

    def padded(self, x: Node) -> Node:
        """Pad; back, the padding is left out."""
        tokens = self.batch.packing.tokens
        return self.tape.note(
            [x],
            self.batch.padded(x.value),
            lambda dy: [dy.reshape(-1, dy.shape[-1])[tokens]],
        )

    def column(self, x: Node, number: int, masked: float | None = None) -> Node:
        """Pad one feature; back, other features and what is masked get 0."""
        packing = self.batch.packing

        def backward(dy: Array) -> list[Array]:
            dx = np.zeros_like(x.value)
            dx[:, number] = packing.take(dy if masked is None else dy * packing.mask)
            return [dx]

        return self.tape.note([x], self.batch.column(x.value, number, masked), backward)


@dataclass(frozen=True, eq=False)
class TapeEngine(Engine[Node]):
    """An engine that computes as another does, and notes every operation on a tape.

    The values are those of ``computes``. The gradients are those of the operations' rules: what
    the other engine rounds is passed straight through. Matrix products are asked of
    ``products``, in both directions.

    Attributes
    ----------
    computes : Engine
        An engine of arrays, such as :class:`bert_numpy.engines.float.FloatEngine`.
    weights : mapping of str to ndarray
    tape : Tape
    products : Products
    """

    computes: Engine[Any]
    weights: Weights
    tape: Tape
    products: Products = field(default_factory=FloatProducts)

    def parameter(self, name: str) -> Node:
        """Return the node of a parameter."""
        return self.tape.parameter(self.weights, name)

    def gather(self, tables: Sequence[Table]) -> Node:
        """Add rows of tables; back, see :func:`gradients.rows`."""
        nodes = [self.parameter(name) for name, *_ in tables]

        def backward(dy: Array) -> list[Array | None]:
            return [
                gradients.rows(numbers, len(node.value), dy) if node.wanted else None
                for node, (*_, numbers) in zip(nodes, tables, strict=True)
            ]

        return self.tape.note(nodes, self.computes.gather(tables), backward)

    def position_bias(self, table: Table) -> Node:
        """Look up biases; back, see :func:`gradients.position_bias`."""
        node, numbers = self.parameter(table[0]), table[-1]
        value = self.computes.position_bias(table)
        return self.tape.note(
            [node], value, lambda dy: [gradients.position_bias(numbers, len(node.value), dy)]
        )

    def linears(self, sites: Sequence[Site], x: Node) -> Iterator[Node]:
        """Yield ``x W^T + b``; back, see :class:`Products` and :func:`gradients.bias`."""
        for site in sites:
            yield self.linear(site, x)

    def linear(self, site: Site, x: Node) -> Node:
        """Compute one linear layer."""
        weight, b = (self.parameter(f"{site.name}.{part}") for part in ("weight", "bias"))
        rows = x.value if x.value.ndim == 2 else x.value.reshape(-1, x.value.shape[-1])
        products = self.products
        y, saved = products.forward(site, rows, weight.value.T)
        y += b.value

        def backward(dy: Array) -> list[Array]:
            dy_rows = dy.reshape(y.shape)
            dx, dw = products.backward(site, saved, dy_rows)
            return [dx.reshape(x.value.shape), dw.T, gradients.bias(dy_rows)]

        return self.tape.note([x, weight, b], y.reshape(*x.value.shape[:-1], -1), backward)

    def product(self, site: Site, a: Node, b: Node) -> Node:
        """Multiply two activations; back, see :class:`Products`."""
        products = self.products
        y, saved = products.forward(site, a.value, b.value)
        return self.tape.note([a, b], y, lambda dy: products.backward(site, saved, dy))

    def add(self, x: Node, y: Node) -> Node:
        """Add; back, see :func:`gradients.add`."""
        shapes = (x.value.shape, y.value.shape)
        value = self.computes.add(x.value, y.value)
        return self.tape.note([x, y], value, lambda dy: [gradients.add(dy, s) for s in shapes])

    def multiply(self, x: Node, factor: float) -> Node:
        """Multiply by a number; back too."""
        value = self.computes.multiply(x.value, factor)
        return self.tape.note([x], value, lambda dy: [gradients.multiply(dy, factor)])

    def softmax(self, x: Node) -> Node:
        """Compute the softmax; back, see :func:`gradients.softmax`."""
        y = self.computes.softmax(x.value)
        return self.tape.note([x], y, lambda dy: [gradients.softmax(y, dy)])

    def layer_norm(self, name: str, x: Node, eps: float) -> Node:
        """Normalise rows; back, see :func:`gradients.layer_norm`."""
        weight, b = (self.parameter(f"{name}.{part}") for part in ("weight", "bias"))
        y = self.computes.layer_norm(name, x.value, eps)
        return self.tape.note(
            [x, weight, b], y, lambda dy: gradients.layer_norm(x.value, weight.value, eps, dy)
        )

    def activation(self, name: str, x: Node, answer: bool = False) -> Node:
        """Apply a function; back, see :func:`gradients.activation`."""
        y = self.computes.activation(name, x.value, answer)
        return self.tape.note([x], y, lambda dy: [gradients.activation(name, x.value, y, dy)])

    def pool(self, mode: str, x: Node, places: IntArray) -> Node:
        """Pool tokens; back, see :data:`gradients.POOLINGS`."""
        y = self.computes.pool(mode, x.value, places)
        return self.tape.note([x], y, lambda dy: [gradients.POOLINGS[mode](x.value, places, dy)])

    def concatenate(self, parts: Sequence[Node]) -> Node:
        """Concatenate; back, see :func:`gradients.concatenate`."""
        widths = [x.value.shape[-1] for x in parts]
        value = self.computes.concatenate([x.value for x in parts])
        return self.tape.note(parts, value, lambda dy: gradients.concatenate(widths, dy))

    def normalize(self, x: Node) -> Node:
        """Divide rows by their norms; back, see :func:`gradients.normalize`."""
        y = self.computes.normalize(x.value)
        return self.tape.note([x], y, lambda dy: [gradients.normalize(x.value, y, dy)])

    def output(self, name: str, x: Node) -> Node:
        """Return ``x``: its reader checks for NaN."""
        return x

    def counted(self) -> Mapping[str, Any]:
        """Return the counts of the engine inside."""
        return self.computes.counted()


@dataclass(frozen=True, eq=False)
class Taped:
    """A forward pass that can be gone back.

    Attributes
    ----------
    outputs : mapping of str to ndarray
        The outputs, under the names of :class:`bert_numpy.ModelOutput`.

    Examples
    --------
    >>> import bert_numpy
    >>> from bert_numpy.training.tape import tape
    >>> run = tape(bert_numpy.load("bert-tiny-sst2"), [[101, 2204, 3185, 102]])
    >>> list(run.outputs)
    ['last_hidden_state', 'pooler_output', 'logits']
    """

    outputs: Mapping[str, Array]
    _nodes: Mapping[str, Node]
    _tape: Tape

    def gradients(self, of_outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the gradients of the parameters from those of some outputs.

        Parameters
        ----------
        of_outputs : mapping of str to ndarray
            The gradient of the loss with respect to each output that it reads.

        Returns
        -------
        dict of str to ndarray
            By name, of each parameter that is trained and that the loss depends on.

        Raises
        ------
        TypeError
            If the gradients are no mapping of arrays.
        BertNumpyError
            If the model has no such output, or the output another shape.

        Examples
        --------
        >>> import bert_numpy
        >>> import numpy as np
        >>> from bert_numpy.training.tape import tape
        >>> run = tape(bert_numpy.load("bert-tiny-sst2"), [[101, 2204, 3185, 102]])
        >>> run.gradients({"logits": np.float32([[1, -1]])})["classifier.bias"]
        array([ 1., -1.], dtype=float32)
        """
        require("of_outputs", of_outputs, Mapping, "a mapping of outputs to their gradients")
        given = []
        for name, dy in of_outputs.items():
            if name not in self.outputs:
                known = ", ".join(self.outputs)
                raise BertNumpyError(f"of_outputs: expected some of {known}, found {name!r}")
            array, shape = array_of(name, dy), self.outputs[name].shape
            if array.shape != shape:
                raise BertNumpyError(f"{name}: expected a gradient {shape}, found {array.shape}")
            given.append((self._nodes[name], array.reshape(self._nodes[name].value.shape)))
        with np.errstate(all="ignore"):
            return self._tape.gradients(given)


def tape(
    model: Model,
    input_ids: npt.ArrayLike,
    attention_mask: npt.ArrayLike | None = None,
    token_type_ids: npt.ArrayLike | None = None,
    *,
    products: Products | None = None,
    trains: Callable[[str], bool] = lambda _: True,
) -> Taped:
    """Run a model on a batch, so that the gradients of its parameters can be computed.

    Parameters
    ----------
    model : Model
        A model of float parameters. Its engine computes everything but the matrix products.
    input_ids, attention_mask, token_type_ids
        The batch, as for :class:`bert_numpy.Model`.
    products : Products, optional
        The matrix products, by default of float arrays.
    trains : callable (str) -> bool, optional
        Tells which parameters have gradients, by name; by default all.

    Raises
    ------
    BertNumpyError
        If a dtype, a shape or an id is not as expected, or a parameter is quantized.

    Examples
    --------
    >>> import bert_numpy
    >>> import numpy as np
    >>> from bert_numpy.training.tape import tape
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> run = tape(model, [[101, 2204, 3185, 102]])
    >>> run.outputs["logits"].shape
    (1, 2)
    >>> found = run.gradients({"logits": np.float32([[1, -1]])})
    >>> found["classifier.bias"], found["embeddings.word_embeddings.weight"].shape
    (array([ 1., -1.], dtype=float32), (30522, 128))
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    products = FloatProducts() if products is None else products
    require_products(products)
    require_function("trains", trains)
    batch = batch_of(model.config, input_ids, attention_mask, token_type_ids)
    noted = Tape(trains)
    computes = model.engine(model.weights, batch)
    engine = TapeEngine(computes, model.weights, noted, products)
    with np.errstate(all="ignore"):  # readers of the outputs check that they are finite
        run = Pass(model.config, engine, TapeLayout(batch, noted))
        nodes = outputs(run, has_pooler(model))
    values = {name: node.value for name, node in nodes.items()}
    if model.config.head.has_choices and "logits" in values:
        values["logits"] = values["logits"].reshape(np.shape(input_ids)[:2])
    return Taped(values, nodes, noted)
