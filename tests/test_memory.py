# pyright: basic, reportAttributeAccessIssue=false
"""The memory of compiled functions: values in place of others, the peak and what it is made of, limits on it."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import random_graph

import symgrad as sg
from codegen import interp
from codegen.affine import Affine, variable
from codegen.inplace import same_element
from codegen.loop import Bind, Body, Buffer, For, Kernel, Load, Loop, Space, Store
from codegen.plan import Place, Work, check, plan
from symgrad.function import Function
from symgrad.graph import Graph
from symgrad.types import float32

Array = np.ndarray


def executable(f: Function):
    (binding,) = f._bindings.values()
    return binding.executable


def arena(f: Function) -> int:
    return executable(f).memory.bytes


# In place.

I, J = variable("i"), variable("j")


def copying(load: Affine, store: Affine, *, rows: int = 4, columns: int = 4, before: Body = ()) -> Work:
    """A work that reads `old` and writes `new` in one nest of loops."""
    inner = (*before, For(Loop("j", columns), (Load("v", "p0", load, float32), Store("p1", store, "v"))))
    body = (For(Loop("i", rows, bind=Bind.PARALLEL), inner),)
    size = rows * columns
    params = (Buffer("p0", float32, size, Space.GLOBAL), Buffer("p1", float32, size, Space.GLOBAL, written=True))
    return Work(Kernel(params, (), body), ("old", "new"), "copying")


ROW = For(Loop("r", 4), (Load("w", "p0", I * 4 + variable("r"), float32),))
COLUMN = For(Loop("r", 4), (Load("w", "p0", I + variable("r") * 4, float32),))


@pytest.mark.parametrize(
    ("work", "possible"),
    [
        (copying(I * 4 + J, I * 4 + J), True),
        (copying(I * 4 + J, I * 4 + J, before=(ROW,)), True),  # the row is read before any of it is written
        (copying(I * 4 + J, I * 4 + J, before=(COLUMN,)), False),
        (copying(I + J * 4, I * 4 + J), False),  # transposed
        (copying(I * 4 + J * -1 + 3, I * 4 + J), False),  # turned around
        (copying(I * 4, I * 4 + J), False),  # read again after it is written
        (copying(I * 4 + J, I * 4 + J * -1 + 3), False),
    ],
)
def test_what_can_be_in_place(work: Work, possible: bool) -> None:
    assert same_element(work, "new", "old") is possible


def test_loops_side_by_side_are_not_in_place() -> None:
    """What one outermost loop reads another may have written, on another worker."""
    (first,) = copying(I, I, rows=4, columns=1).kernel.body
    assert isinstance(first, For)
    reading = For(first.loop, (Load("w", "p0", I, float32), Store("p2", I, "w")))
    params = (
        Buffer("p0", float32, 4, Space.GLOBAL),
        Buffer("p1", float32, 4, Space.GLOBAL, written=True),
        Buffer("p2", float32, 4, Space.GLOBAL, written=True),
    )
    work = Work(Kernel(params, (), (reading, first)), ("old", "new", "other"), "two loops")
    assert not same_element(work, "new", "old")


def test_the_checker_refuses_a_reader_after_it() -> None:
    """A plan that puts a value over one that is read later is caught."""
    works = [
        _moving("first", "input", "a"), _moving("second", "a", "b"), _moving("third", "a", "c"),
    ]  # fmt: skip
    fixed = {"input": Place("input", 0, 64)}
    sizes = dict.fromkeys("abc", 64)
    check(works, plan(works, sizes, fixed, {"c": "a"}), ["input"])
    with pytest.raises(AssertionError, match="third reads a, which is not in its place"):
        check(works, plan(works, sizes, fixed, {"b": "a"}), ["input"])


def _moving(label: str, source: str, destination: str) -> Work:
    params = (Buffer("p0", float32, 16, Space.GLOBAL), Buffer("p1", float32, 16, Space.GLOBAL, written=True))
    return Work(Kernel(params, (), ()), (source, destination), label)


def in_place(f: Function) -> list[tuple[Work, str, str]]:
    """The works of a function that write one value over another, with the new and the old one."""
    made = executable(f)
    places = made.memory.places
    return [
        (one.work, new, old)
        for one in made.launches
        for new in one.work.writes
        for old in one.work.reads
        if places[new].size and places[new] == places[old] and not old.startswith(("param:", "state:"))
    ]


def has_the_same_meaning(work: Work, new: str, old: str) -> bool:
    """Whether the interpreter of loop programs gives the same with one array for both values as with two."""
    rng = np.random.default_rng(0)
    given = {
        v: rng.uniform(0.5, 1.5, b.size).astype(b.dtype.np)
        for v, b in zip(work.values, work.kernel.params, strict=True)
    }
    dtype_of = {v: b.dtype.np for v, b in zip(work.values, work.kernel.params, strict=True)}
    results: list[list[Array]] = []
    for shared, backward in ((False, False), (True, False), (True, True)):
        arrays = {v: a.copy() for v, a in given.items()}
        if shared:
            arrays[new] = arrays[old].view(dtype_of[new])
        interp.run(work.kernel, [arrays[v] for v in work.values], backward=backward)
        results.append([arrays[v] for v in work.writes])
    return all(
        np.array_equal(a, b, equal_nan=True) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )


def test_intermediate_values_in_place() -> None:
    g = Graph()
    x, w = g.input("x", (6, 40)), g.input("w", (40, 40))
    hidden = sg.tanh(x @ w)
    scores = sg.nn.softmax(hidden + sg.sum(hidden, axis=0)) @ w
    f = sg.compile([x, w], [sg.nn.layer_norm(scores + sg.flip(scores, axis=0)), sg.exp(scores @ w) * 2.0])
    rng = np.random.default_rng(0)
    f(rng.standard_normal((6, 40), dtype=np.float32), rng.standard_normal((40, 40), dtype=np.float32))
    found = in_place(f)
    assert found
    for work, new, old in found:
        assert has_the_same_meaning(work, new, old), work.label


def test_a_row_is_normalized_where_it_stands() -> None:
    """The passes over a row read all of it before one writes."""
    g = Graph()
    x, w = g.input("x", (8, 64)), g.input("w", (64, 64))
    f = sg.compile([x, w], sg.nn.softmax(x @ w) @ w)
    f(np.ones((8, 64), np.float32), np.ones((64, 64), np.float32))
    assert any("max" in work.label for work, _, _ in in_place(f))
    assert arena(f) == 8 * 64 * 4


def examine_in_place(seeds: range) -> int:
    """Run what is in place in functions of random graphs and their gradients; how many works that were."""
    count = 0
    for seed in seeds:
        r = random_graph(seed)
        inputs = [m.node for m in r.made if m.node.op.name == "input"]
        outputs = [r.made[-1].node]
        floats = [n for n in inputs if n.dtype.is_float]
        if outputs[0].dtype.is_float and floats:
            outputs += sg.grad(sg.sum(outputs[0] * outputs[0]), floats)
        f = sg.compile(inputs, outputs).prepare()
        for work, new, old in in_place(f):
            count += 1
            assert has_the_same_meaning(work, new, old), f"seed {seed}: {work.label}"
    return count


def test_random_graphs_in_place() -> None:
    assert examine_in_place(range(40)) > 5


@pytest.mark.long
def test_many_random_graphs_in_place() -> None:
    assert examine_in_place(range(1000, 1600)) > 100
