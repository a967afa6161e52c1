"""Where values live: outputs and states where they stand in the end, everything else in the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codegen.access import is_leaf
from codegen.executable import node_bytes, value_name
from codegen.inplace import Overwriting, copy_kernel
from codegen.plan import MemoryPlan, Place, Work, least_bytes, plan
from codegen.precedence import Precedence, order
from codegen.target import Target
from symgrad.errors import CompileError
from symgrad.graph import STATEFUL, Node
from symgrad.program import Program
from symgrad.record import record


@record
class Placed:
    """The works in order with those that copy, and the memory of all values.

    `standing` are the values that are there before a run, `fixed` all that are not intermediate: these too, outputs
    and new values of states.
    """

    works: tuple[Work, ...]
    memory: MemoryPlan
    standing: tuple[str, ...]
    fixed: frozenset[str]


def place(program: Program, works: Sequence[Work], target: Target) -> Placed:
    """Put works in order, and values where they live.

    Outputs and states are written where they stand where nothing is lost by it, else through a copy. CompileError for
    updates that wait for each other.
    """
    fixed: dict[str, Place] = {}
    standing: list[str] = []
    for node in (*program.inputs, *program.states, *(n for n in program.nodes if n.op.name == "const" and n.ndim)):
        name = value_name(node)
        fixed[name] = Place(value_name(node), 0, node_bytes(node))
        standing.append(name)
    copies: list[Work] = []
    for position, node in enumerate(program.outputs):
        name, slot = value_name(node), f"output:{position}"
        if node_bytes(node) == 0:
            continue
        if is_leaf(node) or name in fixed:
            fixed[slot] = Place(slot, 0, node_bytes(node))
            copies.append(_copy(node, name, slot, target))
        else:
            fixed[name] = Place(slot, 0, node_bytes(node))
    homes: dict[str, str] = {}
    works, precedence, overwriting = list(works), Precedence(works), Overwriting()
    for state, new in program.updates:
        if new is not state and node_bytes(state):
            copies += _place_update(works, precedence, overwriting, state, new, fixed, homes, target)
    ordered = order([*works, *copies], homes)
    if ordered is None:
        raise CompileError("the updates of the program wait for each other")
    return Placed(tuple(ordered), _least(ordered, fixed, overwriting), tuple(standing), frozenset(fixed))


def _place_update(
    works: list[Work],
    precedence: Precedence,
    overwriting: Overwriting,
    state: Node,
    new: Node,
    fixed: dict[str, Place],
    homes: dict[str, str],
    target: Target,
) -> list[Work]:
    """Let a new value be written over the old one, or return copies to it after every reader of the old one."""
    name, old = value_name(new), value_name(state)
    home = Place(value_name(state), 0, node_bytes(state))
    if not is_leaf(new) and name not in fixed:
        writer = works[k := precedence.writer[name]]
        # What can report a failure must not have overwritten anything by then.
        if not writer.checks and overwriting.may(writer, name, old) and precedence.take_over(name, old):
            homes[name] = old
            fixed[name] = home
            works[k] = overwriting.without_copy(writer, name, old)
            return []
    # The last copy writes a value of its own that lives where the state lives.
    target_name = f"new {old}"
    fixed[target_name] = home
    homes[target_name] = old
    if new.op.name in STATEFUL:
        between = f"old {value_name(new)} for {old}"
        return [_copy(new, name, between, target), _copy(new, between, target_name, target)]
    return [_copy(new, name, target_name, target)]


def _copy(node: Node, source: str, destination: str, target: Target) -> Work:
    size = node_bytes(node) // node.dtype.itemsize
    return Work(copy_kernel(node.dtype, size, target), (source, destination), f"copy {source} to {destination}")


def _least(works: Sequence[Work], fixed: Mapping[str, Place], overwriting: Overwriting) -> MemoryPlan:
    """The plan that takes fewer bytes and meetings: with intermediate values written over others, or without."""
    buffers = {v: b for w in works for v, b in zip(w.values, w.kernel.params, strict=True)}
    sizes = {v: b.size * b.dtype.itemsize for v, b in buffers.items() if v not in fixed}
    over = successions(works, sizes, fixed, overwriting)
    best = plan(works, sizes, fixed, over)
    if not over or best.bytes == best.least or least_bytes(works, sizes, fixed) > best.bytes:
        return best
    return min(best, plan(works, sizes, fixed), key=lambda p: (p.bytes, sum(p.barriers)))


def successions(
    works: Sequence[Work], sizes: Mapping[str, int], fixed: Mapping[str, Place], overwriting: Overwriting
) -> dict[str, str]:
    """Values that can be written over one that their work is the last to read, each with that one."""
    last = {v: k for k, w in enumerate(works) for v in w.values}
    over: dict[str, str] = {}
    for k, work in enumerate(works):
        dying = [v for v in work.reads if v in sizes and sizes[v] and last[v] == k]
        if not dying:
            continue
        buffers = dict(zip(work.values, work.kernel.params, strict=True))
        for new in work.writes:
            if new not in sizes and not (new in fixed and fixed[new].slot.startswith("output:")):
                continue
            shape = buffers[new].size, buffers[new].dtype.itemsize
            fitting = [v for v in dying if (buffers[v].size, buffers[v].dtype.itemsize) == shape]
            old = next((v for v in fitting if overwriting.may(work, new, v)), None)
            if old is not None:
                over[new] = old
                dying.remove(old)
    return over
