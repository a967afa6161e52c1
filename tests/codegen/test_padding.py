# pyright: basic
"""Terms that are zero since an array is padded are left out of sums, and what next tiles read is fetched before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_cases import NARROW, WIDE, Native

import symgrad as sg
from codegen import interp, jit, works
from codegen.affine import Affine, variable
from codegen.ahead import TermAhead
from codegen.group import Anchor
from codegen.loop import (
    Accumulate,
    Bind,
    Buffer,
    Fetch,
    For,
    Kernel,
    Let,
    Load,
    Loop,
    Skip,
    Space,
    Store,
    loops_of,
    replace_loops,
    statements_of,
)
from codegen.loop_print import kernel_text
from codegen.loop_verify import verify
from codegen.padding import LeaveOut, Note, can_note, padding_of
from codegen.prepare import prepare
from codegen.schedule_cpu import Scheduled, schedule
from codegen.steps import apply
from codegen.target import CACHE_LINE, Target
from symgrad.errors import CompileError
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace
from symgrad.types import float32
from tests.oracles import differs

HOST = jit.host_target()


def lowered(make: Callable[[sg.Graph], Any]) -> list[Any]:
    """The groups of a program and their naive kernels."""
    g = sg.Graph()
    output = make(g)
    program = optimize(Program(g, tuple(g.inputs), (output,)), "infer", {})
    return works.lowered_groups(prepare(program), verify=True)


# Where arrays are zero


def product(x: sg.Node, rows: int) -> sg.Node:
    """Something that has an array stored, so that a map computes it and nothing else."""
    return x @ x.graph.input("w", (rows, 5))


KNOWN: dict[str, tuple[Callable[[sg.Graph], sg.Node], tuple[int, ...]]] = {
    "pad": (lambda g: sg.pad(g.input("x", (3, 4)), ((1, 2), (0, 3))), (6, 7)),
    "pad of what is computed": (lambda g: sg.pad(sg.exp(g.input("x", (3, 4))), ((1, 0), (2, 2))), (4, 8)),
    "one axis": (lambda g: sg.pad(g.input("x", (3, 4)), ((0, 0), (0, 1))), (3, 5)),
}
UNKNOWN: dict[str, Callable[[sg.Graph], sg.Node]] = {
    "no padding": lambda g: sg.exp(g.input("x", (6, 7))),
    "ones": lambda g: sg.pad(g.input("x", (3, 4)), ((1, 2), (0, 3)), 1.0),
    "negative zeros": lambda g: sg.pad(g.input("x", (3, 4)), ((1, 2), (0, 3)), -0.0),
    "changed after": lambda g: sg.exp(sg.pad(g.input("x", (3, 4)), ((1, 2), (0, 3)))),
    "chosen by a comparison": lambda g: sg.where(g.input("x", (6, 7)) > 0, g.input("y", (6, 7)), 0.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_where_a_padded_array_is_zero(name: str) -> None:
    """The guard is negative where the kernel stores zeros, and nowhere else, if no element of the operand is zero."""
    make, extents = KNOWN[name]
    kernel = lowered(make)[0].naive.kernel
    written = next(b for b in kernel.params if b.written)
    padding = padding_of(kernel, written.name)
    assert padding is not None
    assert padding.extents == extents
    arrays = [np.full(b.size, 3.0, b.dtype.np) for b in kernel.params]
    interp.run(kernel, arrays)
    stored = arrays[kernel.params.index(written)].reshape(extents)
    for place in np.ndindex(extents):
        at = {f"x{k}": Affine(value) for k, value in enumerate(place)}
        assert all(one.substitute(at).const >= 0 for one in padding.guard) == (stored[place] != 0)


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_zeros_are_not_known(name: str) -> None:
    kernel = lowered(UNKNOWN[name])[0].naive.kernel
    assert padding_of(kernel, next(b.name for b in kernel.params if b.written)) is None


def test_zeros_are_not_known_of_turned_or_shifted_places() -> None:
    """An array that is not stored row by row over the loops has no extents of theirs."""
    kernel = lowered(KNOWN["pad"][0])[0].naive.kernel
    name = next(b.name for b in kernel.params if b.written)
    (store,) = (s for s in statements_of(kernel.body) if isinstance(s, Store))
    (outer, a), (inner, b) = sorted(store.index.terms, key=lambda term: -term[1])
    assert (a, b) == (7, 1)
    for index in (variable(outer) * 8 + variable(inner), store.index + 1, variable(inner) * 6 + variable(outer)):
        other = replace(kernel, body=_with_store(kernel, replace(store, index=index)))
        padding = padding_of(other, name)
        assert padding is None or padding.extents == (7, 6)


def _with_store(kernel: Kernel, store: Store) -> tuple[Any, ...]:
    def inside(body: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            For(s.loop, inside(s.body)) if isinstance(s, For) else store if isinstance(s, Store) else s for s in body
        )

    return inside(kernel.body)


# Terms left out


def convolution(
    n: int, c: int, o: int, space: int, size: int, groups: int = 1, dtype: Any = sg.float32, **options: Any
) -> Callable[[sg.Graph], sg.Node]:
    def make(g: sg.Graph) -> sg.Node:
        x, w = g.input("x", (n, c, space, space), dtype), g.input("w", (o, c // groups, size, size), dtype)
        return sg.nn.conv2d(x, w, groups=groups, **{"padding": size // 2, **options})

    return make


def contraction(make: Callable[[sg.Graph], sg.Node], target: Target) -> tuple[tuple[Scheduled, ...], ...]:
    """The kernels of a padded convolution that leave out zeros, and those that do not."""
    pads, product = (one.naive.kernel for one in lowered(make) if one.group.anchor in (Anchor.MAP, Anchor.CONTRACT))
    padding = padding_of(pads, next(b.name for b in pads.params if b.written))
    assert padding is not None
    (array,) = (b.name for b in product.params if not b.written and b.size == int(np.prod(padding.extents)))
    return (
        schedule(product, Anchor.CONTRACT, target, padded={array: padding}),
        schedule(product, Anchor.CONTRACT, target),
    )


LEFT: dict[str, tuple[Callable[[sg.Graph], sg.Node], Target]] = {
    "turned": (convolution(2, 3, 20, 5, 3), WIDE),
    "one tile of columns": (convolution(3, 2, 16, 4, 3), WIDE),
    "tiles and a tile that is left": (convolution(1, 2, 44, 13, 3, stride=3), replace(NARROW, l2=1)),
    "larger windows": (convolution(1, 2, 16, 5, 5), WIDE),
    "strides": (convolution(2, 2, 20, 7, 3, stride=2), WIDE),
    "dilations, ends that differ": (convolution(1, 2, 20, 5, 3, dilation=2, padding=((0, 3), (2, 1))), WIDE),
    "float64": (convolution(1, 2, 20, 3, 3, dtype=sg.float64), WIDE),
}
left = pytest.mark.parametrize("name", LEFT)


def operands(kernels: tuple[Scheduled, ...], name: str, spoiled: float | None) -> dict[str, np.ndarray]:
    """Arrays for what kernels read: the padded array, zero where it is padded, and weights, one of them as given."""
    rng = np.random.default_rng(3)
    step = next(s for one in kernels for s in one.steps if isinstance(s, LeaveOut))
    arrays: dict[str, np.ndarray] = {}
    for buffer in (b for one in kernels for b in one.kernel.params):
        arrays[buffer.name] = rng.standard_normal(buffer.size).astype(buffer.dtype.np)
    padded = arrays[step.array].reshape(step.padding.extents)
    for place in np.ndindex(padded.shape):
        at = {f"x{k}": Affine(value) for k, value in enumerate(place)}
        if any(one.substitute(at).const < 0 for one in step.padding.guard):
            padded[place] = 0
    if spoiled is not None:
        weights = next(b.name for b in kernels[0].kernel.params if not b.written)
        arrays[weights][0] = spoiled  # the first tap of all, which meets zeros
    return arrays


def ran(
    kernels: tuple[Scheduled, ...], arrays: dict[str, np.ndarray], run: Callable[[Kernel, list[np.ndarray]], Any]
) -> np.ndarray:
    memory = {name: array.copy() for name, array in arrays.items()}
    for one in kernels:
        verify(one.kernel)
        for buffer in one.kernel.params:
            if buffer.written:
                memory[buffer.name] = np.full(buffer.size, -7, buffer.dtype.np)
        run(one.kernel, [memory[b.name] for b in one.kernel.params])
    return next(memory[b.name] for b in kernels[-1].kernel.params if b.written)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many additions to sums the interpreter has run, of all lanes at once."""
    count, add = [0], interp._Machine._accumulate

    def counting(self: Any, stmt: Any) -> None:
        count[0] += 1
        add(self, stmt)

    monkeypatch.setattr(interp._Machine, "_accumulate", counting)
    return count


