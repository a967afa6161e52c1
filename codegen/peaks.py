"""What this machine can do: multiply-adds in registers, and copies of memory too large for its caches."""

from __future__ import annotations

from functools import cache

import numpy as np

from codegen import jit
from codegen.affine import variable
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Buffer,
    Finish,
    For,
    Init,
    Kernel,
    Load,
    Loop,
    Space,
    Store,
)
from codegen.steps import apply
from codegen.stream import large_results
from codegen.target import Target
from codegen.timing import Timed, assembled
from symgrad.record import record
from symgrad.storage import aligned_copy
from symgrad.types import float32

# Chains of multiply-adds side by side: more than any machine needs to hide their latency.
CHAINS = 12
DEPTH = 20_000
UNITS = 64
COPIED_BYTES = 128 << 20
REPEATS = 5


@record
class Peaks:
    """Floating operations per second in float32 (half as many in float64), and bytes read and written per second."""

    flops: float
    bytes: float


@cache
def machine_peaks(workers: int) -> Peaks:
    """The peaks of this many workers, measured now: about a third of a second."""
    target = jit.host_target()
    values = np.ones(target.lanes(4) * CHAINS, np.float32)
    results = np.zeros(UNITS * CHAINS * target.lanes(4), np.float32)
    multiply = _seconds(_multiply_adds(target), [values, results], workers, target)
    source, copied = (aligned_copy(np.full(COPIED_BYTES // 4, one, np.float32)) for one in (1, 0))
    copy = _seconds(_copy(source.size, target), [source, copied], workers, target)
    return Peaks(2.0 * UNITS * DEPTH * CHAINS * target.lanes(4) / multiply, 2.0 * COPIED_BYTES / copy)


def _multiply_adds(target: Target) -> Kernel:
    lanes = target.lanes(4)
    chain, lane, unit = variable("c"), variable("l"), variable("u")
    sums = Buffer("a", float32, CHAINS * lanes, Space.REG)
    place = chain * lanes + lane

    def each(body: Body) -> For:
        vector = For(Loop("l", lanes, 0, Bind.VECTOR, lanes), body)
        return For(Loop("c", CHAINS, 0, Bind.UNROLL), (vector,))

    step: Body = (
        Load("x", "p0", lane, float32),
        Load("y", "p0", chain, float32),
        Accumulate("a", place, "fma", ("x", "y")),
    )
    last: Body = (Finish("z", "a", place, "fma", float32), Store("p1", unit * (CHAINS * lanes) + place, "z"))
    body: Body = (
        each((Init("a", place, "fma"),)),
        For(Loop("k", DEPTH), (each(step),)),
        each(last),
    )
    params = (
        Buffer("p0", float32, CHAINS * lanes, Space.GLOBAL),
        Buffer("p1", float32, UNITS * CHAINS * lanes, Space.GLOBAL, written=True),
    )
    return Kernel(params, (sums,), (For(Loop("u", UNITS, 0, Bind.PARALLEL), body),))


def _copy(size: int, target: Target) -> Kernel:
    lanes = target.lanes(4)
    part = size // UNITS // lanes
    at = variable("u") * (part * lanes) + variable("b") * lanes + variable("l")
    body: Body = (Load("x", "p0", at, float32), Store("p1", at, "x"))
    body = (For(Loop("b", part), (For(Loop("l", lanes, 0, Bind.VECTOR, lanes), body),)),)
    params = (Buffer("p0", float32, size, Space.GLOBAL), Buffer("p1", float32, size, Space.GLOBAL, written=True))
    kernel = Kernel(params, (), (For(Loop("u", UNITS, 0, Bind.PARALLEL), body),))
    return apply(kernel, large_results(kernel, target))


def _seconds(kernel: Kernel, arrays: list[np.ndarray], workers: int, target: Target) -> float:
    """The least time of a few runs."""
    run = Timed([kernel], assembled([kernel], target, 0), dict(zip(["p0", "p1"], arrays, strict=True)), workers)
    return min(run.seconds() for _ in range(REPEATS))
