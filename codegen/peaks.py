"""What this machine can do: multiply-adds in registers, and copies of memory too large for its caches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import numpy as np

from codegen import jit, threads
from codegen.affine import ZERO, Affine, variable
from codegen.emit import emit, module_text
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
from codegen.target import Target
from codegen.writer import scratch_layout
from symgrad.types import DType, float32

# Chains of multiply-adds side by side: more than any machine needs to hide their latency.
CHAINS = 12
DEPTH = 20_000
UNITS = 64
COPIED_BYTES = 128 << 20
REPEATS = 5


@dataclass(frozen=True, slots=True)
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
    multiply = _seconds(_multiply_adds(float32, target), [values, results], workers, target)
    source = np.ones(COPIED_BYTES // 4, np.float32)
    copied = np.zeros_like(source)
    copy = _seconds(_copy(source.size, target), [source, copied], workers, target)
    return Peaks(2.0 * UNITS * DEPTH * CHAINS * target.lanes(4) / multiply, 2.0 * COPIED_BYTES / copy)


def _multiply_adds(dtype: DType, target: Target) -> Kernel:
    lanes = target.lanes(dtype.itemsize)
    chain, lane, unit = variable("c"), variable("l"), variable("u")
    sums = Buffer("a", dtype, CHAINS * lanes, Space.REG)
    place = chain * lanes + lane

    def each(body: Body) -> For:
        vector = For(Loop("l", lanes, 0, Bind.VECTOR, lanes), body)
        return For(Loop("c", CHAINS, 0, Bind.UNROLL), (vector,))

    step: Body = (
        Load("x", "p0", lane, dtype),
        Load("y", "p0", chain, dtype),
        Accumulate("a", place, "fma", ("x", "y")),
    )
    last: Body = (Finish("z", "a", place, "fma", dtype), Store("p1", unit * (CHAINS * lanes) + place, "z"))
    body: Body = (
        each((Init("a", place, "fma"),)),
        For(Loop("k", DEPTH), (each(step),)),
        each(last),
    )
    params = (
        Buffer("p0", dtype, CHAINS * lanes, Space.GLOBAL),
        Buffer("p1", dtype, UNITS * CHAINS * lanes, Space.GLOBAL, written=True),
    )
    return Kernel(params, (sums,), (For(Loop("u", UNITS, 0, Bind.PARALLEL), body),))


def _copy(size: int, target: Target) -> Kernel:
    lanes = target.lanes(4)
    part = size // UNITS // lanes
    at: Affine = ZERO + variable("u") * (part * lanes) + variable("b") * lanes + variable("l")
    body: Body = (Load("x", "p0", at, float32), Store("p1", at, "x"))
    body = (For(Loop("b", part), (For(Loop("l", lanes, 0, Bind.VECTOR, lanes), body),)),)
    params = (Buffer("p0", float32, size, Space.GLOBAL), Buffer("p1", float32, size, Space.GLOBAL, written=True))
    return Kernel(params, (), (For(Loop("u", UNITS, 0, Bind.PARALLEL), body),))


def _seconds(kernel: Kernel, arrays: list[np.ndarray], workers: int, target: Target) -> float:
    """The least time of a few runs."""
    text = module_text([emit(kernel, "peak", target)], target)
    library = jit.link([jit.compile_object(text, target)], ["peak"])
    slots = np.array([a.ctypes.data for a in arrays], np.int64)
    args = np.array([(k, 0) for k in range(len(arrays))], np.int64)
    table = threads.launch_records([threads.Launch(library.address("peak"), UNITS, 0, args.ctypes.data)])
    barrier, status = threads.barrier_record(), np.zeros(8, np.int64)
    stride = scratch_layout(kernel)[1] + 64
    scratch = np.zeros(stride * workers, np.uint8)
    context = threads.context_record(
        slots=slots.ctypes.data,
        launches=table.ctypes.data,
        count=1,
        barrier=barrier.ctypes.data,
        status=status.ctypes.data,
        scratch=scratch.ctypes.data,
        scratch_stride=stride,
    )
    run = threads.shared_pool(workers).run if workers > 1 else threads.run_serial
    times: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(int(context.ctypes.data))
        times.append(time.perf_counter() - start)
    return min(times)
