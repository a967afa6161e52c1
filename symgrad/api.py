"""Compiling programs: the only module of this package that knows code generation."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast, overload

from codegen import jit
from codegen.build import build
from codegen.cache import ObjectCache
from codegen.calls import attach
from codegen.machine_code import KernelStore
from codegen.target import Target
from codegen.threads import default_workers
from symgrad.errors import CompileError, GraphError
from symgrad.function import Executable, Function, Structure, check_program, flatten
from symgrad.graph import Node, Operand, describe
from symgrad.operators import as_node
from symgrad.optimize import optimize, select_phase
from symgrad.passes import write_dump
from symgrad.program import Program
from symgrad.random import random_updates
from symgrad.record import replace
from symgrad.rulebook import choose_rules
from symgrad.settings import Settings, settings
from symgrad.types import Dim, bound

Phase = Literal["train", "infer"]
# Kernels compiled by this process; equal ones are found by their text.
_KERNELS = KernelStore()
# The debug level at which each kind of report is shown.
_LEVELS = {"stage": 1, "group": 3, "loop": 4, "llvm": 5, "assembly": 6}


@overload
def compile(
    program: Program,
    /,
    *,
    device: str = "cpu",
    threads: int | None = None,
    without: Iterable[str] = (),
    max_bytes: int | None = None,
    tune: bool = False,
) -> Function: ...
@overload
def compile(
    inputs: Sequence[Node],
    outputs: Any,
    /,
    *,
    updates: Iterable[tuple[Node, Operand]] | None = None,
    phase: Phase | None = None,
    device: str = "cpu",
    threads: int | None = None,
    name: str | None = None,
    without: Iterable[str] = (),
    max_bytes: int | None = None,
    tune: bool = False,
) -> Function: ...
def compile(
    inputs: Program | Sequence[Node],
    outputs: Any = None,
    /,
    *,
    updates: Iterable[tuple[Node, Operand]] | None = None,
    phase: Phase | None = None,
    device: str = "cpu",
    threads: int | None = None,
    name: str | None = None,
    without: Iterable[str] = (),
    max_bytes: int | None = None,
    tune: bool = False,
) -> Function:
    """Make a function that computes the outputs from the inputs in native code.

    `outputs` is a node or sparse matrix, or a list, tuple or dict of them; a call returns the same structure, with
    arrays for nodes and a `scipy.sparse.csr_array` for each sparse matrix. `updates` are pairs
    (param or state, new value), all computed from the old values. `phase` decides between the branches of `phase`
    nodes: "train" by default when there are updates, else "infer". Functions over one graph share its params and
    states. Code is generated at the first call with new sizes, see `Function`. `threads` is the number of workers
    (SYMGRAD_NUM_THREADS, or one per processor). `without` names rewrite rules to leave out. A program, as `sg.prune`
    and `sg.load` give, is compiled as it is.

    `max_bytes` limits the arena: the memory of one call in flight for values between inputs and outputs; what stands
    outside of it, `Function.report` lists. Where it is too small, kernels run again in the course of a call for values
    that would otherwise be kept, as those of the forward pass for the backward pass. Every value keeps its bits, a call
    takes longer. It holds for every set of sizes on its own.

    `tune` measures, when code is generated, a handful of schedules for each distinct matrix product and convolution
    together with what is fused to it, on arrays of its own, and takes the fastest one if it is clearly faster than the
    default. Results have the same bits. It takes about a second for each; what was found is kept with the machine code,
    and not measured again on this machine. `Function.report` says for how many another schedule runs. Products that
    read computed places, that are short, or that take more than 1 GiB keep the default.

    GraphError for nodes that cannot be inputs, outputs or updates; CompileError for a device or option that is not
    supported, and from the call that compiles for a limit that cannot be kept, with the least that can; ValueError for
    a rule that does not exist.

        step = sg.compile([x, t], loss, updates=sg.optim.sgd(g.params, grads, lr=0.1))
    """
    if device != "cpu":
        raise CompileError(f"compile: device {device!r} is not supported; this version compiles for 'cpu'")
    if isinstance(inputs, Program):
        if outputs is not None or updates is not None or name is not None:
            raise GraphError("compile: a program has its outputs, updates and name already; give only options with it")
        program = inputs
        kind = dict if program.output_names is not None else Node if len(program.outputs) == 1 else tuple
        structure = Structure(kind, program.output_names or ())
        chosen: Phase = phase or "infer"
    else:
        given = _pairs(updates)
        chosen = phase or ("train" if given else "infer")
        program, structure = _program(inputs, outputs, given, name)
    if chosen not in ("train", "infer"):
        raise CompileError(f"compile: phase must be 'train' or 'infer', got {phase!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise CompileError(f"compile: threads must be an integer of at least 1, got {threads!r}")
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise CompileError(f"compile: max_bytes must be an integer of at least 0, got {max_bytes!r}")
    if not isinstance(tune, bool):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise CompileError(f"compile: tune must be True or False, got {tune!r}")
    workers = threads if threads is not None else settings().threads or default_workers()
    check_program(program)
    left_out = tuple(without)
    choose_rules(left_out)
    if not isinstance(inputs, Program):
        program = _advanced(program, chosen)
    options: dict[str, Any] = {
        "phase": chosen, "workers": workers, "without": left_out, "max_bytes": max_bytes, "tune": tune,
    }  # fmt: skip
    # A profiled program runs kernel by kernel.
    made = Function(program, structure, partial(make_executable, **options), None if settings().profile else attach)
    if settings().profile:
        _show_at_exit(made)
    return made


def _show_at_exit(function: Function) -> None:
    """Print what was measured of a function that was called when the process ends."""

    def show() -> None:
        if function.is_compiled:
            print(function.report(), file=sys.stderr)

    atexit.register(show)


def _pairs(updates: Any) -> list[tuple[Node, Node]]:
    """The updates as pairs of nodes; new values that are arrays or numbers are lifted."""
    if updates is None:
        return []
    if isinstance(updates, Node | Mapping):
        raise GraphError("compile: updates are a list of pairs (param or state, new value); use .items() of a dict")
    pairs: list[tuple[Node, Node]] = []
    for pair in updates:
        if not isinstance(pair, tuple | list) or len(cast("Sequence[Any]", pair)) != 2:
            raise GraphError("compile: updates are pairs (param or state, new value)")
        old, new = cast("Sequence[Any]", pair)
        if not isinstance(old, Node):
            raise GraphError(f"compile: an update sets a param or state, got {type(old).__name__}")
        pairs.append((old, as_node(old, new)))
    return pairs


def _program(
    inputs: Sequence[Node], outputs: Any, updates: list[tuple[Node, Node]], name: str | None
) -> tuple[Program, Structure]:
    if not isinstance(inputs, list | tuple):
        got = describe(inputs) if isinstance(inputs, Node) else type(inputs).__name__
        raise GraphError(f"compile: the inputs are a list of nodes, got {got}")
    for node in inputs:
        if not isinstance(node, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise GraphError(f"compile: inputs are nodes, got {node!r}; use g.named(name) for the node of a name")
    if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise GraphError(f"compile: the name of a function is text, got {name!r}")
    nodes, structure = flatten(outputs if outputs is not None else ())
    named = [*inputs, *nodes, *(old for old, _ in updates)]
    if not named:
        raise CompileError("compile: there are no outputs and no updates")
    graph = named[0].graph
    program = Program(graph, tuple(inputs), tuple(nodes), tuple(updates), structure.keys or None, name or "function")
    return program, structure


def _advanced(program: Program, phase: Phase) -> Program:
    """The program with an update of the random step if it draws in this phase and does not set the step itself."""
    updated = {old.id for old, _ in program.updates}
    steps = [(step, new) for step, new in random_updates(program.graph) if step.id not in updated]
    if not steps:
        return program
    # Only the branch of the phase counts: dropout draws nothing in inference.
    drawn = {node.name for node in select_phase(program, phase).states}
    return replace(program, updates=(*program.updates, *(pair for pair in steps if pair[0].name in drawn)))


@lru_cache(maxsize=1)
def _object_cache(folder: str) -> ObjectCache | None:
    """The cache in a folder that was asked for, or in the user's own if it can be kept there."""
    if folder == "off":
        return None
    if folder:
        return ObjectCache(Path(folder, "objects"))
    from platformdirs import user_cache_path

    try:
        return ObjectCache(user_cache_path("symgrad", appauthor=False) / "objects")
    except CompileError:
        return None


