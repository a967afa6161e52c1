"""Workers, barriers and the driver, on kernels written as LLVM text."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from codegen import jit, placement, threads
from codegen.driver import BARRIER, GUARD, SERIAL, driver_text
from codegen.threads import Launch, Pool
from symgrad.record import replace

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Every kernel reads args[0] = (slot, byte offset of its data in it). `fill` writes index + 1; `reverse` writes to its
# second argument what stands at the mirrored place of the first; `count` adds 1 to its worker's scratch and to each
# element; `fail` sets the status; `subnormal` stores 2^-1022 / 2 as computed on its worker; `slow`
# takes 3 ms on all workers but the first; `whose` writes where the scratch of its worker is, and takes 5 ms at 0.
KERNELS = """
define internal ptr @data(ptr %slots, ptr %args, i64 %n) nounwind {
  %i = mul i64 %n, 2
  %j = add i64 %i, 1
  %slot.at = getelementptr i64, ptr %args, i64 %i
  %offset.at = getelementptr i64, ptr %args, i64 %j
  %slot = load i64, ptr %slot.at
  %offset = load i64, ptr %offset.at
  %base.at = getelementptr ptr, ptr %slots, i64 %slot
  %base = load ptr, ptr %base.at
  %p = getelementptr i8, ptr %base, i64 %offset
  ret ptr %p
}
define void @fill(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
start:
  %p = call ptr @data(ptr %slots, ptr %args, i64 0)
  br label %loop
loop:
  %i = phi i64 [ %begin, %start ], [ %next, %loop ]
  %q = getelementptr i64, ptr %p, i64 %i
  %next = add i64 %i, 1
  store i64 %next, ptr %q
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define void @reverse(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
start:
  %a = call ptr @data(ptr %slots, ptr %args, i64 0)
  %b = call ptr @data(ptr %slots, ptr %args, i64 1)
  br label %loop
loop:
  %i = phi i64 [ %begin, %start ], [ %next, %loop ]
  %mirror = sub i64 1022, %i
  %q = getelementptr i64, ptr %a, i64 %mirror
  %x = load i64, ptr %q
  %y = add i64 %x, 1
  %r = getelementptr i64, ptr %b, i64 %i
  store i64 %y, ptr %r
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define void @count(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
start:
  %p = call ptr @data(ptr %slots, ptr %args, i64 0)
  %s = load i64, ptr %scratch
  %s1 = add i64 %s, 1
  store i64 %s1, ptr %scratch
  br label %loop
loop:
  %i = phi i64 [ %begin, %start ], [ %next, %loop ]
  %q = getelementptr i64, ptr %p, i64 %i
  %x = load i64, ptr %q
  %y = add i64 %x, 1
  store i64 %y, ptr %q
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define void @fail(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
  store i64 7, ptr %status
  ret void
}
define void @subnormal(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
  %p = call ptr @data(ptr %slots, ptr %args, i64 0)
  %q = getelementptr double, ptr %p, i64 %begin
  %x = load volatile double, ptr %q
  %y = fmul double %x, 0.5
  store double %y, ptr %q
  ret void
}
declare i32 @usleep(i32)
define void @slow(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
  %first = icmp eq i64 %begin, 0
  br i1 %first, label %done, label %rest
rest:
  call i32 @usleep(i32 3000)
  br label %done
done:
  ret void
}
define void @whose(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status) nounwind {
start:
  %p = call ptr @data(ptr %slots, ptr %args, i64 0)
  %first = icmp eq i64 %begin, 0
  br i1 %first, label %rest, label %loop
rest:
  call i32 @usleep(i32 5000)
  br label %loop
loop:
  %i = phi i64 [ %begin, %start ], [ %begin, %rest ], [ %next, %loop ]
  %q = getelementptr i64, ptr %p, i64 %i
  store ptr %scratch, ptr %q
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""
NAMES = ("fill", "reverse", "count", "fail", "subnormal", "slow", "whose")
SIZE = 1023
PIECES = 8
WORKERS = (1, 2, 3, 7)
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # forking with threads is what is tested


@pytest.fixture(autouse=True)
def built() -> None:
    """Built by one thread: of two that race the code of one would be dropped while it runs."""
    library()


@cache
def library() -> jit.Library:
    return jit.link([jit.compile_object(KERNELS, jit.host_target())], NAMES)


@dataclass
class Run:
    """Two arrays of SIZE in one slot, and a list of (kernel, extent, flags)."""

    steps: list[tuple[str, int, int]]
    workers: int = 1
    shared: bool = False
    a: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, np.int64))
    b: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, np.int64))

    def __post_init__(self) -> None:
        self.slots = np.array([self.a.ctypes.data, self.b.ctypes.data], np.int64)
        self.forward = np.array([0, 0, 1, 0], np.int64)
        self.backward = np.array([1, 0, 0, 0], np.int64)
        self.status = np.zeros(1, np.int64)
        self.scratch = np.zeros((self.workers, 8), np.int64)  # a line each, of which the driver uses a part
        self.barrier = threads.barrier_record()
        args = {"reverse": self.forward, "again": self.backward}
        counters = self.counters = threads.counter_records(len(self.steps), self.workers)
        self.records = threads.launch_records(
            [
                Launch(
                    library().address("reverse" if name == "again" else name),
                    extent,
                    flags,
                    args.get(name, self.forward).ctypes.data,
                    *((counters[k].ctypes.data, PIECES) if self.shared else ()),
                )
                for k, (name, extent, flags) in enumerate(self.steps)
            ]
        )
        self.context = threads.context_record(
            slots=self.slots.ctypes.data,
            launches=self.records.ctypes.data,
            count=len(self.steps),
            barrier=self.barrier.ctypes.data,
            status=self.status.ctypes.data,
            scratch=self.scratch.ctypes.data,
            scratch_stride=64,
        )
        self.address: int = self.context.ctypes.data


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("extent", [0, 1, 2, 5, 7, SIZE])
def test_slices_cover_the_extent_once(workers: int, extent: int) -> None:
    run = Run([("count", extent, 0)], workers)
    assert threads.shared_pool(workers).run(run.address) == 0
    assert np.array_equal(run.a, np.arange(SIZE) < extent)
    assert run.scratch[:, 0].sum() == min(workers, extent)  # each worker its own scratch; none for an empty slice


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("extent", [0, 1, 2, 3, 7, 15, 16, 17, 100, SIZE])
def test_shared_parts_cover_the_extent_once(workers: int, extent: int) -> None:
    run = Run([("count", extent, 0), ("fail", 1, 0), ("count", extent, BARRIER), ("fill", SIZE, GUARD)], workers, True)
    pool = threads.shared_pool(workers)
    for repeat in range(1, 101):
        assert pool.run(run.address) == 7
        assert np.array_equal(run.a, 2 * repeat * (np.arange(SIZE) < extent))
    assert threads.run_serial(run.address) == 7
    pool.run(run.address)
    assert np.array_equal(run.a, 204 * (np.arange(SIZE) < extent))


