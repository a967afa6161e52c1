"""A compiled program bound to memory: one native call per run."""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from codegen import threads
from codegen.driver import BARRIER, GUARD
from codegen.footprint import peak_lines
from codegen.memory import zeros
from codegen.plan import MemoryPlan, Task, original
from codegen.profile import Profile, kernel_table
from codegen.target import CACHE_LINE
from symgrad.graph import Node, describe
from symgrad.program import Program
from symgrad.record import record
from symgrad.storage import aligned_copy
from symgrad.types import static_size

if TYPE_CHECKING:
    from symgrad.types import Array

# Work that takes less is done by the calling thread alone: waking others costs more than they save.
PARALLEL_NS = 25_000
# Other threads of Python may run during work that takes more: letting them costs something too.
LONG_NS = 10_000
# Workers share what is left of kernels that take each of them longer, so that nobody waits for one that comes late.
SHARED_NS = 5_000
# A worker's part of them is done in pieces that take about so long, or in so many.
PIECE_NS = 20_000
PIECES = (8, 64)


def uses_workers(workers: int, ns: float) -> bool:
    """Whether work that takes one worker so many nanoseconds is shared by several."""
    return workers > 1 and ns > PARALLEL_NS


def pieces_of(workers: int, ns: float) -> int:
    """The pieces of each part of a kernel that takes one worker so many nanoseconds; 0 where no part is divided."""
    if workers == 1 or ns <= SHARED_NS * workers:
        return 0
    return min(max(PIECES[0], int(ns / workers / PIECE_NS)), PIECES[1])


# Where CPython keeps the data pointer of an array: right after the object header.
_HEADER = object.__basicsize__


def _data_field_works() -> bool:
    probe = np.arange(3)
    return ctypes.c_size_t.from_address(id(probe) + _HEADER).value == probe.ctypes.data


def _address(array: Array) -> int:
    return int(array.ctypes.data)


# Reading the field in native code takes a hundredth of the time of `array.ctypes.data`; other interpreters lay arrays
# out otherwise.
_OBJECTS = sys.implementation.name == "cpython" and _data_field_works()
_where: Callable[[Array], int] = id if _OBJECTS else _address


@record
class Launchable:
    """A task with its machine code, whether workers meet before it, and what keeps the code mapped."""

    task: Task
    address: int
    scratch_bytes: int
    barrier: bool
    code: object


class Context:
    """Memory of one call in flight: arena, scratch, slots and the records that the driver reads.

    `bind` takes where the inputs and outputs are: the arrays as objects in CPython, else their data. The record says
    where everything else is.
    """

    __slots__ = ("_keep", "_table", "address", "bind", "record")

    def __init__(self, executable: Executable) -> None:
        launches = executable.launches
        slot_of = executable.slot_of
        memory = executable.memory
        arena = zeros(max(memory.bytes, CACHE_LINE))
        slots = np.zeros(len(slot_of) + 1, np.int64)
        slots[0] = arena.ctypes.data
        for slot, array in executable.standing.items():
            slots[slot_of[slot]] = array.ctypes.data
        # Inputs and outputs have the last slots; one more, so that there is one.
        bound = slots[len(slot_of) - executable.bound :]
        given = np.zeros_like(bound) if _OBJECTS else bound
        self.bind = partial(struct.Struct(f"{executable.bound}P").pack_into, given.data.cast("B"), 0)
        args: list[Array] = []
        records: list[threads.Launch] = []
        guarded = not executable.checks
        workers = executable.workers if executable.parallel else 1
        pieces = [pieces_of(workers, one.task.ns) for one in launches]
        counters = threads.counter_records(sum(map(bool, pieces)), executable.workers)
        unused = iter(counters)
        for one, most in zip(launches, pieces, strict=True):
            places = [memory.places[v] for v in one.task.values]
            pairs = np.array([(slot_of[p.slot], p.offset) for p in places], np.int64)
            args.append(pairs)
            flags = BARRIER if one.barrier else 0
            if not guarded and any(memory.places[v].slot in executable.state_slots for v in one.task.writes):
                flags |= BARRIER | GUARD
                guarded = True
            count = next(unused).ctypes.data if most else 0
            records.append(threads.Launch(one.address, one.task.units, flags, pairs.ctypes.data, count, most))
        made = threads.prepared(
            slots,
            records,
            max([one.scratch_bytes for one in launches], default=0),
            executable.workers,
            (executable.bound, given.ctypes.data, bound.ctypes.data, _HEADER) if _OBJECTS else (0, 0, 0, 0),
        )
        self.address = int(made.context.ctypes.data)
        self.record, self._table = made.context, made.table
        self._keep = (arena, args, given, counters, made)

    def choose(self, first: int, count: int) -> None:
        """Let the next run be of `count` launches from a first one on."""
        self.record[1] = self._table.ctypes.data + first * self._table.itemsize * self._table.shape[1]
        self.record[2] = count


