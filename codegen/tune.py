"""Schedules of contractions that are measured on this machine, once, and kept with its machine code."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence

import numpy as np

from codegen.cache import ObjectCache, object_key
from codegen.costs import estimated_ns
from codegen.executable import pieces_of, uses_workers
from codegen.group import Anchor
from codegen.loop import Kernel, checks_index, indices_of, loops_of
from codegen.loop_print import kernel_text
from codegen.machine_code import KernelStore
from codegen.schedule_cpu import contraction_choices, schedule
from codegen.target import Target
from codegen.tiling import Choice
from codegen.timing import Timed, assembled
from symgrad.record import record
from symgrad.storage import aligned_copy

# Estimated time of one worker from which a kernel is worth the time that measuring takes.
WORTH_NS = 5_000
# The arrays of a kernel that is measured, besides packed ones, take at most so many bytes.
MOST_BYTES = 1 << 30
# Seconds that each choice is measured for, unless a few runs take longer, and the most runs.
BUDGET = 0.04
MOST_RUNS = 200
# A choice that takes so many times the time of the best in its first run is measured no more.
HOPELESS = 1.5
# The share of its time that a choice must save to be taken instead of the default, as often as it is compared with it.
GAIN = 0.05
DUELS = 3


@record
class Tuning:
    """The choices that are not the default, by the text of naive kernels, and how they were found.

    `kernels` is how many distinct contractions there was a choice for, `measured` how many of them were measured now,
    in so many seconds: of the others it was known.
    """

    chosen: Mapping[str, Choice]
    kernels: int
    measured: int
    seconds: float

    def summary(self) -> str:
        return (
            f"tuned: {len(self.chosen)} of {self.kernels} distinct contractions run another schedule than the default; "
            f"{self.measured} were measured now, in {self.seconds:.2f} s"
        )


def tune(
    kernels: Sequence[Kernel], ns: float, store: KernelStore, cache: ObjectCache | None, target: Target, workers: int
) -> Tuning:
    """The fastest choices for naive contractions of a program that takes one worker `ns`, as measured now or before.

    Whatever is chosen, results have the same bits. What is measured is kept in the store and the cache, for the kernel,
    the target, the number of workers that run it and the version of the code generator.
    """
    start = time.perf_counter()
    used = workers if uses_workers(workers, ns) else 1
    chosen: dict[str, Choice] = {}
    count = measured = 0
    for kernel in kernels:
        choices = contraction_choices(kernel, target)
        if len(choices) < 2 or not _can_be_measured(kernel):
            continue
        count += 1
        text = kernel_text(kernel)
        key = object_key(text, target, f"choice of {used} workers")
        choice = _known(key, choices, store, cache)
        if choice is None:
            measured += 1
            choice = _fastest(kernel, choices, target, used)
            if cache is not None:
                cache.keep(key, repr(choice).encode())
        store.choices[key] = choice
        if choice != choices[0]:
            chosen[text] = choice
    return Tuning(chosen, count, measured, time.perf_counter() - start)


def _can_be_measured(kernel: Kernel) -> bool:
    """Whether a kernel is worth it, fits, and runs well on arrays of any content: its indices follow from its loops."""
    if estimated_ns(kernel) < WORTH_NS or sum(b.size * b.dtype.itemsize for b in kernel.params) > MOST_BYTES:
        return False
    if checks_index(kernel):
        return False
    names = {one.loop.name for one in loops_of(kernel.body)}
    return all(name in names for index in indices_of(kernel.body) for name, _ in index.terms)


def _known(key: str, choices: Sequence[Choice], store: KernelStore, cache: ObjectCache | None) -> Choice | None:
    """What was chosen before, if it is one of these choices."""
    if (known := store.choices.get(key)) is not None:
        return known
    kept = cache.find(key) if cache is not None else None
    if kept is None:
        return None
    return next((c for c in choices if repr(c).encode() == kept), None)


def _fastest(kernel: Kernel, choices: Sequence[Choice], target: Target, workers: int) -> Choice:
    """The choice with which a kernel takes the least time on this machine; the first if none is clearly faster."""
    schedules = [[s.kernel for s in schedule(kernel, Anchor.CONTRACT, target, c)] for c in choices]
    code = iter(assembled(list(itertools.chain(*schedules)), target, workers if workers > 1 else 0))
    arrays = _arrays(list(itertools.chain(*schedules)))
    pieces = pieces_of(workers, estimated_ns(kernel))
    candidates = [Timed(some, [next(code) for _ in some], arrays, workers, pieces=pieces) for some in schedules]
    return choices[race(candidates)]


def _arrays(kernels: Sequence[Kernel]) -> dict[str, np.ndarray]:
    """Arrays for all parameters, which have the same names in all kernels; packed ones as large as the largest."""
    buffers = {b.name: b for b in sorted((b for k in kernels for b in k.params), key=lambda b: b.size)}
    arrays: dict[str, np.ndarray] = {}
    for name, buffer in buffers.items():
        # No zeros, subnormal numbers or large ones, which may take other times.
        some = np.linspace(-0.5, 0.5, 1022) if buffer.dtype.is_float else np.ones(1)
        arrays[name] = aligned_copy(np.resize(some.astype(buffer.dtype.np), buffer.size))
    return arrays


def race(candidates: Sequence[Timed]) -> int:
    """The number of the fastest, or 0 unless another takes clearly less time. They run in turn, so that what else the
    machine does meets all of them alike."""
    times = [one.seconds() for one in candidates]
    if max(times) < BUDGET:
        times = [one.seconds() for one in candidates]  # code and data are in the caches now
    near = [k for k, t in enumerate(times) if k == 0 or t < HOPELESS * min(times)]
    _repeat(candidates, near, times)
    best = min(near, key=lambda k: times[k])
    if times[best] > (1 - GAIN) * times[0]:
        return 0
    # The least of many times is luck to a part: it has to be found again.
    for _ in range(DUELS):
        again = [one.seconds() if k in (0, best) else 0.0 for k, one in enumerate(candidates)]
        _repeat(candidates, [0, best], again)
        if again[best] > (1 - GAIN) * again[0]:
            return 0
    return best


def _repeat(candidates: Sequence[Timed], some: Sequence[int], times: list[float]) -> None:
    """Lower the times of some to the least of as many runs as the budget allows in each of its parts."""
    slowest = max(times[k] for k in some)
    for _ in range(min(MOST_RUNS, int(BUDGET / (1 + DUELS) / slowest))):
        for k in some:
            times[k] = min(times[k], candidates[k].seconds())
