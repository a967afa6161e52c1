"""Initial values of params, as NumPy arrays.

Every function takes the shape, a seed and a data type, and gives the same array for the same arguments. A fan is the
number of values that meet in one output (fan in) or that one value goes to (fan out). A dense weight has the shape
(in, out), so that `x @ w` applies it. A shape of more than two extents is a convolution weight (out, in, *window):
its fans are `in` and `out` times the size of the window. A stack of dense weights has no fans of its own: make each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from symgrad import types
from symgrad.errors import DTypeError, ShapeError
from symgrad.types import DType, as_dtype

if TYPE_CHECKING:
    from symgrad.types import Array, DTypeLike

# The standard deviation of a standard normal cut off at two of its own deviations.
_TRUNCATED_DEVIATION = 0.8796256610342398


def zeros(shape: Sequence[int], *, dtype: DTypeLike = types.float32) -> Array:
    """An array of zeros."""
    return np.zeros(_checked("zeros", shape), _float("zeros", dtype).np)


def ones(shape: Sequence[int], *, dtype: DTypeLike = types.float32) -> Array:
    """An array of ones."""
    return np.ones(_checked("ones", shape), _float("ones", dtype).np)


def normal(
    shape: Sequence[int], *, seed: int, mean: float = 0.0, deviation: float = 1.0, dtype: DTypeLike = types.float32
) -> Array:
    """Normal values with this mean and standard deviation."""
    target = _float("normal", dtype)
    values = np.random.default_rng(seed).standard_normal(_checked("normal", shape))
    return np.asarray(values * deviation + mean, target.np)


def uniform(
    shape: Sequence[int], *, seed: int, low: float = -1.0, high: float = 1.0, dtype: DTypeLike = types.float32
) -> Array:
    """Uniform values from low to high."""
    target = _float("uniform", dtype)
    return np.asarray(np.random.default_rng(seed).uniform(low, high, _checked("uniform", shape)), target.np)


def truncated_normal(
    shape: Sequence[int], *, seed: int, mean: float = 0.0, deviation: float = 1.0, dtype: DTypeLike = types.float32
) -> Array:
    """Normal values drawn again until they lie within two standard deviations of the mean.

    `deviation` is that of the normal before the cut; the values' own is 0.8796 of it.
    """
    target = _float("truncated_normal", dtype)
    generator = np.random.default_rng(seed)
    values = np.asarray(generator.standard_normal(_checked("truncated_normal", shape)))
    while (outside := np.abs(values) > 2.0).any():
        values[outside] = generator.standard_normal(int(outside.sum()))
    return np.asarray(values * deviation + mean, target.np)


def he_normal(
    shape: Sequence[int], *, seed: int, gain: float = math.sqrt(2.0), dtype: DTypeLike = types.float32
) -> Array:
    """Normal values of standard deviation gain / sqrt(fan in), for layers before a relu.

    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers" (2015), equation 10.
    """
    fan_in, _ = _fans("he_normal", shape)
    return normal(shape, seed=seed, deviation=gain / math.sqrt(fan_in), dtype=dtype)


def he_uniform(
    shape: Sequence[int], *, seed: int, gain: float = math.sqrt(2.0), dtype: DTypeLike = types.float32
) -> Array:
    """Uniform values of standard deviation gain / sqrt(fan in); see `he_normal`."""
    fan_in, _ = _fans("he_uniform", shape)
    return _symmetric(shape, seed, gain / math.sqrt(fan_in), dtype)


def xavier_normal(shape: Sequence[int], *, seed: int, gain: float = 1.0, dtype: DTypeLike = types.float32) -> Array:
    """Normal values of standard deviation gain * sqrt(2 / (fan in + fan out)).

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010), equation 12.
    """
    fan_in, fan_out = _fans("xavier_normal", shape)
    return normal(shape, seed=seed, deviation=gain * math.sqrt(2.0 / (fan_in + fan_out)), dtype=dtype)


def xavier_uniform(shape: Sequence[int], *, seed: int, gain: float = 1.0, dtype: DTypeLike = types.float32) -> Array:
    """Uniform values of standard deviation gain * sqrt(2 / (fan in + fan out)); see `xavier_normal`, equation 16."""
    fan_in, fan_out = _fans("xavier_uniform", shape)
    return _symmetric(shape, seed, gain * math.sqrt(2.0 / (fan_in + fan_out)), dtype)


def lecun_normal(shape: Sequence[int], *, seed: int, gain: float = 1.0, dtype: DTypeLike = types.float32) -> Array:
    """Truncated normal values whose own standard deviation is gain / sqrt(fan in).

    LeCun, Bottou, Orr and Müller, "Efficient BackProp" (1998), equation 16.
    """
    fan_in, _ = _fans("lecun_normal", shape)
    deviation = gain / math.sqrt(fan_in) / _TRUNCATED_DEVIATION
    return truncated_normal(shape, seed=seed, deviation=deviation, dtype=dtype)


def orthogonal(shape: Sequence[int], *, seed: int, gain: float = 1.0, dtype: DTypeLike = types.float32) -> Array:
    """A matrix with orthonormal rows or columns, whichever are fewer, times gain; uniform among those matrices.

    More than two extents are taken as (first, product of the rest). Saxe, McClelland and Ganguli, "Exact solutions to
    the nonlinear dynamics of learning in deep linear neural networks" (2013); signs as in Mezzadri, "How to generate
    random matrices from the classical compact groups" (2007).
    """
    target = _float("orthogonal", dtype)
    extents = _checked("orthogonal", shape)
    if len(extents) < 2:
        raise ShapeError(f"init.orthogonal: needs a shape of at least two extents, got {extents}")
    rows, columns = extents[0], math.prod(extents[1:])
    draw = np.random.default_rng(seed).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(draw)
    # Without this the distribution would depend on the sign convention of the factorization.
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    matrix = q if rows >= columns else q.T
    return np.ascontiguousarray(gain * matrix.reshape(extents), target.np)


def _symmetric(shape: Sequence[int], seed: int, deviation: float, dtype: DTypeLike) -> Array:
    bound = math.sqrt(3.0) * deviation
    return uniform(shape, seed=seed, low=-bound, high=bound, dtype=dtype)


def _fans(what: str, shape: Sequence[int]) -> tuple[int, int]:
    extents = _checked(what, shape)
    if len(extents) < 2:
        raise ShapeError(
            f"init.{what}: fans need a weight of at least two extents, (in, out) or (out, in, *window), got {extents}; "
            "use init.normal, init.uniform or init.zeros"
        )
    if 0 in extents:
        raise ShapeError(f"init.{what}: a weight without elements has no fans, got {extents}")
    if len(extents) == 2:
        return extents
    window = math.prod(extents[2:])
    return extents[1] * window, extents[0] * window


def _checked(what: str, shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int | np.integer):
        raise ShapeError(f"init.{what}: the shape is a tuple of integers, got {shape!r}; write ({shape},)")
    for extent in shape:
        if isinstance(extent, bool) or not isinstance(extent, int | np.integer) or extent < 0:  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise ShapeError(f"init.{what}: an extent is an integer of at least 0, got {extent!r} in {tuple(shape)}")
    return tuple(int(extent) for extent in shape)


def _float(what: str, dtype: DTypeLike) -> DType:
    found = as_dtype(dtype)
    if found is None or not found.is_float:
        raise DTypeError(f"init.{what}: the data type is float32 or float64, got {dtype!r}")
    return found
