# pyright: basic, reportAttributeAccessIssue=false
"""The memory of compiled functions: values in place of others, the peak and what it is made of, limits on it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from random_graphs import random_graph

import symgrad as sg
from codegen import interp, jit
from codegen.affine import Affine, variable
from codegen.inplace import same_element
from codegen.loop import Bind, Body, Buffer, For, Kernel, Load, Loop, Space, Store
from codegen.place import Placed, place
from codegen.plan import Place, Work, check, original, plan
from codegen.rematerialize import within
from codegen.works import works_of
from symgrad.errors import CompileError
from symgrad.function import Function
from symgrad.graph import Graph
from symgrad.types import Dim, bound, float32, uint8, unbound
from tests.benchmarks.workloads import cnn, gpt, mlp

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
    made, target = executable(f), jit.host_target()
    works = place(made.program, works_of(made.program, target, lambda _: None, None), target).works
    assert [work.task for work in works] == [one.task for one in made.launches]
    places = made.memory.places
    return [
        (work, new, old)
        for work in works
        for new in work.writes
        for old in work.reads
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
    assert examine_in_place(range(25)) > 3


@pytest.mark.long
def test_many_random_graphs_in_place() -> None:
    assert examine_in_place(range(1000, 1600)) > 90


# Bytes of the temporary buffers of the same training steps in JAX 0.10.2, compiled for the CPU with donated states.
TEMPORARY = {"mlp_large": 2_394_112, "cnn": 31_584_256, "gpt": 67_609_668}


@pytest.mark.parametrize("name", TEMPORARY)
def test_training_steps_take_no_more_than_in_jax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Function] = []
    compiling = sg.compile
    monkeypatch.setattr(sg, "compile", lambda *given, **options: made.append(compiling(*given, **options)) or made[-1])
    (workload,) = [w for module in (mlp, cnn, gpt) for w in module.WORKLOADS if w.name == name]
    workload.builds["symgrad"](workload.make_inputs(), 2)
    assert arena(made[0].prepare()) <= TEMPORARY[name]


# What the report says.


def peak_of(report: str) -> tuple[int, str]:
    found = re.search(r"^ *peak ([0-9,]+) bytes(?: = (.*?))?, at kernel \d+: ", report, re.MULTILINE)
    assert found is not None, report
    return int(found[1].replace(",", "")), found[2] or ""


def test_the_peak_as_a_formula() -> None:
    """The formula gives the bytes for the sizes it was made from; here the same one for all."""
    g = Graph()
    x = g.input("x", ("rows", 48))
    w = g.param("w", np.ones((48, 48), np.float32))
    loss = sg.mean(sg.tanh(sg.tanh(x @ w) @ w) ** 2)
    formulas = set()
    for rows in (48, 64, 112):
        f = sg.compile([x], [loss, sg.grad(loss, w)]).prepare(rows=rows)
        taken, formula = peak_of(f.report())
        assert 0 < taken <= arena(f)
        assert eval(formula, {"rows": rows}) == taken
        formulas.add(formula)
    assert len(formulas) == 1


def test_the_formula_of_several_extents() -> None:
    g = Graph()
    x = g.input("x", ("n", "m"))
    w = g.param("w", np.ones((8, 8), np.float32))
    h = sg.tanh(sg.reshape(x, (-1, 8)) @ w) @ w
    f = sg.compile([x], sg.nn.softmax(h) @ w).prepare(n=6, m=40)
    taken, formula = peak_of(f.report())
    assert eval(formula, {"n": 6, "m": 40}) == taken
    assert "m*n" in formula


def test_the_formula_names_each_of_two_extents_of_one_size() -> None:
    g = sg.Graph()
    x, y, w = g.input("x", ("m", 64)), g.input("y", ("n", 64)), g.param("w", np.ones((64, 64), np.float32))
    f = sg.compile([x, y], sg.sum(sg.tanh(x @ w) @ w) + sg.sum(sg.tanh(y @ w) @ w))
    f(np.ones((32, 64), np.float32), np.ones((32, 64), np.float32))
    taken, formula = peak_of(f.report())
    assert eval(formula, {"m": 32, "n": 32}) == taken
    assert "m" in formula
    assert "n" in formula


def test_sizes_remember_their_extents() -> None:
    """Arithmetic with integers gives the value and the extent of the same polynomial."""
    n, m = bound(6, Dim.named("n")), bound(4, Dim.named("m"))
    made = [n + 1, 1 + n, n - m, 3 - n, n * m, 2 * n, n // 4, -(-n // 4), 50 // m, n**2, -n, math.prod((n, m, 3))]
    plain = [7, 7, 2, -3, 24, 12, 1, 2, 12, 36, -6, 72]
    assert made == plain
    assert [repr(k) for k in made] == [repr(k) for k in plain]
    for value in made:
        extent = unbound(value)
        assert isinstance(extent, Dim)
        assert extent.bind({"n": 6, "m": 4}) == value
    assert type(n - n) is int
    assert unbound(5) == 5
    assert n * 0.5 == 3.0
    assert {n: "six"}[6] == "six"


def test_what_lives_at_the_peak() -> None:
    g = Graph()
    x = g.input("x", (64, 32))
    w = g.param("w", np.ones((32, 32), np.float32))
    table = np.arange(32, dtype=np.float32)
    loss = sg.sum(sg.exp(sg.sin(x @ w) @ w) * table)
    f = sg.compile([x], loss, updates=sg.optim.momentum([w], sg.grad(loss, [w]), lr=0.1)).prepare()
    report = f.report()
    assert (
        "outside of the arena: inputs 8,192 bytes, outputs 4 bytes, states 8,192 bytes, constants 128 bytes" in report
    )
    taken, formula = peak_of(report)
    assert formula == ""
    lines = re.findall(r"^ *([0-9,]+) bytes: .*float32\[.*test_memory.py:\d+", report, re.MULTILINE)
    sizes = [int(n.replace(",", "")) for n in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == taken == arena(f)
    idle = sg.compile([x], x * 2.0).prepare()
    assert "peak 0 bytes: no intermediate value is stored" in idle.report()


# Limits.

Make = Callable[..., tuple[Function, list[Array]]]


def deep_network(**options: Any) -> tuple[Function, list[Array]]:
    """A training step of twelve layers with momentum and dropout; the outputs are the loss."""
    g = Graph(seed=3)
    rng = np.random.default_rng(0)
    x = h = g.input("x", (96, 64))
    for k in range(12):
        w = g.param(f"w{k}", (rng.standard_normal((64, 64)) / 7).astype(np.float32))
        h = sg.nn.gelu(h @ w + g.param(f"b{k}", np.zeros(64, np.float32)))
        if k % 4 == 3:
            h = sg.nn.dropout(h, 0.1)
    loss = sg.mean(h * h)
    updates = sg.optim.momentum(g.params, sg.grad(loss, g.params), lr=0.1)
    return sg.compile([x], loss, updates=updates, **options), [rng.standard_normal((96, 64), dtype=np.float32)]


def convolutions(**options: Any) -> tuple[Function, list[Array]]:
    g = Graph()
    rng = np.random.default_rng(0)
    x = h = g.input("x", (4, 3, 16, 16))
    channels = 3
    for k in range(6):
        w = g.param(f"w{k}", (rng.standard_normal((8, channels, 3, 3)) / 6).astype(np.float32))
        h, channels = sg.nn.relu(sg.nn.conv2d(h, w, padding=1)), 8
        if k % 2:
            h = sg.nn.max_pool2d(h, 2)
    loss = sg.mean(h * h)
    f = sg.compile([x], [loss, *sg.grad(loss, g.params)], **options)
    return f, [rng.standard_normal((4, 3, 16, 16), dtype=np.float32)]


def second_order(**options: Any) -> tuple[Function, list[Array]]:
    g = Graph()
    rng = np.random.default_rng(0)
    x, v = g.input("x", (32, 32)), g.input("v", (32, 32))
    h = x
    for k in range(8):
        h = sg.tanh(h @ g.param(f"w{k}", (rng.standard_normal((32, 32)) / 5).astype(np.float32)))
    loss = sg.sum(h * h)
    f = sg.compile([x, v], [loss, sg.hvp(loss, x, v)], **options)
    return f, [rng.standard_normal((32, 32), dtype=np.float32) for _ in range(2)]


def steps(f: Function, arrays: list[Array]) -> list[Array]:
    """The outputs of three calls."""
    out: list[Array] = []
    for _ in range(3):
        got = f(*arrays)
        out += got if isinstance(got, list) else [got]
    return out


@pytest.mark.parametrize(("make", "share"), [(deep_network, 0.3), (convolutions, 0.75), (second_order, 0.7)])
def test_the_same_bits_in_less_memory(make: Make, share: float) -> None:
    free, arrays = make()
    expected = steps(free, arrays)
    limit = int(share * arena(free))
    limited, _ = make(max_bytes=limit)
    for one, other in zip(steps(limited, arrays), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert arena(limited) <= limit < arena(free)
    assert len(executable(limited).launches) > len(executable(free).launches)
    assert "(again)" in limited.report()


@pytest.mark.parametrize("make", [deep_network, convolutions, second_order])
def test_the_least_that_is_possible(make: Make) -> None:
    """The error tells a limit that can be kept, and what is in the way of less."""
    free, arrays = make()
    expected = steps(free, arrays)
    with pytest.raises(CompileError, match=r"kept to max_bytes=1: the least found is \d+ bytes") as caught:
        make(max_bytes=1)[0](*arrays)
    text = str(caught.value)
    found = re.search(r"least found is (\d+) bytes, and (\d+) without computing values again; its peak", text)
    assert found is not None
    assert int(found[2]) == arena(free)
    assert "test_memory.py:" in text
    least, _ = make(max_bytes=int(found[1]))
    for one, other in zip(steps(least, arrays), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert arena(least) == int(found[1]) < arena(free)


def test_a_limit_that_does_not_bind_changes_nothing() -> None:
    free, arrays = convolutions()
    free(*arrays)
    limited, _ = convolutions(max_bytes=arena(free))
    limited(*arrays)
    assert executable(limited).memory == executable(free).memory
    assert [one.task for one in executable(limited).launches] == [one.task for one in executable(free).launches]


def test_every_set_of_sizes_has_the_limit() -> None:
    g = Graph()
    x = g.input("x", ("n", 32))
    h = x
    for k in range(8):
        h = sg.sin(h @ g.param(f"w{k}", np.eye(32, dtype=np.float32)))
    f = sg.compile([x], sg.grad(sg.sum(h), x), max_bytes=40_000)
    for n in (16, 48):
        f(np.ones((n, 32), np.float32))
    bytes_ = [one.executable.memory.bytes for one in f._bindings.values()]
    assert max(bytes_) <= 40_000
    with pytest.raises(CompileError, match="max_bytes=40000"):
        f(np.ones((256, 32), np.float32))
    assert f(np.ones((16, 32), np.float32)).shape == (16, 32)


def test_indices_are_checked_before_anything_changes() -> None:
    results = []
    for limit in (None, 90_000):
        g = Graph()
        table = g.param("table", np.linspace(-1, 1, 64 * 32, dtype=np.float32).reshape(64, 32))
        ids = g.input("ids", (128,), sg.int32)
        h = sg.take(table, ids, axis=0)
        for _ in range(4):
            h = sg.tanh(h @ (sg.matrix_transpose(table) @ table))
        loss = sg.sum(h * h)
        step = sg.compile([ids], loss, updates=sg.optim.sgd([table], sg.grad(loss, [table]), lr=0.01), max_bytes=limit)
        good = np.arange(128, dtype=np.int32) % 64
        results.append((step(good), table.value, arena(step)))
        with pytest.raises(IndexError, match="unchanged"):
            step(good + 1)
        np.testing.assert_array_equal(table.value, results[-1][1])
    for one, other in zip(results[0][:2], results[1][:2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert results[1][2] <= 90_000 < results[0][2]


@pytest.mark.parametrize("limit", [-1, 1.5, True, "1 MB"])
def test_limits_that_are_none(limit: Any) -> None:
    g = Graph()
    x = g.input("x", (3,))
    with pytest.raises(CompileError, match="max_bytes must be an integer of at least 0"):
        sg.compile([x], x + 1.0, max_bytes=limit)


def mirrored_works(rng: np.random.Generator, length: int) -> list[Work]:
    """Works that write one or two values each; those of the second half read late what those of the first wrote."""
    written: list[list[str]] = []
    sizes = {"input": 64}
    works: list[Work] = []
    for k in range(2 * length):
        reads = {str(rng.choice(written[-1])) if written else "input"}
        if k > length and rng.random() < 0.8:
            reads.add(str(rng.choice(written[2 * length - k])))
        if written and rng.random() < 0.2:
            reads.add(str(rng.choice(written[int(rng.integers(len(written)))])))
        own = [f"v{k}.{j}" for j in range(int(rng.integers(1, 3)))]
        sizes |= {v: int(rng.choice([64, 200, 1000])) for v in own}
        values = (*sorted(reads), *own)
        params = [Buffer(f"p{j}", uint8, sizes[v], Space.GLOBAL, v in own) for j, v in enumerate(values)]
        works.append(Work(Kernel(tuple(params), (), ()), values, f"w{k}", ns=float(rng.integers(1, 20))))
        written.append(own)
    return works


def test_works_that_run_again() -> None:
    """Whatever the works are: everything reads the values it read before, computed from the same ones, in its place."""
    lowered = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        works = mirrored_works(rng, int(rng.integers(3, 16)))
        values = {w.label: w.values for w in works}
        sizes = {v: b.size for w in works for v, b in zip(w.values, w.kernel.params, strict=True)}
        last = works[-1].writes[0]
        fixed = {"input": Place("input", 0, 64), last: Place("output:0", 0, sizes[last])}

        def placing(some: Sequence[Work], fixed: dict[str, Place] = fixed) -> Placed:
            own = {v: b.size for w in some for v, b in zip(w.values, w.kernel.params, strict=True) if v not in fixed}
            return Placed(tuple(some), plan(some, own, fixed), ("input",), frozenset(fixed))

        free = placing(works).memory.bytes
        limit = int(free * rng.uniform(0.1, 1))
        found = within(limit, works, placing)
        check(found.works, found.memory, found.standing)
        assert [w.label for w in found.works if not w.label.endswith("(again)")] == [w.label for w in works]
        for one in found.works:
            assert tuple(map(original, one.values)) == values[one.label.removesuffix(" (again)")]
        writes = [v for one in found.works for v in one.writes]
        assert len(writes) == len(set(writes))
        least = within(0, works, placing).memory.bytes
        assert found.memory.bytes <= max(limit, least) <= free
        lowered += found.memory.bytes < free
    assert lowered > 12


def examine_limits(seeds: range) -> int:
    """Compile random graphs with derivatives under random limits; in how many of them something is computed again."""
    lowered = 0
    for seed in seeds:
        r = random_graph(seed)
        leaves = [m for m in r.made if m.node.op.name == "input"]
        inputs = [m.node for m in leaves]
        outputs = [m.node for m in r.made[-2:]]
        loss = [sg.astype(sg.sum(n * 1.1), "float64") for n in outputs if n.dtype.is_float]
        floats = [n for n in inputs if n.dtype.is_float]
        if loss and floats:
            total = loss[0] if len(loss) == 1 else loss[0] + loss[1]
            along = r.rng.normal(0, 1, floats[0].shape).astype(floats[0].dtype.np)
            outputs += [*sg.grad(total, floats), sg.hvp(total, floats[0], along)]
        arrays = [m.value for m in leaves]
        free = sg.compile(inputs, outputs)
        expected = free(*arrays)
        limit = int(arena(free) * r.rng.uniform(0.2, 1))
        limited = sg.compile(inputs, outputs, max_bytes=limit)
        try:
            got = limited(*arrays)
        except CompileError as error:
            found = re.search(r"least found is (\d+) bytes", str(error))
            assert found is not None
            assert int(found[1]) <= arena(free)
            limited = sg.compile(inputs, outputs, max_bytes=int(found[1]))
            got = limited(*arrays)
            assert arena(limited) <= int(found[1])
        else:
            assert arena(limited) <= limit
        lowered += len(executable(limited).launches) > len(executable(free).launches)
        for one, other in zip(got, expected, strict=True):
            assert one.tobytes() == other.tobytes(), f"seed {seed}"
    return lowered


def test_random_graphs_under_limits() -> None:
    assert examine_limits(range(30)) >= 1


@pytest.mark.long
def test_many_random_graphs_under_limits() -> None:
    assert examine_limits(range(2000, 2600)) > 20