@pytest.mark.skipif(threads.default_workers() < 2, reason="the workers need processors of their own")
def test_what_a_late_worker_leaves_is_done_by_others() -> None:
    run = Run([("whose", 1024, 0)], 2, True, a=np.zeros(1024, np.int64))
    pool = threads.shared_pool(2)
    shares: list[int] = []
    for _ in range(20):
        pool.run(run.address)
        assert set(run.a.tolist()) <= {run.scratch[0].ctypes.data, run.scratch[1].ctypes.data}
        shares.append(int(np.sum(run.a == run.scratch[0].ctypes.data)))
    assert min(shares) == 512 // PIECES  # the piece that takes so long


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("shared", [False, True])
def test_barrier_orders_kernels(workers: int, shared: bool) -> None:
    steps = [("fill", SIZE, 0), ("reverse", SIZE, BARRIER), *[("again", SIZE, BARRIER), ("reverse", SIZE, BARRIER)] * 5]
    run = Run(steps, workers, shared)
    pool = threads.shared_pool(workers)
    for _ in range(2000 if workers == 2 else 200):
        run.a[:] = run.b[:] = 0
        assert pool.run(run.address) == 0
        assert np.array_equal(run.b, np.arange(SIZE, 0, -1) + 11)


@pytest.mark.parametrize("workers", WORKERS)
def test_workers_that_fell_asleep_at_a_barrier_wake(workers: int) -> None:
    steps = [("fill", 1 << 20, BARRIER | SERIAL), ("count", SIZE, BARRIER)] * 3
    run = Run(steps, workers, a=np.zeros(1 << 20, np.int64))
    pool = threads.shared_pool(workers)
    for _ in range(60):
        assert pool.run(run.address) == 0
        assert np.array_equal(run.a[:SIZE], np.arange(SIZE) + 2)


