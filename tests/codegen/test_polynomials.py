"""Elementary functions: special values, large angles, powers, and the same bits for every width.

Errors over the whole range are measured and held to in `test_accuracy.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scalar_runner import FLOATS, LANES, Library, operation, samples

from codegen import polynomials
from codegen.scalar_builder import Value
from symgrad.types import DType, float32, float64
from tests.oracles import differs
from tests.ulp import has_wide_floats, mp, true_units, units

UNARY = ("exp", "log", "log1p", "expm1", "sin", "cos", "tan", "tanh", "sigmoid", "erf")


@cache
def library(lanes: int, cpu: str = "", features: str | None = None) -> Library:
    entries: dict[str, Any] = {f"{n}_{d}": (operation(n), [d], lanes) for n in UNARY for d in FLOATS}
    entries |= {f"power_{d}": (operation("power"), [d, d], lanes) for d in FLOATS}
    return Library(entries, cpu, features)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_large_angles(name: str, dtype: DType) -> None:
    """Next to multiples of pi/2, the worst of float64 among them, and where it is only known by hundreds of digits."""
    rng = np.random.default_rng(7)
    near = rng.integers(-(10**9), 10**9, 100) * (np.pi / 2)
    large = 2.0 ** rng.uniform(20, 120 if dtype is float32 else 1020, 50)
    x = np.concatenate([near, large, [6381956970095103.0 * 2.0 ** (797 if dtype is float64 else 0)]]).astype(dtype.np)
    got = library(8)[f"{name}_{dtype}"](x)
    with mp.workprec(1400):
        for v, y in zip(x.tolist(), got, strict=True):
            assert true_units(y, getattr(mp, name)(mp.mpf(v))) <= 2, (v, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values(dtype: DType) -> None:
    inf, nan = np.inf, np.nan
    table: dict[str, list[tuple[float, float]]] = {
        "exp": [(inf, inf), (-inf, 0.0), (0.0, 1.0), (-0.0, 1.0), (1e4, inf), (-1e4, 0.0)],
        "log": [(inf, inf), (0.0, -inf), (-0.0, -inf), (-1.0, nan), (-inf, nan), (1.0, 0.0)],
        "log1p": [(inf, inf), (-1.0, -inf), (-2.0, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0)],
        "expm1": [(inf, inf), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e4, inf), (-1e4, -1.0)],
        "sin": [(inf, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0)],
        "cos": [(inf, nan), (-inf, nan), (0.0, 1.0), (-0.0, 1.0)],
        "tan": [(inf, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0)],
        "tanh": [(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (50.0, 1.0), (-50.0, -1.0)],
        "sigmoid": [(inf, 1.0), (-inf, 0.0), (0.0, 0.5), (-0.0, 0.5), (1e4, 1.0), (-1e4, 0.0)],
        "erf": [(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (10.0, 1.0), (-10.0, -1.0)],
    }
    for name, rows in table.items():
        x = np.array([*(a for a, _ in rows), nan], dtype.np)
        expected = np.array([*(b for _, b in rows), nan], dtype.np)
        got = library(8)[f"{name}_{dtype}"](x)
        np.testing.assert_array_equal(got, expected, err_msg=name)
        numbers = ~np.isnan(expected)
        assert np.array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers]), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_odd_functions_are_odd_and_keep_subnormals(dtype: DType) -> None:
    x = np.abs(samples(dtype, 1 << 12))
    x = x[np.isfinite(x)]
    tiny = np.finfo(dtype.np).smallest_subnormal * np.arange(1, 100, dtype=dtype.np)
    for name in ("sin", "tan", "tanh", "erf"):
        function = library(8)[f"{name}_{dtype}"]
        assert np.array_equal(function(-x), -function(x)), name
    for name in ("sin", "tan", "tanh", "log1p", "expm1"):
        assert np.array_equal(library(8)[f"{name}_{dtype}"](tiny), tiny), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_width_gives_the_same_bits(dtype: DType) -> None:
    x = samples(dtype, 1 << 13)
    y = np.roll(x, 17)
    for name in UNARY:
        one = library(1)[f"{name}_{dtype}"](x)
        for lanes in LANES[1:]:
            assert not differs(library(lanes)[f"{name}_{dtype}"](x), one), (name, lanes)
    one = library(1)[f"power_{dtype}"](x, y)
    assert not any(differs(library(lanes)[f"power_{dtype}"](x, y), one) for lanes in LANES[1:])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_machine_without_fused_multiply_add_gives_the_same_bits(dtype: DType) -> None:
    x = samples(dtype, 1 << 9)
    plain = library(4, "x86-64", "")
    for name in UNARY:
        assert not differs(plain[f"{name}_{dtype}"](x), library(4)[f"{name}_{dtype}"](x)), name
    y = np.roll(x, 17)
    assert not differs(plain[f"power_{dtype}"](x, y), library(4)[f"power_{dtype}"](x, y))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_products_with_powers_of_two_are_rounded_once(dtype: DType, lanes: int) -> None:
    """Into the subnormal numbers and beyond the largest one, in one instruction or two steps."""
    c = polynomials.format_of(Value("", dtype, 1))
    rng = np.random.default_rng(11)
    x = rng.uniform(0.5, 2, 1 << 12).astype(dtype.np)
    n = rng.integers(-c.bias - c.mantissa - 9, c.bias + 9, x.size)
    scaled = Library({"scaled": (lambda b, x, n: polynomials.scale(b, x, b.add(n, c.magic)), [dtype, dtype], lanes)})
    assert not differs(scaled["scaled"](x, n.astype(dtype.np)), np.ldexp(x, n))


@pytest.mark.skipif(not has_wide_floats(), reason="no extended precision here")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_power(dtype: DType) -> None:
    rng = np.random.default_rng(9)
    count = 1 << 15
    inf, nan = np.inf, np.nan
    ends = 126.0 if dtype is float32 else 1020.0
    special = [
        0.0,
        -0.0,
        1,
        -1,
        2,
        -2,
        0.5,
        -0.5,
        inf,
        -inf,
        nan,
        3,
        -3,
        1e-40,
        -1e-40,
        1e30,
        -1e30,
        9007199254740993.0,
    ]
    base = 2.0 ** rng.uniform(-ends, ends, count)
    columns = (
        (base, rng.uniform(-5, 5, count)),
        (base, rng.uniform(-ends, ends, count) / np.log2(base)),
        (np.exp(rng.uniform(-1e-3, 1e-3, count)), rng.uniform(-ends, ends, count) * 700),
        (rng.uniform(-3, 3, count), rng.integers(-40, 40, count)),
        (np.repeat(special, len(special)), np.tile(special, len(special))),
    )
    x = np.concatenate([a for a, _ in columns]).astype(dtype.np)
    y = np.concatenate([b for _, b in columns]).astype(dtype.np)
    exact = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    got = library(8)[f"power_{dtype}"](x, y)
    error = units(got, exact)
    worst = int(np.argmax(error))
    assert error[worst] <= (0.51 if dtype is float32 else 1.1), (x[worst], y[worst], got[worst], error[worst])
    numbers = ~np.isnan(got)
    assert np.array_equal(np.signbit(got)[numbers], np.signbit(exact)[numbers])
