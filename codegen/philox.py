"""Random bits that are a function of a counter and a key."""

from __future__ import annotations

from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.types import uint32, uint64


def philox(b: ScalarBuilder, counter: tuple[Value, ...], key: tuple[Value, ...]) -> tuple[Value, ...]:
    """The four words of Philox4x32-10 of a counter of four words and a key of two, all uint32.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(10):
        if round_:
            k0, k1 = b.add(k0, 0x9E3779B9), b.add(k1, 0xBB67AE85)
        high0, low0 = _wide_product(b, c0, 0xD2511F53)
        high1, low1 = _wide_product(b, c2, 0xCD9E8D57)
        c0, c1 = b.bit_xor(b.bit_xor(high1, c1), k0), low1
        c2, c3 = b.bit_xor(b.bit_xor(high0, c3), k1), low0
    return c0, c1, c2, c3


def _wide_product(b: ScalarBuilder, v: Value, factor: int) -> tuple[Value, Value]:
    product = b.multiply(b.astype(v, uint64), factor)
    return b.astype(b.shift_right(product, 32), uint32), b.astype(product, uint32)
