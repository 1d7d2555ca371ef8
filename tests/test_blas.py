"""A BLAS may raise any floating-point exception; nobody hears of it, and no bit depends on it."""

import ast
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import npfp8
from bert_numpy.engines import functions
from npfp8 import arrays
from npfp8.arrays import blas_product

#: Where a matrix product may stand by itself: in blas_product, and where all numbers are integers.
ALLOWED = {"npfp8/arrays.py": 1, "bert_numpy/tasks/metrics.py": 3}


def products_in(source):
    """The lines that multiply matrices by NumPy's own functions or by the operator."""
    found = []
    for node in ast.walk(ast.parse(source)):
        operator = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
        function = (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "np"
            and node.attr in {"matmul", "dot", "vdot", "inner", "tensordot", "matvec", "vecdot"}
        )
        if operator or function:
            found.append(node.lineno)
    return sorted(found)


def test_products_are_found():
    assert products_in("a @ b\nnp.matmul(a, b)\nx = np.dot\ny = np.multiply(a, b)\n") == [1, 2, 3]


def test_every_product_is_quiet():
    found = {
        path.relative_to(ROOT).as_posix(): len(products_in(path.read_text(encoding="utf-8")))
        for package in ("npfp8", "bert_numpy")
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert {path: count for path, count in found.items() if count} == ALLOWED


@pytest.fixture
def noisy(monkeypatch):
    """NumPy's product, as on a processor whose BLAS computes with what it then drops."""
    calls, product = [], np.matmul

    def matmul(*args, **kwargs):
        calls.append(np.geterr()["invalid"])
        np.subtract(np.float32(np.inf), np.float32(np.inf))
        np.multiply(np.float32(3e38), np.float32(3e38))
        np.divide(np.float32(1), np.float32(0))
        return product(*args, **kwargs)

    monkeypatch.setattr(np, "matmul", matmul)
    return calls


CODES = np.arange(0, 96, dtype=np.uint8).reshape(8, 12)


def quantized(fmt):
    x = (CODES.astype(np.float32) - 40) / 8
    return npfp8.quantize(x, fmt), npfp8.quantize(x, fmt).mT


@pytest.mark.parametrize(
    ("a", "b", "accumulate"),
    [
        (*quantized(npfp8.E4M3FN), "exact"),
        (*quantized(npfp8.E4M3FN), "float32"),
        (*quantized(npfp8.E5M2), "exact"),
        (*quantized(npfp8.INT8), "exact"),
        (*quantized(npfp8.MXFP4), "exact"),
        (*quantized(npfp8.MXFP4), "block-sums"),
    ],
)
def test_products_of_quantized_tensors(noisy, a, b, accumulate):
    with np.errstate(all="raise"):
        npfp8.matmul(a, b, accumulate=accumulate)
    assert set(noisy) == {"ignore"}


def test_products_of_floats(noisy):
    x = CODES.astype(np.float32)
    with np.errstate(all="raise"):
        npfp8.matmul_float32(x, x.T)
        x[2, 3] = np.inf
        npfp8.matmul_float32(x, x.T)
        functions.linear(x[:2], x, np.zeros(8, np.float32))
        blas_product(x[:2], x[:2].T)
    assert set(noisy) == {"ignore"}


def test_the_tests_own_products_are_quiet():
    """NumPy warns of this sum, as some BLAS does of others: it is no error here."""
    infinite = np.full((1, 2), np.inf, np.float32)
    assert np.isnan(infinite @ np.float32([[1], [-1]]))


def test_only_few_rows_are_multiplied_in_pieces() -> None:
    """A piece has at most a million multiplications, the least number of pieces, and 16 outputs."""
    assert [arrays._pieces(rows, 384, 1536, True) for rows in (1, 2, 4, 16, 32, 64, 65)] == [
        1, 2, 4, 16, 32, 64, 1
    ]  # fmt: skip
    assert arrays._pieces(64, 768, 3072, True) == 1  # pieces of 12 outputs
    assert arrays._pieces(16, 384, 77, True) == 1
    assert arrays._pieces(16, 384, 77 * 8, True) == 4
    assert arrays._pieces(0, 384, 1536, True) == arrays._pieces(16, 0, 1536, True) == 1


def test_pieces_of_a_transpose() -> None:
    """They have at most 1,200 results, too, and at least 24 outputs."""
    assert [arrays._pieces(rows, 384, 1536, False) for rows in (1, 4, 16, 32, 50, 51)] == [
        2, 8, 32, 64, 64, 1
    ]  # fmt: skip
    assert arrays._pieces(16, 3072, 768, False) == 1  # pieces of 12 outputs
    assert arrays._pieces(16, 384, 77, False) == 1
    assert arrays._pieces(800, 128, 128, False) == 1


@pytest.mark.parametrize("rows", [4, 16, 50])
def test_products_of_few_rows_do_not_depend_on_the_layout(rows: int) -> None:
    """A weight that was saved and loaded may lie in memory by columns."""
    generator = np.random.default_rng(rows)
    x = generator.normal(size=(rows, 96)).astype(np.float32)
    y = generator.normal(size=(96, 384)).astype(np.float32)
    assert arrays._pieces(rows, 96, 384, False) > 1
    by_columns = blas_product(x, np.asfortranarray(y))
    for same in (y, np.repeat(y, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(blas_product(x, same), by_columns)


@pytest.mark.parametrize("rows", [1, 16, 40, 64, 65])
@pytest.mark.parametrize("shape", [(512, 128), (128, 512), (3, 128, 256), (2, 3, 96, 48)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_with_exact_sums_in_any_layout(
    rows: int, shape: tuple[int, ...], dtype: Any
) -> None:
    """Cut into pieces or not, of one matrix or a stack of them."""
    generator = np.random.default_rng(rows)
    x = generator.integers(-99, 100, (rows, shape[-2]))
    y = generator.integers(-99, 100, shape)
    expected = np.einsum("ik,...kj->...ij", x, y)
    transposed = np.ascontiguousarray(y.swapaxes(-2, -1)).swapaxes(-2, -1)
    backwards = np.ascontiguousarray(y[..., ::-1])[..., ::-1]
    for same in (y, transposed, np.repeat(y, 2, axis=-1)[..., ::2], backwards):
        found = blas_product(x.astype(dtype), same.astype(dtype, order="K"))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


def test_layouts_of_right_operands() -> None:
    """A matrix that is laid out as it should be is not copied."""
    small, large = np.ones((512, 512)), np.ones((513, 512))
    for x in (small, large.T):
        assert arrays.as_right_operand(x) is x
    assert arrays.as_right_operand(small.T).flags.c_contiguous
    assert arrays.as_right_operand(large).flags.f_contiguous