@pytest.mark.parametrize("spoiled", [None, np.inf, np.nan])
@left
def test_the_same_bits_with_terms_left_out(name: str, spoiled: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinite weights and those that are NaN meet zeros too, and make NaN of sums; others need not."""
    kernels, whole = contraction(*LEFT[name])
    assert "_count" in kernel_text(kernels[-1].kernel)
    assert "_count" not in kernel_text(whole[-1].kernel)
    arrays = operands(kernels, name, spoiled)
    count = counted(monkeypatch)
    got = ran(kernels[-1:], arrays | packed(kernels, arrays), interp.run)
    some = count[0]
    wanted = ran(whole[-1:], arrays | packed(whole, arrays), interp.run)
    assert differs(got, wanted) is None
    assert np.isnan(got).any() == (spoiled is not None)
    assert some < count[0] - some or spoiled is not None


def packed(kernels: tuple[Scheduled, ...], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the kernels before the last one write."""
    written = {b.name: np.full(b.size, -7, b.dtype.np) for one in kernels[:-1] for b in one.kernel.params if b.written}
    for one in kernels[:-1]:
        interp.run(one.kernel, [(arrays | written)[b.name] for b in one.kernel.params])
    return written


@left
def test_tiles_with_weights_that_are_not_finite_are_noted(name: str) -> None:
    """One note for each tile: NaN for those, and only for those, that hold such a weight."""
    kernels, _ = contraction(*LEFT[name])
    step = next(s for s in kernels[0].steps if isinstance(s, Note))
    for spoiled in (None, np.inf, -np.inf, np.nan):
        written = packed(kernels, operands(kernels, name, spoiled))
        tiles = written[step.packed].reshape(-1, step.size)
        # Columns beyond the last one are in no array, and nothing is written to them.
        holds = ~np.isfinite(tiles).all(1)
        assert holds.sum() == (spoiled is not None)
        np.testing.assert_array_equal(np.isnan(written[step.notes]), holds)


@pytest.mark.parametrize("spoiled", [None, np.inf])
@pytest.mark.parametrize("name", ["turned", "larger windows", "strides"])
def test_machine_code_with_terms_left_out(name: str, spoiled: float | None) -> None:
    """Code that branches around terms gives the bits of code that adds them."""
    kernels, whole = contraction(LEFT[name][0], HOST)
    arrays = operands(kernels, name, spoiled)

    def native(kernel: Kernel, memory: list[np.ndarray]) -> None:
        assert Native(kernel, HOST).run(memory) == 0

    got, wanted = (ran(some, arrays, native) for some in (kernels, whole))
    assert differs(got, wanted) is None
    assert np.isnan(got).any() == (spoiled is not None)


def test_kernels_that_do_not_pack_tile_after_tile_are_refused() -> None:
    kernels, _ = contraction(*LEFT["turned"])
    step = next(s for s in kernels[0].steps if isinstance(s, Note))
    pack = apply(kernels[0].kernel, ())
    with pytest.raises(ValueError, match="not packed tile after tile"):
        apply(pack, [replace(step, size=step.size // 2, notes="other")])


def test_a_tile_packed_in_two_loops_is_refused() -> None:
    """Each would note what it packs, and the second one alone would be known."""
    buffers = (Buffer("w", float32, 64, Space.GLOBAL), Buffer("packed", float32, 64, Space.GLOBAL, True))

    def half(start: int) -> For:
        index = variable("k.0") * 16 + variable("k.1")
        copied = (Load("v", "w", index, float32), Store("packed", index, "v"))
        return For(Loop("k.0", 1, start, Bind.PARALLEL), (For(Loop("k.1", 16, 0, Bind.VECTOR, 16), copied),))

    assert can_note(Kernel(buffers, (), (half(0), half(1))), Note("packed", 16, "notes"))
    assert not can_note(Kernel(buffers, (), (half(0), half(1))), Note("packed", 32, "notes"))


def skips_of(kernel: Kernel) -> list[For]:
    return [f for f in loops_of(kernel.body) if f.loop.skip is not None]


def with_skip(kernel: Kernel, name: str, skip: Skip) -> Kernel:
    return replace(kernel, body=replace_loops(kernel.body, name, lambda f: (For(replace(f.loop, skip=skip), f.body),)))


def test_verify_refuses_skips() -> None:
    """What varies between lanes, names that are not there, loops that do more than add to sums."""
    kernel = contraction(*LEFT["turned"])[0][-1].kernel
    verify(kernel)
    inner = skips_of(kernel)[-1].loop
    assert inner.skip is not None
    lanes = next(f.loop.name for f in loops_of(kernel.body) if f.loop.bind is Bind.VECTOR)
    stores = next(f.loop.name for f in loops_of(kernel.body) if f.loop.bind is Bind.PARALLEL)
    wrong = [
        (lanes, inner.skip, "cannot be left out"),
        (stores, inner.skip, "cannot be left out"),
        (inner.name, replace(inner.skip, guard=()), "cannot be left out"),
        (inner.name, replace(inner.skip, unless="nobody"), "nobody"),
        (inner.name, replace(inner.skip, guard=(variable(lanes),)), lanes),
        (inner.name, replace(inner.skip, guard=(variable("nowhere"),)), "nowhere"),
    ]
    for name, skip, message in wrong:
        with pytest.raises(CompileError, match=message):
            verify(with_skip(kernel, name, skip))
    (outer,) = kernel.body
    assert isinstance(outer, For)
    loop = Loop("once", 1, skip=Skip((variable("once") + -1,), inner.skip.unless))
    flag = next(s for s in statements_of(kernel.body) if isinstance(s, Let) and s.name == inner.skip.unless)
    seen = next(s for s in statements_of(kernel.body) if isinstance(s, Load) and s.name == flag.args[0])
    with pytest.raises(CompileError, match="more than a sum"):
        verify(replace(kernel, body=(For(outer.loop, (replace(seen, index=Affine(0)), flag, For(loop, outer.body))),)))


# What the next tile reads


FETCHED: dict[str, tuple[Callable[[sg.Graph], sg.Node], Target]] = {
    "rows": (convolution(2, 2, 16, 4, 3), replace(WIDE, l2=1)),
    "strides": (convolution(1, 2, 16, 11, 3, stride=2), replace(WIDE, l2=1)),
    "strips": (convolution(1, 2, 18, 14, 3, stride=2, dtype=sg.float64), replace(NARROW, l2=1)),
}


@pytest.mark.parametrize("name", FETCHED)
def test_lines_that_the_next_tile_reads_are_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever lines begin, what an iteration reads and the one before did not was fetched in that one."""
    make, target = FETCHED[name]
    kernels = schedule(lowered(make)[-1].naive.kernel, Anchor.CONTRACT, target)
    step = next((s for s in kernels[-1].steps if isinstance(s, TermAhead)), None)
    assert step is not None
    kernel = kernels[-1].kernel
    verify(kernel)
    reads: dict[tuple[int, ...], set[int]] = {}
    fetches: dict[tuple[int, ...], set[int]] = {}
    (around,) = {_around(kernel.body, step.loop)}
    old = interp._Machine._stmt

    def traced(self: Any, stmt: Any) -> None:
        if isinstance(stmt, Load | Fetch) and stmt.buffer == step.array:
            at = tuple(int(self.loops[one]) for one in around)
            found = fetches if isinstance(stmt, Fetch) else reads
            found.setdefault(at, set()).update(map(int, np.atleast_1d(self._at(stmt.index))))
        old(self, stmt)

    monkeypatch.setattr(interp._Machine, "_stmt", traced)
    interp.run(kernel, interp.fresh_arrays(kernel.params))
    line, checked = CACHE_LINE // kernel.buffer(step.array).dtype.itemsize, 0
    for at, now in reads.items():
        following = reads.get((*at[:-1], at[-1] + 1))
        if following is None:
            continue
        new = following - now
        checked += len(new)
        for begin in range(line):
            missed = {(k + begin) // line for k in new} - {(k + begin) // line for k in fetches.get(at, set()) | now}
            assert not missed
    assert checked


def _around(body: tuple[Any, ...], name: str, loops: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The loops around a loop and itself."""
    for stmt in body:
        if isinstance(stmt, For):
            inside = (*loops, stmt.loop.name)
            found = inside if stmt.loop.name == name else _around(stmt.body, name, inside)
            if found:
                return found
    return ()


def test_places_of_windows_are_not_written_out() -> None:
    """Terms that a gradient by weights sums are the places of windows: many, so that none of them is left out."""
    g = sg.Graph()
    x, w, d = g.input("x", (4, 1, 28, 28)), g.input("w", (32, 1, 3, 3)), g.input("d", (4, 32, 28, 28))
    slope = sg.grad(sg.nn.conv2d(x, w, padding=1), w, cotangent=d)
    program = optimize(Program(g, (x, w, d), (slope,)), "infer", {})
    made = works.works_of(prepare(program), HOST, lambda _: None, None)
    sums = [f for work in made for f in loops_of(work.kernel.body) if any(isinstance(s, Accumulate) for s in f.body)]
    assert sums
    assert all(f.loop.skip is None for work in made for f in loops_of(work.kernel.body))
    assert all(len(kernel_text(work.kernel).splitlines()) < 200 for work in made)
    assert not [
        f.loop
        for work in made
        for f in loops_of(work.kernel.body)
        if f.loop.bind is Bind.UNROLL and f.loop.name in ("k0", "k1", "k2")
    ]
