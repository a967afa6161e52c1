"""The native side of a call, as LLVM text: arrays come in and go out without a line of Python. `calls` fills it in.

A function's `entry record` says what it takes and returns, a `binding record` one set of sizes and the code for it:
arrays of int64 whose words are named below. Whatever does not fit the records is left to the Python side, which takes
every call; no error is raised here but those of allocation and of interrupted waiting. `entry_arguments` has the part
that looks at arguments.
"""

from __future__ import annotations

import re

from codegen.entry_arguments import ARGUMENTS

# Words of the table of addresses and offsets, which is filled once: see `calls`.
TABLE = (
    "slow", "array_type", "none", "out", "header", "entry_at", "context_at", "PyObject_Vectorcall",
    "PyObject_CallNoArgs", "Py_IncRef", "Py_DecRef", "PyTuple_Size", "PyTuple_GetItem", "PyTuple_New",
    "PyTuple_SetItem", "PyList_New", "PyList_SetItem", "PyList_Size", "PyList_GetItem", "PyList_SetSlice",
    "PyList_Append", "PyDict_New", "PyDict_SetItem", "PyEval_SaveThread", "PyEval_RestoreThread",
    "PyArray_NewFromDescr", "PyArray_EquivTypes",
)  # fmt: skip

# Words of an entry record.
INPUTS = 0  # how many
KIND = 1  # SINGLE, LIST, TUPLE or DICT
KEYS = 2  # address of the objects that are the keys of a dict
ACQUIRE, RELEASE = 3, 4  # objects to call around a run, or 0
DTYPES = 5  # address of the data types of the inputs
NAMES = 6  # address of the names of the inputs, as objects of which there is one for each text
BINDINGS = 7  # from here: addresses of binding records, those not used 0
SERVED = 64  # how many there may be

SINGLE, LIST, TUPLE, DICT = range(4)

# Words of a binding record.
SHAPES = 0  # address: for each input its rank, extents and bytes
OUTPUTS = 1  # how many
RESULTS = 2  # address of RESULT_WORDS for each output: data type, address of its shape, object to call or 0
CONTEXTS = 3  # the list of free contexts
LONG = 4  # whether the interpreter is let go during a run
CONTROL = 5  # address of a word: the control block of the pool that runs it; 0 for the calling thread alone
RESULT_WORDS = 3

# Where an array keeps what, behind the header of every object. The words are those of NumPy's ABI.
DATA, RANK, EXTENTS, DTYPE, FLAGS = 0, 8, 16, 40, 48
READABLE = 0x0001 | 0x0100  # flags of an array: C-contiguous, aligned
WRITABLE = 0x0400

# Where a context record (see `threads`) has the address of the objects of a call.
OBJECTS = 8


def entry_text() -> str:
    """The entry as LLVM text, for the same module as the driver."""
    text = re.sub(r"(%[\w.]+) = word (ptr|i64) (%[\w.]+), (\S+)", _WORD, _ENTRY + ARGUMENTS)
    for k, name in enumerate(TABLE):
        text = text.replace(f"<@{name}>", f"load ptr, ptr getelementptr (ptr, ptr @symgrad_table, i64 {k}), align 8")
        text = text.replace(f"<#{name}>", f"load i64, ptr getelementptr (ptr, ptr @symgrad_table, i64 {k}), align 8")
    for name, value in (
        ("WORDS", len(TABLE)), ("KIND", KIND), ("KEYS", KEYS), ("ACQUIRE", ACQUIRE), ("RELEASE", RELEASE),
        ("DTYPES", DTYPES), ("BINDINGS", BINDINGS), ("SERVED", SERVED), ("LIST", LIST), ("TUPLE", TUPLE),
        ("DICT", DICT), ("OUTPUTS", OUTPUTS), ("RESULTS", RESULTS), ("CONTEXTS", CONTEXTS), ("LONG", LONG),
        ("CONTROL", CONTROL), ("RESULT_WORDS", RESULT_WORDS), ("RANK", RANK), ("EXTENTS", EXTENTS), ("DTYPE", DTYPE),
        ("FLAGS", FLAGS), ("READABLE", READABLE), ("WRITABLE", WRITABLE), ("OBJECTS", OBJECTS), ("NAMES", NAMES),
    ):  # fmt: skip
        text = text.replace(f"<{name}>", str(value))
    return text


