"""Places of values in memory, and where workers must meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from codegen.loop import Kernel

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel to run: `values` names what each parameter stands for.

    `flops` counts operations, `ns` estimates the time of one worker, `checks` says that it can report a failure.
    """

    kernel: Kernel
    values: tuple[str, ...]
    label: str
    flops: int = 0
    ns: float = 0.0
    checks: bool = False

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: a byte offset in a slot."""

    slot: str
    offset: int
    size: int

    def overlaps(self, other: Place) -> bool:
        same = self.slot == other.slot
        return same and self.offset < other.offset + other.size and other.offset < self.offset + self.size


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Arena bytes, the place of every value, and for each work whether workers meet before it."""

    bytes: int
    places: Mapping[str, Place]
    barriers: tuple[bool, ...]


def plan(works: Sequence[Work], sizes: Mapping[str, int], fixed: Mapping[str, Place]) -> MemoryPlan:
    """Give every value without a fixed place one in the arena, reusing the memory of values nobody needs any more.

    `sizes` are the bytes of the values to place. Larger values are placed first, each at the lowest offset where
    nothing lives at the same time.
    """
    life: dict[str, tuple[int, int]] = {}
    for k, work in enumerate(works):
        for value in work.values:
            if value in sizes:
                first, _ = life.get(value, (k, k))
                life[value] = (first, k)
    places = dict(fixed)
    placed: list[tuple[str, Place]] = []
    total = 0
    for value in sorted(life, key=lambda v: (-sizes[v], life[v])):
        taken = sorted((p.offset, p.offset + p.size) for other, p in placed if _meet(life[other], life[value]))
        offset, size = 0, -(-sizes[value] // ALIGNMENT) * ALIGNMENT
        for start, stop in taken:
            if offset + size <= start:
                break
            offset = max(offset, stop)
        place = Place("arena", offset, size)
        placed.append((value, place))
        places[value] = place
        total = max(total, offset + size)
    barriers = _barriers(works, places)
    return MemoryPlan(total, places, barriers)


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


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
