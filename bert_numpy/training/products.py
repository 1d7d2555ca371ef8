"""The matrix products of training: one forward, and the two of its gradients.

A product ``y = a b`` has two gradients, ``da = dy b^T`` and ``db = a^T dy``. The tape asks a
:class:`Products` for all three, at every site of the pass, and knows nothing of the numbers in
which they are computed. So training in other numbers is another :class:`Products`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from bert_numpy.engines.site import Site
from npfp8.arguments import wrong_type
from npfp8.arrays import Array, blas_product

__all__ = ["FloatProducts", "Products", "require_products"]


class Products(Protocol):
    """The three matrix products of each site, in one step of training.

    Both operands have the same leading axes, ``a`` (..., M, K) and ``b`` (..., K, N). A linear
    layer is the product of its input, (tokens, K), and of its transposed weight, (K, N); the tape
    adds the bias. The sites of query, key and value get the same array as ``a``. Layers that
    share parameters share the site's name, so a site may occur several times in a step, with
    several layers' numbers.
    """

    def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, Any]:
        """Compute ``y = a b``, (..., M, N), and whatever :meth:`backward` needs.

        The operands belong to the pass and must not be changed, but may be kept. The result
        belongs to the tape, which adds the bias to it in place.
        """

    def backward(self, site: Site, saved: Any, dy: Array) -> tuple[Array, Array]:
        """Compute the gradients ``dy b^T``, (..., M, K), and ``a^T dy``, (..., K, N).

        ``dy`` must not be changed. Calls come in the reverse order of :meth:`forward`'s.
        """

    def following(self) -> Products:
        """Return the products of the next step: those that carry scales or counts along.

        The loop of training calls it once, after the gradients of a step.
        """


@dataclass(frozen=True)
class FloatProducts:
    """Products of float arrays by the BLAS, in the arrays' own precision.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.engines.site import Site
    >>> products, site = FloatProducts(), Site("classifier")
    >>> a, b = np.float32([[1, 2]]), np.float32([[3], [4]])
    >>> y, saved = products.forward(site, a, b)
    >>> y
    array([[11.]], dtype=float32)
    >>> da, db = products.backward(site, saved, np.float32([[10]]))
    >>> da, db
    (array([[30., 40.]], dtype=float32), array([[10.],
           [20.]], dtype=float32))
    """

    def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
        """Compute ``a b``, and keep both operands."""
        return blas_product(a, b), (a, b)

    def backward(self, site: Site, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        """Compute ``dy b^T`` and ``a^T dy``."""
        a, b = saved
        return blas_product(dy, b.swapaxes(-1, -2)), blas_product(a.swapaxes(-1, -2), dy)

    def following(self) -> FloatProducts:
        """Return the same products: they carry nothing along."""
        return self


def require_products(products: object) -> None:
    """Raise TypeError unless an object has the methods of :class:`Products`."""
    methods = ("forward", "backward", "following")
    if isinstance(products, type) or not all(callable(getattr(products, x, 0)) for x in methods):
        raise wrong_type("products", f"an object with {', '.join(methods)}", products)
