"""Arrays that graphs hold: constants by their bits, and values of params and states that functions share."""

from __future__ import annotations

import math
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from symgrad.types import Array


class Literal:
    """An immutable array used as an attribute. Two are equal when dtype, shape and every bit are."""

    __slots__ = ("_hash", "array")
    array: Array

    def __init__(self, value: Array) -> None:
        array = np.array(value, copy=True, order="C")
        array.flags.writeable = False
        self.array = array
        self._hash = hash((array.dtype.str, array.shape, array.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Literal):
            return False
        a, b = self.array, other.array
        return self._hash == other._hash and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

    def __str__(self) -> str:
        if self.array.ndim == 0:
            return repr(self.array.item())
        return f"{self.array.dtype}{list(self.array.shape)}"

    __repr__ = __str__


# Locks of graphs alive. A fork waits for calls in flight, so that the child finds states whole and locks free.
_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_held_for_fork: list[threading.RLock] = []
_locks_guard = threading.Lock()


def graph_lock() -> threading.RLock:
    """A lock for the states of a graph, held by no thread of a child after a fork."""
    lock = threading.RLock()
    with _locks_guard:
        _locks.add(lock)
    return lock


def _before_fork() -> None:
    _locks_guard.acquire()
    for lock in list(_locks):
        lock.acquire()
        _held_for_fork.append(lock)


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()
    _locks_guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class Storage:
    """The value of a param or state, shared by every function compiled over its graph.

    The array never moves: compiled functions keep its address. Access holds the graph's lock.
    """

    __slots__ = ("array", "lock")
    array: Array

    def __init__(self, value: Array, lock: threading.RLock) -> None:
        self.array = aligned_copy(value)
        self.lock = lock

    def read(self) -> Array:
        with self.lock:
            return self.array.copy()

    def write(self, value: Array) -> None:
        with self.lock:
            self.array[...] = value


def aligned_copy(value: Array, alignment: int = 64) -> Array:
    """A C-contiguous copy in native byte order whose first byte is aligned for vector loads."""
    array = aligned_empty(value.shape, value.dtype.newbyteorder("="), alignment)
    array[...] = value
    return array


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any], alignment: int = 64) -> Array:
    """A C-contiguous array with unspecified content whose first byte is aligned: a view of the array it has as base."""
    count = math.prod(shape) * dtype.itemsize
    raw = np.empty(count + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count].view(dtype).reshape(shape)
