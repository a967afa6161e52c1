"""Where workers run, as LLVM text: not on the processor of the caller, while there are others.

A worker that is woken may be put on the processor of the caller, who goes on there: both then take twice the time,
while another processor is idle. So a worker last seen there is told to use any other. If that makes the caller wait
long, the others are busy: all workers may then go anywhere for a while.

Only Linux is asked and told; elsewhere workers run where the system puts them.
"""

from __future__ import annotations

# In the control block of a pool (see `driver`), offsets in bytes; the words belong to the caller who has the pool.
PLACES = 24  # i64: 1 if workers are to keep off the processor of the caller
TRUCE = 32  # i64: how many times they are not told to, where they are found there
LATE = 40  # i64: a caller who waits so many nanoseconds in a run finds the processors of workers too busy for them
RECORDS = 256  # RECORD_BYTES per worker
# The record of a worker: ptr to the control block, i64 number, and these.
NAME = 16  # i32: what the system calls it
SEEN = 20  # i32: the processor it was last seen on
TOLD = 24  # i64: 1 if it is told to keep off one
ALLOWED = 64  # a mask of PROCESSORS bits: the processors it may use
MASK = 192  # another: those it was told to use last
RECORD_BYTES = 320
PROCESSORS = 1024
LATE_NS = 500_000
# How many times workers are left alone then.
PATIENCE = 100


def placement_text(triple: str) -> str:
    """What the driver calls to place workers, for the same module."""
    machine, _, system = triple.partition("-")
    numbers = {"x86_64": (186, 203, 204), "aarch64": (178, 122, 123)}.get(machine)
    if "linux" not in system or numbers is None:
        return _ANYWHERE
    text = _PLACEMENT
    get_name, set_mask, get_mask = numbers
    for name, value in (
        ("GET_NAME", get_name), ("SET_MASK", set_mask), ("GET_MASK", get_mask), ("PLACES", PLACES), ("TRUCE", TRUCE),
        ("NAME", NAME), ("SEEN", SEEN), ("TOLD", TOLD), ("ALLOWED", ALLOWED), ("MASK", MASK), ("RECORDS", RECORDS),
        ("RECORD_BYTES", RECORD_BYTES), ("PROCESSORS", PROCESSORS), ("PATIENCE", PATIENCE),
    ):  # fmt: skip
        text = text.replace(f"<{name}>", str(value))
    return text


_ANYWHERE = """
define internal void @introduce(ptr %record) nounwind {
  ret void
}
define internal void @note(ptr %record) nounwind {
  ret void
}
define internal void @part(ptr %control, i64 %workers) nounwind {
  ret void
}
define internal void @gather(ptr %control, i64 %workers) nounwind {
  ret void
}
define internal i64 @now() nounwind {
  ret i64 0
}
"""

