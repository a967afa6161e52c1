"""Places of values in memory, and where workers must meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from codegen.loop import Kernel
from symgrad.record import record

ALIGNMENT = 64
_AGAIN = " again "


@record
class Work:
    """One kernel to run: `values` names what each parameter stands for.

    `flops` counts operations, `ns` estimates the time of one worker, `checks` says that it can report a failure.
    `nodes` are the ids of the nodes that it computes.
    """

    kernel: Kernel
    values: tuple[str, ...]
    label: str
    flops: int = 0
    ns: float = 0.0
    checks: bool = False
    nodes: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The values it reads; one that it updates in place counts as written only."""
        return tuple(v for v, b in zip(self.values, self.kernel.params, strict=True) if not b.written)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(v for v, b in zip(self.values, self.kernel.params, strict=True) if b.written)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(b.size * b.dtype.itemsize for b in self.kernel.params)

    @property
    def task(self) -> Task:
        """The work without its loops."""
        return Task(
            self.values, self.writes, self.kernel.units, self.bytes, self.label, self.flops, self.ns, self.nodes
        )


@record
class Task:
    """What is known of a work when its code is made: of its kernel the units of its parallel loops are left."""

    values: tuple[str, ...]
    writes: tuple[str, ...]
    units: int
    bytes: int
    label: str
    flops: int
    ns: float
    nodes: tuple[int, ...]


