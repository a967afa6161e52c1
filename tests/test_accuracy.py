"""Unary operators of floats keep to the errors that `symgrad/docs/accuracy.md` publishes."""

# pyright: basic
from __future__ import annotations

from functools import cache

import accuracy
import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph
from symgrad.operators import unary
from tests.precise import FUNCTIONS

# Numbers tried of each operator: among those the published table was measured on.
COUNT = 1 << 16
RESULTS = accuracy.load()
# What every elementary function promises, whatever the table says.
PROMISED = 2.0
DTYPES = {"float32": np.float32, "float64": np.float64}
# The reference is not exact: it has 29 bits more than a float32, 11 more than a float64.
SLACK = {"float32": 1e-4, "float64": 1e-2}


def numbers(name: str, dtype: str) -> np.ndarray:
    chunks = accuracy.float32_chunks(accuracy.CHUNK) if dtype == "float32" else accuracy.float64_chunks(name, 1)
    chunk = next(chunks)
    some = chunk[:: chunk.size // COUNT]
    worst = RESULTS[name][dtype].worst
    return np.append(some[:-1], np.array(float.fromhex(worst) if worst else 1.0, some.dtype))


def test_every_operator_is_listed() -> None:
    missing = [name for name in accuracy.unary_operators() if name not in RESULTS]
    assert not missing, f"measure them: python -m tests.accuracy --ops {','.join(missing)}"
    assert list(RESULTS) == accuracy.unary_operators()
    page = accuracy.TABLE.read_text()
    for name in RESULTS:
        assert set(RESULTS[name]) == set(DTYPES), name
        assert f"| `{name}` |" in page


def test_the_page_is_what_was_measured() -> None:
    assert accuracy.TABLE.read_text() == accuracy.table(RESULTS, list(RESULTS))


def test_nothing_measured_is_wrong() -> None:
    for name, row in RESULTS.items():
        for error in row.values():
            assert error.ulp <= PROMISED, name
            assert not error.wrong, name
            assert error.inputs >= 10_000_000, name


@cache
def compiled(dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The numbers of every operator, and its results."""
    graph = Graph()
    inputs = {name: graph.input(name, (COUNT,), dtype) for name in RESULTS}
    outputs = {name: unary(name, node) for name, node in inputs.items()}
    arrays = {name: numbers(name, dtype) for name in RESULTS}
    return arrays, sg.compile(list(inputs.values()), outputs, threads=1)(**arrays)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bounds_hold(dtype: str) -> None:
    if dtype == "float64" and not accuracy.has_wide_floats():
        pytest.skip("longdouble has no more digits than float64 here")
    arrays, found = compiled(dtype)
    for name, got in found.items():
        published = RESULTS[name][dtype]
        places, errors, wrong = accuracy.compare(arrays[name], got, accuracy.reference(name, arrays[name]))
        assert not wrong, name
        assert np.max(errors, initial=0) <= published.ulp + SLACK[dtype], (
            name,
            arrays[name][places[np.argmax(errors)]],
        )


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bounds_hold_in_many_digits(dtype: str) -> None:
    """Some of the numbers and the worst one, against values that share nothing with the C library."""
    arrays, found = compiled(dtype)
    for name, got in found.items():
        if name not in FUNCTIONS or got.dtype == np.bool_:
            continue
        some = np.append(np.arange(5, COUNT, COUNT // 24), COUNT - 1)
        for x, result in zip(arrays[name][some], got[some], strict=True):
            if np.isfinite(x) and np.isfinite(result) and (name != "erfc" or abs(x) < 1e3):  # mpmath gives up there
                error = accuracy.true_error(name, x, result)
                assert error <= RESULTS[name][dtype].ulp + SLACK[dtype], (name, x, result, error)


def test_the_comparison_sees_errors() -> None:
    x = np.array([1, 2, 3, 4, 5], np.float32)
    true = np.exp(x.astype(np.float64))
    got = true.astype(np.float32)
    assert accuracy.compare(x, got, true)[0].size == 0
    got[1] = np.nextafter(np.nextafter(got[1], np.float32(9)), np.float32(9))
    got[3] = np.nan
    places, errors, wrong = accuracy.compare(x, got, true)
    assert places.tolist() == [1]
    assert 1.5 <= errors[0] <= 2.5
    assert wrong == 1
    assert accuracy.true_error("exp", x[1], got[1]) == pytest.approx(errors[0], abs=1e-6)
    zeros = np.zeros(2, np.float32)
    assert accuracy.compare(zeros, np.array([0.0, -0.0], np.float32), np.zeros(2))[2] == 1
    largest = np.finfo(np.float32).max
    over = np.array([float(largest) * 1.5])
    assert accuracy.compare(zeros[:1], np.array([np.inf], np.float32), over)[0].size == 0
    assert accuracy.compare(zeros[:1], np.array([largest]), over)[1].tolist() == [1.0]
