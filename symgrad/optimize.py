"""From a program as the user wrote it to one that is ready for code generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from symgrad.bind import bind_attr, bind_shape
from symgrad.errors import ShapeError, SymgradError
from symgrad.final_forms import final_forms
from symgrad.graph import Graph, Node, describe
from symgrad.opdef import OPS
from symgrad.ops.control import readers
from symgrad.passes import Pass, run
from symgrad.program import Program
from symgrad.rulebook import choose_rules
from symgrad.settings import Settings
from symgrad.simplify import Copies, Rules, again, inline_calls, simplify, sweep
from symgrad.storage import Literal as Value
from symgrad.types import Dim, Type

Phase: TypeAlias = Literal["train", "infer"]
_CHOICE = {"train": 0, "infer": 1}
_SELECTED = frozenset(("phase", "stop_gradient", "custom"))


def pipeline(phase: Phase, sizes: Mapping[str, int], rules: Rules) -> tuple[Pass, ...]:
    """The passes, in order. Each is at most one sweep, and none where there is nothing for it to do."""
    return (
        inline_calls,
        partial(select_phase, phase=phase),
        partial(specialize, sizes=sizes),
        partial(simplify, rules=rules),
        partial(final_forms, rules=rules),
    )


def optimize(
    program: Program,
    phase: Phase,
    sizes: Mapping[str, int] | None = None,
    *,
    rules: bool = True,
    without: Iterable[str] = (),
    extra: Iterable[str] = (),
    settings: Settings | None = None,
) -> Program:
    """The program for one phase and the given sizes of its symbolic extents, simplified.

    With `rules=False` nothing is rewritten but equal nodes are still made one. `without` names rules to leave out,
    `extra` rules to add that are off by default; ValueError for a name no rule has. ShapeError where the sizes do not
    fit, with the user's line.
    """
    chosen: Rules = choose_rules(without, extra) if rules else {}
    return run(program, pipeline(phase, sizes or {}, chosen), settings)


def select_phase(program: Program, phase: Phase) -> Program:
    """The program in one phase: the other branch of every `phase` goes, and so do gradient controls."""
    choice = _CHOICE[phase]
    found: dict[int, Node] = {}
    stack = list(program.roots)
    while stack:
        node = stack.pop()
        if node.id in found:
            continue
        found[node.id] = node
        stack += readers(node, choice)
    if not any(node.op.name in _SELECTED for node in found.values()):
        return program

    def make(graph: Graph, node: Node, copies: Copies) -> Node:
        return copies[readers(node, choice)[0].id] if node.op.name in _SELECTED else again(graph, node, copies)

    return sweep(program, {}, make, nodes=[found[k] for k in sorted(found)])


def specialize(program: Program, sizes: Mapping[str, int]) -> Program:
    """The program with every symbolic extent replaced by its value; the program itself if it has none.

    ShapeError where a size is missing or extents do not fit, with the user's line.
    """
    if not any(map(_is_symbolic, (*program.inputs, *program.nodes))):
        return program

    def make(graph: Graph, node: Node, copies: Copies) -> Node:
        try:
            attrs = bind_attr(node.attrs, sizes)
            if node.op.name == "dim":
                return graph.add(OPS["const"], (), (Value(np.asarray(attrs[0], np.int64)),))
            copy = graph.add(node.op, tuple([copies[i.id] for i in node.inputs]), attrs)
            expected = bind_shape(node.shape, sizes)
        except SymgradError as error:
            raise _misfit(node, sizes, str(error)) from error
        if copy.shape != expected:
            raise _misfit(node, sizes, f"its shape is {copy.shape}, expected {expected}")
        return copy

    def bind(node: Node) -> Type:
        return Type(bind_shape(node.shape, sizes), node.dtype)

    return sweep(program, {}, make, bind=bind)


def _misfit(node: Node, sizes: Mapping[str, int], why: str) -> ShapeError:
    given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    return ShapeError(f"{describe(node)} does not fit the sizes {given or 'given (none)'}: {why}")


def _is_symbolic(node: Node) -> bool:
    # The value of an extent that is a number already is a constant too.
    if node.op.name == "dim" or any(isinstance(extent, Dim) for extent in node.shape):
        return True
    stack: list[Any] = list(node.attrs)
    while stack:
        value = stack.pop()
        if isinstance(value, Dim):
            return True
        if isinstance(value, tuple):
            stack += value
    return False
