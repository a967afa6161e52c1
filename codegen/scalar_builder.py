"""Building blocks of scalar operations, for one lane or a vector of lanes, as LLVM text: literals, instructions, calls,
conversions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeAlias

from codegen.target import Target
from symgrad.errors import DTypeError
from symgrad.types import DType, bool_, uint8


class Value(NamedTuple):
    """A value in a register: a name, or a literal in LLVM text without its type; bool is i1 here and i8 in memory."""

    text: str
    dtype: DType
    lanes: int

    @property
    def is_literal(self) -> bool:
        return not self.text.startswith("%")


Operand: TypeAlias = "Value | float | int"


def _scalar_type(dtype: DType) -> str:
    if dtype.is_float:
        return "float" if dtype.bits == 32 else "double"
    return f"i{dtype.bits}"


@cache
def llvm_type(dtype: DType, lanes: int) -> str:
    """The type of a register."""
    return _scalar_type(dtype) if lanes == 1 else f"<{lanes} x {_scalar_type(dtype)}>"


@cache
def memory_type(dtype: DType, lanes: int) -> str:
    """The type of loads and stores: that of the register, but i8 for bool."""
    return llvm_type(uint8 if dtype.kind == "b" else dtype, lanes)


def _suffix(dtype: DType, lanes: int) -> str:
    scalar = f"{'f' if dtype.is_float else 'i'}{dtype.bits}"
    return scalar if lanes == 1 else f"v{lanes}{scalar}"


class ScalarBuilder:
    """Appends the instructions of scalar operations to `lines`.

    `lanes` is the width that uniform values (lanes 1) take when they meet a vector. `declarations` and `globals`
    collect the intrinsics, constants and internal functions that the module needs besides the lines. Results have
    the same bits for every width and target; NaN has no promised sign or payload.
    """

    def __init__(self, lanes: int, target: Target) -> None:
        self.lanes = lanes
        self.target = target
        self.lines: list[str] = []
        self.declarations: set[str] = set()
        self.globals: set[str] = set()
        self._functions: set[str] = set()
        self._count = 0

    # Names, literals, widths

    def fresh(self) -> str:
        """A register name no other value of this builder has."""
        self._count += 1
        return f"%v{self._count}"

    def const(self, dtype: DType, value: float | bool) -> Value:
        """A literal of one lane: floats rounded to the dtype, integers wrapped to it."""
        if dtype.kind == "b":
            return Value("true" if value else "false", dtype, 1)
        if dtype.is_float:
            if math.isnan(value):
                return self.const_bits(dtype, 0x7FC00000 if dtype.bits == 32 else 0x7FF8 << 48)
            number = float(dtype.np.type(value))
            return Value(f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}", dtype, 1)
        wrapped = int(value) & ((1 << dtype.bits) - 1)
        if dtype.kind == "i" and wrapped >> (dtype.bits - 1):
            wrapped -= 1 << dtype.bits
        return Value(str(wrapped), dtype, 1)

    def const_bits(self, dtype: DType, bits: int) -> Value:
        """The floating literal with this bit pattern."""
        if dtype.bits == 64:
            return Value(f"0x{bits:016X}", dtype, 1)
        exponent, mantissa = bits >> 23 & 0xFF, bits & 0x7FFFFF
        if exponent == 0xFF:  # Python's float32 conversion would quiet a NaN
            return Value(f"0x{bits >> 31 << 63 | 0x7FF << 52 | mantissa << 29:016X}", dtype, 1)
        return self.const(dtype, struct.unpack("<f", struct.pack("<I", bits))[0])

    def splat(self, v: Value) -> Value:
        """The value in every lane of the builder."""
        if v.lanes == self.lanes:
            return v
        if v.lanes != 1:
            raise ValueError(f"a value of {v.lanes} lanes meets a builder of {self.lanes}")
        scalar, vector = llvm_type(v.dtype, 1), llvm_type(v.dtype, self.lanes)
        if v.is_literal:
            return Value(f"splat ({scalar} {v.text})", v.dtype, self.lanes)
        first = self.emit(v.dtype, self.lanes, f"insertelement {vector} poison, {scalar} {v.text}, i64 0")
        pick = f"shufflevector {vector} {first.text}, {vector} poison, <{self.lanes} x i32> zeroinitializer"
        return self.emit(v.dtype, self.lanes, pick)

    def matched(self, *values: Value) -> tuple[Value, ...]:
        """The values as they are when all have one lane, else all splatted."""
        lanes = values[0].lanes
        for v in values:
            if v.lanes != lanes:
                return tuple([self.splat(v) for v in values])
        return values

    def to_memory(self, v: Value) -> Value:
        """What is stored: bool widened to a byte of 0 or 1, everything else as it is."""
        return self.astype(v, uint8) if v.dtype.kind == "b" else v

    def from_memory(self, v: Value, dtype: DType) -> Value:
        """The register of `dtype` for what was loaded with its memory type; any byte but 0 is true."""
        return self.astype(v, bool_) if dtype.kind == "b" and v.dtype is uint8 else v

    # Instructions

    def type_of(self, v: Value) -> str:
        """The type of the value's register."""
        return llvm_type(v.dtype, v.lanes)

    def emit(self, dtype: DType, lanes: int, instruction: str) -> Value:
        """Append an instruction and name its result."""
        name = self.fresh()
        self.lines.append(f"{name} = {instruction}")
        return Value(name, dtype, lanes)

    def operands(self, *operands: Operand) -> tuple[Value, ...]:
        """Values of one width; Python numbers take the dtype of the first value among the operands."""
        values = [o for o in operands if isinstance(o, Value)]
        if len(values) < len(operands):
            dtype = values[0].dtype
            values = [o if isinstance(o, Value) else self.const(dtype, o) for o in operands]
        return self.matched(*values)

    def binary(self, instruction: str, a: Operand, b: Operand, result: DType | None = None) -> Value:
        """A two-operand instruction; `result` is the dtype of the result when it is not that of the operands."""
        x, y = self.operands(a, b)
        if x.dtype is not y.dtype:
            raise DTypeError(f"{instruction}: operands are {x.dtype} and {y.dtype}; convert one with astype")
        return self.emit(result or x.dtype, x.lanes, f"{instruction} {self.type_of(x)} {x.text}, {y.text}")

    def call_intrinsic(self, name: str, *operands: Operand, overloads: tuple[DType, ...] = ()) -> Value:
        """Call @llvm.name, overloaded on the operands' dtype, or on `overloads`, the first of which is the result."""
        values = self.operands(*operands)
        lanes, dtypes = values[0].lanes, overloads or (values[0].dtype,)
        function = "@llvm." + ".".join((name, *(_suffix(d, lanes) for d in dtypes)))
        return self._call(function, dtypes[0], values, declare=True)

    def call_function(self, name: str, body: Callable[..., Value], result: DType, *args: Value) -> Value:
        """Call an internal function, defined once per module, whose body is `body(builder, *parameters)`.

        The body may open basic blocks: control flow stays out of the caller's lines.
        """
        values = self.matched(*args)
        lanes = values[0].lanes
        function = f"@symgrad_{name}_{values[0].dtype}x{lanes}"
        if function not in self._functions:
            self._functions.add(function)
            inner = ScalarBuilder(lanes, self.target)
            inner.declarations, inner.globals, inner._functions = (self.declarations, self.globals, self._functions)
            parameters = [Value(f"%p{k}", v.dtype, lanes) for k, v in enumerate(values)]
            returned = body(inner, *parameters)
            heads = ", ".join(f"{llvm_type(p.dtype, lanes)} {p.text}" for p in parameters)
            kind = llvm_type(result, lanes)
            text = "\n".join(f"  {line}" for line in inner.lines)
            self.globals.add(
                f"define internal {kind} {function}({heads}) nounwind willreturn memory(none) {{\n"
                f"entry:\n{text}\n  ret {kind} {returned.text}\n}}"
            )
        return self._call(function, result, values, declare=False)

    def _call(self, function: str, result: DType, values: tuple[Value, ...], *, declare: bool) -> Value:
        lanes = values[0].lanes
        kinds = [llvm_type(v.dtype, lanes) for v in values]
        kind = llvm_type(result, lanes)
        if declare:
            self.declarations.add(f"declare {kind} {function}({', '.join(kinds)})")
        heads = ", ".join(f"{k} {v.text}" for k, v in zip(kinds, values, strict=True))
        return self.emit(result, lanes, f"call {kind} {function}({heads})")

    # Arithmetic on floats and wrapping integers

    def add(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("add", a, b)

    def subtract(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("sub", a, b)

    def multiply(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("mul", a, b)

    def _arithmetic(self, instruction: str, a: Operand, b: Operand) -> Value:
        x, y = self.operands(a, b)
        return self.binary(f"f{instruction}" if x.dtype.is_float else instruction, x, y)

    def divide(self, a: Operand, b: Operand) -> Value:
        return self.binary("fdiv", a, b)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a * b + c rounded once; a library call where the target has no such instruction, for the same bits."""
        return self.call_intrinsic("fma", a, b, c)

    def negative(self, a: Value) -> Value:
        if a.dtype.is_float:
            return self.emit(a.dtype, a.lanes, f"fneg {self.type_of(a)} {a.text}")
        return self.subtract(0, a)

    def absolute(self, a: Value) -> Value:
        return self.call_intrinsic("fabs", a)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.call_intrinsic("copysign", magnitude, sign)

    def compare(self, predicate: str, a: Operand, b: Operand) -> Value:
        """A comparison by one of eq ne lt le gt ge: of floats ordered, except that ne is true for NaN."""
        x, y = self.operands(a, b)
        if x.dtype.is_float:
            return self.binary(f"fcmp {'une' if predicate == 'ne' else 'o' + predicate}", x, y, bool_)
        if predicate in ("eq", "ne"):
            return self.binary(f"icmp {predicate}", x, y, bool_)
        return self.binary(f"icmp {'s' if x.dtype.kind == 'i' else 'u'}{predicate}", x, y, bool_)

    def is_nan(self, a: Value) -> Value:
        return self.binary("fcmp uno", a, a, bool_)

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        x, y = self.operands(a, b)
        condition, x, y = self.matched(condition, x, y)
        if x.dtype is not y.dtype or condition.dtype is not bool_:
            raise DTypeError(f"where: got {condition.dtype}, {x.dtype}, {y.dtype}; give bool and one other dtype twice")
        kind = self.type_of(x)
        head = llvm_type(bool_, x.lanes)
        return self.emit(x.dtype, x.lanes, f"select {head} {condition.text}, {kind} {x.text}, {kind} {y.text}")

    def any_lane(self, v: Value) -> str:
        """The register of a branch condition: whether any lane of a bool is true."""
        if v.lanes == 1:
            return v.text
        mask, result = self.fresh(), self.fresh()
        self.lines.append(f"{mask} = bitcast {self.type_of(v)} {v.text} to i{v.lanes}")
        self.lines.append(f"{result} = icmp ne i{v.lanes} {mask}, 0")
        return result

    # Powers of two

    def has_scalef(self, x: Value) -> bool:
        """Whether `scalef` can be used: the target has the instruction, for as many bits as one of its registers."""
        return self.target.scalef and x.lanes * x.dtype.bits >= 128

    def scalef(self, x: Value, n: Value) -> Value:
        """x 2^n rounded once, for a whole number n of the same dtype."""
        x, n = self.matched(x, n)
        widest = 512 // x.dtype.bits
        if x.lanes > widest:
            half = x.lanes // 2
            low, high = (self.scalef(self.part(x, k, half), self.part(n, k, half)) for k in (0, half))
            picks = ", ".join(f"i32 {k}" for k in range(x.lanes))
            kind = self.type_of(low)
            text = f"shufflevector {kind} {low.text}, {kind} {high.text}, <{x.lanes} x i32> <{picks}>"
            return self.emit(x.dtype, x.lanes, text)
        kind, mask = self.type_of(x), f"i{max(x.lanes, 8)}"
        whole = x.lanes == widest  # only this form takes a rounding mode: 4 is the one that is set
        name = f"@llvm.x86.avx512.mask.scalef.p{'s' if x.dtype.bits == 32 else 'd'}.{x.lanes * x.dtype.bits}"
        self.declarations.add(f"declare {kind} {name}({kind}, {kind}, {kind}, {mask}{', i32' if whole else ''})")
        last = f"{mask} -1{', i32 4' if whole else ''}"
        return self.emit(
            x.dtype, x.lanes, f"call {kind} {name}({kind} {x.text}, {kind} {n.text}, {kind} zeroinitializer, {last})"
        )

    def part(self, v: Value, start: int, count: int) -> Value:
        """Some neighboring lanes of a vector."""
        kind = self.type_of(v)
        if count == 1:
            return self.emit(v.dtype, 1, f"extractelement {kind} {v.text}, i64 {start}")
        picks = ", ".join(f"i32 {start + k}" for k in range(count))
        return self.emit(v.dtype, count, f"shufflevector {kind} {v.text}, {kind} poison, <{count} x i32> <{picks}>")

    # Bits

    def bitcast(self, v: Value, dtype: DType) -> Value:
        if v.dtype.bits != dtype.bits:
            raise DTypeError(f"bitcast: {v.dtype} and {dtype} differ in width")
        if v.dtype.is_float == dtype.is_float:
            return Value(v.text, dtype, v.lanes)
        return self._convert("bitcast", v, dtype)

    def shift_left(self, a: Operand, b: Operand) -> Value:
        """The shift must be less than the width of the dtype."""
        return self.binary("shl", a, b)

    def shift_right(self, a: Operand, b: Operand) -> Value:
        """Copies the sign of signed integers; the shift must be less than the width of the dtype."""
        x, y = self.operands(a, b)
        return self.binary("ashr" if x.dtype.kind == "i" else "lshr", x, y)

    def bit_and(self, a: Operand, b: Operand) -> Value:
        return self._bitwise("and", a, b)

    def bit_or(self, a: Operand, b: Operand) -> Value:
        return self._bitwise("or", a, b)

    def bit_xor(self, a: Operand, b: Operand) -> Value:
        return self._bitwise("xor", a, b)

    def bit_not(self, a: Value) -> Value:
        return self.bit_xor(a, True if a.dtype.kind == "b" else -1)

    def _bitwise(self, instruction: str, a: Operand, b: Operand) -> Value:
        x, y = self.operands(a, b)
        if x.dtype.is_float:
            raise DTypeError(f"bitwise_{instruction}: got {x.dtype}; bitwise operations are for bool and integers")
        return self.binary(instruction, x, y)

    # Conversion

    def _convert(self, instruction: str, v: Value, dtype: DType) -> Value:
        source, result = self.type_of(v), llvm_type(dtype, v.lanes)
        return self.emit(dtype, v.lanes, f"{instruction} {source} {v.text} to {result}")

    def astype(self, v: Value, dtype: DType) -> Value:
        """Convert: to bool is `!= 0`; float to integer truncates and saturates, NaN gives 0; the rest as NumPy."""
        source = v.dtype
        if source is dtype:
            return v
        if dtype.kind == "b":
            return self.compare("ne", v, 0)
        if source.is_float and dtype.is_float:
            return self._convert("fpext" if dtype.bits > source.bits else "fptrunc", v, dtype)
        if source.is_float:
            name = "fptosi.sat" if dtype.kind == "i" else "fptoui.sat"
            return self.call_intrinsic(name, v, overloads=(dtype, source))
        if dtype.is_float:
            return self._convert("sitofp" if source.kind == "i" else "uitofp", v, dtype)
        if source.bits == dtype.bits:
            return Value(v.text, dtype, v.lanes)
        if source.bits > dtype.bits:
            return self._convert("trunc", v, dtype)
        return self._convert("sext" if source.kind == "i" else "zext", v, dtype)