@contextmanager
def _without_collector() -> Generator[None]:
    """Leave out the search for reference cycles: it would look at every node again and again, and find none."""
    runs = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if runs:
            gc.enable()


@_without_collector()
def make_executable(
    program: Program,
    sizes: Mapping[str, int],
    *,
    phase: Phase,
    workers: int,
    rules: bool = True,
    without: Iterable[str] = (),
    target: Target | None = None,
    max_bytes: int | None = None,
    tune: bool = False,
) -> Executable:
    """Optimize a program for a phase and sizes, and generate code for a target, within a limit of its arena.

    `tune` measures schedules, see `compile`.

    `rules` and `without` switch rewrites off, see `optimize`; tests compare results with and without them.
    """
    asked = settings()
    left_out = tuple(without)
    static = optimize(program, phase, sizes, rules=rules, without=left_out)
    target = target or jit.host_target()

    def report(stage: str, text: str) -> None:
        if asked.debug >= _LEVELS[stage]:
            print(f"symgrad: {program.name}: {text}", file=sys.stderr)
        if stage == "llvm" and asked.debug >= _LEVELS["assembly"]:
            print(jit.assembly(text, target), file=sys.stderr)
        if asked.dump and stage != "stage":
            write_dump(asked.dump, f"{program.name}.{stage}.txt", text, append=True)

    try:
        # What is asked to be shown has to be made.
        shown = asked.dump is not None or asked.debug >= _LEVELS["group"]
        cache = None if shown else _object_cache(asked.cache)
        return build(
            static,
            _KERNELS,
            target=target,
            workers=workers,
            verify=asked.verify,
            report=report if asked.debug or asked.dump else None,
            cache=cache,
            profiled=asked.profile,
            symbolic=partial(_with_extents, program, phase, dict(sizes), rules, left_out) if sizes else None,
            max_bytes=max_bytes,
            tuned=tune,
        )
    except CompileError as error:
        lines = ", ".join(dict.fromkeys(describe(n) for n in static.outputs))
        raise CompileError(f"{program.name}: {error} (outputs: {lines})") from error


def _with_extents(
    program: Program, phase: Phase, sizes: Mapping[str, int], rules: bool, without: tuple[str, ...]
) -> Program:
    """The optimized program for sizes that remember which extent they are."""
    remembering = {name: bound(size, Dim.named(name)) for name, size in sizes.items()}
    return optimize(program, phase, remembering, rules=rules, without=without, settings=Settings())
