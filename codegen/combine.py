"""How accumulators combine: identities, contributions, and partial results of lanes."""

from __future__ import annotations

from typing import TypeAlias

from codegen.scalar import spell
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.errors import CompileError
from symgrad.types import DType, bool_, int64

Accumulator: TypeAlias = tuple[Value, ...]
# The place of an identity in argmax and argmin: beyond every element.
NO_INDEX = (1 << 63) - 1


def identity(b: ScalarBuilder, combine: str, dtype: DType) -> Value:
    """The value that changes nothing when it is combined."""
    match combine:
        case "sum" | "fma" | "any" | "linear_recurrence":
            return b.const(dtype, 0)
        case "cumulative_sum":
            # Added to anything, negative zero included, negative zero changes nothing.
            return b.const(dtype, -0.0 if dtype.is_float else 0)
        case "prod" | "all" | "cumulative_prod":
            return b.const(dtype, 1)
        case "max" | "argmax" | "cumulative_max":
            return b.const(dtype, _lowest(dtype))
        case "min" | "argmin" | "cumulative_min":
            return b.const(dtype, _highest(dtype))
        case _:
            raise CompileError(f"no identity for {combine}")


def beginning(b: ScalarBuilder, combine: str, dtype: DType) -> Accumulator:
    """An accumulator without contributions: literals of one lane."""
    first = identity(b, combine, dtype)
    if combine in ("argmax", "argmin"):
        return first, b.const(int64, NO_INDEX)
    if _remembers_nan(combine, dtype):
        return first, b.const(bool_, False)
    return (first,)


def result(b: ScalarBuilder, combine: str, acc: Accumulator) -> Value:
    """The value an accumulator stands for, in every lane."""
    if combine in ("argmax", "argmin"):
        return acc[1]
    if _remembers_nan(combine, acc[0].dtype):
        return b.select(acc[1], b.splat(b.const(acc[0].dtype, float("nan"))), acc[0])
    return acc[0]


def _remembers_nan(combine: str, dtype: DType) -> bool:
    """Whether an accumulator keeps apart that a NaN was met: nothing then delays the next comparison but this one."""
    return dtype.is_float and combine in ("cumulative_max", "cumulative_min")


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
        case "sum" | "cumulative_sum":
            return (spell(b, "add", acc[0], args[0]),)
        case "linear_recurrence":
            return (spell(b, "add", spell(b, "safe_multiply", args[0], acc[0]), args[1]),)
        case "fma" if acc[0].dtype.is_float:
            return (b.fma(args[0], args[1], acc[0]),)
        case "fma":
            return (spell(b, "add", acc[0], spell(b, "multiply", args[0], args[1])),)
        case "prod" | "cumulative_prod":
            return (spell(b, "multiply", acc[0], args[0]),)
        case "cumulative_max" | "cumulative_min" if acc[0].dtype.is_float:
            stays = b.compare("gt" if combine == "cumulative_max" else "lt", acc[0], args[0])
            return b.select(stays, acc[0], args[0]), b.bit_or(acc[1], b.is_nan(args[0]))
        case "max" | "cumulative_max":
            return (spell(b, "maximum", acc[0], args[0]),)
        case "min" | "cumulative_min":
            return (spell(b, "minimum", acc[0], args[0]),)
        case "any":
            return (spell(b, "logical_or", acc[0], args[0]),)
        case "all":
            return (spell(b, "logical_and", acc[0], args[0]),)
        case "argmax" | "argmin":
            return better(b, combine, acc, args, ties=False)
        case _:
            raise CompileError(f"no combination {combine}")


def better(b: ScalarBuilder, combine: str, acc: Accumulator, other: Accumulator, *, ties: bool) -> Accumulator:
    """The extreme value and its place; a NaN beats every number and the first of equals wins.

    Within a lane places only grow, so ties keep what stands, but an identity, whose place is beyond all, always goes.
    """
    value, place = other
    take = b.compare("gt" if combine == "argmax" else "lt", value, acc[0])
    if value.dtype.is_float:
        nan, had_nan = b.is_nan(value), b.is_nan(acc[0])
        take = b.bit_or(take, b.bit_and(nan, b.bit_not(had_nan)))
        same = b.bit_or(b.compare("eq", value, acc[0]), b.bit_and(nan, had_nan))
    else:
        same = b.compare("eq", value, acc[0])
    earlier = b.compare("lt", place, acc[1]) if ties else b.compare("eq", acc[1], NO_INDEX)
    take = b.bit_or(take, b.bit_and(same, earlier))
    return b.select(take, value, acc[0]), b.select(take, place, acc[1])
