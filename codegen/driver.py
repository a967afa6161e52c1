"""The fixed driver that leads workers through a list of kernels, as LLVM text. `threads` says what it reads."""

from __future__ import annotations

from codegen.entry import entry_text
from codegen.placement import LATE, placement_text
from codegen.writer import DIVIDED_LEVELS, ENTERED

BARRIER = 1  # all workers meet before this launch
SERIAL = 2  # worker 0 alone runs it, over the whole extent
GUARD = 4  # all workers meet, and leave the run here when the status is not 0

LAUNCH_FIELDS = 6
RUN = 11  # the word of a context that counts its runs on more than one worker
COUNTER_BYTES = 64
CONTEXT_FIELDS = 12
BARRIER_BYTES = 192

# The control block of a pool, offsets in bytes. A signal is an i32 word that changes, and beside it the i32 count of
# those who sleep until it does. Words that different workers write stand on different cache lines.
JOB = 0  # signal: counts runs posted
CONTEXT = 8  # ptr: the context to run; null tells the workers to end
WORKERS = 16  # i64
DONE = 64  # signal: counts runs that all have finished
PENDING = 128  # i32: workers that have not finished
BUSY = 192  # i32: 1 while a caller has the pool
# Further words, and from RECORDS on a record per worker: see `placement`.


def driver_text(triple: str) -> str:
    """The driver, the placement of workers and the entry of calls, as LLVM text for this machine and system."""
    machine, _, system = triple.partition("-")
    arm = machine in ("aarch64", "arm64")
    pause, declarations = "", ""
    enter, leave = "", ""
    if machine == "x86_64":
        declarations, pause = _X86_DECLARATIONS, "call void @llvm.x86.sse2.pause()"
        enter, leave = _X86_ENTER, _X86_LEAVE
    if arm:
        declarations, pause = _ARM_DECLARATIONS, "call void @llvm.aarch64.hint(i32 1)"
        enter, leave = _ARM_ENTER, _ARM_LEAVE
    sleep, wake, give_way = pause, "", pause
    if "windows" not in system:
        declarations += "declare i32 @sched_yield() nounwind\ndeclare i32 @usleep(i32) nounwind\n"
        sleep, give_way = "call i32 @usleep(i32 50)", "call i32 @sched_yield()"
    if "linux" in system and (machine == "x86_64" or arm):
        number = 202 if machine == "x86_64" else 98
        futex = f"call i64 (i64, ...) @syscall(i64 {number}, ptr %signal,"
        declarations += "declare i64 @syscall(i64, ...) nounwind\n"
        sleep = f"{futex} i64 128, i32 %old, ptr null, ptr null, i64 0)"  # FUTEX_WAIT, private to the process
        wake = f"{futex} i64 129, i64 2147483647, ptr null, ptr null, i64 0)"  # FUTEX_WAKE
    text = _DRIVER
    for name, value in (
        ("DECLARATIONS", declarations), ("PAUSE", pause), ("GIVE_WAY", give_way), ("SLEEP", sleep), ("WAKE", wake),
        ("ENTER", enter), ("LEAVE", leave), ("CONTEXT", CONTEXT), ("WORKERS", WORKERS), ("DONE", DONE),
        ("PENDING", PENDING), ("BUSY", BUSY), ("LATE", LATE), ("LAUNCH_BYTES", 8 * LAUNCH_FIELDS),
        ("MEETS", BARRIER | GUARD), ("SERIAL", SERIAL), ("GUARD", GUARD), ("RUN", RUN),
        ("COUNTER_BYTES", COUNTER_BYTES), ("ENTERED", ENTERED), ("DIVIDED_LEVELS", DIVIDED_LEVELS),
    ):  # fmt: skip
        text = text.replace(f"<{name}>", str(value))
    return text + placement_text(triple) + entry_text()


_X86_DECLARATIONS = """\
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
@standard = private constant i32 8064
"""
_X86_ENTER = """\
  %callers = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %callers)
  call void @llvm.x86.sse.ldmxcsr(ptr @standard)"""
_X86_LEAVE = "  call void @llvm.x86.sse.ldmxcsr(ptr %callers)"
_ARM_DECLARATIONS = """\
declare void @llvm.aarch64.hint(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
"""
_ARM_ENTER = """\
  %callers = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 0)"""
