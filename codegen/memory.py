"""Memory that calls use again and again."""

from __future__ import annotations

import contextlib
import mmap
from typing import TYPE_CHECKING

import numpy as np

from codegen.target import CACHE_LINE

if TYPE_CHECKING:
    from symgrad.types import Array

LARGE_PAGE = 2 << 20
# Bytes from which memory stands on large pages, where the system has these.
LARGE = 1 << 20


def zeros(count: int) -> Array:
    """So many bytes of zeros, whole cache lines, that take no time or room before they are used.

    Many of them stand on large pages: of what is passed from end to end again and again, each small page would have to
    be searched for. MemoryError where there is not as much.
    """
    if count < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return _aligned(np.zeros(count + CACHE_LINE, np.uint8), CACHE_LINE, count)
    size = -(-count // LARGE_PAGE) * LARGE_PAGE + LARGE_PAGE
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the system has no {size:,} bytes for values and scratch memory of a function") from error
    with contextlib.suppress(OSError):  # a system without large pages has small ones
        memory.madvise(mmap.MADV_HUGEPAGE)
    return _aligned(np.frombuffer(memory, np.uint8), LARGE_PAGE, count)


def _aligned(raw: Array, alignment: int, count: int) -> Array:
    start = -raw.ctypes.data % alignment
    return raw[start : start + count]
