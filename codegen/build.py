"""From a static program to something that runs: one straight line."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from codegen import jit
from codegen.cache import ObjectCache
from codegen.executable import Describer, Executable, Launchable
from codegen.footprint import peak_lines
from codegen.loop_verify import verify as verify_kernel
from codegen.machine_code import Assembly, Compiled, KernelStore
from codegen.place import Placed, place
from codegen.plan import MemoryPlan, Task, Work, check
from codegen.prepare import prepare
from codegen.recall import decoded, encoded, plan_key
from codegen.rematerialize import within
from codegen.target import Target
from codegen.tiling import Choice
from codegen.tune import tune
from codegen.works import Report, contractions_of, lowered_groups, works_of
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
    outputs = program.outputs
    program = prepare(program)
    lowered = tuning = None
    if tuned:
        lowered = lowered_groups(program, verify)
        tuning = tune(*contractions_of(lowered), store, cache, target, workers)
        clock.lap("tune", tuning.summary())
    chosen: Mapping[str, Choice] = tuning.chosen if tuning is not None else {}
    key = plan_key(program, target, max_bytes, chosen) if cache is not None and not verify else None
    with jit.Batch(target, min(workers, MOST_HELPERS) if workers > 1 else 0) as batch:
        assembly = Assembly(store, target, batch, cache, report)
        made = _recalled(key, assembly, cache)
        if made is not None:
            clock.lap("recall", f"{len(made.tasks)} kernels")
        else:
            works = works_of(program, target, assembly.begin, report, verify, chosen, lowered=lowered)
            clock.lap("lower", f"{len(works)} kernels")
            placed = _placed(program, works, target, max_bytes)
            if verify:
                check(placed.works, placed.memory, placed.standing)
                for work in placed.works:
                    verify_kernel(work.kernel)
            clock.lap("plan", f"{placed.memory.bytes} bytes of arena, {sum(placed.memory.barriers)} barriers")
            code = assembly.finish([w.kernel for w in placed.works])
            made = _Made([w.task for w in placed.works], code, placed.memory)
            if key is not None and cache is not None:
                cache.keep(key, encoded(*made))
    clock.lap("compile", f"{len({id(c) for c in made.code})} distinct kernels")
    memory = made.memory
    launches = tuple(
        Launchable(task, c.address, c.scratch_bytes, barrier, c)
        for task, c, barrier in zip(made.tasks, made.code, memory.barriers, strict=True)
    )
    sizes = functools.cache(functools.partial(_byte_counts, symbolic, target, chosen)) if symbolic is not None else None
    notes = [tuning.summary()] if tuning is not None else []
    return Executable(program, outputs, launches, memory, workers, profiled=profiled, sizes=sizes, notes=notes)


class _Made(NamedTuple):
    """The kernels of a program in the order they run, their code, and the places of all values."""

    tasks: Sequence[Task]
    code: Sequence[Compiled]
    memory: MemoryPlan


def _recalled(key: str | None, assembly: Assembly, cache: ObjectCache | None) -> _Made | None:
    """What an earlier build of the same program made, if all of it is in the cache."""
    kept = cache.find(key) if cache is not None and key is not None else None
    if kept is None:
        return None
    decided = decoded(kept)
    code = assembly.recall(decided.code)
    return None if code is None else _Made(decided.tasks, code, decided.memory)


def _placed(program: Program, works: Sequence[Work], target: Target, limit: int | None) -> Placed:
    placed = place(program, works, target)
    if limit is None or placed.memory.bytes <= limit:
        return placed
    least = within(limit, works, lambda some: place(program, some, target))
    if least.memory.bytes <= limit:
        return least
    tasks = [work.task for work in least.works]
    about = Describer(program, tasks)
    lines = peak_lines(tasks, least.memory, about.value, about.kernel, {})
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