def rounded(count: int) -> int:
    """The bytes that so many take in the arena."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def again_name(value: str, count: int) -> str:
    """The name of a value that is computed again, for a number of times that it was computed before."""
    return f"{original(value)}{_AGAIN}{count}"


def original(value: str) -> str:
    """The name of the value that one of the name of `again_name` is the same as; of others their own."""
    return value.partition(_AGAIN)[0]


@record
class Place:
    """Where a value stands: a byte offset in a slot."""

    slot: str
    offset: int
    size: int

    def overlaps(self, other: Place) -> bool:
        same = self.slot == other.slot
        return same and self.offset < other.offset + other.size and other.offset < self.offset + self.size


@record
class MemoryPlan:
    """Arena bytes, the place of every value, and for each work whether workers meet before it.

    `least` are the most bytes that are in use at one time: without gaps the arena would be that small.
    """

    bytes: int
    places: Mapping[str, Place]
    barriers: tuple[bool, ...]
    least: int


def plan(
    works: Sequence[Work],
    sizes: Mapping[str, int],
    fixed: Mapping[str, Place],
    over: Mapping[str, str] | None = None,
) -> MemoryPlan:
    """Give every value without a fixed place one in the arena, reusing the memory of values nobody needs any more.

    `sizes` are the bytes of the values to place. `over` gives for values the one of equal size that they are written
    over, which nobody reads after; such values have one place, that of the one of them that is fixed if there is one.
    Values are placed at the lowest offset where nothing lives at the same time: the larger, the longer alive or the
    earlier ones first, whichever takes the fewest bytes.
    """
    block, pinned, blocks = _blocks(works, sizes, fixed, over or {})
    least = most_alive(blocks)
    total, offsets = 0, dict[str, int]()
    for urgency in (_largest, _longest, _earliest):
        found = _offsets(sorted(blocks, key=urgency))
        size = max((found[b.value] + b.size for b in blocks), default=0)
        if not offsets or size < total:
            total, offsets = size, found
        if total == least:
            break
    own_place = {b.value: Place("arena", offsets[b.value], b.size) for b in blocks} | pinned
    places = {value: own_place[own] for value, own in block.items() if value in sizes} | dict(fixed)
    return MemoryPlan(total, places, _barriers(works, places), least)


@record
class Block:
    """Memory of so many bytes that is in use from one work to another, both included."""

    value: str
    size: int
    first: int
    last: int


def least_bytes(works: Sequence[Work], sizes: Mapping[str, int], fixed: Mapping[str, Place]) -> int:
    """The bytes that no plan without values written over others can do with."""
    return most_alive(_blocks(works, sizes, fixed, {})[2])


def _blocks(
    works: Sequence[Work], sizes: Mapping[str, int], fixed: Mapping[str, Place], over: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Place], list[Block]]:
    """For each value the one whose memory it has, the places that are known of such, and the others as blocks."""
    block: dict[str, str] = {}
    for work in works:
        for value in work.values:
            if value not in block:
                old = over.get(value)
                block[value] = value if old is None else block[old]
    pinned = {block[value]: fixed[value] for value in over if value in fixed}
    life: dict[str, tuple[int, int]] = {}
    for k, work in enumerate(works):
        for value in work.values:
            if value in sizes and (own := block[value]) not in pinned:
                first, _ = life.get(own, (k, k))
                life[own] = (first, k)
    return block, pinned, [Block(v, rounded(sizes[v]), first, last) for v, (first, last) in life.items()]


def most_alive(blocks: Sequence[Block]) -> int:
    """The most bytes that are in use at one time: no plan takes less."""
    changes = sorted([(b.first, b.size) for b in blocks] + [(b.last + 1, -b.size) for b in blocks])
    return max(itertools.accumulate(size for _, size in changes), default=0)


def _largest(block: Block) -> tuple[int, ...]:
    return (-block.size, block.first, block.last)


def _longest(block: Block) -> tuple[int, ...]:
    return (block.first - block.last, -block.size, block.first)


def _earliest(block: Block) -> tuple[int, ...]:
    return (block.first, -block.size, block.last)


def _offsets(blocks: Sequence[Block]) -> dict[str, int]:
    """For every block in turn the lowest offset where nothing is in use at the same time."""
    found: dict[str, int] = {}
    # Of the blocks placed so far, from the lowest offset to the highest: a row each for first, last, start and end.
    rows = np.zeros((4, len(blocks)), np.int64)
    for k, block in enumerate(blocks):
        first, last, start, end = rows[:, :k]
        taken = np.flatnonzero((first <= block.last) & (last >= block.first))
        starts, ends = start[taken], np.maximum.accumulate(end[taken])
        # The gaps are below the first of them, between an end so far and the next start, and above all.
        gaps = starts[1:] - ends[:-1] >= block.size
        if not len(taken) or starts[0] >= block.size:
            offset = 0
        else:
            between = int(gaps.argmax()) if len(gaps) else 0
            offset = int(ends[between] if len(gaps) and gaps[between] else ends[-1])
        found[block.value] = offset
        place = int(start.searchsorted(offset))
        rows[:, place + 1 : k + 1] = rows[:, place:k]
        rows[:, place] = block.first, block.last, offset, offset + block.size
    return found


def _barriers(works: Sequence[Work], places: Mapping[str, Place]) -> tuple[bool, ...]:
    """Workers meet before a work that touches what another since the last meeting wrote, or writes what it read."""
    out: list[bool] = []
    reads: dict[str, list[Place]] = {}
    writes: dict[str, list[Place]] = {}
    for work in works:
        own_reads = [places[v] for v in work.reads]
        own_writes = [places[v] for v in work.writes]
        conflict = _any_overlap(own_reads + own_writes, writes) or _any_overlap(own_writes, reads)
        out.append(conflict)
        if conflict:
            reads, writes = {}, {}
        for own, slots in ((own_reads, reads), (own_writes, writes)):
            for place in own:
                slots.setdefault(place.slot, []).append(place)
    return tuple(out)


def _any_overlap(some: Iterable[Place], slots: Mapping[str, Sequence[Place]]) -> bool:
    return any(a.overlaps(b) for a in some for b in slots.get(a.slot, ()))


def check(works: Sequence[Work], memory: MemoryPlan, standing: Iterable[str]) -> None:
    """Simulate the plan: every read must find the value it names whole, and barriers must separate conflicts.

    `standing` are the values that are in memory before the run. AssertionError tells what is wrong. Independent of
    how `plan` decides.
    """
    cells: dict[str, list[tuple[int, int, str]]] = {}

    def write(value: str) -> None:
        place = memory.places[value]
        kept = [c for c in cells.get(place.slot, []) if c[1] <= place.offset or c[0] >= place.offset + place.size]
        cells[place.slot] = [*kept, (place.offset, place.offset + place.size, value)]

    def overlap(value: str, other: str) -> bool:
        return memory.places[value].overlaps(memory.places[other])

    for value in standing:
        write(value)
    # What was written, and what was used at all, in each slot since the last barrier.
    written: dict[str, list[tuple[str, str]]] = {}
    used: dict[str, list[tuple[str, str]]] = {}
    for work, barrier in zip(works, memory.barriers, strict=True):
        if barrier:
            written, used = {}, {}
        for value in work.reads:
            place = memory.places[value]
            found = (place.offset, place.offset + place.size, value)
            # Nothing writes a value without elements, and nothing of it is read.
            assert not place.size or found in cells.get(place.slot, []), (
                f"{work.label} reads {value}, which is not in its place"
            )
        for value in work.writes:
            for label, other in used.get(memory.places[value].slot, ()):
                assert not overlap(other, value), f"{work.label} writes {value} while {label} uses {other}"
        for value in work.reads:
            for label, other in written.get(memory.places[value].slot, ()):
                assert not overlap(other, value), f"{work.label} reads {value} while {label} writes {other}"
        for value in work.writes:
            for other_value in work.values:
                apart = other_value == value or not overlap(other_value, value)
                in_place = memory.places[other_value] == memory.places[value]
                assert apart or in_place, f"{work.label}: {value} partly overlaps {other_value}"
        for value in work.writes:
            write(value)
            written.setdefault(memory.places[value].slot, []).append((work.label, value))
        for value in work.values:
            used.setdefault(memory.places[value].slot, []).append((work.label, value))