_ARM_LEAVE = "  call void @llvm.aarch64.set.fpcr(i64 %callers)"

_DRIVER = r"""
<DECLARATIONS>
@symgrad_spins = global i64 1000, align 8

; Take up a little time.
define void @symgrad_pause(i64 %times) nounwind {
start:
  br label %again
again:
  %n = phi i64 [ 0, %start ], [ %next, %again ]
  <PAUSE>
  %next = add i64 %n, 1
  %more = icmp ult i64 %next, %times
  br i1 %more, label %again, label %done
done:
  ret void
}

; Return once the word of the signal is not `old`: `patience` times spin a little and let others run, then sleep.
; The result is about how many nanoseconds that took, where there is a clock and it took long; else 0.
define internal i64 @wait(ptr %signal, i32 %old, i64 %patience) nounwind {
start:
  %sleepers = getelementptr i8, ptr %signal, i64 4
  %limit = load i64, ptr @symgrad_spins, align 8
  br label %spin
spin:
  %n = phi i64 [ 0, %start ], [ %n.next, %pause ], [ 0, %yielded ]
  %tries = phi i64 [ 1, %start ], [ %tries, %pause ], [ %tries.next, %yielded ]
  %since = phi i64 [ 0, %start ], [ %since, %pause ], [ %since.next, %yielded ]
  %now = load atomic i32, ptr %signal acquire, align 4
  %same = icmp eq i32 %now, %old
  br i1 %same, label %pause, label %done
pause:
  <PAUSE>
  %n.next = add i64 %n, 1
  %more = icmp ult i64 %n.next, %limit
  br i1 %more, label %spin, label %tired
tired:
  %again = icmp ult i64 %tries, %patience
  br i1 %again, label %yield, label %sleep
yield:
  %first = icmp eq i64 %tries, 1
  br i1 %first, label %look, label %yielded
look:
  %early = call i64 @now()
  br label %yielded
yielded:
  %since.next = phi i64 [ %since, %yield ], [ %early, %look ]
  <GIVE_WAY>
  %tries.next = add i64 %tries, 1
  br label %spin
sleep:
  ; Counted before the system compares the word: who posts either is seen by that, or sees the count.
  atomicrmw add ptr %sleepers, i32 1 seq_cst
  <SLEEP>
  atomicrmw sub ptr %sleepers, i32 1 seq_cst
  %sleep.now = load atomic i32, ptr %signal acquire, align 4
  %sleep.same = icmp eq i32 %sleep.now, %old
  br i1 %sleep.same, label %sleep, label %done
done:
  %short = icmp eq i64 %since, 0
  br i1 %short, label %at.once, label %at.last
at.once:
  ret i64 0
at.last:
  %late = call i64 @now()
  %taken = sub i64 %late, %since
  ret i64 %taken
}

; Change the word of the signal, from the one thread that may, and wake who sleeps on it.
define internal void @post(ptr %signal) nounwind {
  %old = load atomic i32, ptr %signal monotonic, align 4
  %new = add i32 %old, 1
  store atomic i32 %new, ptr %signal seq_cst, align 4
  %sleepers = getelementptr i8, ptr %signal, i64 4
  %count = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %count, 0
  br i1 %none, label %done, label %wake
wake:
  <WAKE>
  br label %done
done:
  ret void
}

; Wait for all workers. Returns the status as the last one found it, so that all decide alike. Adds to `waited`.
define internal i64 @meet(ptr %barrier, ptr %status, i64 %workers, ptr %waited) nounwind {
  %signal = getelementptr i8, ptr %barrier, i64 64
  %verdict = getelementptr i8, ptr %barrier, i64 128
  %round = load atomic i32, ptr %signal acquire, align 4
  %before = atomicrmw add ptr %barrier, i32 1 acq_rel
  %arrived = add i32 %before, 1
  %expected = trunc i64 %workers to i32
  %last = icmp eq i32 %arrived, %expected
  br i1 %last, label %release, label %await
release:
  %found = load i64, ptr %status, align 8
  store i64 %found, ptr %verdict, align 8
  store atomic i32 0, ptr %barrier monotonic, align 4
  call void @post(ptr %signal)
  ret i64 %found
await:
  %one.wait = call i64 @wait(ptr %signal, i32 %round, i64 100)
  %waits = load i64, ptr %waited, align 8
  %waits.all = add i64 %waits, %one.wait
  store i64 %waits.all, ptr %waited, align 8
  %agreed = load i64, ptr %verdict, align 8
  ret i64 %agreed
}

; Take the next of so many pieces: its number, or -1 when none is left. The upper half of a counter says in which run
; it was used last, so that it counts from 0 in each.
define internal i64 @take(ptr %counter, i64 %run, i64 %pieces) nounwind {
start:
  %mark = shl i64 %run, 32
  br label %look
look:
  %found = load atomic i64, ptr %counter monotonic, align 8
  %number = sub i64 %found, %mark
  %current = icmp ult i64 %number, 4294967296
  %piece = select i1 %current, i64 %number, i64 0
  %left = icmp ult i64 %piece, %pieces
  br i1 %left, label %try, label %none
try:
  %following = add i64 %piece, 1
  %next = add i64 %mark, %following
  %tried = cmpxchg ptr %counter, i64 %found, i64 %next monotonic monotonic
  %well = extractvalue { i64, i1 } %tried, 1
  br i1 %well, label %done, label %look
done:
  ret i64 %piece
none:
  ret i64 -1
}

; One worker's part of a run. The result is for how long it waited for others in it.
define i64 @symgrad_run(ptr %context, i64 %worker, i64 %workers) nounwind {
start:
<ENTER>
  %waited = alloca i64, align 8
  store i64 0, ptr %waited, align 8
  %launches.at = getelementptr i64, ptr %context, i64 1
  %count.at = getelementptr i64, ptr %context, i64 2
  %barrier.at = getelementptr i64, ptr %context, i64 3
  %status.at = getelementptr i64, ptr %context, i64 4
  %scratch.at = getelementptr i64, ptr %context, i64 5
  %stride.at = getelementptr i64, ptr %context, i64 6
  %slots = load ptr, ptr %context, align 8
  %launches = load ptr, ptr %launches.at, align 8
  %count = load i64, ptr %count.at, align 8
  %barrier = load ptr, ptr %barrier.at, align 8
  %status = load ptr, ptr %status.at, align 8
  %scratches = load ptr, ptr %scratch.at, align 8
  %stride = load i64, ptr %stride.at, align 8
  %offset = mul i64 %stride, %worker
  %scratch = getelementptr i8, ptr %scratches, i64 %offset
  %entered = getelementptr i8, ptr %scratch, i64 <ENTERED>
  %run.at = getelementptr i64, ptr %context, i64 <RUN>
  %run = load i64, ptr %run.at, align 8
  %alone = icmp eq i64 %workers, 1
  %following = icmp ne i64 %worker, 0
  br label %launch
launch:
  %i = phi i64 [ 0, %start ], [ %i.next, %next ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %read, label %done
read:
  %at = mul i64 %i, <LAUNCH_BYTES>
  %record = getelementptr i8, ptr %launches, i64 %at
  %extent.at = getelementptr i8, ptr %record, i64 8
  %flags.at = getelementptr i8, ptr %record, i64 16
  %args.at = getelementptr i8, ptr %record, i64 24
  %kernel = load ptr, ptr %record, align 8
  %extent = load i64, ptr %extent.at, align 8
  %flags = load i64, ptr %flags.at, align 8
  %args = load ptr, ptr %args.at, align 8
  %meets = and i64 %flags, <MEETS>
  %free = icmp eq i64 %meets, 0
  br i1 %free, label %slice, label %together
together:
  br i1 %alone, label %look, label %meet
look:
  %own = load i64, ptr %status, align 8
  br label %guard
meet:
  %agreed = call i64 @meet(ptr %barrier, ptr %status, i64 %workers, ptr %waited)
  br label %guard
guard:
  %verdict = phi i64 [ %own, %look ], [ %agreed, %meet ]
  %failed = icmp ne i64 %verdict, 0
  %guards = and i64 %flags, <GUARD>
  %guarded = icmp ne i64 %guards, 0
  %leave = and i1 %failed, %guarded
  br i1 %leave, label %done, label %slice
slice:
  store <<DIVIDED_LEVELS> x i64> splat (i64 -1), ptr %entered, align 8
  br i1 %alone, label %call, label %share
share:
  %serial = and i64 %flags, <SERIAL>
  %shared = icmp eq i64 %serial, 0
  br i1 %shared, label %divide, label %lead
lead:
  br i1 %following, label %next, label %call
divide:
  %counters.at = getelementptr i8, ptr %record, i64 32
  %counters = load ptr, ptr %counters.at, align 8
  %most.at = getelementptr i8, ptr %record, i64 40
  %most = load i64, ptr %most.at, align 8
  %fixed = icmp eq ptr %counters, null
  br i1 %fixed, label %fixed.part, label %part
; The own part first, then what is left of the others'.
part:
  %k = phi i64 [ 0, %divide ], [ %k.next, %part.next ]
  %k.more = icmp ult i64 %k, %workers
  br i1 %k.more, label %owner, label %next
owner:
  %sum = add i64 %worker, %k
  %part.of = urem i64 %sum, %workers
  %counter.offset = mul i64 %part.of, <COUNTER_BYTES>
  %counter = getelementptr i8, ptr %counters, i64 %counter.offset
  %part.low = mul i64 %extent, %part.of
  %part.high = add i64 %part.low, %extent
  %part.first = udiv i64 %part.low, %workers
  %part.last = udiv i64 %part.high, %workers
  %part.extent = sub i64 %part.last, %part.first
  %few = icmp ult i64 %part.extent, %most
  %pieces = select i1 %few, i64 %part.extent, i64 %most
  br label %piece
piece:
  %taken = call i64 @take(ptr %counter, i64 %run, i64 %pieces)
  %none.left = icmp slt i64 %taken, 0
  br i1 %none.left, label %part.next, label %piece.do
piece.do:
  %piece.low = mul i64 %part.extent, %taken
  %piece.high = add i64 %piece.low, %part.extent
  %piece.begin = udiv i64 %piece.low, %pieces
  %piece.end = udiv i64 %piece.high, %pieces
  %piece.from = add i64 %part.first, %piece.begin
  %piece.to = add i64 %part.first, %piece.end
  call void %kernel(ptr %slots, ptr %args, i64 %piece.from, i64 %piece.to, ptr %scratch, ptr %status)
  br label %piece
part.next:
  %k.next = add i64 %k, 1
  br label %part
fixed.part:
  %low = mul i64 %extent, %worker
  %high = add i64 %low, %extent
  %first = udiv i64 %low, %workers
  %last = udiv i64 %high, %workers
  br label %call
call:
  %begin = phi i64 [ 0, %slice ], [ 0, %lead ], [ %first, %fixed.part ]
  %end = phi i64 [ %extent, %slice ], [ %extent, %lead ], [ %last, %fixed.part ]
  %some = icmp ult i64 %begin, %end
  br i1 %some, label %work, label %next
work:
  call void %kernel(ptr %slots, ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %status)
  br label %next
next:
  %i.next = add i64 %i, 1
  br label %launch
done:
<LEAVE>
  %waits = load i64, ptr %waited, align 8
  ret i64 %waits
}

; Put into slots where the data of objects lies: those of a call are others each time.
define internal void @bind(ptr %context) nounwind {
start:
  %count.at = getelementptr i64, ptr %context, i64 7
  %objects.at = getelementptr i64, ptr %context, i64 8
  %targets.at = getelementptr i64, ptr %context, i64 9
  %header.at = getelementptr i64, ptr %context, i64 10
  %count = load i64, ptr %count.at, align 8
  %objects = load ptr, ptr %objects.at, align 8
  %targets = load ptr, ptr %targets.at, align 8
  %header = load i64, ptr %header.at, align 8
  br label %object
object:
  %i = phi i64 [ 0, %start ], [ %next, %read ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %read, label %done
read:
  %object.at = getelementptr ptr, ptr %objects, i64 %i
  %owner = load ptr, ptr %object.at, align 8
  %data.at = getelementptr i8, ptr %owner, i64 %header
  %data = load ptr, ptr %data.at, align 8
  %slot = getelementptr ptr, ptr %targets, i64 %i
  store ptr %data, ptr %slot, align 8
  %next = add i64 %i, 1
  br label %object
done:
  ret void
}

; A run on the calling thread alone.
define i64 @symgrad_serial(ptr %context) nounwind {
  call void @bind(ptr %context)
  %status.at = getelementptr i64, ptr %context, i64 4
  %status = load ptr, ptr %status.at, align 8
  store i64 0, ptr %status, align 8
  call i64 @symgrad_run(ptr %context, i64 0, i64 1)
  %result = load i64, ptr %status, align 8
  ret i64 %result
}

; A run on all workers of the pool, or alone when the pool is taken.
define i64 @symgrad_parallel(ptr %control, ptr %context) nounwind {
  %workers.at = getelementptr i8, ptr %control, i64 <WORKERS>
  %workers = load i64, ptr %workers.at, align 8
  %alone = icmp eq i64 %workers, 1
  br i1 %alone, label %serial, label %claim
claim:
  %busy = getelementptr i8, ptr %control, i64 <BUSY>
  %claimed = cmpxchg ptr %busy, i32 0, i32 1 acquire monotonic
  %free = extractvalue { i32, i1 } %claimed, 1
  br i1 %free, label %together, label %serial
serial:
  %own = call i64 @symgrad_serial(ptr %context)
  ret i64 %own
together:
  %context.at = getelementptr i8, ptr %control, i64 <CONTEXT>
  %pending = getelementptr i8, ptr %control, i64 <PENDING>
  %done = getelementptr i8, ptr %control, i64 <DONE>
  %status.at = getelementptr i64, ptr %context, i64 4
  %status = load ptr, ptr %status.at, align 8
  store i64 0, ptr %status, align 8
  call void @bind(ptr %context)
  %run.at = getelementptr i64, ptr %context, i64 <RUN>
  %run = load i64, ptr %run.at, align 8
  %run.next = add i64 %run, 1
  store i64 %run.next, ptr %run.at, align 8
  store ptr %context, ptr %context.at, align 8
  %size = trunc i64 %workers to i32
  %others = sub i32 %size, 1
  store atomic i32 %others, ptr %pending monotonic, align 4
  %round = load atomic i32, ptr %done monotonic, align 4
  call void @part(ptr %control, i64 %workers)
  call void @post(ptr %control)
  %waited.inside = call i64 @symgrad_run(ptr %context, i64 0, i64 %workers)
  %waited.last = call i64 @wait(ptr %done, i32 %round, i64 100)
  %waited = add i64 %waited.inside, %waited.last
  %late.at = getelementptr i8, ptr %control, i64 <LATE>
  %late.from = load i64, ptr %late.at, align 8
  %late = icmp ugt i64 %waited, %late.from
  br i1 %late, label %complain, label %end
complain:
  call void @gather(ptr %control, i64 %workers)
  br label %end
end:
  %result = load i64, ptr %status, align 8
  store atomic i32 0, ptr %busy release, align 4
  ret i64 %result
}

; Tell the workers to end.
define void @symgrad_stop(ptr %control) nounwind {
  %context.at = getelementptr i8, ptr %control, i64 <CONTEXT>
  store ptr null, ptr %context.at, align 8
  call void @post(ptr %control)
  ret void
}

; The life of a worker thread.
define ptr @symgrad_worker(ptr %record) nounwind {
start:
  %number.at = getelementptr i8, ptr %record, i64 8
  %control = load ptr, ptr %record, align 8
  %number = load i64, ptr %number.at, align 8
  %context.at = getelementptr i8, ptr %control, i64 <CONTEXT>
  %workers.at = getelementptr i8, ptr %control, i64 <WORKERS>
  %pending = getelementptr i8, ptr %control, i64 <PENDING>
  %done = getelementptr i8, ptr %control, i64 <DONE>
  %workers = load i64, ptr %workers.at, align 8
  call void @introduce(ptr %record)
  br label %idle
idle:
  %seen = phi i32 [ 0, %start ], [ %job, %finish ], [ %job, %tell ]
  call void @note(ptr %record)
  call i64 @wait(ptr %control, i32 %seen, i64 40)
  %job = load atomic i32, ptr %control acquire, align 4
  %context = load ptr, ptr %context.at, align 8
  %ends = icmp eq ptr %context, null
  br i1 %ends, label %end, label %run
run:
  call i64 @symgrad_run(ptr %context, i64 %number, i64 %workers)
  br label %finish
finish:
  %left = atomicrmw sub ptr %pending, i32 1 acq_rel
  %last = icmp eq i32 %left, 1
  br i1 %last, label %tell, label %idle
tell:
  call void @post(ptr %done)
  br label %idle
end:
  ret ptr null
}
"""
