"""Workers: native threads that run a list of kernels together, and the fixed driver that leads them through it.

The driver is LLVM text, compiled once per process on first use. A run needs one call from Python, whatever the number
of kernels. All records are arrays of int64 in memory that the caller keeps alive for the run; addresses are int64.

Kernel      void kernel(ptr slots, ptr args, i64 begin, i64 end, ptr scratch, ptr status)
            runs iterations begin to end of its parallel loop. It stores a value other than 0 at `status` (i64) to
            report a failure. `args` is its own record: pairs of slot index and byte offset.
Launch      LAUNCH_FIELDS values: kernel address, extent, flags, args address, address of counters or 0, pieces.
Context     CONTEXT_FIELDS values, see `context_record`.
Barrier     BARRIER_BYTES of zeros, aligned to 64 bytes, see `barrier_record`; one per context.

Worker w of n runs iterations extent*w//n to extent*(w+1)//n of each launch, in launch order. Where a launch has
counters it does so piece by piece, in so many at most, and then pieces that are left of other workers' parts. Before
each launch the words of a worker's scratch memory are -1 that say what divided loops came to, see `writer.ENTERED`.
Every run starts with the floating-point environment of IEEE 754 (round to nearest, no flushing of subnormal numbers)
on every worker.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codegen import jit
from codegen.driver import (
    BARRIER_BYTES,
    COUNTER_BYTES,
    LAUNCH_FIELDS,
    WORKERS,
    driver_text,
)
from codegen.memory import zeros
from codegen.placement import LATE, LATE_NS, PLACES, RECORD_BYTES, RECORDS, SEEN
from symgrad.errors import CompileError

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[np.int64]


# The least effort of code generation spares every process 10 ms at its first call and costs a few cycles per kernel.
DRIVER_LEVEL = 0
_SPIN_SECONDS = 1e-6  # how long a waiting worker spins before it lets others run


class Launch(NamedTuple):
    """One kernel of a run: where it is, its parallel extent, BARRIER | SERIAL | GUARD, where args and counters are.

    With counters, a worker's part is done in so many pieces at most, each by who is first to come for it.
    """

    kernel: int
    extent: int
    flags: int = 0
    args: int = 0
    counters: int = 0
    pieces: int = 0


def launch_records(launches: Sequence[Launch]) -> Words:
    """The launches as the driver reads them, shape (len(launches), LAUNCH_FIELDS)."""
    records = np.zeros((len(launches), LAUNCH_FIELDS), np.int64)
    for record, launch in zip(records, launches, strict=True):
        record[:] = launch
    return records


def context_record(
    *,
    slots: int,
    launches: int,
    count: int,
    barrier: int,
    status: int,
    scratch: int,
    scratch_stride: int,
    objects: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Words:
    """What one run needs, shape (CONTEXT_FIELDS,).

    Addresses of the array of slot pointers, of the launch records (`count` of them), of the barrier, of the status
    (one int64, set to 0 when a run starts) and of worker 0's scratch memory; worker w's scratch is w strides of bytes
    further. `objects` are how many objects there are, the address of an array of their addresses, that of the slots
    their data belong to, and how far behind the start of an object the address of its data stands. One context serves
    one run at a time.
    """
    return np.array([slots, launches, count, barrier, status, scratch, scratch_stride, *objects, 0], np.int64)


class Prepared(NamedTuple):
    """What a run of launches reads: the context, the table of launches, and the memory both say where to find."""

    context: Words
    table: Words
    memory: object


def prepared(
    slots: Words,
    launches: Sequence[Launch],
    scratch_bytes: int,
    workers: int,
    objects: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Prepared:
    """A context for launches that take so many bytes of scratch memory each, with all it needs besides their memory."""
    table = launch_records(launches)
    barrier, status = barrier_record(), np.zeros(8, np.int64)
    stride = scratch_bytes + 64
    scratch = zeros(stride * workers)
    context = context_record(
        slots=slots.ctypes.data,
        launches=table.ctypes.data,
        count=len(launches),
        barrier=barrier.ctypes.data,
        status=status.ctypes.data,
        scratch=scratch.ctypes.data,
        scratch_stride=stride,
        objects=objects,
    )
    return Prepared(context, table, (slots, table, barrier, status, scratch))


def barrier_record() -> Words:
    """A barrier nobody waits at, on cache lines of its own."""
    return zeros(BARRIER_BYTES).view(np.int64)


def counter_records(launches: int, workers: int) -> Words:
    """Counters for launches of one context, a row for each: they let workers share what is left of their parts."""
    return zeros(launches * workers * COUNTER_BYTES).view(np.int64).reshape(launches, workers * COUNTER_BYTES // 8)


def default_workers() -> int:
    """How many workers can run at once: the processors this process may use; 1 where there are no POSIX threads."""
    if not _has_threads():
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_serial(context: int) -> int:
    """Run the context at this address on the calling thread alone. Returns its status."""
    return _driver().serial(context)


def serial_entry() -> Callable[[int], int]:
    """`run_serial` as the bare native function, for those who call it often. Valid as long as the process."""
    return _driver().serial


def entry_symbols() -> tuple[int, int]:
    """Addresses of the function and of the table of `entry`. Valid as long as the process."""
    library = _driver().library
    return library.address("symgrad_call"), library.address("symgrad_table")


class Pool:
    """`workers` - 1 native threads that, with the caller, run contexts.

    The threads never hold the interpreter lock, sleep between runs and do not keep the process from exiting. A pool
    lives until `close`, or as long as the process. After a fork the child starts threads of its own on first use.
    """

    __slots__ = ("_control", "_control_word", "_run", "_threads", "control_at", "workers")

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise CompileError(f"Pool: a run needs at least one worker, not {workers}")
        if workers > 1 and not _has_threads():
            raise CompileError(f"Pool: {workers} workers were asked for; this system offers no POSIX threads: use 1")
        self.workers = workers
        self._control_word = np.zeros(1, np.int64)
        # Where native callers find the control block, 0 while there are no threads.
        self.control_at = int(self._control_word.ctypes.data)
        self._control = 0
        self._threads: list[int] = []
        self._run = _driver().parallel

    def run(self, context: int) -> int:
        """Run the context at this address on all workers. Returns its status when all have finished.

        When the pool is busy with another run the caller runs this one alone: the slices differ, the result of
        kernels does not depend on them.
        """
        return self._run(self._control or self._start(), context)

    def close(self) -> None:
        """End the threads. No run may be in flight; the pool starts again when it is used again."""
        with _lock:
            control = self._control
            self._set_control(0)
            if control:
                _stop(control, self._threads)
                _pools.remove(self)

    def _start(self) -> int:
        with _lock:
            if not self._control:
                control, self._threads = _start(self.workers)
                self._set_control(control)
                _pools.append(self)
            return self._control

    def _forget(self) -> None:
        """The threads and their control block belong to another process."""
        self._threads = []
        self._set_control(0)

    def _set_control(self, control: int) -> None:
        self._control = self._control_word[0] = control


def shared_pool(workers: int) -> Pool:
    """The one pool of this many workers."""
    with _lock:
        return _shared_pool(workers)


@cache
def _shared_pool(workers: int) -> Pool:
    return Pool(workers)


_lock = threading.RLock()  # building and stopping; registered after jit's lock, which is taken inside this one
_pools: list[Pool] = []  # those with threads


def _after_fork() -> None:
    for pool in _pools:
        pool._forget()  # pyright: ignore[reportPrivateUsage]
    _pools.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)


def _has_threads() -> bool:
    return os.name == "posix"


def _start(workers: int) -> tuple[int, list[int]]:
    """A control block and the threads that serve it. The block is never freed: threads read it at process exit."""
    driver, libc = _driver(), _libc()
    control = libc.calloc(1, RECORDS + RECORD_BYTES * workers + 64)
    control += -control % 64
    _poke(control + WORKERS, workers)
    # With fewer processors than workers some must share.
    _poke(control + PLACES, int(1 < workers <= default_workers()))
    _poke(control + LATE, LATE_NS)
    threads: list[int] = []
    if workers == 1:
        return control, threads
    # Signals are for Python's own threads: the new ones inherit a mask that blocks all.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for number in range(1, workers):
            record = control + RECORDS + RECORD_BYTES * number
            _poke(record, control)
            _poke(record + 8, number)
            ctypes.c_int32.from_address(record + SEEN).value = -1
            thread = ctypes.c_ulong()
            code = libc.pthread_create(ctypes.byref(thread), None, driver.worker, record)
            if code:
                _stop(control, threads)
                name = errno.errorcode.get(code, str(code))
                raise CompileError(f"Pool: the system refuses thread {number} of {workers} ({name}); use fewer workers")
            threads.append(thread.value)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return control, threads


def _stop(control: int, threads: list[int]) -> None:
    _driver().stop(control)
    for thread in threads:
        _libc().pthread_join(thread, None)


def _poke(address: int, value: int) -> None:
    ctypes.c_int64.from_address(address).value = value


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.calloc.argtypes, library.calloc.restype = (
        (ctypes.c_size_t, ctypes.c_size_t),
        ctypes.c_size_t,
    )
    library.pthread_create.argtypes = (ctypes.c_void_p,) * 4
    library.pthread_join.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
    return library


_ENTRIES = ("serial", "parallel", "stop", "worker", "pause", "spins", "call", "table")


class _Driver(NamedTuple):
    library: jit.Library
    serial: Callable[[int], int]
    parallel: Callable[[int, int], int]
    stop: Callable[[int], None]
    worker: int


def missing_driver() -> str | None:
    """The LLVM text of the driver while this process has none. Its object can be offered."""
    return None if _driver.cache_info().currsize else driver_text(jit.host_target().triple)


def offer_driver(code: bytes) -> None:
    """The object of the driver's text for this machine, made beside other code, for when the driver is needed."""
    _offered.append(code)


