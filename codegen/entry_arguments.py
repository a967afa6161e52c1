"""The arguments of a call, as LLVM text that belongs to `entry`: their order, and whether arrays are what is needed."""

from __future__ import annotations

ARGUMENTS = r"""
; Put arguments by position and by name in order, and behind them what is given for the output, or null. False when they
; are not one for each input: Python says why.
define internal i1 @order(ptr %entry, ptr %given, i64 %number, ptr %names, ptr %ordered) nounwind {
start:
  %inputs = load i64, ptr %entry, align 8
  %input.names = word ptr %entry, <NAMES>
  %none = <@none>
  %out = <@out>
  %too.many = icmp ugt i64 %number, %inputs
  br i1 %too.many, label %no, label %place
place:
  %k = phi i64 [ 0, %start ], [ %k.next, %put ]
  %k.more = icmp ule i64 %k, %inputs
  br i1 %k.more, label %put, label %named
put:
  %by.position = icmp ult i64 %k, %number
  %from = getelementptr ptr, ptr %given, i64 %k
  %from.some = select i1 %by.position, ptr %from, ptr @nothing
  %value = load ptr, ptr %from.some, align 8
  %to = getelementptr ptr, ptr %ordered, i64 %k
  store ptr %value, ptr %to, align 8
  %k.next = add i64 %k, 1
  br label %place
named:
  %unnamed = icmp eq ptr %names, null
  br i1 %unnamed, label %whole, label %count
count:
  %size = <@PyTuple_Size>
  %get = <@PyTuple_GetItem>
  %names.count = call i64 %size(ptr %names)
  br label %name
name:
  %n = phi i64 [ 0, %count ], [ %n.next, %after ]
  %n.more = icmp slt i64 %n, %names.count
  br i1 %n.more, label %read, label %whole
read:
  %text = call ptr %get(ptr %names, i64 %n)
  %argument.number = add i64 %number, %n
  %argument = word ptr %given, %argument.number
  %n.next = add i64 %n, 1
  %is.out = icmp eq ptr %text, %out
  br i1 %is.out, label %output, label %input
output:
  %is.none = icmp eq ptr %argument, %none
  %wanted = select i1 %is.none, ptr null, ptr %argument
  %last = getelementptr ptr, ptr %ordered, i64 %inputs
  store ptr %wanted, ptr %last, align 8
  br label %after
input:
  %i = phi i64 [ 0, %read ], [ %i.next, %other ]
  %i.more = icmp ult i64 %i, %inputs
  br i1 %i.more, label %compare, label %no
compare:
  %i.name = word ptr %input.names, %i
  %i.same = icmp eq ptr %i.name, %text
  br i1 %i.same, label %fill, label %other
other:
  %i.next = add i64 %i, 1
  br label %input
fill:
  %spot = getelementptr ptr, ptr %ordered, i64 %i
  %before = load ptr, ptr %spot, align 8
  %twice = icmp ne ptr %before, null
  br i1 %twice, label %no, label %store
store:
  store ptr %argument, ptr %spot, align 8
  br label %after
after:
  br label %name
whole:
  %w = phi i64 [ 0, %named ], [ 0, %name ], [ %w.next, %present ]
  %w.more = icmp ult i64 %w, %inputs
  br i1 %w.more, label %present, label %yes
present:
  %w.value = word ptr %ordered, %w
  %w.next = add i64 %w, 1
  %missing = icmp eq ptr %w.value, null
  br i1 %missing, label %no, label %whole
yes:
  ret i1 true
no:
  ret i1 false
}
@nothing = private constant ptr null, align 8

; Whether all arguments are arrays of these data types that can be read where they are.
define internal i1 @readable(ptr %dtypes, ptr %args, i64 %count) nounwind {
start:
  %header = <#header>
  %type.offset = sub i64 %header, 8
  %array = <@array_type>
  br label %argument
argument:
  %k = phi i64 [ 0, %start ], [ %next, %flags ]
  %more = icmp ult i64 %k, %count
  br i1 %more, label %type, label %yes
type:
  %object = word ptr %args, %k
  %type.at = getelementptr i8, ptr %object, i64 %type.offset
  %type.of = load ptr, ptr %type.at, align 8
  %is.array = icmp eq ptr %type.of, %array
  br i1 %is.array, label %dtype, label %no
dtype:
  %fields = getelementptr i8, ptr %object, i64 %header
  %dtype.at = getelementptr i8, ptr %fields, i64 <DTYPE>
  %dtype.of = load ptr, ptr %dtype.at, align 8
  %wanted = word ptr %dtypes, %k
  %same = icmp eq ptr %dtype.of, %wanted
  br i1 %same, label %flags, label %equal
equal:
  ; Data types of arrays that were unpickled are others, and equal.
  %compare = <@PyArray_EquivTypes>
  %answer = call zeroext i8 %compare(ptr %dtype.of, ptr %wanted)
  %equals = icmp ne i8 %answer, 0
  br i1 %equals, label %flags, label %no
flags:
  %flags.at = getelementptr i8, ptr %fields, i64 <FLAGS>
  %flags.of = load i32, ptr %flags.at, align 4
  %both = and i32 %flags.of, <READABLE>
  %plain = icmp eq i32 %both, <READABLE>
  %next = add i64 %k, 1
  br i1 %plain, label %argument, label %no
yes:
  ret i1 true
no:
  ret i1 false
}

; Whether arrays have these shapes.
define internal i1 @fits(ptr %shapes, ptr %args, i64 %count) nounwind {
start:
  %header = <#header>
  br label %argument
argument:
  %k = phi i64 [ 0, %start ], [ %next, %after ]
  %shape = phi ptr [ %shapes, %start ], [ %shape.next, %after ]
  %more = icmp ult i64 %k, %count
  br i1 %more, label %rank, label %yes
rank:
  %object = word ptr %args, %k
  %fields = getelementptr i8, ptr %object, i64 %header
  %rank.at = getelementptr i8, ptr %fields, i64 <RANK>
  %rank.of = load i32, ptr %rank.at, align 4
  %rank.wide = sext i32 %rank.of to i64
  %rank.wanted = load i64, ptr %shape, align 8
  %ranks = icmp eq i64 %rank.wide, %rank.wanted
  br i1 %ranks, label %extents, label %no
extents:
  %extents.at = getelementptr i8, ptr %fields, i64 <EXTENTS>
  %extents.of = load ptr, ptr %extents.at, align 8
  br label %extent
extent:
  %d = phi i64 [ 0, %extents ], [ %d.next, %compare ]
  %d.next = add i64 %d, 1
  %rest = icmp ult i64 %d, %rank.wanted
  br i1 %rest, label %compare, label %after
compare:
  %given.at = getelementptr i64, ptr %extents.of, i64 %d
  %given = load i64, ptr %given.at, align 8
  %wanted.at = getelementptr i64, ptr %shape, i64 %d.next
  %wanted = load i64, ptr %wanted.at, align 8
  %same = icmp eq i64 %given, %wanted
  br i1 %same, label %extent, label %no
after:
  %past = add i64 %d.next, 1  ; the bytes
  %shape.next = getelementptr i64, ptr %shape, i64 %past
  %next = add i64 %k, 1
  br label %argument
yes:
  ret i1 true
no:
  ret i1 false
}

; Whether the only output can be written to this array: it is what a fresh one would be, and no input lies in it.
define internal i1 @usable(ptr %entry, ptr %binding, ptr %args, i64 %inputs, ptr %out) nounwind {
start:
  %header = <#header>
  %kind = word i64 %entry, <KIND>
  %single = icmp eq i64 %kind, 0
  br i1 %single, label %array, label %no
array:
  %one = alloca ptr, align 8
  store ptr %out, ptr %one, align 8
  %result = word ptr %binding, <RESULTS>
  %readable = call i1 @readable(ptr %result, ptr %one, i64 1)
  br i1 %readable, label %size, label %no
size:
  %shape = word ptr %result, 1
  %fits = call i1 @fits(ptr %shape, ptr %one, i64 1)
  br i1 %fits, label %writable, label %no
writable:
  %fields = getelementptr i8, ptr %out, i64 %header
  %flags.at = getelementptr i8, ptr %fields, i64 <FLAGS>
  %flags = load i32, ptr %flags.at, align 4
  %bit = and i32 %flags, <WRITABLE>
  %locked = icmp eq i32 %bit, 0
  br i1 %locked, label %no, label %places
places:
  %shapes = load ptr, ptr %binding, align 8
  %out.rank = load i64, ptr %shape, align 8
  %out.last = add i64 %out.rank, 1
  %out.bytes = word i64 %shape, %out.last
  %out.data = load ptr, ptr %fields, align 8
  %out.end = getelementptr i8, ptr %out.data, i64 %out.bytes
  br label %input
input:
  %k = phi i64 [ 0, %places ], [ %next, %apart ]
  %of = phi ptr [ %shapes, %places ], [ %of.next, %apart ]
  %more = icmp ult i64 %k, %inputs
  br i1 %more, label %compare, label %yes
compare:
  %object = word ptr %args, %k
  %object.fields = getelementptr i8, ptr %object, i64 %header
  %data = load ptr, ptr %object.fields, align 8
  %rank = load i64, ptr %of, align 8
  %last = add i64 %rank, 1
  %bytes = word i64 %of, %last
  %end = getelementptr i8, ptr %data, i64 %bytes
  %before = icmp ule ptr %end, %out.data
  %behind = icmp ule ptr %out.end, %data
  %either = or i1 %before, %behind
  br i1 %either, label %apart, label %no
apart:
  %of.count = add i64 %rank, 2
  %of.next = getelementptr i64, ptr %of, i64 %of.count
  %next = add i64 %k, 1
  br label %input
yes:
  ret i1 true
no:
  ret i1 false
}
"""
