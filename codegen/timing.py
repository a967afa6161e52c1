"""How long kernels take, run on arrays of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from codegen import jit, threads
from codegen.driver import BARRIER
from codegen.loop import Kernel
from codegen.machine_code import Assembly, Compiled, KernelStore
from codegen.target import Target


def assembled(kernels: Sequence[Kernel], target: Target, helpers: int) -> list[Compiled]:
    """Machine code of kernels that is kept nowhere, made by so many threads besides this one."""
    with jit.Batch(target, helpers) as batch:
        return Assembly(KernelStore(), target, batch, None, None).finish(kernels)


class Timed:
    """Kernels that run in turn, workers meeting before each, on arrays by the names of their parameters.

    Each worker's part of the last kernel is divided into so many pieces, if any.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        code: Sequence[Compiled],
        arrays: Mapping[str, np.ndarray],
        workers: int,
        *,
        pieces: int = 0,
    ) -> None:
        names = list(arrays)
        slots = np.array([arrays[name].ctypes.data for name in names], np.int64)
        pairs = [np.array([(names.index(b.name), 0) for b in k.params], np.int64).reshape(-1, 2) for k in kernels]
        counters = threads.counter_records(1, workers)
        launches = [
            threads.Launch(c.address, k.units, BARRIER, p.ctypes.data)
            for k, c, p in zip(kernels, code, pairs, strict=True)
        ]
        if pieces:
            launches[-1] = launches[-1]._replace(counters=counters.ctypes.data, pieces=pieces)
        self._prepared = threads.prepared(slots, launches, max(c.scratch_bytes for c in code), workers)
        self._run = threads.shared_pool(workers).run if workers > 1 else threads.run_serial
        self._keep = (arrays, code, pairs, counters)

    def seconds(self) -> float:
        """The time of one run."""
        start = time.perf_counter()
        self._run(int(self._prepared.context.ctypes.data))
        return time.perf_counter() - start