# `%x = word ptr %y, k` in the text below: word k of an array.
_WORD = r"""\1.at = getelementptr ptr, ptr \3, i64 \4
  \1 = load \2, ptr \1.at, align 8"""

_ENTRY = r"""
@symgrad_table = global [<WORDS> x ptr] zeroinitializer, align 8

; The same call, made by Python: self and all arguments go to the function that takes every call.
define internal ptr @slowly(ptr %self, ptr %args, i64 %count, ptr %names) nounwind {
start:
  %none = icmp eq ptr %names, null
  br i1 %none, label %room, label %count.names
count.names:
  %size = <@PyTuple_Size>
  %named = call i64 %size(ptr %names)
  br label %room
room:
  %extra = phi i64 [ 0, %start ], [ %named, %count.names ]
  %all = add i64 %count, %extra
  %places = add i64 %all, 1
  %given = alloca ptr, i64 %places, align 8
  store ptr %self, ptr %given, align 8
  br label %argument
argument:
  %k = phi i64 [ 0, %room ], [ %next, %copy ]
  %more = icmp ult i64 %k, %all
  br i1 %more, label %copy, label %call
copy:
  %from = getelementptr ptr, ptr %args, i64 %k
  %value = load ptr, ptr %from, align 8
  %next = add i64 %k, 1
  %to = getelementptr ptr, ptr %given, i64 %next
  store ptr %value, ptr %to, align 8
  br label %argument
call:
  %positional = add i64 %count, 1
  %function = <@slow>
  %vectorcall = <@PyObject_Vectorcall>
  %result = call ptr %vectorcall(ptr %function, ptr %given, i64 %positional, ptr %names)
  ret ptr %result
}

; Let go of objects.
define internal void @drop(ptr %objects, i64 %count) nounwind {
start:
  %release = <@Py_DecRef>
  br label %object
object:
  %k = phi i64 [ 0, %start ], [ %next, %one ]
  %more = icmp ult i64 %k, %count
  br i1 %more, label %one, label %done
one:
  %value = word ptr %objects, %k
  call void %release(ptr %value)
  %next = add i64 %k, 1
  br label %object
done:
  ret void
}

; Fresh arrays for the outputs of a binding. False with an error set, and no arrays, when there is no memory.
define internal i1 @allocate(ptr %binding, ptr %outputs) nounwind {
start:
  %count = word i64 %binding, <OUTPUTS>
  %results = word ptr %binding, <RESULTS>
  br label %output
output:
  %k = phi i64 [ 0, %start ], [ %next, %keep ]
  %more = icmp ult i64 %k, %count
  br i1 %more, label %one, label %yes
one:
  %first = mul i64 %k, <RESULT_WORDS>
  %result = getelementptr ptr, ptr %results, i64 %first
  %maker = word ptr %result, 2
  %plain = icmp eq ptr %maker, null
  br i1 %plain, label %new, label %ask
ask:
  %call = <@PyObject_CallNoArgs>
  %asked = call ptr %call(ptr %maker)
  br label %look
new:
  %array = <@array_type>
  %dtype = load ptr, ptr %result, align 8
  %shape = word ptr %result, 1
  %rank = load i64, ptr %shape, align 8
  %rank.int = trunc i64 %rank to i32
  %extents = getelementptr i64, ptr %shape, i64 1
  %keep.dtype = <@Py_IncRef>
  call void %keep.dtype(ptr %dtype)
  %make = <@PyArray_NewFromDescr>
  %made = call ptr %make(ptr %array, ptr %dtype, i32 %rank.int, ptr %extents, ptr null, ptr null, i32 0, ptr null)
  br label %look
look:
  %value = phi ptr [ %asked, %ask ], [ %made, %new ]
  %failed = icmp eq ptr %value, null
  br i1 %failed, label %no, label %keep
keep:
  %place = getelementptr ptr, ptr %outputs, i64 %k
  store ptr %value, ptr %place, align 8
  %next = add i64 %k, 1
  br label %output
yes:
  ret i1 true
no:
  call void @drop(ptr %outputs, i64 %k)
  ret i1 false
}

; Call an object of the entry record that takes nothing, if there is one. False with an error set when it raises.
define internal i1 @ask(ptr %entry, i64 %which) nounwind {
  %object = word ptr %entry, %which
  %none = icmp eq ptr %object, null
  br i1 %none, label %yes, label %call
call:
  %function = <@PyObject_CallNoArgs>
  %answer = call ptr %function(ptr %object)
  %failed = icmp eq ptr %answer, null
  br i1 %failed, label %no, label %forget
forget:
  %release = <@Py_DecRef>
  call void %release(ptr %answer)
  br label %yes
yes:
  ret i1 true
no:
  ret i1 false
}

; Run a context on the pool of the binding, or alone where it has none.
define internal i64 @launch(ptr %binding, ptr %record) nounwind {
  %control.at = word ptr %binding, <CONTROL>
  %alone = icmp eq ptr %control.at, null
  br i1 %alone, label %serial, label %pool
serial:
  %own = call i64 @symgrad_serial(ptr %record)
  ret i64 %own
pool:
  %control = load ptr, ptr %control.at, align 8
  %asleep = icmp eq ptr %control, null
  br i1 %asleep, label %start, label %parallel
start:
  ret i64 1
parallel:
  %shared = call i64 @symgrad_parallel(ptr %control, ptr %record)
  ret i64 %shared
}

; Run a binding. 0: well. 1: Python must do it, for want of a free context or to tell of a failure. 2: an error is set.
; A short run keeps the interpreter and so needs no context of its own: nobody else can run meanwhile.
define internal i64 @execute(ptr %binding, ptr %args, i64 %inputs, ptr %outputs, i64 %count) nounwind {
start:
  %contexts = word ptr %binding, <CONTEXTS>
  %size = <@PyList_Size>
  %free = call i64 %size(ptr %contexts)
  %some = icmp sgt i64 %free, 0
  br i1 %some, label %take, label %again
take:
  %last = sub i64 %free, 1
  %get = <@PyList_GetItem>
  %context = call ptr %get(ptr %contexts, i64 %last)
  %header = <#header>
  %context.at = <#context_at>
  %holder.at = getelementptr i8, ptr %context, i64 %context.at
  %holder = load ptr, ptr %holder.at, align 8
  %record.at = getelementptr i8, ptr %holder, i64 %header
  %record = load ptr, ptr %record.at, align 8
  %objects = word ptr %record, <OBJECTS>
  br label %input
input:
  %i = phi i64 [ 0, %take ], [ %i.next, %input.put ]
  %i.more = icmp ult i64 %i, %inputs
  br i1 %i.more, label %input.put, label %results
input.put:
  %argument = word ptr %args, %i
  %i.to = getelementptr ptr, ptr %objects, i64 %i
  store ptr %argument, ptr %i.to, align 8
  %i.next = add i64 %i, 1
  br label %input
results:
  %targets = getelementptr ptr, ptr %objects, i64 %inputs
  br label %output
output:
  %o = phi i64 [ 0, %results ], [ %o.next, %output.put ]
  %o.more = icmp ult i64 %o, %count
  br i1 %o.more, label %output.put, label %run
output.put:
  %output.value = word ptr %outputs, %o
  %o.to = getelementptr ptr, ptr %targets, i64 %o
  store ptr %output.value, ptr %o.to, align 8
  %o.next = add i64 %o, 1
  br label %output
run:
  %long = word ptr %binding, <LONG>
  %short = icmp eq ptr %long, null
  br i1 %short, label %keep, label %claim
keep:
  %status.short = call i64 @launch(ptr %binding, ptr %record)
  %failed.short = icmp ne i64 %status.short, 0
  br i1 %failed.short, label %again, label %well
claim:
  %hold = <@Py_IncRef>
  %release = <@Py_DecRef>
  call void %hold(ptr %context)
  %cut = <@PyList_SetSlice>
  %uncut = call i32 %cut(ptr %contexts, i64 %last, i64 %free, ptr null)
  %is.cut = icmp eq i32 %uncut, 0
  br i1 %is.cut, label %let.go, label %claimed.not
claimed.not:
  call void %release(ptr %context)
  ret i64 2
let.go:
  %save = <@PyEval_SaveThread>
  %thread = call ptr %save()
  %status.long = call i64 @launch(ptr %binding, ptr %record)
  %restore = <@PyEval_RestoreThread>
  call void %restore(ptr %thread)
  %append = <@PyList_Append>
  %lost = call i32 %append(ptr %contexts, ptr %context)
  call void %release(ptr %context)
  %is.lost = icmp ne i32 %lost, 0
  br i1 %is.lost, label %error, label %judge
judge:
  %failed.long = icmp ne i64 %status.long, 0
  br i1 %failed.long, label %again, label %well
well:
  ret i64 0
again:
  ret i64 1
error:
  ret i64 2
}

; The outputs in the structure asked for; it owns them then. Null with an error set when there is no memory.
define internal ptr @pack(ptr %entry, ptr %outputs, i64 %count) nounwind {
start:
  %kind = word i64 %entry, <KIND>
  %keys = word ptr %entry, <KEYS>
  %release = <@Py_DecRef>
  switch i64 %kind, label %single [ i64 <LIST>, label %list
                                    i64 <TUPLE>, label %tuple
                                    i64 <DICT>, label %dict ]
single:
  %only = load ptr, ptr %outputs, align 8
  ret ptr %only
list:
  %list.make = <@PyList_New>
  %list.set = <@PyList_SetItem>
  %list.new = call ptr %list.make(i64 %count)
  br label %made
tuple:
  %tuple.make = <@PyTuple_New>
  %tuple.set = <@PyTuple_SetItem>
  %tuple.new = call ptr %tuple.make(i64 %count)
  br label %made
dict:
  %dict.make = <@PyDict_New>
  %dict.set = <@PyDict_SetItem>
  %dict.new = call ptr %dict.make()
  br label %made
made:
  %set = phi ptr [ %list.set, %list ], [ %tuple.set, %tuple ], [ %dict.set, %dict ]
  %result = phi ptr [ %list.new, %list ], [ %tuple.new, %tuple ], [ %dict.new, %dict ]
  %named = phi i1 [ false, %list ], [ false, %tuple ], [ true, %dict ]
  %nothing = icmp eq ptr %result, null
  br i1 %nothing, label %none, label %output
none:
  call void @drop(ptr %outputs, i64 %count)
  ret ptr null
output:
  %k = phi i64 [ 0, %made ], [ %next, %after ]
  %wrong = phi i32 [ 0, %made ], [ %wrong.next, %after ]
  %more = icmp ult i64 %k, %count
  br i1 %more, label %one, label %done
one:
  %value = word ptr %outputs, %k
  br i1 %named, label %by.name, label %by.place
by.name:
  ; A dict takes a reference of its own.
  %key = word ptr %keys, %k
  %wrong.name = call i32 %set(ptr %result, ptr %key, ptr %value)
  call void %release(ptr %value)
  br label %after
by.place:
  %wrong.place = call i32 %set(ptr %result, i64 %k, ptr %value)
  br label %after
after:
  %wrong.one = phi i32 [ %wrong.name, %by.name ], [ %wrong.place, %by.place ]
  %wrong.next = or i32 %wrong, %wrong.one
  %next = add i64 %k, 1
  br label %output
done:
  %well = icmp eq i32 %wrong, 0
  br i1 %well, label %whole, label %part
whole:
  ret ptr %result
part:
  call void %release(ptr %result)
  ret ptr null
}

; What Python calls: self, positional arguments and their number, the names of further ones or null.
define ptr @symgrad_call(ptr %self, ptr %given, i64 %number, ptr %names) nounwind {
start:
  %header = <#header>
  %entry.offset = <#entry_at>
  %holder.at = getelementptr i8, ptr %self, i64 %entry.offset
  %holder = load ptr, ptr %holder.at, align 8
  %detached = icmp eq ptr %holder, null
  br i1 %detached, label %slow, label %attached
attached:
  %entry.at = getelementptr i8, ptr %holder, i64 %header
  %entry = load ptr, ptr %entry.at, align 8
  %inputs = load i64, ptr %entry, align 8
  %enough = icmp eq i64 %number, %inputs
  %unnamed = icmp eq ptr %names, null
  %simple = and i1 %enough, %unnamed
  br i1 %simple, label %check, label %order
order:
  ; The arguments in order, and behind them the array for the output or null.
  %places = add i64 %inputs, 1
  %ordered = alloca ptr, i64 %places, align 8
  %clear = call i1 @order(ptr %entry, ptr %given, i64 %number, ptr %names, ptr %ordered)
  br i1 %clear, label %check.out, label %slow
check.out:
  %out.given = word ptr %ordered, %inputs
  br label %check
check:
  %args = phi ptr [ %given, %attached ], [ %ordered, %check.out ]
  %out = phi ptr [ null, %attached ], [ %out.given, %check.out ]
  %dtypes = word ptr %entry, <DTYPES>
  %readable = call i1 @readable(ptr %dtypes, ptr %args, i64 %inputs)
  br i1 %readable, label %search, label %slow
search:
  %b = phi i64 [ 0, %check ], [ %b.next, %compare ]
  %b.next = add i64 %b, 1
  %b.more = icmp ult i64 %b, <SERVED>
  br i1 %b.more, label %look, label %slow
look:
  %b.word = add i64 %b, <BINDINGS>
  %binding = word ptr %entry, %b.word
  %no.more = icmp eq ptr %binding, null
  br i1 %no.more, label %slow, label %compare
compare:
  %shapes = load ptr, ptr %binding, align 8
  %fits = call i1 @fits(ptr %shapes, ptr %args, i64 %inputs)
  br i1 %fits, label %found, label %search
found:
  %count = word i64 %binding, <OUTPUTS>
  %room = add i64 %count, 1
  %outputs = alloca ptr, i64 %room, align 8
  %fresh = icmp eq ptr %out, null
  br i1 %fresh, label %new, label %old
old:
  %usable = call i1 @usable(ptr %entry, ptr %binding, ptr %args, i64 %inputs, ptr %out)
  br i1 %usable, label %use, label %slow
use:
  %hold = <@Py_IncRef>
  call void %hold(ptr %out)
  store ptr %out, ptr %outputs, align 8
  br label %lock
new:
  %allocated = call i1 @allocate(ptr %binding, ptr %outputs)
  br i1 %allocated, label %lock, label %error
lock:
  %locked = call i1 @ask(ptr %entry, i64 <ACQUIRE>)
  br i1 %locked, label %run, label %unneeded
unneeded:
  call void @drop(ptr %outputs, i64 %count)
  br label %error
run:
  %how = call i64 @execute(ptr %binding, ptr %args, i64 %inputs, ptr %outputs, i64 %count)
  %unlocked = call i1 @ask(ptr %entry, i64 <RELEASE>)
  br i1 %unlocked, label %judge, label %unneeded
judge:
  switch i64 %how, label %unneeded [ i64 0, label %well
                                     i64 1, label %again ]
well:
  %result = call ptr @pack(ptr %entry, ptr %outputs, i64 %count)
  ret ptr %result
again:
  call void @drop(ptr %outputs, i64 %count)
  br label %slow
slow:
  %slowly = call ptr @slowly(ptr %self, ptr %given, i64 %number, ptr %names)
  ret ptr %slowly
error:
  ret ptr null
}
"""
