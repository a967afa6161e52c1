"""From a static program to something that runs: one straight line."""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from codegen import jit
from codegen.access import NotAffineError
from codegen.cache import ObjectCache, object_key
from codegen.costs import estimated_ns, operations
from codegen.emit import emit, module_text
from codegen.executable import Executable, Launchable, value_name
from codegen.group import Group, group
from codegen.loop import Kernel, Let, loops_of
from codegen.loop_print import kernel_text
from codegen.loop_verify import verify as verify_kernel
from codegen.lower import lower
from codegen.place import place
from codegen.plan import Work, check
from codegen.prepare import prepare
from codegen.schedule_cpu import schedule
from codegen.steps import Step
from codegen.target import Target
from codegen.writer import scratch_layout
from symgrad.errors import CompileError
from symgrad.graph import Node
from symgrad.opdef import Kind
from symgrad.program import Program
from symgrad.types import size_of

Report = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Compiled:
    """Machine code of one kernel and the library that keeps it mapped."""

    address: int
    scratch_bytes: int
    library: jit.Library


@dataclass(slots=True)
class KernelStore:
    """Compiled kernels by target and loop text, so that equal kernels are compiled once per process.

    A kernel lives as long as an executable that runs it. One build at a time may use a store.
    """

    compiled: weakref.WeakValueDictionary[tuple[str, str], Compiled] = field(
        default_factory=weakref.WeakValueDictionary[tuple[str, str], "Compiled"]
    )


def build(
    program: Program,
    store: KernelStore,
    *,
    target: Target | None = None,
    workers: int = 1,
    verify: bool = False,
    report: Report | None = None,
    cache: ObjectCache | None = None,
    profiled: bool = False,
) -> Executable:
    """Machine code for a static, optimized program.

    `report(stage, text)` receives what each stage did. Code that is in the cache is not made again. A profiled
    program runs kernel by kernel and keeps their times. CompileError for what cannot be compiled.
    """
    target = target or jit.host_target()
    tell = report or _silent
    clock = _Clock(tell)
    program = prepare(program)
    works = _works(program, target, tell)
    clock.lap("lower", f"{len(works)} kernels")
    works, memory, standing = place(program, works, target)
    if verify:
        check(works, memory, standing)
        for work in works:
            verify_kernel(work.kernel)
    clock.lap("plan", f"{memory.bytes} bytes of arena, {sum(memory.barriers)} barriers")
    compiled = _compile([w.kernel for w in works], store, target, tell, cache)
    clock.lap("compile", f"{len({id(c) for c in compiled})} distinct kernels")
    launches = tuple(
        Launchable(work, c.address, c.scratch_bytes, barrier, c)
        for work, c, barrier in zip(works, compiled, memory.barriers, strict=True)
    )
    return Executable(program, launches, memory, workers, profiled=profiled)


def _silent(stage: str, text: str) -> None:
    """Report nothing."""


class _Clock:
    """Times of stages."""

    def __init__(self, tell: Report) -> None:
        self.tell = tell
        self.start = time.perf_counter()

    def lap(self, stage: str, text: str) -> None:
        now = time.perf_counter()
        self.tell("stage", f"{stage:10} {(now - self.start) * 1e3:8.2f} ms  {text}")
        self.start = now


def _groups(program: Program) -> tuple[tuple[Group, ...], list[tuple[Kernel, tuple[Node, ...]]]]:
    """The groups and their naive kernels; what lowering cannot compute in place is stored and fusion starts over."""
    realized = _idle_checks(program)
    while True:
        groups = group(program, realized)
        stored = {n.id for g in groups for n in g.outputs}
        kernels: list[tuple[Kernel, tuple[Node, ...]]] = []
        try:
            for one in groups:
                lowered = lower(one, stored)
                kernels.append((lowered.kernel, lowered.params))
        except NotAffineError as reason:
            if reason.node in realized:
                raise CompileError(f"no affine index for {reason.node!r}") from None
            realized.append(reason.node)
            continue
        return groups, kernels


def _idle_checks(program: Program) -> list[Node]:
    """The index checks read by an array without elements, whose loops would never run them."""
    found: dict[int, Node] = {}
    seen: set[int] = set()
    stack = [n for n in program.nodes if size_of(n.shape) == 0]
    while stack:
        node = stack.pop()
        if node.id in seen:
            continue
        seen.add(node.id)
        stack += node.inputs
        if node.op.name == "check_index" and size_of(node.shape) != 0:
            found[node.id] = node
    return [found[k] for k in sorted(found)]


def _works(program: Program, target: Target, tell: Report) -> list[Work]:
    groups, naive = _groups(program)
    works: list[Work] = []
    for one, (kernel, params) in zip(groups, naive, strict=True):
        if all(b.size == 0 for b in kernel.params if b.written):
            continue
        value_of = {b.name: value_name(n) for b, n in zip(kernel.params, params, strict=True)}
        scheduled = schedule(kernel, one.anchor, target)
        for part in scheduled:
            tell("group", _group_text(one, part.steps))
            tell("loop", kernel_text(part.kernel))
            names = (value_of.get(b.name, f"{b.name} of n{one.nodes[0].id}") for b in part.kernel.params)
            last = part is scheduled[-1]
            label = _label(one) if last else f"pack for {_label(one)}"
            flops, ns = (operations(kernel.body), estimated_ns(kernel.body)) if last else (0, 0.0)
            works.append(Work(part.kernel, tuple(names), label, flops, ns, _checks(part.kernel)))
    return works


def _group_text(one: Group, steps: Sequence[Step]) -> str:
    nodes = ", ".join(f"%{n.id} {n.op.name}" for n in one.nodes)
    return f"{one.anchor.value} {one.domain} axes {one.axes}: {nodes}\n  {', '.join(map(str, steps))}"


def _label(one: Group) -> str:
    names = [n.op.name for n in one.nodes if n.op.kind is not Kind.VIEW] or [one.nodes[0].op.name]
    lines = dict.fromkeys(str(n.loc) for n in one.nodes if n.loc is not None)
    return f"{'+'.join(names[:6])}{'+…' if len(names) > 6 else ''} {list(one.domain)} {' '.join(list(lines)[:3])}"


def _checks(kernel: Kernel) -> bool:
    """Whether a kernel evaluates an index check."""
    bodies = [kernel.body, *(loop.body for loop in loops_of(kernel.body))]
    return any(isinstance(s, Let) and s.op == "check_index" for body in bodies for s in body)


def _compile(
    kernels: Sequence[Kernel], store: KernelStore, target: Target, tell: Report, cache: ObjectCache | None
) -> list[Compiled]:
    """Code for every kernel: what the store lacks is compiled in one module, or comes from the cache."""
    keys = [(target.name, kernel_text(k)) for k in kernels]
    found = {key: kept for key in keys if (kept := store.compiled.get(key)) is not None}
    missing = {key: kernel for key, kernel in zip(keys, kernels, strict=True) if key not in found}
    if missing:
        names = {key: "k" + hashlib.sha256(key[1].encode()).hexdigest()[:16] for key in missing}

        def make() -> bytes:
            module = module_text([emit(kernel, names[key], target) for key, kernel in missing.items()], target)
            tell("llvm", module)
            return jit.compile_object(module, target)

        code = cache.get(object_key((text for _, text in missing), target), make) if cache else make()
        library = jit.link([code], names.values())
        for key, kernel in missing.items():
            found[key] = Compiled(library.address(names[key]), scratch_layout(kernel)[1], library)
            store.compiled[key] = found[key]
    return [found[key] for key in keys]
