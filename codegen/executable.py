"""A compiled program bound to memory: one native call per run."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen import threads
from codegen.driver import BARRIER, GUARD
from codegen.plan import MemoryPlan, Work
from symgrad.graph import Node
from symgrad.program import Program
from symgrad.storage import aligned_copy

if TYPE_CHECKING:
    from symgrad.types import Array

# Work that takes less is done by the calling thread alone: waking others costs more than they save.
PARALLEL_NS = 60_000


@dataclass(frozen=True, slots=True)
class Launchable:
    """A work with its machine code, whether workers meet before it, and what keeps the code mapped."""

    work: Work
    address: int
    scratch_bytes: int
    barrier: bool
    code: object


class Context:
    """Memory of one call in flight: arena, scratch, slots and the records that the driver reads."""

    __slots__ = ("_keep", "address", "slots")

    def __init__(self, executable: Executable) -> None:
        launches = executable.launches
        slot_of = executable.slot_of
        memory = executable.memory
        arena = _aligned_bytes(memory.bytes)
        scratch_stride = max([one.scratch_bytes for one in launches], default=0) + 64
        scratch = _aligned_bytes(scratch_stride * executable.workers)
        self.slots = (ctypes.c_int64 * len(slot_of))()
        self.slots[0] = arena.ctypes.data
        for slot, array in executable.standing.items():
            self.slots[slot_of[slot]] = array.ctypes.data
        args: list[Array] = []
        records: list[threads.Launch] = []
        guarded = not executable.checks
        for one in launches:
            places = [memory.places[v] for v in one.work.values]
            pairs = np.array([(slot_of[p.slot], p.offset) for p in places], np.int64)
            args.append(pairs)
            flags = BARRIER if one.barrier else 0
            if not guarded and any(memory.places[v].slot in executable.state_slots for v in one.work.writes):
                flags |= BARRIER | GUARD
                guarded = True
            records.append(threads.Launch(one.address, one.work.kernel.units, flags, pairs.ctypes.data))
        table = threads.launch_records(records)
        barrier = threads.barrier_record()
        status = np.zeros(8, np.int64)
        record = threads.context_record(
            slots=ctypes.addressof(self.slots),
            launches=table.ctypes.data,
            count=len(records),
            barrier=barrier.ctypes.data,
            status=status.ctypes.data,
            scratch=scratch.ctypes.data,
            scratch_stride=scratch_stride,
        )
        self.address = int(record.ctypes.data)
        self._keep = (arena, scratch, args, table, barrier, status, record)


class Executable:
    """A program compiled for concrete sizes. `run` is safe from many threads: each call takes a context of its own."""

    def __init__(
        self,
        program: Program,
        launches: tuple[Launchable, ...],
        memory: MemoryPlan,
        workers: int,
    ) -> None:
        self.program = program
        self.launches = launches
        self.memory = memory
        self.workers = workers
        self.standing = _standing(program)
        self.state_slots = {value_name(n) for n in program.states}
        self.checks = [n for n in program.nodes if n.op.name == "check_index"]
        names = ["arena", *self.standing]
        names += [value_name(n) for n in program.inputs]
        names += [f"output:{k}" for k in range(len(program.outputs))]
        self.slot_of = {name: k for k, name in enumerate(dict.fromkeys(names))}
        self.input_slots = [self.slot_of[value_name(n)] for n in program.inputs]
        self.output_slots = [self.slot_of[f"output:{k}"] for k in range(len(program.outputs))]
        self.parallel = workers > 1 and sum(one.work.ns for one in launches) > PARALLEL_NS
        self._run = threads.shared_pool(workers).run if self.parallel else threads.serial_entry()
        self._free: list[Context] = []

    def run(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        """Run on arrays at these addresses (C-contiguous, of the program's types). Returns the status, 0 if well."""
        try:
            context = self._free.pop()
        except IndexError:
            context = Context(self)
        slots = context.slots
        for slot, address in zip(self.input_slots, inputs, strict=True):
            slots[slot] = address
        for slot, address in zip(self.output_slots, outputs, strict=True):
            slots[slot] = address
        status = self._run(context.address)
        self._free.append(context)
        return status

    def report(self) -> str:
        """A line per kernel (| where workers meet before it), then the totals."""
        works = [one.work for one in self.launches]
        lines = ["      operations         bytes  kernel", *(_line(one) for one in self.launches)]
        total = f"{len(works)} kernels, {len({one.address for one in self.launches})} distinct"
        lines.append(
            f"  {total}; {sum(w.flops for w in works):,} operations; {sum(w.bytes for w in works):,} bytes touched; "
            f"arena {self.memory.bytes:,} bytes; {self.workers if self.parallel else 1} workers"
        )
        return "\n".join(lines)


def _line(one: Launchable) -> str:
    work = one.work
    meet = "|" if one.barrier else " "
    return f"  {meet} {work.flops:>13,} {work.bytes:>13,}  {work.label}"


def value_name(node: Node) -> str:
    """What a stored node is called in plans: named nodes by kind and name, others by number."""
    return f"{node.op.name}:{node.name}" if node.name else f"n{node.id}"


def _standing(program: Program) -> dict[str, Array]:
    """The arrays that stand in memory for as long as the program: states and constants."""
    arrays = {value_name(n): program.graph.storage[n.attrs[0]].array for n in program.states}
    for node in program.nodes:
        if node.op.name == "const" and node.ndim:
            arrays[value_name(node)] = aligned_copy(node.attrs[0].array)
    return arrays


def _aligned_bytes(count: int) -> Array:
    return aligned_copy(np.zeros(max(count, 64), np.uint8))
