"""Compiled functions as a user calls them: structure, memory, threads, processes, lifetimes."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from symgrad.function import RECYCLED_BYTES, Function
from symgrad.graph import Graph


def double(shape: tuple[int | str, ...] = ("n",)) -> Function:
    graph = Graph()
    x = graph.input("x", shape)
    return sg.compile([x], x * 2, name="double")


LARGE = RECYCLED_BYTES // 4 + 16


# --- structure of the outputs ------------------------------------------------------------------------------------


def test_outputs_come_in_the_structure_asked_for() -> None:
    graph = Graph()
    x = graph.input("x", (2,))
    y, z = x + 1, x * 2
    given = np.array([1, 2], np.float32)
    node = sg.compile([x], y)(given)
    assert isinstance(node, np.ndarray)
    assert node.dtype == np.float32
    found = sg.compile([x], [y, z])(given)
    assert isinstance(found, list)
    assert [list(a) for a in found] == [[2, 3], [2, 4]]
    assert isinstance(sg.compile([x], (y, z))(given), tuple)
    assert isinstance(sg.compile([x], (y,))(given), tuple)
    named = sg.compile([x], {"b": y, "a": z})(given)
    assert list(named) == ["b", "a"]
    np.testing.assert_array_equal(named["a"], [2, 4])
    assert len(sg.compile([x], [y])(given)) == 1
    scalar = sg.compile([x], sg.sum(x))(given)
    assert isinstance(scalar, np.ndarray)
    assert scalar.shape == ()


def test_program_is_compiled_in_its_structure() -> None:
    graph = Graph()
    x = graph.input("x", (2,))
    given = np.ones(2, np.float32)
    named = sg.compile(sg.prune({"y": x + 1}, [x]))(x=given)
    np.testing.assert_array_equal(named["y"], [2, 2])
    np.testing.assert_array_equal(sg.compile(sg.prune([x + 1], [x]))(given), [2, 2])


def test_same_node_twice_and_inputs_as_outputs() -> None:
    graph = Graph()
    x, w = graph.input("x", (3,)), graph.param("w", np.ones(3, np.float32))
    given = np.array([1, 2, 3], np.float32)
    same = sg.compile([x], [x * 2, x * 2, x, x, w, w, graph.const(np.arange(3.0)), graph.const(np.arange(3.0))])
    arrays = same(given)
    for k in range(0, 8, 2):
        np.testing.assert_array_equal(arrays[k], arrays[k + 1])
    for k, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in (*arrays[:k], given, graph.storage["w"].array))
    for one in arrays:
        one[:] = -1
    np.testing.assert_array_equal(same(given)[6], [0, 1, 2])
    np.testing.assert_array_equal(given, [1, 2, 3])
    np.testing.assert_array_equal(w.value, [1, 1, 1])


@pytest.mark.parametrize("view", ["T", "reversed", "reshape", "broadcast", "slice"])
def test_view_of_an_input_as_output_is_a_fresh_contiguous_array(view: str) -> None:
    graph = Graph()
    x = graph.input("x", (3, 4))
    node = {
        "T": x.T,
        "reversed": x[::-1, ::-2],
        "reshape": sg.reshape(x, (2, 6)),
        "broadcast": sg.broadcast_to(x, (2, 3, 4)),
        "slice": x[1:, 2:],
    }[view]
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    got = sg.compile([x], node)(given)
    assert not np.shares_memory(got, given)
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(got, sg.evaluate(node, {x: given}))


# --- inputs --------------------------------------------------------------------------------------------------------


def test_inputs_by_position_and_by_name() -> None:
    graph = Graph()
    x, y = graph.input("x", (2,)), graph.input("y", (2,))
    f = sg.compile([x, y], x - y)
    a, b = np.array([5, 6], np.float32), np.array([1, 1], np.float32)
    for got in (f(a, b), f(x=a, y=b), f(y=b, x=a), f(a, y=b)):
        np.testing.assert_array_equal(got, [4, 5])


def test_input_that_is_not_needed_is_still_checked() -> None:
    graph = Graph()
    x, y = graph.input("x", (2,)), graph.input("y", ("n",))
    f = sg.compile([x, y], x + 1)
    np.testing.assert_array_equal(f(np.zeros(2, np.float32), np.zeros(7, np.float32)), [1, 1])
    with pytest.raises(sg.DTypeError, match="'y'"):
        f(np.zeros(2, np.float32), np.zeros(7))


def test_any_layout_is_read_and_never_written() -> None:
    graph = Graph()
    x = graph.input("x", ("n", "m"))
    f = sg.compile([x], x * 2)
    base = np.arange(48, dtype=np.float32).reshape(6, 8)
    unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 8)
    locked = base.copy()
    locked.flags.writeable = False
    cases = [base, base.T, base[::-1, ::-2], base[1:3, 2:5], base.astype(">f4"), unaligned, locked]
    cases += [np.broadcast_to(base[0], (3, 8)), np.asfortranarray(base), base[:0], base[:, :0]]
    for given in cases:
        held = given.copy()
        np.testing.assert_array_equal(f(given), held * 2)
        np.testing.assert_array_equal(given, held)


def test_subclasses_and_weak_values() -> None:
    f = double()
    np.testing.assert_array_equal(f([1, 2.5, True]), [2, 5, 2])
    np.testing.assert_array_equal(f([]), [])
    np.testing.assert_array_equal(f((1, 2)), [2, 4])
    assert type(f(np.arange(3, dtype=np.float32).view(np.recarray))) is np.ndarray
    with pytest.raises(sg.DTypeError, match="masked"):
        f(np.ma.masked_array(np.ones(2, np.float32), [True, False]))
    graph = Graph()
    s, i = graph.input("s", ()), graph.input("i", ("n",), sg.int8)
    assert sg.compile([s], s * 2)(2.5) == 5
    assert sg.compile([s], s * 2)(3) == 6
    assert sg.compile([s], s * 2)(np.float32(3)) == 6
    with pytest.raises(sg.DTypeError, match=r"float64.*astype\('float32'\)"):
        sg.compile([s], s * 2)(np.float64(3))
    with pytest.raises(sg.DTypeError, match="do not fit float32"):
        sg.compile([s], s * 2)(1e39)
    assert np.isinf(sg.compile([s], s * 2)(np.inf))
    take_int = sg.compile([i], i)
    np.testing.assert_array_equal(take_int([127, -128]), [127, -128])
    for wrong in ([128], [-129], [2**70], [1.0], [1j], ["1"], [None], [[1], [1, 2]]):
        with pytest.raises((sg.DTypeError, sg.ShapeError), match=r"'i'.*test_function"):
            take_int(wrong)


# --- out= ----------------------------------------------------------------------------------------------------------


def test_out_is_written_and_returned() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    given, out = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert sg.compile([x], x * 2)(given, out=out) is out
    np.testing.assert_array_equal(out, [2, 2, 2])
    pair = sg.compile([x], [x * 3, x])
    room = [np.empty(3, np.float32), np.empty(3, np.float32)]
    got = pair(given, out=room)
    assert got[0] is room[0]
    assert got[1] is room[1]
    np.testing.assert_array_equal(room, [[3, 3, 3], [1, 1, 1]])
    named = sg.compile([x], {"a": x + 1, "b": x})
    target = {"b": np.empty(3, np.float32), "a": np.empty(3, np.float32)}
    assert named(given, out=target)["a"] is target["a"]
    np.testing.assert_array_equal(target["a"], [2, 2, 2])


def test_out_that_does_not_fit() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    f, pair = sg.compile([x], x * 2, name="f"), sg.compile([x], [x, x + 1], name="pair")
    given = np.ones(4, np.float32)
    locked = np.zeros(4, np.float32)
    locked.flags.writeable = False
    shared = np.zeros(8, np.float32)
    unaligned = np.zeros(17, np.uint8)[1:].view(np.float32)
    for out, error, says in [
        (np.zeros(5, np.float32), sg.ShapeError, r"f: out\[0\] must have shape \(4,\), got \(5,\)"),
        (np.zeros(4), sg.DTypeError, r"must be float32, got float64"),
        (np.zeros(4, ">f4"), sg.DTypeError, r"must be float32"),
        (locked, sg.GraphError, "writable"),
        (np.zeros(8, np.float32)[::2], sg.GraphError, "contiguous"),
        (unaligned, sg.GraphError, "aligned"),
        (given, sg.GraphError, "shares memory"),
        ([1, 2, 3, 4], sg.GraphError, "must be an array, got list"),
    ]:
        with pytest.raises(error, match=says):
            f(given, out=out)
    for out, says in [
        ([shared[:4], shared[2:6]], "shares memory"),
        ([shared[:4]], "must hold 2"),
        (shared[:4], "list of arrays"),
        (7, "list of arrays"),
    ]:
        with pytest.raises(sg.GraphError, match=says):
            pair(given, out=out)
    np.testing.assert_array_equal(given, 1)
    np.testing.assert_array_equal(shared, 0)
    named = sg.compile([x], {"a": x, "b": x * 2})
    with pytest.raises(sg.GraphError, match="keys a, b"):
        named(given, out={"a": np.zeros(4, np.float32)})


# --- memory of the outputs -----------------------------------------------------------------------------------------


def test_recycled_memory_never_aliases_what_is_held() -> None:
    f = double((LARGE,))
    one = np.ones(LARGE, np.float32)
    holders = {
        "array": lambda a: a,
        "view": lambda a: a[5:],
        "element": lambda a: a[7:8],
        "reversed": lambda a: a[::-1],
        "transpose": lambda a: a.reshape(2, -1).T,
        "memoryview": memoryview,
        "frombuffer": lambda a: np.frombuffer(a, np.uint8)[:4096],
        "bytes view": lambda a: a.view(np.uint8).reshape(-1, 4),
        "iterator": lambda a: a.flat,
        "base": lambda a: a.base if a.base is not None else a,
        "dlpack": np.from_dlpack,
        "subclass": lambda a: a.view(np.recarray),
        "broadcast": lambda a: np.broadcast_to(a, (2, LARGE)),
        "strided": lambda a: np.lib.stride_tricks.as_strided(a, (10,), (16,)),
        "nested": lambda a: [{"x": (a[3:],)}],
        "closure": lambda a: lambda: a,
        "ctypes": lambda a: a.ctypes.data_as(__import__("ctypes").c_void_p),
    }

    def content(held: object) -> bytes:
        if isinstance(held, np.flatiter):
            held = np.array(held)
        if isinstance(held, list):
            held = held[0]["x"][0]
        if callable(held):
            held = held()
        if not isinstance(held, np.ndarray | memoryview):
            return b""
        return bytes(np.ascontiguousarray(held).tobytes())

    held: dict[str, object] = {}
    wanted: dict[str, bytes] = {}
    for value, (name, hold) in enumerate(holders.items(), 1):
        held[name] = hold(f(one * value))
        wanted[name] = content(held[name])
        f(one * 1000)  # would write over memory recycled too early
        f(one * 2000)
        f(one * 3000)
    for name, one_held in held.items():
        assert content(one_held) == wanted[name], name
    assert wanted["array"] == np.full(LARGE, 2, np.float32).tobytes()


def test_memory_is_recycled_once_dropped() -> None:
    f = double((LARGE,))
    given = np.ones(LARGE, np.float32)
    addresses = set()
    for _ in range(20):
        addresses.add(f(given).ctypes.data)
    assert len(addresses) <= 2


def test_recycling_between_threads() -> None:
    f = double((LARGE,))

    def work(k: int) -> bool:
        given = np.full(LARGE, k, np.float32)
        held = [f(given) for _ in range(4)]
        return all((a == 2 * k).all() for a in held)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(48)))


def test_reference_cycle_keeps_its_array() -> None:
    f = double((LARGE,))
    cycle: list[object] = [f(np.full(LARGE, 3, np.float32))]
    cycle.append(cycle)
    seen = weakref.WeakValueDictionary()  # an array can be reached through a weak reference only while it lives
    array = cycle[0]
    seen["array"] = array
    del array, cycle
    for _ in range(5):
        f(np.zeros(LARGE, np.float32))
    alive = seen.get("array")
    assert alive is None or (np.asarray(alive) == 6).all()
    gc.collect()


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_specializes_to_new_sizes_and_keeps_them() -> None:
    f = double()
    for n in (3, 1, 0, 17, 3, 1000, 0, 1):
        given = np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(f(given), given * 2)
    assert "compiled for 5 sizes" in repr(f)
    assert f.report().count("double for inputs") == 5


def test_empty_batches() -> None:
    graph = Graph()
    x, t = graph.input("x", ("n", 4)), graph.input("t", ("n",), sg.int32)
    w = graph.param("w", np.ones((4, 3), np.float32))
    logits = x @ w
    total = sg.sum(sg.nn.softmax_cross_entropy(logits, t))
    step = sg.compile([x, t], [total, logits, sg.max(logits, axis=1)], updates=[(w, w - sg.grad(total, w))])
    total_value, rows, best = step(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    assert total_value == 0
    assert rows.shape == (0, 3)
    assert best.shape == (0,)
    np.testing.assert_array_equal(w.value, 1)
    assert step(np.zeros((1, 4), np.float32), np.zeros(1, np.int32))[0] == pytest.approx(np.log(3))
    mean = sg.compile([x], sg.mean(x))
    assert np.isnan(mean(np.zeros((0, 4), np.float32)))


def test_prepare() -> None:
    graph = Graph()
    x, y = graph.input("x", ("n", "m")), graph.input("y", (graph.input("z", ("k",)).shape[0] * 2,))
    f = sg.compile([x, y, graph.named("z")], [x * 2, y], name="f")
    assert f.prepare(n=3, m=2, k=4) is f
    assert "compiled for 1 sizes" in repr(f)
    f(np.zeros((3, 2), np.float32), np.zeros(8, np.float32), np.zeros(4, np.float32))
    f.prepare(n=3, m=2, k=4)
    assert "compiled for 1 sizes" in repr(f)
    for sizes, says in [
        ({"n": 3}, r"f\.prepare: give the size of dimension 'k'"),
        ({"n": 3, "m": 1, "k": 1, "q": 1}, "no input has a dimension 'q'"),
        ({"n": -3, "m": 1, "k": 1}, "got -3"),
        ({"n": 1.5, "m": 1, "k": 1}, "got 1.5"),
        ({"n": True, "m": 1, "k": 1}, "got True"),
        ({"n": "3", "m": 1, "k": 1}, "got '3'"),
    ]:
        with pytest.raises(sg.ShapeError, match=says):
            f.prepare(**sizes)  # type: ignore[arg-type]
    assert double((3,)).prepare().report().startswith("double for inputs (3,)")
    assert "not compiled yet" in double().report()


# --- values of params ----------------------------------------------------------------------------------------------


def test_value_is_a_copy_and_is_checked() -> None:
    graph = Graph()
    start = np.arange(6, dtype=np.float32).reshape(2, 3)
    w = graph.param("w", start)
    start[:] = 9
    np.testing.assert_array_equal(w.value, [[0, 1, 2], [3, 4, 5]])
    w.value[:] = 7
    np.testing.assert_array_equal(w.value[0], [0, 1, 2])
    new = np.ones((3, 2), np.float32).T
    w.value = new
    new[:] = 5
    np.testing.assert_array_equal(w.value, 1)
    w.value = np.full((2, 3), 2, ">f4")
    np.testing.assert_array_equal(w.value, 2)
    for wrong, error in [
        (np.zeros((3, 2), np.float32), sg.ShapeError),
        (np.float32(1), sg.ShapeError),
        (np.zeros((2, 3)), sg.DTypeError),
        (np.zeros((2, 3), complex), sg.DTypeError),
        (w * 2, sg.GraphError),
        ([[1], [1, 2]], sg.ShapeError),
    ]:
        with pytest.raises(error, match="w"):
            w.value = wrong
    np.testing.assert_array_equal(w.value, 2)


# --- threads and processes -----------------------------------------------------------------------------------------


def test_calls_from_eight_threads() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    f = sg.compile([x], [x * 2, sg.sum(x)])
    failures: list[str] = []

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        for _ in range(60):
            given = np.full(int(rng.integers(0, 6)), k, np.float32)
            twice, total = f(given)
            if not (twice == 2 * k).all() or total != k * given.size:
                failures.append(f"{k}: {twice} {total}")

    run_threads(work)
    assert not failures


def run_threads(work, count: int = 8) -> None:
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)


@pytest.mark.parametrize("size", [3, 300_000])
def test_updates_from_eight_threads_are_counted_exactly(size: int) -> None:
    graph = Graph()
    w, count = graph.param("w", np.zeros(size, np.float32)), graph.state("count", np.int64(0))
    step = sg.compile([], count + 1, updates=[(w, w + 1), (count, count + 1)], threads=2)
    undo = sg.compile([], count, updates=[(w, w - 1)], threads=2)
    seen: list[int] = []
    turns = 200 if size < 1000 else 10

    def work(k: int) -> None:
        for _ in range(turns):
            if k % 4 == 3:
                undo()
            else:
                seen.append(int(step()))
            if k == 0:
                value = w.value  # never half of an update
                assert value.min() == value.max()

    run_threads(work)
    assert count.value == 6 * turns
    assert sorted(seen) == list(range(1, 6 * turns + 1))
    np.testing.assert_array_equal(w.value, 4 * turns)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("size", [5, 400_000])
def test_fork(size: int) -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    w = graph.param("w", np.float32(0))
    step = sg.compile([x], sg.sum(x) + w, updates=[(w, w + 1)], threads=2)
    ones = np.ones(size, np.float32)
    assert float(step(ones)) == size
    pid = os.fork()
    if pid == 0:
        # The child has its own copy of the param, and compiles for new sizes too.
        try:
            well = float(step(ones)) == size + 1 and float(step(np.ones(7, np.float32))) == 9 and w.value == 3
        finally:
            os._exit(0 if "well" in locals() and locals()["well"] else 1)
    assert float(step(ones)) == size + 1
    assert wait_for(pid) == 0
    assert float(step(ones)) == size + 2
    assert w.value == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_while_other_threads_call() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    w = graph.param("w", np.float32(0))
    step = sg.compile([x], sg.sum(x), updates=[(w, w + 1)], threads=2)
    stop = threading.Event()

    def call(k: int) -> None:
        n = 1
        while not stop.is_set():
            step(np.ones(n + k, np.float32))
            n = n % 20 + 1

    threads = [threading.Thread(target=call, args=(k,)) for k in (0, 300_000)]
    for t in threads:
        t.start()
    codes = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            try:
                before = float(w.value)
                well = float(step(np.ones(333, np.float32))) == 333 and w.value == before + 1
                well = well and float(step(np.ones(400_000, np.float32))) == 400_000
            finally:
                os._exit(0 if "well" in locals() and locals()["well"] else 1)
        codes.append(wait_for(pid))
    stop.set()
    for t in threads:
        t.join(30)
    assert codes == [0, 0, 0, 0]


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_interrupts_between_calls() -> None:
    graph = Graph()
    w = graph.param("w", np.zeros(64, np.float32))
    step = sg.compile([], sg.sum(w), updates=[(w, w + 1)])
    step()
    caught = 0
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            try:
                for _ in range(100_000):
                    step()
            except KeyboardInterrupt:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert caught == 20
    value = w.value
    assert value.min() == value.max()
    assert float(step()) == pytest.approx(64 * value[0])
    done = threading.Thread(target=step)  # the lock of the graph is free
    done.start()
    done.join(10)
    assert not done.is_alive()


# --- lifetimes -----------------------------------------------------------------------------------------------------


def test_dropped_functions_and_graphs_are_freed() -> None:
    def use() -> list[weakref.ref]:
        graph = Graph()
        x = graph.input("x", ("n",))
        w = graph.param("w", np.zeros(3, np.float32))
        loss = sg.sum(sg.tanh(x) * w)
        f = sg.compile([x], loss, updates=[(w, w - sg.grad(loss, w))])
        f(np.ones(3, np.float32))
        storage = graph.storage["w"].array
        (binding,) = f._bindings.values()
        return [weakref.ref(f), weakref.ref(binding.executable), weakref.ref(graph), weakref.ref(storage)]

    references = use()
    gc.collect()
    assert [r() for r in references] == [None] * 4


def test_function_outlives_names_of_its_graph() -> None:
    f = double()
    gc.collect()
    np.testing.assert_array_equal(f(np.ones(2, np.float32)), [2, 2])
    result = f(np.full(LARGE, 4, np.float32))
    del f
    gc.collect()
    assert (result == 8).all()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_distinct_programs_grow_memory_little() -> None:
    def compile_one(k: int) -> None:
        graph = Graph()
        x = graph.input("x", (4,))
        np.testing.assert_array_equal(sg.compile([x], x * float(k) + 1)(np.ones(4, np.float32)), k + 1)

    for k in range(30):
        compile_one(k)
    gc.collect()
    before = resident()
    for k in range(30, 230):
        compile_one(k)
    gc.collect()
    assert resident() - before < 200 * 60_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_thousands_of_calls_leak_nothing() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    w = graph.param("w", np.zeros(50, np.float32))
    f = sg.compile([x], {"y": x * 2, "z": sg.sum(w)}, updates=[(w, w + 1)])
    given = np.ones(50, np.float32)
    wrong = np.ones((2, 2), np.float32)

    def calls(count: int) -> None:
        for _ in range(count):
            f(x=given)
            f(given, out={"y": np.empty(50, np.float32), "z": np.empty((), np.float32)})
            with pytest.raises(sg.ShapeError):
                f(wrong)

    calls(500)
    gc.collect()
    objects, before = len(gc.get_objects()), resident()
    calls(3000)
    gc.collect()
    assert len(gc.get_objects()) - objects < 200
    assert resident() - before < 4_000_000


# Outputs that are reshapes


def reshaped(case: str) -> tuple[list[sg.Node], list[sg.Node], int]:
    """Inputs, outputs, and how many kernels at most compute and copy these."""
    g = Graph()
    x = g.input("x", (4, 6))
    y = sg.cumulative_sum(x, axis=1)
    flat = sg.reshape(y, (24,))
    match case:
        case "computed":
            return [x], [flat], 1
        case "reshape of a reshape":
            return [x], [sg.reshape(sg.reshape(y, (2, 12)), (3, 8))], 1
        case "read by others too":
            return [x], [flat, sg.sum(flat * flat)], 2
        case "of products":
            return [x], [sg.reshape(x @ sg.permute_dims(x, (1, 0)), (2, 8))], 1
        case "beside another one":
            return [x], [flat, sg.reshape(y, (2, 12))], 2
        case "beside what is reshaped":
            return [x], [flat, y], 2
        case "behind what is reshaped":
            return [x], [y, flat], 2
        case "twice":
            return [x], [flat, flat], 3
        case "of an input":
            return [x], [sg.reshape(x, (24,)), sg.reshape(x, (6, 4))], 2
        case _:
            raise ValueError(case)


RESHAPED = [
    "computed", "reshape of a reshape", "read by others too", "of products", "beside another one",
    "beside what is reshaped", "behind what is reshaped", "twice", "of an input",
]  # fmt: skip


@pytest.mark.parametrize("case", RESHAPED)
def test_outputs_that_are_reshapes(case: str) -> None:
    """They have their shapes, also those that are given, and memory of their own; what is computed is not copied."""
    inputs, outputs, kernels = reshaped(case)
    f = sg.compile(inputs, outputs)
    data = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    kept = data.copy()
    for _ in range(2):
        got = f(data)
        given = [np.full(tuple(map(int, n.shape)), 7, np.float32) for n in outputs]
        f(data, out=given)
        for node, one, other in zip(outputs, got, given, strict=True):
            wanted = sg.evaluate(node, {inputs[0]: data})
            assert one.shape == wanted.shape
            np.testing.assert_allclose(one, wanted, rtol=1e-6)
            np.testing.assert_array_equal(one, other)
        for k, one in enumerate(got):
            assert not any(np.shares_memory(one, other) for other in (data, *got[k + 1 :]))
            one[...] = -1
        np.testing.assert_array_equal(data, kept)
    found = re.search(r"(\d+) kernels,", f.report())
    assert found is not None
    assert int(found[1]) <= kernels
    with pytest.raises(sg.ShapeError):
        f(data, out=[one.reshape(1, -1) for one in given])


def test_a_reshape_of_what_is_updated() -> None:
    """Who writes to an output changes neither the new value nor the old one, and both are returned as they are."""
    g = Graph()
    x, p = g.input("x", (4, 6)), g.param("p", np.ones((4, 6), np.float32))
    new = p * 2 + x
    f = sg.compile([x], [sg.reshape(new, (24,)), sg.reshape(p, (2, 12)), sg.reshape(new, (6, 4))], updates=[(p, new)])
    old, data = np.ones((4, 6), np.float32), np.arange(24, dtype=np.float32).reshape(4, 6)
    for _ in range(3):
        got = f(data)
        wanted = old * 2 + data
        for one, value in zip(got, (wanted, old, wanted), strict=True):
            np.testing.assert_array_equal(one.ravel(), value.ravel())
            one[...] = -1
        old = wanted


def test_reshapes_of_symbolic_and_of_no_size() -> None:
    g = Graph()
    x = g.input("x", ("n", 6))
    y = sg.exp(x)
    f = sg.compile([x], {"flat": sg.reshape(y, (x.shape[0] * 6,)), "split": sg.reshape(y + 1, (x.shape[0], 2, 3))})
    for n in (3, 0, 5):
        data = np.linspace(0, 1, 6 * n, dtype=np.float32).reshape(n, 6)
        got = f(data)
        np.testing.assert_allclose(got["flat"], np.exp(data).reshape(-1), rtol=1e-6)
        np.testing.assert_allclose(got["split"], np.exp(data).reshape(n, 2, 3) + 1, rtol=1e-6)
