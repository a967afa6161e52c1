"""How accumulators combine: identities, contributions, and partial results of lanes."""

from __future__ import annotations

from typing import TypeAlias

from codegen.scalar import ScalarBuilder, Value
from symgrad.errors import CompileError
from symgrad.types import DType, int64

Accumulator: TypeAlias = tuple[Value, ...]
# The place of an identity in argmax and argmin: beyond every element.
NO_INDEX = (1 << 63) - 1


def identity(b: ScalarBuilder, combine: str, dtype: DType) -> Value:
    """The value that changes nothing when it is combined."""
    match combine:
        case "sum" | "fma" | "any":
            return b.const(dtype, 0)
        case "prod" | "all":
            return b.const(dtype, 1)
        case "max" | "argmax":
            return b.const(dtype, _lowest(dtype))
        case "min" | "argmin":
            return b.const(dtype, _highest(dtype))
        case _:
            raise CompileError(f"no identity for {combine}")


def _lowest(dtype: DType) -> float | int:
    if dtype.is_float:
        return float("-inf")
    return -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0


def _highest(dtype: DType) -> float | int:
    if dtype.is_float:
        return float("inf")
    return (1 << (dtype.bits - (dtype.kind == "i"))) - 1


def combined(b: ScalarBuilder, combine: str, acc: Accumulator, args: tuple[Value, ...]) -> Accumulator:
    """The accumulator after one more contribution in every lane."""
    match combine:
        case "sum":
            return (b.op("add", acc[0], args[0]),)
        case "fma" if acc[0].dtype.is_float:
            return (b.fma(args[0], args[1], acc[0]),)
        case "fma":
            return (b.op("add", acc[0], b.op("multiply", args[0], args[1])),)
        case "prod":
            return (b.op("multiply", acc[0], args[0]),)
        case "max":
            return (b.op("maximum", acc[0], args[0]),)
        case "min":
            return (b.op("minimum", acc[0], args[0]),)
        case "any":
            return (b.op("logical_or", acc[0], args[0]),)
        case "all":
            return (b.op("logical_and", acc[0], args[0]),)
        case "argmax" | "argmin":
            return better(b, combine, acc, args, ties=False)
        case _:
            raise CompileError(f"no combination {combine}")


def better(b: ScalarBuilder, combine: str, acc: Accumulator, other: Accumulator, *, ties: bool) -> Accumulator:
    """The extreme value and its place; a NaN beats every number and the first of equals wins.

    Within a lane places only grow, so ties keep what stands, but an identity, whose place is beyond all, always goes.
    """
    value, place = other
    take = b.op("greater" if combine == "argmax" else "less", value, acc[0])
    if value.dtype.is_float:
        nan, had_nan = b.op("isnan", value), b.op("isnan", acc[0])
        take = b.op("logical_or", take, b.op("logical_and", nan, b.op("logical_not", had_nan)))
        same = b.op("logical_or", b.op("equal", value, acc[0]), b.op("logical_and", nan, had_nan))
    else:
        same = b.op("equal", value, acc[0])
    earlier = b.op("less", place, acc[1]) if ties else b.op("equal", acc[1], b.const(int64, NO_INDEX))
    take = b.op("logical_or", take, b.op("logical_and", same, earlier))
    return b.select(take, value, acc[0]), b.select(take, place, acc[1])
