"""From a static program to something that runs: one straight line."""

from __future__ import annotations

import time

from codegen import jit
from codegen.cache import ObjectCache
from codegen.executable import Executable, Launchable
from codegen.loop_verify import verify as verify_kernel
from codegen.machine_code import Assembly, KernelStore
from codegen.place import place
from codegen.plan import check
from codegen.prepare import prepare
from codegen.target import Target
from codegen.works import Report, works_of
from symgrad.program import Program

# The most threads that generate code at the same time.
MOST_HELPERS = 8


def build(
    program: Program,
    store: KernelStore,
    *,
    target: Target | None = None,
    workers: int = 1,
    verify: bool = False,
    report: Report | None = None,
    cache: ObjectCache | None = None,
    profiled: bool = False,
) -> Executable:
    """Machine code for a static, optimized program.

    `report(stage, text)` receives what each stage did. Code that is in the cache is not made again; the rest is made
    by as many threads as there are workers. A profiled program runs kernel by kernel and keeps their times.
    CompileError for what cannot be compiled.
    """
    target = target or jit.host_target()
    clock = _Clock(report)
    program = prepare(program)
    with jit.Batch(target, min(workers, MOST_HELPERS) if workers > 1 else 0) as batch:
        assembly = Assembly(store, target, batch, cache, report)
        works = works_of(program, target, assembly.begin, report, verify)
        clock.lap("lower", f"{len(works)} kernels")
        works, memory, standing = place(program, works, target)
        if verify:
            check(works, memory, standing)
            for work in works:
                verify_kernel(work.kernel)
        clock.lap("plan", f"{memory.bytes} bytes of arena, {sum(memory.barriers)} barriers")
        compiled = assembly.finish([w.kernel for w in works])
    clock.lap("compile", f"{len({id(c) for c in compiled})} distinct kernels")
    launches = tuple(
        Launchable(work, c.address, c.scratch_bytes, barrier, c)
        for work, c, barrier in zip(works, compiled, memory.barriers, strict=True)
    )
    return Executable(program, launches, memory, workers, profiled=profiled)


class _Clock:
    """Times of stages."""

    def __init__(self, tell: Report | None) -> None:
        self.tell = tell
        self.start = time.perf_counter()

    def lap(self, stage: str, text: str) -> None:
        now = time.perf_counter()
        if self.tell is not None:
            self.tell("stage", f"{stage:10} {(now - self.start) * 1e3:8.2f} ms  {text}")
        self.start = now
