"""From a program to the kernels it runs: fused, lowered and scheduled, each distinct group once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from codegen.access import NotAffineError
from codegen.alike import Likeness, likeness
from codegen.costs import estimated_ns, operations
from codegen.executable import value_name
from codegen.group import Anchor, Group, group
from codegen.loop import Kernel, checks_index
from codegen.loop_print import kernel_text
from codegen.lower import lower
from codegen.plan import Work
from codegen.schedule_cpu import schedule
from codegen.steps import Step
from codegen.target import Target
from codegen.tiling import Choice
from symgrad.errors import CompileError
from symgrad.graph import Node
from symgrad.opdef import Kind
from symgrad.program import Program
from symgrad.types import size_of

Report = Callable[[str, str], None]


class _Naive(NamedTuple):
    """The naive kernel of groups that compute alike; `places` say which of their nodes its parameters are."""

    number: int
    kernel: Kernel
    places: tuple[int, ...]


class _Part(NamedTuple):
    """One kernel of those a group runs in turn, with what its works have in common."""

    kernel: Kernel
    steps: tuple[Step, ...]
    flops: int
    ns: float
    checks: bool


def works_of(
    program: Program,
    target: Target,
    begin: Callable[[Kernel], None],
    tell: Report | None,
    verify: bool = False,
    chosen: Mapping[str, Choice] = MappingProxyType({}),
    alike: bool = True,
) -> list[Work]:
    """The kernels of a prepared program in an order that respects dependence.

    `begin` is called with every distinct kernel as soon as it is known, `tell` with the groups and loop programs. With
    `verify`, groups that compute alike are lowered all the same and compared. `chosen` has schedules of contractions
    by the text of their naive kernels, where they are not the default. Without `alike` no kernel stands for another
    group's: equal sizes may remember different extents.
    """
    works: list[Work] = []
    scheduled: dict[int, list[_Part]] = {}
    for one, like, naive in _lowered(program, verify, alike):
        if all(b.size == 0 for b in naive.kernel.params if b.written):
            continue
        parts = scheduled.get(naive.number)
        if parts is None:
            parts = scheduled[naive.number] = _parts(naive.kernel, one, target, chosen)
            for part in parts:
                begin(part.kernel)
        value_of = {b.name: value_name(like.nodes[k]) for b, k in zip(naive.kernel.params, naive.places, strict=True)}
        label = _label(one)
        for part in parts:
            if tell is not None:
                tell("group", _group_text(one, part.steps))
                tell("loop", kernel_text(part.kernel))
            names = tuple([value_of.get(b.name) or f"{b.name} of n{one.nodes[0].id}" for b in part.kernel.params])
            own = label if part is parts[-1] else f"pack for {label}"
            works.append(Work(part.kernel, names, own, part.flops, part.ns, part.checks))
    return works


def contractions_of(program: Program) -> tuple[list[Kernel], float]:
    """The distinct naive kernels of contractions in a prepared program, and about how long all its kernels take.

    The time is that of one worker in nanoseconds.
    """
    lowered = _lowered(program, verify=False)
    ns = {naive.number: estimated_ns(naive.kernel) for _, _, naive in lowered}
    found = {naive.number: naive.kernel for one, _, naive in lowered if one.anchor is Anchor.CONTRACT}
    return list(found.values()), sum(ns[naive.number] for _, _, naive in lowered)


def _lowered(program: Program, verify: bool, alike: bool = True) -> list[tuple[Group, Likeness, _Naive]]:
    """The groups and their naive kernels; what lowering cannot compute in place is stored and fusion starts over."""
    realized = _idle_checks(program)
    known: dict[Hashable, _Naive] = {}
    while True:
        groups = group(program, realized)
        stored = {n.id for g in groups for n in g.outputs}
        try:
            return [(one, like := likeness(one, stored), _naive(one, like, known, verify, alike)) for one in groups]
        except NotAffineError as reason:
            if reason.node in realized:
                raise CompileError(f"no affine index for {reason.node!r}") from None
            realized.append(reason.node)


def _naive(one: Group, like: Likeness, known: dict[Hashable, _Naive], verify: bool, alike: bool) -> _Naive:
    key = like.key if alike else len(known)
    found = known.get(key)
    if found is not None and not verify:
        return found
    lowered = lower(one, like.stored)
    place = {node.id: k for k, node in enumerate(like.nodes)}
    made = _Naive(len(known), lowered.kernel, tuple([place[n.id] for n in lowered.params]))
    if found is not None:
        assert (made.kernel, made.places) == (found.kernel, found.places), f"{_label(one)} is not what it is like"
        return found
    known[key] = made
    return made


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


def _parts(naive: Kernel, one: Group, target: Target, chosen: Mapping[str, Choice]) -> list[_Part]:
    """The scheduled kernels of a group; the last one computes, others pack for it."""
    choice = chosen.get(kernel_text(naive)) if chosen and one.anchor is Anchor.CONTRACT else None
    scheduled = schedule(naive, one.anchor, target, choice)
    work = operations(naive.body), estimated_ns(naive)
    return [
        _Part(part.kernel, tuple(part.steps), *(work if part is scheduled[-1] else (0, 0.0)), checks_index(part.kernel))
        for part in scheduled
    ]


def _group_text(one: Group, steps: Sequence[Step]) -> str:
    nodes = ", ".join(f"%{n.id} {n.op.name}" for n in one.nodes)
    return f"{one.anchor.value} {one.domain} axes {one.axes}: {nodes}\n  {', '.join(map(str, steps))}"


def _label(one: Group) -> str:
    names = [n.op.name for n in one.nodes if n.op.kind is not Kind.VIEW] or [one.nodes[0].op.name]
    lines = dict.fromkeys(str(n.loc) for n in one.nodes if n.loc is not None)
    return f"{'+'.join(names[:6])}{'+…' if len(names) > 6 else ''} {list(one.domain)} {' '.join(list(lines)[:3])}"
