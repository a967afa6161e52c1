"""From a static program to something that runs: one straight line."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence

from codegen import jit
from codegen.cache import ObjectCache
from codegen.executable import Executable, Launchable, describer
from codegen.footprint import peak_lines
from codegen.loop_verify import verify as verify_kernel
from codegen.machine_code import Assembly, KernelStore
from codegen.place import Placed, place
from codegen.plan import Work, check
from codegen.prepare import prepare
from codegen.rematerialize import within
from codegen.target import Target
from codegen.tiling import Choice
from codegen.tune import tune
from codegen.works import Report, contractions_of, works_of
from symgrad.errors import CompileError
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
    symbolic: Callable[[], Program] | None = None,
    max_bytes: int | None = None,
    tuned: bool = False,
) -> Executable:
    """Machine code for a static, optimized program.

    `report(stage, text)` receives what each stage did. Code that is in the cache is not made again; the rest is made
    by as many threads as there are workers. A profiled program runs kernel by kernel and keeps their times.
    `symbolic` gives the program again with extents that remember what they are the values of, for the formula of its
    peak. `max_bytes` limits the arena: what does not fit is computed again. `tuned` takes the schedules of contractions
    that were measured to be fastest, now or before. CompileError for what cannot be compiled, and for a limit that
    cannot be kept.
    """
    target = target or jit.host_target()
    clock = _Clock(report)
    program = prepare(program)
    tuning = tune(*contractions_of(program), store, cache, target, workers) if tuned else None
    if tuning is not None:
        clock.lap("tune", tuning.summary())
    chosen: Mapping[str, Choice] = tuning.chosen if tuning is not None else {}
    with jit.Batch(target, min(workers, MOST_HELPERS) if workers > 1 else 0) as batch:
        assembly = Assembly(store, target, batch, cache, report)
        works = works_of(program, target, assembly.begin, report, verify, chosen)
        clock.lap("lower", f"{len(works)} kernels")
        placed = _placed(program, works, target, max_bytes)
        works, memory = placed.works, placed.memory
        if verify:
            check(works, memory, placed.standing)
            for work in works:
                verify_kernel(work.kernel)
        clock.lap("plan", f"{memory.bytes} bytes of arena, {sum(memory.barriers)} barriers")
        compiled = assembly.finish([w.kernel for w in works])
    clock.lap("compile", f"{len({id(c) for c in compiled})} distinct kernels")
    launches = tuple(
        Launchable(work, c.address, c.scratch_bytes, barrier, c)
        for work, c, barrier in zip(works, compiled, memory.barriers, strict=True)
    )
    sizes = functools.cache(functools.partial(_byte_counts, symbolic, target, chosen)) if symbolic is not None else None
    notes = [tuning.summary()] if tuning is not None else []
    return Executable(program, launches, memory, workers, profiled=profiled, sizes=sizes, notes=notes)


def _placed(program: Program, works: Sequence[Work], target: Target, limit: int | None) -> Placed:
    placed = place(program, works, target)
    if limit is None or placed.memory.bytes <= limit:
        return placed
    least = within(limit, works, lambda some: place(program, some, target))
    if least.memory.bytes <= limit:
        return least
    lines = peak_lines(least.works, least.memory, describer(program, least.works), {})
    raise CompileError(
        f"the arena cannot be kept to max_bytes={limit}: the least found is {least.memory.bytes} bytes, and "
        f"{placed.memory.bytes} without computing values again; its {'; '.join(line.strip() for line in lines)}"
    )


def _byte_counts(symbolic: Callable[[], Program], target: Target, chosen: Mapping[str, Choice]) -> dict[str, int]:
    """The bytes of what the kernels of a program read and write."""
    works = works_of(prepare(symbolic()), target, lambda _: None, None, chosen=chosen, alike=False)
    return {v: b.size * b.dtype.itemsize for w in works for v, b in zip(w.values, w.kernel.params, strict=True)}


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
