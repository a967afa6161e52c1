"""Memory plans: every plan passes the independent checker, and the checker refuses broken ones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.loop import Buffer, Kernel, Space
from codegen.plan import ALIGNMENT, MemoryPlan, Place, Work, check, plan
from codegen.precedence import Precedence, order
from symgrad.record import replace
from symgrad.types import uint8


def work(label: str, reads: dict[str, int], writes: dict[str, int]) -> Work:
    """A work that reads and writes values of so many bytes."""
    values = {**reads, **writes}
    params = tuple(
        Buffer(f"p{k}", uint8, size, Space.GLOBAL, v in writes) for k, (v, size) in enumerate(values.items())
    )
    return Work(Kernel(params, (), ()), tuple(values), label)


@st.composite
def random_works(draw) -> tuple[list[Work], dict[str, int]]:
    """Works in an order in which they can run, and the bytes of every value; value `input` stands before."""
    sizes = {"input": draw(st.integers(1, 500))}
    works: list[Work] = []
    for k in range(draw(st.integers(1, 14))):
        known = sorted(sizes)
        reads = draw(st.lists(st.sampled_from(known), max_size=3, unique=True))
        writes = {f"v{k}.{j}": draw(st.integers(0, 400)) for j in range(draw(st.integers(1, 2)))}
        works.append(work(f"w{k}", {v: sizes[v] for v in reads}, writes))
        sizes |= writes
    return works, sizes


def planned(works: list[Work], sizes: dict[str, int], outputs: tuple[str, ...] = ()) -> MemoryPlan:
    fixed = {"input": Place("input", 0, sizes["input"])}
    fixed |= {v: Place(f"output:{k}", 0, sizes[v]) for k, v in enumerate(outputs)}
    return plan(works, {v: s for v, s in sizes.items() if v not in fixed}, fixed)


@given(random_works(), st.data())
def test_every_plan_holds(made: tuple[list[Work], dict[str, int]], data) -> None:
    works, sizes = made
    written = sorted(set(sizes) - {"input"})
    outputs = tuple(data.draw(st.lists(st.sampled_from(written), max_size=2, unique=True)))
    memory = planned(works, sizes, outputs)
    check(works, memory, ["input"])
    for value, size in sizes.items():
        place = memory.places[value]
        assert place.size >= size
        if place.slot == "arena":
            assert place.offset % ALIGNMENT == 0
            assert place.offset + place.size <= memory.bytes
    rounded = [-(-max(s, 1) // ALIGNMENT) * ALIGNMENT for v, s in sizes.items() if memory.places[v].slot == "arena"]
    assert memory.bytes <= sum(rounded)


@given(random_works(), st.data())
def test_a_moved_value_is_caught(made: tuple[list[Work], dict[str, int]], data) -> None:
    """Two values whose lives overlap, put in one place: some work then reads what is not there."""
    works, sizes = made
    memory = planned(works, sizes)
    last = {v: k for k, w in enumerate(works) for v in w.reads}
    first = {v: k for k, w in enumerate(works) for v in w.writes}
    pairs = [
        (a, b) for a in sizes for b in first
        if a != b and sizes[a] and sizes[b] and a in last and first.get(a, -1) < first[b] < last[a]
    ]  # fmt: skip
    if not pairs:
        return
    a, b = data.draw(st.sampled_from(pairs))
    broken = replace(memory, places={**memory.places, b: replace(memory.places[a], size=memory.places[b].size)})
    with pytest.raises(AssertionError):
        check(works, broken, ["input"])


@given(random_works(), st.data())
def test_a_missing_barrier_is_caught(made: tuple[list[Work], dict[str, int]], data) -> None:
    works, sizes = made
    memory = planned(works, sizes)
    meetings = [k for k, barrier in enumerate(memory.barriers) if barrier]
    if not meetings:
        return
    gone = data.draw(st.sampled_from(meetings))
    broken = replace(memory, barriers=tuple(b and k != gone for k, b in enumerate(memory.barriers)))
    with pytest.raises(AssertionError, match="while"):
        check(works, broken, ["input"])


CHAIN = [
    work("first", {"input": 100}, {"a": 100}),
    work("second", {"a": 100}, {"b": 100}),
    work("third", {"b": 100}, {"c": 100}),
]
SIZES = {"input": 100, "a": 100, "b": 100, "c": 100}


def test_a_chain_reuses_memory() -> None:
    memory = planned(CHAIN, SIZES)
    assert memory.bytes == 2 * 128
    assert memory.places["c"].offset == memory.places["a"].offset
    assert memory.barriers == (False, True, True)


def test_independent_works_do_not_wait() -> None:
    works = [
        work("left", {"input": 8}, {"a": 8}),
        work("right", {"input": 8}, {"b": 8}),
        work("join", {"a": 8, "b": 8}, {"c": 8}),
    ]
    assert planned(works, {"input": 8, "a": 8, "b": 8, "c": 8}).barriers == (False, False, True)


def test_writing_what_another_reads_waits() -> None:
    """An output written over an input waits for those who still read it."""
    works = [work("reader", {"old": 8}, {"a": 8}), work("writer", {}, {"new": 8})]
    fixed = {"old": Place("state", 0, 8), "new": Place("state", 0, 8)}
    memory = plan(works, {"a": 8}, fixed)
    assert memory.barriers == (False, True)
    check(works, memory, ["old"])
    with pytest.raises(AssertionError, match="reader uses"):
        check(works, replace(memory, barriers=(False, False)), ["old"])


def test_a_lost_value_is_caught() -> None:
    memory = planned(CHAIN, SIZES)
    with pytest.raises(AssertionError, match="third reads b"):
        check([CHAIN[0], CHAIN[2]], replace(memory, barriers=(False, True)), ["input"])
    with pytest.raises(AssertionError, match="first reads input"):
        check(CHAIN, memory, [])


def test_partly_overlapping_values_of_one_work_are_caught() -> None:
    memory = planned(CHAIN, SIZES)
    broken = replace(memory, places={**memory.places, "b": Place("arena", memory.places["a"].offset + 64, 128)})
    with pytest.raises(AssertionError, match="partly overlaps"):
        check(CHAIN, broken, ["input"])


def test_order_puts_writers_before_readers() -> None:
    found = order(CHAIN[::-1], {})
    assert found is not None
    assert [w.label for w in found] == ["first", "second", "third"]


def test_order_keeps_old_values_until_they_are_read() -> None:
    works = [work("update", {"g": 8}, {"new": 8}), work("reader", {"old": 8}, {"y": 8})]
    found = order(works, {"new": "old"})
    assert found is not None
    assert [w.label for w in found] == ["reader", "update"]


def test_order_sees_updates_that_wait_for_each_other() -> None:
    works = [work("left", {"a": 8}, {"new b": 8}), work("right", {"b": 8}, {"new a": 8})]
    homes = {"new a": "a", "new b": "b"}
    assert order(works, homes) is None


def test_order_agrees_with_a_search_of_the_whole_graph() -> None:
    """Values take over memory of others one after another, each allowed exactly when an order is left."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        works: list[Work] = []
        for k in range(12):
            reads = {f"v{j}" if j < k else f"p{j - k}": 8 for j in rng.integers(0, k + 6, 3).tolist()}
            works.append(replace(work(f"w{k}", reads, {f"v{k}": 8}), checks=bool(rng.random() < 0.1)))
        graph = nx.DiGraph()
        graph.add_nodes_from(range(12))
        graph.add_edges_from((int(v[1:]), k) for k, w in enumerate(works) for v in w.reads if v[0] == "v")
        precedence = Precedence(works)
        for k, target in zip(rng.permutation(12).tolist(), rng.integers(0, 8, 12).tolist(), strict=True):
            trial = graph.copy()
            trial.add_edges_from((j, k) for j, w in enumerate(works) if j != k and f"p{target}" in w.reads)
            trial.add_edges_from((j, k) for j, w in enumerate(works) if j != k and w.checks)
            possible = nx.is_directed_acyclic_graph(trial)
            assert precedence.take_over(f"v{k}", f"p{target}") == possible
            graph = trial if possible else graph
            assert precedence.ordered() == list(nx.lexicographical_topological_sort(graph))
            stands = {one: place for place, one in enumerate(precedence.ordered())}
            assert all(stands[a] < stands[b] for a, b in graph.edges)
