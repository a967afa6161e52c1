"""Matrix products of many shapes: every way to tile, pack and share them, against exact sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import symgrad as sg
from codegen.prepare import prepare
from symgrad.ops.build import apply
from symgrad.program import Program
from symgrad.types import static_shape

# Rows, summed extent, columns: less than a register tile, several with a rest, several panels of columns with a rest.
SHAPES = [
    (1, 1024, 600), (1, 9, 40), (2, 70, 300), (5, 3, 1030), (13, 64, 64), (14, 130, 33), (29, 64, 289), (32, 96, 640),
    (43, 65, 530), (64, 64, 64), (71, 1030, 20), (71, 1100, 289), (75, 300, 1), (85, 70, 1030), (129, 257, 65),
    (150, 520, 100), (200, 1, 7),
]  # fmt: skip


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers whose products and sums are exact in any order."""
    return rng.integers(-4, 5, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES, ids=str)
def test_matrix_products_of_every_form(rows: int, depth: int, columns: int, dtype: str) -> None:
    rng = np.random.default_rng(rows + depth + columns)
    g = sg.Graph()
    x, y = g.input("x", (rows, depth), dtype), g.input("y", (depth, columns), dtype)
    xt, yt = g.input("xt", (depth, rows), dtype), g.input("yt", (columns, depth), dtype)
    f = sg.compile([x, y, xt, yt], [x @ y, xt.T @ y, x @ yt.T, xt.T @ yt.T])
    a, b = integers(rng, (rows, depth), dtype), integers(rng, (depth, columns), dtype)
    for got in f(a, b, np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)):
        np.testing.assert_array_equal(got, a @ b)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1100, 2100), (150, 1100, 300), (300, 300, 300)], ids=str)
def test_products_have_the_same_bits_on_any_number_of_threads(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(5)
    g = sg.Graph()
    x, y = g.input("x", (rows, depth)), g.input("y", (depth, columns))
    a, b = (rng.standard_normal(s, np.float32) for s in ((rows, depth), (depth, columns)))
    alone, two, three = (sg.compile([x, y], sg.tanh(x @ y), threads=n)(a, b) for n in (1, 2, 3))
    np.testing.assert_array_equal(alone, two)
    np.testing.assert_array_equal(alone, three)


@pytest.mark.parametrize(("batch", "rows"), list(itertools.product((1, 3, 9), (1, 40))), ids=str)
def test_batches_of_products_with_shared_and_own_factors(batch: int, rows: int) -> None:
    rng = np.random.default_rng(6)
    g = sg.Graph()
    x, y = g.input("x", (batch, rows, 70)), g.input("y", (batch, 70, 290))
    w = g.input("w", (70, 290))
    a, b, c = (integers(rng, s, "float32") for s in ((batch, rows, 70), (batch, 70, 290), (70, 290)))
    own, shared = sg.compile([x, y, w], [x @ y, sg.nn.relu(x) @ w])(a, b, c)
    np.testing.assert_array_equal(own, a @ b)
    np.testing.assert_array_equal(shared, np.maximum(a, 0) @ c)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(43, 65, 530), (85, 70, 1030), (300, 520, 300)], ids=str)
def test_arrays_that_the_rows_of_a_product_pass(rows: int, depth: int, columns: int) -> None:
    """Several arrays are read and written beside the sums: these are kept until their rows are whole."""
    rng = np.random.default_rng(9)
    g = sg.Graph()
    x, y, r = g.input("x", (rows, depth)), g.input("y", (depth, columns)), g.input("r", (rows, columns))
    s = g.state("s", np.zeros((rows, columns), np.float32))
    h = x @ y
    f = sg.compile([x, y, r], [h, sg.nn.relu(h + r), h * 2.0 - s], updates=[(s, s + h * r)])
    a, b, c = (integers(rng, shape, "float32") for shape in ((rows, depth), (depth, columns), (rows, columns)))
    for step in range(2):
        total, positive, less = f(a, b, c)
        np.testing.assert_array_equal(total, a @ b)
        np.testing.assert_array_equal(positive, np.maximum(a @ b + c, 0))
        np.testing.assert_array_equal(less, 2 * (a @ b) - step * (a @ b) * c)
    np.testing.assert_array_equal(s.value, 2 * (a @ b) * c)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("left", "right", "labels"),
    [
        ((1, 1024), (1024, 700), ("mk", "kn", "mn")),
        ((1000,), (1000, 600), ("k", "kn", "n")),
        ((768, 1), (768, 1024), ("km", "kn", "mn")),
        ((1024, 30, 20), (1024,), ("kab", "k", "ab")),
    ],
    ids=str,
)
def test_lines_of_a_large_matrix_that_one_row_meets_are_cut(
    left: tuple[int, ...], right: tuple[int, ...], labels: tuple[str, str, str], dtype: str
) -> None:
    """Each worker reads its part of memory in order; partial sums of whole numbers are exact."""
    rng = np.random.default_rng(10)
    g = sg.Graph()
    x, y = (g.input(name, shape, getattr(sg, dtype)) for name, shape in (("x", left), ("y", right)))
    product = apply("contract", x, y, left=labels[0], right=labels[1], out=labels[2])
    program = prepare(Program(g, (x, y), (product,)))
    (cut,) = (n for n in program.nodes if n.op.name == "contract")
    assert static_shape(cut.shape)[0] > 1
    assert cut.shape[1:] == product.shape
    a, b = integers(rng, left, dtype), integers(rng, right, dtype)
    for threads in (1, 2):
        got = sg.compile([x, y], sg.nn.relu(product) + 1.0, threads=threads)(a, b)
        np.testing.assert_array_equal(got, np.maximum(np.einsum("{},{}->{}".format(*labels), a, b), 0) + 1)
