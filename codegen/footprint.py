"""What takes the memory of a plan: the peak of the arena, its values, and their bytes as a formula of the sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from codegen.plan import MemoryPlan, Place, Task, original
from symgrad.record import record
from symgrad.types import Dim, unbound

# Values at the peak that are named one by one.
NAMED_VALUES = 8
# The share of a peak that counts as about as much.
NEAR = 0.97


@record
class Peak:
    """The number of the work at which most bytes of the arena are in use, those bytes, and the values they hold.

    `count` is the number of works at which about as many are.
    """

    work: int
    bytes: int
    values: tuple[str, ...]
    count: int


def peak_of(works: Sequence[Task], memory: MemoryPlan) -> Peak:
    """The first peak of the arena. A value that is written over another counts when that one is read no more."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for k, work in enumerate(works):
        for value in work.values:
            if memory.places[value].slot == "arena":
                first.setdefault(value, k)
                last[value] = k
    until: dict[Place, int] = {}
    change = np.zeros(len(works) + 1, np.int64)
    for value, stop in last.items():
        place = memory.places[value]
        if until.get(place) == first[value]:
            first[value] += 1
        until[place] = stop
        if first[value] <= stop:
            change[first[value]] += place.size
            change[stop + 1] -= place.size
    used = np.cumsum(change)
    k = int(np.argmax(used))
    alive = [v for v in first if first[v] <= k <= last[v]]
    values = sorted(alive, key=lambda v: (-memory.places[v].size, first[v]))
    return Peak(k, int(used[k]), tuple(values), int(np.count_nonzero(used > NEAR * used[k])))


def peak_lines(
    works: Sequence[Task],
    memory: MemoryPlan,
    describe: Callable[[str], str],
    describe_kernel: Callable[[Task], str],
    sizes: Mapping[str, int],
) -> list[str]:
    """The peak of the arena, as bytes and as a formula, then the values it holds, the largest first.

    `describe` names a value, `describe_kernel` a kernel. `sizes` are bytes of values that may remember the symbolic
    extents they come from; what is added to align a value counts as a constant, so that a formula is exact for the
    sizes it is made from.
    """
    if not memory.bytes:
        return ["peak 0 bytes: no intermediate value is stored"]
    peak = peak_of(works, memory)

    def text(values: Sequence[str]) -> str:
        total = 0
        for value in values:
            taken = memory.places[value].size
            known = sizes.get(original(value), taken)
            total = total + known + (taken - int(known))
        formula = unbound(total)
        return f"{total:,} bytes" + (f" = {formula}" if isinstance(formula, Dim) else "")

    lines = [f"peak {text(peak.values)}, at kernel {peak.work + 1}: {describe_kernel(works[peak.work])}"]
    named, rest = peak.values[:NAMED_VALUES], peak.values[NAMED_VALUES:]
    lines += [f"  {text([value])}: {describe(value)}" for value in named]
    if rest:
        lines.append(f"  {text(rest)}: {len(rest)} smaller values")
    return lines
