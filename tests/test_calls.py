# pyright: reportAttributeAccessIssue=false
"""Calls that arrive in native code: what it takes and what it leaves to Python; only time tells them apart."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from codegen import calls, entry
from codegen.executable import LONG_NS
from symgrad.function import RECYCLED_BYTES, Function
from symgrad.graph import Graph

ROOT = Path(__file__).parent.parent
known = pytest.mark.skipif(not calls.is_known(), reason="calls arrive in Python here")
LARGE = RECYCLED_BYTES // 4 + 16


def add(shape: tuple[int | str, ...] = ("n",), pack=lambda x, y: x + y, **options) -> Function:
    graph = Graph()
    x, y = graph.input("x", shape), graph.input("y", shape)
    return sg.compile([x, y], pack(x, y), **options)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def python_calls(f, *args, **named) -> int:
    """How many calls Python takes up of one that must go well."""
    code, count = Function.__call__.__code__, 0

    def note(frame, event, _) -> None:
        nonlocal count
        count += event == "call" and frame.f_code is code

    sys.setprofile(note)
    try:
        f(*args, **named)
    finally:
        sys.setprofile(None)
    return count


def test_is_known_here() -> None:
    """On the interpreters that are tested, calls arrive in native code, unless they run threads at the same time."""
    assert calls.is_known() == (
        sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
    )


PACKS = {
    "node": lambda x, y: x + y,
    "list": lambda x, y: [x + y, x],
    "list of one": lambda x, y: [x * y],
    "tuple": lambda x, y: (x + y, sg.sum(x), y),
    "dict": lambda x, y: {"b": x + y, "a": sg.sum(x)},
    "scalar": lambda x, y: sg.sum(x * y),
}


@known
@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 1, 3)])
def test_structures_are_those_of_python(name: str, shape: tuple[int, ...]) -> None:
    f = add(shape, PACKS[name])
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(shape).astype(np.float32), np.full(shape, 3, np.float32)
    first = f(x, y)  # compiles
    assert python_calls(f, x, y) == 0
    for got in (f(x, y), f(x, y)):
        wanted = Function.__call__(f, x, y)
        assert type(got) is type(wanted) is type(first)
        pairs = zip(parts(got), parts(wanted), strict=True)
        for (key, one), (other_key, other) in pairs:
            assert key == other_key
            assert type(one) is np.ndarray
            assert one.dtype is other.dtype
            assert one.flags.num == other.flags.num
            assert one.shape == other.shape
            assert one.tobytes() == other.tobytes()


def parts(value) -> list:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else [(0, value)]


class Own(np.ndarray):
    """A subclass."""


@known
def test_what_native_code_takes() -> None:
    f = add(("n", "m"))
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    f(base, base)
    locked, named = base.copy(), base.copy()
    locked.flags.writeable = False
    other_dtype = np.dtype("float32", metadata={"unit": "m"})
    unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 4)
    taken = [
        base,
        locked,
        base[:],
        base.reshape(3, 4),
        np.ones((6, 4), np.float32)[1:4],
        pickle.loads(pickle.dumps(base)),
        base.astype(other_dtype),
    ]
    for given in taken:
        assert python_calls(f, given, base) == 0
        assert python_calls(f, base, given) == 0
    left = [
        base.view(Own), np.asfortranarray(base), np.ones((4, 3), np.float32).T, np.ones((6, 4), np.float32)[::2],
        base.astype(">f4"), base.tolist(), unaligned, base.view(np.recarray),
    ]  # fmt: skip
    for given in left:
        for x, y in ((given, base), (base, given)):
            assert python_calls(f, x, y) == 1
            np.testing.assert_array_equal(f(x, y), np.asarray(given) + base)
    for given in ({"y": named}, {"out": None, "y": named}, {"y": named, "out": np.empty((3, 4), np.float32)}):
        assert python_calls(f, base, **given) == 0
        np.testing.assert_array_equal(f(base, **given), base * 2)
    assert python_calls(f, y=base, x=named) == 0
    np.testing.assert_array_equal(f(base, **{"".join(["", "y"]): base}), base * 2)  # another object of this text
    assert python_calls(f, base, base, out=np.empty((3, 4), np.float32)) == 0
    assert python_calls(f, base, base, out=np.empty((3, 4), np.float32).view(Own)) == 1
    np.testing.assert_array_equal(f(y=named, x=base), base * 2)
    assert python_calls(f, *(ones(4, 3),) * 2) == 1  # new sizes: compiles
    assert python_calls(f, *(ones(4, 3),) * 2) == 0
    assert f.__call__(base, base).tobytes() == f(base, base).tobytes()
    assert python_calls(f.__call__, base, base) == 0


def test_errors_are_those_of_python() -> None:
    f = add(("n", "m"), name="f")
    base = ones(3, 4)
    f(base, base)
    for args, named, error, says in [
        ((base,), {}, sg.GraphError, "f: missing y"),
        ((base, base, base), {}, sg.GraphError, "f takes 2 inputs"),
        ((), {}, sg.GraphError, "missing x, y"),
        ((base, base), {"y": base}, sg.GraphError, "given twice"),
        ((base,), {"z": base}, sg.GraphError, "no input 'z'"),
        ((base, base.astype(np.float64)), {}, sg.DTypeError, "float64"),
        ((base.astype(np.int32), base), {}, sg.DTypeError, "int32"),
        ((base.view(np.int32), base), {}, sg.DTypeError, "int32"),
        ((base, ones(3, 5)), {}, sg.ShapeError, "m"),
        ((base, ones(3)), {}, sg.ShapeError, "y"),
        ((base, ones(1, 3, 4)), {}, sg.ShapeError, "y"),
        ((base, None), {}, sg.DTypeError, "'y'"),
        ((base, "text"), {}, sg.DTypeError, "'y'"),
        ((base, np.ma.masked_array(base)), {}, sg.DTypeError, "masked"),
        ((base, object()), {}, sg.DTypeError, "'y'"),
        ((np.ndarray, base), {}, sg.DTypeError, "'x'"),
        ((base, f), {}, sg.DTypeError, "'y'"),
        ((base, base), {"out": 3}, sg.GraphError, "must be an array"),
    ]:
        for _ in range(3):
            with pytest.raises(error, match=says):
                f(*args, **named)
    np.testing.assert_array_equal(f(base, base), 2)


@known
def test_out_in_native_code() -> None:
    f = add((3, 4))
    x, room = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros(40, np.float32)
    f(x, x)
    out = room[12:24].reshape(3, 4)
    before = sys.getrefcount(out)
    for _ in range(100):
        assert f(x, x, out=out) is out
    assert sys.getrefcount(out) == before
    np.testing.assert_array_equal(out, x * 2)
    assert not room[:12].any()
    assert not room[24:].any()
    # Neighbors of the inputs are well, what shares memory with them is not.
    left, right = room[:12].reshape(3, 4), room[24:36].reshape(3, 4)
    assert python_calls(f, left, right, out=out) == 0
    for k in (0, 1, 6, 10, 11, 12, 13, 18, 22):
        with pytest.raises(sg.GraphError, match="shares memory"):
            f(left, room[k + 1 : k + 13].reshape(3, 4), out=out)
    locked = np.zeros((3, 4), np.float32)
    locked.flags.writeable = False
    for wrong in (locked, out.T, out[:2], np.zeros((3, 4)), np.zeros((4, 3), np.float32), [1], np.zeros((3, 4), ">f4")):
        with pytest.raises((sg.GraphError, sg.ShapeError, sg.DTypeError), match="out"):
            f(x, x, out=wrong)
    scalar = add((), lambda x, y: x + y)
    a, room = np.array(1, np.float32), np.array(0, np.float32)
    scalar(a, a)
    assert scalar(a, a, out=room) is room
    assert room == 2
    several = add((2,), lambda x, y: {"a": x, "b": y})
    target = {"a": ones(2) * 0, "b": ones(2) * 0}
    for _ in range(3):
        assert several(ones(2), ones(2), out=target)["a"] is target["a"]
    assert target["b"].all()


@known
def test_a_failed_index_check_with_out() -> None:
    graph = Graph()
    x, k = graph.input("x", (4,)), graph.input("k", (2,), sg.int32)
    f = sg.compile([x, k], sg.take(x, k))
    given, out = np.arange(4, dtype=np.float32), np.zeros(2, np.float32)
    before = sys.getrefcount(out)
    for _ in range(20):
        assert f(given, k=np.array([3, 1], np.int32), out=out) is out
        with pytest.raises(IndexError, match="out of range"):
            f(given, k=np.array([3, 4], np.int32), out=out)
    assert sys.getrefcount(out) == before


@known
def test_many_sizes_in_turn() -> None:
    """More than are served at the same time."""
    f = add()
    count = 2 * entry.SERVED
    for _ in range(2):
        for n in (*range(count), *range(count)[::-1]):
            given = np.arange(n, dtype=np.float32)
            np.testing.assert_array_equal(f(given, given), given * 2)
    assert f._native is not None
    assert len(f._native.served) == entry.SERVED
    for n in range(entry.SERVED):
        f(ones(n), ones(n))
    assert all(python_calls(f, ones(n), ones(n)) == 0 for n in range(entry.SERVED))


def test_a_function_of_nothing_and_one_without_outputs() -> None:
    graph = Graph()
    w = graph.param("w", np.zeros(3, np.float32))
    step = sg.compile([], [], updates=[(w, w + 1)])
    value = sg.compile([], w)
    for turn in range(1, 50):
        assert step() == []
        np.testing.assert_array_equal(value(), turn)
    np.testing.assert_array_equal(w.value, 49)


def test_a_failed_index_check() -> None:
    graph = Graph()
    x, k = graph.input("x", (4,)), graph.input("k", ("n",), sg.int32)
    w = graph.param("w", np.float32(0))
    f = sg.compile([x, k], sg.take(x, k), updates=[(w, w + 1)])
    x_value, well, wrong = np.arange(4, dtype=np.float32), np.array([3, 1], np.int32), np.array([0, 4], np.int32)
    for turn in range(1, 20):
        np.testing.assert_array_equal(f(x_value, well), [3, 1])
        with pytest.raises(IndexError, match="out of range"):
            f(x_value, wrong)
        assert w.value == turn


@known
def test_no_memory_for_outputs() -> None:
    graph = Graph()
    x = graph.input("x", ("n", 1))
    small, huge = sg.broadcast_to(x, (x.shape[0], 3)), sg.broadcast_to(x, (x.shape[0], 1 << 50))
    f = sg.compile([x], [small, huge, small * 2])
    given = ones(1, 1)
    np.testing.assert_array_equal(f(ones(0, 1))[1], np.zeros((0, 1 << 50)))
    counts = []
    gc.collect()  # what other tests left holds references too
    for _ in range(20):
        with pytest.raises(MemoryError):
            f(given)
        counts.append(sys.getrefcount(np.dtype(np.float32)))
    assert counts[-1] == counts[2]


# --- memory --------------------------------------------------------------------------------------------------------


@known
@pytest.mark.parametrize("name", PACKS)
def test_references_are_counted(name: str) -> None:
    f = add((3,), PACKS[name])
    x, y = ones(3), ones(3)
    f(x, y)
    keys = f.structure.keys
    counted = [x, y, x.dtype, f, type(f), *keys, f._entry]
    before = [sys.getrefcount(one) for one in counted]
    for _ in range(1000):
        f(x, y)
    after = [sys.getrefcount(one) for one in counted]
    assert after == before
    held, made = f(x, y), Function.__call__(f, x, y)
    assert sys.getrefcount(held) == sys.getrefcount(made)
    if name != "node":
        values, others = (list(dict(parts(one)).values()) for one in (held, made))
        assert [sys.getrefcount(one) for one in values] == [sys.getrefcount(one) for one in others]


@known
def test_nothing_is_lost() -> None:
    functions = [add((64,), pack) for pack in PACKS.values()]
    graph = Graph()
    x, k = graph.input("x", (64,)), graph.input("k", (64,))
    w = graph.param("w", np.zeros(64, np.float32))
    functions.append(sg.compile([x, k], [x + w, k], updates=[(w, w + 1)]))
    given, wrong = ones(64), ones(65)
    alive = [weakref.ref(f(given, given)) for f in functions[:1] for _ in range(100)]
    assert all(one() is None for one in alive)

    def call(count: int) -> None:
        for _ in range(count):
            for f in functions:
                f(given, given)
                f(given, y=given) if f is not functions[-1] else f(given, k=given)
            with contextlib.suppress(sg.ShapeError):
                functions[0](wrong, given)
        gc.collect()

    call(50)
    tracemalloc.start()
    try:
        call(50)
        before = tracemalloc.take_snapshot()
        call(500)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    grown = sum(d.size_diff for d in after.compare_to(before, "filename") if "tracemalloc" not in str(d.traceback))
    assert grown < 20_000


@known
def test_recycled_memory_aliases_nothing_held() -> None:
    f = add((LARGE,), lambda x, y: {"a": x + y, "b": x - y})
    x = ones(LARGE)
    addresses = set()
    for _ in range(20):
        addresses.add(f(x, x)["a"].ctypes.data)
    assert len(addresses) <= 2
    held = [f(x * k, x)["a"][3:7] for k in range(8)]
    for _ in range(4):
        f(x, x)
    for k, view in enumerate(held):
        np.testing.assert_array_equal(view, k + 1)
    assert python_calls(f, x, x) == 0


@known
def test_dropped_functions_are_freed_at_once() -> None:
    f = add((3,))
    x = ones(3)
    f(x, x)
    (binding,) = f._bindings.values()
    gone = [weakref.ref(f), weakref.ref(binding.executable)]
    del binding
    gc.disable()
    try:
        del f
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def test_copies_and_what_they_look_like() -> None:
    f = add((3,))
    x = ones(3)
    f(x, x)
    other = copy.copy(f)
    del f
    np.testing.assert_array_equal(other(x, x), 2)
    assert isinstance(other, Function)
    assert type(other).__name__ == "Function"
    assert type(other).__doc__ == Function.__doc__
    assert repr(other).startswith("<Function function: 2 inputs")
    assert str(inspect.signature(other)) in (
        "(*args, out=None, **named)",
        "(*args: 'Any', out: 'Any' = None, **named: 'Any') -> 'Any'",
    )
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(other)
    assert weakref.ref(other)() is other
    other.note = "anything"
    assert other.note == "anything"


# --- threads and interrupts ----------------------------------------------------------------------------------------


def is_long(f: Function) -> bool:
    (binding,) = f._bindings.values()
    return binding.executable.is_long


@pytest.mark.parametrize(("size", "threads"), [(10, 1), (300_000, 1), (300_000, 2)])
def test_from_many_threads(size: int, threads: int) -> None:
    """Short runs keep the interpreter, long ones let it go, on one worker or more."""
    f = add((size,), lambda x, y: [x * y, sg.sum(x)], threads=threads)
    f(ones(size), ones(size))
    assert is_long(f) == (size > 10)
    turns = 40 if size > 10 else 2000

    def work(k: int) -> bool:
        x, y = np.full(size, k, np.float32), ones(size)
        wanted = x.tobytes()
        for _ in range(turns):
            product, total = f(x, y)
            if product.tobytes() != wanted or total != k * size:
                return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    (binding,) = f._bindings.values()
    assert 1 <= len(binding.executable.contexts) <= 7


def test_the_estimate_of_long_work() -> None:
    assert LONG_NS >= 1000


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_interrupt_of_waiting() -> None:
    """A call that waits for the states of its graph can be interrupted, and leaves everything as it was."""
    graph = Graph()
    w = graph.param("w", np.zeros(4, np.float32))
    step = sg.compile([], [sg.sum(w), w], updates=[(w, w + 1)])
    step()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with graph.lock:
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            step()
    finally:
        signal.signal(signal.SIGALRM, previous)
        done.set()
        holder.join()
    np.testing.assert_array_equal(w.value, 1)
    assert step()[0] == 4
    np.testing.assert_array_equal(w.value, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("size", [10, 300_000])
def test_child_of_a_fork(size: int) -> None:
    f = add((size,), threads=2)
    x = ones(size)
    f(x, x)
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [f(x, x) for _ in iter(stop.is_set, True)])
    busy.start()
    codes = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(0 if all((f(x, x) == 2).all() for _ in range(10)) else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    busy.join()
    assert codes == [0] * 5


EXIT = """
import threading, time, numpy as np, symgrad as sg
g = sg.Graph()
x = g.input("x", ({size},))
f = sg.compile([x], x * 2, threads={threads})
given = np.ones({size}, np.float32)
f(given)
def forever():
    while True:
        f(given)
