"""Fits the polynomials of codegen/coefficients.py and prints them: python tests/codegen/fit_coefficients.py.

Each polynomial minimizes the largest weighted error over an interval (Remez exchange on a dense grid in 60-digit
arithmetic); the weight turns the error of the polynomial into the relative error of the function it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

# mpmath defines its functions at import, out of sight of a type checker.
mp: Any = mpmath.mp
mpf: Any = mpmath.mpf
Number = Any
Function = Callable[[Number], Number]


def fit(function: Function, weight: Function, low: Number, high: Number, count: int) -> tuple[list[Number], Number]:
    """`count` coefficients, lowest power first, and the largest weighted error."""
    low, high = mpf(low), mpf(high)
    points = 150 * count
    middle, half = (low + high) / 2, (high - low) / 2
    grid = [middle - half * mp.cos(mp.pi * (k + mpf("0.37")) / points) for k in range(points)]
    values = [function(x) for x in grid]
    weights = [abs(weight(x)) for x in grid]
    chosen = [round((1 - np.cos(np.pi * (k + 0.5) / (count + 1))) / 2 * (points - 1)) for k in range(count + 1)]
    chosen = [round(np.arccos(1 - 2 * c / (points - 1)) / np.pi * (points - 1)) for c in chosen]
    coefficients: list[Number] = []
    largest = mpf(0)
    for _ in range(30):
        matrix = mp.matrix(count + 1, count + 1)
        right = mp.matrix(count + 1, 1)
        for row, index in enumerate(chosen):
            for column in range(count):
                matrix[row, column] = grid[index] ** column
            matrix[row, count] = (-1) ** row / weights[index]
            right[row] = values[index]
        solution = mp.lu_solve(matrix, right)
        coefficients, level = [solution[k] for k in range(count)], abs(solution[count])
        errors = [w * (v - mp.polyval(coefficients[::-1], x)) for w, v, x in zip(weights, values, grid, strict=True)]
        largest = max(abs(e) for e in errors)
        if largest < level * mpf("1.0001"):
            break
        chosen = _alternation(errors, count + 1)
    return coefficients, largest


def _alternation(errors: list[Number], count: int) -> list[int]:
    """One index per run of equal sign, then dropped from the smaller end until `count` are left."""
    peaks: list[int] = []
    for index, error in enumerate(errors):
        if peaks and (error > 0) == (errors[peaks[-1]] > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = index
        else:
            peaks.append(index)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    if len(peaks) < count:
        raise ArithmeticError("the error does not alternate often enough; use fewer coefficients or more digits")
    return peaks


def _root(f: Callable[[Number], Number]) -> Function:
    """A function of x as a function of the square of x."""
    return lambda z: f(mp.sqrt(z))


def _plain(f: Function) -> Function:
    return f


def _cases() -> dict[str, tuple[Function, Function, Number, Number, int, int]]:
    half_log = mp.log(2) / 2 * mpf("1.001")
    exponential = _plain(lambda r: (mp.expm1(r) - r) / r**2)
    logarithm = _plain(lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3)
    artanh = _root(lambda s: (mp.atanh(s) / s - 1) / s**2)
    artanh_tail = _root(lambda s: (mp.atanh(s) / s - 1 - s**2 / 3) / s**4)
    tangent = _root(lambda x: (mp.tanh(x) / x - 1) / x**2)
    sine = _root(lambda x: (mp.sin(x) / x - 1) / x**2)
    cosine = _root(lambda x: (mp.cos(x) - 1 + x**2 / 2) / x**4)
    error = _root(lambda x: mp.erf(x) / x - 1)
    arc = _root(lambda x: (mp.atan(x) / x - 1) / x**2)
    arcsine = _root(lambda x: (mp.asin(x) / x - 1) / x**2)
    hyperbolic = _root(lambda x: (mp.sinh(x) / x - 1) / x**2)
    low, high = mp.sqrt(mpf(1) / 2) - 1, mp.sqrt(mpf(2)) - 1
    artanh_end = (3 - 2 * mp.sqrt(2)) ** 2
    fraction = _plain(lambda t: 2 * (1 + t) / (1 - t))  # the inverse of t = (a - 2) / (a + 2)
    tail = _plain(lambda t: (1 + t) / (1 - t))  # the inverse of t = (a - 1) / (a + 1)
    scaled = _plain(lambda a: mp.erfc(a) * mp.exp(a**2) * (a + 1))
    tail_start, tail_end, tail_short = (((a - 1) / (a + 1)) for a in (mpf("0.5"), mpf(28), mpf(11)))

    return {
        # name: function, weight, interval, coefficients, significant bits of the type
        "EXP_32": (exponential, lambda r: r, -half_log, half_log, 5, 24),
        "EXP_64": (exponential, lambda r: r, -half_log, half_log, 10, 53),
        "EXP_SHORT": (exponential, lambda r: r, -half_log, half_log, 6, 53),
        "LOG_32": (logarithm, lambda f: f**3 / mp.log1p(f), low, high, 8, 24),
        "LOG_64": (lambda z: 2 * artanh(z), lambda z: z, 0, artanh_end, 7, 53),
        "LOG_TAIL": (artanh_tail, lambda z: mpf(1), 0, artanh_end, 8, 53),
        "LOG_SHORT": (artanh, lambda z: z, 0, artanh_end, 5, 53),
        "TANH_32": (tangent, lambda z: z, 0, mpf("0.625") ** 2, 5, 24),
        "TANH_64": (tangent, lambda z: z, 0, mpf("0.625") ** 2, 11, 53),
        "SIN_32": (sine, lambda z: z, 0, mpf("0.79") ** 2, 3, 24),
        "SIN_64": (sine, lambda z: z, 0, mpf("0.786") ** 2, 6, 53),
        "SIN_SHORT": (sine, lambda z: z, 0, mpf("0.786") ** 2, 4, 53),
        "COS_32": (cosine, lambda z: z**2, 0, mpf("0.79") ** 2, 3, 24),
        "COS_64": (cosine, lambda z: z**2, 0, mpf("0.786") ** 2, 6, 53),
        "COS_SHORT": (cosine, lambda z: z**2, 0, mpf("0.786") ** 2, 4, 53),
        "ERF_32": (error, _root(lambda x: x / mp.erf(x)), 0, mpf("0.92") ** 2, 6, 24),
        "ERF_64": (error, _root(lambda x: x / mp.erf(x)), 0, 1, 12, 53),
        "ERFC_32": (lambda a: mp.log(mp.erfc(a)), mp.erfc, mpf("0.92"), mpf("4"), 8, 24),
        "ERFC_64": (
            lambda t: mp.erfc(fraction(t)) * mp.exp(fraction(t) ** 2),
            lambda t: mp.exp(-(fraction(t) ** 2)),
            -mpf(1) / 3,
            mpf(1) / 2,
            12,
            53,
        ),
        "CBRT": (mp.cbrt, lambda m: 1 / mp.cbrt(m), low + 1, high + 1, 7, 24),
        "ATAN_32": (arc, _root(lambda x: x**3 / mp.atan(x)), 0, mpf("0.66") ** 2, 6, 24),
        "ATAN_64": (arc, _root(lambda x: x**3 / mp.atan(x)), 0, mpf("0.66") ** 2, 14, 53),
        "ASIN_32": (arcsine, _root(lambda x: x**3 / mp.asin(x)), 0, mpf("0.25"), 5, 24),
        "ASIN_64": (arcsine, _root(lambda x: x**3 / mp.asin(x)), 0, mpf("0.25"), 12, 53),
        "SINH_32": (hyperbolic, _root(lambda x: x**3 / mp.sinh(x)), 0, 1, 4, 24),
        "SINH_64": (hyperbolic, _root(lambda x: x**3 / mp.sinh(x)), 0, 1, 7, 53),
        "ERFC_TAIL_SHORT": (
            lambda t: scaled(tail(t)),
            lambda t: 1 / scaled(tail(t)),
            tail_start,
            tail_short,
            13,
            53,
        ),
        "ERFC_TAIL_64": (
            lambda t: scaled(tail(t)),
            lambda t: 1 / scaled(tail(t)),
            tail_start,
            tail_end,
            28,
            53,
        ),
    }


def main() -> None:
    """Print every polynomial with its largest weighted error as a power of two."""
    import sys

    mp.dps = 60
    for name, (function, weight, low, high, count, bits) in _cases().items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        coefficients, largest = fit(function, weight, low, high, count)
        print(f"# weighted error 2^{float(mp.log(largest, 2)):.1f}")
        rounded = [float(np.float32(float(c))) if bits == 24 else float(c) for c in coefficients]
        print(f"{name} = ({', '.join(map(repr, rounded))})")


if __name__ == "__main__":
    main()