_offered: list[bytes] = []


@cache
def _driver() -> _Driver:
    """The driver's entry points, kept for the life of the process: threads sleep in its code."""
    with _lock:
        return _build_driver()


@cache
def _build_driver() -> _Driver:
    """Runs under the lock: a second driver would be dropped, and with it code that a caller holds."""
    target = jit.host_target()
    code = _offered.pop() if _offered else jit.compile_object(driver_text(target.triple), target, level=DRIVER_LEVEL)
    _offered.clear()
    library = jit.link([code], [f"symgrad_{name}" for name in _ENTRIES])
    at, pointer, word = library.address, ctypes.c_void_p, ctypes.c_int64
    _poke(at("symgrad_spins"), _spins(ctypes.CFUNCTYPE(None, word)(at("symgrad_pause"))))
    return _Driver(
        library,
        ctypes.CFUNCTYPE(word, pointer)(at("symgrad_serial")),
        ctypes.CFUNCTYPE(word, pointer, pointer)(at("symgrad_parallel")),
        ctypes.CFUNCTYPE(None, pointer)(at("symgrad_stop")),
        at("symgrad_worker"),
    )


def _spins(pause: Callable[[int], None]) -> int:
    """How many pauses fill the spin time: one takes 10 to 150 cycles, depending on the processor."""
    tries: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        pause(500)
        tries.append(time.perf_counter() - start)
    return int(_SPIN_SECONDS / (min(tries) / 500)) + 1