class Executable:
    """A program compiled for concrete sizes. `run` is safe from many threads: each call takes a context of its own."""

    def __init__(
        self,
        program: Program,
        outputs: tuple[Node, ...],
        launches: tuple[Launchable, ...],
        memory: MemoryPlan,
        workers: int,
        *,
        profiled: bool = False,
        sizes: Callable[[], Mapping[str, int]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """`outputs` have the shapes that the program's outputs are returned in.

        `sizes` gives the bytes of values as numbers that remember the symbolic extents they come from.
        `notes` are further lines of the report.
        """
        self.program = program
        self.outputs = outputs
        self.sizes = sizes
        self.notes = tuple(notes)
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
        self.bound = len(program.inputs) + len(program.outputs)
        ns = sum(one.task.ns for one in launches)
        self.parallel = uses_workers(workers, ns)
        self.is_long = self.parallel or ns > LONG_NS
        pool = threads.shared_pool(workers) if self.parallel else None
        self._run = threads.serial_entry() if pool is None else pool.run
        # Where the control block of the pool is told, for native callers; 0 without one.
        self.control = 0 if pool is None else pool.control_at
        # Contexts of no call in flight.
        self.contexts: list[Context] = []
        self.profile = Profile(len(launches)) if profiled else None

    def run(self, arrays: Sequence[Array]) -> int:
        """Run on inputs and outputs, C-contiguous arrays of the program's types. Returns the status, 0 if well."""
        try:
            context = self.contexts.pop()
        except IndexError:
            context = Context(self)
        context.bind(*map(_where, arrays))
        status = self._run(context.address) if self.profile is None else self._profiled(context, self.profile)
        self.contexts.append(context)
        return status

    def _profiled(self, context: Context, profile: Profile) -> int:
        """Run kernel by kernel, and note the times; before that nothing, to wake the workers, and to time nothing."""
        status = 0
        times: list[int] = []
        for k in (-1, *range(-1, len(self.launches))):
            context.choose(max(k, 0), int(k >= 0))
            start = time.perf_counter_ns()
            status = self._run(context.address)
            times.append(time.perf_counter_ns() - start)
            if status:
                break
        context.choose(0, len(self.launches))
        if not status:
            profile.note(times[1], times[2:])
        return status

    def report(self) -> str:
        """A line per kernel (| where workers meet before it), the totals, what takes the memory; measured times."""
        tasks = [one.task for one in self.launches]
        about = Describer(self.program, tasks)
        used = self.workers if self.parallel else 1
        timed = self.profile if self.profile is not None and self.profile.calls else None
        lines = kernel_table(tasks, [one.barrier for one in self.launches], about.kernel, timed, used)
        total = f"{len(tasks)} kernels, {len({one.address for one in self.launches})} distinct"
        lines.append(
            f"  {total}; {sum(t.flops for t in tasks):,} operations; {sum(t.bytes for t in tasks):,} bytes touched; "
            f"arena {self.memory.bytes:,} bytes; {used} worker{'s' if used > 1 else ''}"
        )
        if timed is not None:
            lines.append(f"  {timed.summary(used)}")
        return "\n".join([*lines, *(f"  {line}" for line in (*self.notes, *self._memory_lines(tasks, about)))])

    def _memory_lines(self, tasks: Sequence[Task], about: Describer) -> list[str]:
        """What takes memory: first what is outside of the arena, then its peak."""
        states = [array.nbytes for slot, array in self.standing.items() if slot in self.state_slots]
        parts = {
            "inputs": sum(map(node_bytes, self.program.inputs)),
            "outputs": sum(map(node_bytes, self.program.outputs)),
            "states": sum(states),
            "constants": sum(array.nbytes for array in self.standing.values()) - sum(states),
            "scratch of workers": self.workers * max([one.scratch_bytes for one in self.launches], default=0),
        }
        text = ", ".join(f"{name} {count:,} bytes" for name, count in parts.items())
        sizes: Mapping[str, int] = self.sizes() if self.sizes is not None else {}
        return [
            f"outside of the arena: {text}",
            *peak_lines(tasks, self.memory, about.value, about.kernel, sizes),
        ]


class Describer:
    """Tells of values and kernels of a program what they are and where the user made them."""

    def __init__(self, program: Program, tasks: Sequence[Task]) -> None:
        self._nodes = {n.id: n for n in program.nodes}
        self._named = {value_name(n): n for n in program.nodes}
        self._writer = {v: t for t in tasks for v in t.writes}

    def value(self, value: str) -> str:
        node = self._named.get(original(value))
        if node is None:
            return self.kernel(self._writer[value])
        return describe(node) + (" (again)" if original(value) != value else "")

    def kernel(self, task: Task) -> str:
        """Its label, and the first lines that it is made from."""
        places = (self._nodes[k].loc for k in task.nodes)
        lines = list(dict.fromkeys(str(place) for place in places if place is not None))
        return " ".join([task.label, *lines[:3]])


def value_name(node: Node) -> str:
    """What a stored node is called in plans: named nodes by kind and name, others by number."""
    return f"{node.op.name}:{node.name}" if node.name else f"n{node.id}"


def node_bytes(node: Node) -> int:
    """The bytes of the value of a node with static extents."""
    return static_size(node.shape) * node.dtype.itemsize


def _standing(program: Program) -> dict[str, Array]:
    """The arrays that stand in memory for as long as the program: states and constants."""
    arrays = {value_name(n): program.graph.storage[n.attrs[0]].array for n in program.states}
    for node in program.nodes:
        if node.op.name == "const" and node.ndim:
            arrays[value_name(node)] = aligned_copy(node.attrs[0].array)
    return arrays
