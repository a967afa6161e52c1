"""The machines code is generated for, as records."""

from __future__ import annotations

from symgrad.record import record

CACHE_LINE = 64


@record
class Target:
    """What decisions and spelling depend on.

    `vector_bytes` is the widest vector register, `registers` how many there are, `masked` whether masked loads and
    stores are single instructions, `fma` whether fused multiply-add is, `scalef` whether AVX-512's products with powers
    of two are there, `spreads` whether multiply-adds take one element from memory for all lanes, `streams` whether
    vectors can be written past the caches, `overlaps` whether a core computes as fast while it does so. Cache sizes are
    bytes per core. Arrays of `near` bytes or less are read as fast from a third cache where nothing is fetched ahead.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool
    masked: bool
    scalef: bool = False
    spreads: bool = False
    streams: bool = False
    overlaps: bool = True
    l1: int = 32 << 10
    l2: int = 1 << 20
    near: int = 0

    def lanes(self, itemsize: int) -> int:
        """How many elements of this size one vector register holds."""
        return max(1, self.vector_bytes // itemsize)