for _ in range(2):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.05)
print("end", flush=True)
"""


@pytest.mark.parametrize(("size", "threads"), [(4, 1), (400_000, 1), (400_000, 2)])
def test_process_exits_cleanly(size: int, threads: int) -> None:
    code = EXIT.format(size=size, threads=threads)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


STRESS = """
import gc, numpy as np, symgrad as sg
g = sg.Graph()
x, k = g.input("x", ("n",)), g.input("k", (), sg.int32)
w = g.param("w", np.zeros(3, np.float32))
f = sg.compile([x, k], {"a": x * 2, "b": sg.sum(x), "c": sg.take(w, k)}, updates=[(w, w + 1)])
gc.set_threshold(5)
for turn in range(400):
    given = np.arange(turn % 20, dtype=np.float32)
    got = f(given, np.array(turn % 3, np.int32))
    assert (got["a"] == given * 2).all() and got["b"] == given.sum() and got["c"] == turn
    for wrong in (given.astype(np.float64), given[None], "text"):
        try:
            f(wrong, np.array(0, np.int32))
        except (sg.DTypeError, sg.ShapeError):
            pass
    try:
        f(given, np.array(3, np.int32))
    except IndexError:
        pass
print("end")
"""


def test_with_the_checks_of_the_interpreter() -> None:
    """Memory that is written over or freed twice ends the process there."""
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", STRESS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# --- other interpreters --------------------------------------------------------------------------------------------


def test_unknown_interpreters_take_calls_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "is_known", lambda: False)
    f = add()
    for n in (3, 3, 5):
        np.testing.assert_array_equal(f(ones(n), ones(n)), 2)
    assert type(f) is Function
    assert python_calls(f, ones(3), ones(3)) == 1


@known
@pytest.mark.parametrize("field", ["DATA", "RANK", "EXTENTS", "DTYPE", "FLAGS"])
def test_other_layouts_are_noticed(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, field, 40 if field != "DTYPE" else 24)
    assert not calls.is_known.__wrapped__()


@known
@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (sys.implementation, "name", "pypy"),
        (sys, "_is_gil_enabled", lambda: False),
        (calls, "_PYTHON", ("PyObject_Vectorcall", "Py_NoSuchFunction")),
        (calls, "_numpy_functions", dict),
        (calls, "_HEADER", 32),
    ],
)
def test_other_interpreters_are_noticed(where, name: str, value, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, value, raising=name != "_is_gil_enabled")
    known_here = calls.is_known.__wrapped__()
    monkeypatch.undo()
    assert not known_here