@pytest.mark.parametrize("workers", WORKERS)
def test_serial_launch_runs_once(workers: int) -> None:
    run = Run([("count", SIZE, SERIAL), ("count", SIZE, BARRIER), ("count", 1, BARRIER | SERIAL)], workers)
    assert threads.shared_pool(workers).run(run.address) == 0
    assert np.array_equal(run.a, np.arange(SIZE) // SIZE + 2 + (np.arange(SIZE) == 0))
    assert run.scratch[0, 0] == 3
    assert (run.scratch[1:, 0] == 1).all()


@pytest.mark.parametrize("workers", WORKERS)
def test_guard_leaves_the_run(workers: int) -> None:
    steps = [
        ("count", SIZE, 0),
        ("fail", 1, 0),
        ("count", SIZE, BARRIER),
        ("count", SIZE, GUARD),
        ("fill", SIZE, BARRIER),
    ]
    run = Run(steps, workers)
    pool = threads.shared_pool(workers)
    for repeat in range(1, 200):
        assert pool.run(run.address) == 7 == run.status[0]
        assert (run.a == 2 * repeat).all()


@pytest.mark.parametrize("workers", WORKERS)
def test_failure_behind_the_guard_deadlocks_nobody(workers: int) -> None:
    """A fast worker fails after the guard while a slow one has yet to look at it: both must go on."""
    run = Run([("fill", SIZE, 0), ("fail", workers, GUARD), ("count", SIZE, BARRIER)], workers)
    pool = threads.shared_pool(workers)
    for _ in range(500):
        assert pool.run(run.address) == 7
        assert np.array_equal(run.a, np.arange(SIZE) + 2)


def test_guard_passes_and_status_starts_at_zero() -> None:
    run = Run([("count", SIZE, GUARD)], 2)
    run.status[0] = 3
    assert threads.shared_pool(2).run(run.address) == 0
    run.status[0] = 3
    assert threads.run_serial(run.address) == 0
    assert threads.serial_entry()(run.address) == 0
    assert (run.a == 3).all()


def test_empty_run() -> None:
    for workers in WORKERS:
        run = Run([], workers)
        assert threads.shared_pool(workers).run(run.address) == 0


def test_shared_pool_is_shared() -> None:
    assert threads.shared_pool(2) is threads.shared_pool(2)
    assert threads.shared_pool(2).workers == 2
    assert threads.default_workers() >= 1


def test_pool_needs_a_worker() -> None:
    with pytest.raises(jit.CompileError, match="not 0"):
        Pool(0)


def test_closed_pool_starts_again() -> None:
    pool = Pool(3)
    run = Run([("count", SIZE, 0)], 3)
    before = thread_count()
    for repeat in range(1, 20):
        pool.run(run.address)
        assert thread_count() == before + 2
        assert (run.a == repeat).all()
        pool.close()
        # The system counts a thread for a moment after it was waited for.
        end = time.monotonic() + 10
        while thread_count() > before and time.monotonic() < end:
            time.sleep(0.001)
        assert thread_count() == before
    pool.close()


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


FLUSH = """
declare void @llvm.x86.sse.ldmxcsr(ptr)
@flush = constant i32 40896
@standard = constant i32 8064
define void @set(i1 %on) nounwind {
  %mode = select i1 %on, ptr @flush, ptr @standard
  call void @llvm.x86.sse.ldmxcsr(ptr %mode)
  ret void
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the test sets the floating-point mode of x86-64")
@pytest.mark.parametrize("workers", [1, 3])
def test_subnormals_whatever_the_mode_of_the_caller(workers: int) -> None:
    """A library built for speed may have told this thread, and those it starts, to flush subnormal numbers to 0."""
    smallest = np.finfo(np.float64).smallest_normal
    mode = jit.link([jit.compile_object(FLUSH, jit.host_target())], ["set"])
    set_flush = ctypes.CFUNCTYPE(None, ctypes.c_bool)(mode.address("set"))
    run = Run([("subnormal", 3, 0)], workers)
    run.a.view(np.float64)[:3] = smallest
    pool = Pool(workers)
    set_flush(True)
    flushed = float(smallest) * 0.5 == 0.0
    pool.run(run.address)
    kept = float(smallest) * 0.5 == 0.0
    set_flush(False)
    pool.close()
    assert flushed
    assert kept
    assert np.count_nonzero(run.a.view(np.float64) == smallest / 2) == min(workers, 3)


def test_concurrent_calls() -> None:
    pool = threads.shared_pool(2)
    wrong: list[str] = []

    def call() -> None:
        run = Run([("fill", SIZE, 0), ("reverse", SIZE, BARRIER), ("again", SIZE, BARRIER)], 2)
        for _ in range(500):
            run.a[:] = run.b[:] = 0
            if pool.run(run.address) != 0 or not np.array_equal(run.a, np.arange(SIZE) + 3):
                wrong.append("wrong result")

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@forks
def test_fork() -> None:
    """The child has no workers of its parent's and starts its own; the parent's go on."""
    pool = threads.shared_pool(3)
    run = Run([("fill", SIZE, 0), ("reverse", SIZE, BARRIER)], 3)
    expected = np.arange(SIZE, 0, -1) + 1
    pool.run(run.address)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            run.b[:] = 0
            fine = pool.run(run.address) == 0 and np.array_equal(run.b, expected) and thread_count() == 3
            fine = fine and len(jit.compile_object(KERNELS, jit.host_target())) > 0
            os._exit(0 if fine else 1)
        run.b[:] = 0
        pool.run(run.address)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(run.b, expected)


@forks
def test_fork_while_threads_compile_and_run() -> None:
    stop = threading.Event()
    pool = threads.shared_pool(2)

    def work() -> None:
        run = Run([("fill", SIZE, 0), ("reverse", SIZE, BARRIER)], 2)
        while not stop.is_set():
            jit.link([jit.compile_object(KERNELS, jit.host_target())], NAMES)
            pool.run(run.address)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                run = Run([("count", SIZE, 0)], 2)
                built = jit.link([jit.compile_object(KERNELS, jit.host_target())], NAMES)
                os._exit(0 if pool.run(run.address) == 0 and built.address("fill") and run.a.all() else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def test_idle_workers_use_no_processor_time() -> None:
    run = Run([("fill", SIZE, 0), ("reverse", SIZE, BARRIER)], 7)
    threads.shared_pool(7).run(run.address)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.01


PLACED = (
    sys.platform.startswith("linux")
    and platform.machine() in ("x86_64", "aarch64")
    and threads.default_workers() > 1  # processors
)
places = pytest.mark.skipif(not PLACED, reason="workers are placed on Linux, where there are two processors")


class Placed:
    """A pool of two whose worker is asleep, and what is known of where it runs."""

    def __init__(self) -> None:
        self.pool = Pool(2)
        self.run = Run([("count", SIZE, 0)], 2)
        self.allowed = os.sched_getaffinity(0)
        self.pool.run(self.run.address)
        self.record = self.pool._control + placement.RECORDS + placement.RECORD_BYTES
        self.name = ctypes.c_int32.from_address(self.record + placement.NAME).value
        self.seen = ctypes.c_int32.from_address(self.record + placement.SEEN)
        self.late = ctypes.c_int64.from_address(self.pool._control + placement.LATE)
        self.truce = ctypes.c_int64.from_address(self.pool._control + placement.TRUCE)

    def found_on(self, processor: int, wanted: set[int]) -> bool:
        """Whether the worker may use just these after a call from a processor that it was seen on.

        Some calls are made elsewhere: then it is another.
        """
        self.late.value = 1 << 60  # others on this machine may make all calls late
        for _ in range(50):
            time.sleep(0.002)  # the worker sleeps, and has noted where
            os.sched_setaffinity(0, {processor})
            os.sched_setaffinity(0, self.allowed)
            self.truce.value = 0
            self.seen.value = processor
            self.pool.run(self.run.address)
            if os.sched_getaffinity(self.name) == wanted:
                return True
        return False


@places
def test_a_worker_is_sent_off_the_processor_of_the_caller() -> None:
    placed = Placed()
    for processor in sorted(placed.allowed)[:2] * 3:
        assert placed.found_on(processor, placed.allowed - {processor})
    placed.pool.close()


@places
def test_masks_that_others_set_are_kept() -> None:
    placed = Placed()
    first, second = sorted(placed.allowed)[:2]
    assert placed.found_on(first, placed.allowed - {first})
    for name in (0, placed.name):
        os.sched_setaffinity(name, {second})
    placed.allowed, everything = {second}, placed.allowed
    for _ in range(5):
        assert placed.found_on(second, {second})  # there is no other
    placed.allowed = everything
    for name in (0, placed.name):
        os.sched_setaffinity(name, everything)
    assert placed.found_on(second, everything - {second})
    placed.pool.close()


@places
def test_workers_go_anywhere_when_the_caller_waits_for_them() -> None:
    placed = Placed()
    first, second = sorted(placed.allowed)[:2]
    assert placed.found_on(first, placed.allowed - {first})
    quick, placed.run = placed.run, Run([("slow", 2, 0)], 2)
    placed.late.value = placement.LATE_NS
    for _ in range(20):  # not all: the caller is late too where others use this machine
        placed.pool.run(placed.run.address)
        if placed.truce.value:
            break
    assert placed.truce.value == placement.PATIENCE
    assert os.sched_getaffinity(placed.name) == placed.allowed
    placed.run = quick
    for _ in range(placement.PATIENCE // 2):
        placed.pool.run(placed.run.address)
    assert os.sched_getaffinity(placed.name) == placed.allowed
    assert placed.found_on(second, placed.allowed - {second})
    placed.pool.close()


@places
def test_more_workers_than_processors_share() -> None:
    pool = Pool(threads.default_workers() + 1)
    run = Run([("count", SIZE, 0)], pool.workers)
    allowed = os.sched_getaffinity(0)
    before = {int(name) for name in os.listdir("/proc/self/task")}
    pool.run(run.address)
    workers = {int(name) for name in os.listdir("/proc/self/task")} - before
    for _ in range(200):
        time.sleep(0.0005)
        pool.run(run.address)
    assert len(workers) == pool.workers - 1
    assert all(os.sched_getaffinity(name) == allowed for name in workers)
    pool.close()


@places
def test_small_work_wakes_nobody() -> None:
    placed = Placed()

    def switches() -> list[str]:
        with open(f"/proc/self/task/{placed.name}/status", encoding="ascii") as file:
            return [line for line in file if "ctxt_switches" in line]

    before = []
    while before != (before := switches()):  # on a busy machine the worker takes a while to fall asleep
        time.sleep(0.02)
    for _ in range(1000):
        assert threads.run_serial(placed.run.address) == 0
    assert switches() == before
    placed.pool.close()


EXIT = """
import sys, threading
sys.path[:0] = {path!r}
from test_threads import BARRIER, SIZE, Run, threads
run = Run([("fill", SIZE, 0), ("reverse", SIZE, BARRIER)], 3)
pool = threads.shared_pool(3)
for _ in range(50):
    pool.run(run.address)
if {thread}:
    def forever():
        mine = Run([("fill", SIZE, 0), ("reverse", SIZE, BARRIER)], 3)
        while True:
            pool.run(mine.address)
    threading.Thread(target=forever, daemon=True).start()
print("end", flush=True)
"""


@pytest.mark.parametrize("thread", [False, True])
def test_process_exits_cleanly(thread: bool) -> None:
    """With workers asleep, just back from a run, or in one."""
    code = EXIT.format(path=[ROOT, os.path.dirname(os.path.abspath(__file__))], thread=thread)
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_starting_workers_leaves_the_signal_mask() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    run = Run([("fill", SIZE, 0)], 2)
    pool = Pool(2)
    pool.run(run.address)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    pool.close()


@pytest.mark.parametrize("triple", ["aarch64-unknown-linux-gnu", "arm64-apple-darwin", "x86_64-pc-windows-msvc"])
def test_driver_compiles_for_other_systems(triple: str) -> None:
    target = replace(jit.host_target(), triple=triple, cpu="", features="")
    assert "symgrad_worker" in jit.assembly(driver_text(triple), target)
