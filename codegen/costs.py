"""What scalar operations cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from codegen.loop import Accumulate, Body, For, Kernel, Let, Load, Store
from symgrad.types import DType

# Cost of evaluating a pointwise operator again, in additions; one load and store of an element count about 4.
COSTS: Mapping[str, int] = {
    "exp": 20, "log": 24, "log1p": 30, "expm1": 30, "sin": 40, "cos": 40, "tan": 60, "tanh": 30, "sigmoid": 30,
    "erf": 40, "erfc": 80, "cbrt": 40, "asin": 40, "acos": 40, "atan": 40, "atan2": 60, "hypot": 20, "sinh": 50,
    "cosh": 40, "asinh": 70, "acosh": 70, "atanh": 60, "exp2": 20, "log2": 30, "log10": 30, "floor_divide": 40,
    "remainder": 40, "power": 60, "divide": 6, "reciprocal": 6, "sqrt": 8, "rsqrt": 12, "philox": 120, "order_key": 6,
    "searchsorted": 60,
}  # fmt: skip
# Nanoseconds per element of four bytes on one worker, for deciding whether more are worth waking: a unit of cost, an
# access to memory, a product of a contraction. Measured to within a factor of two on processors with wide vectors,
# which hold half as many elements of eight bytes.
UNIT_NS = 0.06
ACCESS_NS = 0.1
PRODUCT_NS = 0.012
# And per byte of what lies beyond the caches of one worker.
BYTE_NS = 0.035


def estimated_ns(kernel: Kernel) -> float:
    """About how long one worker takes for a kernel: for its arithmetic, or to move what it touches."""
    accesses: Counter[str] = Counter()
    widths = {b.name: _width(b.dtype) for b in (*kernel.params, *kernel.locals)}
    arithmetic = _arithmetic_ns(kernel.body, 1, widths, accesses)
    moved = sum(min(b.size, accesses[b.name]) * b.dtype.itemsize for b in kernel.params)
    return max(arithmetic, moved * BYTE_NS)


def _width(dtype: DType) -> float:
    return max(dtype.itemsize / 4, 1)


def _arithmetic_ns(body: Body, times: int, widths: Mapping[str, float], accesses: Counter[str]) -> float:
    """The time of a body that runs so many times; how often it accesses each buffer is added to `accesses`."""
    total = 0.0
    for stmt in body:
        match stmt:
            case For(loop, inner):
                total += _arithmetic_ns(inner, times * loop.extent, widths, accesses)
            case Let(op=op):
                total += times * COSTS.get(op, 1) * UNIT_NS * _width(stmt.dtype) if op != "const" else 0.0
            case Load() | Store():
                accesses[stmt.buffer] += times
                total += times * ACCESS_NS * widths[stmt.buffer]
            case Accumulate(combine=combine):
                # The loads of a contraction are shared by the products of a register tile.
                own = PRODUCT_NS - 2 * ACCESS_NS if combine == "fma" else UNIT_NS
                total += times * own * widths[stmt.buffer]
            case _:
                pass
    return total


def operations(body: Body) -> int:
    """The arithmetic operations of the loops of a kernel: two for each product of a contraction."""
    total = 0
    for stmt in body:
        match stmt:
            case For(loop, inner):
                total += loop.extent * operations(inner)
            case Let(op=op):
                total += op != "const"
            case Accumulate(combine=combine):
                total += 2 if combine == "fma" else 1
            case _:
                pass
    return total
