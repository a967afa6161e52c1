"""What kernels a program becomes, and when their code is begun."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from codegen import works
from codegen.group import Anchor, Group, group
from codegen.jit import host_target
from codegen.loop import Bind, For, Kernel, loops_of
from codegen.prepare import prepare
from symgrad.optimize import optimize
from symgrad.program import Program


def program_of(make: Callable[[sg.Graph], list[sg.Node]]) -> Program:
    graph = sg.Graph()
    outputs = make(graph)
    return prepare(optimize(Program(graph, tuple(graph.inputs), tuple(outputs)), "infer", {}))


def residual(depth: int) -> Callable[[sg.Graph], list[sg.Node]]:
    """Layers that each add to what comes in, with a normalization before."""

    def make(graph: sg.Graph) -> list[sg.Node]:
        h = graph.input("x", (64, 32))
        for k in range(depth):
            z = h - sg.mean(h, axis=1, keepdims=True)
            h = h + sg.tanh(z @ graph.input(f"v{k}", (32, 48))) @ graph.input(f"w{k}", (48, 32))
        return [h]

    return make


def test_sums_that_several_kernels_read_are_made_with_the_product() -> None:
    """Each layer reads one sum, not what all layers before it added; so equal layers have equal kernels."""
    groups = group(program_of(residual(6)))
    added = [one for one in groups if one.anchor is Anchor.CONTRACT and any(n.op.name == "add" for n in one.nodes)]
    assert len(added) == 6
    assert all([n.op.name for n in one.outputs] == ["add"] for one in added)
    begun: list[Kernel] = []
    works.works_of(program_of(residual(6)), host_target(), begun.append, None)
    few: list[Kernel] = []
    works.works_of(program_of(residual(3)), host_target(), few.append, None)
    assert len(begun) == len(few)


def test_a_sum_that_one_kernel_reads_is_not_stored() -> None:
    def make(graph: sg.Graph) -> list[sg.Node]:
        x = graph.input("x", (64, 32))
        return [sg.sum(sg.square(x @ graph.input("w", (32, 32)) + x), axis=1)]

    groups = group(program_of(make))
    assert not any(n.op.name == "add" for one in groups for n in one.outputs)


def heads(graph: sg.Graph) -> list[sg.Node]:
    """A product that reads rows whose elements stand in another order than its sum runs over."""
    x = graph.input("x", (6, 5, 4, 3))
    rows = sg.reshape(sg.permute_dims(x, (0, 2, 1, 3)), (24, 15))
    return [rows @ graph.input("w", (15, 7))]


def test_what_a_product_cannot_read_in_place_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*arguments):
        calls.append(len(arguments))
        return group(*arguments)

    monkeypatch.setattr(works, "group", counted)
    lowered = works.lowered_groups(program_of(heads))
    assert len(calls) == 1
    assert [one.group.anchor for one in lowered] == [Anchor.MAP, Anchor.CONTRACT]
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 5, 4, 3)).astype(np.float32), rng.standard_normal((15, 7)).astype(np.float32)
    graph = sg.Graph()
    (y,) = heads(graph)
    got = sg.compile(graph.inputs, y)(x, w)
    np.testing.assert_allclose(got, x.transpose(0, 2, 1, 3).reshape(24, 15) @ w, rtol=1e-5, atol=1e-5)


def test_rows_are_begun_while_the_rest_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    lower = works.lower

    def lowering(one: Group, stored: set[int]):
        events.append("lower")
        return lower(one, stored)

    monkeypatch.setattr(works, "lower", lowering)

    def begin(kernel: Kernel) -> None:
        events.append("begin")
        assert loops_of(kernel.body)

    works.works_of(program_of(residual(2)), host_target(), begin, None)
    assert "begin" in events[: len(events) - 1 - events[::-1].index("lower")]


@pytest.mark.parametrize(("columns", "written_out"), [(56, True), (1000, False)])
def test_vectors_of_a_padded_row_know_what_they_read(columns: int, written_out: bool) -> None:
    """No lane is asked where it stands while a short row is padded; results are those of NumPy for any row."""

    def make(graph: sg.Graph) -> list[sg.Node]:
        return [sg.pad(graph.input("x", (3, 9, columns)), ((0, 0), (1, 1), (1, 2)))]

    begun: list[Kernel] = []
    works.works_of(program_of(make), host_target(), begun.append, None)
    (kernel,) = begun
    around = [f for f in loops_of(kernel.body) if any(i.loop.bind is Bind.VECTOR for i in f.body if isinstance(i, For))]
    assert {f.loop.bind is Bind.UNROLL for f in around} == {written_out}
    x = np.random.default_rng(0).standard_normal((3, 9, columns)).astype(np.float32)
    graph = sg.Graph()
    (y,) = make(graph)
    np.testing.assert_array_equal(sg.compile(graph.inputs, y)(x), np.pad(x, ((0, 0), (1, 1), (1, 2))))
