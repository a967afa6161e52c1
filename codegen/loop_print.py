"""The text form of loop programs: for reading, for golden tests, and as the key equal kernels are found by."""

from __future__ import annotations

from collections.abc import Iterator

from codegen.affine import Affine
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Fetch,
    Finish,
    For,
    Index,
    Init,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    Within,
)


def kernel_text(kernel: Kernel) -> str:
    """The kernel, one statement per line. Two kernels with equal text do the same."""
    params = ", ".join(f"{b.name}: {'out ' if b.written else ''}{b.dtype.name}[{b.size}]" for b in kernel.params)
    lines = [f"kernel({params})"]
    lines += [f"  {b.space.value} {b.name}: {b.dtype.name}[{b.size}]" for b in kernel.locals]
    lines += _body_lines(kernel.body, "  ")
    return "\n".join(lines)


def _body_lines(body: Body, indent: str) -> Iterator[str]:
    for stmt in body:
        if isinstance(stmt, For):
            loop = stmt.loop
            bind = "" if loop.bind is Bind.SERIAL else f" {loop.bind.value}"
            lanes = f"({loop.lanes})" if loop.lanes else ""
            skip = "" if loop.skip is None else f"{_guard_text(loop.skip.guard)} or {loop.skip.unless}"
            yield f"{indent}for {loop.name} in {loop.start}..{loop.start + loop.extent}{bind}{lanes}{skip}:"
            yield from _body_lines(stmt.body, indent + "  ")
        else:
            yield indent + _stmt_text(stmt)


def _stmt_text(stmt: Stmt) -> str:
    match stmt:
        case Let(name, op, args, dtype, attrs):
            extra = [f"{k}={_attr_text(v)}" for k, v in attrs]
            return f"{name}: {dtype.name} = {op}({', '.join([*args, *extra])})"
        case Index(name, index, dtype):
            return f"{name}: {dtype.name} = index({index})"
        case Load(name, buffer, index, dtype, guard):
            return f"{name}: {dtype.name} = {buffer}[{index}]{_guard_text(guard)}"
        case Within(name, guard):
            return f"{name}: bool = within{_guard_text(guard)}"
        case Store(buffer, index, value, past_caches):
            return f"{buffer}[{index}] = {value}{' past caches' if past_caches else ''}"
        case Fetch(buffer, index, write):
            return f"fetch {buffer}[{index}]{' to write' if write else ''}"
        case Init(buffer, index, combine):
            return f"{buffer}[{index}] = identity({combine})"
        case Accumulate(buffer, index, combine, args, name):
            running = "" if name is None else f"{name} = "
            return f"{running}{buffer}[{index}] {combine}= {', '.join(args)}"
        case Finish(name, buffer, index, combine, dtype):
            return f"{name}: {dtype.name} = {combine} of {buffer}[{index}]"
        case For():
            raise AssertionError("loops are printed by their body")


def _attr_text(value: object) -> str:
    array = getattr(value, "array", None)
    return str(value) if array is None else f"{array.dtype}:{array.tobytes().hex()}"


def _guard_text(guard: tuple[Affine, ...]) -> str:
    return " if " + " and ".join(f"{g} >= 0" for g in guard) if guard else ""