_PLACEMENT = r"""
declare i32 @sched_getcpu() nounwind
declare i32 @clock_gettime(i32, ptr) nounwind

; Note what the system calls this thread.
define internal void @introduce(ptr %record) nounwind {
  %name.at = getelementptr i8, ptr %record, i64 <NAME>
  %name = call i64 (i64, ...) @syscall(i64 <GET_NAME>)
  %name.int = trunc i64 %name to i32
  store atomic i32 %name.int, ptr %name.at release, align 4
  ret void
}

; Note where this worker is, if that is news.
define internal void @note(ptr %record) nounwind {
start:
  %seen.at = getelementptr i8, ptr %record, i64 <SEEN>
  %seen = load atomic i32, ptr %seen.at monotonic, align 4
  %here = call i32 @sched_getcpu()
  %same = icmp eq i32 %seen, %here
  br i1 %same, label %done, label %news
news:
  store atomic i32 %here, ptr %seen.at release, align 4
  br label %done
done:
  ret void
}

; Send workers away that were last seen where the caller is.
define internal void @part(ptr %control, i64 %workers) nounwind {
start:
  %places.at = getelementptr i8, ptr %control, i64 <PLACES>
  %places = load i64, ptr %places.at, align 8
  %stay = icmp eq i64 %places, 0
  br i1 %stay, label %done, label %ask
ask:
  %here = call i32 @sched_getcpu()
  %known = icmp ult i32 %here, <PROCESSORS>
  br i1 %known, label %worker, label %done
worker:
  %w = phi i64 [ 1, %ask ], [ %next, %after ]
  %more = icmp ult i64 %w, %workers
  br i1 %more, label %look, label %done
look:
  %offset = mul i64 %w, <RECORD_BYTES>
  %place = add i64 %offset, <RECORDS>
  %record = getelementptr i8, ptr %control, i64 %place
  %seen.at = getelementptr i8, ptr %record, i64 <SEEN>
  %seen = load atomic i32, ptr %seen.at acquire, align 4
  %same = icmp eq i32 %seen, %here
  br i1 %same, label %meets, label %after
meets:
  %truce.at = getelementptr i8, ptr %control, i64 <TRUCE>
  %truce = load i64, ptr %truce.at, align 8
  %peace = icmp eq i64 %truce, 0
  br i1 %peace, label %send, label %bear
bear:
  %truce.next = sub i64 %truce, 1
  store i64 %truce.next, ptr %truce.at, align 8
  br label %after
send:
  call void @send(ptr %record, i32 %here)
  br label %after
after:
  %next = add i64 %w, 1
  br label %worker
done:
  ret void
}

; Let workers go where they like, and do so for some time, if one was told where not to go.
define internal void @gather(ptr %control, i64 %workers) nounwind {
start:
  %truce.at = getelementptr i8, ptr %control, i64 <TRUCE>
  br label %worker
worker:
  %w = phi i64 [ 1, %start ], [ %next, %after ]
  %more = icmp ult i64 %w, %workers
  br i1 %more, label %look, label %done
look:
  %offset = mul i64 %w, <RECORD_BYTES>
  %place = add i64 %offset, <RECORDS>
  %record = getelementptr i8, ptr %control, i64 %place
  %told.at = getelementptr i8, ptr %record, i64 <TOLD>
  %told = load i64, ptr %told.at, align 8
  %free = icmp eq i64 %told, 0
  br i1 %free, label %after, label %send
send:
  call void @send(ptr %record, i32 -1)
  store i64 <PATIENCE>, ptr %truce.at, align 8
  br label %after
after:
  %next = add i64 %w, 1
  br label %worker
done:
  ret void
}

define internal i64 @now() nounwind {
  %time = alloca [2 x i64], align 8
  call i32 @clock_gettime(i32 1, ptr %time)
  %nanoseconds.at = getelementptr i64, ptr %time, i64 1
  %seconds = load i64, ptr %time, align 8
  %nanoseconds = load i64, ptr %nanoseconds.at, align 8
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %nanoseconds
  ret i64 %now
}

; Let a worker use all processors it may but one, or all if that is -1. Somebody else may have changed which those
; are meanwhile: so it is when the mask is not the one that was set here, or the caller has the same.
define internal void @send(ptr %record, i32 %away) nounwind {
start:
  %name.at = getelementptr i8, ptr %record, i64 <NAME>
  %allowed.at = getelementptr i8, ptr %record, i64 <ALLOWED>
  %told.at = getelementptr i8, ptr %record, i64 <MASK>
  %mask = alloca <16 x i64>, align 128
  store <16 x i64> zeroinitializer, ptr %mask, align 128
  %name = load atomic i32, ptr %name.at acquire, align 4
  %nameless = icmp eq i32 %name, 0
  br i1 %nameless, label %done, label %get
get:
  %got = call i64 (i64, ...) @syscall(i64 <GET_MASK>, i32 %name, i64 128, ptr %mask)
  %fails = icmp slt i64 %got, 1
  br i1 %fails, label %done, label %compare
compare:
  %now = load <16 x i64>, ptr %mask, align 128
  store <16 x i64> zeroinitializer, ptr %mask, align 128
  %got.own = call i64 (i64, ...) @syscall(i64 <GET_MASK>, i32 0, i64 128, ptr %mask)
  %own = load <16 x i64>, ptr %mask, align 128
  %apart = icmp ne <16 x i64> %now, %own
  %apart.bits = bitcast <16 x i1> %apart to i16
  %alike = icmp eq i16 %apart.bits, 0
  %told = load <16 x i64>, ptr %told.at, align 64
  %allowed.before = load <16 x i64>, ptr %allowed.at, align 64
  %differs = icmp ne <16 x i64> %now, %told
  %bits = bitcast <16 x i1> %differs to i16
  %news = icmp ne i16 %bits, 0
  %changed = or i1 %news, %alike
  %allowed = select i1 %changed, <16 x i64> %now, <16 x i64> %allowed.before
  store <16 x i64> %allowed, ptr %allowed.at, align 64
  store <16 x i64> %allowed, ptr %mask, align 128
  %nowhere = icmp slt i32 %away, 0
  %from = select i1 %nowhere, i32 0, i32 %away
  %count = select i1 %nowhere, i64 0, i64 1
  %from.wide = zext i32 %from to i64
  %word = lshr i64 %from.wide, 6
  %bit = and i64 %from.wide, 63
  %one = shl i64 %count, %bit
  %others = xor i64 %one, -1
  %word.at = getelementptr i64, ptr %mask, i64 %word
  %some = load i64, ptr %word.at, align 8
  %rest = and i64 %some, %others
  store i64 %rest, ptr %word.at, align 8
  %set = call i64 (i64, ...) @syscall(i64 <SET_MASK>, i32 %name, i64 128, ptr %mask)
  %refused = icmp ne i64 %set, 0
  br i1 %refused, label %done, label %told.so
told.so:
  %told.word = getelementptr i8, ptr %record, i64 <TOLD>
  store i64 %count, ptr %told.word, align 8
  ; The system leaves out processors it does not have.
  store <16 x i64> zeroinitializer, ptr %mask, align 128
  %again = call i64 (i64, ...) @syscall(i64 <GET_MASK>, i32 %name, i64 128, ptr %mask)
  %final = load <16 x i64>, ptr %mask, align 128
  store <16 x i64> %final, ptr %told.at, align 64
  br label %done
done:
  ret void
}
"""
