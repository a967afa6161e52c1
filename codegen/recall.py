"""What a build decided, kept with its machine code, so that the next process need not decide it again.

A plan is kept under a key of the whole program and of all that decisions depend on. It names kernels by the names of
their objects; where one of these is gone, the plan is of no use and the build decides again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from codegen.cache import object_key
from codegen.machine_code import Compiled
from codegen.plan import MemoryPlan, Place, Task
from codegen.target import Target
from codegen.tiling import Choice
from symgrad.graph import Node
from symgrad.program import Program
from symgrad.record import record
from symgrad.storage import Literal
from symgrad.types import DType


@record
class Decided:
    """The kernels of a program in the order they run, their code by name and bytes of scratch memory, and the places
    of all values."""

    tasks: tuple[Task, ...]
    code: tuple[tuple[str, int], ...]
    memory: MemoryPlan


def plan_key(program: Program, target: Target, limit: int | None, chosen: Mapping[str, Choice]) -> str:
    """The key of the plan of a prepared program: equal for programs that differ in nothing that decisions depend on.

    These are the nodes with their ids, what is read, returned and updated, the limit of the arena and the schedules
    that are not the default. The lines of the user and the elements of constants with dimensions do not count.
    """
    schedules = [f"{text}{choice!r}" for text, choice in sorted(chosen.items())]
    return object_key("\n".join([_program_text(program), f"limit {limit}", *schedules]), target, "plan")


def _program_text(program: Program) -> str:
    known: dict[int, str] = {}
    listed = {n.id: n for n in (*program.inputs, *program.states, *program.nodes)}
    lines = [_node_text(listed[k], known) for k in sorted(listed)]
    for nodes in (program.inputs, program.outputs, *program.updates):
        lines.append(" ".join([str(n.id) for n in nodes]))
    return "\n".join(lines)


def _node_text(node: Node, known: dict[int, str]) -> str:
    """A node on one line; `known` are texts of types by identity."""
    if (kind := known.get(id(node.type))) is None:
        kind = known[id(node.type)] = f"{node.type.shape} {node.type.dtype.name}"
    inputs = [i.id for i in node.inputs]
    attrs = "" if node.op.name == "const" and node.ndim else [_attr_text(a) for a in node.attrs]
    return f"{node.id} {node.op.name} {inputs} {attrs} {kind}"


def _attr_text(value: Any) -> str:
    """An attribute, numbers by their bits. TypeError for one that cannot be told from another."""
    if value is None or isinstance(value, int | str):
        return repr(value)
    if isinstance(value, tuple):
        return f"({','.join([_attr_text(v) for v in value])})"  # pyright: ignore[reportUnknownVariableType] nested attributes
    if isinstance(value, float):
        return f"float {struct.pack('<d', value).hex()}"
    if isinstance(value, DType):
        return value.name
    if isinstance(value, Literal):
        return f"{value.array.dtype.str} {value.array.shape} {value.array.tobytes().hex()}"
    raise TypeError(f"an attribute of type {type(value).__name__} has no text")


def encoded(tasks: Sequence[Task], code: Sequence[Compiled], memory: MemoryPlan) -> bytes:
    """A plan as bytes."""
    slots = list(dict.fromkeys(place.slot for place in memory.places.values()))
    slot_of = {slot: k for k, slot in enumerate(slots)}
    values = {value: k for k, value in enumerate(memory.places)}
    document = {
        "slots": slots,
        "places": [(v, slot_of[p.slot], p.offset, p.size) for v, p in memory.places.items()],
        "bytes": memory.bytes,
        "least": memory.least,
        "barriers": memory.barriers,
        "tasks": [
            ([values[v] for v in t.values], [values[v] for v in t.writes],
             t.units, t.bytes, t.label, t.flops, t.ns, t.nodes)
            for t in tasks
        ],
        "code": [(one.name, one.scratch_bytes) for one in code],
    }  # fmt: skip
    return json.dumps(document, separators=(",", ":")).encode()


def decoded(data: bytes) -> Decided:
    """The plan that these bytes, which `encoded` made, stand for."""
    document: Any = json.loads(data)
    slots: Any = document["slots"]
    places = {value: Place(slots[slot], offset, size) for value, slot, offset, size in document["places"]}
    names = list(places)
    tasks = tuple(
        [
            Task(tuple([names[k] for k in t[0]]), tuple([names[k] for k in t[1]]), *t[2:-1], nodes=tuple(t[-1]))
            for t in document["tasks"]
        ]
    )
    memory = MemoryPlan(document["bytes"], places, tuple(document["barriers"]), document["least"])
    return Decided(tasks, tuple([(name, scratch) for name, scratch in document["code"]]), memory)
