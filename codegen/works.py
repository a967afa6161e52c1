"""From a program to the kernels it runs: fused, lowered and scheduled, each distinct group once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from codegen.absorb import Slices, absorbed, is_cheap, is_filled_in, slices_of
from codegen.access import NotAffineError
from codegen.alike import Likeness, likeness
from codegen.costs import estimated_ns, operations
from codegen.executable import value_name
from codegen.group import Anchor, Group, group
from codegen.loop import Kernel, checks_index
from codegen.loop_print import kernel_text
from codegen.lower import lower
from codegen.padding import Padding, padding_of
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

# The most bytes of a slice that a kernel fills for itself, in second caches: what leaves one is near in the third.
FILLED_BYTES_OF_L2 = 2


class _Naive(NamedTuple):
    """The naive kernel of groups that compute alike; `places` say which of their nodes its parameters are."""

    number: int
    kernel: Kernel
    places: tuple[int, ...]


class LoweredGroup(NamedTuple):
    """A group of a program and the naive kernel that computes it."""

    group: Group
    like: Likeness
    naive: _Naive


class _Part(NamedTuple):
    """One kernel of those a group runs in turn, with what its works have in common."""

    kernel: Kernel
    steps: tuple[Step, ...]
    flops: int
    ns: float
    checks: bool


class _Made(NamedTuple):
    """The kernels of a group, the last one of which may fill what others computed, and the values of its parameters."""

    groups: tuple[Group, ...]
    naive: _Naive
    parts: list[_Part]
    values: dict[str, str]


def works_of(
    program: Program,
    target: Target,
    begin: Callable[[Kernel], None],
    tell: Report | None,
    verify: bool = False,
    chosen: Mapping[str, Choice] = MappingProxyType({}),
    alike: bool = True,
    lowered: Sequence[LoweredGroup] | None = None,
) -> list[Work]:
    """The kernels of a prepared program in an order that respects dependence.

    `begin` is called with every distinct kernel as soon as it is known, `tell` with the groups and loop programs. With
    `verify`, groups that compute alike are lowered all the same and compared. `chosen` has schedules of contractions
    by the text of their naive kernels, where they are not the default. Without `alike` no kernel stands for another
    group's: equal sizes may remember different extents. `lowered` are the program's `lowered_groups`, where they are
    known.
    """
    scheduled: dict[Hashable, list[_Part]] = {}
    begun: set[int] = set()

    def parts_of(one: LoweredGroup, padded: Mapping[str, Padding]) -> list[_Part]:
        key = (one.naive.number, *sorted(padded.items(), key=lambda item: item[0]))
        parts = scheduled.get(key)
        if parts is None:
            parts = scheduled[key] = _parts(one.naive.kernel, one.group, target, chosen, padded)
        return parts

    def ahead(one: LoweredGroup) -> None:
        # Others wait for the rest: maps may run in the contractions that read them, which may know where they are 0.
        if one.group.anchor not in (Anchor.MAP, Anchor.CONTRACT) and not _is_empty(one):
            _begin(parts_of(one, {}), begin, begun)

    if lowered is None:
        lowered = lowered_groups(program, verify, alike, ahead)
    lowered = [one for one in lowered if not _is_empty(one)]
    made: list[_Made] = []
    held = _held(lowered, {value_name(n) for n in program.roots})
    paddings = _paddings(lowered)
    for one in lowered:
        naive = one.naive
        values = {b.name: value_name(one.like.nodes[k]) for b, k in zip(naive.kernel.params, naive.places, strict=True)}
        padded = {b: paddings[value] for b, value in values.items() if value in paddings}
        if one.group.anchor is not Anchor.CONTRACT:
            padded = {}
        parts = parts_of(one, padded)
        made.append(_Made((one.group,), naive, parts, values))
        if not any(value in held for value in values.values()):
            _begin(parts, begin, begun)
    made = _with_absorbed(made, held, target, scheduled)
    works: list[Work] = []
    for some in made:
        _begin(some.parts, begin, begun)
        label, nodes = _label(some.groups), tuple([n.id for one in some.groups for n in one.nodes])
        for part in some.parts:
            if tell is not None:
                tell("group", _group_text(some.groups, part.steps))
                tell("loop", kernel_text(part.kernel))
            first = some.groups[-1].nodes[0].id
            names = tuple([some.values.get(b.name) or f"{b.name} of n{first}" for b in part.kernel.params])
            own = label if part is some.parts[-1] else f"pack for {label}"
            works.append(Work(part.kernel, names, own, part.flops, part.ns, part.checks, nodes))
    return works


def _is_empty(one: LoweredGroup) -> bool:
    """Whether there is nothing to compute."""
    return all(b.size == 0 for b in one.naive.kernel.params if b.written)


def _begin(parts: Sequence[_Part], begin: Callable[[Kernel], None], begun: set[int]) -> None:
    """Call with the kernels that it was not called with before; they are kept, so that no other has their identity."""
    for part in parts:
        if id(part.kernel) not in begun:
            begun.add(id(part.kernel))
            begin(part.kernel)


def _held(lowered: Sequence[LoweredGroup], roots: set[str]) -> dict[str, int]:
    """The values that need not be stored if the kernels that read them can fill them, and what computes them."""
    made: dict[str, int] = {}
    anchors: dict[str, list[Anchor]] = {}
    for k, (one, like, naive) in enumerate(lowered):
        written = [b.name for b in naive.kernel.params if b.written]
        for buffer, place in zip(naive.kernel.params, naive.places, strict=True):
            value = value_name(like.nodes[place])
            if not buffer.written:
                anchors.setdefault(value, []).append(one.anchor)
            elif one.anchor is Anchor.MAP and len(written) == 1 and value not in roots:
                made[value] = k
    return {
        value: k
        for value, k in made.items()
        if anchors.get(value)
        and all(a is Anchor.CONTRACT for a in anchors[value])
        and (len(anchors[value]) == 1 or is_cheap(lowered[k].naive.kernel))
        and not checks_index(lowered[k].naive.kernel)
    }


def _with_absorbed(
    made: Sequence[_Made], held: Mapping[str, int], target: Target, scheduled: dict[Hashable, list[_Part]]
) -> list[_Made]:
    """The kernels without those that fill a value all of whose readers can fill it."""
    out = list(made)
    gone: set[int] = set()
    reading: dict[str, set[int]] = {value: set() for value in held}
    for k, some in enumerate(made):
        for value in held.keys() & some.values.values():
            reading[value].add(k)
    for value, producer in held.items():
        source = made[producer]
        readers = sorted(reading[value] - {producer})
        fillings = [_filling(out[k], value, source, target) for k in readers]
        if any(f is None for f in fillings):
            continue
        for k, filling in zip(readers, fillings, strict=True):
            assert filling is not None
            out[k] = _absorbing(out[k], value, source, filling, target, scheduled)
            for other in held.keys() & out[k].values.values():
                reading[other].add(k)
        gone.add(producer)
    return [some for k, some in enumerate(out) if k not in gone]


def _filling(reader: _Made, value: str, source: _Made, target: Target) -> Slices | None:
    """How a reader can fill a value: its last kernel alone reads it, in slices that are near while they are read."""
    (name,) = [b for b, v in reader.values.items() if v == value]
    if any(b.name == name for part in reader.parts[:-1] for b in part.kernel.params):
        return None
    kernel = reader.parts[-1].kernel
    slices = slices_of(kernel, name)
    if slices is None or slices.size * kernel.buffer(name).dtype.itemsize > FILLED_BYTES_OF_L2 * target.l2:
        return None
    return slices if is_filled_in(source.naive.kernel, slices) else None


def _absorbing(
    reader: _Made, value: str, source: _Made, slices: Slices, target: Target, scheduled: dict[Hashable, list[_Part]]
) -> _Made:
    naive, last, filler = source.naive.kernel, reader.parts[-1], source.parts[-1]
    (name,) = [b for b, v in reader.values.items() if v == value]
    present = {v: b for b, v in reader.values.items()}
    names = {b.name: present.get(source.values[b.name], f"{name}_{b.name}") for b in naive.params}
    values = {b: v for b, v in reader.values.items() if b != name}
    values |= {names[b.name]: source.values[b.name] for b in naive.params if not b.written}
    key = (id(reader.parts), name, source.naive.number, tuple(names.items()))
    parts = scheduled.get(key)
    if parts is None:
        kernel = absorbed(
            last.kernel, name, slices, naive, names, lambda some: schedule(some, Anchor.MAP, target)[-1].kernel
        )
        flops, ns = last.flops + filler.flops, last.ns + filler.ns
        parts = scheduled[key] = [*reader.parts[:-1], _Part(kernel, last.steps, flops, ns, last.checks)]
    return _Made((*source.groups, *reader.groups), reader.naive, parts, values)


def contractions_of(lowered: Sequence[LoweredGroup]) -> tuple[list[Kernel], float]:
    """The distinct naive kernels of contractions in a program, and about how long all its kernels take.

    The time is that of one worker in nanoseconds.
    """
    ns = {naive.number: estimated_ns(naive.kernel) for _, _, naive in lowered}
    found = {naive.number: naive.kernel for one, _, naive in lowered if one.anchor is Anchor.CONTRACT}
    return list(found.values()), sum(ns[naive.number] for _, _, naive in lowered)


def lowered_groups(
    program: Program, verify: bool = False, alike: bool = True, tell: Callable[[LoweredGroup], None] | None = None
) -> list[LoweredGroup]:
    """The groups of a prepared program and their naive kernels; see `works_of` for the options.

    What lowering cannot compute in place is stored, whatever group it is in, and fusion starts over. `tell` hears of
    every group when it is lowered, of most of them again after that, and of a few that are others then.
    """
    realized = _idle_checks(program)
    known: dict[Hashable, _Naive] = {}
    while True:
        groups = group(program, realized)
        stored = {n.id for g in groups for n in g.outputs}
        lowered: list[LoweredGroup] = []
        missing: dict[int, Node] = {}
        for one in groups:
            like = likeness(one, stored)
            try:
                made = LoweredGroup(one, like, _naive(one, like, known, verify, alike))
            except NotAffineError as reason:
                missing[reason.node.id] = reason.node
                continue
            lowered.append(made)
            if tell is not None:
                tell(made)
        if not missing:
            return lowered
        for node in realized:
            if node.id in missing:
                raise CompileError(f"no affine index for {node!r}")
        realized += missing.values()


def _naive(one: Group, like: Likeness, known: dict[Hashable, _Naive], verify: bool, alike: bool) -> _Naive:
    key = like.key if alike else len(known)
    found = known.get(key)
    if found is not None and not verify:
        return found
    lowered = lower(one, like.stored)
    place = {node.id: k for k, node in enumerate(like.nodes)}
    made = _Naive(len(known), lowered.kernel, tuple([place[n.id] for n in lowered.params]))
    if found is not None:
        assert (made.kernel, made.places) == (found.kernel, found.places), f"{_label((one,))} is not what it is like"
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


def _paddings(lowered: Sequence[LoweredGroup]) -> dict[str, Padding]:
    """Where values are known to be 0, of those that maps compute."""
    found: dict[int, dict[int, Padding]] = {}  # by naive kernel and its parameter
    out: dict[str, Padding] = {}
    for one, like, naive in lowered:
        if one.anchor is not Anchor.MAP:
            continue
        known = found.get(naive.number)
        if known is None:
            written = ((k, b.name) for k, b in enumerate(naive.kernel.params) if b.written)
            each = ((k, padding_of(naive.kernel, name)) for k, name in written)
            known = found[naive.number] = {k: padding for k, padding in each if padding is not None}
        out |= {value_name(like.nodes[naive.places[k]]): padding for k, padding in known.items()}
    return out


def _parts(
    naive: Kernel, one: Group, target: Target, chosen: Mapping[str, Choice], padded: Mapping[str, Padding]
) -> list[_Part]:
    """The scheduled kernels of a group; the last one computes, others pack for it."""
    choice = chosen.get(kernel_text(naive)) if chosen and one.anchor is Anchor.CONTRACT else None
    scheduled = schedule(naive, one.anchor, target, choice, padded)
    work = operations(naive.body), estimated_ns(naive)
    return [
        _Part(part.kernel, tuple(part.steps), *(work if part is scheduled[-1] else (0, 0.0)), checks_index(part.kernel))
        for part in scheduled
    ]


def _group_text(groups: Sequence[Group], steps: Sequence[Step]) -> str:
    lines = [
        f"{one.anchor.value} {one.domain} axes {one.axes}: {', '.join(f'%{n.id} {n.op.name}' for n in one.nodes)}"
        for one in groups
    ]
    return "\n  ".join([*lines, ", ".join(map(str, steps))])


def _label(groups: Sequence[Group]) -> str:
    nodes = [n for one in groups for n in one.nodes]
    names = [n.op.name for n in nodes if n.op.kind is not Kind.VIEW] or [nodes[0].op.name]
    return f"{'+'.join(names[:6])}{'+…' if len(names) > 6 else ''} {list(groups[-1].domain)}"
